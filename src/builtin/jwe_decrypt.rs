//! jwe-decrypt: decrypts a JSON Web Encryption in a header and hands its plaintext on in another.
//!
//! APISIX: plugins/jwe-decrypt.lua. The consumer of the token's `kid` has the key (A256GCM, used directly); nobody is
//! authenticated. Invariant: neither secrets nor plaintexts are logged or part of an error.
//!
//! Differs from APISIX: besides tokens as APISIX's tools make them, which leave the header out of what is
//! authenticated, those of RFC 7516 are decrypted; tags and nonces have their full length, or the token is refused;
//! a plaintext that no header can hold is refused; the secret's length is always checked.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue};
use openssl::symm::{Cipher, decrypt_aead};
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::{auth, base64, is_secret_ref};
use crate::plugin::{
    contract::{self, AuthPlugin},
    credentials::Place,
    env::{BuildEnv, CheckEnv},
    exchange::Exchange,
    phases::Phases,
    reply::{CONTINUE, Class, Flow, Reply},
};

/// Bytes of a key, of a nonce and of a tag (RFC 7518 §5.3).
const KEY: usize = 32;
const NONCE: usize = 12;
const TAG: usize = 16;

/// The route's side.
#[derive(Deserialize)]
pub struct Config {
    /// The header that holds the token, with or without `Bearer`.
    pub header: String,
    /// The header that the upstream gets the plaintext in.
    pub forward_header: String,
    /// Whether a request without a token is refused.
    #[serde(default = "default_strict")]
    pub strict: bool,
}

fn default_strict() -> bool {
    true
}

/// The compiled route's side.
pub struct Plugin {
    /// `None`: a name that no header can have.
    header: Option<HeaderName>,
    forward_header: HeaderName,
    strict: bool,
}

/// The consumer's side: the key.
pub struct Credential([u8; KEY]);

/// A token taken apart (RFC 7516 §7.1); nothing but its header is decoded.
#[derive(Debug, PartialEq)]
pub struct Jwe<'t> {
    /// The header as it arrived: what is authenticated with the text.
    pub header: &'t str,
    /// The nonce.
    pub iv: &'t str,
    /// The ciphertext.
    pub ciphertext: &'t str,
    /// The tag.
    pub tag: &'t str,
}

impl<'t> Jwe<'t> {
    /// Takes a token apart; `None` if it has too few parts. What follows the fourth dot is the tag.
    pub fn parse(token: &'t str) -> Option<Self> {
        let mut parts = token.splitn(5, '.');
        let (header, _key) = (parts.next()?, parts.next()?);
        Some(Self { header, iv: parts.next()?, ciphertext: parts.next()?, tag: parts.next()? })
    }

    /// The JSON object in the header; `None` if there is none.
    pub fn read_header(&self) -> Option<serde_json::Map<String, Value>> {
        serde_json::from_slice(&base64::decode_url(self.header)?).ok()
    }

    /// `None`: it was not encrypted with this key, or was changed since.
    fn decrypt(&self, key: &[u8; KEY]) -> Option<Vec<u8>> {
        let part = base64::decode_url;
        let (iv, ciphertext, tag) = (part(self.iv)?, part(self.ciphertext)?, part(self.tag)?);
        // A shorter tag would be easier to guess.
        if iv.len() != NONCE || tag.len() != TAG {
            return None;
        }
        let decrypt =
            |aad: &[u8]| decrypt_aead(Cipher::aes_256_gcm(), key, Some(&iv), aad, &ciphertext, &tag).ok();
        decrypt(b"").or_else(|| decrypt(self.header.as_bytes()))
    }
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "jwe-decrypt";
    const PRIORITY: i32 = 2509;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            // Of several mistakes the first in this order is told, as APISIX does.
            "properties": {
                "strict": {"type": "boolean", "default": true},
                "forward_header": {"type": "string", "default": "Authorization"},
                "header": {"type": "string", "default": "Authorization"}
            },
            "required": ["header", "forward_header"]
        })
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let forward = &config.forward_header;
        Ok(Self {
            header: HeaderName::try_from(config.header).ok(),
            forward_header: HeaderName::try_from(forward)
                .map_err(|_| format!("{forward:?} is no name of a header"))?,
            strict: config.strict,
        })
    }

    fn credentials(&self, tell: &mut dyn FnMut(Place<'_>)) {
        self.header.iter().for_each(|header| tell(Place::Header(header)));
        tell(Place::Header(&self.forward_header));
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        let refuse = |status, text: &'static str, class| {
            Reply::message(status, text).because(text).classed(class).into()
        };
        let Some(sent) = auth::header(x, self.header.as_ref()) else {
            return if self.strict {
                refuse(403, "missing JWE token in request", Class::Missing)
            } else {
                CONTINUE
            };
        };
        let token = String::from_utf8_lossy(auth::bare_token(sent));
        let Some(jwe) = Jwe::parse(&token) else { return refuse(400, "JWE token invalid", Class::Malformed) };
        let Some(header) = jwe.read_header() else {
            return refuse(400, "JWE token invalid", Class::Malformed);
        };
        let kid = match header.get("kid") {
            None | Some(Value::Bool(false)) => {
                return refuse(400, "missing kid in JWE token", Class::Malformed);
            }
            Some(kid) => kid.as_str(),
        };
        let found = kid.and_then(|kid| x.world.find(<Self as contract::Plugin>::NAME, kid));
        let Some(Credential(key)) = found.and_then(|found| found.secret::<Credential>()) else {
            return refuse(400, "invalid kid in JWE token", Class::Unknown);
        };
        match jwe.decrypt(key).and_then(|plain| HeaderValue::from_bytes(&plain).ok()) {
            Some(value) => {
                x.set_header(&self.forward_header, value);
                CONTINUE
            }
            None => refuse(400, "failed to decrypt JWE token", Class::Wrong),
        }
    }
}

impl AuthPlugin for Plugin {
    type Credential = Credential;
    const KEY: &'static str = "key";
    const UNIQUE: bool = false;
    const ENCRYPT_CREDENTIAL: &'static [&'static str] = &["key", "secret"];

    fn consumer_schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "key": {"type": "string"},
                "secret": {"type": "string"},
                "is_base64_encoded": {"type": "boolean"}
            },
            "required": ["key", "secret"],
            "encrypt_fields": ["key", "secret"]
        })
    }

    fn check_consumer(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        let secret = conf.get("secret").and_then(Value::as_str).unwrap_or_default();
        if is_secret_ref(secret) { Ok(()) } else { key(conf).map(|_| ()) }
    }

    fn credential(conf: &Value, _env: &BuildEnv<'_>) -> Result<Credential, String> {
        key(conf).map(Credential)
    }
}

/// The key in a consumer's configuration.
fn key(conf: &Value) -> Result<[u8; KEY], String> {
    let secret = conf.get("secret").and_then(Value::as_str).unwrap_or_default();
    let (bytes, mistake) = match conf.get("is_base64_encoded") {
        Some(Value::Bool(true)) => (
            Cow::Owned(base64::decode_url(secret).unwrap_or_default()),
            "the secret length after base64 decode should be 32 chars",
        ),
        _ => (Cow::Borrowed(secret.as_bytes()), "the secret length should be 32 chars"),
    };
    <[u8; KEY]>::try_from(&*bytes).map_err(|_| mistake.to_owned())
}

#[cfg(test)]
mod tests {
    use openssl::symm::encrypt_aead;
    use proptest::prelude::*;

    use super::*;
    use crate::plugin::testing::{self, Kit, Setup};

    const SECRET: &str = "key-length-must-be-at-least-32-ch";

    fn secret() -> &'static str {
        &SECRET[..32]
    }

    fn token(header: &Value, plain: &str, authenticated: bool) -> String {
        let header = base64::encode_url(header.to_string().as_bytes());
        let aad = if authenticated { header.as_bytes() } else { b"" };
        let (iv, mut tag) = ([7; NONCE], [0; TAG]);
        let cipher = Cipher::aes_256_gcm();
        let text =
            encrypt_aead(cipher, secret().as_bytes(), Some(&iv), aad, plain.as_bytes(), &mut tag).unwrap();
        let part = |bytes: &[u8]| base64::encode_url(bytes);
        format!("{header}..{}.{}.{}", part(&iv), part(&text), part(&tag))
    }

    fn header() -> Value {
        json!({"alg": "dir", "enc": "A256GCM", "kid": "user-key"})
    }

    /// What is said, and what the upstream sees in `X-Plain`.
    #[track_caller]
    fn check(strict: bool, sent: Option<&str>, said: &str, plain: Option<&str>) {
        let conf = json!({"header": "X-Token", "forward_header": "X-Plain", "strict": strict});
        let plugin: Plugin = testing::plugin(conf);
        let headers: Vec<_> = sent.iter().map(|sent| ("X-Token", *sent)).collect();
        let kit = Kit::get("/", &headers)
            .known::<Plugin>("jack", json!({"key": "user-key", "secret": secret()}))
            .known::<Plugin>("jill", json!({"key": "other", "secret": "x".repeat(32)}));
        kit.run(async |x| {
            let answer = testing::answer(&contract::Plugin::rewrite(&plugin, x).await);
            assert_eq!((&*answer, x.header("x-plain")), (said, plain), "{sent:?}");
            assert!(x.consumer().is_none(), "nobody is authenticated");
        });
    }

    #[test]
    fn decrypts() {
        testing::compile_auth_schemas::<Plugin>();
        for authenticated in [false, true] {
            let token = token(&header(), "hello", authenticated);
            check(true, Some(&token), "continue", Some("hello"));
            check(true, Some(&format!("Bearer {token}")), "continue", Some("hello"));
            check(true, Some(&format!("bearer {token}")), "continue", Some("hello"));
        }
    }

    #[test]
    fn refuses() {
        let no = |status: u16, text: &str| format!(r#"{status} {{"message":"{text}"}}"#);
        check(true, None, &no(403, "missing JWE token in request"), None);
        check(false, None, "continue", None);
        for odd in ["", "a.b.c", "....", "!....", &format!("{}....", base64::encode_url(b"1"))] {
            check(true, Some(odd), &no(400, "JWE token invalid"), None);
        }
        let with = |kid: Value| token(&json!({"kid": kid}), "x", false);
        check(true, Some(&token(&json!({}), "x", false)), &no(400, "missing kid in JWE token"), None);
        check(true, Some(&with(json!(false))), &no(400, "missing kid in JWE token"), None);
        check(true, Some(&with(json!("nobody"))), &no(400, "invalid kid in JWE token"), None);
        check(true, Some(&with(json!(1))), &no(400, "invalid kid in JWE token"), None);
        let failed = no(400, "failed to decrypt JWE token");
        check(true, Some(&with(json!("other"))), &failed, None);
        let good = token(&header(), "hello", false);
        let parts: Vec<&str> = good.split('.').collect();
        let bent = |at: usize, value: &str| {
            let mut parts = parts.clone();
            parts[at] = value;
            parts.join(".")
        };
        let short_tag = base64::encode_url(&base64::decode_url(parts[4]).unwrap()[..4]);
        for bad in
            [bent(2, "AAAA"), bent(2, ""), bent(3, "AAAA"), bent(3, "!"), bent(4, ""), bent(4, &short_tag)]
        {
            check(true, Some(&bad), &failed, None);
        }
        check(true, Some(&token(&header(), "a\nb", false)), &failed, None);
    }

    #[track_caller]
    fn consumer(conf: Value, expected: &str) {
        let refusal = Setup::new().credential::<Plugin>(&conf).err().unwrap_or_default();
        assert_eq!(refusal, expected, "{conf}");
    }

    #[test]
    fn refuses_bad_configurations() {
        consumer(json!({}), r#"property "key" is required"#);
        consumer(json!({"key": "k"}), r#"property "secret" is required"#);
        consumer(json!({"key": "k", "secret": "short"}), "the secret length should be 32 chars");
        let encoded = base64::encode_url(secret().as_bytes());
        consumer(json!({"key": "k", "secret": encoded, "is_base64_encoded": true}), "");
        consumer(
            json!({"key": "k", "secret": secret(), "is_base64_encoded": true}),
            "the secret length after base64 decode should be 32 chars",
        );
        assert_eq!(testing::refusal::<Plugin>(json!({})), r#"property "forward_header" is required"#);
    }

    proptest! {
        #[test]
        fn reads_any_token(text in "[a-zA-Z0-9_.!-]{0,80}") {
            if let Some(jwe) = Jwe::parse(&text) {
                let _ = jwe.read_header();
                prop_assert_eq!(jwe.decrypt(&[0; KEY]), None);
            }
        }
    }
}
