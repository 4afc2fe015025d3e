//! hmac-auth: the consumer signs parts of the request with a secret that is never sent.
//!
//! APISIX: plugins/hmac-auth.lua, today's and that of 3.2. Which form a request has is told by the request: today's
//! `Authorization: Signature …` ([`signature`]) is judged by the route's options, the form of 3.2 ([`classic`]), in
//! `X-HMAC-*` headers or `Authorization: hmac-auth-v1#…`, by the consumer's. Invariant: signatures are compared in
//! constant time; neither they nor secrets are ever logged.
//!
//! Differs from APISIX: both forms are understood whatever version is spoken, and a consumer may be told by `key_id`
//! or, as in 3.2, by `access_key`; all arguments are signed in the form of 3.2, not the first hundred only; hiding
//! credentials hides those of 3.2, too.

pub mod classic;
mod mac;
pub mod signature;

use std::time::{Duration, SystemTime};

use http::{HeaderName, header::AUTHORIZATION};
use serde::Deserialize;
use serde_json::{Value, json};

use self::{
    classic::Names,
    mac::{Algorithm, Keys},
};
use super::shared::auth::{self, Failure, Fallback};
use crate::plugin::{
    consumer::Authenticated,
    contract::{self, AuthPlugin},
    env::{BuildEnv, CheckEnv},
    exchange::Exchange,
    phases::Phases,
    reply::{CONTINUE, Flow, Reply},
};

const INVALID: &str = "client request can't be validated";

/// The route's side. It rules today's form only.
#[derive(Deserialize)]
#[serde(default)]
pub struct Config {
    /// Algorithms that a signature may have.
    pub allowed_algorithms: Vec<Algorithm>,
    /// Seconds by which the Date header may differ from the clock here.
    pub clock_skew: u64,
    /// Headers that must be signed, as they are written in the list of signed ones.
    pub signed_headers: Vec<String>,
    /// Whether the Digest header must be there and right.
    pub validate_request_body: bool,
    /// Largest body whose digest is looked at, in bytes.
    pub max_req_body_size: usize,
    /// Whether the upstream does not get to see the credentials.
    pub hide_credentials: bool,
    /// What the challenge of a 401 names.
    pub realm: String,
    /// The consumer that stands for everybody who fails.
    pub anonymous_consumer: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allowed_algorithms: vec![Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512],
            clock_skew: 300,
            signed_headers: vec!["date".into()],
            validate_request_body: false,
            max_req_body_size: 64 << 20,
            hide_credentials: false,
            realm: "hmac".into(),
            anonymous_consumer: None,
        }
    }
}

/// The compiled route's side.
pub struct Plugin {
    rules: signature::Rules,
    names: Names,
    hide_credentials: bool,
    fallback: Fallback,
}

/// The consumer's side: keys, and the options of 3.2's form.
pub struct Credential {
    keys: Keys,
    options: classic::Options,
}

/// Why a request is not let in.
enum Refusal {
    Unrecognised(Failure),
    /// Its body cannot be looked at; no anonymous consumer makes up for that.
    Body(Reply),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Unrecognised(failure)
    }
}

/// There are credentials and they are not accepted.
fn wrong(reason: &'static str) -> Refusal {
    Refusal::Unrecognised(Failure::wrong(INVALID, reason))
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "hmac-auth";
    const PRIORITY: i32 = 2530;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "title": "work with route or service object",
            "properties": {
                "allowed_algorithms": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "string", "enum": Algorithm::NAMES},
                    "default": Algorithm::NAMES
                },
                "clock_skew": {"type": "integer", "default": 300, "minimum": 1},
                "signed_headers": {
                    "type": "array",
                    "default": ["date"],
                    "items": {"type": "string", "minLength": 1, "maxLength": 50}
                },
                "validate_request_body": {"type": "boolean", "default": false},
                "max_req_body_size": {"type": "integer", "minimum": 1, "default": 67_108_864},
                "hide_credentials": {"type": "boolean", "default": false},
                "realm": auth::realm_schema("hmac"),
                "anonymous_consumer": auth::anonymous_schema()
            }
        })
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let anonymous = config.anonymous_consumer;
        Ok(Self {
            rules: signature::Rules {
                algorithms: config.allowed_algorithms,
                clock_skew: Duration::from_secs(config.clock_skew),
                signed_headers: config.signed_headers,
                largest_body: config.validate_request_body.then_some(config.max_req_body_size),
                says_why: env.compat.hmac_says_what_is_missing(),
            },
            names: Names::new(env.attr)?,
            hide_credentials: config.hide_credentials,
            fallback: Fallback::new(Self::NAME, "hmac", &config.realm, anonymous, env.compat)?,
        })
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        let found = match classic::Claim::read(x, &self.names) {
            Some(claim) => classic::verify(x, &self.names, claim).await,
            None => signature::verify(x, &self.rules).await,
        };
        let flow = match found {
            Ok(found) => {
                x.attach(found);
                CONTINUE
            }
            Err(Refusal::Unrecognised(failure)) => self.fallback.settle(x, failure),
            Err(Refusal::Body(reply)) => reply.into(),
        };
        if self.hide_credentials && flow.is_continue() {
            x.remove_header(&AUTHORIZATION);
            self.names.hide(x);
        }
        flow
    }
}

impl AuthPlugin for Plugin {
    type Credential = Credential;
    const KEY: &'static str = "key_id";
    const FORMER_KEY: Option<&'static str> = Some("access_key");
    const ENCRYPT_CREDENTIAL: &'static [&'static str] = &["secret_key"];

    fn consumer_schema() -> Value {
        json!({
            "type": "object",
            "title": "work with consumer object",
            // Of several mistakes the first in this order is told, as APISIX does.
            "properties": {
                "secret_key": {"type": "string", "minLength": 1, "maxLength": 256},
                "key_id": {"type": "string", "minLength": 1, "maxLength": 256},
                "access_key": {"type": "string", "minLength": 1, "maxLength": 256},
                "algorithm": {"type": "string", "enum": Algorithm::NAMES},
                "clock_skew": {"type": "integer", "minimum": 0},
                "signed_headers": {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": 50}
                },
                "keep_headers": {"type": "boolean"},
                "encode_uri_params": {"type": "boolean"},
                "validate_request_body": {"type": "boolean"},
                "max_req_body": {"type": "integer", "minimum": 0}
            },
            "encrypt_fields": ["secret_key"],
            "required": ["secret_key"]
        })
    }

    fn check_consumer(conf: &Value, env: &CheckEnv<'_>) -> Result<(), String> {
        if conf.get("key_id").is_none() && conf.get("access_key").is_none() {
            return Err(format!("property \"{}\" is required", env.compat.hmac_key()));
        }
        Ok(())
    }

    fn credential(conf: &Value, _env: &BuildEnv<'_>) -> Result<Credential, String> {
        #[derive(Deserialize)]
        struct Side {
            secret_key: String,
            #[serde(flatten)]
            options: classic::Options,
        }
        let side = Side::deserialize(conf).map_err(|e| e.to_string())?;
        Ok(Credential { keys: Keys::new(side.secret_key.as_bytes())?, options: side.options })
    }
}

/// The credentials cannot be read.
fn malformed(reason: &'static str) -> Refusal {
    Refusal::Unrecognised(Failure::malformed(INVALID, reason))
}

/// The consumer of a key, with its side of the plugin.
fn find<'a>(x: &Exchange<'a>, key: &str) -> Result<(&'a Authenticated, &'a Credential), Refusal> {
    let world = x.world;
    let found = world
        .find(<Plugin as contract::Plugin>::NAME, key)
        .ok_or_else(|| Failure::unknown(INVALID, "Invalid key_id"))?;
    let credential = found.secret().ok_or_else(|| wrong("the consumer's side is of another plugin"))?;
    Ok((found, credential))
}

/// Whether a date (RFC 9110 §5.6.7) is that close to the clock here.
fn in_time(date: &[u8], skew: Duration) -> Result<(), Refusal> {
    let date = std::str::from_utf8(date).ok().and_then(|text| httpdate::parse_http_date(text).ok());
    let date = date.ok_or_else(|| malformed("Invalid GMT format time"))?;
    let now = SystemTime::now();
    let apart = now.duration_since(date).unwrap_or_else(|e| e.duration());
    // Dates have whole seconds.
    if apart.as_secs() > skew.as_secs() {
        return Err(Failure::expired(INVALID, "Clock skew exceeded").into());
    }
    Ok(())
}

/// The body, if it is no larger than that.
async fn body(x: &mut Exchange<'_>, largest: usize) -> Result<bytes::Bytes, Reply> {
    let too_large = |size: Option<usize>| {
        let size = size.map_or_else(String::new, |size| format!("{size} "));
        let text = format!("request size {size}is greater than the maximum size {largest} allowed");
        Reply::message(413, text).because("failed to read request body: too large")
    };
    let declared = x.header(http::header::CONTENT_LENGTH).and_then(|text| text.trim().parse().ok());
    if let Some(size) = declared.filter(|size| *size > largest) {
        return Err(too_large(Some(size)));
    }
    let ours = largest < x.ctx.body_limit;
    let limit = largest.min(x.ctx.body_limit);
    let before = std::mem::replace(&mut x.ctx.body_limit, limit);
    let body = x.body().await;
    x.ctx.body_limit = before;
    match body {
        // It was read before, for another plugin.
        Ok(body) if body.len() > largest => Err(too_large(Some(body.len()))),
        Err(reply) if ours && reply.status == 413 => Err(too_large(None)),
        other => other,
    }
}

/// The first value of a header by the name that a client listed, as `ngx.req.get_headers` looks it up.
fn listed<'x>(x: &'x Exchange<'_>, name: &str) -> Option<&'x [u8]> {
    let headers = &x.session.req_header().headers;
    let found = match name.contains('_') {
        true => headers.get(name).or_else(|| headers.get(name.replace('_', "-"))),
        false => headers.get(name),
    };
    found.map(|value| value.as_bytes())
}

/// A header name from config.yaml.
fn name(text: &str) -> Result<HeaderName, String> {
    HeaderName::try_from(text).map_err(|_| format!("plugin_attr.hmac-auth: {text:?} is no name of a header"))
}

#[cfg(test)]
mod tests;
