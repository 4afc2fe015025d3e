//! Upstreams as a request meets them.

use std::{collections::HashSet, pin::Pin, sync::Mutex};

use pingora::tls::{
    pkey::PKey,
    ssl::{NameType, Ssl, SslAcceptor, SslMethod},
    tokio_ssl::SslStream,
    x509::X509,
};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    conf::{
        ActiveConf, CheckKind, ChecksConf, ClientCert, HashOn, HealthyConf, KeepaliveConf, NodeConf,
        PassiveConf, TimeoutConf, TlsConf, UnhealthyConf,
    },
    resolve::{Resolver, ResolverConf},
    *,
};
use crate::vars::var::Var;

struct Client(&'static str);

impl Lookup for Client {
    fn get(&self, var: &Var) -> Option<Cow<'_, str>> {
        (*var == Var::parse("remote_addr")).then_some(Cow::Borrowed(self.0))
    }
}

const CLIENT: Client = Client("127.0.0.1");

fn defaults() -> UpstreamDefaults {
    UpstreamDefaults {
        resolver: Resolver::new(&ResolverConf::default()).expect("a resolver"),
        timeout: TimeoutConf::default(),
        keepalive: KeepaliveConf::default(),
        checks: ChecksSwitch::On,
    }
}

/// Nodes as `host:port weight priority`, separated by commas.
fn conf(kind: Kind, nodes: &str) -> UpstreamConf {
    let node = |text: &str| {
        let mut words = text.split_whitespace();
        let (host, port) = words.next().and_then(|w| w.rsplit_once(':')).expect("host:port");
        let mut number = |default: i32| words.next().map_or(default, |w| w.parse().expect("a number"));
        NodeConf {
            host: host.to_owned(),
            port: Some(port.parse().expect("a port")),
            weight: number(1) as u32,
            priority: number(0),
        }
    };
    UpstreamConf {
        nodes: nodes.split(',').filter(|n| !n.is_empty()).map(node).collect(),
        kind,
        key: (kind == Kind::Chash).then(|| "remote_addr".to_owned()),
        ..UpstreamConf::default()
    }
}

fn upstream(conf: &UpstreamConf) -> Upstream {
    Upstream::compile(conf, &defaults()).expect("an upstream")
}

/// The addresses a request tries when every try fails, then what it ends with.
fn tries(upstream: &Upstream) -> (Vec<String>, Result<Retry, PickError>) {
    let mut selection = Selection::default();
    let mut tried = Vec::new();
    loop {
        let picked = match upstream.pick(&mut selection, &CLIENT) {
            Ok(picked) => picked,
            Err(error) => return (tried, Err(error)),
        };
        tried.push(picked.addr().to_string());
        match upstream.retry(&mut selection, &picked, Failure::Tcp) {
            Retry::Again => {}
            end => return (tried, Ok(end)),
        }
    }
}

#[track_caller]
fn check(conf: &UpstreamConf, want: &str, end: Result<Retry, PickError>) {
    let (tried, ended) = tries(&upstream(conf));
    assert_eq!(tried.join(" "), want);
    assert_eq!(ended, end);
}

const KINDS: [Kind; 4] = [Kind::RoundRobin, Kind::Chash, Kind::Ewma, Kind::LeastConn];

#[test]
fn lower_priorities_serve_when_the_higher_are_used_up() {
    for kind in KINDS {
        check(
            &conf(kind, "127.0.0.3:1979 2 -1, 127.0.0.1:1979 2 1, 127.0.0.2:1979 1 0"),
            "127.0.0.1:1979 127.0.0.2:1979 127.0.0.3:1979",
            Ok(Retry::Exhausted),
        );
    }
    check(
        &conf(
            Kind::RoundRobin,
            "127.0.0.1:1979 1000 1, 127.0.0.2:1979 1 1, 127.0.0.3:1979 1000 -1, 127.0.0.4:1979 1 -1",
        ),
        "127.0.0.1:1979 127.0.0.2:1979 127.0.0.3:1979 127.0.0.4:1979",
        Ok(Retry::Exhausted),
    );
    check(
        &conf(Kind::LeastConn, "127.0.0.1:1979 2 1, 127.0.0.2:1979 1 1, 127.0.0.1:1979 2 -1"),
        "127.0.0.1:1979 127.0.0.2:1979 127.0.0.1:1979",
        Ok(Retry::Exhausted),
    );
}

#[test]
fn the_ring_is_apisix_s() {
    // the order APISIX's own test suite expects for a client at 127.0.0.1
    check(
        &conf(
            Kind::Chash,
            "127.0.0.1:1979 2 1, 127.0.0.2:1979 1 1, 127.0.0.3:1979 2 -1, 127.0.0.4:1979 1 -1",
        ),
        "127.0.0.1:1979 127.0.0.2:1979 127.0.0.4:1979 127.0.0.3:1979",
        Ok(Retry::Exhausted),
    );
}

#[test]
fn a_single_node_is_tried_again() {
    for kind in KINDS {
        let conf = UpstreamConf { retries: Some(2), ..conf(kind, "127.0.0.1:1 0") };
        check(&conf, "127.0.0.1:1 127.0.0.1:1 127.0.0.1:1", Ok(Retry::Exhausted));
    }
}

#[test]
fn retries() {
    let of = |retries| UpstreamConf {
        retries,
        ..conf(Kind::RoundRobin, "127.0.0.1:1 3, 127.0.0.2:1 2, 127.0.0.3:1")
    };
    check(&of(Some(0)), "127.0.0.1:1", Ok(Retry::Exhausted));
    check(&conf(Kind::Chash, ""), "", Err(PickError::NoNodes));
    for (retries, want) in [(Some(1), 2), (None, 3)] {
        let (tried, end) = tries(&upstream(&of(retries)));
        assert_eq!((tried.len(), end), (want, Ok(Retry::Exhausted)));
    }
    let (tried, end) = tries(&upstream(&of(Some(9))));
    assert_eq!((tried.len(), end), (3, Err(PickError::AllTried)));
}

#[test]
fn retry_timeout() {
    for (retry_timeout, expected) in [(3600.0, Retry::Again), (0.02, Retry::TimedOut)] {
        let upstream =
            upstream(&UpstreamConf { retry_timeout, ..conf(Kind::RoundRobin, "127.0.0.1:1, 127.0.0.2:1") });
        let mut selection = Selection::default();
        let picked = upstream.pick(&mut selection, &CLIENT).expect("a node");
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(upstream.retry(&mut selection, &picked, Failure::Tcp), expected, "{retry_timeout} s");
    }
}

#[test]
fn equal_nodes_are_one_but_count_for_retries() {
    let conf = conf(Kind::RoundRobin, "127.0.0.1:1, 127.0.0.2:1, 127.0.0.1:1 0");
    let upstream = upstream(&conf);
    assert_eq!(upstream.nodes().len(), 2);
    assert_eq!(upstream.nodes()[0].weight(), 0);
    assert_eq!(upstream.retries, 2);
}

proptest! {
    #[test]
    fn no_node_is_tried_twice_and_priorities_fall(
        kind in prop::sample::select(KINDS.to_vec()),
        nodes in prop::collection::vec((0u32..4, -1i32..2), 2..9),
    ) {
        let text: Vec<String> = nodes.iter().enumerate().map(|(i, (w, p))| format!("127.0.0.{i}:1 {w} {p}")).collect();
        let conf = UpstreamConf { retries: Some(99), ..conf(kind, &text.join(",")) };
        let upstream = upstream(&conf);
        let (tried, end) = tries(&upstream);
        prop_assert_eq!(end, Err(PickError::AllTried));
        let unique: HashSet<_> = tried.iter().collect();
        prop_assert_eq!(unique.len(), tried.len());
        let with = |addr: &String| nodes[addr[8..].split(':').next().unwrap().parse::<usize>().unwrap()];
        let priorities: Vec<i32> = tried.iter().map(|a| with(a).1).collect();
        prop_assert!(priorities.is_sorted_by(|a, b| a >= b));
        let weighted = nodes.iter().filter(|(w, _)| *w > 0).count();
        prop_assert!(tried.len() >= weighted);
    }
}

#[test]
fn compile_errors() {
    let rewrite = UpstreamConf { pass_host: PassHost::Rewrite, ..conf(Kind::RoundRobin, "127.0.0.1:1") };
    let no_key = UpstreamConf { hash_on: HashOn::Header, key: None, ..conf(Kind::Chash, "127.0.0.1:1") };
    for (conf, want) in
        [(rewrite, "`upstream_host` can't be empty when `pass_host` is `rewrite`"), (no_key, "missing key")]
    {
        assert_eq!(Upstream::compile(&conf, &defaults()).err().as_deref(), Some(want));
    }
}

#[test]
fn hosts() {
    for (pass_host, nodes, want) in [
        (PassHost::Pass, "127.0.0.1:8080", "client.com"),
        (PassHost::Rewrite, "127.0.0.1:8080", "up.com"),
        (PassHost::Node, "127.0.0.1:8080", "127.0.0.1:8080"),
        (PassHost::Node, "127.0.0.1:80", "127.0.0.1"),
        (PassHost::Node, "localhost:80", "localhost"),
    ] {
        let upstream = upstream(&UpstreamConf {
            pass_host,
            upstream_host: Some("up.com".to_owned()),
            ..conf(Kind::RoundRobin, nodes)
        });
        let addr = SocketAddr::from(([127, 0, 0, 1], 80));
        let picked = Picked { addr, index: 0, _in_flight: None };
        assert_eq!(upstream.host(&picked, "client.com", Scheme::Http), want);
        if nodes.ends_with(":80") {
            assert_eq!(
                upstream.host(&picked, "client.com", Scheme::Https).ends_with(":80"),
                pass_host == PassHost::Node
            );
        }
    }
}

#[tokio::test]
async fn names_wait_for_their_first_answer() {
    let upstream = upstream(&conf(Kind::RoundRobin, "localhost:81, no-such-name.invalid:81"));
    let none = upstream.pick(&mut Selection::default(), &CLIENT).err();
    assert_eq!(none, Some(PickError::ResolveFailed));
    upstream.ready().await;
    for _ in 0..4 {
        let picked = upstream.pick(&mut Selection::default(), &CLIENT).expect("a node");
        assert_eq!((upstream.node(&picked).host(), picked.addr().port()), ("localhost", 81));
    }
}

#[test]
fn a_request_in_flight_is_counted_until_dropped() {
    let upstream = upstream(&conf(Kind::LeastConn, "127.0.0.1:1, 127.0.0.2:1"));
    let pick = || upstream.pick(&mut Selection::default(), &CLIENT).expect("a node");
    let (a, b) = (pick(), pick());
    assert_ne!(a.index(), b.index());
    let free = b.index();
    upstream.finish(b, 200, Duration::ZERO);
    assert_eq!(pick().index(), free);
    drop(a);
}

#[test]
fn a_new_version_remembers_the_nodes_it_keeps() {
    let old = upstream(&conf(Kind::LeastConn, "127.0.0.1:1, 127.0.0.2:1"));
    let pick = |up: &Upstream| up.pick(&mut Selection::default(), &CLIENT).expect("a node");
    let held = [pick(&old), pick(&old)];
    let wider = conf(Kind::LeastConn, "127.0.0.1:1, 127.0.0.2:1, 127.0.0.3:1");
    let new = Upstream::recompile(&wider, &defaults(), Some(&old)).expect("an upstream");
    assert_eq!(pick(&new).index(), 2);
    drop(held);
    let seen: HashSet<u32> = (0..3).map(|_| pick(&new)).map(|p| p.index()).collect();
    assert_eq!(seen.len(), 3, "releases on the old version are seen");
}

#[test]
fn a_first_try_allocates_nothing() {
    for kind in [Kind::RoundRobin, Kind::Ewma, Kind::LeastConn] {
        let upstream = upstream(&UpstreamConf {
            kind,
            ..with_checks(ChecksConf::default(), "127.0.0.1:1, 127.0.0.2:1 2")
        });
        let used = allocation_counter::measure(|| {
            let picked = upstream.pick(&mut Selection::default(), &CLIENT).expect("a node");
            upstream.finish(picked, 200, Duration::from_millis(3));
        });
        assert_eq!(used.count_total, 0, "{kind:?}");
    }
}

#[test]
fn ports_from_the_scheme() {
    let mut conf = conf(Kind::RoundRobin, "127.0.0.1:1, [::1]:2");
    assert!(!upstream(&conf).has_implied_port());
    conf.nodes[1].port = None;
    conf.scheme = Scheme::Grpcs;
    let upstream = upstream(&conf);
    assert!(upstream.has_implied_port());
    assert_eq!((upstream.nodes()[1].host(), upstream.nodes()[1].port()), ("[::1]", 443));
}

fn with_checks(checks: ChecksConf, nodes: &str) -> UpstreamConf {
    UpstreamConf { checks: Some(checks), ..conf(Kind::RoundRobin, nodes) }
}

#[test]
fn failed_tries_take_a_node_out_and_statuses_bring_it_back() {
    let passive = PassiveConf {
        healthy: HealthyConf { successes: 1, ..PassiveConf::default().healthy },
        unhealthy: UnhealthyConf { tcp_failures: 1, ..PassiveConf::default().unhealthy },
        ..PassiveConf::default()
    };
    let checks = ChecksConf { active: Some(ActiveConf::default()), passive: Some(passive) };
    let upstream = upstream(&with_checks(checks, "127.0.0.1:1, 127.0.0.2:1, 127.0.0.3:1"));
    let mut selection = Selection::default();
    let lost = upstream.pick(&mut selection, &CLIENT).expect("a node");
    assert_eq!(upstream.retry(&mut selection, &lost, Failure::Tcp), Retry::Again);
    for _ in 0..20 {
        let picked = upstream.pick(&mut Selection::default(), &CLIENT).expect("a node");
        assert_ne!(picked.index(), lost.index());
    }
    let index = lost.index();
    upstream.finish(lost, 200, Duration::ZERO);
    let back =
        (0..3).any(|_| upstream.pick(&mut Selection::default(), &CLIENT).expect("a node").index() == index);
    assert!(back);
}

#[test]
fn when_all_are_unhealthy_all_serve() {
    let upstream = upstream(&with_checks(ChecksConf::default(), "127.0.0.1:1, 127.0.0.2:1"));
    // without checks.passive a failed try counts by the default limits
    for _ in 0..4 {
        let _ = tries(&upstream);
    }
    let retried = |_| {
        let mut selection = Selection::default();
        let picked = upstream.pick(&mut selection, &CLIENT).expect("a node");
        upstream.retry(&mut selection, &picked, Failure::Tcp);
        picked.index()
    };
    let seen: HashSet<u32> = (0..20).map(retried).collect();
    assert_eq!(seen.len(), 2);
    let down = upstream.nodes().iter().all(|n| !n.state().health.health().is_up());
    assert!(down);
}

#[test]
fn a_lower_priority_stands_in_for_unhealthy_nodes() {
    let passive = PassiveConf {
        unhealthy: UnhealthyConf { http_failures: 1, ..PassiveConf::default().unhealthy },
        ..PassiveConf::default()
    };
    let checks = ChecksConf { active: None, passive: Some(passive) };
    let upstream = upstream(&with_checks(checks, "127.0.0.1:1 1 0, 127.0.0.2:1 1 -1"));
    let pick = || upstream.pick(&mut Selection::default(), &CLIENT).expect("a node");
    let first = pick();
    assert_eq!(first.index(), 0);
    upstream.finish(first, 404, Duration::ZERO);
    assert_eq!(pick().index(), 0, "404 is in neither list");
    upstream.finish(pick(), 503, Duration::ZERO);
    assert_eq!(pick().index(), 1);
}

#[test]
fn checks_can_be_switched_off() {
    let off = UpstreamDefaults { checks: ChecksSwitch::Off, ..defaults() };
    let conf = with_checks(ChecksConf::default(), "127.0.0.1:1, 127.0.0.2:1");
    let upstream = Upstream::compile(&conf, &off).expect("an upstream");
    assert!(upstream.health_report("/upstreams/1").is_none());
}

/// For `up.com`, signed by itself, valid for a century.
const CERT: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBejCCAR+gAwIBAgIUfHONKqz222hanLJkp7QqsOC38gwwCgYIKoZIzj0EAwIw\n\
ETEPMA0GA1UEAwwGdXAuY29tMCAXDTI2MTEyMjExMTU1M1oYDzIxMjYxMDI5MTEx\n\
NTUzWjARMQ8wDQYDVQQDDAZ1cC5jb20wWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC\n\
AASWCAgA3ZiiRx/akyD4XLmvkF0ZHzIqnpTQOj/hfjqEw/a5QhIGJjv7KYLj1ZN4\n\
uJyGY4sInssbWuPhX3QOokCeo1MwUTAdBgNVHQ4EFgQUoth2s5gv0mxQidlxZww0\n\
88zsJwUwHwYDVR0jBBgwFoAUoth2s5gv0mxQidlxZww088zsJwUwDwYDVR0TAQH/\n\
BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEA803iCFNlTRpswMTBsvhfFTzoSGP/\n\
G9pcX9wkPoAlzJ8CIQCrrYNUKkNilhYFpk/TlZZ3SzRvhb8lR/agq/56MqiQpQ==\n\
-----END CERTIFICATE-----\n";

/// Its key, made for this test.
const KEY: &str = "\
-----BEGIN PRIVATE KEY-----\n\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgoBRDKhc7Rq75twrl\n\
MGqvtn9n9QZqIsgPhYm3n8RKfxihRANCAASWCAgA3ZiiRx/akyD4XLmvkF0ZHzIq\n\
npTQOj/hfjqEw/a5QhIGJjv7KYLj1ZN4uJyGY4sInssbWuPhX3QOokCe\n\
-----END PRIVATE KEY-----\n";

#[test]
fn client_certificates_are_part_of_the_peer() {
    let client = ClientCert::Pair { cert: CERT.to_owned(), key: KEY.to_owned() };
    let tls = TlsConf { client, verify: true };
    for (scheme, sent) in [(Scheme::Http, false), (Scheme::Https, true), (Scheme::Grpcs, true)] {
        let conf = UpstreamConf { scheme, tls: Some(tls.clone()), ..conf(Kind::RoundRobin, "127.0.0.1:1") };
        let upstream = upstream(&conf);
        let picked = upstream.pick(&mut Selection::default(), &CLIENT).expect("a node");
        let peer = upstream.peer(&picked, "up.com", PeerOverride::default());
        assert_eq!(peer.client_cert_key.is_some(), sent, "{scheme:?}");
        assert!(peer.options.verify_cert && peer.options.verify_hostname);
    }
}

/// Waits until something holds, on a busy machine too.
pub(super) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A TLS server that answers every connection with 200; tells the server names it was asked for.
async fn tls_server() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let cert = X509::from_pem(CERT.as_bytes()).expect("a certificate");
    let key = PKey::private_key_from_pem(KEY.as_bytes()).expect("a key");
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).expect("an acceptor");
    acceptor.set_certificate(&cert).expect("a certificate");
    acceptor.set_private_key(&key).expect("a key");
    let acceptor = acceptor.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let names: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&names);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let ssl = Ssl::new(acceptor.context()).expect("a session");
            let mut stream = SslStream::new(ssl, stream).expect("a stream");
            if Pin::new(&mut stream).accept().await.is_err() {
                continue;
            }
            let name = stream.ssl().servername(NameType::HOST_NAME).unwrap_or_default().to_owned();
            seen.lock().expect("a lock").push(name);
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    (addr, names)
}

#[tokio::test]
async fn pingora_connects_to_the_peer_without_verifying() {
    let (addr, names) = tls_server().await;
    let conf = UpstreamConf { scheme: Scheme::Https, ..conf(Kind::RoundRobin, &addr.to_string()) };
    let upstream = upstream(&conf);
    let picked = upstream.pick(&mut Selection::default(), &CLIENT).expect("a node");
    let peer = upstream.peer(&picked, "up.com:443", PeerOverride::default());
    let connector = pingora::connectors::http::Connector::<()>::new(None);
    let (_, reused) = connector.get_http_session(&*peer).await.expect("a connection");
    assert!(!reused);
    // the server notes the name after its half of the handshake
    eventually("the name is noted", || !names.lock().expect("a lock").is_empty()).await;
    assert_eq!(names.lock().expect("a lock")[0], "up.com");
}

#[tokio::test]
async fn https_probes_name_the_host_and_verify_unless_told_not_to() {
    let (addr, names) = tls_server().await;
    let checks = |https_verify_certificate| ChecksConf {
        active: Some(ActiveConf {
            kind: CheckKind::Https,
            host: Some("up.com".to_owned()),
            https_verify_certificate,
            healthy: HealthyConf { successes: 1, ..ActiveConf::default().healthy },
            unhealthy: UnhealthyConf { tcp_failures: 1, ..ActiveConf::default().unhealthy },
            ..ActiveConf::default()
        }),
        passive: None,
    };
    let nodes = addr.to_string();
    let trusting = Arc::new(upstream(&with_checks(checks(false), &nodes)));
    let strict = Arc::new(upstream(&with_checks(checks(true), &nodes)));
    let probes = health::probe::Probes::default();
    probes.sync([("a".to_owned(), Arc::clone(&trusting)), ("b".to_owned(), Arc::clone(&strict))]);
    let is_up = |up: &Upstream| up.nodes()[0].state().health.health().is_up();
    let probed = || !is_up(&strict) && !names.lock().expect("a lock").is_empty();
    eventually("both are probed", probed).await;
    assert!(is_up(&trusting));
    assert_eq!(names.lock().expect("a lock")[0], "up.com");
}

/// A server that answers every connection with this status.
async fn server(status: u16) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let reply = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.write_all(reply.as_bytes()).await;
        }
    });
    addr
}

#[tokio::test]
async fn probes_find_out_who_serves() {
    let (good, bad) = (server(200).await, server(500).await);
    let closed = "127.0.0.1:1";
    let active = ActiveConf {
        concurrency: usize::MAX,
        unhealthy: UnhealthyConf { http_failures: 1, tcp_failures: 1, ..ActiveConf::default().unhealthy },
        ..ActiveConf::default()
    };
    let checks = |kind| ChecksConf { active: Some(ActiveConf { kind, ..active.clone() }), passive: None };
    let nodes = format!("{good}, {bad}, {closed}");
    let http = Arc::new(upstream(&with_checks(checks(CheckKind::Http), &nodes)));
    let tcp = Arc::new(upstream(&with_checks(checks(CheckKind::Tcp), &nodes)));
    let plain = Arc::new(upstream(&conf(Kind::RoundRobin, closed)));

    let probes = health::probe::Probes::default();
    let wanted = |key: &str, up: &Arc<Upstream>| (key.to_owned(), Arc::clone(up));
    probes.sync([wanted("h", &http), wanted("t", &tcp), wanted("p", &plain)]);
    assert_eq!(probes.len(), 2);
    let early = http.health_report("/upstreams/1").expect("a report");
    assert_eq!(early["nodes"].as_array().map(Vec::len), Some(3), "shown before anybody asked for it");
    let states = |up: &Upstream| -> Vec<bool> {
        up.nodes().iter().map(|n| n.state().health.health().is_up()).collect()
    };
    eventually("HTTP tells who answers well", || states(&http) == [true, false, false]).await;
    eventually("TCP tells who listens", || states(&tcp) == [true, true, false]).await;
    let report = http.health_report("/upstreams/1").expect("a report");
    assert_eq!(report["name"], "/upstreams/1");
    assert_eq!(report["type"], "http");
    assert_eq!(
        report["nodes"][2],
        serde_json::json!({
            "ip": "127.0.0.1", "port": 1, "hostname": "127.0.0.1", "status": "unhealthy",
            "counter": {"success": 0, "http_failure": 0, "tcp_failure": 1, "timeout_failure": 0},
        })
    );

    // probed at one port they are one target
    let shared = ChecksConf { active: Some(ActiveConf { port: Some(1), ..active.clone() }), passive: None };
    let shared = upstream(&with_checks(shared, &nodes)).health_report("/upstreams/1").expect("a report");
    assert_eq!(shared["nodes"].as_array().map(Vec::len), Some(1));

    // the next version keeps what is known
    let next = with_checks(checks(CheckKind::Http), &format!("{bad}, {good}"));
    let next = Arc::new(Upstream::recompile(&next, &defaults(), Some(&http)).expect("an upstream"));
    assert_eq!(states(&next), [false, true]);
    probes.sync([wanted("h", &next)]);
    assert_eq!(probes.len(), 1);
    probes.sync([]);
    assert!(probes.is_empty());
}
