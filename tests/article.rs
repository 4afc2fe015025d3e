//! The tutorial that the gateway grew from, replayed: its requests in its order, with its words.
//!
//! Chapters: basic-auth, consumer-restriction, jwt-auth; `kinds` has what the tutorial only names, `chart` the
//! configuration it starts from. Its last chapter, on plugins of one's own, is also in `ext_plugin::languages`. Which
//! test replays which step: docs/article.md. Under `compat: "3.2"` the answers are those printed there;
//! without it they are today's.

mod chart;
mod kinds;

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::support::{
    client::{Request, Response},
    eventually,
    gateway::{Gateway, Setup},
    upstream::Upstream,
};

/// The admin key that the tutorial writes into its configuration and its curl commands.
const KEY: &str = "edd1c9f034335f136f87ad84b625c8f1";

fn old() -> Gateway {
    with_its_key(Setup::new().speaking_3_2())
}

fn today() -> Gateway {
    with_its_key(Setup::new())
}

fn with_its_key(setup: Setup) -> Gateway {
    setup.set("deployment.admin.admin_key", json!([{"name": "admin", "key": KEY, "role": "admin"}])).start()
}

/// `curl http://…:9180/apisix/admin/… -H 'X-API-KEY: …' -X PUT -d …`
fn put(gateway: &Gateway, path: &str, body: &str) -> Response {
    let target = format!("/apisix/admin/{path}");
    // curl -d sends this Content-Type.
    let request = Request::new(gateway.ports.admin, "PUT", &target).header("X-API-KEY", KEY);
    request.header("Content-Type", "application/x-www-form-urlencoded").body(body).send()
}

/// The site behind the tutorial's route: `/nexus/` is rewritten to `/`.
fn nexus(gateway: &Gateway, plugin: &str) -> Upstream {
    let upstream = Upstream::with(|seen, wire| match seen.target.split('?').next() {
        Some("/") => wire.answer(200, &[("Content-Type", "text/html; charset=utf-8")], b"<html></html>"),
        _ => wire.answer(404, &[], b""),
    });
    put(gateway, "routes/nexus", &nexus_route(&upstream, plugin).to_string()).expect(201);
    upstream
}

fn nexus_route(upstream: &Upstream, plugin: &str) -> Value {
    json!({
        "uris": ["/nexus*", "/static/*", "/service/*"],
        "host": "test.foobar.com",
        "plugins": {plugin: {}, "proxy-rewrite": {"regex_uri": ["^/nexus(/|$)(.*)", "/$2"]}},
        "upstream": upstream.resource(),
    })
}

fn visit(gateway: &Gateway) -> Request {
    gateway.request("GET", "/nexus/").header("Host", "test.foobar.com")
}

#[track_caller]
fn check(response: Response, status: u16, challenge: &str, message: &str) {
    let response = response.expect(status).expect_header("WWW-Authenticate", challenge);
    let response = response.expect_header("Content-Type", "text/plain; charset=utf-8");
    response.expect_body(&format!("{{\"message\":\"{message}\"}}\n"));
}

fn basic_auth(gateway: &Gateway) -> Upstream {
    let consumer = json!({"username": "default_nexus_bauth", "plugins": {
        "basic-auth": {"username": "admin", "password": "admin321"},
    }});
    put(gateway, "consumers", &consumer.to_string()).expect(201);
    nexus(gateway, "basic-auth")
}

#[test]
fn basic_auth_in_the_words_of_3_2() {
    let gateway = old();
    let _upstream = basic_auth(&gateway);
    let missing = visit(&gateway).send().expect_header("Server", "APISIX/3.2.0");
    assert_eq!(missing.reason, "Unauthorized");
    check(missing, 401, "Basic realm='.'", "Missing authorization in request");
    check(visit(&gateway).basic("bar", "bar").send(), 401, "", "Invalid user authorization");
    let found = visit(&gateway).basic("admin", "admin321").send().expect(200);
    found.expect_header("Content-Type", "text/html; charset=utf-8").expect_header("Server", "APISIX/3.2.0");
}

#[test]
fn basic_auth_today() {
    let gateway = today();
    let _upstream = basic_auth(&gateway);
    let realm = "Basic realm=\"basic\"";
    let missing = visit(&gateway).send().expect_header("Server", "APISIX/3.18.0");
    check(missing, 401, realm, "Missing authorization in request");
    check(visit(&gateway).basic("bar", "bar").send(), 401, realm, "Invalid user authorization");
    check(visit(&gateway).basic("admin", "wrong").send(), 401, realm, "Invalid user authorization");
    visit(&gateway).basic("admin", "admin321").send().expect(200).expect_body("<html></html>");
}

/// The tutorial's two consumers and its route, as its curl commands have them.
fn restriction(gateway: &Gateway) -> Upstream {
    let upstream = Upstream::with(|_, wire| wire.answer(302, &[("Location", "/login")], b""));
    for (name, login) in [("jack1", "jack2019"), ("jack2", "jack2020")] {
        let body = format!(
            "\n{{\n    \"username\": \"{name}\",\n    \"plugins\": {{\n        \"basic-auth\": {{\n            \
             \"username\":\"{login}\",\n            \"password\": \"123456\"\n        }}\n    }}\n}}"
        );
        put(gateway, "consumers", &body).expect(201);
    }
    let route = json!({
        "uri": "/index.html",
        "upstream": upstream.resource(),
        "plugins": {"basic-auth": {}, "consumer-restriction": {"whitelist": ["jack1"]}},
    });
    put(gateway, "routes/1", &route.to_string()).expect(201);
    upstream
}

fn index(gateway: &Gateway, login: &str) -> Response {
    gateway.request("GET", "/index.html").basic(login, "123456").send()
}

#[test]
fn consumer_restriction() {
    for gateway in [old(), today()] {
        let upstream = restriction(&gateway);
        index(&gateway, "jack2019").expect(302).expect_header("Location", "/login");
        let forbidden = index(&gateway, "jack2020").expect(403);
        assert_eq!(forbidden.reason, "Forbidden");
        let forbidden = forbidden.expect_header("Content-Type", "text/html; charset=utf-8");
        forbidden.expect_body("{\"message\":\"The consumer_name is forbidden.\"}\n");
        assert_eq!(upstream.count(), 1, "what is forbidden does not reach the upstream");
    }
}

#[test]
fn consumer_restriction_without_a_consumer() {
    for (gateway, text) in [
        (old(), "Missing authentication or identity verification."),
        (today(), "The request is rejected, please check the consumer_name for this request"),
    ] {
        let upstream = Upstream::echo();
        let plugins = json!({"consumer-restriction": {"whitelist": ["jack1"]}});
        let route = json!({"uri": "/x", "plugins": plugins, "upstream": upstream.resource()});
        put(&gateway, "routes/1", &route.to_string()).expect(201);
        check(gateway.get("/x"), 401, "", text);
    }
}

const SIGN_ROUTE: &str = r#"
{
    "uri": "/apisix/plugin/jwt/sign",
    "plugins": {
        "public-api": {}
    }
}"#;

#[test]
fn a_plugin_that_is_not_enabled_is_unknown() {
    let gateway = with_its_key(Setup::new().speaking_3_2().set("plugins", json!(["jwt-auth"])));
    let answer = put(&gateway, "routes/jas", SIGN_ROUTE).expect(400);
    answer.expect_body("{\"error_msg\":\"unknown plugin [public-api]\"}\n");
}

#[test]
fn jwt_auth() {
    for gateway in [old(), today()] {
        let consumer = json!({"username": "user", "plugins": {
            "jwt-auth": {"key": "user-key", "secret": "a-secret-of-at-least-thirty-two-bytes"},
        }});
        put(&gateway, "consumers", &consumer.to_string()).expect(201);
        let _upstream = nexus(&gateway, "jwt-auth");
        visit(&gateway).send().expect(401).expect_body("{\"message\":\"Missing JWT token in request\"}\n");

        gateway.get("/apisix/plugin/jwt/sign?key=user-key").expect(404);
        put(&gateway, "routes/jas", SIGN_ROUTE).expect(201);
        let signed = gateway.get("/apisix/plugin/jwt/sign?key=user-key").expect(200);
        let token = signed.expect_header("Content-Type", "text/plain; charset=utf-8").text();
        let token = token.trim();
        // {"typ":"JWT","alg":"HS256"}, as it is printed there.
        assert!(token.starts_with("eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9."), "{token}");
        assert_eq!(token.split('.').count(), 3, "{token}");

        visit(&gateway).header("Authorization", token).send().expect(200);
        let target = format!("/nexus/?jwt={token}");
        gateway.request("GET", &target).header("Host", "test.foobar.com").send().expect(200);
        visit(&gateway).header("Cookie", &format!("jwt={token}")).send().expect(200);
        let wrong = visit(&gateway).header("Authorization", &token[..token.len() - 4]).send();
        wrong.expect(401).expect_in_body("{\"message\":\"");
        gateway.get("/apisix/plugin/jwt/sign?key=nobody").expect(404);
    }
}

/// Writes config.yaml anew and starts again: what `helm upgrade` does with the tutorial's values.
fn upgrade(gateway: Gateway, change: impl FnOnce(&mut Value)) -> Gateway {
    let file = gateway.path("conf/config.yaml");
    let mut config = serde_json::from_str(&fs::read_to_string(&file).unwrap()).expect("the tests write JSON");
    change(&mut config);
    fs::write(file, config.to_string()).unwrap();
    gateway.restart_after_kill()
}

/// From its first request to its last, on one gateway that the chart's configuration started.
#[test]
fn in_its_order() {
    let gateway = with_its_key(chart::configured(Setup::new().speaking_3_2()));
    let checked = gateway.command(&["test"]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    // ### basic-auth
    let site = basic_auth(&gateway);
    check(visit(&gateway).send(), 401, "Basic realm='.'", "Missing authorization in request");
    check(visit(&gateway).basic("bar", "bar").send(), 401, "", "Invalid user authorization");
    visit(&gateway).basic("admin", "admin321").send().expect(200);

    // ### consumer-restriction
    let index_page = restriction(&gateway);
    index(&gateway, "jack2019").expect(302);
    let forbidden = index(&gateway, "jack2020").expect(403);
    // nginx goes by the ending of the path, so this one is printed there with another type.
    let forbidden = forbidden.expect_header("Content-Type", "text/html; charset=utf-8");
    forbidden.expect_body("{\"message\":\"The consumer_name is forbidden.\"}\n");
    assert_eq!(index_page.count(), 1);

    // ### jwt-auth
    let consumer = json!({"username": "user", "plugins": {
        "jwt-auth": {"key": "user-key", "secret": "a-secret-of-at-least-thirty-two-bytes"},
    }});
    put(&gateway, "consumers", &consumer.to_string()).expect(201);
    put(&gateway, "routes/nexus", &nexus_route(&site, "jwt-auth").to_string()).expect(200);
    check(visit(&gateway).send(), 401, "", "Missing JWT token in request");
    let unknown = put(&gateway, "routes/jas", SIGN_ROUTE).expect(400);
    unknown.expect_body("{\"error_msg\":\"unknown plugin [public-api]\"}\n");
    let gateway = upgrade(gateway, |config| {
        config["plugins"].as_array_mut().expect("the list of plugins").push(json!("public-api"));
    });
    put(&gateway, "routes/jas", SIGN_ROUTE).expect(201);
    let signed = gateway.get("/apisix/plugin/jwt/sign?key=user-key").expect(200);
    let token = signed.expect_header("Content-Type", "text/plain; charset=utf-8").text();
    visit(&gateway).header("Authorization", &token).send().expect(200);
    let target = format!("/nexus/?jwt={token}");
    gateway.request("GET", &target).header("Host", "test.foobar.com").send().expect(200);
    visit(&gateway).header("Cookie", &format!("jwt={token}")).send().expect(200);

    // ### plugins of one's own
    let runner = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/python");
    let (program, plugins) = (runner.join("bin/py-runner"), gateway.path("plugins"));
    fs::create_dir(&plugins).expect("a directory can be made");
    fs::copy(runner.join("tests/article/stop.py"), plugins.join("stop.py")).expect("it can be copied");
    let gateway = upgrade(gateway, |config| {
        config["ext-plugin"]["cmd"] = json!(["python3", program, "start", "--plugins", plugins]);
    });
    let route = json!({
        "uri": "/extPlugin",
        "host": "test.foobar.com",
        "plugins": {"ext-plugin-pre-req": {"conf": [{"name": "stop", "value": "{\"body\":\"hello\"}"}]}},
        "upstream": site.resource(),
    });
    put(&gateway, "routes/ext", &route.to_string()).expect(201);
    let ask = || gateway.request("GET", "/extPlugin").header("Host", "test.foobar.com").send();
    eventually("the runner answers", || ask().status != 503);
    let answer = ask().expect(201).expect_header("x-resp-a6-runner", "Python");
    answer.expect_body("Hello, Python Runner of APISIX");
    visit(&gateway).header("Authorization", &token).send().expect(200);
}

/// The tutorial's picture of two consumers: application 1 goes with consumer A, whose calls are limited by address and
/// number; application 2 with consumer B, whose calls are written to a log server.
#[test]
fn plugins_of_one_consumer() {
    let logs = Upstream::with(|_, wire| wire.answer(200, &[], b""));
    let application = Upstream::echo();
    for gateway in [old(), today()] {
        let consumer = |name: &str, plugins: Value| {
            let mut plugins = plugins;
            plugins["basic-auth"] = json!({"username": name, "password": "123456"});
            put(&gateway, "consumers", &json!({"username": name, "plugins": plugins}).to_string())
                .expect(201);
        };
        consumer(
            "consumer_a",
            json!({
                "ip-restriction": {"blacklist": ["127.0.0.2"]},
                "limit-conn": {"conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr"},
            }),
        );
        let logger =
            json!({"uri": format!("http://{}/logs", logs.node()), "batch_max_size": 1, "timeout": 30});
        consumer("consumer_b", json!({"http-logger": logger}));
        let plugins = json!({"basic-auth": {}});
        let route = json!({"uri": "/app", "plugins": plugins, "upstream": application.resource()});
        put(&gateway, "routes/app", &route.to_string()).expect(201);
        let call = |name: &str| gateway.request("GET", "/app").basic(name, "123456").send();
        logs.forget();
        call("consumer_a").expect(200);
        call("consumer_b").expect(200);
        eventually("the call of B is logged", || logs.count() == 1);
        let entry: Value = serde_json::from_slice(&logs.last().body).unwrap();
        assert_eq!(entry["consumer"]["username"], "consumer_b");
        assert_eq!(entry["request"]["uri"], "/app");
        consumer_update(&gateway, "consumer_a", json!({"ip-restriction": {"blacklist": ["127.0.0.0/8"]}}));
        call("consumer_a").expect(403);
        call("consumer_b").expect(200);
    }
}

fn consumer_update(gateway: &Gateway, name: &str, mut plugins: Value) {
    plugins["basic-auth"] = json!({"username": name, "password": "123456"});
    put(gateway, "consumers", &json!({"username": name, "plugins": plugins}).to_string()).expect(200);
}
