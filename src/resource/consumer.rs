//! Consumers: who sends requests, told apart by authentication plugins.
//!
//! Invariant: says what the resource may hold, not what it does.

use serde::Deserialize;
use serde_json::{Value, json};

use super::parts;
use super::typed::{Id, Labels, Plugins};

/// A consumer as stored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Consumer {
    /// Its name and, in the store, its id.
    pub username: String,
    /// What it is for, for people.
    pub desc: Option<String>,
    /// Labels, for people, filters and plugins.
    #[serde(deserialize_with = "super::typed::map")]
    pub labels: Labels,
    /// When it was created, in seconds since 1970.
    pub create_time: Option<i64>,
    /// When it was last written, in seconds since 1970.
    pub update_time: Option<i64>,
    /// The consumer group it belongs to.
    pub group_id: Option<Id>,
    /// Its plugins: how it authenticates, and what runs once it has.
    #[serde(deserialize_with = "super::typed::map")]
    pub plugins: Plugins,
}

/// APISIX: schema_def.lua consumer.
pub(super) fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "id": parts::id(),
            "username": {
                "type": "string",
                "minLength": 1,
                "maxLength": 256,
                "pattern": r"^[a-zA-Z0-9_\-]+$",
            },
            "desc": parts::desc(),
            "labels": parts::labels(),
            "create_time": parts::timestamp(),
            "update_time": parts::timestamp(),
            "group_id": parts::id(),
            "plugins": parts::plugins(),
        },
        "required": ["username"],
        "additionalProperties": false,
    })
}
