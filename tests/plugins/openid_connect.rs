//! openid-connect against a real OpenID provider: logins as a browser makes them, sessions, tokens that clients bring.

mod old;
mod real_browser;
mod redis;

use serde_json::{Value, json};

use super::super::support::{
    at,
    browser::{Browser, Page, Url},
    client::{Request, Response},
    eventually,
    gateway::{Gateway, Setup},
    peer::{OpenIdProvider, Redis},
    tool,
    upstream::Upstream,
};

const SECRET: &str = "secret-of-the-application-0123456789abcdef";

/// A gateway in front of an upstream, and the provider its users log in at.
struct Login {
    gateway: Gateway,
    upstream: Upstream,
    provider: OpenIdProvider,
}

/// What differs from test to test.
struct Given {
    plugin: Value,
    provider: Value,
    client: Value,
    /// Further plugins of the route.
    plugins: Value,
    consumers: Value,
    /// A file of authorities that plugins trust.
    trusted: Option<String>,
    /// Whether APISIX 3.2 is spoken.
    old: bool,
}

impl Default for Given {
    fn default() -> Self {
        let none = || json!({});
        Self {
            plugin: none(),
            provider: none(),
            client: none(),
            plugins: none(),
            consumers: json!([]),
            trusted: None,
            old: false,
        }
    }
}

/// `null` takes a member out.
fn merge(mut base: Value, over: &Value) -> Value {
    for (name, value) in over.as_object().expect("an object") {
        if value.is_null() {
            base.as_object_mut().expect("an object").remove(name);
        } else {
            base[name] = value.clone();
        }
    }
    base
}

impl Given {
    #[track_caller]
    fn start(self) -> Login {
        // The provider must know where the gateway will be.
        let mut setup = Setup::file(json!({}));
        if let Some(trusted) = self.trusted {
            setup = setup.set("apisix.ssl.ssl_trusted_certificate", trusted);
        }
        if self.old {
            setup = setup.speaking_3_2();
        }
        let origin = format!("http://127.0.0.1:{}", setup.http());
        let client = json!({
            "client_id": "app", "client_secret": SECRET,
            "redirect_uris": [format!("{origin}/.apisix/redirect"), format!("{origin}/back")],
            "post_logout_redirect_uris": [format!("{origin}/bye")],
            "grant_types": ["authorization_code", "refresh_token", "client_credentials"],
        });
        let clients = json!([merge(client, &self.client)]);
        let provider = OpenIdProvider::start(merge(json!({"clients": clients}), &self.provider));
        let plugin = json!({
            "client_id": "app", "client_secret": SECRET,
            "discovery": provider.discovery(),
            "redirect_uri": "/back",
            "timeout": 30,
            "session": {"secret": "0123456789abcdef0123456789abcdef"},
        });
        let upstream = Upstream::echo();
        let plugins = merge(json!({"openid-connect": merge(plugin, &self.plugin)}), &self.plugins);
        let route = json!({"id": "1", "uri": "/*", "plugins": plugins, "upstream": upstream.resource()});
        let gateway = setup.resources(json!({"routes": [route], "consumers": self.consumers})).start();
        Login { gateway, upstream, provider }
    }
}

impl Login {
    #[track_caller]
    fn new(plugin: Value) -> Self {
        Given { plugin, ..Given::default() }.start()
    }

    fn url(&self, target: &str) -> Url {
        Url { port: self.gateway.ports.http, target: target.to_owned() }
    }

    /// Logs in at the provider's pages; where the browser ends up.
    #[track_caller]
    fn log_in(&self, browser: &mut Browser, target: &str, user: &str) -> Page {
        let page = browser.visit(&self.url(target));
        assert_eq!(page.url.port, self.provider.port, "{:?} {}", page.url, page.response.text());
        let page = browser.submit(&page, &format!("prompt=login&login={user}&password=x"));
        if page.url.port != self.provider.port {
            return page;
        }
        browser.submit(&page, "prompt=consent")
    }

    #[track_caller]
    fn get(&self, headers: &[(&str, &str)]) -> Response {
        let mut request = self.gateway.request("GET", "/api");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.send()
    }

    #[track_caller]
    fn bearer(&self, token: &str) -> Response {
        self.get(&[("Authorization", &format!("Bearer {token}"))])
    }

    /// A token for a machine: a JWT for a resource, else one that only the provider can read.
    #[track_caller]
    fn token(&self, fields: &str) -> String {
        let request = Request::new(self.provider.port, "POST", "/token")
            .basic("app", SECRET)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(format!("grant_type=client_credentials&{fields}"));
        at(&request.send().expect(200).json(), "/access_token").as_str().expect("a token").to_owned()
    }

    #[track_caller]
    fn seen(&self, header: &str) -> Option<String> {
        self.upstream.last().header(header).map(str::to_owned)
    }

    /// A header that holds JSON in base64.
    #[track_caller]
    fn seen_json(&self, header: &str) -> Value {
        let text = self.seen(header).unwrap_or_else(|| panic!("the upstream saw no {header}"));
        serde_json::from_slice(&unbase64(&text)).expect("JSON")
    }
}

/// RFC 4648 with either alphabet.
fn unbase64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => u32::from(c - b'A'),
        b'a'..=b'z' => u32::from(c - b'a') + 26,
        b'0'..=b'9' => u32::from(c - b'0') + 52,
        b'+' | b'-' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|c| *c != b'=').collect();
    let mut out = Vec::new();
    for four in digits.chunks(4) {
        let word = four.iter().fold(0, |word, c| word << 6 | digit(*c)) << (6 * (4 - four.len()));
        out.extend_from_slice(&word.to_be_bytes()[1..four.len()]);
    }
    out
}

#[test]
fn a_browser_logs_in_stays_logged_in_and_logs_out() {
    let login = Login::new(json!({
        "use_pkce": true, "use_nonce": true, "scope": "openid profile", "set_raw_id_token_header": true,
        "authorization_params": {"ui_locales": "de"},
    }));
    let mut browser = Browser::default();
    let first = browser.get(&login.url("/here?a=1")).expect(302);
    first.clone().expect_header("Cache-Control", "no-cache, no-store, max-age=0");
    let to = login.url("/").join(first.header("location").unwrap());
    assert_eq!((to.port, to.path()), (login.provider.port, "/auth"));
    let argument = |name: &str| to.argument(name);
    assert_eq!(argument("client_id").as_deref(), Some("app"));
    assert_eq!(argument("response_type").as_deref(), Some("code"));
    assert_eq!(argument("scope").as_deref(), Some("openid profile"));
    assert_eq!(argument("ui_locales").as_deref(), Some("de"));
    assert_eq!(argument("code_challenge_method").as_deref(), Some("S256"));
    assert_eq!(argument("code_challenge").map(|text| text.len()), Some(43));
    assert!(argument("nonce").is_some() && argument("state").is_some());
    let back = format!("http://127.0.0.1:{}/back", login.gateway.ports.http);
    assert_eq!(argument("redirect_uri"), Some(back));
    let cookie = first.header("set-cookie").unwrap();
    assert!(cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Lax"), "{cookie}");
    assert!(cookie.contains("; Path=/;") && cookie.contains("; Max-Age=900"), "{cookie}");

    let page = login.log_in(&mut browser, "/here?a=1", "alice");
    assert_eq!((page.response.status, page.url), (200, login.url("/here?a=1")));
    assert_eq!(login.upstream.last().target, "/here?a=1");
    assert_eq!(at(&login.seen_json("x-id-token"), "/sub"), "alice");
    assert_eq!(at(&login.seen_json("x-id-token"), "/aud"), "app");
    assert_eq!(at(&login.seen_json("x-userinfo"), "/name"), "The user alice");
    assert!(login.seen("x-access-token").is_some_and(|token| token.len() > 20));
    assert_eq!(login.seen("x-raw-id-token").map(|token| token.split('.').count()), Some(3));
    assert_eq!(login.seen("x-refresh-token"), None);
    // What a client says of itself does not reach the upstream, and the session does not need the provider.
    let asked = login.provider.count("/token");
    browser
        .send("GET", &login.url("/again"), |request| {
            request
                .header("X-Userinfo", "forged")
                .header("X-Refresh-Token", "forged")
                .header("X-ID-Token", "forged")
        })
        .expect(200);
    assert_eq!(at(&login.seen_json("x-userinfo"), "/sub"), "alice");
    assert_eq!(login.seen("x-refresh-token"), None);
    assert_eq!(login.provider.count("/token"), asked);
    // One login under way was left behind by the first request.
    assert_eq!(browser.cookies("session").len(), 2, "{:?}", browser.cookies("session"));

    let out = browser.get(&login.url("/logout")).expect(302);
    let to = login.url("/").join(out.header("location").unwrap());
    assert_eq!((to.port, to.path()), (login.provider.port, "/session/end"));
    assert!(to.argument("id_token_hint").is_some_and(|token| token.split('.').count() == 3));
    assert!(browser.cookies("session").iter().all(|(name, _)| name != "session"));
    browser.get(&login.url("/here")).expect(302);
}

#[test]
fn the_redirect_address_follows_the_path() {
    let login = Login::new(json!({"redirect_uri": null}));
    let page = login.log_in(&mut Browser::default(), "/", "bob");
    assert_eq!((page.response.status, page.url.target.as_str()), (200, "/"));
    for (target, path) in [("/a/b?c=1", "/a/b/.apisix/redirect"), ("/a/", "/a/.apisix/redirect")] {
        let first = login.gateway.get(target).expect(302);
        let to = login.url("/").join(first.header("location").unwrap());
        let expected = format!("http://127.0.0.1:{}{path}", login.gateway.ports.http);
        assert_eq!(to.argument("redirect_uri"), Some(expected), "{target}");
    }
}

#[test]
fn tells_the_access_token_as_asked_for() {
    let login = Login::new(json!({
        "access_token_in_authorization_header": true, "set_id_token_header": false,
        "set_userinfo_header": false, "set_refresh_token_header": true,
    }));
    login.log_in(&mut Browser::default(), "/", "alice").response.expect(200);
    assert!(login.seen("authorization").is_some_and(|value| value.starts_with("Bearer ")));
    assert!(login.seen("x-refresh-token").is_some());
    for header in ["x-access-token", "x-id-token", "x-userinfo", "x-raw-id-token"] {
        assert_eq!(login.seen(header), None, "{header}");
    }
}

#[test]
fn clients_prove_who_they_are_in_every_way() {
    let key = tool::stdout("openssl", &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
    let jwk = jwk_of(&key);
    let methods = [
        (json!({"token_endpoint_auth_method": "client_secret_post"}), json!({})),
        (
            json!({"token_endpoint_auth_method": "client_secret_jwt"}),
            json!({"token_endpoint_auth_signing_alg": "HS256"}),
        ),
        (
            json!({"token_endpoint_auth_method": "private_key_jwt", "client_rsa_private_key": key,
                   "client_rsa_private_key_id": "k1"}),
            json!({"jwks": {"keys": [jwk]}, "client_secret": null}),
        ),
        (
            json!({"use_pkce": true, "client_secret": null}),
            json!({"token_endpoint_auth_method": "none", "client_secret": null}),
        ),
        (json!({"par": {"enabled": true}}), json!({"require_pushed_authorization_requests": true})),
    ];
    for (plugin, client) in methods {
        let mut client = client;
        if let Some(method) = plugin.get("token_endpoint_auth_method") {
            client["token_endpoint_auth_method"] = method.clone();
        }
        if client["token_endpoint_auth_method"] == "none" {
            client["grant_types"] = json!(["authorization_code", "refresh_token"]);
        }
        let login = Given { plugin: plugin.clone(), client, ..Given::default() }.start();
        let page = login.log_in(&mut Browser::default(), "/x", "alice");
        assert_eq!(page.response.status, 200, "{plugin} {}", login.gateway.stderr());
    }
}

/// A public JWK of a PEM's private RSA key, by OpenSSL's own printing.
fn jwk_of(pem: &str) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key.pem");
    std::fs::write(&file, pem).unwrap();
    let file = file.to_str().unwrap();
    let modulus = tool::stdout("openssl", &["rsa", "-in", file, "-noout", "-modulus"]);
    let hex = modulus.trim().strip_prefix("Modulus=").expect("a modulus");
    let bytes: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    json!({"kty": "RSA", "kid": "k1", "alg": "RS256", "use": "sig", "n": base64url(&bytes), "e": "AQAB"})
}

fn base64url(bytes: &[u8]) -> String {
    let text = super::super::support::client::base64(bytes);
    text.trim_end_matches('=').replace('+', "-").replace('/', "_")
}

#[test]
fn proves_possession_of_its_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key.pem");
    let curve = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let pem = tool::stdout("openssl", &curve);
    std::fs::write(&file, &pem).unwrap();
    let arguments =
        ["ec", "-in", file.to_str().unwrap(), "-pubout", "-outform", "DER", "-conv_form", "uncompressed"];
    let der = tool::run("openssl", &arguments).stdout;
    let point = &der[der.len() - 64..];
    let jwk =
        json!({"kty": "EC", "crv": "P-256", "x": base64url(&point[..32]), "y": base64url(&point[32..])});
    let login = Given {
        plugin: json!({"dpop": {"enabled": true, "private_key": pem, "public_jwk": jwk}}),
        client: json!({"dpop_bound_access_tokens": true}),
        provider: json!({"nonce": true}),
        ..Given::default()
    }
    .start();
    login.log_in(&mut Browser::default(), "/x", "alice").response.expect(200);
    assert_eq!(at(&login.seen_json("x-userinfo"), "/sub"), "alice");
}

#[test]
fn nobody_gets_in_without_a_login() {
    let login = Login::new(json!({"unauth_action": "deny"}));
    login.get(&[]).expect(401).expect_in_body("<h1>401 ");
    login.get(&[("Cookie", "session=forged")]).expect(401);
    assert_eq!(login.upstream.count(), 0);
    let login = Login::new(json!({"unauth_action": "pass"}));
    login.get(&[("X-Userinfo", "forged"), ("X-Access-Token", "forged")]).expect(200);
    assert_eq!((login.seen("x-userinfo"), login.seen("x-access-token")), (None, None));
}

#[test]
fn forged_and_stale_answers_of_the_provider_lead_nowhere() {
    let login = Login::new(json!({"use_nonce": true}));
    let visit = |browser: &mut Browser, target: &str| browser.get(&login.url(target));
    visit(&mut Browser::default(), "/back?code=forged&state=forged").expect(500);
    // A browser that is logging in gets a second chance, not more than three times.
    let mut browser = Browser::default();
    visit(&mut browser, "/wanted").expect(302);
    for _ in 0..3 {
        visit(&mut browser, "/back?code=forged&state=forged")
            .expect(302)
            .expect_header("Location", "/wanted");
    }
    visit(&mut browser, "/back?code=forged&state=forged").expect(500);
    // A code that the provider does not know.
    let first = visit(&mut browser, "/wanted").expect(302);
    let state = login.url("/").join(first.header("location").unwrap()).argument("state").unwrap();
    visit(&mut browser, &format!("/back?code=forged&state={state}")).expect(500);
    visit(&mut browser, &format!("/back?code=forged&state={state}&iss=http://evil")).expect(500);
    // The provider says no; only a provider that is busy is asked again.
    visit(&mut browser, &format!("/back?error=access_denied&state={state}")).expect(500);
    let mut browser = Browser::default();
    let first = visit(&mut browser, "/other?x=1").expect(302);
    let state = login.url("/").join(first.header("location").unwrap()).argument("state").unwrap();
    let busy = format!("/back?error=temporarily_unavailable&state={state}");
    visit(&mut browser, &busy).expect(302).expect_header("Location", "/other?x=1");
    visit(&mut Browser::default(), &busy).expect(500);
    assert_eq!(login.upstream.count(), 0);
}

#[test]
fn two_tabs_log_in_beside_each_other() {
    let login = Login::new(json!({}));
    let mut browser = Browser::default();
    let one = browser.visit(&login.url("/one"));
    let other = browser.visit(&login.url("/other"));
    let one = browser.submit(&one, "prompt=login&login=alice&password=x");
    let one = browser.submit(&one, "prompt=consent");
    assert_eq!((one.response.status, one.url.path()), (200, "/one"));
    // The provider knows the user by now; the form of the second tab goes on where it was.
    let other = browser.submit(&other, "prompt=login&login=alice&password=x");
    assert_eq!((other.response.status, other.url.path()), (200, "/other"));
}

#[test]
fn large_sessions_take_several_cookies() {
    let login = Login::new(json!({"scope": "openid profile"}));
    let mut browser = Browser::default();
    login.log_in(&mut browser, "/x", "big").response.expect(200);
    let cookies = browser.cookies("session");
    assert!(cookies.len() >= 3 && cookies.iter().all(|(name, value)| name.len() + value.len() < 4000));
    browser.get(&login.url("/x")).expect(200);
    assert_eq!(at(&login.seen_json("x-userinfo"), "/sub"), "big");
    // A part that was changed ends the session.
    let (name, value) = cookies[1].clone();
    browser.set_cookie(&name, &value.replace(&value[5..9], "AAAA"));
    browser.get(&login.url("/x")).expect(302);
    browser.set_cookie(&name, &value);
    browser.get(&login.url("/logout")).expect(302);
    // What is left belongs to the login that began when the session did not open.
    assert!(browser.cookies("session").iter().all(|(name, _)| name.starts_with("session_")));
}

#[test]
fn sessions_in_a_redis() {
    let redis = Redis::start("pass");
    let keys = || redis.cli(&["keys", "*"]);
    let login = Login::new(json!({"scope": "openid profile", "session": {
        "secret": "0123456789abcdef", "storage": "redis", "cookie_name": "sid",
        "redis": {"port": redis.port, "password": "pass", "prefix": "app",
                  "connect_timeout": 30000, "read_timeout": 30000},
    }}));
    let mut browser = Browser::default();
    login.log_in(&mut browser, "/x", "big").response.expect(200);
    let cookies = browser.cookies("sid");
    assert!(cookies.len() == 1 && cookies[0].1.len() < 200, "{cookies:?}");
    let key = keys();
    assert!(key.starts_with("app:") && !cookies[0].1.contains(&key[4..]), "{key}");
    let kept = redis.cli(&["get", &key]);
    // A word long enough to be in no cipher text by chance.
    assert!(!kept.contains("access_token") && kept.len() > 9000);
    browser.get(&login.url("/x")).expect(200);
    assert_eq!(at(&login.seen_json("x-userinfo"), "/sub"), "big");
    browser.get(&login.url("/logout")).expect(302);
    assert_eq!(keys(), "");
    // What the browser kept opens nothing any more.
    browser.set_cookie("sid", &cookies[0].1);
    browser.get(&login.url("/x")).expect(302);
    browser.visit(&login.url("/x")).response.expect(200);
    drop(redis);
    browser.get(&login.url("/x")).expect(500);
}

#[test]
fn expired_access_tokens_are_renewed() {
    // Tokens live for an hour less what is taken off here.
    let login = Login::new(json!({"access_token_expires_leeway": 3597, "set_refresh_token_header": true}));
    let mut browser = Browser::default();
    login.log_in(&mut browser, "/x", "alice").response.expect(200);
    let first = login.seen("x-access-token");
    eventually("the access token is renewed", || {
        browser.get(&login.url("/x")).expect(200);
        login.seen("x-access-token") != first
    });
    assert_eq!(at(&login.seen_json("x-id-token"), "/sub"), "alice");
    // A provider that does not renew: the user logs in again. It still knows the browser, so that takes no form.
    let login = Given {
        plugin: json!({"access_token_expires_leeway": 3597}),
        client: json!({"grant_types": ["authorization_code"]}),
        ..Given::default()
    }
    .start();
    let mut browser = Browser::default();
    login.log_in(&mut browser, "/x", "alice").response.expect(200);
    eventually("the login ends with the token", || browser.get(&login.url("/x")).status == 302);
}

#[test]
fn the_provider_is_asked_silently_whether_the_login_stands() {
    let login = Login::new(json!({"refresh_session_interval": 3}));
    let mut browser = Browser::default();
    login.log_in(&mut browser, "/x", "alice").response.expect(200);
    let mut answer = None;
    eventually("the provider is asked again", || {
        let response = browser.get(&login.url("/x"));
        let asked = response.status == 302;
        answer = Some(response);
        asked
    });
    let to = login.url("/").join(answer.as_ref().unwrap().header("location").unwrap());
    assert_eq!(to.argument("prompt").as_deref(), Some("none"));
    let page = browser.follow(login.url("/x"), answer.unwrap());
    assert_eq!((page.response.status, page.url.path()), (200, "/x"));
    // The provider forgets the browser: it asks for a login instead of failing.
    for (name, _) in browser.cookies("_session") {
        browser.set_cookie(&name, "gone");
    }
    eventually("the user must log in", || browser.visit(&login.url("/x")).url.port == login.provider.port);
}

#[test]
fn sessions_end() {
    let session = |name: &str| json!({"session": {"secret": "0123456789abcdef", name: 4}});
    for name in ["idling_timeout", "absolute_timeout", "rolling_timeout"] {
        let login = Login::new(session(name));
        let mut browser = Browser::default();
        let page = login.log_in(&mut browser, "/x", "alice");
        assert!(matches!(page.response.status, 200 | 302), "{name}");
        let url = login.url("/x");
        eventually("the session ends", || {
            // A request would lengthen it.
            std::thread::sleep(std::time::Duration::from_secs(6));
            browser.get(&url).status == 302
        });
    }
}

#[test]
fn logging_out_tells_the_provider() {
    let login = Given {
        plugin: json!({"revoke_tokens_on_logout": true, "logout_path": "/leave", "post_logout_redirect_uri": "/bye"}),
        provider: json!({"logout": false}),
        ..Given::default()
    }
    .start();
    let mut browser = Browser::default();
    login.log_in(&mut browser, "/x", "alice").response.expect(200);
    let out = browser.get(&login.url("/leave")).expect(302);
    assert_eq!(out.header("location"), Some("/bye?post_logout_redirect_uri=%2Fbye"));
    assert_eq!(login.provider.count("/token/revocation"), 2);
    let login = Given { provider: json!({"logout": false}), ..Given::default() }.start();
    let mut browser = Browser::default();
    login.log_in(&mut browser, "/x", "alice").response.expect(200);
    browser.get(&login.url("/logout")).expect(200).expect_body("<html><body>Logged Out</body></html>\n");
    browser.get(&login.url("/x")).expect(302);
}

#[test]
fn bearer_tokens_are_verified_with_the_published_keys() {
    let login = Login::new(json!({"bearer_only": true, "use_jwks": true, "session": null}));
    login.get(&[]).expect(401).expect_header("WWW-Authenticate", "Bearer realm=\"apisix\"");
    login.get(&[("Authorization", "Bearer")]).expect(400);
    login.get(&[("Authorization", "Basic YTpi")]).expect(401);
    let refused = |token: &str| {
        let response = login.bearer(token).expect(401);
        let challenge = response.header("www-authenticate").unwrap_or_default().to_owned();
        assert!(challenge.starts_with("Bearer realm=\"apisix\", error=\"invalid_token\""), "{challenge}");
        assert!(!challenge.contains(token), "{challenge}");
    };
    let token = login.token("resource=urn:api&scope=read%20write");
    refused("nonsense");
    refused(&login.token("scope=read"));
    let (signed, signature) = token.rsplit_once('.').unwrap();
    refused(&format!("{signed}.{}", signature.chars().rev().collect::<String>()));
    let none = base64url(br#"{"alg":"none"}"#);
    refused(&format!("{none}.{}.", signed.split('.').nth(1).unwrap()));
    assert_eq!(login.upstream.count(), 0);
    login.bearer(&token).expect(200);
    assert_eq!(login.seen("x-access-token").as_deref(), Some(&*token));
    assert_eq!(at(&login.seen_json("x-userinfo"), "/aud"), "urn:api");
    login.get(&[("X-Access-Token", &token)]).expect(200);
    login.get(&[("Authorization", &format!("bearer {token}"))]).expect(200);
    // New keys are found when a token is signed with one.
    let asked = login.provider.count("/jwks");
    login.bearer(&token).expect(200);
    assert_eq!(login.provider.count("/jwks"), asked);
    login.provider.rotate();
    let newer = login.token("resource=urn:api&scope=read");
    eventually("the new keys are known", || login.bearer(&newer).status == 200);
    // One that was believed a moment ago is believed for a while.
    login.bearer(&token).expect(200);
}

#[test]
fn a_provider_that_is_down_is_said_so() {
    let mut login = Login::new(json!({"bearer_only": true, "use_jwks": true, "session": null}));
    login.provider.stop();
    let response = login.bearer("a.b.c").expect(401);
    assert!(response.header("www-authenticate").unwrap().contains("issuer validation unavailable"));
    let log = login.gateway.stderr();
    assert!(log.contains("discovery document: no connection to 127.0.0.1:"), "{log}");
    login.provider.again();
    eventually("it is back", || login.bearer(&login.token("resource=urn:api")).status == 200);
    // Once known, its keys serve while it is down.
    let token = login.token("resource=urn:api&scope=read");
    login.provider.stop();
    login.bearer(&token).expect(200);
    let mut login = Login::new(json!({}));
    login.provider.stop();
    login.get(&[]).expect(500);
    login.gateway.get("/logout").expect(503);
}

#[test]
fn bearer_tokens_are_verified_with_a_configured_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (private, public, input) = (file("private.pem"), file("public.pem"), file("input"));
    tool::stdout("openssl", &["genpkey", "-algorithm", "RSA", "-out", &private]);
    tool::stdout("openssl", &["pkey", "-in", &private, "-pubout", "-out", &public]);
    let sign = |claims: Value| {
        let text = format!(
            "{}.{}",
            base64url(br#"{"alg":"RS256","typ":"JWT"}"#),
            base64url(claims.to_string().as_bytes())
        );
        std::fs::write(&input, &text).unwrap();
        let output = tool::run("openssl", &["dgst", "-sha256", "-sign", &private, "-binary", &input]);
        format!("{text}.{}", base64url(&output.stdout))
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let login = Login::new(json!({
        "bearer_only": true, "session": null, "public_key": std::fs::read_to_string(&public).unwrap(),
        "token_signing_alg_values_expected": "RS256", "iat_slack": 0,
        "claim_validator": {"issuer": {"valid_issuers": ["us", "them"]}},
        "claim_schema": {"type": "object", "required": ["team"]},
    }));
    let good = json!({"iss": "them", "exp": now + 600, "team": "a"});
    login.bearer(&sign(good.clone())).expect(200);
    let refused = |change: Value, reason: &str| {
        let response = login.bearer(&sign(merge(good.clone(), &change))).expect(401);
        let challenge = response.header("www-authenticate").unwrap_or_default();
        assert!(challenge.contains(reason), "{challenge}");
    };
    refused(json!({"exp": now - 10}), "JWT expired");
    let log = login.gateway.stderr();
    assert!(log.contains("class=\"expired\""), "who was right at another time is counted so: {log}");
    refused(json!({"nbf": now + 600}), "not yet valid");
    refused(json!({"iss": "others"}), "Claim 'iss' returned failure");
    let response = login.bearer(&sign(json!({"iss": "us"}))).expect(401);
    assert!(response.header("www-authenticate").unwrap().contains("property 'team' is required"));
    // The provider was never asked.
    assert_eq!(login.provider.count("/jwks"), 0);
}

#[test]
fn bearer_tokens_are_introspected() {
    let login = Given {
        plugin: json!({
            "bearer_only": true, "session": null, "required_scopes": ["read"], "introspection_interval": 600,
        }),
        ..Given::default()
    }
    .start();
    let token = login.token("scope=read%20write");
    login.bearer(&token).expect(200);
    assert_eq!(at(&login.seen_json("x-userinfo"), "/client_id"), "app");
    login.bearer(&token).expect(200);
    assert_eq!(login.provider.count("/token/introspection"), 1);
    let refused = login.bearer("nonsense").expect(401);
    assert!(refused.header("www-authenticate").unwrap().contains("error_description=\"invalid token\""));
    let write = login.token("scope=write");
    login.bearer(&write).expect(403).expect_body(r#"{"error":"required scopes read not present"}"#);
}

#[test]
fn audiences_must_match() {
    let audience = |rule: Value| {
        Login::new(json!({
            "bearer_only": true, "use_jwks": true, "session": null, "claim_validator": {"audience": rule},
        }))
    };
    let login = audience(json!({"match_with_client_id": true}));
    let token = login.token("resource=urn:api&scope=read");
    login.bearer(&token).expect(403).expect_body(r#"{"error":"mismatched audience"}"#);
    let login = audience(json!({"match_with_client_id": true, "claim": "client_id"}));
    login.bearer(&login.token("resource=urn:api&scope=read")).expect(200);
    let login = audience(json!({"required": true, "claim": "nothing"}));
    let token = login.token("resource=urn:api&scope=read");
    login.bearer(&token).expect(403).expect_body(r#"{"error":"required audience claim not present"}"#);
}

#[test]
fn claims_name_consumers() {
    let login = Given {
        plugin: json!({"scope": "openid profile", "consumer_claim": "preferred_username"}),
        plugins: json!({"consumer-restriction": {"whitelist": ["alice", "bob"]}}),
        consumers: json!([
            {"username": "alice", "plugins": {"limit-count": {
                "count": 2, "time_window": 600, "rejected_code": 429, "key": "consumer_name",
            }}},
            {"username": "carol", "plugins": {}},
        ]),
        ..Given::default()
    }
    .start();
    let mut browser = Browser::default();
    login.log_in(&mut browser, "/x", "alice").response.expect(200);
    assert_eq!(login.seen("x-consumer-username").as_deref(), Some("alice"));
    browser.get(&login.url("/x")).expect(200);
    browser.get(&login.url("/x")).expect(429);
    // A consumer that may not, and somebody who is none.
    login.log_in(&mut Browser::default(), "/x", "carol").response.expect(403).expect_in_body("consumer_name");
    login.log_in(&mut Browser::default(), "/x", "mallory").response.expect(403).expect_in_body("No consumer");
}
