//! redirect: the client shall ask elsewhere.
//!
//! <https://apisix.apache.org/docs/apisix/plugins/redirect/>
//!
//! `plugin_attr.redirect.https_port` is the port of `http_to_https`; without it one of the ports that serve TLS,
//! which the gateway puts into the same object as `ssl_ports`.
//!
//! Differs from APISIX: an argument without a value (`?k`) is `true` in a target, as it is everywhere; there the
//! plugin fails with 500.

use http::{Method, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::{header as fields, is_secret_ref, substitute};
use crate::{
    net::escape::{Escape, escape_into},
    plugin::{
        contract,
        env::{BuildEnv, CheckEnv},
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Flow, Reply},
    },
    vars::{
        pcre::{Pcre, Replacement},
        var::Var,
    },
};

/// The plugin's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Status of the answer.
    pub ret_code: i64,
    /// Where to; with variables.
    pub uri: Option<String>,
    /// Pattern and replacement that make the target from the path.
    pub regex_uri: Option<[String; 2]>,
    /// Sends every plain request to the same place under https.
    pub http_to_https: bool,
    /// Percent-encodes the target's path.
    pub encode_uri: bool,
    /// Appends the request's query.
    pub append_query_string: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ret_code: 302,
            uri: None,
            regex_uri: None,
            http_to_https: false,
            encode_uri: false,
            append_query_string: false,
        }
    }
}

/// The compiled plugin.
pub struct Plugin {
    status: u16,
    target: Target,
    https: Option<Https>,
    encode: bool,
    append_args: bool,
}

enum Target {
    Nowhere,
    Uri(Vec<Part>),
    Regex(Box<(Pcre, Replacement)>),
}

/// What `http_to_https` answers: one target for each port that may be named.
struct Https {
    targets: Vec<Vec<Part>>,
}

/// A piece of a target.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(Box<str>),
    Var(Var),
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "redirect";
    const PRIORITY: i32 = 900;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "ret_code": {"type": "integer", "minimum": 200, "default": 302},
                "uri": {
                    "type": "string",
                    "minLength": 2,
                    "pattern": "(\\\\\\$[0-9a-zA-Z_]+)|\\$\\{([0-9a-zA-Z_]+)\\}|\\$([0-9a-zA-Z_]+)|(\\$|[^$\\\\]+)"
                },
                "regex_uri": {
                    "description": "pattern and replacement that make the target from the path",
                    "type": "array",
                    "maxItems": 2,
                    "minItems": 2,
                    "items": {"description": "pattern or replacement", "type": "string"}
                },
                "http_to_https": {"type": "boolean"},
                "encode_uri": {"type": "boolean", "default": false},
                "append_query_string": {"type": "boolean", "default": false}
            },
            "oneOf": [{"required": ["uri"]}, {"required": ["regex_uri"]}, {"required": ["http_to_https"]}]
        })
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        let pair = conf.get("regex_uri").and_then(Value::as_array).map(Vec::as_slice);
        if let Some([Value::String(pattern), Value::String(with)]) = pair
            && !is_secret_ref(pattern)
        {
            rule(pattern, if is_secret_ref(with) { "" } else { with })?;
        }
        let on = |key| conf.get(key) == Some(&Value::Bool(true));
        if on("http_to_https") && on("append_query_string") {
            return Err("only one of `http_to_https` and `append_query_string` can be configured.".into());
        }
        Ok(())
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let target = match (&config.uri, &config.regex_uri) {
            (Some(uri), _) => Target::Uri(parse(uri)),
            (None, Some([pattern, with])) => Target::Regex(Box::new(rule(pattern, with)?)),
            (None, None) => Target::Nowhere,
        };
        Ok(Self {
            status: fields::status("ret_code", config.ret_code)?,
            target,
            https: config.http_to_https.then(|| Https::new(env.attr)),
            encode: config.encode_uri,
            append_args: config.append_query_string,
        })
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        let Some((status, target)) = self.target(x) else { return CONTINUE };
        Reply::status(status).with_header(header::LOCATION, fields::value(&self.finish(target, x))).into()
    }
}

impl Plugin {
    /// Status and target; `None` when the request may go on.
    fn target(&self, x: &Exchange<'_>) -> Option<(u16, String)> {
        if let Some(https) = &self.https
            && x.header("x-forwarded-proto").unwrap_or(x.ctx.scheme) != "https"
        {
            // RFC 9110 §15.4: only 308 keeps the method of a request that is not safe.
            let status = if matches!(*x.method(), Method::GET | Method::HEAD) { 301 } else { 308 };
            return Some((status, render(https.pick(), x)));
        }
        let target = match &self.target {
            Target::Nowhere => return None,
            Target::Uri(parts) => render(parts, x),
            Target::Regex(rule) => rule.0.replace_first(x.path(), &rule.1)?.0,
        };
        Some((self.status, target))
    }

    fn finish(&self, target: String, x: &Exchange<'_>) -> String {
        let query = target.find('?');
        let mut out = target;
        if self.encode {
            let (path, rest) = out.split_at(query.unwrap_or(out.len()));
            let mut encoded = String::with_capacity(out.len() + 16);
            escape_into(&mut encoded, path, Escape::Path);
            encoded.push_str(rest);
            out = encoded;
        }
        if self.append_args && !x.args().is_empty() {
            out.push(if query.is_some() { '&' } else { '?' });
            out.push_str(x.args());
        }
        out
    }
}

impl Https {
    fn new(attr: Option<&Value>) -> Https {
        let own = attr.and_then(|attr| attr.get("https_port")).and_then(Value::as_i64);
        let listening = attr.and_then(|attr| attr.get("ssl_ports")).and_then(Value::as_array);
        let mut ports: Vec<i64> = match (own, listening) {
            (Some(port), _) => vec![port],
            (None, ports) => ports.into_iter().flatten().filter_map(Value::as_i64).collect(),
        };
        if ports.is_empty() {
            ports.push(443);
        }
        let target = |port: i64| match port {
            443 | ..=0 | 65536.. => parse("https://$host$request_uri"),
            port => parse(&format!("https://$host:{port}$request_uri")),
        };
        Https { targets: ports.into_iter().map(target).collect() }
    }

    /// Any of the targets, as APISIX picks a listening port at random.
    fn pick(&self) -> &[Part] {
        match self.targets.as_slice() {
            [only] => only,
            several => several.get(fastrand::usize(..several.len().max(1))).map_or(&[], Vec::as_slice),
        }
    }
}

fn rule(pattern: &str, with: &str) -> Result<(Pcre, Replacement), String> {
    substitute::of_text(pattern, with).map_err(|e| format!("invalid regex_uri ({pattern}, {with}), err:{e}"))
}

/// Reads a target as the plugin's own pattern does: names are of letters, digits and `_` only; `\$name` stays as it
/// is written; a backslash before anything else disappears. APISIX: `redirect.lua parse_uri`.
fn parse(uri: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut rest = uri;
    while let Some(at) = rest.find(['$', '\\']) {
        text.push_str(&rest[..at]);
        let found = &rest[at..];
        if let Some(after) = found.strip_prefix('\\') {
            let kept = after.strip_prefix('$').map_or(0, name_length);
            if kept > 0 {
                text.push_str(&found[..kept + 2]);
            }
            rest = if kept > 0 { &found[kept + 2..] } else { after };
            continue;
        }
        let Some((name, tail)) = variable(&found[1..]) else {
            text.push('$');
            rest = &found[1..];
            continue;
        };
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text).into()));
        }
        parts.push(Part::Var(Var::parse(name)));
        rest = tail;
    }
    text.push_str(rest);
    if !text.is_empty() {
        parts.push(Part::Text(text.into()));
    }
    parts
}

/// The variable named after a `$`, and what follows it.
fn variable(text: &str) -> Option<(&str, &str)> {
    if let Some(inside) = text.strip_prefix('{') {
        let length = name_length(inside);
        let tail = inside[length..].strip_prefix('}')?;
        return (length > 0).then_some((&inside[..length], tail));
    }
    let length = name_length(text);
    (length > 0).then(|| text.split_at(length))
}

fn name_length(text: &str) -> usize {
    text.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count()
}

fn render(parts: &[Part], x: &Exchange<'_>) -> String {
    let mut out = String::with_capacity(64);
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Var(var) => out.push_str(&x.var(var).unwrap_or_default()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{Kit, Setup, answer, compile_schemas, plugin, refusal, response_header};

    #[track_caller]
    fn check(conf: Value, target: &str, expected: &str) {
        check_kit(&plugin::<Plugin>(conf), &Kit::get(target, &[]), expected);
    }

    /// `status location`, or `continue`.
    #[track_caller]
    fn check_kit(plugin: &Plugin, kit: &Kit, expected: &str) {
        let got = kit.run(async |x| {
            x.ctx.path =
                crate::net::uri::normalize(x.session.req_header().uri.path().as_bytes()).ok().map(Into::into);
            let flow = contract::Plugin::rewrite(plugin, x).await;
            match response_header(&flow, x, "location") {
                Some(location) => format!("{} {location}", answer(&flow)),
                None => answer(&flow),
            }
        });
        assert_eq!(got, expected);
    }

    #[test]
    fn uris() {
        compile_schemas::<Plugin>();
        check(json!({"uri": "/to"}), "/p/x?k=1", "302 /to");
        check(json!({"uri": "/to", "ret_code": 308}), "/p/x", "308 /to");
        check(json!({"uri": "/to", "append_query_string": true}), "/p/x?k=1", "302 /to?k=1");
        check(json!({"uri": "/to", "append_query_string": true}), "/p/x", "302 /to");
        check(
            json!({"uri": "/to?x=$arg_k", "append_query_string": true}),
            "/p/?k=2&k=3",
            "302 /to?x=2&k=2&k=3",
        );
        check(json!({"uri": "/to?x=$arg_k", "append_query_string": true}), "/p/", "302 /to?x=");
        check(json!({"uri": "/t o", "encode_uri": true}), "/p/", "302 /t%20o");
        check(json!({"uri": "/t o?a b", "encode_uri": true}), "/p/", "302 /t%20o?a b");
        check(json!({"uri": "https://$host$request_uri"}), "/p/a%20b?k", "302 https://a.com/p/a b?k");
        check(json!({"uri": "$uri/x"}), "/p/a%0db", "302 /p/a%0Db/x");
    }

    #[test]
    fn patterns() {
        check(json!({"regex_uri": ["^/no$", "/r"]}), "/p/x", "continue");
        check(
            json!({"regex_uri": ["^/p/(.*)$", "http://o.example/$1"], "ret_code": 308}),
            "/p/x/y?k",
            "308 http://o.example/x/y",
        );
        check(
            json!({"regex_uri": ["^/p/(.*)$", "/r/$1"], "append_query_string": true}),
            "/p/x?k",
            "302 /r/x?k",
        );
    }

    #[test]
    fn https() {
        let with = |attr| Setup::new().attr(attr).build::<Plugin>(json!({"http_to_https": true})).unwrap();
        let get = Kit::get("/p?k=1", &[]);
        check(json!({"http_to_https": true}), "/p?k=1", "301 https://a.com/p?k=1");
        check(json!({"http_to_https": false}), "/p?k=1", "continue");
        check_kit(&with(json!({"https_port": 8443})), &get, "301 https://a.com:8443/p?k=1");
        check_kit(&with(json!({"https_port": 443, "ssl_ports": [9443]})), &get, "301 https://a.com/p?k=1");
        check_kit(&with(json!({"https_port": 70000})), &get, "301 https://a.com/p?k=1");
        check_kit(&with(json!({"ssl_ports": [9443]})), &get, "301 https://a.com:9443/p?k=1");
        check_kit(
            &with(json!({"https_port": 8443})),
            &Kit::post("/p", "text/plain", "x"),
            "308 https://a.com:8443/p",
        );
        let proxied = Kit::get("/p", &[("X-Forwarded-Proto", "https")]);
        check_kit(&with(json!({})), &proxied, "continue");
    }

    #[test]
    fn parts() {
        let text = |text: &str| Part::Text(text.into());
        let var = |name: &str| Part::Var(Var::parse(name));
        for (uri, expected) in [
            ("/a", vec![text("/a")]),
            ("/$host.x", vec![text("/"), var("host"), text(".x")]),
            ("/${host}x", vec![text("/"), var("host"), text("x")]),
            ("/\\$host/$uri", vec![text("/\\$host/"), var("uri")]),
            ("/a\\b$", vec![text("/ab$")]),
            ("${bad-name}", vec![text("${bad-name}")]),
            ("$$uri", vec![text("$"), var("uri")]),
            ("/ü$uri", vec![text("/ü"), var("uri")]),
        ] {
            assert_eq!(parse(uri), expected, "{uri}");
        }
    }

    #[test]
    fn refusals() {
        let several = "value should match only one schema, but matches";
        for (conf, expected) in [
            (json!({}), format!("{several} none")),
            (json!({"uri": "/a", "http_to_https": true}), format!("{several} both schemas 1 and 3")),
            (
                json!({"http_to_https": true, "append_query_string": true}),
                "only one of `http_to_https` and `append_query_string` can be configured.".to_owned(),
            ),
            (
                json!({"regex_uri": ["^/", "/$a"]}),
                "invalid regex_uri (^/, /$a), err:failed to compile the replacement template".to_owned(),
            ),
        ] {
            assert_eq!(refusal::<Plugin>(conf.clone()), expected, "{conf}");
        }
        assert!(refusal::<Plugin>(json!({"uri": "/a", "ret_code": 1000})).contains("1000"));
    }
}
