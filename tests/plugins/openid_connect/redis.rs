//! Sessions in a Redis that speaks TLS only.

use serde_json::{Value, json};

use super::{Given, Login};
use crate::support::{browser::Browser, eventually, peer::Redis};

/// A login whose sessions are in that Redis, with these options more.
#[track_caller]
fn login(redis: &Redis, more: Value) -> Login {
    let mut options = json!({
        "host": "127.0.0.1", "port": redis.port, "password": "pass", "ssl": true,
        "connect_timeout": 30000, "read_timeout": 30000,
    });
    for (name, value) in more.as_object().expect("an object") {
        options[name] = value.clone();
    }
    let session = json!({"secret": "0123456789abcdef", "storage": "redis", "redis": options});
    let trusted = Some(redis.authority());
    Given { plugin: json!({ "session": session }), trusted, ..Given::default() }.start()
}

#[test]
fn over_tls() {
    let redis = Redis::with_tls("pass");
    let keys = || redis.cli(&["dbsize"]);
    // Its certificate is for localhost, which the address is not.
    for more in [json!({"server_name": "localhost"}), json!({"ssl_verify": false})] {
        let login = login(&redis, more);
        let mut browser = Browser::default();
        login.log_in(&mut browser, "/x", "alice").response.expect(200);
        assert_eq!(keys(), "1");
        browser.get(&login.url("/logout")).expect(302);
        assert_eq!(keys(), "0");
    }
    let login = login(&redis, json!({}));
    let page = login.log_in(&mut Browser::default(), "/x", "alice");
    page.response.expect(500);
    let log = login.gateway.stderr();
    let said = format!("redis 127.0.0.1:{}: TLS: ", redis.port);
    assert!(log.contains(&said) && !log.contains("pass\""), "{log}");
}

#[test]
fn an_idle_connection_is_closed() {
    let redis = Redis::with_tls("pass");
    let login = login(&redis, json!({"server_name": "localhost", "keepalive_timeout": 1000}));
    let clients = || redis.cli(&["client", "list"]).lines().count();
    let mut browser = Browser::default();
    login.log_in(&mut browser, "/x", "alice").response.expect(200);
    // One of them is the one who asks.
    eventually("the connection is closed", || clients() == 1);
    browser.get(&login.url("/x")).expect(200);
}
