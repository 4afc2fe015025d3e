//! What unit tests of plugins need: an exchange made from raw request text, and a small world around it.
//!
//! A test compiles a configuration with [`Setup`] (or [`plugin`]), puts a request together with [`Kit`], runs
//! hooks inside [`Kit::run`] and reads what was said with [`answer`]. Never part of the program.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::{HeaderMap, HeaderValue};
use pingora::http::ResponseHeader;
use pingora_proxy::Session;
use serde_json::{Map, Value};
use tokio::io::AsyncWriteExt;

use super::{
    chain::Chain,
    consumer::{Authenticated, Consumer},
    contract::{AuthPlugin, Plugin, PublicApi},
    def::{PluginDef, SchemaType},
    env::{BuildEnv, Carry, CheckEnv, Origin},
    exchange::{Exchange, World},
    metrics::Metrics,
    reply::{Flow, ReplyBody},
    request::{MatchedRoute, RequestCtx, RouteMeta},
};
use crate::{builtin::Enabled, compat::Compat};

/// What a configuration is checked and compiled in.
pub struct Setup {
    compat: Compat,
    metadata: Option<Value>,
    attr: Option<Value>,
    origin: Origin,
    carry: Carry,
    metrics: Arc<Metrics>,
    registry: Enabled,
}

impl Setup {
    /// Today's APISIX, no metadata, no attributes, all plugins enabled, the configuration on route `1`.
    pub fn new() -> Self {
        Self {
            compat: Compat::Now,
            metadata: None,
            attr: None,
            origin: Origin { kind: "route", id: "1".into() },
            carry: Carry::default(),
            metrics: Arc::new(Metrics::new(prometheus::Registry::new())),
            registry: Enabled::new(None, Map::new()),
        }
    }

    /// Speaks as another APISIX.
    pub fn compat(mut self, compat: Compat) -> Self {
        self.compat = compat;
        self
    }

    /// Gives the plugin metadata.
    pub fn metadata(mut self, metadata: Value) -> Self {
        self.metadata = Some(metadata);
        self
    }

    /// Gives the plugin its `plugin_attr`.
    pub fn attr(mut self, attr: Value) -> Self {
        self.attr = Some(attr);
        self
    }

    /// Puts the configuration on another resource.
    pub fn origin(mut self, kind: &'static str, id: &str) -> Self {
        self.origin = Origin { kind, id: id.into() };
        self
    }

    /// What `Plugin::check` sees.
    pub fn check_env(&self) -> CheckEnv<'_> {
        CheckEnv { registry: &self.registry, compat: self.compat, has_metadata: self.metadata.is_some() }
    }

    /// What `Plugin::build` sees.
    pub fn build_env(&self) -> BuildEnv<'_> {
        BuildEnv {
            origin: &self.origin,
            metadata: self.metadata.as_ref(),
            attr: self.attr.as_ref(),
            registry: &self.registry,
            compat: self.compat,
            carry: &self.carry,
            metrics: &self.metrics,
        }
    }

    /// Checks a configuration as the Admin API does (schema, then the plugin's own check) and compiles it.
    ///
    /// # Errors
    /// The text after `err: `.
    pub fn build<P: Plugin>(&self, conf: Value) -> Result<P, String> {
        PluginDef::of::<P>().check(&conf, SchemaType::Route, &self.check_env())?;
        let config = serde_json::from_value::<P::Config>(conf).map_err(|e| e.to_string())?;
        P::build(config, &self.build_env())
    }

    /// Checks and compiles the consumer's side.
    ///
    /// # Errors
    /// The text after `err: `.
    pub fn credential<P: AuthPlugin>(&self, conf: &Value) -> Result<P::Credential, String> {
        PluginDef::auth::<P>().check(conf, SchemaType::Consumer, &self.check_env())?;
        P::credential(conf, &self.build_env())
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

/// A configuration compiled in the default [`Setup`].
#[track_caller]
pub fn plugin<P: Plugin>(conf: Value) -> P {
    match Setup::new().build(conf) {
        Ok(plugin) => plugin,
        Err(e) => panic!("{} refuses its configuration: {e}", P::NAME),
    }
}

/// Why a configuration is refused; empty if it is not.
pub fn refusal<P: Plugin>(conf: Value) -> String {
    Setup::new().build::<P>(conf).err().unwrap_or_default()
}

/// Compiles the schemas of a plugin, which the registry does only when first asked.
pub fn compile_schemas<P: Plugin>() {
    let def = PluginDef::of::<P>();
    assert!(def.schema(SchemaType::Route).is_some());
    def.schema(SchemaType::Metadata);
}

/// Compiles the schemas of an auth plugin.
pub fn compile_auth_schemas<P: AuthPlugin>() {
    let def = PluginDef::auth::<P>();
    assert!(def.schema(SchemaType::Route).is_some());
    assert!(def.schema(SchemaType::Consumer).is_some());
}

/// A request and the world around it.
pub struct Kit {
    raw: Vec<u8>,
    client: SocketAddr,
    route: Option<MatchedRoute>,
    world: KitWorld,
}

impl Kit {
    /// A request as it arrives on the wire: head, empty line, body.
    pub fn new(raw: impl AsRef<[u8]>) -> Self {
        Self {
            raw: raw.as_ref().to_vec(),
            client: SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 40_000),
            route: None,
            world: KitWorld::default(),
        }
    }

    /// A GET with these headers.
    pub fn get(target: &str, headers: &[(&str, &str)]) -> Self {
        let mut raw = format!("GET {target} HTTP/1.1\r\nHost: a.com\r\n");
        for (name, value) in headers {
            raw.push_str(&format!("{name}: {value}\r\n"));
        }
        raw.push_str("\r\n");
        Self::new(raw)
    }

    /// A POST with a body.
    pub fn post(target: &str, content_type: &str, body: &str) -> Self {
        let length = body.len();
        Self::new(format!(
            "POST {target} HTTP/1.1\r\nHost: a.com\r\nContent-Type: {content_type}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        ))
    }

    /// Speaks as another APISIX.
    pub fn compat(mut self, compat: Compat) -> Self {
        self.world.compat = compat;
        self
    }

    /// Lets the request come from another address.
    pub fn client(mut self, ip: &str) -> Self {
        self.client.set_ip(ip.parse().expect("an address"));
        self
    }

    /// The route that matched.
    pub fn route(mut self, route: RouteMeta) -> Self {
        self.route = Some(MatchedRoute::new(Arc::new(route)));
        self
    }

    /// Adds a consumer without plugins.
    pub fn consumer(mut self, consumer: Consumer) -> Self {
        self.world.consumers.push(Arc::new(consumer));
        self
    }

    /// Adds a consumer whose own auth plugin `P` has this configuration.
    pub fn known<P: AuthPlugin>(self, username: &str, conf: Value) -> Self {
        self.authenticated::<P>(username, None, conf)
    }

    /// Adds a consumer with a credential that has this configuration.
    pub fn credential<P: AuthPlugin>(self, username: &str, id: &str, conf: Value) -> Self {
        self.authenticated::<P>(username, Some(id), conf)
    }

    fn authenticated<P: AuthPlugin>(mut self, username: &str, id: Option<&str>, conf: Value) -> Self {
        let setup = Setup::new().compat(self.world.compat).origin("consumer", username);
        let secret = setup.credential::<P>(&conf).expect("the credential compiles");
        let identity = PluginDef::auth::<P>().auth.and_then(|auth| auth.identity(&conf).map(str::to_owned));
        let key = identity.expect("the identifying field is text");
        let owner = match self.world.consumer(username) {
            Some(owner) => owner.clone(),
            None => {
                self = self.consumer(consumer(username));
                self.world.consumers.last().expect("just added").clone()
            }
        };
        let credential = id.map(|id| (Arc::from(id), HeaderValue::from_str(id).expect("a header value")));
        let found = Authenticated { consumer: owner, credential, secret: Arc::new(secret) };
        self.world.keys.push((P::NAME, key, Arc::new(found)));
        self
    }

    /// Adds an endpoint behind `public-api`.
    pub fn api(mut self, api: PublicApi) -> Self {
        self.world.apis.push(api);
        self
    }

    /// Adds a plugin's endpoints behind `public-api`.
    pub fn apis_of<P: Plugin>(mut self) -> Self {
        self.world.apis.extend(P::apis(None));
        self
    }

    /// Tells clients why they were refused.
    pub fn debug_auth(mut self) -> Self {
        self.world.tells_why = true;
        self
    }

    /// Reads the request and hands the exchange to `inside`.
    pub fn run<T>(&self, inside: impl AsyncFnOnce(&mut Exchange<'_>) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(self.raw.len() + (1 << 16));
            client.write_all(&self.raw).await.expect("the pipe holds the request");
            let mut session = Session::new_h1(Box::new(server));
            assert!(
                session.read_request().await.expect("a readable request"),
                "no request in {:?}",
                self.raw
            );
            let mut ctx = RequestCtx::new();
            ctx.client = self.client;
            ctx.peer = self.client;
            ctx.route = self.route.clone();
            inside(&mut Exchange::new(&mut session, &mut ctx, &self.world)).await
        })
    }

    /// Runs one plugin's rewrite hook and tells what it said.
    pub fn rewrite<P: Plugin>(&self, plugin: &P) -> String {
        self.run(async |x| answer(&plugin.rewrite(x).await))
    }

    /// Runs one plugin's access hook and tells what it said.
    pub fn access<P: Plugin>(&self, plugin: &P) -> String {
        self.run(async |x| answer(&plugin.access(x).await))
    }
}

/// Runs `inside` with an exchange for this request, in an empty world.
pub fn exchange<T>(raw: &str, inside: impl AsyncFnOnce(&mut Exchange<'_>) -> T) -> T {
    Kit::new(raw).run(inside)
}

/// A consumer with nothing but a name.
pub fn consumer(username: &str) -> Consumer {
    Consumer {
        username: username.into(),
        header: HeaderValue::from_str(username).expect("a header value"),
        custom_id: None,
        group_id: None,
        labels: Value::Null,
        stored: "{}".into(),
        plugins: Chain::default(),
        is_bare: true,
    }
}

/// What a hook said, for tables: `continue`, or status and body: `403 {"message":"no"}`; a bare status has
/// no body.
pub fn answer(flow: &Flow) -> String {
    let Flow::Break(reply) = flow else { return "continue".into() };
    match &reply.body {
        ReplyBody::Default => reply.status.to_string(),
        ReplyBody::Json(body) => format!("{} {body}", reply.status),
        ReplyBody::Bytes(body) => format!("{} {}", reply.status, String::from_utf8_lossy(body)),
    }
}

/// A header of the reply or, failing that, one that was set for the response to come.
pub fn response_header(flow: &Flow, x: &Exchange<'_>, name: &str) -> Option<String> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    if let Flow::Break(reply) = flow
        && let Some((_, value)) = reply.headers.iter().find(|(other, _)| other == name)
    {
        return Some(text(value));
    }
    x.ctx.response_headers.iter().find(|other| other.name == name).map(|found| text(&found.value))
}

/// The request headers as they stand now.
pub fn headers<'x>(x: &'x Exchange<'_>) -> &'x HeaderMap {
    &x.session.req_header().headers
}

/// The head of a response, for header filters.
pub fn response(status: u16, headers: &[(&str, &str)]) -> ResponseHeader {
    let mut head = ResponseHeader::build(status, Some(headers.len())).expect("a status");
    for (name, value) in headers {
        head.append_header((*name).to_owned(), *value).expect("a header");
    }
    head
}

/// Consumers, endpoints and a version, kept in lists.
pub struct KitWorld {
    consumers: Vec<Arc<Consumer>>,
    keys: Vec<(&'static str, String, Arc<Authenticated>)>,
    apis: Vec<PublicApi>,
    compat: Compat,
    carry: Carry,
    metrics: Metrics,
    tells_why: bool,
}

impl Default for KitWorld {
    fn default() -> Self {
        Self {
            consumers: Vec::new(),
            keys: Vec::new(),
            apis: Vec::new(),
            compat: Compat::Now,
            carry: Carry::default(),
            metrics: Metrics::new(prometheus::Registry::new()),
            tells_why: false,
        }
    }
}

impl World for KitWorld {
    fn find(&self, plugin: &str, key: &str) -> Option<&Arc<Authenticated>> {
        self.keys.iter().find(|(name, value, _)| *name == plugin && value == key).map(|(.., found)| found)
    }
    fn has_any(&self, plugin: &str) -> bool {
        self.keys.iter().any(|(name, ..)| *name == plugin)
    }
    fn consumer(&self, username: &str) -> Option<&Arc<Consumer>> {
        self.consumers.iter().find(|consumer| &*consumer.username == username)
    }
    fn api(&self, method: &str, path: &str) -> Option<&PublicApi> {
        self.apis.iter().find(|api| api.path == path && api.methods.contains(&method))
    }
    fn compat(&self) -> Compat {
        self.compat
    }
    fn carry(&self) -> &Carry {
        &self.carry
    }
    fn metrics(&self) -> &Metrics {
        &self.metrics
    }
    fn tells_why(&self) -> bool {
        self.tells_why
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_exchange_reads_what_was_written() {
        let kit = Kit::post("/x?a=1", "text/plain", "hello").client("10.0.0.9");
        kit.run(async |x| {
            assert_eq!(x.method(), "POST");
            assert_eq!(x.path(), "/x");
            assert_eq!(x.args(), "a=1");
            assert_eq!(x.header("content-type"), Some("text/plain"));
            assert_eq!(x.client_ip().to_string(), "10.0.0.9");
            assert_eq!(x.body().await.expect("a body"), "hello");
        });
    }

    #[test]
    fn answers_are_told_in_one_line() {
        use crate::plugin::reply::{CONTINUE, Reply};
        assert_eq!(answer(&CONTINUE), "continue");
        assert_eq!(answer(&Reply::status(404).into()), "404");
        assert_eq!(answer(&Reply::message(401, "no").into()), r#"401 {"message":"no"}"#);
        assert_eq!(answer(&Reply::json(200, json!({"a": 1})).into()), r#"200 {"a":1}"#);
    }
}
