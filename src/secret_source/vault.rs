//! HashiCorp Vault and OpenBao: the key-value engine.
//!
//! APISIX: secret/vault.lua. The key is `PATH/MEMBER`, below the resource's `prefix`.
//!
//! Differs from APISIX: an answer of the engine's version 2 (`prefix: "kv/data"`) is understood as well; `..` in a path
//! is refused, so that a reference stays below the prefix.

use async_trait::async_trait;
use http::{HeaderName, HeaderValue};
use serde_json::Value;

use super::{client, conf, failed};
use crate::{
    builtin::shared::http_call::Call,
    net::escape::{Escape, escape_uri},
    resource::secret,
    secret::{ResolveError, Revealed, SecretSource},
};

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");

/// See the module.
pub struct Vault;

#[async_trait]
impl SecretSource for Vault {
    async fn fetch(&self, conf: &Value, key: &str) -> Result<Revealed, ResolveError> {
        fetch(conf, key).await.map_err(|why| failed("vault", why))
    }
}

async fn fetch(resource: &Value, key: &str) -> Result<Revealed, String> {
    let conf: secret::Vault = conf(resource)?;
    let (main, member) = divided(key)?;
    let path = path(&conf.prefix, main)?;
    let header = |text: &str| HeaderValue::try_from(text).map_err(|_| "a text that no header can hold");
    let mut token = header(&conf.token)?;
    token.set_sensitive(true);
    let mut call = Call::get(format!("{}{path}", conf.uri.trim_end_matches('/'))).header(TOKEN, token);
    if let Some(namespace) = &conf.namespace {
        call = call.header(NAMESPACE, header(namespace)?);
    }
    let answer = client(true)?.send(call).await.map_err(|error| error.to_string())?;
    if !answer.status.is_success() {
        return Err(format!("invalid status code {}", answer.status.as_u16()));
    }
    taken(answer.json()?, member)
}

/// APISIX: `vault.lua get`.
fn divided(key: &str) -> Result<(&str, &str), String> {
    let (main, member) = key.rsplit_once('/').ok_or_else(|| format!("error key format, key: {key}"))?;
    match (main, member) {
        ("", _) => Err(format!("can't find main key, key: {key}")),
        (_, "") => Err(format!("can't find sub key, key: {key}")),
        both => Ok(both),
    }
}

/// `/v1/PREFIX/MAIN`, without empty parts.
fn path(prefix: &str, main: &str) -> Result<String, String> {
    let mut path = "/v1".to_owned();
    for part in prefix.split('/').chain(main.split('/')).filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err("a path may not climb".into());
        }
        path.push('/');
        path.push_str(&escape_uri(part, Escape::Path));
    }
    Ok(path)
}

/// The member of an answer, whose form is the engine's version.
fn taken(mut answer: Value, member: &str) -> Result<Revealed, String> {
    // `get_mut`, because an answer that is no object must not end in a panic.
    let mut data = answer.get_mut("data").map(Value::take).unwrap_or_default();
    let second = data["metadata"].is_object() && data["data"].is_object();
    if second && data.get(member).is_none_or(|_| member == "data" || member == "metadata") {
        data = data["data"].take();
    }
    match data.get_mut(member).map(Value::take) {
        None | Some(Value::Null) => Err(format!("the secret has no member {member}")),
        Some(value) => Ok(Revealed::new(value)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_divided() {
        assert_eq!(divided("a/b/c"), Ok(("a/b", "c")));
        for (key, error) in [
            ("a", "error key format, key: a"),
            ("/a", "can't find main key, key: /a"),
            ("a/", "can't find sub key, key: a/"),
        ] {
            assert_eq!(divided(key), Err(error.to_owned()));
        }
    }

    #[test]
    fn paths_stay_below_their_prefix() {
        assert_eq!(path("kv/apisix", "jack").as_deref(), Ok("/v1/kv/apisix/jack"));
        assert_eq!(path("/kv//apisix/", "./a b?#").as_deref(), Ok("/v1/kv/apisix/a%20b%3F%23"));
        assert!(path("kv", "../sys/x").is_err());
    }

    #[test]
    fn both_versions_of_the_engine_answer() {
        #[track_caller]
        fn check(answer: Value, member: &str, expected: Option<&str>) {
            let found = taken(answer, member).ok().map(Revealed::into_value);
            assert_eq!(found, expected.map(Value::from), "{member}");
        }
        check(json!({"data": {"key": "v1"}}), "key", Some("v1"));
        check(json!({"data": {"key": "v1"}}), "other", None);
        let second = json!({"data": {"data": {"key": "v2", "data": "inner"}, "metadata": {"version": 1}}});
        check(second.clone(), "key", Some("v2"));
        check(second.clone(), "data", Some("inner"));
        check(second, "version", None);
        check(json!({"errors": []}), "key", None);
        check(json!("text"), "key", None);
    }
}
