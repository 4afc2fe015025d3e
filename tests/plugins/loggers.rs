//! http-logger and its batches: what reaches the collector, when, and what a client notices of it (nothing).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    at,
    client::{Connection, Request},
    eventually,
    gateway::{Gateway, Setup},
    upstream::{Seen, Upstream},
};

/// A server that takes logs.
fn collector() -> Upstream {
    Upstream::with(|_, wire| wire.answer(200, &[], b""))
}

/// A logger that sends its entries there, and gives a busy machine time to take them.
fn to(collector: &Upstream, more: Value) -> Value {
    let mut logger = json!({"uri": format!("http://{}", collector.node()), "timeout": 30});
    logger.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    logger
}

fn entries(seen: &Seen) -> Vec<Value> {
    match serde_json::from_slice(&seen.body).expect("a batch is JSON") {
        Value::Array(entries) => entries,
        entry => vec![entry],
    }
}

#[track_caller]
fn collected(collector: &Upstream, count: usize) -> Vec<Value> {
    let all = || collector.seen().iter().flat_map(entries).collect::<Vec<Value>>();
    eventually("the entries arrive", || all().len() >= count);
    assert_eq!(all().len(), count);
    all()
}

fn resources(upstream: &Upstream, logger: Value) -> Value {
    let plugins = json!({"http-logger": logger});
    json!({"routes": [{"id": "r1", "uri": "/*", "plugins": plugins, "upstream": upstream.resource()}]})
}

#[test]
fn an_entry_has_apisix_s_shape() {
    let (upstream, collector) = (Upstream::echo(), collector());
    let more = json!({
        "uri": format!("http://{}/logs?from=test", collector.node()), "auth_header": "Basic abc",
        "inactive_timeout": 1, "include_req_body": true, "include_resp_body": true,
    });
    let gateway = Gateway::file(resources(&upstream, to(&collector, more)));
    let request =
        gateway.request("POST", "/x?a=1&a=2&b").header("X-Twice", "1").header("X-Twice", "2").body("hello");
    let answer = request.send().expect(200);
    // Who only looks at a body changes nothing of its framing.
    assert_eq!(answer.header("content-length"), Some(&*answer.body.len().to_string()));

    let entry = collected(&collector, 1).remove(0);
    let sent = collector.last();
    assert_eq!((sent.method.as_str(), sent.target.as_str()), ("POST", "/logs?from=test"));
    assert_eq!(sent.header("content-type"), Some("application/json"));
    assert_eq!(sent.header("authorization"), Some("Basic abc"));
    let port = gateway.ports.http;
    assert_eq!(at(&entry, "/request/url"), &json!(format!("http://127.0.0.1:{port}/x?a=1&a=2&b")));
    assert_eq!(at(&entry, "/request/uri"), "/x?a=1&a=2&b");
    assert_eq!(at(&entry, "/request/method"), "POST");
    assert_eq!(at(&entry, "/request/querystring"), &json!({"a": ["1", "2"], "b": true}));
    assert_eq!(at(&entry, "/request/headers/x-twice"), &json!(["1", "2"]));
    assert_eq!(at(&entry, "/request/body"), "hello");
    assert_eq!(at(&entry, "/response/status"), 200);
    assert_eq!(at(&entry, "/response/headers/x-up"), "1");
    assert_eq!(at(&entry, "/response/body"), &json!(answer.text()));
    assert_eq!(at(&entry, "/upstream"), &json!(upstream.node()));
    assert_eq!((at(&entry, "/route_id"), at(&entry, "/service_id")), (&json!("r1"), &json!("")));
    assert_eq!(at(&entry, "/client_ip"), "127.0.0.1");
    for number in
        ["/request/size", "/response/size", "/start_time", "/latency", "/upstream_latency", "/apisix_latency"]
    {
        assert!(at(&entry, number).is_number(), "{number} in {entry}");
    }
    assert!(at(&entry, "/server/hostname").is_string() && at(&entry, "/server/version").is_string());
    assert_eq!(entry.get("consumer"), None);
}

#[test]
fn formats_and_lines() {
    let (upstream, collector) = (Upstream::echo(), collector());
    let more = json!({
        "concat_method": "new_line", "batch_max_size": 2,
        "log_format": {"path": "$uri", "status": "$status", "by": {"who": "$remote_addr"}, "fixed": "x"},
    });
    let gateway = Gateway::file(resources(&upstream, to(&collector, more)));
    // Requests of one connection are logged in their order.
    let mut client = Connection::open(gateway.ports.http);
    client.exchange(&gateway.request("GET", "/a")).expect(200);
    client.exchange(&gateway.request("GET", "/b?status=404")).expect(404);
    eventually("a full batch leaves", || collector.count() == 1);
    let sent = collector.last();
    assert_eq!(sent.header("content-type"), Some("text/plain"));
    let body = String::from_utf8(sent.body).unwrap();
    let lines: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = |path, status| json!({"path": path, "status": status, "by": {"who": "127.0.0.1"}, "fixed": "x", "route_id": "r1"});
    assert_eq!(lines, [expected("/a", 200), expected("/b", 404)]);
}

#[test]
fn only_the_consumer_s_requests() {
    let (upstream, collector) = (Upstream::echo(), collector());
    let logger = to(&collector, json!({"batch_max_size": 1}));
    let plugins = json!({"key-auth": {"hide_credentials": true}});
    let route = json!({"id": "1", "uri": "/*", "plugins": plugins, "upstream": upstream.resource()});
    let consumers = json!([
        {"username": "a", "plugins": {"key-auth": {"key": "k-a"}}},
        {"username": "b", "plugins": {"key-auth": {"key": "k-b"}, "http-logger": logger}},
    ]);
    let gateway = Gateway::file(json!({"routes": [route], "consumers": consumers}));
    for (key, status) in [("k-a", 200), ("k-b", 200), ("wrong", 401), ("k-b", 200)] {
        gateway.request("GET", "/").header("apikey", key).send().expect(status);
    }
    for entry in collected(&collector, 2) {
        assert_eq!(at(&entry, "/consumer/username"), "b");
        assert!(!entry.to_string().contains("k-b"), "the credential was to be hidden");
    }
}

/// What logs show of a request that brought a key in every place there is: the entry, the line of the access log, and
/// all they have of others, too.
fn logged(raw: bool) -> (Value, String, String) {
    let (upstream, collector) = (Upstream::echo(), collector());
    let logger = to(&collector, json!({"batch_max_size": 1}));
    // Who is refused before anybody looked for a key is logged, too.
    let early =
        json!({"ip-restriction": {"blacklist": ["127.0.0.1"]}, "key-auth": {}, "http-logger": logger});
    let routes = json!([
        {"id": "1", "uri": "/a", "plugins": {"key-auth": {}, "http-logger": logger}, "upstream": upstream.resource()},
        {"id": "2", "uri": "/early", "plugins": early, "upstream": upstream.resource()},
    ]);
    let consumers = json!([{"username": "a", "plugins": {"key-auth": {"key": "k-s3cr3t"}}}]);
    let gateway = Setup::file(json!({"routes": routes, "consumers": consumers}))
        .set("portcullis.log_credentials", raw)
        .set("nginx_config.http.access_log_format", "$request|$request_uri|$args|$arg_apikey|$http_referer")
        .start();
    gateway.get("/early?apikey=k-s3cr3t").expect(403);
    let request = gateway.request("GET", "/a?x=1&apikey=k-s3cr3t").header("apikey", "k-s3cr3t");
    let request = request.header("Authorization", "Basic czNjcjN0");
    request.header("Referer", "http://a.com/?apikey=k-s3cr3t").send().expect(200);
    assert_eq!(upstream.last().target, "/a?x=1&apikey=k-s3cr3t", "the upstream sees what was sent");
    let entries = collected(&collector, 2);
    let lines = || std::fs::read_to_string(gateway.path("logs/access.log")).unwrap_or_default();
    eventually("the lines are written", || lines().lines().count() == 2);
    let all = format!("{entries:?}{}", lines());
    let ours = |entry: &Value| at(entry, "/request/uri").as_str().is_some_and(|uri| uri.starts_with("/a?"));
    let entry = entries.into_iter().find(ours).expect("an entry of the request");
    let line = lines().lines().find(|line| line.starts_with("GET /a?")).expect("a line of it").to_owned();
    (entry, line, all)
}

#[test]
fn credentials_are_masked() {
    let (entry, line, all) = logged(false);
    assert_eq!(at(&entry, "/request/uri"), "/a?x=1&apikey=***");
    assert_eq!(at(&entry, "/request/querystring"), &json!({"x": "1", "apikey": "***"}));
    assert_eq!(at(&entry, "/request/headers/apikey"), "***");
    assert_eq!(at(&entry, "/request/headers/authorization"), "***");
    assert!(!all.contains("s3cr3t") && !all.contains("czNjcjN0"), "{all}");
    let expected =
        "GET /a?x=1&apikey=*** HTTP/1.1|/a?x=1&apikey=***|x=1&apikey=***|***|http://a.com/?apikey=***";
    assert_eq!(line, expected);
}

/// The requests to endpoints behind public-api and one to a node, as a logger shows them that takes bodies along.
fn logged_bodies(raw: bool) -> [Value; 3] {
    let (upstream, collector) = (Upstream::echo(), collector());
    let logger = json!({
        "uri": format!("http://{}", collector.node()), "batch_max_size": 1,
        "include_req_body": true, "include_resp_body": true,
    });
    let (login, sign) = ("/apisix/plugin/wolf-rbac/login", "/apisix/plugin/jwt/sign");
    let plugins = json!({"public-api": {}, "http-logger": logger});
    let routes = json!([
        {"id": "1", "uris": [login, sign], "plugins": plugins},
        {"id": "2", "uri": "/*", "plugins": {"http-logger": logger}, "upstream": upstream.resource()},
    ]);
    let consumers = json!([
        {"username": "w", "plugins": {"wolf-rbac": {"server": "http://127.0.0.1:1", "appid": "app"}}},
        {"username": "j", "plugins": {"jwt-auth": {"key": "j", "secret": "a secret of thirty-two characters"}}},
    ]);
    let resources = json!({"routes": routes, "consumers": consumers});
    let gateway = Setup::file(resources).set("portcullis.log_credentials", raw).start();
    let body = json!({"appid": "app", "username": "w", "password": "s3cr3t"}).to_string();
    let post =
        |path| gateway.request("POST", path).header("Content-Type", "application/json").body(body.as_bytes());
    post(login).send().expect(500);
    gateway.get(&format!("{sign}?key=j")).expect(200);
    post("/else").send().expect(200);
    let entries = collected(&collector, 3);
    [login, sign, "/else"].map(|path| {
        let ours =
            |entry: &&Value| at(entry, "/request/uri").as_str().is_some_and(|uri| uri.starts_with(path));
        entries.iter().find(ours).expect("an entry of the request").clone()
    })
}

#[test]
fn bodies_of_endpoints_that_deal_in_credentials_are_masked() {
    let [login, sign, other] = logged_bodies(false);
    assert_eq!(at(&login, "/request/body"), "***");
    assert_eq!(at(&sign, "/response/body"), "***");
    assert!(at(&other, "/request/body").as_str().is_some_and(|body| body.contains("s3cr3t")), "{other}");
    let [login, sign, _] = logged_bodies(true);
    assert!(at(&login, "/request/body").as_str().is_some_and(|body| body.contains("s3cr3t")), "{login}");
    assert!(at(&sign, "/response/body").as_str().is_some_and(|body| body.starts_with("ey")), "{sign}");
}

#[test]
fn credentials_are_shown_where_the_operator_wants_them() {
    let (entry, line, _) = logged(true);
    assert_eq!(at(&entry, "/request/uri"), "/a?x=1&apikey=k-s3cr3t");
    assert_eq!(at(&entry, "/request/headers/apikey"), "k-s3cr3t");
    assert_eq!(at(&entry, "/request/headers/authorization"), "Basic czNjcjN0");
    assert!(line.starts_with("GET /a?x=1&apikey=k-s3cr3t HTTP/1.1|"), "{line}");
}

#[test]
fn a_collector_that_fails_is_asked_again_and_delays_nobody() {
    let upstream = Upstream::echo();
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    let collector = Upstream::with(move |_, wire| {
        let status = if counted.fetch_add(1, Relaxed) < 2 { 500 } else { 200 };
        wire.answer(status, &[], b"");
    });
    let logger = to(&collector, json!({"batch_max_size": 1, "max_retry_count": 2, "retry_delay": 0}));
    let gateway = Gateway::file(resources(&upstream, logger));
    gateway.get("/").expect(200);
    eventually("the third try", || tries.load(Relaxed) == 3);
    gateway.rewrite(resources(&upstream, json!({"uri": "http://127.0.0.1:1", "batch_max_size": 1})));
    eventually("an entry is given up and counted", || {
        gateway.get("/").expect(200);
        let metrics = Request::new(gateway.ports.metrics, "GET", "/apisix/prometheus/metrics").send();
        let text = metrics.expect(200).text();
        text.contains("portcullis_log_entries_dropped_total{plugin=\"http-logger\",reason=\"failed\"} ")
    });
}

/// The collector takes what it gets and never answers: what no longer fits into the queue is dropped and counted, and
/// no request waits.
#[test]
fn a_full_queue_drops_and_counts() {
    let upstream = Upstream::echo();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}", silent.local_addr().unwrap());
    let mut given = resources(&upstream, json!({"uri": uri, "batch_max_size": 1, "timeout": 600}));
    given["plugin_metadata"] = json!([{"id": "http-logger", "max_pending_entries": 3}]);
    let gateway = Gateway::file(given);
    let dropped = || {
        let metrics = Request::new(gateway.ports.metrics, "GET", "/apisix/prometheus/metrics").send();
        let text = metrics.expect(200).text();
        let line = text.lines().find_map(|line| {
            line.strip_prefix(
                "portcullis_log_entries_dropped_total{plugin=\"http-logger\",reason=\"backlog\"} ",
            )
        });
        line.map_or(0, |count| count.parse::<u32>().expect("a count"))
    };
    assert_eq!(dropped(), 0);
    for _ in 0..20 {
        gateway.get("/").expect(200);
    }
    eventually("entries are dropped", || dropped() >= 16);
}

/// What waits leaves when the process ends, whatever the way.
#[track_caller]
fn ends_with(signal: Signal) {
    let (upstream, collector) = (Upstream::echo(), collector());
    let logger = to(&collector, json!({"inactive_timeout": 600, "buffer_duration": 600}));
    let mut gateway = Setup::file(resources(&upstream, logger)).start();
    for _ in 0..3 {
        gateway.get("/").expect(200);
    }
    assert_eq!(collector.count(), 0);
    gateway.signal(signal);
    gateway.wait();
    collected(&collector, 3);
}

#[test]
fn what_waits_leaves_on_sigterm() {
    ends_with(Signal::SIGTERM);
}

#[test]
fn what_waits_leaves_on_sigquit() {
    ends_with(Signal::SIGQUIT);
}

#[test]
fn what_waits_leaves_on_reload() {
    ends_with(Signal::SIGHUP);
}
