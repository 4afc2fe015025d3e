//! cors: lets browsers' scripts of other origins use the route, and answers their preflight requests.
//!
//! <https://apisix.apache.org/docs/apisix/plugins/cors/>
//!
//! Every OPTIONS request ends here with 200, preflight or not, as in APISIX. The headers are written on every
//! response, also on those that the gateway makes itself.

use std::collections::HashMap;

use ahash::AHashSet;
use http::{HeaderName, HeaderValue, Method, header};
use pingora::http::ResponseHeader;
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::{header as fields, pcre};
use crate::{
    compat::Compat,
    net::lossless,
    plugin::{
        contract,
        env::{BuildEnv, CheckEnv},
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Flow, Reply},
    },
    schema::pattern::Pattern,
};

const ORIGINS: &str = "^(\\*|\\*\\*|null|\\w+://[^,]+(,\\w+://[^,]+)*)$";
const ALL_METHODS: &str = "GET,POST,PUT,DELETE,PATCH,HEAD,OPTIONS,CONNECT,TRACE";
const TIMING_ALLOW_ORIGIN: HeaderName = HeaderName::from_static("timing-allow-origin");

/// The plugin's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// `*`, `**` (any, told back), `null`, or origins with commas between.
    pub allow_origins: String,
    /// `*`, `**` or methods with commas between.
    pub allow_methods: String,
    /// `*`, `**` (those asked for) or header names with commas between.
    pub allow_headers: String,
    /// Header names that scripts may read.
    pub expose_headers: Option<String>,
    /// Seconds that a browser may keep the answer.
    pub max_age: i64,
    /// Whether scripts may send cookies and the like.
    pub allow_credential: bool,
    /// Patterns of origins; then `allow_origins` counts no more.
    pub allow_origins_by_regex: Option<Vec<String>>,
    /// Names of origin lists in the plugin's metadata.
    pub allow_origins_by_metadata: Option<Vec<String>>,
    /// Origins that may see timing; written as `allow_origins`.
    pub timing_allow_origins: Option<String>,
    /// Patterns of origins that may see timing.
    pub timing_allow_origins_by_regex: Option<Vec<String>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow_origins: "*".into(),
            allow_methods: "*".into(),
            allow_headers: "*".into(),
            expose_headers: None,
            max_age: 5,
            allow_credential: false,
            allow_origins_by_regex: None,
            allow_origins_by_metadata: None,
            timing_allow_origins: None,
            timing_allow_origins_by_regex: None,
        }
    }
}

/// The compiled plugin.
pub struct Plugin {
    own: Origins,
    /// Lists of the metadata that the configuration names; `None` when it names none.
    named: Option<Vec<Origins>>,
    /// Whether `own` decides when no list of the metadata does.
    own_after_named: bool,
    timing: Option<Origins>,
    varies: bool,
    /// Headers that are the same for every allowed origin.
    fixed: Vec<(HeaderName, HeaderValue)>,
    /// Allows the headers that the browser asks for.
    reflects_headers: bool,
}

/// A set of origins.
enum Origins {
    /// `*`.
    Any,
    /// `**`: any, and the answer names it.
    Reflect,
    /// A single one.
    One(HeaderValue),
    /// One of several.
    List(AHashSet<Box<[u8]>>),
    /// All that a pattern matches.
    Patterns(Vec<Pattern>),
}

/// The origin of the request, noted before other plugins may change it.
#[derive(Default)]
struct AskedBy(Option<HeaderValue>);

impl contract::Plugin for Plugin {
    const NAME: &'static str = "cors";
    const PRIORITY: i32 = 4000;
    const PHASES: Phases = Phases::REWRITE.and(Phases::HEADER_FILTER);
    type Config = Config;

    fn schema() -> Value {
        let several = |what: &str| {
            json!({
                "type": "array",
                "description": what,
                "items": {"type": "string", "minLength": 1, "maxLength": 4096},
                "minItems": 1,
                "uniqueItems": true
            })
        };
        json!({
            "type": "object",
            "properties": {
                "allow_origins": {
                    "description": "'*' for any, '**' for any even with credentials, or a list",
                    "type": "string",
                    "pattern": ORIGINS,
                    "default": "*"
                },
                "allow_methods": {
                    "description": "'*' for any, '**' for any even with credentials, or a list",
                    "type": "string",
                    "default": "*"
                },
                "allow_headers": {
                    "description": "'*' for any, '**' for those asked for, or a list",
                    "type": "string",
                    "default": "*"
                },
                "expose_headers": {"description": "headers that scripts may read", "type": "string"},
                "max_age": {
                    "description": "seconds that a browser may keep the answer; -1: none",
                    "type": "integer",
                    "default": 5
                },
                "allow_credential": {
                    "description": "allow credentials; then no other option may be '*'",
                    "type": "boolean",
                    "default": false
                },
                "allow_origins_by_regex": several("patterns of allowed origins"),
                "allow_origins_by_metadata": several("names of lists in the plugin metadata"),
                "timing_allow_origins": {
                    "description": "origins that may see timing; as allow_origins",
                    "type": "string",
                    "pattern": ORIGINS
                },
                "timing_allow_origins_by_regex": several("patterns of origins that may see timing")
            }
        })
    }

    fn metadata_schema() -> Option<Value> {
        Some(json!({
            "type": "object",
            "properties": {
                "allow_origins": {
                    "type": "object",
                    "additionalProperties": {"type": "string", "pattern": ORIGINS}
                }
            }
        }))
    }

    fn check(conf: &Value, env: &CheckEnv<'_>) -> Result<(), String> {
        let star = |key: &str, default: &str| conf.get(key).and_then(Value::as_str).unwrap_or(default) == "*";
        let starred = || {
            ["allow_origins", "allow_methods", "allow_headers"].iter().any(|key| star(key, "*"))
                || star("expose_headers", env.compat.cors_exposes())
                || star("timing_allow_origins", "")
        };
        if conf.get("allow_credential") == Some(&Value::Bool(true)) && starred() {
            return Err("you can not set '*' for other option when 'allow_credential' is true".into());
        }
        for key in ["allow_origins_by_regex", "timing_allow_origins_by_regex"] {
            let rules = conf.get(key).and_then(Value::as_array).into_iter().flatten();
            rules.filter_map(Value::as_str).try_for_each(|rule| pcre::compile(rule).map(drop))?;
        }
        Ok(())
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let own = match &config.allow_origins_by_regex {
            Some(rules) => Origins::patterns(rules)?,
            None => Origins::new(&config.allow_origins),
        };
        let timing = match (&config.timing_allow_origins_by_regex, &config.timing_allow_origins) {
            (Some(rules), _) => Some(Origins::patterns(rules)?),
            (None, origins) => origins.as_deref().map(Origins::new),
        };
        let named =
            config.allow_origins_by_metadata.as_deref().map(|names| Origins::named(names, env.metadata));
        Ok(Self {
            own,
            own_after_named: named.is_none() || config.allow_origins != "*",
            named,
            timing,
            varies: config.allow_origins != "*",
            fixed: fixed_headers(&config, env.compat),
            reflects_headers: config.allow_headers == "**",
        })
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        let origin = x.session.req_header().headers.get(header::ORIGIN).cloned();
        *x.local() = AskedBy(origin);
        if x.method() == Method::OPTIONS { Reply::status(200).into() } else { CONTINUE }
    }

    fn header_filter(&self, x: &mut Exchange<'_>, head: &mut ResponseHeader) {
        let origin = x.local::<AskedBy>().0.clone();
        if self.varies {
            let _ = head.append_header("Vary", HeaderValue::from_static("Origin"));
        }
        if let Some(allowed) = self.allowed(origin.as_ref()) {
            fields::put(head, &header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            for (name, value) in &self.fixed {
                fields::put(head, name, value.clone());
            }
            if self.reflects_headers {
                reflect_headers(x, head);
            }
        }
        if let Some(allowed) = self.timing.as_ref().and_then(|timing| timing.allow(origin.as_ref())) {
            fields::put(head, &TIMING_ALLOW_ORIGIN, allowed);
        }
    }
}

impl Plugin {
    fn allowed(&self, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        if let Some(named) = &self.named {
            // Lists of the metadata never answer `*`; without an origin nobody is allowed. APISIX:
            // `process_with_allow_origins_by_metadata`.
            let origin = origin?;
            if named.iter().any(|list| list.allow(Some(origin)).is_some()) {
                return Some(origin.clone());
            }
        }
        if self.own_after_named { self.own.allow(origin) } else { None }
    }
}

impl Origins {
    fn new(text: &str) -> Origins {
        match text {
            "*" => Origins::Any,
            "**" => Origins::Reflect,
            list if list.contains(',') => Origins::List(
                list.split(',').filter(|one| !one.is_empty()).map(|one| one.as_bytes().into()).collect(),
            ),
            one => Origins::One(fields::value(one)),
        }
    }

    fn patterns(rules: &[String]) -> Result<Origins, String> {
        rules.iter().map(|rule| pcre::compile(rule)).collect::<Result<_, _>>().map(Origins::Patterns)
    }

    /// The lists of the metadata with these names; names that it does not have allow nobody.
    fn named(names: &[String], metadata: Option<&Value>) -> Vec<Origins> {
        let lists: HashMap<&str, &str> = metadata
            .and_then(|metadata| metadata.get("allow_origins"))
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(name, list)| Some((name.as_str(), list.as_str()?)))
            .collect();
        names.iter().filter_map(|name| lists.get(name.as_str()).copied().map(Origins::new)).collect()
    }

    /// What to answer to a request of this origin; `None` when it is not allowed.
    fn allow(&self, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        let told = || origin.cloned();
        let any = || HeaderValue::from_static("*");
        match self {
            Origins::Any => Some(any()),
            Origins::Reflect => Some(told().unwrap_or_else(any)),
            Origins::One(one) => told().filter(|origin| origin == one),
            Origins::List(list) => told().filter(|origin| list.contains(origin.as_bytes())),
            Origins::Patterns(patterns) => told().filter(|origin| {
                let text = lossless::from_bytes(origin.as_bytes());
                patterns.iter().any(|pattern| pattern.is_match(&text))
            }),
        }
    }
}

/// The headers that do not depend on the request; empty values are left out, as nginx does.
fn fixed_headers(config: &Config, compat: Compat) -> Vec<(HeaderName, HeaderValue)> {
    let methods = if config.allow_methods == "**" { ALL_METHODS } else { &config.allow_methods };
    let max_age = config.max_age.to_string();
    let exposed = config.expose_headers.as_deref().unwrap_or(compat.cors_exposes());
    let mut headers = vec![
        (header::ACCESS_CONTROL_ALLOW_METHODS, methods),
        (header::ACCESS_CONTROL_MAX_AGE, &*max_age),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed),
    ];
    if config.allow_headers != "**" {
        headers.push((header::ACCESS_CONTROL_ALLOW_HEADERS, &config.allow_headers));
    }
    if config.allow_credential {
        headers.push((header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"));
    }
    let written = headers.into_iter().filter(|(_, text)| !text.is_empty());
    written.map(|(name, text)| (name, fields::value(text))).collect()
}

/// Allows the headers that the browser asks for; none when it asks for none.
fn reflect_headers(x: &Exchange<'_>, head: &mut ResponseHeader) {
    match x.session.req_header().headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        Some(asked) => fields::put(head, &header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone()),
        None => drop(head.remove_header(&header::ACCESS_CONTROL_ALLOW_HEADERS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{Kit, Setup, answer, compile_schemas, plugin, refusal, response};

    /// The headers that the plugin writes, for a request with this origin.
    fn seen(plugin: &Plugin, origin: Option<&str>) -> String {
        let own = [("Access-Control-Request-Headers", "X-Asked")];
        let sent: Vec<_> = own.into_iter().chain(origin.map(|origin| ("Origin", origin))).collect();
        Kit::get("/", &sent).run(async |x| {
            assert_eq!(contract::Plugin::rewrite(plugin, x).await, CONTINUE);
            // Other plugins may change the header: what counts was noted before.
            x.remove_header(&header::ORIGIN);
            let mut head = response(200, &[]);
            contract::Plugin::header_filter(plugin, x, &mut head);
            let short =
                |name: &HeaderName| name.as_str().replace("access-control-", "").replace("allow-", "");
            let mut lines: Vec<String> = head
                .headers
                .iter()
                .map(|(name, value)| format!("{}={}", short(name), value.to_str().unwrap()))
                .collect();
            lines.sort();
            lines.join(" ")
        })
    }

    #[track_caller]
    fn check(conf: Value, origin: Option<&str>, expected: &str) {
        assert_eq!(seen(&plugin::<Plugin>(conf.clone()), origin), expected, "{conf} {origin:?}");
    }

    #[test]
    fn origins() {
        compile_schemas::<Plugin>();
        let any = "headers=* max-age=5 methods=* origin=*";
        check(json!({}), None, any);
        check(json!([]), Some("http://a.com"), any);
        let a = "headers=* max-age=5 methods=* origin=http://a.com vary=Origin";
        check(json!({"allow_origins": "**"}), None, &format!("{any} vary=Origin"));
        check(json!({"allow_origins": "**"}), Some("http://a.com"), a);
        check(json!({"allow_origins": "http://a.com"}), Some("http://a.com"), a);
        check(json!({"allow_origins": "http://a.com"}), Some("http://b.com"), "vary=Origin");
        check(json!({"allow_origins": "http://a.com"}), None, "vary=Origin");
        let list = json!({"allow_origins": "http://a.com,http://b.com"});
        check(list.clone(), Some("http://a.com"), a);
        check(list.clone(), Some("http://c.com"), "vary=Origin");
        check(list, None, "vary=Origin");
        let regex = json!({"allow_origins_by_regex": [".*\\.a\\.com$", "^null$"]});
        check(regex.clone(), Some("http://x.a.com"), "headers=* max-age=5 methods=* origin=http://x.a.com");
        check(regex.clone(), Some("null"), "headers=* max-age=5 methods=* origin=null");
        check(regex.clone(), Some("http://a.com"), "");
        check(regex, None, "");
    }

    #[test]
    fn headers() {
        check(
            json!({"allow_methods": "GET,POST", "allow_headers": "X-A,X-B", "expose_headers": "X-E", "max_age": 10}),
            None,
            "expose-headers=X-E headers=X-A,X-B max-age=10 methods=GET,POST origin=*",
        );
        let credential = json!({
            "allow_origins": "**", "allow_methods": "**", "allow_headers": "**", "allow_credential": true,
            "expose_headers": ""
        });
        let expected =
            format!("credentials=true headers=X-Asked max-age=5 methods={ALL_METHODS} origin=o vary=Origin");
        check(credential, Some("o"), &expected);
    }

    #[test]
    fn timing() {
        let cors = "headers=* max-age=5 methods=* origin=*";
        let one = json!({"timing_allow_origins": "http://a.com"});
        check(one.clone(), Some("http://a.com"), &format!("{cors} timing-origin=http://a.com"));
        check(one, Some("http://b.com"), cors);
        check(json!({"timing_allow_origins": "*"}), None, &format!("{cors} timing-origin=*"));
        let regex = json!({"timing_allow_origins": "*", "timing_allow_origins_by_regex": ["a"]});
        check(regex.clone(), Some("http://a.com"), &format!("{cors} timing-origin=http://a.com"));
        check(regex, Some("http://b"), cors);
    }

    #[test]
    fn metadata() {
        let lists = json!({"allow_origins": {"k1": "http://a.com,http://b.com", "any": "*"}});
        let with = |conf| Setup::new().metadata(lists.clone()).build::<Plugin>(conf).unwrap();
        let a = "headers=* max-age=5 methods=* origin=http://a.com";
        let named = with(json!({"allow_origins_by_metadata": ["none", "k1"]}));
        assert_eq!(seen(&named, Some("http://a.com")), a);
        assert_eq!(seen(&named, Some("http://c.com")), "");
        assert_eq!(seen(&named, None), "");
        let any = with(json!({"allow_origins_by_metadata": ["any"]}));
        assert_eq!(seen(&any, Some("http://a.com")), a);
        let both = with(json!({"allow_origins_by_metadata": ["k1"], "allow_origins": "http://c.com"}));
        assert_eq!(seen(&both, Some("http://a.com")), format!("{a} vary=Origin"));
        let c = "headers=* max-age=5 methods=* origin=http://c.com vary=Origin";
        assert_eq!(seen(&both, Some("http://c.com")), c);
        assert_eq!(seen(&both, Some("http://d.com")), "vary=Origin");
    }

    #[test]
    fn options_end_here() {
        let plugin = plugin::<Plugin>(json!({}));
        let kit = Kit::new("OPTIONS / HTTP/1.1\r\nHost: a.com\r\n\r\n");
        assert_eq!(kit.rewrite(&plugin), "200");
        kit.run(async |x| {
            assert_eq!(answer(&CONTINUE), "continue");
            // A plugin before this one may have answered: then no origin was noted.
            let mut head = response(503, &[]);
            contract::Plugin::header_filter(&plugin, x, &mut head);
            assert_eq!(head.headers.get("access-control-allow-origin").unwrap(), "*");
        });
    }

    #[test]
    fn refusals() {
        let star = "you can not set '*' for other option when 'allow_credential' is true";
        for (conf, expected) in [
            (json!({"allow_credential": true}), star),
            (json!({"allow_credential": true, "allow_origins": "**"}), star),
            (
                json!({"max_age": "10"}),
                "property \"max_age\" validation failed: wrong type: expected integer, got string",
            ),
        ] {
            assert_eq!(refusal::<Plugin>(conf.clone()), expected, "{conf}");
        }
        let open = "pcre_compile() failed: missing ) in \"(a\"";
        assert_eq!(refusal::<Plugin>(json!({"allow_origins_by_regex": ["(a"]})), open);
    }
}
