//! Upstreams behind TLS: whom the gateway believes, and what it shows of itself. APISIX: `t/node/upstream-mtls.t`.

use serde_json::{Value, json};

use crate::support::{
    certificates,
    client::{Connection, Response},
    eventually,
    gateway::{Gateway, Setup},
    openbao::{OpenBao, TOKEN},
    peer::SecureServer,
};

fn upstream(server: &SecureServer, tls: Value) -> Value {
    json!({
        "type": "roundrobin",
        "scheme": "https",
        "nodes": {format!("127.0.0.1:{}", server.port): 1},
        "tls": tls,
    })
}

fn route(server: &SecureServer, tls: Value) -> Value {
    json!({"uri": "/*", "upstream": upstream(server, tls)})
}

/// A gateway that believes the server's authority.
fn believing(server: &SecureServer) -> Setup {
    let authority = server.home.path().join("ca.pem");
    Setup::new().set("apisix.ssl.ssl_trusted_certificate", authority.display().to_string())
}

fn called(gateway: &Gateway, host: &str) -> Response {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    Connection::open(gateway.ports.http).raw(request.as_bytes()).response()
}

fn client(gateway: &Gateway) -> String {
    gateway.get("/").expect(200).header("x-client").expect("it tells whose certificate came").to_owned()
}

#[test]
fn certificates_are_verified_where_that_is_wanted() {
    let server = SecureServer::vouched_for();
    let gateway = believing(&server).start();
    gateway.put("/routes/1", route(&server, json!({"verify": true})));
    called(&gateway, "localhost").expect(200).expect_header("x-server-name", "localhost");
    called(&gateway, "localhost:9080").expect(200);
    // Neither another name nor none: who chooses Host does not choose whether the certificate counts.
    for host in ["other.test", "127.0.0.1", "[::1]", ""] {
        called(&gateway, host).expect(502);
    }
    Connection::open(gateway.ports.http).raw(b"GET / HTTP/1.0\r\n\r\n").response().expect(502);
    assert!(gateway.stderr().contains("certificate verify failed"));

    gateway.put("/routes/1", route(&server, json!({"verify": false})));
    called(&gateway, "other.test").expect(200).expect_header("x-server-name", "other.test");
    called(&gateway, "127.0.0.1").expect(200).expect_header("x-server-name", "none");
}

#[test]
fn who_is_not_trusted_is_not_believed() {
    let server = SecureServer::vouched_for();
    let gateway = Gateway::start();
    gateway.put("/routes/1", route(&server, json!({"verify": true})));
    called(&gateway, "localhost").expect(502);
    gateway.put("/routes/1", route(&server, json!({})));
    called(&gateway, "localhost").expect(200);
}

#[test]
fn https_probes_trust_the_same_authorities() {
    let server = SecureServer::vouched_for();
    let mut checked = route(&server, json!({}));
    checked["upstream"]["checks"] = json!({"active": {
        "type": "https", "http_path": "/", "host": "localhost",
        "healthy": {"interval": 1, "successes": 1}, "unhealthy": {"interval": 1, "tcp_failures": 1},
    }});
    let status = |gateway: &Gateway| {
        let nodes = gateway.control("/v1/healthcheck").expect(200).json();
        nodes[0]["nodes"][0]["status"].as_str().unwrap_or_default().to_owned()
    };
    let doubting = Gateway::start();
    doubting.put("/routes/1", checked.clone());
    eventually("the server is not believed", || status(&doubting) == "unhealthy");
    let gateway = believing(&server).start();
    gateway.put("/routes/1", checked);
    // Requests share a connection; every probe that believes the server completes a handshake of its own.
    eventually("the server was probed", || {
        let answer = gateway.get("/").expect(200);
        answer.header("x-connections").is_some_and(|count| count.parse::<u32>().is_ok_and(|count| count > 3))
    });
    assert_eq!(status(&gateway), "healthy");
}

#[test]
fn certificates_are_shown() {
    let server = SecureServer::vouched_for();
    let [cert, key] = certificates::client(server.home.path(), "gateway");
    let gateway = Gateway::start();
    gateway.put("/routes/1", route(&server, json!({})));
    assert_eq!(client(&gateway), "none");
    let shown = json!({"client_cert": cert, "client_key": key});
    gateway.put("/routes/1", route(&server, shown.clone()));
    assert_eq!(client(&gateway), "gateway");
    let stored = gateway.admin("GET", "/routes/1").send().expect(200).json();
    assert_ne!(stored["value"]["upstream"]["tls"]["client_key"], json!(key), "it is encrypted at rest");

    let half = route(&server, json!({"client_cert": cert}));
    let answer = gateway.admin("PUT", "/routes/2").json(&half).send().expect(400);
    answer.expect_in_body("failed to validate dependent schema for");
    let bad = route(&server, json!({"client_cert": cert, "client_key": "AAA".repeat(128)}));
    let answer = gateway.admin("PUT", "/routes/2").json(&bad).send().expect(400);
    answer.expect_in_body("failed to decrypt previous encrypted key");
}

#[test]
fn certificates_by_id_follow_their_resource() {
    let server = SecureServer::vouched_for();
    let [first, second] = ["first", "second"].map(|name| certificates::client(server.home.path(), name));
    let ssl = |pair: &[String; 2]| json!({"type": "client", "cert": pair[0], "key": pair[1]});
    let by_id = json!({"client_cert_id": "1"});
    let gateway = Gateway::start();

    let refused = gateway.admin("PUT", "/upstreams/1").json(&upstream(&server, by_id.clone())).send();
    let missing = r#"{"error_msg":"failed to fetch ssl info by ssl id [1], response code: 404"}"#;
    refused.expect(400).expect_in_body(missing);
    gateway.put("/ssls/1", ssl(&first));

    // Written into a route, into a service, as a resource of its own.
    gateway.put("/services/1", json!({"upstream": upstream(&server, by_id.clone())}));
    gateway.put("/upstreams/1", upstream(&server, by_id.clone()));
    for route in [
        route(&server, by_id.clone()),
        json!({"uri": "/*", "service_id": "1"}),
        json!({"uri": "/*", "upstream_id": "1"}),
    ] {
        gateway.put("/ssls/1", ssl(&first));
        gateway.put("/routes/1", route);
        assert_eq!(client(&gateway), "first");
        gateway.put("/ssls/1", ssl(&second));
        assert_eq!(client(&gateway), "second");

        let mut server_side = ssl(&first);
        server_side["type"] = "server".into();
        server_side["sni"] = "test.com".into();
        gateway.put("/ssls/1", server_side);
        gateway.get("/").expect(502);
        assert!(gateway.stderr().contains("failed to get ssl cert: ssl type should be 'client'"));
        let refused = gateway.admin("PUT", "/upstreams/2").json(&upstream(&server, by_id.clone())).send();
        refused.expect(400).expect_in_body("failed to fetch ssl info by ssl id [1], wrong ssl type");

        gateway.delete("/ssls/1");
        gateway.get("/").expect(502);
        assert!(gateway.stderr().contains("failed to get ssl cert: ssl id [1] not exits"));
    }
    gateway.put("/ssls/1", ssl(&first));
    assert_eq!(client(&gateway), "first");
}

#[test]
fn certificates_may_be_secrets() {
    let server = SecureServer::vouched_for();
    let [cert, key] = certificates::client(server.home.path(), "gateway");
    let bao = OpenBao::start();
    bao.write("kv/apisix/ssl", json!({"client.crt": cert, "client.key": key}));
    let gateway = Setup::new().environment("CLIENT_CERT", &cert).environment("CLIENT_KEY", &key).start();
    gateway.put("/secrets/vault/test", json!({"uri": bao.uri(), "prefix": "kv/apisix", "token": TOKEN}));
    let ssl = |cert: &str, key: &str| json!({"type": "client", "cert": cert, "key": key});
    gateway.put("/ssls/1", ssl("$env://CLIENT_CERT", "$env://CLIENT_KEY"));
    gateway.put("/routes/1", route(&server, json!({"client_cert_id": 1})));
    assert_eq!(client(&gateway), "gateway");
    gateway.put("/ssls/1", ssl("$env://NO_SUCH_CERT", "$env://NO_SUCH_KEY"));
    gateway.get("/").expect(503);
    let refs = ["crt", "key"].map(|name| format!("$secret://vault/test/ssl/client.{name}"));
    gateway.put("/ssls/1", ssl(&refs[0], &refs[1]));
    assert_eq!(client(&gateway), "gateway");
}

#[test]
fn certificates_of_a_resource_file() {
    let server = SecureServer::vouched_for();
    let [cert, key] = certificates::client(server.home.path(), "gateway");
    let mut route = route(&server, json!({"client_cert_id": "a"}));
    route["id"] = "1".into();
    let ssl = json!({"id": "a", "type": "client", "cert": cert, "key": key});
    let gateway = Gateway::file(json!({"routes": [route], "ssls": [ssl]}));
    assert_eq!(client(&gateway), "gateway");
    gateway.rewrite(json!({"routes": [route]}));
    eventually("the certificate is gone", || gateway.get("/").status == 502);
    gateway.rewrite(json!({"routes": [route], "ssls": [ssl]}));
    eventually("and there again", || gateway.get("/").status == 200);
}
