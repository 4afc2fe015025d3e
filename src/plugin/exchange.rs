//! One request with its response, as a plugin sees it.

use std::{any::TypeId, borrow::Cow, net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};
use pingora_proxy::Session;

use super::{
    body,
    chain::Chain,
    consumer::{Authenticated, Consumer},
    contract::PublicApi,
    env::Carry,
    metrics::Metrics,
    reply::Reply,
    request::{HeaderMode, RequestCtx, ResponseField},
};
use crate::{
    compat::Compat,
    net::{args, letters},
    vars::{
        template::Template,
        var::{Lookup, Var},
    },
};

/// The headers that tell the upstream who authenticated; only the gateway writes them.
/// APISIX: `consumer.lua attach_consumer`.
pub const IDENTITY_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("x-consumer-username"),
    HeaderName::from_static("x-credential-identifier"),
    HeaderName::from_static("x-consumer-custom-id"),
];

/// What a plugin may ask of the running configuration. Implemented by the snapshot.
pub trait World: Send + Sync {
    /// The consumer or credential of an auth plugin with this key; a hash lookup.
    fn find(&self, plugin: &str, key: &str) -> Option<&Arc<Authenticated>>;
    /// Whether any consumer or credential has this auth plugin.
    fn has_any(&self, plugin: &str) -> bool;
    /// A consumer by name.
    fn consumer(&self, username: &str) -> Option<&Arc<Consumer>>;
    /// An endpoint that some plugin offers behind `public-api`.
    fn api(&self, method: &str, path: &str) -> Option<&PublicApi>;
    /// The APISIX whose texts are spoken.
    fn compat(&self) -> Compat;
    /// State that outlives the snapshot.
    fn carry(&self) -> &Carry;
    /// Where refusals are counted.
    fn metrics(&self) -> &Metrics;
    /// `portcullis.debug_auth`: whether the client is told why it was refused.
    fn tells_why(&self) -> bool;
}

/// One request with its response.
pub struct Exchange<'a> {
    /// The connection to the client. Bodies are read through [`Exchange::body`] only.
    pub session: &'a mut Session,
    /// What the gateway knows of the request.
    pub ctx: &'a mut RequestCtx,
    /// The running configuration.
    pub world: &'a dyn World,
    /// Which plugin instance is running, for [`Exchange::local`].
    pub(super) running: usize,
    /// In the log phase: the chains whose credentials no log is to show.
    pub(super) masks: Option<[&'a Chain; 2]>,
}

impl<'a> Exchange<'a> {
    /// Puts the parts together for one phase.
    pub fn new(session: &'a mut Session, ctx: &'a mut RequestCtx, world: &'a dyn World) -> Self {
        Self { session, ctx, world, running: 0, masks: None }
    }

    /// The APISIX whose texts are spoken.
    pub fn compat(&self) -> Compat {
        self.world.compat()
    }

    // === the request

    /// The first value of a request header; `None` if absent or not UTF-8.
    pub fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.session
            .req_header()
            .headers
            .get(name)
            .and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
    }

    /// Sets a request header, replacing all of its name: later plugins and the upstream see it.
    pub fn set_header(&mut self, name: &HeaderName, value: HeaderValue) {
        // Fails only beyond the 32,768 distinct names a header map can hold: then the header stays out.
        let _ = self.session.req_header_mut().insert_header(letters::of(name), value);
    }

    /// Adds a request header beside others of its name.
    pub fn add_header(&mut self, name: &HeaderName, value: HeaderValue) {
        let _ = self.session.req_header_mut().append_header(letters::of(name), value);
    }

    /// Removes a request header.
    pub fn remove_header(&mut self, name: &HeaderName) {
        self.session.req_header_mut().remove_header(name);
    }

    /// The method, as edited so far.
    pub fn method(&self) -> &Method {
        self.ctx.edits.method.as_ref().unwrap_or(&self.session.req_header().method)
    }

    /// `$uri`: the normalised, decoded path of the request.
    pub fn path(&self) -> &str {
        match &self.ctx.path {
            Some(path) => path,
            None => self.session.req_header().uri.path(),
        }
    }

    /// `$args`: the query without `?`, as edited so far; empty if there is none.
    pub fn args(&self) -> &str {
        match &self.ctx.edits.args {
            Some(args) => args,
            None => self.session.req_header().uri.query().unwrap_or_default(),
        }
    }

    /// The first query argument of a name, decoded.
    pub fn arg(&self, name: &str) -> Option<Cow<'_, str>> {
        args::text(self.args().as_bytes(), name)
    }

    /// `$remote_addr`: the client's address after `real_ip` rules.
    pub fn client_ip(&self) -> IpAddr {
        self.ctx.client.ip()
    }

    /// A variable.
    pub fn var(&self, var: &Var) -> Option<Cow<'_, str>> {
        Lookup::get(self, var)
    }

    /// A template with its variables filled in.
    pub fn render<'b>(&'b self, template: &'b Template) -> Cow<'b, str> {
        template.render(self)
    }

    /// The whole request body, read and buffered the first time; empty if there is none.
    ///
    /// # Errors
    /// A 413 reply when it is larger than may be buffered, a 400 when the client breaks off.
    pub async fn body(&mut self) -> Result<Bytes, Reply> {
        body::read(self.session, self.ctx).await
    }

    // === the response

    /// Sets a header of the response to come, whoever will make it.
    pub fn set_response_header(&mut self, name: HeaderName, value: HeaderValue) {
        self.ctx.set_response_header(name, value, HeaderMode::Set);
    }

    /// Sets a header of the response to come; in HTTP/1 its name leaves in these letters.
    pub fn set_response_header_as(&mut self, letters: Bytes, name: HeaderName, value: HeaderValue) {
        let field = ResponseField { name, letters: Some(letters), value, mode: HeaderMode::Set };
        self.ctx.set_response_field(field);
    }

    /// The same beside others of its name.
    pub fn add_response_header_as(&mut self, letters: Bytes, name: HeaderName, value: HeaderValue) {
        let field = ResponseField { name, letters: Some(letters), value, mode: HeaderMode::Append };
        self.ctx.set_response_field(field);
    }

    /// Adds a header of the response to come beside others of its name.
    pub fn add_response_header(&mut self, name: HeaderName, value: HeaderValue) {
        self.ctx.set_response_header(name, value, HeaderMode::Append);
    }

    // === consumers

    /// Who authenticated, if anybody did.
    pub fn consumer(&self) -> Option<&Arc<Consumer>> {
        self.ctx.consumer.as_ref()
    }

    /// Notes who authenticated and tells the upstream. APISIX: `consumer.lua attach_consumer`.
    pub fn attach(&mut self, found: &Authenticated) {
        self.identify(found.consumer.clone(), found.credential.clone());
    }

    /// Attaches the consumer of this name, for plugins that learn it from somebody else. Whether there is one.
    pub fn attach_named(&mut self, username: &str) -> bool {
        let Some(consumer) = self.world.consumer(username).cloned() else { return false };
        self.identify(consumer, None);
        true
    }

    /// Attaches the consumer that stands for everybody who fails to authenticate.
    ///
    /// # Errors
    /// The consumer does not exist. APISIX: `consumer.lua get_anonymous_consumer`.
    pub fn attach_anonymous(&mut self, username: &str) -> Result<(), String> {
        let Some(consumer) = self.world.consumer(username) else {
            return Err(format!("failed to get anonymous consumer {username}"));
        };
        let consumer = consumer.clone();
        self.identify(consumer, None);
        Ok(())
    }

    fn identify(&mut self, consumer: Arc<Consumer>, credential: Option<(Arc<str>, HeaderValue)>) {
        if self.compat().sends_identity_headers() {
            let [username, identifier, custom_id] = IDENTITY_HEADERS;
            self.state_identity(&username, Some(consumer.header.clone()));
            self.state_identity(&identifier, credential.as_ref().map(|(_, header)| header.clone()));
            self.state_identity(&custom_id, consumer.custom_id.clone());
        }
        self.ctx.consumer = Some(consumer);
        self.ctx.credential = credential;
    }

    fn state_identity(&mut self, name: &HeaderName, value: Option<HeaderValue>) {
        match value {
            Some(value) => self.set_header(name, value),
            None => self.remove_header(name),
        }
    }

    // === private state

    /// This plugin instance's private state for this request, made by `Default` the first time.
    pub fn local<T: Default + Send + Sync + 'static>(&mut self) -> &mut T {
        let key = (self.running, TypeId::of::<T>());
        let at = match self.ctx.local.iter().position(|(who, what, _)| (*who, *what) == key) {
            Some(at) => at,
            None => {
                self.ctx.local.push((key.0, key.1, Box::<T>::default()));
                self.ctx.local.len() - 1
            }
        };
        self.ctx.local[at].2.downcast_mut().expect("the entry was found by its type")
    }

    /// This plugin instance's private state for this request, if it made any.
    pub fn take_local<T: Send + Sync + 'static>(&mut self) -> Option<Box<T>> {
        let key = (self.running, TypeId::of::<T>());
        let at = self.ctx.local.iter().position(|(who, what, _)| (*who, *what) == key)?;
        self.ctx.local.swap_remove(at).2.downcast().ok()
    }
}
