//! Global rules: plugins that run for every request.
//!
//! Invariant: says what the resource may hold, not what it does.

use serde::Deserialize;
use serde_json::{Value, json};

use super::parts;
use super::typed::{Id, Plugins};

/// A global rule as stored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GlobalRule {
    /// Its id.
    pub id: Option<Id>,
    /// When it was created, in seconds since 1970.
    pub create_time: Option<i64>,
    /// When it was last written, in seconds since 1970.
    pub update_time: Option<i64>,
    /// Its plugins.
    #[serde(deserialize_with = "super::typed::map")]
    pub plugins: Plugins,
}

/// APISIX: schema_def.lua global_rule.
pub(super) fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "id": parts::id(),
            "create_time": parts::timestamp(),
            "update_time": parts::timestamp(),
            "plugins": parts::plugins(),
        },
        "required": ["id", "plugins"],
        "additionalProperties": false,
    })
}
