//! opa: a policy of the Open Policy Agent decides whether a request may pass.
//!
//! APISIX: plugins/opa.lua, plugins/opa/helper.lua. Invariant: a request passes only when the agent answered and its
//! `allow` is true.
//!
//! Differs from APISIX: only `allow: true` lets a request pass (there everything but `false` and absence does, null
//! included); a decision that is no object is answered 503 (there, 500); `route`, `service` and `consumer` of the input
//! are as they are stored: without filled-in defaults, with secret fields as they are at rest, and a route's plugins
//! without those of its service.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::shared::{
    header as fields,
    http_call::{Answer, Call, Client, Keepalive, Options},
};
use crate::{
    net::args,
    plugin::{
        contract,
        env::BuildEnv,
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Class, Flow, Reply},
    },
    vars::var::Var,
};

/// The configuration.
#[derive(Deserialize)]
pub struct Config {
    /// Address of the agent.
    pub host: String,
    /// Path of the policy below `/v1/data/`.
    pub policy: String,
    /// Whether the agent's certificate must be valid.
    #[serde(default = "yes")]
    pub ssl_verify: bool,
    /// How long the agent may take, in milliseconds.
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
    /// Headers of the decision that the upstream gets.
    #[serde(default)]
    pub send_headers_upstream: Vec<String>,
    /// Whether the agent gets the route.
    #[serde(default)]
    pub with_route: bool,
    /// Whether the agent gets the route's service.
    #[serde(default)]
    pub with_service: bool,
    /// Whether the agent gets the consumer.
    #[serde(default)]
    pub with_consumer: bool,
}

fn yes() -> bool {
    true
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
    url: String,
    to_upstream: Vec<HeaderName>,
    with_route: bool,
    with_service: bool,
    with_consumer: bool,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "opa";
    const PRIORITY: i32 = 2001;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        // The order of the properties is the order in which a real APISIX checks them.
        json!({
            "type": "object",
            "properties": {
                "keepalive_timeout": {"type": "integer", "minimum": 1000, "default": 60000},
                "ssl_verify": {"type": "boolean", "default": true},
                "host": {"type": "string"},
                "policy": {"type": "string"},
                "timeout": {"type": "integer", "minimum": 1, "maximum": 60000, "default": 3000},
                "keepalive": {"type": "boolean", "default": true},
                "send_headers_upstream": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                "keepalive_pool": {"type": "integer", "minimum": 1, "default": 5},
                "with_route": {"type": "boolean", "default": false},
                "with_service": {"type": "boolean", "default": false},
                "with_consumer": {"type": "boolean", "default": false}
            },
            "required": ["host", "policy"]
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
        let names = config.send_headers_upstream.iter().filter_map(|name| HeaderName::try_from(name).ok());
        Ok(Self {
            client,
            url: format!("{}/v1/data/{}", config.host, config.policy),
            to_upstream: names.filter(|name| !fields::frames(name)).collect(),
            with_route: config.with_route,
            with_service: config.with_service,
            with_consumer: config.with_consumer,
        })
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        let input = self.input(x);
        let answer = match self.client.send(Call::post(&self.url).json(&input)).await {
            Ok(answer) => answer,
            Err(error) => {
                return Reply::status(403)
                    .because(format!("failed to process OPA decision, err: {error}"))
                    .classed(Class::Unavailable)
                    .into();
            }
        };
        match decision(&answer) {
            Ok(decision) if decision.allows() => {
                self.tell_upstream(x, decision.headers());
                CONTINUE
            }
            Ok(decision) => decision.refuse(x),
            Err(reason) => Reply::status(503).because(reason).into(),
        }
    }
}

impl Plugin {
    /// What the policy gets to see. APISIX: `helper.build_opa_input`.
    fn input(&self, x: &Exchange<'_>) -> Value {
        let var = |var: Var| x.var(&var).map(|value| value.into_owned());
        let port = var(Var::ServerPort);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let mut data = json!({
            "type": "http",
            "request": {
                "scheme": var(Var::Scheme),
                "method": x.method().as_str(),
                "host": var(Var::Host),
                "port": port.as_deref().and_then(|port| port.parse::<u16>().ok()),
                "path": x.path(),
                "headers": headers(x),
                "query": query(x.args()),
            },
            "var": {
                "server_addr": var(Var::ServerAddr),
                "server_port": port,
                "remote_addr": var(Var::RemoteAddr),
                "remote_port": var(Var::RemotePort),
                "timestamp": now,
            },
        });
        let route = x.ctx.route.as_ref();
        if self.with_route {
            add(&mut data, "route", route.map(|route| &*route.stored));
        }
        if self.with_service {
            add(&mut data, "service", route.and_then(|route| route.stored_service.as_deref()));
        }
        if self.with_consumer {
            add(&mut data, "consumer", x.consumer().map(|consumer| &*consumer.stored));
        }
        json!({ "input": data })
    }

    /// The decision's headers take the place of the client's, which go in any case.
    fn tell_upstream(&self, x: &mut Exchange<'_>, told: &[(HeaderName, Vec<HeaderValue>)]) {
        for name in &self.to_upstream {
            x.remove_header(name);
            for value in told.iter().filter(|(other, _)| other == name).flat_map(|(_, values)| values) {
                x.add_header(name, value.clone());
            }
        }
    }
}

/// A resource as it is stored, without its upstream, which is unimportant to a policy.
fn add(data: &mut Value, name: &str, stored: Option<&str>) {
    let Some(Ok(mut resource)) = stored.map(serde_json::from_str::<Map<String, Value>>) else { return };
    resource.shift_remove("upstream");
    data[name] = Value::Object(resource);
}

/// Names in lower case; several values of a name are a list.
fn headers(x: &Exchange<'_>) -> Value {
    let sent = &x.session.req_header().headers;
    let mut told = Map::with_capacity(sent.keys_len());
    for name in sent.keys() {
        let values = sent.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into());
        told.insert(name.as_str().to_owned(), one_or_list(values.collect()));
    }
    told.into()
}

/// `ngx.req.get_uri_args`: several values of a name are a list, a name without one is true.
fn query(text: &str) -> Value {
    let mut told: Map<String, Value> = Map::new();
    for (name, value) in args::pairs(text.as_bytes()) {
        let value = value.map_or(Value::Bool(true), |value| value.into_owned().into());
        match told.get_mut(&*name) {
            None => {
                told.insert(name.into_owned(), value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = json!([first.take(), value]),
        }
    }
    told.into()
}

fn one_or_list(mut values: Vec<Value>) -> Value {
    match values.len() {
        1 => values.remove(0),
        _ => values.into(),
    }
}

/// What the policy said.
struct Decision {
    result: Map<String, Value>,
    headers: Vec<(HeaderName, Vec<HeaderValue>)>,
}

fn decision(answer: &Answer) -> Result<Decision, String> {
    let mut body: Value = answer.json()?;
    let result = match body.get_mut("result").map(Value::take) {
        None => return Err("invalid OPA decision format: `result` field does not exist".into()),
        Some(Value::Object(result)) => result,
        Some(_) => return Err("invalid OPA decision format: `result` is no object".into()),
    };
    let headers = match result.get("headers") {
        Some(Value::Object(headers)) => headers.iter().filter_map(header_values).collect(),
        _ => Vec::new(),
    };
    Ok(Decision { result, headers })
}

/// Texts, numbers and lists of them.
fn header_values((name, value): (&String, &Value)) -> Option<(HeaderName, Vec<HeaderValue>)> {
    let name = HeaderName::try_from(name).ok().filter(|name| !fields::frames(name))?;
    let values = match value {
        Value::Array(values) => values.as_slice(),
        value => std::slice::from_ref(value),
    };
    let texts = values.iter().filter_map(|value| match value {
        Value::String(text) => Some(fields::value(text)),
        Value::Number(number) => Some(fields::value(&number.to_string())),
        _ => None,
    });
    Some((name, texts.collect()))
}

impl Decision {
    fn allows(&self) -> bool {
        self.result.get("allow") == Some(&Value::Bool(true))
    }

    fn headers(&self) -> &[(HeaderName, Vec<HeaderValue>)] {
        &self.headers
    }

    fn refuse(self, x: &mut Exchange<'_>) -> Flow {
        for (name, values) in self.headers {
            fields::tell_client(x, &name, values);
        }
        let status = self.result.get("status_code").and_then(Value::as_u64);
        let status = status
            .and_then(|status| u16::try_from(status).ok())
            .filter(|status| (200..=599).contains(status));
        let status = status.unwrap_or(403);
        let reply = match self.result.get("reason") {
            None | Some(Value::Null | Value::Bool(false)) => Reply::status(status),
            Some(Value::String(text)) => Reply::bytes(status, text.clone()),
            Some(other) => Reply::bytes(status, other.to_string()),
        };
        reply.because("the policy does not allow it").classed(Class::Forbidden).into()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::plugin::testing::{self, Kit};

    fn answer(body: &str) -> Answer {
        Answer {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    #[track_caller]
    fn refused(result: Value, said: &str, headers: &[(&str, &str)]) {
        let decision = decision(&answer(&json!({ "result": result }).to_string())).unwrap();
        assert!(!decision.allows(), "{result}");
        Kit::get("/", &[]).run(async |x| {
            let flow = decision.refuse(x);
            assert_eq!(testing::answer(&flow), said, "{result}");
            let told: Vec<_> = x.ctx.response_headers.iter().collect();
            let told: Vec<_> =
                told.iter().map(|field| (field.name.as_str(), field.value.to_str().unwrap())).collect();
            assert_eq!(told, headers, "{result}");
        });
    }

    #[test]
    fn schemas_compile() {
        testing::compile_schemas::<Plugin>();
    }

    #[test]
    fn decisions() {
        assert!(decision(&answer(r#"{"result":{"allow":true}}"#)).unwrap().allows());
        for allow in [json!(false), json!(null), json!(1), json!("true"), json!([]), json!({})] {
            refused(json!({"allow": allow}), "403", &[]);
        }
        refused(json!({}), "403", &[]);
        refused(json!({"status_code": 302, "headers": {"Location": "/x"}}), "302", &[("location", "/x")]);
        refused(json!({"status_code": 99}), "403", &[]);
        refused(json!({"status_code": "302"}), "403", &[]);
        refused(json!({"reason": "no"}), "403 no", &[]);
        refused(json!({"reason": {"code": 1}}), r#"403 {"code":1}"#, &[]);
        refused(json!({"reason": {"info": []}}), r#"403 {"info":[]}"#, &[]);
        refused(json!({"reason": null}), "403", &[]);
        let headers =
            json!({"a": ["1", 2], "b": null, "Content-Length": "9", "no header": "x", "c": "x\r\nd: y"});
        refused(json!({"headers": headers}), "403", &[("a", "1"), ("a", "2"), ("c", "x%0D%0Ad: y")]);
    }

    #[test]
    fn answers_that_are_no_decision() {
        for body in ["", "no", "[]", "{}", r#"{"result":true}"#, r#"{"result":"x"}"#, r#"{"result":null}"#] {
            assert!(decision(&answer(body)).is_err(), "{body}");
        }
    }

    #[test]
    fn nobody_passes_without_an_agent() {
        let plugin: Plugin = testing::plugin(json!({"host": "http://127.0.0.1:1", "policy": "example"}));
        assert_eq!(Kit::get("/", &[]).access(&plugin), "403");
    }

    #[test]
    fn queries() {
        assert_eq!(query("a=1&a=2&a=3&b&c=%20"), json!({"a": ["1", "2", "3"], "b": true, "c": " "}));
        assert_eq!(query(""), json!({}));
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = testing::refusal::<Plugin>;
        assert_eq!(refusal(json!({"host": "http://a"})), r#"property "policy" is required"#);
        assert_eq!(
            refusal(json!({"host": 3233, "policy": "example"})),
            r#"property "host" validation failed: wrong type: expected string, got number"#
        );
    }
}
