//! Answers that come before the request's body was read: the client sees them, and keeps its connection where it can.

use std::io::Write as _;

use serde_json::{Value, json};

use crate::support::{
    client::{Connection, Request},
    gateway::{Gateway, Setup, free_port},
};

/// More than a connection holds while nobody reads.
const LARGE: usize = 12 * 1024 * 1024;

fn route(plugins: Value) -> Value {
    let nobody = format!("127.0.0.1:{}", free_port());
    json!({"routes": [{"id": "1", "uri": "/*", "plugins": plugins, "upstream": {"nodes": {nobody: 1}}}]})
}

fn guarded() -> Setup {
    Setup::file(route(json!({"key-auth": {}})))
}

#[test]
fn the_connection_lasts() {
    for (plugins, status) in [
        (json!({"key-auth": {}}), 401),
        (json!({"redirect": {"uri": "/elsewhere", "ret_code": 307}}), 307),
        (json!({"mocking": {"response_example": "made up", "content_type": "text/plain"}}), 200),
        (json!({"fault-injection": {"abort": {"http_status": 503}}}), 503),
    ] {
        let gateway = Gateway::file(route(plugins));
        let mut client = Connection::open(gateway.ports.http);
        for size in [0, 1, 1000, 300_000, 1_048_576, 0] {
            let request = gateway.request("POST", "/").body(vec![b'x'; size]);
            let answer =
                client.try_exchange(&request).unwrap_or_else(|e| panic!("{status}, {size} bytes: {e}"));
            answer.expect(status).expect_header("connection", "keep-alive");
        }
        client
            .exchange(&gateway.request("GET", "/"))
            .expect(status)
            .expect_header("connection", "keep-alive");
    }
}

/// Sends all of it, which nobody may break off, and only then reads the answer, which is the last one.
#[track_caller]
fn heard_out(gateway: &Gateway, wire: &[u8], status: u16) {
    let mut client = Connection::open(gateway.ports.http);
    client.writer().write_all(wire).expect("it is not cut off");
    client.response().expect(status).expect_header("connection", "close");
    assert!(client.ends());
}

#[test]
fn a_client_that_sends_a_lot_is_heard_out() {
    let gateway = guarded().start();
    let large = || vec![b'x'; LARGE];
    heard_out(&gateway, &gateway.request("POST", "/").body(large()).wire(), 401);
    heard_out(&gateway, &gateway.request("POST", "/").chunked(large()).wire(), 401);
    heard_out(
        &gateway,
        &gateway.request("POST", "/").header("Connection", "close").body(large()).wire(),
        401,
    );
    let limited = guarded().set("nginx_config.http.client_max_body_size", "1m").start();
    heard_out(&limited, &limited.request("POST", "/").body(large()).wire(), 413);
    let unreachable = Gateway::file(route(json!({})));
    heard_out(&unreachable, &unreachable.request("POST", "/").body(large()).wire(), 502);
}

#[test]
fn so_is_one_that_makes_no_sense() {
    let gateway = guarded().start();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\n";
    for framing in [
        &b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"[..],
        b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nno size\r\n",
        b"a b c d\r\n\r\n",
    ] {
        heard_out(&gateway, &[head, framing, &vec![b'x'; LARGE]].concat(), 400);
    }
}

#[test]
fn a_body_that_its_client_holds_back_is_not_waited_for() {
    let gateway = guarded().start();
    let mut client = Connection::open(gateway.ports.http);
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    // What comes next could be the body, or another request.
    client.raw(head.as_bytes()).response().expect(401).expect_header("connection", "close");
    assert!(client.ends());
}

#[test]
fn a_client_that_stops_half_way_blocks_nobody() {
    let gateway = guarded().start();
    let mut waiting = Connection::open(gateway.ports.http);
    waiting.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhal");
    waiting.response().expect(401);
    Request::new(gateway.ports.http, "GET", "/").send().expect(401);
    // The rest of it comes late, and another request behind it.
    waiting.raw(b"f.GET / HTTP/1.1\r\nHost: a\r\n\r\n").response().expect(401);
}
