//! Requests without end while the configuration changes: none fails, and memory stays where it is.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use serde_json::json;

use crate::support::{client::Connection, gateway::Gateway, upstream::Upstream};

/// How many requests: a million with `PORTCULLIS_LONG=1`.
fn total() -> usize {
    if std::env::var_os("PORTCULLIS_LONG").is_some_and(|value| value == "1") { 1_000_000 } else { 50_000 }
}

const CLIENTS: usize = 8;

/// Every client asks its share; the steady route must answer 200 whatever changes around it.
fn ask(gateway: &Gateway, requests: usize, served: &AtomicUsize) {
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let request = gateway.request("GET", "/steady").header("apikey", "jack-key");
                let mut client = Connection::open(gateway.ports.http);
                for _ in 0..requests / CLIENTS {
                    client.exchange(&request).expect(200);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
}

#[test]
fn a_changing_configuration_leaks_nothing() {
    let upstream = Upstream::with(|_, wire| wire.answer(200, &[], b"ok"));
    let gateway = Gateway::start();
    gateway.put("/consumers", json!({"username": "jack", "plugins": {"key-auth": {"key": "jack-key"}}}));
    gateway.put(
        "/routes/steady",
        json!({"uri": "/steady", "plugins": {"key-auth": {}}, "upstream": upstream.resource()}),
    );
    let served = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    let changes = AtomicUsize::new(0);
    let grown = thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                let path = format!("/routes/{}", number % 50);
                let plugins = json!({"ip-restriction": {"blacklist": [format!("10.0.{}.0/24", number % 200)]}});
                gateway.put(&path, json!({"uri": format!("/c{number}/*"), "plugins": plugins, "upstream": upstream.resource()}));
                if number % 3 == 0 {
                    gateway.delete(&path);
                }
                number += 1;
                changes.store(number, Ordering::Relaxed);
                upstream.forget();
            }
        });
        // Warm: pools and caches have their size before the measurement begins.
        ask(&gateway, total() / 2, &served);
        let before = gateway.resident_kib();
        ask(&gateway, total() / 2, &served);
        let after = gateway.resident_kib();
        over.store(true, Ordering::Relaxed);
        after.saturating_sub(before)
    });
    assert!(served.into_inner() >= total() - 2 * CLIENTS);
    assert!(changes.into_inner() > 10, "the configuration did change");
    assert!(grown < 16 * 1024, "{grown} KiB more after {} requests", total() / 2);
}
