//! The login: the browser is sent to the provider, comes back with a code, and has a session from then on
//! (OpenID Connect Core §3.1, RFC 6749 §4.1, RFC 7636).
//!
//! Start reading at [`Plugin::session_flow`]. APISIX: lua-resty-openidc, openidc.authenticate.

use std::time::Duration;

use http::{HeaderValue, header};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    Plugin,
    config::UnauthAction,
    endpoint::{Fields, random},
    fault::Fault,
    now,
    provider::Discovery,
    session::{Login, Pending, Session, Sessions},
    token::{self, Claims},
};
use crate::{
    builtin::shared::base64,
    net::args,
    plugin::{
        exchange::Exchange,
        reply::{Class, Reply},
    },
};

/// How long a renewed access token is remembered for requests that came with the old session at the same time:
/// providers take a refresh token only once.
const RENEWAL: Duration = Duration::from_secs(30);

/// Who is logged in, for the upstream.
pub struct Identity {
    /// What the ID token claims.
    pub claims: Claims,
    /// The session.
    pub login: Login,
}

/// Errors with which a provider says that it cannot log in without asking (OpenID Connect Core §3.1.2.6).
const SILENT_REFUSALS: [&str; 4] =
    ["login_required", "interaction_required", "consent_required", "account_selection_required"];

fn failed(fault: impl Into<Fault>) -> Reply {
    fault.into().reply()
}

impl Plugin {
    /// Who is logged in; `None`: nobody, and the request may go on all the same.
    ///
    /// # Errors
    /// The answer that takes the browser further, or says no.
    pub(super) async fn session_flow(&self, x: &mut Exchange<'_>) -> Result<Option<Identity>, Reply> {
        let Some(sessions) = &self.sessions else {
            return Err(failed("there is no session in the configuration"));
        };
        let path = raw_path(x).to_owned();
        if path == self.redirect_path(&path) {
            return Err(self.callback(x, sessions).await);
        }
        let session = sessions.load(x).await.map_err(|reason| sessions.fault(reason).reply())?;
        if path == self.conf.logout_path {
            return Err(self.logout(x, sessions, session).await);
        }
        let Some(mut session) = session.filter(|_| !self.conf.force_reauthorize) else {
            return self.unauthenticated(x, sessions).await;
        };
        if !self.renew_access_token(x, sessions, &mut session).await {
            return self.unauthenticated(x, sessions).await;
        }
        if let Some(interval) = self.conf.refresh_session_interval
            && session.login.authenticated + interval < now()
        {
            return Err(self.authorize(x, sessions, true).await);
        }
        sessions.touch(x, &mut session).await.map_err(|reason| sessions.fault(reason).reply())?;
        let claims = token::stored_claims(&session.login.id_token)
            .ok_or_else(|| failed("the session holds no id_token"))?;
        Ok(Some(Identity { claims, login: session.login }))
    }

    async fn unauthenticated(
        &self,
        x: &mut Exchange<'_>,
        sessions: &Sessions,
    ) -> Result<Option<Identity>, Reply> {
        match self.conf.unauth_action {
            UnauthAction::Pass => Ok(None),
            UnauthAction::Deny => {
                let reply = Reply::status(401).because("no session, and unauth_action is deny");
                Err(reply.classed(Class::Missing))
            }
            UnauthAction::Auth => Err(self.authorize(x, sessions, false).await),
        }
    }

    // === to the provider

    async fn authorize(&self, x: &mut Exchange<'_>, sessions: &Sessions, silent: bool) -> Reply {
        match self.try_authorize(x, sessions, silent).await {
            Ok(reply) => reply,
            Err(fault) => fault.reply(),
        }
    }

    async fn try_authorize(
        &self,
        x: &mut Exchange<'_>,
        sessions: &Sessions,
        silent: bool,
    ) -> Result<Reply, Fault> {
        let discovery = self.provider.discovery().await.map_err(Fault::unavailable)?;
        let endpoint = discovery
            .authorization_endpoint
            .as_deref()
            .ok_or("the discovery document has no authorization_endpoint")?;
        let path = raw_path(x).to_owned();
        let Some(redirect_uri) = self.redirect_uri(x, &path) else {
            return Ok(Reply::status(400).because("no Host header to build the redirect_uri from"));
        };
        let nonce = self.conf.use_nonce.then(random).transpose()?;
        let verifier = self.conf.use_pkce.then(random).transpose()?;
        let mut pending = Pending::new(random()?, nonce, verifier, wanted_url(x));
        pending.silent = silent;
        let parameters = self.parameters(&pending, redirect_uri);
        let target = if self.conf.par.enabled {
            let pushed = self.push(&discovery, &parameters).await?;
            with_arguments(endpoint, &[("client_id", &self.conf.client_id), ("request_uri", &pushed)])
        } else {
            let parameters: Vec<_> =
                parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            with_arguments(endpoint, &parameters)
        };
        sessions.pend(x, pending)?;
        let no_cache = HeaderValue::from_static("no-cache, no-store, max-age=0");
        Ok(to(&target)?.with_header(header::CACHE_CONTROL, no_cache))
    }

    fn parameters(&self, pending: &Pending, redirect_uri: String) -> Vec<(String, String)> {
        let conf = &self.conf;
        let mut parameters: Vec<(String, String)> = Vec::new();
        let mut set = |name: &str, value: String| {
            parameters.retain(|(other, _)| other != name);
            parameters.push((name.to_owned(), value));
        };
        set("client_id", conf.client_id.clone());
        set("response_type", "code".into());
        set("scope", conf.scope.clone());
        set("redirect_uri", redirect_uri);
        set("state", pending.state.clone());
        if let Some(nonce) = &pending.nonce {
            set("nonce", nonce.clone());
        }
        if pending.silent {
            set("prompt", "none".into());
        }
        if let Some(verifier) = &pending.verifier {
            set("code_challenge_method", "S256".into());
            set("code_challenge", base64::encode_url(&Sha256::digest(verifier)));
        }
        if let Some(thumbprint) = self.endpoints.thumbprint() {
            set("dpop_jkt", thumbprint.to_owned());
        }
        for (name, value) in &conf.authorization_params {
            match value {
                Value::String(text) => set(name, text.clone()),
                other => set(name, other.to_string()),
            }
        }
        parameters
    }

    async fn push(&self, discovery: &Discovery, parameters: &[(String, String)]) -> Result<String, Fault> {
        let fields = parameters.iter().map(|(name, value)| (name.clone().into(), value.clone())).collect();
        let par = &self.conf.par;
        let (endpoint, method) = (par.endpoint.as_deref(), par.endpoint_auth_method.as_deref());
        let answer = self.endpoints.push(discovery, endpoint, method, fields).await?;
        let pushed = answer.get("request_uri").and_then(Value::as_str);
        pushed
            .map(str::to_owned)
            .ok_or_else(|| Fault::unavailable("the pushed authorization request got no request_uri"))
    }

    // === and back

    async fn callback(&self, x: &mut Exchange<'_>, sessions: &Sessions) -> Reply {
        let argument = |x: &Exchange<'_>, name: &str| x.arg(name).map(|value| value.into_owned());
        let (code, state, error) = (argument(x, "code"), argument(x, "state"), argument(x, "error"));
        let session = match sessions.load(x).await {
            Ok(session) => session,
            Err(reason) => return sessions.fault(reason).reply(),
        };
        let pending = state.as_deref().and_then(|state| sessions.pending(x, state));
        let (Some(code), Some(_)) = (code, state) else {
            return self.refused(x, sessions, session, pending, error).await;
        };
        let Some(pending) = pending else {
            let known = sessions.latest_pending(x).map(|pending| pending.url);
            let known = known.or_else(|| session.map(|session| session.login.original_url));
            let reason = "state from argument does not match state restored from session";
            return match known {
                Some(url) => restart(x, sessions, &url, Fault::new(Class::Wrong, reason)),
                None => {
                    let reason = "request to the redirect_uri path but there's no session state found";
                    Fault::new(Class::Missing, reason).reply()
                }
            };
        };
        match self.exchange(x, sessions, session, &code, &pending).await {
            Ok(reply) => reply,
            Err(fault) => fault.reply(),
        }
    }

    /// The provider sent the browser back without a code.
    async fn refused(
        &self,
        x: &mut Exchange<'_>,
        sessions: &Sessions,
        session: Option<Session>,
        pending: Option<Pending>,
        error: Option<String>,
    ) -> Reply {
        let error = error.unwrap_or_default();
        let Some(pending) = pending else {
            let reason = "unhandled request to the redirect_uri, without code or without a known state";
            return Fault::new(Class::Malformed, reason).reply();
        };
        if error == "temporarily_unavailable" {
            let fault = Fault::unavailable("the provider is temporarily unavailable");
            return restart(x, sessions, &pending.url, fault);
        }
        if pending.silent && SILENT_REFUSALS.contains(&error.as_str()) {
            // The login does not stand any more: the next request logs in with the user's doing.
            if let Some(session) = session
                && let Err(reason) = sessions.destroy(x, session).await
            {
                return sessions.fault(reason).reply();
            }
            sessions.settle(x, &pending);
            let fault = Fault::new(Class::Expired, "the provider wants the user to log in again");
            return restart(x, sessions, &pending.url, fault);
        }
        sessions.settle(x, &pending);
        let said = error.escape_debug();
        let reason = format!("unhandled request to the redirect_uri, the provider says {said}");
        Fault::new(Class::Forbidden, reason).reply()
    }

    async fn exchange(
        &self,
        x: &mut Exchange<'_>,
        sessions: &Sessions,
        former: Option<Session>,
        code: &str,
        pending: &Pending,
    ) -> Result<Reply, Fault> {
        let discovery = self.provider.discovery().await.map_err(Fault::unavailable)?;
        if x.arg("iss").is_some_and(|iss| Some(&*iss) != discovery.issuer.as_deref()) {
            return Err(Fault::new(Class::Wrong, "iss from argument does not match expected issuer"));
        }
        if x.arg("client_id").is_some_and(|id| id != self.conf.client_id) {
            return Err(Fault::new(
                Class::Wrong,
                "client_id from argument does not match expected client_id",
            ));
        }
        let path = raw_path(x).to_owned();
        let redirect_uri =
            self.redirect_uri(x, &path).ok_or("no Host header to build the redirect_uri from")?;
        let mut fields: Fields = vec![
            ("grant_type".into(), "authorization_code".into()),
            ("code".into(), code.into()),
            ("redirect_uri".into(), redirect_uri),
            ("state".into(), pending.state.clone()),
        ];
        if let Some(verifier) = &pending.verifier {
            fields.push(("code_verifier".into(), verifier.clone()));
        }
        let asked = now();
        let tokens = self.endpoints.token(&discovery, fields).await?;
        let id_token = tokens
            .get("id_token")
            .and_then(Value::as_str)
            .ok_or_else(|| Fault::unavailable("the token endpoint gave no id_token"))?;
        let claims = self.verifier.id_token(id_token, &discovery, pending.nonce.as_deref()).await?;
        let mut login = Login::new(id_token, &pending.url);
        self.take_tokens(&mut login, &tokens, asked);
        login.user = self.user(&discovery, &claims, login.access_token.as_deref()).await;
        sessions.begin(x, login, former).await.map_err(|reason| sessions.fault(reason))?;
        sessions.settle(x, pending);
        sessions.forget_restarts(x);
        Ok(to(&pending.url)?)
    }

    fn take_tokens(&self, login: &mut Login, tokens: &Map<String, Value>, asked: i64) {
        let text = |name: &str| tokens.get(name).and_then(Value::as_str).map(str::to_owned);
        login.access_token = text("access_token");
        let told = tokens.get("expires_in").and_then(|value| match value {
            Value::String(text) => text.parse().ok(),
            value => value.as_i64(),
        });
        let lifetime = told.or(self.conf.access_token_expires_in).unwrap_or(3600);
        login.access_expires = asked + lifetime - 1 - self.conf.access_token_expires_leeway;
        if let Some(token) = text("refresh_token") {
            login.refresh_token = Some(token);
        }
    }

    /// What the provider tells of the user. A login does not fail for it, as in APISIX.
    async fn user(
        &self,
        discovery: &Discovery,
        claims: &Claims,
        access_token: Option<&str>,
    ) -> Option<Value> {
        let (endpoint, token) = (discovery.userinfo_endpoint.as_deref()?, access_token?);
        match self.try_user(endpoint, token).await {
            Ok(user) if user.get("sub") == claims.get("sub") => Some(Value::Object(user)),
            Ok(_) => {
                tracing::error!("openid-connect: userinfo is of somebody else than the id_token");
                None
            }
            Err(error) => {
                tracing::error!(%error, "openid-connect: error calling userinfo endpoint");
                None
            }
        }
    }

    async fn try_user(&self, endpoint: &str, token: &str) -> Result<Claims, String> {
        let answer = self.endpoints.userinfo(endpoint, token).await?;
        let kind = answer.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if kind.is_some_and(|kind| kind.to_ascii_lowercase().contains("application/jwt")) {
            let text = std::str::from_utf8(&answer.body).map_err(|_| "userinfo is no text")?;
            return self.verifier.signed_userinfo(text).await;
        }
        answer.json().map_err(|error| format!("userinfo endpoint: {error}"))
    }

    // === while logged in

    /// Whether the session has, or now has again, an access token that is valid, or may go without.
    async fn renew_access_token(
        &self,
        x: &mut Exchange<'_>,
        sessions: &Sessions,
        session: &mut Session,
    ) -> bool {
        if session.login.access_token.is_some() && now() < session.login.access_expires {
            return true;
        }
        if !self.conf.renew_access_token_on_expiry {
            session.login.access_token = None;
            return true;
        }
        match self.try_renew(x, sessions, session).await {
            Ok(()) => true,
            Err(reason) => {
                tracing::warn!(%reason, "openid-connect: lost access token");
                false
            }
        }
    }

    async fn try_renew(
        &self,
        x: &mut Exchange<'_>,
        sessions: &Sessions,
        session: &mut Session,
    ) -> Result<(), String> {
        let token = session.login.refresh_token.clone();
        let token = token.ok_or("token expired and no refresh token available")?;
        let key = self.renewals.key(&[token.as_bytes()]);
        let renewed = self.renewals.once(key, RENEWAL, self.renewed(&session.login, token)).await?;
        session.login.id_token.clone_from(&renewed.id_token);
        session.login.access_token.clone_from(&renewed.access_token);
        session.login.access_expires = renewed.access_expires;
        session.login.refresh_token.clone_from(&renewed.refresh_token);
        sessions.keep(x, session).await
    }

    async fn renewed(&self, login: &Login, refresh_token: String) -> Result<Login, String> {
        let discovery = self.provider.discovery().await?;
        let fields: Fields = vec![
            ("grant_type".into(), "refresh_token".into()),
            ("refresh_token".into(), refresh_token),
            ("scope".into(), self.conf.scope.clone()),
        ];
        let asked = now();
        let tokens = self.endpoints.token(&discovery, fields).await?;
        let mut login = login.clone();
        if let Some(id_token) = tokens.get("id_token").and_then(Value::as_str) {
            let claims = self.verifier.id_token(id_token, &discovery, None).await?;
            // OpenID Connect Core §12.2.
            let before = token::stored_claims(&login.id_token).and_then(|claims| claims.get("sub").cloned());
            if claims.get("sub") != before.as_ref() {
                return Err("the renewed id_token is of somebody else".into());
            }
            login.id_token = id_token.to_owned();
        }
        self.take_tokens(&mut login, &tokens, asked);
        Ok(login)
    }

    // === and out

    async fn logout(&self, x: &mut Exchange<'_>, sessions: &Sessions, session: Option<Session>) -> Reply {
        let discovery = match self.provider.discovery().await {
            Ok(discovery) => discovery,
            Err(reason) => return unavailable(reason),
        };
        let mut id_token = None;
        if let Some(session) = session {
            id_token = Some(session.login.id_token.clone());
            if self.conf.revoke_tokens_on_logout {
                self.revoke(&discovery, &session.login).await;
            }
            if let Err(reason) = sessions.destroy(x, session).await {
                return sessions.fault(reason).reply();
            }
        }
        let after = self.conf.post_logout_redirect_uri.as_deref();
        let mut arguments = Vec::new();
        let target = match (&discovery.end_session_endpoint, after, &discovery.ping_end_session_endpoint) {
            (Some(endpoint), ..) => {
                arguments.extend(id_token.as_deref().map(|token| ("id_token_hint", token)));
                arguments.extend(after.map(|after| ("post_logout_redirect_uri", after)));
                endpoint
            }
            (None, Some(after), _) => {
                arguments.push(("post_logout_redirect_uri", after));
                after
            }
            (None, None, Some(ping)) => ping,
            (None, None, None) => {
                return Reply::bytes(200, "<html><body>Logged Out</body></html>\n")
                    .with_header(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
            }
        };
        to(&with_arguments(target, &arguments)).unwrap_or_else(failed)
    }

    async fn revoke(&self, discovery: &Discovery, login: &Login) {
        let tokens = [("refresh_token", &login.refresh_token), ("access_token", &login.access_token)];
        for (hint, token) in tokens {
            let Some(token) = token else { continue };
            if let Err(error) = self.endpoints.revoke(discovery, hint, token).await {
                tracing::error!(%error, hint, "openid-connect: revocation unsuccessful");
            }
        }
    }

    // === addresses

    /// The path of the redirect address, for a request to this path.
    fn redirect_path<'p>(&'p self, path: &'p str) -> &'p str {
        match &self.redirect_path {
            Some(configured) => configured,
            None if path.ends_with(REDIRECT) => path,
            None => "",
        }
    }

    /// Where the provider is to send the browser; `None`: the request names no host.
    fn redirect_uri(&self, x: &Exchange<'_>, path: &str) -> Option<String> {
        let target = match self.conf.redirect_uri.as_deref() {
            Some(configured) if !configured.starts_with('/') => return Some(configured.to_owned()),
            Some(configured) => configured.to_owned(),
            None if path.ends_with(REDIRECT) => path.to_owned(),
            None => format!("{}{REDIRECT}", path.strip_suffix('/').unwrap_or(path)),
        };
        let (scheme, host) = public_address(x);
        Some(format!("{scheme}://{}{target}", host?))
    }
}

/// What is appended to a path for its redirect address. APISIX: openid-connect.lua rewrite.
pub(super) const REDIRECT: &str = "/.apisix/redirect";

/// Path of the request as it was sent.
pub(super) fn raw_path<'x>(x: &'x Exchange<'_>) -> &'x str {
    x.session.req_header().uri.path()
}

/// Path and query of the request. Two slashes at its start would be another host to the browser that comes back.
fn wanted_url(x: &Exchange<'_>) -> String {
    let uri = &x.session.req_header().uri;
    let path = uri.path().trim_start_matches(['/', '\\']);
    match uri.query() {
        Some(query) => format!("/{path}?{query}"),
        None => format!("/{path}"),
    }
}

/// Scheme and host that the client knows us by. Others than trusted peers cannot tell us (APISIX overwrites what
/// they send).
fn public_address(x: &Exchange<'_>) -> (String, Option<String>) {
    let told = |name: &str| {
        let value = x.header(name).filter(|_| x.ctx.peer_trusted)?;
        Some(value.split(',').next().unwrap_or_default().trim().to_owned()).filter(|value| !value.is_empty())
    };
    let standard = x.header("forwarded").filter(|_| x.ctx.peer_trusted).unwrap_or_default();
    let scheme = forwarded(standard, "proto").or_else(|| told("x-forwarded-proto"));
    let scheme = scheme.filter(|scheme| scheme == "http" || scheme == "https");
    let host = forwarded(standard, "host").or_else(|| told("x-forwarded-host"));
    let host = host.or_else(|| x.header("host").map(str::to_owned));
    let authority = || x.session.req_header().uri.authority().map(|host| host.to_string());
    (scheme.unwrap_or_else(|| x.ctx.scheme.to_owned()), host.or_else(authority))
}

/// A parameter of the first element of `Forwarded` (RFC 7239), which wins over `X-Forwarded-*`.
fn forwarded(value: &str, wanted: &str) -> Option<String> {
    let parameter = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim().trim_matches('"');
        (name.trim().eq_ignore_ascii_case(wanted) && !value.is_empty()).then(|| value.to_owned())
    };
    value.split(',').next()?.split(';').find_map(parameter)
}

fn with_arguments(target: &str, arguments: &[(&str, &str)]) -> String {
    if arguments.is_empty() {
        return target.to_owned();
    }
    let separator = if target.contains('?') { '&' } else { '?' };
    let arguments = args::encode(arguments.iter().map(|(name, value)| (*name, Some(*value))));
    format!("{target}{separator}{arguments}")
}

fn to(target: &str) -> Result<Reply, String> {
    let location = HeaderValue::try_from(target).map_err(|_| "an address cannot stand in a header")?;
    Ok(Reply::status(302).with_header(header::LOCATION, location))
}

/// Sends the browser to where it wanted to go, from where the login begins again; not for ever.
fn restart(x: &mut Exchange<'_>, sessions: &Sessions, url: &str, fault: Fault) -> Reply {
    if *x.method() != http::Method::GET {
        return fault.reply();
    }
    let class = fault.class;
    let reason = String::from(fault);
    match sessions.restart(x) {
        Ok(true) => {
            tracing::warn!(reason, "openid-connect: restarting the authentication flow");
            to(url).unwrap_or_else(failed)
        }
        Ok(false) => Fault::new(class, format!("{reason} (giving up after several restarts)")).reply(),
        Err(error) => failed(error),
    }
}

pub(super) fn unavailable(reason: String) -> Reply {
    Reply::status(503).because(format!("OIDC access discovery url failed: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_parameters() {
        #[track_caller]
        fn check(value: &str, host: Option<&str>, proto: Option<&str>) {
            assert_eq!(forwarded(value, "host").as_deref(), host, "{value}");
            assert_eq!(forwarded(value, "proto").as_deref(), proto, "{value}");
        }
        check("", None, None);
        check("host=\"a.com:443\";proto=\"https\"", Some("a.com:443"), Some("https"));
        check("for=1.2.3.4; Host=a.com, host=b.com;proto=https", Some("a.com"), None);
        check("host=;proto", None, None);
    }
}
