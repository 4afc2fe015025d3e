//! Runners that the gateway starts: they are there when they are needed, come back, and leave no orphan.

use std::{path::Path, time::Duration};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    at,
    client::Request,
    eventually,
    gateway::{Gateway, Setup},
    runner::{conf, program},
    upstream::Upstream,
};

fn start(change: impl FnOnce(Setup) -> Setup, plugins: Value) -> (Gateway, Upstream) {
    let upstream = Upstream::echo();
    let route = json!({"id": "1", "uri": "/*", "plugins": plugins, "upstream": upstream.resource()});
    (change(Setup::file(json!({"routes": [route]}))).start(), upstream)
}

fn command() -> Value {
    json!([program().display().to_string()])
}

/// The number of the process that answers.
fn answering(gateway: &Gateway) -> i32 {
    let pid = at(&gateway.get("/").expect(200).json(), "/pid").as_i64().expect("a number");
    i32::try_from(pid).expect("process numbers are small")
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).expect("it is there");
}

fn gone(pid: i32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_runner_is_started_and_comes_back() {
    let settings = |setup: Setup| {
        setup.set("ext-plugin.cmd", command()).set("nginx_config.envs", json!(["GREETING=hi there"]))
    };
    let (gateway, _upstream) = start(settings, json!({"ext-plugin-pre-req": conf("echo", "")}));
    for _ in 0..3 {
        let pid = answering(&gateway);
        kill(pid);
        eventually("another process answers", || {
            let answer = gateway.get("/");
            answer.status == 200 && at(&answer.json(), "/pid") != &json!(pid)
        });
    }
    eventually("what the runner says of its environment is logged", || gateway.stderr().contains("hi there"));
}

#[test]
fn no_orphan_is_left() {
    let (gateway, _upstream) = start(
        |setup| setup.set("ext-plugin.runners", json!({"many": {"cmd": command(), "processes": 2}})),
        json!({"ext-plugin-pre-req": conf("echo", "")}),
    );
    let first = answering(&gateway);
    let mut second = first;
    eventually("both processes answer", || {
        second = answering(&gateway);
        second != first
    });
    gateway.signal(Signal::SIGKILL);
    eventually("both are gone", || gone(first) && gone(second));
}

#[test]
fn a_plugin_chooses_its_runner() {
    let mut plugins = json!({"ext-plugin-pre-req": conf("stop", json!({"body": "from b"}))});
    plugins["ext-plugin-pre-req"]["runner"] = "b".into();
    let runners = json!({"a": {"cmd": ["false"]}, "b": {"cmd": command()}});
    let (gateway, _upstream) = start(|setup| setup.set("ext-plugin.runners", runners), plugins);
    gateway.get("/").expect(200).expect_body("from b");
}

#[test]
fn a_change_of_files_replaces_the_process_without_a_failure() {
    let watched = tempfile::tempdir().unwrap();
    let runners = json!({"a": {"cmd": command(), "watch": [watched.path()]}});
    let (gateway, _upstream) = start(
        |setup| setup.set("ext-plugin.runners", runners),
        json!({"ext-plugin-pre-req": conf("echo", "")}),
    );
    let old = answering(&gateway);
    // The first look must be over before the change.
    eventually("the new process answers", || {
        std::fs::write(watched.path().join(format!("{:?}", std::time::Instant::now())), "x").unwrap();
        answering(&gateway) != old
    });
    eventually("the old process is gone", || gone(old));
}

/// What the runner was told of its only configuration, and how often the gateway told it.
fn keys_told(gateway: &Gateway, asks: usize, pause: Duration) -> Vec<String> {
    let ask = |_| {
        std::thread::sleep(pause);
        at(&gateway.get("/").expect(200).json(), "/key").as_str().expect("a key").to_owned()
    };
    let mut keys: Vec<String> = (0..asks).map(ask).collect();
    keys.dedup();
    keys
}

#[track_caller]
fn tokens(gateway: &Gateway, outcome: &str) -> u64 {
    let metrics =
        Request::new(gateway.ports.metrics, "GET", "/apisix/prometheus/metrics").send().expect(200).text();
    let line =
        metrics.lines().find(|line| line.contains("ext_plugin_tokens_total") && line.contains(outcome));
    line.and_then(|line| line.rsplit_once(' ')).expect("it is counted").1.parse().expect("a number")
}

fn forgetful(expire: &str) -> (Gateway, Upstream) {
    let settings =
        |setup: Setup| setup.set("ext-plugin.cmd", command()).set("ext-plugin.conf_expire", expire);
    start(settings, json!({"ext-plugin-pre-req": conf("echo", "")}))
}

#[test]
fn a_configuration_in_use_is_renewed_before_the_runner_forgets_it() {
    let (gateway, _upstream) = forgetful("5s");
    let mut keys = Vec::new();
    eventually("it was renewed", || {
        keys.extend(keys_told(&gateway, 20, Duration::from_millis(20)));
        tokens(&gateway, "outcome=\"renewal\"") > 0
    });
    keys.dedup();
    assert!(keys.len() > 1, "{keys:?}");
    assert!(!gateway.stderr().contains("conf token not found"), "no call met a token that was forgotten");
}

#[test]
fn a_configuration_that_was_not_used_for_too_long_is_told_anew() {
    let (gateway, _upstream) = forgetful("1s");
    // Longer than the runner keeps it, however slow the machine is.
    let keys = keys_told(&gateway, 4, Duration::from_millis(1100));
    assert_eq!(keys.len(), 4, "{keys:?}");
    // Where a call takes that long to reach the runner, it is told once more.
    assert!(tokens(&gateway, "outcome=\"miss\"") >= 4);
    assert_eq!(tokens(&gateway, "outcome=\"renewal\""), 0);
}

#[test]
fn a_runner_that_prints_without_end_does_not_fill_the_log() {
    const LINES: usize = 50_000;
    let prints = format!("seq -f 'line %.0f' {LINES}; sleep 2; echo done; exec {}", program().display());
    let (gateway, _upstream) = start(
        |setup| setup.set("ext-plugin.cmd", json!(["sh", "-c", prints])),
        json!({"ext-plugin-pre-req": conf("echo", "")}),
    );
    answering(&gateway);
    let told = "the runner printed more than is logged";
    eventually("the end of the log is told", || gateway.stderr().contains(told));
    let log = gateway.stderr();
    assert!(log.contains("line 1 runner=\"default\" process=0"), "{log}");
    assert!(log.matches("line ").count() < LINES / 2, "{log}");
}
