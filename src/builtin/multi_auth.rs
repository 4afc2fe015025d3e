//! multi-auth: several ways of authenticating, of which one has to succeed.
//!
//! APISIX: plugins/multi-auth.lua. The plugins are tried in their order; the first that recognises the request ends it.
//!
//! Differs from APISIX: a challenge of a plugin that failed is not sent when a later one succeeds; an element of
//! `auth_plugins` that is no object is refused (there it fails when a request comes).

use http::header::WWW_AUTHENTICATE;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::plugin::{
    contract::{self, Hooks},
    credentials::Place,
    def::SchemaType,
    env::{BuildEnv, CheckEnv},
    exchange::Exchange,
    phases::Phases,
    reply::{CONTINUE, Class, Flow, Reply, ReplyBody},
};

/// The configuration.
#[derive(Deserialize)]
pub struct Config {
    /// Plugins by name, with the configuration they would have on the route.
    pub auth_plugins: Vec<Map<String, Value>>,
}

/// The compiled configuration.
pub struct Plugin {
    ways: Vec<(&'static str, Box<dyn Hooks>)>,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "multi-auth";
    const PRIORITY: i32 = 2600;
    const PHASES: Phases = Phases::REWRITE;
    const RUNS_AUTH: bool = true;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "title": "work with route or service object",
            "properties": {"auth_plugins": {"type": "array", "minItems": 2}},
            "required": ["auth_plugins"]
        })
    }

    fn check(conf: &Value, env: &CheckEnv<'_>) -> Result<(), String> {
        for one in conf.get("auth_plugins").and_then(Value::as_array).into_iter().flatten() {
            let plugins = one.as_object().ok_or("an element of auth_plugins is no object")?;
            for (name, conf) in plugins {
                let def = env.registry.find(name).ok_or_else(|| format!("{name} plugin did not found"))?;
                if !def.is_auth() {
                    return Err(format!("{name} plugin is not supported"));
                }
                def.check(conf, SchemaType::Route, env)
                    .map_err(|e| format!("plugin {name} check schema failed: {e}"))?;
            }
        }
        Ok(())
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let mut ways = Vec::new();
        for (name, conf) in config.auth_plugins.into_iter().flatten() {
            let def = env.registry.find(&name).ok_or_else(|| format!("{name} plugin did not found"))?;
            let env = BuildEnv { metadata: None, attr: env.registry.attr(&name), ..*env };
            ways.push((def.name, def.build(conf, &env)?));
        }
        Ok(Self { ways })
    }

    fn credentials(&self, tell: &mut dyn FnMut(Place<'_>)) {
        self.ways.iter().for_each(|(_, way)| way.credentials(tell));
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        let mut reasons = String::new();
        let mut challenge = None;
        // Of several reasons, one that is about credentials that were there.
        let mut class = Class::Missing;
        for (name, way) in &self.ways {
            let Flow::Break(reply) = way.rewrite(x).await else { return CONTINUE };
            if !reasons.is_empty() {
                reasons.push_str("; ");
            }
            reasons.push_str(&format!("{name}: {} {}", reply.status, why(&reply)));
            if class == Class::Missing {
                class = reply.class();
            }
            let found = reply.headers.into_iter().find(|(header, _)| *header == WWW_AUTHENTICATE);
            challenge = found.or(challenge);
        }
        let reply = Reply::message(401, "Authorization Failed").because(reasons).classed(class);
        match challenge {
            Some((name, value)) => reply.with_header(name, value),
            None => reply,
        }
        .into()
    }
}

/// What a plugin had against the request, for the log.
fn why(reply: &Reply) -> &str {
    let told = match &reply.body {
        ReplyBody::Json(body) => body.get("message").and_then(Value::as_str),
        _ => None,
    };
    reply.reason.as_deref().or(told).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        builtin::{basic_auth, jwt_auth, key_auth},
        plugin::testing::{self, Kit},
    };

    const NO: &str = r#"401 {"message":"Authorization Failed"}"#;

    fn conf() -> Value {
        json!({"auth_plugins": [{"basic-auth": {}}, {"key-auth": {"hide_credentials": true}, "jwt-auth": {}}]})
    }

    fn kit(headers: &[(&str, &str)]) -> Kit {
        Kit::get("/", headers)
            .known::<basic_auth::Plugin>("jill", json!({"username": "jill", "password": "hill"}))
            .known::<key_auth::Plugin>("jack", json!({"key": "k-jack"}))
            .known::<jwt_auth::Plugin>("john", json!({"key": "john", "secret": "s"}))
    }

    #[test]
    fn counts_by_the_credentials_that_were_there() {
        let check = |headers: &[(&str, &str)], class: Class| {
            let plugin: Plugin = testing::plugin(conf());
            kit(headers).run(async |x| {
                let Flow::Break(reply) = contract::Plugin::rewrite(&plugin, x).await else {
                    panic!("{headers:?}")
                };
                assert_eq!(reply.class(), class, "{headers:?}");
            });
        };
        check(&[], Class::Missing);
        check(&[("apikey", "bad")], Class::Unknown);
        check(&[("Authorization", "Basic amlsbDpiYWQ=")], Class::Wrong);
    }

    /// What is said, who is attached, and the challenge.
    #[track_caller]
    fn check(headers: &[(&str, &str)], said: &str, challenge: Option<&str>) {
        let plugin: Plugin = testing::plugin(conf());
        kit(headers).run(async |x| {
            let flow = contract::Plugin::rewrite(&plugin, x).await;
            let answer = testing::answer(&flow);
            let who = x.consumer().map_or("nobody", |consumer| &consumer.username);
            assert_eq!(if answer == "continue" { who } else { &answer }, said, "{headers:?}");
            let shown = testing::response_header(&flow, x, "www-authenticate");
            assert_eq!(shown.as_deref(), challenge, "{headers:?}");
            if let Flow::Break(reply) = flow {
                let reason = reply.reason.unwrap_or_default();
                assert!(reason.contains("basic-auth: 401") && reason.contains("key-auth: 401"), "{reason}");
            }
        });
    }

    #[test]
    fn one_way_is_enough() {
        testing::compile_schemas::<Plugin>();
        check(&[("Authorization", "Basic amlsbDpoaWxs")], "jill", None);
        check(&[("apikey", "k-jack")], "jack", None);
        check(&[("apikey", "k-jack"), ("Authorization", "Basic amlsbDpiYWQ=")], "jack", None);
        check(&[("apikey", "k-jack"), ("Authorization", "Basic amlsbDpoaWxs")], "jill", None);
        check(&[], NO, Some("Bearer realm=\"jwt\""));
        check(&[("apikey", "bad")], NO, Some("Bearer realm=\"jwt\""));
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = |list: Value| testing::refusal::<Plugin>(json!({"auth_plugins": list}));
        assert_eq!(testing::refusal::<Plugin>(json!({})), r#"property "auth_plugins" is required"#);
        assert_eq!(
            refusal(json!([{"key-auth": {}}])),
            r#"property "auth_plugins" validation failed: expect array to have at least 2 items"#
        );
        assert_eq!(refusal(json!([{"key-auth": {}}, {"foo": {}}])), "foo plugin did not found");
        assert_eq!(refusal(json!([{"cors": {}}, {"key-auth": {}}])), "cors plugin is not supported");
        assert_eq!(
            refusal(json!([{"key-auth": {"query": 1}}, {"basic-auth": {}}])),
            r#"plugin key-auth check schema failed: property "query" validation failed: wrong type: expected string, got number"#
        );
        assert_eq!(refusal(json!(["key-auth", {}])), "an element of auth_plugins is no object");
        assert_eq!(refusal(json!([{"multi-auth": {"auth_plugins": [{}, {}]}}, {}])), "");
    }
}
