//! What is refused before anything looks at a request, and where its client and path are found out.
//!
//! Pingora hands paths on as they came and takes hosts that are none. What lines of the head are ambiguous was found
//! out before, when it came in; ambiguity is never forwarded.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering,
};

use http::{HeaderMap, HeaderName, Version, header};
use pingora_proxy::Session;

use super::options::{Options, RealIp};
use crate::{
    net::{escape::escape_uri_control_chars, head, host, uri},
    plugin::{reply::Reply, request::RequestCtx},
};

/// What the head of an admitted request says, found out once.
pub struct Admitted {
    /// Whether [`sanitize`] has something to drop.
    pub claims: bool,
    /// The host asked for.
    pub host: HostName,
}

/// The host in the Host header, without its port.
#[derive(Default)]
pub struct HostName {
    /// So many bytes of the header, and most names are in lower case as they stand.
    length: usize,
    lowered: Option<Box<str>>,
}

impl HostName {
    fn new(host: host::Host<'_>) -> Self {
        let length = host.name.len();
        match host.name {
            Cow::Borrowed(_) => Self { length, lowered: None },
            Cow::Owned(name) => Self { length, lowered: Some(name.into()) },
        }
    }

    /// The name in lower case; `sent` is the header it was read from.
    pub fn of<'a>(&'a self, sent: &'a str) -> &'a str {
        match &self.lowered {
            Some(name) => name,
            None => sent.get(..self.length).unwrap_or_default(),
        }
    }
}

/// Checks the request's shape and fills in what follows from its head and its connection.
///
/// # Errors
/// The reply for a request that goes no further; its connection is closed.
pub fn admit(
    session: &mut Session,
    ctx: &mut RequestCtx,
    options: &Options,
    claims: Option<bool>,
) -> Result<Admitted, Reply> {
    let admitted = inspect(session, ctx, options, claims);
    match &admitted {
        Ok(_) => bound_connection(session, options),
        Err(_) => session.as_downstream_mut().set_keepalive(None),
    }
    admitted
}

/// For a request that cannot be read: where it came from, and that its connection ends.
pub fn refuse_connection(session: &mut Session, ctx: &mut RequestCtx, options: &Options, line: Box<[u8]>) {
    addresses(session, ctx, options);
    ctx.sent_line = Some(line);
    session.as_downstream_mut().set_keepalive(None);
}

/// Whether there may be headers that only the gateway writes, in a request that did not come through [`super::front`].
fn look(session: &Session) -> Result<bool, Reply> {
    let Some(http1) = session.as_downstream().as_http1() else { return Ok(true) };
    let judged = head::judge(&http1.get_headers_raw_bytes());
    judged
        .map(|(facts, _)| facts.claims)
        .map_err(|refusal| Reply::status(refusal.status).because(refusal.reason))
}

fn inspect(
    session: &mut Session,
    ctx: &mut RequestCtx,
    options: &Options,
    claims: Option<bool>,
) -> Result<Admitted, Reply> {
    let claims = claims.map_or_else(|| look(session), Ok)?;
    addresses(session, ctx, options);
    let host = authority(session)?;
    path(session, ctx, options)?;
    body_size(session, options)?;
    Ok(Admitted { claims, host })
}

/// Slow peers are bounded, and whether the connection outlives the request is decided; [`super::front`] bounds how long.
fn bound_connection(session: &mut Session, options: &Options) {
    let is_old = session.req_header().version < Version::HTTP_11;
    let downstream = session.as_downstream_mut();
    // HTTP/1.0 knows no responses of status 1xx (RFC 9110 §15.2).
    downstream.set_ignore_info_resp(is_old);
    if downstream.get_keepalive().is_some() {
        let ends = options.draining.load(Ordering::Relaxed) || options.keepalive.is_zero();
        downstream.set_keepalive((!ends).then_some(WITHOUT_TIMER));
    }
    downstream.set_read_timeout(Some(options.body_timeout));
    downstream.set_write_timeout(Some(options.send_timeout));
}

/// Pingora's word for a connection that it keeps for ever.
const WITHOUT_TIMER: u64 = 0;

fn refuse(reason: &'static str) -> Reply {
    Reply::status(400).because(reason)
}

fn addresses(session: &Session, ctx: &mut RequestCtx, options: &Options) {
    let inet = |addr: Option<&pingora::protocols::l4::socket::SocketAddr>| {
        addr.and_then(|addr| addr.as_inet().copied())
    };
    if let Some(peer) = inet(session.client_addr()) {
        ctx.peer = unmapped(peer);
        ctx.client = ctx.peer;
    }
    if let Some(server) = inet(session.server_addr()) {
        ctx.server = unmapped(server);
    }
    if session.digest().is_some_and(|digest| digest.ssl_digest.is_some()) {
        ctx.scheme = "https";
    }
    ctx.peer_trusted = options.trusted.as_ref().is_some_and(|trusted| trusted.contains(ctx.peer.ip()));
    if let Some(rule) = &options.real_ip
        && rule.from.contains(ctx.peer.ip())
        && let Some(client) = real_client(&session.req_header().headers, rule)
    {
        ctx.client = client;
    }
}

/// A listener on `[::]` shows IPv4 peers as `::ffff:a.b.c.d`.
fn unmapped(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// nginx: the last address of the header, or, recursively, the last that is not trusted itself.
fn real_client(headers: &HeaderMap, rule: &RealIp) -> Option<SocketAddr> {
    let list = headers.get_all(&rule.header);
    let mut found = None;
    for value in list.iter().rev() {
        for part in value.to_str().ok()?.rsplit(',') {
            let Some(addr) = parse_client(part.trim()) else { return found };
            found = Some(addr);
            if !rule.recursive || !rule.from.contains(addr.ip()) {
                return found;
            }
        }
    }
    found
}

fn parse_client(text: &str) -> Option<SocketAddr> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Some(addr);
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 0))
}

/// nginx answers 400 to an HTTP/1.1 request without Host and to a Host that is no host.
fn authority(session: &Session) -> Result<HostName, Reply> {
    let head = session.req_header();
    let authority = head.uri.authority();
    match head.headers.get(header::HOST) {
        Some(value) => {
            let text = value.to_str().map_err(|_| refuse("Host is not ASCII"))?;
            if text.is_empty() {
                return Ok(HostName::default());
            }
            host::split(text).map(HostName::new).map_err(|_| refuse("invalid Host"))
        }
        None if head.version == Version::HTTP_11 && authority.is_none() => Err(refuse("no Host")),
        None => {
            let host = authority.and_then(|authority| host::split(authority.as_str()).ok());
            Ok(host.map(HostName::new).unwrap_or_default())
        }
    }
}

fn path(session: &Session, ctx: &mut RequestCtx, options: &Options) -> Result<(), Reply> {
    let head = session.req_header();
    let raw = head.raw_path();
    if raw == b"*" {
        return Ok(());
    }
    let target = uri::split_target(raw);
    let normal = uri::normalize(target.path).map_err(|e| Reply::status(400).because(e.to_string()))?;
    let mut path = normal;
    if options.delete_uri_tail_slash && path.len() > 1 && path.ends_with('/') {
        path = path[..path.len() - 1].to_owned().into();
    }
    if options.normalize_uri_like_servlet && path.contains(';') {
        let sent = escape_uri_control_chars(&path).into_owned();
        path = uri::normalize_uri_like_servlet(&path)
            .map_err(|e| Reply::status(400).because(e.to_string()))?
            .into_owned()
            .into();
        ctx.edits.uri = Some(sent);
    }
    if *path != *head.uri.path() {
        ctx.path = Some(path.into());
    }
    Ok(())
}

fn body_size(session: &Session, options: &Options) -> Result<(), Reply> {
    let Some(limit) = options.max_body else { return Ok(()) };
    let declared = session.req_header().headers.get(header::CONTENT_LENGTH);
    let declared =
        declared.and_then(|value| value.to_str().ok()).and_then(|text| text.trim().parse::<u64>().ok());
    match declared {
        Some(length) if length > limit => Err(Reply::status(413).because("client_max_body_size")),
        _ => Ok(()),
    }
}

// As text: Pingora keeps the case of a name, and copies one that is not static.
const X_FORWARDED_PROTO: &str = "X-Forwarded-Proto";
const X_FORWARDED_HOST: &str = "X-Forwarded-Host";
const X_FORWARDED_PORT: &str = "X-Forwarded-Port";
pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The headers that tell the upstream who authenticated; only the gateway writes them.
const IDENTITY: [HeaderName; 3] = crate::plugin::exchange::IDENTITY_HEADERS;

/// Makes the headers say what the gateway itself saw, unless the peer is trusted. Plugins may change them later.
///
/// Differs from APISIX: identity headers that a client sent are dropped on every route, not only where
/// authentication overwrites them, and so are those that only look like them to CGI.
pub fn sanitize(session: &mut Session, ctx: &RequestCtx, options: &Options, claims: bool) {
    if !ctx.peer_trusted && claims {
        drop_untrusted(session, options);
    }
    if !options.compat.overwrites_forwarded() {
        return derive_forwarded(session, ctx);
    }
    let host = host_header(session);
    let port = forwarded_port(host.as_ref(), ctx.server.port());
    let head = session.req_header_mut();
    let mut state = |name: &'static str, value: Option<http::HeaderValue>| {
        let kept = ctx.peer_trusted && head.headers.get(name).is_some_and(|sent| !sent.is_empty());
        if let (false, Some(value)) = (kept, value) {
            // Fails only when the header map is full, which its parser bounds.
            let _ = head.insert_header(name, value);
        }
    };
    state(X_FORWARDED_PROTO, Some(http::HeaderValue::from_static(ctx.scheme)));
    state(X_FORWARDED_HOST, host);
    state(X_FORWARDED_PORT, Some(port));
}

/// As APISIX 3.2: what anybody sends stands, its first value alone; the host comes without its port, which is the
/// listener's. APISIX 3.2: `init.lua set_upstream_headers`, `cli/ngx_tpl.lua`.
fn derive_forwarded(session: &mut Session, ctx: &RequestCtx) {
    let host = host_header(session);
    let name = host.as_ref().and_then(|host| host::split(host.to_str().ok()?).ok());
    let derived = [
        (X_FORWARDED_PROTO, Some(http::HeaderValue::from_static(ctx.scheme))),
        (X_FORWARDED_HOST, name.and_then(|host| http::HeaderValue::from_str(&host.name).ok())),
        (X_FORWARDED_PORT, Some(ctx.server.port().into())),
    ];
    let head = session.req_header_mut();
    for (name, value) in derived {
        let sent = head.headers.get(name).cloned();
        if let Some(value) = sent.or(value) {
            // Fails only when the header map is full, which its parser bounds.
            let _ = head.insert_header(name, value);
        }
    }
}

/// Whether a header is one of [`IDENTITY`], also with `_` for `-`: CGI, WSGI and their like do not tell them apart.
fn names_identity(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    let same = |(one, other): (&u8, &u8)| one == other || (*one == b'_' && *other == b'-');
    let is = |known: &HeaderName| {
        let known = known.as_str().as_bytes();
        known.len() == name.len() && name.iter().zip(known).all(same)
    };
    name.starts_with(b"x") && IDENTITY.iter().any(is)
}

fn drop_untrusted(session: &mut Session, options: &Options) {
    let head = session.req_header_mut();
    // A loop because removing one may leave another; almost no request takes more than one turn.
    while let Some(name) = head.headers.keys().find(|name| names_identity(name)).cloned() {
        head.remove_header(&name);
    }
    if head.headers.contains_key(header::FORWARDED) {
        head.remove_header(&header::FORWARDED);
    }
    // Only where a trust boundary was drawn: without one the chain is kept, as APISIX does.
    if options.trusted.is_some() && head.headers.contains_key(&X_FORWARDED_FOR) {
        head.remove_header(&X_FORWARDED_FOR);
    }
}

/// The Host as the client gave it; `:authority` in HTTP/2.
pub(super) fn host_header(session: &Session) -> Option<http::HeaderValue> {
    let head = session.req_header();
    match head.headers.get(header::HOST) {
        Some(value) => Some(value.clone()),
        None => head.uri.authority().and_then(|authority| authority.as_str().parse().ok()),
    }
}

fn forwarded_port(host: Option<&http::HeaderValue>, listener: u16) -> http::HeaderValue {
    let port = host
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.rsplit_once(':'))
        .map(|(_, port)| port)
        .filter(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    match port {
        Some(port) => port.parse().unwrap_or_else(|_| listener.into()),
        None => listener.into(),
    }
}
