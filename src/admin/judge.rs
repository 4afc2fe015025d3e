//! Whether a resource may be written: what it tells by itself. What it says about others is in `refs.rs`.
//! APISIX: the `check_conf` of admin/*.lua, and plugin.lua `check_schema`.
//!
//! The order of checks decides which of several faults is named; it is APISIX's. Where Lua's table order decides, the
//! order here is that of the request.

use serde_json::{Map, Value};

use super::{
    Admin,
    kinds::{Plugins, has_id, rules},
};
use crate::{
    builtin,
    compat::Compat,
    plugin::{
        def::SchemaType,
        env::{CheckEnv, Registry},
    },
    resource::{self, Key, Kind, secret},
    schema::lua,
    snapshot::judge,
    vars::expr::{self, Expr},
};

/// Whether a write must, or must not, come with an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id {
    /// PUT and PATCH.
    Needed,
    /// POST.
    Refused,
}

/// A resource with what its path says about it.
pub struct Subject<'a> {
    /// What it is.
    pub kind: Kind,
    /// The id of the path or the body, a consumer's name, the plugin of plugin metadata, `vault/1` of a secret.
    pub id: Option<&'a str>,
    /// The consumer of a credential.
    pub consumer: Option<&'a str>,
    /// The resource.
    pub value: &'a Value,
}

/// Takes the body of a write for an object. Lua has one empty table, so an empty list is one.
///
/// # Errors
/// APISIX's sentence about a body of another type; where APISIX breaks down, that of its schema.
pub fn object(kind: Kind, body: Option<Value>, compat: Compat) -> Result<Map<String, Value>, String> {
    match body {
        None => Err("missing configurations".into()),
        Some(Value::Object(members)) => Ok(members),
        Some(Value::Array(items)) if items.is_empty() => Ok(Map::new()),
        Some(other) => {
            resource::check_schema(kind, &other, compat)?;
            Err(format!("invalid configuration: wrong type: expected object, got {}", lua::type_name(&other)))
        }
    }
}

/// Makes plugin configurations that are empty lists empty objects, which they are to Lua.
pub fn tidy(members: &mut Map<String, Value>) {
    let Some(plugins) = members.get_mut("plugins") else { return };
    empty_object(plugins);
    plugins.as_object_mut().into_iter().flatten().for_each(|(_, conf)| empty_object(conf));
}

fn empty_object(value: &mut Value) {
    if value.as_array().is_some_and(Vec::is_empty) {
        *value = Value::Object(Map::new());
    }
}

/// Settles the id between path and body and writes it into the body. APISIX: admin/resource.lua `check_conf`.
///
/// # Errors
/// It is missing, unwanted, or the two differ.
pub fn settle_id(
    kind: Kind,
    need: Id,
    path: Option<String>,
    members: &mut Map<String, Value>,
) -> Result<(), String> {
    if !has_id(kind) {
        return Ok(());
    }
    let noun = kind.singular();
    let own = members.get("id").filter(|id| **id != Value::Bool(false));
    match (need, &path, own) {
        (Id::Needed, None, None) => return Err(format!("missing {noun} id")),
        (Id::Refused, Some(_), _) | (Id::Refused, _, Some(_)) => {
            return Err(format!("wrong {noun} id, do not need it"));
        }
        (Id::Needed, Some(path), Some(own)) if id_text(own).as_deref() != Some(path.as_str()) => {
            return Err(format!("wrong {noun} id"));
        }
        _ => {}
    }
    match path {
        Some(id) => {
            members.insert("id".into(), Value::String(id));
        }
        None if need == Id::Refused => {
            members.shift_remove("id");
        }
        None => {}
    }
    Ok(())
}

/// An id as Lua's `tostring` shows it; `None` for what is no id.
pub fn id_text(id: &Value) -> Option<String> {
    match id {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(lua::number_text(number.as_f64()?)),
        _ => None,
    }
}

/// Refuses the times that only the gateway may set.
///
/// # Errors
/// Which one is there.
pub fn forbid_times(members: &Map<String, Value>) -> Result<(), String> {
    let below = |name: &str| members.get(name).and_then(Value::as_object);
    let places = [(Some(members), ""), (below("upstream"), "upstream."), (below("plugins"), "plugins.")];
    for (place, prefix) in places {
        for time in ["create_time", "update_time"] {
            let found = place.and_then(|place| place.get(time));
            if found.is_some_and(|found| *found != Value::Bool(false)) {
                return Err(format!("the property is forbidden:  {prefix}{time}"));
            }
        }
    }
    Ok(())
}

impl Admin {
    /// The first half: the schema and the kind's own rules.
    pub(super) fn judge_form(&self, subject: &Subject<'_>) -> Result<(), String> {
        let (value, compat) = (subject.value, self.control.env().compat);
        match subject.kind {
            Kind::PluginMetadata => return self.judge_metadata(subject.id, value),
            Kind::Secret => {
                let manager = subject.id.and_then(|id| id.split('/').next()).unwrap_or_default();
                return secret::check(manager, value);
            }
            kind => resource::check_schema(kind, value, compat)?,
        }
        match subject.kind {
            // What is beyond a stream route's schema is ruled on last.
            Kind::StreamRoute => Ok(()),
            Kind::Consumer => match (subject.id, value.get("username").and_then(Value::as_str)) {
                (Some(id), Some(username)) if id != username => Err("wrong username".into()),
                _ => Ok(()),
            },
            kind => resource::check_extra(kind, value, compat, &|key| self.decrypt_key(key)),
        }
    }

    /// The second half: plugins, and code that would have to run.
    pub(super) fn judge_plugins(&self, subject: &Subject<'_>) -> Result<(), String> {
        let value = subject.value;
        if let Some(plugins) = value.get("plugins").and_then(Value::as_object) {
            self.judge_plugin_map(rules(subject.kind).plugins, plugins)?;
        }
        match subject.kind {
            Kind::Route | Kind::Service => judge_code(value),
            Kind::Consumer if self.control.env().compat.consumers_authenticate() => {
                self.one_authenticates(value.get("plugins"))
            }
            Kind::StreamRoute => {
                resource::check_extra(Kind::StreamRoute, value, self.control.env().compat, &|_| None)?;
                match value.pointer("/protocol/name").and_then(Value::as_str) {
                    Some(name) => Err(format!("unknown protocol [{name}]")),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// APISIX 3.2: `admin/consumers.lua`.
    fn one_authenticates(&self, plugins: Option<&Value>) -> Result<(), String> {
        let Some(plugins) = plugins.and_then(Value::as_object) else { return Ok(()) };
        let registry = &self.control.env().registry;
        let authenticates = |name: &String| registry.find(name).is_some_and(|def| def.auth.is_some());
        match plugins.keys().any(authenticates) {
            true => Ok(()),
            false => Err("require one auth plugin".into()),
        }
    }

    fn judge_plugin_map(&self, role: Plugins, plugins: &Map<String, Value>) -> Result<(), String> {
        match role {
            Plugins::None => Ok(()),
            Plugins::Route => self.judge_each(plugins, SchemaType::Route),
            Plugins::Stream => match plugins.iter().next() {
                Some((name, conf)) => Err(not_a_table(name, conf).unwrap_or_else(|| unknown(name))),
                None => Ok(()),
            },
            Plugins::Consumer | Plugins::Credential => {
                let judged = self.judge_each(plugins, SchemaType::Consumer);
                judged.map_err(|e| format!("invalid plugins configuration: {e}"))?;
                let registry = &self.control.env().registry;
                let auth = |name: &String| registry.find(name).is_some_and(|def| def.is_auth());
                if role == Plugins::Credential && !plugins.keys().all(auth) {
                    return Err("only supports auth type plugins in consumer credential".into());
                }
                Ok(())
            }
        }
    }

    fn judge_each(&self, plugins: &Map<String, Value>, of: SchemaType) -> Result<(), String> {
        plugins.iter().try_for_each(|(name, conf)| self.judge_plugin(name, conf, of))
    }

    fn judge_plugin(&self, name: &str, conf: &Value, of: SchemaType) -> Result<(), String> {
        if let Some(error) = not_a_table(name, conf) {
            return Err(error);
        }
        let def = self.control.env().registry.find(name).ok_or_else(|| unknown(name))?;
        judge::plugin(self.control.env(), def, conf, of, self.check_env(name).has_metadata)?;
        match conf.pointer("/_meta/filter") {
            Some(filter) => judge_vars(filter),
            None => Ok(()),
        }
    }

    fn judge_metadata(&self, name: Option<&str>, value: &Value) -> Result<(), String> {
        let name = name.ok_or("missing plugin name")?;
        let def = builtin::REGISTRY.iter().find(|def| def.name == name).ok_or("invalid plugin name")?;
        let judged = def.check(value, SchemaType::Metadata, &self.check_env(name));
        judged.map_err(|error| format!("invalid configuration: {error}"))
    }

    fn check_env(&self, plugin: &str) -> CheckEnv<'_> {
        let env = self.control.env();
        let has_metadata = self.control.has(&Key::new(Kind::PluginMetadata, plugin));
        CheckEnv { registry: &env.registry, compat: env.compat, has_metadata }
    }

    fn decrypt_key(&self, key: &str) -> Option<String> {
        self.control.env().keyring.as_ref()?.decrypt(key)
    }

    /// Writes what a plugin makes of its configuration into a resource that was found good.
    pub(super) fn complete(&self, kind: Kind, value: &mut Value) {
        let of = judge::side(kind);
        let plugins = value.get_mut("plugins").and_then(Value::as_object_mut);
        for (name, conf) in plugins.into_iter().flatten() {
            let def = self.control.env().registry.find(name);
            if let Some(completed) = def.and_then(|def| def.completed(conf, of, &self.check_env(name))) {
                *conf = completed;
            }
        }
    }

    /// Writes the defaults of the schemas into a resource that was found good, as APISIX 3.2 did.
    pub(super) fn fill_defaults(&self, kind: Kind, value: &mut Value) {
        resource::fill_defaults(kind, value);
        let of = judge::side(kind);
        let plugins = value.get_mut("plugins").and_then(Value::as_object_mut);
        for (name, conf) in plugins.into_iter().flatten() {
            let def = self.control.env().registry.find(name);
            let schema = def.and_then(|def| def.schema(of).or_else(|| def.schema(SchemaType::Route)));
            if let Some(schema) = schema {
                schema.schema.fill_defaults(conf);
            }
        }
    }
}

fn not_a_table(name: &str, conf: &Value) -> Option<String> {
    let table = conf.is_object() || conf.is_array();
    (!table).then(|| format!("invalid plugin conf {conf} for plugin [{name}]"))
}

fn unknown(name: &str) -> String {
    format!("unknown plugin [{name}]")
}

fn judge_code(value: &Value) -> Result<(), String> {
    if let Some(vars) = value.get("vars").filter(|vars| vars.is_array()) {
        judge_vars(vars)?;
        expr::check_post_args(vars).map_err(|e| format!("failed to validate the 'vars' expression: {e}"))?;
    }
    if value.get("script").is_some() {
        return Err("script is Lua code, which does not run here: use plugins".into());
    }
    Ok(())
}

fn judge_vars(vars: &Value) -> Result<(), String> {
    let parsed = Expr::parse(vars).map(drop);
    parsed.map_err(|e| format!("failed to validate the 'vars' expression: {e}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn members(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[track_caller]
    fn check(need: Id, path: Option<&str>, body: Value, wanted: Result<Value, &str>) {
        let mut found = members(body.clone());
        let outcome = settle_id(Kind::GlobalRule, need, path.map(str::to_owned), &mut found);
        let outcome = outcome.map(|()| found.get("id").cloned().unwrap_or_default());
        assert_eq!(outcome, wanted.map_err(str::to_owned), "{path:?} {body}");
    }

    #[test]
    fn ids() {
        check(Id::Needed, Some("1"), json!({}), Ok(json!("1")));
        check(Id::Needed, Some("1"), json!({"id": 1}), Ok(json!("1")));
        check(Id::Needed, Some("1"), json!({"id": false}), Ok(json!("1")));
        check(Id::Needed, None, json!({"id": 1}), Ok(json!(1)));
        check(Id::Needed, None, json!({"id": null}), Ok(json!(null)));
        check(Id::Needed, None, json!({}), Err("missing global rule id"));
        check(Id::Needed, Some("1"), json!({"id": "2"}), Err("wrong global rule id"));
        check(Id::Needed, Some("1"), json!({"id": []}), Err("wrong global rule id"));
        check(Id::Refused, None, json!({}), Ok(json!(null)));
        check(Id::Refused, Some("1"), json!({}), Err("wrong global rule id, do not need it"));
        check(Id::Refused, None, json!({"id": 1}), Err("wrong global rule id, do not need it"));
    }

    #[test]
    fn times() {
        #[track_caller]
        fn check(body: Value, wanted: Option<&str>) {
            let wanted = wanted.map(|what| format!("the property is forbidden:  {what}"));
            assert_eq!(forbid_times(&members(body)).err(), wanted);
        }
        check(json!({"uri": "/"}), None);
        check(json!({"create_time": false}), None);
        check(json!({"create_time": "a"}), Some("create_time"));
        check(json!({"update_time": 1, "create_time": 1}), Some("create_time"));
        check(json!({"upstream": {"update_time": null}}), Some("upstream.update_time"));
        check(json!({"plugins": {"create_time": {}}}), Some("plugins.create_time"));
        check(json!({"upstream": 1, "plugins": "x"}), None);
    }

    #[test]
    fn bodies_that_are_no_objects() {
        assert_eq!(object(Kind::Route, None, Compat::Now), Err("missing configurations".into()));
        assert_eq!(object(Kind::Route, Some(json!([])), Compat::Now), Ok(Map::new()));
        for kind in Kind::ALL {
            let error = object(kind, Some(json!("x")), Compat::Now).unwrap_err();
            assert_eq!(error, "invalid configuration: wrong type: expected object, got string");
        }
    }
}
