//! What an openid-connect configuration says, and what APISIX's `check_schema` rules beyond the JSON schema.
//!
//! Start reading at [`Config`]. Invariant: no text made here holds a secret.

use openssl::{
    hash::MessageDigest,
    pkey::{Id, PKey, Private},
    sign::Signer,
};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Map, Value, json};

use crate::{
    builtin::shared::{base64, is_secret_ref},
    compat::Compat,
    schema::Schema,
};

/// The configuration.
#[derive(Deserialize)]
pub struct Config {
    /// Who we are to the provider.
    pub client_id: String,
    /// What proves it.
    pub client_secret: Option<String>,
    /// The address of the provider's discovery document.
    pub discovery: String,
    /// What is asked for, separated by spaces.
    #[serde(default = "openid")]
    pub scope: String,
    /// Whether the provider's certificate must be valid; the default is a question of compatibility.
    #[serde(default, deserialize_with = "verification")]
    pub ssl_verify: Option<bool>,
    /// The longest that a call to the provider may take, in seconds; multiples of 1000 are milliseconds.
    #[serde(default = "three")]
    pub timeout: u64,
    /// Where tokens are introspected; default: what the discovery document says.
    pub introspection_endpoint: Option<String>,
    /// How we authenticate there.
    #[serde(default = "basic")]
    pub introspection_endpoint_auth_method: String,
    /// How we authenticate at the token endpoint.
    #[serde(default = "basic")]
    pub token_endpoint_auth_method: String,
    /// Whether there is no login: requests bring a bearer token.
    #[serde(default)]
    pub bearer_only: bool,
    /// Where logins are kept.
    pub session: Option<Session>,
    /// What challenges name.
    #[serde(default = "apisix")]
    pub realm: String,
    /// What bearer tokens must claim.
    #[serde(default)]
    pub claim_validator: ClaimValidator,
    /// The path that ends a login.
    #[serde(default = "logout")]
    pub logout_path: String,
    /// Where the provider sends the browser back to; default: the path of the request and `/.apisix/redirect`.
    pub redirect_uri: Option<String>,
    /// Where the provider sends the browser after a logout.
    pub post_logout_redirect_uri: Option<String>,
    /// What happens to requests that are not logged in.
    #[serde(default)]
    pub unauth_action: UnauthAction,
    /// The key that bearer tokens are signed with, PEM.
    pub public_key: Option<String>,
    /// Whether bearer tokens are verified with the keys that the provider publishes.
    #[serde(default)]
    pub use_jwks: bool,
    /// The one algorithm that bearer tokens may be signed with.
    pub token_signing_alg_values_expected: Option<String>,
    /// Whether the code is bound to this login by a proof key (RFC 7636).
    #[serde(default)]
    pub use_pkce: bool,
    /// Pushed authorization requests (RFC 9126).
    #[serde(default)]
    pub par: Par,
    /// Proof of possession (RFC 9449).
    #[serde(default)]
    pub dpop: Dpop,
    /// Whether the upstream gets the access token.
    #[serde(default = "yes")]
    pub set_access_token_header: bool,
    /// … as `Authorization: Bearer` instead of `X-Access-Token`.
    #[serde(default)]
    pub access_token_in_authorization_header: bool,
    /// Whether the upstream gets the claims of the ID token.
    #[serde(default = "yes")]
    pub set_id_token_header: bool,
    /// Whether the upstream gets the ID token as the provider signed it.
    #[serde(default)]
    pub set_raw_id_token_header: bool,
    /// Whether the upstream gets what the provider tells of the user.
    #[serde(default = "yes")]
    pub set_userinfo_header: bool,
    /// Whether the upstream gets the refresh token.
    #[serde(default)]
    pub set_refresh_token_header: bool,
    /// The proxy on the way to the provider.
    pub proxy_opts: Option<ProxyOpts>,
    /// Further parameters of the authorization request.
    #[serde(default)]
    pub authorization_params: Map<String, Value>,
    /// The key that signs our assertions, PEM.
    pub client_rsa_private_key: Option<String>,
    /// Its id.
    pub client_rsa_private_key_id: Option<String>,
    /// How long an assertion is valid, in seconds.
    #[serde(default = "sixty")]
    pub client_jwt_assertion_expires_in: i64,
    /// The algorithm of our assertions.
    pub client_jwt_assertion_alg: Option<String>,
    /// Whom our assertions are for; default: the endpoint.
    pub client_jwt_assertion_audience: Option<String>,
    /// Whether an expired access token is renewed with the refresh token.
    #[serde(default = "yes")]
    pub renew_access_token_on_expiry: bool,
    /// How long an access token is valid when the provider does not say, in seconds.
    pub access_token_expires_in: Option<i64>,
    /// After how many seconds the provider is asked, without the user's doing, whether the login still stands.
    pub refresh_session_interval: Option<i64>,
    /// How far the clocks may be apart, in seconds.
    #[serde(default = "two_minutes")]
    pub iat_slack: i64,
    /// Whether an ID token may come unsigned.
    #[serde(default)]
    pub accept_none_alg: bool,
    /// Whether an ID token may be signed in a way that is not known here.
    #[serde(default = "yes")]
    pub accept_unsupported_alg: bool,
    /// How many seconds before its end an access token counts as expired.
    #[serde(default)]
    pub access_token_expires_leeway: i64,
    /// Whether every request goes through the login.
    #[serde(default)]
    pub force_reauthorize: bool,
    /// Whether the ID token is bound to this login by a nonce.
    #[serde(default)]
    pub use_nonce: bool,
    /// Whether a logout tells the provider to forget the tokens (RFC 7009).
    #[serde(default)]
    pub revoke_tokens_on_logout: bool,
    /// How old published keys may be before they are fetched again, in seconds.
    #[serde(default = "day")]
    pub jwk_expires_in: i64,
    /// Whether every bearer token is verified anew.
    #[serde(default)]
    pub jwt_verification_cache_ignore: bool,
    /// How long an introspection is believed, in seconds; 0: as long as the token is valid.
    #[serde(default)]
    pub introspection_interval: i64,
    /// The member of the introspection that says until when it holds; default `exp`.
    pub introspection_expiry_claim: Option<String>,
    /// Headers of the request that are sent along with an introspection.
    #[serde(default)]
    pub introspection_addon_headers: Vec<String>,
    /// Scopes that must have been granted.
    pub required_scopes: Option<Vec<String>>,
    /// The schema that the claims must satisfy.
    pub claim_schema: Option<Value>,
    /// The claim that names the consumer.
    pub consumer_claim: Option<String>,
}

fn openid() -> String {
    "openid".into()
}
fn yes() -> bool {
    true
}
fn three() -> u64 {
    3
}
fn basic() -> String {
    "client_secret_basic".into()
}
fn apisix() -> String {
    "apisix".into()
}
fn logout() -> String {
    "/logout".into()
}
fn sixty() -> i64 {
    60
}
fn two_minutes() -> i64 {
    120
}
fn day() -> i64 {
    86_400
}

/// `ssl_verify`: very old versions wrote `"no"` for `false`.
fn verification<'de, D: Deserializer<'de>>(source: D) -> Result<Option<bool>, D::Error> {
    match Value::deserialize(source)? {
        Value::Bool(verify) => Ok(Some(verify)),
        Value::String(text) if text == "no" => Ok(Some(false)),
        _ => Err(D::Error::custom("ssl_verify is neither true nor false")),
    }
}

impl Config {
    /// Whether the provider's certificate must be valid.
    pub fn verifies(&self) -> bool {
        self.ssl_verify.unwrap_or(true)
    }

    /// Puts in what the version that is spoken to operators takes for granted. APISIX 3.2 made a secret for sessions up;
    /// here it comes from the client's, so that it is the same after a restart and in every gateway.
    ///
    /// # Errors
    /// The secret cannot be derived.
    pub fn complete(&mut self, compat: Compat) -> Result<(), String> {
        self.ssl_verify.get_or_insert(compat.oidc_verifies_certificates());
        if self.session.is_some() || self.bearer_only || compat.oidc_wants_a_session() {
            return Ok(());
        }
        let Some(known) = self.client_secret.as_deref().filter(|secret| !secret.is_empty()) else {
            return Ok(());
        };
        let failed = |_| "no secret for sessions can be derived".to_owned();
        let key = PKey::hmac(known.as_bytes()).map_err(failed)?;
        let mut signer = Signer::new(MessageDigest::sha256(), &key).map_err(failed)?;
        let what = format!("openid-connect sessions\n{}\n{}", self.client_id, self.discovery);
        let secret = base64::encode_url(&signer.sign_oneshot_to_vec(what.as_bytes()).map_err(failed)?);
        self.session = Some(Session { secret, ..Session::default() });
        Ok(())
    }
}

/// What the Admin API stores in place of what it was given: `"no"` becomes `false`; and 3.2's defaults are written
/// down, the made-up secret for sessions among them. APISIX: openid-connect.lua `check_schema`.
pub fn completed(conf: &Value, compat: Compat) -> Option<Value> {
    let mut whole = conf.as_object()?.clone();
    let no = || Value::Bool(false);
    if whole.get("ssl_verify").and_then(Value::as_str) == Some("no") {
        whole.insert("ssl_verify".into(), no());
    }
    if !compat.oidc_verifies_certificates() {
        whole.entry("ssl_verify").or_insert_with(no);
    }
    let bearers = whole.get("bearer_only").is_some_and(|value| *value != no());
    if !compat.oidc_wants_a_session() && !bearers && !whole.contains_key("session") {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).ok()?;
        whole.insert("session".into(), json!({"secret": base64::encode_url(&secret)}));
    }
    Some(Value::Object(whole))
}

/// What happens to requests that are not logged in.
#[derive(Deserialize, Clone, Copy, PartialEq, Debug, Default)]
#[serde(rename_all = "lowercase")]
pub enum UnauthAction {
    /// The browser is sent to the provider.
    #[default]
    Auth,
    /// 401.
    Deny,
    /// They go on without an identity.
    Pass,
}

/// What bearer tokens must claim.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct ClaimValidator {
    /// Who may have issued them.
    pub issuer: Issuer,
    /// Whom they must be for.
    pub audience: Audience,
}

/// Who may have issued a token.
#[derive(Deserialize, Default)]
pub struct Issuer {
    /// Default: the issuer of the discovery document.
    pub valid_issuers: Option<Vec<String>>,
}

/// Whom a token must be for.
#[derive(Deserialize)]
#[serde(default)]
pub struct Audience {
    /// The claim that says so.
    pub claim: String,
    /// Whether it must be there.
    pub required: bool,
    /// Whether it must name us.
    pub match_with_client_id: bool,
}

impl Default for Audience {
    fn default() -> Self {
        Self { claim: "aud".into(), required: false, match_with_client_id: false }
    }
}

/// Where logins are kept.
#[derive(Deserialize, Default)]
pub struct Session {
    /// The secret that keys are derived from.
    pub secret: String,
    /// The cookie's name, default `session`.
    pub cookie_name: Option<String>,
    /// Its path, default `/`.
    pub cookie_path: Option<String>,
    /// Its domain.
    pub cookie_domain: Option<String>,
    /// Whether it is sent over TLS only; default: if the login came over TLS.
    pub cookie_secure: Option<bool>,
    /// Whether scripts do not see it, default true.
    pub cookie_http_only: Option<bool>,
    /// `SameSite`, default `Lax`.
    pub cookie_same_site: Option<SameSite>,
    /// How long a login may be unused, in seconds; 0: for ever.
    pub idling_timeout: Option<i64>,
    /// After how long it must have been renewed, in seconds; 0: never.
    pub rolling_timeout: Option<i64>,
    /// How long it may last, in seconds; 0: for ever.
    pub absolute_timeout: Option<i64>,
    /// The old place of `absolute_timeout`.
    pub cookie: Option<OldCookie>,
    /// In the cookie or in a Redis.
    #[serde(default)]
    pub storage: Storage,
    /// The Redis.
    pub redis: Option<Redis>,
}

/// The form of lua-resty-session 3.
#[derive(Deserialize)]
pub struct OldCookie {
    /// `absolute_timeout`.
    pub lifetime: Option<i64>,
}

/// `SameSite`.
#[derive(Deserialize, Clone, Copy, PartialEq)]
pub enum SameSite {
    /// Never sent from other sites.
    Strict,
    /// Sent when other sites link here.
    Lax,
    /// Always sent.
    None,
    /// The browser's default.
    Default,
}

/// Where logins are kept.
#[derive(Deserialize, Clone, Copy, PartialEq, Default)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// In the cookie.
    #[default]
    Cookie,
    /// In a Redis; the cookie holds their key.
    Redis,
}

/// A Redis.
#[derive(Deserialize)]
#[serde(default)]
pub struct Redis {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The user to authenticate as.
    pub username: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// The number of the database.
    pub database: i64,
    /// What keys begin with.
    pub prefix: String,
    /// Whether TLS is spoken.
    pub ssl: bool,
    /// Whether its certificate must be valid.
    pub ssl_verify: bool,
    /// The name of that certificate, if it is not the host's.
    pub server_name: Option<String>,
    /// Milliseconds until connected.
    pub connect_timeout: u64,
    /// Milliseconds until a command is sent.
    pub send_timeout: u64,
    /// Milliseconds until it is answered.
    pub read_timeout: u64,
    /// Milliseconds that the connection is kept when nobody needs it.
    pub keepalive_timeout: u64,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 6379,
            username: None,
            password: None,
            database: 0,
            prefix: "sessions".into(),
            ssl: false,
            ssl_verify: true,
            server_name: None,
            connect_timeout: 1000,
            send_timeout: 1000,
            read_timeout: 1000,
            keepalive_timeout: 10_000,
        }
    }
}

/// Pushed authorization requests.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Par {
    /// Whether the authorization request is pushed.
    pub enabled: bool,
    /// Where to; default: what the discovery document says.
    pub endpoint: Option<String>,
    /// How we authenticate there; default: as at the token endpoint.
    pub endpoint_auth_method: Option<String>,
}

/// Proof of possession.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Dpop {
    /// Whether proofs are sent.
    pub enabled: bool,
    /// Their algorithm, default ES256.
    pub signing_alg: Option<String>,
    /// The key that signs them, PEM.
    pub private_key: Option<String>,
    /// The key that verifies them.
    pub public_jwk: Option<Value>,
}

/// The proxy on the way to the provider.
#[derive(Deserialize, Default)]
pub struct ProxyOpts {
    /// For `http://`.
    pub http_proxy: Option<String>,
    /// For `https://`.
    pub https_proxy: Option<String>,
    /// `Proxy-Authorization` of the first.
    pub http_proxy_authorization: Option<String>,
    /// `Proxy-Authorization` of the second.
    pub https_proxy_authorization: Option<String>,
    /// Hosts without proxy.
    pub no_proxy: Option<String>,
}

/// What is ruled before the JSON schema is looked at. APISIX: openid-connect.lua check_schema.
///
/// # Errors
/// The text that APISIX gives.
pub fn check_before_schema(conf: &Value) -> Result<(), String> {
    // Lua's truth: everything but `false` and what is not there.
    let has = |name: &str| conf.get(name).is_some_and(|value| *value != Value::Bool(false));
    let is = |name: &str, text: &str| conf.get(name).and_then(Value::as_str) == Some(text);
    if !has("bearer_only") && !has("session") {
        return Err("property \"session.secret\" is required when \"bearer_only\" is false".into());
    }
    let optional = if has("bearer_only") {
        has("public_key") || has("use_jwks") || is("introspection_endpoint_auth_method", "private_key_jwt")
    } else {
        is("token_endpoint_auth_method", "private_key_jwt") || has("use_pkce")
    };
    if !optional && !has("client_secret") {
        return Err("property \"client_secret\" is required".into());
    }
    Ok(())
}

/// Names of the library's own options that the objects `par` and `dpop` stand for.
const RESERVED: [(&str, &str); 7] = [
    ("use_par", "par.enabled"),
    ("pushed_authorization_request_endpoint", "par.endpoint"),
    ("pushed_authorization_request_endpoint_auth_method", "par.endpoint_auth_method"),
    ("use_dpop", "dpop.enabled"),
    ("dpop_signing_alg", "dpop.signing_alg"),
    ("dpop_private_key", "dpop.private_key"),
    ("dpop_public_jwk", "dpop.public_jwk"),
];

/// What is ruled after it.
///
/// # Errors
/// The text that APISIX gives.
pub fn check_after_schema(conf: &Value) -> Result<(), String> {
    if let Some(schema) = conf.get("claim_schema") {
        Schema::compile(schema).map_err(|error| format!("check claim_schema failed: {error}"))?;
    }
    for (name, owner) in RESERVED {
        if conf.get(name).is_some() {
            return Err(format!("property \"{name}\" is not allowed, use \"{owner}\" instead"));
        }
    }
    check_dpop(conf)?;
    check_assertion(conf)?;
    check_par(conf)
}

fn text<'v>(conf: &'v Value, pointer: &str) -> Option<&'v str> {
    conf.pointer(pointer).and_then(Value::as_str)
}

fn enabled(conf: &Value, what: &str) -> bool {
    conf.pointer(&format!("/{what}/enabled")) == Some(&Value::Bool(true))
}

/// What a private key's public JWK would be: kind, curve and the members that name it.
fn private_jwk(pem: &str, field: &str) -> Result<Map<String, Value>, String> {
    // OpenSSL's words could quote the key.
    let key: PKey<Private> = PKey::private_key_from_pem_passphrase(pem.as_bytes(), b"").map_err(|_| {
        match PKey::public_key_from_pem(pem.as_bytes()) {
            Ok(_) => format!("property \"{field}\" has no private key in it"),
            Err(_) => format!("property \"{field}\" is not a valid key: it cannot be read"),
        }
    })?;
    public_members(&key).ok_or_else(|| format!("property \"{field}\" could not be read as a JWK"))
}

fn public_members(key: &PKey<Private>) -> Option<Map<String, Value>> {
    let mut members = Map::new();
    let mut put = |name: &str, value: String| drop(members.insert(name.to_owned(), Value::String(value)));
    match key.id() {
        Id::RSA => {
            let rsa = key.rsa().ok()?;
            put("kty", "RSA".into());
            put("n", base64::encode_url(&rsa.n().to_vec()));
            put("e", base64::encode_url(&rsa.e().to_vec()));
        }
        Id::EC => {
            use openssl::{
                bn::{BigNum, BigNumContext},
                nid::Nid,
            };
            let ec = key.ec_key().ok()?;
            let (curve, size) = match ec.group().curve_name()? {
                Nid::X9_62_PRIME256V1 => ("P-256", 32),
                Nid::SECP384R1 => ("P-384", 48),
                Nid::SECP521R1 => ("P-521", 66),
                _ => return None,
            };
            let (mut x, mut y) = (BigNum::new().ok()?, BigNum::new().ok()?);
            let mut numbers = BigNumContext::new().ok()?;
            ec.public_key().affine_coordinates(ec.group(), &mut x, &mut y, &mut numbers).ok()?;
            put("kty", "EC".into());
            put("crv", curve.into());
            put("x", base64::encode_url(&x.to_vec_padded(size).ok()?));
            put("y", base64::encode_url(&y.to_vec_padded(size).ok()?));
        }
        _ => return None,
    }
    Some(members)
}

fn check_dpop(conf: &Value) -> Result<(), String> {
    let (true, Some(jwk)) = (enabled(conf, "dpop"), conf.pointer("/dpop/public_jwk")) else { return Ok(()) };
    let kind = jwk.get("kty").and_then(Value::as_str).unwrap_or("nil");
    let members: &[&str] = match kind {
        "EC" => &["crv", "x", "y"],
        "RSA" => &["e", "n"],
        _ => {
            let failed = "property \"dpop.public_jwk\" validation failed";
            return Err(format!("{failed}: kty \"{kind}\" is not supported"));
        }
    };
    for member in members {
        match jwk.get(member) {
            None => {
                return Err(format!(
                    "property \"dpop.public_jwk\" validation failed: kty \"{kind}\" requires {}",
                    members.join(", ")
                ));
            }
            Some(Value::String(value)) if !value.is_empty() => {}
            Some(_) => {
                return Err(format!(
                    "property \"dpop.public_jwk\" validation failed: \"{member}\" must be a non-empty string"
                ));
            }
        }
    }
    let algorithm = text(conf, "/dpop/signing_alg").unwrap_or("ES256");
    let expected = if algorithm == "ES256" { "EC" } else { "RSA" };
    if expected != kind {
        return Err(format!(
            "property \"dpop.signing_alg\" \"{algorithm}\" requires an {expected} \"dpop.public_jwk\""
        ));
    }
    let curve = jwk.get("crv").and_then(Value::as_str).unwrap_or("nil");
    if algorithm == "ES256" && curve != "P-256" {
        return Err(format!(
            "property \"dpop.signing_alg\" \"ES256\" requires \"dpop.public_jwk\" crv \"P-256\", got \"{curve}\""
        ));
    }
    let Some(pem) = text(conf, "/dpop/private_key").filter(|pem| !is_secret_ref(pem)) else { return Ok(()) };
    let derived = private_jwk(pem, "dpop.private_key")?;
    for member in ["kty"].iter().chain(members) {
        if derived.get(*member) != jwk.get(member) {
            let is = derived.get(*member).and_then(Value::as_str).unwrap_or("nil");
            return Err(format!(
                "property \"dpop.public_jwk\" is not the public key of \"dpop.private_key\": {member} is \"{is}\""
            ));
        }
    }
    Ok(())
}

/// Which endpoints can be reached, and with which way of authenticating.
fn reachable(conf: &Value) -> Vec<(&'static str, &str)> {
    let has = |name: &str| conf.get(name).is_some_and(|value| *value != Value::Bool(false));
    let method = |pointer: &str| text(conf, pointer).unwrap_or("client_secret_basic");
    let mut found = Vec::new();
    let locally = has("public_key") || has("use_jwks");
    if !locally && (has("bearer_only") || has("introspection_endpoint")) {
        found.push(("introspection_endpoint_auth_method", method("/introspection_endpoint_auth_method")));
    }
    if has("bearer_only") {
        return found;
    }
    let at_token = method("/token_endpoint_auth_method");
    if credential_of(at_token).is_none_or(&has) {
        found.push(("token_endpoint_auth_method", at_token));
    }
    if enabled(conf, "par")
        && let Some(method) = text(conf, "/par/endpoint_auth_method")
    {
        found.push(("par.endpoint_auth_method", method));
    }
    found
}

/// The option that holds what a way of authenticating cannot do without.
fn credential_of(method: &str) -> Option<&'static str> {
    match method {
        "private_key_jwt" => Some("client_rsa_private_key"),
        "client_secret_jwt" => Some("client_secret"),
        _ => None,
    }
}

fn check_assertion(conf: &Value) -> Result<(), String> {
    let Some(algorithm) = text(conf, "/client_jwt_assertion_alg") else { return Ok(()) };
    let reachable = reachable(conf);
    let by = |wanted: &str| reachable.iter().find(|(_, method)| *method == wanted).map(|(name, _)| *name);
    let (asymmetric, symmetric) = (by("private_key_jwt"), by("client_secret_jwt"));
    let property = "property \"client_jwt_assertion_alg\"";
    match (asymmetric, symmetric, algorithm.starts_with("HS")) {
        (Some(one), Some(other), _) => Err(format!(
            "{property} is a single algorithm, but \"{one}\" selects private_key_jwt and \"{other}\" selects \
             client_secret_jwt"
        )),
        (Some(one), _, true) => Err(format!(
            "{property} \"{algorithm}\" is symmetric and cannot be used with the private_key_jwt selected by \
             \"{one}\""
        )),
        (_, Some(one), false) => Err(format!(
            "{property} \"{algorithm}\" is asymmetric and cannot be used with the client_secret_jwt selected by \
             \"{one}\""
        )),
        (Some(_), _, false) => check_assertion_key(conf, algorithm),
        _ => Ok(()),
    }
}

fn check_assertion_key(conf: &Value, algorithm: &str) -> Result<(), String> {
    let (kind, curve) = match algorithm {
        "ES256" => ("EC", Some("P-256")),
        "ES512" => ("EC", Some("P-521")),
        _ => ("RSA", None),
    };
    let Some(pem) = text(conf, "/client_rsa_private_key").filter(|pem| !is_secret_ref(pem)) else {
        return Ok(());
    };
    let derived = private_jwk(pem, "client_rsa_private_key")?;
    let property = format!("property \"client_jwt_assertion_alg\" \"{algorithm}\" requires");
    let member = |name: &str| derived.get(name).and_then(Value::as_str).unwrap_or("nil");
    if member("kty") != kind {
        return Err(format!("{property} an {kind} \"client_rsa_private_key\""));
    }
    match curve {
        Some(curve) if member("crv") != curve => Err(format!(
            "{property} a \"client_rsa_private_key\" on curve \"{curve}\", got \"{}\"",
            member("crv")
        )),
        _ => Ok(()),
    }
}

fn check_par(conf: &Value) -> Result<(), String> {
    if conf.get("bearer_only") == Some(&Value::Bool(true)) || !enabled(conf, "par") {
        return Ok(());
    }
    let Some(method) = text(conf, "/par/endpoint_auth_method") else { return Ok(()) };
    match credential_of(method) {
        Some(credential) if conf.get(credential).is_none() => Err(format!(
            "property \"par.endpoint_auth_method\" \"{method}\" requires \"{credential}\" when \"par.enabled\" is true"
        )),
        _ => Ok(()),
    }
}
