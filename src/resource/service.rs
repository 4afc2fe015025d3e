//! Services: what several routes share, their upstream and plugins.
//!
//! Invariant: says what the resource may hold, not what it does.

use serde::Deserialize;
use serde_json::{Value, json};

use super::parts;
use super::typed::{Id, Labels, Plugins};
use super::upstream::Upstream;

/// A service as stored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Service {
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
    /// Plugins of its routes, unless a route has its own of the name.
    #[serde(deserialize_with = "super::typed::map")]
    pub plugins: Plugins,
    /// Its own upstream.
    pub upstream: Option<Upstream>,
    /// An upstream it refers to.
    pub upstream_id: Option<Id>,
    /// Lua code of the plugin orchestration.
    pub script: Option<String>,
    /// Whether requests may become web sockets.
    pub enable_websocket: Option<bool>,
    /// Hosts of its routes that name none.
    #[serde(deserialize_with = "super::typed::list")]
    pub hosts: Vec<String>,
}

/// APISIX: schema_def.lua service.
pub(super) fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "id": parts::id(),
            "name": parts::name(),
            "desc": parts::desc(),
            "labels": parts::labels(),
            "create_time": parts::timestamp(),
            "update_time": parts::timestamp(),
            "plugins": parts::plugins(),
            "upstream": parts::upstream(),
            "upstream_id": parts::id(),
            "script": parts::script(),
            "enable_websocket": parts::enable_websocket(),
            "hosts": parts::hosts(),
        },
        "additionalProperties": false,
    })
}
