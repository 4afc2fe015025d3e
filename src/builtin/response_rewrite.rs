//! response-rewrite: another status, other headers, another body.
//!
//! <https://apisix.apache.org/docs/apisix/plugins/response-rewrite/>
//!
//! A fixed `body` replaces the response's; `filters` hold the whole body back, at most `max_resp_body_size`, and
//! substitute in it once it is complete.
//!
//! Differs from APISIX: a filter whose regex cannot be compiled is refused (there it empties the body); a body whose
//! Content-Encoding is none that can be decoded passes as it is, without that header (there only its last piece
//! does); what exceeds `max_resp_body_size` is cut off, as the option says (there the rest follows unchanged).

use bytes::{Bytes, BytesMut};
use http::{HeaderName, header};
use pingora::{http::ResponseHeader, protocols::http::compression::Algorithm};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tracing::warn;

use super::shared::{
    base64,
    header::{self as fields, Field},
    is_secret_ref,
    substitute::{Pattern, Replacement, Scope},
};
use crate::{
    plugin::{
        contract,
        env::{BuildEnv, CheckEnv},
        exchange::Exchange,
        head_lookup::HeadLookup,
        phases::Phases,
    },
    vars::expr::Expr,
};

/// The plugin's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Largest body that filters hold back, in bytes.
    pub max_resp_body_size: usize,
    /// Edits of the response's headers: `add`, `set`, `remove`; or a plain map, which sets.
    pub headers: Option<Value>,
    /// The new body.
    pub body: Option<String>,
    /// The new body is base64.
    pub body_base64: bool,
    /// The new status.
    pub status_code: Option<u16>,
    /// Only responses for which this holds are rewritten.
    pub vars: Option<Value>,
    /// Substitutions in the body.
    pub filters: Option<Vec<FilterConfig>>,
}

/// One substitution in the body.
#[derive(Clone, Debug, Deserialize)]
pub struct FilterConfig {
    /// What to look for.
    pub regex: String,
    /// `once` or `global`.
    #[serde(default)]
    pub scope: ScopeConfig,
    /// What to put in its place; may name groups.
    pub replace: String,
    /// Flags of `ngx.re`.
    #[serde(default = "default_options")]
    pub options: String,
}

/// How many matches a filter replaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScopeConfig {
    /// The first.
    #[default]
    Once,
    /// All.
    Global,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_resp_body_size: 67_108_864,
            headers: None,
            body: None,
            body_base64: false,
            status_code: None,
            vars: None,
            filters: None,
        }
    }
}

/// The compiled plugin.
pub struct Plugin {
    vars: Option<Expr>,
    status: Option<u16>,
    body: Body,
    edits: Edits,
}

enum Body {
    Keep,
    Replace(Bytes),
    Filter { filters: Vec<Filter>, limit: usize },
}

struct Filter {
    pattern: Pattern,
    replacement: Replacement,
    scope: Scope,
}

#[derive(Default)]
struct Edits {
    add: Vec<Field>,
    set: Vec<Field>,
    remove: Vec<HeaderName>,
}

/// What one response still needs.
#[derive(Default)]
enum Work {
    /// Nothing, or nothing more.
    #[default]
    Pass,
    /// The body stays as it is; the headers do not say so.
    Leave,
    /// The new body has not left yet.
    Replace,
    /// The body is being held back.
    Hold { held: BytesMut, encoding: Encoding },
    /// All has left: what follows is dropped.
    Drop,
}

/// A Content-Encoding that can be taken off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Encoding {
    Identity,
    Gzip,
    Brotli,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "response-rewrite";
    const PRIORITY: i32 = 899;
    const PHASES: Phases = Phases::HEADER_FILTER.and(Phases::BODY_FILTER);
    type Config = Config;

    fn schema() -> Value {
        let values = json!({
            "type": "object",
            "minProperties": 1,
            "patternProperties": {"^[^:]+$": {"oneOf": [{"type": "string"}, {"type": "number"}]}}
        });
        json!({
            "type": "object",
            "properties": {
                "max_resp_body_size": {
                    "description": "bytes that filters hold back; larger responses are cut off",
                    "type": "integer",
                    "minimum": 1,
                    "default": 67_108_864
                },
                "headers": {
                    "description": "edits of the response's headers",
                    "anyOf": [
                        values,
                        {
                            "properties": {
                                "add": {
                                    "type": "array",
                                    "minItems": 1,
                                    "items": {"type": "string", "pattern": "^[^:]+:[^:]*[^/]$"}
                                },
                                "set": values,
                                "remove": {
                                    "type": "array",
                                    "minItems": 1,
                                    "items": {"type": "string", "pattern": "^[^:]+$"}
                                }
                            }
                        }
                    ]
                },
                "body": {"description": "new body", "type": "string"},
                "body_base64": {"description": "the new body is base64", "type": "boolean", "default": false},
                "status_code": {"description": "new status", "type": "integer", "minimum": 200, "maximum": 598},
                "vars": {"type": "array"},
                "filters": {
                    "description": "substitutions in the body",
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "description": "one substitution",
                        "type": "object",
                        "required": ["regex", "replace"],
                        "properties": {
                            "regex": {"description": "what to look for", "type": "string", "minLength": 1},
                            "scope": {
                                "description": "how often",
                                "type": "string",
                                "enum": ["once", "global"],
                                "default": "once"
                            },
                            "replace": {"description": "what to put in its place", "type": "string"},
                            "options": {"description": "flags of the regex", "type": "string", "default": "jo"}
                        }
                    }
                }
            },
            "dependencies": {"body": {"not": {"required": ["filters"]}}, "filters": {"not": {"required": ["body"]}}}
        })
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        if let Some(Value::Object(headers)) = conf.get("headers")
            && !has_operations(headers)
        {
            check_flat(headers)?;
        }
        let body = conf.get("body").and_then(Value::as_str);
        if conf.get("body_base64") == Some(&Value::Bool(true)) && !body.is_some_and(is_secret_ref) {
            decode_base64(body.unwrap_or_default())?;
        }
        if let Some(vars) = conf.get("vars") {
            Expr::parse(vars).map_err(bad_vars)?;
        }
        for filter in conf.get("filters").and_then(Value::as_array).into_iter().flatten() {
            let text = |key| filter.get(key).and_then(Value::as_str);
            pattern(text("regex").unwrap_or_default(), text("options").unwrap_or("jo"))?;
        }
        Ok(())
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let limit = config.max_resp_body_size;
        let body = match (config.filters, config.body) {
            (Some(filters), _) => {
                let filters = filters.iter().map(Filter::new).collect::<Result<_, _>>()?;
                Body::Filter { filters, limit }
            }
            (None, Some(body)) if config.body_base64 => Body::Replace(decode_base64(&body)?.into()),
            (None, Some(body)) => Body::Replace(body.into()),
            (None, None) => Body::Keep,
        };
        Ok(Self {
            vars: config.vars.as_ref().map(Expr::parse).transpose().map_err(bad_vars)?,
            status: config.status_code,
            body,
            edits: config.headers.as_ref().map_or_else(|| Ok(Edits::default()), Edits::new)?,
        })
    }

    fn phases(&self) -> Phases {
        match self.body {
            Body::Keep => Phases::HEADER_FILTER,
            _ => Self::PHASES,
        }
    }

    fn header_filter(&self, x: &mut Exchange<'_>, head: &mut ResponseHeader) {
        if self.vars.as_ref().is_some_and(|vars| !vars.eval(&HeadLookup::new(x, head))) {
            return;
        }
        if let Some(status) = self.status {
            // Fails for codes outside 100–999 only, and the schema allows fewer.
            let _ = head.set_status(status);
            // The upstream's words belong to its own status; without them the standard ones are sent.
            let _ = head.set_reason_phrase(None);
            x.ctx.status = Some(status);
        }
        match self.work(head) {
            Work::Pass | Work::Drop => {}
            work => {
                fields::body_modified(head);
                *x.local::<Work>() = work;
            }
        }
        self.edits.apply(x, head);
    }

    fn body_filter(&self, x: &mut Exchange<'_>, chunk: &mut Option<Bytes>, last: bool) {
        match (x.local::<Work>(), &self.body) {
            (Work::Pass | Work::Leave, _) | (_, Body::Keep) => {}
            (Work::Drop, _) => *chunk = None,
            (work @ Work::Replace, Body::Replace(body)) => {
                *work = Work::Drop;
                *chunk = Some(body.clone());
            }
            (work @ Work::Hold { .. }, Body::Filter { filters, limit }) => {
                *chunk = work.hold(chunk.take(), *limit, last).map(|body| substitute(filters, body));
            }
            (Work::Replace | Work::Hold { .. }, _) => {}
        }
    }
}

impl Plugin {
    /// What the body of a response with this head needs.
    fn work(&self, head: &ResponseHeader) -> Work {
        match &self.body {
            Body::Keep => Work::Pass,
            Body::Replace(_) => Work::Replace,
            Body::Filter { .. } => match Encoding::of(head) {
                Some(encoding) => Work::Hold { held: BytesMut::new(), encoding },
                None => {
                    warn!(
                        "filters of response-rewrite skip a body in a content-encoding that cannot be decoded"
                    );
                    Work::Leave
                }
            },
        }
    }
}

impl Work {
    /// Holds a piece back; gives the decoded body once it is complete or as large as it may be.
    fn hold(&mut self, piece: Option<Bytes>, limit: usize, last: bool) -> Option<Bytes> {
        let Work::Hold { held, encoding } = self else { return None };
        if let Some(piece) = piece {
            held.extend_from_slice(&piece);
        }
        if !last && held.len() < limit {
            return None;
        }
        held.truncate(limit);
        let body = held.split().freeze();
        let encoding = *encoding;
        *self = Work::Drop;
        Some(encoding.decode(body, limit))
    }
}

impl Encoding {
    fn of(head: &ResponseHeader) -> Option<Encoding> {
        let Some(value) = head.headers.get(header::CONTENT_ENCODING) else { return Some(Encoding::Identity) };
        match value.as_bytes() {
            b"gzip" => Some(Encoding::Gzip),
            b"br" => Some(Encoding::Brotli),
            _ => None,
        }
    }

    /// The plain body, at most `limit` bytes; empty if it is not what its encoding says.
    fn decode(self, body: Bytes, limit: usize) -> Bytes {
        let algorithm = match self {
            Encoding::Identity => return body,
            Encoding::Gzip => Algorithm::Gzip,
            Encoding::Brotli => Algorithm::Brotli,
        };
        if body.is_empty() {
            return body;
        }
        decode(algorithm, &body, limit).unwrap_or_else(|error| {
            warn!(%error, "a body that filters of response-rewrite hold cannot be decoded");
            Bytes::new()
        })
    }
}

/// Decodes piece by piece, so that a small body cannot grow far beyond the limit before it is noticed.
fn decode(algorithm: Algorithm, body: &[u8], limit: usize) -> pingora::Result<Bytes> {
    const PIECE: usize = 8192;
    let mut plain = BytesMut::new();
    let Some(mut decoder) = algorithm.decompressor(true) else { return Ok(Bytes::new()) };
    let last = body.chunks(PIECE).count();
    for (at, piece) in body.chunks(PIECE).enumerate() {
        plain.extend_from_slice(&decoder.encode(piece, at + 1 == last)?);
        if plain.len() >= limit {
            plain.truncate(limit);
            break;
        }
    }
    Ok(plain.freeze())
}

impl Filter {
    fn new(config: &FilterConfig) -> Result<Filter, String> {
        Ok(Filter {
            pattern: pattern(&config.regex, &config.options)?,
            replacement: Replacement::new(&config.replace).map_err(|e| bad_regex(&config.regex, &e))?,
            scope: match config.scope {
                ScopeConfig::Once => Scope::Once,
                ScopeConfig::Global => Scope::Global,
            },
        })
    }
}

impl Edits {
    fn new(conf: &Value) -> Result<Edits, String> {
        let Value::Object(headers) = conf else { return Ok(Edits::default()) };
        if !has_operations(headers) {
            return Ok(Edits { set: fields::fields(headers)?, ..Edits::default() });
        }
        let list =
            |key| headers.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let mut edits = Edits::default();
        for line in list("add") {
            // A line that the schema lets through may still be none, for example with a blank in the name.
            if let Some((name, value)) = split_line(line) {
                edits.add.push(Field::new(name, value)?);
            }
        }
        if let Some(set) = headers.get("set").and_then(Value::as_object) {
            edits.set = fields::fields(set)?;
        }
        for name in list("remove") {
            edits.remove.push(fields::name(name)?);
        }
        Ok(edits)
    }

    fn apply(&self, x: &Exchange<'_>, head: &mut ResponseHeader) {
        for field in &self.add {
            let text = field.value.render(&HeadLookup::new(x, head)).into_owned();
            fields::add(head, field, &text);
        }
        for field in &self.set {
            let text = field.value.render(&HeadLookup::new(x, head)).into_owned();
            fields::set(head, field, &text);
        }
        for name in &self.remove {
            head.remove_header(name);
        }
    }
}

fn substitute(filters: &[Filter], mut body: Bytes) -> Bytes {
    for filter in filters {
        if let Some(changed) = filter.pattern.replace(&body, &filter.replacement, filter.scope) {
            body = changed.into();
        }
    }
    body
}

fn pattern(regex: &str, options: &str) -> Result<Pattern, String> {
    Pattern::new(regex, options).map_err(|e| bad_regex(regex, &e))
}

fn bad_regex(regex: &str, reason: &str) -> String {
    format!("regex \"{regex}\" validation failed: {reason}")
}

fn bad_vars(reason: String) -> String {
    format!("failed to validate the 'vars' expression: {reason}")
}

fn decode_base64(body: &str) -> Result<Vec<u8>, String> {
    if body.is_empty() {
        return Err("invalid base64 content".into());
    }
    base64::decode(body.as_bytes()).ok_or_else(|| "invalid base64 content".into())
}

fn check_flat(headers: &Map<String, Value>) -> Result<(), String> {
    for (name, value) in headers {
        if !matches!(value, Value::String(_) | Value::Number(_)) {
            return Err("invalid type as header value".into());
        }
        if name.is_empty() {
            return Err("invalid field length in header".into());
        }
    }
    Ok(())
}

/// Whether the headers are written as operations rather than as a plain map. APISIX: `is_new_headers_conf`.
fn has_operations(headers: &Map<String, Value>) -> bool {
    ["add", "set", "remove"]
        .iter()
        .any(|key| headers.get(*key).is_some_and(|value| value.is_object() || value.is_array()))
}

/// `Name: value`. APISIX: `^([^:\s]+)\s*:\s*([^:]+)$`.
fn split_line(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once(':')?;
    let (name, value) = (name.trim_end(), value.trim_start());
    let plain =
        !name.is_empty() && !name.contains(char::is_whitespace) && !value.is_empty() && !value.contains(':');
    plain.then_some((name, value))
}

fn default_options() -> String {
    "jo".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{Kit, compile_schemas, plugin, refusal, response};

    /// Sends a response through both filters; gives `status | headers | body`.
    fn pass(conf: Value, status: u16, headers: &[(&str, &str)], body: &[&[u8]]) -> String {
        let plugin = plugin::<Plugin>(conf);
        Kit::get("/p/x?k=1", &[]).run(async |x| {
            let mut head = response(status, headers);
            contract::Plugin::header_filter(&plugin, x, &mut head);
            let mut out = Vec::new();
            for (at, piece) in body.iter().enumerate() {
                let mut chunk = Some(Bytes::copy_from_slice(piece));
                contract::Plugin::body_filter(&plugin, x, &mut chunk, at + 1 == body.len());
                out.extend(chunk.unwrap_or_default());
            }
            let line = |(name, value): (&HeaderName, &http::HeaderValue)| {
                format!("{name}={}", value.to_str().unwrap())
            };
            let mut lines: Vec<String> = head.headers.iter().map(line).collect();
            lines.sort();
            format!("{} | {} | {}", head.status.as_u16(), lines.join(" "), String::from_utf8(out).unwrap())
        })
    }

    #[track_caller]
    fn check(conf: Value, expected: &str) {
        let headers = [("X-Up", "1"), ("Content-Length", "5"), ("ETag", "e")];
        assert_eq!(pass(conf.clone(), 200, &headers, &[b"GE", b"T e", b""]), expected, "{conf}");
    }

    #[test]
    fn heads() {
        compile_schemas::<Plugin>();
        let same = "content-length=5 etag=e";
        check(json!({}), &format!("200 | {same} x-up=1 | GET e"));
        check(json!({"status_code": 201}), &format!("201 | {same} x-up=1 | GET e"));
        check(
            json!({"status_code": 404, "vars": [["status", "==", 200]]}),
            &format!("404 | {same} x-up=1 | GET e"),
        );
        check(
            json!({"status_code": 404, "vars": [["status", "==", 500]]}),
            &format!("200 | {same} x-up=1 | GET e"),
        );
        check(json!({"headers": {"X-Flat": "v", "X-Up": ""}}), &format!("200 | {same} x-flat=v | GET e"));
        check(
            json!({"headers": {"add": ["X-R: a", "X-R:b"]}}),
            &format!("200 | {same} x-r=a x-r=b x-up=1 | GET e"),
        );
        check(
            json!({"headers": {"set": {"X-R": 1, "X-Up": "2"}}}),
            &format!("200 | {same} x-r=1 x-up=2 | GET e"),
        );
        check(json!({"headers": {"remove": ["X-Up"]}}), &format!("200 | {same} | GET e"));
        check(
            json!({"status_code": 500, "headers": {"set": {"X-S": "$status", "X-U": "$uri$sent_http_x_up"}}}),
            &format!("500 | {same} x-s=500 x-u=/p/x1 x-up=1 | GET e"),
        );
        check(json!({"headers": []}), &format!("200 | {same} x-up=1 | GET e"));
    }

    #[test]
    fn bodies() {
        check(json!({"body": "new"}), "200 | x-up=1 | new");
        check(json!({"body": ""}), "200 | x-up=1 | ");
        check(json!({"body": "bmV3", "body_base64": true}), "200 | x-up=1 | new");
        check(
            json!({"body": "new", "vars": [["status", ">", 300]]}),
            "200 | content-length=5 etag=e x-up=1 | GET e",
        );
        check(json!({"filters": [{"regex": "GET", "replace": "got"}]}), "200 | x-up=1 | got e");
        check(
            json!({"filters": [{"regex": "e", "scope": "global", "replace": "E", "options": "i"}]}),
            "200 | x-up=1 | GET E",
        );
        check(
            json!({"filters": [{"regex": "(G)", "replace": "$1$1"}, {"regex": "G", "replace": "-", "scope": "global"}]}),
            "200 | x-up=1 | --ET e",
        );
        check(
            json!({"filters": [{"regex": "G", "replace": "-"}], "max_resp_body_size": 3}),
            "200 | x-up=1 | -ET",
        );
    }

    #[test]
    fn encoded_bodies() {
        let mut gzip = Algorithm::Gzip.compressor(5).unwrap();
        let encoded = gzip.encode(b"hello world", true).unwrap();
        let conf = json!({"filters": [{"regex": "hello", "replace": "bye"}]});
        let gzipped = [("Content-Encoding", "gzip")];
        let (front, back) = encoded.split_at(7);
        assert_eq!(pass(conf.clone(), 200, &gzipped, &[front, back]), "200 |  | bye world");
        assert_eq!(pass(conf.clone(), 200, &gzipped, &[b"hello"]), "200 |  | ");
        let unknown = [("Content-Encoding", "zstd"), ("Content-Length", "5")];
        assert_eq!(pass(conf, 200, &unknown, &[b"he", b"llo"]), "200 |  | hello");
    }

    #[test]
    fn refusals() {
        for (conf, expected) in [
            (
                json!({"status_code": 599}),
                "property \"status_code\" validation failed: expected 599 to be at most 598",
            ),
            (
                json!({"body": 2}),
                "property \"body\" validation failed: wrong type: expected string, got number",
            ),
            (json!({"headers": {"": "a"}}), "invalid field length in header"),
            (json!({"headers": {"X-A": {}}}), "invalid type as header value"),
            (json!({"body": "1", "body_base64": true}), "invalid base64 content"),
            (json!({"body_base64": true}), "invalid base64 content"),
            (json!({"vars": [["a"]]}), "failed to validate the 'vars' expression: invalid expression"),
            (
                json!({"filters": [{"regex": "hello", "replace": "a", "options": "h"}]}),
                "regex \"hello\" validation failed: unknown flag \"h\" (flags \"h\")",
            ),
            (
                json!({"filters": [{"regex": "a"}]}),
                "property \"filters\" validation failed: failed to validate item 1: property \"replace\" is required",
            ),
        ] {
            assert_eq!(refusal::<Plugin>(conf.clone()), expected, "{conf}");
        }
        let both = json!({"body": "a", "filters": [{"regex": "a", "replace": "b"}]});
        assert!(!refusal::<Plugin>(both).is_empty());
    }

    #[test]
    fn lines() {
        assert_eq!(split_line("X-A : b"), Some(("X-A", "b")));
        assert_eq!(split_line("Set-Cookie: a=b; Max-Age=1"), Some(("Set-Cookie", "a=b; Max-Age=1")));
        assert_eq!(split_line("X A: b"), None);
        assert_eq!(split_line("X-A: http://b"), None);
    }
}
