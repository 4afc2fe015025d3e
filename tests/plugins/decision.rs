//! Plugins that let others decide: forward-auth, opa with a real agent, authz-casbin; and what consumers may do.

use serde_json::{Value, json};

use super::{Fixture, message};
use crate::support::{
    Gate, at,
    client::Request,
    eventually,
    gateway::{Gateway, Setup},
    opa::Opa,
    upstream::Upstream,
};

/// An authorization service: 200 for `Authorization: good`, 403 with a place to log in for anything else.
fn service() -> Upstream {
    Upstream::with(|seen, wire| match seen.header("authorization") {
        Some("good") => {
            wire.answer(200, &[("X-User-ID", "ann"), ("X-More", "1"), ("X-More", "2")], b"welcome")
        }
        Some("silent") => wire.answer(200, &[], b""),
        Some("empty") => wire.answer(401, &[], b""),
        Some("gone") => wire.close(),
        _ if seen.body == b"555" => wire.answer(200, &[("X-User-ID", "body")], b""),
        _ => {
            let headers =
                [("Location", "http://example.com/auth"), ("Content-Type", "text/html"), ("X-Hidden", "1")];
            wire.answer(403, &headers, b"go away");
        }
    })
}

fn asking(service: &Upstream, more: Value) -> Value {
    let mut conf = json!({
        "uri": format!("http://{}/auth?from=gateway", service.node()), "request_headers": ["Authorization"],
        "upstream_headers": ["X-User-ID", "X-More"], "client_headers": ["Location", "Content-Type"], "timeout": 30000,
    });
    for (key, value) in more.as_object().expect("an object") {
        conf[key] = value.clone();
    }
    json!({ "forward-auth": conf })
}

#[test]
fn forward_auth() {
    let service = service();
    let fixture = Fixture::new(asking(&service, json!({})));
    let forged =
        [("Authorization", "good"), ("X-User-ID", "root"), ("X-Forwarded-Host", "evil"), ("Cookie", "c=1")];
    fixture.get("/hello?a=%20b", &forged).expect(200);
    let seen = fixture.upstream.last();
    assert_eq!((seen.all("x-user-id"), seen.all("x-more")), (vec!["ann"], vec!["1", "2"]));
    let asked = service.last();
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("GET", "/auth?from=gateway"));
    for (name, value) in [
        ("x-forwarded-proto", "http"),
        ("x-forwarded-method", "GET"),
        ("x-forwarded-host", "127.0.0.1"),
        ("x-forwarded-uri", "/hello?a=%20b"),
        ("x-forwarded-for", "127.0.0.1"),
        ("authorization", "good"),
    ] {
        assert_eq!(asked.all(name), [value], "{name}");
    }
    assert_eq!(asked.header("cookie"), None);
    // What the service does not say, nobody says.
    fixture.get("/", &[("Authorization", "silent"), ("X-User-ID", "root")]).expect(200);
    assert_eq!(fixture.upstream.last().header("x-user-id"), None);
    let passed = fixture.upstream.count();
    let refused = fixture.get("/", &[]).expect(403).expect_body("go away");
    let refused = refused.expect_header("Location", "http://example.com/auth").expect_header("X-Hidden", "");
    let types: Vec<_> =
        refused.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("content-type")).collect();
    assert!(matches!(types.as_slice(), [(_, kind)] if kind == "text/html"), "{types:?}");
    fixture.get("/", &[("Authorization", "empty")]).expect(401);
    fixture.get("/", &[("Authorization", "gone")]).expect(403);
    assert_eq!(fixture.upstream.count(), passed);
    let said = fixture.gateway.stderr();
    assert!(said.contains("failed to process forward auth, err: "), "{said}");
}

#[test]
fn forward_auth_sends_the_body() {
    let service = service();
    let fixture = Fixture::new(asking(&service, json!({"request_method": "POST", "max_req_body_size": 10})));
    let post = |request: Request| request.header("Content-Encoding", "identity").send();
    let request = || fixture.gateway.request("POST", "/");
    post(request().body("555")).expect(200);
    assert_eq!(service.last().header("content-encoding"), Some("identity"));
    post(request().chunked("555")).expect(200);
    let asked = service.last();
    assert_eq!((asked.header("transfer-encoding"), asked.body.as_slice()), (None, b"555".as_slice()));
    assert_eq!(fixture.upstream.last().body, b"555");
    post(request().body("555-555-555")).expect(413);
    post(request().chunked("555-555-555")).expect(413);
    post(request().body("666")).expect(403).expect_header("Location", "http://example.com/auth");
    fixture.gateway.request("GET", "/").header("Authorization", "good").send().expect(200);
}

#[test]
fn forward_auth_sends_more_headers() {
    let service = service();
    let extra = json!({"extra_headers": {
        "X-User": "$arg_user", "X-Fixed": "abc", "X-Tenant": "t-$post_arg.tenant", "Authorization": "good"}});
    let fixture = Fixture::new(asking(&service, extra));
    let post = fixture.gateway.request("POST", "/?user=ann").json(&json!({"tenant": 7}));
    post.header("Authorization", "bad").send().expect(200);
    let asked = service.last();
    let headers = ["x-user", "x-fixed", "x-tenant", "authorization"].map(|name| asked.header(name));
    assert_eq!(headers, [Some("ann"), Some("abc"), Some("t-7"), Some("good")]);
    let asked = service.count();
    fixture.get("/?user=guest%0d%0ax-user1:%20admin", &[]).expect(403);
    assert_eq!(service.count(), asked);
    assert!(fixture.gateway.stderr().contains("invalid characters found in the value of x-user"));
}

#[test]
fn forward_auth_without_its_service() {
    let nobody = |more: Value| {
        let mut plugins =
            json!({"forward-auth": {"uri": "http://127.0.0.1:1/", "upstream_headers": ["X-User-ID"]}});
        for (key, value) in more.as_object().expect("an object") {
            plugins["forward-auth"][key] = value.clone();
        }
        Fixture::new(plugins)
    };
    nobody(json!({})).get("/", &[]).expect(403);
    nobody(json!({"status_on_error": 503})).get("/", &[]).expect(503);
    let degraded = nobody(json!({"allow_degradation": true}));
    degraded.get("/", &[("X-User-ID", "root")]).expect(200);
    assert_eq!(degraded.upstream.last().header("x-user-id"), None, "nobody vouches for it");
}

#[test]
fn opa() {
    let opa = Opa::start();
    let policy = |policy: &str| json!({"opa": {"host": opa.address(), "policy": policy, "timeout": 30000}});
    let fixture = Fixture::new(policy("example"));
    let right = [("test-header", "only-for-test")];
    fixture.get("/hello?test=1234&user=none", &right).expect(200);
    fixture.get("/hello?test=1234&user=none", &[("test-header", "not-for-test")]).expect(403);
    fixture.get("/hello?test=abcd&user=none", &right).expect(403);
    fixture.get("/test?test=1234&user=none", &right).expect(403);
    fixture
        .gateway
        .request("POST", "/hello?test=1234&user=none")
        .header(right[0].0, right[0].1)
        .send()
        .expect(403);
    let alice = fixture.get("/test?user=alice", &right).expect(302);
    alice.expect_header("Location", "http://example.com/auth");
    let bob = fixture.get("/test?user=bob", &right).expect(403).expect_header("test", "abcd");
    assert_eq!(bob.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("abcd")).count(), 2);
    fixture.get("/test?user=carla", &right).expect(403).expect_body("Give you a string reason");
    let told = json!({"code": 40001, "desc": "Give you an object reason"});
    assert_eq!(fixture.get("/test?user=dylon", &right).expect(403).json(), told);
    assert_eq!(fixture.upstream.count(), 1);

    // No policy, and answers that are no permission.
    Fixture::new(policy("nowhere")).get("/", &[]).expect(503);
    Fixture::new(policy("odd/bare")).get("/", &[]).expect(503);
    for odd in ["odd/text", "odd/nothing", "odd/set"] {
        Fixture::new(policy(odd)).get("/", &[]).expect(403);
    }
    let gone = Fixture::new(json!({"opa": {"host": "http://127.0.0.1:1", "policy": "example"}}));
    gone.get("/open", &[]).expect(403);
    assert!(gone.gateway.stderr().contains("failed to process OPA decision, err: "));
}

#[test]
fn opa_tells_the_upstream() {
    let opa = Opa::start();
    let names = ["user", "X-Nr", "X-Foo"];
    let conf =
        json!({"host": opa.address(), "policy": "example", "send_headers_upstream": names, "timeout": 30000});
    let fixture = Fixture::new(json!({"opa": conf}));
    fixture.get("/open?user=ann", &[("X-Foo", "forged"), ("User", "forged")]).expect(200);
    let seen = fixture.upstream.last();
    assert_eq!(names.map(|name| seen.header(name)), [Some("ann"), Some("7"), None]);
}

#[test]
fn opa_sees_the_request() {
    let opa = Opa::start();
    let upstream = Upstream::echo();
    let with = json!({"with_route": true, "with_service": true, "with_consumer": true});
    let mut conf = json!({"host": opa.address(), "policy": "echo", "timeout": 30000});
    for (key, value) in with.as_object().expect("an object") {
        conf[key] = value.clone();
    }
    let gateway = Gateway::file(json!({
        "routes": [
            {"id": "r1", "name": "the route", "uri": "/hello", "service_id": "s1", "plugins": {"opa": conf, "key-auth": {}}},
            {"id": "r2", "uri": "/bare", "plugins": {"opa": conf}, "upstream": upstream.resource()},
        ],
        "services": [{"id": "s1", "name": "the service", "upstream": upstream.resource()}],
        "consumers": [{"username": "ann", "labels": {"team": "a"}, "plugins": {"key-auth": {"key": "k"}}}],
    }));
    let fixture = Fixture { gateway, upstream };
    let sent = [("apikey", "k"), ("X-Two", "1"), ("X-Two", "2"), ("Host", "A.com:80")];
    let input = fixture.get("/hello?a=1&a=2&b&c=x%20y", &sent).expect(403).json();
    let port = fixture.gateway.ports.http;
    for (pointer, expected) in [
        ("/type", json!("http")),
        ("/request/scheme", json!("http")),
        ("/request/method", json!("GET")),
        ("/request/host", json!("a.com")),
        ("/request/port", json!(port)),
        ("/request/path", json!("/hello")),
        ("/request/query", json!({"a": ["1", "2"], "b": true, "c": "x y"})),
        ("/request/headers/x-two", json!(["1", "2"])),
        ("/request/headers/apikey", json!("k")),
        ("/var/server_port", json!(port.to_string())),
        ("/var/remote_addr", json!("127.0.0.1")),
        ("/route/id", json!("r1")),
        ("/route/plugins/opa/with_route", json!(true)),
        ("/service/name", json!("the service")),
        ("/consumer/username", json!("ann")),
        ("/consumer/labels/team", json!("a")),
    ] {
        assert_eq!(at(&input, pointer), &expected, "{pointer}");
    }
    assert!(at(&input, "/var/timestamp").as_u64().is_some());
    assert_eq!(input.pointer("/service/upstream"), None);
    let input = fixture.get("/bare", &[]).expect(403).json();
    assert_eq!(
        (input.get("service"), input.get("consumer"), at(&input, "/request/query")),
        (None, None, &json!({}))
    );
    assert_eq!(input.pointer("/route/upstream"), None);
}

const MODEL: &str = "
    [request_definition]
    r = sub, obj, act
    [policy_definition]
    p = sub, obj, act
    [role_definition]
    g = _, _
    [policy_effect]
    e = some(where (p.eft == allow))
    [matchers]
    m = (g(r.sub, p.sub) || keyMatch(r.sub, p.sub)) && keyMatch(r.obj, p.obj) && keyMatch(r.act, p.act)";

fn policy(more: &str) -> String {
    format!("p, *, /, GET\n    p, admin, *, *\n    {more}\n    g, alice, admin")
}

#[test]
fn authz_casbin() {
    let conf = json!({"model": MODEL, "policy": policy(""), "username": "user"});
    let fixture = Fixture::new(json!({"authz-casbin": conf}));
    let no = message("Access Denied");
    fixture.get("/", &[]).expect(200);
    fixture.get("/hello", &[]).expect(403).expect_body(&no);
    fixture.get("/hello", &[("user", "bob")]).expect(403).expect_body(&no);
    fixture.get("/hello", &[("user", "admin")]).expect(200);
    fixture.get("/hello", &[("User", "alice")]).expect(200);
}

#[test]
fn authz_casbin_may_run_behind_authentication() {
    let conf = json!({"model": MODEL, "policy": policy(""), "username": "X-Consumer-Username", "_meta": {"priority": 2400}});
    let consumer =
        |name: &str| json!({"username": name, "plugins": {"key-auth": {"key": format!("k-{name}")}}});
    let plugins = json!({"authz-casbin": conf, "key-auth": {}});
    let fixture = Fixture::with_consumers(plugins, json!([consumer("alice"), consumer("bob")]));
    let forged = |who: &str| {
        let key = format!("k-{who}");
        fixture.get("/hello", &[("apikey", &key), ("X-Consumer-Username", "admin")]).status
    };
    assert_eq!((forged("alice"), forged("bob")), (200, 403));
}

#[test]
fn authz_casbin_follows_its_metadata() {
    let upstream = Upstream::echo();
    let gateway = Setup::new().start();
    let route = json!({"uri": "/*", "plugins": {"authz-casbin": {"username": "user"}}, "upstream": upstream.resource()});
    let lacking = gateway.admin("PUT", "/routes/1").json(&route).send().expect(400);
    assert!(
        lacking.text().contains("value should match only one schema, but matches none"),
        "{}",
        lacking.text()
    );
    let told = |more: &str| json!({"model": MODEL, "policy": policy(more)});
    gateway.put("/plugin_metadata/authz-casbin", told("")).expect(201);
    gateway.put("/routes/1", route.clone()).expect(201);
    let get = |user: &str| gateway.request("GET", "/hello").header("user", user).send().status;
    assert_eq!((get("alice"), get("jack")), (200, 403));
    gateway.put("/plugin_metadata/authz-casbin", told("p, jack, /hello, GET")).expect(200);
    eventually("the new policy counts", || get("jack") == 200);
    gateway.delete("/plugin_metadata/authz-casbin").expect(200);
    eventually("without a policy nobody passes", || get("alice") == 503);
}

/// Consumers with two groups, and routes of two services.
fn people(restriction: Value, of_jack: Value) -> Fixture {
    let upstream = Upstream::echo();
    let mut plugins = of_jack;
    plugins["key-auth"] = json!({"key": "k-jack"});
    let route = |id: &str, service: &str| json!({"id": id, "uri": format!("/{id}"), "service_id": service, "plugins": {"key-auth": {}}});
    let mut restricted = route("r1", "s1");
    if restriction != Value::Null {
        restricted["plugins"]["consumer-restriction"] = restriction;
    }
    let gateway = Gateway::file(json!({
        "services": [{"id": "s1", "upstream": upstream.resource()}, {"id": "s2", "upstream": upstream.resource()}],
        "routes": [restricted, route("r2", "s2")],
        "consumer_groups": [{"id": "g1", "plugins": {}}, {"id": "g2", "plugins": {}}],
        "consumers": [
            {"username": "jack", "group_id": "g1", "plugins": plugins},
            {"username": "jill", "group_id": "g2", "plugins": {"key-auth": {"key": "k-jill"}}},
            {"username": "lone", "plugins": {"key-auth": {"key": "k-lone"}}},
        ],
    }));
    Fixture { gateway, upstream }
}

impl Fixture {
    #[track_caller]
    fn as_consumer(&self, method: &str, path: &str, who: &str) -> (u16, String) {
        let answer = self.gateway.request(method, path).header("apikey", &format!("k-{who}")).send();
        (answer.status, if answer.status == 200 { String::new() } else { answer.text() })
    }
}

#[test]
fn consumers_are_restricted_by_name_group_and_method() {
    let forbidden = |what: &str| (403, message(&format!("The {what} is forbidden.")));
    let ok = || (200, String::new());
    let group = json!({"type": "consumer_group_id", "whitelist": ["g1"]});
    let fixture = people(group, json!({}));
    assert_eq!(fixture.as_consumer("GET", "/r1", "jack"), ok());
    assert_eq!(fixture.as_consumer("GET", "/r1", "jill"), forbidden("consumer_group_id"));
    let lone = "The request is rejected, please check the consumer_group_id for this request";
    assert_eq!(fixture.as_consumer("GET", "/r1", "lone"), (401, message(lone)));
    let methods = json!({"allowed_by_methods": [
        {"user": "jack", "methods": ["GET"]}, {"user": "jill", "methods": ["POST", "DELETE"]}]});
    let fixture = people(methods, json!({}));
    assert_eq!(fixture.as_consumer("GET", "/r1", "jack"), ok());
    assert_eq!(fixture.as_consumer("POST", "/r1", "jack"), forbidden("consumer_name"));
    assert_eq!(fixture.as_consumer("DELETE", "/r1", "jill"), ok());
    assert_eq!(fixture.as_consumer("DELETE", "/r1", "lone"), ok());
    // The black list, then the white one, then methods.
    let all = json!({"blacklist": ["jack"], "whitelist": ["jack", "jill"], "allowed_by_methods": [
        {"user": "jill", "methods": ["POST"]}], "rejected_code": 402, "rejected_msg": "no"});
    let fixture = people(all, json!({}));
    assert_eq!(fixture.as_consumer("GET", "/r1", "jack"), (402, message("no")));
    assert_eq!(fixture.as_consumer("GET", "/r1", "jill"), ok());
    assert_eq!(fixture.as_consumer("GET", "/r1", "lone"), (402, message("no")));
}

#[test]
fn consumers_are_restricted_to_routes_and_services() {
    for (kind, own) in [("route_id", "r1"), ("service_id", "s1")] {
        let restriction = json!({"consumer-restriction": {"type": kind, "whitelist": [own]}});
        let fixture = people(Value::Null, restriction);
        let forbidden = (403, message(&format!("The {kind} is forbidden.")));
        assert_eq!(fixture.as_consumer("GET", "/r1", "jack"), (200, String::new()));
        assert_eq!(fixture.as_consumer("GET", "/r2", "jack"), forbidden);
        assert_eq!(fixture.as_consumer("GET", "/r2", "jill"), (200, String::new()));
    }
}

#[test]
fn consumers_have_connections_of_their_own() {
    let gate = Gate::default();
    let upstream = Upstream::holding(&gate);
    let consumer = |name: &str| {
        json!({"username": name, "plugins": {
            "key-auth": {"key": format!("k-{name}")},
            "limit-conn": {"conn": 1, "burst": 0, "default_conn_delay": 0.1, "rejected_code": 503, "key": "remote_addr"},
        }})
    };
    let route = json!({"id": "1", "uri": "/*", "plugins": {"key-auth": {}}, "upstream": upstream.resource()});
    let gateway = Gateway::file(json!({"routes": [route], "consumers": [consumer("ann"), consumer("ben")]}));
    let fixture = Fixture { gateway, upstream };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| fixture.as_consumer("GET", "/hold", "ann").0);
        eventually("the first request is at the upstream", || fixture.upstream.count() == 1);
        let others = ["ann", "ben"].map(|who| fixture.as_consumer("GET", "/", who).0);
        gate.open();
        assert_eq!(others, [503, 200]);
        assert_eq!(first.join().expect("it ends"), 200);
    });
    let again = || fixture.as_consumer("GET", "/", "ann").0 == 200;
    eventually("the connection is given back", again);
}

#[test]
fn consumers_have_budgets_of_their_own() {
    let slow = |name: &str| {
        json!({"username": name, "plugins": {
            "key-auth": {"key": format!("k-{name}")},
            "limit-count": {"count": 2, "time_window": 3600, "rejected_code": 429, "key": "remote_addr"},
            "ip-restriction": {"whitelist": if name == "ann" { ["127.0.0.0/8"] } else { ["10.0.0.0/8"] }},
        }})
    };
    let plain = json!({"username": "cid", "plugins": {"key-auth": {"key": "k-cid"}}});
    let ben = {
        let mut ben = slow("ben");
        ben["plugins"].as_object_mut().expect("plugins").remove("ip-restriction");
        ben
    };
    let fixture =
        Fixture::with_consumers(json!({"key-auth": {}}), json!([slow("ann"), ben, slow("far"), plain]));
    let get = |who: &str| fixture.as_consumer("GET", "/", who).0;
    assert_eq!([get("ann"), get("ann"), get("ann")], [200, 200, 429]);
    // Same address, same numbers, another budget.
    assert_eq!([get("ben"), get("ben"), get("ben")], [200, 200, 429]);
    assert_eq!(get("far"), 403);
    assert_eq!([get("cid"), get("cid"), get("cid")], [200, 200, 200]);
}
