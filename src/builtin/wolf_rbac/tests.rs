//! What can be seen without a server, and with one that answers what it is told.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    thread,
};

use super::*;
use crate::plugin::testing::{self, Kit, Setup};

/// A server that answers one request after the other, and tells what it was asked.
fn server(answers: &[(u16, &str)]) -> (String, thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let answers: Vec<(u16, String)> =
        answers.iter().map(|(status, body)| (*status, (*body).to_owned())).collect();
    let serving = thread::spawn(move || {
        let mut asked = Vec::new();
        for (status, body) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head: Vec<String> =
                lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            asked.push(head.join("\n"));
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        }
        asked
    });
    (address, serving)
}

const GOOD: &str = r#"{"ok":true,"data":{"userInfo":{"id":100,"username":"admin","nickname":"the boss"}}}"#;

fn kit(server: &str, target: &str, headers: &[(&str, &str)]) -> Kit {
    Kit::get(target, headers).known::<Plugin>("wolf", json!({"appid": "app", "server": server}))
}

#[track_caller]
fn check(answers: &[(u16, &str)], said: &str, user_id: Option<&str>) -> Vec<String> {
    let (address, serving) = server(answers);
    let plugin: Plugin = testing::plugin(json!({}));
    let headers = [("x-rbac-token", "V1#app#tok"), ("X-UserId", "forged"), ("x-nickname", "forged")];
    kit(&address, "/hello?a=1", &headers).run(async |x| {
        let flow = contract::Plugin::rewrite(&plugin, x).await;
        let answer = testing::answer(&flow);
        assert_eq!(answer, said);
        assert_eq!(x.consumer().is_some(), answer == "continue");
        assert_eq!(x.header("x-userid"), user_id);
        assert_ne!(x.header("x-nickname"), Some("forged"));
        assert_eq!(testing::response_header(&flow, x, "x-userid").as_deref(), user_id);
    });
    serving.join().unwrap()
}

#[test]
fn schemas_compile() {
    testing::compile_schemas::<Plugin>();
}

#[test]
fn tokens() {
    let parsed = |text: &str| {
        Token::parse(text.to_owned()).map(|token| (token.appid().to_owned(), token.wolf().to_owned()))
    };
    let both = |appid: &str, wolf: &str| Some((appid.to_owned(), wolf.to_owned()));
    assert_eq!(parsed("V1#app#tok"), both("app", "tok"));
    assert_eq!(parsed("V1#app#tok#more"), both("app", "tok#more"));
    assert_eq!(parsed("V1##tok"), both("", "tok"));
    for bad in ["", "V1", "V1#", "V1#app", "V1#app#", "V2#app#tok", "v1#app#tok", "V1#app#a\nb", "Bearer x"] {
        assert_eq!(parsed(bad), None, "{bad}");
    }
}

#[test]
fn tokens_stand_in_four_places() {
    let plugin: Plugin = testing::plugin(json!({}));
    for (target, headers) in [
        ("/hello?rbac_token=V1%23app%23tok", vec![]),
        ("/hello", vec![("Authorization", "V1#app#tok")]),
        ("/hello", vec![("x-rbac-token", "V1#app#tok")]),
        ("/hello", vec![("Cookie", "a=1; x-rbac-token=V1#app#tok")]),
    ] {
        let (address, serving) = server(&[(200, GOOD)]);
        assert_eq!(kit(&address, target, &headers).rewrite(&plugin), "continue", "{target} {headers:?}");
        assert!(serving.join().unwrap()[0].to_lowercase().contains("x-rbac-token: tok"));
    }
}

#[test]
fn tokens_that_are_none() {
    let plugin: Plugin = testing::plugin(json!({}));
    let said = |kit: Kit| kit.rewrite(&plugin);
    let nowhere = "http://127.0.0.1:1";
    assert_eq!(said(kit(nowhere, "/", &[])), r#"401 {"message":"Missing rbac token in request"}"#);
    let bad = r#"401 {"message":"invalid rbac token: parse failed"}"#;
    assert_eq!(said(kit(nowhere, "/", &[("x-rbac-token", "junk")])), bad);
    // A header of another scheme hides the good token, as in APISIX.
    assert_eq!(
        said(kit(nowhere, "/", &[("Authorization", "Bearer x"), ("x-rbac-token", "V1#app#tok")])),
        bad
    );
    let other = said(kit(nowhere, "/", &[("x-rbac-token", "V1#other#tok")]));
    assert_eq!(other, r#"401 {"message":"Invalid appid in rbac token"}"#);
    let alone = said(Kit::get("/", &[("x-rbac-token", "V1#app#tok")]));
    assert_eq!(alone, r#"401 {"message":"Missing related consumer"}"#);
}

#[test]
fn verdicts() {
    let asked = check(&[(200, GOOD)], "continue", Some("100"));
    let line =
        "GET /wolf/rbac/access_check?appID=app&resName=%2Fhello&action=GET&clientIP=127.0.0.1 HTTP/1.1";
    assert!(asked[0].starts_with(line), "{}", asked[0]);
    let denied = r#"{"ok":false,"reason":"ERR_ACCESS_DENIED","data":{"userInfo":{"id":"7","username":"u"}}}"#;
    let told = r#"403 {"message":"ERR_ACCESS_DENIED","username":"u","nickname":"u"}"#;
    check(&[(403, denied)], told, Some("7"));
    check(
        &[(401, r#"{"ok":false,"reason":"ERR_TOKEN_INVALID"}"#)],
        r#"401 {"message":"ERR_TOKEN_INVALID"}"#,
        None,
    );
    check(&[(200, r#"{"ok":true,"data":{}}"#)], "continue", None);
    check(&[(403, "{}")], "403 {}", None);
}

#[test]
fn whatever_is_no_success_is_a_refusal() {
    let no_json = r#"{"message":"check permission failed! parse response json failed!"}"#;
    for body in ["", "ok", "[]", "null", "true", "<html>", "{"] {
        check(&[(200, body)], &format!("500 {no_json}"), None);
    }
    check(&[(404, "no")], &format!("404 {no_json}"), None);
    // So wolf answers a failure of its own.
    let failure = r#"{"ok":false,"reason":"ERR_SERVER_ERROR"}"#;
    check(&[(200, failure)], r#"403 {"message":"ERR_SERVER_ERROR"}"#, None);
    check(&[(200, "{}")], "403 {}", None);
    check(&[(200, r#"{"ok":"true"}"#)], "403 {}", None);
    check(&[(204, "")], &format!("500 {no_json}"), None);
}

#[test]
fn troubles_are_waited_out() {
    check(&[(502, ""), (500, ""), (200, GOOD)], "continue", Some("100"));
    let failed = r#"500 {"message":"request to wolf-server failed, status:503"}"#;
    check(&[(500, ""), (500, ""), (503, "")], failed, None);
    let plugin: Plugin = testing::plugin(json!({}));
    let gone = kit("http://127.0.0.1:1", "/", &[("x-rbac-token", "V1#app#tok")]).rewrite(&plugin);
    assert!(gone.starts_with(r#"500 {"message":"request to wolf-server failed, err:"#), "{gone}");
}

#[test]
fn permissions_are_remembered_on_request() {
    let cached = |attr: Value| cache(Some(&attr)).unwrap().is_some();
    assert!(cached(json!({"cache_ttl": 2})) && cached(json!({"cache_ttl": 0.5})));
    assert!(!cached(json!({"cache_ttl": 0})) && !cached(json!({"cache_ttl": -1})) && !cached(json!({})));
    assert!(cached(json!({"cache_ttl": 1e300})));
    assert!(cache(None).unwrap().is_none());
}

#[test]
fn refuses_bad_configurations() {
    let credential = |conf: Value| Setup::new().credential::<Plugin>(&conf).err().unwrap_or_default();
    let wrong = r#"property "appid" validation failed: wrong type: expected string, got number"#;
    assert_eq!(credential(json!({"appid": 123})), wrong);
    assert!(credential(json!({"ssl_verify": "true"})).contains("ssl_verify"));
    assert_eq!(credential(json!({})), "");
    assert_eq!(credential(json!({"header_prefix": "no header\n"})), "");
}
