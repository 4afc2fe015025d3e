//! limit-count, limit-req, limit-conn: how much is let through, and how the rest is told.

use std::thread;

use serde_json::{Value, json};

use super::Fixture;
use crate::support::{Gate, eventually, gateway::Gateway, upstream::Upstream};

/// Statuses of so many requests, one after the other.
fn statuses(fixture: &Fixture, count: usize, headers: &[(&str, &str)]) -> Vec<u16> {
    (0..count).map(|_| fixture.get("/", headers).status).collect()
}

#[test]
fn limit_count() {
    let limit =
        json!({"count": 2, "time_window": 60, "rejected_code": 429, "key_type": "var", "key": "http_x_user"});
    let fixture = Fixture::new(json!({"limit-count": limit}));
    let jack = [("X-User", "jack")];
    let first = fixture.get("/", &jack).expect(200);
    assert_eq!(
        (first.header("X-RateLimit-Limit"), first.header("X-RateLimit-Remaining")),
        (Some("2"), Some("1"))
    );
    let letters = first.headers.iter().filter(|(name, _)| name.starts_with("X-RateLimit-")).count();
    assert_eq!(letters, 3, "as they are configured: {:?}", first.headers);
    let reset: f64 = first.header("X-RateLimit-Reset").unwrap().parse().unwrap();
    assert!(reset > 50.0 && reset <= 60.0, "{reset}");
    fixture.get("/", &jack).expect(200).expect_header("X-RateLimit-Remaining", "0");
    let refused = fixture.get("/", &jack).expect(429).expect_header("X-RateLimit-Remaining", "0");
    refused.expect_in_body("<title>429 Too Many Requests</title>");
    fixture.get("/", &[("X-User", "jill")]).expect(200);
    assert_eq!(fixture.upstream.count(), 3);
}

#[test]
fn limit_count_says_why_and_begins_anew() {
    let limit =
        json!({"count": 1, "time_window": 1, "rejected_msg": "slow down", "show_limit_quota_header": false});
    let fixture = Fixture::new(json!({"limit-count": limit}));
    fixture.get("/", &[]).expect(200).expect_header("X-RateLimit-Limit", "");
    let mut refused = fixture.get("/", &[]);
    // A window may end between two requests.
    eventually("a request is refused", || {
        refused = fixture.get("/", &[]);
        refused.status != 200
    });
    assert_eq!(refused.expect(503).json(), json!({"error_msg": "slow down"}));
    eventually("the window is over", || fixture.get("/", &[]).status == 200);
}

#[test]
fn routes_of_a_group_share_a_budget() {
    let upstream = Upstream::echo();
    let limit = json!({"limit-count": {"count": 3, "time_window": 60, "group": "shop"}});
    let route = |id: &str| json!({"id": id, "uri": format!("/{id}"), "plugins": limit, "upstream": upstream.resource()});
    let gateway = Gateway::file(json!({"routes": [route("a"), route("b")]}));
    let statuses: Vec<u16> =
        ["/a", "/b", "/a", "/b"].into_iter().map(|uri| gateway.get(uri).status).collect();
    assert_eq!(statuses, [200, 200, 200, 503]);
}

#[test]
fn a_consumer_s_budget_is_its_own() {
    let consumer = |name: &str| {
        json!({"username": name, "plugins": {
            "key-auth": {"key": name}, "limit-count": {"count": 1, "time_window": 60},
        }})
    };
    let fixture =
        Fixture::with_consumers(json!({"key-auth": {}}), json!([consumer("jack"), consumer("jill")]));
    for name in ["jack", "jill"] {
        assert_eq!(statuses(&fixture, 2, &[("apikey", name)]), [200, 503], "{name}");
    }
}

#[test]
fn counters_survive_changes_of_other_resources() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start();
    let limit = json!({"limit-count": {"count": 2, "time_window": 60}});
    gateway.put("/routes/1", json!({"uri": "/x", "plugins": limit, "upstream": upstream.resource()}));
    gateway.get("/x").expect(200);
    gateway.put("/routes/2", json!({"uri": "/y", "upstream": upstream.resource()}));
    gateway.get("/x").expect(200);
    gateway.delete("/routes/2");
    gateway.get("/x").expect(503);
}

#[test]
fn limit_req() {
    let limit = |extra: Value| {
        // So slow that no request is let through because the machine is slow, too.
        let mut limit = json!({"rate": 0.001, "burst": 0, "key": "remote_addr", "rejected_code": 429});
        limit.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Fixture::new(json!({"limit-req": limit}))
    };
    let fixture = limit(json!({}));
    assert_eq!(statuses(&fixture, 3, &[]), [200, 429, 429]);
    let fixture = limit(json!({"burst": 3, "nodelay": true, "rejected_msg": "calm"}));
    assert_eq!(statuses(&fixture, 6, &[]), [200, 200, 200, 200, 429, 429]);
}

#[test]
fn limit_conn() {
    let limit =
        json!({"conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr", "rejected_code": 429});
    let gate = Gate::default();
    let upstream = Upstream::holding(&gate);
    let route =
        json!({"id": "1", "uri": "/*", "plugins": {"limit-conn": limit}, "upstream": upstream.resource()});
    let gateway = Gateway::file(json!({"routes": [route]}));
    thread::scope(|scope| {
        let held = scope.spawn(|| gateway.get("/hold").status);
        eventually("the first is under way", || upstream.count() == 1);
        let second = gateway.get("/");
        gate.open();
        second.expect(429);
        assert_eq!(held.join().unwrap(), 200);
    });
    eventually("the place is free again", || gateway.get("/").status == 200);
}
