//! What limit-count, limit-req and limit-conn share: whose budget a request uses, numbers that may come from the
//! request, and the refusal.

use std::cell::RefCell;

use serde::Deserialize;
use serde_json::{Value, json};

use super::counter::Scope;
use crate::{
    net::ip_text::IpText,
    plugin::{
        exchange::Exchange,
        fingerprint::Fingerprint,
        reply::{Class, Reply},
    },
    vars::{lua, template::Template, var::Var},
};

/// The largest number that Lua counts exactly: 2^53 - 1.
const LARGEST: f64 = 9_007_199_254_740_991.0;
/// A buffer that one long key has grown beyond this is given back.
const KEPT: usize = 16 * 1024;

/// How the text of `key` is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyType {
    /// The name of a variable.
    #[default]
    Var,
    /// A text with variables in it.
    VarCombination,
    /// The same budget for everybody.
    Constant,
}

/// Whose budget a request uses.
pub enum LimitKey {
    /// Whoever has the same value of a variable.
    Var(Var),
    /// Whoever has the same text.
    Combination(Template),
    /// Everybody.
    Constant(Box<str>),
}

thread_local! {
    // Keys are written here and hashed, so a request makes no text of its own.
    static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
}

impl LimitKey {
    /// Compiles a key.
    pub fn new(kind: KeyType, key: &str) -> Self {
        match kind {
            KeyType::Var => Self::Var(Var::parse(key)),
            KeyType::VarCombination => Self::Combination(Template::parse(key)),
            KeyType::Constant => Self::Constant(key.into()),
        }
    }

    /// Whether the request body must be read first.
    pub fn needs_body(&self) -> bool {
        match self {
            Self::Var(var) => var.needs_body(),
            Self::Combination(template) => template.vars().any(Var::needs_body),
            Self::Constant(_) => false,
        }
    }

    /// The key for a request; the client's address stands in when the request has no value for it.
    pub fn find(&self, scope: Scope, x: &Exchange<'_>) -> Fingerprint {
        self.find_own(scope, x).unwrap_or_else(|| client(scope, x))
    }

    /// The key for a request, `None` when the request has no value for it.
    pub fn find_own(&self, scope: Scope, x: &Exchange<'_>) -> Option<Fingerprint> {
        match self {
            Self::Constant(text) => Some(scope.key(text)),
            Self::Var(Var::RemoteAddr) => Some(client(scope, x)),
            Self::Var(var) => x.var(var).map(|text| scope.key(&text)),
            Self::Combination(template) => written(|out| {
                let resolved = template.render_into(out, x);
                (resolved > 0).then(|| scope.key(out))
            }),
        }
    }
}

fn client(scope: Scope, x: &Exchange<'_>) -> Fingerprint {
    scope.key(IpText::new(x.client_ip()).as_str())
}

fn written<R>(with: impl FnOnce(&mut String) -> R) -> R {
    TEXT.with_borrow_mut(|out| {
        out.clear();
        let result = with(out);
        if out.capacity() > KEPT {
            *out = String::new();
        }
        result
    })
}

/// A number of the configuration: written down, or found in the request.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(untagged)]
pub enum AmountConfig {
    /// Written down.
    Number(f64),
    /// A text with variables.
    Text(String),
}

/// The same, compiled.
pub enum Amount {
    /// Written down.
    Number(u64),
    /// A text with variables.
    Text(Template),
}

/// The smallest number that an [`Amount`] may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Least {
    /// At least 0.
    Zero,
    /// At least 1.
    One,
}

impl From<AmountConfig> for Amount {
    fn from(config: AmountConfig) -> Self {
        match config {
            // The schema lets only integers through; `as` saturates.
            AmountConfig::Number(number) => Self::Number(number as u64),
            AmountConfig::Text(text) => Self::Text(Template::parse(&text)),
        }
    }
}

impl Amount {
    /// Whether the request body must be read first.
    pub fn needs_body(&self) -> bool {
        matches!(self, Self::Text(template) if template.vars().any(Var::needs_body))
    }

    /// The number for a request.
    ///
    /// # Errors
    /// Why the request has none, for the log. APISIX: `resolve_var`.
    pub fn find(&self, least: Least, x: &Exchange<'_>) -> Result<u64, String> {
        let template = match self {
            Self::Number(number) => return Ok(*number),
            Self::Text(template) => template,
        };
        written(|out| {
            template.render_into(out, x);
            parse(out, least)
        })
    }
}

fn parse(text: &str, least: Least) -> Result<u64, String> {
    let number = lua::text_to_number(text).ok_or("resolved value is not a number")?;
    let got = || lua::number_to_text(number);
    match least {
        Least::One if number <= 0.0 => {
            Err(format!("resolved value must be a positive number, got: {}", got()))
        }
        Least::Zero if number < 0.0 => {
            Err(format!("resolved value must be a non-negative number, got: {}", got()))
        }
        _ if number.floor() != number => Err(format!("resolved value must be an integer, got: {}", got())),
        _ if number > LARGEST => {
            Err(format!("resolved value exceeds safe integer range (2^53-1), got: {}", got()))
        }
        _ => Ok(number as u64),
    }
}

/// What a client is told whose budget is used up.
pub struct Rejection {
    code: u16,
    text: Option<String>,
}

impl Rejection {
    /// From `rejected_code` and `rejected_msg`.
    pub fn new(code: u16, text: Option<String>) -> Self {
        Self { code, text }
    }

    /// The reply; `reason` is for the log only.
    pub fn reply(&self, reason: &str) -> Reply {
        let reply = match &self.text {
            Some(text) => Reply::error_msg(self.code, text.as_str()),
            None => Reply::status(self.code),
        };
        reply.because(reason).classed(Class::Limited)
    }
}

/// APISIX's default of `rejected_code`.
pub fn default_code() -> u16 {
    503
}

/// Where counters live.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// In this process.
    #[default]
    Local,
    /// In one Redis server.
    Redis,
    /// In a Redis cluster.
    RedisCluster,
    /// In a Redis server that sentinels name.
    RedisSentinel,
}

impl Policy {
    /// Differs from APISIX: only `local` runs. Counting in another place than the one asked for would let more
    /// through than the operator wrote, so the other policies are refused.
    ///
    /// # Errors
    /// What to write instead.
    pub fn must_be_local(self) -> Result<(), String> {
        let name = match self {
            Self::Local => return Ok(()),
            Self::Redis => "redis",
            Self::RedisCluster => "redis-cluster",
            Self::RedisSentinel => "redis-sentinel",
        };
        Err(format!(
            "policy \"{name}\" is not supported here: use \"policy\": \"local\", which counts in each gateway by \
             itself, and divide the limit by the number of gateways"
        ))
    }
}

/// The schema of the `redis` policy's options. APISIX: utils/redis-schema.lua.
pub fn redis_schema() -> Value {
    json!({
        "properties": {
            "redis_host": {"type": "string", "minLength": 2},
            "redis_port": {"type": "integer", "minimum": 1, "default": 6379},
            "redis_username": {"type": "string", "minLength": 1},
            "redis_password": {"type": "string", "minLength": 0},
            "redis_database": {"type": "integer", "minimum": 0, "default": 0},
            "redis_timeout": {"type": "integer", "minimum": 1, "default": 1000},
            "redis_ssl": {"type": "boolean", "default": false},
            "redis_ssl_verify": {"type": "boolean", "default": false},
            "redis_keepalive_timeout": {"type": "integer", "minimum": 1000, "default": 10000},
            "redis_keepalive_pool": {"type": "integer", "minimum": 1, "default": 100}
        },
        "required": ["redis_host"]
    })
}

/// The schema of the `redis-cluster` policy's options. APISIX: utils/redis-schema.lua.
pub fn redis_cluster_schema() -> Value {
    json!({
        "properties": {
            "redis_cluster_nodes": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "string", "minLength": 2, "maxLength": 100}
            },
            "redis_password": {"type": "string", "minLength": 0},
            "redis_timeout": {"type": "integer", "minimum": 1, "default": 1000},
            "redis_cluster_name": {"type": "string"},
            "redis_cluster_ssl": {"type": "boolean", "default": false},
            "redis_cluster_ssl_verify": {"type": "boolean", "default": false},
            "redis_keepalive_timeout": {"type": "integer", "minimum": 1000, "default": 10000},
            "redis_keepalive_pool": {"type": "integer", "minimum": 1, "default": 100}
        },
        "required": ["redis_cluster_nodes", "redis_cluster_name"]
    })
}

/// The condition that a schema's `then` applies to one policy.
pub fn if_policy(name: &str) -> Value {
    json!({"properties": {"policy": {"enum": [name]}}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::Kit;

    #[track_caller]
    fn check_number(text: &str, least: Least, expected: Result<u64, &str>) {
        assert_eq!(parse(text, least), expected.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn numbers_of_requests() {
        check_number("5", Least::One, Ok(5));
        check_number(" 0x10 ", Least::One, Ok(16));
        check_number("2.0", Least::One, Ok(2));
        check_number("0", Least::Zero, Ok(0));
        check_number("9007199254740991", Least::One, Ok(9_007_199_254_740_991));
        check_number("", Least::One, Err("resolved value is not a number"));
        check_number("a", Least::Zero, Err("resolved value is not a number"));
        check_number("0", Least::One, Err("resolved value must be a positive number, got: 0"));
        check_number("-1", Least::One, Err("resolved value must be a positive number, got: -1"));
        check_number("-1", Least::Zero, Err("resolved value must be a non-negative number, got: -1"));
        check_number("1.5", Least::One, Err("resolved value must be an integer, got: 1.5"));
        check_number(
            "9007199254740992",
            Least::One,
            Err("resolved value exceeds safe integer range (2^53-1), got: 9.007199254741e+15"),
        );
        check_number("nan", Least::Zero, Err("resolved value must be an integer, got: nan"));
        check_number("inf", Least::One, Err("resolved value exceeds safe integer range (2^53-1), got: inf"));
    }

    #[track_caller]
    fn check_key(kind: KeyType, key: &str, stands_for: Option<&str>) {
        let scope = Scope::named("g");
        let kit = Kit::get("/x?a=1&e=", &[("X-Who", "me")]).client("10.0.0.9");
        kit.run(async |x| {
            let key = LimitKey::new(kind, key);
            assert_eq!(key.find_own(scope, x), stands_for.map(|text| scope.key(text)));
            assert_eq!(key.find(scope, x), scope.key(stands_for.unwrap_or("10.0.0.9")));
        });
    }

    #[test]
    fn keys() {
        check_key(KeyType::Var, "remote_addr", Some("10.0.0.9"));
        check_key(KeyType::Var, "http_x_who", Some("me"));
        check_key(KeyType::Var, "arg_e", Some(""));
        check_key(KeyType::Var, "http_none", None);
        check_key(KeyType::Var, "consumer_name", None);
        check_key(KeyType::VarCombination, "$http_x_who $remote_addr", Some("me 10.0.0.9"));
        check_key(KeyType::VarCombination, "$http_none $arg_a", Some(" 1"));
        check_key(KeyType::VarCombination, "$http_none $http_nil", None);
        check_key(KeyType::VarCombination, "no variable", None);
        check_key(KeyType::VarCombination, "${http_none ?? all}", Some("all"));
        check_key(KeyType::Constant, "remote_addr", Some("remote_addr"));
    }

    #[test]
    fn keys_are_found_without_allocation() {
        let keys = [
            LimitKey::new(KeyType::Var, "remote_addr"),
            LimitKey::new(KeyType::Var, "http_x_who"),
            LimitKey::new(KeyType::Var, "http_none"),
            LimitKey::new(KeyType::VarCombination, "$http_x_who-$uri"),
            LimitKey::new(KeyType::Constant, "all"),
        ];
        Kit::get("/x", &[("X-Who", "me")]).run(async |x| {
            let find = || keys.iter().for_each(|key| _ = key.find(Scope::named("g"), x));
            find();
            assert_eq!(allocation_counter::measure(find).count_total, 0);
        });
    }

    #[test]
    fn the_body_is_asked_for_only_if_needed() {
        assert!(LimitKey::new(KeyType::Var, "post_arg_a").needs_body());
        assert!(LimitKey::new(KeyType::VarCombination, "$host-$post_arg_a").needs_body());
        assert!(!LimitKey::new(KeyType::Constant, "post_arg_a").needs_body());
        assert!(Amount::from(AmountConfig::Text("${post_arg.a ?? 1}".into())).needs_body());
    }

    #[test]
    fn other_policies_say_what_to_do() {
        assert_eq!(Policy::Local.must_be_local(), Ok(()));
        let text = Policy::RedisCluster.must_be_local().unwrap_err();
        assert!(text.starts_with("policy \"redis-cluster\" is not supported here: use "), "{text}");
    }
}
