//! What the gateway itself does for a request before an upstream is asked: checks, match, plugins, choice of a node.
//!
//! `cargo bench --bench chain`. Drives `request_filter` of the proxy on a request that was read from memory; the
//! request's head is put back before each pass, and the time that takes alone is subtracted. No statistics: each
//! figure is the best of a few rounds. Plugins that this build does not have are left out.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use pingora_proxy::ProxyHttp;
use portcullis::{builtin, proxy::testing, resource::Kind};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

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
        let plugins = (case.plugins)();
        let known = |name: &String| builtin::REGISTRY.iter().any(|def| def.name == *name);
        if !plugins.as_object().is_some_and(|plugins| plugins.keys().all(known)) {
            println!("{:18} {:>8} {:>10} {:>10}", case.name, case.routes, case.consumers, "not built");
            continue;
        }
        let time = measure(&runtime, case, &plugins);
        println!(
            "{:18} {:8} {:10} {:10.0}",
            case.name,
            case.routes,
            case.consumers,
            time.as_nanos() as f64 / PASSES as f64
        );
    }
}

fn measure(runtime: &Runtime, case: &Case, plugins: &Value) -> Duration {
    let gateway = testing::gateway(resources(case, plugins));
    let heads: Vec<RequestHeader> = (0..ASKS).map(|i| head(case, scramble(i))).collect();
    runtime.block_on(async {
        let mut session =
            testing::session("GET /r/0 HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: bench\r\n\r\n").await;
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

fn resources(case: &Case, plugins: &Value) -> Vec<(Kind, String, Value)> {
    let upstream = json!({"type": "roundrobin", "nodes": {"127.0.0.1:1980": 1}});
    let route = |i| json!({"id": format!("r{i}"), "uri": format!("/r/{i}"), "plugins": plugins, "upstream": upstream});
    let consumer = |i| {
        json!({"username": format!("user{i}"), "plugins": {
            "key-auth": {"key": format!("key-{i}")},
            "basic-auth": {"username": format!("user{i}"), "password": format!("word-{i}")},
        }})
    };
    let routes = (0..case.routes).map(|i| (Kind::Route, format!("r{i}"), route(i)));
    let consumers = (0..case.consumers).map(|i| (Kind::Consumer, format!("user{i}"), consumer(i)));
    routes.chain(consumers).collect()
}

/// A different number for each number, all over the place.
fn scramble(i: usize) -> usize {
    i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (i >> 7)
}
