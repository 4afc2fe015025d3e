//! From the chosen upstream to its node and back: balancing, retries, time limits, headers, connections, protocols.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{Ipv4Addr, TcpListener},
};

use serde_json::{Value, json};

use crate::support::{
    Gate,
    client::Connection,
    dns::Dns,
    eventually,
    gateway::{Gateway, Setup, free_port},
    tool,
    upstream::Upstream,
};

fn one_route(upstream: Value) -> Value {
    json!({"routes": [{"id": "1", "uri": "/*", "upstream": upstream}]})
}

fn to(upstream: Value) -> Gateway {
    Gateway::file(one_route(upstream))
}

/// A node that refuses connections.
fn dead() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// A node that accepts requests and does not answer them.
fn silent() -> Upstream {
    Upstream::with(|_, wire| {
        wire.hang();
    })
}

/// How often each answer came in so many requests.
fn tally(gateway: &Gateway, requests: usize, header: impl Fn(usize) -> String) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for number in 0..requests {
        let user = header(number);
        let request = gateway.request("GET", &format!("/?user={user}")).header("X-User", &user);
        let response = request.send().expect(200);
        *counts.entry(response.text()).or_default() += 1;
    }
    counts
}

fn counts(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[test]
fn a_host_of_a_list_may_hold_the_port() {
    let upstream = Upstream::named("a");
    let gateway = to(json!({"type": "roundrobin", "nodes": [{"host": upstream.node(), "weight": 1}]}));
    assert_eq!(tally(&gateway, 2, |_| String::new()), counts(&[("a", 2)]));
}

#[test]
fn round_robin_heeds_weights() {
    let (a, b, none) = (Upstream::named("a"), Upstream::named("b"), Upstream::named("none"));
    let gateway = to(json!({"type": "roundrobin", "nodes": {a.node(): 3, b.node(): 1, none.node(): 0}}));
    assert_eq!(tally(&gateway, 40, |_| String::new()), counts(&[("a", 30), ("b", 10)]));
}

#[test]
fn consistent_hashing_keeps_a_client_on_its_node() {
    let nodes: Vec<Upstream> = ["a", "b", "c"].into_iter().map(Upstream::named).collect();
    let weights: BTreeMap<String, u32> = nodes.iter().map(|node| (node.node(), 1)).collect();
    for (hash_on, key) in
        [("header", "X-User"), ("vars", "arg_user"), ("vars_combinations", "$http_x_user-$uri")]
    {
        let gateway = to(json!({"type": "chash", "hash_on": hash_on, "key": key, "nodes": weights}));
        assert_eq!(tally(&gateway, 10, |_| "jack".into()).len(), 1, "{hash_on}: one user stays");
        assert_eq!(tally(&gateway, 60, |number| format!("user-{number}")).len(), 3, "{hash_on}: many spread");
    }
}

#[test]
fn a_slow_node_gets_less_of_least_conn() {
    const MANY: usize = 80;
    let fast = Upstream::named("fast");
    let gate = Gate::default();
    let closed = gate.clone();
    let slow = Upstream::with(move |_, wire| {
        closed.pass();
        wire.answer(200, &[], b"slow");
    });
    let gateway = to(json!({"type": "least_conn", "nodes": {fast.node(): 1, slow.node(): 1}}));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while fast.count() < MANY {
                    tally(&gateway, 1, |_| String::new());
                }
                gate.open();
            });
        }
    });
    assert!(fast.count() > 2 * slow.count(), "fast {} slow {}", fast.count(), slow.count());
}

#[test]
fn ewma_uses_every_node() {
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let gateway = to(json!({"type": "ewma", "nodes": {a.node(): 1, b.node(): 1}}));
    assert_eq!(tally(&gateway, 40, |_| String::new()).len(), 2);
}

#[test]
fn a_lower_priority_is_used_when_the_higher_is_exhausted() {
    let low = Upstream::named("low");
    let high = Upstream::named("high");
    let node = |port: u16, priority: i32| json!({"host": "127.0.0.1", "port": port, "weight": 1, "priority": priority});
    let gateway = to(json!({"type": "roundrobin", "nodes": [node(high.port, 0), node(low.port, -1)]}));
    assert_eq!(tally(&gateway, 10, |_| String::new()), counts(&[("high", 10)]));
    let gateway = to(json!({"type": "roundrobin", "nodes": [node(free_port(), 0), node(low.port, -1)]}));
    assert_eq!(tally(&gateway, 10, |_| String::new()), counts(&[("low", 10)]));
}

#[test]
fn another_node_is_tried() {
    let live = Upstream::named("live");
    let gateway = to(json!({"type": "roundrobin", "nodes": {dead(): 1, live.node(): 1}}));
    assert_eq!(tally(&gateway, 10, |_| String::new()), counts(&[("live", 10)]));
    let gateway = to(json!({"type": "roundrobin", "retries": 0, "nodes": {dead(): 1, live.node(): 1}}));
    let statuses: Vec<u16> = (0..10).map(|_| gateway.get("/").status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 502).count(), 5, "{statuses:?}");
}

#[test]
fn a_post_that_may_have_taken_effect_is_not_repeated() {
    let broken = Upstream::with(|_, wire| wire.close());
    let gateway = to(json!({"type": "roundrobin", "retries": 3, "nodes": {broken.node(): 1}}));
    gateway.request("POST", "/").body("pay 1").send().expect(502);
    assert_eq!(broken.count(), 1);
}

#[test]
fn refused_connections_are_502() {
    let gateway = to(json!({"type": "roundrobin", "nodes": {dead(): 1}}));
    let response = gateway.get("/").expect(502).expect_in_body("<title>502 Bad Gateway</title>");
    let response = response.expect_header("Content-Type", "text/html; charset=utf-8");
    response.expect_header("X-APISIX-Upstream-Status", "502");
}

#[test]
fn nonsense_is_502() {
    let nonsense = Upstream::with(|_, wire| {
        wire.raw(b"this is not HTTP\r\n\r\n");
        wire.close();
    });
    to(nonsense.resource()).get("/").expect(502);
}

#[test]
fn slow_answers_are_504() {
    let silent = silent();
    let mut upstream = silent.resource();
    upstream["timeout"] = json!({"connect": 0.5, "send": 0.5, "read": 0.2});
    let response = to(upstream).get("/").expect(504).expect_in_body("<title>504 Gateway Time-out</title>");
    response.expect_header("X-APISIX-Upstream-Status", "504");
}

#[test]
fn the_time_limits_of_a_route_win() {
    let silent = silent();
    let mut document = one_route(silent.resource());
    document["routes"][0]["timeout"] = json!({"connect": 0.5, "send": 0.5, "read": 0.2});
    Gateway::file(document).get("/").expect(504);
}

#[test]
fn statuses_of_the_upstream_pass_and_its_errors_are_marked() {
    let upstream = Upstream::echo();
    let gateway = to(upstream.resource());
    for status in [200, 201, 301, 404, 418] {
        gateway
            .get(&format!("/?status={status}"))
            .expect(status)
            .expect_header("X-APISIX-Upstream-Status", "");
    }
    gateway.get("/?status=503").expect(503).expect_header("X-APISIX-Upstream-Status", "503");
}

#[test]
fn which_host_the_node_sees() {
    let upstream = Upstream::echo();
    let host = |pass_host: &str| {
        let mut resource = upstream.resource();
        resource["pass_host"] = json!(pass_host);
        if pass_host == "rewrite" {
            resource["upstream_host"] = json!("inside.example");
        }
        to(resource).request("GET", "/").header("Host", "outside.example").send().expect(200);
        upstream.last().header("host").unwrap().to_owned()
    };
    assert_eq!(host("pass"), "outside.example");
    assert_eq!(host("node"), upstream.node());
    assert_eq!(host("rewrite"), "inside.example");
}

#[test]
fn where_a_request_came_from() {
    let upstream = Upstream::echo();
    let gateway = to(upstream.resource());
    let port = gateway.ports.http.to_string();
    let expect = |headers: &[(&str, &str)], expected: &[(&str, &str)]| {
        let mut request = gateway.request("GET", "/").header("Host", "a.com");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.send().expect(200);
        let seen = upstream.last();
        for (name, value) in expected {
            assert_eq!(seen.all(name).join("|"), *value, "{name} after {headers:?}");
        }
    };
    expect(
        &[],
        &[
            ("X-Real-IP", "127.0.0.1"),
            ("X-Forwarded-For", "127.0.0.1"),
            ("X-Forwarded-Proto", "http"),
            ("X-Forwarded-Host", "a.com"),
            ("X-Forwarded-Port", &port),
        ],
    );
    // Untrusted: what the client claims about proto, host and port is overwritten; the list grows.
    expect(
        &[
            ("X-Forwarded-For", "9.9.9.9"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "evil.com"),
            ("X-Forwarded-Port", "1"),
            ("X-Consumer-Username", "admin"),
        ],
        &[
            ("X-Forwarded-For", "9.9.9.9, 127.0.0.1"),
            ("X-Forwarded-Proto", "http"),
            ("X-Forwarded-Host", "a.com"),
            ("X-Forwarded-Port", &port),
            ("X-Consumer-Username", ""),
        ],
    );
    // real_ip_from holds 127.0.0.1 by default.
    expect(&[("X-Real-IP", "8.8.8.8")], &[("X-Real-IP", "8.8.8.8"), ("X-Forwarded-For", "8.8.8.8")]);
}

#[test]
fn a_trusted_peer_may_say_where_a_request_came_from() {
    let upstream = Upstream::echo();
    let setup = Setup::file(one_route(upstream.resource()));
    let gateway = setup.set("apisix.trusted_addresses", json!(["127.0.0.1"])).start();
    gateway
        .request("GET", "/")
        .header("X-Forwarded-Proto", "https")
        .header("X-Forwarded-For", "9.9.9.9")
        .send()
        .expect(200);
    let seen = upstream.last();
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.header("x-forwarded-for"), Some("9.9.9.9, 127.0.0.1"));
}

#[test]
fn the_target_is_sent_as_it_came() {
    let upstream = Upstream::echo();
    let gateway = to(upstream.resource());
    for target in
        ["/a%20b?x=%41&y=a+b&&z", "/a//b/./c", "/%7Euser?", "/a;b=c/d", "/%E4%B8%AD?q=%E6%96%87", "/?"]
    {
        gateway.get(target).expect(200);
        assert_eq!(upstream.last().target, target);
    }
}

#[test]
fn headers_pass_in_both_directions() {
    let upstream = Upstream::with(|_, wire| {
        let headers = [
            ("Set-Cookie", "a=1"),
            ("Set-Cookie", "b=2"),
            ("X-Empty", ""),
            ("Server", "inside"),
            ("Keep-Alive", "timeout=1"),
        ];
        wire.answer(200, &headers, b"");
    });
    let gateway = to(upstream.resource());
    let request = gateway.request("GET", "/").header("X-Twice", "1").header("X-Twice", "2");
    let request = request.header("X-Latin", "caf\u{e9}").header("Accept-Encoding", "gzip");
    let response = request.header("Connection", "X-Private").header("X-Private", "1").send().expect(200);
    assert_eq!(response.all("Set-Cookie"), ["a=1", "b=2"]);
    assert_eq!(response.header("X-Empty"), Some(""));
    assert_eq!(response.all("Server"), ["APISIX/3.18.0"]);
    assert_eq!(response.header("Keep-Alive"), None, "a header of the connection stays on it");
    let seen = upstream.last();
    assert_eq!(seen.all("X-Twice"), ["1", "2"]);
    assert_eq!(seen.header("accept-encoding"), Some("gzip"));
    assert_eq!(seen.header("x-latin"), Some("caf\u{e9}"));
}

#[test]
fn connections_are_used_again() {
    let upstream = Upstream::echo();
    let gateway = to(upstream.resource());
    let mut client = Connection::open(gateway.ports.http);
    for _ in 0..50 {
        client.exchange(&gateway.request("GET", "/")).expect(200);
    }
    assert!(upstream.connections() <= 10, "{} connections for 50 requests", upstream.connections());
}

#[test]
fn a_kept_connection_that_the_node_closed_is_replaced() {
    let upstream = Upstream::with(|seen, wire| {
        wire.answer(200, &[], seen.target.as_bytes());
        wire.close();
    });
    let gateway = to(upstream.resource());
    for number in 0..20 {
        gateway.get(&format!("/{number}")).expect(200).expect_body(&format!("/{number}"));
    }
}

#[test]
fn bodies_without_a_body() {
    let upstream = Upstream::echo();
    let gateway = to(upstream.resource());
    let mut client = Connection::open(gateway.ports.http);
    for _ in 0..3 {
        let head = client.exchange(&gateway.request("HEAD", "/"));
        assert!(head.status == 200 && head.body.is_empty());
        client.exchange(&gateway.request("GET", "/?status=204")).expect(204).expect_body("");
        client.exchange(&gateway.request("GET", "/?status=304")).expect(304).expect_body("");
        client.exchange(&gateway.request("GET", "/")).expect(200);
    }
}

#[test]
fn interim_responses_do_not_count() {
    let upstream = Upstream::with(|_, wire| {
        wire.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n");
        wire.answer(200, &[], b"final");
    });
    let gateway = to(upstream.resource());
    gateway.get("/").expect(200).expect_body("final");
    gateway.get("/").expect(200).expect_body("final");
}

#[test]
fn a_body_that_breaks_off_is_not_made_whole() {
    let upstream = Upstream::with(|_, wire| {
        wire.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this");
        wire.close();
    });
    let gateway = to(upstream.resource());
    let outcome = gateway.request("GET", "/").try_send();
    assert!(outcome.is_err(), "the client must notice: {outcome:?}");
}

#[test]
fn names_are_resolved_and_followed() {
    let (a, b) = (Upstream::named("a"), Ipv4Addr::new(127, 0, 0, 2));
    let dns = Dns::start(&[("node.test", &[Ipv4Addr::LOCALHOST])]);
    let other = TcpListener::bind((b, a.port)).expect("the same port of another loopback address");
    let _b = Upstream::on(other, |_, wire| wire.answer(200, &[], b"b"));
    let document = one_route(json!({"type": "roundrobin", "nodes": {format!("node.test:{}", a.port): 1}}));
    let setup = Setup::file(document).set("apisix.dns_resolver", json!([format!("127.0.0.1:{}", dns.port)]));
    let gateway = setup.set("apisix.dns_resolver_valid", 1).start();
    eventually("the name is known", || gateway.get("/").text() == "a");
    dns.set("node.test", &[b]);
    eventually("the new address is used", || gateway.get("/").text() == "b");
    dns.set("node.test", &[]);
    let known = dns.queries();
    eventually("the name was asked for again", || {
        gateway.get("/");
        dns.queries() > known
    });
    gateway.get("/").expect(200).expect_body("b");
}

#[test]
fn unknown_names_are_503() {
    let dns = Dns::start(&[]);
    let document = one_route(json!({"type": "roundrobin", "nodes": {"nowhere.test:80": 1}}));
    let setup = Setup::file(document).set("apisix.dns_resolver", json!([format!("127.0.0.1:{}", dns.port)]));
    setup.start().get("/").expect(503);
}

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

#[test]
fn websocket() {
    let upstream = Upstream::with(|seen, wire| {
        if seen.header("upgrade") == Some("websocket") {
            wire.raw(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
            );
            wire.echo_bytes();
        } else {
            wire.answer(426, &[], b"upgrade required");
        }
    });
    let mut document = one_route(upstream.resource());
    document["routes"][0]["enable_websocket"] = json!(true);
    let gateway = Gateway::file(document);
    // Again and again: the node answers at once, before the gateway has looked up from sending.
    for _ in 0..300 {
        let mut client = Connection::open(gateway.ports.http);
        let switched = client.raw(UPGRADE.as_bytes()).head();
        assert_eq!(switched.status, 101, "{:?}", switched.headers);
        assert_eq!(switched.header("Sec-WebSocket-Accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        for message in [&b"\x81\x85abcd\x09\x07\x0f\x08\x0e"[..], &[0x82; 5000], b"\x88\x80abcd"] {
            client.raw(message);
            assert_eq!(client.exactly(message.len()), message);
        }
    }
}

#[test]
fn an_upgrade_that_was_refused_leaves_an_ordinary_request() {
    let upstream = Upstream::with(|_, wire| wire.answer(426, &[], b"upgrade required"));
    let mut document = one_route(upstream.resource());
    document["routes"][0]["enable_websocket"] = json!(true);
    let gateway = Gateway::file(document);
    let mut client = Connection::open(gateway.ports.http);
    for _ in 0..20 {
        client.raw(UPGRADE.as_bytes()).response().expect(426);
        client.exchange(&gateway.request("GET", "/plain")).expect(426);
    }
}

#[test]
fn an_upgrade_that_was_not_enabled_is_an_ordinary_request() {
    let upstream = Upstream::echo();
    let gateway = to(upstream.resource());
    let response = Connection::open(gateway.ports.http).raw(UPGRADE.as_bytes()).response();
    response.expect(200);
    assert_eq!(upstream.last().header("upgrade"), None);
}

#[test]
fn http2_without_tls() {
    let upstream = Upstream::echo();
    let gateway = to(upstream.resource());
    let url = format!("http://127.0.0.1:{}/h2?x=1", gateway.ports.http);
    let flags = ["-sS", "--http2-prior-knowledge", "-w", "\n%{http_version} %{http_code}"];
    let out = tool::stdout("curl", &[&flags[..], &["-d", "hello", &url]].concat());
    let (body, summary) = out.rsplit_once('\n').unwrap();
    assert_eq!(summary, "2 200");
    let seen: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&seen["uri"], &seen["body"]), (&json!("/h2?x=1"), &json!("hello")));
    assert_eq!(seen["headers"]["host"], json!(format!("127.0.0.1:{}", gateway.ports.http)));
    let missing = tool::stdout("curl", &[&flags[..], &[&format!("{url}&status=404")]].concat());
    assert!(missing.ends_with("\n2 404"), "{missing}");
}

#[test]
fn http2_bodies_and_replies_of_the_gateway() {
    let upstream = Upstream::echo();
    let mut document = one_route(upstream.resource());
    document["routes"][0]["uri"] = json!("/up");
    let gateway = Gateway::file(document);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![b'x'; 3_000_000]).unwrap();
    let data = format!("@{}", file.path().display());
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", gateway.ports.http);
    let curl =
        |arguments: &[&str]| tool::stdout("curl", &[&["-sS", "--http2-prior-knowledge"], arguments].concat());
    let answer = curl(&["--data-binary", &data, &url("/up")]);
    assert!(answer.contains("3000000 bytes"), "{answer}");
    assert_eq!(upstream.last().body.len(), 3_000_000);
    assert_eq!(curl(&[&url("/nowhere")]), "{\"error_msg\":\"404 Route Not Found\"}\n");
}

#[test]
fn active_checks_take_a_sick_node_out_and_back() {
    let sick = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let state = sick.clone();
    let (well, b) = (
        Upstream::named("well"),
        Upstream::with(move |seen, wire| {
            let ok = !state.load(std::sync::atomic::Ordering::Relaxed);
            let status = if ok || seen.target != "/healthz" { 200 } else { 500 };
            wire.answer(status, &[], b"sick");
        }),
    );
    let gateway = to(json!({
        "type": "roundrobin",
        "nodes": {well.node(): 1, b.node(): 1},
        "checks": {"active": {
            "type": "http", "http_path": "/healthz",
            "healthy": {"interval": 1, "successes": 1}, "unhealthy": {"interval": 1, "http_failures": 1},
        }},
    }));
    eventually("the sick node is left out", || {
        tally(&gateway, 6, |_| String::new()) == counts(&[("well", 6)])
    });
    sick.store(false, std::sync::atomic::Ordering::Relaxed);
    eventually("and taken in again", || {
        tally(&gateway, 6, |_| String::new()) == counts(&[("sick", 3), ("well", 3)])
    });
}

#[test]
fn passive_checks_hear_of_the_last_try() {
    // APISIX: t/node/healthcheck-passive-resty-events.t
    let drained = Upstream::named("drained");
    let gateway = to(json!({
        "type": "roundrobin", "retries": 0,
        "nodes": {drained.node(): 0, dead(): 1},
        "checks": {
            "active": {"type": "tcp", "healthy": {"interval": 600}, "unhealthy": {"interval": 600}},
            "passive": {"unhealthy": {"http_statuses": [502], "http_failures": 1, "tcp_failures": 1}},
        },
    }));
    gateway.get("/").expect(502);
    for _ in 0..5 {
        gateway.get("/").expect(200).expect_body("drained");
    }
}

#[test]
fn passive_checks_learn_from_requests() {
    let (well, sick) = (Upstream::named("well"), Upstream::with(|_, wire| wire.answer(500, &[], b"sick")));
    let gateway = to(json!({
        "type": "roundrobin",
        "nodes": {well.node(): 1, sick.node(): 1},
        "checks": {
            // Probed so rarely that only requests can tell.
            "active": {"type": "tcp", "healthy": {"interval": 600}, "unhealthy": {"interval": 600}},
            "passive": {"unhealthy": {"http_statuses": [500], "http_failures": 2}},
        },
    }));
    eventually("the sick node is left out", || (0..6).all(|_| gateway.get("/").status == 200));
}
