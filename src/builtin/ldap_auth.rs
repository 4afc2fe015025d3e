//! ldap-auth: user name and password of the Authorization header, checked by a directory.
//!
//! APISIX: plugins/ldap-auth.lua, lua-resty-ldap. Invariant: whoever the directory does not confirm with a success is not
//! let in, and an empty password never reaches it.
//!
//! Differs from APISIX: the password begins after the first colon and may contain more of them (there it ends at the
//! second); name and password must be UTF-8; a user name is escaped for compat 3.2, too, which let it choose another
//! entry; an `ldap_uri` that is no host and port, with or without `ldap://`, is refused when it is written.

use std::time::Duration;

use http::header::AUTHORIZATION;
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::{
    auth::{self, Failure, Fallback},
    base64, basic,
    ldap::{self, Directory, LdapFailure, Login, Tls},
};
use crate::plugin::{
    consumer::Authenticated,
    contract::{self, AuthPlugin},
    env::BuildEnv,
    exchange::Exchange,
    phases::Phases,
    reply::{CONTINUE, Flow},
};

const MALFORMED: &str = "Invalid authorization in request";
const DENIED: &str = "Invalid user authorization";

/// How long connecting, and each answer, may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection waits for the next request.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How many connections wait at most. nginx: `lua_socket_pool_size`.
const POOL: usize = 30;

/// The route's side.
#[derive(Deserialize)]
pub struct Config {
    /// The entry below which users stand.
    pub base_dn: String,
    /// Host and port of the directory.
    pub ldap_uri: String,
    /// Whether TLS is spoken from the first byte.
    #[serde(default)]
    pub use_tls: bool,
    /// Whether the directory's certificate must be valid.
    #[serde(default)]
    pub tls_verify: bool,
    /// The attribute that begins a user's distinguished name.
    #[serde(default = "default_uid")]
    pub uid: String,
    /// Whether the upstream does not get to see the Authorization header.
    #[serde(default)]
    pub hide_credentials: bool,
    /// What the challenge of a 401 names.
    #[serde(default = "default_realm")]
    pub realm: String,
}

fn default_uid() -> String {
    "cn".into()
}

fn default_realm() -> String {
    "ldap".into()
}

/// The compiled route's side.
pub struct Plugin {
    directory: Directory,
    uid: Box<str>,
    base_dn: Box<str>,
    hide_credentials: bool,
    any_case: bool,
    fallback: Fallback,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "ldap-auth";
    const PRIORITY: i32 = 2540;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "title": "work with route or service object",
            "properties": {
                "base_dn": {"type": "string"},
                "ldap_uri": {"type": "string"},
                "use_tls": {"type": "boolean", "default": false},
                "tls_verify": {"type": "boolean", "default": false},
                "uid": {"type": "string", "default": "cn"},
                "hide_credentials": {"type": "boolean", "default": false},
                "realm": auth::realm_schema("ldap")
            },
            "required": ["base_dn", "ldap_uri"]
        })
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let options = ldap::Options {
            tls: if config.use_tls { Tls::Ldaps } else { Tls::Off },
            verify: config.tls_verify,
            timeout: TIMEOUT,
            keepalive: Some(KEEPALIVE),
            pool: POOL,
        };
        Ok(Self {
            directory: Directory::new(&config.ldap_uri, 389, options)?,
            uid: config.uid.into(),
            base_dn: config.base_dn.into(),
            hide_credentials: config.hide_credentials,
            any_case: env.compat.scheme_ignores_case(),
            fallback: Fallback::new(Self::NAME, "Basic", &config.realm, None, env.compat)?,
        })
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        match self.find(x).await {
            Ok(found) => x.attach(found),
            Err(failure) => return self.fallback.settle(x, failure),
        }
        if self.hide_credentials {
            x.remove_header(&AUTHORIZATION);
        }
        CONTINUE
    }
}

impl AuthPlugin for Plugin {
    // The distinguished name is the index of consumers, which the world looks up; nothing else is to be kept.
    type Credential = ();
    const KEY: &'static str = "user_dn";

    fn consumer_schema() -> Value {
        json!({
            "type": "object",
            "title": "work with consumer object",
            "properties": {"user_dn": {"type": "string"}},
            "required": ["user_dn"]
        })
    }

    fn credential(_conf: &Value, _env: &BuildEnv<'_>) -> Result<(), String> {
        Ok(())
    }
}

impl Plugin {
    async fn find<'a>(&self, x: &Exchange<'a>) -> Result<&'a Authenticated, Failure> {
        let login = self.login(x)?;
        let user_dn = login.name.clone();
        match self.directory.bind(login).await {
            Ok(()) => (),
            Err(failure @ (LdapFailure::Credentials | LdapFailure::EmptyPassword)) => {
                return Err(Failure::wrong(DENIED, failure.to_string()));
            }
            // APISIX: transport trouble is a 401 as well.
            Err(failure) => return Err(Failure::unavailable(DENIED, failure.to_string())),
        }
        let name = <Self as contract::Plugin>::NAME;
        x.world.find(name, &user_dn).map(|found| &**found).ok_or_else(|| {
            if x.world.has_any(name) {
                Failure::unknown(DENIED, format!("no consumer has the user_dn {user_dn}"))
            } else {
                Failure::unknown("Missing related consumer", "no consumer has ldap-auth")
            }
        })
    }

    /// Whom the request says it comes from.
    fn login(&self, x: &Exchange<'_>) -> Result<Login, Failure> {
        let Some(header) = auth::header(x, Some(&AUTHORIZATION)) else {
            return Err(Failure::missing("Missing authorization in request"));
        };
        let token = basic::token(header, self.any_case)
            .ok_or_else(|| Failure::malformed(MALFORMED, "Invalid authorization header format"))?;
        let decoded = base64::decode(token)
            .ok_or_else(|| Failure::malformed(MALFORMED, "Failed to decode authentication header"))?;
        let (username, password) = basic::split(&decoded)
            .ok_or_else(|| Failure::malformed(MALFORMED, "Split authorization err: invalid decoded data"))?;
        let (Ok(username), Ok(password)) = (std::str::from_utf8(&username), std::str::from_utf8(&password))
        else {
            return Err(Failure::malformed(DENIED, "name or password is not UTF-8"));
        };
        if password.is_empty() {
            return Err(Failure::wrong(DENIED, "an empty password is not sent to the directory"));
        }
        let name = format!("{}={},{}", self.uid, ldap::escape_dn(username), self.base_dn);
        Ok(Login { name: name.into(), password: password.into() })
    }
}

#[cfg(test)]
mod tests {
    use ::base64::{Engine, engine::general_purpose::STANDARD};

    use super::*;
    use crate::{
        compat::Compat,
        plugin::testing::{self, Kit, Setup},
    };

    const MISSING: &str = r#"401 {"message":"Missing authorization in request"}"#;
    const BAD: &str = r#"401 {"message":"Invalid authorization in request"}"#;
    const NO: &str = r#"401 {"message":"Invalid user authorization"}"#;

    fn conf() -> Value {
        // Nobody listens there: what is tested here must be settled before anybody is asked.
        json!({"base_dn": "ou=users,dc=example,dc=org", "ldap_uri": "127.0.0.1:1"})
    }

    #[track_caller]
    fn check(compat: Compat, header: Option<&str>, said: &str, challenge: &str, reason: &str) {
        let plugin: Plugin = Setup::new().compat(compat).build(conf()).unwrap();
        let headers: Vec<_> = header.iter().map(|value| ("Authorization", *value)).collect();
        Kit::get("/", &headers).compat(compat).run(async |x| {
            let flow = contract::Plugin::rewrite(&plugin, x).await;
            assert_eq!(testing::answer(&flow), said, "{header:?}");
            let told = testing::response_header(&flow, x, "www-authenticate");
            assert_eq!(told.as_deref().unwrap_or_default(), challenge, "{header:?}");
            let Flow::Break(reply) = flow else { panic!("let in") };
            let because = reply.reason.unwrap_or_default();
            assert!(because.contains(reason), "{header:?}: {because}");
        });
    }

    fn basic(text: impl AsRef<[u8]>) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    #[test]
    fn schemas_compile() {
        testing::compile_auth_schemas::<Plugin>();
    }

    #[test]
    fn what_is_malformed_is_not_sent() {
        let check = |header: Option<&str>, said: &str, reason: &str| {
            check(Compat::Now, header, said, "Basic realm=\"ldap\"", reason);
        };
        check(None, MISSING, "Missing");
        check(Some("Bad_header Zm9v"), BAD, "header format");
        check(Some("Basic aca_a"), BAD, "decode");
        check(Some("Basic Zm9v"), BAD, "Split");
        check(Some(&basic("user01:")), BAD, "Split");
        check(Some(&basic("user01: \t")), NO, "an empty password");
        check(Some(&basic(b"\xff:x")), NO, "not UTF-8");
        check(Some(&basic(b"x:\xff")), NO, "not UTF-8");
        check(Some(&basic("user01:password1")), NO, "no answer from the directory");
    }

    #[test]
    fn speaks_as_3_2() {
        check(Compat::V3_2, None, MISSING, "Basic realm='.'", "");
        check(Compat::V3_2, Some("basic dXNlcjAxOnBhc3N3b3JkMQ=="), BAD, "", "header format");
        check(Compat::V3_2, Some("Basic Zm9v"), BAD, "", "Split");
    }

    #[test]
    fn names_are_put_together() {
        let plugin: Plugin = testing::plugin(conf());
        Kit::get("/", &[("Authorization", &basic("com ma,user:pass:word"))]).run(async |x| {
            let login = plugin.login(x).unwrap();
            assert_eq!(&*login.name, r"cn=comma\,user,ou=users,dc=example,dc=org");
        });
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = testing::refusal::<Plugin>;
        assert_eq!(refusal(json!({"ldap_uri": "a"})), r#"property "base_dn" is required"#);
        assert_eq!(
            refusal(json!({"base_dn": "dc=a", "ldap_uri": "ldaps://a"})),
            "ldap_uri must be a host, or a host and a port, without a scheme"
        );
        assert_eq!(refusal(json!({"base_dn": "dc=a", "ldap_uri": "ldap://127.0.0.1:1389"})), "");
        assert_eq!(refusal(json!({"base_dn": "dc=a", "ldap_uri": "$secret://vault/1/ldap/uri"})), "");
        let credential = Setup::new().credential::<Plugin>(&json!({}));
        assert_eq!(credential.err().as_deref(), Some(r#"property "user_dn" is required"#));
    }
}
