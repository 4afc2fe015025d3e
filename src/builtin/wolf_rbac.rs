//! wolf-rbac: a wolf server says who the bearer of a token is, and whether the role allows the request.
//!
//! APISIX: plugins/wolf-rbac.lua. Invariant: a request passes only when the server answered 200 with `ok: true`; a
//! client's own identity headers never reach the upstream.
//!
//! Differs from APISIX: an answer of 200 that is no JSON (500) or has `ok: false` (403, as wolf answers its own failures) lets
//! nobody pass, there both do; the consumer is attached for compat 3.2, too; `plugin_attr.wolf-rbac.cache_ttl` lets a
//! permission be remembered for some seconds.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::shared::{
    brief::{Brief, Question},
    header as fields,
    http_call::{Answer, Call, Client, Options},
};
use crate::{
    net::{
        args,
        escape::{Escape, escape_uri},
    },
    plugin::{
        consumer::Authenticated,
        contract::{self, AuthPlugin, PublicApi},
        credentials::Place,
        env::BuildEnv,
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Class, Flow, Reply},
    },
    vars::var::Var,
};

mod endpoints;

const NAME: &str = "wolf-rbac";
/// The argument that holds a token.
const ARGUMENT: &str = "rbac_token";
const TOKEN: HeaderName = HeaderName::from_static("x-rbac-token");
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const NO_JSON: &str = "check permission failed! parse response json failed!";

/// How long an answer about a permission may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long any other answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often a server with troubles is asked, and how long it may rest in between.
const TRIES: usize = 3;
const REST: Duration = Duration::from_millis(100);
/// How many permissions are remembered for each consumer, and for how long at most.
const REMEMBERED: usize = 1024;
const LONGEST: u64 = 60;

/// The route's side: everything is on the consumer's.
#[derive(Deserialize)]
pub struct Config {}

/// The compiled route's side.
pub struct Plugin;

/// The consumer's side: an application of a wolf server.
#[derive(Deserialize)]
struct Application {
    #[serde(default = "default_appid")]
    appid: String,
    #[serde(default = "default_server")]
    server: String,
    #[serde(default = "default_prefix")]
    header_prefix: String,
    #[serde(default)]
    ssl_verify: bool,
}

fn default_appid() -> String {
    "unset".into()
}

fn default_server() -> String {
    "http://127.0.0.1:12180".into()
}

fn default_prefix() -> String {
    "X-".into()
}

/// The compiled consumer's side.
pub struct Credential {
    appid: Box<str>,
    server: Box<str>,
    check: Client,
    other: Client,
    identity: Identity,
    permitted: Option<Brief<Arc<User>>>,
}

/// The headers that tell who it is; `None`: a name that no header can have.
struct Identity {
    id: Option<HeaderName>,
    username: Option<HeaderName>,
    nickname: Option<HeaderName>,
}

/// Who it is, as the server says.
#[derive(Default)]
struct User {
    id: Option<String>,
    username: Option<String>,
    nickname: Option<String>,
}

/// `V1#appid#token`
struct Token {
    text: String,
    /// Where the second `#` stands.
    border: usize,
}

/// What the server says of a request.
struct Verdict {
    user: User,
    refused: Option<Refused>,
}

struct Refused {
    status: u16,
    message: Option<String>,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = NAME;
    const PRIORITY: i32 = 2555;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "appid": {"type": "string", "default": "unset"},
                "server": {"type": "string", "default": "http://127.0.0.1:12180"},
                "header_prefix": {"type": "string", "default": "X-"},
                "ssl_verify": {"type": "boolean"}
            }
        })
    }

    fn build(_config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        Ok(Self)
    }

    fn apis(_attr: Option<&Value>) -> Vec<PublicApi> {
        endpoints::all()
    }

    fn credentials(&self, tell: &mut dyn FnMut(Place<'_>)) {
        tell(Place::Arg(ARGUMENT));
        tell(Place::Header(&TOKEN));
        tell(Place::Cookie(TOKEN.as_str()));
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        let (found, token) = match recognise(x) {
            Ok(recognised) => recognised,
            Err(reply) => return reply.into(),
        };
        let Some(credential) = found.secret::<Credential>() else {
            return Reply::status(500).because("the consumer's side is of another plugin").into();
        };
        credential.identity.drop_from(x);
        let remembered =
            credential.permitted.as_ref().map(|permitted| (permitted, question(permitted, x, &token)));
        if let Some((permitted, question)) = &remembered
            && let Some(user) = permitted.get(question)
        {
            credential.identity.tell(x, &user);
            x.attach(found);
            return CONTINUE;
        }
        let verdict = credential.judge(x, &token).await;
        credential.identity.tell(x, &verdict.user);
        if let Some(refused) = verdict.refused {
            return refused.reply(&verdict.user).into();
        }
        x.attach(found);
        if let Some((permitted, question)) = remembered {
            permitted.put(question, Arc::new(verdict.user));
        }
        CONTINUE
    }
}

impl AuthPlugin for Plugin {
    type Credential = Credential;
    const KEY: &'static str = "appid";
    const UNIQUE: bool = false;
    const DEFAULT_KEY: Option<&'static str> = Some("unset");
    const OWN_SCHEMA: bool = false;

    fn consumer_schema() -> Value {
        <Self as contract::Plugin>::schema()
    }

    fn credential(conf: &Value, env: &BuildEnv<'_>) -> Result<Credential, String> {
        let application = Application::deserialize(conf).map_err(|error| error.to_string())?;
        let client =
            |timeout| Client::new(&Options { verify: application.ssl_verify, timeout, ..Options::default() });
        let named = |what: &str| {
            let name = HeaderName::try_from(format!("{}{what}", application.header_prefix)).ok();
            name.filter(|name| !fields::frames(name))
        };
        Ok(Credential {
            check: client(CHECK_TIMEOUT)?,
            other: client(TIMEOUT)?,
            identity: Identity {
                id: named("UserId"),
                username: named("Username"),
                nickname: named("Nickname"),
            },
            permitted: cache(env.attr)?,
            appid: application.appid.into(),
            server: application.server.into(),
        })
    }
}

/// The memory of permissions that `plugin_attr.wolf-rbac.cache_ttl` asks for.
fn cache(attr: Option<&Value>) -> Result<Option<Brief<Arc<User>>>, String> {
    let seconds = attr.and_then(|attr| attr.get("cache_ttl")).and_then(Value::as_f64).unwrap_or(0.0);
    if seconds <= 0.0 {
        return Ok(None);
    }
    let lasts =
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).min(Duration::from_secs(LONGEST));
    Brief::new(REMEMBERED, lasts).map(Some)
}

/// The consumer whose application the token is for.
fn recognise<'a>(x: &Exchange<'a>) -> Result<(&'a Authenticated, Token), Reply> {
    let token = token(x)?;
    if !x.world.has_any(NAME) {
        return Err(Reply::message(401, "Missing related consumer")
            .because("no consumer has wolf-rbac")
            .classed(Class::Unknown));
    }
    match x.world.find(NAME, token.appid()) {
        Some(found) => Ok((found, token)),
        None => {
            let reason = format!("consumer [{}] not found", token.appid());
            Err(Reply::message(401, "Invalid appid in rbac token").because(reason).classed(Class::Unknown))
        }
    }
}

/// The token of a request. APISIX: `fetch_rbac_token`, `parse_rbac_token`.
fn token(x: &Exchange<'_>) -> Result<Token, Reply> {
    let found = x.arg(ARGUMENT).map(|text| text.into_owned());
    let found = found.or_else(|| x.header(header::AUTHORIZATION).map(str::to_owned));
    let found = found.or_else(|| x.header(TOKEN).map(str::to_owned));
    let found = found.or_else(|| x.var(&Var::parse("cookie_x-rbac-token")).map(|text| text.into_owned()));
    let Some(text) = found else {
        return Err(Reply::message(401, "Missing rbac token in request")
            .because("no token")
            .classed(Class::Missing));
    };
    Token::parse(text).ok_or_else(|| {
        let reply = Reply::message(401, "invalid rbac token: parse failed");
        reply.because("the token is no V1#appid#token").classed(Class::Malformed)
    })
}

impl Token {
    fn parse(text: String) -> Option<Self> {
        let rest = text.strip_prefix("V1#")?;
        let border = rest.find('#')? + 3;
        let wolf = &text[border + 1..];
        let can_be_sent = !wolf.is_empty() && HeaderValue::from_str(wolf).is_ok();
        can_be_sent.then_some(Self { text, border })
    }

    fn appid(&self) -> &str {
        &self.text[3..self.border]
    }

    fn wolf(&self) -> &str {
        &self.text[self.border + 1..]
    }

    /// The headers that tell the server.
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(2);
        if let Ok(mut value) = HeaderValue::from_str(self.wolf()) {
            value.set_sensitive(true);
            headers.insert(TOKEN, value);
        }
        headers.insert(header::CONTENT_TYPE, JSON);
        headers
    }
}

impl Credential {
    /// Asks the server whether the request may pass. APISIX: `check_url_permission`.
    async fn judge(&self, x: &Exchange<'_>, token: &Token) -> Verdict {
        let client_ip = x.client_ip().to_string();
        let query = args::encode([
            ("appID", Some(&*self.appid)),
            ("resName", Some(x.path())),
            ("action", Some(x.method().as_str())),
            ("clientIP", Some(&client_ip)),
        ]);
        let call =
            Call::get(format!("{}/wolf/rbac/access_check?{query}", self.server)).headers(token.headers());
        let mut tries = 1;
        let answer = loop {
            match self.check.send(call.clone()).await {
                Ok(answer) if answer.status.is_server_error() && tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(REST).await;
                }
                outcome => break outcome,
            }
        };
        match answer {
            Ok(answer) => Verdict::read(&answer),
            Err(error) => Verdict::fault(format!("request to wolf-server failed, err:{error}")),
        }
    }
}

impl Verdict {
    fn read(answer: &Answer) -> Self {
        let status = answer.status.as_u16();
        if status >= 500 {
            return Self::fault(format!("request to wolf-server failed, status:{status}"));
        }
        let Ok(body) = answer.json::<Map<String, Value>>() else {
            let status = if status < 300 { 500 } else { status };
            return Self {
                user: User::default(),
                refused: Some(Refused { status, message: Some(NO_JSON.into()) }),
            };
        };
        let user = User::read(body.get("data").and_then(|data| data.get("userInfo")));
        let passes = status == 200 && body.get("ok") == Some(&Value::Bool(true));
        let message = body.get("reason").and_then(Value::as_str).filter(|reason| !reason.is_empty());
        let refused =
            Refused { status: if status < 300 { 403 } else { status }, message: message.map(str::to_owned) };
        Self { user, refused: (!passes).then_some(refused) }
    }

    fn fault(message: String) -> Self {
        Self { user: User::default(), refused: Some(Refused { status: 500, message: Some(message) }) }
    }
}

impl Refused {
    fn reply(self, user: &User) -> Reply {
        let reason = self.message.clone().unwrap_or_else(|| "the wolf server gives no reason".into());
        let mut body = Map::new();
        let members = [
            ("message", self.message),
            ("username", user.username.clone()),
            ("nickname", user.nickname.clone()),
        ];
        for (name, value) in members {
            if let Some(value) = value {
                body.insert(name.to_owned(), value.into());
            }
        }
        let reply = Reply::json(self.status, body.into()).because(reason);
        if self.status >= 500 { reply.classed(Class::Unavailable) } else { reply }
    }
}

impl User {
    fn read(told: Option<&Value>) -> Self {
        let member = |name: &str| match told?.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let username = member("username");
        let nickname = member("nickname").or_else(|| username.clone());
        Self { id: member("id"), username, nickname }
    }
}

impl Identity {
    /// Nobody but the server says who it is.
    fn drop_from(&self, x: &mut Exchange<'_>) {
        for name in [&self.id, &self.username, &self.nickname].into_iter().flatten() {
            x.remove_header(name);
        }
    }

    /// Tells the upstream and the client.
    fn tell(&self, x: &mut Exchange<'_>, user: &User) {
        let nickname = user.nickname.as_deref().map(|text| escape_uri(text, Escape::Component));
        let told = [
            (&self.id, user.id.as_deref()),
            (&self.username, user.username.as_deref()),
            (&self.nickname, nickname.as_deref()),
        ];
        for (name, value) in told {
            if let (Some(name), Some(value)) = (name, value) {
                let value = fields::value(value);
                x.set_response_header(name.clone(), value.clone());
                x.set_header(name, value);
            }
        }
    }
}

/// What a permission depends on.
fn question(remembered: &Brief<Arc<User>>, x: &Exchange<'_>, token: &Token) -> Question {
    let client = x.client_ip().to_string();
    let parts = [&token.text, x.method().as_str(), x.path(), &client];
    remembered.question(&parts.map(str::as_bytes))
}

#[cfg(test)]
mod tests;
