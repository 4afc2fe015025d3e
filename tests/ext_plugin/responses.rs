//! ext-plugin-post-resp: the upstream's answer passes through a runner's plugins on its normal way.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Value, json};

use super::{Fixture, one_worker};
use crate::support::{
    Gate, PATIENCE, at,
    client::{Connection, Response},
    eventually,
    gateway::{Gateway, Setup},
    runner::{Runner, conf},
    upstream::{Seen, Upstream, Wire},
};

/// The configuration of ext-plugin-post-resp with one plugin of the stub.
fn post(name: &str, value: impl Into<Value>) -> Value {
    json!({"ext-plugin-post-resp": conf(name, value)})
}

/// The same with an option set.
fn post_with(name: &str, value: impl Into<Value>, option: &str) -> Value {
    let mut plugins = post(name, value);
    plugins["ext-plugin-post-resp"][option] = true.into();
    plugins
}

/// A gateway with an upstream of one's own.
fn behind(
    plugins: Value,
    answer: impl Fn(&Seen, &mut Wire<'_>) + Send + Sync + 'static,
) -> (Gateway, Runner, Upstream) {
    let (runner, upstream) = (Runner::start(), Upstream::with(answer));
    let route = json!({"id": "1", "uri": "/*", "plugins": plugins, "upstream": upstream.resource()});
    let setup = Setup::file(json!({"routes": [route]}))
        .set("ext-plugin.path_for_test", runner.socket().display().to_string());
    (one_worker(setup).start(), runner, upstream)
}

/// Answers with many headers.
fn plain(seen: &Seen, wire: &mut Wire<'_>) {
    let headers =
        [("X-Up", "1"), ("X-Up", "2"), ("Content-Type", "text/up"), ("ETag", "\"e\""), ("Location", "/l")];
    let body = if seen.method == "HEAD" { "" } else { "from the upstream" };
    wire.answer(200, &headers, body.as_bytes());
}

#[test]
fn what_the_runner_is_told() {
    let fixture = Fixture::new(post("echo", ""));
    let told = fixture.get("/?status=418").expect(418).json();
    assert_eq!(at(&told, "/status"), 418);
    assert_ne!(at(&told, "/id"), &json!(0));
    let headers = at(&told, "/headers").as_array().expect("headers").clone();
    assert!(headers.contains(&json!(["X-Up", "1"])), "names as the upstream wrote them: {headers:?}");
    let key = at(&told, "/key").as_str().expect("a key").to_owned();
    assert!(key.starts_with("route#1#ext-plugin-post-resp#"), "{key}");
    assert_eq!(fixture.upstream.count(), 1);
}

#[track_caller]
fn changed(plugins: Value) -> Response {
    let (gateway, _runner, upstream) = behind(plugins, plain);
    let answer = gateway.get("/");
    assert_eq!(upstream.count(), 1);
    answer
}

#[test]
fn an_answer_is_changed() {
    let answer = changed(post("nothing", "")).expect(200).expect_body("from the upstream");
    assert_eq!(answer.all("x-up"), ["1", "2"]);
    for (name, value) in
        [("content-type", "text/up"), ("etag", "\"e\""), ("location", "/l"), ("content-length", "17")]
    {
        assert_eq!(answer.all(name), [value]);
    }
    let headers =
        json!([["x-up", null], ["X-New", "1"], ["x-new", "2"], ["Content-Length", "3"], ["Server", "mine"]]);
    let answer = changed(post("respond", json!({"status": 404, "headers": headers})));
    let answer = answer.expect(404).expect_body("from the upstream");
    assert_eq!(answer.all("x-up"), [""; 0]);
    assert_eq!(answer.all("x-new"), ["1", "2"]);
    assert_eq!(answer.all("content-type"), ["text/up"]);
    assert_eq!(answer.all("content-length"), ["17"]);
    assert_ne!(answer.all("server"), ["mine"]);
    let answer = changed(post("respond", json!({"headers": [["ETag", "\"f\""]], "body": "new"}))).expect(200);
    assert_eq!((answer.text().as_str(), answer.header("content-length")), ("new", Some("3")));
    assert_eq!(answer.all("etag"), ["\"f\""]);
    let answer = changed(post("respond", json!({"body": "new"})));
    assert_eq!((answer.header("etag"), answer.header("content-type")), (None, Some("text/up")));
}

#[test]
fn headers_take_the_place_of_all() {
    let headers = json!({"headers": [["X-New", "1"]]});
    let answer = changed(post_with("respond", headers, "replace_headers")).expect_body("from the upstream");
    assert_eq!(answer.header("x-new"), Some("1"));
    for gone in ["x-up", "content-type", "etag", "location"] {
        assert_eq!(answer.header(gone), None, "{gone}");
    }
    let answer = changed(post_with("nothing", "", "replace_headers"));
    assert_eq!(answer.all("x-up"), ["1", "2"], "a reply without headers takes the place of none");
}

#[test]
fn a_runner_asks() {
    let questions = json!([
        "var:upstream_status",
        "var:uri",
        "var:http_x_h",
        "var:nobody_knows",
        "var:post_arg_a",
        "reqbody",
        "respbody",
        "respbody"
    ]);
    let fixture = Fixture::new(post("ask", questions));
    let request = fixture.gateway.request("POST", "/p?status=201").header("X-H", "h");
    let request = request.header("Content-Type", "application/x-www-form-urlencoded").body("a=b");
    let answers = request.send().expect(201).json();
    assert_eq!(answers[0], "201");
    assert_eq!(answers[1], "/p");
    assert_eq!(answers[2], "h");
    assert_eq!(answers[3], Value::Null);
    assert_eq!(answers[4], "b");
    assert_eq!(answers[5], "a=b");
    let body: Value = serde_json::from_str(answers[6].as_str().expect("a body")).unwrap();
    assert_eq!(at(&body, "/body"), "a=b");
    assert_eq!(answers[7], answers[6], "asked twice, it is the same");
    assert_eq!(fixture.upstream.count(), 1);
}

/// A body of the length that the query gives, in chunks if it says so.
fn sized(seen: &Seen, wire: &mut Wire<'_>) {
    let (_, query) = seen.target.split_once('?').expect("a length");
    let (length, chunked) = query.split_once("&chunked").map_or((query, false), |(length, _)| (length, true));
    let body = vec![b'x'; length.parse().expect("a number")];
    if chunked {
        wire.chunked(200, &[("X-Up", "1")], &body.chunks(100_000).collect::<Vec<_>>());
    } else {
        wire.answer(200, &[("X-Up", "1")], &body);
    }
}

#[test]
fn bodies_of_many_sizes() {
    let (ask, _runner, _upstream) = behind(post("ask", json!(["respbody"])), sized);
    let (look, _second, upstream) = behind(post("look", json!(["respbody"])), sized);
    for length in [0, 1, 9_000, 1_000_000, 15_000_000] {
        for chunked in ["", "&chunked"] {
            let target = format!("/?{length}{chunked}");
            let told = ask.get(&target).expect(200).json();
            match length {
                0 | 1 => assert_eq!(told[0], "x".repeat(length), "{target}"),
                _ => assert_eq!(at(&told, "/0/length"), length, "{target}"),
            }
            let answer = look.get(&target).expect(200).expect_header("x-up", "1");
            assert_eq!(answer.header("content-length"), Some(length.to_string().as_str()), "{target}");
            assert!(answer.body.len() == length && answer.body.iter().all(|byte| *byte == b'x'), "{target}");
        }
    }
    assert_eq!(upstream.connections(), 1, "the node's connection is kept");
}

#[test]
fn bodies_beyond_what_a_frame_carries() {
    let large = "/?17000000";
    let (gateway, _runner, upstream) = behind(post("look", json!(["respbody"])), sized);
    gateway.get(large).expect(502).expect_header("x-up", "");
    gateway.get("/?17000000&chunked").expect(502).expect_header("x-up", "");
    gateway.get("/?5").expect(200).expect_body("xxxxx");
    assert_eq!(upstream.count(), 3);
    let (gateway, _other_runner, _other_upstream) =
        behind(post_with("look", json!(["respbody"]), "allow_degradation"), sized);
    assert_eq!(gateway.get(large).expect(200).body.len(), 17_000_000, "its length is known: it passes whole");
    let (gateway, _other_runner, _other_upstream) = behind(post("nothing", ""), sized);
    assert_eq!(gateway.get("/?17000000&chunked").expect(200).body.len(), 17_000_000, "nobody asked");
}

#[test]
fn answers_without_a_body_are_asked_for_once() {
    let bare = |seen: &Seen, wire: &mut Wire<'_>| match seen.target.as_str() {
        "/204" => wire.raw(b"HTTP/1.1 204 No Content\r\nX-Up: 1\r\n\r\n"),
        "/304" => wire.raw(b"HTTP/1.1 304 Not Modified\r\nX-Up: 1\r\nETag: \"e\"\r\n\r\n"),
        _ => wire.raw(b"HTTP/1.1 200 OK\r\nX-Up: 1\r\nContent-Length: 5\r\n\r\n"),
    };
    for plugins in [
        post("nothing", ""),
        post("look", json!(["respbody"])),
        post("respond", json!({"headers": [["x-r", "1"]]})),
    ] {
        let (gateway, _runner, upstream) = behind(plugins, bare);
        let mut client = Connection::open(gateway.ports.http);
        let head = client.exchange(&gateway.request("HEAD", "/")).expect(200).expect_header("x-up", "1");
        assert_eq!(head.header("content-length"), Some("5"));
        client.exchange(&gateway.request("GET", "/204")).expect(204).expect_header("x-up", "1");
        client.exchange(&gateway.request("GET", "/304")).expect(304).expect_header("etag", "\"e\"");
        assert_eq!((upstream.count(), upstream.connections()), (3, 1));
    }
}

#[test]
fn connections_are_kept() {
    for plugins in
        [post("nothing", ""), post("look", json!(["respbody"])), post("respond", json!({"body": "n"}))]
    {
        let (gateway, _runner, upstream) = behind(plugins, plain);
        let mut client = Connection::open(gateway.ports.http);
        for _ in 0..5 {
            client.exchange(&gateway.request("GET", "/")).expect(200);
        }
        assert_eq!((upstream.count(), upstream.connections()), (5, 1));
    }
}

#[test]
fn nodes_are_tried_again_and_the_runner_is_told_once() {
    let (runner, upstream) = (Runner::start(), Upstream::with(plain));
    let dead = format!("127.0.0.1:{}", crate::support::gateway::free_port());
    let nodes = json!({"type": "roundrobin", "nodes": {dead: 1, upstream.node(): 1}});
    let plugins = post("look", json!(["respbody"]));
    let route = json!({"id": "1", "uri": "/*", "plugins": plugins, "upstream": nodes});
    let setup = Setup::file(json!({"routes": [route]}));
    let gateway = setup.set("ext-plugin.path_for_test", runner.socket().display().to_string()).start();
    for _ in 0..6 {
        gateway.get("/").expect(200).expect_body("from the upstream");
    }
    assert_eq!(upstream.count(), 6);
}

#[test]
fn failures_are_clean() {
    let faults = [
        "hang",
        "close",
        "garbage",
        "half",
        "half_header",
        "wrong_type",
        "wrong_id",
        "odd_question",
        "error:1",
    ];
    for fault in faults {
        let hasty = |setup: Setup| setup.set("ext-plugin.timeout.call", "300ms");
        let fixture = Fixture::with(post("fault", fault), hasty);
        for round in 1..3 {
            let answer = fixture.get("/").expect(503).expect_in_body("503 Service Temporarily Unavailable");
            assert_eq!(answer.header("x-up"), None, "{fault}: nothing of the upstream's answer");
            assert_eq!(answer.all("content-type"), ["text/html; charset=utf-8"]);
            assert_eq!(fixture.upstream.count(), round, "{fault}: asked once");
        }
        let fixture = Fixture::with(post_with("fault", fault, "allow_degradation"), hasty);
        let answer = fixture.get("/whole").expect(200).expect_in_body("/whole").expect_header("x-up", "1");
        assert_eq!(answer.all("content-type"), ["application/json"]);
        assert_eq!(fixture.upstream.count(), 1);
    }
    let absurd = Fixture::new(post("respond", json!({"status": 99})));
    absurd.get("/").expect(503).expect_header("x-up", "");
}

#[test]
fn a_runner_that_is_gone() {
    let mut fixture = Fixture::new(post("nothing", ""));
    fixture.get("/").expect(200);
    fixture.runner.kill();
    fixture.get("/").expect(503);
    fixture.runner.start_again();
    fixture.get("/").expect(200);
}

#[test]
fn a_node_that_breaks_off() {
    let broken = |_: &Seen, wire: &mut Wire<'_>| {
        wire.raw(b"HTTP/1.1 200 OK\r\nX-Up: 1\r\nContent-Length: 10\r\n\r\nhalf");
        wire.close();
    };
    let (gateway, _runner, upstream) = behind(post("look", json!(["respbody"])), broken);
    gateway.get("/").expect(502).expect_header("x-up", "");
    assert_eq!(upstream.count(), 1, "an answer that a runner was told of is not asked for again");
    // Failures of the upstream are never the runner's to forgive.
    let (gateway, _other_runner, _other_upstream) =
        behind(post_with("look", json!(["respbody"]), "allow_degradation"), broken);
    gateway.get("/").expect(502);
}

#[test]
fn what_nobody_asks_for_streams() {
    let gate = Gate::default();
    let closed = gate.clone();
    let slow = move |_: &Seen, wire: &mut Wire<'_>| {
        wire.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        closed.pass();
        wire.raw(b"4\r\nlast\r\n0\r\n\r\n");
    };
    let (gateway, _runner, _upstream) = behind(post("respond", json!({"headers": [["x-r", "1"]]})), slow);
    let mut client = TcpStream::connect(("127.0.0.1", gateway.ports.http)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut got = Vec::new();
    while !String::from_utf8_lossy(&got).contains("first") {
        let mut piece = [0; 1000];
        let count = client.read(&mut piece).expect("the first piece comes before the last is written");
        assert!(count > 0, "{}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&piece[..count]);
    }
    gate.open();
    client.read_to_end(&mut got).unwrap();
    let got = String::from_utf8_lossy(&got).to_lowercase();
    assert!(got.contains("x-r: 1") && got.contains("last"), "{got}");
}

#[test]
fn only_answers_of_the_upstream() {
    let mut plugins = post("respond", json!({"headers": [["x-runner", "1"]]}));
    plugins["key-auth"] = json!({});
    plugins["response-rewrite"] = json!({"headers": {"set": {"x-later": "1"}}});
    let consumer = json!({"username": "jack", "plugins": {"key-auth": {"key": "k"}}});
    let (runner, upstream) = (Runner::start(), Upstream::echo());
    let down = json!({"type": "roundrobin", "nodes": {format!("127.0.0.1:{}", crate::support::gateway::free_port()): 1}});
    let routes = json!([
        {"id": "1", "uri": "/up", "plugins": plugins, "upstream": upstream.resource()},
        {"id": "2", "uri": "/down", "plugins": plugins, "upstream": down},
    ]);
    let setup = Setup::file(json!({"routes": routes, "consumers": [consumer]}))
        .set("ext-plugin.path_for_test", runner.socket().display().to_string());
    let gateway = setup.start();
    let get = |target: &str| gateway.request("GET", target).header("apikey", "k").send();
    get("/up").expect(200).expect_header("x-runner", "1").expect_header("x-later", "1");
    gateway.get("/up").expect(401).expect_header("x-runner", "").expect_header("x-later", "1");
    get("/down").expect(502).expect_header("x-runner", "").expect_header("x-later", "1");
    get("/nowhere").expect(404).expect_header("x-runner", "");
}

#[test]
fn on_a_global_rule_and_switched_by_a_filter() {
    let mut plugins = post("respond", json!({"headers": [["x-runner", "1"]]}));
    plugins["ext-plugin-post-resp"]["_meta"] = json!({"filter": [["arg_on", "==", "1"]]});
    let (runner, upstream) = (Runner::start(), Upstream::echo());
    let setup = Setup::file(json!({
        "routes": [{"id": "1", "uri": "/*", "upstream": upstream.resource()}],
        "global_rules": [{"id": "1", "plugins": plugins}],
    }));
    let gateway = setup.set("ext-plugin.path_for_test", runner.socket().display().to_string()).start();
    gateway.get("/?on=1").expect(200).expect_header("x-runner", "1");
    gateway.get("/?on=0").expect(200).expect_header("x-runner", "");
}

#[test]
fn upgrades_are_left_alone() {
    let tunnel = |_: &Seen, wire: &mut Wire<'_>| {
        wire.raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
        wire.echo_bytes();
    };
    let (runner, upstream) = (Runner::start(), Upstream::with(tunnel));
    let route = json!({"id": "1", "uri": "/*", "enable_websocket": true,
        "plugins": post("fault", "close"), "upstream": upstream.resource()});
    let setup = Setup::file(json!({"routes": [route]}));
    let gateway = setup.set("ext-plugin.path_for_test", runner.socket().display().to_string()).start();
    let mut client = Connection::open(gateway.ports.http);
    client.raw(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    assert_eq!(client.head().status, 101);
    client.raw(b"hello");
    assert_eq!(client.exactly(5), b"hello");
}

#[test]
fn all_three_on_one_route() {
    let plugins = json!({
        "ext-plugin-pre-req": conf("rewrite", json!({"headers": [["x-pre", "1"]]})),
        "ext-plugin-post-req": conf("rewrite", json!({"headers": [["x-post", "1"]]})),
        "ext-plugin-post-resp": conf("respond", json!({"headers": [["x-resp", "1"]]})),
    });
    let fixture = Fixture::new(plugins);
    fixture.get("/").expect(200).expect_header("x-resp", "1");
    let seen = fixture.upstream.last();
    assert_eq!((seen.header("x-pre"), seen.header("x-post")), (Some("1"), Some("1")));
}

#[test]
fn a_client_that_goes_away_ends_the_call() {
    let gone = Arc::new(AtomicBool::new(false));
    let told = gone.clone();
    let endless = move |_: &Seen, wire: &mut Wire<'_>| {
        wire.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        told.store(wire.hang(), Ordering::Relaxed);
    };
    let (gateway, _runner, upstream) = behind(post("look", json!(["respbody"])), endless);
    let mut client = Connection::open(gateway.ports.http);
    client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually("the upstream is asked", || upstream.count() == 1);
    drop(client);
    eventually("the upstream's connection is closed", || gone.load(Ordering::Relaxed));
}

/// A program that ends with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_python_runner() {
    let home = tempfile::Builder::new().prefix("python-").tempdir().unwrap();
    let socket = home.path().join("r.sock");
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/plugins/python/bin/py-runner");
    let mut command = std::process::Command::new("python3");
    command.arg(program).arg("start").env("APISIX_LISTEN_ADDRESS", format!("unix:{}", socket.display()));
    let _runner = Ended(command.spawn().expect("python3 can be run"));
    eventually("the runner listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let upstream = Upstream::with(plain);
    let route = |uri: &str, value: Value| {
        let plugins = json!({"ext-plugin-post-resp": conf("response", value)});
        json!({"id": uri.trim_start_matches('/'), "uri": uri, "plugins": plugins, "upstream": upstream.resource()})
    };
    let routes = json!([
        route(
            "/asks",
            json!({"status": 202, "headers": {"X-New": "1", "X-Up": null}, "append": " and the runner"})
        ),
        route("/passes", json!({"headers": {"X-New": "1"}})),
        route("/replaces", json!({"body": "another"})),
    ]);
    let setup = Setup::file(json!({"routes": routes}));
    let gateway = setup.set("ext-plugin.path_for_test", socket.display().to_string()).start();
    let answer = gateway.get("/asks").expect(202).expect_body("from the upstream and the runner");
    assert_eq!((answer.header("x-new"), answer.header("x-up")), (Some("1"), None));
    assert_eq!(answer.header("content-type"), Some("text/up"));
    let answer =
        gateway.get("/passes").expect(200).expect_body("from the upstream").expect_header("x-new", "1");
    assert_eq!(answer.all("x-up"), ["1", "2"]);
    gateway.get("/replaces").expect(200).expect_body("another").expect_header("content-type", "text/up");
    assert_eq!(upstream.count(), 3);
}
