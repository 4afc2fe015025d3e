//! referer-restriction: lets requests in or keeps them out by the host of their Referer.
//!
//! APISIX: plugins/referer-restriction.lua, and `parse_uri` of lua-resty-http for what the host is.

use std::collections::HashSet;

use ahash::RandomState;
use http::header::REFERER;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::plugin::{
    contract,
    env::BuildEnv,
    exchange::Exchange,
    phases::Phases,
    reply::{CONTINUE, Flow, Reply},
};

/// The configuration; exactly one of the lists is there.
#[derive(Deserialize)]
pub struct Config {
    /// Whether a request without a readable Referer is let in.
    #[serde(default)]
    pub bypass_missing: bool,
    /// Hosts that are let in; others are not.
    pub whitelist: Option<Vec<String>>,
    /// Hosts that are kept out.
    pub blacklist: Option<Vec<String>>,
    /// Message of a refusal.
    #[serde(default = "default_message")]
    pub message: String,
}

fn default_message() -> String {
    "Your referer host is not allowed".into()
}

/// The compiled configuration.
pub struct Plugin {
    bypass_missing: bool,
    hosts: Hosts,
    list: List,
    message: Box<str>,
}

#[derive(Clone, Copy, PartialEq)]
enum List {
    White,
    Black,
}

/// Hosts as written, and endings of those that began with `*`.
struct Hosts {
    exact: HashSet<Box<str>, RandomState>,
    endings: Vec<Box<str>>,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "referer-restriction";
    const PRIORITY: i32 = 2990;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        // APISIX: `core.schema.host_def`.
        let hosts = || {
            json!({
                "type": "array",
                "items": {"type": "string", "pattern": r"^\*$|^\*?[0-9a-zA-Z-._\[\]:]+$"},
                "minItems": 1
            })
        };
        json!({
            "type": "object",
            "properties": {
                "bypass_missing": {"type": "boolean", "default": false},
                "whitelist": hosts(),
                "blacklist": hosts(),
                "message": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1024,
                    "default": "Your referer host is not allowed"
                }
            },
            "oneOf": [{"required": ["whitelist"]}, {"required": ["blacklist"]}]
        })
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let (list, hosts) = match config.whitelist {
            Some(hosts) => (List::White, hosts),
            None => (List::Black, config.blacklist.unwrap_or_default()),
        };
        Ok(Self {
            bypass_missing: config.bypass_missing,
            hosts: Hosts::new(hosts),
            list,
            message: config.message.into(),
        })
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        let allowed = match x.header(REFERER).and_then(host) {
            None => self.bypass_missing,
            Some(host) => self.hosts.contain(host) == (self.list == List::White),
        };
        if allowed {
            return CONTINUE;
        }
        Reply::message(403, &*self.message).because("the referring host may not come in").into()
    }
}

impl Hosts {
    fn new(list: Vec<String>) -> Self {
        let (endings, exact): (Vec<_>, Vec<_>) = list.into_iter().partition(|host| host.starts_with('*'));
        Self {
            exact: exact.into_iter().map(String::into_boxed_str).collect(),
            endings: endings.iter().map(|host| host[1..].into()).collect(),
        }
    }

    fn contain(&self, host: &str) -> bool {
        self.exact.contains(host) || self.endings.iter().any(|ending| host.ends_with(&**ending))
    }
}

/// The host of a URI as lua-resty-http cuts it out: user name and fragment, if any, stay with it.
fn host(uri: &str) -> Option<&str> {
    let rest = uri.strip_prefix("https:").or_else(|| uri.strip_prefix("http:")).unwrap_or(uri);
    let rest = rest.strip_prefix("//")?;
    if rest.starts_with('[') {
        let line = rest.split('\n').next().unwrap_or_default();
        return line.rfind(']').filter(|end| *end > 1).map(|end| &rest[..=end]);
    }
    let end = rest.find(['[', ']', ':', '/', '?']).unwrap_or(rest.len());
    Some(&rest[..end]).filter(|host| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plugin::testing::{self, Kit};

    const NO: &str = r#"403 {"message":"Your referer host is not allowed"}"#;
    const GO: &str = "continue";

    #[track_caller]
    fn check(conf: Value, referer: Option<&str>, said: &str) {
        let plugin: Plugin = testing::plugin(conf.clone());
        let headers: Vec<_> = referer.iter().map(|value| ("Referer", *value)).collect();
        assert_eq!(Kit::get("/", &headers).access(&plugin), said, "{conf} {referer:?}");
    }

    #[test]
    fn schemas_compile() {
        testing::compile_schemas::<Plugin>();
    }

    #[test]
    fn restricts() {
        let white = || json!({"whitelist": ["*.xx.com", "yy.com"]});
        check(white(), Some("http://www.xx.com"), GO);
        check(white(), Some("https://yy.com:8080/am?x"), GO);
        check(white(), Some("//yy.com/"), GO);
        check(white(), Some("https://www.yy.com/am"), NO);
        check(white(), Some("http://xx.com"), NO);
        check(white(), Some("yy.com"), NO);
        check(white(), Some("http://YY.com"), NO);
        check(white(), None, NO);
        let missing = || json!({"whitelist": ["a.com"], "bypass_missing": true, "message": "ref"});
        check(missing(), None, GO);
        check(missing(), Some("junk"), GO);
        check(missing(), Some("http://c.b.com"), r#"403 {"message":"ref"}"#);
        let black = || json!({"blacklist": ["a.com"]});
        check(black(), Some("http://a.com/x"), NO);
        check(black(), Some("http://c.b.com"), GO);
        check(black(), Some("junk"), NO);
        check(json!({"blacklist": ["*"]}), Some("http://c.b.com"), NO);
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = testing::refusal::<Plugin>;
        assert_eq!(refusal(json!({})), "value should match only one schema, but matches none");
        assert!(refusal(json!({"whitelist": ["a b"]})).contains("failed to match pattern"));
    }

    proptest! {
        #[test]
        fn host_is_what_the_pattern_of_resty_http_finds(
            uri in "(http:|https:|ftp:)?/{0,3}[a-b@#\\[\\]:/?\n]{0,10}"
        ) {
            let oracle = regex::Regex::new(r"^(?:(http[s]?):)?//((?:[^\[\]:/\?]+)|(?:\[.+\]))").unwrap();
            let expected = oracle.captures(&uri).and_then(|found| found.get(2)).map(|found| found.as_str());
            prop_assert_eq!(host(&uri), expected);
        }
    }
}
