//! Resources as the Admin API and the stores know them: their kinds, keys, schemas and types.
//!
//! A resource is JSON that was written; here it is judged (`check`) and read into a type (`parse`). What it takes to
//! run one is compiled elsewhere. Plugins' configurations stay JSON: the plugins judge and read them.
//!
//! Invariant: this module knows no other resource than the one at hand, and no plugin.
//! Start reading at [`Kind`] and [`check`]; the parts that schemas share are in `parts.rs`.

mod consumer;
mod consumer_group;
mod credential;
mod global_rule;
mod key;
pub mod node;
pub mod parts;
pub mod pem;
mod plugin_config;
mod plugin_metadata;
mod proto;
mod route;
pub mod secret;
mod service;
mod ssl;
mod stream_route;
pub mod typed;
mod upstream;

#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use serde::de::DeserializeOwned;
use serde_json::Value;

pub use self::consumer::Consumer;
pub use self::consumer_group::ConsumerGroup;
pub use self::credential::Credential;
pub use self::global_rule::GlobalRule;
pub use self::key::{Key, KeyError};
pub use self::plugin_config::PluginConfig;
pub use self::plugin_metadata::PluginMetadata;
pub use self::proto::Proto;
pub use self::route::Route;
pub use self::secret::Secret;
pub use self::service::Service;
pub use self::ssl::{Ssl, SslClient, SslType};
pub use self::stream_route::{StreamProtocol, StreamRoute};
pub use self::upstream::{
    ActiveCheck, ActiveHealthy, ActiveUnhealthy, CheckType, DiscoveryArgs, HashOn, HealthChecks,
    KeepalivePool, PassHost, PassiveCheck, PassiveHealthy, PassiveUnhealthy, Scheme, Upstream, UpstreamTls,
};
use crate::{
    compat::Compat,
    schema::{Schema, lua},
};

/// What a resource is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names are APISIX's and say it all")]
pub enum Kind {
    Route,
    Service,
    Upstream,
    Consumer,
    Credential,
    ConsumerGroup,
    PluginConfig,
    PluginMetadata,
    GlobalRule,
    Ssl,
    Secret,
    Proto,
    StreamRoute,
}

/// Turns a private key as stored into PEM; `None` when it was not encrypted with a key of the keyring.
pub type DecryptKey<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Why a resource that passed its schema is still no resource.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(#[from] serde_json::Error);

impl Kind {
    /// Every kind, in the order of the declaration.
    pub const ALL: [Kind; 13] = [
        Kind::Route,
        Kind::Service,
        Kind::Upstream,
        Kind::Consumer,
        Kind::Credential,
        Kind::ConsumerGroup,
        Kind::PluginConfig,
        Kind::PluginMetadata,
        Kind::GlobalRule,
        Kind::Ssl,
        Kind::Secret,
        Kind::Proto,
        Kind::StreamRoute,
    ];

    /// The folder of this kind in the store and in Admin API paths. Credentials have theirs under their consumer.
    pub fn dir(self) -> &'static str {
        match self {
            Kind::Route => "routes",
            Kind::Service => "services",
            Kind::Upstream => "upstreams",
            Kind::Consumer => "consumers",
            Kind::Credential => "credentials",
            Kind::ConsumerGroup => "consumer_groups",
            Kind::PluginConfig => "plugin_configs",
            Kind::PluginMetadata => "plugin_metadata",
            Kind::GlobalRule => "global_rules",
            Kind::Ssl => "ssls",
            Kind::Secret => "secrets",
            Kind::Proto => "protos",
            Kind::StreamRoute => "stream_routes",
        }
    }

    /// The kind whose folder this is.
    pub fn from_dir(dir: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.dir() == dir)
    }

    /// The kind in APISIX's sentences ("missing route id", "wrong consumer group id"). APISIX: `kind` in admin/*.lua.
    pub fn singular(self) -> &'static str {
        match self {
            Kind::ConsumerGroup => "consumer group",
            Kind::PluginConfig => "plugin config",
            Kind::GlobalRule => "global rule",
            Kind::StreamRoute => "stream route",
            other => other.schema_name(),
        }
    }

    /// The name under which the Admin API serves this kind's schema (`/apisix/admin/schema/{name}`).
    pub fn schema_name(self) -> &'static str {
        match self {
            Kind::Route => "route",
            Kind::Service => "service",
            Kind::Upstream => "upstream",
            Kind::Consumer => "consumer",
            Kind::Credential => "credential",
            Kind::ConsumerGroup => "consumer_group",
            Kind::PluginConfig => "plugin_config",
            Kind::PluginMetadata => "plugin_metadata",
            Kind::GlobalRule => "global_rule",
            Kind::Ssl => "ssl",
            Kind::Secret => "secret",
            Kind::Proto => "proto",
            Kind::StreamRoute => "stream_route",
        }
    }

    fn document(self) -> Value {
        match self {
            Kind::Route => route::schema(),
            Kind::Service => service::schema(),
            Kind::Upstream => parts::upstream(),
            Kind::Consumer => consumer::schema(),
            Kind::Credential => credential::schema(),
            Kind::ConsumerGroup => consumer_group::schema(),
            Kind::PluginConfig => plugin_config::schema(),
            Kind::GlobalRule => global_rule::schema(),
            Kind::Ssl => ssl::schema(),
            Kind::Proto => proto::schema(),
            Kind::StreamRoute => stream_route::schema(),
            // Each plugin has its own, and each secret manager: see `secret::schema`.
            Kind::PluginMetadata | Kind::Secret => serde_json::json!({"type": "object"}),
        }
    }
}

struct Judge {
    document: Value,
    schema: Schema,
}

static STRICT: LazyLock<Vec<Judge>> = LazyLock::new(|| judges(|_| {}));
static LAX: LazyLock<Vec<Judge>> = LazyLock::new(|| judges(admit_strangers));

fn judges(change: fn(&mut Value)) -> Vec<Judge> {
    Kind::ALL
        .into_iter()
        .map(|kind| {
            let mut document = kind.document();
            change(&mut document);
            let schema = Schema::compile(&document).expect("the documents of this module are schemas");
            Judge { document, schema }
        })
        .collect()
}

/// Takes every `additionalProperties: false` out of a schema.
fn admit_strangers(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            members.retain(|name, value| name != "additionalProperties" || *value != Value::Bool(false));
            members.values_mut().for_each(admit_strangers);
        }
        Value::Array(items) => items.iter_mut().for_each(admit_strangers),
        _ => {}
    }
}

fn judge(kind: Kind, compat: Compat) -> &'static Judge {
    let judges = if compat.judges_strictly() { &STRICT } else { &LAX };
    &judges[kind as usize]
}

/// The compiled schema of a kind. Plugin metadata and secrets have none of their own: any object passes.
pub fn schema(kind: Kind, compat: Compat) -> &'static Schema {
    &judge(kind, compat).schema
}

/// The schema of a kind as the Admin API serves it.
pub fn schema_json(kind: Kind, compat: Compat) -> &'static Value {
    &judge(kind, compat).document
}

/// Writes the defaults of the kind's schema into a resource.
pub fn fill_defaults(kind: Kind, value: &mut Value) {
    // They are the same, however it is judged.
    schema(kind, Compat::Now).fill_defaults(value);
}

/// Judges a resource by itself: [`check_schema`], then [`check_extra`] with no keyring.
///
/// # Errors
/// The `error_msg` of APISIX.
pub fn check(kind: Kind, value: &Value, compat: Compat) -> Result<(), String> {
    check_schema(kind, value, compat)?;
    check_extra(kind, value, compat, &|_| None)
}

/// Warns of what today's APISIX would refuse in a resource that passed [`check_schema`]: it is without effect, perhaps a
/// member whose name is not what was meant.
pub fn tell_strangers(key: &Key, value: &Value, compat: Compat) {
    if let Some(reason) = stranger(key.kind(), value, compat) {
        tracing::warn!(resource = %key, reason, "a part of this resource has no effect");
    }
}

fn stranger(kind: Kind, value: &Value, compat: Compat) -> Option<String> {
    if compat.judges_strictly() {
        return None;
    }
    schema(kind, Compat::Now).check(value).err()
}

/// What APISIX checks up to and with the schema, before it looks at other resources and plugins.
///
/// # Errors
/// The `error_msg` of APISIX.
pub fn check_schema(kind: Kind, value: &Value, compat: Compat) -> Result<(), String> {
    match kind {
        Kind::Route => route::check_exclusive(value)?,
        Kind::Upstream => upstream::check_ipv6_nodes(value, compat)?,
        _ => {}
    }
    schema(kind, compat).check(value).map_err(|reason| format!("invalid configuration: {reason}"))
}

/// What APISIX checks after the schema and can tell from the resource alone: upstreams, certificates, addresses.
/// For routes and services it comes before the ids they refer to and before plugins, for stream routes after both.
/// Expects a value that passed [`check_schema`].
///
/// # Errors
/// The `error_msg` of APISIX.
pub fn check_extra(kind: Kind, value: &Value, compat: Compat, decrypt: DecryptKey<'_>) -> Result<(), String> {
    match kind {
        Kind::Upstream => upstream::check(value, decrypt),
        Kind::Route | Kind::Service => match value.get("upstream") {
            Some(conf) => {
                upstream::check_ipv6_nodes(conf, compat)?;
                upstream::check(conf, decrypt)
            }
            None => Ok(()),
        },
        Kind::Ssl => ssl::check(value, decrypt),
        Kind::StreamRoute => stream_route::check(value),
        _ => Ok(()),
    }
}

/// Reads a resource into its type ([`Route`], [`Upstream`], …). Members the type does not know are ignored.
///
/// # Errors
/// [`ParseError`] when a member's value does not fit: the resource was not judged first, or holds an unresolved
/// secret reference where a choice is meant.
pub fn parse<T: DeserializeOwned>(value: &Value) -> Result<T, ParseError> {
    tolerant(value.clone())
}

/// As [`parse`], from the text that is stored.
///
/// # Errors
/// As [`parse`], and when the text is no JSON.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, ParseError> {
    // In one go, but for what the type does not take and the schema does: `1.0`, or a member written twice.
    match serde_json::from_str(text) {
        Ok(resource) => Ok(resource),
        Err(_) => tolerant(serde_json::from_str(text)?),
    }
}

fn tolerant<T: DeserializeOwned>(mut value: Value) -> Result<T, ParseError> {
    // The schemas accept 1.0 as an integer.
    lua::integers(&mut value);
    Ok(T::deserialize(value)?)
}
