//! ext-plugin-post-resp over what else may lie on the way: TLS, kept connections, retries, HTTP/2, trailers.

use serde_json::{Value, json};

use super::one_worker;
use crate::support::{
    client::Connection,
    gateway::{Gateway, Setup, free_port},
    peer::SecureServer,
    runner::{Runner, conf},
    tool,
};

fn post(name: &str, value: impl Into<Value>) -> Value {
    json!({"ext-plugin-post-resp": conf(name, value)})
}

/// What leaves an answer as it is, changes its head, waits for its body.
fn that_keep_the_body() -> [Value; 3] {
    [
        post("nothing", ""),
        post("respond", json!({"headers": [["x-r", "1"]]})),
        post("look", json!(["respbody", "reqbody"])),
    ]
}

struct Fixture {
    gateway: Gateway,
    server: SecureServer,
    _runner: Runner,
}

impl Fixture {
    #[track_caller]
    fn new(plugins: Value, scheme: &str, dead: bool) -> Self {
        let (server, runner) = (SecureServer::start(), Runner::start());
        let mut nodes = json!({format!("127.0.0.1:{}", server.port): 1});
        if dead {
            nodes[format!("127.0.0.1:{}", free_port())] = 1.into();
        }
        let upstream = json!({"type": "roundrobin", "scheme": scheme, "nodes": nodes});
        let route = json!({"id": "1", "uri": "/*", "plugins": plugins, "upstream": upstream});
        let setup = Setup::file(json!({"routes": [route]}))
            .set("ext-plugin.path_for_test", runner.socket().display().to_string());
        Self { gateway: one_worker(setup).start(), server, _runner: runner }
    }

    /// Head, body and trailers as curl prints them, over HTTP/2.
    fn http2(&self, flags: &[&str], target: &str) -> String {
        let url = format!("http://127.0.0.1:{}{target}", self.gateway.ports.http);
        let fixed = ["-sS", "--http2-prior-knowledge", "-D", "-"];
        tool::stdout("curl", &[&fixed[..], flags, &[&url]].concat()).replace('\r', "").to_lowercase()
    }
}

#[test]
fn a_tls_upstream_is_asked_once_over_one_connection() {
    for plugins in that_keep_the_body() {
        let fixture = Fixture::new(plugins, "https", false);
        let mut client = Connection::open(fixture.gateway.ports.http);
        let mut asked = 0;
        for _ in 0..2 {
            for (method, status) in [("GET", 200), ("HEAD", 200), ("GET", 204), ("GET", 304), ("POST", 404)] {
                asked += 1;
                let mut request = fixture.gateway.request(method, &format!("/?status={status}"));
                if method == "POST" {
                    request = request.body(vec![b'x'; 100_000]);
                }
                let answer = client.exchange(&request).expect(status);
                let answer = answer.expect_header("x-requests", &asked.to_string());
                let answer = answer.expect_header("x-connections", "1").expect_header("x-protocol", "1.1");
                match (method, status) {
                    ("POST", _) => _ = answer.expect_header("x-received", "100000"),
                    ("GET", 200) => _ = answer.expect_body("from the upstream"),
                    _ => assert!(answer.body.is_empty()),
                }
            }
        }
    }
}

#[test]
fn a_tls_upstream_s_answer_is_replaced() {
    let replaced = post("respond", json!({"status": 201, "headers": [["x-r", "1"]], "body": "new"}));
    let fixture = Fixture::new(replaced, "https", false);
    let mut client = Connection::open(fixture.gateway.ports.http);
    for round in 1..4 {
        let answer = client.exchange(&fixture.gateway.request("GET", "/")).expect(201).expect_body("new");
        answer.expect_header("x-requests", &round.to_string()).expect_header("x-r", "1");
    }
}

#[test]
fn nodes_behind_tls_are_tried_again() {
    for plugins in that_keep_the_body() {
        let fixture = Fixture::new(plugins, "https", true);
        for round in 1..7 {
            let answer = fixture.gateway.get("/").expect(200).expect_body("from the upstream");
            answer.expect_header("x-requests", &round.to_string());
        }
    }
}

#[test]
fn clients_with_http2() {
    for (at, plugins) in that_keep_the_body().into_iter().enumerate() {
        let fixture = Fixture::new(plugins, "https", false);
        let got = fixture.http2(&[], "/");
        assert!(got.starts_with("http/2 200") && got.ends_with("\n\nfrom the upstream"), "{got}");
        assert_eq!(got.contains("x-r: 1"), at == 1, "{got}");
        assert!(got.contains("content-type: text/up"), "{got}");
        for (flags, target, status) in [
            (&["-I"][..], "/", "200"),
            (&[], "/?status=204", "204"),
            (&[], "/?status=304", "304"),
            (&["-d", "body"], "/?status=418", "418"),
        ] {
            let got = fixture.http2(flags, target);
            assert!(got.starts_with(&format!("http/2 {status}")), "{target}: {got}");
        }
        let got = fixture.http2(&[], "/");
        assert!(got.contains("x-requests: 6\n"), "each was asked for once: {got}");
    }
    let fixture = Fixture::new(post("respond", json!({"status": 202, "body": "new"})), "https", false);
    let got = fixture.http2(&[], "/");
    assert!(got.starts_with("http/2 202") && got.ends_with("\n\nnew"), "{got}");
    let fixture = Fixture::new(post("fault", "close"), "https", false);
    let got = fixture.http2(&[], "/");
    assert!(got.starts_with("http/2 503") && got.contains("503 service temporarily unavailable"), "{got}");
    assert!(!got.contains("x-requests"), "{got}");
}

#[test]
fn trailers() {
    for plugins in that_keep_the_body() {
        let fixture = Fixture::new(plugins.clone(), "grpcs", false);
        let got = fixture.http2(&["-d", "body"], "/");
        assert!(got.starts_with("http/2 200") && got.contains("x-protocol: 2.0"), "{got}");
        assert!(got.contains("from the upstream"), "{got}");
        assert!(got.contains("x-trailer: at the end"), "{plugins}: {got}");
        assert!(fixture.server.port > 0);
    }
    let fixture = Fixture::new(post("respond", json!({"body": "new"})), "grpcs", false);
    let got = fixture.http2(&["-d", "body"], "/");
    assert!(got.starts_with("http/2 200") && got.contains("new"), "{got}");
}
