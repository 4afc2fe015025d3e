//! ip-, ua- and referer-restriction, uri-blocker, request-validation, cors, public-api.

use serde_json::{Value, json};

use super::{Fixture, message};

#[test]
fn ip_restriction() {
    let fixture = Fixture::new(json!({"ip-restriction": {"whitelist": ["10.0.0.0/8", "::1"]}}));
    fixture.get("/", &[]).expect(403).expect_body(&message("Your IP address is not allowed"));
    // real_ip_from holds 127.0.0.1 by default.
    fixture.get("/", &[("X-Real-IP", "10.9.9.9")]).expect(200);
    let fixture = Fixture::new(
        json!({"ip-restriction": {"blacklist": ["127.0.0.1"], "message": "no", "response_code": 404}}),
    );
    fixture.get("/", &[]).expect(404).expect_body(&message("no"));
}

#[test]
fn ua_restriction() {
    let fixture = Fixture::new(json!({"ua-restriction": {"denylist": ["bot/[0-9]+", "crawler"]}}));
    fixture.get("/", &[("User-Agent", "my-bot/12")]).expect(403).expect_body(&message("Not allowed"));
    fixture.get("/", &[("User-Agent", "curl/8")]).expect(200);
    fixture.get("/", &[]).expect(403);
    Fixture::new(json!({"ua-restriction": {"bypass_missing": true, "denylist": ["x"]}}))
        .get("/", &[])
        .expect(200);
}

#[test]
fn referer_restriction() {
    let fixture = Fixture::new(json!({"referer-restriction": {"whitelist": ["a.com", "*.b.com"]}}));
    for (referer, status) in
        [("http://a.com/x", 200), ("https://x.b.com", 200), ("http://c.com", 403), ("nonsense", 403)]
    {
        fixture.get("/", &[("Referer", referer)]).expect(status);
    }
    fixture.get("/", &[]).expect(403).expect_body(&message("Your referer host is not allowed"));
}

#[test]
fn uri_blocker() {
    let fixture = Fixture::new(json!({"uri-blocker": {"block_rules": ["root.exe", "^/select(.*)from"]}}));
    fixture.get("/x?root.exe", &[]).expect(403).expect_in_body("<title>403 Forbidden</title>");
    fixture.get("/select%20a%20from", &[]).expect(403);
    fixture.get("/x", &[]).expect(200);
    let rules = json!({"block_rules": ["secret"], "rejected_msg": "no way", "case_insensitive": true});
    let fixture = Fixture::new(json!({"uri-blocker": rules}));
    let answer = fixture.get("/SECRET", &[]).expect(403);
    assert_eq!(answer.json(), json!({"error_msg": "no way"}));
}

#[test]
fn request_validation() {
    let schema = json!({"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "minLength": 2}}});
    let fixture = Fixture::new(json!({"request-validation": {"body_schema": schema}}));
    let post = |kind: &str, body: &str| {
        fixture.gateway.request("POST", "/").header("Content-Type", kind).body(body).send()
    };
    post("application/json", r#"{"name":"ok"}"#).expect(200);
    assert_eq!(fixture.upstream.last().body, br#"{"name":"ok"}"#);
    post("application/json", r#"{"name":"x"}"#).expect(400).expect_in_body("name");
    post("application/json", "{broken").expect(400);
    post("application/x-www-form-urlencoded", "name=long").expect(200);
    fixture.gateway.request("POST", "/").send().expect(400);

    let headers = json!({"type": "object", "required": ["x-tenant"]});
    let fixture = Fixture::new(
        json!({"request-validation": {"header_schema": headers, "rejected_code": 422, "rejected_msg": "bad"}}),
    );
    fixture.get("/", &[("X-Tenant", "a")]).expect(200);
    fixture.get("/", &[]).expect(422).expect_in_body("bad");
}

#[test]
fn cors() {
    let fixture = Fixture::new(json!({"cors": {}}));
    let answer = fixture.get("/", &[("Origin", "http://a.test")]).expect(200);
    for (name, value) in [("Origin", "*"), ("Methods", "*"), ("Headers", "*")] {
        assert_eq!(answer.header(&format!("Access-Control-Allow-{name}")), Some(value), "{name}");
    }
    assert_eq!(answer.header("Access-Control-Max-Age"), Some("5"));
    let preflight = fixture.gateway.request("OPTIONS", "/").header("Origin", "http://a.test").send();
    preflight.expect(200).expect_header("Access-Control-Allow-Origin", "*");
    assert_eq!(fixture.upstream.count(), 1, "a preflight is answered here");

    let strict = json!({"allow_origins": "http://a.test,http://b.test", "allow_methods": "GET,PUT",
        "allow_headers": "X-A", "expose_headers": "X-B", "allow_credential": true});
    let fixture = Fixture::new(json!({"cors": strict}));
    let answer = fixture.get("/", &[("Origin", "http://b.test")]).expect(200);
    assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("http://b.test"));
    assert_eq!(answer.header("Access-Control-Allow-Credentials"), Some("true"));
    assert_eq!(answer.header("Access-Control-Allow-Methods"), Some("GET,PUT"));
    let answer = fixture.get("/", &[("Origin", "http://evil.test")]).expect(200);
    assert_eq!(answer.header("Access-Control-Allow-Origin"), None);
}

#[test]
fn replies_of_the_gateway_have_cors_headers_too() {
    let fixture = Fixture::new(json!({"cors": {}, "key-auth": {}}));
    let answer = fixture.get("/", &[("Origin", "http://a.test")]).expect(401);
    assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("*"));
}

#[test]
fn public_api_shows_only_what_plugins_offer() {
    let plugins: Value = json!({"public-api": {}});
    let fixture = Fixture::new(plugins);
    fixture.get("/no/such/api", &[]).expect(404);
    assert_eq!(fixture.upstream.count(), 0);
}
