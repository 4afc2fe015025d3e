//! Consumers: credentials, groups, anonymous ones, and plugins that only they bring, each with a budget of its own.

use std::thread;

use serde_json::{Value, json};

use crate::support::{
    Gate,
    client::{Request, Response},
    eventually,
    gateway::Gateway,
    tool,
    upstream::Upstream,
};

/// A gateway with the Admin API and one route that asks for a key.
fn start(upstream: &Upstream, plugins: Value) -> Gateway {
    let gateway = Gateway::start();
    gateway.put("/routes/1", json!({"uri": "/*", "plugins": plugins, "upstream": upstream.resource()}));
    gateway
}

fn consumer(gateway: &Gateway, name: &str, mut plugins: Value) {
    plugins["key-auth"] = json!({"key": format!("k-{name}")});
    gateway.put("/consumers", json!({"username": name, "plugins": plugins}));
}

fn request(gateway: &Gateway, target: &str, name: &str) -> Request {
    gateway.request("GET", target).header("apikey", &format!("k-{name}"))
}

fn get(gateway: &Gateway, name: &str) -> Response {
    request(gateway, "/", name).send()
}

#[test]
fn each_has_its_own_budget() {
    let gate = Gate::default();
    let upstream = Upstream::holding(&gate);
    let gateway = start(&upstream, json!({"key-auth": {}}));
    // Both count by the same address, and not together.
    let limit =
        json!({"limit-conn": {"conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr"}});
    consumer(&gateway, "a", limit.clone());
    consumer(&gateway, "b", limit);
    consumer(&gateway, "c", json!({}));
    let held = request(&gateway, "/hold", "a");
    let held = thread::spawn(move || held.send());
    eventually("the first request is at the upstream", || upstream.count() == 1);
    get(&gateway, "a").expect(503);
    get(&gateway, "b").expect(200);
    get(&gateway, "c").expect(200);
    gate.open();
    held.join().unwrap().expect(200);
    eventually("the budget is free again", || get(&gateway, "a").status == 200);
}

#[test]
fn plugins_over_those_of_group_and_route() {
    let upstream = Upstream::echo();
    let from = |who: &str| json!({"proxy-rewrite": {"headers": {"set": {"X-From": who}}}});
    let mut plugins = from("route");
    plugins["key-auth"] = json!({});
    let gateway = start(&upstream, plugins);
    let mut group = from("group");
    group["ip-restriction"] = json!({"blacklist": ["127.0.0.0/8"], "message": "not from here"});
    gateway.put("/consumer_groups/g", json!({"plugins": group}));
    consumer(&gateway, "alone", json!({}));
    let member = |name: &str, mut plugins: Value| {
        plugins["key-auth"] = json!({"key": format!("k-{name}")});
        gateway.put("/consumers", json!({"username": name, "group_id": "g", "plugins": plugins}));
    };
    member("member", json!({}));
    member("guest", json!({"ip-restriction": {"whitelist": ["127.0.0.1"]}}));
    let mut own = from("consumer");
    own["ip-restriction"] = json!({"whitelist": ["127.0.0.1"]});
    member("special", own);
    get(&gateway, "alone").expect(200);
    assert_eq!(upstream.last().header("x-from"), Some("route"));
    get(&gateway, "member").expect(403).expect_body("{\"message\":\"not from here\"}\n");
    get(&gateway, "guest").expect(200);
    get(&gateway, "special").expect(200);
    assert_eq!(upstream.count(), 3);
}

#[test]
fn strangers_share_a_budget_of_their_own() {
    let upstream = Upstream::echo();
    let gateway = start(&upstream, json!({"key-auth": {"anonymous_consumer": "anybody"}}));
    let limit =
        |count: u32| json!({"limit-count": {"count": count, "time_window": 600, "rejected_code": 429}});
    gateway.put("/consumers", json!({"username": "anybody", "plugins": limit(1)}));
    consumer(&gateway, "jack", limit(2));
    gateway.get("/").expect(200);
    assert_eq!(upstream.last().header("x-consumer-username"), Some("anybody"));
    get(&gateway, "wrong").expect(429);
    get(&gateway, "jack").expect(200);
    get(&gateway, "jack").expect(200);
    get(&gateway, "jack").expect(429);
}

#[test]
fn a_key_has_one_owner() {
    let upstream = Upstream::echo();
    let gateway = start(&upstream, json!({"key-auth": {}}));
    consumer(&gateway, "jack", json!({}));
    let refused = |path: &str, body: Value, by: &str| {
        let answer = gateway.admin("PUT", path).json(&body).send().expect(400);
        let error = format!("duplicate key of plugin key-auth found with {by}");
        assert_eq!(answer.json()["error_msg"], json!(error));
    };
    let same = json!({"key-auth": {"key": "k-jack"}});
    refused("/consumers", json!({"username": "jill", "plugins": same}), "consumer: jack");
    gateway.put("/consumers", json!({"username": "bob"}));
    refused("/consumers/bob/credentials/c1", json!({"plugins": same}), "consumer: jack");
    gateway.put("/consumers/bob/credentials/c2", json!({"plugins": {"key-auth": {"key": "k-bob"}}}));
    let taken = json!({"username": "jill", "plugins": {"key-auth": {"key": "k-bob"}}});
    refused("/consumers", taken, "credential: c2 of consumer: bob");
    // Its own key may be written again.
    consumer(&gateway, "jack", json!({}));
}

#[test]
fn some_keys_may_have_several_owners() {
    let gateway = Gateway::start();
    let consumer = |name: &str, plugins: Value| {
        gateway.put("/consumers", json!({"username": name, "plugins": plugins}));
    };
    for name in ["jack", "jill"] {
        consumer(name, json!({"wolf-rbac": {"appid": "restful"}}));
        consumer(name, json!({"jwe-decrypt": {"key": "k", "secret": "-0123456789abcdef0123456789abcde"}}));
    }
}

#[test]
fn credentials_come_and_go_at_once() {
    let upstream = Upstream::echo();
    let gateway = start(&upstream, json!({"key-auth": {}}));
    gateway.put("/consumers", json!({"username": "bob", "plugins": {}}));
    for id in ["c1", "c2"] {
        let key = json!({"plugins": {"key-auth": {"key": format!("k-{id}")}}});
        gateway.put(&format!("/consumers/bob/credentials/{id}"), key);
    }
    for id in ["c1", "c2"] {
        get(&gateway, id).expect(200);
        let seen = upstream.last();
        assert_eq!(seen.header("x-consumer-username"), Some("bob"));
        assert_eq!(seen.header("x-credential-identifier"), Some(id));
    }
    gateway.delete("/consumers/bob/credentials/c1");
    get(&gateway, "c1").expect(401);
    get(&gateway, "c2").expect(200);
    // The consumer's plugins hold for its credentials.
    gateway.put(
        "/consumers",
        json!({"username": "bob", "plugins": {"ip-restriction": {"blacklist": ["127.0.0.1"]}}}),
    );
    get(&gateway, "c2").expect(403);
    gateway.delete("/consumers/bob");
    get(&gateway, "c2").expect(401);
}

#[test]
fn a_token_dies_with_its_secret() {
    let upstream = Upstream::echo();
    let gateway = start(&upstream, json!({"jwt-auth": {}}));
    gateway.put("/routes/sign", json!({"uri": "/apisix/plugin/jwt/sign", "plugins": {"public-api": {}}}));
    let user = |secret: &str| {
        let conf = json!({"key": "user-key", "secret": secret});
        gateway.put("/consumers", json!({"username": "jack", "plugins": {"jwt-auth": conf}}));
    };
    let visit = |token: &str| gateway.request("GET", "/").header("Authorization", token).send();
    user("first-secret-of-thirty-two-bytes-or-more");
    let token = gateway.get("/apisix/plugin/jwt/sign?key=user-key").expect(200).text();
    // Twice: whatever remembers the token does so now.
    visit(&token).expect(200);
    visit(&token).expect(200);
    user("other-secret-of-thirty-two-bytes-or-more");
    visit(&token).expect(401);
    user("first-secret-of-thirty-two-bytes-or-more");
    visit(&token).expect(200);
    gateway.delete("/consumers/jack");
    visit(&token).expect(401);
}

/// CPU time that a process took so far, in clock ticks (proc(5)).
fn ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process is there");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let number = |at: usize| -> u64 {
        fields.split(' ').nth(at).and_then(|text| text.parse().ok()).expect("a number")
    };
    // utime and stime, the 14th and 15th field.
    number(11) + number(12)
}

#[test]
fn hashed_passwords_are_hashed_once() {
    let upstream = Upstream::echo();
    let gateway = start(&upstream, json!({"basic-auth": {}}));
    let ann = |password: &str| {
        let plugins = json!({"basic-auth": {"username": "ann", "password": password}});
        gateway.put("/consumers", json!({"username": "ann", "plugins": plugins}));
    };
    let login = |password: &str| gateway.request("GET", "/").basic("ann", password).send().status;
    // "password" in the reference implementation's test of Argon2id.
    ann("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc");
    let process = gateway.pid().expect("a process");
    let begun = ticks(process);
    assert_eq!((login("password"), login("guess")), (200, 401));
    let hashing = ticks(process) - begun;
    for _ in 0..50 {
        assert_eq!((login("password"), login("guess")), (200, 401));
    }
    let remembering = ticks(process) - begun - hashing;
    assert!(remembering < 10 * hashing.max(10), "{hashing} ticks for two, {remembering} for a hundred");

    // Another password counts at once, and what is remembered of the old one does not. Perl's crypt is the C library's.
    let hash = tool::stdout("perl", &["-e", "print crypt('correct-horse', '$2b$06$abcdefghijklmnopqrstuu')"]);
    assert!(hash.starts_with("$2b$06$"), "{hash}");
    ann(&hash);
    assert_eq!((login("password"), login("correct-horse"), login(&hash)), (401, 200, 401));
    gateway.delete("/consumers/ann");
    assert_eq!(login("correct-horse"), 401);
    let kept = std::fs::read_to_string(gateway.path("stderr.log")).unwrap_or_default();
    assert!(!kept.contains("correct-horse") && !kept.contains("$argon2id$"), "{kept}");
}
