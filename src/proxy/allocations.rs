//! How often a request allocates before its upstream is asked: fixed numbers, so that a growth is seen when it is
//! made. Whoever saves one lowers the number here.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{HeaderName, HeaderValue};
use pingora_proxy::{ProxyHttp, Session};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;

use super::{
    Gateway,
    options::{Options, RealIp},
};
use crate::{
    builtin::Enabled,
    compat::Compat,
    control::Control,
    net::ip_set::IpSet,
    plugin::{env::Carry, metrics::Metrics},
    resource::{Key, Kind},
    snapshot::{compile::Env, router::Mode},
    store::{Entry, Event},
    upstream::{
        conf::{ChecksSwitch, KeepaliveConf, TimeoutConf, UpstreamDefaults},
        resolve::{Resolver, ResolverConf},
    },
};

fn count(plugins: Value) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let gateway = gateway(&plugins);
    let mut session = runtime.block_on(session());
    let mut pass = || {
        let mut ctx = gateway.new_ctx();
        let mut filter = pin!(gateway.request_filter(&mut session, &mut ctx));
        let outcome = filter.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(
            matches!(outcome, Poll::Ready(Ok(false))),
            "the request goes on to its upstream, without waiting"
        );
    };
    // Headers that a pass adds make room for themselves once.
    pass();
    pass();
    allocation_counter::measure(pass).count_total
}

#[test]
fn allocations_of_a_request() {
    let plain = count(json!({}));
    let key_auth = count(json!({"key-auth": {}}));
    assert_eq!((plain, key_auth), (10, 14), "a plain route, and one with key-auth");
}

async fn session() -> Session {
    let (mut client, server) = tokio::io::duplex(4096);
    let raw = b"GET /x HTTP/1.1\r\nHost: a.example\r\nUser-Agent: test\r\napikey: key-of-jack\r\n\r\n";
    client.write_all(raw).await.expect("the pipe holds the request");
    let mut session = Session::new_h1(Box::new(server));
    assert!(session.read_request().await.expect("a readable request"), "a request");
    session
}

fn gateway(plugins: &Value) -> Gateway {
    let upstream = json!({"type": "roundrobin", "nodes": {"127.0.0.1:1980": 1}});
    let route = json!({"id": "1", "uri": "/x", "plugins": plugins, "upstream": upstream});
    let consumer = json!({"username": "jack", "plugins": {"key-auth": {"key": "key-of-jack"}}});
    let entry = |kind, id: &str, value: Value| Entry {
        key: Key::new(kind, id),
        value: value.to_string().into(),
        created: 1,
        modified: 1,
        expires: None,
    };
    let entries = vec![entry(Kind::Route, "1", route), entry(Kind::Consumer, "jack", consumer)];
    let control = Control::new(Arc::new(environment()));
    control.apply(vec![Event::Reset { entries, revision: 1 }]);
    assert!(control.faults().is_empty(), "{:?}", control.faults());
    let metrics = control.env().metrics.clone();
    Gateway { current: control.current(), options: options(), access_log: None, metrics }
}

pub(super) fn environment() -> Env {
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

pub(super) fn options() -> Options {
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
