//! consumer-restriction: who, once authenticated, may use a route; or which routes and services a consumer may use.
//!
//! APISIX: plugins/consumer-restriction.lua.

use std::collections::{HashMap, HashSet};

use ahash::RandomState;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::plugin::{
    contract,
    env::BuildEnv,
    exchange::Exchange,
    phases::Phases,
    reply::{CONTINUE, Class, Flow, Reply},
};

/// The configuration.
#[derive(Deserialize)]
pub struct Config {
    /// What is compared with the lists.
    #[serde(default, rename = "type")]
    pub kind: Kind,
    /// Values that are refused, before all else.
    #[serde(default)]
    pub blacklist: Vec<String>,
    /// Values that are let in; if there are any, others are not.
    #[serde(default)]
    pub whitelist: Vec<String>,
    /// Methods that a value not in the white list is bound to.
    #[serde(default)]
    pub allowed_by_methods: Vec<AllowedMethods>,
    /// Status of a refusal.
    #[serde(default = "default_code")]
    pub rejected_code: u16,
    /// Message of a refusal.
    pub rejected_msg: Option<String>,
}

/// The methods that one user may use.
#[derive(Deserialize)]
pub struct AllowedMethods {
    /// The value the entry is for.
    pub user: Option<String>,
    /// Its methods.
    #[serde(default)]
    pub methods: Vec<String>,
}

/// What is compared with the lists.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The consumer's name.
    #[default]
    ConsumerName,
    /// The matched route's service.
    ServiceId,
    /// The matched route.
    RouteId,
    /// The consumer's group.
    ConsumerGroupId,
}

fn default_code() -> u16 {
    403
}

type Set = HashSet<Box<str>, RandomState>;

/// The compiled configuration.
pub struct Plugin {
    kind: Kind,
    blacklist: Set,
    whitelist: Set,
    methods: HashMap<Box<str>, Vec<Box<str>>, RandomState>,
    rejected_code: u16,
    rejected_msg: Box<str>,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "consumer-restriction";
    const PRIORITY: i32 = 2400;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "type": {
                    "type": "string",
                    "enum": ["consumer_name", "service_id", "route_id", "consumer_group_id"],
                    "default": "consumer_name"
                },
                "blacklist": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                "whitelist": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                "allowed_by_methods": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "user": {"type": "string"},
                            "methods": {
                                "type": "array",
                                "minItems": 1,
                                "items": {
                                    "type": "string",
                                    "enum": ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD",
                                             "OPTIONS", "CONNECT", "TRACE", "PURGE"]
                                }
                            }
                        }
                    }
                },
                "rejected_code": {"type": "integer", "minimum": 200, "default": 403},
                "rejected_msg": {"type": "string"}
            },
            "anyOf": [
                {"required": ["blacklist"]},
                {"required": ["whitelist"]},
                {"required": ["allowed_by_methods"]}
            ]
        })
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let kind = config.kind;
        let mut methods = HashMap::default();
        for entry in config.allowed_by_methods {
            let Some(user) = entry.user else { continue };
            let allowed = || entry.methods.into_iter().map(String::into_boxed_str).collect();
            methods.entry(user.into_boxed_str()).or_insert_with(allowed);
        }
        Ok(Self {
            kind,
            blacklist: config.blacklist.into_iter().map(String::into_boxed_str).collect(),
            whitelist: config.whitelist.into_iter().map(String::into_boxed_str).collect(),
            methods,
            rejected_code: config.rejected_code,
            rejected_msg: config
                .rejected_msg
                .unwrap_or_else(|| format!("The {} is forbidden.", kind.name()))
                .into(),
        })
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        let Some(value) = self.kind.value(x) else {
            let kind = self.kind.name();
            return Reply::message(401, x.compat().restriction_without_value(kind))
                .because(format!("the request has no {kind}"))
                .classed(Class::Missing)
                .into();
        };
        let Err(reason) = self.judge(value, x.method().as_str()) else { return CONTINUE };
        Reply::message(self.rejected_code, &*self.rejected_msg)
            .because(format!("{} {value} {reason}", self.kind.name()))
            .classed(Class::Forbidden)
            .into()
    }
}

impl Plugin {
    fn judge(&self, value: &str, method: &str) -> Result<(), &'static str> {
        if self.blacklist.contains(value) {
            return Err("is on the blacklist");
        }
        if self.whitelist.contains(value) {
            return Ok(());
        }
        if !self.whitelist.is_empty() {
            return Err("is not on the whitelist");
        }
        match self.methods.get(value) {
            Some(allowed) if !allowed.iter().any(|one| **one == *method) => Err("may not use this method"),
            _ => Ok(()),
        }
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::ConsumerName => "consumer_name",
            Kind::ServiceId => "service_id",
            Kind::RouteId => "route_id",
            Kind::ConsumerGroupId => "consumer_group_id",
        }
    }

    fn value<'x>(self, x: &'x Exchange<'_>) -> Option<&'x str> {
        let route = x.ctx.route.as_ref();
        match self {
            Kind::ConsumerName => x.consumer().map(|consumer| &*consumer.username),
            Kind::ConsumerGroupId => x.consumer()?.group_id.as_deref(),
            Kind::RouteId => route.map(|route| &*route.id),
            Kind::ServiceId => route?.service_id.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compat::Compat,
        plugin::{
            request::RouteMeta,
            testing::{self, Kit},
        },
    };

    const FORBIDDEN: &str = r#"403 {"message":"The consumer_name is forbidden."}"#;

    /// Asks as jack (of group g), on route r of service s.
    fn asked(conf: Value, method: &str, compat: Compat, who: Option<&str>) -> String {
        let plugin: Plugin = testing::plugin(conf);
        let meta = RouteMeta { id: "r".into(), service_id: Some("s".into()), ..RouteMeta::default() };
        let kit = Kit::new(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).compat(compat).route(meta);
        kit.run(async |x| {
            if let Some(who) = who {
                let mut consumer = testing::consumer(who);
                consumer.group_id = (who == "jack").then(|| "g".into());
                x.ctx.consumer = Some(std::sync::Arc::new(consumer));
            }
            testing::answer(&contract::Plugin::access(&plugin, x).await)
        })
    }

    #[track_caller]
    fn check(conf: Value, method: &str, who: &str, said: &str) {
        assert_eq!(asked(conf.clone(), method, Compat::Now, Some(who)), said, "{conf} {method} {who}");
    }

    #[test]
    fn schemas_compile() {
        testing::compile_schemas::<Plugin>();
    }

    #[test]
    fn black_before_white_before_methods() {
        let go = "continue";
        check(json!({"whitelist": ["jack"]}), "GET", "jack", go);
        check(json!({"whitelist": ["jack"]}), "GET", "jill", FORBIDDEN);
        check(json!({"blacklist": ["jack"]}), "GET", "jack", FORBIDDEN);
        check(json!({"blacklist": ["jack"]}), "GET", "jill", go);
        check(json!({"blacklist": ["jack"], "whitelist": ["jack"]}), "GET", "jack", FORBIDDEN);
        let methods = json!({"allowed_by_methods": [{"user": "jack", "methods": ["POST"]}]});
        check(methods.clone(), "POST", "jack", go);
        check(methods.clone(), "GET", "jack", FORBIDDEN);
        check(methods, "GET", "jill", go);
        let twice = json!({"allowed_by_methods": [
            {"user": "jack", "methods": ["GET"]}, {"user": "jack", "methods": ["POST"]}
        ]});
        check(twice, "POST", "jack", FORBIDDEN);
        let both = |white: &str| json!({"whitelist": [white], "allowed_by_methods": [{"user": "jack", "methods": ["POST"]}]});
        check(both("jack"), "GET", "jack", go);
        check(both("jill"), "POST", "jack", FORBIDDEN);
        check(json!({"allowed_by_methods": []}), "GET", "jack", go);
    }

    #[test]
    fn other_values_and_replies() {
        check(json!({"type": "route_id", "whitelist": ["r"]}), "GET", "jack", "continue");
        let refused = r#"403 {"message":"The service_id is forbidden."}"#;
        check(json!({"type": "service_id", "blacklist": ["s"]}), "GET", "jack", refused);
        check(json!({"type": "consumer_group_id", "whitelist": ["g"]}), "GET", "jack", "continue");
        let no_group = r#"401 {"message":"The request is rejected, please check the consumer_group_id for this request"}"#;
        check(json!({"type": "consumer_group_id", "whitelist": ["g"]}), "GET", "jill", no_group);
        let own = json!({"blacklist": ["jack"], "rejected_code": 451, "rejected_msg": "stay out"});
        check(own, "GET", "jack", r#"451 {"message":"stay out"}"#);
    }

    #[test]
    fn nobody_is_refused_in_both_versions() {
        let conf = || json!({"blacklist": ["jack"]});
        assert_eq!(
            asked(conf(), "GET", Compat::Now, None),
            r#"401 {"message":"The request is rejected, please check the consumer_name for this request"}"#
        );
        assert_eq!(
            asked(conf(), "GET", Compat::V3_2, None),
            r#"401 {"message":"Missing authentication or identity verification."}"#
        );
    }

    #[test]
    fn refuses_bad_configurations() {
        assert_eq!(
            testing::refusal::<Plugin>(json!({})),
            r#"object matches none of the required: ["blacklist"] or ["whitelist"] or ["allowed_by_methods"]"#
        );
        assert_eq!(
            testing::refusal::<Plugin>(json!({"whitelist": {}})),
            r#"property "whitelist" validation failed: expect array to have at least 1 items"#
        );
    }
}
