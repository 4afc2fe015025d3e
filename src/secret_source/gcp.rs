//! GCP Secret Manager: `versions/latest:access`, with a token that a service account's signature buys (RFC 7523).
//!
//! APISIX: secret/gcp.lua, utils/google-cloud-oauth.lua. The key is a secret's name, and a member's behind the first
//! slash when the secret is a JSON object.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use http::{HeaderValue, header};
use openssl::{hash::MessageDigest, pkey::PKey, sign::Signer};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{client, conf, failed, member};
use crate::{
    builtin::shared::http_call::{Call, Client},
    net::escape::{Escape, escape_uri},
    resource::secret,
    secret::{ResolveError, Revealed, SecretSource},
};

/// What a token is asked to last, in seconds.
const LIFETIME: u64 = 3600;
/// A token is not used in its last minute.
const MARGIN: Duration = Duration::from_secs(60);
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// See the module.
#[derive(Default)]
pub struct Gcp {
    // Locked around one probe, when secrets are fetched; never per request.
    tokens: Mutex<HashMap<Account, Token>>,
}

/// A fingerprint of the service account.
type Account = [u8; 32];

#[derive(Clone)]
struct Token {
    authorization: HeaderValue,
    good_until: Instant,
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    token_type: Option<String>,
    expires_in: u64,
}

#[async_trait]
impl SecretSource for Gcp {
    async fn fetch(&self, conf: &Value, key: &str) -> Result<Revealed, ResolveError> {
        self.get(conf, key).await.map_err(|why| failed("gcp", why))
    }
}

impl Gcp {
    async fn get(&self, resource: &Value, key: &str) -> Result<Revealed, String> {
        let conf: secret::Gcp = conf(resource)?;
        let (name, within) = match key.split_once('/') {
            Some((name, within)) => (name, Some(within)),
            None => (key, None),
        };
        if name.is_empty() {
            return Err(format!("can't find main key, key: {key}"));
        }
        let account = account(&conf)?;
        let client = client(conf.ssl_verify)?;
        let token = self.token(&client, &account).await?;
        let text = access(&client, &account, token.authorization, name).await?;
        match within {
            Some(within) => member(&text, within),
            None => Ok(Revealed::new(Value::String(text))),
        }
    }

    async fn token(&self, client: &Client, account: &secret::GcpAuth) -> Result<Token, String> {
        let print = fingerprint(account);
        let known = self.lock().get(&print).cloned();
        if let Some(token) = known.filter(|token| token.good_until > Instant::now()) {
            return Ok(token);
        }
        let token = grant(client, account).await?;
        let mut tokens = self.lock();
        tokens.retain(|_, token| token.good_until > Instant::now());
        tokens.insert(print, token.clone());
        Ok(token)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Account, Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The service account, written into the resource or in a file as Google gives it out.
fn account(conf: &secret::Gcp) -> Result<secret::GcpAuth, String> {
    match (&conf.auth_config, &conf.auth_file) {
        (Some(account), _) => Ok(account.clone()),
        (None, Some(file)) => {
            let text = std::fs::read_to_string(file)
                .map_err(|error| format!("failed to read configuration, file: {file}, err: {error}"))?;
            serde_json::from_str(&text).map_err(|_| format!("config parse failure, file: {file}"))
        }
        (None, None) => Err("neither auth_config nor auth_file".into()),
    }
}

fn fingerprint(account: &secret::GcpAuth) -> Account {
    let mut hasher = Sha256::new();
    for part in [&account.client_email, &account.project_id, &account.private_key, &account.token_uri] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    for scope in &account.scope {
        hasher.update((scope.len() as u64).to_be_bytes());
        hasher.update(scope);
    }
    hasher.finalize().into()
}

async fn grant(client: &Client, account: &secret::GcpAuth) -> Result<Token, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let assertion = assertion(account, now)?;
    let call = Call::post(&account.token_uri).form([("grant_type", GRANT), ("assertion", &*assertion)]);
    let asked = Instant::now();
    let answer = client.send(call).await.map_err(|error| error.to_string())?;
    if !answer.status.is_success() {
        return Err(format!("failed to get google oauth token: status code {}", answer.status.as_u16()));
    }
    let granted: Granted = answer.json()?;
    let kind = granted.token_type.as_deref().unwrap_or("Bearer");
    let authorization = HeaderValue::try_from(format!("{kind} {}", granted.access_token));
    let mut authorization = authorization.map_err(|_| "the token cannot stand in a header")?;
    authorization.set_sensitive(true);
    let good = Duration::from_secs(granted.expires_in).saturating_sub(MARGIN);
    Ok(Token { authorization, good_until: asked + good.min(Duration::from_secs(LIFETIME)) })
}

/// A token about oneself, signed with RS256 (RFC 7523).
fn assertion(account: &secret::GcpAuth, now: u64) -> Result<String, String> {
    let claims = json!({
        "iss": account.client_email,
        "aud": account.token_uri,
        "scope": account.scope.join(" "),
        "iat": now,
        "exp": now + LIFETIME,
    });
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&json!({"alg": "RS256", "typ": "JWT"})), encode(&claims));
    // OpenSSL's errors are about its own steps, but a key is nothing to take chances with.
    let sign = || {
        let key = PKey::private_key_from_pem(account.private_key.as_bytes())?;
        Signer::new(MessageDigest::sha256(), &key)?.sign_oneshot_to_vec(signed.as_bytes())
    };
    let signature = sign().map_err(|_| "private_key cannot sign".to_owned())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

async fn access(
    client: &Client,
    account: &secret::GcpAuth,
    authorization: HeaderValue,
    name: &str,
) -> Result<String, String> {
    let part = |text| escape_uri(text, Escape::Component);
    let base = account.entries_uri.trim_end_matches('/');
    let url = format!(
        "{base}/projects/{}/secrets/{}/versions/latest:access",
        part(&account.project_id),
        part(name)
    );
    let call = Call::get(url)
        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header(header::AUTHORIZATION, authorization);
    let answer = client.send(call).await.map_err(|error| error.to_string())?;
    if !answer.status.is_success() {
        return Err(format!("invalid status code {}", answer.status.as_u16()));
    }
    let body: Value = answer.json()?;
    let payload = body.pointer("/payload/data").and_then(Value::as_str).ok_or("invalid payload")?;
    let bytes = STANDARD.decode(payload).map_err(|_| "invalid payload")?;
    String::from_utf8(bytes).map_err(|_| "the secret is not a text".into())
}

#[cfg(test)]
mod tests {
    use openssl::{rsa::Rsa, sign::Verifier};

    use super::*;

    #[test]
    fn assertions_are_signed() {
        let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let account: secret::GcpAuth = serde_json::from_value(json!({
            "client_email": "me@example.com",
            "project_id": "p",
            "private_key": String::from_utf8(key.private_key_to_pem_pkcs8().unwrap()).unwrap(),
            "scope": ["a", "b"],
            "token_uri": "http://127.0.0.1/token",
        }))
        .unwrap();
        let token = assertion(&account, 100).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let mut verifier = Verifier::new(MessageDigest::sha256(), &key).unwrap();
        assert!(verifier.verify_oneshot(&signature, signed.as_bytes()).unwrap());
        let claims = URL_SAFE_NO_PAD.decode(signed.split_once('.').unwrap().1).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        let wanted = json!({
            "iss": "me@example.com", "aud": "http://127.0.0.1/token", "scope": "a b", "iat": 100, "exp": 3700,
        });
        assert_eq!(claims, wanted);
        let broken = secret::GcpAuth { private_key: "none".into(), ..account };
        assert_eq!(assertion(&broken, 100), Err("private_key cannot sign".into()));
    }
}
