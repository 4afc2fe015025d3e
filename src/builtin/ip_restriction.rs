//! ip-restriction: lets clients in or keeps them out by address.
//!
//! APISIX: plugins/ip-restriction/init.lua. The address is the client's after `real_ip` rules.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    net::ip_set::IpSet,
    plugin::{
        contract,
        env::{BuildEnv, CheckEnv},
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Class, Flow, Reply},
    },
};

/// The configuration; exactly one of the lists is there.
#[derive(Deserialize)]
pub struct Config {
    /// Message of a refusal.
    #[serde(default = "default_message")]
    pub message: String,
    /// Status of a refusal.
    #[serde(default = "default_code")]
    pub response_code: u16,
    /// Addresses and blocks that are let in; others are not.
    pub whitelist: Option<Vec<String>>,
    /// Addresses and blocks that are kept out.
    pub blacklist: Option<Vec<String>>,
}

fn default_message() -> String {
    "Your IP address is not allowed".into()
}

fn default_code() -> u16 {
    403
}

/// The compiled configuration.
pub struct Plugin {
    whitelist: Option<IpSet>,
    blacklist: Option<IpSet>,
    response_code: u16,
    message: Box<str>,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "ip-restriction";
    const PRIORITY: i32 = 3000;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "message": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1024,
                    "default": "Your IP address is not allowed"
                },
                "response_code": {"type": "integer", "minimum": 403, "maximum": 404, "default": 403},
                "whitelist": addresses(),
                "blacklist": addresses()
            },
            "oneOf": [{"required": ["whitelist"]}, {"required": ["blacklist"]}]
        })
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        let lists = ["whitelist", "blacklist"].into_iter().filter_map(|name| conf.get(name)?.as_array());
        for address in lists.flatten().filter_map(Value::as_str) {
            if IpSet::parse([address]).is_err() {
                return Err(format!("invalid ip address: {address}"));
            }
        }
        Ok(())
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let set = |list: Option<Vec<String>>| {
            list.map(|list| IpSet::parse(list.iter().map(String::as_str))).transpose()
        };
        Ok(Self {
            whitelist: set(config.whitelist)?,
            blacklist: set(config.blacklist)?,
            response_code: config.response_code,
            message: config.message.into(),
        })
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        let client = x.client_ip();
        let unwanted = self.blacklist.as_ref().is_some_and(|set| set.contains(client))
            || self.whitelist.as_ref().is_some_and(|set| !set.contains(client));
        if unwanted {
            return Reply::message(self.response_code, &*self.message)
                .because(format!("the address {client} may not come in"))
                .classed(Class::Forbidden)
                .into();
        }
        CONTINUE
    }
}

/// APISIX: `core.schema.ip_def`.
fn addresses() -> Value {
    let octet = "([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])";
    let v4_block = format!(r"^{octet}\.{octet}\.{octet}\.{octet}/([12]?[0-9]|3[0-2])$");
    json!({
        "type": "array",
        "items": {"anyOf": [
            {"title": "IPv4", "type": "string", "format": "ipv4"},
            {"title": "IPv4/CIDR", "type": "string", "pattern": v4_block},
            {"title": "IPv6", "type": "string", "format": "ipv6"},
            {
                "title": "IPv6/CIDR",
                "type": "string",
                "pattern": r"^([a-fA-F0-9]{0,4}:){1,8}(:[a-fA-F0-9]{0,4}){0,8}([a-fA-F0-9]{0,4})?/[0-9]{1,3}$"
            }
        ]},
        "minItems": 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{self, Kit};

    const NO: &str = r#"403 {"message":"Your IP address is not allowed"}"#;

    #[track_caller]
    fn check(conf: Value, client: &str, said: &str) {
        let plugin: Plugin = testing::plugin(conf.clone());
        assert_eq!(Kit::get("/", &[]).client(client).access(&plugin), said, "{conf} {client}");
    }

    #[test]
    fn schemas_compile() {
        testing::compile_schemas::<Plugin>();
    }

    #[test]
    fn restricts() {
        check(json!({"whitelist": ["127.0.0.1", "10.0.0.0/8"]}), "10.9.8.7", "continue");
        check(json!({"whitelist": ["127.0.0.1", "10.0.0.0/8"]}), "11.0.0.1", NO);
        check(json!({"blacklist": ["127.0.0.0/24"]}), "127.0.0.9", NO);
        check(json!({"blacklist": ["127.0.0.0/24"]}), "::1", "continue");
        check(json!({"whitelist": ["fe80::/32"]}), "fe80::1:1", "continue");
        check(json!({"blacklist": ["::1"]}), "::1", NO);
        check(
            json!({"blacklist": ["127.0.0.1"], "response_code": 404, "message": "no"}),
            "127.0.0.1",
            r#"404 {"message":"no"}"#,
        );
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = testing::refusal::<Plugin>;
        assert_eq!(refusal(json!({})), "value should match only one schema, but matches none");
        assert_eq!(
            refusal(json!({"whitelist": ["::1"], "blacklist": ["::1"]})),
            "value should match only one schema, but matches both schemas 1 and 2"
        );
        assert_eq!(
            refusal(json!({"blacklist": ["::1"], "response_code": 405})),
            r#"property "response_code" validation failed: expected 405 to be at most 404"#
        );
        assert_eq!(refusal(json!({"whitelist": ["::1/129"]})), "invalid ip address: ::1/129");
        assert!(refusal(json!({"whitelist": ["10.0.0.0/33"]})).contains("whitelist"));
    }
}
