//! What an operator sees: access log, error log, Control API, status, metrics.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    at,
    client::{Connection, Request},
    eventually,
    gateway::{Gateway, Setup},
    upstream::Upstream,
};

fn one_route(upstream: &Upstream) -> Value {
    json!({"routes": [{"id": "1", "uri": "/*", "upstream": upstream.resource()}]})
}

/// The access log after one request.
fn logged(setup: Setup, send: impl FnOnce(&Gateway)) -> String {
    let gateway = setup.set("nginx_config.http.access_log_buffer", 1).start();
    send(&gateway);
    let file = gateway.path("logs/access.log");
    let mut line = String::new();
    eventually("the request is logged", || {
        line = fs::read_to_string(&file).unwrap_or_default();
        line.ends_with('\n')
    });
    line
}

#[test]
fn access_log_in_the_usual_format() {
    let upstream = Upstream::echo();
    let line = logged(Setup::file(one_route(&upstream)), |gateway| {
        gateway
            .request("GET", "/x?a=1")
            .header("User-Agent", "test/1")
            .header("Host", "a.com")
            .send()
            .expect(200);
    });
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    assert!(line.contains(" \"GET /x?a=1 HTTP/1.1\" 200 "), "{line}");
    assert!(line.contains("\"test/1\"") && line.contains(&upstream.node()), "{line}");
}

#[test]
fn access_log_in_a_format_of_one_s_own() {
    let upstream = Upstream::echo();
    let setup = Setup::file(one_route(&upstream));
    let setup =
        setup.set("nginx_config.http.access_log_format", "$request_method|${status}|$http_x_y|$host|end");
    let line = logged(setup, |gateway| {
        gateway.request("GET", "/").header("X-Y", "quo\"te").header("Host", "a.com").send().expect(200);
    });
    assert_eq!(line, "GET|200|quo\\x22te|a.com|end\n");
}

#[test]
fn access_log_in_json() {
    let upstream = Upstream::echo();
    let setup = Setup::file(one_route(&upstream)).set("nginx_config.http.access_log_format_escape", "json");
    let setup =
        setup.set("nginx_config.http.access_log_format", "{\"uri\":\"$uri\",\"ua\":\"$http_user_agent\"}");
    let line = logged(setup, |gateway| {
        gateway.request("GET", "/x").header("User-Agent", "a \"b\" \\ c").send().expect(200);
    });
    let line: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
    assert_eq!(line, json!({"uri": "/x", "ua": "a \"b\" \\ c"}));
}

#[test]
fn one_line_for_each_request_also_for_refused_ones() {
    let upstream = Upstream::echo();
    let mut document = one_route(&upstream);
    document["routes"][0]["uri"] = json!("/x");
    let setup = Setup::file(document).set("nginx_config.http.access_log_format", "$status $uri");
    let gateway = setup.set("nginx_config.http.access_log_buffer", 1).start();
    for (path, status) in [("/x", 200), ("/none", 404), ("/x?status=500", 500)] {
        gateway.get(path).expect(status);
    }
    let expected = "200 /x\n404 /none\n500 /x\n";
    let lines = || fs::read_to_string(gateway.path("logs/access.log")).unwrap_or_default();
    eventually("three lines", || lines().lines().count() == 3);
    let mut sorted: Vec<String> = lines().lines().map(str::to_owned).collect();
    sorted.sort();
    assert_eq!(sorted.join("\n") + "\n", expected);
}

#[test]
fn no_secret_in_any_log() {
    let upstream = Upstream::echo();
    let setup = Setup::new().set("nginx_config.error_log_level", "info");
    let gateway = setup.set("nginx_config.http.access_log_buffer", 1).start();
    gateway.put("/consumers", json!({"username": "jack", "plugins": {
        "key-auth": {"key": "the-secret-key"}, "basic-auth": {"username": "jack", "password": "the-secret-password"},
    }}));
    let route = |uri: &str, plugin: &str| json!({"uri": uri, "plugins": {plugin: {}}, "upstream": upstream.resource()});
    gateway.put("/routes/1", route("/key", "key-auth"));
    gateway.put("/routes/2", route("/basic", "basic-auth"));
    gateway.request("GET", "/key").header("apikey", "the-secret-key").send().expect(200);
    gateway.request("GET", "/key").header("apikey", "the-secret-key-mistyped").send().expect(401);
    gateway.request("GET", "/basic").basic("jack", "the-secret-password").send().expect(200);
    gateway.request("GET", "/basic").basic("jack", "the-secret-passwort").send().expect(401);
    let access = || fs::read_to_string(gateway.path("logs/access.log")).unwrap_or_default();
    eventually("four lines", || access().lines().count() == 4);
    assert!(!access().contains("the-secret"), "{}", access());
    let encoded = crate::support::client::base64(b"jack:the-secret-password");
    for secret in ["the-secret", encoded.as_str(), crate::support::gateway::KEY] {
        assert!(!gateway.stderr().contains(secret), "{secret} in the error log");
    }
}

#[test]
fn control_api() {
    let upstream = Upstream::echo();
    let gateway = Gateway::file(json!({
        "routes": [{"id": "r", "uri": "/*", "service_id": "s"}],
        "services": [{"id": "s", "upstream_id": "u"}],
        "upstreams": [{"id": "u", "type": "roundrobin", "nodes": {upstream.node(): 1}}],
    }));
    let get = |path: &str| gateway.control(path);
    assert!(get("/v1/schema").expect(200).json()["plugins"]["key-auth"].is_object());
    assert_eq!(at(&get("/v1/routes").expect(200).json(), "/0/value/uri"), "/*");
    assert_eq!(at(&get("/v1/route/r").expect(200).json(), "/value/service_id"), "s");
    assert_eq!(at(&get("/v1/services").expect(200).json(), "/0/value/upstream_id"), "u");
    assert_eq!(at(&get("/v1/upstream/u").expect(200).json(), "/value/type"), "roundrobin");
    assert_eq!(get("/v1/route/9").expect(404).json(), json!({"error_msg": "route[9] not found"}));
    assert_eq!(get("/v1/healthcheck").expect(200).text().trim(), "{}");
    get("/v1/nothing").expect(404);
    Request::new(gateway.ports.control, "POST", "/v1/gc").send().expect(200);
}

#[test]
fn health_of_nodes() {
    let (well, gone) = (Upstream::named("well"), crate::support::gateway::free_port());
    let gateway = Gateway::file(json!({"routes": [{"id": "1", "uri": "/*", "upstream": {
        "type": "roundrobin",
        "nodes": {well.node(): 1, format!("127.0.0.1:{gone}"): 1},
        "checks": {"active": {"type": "tcp", "healthy": {"interval": 1, "successes": 1}, "unhealthy": {"interval": 1, "tcp_failures": 1}}},
    }}]}));
    let early = gateway.control("/v1/healthcheck/routes/1").expect(200).json();
    assert_eq!(early["nodes"].as_array().map(Vec::len), Some(2), "shown from the start: {early}");
    // No request comes: the checks find out by themselves.
    eventually("the missing node is noticed", || {
        let report = gateway.control("/v1/healthcheck").text();
        report.contains("\"unhealthy\"") && report.contains(&gone.to_string())
    });
}

#[test]
fn status() {
    let gateway = Gateway::file(json!({}));
    let get = |path: &str| Request::new(gateway.ports.status, "GET", path).send();
    assert_eq!(get("/status").expect(200).json(), json!({"status": "ok"}));
    assert_eq!(get("/status/ready").expect(200).json(), json!({"status": "ok"}));
    get("/other").expect(404);
}

#[test]
fn metrics() {
    let upstream = Upstream::echo();
    let mut document = one_route(&upstream);
    document["global_rules"] = json!([{"id": "1", "plugins": {"prometheus": {}}}]);
    let gateway = Gateway::file(document);
    gateway.request("POST", "/x").body("12345").send().expect(200);
    gateway.get("/x?status=500").expect(500);
    let scrape =
        || Request::new(gateway.ports.metrics, "GET", "/apisix/prometheus/metrics").send().expect(200).text();
    let mut text = String::new();
    // A request is counted after its client has the answer.
    eventually("both requests are counted", || {
        text = scrape();
        text.contains("code=\"200\"") && text.contains("code=\"500\"")
    });
    for part in [
        "apisix_http_status{code=\"200\",route=\"1\",",
        "apisix_http_status{code=\"500\",route=\"1\",",
        "# TYPE apisix_http_latency histogram",
        "apisix_bandwidth{type=\"ingress\",route=\"1\",",
        "apisix_http_requests_total",
        "apisix_node_info{",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn connections_are_counted_by_what_they_do() {
    let upstream = Upstream::echo();
    let gateway = Gateway::file(one_route(&upstream));
    let count = |state: &str| -> u64 {
        let text = Request::new(gateway.ports.metrics, "GET", "/apisix/prometheus/metrics").send().text();
        let name = format!("apisix_nginx_http_current_connections{{state=\"{state}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    };
    let before = count("accepted");
    let mut waiting = Connection::open(gateway.ports.http);
    waiting.exchange(&gateway.request("GET", "/x")).expect(200);
    let mut slow = Connection::open(gateway.ports.http);
    slow.raw(b"GET /x?delay=60000 HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut late = Connection::open(gateway.ports.http);
    late.raw(b"GET /x HT");
    let states = ["active", "waiting", "writing", "reading"];
    eventually("each is where it belongs", || states.map(count) == [3, 1, 1, 1]);
    let accepted = count("accepted");
    assert!(accepted >= before + 3 && count("handled") >= accepted, "{accepted} of {before}");
    late.raw(b"TP/1.1\r\nHost: a\r\n\r\n").response().expect(200);
    drop(slow);
    eventually("two wait", || states.map(count) == [2, 2, 0, 0]);
    drop((late, waiting));
    eventually("none is left", || states.map(count) == [0, 0, 0, 0]);
}

#[test]
fn failures_are_explained_in_the_error_log() {
    let port = crate::support::gateway::free_port();
    let upstream = json!({"type": "roundrobin", "nodes": {format!("127.0.0.1:{port}"): 1}});
    let gateway = Gateway::file(json!({"routes": [{"id": "lonely", "uri": "/*", "upstream": upstream}]}));
    gateway.get("/").expect(502);
    eventually("the log names route, node and cause", || {
        let said = gateway.stderr();
        ["lonely", &port.to_string(), "efused"].iter().all(|part| said.contains(part))
    });
}
