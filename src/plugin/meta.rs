//! `_meta`: what every plugin configuration may carry besides its own options. No plugin knows that it exists.

use serde_json::{Value, json};

use super::reply::{Reply, ReplyBody};
use crate::vars::expr::Expr;

/// The compiled `_meta` of one plugin configuration.
#[derive(Default)]
pub struct Meta {
    /// The plugin stays out of the chain.
    pub disable: bool,
    /// Replaces the plugin's priority within its set.
    pub priority: Option<i64>,
    /// The plugin runs only for requests that match; evaluated once per request.
    pub filter: Option<Expr>,
    /// The filter asks for something in the request's body.
    pub filter_needs_body: bool,
    /// Replaces the body of every reply with a status ≥ 400.
    pub error_response: Option<ReplyBody>,
}

impl Meta {
    /// Reads `_meta` out of a checked plugin configuration.
    ///
    /// # Errors
    /// The filter is no expression, or `pre_function` is asked for: Lua has no meaning here.
    pub fn compile(conf: &Value) -> Result<Meta, String> {
        let Some(meta) = conf.get("_meta").filter(|meta| meta.is_object()) else {
            return Ok(Meta::default());
        };
        if meta.get("pre_function").is_some() {
            return Err("_meta.pre_function is Lua code, which does not run here: use _meta.filter, or an external plugin".into());
        }
        let filter = match meta.get("filter") {
            Some(filter) => Some(
                Expr::parse(filter).map_err(|e| format!("failed to validate the 'vars' expression: {e}"))?,
            ),
            None => None,
        };
        Ok(Meta {
            disable: disabled(conf),
            priority: meta.get("priority").and_then(Value::as_i64),
            filter_needs_body: filter.as_ref().is_some_and(Expr::needs_body),
            filter,
            error_response: meta.get("error_response").map(error_body),
        })
    }

    /// Puts `error_response` in place of the body of an error reply.
    pub fn finish(&self, mut reply: Reply) -> Reply {
        if let Some(body) = self.error_response.as_ref().filter(|_| reply.status >= 400) {
            reply.body = body.clone();
        }
        reply
    }
}

/// Whether a raw plugin configuration is switched off. APISIX: `plugin.lua check_disable`.
pub fn disabled(conf: &Value) -> bool {
    conf.pointer("/_meta/disable") == Some(&Value::Bool(true))
}

/// Adds `_meta` to a plugin's schema, as the Admin API serves it.
pub(super) fn inject(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    let properties = schema.entry("properties").or_insert_with(|| json!({}));
    let Some(properties) = properties.as_object_mut() else { return };
    properties.insert("_meta".into(), meta_schema());
    schema.insert("$comment".into(), json!("this is a mark for our injected plugin schema"));
}

fn meta_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "disable": {"type": "boolean"},
            "error_response": {"oneOf": [{"type": "string"}, {"type": "object"}]},
            "priority": {"description": "priority of plugins by customized order", "type": "integer"},
            "filter": {
                "description": "filter determines whether the plugin needs to be executed at runtime",
                "type": "array"
            },
            "pre_function": {
                "description": "Lua code; refused here, use filter",
                "type": "string"
            }
        },
        "additionalProperties": false
    })
}

fn error_body(value: &Value) -> ReplyBody {
    match value {
        Value::String(text) => ReplyBody::Bytes(text.clone().into()),
        other => ReplyBody::Json(other.clone()),
    }
}
