//! proxy-rewrite, redirect, response-rewrite, mocking, echo, fault-injection, request-id.

use std::time::{Duration, Instant};

use serde_json::json;

use super::Fixture;
use crate::support::{gateway::Gateway, upstream::Upstream};

#[test]
fn proxy_rewrite() {
    let fixture = Fixture::new(json!({"proxy-rewrite": {
        "regex_uri": ["^/shop/(.*)/(\\d+)$", "/items/$2/$1"],
        "host": "inside.example",
        "headers": {"set": {"X-Path": "$uri", "X-Old": "new"}, "add": {"X-Add": "1"}, "remove": ["X-Gone"]},
    }}));
    fixture.get("/shop/shoes/42?a=1&b=%20", &[("X-Old", "old"), ("X-Gone", "x")]).expect(200);
    let seen = fixture.upstream.last();
    assert_eq!(seen.target, "/items/42/shoes?a=1&b=%20");
    assert_eq!(seen.header("host"), Some("inside.example"));
    assert_eq!(seen.all("x-old"), ["new"]);
    assert_eq!(seen.header("x-add"), Some("1"));
    assert_eq!(seen.header("x-gone"), None);
    fixture.get("/other", &[]).expect(200);
    assert_eq!(fixture.upstream.last().target, "/other");

    let fixture = Fixture::new(json!({"proxy-rewrite": {"uri": "/fixed?x=$arg_a", "method": "PUT"}}));
    fixture.get("/any?a=7", &[]).expect(200);
    let seen = fixture.upstream.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("PUT", "/fixed?x=7&a=7"));
}

#[test]
fn redirect() {
    let fixture = Fixture::new(json!({"redirect": {"uri": "/new$uri?x=$arg_a", "ret_code": 301}}));
    fixture.get("/old?a=1", &[]).expect(301).expect_header("Location", "/new/old?x=1");
    assert_eq!(fixture.upstream.count(), 0);

    let fixture = Fixture::new(json!({"redirect": {"regex_uri": ["^/a/(.*)$", "/b/$1"]}}));
    fixture.get("/a/x", &[]).expect(302).expect_header("Location", "/b/x");
    fixture.get("/c", &[]).expect(200);

    let fixture = Fixture::new(json!({"redirect": {"http_to_https": true}}));
    let answer = fixture.get("/x?y=1", &[("Host", "a.com")]).expect(301);
    let location = answer.header("Location").unwrap();
    assert!(location.starts_with("https://a.com") && location.ends_with("/x?y=1"), "{location}");
    fixture.gateway.request("POST", "/x").send().expect(308);
}

#[test]
fn response_rewrite() {
    let fixture = Fixture::new(json!({"response-rewrite": {
        "status_code": 202,
        "body": "changed",
        "headers": {"set": {"X-Status": "$status", "X-Up": "over"}, "add": ["X-Add: a", "X-Add: b"], "remove": ["Content-Type"]},
    }}));
    let answer = fixture.get("/", &[]).expect(202).expect_body("changed");
    assert_eq!(answer.header("X-Up"), Some("over"));
    assert_eq!(answer.all("X-Add"), ["a", "b"]);

    let fixture = Fixture::new(json!({"response-rewrite": {
        "filters": [{"regex": "\"method\":\"(\\w+)\"", "replace": "\"verb\":\"$1\"", "scope": "once"}],
    }}));
    fixture.get("/", &[]).expect(200).expect_in_body("\"verb\":\"GET\"");

    let fixture =
        Fixture::new(json!({"response-rewrite": {"vars": [["status", "==", 404]], "body": "gone"}}));
    fixture.get("/?status=404", &[]).expect(404).expect_body("gone");
    let kept = fixture.get("/", &[]).expect(200).expect_in_body("\"uri\":\"/\"");
    assert!(kept.header("Content-Length").is_some(), "the body is as it was");

    let fixture = Fixture::new(json!({"response-rewrite": {"headers": {"X-A": "b"}}}));
    assert!(fixture.get("/", &[]).expect_header("X-A", "b").header("Content-Length").is_some());

    let fixture = Fixture::new(json!({"response-rewrite": {"body": "aGVsbG8=", "body_base64": true}}));
    fixture.get("/", &[]).expect(200).expect_body("hello");

    let upstream =
        Upstream::with(|_, wire| wire.raw(b"HTTP/1.1 200 Fine With Me\r\nContent-Length: 0\r\n\r\n"));
    let route = json!({
        "id": "1", "uri": "/*", "upstream": upstream.resource(), "plugins": {"response-rewrite": {"status_code": 302}},
    });
    let gateway = Gateway::file(json!({"routes": [route]}));
    assert_eq!(gateway.get("/").expect(302).reason, "Found", "the node's words are for the node's status");
}

#[test]
fn mocking() {
    let fixture = Fixture::new(json!({"mocking": {
        "response_example": "{\"a\":$arg_n}", "content_type": "application/json", "response_status": 201,
    }}));
    let answer = fixture.get("/?n=7", &[]).expect(201).expect_in_body("{\"a\":7}");
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    assert_eq!(answer.header("x-mock-by"), Some("APISIX/3.18.0"));
    assert_eq!(fixture.upstream.count(), 0);

    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string", "example": "fixed"}}});
    let fixture = Fixture::new(json!({"mocking": {"response_schema": schema, "with_mock_header": false}}));
    let answer = fixture.get("/", &[]).expect(200);
    assert_eq!(answer.header("x-mock-by"), None);
    assert!(answer.json()["n"].is_i64() && answer.json()["s"] == json!("fixed"), "{}", answer.text());
}

#[test]
fn echo() {
    let fixture = Fixture::new(
        json!({"echo": {"before_body": "<", "body": "middle", "after_body": ">", "headers": {"X-Echo": "1"}}}),
    );
    fixture.get("/", &[]).expect(200).expect_body("<middle>").expect_header("X-Echo", "1");
}

#[test]
fn fault_injection() {
    let abort = json!({"abort": {"http_status": 418, "body": "teapot", "headers": {"X-A": "$arg_a"}, "vars": [[["arg_a", "==", "1"]]]}});
    let fixture = Fixture::new(json!({"fault-injection": abort}));
    let answer = fixture.get("/?a=1", &[]).expect(418).expect_in_body("teapot");
    assert_eq!(answer.header("X-A"), Some("1"));
    fixture.get("/?a=2", &[]).expect(200);
    assert_eq!(fixture.upstream.count(), 1);

    let fixture = Fixture::new(json!({"fault-injection": {"delay": {"duration": 0.4}}}));
    let begun = Instant::now();
    fixture.get("/", &[]).expect(200);
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
    let fixture = Fixture::new(json!({"fault-injection": {"abort": {"http_status": 500, "percentage": 0}}}));
    fixture.get("/", &[]).expect(200);
}

#[test]
fn request_id() {
    let fixture = Fixture::new(json!({"request-id": {}}));
    let one = fixture.get("/", &[]).expect(200).header("X-Request-Id").unwrap().to_owned();
    assert_eq!(fixture.upstream.last().header("x-request-id"), Some(one.as_str()));
    assert_eq!(one.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12], "{one}");
    assert_ne!(fixture.get("/", &[]).expect(200).header("X-Request-Id"), Some(one.as_str()));
    fixture.get("/", &[("X-Request-Id", "mine")]).expect(200).expect_header("X-Request-Id", "mine");
    let fixture = Fixture::new(json!({"request-id": {"header_name": "X-Id", "include_in_response": false}}));
    assert_eq!(fixture.get("/", &[]).expect(200).header("X-Id"), None);
    assert!(fixture.upstream.last().header("x-id").is_some());
}
