//! cas-auth against a CAS server of the test's own that keeps to the protocol (CAS 2.0): a login form, tickets that are
//! good once and for one service, single logout.

mod real_browser;

use std::{
    collections::HashMap,
    net::TcpListener,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use super::super::support::{
    browser::{Browser, Page, Url},
    client::{Request, Response},
    eventually,
    gateway::{Gateway, Setup, free_port},
    upstream::{Seen, Upstream, Wire},
};

/// Tickets that were given out and not yet taken: whose, and for which service.
type Tickets = Arc<Mutex<HashMap<String, (String, String)>>>;

/// A CAS server.
struct Cas {
    server: Upstream,
}

impl Cas {
    fn start() -> Self {
        let tickets = Tickets::default();
        // A port that nobody else gets when the server is gone.
        let listener = TcpListener::bind(("127.0.0.1", free_port())).expect("a free port");
        let server = Upstream::on(listener, move |seen, wire| {
            let url = Url { port: 0, target: seen.target.clone() };
            let argument = |name: &str| url.argument(name).unwrap_or_default();
            match (seen.method.as_str(), url.path()) {
                ("GET", "/cas/login") => {
                    let form =
                        format!("<form method=post action=\"{}\"><input name=username></form>", seen.target);
                    wire.answer(200, &[("Content-Type", "text/html")], form.as_bytes());
                }
                ("POST", "/cas/login") => log_in(&tickets, seen, &argument("service"), wire),
                ("GET", "/cas/serviceValidate") => {
                    let taken = tickets.lock().unwrap().remove(&argument("ticket"));
                    let known = taken.filter(|(_, service)| *service == argument("service"));
                    let text = match known {
                        Some((user, _)) => format!(
                            "<cas:serviceResponse xmlns:cas='http://www.yale.edu/tp/cas'>\n  \
                             <cas:authenticationSuccess>\n    <cas:user>{user}</cas:user>\n  \
                             </cas:authenticationSuccess>\n</cas:serviceResponse>"
                        ),
                        None => "<cas:serviceResponse xmlns:cas='http://www.yale.edu/tp/cas'>\
                                 <cas:authenticationFailure code=\"INVALID_TICKET\">no</cas:authenticationFailure>\
                                 </cas:serviceResponse>"
                            .to_owned(),
                    };
                    wire.answer(200, &[("Content-Type", "application/xml")], text.as_bytes());
                }
                ("GET", "/cas/logout") => wire.answer(200, &[], b"logged out"),
                _ => wire.answer(404, &[], b""),
            }
        });
        Self { server }
    }

    fn uri(&self) -> String {
        format!("http://{}/cas", self.server.node())
    }

    /// How often tickets were validated.
    fn validations(&self) -> usize {
        self.server.seen().iter().filter(|seen| seen.target.starts_with("/cas/serviceValidate")).count()
    }
}

/// The form was sent: back to the service with a new ticket.
fn log_in(tickets: &Tickets, seen: &Seen, service: &str, wire: &mut Wire<'_>) {
    let user = String::from_utf8_lossy(&seen.body).trim_start_matches("username=").to_owned();
    let mut tickets = tickets.lock().unwrap();
    let ticket = format!("ST-{}-cas.example.org", seen.body.len() * 1000 + tickets.len());
    tickets.insert(ticket.clone(), (user, service.to_owned()));
    let separator = if service.contains('?') { '&' } else { '?' };
    wire.answer(302, &[("Location", &format!("{service}{separator}ticket={ticket}"))], b"");
}

/// A gateway whose users log in at the CAS server.
struct Login {
    gateway: Gateway,
    upstream: Upstream,
    cas: Cas,
}

impl Login {
    #[track_caller]
    fn new(absolute: bool) -> Self {
        let (setup, cas, upstream) = (Setup::file(json!({})), Cas::start(), Upstream::echo());
        let callback = match absolute {
            true => format!("http://127.0.0.1:{}/cas_callback", setup.http()),
            false => "/cas_callback".to_owned(),
        };
        let plugin = json!({
            "idp_uri": cas.uri(), "cas_callback_uri": callback, "logout_uri": "/logout",
            "cookie": {"secret": "0123456789abcdef0123456789abcdef", "secure": false},
        });
        let route = |id: &str, uri: &str, plugin: &Value| json!({"id": id, "uri": uri, "plugins": {"cas-auth": plugin}, "upstream": upstream.resource()});
        let mut other = plugin.clone();
        other["cas_callback_uri"] = "/other/cas_callback".into();
        let routes = json!({"routes": [route("1", "/*", &plugin), route("2", "/other/*", &other)]});
        let gateway = setup.resources(routes).start();
        Self { gateway, upstream, cas }
    }

    fn url(&self, target: &str) -> Url {
        Url { port: self.gateway.ports.http, target: target.to_owned() }
    }

    #[track_caller]
    fn log_in(&self, browser: &mut Browser, target: &str) -> Page {
        let page = browser.visit(&self.url(target));
        assert_eq!(page.url.path(), "/cas/login");
        browser.submit(&page, "username=alice")
    }

    /// The CAS server ends the session of a ticket.
    #[track_caller]
    fn single_logout(&self, ticket: &str) -> Response {
        let request = format!(
            "<samlp:LogoutRequest xmlns:samlp=\"urn:oasis:names:tc:SAML:2.0:protocol\" ID=\"1\" Version=\"2.0\">\
             <samlp:SessionIndex>{ticket}</samlp:SessionIndex></samlp:LogoutRequest>"
        );
        Request::new(self.gateway.ports.http, "POST", "/cas_callback")
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(request)
            .send()
    }
}

#[test]
fn a_browser_logs_in_and_out() {
    for absolute in [true, false] {
        let login = Login::new(absolute);
        let mut browser = Browser::default();
        let first = browser.get(&login.url("/here?a=1&b=%20")).expect(302);
        let service = format!("http://127.0.0.1:{}/cas_callback", login.gateway.ports.http);
        let to = login.url("/").join(first.header("location").unwrap());
        assert_eq!((to.path(), to.argument("service")), ("/cas/login", Some(service)));
        let cookie = first.header("set-cookie").unwrap();
        assert!(
            cookie.starts_with("CAS_REQUEST_URI=") && cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax")
        );
        let page = login.log_in(&mut browser, "/here?a=1&b=%20");
        assert_eq!((page.response.status, page.url.target.as_str()), (200, "/here?a=1&b=%20"));
        assert_eq!(login.upstream.last().target, "/here?a=1&b=%20");
        browser.get(&login.url("/again")).expect(200);
        assert_eq!(login.cas.validations(), 1);
        // The session is for this CAS server and callback, and its cookie does not tell the ticket.
        let (name, id) = browser.cookies("CAS_SESSION_").pop().expect("a session");
        assert!(!id.contains("ST-"));
        browser.get(&login.url("/other/x")).expect(302);
        browser
            .get(&login.url("/logout"))
            .expect(302)
            .expect_header("Location", &format!("{}/logout", login.cas.uri()));
        assert!(browser.cookies("CAS_SESSION_").is_empty());
        browser.set_cookie(&name, &id);
        browser.get(&login.url("/here")).expect(302);
        login.gateway.get("/logout").expect(401);
    }
}

#[test]
fn the_server_ends_sessions() {
    let login = Login::new(true);
    let mut browser = Browser::default();
    login.log_in(&mut browser, "/x").response.expect(200);
    let seen = login.cas.server.seen();
    let validated = seen.iter().find(|seen| seen.target.starts_with("/cas/serviceValidate")).unwrap();
    let ticket = Url { port: 0, target: validated.target.clone() }.argument("ticket").unwrap();
    login.single_logout("ST-unknown").expect(200);
    browser.get(&login.url("/x")).expect(200);
    let before = login.upstream.count();
    login.single_logout(&ticket).expect(200).expect_body("");
    browser.get(&login.url("/x")).expect(302);
    assert_eq!(login.upstream.count(), before);
    let request = Request::new(login.gateway.ports.http, "POST", "/cas_callback").body("nothing").send();
    request.expect(400).expect_body("{\"message\":\"invalid logout request from IdP, no ticket\"}\n");
}

#[test]
fn tickets_are_good_once_and_for_one_browser() {
    let login = Login::new(true);
    let mut browser = Browser::default();
    let page = browser.visit(&login.url("/x"));
    let sent = browser.send("POST", &page.url, |request| request.body("username=alice"));
    let back = login.url("/").join(sent.header("location").unwrap());
    // Somebody else's browser did not begin this login.
    let state = "{\"message\":\"invalid callback state\"}\n";
    Browser::default().get(&back).expect(401).expect_body(state);
    let invalid = "{\"message\":\"invalid ticket\"}\n";
    browser.get(&login.url("/cas_callback?ticket=ST-guessed")).expect(401).expect_body(invalid);
    browser.get(&back).expect(302).expect_header("Location", "/x");
    let mut another = Browser::default();
    another.visit(&login.url("/y"));
    another.get(&back).expect(401).expect_body(invalid);
}

#[test]
fn a_server_that_is_down_lets_nobody_in() {
    let login = Login::new(true);
    let mut browser = Browser::default();
    let page = browser.visit(&login.url("/x"));
    let sent = browser.send("POST", &page.url, |request| request.body("username=alice"));
    let back = login.url("/").join(sent.header("location").unwrap());
    let port = login.cas.server.port;
    drop(login.cas);
    eventually("it is gone", || std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    let answer = browser.get(&Url { port: login.gateway.ports.http, target: back.target });
    answer.expect(401).expect_body("{\"message\":\"invalid ticket\"}\n");
    let log = login.gateway.stderr();
    assert!(log.contains(&format!("no connection to 127.0.0.1:{port}")), "{log}");
    assert_eq!(login.upstream.count(), 0);
}
