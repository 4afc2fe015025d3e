//! A thousand configurations in one runner: every request gets its own, whatever the runner forgets.

use std::thread;

use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::{Value, json};

use crate::support::{
    client::Connection,
    gateway::{Gateway, Setup},
    runner::{conf, program, started_by},
    upstream::Upstream,
};

const ROUTES: usize = 1000;
const CLIENTS: usize = 4;

/// Asks for every route, each client in an order of its own. A runner that is killed meanwhile costs what it was asked
/// just then: that is asked again.
fn ask_all(gateway: &Gateway, rounds: usize) {
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let mut connection = Connection::open(gateway.ports.http);
                for step in 0..rounds * ROUTES / CLIENTS {
                    // 7 and 1000 have no common divisor.
                    let route = (client * 251 + step * 7) % ROUTES;
                    let request = gateway.request("GET", &format!("/r{route}"));
                    let answer = std::iter::repeat_with(|| connection.exchange(&request))
                        .take(20)
                        .find(|answer| answer.status != 503)
                        .expect("the runner is back");
                    answer.expect(200).expect_body(&format!("this is route {route}"));
                }
            });
        }
    });
}

#[track_caller]
fn each_gets_its_own(runner: Value) {
    let upstream = Upstream::echo();
    let routes = (0..ROUTES).map(|route| {
        let stop = conf("stop", json!({"status": 200, "body": format!("this is route {route}")}));
        let plugins = json!({"ext-plugin-pre-req": stop});
        json!({"id": route.to_string(), "uri": format!("/r{route}"), "plugins": plugins, "upstream": upstream.resource()})
    });
    let routes: Vec<Value> = routes.collect();
    let setup = Setup::file(json!({"routes": routes})).set("ext-plugin.runners", json!({"one": runner}));
    let gateway = setup.set("nginx_config.envs", json!(["FORGET_AFTER=3"])).start();
    ask_all(&gateway, 2);
    thread::scope(|scope| {
        scope.spawn(|| ask_all(&gateway, 4));
        let old = started_by(gateway.child());
        for pid in old {
            nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        }
    });
    ask_all(&gateway, 1);
    assert_eq!(upstream.count(), 0);
}

#[test]
fn in_a_runner_that_forgets() {
    each_gets_its_own(json!({"cmd": [program().display().to_string()]}));
}

#[test]
fn in_several_processes() {
    each_gets_its_own(json!({"cmd": [program().display().to_string()], "processes": 3}));
}

#[test]
fn in_the_python_runner() {
    let here = |path: &str| format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    let (runner, plugins) = (here("plugins/python/bin/py-runner"), here("plugins/conformance/python"));
    each_gets_its_own(json!({"cmd": ["python3", runner, "start", "--plugins", plugins]}));
}
