//! limit-count: so many requests in so much time.
//!
//! APISIX: plugins/limit-count.lua, limit-count/init.lua, limit-count-local.lua, sliding-window. Counters live in
//! this process; a configuration that did not change on its resource goes on counting, a changed one begins anew.
//! Differs from APISIX: policies that need Redis are refused, and a `group` may take its count from the request.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use http::HeaderValue;
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::{
    counter::{self, Counters, Scope, Slot},
    header::Name,
    limit::{self, Amount, AmountConfig, KeyType, Least, LimitKey, Policy, Rejection},
};
use crate::{
    plugin::{
        contract,
        env::{BuildEnv, CheckEnv},
        exchange::Exchange,
        fingerprint::{Fingerprint, Fingerprinter},
        phases::Phases,
        reply::{CONTINUE, Flow, Reply},
    },
    vars::lua,
};

const HEADERS: [(&str, &str); 3] = [
    ("limit_header", "X-RateLimit-Limit"),
    ("remaining_header", "X-RateLimit-Remaining"),
    ("reset_header", "X-RateLimit-Reset"),
];
const BOTH: &str = "count/time_window and rules cannot be specified at the same time";
/// APISIX's `NO_DELAYED_SYNC`.
const NO_DELAYED_SYNC: f64 = -1.0;
/// Numbers from here on have an exponent in Lua.
const LUA_EXPONENT: u64 = 100_000_000_000_000;

/// The configuration. Options of the Redis policies are checked and otherwise ignored.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct Config {
    /// Requests per window.
    pub count: Option<AmountConfig>,
    /// Seconds.
    pub time_window: Option<AmountConfig>,
    /// How windows follow each other.
    #[serde(default)]
    pub window_type: WindowType,
    /// Several limits at once, instead of `count` and `time_window`.
    pub rules: Option<Vec<RuleConfig>>,
    /// Configurations of one group share their counters.
    pub group: Option<String>,
    /// Whose budget a request uses.
    #[serde(default = "default_key")]
    pub key: String,
    /// How `key` is meant.
    #[serde(default)]
    pub key_type: KeyType,
    /// Status of a refusal.
    #[serde(default = "limit::default_code")]
    pub rejected_code: u16,
    /// Text of a refusal.
    pub rejected_msg: Option<String>,
    /// Where counters live.
    #[serde(default)]
    pub policy: Policy,
    /// Lets requests pass when they cannot be counted.
    #[serde(default)]
    pub allow_degradation: bool,
    /// Whether clients are told their quota.
    #[serde(default = "yes")]
    pub show_limit_quota_header: bool,
    /// Replaces the name in the metadata.
    pub limit_header: Option<String>,
    /// Replaces the name in the metadata.
    pub remaining_header: Option<String>,
    /// Replaces the name in the metadata.
    pub reset_header: Option<String>,
    /// Keeps equal actions of a `workflow` apart.
    #[serde(rename = "_vid")]
    pub vid: Option<Value>,
}

/// One of several limits.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct RuleConfig {
    /// Requests per window.
    pub count: AmountConfig,
    /// Seconds.
    pub time_window: AmountConfig,
    /// A text with variables; the rule applies when at least one has a value.
    pub key: String,
    /// Stands before `RateLimit-` in the headers' names; the rule's number if there is none.
    pub header_prefix: Option<String>,
}

/// How windows follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowType {
    /// A window begins with the first request after the last one ended.
    #[default]
    Fixed,
    /// The share of the previous window that still reaches into the last `time_window` seconds counts too.
    Sliding,
}

/// The compiled configuration.
pub struct Plugin {
    windows: Windows,
    scope: Scope,
    rules: Rules,
    rejection: Rejection,
    degrades: bool,
    shows_quota: bool,
    needs_body: bool,
    /// Holds the group's configuration as long as somebody uses it.
    _group: Option<Arc<Config>>,
}

enum Rules {
    One(Box<Rule>),
    Many(Vec<Rule>),
}

struct Rule {
    count: Amount,
    time_window: Amount,
    key: LimitKey,
    headers: [Name; 3],
    /// The header value of `count`, if it is always the same.
    limit: Option<HeaderValue>,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "limit-count";
    const PRIORITY: i32 = 1002;
    const PHASES: Phases = Phases::ACCESS;
    const ENCRYPT: &'static [&'static str] = &["redis_password", "sentinel_password"];
    type Config = Config;

    fn schema() -> Value {
        schema()
    }

    fn metadata_schema() -> Option<Value> {
        let header =
            |(field, name): (&str, &str)| (field.to_owned(), json!({"type": "string", "default": name}));
        let headers: serde_json::Map<String, Value> = HEADERS.into_iter().map(header).collect();
        Some(json!({"type": "object", "properties": headers}))
    }

    fn reword(conf: &Value, error: String) -> String {
        let single = conf.get("count").is_some() || conf.get("time_window").is_some();
        if single && conf.get("rules").is_some() && error.contains("value should match only one schema") {
            return BOTH.into();
        }
        error
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        let has = |field: &str| conf.get(field).is_some();
        if has("rules") && (has("count") || has("time_window")) {
            return Err(BOTH.into());
        }
        if has("group") && has("rules") {
            return Err("group and rules cannot be specified at the same time".into());
        }
        if has("group") && has("_vid") {
            return Err("group is not supported".into());
        }
        check_sync_interval(conf)?;
        check_duplicates(conf)
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        config.policy.must_be_local()?;
        let group = config.group.as_deref().map(|name| join_group(name, &config, env)).transpose()?;
        let scope = match &config.group {
            Some(name) => Scope::named(name),
            None => Scope::of(env.origin, &format!("{config:?}")),
        };
        let rules = Rules::compile(&config, env)?;
        let needs_body = rules.iter().any(Rule::needs_body);
        Ok(Self {
            windows: Windows::new(config.window_type, env),
            scope,
            needs_body,
            rules,
            rejection: Rejection::new(config.rejected_code, config.rejected_msg),
            degrades: config.allow_degradation,
            shows_quota: config.show_limit_quota_header,
            _group: group,
        })
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        if self.needs_body
            && let Err(reply) = x.body().await
        {
            return reply.into();
        }
        match &self.rules {
            Rules::One(rule) => match rule.charge(self.scope, x) {
                Ok(charge) => self.count(rule, &charge, x),
                Err(why) => self.degrade(why),
            },
            Rules::Many(rules) => self.count_many(rules, x),
        }
    }
}

impl Plugin {
    /// All rules find their numbers before the first of them counts. APISIX: `get_rules`.
    fn count_many(&self, rules: &[Rule], x: &mut Exchange<'_>) -> Flow {
        let mut charges = Vec::with_capacity(rules.len());
        for rule in rules {
            let Some(key) = rule.key.find_own(self.scope, x) else { continue };
            match rule.charge_to(key, x) {
                Ok(charge) => charges.push((rule, charge)),
                Err(why) => return self.degrade(why),
            }
        }
        if charges.is_empty() {
            return self.degrade("no rule applies".into());
        }
        for (rule, charge) in &charges {
            self.count(rule, charge, x)?;
        }
        CONTINUE
    }

    fn count(&self, rule: &Rule, charge: &Charge, x: &mut Exchange<'_>) -> Flow {
        let verdict = self.windows.incoming(charge, counter::now());
        if self.shows_quota {
            let [limit, remaining, reset] = &rule.headers;
            let quota = rule.limit.clone().unwrap_or_else(|| integer(charge.count));
            limit.set(quota, x);
            remaining.set(verdict.remaining.into(), x);
            reset.set(hundredths(verdict.reset), x);
        }
        if verdict.accepted {
            return CONTINUE;
        }
        self.rejection.reply("the count of the time window is used up").into()
    }

    fn degrade(&self, why: String) -> Flow {
        if self.degrades {
            return CONTINUE;
        }
        Reply::status(500).because(format!("failed to get rate limit rules: {why}")).into()
    }
}

/// What one request costs under one rule.
struct Charge {
    key: Fingerprint,
    count: u64,
    time_window: u64,
}

impl Rules {
    fn compile(config: &Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let Some(rules) = &config.rules else {
            let (Some(count), Some(time_window)) = (&config.count, &config.time_window) else {
                return Err("count and time_window are required".into());
            };
            let key = LimitKey::new(config.key_type, &config.key);
            let rule = Rule::new(count, time_window, key, names(config, env, None))?;
            return Ok(Self::One(Box::new(rule)));
        };
        let compile = |(at, rule): (usize, &RuleConfig)| {
            let prefix = rule.header_prefix.clone().unwrap_or_else(|| (at + 1).to_string());
            let key = LimitKey::new(KeyType::VarCombination, &rule.key);
            Rule::new(&rule.count, &rule.time_window, key, names(config, env, Some(&prefix)))
        };
        rules.iter().enumerate().map(compile).collect::<Result<_, _>>().map(Self::Many)
    }

    fn iter(&self) -> impl Iterator<Item = &Rule> {
        match self {
            Self::One(rule) => std::slice::from_ref(&**rule).iter(),
            Self::Many(rules) => rules.iter(),
        }
    }
}

impl Rule {
    fn new(
        count: &AmountConfig,
        time_window: &AmountConfig,
        key: LimitKey,
        names: [String; 3],
    ) -> Result<Self, String> {
        let [limit, remaining, reset] =
            names.map(|text| Name::parse(&text).ok_or_else(|| format!("\"{text}\" is no header name")));
        let count = Amount::from(count.clone());
        let fixed = match count {
            Amount::Number(count) => Some(integer(count)),
            Amount::Text(_) => None,
        };
        let time_window = time_window.clone().into();
        Ok(Self { count, time_window, key, headers: [limit?, remaining?, reset?], limit: fixed })
    }

    fn needs_body(&self) -> bool {
        self.key.needs_body() || self.count.needs_body() || self.time_window.needs_body()
    }

    fn charge(&self, scope: Scope, x: &Exchange<'_>) -> Result<Charge, String> {
        self.charge_to(self.key.find(scope, x), x)
    }

    fn charge_to(&self, key: Fingerprint, x: &Exchange<'_>) -> Result<Charge, String> {
        let count = self.count.find(Least::One, x)?;
        let time_window = self.time_window.find(Least::One, x)?;
        Ok(Charge { key, count, time_window })
    }
}

/// The headers' names: the configuration's, else the metadata's, else APISIX's; with a rule's prefix in them.
fn names(config: &Config, env: &BuildEnv<'_>, prefix: Option<&str>) -> [String; 3] {
    let own = [&config.limit_header, &config.remaining_header, &config.reset_header];
    let mut own = own.into_iter();
    HEADERS.map(|(field, default)| {
        let own = own.next().and_then(Option::as_deref);
        let metadata = env.metadata.and_then(|metadata| metadata.get(field)).and_then(Value::as_str);
        let name = own.or(metadata).unwrap_or(default);
        match prefix {
            Some(prefix) => name.replacen("RateLimit-", &format!("{prefix}-RateLimit-"), 1),
            None => name.to_owned(),
        }
    })
}

/// Groups in use, by name. Locked while a configuration is compiled, never per request.
#[derive(Default)]
struct Groups(Mutex<HashMap<String, Weak<Config>>>);

/// All configurations of a group must be equal.
fn join_group(name: &str, config: &Config, env: &BuildEnv<'_>) -> Result<Arc<Config>, String> {
    let groups = env.carry.state("limit-count groups", Groups::default);
    let mut groups = groups.0.lock().unwrap_or_else(PoisonError::into_inner);
    groups.retain(|_, used| used.strong_count() > 0);
    match groups.get(name).and_then(Weak::upgrade) {
        Some(group) if *group == *config => Ok(group),
        Some(_) => Err("group conf mismatched".into()),
        None => {
            let group = Arc::new(config.clone());
            groups.insert(name.to_owned(), Arc::downgrade(&group));
            Ok(group)
        }
    }
}

fn check_sync_interval(conf: &Value) -> Result<(), String> {
    let redis = conf.get("policy").and_then(Value::as_str).is_some_and(|policy| policy.starts_with("redis"));
    let interval = conf.get("sync_interval").and_then(Value::as_f64).unwrap_or(NO_DELAYED_SYNC);
    if !redis || interval == NO_DELAYED_SYNC {
        return Ok(());
    }
    if interval < 0.1 {
        return Err("sync_interval should not be smaller than 0.1".into());
    }
    let window = conf.get("time_window").and_then(Value::as_f64);
    if window.is_some_and(|window| interval >= window) {
        return Err("sync_interval should be smaller than time_window".into());
    }
    Ok(())
}

/// Two rules with one key would count in one counter.
fn check_duplicates(conf: &Value) -> Result<(), String> {
    let rules = conf.get("rules").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut keys: Vec<&str> = Vec::new();
    for key in rules.iter().filter_map(|rule| rule.get("key")?.as_str()) {
        if keys.contains(&key) {
            return Err(format!("duplicate key '{key}' in rules"));
        }
        keys.push(key);
    }
    Ok(())
}

enum Windows {
    Fixed(Arc<Counters<Fixed>>),
    Sliding(Arc<Counters<Sliding>>),
}

/// How a request fared.
#[derive(PartialEq, Debug)]
struct Verdict {
    accepted: bool,
    remaining: i64,
    /// Seconds.
    reset: f64,
}

impl Windows {
    fn new(kind: WindowType, env: &BuildEnv<'_>) -> Self {
        match kind {
            WindowType::Fixed => Self::Fixed(env.carry.state("limit-count", Counters::new)),
            WindowType::Sliding => Self::Sliding(env.carry.state("limit-count", Counters::new)),
        }
    }

    fn incoming(&self, charge: &Charge, now: u64) -> Verdict {
        match self {
            Self::Fixed(counters) => counters.update(charge.key, now, |window| window.incoming(charge, now)),
            Self::Sliding(counters) => {
                // Windows of different sizes have different borders and cannot share a slot.
                let (high, low) = ((charge.key >> 64) as u64, charge.key as u64);
                let key = Fingerprinter::new().number(high).number(low).number(charge.time_window).finish();
                counters.update(key, now, |windows| windows.incoming(charge, now))
            }
        }
    }
}

/// One window that began with a request. resty.limit.count.
#[derive(Default)]
struct Fixed {
    consumed: u64,
    ends: u64,
}

impl Slot for Fixed {
    fn ends(&self) -> u64 {
        self.ends
    }
}

impl Fixed {
    /// Refused requests count as well, as in APISIX: a limit that is raised meanwhile has to exceed them.
    fn incoming(&mut self, charge: &Charge, now: u64) -> Verdict {
        if self.consumed == 0 {
            self.ends = now.saturating_add(charge.time_window.saturating_mul(1000));
        }
        self.consumed += 1;
        let remaining = i64::try_from(charge.count.saturating_sub(self.consumed)).unwrap_or(i64::MAX);
        let reset = self.ends.saturating_sub(now) as f64 / 1000.0;
        Verdict { accepted: self.consumed <= charge.count, remaining, reset }
    }
}

/// The running window and the one before it; windows begin at multiples of their size since 1970.
/// APISIX: limit-count/sliding-window.
#[derive(Default)]
struct Sliding {
    number: u64,
    current: u64,
    last: u64,
    ends: u64,
}

impl Slot for Sliding {
    fn ends(&self) -> u64 {
        self.ends
    }
}

impl Sliding {
    fn incoming(&mut self, charge: &Charge, now: u64) -> Verdict {
        let size = charge.time_window.saturating_mul(1000);
        let number = now / size;
        if self.number != number {
            self.last = if self.number + 1 == number { self.current } else { 0 };
            (self.number, self.current) = (number, 0);
        }
        let left = (size - now % size) as f64 / 1000.0;
        let limit = charge.count as f64;
        let rate = self.last.min(charge.count) as f64 / charge.time_window as f64;
        let before = rate * left;
        if self.current >= charge.count || before + self.current as f64 >= limit {
            let wait = if self.current >= charge.count { left } else { self.wait(rate, left, limit) };
            return Verdict { accepted: false, remaining: 0, reset: round_up(wait) };
        }
        self.current += 1;
        self.ends = now.saturating_add(size.saturating_mul(2));
        let remaining = (limit - self.current as f64 - before).floor() as i64;
        Verdict { accepted: true, remaining, reset: round_up(left) }
    }

    /// Seconds until the previous window's share has shrunk enough.
    fn wait(&self, rate: f64, left: f64, limit: f64) -> f64 {
        if rate == 0.0 {
            return left;
        }
        (left - (limit - self.current as f64) / rate).max(0.0)
    }
}

fn round_up(seconds: f64) -> f64 {
    (seconds * 100.0).ceil() / 100.0
}

/// An integer as Lua writes it.
fn integer(number: u64) -> HeaderValue {
    if number < LUA_EXPONENT { number.into() } else { text(lua::number_to_text(number as f64)) }
}

/// Seconds cut to hundredths, as Lua writes them: no zeros at the end.
fn hundredths(seconds: f64) -> HeaderValue {
    let number = (seconds * 100.0).floor();
    if number >= 1e14 {
        return text(lua::number_to_text(number / 100.0));
    }
    let number = number as u64;
    match (number / 100, number % 100) {
        (whole, 0) => whole.into(),
        (whole, part) if part % 10 == 0 => text(format!("{whole}.{}", part / 10)),
        (whole, part) => text(format!("{whole}.{part:02}")),
    }
}

fn text(number: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(number))
        .expect("digits, signs and points are fit for a header")
}

fn default_key() -> String {
    "remote_addr".into()
}

fn yes() -> bool {
    true
}

fn amount_schema() -> Value {
    json!({"oneOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string"}]})
}

fn sentinel_schema() -> Value {
    json!({
        "properties": {
            "redis_sentinels": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "host": {"type": "string", "minLength": 2},
                        "port": {"type": "integer", "minimum": 1, "maximum": 65535}
                    },
                    "required": ["host", "port"],
                    "additionalProperties": false
                }
            },
            "redis_master_name": {"type": "string", "minLength": 1},
            "redis_role": {"type": "string", "enum": ["master", "slave"], "default": "master"},
            "redis_connect_timeout": {"type": "integer", "minimum": 1, "default": 1000},
            "redis_read_timeout": {"type": "integer", "minimum": 1, "default": 1000},
            "redis_keepalive_timeout": {"type": "integer", "minimum": 1, "default": 60000},
            "redis_database": {"type": "integer", "minimum": 0, "default": 0},
            "redis_username": {"type": "string", "minLength": 1},
            "redis_password": {"type": "string", "minLength": 0},
            "sentinel_username": {"type": "string", "minLength": 1},
            "sentinel_password": {"type": "string", "minLength": 0}
        },
        "required": ["redis_sentinels", "redis_master_name"]
    })
}

fn schema() -> Value {
    let rule = json!({
        "type": "object",
        "properties": {
            "count": amount_schema(),
            "time_window": amount_schema(),
            "key": {"type": "string"},
            "header_prefix": {"type": "string", "description": "stands before RateLimit- in the names of the headers"}
        },
        "required": ["count", "time_window", "key"]
    });
    json!({
        "type": "object",
        "properties": {
            "count": amount_schema(),
            "time_window": amount_schema(),
            "window_type": {"type": "string", "enum": ["fixed", "sliding"], "default": "fixed"},
            "rules": {"type": "array", "items": rule},
            "group": {"type": "string"},
            "key": {"type": "string", "default": "remote_addr"},
            "key_type": {"type": "string", "enum": ["var", "var_combination", "constant"], "default": "var"},
            "rejected_code": {"type": "integer", "minimum": 200, "maximum": 599, "default": 503},
            "rejected_msg": {"type": "string", "minLength": 1},
            "policy": {
                "type": "string",
                "enum": ["local", "redis", "redis-cluster", "redis-sentinel"],
                "default": "local"
            },
            "allow_degradation": {"type": "boolean", "default": false},
            "show_limit_quota_header": {"type": "boolean", "default": true},
            "sync_interval": {"type": "number", "default": -1}
        },
        "oneOf": [{"required": ["count", "time_window"]}, {"required": ["rules"]}],
        "if": limit::if_policy("redis"),
        "then": limit::redis_schema(),
        "else": {
            "if": limit::if_policy("redis-cluster"),
            "then": limit::redis_cluster_schema(),
            "else": {"if": limit::if_policy("redis-sentinel"), "then": sentinel_schema()}
        },
        "encrypt_fields": ["redis_password", "sentinel_password"]
    })
}

#[cfg(test)]
mod tests;
