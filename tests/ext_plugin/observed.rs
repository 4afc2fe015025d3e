//! What operators see of runners: metrics, the Control API, the access log.

use std::fs;

use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::json;

use super::{Fixture, runners};
use crate::support::{
    at,
    client::Request,
    eventually,
    gateway::{Gateway, Setup},
    runner::{conf, program, started_by},
    upstream::Upstream,
};

fn scrape(gateway: &Gateway) -> String {
    Request::new(gateway.ports.metrics, "GET", "/apisix/prometheus/metrics").send().expect(200).text()
}

/// Waits until the metrics have all these lines.
#[track_caller]
fn counted(gateway: &Gateway, lines: &[&str]) {
    let mut text = String::new();
    eventually(&lines.join("\n"), || {
        text = scrape(gateway);
        lines.iter().all(|line| text.lines().any(|one| one == format!("portcullis_ext_plugin_{line}")))
    });
}

#[test]
fn nothing_is_counted_without_a_runner() {
    let upstream = Upstream::echo();
    let gateway =
        Gateway::file(json!({"routes": [{"id": "1", "uri": "/*", "upstream": upstream.resource()}]}));
    gateway.get("/").expect(200);
    assert!(!scrape(&gateway).contains("ext_plugin"));
    assert_eq!(runners(&gateway), json!([]));
}

#[test]
fn calls_are_counted() {
    let fixture = Fixture::new(json!({
        "ext-plugin-pre-req": {"conf": [
            {"name": "look", "value": "[\"var:uri\", \"var:host\"]"}, {"name": "nothing", "value": ""},
        ]},
        "ext-plugin-post-resp": conf("fault", "error:1"),
    }));
    for _ in 0..3 {
        fixture.get("/").expect(503);
    }
    let pre = "runner=\"default\",hook=\"ext-plugin-pre-req\",plugin=\"look,nothing\"";
    let post = "runner=\"default\",hook=\"ext-plugin-post-resp\",plugin=\"fault\"";
    counted(
        &fixture.gateway,
        &[
            &format!("call_duration_seconds_count{{{pre},call=\"http_req_call\"}} 3"),
            &format!("call_duration_seconds_count{{{pre},call=\"prepare_conf\"}} 1"),
            &format!("call_duration_seconds_count{{{pre},call=\"extra_info\"}} 6"),
            &format!("call_duration_seconds_count{{{post},call=\"http_resp_call\"}} 3"),
            &format!("errors_total{{{post},kind=\"service_unavailable\"}} 3"),
            &format!("tokens_total{{{pre},outcome=\"hit\"}} 2"),
            &format!("tokens_total{{{pre},outcome=\"miss\"}} 1"),
            &format!("tokens_total{{{pre},outcome=\"renewal\"}} 0"),
            "process_ready{runner=\"default\",process=\"0\"} 1",
            "in_flight{runner=\"default\",process=\"0\"} 0",
            "circuit_breaker{runner=\"default\",process=\"0\"} 0",
        ],
    );
}

#[test]
fn an_open_breaker_is_seen() {
    let mut fixture = Fixture::new(json!({"ext-plugin-pre-req": conf("nothing", "")}));
    fixture.get("/").expect(200);
    fixture.runner.kill();
    for _ in 0..8 {
        fixture.get("/").expect(503);
    }
    counted(&fixture.gateway, &["circuit_breaker{runner=\"default\",process=\"0\"} 1"]);
    let shown = runners(&fixture.gateway);
    assert_eq!(at(&shown, "/0/processes/0/circuit_breaker"), "open");
    let error = at(&shown, "/0/processes/0/last_error/text").as_str().expect("a text").to_owned();
    assert!(error.contains("failed to connect"), "{error}");
    assert!(scrape(&fixture.gateway).contains("kind=\"circuit_open\"}"));
    fixture.runner.start_again();
    eventually("it is closed", || {
        at(&runners(&fixture.gateway), "/0/processes/0/circuit_breaker") == "closed"
    });
    fixture.get("/").expect(200);
}

#[test]
fn processes_are_shown() {
    let upstream = Upstream::echo();
    let plugins = json!({"ext-plugin-pre-req": conf("nothing", "")});
    let route = json!({"id": "1", "uri": "/*", "plugins": plugins, "upstream": upstream.resource()});
    let stub = json!({"cmd": [program().display().to_string()], "processes": 2});
    let set = json!({"stub": stub, "broken": {"cmd": ["false"]}});
    let gateway = Setup::file(json!({"routes": [route]})).set("ext-plugin.runners", set).start();
    let find = |name: &str| {
        let all = runners(&gateway);
        let all = all.as_array().expect("a list").clone();
        all.into_iter().find(|runner| runner["name"] == name).expect("it is there")
    };
    eventually("both processes are ready", || find("stub")["ready"] == 2);
    let stub = find("stub");
    let mut told: Vec<i64> =
        (0..2).map(|at| stub["processes"][at]["pid"].as_i64().expect("a number")).collect();
    let mut pids: Vec<i64> = started_by(gateway.child()).into_iter().map(i64::from).collect();
    pids.retain(|pid| told.contains(pid));
    told.sort_unstable();
    pids.sort_unstable();
    assert_eq!(told, pids);
    assert_eq!(at(&stub, "/processes/1/state"), "ready");
    assert_eq!(at(&stub, "/processes/1/generation"), 1);
    let killed = i32::try_from(at(&stub, "/processes/0/pid").as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(Pid::from_raw(killed), Signal::SIGKILL).expect("it runs");
    eventually("another one takes its place", || at(&find("stub"), "/processes/0/generation") == 2);
    let stub = find("stub");
    assert_eq!(at(&stub, "/restarts"), 1);
    let why = at(&stub, "/processes/0/last_error/text").as_str().expect("a text").to_owned();
    assert!(why.starts_with("it ended after"), "{why}");
    counted(&gateway, &["restarts_total{runner=\"stub\",process=\"0\"} 1"]);
    eventually("the one that does not start says why", || {
        let broken = find("broken");
        let why = broken["processes"][0]["last_error"]["text"].as_str().unwrap_or_default().to_owned();
        broken["ready"] == 0 && why.starts_with("it ended before it was ready")
    });
}

#[test]
fn the_access_log_tells_of_calls() {
    let format = "$uri $ext_plugin_runner|$ext_plugin_status|$ext_plugin_time";
    let plugins = json!({
        "ext-plugin-pre-req": conf("rewrite", json!({"headers": [["x-a", "1"]]})),
        "ext-plugin-post-resp": conf("respond", json!({"headers": [["x-a", "1"]]})),
    });
    let fixture = Fixture::with(plugins, |setup| {
        setup.set("nginx_config.http.access_log_format", format).set("nginx_config.http.access_log_buffer", 1)
    });
    fixture.get("/called").expect(200);
    let file = fixture.gateway.path("logs/access.log");
    let mut line = String::new();
    eventually("the request is logged", || {
        line = fs::read_to_string(&file).unwrap_or_default();
        line.ends_with('\n')
    });
    let (told, times) = line.trim_end().rsplit_once('|').expect("the times stand last");
    assert_eq!(told, "/called default, default|rewrite, change");
    assert_eq!(times.split(", ").filter(|time| time.parse::<f64>().is_ok()).count(), 2, "{times}");
}
