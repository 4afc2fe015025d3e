//! Resources from a file, or from one document through the Admin API: no store of their own.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    client::{Request, Response},
    eventually,
    gateway::{Gateway, Setup},
    upstream::Upstream,
};

fn routes(items: &[(&str, &Upstream)]) -> Value {
    let routes: Vec<Value> =
        items.iter().map(|(uri, upstream)| json!({"id": uri.trim_matches('/'), "uri": uri, "upstream": upstream.resource()})).collect();
    json!({"routes": routes})
}

#[test]
fn yaml_as_people_write_it() {
    let upstream = Upstream::named("a");
    let text = format!(
        "# routes of the shop\nroutes:\n  - uri: /shop/*\n    upstream:\n      type: roundrobin\n      nodes:\n        \
         \"127.0.0.1:{}\": 1\n    plugins:\n      key-auth: {{}}\nconsumers:\n  - username: jack\n    plugins:\n      \
         key-auth:\n        key: ${{{{SHOP_KEY:=default-key}}}}\n#END\n",
        upstream.port
    );
    let gateway = Setup::file(Value::String(text.clone())).environment("SHOP_KEY", "from-outside").start();
    gateway.get("/shop/1").expect(401);
    gateway.request("GET", "/shop/1").header("apikey", "from-outside").send().expect(200);
    let gateway = Gateway::file(Value::String(text));
    gateway.request("GET", "/shop/1").header("apikey", "default-key").send().expect(200);
}

#[test]
fn nothing_is_an_empty_table_in_yaml() {
    let upstream = Upstream::named("a");
    let text = format!(
        "routes:\n  - uri: /shop\n    plugins:\n      key-auth:\n    upstream:\n      nodes:\n        \
         \"127.0.0.1:{}\": 1\nconsumers:\n  - username: jack\n    plugins:\n      key-auth:\n        key: k\n\
         services:\n#END\n",
        upstream.port
    );
    let gateway = Gateway::file(Value::String(text));
    gateway.get("/shop").expect(401);
    gateway.request("GET", "/shop").header("apikey", "k").send().expect(200).expect_body("a");
}

#[test]
fn a_route_without_the_plugins_it_names_is_closed() {
    let upstream = Upstream::named("a");
    let bad = json!({"ip-restriction": {"whitelist": ["nonsense"]}});
    let gateway = Gateway::file(json!({
        "routes": [
            {"id": "1", "uri": "/service", "service_id": "s"},
            {"id": "2", "uri": "/config", "plugin_config_id": "c", "upstream": upstream.resource()}
        ],
        "services": [{"id": "s", "plugins": bad, "upstream": upstream.resource()}],
        "plugin_configs": [{"id": "c", "plugins": bad}]
    }));
    gateway.get("/service").expect(404);
    gateway.get("/config").expect(503);
}

#[test]
fn a_changed_file_is_taken_over() {
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let gateway = Gateway::file(routes(&[("/x", &a)]));
    gateway.get("/x").expect(200).expect_body("a");
    gateway.rewrite(routes(&[("/x", &b), ("/y", &a)]));
    eventually("the new file is read", || gateway.get("/x").text() == "b");
    gateway.get("/y").expect(200).expect_body("a");
    gateway.rewrite(routes(&[("/y", &a)]));
    eventually("the route is gone", || gateway.get("/x").status == 404);
}

#[test]
fn a_file_without_its_end_mark_changes_nothing() {
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let gateway = Gateway::file(routes(&[("/x", &a)]));
    let half = routes(&[("/x", &b)]).to_string();
    gateway.rewrite(half.clone());
    eventually("the fault is said", || gateway.stderr().contains("missing valid end flag"));
    gateway.get("/x").expect(200).expect_body("a");
    gateway.rewrite(format!("{half}\n#END\n"));
    eventually("the whole file is read", || gateway.get("/x").text() == "b");
}

#[test]
fn a_file_that_is_no_yaml_changes_nothing() {
    let a = Upstream::named("a");
    let gateway = Gateway::file(routes(&[("/x", &a)]));
    gateway.rewrite("routes:\n  - uri: [\n#END\n");
    eventually("the fault is said", || gateway.stderr().contains("apisix.yaml"));
    gateway.get("/x").expect(200).expect_body("a");
}

#[test]
fn a_bad_item_keeps_its_last_good_version_and_leaves_the_others_alone() {
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let gateway = Gateway::file(routes(&[("/x", &a), ("/y", &a)]));
    let mut next = routes(&[("/x", &b), ("/y", &b)]);
    next["routes"][0]["plugins"] = json!({"ip-restriction": {"whitelist": ["nonsense"]}});
    gateway.rewrite(next);
    eventually("the good item is taken over", || gateway.get("/y").text() == "b");
    gateway.get("/x").expect(200).expect_body("a");
    let faults = gateway.control("/v1/faults").expect(200).text();
    assert!(faults.contains("ip-restriction"), "{faults}");
}

#[test]
fn what_the_admin_api_would_refuse_a_file_does_not_bring_in() {
    let a = Upstream::named("a");
    let mut document = routes(&[("/good", &a), ("/member", &a), ("/plugin", &a)]);
    document["routes"][1]["upstraem_id"] = json!("1");
    document["routes"][2]["plugins"] = json!({"limit-count": {"count": -5, "time_window": 60}});
    document["consumers"] = json!([{"username": "jack", "plugins": {"key-auth": {}}}]);
    document["plugin_metadata"] = json!([{"id": "http-logger", "log_format": "no object"}]);
    document["secrets"] = json!([{"id": "vault/1", "uri": "http://127.0.0.1:1", "prefix": "kv"}]);
    let gateway = Gateway::file(document);
    gateway.get("/good").expect(200);
    for path in ["/member", "/plugin"] {
        gateway.get(path).expect(404);
    }
    let faults = gateway.control("/v1/faults").text();
    for part in [
        "upstraem_id",
        "property \\\"count\\\" validation failed",
        "property \\\"key\\\" is required",
        "property \\\"log_format\\\" validation failed",
        "property \\\"token\\\" is required",
    ] {
        assert!(faults.contains(part), "{part}: {faults}");
    }
}

#[test]
fn a_plugin_that_is_off_makes_its_resource_a_bad_one() {
    let upstream = Upstream::named("a");
    let route = |id: &str, plugins: Value| json!({"id": id, "uri": format!("/{id}"), "plugins": plugins, "upstream": upstream.resource()});
    let document = json!({"routes": [
        route("guarded", json!({"key-auth": {}})),
        route("moved", json!({"redirect": {"uri": "/elsewhere"}})),
    ]});
    let setup = || Setup::file(document.clone()).set("plugins", json!(["redirect"]));
    let gateway = setup().start();
    gateway.get("/guarded").expect(404);
    gateway.get("/moved").expect(302);
    assert!(gateway.stderr().contains("unknown plugin [key-auth]"), "{}", gateway.stderr());
    // APISIX 3.2 goes on without it.
    setup().set("portcullis.compat", "3.2").start().get("/guarded").expect(200);
}

#[test]
fn bad_items_of_the_first_file_are_left_out() {
    let a = Upstream::named("a");
    let mut document = routes(&[("/x", &a), ("/y", &a)]);
    document["routes"][0]["plugins"] = json!({"key-auth": "no object"});
    let gateway = Gateway::file(document);
    gateway.get("/x").expect(404);
    gateway.get("/y").expect(200);
}

#[test]
fn no_file_yet() {
    let a = Upstream::named("a");
    let gateway = Gateway::file(Value::String(String::new()));
    gateway.get("/x").expect(404);
    gateway.rewrite(routes(&[("/x", &a)]));
    eventually("the file is read when it is there", || gateway.get("/x").status == 200);
}

#[test]
fn json_works_as_well() {
    let a = Upstream::named("a");
    let setup = Setup::file(json!({})).set("deployment.role_data_plane.config_provider", "json");
    fs::write(setup.home().join("conf/apisix.json"), routes(&[("/x", &a)]).to_string()).unwrap();
    setup.start().get("/x").expect(200);
}

#[test]
fn portcullis_test_names_every_fault() {
    let a = Upstream::named("a");
    let good = Setup::file(routes(&[("/x", &a)]));
    let output = good.command(&["test", "-c", "conf/config.yaml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "configuration test is successful\n");

    let mut document = routes(&[("/x", &a), ("/y", &a)]);
    document["routes"][0]["plugins"] = json!({"ip-restriction": {"whitelist": ["nonsense"]}});
    document["routes"][1]["uri"] = json!(7);
    let output = Setup::file(document).command(&["test", "-c", "conf/config.yaml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ip-restriction") && said.contains("expected string"), "both faults: {said}");

    let text = format!(
        "routes:\n  - id: 1\n    uri: /a\n    upstraem_id: 5\n  - id: 2\n    uri: /b\n    plugins:\n      key-auth:\n        \
         header: 7\n    upstream: {{nodes: {{\"{}\": 1}}, type: roundrobin}}\n  - id: 3\n    uri: /c\n    upstream_id: gone\n#END\n",
        a.node()
    );
    let setup = Setup::file(json!(text)).set("plugins", json!(["key-auth", "no-such"]));
    let output = setup.command(&["test", "-c", "conf/config.yaml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "conf/apisix.yaml:4: routes.1.upstraem_id: ",
        "did you mean upstream_id?",
        "conf/apisix.yaml:9: routes.2.plugins.key-auth.header: ",
        "conf/apisix.yaml:13: routes.3.upstream_id: there is no upstream gone",
        "plugins: no such plugin here: no-such",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }

    let output =
        Setup::file(json!({})).set("apisix.node_lisen", 80).command(&["test", "-c", "conf/config.yaml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("node_lisen") && said.contains("node_listen"),
        "names the key and its neighbour: {said}"
    );
}

fn api_mode() -> Gateway {
    Setup::new().set("deployment.role_traditional.config_provider", "yaml").start()
}

#[test]
fn ready_means_that_there_is_a_document() {
    let gateway = api_mode();
    let ask = |path: &str| Request::new(gateway.ports.status, "GET", path).send().status;
    assert_eq!((ask("/status"), ask("/status/ready")), (200, 503));
    put_configs(&gateway, "d1", &json!({})).expect(202);
    eventually("it is ready", || ask("/status/ready") == 200);
}

fn put_configs(gateway: &Gateway, digest: &str, document: &Value) -> Response {
    gateway.admin("PUT", "/configs").header("X-Digest", digest).json(document).send()
}

#[test]
fn one_document_through_the_admin_api() {
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let gateway = api_mode();
    gateway.get("/x").expect(404);
    let mut document = routes(&[("/x", &a)]);
    document["routes_conf_version"] = json!(1);
    gateway
        .admin("PUT", "/configs")
        .json(&document)
        .send()
        .expect(400)
        .expect_in_body("missing digest header");
    // Accepted is not yet in effect.
    put_configs(&gateway, "d1", &document).expect(202).expect_header("X-Digest", "d1");
    eventually("the document is taken over", || gateway.get("/x").text() == "a");
    put_configs(&gateway, "d1", &document).expect(204);
    let got = gateway.admin("GET", "/configs").header("Accept", "application/json").send().expect(200);
    assert_eq!(got.header("X-Digest"), Some("d1"));
    assert_eq!(got.json()["routes"][0]["uri"], json!("/x"));

    let mut next = routes(&[("/x", &b)]);
    next["routes_conf_version"] = json!(0);
    let refused = put_configs(&gateway, "d2", &next).expect(400);
    refused.expect_in_body("routes_conf_version must be greater than or equal to (1)");
    gateway.get("/x").expect(200).expect_body("a");
    next["routes_conf_version"] = json!(2);
    put_configs(&gateway, "d2", &next).expect(202);
    eventually("the next document is taken over", || gateway.get("/x").text() == "b");
    let bad = json!({"routes": [{"id": "x", "uri": 1}], "routes_conf_version": 3});
    put_configs(&gateway, "d3", &bad).expect(400);
    gateway.get("/x").expect(200).expect_body("b");
}
