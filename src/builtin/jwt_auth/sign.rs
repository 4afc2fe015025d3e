//! `GET /apisix/plugin/jwt/sign`: makes a token for a consumer, reachable through a route with public-api only.
//!
//! APISIX 3.2 to 3.10: plugins/jwt-auth.lua `gen_token`. It is offered whatever version is spoken: who has no route
//! with public-api for it does not have it.
//!
//! Differs from APISIX: a payload that is no JSON object is answered with 400 (there with an uncaught error).

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::{Credential, Keys, Plugin};
use crate::{
    builtin::shared::auth::{self, QueryValue},
    net::escape,
    plugin::{
        contract::{self, HookFuture, PublicApi},
        exchange::Exchange,
        reply::Reply,
    },
};

/// The endpoint.
pub fn api() -> PublicApi {
    PublicApi {
        methods: &["GET"],
        path: "/apisix/plugin/jwt/sign".into(),
        secret_args: &[],
        secret_bodies: true,
        handler: handle,
    }
}

fn handle<'a>(x: &'a mut Exchange<'_>) -> HookFuture<'a> {
    Box::pin(async move { answer(x).into() })
}

fn answer(x: &Exchange<'_>) -> Reply {
    let key = match auth::query(x.args(), "key") {
        Some(QueryValue::One(key)) => key,
        Some(QueryValue::Unusable) => return Reply::status(404).because("unknown key"),
        None => return Reply::status(400).because("the argument key is missing"),
    };
    let Some(found) = x.world.find(<Plugin as contract::Plugin>::NAME, &key) else {
        return Reply::status(404).because("unknown key");
    };
    let Some(credential) = found.secret::<Credential>() else {
        return Reply::status(404).because("the consumer's side is of another plugin");
    };
    let payload = match payload(x) {
        Ok(payload) => payload,
        Err(reason) => return Reply::status(400).because(reason),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match credential.sign(&key, payload, now) {
        Ok(token) => Reply::bytes(200, token),
        Err(Unsigned::NoKey) => {
            Reply::bytes(503, "failed to sign jwt").because("the consumer has no private key")
        }
        Err(Unsigned::Failed(reason)) => Reply::bytes(500, "failed to sign jwt").because(reason),
    }
}

/// What the caller wants in the token; encoded twice, as clients of APISIX do it.
fn payload(x: &Exchange<'_>) -> Result<Map<String, Value>, &'static str> {
    let Some(text) = auth::query(x.args(), "payload") else { return Ok(Map::new()) };
    let QueryValue::One(text) = text else { return Err("the argument payload is given twice or empty") };
    let text = escape::unescape_uri(text.as_bytes());
    serde_json::from_str(&text).map_err(|_| "the payload is no JSON object")
}

/// Why there is no token.
#[derive(Debug, PartialEq)]
pub enum Unsigned {
    /// The consumer can verify only.
    NoKey,
    /// The key does not sign.
    Failed(String),
}

impl Credential {
    fn sign(&self, key: &str, extra: Map<String, Value>, now: u64) -> Result<String, Unsigned> {
        let mut header = json!({"typ": "JWT", "alg": self.algorithm.name()});
        if let Keys::Asymmetric { public_pem, .. } = &self.keys {
            header["x5c"] = json!([&**public_pem]);
        }
        let mut payload = json!({"key": key, "exp": now.saturating_add(self.lifetime)});
        for (name, value) in extra {
            payload[name] = value;
        }
        let key = match &self.keys {
            Keys::Symmetric { sign, .. } => sign,
            Keys::Asymmetric { private: None, .. } | Keys::Published { .. } => return Err(Unsigned::NoKey),
            Keys::Asymmetric { private: Some(key), .. } => {
                key.as_ref().map_err(|e| Unsigned::Failed(e.to_string()))?
            }
        };
        key.token(header, &payload).map_err(Unsigned::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use crate::{
        builtin::shared::jwt::key::tests::pair,
        plugin::testing::{self, Kit},
    };

    fn kit(target: &str) -> Kit {
        let (private, public) = pair(Algorithm::ES256);
        let es = json!({"key": "es", "algorithm": "ES256", "public_key": public, "private_key": private});
        let mute = json!({"key": "mute", "algorithm": "ES256", "public_key": public});
        let junk = json!({"key": "junk", "algorithm": "ES256", "public_key": public, "private_key": "junk"});
        Kit::get(target, &[])
            .apis_of::<Plugin>()
            .known::<Plugin>("hs", json!({"key": "hs", "secret": "s", "exp": 60}))
            .known::<Plugin>("es", es)
            .known::<Plugin>("mute", mute)
            .known::<Plugin>("junk", junk)
    }

    fn asked(query: &str) -> String {
        kit(&format!("/apisix/plugin/jwt/sign{query}")).access(&testing::plugin::<PublicApiPlugin>(json!({})))
    }

    use crate::builtin::public_api::Plugin as PublicApiPlugin;

    #[test]
    fn signs_what_the_plugin_accepts() {
        for key in ["hs", "es"] {
            let target = format!("/apisix/plugin/jwt/sign?key={key}&payload=%257B%2522uid%2522%253A7%257D");
            let kit = kit(&target);
            let said = kit.access(&testing::plugin::<PublicApiPlugin>(json!({})));
            let token = said.strip_prefix("200 ").expect("a token");
            let read = Token::parse(token).expect("a readable token");
            let [uid, exp] = read.payload(["uid", "exp"]).expect("an object");
            assert_eq!(uid, Member::Number(7.0));
            assert!(matches!(exp, Member::Number(_)));
            let plugin: Plugin = testing::plugin(json!({}));
            kit.run(async |x| assert!(plugin.verify(x.world, token).await.is_ok(), "{key}"));
        }
    }

    #[test]
    fn the_payload_may_override() {
        let said = asked("?key=hs&payload=%7B%22exp%22%3A5%2C%22key%22%3A%22x%22%7D");
        let token = Token::parse(said.strip_prefix("200 ").expect("a token")).expect("a readable token");
        assert_eq!(token.payload(["key", "exp"]), Some([Member::Text("x".into()), Member::Number(5.0)]));
    }

    #[test]
    fn refusals() {
        assert_eq!(asked(""), "400");
        assert_eq!(asked("?key=nobody"), "404");
        assert_eq!(asked("?key=hs&payload=x"), "400");
        assert_eq!(asked("?key=hs&payload=%5B%5D"), "400");
        assert_eq!(asked("?key=mute"), "503 failed to sign jwt");
        assert_eq!(asked("?key=junk"), "500 failed to sign jwt");
    }
}
