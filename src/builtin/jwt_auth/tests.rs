//! jwt-auth as a whole: where tokens stand, whose they are, and what is said of bad ones.

use super::*;
use crate::{
    builtin::shared::jwt::key::tests::pair,
    compat::Compat,
    plugin::{
        reply::Class,
        testing::{self, Kit, Setup},
    },
};

const MISSING: &str = r#"401 {"message":"Missing JWT token in request"}"#;
const INVALID: &str = r#"401 {"message":"JWT token invalid"}"#;
const KEYLESS: &str = r#"401 {"message":"missing user key in JWT token"}"#;
const NO_USER: &str = r#"401 {"message":"Invalid user key in JWT token"}"#;
const NO: &str = r#"401 {"message":"failed to verify jwt"}"#;
const GONE: &str = r#"401 {"message":"Invalid user authorization"}"#;
const FAR: u64 = 4_102_444_800;

fn signed_as(header: Value, payload: Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let part = |part: Value| base64::encode_url(part.to_string().as_bytes());
    let signed = format!("{}.{}", part(header), part(payload));
    let signature = base64::encode_url(&sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

fn hs(secret: &str, payload: Value) -> String {
    let secret = SigningKey::from_secret(Algorithm::HS256, secret.as_bytes()).unwrap();
    signed_as(json!({"typ": "JWT", "alg": "HS256"}), payload, |text| secret.sign(text).unwrap())
}

fn jack(payload: Value) -> String {
    hs("secret-of-jack", payload)
}

fn kit(target: &str, headers: &[(&str, &str)]) -> Kit {
    Kit::get(target, headers)
        .known::<Plugin>("jack", json!({"key": "j-jack", "secret": "secret-of-jack"}))
        .known::<Plugin>("jill", json!({"key": "j-jill", "secret": "aGlsbA==", "base64_secret": true}))
        .known::<Plugin>("late", json!({"key": "late", "secret": "late", "lifetime_grace_period": 1000}))
}

/// What is said, or who is attached; and what is left of header, query and cookies.
#[track_caller]
fn check(conf: &Value, target: &str, headers: &[(&str, &str)], said: &str, left: [Option<&str>; 3]) {
    let plugin: Plugin = testing::plugin(conf.clone());
    kit(target, headers).run(async |x| {
        let answer = testing::answer(&contract::Plugin::rewrite(&plugin, x).await);
        let who = x.consumer().map_or("nobody", |consumer| &consumer.username);
        assert_eq!(if answer == "continue" { who } else { &answer }, said, "{target} {headers:?}");
        let args = Some(x.args()).filter(|args| !args.is_empty());
        assert_eq!([x.header("authorization"), args, x.header("cookie")], left, "{target} {headers:?}");
    });
}

/// A token in the header, with default configuration.
#[track_caller]
fn says(conf: Value, token: &str, said: &str) {
    check(&conf, "/", &[("Authorization", token)], said, [Some(token), None, None]);
}

#[test]
fn schemas_compile() {
    testing::compile_auth_schemas::<Plugin>();
}

#[test]
fn finds_the_token() {
    let token = jack(json!({"key": "j-jack"}));
    let (bearer, cookie) = (format!("bearer {token}"), format!("a=1; jwt={token}; b=2"));
    let query = format!("/?x=1&jwt={token}&y");
    let show = json!({});
    let args = format!("x=1&jwt={token}&y");
    check(&show, "/", &[("Authorization", &bearer)], "jack", [Some(&bearer), None, None]);
    check(&show, "/", &[("Authorization", &token)], "jack", [Some(&token), None, None]);
    check(&show, &query, &[], "jack", [None, Some(&args), None]);
    check(&show, "/", &[("Cookie", &cookie)], "jack", [None, None, Some(&cookie)]);
    check(&show, "/", &[("Cookie", "a=1")], MISSING, [None, None, Some("a=1")]);
    check(&show, &query, &[("Authorization", "x")], INVALID, [Some("x"), Some(&args), None]);
    check(&show, "/?jwt", &[], INVALID, [None, Some("jwt"), None]);
    check(&show, "/?jwt=", &[], INVALID, [None, Some("jwt="), None]);

    let hide = json!({"hide_credentials": true});
    check(&hide, "/", &[("Authorization", &bearer)], "jack", [None, None, None]);
    check(&hide, "/", &[("Authorization", "Bearer x")], INVALID, [None, None, None]);
    check(&hide, &query, &[], "jack", [None, Some("x=1&y"), None]);
    check(&hide, "/", &[("Cookie", &cookie)], "jack", [None, None, Some("a=1; b=2")]);
    check(&hide, "/", &[("Cookie", &format!("jwt={token}"))], "jack", [None, None, None]);

    let named = json!({"header": "X-T", "query": "q", "cookie": "c"});
    check(&named, "/", &[("x-t", &token)], "jack", [None, None, None]);
    check(&named, "/", &[("Authorization", &token)], MISSING, [Some(&token), None, None]);
    let cookie = format!("c={token}");
    check(&named, "/", &[("Cookie", &cookie)], "jack", [None, None, Some(&cookie)]);
}

#[test]
fn judges_tokens() {
    says(json!({}), "a.b.c", INVALID);
    says(json!({}), "Bearer", INVALID);
    says(json!({}), "", INVALID);
    let part = |text: &str| base64::encode_url(text.as_bytes());
    says(json!({}), &format!("{}.{}.x", part("{"), part("{}")), INVALID);
    says(json!({}), &format!("{}.{}.x", part("{}"), part("{} x")), INVALID);
    says(json!({}), &jack(json!({"sub": "j-jack"})), KEYLESS);
    says(json!({}), &jack(json!({"key": false})), KEYLESS);
    says(json!({}), &jack(json!("j-jack")), KEYLESS);
    says(json!({}), &jack(json!({"key": "nobody"})), NO_USER);
    says(json!({}), &jack(json!({"key": 1})), NO_USER);
    says(json!({}), &hs("other", json!({"key": "j-jack"})), NO);
    says(json!({}), &hs("hill", json!({"key": "j-jill"})), "jill");
    says(json!({}), &hs("aGlsbA==", json!({"key": "j-jill"})), NO);
    says(json!({"key_claim_name": "sub"}), &jack(json!({"sub": "j-jack"})), "jack");
    says(json!({"key_claim_name": "exp"}), &jack(json!({"exp": "j-jack"})), NO);
}

/// What kind of reason a refusal is counted under.
#[test]
fn refusals_are_told_apart() {
    let class = |token: &str| {
        let plugin: Plugin = testing::plugin(json!({}));
        kit("/", &[("Authorization", token)]).run(async |x| {
            match contract::Plugin::rewrite(&plugin, x).await {
                Flow::Break(reply) => reply.class(),
                Flow::Continue(()) => panic!("{token} was let in"),
            }
        })
    };
    assert_eq!(class("a.b.c"), Class::Malformed);
    assert_eq!(class(&jack(json!({"sub": "j-jack"}))), Class::Malformed);
    assert_eq!(class(&jack(json!({"key": "nobody"}))), Class::Unknown);
    assert_eq!(class(&hs("other", json!({"key": "j-jack"}))), Class::Wrong);
    assert_eq!(class(&jack(json!({"key": "j-jack", "exp": 1}))), Class::Expired);
    assert_eq!(class(&jack(json!({"key": "j-jack", "nbf": FAR}))), Class::Expired);
    assert_eq!(class(&jack(json!({"key": "j-jack", "exp": "soon"}))), Class::Wrong);
}

/// RFC 7519 §6.1.
#[test]
fn the_unsecured_token_of_rfc_7519_opens_nothing() {
    let token = "eyJhbGciOiJub25lIn0.\
                 eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.";
    says(json!({"key_claim_name": "iss"}), token, INVALID);
    says(json!({"key_claim_name": "iss"}), &format!("{token}AAAA"), NO_USER);
}

#[test]
fn a_secret_is_made_up_in_3_2() {
    let made_up = |compat: Compat, conf: Value| {
        let setup = Setup::new().compat(compat);
        <Plugin as AuthPlugin>::completed_consumer(&conf, &setup.check_env())
            .and_then(|conf| conf["secret"].as_str().map(str::to_owned))
    };
    let secret = made_up(Compat::V3_2, json!({"key": "k"})).expect("a secret");
    assert!(base64::decode(secret.as_bytes()).is_some_and(|bytes| bytes.len() == 32));
    assert_ne!(made_up(Compat::V3_2, json!({"key": "k"})), Some(secret));
    assert_eq!(made_up(Compat::V3_2, json!({"key": "k", "secret": "s"})), None);
    assert_eq!(made_up(Compat::V3_2, json!({"key": "k", "algorithm": "RS256"})), None);
    assert_eq!(made_up(Compat::Now, json!({"key": "k"})), None);
}

/// A file cannot be written to: the secret is the process's own, another one for each consumer.
#[test]
fn where_nothing_can_be_stored_the_secret_is_in_memory() {
    let signed = |setup: &Setup, key: &str| {
        let conf = json!({"key": key});
        match setup.credential::<Plugin>(&conf)?.keys {
            Keys::Symmetric { sign, .. } => sign.sign(b"text"),
            _ => panic!("{conf} is not symmetric"),
        }
    };
    let (one, other) = (Setup::new().compat(Compat::V3_2), Setup::new().compat(Compat::V3_2));
    assert_eq!(signed(&one, "a"), signed(&one, "a"));
    assert_ne!(signed(&one, "a"), signed(&one, "b"));
    assert_ne!(signed(&one, "a"), signed(&other, "a"));
    assert_eq!(signed(&Setup::new(), "a"), Err(NO_SECRET.into()));
}

#[test]
fn judges_times() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = |claims: Value| jack(json!({"key": "j-jack", "exp": claims[0], "nbf": claims[1]}));
    says(json!({}), &jack(json!({"key": "j-jack", "exp": FAR})), "jack");
    says(json!({}), &jack(json!({"key": "j-jack", "exp": 1})), NO);
    says(json!({}), &jack(json!({"key": "j-jack", "exp": "soon"})), NO);
    says(json!({}), &jack(json!({"key": "j-jack", "nbf": FAR})), NO);
    says(json!({}), &jack(json!({"key": "j-jack", "nbf": 1})), "jack");
    says(json!({}), &claims(json!([null, 1])), NO);
    says(json!({"claims_to_verify": []}), &jack(json!({"key": "j-jack", "exp": 1})), NO);
    says(json!({"claims_to_verify": ["exp"]}), &jack(json!({"key": "j-jack"})), NO);
    says(json!({"claims_to_verify": ["exp"]}), &claims(json!([FAR, FAR])), "jack");
    says(json!({"claims_to_verify": ["nbf"]}), &claims(json!([1, 1])), "jack");
    says(json!({"claims_to_verify": ["exp", "nbf"]}), &claims(json!([FAR, 1])), "jack");
    says(json!({}), &hs("late", json!({"key": "late", "exp": now - 900, "nbf": now + 900})), "late");
    says(json!({}), &hs("late", json!({"key": "late", "exp": now - 1100})), NO);
}

#[test]
fn the_algorithm_is_the_consumers() {
    let (private, public) = pair(Algorithm::RS256);
    let rsa = json!({"key": "rsa", "algorithm": "RS256", "public_key": public});
    let private = SigningKey::from_pem(Algorithm::RS256, &private).unwrap();
    let payload = || json!({"key": "rsa"});
    let plugin: Plugin = testing::plugin(json!({}));
    let verdict = |token: &str| {
        kit("/", &[("Authorization", token)]).known::<Plugin>("rsa", rsa.clone()).rewrite(&plugin)
    };

    let genuine = signed_as(json!({"alg": "RS256"}), payload(), |text| private.sign(text).unwrap());
    assert_eq!(verdict(&genuine), "continue");
    // The public key taken for an HMAC secret; no signature at all; another algorithm of the same key.
    let secret = SigningKey::from_secret(Algorithm::HS256, public.as_bytes()).unwrap();
    assert_eq!(
        verdict(&signed_as(json!({"alg": "HS256"}), payload(), |text| secret.sign(text).unwrap())),
        NO
    );
    for alg in ["none", "None", "RS512", "PS256", "rs256"] {
        assert_eq!(
            verdict(&signed_as(json!({"alg": alg}), payload(), |text| private.sign(text).unwrap())),
            NO
        );
    }
    let (head, _) = genuine.rsplit_once('.').unwrap();
    assert_eq!(verdict(&format!("{head}.")), INVALID);
    assert_eq!(verdict(&format!("{head}.AAAA")), NO);
    assert_eq!(verdict(&format!("{head}.!")), NO);
    // A header without algorithm, and one that is no object.
    assert_eq!(verdict(&signed_as(json!({}), payload(), |text| private.sign(text).unwrap())), NO);
    assert_eq!(verdict(&signed_as(json!([]), payload(), |text| private.sign(text).unwrap())), NO);
}

#[test]
fn genuine_signatures_are_remembered_and_others_are_not() {
    let (private, public) = pair(Algorithm::EdDSA);
    let setup = Setup::new();
    let conf = json!({"key": "k", "algorithm": "EdDSA", "public_key": public});
    let credential = setup.credential::<Plugin>(&conf).ok().unwrap();
    let private = SigningKey::from_pem(Algorithm::EdDSA, &private).unwrap();
    let token = signed_as(json!({"alg": "EdDSA"}), json!({"key": "k"}), |text| private.sign(text).unwrap());
    let forged = signed_as(json!({"alg": "EdDSA"}), json!({"key": "k"}), |_| vec![0; 64]);
    let verdict = |credential: &Credential, text: &str| {
        Kit::get("/", &[]).run(async |_| {
            credential.verify(&Token::parse(text).unwrap(), &Member::Text("EdDSA".into()), text).await.is_ok()
        })
    };
    for _ in 0..2 {
        assert!(verdict(&credential, &token));
        assert!(!verdict(&credential, &forged));
    }
    let Keys::Asymmetric { genuine, .. } = &credential.keys else { panic!("not asymmetric") };
    let print = |text: &str| genuine.fingerprint(&[b"EdDSA", &Sha256::digest(&public), text.as_bytes()]);
    assert!(genuine.has(&print(&token)) && !genuine.has(&print(&forged)));
    // Another key under the same algorithm does not profit.
    let other = json!({"key": "k", "algorithm": "EdDSA", "public_key": pair(Algorithm::EdDSA).1});
    let other = setup.credential::<Plugin>(&other).ok().unwrap();
    assert!(!verdict(&other, &token));
}

#[test]
fn published_keys_that_cannot_be_had_let_nobody_in() {
    // Port 1 of this machine has no server.
    let conf = json!({"key": "k", "algorithm": "EdDSA", "jwks_uri": "http://127.0.0.1:1/jwks"});
    let (private, _) = pair(Algorithm::EdDSA);
    let private = SigningKey::from_pem(Algorithm::EdDSA, &private).unwrap();
    let token = private.token(json!({}), &json!({"key": "k"})).unwrap();
    let kit = Kit::get("/", &[("Authorization", &token)]).known::<Plugin>("k", conf);
    assert_eq!(kit.rewrite(&testing::plugin::<Plugin>(json!({}))), NO);
}

#[test]
fn a_broken_public_key_lets_nobody_in() {
    let conf = json!({"key": "k", "algorithm": "RS256", "public_key": "junk"});
    let token = signed_as(json!({"alg": "RS256"}), json!({"key": "k"}), |_| vec![0; 256]);
    let kit = Kit::get("/", &[("Authorization", &token)]).known::<Plugin>("k", conf);
    assert_eq!(kit.rewrite(&testing::plugin::<Plugin>(json!({}))), NO);
}

#[test]
fn falls_back_to_the_anonymous_consumer() {
    says(json!({"anonymous_consumer": "jill"}), "x", "jill");
    says(json!({"anonymous_consumer": "missing"}), "x", GONE);
}

#[track_caller]
fn challenge(compat: Compat, kit: Kit, said: &str, challenge: Option<&str>) {
    let plugin: Plugin = Setup::new().compat(compat).build(json!({})).unwrap();
    kit.compat(compat).run(async |x| {
        let flow = contract::Plugin::rewrite(&plugin, x).await;
        assert_eq!(testing::answer(&flow), said);
        assert_eq!(testing::response_header(&flow, x, "www-authenticate").as_deref(), challenge);
    });
}

#[test]
fn speaks_both_versions() {
    let token = jack(json!({"key": "nobody"}));
    let headers = [("Authorization", token.as_str())];
    challenge(Compat::Now, kit("/", &[]), MISSING, Some("Bearer realm=\"jwt\""));
    challenge(Compat::Now, kit("/", &headers), NO_USER, Some("Bearer realm=\"jwt\""));
    challenge(Compat::Now, Kit::get("/", &headers), NO_USER, Some("Bearer realm=\"jwt\""));
    challenge(Compat::V3_2, kit("/", &[]), MISSING, None);
    challenge(Compat::V3_2, kit("/", &headers), NO_USER, None);
    challenge(Compat::V3_2, Kit::get("/", &headers), r#"401 {"message":"Missing related consumer"}"#, None);
}

#[track_caller]
fn consumer_refused(compat: Compat, conf: Value, expected: &str) {
    let refusal = Setup::new().compat(compat).credential::<Plugin>(&conf).err().unwrap_or_default();
    assert_eq!(refusal, expected, "{conf}");
}

#[test]
fn refuses_bad_configurations() {
    let now = Compat::Now;
    consumer_refused(now, json!({}), r#"property "key" is required"#);
    consumer_refused(
        now,
        json!({"key": ""}),
        r#"property "key" validation failed: string too short, expected at least 1, got 0"#,
    );
    consumer_refused(
        now,
        json!({"key": "k"}),
        r#"property "secret" is required when using HS based algorithms"#,
    );
    consumer_refused(
        now,
        json!({"key": "k", "secret": "!", "base64_secret": true}),
        "base64_secret required but the secret is not in base64 format",
    );
    let rsa = json!({"key": "k", "algorithm": "RS256", "public_key": "p"});
    consumer_refused(now, rsa.clone(), "");
    consumer_refused(Compat::V3_2, rsa, "missing valid private key");
    let published = |algorithm: &str, url: &str| json!({"key": "k", "algorithm": algorithm, "jwks_uri": url});
    consumer_refused(now, published("ES256", "http://127.0.0.1:1/"), "");
    consumer_refused(Compat::V3_2, published("ES256", "http://127.0.0.1:1/"), "");
    let mut symmetric = published("HS256", "http://127.0.0.1:1/");
    symmetric["secret"] = json!("s");
    consumer_refused(now, symmetric, "jwks_uri goes with public keys only");
    assert!(Setup::new().credential::<Plugin>(&published("ES256", "file:///keys")).is_err());
    assert!(
        Setup::new().credential::<Plugin>(&json!({"key": "k", "algorithm": "none", "secret": "s"})).is_err()
    );
    assert_eq!(
        testing::refusal::<Plugin>(json!({"claims_to_verify": "a"})),
        r#"property "claims_to_verify" validation failed: wrong type: expected array, got string"#
    );
}
