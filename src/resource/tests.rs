//! Kinds, sentences and types, through the module's public face.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::node::Node;
use super::{
    Consumer, HashOn, Kind, PassHost, PluginMetadata, Route, Scheme, Secret, Service, Ssl, StreamRoute,
    Upstream, parse, parts, schema_json, secret, stranger,
};
use crate::{compat::Compat, schema::Schema};

fn check(kind: Kind, value: &Value) -> Result<(), String> {
    super::check(kind, value, Compat::Now)
}

/// Judges a resource; an empty `expected` means it passes.
#[track_caller]
fn check_text(kind: Kind, value: Value, expected: &str) {
    assert_eq!(check(kind, &value).err().unwrap_or_default(), expected, "{value}");
}

fn route(members: Value) -> Value {
    let mut route = json!({"uri": "/a", "upstream": {"nodes": {"127.0.0.1:1980": 1}}});
    for (name, member) in members.as_object().expect("an object of members") {
        route[name] = member.clone();
    }
    route
}

#[test]
fn kinds_have_distinct_names() {
    for kind in Kind::ALL {
        assert_eq!(Kind::from_dir(kind.dir()), Some(kind));
        assert_eq!(Kind::ALL[kind as usize], kind);
    }
    assert_eq!(Kind::from_dir("nope"), None);
    assert_eq!(Kind::ConsumerGroup.singular(), "consumer group");
    assert_eq!(Kind::PluginMetadata.singular(), "plugin_metadata");
}

#[test]
fn routes() {
    let check = |members, expected| check_text(Kind::Route, route(members), expected);
    check(json!({"id": 1, "vars": {}, "methods": {}}), "");
    check(json!({"host": "a.com", "hosts": ["b.com"]}), "only one of host or hosts is allowed");
    check(
        json!({"remote_addr": "::1", "remote_addrs": 1}),
        "only one of remote_addr or remote_addrs is allowed",
    );
    check(
        json!({"id": "a b"}),
        "invalid configuration: property \"id\" validation failed: object matches none of the required",
    );
    check(json!({"nope": 1}), "invalid configuration: additional properties forbidden, found nope");
    check(json!({"remote_addrs": ["10.0.0.0/8", "::1", "1.2.3.4", "fe80::/10"]}), "");
    check(json!({"host": "*.a.com"}), "");
    check(
        json!({"uris": ["/b"]}),
        "invalid configuration: allOf 1 failed: value should match only one schema, but matches both schemas 1 and 2",
    );
    check(
        json!({"script": "return {}  ", "plugins": {}}),
        "invalid configuration: value wasn't supposed to match schema",
    );
    check_text(
        Kind::Route,
        json!([]),
        "invalid configuration: allOf 1 failed: value should match only one schema, but matches none",
    );
    check_text(
        Kind::Route,
        json!({"uri": "/a"}),
        "invalid configuration: object matches none of the required: [\"plugins\",\"uri\"] or \
         [\"upstream\",\"uri\"] or [\"upstream_id\",\"uri\"] or [\"service_id\",\"uri\"] or \
         [\"plugins\",\"uris\"] or [\"upstream\",\"uris\"] or [\"upstream_id\",\"uris\"] or \
         [\"service_id\",\"uris\"] or [\"script\",\"uri\"] or [\"script\",\"uris\"]",
    );
}

#[test]
fn upstreams() {
    let check = |value: Value, expected: &str| {
        check_text(Kind::Upstream, value.clone(), expected);
        check_text(Kind::Service, json!({"upstream": value}), expected);
    };
    let with = |members: Value| {
        let mut upstream = json!({"nodes": {"127.0.0.1:80": 1}});
        for (name, member) in members.as_object().expect("an object of members") {
            upstream[name] = member.clone();
        }
        upstream
    };
    check(with(json!({})), "");
    check(json!({"nodes": {"a.com:65536": 1}}), "invalid port 65536");
    check(json!({"nodes": {"a.com:0": 1}}), "invalid port 0");
    check(
        json!({"nodes": [{"host": "::1", "weight": 1}]}),
        "invalid configuration: IPv6 address must be enclosed with '[' and ']'",
    );
    check(json!({"nodes": [{"host": "[::1]", "weight": 1}]}), "");
    check(
        with(json!({"pass_host": "rewrite"})),
        "`upstream_host` can't be empty when `pass_host` is `rewrite`",
    );
    check(with(json!({"type": "chash"})), "missing key");
    check(with(json!({"type": "chash", "hash_on": "consumer"})), "");
    check(with(json!({"type": "chash", "key": "arg_a"})), "");
    check(
        with(json!({"type": "chash", "key": "a b", "hash_on": "header"})),
        "invalid configuration: failed to match pattern \"^[a-zA-Z0-9-_]+$\" with \"a b\"",
    );
    check_text(
        Kind::Upstream,
        json!({}),
        "invalid configuration: value should match only one schema, but matches none",
    );
    check_text(
        Kind::Upstream,
        with(json!({"tls": {"client_cert": "x".repeat(128)}})),
        "invalid configuration: property \"tls\" validation failed: failed to validate dependent schema for \
         \"client_cert\": property \"client_key\" is required",
    );
    let tls = json!({"client_cert": "x".repeat(128), "client_key": "y".repeat(64)});
    check(with(json!({"tls": tls})), "failed to parse cert: PEM_read_bio_X509_AUX() failed");
}

#[test]
fn other_kinds() {
    check_text(Kind::Consumer, json!({}), "invalid configuration: property \"username\" is required");
    check_text(Kind::Service, json!([]), "");
    check_text(Kind::Ssl, json!({}), "invalid configuration: then clause did not match");
    check_text(Kind::Ssl, json!({"type": "client"}), "invalid configuration: else clause did not match");
    check_text(
        Kind::Ssl,
        json!({"sni": "a.com", "cert": "x".repeat(128), "key": "y".repeat(64)}),
        "failed to parse cert: PEM_read_bio_X509_AUX() failed",
    );
    let referred = json!({"sni": "a.com", "cert": "$secret://vault/1/a/cert", "key": "$env://KEY"});
    check_text(Kind::Ssl, referred.clone(), "");
    let mut uneven = referred;
    uneven["certs"] = json!(["$env://CERT"]);
    check_text(Kind::Ssl, uneven, "mismatched number of certs and keys");
    check_text(
        Kind::Credential,
        json!({"plugins": {"key-auth": {}, "basic-auth": {}}}),
        "invalid configuration: property \"plugins\" validation failed: expect object to have at most 1 properties",
    );
    check_text(Kind::Credential, json!({"id": "jack/credentials/c1"}), "");
    check_text(Kind::StreamRoute, json!({"remote_addr": "1:2:3::/200"}), "invalid remote_addr: 1:2:3::/200");
    check_text(Kind::PluginMetadata, json!({"anything": 1}), "");
    assert_eq!(secret::check("nope", &json!({})), Err("invalid secret manager: nope".to_owned()));
    let vault = json!({"uri": "127.0.0.1", "prefix": "kv", "token": "t"});
    let expected = "invalid configuration: property \"uri\" validation failed: failed to match pattern \
         \"^[^\\\\/]+:\\\\/\\\\/([\\\\da-zA-Z.-]+|\\\\[[\\\\da-fA-F:]+\\\\])(:\\\\d+)?\" with \"127.0.0.1\"";
    assert_eq!(secret::check("vault", &vault), Err(expected.to_owned()));
}

/// A self-signed certificate for `a.test` and its key, made for these tests.
const CERT: &str = include_str!("testdata/cert.pem");
const KEY: &str = include_str!("testdata/key.pem");

#[test]
fn certificates_and_keys() {
    let ssl = |cert: &str, key: &str| json!({"sni": "a.test", "cert": cert, "key": key});
    check_text(Kind::Ssl, ssl(CERT, KEY), "");
    let broken_key = KEY.replace("PRIVATE", "PUBLIC");
    check_text(Kind::Ssl, ssl(CERT, &broken_key), "failed to parse key: PEM_read_bio_PrivateKey() failed");
    let encrypted = "z".repeat(64);
    check_text(Kind::Ssl, ssl(CERT, &encrypted), "failed to decrypt previous encrypted key");
    let decrypted =
        super::check_extra(Kind::Ssl, &ssl(CERT, &encrypted), Compat::Now, &|_| Some(KEY.to_owned()));
    assert_eq!(decrypted, Ok(()));
    let mut pairs = ssl(CERT, KEY);
    pairs["certs"] = json!([CERT]);
    pairs["keys"] = json!(["x".repeat(64)]);
    let expected = "failed to handle cert-key pair[1]: failed to decrypt previous encrypted key";
    check_text(Kind::Ssl, pairs, expected);
    let mut client = ssl(CERT, KEY);
    client["client"] = json!({"ca": "x".repeat(128)});
    let expected = "failed to validate client_cert: failed to parse cert: PEM_read_bio_X509_AUX() failed";
    check_text(Kind::Ssl, client, expected);
    let read: Ssl = parse(&ssl(CERT, KEY)).expect("an ssl");
    assert!(!format!("{read:?}").contains("PRIVATE"));
}

#[test]
fn both_forms_of_nodes_become_one() {
    let node = |host: &str, port, weight| Node {
        host: host.to_owned(),
        port,
        weight,
        priority: 0,
        metadata: serde_json::Map::new(),
    };
    let nodes = |nodes: Value| parse::<Upstream>(&json!({"nodes": nodes})).expect("an upstream").nodes;
    let sorted = vec![node("[::1]", Some(80), 3), node("a.com", None, 1), node("b.com", Some(81), 2)];
    assert_eq!(nodes(json!({"b.com:81": 2.0, "a.com": 1, "[::1]:80": 3})), Some(sorted));
    let listed = vec![node("b.com", Some(81), 2), node("a.com", None, 0)];
    let list =
        json!([{"host": "b.com", "port": 81, "weight": 2}, {"host": "a.com", "weight": 0, "metadata": []}]);
    assert_eq!(nodes(list), Some(listed));
    assert_eq!(nodes(json!([])), Some(Vec::new()));
    assert_eq!(nodes(json!({})), Some(Vec::new()));
}

#[test]
fn typed_resources() {
    let read: Route =
        parse(&route(json!({"id": 7, "priority": 2.0, "methods": {}, "labels": []}))).expect("a route");
    assert_eq!(read.id.expect("an id").as_str(), "7");
    assert_eq!((read.priority, read.status, read.methods.len()), (2, 1, 0));
    let upstream = read.upstream.expect("an upstream");
    assert_eq!(upstream.algorithm, "roundrobin");
    assert_eq!(
        (upstream.scheme, upstream.hash_on, upstream.pass_host),
        (Scheme::Http, HashOn::Vars, PassHost::Pass)
    );
    let checks = json!({"nodes": {}, "checks": {"active": {"healthy": {"successes": 1}}, "passive": []}});
    let checks = parse::<Upstream>(&checks).expect("an upstream").checks.expect("checks");
    let active = checks.active.expect("active checks");
    assert_eq!((active.healthy.successes, active.unhealthy.timeouts, active.http_path.as_str()), (1, 3, "/"));
    assert_eq!(checks.passive.expect("passive checks").unhealthy.http_statuses, [429, 500, 503]);
    assert_eq!(parse::<Service>(&json!([])).expect("a service"), Service::default());
    assert_eq!(parse::<Consumer>(&json!({"username": "jack"})).expect("a consumer").username, "jack");
    assert_eq!(parse::<StreamRoute>(&json!({"server_port": 9100})).expect("a route").server_port, Some(9100));
    let metadata: PluginMetadata = parse(&json!({"id": "http-logger", "log_format": {}})).expect("metadata");
    assert_eq!(metadata.metadata.len(), 1);
    let aws = json!({"access_key_id": "a", "secret_access_key": "b"});
    let Ok(Some(Secret::Aws(aws))) = Secret::parse("aws", &aws) else {
        panic!("not read as AWS access");
    };
    assert_eq!(aws.region, "us-east-1");
}

#[test]
fn parts_that_plugins_share() {
    let judge = |document: &Value, value: Value| Schema::compile(document).expect("a schema").check(&value);
    let realm = parts::realm("key");
    assert_eq!(realm["pattern"], "^[ -!#-[\\]-~]+$");
    assert_eq!(judge(&realm, json!("my [realm]")), Ok(()));
    let refused = "failed to match pattern \"^[ -!#-[\\\\]-~]+$\" with \"a\\\"b\"";
    assert_eq!(judge(&realm, json!("a\"b")), Err(refused.to_owned()));
    let meta = parts::plugin_meta();
    assert_eq!(judge(&meta, json!({"disable": true, "filter": [], "error_response": {"a": 1}})), Ok(()));
    let refused = "additional properties forbidden, found nope";
    assert_eq!(judge(&meta, json!({"nope": 1})), Err(refused.to_owned()));
}

#[test]
fn an_older_apisix_takes_strangers() {
    let before = |kind, value: &Value| super::check(kind, value, Compat::V3_2);
    let mut misspelt = route(json!({"upstrem_id": "1"}));
    misspelt["upstream"]["owner"] = "us".into();
    assert!(check(Kind::Route, &misspelt).is_err());
    assert_eq!(before(Kind::Route, &misspelt), Ok(()));
    assert!(stranger(Kind::Route, &misspelt, Compat::V3_2).is_some_and(|reason| reason.contains("owner")));
    assert_eq!(stranger(Kind::Route, &route(json!({})), Compat::V3_2), None);
    // What is wrong is wrong in both.
    assert_eq!(before(Kind::Route, &route(json!({"uri": 1}))), check(Kind::Route, &route(json!({"uri": 1}))));
    assert!(before(Kind::Consumer, &json!({"username": "a b", "x": 1})).is_err());
    let bare = json!({"nodes": [{"host": "::1", "port": 80, "weight": 1}]});
    assert_eq!(before(Kind::Upstream, &bare), Ok(()));
    for kind in Kind::ALL {
        assert!(
            !schema_json(kind, Compat::V3_2).to_string().contains("additionalProperties\":false"),
            "{kind:?}"
        );
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec![
        "id",
        "uri",
        "uris",
        "host",
        "hosts",
        "nodes",
        "upstream",
        "type",
        "key",
        "cert",
        "sni",
        "checks",
        "active",
        "plugins",
        "labels",
        "remote_addr",
        "vars",
        "timeout",
        "tls",
        "client_cert",
        "port",
        "weight",
        "username",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        (-9.0..9.0).prop_map(Value::from),
        prop::sample::select(vec!["chash", "/a", "a.com", "::1", "rewrite", "$env://A"])
            .prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..6)
                .prop_map(|members| members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

#[test]
fn keys_are_no_debug_text() {
    #[track_caller]
    fn check(shown: String, seen: &str) {
        assert!(!shown.contains("sesame"), "{shown}");
        assert!(shown.contains(seen), "{shown}");
    }
    let secret = |manager: &str, value: Value| format!("{:?}", super::secret::Secret::parse(manager, &value));
    check(secret("vault", json!({"uri": "http://v", "prefix": "kv", "token": "sesame"})), "http://v");
    let aws = json!({"access_key_id": "AK", "secret_access_key": "sesame", "session_token": "sesame"});
    check(secret("aws", aws), "AK");
    let account = json!({"client_email": "a@b", "private_key": "sesame", "project_id": "p"});
    check(secret("gcp", json!({"auth_config": account})), "a@b");
    let tls = json!({"client_cert": "CERT", "client_key": "sesame", "verify": true});
    let upstream = parse::<Upstream>(&json!({"nodes": {"a.com": 1}, "tls": tls}));
    check(format!("{upstream:?}"), "verify: true");
    let ssl = parse::<Ssl>(&json!({"cert": "sesame", "key": "sesame", "keys": ["sesame"], "sni": "a.com"}));
    check(format!("{ssl:?}"), "a.com");
}

proptest! {
    #[test]
    fn no_document_panics(value in any_json(), kind in prop::sample::select(Kind::ALL.to_vec())) {
        let _ = check(kind, &value);
        for compat in [Compat::Now, Compat::V3_2] {
            let _ = super::check_extra(kind, &value, compat, &|_| None);
        }
        let _ = (parse::<Route>(&value), parse::<Upstream>(&value), parse::<Ssl>(&value));
    }

    #[test]
    fn what_passes_can_be_read(members in any_json()) {
        let mut upstream = json!({"nodes": {"a.com": 1}});
        if let Some(members) = members.as_object() {
            for (name, member) in members {
                upstream[name] = member.clone();
            }
        }
        let good = |compat| super::check(Kind::Upstream, &upstream, compat).is_ok();
        // What is good today was good before.
        prop_assert!(!good(Compat::Now) || good(Compat::V3_2), "{}", upstream);
        if good(Compat::V3_2) && !upstream.to_string().contains("$env://") {
            prop_assert!(parse::<Upstream>(&upstream).is_ok(), "{}", upstream);
        }
    }
}
