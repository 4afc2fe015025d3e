//! What the gateway knows of one request while it passes: the typed fields that all phases share.
//!
//! Invariant: plain data. It neither reads nor writes sockets; `proxy` fills it, plugins read and edit it.

use std::{
    any::{Any, TypeId},
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Deref,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use serde_json::Value;

use super::{
    body::{BodyState, Passed},
    consumer::Consumer,
    ext_calls::ExtCall,
};
use crate::vars::body::PostBody;

/// What is known of the matched route, for variables, logs and metrics.
#[derive(Debug, Default)]
pub struct RouteMeta {
    /// APISIX: `route_id`.
    pub id: Arc<str>,
    /// APISIX: `route_name`.
    pub name: Option<Arc<str>>,
    /// APISIX: `service_id`.
    pub service_id: Option<Arc<str>>,
    /// APISIX: `service_name`.
    pub service_name: Option<Arc<str>>,
    /// The patterns of the route as written.
    pub paths: Vec<Box<str>>,
    /// The hosts of the route as written.
    pub hosts: Vec<Box<str>>,
    /// The route as it is stored, as JSON.
    pub stored: Arc<str>,
    /// Its service as it is stored, as JSON.
    pub stored_service: Option<Arc<str>>,
}

/// A share in the matched route, of which plugins see the [`RouteMeta`].
///
/// What else a route is they need not know, and among many routes it counts that all of one lies in one place.
#[derive(Clone)]
pub struct MatchedRoute(Arc<dyn AsRef<RouteMeta> + Send + Sync>);

impl MatchedRoute {
    /// Of whatever holds the description.
    pub fn new(route: Arc<impl AsRef<RouteMeta> + Send + Sync + 'static>) -> Self {
        MatchedRoute(route)
    }
}

impl Deref for MatchedRoute {
    type Target = RouteMeta;

    fn deref(&self) -> &RouteMeta {
        (*self.0).as_ref()
    }
}

impl fmt::Debug for MatchedRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl AsRef<RouteMeta> for RouteMeta {
    fn as_ref(&self) -> &RouteMeta {
        self
    }
}

/// Changes to the upstream request that are not header edits (those are made in place).
#[derive(Debug, Default)]
pub struct Edits {
    /// Replaces the method.
    pub method: Option<Method>,
    /// Replaces path and query of the upstream request; as sent on the wire. APISIX: `upstream_uri`.
    pub uri: Option<String>,
    /// Replaces the query of the request without `?`; an empty string removes it. nginx: `set_uri_args`.
    pub args: Option<String>,
    /// Replaces the Host header of the upstream request. APISIX: `upstream_host`.
    pub host: Option<HeaderValue>,
    /// Picks another upstream than the route's. APISIX: `ctx.upstream_id` (traffic-split).
    pub upstream_id: Option<Arc<str>>,
}

/// A header of the response to come.
#[derive(Debug)]
pub struct ResponseField {
    /// Its name.
    pub name: HeaderName,
    /// The name in the letters in which it leaves in HTTP/1, if they are not the usual ones.
    pub letters: Option<Bytes>,
    /// Its value.
    pub value: HeaderValue,
    /// Beside others of its name, or in their place.
    pub mode: HeaderMode,
}

/// How a response header that a plugin asked for joins those of the upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderMode {
    /// Replaces what plugins set before under this name.
    Set,
    /// Stands beside others of the name.
    Append,
}

/// One try at an upstream node.
#[derive(Clone, Debug)]
pub struct Try {
    /// The node.
    pub addr: SocketAddr,
    /// When the try began.
    pub began: Instant,
    /// Time until connected.
    pub connect: Option<Duration>,
    /// Time until the response's head was there.
    pub header: Option<Duration>,
    /// Time until the try ended.
    pub total: Option<Duration>,
    /// Status that the node answered; 502 or 504 when it failed to.
    pub status: Option<u16>,
}

/// What is known of the upstream of one request.
#[derive(Debug, Default)]
pub struct UpstreamState {
    /// `http`, `https`, `grpc`, `grpcs`.
    pub scheme: &'static str,
    /// The Host header that the upstream saw.
    pub host: Option<HeaderValue>,
    /// Tries, oldest first.
    pub tries: Vec<Try>,
    /// Whether the response's head came from the upstream.
    pub answered: bool,
}

/// One request.
pub struct RequestCtx {
    /// Whether it came before its predecessor on the connection was answered.
    pub pipelined: bool,
    /// When its head was read.
    pub started: Instant,
    /// The same by the clock on the wall.
    pub started_at: SystemTime,
    /// The client, after `real_ip` rules.
    pub client: SocketAddr,
    /// The peer of the connection.
    pub peer: SocketAddr,
    /// The listener's address.
    pub server: SocketAddr,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Whether the peer is one of `trusted_addresses`.
    pub peer_trusted: bool,
    /// `$uri` when normalisation changed it or it does not equal the raw path; `None` = as sent.
    pub path: Option<Box<str>>,
    /// The first line of something that was no request, for the log.
    pub sent_line: Option<Box<[u8]>>,
    /// Changes to the upstream request.
    pub edits: Edits,
    /// Response headers that plugins set before the response's head was there.
    pub response_headers: Vec<ResponseField>,
    /// The matched route.
    pub route: Option<MatchedRoute>,
    /// Index into `route.paths` of the pattern that matched.
    pub matched_path: u16,
    /// Index into `route.hosts` of the pattern that matched.
    pub matched_host: Option<u16>,
    /// Path parameters, `uri_param_*`.
    pub params: Vec<(Box<str>, Box<str>)>,
    /// Who authenticated.
    pub consumer: Option<Arc<Consumer>>,
    /// The credential it used, if it was one.
    pub credential: Option<(Arc<str>, HeaderValue)>,
    /// What an identity provider says of somebody who is no consumer. APISIX: `ctx.external_user`.
    pub external_user: Option<Arc<Value>>,
    /// The buffered request body.
    pub body: BodyState,
    /// The body that went to the upstream unread, while a plugin may ask for it later.
    pub passed: Option<Box<Passed>>,
    /// Largest body that may be buffered, in bytes.
    pub body_limit: usize,
    /// What is known of the upstream.
    pub upstream: UpstreamState,
    /// Status of the response, once known.
    pub status: Option<u16>,
    /// The id that the request-id plugin gave or found.
    pub request_id: Option<Box<str>>,
    /// The id that the request has without that plugin, made when somebody asks.
    pub(super) own_id: OnceLock<Box<str>>,
    /// The body as `post_arg` variables see it, parsed when one of them is asked for.
    pub(super) post_body: OnceLock<Option<PostBody>>,
    /// The plugin that answered instead of the upstream.
    pub answered_by: Option<&'static str>,
    /// Plugins' private state, by plugin instance and type.
    /// Calls to runners of external plugins, in their order.
    pub ext_calls: Vec<ExtCall>,
    pub(super) local: Vec<(usize, TypeId, Box<dyn Any + Send + Sync>)>,
    /// Outcome of `_meta.filter` by plugin instance: evaluated once per request.
    pub(super) filters: Vec<(usize, bool)>,
}

impl RequestCtx {
    /// A request whose head was just read.
    pub fn new() -> Self {
        let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        Self {
            started: Instant::now(),
            started_at: SystemTime::now(),
            client: nowhere,
            peer: nowhere,
            server: nowhere,
            scheme: "http",
            peer_trusted: false,
            pipelined: false,
            path: None,
            sent_line: None,
            edits: Edits::default(),
            response_headers: Vec::new(),
            route: None,
            matched_path: 0,
            matched_host: None,
            params: Vec::new(),
            consumer: None,
            credential: None,
            external_user: None,
            body: BodyState::Unread,
            passed: None,
            body_limit: usize::MAX,
            upstream: UpstreamState::default(),
            status: None,
            request_id: None,
            own_id: OnceLock::new(),
            post_body: OnceLock::new(),
            answered_by: None,
            ext_calls: Vec::new(),
            local: Vec::new(),
            filters: Vec::new(),
        }
    }

    /// Sets a header of the response to come, whoever will make it.
    pub fn set_response_header(&mut self, name: HeaderName, value: HeaderValue, mode: HeaderMode) {
        self.set_response_field(ResponseField { name, letters: None, value, mode });
    }

    /// The same with a choice of letters.
    pub fn set_response_field(&mut self, field: ResponseField) {
        if field.mode == HeaderMode::Set {
            self.response_headers.retain(|other| other.name != field.name);
        }
        self.response_headers.push(field);
    }
}

impl Default for RequestCtx {
    fn default() -> Self {
        Self::new()
    }
}
