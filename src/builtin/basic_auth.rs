//! basic-auth: user name and password of the Authorization header (RFC 7617).
//!
//! APISIX: plugins/basic-auth.lua. Invariant: a password is compared in constant time, is never logged, never part
//! of an error, and an empty one never lets anybody in.
//!
//! Differs from APISIX: the password begins after the first colon and may contain more of them (there it ends at
//! the second), and a stored password may be an argon2id or bcrypt hash.

use std::sync::Arc;

use argon2::{Argon2, PasswordVerifier, password_hash::PasswordHashString};
use http::header::AUTHORIZATION;
use serde::Deserialize;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::shared::{
    auth::{self, Failure, Fallback},
    base64, basic,
    seen::Seen,
};
use crate::plugin::{
    consumer::Authenticated,
    contract::{self, AuthPlugin},
    env::{BuildEnv, CheckEnv},
    exchange::Exchange,
    phases::Phases,
    reply::{CONTINUE, Flow},
};

const MALFORMED: &str = "Invalid authorization in request";
const DENIED: &str = "Invalid user authorization";

/// Outcomes of hashed passwords that are remembered, each way.
const REMEMBERED: usize = 4096;

/// How many passwords are hashed at once: each takes tens of MiB and of milliseconds, and a stranger may ask for it.
static HASHING: Semaphore = Semaphore::const_new(4);

/// The route's side.
#[derive(Deserialize)]
pub struct Config {
    /// Whether the upstream does not get to see the Authorization header.
    #[serde(default)]
    pub hide_credentials: bool,
    /// What the challenge of a 401 names.
    #[serde(default = "default_realm")]
    pub realm: String,
    /// The consumer that stands for everybody who fails.
    pub anonymous_consumer: Option<String>,
}

fn default_realm() -> String {
    "basic".into()
}

/// The compiled route's side.
pub struct Plugin {
    hide_credentials: bool,
    any_case: bool,
    fallback: Fallback,
}

/// The consumer's side: a password to compare with.
pub struct Credential {
    password: Password,
}

enum Password {
    Plain(Box<[u8]>),
    Hashed(Arc<Hashed>),
}

struct Hashed {
    hash: Hash,
    outcomes: Arc<Outcomes>,
}

enum Hash {
    Argon2(PasswordHashString),
    Bcrypt(Box<str>),
}

/// What hashing found before, for all consumers.
struct Outcomes {
    right: Seen,
    wrong: Seen,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "basic-auth";
    const PRIORITY: i32 = 2520;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "title": "work with route or service object",
            "properties": {
                "hide_credentials": {"type": "boolean", "default": false},
                "realm": auth::realm_schema("basic"),
                "anonymous_consumer": auth::anonymous_schema()
            }
        })
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let anonymous = config.anonymous_consumer;
        Ok(Self {
            hide_credentials: config.hide_credentials,
            any_case: env.compat.scheme_ignores_case(),
            fallback: Fallback::new(Self::NAME, "Basic", &config.realm, anonymous, env.compat)?,
        })
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        let flow = match self.find(x).await {
            Ok(found) => {
                x.attach(found);
                CONTINUE
            }
            Err(failure) => self.fallback.settle(x, failure),
        };
        if self.hide_credentials && flow.is_continue() {
            x.remove_header(&AUTHORIZATION);
        }
        flow
    }
}

impl AuthPlugin for Plugin {
    type Credential = Credential;
    const KEY: &'static str = "username";
    const ENCRYPT_CREDENTIAL: &'static [&'static str] = &["password"];

    fn consumer_schema() -> Value {
        json!({
            "type": "object",
            "title": "work with consumer object",
            "properties": {
                "username": {"type": "string"},
                "password": {"type": "string"}
            },
            "encrypt_fields": ["password"],
            "required": ["username", "password"]
        })
    }

    fn check_consumer(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        hash(password(conf)).map(|_| ())
    }

    fn credential(conf: &Value, env: &BuildEnv<'_>) -> Result<Credential, String> {
        let password = password(conf);
        let password = match hash(password)? {
            Some(hash) => Password::Hashed(Arc::new(Hashed {
                hash,
                outcomes: env.carry.state("basic-auth", || Outcomes {
                    right: Seen::new(REMEMBERED),
                    wrong: Seen::new(REMEMBERED),
                }),
            })),
            None => Password::Plain(password.as_bytes().into()),
        };
        Ok(Credential { password })
    }
}

impl Plugin {
    async fn find<'a>(&self, x: &Exchange<'a>) -> Result<&'a Authenticated, Failure> {
        let Some(header) = auth::header(x, Some(&AUTHORIZATION)) else {
            return Err(Failure::missing("Missing authorization in request"));
        };
        let token = basic::token(header, self.any_case)
            .ok_or_else(|| Failure::malformed(MALFORMED, "Invalid authorization header format"))?;
        let decoded = base64::decode(token)
            .ok_or_else(|| Failure::malformed(MALFORMED, "Failed to decode authentication header"))?;
        let (username, password) = basic::split(&decoded)
            .ok_or_else(|| Failure::malformed(MALFORMED, "Split authorization err: invalid decoded data"))?;

        let found = match std::str::from_utf8(&username) {
            Ok(username) => x.world.find(<Self as contract::Plugin>::NAME, username),
            Err(_) => None,
        };
        let Some(found) = found else { return Err(unknown(x)) };
        let Some(credential) = found.secret::<Credential>() else {
            return Err(Failure::wrong(DENIED, "the consumer's side is of another plugin"));
        };
        if !credential.accepts(&password).await {
            return Err(Failure::wrong(DENIED, "wrong password"));
        }
        Ok(found)
    }
}

fn unknown(x: &Exchange<'_>) -> Failure {
    if x.world.has_any(<Plugin as contract::Plugin>::NAME) {
        return Failure::unknown(DENIED, "failed to find user: invalid user");
    }
    Failure::unknown(x.compat().no_consumer(DENIED), "no consumer has basic-auth")
}

impl Credential {
    async fn accepts(&self, presented: &[u8]) -> bool {
        if presented.is_empty() {
            return false;
        }
        match &self.password {
            Password::Plain(stored) => bool::from(stored.ct_eq(presented)),
            Password::Hashed(hashed) => Hashed::accepts(hashed, presented).await,
        }
    }
}

impl Hashed {
    async fn accepts(self: &Arc<Self>, presented: &[u8]) -> bool {
        let outcomes = &self.outcomes;
        let right = outcomes.right.fingerprint(&[self.text(), presented]);
        if outcomes.right.has(&right) {
            return true;
        }
        let wrong = outcomes.wrong.fingerprint(&[self.text(), presented]);
        if outcomes.wrong.has(&wrong) {
            return false;
        }
        // Never closed, so this cannot fail; if it did, nobody gets in.
        let Ok(permit) = HASHING.acquire().await else { return false };
        let (hashed, presented) = (self.clone(), presented.to_vec());
        let work = move || {
            // Hashing goes on when the client goes away, and so must the permit.
            let _permit = permit;
            hashed.verify(&presented)
        };
        let Ok(accepted) = tokio::task::spawn_blocking(work).await else { return false };
        if accepted {
            outcomes.right.add(&right);
        } else {
            outcomes.wrong.add(&wrong);
        }
        accepted
    }

    fn verify(&self, presented: &[u8]) -> bool {
        match &self.hash {
            Hash::Argon2(hash) => Argon2::default().verify_password(presented, &hash.password_hash()).is_ok(),
            Hash::Bcrypt(hash) => bcrypt::verify(presented, hash).unwrap_or(false),
        }
    }

    fn text(&self) -> &[u8] {
        match &self.hash {
            Hash::Argon2(hash) => hash.as_str().as_bytes(),
            Hash::Bcrypt(hash) => hash.as_bytes(),
        }
    }
}

fn password(conf: &Value) -> &str {
    conf.get("password").and_then(Value::as_str).unwrap_or_default()
}

/// Reads a stored password that says of itself that it is a hash.
fn hash(stored: &str) -> Result<Option<Hash>, String> {
    if stored.starts_with("$argon2id$") {
        let hash = PasswordHashString::new(stored).map_err(|e| format!("invalid argon2id hash: {e}"))?;
        if hash.salt().is_none() || hash.hash().is_none() {
            return Err("invalid argon2id hash: salt and hash must be there".into());
        }
        return Ok(Some(Hash::Argon2(hash)));
    }
    if ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| stored.starts_with(prefix)) {
        stored.parse::<bcrypt::HashParts>().map_err(|_| "invalid bcrypt hash".to_owned())?;
        return Ok(Some(Hash::Bcrypt(stored.into())));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use ::base64::{Engine, engine::general_purpose::STANDARD};
    use argon2::{Algorithm, Params, PasswordHasher, Version, password_hash::SaltString};

    use super::*;
    use crate::{
        compat::Compat,
        plugin::testing::{self, Kit, Setup},
    };

    const MISSING: &str = r#"401 {"message":"Missing authorization in request"}"#;
    const BAD: &str = r#"401 {"message":"Invalid authorization in request"}"#;
    const NO: &str = r#"401 {"message":"Invalid user authorization"}"#;

    fn argon2_hash(password: &str) -> String {
        let salt = SaltString::encode_b64(b"some salt of ours").unwrap();
        let params = Params::new(16, 1, 1, None).unwrap();
        let cheap = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        cheap.hash_password(password.as_bytes(), &salt).unwrap().to_string()
    }

    fn kit(headers: &[(&str, &str)]) -> Kit {
        Kit::get("/", headers)
            .known::<Plugin>("jill", json!({"username": "jill", "password": "hill"}))
            .known::<Plugin>("colon", json!({"username": "colon", "password": "a:b"}))
            .known::<Plugin>("empty", json!({"username": "empty", "password": ""}))
            .known::<Plugin>("argon", json!({"username": "argon", "password": argon2_hash("pw")}))
            .known::<Plugin>(
                "bcrypt",
                json!({"username": "bcrypt", "password": bcrypt::hash("pw", 4).unwrap()}),
            )
    }

    #[track_caller]
    fn check(conf: Value, header: Option<&str>, said: &str) -> Option<String> {
        let plugin: Plugin = testing::plugin(conf);
        let headers: Vec<_> = header.iter().map(|value| ("Authorization", *value)).collect();
        kit(&headers).run(async |x| {
            let answer = testing::answer(&contract::Plugin::rewrite(&plugin, x).await);
            let who = x.consumer().map_or("nobody", |consumer| &consumer.username);
            assert_eq!(if answer == "continue" { who } else { &answer }, said, "{header:?}");
            x.header("authorization").map(str::to_owned)
        })
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    #[test]
    fn schemas_compile() {
        testing::compile_auth_schemas::<Plugin>();
    }

    #[test]
    fn reads_the_header() {
        let check = |header: Option<&str>, said: &str| check(json!({}), header, said);
        check(None, MISSING);
        check(Some("Basic amlsbDpoaWxs"), "jill");
        check(Some("basic amlsbDpoaWxs"), "jill");
        check(Some("BASIC amlsbDpoaWxs=="), "jill");
        check(Some("Basic  amlsbDpoaWxs"), BAD);
        check(Some("Basic"), BAD);
        check(Some(""), BAD);
        check(Some("Bearer x"), BAD);
        check(Some("Basic !!!"), BAD);
        check(Some("Basic amlsbA=="), BAD);
        check(Some(&basic("jill:")), BAD);
        check(Some(&basic("jill:bad")), NO);
        check(Some(&basic("nobody:x")), NO);
        check(Some(&basic(":x")), NO);
        check(Some(&basic("ji ll: h\till ")), "jill");
        check(Some(&format!("Basic {}", STANDARD.encode(b"\xff:x"))), NO);
    }

    #[test]
    fn a_password_may_have_colons_but_not_be_empty() {
        check(json!({}), Some(&basic("colon:a:b")), "colon");
        check(json!({}), Some(&basic("colon:a")), NO);
        check(json!({}), Some(&basic("empty: ")), NO);
        check(json!({}), Some(&basic("empty:")), BAD);
    }

    #[test]
    fn hashed_passwords() {
        for user in ["argon", "bcrypt"] {
            check(json!({}), Some(&basic(&format!("{user}:pw"))), user);
            check(json!({}), Some(&basic(&format!("{user}:px"))), NO);
        }
        // The stored text itself opens nothing.
        check(json!({}), Some(&basic(&format!("argon:{}", argon2_hash("pw")))), NO);
        let refusal = |password: &str| {
            Setup::new().credential::<Plugin>(&json!({"username": "u", "password": password})).err()
        };
        assert!(refusal("$argon2id$junk").is_some_and(|text| text.starts_with("invalid argon2id hash")));
        assert_eq!(refusal("$2b$junk"), Some("invalid bcrypt hash".into()));
        assert_eq!(refusal("$2x$plain"), None);
    }

    #[test]
    fn outcomes_of_hashing_are_remembered() {
        let setup = Setup::new();
        let conf = json!({"username": "u", "password": argon2_hash("pw")});
        let credential = setup.credential::<Plugin>(&conf).unwrap();
        let Password::Hashed(hashed) = &credential.password else { panic!("not hashed") };
        Kit::get("/", &[]).run(async |_| {
            assert!(credential.accepts(b"pw").await);
            assert!(!credential.accepts(b"px").await);
        });
        let right = hashed.outcomes.right.fingerprint(&[hashed.text(), b"pw"]);
        let wrong = hashed.outcomes.wrong.fingerprint(&[hashed.text(), b"px"]);
        assert!(hashed.outcomes.right.has(&right) && hashed.outcomes.wrong.has(&wrong));
    }

    #[test]
    fn hides_the_header_once_let_in() {
        let conf = || json!({"hide_credentials": true, "anonymous_consumer": "colon"});
        assert_eq!(check(conf(), Some(&basic("jill:hill")), "jill"), None);
        assert_eq!(check(conf(), Some(&basic("jill:bad")), "colon"), None);
        assert!(check(json!({}), Some(&basic("jill:hill")), "jill").is_some());
        assert!(check(json!({"hide_credentials": true}), Some("x"), BAD).is_some());
        check(json!({"anonymous_consumer": "missing"}), None, NO);
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
        let now = Some("Basic realm=\"basic\"");
        challenge(Compat::Now, kit(&[]), MISSING, now);
        challenge(Compat::Now, kit(&[("Authorization", "x")]), BAD, now);
        challenge(Compat::V3_2, kit(&[]), MISSING, Some("Basic realm='.'"));
        challenge(Compat::V3_2, kit(&[("Authorization", "basic amlsbDpoaWxs")]), BAD, None);
        challenge(Compat::V3_2, kit(&[("Authorization", "Basic amlsbDpoaWxs")]), "continue", None);
        let nobody = r#"401 {"message":"Missing related consumer"}"#;
        challenge(Compat::V3_2, Kit::get("/", &[("Authorization", "Basic amlsbDpoaWxs")]), nobody, None);
    }
}
