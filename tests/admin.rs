//! The Admin API: every verb on every kind, lists, patches, references, and what the data plane makes of it at once.

use serde_json::{Value, json};

use crate::support::{
    client::{Request, Response},
    eventually,
    gateway::{Gateway, Setup},
    upstream::Upstream,
};

fn nowhere() -> Value {
    json!({"type": "roundrobin", "nodes": {"127.0.0.1:1": 1}})
}

/// A kind with a path, a resource, a change of it, and the verbs it knows besides GET, PUT and DELETE.
struct Case {
    path: &'static str,
    resource: Value,
    verbs: &'static [&'static str],
    singular: &'static str,
}

fn cases() -> Vec<Case> {
    let case = |path, resource, verbs, singular| Case { path, resource, verbs, singular };
    let plugins = json!({"plugins": {"ip-restriction": {"whitelist": ["127.0.0.1"]}}});
    vec![
        case("/routes/x", json!({"uri": "/x", "upstream": nowhere()}), &["POST", "PATCH"], "route"),
        case("/services/x", json!({"upstream": nowhere()}), &["POST", "PATCH"], "service"),
        case("/upstreams/x", nowhere(), &["POST", "PATCH"], "upstream"),
        case("/consumers/x", json!({"username": "x"}), &[], "consumer"),
        case("/consumer_groups/x", plugins.clone(), &["PATCH"], "consumer group"),
        case("/plugin_configs/x", plugins.clone(), &["PATCH"], "plugin config"),
        case("/global_rules/x", plugins, &["PATCH"], "global rule"),
        case(
            "/protos/x",
            json!({"content": "syntax = \"proto3\"; package x; message M {}"}),
            &["POST"],
            "proto",
        ),
        case(
            "/secrets/vault/x",
            json!({"uri": "http://127.0.0.1:1", "prefix": "kv/x", "token": "t"}),
            &["PATCH"],
            "secret",
        ),
    ]
}

#[test]
fn every_verb_on_every_kind() {
    let gateway = Gateway::start();
    for Case { path, resource, verbs, singular } in cases() {
        let call = |method: &str| gateway.admin(method, path);
        call("GET").send().expect(404).expect_body("{\"message\":\"Key not found\"}\n");
        call("DELETE").send().expect(404).expect_body("{\"message\":\"Key not found\"}\n");
        let created =
            call("PUT").json(&resource).send().expect(201).expect_header("X-API-VERSION", "v3").json();
        assert_eq!(created["key"], json!(format!("/apisix{path}")));
        assert_eq!(created.get("createdIndex"), None, "{path}");
        let again = call("PUT").json(&resource).send().expect(200).json();
        assert_eq!(again["value"]["create_time"], created["value"]["create_time"], "{path}");
        let got = call("GET").send().expect(200).expect_header("Content-Type", "application/json").json();
        assert!(got["modifiedIndex"].as_u64() > got["createdIndex"].as_u64(), "{got}");
        for (name, value) in resource.as_object().unwrap() {
            assert_eq!(&got["value"][name], value, "{path} {name}");
        }
        let collection = path.rsplit_once('/').unwrap().0;
        let collection = if path.starts_with("/secrets") { "/secrets" } else { collection };
        let list = gateway.admin("GET", collection).send().expect(200).json();
        assert_eq!((&list["total"], &list["list"][0]["key"]), (&json!(1), &created["key"]), "{path}");
        other_verbs(&gateway, path, collection, &resource, verbs, singular);
        let deleted = call("DELETE").send().expect(200).json();
        assert_eq!(deleted, json!({"key": format!("/apisix{path}"), "deleted": "1"}));
        let empty = gateway.admin("GET", collection).send().expect(200).json();
        assert_eq!(empty, json!({"total": 0, "list": []}), "{path}");
    }
}

fn other_verbs(
    gateway: &Gateway,
    path: &str,
    collection: &str,
    resource: &Value,
    verbs: &[&str],
    singular: &str,
) {
    let unsupported = |response: Response, method: &str| {
        let text = format!("{{\"error_msg\":\"not supported `{method}` method for {singular}\"}}\n");
        response.expect(405).expect_body(&text);
    };
    let post = gateway.admin("POST", collection).json(resource).send();
    if verbs.contains(&"POST") {
        let key = post.expect(201).json()["key"].as_str().unwrap().to_owned();
        let id = key.rsplit('/').next().unwrap();
        assert!(id.len() == 20 && id.bytes().all(|byte| byte.is_ascii_digit()), "{id}");
        gateway.delete(&format!("{collection}/{id}"));
    } else {
        unsupported(post, "POST");
    }
    let patch = gateway.admin("PATCH", path).json(&json!({"desc": "patched"})).send();
    if verbs.contains(&"PATCH") {
        // These have no desc; that the verb is known is enough.
        assert!(
            matches!(singular, "secret" | "global rule") || patch.status == 200,
            "{path}: {}",
            patch.text()
        );
    } else {
        unsupported(patch, "PATCH");
    }
}

#[test]
fn the_answer_to_a_write_is_the_resource_as_given() {
    let gateway = Gateway::start();
    let written = gateway.put("/routes/1", json!({"uri": "/x", "upstream": nowhere()})).json();
    let value = written["value"].as_object().unwrap();
    let mut names: Vec<&str> = value.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["create_time", "id", "update_time", "upstream", "uri"]);
    assert_eq!(value["id"], json!("1"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now - value["update_time"].as_u64().unwrap() < 60);
}

#[test]
fn the_schema_s_defaults_are_written_speaking_3_2_did() {
    let gateway = Setup::new().speaking_3_2().start();
    let written = gateway.put("/routes/1", json!({"uri": "/x", "upstream": nowhere()})).json();
    assert_eq!(written["value"]["priority"], json!(0));
    assert_eq!(written["value"]["status"], json!(1));
    assert_eq!(written["value"]["upstream"]["scheme"], json!("http"));
}

#[test]
fn what_was_answered_is_what_requests_meet() {
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let gateway = Gateway::start();
    for round in 0..50 {
        let upstream = if round % 2 == 0 { &a } else { &b };
        gateway.put("/routes/1", json!({"uri": "/x", "upstream": upstream.resource()}));
        gateway.get("/x").expect(200).expect_body(if round % 2 == 0 { "a" } else { "b" });
    }
    gateway.delete("/routes/1");
    gateway.get("/x").expect(404);
}

#[test]
fn lists_are_paged_and_filtered() {
    let gateway = Gateway::start();
    gateway.put("/services/s", json!({"upstream": nowhere()}));
    for number in 0..25 {
        let mut route =
            json!({"uri": format!("/u{number}"), "name": format!("route-{number}"), "upstream": nowhere()});
        if number % 5 == 0 {
            route["labels"] = json!({"team": "a", "n": number.to_string()});
            route["service_id"] = json!("s");
        }
        gateway.put(&format!("/routes/{number}"), route);
    }
    let list = |query: &str| gateway.admin("GET", &format!("/routes{query}")).send().expect(200).json();
    let total = |query: &str| list(query)["total"].as_u64().unwrap();
    assert_eq!(total(""), 25);
    let ids = |query: &str| -> Vec<String> {
        let list = list(query);
        let ids = list["list"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["value"]["id"].as_str().unwrap().to_owned());
        ids.collect()
    };
    // In the order of creation, not of names.
    assert_eq!(ids("?page=1&page_size=10"), (0..10).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(ids("?page=3&page_size=10").len(), 5);
    assert_eq!(ids("?page=4&page_size=10").len(), 0);
    assert_eq!(total("?page=3&page_size=10"), 25);
    assert_eq!(total("?name=route-2"), 6);
    assert_eq!(total("?name=route-2%24"), 1);
    assert_eq!(total("?uri=u1"), 11);
    assert_eq!(total("?label=team"), 5);
    assert_eq!(total("?filter=service_id%3Ds"), 5);
    assert_eq!(total("?filter=service_id%3Dother"), 0);
    let refused = gateway.admin("GET", "/routes?page=1&page_size=5").send().expect(400);
    refused.expect_in_body("page_size must be between 10 and 500");
}

#[test]
fn patches() {
    let gateway = Gateway::start();
    let nodes = json!({"type": "roundrobin", "nodes": {"127.0.0.1:1": 1, "127.0.0.1:2": 1}});
    gateway.put(
        "/routes/1",
        json!({"uri": "/x", "labels": {"a": "1", "b": "2"}, "methods": ["GET"], "upstream": nodes}),
    );
    let patch =
        |path: &str, body: Value| gateway.admin("PATCH", &format!("/routes/1{path}")).json(&body).send();
    let value = |response: Response| response.expect(200).json()["value"].clone();
    let merged = value(patch("", json!({"labels": {"a": "9", "b": null}, "methods": ["PUT", "POST"]})));
    assert_eq!((&merged["labels"], &merged["methods"]), (&json!({"a": "9"}), &json!(["PUT", "POST"])));
    assert_eq!(merged["upstream"], nodes, "what is not named stays");
    let node = value(patch("/upstream/nodes", json!({"127.0.0.1:3": 7})));
    assert_eq!(node["upstream"]["nodes"], json!({"127.0.0.1:3": 7}));
    assert_eq!(value(patch("/desc", json!("text")))["desc"], json!("text"));
    patch("", json!({"uri": 1})).expect(400).expect_in_body("wrong type: expected string");
    gateway.admin("PATCH", "/routes/none").json(&json!({"desc": "x"})).send().expect(404);
    assert_eq!(gateway.admin("GET", "/routes/1").send().expect(200).json()["value"]["uri"], json!("/x"));
}

#[test]
fn what_is_in_use_stays() {
    let gateway = Gateway::start();
    gateway.put("/upstreams/u", nowhere());
    gateway.put("/services/s", json!({"upstream_id": "u"}));
    gateway.put("/plugin_configs/c", json!({"plugins": {}}));
    gateway.put("/consumer_groups/g", json!({"plugins": {}}));
    gateway.put("/routes/1", json!({"uri": "/x", "service_id": "s", "plugin_config_id": "c"}));
    gateway.put("/consumers", json!({"username": "jack", "group_id": "g"}));
    for (path, part) in [
        ("/upstreams/u", "can not delete this upstream, service [s] is still using it now"),
        ("/services/s", "can not delete this service directly, route [1] is still using it now"),
        ("/plugin_configs/c", "can not delete this plugin config, route [1] is still using it now"),
        ("/consumer_groups/g", "can not delete this consumer group, consumer [jack] is still using it now"),
    ] {
        gateway.admin("DELETE", path).send().expect(400).expect_in_body(part);
    }
    gateway.admin("DELETE", "/upstreams/u?force=true").send().expect(200);
    gateway.admin("DELETE", "/services/s?force=yes").send().expect(400);
    gateway.delete("/routes/1");
    gateway.delete("/services/s");
}

#[test]
fn credentials() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start();
    let credential = json!({"plugins": {"key-auth": {"key": "jack-key"}}});
    let early = gateway.admin("PUT", "/consumers/jack/credentials/c1").json(&credential).send();
    early.expect(404).expect_in_body("consumer not found");
    gateway.put("/consumers", json!({"username": "jack"}));
    let written = gateway.put("/consumers/jack/credentials/c1", credential).expect(201).json();
    assert_eq!(written["key"], json!("/apisix/consumers/jack/credentials/c1"));
    assert_ne!(
        written["value"]["plugins"]["key-auth"]["key"],
        json!("jack-key"),
        "a write shows the key encrypted"
    );
    let read = gateway.admin("GET", "/consumers/jack/credentials/c1").send().expect(200).json();
    assert_eq!(read["value"]["plugins"]["key-auth"]["key"], json!("jack-key"), "reading shows it plain");
    assert_eq!(
        gateway.admin("GET", "/consumers").send().expect(200).json()["total"],
        json!(1),
        "no consumer of its own"
    );
    gateway
        .put("/routes/1", json!({"uri": "/x", "plugins": {"key-auth": {}}, "upstream": upstream.resource()}));
    gateway.request("GET", "/x").header("apikey", "jack-key").send().expect(200);
    assert_eq!(upstream.last().header("x-credential-identifier"), Some("c1"));
    gateway.delete("/consumers/jack");
    gateway.request("GET", "/x").header("apikey", "jack-key").send().expect(401);
    gateway.put("/consumers", json!({"username": "jack"}));
    gateway.admin("GET", "/consumers/jack/credentials/c1").send().expect(404);
}

#[test]
fn a_resource_with_a_ttl_goes_by_itself() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start();
    eventually("the route is there", || {
        gateway.put("/routes/1?ttl=1", json!({"uri": "/x", "upstream": upstream.resource()}));
        gateway.get("/x").status == 200
    });
    eventually("the route is gone", || gateway.get("/x").status == 404);
    gateway.admin("GET", "/routes/1").send().expect(404);
    let bad =
        gateway.admin("PUT", "/routes/1?ttl=soon").json(&json!({"uri": "/x", "upstream": nowhere()})).send();
    bad.expect(400).expect_in_body("invalid argument ttl: should be a number");
}

#[test]
fn secrets_are_encrypted_where_they_lie() {
    let gateway = Gateway::start();
    let plugins = json!({"basic-auth": {"username": "jack", "password": "open sesame"}});
    let written = gateway.put("/consumers", json!({"username": "jack", "plugins": plugins})).text();
    assert!(!written.contains("open sesame"), "{written}");
    let read = gateway.admin("GET", "/consumers/jack").send().expect(200).text();
    assert!(read.contains("open sesame"), "{read}");
    let stored = std::fs::read(gateway.path("data/portcullis.redb")).unwrap();
    assert!(
        !stored.windows(11).any(|window| window == b"open sesame"),
        "the store's file shows the password"
    );
}

#[test]
fn plugins_and_schemas() {
    let gateway = Gateway::start();
    let get = |path: &str| gateway.admin("GET", path).send();
    let names = get("/plugins/list").expect(200).json();
    let at = |name: &str| names.as_array().unwrap().iter().position(|one| one == name).unwrap();
    assert!(at("ip-restriction") < at("basic-auth") && at("basic-auth") < at("key-auth"), "{names}");
    assert_eq!(
        get("/plugins/key-auth").expect(200).json()["properties"]["header"]["default"],
        json!("apikey")
    );
    assert!(get("/plugins/key-auth?schema_type=consumer").expect(200).json()["required"] == json!(["key"]));
    get("/plugins/none").expect(404).expect_in_body("plugin not found in subsystem http");
    assert_eq!(get("/schema/route").expect(200).json()["type"], json!("object"));
    get("/schema/none").expect(400).expect_in_body("not found schema: none");
    gateway.admin("PUT", "/plugins/reload").send().expect(200).expect_in_body("done");
    gateway.admin("GET", "/plugins/reload").send().expect(405);
}

#[test]
fn validation_without_writing() {
    let gateway = Gateway::start();
    let validate = |body: Value| gateway.admin("POST", "/schema/validate/routes").json(&body).send();
    validate(json!({"uri": "/x", "upstream": nowhere()})).expect(200);
    validate(json!({"uri": 1})).expect(400).expect_in_body("wrong type: expected string");
    let document =
        json!({"routes": [{"id": "1", "uri": "/x", "upstream": nowhere()}, {"id": "2", "uri": 1}]});
    let answer = gateway.admin("POST", "/configs/validate").json(&document).send().expect(400).json();
    assert_eq!(answer["errors"][0]["index"], json!(1), "{answer}");
    assert_eq!(gateway.admin("GET", "/routes").send().expect(200).json()["total"], json!(0));
}

#[test]
fn browsers_and_tools() {
    let gateway = Gateway::start();
    let head = Request::new(gateway.ports.admin, "HEAD", "/apisix/admin").send().expect(200);
    assert_eq!(head.header("Server"), Some("APISIX/3.18.0"), "tools read the version here, without a key");
    let preflight = Request::new(gateway.ports.admin, "OPTIONS", "/apisix/admin/routes").send().expect(200);
    preflight.expect_header("Access-Control-Allow-Origin", "*");
    gateway.admin("GET", "/routes").send().expect(200).expect_header("Access-Control-Allow-Origin", "*");
    let unknown = gateway.admin("GET", "/no_such").send().expect(404);
    unknown.expect_body("{\"error_msg\":\"Unsupported resource type: no_such\"}\n");
}

#[test]
fn many_writers_at_once() {
    let gateway = Gateway::start();
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let gateway = &gateway;
            scope.spawn(move || {
                for number in 0..25 {
                    let path = format!("/routes/{writer}-{number}");
                    gateway.put(&path, json!({"uri": path, "upstream": nowhere()})).expect(201);
                }
            });
        }
    });
    assert_eq!(gateway.admin("GET", "/routes").send().expect(200).json()["total"], json!(200));
}
