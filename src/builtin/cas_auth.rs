//! cas-auth: users log in at a CAS server (CAS protocol 2.0) and have a session from then on.
//!
//! APISIX: plugins/cas-auth.lua.
//!
//! Differs from APISIX: the session's cookie holds a random id instead of the service ticket, which stands in addresses
//! and access logs. A ticket that a cookie or a log could not hold is refused. The CAS server has 10 seconds to answer,
//! and an answer that redirects is none. Logout requests are read as CAS servers send them, too: as a form's field.

use std::{sync::Arc, time::Duration};

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderValue, Method, header};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::shared::{
    base64, cookie,
    http_call::{Call, Client, Options},
    session_map::SessionMap,
};
use crate::{
    net::args,
    plugin::{
        contract,
        credentials::Place,
        env::{BuildEnv, CheckEnv},
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Class, Flow, Reply},
    },
};

/// The cookie that remembers where a browser wanted to go.
const REQUEST_URI: &str = "CAS_REQUEST_URI";

/// How long a session may be unused. APISIX: SESSION_LIFETIME.
const LIFETIME: Duration = Duration::from_secs(3600);

/// Sessions of all routes together; each takes two places.
const MOST_SESSIONS: usize = 100_000;

/// How long the CAS server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The configuration.
#[derive(Deserialize)]
pub struct Config {
    /// The longest logout request that is read, in bytes.
    #[serde(default = "megabytes_64")]
    pub max_req_body_size: usize,
    /// Where the CAS server is, for example `https://cas.example.org/cas`.
    pub idp_uri: String,
    /// Where the CAS server sends the browser back to: a path, or a whole address.
    pub cas_callback_uri: String,
    /// The path that ends a session.
    pub logout_uri: String,
    /// The cookies.
    pub cookie: CookieConfig,
}

/// The cookies.
#[derive(Deserialize)]
pub struct CookieConfig {
    /// Signs the cookie that remembers where a browser wanted to go.
    pub secret: String,
    /// Whether cookies are sent over TLS only.
    #[serde(default = "yes")]
    pub secure: bool,
    /// `SameSite`.
    #[serde(default)]
    pub samesite: SameSite,
}

/// `SameSite`.
#[derive(Deserialize, Clone, Copy, Default)]
pub enum SameSite {
    /// Sent when other sites link here.
    #[default]
    Lax,
    /// Always sent.
    None,
}

fn megabytes_64() -> usize {
    64 << 20
}

fn yes() -> bool {
    true
}

/// The compiled plugin.
pub struct Plugin {
    client: Client,
    sessions: Arc<SessionMap>,
    idp_uri: Box<str>,
    callback_uri: Box<str>,
    callback_path: Box<str>,
    logout_uri: Box<str>,
    /// Names what the sessions of this configuration belong to: CAS server and callback.
    fingerprint: String,
    cookie_name: String,
    secret: Box<str>,
    attributes: &'static str,
    max_body: usize,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "cas-auth";
    const PRIORITY: i32 = 2597;
    const PHASES: Phases = Phases::ACCESS;
    const ENCRYPT: &'static [&'static str] = &["cookie.secret"];
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "cas_callback_uri": {"type": "string"},
                "max_req_body_size": {"type": "integer", "minimum": 1, "default": 67108864},
                "idp_uri": {"type": "string"},
                "logout_uri": {"type": "string"},
                "cookie": {
                    "type": "object",
                    "properties": {
                        "secret": {"type": "string", "minLength": 32},
                        "secure": {"type": "boolean", "default": true},
                        "samesite": {"type": "string", "enum": ["Lax", "None"], "default": "Lax"}
                    },
                    "required": ["secret"]
                }
            },
            "encrypt_fields": ["cookie.secret"],
            "required": ["cas_callback_uri", "cookie", "idp_uri", "logout_uri"]
        })
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        if conf["cookie"]["samesite"] == "None" && conf["cookie"]["secure"] == false {
            return Err("cookie.secure must be true when cookie.samesite is \"None\"".into());
        }
        Ok(())
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let digest = Sha256::digest(format!("{}|{}", config.idp_uri, config.cas_callback_uri));
        let fingerprint: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let sessions = || SessionMap::new(2 * MOST_SESSIONS, LIFETIME);
        Ok(Self {
            client: Client::new(&Options { timeout: PATIENCE, ..Options::default() })?,
            sessions: env.carry.state("cas-auth", sessions),
            callback_path: callback_path(&config.cas_callback_uri).into(),
            idp_uri: config.idp_uri.into(),
            callback_uri: config.cas_callback_uri.into(),
            logout_uri: config.logout_uri.into(),
            cookie_name: format!("CAS_SESSION_{fingerprint}"),
            fingerprint,
            secret: config.cookie.secret.into(),
            attributes: match (config.cookie.secure, config.cookie.samesite) {
                (true, SameSite::Lax) => "; Path=/; HttpOnly; Secure; SameSite=Lax",
                (true, SameSite::None) => "; Path=/; HttpOnly; Secure; SameSite=None",
                (false, SameSite::Lax) => "; Path=/; HttpOnly; SameSite=Lax",
                (false, SameSite::None) => "; Path=/; HttpOnly; SameSite=None",
            },
            max_body: config.max_req_body_size,
        })
    }

    fn credentials(&self, tell: &mut dyn FnMut(Place<'_>)) {
        tell(Place::ArgAt("ticket", &self.callback_path));
        tell(Place::Cookie(&self.cookie_name));
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        let at_callback = x.path() == &*self.callback_path;
        if *x.method() == Method::GET && x.path() == &*self.logout_uri {
            return self.logout(x);
        }
        if *x.method() == Method::POST && at_callback {
            return self.single_logout(x).await;
        }
        if let Some(id) = cookie::find(x, &self.cookie_name).map(str::to_owned) {
            if self.is_logged_in(&id) {
                return CONTINUE;
            }
            self.set_cookie(x, &self.cookie_name, "deleted; Max-Age=0");
            return self.log_in(x);
        }
        match x.arg("ticket").map(|ticket| ticket.into_owned()) {
            Some(ticket) if at_callback => self.callback(x, &ticket).await,
            _ => self.log_in(x),
        }
    }
}

/// What kind of reason there is not to let somebody in, and which.
type Refusal = (Class, String);

impl Plugin {
    /// Sends the browser to the CAS server.
    fn log_in(&self, x: &mut Exchange<'_>) -> Flow {
        let wanted = x.session.req_header().uri.path_and_query().map_or("/", |target| target.as_str());
        let signed = sign(&self.secret, wanted);
        self.set_cookie(x, REQUEST_URI, &signed);
        let service = self.service(x);
        let arguments = args::encode([("service", Some(service.as_str()))]);
        found(&format!("{}/login?{arguments}", self.idp_uri))
    }

    /// The browser is back, with a ticket.
    async fn callback(&self, x: &mut Exchange<'_>, ticket: &str) -> Flow {
        let refuse = |message: &str, class, reason: String| -> Flow {
            Reply::message(401, message).because(reason).classed(class).into()
        };
        let wanted = cookie::find(x, REQUEST_URI).and_then(|signed| verify(&self.secret, signed));
        let Some(wanted) = wanted.filter(|wanted| is_safe_redirect(wanted)) else {
            let reason = "missing or invalid initiation cookie";
            return refuse("invalid callback state", Class::Missing, reason.into());
        };
        if !is_ticket(ticket) {
            return refuse("invalid ticket", Class::Malformed, "the ticket holds what no ticket does".into());
        }
        let begun = match self.validate(x, ticket).await {
            Ok(user) => self.begin(x, ticket, &user),
            Err(reason) => Err(reason),
        };
        match begun {
            Ok(()) => {
                self.set_cookie(x, REQUEST_URI, "deleted; Max-Age=0");
                found(&wanted)
            }
            Err((class, reason)) => refuse("invalid ticket", class, reason),
        }
    }

    /// Asks the CAS server whose ticket it is (CAS protocol §2.5).
    async fn validate(&self, x: &Exchange<'_>, ticket: &str) -> Result<String, Refusal> {
        let unavailable = |reason: String| (Class::Unavailable, reason);
        let service = self.service(x);
        let arguments = args::encode([("ticket", Some(ticket)), ("service", Some(service.as_str()))]);
        let url = format!("{}/serviceValidate?{arguments}", self.idp_uri);
        let answer =
            self.client.send(Call::get(url)).await.map_err(|error| unavailable(error.to_string()))?;
        if answer.status != 200 {
            return Err(unavailable(format!("serviceValidate answers status {}", answer.status.as_u16())));
        }
        let body = String::from_utf8_lossy(&answer.body);
        if !body.contains("<cas:authenticationSuccess>") {
            return Err((Class::Wrong, "serviceValidate did not return authenticationSuccess".into()));
        }
        between(&body, "<cas:user>", "</cas:user>")
            .map(str::to_owned)
            .ok_or_else(|| unavailable("serviceValidate names no user".into()))
    }

    fn begin(&self, x: &mut Exchange<'_>, ticket: &str, user: &str) -> Result<(), Refusal> {
        let mut random = [0; 32];
        getrandom::fill(&mut random)
            .map_err(|error| (Class::Internal, format!("no random numbers: {error}")))?;
        let id = base64::encode_url(&random);
        // A ticket is good for one session: the CAS server took it once, and so do we.
        if !self.sessions.add(&self.ticket_key(ticket), &id) {
            return Err((Class::Wrong, "the same ticket was validated twice".into()));
        }
        self.sessions.add(&self.id_key(&id), &format!("{ticket}|{user}"));
        self.set_cookie(x, &self.cookie_name, &id);
        Ok(())
    }

    fn is_logged_in(&self, id: &str) -> bool {
        let Some(session) = self.sessions.used(&self.id_key(id)) else {
            return false;
        };
        let ticket = session.split('|').next().unwrap_or_default();
        // Without its ticket the CAS server could not end the session.
        self.sessions.used(&self.ticket_key(ticket)).is_some()
    }

    fn logout(&self, x: &mut Exchange<'_>) -> Flow {
        let Some(id) = cookie::find(x, &self.cookie_name).map(str::to_owned) else {
            return Reply::status(401).because("logout without a session").classed(Class::Missing).into();
        };
        if let Some(session) = self.sessions.remove(&self.id_key(&id)) {
            self.sessions.remove(&self.ticket_key(session.split('|').next().unwrap_or_default()));
        }
        self.set_cookie(x, &self.cookie_name, "deleted; Max-Age=0");
        found(&format!("{}/logout", self.idp_uri))
    }

    /// The CAS server ends a session (CAS protocol §2.3.3).
    async fn single_logout(&self, x: &mut Exchange<'_>) -> Flow {
        x.ctx.body_limit = x.ctx.body_limit.min(self.max_body);
        let body = x.body().await.unwrap_or_default();
        let Some(ticket) = ended(&body) else {
            return Reply::message(400, "invalid logout request from IdP, no ticket")
                .because("the logout request names no session")
                .into();
        };
        if let Some(id) = self.sessions.remove(&self.ticket_key(&ticket)) {
            self.sessions.remove(&self.id_key(&id));
        }
        // It ends here: an upstream has no use for it.
        Reply::bytes(200, "").into()
    }

    fn ticket_key(&self, ticket: &str) -> String {
        format!("{}:ticket:{ticket}", self.fingerprint)
    }

    fn id_key(&self, id: &str) -> String {
        format!("{}:id:{id}", self.fingerprint)
    }

    /// What the CAS server knows us by. APISIX: uri_without_ticket.
    fn service(&self, x: &Exchange<'_>) -> String {
        if is_absolute(&self.callback_uri) {
            return self.callback_uri.to_string();
        }
        let host = x.header("host").unwrap_or_default();
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
            _ => host,
        };
        format!("{}://{name}:{}{}", x.ctx.scheme, x.ctx.server.port(), self.callback_uri)
    }

    fn set_cookie(&self, x: &mut Exchange<'_>, name: &str, value: &str) {
        // Signed values, ids and names are base64 or hex.
        if let Ok(mut value) = HeaderValue::try_from(format!("{name}={value}{}", self.attributes)) {
            value.set_sensitive(true);
            x.add_response_header(header::SET_COOKIE, value);
        }
    }
}

fn found(target: &str) -> Flow {
    match HeaderValue::try_from(target) {
        Ok(location) => Reply::status(302).with_header(header::LOCATION, location).into(),
        Err(_) => Reply::status(500).because("an address cannot stand in a header").into(),
    }
}

fn is_absolute(address: &str) -> bool {
    address.starts_with("http://") || address.starts_with("https://")
}

/// The path of a callback, which may be a whole address.
fn callback_path(address: &str) -> &str {
    if !is_absolute(address) {
        return address;
    }
    let rest = address.split_once("//").map_or("", |(_, rest)| rest);
    let path = rest.find('/').map_or("/", |at| &rest[at..]);
    match path.split(['?', '#']).next() {
        None | Some("") => "/",
        Some(path) => path,
    }
}

/// Whether a browser stays on this host when it is sent there.
fn is_safe_redirect(target: &str) -> bool {
    target.starts_with('/') && !target.starts_with("//") && !target.contains(['\\', '\r', '\n'])
}

/// What a service ticket is made of (CAS protocol §3.7), generously.
fn is_ticket(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    !text.is_empty() && text.len() <= 512 && text.bytes().all(allowed)
}

/// The ticket whose session a logout request ends. CAS servers send it as the field of a form, percent-encoded.
fn ended(body: &[u8]) -> Option<String> {
    let field = args::text(body, "logoutRequest");
    let request = field.unwrap_or_else(|| String::from_utf8_lossy(body));
    between(&request, "<samlp:SessionIndex>", "</samlp:SessionIndex>").map(str::to_owned)
}

/// What stands between the first of two marks and the next of the other.
fn between<'t>(text: &'t str, begin: &str, end: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(begin)?;
    rest.split_once(end).map(|(inside, _)| inside).filter(|inside| !inside.is_empty())
}

fn mac(secret: &str, text: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(text);
    mac
}

fn sign(secret: &str, text: &str) -> String {
    let signature: [u8; 32] = mac(secret, text.as_bytes()).finalize().into_bytes().into();
    let encode = |bytes: &[u8]| openssl::base64::encode_block(bytes).trim_end_matches('=').to_owned();
    format!("{}.{}", encode(text.as_bytes()), encode(&signature))
}

fn verify(secret: &str, signed: &str) -> Option<String> {
    let (text, signature) = signed.split_once('.')?;
    let (text, signature) = (base64::decode(text.as_bytes())?, base64::decode(signature.as_bytes())?);
    mac(secret, &text).verify_slice(&signature).ok()?;
    String::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plugin::testing::{self, Kit};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn conf(over: Value) -> Value {
        let mut conf = json!({
            "idp_uri": "http://127.0.0.1:1/cas", "cas_callback_uri": "/cas_callback", "logout_uri": "/logout",
            "cookie": {"secret": SECRET, "secure": false},
        });
        for (name, value) in over.as_object().unwrap() {
            conf[name] = value.clone();
        }
        conf
    }

    #[test]
    fn schemas_compile() {
        testing::compile_schemas::<Plugin>();
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = |over| testing::refusal::<Plugin>(conf(over));
        assert_eq!(refusal(json!({})), "");
        assert_eq!(
            refusal(json!({"cookie": {"secret": SECRET, "secure": false, "samesite": "None"}})),
            "cookie.secure must be true when cookie.samesite is \"None\""
        );
        assert!(refusal(json!({"cookie": {"secret": "short"}})).contains("string too short"));
        assert_eq!(testing::refusal::<Plugin>(json!({})), "property \"cas_callback_uri\" is required");
    }

    #[track_caller]
    fn check(kit: Kit, expected: &str, location: Option<&str>) {
        let plugin: Plugin = testing::plugin(conf(json!({})));
        kit.run(async |x| {
            let flow = contract::Plugin::access(&plugin, x).await;
            assert_eq!(testing::answer(&flow), expected);
            assert_eq!(testing::response_header(&flow, x, "location").as_deref(), location);
        });
    }

    #[test]
    fn decisions_without_a_server() {
        let login = "http://127.0.0.1:1/cas/login?service=http%3A%2F%2Fa.com%3A0%2Fcas_callback";
        check(Kit::get("/x?a=1", &[]), "302", Some(login));
        check(Kit::get("/logout", &[]), "401", None);
        let state = r#"401 {"message":"invalid callback state"}"#;
        check(Kit::get("/cas_callback?ticket=ST-1", &[]), state, None);
        check(Kit::get("/cas_callback?ticket=ST-1", &[("Cookie", "CAS_REQUEST_URI=L3g.AAAA")]), state, None);
        let evil = format!("CAS_REQUEST_URI={}", sign(SECRET, "//evil"));
        check(Kit::get("/cas_callback?ticket=ST-1", &[("Cookie", &evil)]), state, None);
        let good = format!("CAS_REQUEST_URI={}", sign(SECRET, "/x"));
        let ticket = r#"401 {"message":"invalid ticket"}"#;
        // Nobody listens there.
        check(Kit::get("/cas_callback?ticket=ST-1", &[("Cookie", &good)]), ticket, None);
        check(Kit::get("/cas_callback?ticket=a%3Bb", &[("Cookie", &good)]), ticket, None);
        let nothing = r#"400 {"message":"invalid logout request from IdP, no ticket"}"#;
        check(Kit::post("/cas_callback", "text/xml", "<a/>"), nothing, None);
        let logout = "<samlp:SessionIndex>ST-1</samlp:SessionIndex>";
        check(Kit::post("/cas_callback", "text/xml", logout), "200 ", None);
        let form = args::encode([("logoutRequest", Some(logout))]);
        check(Kit::post("/cas_callback", "application/x-www-form-urlencoded", &form), "200 ", None);
        assert_eq!(ended(form.as_bytes()).as_deref(), Some("ST-1"));
        assert_eq!(ended(b"logoutRequest=%ff&logoutRequest"), None);
    }

    #[test]
    fn paths_of_callbacks() {
        for (address, path) in [
            ("/cb", "/cb"),
            ("https://a.com/cb?x#y", "/cb"),
            ("https://a.com", "/"),
            ("https://a.com?x", "/"),
        ] {
            assert_eq!(callback_path(address), path, "{address}");
        }
    }

    #[test]
    fn browsers_stay_here() {
        for (target, safe) in [("/x?y", true), ("", false), ("//a", false), ("x", false), ("/\\a", false)] {
            assert_eq!(is_safe_redirect(target), safe, "{target}");
        }
    }

    proptest! {
        #[test]
        fn any_logout_request_is_read(body in prop::collection::vec(any::<u8>(), 0..60), ticket in "[a-zA-Z0-9-]{1,20}") {
            let _ = ended(&body);
            let request = format!("<a><samlp:SessionIndex>{ticket}</samlp:SessionIndex></a>");
            prop_assert_eq!(ended(request.as_bytes()), Some(ticket.clone()));
            let form = args::encode([("a", None), ("logoutRequest", Some(request.as_str()))]);
            prop_assert_eq!(ended(form.as_bytes()), Some(ticket));
        }

        #[test]
        fn only_own_signatures_count(text in "/\\PC{0,20}", other in "\\PC{0,40}") {
            let signed = sign(SECRET, &text);
            prop_assert_eq!(verify(SECRET, &signed), Some(text));
            prop_assert_eq!(verify("another secret", &signed), None);
            prop_assert_eq!(verify(SECRET, &other), None);
        }
    }
}
