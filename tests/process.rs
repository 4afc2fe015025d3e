//! The process: how it starts, what it says, how it ends, how it hands over to its successor.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    Finish,
    client::{Connection, Request},
    eventually,
    gateway::{Gateway, KEY, PROGRAM, Setup},
    tool,
    upstream::Upstream,
};

fn one_route(upstream: &Upstream) -> Value {
    json!({"routes": [{"id": "1", "uri": "/*", "upstream": upstream.resource()}]})
}

#[test]
fn it_tells_where_it_listens_and_never_its_key() {
    let gateway = Gateway::start();
    let said = gateway.stderr();
    for part in [format!(":{}", gateway.ports.http), format!(":{}/apisix/admin", gateway.ports.admin)] {
        assert!(said.contains(&part), "{part} is not in {said}");
    }
    assert!(!said.contains(crate::support::gateway::KEY));
}

#[test]
fn stop_ends_it_at_once() {
    let upstream = Upstream::echo();
    let mut gateway = Gateway::file(one_route(&upstream));
    assert_eq!(gateway.pid(), Some(gateway.child()));
    let _idle = Connection::open(gateway.ports.http);
    let said = gateway.command(&["stop"]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(gateway.wait().success());
    assert!(!gateway.stderr().contains("requests were cut off"), "an idle connection holds nothing up");
    assert_eq!(gateway.pid(), None, "its pid file is gone");
    assert_eq!(gateway.command(&["stop"]).status.code(), Some(3), "nothing runs any more");
}

#[test]
fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let upstream = Upstream::echo();
    let setup = Setup::file(one_route(&upstream)).set("nginx_config.http.keepalive_timeout", "2s");
    let gateway = setup.start();
    let mut client = Connection::open(gateway.ports.http);
    let mut begun = Instant::now();
    // On a busy machine a connection may be idle for too long between its requests.
    eventually("a second request is in time", || {
        client = Connection::open(gateway.ports.http);
        client.exchange(&gateway.request("GET", "/")).expect(200);
        begun = Instant::now();
        client.try_exchange(&gateway.request("GET", "/?delay=5000")).is_ok_and(|answer| answer.status == 200)
    });
    assert!(client.ends(), "nothing is sent before the end");
    // Idle connections are looked at in whole spans of the time limit, never too early.
    assert!(begun.elapsed() > Duration::from_millis(6900), "{:?}", begun.elapsed());
}

#[test]
fn quit_waits_for_open_requests() {
    let upstream = Upstream::echo();
    let mut gateway = Gateway::file(one_route(&upstream));
    let port = gateway.ports.http;
    let slow = thread::spawn(move || Request::new(port, "GET", "/?delay=2500").send());
    eventually("the request is under way", || upstream.count() == 1);
    assert!(gateway.command(&["quit"]).status.success());
    slow.join().unwrap().expect(200);
    assert!(gateway.wait().success());
    assert!(Connection::try_open(port).is_err());
}

#[test]
fn the_shutdown_time_limit_is_kept() {
    let upstream = Upstream::with(|_, wire| {
        wire.hang();
    });
    let setup = Setup::file(one_route(&upstream)).set("nginx_config.worker_shutdown_timeout", "1s");
    let mut gateway = setup.start();
    let mut client = Connection::open(gateway.ports.http);
    client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually("the request is under way", || upstream.count() == 1);
    gateway.signal(Signal::SIGQUIT);
    gateway.wait();
    assert!(gateway.stderr().contains("requests were cut off"), "it waited for the request");
}

/// Clients with kept connections, all the while something happens; every request must be answered.
fn under_load(gateway: &Gateway, happening: impl FnOnce()) -> usize {
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let request = gateway.request("GET", "/");
                let mut client = Connection::open(gateway.ports.http);
                while !over.load(Ordering::Relaxed) {
                    let response = client.exchange(&request).expect(200);
                    served.fetch_add(1, Ordering::Relaxed);
                    if response.header("Connection") == Some("close") {
                        client = Connection::open(gateway.ports.http);
                    }
                }
            });
        }
        let finish = Finish(&over);
        happening();
        let before = served.load(Ordering::Relaxed);
        eventually("requests go on afterwards", || served.load(Ordering::Relaxed) > before + 100);
        drop(finish);
    });
    served.into_inner()
}

#[test]
fn reload_loses_no_request() {
    let upstream = Upstream::echo();
    let mut gateway = Gateway::file(one_route(&upstream));
    let served = under_load(&gateway, || {
        let said = gateway.command(&["reload"]);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        assert_ne!(gateway.pid(), Some(gateway.child()), "another process serves");
    });
    assert!(served > 100, "{served}");
    gateway.wait();
    gateway.get("/").expect(200);
}

#[test]
fn reload_takes_the_program_that_lies_there_now() {
    let upstream = Upstream::echo();
    let setup = Setup::file(one_route(&upstream)).own_program();
    let file = setup.home().join("portcullis");
    let mut gateway = setup.start();
    // As package managers do it: a new file under the old name.
    let new = gateway.path("portcullis.new");
    tool::copy(PROGRAM, &new);
    fs::rename(&new, &file).unwrap();
    assert!(gateway.command(&["reload"]).status.success());
    let running = fs::read_link(format!("/proc/{}/exe", gateway.pid().unwrap())).unwrap();
    assert_eq!(running, file, "not the deleted one");
    gateway.wait();
    gateway.get("/").expect(200);
}

#[test]
fn reload_keeps_what_was_written_and_takes_new_settings() {
    let upstream = Upstream::echo();
    let mut gateway = Gateway::start();
    gateway.put("/routes/1", json!({"uri": "/*", "upstream": upstream.resource()}));
    let file = gateway.path("conf/config.yaml");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    config["nginx_config"]["http"]["client_max_body_size"] = json!("10");
    fs::write(&file, config.to_string()).unwrap();
    gateway.request("POST", "/").body("more than ten bytes").send().expect(200);
    let said = gateway.command(&["reload"]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    gateway.wait();
    gateway.request("POST", "/").body("more than ten bytes").send().expect(413);
    gateway.put("/routes/2", json!({"uri": "/two", "upstream": upstream.resource()})).expect(201);
    gateway.get("/two").expect(200);
}

#[test]
fn reload_with_a_fault_changes_nothing() {
    let upstream = Upstream::echo();
    let mut gateway = Gateway::file(one_route(&upstream));
    fs::write(gateway.path("conf/config.yaml"), "apisix: {node_listen: nonsense}\n").unwrap();
    gateway.signal(Signal::SIGHUP);
    eventually("the fault is said", || gateway.stderr().contains("this one goes on"));
    assert!(gateway.alive());
    gateway.get("/").expect(200);
    assert_eq!(gateway.command(&["reload"]).status.code(), Some(1), "the command names the fault itself");
}

#[test]
fn log_files_are_opened_again() {
    let upstream = Upstream::echo();
    let setup = Setup::file(one_route(&upstream)).set("nginx_config.http.access_log_buffer", 1);
    let gateway = setup.start();
    let (log, moved) = (gateway.path("logs/access.log"), gateway.path("logs/access.log.1"));
    let lines = |file: &std::path::Path| fs::read_to_string(file).unwrap_or_default().lines().count();
    gateway.get("/before").expect(200);
    eventually("the line is written", || lines(&log) == 1);
    fs::rename(&log, &moved).unwrap();
    gateway.signal(Signal::SIGUSR1);
    eventually("a new file is made", || log.exists());
    gateway.get("/after").expect(200);
    eventually("and written to", || lines(&log) == 1);
    assert_eq!(lines(&moved), 1);
}

#[test]
fn exit_codes() {
    let run = |arguments: &[&str]| tool::run(PROGRAM, arguments).status.code();
    assert_eq!(run(&["version"]), Some(0));
    assert_eq!(run(&["no-such-command"]), Some(2));
    assert_eq!(run(&["run", "-c", "/no/such/file.yaml"]), Some(1));
    assert_eq!(run(&["schema", "no-such-plugin"]), Some(5));
    assert_eq!(Setup::new().command(&["stop", "-c", "conf/config.yaml"]).status.code(), Some(3));
    assert_eq!(Setup::new().command(&["reload", "-c", "conf/config.yaml"]).status.code(), Some(3));
    let bad = Setup::new().set("apisix.node_listen", "nonsense");
    assert_eq!(bad.command(&["run", "-c", "conf/config.yaml"]).status.code(), Some(1));
}

#[test]
fn a_port_in_use_is_named() {
    let gateway = Gateway::file(json!({}));
    let mut setup = Setup::file(json!({}));
    setup = setup.set("apisix.node_listen", json!([{"ip": "127.0.0.1", "port": gateway.ports.http}]));
    let output = setup.command(&["run", "-c", "conf/config.yaml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains(&gateway.ports.http.to_string()), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn the_admin_key_is_made_once_and_for_its_owner_only() {
    let keys = json!([{"name": "admin", "key": "", "role": "admin"}]);
    let gateway = Setup::new().set("deployment.admin.admin_key", keys).start();
    let file = gateway.path("data/admin.key");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let printed = String::from_utf8(gateway.command(&["admin-key"]).stdout).unwrap();
    let key = printed.trim().to_owned();
    assert!(key.len() >= 32, "{key}");
    let with = |key: &str| {
        Request::new(gateway.ports.admin, "GET", "/apisix/admin/routes").header("X-API-KEY", key).send()
    };
    with(&key).expect(200);
    with("").expect(401);
    let gateway = gateway.restart_after_kill();
    assert_eq!(fs::read_to_string(file).unwrap().trim(), key);
    assert!(!gateway.stderr().contains(&key), "no log shows it");
}

#[test]
fn no_key_is_made_where_every_entry_has_one() {
    let gateway = Gateway::start();
    assert!(!gateway.path("data/admin.key").exists());
    assert_eq!(gateway.command(&["admin-key"]).stdout, format!("{KEY}\n").into_bytes());
}

#[test]
fn schemas_completions_and_version() {
    let print = |arguments: &[&str]| tool::stdout(PROGRAM, arguments);
    let schema: Value = serde_json::from_str(&print(&["schema", "key-auth"])).unwrap();
    assert_eq!(schema["priority"], json!(2500));
    let schema: Value = serde_json::from_str(&print(&["schema", "route"])).unwrap();
    assert_eq!(schema["type"], json!("object"));
    assert_eq!(print(&["version"]), format!("portcullis {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        assert!(print(&["completions", shell]).contains("admin-key"), "{shell}");
    }
    let help = print(&["--help"]);
    for command in ["run", "test", "stop", "quit", "reload", "admin-key", "Exit codes:"] {
        assert!(help.contains(command), "{command}");
    }
}

#[test]
fn the_configuration_that_is_shipped_is_sound() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/config.yaml");
    assert_eq!(tool::stdout(PROGRAM, &["test", "-c", file]), "configuration test is successful\n");
}
