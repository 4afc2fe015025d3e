//! The plugins' pages, run: every example of `docs/plugins/*.md` is typed into a shell, word for word, and must answer
//! what stands there.
//!
//! Only ports change, so that tests run beside each other. `Date`, `Server` and headers that a page leaves out are not
//! compared; `…` stands for anything up to the end of a line, or of the answer when nothing follows. What stands above
//! the examples in README.md (the upstream, the key) is run, too. A page without an example that answers something
//! fails.

mod example;

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::json;

use self::example::{Desk, pages};
use crate::support::{
    at,
    browser::{Browser, Url},
    eventually,
    gateway::{PROGRAM, Setup},
    opa::Opa,
    peer::OpenIdProvider,
    slapd::Slapd,
    tool,
    upstream::Upstream,
    wolf::Wolf,
};

/// Pages whose examples need somebody else; each has a test of its own here. All others are run by [`alone`].
const WITH_PEERS: [&str; 9] = [
    "ext-plugin-post-req",
    "ext-plugin-post-resp",
    "ext-plugin-pre-req",
    "forward-auth",
    "http-logger",
    "ldap-auth",
    "ldap-auth-advanced",
    "opa",
    "openid-connect",
];

#[test]
fn every_plugin_has_a_page_with_an_example() {
    let pages: BTreeSet<String> = pages().collect();
    let schemas: serde_json::Value = serde_json::from_str(&tool::stdout(PROGRAM, &["schema"])).expect("JSON");
    let plugins = at(&schemas, "/plugins").as_object().expect("plugins by name");
    assert_eq!(pages, plugins.keys().cloned().collect::<BTreeSet<_>>());
    for page in pages {
        let steps = example::steps(&example::read(&page));
        assert!(steps.iter().any(|step| step.answer.is_some()), "{page}.md has no example with an answer");
    }
}

#[test]
fn alone() {
    let desk = Desk::new(Setup::new(), &[]);
    for page in pages().filter(|page| !WITH_PEERS.contains(&&**page) && page != "wolf-rbac") {
        desk.run(&page);
        desk.clear();
    }
}

#[test]
fn ldap_auth() {
    let slapd = Slapd::start();
    let desk = Desk::new(Setup::new(), &[(1389, slapd.port)]);
    for page in ["ldap-auth", "ldap-auth-advanced"] {
        desk.run(page);
        desk.clear();
    }
}

#[test]
fn wolf_rbac() {
    let wolf = Wolf::start();
    Desk::new(Setup::new(), &[(12180, wolf.port())]).run("wolf-rbac");
}

#[test]
fn forward_auth() {
    let service = Upstream::with(|seen, wire| match seen.header("authorization") {
        Some("good") if seen.target == "/auth" => wire.answer(200, &[("X-User-ID", "ann")], b""),
        _ => wire.answer(401, &[], b""),
    });
    Desk::new(Setup::new(), &[(1981, service.port)]).run("forward-auth");
}

#[test]
fn opa() {
    let page = example::read("opa");
    let policy = example::block(&page, "rego").expect("the page has a policy");
    let agent = Opa::with(&[("example.rego", policy)]);
    Desk::new(Setup::new(), &[(8181, agent.port)]).run("opa");
}

#[test]
fn http_logger() {
    let logs = Upstream::with(|_, wire| wire.answer(200, &[], b""));
    let desk = Desk::new(Setup::new(), &[(3001, logs.port)]);
    // What stands there as the answer is what the log server gets.
    let steps = desk.steps("http-logger");
    let (script, answer) = (&steps[0].script, steps[0].answer.as_deref().expect("what is logged"));
    desk.shell(script);
    eventually("the log server gets an entry", || logs.count() > 0);
    assert_eq!(String::from_utf8_lossy(&logs.last().body).trim(), answer.trim());
}

#[test]
fn ext_plugins() {
    for page in ["ext-plugin-pre-req", "ext-plugin-post-req", "ext-plugin-post-resp"] {
        let setup = Setup::new();
        let socket = setup.home().join("runner.sock").display().to_string();
        let yaml = example::block(&example::read(page), "yaml").expect("what config.yaml says").to_owned();
        assert_eq!(yaml.trim(), "ext-plugin:\n  path_for_test: /tmp/runner.sock");
        let setup = setup.set("ext-plugin.path_for_test", socket.as_str());
        let mut desk = Desk::new(setup, &[]);
        desk.replace("/tmp/runner.sock", &socket);
        desk.run(page);
    }
}

#[test]
fn openid_connect() {
    let setup = Setup::new();
    let port = setup.http();
    let provider = OpenIdProvider::start(json!({"clients": [{
        "client_id": "app",
        "client_secret": "secret-of-the-application-0123456789abcdef",
        "redirect_uris": [format!("http://127.0.0.1:{port}/.apisix/redirect")],
        "grant_types": ["authorization_code", "refresh_token", "client_credentials"],
    }]}));
    let desk = Desk::new(setup, &[(3000, provider.port)]);
    let steps = desk.steps("openid-connect");
    let login = steps.iter().position(|step| step.answer.is_some()).expect("a request with an answer") + 1;
    desk.all("openid-connect", &steps[..login]);
    // "A browser that opens … logs in at the provider and then sees"
    let mut browser = Browser::default();
    let page = browser.visit(&Url { port, target: "/hello.txt".into() });
    let page = browser.submit(&page, "prompt=login&login=ann&password=x");
    let page = browser.submit(&page, "prompt=consent");
    page.response.expect(200).expect_body("hello from the upstream\n");
    desk.all("openid-connect", &steps[login..]);
}

/// The first example of README.md is run by every test here; this shows that it is there.
#[test]
fn the_readme_says_what_examples_assume() {
    let text = fs::read_to_string(Path::new(example::PAGES).join("README.md")).unwrap();
    let script = example::block(&text, "bash").expect("a shell script");
    assert!(script.contains("http.server 1980") && script.contains("KEY="), "{script}");
}
