//! ldap-auth-advanced: the entry of a user is searched in a directory, which then checks the password.
//!
//! APISIX: plugins/ldap-auth-advanced.lua, lua-resty-ldap. Invariant: whoever the directory does not confirm with a success
//! is not let in, and an empty password never reaches it; the user's name cannot widen the search.
//!
//! Differs from APISIX: groups (an addition): those of the user are searched, told to the upstream and may be required;
//! the password must be UTF-8; `keepalive_pool_name` has no effect, every configuration has
//! connections of its own; an `ldap_uri` that is no host and port, with or without `ldap://`, is refused when it is written.

use std::{sync::Arc, time::Duration};

use http::{
    HeaderName, HeaderValue,
    header::{AUTHORIZATION, PROXY_AUTHORIZATION, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::{
    auth, base64,
    ldap::{self, Directory, Entry, Found, Groups, LdapFailure, Login, Password, Search, Tls},
};
use crate::plugin::{
    contract::{self, AuthPlugin},
    env::{BuildEnv, CheckEnv},
    exchange::{Exchange, IDENTITY_HEADERS},
    phases::Phases,
    reply::{CONTINUE, Class, Flow, Reply},
};

const MISSING: &str = "missing authorization header";

/// The user's groups. A client's own is dropped with the identity headers, so that no upstream takes its word for it.
const GROUPS: HeaderName = HeaderName::from_static("x-authenticated-groups");

/// RFC 4512 §2.5: a name or a numeric identifier, and options.
const ATTRIBUTE: &str =
    r"^(?:[A-Za-z][A-Za-z0-9-]*|(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))+)(?:;[A-Za-z0-9-]+)*$";

/// The route's side.
#[derive(Deserialize)]
pub struct Config {
    /// Host and port of the directory; the port is 636 with `use_ldaps`, else 389.
    pub ldap_uri: String,
    /// Whether TLS is spoken from the first byte.
    #[serde(default)]
    pub use_ldaps: bool,
    /// Whether TLS is asked for before anything else.
    #[serde(default)]
    pub use_starttls: bool,
    /// Whether the directory's certificate must be valid.
    #[serde(default = "yes")]
    pub ssl_verify: bool,
    /// How long connecting, and each answer, may take, in milliseconds.
    #[serde(default = "default_timeout")]
    pub timeout: u64,
    /// Whether a connection waits for the next request.
    #[serde(default = "yes")]
    pub keepalive: bool,
    /// How long it waits, in milliseconds.
    #[serde(default = "default_keepalive_timeout")]
    pub keepalive_timeout: u64,
    /// How many connections wait at most.
    #[serde(default = "default_pool")]
    pub keepalive_pool_size: usize,
    /// The entry below which users are searched.
    pub base_dn: String,
    /// The attribute that holds the user's name.
    #[serde(default = "default_attribute")]
    pub attribute: String,
    /// The name to search with; none: anonymously.
    pub bind_dn: Option<String>,
    /// Its password.
    pub ldap_password: Option<String>,
    /// The most entries that the directory shall send.
    #[serde(default = "default_size_limit")]
    pub size_limit: i64,
    /// The longest that the directory shall search, in seconds; 0: its own limit.
    #[serde(default = "default_time_limit")]
    pub time_limit: i64,
    /// Whether a consumer must have the entry's name.
    #[serde(default = "yes")]
    pub consumer_required: bool,
    /// The entry below which groups are searched; none: they are not.
    pub group_base_dn: Option<String>,
    /// The attribute of a group that holds the names of its members.
    #[serde(default = "default_member")]
    pub group_member_attribute: String,
    /// The attribute of a group that holds its name.
    #[serde(default = "default_attribute")]
    pub group_name_attribute: String,
    /// The groups of which the user must be in one.
    #[serde(default)]
    pub groups_required: Vec<String>,
    /// The scheme of the header with the credentials.
    #[serde(default)]
    pub header_type: Scheme,
    /// What the challenge of a 401 names.
    #[serde(default = "default_realm")]
    pub realm: String,
}

/// The scheme of the header with the credentials.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// `ldap`
    #[default]
    Ldap,
    /// `Basic`
    Basic,
}

fn yes() -> bool {
    true
}

fn default_timeout() -> u64 {
    10_000
}

fn default_keepalive_timeout() -> u64 {
    60_000
}

fn default_pool() -> usize {
    5
}

fn default_attribute() -> String {
    "cn".into()
}

fn default_member() -> String {
    "member".into()
}

fn default_size_limit() -> i64 {
    2
}

fn default_time_limit() -> i64 {
    5
}

fn default_realm() -> String {
    "ldap".into()
}

/// The compiled route's side.
pub struct Plugin {
    directory: Directory,
    service: Login,
    base_dn: Arc<str>,
    attribute: Box<str>,
    size_limit: i32,
    time_limit: i32,
    consumer_required: bool,
    groups: Option<Groups>,
    groups_required: Vec<String>,
    scheme: Scheme,
    challenge: HeaderValue,
}

/// Why nobody is let in.
enum Refusal {
    /// The client's matter: 401.
    Denied(Class, String),
    /// Known, and in none of the required groups: 403.
    Outside(String),
    /// The directory's matter: 500.
    Fault(String),
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "ldap-auth-advanced";
    const PRIORITY: i32 = 2541;
    const PHASES: Phases = Phases::REWRITE;
    const ENCRYPT: &'static [&'static str] = &["ldap_password"];
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "title": "work with route or service object",
            "properties": {
                "ldap_uri": {"type": "string", "minLength": 1, "maxLength": 256},
                "use_ldaps": {"type": "boolean", "default": false},
                "use_starttls": {"type": "boolean", "default": false},
                "ssl_verify": {"type": "boolean", "default": true},
                "timeout": {"type": "integer", "minimum": 1, "maximum": 60000, "default": 10000},
                "keepalive": {"type": "boolean", "default": true},
                "keepalive_timeout": {"type": "integer", "minimum": 1000, "default": 60000},
                "keepalive_pool_size": {"type": "integer", "minimum": 1, "default": 5},
                "keepalive_pool_name": {"type": "string", "minLength": 1, "maxLength": 256},
                "base_dn": {"type": "string", "minLength": 1, "maxLength": 4096},
                "attribute": {"type": "string", "maxLength": 256, "default": "cn", "pattern": ATTRIBUTE},
                "bind_dn": {"type": "string", "minLength": 1, "maxLength": 4096},
                "ldap_password": {"type": "string", "minLength": 1, "maxLength": 4096},
                "size_limit": {"type": "integer", "minimum": 2, "default": 2},
                "time_limit": {"type": "integer", "minimum": 0, "default": 5},
                "consumer_required": {"type": "boolean", "default": true},
                "group_base_dn": {"type": "string", "minLength": 1, "maxLength": 4096},
                "group_member_attribute":
                    {"type": "string", "maxLength": 256, "default": "member", "pattern": ATTRIBUTE},
                "group_name_attribute":
                    {"type": "string", "maxLength": 256, "default": "cn", "pattern": ATTRIBUTE},
                "groups_required":
                    {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
                "header_type": {"type": "string", "enum": ["ldap", "basic"], "default": "ldap"},
                "realm": auth::realm_schema("ldap")
            },
            "encrypt_fields": ["ldap_password"],
            "required": ["ldap_uri", "base_dn"]
        })
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        let is_on = |name: &str| conf.get(name).and_then(Value::as_bool).unwrap_or(false);
        if is_on("use_ldaps") && is_on("use_starttls") {
            return Err("use_ldaps and use_starttls are mutually exclusive".into());
        }
        if conf.get("bind_dn").is_some() && conf.get("ldap_password").is_none() {
            return Err("ldap_password is required when bind_dn is set".into());
        }
        if conf.get("groups_required").is_some() && conf.get("group_base_dn").is_none() {
            return Err("group_base_dn is required when groups_required is set".into());
        }
        Ok(())
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let (tls, port) = match (config.use_ldaps, config.use_starttls) {
            (true, _) => (Tls::Ldaps, 636),
            (false, true) => (Tls::StartTls, 389),
            (false, false) => (Tls::Off, 389),
        };
        let options = ldap::Options {
            tls,
            verify: config.ssl_verify,
            timeout: Duration::from_millis(config.timeout),
            keepalive: config.keepalive.then(|| Duration::from_millis(config.keepalive_timeout)),
            pool: config.keepalive_pool_size,
        };
        let challenge = format!("{} realm=\"{}\"", config.header_type.challenge(), config.realm);
        let limit = |value: i64| i32::try_from(value).unwrap_or(i32::MAX);
        // Without a name there is no password either: a bind without a name is anonymous.
        let password = config.bind_dn.as_ref().and(config.ldap_password.as_deref()).unwrap_or_default();
        Ok(Self {
            directory: Directory::new(&config.ldap_uri, port, options)?,
            service: Login {
                name: config.bind_dn.as_deref().unwrap_or_default().into(),
                password: password.into(),
            },
            base_dn: config.base_dn.into(),
            attribute: config.attribute.into(),
            size_limit: limit(config.size_limit),
            time_limit: limit(config.time_limit),
            consumer_required: config.consumer_required,
            groups: config.group_base_dn.map(|base| Groups {
                base: base.into(),
                member: config.group_member_attribute.into(),
                name: config.group_name_attribute.into(),
            }),
            groups_required: config.groups_required,
            scheme: config.header_type,
            challenge: HeaderValue::try_from(challenge).map_err(|_| "realm cannot stand in a header")?,
        })
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        for name in IDENTITY_HEADERS.iter().chain([&GROUPS]) {
            x.remove_header(name);
        }
        match self.authenticate(x).await {
            Ok(()) => CONTINUE,
            Err(Refusal::Denied(class, reason)) => Reply::message(401, "Authorization required")
                .with_header(WWW_AUTHENTICATE, self.challenge.clone())
                .because(reason)
                .classed(class)
                .into(),
            Err(Refusal::Outside(reason)) => {
                Reply::message(403, "The user is in none of the required groups").because(reason).into()
            }
            Err(Refusal::Fault(reason)) => {
                Reply::status(500).because(reason).classed(Class::Unavailable).into()
            }
        }
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
            "properties": {"user_dn": {"type": "string", "minLength": 1, "maxLength": 4096}},
            "required": ["user_dn"]
        })
    }

    fn credential(_conf: &Value, _env: &BuildEnv<'_>) -> Result<(), String> {
        Ok(())
    }
}

impl Plugin {
    async fn authenticate(&self, x: &mut Exchange<'_>) -> Result<(), Refusal> {
        let denied = |class: Class, reason: &str| Refusal::Denied(class, reason.to_owned());
        let (username, password) = self.credentials(x).map_err(|reason| match reason {
            MISSING => denied(Class::Missing, reason),
            reason => denied(Class::Malformed, reason),
        })?;
        let filter = ldap::equals_filter(&self.attribute, &username);
        let filter = filter.ok_or_else(|| denied(Class::Malformed, "invalid username"))?;
        let search = Search {
            base: self.base_dn.clone(),
            filter,
            size_limit: self.size_limit,
            time_limit: self.time_limit,
            groups: self.groups.clone(),
        };
        let found = match self.directory.search_and_bind(self.service.clone(), search, password).await {
            Ok(found) => found,
            Err(LdapFailure::Credentials) => return Err(denied(Class::Wrong, "user authentication failed")),
            Err(failure) => return Err(Refusal::Fault(failure.to_string())),
        };
        let Entry { name: user_dn, groups } = match found {
            Found::One(entry) => entry,
            Found::None => return Err(denied(Class::Unknown, "user not found")),
            Found::Several => {
                return Err(denied(Class::Internal, "ambiguous user match; check attribute uniqueness"));
            }
        };
        let inside = |required: &String| groups.iter().any(|group| group.eq_ignore_ascii_case(required));
        if !self.groups_required.is_empty() && !self.groups_required.iter().any(inside) {
            return Err(Refusal::Outside(format!(
                "{} is in none of groups_required",
                user_dn.escape_debug()
            )));
        }
        // Names that no header can hold are none that an upstream could compare.
        if let Ok(told) = HeaderValue::try_from(groups.join(", "))
            && !groups.is_empty()
        {
            x.set_header(&GROUPS, told);
        }
        if !self.consumer_required {
            return Ok(());
        }
        let name = <Self as contract::Plugin>::NAME;
        let Some(consumer) = x.world.find(name, &user_dn) else {
            let reason = if x.world.has_any(name) {
                format!("no consumer has the user_dn {user_dn}")
            } else {
                "consumer_required, but no consumer has ldap-auth-advanced".to_owned()
            };
            return Err(Refusal::Denied(Class::Unknown, reason));
        };
        x.attach(consumer);
        Ok(())
    }

    /// Name and password of Proxy-Authorization or, where that has none of this scheme, of Authorization.
    fn credentials(&self, x: &Exchange<'_>) -> Result<(String, Password), &'static str> {
        let proxy = auth::header(x, Some(&PROXY_AUTHORIZATION)).map(|header| self.scheme.read(header));
        let refused = match proxy {
            Some(Ok(found)) => return Ok(found),
            Some(Err(reason)) => reason,
            None => MISSING,
        };
        match auth::header(x, Some(&AUTHORIZATION)) {
            Some(header) => self.scheme.read(header),
            None => Err(refused),
        }
    }
}

impl Scheme {
    fn challenge(self) -> &'static str {
        match self {
            Scheme::Ldap => "ldap",
            Scheme::Basic => "Basic",
        }
    }

    /// Name and password of a header with this scheme, in any case.
    fn read(self, header: &[u8]) -> Result<(String, Password), &'static str> {
        let scheme = self.challenge().as_bytes();
        let rest = header.get(scheme.len()..).unwrap_or_default();
        let token = rest.trim_ascii_start();
        let is_ours = header.len() > scheme.len() && header[..scheme.len()].eq_ignore_ascii_case(scheme);
        if !is_ours || token.is_empty() || token.len() == rest.len() {
            return Err("invalid authorization header format");
        }
        let decoded = base64::decode(token).ok_or("failed to base64-decode authorization header")?;
        let colon = decoded.iter().position(|byte| *byte == b':');
        let colon = colon.ok_or("invalid credential: missing ':' separator")?;
        let (username, password) = (&decoded[..colon], &decoded[colon + 1..]);
        if password.is_empty() {
            return Err("empty password rejected before bind");
        }
        if username.is_empty() {
            return Err("empty username");
        }
        let username = std::str::from_utf8(username).map_err(|_| "invalid username")?;
        let password = std::str::from_utf8(password).map_err(|_| "the password is not UTF-8")?;
        Ok((username.to_owned(), password.into()))
    }
}

#[cfg(test)]
mod tests {
    use ::base64::{Engine, engine::general_purpose::STANDARD};
    use proptest::prelude::*;

    use super::*;
    use crate::plugin::testing::{self, Kit};

    const NO: &str = r#"401 {"message":"Authorization required"}"#;

    fn conf(more: Value) -> Value {
        // Nobody listens there: what is tested here must be settled before anybody is asked.
        let mut conf = json!({"ldap_uri": "127.0.0.1:1", "base_dn": "ou=users,dc=example,dc=org"});
        for (key, value) in more.as_object().unwrap() {
            conf[key] = value.clone();
        }
        conf
    }

    fn ldap(text: impl AsRef<[u8]>) -> String {
        format!("ldap {}", STANDARD.encode(text))
    }

    #[track_caller]
    fn check(headers: &[(&str, &str)], said: &str, reason: &str) {
        let plugin: Plugin = testing::plugin(conf(json!({})));
        Kit::get("/", headers).run(async |x| {
            let flow = contract::Plugin::rewrite(&plugin, x).await;
            assert_eq!(testing::answer(&flow), said, "{headers:?}");
            let Flow::Break(reply) = flow else { panic!("let in") };
            let because = reply.reason.unwrap_or_default();
            assert!(because.contains(reason), "{headers:?}: {because}");
        });
    }

    #[test]
    fn schemas_compile() {
        testing::compile_auth_schemas::<Plugin>();
    }

    #[test]
    fn what_is_malformed_is_not_sent() {
        check(&[], NO, "missing authorization header");
        check(&[("Authorization", "ldap")], NO, "header format");
        check(&[("Authorization", "ldapdXNlcjAxOg==")], NO, "header format");
        check(&[("Authorization", "Basic dTpw")], NO, "header format");
        check(&[("Authorization", "ldap aca_a")], NO, "base64");
        check(&[("Authorization", &ldap("useronly"))], NO, "separator");
        check(&[("Authorization", &ldap("user01:"))], NO, "empty password");
        check(&[("Authorization", &ldap(":x"))], NO, "empty username");
        check(&[("Authorization", &ldap(b"\xff:x"))], NO, "invalid username");
        check(&[("Authorization", &ldap(b"x:\xff"))], NO, "not UTF-8");
        check(&[("Proxy-Authorization", &ldap("user01:"))], NO, "empty password");
        check(&[("Authorization", &ldap("u:p"))], "500", "no answer from the directory");
        check(&[("Proxy-Authorization", "Basic dTpw"), ("Authorization", &ldap("u:p"))], "500", "no answer");
    }

    #[test]
    fn challenges_name_scheme_and_realm() {
        for (more, challenge) in [
            (json!({}), "ldap realm=\"ldap\""),
            (json!({"header_type": "basic", "realm": "staff"}), "Basic realm=\"staff\""),
        ] {
            let plugin: Plugin = testing::plugin(conf(more));
            Kit::get("/", &[]).run(async |x| {
                let flow = contract::Plugin::rewrite(&plugin, x).await;
                assert_eq!(
                    testing::response_header(&flow, x, "www-authenticate").as_deref(),
                    Some(challenge)
                );
            });
        }
    }

    #[test]
    fn identity_headers_of_clients_are_dropped() {
        let plugin: Plugin = testing::plugin(conf(json!({})));
        let names = [
            "X-Authenticated-Groups",
            "X-Consumer-Username",
            "X-Credential-Identifier",
            "X-Consumer-Custom-ID",
        ];
        Kit::get("/", &names.map(|name| (name, "forged"))).run(async |x| {
            assert!(contract::Plugin::rewrite(&plugin, x).await.is_break());
            assert!(names.iter().all(|name| x.header(*name).is_none()));
        });
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = |more: Value| testing::refusal::<Plugin>(conf(more));
        let both = refusal(json!({"use_ldaps": true, "use_starttls": true}));
        assert_eq!(both, "use_ldaps and use_starttls are mutually exclusive");
        let lacking = refusal(json!({"bind_dn": "cn=admin"}));
        assert_eq!(lacking, "ldap_password is required when bind_dn is set");
        for attribute in ["1abc", "a b", "", "a)(b", "cn="] {
            assert_ne!(refusal(json!({"attribute": attribute})), "", "{attribute}");
        }
        for attribute in ["uid", "sAMAccountName", "cn;lang-en", "1.2.840.113556.1.4.656;binary"] {
            assert_eq!(refusal(json!({"attribute": attribute})), "", "{attribute}");
        }
        assert_ne!(refusal(json!({"size_limit": 1})), "");
        assert_eq!(refusal(json!({"use_ldaps": true, "ldap_uri": "ldap.example.org"})), "");
    }

    proptest! {
        #[test]
        fn reads_any_header(header in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Scheme::Ldap.read(&header);
            let _ = Scheme::Basic.read(&[b"basic ", &header[..]].concat());
        }

        #[test]
        fn reads_what_was_written(user in "[^:]{1,8}", password in ".{1,8}") {
            let (read, _) = Scheme::Ldap.read(ldap(format!("{user}:{password}")).as_bytes()).unwrap();
            prop_assert_eq!(read, user);
        }
    }
}
