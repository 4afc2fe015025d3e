//! limit-req: so many requests per second, as a leaky bucket; what comes faster waits or is refused.
//!
//! APISIX: plugins/limit-req.lua, resty.limit.req. Differs from APISIX: policies that need Redis are refused.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::{
    counter::{self, Counters, Scope, Slot},
    limit::{self, KeyType, LimitKey, Policy, Rejection},
};
use crate::plugin::{
    contract,
    env::BuildEnv,
    exchange::Exchange,
    phases::Phases,
    reply::{CONTINUE, Flow},
};

/// Shorter waits are not worth a timer, in seconds.
const SHORTEST_WAIT: f64 = 0.001;

/// The configuration. Options of the Redis policies are checked and otherwise ignored.
#[derive(Debug, Deserialize)]
pub struct Config {
    /// Requests per second.
    pub rate: f64,
    /// Requests beyond the rate that may wait.
    pub burst: f64,
    /// Whose budget a request uses.
    pub key: String,
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
    /// Lets requests within the burst pass at once.
    #[serde(default)]
    pub nodelay: bool,
}

/// The compiled configuration.
pub struct Plugin {
    buckets: Arc<Counters<Bucket>>,
    scope: Scope,
    key: LimitKey,
    rate: f64,
    burst: f64,
    waits: bool,
    rejection: Rejection,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "limit-req";
    const PRIORITY: i32 = 1001;
    const PHASES: Phases = Phases::ACCESS;
    const ENCRYPT: &'static [&'static str] = &["redis_password"];
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "rejected_code": {"type": "integer", "minimum": 200, "maximum": 599, "default": 503},
                "rejected_msg": {"type": "string", "minLength": 1},
                "rate": {"type": "number", "exclusiveMinimum": 0},
                "burst": {"type": "number", "minimum": 0},
                "key": {"type": "string"},
                "key_type": {"type": "string", "enum": ["var", "var_combination"], "default": "var"},
                "policy": {"type": "string", "enum": ["redis", "redis-cluster", "local"], "default": "local"},
                "nodelay": {"type": "boolean", "default": false},
                "allow_degradation": {"type": "boolean", "default": false}
            },
            "required": ["rate", "burst", "key"],
            "if": limit::if_policy("redis"),
            "then": limit::redis_schema(),
            "else": {"if": limit::if_policy("redis-cluster"), "then": limit::redis_cluster_schema()},
            "encrypt_fields": ["redis_password"]
        })
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        config.policy.must_be_local()?;
        Ok(Self {
            buckets: env.carry.state("limit-req", Counters::new),
            scope: Scope::of(env.origin, &format!("{config:?}")),
            key: LimitKey::new(config.key_type, &config.key),
            rate: config.rate,
            burst: config.burst,
            waits: !config.nodelay,
            rejection: Rejection::new(config.rejected_code, config.rejected_msg),
        })
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        if self.key.needs_body()
            && let Err(reply) = x.body().await
        {
            return reply.into();
        }
        let key = self.key.find(self.scope, x);
        let now = counter::now();
        let Some(delay) = self.buckets.update(key, now, |bucket| bucket.incoming(self.rate, self.burst, now))
        else {
            return self.rejection.reply("requests come faster than the rate and burst allow").into();
        };
        if self.waits && delay >= SHORTEST_WAIT {
            tokio::time::sleep(Duration::try_from_secs_f64(delay).unwrap_or(Duration::MAX)).await;
        }
        CONTINUE
    }
}

/// How far a client is ahead of its rate.
#[derive(Default)]
struct Bucket {
    /// In thousandths of a request.
    excess: f64,
    last: u64,
    ends: u64,
}

impl Slot for Bucket {
    fn ends(&self) -> u64 {
        self.ends
    }
}

impl Bucket {
    /// Takes a request in; the seconds that it has to wait, or `None` when it is refused, which changes nothing.
    fn incoming(&mut self, rate: f64, burst: f64, now: u64) -> Option<f64> {
        let fresh = self.ends == 0;
        let leaked = rate * now.saturating_sub(self.last) as f64;
        let excess = if fresh { 0.0 } else { (self.excess - leaked + 1000.0).max(0.0) };
        if excess > burst * 1000.0 {
            return None;
        }
        self.excess = excess;
        self.last = now;
        // From here on it is as if there had been no request.
        self.ends = now.saturating_add(((excess + 1000.0) / rate).ceil() as u64);
        Some(excess / 1000.0 / rate)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::plugin::testing::{self, Kit, Setup};

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
        let missing = |name| format!("property \"{name}\" is required");
        check_refused(json!({}), &missing("rate"));
        check_refused(json!({"rate": 1}), &missing("burst"));
        // APISIX happens to look at these two before it misses `rate`.
        check_refused(
            json!({"rejected_code": 199}),
            "property \"rejected_code\" validation failed: expected 199 to be at least 200",
        );
        check_refused(
            json!({"rejected_msg": ""}),
            "property \"rejected_msg\" validation failed: string too short, expected at least 1, got 0",
        );
        check_refused(json!({"key": true}), &missing("rate"));
        check_refused(json!({"rate": 1, "burst": 0}), &missing("key"));
        check_refused(
            json!({"rate": 0, "burst": 0, "key": "remote_addr"}),
            "property \"rate\" validation failed: expected 0 to be greater than 0",
        );
        check_refused(
            json!({"rate": 1, "burst": 0, "key": "remote_addr", "policy": "redis"}),
            "then clause did not match",
        );
        let redis = json!({"rate": 1, "burst": 0, "key": "a", "policy": "redis", "redis_host": "127.0.0.1"});
        assert!(testing::refusal::<Plugin>(redis).contains("use \"policy\": \"local\""));
    }

    /// Requests at these milliseconds, and how long each waits in milliseconds.
    #[track_caller]
    fn check(rate: f64, burst: f64, requests: &[(u64, Option<u64>)]) {
        let buckets = Counters::<Bucket>::new();
        for (at, expected) in requests {
            let now = 1_000_000 + at;
            let delay = buckets.update(1, now, |bucket| bucket.incoming(rate, burst, now));
            assert_eq!(delay.map(|delay| (delay * 1000.0).round() as u64), *expected, "request at {at} ms");
        }
    }

    #[test]
    fn leaks() {
        check(
            1.0,
            0.0,
            &[(0, Some(0)), (0, None), (500, None), (1000, Some(0)), (1999, None), (2000, Some(0))],
        );
        check(
            10.0,
            2.0,
            &[(0, Some(0)), (0, Some(100)), (0, Some(200)), (0, None), (100, Some(200)), (100, None)],
        );
        check(10.0, 2.0, &[(0, Some(0)), (50, Some(50)), (1000, Some(0)), (1000, Some(100))]);
        check(0.5, 0.5, &[(0, Some(0)), (1000, Some(1000)), (1000, None), (5000, Some(0))]);
    }

    proptest! {
        #[test]
        fn an_ended_bucket_is_as_good_as_none(rate in 0.1f64..50.0, burst in 0.0f64..20.0, gaps in prop::collection::vec(0u64..900, 1..60)) {
            let mut kept = Bucket::default();
            let mut forgotten = Bucket::default();
            let mut now = 1_000;
            for gap in gaps {
                now += gap;
                if forgotten.ends <= now {
                    forgotten = Bucket::default();
                }
                let (one, other) = (kept.incoming(rate, burst, now), forgotten.incoming(rate, burst, now));
                prop_assert_eq!(one.is_some(), other.is_some());
                prop_assert!((one.unwrap_or(0.0) - other.unwrap_or(0.0)).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn refuses_and_says_so() {
        let conf = |message: Value| {
            let mut conf = json!({"rate": 0.1, "burst": 0, "key": "arg_a", "rejected_code": 429});
            if !message.is_null() {
                conf["rejected_msg"] = message;
            }
            conf
        };
        for (message, expected) in [(Value::Null, "429"), (json!("slow"), r#"429 {"error_msg":"slow"}"#)] {
            let plugin = testing::plugin::<Plugin>(conf(message));
            assert_eq!(Kit::get("/?a=1", &[]).access(&plugin), "continue");
            assert_eq!(Kit::get("/?a=2", &[]).access(&plugin), "continue");
            assert_eq!(Kit::get("/?a=1", &[]).access(&plugin), expected);
            assert_eq!(Kit::get("/", &[]).client("10.0.0.1").access(&plugin), "continue");
            assert_eq!(Kit::get("/", &[]).client("10.0.0.2").access(&plugin), "continue");
            assert_eq!(Kit::get("/", &[]).client("10.0.0.1").access(&plugin), expected);
        }
    }

    #[test]
    fn waits_unless_told_not_to() {
        for (nodelay, rate, least) in [(false, 10.0, 95), (true, 0.01, 0)] {
            let conf = json!({"rate": rate, "burst": 1, "key": "remote_addr", "nodelay": nodelay});
            let plugin = testing::plugin::<Plugin>(conf);
            let began = Instant::now();
            for _ in 0..2 {
                assert_eq!(Kit::get("/", &[]).access(&plugin), "continue");
            }
            let took = began.elapsed().as_millis();
            // The slow rate would be a wait of more than a minute.
            assert!((least..60_000).contains(&took), "{took} ms");
        }
    }

    #[test]
    fn an_equal_configuration_on_the_same_resource_goes_on() {
        let conf = json!({"rate": 0.1, "burst": 0, "key": "remote_addr"});
        let setup = Setup::new();
        let first: Plugin = setup.build(conf.clone()).unwrap();
        assert_eq!(Kit::get("/", &[]).access(&first), "continue");
        let again: Plugin = setup.build(conf.clone()).unwrap();
        assert_eq!(Kit::get("/", &[]).access(&again), "503");
        let setup = setup.origin("consumer", "jack");
        let other: Plugin = setup.build(conf).unwrap();
        assert_eq!(Kit::get("/", &[]).access(&other), "continue");
    }
}
