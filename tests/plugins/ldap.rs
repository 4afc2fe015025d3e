//! ldap-auth and ldap-auth-advanced against a real OpenLDAP: who is let in, and what the log says of the others.

use serde_json::{Value, json};

use super::{Fixture, message};
use crate::support::{
    client::{Response, base64},
    eventually,
    gateway::Setup,
    slapd::{ADMIN, BASE, GROUPS, Slapd},
    upstream::Upstream,
};

const DENIED: &str = "Invalid user authorization";

fn consumers() -> Value {
    let dn = |cn: &str| format!("cn={cn},{BASE}");
    let consumer = |username: &str, dn: String| {
        // A search finds the name as the directory writes it.
        let found = dn.replace(r"\,", r"\2C");
        let plugins = json!({"ldap-auth": {"user_dn": dn}, "ldap-auth-advanced": {"user_dn": found}});
        json!({"username": username, "plugins": plugins})
    };
    json!([
        consumer("user01", dn("user01")),
        consumer("user02", dn("user02")),
        consumer("comma", dn(r"comma\,user")),
        consumer("deep", format!("cn=Deep Down,ou=staff,{BASE}")),
        consumer("secret", dn("secretuser")),
    ])
}

fn with(plugin: &str, conf: Value) -> Fixture {
    Fixture::with_consumers(json!({ plugin: conf }), consumers())
}

/// A configuration with the address and the base filled in.
fn conf(address: String, more: Value) -> Value {
    let mut conf = json!({"ldap_uri": address, "base_dn": BASE});
    for (key, value) in more.as_object().expect("an object") {
        conf[key] = value.clone();
    }
    conf
}

#[track_caller]
fn login(fixture: &Fixture, scheme: &str, credentials: &str) -> Response {
    let header = format!("{scheme} {}", base64(credentials.as_bytes()));
    fixture.get("/", &[("Authorization", &header)])
}

#[track_caller]
fn let_in(fixture: &Fixture, scheme: &str, credentials: &str, consumer: &str) {
    login(fixture, scheme, credentials).expect(200);
    assert_eq!(fixture.upstream.last().header("x-consumer-username"), Some(consumer), "{credentials}");
}

#[track_caller]
fn refused(response: Response, text: &str) {
    response
        .expect(401)
        .expect_header("WWW-Authenticate", "Basic realm=\"ldap\"")
        .expect_body(&message(text));
}

#[test]
fn ldap_auth() {
    let slapd = Slapd::start();
    let fixture = with("ldap-auth", conf(slapd.address(), json!({})));
    refused(fixture.get("/", &[]), "Missing authorization in request");
    refused(fixture.get("/", &[("Authorization", "Bad_header x")]), "Invalid authorization in request");
    refused(fixture.get("/", &[("Authorization", "Basic aca_a")]), "Invalid authorization in request");
    refused(login(&fixture, "Basic", "user01"), "Invalid authorization in request");
    refused(login(&fixture, "Basic", "user01:wrong"), DENIED);
    refused(login(&fixture, "Basic", "nobody:password1"), DENIED);
    // Confirmed by the directory, but nobody's.
    refused(login(&fixture, "Basic", "jdoe:janesecret"), DENIED);
    // The directory would call a bind without a password a success.
    refused(login(&fixture, "Basic", "user01:"), "Invalid authorization in request");
    refused(login(&fixture, "Basic", "user01: "), DENIED);
    assert_eq!(fixture.upstream.count(), 0);
    let_in(&fixture, "Basic", "user01:password1", "user01");
    let_in(&fixture, "bASiC", "user02:pass:word2", "user02");
    assert!(fixture.upstream.last().header("authorization").is_some());
    let said = fixture.gateway.stderr();
    assert!(said.contains("the directory refuses the name or the password"), "{said}");
    assert!(!said.contains("password1") && !said.contains("janesecret"), "{said}");
}

#[test]
fn ldap_auth_escapes_the_name() {
    let slapd = Slapd::start();
    let fixture = with("ldap-auth", conf(slapd.address(), json!({})));
    let_in(&fixture, "Basic", "comma,user:commapass", "comma");
    // Would be user01's entry if the comma cut the name off.
    let shorter = json!({"ldap_uri": slapd.address(), "base_dn": "dc=example,dc=org"});
    let fixture = with("ldap-auth", shorter);
    refused(login(&fixture, "Basic", "user01,ou=users:password1"), DENIED);
    let fixture =
        with("ldap-auth", conf(slapd.address(), json!({"uid": "cn=user01,ou=x", "hide_credentials": true})));
    refused(login(&fixture, "Basic", "user01:password1"), DENIED);
}

#[test]
fn ldap_auth_hides_credentials_and_needs_consumers() {
    let slapd = Slapd::start();
    let hiding = json!({"hide_credentials": true, "realm": "staff"});
    let fixture = with("ldap-auth", conf(slapd.address(), hiding));
    let_in(&fixture, "Basic", "user01:password1", "user01");
    assert_eq!(fixture.upstream.last().header("authorization"), None);
    fixture.get("/", &[]).expect(401).expect_header("WWW-Authenticate", "Basic realm=\"staff\"");
    let alone = Fixture::new(json!({"ldap-auth": conf(slapd.address(), json!({}))}));
    refused(login(&alone, "Basic", "user01:password1"), "Missing related consumer");
}

#[test]
fn ldap_auth_over_tls() {
    let slapd = Slapd::start();
    let tls = |verify: bool| {
        let plugin =
            json!({"ldap-auth": conf(slapd.tls_address(), json!({"use_tls": true, "tls_verify": verify}))});
        let upstream = Upstream::echo();
        let route = json!({"id": "1", "uri": "/*", "plugins": plugin, "upstream": upstream.resource()});
        (upstream, Setup::file(json!({"routes": [route], "consumers": consumers()})))
    };
    let fixture = |(upstream, setup): (Upstream, Setup)| Fixture { gateway: setup.start(), upstream };
    let lax = fixture(tls(false));
    let_in(&lax, "Basic", "user01:password1", "user01");
    refused(login(&lax, "Basic", "user01:wrong"), DENIED);
    // Nobody trusts the authority of the tests.
    let strict = fixture(tls(true));
    refused(login(&strict, "Basic", "user01:password1"), DENIED);
    assert!(strict.gateway.stderr().contains("certificate verify failed"), "{}", strict.gateway.stderr());
    let (upstream, setup) = tls(true);
    let trusting = fixture((upstream, setup.set("apisix.ssl.ssl_trusted_certificate", slapd.authority())));
    let_in(&trusting, "Basic", "user01:password1", "user01");
    // TLS where the directory speaks none.
    let wrong = with("ldap-auth", conf(slapd.address(), json!({"use_tls": true})));
    refused(login(&wrong, "Basic", "user01:password1"), DENIED);
}

#[test]
fn ldap_connections_wait_for_the_next_request_and_are_replaced() {
    let mut slapd = Slapd::start();
    let fixture = with("ldap-auth", conf(slapd.address(), json!({})));
    for _ in 0..5 {
        let_in(&fixture, "Basic", "user01:password1", "user01");
        refused(login(&fixture, "Basic", "user01:wrong"), DENIED);
    }
    assert_eq!(slapd.connections(), 1, "one after the other needs one connection");
    slapd.restart();
    let_in(&fixture, "Basic", "user01:password1", "user01");
    slapd.stop();
    refused(login(&fixture, "Basic", "user01:password1"), DENIED);
    let said = fixture.gateway.stderr();
    assert!(said.contains("no answer from the directory"), "{said}");
}

#[test]
fn ldap_connections_are_closed_in_the_end() {
    let slapd = Slapd::start();
    let brief = conf(slapd.address(), json!({"attribute": "uid", "keepalive_timeout": 1000}));
    let fixture = with("ldap-auth-advanced", brief);
    let_in(&fixture, "ldap", "user01:password1", "user01");
    eventually("the connection that nobody uses is closed", || slapd.connections() == 0);
    let single = conf(slapd.address(), json!({"attribute": "uid", "keepalive": false}));
    let fixture = with("ldap-auth-advanced", single);
    let_in(&fixture, "ldap", "user01:password1", "user01");
    eventually("no connection is kept", || slapd.connections() == 0);
}

#[test]
fn ldap_auth_advanced() {
    let slapd = Slapd::start();
    let fixture = with("ldap-auth-advanced", conf(slapd.address(), json!({"attribute": "uid"})));
    let no = |response: Response| {
        let text = message("Authorization required");
        response.expect(401).expect_header("WWW-Authenticate", "ldap realm=\"ldap\"").expect_body(&text);
    };
    no(fixture.get("/", &[]));
    no(fixture.get("/", &[("Authorization", "ldap aca_a")]));
    for credentials in ["user01", "user01:", ":x", "user01:wrong", "nobody:x", "jdoe:janesecret"] {
        no(login(&fixture, "ldap", credentials));
    }
    no(login(&fixture, "Basic", "user01:password1"));
    // None of these widens the search.
    for user in ["*", "*)(objectClass=*", "(", ")", "\\", "\0", "héllo", "admin~", "user0*"] {
        no(login(&fixture, "ldap", &format!("{user}:x")));
    }
    assert_eq!(fixture.upstream.count(), 0);
    let said = fixture.gateway.stderr();
    assert!(said.contains("user not found") && !said.contains("ambiguous"), "{said}");
    let_in(&fixture, "LDAP", "user01:password1", "user01");
    let_in(&fixture, "ldap", "user02:pass:word2", "user02");
    let_in(&fixture, "ldap", "comma,user:commapass", "comma");
    let_in(&fixture, "ldap", "deep:deeppass", "deep");
    // The proxy's header comes first, if it is of use.
    let header = |credentials: &str| format!("ldap {}", base64(credentials.as_bytes()));
    let (proxy, own) = (header("user01:password1"), header("user02:pass:word2"));
    fixture.get("/", &[("Proxy-Authorization", &proxy), ("Authorization", &own)]).expect(200);
    assert_eq!(fixture.upstream.last().header("x-consumer-username"), Some("user01"));
    fixture.get("/", &[("Proxy-Authorization", "Basic eDp5"), ("Authorization", &own)]).expect(200);
    assert_eq!(fixture.upstream.last().header("x-consumer-username"), Some("user02"));
}

#[test]
fn ldap_auth_advanced_without_a_consumer() {
    let slapd = Slapd::start();
    let conf = |consumer: bool| {
        json!({"ldap-auth-advanced": conf(slapd.address(), json!({
            "attribute": "uid", "consumer_required": consumer, "header_type": "basic"}))})
    };
    let fixture = Fixture::new(conf(false));
    let header = format!("Basic {}", base64(b"jdoe:janesecret"));
    let forged = [("Authorization", header.as_str()), ("X-Authenticated-Groups", "admins")];
    fixture.get("/", &forged).expect(200);
    let seen = fixture.upstream.last();
    assert_eq!((seen.header("x-consumer-username"), seen.header("x-authenticated-groups")), (None, None));
    login(&fixture, "Basic", "jdoe:wrong")
        .expect(401)
        .expect_header("WWW-Authenticate", "Basic realm=\"ldap\"");
    let fixture = Fixture::new(conf(true));
    login(&fixture, "Basic", "jdoe:janesecret").expect(401);
    assert!(fixture.gateway.stderr().contains("no consumer has ldap-auth-advanced"));
}

#[test]
fn ldap_auth_advanced_searches_as_a_service() {
    let slapd = Slapd::start();
    let anonymous = with("ldap-auth-advanced", conf(slapd.address(), json!({"attribute": "uid"})));
    let_in(&anonymous, "ldap", "user01:password1", "user01");
    // Hidden from the anonymous, also when the connection was user01's just before.
    login(&anonymous, "ldap", "secretuser:secretpass").expect(401);
    let (name, password) = ADMIN;
    let service = |password: &str| json!({"attribute": "uid", "bind_dn": name, "ldap_password": password});
    let fixture = with("ldap-auth-advanced", conf(slapd.address(), service(password)));
    let_in(&fixture, "ldap", "secretuser:secretpass", "secret");
    login(&fixture, "ldap", "secretuser:wrong").expect(401);
    // The service's own password is no matter of the client's.
    let fixture = with("ldap-auth-advanced", conf(slapd.address(), service("rotated")));
    login(&fixture, "ldap", "secretuser:secretpass").expect(500);
    let said = fixture.gateway.stderr();
    assert!(
        said.contains("the bind for the search failed with result 49") && !said.contains("rotated"),
        "{said}"
    );
}

#[test]
fn ldap_auth_advanced_is_sure_whom_it_found() {
    let slapd = Slapd::start();
    let search = |more: Value| with("ldap-auth-advanced", conf(slapd.address(), more));
    let fixture = search(json!({"attribute": "departmentNumber", "size_limit": 5}));
    login(&fixture, "ldap", "sales:password1").expect(401);
    assert!(fixture.gateway.stderr().contains("ambiguous user match"));
    let fixture = search(json!({"attribute": "objectClass"}));
    login(&fixture, "ldap", "inetOrgPerson:password1").expect(401);
    assert!(fixture.gateway.stderr().contains("ambiguous user match"));
    // Faults of the directory are not the client's.
    let fixture = search(json!({"attribute": "uid", "base_dn": "dc=nowhere"}));
    login(&fixture, "ldap", "user01:password1").expect(500);
    let gone = with("ldap-auth-advanced", conf("127.0.0.1:1".into(), json!({"timeout": 30000})));
    login(&gone, "ldap", "user01:password1").expect(500);
}

#[test]
fn ldap_auth_advanced_may_be_one_of_several() {
    let slapd = Slapd::start();
    let directory = conf(slapd.address(), json!({"attribute": "uid"}));
    let plugins =
        json!({"multi-auth": {"auth_plugins": [{"ldap-auth-advanced": directory}, {"basic-auth": {}}]}});
    let mut people = consumers();
    let own = json!({"username": "own", "plugins": {"basic-auth": {"username": "own", "password": "pw"}}});
    people.as_array_mut().expect("a list").push(own);
    let fixture = Fixture::with_consumers(plugins, people);
    let_in(&fixture, "ldap", "user01:password1", "user01");
    let_in(&fixture, "Basic", "own:pw", "own");
    let refused =
        login(&fixture, "ldap", "user01:").expect(401).expect_body(&message("Authorization Failed"));
    refused.expect_header("WWW-Authenticate", "Basic realm=\"basic\"");
}

#[test]
fn ldap_auth_advanced_over_tls() {
    let slapd = Slapd::start();
    let ldaps = |more: Value| {
        let mut conf = conf(slapd.tls_address(), json!({"attribute": "uid", "use_ldaps": true}));
        conf["ssl_verify"] = more;
        with("ldap-auth-advanced", conf)
    };
    let_in(&ldaps(json!(false)), "ldap", "user01:password1", "user01");
    let strict = ldaps(json!(true));
    login(&strict, "ldap", "user01:password1").expect(500);
    assert!(strict.gateway.stderr().contains("certificate verify failed"), "{}", strict.gateway.stderr());
    let upgrading = json!({"attribute": "uid", "use_starttls": true, "ssl_verify": false});
    let fixture = with("ldap-auth-advanced", conf(slapd.address(), upgrading));
    let_in(&fixture, "ldap", "user01:password1", "user01");
    login(&fixture, "ldap", "user01:wrong").expect(401);
}

#[test]
fn ldap_auth_advanced_with_groups() {
    let slapd = Slapd::start();
    let (service, password) = ADMIN;
    let with_groups = |more: Value| {
        let mut all = json!({
            "header_type": "basic", "attribute": "uid", "bind_dn": service, "ldap_password": password,
            "group_base_dn": GROUPS,
        });
        for (name, value) in more.as_object().expect("an object") {
            all[name] = value.clone();
        }
        with("ldap-auth-advanced", conf(slapd.address(), all))
    };
    let told =
        |fixture: &Fixture| fixture.upstream.last().header("x-authenticated-groups").map(str::to_owned);
    let fixture = with_groups(json!({}));
    let_in(&fixture, "Basic", "user01:password1", "user01");
    assert_eq!(told(&fixture).as_deref(), Some("staff"));
    let_in(&fixture, "Basic", "comma,user:commapass", "comma");
    assert_eq!(told(&fixture).as_deref(), Some("staff"));
    let_in(&fixture, "Basic", "deep:deeppass", "deep");
    assert_eq!(told(&fixture), None);

    let fixture = with_groups(json!({"groups_required": ["admins", "owners"]}));
    let_in(&fixture, "Basic", "user02:pass:word2", "user02");
    assert!(told(&fixture).is_some_and(|groups| groups.split(", ").any(|group| group == "admins")));
    let outside = message("The user is in none of the required groups");
    login(&fixture, "Basic", "user01:password1").expect(403).expect_body(&outside);
    // Whoever does not know the password learns nothing of groups.
    login(&fixture, "Basic", "user01:wrong").expect(401).expect_body(&message("Authorization required"));
}
