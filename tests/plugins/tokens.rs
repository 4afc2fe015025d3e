//! Tokens and signatures that others made (jwcrypto, Python): jwt-auth, hmac-auth, jwe-decrypt; and what stands on
//! several ways of authenticating: multi-auth, acl, attach-consumer-label; and csrf.

use std::{
    sync::{Arc, Mutex},
    time::SystemTime,
};

use serde_json::{Value, json};

use super::{Fixture, message};
use crate::support::{
    client::Response,
    eventually,
    gateway::{Gateway, Setup},
    tool,
    upstream::Upstream,
};

/// What jwcrypto or Python's hmac makes.
#[track_caller]
fn made(arguments: &[&str]) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/jose.py");
    // Debian's own Python, which finds Debian's packages.
    let text = tool::stdout("/usr/bin/python3", &[&[script], arguments].concat());
    serde_json::from_str(&text).expect("JSON")
}

#[track_caller]
fn bearer(fixture: &Fixture, token: &str) -> Response {
    fixture.get("/", &[("Authorization", &format!("Bearer {token}"))])
}

#[test]
fn jwt_auth_with_every_algorithm() {
    let keys = made(&["tokens"]);
    let keys = keys.as_object().expect("an object");
    assert_eq!(keys.len(), 13);
    let consumers: Vec<Value> = keys
        .iter()
        .map(|(name, key)| {
            let mut conf = json!({"key": name, "algorithm": name});
            let member = if name.starts_with("HS") { "secret" } else { "public_key" };
            conf[member] = key[member].clone();
            json!({"username": name.to_lowercase(), "plugins": {"jwt-auth": conf}})
        })
        .collect();
    let fixture = Fixture::with_consumers(json!({"jwt-auth": {}}), json!(consumers));
    for (name, key) in keys {
        let token = key["token"].as_str().expect("a token");
        // The second time from memory.
        for _ in 0..2 {
            bearer(&fixture, token).expect(200);
            let seen = fixture.upstream.last();
            assert_eq!(seen.header("x-consumer-username"), Some(&*name.to_lowercase()));
        }
        let (signed, signature) = token.rsplit_once('.').expect("a signature");
        let first = if signature.starts_with('A') { 'B' } else { 'A' };
        for bad in [format!("{signed}.{first}{}", &signature[1..]), format!("{signed}.AAAA")] {
            bearer(&fixture, &bad).expect(401).expect_body(&message("failed to verify jwt"));
        }
    }
}

/// APISIX 3.2 makes up what a consumer does not bring; in a file it cannot be stored.
#[test]
fn jwt_auth_of_3_2_in_a_file_without_a_secret() {
    let upstream = Upstream::echo();
    let resources = |uri: &str| {
        let consumer = |name: &str| json!({"username": name, "plugins": {"jwt-auth": {"key": name}}});
        let sign = json!({"id": "sign", "uri": "/apisix/plugin/jwt/sign", "plugins": {"public-api": {}}});
        let route =
            json!({"id": "1", "uri": uri, "plugins": {"jwt-auth": {}}, "upstream": upstream.resource()});
        json!({"routes": [sign, route], "consumers": [consumer("ann"), consumer("bob")]})
    };
    let gateway = Setup::file(resources("/first")).speaking_3_2().start();
    let sign = |gateway: &Gateway, key: &str| {
        gateway.get(&format!("/apisix/plugin/jwt/sign?key={key}")).expect(200).text()
    };
    let call = |gateway: &Gateway, target: &str, token: &str| {
        gateway.request("GET", target).header("Authorization", token).send()
    };
    let (ann, bob) = (sign(&gateway, "ann"), sign(&gateway, "bob"));
    for token in [&ann, &bob] {
        call(&gateway, "/first", token).expect(200);
    }
    // Each has a secret of his own.
    let (claims, _) = ann.rsplit_once('.').expect("a signature");
    let (_, signature) = bob.rsplit_once('.').expect("a signature");
    call(&gateway, "/first", &format!("{claims}.{signature}")).expect(401);
    // The file is read again: the tokens are still good.
    gateway.rewrite(resources("/second"));
    eventually("the new route", || call(&gateway, "/second", &ann).status == 200);
    call(&gateway, "/second", &bob).expect(200);
    // The secret lived in memory.
    let gateway = gateway.restart_after_kill();
    call(&gateway, "/second", &ann).expect(401);
    call(&gateway, "/second", &sign(&gateway, "ann")).expect(200);
}

#[test]
fn jwt_auth_with_published_keys() {
    let keys = made(&["tokens"]);
    let published = |name: &str| json!({"keys": [keys[name]["jwk"]]}).to_string();
    let token = |name: &str| keys[name]["token"].as_str().expect("a token");
    let document = Arc::new(Mutex::new(Some(published("ES256"))));
    let served = document.clone();
    let issuer = Upstream::with(move |_, wire| match &*served.lock().unwrap() {
        Some(document) => wire.answer(200, &[("Content-Type", "application/json")], document.as_bytes()),
        None => wire.answer(503, &[], b""),
    });
    let url = format!("http://{}/jwks", issuer.node());
    let consumer = |name: &str| {
        let conf = json!({"key": name, "algorithm": name, "jwks_uri": url, "jwks_refresh": 1});
        json!({"username": name.to_lowercase(), "plugins": {"jwt-auth": conf}})
    };
    let consumers = json!([consumer("ES256"), consumer("EdDSA")]);
    let fixture = Fixture::with_consumers(json!({"jwt-auth": {}}), consumers);
    assert_eq!(issuer.count(), 0, "keys are fetched when they are needed");
    bearer(&fixture, token("ES256")).expect(200);
    assert_eq!(fixture.upstream.last().header("x-consumer-username"), Some("es256"));
    bearer(&fixture, token("EdDSA")).expect(401).expect_body(&message("failed to verify jwt"));

    // The source is down: keys that are known stay in use.
    *document.lock().unwrap() = None;
    let before = issuer.count();
    eventually("a fetch that fails", || {
        bearer(&fixture, token("ES256")).expect(200);
        issuer.count() > before
    });
    bearer(&fixture, token("ES256")).expect(200);

    // It is back with another key: the new one lets in, the old one no longer does.
    *document.lock().unwrap() = Some(published("EdDSA"));
    eventually("the new key", || bearer(&fixture, token("EdDSA")).status == 200);
    bearer(&fixture, token("ES256")).expect(401);
}

#[test]
fn hmac_auth_in_both_forms() {
    let consumers = json!([
        {"username": "jack", "plugins": {"hmac-auth": {"key_id": "jack-key", "secret_key": "jack-secret"}}},
        {"username": "old", "plugins": {"hmac-auth": {
            "access_key": "user-key", "secret_key": "my-secret-key", "signed_headers": ["User-Agent", "x-custom-a"]
        }}},
    ]);
    let conf = json!({"hmac-auth": {"validate_request_body": true, "hide_credentials": true}});
    let fixture = Fixture::with_consumers(conf, consumers);
    let date = httpdate::fmt_http_date(SystemTime::now());
    // As in APISIX, the target that is signed is the decoded one.
    let lines = format!("jack-key\nPOST /a b?x=1\ndate: {date}\nx-a: 1\n");
    let digest = "SHA-256=LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";
    for hash in ["sha1", "sha256", "sha512"] {
        let signature = made(&["hmac", hash, "jack-secret", &lines]);
        let authorization = format!(
            "Signature keyId=\"jack-key\",algorithm=\"hmac-{hash}\",headers=\"@request-target date x-a\",\
             signature=\"{}\"",
            signature.as_str().expect("a text")
        );
        let request = |body: &'static str, value: &str| {
            let request = fixture.gateway.request("POST", "/a%20b?x=1").header("Date", &date);
            let request = request.header("X-A", value).header("Digest", digest);
            request.header("Authorization", &authorization).body(body).send()
        };
        request("hello", "1").expect(200);
        let seen = fixture.upstream.last();
        assert_eq!(seen.header("x-consumer-username"), Some("jack"));
        assert_eq!((seen.header("authorization"), &*seen.body), (None, &b"hello"[..]));
        let challenge = "hmac realm=\"hmac\"";
        let refused = request("hello", "2").expect(401).expect_header("WWW-Authenticate", challenge);
        refused.expect_body(&message("client request can't be validated"));
        request("hallo", "1").expect(401);
    }

    // The vector that the documents of 3.2 publish.
    let classic = |query: &str| {
        fixture
            .gateway
            .request("GET", &format!("/index.html?{query}"))
            .header("X-HMAC-ACCESS-KEY", "user-key")
            .header("X-HMAC-SIGNATURE", "8XV1GB7Tq23OJcoz6wjqTs4ZLxr9DiLoY4PxzScWGYg=")
            .header("X-HMAC-ALGORITHM", "hmac-sha256")
            .header("X-HMAC-SIGNED-HEADERS", "User-Agent;x-custom-a")
            .header("Date", "Tue, 19 Jan 2021 11:33:20 GMT")
            .header("User-Agent", "curl/7.29.0")
            .header("x-custom-a", "test")
            .send()
    };
    classic("name=james&age=36").expect(200);
    let seen = fixture.upstream.last();
    assert_eq!((seen.header("x-consumer-username"), seen.header("x-hmac-signature")), (Some("old"), None));
    classic("age=36&name=james").expect(200);
    classic("name=james&age=37").expect(401);
}

#[test]
fn jwe_decrypt() {
    let secret = "a-secret-of-thirty-two-bytes-123";
    let consumers =
        json!([{"username": "jack", "plugins": {"jwe-decrypt": {"key": "jack-key", "secret": secret}}}]);
    let conf = json!({"jwe-decrypt": {"header": "Authorization", "forward_header": "X-Plain"}});
    let fixture = Fixture::with_consumers(conf, consumers);
    let token = made(&["jwe", secret, "jack-key", "hello"]);
    bearer(&fixture, token.as_str().expect("a token")).expect(200);
    assert_eq!(fixture.upstream.last().header("x-plain"), Some("hello"));
    let other = made(&["jwe", &"x".repeat(32), "jack-key", "hello"]);
    let refused = bearer(&fixture, other.as_str().expect("a token")).expect(400);
    refused.expect_body(&message("failed to decrypt JWE token"));
    let unknown = made(&["jwe", secret, "jill-key", "hello"]);
    bearer(&fixture, unknown.as_str().expect("a token"))
        .expect(400)
        .expect_body(&message("invalid kid in JWE token"));
    fixture.get("/", &[]).expect(403).expect_body(&message("missing JWE token in request"));
}

fn labelled() -> Value {
    json!([
        {"username": "jack", "labels": {"team": "a,b", "room": "1"}, "plugins": {
            "key-auth": {"key": "k-jack"}, "basic-auth": {"username": "jack", "password": "pw"},
        }},
        {"username": "jill", "labels": {"team": "c"}, "plugins": {"key-auth": {"key": "k-jill"}}},
    ])
}

#[test]
fn multi_auth() {
    let conf = json!({"multi-auth": {"auth_plugins": [{"basic-auth": {}}, {"key-auth": {}}]}});
    let fixture = Fixture::with_consumers(conf, labelled());
    fixture.get("/", &[("apikey", "k-jill")]).expect(200);
    assert_eq!(fixture.upstream.last().header("x-consumer-username"), Some("jill"));
    let answer = fixture.gateway.request("GET", "/").basic("jack", "pw").send().expect(200);
    assert_eq!(answer.header("WWW-Authenticate"), None);
    assert_eq!(fixture.upstream.last().header("x-consumer-username"), Some("jack"));
    let answer = fixture.gateway.request("GET", "/").basic("jack", "bad").send().expect(401);
    answer
        .expect_header("WWW-Authenticate", "apikey realm=\"key\"")
        .expect_body(&message("Authorization Failed"));
    fixture.get("/", &[("apikey", "bad")]).expect(401);
}

#[test]
fn acl_and_attach_consumer_label() {
    let acl = json!({"allow_labels": {"team": ["b"]}, "rejected_msg": "no"});
    let attach = json!({"headers": {"X-Team": "$team", "X-Floor": "$floor"}});
    let fixture = Fixture::with_consumers(
        json!({"key-auth": {}, "acl": acl, "attach-consumer-label": attach}),
        labelled(),
    );
    fixture.get("/", &[("apikey", "k-jack"), ("X-Team", "forged"), ("X-Floor", "9")]).expect(200);
    let seen = fixture.upstream.last();
    assert_eq!((seen.header("x-team"), seen.header("x-floor")), (Some("a,b"), None));
    fixture.get("/", &[("apikey", "k-jill")]).expect(403).expect_body(&message("no"));
    let open = Fixture::new(json!({"acl": acl}));
    open.get("/", &[]).expect(401).expect_body(&message("Missing authentication."));
}

#[test]
fn csrf() {
    let fixture = Fixture::new(json!({"csrf": {"key": "a-key-of-the-tests"}}));
    let answer = fixture.get("/", &[]).expect(200);
    let cookie = answer.header("Set-Cookie").expect("a cookie");
    let token =
        cookie.strip_prefix("apisix-csrf-token=").and_then(|rest| rest.split(';').next()).expect("a token");
    let post = |header: Option<&str>, cookie: Option<&str>| {
        let mut request = fixture.gateway.request("POST", "/").body("x");
        if let Some(header) = header {
            request = request.header("apisix-csrf-token", header);
        }
        if let Some(cookie) = cookie {
            request = request.header("Cookie", &format!("a=1; apisix-csrf-token={cookie}"));
        }
        request.send()
    };
    post(Some(token), Some(token)).expect(200);
    let refused = |response: Response, text: &str| {
        let response = response.expect(401).expect_body(&format!("{}\n", json!({"error_msg": text})));
        assert!(response.header("Set-Cookie").is_some(), "a refusal brings a token, too");
    };
    refused(post(None, Some(token)), "no csrf token in headers");
    refused(post(Some(token), None), "no csrf cookie");
    refused(post(Some("x"), Some(token)), "csrf token mismatch");
    refused(post(Some("e30="), Some("e30=")), "Failed to verify the csrf token signature");
}
