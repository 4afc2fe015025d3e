//! ua-restriction: lets clients in or keeps them out by their User-Agent.
//!
//! APISIX: plugins/ua-restriction.lua.
//!
//! Differs from APISIX: with several User-Agent headers a deny list refuses when one of them is denied; there it
//! refuses when one of them is *not*, so that sending a denied one twice opens the route.

use std::borrow::Cow;

use http::header::USER_AGENT;
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::pcre;
use crate::{
    plugin::{
        contract,
        env::{BuildEnv, CheckEnv},
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Flow, Reply},
    },
    schema::{Schema, pattern::Pattern},
};

/// The configuration; exactly one of the lists is there, but for [`Compat::agents_are_let_in_unless_denied`].
#[derive(Deserialize)]
pub struct Config {
    /// Whether a request without the header is let in.
    #[serde(default)]
    pub bypass_missing: bool,
    /// Patterns, one of which must match.
    pub allowlist: Option<Vec<String>>,
    /// Patterns, none of which may match.
    pub denylist: Option<Vec<String>>,
    /// Message of a refusal.
    #[serde(default = "default_message")]
    pub message: String,
}

fn default_message() -> String {
    "Not allowed".into()
}

/// The compiled configuration.
pub struct Plugin {
    bypass_missing: bool,
    rules: Rules,
    message: Box<str>,
}

enum Rules {
    Allow(Vec<Pattern>),
    Deny(Vec<Pattern>),
    DenyUnless { allow: Vec<Pattern>, deny: Vec<Pattern> },
}

/// The schema but for how many of the lists there are.
fn lists() -> Value {
    let patterns = || json!({"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}});
    json!({
        "type": "object",
        "properties": {
            "bypass_missing": {"type": "boolean", "default": false},
            "allowlist": patterns(),
            "denylist": patterns(),
            "message": {"type": "string", "minLength": 1, "maxLength": 1024, "default": "Not allowed"}
        }
    })
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "ua-restriction";
    const PRIORITY: i32 = 2999;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        let mut schema = lists();
        schema["oneOf"] = json!([{"required": ["allowlist"]}, {"required": ["denylist"]}]);
        schema
    }

    fn pardons(conf: &Value, env: &CheckEnv<'_>) -> bool {
        env.compat.agents_are_let_in_unless_denied()
            && Schema::compile(&lists()).is_ok_and(|schema| schema.check(conf).is_ok())
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        let lists = ["allowlist", "denylist"].into_iter().filter_map(|name| conf.get(name)?.as_array());
        lists.flatten().filter_map(Value::as_str).try_for_each(|rule| pcre::compile(rule).map(|_| ()))
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let compile =
            |list: Vec<String>| list.iter().map(|rule| pcre::compile(rule)).collect::<Result<_, _>>();
        let rules = match (config.allowlist, config.denylist) {
            (allow, deny) if env.compat.agents_are_let_in_unless_denied() => Rules::DenyUnless {
                allow: compile(allow.unwrap_or_default())?,
                deny: compile(deny.unwrap_or_default())?,
            },
            (Some(list), _) => Rules::Allow(compile(list)?),
            (None, list) => Rules::Deny(compile(list.unwrap_or_default())?),
        };
        Ok(Self { bypass_missing: config.bypass_missing, rules, message: config.message.into() })
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        if self.allows(x) {
            return CONTINUE;
        }
        Reply::message(403, &*self.message).because("the user agent may not come in").into()
    }
}

impl Plugin {
    fn allows(&self, x: &Exchange<'_>) -> bool {
        let mut agents = x.session.req_header().headers.get_all(USER_AGENT).iter().peekable();
        if agents.peek().is_none() {
            return self.bypass_missing;
        }
        let matched = |rules: &[Pattern], agent: Cow<'_, str>| {
            let agent = agent.trim();
            rules.iter().any(|rule| rule.is_match(agent))
        };
        let mut agents = agents.map(|agent| String::from_utf8_lossy(agent.as_bytes()));
        match &self.rules {
            Rules::Allow(rules) => agents.any(|agent| matched(rules, agent)),
            Rules::Deny(rules) => !agents.any(|agent| matched(rules, agent)),
            Rules::DenyUnless { allow, deny } => {
                !agents.any(|agent| matched(deny, agent.clone()) && !matched(allow, agent))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{self, Kit};

    const NO: &str = r#"403 {"message":"Not allowed"}"#;
    const GO: &str = "continue";

    #[track_caller]
    fn check(conf: Value, agents: &[&str], said: &str) {
        let plugin: Plugin = testing::plugin(conf.clone());
        let headers: Vec<_> = agents.iter().map(|agent| ("User-Agent", *agent)).collect();
        assert_eq!(Kit::get("/", &headers).access(&plugin), said, "{conf} {agents:?}");
    }

    #[test]
    fn schemas_compile() {
        testing::compile_schemas::<Plugin>();
    }

    #[test]
    fn restricts() {
        let allow = || json!({"allowlist": ["^agent", "(Baiduspider)/(\\d+)\\.(\\d+)"]});
        check(allow(), &["agent 1"], GO);
        check(allow(), &["x Baiduspider/1.0"], GO);
        check(allow(), &["curl/8"], NO);
        check(allow(), &[""], NO);
        check(allow(), &[], NO);
        check(allow(), &["curl/8", "agent 1"], GO);
        let deny = || json!({"denylist": ["curl"]});
        check(deny(), &["curl/8"], NO);
        check(deny(), &["agent"], GO);
        check(deny(), &[""], GO);
        check(deny(), &[], NO);
        check(deny(), &["agent", "curl/8"], NO);
        check(deny(), &["curl/8", "curl/8"], NO);
        check(json!({"denylist": ["curl"], "bypass_missing": true}), &[], GO);
        check(json!({"denylist": ["curl"], "message": "no"}), &["curl"], r#"403 {"message":"no"}"#);
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = testing::refusal::<Plugin>;
        assert_eq!(refusal(json!({})), "value should match only one schema, but matches none");
        assert_eq!(
            refusal(json!({"denylist": []})),
            r#"property "denylist" validation failed: expect array to have at least 1 items"#
        );
        assert_eq!(refusal(json!({"allowlist": ["(a"]})), "pcre_compile() failed: missing ) in \"(a\"");
    }
}
