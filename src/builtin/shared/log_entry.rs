//! What loggers write down of a request. APISIX: utils/log-util.lua.
//!
//! Either the whole of it in APISIX's shape, or what `log_format` asks for. An entry is a JSON object made in the log
//! phase, when the client has its answer.
//!
//! An entry has the headers of the request as the upstream saw them.
//!
//! Differs from APISIX: credentials in them are masked, unless `portcullis.log_credentials` is on; text that is not UTF-8
//! is made so.

use std::{
    borrow::Cow,
    time::{Duration, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use pingora::protocols::http::compression::Algorithm;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    net::{args, lossless},
    plugin::{
        body::BodyState,
        exchange::Exchange,
        lookup::hostname,
        phases::Phases,
        reply::{CONTINUE, Flow},
    },
    vars::{
        expr::Expr,
        lua,
        var::{Lookup, Var},
    },
};

/// APISIX: `MAX_LOG_FORMAT_DEPTH`.
const MAX_DEPTH: usize = 5;
/// APISIX: `MAX_REQ_BODY`, `MAX_RESP_BODY`.
const MAX_BODY: usize = 524_288;

/// The options that all loggers share.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// The members of an entry: values, variables (`$host`), objects of them.
    pub log_format: Option<Value>,
    /// Members added to APISIX's own.
    pub log_format_extra: Option<Value>,
    /// Whether the request's body is in the entry.
    #[serde(default)]
    pub include_req_body: bool,
    /// Only for requests for which this holds.
    pub include_req_body_expr: Option<Value>,
    /// Whether the response's body is in the entry.
    #[serde(default)]
    pub include_resp_body: bool,
    /// Only for responses for which this holds.
    pub include_resp_body_expr: Option<Value>,
    /// No more of the request's body, in bytes.
    #[serde(default = "max_body")]
    pub max_req_body_bytes: usize,
    /// No more of the response's body, in bytes.
    #[serde(default = "max_body")]
    pub max_resp_body_bytes: usize,
}

fn max_body() -> usize {
    MAX_BODY
}

/// What log-util checks beyond the schema. APISIX: `check_log_schema`.
///
/// # Errors
/// The text after `err: `.
pub fn check(conf: &Value) -> Result<(), String> {
    for option in ["include_req_body_expr", "include_resp_body_expr"] {
        expression(conf.get(option), option)?;
    }
    Ok(())
}

fn expression(rule: Option<&Value>, option: &str) -> Result<Option<Expr>, String> {
    let parse =
        |rule| Expr::parse(rule).map_err(|e| format!("failed to validate the '{option}' expression: {e}"));
    rule.filter(|rule| !rule.is_null()).map(parse).transpose()
}

/// How entries are made, compiled.
pub struct LogEntry {
    /// Replaces the whole of it.
    format: Option<Field>,
    extra: Option<Field>,
    request_body: BodyRule,
    response_body: BodyRule,
}

struct BodyRule {
    included: bool,
    when: Option<Expr>,
    limit: usize,
}

enum Field {
    Constant(Value),
    Variable(Var),
    RequestBody,
    ResponseBody,
    Object(Vec<(String, Field)>),
    List(Vec<Field>),
}

/// What the plugin has seen of the response's body.
#[derive(Default)]
struct Held {
    /// `include_resp_body_expr`, evaluated once.
    wanted: Option<bool>,
    body: BytesMut,
    encoding: Option<Encoding>,
}

#[derive(Clone, Copy, PartialEq)]
enum Encoding {
    Gzip,
    Brotli,
    Unknown,
}

impl LogEntry {
    /// Compiles the options with what the plugin's metadata says of the format.
    ///
    /// # Errors
    /// An expression is none.
    pub fn new(config: &Config, metadata: Option<&Value>) -> Result<Self, String> {
        let of_metadata = |name: &str| metadata.and_then(|metadata| metadata.get(name));
        let filled = |value: &&Value| value.as_object().is_some_and(|members| !members.is_empty());
        // An empty format of the plugin's own replaces the metadata's all the same.
        let format = config.log_format.as_ref().or_else(|| of_metadata("log_format").filter(filled));
        let extra =
            config.log_format_extra.as_ref().or_else(|| of_metadata("log_format_extra")).filter(filled);
        let rule = |included, when: &Option<Value>, option, limit| {
            Ok::<_, String>(BodyRule { included, when: expression(when.as_ref(), option)?, limit })
        };
        Ok(Self {
            format: format.map(|format| Field::compile(format, 1)),
            extra: extra.map(|extra| Field::compile(extra, 1)),
            request_body: rule(
                config.include_req_body,
                &config.include_req_body_expr,
                "include_req_body_expr",
                config.max_req_body_bytes,
            )?,
            response_body: rule(
                config.include_resp_body,
                &config.include_resp_body_expr,
                "include_resp_body_expr",
                config.max_resp_body_bytes,
            )?,
        })
    }

    /// The hooks that these options need.
    pub fn phases(&self) -> Phases {
        let mut phases = Phases::LOG;
        if self.request_body.included {
            phases = phases.and(Phases::ACCESS);
        }
        if self.response_body.included {
            phases = phases.and(Phases::BODY_FILTER);
        }
        phases
    }

    /// Reads the request's body if the entry will have it: what access hooks of loggers do.
    pub async fn read_body(&self, x: &mut Exchange<'_>) -> Flow {
        if !self.request_body.wanted(x) || announced(x).is_some_and(|length| length > x.ctx.body_limit) {
            return CONTINUE;
        }
        match x.body().await {
            Ok(_) => CONTINUE,
            Err(reply) => reply.into(),
        }
    }

    /// Looks at a piece of the response's body: what body filters of loggers do.
    pub fn look(&self, x: &mut Exchange<'_>, chunk: &Option<Bytes>) {
        let Some(chunk) = chunk else { return };
        let wanted = match x.local::<Held>().wanted {
            Some(wanted) => wanted,
            None => {
                let wanted = self.response_body.wanted(x);
                let encoding = x.session.response_written().and_then(|head| Encoding::of(&head.headers));
                *x.local::<Held>() = Held { wanted: Some(wanted), encoding, body: BytesMut::new() };
                wanted
            }
        };
        if wanted {
            let held = &mut x.local::<Held>().body;
            let room = self.response_body.limit.saturating_sub(held.len());
            held.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
    }

    /// Makes the entry, in the log phase. APISIX: `get_log_entry`.
    pub fn entry(&self, x: &mut Exchange<'_>) -> Map<String, Value> {
        let response_body = x.take_local::<Held>().filter(|held| held.wanted == Some(true));
        let response_body = response_body.map(|held| held.plain(self.response_body.limit));
        let view = View { x, rules: self, response_body: response_body.as_deref() };
        if let Some(format) = &self.format {
            let mut entry = view.object(format);
            if let Some(route) = &view.x.ctx.route {
                insert(&mut entry, "service_id", route.service_id.as_deref().map(Value::from));
                entry.insert("route_id".into(), json!(&*route.id));
            }
            return entry;
        }
        let mut entry = view.whole();
        if let Some(extra) = &self.extra {
            for (name, value) in view.object(extra) {
                entry.entry(name).or_insert(value);
            }
        }
        entry
    }
}

impl BodyRule {
    fn wanted(&self, x: &Exchange<'_>) -> bool {
        self.included && self.when.as_ref().is_none_or(|when| when.eval(x))
    }
}

fn announced(x: &Exchange<'_>) -> Option<usize> {
    x.header(header::CONTENT_LENGTH)?.trim().parse().ok()
}

impl Field {
    fn compile(value: &Value, depth: usize) -> Field {
        match value {
            Value::Object(_) | Value::Array(_) if depth > MAX_DEPTH => Field::Object(Vec::new()),
            Value::Object(members) => {
                let field =
                    |(name, value): (&String, &Value)| (name.clone(), Field::compile(value, depth + 1));
                Field::Object(members.iter().map(field).collect())
            }
            Value::Array(items) => {
                Field::List(items.iter().map(|item| Field::compile(item, depth + 1)).collect())
            }
            Value::String(text) => match text.strip_prefix('$') {
                Some("request_body") => Field::RequestBody,
                Some("resp_body") => Field::ResponseBody,
                Some(name) => Field::Variable(Var::parse(name)),
                None => Field::Constant(value.clone()),
            },
            other => Field::Constant(other.clone()),
        }
    }
}

impl Encoding {
    fn of(headers: &HeaderMap) -> Option<Encoding> {
        Some(match headers.get(header::CONTENT_ENCODING)?.as_bytes() {
            b"gzip" => Encoding::Gzip,
            b"br" => Encoding::Brotli,
            _ => Encoding::Unknown,
        })
    }
}

impl Held {
    /// The body without its encoding; as it came if that cannot be taken off.
    fn plain(self, limit: usize) -> Bytes {
        let body = self.body.freeze();
        let algorithm = match self.encoding {
            Some(Encoding::Gzip) => Algorithm::Gzip,
            Some(Encoding::Brotli) => Algorithm::Brotli,
            Some(Encoding::Unknown) | None => return body,
        };
        decoded(algorithm, &body, limit).unwrap_or(body)
    }
}

/// Decodes piece by piece, so that a small body cannot grow far beyond the limit before it is noticed.
fn decoded(algorithm: Algorithm, body: &[u8], limit: usize) -> Option<Bytes> {
    const PIECE: usize = 8192;
    let mut decoder = algorithm.decompressor(true)?;
    let mut plain = BytesMut::new();
    let pieces = body.chunks(PIECE).count();
    for (at, piece) in body.chunks(PIECE).enumerate() {
        match decoder.encode(piece, at + 1 == pieces) {
            Ok(more) => plain.extend_from_slice(&more),
            // The limit may have cut the body off.
            Err(_) if !plain.is_empty() => break,
            Err(_) => return None,
        }
        if plain.len() >= limit {
            plain.truncate(limit);
            break;
        }
    }
    Some(plain.freeze())
}

/// An exchange that is over, as entries show it.
struct View<'v, 'x> {
    x: &'v Exchange<'x>,
    rules: &'v LogEntry,
    response_body: Option<&'v [u8]>,
}

impl View<'_, '_> {
    /// APISIX: `build_log_entry`.
    fn object(&self, field: &Field) -> Map<String, Value> {
        let Field::Object(members) = field else { return Map::new() };
        members.iter().filter_map(|(name, field)| Some((name.clone(), self.field(field)?))).collect()
    }

    fn field(&self, field: &Field) -> Option<Value> {
        match field {
            Field::Constant(value) => Some(value.clone()),
            Field::Variable(var) => self.variable(var),
            Field::RequestBody => self.request_body().map(Value::String),
            Field::ResponseBody => Some(self.body(self.response_body.unwrap_or_default()).into()),
            Field::Object(_) => Some(Value::Object(self.object(field))),
            Field::List(items) => Some(items.iter().filter_map(|item| self.field(item)).collect()),
        }
    }

    fn variable(&self, var: &Var) -> Option<Value> {
        match var {
            // The numbers among APISIX's variables; all others are texts there, too.
            Var::Status | Var::RequestLength | Var::BytesSent => self.x.var(var).map(|text| number(&text)),
            Var::PostArg(_) | Var::PostArgPath { .. } | Var::GraphqlRootFields if !self.x.hides_bodies() => {
                self.x.value(var).map(lua_value)
            }
            _ => self.text(var),
        }
    }

    fn text(&self, var: &Var) -> Option<Value> {
        self.x.logged(var).map(|text| Value::String(lossless_text(&text)))
    }

    /// The body as far as it was read and is wanted.
    fn request_body(&self) -> Option<String> {
        let (BodyState::Read(body) | BodyState::PutBack(body)) = &self.x.ctx.body else { return None };
        let body = &body[..body.len().min(self.rules.request_body.limit)];
        (!body.is_empty()).then(|| self.body(body).into_owned())
    }

    fn body<'b>(&self, body: &'b [u8]) -> Cow<'b, str> {
        if self.x.hides_bodies() { args::MASK.into() } else { text(body) }
    }

    /// APISIX: `get_full_log`.
    fn whole(&self) -> Map<String, Value> {
        let x = self.x;
        let route = x.ctx.route.as_ref();
        let service = match route {
            Some(route) => Some(json!(route.service_id.as_deref().unwrap_or_default())),
            None => self.text(&Var::Host),
        };
        let elapsed = x.ctx.started.elapsed();
        let tries = &x.ctx.upstream.tries;
        let upstream =
            (!tries.is_empty()).then(|| tries.iter().filter_map(|one| one.total).sum::<Duration>());
        let own = elapsed.saturating_sub(upstream.unwrap_or_default());
        let began = x.ctx.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();

        let mut entry = Map::new();
        entry.insert("request".into(), self.request().into());
        entry.insert("response".into(), self.response().into());
        let version = x.compat().version();
        entry.insert("server".into(), json!({"hostname": hostname(), "version": version}));
        insert(&mut entry, "upstream", self.text(&Var::UpstreamAddr));
        insert(&mut entry, "service_id", service);
        insert(&mut entry, "route_id", route.map(|route| json!(&*route.id)));
        insert(&mut entry, "consumer", x.consumer().map(|consumer| json!({"username": &*consumer.username})));
        entry.insert("client_ip".into(), json!(x.client_ip().to_string()));
        entry.insert("start_time".into(), json!(u64::try_from(began.as_millis()).unwrap_or(0)));
        entry.insert("latency".into(), milliseconds(elapsed));
        insert(&mut entry, "upstream_latency", upstream.map(milliseconds));
        entry.insert("apisix_latency".into(), milliseconds(own));
        entry
    }

    fn request(&self) -> Map<String, Value> {
        let x = self.x;
        let var = |var: Var| x.logged(&var).map(|text| lossless_text(&text)).unwrap_or_default();
        let uri = var(Var::RequestUri);
        let url = format!("{}://{}:{}{uri}", var(Var::Scheme), var(Var::Host), var(Var::ServerPort));
        let mut request = Map::new();
        request.insert("url".into(), url.into());
        request.insert("uri".into(), uri.into());
        request.insert("method".into(), x.session.req_header().method.as_str().into());
        request.insert("headers".into(), headers(x, &x.session.req_header().headers));
        request.insert("querystring".into(), query(&var(Var::Args)));
        request.insert("size".into(), number(&var(Var::RequestLength)));
        if self.rules.request_body.wanted(x) {
            insert(&mut request, "body", self.request_body().map(Value::String));
        }
        request
    }

    fn response(&self) -> Map<String, Value> {
        let head = self.x.session.response_written();
        let mut response = Map::new();
        response.insert("status".into(), json!(self.x.ctx.status.unwrap_or_default()));
        response
            .insert("headers".into(), head.map_or_else(|| json!({}), |head| headers(self.x, &head.headers)));
        response.insert("size".into(), number(&self.x.var(&Var::BytesSent).unwrap_or_default()));
        insert(&mut response, "body", self.response_body.map(|body| self.body(body).into()));
        response
    }
}

fn insert(object: &mut Map<String, Value>, name: &str, value: Option<Value>) {
    if let Some(value) = value {
        object.insert(name.into(), value);
    }
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// Variables hold what is not UTF-8 in stand-ins; JSON cannot.
fn lossless_text(value: &str) -> String {
    text(&lossless::to_bytes(value)).into_owned()
}

fn number(value: &str) -> Value {
    value.parse::<u64>().map_or_else(|_| value.into(), Value::from)
}

fn milliseconds(time: Duration) -> Value {
    // Whole microseconds: more digits mean nothing and are read by people.
    json!(time.as_micros() as f64 / 1000.0)
}

fn lua_value(value: lua::Value<'_>) -> Value {
    match value {
        lua::Value::Text(text) => lossless_text(&text).into(),
        lua::Value::Number(number) => json!(number),
        lua::Value::Bool(truth) => truth.into(),
        lua::Value::Null => Value::Null,
        lua::Value::List(items) => items.into_iter().map(lua_value).collect(),
        lua::Value::Table => json!({}),
    }
}

/// Names in lower case; one that stands more than once has a list. nginx: `ngx.req.get_headers`.
fn headers(x: &Exchange<'_>, map: &HeaderMap) -> Value {
    let one = |name: &http::HeaderName| {
        let shown = |value: &http::HeaderValue| x.logged_header(name, &text(value.as_bytes())).into_owned();
        let mut values = map.get_all(name).iter().map(shown);
        let first = values.next().unwrap_or_default();
        let mut rest: Vec<String> = values.collect();
        if rest.is_empty() {
            return Value::String(first);
        }
        rest.insert(0, first);
        json!(rest)
    };
    Value::Object(map.keys().map(|name| (name.as_str().to_owned(), one(name))).collect())
}

/// Decoded; an argument without a value is `true`, one that stands more than once has a list.
/// nginx: `ngx.req.get_uri_args`, which reads no more than a hundred.
fn query(query: &str) -> Value {
    const MOST: usize = 100;
    let mut all: Map<String, Value> = Map::new();
    for (name, value) in args::pairs(query.as_bytes()).take(MOST) {
        let value = value.map_or(Value::Bool(true), |value| lossless_text(&value).into());
        match all.get_mut(&*name) {
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = json!([first.take(), value]),
            None => _ = all.insert(lossless_text(&name), value),
        }
    }
    Value::Object(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{
        request::RouteMeta,
        testing::{Kit, consumer},
    };

    fn compiled(conf: Value, metadata: Option<Value>) -> LogEntry {
        let config: Config = serde_json::from_value(conf).unwrap();
        LogEntry::new(&config, metadata.as_ref()).unwrap()
    }

    fn kit() -> Kit {
        let route = RouteMeta { id: "r1".into(), service_id: Some("s1".into()), ..RouteMeta::default() };
        Kit::post("/a%20b?x=1&x=2&y&z=%2F", "text/plain", "hello").route(route)
    }

    #[track_caller]
    fn check(conf: Value, metadata: Option<Value>, expected: Value) {
        let entry = compiled(conf.clone(), metadata);
        kit().run(async |x| {
            assert!(entry.read_body(x).await.is_continue());
            assert_eq!(Value::Object(entry.entry(x)), expected, "{conf}");
        });
    }

    #[test]
    fn formats() {
        let tail = |mut entry: Value| {
            entry["route_id"] = json!("r1");
            entry["service_id"] = json!("s1");
            entry
        };
        let format =
            json!({"h": "$host", "a": {"b": "$arg_z", "n": 5}, "l": ["$method"], "none": "$nothing_known"});
        let expected = json!({"h": "a.com", "a": {"b": "/", "n": 5}, "l": ["POST"]});
        check(json!({"log_format": format}), None, tail(expected.clone()));
        check(json!({}), Some(json!({"log_format": format})), tail(expected));
        check(json!({"log_format": {}}), Some(json!({"log_format": format})), tail(json!({})));
        let body =
            json!({"log_format": {"b": "$request_body"}, "include_req_body": true, "max_req_body_bytes": 4});
        check(body, None, tail(json!({"b": "hell"})));
        let deep = json!({"log_format": {"1": {"2": {"3": {"4": {"5": {"6": "$host"}}}}}}});
        check(deep, None, tail(json!({"1": {"2": {"3": {"4": {"5": {}}}}}})));
    }

    #[test]
    fn the_whole_of_it() {
        let entry = compiled(
            json!({"include_req_body": true, "log_format_extra": {"who": "$arg_x", "upstream": 1}}),
            None,
        );
        kit().run(async |x| {
            assert!(entry.read_body(x).await.is_continue());
            x.ctx.path = Some("/a b".into());
            x.ctx.status = Some(200);
            x.ctx.consumer = Some(std::sync::Arc::new(consumer("jack")));
            let entry = Value::Object(entry.entry(x));
            let at = |pointer: &str| entry.pointer(pointer).cloned().unwrap_or_default();
            assert_eq!(at("/request/url"), "http://a.com:0/a b?x=1&x=2&y&z=%2F");
            assert_eq!(at("/request/querystring"), json!({"x": ["1", "2"], "y": true, "z": "/"}));
            assert_eq!(at("/request/headers/content-type"), "text/plain");
            assert_eq!(at("/request/body"), "hello");
            assert!(at("/request/size").is_u64(), "{entry}");
            assert_eq!(at("/response/status"), 200);
            assert_eq!((at("/route_id"), at("/service_id")), (json!("r1"), json!("s1")));
            assert_eq!(at("/consumer/username"), "jack");
            assert_eq!(at("/client_ip"), "127.0.0.1");
            assert_eq!((at("/who"), at("/upstream")), (json!("1"), json!(1)));
            assert!(at("/latency").is_f64() && at("/apisix_latency").is_f64() && at("/start_time").is_u64());
        });
    }

    #[test]
    fn bodies_are_bounded_and_conditional() {
        let conf =
            json!({"include_resp_body": true, "max_resp_body_bytes": 4, "log_format": {"b": "$resp_body"}});
        let entry = compiled(conf.clone(), None);
        kit().run(async |x| {
            for piece in ["he", "llo", "!"] {
                entry.look(x, &Some(Bytes::from(piece)));
            }
            entry.look(x, &None);
            assert_eq!(entry.entry(x)["b"], "hell");
        });
        let mut never = conf;
        never["include_resp_body_expr"] = json!([["arg_x", "==", "9"]]);
        let entry = compiled(never, None);
        kit().run(async |x| {
            entry.look(x, &Some(Bytes::from("hello")));
            assert_eq!(entry.entry(x)["b"], "");
        });
    }

    #[test]
    fn expressions_are_checked() {
        let refused = check_of(json!({"include_req_body_expr": [["a", "nope", 1]]}));
        assert!(
            refused.starts_with("failed to validate the 'include_req_body_expr' expression: "),
            "{refused}"
        );
        assert_eq!(check_of(json!({"include_req_body_expr": [["arg_a", "==", "1"]]})), "");
    }

    fn check_of(conf: Value) -> String {
        super::check(&conf).err().unwrap_or_default()
    }
}
