//! What must be refused: cleanly, with the end of the connection where its state is in doubt, and never forwarded.
//!
//! After each case the gateway must still serve. Bad input of the Admin API is here too.

use std::{
    cell::{Cell, RefCell},
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    client::{Connection, Request},
    eventually,
    gateway::{Gateway, KEY, Setup},
    upstream::Upstream,
};

/// A header that makes a request longer than the preface of HTTP/2, for which a listener without TLS waits.
const LONG_ENOUGH: &str = "X-Padding: 0123456789\r\n";

struct Fixture {
    gateway: Gateway,
    upstream: Upstream,
    /// What went wrong, so that one run shows every case.
    faults: RefCell<Vec<String>>,
    /// Requests that are in the access log, or will be.
    asked: Cell<usize>,
}

impl Fixture {
    fn new() -> Self {
        let upstream = Upstream::echo();
        let routes = json!({"routes": [{"id": "1", "uri": "/*", "upstream": upstream.resource()}]});
        let setup = Setup::file(routes).set("nginx_config.http.access_log_format", "$status");
        let gateway = setup.set("nginx_config.http.access_log_buffer", 1).start();
        Self { gateway, upstream, faults: RefCell::default(), asked: Cell::new(0) }
    }

    fn fault(&self, text: String) {
        self.faults.borrow_mut().push(text);
    }

    /// The statuses in the access log, when there are at least so many.
    fn logged(&self, count: usize) -> Vec<String> {
        let log = || fs::read_to_string(self.gateway.path("logs/access.log")).unwrap_or_default();
        eventually("the access log's line", || log().lines().count() >= count);
        log().lines().map(str::to_owned).collect()
    }

    /// The bytes are answered with one of the statuses and its page, the connection ends, nothing went on, and there
    /// is one line in the access log.
    fn refused(&self, what: &str, bytes: &[u8], statuses: &[u16]) {
        self.gateway.get("/alive").expect(200);
        let logged = self.asked.replace(self.asked.get() + 2) + 1;
        // A line is written after its answer is sent, so that of another connection could come before it.
        self.logged(logged);
        let before = self.upstream.count();
        let mut client = Connection::open(self.gateway.ports.http);
        match client.raw(bytes).try_response_within(PATIENCE) {
            Err(e) => self.fault(format!("{what}: no answer ({e})")),
            Ok(answer) if !statuses.contains(&answer.status) => {
                self.fault(format!("{what}: {} {}", answer.status, answer.text()));
            }
            Ok(answer) => {
                let page = format!("<center><h1>{} ", answer.status);
                if !answer.text().contains(&page) || answer.header("Server").is_none() {
                    self.fault(format!("{what}: not the usual page: {}", answer.text()));
                }
                if !client.ends() {
                    self.fault(format!("{what}: the connection stays open"));
                }
                let lines = self.logged(logged + 1).split_off(logged);
                if lines != [answer.status.to_string()] {
                    self.fault(format!("{what}: in the access log is {lines:?}"));
                }
            }
        }
        if self.upstream.count() != before {
            self.fault(format!("{what}: it was forwarded"));
        }
    }

    /// The bytes are answered once with 200, and exactly one request went on.
    #[track_caller]
    fn accepted(&self, what: &str, bytes: &[u8]) {
        let before = self.upstream.count();
        let response = Connection::open(self.gateway.ports.http).raw(bytes).response();
        assert_eq!(response.status, 200, "{what}: {}", response.text());
        assert_eq!(self.upstream.count(), before + 1, "{what}");
        self.asked.set(self.asked.get() + 1);
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let faults = self.faults.borrow();
        assert!(faults.is_empty() || std::thread::panicking(), "{}", faults.join("\n"));
    }
}

#[test]
fn request_lines() {
    let fixture = Fixture::new();
    for line in [
        "GET",
        "GET /",
        "GET  / HTTP/1.1",
        "GET / HTTP/9.9",
        "GET / HTTX/1.1",
        "G@T / HTTP/1.1",
        "\u{16}\u{3}\u{1}\u{2}",
        "GET nothing HTTP/1.1",
        "get / HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /a\u{1}b HTTP/1.1",
        "GET /a\u{7f} HTTP/1.1",
        "GET /",
    ] {
        fixture.refused(line, format!("{line}\r\nHost: a\r\n{LONG_ENOUGH}\r\n").as_bytes(), &[400, 505]);
    }
    fixture.refused("NUL in the path", b"GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n", &[400]);
    fixture.refused("HTTP/2 in HTTP/1", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", &[505]);
    fixture.refused("a tunnel", b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", &[405]);
    fixture.accepted("empty lines in front", b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
}

#[test]
fn what_is_no_request_gets_the_usual_page_and_its_line_in_the_access_log() {
    let upstream = Upstream::echo();
    let setup = Setup::file(json!({"routes": [{"id": "1", "uri": "/*", "upstream": upstream.resource()}]}));
    let format = "$remote_addr|$request|$status|$http_host";
    let setup = setup.set("nginx_config.http.access_log_format", format);
    let gateway = setup.set("nginx_config.http.access_log_buffer", 1).start();
    let mut client = Connection::open(gateway.ports.http);
    // The second request of a connection, which arrives in pieces; the last has the fault and what is logged of it.
    client.exchange(&gateway.request("GET", "/first")).expect(200);
    client.raw(b"N").raw(b"O\x01 /\"xy HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.response().expect(400).expect_in_body("<center><h1>400 Bad Request</h1></center>");
    assert_eq!(answer.header("Connection"), Some("close"));
    assert!(client.ends());
    let log = || fs::read_to_string(gateway.path("logs/access.log")).unwrap_or_default();
    eventually("both lines", || log().lines().count() == 2);
    assert_eq!(log().lines().last(), Some("127.0.0.1|NO\\x01 /\\x22xy HTTP/1.1|400|-"));
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_bad_header_line_does_not_hide_who_sent_it() {
    let upstream = Upstream::echo();
    let setup = Setup::file(json!({"routes": [{"id": "1", "uri": "/*", "upstream": upstream.resource()}]}));
    let format = "$remote_addr|$request|$uri|$http_host|$http_user_agent|$status";
    let setup = setup.set("nginx_config.http.access_log_format", format);
    let setup = setup.set("nginx_config.http.real_ip_from", json!(["127.0.0.1"]));
    let gateway = setup.set("nginx_config.http.access_log_buffer", 1).start();
    let mut client = Connection::open(gateway.ports.http);
    client.raw(b"PUT /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nX-Real-IP: 192.0.2.7\r\nnonsense\r\nUser-Agent: me\r\n\r\n");
    client.raw(b"{}").response().expect(400);
    assert!(client.ends());
    let log = || fs::read_to_string(gateway.path("logs/access.log")).unwrap_or_default();
    eventually("a line", || log().contains('\n'));
    assert_eq!(log().lines().next(), Some("192.0.2.7|PUT /a?b HTTP/1.1|/a|a|me|400"));
    // nginx has a page of its own for a head that is too large.
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n", "a".repeat(40_000));
    let answer = Connection::open(gateway.ports.http).raw(large.as_bytes()).response().expect(400);
    assert!(
        answer.text().contains("<title>400 Request Header Or Cookie Too Large</title>"),
        "{}",
        answer.text()
    );
}

#[test]
fn http2_listeners_judge_heads_too() {
    let upstream = Upstream::echo();
    let setup = Setup::file(json!({"routes": [{"id": "1", "uri": "/*", "upstream": upstream.resource()}]}));
    let gateway = setup.set("apisix.enable_http2", true).start();
    // It begins as HTTP/2 does.
    let message = b"PRI / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n";
    let answer = Connection::open(gateway.ports.http).raw(message).response().expect(501);
    assert!(answer.header("Server").is_some());
    let message = b"PRI / HTTP/1.1\r\nHost: a\r\n\r\nmore than the preface";
    Connection::open(gateway.ports.http).raw(message).response().expect(200);
    assert_eq!(upstream.last().method, "PRI");
}

#[test]
fn characters_that_have_no_place_in_a_target_are_encoded() {
    let fixture = Fixture::new();
    for (target, encoded) in [
        (&b"/<a>"[..], "/%3Ca%3E"),
        (b"/x?<a>=\"b\"", "/x?%3Ca%3E=%22b%22"),
        (b"/`?`", "/%60?`"),
        (b"/{}|^\\[]", "/{}|^\\[]"),
        (b"/\xff?\xfe", "/%FF?%FE"),
    ] {
        let message = [b"GET ", target, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        fixture.accepted(encoded, &message);
        assert_eq!(fixture.upstream.last().target, encoded);
    }
    // With a body behind it, on a connection that stays open.
    let mut client = Connection::open(fixture.gateway.ports.http);
    for _ in 0..2 {
        client.raw(b"POST /< HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
        client.response().expect(200);
        assert_eq!(
            (fixture.upstream.last().target, fixture.upstream.last().body),
            ("/%3C".into(), b"hello".into())
        );
    }
}

#[test]
fn an_escaped_target_matches_what_it_says() {
    let upstream = Upstream::echo();
    let gateway = Gateway::file(json!({
        "routes": [
            {"id": "1", "uri": "/<a>", "vars": [["arg_q", "==", "<"]], "upstream": upstream.resource()},
        ],
    }));
    for target in ["/<a>?q=<", "/%3Ca%3E?q=%3C"] {
        let message = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        Connection::open(gateway.ports.http).raw(message.as_bytes()).response().expect(200);
    }
}

#[test]
fn paths() {
    let fixture = Fixture::new();
    for path in [
        "/..",
        "/../etc/passwd",
        "/a/../../b",
        "/%2e%2e/x",
        "/a/%2E%2e/%2e./b",
        "/%00",
        "/a%0",
        "/a%zz",
        "/%",
    ] {
        fixture.refused(path, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(), &[400]);
    }
    // Encoded twice it is a name like any other, and decoded once only.
    fixture.accepted("/%252e%252e/x", b"GET /%252e%252e/x HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(fixture.upstream.last().target, "/%252e%252e/x");
}

#[test]
fn an_encoded_path_does_not_evade_a_route() {
    let upstream = Upstream::echo();
    let gateway = Gateway::file(json!({
        "routes": [
            {"id": "1", "uri": "/admin/*", "plugins": {"key-auth": {}}, "upstream": upstream.resource()},
            {
                "id": "2",
                "uri": "/*",
                "plugins": {"uri-blocker": {"block_rules": ["^/private/"]}},
                "upstream": upstream.resource(),
            },
        ],
    }));
    for path in [
        "/admin/x",
        "//admin/x",
        "/./admin/x",
        "/%61dmin/x",
        "/a/..//admin/x",
        "/x/%2e%2e/admin/x",
        "/admin%2Fx",
    ] {
        gateway.get(path).expect(401);
        gateway.get(&path.replace("admin", "private").replace("%61dmin", "%70rivate")).expect(403);
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn sizes() {
    let fixture = Fixture::new();
    let long = "a".repeat(9_000);
    fixture.refused("a long target", format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(), &[414]);
    for (what, head) in [
        ("a large header", format!("X: {}\r\n\r\n", "a".repeat(70_000))),
        ("a large header that comes alone", format!("X: {}\r\n\r\n", "a".repeat(33_000))),
        ("many headers", "X: y\r\n".repeat(3_000) + "\r\n"),
        ("one header too many", "X: y\r\n".repeat(256) + "\r\n"),
        ("an endless header", format!("X: {}", "a".repeat(3_000_000))),
    ] {
        fixture.refused(what, format!("GET / HTTP/1.1\r\nHost: a\r\n{head}").as_bytes(), &[400]);
    }
    fixture.accepted(
        "as many headers as there may be",
        format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(255)).as_bytes(),
    );
    let fair = "a".repeat(6_000);
    fixture.accepted(
        "a fair header",
        format!("GET /{fair} HTTP/1.1\r\nHost: a\r\nX: {fair}\r\n\r\n").as_bytes(),
    );
}

#[test]
fn headers() {
    let fixture = Fixture::new();
    for (what, lines) in [
        ("no Host", ""),
        ("two Hosts", "Host: a\r\nHost: b\r\n"),
        ("a Host that is none", "Host: a b\r\n"),
        ("a Host with a path", "Host: a/b\r\n"),
        ("no colon", "Host: a\r\nnonsense\r\n"),
        ("an empty name", "Host: a\r\n: x\r\n"),
        ("a blank in a name", "Host: a\r\nX Y: x\r\n"),
        ("a blank before the colon", "Host: a\r\nX : x\r\n"),
        ("NUL in a value", "Host: a\r\nX: a\0b\r\n"),
        ("a control character in a value", "Host: a\r\nX: a\u{1}b\r\n"),
        ("a folded line", "Host: a\r\nX: a\r\n b\r\n"),
        ("a folded line with a tab", "Host: a\r\nX: a\r\n\tb\r\n"),
        ("a bare carriage return", "Host: a\r\nX: a\rY: b\r\n"),
        ("DEL in a value", "Host: a\r\nX: a\u{7f}\r\n"),
        ("a letter beyond ASCII in a name", "Host: a\r\nXé: b\r\n"),
        ("a separator in a name", "Host: a\r\nX@Y: b\r\n"),
        ("a user in Host", "Host: me@a\r\n"),
    ] {
        fixture.refused(what, format!("GET / HTTP/1.1\r\n{lines}{LONG_ENOUGH}\r\n").as_bytes(), &[400]);
    }
    let absolute = b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n";
    fixture.refused("a target with another host", absolute, &[400]);
    fixture.accepted("a target with its host", b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n");
    let old = b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    fixture.refused("chunks in HTTP/1.0", old, &[400]);
    fixture.refused("bare line feeds", b"GET / HTTP/1.1\nHost: a\n\n", &[400]);
    fixture.refused("one bare line feed", b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", &[400]);
}

#[test]
fn framing() {
    let fixture = Fixture::new();
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for (what, lines) in [
        ("both framings", "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n"),
        ("both framings, the other way round", "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n"),
        ("two lengths", "Content-Length: 0\r\nContent-Length: 5\r\n"),
        ("the same length twice", "Content-Length: 5\r\nContent-Length: 5\r\n"),
        ("a list of lengths", "Content-Length: 5, 5\r\n"),
        ("a negative length", "Content-Length: -1\r\n"),
        ("a length with a sign", "Content-Length: +5\r\n"),
        ("a hexadecimal length", "Content-Length: 0x5\r\n"),
        ("an endless length", "Content-Length: 99999999999999999999999\r\n"),
        ("an empty length", "Content-Length:\r\n"),
        ("an encoding nobody knows", "Transfer-Encoding: xchunked\r\n"),
        ("chunked twice", "Transfer-Encoding: chunked, chunked\r\n"),
        ("chunked before another", "Transfer-Encoding: chunked, identity\r\n"),
        ("two encodings", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n"),
        ("an encoding with a control character", "Transfer-Encoding: \u{b}chunked\r\n"),
        ("a blank before the colon", "Transfer-Encoding : chunked\r\n"),
    ] {
        let message = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n0\r\n\r\n{smuggled}");
        fixture.refused(what, message.as_bytes(), &[400, 411, 413, 501]);
    }
    assert!(fixture.upstream.seen().iter().all(|seen| seen.target != "/smuggled"));
}

#[test]
fn chunks() {
    let fixture = Fixture::new();
    for (what, body) in [
        ("a size that is none", "xyz\r\nhello\r\n0\r\n\r\n"),
        ("a negative size", "-5\r\nhello\r\n0\r\n\r\n"),
        ("an endless size", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ("data longer than its size", "3\r\nhello\r\n0\r\n\r\n"),
        ("an empty size", "\r\n\r\n"),
        ("an empty size at the end", "5\r\nhello\r\n\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("an extension without a size", ";a\r\n\r\n"),
        ("a bare line feed", "5\nhello\r\n0\r\n\r\n"),
        ("a bare line feed in an extension", "5;\nhello\r\n0\r\n\r\n"),
        ("a bare line feed in a trailer", "0\r\nX: y\n\r\n"),
        ("a control character in an extension", "5;\0\r\nhello\r\n0\r\n\r\n"),
    ] {
        let message = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        // The head may have gone on before the body proved wrong, but no complete request may.
        fixture.refused(what, message.as_bytes(), &[400]);
    }
    // What comes later than the head is looked at, too; its request has gone on, but never comes to an end.
    let mut client = Connection::open(fixture.gateway.ports.http);
    client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    eventually("the upstream is asked", || fixture.upstream.connections() > 0);
    client.raw(b"\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").response().expect(400);
    assert!(client.ends());
    assert!(fixture.upstream.seen().iter().all(|seen| !["/", "/smuggled"].contains(&&*seen.target)));
    let extended = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b;c=\"d\"\r\nhello\r\n0\r\n\r\n";
    fixture.accepted("chunk extensions", extended);
    assert_eq!(fixture.upstream.last().body, b"hello");
    let trailers =
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n";
    fixture.accepted("a trailer", trailers);
    let mut client = Connection::open(fixture.gateway.ports.http);
    for size in [1, 70_000, 300_000, 3] {
        let request = fixture.gateway.request("POST", "/").chunked("x".repeat(size));
        client.exchange(&request).expect(200);
        assert_eq!(fixture.upstream.last().body.len(), size);
        client.exchange(&fixture.gateway.request("GET", "/between")).expect(200);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_or_not_at_all() {
    let fixture = Fixture::new();
    let mut client = Connection::open(fixture.gateway.ports.http);
    client.raw(
        b"POST /0 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /1 HTTP/1.1\r\nHost: a\r\n\r\n\
          GET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    let mut answered = 0;
    while let Ok(response) = client.try_response_within(PATIENCE) {
        response.expect(200).expect_in_body(&format!("\"uri\":\"/{answered}\""));
        answered += 1;
    }
    assert!(answered == 1 || answered == 3, "{answered} of 3 were answered");
    assert_eq!(fixture.upstream.count(), answered, "what is not answered is not forwarded");
}

#[test]
fn clients_that_go_away() {
    let fixture = Fixture::new();
    for beginning in
        ["", "G", "GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf"]
    {
        Connection::open(fixture.gateway.ports.http).raw(beginning.as_bytes());
        fixture.gateway.get("/alive").expect(200);
    }
    for _ in 0..20 {
        Connection::open(fixture.gateway.ports.http).raw(b"GET /?delay=50 HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    fixture.gateway.get("/alive").expect(200);
}

/// What the Admin API must say to a bad resource, and that nothing of it is kept.
#[track_caller]
fn admin_refuses(gateway: &Gateway, method: &str, path: &str, body: &str, part: &str) {
    let response = gateway.admin(method, path).header("Content-Type", "application/json").body(body).send();
    assert_eq!(response.status, 400, "{method} {path} {body}: {}", response.text());
    let message = response.json();
    let message = message["error_msg"].as_str().unwrap_or_default();
    assert!(message.contains(part), "{method} {path} {body}: {message}");
}

#[test]
fn resources_that_are_none() {
    let gateway = Gateway::start();
    let route = |extra: Value| {
        let mut route = json!({"uri": "/x", "upstream": {"type": "roundrobin", "nodes": {"127.0.0.1:1": 1}}});
        route.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        route.to_string()
    };
    let refuse = |body: &str, part: &str| admin_refuses(&gateway, "PUT", "/routes/1", body, part);
    refuse("{\"uri\":\"/x\",", "invalid request body: ");
    refuse("", "missing configurations");
    refuse("[]", "invalid configuration: ");
    refuse("{\"uri\":1}", "property \"uri\" validation failed: wrong type: expected string, got number");
    refuse("{\"plugins\":{}}", "allOf 1 failed: value should match only one schema, but matches none");
    refuse(&route(json!({"plugins": {"no-such-plugin": {}}})), "unknown plugin [no-such-plugin]");
    refuse(&route(json!({"plugins": {"key-auth": "x"}})), "invalid plugin conf \"x\" for plugin [key-auth]");
    refuse(&route(json!({"plugins": {"ip-restriction": {"whitelist": ["nonsense"]}}})), "ip-restriction");
    refuse(&route(json!({"plugins": {"uri-blocker": {"block_rules": ["("]}}})), "uri-blocker");
    refuse(&route(json!({"vars": [["a", "no-operator", "1"]]})), "failed to validate the 'vars' expression");
    refuse(&route(json!({"no_such_property": 1})), "additional properties forbidden, found no_such_property");
    refuse(&route(json!({"host": "a", "hosts": ["b"]})), "only one of host or hosts is allowed");
    refuse(
        &route(json!({"service_id": "none"})),
        "failed to fetch service info by service id [none], response code: 404",
    );
    refuse(
        &route(json!({"upstream_id": "none"})),
        "failed to fetch upstream info by upstream id [none], response code: 404",
    );
    refuse(&route(json!({"create_time": 1})), "the property is forbidden:  create_time");
    admin_refuses(&gateway, "PUT", "/routes", &route(json!({})), "missing route id");
    admin_refuses(&gateway, "PUT", "/routes/1", &route(json!({"id": "2"})), "wrong route id");
    admin_refuses(&gateway, "POST", "/routes/1", &route(json!({})), "wrong route id, do not need it");
    for id in ["a b", "%00", "a%2fb%2fc", "%e4%b8%ad"] {
        let response = gateway.admin("PUT", &format!("/routes/{id}")).json(&json!({"uri": "/x"})).send();
        assert!((400..500).contains(&response.status), "{id}: {}", response.status);
    }
    gateway.admin("PUT", "/no_such_kind/1").json(&json!({})).send().expect(404);
    assert_eq!(gateway.admin("GET", "/routes").send().expect(200).json()["total"], json!(0));
}

#[test]
fn one_key_cannot_belong_to_two_consumers() {
    let gateway = Gateway::start();
    gateway.put("/consumers", json!({"username": "jack", "plugins": {"key-auth": {"key": "same"}}}));
    let other = json!({"username": "jill", "plugins": {"key-auth": {"key": "same"}}}).to_string();
    admin_refuses(
        &gateway,
        "PUT",
        "/consumers",
        &other,
        "duplicate key of plugin key-auth found with consumer: jack",
    );
}

#[test]
fn the_admin_api_is_not_fooled() {
    let gateway = Gateway::start();
    let admin = |target: &str| Request::new(gateway.ports.admin, "GET", target);
    let denied = admin("/apisix/admin/routes").send().expect(401).json();
    assert_eq!(denied, json!({"error_msg": "failed to check token", "description": "missing apikey"}));
    let denied = admin("/apisix/admin/routes").header("X-API-KEY", "wrong").send().expect(401).json();
    assert_eq!(denied, json!({"error_msg": "failed to check token", "description": "wrong apikey"}));
    for target in [
        "/apisix/admin/../admin/routes",
        "//apisix//admin/routes",
        "/apisix/admin/%72outes",
        "/APISIX/ADMIN/ROUTES",
    ] {
        let status = admin(target).send().status;
        assert!(matches!(status, 400 | 401 | 404), "{target}: {status}");
    }
    admin(&format!("/apisix/admin/routes?api_key={KEY}")).send().expect(200);
    admin("/apisix/admin/routes").header("Cookie", &format!("x_api_key={KEY}")).send().expect(200);
    let huge = json!({"uri": "/x", "desc": "x".repeat(2_000_000)});
    gateway
        .admin("PUT", "/routes/1")
        .json(&huge)
        .send()
        .expect(400)
        .expect_in_body("is greater than the maximum size");
    gateway.admin("GET", "/routes").send().expect(200);
}

#[test]
fn a_client_that_sends_too_much_gets_to_read_why() {
    let gateway = Gateway::start();
    let mut client = TcpStream::connect(("127.0.0.1", gateway.ports.admin)).unwrap();
    let size = 20_000_000;
    let head = format!(
        "PUT /apisix/admin/routes/1 HTTP/1.1\r\nHost: a\r\nX-API-KEY: {KEY}\r\nContent-Length: {size}\r\n\r\n"
    );
    client.write_all(head.as_bytes()).unwrap();
    client.write_all(&vec![b'x'; size]).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(
        answer.contains("request size 20000000 is greater than the maximum size 1572864 allowed"),
        "{answer}"
    );
}

#[test]
fn who_may_not_reach_the_admin_api() {
    let gateway = Setup::new().set("deployment.admin.allow_admin", json!(["10.0.0.0/8"])).start();
    gateway.admin("GET", "/routes").send().expect(403);
}

#[test]
fn a_viewer_may_only_look() {
    let keys = json!([{"name": "admin", "key": KEY, "role": "admin"}, {"name": "viewer", "key": "look", "role": "viewer"}]);
    let gateway = Setup::new().set("deployment.admin.admin_key", keys).start();
    let viewer = |method: &str| {
        Request::new(gateway.ports.admin, method, "/apisix/admin/routes/1").header("X-API-KEY", "look")
    };
    viewer("GET").send().expect(404);
    let denied = viewer("PUT").json(&json!({"uri": "/x"})).send().expect(401).json();
    assert_eq!(denied["description"], json!("invalid method for role viewer"));
}
