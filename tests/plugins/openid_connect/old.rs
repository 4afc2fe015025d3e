//! What APISIX 3.2 took for granted, and the form that very old configurations have.

use serde_json::{Value, json};

use super::{Given, SECRET};
use crate::support::{
    at,
    browser::Browser,
    gateway::{Gateway, Setup},
};

fn conf(more: Value) -> Value {
    let discovery = "https://127.0.0.1:1/.well-known/openid-configuration";
    let mut conf = json!({"client_id": "app", "client_secret": SECRET, "discovery": discovery});
    for (name, value) in more.as_object().expect("an object") {
        conf[name] = value.clone();
    }
    conf
}

/// What the Admin API keeps of a configuration.
#[track_caller]
fn kept(gateway: &Gateway, conf: Value) -> Value {
    let upstream = json!({"type": "roundrobin", "nodes": {"127.0.0.1:1": 1}});
    gateway.put("/routes/1", json!({"uri": "/*", "plugins": {"openid-connect": conf}, "upstream": upstream}));
    let route = gateway.admin("GET", "/routes/1").send().expect(200).json();
    at(&route, "/value/plugins/openid-connect").clone()
}

#[test]
fn defaults_of_3_2() {
    let old = Setup::new().speaking_3_2().start();
    let made_up = kept(&old, conf(json!({})));
    assert_eq!(made_up["ssl_verify"], false);
    assert!(at(&made_up, "/session/secret").as_str().is_some_and(|secret| secret.len() >= 32), "{made_up}");
    let said = json!({"ssl_verify": true, "session": {"secret": "0123456789abcdef"}});
    assert_eq!(kept(&old, conf(said))["ssl_verify"], true);
    assert_eq!(kept(&old, conf(json!({"bearer_only": true}))).get("session"), None);

    let today = Gateway::start();
    let route = json!({"uri": "/*", "plugins": {"openid-connect": conf(json!({}))}});
    let refused = today.admin("PUT", "/routes/2").json(&route).send().expect(400);
    refused.expect_in_body(r#"property \"session.secret\" is required when \"bearer_only\" is false"#);
    let no = json!({"ssl_verify": "no", "session": {"secret": "0123456789abcdef"}});
    assert_eq!(kept(&today, conf(no))["ssl_verify"], false);
}

/// From a file nothing is written down: the secret comes from the client's, and is the same in every gateway.
#[test]
fn sessions_without_a_secret_of_their_own() {
    let login = Given { plugin: json!({"session": null}), old: true, ..Given::default() }.start();
    let mut browser = Browser::default();
    login.log_in(&mut browser, "/x", "alice").response.expect(200);
    browser.get(&login.url("/again")).expect(200);
}
