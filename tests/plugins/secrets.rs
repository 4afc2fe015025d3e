//! References to secrets: the environment, OpenBao, and servers that speak as AWS and GCP do.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use serde_json::{Value, json};

use crate::support::{
    client::{Response, base64},
    eventually,
    gateway::{Gateway, Setup},
    openbao::{OpenBao, TOKEN},
    upstream::Upstream,
};

fn start(upstream: &Upstream, setup: Setup) -> Gateway {
    let gateway = setup.start();
    let route = json!({"uri": "/*", "plugins": {"key-auth": {}}, "upstream": upstream.resource()});
    gateway.put("/routes/1", route);
    gateway
}

fn consumer(gateway: &Gateway, name: &str, key: &str) {
    gateway.put("/consumers", json!({"username": name, "plugins": {"key-auth": {"key": key}}}));
}

fn with_key(gateway: &Gateway, key: &str) -> Response {
    gateway.request("GET", "/").header("apikey", key).send()
}

/// The first request with a key meets its value: what made it known waited for the manager. On a busy machine a manager may
/// take longer than it is waited for, which is told, and then the value counts a little later.
#[track_caller]
fn gets_in(gateway: &Gateway, key: &str) {
    let first = with_key(gateway, key).status;
    let late = ["secret managers do not answer", "secret cannot be fetched"];
    assert!(first == 200 || late.iter().any(|told| gateway.stderr().contains(told)), "{first}");
    eventually("the key counts", || with_key(gateway, key).status == 200);
}

fn quick(setup: Setup) -> Setup {
    setup.set("apisix.lru.secret.ttl", 1).set("apisix.lru.secret.neg_ttl", 1)
}

#[test]
fn the_environment() {
    let upstream = Upstream::echo();
    let setup =
        Setup::new().environment("KEY_OF_JACK", "k-jack").environment("KEYS", r#"{"jill": "k-jill"}"#);
    let gateway = start(&upstream, setup);
    consumer(&gateway, "jack", "$env://KEY_OF_JACK");
    consumer(&gateway, "jill", "$ENV://KEYS/jill");
    consumer(&gateway, "nobody", "$env://NOT_SET");
    with_key(&gateway, "k-jack").expect(200);
    assert_eq!(upstream.last().header("x-consumer-username"), Some("jack"));
    with_key(&gateway, "k-jill").expect(200);
    // What does not resolve lets nobody in, least of all by its own text.
    for literal in ["$env://KEY_OF_JACK", "$ENV://KEYS/jill", "$env://NOT_SET", ""] {
        with_key(&gateway, literal).expect(401);
    }
    assert!(!gateway.stderr().contains("k-jack"), "a secret is in the log");
    // A plugin of a route.
    let headers = json!({"X-From": "$env://KEY_OF_JACK"});
    let plugins = json!({"proxy-rewrite": {"headers": {"set": headers}}});
    gateway.put("/routes/2", json!({"uri": "/r", "plugins": plugins, "upstream": upstream.resource()}));
    gateway.get("/r").expect(200);
    assert_eq!(upstream.last().header("x-from"), Some("k-jack"));
}

#[test]
fn openbao() {
    let bao = OpenBao::start();
    bao.write("kv/apisix/jack", json!({"key": "k-jack", "header": "from-bao"}));
    bao.write("secret/data/apisix/jill", json!({"key": "k-jill"}));
    let upstream = Upstream::echo();
    let gateway = start(&upstream, quick(Setup::new()).environment("BAO_TOKEN", TOKEN));
    let vault = |prefix: &str| json!({"uri": bao.uri(), "prefix": prefix, "token": "$env://BAO_TOKEN"});
    gateway.put("/secrets/vault/1", vault("kv/apisix"));
    gateway.put("/secrets/vault/v2", vault("secret/data/apisix"));
    consumer(&gateway, "jack", "$secret://vault/1/jack/key");
    consumer(&gateway, "jill", "$secret://vault/v2/jill/key");
    consumer(&gateway, "lost", "$secret://vault/1/nowhere/key");
    consumer(&gateway, "stray", "$secret://vault/no-such/jack/key");
    gets_in(&gateway, "k-jack");
    gets_in(&gateway, "k-jill");
    for literal in
        ["$secret://vault/1/jack/key", "$secret://vault/1/nowhere/key", "$secret://vault/no-such/jack/key"]
    {
        with_key(&gateway, literal).expect(401);
    }

    // A plugin of a route.
    let headers = json!({"X-From": "$secret://vault/1/jack/header"});
    let plugins = json!({"proxy-rewrite": {"headers": {"set": headers}}});
    gateway.put("/routes/2", json!({"uri": "/r", "plugins": plugins, "upstream": upstream.resource()}));
    gateway.get("/r").expect(200);
    assert_eq!(upstream.last().header("x-from"), Some("from-bao"));

    // Another value: the old one stops counting.
    bao.write("kv/apisix/jack", json!({"key": "k-new", "header": "new-from-bao"}));
    eventually("the new value counts", || with_key(&gateway, "k-new").status == 200);
    with_key(&gateway, "k-jack").expect(401);
    eventually("the route has it, too", || {
        gateway.get("/r").expect(200);
        upstream.last().header("x-from") == Some("new-from-bao")
    });

    // A manager that is gone takes nothing with it.
    drop(bao);
    eventually("the failure is told", || gateway.stderr().contains("secret cannot be fetched"));
    with_key(&gateway, "k-new").expect(200);
    let log = gateway.stderr();
    assert!(!log.contains("k-new") && !log.contains(TOKEN), "a secret is in the log");
}

#[test]
fn resources_from_a_file() {
    let bao = OpenBao::start();
    bao.write("kv/jack", json!({"key": "k-jack"}));
    let upstream = Upstream::echo();
    let route = json!({"id": "1", "uri": "/*", "plugins": {"key-auth": {}}, "upstream": upstream.resource()});
    let key = json!({"key-auth": {"key": "$secret://vault/1/jack/key"}});
    let gateway = Gateway::file(json!({
        "routes": [route],
        "secrets": [{"id": "vault/1", "uri": bao.uri(), "prefix": "kv", "token": TOKEN}],
        "consumers": [{"username": "jack", "plugins": key}],
    }));
    gets_in(&gateway, "k-jack");
}

/// Speaks as AWS Secrets Manager does: `a/b` is a secret, a JSON object with the member `key`.
fn aws() -> Upstream {
    Upstream::with(|seen, wire| {
        let authorization = seen.header("authorization").unwrap_or_default();
        let signed = authorization.starts_with("AWS4-HMAC-SHA256 Credential=id-of-key/")
            && authorization.contains("/eu-west-1/secretsmanager/aws4_request, ")
            && authorization
                .contains("SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, ")
            && seen.header("x-amz-target") == Some("secretsmanager.GetSecretValue")
            && seen.header("x-amz-security-token") == Some("session");
        let asked: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
        let json = [("Content-Type", "application/x-amz-json-1.1")];
        if !signed || asked["VersionStage"] != "AWSCURRENT" {
            return wire.answer(400, &json, br#"{"__type":"InvalidSignatureException"}"#);
        }
        if asked["SecretId"] != "a/b" {
            return wire.answer(400, &json, br#"{"__type":"ResourceNotFoundException"}"#);
        }
        let body = json!({"Name": "a/b", "SecretString": "{\"key\": \"k-aws\"}"});
        wire.answer(200, &json, body.to_string().as_bytes());
    })
}

#[test]
fn aws_secrets_manager() {
    let manager = aws();
    let upstream = Upstream::echo();
    let gateway = start(&upstream, Setup::new());
    let secret = json!({
        "access_key_id": "id-of-key", "secret_access_key": "secret-of-key", "session_token": "session",
        "region": "eu-west-1", "endpoint_url": format!("http://{}/ignored", manager.node()),
    });
    gateway.put("/secrets/aws/1", secret);
    consumer(&gateway, "jack", "$secret://aws/1/a/b/key");
    gets_in(&gateway, "k-aws");
    let mut asked: Vec<Value> = manager
        .seen()
        .iter()
        .map(|seen| serde_json::from_slice::<Value>(&seen.body).unwrap()["SecretId"].clone())
        .collect();
    asked.dedup();
    assert_eq!(asked[..2], ["a/b/key", "a/b"], "the longest possible name comes first");
    consumer(&gateway, "jill", "$secret://aws/1/nothing/here");
    with_key(&gateway, "$secret://aws/1/nothing/here").expect(401);
}

/// Speaks as GCP's token endpoint and Secret Manager do; the tokens are counted.
fn gcp(granted: Arc<AtomicUsize>) -> Upstream {
    Upstream::with(move |seen, wire| {
        let json = [("Content-Type", "application/json")];
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        match (seen.method.as_str(), seen.target.as_str()) {
            ("POST", "/token")
                if body.starts_with(
                    "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=ey",
                ) =>
            {
                granted.fetch_add(1, Relaxed);
                let token = json!({"access_token": "t-1", "token_type": "Bearer", "expires_in": 3600});
                wire.answer(200, &json, token.to_string().as_bytes());
            }
            ("GET", "/v1/projects/p-1/secrets/jack/versions/latest:access")
                if seen.header("authorization") == Some("Bearer t-1") =>
            {
                let payload = base64(br#"{"key": "k-gcp"}"#);
                wire.answer(200, &json, json!({"payload": {"data": payload}}).to_string().as_bytes());
            }
            _ => wire.answer(403, &json, b"{}"),
        }
    })
}

#[test]
fn gcp_secret_manager() {
    let granted = Arc::new(AtomicUsize::new(0));
    let manager = gcp(granted.clone());
    let upstream = Upstream::echo();
    let gateway = start(&upstream, Setup::new());
    let key = crate::support::tool::stdout("openssl", &["genpkey", "-quiet", "-algorithm", "RSA"]);
    let account = json!({
        "client_email": "me@example.com", "private_key": key, "project_id": "p-1",
        "token_uri": format!("http://{}/token", manager.node()),
        "entries_uri": format!("http://{}/v1", manager.node()),
    });
    gateway.put("/secrets/gcp/1", json!({"auth_config": account}));
    consumer(&gateway, "jack", "$secret://gcp/1/jack/key");
    gets_in(&gateway, "k-gcp");
    consumer(&gateway, "jill", "$secret://gcp/1/other/key");
    with_key(&gateway, "$secret://gcp/1/other/key").expect(401);
    assert_eq!(granted.load(Relaxed), 1, "a token is kept");
}
