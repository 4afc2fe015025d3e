//! uri-blocker: refuses requests whose target matches a pattern.
//!
//! APISIX: plugins/uri-blocker.lua. What is searched is the normalised path with the query as it was sent.

use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::pcre;
use crate::{
    plugin::{
        contract,
        env::{BuildEnv, CheckEnv},
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Class, Flow, Reply},
    },
    schema::pattern::Pattern,
    vars::var::{Lookup, Var},
};

/// The configuration.
#[derive(Deserialize)]
pub struct Config {
    /// Regular expressions, any of which blocks. An empty list blocks everything, as in APISIX.
    pub block_rules: Vec<String>,
    /// Status of a refusal.
    #[serde(default = "default_code")]
    pub rejected_code: u16,
    /// Message of a refusal; without one the gateway's error page is sent.
    pub rejected_msg: Option<String>,
    /// Whether letters match in either case.
    #[serde(default)]
    pub case_insensitive: bool,
}

fn default_code() -> u16 {
    403
}

/// The compiled configuration.
pub struct Plugin {
    rules: Pattern,
    rejected_code: u16,
    rejected_msg: Option<Box<str>>,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "uri-blocker";
    const PRIORITY: i32 = 2900;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            // Of several mistakes the first in this order is told, as APISIX does.
            "properties": {
                "rejected_code": {"type": "integer", "minimum": 200, "default": 403},
                "block_rules": {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": 4096},
                    "uniqueItems": true
                },
                "rejected_msg": {"type": "string", "minLength": 1},
                "case_insensitive": {"type": "boolean", "default": false}
            },
            "required": ["block_rules"]
        })
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        let rules = conf.get("block_rules").and_then(Value::as_array);
        rules
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .try_for_each(|rule| pcre::compile(rule).map(|_| ()))
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let flags = if config.case_insensitive { "(?i)" } else { "" };
        Ok(Self {
            rules: pcre::compile(&format!("{flags}{}", config.block_rules.join("|")))?,
            rejected_code: config.rejected_code,
            rejected_msg: config.rejected_msg.map(String::into_boxed_str),
        })
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        // Normalised, or an escaped letter would do to pass.
        let target = Lookup::get(x, &Var::RequestUri).unwrap_or_default();
        if !self.rules.is_match(&target) {
            return CONTINUE;
        }
        let reply = match &self.rejected_msg {
            Some(text) => Reply::error_msg(self.rejected_code, &**text),
            None => Reply::status(self.rejected_code),
        };
        reply.because("the address matches a block rule").classed(Class::Forbidden).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{self, Kit};

    #[track_caller]
    fn check(conf: Value, target: &str, said: &str) {
        let plugin: Plugin = testing::plugin(conf.clone());
        assert_eq!(Kit::get(target, &[]).rewrite(&plugin), said, "{conf} {target}");
    }

    #[test]
    fn schemas_compile() {
        testing::compile_schemas::<Plugin>();
    }

    #[test]
    fn blocks_by_the_target() {
        check(json!({"block_rules": ["k=1", "^/z"]}), "/p/x%2Fy?k=1", "403");
        check(json!({"block_rules": ["k=1", "^/z"]}), "/p/z", "continue");
        check(json!({"block_rules": ["^/z"]}), "/z/1", "403");
        check(json!({"block_rules": ["%2F"]}), "/a?b=%2F", "403");
        check(json!({"block_rules": ["/P/X"]}), "/p/x", "continue");
        check(json!({"block_rules": ["/nope", "/P/X"], "case_insensitive": true}), "/p/x", "403");
        check(json!({"block_rules": ["^/a(?!b)"]}), "/ac", "403");
        check(json!({"block_rules": []}), "/any", "403");
        let own = json!({"block_rules": ["x"], "rejected_code": 451, "rejected_msg": "blocked"});
        check(own, "/x", r#"451 {"error_msg":"blocked"}"#);
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = testing::refusal::<Plugin>;
        assert_eq!(refusal(json!({})), r#"property "block_rules" is required"#);
        assert_eq!(refusal(json!({"block_rules": [".+("]})), "pcre_compile() failed: missing ) in \".+(\"");
        assert_eq!(
            refusal(json!({"block_rules": ["a"], "rejected_msg": ""})),
            r#"property "rejected_msg" validation failed: string too short, expected at least 1, got 0"#
        );
    }
}
