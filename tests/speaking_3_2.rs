//! `portcullis.compat: "3.2"`: what APISIX 3.2 did otherwise. Its texts and headers of authentication are replayed in
//! `article`.

use serde_json::{Value, json};

use crate::support::{
    at, certificates,
    client::Request,
    gateway::{Gateway, Setup},
    upstream::Upstream,
};

fn start(upstream: &Upstream, plugins: Value) -> Gateway {
    let gateway = Setup::new().speaking_3_2().start();
    gateway.put("/routes/1", json!({"uri": "/*", "plugins": plugins, "upstream": upstream.resource()}));
    gateway
}

#[test]
fn forwarded_headers_are_derived_unless_they_were_sent() {
    let upstream = Upstream::echo();
    let gateway = start(&upstream, json!({}));
    let port = gateway.ports.http;
    let forwarded = |request: Request| {
        request.send().expect(200);
        let seen = upstream.last();
        ["proto", "host", "port"].map(|name| seen.all(&format!("x-forwarded-{name}")).join(" and "))
    };
    let own = port.to_string();
    assert_eq!(forwarded(gateway.request("GET", "/")), ["http", "127.0.0.1", &own]);
    let named = Request::new(port, "GET", "/").header("Host", "A.com:8080");
    assert_eq!(forwarded(named), ["http", "a.com", &own]);
    let sent = gateway
        .request("GET", "/")
        .header("X-Forwarded-Proto", "grpc")
        .header("X-Forwarded-Proto", "http")
        .header("X-Forwarded-Host", "b.com")
        .header("X-Forwarded-Port", "1");
    assert_eq!(forwarded(sent), ["grpc", "b.com", "1"]);
}

#[test]
fn groups_count_for_consumers_that_name_a_plugin() {
    let upstream = Upstream::echo();
    let gateway = start(&upstream, json!({"key-auth": {}}));
    gateway.put("/consumer_groups/g", json!({"plugins": {"response-rewrite": {"body": "of the group"}}}));
    let jack = json!({"username": "jack", "group_id": "g", "plugins": {"key-auth": {"key": "k"}}});
    gateway.put("/consumers", jack);
    let answer = gateway.request("GET", "/").header("apikey", "k").send().expect(200);
    answer.expect_body("of the group");
    // There is no rule that a key has one owner.
    gateway.put("/consumers", json!({"username": "jill", "plugins": {"key-auth": {"key": "k"}}}));
    let answer = gateway.request("GET", "/").header("apikey", "k").send().expect(200);
    assert_ne!(answer.text(), "of the group", "the last owner counts");
}

#[test]
fn cors_exposes_everything() {
    let upstream = Upstream::echo();
    let gateway = start(&upstream, json!({"cors": {}}));
    gateway.get("/").expect(200).expect_header("access-control-expose-headers", "*");
    let credential = json!({"allow_credential": true, "allow_origins": "https://a.com", "allow_methods": "GET",
        "allow_headers": "X-A"});
    let route = json!({"uri": "/", "plugins": {"cors": credential}, "upstream": upstream.resource()});
    gateway.admin("PUT", "/routes/2").json(&route).send().expect(400).expect_in_body("you can not set '*'");
}

#[test]
fn agents_are_let_in_unless_they_are_denied() {
    let upstream = Upstream::echo();
    for (rules, refused) in [
        (json!({"allowlist": ["mine"]}), &[][..]),
        (json!({"denylist": ["bot"]}), &["a bot", "my bot, mine"][..]),
        (json!({"allowlist": ["mine"], "denylist": ["bot"]}), &["a bot"][..]),
        (json!({"bypass_missing": true}), &[][..]),
    ] {
        let gateway = start(&upstream, json!({"ua-restriction": rules}));
        for agent in ["mine", "a bot", "my bot, mine", "other"] {
            let status = if refused.contains(&agent) { 403 } else { 200 };
            gateway.request("GET", "/").header("User-Agent", agent).send().expect(status);
        }
    }
}

#[test]
fn a_consumer_with_plugins_authenticates() {
    let gateway = Setup::new().speaking_3_2().start();
    let limited = json!({"username": "jack", "plugins": {"limit-count": {"count": 1, "time_window": 60}}});
    let answer = gateway.admin("PUT", "/consumers").json(&limited).send().expect(400);
    answer.expect_body("{\"error_msg\":\"require one auth plugin\"}\n");
    gateway.put("/consumers", json!({"username": "jack"}));
}

#[test]
fn global_rules_may_share_a_plugin() {
    let upstream = Upstream::echo();
    let gateway = start(&upstream, json!({}));
    for name in ["one", "two"] {
        let rule = json!({"plugins": {"response-rewrite": {"headers": {(format!("X-{name}")): name}}}});
        gateway.put(&format!("/global_rules/{name}"), rule);
    }
    gateway.get("/").expect(200).expect_header("x-one", "one").expect_header("x-two", "two");
}

#[test]
fn resources_may_have_members_that_nobody_knows() {
    let upstream = Upstream::echo();
    let gateway = start(&upstream, json!({}));
    let route = json!({"uri": "/", "owner": "us", "upstream": {"nodes": {upstream.node(): 1}, "note": 1}});
    gateway.put("/routes/2", route.clone());
    gateway.get("/").expect(200);
    let kept = gateway.admin("GET", "/routes/2").send().expect(200).json();
    assert_eq!([at(&kept, "/value/owner"), at(&kept, "/value/upstream/note")], [&route["owner"], &json!(1)]);
    let told = gateway.stderr();
    assert!(told.contains("a part of this resource has no effect"), "{told}");
    // A wrong type stays wrong, and a plugin knows its members.
    gateway.admin("PUT", "/routes/3").json(&json!({"uri": 1, "owner": "us"})).send().expect(400);
    gateway.admin("GET", "/schema/route").send().expect(200);
}

#[test]
fn certificates_may_say_how_long_they_are_good() {
    let home = tempfile::tempdir().unwrap();
    certificates::make(home.path());
    let [cert, key] =
        ["server.pem", "server.key"].map(|name| std::fs::read_to_string(home.path().join(name)).unwrap());
    let ssl = json!({"sni": "localhost", "cert": cert, "key": key, "exptime": 1_700_000_000,
        "validity_start": 1_600_000_000, "validity_end": 1_700_000_000});
    Setup::new().speaking_3_2().start().put("/ssls/1", ssl.clone());
    let answer = Gateway::start().admin("PUT", "/ssls/1").json(&ssl).send().expect(400);
    answer.expect_in_body("additional properties forbidden");
}

#[test]
fn addresses_of_nodes_need_no_brackets() {
    let gateway = Setup::new().speaking_3_2().start();
    // Nobody is there, and some machines have no such addresses: it is tried, which is not said of a name.
    let nodes = json!([{"host": "::1", "port": 1, "weight": 1}]);
    gateway.put("/routes/1", json!({"uri": "/*", "upstream": {"nodes": nodes}}));
    gateway.get("/").expect(502).expect_header("x-apisix-upstream-status", "502");
}
