//! What the Admin API says of configurations that are wrong, plugin by plugin, and of plugins that are not enabled: the
//! sentences that APISIX 3.18 was heard to say.

use serde_json::{Value, json};

use crate::support::gateway::{Gateway, Setup};

fn wrong_type(property: &str, expected: &str, got: &str) -> String {
    format!("property \"{property}\" validation failed: wrong type: expected {expected}, got {got}")
}

fn required(property: &str) -> String {
    format!("property \"{property}\" is required")
}

#[track_caller]
fn says(gateway: &Gateway, path: &str, resource: Value, expected: &str) {
    let answer = gateway.admin("PUT", path).json(&resource).send();
    let (status, body) = (answer.status, answer.text());
    assert_eq!((status, body), (400, format!("{}\n", json!({"error_msg": expected}))), "{path} {resource}");
}

#[track_caller]
fn on_a_route(gateway: &Gateway, plugin: &str, conf: Value, expected: &str) {
    let upstream = json!({"type": "roundrobin", "nodes": {"127.0.0.1:1": 1}});
    let route = json!({"uri": "/x", "plugins": {plugin: conf}, "upstream": upstream});
    says(gateway, "/routes/1", route, expected);
}

#[track_caller]
fn on_a_consumer(gateway: &Gateway, plugin: &str, conf: Value, expected: &str) {
    let consumer = json!({"username": "jack", "plugins": {plugin: conf}});
    says(gateway, "/consumers", consumer, &format!("invalid plugins configuration: {expected}"));
}

#[test]
fn routes() {
    let gateway = Gateway::start();
    let flag = |name: &str| wrong_type(name, "string", "boolean");
    for (plugin, conf, expected) in [
        ("basic-auth", json!({"anonymous_consumer": true}), flag("anonymous_consumer")),
        ("key-auth", json!({"anonymous_consumer": true}), flag("anonymous_consumer")),
        ("jwt-auth", json!({"header": true}), flag("header")),
        ("hmac-auth", json!({"allowed_algorithms": "a"}), wrong_type("allowed_algorithms", "array", "string")),
        ("ldap-auth", json!({"ldap_uri": "a"}), required("base_dn")),
        ("ldap-auth", json!({"base_dn": "a", "ldap_uri": true}), flag("ldap_uri")),
        ("openid-connect", json!({}), "property \"session.secret\" is required when \"bearer_only\" is false".into()),
        ("openid-connect", json!({"bearer_only": true, "discovery": "a", "client_secret": "a"}), required("client_id")),
        ("wolf-rbac", json!({"header_prefix": true}), flag("header_prefix")),
        ("multi-auth", json!({}), required("auth_plugins")),
        ("multi-auth", json!({"auth_plugins": "a"}), wrong_type("auth_plugins", "array", "string")),
        ("forward-auth", json!({}), required("uri")),
        ("forward-auth", json!({"uri": "a", "timeout": "a"}), wrong_type("timeout", "integer", "string")),
        ("opa", json!({}), required("host")),
        ("jwe-decrypt", json!({}), required("forward_header")),
        ("jwe-decrypt", json!({"header": "a", "forward_header": 1}), wrong_type("forward_header", "string", "number")),
        ("csrf", json!({}), required("key")),
        ("acl", json!({"allow_labels": 1}), wrong_type("allow_labels", "object", "number")),
        ("attach-consumer-label", json!({}), required("headers")),
        ("authz-casbin", json!({"username": true}), flag("username")),
        ("cas-auth", json!({"cookie": 1}), required("cas_callback_uri")),
        (
            "consumer-restriction",
            json!({}),
            r#"object matches none of the required: ["blacklist"] or ["whitelist"] or ["allowed_by_methods"]"#.into(),
        ),
        ("public-api", json!({"uri": 1}), wrong_type("uri", "string", "number")),
        ("http-logger", json!({}), required("uri")),
    ] {
        let expected = format!("failed to check the configuration of plugin {plugin} err: {expected}");
        on_a_route(&gateway, plugin, conf, &expected);
        on_a_route(&gateway, plugin, json!("x"), &format!("invalid plugin conf \"x\" for plugin [{plugin}]"));
    }
}

#[test]
fn consumers() {
    let gateway = Gateway::start();
    for (plugin, conf, expected) in [
        ("basic-auth", json!({"password": 1}), required("username")),
        ("basic-auth", json!({"username": 1}), wrong_type("username", "string", "number")),
        ("key-auth", json!({"key": {}}), wrong_type("key", "string", "table")),
        ("jwt-auth", json!({"algorithm": true}), wrong_type("algorithm", "string", "boolean")),
        ("jwt-auth", json!({"exp": 1}), required("key")),
        ("hmac-auth", json!({"key_id": 1}), required("secret_key")),
        ("hmac-auth", json!({"secret_key": 1}), wrong_type("secret_key", "string", "number")),
        ("ldap-auth", json!({}), required("user_dn")),
        ("jwe-decrypt", json!({}), required("key")),
    ] {
        let expected = format!("failed to check the configuration of plugin {plugin} err: {expected}");
        on_a_consumer(&gateway, plugin, conf, &expected);
        on_a_consumer(
            &gateway,
            plugin,
            json!("x"),
            &format!("invalid plugin conf \"x\" for plugin [{plugin}]"),
        );
    }
}

/// `plugins` of config.yaml says which plugins there are; the others are as if they were not written.
#[test]
fn plugins_that_are_not_enabled() {
    let gateway = Setup::new().set("plugins", json!(["key-auth"])).start();
    for plugin in ["authz-casbin", "ldap-auth", "ldap-auth-advanced"] {
        for conf in [json!({}), json!([]), json!({"username": 1}), json!({"_meta": {"disable": false}})] {
            on_a_route(&gateway, plugin, conf, &format!("unknown plugin [{plugin}]"));
        }
        on_a_route(&gateway, plugin, json!("x"), &format!("invalid plugin conf \"x\" for plugin [{plugin}]"));
        on_a_consumer(&gateway, plugin, json!({"user_dn": 1}), &format!("unknown plugin [{plugin}]"));
    }
}
