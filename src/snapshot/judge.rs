//! Judges resources that nobody has judged yet: those of files. What a store holds was judged by the Admin API when it
//! was written, and is not judged again at each start.
//!
//! APISIX: core/config_yaml.lua `sync_data`, which checks each item with the schema and the checker of its kind.

use serde_json::Value;

use super::compile::Env;
use crate::{
    builtin,
    plugin::{
        def::{PluginDef, SchemaType},
        env::{CheckEnv, Registry},
        meta,
    },
    resource::{self, Key, Kind, secret},
};

/// Judges a resource and its plugins by their schemas. `has_metadata` tells of a plugin whether it has any.
///
/// # Errors
/// What is wrong, in the words of APISIX.
pub fn resource(
    env: &Env,
    key: &Key,
    value: &Value,
    has_metadata: &dyn Fn(&str) -> bool,
) -> Result<(), String> {
    match key.kind() {
        Kind::PluginMetadata => return metadata(env, key.id(), value),
        Kind::Secret => return secret::check(key.id().split('/').next().unwrap_or_default(), value),
        _ => {}
    }
    resource::check(key.kind(), value, env.compat)?;
    resource::tell_strangers(key, value, env.compat);
    let of = side(key.kind());
    let plugins = value.get("plugins").and_then(Value::as_object);
    for (name, conf) in plugins.into_iter().flatten() {
        match env.registry.find(name) {
            Some(def) => plugin(env, def, conf, of, has_metadata(name))?,
            // Whoever compiles the others reports them.
            None if env.compat.files_may_have_absent_plugins() || !is_known(name) => {}
            None => return Err(format!("unknown plugin [{name}]: it is not among `plugins` of config.yaml")),
        }
    }
    Ok(())
}

fn is_known(name: &str) -> bool {
    builtin::REGISTRY.iter().any(|def| def.name == name)
}

/// As in APISIX, what plugins have that are not there, or not on, is passed over: it has no effect.
fn metadata(env: &Env, name: &str, value: &Value) -> Result<(), String> {
    let Some(def) = env.registry.find(name) else { return Ok(()) };
    let mut own = value.clone();
    if let Some(members) = own.as_object_mut() {
        // The name, which a file has beside it.
        members.shift_remove("id");
    }
    plugin(env, def, &own, SchemaType::Metadata, true)
}

/// Judges one plugin's configuration by its schema and its own rules.
///
/// # Errors
/// What is wrong, in the words of APISIX.
pub fn plugin(
    env: &Env,
    def: &PluginDef,
    conf: &Value,
    of: SchemaType,
    has_metadata: bool,
) -> Result<(), String> {
    let check = CheckEnv { registry: &env.registry, compat: env.compat, has_metadata };
    match def.check(conf, of, &check) {
        // What never runs may be anything: the file it needs may be on other machines only.
        Err(e) if !meta::disabled(conf) => {
            Err(format!("failed to check the configuration of plugin {} err: {e}", def.name))
        }
        _ => Ok(()),
    }
}

/// Which of a plugin's schemas is for resources of this kind.
pub fn side(kind: Kind) -> SchemaType {
    match kind {
        Kind::Consumer | Kind::Credential => SchemaType::Consumer,
        _ => SchemaType::Route,
    }
}
