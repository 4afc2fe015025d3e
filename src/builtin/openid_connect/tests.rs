//! What needs no provider: configurations, headers, addresses, sessions.

use super::*;
use crate::{
    compat::Compat,
    plugin::testing::{self, Kit},
};

fn conf(over: Value) -> Value {
    let mut conf = json!({
        "client_id": "app", "client_secret": "s", "discovery": "http://127.0.0.1:1/d",
        "session": {"secret": "0123456789abcdef"},
    });
    for (name, value) in over.as_object().unwrap() {
        match value {
            Value::Null => drop(conf.as_object_mut().unwrap().remove(name)),
            value => conf[name] = value.clone(),
        }
    }
    conf
}

#[test]
fn schemas_compile() {
    testing::compile_schemas::<Plugin>();
}

#[track_caller]
fn refused(over: Value, expected: &str) {
    assert_eq!(testing::refusal::<Plugin>(conf(over.clone())), expected, "{over}");
}

#[test]
fn very_old_configurations() {
    let setup = |compat: Compat| testing::Setup::new().compat(compat);
    let built =
        |compat: Compat, over: Value| setup(compat).build::<Plugin>(conf(over)).map(|plugin| plugin.conf);
    let verifies = |compat: Compat, over: Value| built(compat, over).unwrap().verifies();
    assert!(verifies(Compat::Now, json!({})) && !verifies(Compat::V3_2, json!({})));
    assert!(verifies(Compat::V3_2, json!({"ssl_verify": true})));
    assert!(!verifies(Compat::Now, json!({"ssl_verify": "no"})));
    refused(
        json!({"ssl_verify": "yes"}),
        "property \"ssl_verify\" validation failed: wrong type: expected boolean, got string",
    );

    let secret = |over: Value| built(Compat::V3_2, over).unwrap().session.map(|session| session.secret);
    let derived = secret(json!({"session": null})).expect("a secret");
    assert_eq!(secret(json!({"session": null})), Some(derived.clone()));
    assert_ne!(secret(json!({"session": null, "client_secret": "t"})), Some(derived.clone()));
    assert!(derived.len() >= 32 && !derived.contains("s3cret"));
    assert_eq!(secret(json!({"session": null, "bearer_only": true})), None);
    assert_eq!(secret(json!({})).as_deref(), Some("0123456789abcdef"));

    let completed = |compat: Compat, over: Value| {
        let setup = setup(compat);
        <Plugin as contract::Plugin>::completed(&conf(over), &setup.check_env()).unwrap()
    };
    assert_eq!(completed(Compat::Now, json!({"ssl_verify": "no"}))["ssl_verify"], false);
    assert_eq!(completed(Compat::Now, json!({})), conf(json!({})));
    let written = completed(Compat::V3_2, json!({"session": null}));
    assert_eq!(written["ssl_verify"], false);
    assert!(written["session"]["secret"].as_str().is_some_and(|secret| secret.len() >= 32));
}

#[test]
fn refuses_bad_configurations() {
    let session = "property \"session.secret\" is required when \"bearer_only\" is false";
    let secret = "property \"client_secret\" is required";
    refused(json!({}), "");
    refused(json!({"session": null, "client_id": 1}), session);
    refused(json!({"session": null, "bearer_only": true}), "");
    refused(json!({"client_secret": null}), secret);
    refused(json!({"client_secret": null, "bearer_only": true}), secret);
    refused(json!({"client_secret": null, "bearer_only": true, "use_jwks": true}), "");
    refused(json!({"client_secret": null, "use_jwks": true}), secret);
    refused(json!({"client_secret": null, "use_pkce": true}), "");
    refused(json!({"client_id": null}), "property \"client_id\" is required");
    refused(json!({"use_par": true}), "property \"use_par\" is not allowed, use \"par.enabled\" instead");
    let assertion =
        json!({"token_endpoint_auth_method": "client_secret_jwt", "client_jwt_assertion_alg": "RS256"});
    refused(
        assertion,
        "property \"client_jwt_assertion_alg\" \"RS256\" is asymmetric and cannot be used with the \
         client_secret_jwt selected by \"token_endpoint_auth_method\"",
    );
    let par = json!({"par": {"enabled": true, "endpoint_auth_method": "private_key_jwt"}});
    refused(
        par,
        "property \"par.endpoint_auth_method\" \"private_key_jwt\" requires \"client_rsa_private_key\" when \
         \"par.enabled\" is true",
    );
    let dpop = |jwk: Value| json!({"dpop": {"enabled": true, "private_key": "x", "public_jwk": jwk}});
    let failed = "property \"dpop.public_jwk\" validation failed";
    refused(dpop(json!({"kty": "oct"})), &format!("{failed}: kty \"oct\" is not supported"));
    refused(dpop(json!({"kty": "EC", "crv": "P-256"})), &format!("{failed}: kty \"EC\" requires crv, x, y"));
    let odd = json!({"kty": "EC", "crv": "P-256", "x": 1, "y": "a"});
    refused(dpop(odd), &format!("{failed}: \"x\" must be a non-empty string"));
    let rsa = json!({"kty": "RSA", "n": "a", "e": "b"});
    refused(dpop(rsa), "property \"dpop.signing_alg\" \"ES256\" requires an EC \"dpop.public_jwk\"");
    let curve = json!({"kty": "EC", "crv": "P-384", "x": "a", "y": "b"});
    refused(
        dpop(curve),
        "property \"dpop.signing_alg\" \"ES256\" requires \"dpop.public_jwk\" crv \"P-256\", got \"P-384\"",
    );
    // As in APISIX, a key that nobody can read is found out when it is needed.
    refused(json!({"public_key": "no key", "client_rsa_private_key": "no key"}), "");
    refused(
        json!({"session": {"secret": "0123456789abcdef", "cookie_name": "a b"}}),
        "session: the cookie's name, path or domain cannot stand in a cookie",
    );
}

#[test]
fn a_key_pair_must_be_one() {
    use openssl::{
        ec::{EcGroup, EcKey},
        nid::Nid,
        pkey::PKey,
    };
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let pem = || {
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        String::from_utf8(key.private_key_to_pem_pkcs8().unwrap()).unwrap()
    };
    let jwk = json!({"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"});
    let text = testing::refusal::<Plugin>(conf(
        json!({"dpop": {"enabled": true, "private_key": pem(), "public_jwk": jwk}}),
    ));
    assert!(
        text.starts_with(
            "property \"dpop.public_jwk\" is not the public key of \"dpop.private_key\": x is \""
        )
    );
    let method = |algorithm: &str| {
        conf(json!({
            "token_endpoint_auth_method": "private_key_jwt", "client_rsa_private_key": pem(),
            "client_jwt_assertion_alg": algorithm,
        }))
    };
    assert_eq!(testing::refusal::<Plugin>(method("ES256")), "");
    assert_eq!(
        testing::refusal::<Plugin>(method("ES512")),
        "property \"client_jwt_assertion_alg\" \"ES512\" requires a \"client_rsa_private_key\" on curve \"P-521\", \
         got \"P-256\""
    );
    assert_eq!(
        testing::refusal::<Plugin>(method("RS256")),
        "property \"client_jwt_assertion_alg\" \"RS256\" requires an RSA \"client_rsa_private_key\""
    );
}

#[test]
fn paths_of_addresses() {
    for (address, path) in
        [("https://a.com/b/c?d", "/b/c"), ("https://a.com", "/"), ("/b?c", "/b"), ("http://a.com:80/b", "/b")]
    {
        assert_eq!(path_of(address), path, "{address}");
    }
}

#[test]
fn what_clients_say_of_themselves_is_taken_away() {
    let plugin: Plugin = testing::plugin(conf(json!({"unauth_action": "pass"})));
    let forged = [
        ("X-Access-Token", "a"),
        ("X-Userinfo", "b"),
        ("X-ID-Token", "c"),
        ("X-Refresh-Token", "d"),
        ("X-Raw-ID-Token", "e"),
        ("X-Other", "f"),
    ];
    Kit::get("/", &forged).run(async |x| {
        let flow = contract::Plugin::rewrite(&plugin, x).await;
        assert_eq!(testing::answer(&flow), "continue");
        let left: Vec<_> = testing::headers(x).keys().map(|name| name.as_str()).collect();
        assert_eq!(left, ["host", "x-other"]);
    });
}

#[track_caller]
fn answered(conf: Value, headers: &[(&str, &str)], expected: &str) {
    let plugin: Plugin = testing::plugin(conf);
    assert_eq!(Kit::get("/", headers).rewrite(&plugin), expected, "{headers:?}");
}

#[test]
fn requests_that_bring_nothing_good() {
    let bearer = || conf(json!({"bearer_only": true, "use_jwks": true, "session": null}));
    answered(bearer(), &[], "401");
    answered(bearer(), &[("Authorization", "Bearer")], "400");
    answered(bearer(), &[("Authorization", "Basic x")], "401");
    answered(bearer(), &[("Authorization", "Bearer a.b.c")], "401");
    answered(conf(json!({"unauth_action": "deny"})), &[("Cookie", "session=x; session_y=z")], "401");
    // The provider is not there.
    answered(conf(json!({})), &[], "500");
}

/// The cookies that a response sets, as the browser would send them.
fn jar(x: &Exchange<'_>) -> String {
    let set = x.ctx.response_headers.iter().filter(|field| field.name == header::SET_COOKIE);
    let pairs = set.map(|field| field.value.to_str().unwrap().split(';').next().unwrap().to_owned());
    pairs.collect::<Vec<_>>().join("; ")
}

fn sessions(over: Value) -> Sessions {
    let config: Config = serde_json::from_value(conf(over)).unwrap();
    Sessions::new(&config).unwrap().unwrap()
}

#[test]
fn sessions_open_only_for_whom_they_were_made() {
    let own = sessions(json!({}));
    let cookie = Kit::get("/", &[]).run(async |x| {
        let mut login = Login::new("a.b.c", "/x");
        login.refresh_token = Some("r".repeat(9000));
        own.begin(x, login, None).await.unwrap();
        jar(x)
    });
    assert_eq!(cookie.matches("session").count(), 4, "{cookie}");
    let opens = |sessions: &Sessions, cookie: &str| {
        Kit::get("/", &[("Cookie", cookie)]).run(async |x| {
            sessions.load(x).await.unwrap().is_some_and(|session| session.login.id_token == "a.b.c")
        })
    };
    assert!(opens(&own, &cookie));
    assert!(!opens(&sessions(json!({"client_id": "other"})), &cookie));
    assert!(!opens(&sessions(json!({"discovery": "http://other/"})), &cookie));
    assert!(!opens(&sessions(json!({"session": {"secret": "fedcba9876543210"}})), &cookie));
    assert!(!opens(&own, &cookie.replace("session2=", "session2=A")));
    assert!(!opens(&own, cookie.split("; session3").next().unwrap()));
}

#[test]
fn few_logins_are_under_way() {
    let own = sessions(json!({}));
    let pending = |state: &str| session::Pending::new(state.into(), None, None, "/x".into());
    let mut cookies = String::new();
    for round in 0..8 {
        cookies = Kit::get("/", &[("Cookie", &*cookies)]).run(async |x| {
            own.pend(x, pending(&format!("state{round}"))).unwrap();
            let gone: Vec<_> =
                jar(x).split("; ").filter_map(|one| one.strip_suffix('=').map(str::to_owned)).collect();
            let kept = cookies.split("; ").filter(|one| !gone.iter().any(|name| one.starts_with(name)));
            let set = jar(x);
            let set = set.split("; ").filter(|one| !one.ends_with('='));
            kept.chain(set).filter(|one| !one.is_empty()).collect::<Vec<_>>().join("; ")
        });
    }
    assert_eq!(cookies.split("; ").count(), 4, "{cookies}");
    Kit::get("/", &[("Cookie", &*cookies)]).run(async |x| {
        assert!(own.pending(x, "state7").is_some());
        assert!(own.pending(x, "state").is_none());
    });
}
