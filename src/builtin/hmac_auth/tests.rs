//! hmac-auth as a whole: both forms of signing, and what is said of bad ones.

use openssl::hash::{MessageDigest, hash};

use super::*;
use crate::{
    builtin::shared::base64,
    compat::Compat,
    plugin::testing::{self, Kit, Setup},
};

const NO: &str = r#"401 {"message":"client request can't be validated"}"#;
const MISSING: &str = r#"401 {"message":"client request can't be validated: missing Authorization header"}"#;
const OTHER: &str = r#"401 {"message":"client request can't be validated: Authorization header does not start with 'Signature'"}"#;
const DATE: &str = "Tue, 19 Jan 2021 11:33:20 GMT";

fn sign(algorithm: &str, secret: &str, text: &str) -> String {
    let keys = Keys::new(secret.as_bytes()).unwrap();
    base64::encode(&keys.sign(Algorithm::from_name(algorithm.as_bytes()).unwrap(), text.as_bytes()))
}

fn now() -> String {
    httpdate::fmt_http_date(SystemTime::now())
}

fn kit(raw: &str) -> Kit {
    Kit::new(raw)
        .known::<Plugin>("jack", json!({"key_id": "my-key", "secret_key": "my-secret"}))
        .known::<Plugin>("user", json!({"access_key": "user-key", "secret_key": "my-secret-key"}))
        .known::<Plugin>("plain", json!({"access_key": "plain", "secret_key": "s", "encode_uri_params": false}))
        .known::<Plugin>(
            "strict",
            json!({
                "access_key": "strict", "secret_key": "s", "algorithm": "hmac-sha512", "clock_skew": 100,
                "signed_headers": ["x-a"], "keep_headers": true, "validate_request_body": true, "max_req_body": 8
            }),
        )
}

#[track_caller]
fn says(conf: &Value, raw: &str, said: &str) {
    let plugin: Plugin = testing::plugin(conf.clone());
    kit(raw).run(async |x| {
        let answer = testing::answer(&contract::Plugin::rewrite(&plugin, x).await);
        let who = x.consumer().map_or("nobody", |consumer| &consumer.username);
        assert_eq!(if answer == "continue" { who } else { &answer }, said, "{conf}\n{raw}");
    });
}

/// A request in today's form.
struct Today<'t> {
    algorithm: &'t str,
    key: &'t str,
    date: String,
    list: &'t str,
    /// What the client believes to sign, after the key.
    lines: String,
    more: &'t str,
    body: &'t str,
}

impl Default for Today<'_> {
    fn default() -> Self {
        let date = now();
        Self {
            algorithm: "hmac-sha256",
            key: "my-key",
            lines: format!("GET /a?b=%20c\ndate: {date}\n"),
            date,
            list: "@request-target date",
            more: "",
            body: "",
        }
    }
}

impl Today<'_> {
    fn raw(&self) -> String {
        let Self { algorithm, key, date, list, lines, more, body } = self;
        let signature = sign(algorithm, "my-secret", &format!("{key}\n{lines}"));
        let length = body.len();
        format!(
            "GET /a?b=%20c HTTP/1.1\r\nHost: a.com\r\nDate: {date}\r\nContent-Length: {length}\r\n{more}\
             Authorization: Signature keyId=\"{key}\",algorithm=\"{algorithm}\",headers=\"{list}\",\
             signature=\"{signature}\"\r\n\r\n{body}"
        )
    }
}

#[test]
fn schemas_compile() {
    testing::compile_auth_schemas::<Plugin>();
}

#[test]
fn todays_form() {
    let any = json!({});
    for algorithm in Algorithm::NAMES {
        says(&any, &Today { algorithm, ..Today::default() }.raw(), "jack");
    }
    // What is listed and not there has no line; names are taken as they are written.
    let date = now();
    let lines = format!("X-A: 1\ndate: {date}\n");
    let list = "X-A x-none date";
    let request =
        || Today { date: date.clone(), lines: lines.clone(), list, more: "x-a: 1\r\n", ..Today::default() };
    says(&any, &request().raw(), "jack");
    says(&any, &Today { more: "x-a: 2\r\n", ..request() }.raw(), NO);
    says(&json!({"signed_headers": ["date", "X-A"]}), &request().raw(), "jack");
    says(&json!({"signed_headers": ["date", "x-b"]}), &request().raw(), NO);
    says(&json!({"allowed_algorithms": ["hmac-sha1"]}), &request().raw(), NO);
    says(&any, &Today { key: "nobody", ..Today::default() }.raw(), NO);
    says(
        &any,
        &Today { list: "@request-target", lines: "GET /a?b=%20c\n".into(), ..Today::default() }.raw(),
        NO,
    );
    let unlisted = Today { list: "@request-target", lines: "GET /a?b=%20c\n".into(), ..Today::default() };
    says(&json!({"signed_headers": []}), &unlisted.raw(), "jack");
}

#[test]
fn dates_of_todays_form() {
    let at = |date: &str| {
        Today { date: date.into(), lines: format!("date: {date}\n"), list: "date", ..Today::default() }.raw()
    };
    says(&json!({}), &at(&now()), "jack");
    says(&json!({}), &at(DATE), NO);
    says(&json!({"clock_skew": 10_000_000_000_u64}), &at(DATE), "jack");
    says(&json!({}), &at("yesterday"), NO);
    // The date of another request does not fit the signature.
    let replayed = at(&now()).replacen("Date: ", "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nX-Date: ", 1);
    says(&json!({"clock_skew": 10_000_000_000_u64}), &replayed, NO);
    says(&json!({}), &at(&now()).replacen("Date: ", "X-Date: ", 1), NO);
}

#[test]
fn bodies_of_todays_form() {
    let conf = json!({"validate_request_body": true, "max_req_body_size": 5});
    let with = |digest: &str, body: &str| {
        let more = format!("Digest: {digest}\r\n");
        Today { more: &more, body, ..Today::default() }.raw()
    };
    let digest = |body: &str| {
        format!("SHA-256={}", base64::encode(&hash(MessageDigest::sha256(), body.as_bytes()).unwrap()))
    };
    says(&conf, &with(&digest("hello"), "hello"), "jack");
    says(&conf, &with(&digest("hallo"), "hello"), NO);
    says(&conf, &with(&digest(""), ""), "jack");
    says(&conf, &Today { body: "hello", ..Today::default() }.raw(), NO);
    let large = r#"413 {"message":"request size 6 is greater than the maximum size 5 allowed"}"#;
    says(&conf, &with(&digest("hello!"), "hello!"), large);
    let chunked = with(&digest("hello!"), "").replace("Content-Length: 0", "Transfer-Encoding: chunked");
    let large = r#"413 {"message":"request size is greater than the maximum size 5 allowed"}"#;
    says(&conf, &format!("{chunked}6\r\nhello!\r\n0\r\n\r\n"), large);
    let chunked = with(&digest("hello"), "").replace("Content-Length: 0", "Transfer-Encoding: chunked");
    says(&conf, &format!("{chunked}5\r\nhello\r\n0\r\n\r\n"), "jack");
    // Nobody stands in for a body that cannot be looked at.
    let conf = json!({"validate_request_body": true, "max_req_body_size": 5, "anonymous_consumer": "user"});
    says(
        &conf,
        &with(&digest("hello!"), "hello!"),
        r#"413 {"message":"request size 6 is greater than the maximum size 5 allowed"}"#,
    );
    says(&conf, &with(&digest("hallo"), "hello"), "user");
}

#[test]
fn other_authorizations() {
    let get = |authorization: &str| format!("GET / HTTP/1.1\r\nHost: a.com\r\n{authorization}\r\n");
    says(&json!({}), &get(""), MISSING);
    says(&json!({}), &get("Authorization: Basic abc\r\n"), OTHER);
    for odd in [
        "Signature",
        "Signature keyId=\"my-key\"",
        "Signature keyId=\"my-key\",signature=\"AAAA\"",
        "Signature keyId=\"my-key\",signature=\"!\",algorithm=\"hmac-sha256\"",
        "Signature keyId=\"my-key\",signature=\"AAAA\",algorithm=\"none\"",
    ] {
        says(&json!({}), &get(&format!("Date: {}\r\nAuthorization: {odd}\r\n", now())), NO);
    }
}

/// A request in the form of 3.2.
fn classic(target: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut raw = format!("POST {target} HTTP/1.1\r\nHost: a.com\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        raw.push_str(&format!("{name}: {value}\r\n"));
    }
    raw + "\r\n" + body
}

#[test]
fn the_published_vector_of_3_2() {
    let signature = "8XV1GB7Tq23OJcoz6wjqTs4ZLxr9DiLoY4PxzScWGYg=";
    let shared = "User-Agent: curl/7.29.0\r\nx-custom-a: test\r\n";
    let headers = format!(
        "GET /index.html?name=james&age=36 HTTP/1.1\r\nHost: a.com\r\nX-HMAC-SIGNATURE: {signature}\r\n\
         X-HMAC-ALGORITHM: hmac-sha256\r\nX-HMAC-ACCESS-KEY: user-key\r\nDate: {DATE}\r\n\
         X-HMAC-SIGNED-HEADERS: User-Agent;x-custom-a\r\n{shared}\r\n"
    );
    says(&json!({}), &headers, "user");
    let authorization = format!(
        "GET /index.html?name=james&age=36 HTTP/1.1\r\nHost: a.com\r\nAuthorization: \
         hmac-auth-v1#user-key#{signature}#hmac-sha256#{DATE}#User-Agent;x-custom-a\r\n{shared}\r\n"
    );
    says(&json!({}), &authorization, "user");
    for (from, to) in [
        ("age=36", "age=37"),
        ("x-custom-a: test", "x-custom-a: best"),
        ("curl/7.29.0", "curl/7.29.1"),
        ("11:33:20", "11:33:21"),
        ("hmac-sha256", "hmac-sha1"),
        ("user-key", "plain"),
        ("8XV1", "9XV1"),
        ("GET ", "PUT "),
        ("#User-Agent;x-custom-a", "#"),
        ("hmac-auth-v1#", "hmac-auth-v1#x#"),
    ] {
        for raw in [&headers, &authorization] {
            if raw.contains(from) {
                says(&json!({}), &raw.replacen(from, to, 1), NO);
            }
        }
    }
}

#[test]
fn the_form_of_3_2() {
    let signed = |key: &str, text: &str, algorithm: &str| {
        sign(algorithm, if key == "user-key" { "my-secret-key" } else { "s" }, text)
    };
    let request = |key: &str, target: &str, query: &str| {
        let signature = signed(key, &format!("POST\n/a\n{query}\n{key}\n\n"), "hmac-sha256");
        let headers = [
            ("X-HMAC-ACCESS-KEY", key),
            ("X-HMAC-SIGNATURE", &*signature),
            ("X-HMAC-ALGORITHM", "hmac-sha256"),
        ];
        classic(target, &headers, "")
    };
    says(&json!({}), &request("user-key", "/a", ""), "user");
    says(&json!({}), &request("user-key", "/a?z=1&b=%20&b=", "b=&b=%20&z=1"), "user");
    says(&json!({}), &request("user-key", "/a?z=1&b=%20&b", "b=&b= &z=1"), NO);
    says(&json!({}), &request("plain", "/a?z=1&b=%20&b", "b=&b= &z=1"), "plain");
    says(&json!({}), &request("nobody", "/a", ""), NO);
    // The route's options are today's form's; a key of today's may be used, too.
    says(&json!({"allowed_algorithms": ["hmac-sha1"]}), &request("user-key", "/a", ""), "user");
    says(&json!({}), &classic("/a", &[("X-HMAC-ACCESS-KEY", "user-key")], ""), NO);
}

#[test]
fn options_of_the_consumer_in_3_2() {
    let request = |date: &str, list: &str, body: &str, digest: &str| {
        let text = format!("POST\n/a\n\nstrict\n{date}\n{list}:1\n");
        let signature = sign("hmac-sha512", "s", &text);
        let headers = [
            ("X-HMAC-ACCESS-KEY", "strict"),
            ("X-HMAC-SIGNATURE", &*signature),
            ("X-HMAC-ALGORITHM", "hmac-sha512"),
            ("X-HMAC-SIGNED-HEADERS", list),
            ("X-HMAC-DIGEST", digest),
            ("Date", date),
            ("x-a", "1"),
            ("x-b", "1"),
        ];
        classic("/a", &headers, body)
    };
    let digest = |body: &str| sign("hmac-sha512", "s", body);
    let conf = json!({});
    says(&conf, &request(&now(), "x-a", "body", &digest("body")), "strict");
    says(&conf, &request(&now(), "x-a", "", &digest("")), "strict");
    says(&conf, &request(&now(), "x-a", "body", &digest("bodo")), NO);
    says(&conf, &request(&now(), "x-a", "body", "!"), NO);
    says(&conf, &request(&now(), "x-a", "long body", &digest("long body")), NO);
    says(&conf, &request(&now(), "x-b", "body", &digest("body")), NO);
    says(&conf, &request(DATE, "x-a", "body", &digest("body")), NO);
}

#[test]
fn what_the_upstream_sees() {
    let seen = |conf: Value, raw: &str| {
        let plugin: Plugin = testing::plugin(conf);
        kit(raw).run(async |x| {
            assert!(contract::Plugin::rewrite(&plugin, x).await.is_continue());
            [
                "authorization",
                "x-hmac-access-key",
                "x-hmac-signature",
                "x-hmac-algorithm",
                "x-hmac-signed-headers",
            ]
            .map(|name| x.header(name).is_some())
        })
    };
    let today = Today::default().raw();
    assert_eq!(seen(json!({}), &today), [true, false, false, false, false]);
    assert_eq!(seen(json!({"hide_credentials": true}), &today), [false; 5]);
    let signature = sign("hmac-sha256", "my-secret-key", "POST\n/a\n\nuser-key\n\nx-hmac-algorithm:\n");
    let raw = classic(
        "/a",
        &[
            ("X-HMAC-ACCESS-KEY", "user-key"),
            ("X-HMAC-SIGNATURE", &signature),
            ("X-HMAC-ALGORITHM", "hmac-sha256"),
            ("X-HMAC-SIGNED-HEADERS", "x-hmac-algorithm"),
        ],
        "",
    );
    assert_eq!(seen(json!({}), &raw), [false, true, false, false, false]);
    assert_eq!(seen(json!({"hide_credentials": true}), &raw), [false; 5]);
}

#[test]
fn names_of_headers_can_be_changed() {
    let attr = json!({"access_key": "X-K", "signature_key": "X-S", "algorithm_key": "X-A"});
    let plugin: Plugin = Setup::new().attr(attr).build(json!({})).unwrap();
    let signature = sign("hmac-sha256", "my-secret-key", "POST\n/a\n\nuser-key\n\n");
    let headers = [("X-K", "user-key"), ("X-S", &*signature), ("X-A", "hmac-sha256")];
    assert_eq!(kit(&classic("/a", &headers, "")).rewrite(&plugin), "continue");
    assert!(Setup::new().attr(json!({"date_key": "a b"})).build::<Plugin>(json!({})).is_err());
    assert!(Setup::new().attr(json!({"date_key": 1})).build::<Plugin>(json!({})).is_err());
}

#[track_caller]
fn challenge(compat: Compat, raw: &str, said: &str, challenge: Option<&str>) {
    let plugin: Plugin = Setup::new().compat(compat).build(json!({})).unwrap();
    Kit::new(raw).compat(compat).run(async |x| {
        let flow = contract::Plugin::rewrite(&plugin, x).await;
        assert_eq!(testing::answer(&flow), said);
        assert_eq!(testing::response_header(&flow, x, "www-authenticate").as_deref(), challenge);
    });
}

#[test]
fn speaks_both_versions() {
    let empty = "GET / HTTP/1.1\r\nHost: a.com\r\n\r\n";
    challenge(Compat::Now, empty, MISSING, Some("hmac realm=\"hmac\""));
    challenge(Compat::V3_2, empty, NO, None);
    let wrong = classic("/", &[("X-HMAC-ACCESS-KEY", "x")], "");
    challenge(Compat::Now, &wrong, NO, Some("hmac realm=\"hmac\""));
    challenge(Compat::V3_2, &wrong, NO, None);
}

#[test]
fn refuses_bad_configurations() {
    let consumer = |compat, conf: Value| {
        Setup::new().compat(compat).credential::<Plugin>(&conf).err().unwrap_or_default()
    };
    let required = |name: &str| format!("property \"{name}\" is required");
    assert_eq!(consumer(Compat::Now, json!({"key_id": 1})), required("secret_key"));
    assert_eq!(consumer(Compat::Now, json!({"secret_key": "s"})), required("key_id"));
    assert_eq!(consumer(Compat::V3_2, json!({"secret_key": "s"})), required("access_key"));
    assert_eq!(
        consumer(Compat::Now, json!({"secret_key": "", "key_id": "k"})),
        r#"property "secret_key" validation failed: string too short, expected at least 1, got 0"#
    );
    assert_eq!(
        testing::refusal::<Plugin>(json!({"clock_skew": 0})),
        r#"property "clock_skew" validation failed: expected 0 to be at least 1"#
    );
    assert_eq!(
        testing::refusal::<Plugin>(json!({"allowed_algorithms": []})),
        r#"property "allowed_algorithms" validation failed: expect array to have at least 1 items"#
    );
}
