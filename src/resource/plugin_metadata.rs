//! Plugin metadata: settings that all instances of a plugin share, kept under the plugin's name.
//!
//! Each plugin brings the schema of its metadata. Invariant: says what the resource may hold, not what it does.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::typed::Id;

/// Metadata of a plugin as stored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct PluginMetadata {
    /// Name of the plugin.
    #[serde(default)]
    pub id: Option<Id>,
    /// Everything else.
    #[serde(flatten)]
    pub metadata: Map<String, Value>,
}
