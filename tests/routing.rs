//! Which route a request finds, which plugins it then meets, and what happens when something is missing.

use serde_json::{Value, json};

use crate::support::{
    client::Response,
    gateway::{Gateway, Setup},
    upstream::Upstream,
};

/// Routes that tell their id: the Host that reaches the upstream is the id of the route.
struct Table {
    gateway: Gateway,
    _upstream: Upstream,
}

impl Table {
    fn new(router: &str, routes: &[(&str, Value)]) -> Self {
        let upstream = Upstream::with(|seen, wire| {
            let route = seen.header("host").unwrap_or_default().to_owned();
            wire.answer(200, &[], route.as_bytes());
        });
        let routes: Vec<Value> = routes.iter().map(|(id, route)| told(id, route, &upstream)).collect();
        let setup = Setup::file(json!({"routes": routes})).set("apisix.router.http", router);
        Self { gateway: setup.start(), _upstream: upstream }
    }

    /// `GET /path`, `GET host/path` or another method, with header lines after it.
    #[track_caller]
    fn check(&self, request: &str, headers: &[(&str, &str)], expected: &str) {
        let (method, target) = request.split_once(' ').unwrap();
        let (host, path) = target.split_at(target.find('/').unwrap());
        let mut message = self.gateway.request(method, path);
        if !host.is_empty() {
            message = message.header("Host", host);
        }
        for (name, value) in headers {
            message = message.header(name, value);
        }
        let response = message.send();
        let found = if response.status == 200 { response.text() } else { response.status.to_string() };
        assert_eq!(found, expected, "{request} {headers:?}");
    }
}

fn told(id: &str, route: &Value, upstream: &Upstream) -> Value {
    let mut route = route.clone();
    route["id"] = json!(id);
    route["upstream"] = upstream.resource();
    route["upstream"]["pass_host"] = json!("rewrite");
    route["upstream"]["upstream_host"] = json!(id);
    route
}

#[test]
fn paths_exact_before_prefix_and_longest_first() {
    for router in ["radixtree_uri", "radixtree_host_uri", "radixtree_uri_with_parameter"] {
        let table = Table::new(
            router,
            &[
                ("all", json!({"uri": "/*", "priority": 100})),
                ("a", json!({"uri": "/a/*", "priority": 50})),
                ("ab", json!({"uri": "/a/b*"})),
                ("exact", json!({"uri": "/a/b/c", "priority": -10})),
                ("many", json!({"uris": ["/m1", "/m2/*"]})),
            ],
        );
        table.check("GET /a/b/c", &[], "exact");
        table.check("GET /a/b/c?x=/a/d", &[], "exact");
        table.check("GET /a/b/d", &[], "ab");
        table.check("GET /a/bc", &[], "ab");
        table.check("GET /a/x", &[], "a");
        table.check("GET /a", &[], "all");
        table.check("GET /m1", &[], "many");
        table.check("GET /m1/", &[], "all");
        table.check("GET /m2/", &[], "many");
        table.check("GET /m2", &[], "all");
    }
}

#[test]
fn the_path_is_compared_decoded_and_normal() {
    let table =
        Table::new("radixtree_uri", &[("a", json!({"uri": "/a b/c"})), ("up", json!({"uri": "/up"}))]);
    table.check("GET /a%20b/c", &[], "a");
    table.check("GET /a%20b//c", &[], "a");
    table.check("GET /x/../a%20b/./c", &[], "a");
    table.check("GET /%75p", &[], "up");
    table.check("GET /x/%2e%2e/up", &[], "up");
    table.check("GET /UP", &[], "404");
}

#[test]
fn priority_decides_among_equals() {
    let table = Table::new(
        "radixtree_uri",
        &[
            ("low", json!({"uri": "/p", "priority": 1})),
            ("high", json!({"uri": "/p", "priority": 9, "methods": ["POST"]})),
            ("middle", json!({"uri": "/p", "priority": 5, "methods": ["POST", "PUT"]})),
        ],
    );
    table.check("POST /p", &[], "high");
    table.check("PUT /p", &[], "middle");
    table.check("GET /p", &[], "low");
}

#[test]
fn a_route_that_refuses_leaves_the_request_to_shorter_prefixes() {
    let table = Table::new(
        "radixtree_uri",
        &[
            ("exact", json!({"uri": "/a/b", "methods": ["PUT"]})),
            ("long", json!({"uri": "/a/*", "remote_addrs": ["10.0.0.0/8"]})),
            ("short", json!({"uri": "/*", "methods": ["GET"]})),
        ],
    );
    table.check("PUT /a/b", &[], "exact");
    table.check("GET /a/b", &[], "short");
    table.check("POST /a/b", &[], "404");
}

#[test]
fn hosts() {
    let routes = [
        ("any", json!({"uri": "/exact"})),
        ("host", json!({"uri": "/*", "host": "a.com"})),
        ("wild", json!({"uri": "/*", "host": "*.a.com"})),
        ("longer", json!({"uri": "/*", "hosts": ["*.b.a.com", "c.com"]})),
    ];
    let table = Table::new("radixtree_host_uri", &routes);
    table.check("GET a.com/x", &[], "host");
    table.check("GET A.COM/x", &[], "host");
    table.check("GET a.com:9080/x", &[], "host");
    table.check("GET x.a.com/x", &[], "wild");
    table.check("GET x.y.a.com/x", &[], "wild");
    table.check("GET x.b.a.com/x", &[], "longer");
    table.check("GET c.com/x", &[], "longer");
    table.check("GET d.com/x", &[], "404");
    table.check("GET d.com/exact", &[], "any");
    // The host comes first here, and the path there.
    table.check("GET a.com/exact", &[], "host");
    Table::new("radixtree_uri", &routes).check("GET a.com/exact", &[], "any");
}

#[test]
fn parameters() {
    let table = Table::new(
        "radixtree_uri_with_parameter",
        &[
            ("user", json!({"uri": "/user/:id"})),
            ("posts", json!({"uri": "/user/:id/posts"})),
            ("rest", json!({"uri": "/files/*path"})),
        ],
    );
    table.check("GET /user/1", &[], "user");
    table.check("GET /user/1/posts", &[], "posts");
    table.check("GET /user/1/x", &[], "404");
    table.check("GET /files/a/b", &[], "rest");
}

#[test]
fn vars() {
    let var = |name: &str, vars: Value| (name.to_owned(), json!({"uri": format!("/{name}"), "vars": vars}));
    let routes = [
        var("eq", json!([["arg_a", "==", "1"]])),
        var("ne", json!([["arg_a", "~=", "1"]])),
        var("gt", json!([["arg_a", ">", 9]])),
        var("re", json!([["http_x_v", "~~", "^v[0-9]+$"]])),
        var("rei", json!([["http_x_v", "~*", "^v[0-9]+$"]])),
        var("in", json!([["cookie_c", "in", ["x", "y"]]])),
        var("not", json!([["arg_a", "!", "in", ["x", "y"]]])),
        var("ip", json!([["remote_addr", "ipmatch", ["127.0.0.0/8"]]])),
        var("or", json!(["OR", ["arg_a", "==", "1"], ["arg_b", "==", "1"]])),
        var("nor", json!(["!OR", ["arg_a", "==", "1"], ["arg_b", "==", "1"]])),
        var("method", json!([["request_method", "==", "PUT"]])),
        var("empty", json!([])),
    ];
    let routes: Vec<(&str, Value)> =
        routes.iter().map(|(name, route)| (name.as_str(), route.clone())).collect();
    let table = Table::new("radixtree_uri", &routes);
    for (request, headers, found) in [
        ("GET /eq?a=1", &[] as &[(&str, &str)], true),
        ("GET /eq?a=2", &[], false),
        ("GET /eq", &[], false),
        ("GET /ne?a=2", &[], true),
        ("GET /ne?a=1", &[], false),
        ("GET /gt?a=10", &[], true),
        ("GET /gt?a=9", &[], false),
        ("GET /re", &[("X-V", "v12")], true),
        ("GET /re", &[("X-V", "V12")], false),
        ("GET /rei", &[("X-V", "V12")], true),
        ("GET /in", &[("Cookie", "a=1; c=y")], true),
        ("GET /in", &[("Cookie", "a=1; c=z")], false),
        ("GET /not?a=z", &[], true),
        ("GET /not?a=x", &[], false),
        ("GET /ip", &[], true),
        ("GET /or?b=1", &[], true),
        ("GET /or?b=2", &[], false),
        ("GET /nor?b=2", &[], true),
        ("GET /nor?b=1", &[], false),
        ("PUT /method", &[], true),
        ("GET /method", &[], false),
        ("GET /empty", &[], true),
    ] {
        let name = request[request.find('/').unwrap() + 1..].split('?').next().unwrap();
        table.check(request, headers, if found { name } else { "404" });
    }
}

#[test]
fn vars_that_look_into_the_body() {
    let table = Table::new(
        "radixtree_uri",
        &[
            ("form", json!({"uri": "/f", "vars": [["post_arg_model", "==", "gpt"]]})),
            ("json", json!({"uri": "/f", "vars": [["post_arg.model.name", "==", "deep"]], "priority": -1})),
            ("rest", json!({"uri": "/*"})),
        ],
    );
    let post = |kind: &str, body: &str| {
        table.gateway.request("POST", "/f").header("Content-Type", kind).body(body).send().expect(200).text()
    };
    assert_eq!(post("application/x-www-form-urlencoded", "x=1&model=gpt"), "form");
    assert_eq!(post("application/x-www-form-urlencoded", "x=1&model=other"), "rest");
    assert_eq!(post("application/json", r#"{"model":{"name":"deep"}}"#), "json");
    assert_eq!(post("application/json", "{not json"), "rest");
    assert_eq!(post("text/plain", "model=gpt"), "rest");
}

#[test]
fn a_route_with_status_0_does_not_exist() {
    let table = Table::new(
        "radixtree_uri",
        &[("off", json!({"uri": "/a", "status": 0})), ("on", json!({"uri": "/b", "status": 1}))],
    );
    table.check("GET /a", &[], "404");
    table.check("GET /b", &[], "on");
}

#[test]
fn nothing_found() {
    let gateway = Gateway::file(json!({"routes": []}));
    let response = gateway.get("/x").expect(404).expect_body("{\"error_msg\":\"404 Route Not Found\"}\n");
    response
        .expect_header("Content-Type", "text/plain; charset=utf-8")
        .expect_header("Server", "APISIX/3.18.0");
}

#[test]
fn missing_parts() {
    let upstream = Upstream::echo();
    let with = |id: &str, part: &str| json!({"id": id, "uri": format!("/{id}"), part: "none"});
    let mut service = with("service", "service_id");
    service["upstream"] = upstream.resource();
    let mut config = with("config", "plugin_config_id");
    config["upstream"] = upstream.resource();
    let routes = json!([
        service,
        config,
        with("upstream", "upstream_id"),
        {"id": "bare", "uri": "/bare", "plugins": {}},
        {"id": "empty", "uri": "/empty", "upstream": {"type": "roundrobin", "nodes": {}}},
        {"id": "group", "uri": "/group", "plugins": {"key-auth": {}}, "upstream": upstream.resource()},
    ]);
    let consumers =
        json!([{"username": "jack", "group_id": "none", "plugins": {"key-auth": {"key": "jack"}}}]);
    let gateway = Gateway::file(json!({"routes": routes, "consumers": consumers}));
    gateway.get("/service").expect(404).expect_in_body("<title>404 Not Found</title>");
    gateway.get("/config").expect(503).expect_in_body("<title>503 Service Temporarily Unavailable</title>");
    gateway.get("/upstream").expect(502);
    gateway.get("/bare").expect(503);
    gateway.get("/empty").expect(503);
    gateway.request("GET", "/group").header("apikey", "jack").send().expect(503);
    assert_eq!(upstream.count(), 0);
}

/// Every layer says who it is; what wins is what the response says.
fn says(layer: &str) -> Value {
    json!({"response-rewrite": {"headers": {"set": {"X-From": layer}}}})
}

#[test]
fn plugins_of_closer_layers_win() {
    let upstream = Upstream::echo();
    let layered = |plugins: Value| {
        let mut plugins = plugins;
        plugins["key-auth"] = json!({});
        plugins
    };
    let node = upstream.resource();
    let document = json!({
        "services": [{"id": "s", "plugins": says("service"), "upstream": node}],
        "plugin_configs": [{"id": "c", "plugins": says("plugin_config")}],
        "consumer_groups": [{"id": "g", "plugins": says("group")}],
        "routes": [
            {"id": "1", "uri": "/service", "service_id": "s"},
            {"id": "2", "uri": "/config", "service_id": "s", "plugin_config_id": "c"},
            {"id": "3", "uri": "/route", "service_id": "s", "plugin_config_id": "c", "plugins": layered(says("route"))},
        ],
        "consumers": [
            {"username": "plain", "plugins": {"key-auth": {"key": "plain"}}},
            {"username": "grouped", "group_id": "g", "plugins": {"key-auth": {"key": "grouped"}}},
            {"username": "own", "group_id": "g", "plugins": {
                "key-auth": {"key": "own"}, "response-rewrite": says("consumer")["response-rewrite"].clone(),
            }},
        ],
    });
    let gateway = Gateway::file(document);
    gateway.get("/service").expect(200).expect_header("X-From", "service");
    gateway.get("/config").expect(200).expect_header("X-From", "plugin_config");
    for (key, layer) in [("plain", "route"), ("grouped", "group"), ("own", "consumer")] {
        let response = gateway.request("GET", "/route").header("apikey", key).send();
        response.expect(200).expect_header("X-From", layer);
    }
}

#[test]
fn global_rules_see_every_request() {
    let upstream = Upstream::echo();
    let gateway = Gateway::file(json!({
        "global_rules": [
            {"id": "1", "plugins": {"request-id": {}}},
            {"id": "2", "plugins": {"ip-restriction": {"blacklist": ["127.0.0.1"], "message": "not you", "_meta": {
                "filter": [["arg_block", "==", "1"]],
            }}}},
        ],
        "routes": [{"id": "1", "uri": "/x", "upstream": upstream.resource()}],
    }));
    assert!(gateway.get("/x").expect(200).header("X-Request-Id").is_some());
    assert!(gateway.get("/nowhere").expect(404).header("X-Request-Id").is_some());
    gateway.get("/x?block=1").expect(403).expect_body("{\"message\":\"not you\"}\n");
    gateway.get("/nowhere?block=1").expect(403).expect_body("{\"message\":\"not you\"}\n");
}

fn restricted(meta: Value) -> Value {
    json!({"ip-restriction": {"blacklist": ["127.0.0.1"], "_meta": meta}})
}

#[test]
fn meta_of_plugins() {
    let upstream = Upstream::echo();
    let route = |id: &str, plugins: Value| json!({"id": id, "uri": format!("/{id}"), "plugins": plugins, "upstream": upstream.resource()});
    let gateway = Gateway::file(json!({"routes": [
        route("disabled", restricted(json!({"disable": true}))),
        route("filtered", restricted(json!({"filter": [["http_x_block", "==", "yes"]]}))),
        route("object", restricted(json!({"error_response": {"code": 7, "why": "policy"}}))),
        route("text", restricted(json!({"error_response": "no entry"}))),
        // By their numbers key-auth (2500) would come after ip-restriction (3000).
        route("priority", json!({
            "key-auth": {"_meta": {"priority": 1}}, "consumer-restriction": {"whitelist": ["x"], "_meta": {"priority": 2}},
        })),
    ]}));
    gateway.get("/disabled").expect(200);
    gateway.get("/filtered").expect(200);
    gateway.request("GET", "/filtered").header("X-Block", "yes").send().expect(403);
    assert_eq!(gateway.get("/object").expect(403).json(), json!({"code": 7, "why": "policy"}));
    gateway.get("/text").expect(403).expect_in_body("no entry");
    gateway.get("/priority").expect(401);
}

#[test]
fn a_service_gives_hosts_and_upstream() {
    let (own, shared) = (Upstream::named("own"), Upstream::named("shared"));
    let gateway = Gateway::file(json!({
        "services": [{"id": "s", "hosts": ["svc.com"], "upstream": shared.resource()}],
        "upstreams": [{"id": "u", "type": "roundrobin", "nodes": {own.node(): 1}}],
        "routes": [
            {"id": "1", "uri": "/a", "service_id": "s"},
            {"id": "2", "uri": "/b", "service_id": "s", "upstream_id": "u"},
            {"id": "3", "uri": "/c", "service_id": "s", "host": "own.com"},
        ],
    }));
    let get =
        |host: &str, path: &str| -> Response { gateway.request("GET", path).header("Host", host).send() };
    get("svc.com", "/a").expect(200).expect_body("shared");
    get("other.com", "/a").expect(404);
    get("svc.com", "/b").expect(200).expect_body("own");
    get("own.com", "/c").expect(200).expect_body("shared");
    get("svc.com", "/c").expect(404);
}
