//! Every plugin that may say no, on one gateway that says as much as it can: the operator learns why from a header, from
//! one line of the log and from a count; and nobody learns a secret, neither a configured one nor one that was sent.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    client::{Connection, Request, base64},
    eventually,
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
        ("nobody", json!({"consumer-restriction": {"whitelist": ["ann"]}})),
        ("closed", oidc(json!({"session": {"secret": secret("session")}, "unauth_action": "deny"}))),
        ("uri-blocker", json!({"uri-blocker": {"block_rules": ["uri-blocker"], "rejected_code": 404}})),
        ("ip-restriction", json!({"ip-restriction": {"blacklist": ["127.0.0.0/8"]}})),
        ("ua-restriction", json!({"ua-restriction": {"denylist": ["robot"]}})),
        ("referer-restriction", json!({"referer-restriction": {"whitelist": ["a.com"]}})),
        (
            "request-validation",
            json!({"request-validation": {"header_schema": {"type": "object", "required": ["x-wanted"]}}}),
        ),
        ("fault-injection", json!({"fault-injection": {"abort": {"http_status": 500}}})),
        ("mocking", json!({"mocking": {"response_status": 503, "response_example": "{}"}})),
        ("limit-count", json!({"limit-count": {"count": 1, "time_window": 3600}})),
        ("limit-req", json!({"limit-req": {"rate": 0.001, "burst": 0, "key": "remote_addr"}})),
        (
            "limit-conn",
            json!({"limit-conn": {"conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr"}}),
        ),
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

/// A request; the plugin that refuses it, with which status; the class and the beginning of the reason.
type Case = (Request, &'static str, u16, &'static str, &'static str);

struct Given {
    gateway: Gateway,
    asked: std::cell::Cell<u32>,
}

impl Given {
    /// A refusal: its status, and its reason (it begins so) in the header, the log and the count.
    fn check(&self, (request, plugin, status, class, reason): Case) {
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

/// Of ann, signed with her secret, and over since 1970.
const EXPIRED: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJrZXkiOiJhbm4iLCJleHAiOjF9.tniRHwOGSBeLTvsV40Y_CGm-HWJDWRheiRyRVVdg8t0";

fn bearer(request: Request, token: &str) -> Request {
    request.header("Authorization", &format!("Bearer {token}"))
}

/// A token that nobody signed, of these claims.
fn unsigned(claims: Value) -> String {
    let part = |part: Value| base64(part.to_string().as_bytes()).trim_end_matches('=').to_owned();
    format!("{}.{}.{MARK}", part(json!({"alg": "HS256", "typ": "JWT"})), part(claims))
}

/// A credential that a client sends and that nobody is to find again.
fn sent() -> String {
    format!("{MARK}-sent")
}

impl Given {
    fn of_passwords_and_keys(&self) -> Vec<Case> {
        let to = |target: &str| self.to(target);
        let ldap = format!("ldap {}", base64(format!("ann:{}", sent()).as_bytes()));
        let directory = "no answer from the directory: I/O error: Connection refused";
        let tried = "basic-auth: 401 wrong password; key-auth: 401 failed to find consumer: invalid api key";
        let nothing =
            "basic-auth: 401 Missing authorization in request; key-auth: 401 Missing API key in request";
        vec![
            (to("/basic-auth"), "basic-auth", 401, "missing", "Missing authorization in request"),
            (
                to("/basic-auth").header("Authorization", &sent()),
                "basic-auth",
                401,
                "malformed",
                "Invalid authorization header format",
            ),
            (
                to("/basic-auth").basic("nobody", &sent()),
                "basic-auth",
                401,
                "unknown",
                "failed to find user: invalid user",
            ),
            (to("/basic-auth").basic("ann", &sent()), "basic-auth", 401, "wrong", "wrong password"),
            (to("/key-auth"), "key-auth", 401, "missing", "Missing API key in request"),
            (
                to("/key-auth").header("apikey", &sent()),
                "key-auth",
                401,
                "unknown",
                "failed to find consumer: invalid api key",
            ),
            (
                to(&format!("/key-auth?apikey={}&apikey=2", sent())),
                "key-auth",
                401,
                "unknown",
                "failed to find consumer: invalid api key",
            ),
            (to("/ldap-auth"), "ldap-auth", 401, "missing", "Missing authorization in request"),
            (to("/ldap-auth").basic("ann", &sent()), "ldap-auth", 401, "unavailable", directory),
            (to("/ldap-auth-advanced"), "ldap-auth-advanced", 401, "missing", "missing authorization header"),
            (
                to("/ldap-auth-advanced").header("Authorization", &ldap),
                "ldap-auth-advanced",
                500,
                "unavailable",
                directory,
            ),
            (to("/multi-auth"), "multi-auth", 401, "missing", nothing),
            (
                to("/multi-auth").basic("ann", &sent()).header("apikey", &sent()),
                "multi-auth",
                401,
                "wrong",
                tried,
            ),
        ]
    }

    fn of_tokens_and_signatures(&self) -> Vec<Case> {
        let to = |target: &str| self.to(target);
        let signature = |who: &str, date: &str| {
            let authorization = format!(
                "Signature keyId=\"{who}\",algorithm=\"hmac-sha256\",headers=\"date\",signature=\"{}\"",
                sent()
            );
            to("/hmac-auth").header("Date", date).header("Authorization", &authorization)
        };
        let now = httpdate::fmt_http_date(std::time::SystemTime::now());
        let classic = to("/hmac-auth").header("X-HMAC-ACCESS-KEY", "ann").header("X-HMAC-SIGNATURE", &sent());
        let wolf = |app: &str| to("/wolf-rbac").header("x-rbac-token", &format!("V1#{app}#{}", sent()));
        let jwt = "failed to find consumer: invalid user key";
        let of = |key: &str| bearer(to("/jwt-auth"), &unsigned(json!({"key": key})));
        let unsigned_date = "client request can't be validated: missing Authorization header";
        let no_signature =
            "client request can't be validated: Authorization header does not start with 'Signature'";
        let server = "request to wolf-server failed, err:no connection to 127.0.0.1:1: Connection refused";
        let csrf = given_csrf(self.post("/csrf"));
        vec![
            (to("/jwt-auth"), "jwt-auth", 401, "missing", "Missing JWT token in request"),
            (
                bearer(to("/jwt-auth"), &sent()),
                "jwt-auth",
                401,
                "malformed",
                "JWT token invalid: invalid jwt string",
            ),
            (of("bob"), "jwt-auth", 401, "unknown", jwt),
            (of("ann"), "jwt-auth", 401, "wrong", "signature mismatch"),
            (bearer(to("/jwt-auth"), EXPIRED), "jwt-auth", 401, "expired", "'exp' claim expired"),
            (
                to(&format!("/jwt-auth?jwt={}", unsigned(json!({"key": "ann"})))),
                "jwt-auth",
                401,
                "wrong",
                "signature mismatch",
            ),
            (to("/hmac-auth"), "hmac-auth", 401, "missing", unsigned_date),
            (to("/hmac-auth").header("Authorization", &sent()), "hmac-auth", 401, "missing", no_signature),
            (signature("bob", &now), "hmac-auth", 401, "unknown", "Invalid key_id"),
            (signature("ann", &now), "hmac-auth", 401, "wrong", "Invalid signature"),
            (
                signature("ann", "Tue, 19 Jan 2021 11:33:20 GMT"),
                "hmac-auth",
                401,
                "expired",
                "Clock skew exceeded",
            ),
            (
                classic.header("X-HMAC-ALGORITHM", "hmac-sha256"),
                "hmac-auth",
                401,
                "wrong",
                "Invalid signature",
            ),
            (to("/wolf-rbac"), "wolf-rbac", 401, "missing", "no token"),
            (
                to(&format!("/wolf-rbac?rbac_token={}", sent())),
                "wolf-rbac",
                401,
                "malformed",
                "the token is no V1#appid#token",
            ),
            (wolf("other"), "wolf-rbac", 401, "unknown", "consumer [other] not found"),
            (wolf("app"), "wolf-rbac", 500, "unavailable", server),
            (to("/jwe-decrypt"), "jwe-decrypt", 403, "missing", "missing JWE token in request"),
            (bearer(to("/jwe-decrypt"), &sent()), "jwe-decrypt", 400, "malformed", "JWE token invalid"),
            (self.post("/csrf"), "csrf", 401, "missing", "no csrf token in headers"),
            (csrf, "csrf", 401, "malformed", "csrf token base64 decode error"),
        ]
    }

    fn of_logins(&self) -> Vec<Case> {
        let to = |target: &str| self.to(target);
        let discovery = "OIDC authentication failed: discovery document: no connection to 127.0.0.1:1: Connection refused";
        let issuer = "OIDC token refused: issuer validation unavailable: discovery document: no connection to 127.0.0.1:1: Connection refused";
        let callback = |query: String| to(&format!("/openid-connect/.apisix/redirect?{query}"));
        let unknown =
            "OIDC authentication failed: request to the redirect_uri path but there's no session state found";
        let incomplete = "OIDC authentication failed: unhandled request to the redirect_uri, without code";
        // The CAS server is asked only for who began to log in here.
        let begun = to("/cas-auth/page").send().expect(302);
        let cookie = begun.header("set-cookie").expect("a cookie").split(';').next().expect("its value");
        let ticket = || to(&format!("/cas-auth?ticket=ST-{}", sent()));
        vec![
            (to("/openid-connect"), "openid-connect", 500, "unavailable", discovery),
            (callback(format!("code={0}&state={0}", sent())), "openid-connect", 500, "missing", unknown),
            (callback(format!("state={}", sent())), "openid-connect", 500, "malformed", incomplete),
            (to("/closed"), "openid-connect", 401, "missing", "no session, and unauth_action is deny"),
            (to("/bearer"), "openid-connect", 401, "missing", "No bearer token found in request."),
            (bearer(to("/bearer"), &unsigned(json!({}))), "openid-connect", 401, "unavailable", issuer),
            (
                bearer(to("/introspection"), &sent()),
                "openid-connect",
                401,
                "unavailable",
                "OIDC token refused: introspection failed: ",
            ),
            (ticket(), "cas-auth", 401, "missing", "missing or invalid initiation cookie"),
            (
                ticket().header("Cookie", cookie),
                "cas-auth",
                401,
                "unavailable",
                "no connection to 127.0.0.1:1: Connection refused",
            ),
            (to("/cas-auth/out"), "cas-auth", 401, "missing", "logout without a session"),
        ]
    }

    fn of_rules(&self) -> Vec<Case> {
        let to = |target: &str| self.to(target);
        let known = |target: &str| to(target).header("apikey", &secret("key"));
        let forward = "failed to process forward auth, err: no connection to 127.0.0.1:1: Connection refused";
        let opa = "failed to process OPA decision, err: no connection to 127.0.0.1:1: Connection refused";
        let restricted = "consumer-restriction";
        vec![
            (to("/forward-auth"), "forward-auth", 403, "unavailable", forward),
            (to("/opa"), "opa", 403, "unavailable", opa),
            (known("/acl"), "acl", 403, "forbidden", "no allowed label"),
            (
                to("/authz-casbin"),
                "authz-casbin",
                403,
                "forbidden",
                "the policy does not allow it to anonymous",
            ),
            (
                known("/consumer-restriction"),
                restricted,
                403,
                "forbidden",
                "consumer_name ann is on the blacklist",
            ),
            (to("/nobody"), restricted, 401, "missing", "the request has no consumer_name"),
            (to("/public-api"), "public-api", 404, "not_found", "no plugin offers this endpoint"),
            (to("/uri-blocker"), "uri-blocker", 404, "forbidden", "the address matches a block rule"),
            (
                to("/ip-restriction"),
                "ip-restriction",
                403,
                "forbidden",
                "the address 127.0.0.1 may not come in",
            ),
            (
                to("/ua-restriction").header("User-Agent", "robot"),
                "ua-restriction",
                403,
                "forbidden",
                "the user agent may not come in",
            ),
            (
                to("/referer-restriction").header("Referer", "http://b.com/"),
                "referer-restriction",
                403,
                "forbidden",
                "the referring host may not come in",
            ),
            (to("/request-validation"), "request-validation", 400, "malformed", "property "),
            (to("/fault-injection"), "fault-injection", 500, "other", "injected fault"),
            (to("/mocking"), "mocking", 503, "other", "made-up answer"),
        ]
    }

    fn of_limits(&self) -> Vec<Case> {
        for limit in ["/limit-count", "/limit-req"] {
            self.to(limit).send().expect(200);
        }
        let count = "the count of the time window is used up";
        let rate = "requests come faster than the rate and burst allow";
        vec![
            (self.to("/limit-count"), "limit-count", 503, "limited", count),
            (self.to("/limit-req"), "limit-req", 503, "limited", rate),
        ]
    }

    /// A request under way that occupies the only place of limit-conn: its body does not end.
    fn occupies(&self) -> Connection {
        let open = || Connection::open(self.gateway.ports.http);
        let mut client = open();
        // Whoever asks whether it is taken may come first, and take it.
        eventually("the place is taken", || {
            client = open();
            client.raw(b"POST /limit-conn HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab");
            self.to("/limit-conn").send().status == 503
        });
        client
    }

    /// Wherever a secret could have been left.
    fn search(&self) {
        let control = |path: &str| Request::new(self.gateway.ports.control, "GET", path).send().expect(200);
        let access_log = || fs::read_to_string(self.gateway.path("logs/access.log")).unwrap_or_default();
        self.to("/key-auth?the=last").send().expect(401);
        eventually("the access log is written", || access_log().contains("?the=last"));
        let places = [
            ("the log", self.gateway.stderr()),
            ("the access log", access_log()),
            ("the metrics", self.metrics()),
            ("/v1/routes", control("/v1/routes").text()),
            ("/v1/faults", control("/v1/faults").text()),
        ];
        for (place, text) in places {
            for part in
                [MARK, &base64(format!("ann:{}", sent()).as_bytes()), &base64(secret("key").as_bytes())]
            {
                let line = text.lines().find(|line| line.contains(part));
                assert!(line.is_none(), "a secret is in {place}: {}", line.unwrap_or_default());
            }
        }
    }
}

/// Both halves of what csrf compares.
fn given_csrf(request: Request) -> Request {
    let cookie = format!("apisix-csrf-token={}", sent());
    request.header("apisix-csrf-token", &sent()).header("Cookie", &cookie)
}

#[test]
fn every_refusal_has_one() {
    let upstream = Upstream::echo();
    let gateway = Setup::file(json!({"routes": routes(&upstream), "consumers": consumers()}))
        .set("portcullis.debug_auth", true)
        .set("nginx_config.error_log_level", "debug")
        .start();
    let given = Given { gateway, asked: 0.into() };
    for cases in [
        given.of_passwords_and_keys(),
        given.of_tokens_and_signatures(),
        given.of_logins(),
        given.of_rules(),
        given.of_limits(),
    ] {
        cases.into_iter().for_each(|case| given.check(case));
    }
    let occupied = given.occupies();
    let busy = "too many requests at once";
    given.check((given.to("/limit-conn"), "limit-conn", 503, "limited", busy));
    drop(occupied);
    // Those who are let in leave no trace of what they showed either.
    let key = secret("key");
    given.to("/basic-auth").basic("ann", &secret("basic")).send().expect(200).expect_header(TOLD, "");
    given.to("/key-auth").header("apikey", &key).send().expect(200).expect_header(TOLD, "");
    given.to(&format!("/key-auth?a=1&apikey={key}")).send().expect(200);
    given.search();
}
