//! The runners of `plugins/`, started by the gateway: what a plugin in each language decides is done.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::support::{
    at,
    client::Request,
    eventually,
    gateway::{Gateway, Setup},
    runner::conf,
    tool,
    upstream::Upstream,
};

/// A file of the source tree.
fn file(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name).display().to_string()
}

/// The command of a language's runner with its examples, built if that is necessary.
#[track_caller]
fn command(language: &str) -> Value {
    tool::stdout(&file(".ci/runners"), &["build", language]);
    match language {
        "python" => {
            json!([
                "python3",
                file("plugins/python/bin/py-runner"),
                "start",
                "--plugins",
                file("plugins/conformance/python")
            ])
        }
        "node" => json!([
            "node",
            file("plugins/node/bin/runner.js"),
            "--processes",
            "2",
            file("plugins/node/examples")
        ]),
        "go" => json!([file("plugins/go/runner"), "run"]),
        _ => json!(["java", "-XX:TieredStopAtLevel=1", "-jar", file("plugins/java/target/plugins.jar")]),
    }
}

/// A gateway with a runner that it has started, and a route for each plugin of the examples.
struct Fixture {
    gateway: Gateway,
    upstream: Upstream,
}

impl Fixture {
    #[track_caller]
    fn start(language: &str) -> Self {
        let upstream = Upstream::echo();
        let route = |id: &str, plugin: &str, text: Value| {
            let plugins = json!({plugin: conf(id, text)});
            json!({"id": id, "uri": format!("/{id}"), "plugins": plugins, "upstream": upstream.resource()})
        };
        let stop = json!({"status": 401, "headers": {"X-From": "runner"}, "body": "no"});
        let change = json!({"path": "/a b", "headers": {"X-New": "1"}, "args": {"n": "2"}});
        let answer = json!({"status": 203, "headers": {"X-Seen": "yes"}, "append": "!"});
        let mut failing = route("inspect", "ext-plugin-pre-req", json!({"fail": true}));
        failing["id"] = json!("failing");
        failing["uri"] = json!("/failing");
        let mut degrading = failing.clone();
        degrading["id"] = json!("degrading");
        degrading["uri"] = json!("/degrading");
        degrading["plugins"]["ext-plugin-pre-req"]["allow_degradation"] = json!(true);
        let routes = [
            route("stop", "ext-plugin-pre-req", stop),
            route("rewrite", "ext-plugin-post-req", change),
            route("inspect", "ext-plugin-pre-req", json!({})),
            route("response", "ext-plugin-post-resp", answer),
            failing,
            degrading,
        ];
        let gateway = Setup::file(json!({"routes": routes})).set("ext-plugin.cmd", command(language)).start();
        // the gateway does not wait for its runner
        eventually("the runner answers", || gateway.get("/stop").status == 401);
        Self { gateway, upstream }
    }
}

#[track_caller]
fn check(language: &str) {
    let Fixture { gateway, upstream } = Fixture::start(language);

    let stopped = gateway.get("/stop").expect(401).expect_body("no");
    assert_eq!(stopped.header("x-from"), Some("runner"), "{language}");
    assert_eq!(upstream.count(), 0, "{language}: nothing goes upstream");

    gateway.request("POST", "/rewrite?m=1").header("X-Old", "1").body("kept").send().expect(200);
    let seen = upstream.last();
    assert!(
        ["/a%20b?m=1&n=2", "/a%20b?n=2&m=1"].contains(&seen.target.as_str()),
        "{language}: {}",
        seen.target
    );
    assert_eq!((seen.header("x-new"), seen.header("x-old")), (Some("1"), Some("1")), "{language}");
    assert_eq!(seen.body, b"kept", "{language}");

    for size in [0, 9_000, 1_000_000, 15_000_000] {
        let request = gateway.request("PUT", "/inspect?a=1&b=").header("X-One", "2").body(vec![b'z'; size]);
        let answer = request.send();
        if language == "go" && size > 200_000 && answer.status != 200 {
            // Its module cuts what does not come at once, as chance has it; then the plugin refuses the request.
            answer.expect(503);
            continue;
        }
        let told = answer.expect(200).json();
        let plain = [
            ("/method", "PUT"),
            ("/path", "/inspect"),
            ("/remote_addr", "127.0.0.1"),
            ("/route_id", "inspect"),
        ];
        for (pointer, value) in plain {
            assert_eq!(at(&told, pointer), value, "{language}");
        }
        assert_eq!(at(&told, "/args"), &json!({"a": "1", "b": ""}), "{language}");
        assert_eq!(at(&told, "/body_length"), size, "{language}");
    }

    gateway.get("/failing").expect(503);
    gateway.get("/degrading").expect(200);
    gateway.get("/stop").expect(401);

    let answered = gateway.get("/response").expect(203);
    assert_eq!(answered.header("x-seen"), Some("yes"), "{language}");
    assert!(answered.text().ends_with("}!"), "{language}: {}", answered.text());
}

#[test]
fn python() {
    check("python");
}

#[test]
fn node() {
    check("node");
}

#[test]
fn go() {
    check("go");
}

#[test]
fn java() {
    check("java");
}

/// The tutorial's chapter on plugins of one's own, with its plugin, its route and its request.
#[test]
fn the_tutorial() {
    const KEY: &str = "edd1c9f034335f136f87ad84b625c8f1";
    let setup = Setup::new().speaking_3_2();
    let plugins = setup.home().join("plugins");
    fs::create_dir(&plugins).expect("a directory can be made");
    fs::copy(file("plugins/python/tests/article/stop.py"), plugins.join("stop.py"))
        .expect("the plugin can be copied");
    let gateway = setup
        .set("deployment.admin.admin_key", json!([{"name": "admin", "key": KEY, "role": "admin"}]))
        .set(
            "ext-plugin.cmd",
            json!([
                "python3",
                file("plugins/python/bin/py-runner"),
                "start",
                "--plugins",
                plugins.display().to_string()
            ]),
        )
        .start();
    let upstream = Upstream::echo();
    let route = json!({
        "uri": "/extPlugin",
        "host": "test.foobar.com",
        "plugins": {"ext-plugin-pre-req": {"conf": [{"name": "stop", "value": "{\"body\":\"hello\"}"}]}},
        "upstream": upstream.resource(),
    });
    Request::new(gateway.ports.admin, "PUT", "/apisix/admin/routes/ext")
        .header("X-API-KEY", KEY)
        .json(&route)
        .send()
        .expect(201);
    let url = format!("http://127.0.0.1:{}/extPlugin", gateway.ports.http);
    let mut told = String::new();
    eventually("the runner answers", || {
        told = tool::stdout("curl", &["-sSi", "-H", "Host: test.foobar.com", &url]);
        !told.starts_with("HTTP/1.1 503")
    });
    let (head, body) = told.split_once("\r\n\r\n").expect("a head and a body");
    // The tutorial's answer comes in chunks; ours tells its length. All else is as it is printed there.
    let framing = |line: &str| line == "Transfer-Encoding: chunked" || line == "Content-Length: 30";
    assert_eq!(head.split("\r\n").filter(|line| framing(line)).count(), 1, "{head}");
    let mut lines: Vec<&str> =
        head.split("\r\n").filter(|line| !line.starts_with("Date: ") && !framing(line)).collect();
    lines.sort_unstable();
    let expected = [
        "Connection: keep-alive",
        "Content-Type: text/plain; charset=utf-8",
        "HTTP/1.1 201 Created",
        "Server: APISIX/3.2.0",
        "x-resp-a6-runner: Python",
    ];
    assert_eq!(lines, expected);
    assert_eq!(body, "Hello, Python Runner of APISIX");
    assert_eq!(upstream.count(), 0, "the plugin answered");
    eventually("what the plugin printed stands in the log", || {
        let log = gateway.stderr();
        log.contains("{\"body\":\"hello\"}") && log.contains("test.foobar.com")
    });
}
