//! Calls to the provider's endpoints, and how we authenticate there.
//!
//! Invariant: what a call fails with names the endpoint, the status and the provider's error code; never a token.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{
    config::Config,
    fault::Fault,
    provider::{Discovery, call_options},
};
use crate::{
    builtin::shared::{
        base64,
        http_call::{Answer, Call, Client},
        jwt::key::{Algorithm, SigningKey},
    },
    plugin::reply::Class,
};

const DPOP: HeaderName = HeaderName::from_static("dpop");
const DPOP_NONCE: &str = "dpop-nonce";

/// Who we are to the provider, and what proves it.
pub struct Endpoints {
    client: Client,
    client_id: Box<str>,
    secret: Option<Box<str>>,
    key: Option<Result<SigningKey, String>>,
    key_id: Option<Box<str>>,
    secret_key: Option<SigningKey>,
    assertion_lifetime: i64,
    assertion_audience: Option<Box<str>>,
    token_method: Box<str>,
    dpop: Option<Proofs>,
}

/// Signs proofs of possession (RFC 9449).
struct Proofs {
    key: SigningKey,
    jwk: Value,
    /// RFC 7638.
    thumbprint: String,
}

/// The fields of a form.
pub type Fields = Vec<(Cow<'static, str>, String)>;

impl Endpoints {
    /// Prepares the keys.
    ///
    /// # Errors
    /// A key cannot be read or is none for its algorithm.
    pub fn new(config: &Config) -> Result<Self, String> {
        let algorithm = |default: Algorithm| {
            let configured = config.client_jwt_assertion_alg.as_deref().and_then(Algorithm::from_name);
            configured.filter(|one| one.is_symmetric() == default.is_symmetric()).unwrap_or(default)
        };
        let private = config.client_rsa_private_key.as_deref();
        let key = private.map(|pem| {
            let key = SigningKey::from_pem(algorithm(Algorithm::RS256), pem);
            key.map_err(|error| format!("client_rsa_private_key: {error}"))
        });
        let secret = config.client_secret.as_deref().filter(|secret| !secret.is_empty());
        let secret_key =
            secret.map(|secret| SigningKey::from_secret(algorithm(Algorithm::HS256), secret.as_bytes()));
        Ok(Self {
            client: Client::new(&call_options(config))?,
            client_id: config.client_id.as_str().into(),
            secret: secret.map(Into::into),
            key,
            key_id: config.client_rsa_private_key_id.as_deref().map(Into::into),
            secret_key: secret_key.transpose().map_err(|error| format!("client_secret: {error}"))?,
            assertion_lifetime: config.client_jwt_assertion_expires_in,
            assertion_audience: config.client_jwt_assertion_audience.as_deref().map(Into::into),
            token_method: config.token_endpoint_auth_method.as_str().into(),
            dpop: config.dpop.enabled.then(|| Proofs::new(config)).transpose()?,
        })
    }

    /// How we authenticate at the token endpoint: as configured, if that is possible and the provider does not say
    /// that it is not. APISIX: lua-resty-openidc, openidc_get_token_auth_method.
    fn token_method<'s>(&'s self, discovery: &'s Discovery) -> &'s str {
        let usable = |method: &str| match method {
            "client_secret_basic" | "client_secret_post" => true,
            "private_key_jwt" => self.key.is_some(),
            "client_secret_jwt" => self.secret_key.is_some(),
            _ => false,
        };
        let configured = Some(&*self.token_method).filter(|method| usable(method));
        let chosen = match (&discovery.token_endpoint_auth_methods_supported, configured) {
            (None, configured) => configured,
            (Some(supported), Some(configured)) => {
                Some(configured).filter(|wanted| supported.iter().any(|one| one == wanted))
            }
            (Some(supported), None) => supported.iter().map(String::as_str).find(|method| usable(method)),
        };
        chosen.unwrap_or("client_secret_basic")
    }

    /// Asks the token endpoint.
    ///
    /// # Errors
    /// Why there are no tokens.
    pub async fn token(&self, discovery: &Discovery, fields: Fields) -> Result<Map<String, Value>, Fault> {
        let endpoint = discovery.token_endpoint.as_deref().ok_or("no endpoint URI for token")?;
        let answer = self.post(endpoint, fields, self.token_method(discovery), HeaderMap::new(), true).await;
        document("token", answer)
    }

    /// Pushes an authorization request; the answer holds its `request_uri`.
    ///
    /// # Errors
    /// Why it was not taken.
    pub async fn push(
        &self,
        discovery: &Discovery,
        endpoint: Option<&str>,
        method: Option<&str>,
        fields: Fields,
    ) -> Result<Map<String, Value>, Fault> {
        let known = discovery.pushed_authorization_request_endpoint.as_deref();
        let endpoint = endpoint.or(known).ok_or("no endpoint URI for pushed authorization requests")?;
        let method = method.unwrap_or_else(|| self.token_method(discovery));
        let answer = self.post(endpoint, fields, method, HeaderMap::new(), false).await;
        document("pushed authorization request", answer)
    }

    /// Introspects a token (RFC 7662).
    ///
    /// # Errors
    /// Why there is no answer; a token that is not active is one.
    pub async fn introspect(
        &self,
        endpoint: &str,
        method: &str,
        token: &str,
        headers: HeaderMap,
    ) -> Result<Map<String, Value>, Fault> {
        // The secret goes where the method puts it, and only there: RFC 6749 §2.3 forbids more than one way, and
        // strict providers refuse it.
        let fields = vec![("token".into(), token.to_owned())];
        document("introspection", self.post(endpoint, fields, method, headers, false).await)
    }

    /// Lets the provider forget a token (RFC 7009).
    ///
    /// # Errors
    /// Why it did not.
    pub async fn revoke(&self, discovery: &Discovery, hint: &str, token: &str) -> Result<(), String> {
        let Some(endpoint) = discovery.revocation_endpoint.as_deref() else { return Ok(()) };
        let fields = vec![("token".into(), token.to_owned()), ("token_type_hint".into(), hint.to_owned())];
        let answer =
            self.post(endpoint, fields, self.token_method(discovery), HeaderMap::new(), false).await?;
        match answer.status.as_u16() {
            200 => Ok(()),
            _ => Err(refusal("revocation", &answer)),
        }
    }

    /// Asks who the user is.
    ///
    /// # Errors
    /// Why it is not told.
    pub async fn userinfo(&self, endpoint: &str, access_token: &str) -> Result<Answer, String> {
        let mut nonce = None;
        loop {
            let scheme = if self.dpop.is_some() { "DPoP" } else { "Bearer" };
            let mut call = Call::get(endpoint)
                .header(header::AUTHORIZATION, secret_value(&format!("{scheme} {access_token}"))?);
            if let Some(proofs) = &self.dpop {
                let proof = proofs.proof("GET", endpoint, Some(access_token), nonce.as_deref())?;
                call = call.header(DPOP, secret_value(&proof)?);
            }
            let answer =
                self.client.send(call).await.map_err(|error| format!("userinfo endpoint: {error}"))?;
            match self.wanted_nonce(&answer).filter(|_| nonce.is_none()) {
                Some(wanted) => nonce = Some(wanted),
                None if answer.status == 200 => return Ok(answer),
                None => return Err(refusal("userinfo", &answer)),
            }
        }
    }

    /// RFC 7638's fingerprint of the key of our proofs, if we send any.
    pub fn thumbprint(&self) -> Option<&str> {
        self.dpop.as_ref().map(|proofs| proofs.thumbprint.as_str())
    }

    async fn post(
        &self,
        endpoint: &str,
        fields: Fields,
        method: &str,
        headers: HeaderMap,
        proven: bool,
    ) -> Result<Answer, String> {
        let mut nonce = None;
        loop {
            let mut fields = fields.clone();
            let mut call = Call::post(endpoint).headers(headers.clone());
            if let Some(basic) = self.authenticate(endpoint, method, &mut fields)? {
                call = call.header(header::AUTHORIZATION, basic);
            }
            if let Some(proofs) = self.dpop.as_ref().filter(|_| proven) {
                call = call
                    .header(DPOP, secret_value(&proofs.proof("POST", endpoint, None, nonce.as_deref())?)?);
            }
            let call = call.form(fields.iter().map(|(name, value)| (&**name, value.as_str())));
            let answer = self.client.send(call).await.map_err(|error| error.to_string())?;
            match self.wanted_nonce(&answer).filter(|_| proven && nonce.is_none()) {
                Some(wanted) => nonce = Some(wanted),
                None => return Ok(answer),
            }
        }
    }

    /// RFC 9449 §8: the provider wants its nonce in the proof.
    fn wanted_nonce(&self, answer: &Answer) -> Option<String> {
        self.dpop.as_ref().filter(|_| matches!(answer.status.as_u16(), 400 | 401))?;
        Some(answer.headers.get(DPOP_NONCE)?.to_str().ok()?.to_owned())
    }

    /// Puts what proves who we are into the form; a header, if it goes there.
    fn authenticate(
        &self,
        endpoint: &str,
        method: &str,
        fields: &mut Fields,
    ) -> Result<Option<HeaderValue>, String> {
        match (method, &self.secret) {
            ("private_key_jwt", _) => {
                let key = self.key.as_ref().ok_or("Can't use private_key_jwt without a key.")?.as_ref()?;
                self.assert(endpoint, key, fields)?;
            }
            ("client_secret_jwt", _) => {
                let key = self.secret_key.as_ref().ok_or("Can't use client_secret_jwt without a key.")?;
                self.assert(endpoint, key, fields)?;
            }
            ("client_secret_basic", Some(secret)) => {
                let pair = format!("{}:{}", escape(&self.client_id), escape(secret));
                let basic = format!("Basic {}", openssl::base64::encode_block(pair.as_bytes()));
                return secret_value(&basic).map(Some);
            }
            (_, Some(secret)) => {
                set(fields, "client_id", self.client_id.to_string());
                fields.push(("client_secret".into(), secret.to_string()));
            }
            // A public client only says who it is (RFC 6749 §2.3.1).
            (_, None) => set(fields, "client_id", self.client_id.to_string()),
        }
        Ok(None)
    }

    fn assert(&self, endpoint: &str, key: &SigningKey, fields: &mut Fields) -> Result<(), String> {
        let now = super::now();
        let mut head = json!({"typ": "JWT"});
        if let Some(id) = self.key_id.as_deref().filter(|_| !key.algorithm().is_symmetric()) {
            head["kid"] = id.into();
        }
        let claims = json!({
            "iss": &*self.client_id,
            "sub": &*self.client_id,
            "aud": self.assertion_audience.as_deref().unwrap_or(endpoint),
            "jti": random()?,
            "exp": now + self.assertion_lifetime,
            "iat": now
        });
        set(fields, "client_id", self.client_id.to_string());
        fields.push((
            "client_assertion_type".into(),
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer".to_owned(),
        ));
        fields.push(("client_assertion".into(), key.token(head, &claims)?));
        Ok(())
    }
}

fn set(fields: &mut Fields, name: &'static str, value: String) {
    fields.retain(|(other, _)| *other != name);
    fields.push((name.into(), value));
}

impl Proofs {
    fn new(config: &Config) -> Result<Self, String> {
        let name = config.dpop.signing_alg.as_deref().unwrap_or("ES256");
        let algorithm = Algorithm::from_name(name).ok_or("dpop.signing_alg is unknown")?;
        let pem = config.dpop.private_key.as_deref().ok_or("dpop.private_key is missing")?;
        let key =
            SigningKey::from_pem(algorithm, pem).map_err(|error| format!("dpop.private_key: {error}"))?;
        let whole = config.dpop.public_jwk.as_ref().ok_or("dpop.public_jwk is missing")?;
        let members: &[&str] = match whole["kty"].as_str() {
            Some("EC") => &["crv", "kty", "x", "y"],
            _ => &["e", "kty", "n"],
        };
        // RFC 7638 §3: the required members in alphabetical order, without white space.
        let jwk: Map<String, Value> =
            members.iter().map(|name| ((*name).to_owned(), whole[*name].clone())).collect();
        let jwk = Value::Object(jwk);
        let thumbprint = base64::encode_url(&Sha256::digest(jwk.to_string()));
        Ok(Self { key, jwk, thumbprint })
    }

    fn proof(
        &self,
        method: &str,
        address: &str,
        access_token: Option<&str>,
        nonce: Option<&str>,
    ) -> Result<String, String> {
        let target = address.split(['?', '#']).next().unwrap_or_default();
        let mut claims = json!({"jti": random()?, "htm": method, "htu": target, "iat": super::now()});
        if let Some(token) = access_token {
            claims["ath"] = base64::encode_url(&Sha256::digest(token)).into();
        }
        if let Some(nonce) = nonce {
            claims["nonce"] = nonce.into();
        }
        self.key.token(json!({"typ": "dpop+jwt", "jwk": self.jwk}), &claims)
    }
}

/// 256 random bits as base64url: states, nonces, verifiers, ids.
///
/// # Errors
/// The system has no random numbers.
pub fn random() -> Result<String, String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| format!("no random numbers: {error}"))?;
    Ok(base64::encode_url(&bytes))
}

fn secret_value(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::try_from(text).map_err(|_| "a token cannot stand in a header".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// nginx: `ngx.escape_uri`.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn document(endpoint: &str, answer: Result<Answer, String>) -> Result<Map<String, Value>, Fault> {
    let unavailable = |error| Fault::unavailable(format!("{endpoint} endpoint: {error}"));
    let answer = answer.map_err(unavailable)?;
    match answer.status.as_u16() {
        200 | 201 => answer.json().map_err(unavailable),
        status => {
            let reason = refusal(endpoint, &answer);
            // RFC 6749 §5.2: whether the code or token is not right, or we are not.
            let class = match status {
                500.. => Class::Unavailable,
                _ if reason.ends_with("error invalid_grant") => Class::Wrong,
                _ => Class::Internal,
            };
            Err(Fault::new(class, reason))
        }
    }
}

/// What the provider says when it refuses (RFC 6749 §5.2): its error code, if it is one.
fn refusal(endpoint: &str, answer: &Answer) -> String {
    let error = answer.json::<Value>().ok();
    let code = error.as_ref().and_then(|error| error["error"].as_str()).unwrap_or_default();
    let code: String =
        code.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')).take(64).collect();
    let status = answer.status.as_u16();
    match code.is_empty() {
        true => format!("{endpoint} endpoint: the answer has status {status}"),
        false => format!("{endpoint} endpoint: the answer has status {status}, error {code}"),
    }
}
