//! key-auth: the consumer is whose key stands in a header or a query argument.
//!
//! APISIX: plugins/key-auth.lua. Invariant: a key is never logged and never part of an error.

use http::HeaderName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::auth::{self, Failure, Fallback, QueryValue};
use crate::plugin::{
    consumer::Authenticated,
    contract::{self, AuthPlugin},
    credentials,
    env::BuildEnv,
    exchange::Exchange,
    phases::Phases,
    reply::{CONTINUE, Flow},
};

const INVALID: &str = "Invalid API key in request";

/// The route's side.
#[derive(Deserialize)]
pub struct Config {
    /// The header that holds the key.
    #[serde(default = "default_name")]
    pub header: String,
    /// The query argument that holds the key when there is no such header.
    #[serde(default = "default_name")]
    pub query: String,
    /// What the challenge of a 401 names.
    #[serde(default = "default_realm")]
    pub realm: String,
    /// Whether the upstream does not get to see the key.
    #[serde(default)]
    pub hide_credentials: bool,
    /// The consumer that stands for everybody who fails.
    pub anonymous_consumer: Option<String>,
}

fn default_name() -> String {
    "apikey".into()
}

fn default_realm() -> String {
    "key".into()
}

/// The compiled route's side.
pub struct Plugin {
    /// `None`: a name that no header can have.
    header: Option<HeaderName>,
    query: Box<str>,
    hide_credentials: bool,
    fallback: Fallback,
}

/// Where the key was found.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Header,
    Query,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "key-auth";
    const PRIORITY: i32 = 2500;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "header": {"type": "string", "default": "apikey"},
                "query": {"type": "string", "default": "apikey"},
                "realm": auth::realm_schema("key"),
                "hide_credentials": {"type": "boolean", "default": false},
                "anonymous_consumer": auth::anonymous_schema()
            }
        })
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let anonymous = config.anonymous_consumer;
        Ok(Self {
            header: HeaderName::try_from(config.header).ok(),
            query: config.query.into(),
            hide_credentials: config.hide_credentials,
            fallback: Fallback::new(Self::NAME, "apikey", &config.realm, anonymous, env.compat)?,
        })
    }

    fn credentials(&self, tell: &mut dyn FnMut(credentials::Place<'_>)) {
        tell(credentials::Place::Arg(&self.query));
        self.header.iter().for_each(|header| tell(credentials::Place::Header(header)));
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        match self.find(x) {
            Ok((found, place)) => {
                if self.hide_credentials {
                    self.hide(x, place);
                }
                x.attach(found);
                CONTINUE
            }
            Err(failure) => {
                // A wrong key must not reach the upstream with the anonymous consumer; it may stand in both places.
                if self.hide_credentials && self.fallback.is_anonymous() {
                    self.hide(x, Place::Header);
                    self.hide(x, Place::Query);
                }
                self.fallback.settle(x, failure)
            }
        }
    }
}

impl AuthPlugin for Plugin {
    // The key itself is the index of consumers, which the world looks up; nothing else is to be kept.
    type Credential = ();
    const KEY: &'static str = "key";
    const ENCRYPT_CREDENTIAL: &'static [&'static str] = &["key"];

    fn consumer_schema() -> Value {
        json!({
            "type": "object",
            "properties": {"key": {"type": "string"}},
            "encrypt_fields": ["key"],
            "required": ["key"]
        })
    }

    fn credential(_conf: &Value, _env: &BuildEnv<'_>) -> Result<(), String> {
        Ok(())
    }
}

impl Plugin {
    fn find<'a>(&self, x: &Exchange<'a>) -> Result<(&'a Authenticated, Place), Failure> {
        let world = x.world;
        let lookup = |key: &str| world.find(<Self as contract::Plugin>::NAME, key);
        let (found, place) = if let Some(key) = auth::header(x, self.header.as_ref()) {
            (std::str::from_utf8(key).ok().and_then(lookup), Place::Header)
        } else {
            match auth::query(x.args(), &self.query) {
                Some(QueryValue::One(key)) => (lookup(&key), Place::Query),
                Some(QueryValue::Unusable) => (None, Place::Query),
                None => return Err(Failure::missing(x.compat().missing_api_key())),
            }
        };
        match found {
            Some(found) => Ok((found, place)),
            None if !world.has_any(<Self as contract::Plugin>::NAME) => {
                Err(Failure::unknown(x.compat().no_consumer(INVALID), "no consumer has key-auth"))
            }
            None => Err(Failure::unknown(INVALID, "failed to find consumer: invalid api key")),
        }
    }

    fn hide(&self, x: &mut Exchange<'_>, place: Place) {
        match (place, &self.header) {
            (Place::Header, Some(header)) => x.remove_header(header),
            (Place::Query, _) if auth::query(x.args(), &self.query).is_some() => {
                auth::hide_query(x, &self.query)
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compat::Compat,
        plugin::testing::{self, Kit, Setup},
    };

    const MISSING: &str = r#"401 {"message":"Missing API key in request"}"#;
    const WRONG: &str = r#"401 {"message":"Invalid API key in request"}"#;

    fn kit(target: &str, headers: &[(&str, &str)]) -> Kit {
        Kit::get(target, headers).known::<Plugin>("jack", json!({"key": "k-jack"})).credential::<Plugin>(
            "jill",
            "c1",
            json!({"key": "k-jill"}),
        )
    }

    /// What is said, who is attached, and what is left of `apikey` and the query.
    #[track_caller]
    fn check(conf: Value, target: &str, headers: &[(&str, &str)], said: &str, left: (Option<&str>, &str)) {
        let plugin: Plugin = testing::plugin(conf);
        kit(target, headers).run(async |x| {
            let flow = contract::Plugin::rewrite(&plugin, x).await;
            let who = x.consumer().map_or("nobody", |consumer| &consumer.username);
            let answer = testing::answer(&flow);
            assert_eq!(if answer == "continue" { who } else { &answer }, said, "{target} {headers:?}");
            assert_eq!((x.header("apikey"), x.args()), left, "{target} {headers:?}");
        });
    }

    #[test]
    fn schemas_compile() {
        testing::compile_auth_schemas::<Plugin>();
    }

    #[test]
    fn finds_the_key() {
        check(json!({}), "/", &[("apikey", "k-jack")], "jack", (Some("k-jack"), ""));
        check(json!({}), "/", &[("ApiKey", "k-jill")], "jill", (Some("k-jill"), ""));
        check(json!({}), "/?apikey=k-jack", &[], "jack", (None, "apikey=k-jack"));
        check(json!({}), "/?apikey=k%2Djack", &[], "jack", (None, "apikey=k%2Djack"));
        check(json!({}), "/", &[], MISSING, (None, ""));
        check(json!({}), "/", &[("apikey", "bad")], WRONG, (Some("bad"), ""));
        check(json!({}), "/?apikey=k-jack", &[("apikey", "")], WRONG, (Some(""), "apikey=k-jack"));
        check(json!({}), "/?apikey=k-jack&apikey=k-jack", &[], WRONG, (None, "apikey=k-jack&apikey=k-jack"));
        check(json!({}), "/?apikey", &[], WRONG, (None, "apikey"));
        check(json!({"header": "x-key"}), "/", &[("X-Key", "k-jack")], "jack", (None, ""));
        check(json!({"query": "key"}), "/?key=k-jill&z=1", &[], "jill", (None, "key=k-jill&z=1"));
        check(json!({"header": "not a name"}), "/", &[("apikey", "k-jack")], MISSING, (Some("k-jack"), ""));
    }

    #[test]
    fn hides_only_the_place_it_used() {
        let hide = || json!({"hide_credentials": true});
        check(hide(), "/?apikey=k-jill&a=1", &[("apikey", "k-jack")], "jack", (None, "apikey=k-jill&a=1"));
        check(hide(), "/?a=1&apikey=k-jill&b", &[], "jill", (None, "a=1&b"));
        check(hide(), "/?apikey=k-jill", &[], "jill", (None, ""));
        check(hide(), "/?a=x+y", &[("apikey", "bad")], WRONG, (Some("bad"), "a=x+y"));
    }

    #[test]
    fn falls_back_to_the_anonymous_consumer() {
        let conf = |name: &str| json!({"hide_credentials": true, "anonymous_consumer": name});
        check(conf("jill"), "/?apikey=x&a=1", &[("apikey", "bad")], "jill", (None, "a=1"));
        check(conf("jill"), "/?a=x+y", &[], "jill", (None, "a=x+y"));
        let gone = r#"401 {"message":"Invalid user authorization"}"#;
        check(conf("missing"), "/", &[], gone, (None, ""));
    }

    #[test]
    fn remembers_the_credential() {
        let plugin: Plugin = testing::plugin(json!({}));
        kit("/", &[("apikey", "k-jill")]).run(async |x| {
            assert_eq!(testing::answer(&contract::Plugin::rewrite(&plugin, x).await), "continue");
            assert_eq!(x.ctx.credential.as_ref().map(|(id, _)| &**id), Some("c1"));
        });
    }

    #[track_caller]
    fn challenge(compat: Compat, kit: Kit, said: &str, challenge: Option<&str>) {
        let setup = Setup::new().compat(compat);
        let plugin: Plugin = setup.build(json!({"realm": "my realm"})).unwrap();
        kit.compat(compat).run(async |x| {
            let flow = contract::Plugin::rewrite(&plugin, x).await;
            assert_eq!(testing::answer(&flow), said);
            assert_eq!(testing::response_header(&flow, x, "www-authenticate").as_deref(), challenge);
        });
    }

    #[test]
    fn speaks_both_versions() {
        let now = Some("apikey realm=\"my realm\"");
        challenge(Compat::Now, kit("/", &[]), MISSING, now);
        challenge(Compat::Now, Kit::get("/", &[("apikey", "x")]), WRONG, now);
        let missing = r#"401 {"message":"Missing API key found in request"}"#;
        challenge(Compat::V3_2, kit("/", &[]), missing, None);
        let nobody = r#"401 {"message":"Missing related consumer"}"#;
        challenge(Compat::V3_2, Kit::get("/", &[("apikey", "x")]), nobody, None);
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = |conf| testing::refusal::<Plugin>(conf);
        assert_eq!(
            refusal(json!({"header": 1})),
            r#"property "header" validation failed: wrong type: expected string, got number"#
        );
        assert_eq!(
            refusal(json!({"anonymous_consumer": ""})),
            r#"property "anonymous_consumer" validation failed: string too short, expected at least 1, got 0"#
        );
        assert!(refusal(json!({"realm": "a\"b"})).contains("failed to match pattern"));
        assert_eq!(
            Setup::new().credential::<Plugin>(&json!({})),
            Err(r#"property "key" is required"#.into())
        );
    }
}
