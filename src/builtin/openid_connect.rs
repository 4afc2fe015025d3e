//! openid-connect: users log in at an OpenID provider; machines bring its tokens.
//!
//! APISIX: plugins/openid-connect.lua and lua-resty-openidc. [`flow`](self) has the login, `bearer` the tokens that
//! requests bring; `provider` knows the provider's documents, `endpoint` calls it, `token` believes tokens, `session`
//! keeps logins.
//!
//! Differs from APISIX: `consumer_claim` (an addition) names the claim that holds a consumer's name; that consumer is
//! attached, so that its plugins and consumer-restriction count, and a login without such a consumer is answered 403.
//! All algorithms of RS, PS, ES and EdDSA are verified, for ID tokens too, of which APISIX verifies RS and HS only;
//! a bearer token is never accepted unsigned, also not with `accept_none_alg`. A token in `X-Access-Token` alone is
//! accepted; in APISIX the documented header ends in 401. A client's secret goes to introspection only in the way that
//! `introspection_endpoint_auth_method` says, and a client without one sends its id in the form. Two logins that a
//! browser begins at the same time do not disturb each other. `X-Forwarded-*` and `Forwarded` shape the redirect address
//! only when they come from a trusted peer. A session opens only for the client and provider it was made for.
//! A renewed ID token of another user ends the session. When the provider answers `login_required` to the silent
//! request of `refresh_session_interval`, the user is asked to log in instead of getting a 500. Ping Federate's logout
//! with a PNG is not there.

mod bearer;
pub mod config;
mod endpoint;
mod fault;
mod flow;
pub mod provider;
pub mod session;
mod token;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use http::{HeaderName, HeaderValue, header};
use serde_json::{Map, Value, json};

use self::{
    config::Config,
    endpoint::Endpoints,
    flow::Identity,
    provider::Provider,
    session::{Login, Sessions},
    token::{Claims, Verifier},
};
use super::shared::{jwt, memo::Memo};
use crate::{
    plugin::{
        contract,
        credentials::Place,
        env::{BuildEnv, CheckEnv},
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Flow, Reply},
    },
    schema::Schema,
};

const ACCESS_TOKEN: HeaderName = HeaderName::from_static("x-access-token");
const USERINFO: HeaderName = HeaderName::from_static("x-userinfo");
const ID_TOKEN: HeaderName = HeaderName::from_static("x-id-token");
const REFRESH_TOKEN: HeaderName = HeaderName::from_static("x-refresh-token");
const RAW_ID_TOKEN: HeaderName = HeaderName::from_static("x-raw-id-token");

/// How many introspections are remembered.
const INTROSPECTIONS: usize = 4096;

/// How many renewals of access tokens are remembered.
const RENEWALS: usize = 1024;

/// The compiled plugin.
pub struct Plugin {
    conf: Config,
    provider: Arc<Provider>,
    endpoints: Endpoints,
    verifier: Verifier,
    sessions: Option<Sessions>,
    claim_schema: Option<Schema>,
    addon_headers: Vec<HeaderName>,
    /// The path of `redirect_uri`.
    redirect_path: Option<Box<str>>,
    introspections: Memo<Claims>,
    renewals: Memo<Login>,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "openid-connect";
    const PRIORITY: i32 = 2599;
    const PHASES: Phases = Phases::REWRITE;
    const ENCRYPT: &'static [&'static str] = &[
        "client_secret",
        "client_rsa_private_key",
        "dpop.private_key",
        "session.secret",
        "session.redis.password",
    ];
    type Config = Config;

    fn schema() -> Value {
        serde_json::from_str(include_str!("openid_connect/schema.json")).expect("the file holds JSON")
    }

    fn completed(conf: &Value, env: &CheckEnv<'_>) -> Option<Value> {
        config::completed(conf, env.compat)
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        config::check_before_schema(conf)?;
        config::check_after_schema(conf)
    }

    /// APISIX looks at these before the schema.
    fn reword(conf: &Value, error: String) -> String {
        config::check_before_schema(conf).err().unwrap_or(error)
    }

    fn build(mut conf: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        jwt::provider::install();
        conf.complete(env.compat)?;
        let provider = Provider::shared(&conf)?;
        let compile = |schema: &Value| {
            Schema::compile(schema).map_err(|error| format!("check claim_schema failed: {error}"))
        };
        let addon = conf.introspection_addon_headers.iter().map(HeaderName::try_from);
        Ok(Self {
            endpoints: Endpoints::new(&conf)?,
            verifier: Verifier::new(&conf, provider.clone()),
            sessions: Sessions::new(&conf)?,
            claim_schema: conf.claim_schema.as_ref().map(compile).transpose()?,
            addon_headers: addon
                .collect::<Result<_, _>>()
                .map_err(|_| "introspection_addon_headers holds a name that no header can have")?,
            redirect_path: conf.redirect_uri.as_deref().map(|address| path_of(address).into()),
            introspections: Memo::new(INTROSPECTIONS),
            renewals: Memo::new(RENEWALS),
            provider,
            conf,
        })
    }

    fn credentials(&self, tell: &mut dyn FnMut(Place<'_>)) {
        for name in ["code", "state"] {
            tell(match &self.redirect_path {
                Some(path) => Place::ArgAt(name, path),
                None => Place::ArgUnder(name, flow::REDIRECT),
            });
        }
        for name in [&ACCESS_TOKEN, &ID_TOKEN, &REFRESH_TOKEN, &RAW_ID_TOKEN] {
            tell(Place::Header(name));
        }
        if let Some(sessions) = &self.sessions {
            tell(Place::Cookies(sessions.cookie_name()));
        }
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        match self.authenticate(x).await {
            Ok(()) => CONTINUE,
            Err(reply) => reply.into(),
        }
    }
}

impl Plugin {
    async fn authenticate(&self, x: &mut Exchange<'_>) -> Result<(), Reply> {
        let client_token = x.header(&ACCESS_TOKEN).map(str::to_owned);
        for name in [&ACCESS_TOKEN, &USERINFO, &ID_TOKEN, &REFRESH_TOKEN, &RAW_ID_TOKEN] {
            x.remove_header(name);
        }
        if flow::raw_path(x) == self.conf.logout_path
            && let Err(reason) = self.provider.discovery().await
        {
            return Err(flow::unavailable(reason));
        }
        if self.takes_bearers()
            && let Some(bearer) = self.bearer_flow(x, client_token).await?
        {
            self.attach_consumer(x, &[&*bearer.claims])?;
            self.tell_access_token(x, &bearer.token);
            if self.conf.set_userinfo_header {
                tell(x, &USERINFO, &encoded(&bearer.claims));
            }
            return Ok(());
        }
        match self.session_flow(x).await? {
            Some(identity) => self.admit(x, &identity),
            None => Ok(()),
        }
    }

    /// Judges who is logged in, and tells the upstream.
    fn admit(&self, x: &mut Exchange<'_>, identity: &Identity) -> Result<(), Reply> {
        let Identity { claims, login } = identity;
        let user = login.user.as_ref().and_then(Value::as_object);
        if let Some(schema) = &self.claim_schema {
            let mut told = json!({"id_token": claims});
            if let Some(user) = &login.user {
                told["user"] = user.clone();
            }
            if let Some(token) = &login.access_token {
                told["access_token"] = token.as_str().into();
            }
            schema.check(&told).map_err(|reason| self.invalid_token(reason.into()))?;
        }
        if self.conf.required_scopes.is_some() {
            match granted(claims, login.access_token.as_deref()) {
                Some(scopes) => self.check_granted(&scopes)?,
                // APISIX: session_scopes; what was granted is unknown, so it is not believed.
                None => return Err(bearer::forbidden("required scopes not present")),
            }
        }
        match user {
            Some(user) => self.attach_consumer(x, &[claims, user])?,
            None => self.attach_consumer(x, &[claims])?,
        }
        if let Some(token) = &login.access_token {
            self.tell_access_token(x, token);
        }
        if self.conf.set_id_token_header {
            tell(x, &ID_TOKEN, &encoded(claims));
        }
        if let Some(user) = user.filter(|_| self.conf.set_userinfo_header) {
            tell(x, &USERINFO, &encoded(user));
        }
        if let Some(token) = login.refresh_token.as_deref().filter(|_| self.conf.set_refresh_token_header) {
            tell(x, &REFRESH_TOKEN, token);
        }
        if self.conf.set_raw_id_token_header {
            tell(x, &RAW_ID_TOKEN, &login.id_token);
        }
        Ok(())
    }

    fn tell_access_token(&self, x: &mut Exchange<'_>, token: &str) {
        if !self.conf.set_access_token_header {
            return;
        }
        if self.conf.access_token_in_authorization_header {
            tell(x, &header::AUTHORIZATION, &format!("Bearer {token}"));
        } else {
            tell(x, &ACCESS_TOKEN, token);
        }
    }

    /// Attaches the consumer that `consumer_claim` names in the first of these that has it.
    fn attach_consumer(&self, x: &mut Exchange<'_>, sources: &[&Claims]) -> Result<(), Reply> {
        let Some(claim) = &self.conf.consumer_claim else { return Ok(()) };
        let named = sources.iter().find_map(|claims| claims.get(claim)).and_then(Value::as_str);
        let refused =
            |reason: String| Err(Reply::message(403, "No consumer belongs to this identity").because(reason));
        match named {
            None => refused(format!("there is no claim {claim} that is a text")),
            Some(name) if x.attach_named(name) => Ok(()),
            Some(name) => refused(format!("there is no consumer {}", name.escape_debug())),
        }
    }
}

/// The scopes of a login, from its access token if that is a JWT, or from its ID token.
fn granted(claims: &Claims, access_token: Option<&str>) -> Option<String> {
    let of_token = access_token.and_then(token::stored_claims);
    let scope = of_token.as_ref().and_then(|claims| claims.get("scope")).or_else(|| claims.get("scope"));
    scope.and_then(Value::as_str).map(str::to_owned)
}

/// A JSON object in base64, as APISIX tells it.
fn encoded(object: &Map<String, Value>) -> String {
    let json = serde_json::to_string(object).unwrap_or_default();
    openssl::base64::encode_block(json.as_bytes())
}

fn tell(x: &mut Exchange<'_>, name: &HeaderName, value: &str) {
    // A token that no header can hold is none that the upstream could use.
    if let Ok(mut value) = HeaderValue::try_from(value) {
        value.set_sensitive(true);
        x.set_header(name, value);
    }
}

/// The path of an address: `/b` for `https://a/b?c` and for `/b?c`. lua-resty-openidc: openidc_get_path.
fn path_of(address: &str) -> &str {
    let address = address.split('?').next().unwrap_or_default();
    match address.split_once("//") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => address,
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
