//! csrf: a signed token in a cookie that a page must repeat in a header (double submit cookie).
//!
//! APISIX: plugins/csrf.lua; a token that one of the two made is good for the other. Invariant: the key is in no
//! text that leaves the gateway.
//!
//! Differs from APISIX: the random part is from the system's generator, not from a predictable one; a token whose
//! members are of another type is refused (there some of them fail with 500).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderName, HeaderValue, Method, header::SET_COOKIE};
use pingora::http::ResponseHeader;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::shared::{auth, base64};
use crate::{
    plugin::{
        contract,
        credentials::Place,
        env::BuildEnv,
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Class, Flow, Reply},
    },
    schema::lua,
    vars::clock,
};

const UNSIGNED: &str = "Failed to verify the csrf token signature";

/// The configuration.
#[derive(Deserialize)]
pub struct Config {
    /// What tokens are signed with.
    pub key: String,
    /// Seconds that a token is good for; 0 or less: for ever.
    #[serde(default = "default_expires")]
    pub expires: i64,
    /// The name of the cookie and of the header.
    #[serde(default = "default_name")]
    pub name: String,
}

fn default_expires() -> i64 {
    7200
}

fn default_name() -> String {
    "apisix-csrf-token".into()
}

/// The compiled configuration.
pub struct Plugin {
    key: Box<str>,
    expires: i64,
    name: Box<str>,
    /// `None`: a name that no header can have.
    header: Option<HeaderName>,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "csrf";
    const PRIORITY: i32 = 2980;
    const PHASES: Phases = Phases::ACCESS.and(Phases::HEADER_FILTER);
    const ENCRYPT: &'static [&'static str] = &["key"];
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            // Of several mistakes the first in this order is told, as APISIX does.
            "properties": {
                "expires": {"type": "integer", "default": 7200},
                "name": {"type": "string", "default": "apisix-csrf-token"},
                "key": {"type": "string"}
            },
            "encrypt_fields": ["key"],
            "required": ["key"]
        })
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        Ok(Self {
            key: config.key.into(),
            expires: config.expires,
            header: HeaderName::try_from(&config.name).ok(),
            name: config.name.into(),
        })
    }

    fn credentials(&self, tell: &mut dyn FnMut(Place<'_>)) {
        self.header.iter().for_each(|header| tell(Place::Header(header)));
        tell(Place::Cookie(&self.name));
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        if matches!(*x.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
            return CONTINUE;
        }
        let refuse =
            |text: &'static str, class| Reply::error_msg(401, text).because(text).classed(class).into();
        let Some(sent) = auth::header(x, self.header.as_ref()).filter(|sent| !sent.is_empty()) else {
            return refuse("no csrf token in headers", Class::Missing);
        };
        let Some(kept) = auth::cookie(x, &self.name) else { return refuse("no csrf cookie", Class::Missing) };
        if sent != kept.as_bytes() {
            return refuse("csrf token mismatch", Class::Wrong);
        }
        match self.judge(kept, now()) {
            Ok(()) => CONTINUE,
            Err((class, reason)) => Reply::error_msg(401, UNSIGNED).because(reason).classed(class).into(),
        }
    }

    fn header_filter(&self, _x: &mut Exchange<'_>, head: &mut ResponseHeader) {
        let now = now();
        let Some(token) = self.token(now) else { return };
        let until = clock::cookie_time(now.saturating_add(self.expires));
        let cookie = format!("{}={token};path=/;SameSite=Lax;Expires={until}", self.name);
        if let Ok(cookie) = HeaderValue::try_from(cookie) {
            // Fails only beyond the 32,768 distinct names a header map can hold: then the header stays out.
            let _ = head.append_header(SET_COOKIE, cookie);
        }
    }
}

/// What a token holds.
#[derive(Deserialize)]
struct Token {
    random: f64,
    expires: f64,
    sign: String,
}

impl Plugin {
    /// A new token; `None` if the system has no randomness to give.
    fn token(&self, now: i64) -> Option<String> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).ok()?;
        // Fourteen digits are what Lua writes of a number, so that what is signed is what is read back.
        let random = (u64::from_le_bytes(bytes) % 100_000_000_000_000) as f64 / 1e14;
        let (random, expires) = (lua::number_text(random), lua::number_text(now as f64));
        let sign = self.sign(&random, &expires);
        Some(base64::encode(
            format!(r#"{{"random":{random},"expires":{expires},"sign":"{sign}"}}"#).as_bytes(),
        ))
    }

    /// Whether the token is ours and not too old; else why not.
    fn judge(&self, token: &str, now: i64) -> Result<(), (Class, &'static str)> {
        let text =
            base64::decode(token.as_bytes()).ok_or((Class::Malformed, "csrf token base64 decode error"))?;
        let token: Token = serde_json::from_slice(&text)
            .map_err(|_| (Class::Malformed, "the csrf token is no such JSON"))?;
        if self.expires > 0 && now as f64 - token.expires > self.expires as f64 {
            return Err((Class::Expired, "token has expired"));
        }
        let own = self.sign(&lua::number_text(token.random), &lua::number_text(token.expires));
        if bool::from(own.as_bytes().ct_eq(token.sign.as_bytes())) {
            Ok(())
        } else {
            Err((Class::Wrong, "Invalid signatures"))
        }
    }

    fn sign(&self, random: &str, expires: &str) -> String {
        let text = format!("{{expires:{expires},random:{random},key:{}}}", self.key);
        Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plugin::testing::{self, Kit};

    fn refusal(text: &str) -> String {
        format!(r#"401 {{"error_msg":"{text}"}}"#)
    }

    fn plugin() -> Plugin {
        testing::plugin(json!({"key": "unique"}))
    }

    #[track_caller]
    fn check(method: &str, header: Option<&str>, cookie: Option<&str>, said: &str) {
        let mut raw = format!("{method} / HTTP/1.1\r\nHost: a.com\r\n");
        if let Some(header) = header {
            raw.push_str(&format!("apisix-csrf-token: {header}\r\n"));
        }
        if let Some(cookie) = cookie {
            raw.push_str(&format!("Cookie: a=1; apisix-csrf-token={cookie}\r\n"));
        }
        raw.push_str("\r\n");
        assert_eq!(Kit::new(raw).access(&plugin()), said, "{method} {header:?} {cookie:?}");
    }

    #[test]
    fn the_token_must_stand_in_both_places() {
        testing::compile_schemas::<Plugin>();
        let token = plugin().token(now()).unwrap();
        let token = Some(&*token);
        for safe in ["GET", "HEAD", "OPTIONS"] {
            check(safe, None, None, "continue");
        }
        check("POST", token, token, "continue");
        check("PUT", None, token, &refusal("no csrf token in headers"));
        check("PUT", Some(""), token, &refusal("no csrf token in headers"));
        check("DELETE", token, None, &refusal("no csrf cookie"));
        check("POST", Some("x"), token, &refusal("csrf token mismatch"));
        check("POST", Some("x"), Some("x"), &refusal(UNSIGNED));
    }

    #[test]
    fn judges_tokens() {
        let plugin = plugin();
        let token = plugin.token(1000).unwrap();
        assert_eq!(plugin.judge(&token, 1000 + 7200), Ok(()));
        assert_eq!(plugin.judge(&token, 1000 + 7201), Err((Class::Expired, "token has expired")));
        let forever: Plugin = testing::plugin(json!({"key": "unique", "expires": 0}));
        assert_eq!(forever.judge(&token, i64::from(u32::MAX)), Ok(()));
        let other: Plugin = testing::plugin(json!({"key": "other"}));
        assert_eq!(other.judge(&token, 1000), Err((Class::Wrong, "Invalid signatures")));
        assert_eq!(plugin.judge("!", 0), Err((Class::Malformed, "csrf token base64 decode error")));
        for odd in
            ["{}", "1", "null", r#"{"random":"1","expires":1,"sign":""}"#, r#"{"random":1,"expires":1}"#]
        {
            let judged = plugin.judge(&base64::encode(odd.as_bytes()), 0);
            assert_eq!(judged, Err((Class::Malformed, "the csrf token is no such JSON")), "{odd}");
        }
        assert_ne!(plugin.token(1000), plugin.token(1000));
    }

    #[test]
    fn takes_a_token_of_apisix() {
        // Random part and time as cjson writes them; the signature by hand, over what the plugin there signs.
        let text = "{expires:1700000000,random:0.42880974945443,key:unique}";
        let sign: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let token = json!({"random": 0.42880974945443, "expires": 1_700_000_000, "sign": sign}).to_string();
        assert_eq!(plugin().judge(&base64::encode(token.as_bytes()), 1_700_000_001), Ok(()));
    }

    #[test]
    fn every_response_brings_a_token() {
        let plugin = plugin();
        Kit::get("/", &[]).run(async |x| {
            let mut head = testing::response(200, &[("Set-Cookie", "a=1")]);
            contract::Plugin::header_filter(&plugin, x, &mut head);
            let cookies: Vec<_> =
                head.headers.get_all(SET_COOKIE).iter().map(|one| one.to_str().unwrap()).collect();
            assert_eq!(cookies[0], "a=1");
            let rest = cookies[1].strip_prefix("apisix-csrf-token=").expect("our cookie");
            let (token, rest) = rest.split_once(';').unwrap();
            assert_eq!(plugin.judge(token, now()), Ok(()));
            assert!(rest.starts_with("path=/;SameSite=Lax;Expires=") && rest.ends_with(" GMT"), "{rest}");
        });
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = testing::refusal::<Plugin>;
        assert_eq!(refusal(json!({})), r#"property "key" is required"#);
        let expires = r#"property "expires" validation failed: wrong type: expected integer, got boolean"#;
        assert_eq!(refusal(json!({"expires": true})), expires);
    }

    proptest! {
        #[test]
        fn reads_any_token(text in "\\PC{0,40}", json in "[{}\":,a-z0-9.]{0,40}") {
            prop_assert!(plugin().judge(&text, 0).is_err());
            prop_assert!(plugin().judge(&base64::encode(json.as_bytes()), 0).is_err());
        }
    }
}
