//! What was acknowledged is kept: through power cuts, restarts, full and read-only disks and damaged files.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use serde_json::{Value, json};

use crate::support::{
    client::Request,
    eventually,
    gateway::{Gateway, KEY, Setup},
    upstream::Upstream,
};

fn route(uri: &str, upstream: &Upstream) -> Value {
    json!({"uri": uri, "upstream": upstream.resource()})
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let upstream = Upstream::echo();
    let mut gateway = Gateway::start();
    let mut acknowledged = 0;
    for round in 0..5 {
        let counter = AtomicUsize::new(acknowledged);
        thread::scope(|scope| {
            let (counter, upstream, port) = (&counter, &upstream, gateway.ports.admin);
            let writer = scope.spawn(move || {
                loop {
                    let next = counter.load(Ordering::Relaxed);
                    let target = format!("/apisix/admin/routes/{next}");
                    let request = Request::new(port, "PUT", &target).header("X-API-KEY", KEY);
                    match request.json(&route(&format!("/r{next}"), upstream)).try_send() {
                        Ok(answer) if answer.status == 201 => counter.store(next + 1, Ordering::Relaxed),
                        // 200: written before the kill, though not acknowledged then.
                        Ok(answer) if answer.status == 200 => counter.store(next + 1, Ordering::Relaxed),
                        Ok(answer) => panic!("{} {}", answer.status, answer.text()),
                        Err(_) => return,
                    }
                }
            });
            let enough = acknowledged + 20 + round * 7;
            while counter.load(Ordering::Relaxed) < enough && !writer.is_finished() {
                thread::yield_now();
            }
            gateway.signal(nix::sys::signal::Signal::SIGKILL);
        });
        acknowledged = counter.into_inner();
        gateway = gateway.restart_after_kill();
        let list = gateway.admin("GET", "/routes").send().expect(200).json();
        let total = list["total"].as_u64().unwrap() as usize;
        // One more may have been written without the answer getting through.
        assert!(
            total == acknowledged || total == acknowledged + 1,
            "{acknowledged} acknowledged, {total} there"
        );
        for number in 0..acknowledged {
            gateway.get(&format!("/r{number}")).expect(200);
        }
    }
}

#[test]
fn a_restart_changes_nothing() {
    let upstream = Upstream::echo();
    let mut gateway = Gateway::start();
    gateway.put("/consumers", json!({"username": "jack", "plugins": {"key-auth": {"key": "jack-key"}}}));
    gateway
        .put("/routes/1", json!({"uri": "/x", "plugins": {"key-auth": {}}, "upstream": upstream.resource()}));
    let before = gateway.admin("GET", "/routes/1").send().expect(200).json();
    assert!(gateway.command(&["stop"]).status.success());
    gateway.wait();
    let gateway = gateway.start_again();
    assert_eq!(gateway.admin("GET", "/routes/1").send().expect(200).json(), before);
    gateway.request("GET", "/x").header("apikey", "jack-key").send().expect(200);
}

#[test]
fn a_damaged_store_is_left_alone() {
    let setup = Setup::new();
    let file = setup.home().join("data/portcullis.redb");
    fs::create_dir(setup.home().join("data")).unwrap();
    let damaged = b"this is not a database, and somebody may still want to rescue it".repeat(100);
    fs::write(&file, &damaged).unwrap();
    let output = setup.command(&["run", "-c", "conf/config.yaml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("portcullis.redb") && said.contains("left untouched"), "{said}");
    assert_eq!(fs::read(&file).unwrap(), damaged);
}

#[test]
fn a_second_process_does_not_take_the_store() {
    let gateway = Gateway::start();
    let other = Setup::new().set("portcullis.data_dir", gateway.path("data").display().to_string());
    let output = other.command(&["run", "-c", "conf/config.yaml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("in use by another process"), "{said}");
    gateway.put("/upstreams/u", json!({"type": "roundrobin", "nodes": {"127.0.0.1:1": 1}}));
}

#[test]
fn a_full_disk_stops_writes_and_nothing_else() {
    let upstream = Upstream::echo();
    // The shell counts in KiB. A signal that is ignored stays ignored in the gateway.
    let gateway = Setup::new().prelude("trap '' XFSZ; ulimit -f 4096").start();
    gateway.put("/routes/1", route("/x", &upstream));
    let padding = "x".repeat(500_000);
    let mut number = 0;
    let refused = loop {
        let mut large = route(&format!("/large/{number}"), &upstream);
        large["plugins"] = json!({"key-auth": {"header": padding}});
        let answer = gateway.admin("PUT", &format!("/routes/large{number}")).json(&large).send();
        if answer.status == 503 {
            break answer;
        }
        assert!(answer.status == 201 && number < 100, "{} {}", answer.status, answer.text());
        number += 1;
    };
    let why = refused.json()["error_msg"].as_str().unwrap().to_owned();
    assert!(why.contains("no space left") || why.contains("File too large"), "{why}");
    gateway.get("/x").expect(200);
    let list = gateway.admin("GET", "/routes").send().expect(200).json();
    assert_eq!(list["total"], json!(number + 1), "what was refused left no trace");
    let gateway = gateway.restart_after_kill();
    assert_eq!(gateway.admin("GET", "/routes").send().expect(200).json()["total"], json!(number + 1));
}

#[test]
fn a_store_that_cannot_be_written_is_served() {
    let upstream = Upstream::echo();
    let first = Gateway::start();
    first.put("/routes/1", route("/x", &upstream));
    // What a process leaves that is killed.
    let setup = Setup::new();
    let store = setup.home().join("data/portcullis.redb");
    fs::create_dir_all(setup.home().join("data")).unwrap();
    fs::copy(first.path("data/portcullis.redb"), &store).unwrap();
    fs::set_permissions(&store, fs::Permissions::from_mode(0o400)).unwrap();
    // The superuser writes everywhere, unless it gives that up.
    let powerless = "[ $(id -u) != 0 ] || exec setpriv --bounding-set=-dac_override,-dac_read_search \"$0\" run -c \"$1\"";
    let gateway = setup.prelude(powerless).start();
    gateway.get("/x").expect(200);
    let refused = gateway.admin("PUT", "/routes/2").json(&route("/y", &upstream)).send().expect(503);
    assert!(refused.text().contains("Permission denied"), "{}", refused.text());
    gateway.get("/y").expect(404);
    assert_eq!(gateway.admin("GET", "/routes").send().expect(200).json()["total"], json!(1));
    assert!(gateway.stderr().contains("store cannot be written"), "{}", gateway.stderr());
    fs::set_permissions(&store, fs::Permissions::from_mode(0o600)).unwrap();
    eventually("writes are taken again", || {
        gateway.admin("PUT", "/routes/2").json(&route("/y", &upstream)).send().status < 300
    });
    gateway.get("/y").expect(200);
    let gateway = gateway.restart_after_kill();
    gateway.get("/y").expect(200);
}

#[test]
fn a_data_directory_that_cannot_be_made() {
    let setup = Setup::new();
    fs::write(setup.home().join("data"), "a file stands in the way").unwrap();
    let output = setup.command(&["run", "-c", "conf/config.yaml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("could not start") && said.contains("data"), "{said}");
}

#[test]
fn many_routes_are_there_after_a_restart() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start();
    thread::scope(|scope| {
        for writer in 0..16 {
            let (gateway, upstream) = (&gateway, &upstream);
            scope.spawn(move || {
                for number in 0..100 {
                    let uri = format!("/many/{writer}/{number}");
                    gateway.put(&format!("/routes/{writer}-{number}"), route(&uri, upstream));
                }
            });
        }
    });
    let gateway = gateway.restart_after_kill();
    gateway.get("/many/15/99").expect(200);
    assert_eq!(gateway.admin("GET", "/routes").send().expect(200).json()["total"], json!(1600));
}
