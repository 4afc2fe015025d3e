//! proxy-rewrite: what the upstream is asked may differ from what the client asked.
//!
//! <https://apisix.apache.org/docs/apisix/plugins/proxy-rewrite/>
//!
//! Wherever the plugin is, the upstream sees the normalised path, escaped anew, with the query behind it; without
//! the plugin it sees the client's target untouched. Later plugins still see the client's path in `$uri`.
//!
//! Differs from APISIX: blanks, control characters and bytes beyond ASCII are escaped in every part of the target,
//! so that no configuration lets a client write its own request line.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue, Method, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::shared::{header as fields, is_secret_ref, substitute};
use crate::{
    net::{
        escape::{Escape, escape_into},
        lossless,
    },
    plugin::{
        contract,
        env::{BuildEnv, CheckEnv},
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Flow},
    },
    vars::{
        pcre::{Captures, Pcre, Replacement},
        template::Template,
        var::Var,
    },
};

/// The plugin's configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The new path, with variables; may carry a query.
    pub uri: Option<String>,
    /// The new method.
    pub method: Option<String>,
    /// Pairs of pattern and replacement; the first pattern that matches the path makes the new one.
    pub regex_uri: Option<Vec<String>>,
    /// The new Host header.
    pub host: Option<String>,
    /// Edits of the request's headers: `add`, `set`, `remove`; or a plain map, which sets.
    pub headers: Option<Value>,
    /// Starts from the target as the client sent it instead of the normalised path.
    pub use_real_request_uri_unsafe: bool,
}

/// The compiled plugin.
pub struct Plugin {
    source: Source,
    target: Target,
    method: Option<Method>,
    host: Option<HeaderValue>,
    edits: Vec<Edit>,
    /// Some variable is part of the request body.
    needs_body: bool,
}

/// What the new target is made from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The normalised path.
    Path,
    /// The target as sent, query included.
    RawTarget,
}

enum Target {
    Same,
    Template(Template),
    Rules(Vec<(Pcre, Replacement)>),
}

enum Edit {
    Add(HeaderName, Vec<Template>),
    Set(HeaderName, Vec<Template>),
    Remove(HeaderName),
}

/// A new target before it is escaped.
struct Draft<'x> {
    text: Cow<'x, str>,
    /// Whether a `?` in it separates the query, rather than being part of the decoded path.
    separates: bool,
    captures: Captures,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "proxy-rewrite";
    const PRIORITY: i32 = 1008;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        let text = json!({"type": "string"});
        let number = json!({"type": "number"});
        let list = json!({"type": "array", "minItems": 1, "items": {"oneOf": [text, number]}});
        let values = json!({
            "type": "object",
            "minProperties": 1,
            "patternProperties": {"^[^:]+$": {"oneOf": [text, number, list]}}
        });
        json!({
            "type": "object",
            "properties": {
                "uri": {
                    "description": "path for the upstream",
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 4096,
                    "pattern": "^\\/.*"
                },
                "method": {
                    "description": "method for the upstream",
                    "type": "string",
                    "enum": [
                        "PUT", "DELETE", "MKCOL", "COPY", "MOVE", "OPTIONS", "PROPFIND", "LOCK", "UNLOCK", "PATCH",
                        "TRACE", "GET", "HEAD", "POST"
                    ]
                },
                "regex_uri": {
                    "description": "pairs of pattern and replacement for the path; uri goes first",
                    "type": "array",
                    "minItems": 2,
                    "items": {"description": "pattern or replacement", "type": "string"}
                },
                "host": {
                    "description": "Host header for the upstream",
                    "type": "string",
                    "pattern": "^[0-9a-zA-Z-.]+(:\\d{1,5})?$"
                },
                "headers": {
                    "description": "edits of the request's headers",
                    "oneOf": [
                        {
                            "type": "object",
                            "minProperties": 1,
                            "additionalProperties": false,
                            "properties": {
                                "add": values,
                                "set": values,
                                "remove": {
                                    "type": "array",
                                    "minItems": 1,
                                    "items": {"type": "string", "pattern": "^[^:]+$"}
                                }
                            }
                        },
                        {
                            "type": "object",
                            "minProperties": 1,
                            "patternProperties": {"^[^:]+$": {"oneOf": [text, number]}}
                        }
                    ]
                },
                "use_real_request_uri_unsafe": {
                    "description": "start from the target as sent: very unsafe",
                    "type": "boolean",
                    "default": false
                }
            },
            "minProperties": 1
        })
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        if let Some(Value::Array(pairs)) = conf.get("regex_uri") {
            check_pairs(pairs)?;
        }
        match conf.get("headers") {
            Some(Value::Object(headers)) if !has_operations(headers) => check_flat(headers),
            _ => Ok(()),
        }
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let target = match (&config.uri, &config.regex_uri) {
            (Some(uri), _) => Target::Template(Template::parse(uri)),
            (None, Some(pairs)) => Target::Rules(rules(pairs)?),
            (None, None) => Target::Same,
        };
        let edits = config.headers.as_ref().map_or_else(|| Ok(Vec::new()), edits)?;
        let uri_needs_body = matches!(&target, Target::Template(uri) if asks_for_body(uri));
        let method = config.method.map(|method| Method::from_bytes(method.as_bytes())).transpose();
        Ok(Self {
            source: if config.use_real_request_uri_unsafe { Source::RawTarget } else { Source::Path },
            target,
            method: method.map_err(|e| e.to_string())?,
            host: config.host.as_deref().map(fields::value),
            needs_body: uri_needs_body || edits.iter().flat_map(Edit::values).any(asks_for_body),
            edits,
        })
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        if self.needs_body
            && let Err(reply) = x.body().await
        {
            return reply.into();
        }
        if let Some(host) = &self.host {
            x.ctx.edits.host = Some(host.clone());
        }
        let draft = self.draft(x);
        let uri = self.finish(&draft, x);
        let captures = draft.captures;
        x.ctx.edits.uri = Some(uri);
        for edit in &self.edits {
            edit.apply(x, &captures);
        }
        if let Some(method) = &self.method {
            x.ctx.edits.method = Some(method.clone());
        }
        CONTINUE
    }
}

impl Plugin {
    fn draft<'x>(&self, x: &'x Exchange<'_>) -> Draft<'x> {
        let start = match self.source {
            Source::Path => Cow::Borrowed(x.path()),
            Source::RawTarget => lossless::from_bytes(x.session.req_header().raw_path()),
        };
        match &self.target {
            Target::Same => Draft { text: start, separates: false, captures: Captures::default() },
            Target::Template(template) => {
                let mut text = template.render_escaped(x, escape_separator);
                if let Some(at) = start.find('?').filter(|_| self.source == Source::RawTarget) {
                    join_args(&mut text, &start[at + 1..], '?');
                }
                Draft { text: text.into(), separates: true, captures: Captures::default() }
            }
            Target::Rules(rules) => {
                let separates = !start.contains('?');
                match rules.iter().find_map(|(pattern, with)| pattern.replace_first(&start, with)) {
                    Some((text, captures)) => Draft { text: text.into(), separates, captures },
                    None => Draft { text: start, separates, captures: Captures::default() },
                }
            }
        }
    }

    /// The target as it goes on the wire.
    fn finish(&self, draft: &Draft<'_>, x: &Exchange<'_>) -> String {
        let text = &*draft.text;
        let args = x.args();
        let mut out = String::with_capacity(text.len() + args.len() + 16);
        if self.source == Source::RawTarget {
            escape_wire(&mut out, text);
            return out;
        }
        match text.find('?').filter(|_| draft.separates) {
            Some(at) => {
                escape_into(&mut out, &text[..at], Escape::Path);
                escape_wire(&mut out, &text[at..]);
                join_args(&mut out, args, '&');
            }
            None => {
                escape_into(&mut out, text, Escape::Path);
                join_args(&mut out, args, '?');
            }
        }
        out
    }
}

impl Edit {
    fn values(&self) -> &[Template] {
        match self {
            Edit::Add(_, values) | Edit::Set(_, values) => values,
            Edit::Remove(_) => &[],
        }
    }

    fn apply(&self, x: &mut Exchange<'_>, captures: &Captures) {
        let (Edit::Add(name, _) | Edit::Set(name, _) | Edit::Remove(name)) = self;
        keep_host(name, x);
        // Values first: they may hold the header that is being replaced.
        let texts = self.values().iter().map(|value| value.render_with_captures(x, captures));
        let texts: Vec<String> = texts.filter(|text| !text.is_empty()).collect();
        if !matches!(self, Edit::Add(..)) {
            x.remove_header(name);
        }
        for text in &texts {
            x.add_header(name, fields::value(text));
        }
    }
}

/// An edit of `Host` changes what plugins see, never what the upstream sees: that is the option `host`.
/// APISIX: `$upstream_host` is taken from the request before any plugin runs.
fn keep_host(name: &HeaderName, x: &mut Exchange<'_>) {
    if *name == header::HOST && x.ctx.edits.host.is_none() {
        x.ctx.edits.host = x.http_host().map(fields::value);
    }
}

fn asks_for_body(template: &Template) -> bool {
    template.vars().any(Var::needs_body)
}

/// A `?` that comes out of a variable must not begin the query.
fn escape_separator(text: &str) -> Cow<'_, str> {
    if text.contains('?') { Cow::Owned(text.replace('?', "%3F")) } else { Cow::Borrowed(text) }
}

/// Appends a query; with `first` when it is the target's only one, else with `&`.
fn join_args(out: &mut String, args: &str, first: char) {
    if !args.is_empty() {
        out.push(if out.contains('?') { '&' } else { first });
        out.push_str(args);
    }
}

/// Appends text that keeps its delimiters, with all that may not stand in a request line escaped.
fn escape_wire(out: &mut String, text: &str) {
    for byte in lossless::to_bytes(text).iter() {
        match byte {
            b'!'..=b'~' => out.push(char::from(*byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

fn check_pairs(pairs: &[Value]) -> Result<(), String> {
    if !pairs.len().is_multiple_of(2) {
        return Err("The length of regex_uri should be an even number".into());
    }
    for pair in pairs.chunks_exact(2) {
        let [Value::String(pattern), Value::String(with)] = pair else { continue };
        if is_secret_ref(pattern) {
            continue;
        }
        let with = if is_secret_ref(with) { "" } else { with };
        rule(pattern, with)?;
    }
    Ok(())
}

fn check_flat(headers: &Map<String, Value>) -> Result<(), String> {
    for (name, value) in headers {
        if !matches!(value, Value::String(_) | Value::Number(_)) {
            return Err("invalid type as header value".into());
        }
        if name.is_empty() {
            return Err("invalid field length in header".into());
        }
        if !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
            return Err("invalid field character in header".into());
        }
        if value.as_str().is_some_and(|text| !text.bytes().all(|byte| (b' '..=b'~').contains(&byte))) {
            return Err("invalid value character in header".into());
        }
    }
    Ok(())
}

fn rules(pairs: &[String]) -> Result<Vec<(Pcre, Replacement)>, String> {
    pairs.chunks_exact(2).map(|pair| rule(&pair[0], &pair[1])).collect()
}

fn rule(pattern: &str, with: &str) -> Result<(Pcre, Replacement), String> {
    substitute::of_text(pattern, with).map_err(|e| format!("invalid regex_uri({pattern}, {with}): {e}"))
}

/// Whether the headers are written as operations rather than as a plain map. APISIX: `is_new_headers_conf`.
fn has_operations(headers: &Map<String, Value>) -> bool {
    ["add", "set", "remove"]
        .iter()
        .any(|key| headers.get(*key).is_some_and(|value| value.is_object() || value.is_array()))
}

fn edits(conf: &Value) -> Result<Vec<Edit>, String> {
    let Value::Object(headers) = conf else { return Ok(Vec::new()) };
    let mut edits = Vec::new();
    if !has_operations(headers) {
        for (name, value) in headers {
            edits.push(Edit::Set(fields::name(name)?, templates(value)));
        }
        return Ok(edits);
    }
    let entries = |key| headers.get(key).and_then(Value::as_object).into_iter().flatten();
    for (name, value) in entries("add") {
        edits.push(Edit::Add(fields::name(name)?, templates(value)));
    }
    for (name, value) in entries("set") {
        edits.push(Edit::Set(fields::name(name)?, templates(value)));
    }
    for name in
        headers.get("remove").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    {
        edits.push(Edit::Remove(fields::name(name)?));
    }
    Ok(edits)
}

fn templates(value: &Value) -> Vec<Template> {
    let values = match value {
        Value::Array(values) => values.as_slice(),
        one => std::slice::from_ref(one),
    };
    values.iter().filter_map(fields::scalar).map(|text| Template::parse_with_captures(&text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{Kit, compile_schemas, headers, plugin, refusal};

    #[track_caller]
    fn check(conf: Value, target: &str, expected: &str) {
        let plugin = plugin::<Plugin>(conf);
        let got = Kit::get(target, &[("X-K", "a?b")]).run(async |x| {
            x.ctx.path =
                crate::net::uri::normalize(x.session.req_header().uri.path().as_bytes()).ok().map(Into::into);
            assert_eq!(contract::Plugin::rewrite(&plugin, x).await, CONTINUE);
            x.ctx.edits.uri.clone().unwrap()
        });
        assert_eq!(got, expected, "{target}");
    }

    #[test]
    fn targets() {
        compile_schemas::<Plugin>();
        check(json!({"host": "a.com"}), "/p/x%2Fy?k=1", "/p/x/y?k=1");
        check(json!({"host": "a.com"}), "/p/a%20b%3fc", "/p/a%20b%3Fc");
        check(json!({"uri": "/a b"}), "/p/X?k", "/a%20b?k");
        check(json!({"uri": "/%20x"}), "/p/x", "/%2520x");
        check(json!({"uri": "/new?x=1"}), "/p/a?k", "/new?x=1&k");
        check(json!({"uri": "/new?x=1"}), "/p/a", "/new?x=1");
        check(json!({"uri": "/n/${arg_k}z"}), "/p/a?k=2&k=3", "/n/2z?k=2&k=3");
        check(json!({"uri": "/n/$arg_k"}), "/p/a", "/n/");
        check(json!({"uri": "/$http_x_k"}), "/p/a", "/a%253Fb");
        check(json!({"uri": "/q?x=$http_x_k"}), "/p/a", "/q?x=a%3Fb");
        check(
            json!({"regex_uri": ["^/p/(.*)", "/q/$1?k2=$1", "^/x", "/y"]}),
            "/p/a%20b?k=2",
            "/q/a%20b?k2=a%20b&k=2",
        );
        check(json!({"regex_uri": ["^/x", "/y", "^/p/([a-z]+)/?(.*)$", "/$2/$1"]}), "/p/x/y", "/y/x");
        check(json!({"regex_uri": ["^/nomatch", "/z"]}), "/p/x%2Fy?k", "/p/x/y?k");
        check(json!({"regex_uri": ["/p", "/r?y=2"]}), "/p/?a=1", "/r?y=2/&a=1");
        check(json!({"regex_uri": ["/p", "/r?y=2"]}), "/p/%3f", "/r%3Fy=2/%3F");
        check(json!({"uri": "/safe?u=$uri"}), "/p/a%0d%0aX:1", "/safe?u=/p/a%0D%0AX:1");
    }

    #[test]
    fn raw_targets() {
        let with = |mut conf: Value| {
            conf["use_real_request_uri_unsafe"] = json!(true);
            conf
        };
        check(with(json!({})), "/p/x%2Fy/../z?k=1", "/p/x%2Fy/../z?k=1");
        check(with(json!({"uri": "/new"})), "/p/x?k=1", "/new?k=1");
        check(with(json!({"uri": "/new?a=b"})), "/p/x?k=1", "/new?a=b&k=1");
        check(with(json!({"uri": "/new"})), "/p/x", "/new");
        check(with(json!({"uri": "/x$uri"})), "/p/a%20b", "/x/p/a%20b");
        check(with(json!({"regex_uri": ["^/p(.*)", "/q$1"]})), "/p/%2F?k=1", "/q/%2F?k=1");
    }

    #[track_caller]
    fn check_headers(conf: Value, expected: &[&str]) {
        let conf = json!({"regex_uri": ["^/p/(\\w+)", "/q"], "headers": conf});
        let plugin = plugin::<Plugin>(conf);
        let got = Kit::get("/p/x?k=1", &[("X-A", "old")]).run(async |x| {
            assert_eq!(contract::Plugin::rewrite(&plugin, x).await, CONTINUE);
            let seen =
                |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
            let mut seen: Vec<String> =
                headers(x).iter().filter(|(name, _)| *name != "host").map(seen).collect();
            seen.sort();
            seen
        });
        assert_eq!(got, expected);
    }

    #[test]
    fn header_edits() {
        check_headers(json!({"X-B": "1", "X-C": 2}), &["x-a: old", "x-b: 1", "x-c: 2"]);
        check_headers(json!({"X-A": ""}), &[]);
        check_headers(json!({"set": {"X-A": "$arg_k-$1-${1}-$2"}}), &["x-a: 1-x-x-"]);
        check_headers(json!({"add": {"X-A": "$arg_k"}}), &["x-a: 1", "x-a: old"]);
        check_headers(json!({"add": {"X-A": ["a", 1.5, "$arg_none"]}}), &["x-a: 1.5", "x-a: a", "x-a: old"]);
        check_headers(json!({"set": {"X-A": ["a", "b"]}}), &["x-a: a", "x-a: b"]);
        check_headers(json!({"set": {"X-A": "<$http_x_a>"}}), &["x-a: <old>"]);
        check_headers(json!({"remove": ["X-A"]}), &[]);
        check_headers(json!({"add": {"X-N": "a"}, "set": {"X-N": "s"}, "remove": ["X-N"]}), &["x-a: old"]);
    }

    #[test]
    fn host_and_method() {
        let both = plugin::<Plugin>(json!({"host": "up.example:99", "method": "PUT"}));
        let header = plugin::<Plugin>(json!({"headers": {"Host": "h.example"}}));
        Kit::get("/", &[]).run(async |x| {
            assert_eq!(contract::Plugin::rewrite(&header, x).await, CONTINUE);
            assert_eq!(x.header("host"), Some("h.example"));
            assert_eq!(x.ctx.edits.host.as_ref().unwrap(), "a.com");
            assert_eq!(contract::Plugin::rewrite(&both, x).await, CONTINUE);
            assert_eq!(x.ctx.edits.host.as_ref().unwrap(), "up.example:99");
            assert_eq!(x.method(), Method::PUT);
        });
    }

    #[test]
    fn looks_into_bodies() {
        let plugin = plugin::<Plugin>(json!({"uri": "/$post_arg_a", "headers": {"X-B": "$post_arg_b"}}));
        Kit::post("/", "application/x-www-form-urlencoded", "a=1&b=2").run(async |x| {
            assert_eq!(contract::Plugin::rewrite(&plugin, x).await, CONTINUE);
            assert_eq!(x.ctx.edits.uri.as_deref(), Some("/1"));
            assert_eq!(x.header("x-b"), Some("2"));
        });
    }

    #[test]
    fn refusals() {
        for (conf, expected) in [
            (
                json!({"uri": "home"}),
                "property \"uri\" validation failed: failed to match pattern \"^\\\\/.*\" with \"home\"",
            ),
            (
                json!({"method": "GETX"}),
                "property \"method\" validation failed: matches none of the enum values",
            ),
            (json!({"regex_uri": ["a", "b", "c"]}), "The length of regex_uri should be an even number"),
            (
                json!({"regex_uri": ["^/", "/$1_$a"]}),
                "invalid regex_uri(^/, /$1_$a): failed to compile the replacement template",
            ),
            (json!({"headers": {"X Api": "v"}}), "invalid field character in header"),
            (json!({"headers": {"X-Api": "v\n"}}), "invalid value character in header"),
            (json!({"headers": {"": "v"}}), "invalid field length in header"),
        ] {
            assert_eq!(refusal::<Plugin>(conf.clone()), expected, "{conf}");
        }
        let open = "invalid regex_uri(^/(a, /): pcre_compile() failed: missing ) in \"^/(a\"";
        assert_eq!(refusal::<Plugin>(json!({"regex_uri": ["^/(a", "/"]})), open);
        assert_eq!(refusal::<Plugin>(json!({"regex_uri": ["$secret://a/b/c", "/"]})), "");
    }
}
