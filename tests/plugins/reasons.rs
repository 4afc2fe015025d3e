//! Every plugin that may say no, on one gateway that says as much as it can: the operator learns why from a header, from
//! one line of the log and from a count; and nobody learns a secret, neither a configured one nor one that was sent.

use serde_json::{Value, json};

use crate::support::{
    client::{Request, Response, base64},
    gateway::{Gateway, Setup},
    upstream::Upstream,
};

/// In every secret here.
const MARK: &str = "s3cr3t";
const TOLD: &str = "X-Portcullis-Refused";
/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:1";

/// A secret of 32 bytes, which some plugins want.
fn secret(of: &str) -> String {
    format!("{MARK}-{of:-<25}")
}

/// Each plugin on a route of its own, `/PLUGIN`.
fn routes(upstream: &Upstream) -> Value {
    let pair = json!([{"basic-auth": {}}, {"key-auth": {}}]);
    let oidc = |more: Value| {
        let mut conf = json!({
            "client_id": "app", "client_secret": secret("client"), "timeout": 1,
            "discovery": format!("{NOWHERE}/.well-known/openid-configuration"),
        });
        more.as_object().expect("an object").iter().for_each(|(name, value)| conf[name] = value.clone());
        json!({"openid-connect": conf})
    };
    let model = "[request_definition]\nr = sub, obj, act\n[policy_definition]\np = sub, obj, act\n\
                 [policy_effect]\ne = some(where (p.eft == allow))\n[matchers]\nm = r.sub == p.sub";
    let all = [
        ("basic-auth", json!({"basic-auth": {}})),
        ("key-auth", json!({"key-auth": {}})),
        ("jwt-auth", json!({"jwt-auth": {}})),
        ("hmac-auth", json!({"hmac-auth": {}})),
        ("ldap-auth", json!({"ldap-auth": {"base_dn": "dc=a", "ldap_uri": "127.0.0.1:1"}})),
        (
            "ldap-auth-advanced",
            json!({"ldap-auth-advanced": {
                "ldap_uri": "127.0.0.1:1", "base_dn": "dc=a", "bind_dn": "cn=b", "ldap_password": secret("bind"),
            }}),
        ),
        ("openid-connect", oidc(json!({"session": {"secret": secret("session")}}))),
        ("bearer", oidc(json!({"bearer_only": true, "use_jwks": true}))),
        (
            "introspection",
            oidc(json!({"bearer_only": true, "introspection_endpoint": format!("{NOWHERE}/i")})),
        ),
        ("wolf-rbac", json!({"wolf-rbac": {}})),
        ("multi-auth", json!({"multi-auth": {"auth_plugins": pair}})),
        ("forward-auth", json!({"forward-auth": {"uri": NOWHERE, "timeout": 1000}})),
        ("opa", json!({"opa": {"host": NOWHERE, "policy": "p", "timeout": 1000}})),
        ("jwe-decrypt", json!({"jwe-decrypt": {"header": "Authorization", "forward_header": "X-Plain"}})),
        ("csrf", json!({"csrf": {"key": secret("csrf")}})),
        ("acl", json!({"key-auth": {}, "acl": {"allow_labels": {"team": ["x"]}}})),
        (
            "authz-casbin",
            json!({"authz-casbin": {"model": model, "policy": "p, ann, /, GET", "username": "user"}}),
        ),
        (
            "cas-auth",
            json!({"cas-auth": {
                "idp_uri": NOWHERE, "cas_callback_uri": "/cas-auth", "logout_uri": "/cas-auth/out",
                "cookie": {"secret": secret("cookie"), "secure": false},
            }}),
        ),
        ("consumer-restriction", json!({"key-auth": {}, "consumer-restriction": {"blacklist": ["ann"]}})),
        ("public-api", json!({"public-api": {}})),
    ];
    let route = |(name, mut plugins): (&str, Value)| {
        plugins["request-id"] = json!({});
        json!({"id": name, "uris": [format!("/{name}"), format!("/{name}/*")], "plugins": plugins, "upstream": upstream.resource()})
    };
    all.into_iter().map(route).collect()
}

fn consumers() -> Value {
    json!([{"username": "ann", "plugins": {
        "basic-auth": {"username": "ann", "password": secret("basic")},
        "key-auth": {"key": secret("key")},
        "jwt-auth": {"key": "ann", "secret": secret("jwt")},
        "hmac-auth": {"key_id": "ann", "secret_key": secret("hmac")},
        "ldap-auth": {"user_dn": "cn=ann,dc=a"},
        "wolf-rbac": {"appid": "app", "server": NOWHERE},
        "jwe-decrypt": {"key": "ann", "secret": secret("jwe").chars().take(32).collect::<String>()},
    }}])
}

struct Given {
    gateway: Gateway,
    asked: std::cell::Cell<u32>,
}

impl Given {
    /// A refusal: its status, and its reason (it begins so) in the header, the log and the count.
    #[track_caller]
    fn refuses(&self, request: Request, plugin: &str, status: u16, class: &str, reason: &str) {
        let id = format!("request-{}", self.asked.replace(self.asked.get() + 1));
        let before = self.counted(plugin, class);
        let answer = request.header("X-Request-Id", &id).send();
        let told = answer.header(TOLD).unwrap_or_default().to_owned();
        let log = self.gateway.stderr();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&format!("\"{id}\""))).collect();
        let shown = format!("{plugin}: {} {told:?}\n{lines:#?}\n{}", answer.status, answer.text());
        assert_eq!(answer.status, status, "{shown}");
        assert!(told.starts_with(&format!("{plugin}: {reason}")), "{shown}");
        let [line] = lines[..] else { panic!("one line of the log is for a refusal: {shown}") };
        for part in
            [format!("plugin=\"{plugin}\""), format!("class=\"{class}\""), format!("reason=\"{reason}")]
        {
            assert!(line.contains(&part), "{part} is not in the line: {shown}");
        }
        assert!(line.contains(" route=\""), "{shown}");
        assert_eq!(self.counted(plugin, class), before + 1, "{shown}");
        assert!(!answer.text().contains(MARK), "{shown}");
    }

    fn counted(&self, plugin: &str, class: &str) -> u64 {
        let start = format!("portcullis_refusals_total{{plugin=\"{plugin}\",reason=\"{class}\"}} ");
        let text = self.metrics();
        let count = text.lines().find_map(|line| line.strip_prefix(&start));
        count.map_or(0, |count| count.parse().expect("a number"))
    }

    fn metrics(&self) -> String {
        Request::new(self.gateway.ports.metrics, "GET", "/apisix/prometheus/metrics")
            .send()
            .expect(200)
            .text()
    }

    fn to(&self, target: &str) -> Request {
        self.gateway.request("GET", target)
    }

    fn post(&self, target: &str) -> Request {
        self.gateway.request("POST", target)
    }
}

fn bearer(request: Request, token: &str) -> Request {
    request.header("Authorization", &format!("Bearer {token}"))
}

/// A token that nobody signed, of these claims.
fn unsigned(claims: Value) -> String {
    let part = |part: Value| base64(part.to_string().as_bytes()).trim_end_matches('=').to_owned();
    format!("{}.{}.{MARK}", part(json!({"alg": "HS256", "typ": "JWT"})), part(claims))
}

#[test]
fn every_refusal_has_one() {
    let upstream = Upstream::echo();
    let gateway = Setup::file(json!({"routes": routes(&upstream), "consumers": consumers()}))
        .set("portcullis.debug_auth", true)
        .set("nginx_config.error_log_level", "debug")
        .start();
    let given = Given { gateway, asked: 0.into() };
    let sent = format!("{MARK}-sent");
    let refuses = |request: Request, plugin: &str, status: u16, class: &str, reason: &str| {
        given.refuses(request, plugin, status, class, reason);
    };

    let to = |target: &str| given.to(target);
    refuses(to("/basic-auth"), "basic-auth", 401, "missing", "Missing authorization in request");
    refuses(
        to("/basic-auth").header("Authorization", &sent),
        "basic-auth",
        401,
        "malformed",
        "Invalid authorization header format",
    );
    refuses(
        to("/basic-auth").basic("nobody", &sent),
        "basic-auth",
        401,
        "unknown",
        "failed to find user: invalid user",
    );
    refuses(to("/basic-auth").basic("ann", &sent), "basic-auth", 401, "wrong", "wrong password");
    refuses(to("/key-auth"), "key-auth", 401, "missing", "Missing API key in request");
    refuses(
        to("/key-auth").header("apikey", &sent),
        "key-auth",
        401,
        "unknown",
        "failed to find consumer: invalid api key",
    );
    refuses(to("/jwt-auth"), "jwt-auth", 401, "missing", "Missing JWT token in request");
    refuses(
        bearer(to("/jwt-auth"), &sent),
        "jwt-auth",
        401,
        "malformed",
        "JWT token invalid: invalid jwt string",
    );
    refuses(
        bearer(to("/jwt-auth"), &unsigned(json!({"key": "bob"}))),
        "jwt-auth",
        401,
        "unknown",
        "failed to find consumer: invalid user key",
    );
    refuses(
        bearer(to("/jwt-auth"), &unsigned(json!({"key": "ann"}))),
        "jwt-auth",
        401,
        "wrong",
        "signature mismatch",
    );
    refuses(
        to("/hmac-auth"),
        "hmac-auth",
        401,
        "missing",
        "client request can't be validated: missing Authorization header",
    );
    refuses(
        to("/hmac-auth").header("Authorization", &sent),
        "hmac-auth",
        401,
        "missing",
        "client request can't be validated: Authorization header does not start with 'Signature'",
    );
    let signature = |who: &str, date: &str| {
        let authorization = format!(
            "Signature keyId=\"{who}\",algorithm=\"hmac-sha256\",headers=\"date\",signature=\"{sent}\""
        );
        to("/hmac-auth").header("Date", date).header("Authorization", &authorization)
    };
    let now = httpdate::fmt_http_date(std::time::SystemTime::now());
    refuses(signature("bob", &now), "hmac-auth", 401, "unknown", "Invalid key_id");
    refuses(signature("ann", &now), "hmac-auth", 401, "wrong", "Invalid signature");
    refuses(
        signature("ann", "Tue, 19 Jan 2021 11:33:20 GMT"),
        "hmac-auth",
        401,
        "expired",
        "Clock skew exceeded",
    );
    let classic = to("/hmac-auth").header("X-HMAC-ACCESS-KEY", "ann").header("X-HMAC-SIGNATURE", &sent);
    refuses(
        classic.header("X-HMAC-ALGORITHM", "hmac-sha256"),
        "hmac-auth",
        401,
        "wrong",
        "Invalid signature",
    );
    refuses(to("/ldap-auth"), "ldap-auth", 401, "missing", "Missing authorization in request");
    refuses(
        to("/ldap-auth").basic("ann", &sent),
        "ldap-auth",
        401,
        "unavailable",
        "no answer from the directory: I/O error: Connection refused",
    );
    refuses(to("/ldap-auth-advanced"), "ldap-auth-advanced", 401, "missing", "missing authorization header");
    let ldap = format!("ldap {}", base64(format!("ann:{sent}").as_bytes()));
    refuses(
        to("/ldap-auth-advanced").header("Authorization", &ldap),
        "ldap-auth-advanced",
        500,
        "unavailable",
        "no answer from the directory: I/O error: Connection refused",
    );
    refuses(
        to("/openid-connect"),
        "openid-connect",
        500,
        "internal",
        "OIDC authentication failed: discovery document: no connection to 127.0.0.1:1: Connection refused",
    );
    refuses(to("/bearer"), "openid-connect", 401, "missing", "No bearer token found in request.");
    refuses(
        bearer(to("/bearer"), &unsigned(json!({}))),
        "openid-connect",
        401,
        "unavailable",
        "OIDC token refused: issuer validation unavailable: discovery document: no connection to 127.0.0.1:1: Connection refused",
    );
    refuses(
        bearer(to("/introspection"), &sent),
        "openid-connect",
        401,
        "unavailable",
        "OIDC token refused: introspection failed: ",
    );
    refuses(to("/wolf-rbac"), "wolf-rbac", 401, "missing", "no token");
    refuses(
        to("/wolf-rbac").header("x-rbac-token", &sent),
        "wolf-rbac",
        401,
        "malformed",
        "the token is no V1#appid#token",
    );
    let token = |app: &str| to("/wolf-rbac").header("x-rbac-token", &format!("V1#{app}#{sent}"));
    refuses(token("other"), "wolf-rbac", 401, "unknown", "consumer [other] not found");
    refuses(
        token("app"),
        "wolf-rbac",
        500,
        "unavailable",
        "request to wolf-server failed, err:no connection to 127.0.0.1:1: Connection refused",
    );
    refuses(
        to("/multi-auth"),
        "multi-auth",
        401,
        "missing",
        "basic-auth: 401 Missing authorization in request; key-auth: 401 Missing API key in request",
    );
    refuses(
        to("/multi-auth").basic("ann", &sent).header("apikey", &sent),
        "multi-auth",
        401,
        "wrong",
        "basic-auth: 401 wrong password; key-auth: 401 failed to find consumer: invalid api key",
    );
    refuses(
        to("/forward-auth"),
        "forward-auth",
        403,
        "unavailable",
        "failed to process forward auth, err: no connection to 127.0.0.1:1: Connection refused",
    );
    refuses(
        to("/opa"),
        "opa",
        403,
        "unavailable",
        "failed to process OPA decision, err: no connection to 127.0.0.1:1: Connection refused",
    );
    refuses(to("/jwe-decrypt"), "jwe-decrypt", 403, "missing", "missing JWE token in request");
    refuses(bearer(to("/jwe-decrypt"), &sent), "jwe-decrypt", 400, "malformed", "JWE token invalid");
    refuses(given.post("/csrf"), "csrf", 401, "missing", "no csrf token in headers");
    let csrf = format!("apisix-csrf-token={sent}");
    let csrf = given.post("/csrf").header("apisix-csrf-token", &sent).header("Cookie", &csrf);
    refuses(csrf, "csrf", 401, "wrong", "csrf token base64 decode error");
    let key = secret("key");
    refuses(to("/acl").header("apikey", &key), "acl", 403, "forbidden", "no allowed label");
    refuses(
        to("/authz-casbin"),
        "authz-casbin",
        403,
        "forbidden",
        "the policy does not allow it to anonymous",
    );
    refuses(
        to(&format!("/cas-auth?ticket=ST-{sent}")),
        "cas-auth",
        401,
        "wrong",
        "missing or invalid initiation cookie",
    );
    refuses(to("/cas-auth/out"), "cas-auth", 401, "missing", "logout without a session");
    refuses(
        to("/consumer-restriction").header("apikey", &key),
        "consumer-restriction",
        403,
        "forbidden",
        "consumer_name ann is on the blacklist",
    );
    refuses(to("/public-api"), "public-api", 404, "not_found", "no plugin offers this endpoint");

    // Those who are let in leave no trace of what they showed either.
    to("/basic-auth").basic("ann", &secret("basic")).send().expect(200).expect_header(TOLD, "");
    to("/key-auth").header("apikey", &key).send().expect(200).expect_header(TOLD, "");
    let control = |path: &str| -> Response { Request::new(given.gateway.ports.control, "GET", path).send() };
    let places = [
        ("the log", given.gateway.stderr()),
        ("the metrics", given.metrics()),
        ("/v1/routes", control("/v1/routes").expect(200).text()),
        ("/v1/faults", control("/v1/faults").expect(200).text()),
    ];
    for (place, text) in places {
        for part in [MARK, &base64(format!("ann:{sent}").as_bytes()), &base64(secret("key").as_bytes())] {
            let line = text.lines().find(|line| line.contains(part));
            assert!(line.is_none(), "a secret is in {place}: {}", line.unwrap_or_default());
        }
    }
}
