//! key-auth, basic-auth, jwt-auth, consumer-restriction: who is let in, with which words the others are not, and what
//! the upstream learns.

use serde_json::{Value, json};

use super::{Fixture, message};
use crate::support::client::Response;

fn consumers() -> Value {
    json!([
        {"username": "jack", "labels": {"custom_id": "c-1"}, "plugins": {
            "key-auth": {"key": "k-jack"},
            "basic-auth": {"username": "jack", "password": "p:wd"},
            "jwt-auth": {"key": "j-jack", "secret": "secret-of-jack-0123456789abcdef-0123456789"},
        }},
        {"username": "jill", "plugins": {
            "key-auth": {"key": "k-jill"}, "basic-auth": {"username": "jill", "password": "hill"},
        }},
        {"username": "bob"},
        {"id": "bob/credentials/c1", "plugins": {"key-auth": {"key": "k-bob"}}},
        {"username": "anon", "plugins": {}},
    ])
}

fn with(plugins: Value) -> Fixture {
    Fixture::with_consumers(plugins, consumers())
}

#[track_caller]
fn refused(response: Response, challenge: &str, text: &str) {
    response.expect(401).expect_header("WWW-Authenticate", challenge).expect_body(&message(text));
}

#[test]
fn key_auth() {
    let fixture = with(json!({"key-auth": {}}));
    let challenge = "apikey realm=\"key\"";
    refused(fixture.get("/", &[]), challenge, "Missing API key in request");
    refused(fixture.get("/", &[("apikey", "wrong")]), challenge, "Invalid API key in request");
    refused(fixture.get("/", &[("apikey", "k-jac")]), challenge, "Invalid API key in request");
    assert_eq!(fixture.upstream.count(), 0);
    fixture.get("/", &[("apikey", "k-jack")]).expect(200);
    let seen = fixture.upstream.last();
    assert_eq!(seen.header("x-consumer-username"), Some("jack"));
    assert_eq!(seen.header("x-consumer-custom-id"), Some("c-1"));
    assert_eq!(seen.header("apikey"), Some("k-jack"));
    fixture.get("/?apikey=k-jill", &[]).expect(200);
    assert_eq!(fixture.upstream.last().header("x-consumer-username"), Some("jill"));
    fixture.get("/", &[("apikey", "k-bob")]).expect(200);
    let seen = fixture.upstream.last();
    assert_eq!(
        (seen.header("x-consumer-username"), seen.header("x-credential-identifier")),
        (Some("bob"), Some("c1"))
    );
}

#[test]
fn key_auth_hides_the_key_and_takes_other_names() {
    let fixture = with(json!({"key-auth": {"header": "X-Key", "query": "k", "hide_credentials": true}}));
    fixture.get("/", &[("apikey", "k-jack")]).expect(401);
    fixture.get("/x?a=1", &[("X-Key", "k-jack")]).expect(200);
    assert_eq!(fixture.upstream.last().header("x-key"), None);
    fixture.get("/x?a=1&k=k-jack&b=2", &[]).expect(200);
    let target = fixture.upstream.last().target;
    assert!(!target.contains("k-jack") && target.contains("a=1") && target.contains("b=2"), "{target}");
}

#[test]
fn an_anonymous_consumer_stands_in() {
    let fixture = with(json!({"key-auth": {"anonymous_consumer": "anon"}}));
    fixture.get("/", &[]).expect(200);
    assert_eq!(fixture.upstream.last().header("x-consumer-username"), Some("anon"));
    fixture.get("/", &[("apikey", "k-jack")]).expect(200);
    assert_eq!(fixture.upstream.last().header("x-consumer-username"), Some("jack"));
}

#[test]
fn basic_auth() {
    let fixture = with(json!({"basic-auth": {}}));
    let challenge = "Basic realm=\"basic\"";
    let get = |credentials: &str| fixture.get("/", &[("Authorization", credentials)]);
    let login = |user: &str, password: &str| fixture.gateway.request("GET", "/").basic(user, password).send();
    refused(fixture.get("/", &[]), challenge, "Missing authorization in request");
    refused(get("Bearer abc"), challenge, "Invalid authorization in request");
    refused(get("Basic !!!"), challenge, "Invalid authorization in request");
    refused(login("jack", "wrong"), challenge, "Invalid user authorization");
    refused(login("nobody", "p:wd"), challenge, "Invalid user authorization");
    login("jack", "p:wd").expect(200);
    assert_eq!(fixture.upstream.last().header("x-consumer-username"), Some("jack"));
    get(&format!("bAsIc {}", crate::support::client::base64(b"jill:hill"))).expect(200);
}

#[test]
fn basic_auth_hides_credentials() {
    let fixture = with(json!({"basic-auth": {"hide_credentials": true}}));
    fixture.gateway.request("GET", "/").basic("jill", "hill").send().expect(200);
    assert_eq!(fixture.upstream.last().header("authorization"), None);
}

#[test]
fn jwt_auth_refuses_what_is_not_its_own() {
    let fixture = with(json!({"jwt-auth": {}}));
    let challenge = "Bearer realm=\"jwt\"";
    let encode = |text: &str| {
        let text = crate::support::client::base64(text.as_bytes());
        text.trim_end_matches('=').replace('+', "-").replace('/', "_")
    };
    refused(fixture.get("/", &[]), challenge, "Missing JWT token in request");
    fixture.get("/", &[("Authorization", "no.token.atall")]).expect(401);
    let none = format!("{}.{}.", encode(r#"{"alg":"none","typ":"JWT"}"#), encode(r#"{"key":"j-jack"}"#));
    fixture.get("/", &[("Authorization", &none)]).expect(401);
    let unsigned =
        format!("{}.{}.AAAA", encode(r#"{"alg":"HS256","typ":"JWT"}"#), encode(r#"{"key":"j-jack"}"#));
    refused(fixture.get("/", &[("Authorization", &unsigned)]), challenge, "failed to verify jwt");
    assert_eq!(fixture.upstream.count(), 0);
}

#[test]
fn consumer_restriction() {
    let key = |plugins: Value| {
        let mut plugins = plugins;
        plugins["key-auth"] = json!({});
        with(plugins)
    };
    let as_jack = [("apikey", "k-jack")];
    let as_jill = [("apikey", "k-jill")];
    let fixture = key(json!({"consumer-restriction": {"whitelist": ["jack"]}}));
    fixture.get("/", &as_jack).expect(200);
    fixture.get("/", &as_jill).expect(403).expect_body(&message("The consumer_name is forbidden."));
    let fixture = key(
        json!({"consumer-restriction": {"blacklist": ["jack"], "rejected_code": 401, "rejected_msg": "go away"}}),
    );
    fixture.get("/", &as_jack).expect(401).expect_body(&message("go away"));
    fixture.get("/", &as_jill).expect(200);
    let methods = json!([{"user": "jack", "methods": ["POST"]}]);
    let fixture = key(json!({"consumer-restriction": {"allowed_by_methods": methods}}));
    fixture.get("/", &as_jack).expect(403);
    fixture.gateway.request("POST", "/").header("apikey", "k-jack").send().expect(200);
    let fixture = key(json!({"consumer-restriction": {"type": "route_id", "blacklist": ["1"]}}));
    fixture.get("/", &as_jack).expect(403).expect_body(&message("The route_id is forbidden."));
}
