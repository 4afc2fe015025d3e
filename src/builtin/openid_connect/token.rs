//! Which tokens are believed: ID tokens that the token endpoint gave, and bearer tokens that a client brought.
//!
//! Invariant: a bearer token is believed only for its signature by one of the provider's keys; `none` never is.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};

use super::{
    config::Config,
    now,
    provider::{Discovery, Provider},
};
use crate::{
    builtin::shared::{
        jwt::{
            jwks::Unverified,
            key::{Algorithm, VerifyingKey},
            token::{Member, Token},
        },
        memo::Memo,
    },
    plugin::reply::Class,
};

/// The longest that a verified signature is remembered: keys may be withdrawn.
const REMEMBERED: Duration = Duration::from_secs(120);

/// How many verified bearer tokens are remembered.
const MEMORY: usize = 4096;

/// The claims of a token.
pub type Claims = Map<String, Value>;

/// Verifies tokens for one configuration.
pub struct Verifier {
    provider: Arc<Provider>,
    client_id: Box<str>,
    /// Of `public_key`: one for each algorithm that the key can be for.
    fixed: Option<Vec<VerifyingKey>>,
    /// Of `client_secret`, for ID tokens.
    symmetric: Vec<VerifyingKey>,
    expected: Option<Vec<Algorithm>>,
    valid_issuers: Option<Vec<String>>,
    keys_lifetime: Duration,
    slack: f64,
    accept_none: bool,
    accept_unsupported: bool,
    memo: Option<Memo<Claims>>,
}

impl Verifier {
    /// Prepares the keys.
    pub fn new(config: &Config, provider: Arc<Provider>) -> Self {
        let fixed = config.public_key.as_deref().map(public_keys);
        let secret = config.client_secret.as_deref().unwrap_or_default();
        let symmetric = Algorithm::ALL.into_iter().filter(|one| one.is_symmetric() && !secret.is_empty());
        let expected = config.token_signing_alg_values_expected.as_deref();
        Self {
            provider,
            client_id: config.client_id.as_str().into(),
            fixed,
            symmetric: symmetric
                .filter_map(|one| VerifyingKey::from_secret(one, secret.as_bytes()).ok())
                .collect(),
            // A name that is none leaves no algorithm: every token is refused.
            expected: expected.map(|name| Algorithm::from_name(name).into_iter().collect()),
            valid_issuers: config.claim_validator.issuer.valid_issuers.clone(),
            keys_lifetime: Duration::from_secs(config.jwk_expires_in.max(0).unsigned_abs()),
            slack: config.iat_slack as f64,
            accept_none: config.accept_none_alg,
            accept_unsupported: config.accept_unsupported_alg,
            memo: (!config.jwt_verification_cache_ignore).then(|| Memo::new(MEMORY)),
        }
    }

    /// The claims of a bearer token that is genuine, in time and of a valid issuer.
    ///
    /// # Errors
    /// Why it is not believed.
    pub async fn bearer(&self, text: &str) -> Result<Arc<Claims>, Doubt> {
        let mut discovered = None;
        if self.valid_issuers.is_none() {
            // Without an issuer to compare with, a token that another issuer made with the same key would do.
            let unavailable = |error| Doubt::caused("issuer validation unavailable", error);
            let document = self.provider.discovery().await.map_err(unavailable)?;
            discovered = document.issuer.clone();
        }
        let claims = self.signed_claims(text).await?;
        self.check_time(&claims)?;
        let issuer = claims.get("iss").and_then(Value::as_str);
        let valid = match &self.valid_issuers {
            Some(issuers) => issuer.is_some_and(|issuer| issuers.iter().any(|valid| valid == issuer)),
            None => issuer.is_some() && issuer == discovered.as_deref(),
        };
        if valid { Ok(claims) } else { Err("Claim 'iss' returned failure".into()) }
    }

    async fn signed_claims(&self, text: &str) -> Result<Arc<Claims>, Doubt> {
        let key = self.memo.as_ref().map(|memo| (memo, memo.key(&[text.as_bytes()])));
        if let Some((memo, key)) = &key
            && let Some(claims) = memo.get(key)
        {
            return Ok(claims);
        }
        let token = Token::parse(text).ok_or_else(|| Doubt::malformed("invalid jwt"))?;
        self.verify_published(&token, self.expected.as_deref()).await?;
        let claims = Arc::new(token.claims().ok_or("invalid jwt: its payload is no JSON object")?);
        if let Some((memo, key)) = key {
            memo.put(key, REMEMBERED, claims.clone());
        }
        Ok(claims)
    }

    /// Verifies a signature with `public_key` or, without one, the published keys.
    async fn verify_published(&self, token: &Token<'_>, allowed: Option<&[Algorithm]>) -> Result<(), Doubt> {
        let failed = |reason: &dyn std::fmt::Display| {
            Doubt::from(format!("jwt signature verification failed: {reason}"))
        };
        if let Some(keys) = &self.fixed {
            let allowed = |key: &&VerifyingKey| allowed.is_none_or(|some| some.contains(&key.algorithm()));
            return match keys.iter().filter(allowed).any(|key| key.accepts(token)) {
                true => Ok(()),
                false => Err(failed(&Unverified::Signature)),
            };
        }
        let unavailable = |error: String| Doubt::caused("the keys of the provider are unavailable", error);
        let keys = self.provider.keys(self.keys_lifetime).await.map_err(unavailable)?;
        let verdict = match keys.verify(token, allowed) {
            // The provider may have changed its keys since.
            Err(Unverified::NoKey) => {
                let keys = self.provider.newer_keys(&keys).await.map_err(unavailable)?;
                keys.verify(token, allowed)
            }
            verdict => verdict,
        };
        verdict.map(drop).map_err(|error| failed(&error))
    }

    fn check_time(&self, claims: &Claims) -> Result<(), Doubt> {
        let now = now() as f64;
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| format!("Claim '{name}' is no number")),
        };
        match (time("exp")?, time("nbf")?) {
            (Some(exp), _) if exp + self.slack < now => Err(Doubt::expired("JWT expired")),
            (_, Some(nbf)) if nbf - self.slack > now => Err(Doubt::expired("JWT not yet valid")),
            _ => Ok(()),
        }
    }

    /// The claims of an ID token that the token endpoint gave (OpenID Connect Core §3.1.3.7).
    ///
    /// # Errors
    /// Why it is not believed.
    pub async fn id_token(
        &self,
        text: &str,
        discovery: &Discovery,
        nonce: Option<&str>,
    ) -> Result<Claims, Doubt> {
        let claims = match text.strip_suffix('.') {
            // A signature that is empty would not even be a token.
            Some(unsigned) => self.unsigned(unsigned)?,
            None => {
                let token = Token::parse(text).ok_or("the id_token is no JWT")?;
                self.verify_id_token(&token, discovery).await?;
                token.claims().ok_or("the id_token's payload is no JSON object")?
            }
        };
        self.check_id_claims(&claims, discovery, nonce)?;
        Ok(claims)
    }

    fn unsigned(&self, text: &str) -> Result<Claims, String> {
        if !self.accept_none {
            return Err("token uses \"none\" alg but accept_none_alg is not enabled".into());
        }
        let text = format!("{text}.AA");
        let token = Token::parse(&text).ok_or("the id_token is no JWT")?;
        match token.header(["alg"]) {
            Some([Member::Text(alg)]) if alg == "none" => {
                token.claims().ok_or_else(|| "the id_token's payload is no JSON object".into())
            }
            _ => Err("the id_token has no signature".into()),
        }
    }

    async fn verify_id_token(&self, token: &Token<'_>, discovery: &Discovery) -> Result<(), Doubt> {
        let Some([Member::Text(alg)]) = token.header(["alg"]) else {
            return Err("the id_token names no algorithm".into());
        };
        if let Some(supported) = &discovery.id_token_signing_alg_values_supported
            && !supported.iter().any(|one| *one == alg)
        {
            return Err(
                format!("the id_token is signed by an unexpected algorithm {}", alg.escape_debug()).into()
            );
        }
        match Algorithm::from_name(&alg) {
            None if self.accept_unsupported && alg != "none" => {
                // The token came from the token endpoint itself, which OpenID Connect lets stand for a signature.
                tracing::warn!(%alg, "openid-connect: ignored the signature of an id_token, its algorithm is unknown");
                Ok(())
            }
            None => Err("the id_token is signed by an unknown algorithm".into()),
            Some(algorithm) if algorithm.is_symmetric() => {
                match self.symmetric.iter().any(|key| key.accepts(token)) {
                    true => Ok(()),
                    false => Err("the id_token's signature is not ours".into()),
                }
            }
            Some(_) => self.verify_published(token, None).await,
        }
    }

    fn check_id_claims(
        &self,
        claims: &Claims,
        discovery: &Discovery,
        nonce: Option<&str>,
    ) -> Result<(), Doubt> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let number = |name: &str| claims.get(name).and_then(Value::as_f64);
        let now = now() as f64;
        let missing = |name: &str| format!("no {name} claim in the id_token");
        if text("iss").is_none() || text("iss") != discovery.issuer.as_deref() {
            return Err("the id_token's issuer is not that of the discovery document".into());
        }
        text("sub").ok_or_else(|| missing("sub"))?;
        if nonce.is_some() && text("nonce") != nonce {
            return Err("the id_token's nonce is not the one that was sent".into());
        }
        if number("iat").ok_or_else(|| missing("iat"))? > now + self.slack {
            return Err(Doubt::expired("the id_token is not yet valid"));
        }
        if number("exp").ok_or_else(|| missing("exp"))? + self.slack < now {
            return Err(Doubt::expired("the id_token has expired"));
        }
        let audience = claims.get("aud").ok_or_else(|| missing("aud"))?;
        if names(audience, &self.client_id) {
            Ok(())
        } else {
            Err("the id_token is for somebody else".into())
        }
    }

    /// The claims of a userinfo answer that is a JWT.
    ///
    /// # Errors
    /// Why it is not believed.
    pub async fn signed_userinfo(&self, text: &str) -> Result<Claims, String> {
        let token = Token::parse(text).ok_or("invalid jwt")?;
        self.verify_published(&token, None).await?;
        let claims = token.claims().ok_or("invalid jwt: its payload is no JSON object")?;
        self.check_time(&claims)?;
        Ok(claims)
    }
}

/// Why a token is not believed.
#[derive(Debug)]
pub struct Doubt {
    /// What the client may be told.
    pub told: String,
    /// What only the operator is told: what hindered verification.
    pub cause: Option<String>,
    /// What kind of reason it is.
    pub class: Class,
}

impl Doubt {
    /// Something else than the token is at fault.
    pub fn caused(told: &str, cause: impl Into<String>) -> Self {
        Self { told: told.to_owned(), cause: Some(cause.into()), class: Class::Unavailable }
    }

    /// It is no token.
    fn malformed(told: &str) -> Self {
        Self { class: Class::Malformed, ..told.into() }
    }

    /// It was, or will be, right at another time.
    fn expired(told: &str) -> Self {
        Self { class: Class::Expired, ..told.into() }
    }
}

impl From<String> for Doubt {
    fn from(told: String) -> Self {
        Self { told, cause: None, class: Class::Wrong }
    }
}

impl From<&str> for Doubt {
    fn from(told: &str) -> Self {
        told.to_owned().into()
    }
}

impl From<Doubt> for String {
    fn from(doubt: Doubt) -> Self {
        match doubt.cause {
            Some(cause) => format!("{}: {cause}", doubt.told),
            None => doubt.told,
        }
    }
}

/// Whether an audience is this one or has it among others.
pub fn names(audience: &Value, wanted: &str) -> bool {
    match audience {
        Value::Array(list) => list.iter().any(|one| one.as_str() == Some(wanted)),
        one => one.as_str() == Some(wanted),
    }
}

/// The claims of a token that was believed when it was stored.
pub fn stored_claims(text: &str) -> Option<Claims> {
    match Token::parse(text) {
        Some(token) => token.claims(),
        None => Token::parse(&format!("{text}AA")).and_then(|token| token.claims()),
    }
}

/// None if the text cannot be read: then no token is believed.
fn public_keys(text: &str) -> Vec<VerifyingKey> {
    let keys: Vec<_> = Algorithm::ALL
        .into_iter()
        .filter(|algorithm| !algorithm.is_symmetric())
        .filter_map(|algorithm| VerifyingKey::from_pem(algorithm, text).ok())
        .collect();
    if keys.is_empty() {
        tracing::warn!("public_key of openid-connect cannot be read: no token will be believed");
    }
    keys
}
