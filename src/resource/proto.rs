//! Protos: protocol buffer definitions for gRPC transcoding.
//!
//! Invariant: says what the resource may hold; its content is compiled by the plugin that uses it.

use serde::Deserialize;
use serde_json::{Value, json};

use super::parts;
use super::typed::{Id, Labels};

/// A proto as stored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Proto {
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
    /// A `.proto` file's text, or a compiled descriptor set in Base64.
    pub content: String,
}

/// APISIX: schema_def.lua proto.
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
            "content": {"type": "string", "minLength": 1, "maxLength": 1_048_576},
        },
        "required": ["content"],
        "additionalProperties": false,
    })
}
