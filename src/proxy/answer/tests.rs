use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Version, header};
use pingora::{
    apps::{HttpServerOptions, ServerApp},
    connectors::http::Connector,
    http::{RequestHeader, ResponseHeader},
    protocols::{http::client::HttpSession, l4::stream::Stream as Socket},
    server::configuration::ServerConf,
    upstreams::peer::HttpPeer,
};
use pingora_proxy::HttpProxy;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    builtin::{Enabled, shared::header as fields},
    control::Control,
    plugin::{
        answer::Answer,
        contract,
        def::PluginDef,
        env::BuildEnv,
        metrics::Metrics,
        phases::Phases,
        reply::{CONTINUE, Flow, Reply},
    },
    proxy::{Gateway, testing},
    resource::{Key, Kind},
    snapshot::compile::Env,
    store::{Entry, Event},
    vars::var::Var,
};

/// A plugin that does what its configuration says with the upstream's answer.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Probe {
    /// Asks for a variable.
    var: Option<String>,
    /// Asks for the request body.
    ask_request: bool,
    /// Asks for the body.
    ask: bool,
    /// How much of it.
    limit: Option<usize>,
    /// Lets the answer pass when it has no body for it.
    degrade: bool,
    /// Sets the status.
    status: Option<u16>,
    /// Replaces the body.
    replace: Option<String>,
    /// Answers instead.
    refuse: Option<u16>,
}

impl contract::Plugin for Probe {
    const NAME: &'static str = "probe";
    const PRIORITY: i32 = 1;
    const PHASES: Phases = Phases::RESPONSE;
    type Config = Probe;

    fn schema() -> Value {
        json!({"type": "object"})
    }

    fn build(config: Probe, _env: &BuildEnv<'_>) -> Result<Self, String> {
        Ok(config)
    }

    async fn response(&self, answer: &mut Answer) -> Flow {
        if let Some(name) = self.var.clone() {
            let value = answer.link.ask(move |x| x.var(&Var::parse(&name)).map(Cow::into_owned)).await;
            set(answer, "x-var", value.as_deref().unwrap_or("none"));
        }
        if self.ask_request {
            let length = match answer.link.request_body().await {
                Ok(body) => body.len(),
                Err(reply) => return reply.into(),
            };
            set(answer, "x-request-length", &length.to_string());
        }
        // A plugin of this phase may wait.
        tokio::task::yield_now().await;
        if self.ask {
            match answer.link.body(self.limit.unwrap_or(usize::MAX)).await {
                Ok(body) => set(answer, "x-length", &body.len().to_string()),
                Err(_) if self.degrade => return CONTINUE,
                Err(reply) => return reply.into(),
            }
        }
        if let Some(status) = self.status {
            answer.head.set_status(status).expect("a status");
        }
        if let Some(body) = &self.replace {
            fields::body_modified(&mut answer.head);
            answer.link.replace(body.clone());
        }
        self.refuse.map_or(CONTINUE, |status| Reply::message(status, "refused").into())
    }
}

fn set(answer: &mut Answer, name: &'static str, value: &str) {
    answer.head.insert_header(name, value).expect("a header");
}

static PROBE: PluginDef = PluginDef::of::<Probe>();

/// What reached the upstream.
#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    requests: AtomicUsize,
}

/// Gateway and upstream in this process, and a client that keeps connections.
struct World {
    counts: Arc<Counts>,
    client: Connector,
    port: u16,
    metrics: Arc<Metrics>,
    _stop: tokio::sync::watch::Sender<bool>,
}

impl World {
    async fn new(plugins: Value) -> World {
        let counts = Arc::new(Counts::default());
        let node = upstream(counts.clone()).await;
        let (stop, stopping) = tokio::sync::watch::channel(false);
        let gateway = gateway(&plugins, node);
        let metrics = gateway.metrics.clone();
        let mut proxy = HttpProxy::new(gateway, Arc::new(ServerConf::default()));
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        proxy.server_options = Some(options);
        proxy.handle_init_modules();
        let proxy = Arc::new(proxy);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (proxy, stopping) = (proxy.clone(), stopping.clone());
                tokio::spawn(async move {
                    let mut stream: pingora::protocols::Stream = Box::new(Socket::from(stream));
                    while let Some(again) = proxy.process_new(stream, &stopping).await {
                        stream = again;
                    }
                });
            }
        });
        World { counts, client: Connector::new(None), port, metrics, _stop: stop }
    }

    /// One request, on a connection that was kept if there is one.
    async fn exchange(&self, version: u8, method: Method, path: &str, body: &str) -> Got {
        let mut peer = HttpPeer::new(("127.0.0.1", self.port), false, String::new());
        peer.options.set_http_version(version, version);
        let (mut session, reused) = self.client.get_http_session(&peer).await.expect("a connection");
        session.set_read_timeout(Some(Duration::from_secs(30)));
        let mut head = RequestHeader::build(method, path.as_bytes(), None).expect("a request");
        if version == 2 {
            head.set_version(Version::HTTP_2);
            head.set_uri(format!("http://a.example{path}").parse().expect("a URI"));
        } else {
            head.insert_header(header::HOST, "a.example").expect("a header");
        }
        if !body.is_empty() {
            head.insert_header(header::CONTENT_LENGTH, body.len()).expect("a header");
        }
        session.write_request_header(Box::new(head)).await.expect("the gateway listens");
        if !body.is_empty() {
            let body = Bytes::copy_from_slice(body.as_bytes());
            session.write_request_body(body, true).await.expect("the gateway reads");
        }
        session.finish_request_body().await.expect("the gateway reads");
        let head = loop {
            session.read_response_header().await.expect("a response");
            let head = session.response_header().expect("it was read");
            if !head.status.is_informational() {
                break head.clone();
            }
        };
        let (body, whole) = read(&mut session).await;
        if whole {
            self.client.release_http_session(session, &peer, None).await;
        }
        Got { head, body, whole, reused }
    }

    fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::Relaxed)
    }

    fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Relaxed)
    }
}

async fn read(session: &mut HttpSession) -> (String, bool) {
    let mut body = Vec::new();
    loop {
        match session.read_response_body().await {
            Ok(Some(piece)) => body.extend_from_slice(&piece),
            Ok(None) => return (String::from_utf8_lossy(&body).into_owned(), true),
            Err(_) => return (String::from_utf8_lossy(&body).into_owned(), false),
        }
    }
}

/// What the client got.
struct Got {
    head: ResponseHeader,
    body: String,
    /// Whether the body came to its end.
    whole: bool,
    /// Whether the connection had served before.
    reused: bool,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.head.headers.get(name).map_or("", |value| value.to_str().expect("a text"))
    }

    /// `STATUS BODY`, the names of error pages cut off.
    fn text(&self) -> String {
        let body = if self.body.starts_with("<html>") { "(page)" } else { self.body.trim_end() };
        format!("{} {body}", self.head.status.as_u16())
    }
}

fn gateway(plugins: &Value, node: String) -> Gateway {
    let route = json!({"id": "1", "uri": "/*", "plugins": plugins,
        "upstream": {"type": "roundrobin", "nodes": {node: 1}}});
    let key = Key::new(Kind::Route, "1");
    let entry = Entry { key, value: route.to_string().into(), created: 1, modified: 1, expires: None };
    let registry = Enabled::new(None, Map::new()).with(&PROBE);
    let control = Control::new(Arc::new(Env { registry, ..Env::plain() }));
    control.apply(vec![Event::Reset { entries: vec![entry], revision: 1 }]);
    assert!(control.faults().is_empty(), "{:?}", control.faults());
    let metrics = control.env().metrics.clone();
    Gateway { current: control.current(), options: testing::options(), access_log: None, metrics }
}

/// A node that keeps its connections and answers by path.
async fn upstream(counts: Arc<Counts>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let node = listener.local_addr().expect("it is bound").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counts.connections.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(stream, counts.clone()));
        }
    });
    node
}

async fn serve(mut stream: TcpStream, counts: Arc<Counts>) -> Option<()> {
    let mut input = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = input.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut input).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&input[..end]).into_owned();
        counts.requests.fetch_add(1, Ordering::Relaxed);
        input.drain(..end);
        let lower = head.to_ascii_lowercase();
        if lower.contains("transfer-encoding: chunked") {
            while !input.ends_with(b"0\r\n\r\n") {
                stream.read_buf(&mut input).await.ok()?;
            }
            input.clear();
        }
        let length =
            lower.split_once("content-length: ").and_then(|(_, rest)| rest.lines().next()?.parse().ok());
        while input.len() < length.unwrap_or(0) {
            stream.read_buf(&mut input).await.ok()?;
        }
        input.drain(..length.unwrap_or(0));
        let path = head.split(' ').nth(1)?.to_owned();
        answer(&mut stream, &path, head.starts_with("HEAD ")).await?;
    }
}

async fn answer(stream: &mut TcpStream, path: &str, bare: bool) -> Option<()> {
    let sized = |length: usize| format!("HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: {length}\r\n\r\n");
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    match path {
        "/sized" if bare => send(stream, &sized(5)).await,
        "/sized" => send(stream, &format!("{}hello", sized(5))).await,
        "/empty" => send(stream, &sized(0)).await,
        "/chunked" => {
            send(stream, &format!("{chunked}3\r\nhel\r\n")).await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
            send(stream, "2\r\nlo\r\n0\r\n\r\n").await
        }
        "/large" => send(stream, &format!("{}{}", sized(1 << 20), "x".repeat(1 << 20))).await,
        "/large-chunked" => {
            send(stream, &format!("{chunked}100000\r\n{}\r\n0\r\n\r\n", "x".repeat(1 << 20))).await
        }
        "/204" => send(stream, "HTTP/1.1 204 No Content\r\n\r\n").await,
        "/304" => send(stream, "HTTP/1.1 304 Not Modified\r\nETag: \"e\"\r\n\r\n").await,
        "/hints" => {
            send(stream, &format!("HTTP/1.1 103 Early Hints\r\nX-Hint: 1\r\n\r\n{}hello", sized(5))).await
        }
        "/broken" => {
            send(stream, &format!("{}hel", sized(5))).await?;
            None
        }
        "/endless" => {
            send(stream, chunked).await?;
            loop {
                send(stream, "3\r\ntic\r\n").await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        _ => send(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await,
    }
}

async fn send(stream: &mut TcpStream, text: &str) -> Option<()> {
    stream.write_all(text.as_bytes()).await.ok()
}

/// The same requests, three times each over one connection, in both versions of HTTP.
#[track_caller]
fn check(probe: Value, cases: &[(&str, &str)]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for version in [1, 2] {
            let world = World::new(json!({"probe": probe})).await;
            let mut asked = 0;
            for (target, expected) in cases {
                let (method, path) = target.split_once(' ').expect("a method");
                for _ in 0..3 {
                    let method = Method::from_bytes(method.as_bytes()).expect("a method");
                    let got = world.exchange(version, method, path, "").await;
                    asked += 1;
                    let what = format!("HTTP/{version} {target} with {probe}");
                    assert_eq!(got.text(), *expected, "{what}");
                    assert!(got.whole, "{what}");
                    assert_eq!(world.requests(), asked, "{what}: asked once");
                    assert_eq!(got.reused, asked > 1, "{what}: the client's connection is kept");
                    assert_eq!(world.connections(), 1, "{what}: the node's connection is kept");
                }
            }
        }
    });
}

const EVERY: [(&str, &str); 7] = [
    ("GET /sized", "200 hello"),
    ("GET /empty", "200 "),
    ("GET /chunked", "200 hello"),
    ("HEAD /sized", "200 "),
    ("GET /204", "204 "),
    ("GET /304", "304 "),
    ("GET /hints", "200 hello"),
];

#[test]
fn answers_pass() {
    check(json!({}), &EVERY);
    check(json!({"var": "uri", "ask_request": true}), &EVERY);
}

#[test]
fn answers_pass_when_their_bodies_were_asked_for() {
    check(json!({"ask": true}), &EVERY);
}

#[test]
fn answers_are_replaced() {
    let kept = [
        ("GET /sized", "203 new"),
        ("GET /empty", "203 new"),
        ("GET /204", "203 new"),
        ("HEAD /sized", "203 "),
    ];
    check(json!({"replace": "new", "status": 203}), &kept);
    check(json!({"ask": true, "replace": "new", "status": 203}), &kept);
    check(json!({"ask": true, "replace": "new"}), &[("GET /chunked", "200 new"), ("GET /304", "304 ")]);
    check(json!({"status": 204}), &[("GET /sized", "204 "), ("GET /empty", "204 ")]);
    check(json!({"status": 200}), &[("GET /204", "200 "), ("HEAD /sized", "200 ")]);
}

#[test]
fn plugins_refuse() {
    let refused = r#"503 {"message":"refused"}"#;
    check(json!({"refuse": 503}), &[("GET /sized", refused), ("GET /204", refused), ("HEAD /sized", "503 ")]);
    check(json!({"ask": true, "refuse": 503}), &[("GET /sized", refused), ("GET /chunked", refused)]);
}

#[track_caller]
fn once(probe: Value, version: u8, path: &str, expected: &str) -> Got {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let got = runtime.block_on(async {
        let world = World::new(json!({"probe": probe})).await;
        let got = world.exchange(version, Method::GET, path, "").await;
        assert_eq!(world.requests(), 1, "{path} with {probe}: asked once");
        got
    });
    assert!(got.text().starts_with(expected), "HTTP/{version} {path} with {probe}: {}", got.text());
    got
}

#[test]
fn heads_are_told_and_edited() {
    for version in [1, 2] {
        let got = once(json!({"var": "upstream_status", "ask": true}), version, "/chunked", "200 hello");
        assert_eq!((got.header("x-var"), got.header("x-length")), ("200", "5"));
        assert_eq!(got.header("content-length"), "5", "the length is known now");
        assert_eq!((got.header("transfer-encoding"), got.header("server")), ("", "APISIX"));
        let got = once(json!({"ask": true}), version, "/sized", "200 hello");
        assert_eq!(got.header("etag"), "\"e\"");
        let got = once(json!({"replace": "other"}), version, "/sized", "200 other");
        assert_eq!((got.header("content-length"), got.header("etag")), ("5", ""));
        let got = once(json!({}), version, "/hints", "200 hello");
        assert_eq!(got.header("x-hint"), "");
    }
}

#[test]
fn an_answer_that_never_ends_can_be_replaced() {
    for version in [1, 2] {
        once(json!({"replace": "new"}), version, "/endless", "200 new");
        once(json!({"refuse": 503}), version, "/endless", "503 ");
    }
}

#[test]
fn bodies_beyond_the_bound() {
    for version in [1, 2] {
        once(json!({"ask": true, "limit": 1000}), version, "/large", "502 (page)");
        let got = once(json!({"ask": true, "limit": 1000, "degrade": true}), version, "/large", "200 x");
        assert_eq!(got.body.len(), 1 << 20, "it passes whole");
        once(json!({"ask": true, "limit": 1000}), version, "/large-chunked", "502 (page)");
        once(json!({"ask": true, "limit": 1000}), version, "/endless", "502 (page)");
        let got = once(json!({"ask": true}), version, "/large-chunked", "200 x");
        assert_eq!(got.body.len(), 1 << 20);
    }
}

#[test]
fn a_node_that_breaks_off() {
    for version in [1, 2] {
        once(json!({"ask": true}), version, "/broken", "502 (page)");
        let got = once(json!({}), version, "/broken", "200 ");
        assert!(!got.whole, "what began to stream breaks off");
    }
}

#[test]
fn request_bodies_are_still_there() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for version in [1, 2] {
            let world = World::new(json!({"probe": {"ask_request": true}})).await;
            for length in [0, 1, 300_000] {
                let got = world.exchange(version, Method::POST, "/sized", &"b".repeat(length)).await;
                assert_eq!(got.text(), "200 hello", "{length}");
                assert_eq!(got.header("x-request-length"), length.to_string());
            }
        }
    });
}

#[test]
fn a_client_that_goes_away_ends_the_wait() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let world = World::new(json!({"probe": {"ask": true, "limit": 1 << 30}})).await;
        let mut client = TcpStream::connect(("127.0.0.1", world.port)).await.expect("the gateway listens");
        client.write_all(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("the gateway reads");
        while world.requests() == 0 {
            tokio::task::yield_now().await;
        }
        drop(client);
        let busy = &world.metrics.gateway.busy;
        while busy.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    });
}
