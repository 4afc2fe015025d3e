//! References to secrets (`$env://…`, `$secret://…`), and encryption of secret fields at rest
//! (APISIX: secret.lua, core/env.lua).
//!
//! A configuration is resolved when it is compiled, never per request: find its references with [`references`], fetch
//! what must be fetched from a [`SecretSource`], then put the values in with [`resolve_in`].
//!
//! It must never print a secret: values travel as [`Revealed`], and errors name the reference, not what it stands for.
//! Nothing here reads the environment by itself; the caller passes the look-up.

pub mod cache;
pub mod encryption;

use std::{collections::BTreeSet, fmt};

use async_trait::async_trait;
use serde_json::Value;

const SECRET_PREFIX: &str = "$secret://";
const ENV_PREFIX: &str = "$env://";

/// Where a value of a configuration is to be taken from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// `$env://NAME` or `$env://NAME/field`; the prefix in any case.
    Env {
        /// The environment variable.
        name: String,
        /// The member of the JSON object that is the variable's value; `None` for the value itself.
        field: Option<String>,
    },
    /// `$secret://manager/id/key`.
    Secret(SecretRef),
}

/// A value kept by a secret manager.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretRef {
    /// The kind of manager: `vault`, `aws` or `gcp`.
    pub manager: String,
    /// The id of the secret resource that says how to reach it; the resource's key is `manager/id`.
    pub id: String,
    /// What to ask it for: everything after the id, never empty. How it divides into path and field is up to the
    /// manager.
    pub key: String,
}

/// A secret in clear. Its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Revealed(Value);

/// Why text that begins like a reference is none. The texts are APISIX's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Nothing follows the prefix but one word.
    #[error("error format: no secret manager")]
    NoManager,
    /// There is no second part.
    #[error("error format: no secret conf id")]
    NoId,
    /// There is nothing after the second part.
    #[error("error format: no secret key id")]
    NoKey,
}

/// Why a reference has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The reference itself is wrong.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The environment variable is not set.
    #[error("environment variable {0} is not set")]
    NotSet(String),
    /// A field was asked of a variable whose value is no JSON object.
    #[error("environment variable {0} is not a JSON object")]
    NotAnObject(String),
    /// The JSON object has no such member.
    #[error("environment variable {name} has no field {field}")]
    NoField {
        /// The variable.
        name: String,
        /// The member that is missing, or null.
        field: String,
    },
    /// Its manager was not asked yet.
    #[error("its secret manager did not answer yet")]
    Pending,
    /// There is no secret resource `manager/id`.
    #[error("no secret conf {manager}/{id}")]
    NoConf {
        /// The kind of manager.
        manager: String,
        /// The id asked for.
        id: String,
    },
    /// The secret manager failed; the text is about the exchange with it and holds no secret.
    #[error("secret manager {manager}: {why}")]
    Source {
        /// The kind of manager.
        manager: String,
        /// What happened.
        why: String,
    },
}

/// A reference of a configuration that could not be resolved; its text was left in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// Where it stands, as JSON pointer.
    pub pointer: String,
    /// Its text.
    pub reference: String,
    /// Why.
    pub error: ResolveError,
}

/// A secret manager (APISIX: apisix/secret/*.lua). One implementation per manager; it is asked outside of requests
/// and may use the network.
#[async_trait]
pub trait SecretSource: Send + Sync {
    /// The value behind `key`, by the secret resource `conf` (the value stored under `manager/id`).
    ///
    /// # Errors
    /// [`ResolveError::Source`].
    async fn fetch(&self, conf: &Value, key: &str) -> Result<Revealed, ResolveError>;
}

impl Reference {
    /// Reads a reference; `None` for text that is none. Mistaken `$secret://` text is a reference too, one that
    /// cannot be resolved.
    pub fn parse(text: &str) -> Option<Result<Reference, Malformed>> {
        if let Some(path) = text.strip_prefix(SECRET_PREFIX) {
            return Some(SecretRef::parse(path).map(Reference::Secret));
        }
        let (prefix, path) = text.split_at_checked(ENV_PREFIX.len())?;
        if !prefix.eq_ignore_ascii_case(ENV_PREFIX) {
            return None;
        }
        let (name, field) = match path.split_once('/') {
            Some((name, field)) => (name, Some(field).filter(|field| !field.is_empty())),
            None => (path, None),
        };
        Some(Ok(Reference::Env { name: name.to_owned(), field: field.map(str::to_owned) }))
    }
}

impl SecretRef {
    fn parse(path: &str) -> Result<SecretRef, Malformed> {
        let (manager, rest) = path.split_once('/').ok_or(Malformed::NoManager)?;
        let (id, key) = rest.split_once('/').ok_or(Malformed::NoId)?;
        if key.is_empty() {
            return Err(Malformed::NoKey);
        }
        Ok(SecretRef { manager: manager.to_owned(), id: id.to_owned(), key: key.to_owned() })
    }
}

impl Revealed {
    /// Marks a value as secret.
    pub fn new(value: Value) -> Revealed {
        Revealed(value)
    }

    /// The value; from here on it is the caller's to keep secret.
    pub fn into_value(self) -> Value {
        self.0
    }
}

impl fmt::Debug for Revealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Revealed(…)")
    }
}

/// Whether text is meant as a reference. Schemas skip such text where a string is wanted.
pub fn is_reference(text: &str) -> bool {
    text.starts_with('$') && Reference::parse(text).is_some()
}

/// The references in a configuration, each once. Those that are malformed are left out; [`resolve_in`] names them.
pub fn references(conf: &Value) -> BTreeSet<Reference> {
    let mut found = BTreeSet::new();
    collect(conf, &mut found);
    found
}

/// Puts the values in place of the references of a configuration. Those without a value stay as they are, and are
/// returned: whether that is fatal is for the caller to say (to APISIX it is for credentials only).
pub fn resolve_in(
    conf: &mut Value,
    mut resolve: impl FnMut(&Reference) -> Result<Revealed, ResolveError>,
) -> Vec<Unresolved> {
    let mut unresolved = Vec::new();
    replace(conf, &mut String::new(), &mut resolve, &mut unresolved);
    unresolved
}

/// The value of an environment variable, or of a member of the JSON object in it.
///
/// # Errors
/// [`ResolveError::NotSet`], [`ResolveError::NotAnObject`], [`ResolveError::NoField`].
pub fn resolve_env(
    name: &str,
    field: Option<&str>,
    look_up: impl FnOnce(&str) -> Option<String>,
) -> Result<Revealed, ResolveError> {
    let text = look_up(name).ok_or_else(|| ResolveError::NotSet(name.to_owned()))?;
    let Some(field) = field else { return Ok(Revealed(Value::String(text))) };
    // serde_json's error could quote the value, so it goes no further.
    let Ok(Value::Object(mut members)) = serde_json::from_str(&text) else {
        return Err(ResolveError::NotAnObject(name.to_owned()));
    };
    match members.remove(field) {
        None | Some(Value::Null) => {
            Err(ResolveError::NoField { name: name.to_owned(), field: field.to_owned() })
        }
        Some(value) => Ok(Revealed(value)),
    }
}

fn collect(conf: &Value, found: &mut BTreeSet<Reference>) {
    match conf {
        Value::String(text) => found.extend(Reference::parse(text).and_then(Result::ok)),
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Object(members) => members.values().for_each(|member| collect(member, found)),
        _ => {}
    }
}

fn replace(
    conf: &mut Value,
    pointer: &mut String,
    resolve: &mut impl FnMut(&Reference) -> Result<Revealed, ResolveError>,
    unresolved: &mut Vec<Unresolved>,
) {
    let here = pointer.len();
    match conf {
        Value::String(text) => {
            let Some(parsed) = Reference::parse(text) else { return };
            match parsed.map_err(ResolveError::from).and_then(|reference| resolve(&reference)) {
                Ok(Revealed(value)) => *conf = value,
                Err(error) => {
                    unresolved.push(Unresolved { pointer: pointer.clone(), reference: text.clone(), error })
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                pointer.push_str(&format!("/{index}"));
                replace(item, pointer, resolve, unresolved);
                pointer.truncate(here);
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                // RFC 6901, section 3
                pointer.push_str(&format!("/{}", name.replace('~', "~0").replace('/', "~1")));
                replace(member, pointer, resolve, unresolved);
                pointer.truncate(here);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn env(name: &str, field: Option<&str>) -> Reference {
        Reference::Env { name: name.into(), field: field.map(str::to_owned) }
    }

    fn secret(manager: &str, id: &str, key: &str) -> Reference {
        Reference::Secret(SecretRef { manager: manager.into(), id: id.into(), key: key.into() })
    }

    #[test]
    fn parse_table() {
        #[track_caller]
        fn check(text: &str, wanted: Option<Result<Reference, Malformed>>) {
            assert_eq!(Reference::parse(text), wanted, "{text}");
            assert_eq!(is_reference(text), wanted.is_some(), "{text}");
        }
        check("$env://KEY", Some(Ok(env("KEY", None))));
        check("$ENV://KEY/a", Some(Ok(env("KEY", Some("a")))));
        check("$eNv://KEY/a/b", Some(Ok(env("KEY", Some("a/b")))));
        check("$env://KEY/", Some(Ok(env("KEY", None))));
        check("$env://", Some(Ok(env("", None))));
        check("$secret://vault/1/apisix/jack/key", Some(Ok(secret("vault", "1", "apisix/jack/key"))));
        check("$secret://", Some(Err(Malformed::NoManager)));
        check("$secret://vault", Some(Err(Malformed::NoManager)));
        check("$secret://vault/1", Some(Err(Malformed::NoId)));
        check("$secret://vault/1/", Some(Err(Malformed::NoKey)));
        check("$SECRET://vault/1/key", None);
        check("env://KEY", None);
        check("$env:/KEY", None);
        check("$remote_addr", None);
        check("", None);
        check("$env:/€", None);
    }

    fn environment(name: &str) -> Option<String> {
        match name {
            "PLAIN" => Some("s3cret".into()),
            "OBJECT" => Some(r#"{"a": "s3cret", "n": 5, "null": null, "x/y": "deep"}"#.into()),
            "LIST" => Some(r#"["s3cret"]"#.into()),
            _ => None,
        }
    }

    fn resolve(reference: &Reference) -> Result<Revealed, ResolveError> {
        match reference {
            Reference::Env { name, field } => resolve_env(name, field.as_deref(), environment),
            Reference::Secret(SecretRef { manager, id, .. }) => {
                Err(ResolveError::NoConf { manager: manager.clone(), id: id.clone() })
            }
        }
    }

    #[test]
    fn environment_table() {
        #[track_caller]
        fn check(text: &str, wanted: Result<Value, &str>) {
            let reference = Reference::parse(text).unwrap().unwrap();
            let found = resolve(&reference).map(Revealed::into_value).map_err(|error| error.to_string());
            assert_eq!(found, wanted.map_err(str::to_owned), "{text}");
        }
        check("$env://PLAIN", Ok(json!("s3cret")));
        check("$env://PLAIN/", Ok(json!("s3cret")));
        check("$env://OBJECT/a", Ok(json!("s3cret")));
        check("$env://OBJECT/n", Ok(json!(5)));
        check("$env://OBJECT/x/y", Ok(json!("deep")));
        check("$env://OBJECT/b", Err("environment variable OBJECT has no field b"));
        check("$env://OBJECT/null", Err("environment variable OBJECT has no field null"));
        check("$env://PLAIN/a", Err("environment variable PLAIN is not a JSON object"));
        check("$env://LIST/0", Err("environment variable LIST is not a JSON object"));
        check("$env://ABSENT", Err("environment variable ABSENT is not set"));
    }

    #[test]
    fn a_configuration_is_resolved_in_place() {
        let mut conf = json!({
            "key": "$env://PLAIN",
            "$env://PLAIN": "names are no references",
            "list": [1, "$ENV://OBJECT/n", {"a/b": "$env://ABSENT"}],
            "vault": "$secret://vault/1/x/y",
            "bad": "$secret://vault",
            "plain": "$host",
        });
        assert_eq!(references(&conf).len(), 4);
        let unresolved = resolve_in(&mut conf, resolve);
        let wanted = json!({
            "key": "s3cret",
            "$env://PLAIN": "names are no references",
            "list": [1, 5, {"a/b": "$env://ABSENT"}],
            "vault": "$secret://vault/1/x/y",
            "bad": "$secret://vault",
            "plain": "$host",
        });
        assert_eq!(conf, wanted);
        let named: Vec<_> =
            unresolved.iter().map(|one| (one.pointer.as_str(), one.error.to_string())).collect();
        let wanted = [
            ("/list/2/a~1b", "environment variable ABSENT is not set".to_owned()),
            ("/vault", "no secret conf vault/1".to_owned()),
            ("/bad", "error format: no secret manager".to_owned()),
        ];
        assert_eq!(named, wanted);
        assert!(unresolved.iter().all(|one| conf.pointer(&one.pointer) == Some(&json!(one.reference))));
    }

    #[test]
    fn a_resolved_value_is_not_resolved_again() {
        let mut conf = json!("$env://LOOP");
        let unresolved = resolve_in(&mut conf, |_| Ok(Revealed::new(json!("$env://LOOP"))));
        assert!(unresolved.is_empty());
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", resolve_env("PLAIN", None, environment)), "Ok(Revealed(…))");
        let error = resolve_env("PLAIN", Some("a"), environment);
        assert!(!format!("{error:?}").contains("s3cret"));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text: String, rest: String) {
            Reference::parse(&text);
            Reference::parse(&format!("$secret://{rest}"));
            Reference::parse(&format!("$env://{rest}"));
        }
    }
}
