//! Runners that hang, die, or talk nonsense.

use serde_json::{Value, json};

use super::Fixture;
use crate::support::{at, client::Request, eventually, runner::conf};

fn pre(name: &str, value: impl Into<Value>) -> Value {
    json!({"ext-plugin-pre-req": conf(name, value)})
}

/// Whatever the runner does, the client gets a clean 503 and the next request the same; with degradation it gets the
/// upstream's answer.
#[track_caller]
fn check(fault: &str) {
    let fixture = Fixture::with(pre("fault", fault), |setup| setup.set("ext-plugin.timeout.call", "300ms"));
    for _ in 0..3 {
        fixture.get("/").expect(503).expect_in_body("503 Service Temporarily Unavailable");
    }
    assert_eq!(fixture.upstream.count(), 0);
    let mut plugins = pre("fault", fault);
    plugins["ext-plugin-pre-req"]["allow_degradation"] = true.into();
    let fixture = Fixture::with(plugins, |setup| setup.set("ext-plugin.timeout.call", "300ms"));
    for _ in 0..3 {
        fixture.get("/").expect(200);
    }
    assert_eq!(fixture.upstream.count(), 3);
}

#[test]
fn whatever_a_runner_does() {
    let faults = [
        "hang",
        "close",
        "garbage",
        "half",
        "half_header",
        "wrong_type",
        "wrong_id",
        "odd_question",
        "error:0",
        "error:1",
        "error:2",
        "error:9",
    ];
    for fault in faults {
        check(fault);
    }
}

#[test]
fn no_runner() {
    let plugins = pre("nothing", "");
    let mut fixture = Fixture::new(plugins);
    fixture.get("/").expect(200);
    fixture.runner.kill();
    fixture.get("/").expect(503);
    fixture.runner.start_again();
    // A new process knows no token of the old one; nobody notices.
    fixture.get("/").expect(200);
}

#[test]
fn a_restart_of_an_idle_runner_is_not_seen() {
    let mut fixture = Fixture::new(pre("echo", ""));
    for _ in 0..4 {
        fixture.get("/").expect(200);
        fixture.runner.kill();
        fixture.runner.start_again();
    }
    fixture.get("/").expect(200);
}

#[test]
fn a_stale_connection_is_replaced() {
    // Every connection that is used twice is closed before it answers: each call is made once more on a new one.
    let fixture = Fixture::new(pre("fault", "close_reused"));
    for _ in 0..6 {
        fixture.get("/").expect(200);
    }
}

#[test]
fn what_comes_unasked_is_thrown_away() {
    let fixture = Fixture::new(pre("fault", "twice"));
    for _ in 0..6 {
        fixture.get("/").expect(200);
    }
}

#[test]
fn a_runner_that_answers_prepare_conf_twice_is_asked_once() {
    let plugins = json!({"ext-plugin-pre-req": {"conf": [
        {"name": "fault", "value": "prepare_twice"}, {"name": "echo", "value": ""},
    ]}});
    let fixture = Fixture::new(plugins);
    for _ in 0..5 {
        let told = fixture.get("/").expect(200).json();
        assert_eq!(at(&told, "/confs"), 2, "the probe and this one");
    }
}

#[test]
fn a_reply_with_id_0_counts() {
    let fixture = Fixture::new(pre("fault", "no_id"));
    fixture.get("/").expect(200);
}

#[test]
fn a_forgotten_token_is_fetched_again() {
    let plugins = |fault: &str| json!({"ext-plugin-pre-req": {"conf": [{"name": "fault", "value": fault}, {"name": "echo", "value": ""}]}});
    let fixture = Fixture::new(plugins("forget:0"));
    assert_eq!(at(&fixture.get("/").expect(200).json(), "/confs"), 2, "the probe and this one");
    // The runner forgets each configuration that it is given anew as often: three tries are all.
    let fixture = Fixture::new(plugins("forget:1"));
    fixture.get("/").expect(503);
}

#[test]
fn a_route_that_changes_is_made_known_again() {
    let fixture = Fixture::new(pre("echo", ""));
    let key = |answer: Value| at(&answer, "/key").as_str().expect("a key").to_owned();
    let first = key(fixture.get("/").expect(200).json());
    let route = json!({
        "id": "1", "uri": "/*", "upstream": fixture.upstream.resource(),
        "plugins": {"ext-plugin-pre-req": {"conf": [
            {"name": "nothing", "value": ""}, {"name": "echo", "value": ""},
        ]}},
    });
    fixture.gateway.rewrite(json!({"routes": [route]}));
    eventually("the new configuration is known", || key(fixture.get("/").expect(200).json()) != first);
}

#[test]
fn a_method_without_a_number_is_refused() {
    let fixture = Fixture::new(pre("nothing", ""));
    fixture.gateway.request("PURGE", "/").send().expect(503);
}

#[test]
fn a_call_has_its_own_time_limit() {
    let plugins = json!({"ext-plugin-pre-req": {
        "conf": [{"name": "fault", "value": "hang"}], "timeout_ms": 50,
    }});
    Fixture::new(plugins).get("/").expect(503);
}

#[test]
fn a_time_limit_may_be_as_long_as_one_likes() {
    let mut plugins = pre("nothing", "");
    plugins["ext-plugin-pre-req"]["timeout_ms"] = u64::MAX.into();
    Fixture::new(plugins).get("/").expect(200);
}

#[test]
fn a_hanging_runner_gets_so_many_calls_and_no_more() {
    let fixture = Fixture::with(pre("fault", "hang"), |setup| {
        setup
            .set("ext-plugin.connections", 2)
            .set("ext-plugin.timeout.call", "2s")
            .set("ext-plugin.timeout.queue", "100ms")
    });
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| fixture.get("/").expect(503));
        }
    });
    let metrics = Request::new(fixture.gateway.ports.metrics, "GET", "/apisix/prometheus/metrics").send();
    let metrics = metrics.expect(200).text();
    assert!(metrics.contains("kind=\"queue_timeout\"}"), "those that waited were told so: {metrics}");
}
