//! authz-casbin: a Casbin model and its policy say which user may do what where.
//!
//! APISIX: plugins/authz-casbin.lua. Invariant: without a decision nobody passes; the user of a request is whatever its
//! header says, so another plugin must vouch for that header.
//!
//! Differs from APISIX: files are read, and models checked, when the configuration is compiled, not at the first request;
//! a header that is there several times is one name, joined by commas; `globMatch` and `ipMatch` do not exist.

use std::{
    fs,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use casbin::{CoreApi, DefaultModel, Enforcer, StringAdapter};
use http::HeaderName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::seen::Seen;
use crate::plugin::{
    contract,
    env::{BuildEnv, CheckEnv},
    exchange::Exchange,
    phases::Phases,
    reply::{CONTINUE, Class, Flow, Reply},
};

/// Decisions that are remembered, each way: a policy is immutable, so they stay true.
const REMEMBERED: usize = 4096;

/// The configuration.
#[derive(Deserialize)]
pub struct Config {
    /// A file with the model.
    pub model_path: Option<String>,
    /// A file with the policy.
    pub policy_path: Option<String>,
    /// The model itself.
    pub model: Option<String>,
    /// The policy itself.
    pub policy: Option<String>,
    /// The header with the user's name.
    pub username: Option<String>,
}

/// The compiled configuration.
pub struct Plugin {
    /// `None`: a name that no header can have.
    username: Option<HeaderName>,
    /// `None`: there is neither a model here nor in the metadata.
    rules: Option<Rules>,
}

struct Rules {
    enforcer: Enforcer,
    allowed: Seen,
    denied: Seen,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "authz-casbin";
    const PRIORITY: i32 = 2560;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "model_path": {"type": "string"},
                "policy_path": {"type": "string"},
                "model": {"type": "string"},
                "policy": {"type": "string"},
                "username": {"type": "string"}
            },
            "oneOf": [
                {"required": ["model_path", "policy_path", "username"]},
                {"required": ["model", "policy", "username"]}
            ]
        })
    }

    fn metadata_schema() -> Option<Value> {
        Some(json!({
            "type": "object",
            "properties": {"model": {"type": "string"}, "policy": {"type": "string"}},
            "required": ["model", "policy"]
        }))
    }

    fn pardons(conf: &Value, env: &CheckEnv<'_>) -> bool {
        env.has_metadata && conf.get("username").is_some()
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let shared = |name: &str| env.metadata.and_then(|metadata| metadata.get(name)?.as_str());
        let rules = match (&config.model_path, &config.policy_path, &config.model, &config.policy) {
            (Some(model), Some(policy), ..) => Some(Rules::new(&read(model)?, &read(policy)?)?),
            (_, _, Some(model), Some(policy)) => Some(Rules::new(model, policy)?),
            _ => match (shared("model"), shared("policy")) {
                (Some(model), Some(policy)) => Some(Rules::new(model, policy)?),
                _ => None,
            },
        };
        let username = config.username.and_then(|name| HeaderName::try_from(name).ok());
        Ok(Self { username, rules })
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        let Some(rules) = &self.rules else {
            let reply = Reply::status(503).because("not enough configuration to create enforcer");
            return reply.classed(Class::Internal).into();
        };
        let user = self.user(x);
        match rules.allow(&user, x.path(), x.method().as_str()) {
            Ok(true) => CONTINUE,
            Ok(false) => {
                let reason = format!("the policy does not allow it to {user}");
                Reply::message(403, "Access Denied").because(reason).into()
            }
            Err(reason) => Reply::status(500).because(reason).into(),
        }
    }
}

impl Plugin {
    fn user(&self, x: &Exchange<'_>) -> String {
        let Some(name) = &self.username else { return "anonymous".into() };
        let values = x.session.req_header().headers.get_all(name).iter();
        let values: Vec<_> = values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        if values.is_empty() { "anonymous".into() } else { values.join(", ") }
    }
}

impl Rules {
    fn new(model: &str, policy: &str) -> Result<Self, String> {
        let enforcer = ready(async {
            let model = DefaultModel::from_str(model).await?;
            Enforcer::new(model, StringAdapter::new(policy)).await
        });
        let wrong = |error: casbin::Error| format!("the Casbin model or policy is wrong: {error}");
        let enforcer = enforcer?.map_err(wrong)?;
        // Casbin takes an empty model for one, and finds out when it has to decide.
        enforcer.enforce(("anonymous".to_owned(), "/".to_owned(), "GET".to_owned())).map_err(wrong)?;
        Ok(Self { enforcer, allowed: Seen::new(REMEMBERED), denied: Seen::new(REMEMBERED) })
    }

    fn allow(&self, user: &str, path: &str, method: &str) -> Result<bool, String> {
        let request = [user.as_bytes(), path.as_bytes(), method.as_bytes()];
        let (allowed, denied) = (self.allowed.fingerprint(&request), self.denied.fingerprint(&request));
        if self.allowed.has(&allowed) {
            return Ok(true);
        }
        if self.denied.has(&denied) {
            return Ok(false);
        }
        let decision = self.enforcer.enforce((user.to_owned(), path.to_owned(), method.to_owned()));
        let decision = decision.map_err(|error| format!("the Casbin model cannot decide: {error}"))?;
        if decision {
            self.allowed.add(&allowed);
        } else {
            self.denied.add(&denied);
        }
        Ok(decision)
    }
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path} cannot be read: {error}"))
}

/// The outcome of a future that never waits: everything it reads is in memory already.
fn ready<T>(future: impl Future<Output = T>) -> Result<T, String> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Ok(outcome),
        Poll::Pending => Err("the Casbin model cannot be read at once".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{self, Kit, Setup};

    const MODEL: &str = "[request_definition]\nr = sub, obj, act\n\n[policy_definition]\np = sub, obj, act\n\n\
        [role_definition]\ng = _, _\n\n[policy_effect]\ne = some(where (p.eft == allow))\n\n\
        [matchers]\nm = (g(r.sub, p.sub) || keyMatch(r.sub, p.sub)) && keyMatch(r.obj, p.obj) && keyMatch(r.act, p.act)\n";
    const POLICY: &str = "p, *, /, GET\np, admin, *, *\ng, alice, admin\n";

    fn conf() -> Value {
        json!({"model": MODEL, "policy": POLICY, "username": "user"})
    }

    #[track_caller]
    fn check(plugin: &Plugin, request: &str, headers: &[(&str, &str)], said: &str) {
        let (method, target) = request.split_once(' ').unwrap();
        let mut raw = format!("{method} {target} HTTP/1.1\r\nHost: a.com\r\n");
        for (name, value) in headers {
            raw.push_str(&format!("{name}: {value}\r\n"));
        }
        // Twice: what was decided is remembered.
        for _ in 0..2 {
            assert_eq!(Kit::new(format!("{raw}\r\n")).rewrite(plugin), said, "{request} {headers:?}");
        }
    }

    #[test]
    fn schemas_compile() {
        testing::compile_schemas::<Plugin>();
    }

    #[test]
    fn decides() {
        let plugin: Plugin = testing::plugin(conf());
        let no = r#"403 {"message":"Access Denied"}"#;
        check(&plugin, "GET /", &[], "continue");
        check(&plugin, "GET /res1", &[], no);
        check(&plugin, "GET /res1", &[("user", "bob")], no);
        check(&plugin, "GET /res1", &[("User", "alice")], "continue");
        check(&plugin, "POST /res1", &[("user", "admin")], "continue");
        check(&plugin, "POST /", &[("user", "bob")], no);
        check(&plugin, "POST /", &[("user", "alice"), ("user", "bob")], no);
    }

    #[test]
    fn metadata_stand_in() {
        let metadata = json!({"model": MODEL, "policy": POLICY});
        let plugin: Plugin = Setup::new().metadata(metadata).build(json!({"username": "user"})).unwrap();
        check(&plugin, "GET /res1", &[("user", "alice")], "continue");
        check(&plugin, "GET /res1", &[], r#"403 {"message":"Access Denied"}"#);
        let config =
            Config { model_path: None, policy_path: None, model: None, policy: None, username: None };
        let plugin = contract::Plugin::build(config, &Setup::new().build_env()).unwrap();
        check(&plugin, "GET /", &[], "503");
    }

    #[test]
    fn reads_files() {
        let home = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = home.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (model, policy) = (file("model.conf", MODEL), file("policy.csv", POLICY));
        let conf = |model: &str| json!({"model_path": model, "policy_path": policy, "username": "user"});
        check(&testing::plugin(conf(&model)), "GET /res1", &[("user", "alice")], "continue");
        assert!(testing::refusal::<Plugin>(conf("no/such/file")).starts_with("no/such/file cannot be read"));
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = testing::refusal::<Plugin>;
        for (member, _) in conf().as_object().unwrap() {
            let mut lacking = conf();
            lacking.as_object_mut().unwrap().remove(member);
            assert_ne!(refusal(lacking), "", "{member}");
        }
        for model in ["", "[matchers]\nm = (", "[request_definition]\nr = sub", "\0"] {
            let mut bad = conf();
            bad["model"] = model.into();
            assert!(refusal(bad).starts_with("the Casbin model or policy is wrong"), "{model}");
        }
    }
}
