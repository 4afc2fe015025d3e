//! forward-auth: another HTTP service decides whether a request may pass.
//!
//! APISIX: plugins/forward-auth.lua. Invariant: headers that the service may set for the upstream never come from the
//! client.
//!
//! Differs from APISIX: with `allow_degradation`, too, a client's own `upstream_headers` are dropped; headers that frame
//! a message (Content-Length, Transfer-Encoding, Connection…) are not passed on; an answer above 4 MiB counts as none.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::shared::{
    header as fields,
    http_call::{Answer, Call, Client, Keepalive, Options},
};
use crate::{
    plugin::{
        contract,
        env::BuildEnv,
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Class, Flow, Reply},
    },
    vars::{template::Template, var::Var},
};

/// The configuration.
#[derive(Deserialize)]
pub struct Config {
    /// Where the service is asked.
    pub uri: String,
    /// Whether requests pass while the service gives no answer.
    #[serde(default)]
    pub allow_degradation: bool,
    /// Status of the refusal when the service gives no answer.
    #[serde(default = "default_status")]
    pub status_on_error: u16,
    /// Whether the service's certificate must be valid.
    #[serde(default = "yes")]
    pub ssl_verify: bool,
    /// How the service is asked; with POST it gets the request's body.
    #[serde(default)]
    pub request_method: Method,
    /// The largest body that the service gets, in bytes.
    #[serde(default = "default_body")]
    pub max_req_body_size: usize,
    /// The client's headers that the service gets.
    #[serde(default)]
    pub request_headers: Names,
    /// More headers for the service, with variables.
    #[serde(default)]
    pub extra_headers: Map<String, Value>,
    /// The service's headers that the upstream gets.
    #[serde(default)]
    pub upstream_headers: Names,
    /// The service's headers that the client gets with a refusal.
    #[serde(default)]
    pub client_headers: Names,
    /// How long the service may take, in milliseconds.
    #[serde(default = "default_timeout")]
    pub timeout: u64,
    /// Whether connections wait for the next request.
    #[serde(default = "yes")]
    pub keepalive: bool,
    /// How long they wait, in milliseconds.
    #[serde(default = "default_keepalive_timeout")]
    pub keepalive_timeout: u64,
    /// How many wait at most.
    #[serde(default = "default_pool")]
    pub keepalive_pool: usize,
}

/// A list of names. APISIX's own default for one is an empty object, which Lua cannot tell from an empty list.
#[derive(Default, Deserialize)]
#[serde(untagged)]
pub enum Names {
    /// As it should be.
    List(Vec<String>),
    /// Left out.
    #[default]
    None,
    /// `{}`
    Empty(Map<String, Value>),
}

/// How the service is asked.
#[derive(Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// Without a body.
    #[default]
    Get,
    /// With the request's body.
    Post,
}

fn yes() -> bool {
    true
}

fn default_status() -> u16 {
    403
}

fn default_body() -> usize {
    64 << 20
}

fn default_timeout() -> u64 {
    3000
}

fn default_keepalive_timeout() -> u64 {
    60_000
}

fn default_pool() -> usize {
    5
}

/// The compiled configuration.
pub struct Plugin {
    client: Client,
    uri: String,
    method: Method,
    max_body: usize,
    needs_body: bool,
    extra: Vec<(HeaderName, Template)>,
    from_client: Vec<HeaderName>,
    to_upstream: Vec<HeaderName>,
    to_client: Vec<HeaderName>,
    degrades: bool,
    status_on_error: u16,
}

/// What the service learns of the request in any case, besides its method and the client's address.
const OURS: [(HeaderName, Var); 3] = [
    (HeaderName::from_static("x-forwarded-proto"), Var::Scheme),
    (HeaderName::from_static("x-forwarded-host"), Var::Host),
    (HeaderName::from_static("x-forwarded-uri"), Var::RequestUri),
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");

impl contract::Plugin for Plugin {
    const NAME: &'static str = "forward-auth";
    const PRIORITY: i32 = 2002;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        // The order of the properties is the order in which a real APISIX checks them.
        json!({
            "type": "object",
            "properties": {
                "allow_degradation": {"type": "boolean", "default": false},
                "status_on_error": {"type": "integer", "minimum": 200, "maximum": 599, "default": 403},
                "ssl_verify": {"type": "boolean", "default": true},
                "request_method": {"type": "string", "default": "GET", "enum": ["GET", "POST"]},
                "request_headers": {"type": "array", "default": {}, "items": {"type": "string"}},
                "extra_headers": {
                    "type": "object",
                    "minProperties": 1,
                    "patternProperties": {"^[^:]+$": {"type": "string"}}
                },
                "upstream_headers": {"type": "array", "default": {}, "items": {"type": "string"}},
                "client_headers": {"type": "array", "default": {}, "items": {"type": "string"}},
                "timeout": {"type": "integer", "minimum": 1, "maximum": 60000, "default": 3000},
                "keepalive": {"type": "boolean", "default": true},
                "keepalive_timeout": {"type": "integer", "minimum": 1000, "default": 60000},
                "keepalive_pool": {"type": "integer", "minimum": 1, "default": 5},
                "uri": {"type": "string"},
                "max_req_body_size": {"type": "integer", "minimum": 1, "default": 67108864}
            },
            "required": ["uri"]
        })
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let keepalive =
            Keepalive { idle: Duration::from_millis(config.keepalive_timeout), pool: config.keepalive_pool };
        let client = Client::new(&Options {
            verify: config.ssl_verify,
            timeout: Duration::from_millis(config.timeout),
            keepalive: config.keepalive.then_some(keepalive),
            ..Options::default()
        })?;
        let extra: Vec<_> = config.extra_headers.iter().filter_map(extra_header).collect();
        Ok(Self {
            client,
            uri: config.uri,
            method: config.request_method,
            max_body: config.max_req_body_size,
            needs_body: extra.iter().any(|(_, value)| value.vars().any(Var::needs_body)),
            extra,
            from_client: config.request_headers.compile(),
            to_upstream: config.upstream_headers.compile(),
            to_client: config.client_headers.compile(),
            degrades: config.allow_degradation,
            status_on_error: config.status_on_error,
        })
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        if let Err(reply) = self.read_body(x).await {
            return reply.into();
        }
        let answer = match self.call(x).await {
            Ok(call) => self.client.send(call).await.map_err(|error| error.to_string()),
            Err(reason) => Err(reason),
        };
        match answer {
            Ok(answer) if answer.status.as_u16() < 300 => {
                self.tell_upstream(x, &answer.headers);
                CONTINUE
            }
            Ok(answer) => self.refuse(x, answer),
            Err(_) if self.degrades => {
                self.tell_upstream(x, &HeaderMap::new());
                CONTINUE
            }
            Err(reason) => Reply::status(self.status_on_error)
                .because(format!("failed to process forward auth, err: {reason}"))
                .classed(Class::Unavailable)
                .into(),
        }
    }
}

impl Plugin {
    async fn read_body(&self, x: &mut Exchange<'_>) -> Result<(), Reply> {
        if self.method == Method::Post {
            let limit = x.ctx.body_limit;
            x.ctx.body_limit = limit.min(self.max_body);
            let body = x.body().await;
            x.ctx.body_limit = limit;
            // One that was read before may be larger than this plugin's limit.
            if body?.len() > self.max_body {
                let reason = format!("the body is larger than max_req_body_size, {} bytes", self.max_body);
                return Err(Reply::status(413).because(reason));
            }
        } else if self.needs_body {
            x.body().await?;
        }
        Ok(())
    }

    /// What the service is asked; fails when a value cannot stand in a header.
    async fn call(&self, x: &mut Exchange<'_>) -> Result<Call, String> {
        let mut headers = HeaderMap::with_capacity(8);
        let invalid = |name: &HeaderName| format!("invalid characters found in the value of {name}");
        for (name, var) in &OURS {
            let value = x.var(var).unwrap_or_default();
            headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).map_err(|_| invalid(name))?);
        }
        let method = HeaderValue::from_str(x.method().as_str()).map_err(|_| invalid(&FORWARDED_METHOD))?;
        headers.insert(FORWARDED_METHOD, method);
        let client =
            HeaderValue::from_str(&x.client_ip().to_string()).map_err(|_| invalid(&FORWARDED_FOR))?;
        headers.insert(FORWARDED_FOR, client);
        let sent = &x.session.req_header().headers;
        if self.method == Method::Post
            && let Some(encoding) = sent.get(header::CONTENT_ENCODING)
        {
            headers.insert(header::CONTENT_ENCODING, encoding.clone());
        }
        for (name, template) in &self.extra {
            let value = x.render(template);
            headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).map_err(|_| invalid(name))?);
        }
        for name in &self.from_client {
            if let (false, Some(value)) = (headers.contains_key(name), sent.get(name)) {
                headers.insert(name, value.clone());
            }
        }
        let call = match self.method {
            Method::Get => Call::get(&self.uri),
            Method::Post => Call::post(&self.uri).content(x.body().await.unwrap_or_default()),
        };
        Ok(call.headers(headers))
    }

    /// The service's headers take the place of the client's, which go in any case.
    fn tell_upstream(&self, x: &mut Exchange<'_>, told: &HeaderMap) {
        for name in &self.to_upstream {
            x.remove_header(name);
            for value in told.get_all(name) {
                x.add_header(name, value.clone());
            }
        }
    }

    fn refuse(&self, x: &mut Exchange<'_>, answer: Answer) -> Flow {
        let status = answer.status.as_u16();
        if status > 599 {
            return Reply::status(self.status_on_error)
                .because(format!("the authorization service answered {status}"))
                .classed(Class::Unavailable)
                .into();
        }
        for name in &self.to_client {
            fields::tell_client(x, name, answer.headers.get_all(name).iter().cloned());
        }
        let reason = format!("the authorization service answered {status}");
        let reply =
            if answer.body.is_empty() { Reply::status(status) } else { Reply::bytes(status, answer.body) };
        reply.because(reason).into()
    }
}

impl Names {
    /// Those that are names of headers and do not frame messages.
    fn compile(self) -> Vec<HeaderName> {
        let Self::List(names) = self else { return Vec::new() };
        let names = names.iter().filter_map(|name| HeaderName::try_from(name).ok());
        names.filter(|name| !fields::frames(name)).collect()
    }
}

fn extra_header((name, value): (&String, &Value)) -> Option<(HeaderName, Template)> {
    let name = HeaderName::try_from(name).ok().filter(|name| !fields::frames(name))?;
    Some((name, Template::parse(value.as_str()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{self, Kit};

    fn conf(more: Value) -> Value {
        // Nobody listens there.
        let mut conf = json!({"uri": "http://127.0.0.1:1/auth"});
        for (key, value) in more.as_object().unwrap() {
            conf[key] = value.clone();
        }
        conf
    }

    #[test]
    fn schemas_compile() {
        testing::compile_schemas::<Plugin>();
    }

    #[test]
    fn without_an_answer() {
        let said = |more: Value| Kit::get("/", &[]).access(&testing::plugin::<Plugin>(conf(more)));
        assert_eq!(said(json!({})), "403");
        assert_eq!(said(json!({"status_on_error": 503})), "503");
        assert_eq!(said(json!({"uri": "no address"})), "403");
        assert_eq!(said(json!({"allow_degradation": true})), "continue");
    }

    #[test]
    fn a_client_cannot_vouch_for_itself() {
        let plugin: Plugin =
            testing::plugin(conf(json!({"allow_degradation": true, "upstream_headers": ["X-User"]})));
        Kit::get("/", &[("X-User", "root"), ("X-Other", "1")]).run(async |x| {
            assert!(contract::Plugin::access(&plugin, x).await.is_continue());
            assert_eq!((x.header("x-user"), x.header("x-other")), (None, Some("1")));
        });
    }

    #[test]
    fn bodies_have_a_limit() {
        let plugin: Plugin = testing::plugin(conf(json!({"request_method": "POST", "max_req_body_size": 3})));
        assert_eq!(Kit::post("/", "text/plain", "1234").access(&plugin), "413");
        assert_eq!(Kit::post("/", "text/plain", "123").access(&plugin), "403");
        let limit = Kit::post("/", "text/plain", "123").run(async |x| {
            let _ = contract::Plugin::access(&plugin, x).await;
            x.ctx.body_limit
        });
        assert_eq!(limit, usize::MAX, "the limit is this plugin's alone");
    }

    #[test]
    fn headers_that_frame_messages_stay_out() {
        let names = ["Content-Length", "Transfer-Encoding", "Connection", "X-Good", "no header"];
        let plugin: Plugin = testing::plugin(conf(json!({
            "request_headers": names, "upstream_headers": names, "client_headers": names,
            "extra_headers": {"Content-Length": "1", "X-Good": "$uri"}
        })));
        for compiled in [&plugin.from_client, &plugin.to_upstream, &plugin.to_client] {
            assert_eq!(compiled.as_slice(), ["x-good"]);
        }
        assert_eq!(plugin.extra.len(), 1);
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = testing::refusal::<Plugin>;
        assert_eq!(refusal(json!({"request_headers": ["test"]})), r#"property "uri" is required"#);
        assert_eq!(
            refusal(conf(json!({"request_method": "PUT"}))),
            r#"property "request_method" validation failed: matches none of the enum values"#
        );
        assert_eq!(
            refusal(conf(json!({"request_headers": "test"}))),
            r#"property "request_headers" validation failed: wrong type: expected array, got string"#
        );
    }
}
