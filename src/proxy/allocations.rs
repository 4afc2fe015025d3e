//! How often a request allocates before its upstream is asked: fixed numbers, so that a growth is seen when it is
//! made. Whoever saves one lowers the number here.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use pingora_proxy::ProxyHttp;
use serde_json::{Value, json};

use super::testing;
use crate::resource::Kind;

fn count(plugins: Value) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let upstream = json!({"type": "roundrobin", "nodes": {"127.0.0.1:1980": 1}});
    let route = json!({"id": "1", "uri": "/x", "plugins": plugins, "upstream": upstream});
    let consumer = json!({"username": "jack", "plugins": {"key-auth": {"key": "key-of-jack"}}});
    let gateway = testing::gateway([
        (Kind::Route, "1".to_owned(), route),
        (Kind::Consumer, "jack".to_owned(), consumer),
    ]);
    let raw = "GET /x HTTP/1.1\r\nHost: a.example\r\nUser-Agent: test\r\napikey: key-of-jack\r\n\r\n";
    let mut session = runtime.block_on(testing::session(raw));
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
    assert_eq!((plain, key_auth), (10, 13), "a plain route, and one with key-auth");
}
