//! Logins, kept in an encrypted cookie or in a Redis, and the short-lived cookies of logins under way.
//!
//! A login that does not fit into one cookie is spread over several. Every login under way has a cookie of its own,
//! found by its state, so that two tabs do not disturb each other.
//!
//! Invariant: what a cookie or a Redis holds opens only with the configured secret, for the same client of the same
//! provider; nobody learns a token from it. Times are checked by us, never left to the browser.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, header};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    config::{Config, SameSite, Storage},
    endpoint::random,
    fault::Fault,
    now,
};
use crate::{
    builtin::shared::{
        cookie::{self, Attributes},
        redis_store::{Options, RedisStore, Tls},
        seal::Sealer,
    },
    plugin::exchange::Exchange,
};

/// How long the user may take to log in, in seconds.
const PENDING: i64 = 900;

/// Logins under way that one browser may have; older ones are forgotten.
const MOST_PENDING: usize = 4;

/// Bytes of one cookie's value: with name and attributes browsers take 4096.
const CHUNK: usize = 3800;

/// Cookies that one login may take.
const MOST_CHUNKS: usize = 8;

/// How often in a row a login that failed midway begins again. APISIX: MAX_AUTH_FLOW_RESTARTS.
const MOST_RESTARTS: u32 = 3;

/// Seconds after which the use of a session is noted. lua-resty-session: touch_threshold.
const TOUCH: i64 = 60;

/// Seconds that a Redis keeps what has no end of its own.
const LONGEST: i64 = 30 * 86_400;

/// Who is logged in.
#[derive(Serialize, Deserialize, Clone, Default)]
pub struct Login {
    /// The ID token as the provider signed it.
    pub id_token: String,
    /// What the userinfo endpoint said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Value>,
    /// For the upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// When the access token ends.
    #[serde(default)]
    pub access_expires: i64,
    /// For new access tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    /// When the provider last said who it is.
    pub authenticated: i64,
    /// Where the login led to.
    #[serde(default)]
    pub original_url: String,
    /// When it began.
    created: i64,
    /// When it was last renewed.
    renewed: i64,
    /// When it was last seen.
    seen: i64,
}

/// A session that a request brought.
pub struct Session {
    /// Who is logged in.
    pub login: Login,
    /// The key in the Redis.
    id: Option<String>,
}

/// A login under way.
#[derive(Serialize, Deserialize)]
pub struct Pending {
    /// What the provider sends back to us.
    pub state: String,
    /// What the ID token must repeat.
    pub nonce: Option<String>,
    /// What proves that the code is ours (RFC 7636).
    pub verifier: Option<String>,
    /// Where the browser wanted to go.
    pub url: String,
    /// Whether the provider was told not to ask the user.
    pub silent: bool,
    /// When it began.
    at: i64,
}

#[derive(Serialize, Deserialize)]
struct Restarts {
    count: u32,
    at: i64,
}

/// Keeps the sessions of one configuration.
pub struct Sessions {
    logins: Sealer,
    pending: Sealer,
    context: Vec<u8>,
    name: Box<str>,
    attributes: Attributes,
    secure: Option<bool>,
    idling: i64,
    rolling: i64,
    absolute: i64,
    store: Option<Arc<RedisStore>>,
}

impl Sessions {
    /// Prepares keys and store; `None` without `session`.
    ///
    /// # Errors
    /// The Redis cannot be reached as configured.
    pub fn new(config: &Config) -> Result<Option<Self>, String> {
        let Some(session) = &config.session else { return Ok(None) };
        let store = match (&session.redis, session.storage) {
            (Some(redis), Storage::Redis) => Some(Arc::new(RedisStore::new(Options {
                host: redis.host.clone(),
                port: redis.port,
                username: redis.username.clone(),
                password: redis.password.clone().filter(|password| !password.is_empty()),
                database: redis.database,
                prefix: redis.prefix.clone(),
                tls: redis
                    .ssl
                    .then(|| Tls { verify: redis.ssl_verify, server_name: redis.server_name.clone() }),
                connect_timeout: Duration::from_millis(redis.connect_timeout),
                // A command is sent and answered in one go here.
                timeout: Duration::from_millis(redis.send_timeout.saturating_add(redis.read_timeout)),
                idle: Duration::from_millis(redis.keepalive_timeout),
            })?)),
            _ => None,
        };
        let lifetime = session.cookie.as_ref().and_then(|cookie| cookie.lifetime);
        let sessions = Self {
            logins: Sealer::new(&session.secret, "openid-connect login"),
            pending: Sealer::new(&session.secret, "openid-connect login under way"),
            context: format!("{}\n{}", config.client_id, config.discovery).into_bytes(),
            name: session.cookie_name.as_deref().unwrap_or("session").into(),
            attributes: Attributes {
                path: session.cookie_path.clone().unwrap_or_else(|| "/".into()),
                domain: session.cookie_domain.clone(),
                secure: false,
                http_only: session.cookie_http_only.unwrap_or(true),
                same_site: match session.cookie_same_site.unwrap_or(SameSite::Lax) {
                    SameSite::Strict => Some("Strict"),
                    SameSite::Lax => Some("Lax"),
                    SameSite::None => Some("None"),
                    SameSite::Default => None,
                },
            },
            secure: session.cookie_secure,
            idling: session.idling_timeout.unwrap_or(900),
            rolling: session.rolling_timeout.unwrap_or(3600),
            absolute: session.absolute_timeout.or(lifetime).unwrap_or(86_400),
            store,
        };
        match sessions.attributes.set(&sessions.name, "", None) {
            Some(_) if is_token(&sessions.name) => Ok(Some(sessions)),
            _ => Err("session: the cookie's name, path or domain cannot stand in a cookie".into()),
        }
    }

    /// The session of a request, if it has a valid one.
    ///
    /// # Errors
    /// The Redis does not answer.
    pub async fn load(&self, x: &Exchange<'_>) -> Result<Option<Session>, String> {
        let Some(sealed) = self.chunks(x) else { return Ok(None) };
        let (login, id) = match &self.store {
            None => (self.open_login(&sealed), None),
            Some(store) => {
                let Some(id) = self.logins.open(&self.context, &sealed) else { return Ok(None) };
                let Ok(id) = String::from_utf8(id) else { return Ok(None) };
                let Some(kept) = store.get(&id).await? else { return Ok(None) };
                (self.open_login(&kept), Some(id))
            }
        };
        let now = now();
        let over = |limit: i64, since: i64| limit > 0 && now - since > limit;
        let valid = login.filter(|login| {
            !over(self.idling, login.seen)
                && !over(self.rolling, login.renewed)
                && !over(self.absolute, login.created)
        });
        Ok(valid.map(|login| Session { login, id }))
    }

    fn open_login(&self, sealed: &str) -> Option<Login> {
        serde_json::from_slice(&self.logins.open(&self.context, sealed)?).ok()
    }

    fn chunks(&self, x: &Exchange<'_>) -> Option<String> {
        let mut whole = cookie::find(x, &self.name)?.to_owned();
        for number in 2..=MOST_CHUNKS {
            match cookie::find(x, &self.chunk_name(number)) {
                Some(chunk) => whole.push_str(chunk),
                None => break,
            }
        }
        Some(whole)
    }

    /// The name of the session's cookie, with which those of further chunks and of logins under way begin.
    pub fn cookie_name(&self) -> &str {
        &self.name
    }

    /// Whose fault it is when a session cannot be kept.
    pub fn fault(&self, reason: String) -> Fault {
        if self.store.is_some() { Fault::unavailable(reason) } else { reason.into() }
    }

    /// lua-resty-session: `session`, `session2`, `session3`…
    fn chunk_name(&self, number: usize) -> String {
        if number == 1 { self.name.to_string() } else { format!("{}{number}", self.name) }
    }

    /// Begins a session under a new key: whoever knew the old one has nothing of it.
    ///
    /// # Errors
    /// It cannot be kept.
    pub async fn begin(
        &self,
        x: &mut Exchange<'_>,
        mut login: Login,
        former: Option<Session>,
    ) -> Result<(), String> {
        if let (Some(store), Some(id)) = (&self.store, former.and_then(|former| former.id)) {
            store.delete(&id).await?;
        }
        login.created = now();
        login.authenticated = login.created;
        let id = self.store.is_some().then(random).transpose()?;
        self.keep(x, &mut Session { login, id }).await
    }

    /// Keeps a session that was changed.
    ///
    /// # Errors
    /// It cannot be kept.
    pub async fn keep(&self, x: &mut Exchange<'_>, session: &mut Session) -> Result<(), String> {
        session.login.seen = now();
        session.login.renewed = session.login.seen;
        self.write(x, session).await
    }

    /// Notes that a session is in use, if that was not noted lately.
    ///
    /// # Errors
    /// It cannot be kept.
    pub async fn touch(&self, x: &mut Exchange<'_>, session: &mut Session) -> Result<(), String> {
        let now = now();
        let renew = self.rolling > 0 && now - session.login.renewed > self.rolling / 4 * 3;
        let touch = self.idling > 0 && now - session.login.seen > TOUCH.min(self.idling / 4);
        if renew {
            session.login.renewed = now;
        }
        if !renew && !touch {
            return Ok(());
        }
        session.login.seen = now;
        self.write(x, session).await
    }

    async fn write(&self, x: &mut Exchange<'_>, session: &Session) -> Result<(), String> {
        let plain = serde_json::to_vec(&session.login).map_err(|_| "a session cannot be written as JSON")?;
        let seal = |plain: &[u8]| self.logins.seal(&self.context, plain).ok_or("a session cannot be sealed");
        let sealed = match (&self.store, &session.id) {
            (Some(store), Some(id)) => {
                store.put(id, &seal(&plain)?, self.remaining(&session.login)).await?;
                seal(id.as_bytes())?
            }
            _ => seal(&plain)?,
        };
        let chunks: Vec<&str> = split(&sealed, CHUNK).collect();
        if chunks.len() > MOST_CHUNKS {
            return Err(format!(
                "a session of {} bytes is too large for cookies: keep sessions in a Redis",
                sealed.len()
            ));
        }
        let attributes = self.attributes(x);
        for (index, chunk) in chunks.iter().enumerate() {
            set_cookie(x, attributes.set(&self.chunk_name(index + 1), chunk, None));
        }
        self.forget_chunks(x, chunks.len() + 1);
        Ok(())
    }

    /// Seconds that a Redis must keep a session.
    fn remaining(&self, login: &Login) -> u64 {
        let left = |limit: i64, since: i64| (limit > 0).then_some(since + limit - now());
        let ends = [left(self.rolling, login.renewed), left(self.absolute, login.created)];
        ends.into_iter().flatten().min().unwrap_or(LONGEST).clamp(1, LONGEST).unsigned_abs()
    }

    fn forget_chunks(&self, x: &mut Exchange<'_>, from: usize) {
        let attributes = self.attributes(x);
        for number in from..=MOST_CHUNKS {
            let name = self.chunk_name(number);
            if cookie::find(x, &name).is_some() {
                set_cookie(x, attributes.remove(&name));
            }
        }
    }

    /// Ends a session.
    ///
    /// # Errors
    /// The Redis does not answer: the session is not forgotten there.
    pub async fn destroy(&self, x: &mut Exchange<'_>, session: Session) -> Result<(), String> {
        self.forget_chunks(x, 1);
        match (&self.store, &session.id) {
            (Some(store), Some(id)) => store.delete(id).await,
            _ => Ok(()),
        }
    }

    fn attributes(&self, x: &Exchange<'_>) -> Attributes {
        let secure = self.secure.unwrap_or(x.ctx.scheme == "https");
        Attributes { secure, ..self.attributes.clone() }
    }

    /// Those of cookies that must come along when the provider sends the browser back, from another site.
    fn pending_attributes(&self, x: &Exchange<'_>) -> Attributes {
        let mut attributes = self.attributes(x);
        if attributes.same_site == Some("Strict") {
            attributes.same_site = Some("Lax");
        }
        attributes
    }

    // === logins under way

    /// Notes that a login began.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn pend(&self, x: &mut Exchange<'_>, pending: Pending) -> Result<(), String> {
        let mut others = self.all_pending(x);
        others.sort_by_key(|(_, other)| -other.at);
        let attributes = self.pending_attributes(x);
        for (name, _) in others.iter().skip(MOST_PENDING - 1) {
            set_cookie(x, attributes.remove(name));
        }
        let sealed = self.seal_json(&pending)?;
        let name = self.pending_name(&pending.state);
        set_cookie(x, attributes.set(&name, &sealed, Some(PENDING.unsigned_abs())));
        Ok(())
    }

    /// The login under way that a state belongs to.
    pub fn pending(&self, x: &Exchange<'_>, state: &str) -> Option<Pending> {
        let sealed = cookie::find(x, &self.pending_name(state))?;
        self.open_pending(sealed).filter(|pending| pending.state == state)
    }

    /// The latest login under way.
    pub fn latest_pending(&self, x: &Exchange<'_>) -> Option<Pending> {
        self.all_pending(x).into_iter().map(|(_, pending)| pending).max_by_key(|pending| pending.at)
    }

    /// Forgets a login under way.
    pub fn settle(&self, x: &mut Exchange<'_>, pending: &Pending) {
        let name = self.pending_name(&pending.state);
        set_cookie(x, self.pending_attributes(x).remove(&name));
    }

    fn all_pending(&self, x: &Exchange<'_>) -> Vec<(String, Pending)> {
        let start = format!("{}_", self.name);
        cookie::all(x)
            .filter(|(name, _)| name.starts_with(&start))
            .filter_map(|(name, sealed)| Some((name.to_owned(), self.open_pending(sealed)?)))
            .collect()
    }

    fn open_pending(&self, sealed: &str) -> Option<Pending> {
        let pending: Pending = self.open_json(sealed)?;
        (now() - pending.at <= PENDING).then_some(pending)
    }

    fn pending_name(&self, state: &str) -> String {
        let start: String = state.chars().filter(|c| c.is_ascii_alphanumeric()).take(12).collect();
        format!("{}_{start}", self.name)
    }

    // === restarts

    /// Whether a login may begin again; counts.
    pub fn restart(&self, x: &mut Exchange<'_>) -> Result<bool, String> {
        let name = self.restarts_name();
        let known = cookie::find(x, &name).and_then(|sealed| self.open_json::<Restarts>(sealed));
        let count = known.filter(|known| now() - known.at <= PENDING).map_or(0, |known| known.count);
        if count >= MOST_RESTARTS {
            return Ok(false);
        }
        let sealed = self.seal_json(&Restarts { count: count + 1, at: now() })?;
        set_cookie(x, self.pending_attributes(x).set(&name, &sealed, Some(PENDING.unsigned_abs())));
        Ok(true)
    }

    /// Forgets how often logins began again.
    pub fn forget_restarts(&self, x: &mut Exchange<'_>) {
        let name = self.restarts_name();
        if cookie::find(x, &name).is_some() {
            set_cookie(x, self.pending_attributes(x).remove(&name));
        }
    }

    fn restarts_name(&self) -> String {
        format!("{}_restarts", self.name)
    }

    fn seal_json(&self, what: &impl Serialize) -> Result<String, String> {
        let plain = serde_json::to_vec(what).map_err(|_| "a cookie cannot be written as JSON")?;
        self.pending.seal(&self.context, &plain).ok_or_else(|| "a cookie cannot be sealed".into())
    }

    fn open_json<T: DeserializeOwned>(&self, sealed: &str) -> Option<T> {
        serde_json::from_slice(&self.pending.open(&self.context, sealed)?).ok()
    }
}

impl Login {
    /// One whose tokens are yet to come.
    pub fn new(id_token: &str, original_url: &str) -> Self {
        Self { id_token: id_token.to_owned(), original_url: original_url.to_owned(), ..Self::default() }
    }
}

impl Pending {
    /// One that begins now.
    pub fn new(state: String, nonce: Option<String>, verifier: Option<String>, url: String) -> Self {
        Self { state, nonce, verifier, url, silent: false, at: now() }
    }
}

fn set_cookie(x: &mut Exchange<'_>, value: Option<HeaderValue>) {
    // Names and attributes were tried when the configuration was compiled; values are base64url.
    if let Some(value) = value {
        x.add_response_header(header::SET_COOKIE, value);
    }
}

/// RFC 6265 §4.1.1: what a cookie's name may be.
fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Pieces of at most `size` bytes of a text that is ASCII.
fn split(text: &str, size: usize) -> impl Iterator<Item = &str> {
    (0..text.len()).step_by(size).filter_map(move |from| text.get(from..text.len().min(from + size)))
}
