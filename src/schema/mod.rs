//! JSON schema with the answers of APISIX: the same verdicts, the same sentences, the same order of checks.
//!
//! Every resource, every plugin's configuration, the request-validation plugin and the settings file are judged here.
//! The rules are those of the Lua library APISIX uses (api7/jsonschema), quirks included: an empty list and an empty
//! object are the same empty table, defaults are filled in while the value is being judged, and only the first failure
//! is reported. A schema is compiled once; judging a value never compiles a regex.
//!
//! Invariant: this module knows nothing of resources or plugins, and never panics on any schema or value.
//! Start reading at [`Schema`]; `node.rs` is the compiled form, `compile.rs` makes it, `check.rs` walks it.

mod check;
pub mod cjson;
mod compile;
pub mod lua;
mod node;
pub mod pattern;

#[cfg(test)]
mod tests;

use serde_json::Value;

use self::check::Walk;
use self::node::{Node, NodeId};

/// A compiled JSON schema.
#[derive(Debug)]
pub struct Schema {
    nodes: Vec<Node>,
    root: NodeId,
}

/// Why a document is not a usable JSON schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// `type` names something that is not a JSON type.
    #[error("invalid JSON type: {0}")]
    Type(String),
    /// A keyword's value has the wrong shape.
    #[error("invalid value of schema keyword \"{keyword}\": expected {expected}")]
    Keyword {
        /// The keyword, as written in the schema.
        keyword: &'static str,
        /// What it should have been.
        expected: &'static str,
    },
    /// A keyword that maps or lists is neither object nor array; Lua stumbles over it in the last four words.
    #[error("invalid value of schema keyword \"{keyword}\": table expected, got {got}")]
    NoTable {
        /// The keyword, as written in the schema.
        keyword: &'static str,
        /// Lua's name of what it was.
        got: &'static str,
    },
    /// An `enum` holds a value of a type it cannot compare.
    #[error("unsupported enum type: userdata")]
    EnumNull,
    /// `$ref` leads nowhere, in a circle, or out of the document.
    #[error("reference not found: {0}")]
    Reference(String),
    /// A `pattern` or `patternProperties` key is not a regular expression.
    #[error("invalid pattern: {0}")]
    Pattern(#[from] pattern::PatternError),
}

impl Schema {
    /// Compiles a schema document, its `$ref`s into itself and its patterns.
    ///
    /// # Errors
    /// [`SchemaError`] when the document is not a schema.
    /// Differs from APISIX: there a broken pattern is accepted and then matches nothing.
    pub fn compile(schema: &Value) -> Result<Schema, SchemaError> {
        let (nodes, root) = compile::compile(schema)?;
        Ok(Schema { nodes, root })
    }

    /// Judges a value.
    ///
    /// # Errors
    /// The first failure, in APISIX's words.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        // Defaults filled in for one keyword decide over later ones, so even a mere check fills in: a copy.
        self.check_and_fill(&mut value.clone())
    }

    /// Judges a value and writes the schema's defaults into it, as APISIX does in one go.
    ///
    /// # Errors
    /// The first failure, in APISIX's words; the value may then hold some of the defaults.
    pub fn check_and_fill(&self, value: &mut Value) -> Result<(), String> {
        Walk::new(&self.nodes).run(self.root, value)
    }

    /// Writes the defaults into a value that is known to be valid; on an invalid one it stops at the first failure.
    pub fn fill_defaults(&self, value: &mut Value) {
        if let Err(reason) = self.check_and_fill(value) {
            tracing::debug!(%reason, "defaults were filled into an invalid value");
        }
    }
}

/// Whether a text is a reference to a secret (`$secret://…`, `$env://…`). Where a schema means a text it passes
/// unjudged, as it is resolved, and so judged by its user, only later. APISIX: secret.lua is_secret_ref.
pub fn is_secret_reference(text: &str) -> bool {
    text.starts_with("$secret://") || text.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("$env://"))
}
