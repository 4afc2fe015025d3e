//! limit-conn: so many requests at the same time; some more wait, the rest is refused.
//!
//! APISIX: plugins/limit-conn.lua, limit-conn/init.lua, resty.limit.conn. As today's APISIX makes its limiter anew
//! for every request, a wait always follows from `default_conn_delay` and nothing is learned from latencies:
//! `only_use_default_delay` has no effect there, and none here. Differs from APISIX: policies that need Redis are
//! refused. Invariant: whatever becomes of a request, what it occupies is given back.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::{
    counter::{self, Counters, Scope, Slot},
    limit::{self, Amount, AmountConfig, KeyType, Least, LimitKey, Policy, Rejection},
};
use crate::plugin::{
    contract,
    env::BuildEnv,
    exchange::Exchange,
    fingerprint::Fingerprint,
    phases::Phases,
    reply::{CONTINUE, Flow, Reply},
};

/// Shorter waits are not worth a timer, in seconds.
const SHORTEST_WAIT: f64 = 0.001;

/// The configuration. Options of the Redis policies are checked and otherwise ignored.
#[derive(Debug, Deserialize)]
pub struct Config {
    /// Requests at the same time that do not wait.
    pub conn: Option<AmountConfig>,
    /// Requests beyond that wait.
    pub burst: Option<AmountConfig>,
    /// Seconds that a request waits for every `conn` requests before it.
    pub default_conn_delay: f64,
    /// Whose budget a request uses.
    pub key: Option<String>,
    /// How `key` is meant.
    #[serde(default)]
    pub key_type: KeyType,
    /// Where counters live.
    #[serde(default)]
    pub policy: Policy,
    /// Status of a refusal.
    #[serde(default = "limit::default_code")]
    pub rejected_code: u16,
    /// Text of a refusal.
    pub rejected_msg: Option<String>,
    /// Lets requests pass when they cannot be counted.
    #[serde(default)]
    pub allow_degradation: bool,
    /// Several limits at once, instead of `conn`, `burst` and `key`.
    pub rules: Option<Vec<RuleConfig>>,
    /// Keeps equal actions of a `workflow` apart.
    #[serde(rename = "_vid")]
    pub vid: Option<Value>,
}

/// One of several limits.
#[derive(Debug, Deserialize)]
pub struct RuleConfig {
    /// Requests at the same time that do not wait.
    pub conn: AmountConfig,
    /// Requests beyond that wait.
    pub burst: AmountConfig,
    /// A text with variables; the rule applies when at least one has a value.
    pub key: String,
}

/// The compiled configuration.
pub struct Plugin {
    connections: Arc<Counters<Open>>,
    scope: Scope,
    rules: Rules,
    delay: f64,
    rejection: Rejection,
    degrades: bool,
    needs_body: bool,
}

enum Rules {
    One(Rule),
    Many(Vec<Rule>),
}

struct Rule {
    conn: Amount,
    burst: Amount,
    key: LimitKey,
}

/// What one request may under one rule.
struct Claim {
    key: Fingerprint,
    conn: u64,
    burst: u64,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "limit-conn";
    const PRIORITY: i32 = 1003;
    const PHASES: Phases = Phases::ACCESS.and(Phases::LOG);
    const ENCRYPT: &'static [&'static str] = &["redis_password"];
    type Config = Config;

    fn schema() -> Value {
        schema()
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        config.policy.must_be_local()?;
        let scope = Scope::of(env.origin, &format!("{config:?}"));
        let rules = Rules::compile(config.rules, config.conn, config.burst, config.key, config.key_type)?;
        Ok(Self {
            connections: env.carry.state("limit-conn", Counters::new),
            scope,
            needs_body: rules.needs_body(),
            rules,
            delay: config.default_conn_delay,
            rejection: Rejection::new(config.rejected_code, config.rejected_msg),
            degrades: config.allow_degradation,
        })
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        if self.needs_body
            && let Err(reply) = x.body().await
        {
            return reply.into();
        }
        match &self.rules {
            Rules::One(rule) => match rule.claim(rule.key.find(self.scope, x), x) {
                Ok(claim) => self.enter(&claim, x).await,
                Err(why) => self.degrade(&why),
            },
            Rules::Many(rules) => {
                let claims = self.claims(rules, x);
                if claims.is_empty() {
                    return self.degrade("no rule applies");
                }
                for claim in &claims {
                    self.enter(claim, x).await?;
                }
                CONTINUE
            }
        }
    }

    fn log(&self, x: &mut Exchange<'_>) {
        x.take_local::<Vec<Permit>>();
    }
}

impl Plugin {
    /// A rule that the request has no numbers or no key for does not apply. APISIX: `get_rules`.
    fn claims(&self, rules: &[Rule], x: &Exchange<'_>) -> Vec<Claim> {
        let claim = |rule: &Rule| {
            let key = rule.key.find_own(self.scope, x)?;
            rule.claim(key, x).ok()
        };
        rules.iter().filter_map(claim).collect()
    }

    async fn enter(&self, claim: &Claim, x: &mut Exchange<'_>) -> Flow {
        let room = claim.conn.saturating_add(claim.burst);
        let Some(open) = Permit::take(&self.connections, claim.key, room, x) else {
            return self.rejection.reply("too many requests at once").into();
        };
        if open <= claim.conn {
            return CONTINUE;
        }
        let delay = self.delay * ((open - 1) / claim.conn.max(1)) as f64;
        if delay >= SHORTEST_WAIT {
            tokio::time::sleep(Duration::try_from_secs_f64(delay).unwrap_or(Duration::MAX)).await;
        }
        CONTINUE
    }

    fn degrade(&self, why: &str) -> Flow {
        if self.degrades {
            return CONTINUE;
        }
        Reply::status(500).because(format!("failed to get limit conn rules: {why}")).into()
    }
}

impl Rules {
    fn compile(
        rules: Option<Vec<RuleConfig>>,
        conn: Option<AmountConfig>,
        burst: Option<AmountConfig>,
        key: Option<String>,
        kind: KeyType,
    ) -> Result<Self, String> {
        if let Some(rules) = rules {
            let compile = |rule: RuleConfig| Rule {
                conn: rule.conn.into(),
                burst: rule.burst.into(),
                key: LimitKey::new(KeyType::VarCombination, &rule.key),
            };
            return Ok(Self::Many(rules.into_iter().map(compile).collect()));
        }
        let (Some(conn), Some(burst), Some(key)) = (conn, burst, key) else {
            return Err("conn, burst and key are required".into());
        };
        Ok(Self::One(Rule { conn: conn.into(), burst: burst.into(), key: LimitKey::new(kind, &key) }))
    }

    fn needs_body(&self) -> bool {
        match self {
            Self::One(rule) => rule.needs_body(),
            Self::Many(rules) => rules.iter().any(Rule::needs_body),
        }
    }
}

impl Rule {
    fn needs_body(&self) -> bool {
        self.key.needs_body() || self.conn.needs_body() || self.burst.needs_body()
    }

    fn claim(&self, key: Fingerprint, x: &Exchange<'_>) -> Result<Claim, String> {
        let conn = self.conn.find(Least::One, x)?;
        let burst = self.burst.find(Least::Zero, x)?;
        Ok(Claim { key, conn, burst })
    }
}

/// Requests under way.
#[derive(Default)]
struct Open(u64);

impl Slot for Open {
    fn ends(&self) -> u64 {
        if self.0 > 0 { u64::MAX } else { 0 }
    }
}

/// The place that a request occupies. Given back in the log phase, or when the request is dropped before it.
struct Permit {
    connections: Arc<Counters<Open>>,
    key: Fingerprint,
}

impl Permit {
    /// Occupies a place; how many are occupied then, or `None` if there is no room.
    fn take(
        connections: &Arc<Counters<Open>>,
        key: Fingerprint,
        room: u64,
        x: &mut Exchange<'_>,
    ) -> Option<u64> {
        let open = connections.update(key, counter::now(), |open| {
            let fits = open.0 < room;
            open.0 += u64::from(fits);
            fits.then_some(open.0)
        })?;
        x.local::<Vec<Permit>>().push(Permit { connections: connections.clone(), key });
        Some(open)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.connections.update(self.key, counter::now(), |open| open.0 = open.0.saturating_sub(1));
    }
}

fn conn_schema() -> Value {
    json!({"oneOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string"}]})
}

fn burst_schema() -> Value {
    json!({"oneOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]})
}

fn with_key_ttl(mut schema: Value) -> Value {
    schema["properties"]["key_ttl"] = json!({"type": "integer", "default": 3600});
    schema
}

fn schema() -> Value {
    let rule = json!({
        "type": "object",
        "properties": {"conn": conn_schema(), "burst": burst_schema(), "key": {"type": "string"}},
        "required": ["conn", "burst", "key"]
    });
    json!({
        "type": "object",
        "properties": {
            "conn": conn_schema(),
            "burst": burst_schema(),
            "default_conn_delay": {"type": "number", "exclusiveMinimum": 0},
            "only_use_default_delay": {"type": "boolean", "default": false},
            "key": {"type": "string"},
            "key_type": {"type": "string", "enum": ["var", "var_combination"], "default": "var"},
            "policy": {"type": "string", "enum": ["redis", "redis-cluster", "local"], "default": "local"},
            "rejected_code": {"type": "integer", "minimum": 200, "maximum": 599, "default": 503},
            "rejected_msg": {"type": "string", "minLength": 1},
            "allow_degradation": {"type": "boolean", "default": false},
            "rules": {"type": "array", "items": rule}
        },
        "oneOf": [
            {"required": ["conn", "burst", "default_conn_delay", "key"]},
            {"required": ["default_conn_delay", "rules"]}
        ],
        "if": limit::if_policy("redis"),
        "then": with_key_ttl(limit::redis_schema()),
        "else": {
            "if": limit::if_policy("redis-cluster"),
            "then": with_key_ttl(limit::redis_cluster_schema())
        },
        "encrypt_fields": ["redis_password"]
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::plugin::{
        contract::Plugin as _,
        testing::{self, Kit},
    };

    #[test]
    fn schemas_compile() {
        testing::compile_schemas::<Plugin>();
    }

    #[track_caller]
    fn check_refused(conf: Value, expected: &str) {
        assert_eq!(testing::refusal::<Plugin>(conf), expected);
    }

    #[test]
    fn wrong_configurations() {
        check_refused(json!({}), "value should match only one schema, but matches none");
        check_refused(json!({"conn": 1, "burst": 0}), "value should match only one schema, but matches none");
        let none = "validation failed: value should match only one schema, but matches none";
        let conf = |conn: Value, burst: Value| json!({"conn": conn, "burst": burst, "default_conn_delay": 0.1, "key": "a"});
        check_refused(conf(json!(0), json!(0)), &format!("property \"conn\" {none}"));
        check_refused(conf(json!(1), json!(-1)), &format!("property \"burst\" {none}"));
        check_refused(conf(json!("$arg_a"), json!("$arg_b")), "");
        let mut redis = conf(json!(1), json!(0));
        redis["policy"] = json!("redis");
        check_refused(redis.clone(), "then clause did not match");
        redis["redis_host"] = json!("127.0.0.1");
        assert!(testing::refusal::<Plugin>(redis).contains("use \"policy\": \"local\""));
    }

    fn conf(more: Value) -> Value {
        let mut conf = json!({"default_conn_delay": 0.001, "rejected_code": 429});
        let members = more.as_object().cloned().unwrap_or_default();
        conf.as_object_mut().unwrap().extend(members);
        conf
    }

    /// What requests get that are all under way at the same time.
    #[track_caller]
    fn check(plugin: &Plugin, kit: &Kit, expected: &[&str]) {
        let fared = kit.run(async |x| {
            let mut fared = Vec::new();
            for _ in expected {
                fared.push(testing::answer(&plugin.access(x).await));
            }
            fared
        });
        assert_eq!(fared, expected);
        assert!(
            plugin.connections.update(plugin.scope.key("127.0.0.1"), 0, |open| open.0 == 0),
            "all is given back"
        );
    }

    #[test]
    fn refuses_beyond_the_burst() {
        let plugin = testing::plugin::<Plugin>(conf(json!({"conn": 1, "burst": 1, "key": "remote_addr"})));
        for _ in 0..2 {
            check(&plugin, &Kit::get("/", &[]), &["continue", "continue", "429", "429"]);
        }
        let plugin = testing::plugin::<Plugin>(conf(
            json!({"conn": 2, "burst": 0, "key": "$http_x_none", "key_type": "var_combination", "rejected_msg": "busy"}),
        ));
        check(&plugin, &Kit::get("/", &[]), &["continue", "continue", r#"429 {"error_msg":"busy"}"#]);
    }

    #[test]
    fn the_log_phase_gives_back() {
        let plugin = testing::plugin::<Plugin>(conf(json!({"conn": 1, "burst": 0, "key": "remote_addr"})));
        Kit::get("/", &[]).run(async |x| {
            for _ in 0..3 {
                assert_eq!(testing::answer(&plugin.access(x).await), "continue");
                assert_eq!(testing::answer(&plugin.access(x).await), "429");
                plugin.log(x);
            }
        });
    }

    #[test]
    fn waits_within_the_burst() {
        let conf = json!({"conn": 1, "burst": 5, "default_conn_delay": 0.05, "key": "remote_addr"});
        let plugin = testing::plugin::<Plugin>(conf);
        Kit::get("/", &[]).run(async |x| {
            for wait in [0, 50, 100] {
                let began = Instant::now();
                assert_eq!(testing::answer(&plugin.access(x).await), "continue");
                let took = began.elapsed().as_millis();
                assert!(took >= wait, "{took} ms instead of {wait}");
            }
        });
    }

    #[test]
    fn numbers_from_the_request() {
        let dynamic = conf(json!({"conn": "${arg_c ?? 1}", "burst": "${arg_b ?? 0}", "key": "remote_addr"}));
        let plugin = testing::plugin::<Plugin>(dynamic.clone());
        check(&plugin, &Kit::get("/", &[]), &["continue", "429"]);
        check(&plugin, &Kit::get("/?c=2", &[]), &["continue", "continue", "429"]);
        check(&plugin, &Kit::get("/?c=1&b=1", &[]), &["continue", "continue", "429"]);
        for target in ["/?c=0", "/?c=-1", "/?c=1.5", "/?b=0.5", "/?b=-1", "/?c=9007199254740993"] {
            check(&plugin, &Kit::get(target, &[]), &["500"]);
        }
        let mut lenient = dynamic;
        lenient["allow_degradation"] = json!(true);
        check(&testing::plugin::<Plugin>(lenient), &Kit::get("/?c=0", &[]), &["continue", "continue"]);
    }

    #[test]
    fn several_rules() {
        let rules = json!({"rules": [
            {"conn": 1, "burst": 0, "key": "${http_user}"},
            {"conn": "${http_c ?? 2}", "burst": 0, "key": "$http_project"}
        ]});
        let plugin = testing::plugin::<Plugin>(conf(rules));
        check(&plugin, &Kit::get("/", &[("user", "jack")]), &["continue", "429"]);
        check(&plugin, &Kit::get("/", &[("project", "apisix")]), &["continue", "continue", "429"]);
        check(&plugin, &Kit::get("/", &[("user", "jack"), ("project", "apisix")]), &["continue", "429"]);
        // A rule without a valid number does not apply; that none applies is an error.
        check(&plugin, &Kit::get("/", &[("project", "apisix"), ("c", "0")]), &["500"]);
        check(&plugin, &Kit::get("/", &[]), &["500"]);
    }
}
