//! What an operator learns of a refused request, and what a client may not say of itself.

use serde_json::{Value, json};

use crate::support::{
    client::Request,
    gateway::{Gateway, Setup},
    upstream::Upstream,
};

const SECRET: &str = "k-of-jack-0123456789";
const TOLD: &str = "X-Portcullis-Refused";

fn setup(upstream: &Upstream, plugins: Value) -> Setup {
    let route = json!({"id": "r1", "uri": "/*", "plugins": plugins, "upstream": upstream.resource()});
    let open = json!({"id": "r2", "uri": "/open", "upstream": upstream.resource()});
    let consumers = json!([{"username": "jack", "plugins": {"key-auth": {"key": SECRET}}}]);
    Setup::file(json!({"routes": [route, open], "consumers": consumers}))
}

fn metrics(gateway: &Gateway) -> String {
    Request::new(gateway.ports.metrics, "GET", "/apisix/prometheus/metrics").send().expect(200).text()
}

#[test]
fn a_refusal_is_logged_and_counted_once() {
    let upstream = Upstream::echo();
    let plugins = json!({"key-auth": {}, "consumer-restriction": {"blacklist": ["jack"]}, "request-id": {}});
    let gateway = setup(&upstream, plugins).start();
    let wrong = gateway.request("GET", "/").header("X-Request-Id", "id-1").header("apikey", "s3cr3t-guess");
    wrong.send().expect(401).expect_header(TOLD, "");
    gateway.request("GET", "/").header("X-Request-Id", "id-2").send().expect(401);
    let known = gateway.request("GET", "/").header("X-Request-Id", "id-3").header("apikey", SECRET);
    known.send().expect(403).expect_header(TOLD, "");

    let log = gateway.stderr();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("request refused")).collect();
    assert_eq!(lines.len(), 3, "{log}");
    let has = |line: &str, parts: &[&str]| {
        parts.iter().for_each(|part| assert!(line.contains(part), "{part} is not in {line}"));
    };
    has(lines[0], &["plugin=\"key-auth\"", "route=\"r1\"", "request_id=\"id-1\"", "class=\"unknown\""]);
    has(lines[0], &["reason=\"failed to find consumer: invalid api key\""]);
    has(lines[1], &["request_id=\"id-2\"", "class=\"missing\""]);
    has(lines[2], &["plugin=\"consumer-restriction\"", "consumer=\"jack\"", "class=\"forbidden\""]);
    assert!(!log.contains("s3cr3t-guess") && !log.contains(SECRET), "a secret is in the log");

    let counted = metrics(&gateway);
    for line in [
        "portcullis_refusals_total{plugin=\"consumer-restriction\",reason=\"forbidden\"} 1\n",
        "portcullis_refusals_total{plugin=\"key-auth\",reason=\"missing\"} 1\n",
        "portcullis_refusals_total{plugin=\"key-auth\",reason=\"unknown\"} 1\n",
    ] {
        assert!(counted.contains(line), "{line} is not in {counted}");
    }
    assert!(!counted.contains(SECRET), "a secret is in the metrics");
}

#[test]
fn the_reason_is_told_where_the_operator_wants_it() {
    let upstream = Upstream::echo();
    let plugins = json!({"key-auth": {"_meta": {"error_response": {"message": "no"}}}});
    let gateway = setup(&upstream, plugins).set("portcullis.debug_auth", true).start();
    let refused = gateway.request("GET", "/").header("apikey", "s3cr3t-guess").send().expect(401);
    let refused = refused.expect_header(TOLD, "key-auth: failed to find consumer: invalid api key");
    refused.expect_body("{\"message\":\"no\"}\n");
    let welcome = gateway.request("GET", "/").header("apikey", SECRET).send();
    welcome.expect(200).expect_header(TOLD, "");
}

const NAMES: [&str; 5] = [
    "X-Consumer-Username",
    "X-Credential-Identifier",
    "X-Consumer-Custom-ID",
    "X_Consumer_Username",
    "x-consumer_custom-id",
];

/// What the upstream gets to see of identity headers that a client made up.
fn forged(gateway: &Gateway, upstream: &Upstream, target: &str) -> Vec<(String, String)> {
    let mut request = gateway.request("GET", target).header("apikey", SECRET);
    for name in NAMES {
        request = request.header(name, "root").header(name, "admin");
    }
    request.send().expect(200);
    let mut seen = upstream.last().headers;
    seen.retain(|(name, _)| NAMES.iter().any(|known| known.eq_ignore_ascii_case(name)));
    seen.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect()
}

#[test]
fn nobody_says_of_himself_who_he_is() {
    let upstream = Upstream::echo();
    for compat in ["now", "3.2"] {
        let gateway = setup(&upstream, json!({"key-auth": {}})).set("portcullis.compat", compat).start();
        assert_eq!(forged(&gateway, &upstream, "/open"), [], "{compat}: a route without authentication");
        let known = forged(&gateway, &upstream, "/");
        match compat {
            "now" => assert_eq!(known, [("x-consumer-username".to_owned(), "jack".to_owned())]),
            _ => assert_eq!(known, [], "3.2 tells nobody who it was"),
        }
    }
}

#[test]
fn a_trusted_peer_may_say_who_it_is() {
    let upstream = Upstream::echo();
    let gateway = setup(&upstream, json!({"key-auth": {}}));
    let gateway = gateway.set("apisix.trusted_addresses", json!(["127.0.0.1"])).start();
    assert_eq!(forged(&gateway, &upstream, "/open").len(), 2 * NAMES.len());
    // Who authenticated here is known better.
    let known = forged(&gateway, &upstream, "/");
    let of = |name: &str| -> Vec<&str> {
        known.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    };
    assert_eq!(of("x-consumer-username"), ["jack"]);
    assert_eq!(of("x-credential-identifier"), [""; 0]);
    assert_eq!(of("x-consumer-custom-id"), [""; 0]);
}
