//! What the Admin API tells about plugins and schemas. APISIX: admin/plugins.lua, admin/schema.lua, and the plugin
//! endpoints of admin/init.lua.
//!
//! Differs from APISIX: there is no stream plugin; a version is told, but it is the same for all.

use serde_json::{Map, Value, json};

use super::{
    Admin,
    error::{AdminError, Response},
    judge,
};
use crate::{
    compat::Compat,
    net::args,
    plugin::{
        def::{PluginDef, SchemaType},
        env::Registry,
    },
    resource::{self, Kind},
};

/// Every plugin says this one.
const VERSION: f64 = 0.1;

/// Whose plugins are meant.
#[derive(PartialEq)]
enum Subsystem {
    Http,
    Stream,
}

impl Admin {
    /// `GET /apisix/admin/plugins/list`: names by priority.
    pub(super) fn plugin_names(&self, query: &str) -> Result<Response, AdminError> {
        let subsystem = subsystem(query).map_err(|_| AdminError::BareText("invalid subsystem passed"))?;
        let all = self.control.env().registry.all();
        let names: Vec<&str> = match subsystem {
            Subsystem::Http => all.iter().map(|def| def.name).collect(),
            Subsystem::Stream => Vec::new(),
        };
        Ok(Response::json(200, &json!(names)))
    }

    /// `GET /apisix/admin/plugins/NAME` and `/apisix/admin/schema/plugins/NAME`: the schema; with `all=true`, what is
    /// known of all plugins.
    pub(super) fn plugin(&self, name: Option<&str>, query: &str) -> Result<Response, AdminError> {
        let subsystem =
            subsystem(query).map_err(|name| AdminError::Invalid(format!("unsupported subsystem: {name}")))?;
        let argument = |name| args::text(query.as_bytes(), name);
        let http = subsystem == Subsystem::Http;
        if argument("all").as_deref() == Some("true") {
            let all = self.control.env().registry.all().iter().filter(|_| http);
            let all: Map<String, Value> = all.map(|def| (def.name.to_owned(), facts(def))).collect();
            return Ok(Response::json(200, &Value::Object(all)));
        }
        let found = name.filter(|_| http).and_then(|name| self.control.env().registry.find(name));
        let Some(def) = found else {
            let subsystem = if http { "http" } else { "stream" };
            return Err(AdminError::NotFound(format!("plugin not found in subsystem {subsystem}")));
        };
        let of = match argument("schema_type").as_deref() {
            Some("consumer") => SchemaType::Consumer,
            _ => SchemaType::Route,
        };
        match def.schema(of) {
            Some(schema) => Ok(Response::json(200, &schema.json)),
            None => Err(AdminError::Invalid("not found schema".into())),
        }
    }

    /// `PUT /apisix/admin/plugins/reload`: nothing is to be reloaded, plugins are part of the program.
    pub(super) fn reload_plugins(&self, method: &http::Method) -> Result<Response, AdminError> {
        if method != http::Method::PUT {
            let text =
                format!("please use PUT method to reload the plugins, {method} method is not allowed.");
            return Err(AdminError::NotAllowed(text));
        }
        Ok(Response::text(200, "done"))
    }
}

/// `GET /apisix/admin/schema/NAME`.
pub fn schema(name: Option<&str>, compat: Compat) -> Result<Response, AdminError> {
    let name = name.unwrap_or_default();
    let served =
        |kind: &Kind| !matches!(kind, Kind::PluginMetadata | Kind::Secret) && kind.schema_name() == name;
    match Kind::ALL.into_iter().find(served) {
        Some(kind) => Ok(Response::json(200, resource::schema_json(kind, compat))),
        None => Err(AdminError::Invalid(format!("not found schema: {name}"))),
    }
}

/// `POST /apisix/admin/schema/validate/NAME`: judges by the schema alone.
pub fn validate(name: &str, body: Option<Value>, compat: Compat) -> Result<Response, AdminError> {
    let kind = match name {
        "credentials" => Some(Kind::Credential),
        name => Kind::from_dir(name).filter(|kind| *kind != Kind::Credential),
    };
    let kind = kind.ok_or_else(|| AdminError::NotFound(format!("Unsupported resource type: {name}")))?;
    if body.is_none() {
        return Err(AdminError::Invalid("wrong type: expected object, got nil".into()));
    }
    let body = match body {
        Some(Value::Object(mut members)) => {
            judge::tidy(&mut members);
            Value::Object(members)
        }
        other => other.unwrap_or_default(),
    };
    resource::schema(kind, compat).check(&body).map_err(AdminError::Invalid)?;
    Ok(Response::empty(200))
}

fn subsystem(query: &str) -> Result<Subsystem, String> {
    match args::text(query.as_bytes(), "subsystem").as_deref() {
        None | Some("http") => Ok(Subsystem::Http),
        Some("stream") => Ok(Subsystem::Stream),
        Some(other) => Err(other.to_owned()),
    }
}

fn facts(def: &PluginDef) -> Value {
    let mut facts = Map::new();
    facts.insert("version".into(), json!(VERSION));
    facts.insert("priority".into(), json!(def.priority));
    if def.is_auth() {
        facts.insert("type".into(), json!("auth"));
    }
    if def.global {
        facts.insert("scope".into(), json!("global"));
    }
    let schemas = [
        ("schema", SchemaType::Route),
        ("consumer_schema", SchemaType::Consumer),
        ("metadata_schema", SchemaType::Metadata),
    ];
    for (name, of) in schemas {
        if let Some(schema) = def.schema(of) {
            facts.insert(name.into(), schema.json.clone());
        }
    }
    Value::Object(facts)
}
