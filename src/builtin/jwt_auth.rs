//! jwt-auth: the consumer is whose token stands in a header, a query argument or a cookie.
//!
//! APISIX: plugins/jwt-auth.lua, jwt-auth/parser.lua. The algorithm is the consumer's, never the token's; keys are
//! parsed with the configuration. Signatures by public keys that proved genuine are remembered, bounded; expiry is
//! checked each time. Invariant: a token is never logged and never part of an error.
//!
//! Differs from APISIX: a public key must be of the algorithm's kind and curve; PS* signatures are as long as the
//! key wants, not 256 bytes; hiding a cookie leaves the others as they are; a consumer may name a published key set
//! (`jwks_uri`) instead of a key; under 3.2, the secret made up for a consumer of a file is one for the whole process;
//! `store_in_ctx` has no effect, because no plugin here looks at the payload.

mod sign;

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{HeaderName, HeaderValue, header::COOKIE};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::shared::{
    auth::{self, Failure, Fallback, QueryValue},
    base64, is_secret_ref,
    jwt::{
        jwks::Unverified,
        key::{Algorithm, KeyError, SigningKey, VerifyingKey},
        source::Source,
        token::{Member, Token},
    },
    seen::Seen,
};
use crate::plugin::{
    consumer::Authenticated,
    contract::{self, AuthPlugin, PublicApi},
    credentials,
    env::{BuildEnv, CheckEnv},
    exchange::{Exchange, World},
    phases::Phases,
    reply::{CONTINUE, Flow},
};

const UNREADABLE: &str = "JWT token invalid";
const NO_KEY: &str = "missing user key in JWT token";
const UNKNOWN: &str = "Invalid user key in JWT token";
const UNVERIFIED: &str = "failed to verify jwt";
const NO_SECRET: &str = "property \"secret\" is required when using HS based algorithms";

/// Genuine signatures that are remembered, of all consumers.
const REMEMBERED: usize = 8192;

/// The route's side.
#[derive(Deserialize)]
#[serde(default)]
pub struct Config {
    /// The header that holds the token, with or without `Bearer`.
    pub header: String,
    /// The query argument that holds the token when there is no such header.
    pub query: String,
    /// The cookie that holds the token when it is in neither.
    pub cookie: String,
    /// Whether the upstream does not get to see the token.
    pub hide_credentials: bool,
    /// The claim that holds the consumer's key.
    pub key_claim_name: String,
    /// What the challenge of a 401 names.
    pub realm: String,
    /// The consumer that stands for everybody who fails.
    pub anonymous_consumer: Option<String>,
    /// Claims that must be there; otherwise they are checked if they are.
    pub claims_to_verify: Vec<Claim>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            header: "authorization".into(),
            query: "jwt".into(),
            cookie: "jwt".into(),
            hide_credentials: false,
            key_claim_name: "key".into(),
            realm: "jwt".into(),
            anonymous_consumer: None,
            claims_to_verify: Vec::new(),
        }
    }
}

/// A claim about time (RFC 7519 §4.1).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Claim {
    /// Not valid from then on.
    Exp,
    /// Not valid before.
    Nbf,
}

/// The compiled route's side.
pub struct Plugin {
    /// `None`: a name that no header can have.
    header: Option<HeaderName>,
    query: Box<str>,
    cookie: Box<str>,
    hide_credentials: bool,
    key_claim_name: Box<str>,
    claims_to_verify: Vec<Claim>,
    fallback: Fallback,
}

/// The consumer's side: keys, bound to one algorithm.
pub struct Credential {
    algorithm: Algorithm,
    keys: Keys,
    /// Seconds by which clocks may differ.
    grace: f64,
    /// Seconds that a token made here is valid.
    lifetime: u64,
}

enum Keys {
    Symmetric {
        verify: VerifyingKey,
        sign: SigningKey,
    },
    Asymmetric {
        /// APISIX accepts any text for a key and then verifies nothing with it.
        public: Result<VerifyingKey, KeyError>,
        public_pem: Box<str>,
        /// A token is remembered together with the key that it was proved by.
        public_print: [u8; 32],
        private: Option<Result<SigningKey, KeyError>>,
        genuine: Arc<Seen>,
    },
    /// By URL: an addition.
    Published {
        source: Arc<Source>,
        genuine: Arc<Seen>,
    },
}

/// The consumer's side as configured.
#[derive(Deserialize)]
struct CredentialConfig {
    secret: Option<String>,
    public_key: Option<String>,
    private_key: Option<String>,
    #[serde(default)]
    algorithm: Algorithm,
    #[serde(default = "default_lifetime")]
    exp: u64,
    #[serde(default)]
    base64_secret: bool,
    #[serde(default)]
    lifetime_grace_period: f64,
    jwks_uri: Option<String>,
    #[serde(default = "default_refresh")]
    jwks_refresh: u64,
    #[serde(default = "default_verify")]
    jwks_ssl_verify: bool,
}

fn default_lifetime() -> u64 {
    86400
}

fn default_refresh() -> u64 {
    300
}

fn default_verify() -> bool {
    true
}

/// Where the token was found.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Header,
    Query,
    Cookie,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "jwt-auth";
    const PRIORITY: i32 = 2510;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "header": {"type": "string", "default": "authorization"},
                "query": {"type": "string", "default": "jwt"},
                "cookie": {"type": "string", "default": "jwt"},
                "hide_credentials": {"type": "boolean", "default": false},
                "key_claim_name": {"type": "string", "default": "key", "minLength": 1},
                "store_in_ctx": {"type": "boolean", "default": false},
                "realm": auth::realm_schema("jwt"),
                "anonymous_consumer": auth::anonymous_schema(),
                "claims_to_verify": {
                    "type": "array",
                    "items": {"type": "string", "enum": ["exp", "nbf"]},
                    "uniqueItems": true
                }
            }
        })
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let anonymous = config.anonymous_consumer;
        Ok(Self {
            header: HeaderName::try_from(config.header).ok(),
            query: config.query.into(),
            cookie: config.cookie.into(),
            hide_credentials: config.hide_credentials,
            key_claim_name: config.key_claim_name.into(),
            claims_to_verify: config.claims_to_verify,
            fallback: Fallback::new(Self::NAME, "Bearer", &config.realm, anonymous, env.compat)?,
        })
    }

    fn apis(_attr: Option<&Value>) -> Vec<PublicApi> {
        vec![sign::api()]
    }

    fn credentials(&self, tell: &mut dyn FnMut(credentials::Place<'_>)) {
        tell(credentials::Place::Arg(&self.query));
        tell(credentials::Place::Cookie(&self.cookie));
        self.header.iter().for_each(|header| tell(credentials::Place::Header(header)));
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        let Some((token, place)) = self.token(x) else {
            return self.fallback.settle(x, Failure::missing("Missing JWT token in request"));
        };
        let found = self.verify(x.world, &token).await;
        if self.hide_credentials {
            self.hide(x, place);
        }
        match found {
            Ok(found) => {
                x.attach(found);
                CONTINUE
            }
            Err(failure) => self.fallback.settle(x, failure),
        }
    }
}

impl AuthPlugin for Plugin {
    type Credential = Credential;
    const KEY: &'static str = "key";
    const ENCRYPT_CREDENTIAL: &'static [&'static str] = &["secret"];

    fn consumer_schema() -> Value {
        let public =
            ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "EdDSA"];
        let all = ["HS256", "HS384", "HS512"].into_iter().chain(public).collect::<Vec<_>>();
        json!({
            "type": "object",
            // Of several mistakes the first in this order is told, as APISIX does.
            "properties": {
                "algorithm": {"type": "string", "enum": all, "default": "HS256"},
                "base64_secret": {"type": "boolean", "default": false},
                "exp": {"type": "integer", "minimum": 1, "default": 86400},
                "key": {"type": "string", "minLength": 1},
                "secret": {"type": "string", "minLength": 1},
                "lifetime_grace_period": {"type": "integer", "minimum": 0, "default": 0},
                "jwks_uri": {"type": "string", "pattern": "^https?://[^/]"},
                "jwks_refresh": {"type": "integer", "minimum": 1, "default": 300},
                "jwks_ssl_verify": {"type": "boolean", "default": true}
            },
            "dependencies": {
                "algorithm": {
                    "oneOf": [
                        {"properties": {
                            "algorithm": {"enum": ["HS256", "HS384", "HS512"], "default": "HS256"}
                        }},
                        {
                            "properties": {
                                "public_key": {"type": "string", "minLength": 1},
                                "algorithm": {"enum": public}
                            },
                            "required": ["public_key"]
                        },
                        {
                            "properties": {"algorithm": {"enum": public}},
                            "required": ["jwks_uri"],
                            "not": {"required": ["public_key"]}
                        }
                    ]
                }
            },
            "encrypt_fields": ["secret"],
            "required": ["key"]
        })
    }

    /// APISIX 3.2 made a secret up for a consumer that brought none: its tokens come from the sign endpoint alone.
    fn completed_consumer(conf: &Value, env: &CheckEnv<'_>) -> Option<Value> {
        let public =
            conf.get("algorithm").and_then(Value::as_str).is_some_and(|name| !name.starts_with("HS"));
        if env.compat.jwt_needs_secret() || public || conf.get("secret").is_some() {
            return None;
        }
        let mut whole = conf.as_object()?.clone();
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).ok()?;
        whole.insert("secret".into(), base64::encode(&secret).into());
        Some(Value::Object(whole))
    }

    fn check_consumer(conf: &Value, env: &CheckEnv<'_>) -> Result<(), String> {
        let text = |name: &str| conf.get(name).and_then(Value::as_str);
        let symmetric = text("algorithm").is_none_or(|name| name.starts_with("HS"));
        let secret = text("secret");
        if symmetric && secret.is_none() {
            return Err(NO_SECRET.into());
        }
        let encoded = conf.get("base64_secret") == Some(&Value::Bool(true));
        if let Some(secret) = secret.filter(|secret| encoded && !is_secret_ref(secret))
            && base64::decode(secret.as_bytes()).is_none()
        {
            return Err("base64_secret required but the secret is not in base64 format".into());
        }
        if text("jwks_uri").is_some() {
            return if symmetric { Err("jwks_uri goes with public keys only".into()) } else { Ok(()) };
        }
        if !symmetric && text("public_key").is_none() {
            return Err("missing valid public key".into());
        }
        if !symmetric && env.compat.jwt_needs_private_key() && text("private_key").is_none() {
            return Err("missing valid private key".into());
        }
        Ok(())
    }

    fn credential(conf: &Value, env: &BuildEnv<'_>) -> Result<Credential, String> {
        let config = CredentialConfig::deserialize(conf).map_err(|e| e.to_string())?;
        let algorithm = config.algorithm;
        let keys = if algorithm.is_symmetric() {
            let secret = match config.secret {
                Some(secret) if config.base64_secret => base64::decode(secret.as_bytes())
                    .ok_or("base64_secret required but the secret is not in base64 format")?,
                Some(secret) => secret.into_bytes(),
                None if env.compat.jwt_needs_secret() => return Err(NO_SECRET.into()),
                None => made_up(conf, env)?,
            };
            Keys::Symmetric {
                verify: VerifyingKey::from_secret(algorithm, &secret).map_err(|e| e.to_string())?,
                sign: SigningKey::from_secret(algorithm, &secret).map_err(|e| e.to_string())?,
            }
        } else if let Some(url) = config.jwks_uri {
            Keys::Published {
                source: Source::at(&url, config.jwks_ssl_verify, Duration::from_secs(config.jwks_refresh))?,
                genuine: env.carry.state("jwt-auth", || Seen::new(REMEMBERED)),
            }
        } else {
            let public_pem = config.public_key.ok_or("missing valid public key")?;
            Keys::Asymmetric {
                public: VerifyingKey::from_pem(algorithm, &public_pem),
                public_print: Sha256::digest(&public_pem).into(),
                public_pem: public_pem.into(),
                private: config.private_key.map(|pem| SigningKey::from_pem(algorithm, &pem)),
                genuine: env.carry.state("jwt-auth", || Seen::new(REMEMBERED)),
            }
        };
        Ok(Credential { algorithm, keys, grace: config.lifetime_grace_period, lifetime: config.exp })
    }
}

impl Plugin {
    /// The token, wherever it stands; not text is taken for an unreadable token.
    fn token<'x>(&self, x: &'x Exchange<'_>) -> Option<(Cow<'x, str>, Place)> {
        if let Some(value) = auth::header(x, self.header.as_ref()) {
            let token = std::str::from_utf8(auth::bare_token(value)).unwrap_or_default();
            return Some((token.into(), Place::Header));
        }
        match auth::query(x.args(), &self.query) {
            Some(QueryValue::One(token)) => return Some((token, Place::Query)),
            Some(QueryValue::Unusable) => return Some(("".into(), Place::Query)),
            None => {}
        }
        auth::cookie(x, &self.cookie).map(|found| (found.into(), Place::Cookie))
    }

    async fn verify<'a>(&self, world: &'a dyn World, text: &str) -> Result<&'a Authenticated, Failure> {
        let unreadable = || Failure::malformed(UNREADABLE, "JWT token invalid: invalid jwt string");
        let token = Token::parse(text).ok_or_else(unreadable)?;
        let [algorithm] = token.header(["alg"]).ok_or_else(unreadable)?;
        let [key, exp, nbf] = token.payload([&self.key_claim_name, "exp", "nbf"]).ok_or_else(unreadable)?;
        let found = match &key {
            Member::Absent | Member::False => return Err(Failure::malformed(NO_KEY, NO_KEY)),
            Member::Text(key) => world.find(<Self as contract::Plugin>::NAME, key),
            Member::Number(_) | Member::Other => None,
        };
        let Some(found) = found else { return Err(unknown(world)) };
        let Some(credential) = found.secret::<Credential>() else {
            return Err(Failure::wrong(UNVERIFIED, "the consumer's side is of another plugin"));
        };
        credential.verify(&token, &algorithm, text).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as f64;
        self.in_time(&exp, &nbf, now, credential.grace)?;
        Ok(found)
    }

    /// APISIX: jwt-auth/parser.lua `verify_claims`.
    fn in_time(&self, exp: &Member<'_>, nbf: &Member<'_>, now: f64, grace: f64) -> Result<(), Failure> {
        let wrong = |reason: &'static str| Err(Failure::wrong(UNVERIFIED, reason));
        let expired = |reason: &'static str| Err(Failure::expired(UNVERIFIED, reason));
        let listed = &self.claims_to_verify;
        // No list means both, if they are there; a list means those, and they must be there.
        let wanted = |claim| listed.is_empty() || listed.contains(&claim);
        let (exp_wanted, nbf_wanted) = (wanted(Claim::Exp), wanted(Claim::Nbf));
        match exp {
            _ if !exp_wanted => {}
            Member::Absent if listed.is_empty() => {}
            Member::Absent => return wrong("claim exp is missing"),
            Member::Number(exp) if *exp > now - grace => {}
            Member::Number(_) => return expired("'exp' claim expired"),
            _ => return wrong("claim exp is not a number"),
        }
        match nbf {
            _ if !nbf_wanted => {}
            Member::Absent if listed.is_empty() => {}
            Member::Absent => return wrong("claim nbf is missing"),
            Member::Number(nbf) if *nbf < now + grace => {}
            Member::Number(_) => return expired("'nbf' claim not valid yet"),
            _ => return wrong("claim nbf is not a number"),
        }
        Ok(())
    }

    fn hide(&self, x: &mut Exchange<'_>, place: Place) {
        match place {
            Place::Header => {
                if let Some(header) = &self.header {
                    x.remove_header(header);
                }
            }
            Place::Query => auth::hide_query(x, &self.query),
            Place::Cookie => self.hide_cookie(x),
        }
    }

    fn hide_cookie(&self, x: &mut Exchange<'_>) {
        let is_other = |pair: &&str| pair.split_once('=').is_none_or(|(name, _)| name != &*self.cookie);
        let pairs = auth::cookies(x).flat_map(|header| header.split(';')).map(str::trim);
        let kept: Vec<&str> = pairs.filter(|pair| !pair.is_empty()).filter(is_other).collect();
        match HeaderValue::try_from(kept.join("; ")) {
            Ok(kept) if !kept.is_empty() => x.set_header(&COOKIE, kept),
            _ => x.remove_header(&COOKIE),
        }
    }
}

/// What `made_up` derives from, new in each process.
struct Root([u8; 32]);

/// The secret of a consumer that brought none where none can be stored: in a file that the gateway only reads. APISIX
/// 3.2 made one up in each worker whenever it read the file; here it is the same for the life of the process.
fn made_up(conf: &Value, env: &BuildEnv<'_>) -> Result<Vec<u8>, String> {
    let root = env.carry.state("jwt-auth secrets", || {
        let mut bytes = [0; 32];
        // A root that is not random would let everybody sign.
        getrandom::fill(&mut bytes).ok().map(|()| Root(bytes))
    });
    let root = (*root).as_ref().ok_or("the system has no random numbers for a secret")?;
    let key = conf.get(<Plugin as AuthPlugin>::KEY).and_then(Value::as_str).unwrap_or_default();
    let derive = SigningKey::from_secret(Algorithm::HS256, &root.0).map_err(|e| e.to_string())?;
    derive.sign(key.as_bytes()).map_err(|e| e.to_string())
}

fn unknown(world: &dyn World) -> Failure {
    if world.has_any(<Plugin as contract::Plugin>::NAME) {
        return Failure::unknown(UNKNOWN, "failed to find consumer: invalid user key");
    }
    Failure::unknown(world.compat().no_consumer(UNKNOWN), "no consumer has jwt-auth")
}

impl Credential {
    /// Whether the token is signed by this consumer, with its algorithm.
    async fn verify(&self, token: &Token<'_>, claimed: &Member<'_>, text: &str) -> Result<(), Failure> {
        let name = self.algorithm.name();
        if !matches!(claimed, Member::Text(claimed) if claimed == name) {
            return Err(wrong(format!("algorithm mismatch, expected {name}")));
        }
        let signature =
            || base64::decode_url(token.signature).ok_or_else(|| wrong("failed to decode signature"));
        let genuine = match &self.keys {
            Keys::Symmetric { verify, .. } => verify.verify(token.signed.as_bytes(), &signature()?),
            Keys::Asymmetric { public, public_print, genuine, .. } => {
                let public = public.as_ref().map_err(|e| wrong(format!("the consumer's public key: {e}")))?;
                // A hash costs a fraction of a signature by public key.
                let print = genuine.fingerprint(&[name.as_bytes(), public_print, text.as_bytes()]);
                if genuine.has(&print) {
                    return Ok(());
                }
                let is_genuine = public.verify(token.signed.as_bytes(), &signature()?);
                if is_genuine {
                    genuine.add(&print);
                }
                is_genuine
            }
            Keys::Published { source, genuine } => return self.published(token, text, source, genuine).await,
        };
        if genuine { Ok(()) } else { Err(wrong("signature mismatch")) }
    }

    async fn published(
        &self,
        token: &Token<'_>,
        text: &str,
        source: &Arc<Source>,
        genuine: &Seen,
    ) -> Result<(), Failure> {
        let mut current = source.keys().await.map_err(|reason| Failure::unavailable(UNVERIFIED, reason))?;
        let mut may_be_new = true;
        loop {
            // With other keys a token has to prove itself anew.
            let print =
                genuine.fingerprint(&[self.algorithm.name().as_bytes(), &current.print, text.as_bytes()]);
            if genuine.has(&print) {
                return Ok(());
            }
            match current.keys.verify(token, Some(&[self.algorithm])) {
                Ok(_) => {
                    genuine.add(&print);
                    return Ok(());
                }
                Err(Unverified::NoKey) if may_be_new => {
                    may_be_new = false;
                    let newer = source.newer(&current).await;
                    current = newer.ok_or_else(|| wrong(Unverified::NoKey.to_string()))?;
                }
                Err(e) => return Err(wrong(e.to_string())),
            }
        }
    }
}

fn wrong(reason: impl Into<Cow<'static, str>>) -> Failure {
    Failure::wrong(UNVERIFIED, reason)
}

#[cfg(test)]
mod tests;
