//! What the tutorial only names: every kind of credential beside basic-auth and jwt-auth, the four kinds of
//! restriction, its routes as they are written there, and its runner started by hand.

use std::{
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::SystemTime,
};

use serde_json::{Value, json};

use super::{KEY, check, index, nexus_route, old, put, restriction, today, visit};
use crate::support::{
    client::Request,
    eventually,
    gateway::{Gateway, Setup},
    slapd::{BASE, Slapd},
    tool,
    upstream::Upstream,
    wolf::Wolf,
};

/// A consumer with these plugins, and the tutorial's site behind one of them.
fn site(gateway: &Gateway, plugin: &str, conf: Value, consumer: Value) -> Upstream {
    let consumer = json!({"username": "jack", "plugins": consumer});
    put(gateway, "consumers", &consumer.to_string()).expect(201);
    let upstream = Upstream::echo();
    let mut route = nexus_route(&upstream, plugin);
    route["plugins"][plugin] = conf;
    put(gateway, "routes/nexus", &route.to_string()).expect(201);
    upstream
}

#[track_caller]
fn lets_jack_in(request: Request, upstream: &Upstream, old: bool) {
    request.send().expect(200);
    let seen = upstream.last();
    assert_eq!(seen.target, "/", "as the tutorial's proxy-rewrite has it");
    // 3.2 told the upstream nothing.
    assert_eq!(seen.header("x-consumer-username"), (!old).then_some("jack"));
}

fn both() -> [(Gateway, bool); 2] {
    [(old(), true), (today(), false)]
}

#[test]
fn key_auth() {
    for (gateway, old) in both() {
        let upstream = site(&gateway, "key-auth", json!({}), json!({"key-auth": {"key": "auth-one"}}));
        let (challenge, text) = match old {
            true => ("", "Missing API key found in request"),
            false => ("apikey realm=\"key\"", "Missing API key in request"),
        };
        check(visit(&gateway).send(), 401, challenge, text);
        let wrong = visit(&gateway).header("apikey", "wrong").send();
        check(wrong, 401, challenge, "Invalid API key in request");
        lets_jack_in(visit(&gateway).header("apikey", "auth-one"), &upstream, old);
    }
}

/// The signature of a text, as another program makes it.
fn signature(text: &str) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file can be made");
    std::fs::write(file.path(), text).expect("it can be written");
    let name = file.path().to_str().expect("a plain name");
    let arguments = ["dgst", "-sha256", "-hmac", "my-secret-key", "-binary", name];
    crate::support::client::base64(&tool::run("openssl", &arguments).stdout)
}

/// "The gateway computes the signature by the same algorithm, and lets pass only what agrees."
#[test]
fn hmac_auth() {
    for (gateway, old) in both() {
        let date = httpdate::fmt_http_date(SystemTime::now());
        // Today's form names the target in one line; that of 3.2 has a line for each part, and then the headers.
        let (consumer, signed): (Value, fn(&str, &str) -> String) = if old {
            (json!({"access_key": "user-key", "secret_key": "my-secret-key"}), |path, date| {
                let text = format!("GET\n{path}\n\nuser-key\n{date}\nhost:test.foobar.com\n");
                format!("hmac-auth-v1#user-key#{}#hmac-sha256#{date}#host", signature(&text))
            })
        } else {
            (json!({"key_id": "user-key", "secret_key": "my-secret-key"}), |path, date| {
                let signature = signature(&format!("user-key\nGET {path}\ndate: {date}\n"));
                format!(
                    "Signature keyId=\"user-key\",algorithm=\"hmac-sha256\",headers=\"@request-target date\",\
                     signature=\"{signature}\""
                )
            })
        };
        let upstream = site(&gateway, "hmac-auth", json!({}), json!({"hmac-auth": consumer}));
        let challenge = if old { "" } else { "hmac realm=\"hmac\"" };
        let ask = |header: &str| visit(&gateway).header("Date", &date).header("Authorization", header);
        check(ask(&signed("/other", &date)).send(), 401, challenge, "client request can't be validated");
        visit(&gateway).send().expect(401);
        assert_eq!(upstream.count(), 0);
        lets_jack_in(ask(&signed("/nexus/", &date)), &upstream, old);
    }
}

#[test]
fn wolf_rbac() {
    let wolf = Wolf::start();
    for (gateway, old) in both() {
        let consumer = json!({"wolf-rbac": {"appid": "app", "server": wolf.address()}});
        let upstream = site(&gateway, "wolf-rbac", json!({}), consumer);
        let route =
            json!({"uri": "/apisix/plugin/wolf-rbac/login", "plugins": {"public-api": {}}}).to_string();
        put(&gateway, "routes/wolf-login", &route).expect(201);
        check(visit(&gateway).send(), 401, "", "Missing rbac token in request");
        let login = gateway.request("POST", "/apisix/plugin/wolf-rbac/login");
        let login = login.json(&json!({"appid": "app", "username": "admin", "password": "123456"}));
        let told = login.send().expect(200).json();
        let token = told["rbac_token"].as_str().expect("a token");
        lets_jack_in(visit(&gateway).header("x-rbac-token", token), &upstream, old);
        check(visit(&gateway).header("x-rbac-token", "V1#app#forged").send(), 401, "", "ERR_TOKEN_INVALID");
    }
}

#[test]
fn ldap_auth() {
    let slapd = Slapd::start();
    for (gateway, old) in both() {
        let conf = json!({"base_dn": BASE, "ldap_uri": slapd.address(), "uid": "cn"});
        let consumer = json!({"ldap-auth": {"user_dn": format!("cn=user01,{BASE}")}});
        let upstream = site(&gateway, "ldap-auth", conf, consumer);
        let (missing, refused) = match old {
            true => ("Basic realm='.'", ""),
            false => ("Basic realm=\"ldap\"", "Basic realm=\"ldap\""),
        };
        check(visit(&gateway).send(), 401, missing, "Missing authorization in request");
        let wrong = visit(&gateway).basic("user01", "wrong").send();
        check(wrong, 401, refused, "Invalid user authorization");
        lets_jack_in(visit(&gateway).basic("user01", "password1"), &upstream, old);
    }
}

/// The picture's table: whitelist or blacklist, by consumer, consumer group, service or route.
#[test]
fn four_kinds_of_restriction() {
    for gateway in [old(), today()] {
        let _upstream = restriction(&gateway);
        let jack1 = |more: Value| {
            let mut consumer = json!({"username": "jack1", "group_id": "company_a", "plugins": {
                "basic-auth": {"username": "jack2019", "password": "123456"},
            }});
            for (name, conf) in more.as_object().expect("an object") {
                consumer["plugins"][name] = conf.clone();
            }
            put(&gateway, "consumers", &consumer.to_string()).expect(200);
        };
        put(&gateway, "consumer_groups/company_a", r#"{"plugins": {}}"#).expect(201);
        put(&gateway, "services/1", r#"{"plugins": {"basic-auth": {}}}"#).expect(201);
        jack1(json!({}));
        let route = |restriction: Value| {
            let mut route = json!({
                "uri": "/index.html", "service_id": "1",
                "upstream": {"type": "roundrobin", "nodes": {_upstream.node(): 1}},
                "plugins": {"basic-auth": {}},
            });
            if !restriction.is_null() {
                route["plugins"]["consumer-restriction"] = restriction;
            }
            put(&gateway, "routes/1", &route.to_string()).expect(200);
        };
        let forbidden = |what: &str| {
            let text = format!("{{\"message\":\"The {what} is forbidden.\"}}\n");
            index(&gateway, "jack2019").expect(403).expect_body(&text);
        };
        route(json!({"blacklist": ["jack1"]}));
        forbidden("consumer_name");
        index(&gateway, "jack2020").expect(302);
        route(json!({"type": "consumer_group_id", "whitelist": ["company_a"]}));
        index(&gateway, "jack2019").expect(302);
        index(&gateway, "jack2020").expect(401);
        route(json!({"type": "consumer_group_id", "blacklist": ["company_a"]}));
        forbidden("consumer_group_id");
        // Where a consumer may go is said on the consumer.
        route(Value::Null);
        for kind in ["service_id", "route_id"] {
            jack1(json!({"consumer-restriction": {"type": kind, "whitelist": ["1"]}}));
            index(&gateway, "jack2019").expect(302);
            jack1(json!({"consumer-restriction": {"type": kind, "blacklist": ["1"]}}));
            forbidden(kind);
            index(&gateway, "jack2020").expect(302);
        }
    }
}

/// The tutorial's two `ApisixRoute`s. Each names redirect twice; of two plugins of one name the last counts.
#[test]
fn its_routes() {
    for gateway in [old(), today()] {
        let upstream = super::basic_auth(&gateway);
        let consumer = json!({"username": "user", "plugins": {
            "jwt-auth": {"key": "user-key", "secret": "a-secret-of-at-least-thirty-two-bytes"},
        }});
        put(&gateway, "consumers", &consumer.to_string()).expect(201);
        put(&gateway, "routes/jas", super::SIGN_ROUTE).expect(201);
        let route = |plugin: &str, redirect: Value| {
            let mut route = nexus_route(&upstream, plugin);
            route["host"] = json!("ops.foobar.com");
            route["plugins"]["redirect"] = redirect;
            put(&gateway, "routes/nexus", &route.to_string()).expect(200);
        };
        let ask = |target: &str| gateway.request("GET", target).header("Host", "ops.foobar.com");

        route("basic-auth", json!({"http_to_https": true}));
        ask("/nexus/").send().expect(401);
        let moved = ask("/nexus/").basic("admin", "admin321").send().expect(301);
        let location = moved.header("location").expect("a redirect says where to");
        assert!(location.starts_with("https://ops.foobar.com"), "{location}");

        route("jwt-auth", json!({"regex_uri": ["^(/nexus)$", "$1/"]}));
        ask("/nexus").send().expect(401);
        let token = gateway.get("/apisix/plugin/jwt/sign?key=user-key").expect(200).text();
        let with_token = |target: &str| ask(target).header("Authorization", &token).send();
        with_token("/nexus").expect(302).expect_header("Location", "/nexus/");
        with_token("/nexus/").expect(200);
        with_token("/static/x").expect(404);
        // Another host has no such route.
        visit(&gateway).header("Authorization", &token).send().expect(404);
    }
}

/// A runner that somebody starts by hand; it ends with the test.
struct ByHand(Child);

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `APISIX_LISTEN_ADDRESS=unix:… python3 bin/py-runner start`, and the tutorial's config.yaml with the key in its old
/// place and `path_for_test`.
#[test]
fn its_runner_in_development() {
    let setup = Setup::new().speaking_3_2();
    let socket = setup.home().join("runner.sock");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/python");
    let runner = Command::new("python3")
        .args(["bin/py-runner", "start"])
        .current_dir(&root)
        .env("APISIX_LISTEN_ADDRESS", format!("unix:{}", socket.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _runner = ByHand(runner.expect("python3 can be run"));
    eventually("the runner listens", || UnixStream::connect(&socket).is_ok());
    let gateway = setup
        .without("deployment.admin.admin_key")
        .set("apisix.admin_key", json!([{"name": "admin", "key": KEY, "role": "admin"}]))
        .set("ext-plugin.path_for_test", socket.display().to_string())
        .start();
    let upstream = Upstream::echo();
    let route = json!({
        "uri": "/extPlugin",
        "host": "test.foobar.com",
        "plugins": {"ext-plugin-pre-req": {"conf": [{"name": "stop", "value": "{\"body\":\"hello\"}"}]}},
        "upstream": upstream.resource(),
    });
    put(&gateway, "routes/ext", &route.to_string()).expect(201);
    let answer = gateway.request("GET", "/extPlugin").header("Host", "test.foobar.com").send().expect(201);
    let answer = answer.expect_header("x-resp-a6-runner", "Python");
    answer.expect_body("Hello, Python Runner of APISIX");
    assert_eq!(upstream.count(), 0);
}
