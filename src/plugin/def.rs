//! What the registry keeps of a plugin: names, schemas and constructors as plain data.

use std::sync::{Arc, OnceLock};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    contract::{AnyCredential, AuthPlugin, Hooks, Plugin, PublicApi},
    env::{BuildEnv, CheckEnv},
    phases::Phases,
};
use crate::schema::Schema;

type Build = fn(Value, &BuildEnv<'_>) -> Result<Box<dyn Hooks>, String>;

/// One line of the registry.
pub struct PluginDef {
    /// APISIX's name.
    pub name: &'static str,
    /// APISIX's number; higher runs first.
    pub priority: i32,
    /// Hooks that exist.
    pub phases: Phases,
    /// See [`Plugin::PREFER_ROUTE`].
    pub prefer_route: bool,
    /// See [`Plugin::GLOBAL`].
    pub global: bool,
    /// See [`Plugin::RUNS_AUTH`].
    pub runs_auth: bool,
    /// Secret fields of the configuration on a route.
    pub encrypt: &'static [&'static str],
    /// Endpoints behind `public-api`.
    pub apis: fn(Option<&Value>) -> Vec<PublicApi>,
    /// The consumer's side, for plugins of type `auth`.
    pub auth: Option<AuthDef>,
    schema: Side,
    reword: fn(&Value, String) -> String,
    pardons: fn(&Value, &CheckEnv<'_>) -> bool,
    metadata_schema: fn() -> Option<Value>,
    metadata: OnceLock<Option<Arc<Compiled>>>,
    build: Build,
}

/// The consumer's side of an auth plugin.
pub struct AuthDef {
    /// The identifying field.
    pub key: &'static str,
    /// See [`AuthPlugin::UNIQUE`].
    pub unique: bool,
    /// See [`AuthPlugin::FORMER_KEY`].
    pub former_key: Option<&'static str>,
    /// Secret fields of the consumer's side.
    pub encrypt: &'static [&'static str],
    schema: Side,
    credential: fn(&Value, &BuildEnv<'_>) -> Result<AnyCredential, String>,
    default_key: Option<&'static str>,
    own_schema: bool,
}

/// A schema with what the plugin checks beyond it.
struct Side {
    /// Whether APISIX puts `_meta` into it (`plugin.lua`): only into the side of routes.
    meta: bool,
    json: fn() -> Value,
    completed: fn(&Value, &CheckEnv<'_>) -> Option<Value>,
    check: fn(&Value, &CheckEnv<'_>) -> Result<(), String>,
    compiled: OnceLock<Arc<Compiled>>,
}

/// A schema as JSON and ready to check with.
pub struct Compiled {
    /// As the Admin API serves it.
    pub json: Value,
    /// Ready to check with.
    pub schema: Schema,
}

/// Which of a plugin's schemas is meant. APISIX: `core.schema.TYPE_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SchemaType {
    /// On a route, service, plugin config, global rule, or a non-auth plugin on a consumer.
    Route,
    /// On a consumer or credential.
    Consumer,
    /// Plugin metadata.
    Metadata,
}

impl PluginDef {
    /// Whether the plugin is of type `auth`.
    pub fn is_auth(&self) -> bool {
        self.auth.is_some() || self.runs_auth
    }

    /// The registry line of a plugin that does not authenticate.
    pub const fn of<P: Plugin>() -> PluginDef {
        PluginDef {
            name: P::NAME,
            priority: P::PRIORITY,
            phases: P::PHASES,
            prefer_route: P::PREFER_ROUTE,
            global: P::GLOBAL,
            runs_auth: P::RUNS_AUTH,
            encrypt: P::ENCRYPT,
            apis: P::apis,
            auth: None,
            schema: Side {
                json: P::schema,
                meta: true,
                completed: P::completed,
                check: P::check,
                compiled: OnceLock::new(),
            },
            reword: P::reword,
            pardons: P::pardons,
            metadata_schema: P::metadata_schema,
            metadata: OnceLock::new(),
            build: build::<P>,
        }
    }

    /// The registry line of a plugin of type `auth`.
    pub const fn auth<P: AuthPlugin>() -> PluginDef {
        let auth = AuthDef {
            key: P::KEY,
            unique: P::UNIQUE,
            default_key: P::DEFAULT_KEY,
            own_schema: P::OWN_SCHEMA,
            former_key: P::FORMER_KEY,
            encrypt: P::ENCRYPT_CREDENTIAL,
            schema: Side {
                json: P::consumer_schema,
                meta: false,
                completed: P::completed_consumer,
                check: P::check_consumer,
                compiled: OnceLock::new(),
            },
            credential: credential::<P>,
        };
        PluginDef {
            name: P::NAME,
            priority: P::PRIORITY,
            phases: P::PHASES,
            prefer_route: P::PREFER_ROUTE,
            global: P::GLOBAL,
            runs_auth: P::RUNS_AUTH,
            encrypt: P::ENCRYPT,
            apis: P::apis,
            auth: Some(auth),
            schema: Side {
                json: P::schema,
                meta: true,
                completed: P::completed,
                check: P::check,
                compiled: OnceLock::new(),
            },
            reword: P::reword,
            pardons: P::pardons,
            metadata_schema: P::metadata_schema,
            metadata: OnceLock::new(),
            build: build::<P>,
        }
    }

    /// The schema of one type; `None` when the plugin has none of it.
    pub fn schema(&self, of: SchemaType) -> Option<Arc<Compiled>> {
        match of {
            SchemaType::Route => Some(self.schema.compiled()),
            SchemaType::Consumer => {
                self.auth.as_ref().filter(|auth| auth.own_schema).map(|auth| auth.schema.compiled())
            }
            SchemaType::Metadata => {
                self.metadata.get_or_init(|| (self.metadata_schema)().map(Compiled::shared)).clone()
            }
        }
    }

    /// Checks a configuration as APISIX's `check_schema` of the plugin does.
    ///
    /// # Errors
    /// The text after `err: `.
    pub fn check(&self, conf: &Value, of: SchemaType, env: &CheckEnv<'_>) -> Result<(), String> {
        let side = match of {
            SchemaType::Metadata => {
                return match self.schema(SchemaType::Metadata) {
                    Some(compiled) => compiled.schema.check(conf),
                    None => Ok(()),
                };
            }
            of => self.side(of),
        };
        let completed = (side.completed)(conf, env);
        let conf = completed.as_ref().unwrap_or(conf);
        match side.compiled().schema.check(conf) {
            Err(_) if of == SchemaType::Route && (self.pardons)(conf, env) => Ok(()),
            Err(error) => Err((self.reword)(conf, error)),
            Ok(()) => (side.check)(conf, env),
        }
    }

    /// What is to be stored in place of a configuration; `None`: itself. See [`Plugin::completed`].
    pub fn completed(&self, conf: &Value, of: SchemaType, env: &CheckEnv<'_>) -> Option<Value> {
        (self.side(of).completed)(conf, env)
    }

    fn side(&self, of: SchemaType) -> &Side {
        match (of, &self.auth) {
            (SchemaType::Consumer, Some(auth)) => &auth.schema,
            _ => &self.schema,
        }
    }

    /// Compiles a configuration that passed [`PluginDef::check`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn build(&self, conf: Value, env: &BuildEnv<'_>) -> Result<Box<dyn Hooks>, String> {
        (self.build)(conf, env)
    }
}

impl AuthDef {
    /// What identifies the consumer in its side of the configuration, if it is there.
    pub fn identity<'c>(&self, conf: &'c Value) -> Option<&'c str> {
        let field = conf.get(self.key).or_else(|| conf.get(self.former_key?));
        field.map_or(self.default_key, Value::as_str)
    }

    /// Compiles the consumer's side.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn credential(&self, conf: &Value, env: &BuildEnv<'_>) -> Result<AnyCredential, String> {
        (self.credential)(conf, env)
    }
}

impl Side {
    fn compiled(&self) -> Arc<Compiled> {
        let compile = || {
            let mut json = (self.json)();
            if self.meta {
                super::meta::inject(&mut json);
            }
            Compiled::shared(json)
        };
        self.compiled.get_or_init(compile).clone()
    }
}

impl Compiled {
    fn shared(json: Value) -> Arc<Self> {
        let schema =
            Schema::compile(&json).expect("a schema of the registry compiles: a unit test compiles all");
        Arc::new(Self { json, schema })
    }
}

fn build<P: Plugin>(conf: Value, env: &BuildEnv<'_>) -> Result<Box<dyn Hooks>, String> {
    let config = P::Config::deserialize(&conf).or_else(|_| {
        let mut conf = conf;
        empty_lists(&P::schema(), &mut conf);
        P::Config::deserialize(conf).map_err(|e| e.to_string())
    })?;
    Ok(Box::new(P::build(config, env)?))
}

/// To Lua `{}` is a list as well: where a schema wants a list, it becomes one without entries.
fn empty_lists(schema: &Value, conf: &mut Value) {
    let (Some(Value::Object(rules)), Value::Object(members)) = (schema.get("properties"), conf) else {
        return;
    };
    for (name, member) in members {
        let Some(rule) = rules.get(name) else { continue };
        let empty = member.as_object().is_some_and(Map::is_empty);
        match rule.get("type").and_then(Value::as_str) {
            Some("array") if empty => *member = Value::Array(Vec::new()),
            _ => empty_lists(rule, member),
        }
    }
}

fn credential<P: AuthPlugin>(conf: &Value, env: &BuildEnv<'_>) -> Result<AnyCredential, String> {
    Ok(Arc::new(P::credential(conf, env)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_without_members_is_a_list_where_one_is_wanted() {
        let schema = json!({"type": "object", "properties": {
            "list": {"type": "array"},
            "map": {"type": "object"},
            "inner": {"type": "object", "properties": {"list": {"type": "array"}}},
        }});
        let mut conf = json!({"list": {}, "map": {}, "inner": {"list": {}}, "other": {}});
        empty_lists(&schema, &mut conf);
        assert_eq!(conf, json!({"list": [], "map": {}, "inner": {"list": []}, "other": {}}));
    }
}
