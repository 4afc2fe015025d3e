//! Requests that are sent before their predecessors are answered (RFC 9112 §9.3.2).

use serde_json::json;

use crate::support::{
    Gate,
    client::Connection,
    gateway::{Gateway, Setup},
    upstream::{Seen, Upstream},
};

/// A request for a path, with a body in one of the two framings or without.
fn sent(path: &str, body: Option<(&[u8], bool)>) -> Vec<u8> {
    let head = |framing: String| format!("POST {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n").into_bytes();
    match body {
        None => format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes(),
        Some((body, false)) => [head(format!("Content-Length: {}\r\n", body.len())), body.to_vec()].concat(),
        Some((body, true)) => {
            let size = format!("{:x}\r\n", body.len());
            let chunks = [size.as_bytes(), body, b"\r\n0\r\n\r\n"].concat();
            [head("Transfer-Encoding: chunked\r\n".to_owned()), chunks].concat()
        }
    }
}

/// Answers with the path and the length of the body.
fn telling() -> Upstream {
    Upstream::with(|seen: &Seen, wire| {
        let text = format!("{} {}", seen.target, seen.body.len());
        wire.answer(200, &[], text.as_bytes());
    })
}

fn plain(upstream: &Upstream) -> Gateway {
    Gateway::file(json!({"routes": [{"id": "1", "uri": "/*", "upstream": upstream.resource()}]}))
}

#[test]
fn requests_in_one_piece_are_answered_in_their_order() {
    let upstream = telling();
    // The second plugin reads bodies, which are then read again by the framework.
    for plugins in [json!({}), json!({"request-validation": {"body_schema": {"minLength": 0}}})] {
        let mut route = json!({"id": "1", "uri": "/*", "upstream": upstream.resource()});
        let reads = plugins.as_object().is_some_and(|plugins| !plugins.is_empty());
        route["plugins"] = plugins;
        let gateway = Gateway::file(json!({"routes": [route]}));
        let (small, large) = (b"{}".to_vec(), [b"\"".to_vec(), vec![b'x'; 150_000], b"\"".to_vec()].concat());
        let bodies = [(&small, false), (&large, false), (&small, true), (&large, true)];
        let mut all = Vec::new();
        let mut expected = Vec::new();
        for (at, (body, chunked)) in bodies.iter().cycle().take(12).enumerate() {
            all.extend(sent(&format!("/{at}"), Some((body, *chunked))));
            expected.push(format!("/{at} {}", body.len()));
            if !reads {
                all.extend(sent(&format!("/{at}/then"), None));
                expected.push(format!("/{at}/then 0"));
            }
        }
        let mut client = Connection::open(gateway.ports.http);
        std::thread::scope(|threads| {
            let mut writer = client.writer();
            // Together they are more than the connection holds while nobody reads the answers.
            threads.spawn(move || std::io::Write::write_all(&mut writer, &all).expect("it is taken"));
            for text in &expected {
                client.response().expect(200).expect_body(text);
            }
        });
    }
}

#[test]
fn a_request_may_come_while_its_predecessor_is_served() {
    let gate = Gate::default();
    let upstream = Upstream::holding(&gate);
    let gateway = plain(&upstream);
    let mut client = Connection::open(gateway.ports.http);
    client.raw(&sent("/hold", None));
    crate::support::eventually("the first is being served", || upstream.count() == 1);
    // In pieces, the first of which are looked at for the end of the connection only.
    let second = sent("/2", Some((b"body", false)));
    for piece in second.chunks(30) {
        client.raw(piece);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    gate.open();
    client.response().expect(200);
    client.response().expect(200);
    assert_eq!((&*upstream.last().target, &*upstream.last().body), ("/2", &b"body"[..]));
}

#[test]
fn each_is_judged() {
    let upstream = telling();
    let gateway = plain(&upstream);
    for bad in [
        &b"GET /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
        b"nonsense\r\n\r\n",
        b"POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n;\r\n\r\n",
    ] {
        let mut client = Connection::open(gateway.ports.http);
        client.raw(&[&sent("/1", None)[..], bad, &sent("/3", None)].concat());
        client.response().expect(200).expect_body("/1 0");
        client.response().expect(400);
        assert!(client.ends(), "nothing behind it is served");
    }
    assert_eq!(upstream.count(), 3, "only the first of each three arrived");
}

#[test]
fn what_follows_the_last_request_is_not_served() {
    let upstream = telling();
    let gateway = plain(&upstream);
    let mut client = Connection::open(gateway.ports.http);
    let last = b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    client.raw(&[&last[..], &sent("/2", None)].concat());
    client.response().expect(200);
    assert!(client.ends());
    assert_eq!(upstream.count(), 1);
}

#[test]
fn the_access_log_tells() {
    let upstream = telling();
    let routes = json!({"routes": [{"id": "1", "uri": "/*", "upstream": upstream.resource()}]});
    let setup = Setup::file(routes).set("nginx_config.http.access_log_format", "$uri $pipe");
    let gateway = setup.set("nginx_config.http.access_log_buffer", 1).start();
    let mut client = Connection::open(gateway.ports.http);
    client.raw(&[sent("/1", None), sent("/2", None)].concat());
    client.response().expect(200);
    client.response().expect(200);
    client.raw(&sent("/3", None)).response().expect(200);
    let lines = || std::fs::read_to_string(gateway.path("logs/access.log")).unwrap_or_default();
    crate::support::eventually("three lines", || lines().lines().count() == 3);
    assert_eq!(lines(), "/1 .\n/2 p\n/3 .\n");
}
