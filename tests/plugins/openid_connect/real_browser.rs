//! openid-connect as people meet it: a real browser, a real provider. What only a browser decides is decided here: which
//! cookies it keeps and sends back from another site's redirect, and what scripts of a page may see.

use serde_json::{Value, json};

use super::Given;
use crate::support::{at, chromium::Chromium};

#[test]
fn chromium_logs_in_and_out() {
    let login = Given {
        plugin: json!({
            "use_pkce": true, "use_nonce": true, "scope": "openid profile",
        }),
        ..Given::default()
    }
    .start();
    let browser = Chromium::start();
    let site = format!("http://127.0.0.1:{}", login.gateway.ports.http);
    let provider = login.provider.url("/");

    // Off to the provider, through its pages, and back to where it wanted to go.
    browser.open(&format!("{site}/wanted?a=1"));
    assert!(browser.url().starts_with(&provider), "{}", browser.url());
    assert_eq!(login.upstream.count(), 0, "nothing passes before the login");
    browser.type_into("input[name=login]", "alice");
    browser.type_into("input[name=password]", "any");
    browser.click("button[type=submit]");
    // The second page asks for consent.
    browser.click("button[autofocus]");
    browser.arrives_at(&format!("{site}/wanted?a=1"));
    // The browser also asks for /favicon.ico.
    assert!(login.upstream.seen().iter().any(|seen| seen.target == "/wanted?a=1"));
    assert_eq!(at(&login.seen_json("x-userinfo"), "/sub"), "alice");

    // The session's cookie: the browser keeps it, the page's scripts do not see it, and it lives on.
    let session = |browser: &Chromium| -> Option<Value> {
        browser.cookies().into_iter().find(|cookie| cookie["name"] == "session")
    };
    let cookie = session(&browser).expect("the session's cookie");
    assert_eq!((&cookie["httpOnly"], &cookie["sameSite"]), (&json!(true), &json!("Lax")));
    let seen = browser.script("return document.cookie");
    assert!(!seen.as_str().unwrap_or_default().contains("session="), "{seen}");
    let asked = login.provider.count("/token");
    browser.open(&format!("{site}/again"));
    assert_eq!(browser.url(), format!("{site}/again"));
    assert!(browser.text().contains("/again"), "{}", browser.text());
    assert_eq!(login.provider.count("/token"), asked);

    // Out: here, and at the provider.
    browser.open(&format!("{site}/logout"));
    assert!(browser.url().starts_with(&provider), "{}", browser.url());
    browser.click("button[value=yes]");
    browser.arrives_at(&login.provider.url("/session/end/success"));
    browser.open(&site);
    assert!(browser.url().starts_with(&provider), "{}", browser.url());
    browser.type_into("input[name=login]", "bob");
    assert!(session(&browser).is_none());
}
