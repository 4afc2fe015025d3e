//! The Admin API: APISIX 3.18's addresses, bodies, statuses and sentences over a [`Store`]. APISIX: admin/*.lua and
//! `http_admin` of init.lua.
//!
//! [`Admin::handle`] is the whole of it, without a socket; the edge below it speaks Pingora's HTTP. Reading order:
//! this file (who gets where), `crud.rs` (resources), `judge.rs` and `refs.rs` (what may be written), `kinds.rs` (how
//! kinds differ), `error.rs` (what it looks like).
//!
//! Invariants: every write passes `crud.rs`; a text shown or logged never holds a key or a secret; the answer to a
//! write is sent after requests see it.
//!
//! Differs from APISIX: where Lua breaks down with a 500 (a body that is a text or a number, `upstream` or `plugins`
//! of a wrong type, a list address without its id) the answer is a 400 that says why; `script`, `filter_func` and
//! `_meta.pre_function` are refused; an empty list as a body or a plugin's configuration is stored as an object; the
//! content of a proto is not compiled; a `ttl` must be positive.

mod auth;
mod crud;
mod crypt;
mod documents;
mod error;
mod judge;
mod kinds;
mod list;
pub mod patch;
mod plugins;
mod refs;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{HeaderMap, Method, header};
use pingora::{apps::http_app::ServeHttp, protocols::http::ServerSession};
use serde_json::Value;
use tokio::sync::RwLock;

pub use self::{
    auth::{Access, KeyCheck, Role},
    error::Response,
};
use self::{
    crud::{Call, Target},
    error::AdminError,
    kinds::Verb,
};
use crate::{
    compat::Compat,
    control::Control,
    net::{
        args,
        ip_set::IpSet,
        uri::{normalize, split_target},
    },
    resource::Kind,
    schema::cjson,
    settings::{
        Settings,
        types::{AdminRole, AdminVersion, ProxyMode},
    },
    store::{Store, standalone::Standalone},
};

/// The address below which everything is.
const PREFIX: &str = "/apisix/admin";

/// The largest body, in bytes. APISIX: `MAX_REQ_BODY`.
const MAX_BODY: u64 = 1_572_864;

/// The largest document of the standalone mode, in bytes; APISIX has no limit.
const MAX_DOCUMENT: u64 = 256 << 20;

/// The Admin API.
pub struct Admin {
    options: Options,
    store: Arc<dyn Store>,
    control: Arc<Control>,
    standalone: Option<Arc<Standalone>>,
    // Held by a write from its checks until requests see it: see `crud::Turn`.
    writing: RwLock<()>,
}

/// What config.yaml says about the Admin API.
pub struct Options {
    /// Who may use it.
    pub access: Access,
    /// Whether browsers of other origins may (`enable_admin_cors`).
    pub cors: Cors,
    /// The shape of answers (`admin_api_version`).
    pub version: ApiVersion,
    /// Whether stream routes may be written (`apisix.proxy_mode`).
    pub streams: Streams,
    /// The header `Server`.
    pub server: String,
}

/// `enable_admin_cors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cors {
    /// Every origin.
    Any,
    /// No header.
    Off,
}

/// `admin_api_version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiVersion {
    /// APISIX 2's shapes, with `node` and `action`.
    V2,
    /// APISIX 3's.
    V3,
}

/// Whether TCP and UDP are proxied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// Stream routes may be written.
    On,
    /// They are refused.
    Off,
}

/// A request to the Admin API.
pub struct Request {
    /// The method.
    pub method: Method,
    /// The request target as sent.
    pub target: Vec<u8>,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Body,
    /// The client.
    pub peer: Option<IpAddr>,
}

/// A body, as far as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The whole; empty when there was none.
    Whole(Vec<u8>),
    /// It has, or says it has, this many bytes, which is too many; it was not kept.
    TooLarge(u64),
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Greeting,
    ValidateDocument,
    PluginNames,
    ReloadPlugins,
    ValidateSchema,
    Resource(Verb),
    Document,
    DocumentHead,
    ReplaceDocument,
}

/// A request that was let in.
struct Admitted {
    endpoint: Endpoint,
    path: String,
    query: String,
}

impl Options {
    /// Reads the settings. `generated` stands for keys that are empty there; `compat` names the version.
    ///
    /// # Errors
    /// An entry of `allow_admin` is no address.
    pub fn new(settings: &Settings, generated: &str, compat: Compat) -> Result<Options, String> {
        let admin = &settings.deployment.admin;
        let keys = admin.admin_key.iter().map(|key| {
            let text = if key.key.reveal().is_empty() { generated } else { key.key.reveal() };
            let role = if key.role == AdminRole::Viewer { Role::Viewer } else { Role::Admin };
            (text.to_owned(), role)
        });
        let check = if admin.admin_key_required { KeyCheck::Required } else { KeyCheck::Bypassed };
        let allow = IpSet::parse(admin.allow_admin.iter().map(String::as_str))?;
        let tokens = settings.apisix.enable_server_tokens;
        let server = if tokens { format!("APISIX/{}", compat.version()) } else { "APISIX".to_owned() };
        Ok(Options {
            access: Access::new(keys.collect(), check, allow),
            cors: if admin.enable_admin_cors { Cors::Any } else { Cors::Off },
            version: if admin.admin_api_version == AdminVersion::V2 {
                ApiVersion::V2
            } else {
                ApiVersion::V3
            },
            streams: if settings.apisix.proxy_mode == ProxyMode::Http { Streams::Off } else { Streams::On },
            server,
        })
    }
}

impl Admin {
    /// The Admin API over a store that the control loop follows.
    pub fn new(options: Options, store: Arc<dyn Store>, control: Arc<Control>) -> Admin {
        Admin { options, store, control, standalone: None, writing: RwLock::new(()) }
    }

    /// The API-driven standalone mode: nothing but `/apisix/admin/configs`.
    pub fn standalone(options: Options, standalone: Arc<Standalone>, control: Arc<Control>) -> Admin {
        let store: Arc<dyn Store> = standalone.store().clone();
        Admin { options, store, control, standalone: Some(standalone), writing: RwLock::new(()) }
    }

    /// Whether an address may connect to this port: the rule for what else is served there.
    pub fn admits(&self, peer: Option<IpAddr>) -> bool {
        self.options.access.admits(peer)
    }

    /// Answers a request.
    pub async fn handle(&self, request: &Request) -> Response {
        match self.admit(request) {
            Ok(admitted) => self.serve(&admitted, request).await,
            Err(response) => response,
        }
    }

    /// What can be said before the body is read.
    fn admit(&self, request: &Request) -> Result<Admitted, Response> {
        let refuse = |error: AdminError| self.finish(error.into_response(self.control.env().compat));
        let page = |status| {
            let mut page = Response::page(status);
            page.set(header::SERVER, &self.options.server);
            page
        };
        if !self.admits(request.peer) {
            return Err(page(403));
        }
        let target = split_target(&request.target);
        let path = normalize(target.path).map_err(|_| page(400))?.into_owned();
        if !path.starts_with(PREFIX) {
            return Err(page(404));
        }
        if request.method == Method::OPTIONS && self.options.cors == Cors::Any {
            return Err(self.preflight());
        }
        let endpoint = self.endpoint(&request.method, &path).ok_or_else(|| refuse(AdminError::Page(404)))?;
        let query = String::from_utf8_lossy(target.args).into_owned();
        if endpoint != Endpoint::Greeting {
            let access = &self.options.access;
            access.authenticate(&request.method, &query, &request.headers).map_err(refuse)?;
        }
        Ok(Admitted { endpoint, path, query })
    }

    fn endpoint(&self, method: &Method, path: &str) -> Option<Endpoint> {
        let name = method.as_str();
        let below = path.strip_prefix(PREFIX)?;
        if below.is_empty() {
            return (name == "HEAD").then_some(Endpoint::Greeting);
        }
        if self.standalone.is_some() {
            return match (below, name) {
                ("/configs", "GET") => Some(Endpoint::Document),
                ("/configs", "HEAD") => Some(Endpoint::DocumentHead),
                ("/configs", "PUT") => Some(Endpoint::ReplaceDocument),
                ("/configs/validate", "POST") => Some(Endpoint::ValidateDocument),
                _ => None,
            };
        }
        let verb = Verb::of(method)?;
        match (below, verb) {
            ("/configs/validate", Verb::Post) => Some(Endpoint::ValidateDocument),
            ("/plugins/list", Verb::Get) => Some(Endpoint::PluginNames),
            ("/plugins/reload", _) => Some(Endpoint::ReloadPlugins),
            (below, Verb::Post) if below.starts_with("/schema/validate/") => Some(Endpoint::ValidateSchema),
            (below, verb) => below.starts_with('/').then_some(Endpoint::Resource(verb)),
        }
    }

    async fn serve(&self, admitted: &Admitted, request: &Request) -> Response {
        let compat = self.control.env().compat;
        let answer = match (admitted.endpoint, &self.standalone) {
            (Endpoint::Resource(verb), _) => match self.prepare(verb, admitted, &request.body) {
                Ok(step) => return self.finish(self.versioned(self.run(verb, step, admitted).await)),
                Err(error) => Err(error),
            },
            (Endpoint::Document, Some(standalone)) => Ok(self.document(standalone, &request.headers).await),
            (Endpoint::DocumentHead, Some(standalone)) => Ok(self.document_head(standalone).await),
            (Endpoint::ReplaceDocument, Some(standalone)) => match whole(&request.body) {
                Ok(body) => self.replace_document(standalone, &request.headers, body).await,
                Err(error) => Err(error),
            },
            (Endpoint::ValidateDocument, _) => {
                whole(&request.body).and_then(|body| self.validate_document(&request.headers, body))
            }
            (Endpoint::ValidateSchema, _) => validate_schema(admitted, &request.body, compat),
            (Endpoint::PluginNames, _) => self.plugin_names(&admitted.query),
            (Endpoint::ReloadPlugins, _) => self.reload_plugins(&request.method),
            (Endpoint::Greeting, _) => Ok(Response::empty(200)),
            (Endpoint::Document | Endpoint::DocumentHead | Endpoint::ReplaceDocument, None) => {
                Err(AdminError::Page(404))
            }
        };
        self.finish(answer.unwrap_or_else(|error| error.into_response(compat)))
    }

    /// What is checked before the resource is looked at; its refusals do not tell the API's version.
    fn prepare(&self, verb: Verb, admitted: &Admitted, body: &Body) -> Result<Step, AdminError> {
        let segments = segments(&admitted.path);
        let area = self.area(&segments)?;
        if !matches!(area, Area::Kind(_)) && verb != Verb::Get {
            return Err(AdminError::NotFound("not found".into()));
        }
        let body = json(whole(body)?)?;
        let ttl = args::text(admitted.query.as_bytes(), "ttl").map(|text| ttl(&text)).transpose()?;
        Ok(Step { area, body, ttl })
    }

    async fn run(&self, verb: Verb, step: Step, admitted: &Admitted) -> Result<Response, AdminError> {
        match step.area {
            Area::Schema(name) => plugins::schema(name.as_deref(), self.control.env().compat),
            Area::Plugins(name) => self.plugin(name.as_deref(), &admitted.query),
            Area::Kind(target) => {
                let query = admitted.query.clone();
                self.crud(verb, Call { target, body: step.body, ttl: step.ttl, query }).await
            }
        }
    }

    fn area(&self, segments: &[&str]) -> Result<Area, AdminError> {
        let compat = self.control.env().compat;
        let name = segments.first().copied().unwrap_or_default();
        let at = |index: usize| segments.get(index).map(|segment| (*segment).to_owned());
        let from = |index: usize| segments.iter().skip(index).map(|segment| (*segment).to_owned()).collect();
        let unknown = |name: &str| Err(AdminError::NotFound(compat.unknown_resource(name)));
        match (name, segments.get(1), segments.get(2)) {
            ("schema", Some(&"plugins"), _) => return Ok(Area::Plugins(at(2))),
            ("schema", _, _) => return Ok(Area::Schema(at(1))),
            ("plugins", _, _) => return Ok(Area::Plugins(at(1))),
            ("stream_routes", _, _) if self.options.streams == Streams::Off => {
                let text = "stream mode is disabled, can not add stream routes";
                return Err(AdminError::Invalid(text.into()));
            }
            ("consumers", Some(_), Some(&"credentials")) => {
                let target = Target { kind: Kind::Credential, id: at(3), owner: at(1), below: from(4) };
                return Ok(Area::Kind(target));
            }
            ("services", Some(_), Some(&below @ "graphql_cost_decorations")) => return unknown(below),
            _ => {}
        }
        match Kind::from_dir(name) {
            None | Some(Kind::Credential) => unknown(name),
            Some(kind @ Kind::Secret) => {
                Ok(Area::Kind(Target { kind, id: at(2), owner: at(1), below: from(3) }))
            }
            Some(kind) => Ok(Area::Kind(Target { kind, id: at(1), owner: None, below: from(2) })),
        }
    }

    fn versioned(&self, answer: Result<Response, AdminError>) -> Response {
        let mut response = answer.unwrap_or_else(|error| error.into_response(self.control.env().compat));
        let version = if self.options.version == ApiVersion::V2 { "v2" } else { "v3" };
        response.set(header::HeaderName::from_static("x-api-version"), version);
        response
    }

    /// Adds what every answer below the prefix has.
    fn finish(&self, mut response: Response) -> Response {
        response.set(header::SERVER, &self.options.server);
        if self.options.cors == Cors::Any {
            response.set(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
            response.set(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true");
            response.set(header::ACCESS_CONTROL_EXPOSE_HEADERS, "*");
            response.set(header::ACCESS_CONTROL_MAX_AGE, "3600");
        }
        response
    }

    fn preflight(&self) -> Response {
        let mut response = Response::empty(200);
        response.set(header::SERVER, &self.options.server);
        response.set(header::CONTENT_TYPE, "text/plain");
        response.set(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
        response.set(header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, PUT, OPTIONS, DELETE, PATCH");
        response.set(header::ACCESS_CONTROL_ALLOW_HEADERS, "*");
        response.set(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true");
        response.set(header::ACCESS_CONTROL_MAX_AGE, "3600");
        response
    }

    fn max_body(&self) -> u64 {
        if self.standalone.is_some() { MAX_DOCUMENT } else { MAX_BODY }
    }
}

/// What a request to `/apisix/admin/…` is about.
enum Area {
    Schema(Option<String>),
    Plugins(Option<String>),
    Kind(Target),
}

struct Step {
    area: Area,
    body: Option<Value>,
    ttl: Option<Duration>,
}

/// The parts of a path below the prefix; a slash at the end means nothing.
fn segments(path: &str) -> Vec<&str> {
    let below = path.strip_prefix(PREFIX).unwrap_or_default().trim_start_matches('/');
    below.trim_end_matches('/').split('/').filter(|segment| !segment.is_empty()).collect()
}

fn whole(body: &Body) -> Result<&[u8], AdminError> {
    match body {
        Body::Whole(bytes) => Ok(bytes),
        Body::TooLarge(size) => Err(AdminError::Invalid(format!(
            "invalid request body: request size {size} is greater than the maximum size {MAX_BODY} allowed"
        ))),
    }
}

fn json(bytes: &[u8]) -> Result<Option<Value>, AdminError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let refuse = |reason| AdminError::Body { reason, echo: String::from_utf8_lossy(bytes).into_owned() };
    cjson::parse(bytes).map(Some).map_err(refuse)
}

fn ttl(text: &str) -> Result<Duration, AdminError> {
    let refuse = |what: &str| AdminError::Invalid(format!("invalid argument ttl: should be {what}"));
    let seconds: f64 = text.trim().parse().map_err(|_| refuse("a number"))?;
    let ttl = Duration::try_from_secs_f64(seconds).ok().filter(|ttl| !ttl.is_zero());
    ttl.ok_or_else(|| refuse("greater than 0"))
}

fn validate_schema(admitted: &Admitted, body: &Body, compat: Compat) -> Result<Response, AdminError> {
    let name = segments(&admitted.path).get(2).copied().unwrap_or_default().to_owned();
    plugins::validate(&name, json(whole(body)?)?, compat)
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> http::Response<Vec<u8>> {
        let head = session.req_header();
        let mut request = Request {
            method: head.method.clone(),
            target: head.raw_path().to_vec(),
            headers: head.headers.clone(),
            body: Body::Whole(Vec::new()),
            peer: session.client_addr().and_then(|addr| addr.as_inet()).map(|addr| addr.ip()),
        };
        let response = match self.admit(&request) {
            Err(response) => response,
            Ok(admitted) => match read_body(session, &request.headers, self.max_body()).await {
                Ok(body) => {
                    request.body = body;
                    self.serve(&admitted, &request).await
                }
                Err(error) => {
                    tracing::debug!(%error, "the client did not finish its request");
                    Response::page(400)
                }
            },
        };
        response.into_http()
    }
}

async fn read_body(session: &mut ServerSession, headers: &HeaderMap, limit: u64) -> pingora::Result<Body> {
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let waits = headers
        .get(header::EXPECT)
        .is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if let Some(length) = length.filter(|length| *length > limit) {
        session.set_keepalive(None);
        if !waits {
            discard(session).await;
        }
        return Ok(Body::TooLarge(length));
    }
    if waits {
        session.write_continue_response().await?;
    }
    let mut body = Vec::new();
    while let Some(chunk) = session.read_request_body().await? {
        body.extend_from_slice(&chunk);
        let size = body.len() as u64;
        if size > limit {
            session.set_keepalive(None);
            discard(session).await;
            return Ok(Body::TooLarge(size));
        }
    }
    Ok(Body::Whole(body))
}

/// Reads on and throws away, as far as it comes soon: a client that is cut off while it sends does not see its answer.
async fn discard(session: &mut ServerSession) {
    const SOON: Duration = Duration::from_secs(5);
    let mut left: usize = 64 << 20;
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout(SOON, session.read_request_body()).await {
        left = left.saturating_sub(chunk.len());
        if left == 0 {
            return;
        }
    }
}
