//! Consumer groups: plugins that several consumers share.
//!
//! Invariant: says what the resource may hold, not what it does.

use serde::Deserialize;
use serde_json::{Value, json};

use super::parts;
use super::typed::{Id, Labels, Plugins};

/// A consumer group as stored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ConsumerGroup {
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
    /// Its plugins.
    #[serde(deserialize_with = "super::typed::map")]
    pub plugins: Plugins,
}

/// APISIX: schema_def.lua consumer_group.
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
        },
        "required": ["id", "plugins"],
        "additionalProperties": false,
    })
}
