//! What the gateway itself does for a request before an upstream is asked: checks, match, plugins, choice of a node.
//!
//! `cargo bench --bench chain`. Drives `request_filter` of the proxy on a request that was read from memory; the
//! request's head is put back before each pass, and the time that takes alone is subtracted. No statistics: each
//! figure is the best of a few rounds. Plugins that this build does not have are left out.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use pingora_proxy::{ProxyHttp, Session};
use portcullis::{
    builtin::Enabled,
    compat::Compat,
    control::Control,
    net::ip_set::IpSet,
    plugin::{
        env::{Carry, Registry},
        metrics::Metrics,
    },
    proxy::{
        Gateway,
        options::{Options, RealIp},
    },
    resource::{Key, Kind},
    snapshot::{compile::Env, router::Mode},
    store::{Entry, Event},
    upstream::{
        conf::{ChecksSwitch, KeepaliveConf, TimeoutConf, UpstreamDefaults},
        resolve::{Resolver, ResolverConf},
    },
};
use serde_json::{Map, Value, json};
use tokio::{io::AsyncWriteExt, runtime::Runtime};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 5;
const PASSES: usize = 50_000;
/// Different requests, so that the figures of large tables include cache misses.
const ASKS: usize = 4096;

/// One configuration, and whom its requests come from.
struct Case {
    name: &'static str,
    routes: usize,
    consumers: usize,
    plugins: fn() -> Value,
}

const CASES: [Case; 10] = [
    Case { name: "plain", routes: 1, consumers: 0, plugins: none },
    Case { name: "plain", routes: 10_000, consumers: 0, plugins: none },
    Case { name: "plain", routes: 100_000, consumers: 0, plugins: none },
    Case { name: "key-auth", routes: 1, consumers: 1, plugins: key_auth },
    Case { name: "key-auth", routes: 1, consumers: 10_000, plugins: key_auth },
    Case { name: "basic-auth", routes: 1, consumers: 1, plugins: basic_auth },
    Case { name: "basic-auth", routes: 1, consumers: 10_000, plugins: basic_auth },
    Case { name: "limit-count", routes: 1, consumers: 0, plugins: limit_count },
    Case { name: "response-rewrite", routes: 1, consumers: 0, plugins: response_rewrite },
    Case { name: "four plugins", routes: 1, consumers: 1, plugins: several },
];

fn none() -> Value {
    json!({})
}

fn key_auth() -> Value {
    json!({"key-auth": {}})
}

fn basic_auth() -> Value {
    json!({"basic-auth": {}})
}

fn limit_count() -> Value {
    json!({"limit-count": {"count": 2_000_000_000, "time_window": 3600, "key": "remote_addr", "rejected_code": 429}})
}

fn response_rewrite() -> Value {
    json!({"response-rewrite": {"headers": {"set": {"x-bench": "1"}}}})
}

fn several() -> Value {
    json!({
        "key-auth": {},
        "ip-restriction": {"whitelist": ["0.0.0.0/0"]},
        "consumer-restriction": {"blacklist": ["nobody"]},
        "uri-blocker": {"block_rules": ["\\.php$"]},
    })
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    println!("{:18} {:>8} {:>10} {:>10}", "plugins", "routes", "consumers", "ns");
    for case in &CASES {
        let env = Arc::new(environment());
        let plugins = (case.plugins)();
        let known = |name: &String| env.registry.find(name).is_some();
        if !plugins.as_object().is_some_and(|plugins| plugins.keys().all(known)) {
            println!("{:18} {:>8} {:>10} {:>10}", case.name, case.routes, case.consumers, "not built");
            continue;
        }
        let time = measure(&runtime, env, case, &plugins);
        println!(
            "{:18} {:8} {:10} {:10.0}",
            case.name,
            case.routes,
            case.consumers,
            time.as_nanos() as f64 / PASSES as f64
        );
    }
}

fn measure(runtime: &Runtime, env: Arc<Env>, case: &Case, plugins: &Value) -> Duration {
    let control = Control::new(env);
    control.apply(vec![Event::Reset { entries: entries(case, plugins), revision: 1 }]);
    assert!(control.faults().is_empty(), "{:?}", control.faults());
    let gateway = Gateway {
        current: control.current(),
        options: options(),
        access_log: None,
        metrics: control.env().metrics.clone(),
    };
    let heads: Vec<RequestHeader> = (0..ASKS).map(|i| head(case, scramble(i))).collect();
    runtime.block_on(async {
        let mut session = session().await;
        let (mut alone, mut both) = (Duration::MAX, Duration::MAX);
        for _ in 0..ROUNDS {
            let start = Instant::now();
            for i in 0..PASSES {
                session.req_header_mut().clone_from(&heads[i % ASKS]);
                black_box(&mut session);
            }
            alone = alone.min(start.elapsed());
            let start = Instant::now();
            for i in 0..PASSES {
                session.req_header_mut().clone_from(&heads[i % ASKS]);
                let mut ctx = gateway.new_ctx();
                let answered =
                    gateway.request_filter(&mut session, &mut ctx).await.expect("no input or output here");
                assert!(!answered, "every request goes on to the upstream");
            }
            both = both.min(start.elapsed());
        }
        both.saturating_sub(alone)
    })
}

/// A connection on which a request came in.
async fn session() -> Session {
    let (mut client, server) = tokio::io::duplex(4096);
    let raw = b"GET /r/0 HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: bench\r\n\r\n";
    client.write_all(raw).await.expect("the pipe holds the request");
    let mut session = Session::new_h1(Box::new(server));
    assert!(session.read_request().await.expect("a readable request"), "a request");
    session
}

fn head(case: &Case, i: usize) -> RequestHeader {
    let path = format!("/r/{}", i % case.routes);
    let mut head = RequestHeader::build("GET", path.as_bytes(), Some(8)).expect("a path");
    let mut insert = |name: &'static str, value: String| {
        let value = HeaderValue::try_from(value).expect("a header value");
        head.insert_header(HeaderName::from_static(name), value).expect("few headers");
    };
    insert("host", "bench.example".to_owned());
    insert("user-agent", "bench".to_owned());
    if case.consumers > 0 {
        let who = i % case.consumers;
        insert("apikey", format!("key-{who}"));
        insert("authorization", format!("Basic {}", STANDARD.encode(format!("user{who}:word-{who}"))));
    }
    head
}

fn entries(case: &Case, plugins: &Value) -> Vec<Entry> {
    let upstream = json!({"type": "roundrobin", "nodes": {"127.0.0.1:1980": 1}});
    let route = |i| json!({"id": format!("r{i}"), "uri": format!("/r/{i}"), "plugins": plugins, "upstream": upstream});
    let consumer = |i| {
        json!({"username": format!("user{i}"), "plugins": {
            "key-auth": {"key": format!("key-{i}")},
            "basic-auth": {"username": format!("user{i}"), "password": format!("word-{i}")},
        }})
    };
    let routes = (0..case.routes).map(|i| (Key::new(Kind::Route, format!("r{i}")), route(i)));
    let consumers = (0..case.consumers).map(|i| (Key::new(Kind::Consumer, format!("user{i}")), consumer(i)));
    let entry = |(key, value): (Key, Value)| Entry {
        key,
        value: value.to_string().into(),
        created: 1,
        modified: 1,
        expires: None,
    };
    routes.chain(consumers).map(entry).collect()
}

fn environment() -> Env {
    Env {
        registry: Enabled::new(None, Map::new()),
        compat: Compat::Now,
        mode: Mode::HostUri,
        keyring: None,
        carry: Carry::default(),
        metrics: Arc::new(Metrics::new(prometheus::Registry::new())),
        debug_auth: false,
        secrets: Arc::default(),
        upstream: UpstreamDefaults {
            resolver: Resolver::new(&ResolverConf::default()).expect("a resolver"),
            timeout: TimeoutConf::default(),
            keepalive: KeepaliveConf::default(),
            checks: ChecksSwitch::On,
        },
        apis: Vec::new(),
    }
}

/// As config.yaml's defaults make them.
fn options() -> Options {
    Options {
        compat: Compat::Now,
        server: HeaderValue::from_static("APISIX"),
        delete_uri_tail_slash: false,
        normalize_uri_like_servlet: false,
        match_uri_encoded_slash: false,
        show_upstream_status: false,
        trusted: None,
        real_ip: Some(RealIp {
            header: HeaderName::from_static("x-real-ip"),
            from: IpSet::parse(["127.0.0.1"]).expect("an address"),
            recursive: false,
        }),
        max_body: None,
        max_buffered_body: 16 << 20,
        keepalive: Duration::from_secs(60),
        body_timeout: Duration::from_secs(60),
        send_timeout: Duration::from_secs(10),
        draining: Arc::default(),
        max_request_line: 8 << 10,
        max_head: 32 << 10,
    }
}

/// A different number for each number, all over the place.
fn scramble(i: usize) -> usize {
    i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (i >> 7)
}
