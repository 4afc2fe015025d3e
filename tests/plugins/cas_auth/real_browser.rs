//! cas-auth as people meet it: a real browser, and a real CAS server with its own pages, tickets and single logout.

use serde_json::{Value, json};

use crate::support::{
    chromium::Chromium, client::Request, eventually, gateway::Setup, peer::CasServer, upstream::Upstream,
};

#[test]
fn chromium_logs_in_and_out() {
    let (setup, cas, upstream) = (Setup::file(json!({})), CasServer::start(), Upstream::echo());
    let site = format!("http://127.0.0.1:{}", setup.http());
    let plugin = json!({
        "idp_uri": cas.uri(), "cas_callback_uri": format!("{site}/cas_callback"), "logout_uri": "/logout",
        "cookie": {"secret": "0123456789abcdef0123456789abcdef", "secure": false},
    });
    let route =
        json!({"id": "1", "uri": "/*", "plugins": {"cas-auth": plugin}, "upstream": upstream.resource()});
    let gateway = setup.resources(json!({"routes": [route]})).start();
    let browser = Chromium::start();
    let login = format!("{}/login", cas.uri());

    // Off to the CAS server, through its form, and back to where it wanted to go.
    browser.open(&format!("{site}/wanted?a=1"));
    assert!(browser.url().starts_with(&login), "{}", browser.url());
    assert_eq!(upstream.count(), 0, "nothing passes before the login");
    browser.type_into("input[name=username]", "alice");
    browser.type_into("input[name=password]", "any");
    browser.click("button[type=submit]");
    browser.arrives_at(&format!("{site}/wanted?a=1"));
    assert!(upstream.seen().iter().any(|seen| seen.target == "/wanted?a=1"));

    // The session's cookie: the browser keeps it, and scripts of the page do not see it.
    let session = || -> Option<Value> {
        let of_session =
            |cookie: &Value| cookie["name"].as_str().is_some_and(|name| name.starts_with("CAS_SESSION_"));
        browser.cookies().into_iter().find(of_session)
    };
    let cookie = session().expect("the session's cookie");
    assert_eq!((&cookie["httpOnly"], &cookie["sameSite"]), (&json!(true), &json!("Lax")));
    let seen = browser.script("return document.cookie");
    assert!(!seen.as_str().unwrap_or_default().contains("CAS_SESSION_"), "{seen}");
    browser.open(&format!("{site}/again"));
    assert_eq!(browser.url(), format!("{site}/again"));

    // Out here; the CAS server still knows the browser until it hears of it, which the way out is for.
    browser.open(&format!("{site}/logout"));
    assert!(browser.url().starts_with(&format!("{}/logout", cas.uri())), "{}", browser.url());
    browser.open(&format!("{site}/again"));
    assert!(browser.url().starts_with(&login), "{}", browser.url());
    assert!(session().is_none());

    // In again, then out at the CAS server: it tells the gateway, for which the cookie is worth nothing from then on.
    browser.type_into("input[name=username]", "alice");
    browser.type_into("input[name=password]", "any");
    browser.click("button[type=submit]");
    browser.arrives_at(&format!("{site}/again"));
    let cookie = session().expect("a new session's cookie");
    let text = |name: &str| cookie[name].as_str().expect("text").to_owned();
    let with_cookie = || {
        let request = Request::new(gateway.ports.http, "GET", "/again");
        request.header("Cookie", &format!("{}={}", text("name"), text("value"))).send().status
    };
    assert_eq!(with_cookie(), 200);
    browser.open(&format!("{}/logout", cas.uri()));
    eventually("the session is over", || with_cookie() == 302);
}
