//! wolf-rbac with a server that speaks wolf's API: log in, be let in or not, who am I, another password.

use serde_json::{Value, json};

use super::{Fixture, message};
use crate::support::{
    client::Response,
    gateway::{Gateway, Setup},
    upstream::Upstream,
    wolf::Wolf,
};

const CHECK: &str = "/wolf/rbac/access_check";
const FAILED: &str = "request to wolf-server failed!";

fn resources(wolf: &Wolf, upstream: &Upstream) -> Value {
    let api = |id: &str, name: &str| json!({"id": id, "uri": format!("/apisix/plugin/wolf-rbac/{name}"), "plugins": {"public-api": {}}});
    let route = |id: &str, uri: &str, more: Value| {
        let mut plugins = more;
        plugins["wolf-rbac"] = json!({});
        json!({"id": id, "uri": uri, "plugins": plugins, "upstream": upstream.resource()})
    };
    let consumer = json!({"username": "wolf", "plugins": {
        "wolf-rbac": {"appid": "app", "server": wolf.address()},
        "response-rewrite": {"headers": {"set": {"X-Of-Consumer": "yes"}}},
    }});
    json!({
        "routes": [
            api("login", "login"), api("who", "user_info"), api("password", "change_pwd"),
            route("all", "/*", json!({})),
            route("others", "/others", json!({"consumer-restriction": {"blacklist": ["wolf"]}})),
        ],
        "consumers": [consumer],
    })
}

fn fixture(wolf: &Wolf) -> Fixture {
    let upstream = Upstream::echo();
    let gateway = Gateway::file(resources(wolf, &upstream));
    Fixture { gateway, upstream }
}

#[track_caller]
fn login(gateway: &Gateway, arguments: &Value) -> Response {
    gateway.request("POST", "/apisix/plugin/wolf-rbac/login").json(arguments).send()
}

/// Logs in and gives the token.
#[track_caller]
fn token(gateway: &Gateway, user: &str) -> String {
    let told =
        login(gateway, &json!({"appid": "app", "username": user, "password": "123456"})).expect(200).json();
    told["rbac_token"].as_str().expect("a token").to_owned()
}

#[test]
fn wolf_rbac_lets_in() {
    let wolf = Wolf::start();
    let fixture = fixture(&wolf);
    let token = token(&fixture.gateway, "admin");
    assert_eq!(token, "V1#app#token-of-admin");
    let escaped = format!("/hello?rbac_token={}", token.replace('#', "%23"));
    for (target, headers) in [
        (escaped.as_str(), vec![]),
        ("/hello", vec![("Authorization", token.clone())]),
        ("/hello", vec![("x-rbac-token", token.clone())]),
        ("/hello", vec![("Cookie", format!("a=b; x-rbac-token={token}"))]),
    ] {
        let forged = [("X-UserId", "1".to_owned()), ("X-Consumer-Username", "root".to_owned())];
        let headers: Vec<(&str, &str)> =
            headers.iter().chain(&forged).map(|(name, value)| (*name, value.as_str())).collect();
        let answer = fixture.get(target, &headers).expect(200);
        let answer = answer.expect_header("X-UserId", "100").expect_header("X-Of-Consumer", "yes");
        answer.expect_header("X-Username", "admin").expect_header("X-Nickname", "the%20administrator");
        let seen = fixture.upstream.last();
        assert_eq!(seen.all("x-userid"), ["100"]);
        assert_eq!(seen.header("x-nickname"), Some("the%20administrator"));
        assert_eq!(seen.header("x-consumer-username"), Some("wolf"));
    }
    let asked = wolf.last();
    assert!(
        asked.target.ends_with("?appID=app&resName=%2Fhello&action=GET&clientIP=127.0.0.1"),
        "{}",
        asked.target
    );
    // The consumer is one like any other.
    fixture
        .get("/others", &[("x-rbac-token", &token)])
        .expect(403)
        .expect_body(&message("The consumer_name is forbidden."));
}

#[test]
fn wolf_rbac_keeps_out() {
    let wolf = Wolf::start();
    let fixture = fixture(&wolf);
    let token = token(&fixture.gateway, "guest");
    let as_guest = [("x-rbac-token", token.as_str())];
    fixture.get("/hello", &as_guest).expect(200).expect_header("X-Nickname", "guest");
    let passed = fixture.upstream.count();
    fixture.get("/hello", &[]).expect(401).expect_body(&message("Missing rbac token in request"));
    let get = |token: &str| fixture.get("/hello", &[("x-rbac-token", token)]).expect(401);
    get("junk").expect_body(&message("invalid rbac token: parse failed"));
    get("V1#other#x").expect_body(&message("Invalid appid in rbac token"));
    get("V1#app#x").expect_body(&message("ERR_TOKEN_INVALID"));
    let denied = fixture.gateway.request("DELETE", "/hello").header("x-rbac-token", &token).send();
    let told = json!({"message": "Access failure", "username": "guest", "nickname": "guest"});
    denied.expect(403).expect_header("X-UserId", "101").expect_body(&format!("{told}\n"));
    let before = wolf.asked(CHECK);
    fixture
        .get("/broken", &as_guest)
        .expect(500)
        .expect_body(&message("request to wolf-server failed, status:500"));
    assert_eq!(wolf.asked(CHECK) - before, 3, "troubles of the server are waited out");
    // In APISIX these two pass.
    fixture.get("/unforeseen", &as_guest).expect(403).expect_body(&message("ERR_SERVER_ERROR"));
    let no_json = message("check permission failed! parse response json failed!");
    fixture.get("/nonsense", &as_guest).expect(500).expect_body(&no_json);
    wolf.forget_tokens();
    get(&token).expect_body(&message("ERR_TOKEN_INVALID"));
    drop(wolf);
    let gone = fixture.get("/hello", &as_guest).expect(500);
    assert!(gone.text().starts_with(r#"{"message":"request to wolf-server failed, err:"#), "{}", gone.text());
    assert_eq!(fixture.upstream.count(), passed);
    let said = fixture.gateway.stderr();
    assert!(!said.contains("token-of-guest") && !said.contains("123456"), "{said}");
}

#[test]
fn wolf_rbac_endpoints() {
    let wolf = Wolf::start();
    let fixture = fixture(&wolf);
    let gateway = &fixture.gateway;
    let form = |body: &str| {
        let request = gateway.request("POST", "/apisix/plugin/wolf-rbac/login");
        request.header("Content-Type", "application/x-www-form-urlencoded").body(body).send()
    };
    form("username=admin&password=123456").expect(400).expect_body(&message("appid is missing"));
    form("appid=no&username=admin&password=123456").expect(400).expect_body(&message("appid not found"));
    form("appid=app&password=123456").expect(200).expect_body(&message(FAILED));
    form("appid=app&username=admin&password=wrong").expect(200).expect_body(&message(FAILED));
    assert!(gateway.stderr().contains("ERR_PASSWORD_ERROR"), "{}", gateway.stderr());
    let told = form("appid=app&username=admin&password=123456").expect(200).json();
    let admin = json!({"id": 100, "username": "admin", "nickname": "the administrator"});
    assert_eq!(told, json!({"rbac_token": "V1#app#token-of-admin", "user_info": admin}));
    let broken =
        gateway.request("POST", "/apisix/plugin/wolf-rbac/login").header("Content-Type", "application/json");
    broken.body("{").send().expect(400).expect_body(&message("invalid request"));

    let who = |headers: &[(&str, &str)]| fixture.get("/apisix/plugin/wolf-rbac/user_info", headers);
    who(&[]).expect(401).expect_body(&message("Missing rbac token in request"));
    who(&[("x-rbac-token", "x")]).expect(401).expect_body(&message("invalid rbac token: parse failed"));
    who(&[("x-rbac-token", "V1#app#x")]).expect(500).expect_body(&message(FAILED));
    let cookie = [("Cookie", "x-rbac-token=V1#app#token-of-admin")];
    assert_eq!(who(&cookie).expect(200).json(), json!({"user_info": admin}));

    let change = |body: &str| {
        let request =
            gateway.request("PUT", "/apisix/plugin/wolf-rbac/change_pwd").header(cookie[0].0, cookie[0].1);
        request.body(body).send()
    };
    change("oldPassword=wrong&newPassword=abcdef").expect(200).expect_body(&message(FAILED));
    let many: String = (0..150).map(|n| format!("more{n}=x&")).collect();
    let done = message("success to change password");
    change(&format!("{many}oldPassword=123456&newPassword=abcdef")).expect(200).expect_body(&done);
    login(gateway, &json!({"appid": "app", "username": "admin", "password": "123456"}))
        .expect_body(&message(FAILED));
    let told = login(gateway, &json!({"appid": "app", "username": "admin", "password": "abcdef"})).json();
    assert_eq!(told["user_info"]["username"], "admin");
    gateway.request("GET", "/apisix/plugin/wolf-rbac/login").send().expect(404);
}

#[test]
fn wolf_rbac_without_an_application() {
    let wolf = Wolf::start();
    let consumer = json!({"username": "wolf", "plugins": {"wolf-rbac": {"server": wolf.address()}}});
    let fixture = Fixture::with_consumers(json!({"wolf-rbac": {}}), json!([consumer]));
    // The consumer is known by the default, and wolf does not know the token.
    let unset = [("x-rbac-token", "V1#unset#x")];
    fixture.get("/", &unset).expect(401).expect_body(&message("ERR_TOKEN_INVALID"));
}

#[test]
fn wolf_rbac_remembers_permissions_for_a_while() {
    let wolf = Wolf::start();
    let upstream = Upstream::echo();
    let setup = Setup::file(resources(&wolf, &upstream)).set("plugin_attr.wolf-rbac.cache_ttl", 60);
    let fixture = Fixture { gateway: setup.start(), upstream };
    let token = token(&fixture.gateway, "guest");
    for _ in 0..5 {
        fixture.get("/hello", &[("x-rbac-token", &token)]).expect(200).expect_header("X-UserId", "101");
    }
    assert_eq!(wolf.asked(CHECK), 1);
    // Another question, and a refusal, which is not remembered.
    for expected in [2, 3] {
        fixture.gateway.request("PUT", "/hello").header("x-rbac-token", &token).send().expect(403);
        assert_eq!(wolf.asked(CHECK), expected);
    }
}
