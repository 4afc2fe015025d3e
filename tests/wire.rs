//! What answers look like on the wire: the letters of header names, and what clients of HTTP/1.0 are sent.

use std::io::Read as _;

use serde_json::{Value, json};

use crate::support::{client::Connection, gateway::Gateway, upstream::Upstream};

fn routes(upstream: &Upstream, plugins: &[(&str, Value)]) -> Gateway {
    let route = |(at, (path, plugins)): (usize, &(&str, Value))| json!({"id": at, "uri": path, "plugins": plugins, "upstream": upstream.resource()});
    let routes: Vec<Value> = (1..).zip(plugins).map(route).collect();
    Gateway::file(json!({"routes": routes}))
}

/// Everything that is sent until the connection ends.
#[track_caller]
fn told(gateway: &Gateway, request: &str) -> String {
    let mut client = Connection::open(gateway.ports.http);
    client.raw(request.as_bytes());
    let mut all = Vec::new();
    client.writer().read_to_end(&mut all).expect("the connection is ended, not broken off");
    String::from_utf8_lossy(&all).into_owned()
}

#[track_caller]
fn headers_of(gateway: &Gateway, path: &str, expected: &[&str]) {
    let answer = told(
        gateway,
        &format!("GET {path} HTTP/1.1\r\nHost: a\r\nOrigin: http://b\r\nConnection: close\r\n\r\n"),
    );
    for line in expected {
        assert!(answer.contains(&format!("\r\n{line}")), "{path}: no {line} in {answer}");
    }
}

#[test]
fn names_have_their_usual_letters() {
    let upstream =
        Upstream::with(|_, wire| wire.raw(b"HTTP/1.1 200 OK\r\nx-OWN: 1\r\ncontent-length: 2\r\n\r\nok"));
    let gateway = routes(
        &upstream,
        &[
            ("/plain", json!({})),
            ("/denied", json!({"basic-auth": {}})),
            ("/moved", json!({"redirect": {"uri": "/there"}})),
            (
                "/asked",
                json!({"cors": {"allow_origins": "http://b"}, "request-id": {"header_name": "X-my-ID"}}),
            ),
            (
                "/edited",
                json!({"response-rewrite": {"headers": {"set": {"x-lower": "1", "X-Upper-ID": "2"}}}}),
            ),
            ("/made-up", json!({"mocking": {"response_example": "", "response_headers": {"X-MADE": "1"}}})),
            ("/echoed", json!({"echo": {"body": "x", "headers": {"X-ECHO": "1"}}})),
            (
                "/down",
                json!({"fault-injection": {"abort": {"http_status": 503, "headers": {"X-Fault": "1"}}}}),
            ),
        ],
    );
    headers_of(
        &gateway,
        "/plain",
        &["x-OWN: 1", "content-length: 2", "Server: APISIX", "Date: ", "Connection: close"],
    );
    headers_of(
        &gateway,
        "/denied",
        &["WWW-Authenticate: Basic", "Content-Type: text/plain", "Content-Length: "],
    );
    headers_of(&gateway, "/moved", &["Location: /there"]);
    headers_of(&gateway, "/asked", &["Access-Control-Allow-Origin: http://b", "Vary: Origin", "X-my-ID: "]);
    headers_of(&gateway, "/edited", &["x-lower: 1", "X-Upper-ID: 2"]);
    headers_of(&gateway, "/made-up", &["X-MADE: 1", "X-Mock-By: APISIX"]);
    headers_of(&gateway, "/echoed", &["X-ECHO: 1"]);
    headers_of(&gateway, "/down", &["X-Fault: 1"]);
}

#[test]
fn an_old_client_gets_no_chunks() {
    let upstream = Upstream::with(|seen, wire| {
        match seen.target.as_str() {
        "/chunked" => wire.chunked(200, &[], &[b"in ", b"pieces"]),
        "/until-the-end" => {
            wire.raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nin pieces");
            wire.close();
        }
        "/hinted" => wire.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nin pieces"),
        _ => wire.answer(200, &[], b"in pieces"),
    }
    });
    let gateway =
        routes(&upstream, &[("/*", json!({})), ("/changed", json!({"echo": {"body": "in pieces"}}))]);
    for path in ["/chunked", "/until-the-end", "/hinted", "/whole", "/changed"] {
        for keeps in ["", "Connection: keep-alive\r\n"] {
            let request = format!("GET {path} HTTP/1.0\r\nHost: a\r\n{keeps}\r\n");
            if keeps.is_empty() || !matches!(path, "/hinted" | "/whole") {
                // Without a length the body ends with the connection.
                let answer = told(&gateway, &request);
                assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
                assert!(!answer.to_lowercase().contains("transfer-encoding"), "{path}: {answer}");
                assert!(answer.contains("\r\nConnection: close\r\n"), "{path}: {answer}");
                assert!(answer.ends_with("\r\n\r\nin pieces"), "{path}: {answer}");
            } else {
                let mut client = Connection::open(gateway.ports.http);
                for _ in 0..2 {
                    let answer = client.raw(request.as_bytes()).response().expect(200);
                    answer.expect_header("connection", "keep-alive").expect_body("in pieces");
                }
            }
        }
    }
    // Today's clients keep theirs.
    let mut client = Connection::open(gateway.ports.http);
    for path in ["/chunked", "/until-the-end", "/changed"] {
        let answer = client.exchange(&gateway.request("GET", path)).expect(200).expect_body("in pieces");
        answer.expect_header("transfer-encoding", "chunked");
    }
}

#[test]
fn a_length_is_said_once() {
    let twice = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok";
    let upstream = Upstream::with(|_, wire| wire.raw(twice));
    let gateway = routes(&upstream, &[("/*", json!({}))]);
    assert_eq!(gateway.get("/").expect(200).expect_body("ok").all("content-length"), ["2"]);
    let unlike = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok";
    let upstream = Upstream::with(|_, wire| wire.raw(unlike));
    let gateway = routes(&upstream, &[("/*", json!({}))]);
    gateway.get("/").expect(502);
}
