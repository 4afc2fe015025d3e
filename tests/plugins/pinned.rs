//! Behaviours between plugins and what surrounds them on which APISIX's own suites insist.

use serde_json::json;

use super::Fixture;
use crate::support::{
    gateway::{Gateway, Setup},
    upstream::Upstream,
};

#[test]
fn a_filter_may_ask_for_the_body() {
    let fixture = Fixture::new(json!({"proxy-rewrite": {
        "headers": {"X-Version": "ga"},
        "_meta": {"filter": [["post_arg_key", "==", "abc"]]},
    }}));
    let post = |body: &str| {
        let request = fixture.gateway.request("POST", "/");
        request.header("Content-Type", "application/x-www-form-urlencoded").body(body).send().expect(200);
        let seen = fixture.upstream.last();
        assert_eq!(seen.body, body.as_bytes());
        seen.header("x-version").is_some()
    };
    assert!(post("key=abc"));
    assert!(!post("key=other"));
}

#[test]
fn a_path_cannot_be_written_past_the_uri_blocker() {
    let fixture = Fixture::new(json!({"uri-blocker": {"block_rules": ["^/internal/"]}}));
    for target in ["/internal/x", "/./internal/x?aa=1", "//internal/x", "/%69nternal/x", "/a/../internal/x"] {
        fixture.get(target, &[]).expect(403);
    }
    fixture.get("/external/internal/", &[]).expect(200);
}

#[test]
fn metrics_behind_public_api_follow_the_export_uri() {
    let gateway = Setup::new()
        .set("plugin_attr.prometheus.enable_export_server", false)
        .set("plugin_attr.prometheus.export_uri", "/own/metrics")
        .start();
    gateway.put("/routes/1", json!({"uri": "/*", "plugins": {"public-api": {}}})).expect(201);
    gateway.get("/apisix/prometheus/metrics").expect(404);
    let metrics = gateway.get("/own/metrics").expect(200).text();
    for line in
        ["apisix_etcd_reachable 1", "apisix_etcd_modify_indexes{key=\"ssls\"} 0", "{key=\"x_etcd_index\"} 1"]
    {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }

    let upstream = Upstream::named("a");
    let gateway = Setup::file(json!({"routes": [
        {"uri": "/apisix/prometheus/metrics", "plugins": {"public-api": {}}},
        {"uri": "/hello", "upstream": upstream.resource()},
    ]}))
    .set("plugin_attr.prometheus.enable_export_server", false)
    .start();
    let metrics = gateway.get("/apisix/prometheus/metrics").expect(200).text();
    assert!(metrics.contains("apisix_") && !metrics.contains("etcd"), "{metrics}");
}

#[test]
fn an_object_without_members_is_an_empty_list() {
    let conf = json!({"whitelist": ["jack"], "allowed_by_methods": {}});
    Fixture::new(json!({"consumer-restriction": conf})).get("/", &[]).expect(401);
}

#[test]
fn a_dollar_in_a_filter_also_stands_before_the_last_line_feed() {
    let upstream = Upstream::with(|_, wire| wire.answer(200, &[], b"hello world\n"));
    let gateway = Gateway::start();
    let filters = json!([{"regex": "\\w\\S+$", "replace": "*"}]);
    let route = json!({"uri": "/*", "plugins": {"response-rewrite": {"filters": filters}}, "upstream": upstream.resource()});
    gateway.put("/routes/1", route).expect(201);
    gateway.get("/").expect(200).expect_body("hello *\n");
}
