//! Request and response bodies arrive whole, whatever their size and whoever looked into them on the way.

use serde_json::{Value, json};

use crate::support::{
    Gate,
    client::Connection,
    gateway::{Gateway, Setup},
    upstream::Upstream,
};

const LARGE: usize = 20 * 1024 * 1024;

/// Bytes in which a piece that is missing, doubled or out of order shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8 ^ (at >> 16) as u8).collect()
}

fn one_route(upstream: &Upstream, plugins: Value) -> Value {
    json!({"routes": [{"id": "1", "uri": "/*", "plugins": plugins, "upstream": upstream.resource()}]})
}

/// Uploads of many sizes, in both framings, over one connection each.
#[track_caller]
fn uploads_arrive(gateway: &Gateway, upstream: &Upstream, kind: &str, make: impl Fn(usize) -> Vec<u8>) {
    for size in [0, 1, 1000, 65_535, 65_536, 65_537, 200_000, 1_048_576, LARGE] {
        for chunked in [false, true] {
            let body = make(size);
            let request = gateway.request("POST", "/").header("Content-Type", kind);
            let request = if chunked { request.chunked(body.clone()) } else { request.body(body.clone()) };
            let mut client = Connection::open(gateway.ports.http);
            let answer = client.try_exchange(&request);
            let answer = answer.unwrap_or_else(|e| panic!("size {size}, chunked {chunked}: {e}"));
            assert_eq!(answer.status, 200, "size {size}, chunked {chunked}: {}", answer.text());
            let seen = upstream.last();
            assert!(seen.body == body, "size {size}, chunked {chunked}: {} bytes arrived", seen.body.len());
            // The connection is where it should be: the next request on it works.
            client.exchange(&gateway.request("GET", "/")).expect(200);
            upstream.forget();
        }
    }
}

/// A client that announces the end of its connection still gets its answer.
#[test]
fn the_last_request_of_a_connection_may_be_chunked() {
    let upstream = Upstream::echo();
    for plugins in [json!({}), json!({"request-validation": {"body_schema": {"type": "object"}}})] {
        let gateway = Gateway::file(one_route(&upstream, plugins));
        let request = gateway.request("POST", "/").header("Connection", "close");
        let request = request.header("Content-Type", "application/json").chunked("{}");
        request.send().expect(200);
        assert_eq!(upstream.last().body, b"{}");
    }
}

#[test]
fn plain_uploads() {
    let upstream = Upstream::echo();
    let gateway = Gateway::file(one_route(&upstream, json!({})));
    uploads_arrive(&gateway, &upstream, "application/octet-stream", pattern);
}

#[test]
fn uploads_on_routes_that_look_into_the_body() {
    let upstream = Upstream::echo();
    let vars = json!([["post_arg_kind", "==", "wanted"]]);
    let routes = json!([
        {"id": "1", "uri": "/*", "vars": vars, "upstream": upstream.resource()},
        {"id": "2", "uri": "/*", "priority": -1, "upstream": upstream.resource()},
    ]);
    let setup = Setup::file(json!({"routes": routes})).set("portcullis.request_body_buffer_max", "32m");
    let form = |size: usize| [b"kind=wanted&rest=".to_vec(), vec![b'x'; size]].concat();
    uploads_arrive(&setup.start(), &upstream, "application/x-www-form-urlencoded", form);
}

#[test]
fn uploads_through_request_validation() {
    let upstream = Upstream::echo();
    let schema = json!({"type": "object", "required": ["text"]});
    let setup = Setup::file(one_route(&upstream, json!({"request-validation": {"body_schema": schema}})));
    let gateway = setup.set("portcullis.request_body_buffer_max", "32m").start();
    for size in [1, 70_000, LARGE] {
        for chunked in [false, true] {
            let body = json!({"text": "x".repeat(size)}).to_string();
            let request = gateway.request("POST", "/").header("Content-Type", "application/json");
            let request = if chunked { request.chunked(body.clone()) } else { request.body(body.clone()) };
            request.send().expect(200);
            assert!(upstream.last().body == body.as_bytes(), "size {size}, chunked {chunked}");
            upstream.forget();
        }
    }
    gateway.request("POST", "/").json(&json!({"other": 1})).send().expect(400);
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_body_larger_than_may_be_held_is_refused_where_it_would_be_held() {
    let upstream = Upstream::echo();
    let routes = json!([
        {"id": "1", "uri": "/held", "vars": [["post_arg_a", "==", "1"]], "upstream": upstream.resource()},
        {"id": "2", "uri": "/streamed", "upstream": upstream.resource()},
    ]);
    let setup = Setup::file(json!({"routes": routes})).set("portcullis.request_body_buffer_max", "100k");
    let gateway = setup.start();
    let post = |path: &str| {
        gateway.request("POST", path).header("Content-Type", "application/x-www-form-urlencoded")
    };
    post("/held").body(pattern(200_000)).send().expect(413);
    post("/held").chunked(pattern(200_000)).send().expect(413);
    post("/streamed").body(pattern(200_000)).send().expect(200);
    post("/held").body("a=1").send().expect(200);
}

#[test]
fn client_max_body_size() {
    let upstream = Upstream::echo();
    let setup =
        Setup::file(one_route(&upstream, json!({}))).set("nginx_config.http.client_max_body_size", "100k");
    let gateway = setup.start();
    let post = || gateway.request("POST", "/");
    post().body(pattern(102_400)).send().expect(200);
    let refused = post().body(pattern(102_401)).send().expect(413);
    refused.expect_in_body("<title>413 Request Entity Too Large</title>");
    let before = upstream.count();
    post().chunked(pattern(102_400)).send().expect(200);
    post().chunked(pattern(500_000)).send().expect(413);
    assert!(upstream.count() <= before + 1, "what is too large does not count as a request");
    gateway.get("/").expect(200);
}

#[test]
fn expect_100_continue() {
    let upstream = Upstream::echo();
    let gateway = Gateway::file(one_route(&upstream, json!({})));
    let mut client = Connection::open(gateway.ports.http);
    // The connection is kept.
    for _ in 0..3 {
        client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
        let go_on = client.head();
        assert_eq!(go_on.status, 100, "the client waits for this before it sends its body");
        client.raw(b"hello").response().expect(200).expect_in_body("\"body\":\"hello\"");
    }
}

#[test]
fn expect_100_continue_where_the_body_is_looked_into() {
    let upstream = Upstream::echo();
    let routes = json!([{"id": "1", "uri": "/*", "vars": [["post_arg_a", "==", "1"]], "upstream": upstream.resource()}]);
    let gateway = Gateway::file(json!({"routes": routes}));
    let mut client = Connection::open(gateway.ports.http);
    for _ in 0..2 {
        client.raw(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\n\
              Content-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        );
        assert_eq!(client.head().status, 100);
        client.raw(b"a=1").response().expect(200).expect_in_body("\"body\":\"a=1\"");
    }
}

#[test]
fn responses_stream() {
    const COUNT: usize = 400;
    let piece = pattern(64 * 1024);
    let sent = piece.clone();
    let upstream = Upstream::with(move |_, wire| {
        let pieces: Vec<&[u8]> = (0..COUNT).map(|_| sent.as_slice()).collect();
        wire.chunked(200, &[], &pieces);
    });
    let gateway = Gateway::file(one_route(&upstream, json!({})));
    gateway.get("/").expect(200);
    let before = gateway.resident_kib();
    let response = gateway.get("/").expect(200);
    assert_eq!(response.body.len(), COUNT * piece.len());
    assert!(response.body.chunks(piece.len()).all(|part| part == piece), "nothing is out of order");
    let grown = gateway.resident_kib().saturating_sub(before);
    assert!(grown < 20 * 1024, "a response of 25 MB made the gateway {grown} KiB larger");
}

#[test]
fn the_beginning_of_a_response_does_not_wait_for_its_end() {
    let gate = Gate::default();
    let closed = gate.clone();
    let upstream = Upstream::with(move |_, wire| {
        wire.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        closed.pass();
        wire.raw(b"4\r\nlast\r\n0\r\n\r\n");
    });
    let gateway = Gateway::file(one_route(&upstream, json!({})));
    let mut client = Connection::open(gateway.ports.http);
    assert_eq!(client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").head().status, 200);
    assert_eq!(client.exactly(10), b"5\r\nfirst\r\n");
    gate.open();
    assert_eq!(client.exactly(14), b"4\r\nlast\r\n0\r\n\r\n");
}

#[test]
fn a_response_without_a_length_ends_with_its_connection() {
    let upstream = Upstream::with(|_, wire| {
        wire.raw(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end");
        wire.close();
    });
    let gateway = Gateway::file(one_route(&upstream, json!({})));
    gateway.get("/").expect(200).expect_body("until the end");
}
