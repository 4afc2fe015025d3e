//! What a runner is told, what it may ask, and what its decisions change.

use serde_json::{Value, json};

use super::{Fixture, one_worker};
use crate::support::{at, runner::conf, upstream::Seen};

/// The configuration of ext-plugin-pre-req with one plugin of the stub.
fn pre(name: &str, value: impl Into<Value>) -> Value {
    json!({"ext-plugin-pre-req": conf(name, value)})
}

#[test]
fn what_the_runner_is_told() {
    let fixture = Fixture::with(pre("echo", ""), one_worker);
    let request = fixture.gateway.request("PATCH", "/a%20b/../c?x=1&x=2&y=&z&%41=%42");
    let told = request.header("X-Two", "1").header("X-Two", "2").body("body").send().expect(200).json();
    assert_eq!(at(&told, "/method"), "PATCH");
    assert_eq!(at(&told, "/path"), "/c");
    assert_eq!(at(&told, "/args"), &json!([["x", "1"], ["x", "2"], ["y", ""], ["z", null], ["A", "B"]]));
    assert_eq!(at(&told, "/src_ip"), &json!([127, 0, 0, 1]));
    assert_ne!(at(&told, "/id"), &json!(0));
    let headers = at(&told, "/headers").as_array().expect("headers").clone();
    let host = format!("127.0.0.1:{}", fixture.gateway.ports.http);
    for pair in [json!(["x-two", "1"]), json!(["x-two", "2"]), json!(["host", host])] {
        assert!(headers.contains(&pair), "{pair} in {headers:?}");
    }
    let key = at(&told, "/key").as_str().expect("a key").to_owned();
    assert!(key.starts_with("route#1#ext-plugin-pre-req#"), "{key}");
    let again = fixture.get("/").expect(200).json();
    assert_eq!(at(&again, "/key"), key.as_str(), "the token is kept");
    assert_eq!(at(&again, "/calls_of_connection"), 2, "and the connection");
}

#[test]
fn what_earlier_plugins_changed_is_told() {
    let fixture = Fixture::new(json!({
        "proxy-rewrite": {"uri": "/new?q=1", "host": "b.test", "headers": {"set": {"X-New": "yes"}}},
        "ext-plugin-post-req": conf("echo", ""),
    }));
    let told = fixture.get("/old?a=1").expect(200).json();
    assert_eq!(at(&told, "/path"), "/new");
    assert_eq!(at(&told, "/args"), &json!([["q", "1"], ["a", "1"]]));
    let headers = at(&told, "/headers").as_array().expect("headers").clone();
    for pair in [json!(["host", "b.test"]), json!(["x-new", "yes"])] {
        assert!(headers.contains(&pair), "{pair} in {headers:?}");
    }
}

#[test]
fn a_stop_answers() {
    let headers = json!([
        ["X-A", "1"],
        ["x-a", "2"],
        ["Content-Type", "text/x"],
        ["Server", "mine"],
        ["X-B", "1"],
        ["x-b", null]
    ]);
    let fixture =
        Fixture::new(pre("stop", json!({"status": 201, "headers": headers, "body": "from the runner"})));
    let answer = fixture.get("/").expect(201).expect_body("from the runner");
    assert_eq!(answer.all("x-a"), ["1", "2"]);
    assert_eq!(answer.all("content-type"), ["text/x"]);
    assert_eq!(answer.all("x-b"), [""; 0]);
    assert_eq!(answer.all("server").len(), 1);
    assert_eq!(fixture.upstream.count(), 0, "nothing goes upstream");
}

#[test]
fn stops_without_a_body() {
    let fixture = Fixture::new(pre("stop", json!({"status": 403})));
    fixture.get("/").expect(403).expect_in_body("<title>403 Forbidden</title>");
    let fixture = Fixture::new(pre("stop", json!({})));
    fixture.get("/").expect(200).expect_body("");
    let plugins = json!({"ext-plugin-pre-req": {
        "conf": [{"name": "stop", "value": "{\"status\": 403, \"body\": \"theirs\"}"}],
        "_meta": {"error_response": "ours"},
    }});
    Fixture::new(plugins).get("/").expect(403).expect_body("ours");
}

/// What the upstream saw of a request that a runner rewrote.
#[track_caller]
fn rewritten(value: Value, target: &str) -> Seen {
    let fixture = Fixture::new(pre("rewrite", value));
    fixture
        .gateway
        .request("POST", target)
        .header("X-Gone", "1")
        .header("X-Kept", "1")
        .body("old")
        .send()
        .expect(200);
    fixture.upstream.last()
}

#[test]
fn rewrites() {
    let seen = rewritten(json!({}), "/a%2Fb?x=1");
    assert_eq!((seen.target.as_str(), &*seen.body), ("/a%2Fb?x=1", &b"old"[..]));
    let seen = rewritten(json!({"path": "/new path?%"}), "/a?x=1");
    assert_eq!(seen.target, "/new%20path%3F%25?x=1");
    let seen = rewritten(json!({"args": [["x", "2"], ["n", "a b"], ["y", null]]}), "/a?x=1&x=3&y&k=1");
    assert_eq!(seen.target, "/a?x=2&k=1&n=a%20b");
    let headers = json!([
        ["X-New", "1"],
        ["x-new", "2"],
        ["X-Gone", null],
        ["Host", "c.test"],
        ["Content-Length", "1"]
    ]);
    let seen = rewritten(json!({"headers": headers}), "/");
    assert_eq!(seen.all("x-new"), ["2"]);
    assert_eq!(seen.header("x-gone"), None);
    assert_eq!(seen.header("x-kept"), Some("1"));
    assert_eq!(seen.header("host"), Some("c.test"));
    assert_eq!(seen.body, b"old");
    let seen = rewritten(json!({"body": "a longer body"}), "/");
    assert_eq!(seen.body, b"a longer body");
    assert_eq!(seen.all("content-length"), ["13"]);
}

#[test]
fn a_body_is_given_to_a_request_without_one() {
    let fixture = Fixture::new(pre("rewrite", json!({"body": "new"})));
    fixture.get("/").expect(200);
    assert_eq!(fixture.upstream.last().body, b"new");
}

#[test]
fn headers_of_the_response_to_come() {
    let headers = json!([["X-R", "1"], ["x-r", "2"], ["Content-Type", "text/x"], ["Location", "/x"]]);
    let fixture = Fixture::new(pre("rewrite", json!({"resp_headers": headers})));
    let answer = fixture.get("/").expect(200);
    assert_eq!(answer.all("x-r"), ["1", "2"]);
    assert_eq!(answer.header("location"), None);
    assert!(!answer.all("content-type").contains(&"text/x"));
}

#[test]
fn variables() {
    let names = json!([
        "var:remote_addr",
        "var:arg_a",
        "var:http_x_h",
        "var:nobody_knows",
        "var:cookie_c",
        "var:route_id",
        "var:arg_empty"
    ]);
    let fixture = Fixture::new(pre("ask", names));
    let request = fixture.gateway.request("GET", "/?a=1&empty=").header("X-H", "h").header("Cookie", "c=d");
    let answers = request.send().expect(200).json();
    assert_eq!(answers, json!(["127.0.0.1", "1", "h", null, "d", "1", ""]));
}

#[test]
fn request_bodies() {
    let fixture = Fixture::new(pre("ask", json!(["reqbody", "var:request_method", "reqbody", "respbody"])));
    let asked = |body: Vec<u8>| fixture.gateway.request("POST", "/").body(body).send().expect(200).json();
    assert_eq!(asked(Vec::new()), json!([null, "POST", null, null]));
    assert_eq!(asked(b"small".to_vec()), json!(["small", "POST", "small", null]));
    for length in [9 << 10, 1 << 20, 15 << 20] {
        let told = json!({"length": length});
        assert_eq!(asked(vec![b'x'; length]), json!([told, "POST", told, null]));
    }
    let chunked = fixture.gateway.request("POST", "/").chunked(vec![b'y'; 20_000]).send().expect(200).json();
    assert_eq!(chunked[0], json!({"length": 20_000}));
}

#[test]
fn a_body_that_was_asked_for_still_goes_upstream() {
    let plugins = json!({
        "ext-plugin-pre-req": {"conf": [
            {"name": "fault", "value": "sleep:1"}, {"name": "nothing", "value": ""},
        ]},
        "ext-plugin-post-req": conf("rewrite", json!({"headers": [["x-b", "1"]]})),
    });
    let fixture = Fixture::new(plugins);
    fixture.gateway.request("POST", "/").body(vec![b'x'; 300_000]).send().expect(200);
    let seen = fixture.upstream.last();
    assert_eq!((seen.body.len(), seen.header("x-b")), (300_000, Some("1")));
}

#[test]
fn a_body_beyond_a_frame_is_413() {
    let fixture = Fixture::new(pre("ask", json!(["reqbody"])));
    fixture.gateway.request("POST", "/").body(vec![b'x'; (16 << 20) + 1]).send().expect(413);
    let mut plugins = pre("ask", json!(["reqbody"]));
    plugins["ext-plugin-pre-req"]["allow_degradation"] = true.into();
    let fixture = Fixture::new(plugins);
    fixture.gateway.request("POST", "/").body(vec![b'x'; (16 << 20) + 1]).send().expect(200);
}

#[test]
fn post_req_knows_the_consumer() {
    use crate::support::{gateway::Setup, runner::Runner, upstream::Upstream};
    let (upstream, runner) = (Upstream::echo(), Runner::start());
    let plugins = json!({
        "key-auth": {},
        "ext-plugin-post-req": conf("ask", json!(["var:consumer_name"])),
    });
    let gateway = Setup::file(json!({
        "routes": [{"id": "1", "uri": "/*", "plugins": plugins, "upstream": upstream.resource()}],
        "consumers": [{"username": "jack", "plugins": {"key-auth": {"key": "sesame"}}}],
    }))
    .set("ext-plugin.path_for_test", runner.socket().display().to_string())
    .start();
    gateway.get("/").expect(401);
    let answer = gateway.request("GET", "/").header("apikey", "sesame").send().expect(200);
    assert_eq!(answer.json(), json!(["jack"]));
}

#[test]
fn on_whatever_carries_plugins() {
    use crate::support::{gateway::Setup, runner::Runner, upstream::Upstream};
    let (upstream, runner) = (Upstream::echo(), Runner::start());
    let says = |who: &str| conf("rewrite", json!({"headers": [[format!("x-{who}"), "1"]]}));
    let route = |id: &str, more: Value| {
        let mut route = json!({"id": id, "uri": format!("/{id}")});
        route.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        route
    };
    let gateway = Setup::file(json!({
        "routes": [
            route("service", json!({"service_id": "1"})),
            route("both", json!({"service_id": "1", "plugins": {"ext-plugin-pre-req": says("route")}})),
            route("consumer", json!({"plugins": {"key-auth": {}}, "upstream": upstream.resource()})),
        ],
        "services": [{"id": "1", "plugins": {"ext-plugin-pre-req": says("service")}, "upstream": upstream.resource()}],
        "consumers": [{"username": "jack", "plugins": {
            "key-auth": {"key": "sesame"}, "ext-plugin-pre-req": says("early"), "ext-plugin-post-req": says("late"),
        }}],
        "global_rules": [{"id": "1", "plugins": {"ext-plugin-post-req": says("all")}}],
    }))
    .set("ext-plugin.path_for_test", runner.socket().display().to_string())
    .start();
    let seen = |target: &str| {
        gateway.request("GET", target).header("apikey", "sesame").send().expect(200);
        let seen = upstream.last();
        let all = ["x-service", "x-route", "x-early", "x-late", "x-all"].into_iter();
        all.filter(|name| seen.header(name).is_some()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(seen("/service"), "x-service x-all");
    assert_eq!(seen("/both"), "x-route x-all", "the route's takes the place of the service's");
    assert_eq!(seen("/consumer"), "x-early x-late x-all");
}
