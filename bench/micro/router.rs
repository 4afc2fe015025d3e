//! What the router costs: finding among 1, 10,000 and 100,000 routes, building, and deriving the next version.
//!
//! `cargo bench --bench router`. Requests come in random order, so that the figures include cache misses. No
//! statistics: each figure is the best of a few rounds. A request is written just before it is looked up, as if it
//! had come from the wire; the time that takes alone is subtracted.

use std::fmt::Write;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis::snapshot::router::{Accept, Found, MethodSet, Mode, Request, Router, Rule};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SIZES: [usize; 3] = [1, 10_000, 100_000];
const ROUNDS: usize = 5;
const LOOKUPS: usize = 200_000;

struct Ask {
    host: String,
    path: String,
}

impl Request for Ask {
    fn method(&self) -> MethodSet {
        MethodSet::from_name("GET")
    }
    fn remote_addr(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    }
    fn host(&self) -> &[u8] {
        self.host.as_bytes()
    }
    fn http_host(&self) -> &[u8] {
        self.host.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
}

/// One kind of route table, and a request for the route of a number.
struct Case {
    name: &'static str,
    mode: Mode,
    path: fn(usize) -> String,
    host: Option<fn(usize) -> String>,
    /// Writes the host and the path of the request.
    ask: fn(usize, &mut String, &mut String) -> std::fmt::Result,
}

const CASES: [Case; 6] = [
    Case {
        name: "exact",
        mode: Mode::HostUri,
        path: |i| format!("/api/v1/tenants/{}/items/{i}", i % 97),
        host: None,
        ask: |i, _, path| write!(path, "/api/v1/tenants/{}/items/{i}", i % 97),
    },
    Case {
        name: "exact uuid",
        mode: Mode::HostUri,
        path: |i| format!("/o/{:016x}", scramble(i)),
        host: None,
        ask: |i, _, path| write!(path, "/o/{:016x}", scramble(i)),
    },
    Case {
        name: "prefix",
        mode: Mode::HostUri,
        path: |i| format!("/svc-{i}/*"),
        host: None,
        ask: |i, _, path| write!(path, "/svc-{i}/some/longer/path"),
    },
    Case {
        name: "host",
        mode: Mode::HostUri,
        path: |_| "/*".to_owned(),
        host: Some(|i| format!("tenant-{i}.example.com")),
        ask: |i, host, path| write!(host, "tenant-{i}.example.com").and(path.write_str("/index.html")),
    },
    Case {
        name: "wildcard host",
        mode: Mode::HostUri,
        path: |_| "/*".to_owned(),
        host: Some(|i| format!("*.tenant-{i}.example.com")),
        ask: |i, host, path| write!(host, "www.tenant-{i}.example.com").and(path.write_str("/index.html")),
    },
    Case {
        name: "parameter",
        mode: Mode::UriWithParameter,
        path: |i| format!("/svc-{i}/:id/items/:item"),
        host: None,
        ask: |i, _, path| write!(path, "/svc-{i}/42/items/7"),
    },
];

fn main() {
    println!("{:14} {:>8} {:>9} {:>9} {:>14}", "routes", "number", "find ns", "build ms", "clone+insert us");
    for case in &CASES {
        for size in SIZES {
            measure(case, size);
        }
    }
}

fn measure(case: &Case, size: usize) {
    let rules: Vec<_> = (0..=size).map(|i| rule(case, i)).collect();
    let (mut build, mut find, mut derive) = (Duration::MAX, Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        let given: Vec<_> = rules[..size].to_vec();
        let start = Instant::now();
        let mut router = Router::new(case.mode);
        for rule in given {
            router.insert(rule);
        }
        build = build.min(start.elapsed());
        find = find.min(time_find(case, &router, size));
        derive = derive.min(time_derive(&router, &rules[size]));
    }
    println!(
        "{:14} {size:8} {:9.0} {:9.2} {:14.2}",
        case.name,
        find.as_nanos() as f64 / LOOKUPS as f64,
        build.as_secs_f64() * 1e3,
        derive.as_secs_f64() * 1e6,
    );
}

fn time_find(case: &Case, router: &Router<usize>, size: usize) -> Duration {
    let only_writing = time_asks(case, size, |_| {});
    let both = time_asks(case, size, |ask| {
        let found = router.find(ask, |_| Accept::Yes);
        assert!(matches!(black_box(found), Found::Match(_)), "every request has its route");
    });
    both.saturating_sub(only_writing)
}

fn time_asks(case: &Case, size: usize, mut each: impl FnMut(&Ask)) -> Duration {
    let mut ask = Ask { host: String::new(), path: String::new() };
    let start = Instant::now();
    for i in 0..LOOKUPS {
        ask.host.clear();
        ask.path.clear();
        (case.ask)(scramble(i) % size, &mut ask.host, &mut ask.path).expect("writing to a string");
        each(black_box(&ask));
    }
    start.elapsed()
}

/// One change among many versions that live on, as while requests still hold the old snapshot.
fn time_derive(router: &Router<usize>, rule: &Arc<Rule<usize>>) -> Duration {
    const VERSIONS: u32 = 64;
    let start = Instant::now();
    for _ in 0..VERSIONS {
        let mut next = router.clone();
        next.insert(rule.clone());
        black_box(&next);
    }
    start.elapsed() / VERSIONS
}

fn rule(case: &Case, i: usize) -> Arc<Rule<usize>> {
    let mut rule = Rule::new(format!("r{i}"), [(case.path)(i)], i);
    if let Some(host) = case.host {
        rule = rule.with_hosts([host(i)]);
    }
    rule.order = i as u64;
    Arc::new(rule)
}

/// A different number for each number, all over the place.
fn scramble(i: usize) -> usize {
    i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (i >> 7)
}
