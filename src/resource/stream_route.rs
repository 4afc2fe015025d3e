//! Stream routes: which TCP and UDP connections go where.
//!
//! Invariant: says what the resource may hold, not what it does.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::parts;
use super::typed::{Id, Labels, Plugins};
use super::upstream::Upstream;

/// A stream route as stored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StreamRoute {
    /// Its id.
    pub id: Option<Id>,
    /// Its name, for people.
    pub name: Option<String>,
    /// What it is for, for people.
    pub desc: Option<String>,
    /// Labels, for people and for filters.
    #[serde(deserialize_with = "super::typed::map")]
    pub labels: Labels,
    /// When it was created, in seconds since 1970.
    pub create_time: Option<i64>,
    /// When it was last written, in seconds since 1970.
    pub update_time: Option<i64>,
    /// The client address or network it takes.
    pub remote_addr: Option<String>,
    /// The local address it takes.
    pub server_addr: Option<String>,
    /// The local port it takes.
    pub server_port: Option<u16>,
    /// The TLS server name it takes.
    pub sni: Option<String>,
    /// Its own upstream.
    pub upstream: Option<Upstream>,
    /// An upstream it refers to.
    pub upstream_id: Option<Id>,
    /// The service it belongs to.
    pub service_id: Option<Id>,
    /// Its plugins.
    #[serde(deserialize_with = "super::typed::map")]
    pub plugins: Plugins,
    /// A protocol that is understood, not only passed on.
    pub protocol: Option<StreamProtocol>,
}

/// A protocol of a stream route.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct StreamProtocol {
    /// Its name.
    pub name: String,
    /// The stream route whose connections this one subdivides.
    #[serde(default)]
    pub superior_id: Option<Id>,
    /// What the protocol itself is told.
    #[serde(default, deserialize_with = "super::typed::map")]
    pub conf: Map<String, Value>,
    /// What is logged, and where to.
    #[serde(default, deserialize_with = "super::typed::list")]
    pub logger: Vec<Value>,
}

/// APISIX: schema_def.lua stream_route.
pub(super) fn schema() -> Value {
    let port = json!({"description": "server port", "type": "integer", "minimum": 1, "maximum": 65_535});
    let sni = json!({
        "description": "server name indication",
        "type": "string",
        "pattern": parts::HOST_PATTERN,
    });
    json!({
        "type": "object",
        "properties": {
            "id": parts::id(),
            "name": parts::name(),
            "desc": parts::desc(),
            "labels": parts::labels(),
            "create_time": parts::timestamp(),
            "update_time": parts::timestamp(),
            "remote_addr": parts::remote_addr(),
            "server_addr": {"description": "server IP", "type": "string", "anyOf": parts::ip()},
            "server_port": port,
            "sni": sni,
            "upstream": parts::upstream(),
            "upstream_id": parts::id(),
            "service_id": parts::id(),
            "plugins": parts::plugins(),
            "protocol": protocol(),
        },
        "additionalProperties": false,
    })
}

fn protocol() -> Value {
    let logger = json!({
        "type": "array",
        "items": {
            "properties": {
                "name": {"type": "string"},
                "filter": {"description": "logger filter rules", "type": "array"},
                "conf": {"description": "logger plugin configuration", "type": "object"},
            },
            "dependencies": {"name": ["conf"]},
            "additionalProperties": false,
        },
    });
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "superior_id": parts::id(),
            "conf": {"description": "protocol-specific configuration", "type": "object"},
            "logger": logger,
        },
        "required": ["name"],
    })
}

/// What is checked after the schema, other resources and plugins. APISIX: stream/router/ip_port.lua.
pub(super) fn check(conf: &Value) -> Result<(), String> {
    for name in ["remote_addr", "server_addr"] {
        let addr = conf.get(name).and_then(Value::as_str);
        if let Some(addr) = addr.filter(|addr| !is_address_or_network(addr)) {
            return Err(format!("invalid {name}: {addr}"));
        }
    }
    Ok(())
}

/// APISIX: core/ip.lua validate_cidr_or_ip.
fn is_address_or_network(text: &str) -> bool {
    let (addr, prefix) = text.split_once('/').unwrap_or((text, "0"));
    let Ok(prefix) = prefix.parse::<u8>() else {
        return false;
    };
    match addr.parse::<Ipv4Addr>() {
        Ok(_) => prefix <= 32,
        Err(_) => prefix <= 128 && addr.parse::<Ipv6Addr>().is_ok(),
    }
}
