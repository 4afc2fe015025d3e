//! Plugins of one's own are changed while requests pass through them: what `plugin new` writes, started by the gateway
//! and built anew as its README says.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::own::made;
use crate::support::{
    Finish,
    client::Connection,
    eventually,
    gateway::{Gateway, PROGRAM, Setup},
    runner::{conf, started_by},
    upstream::Upstream,
};

/// Of one client, between two requests.
const PAUSE: Duration = Duration::from_millis(10);

/// A list of the configuration that `plugin new` writes.
#[track_caller]
fn setting(directory: &Path, name: &str) -> Value {
    let config = fs::read_to_string(directory.join("conf/config.yaml")).expect("a configuration");
    let line = config.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
    serde_json::from_str(line.expect("it is set")).expect("it is a list")
}

/// The only file of a project that says what a request is answered.
#[track_caller]
fn source(directory: &Path) -> PathBuf {
    let (mut open, mut found) = (vec![directory.to_owned()], Vec::new());
    while let Some(path) = open.pop() {
        if path.is_dir() && path.file_name().is_some_and(|name| name != "runner" && name != "target") {
            open.extend(fs::read_dir(&path).expect("a directory").flatten().map(|entry| entry.path()));
        } else if fs::read_to_string(&path)
            .is_ok_and(|text| text.contains("\"stopped by") || text.contains("'stopped by"))
        {
            found.push(path);
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// What clients were answered.
#[derive(Default)]
struct Answers {
    stopped: Mutex<BTreeSet<String>>,
    count: AtomicUsize,
}

impl Answers {
    /// Asks for a request that the plugin stops, and for one that it changes on its way there and back, until it is over.
    fn ask(&self, gateway: &Gateway, name: &str, over: &AtomicBool) {
        let mut client = Connection::open(gateway.ports.http);
        while !over.load(Relaxed) {
            // Locked while it asks: who forgets earlier answers hears of none that was on its way.
            let mut stopped = self.stopped.lock().unwrap();
            stopped.insert(client.exchange(&gateway.request("GET", "/?stop=1")).expect(403).text());
            drop(stopped);
            let passed =
                client.exchange(&gateway.request("GET", "/")).expect(200).expect_header("x-plugin", name);
            assert!(passed.text().to_lowercase().contains("x-checked"), "{}", passed.text());
            self.count.fetch_add(1, Relaxed);
            thread::sleep(PAUSE);
        }
    }
}

#[track_caller]
fn changed(language: &str) {
    const NAME: &str = "rate-card";
    let home = tempfile::tempdir().unwrap();
    let own = home.path().join(NAME);
    let new = Command::new(PROGRAM).current_dir(home.path()).args(["plugin", "new", language, NAME]).output();
    assert!(new.expect("the program runs").status.success());
    made(&own, "build");

    let upstream = Upstream::echo();
    let plugins = json!({"ext-plugin-pre-req": conf(NAME, "{}"), "ext-plugin-post-resp": conf(NAME, "{}")});
    let route = json!({"id": "1", "uri": "/*", "plugins": plugins, "upstream": upstream.resource()});
    let runner = json!({"cmd": setting(&own, "cmd"), "watch": setting(&own, "watch")});
    let gateway =
        Setup::file(json!({"routes": [route]})).set("ext-plugin.runners", json!({NAME: runner})).start();
    eventually("the runner answers", || gateway.get("/?stop=1").status == 403);

    let (answers, over, source) = (Answers::default(), AtomicBool::new(false), source(&own));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..2).map(|_| scope.spawn(|| answers.ask(&gateway, NAME, &over))).collect();
        let finish = Finish(&over);
        let asked = |more: usize| {
            let until = answers.count.load(Relaxed) + more;
            eventually("requests are answered", || {
                answers.count.load(Relaxed) >= until || clients.iter().any(|client| client.is_finished())
            });
        };
        asked(10);
        // A program that does not even begin changes nothing.
        let (good, old) = (fs::read_to_string(&source).expect("a source"), started_by(gateway.child()));
        if matches!(language, "python" | "node") {
            fs::write(&source, "this is no program").unwrap();
            eventually("it is refused", || {
                gateway.stderr().contains("the new runner does not start; the old one stays")
            });
            asked(10);
            // The other one may be tried again.
            let now = started_by(gateway.child());
            assert!(old.iter().all(|pid| now.contains(pid)), "the old runner stays: {old:?}, {now:?}");
        }
        for (before, after) in [("stopped by", "held by"), ("held by", "kept by")] {
            let old = started_by(gateway.child());
            let text = good.replace("stopped by", before).replace(before, after);
            fs::write(&source, text).expect("it can be written");
            made(&own, "build");
            let told = format!("{after} {NAME}\n");
            eventually("the new plugin answers", || {
                answers.stopped.lock().unwrap().contains(&told)
                    || clients.iter().any(|client| client.is_finished())
            });
            eventually("the old runner is gone", || {
                started_by(gateway.child()).iter().all(|pid| !old.contains(pid))
            });
            answers.stopped.lock().unwrap().clear();
            asked(10);
            let stopped = answers.stopped.lock().unwrap().clone();
            assert_eq!(stopped, BTreeSet::from([told]), "the old plugin answers no longer");
        }
        drop(finish);
        clients.into_iter().for_each(|client| client.join().expect("no request failed"));
    });
}

#[test]
fn python() {
    changed("python");
}

#[test]
fn node() {
    changed("node");
}

#[test]
fn go() {
    changed("go");
}

#[test]
fn java() {
    changed("java");
}
