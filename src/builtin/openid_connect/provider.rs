//! The provider as its own documents describe it: the discovery document and the published keys.
//!
//! Both are fetched when first needed and kept fresh in the background, for all configurations that ask the same
//! provider in the same way. Start reading at [`Provider`].

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    time::Duration,
};

use serde_json::{Map, Value};

use super::config::Config;
use crate::builtin::shared::{
    fresh::{Fresh, Kept},
    http_call::{self, Call, Client},
    jwt::jwks::KeySet,
};

/// How old the discovery document may be before it is fetched again.
const LIFETIME: Duration = Duration::from_secs(3600);

/// What a provider says of itself. Members that are not there, or of the wrong type, are `None`.
#[derive(Debug, Default, PartialEq)]
pub struct Discovery {
    /// Who it is; stands in its tokens.
    pub issuer: Option<String>,
    /// Where browsers are sent to log in.
    pub authorization_endpoint: Option<String>,
    /// Where codes and refresh tokens become tokens.
    pub token_endpoint: Option<String>,
    /// Where it tells of the user.
    pub userinfo_endpoint: Option<String>,
    /// Where its keys are.
    pub jwks_uri: Option<String>,
    /// Where tokens are introspected.
    pub introspection_endpoint: Option<String>,
    /// Where tokens are revoked.
    pub revocation_endpoint: Option<String>,
    /// Where browsers are sent to log out.
    pub end_session_endpoint: Option<String>,
    /// The same, of Ping Federate.
    pub ping_end_session_endpoint: Option<String>,
    /// Where authorization requests are pushed.
    pub pushed_authorization_request_endpoint: Option<String>,
    /// How clients may authenticate at the token endpoint.
    pub token_endpoint_auth_methods_supported: Option<Vec<String>>,
    /// How ID tokens are signed.
    pub id_token_signing_alg_values_supported: Option<Vec<String>>,
}

impl Discovery {
    /// Reads a discovery document.
    ///
    /// # Errors
    /// It is no JSON object.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let members: Map<String, Value> = serde_json::from_slice(json).map_err(|error| {
            format!("it is no JSON object (line {} column {})", error.line(), error.column())
        })?;
        let text = |name: &str| members.get(name).and_then(Value::as_str).map(str::to_owned);
        let list = |name: &str| {
            let list = members.get(name)?.as_array()?;
            Some(list.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect())
        };
        Ok(Self {
            issuer: text("issuer"),
            authorization_endpoint: text("authorization_endpoint"),
            token_endpoint: text("token_endpoint"),
            userinfo_endpoint: text("userinfo_endpoint"),
            jwks_uri: text("jwks_uri"),
            introspection_endpoint: text("introspection_endpoint"),
            revocation_endpoint: text("revocation_endpoint"),
            end_session_endpoint: text("end_session_endpoint"),
            ping_end_session_endpoint: text("ping_end_session_endpoint"),
            pushed_authorization_request_endpoint: text("pushed_authorization_request_endpoint"),
            token_endpoint_auth_methods_supported: list("token_endpoint_auth_methods_supported"),
            id_token_signing_alg_values_supported: list("id_token_signing_alg_values_supported"),
        })
    }
}

/// What makes two configurations share a provider: address, verification of certificates, time-out.
type Key = (String, bool, u64);

// Locked while a configuration is compiled, never per request. Providers that no configuration names go with the last.
static PROVIDERS: LazyLock<Mutex<HashMap<Key, Weak<Provider>>>> = LazyLock::new(Mutex::default);

/// A provider.
pub struct Provider {
    url: Box<str>,
    client: Client,
    discovery: Arc<Fresh<Discovery>>,
    keys: Arc<Fresh<KeySet>>,
}

impl Provider {
    /// The provider of a configuration, shared with others that reach it in the same way.
    ///
    /// # Errors
    /// The options of the connection cannot be used.
    pub fn shared(config: &Config) -> Result<Arc<Self>, String> {
        let client = Client::new(&call_options(config))?;
        let new = || {
            Arc::new(Self {
                url: config.discovery.as_str().into(),
                client,
                discovery: Arc::default(),
                keys: Arc::default(),
            })
        };
        if config.proxy_opts.is_some() {
            // What a proxy is told must not stand in a name; and who has one rarely has two configurations.
            return Ok(new());
        }
        let mut providers = PROVIDERS.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (config.discovery.clone(), config.verifies(), config.timeout);
        if let Some(provider) = providers.get(&key).and_then(Weak::upgrade) {
            return Ok(provider);
        }
        let provider = new();
        providers.retain(|_, provider| provider.strong_count() > 0);
        providers.insert(key, Arc::downgrade(&provider));
        Ok(provider)
    }

    /// The discovery document.
    ///
    /// # Errors
    /// There is none yet and it cannot be fetched.
    pub async fn discovery(self: &Arc<Self>) -> Result<Arc<Kept<Discovery>>, String> {
        let this = self.clone();
        let fetch = async move {
            let body = this.document(&this.url).await?;
            Discovery::parse(&body)
        };
        self.discovery.get(LIFETIME, fetch).await.map_err(|error| format!("discovery document: {error}"))
    }

    /// The published keys.
    ///
    /// # Errors
    /// There are none yet and they cannot be fetched.
    pub async fn keys(self: &Arc<Self>, lifetime: Duration) -> Result<Arc<Kept<KeySet>>, String> {
        let fetch = self.clone().fetch_keys();
        self.keys.get(lifetime, fetch).await.map_err(|error| format!("published keys: {error}"))
    }

    /// The published keys after some lacked one.
    ///
    /// # Errors
    /// They cannot be fetched.
    pub async fn newer_keys(self: &Arc<Self>, lacking: &Kept<KeySet>) -> Result<Arc<Kept<KeySet>>, String> {
        let fetch = self.clone().fetch_keys();
        self.keys.renew(lacking, fetch).await.map_err(|error| format!("published keys: {error}"))
    }

    async fn fetch_keys(self: Arc<Self>) -> Result<KeySet, String> {
        let discovery = self.discovery().await?;
        let address = discovery.jwks_uri.as_deref().ok_or("the discovery document has no jwks_uri")?;
        KeySet::parse(&self.document(address).await?)
    }

    async fn document(&self, url: &str) -> Result<bytes::Bytes, String> {
        let answer = self.client.send(Call::get(url)).await.map_err(|error| error.to_string())?;
        match answer.status.as_u16() {
            200 => Ok(answer.body),
            status => Err(format!("the answer has status {status}")),
        }
    }
}

/// How the provider is called.
pub fn call_options(config: &Config) -> http_call::Options {
    // APISIX once stored milliseconds: openid-connect.lua rewrite.
    let milliseconds = match config.timeout {
        stored if stored >= 1000 && stored % 1000 == 0 => stored,
        seconds => seconds.saturating_mul(1000),
    };
    let proxy = config.proxy_opts.as_ref().map(|proxy| http_call::Proxy {
        http: proxy.http_proxy.clone(),
        http_authorization: proxy.http_proxy_authorization.clone(),
        https: proxy.https_proxy.clone(),
        https_authorization: proxy.https_proxy_authorization.clone(),
        except: proxy.no_proxy.clone(),
    });
    http_call::Options {
        verify: config.verifies(),
        timeout: Duration::from_millis(milliseconds),
        proxy,
        ..http_call::Options::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_is_there() {
        let read = Discovery::parse(
            br#"{"issuer": "https://a", "token_endpoint": 1, "id_token_signing_alg_values_supported": ["RS256", 2]}"#,
        );
        let expected = Discovery {
            issuer: Some("https://a".into()),
            id_token_signing_alg_values_supported: Some(vec!["RS256".into()]),
            ..Discovery::default()
        };
        assert_eq!(read, Ok(expected));
        assert_eq!(Discovery::parse(b"[]").unwrap_err(), "it is no JSON object (line 1 column 0)");
        assert!(Discovery::parse(b"<html>").is_err());
    }

    #[test]
    fn is_shared_and_forgotten_with_the_last_who_names_it() {
        let config = |address: &str| -> Config {
            let conf = serde_json::json!({"client_id": "a", "discovery": address});
            serde_json::from_value(conf).unwrap()
        };
        let named = |address: &str| Provider::shared(&config(address)).unwrap();
        let known = |address: &str| {
            let providers = PROVIDERS.lock().unwrap_or_else(PoisonError::into_inner);
            providers.keys().any(|(known, _, _)| known == address)
        };
        let one = named("https://one.example");
        assert!(Arc::ptr_eq(&one, &named("https://one.example")));
        drop(one);
        let _other = named("https://other.example");
        assert!(!known("https://one.example") && known("https://other.example"));
    }

    proptest! {
        #[test]
        fn reads_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Discovery::parse(&bytes);
        }
    }
}
