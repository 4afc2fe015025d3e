//! Runners that the gateway starts: they are there when they are needed, come back, and leave no orphan.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    at, eventually,
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
    let log = gateway.stderr();
    assert!(
        log.contains("expire time 3600, greeting Some(\\\"hi there\\\")") || log.contains("hi there"),
        "{log}"
    );
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
