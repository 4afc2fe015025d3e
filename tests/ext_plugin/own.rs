//! `portcullis plugin`: a plugin is begun and tried out without a gateway.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::support::{
    gateway::PROGRAM,
    runner::{Runner, program},
};

/// What a command prints, and its exit code.
fn run(home: &Path, words: &[&str]) -> (String, Option<i32>) {
    let done = Command::new(PROGRAM).current_dir(home).args(words).output().expect("the program runs");
    let text = [done.stdout, done.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), done.status.code())
}

/// `plugin test` with a plugin of the stub runner.
#[track_caller]
fn check(runner: &Runner, words: &[&str], plugin: &str, conf: Value, expected: &str) {
    let socket = runner.socket().display().to_string();
    let conf = conf.as_str().map_or_else(|| conf.to_string(), str::to_owned);
    let words =
        [&["plugin", "test", "--socket", &socket, "--conf", &conf], words, &[plugin, "/a%20b?x=1"]].concat();
    let (told, _) = run(&std::env::temp_dir(), &words);
    assert_eq!(told, expected, "{plugin} {conf}");
}

#[test]
fn what_a_plugin_would_do_is_told() {
    let runner = Runner::start();
    check(&runner, &[], "nothing", json!(""), "the request goes on unchanged\n");
    check(
        &runner,
        &[],
        "stop",
        json!({"status": 403, "headers": [["X-A", "b"]], "body": "no"}),
        "the plugin answers 403 Forbidden\n  header X-A: b\n  body, 2 bytes:\nno\n",
    );
    check(
        &runner,
        &[],
        "rewrite",
        json!({"path": "/x", "headers": [["h", null]], "args": [["a", "1"]], "resp_headers": [["R", "2"]]}),
        "the request goes on, changed:\n  path: /x\n  header h is deleted\n  argument a: 1\n  header of the response R: 2\n",
    );
    check(
        &runner,
        &["-H", "X-One: 2", "-d", "abc", "--var", "route_id=7", "-X", "POST"],
        "ask",
        json!(["var:route_id", "var:http_x_one", "var:arg_x", "var:uri", "var:nothing", "reqbody"]),
        "asked for $route_id: 7\nasked for $http_x_one: 2\nasked for $arg_x: 1\nasked for $uri: /a b\n\
         asked for $nothing: not set (--var nothing=VALUE sets it)\nasked for the request's body: 3 bytes\n\
         the plugin answers 200 OK\n  body, 31 bytes:\n[\"7\",\"2\",\"1\",\"/a b\",null,\"abc\"]\n",
    );
    check(
        &runner,
        &["--response", "404", "--response-data", "gone"],
        "respond",
        json!({"status": 202, "headers": [["Server", null]]}),
        "the response goes on, changed:\n  status: 202 Accepted\n  header Server is deleted\n",
    );
}

#[test]
fn a_plugin_that_fails_is_told_as_well() {
    let runner = Runner::start();
    let socket = runner.socket().display().to_string();
    let home = std::env::temp_dir();
    let words = ["plugin", "test", "--socket", &socket, "--conf", "error:1", "fault"];
    let (told, code) = run(&home, &words);
    assert_eq!(
        (told.as_str(), code),
        ("the plugin cannot be called: the runner answered: service unavailable\n", Some(7))
    );
    let (told, code) = run(&home, &["plugin", "test", "--socket", "/nowhere/r.sock", "any"]);
    assert!(told.contains("failed to connect") && code == Some(7), "{told}");
    let (told, code) = run(&home, &["plugin", "test", "--socket", &socket, "-H", "no header", "any"]);
    assert!(told.contains("is no header") && code == Some(2), "{told}");
}

#[test]
fn the_runner_of_the_configuration_is_started_and_ends() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("conf")).unwrap();
    let runners = json!({"ext-plugin": {"runners": {
        "broken": {"cmd": ["false"]}, "stub": {"cmd": [program().display().to_string()]},
    }}});
    fs::write(home.path().join("conf/config.yaml"), runners.to_string()).unwrap();
    let conf = json!({"body": "{}"}).to_string();
    let (told, code) = run(home.path(), &["plugin", "test", "--runner", "stub", "--conf", &conf, "stop"]);
    assert!(told.contains("the plugin answers 200 OK") && code == Some(0), "{told}");
    let (told, code) = run(home.path(), &["plugin", "test", "--runner", "other", "stop"]);
    assert!(told.contains("no runner other") && code == Some(7), "{told}");
    let (told, code) = run(home.path(), &["plugin", "test", "stop"]);
    assert!(told.contains("no process of it is ready") && code == Some(7), "{told}");
}

/// What `make` prints in a directory that `plugin new` wrote; it must succeed.
#[track_caller]
pub(super) fn made(directory: &Path, target: &str) -> String {
    let programs = Path::new(PROGRAM).parent().expect("it lies in a directory").display();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap_or_default());
    let done = Command::new("make").current_dir(directory).env("PATH", path).arg(target).output();
    let done = done.expect("make runs");
    let told = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    assert!(done.status.success(), "{told}");
    told
}

/// Lets calls wait for minutes: a JVM on a busy machine does not start in half a minute, and each of the project's calls
/// starts one.
#[track_caller]
fn patient(own: &Path) {
    let file = own.join("conf/config.yaml");
    let config = fs::read_to_string(&file).expect("a configuration");
    let config = config.replace("ext-plugin:\n", "ext-plugin:\n  timeout: {ready: 3m, call: 3m}\n");
    assert!(config.contains("3m"), "{config}");
    fs::write(file, config).expect("it can be written");
}

/// What `plugin new` writes for a language is built as its README says, and does what that promises.
#[track_caller]
fn begun(language: &str) {
    let home = tempfile::tempdir().unwrap();
    let (told, code) = run(home.path(), &["plugin", "new", language, "rate-card"]);
    assert_eq!(code, Some(0), "{told}");
    let own = home.path().join("rate-card");
    patient(&own);
    let told = made(&own, "test");
    assert!(
        told.contains("answers 403 Forbidden") && told.contains("the response goes on, changed"),
        "{told}"
    );
    let call = |words: &[&str]| {
        let (told, code) =
            run(&own, &[&["plugin", "test", "-c", "conf/config.yaml", "rate-card"], words].concat());
        assert_eq!(code, Some(0), "{language}: {told}");
        told.to_lowercase()
    };
    let told = call(&["/hello"]);
    assert!(
        told.contains("the request goes on, changed:") && told.contains("header x-checked: yes"),
        "{told}"
    );
    let told = call(&["/hello", "--conf", "{\"header\": \"X-Other\", \"value\": \"no\"}"]);
    assert!(told.contains("header x-other: no"), "{told}");
    let told = call(&["/hello?stop=1"]);
    assert!(told.contains("answers 403 forbidden") && told.contains("stopped by rate-card"), "{told}");
    let told = call(&["--response", "200"]);
    assert!(told.contains("header x-plugin: rate-card"), "{told}");
    let (told, code) = run(&own, &["test", "-c", "conf/config.yaml"]);
    assert!(told.contains("configuration test is successful") && code == Some(0), "{told}");
    let (told, code) = run(home.path(), &["plugin", "new", language, "rate-card"]);
    assert!(told.contains("exists") && code == Some(6), "{told}");
}

#[test]
fn python() {
    begun("python");
}

#[test]
fn node() {
    begun("node");
}

#[test]
fn go() {
    begun("go");
}

#[test]
fn java() {
    begun("java");
}
