//! The secret managers that values are fetched from: Vault (and OpenBao), AWS Secrets Manager, GCP Secret Manager.
//!
//! APISIX: secret/{vault,aws,gcp}.lua. What is fetched when is decided by [`crate::secret::cache`].
//!
//! Invariant: an error says what happened in the exchange and never holds anything that the manager answered: the
//! answer may be the secret.

mod aws;
mod gcp;
mod vault;

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    builtin::shared::http_call::{Client, Options},
    secret::{ResolveError, Revealed, SecretSource, cache::Sources},
};

/// APISIX: `httpc:set_timeout` of vault.lua.
const TIMEOUT: Duration = Duration::from_secs(5);

/// All of them, by name.
pub fn all() -> Sources {
    let vault: Box<dyn SecretSource> = Box::new(vault::Vault);
    Sources::from([("vault", vault), ("aws", Box::new(aws::Aws)), ("gcp", Box::new(gcp::Gcp::default()))])
}

/// A failure of a manager.
fn failed(manager: &str, why: impl Into<String>) -> ResolveError {
    ResolveError::Source { manager: manager.to_owned(), why: why.into() }
}

fn client(verify: bool) -> Result<Client, String> {
    Client::new(&Options { verify, timeout: TIMEOUT, ..Options::default() })
}

/// A secret resource in its type; errors of serde could quote it.
fn conf<T: DeserializeOwned>(conf: &Value) -> Result<T, String> {
    T::deserialize(conf).map_err(|_| "the secret resource does not fit its schema".to_owned())
}

/// A member of a JSON document that a manager keeps as text.
fn member(document: &str, name: &str) -> Result<Revealed, String> {
    let Ok(Value::Object(mut members)) = serde_json::from_str(document) else {
        return Err("the secret is no JSON object".into());
    };
    match members.remove(name) {
        None | Some(Value::Null) => Err(format!("the secret has no member {name}")),
        Some(value) => Ok(Revealed::new(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members() {
        #[track_caller]
        fn check(document: &str, expected: Result<Value, &str>) {
            let found = member(document, "a").map(Revealed::into_value);
            assert_eq!(found, expected.map_err(str::to_owned), "{document}");
        }
        check(r#"{"a": "x"}"#, Ok("x".into()));
        check(r#"{"a": 1}"#, Ok(1.into()));
        check(r#"{"a": null}"#, Err("the secret has no member a"));
        check("{}", Err("the secret has no member a"));
        check("[]", Err("the secret is no JSON object"));
        check("s3cret", Err("the secret is no JSON object"));
    }
}
