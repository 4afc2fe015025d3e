//! The variables of one exchange, by name as nginx and APISIX have them.
//!
//! Invariant: asking never changes anything that somebody could see, and never waits: a body that a variable
//! needs was read before.

use std::{
    borrow::Cow,
    fmt::Write,
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, Version, header};

use super::{
    body::BodyState,
    exchange::Exchange,
    ext_calls,
    request::{RequestCtx, Try},
};
use crate::{
    net::{args, host, lossless},
    vars::{
        body::PostBody,
        clock, cookie,
        lua::Value,
        var::{Lookup, Var, same_header},
    },
};

static HOSTNAME: LazyLock<String> = LazyLock::new(|| {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".into(), |name| name.trim().into())
});

/// The name of this machine.
pub fn hostname() -> &'static str {
    &HOSTNAME
}

impl Lookup for Exchange<'_> {
    fn get(&self, var: &Var) -> Option<Cow<'_, str>> {
        match var {
            Var::Uri => Some(self.path().into()),
            Var::Args => Some(self.args().into()),
            Var::Method => Some(self.method().as_str().into()),
            Var::Host => self.host(),
            Var::RemoteAddr => Some(self.ctx.client.ip().to_string().into()),
            Var::Arg(name) => args::text(self.args().as_bytes(), name),
            Var::Http(name) => self.request_header(name),
            Var::Cookie(name) => cookie::find(self.header(header::COOKIE)?, name).map(Cow::Borrowed),
            Var::UriParam(name) => self
                .ctx
                .params
                .iter()
                .find(|(param, _)| param == name)
                .map(|(_, value)| Cow::Borrowed(&**value)),
            Var::PostArg(_) | Var::PostArgPath { .. } => self.value(var).map(Value::into_text),
            _ => self.of_request(var).or_else(|| self.of_route(var)).or_else(|| self.of_response(var)),
        }
    }

    fn value(&self, var: &Var) -> Option<Value<'_>> {
        match var {
            Var::PostArg(name) => self.post_body()?.field(name),
            Var::PostArgPath { path, .. } => self.post_body()?.path(path),
            _ => self.get(var).map(Value::Text),
        }
    }
}

/// A line that was sent, in the pieces of a request's; one that is none is one piece.
fn pieces(line: &[u8]) -> [&[u8]; 5] {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    match (words.next(), words.next(), words.next()) {
        (Some(method), Some(target), Some(rest)) => [method, b" ", target, b" ", rest],
        _ => [line, b"", b"", b"", b""],
    }
}

impl Exchange<'_> {
    /// The Host header as it came; `:authority` in HTTP/2.
    pub fn http_host(&self) -> Option<&str> {
        match self.header(header::HOST) {
            Some(host) => Some(host),
            None => self.session.req_header().uri.authority().map(|authority| authority.as_str()),
        }
    }

    fn host(&self) -> Option<Cow<'_, str>> {
        host::split(self.http_host()?).ok().map(|host| host.name)
    }

    fn request_header(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            "host" => self.http_host().map(Cow::Borrowed),
            _ => find_header(&self.session.req_header().headers, name),
        }
    }

    fn post_body(&self) -> Option<&PostBody> {
        let (BodyState::Read(body) | BodyState::PutBack(body)) = &self.ctx.body else { return None };
        let parsed = self.ctx.post_body.get_or_init(|| {
            let kind = self.header(header::CONTENT_TYPE);
            PostBody::parse(kind, body)
                .inspect_err(|e| tracing::debug!(error = %e, "post_arg has no value"))
                .ok()
        });
        parsed.as_ref()
    }

    fn of_request(&self, var: &Var) -> Option<Cow<'_, str>> {
        let head = self.session.req_header();
        Some(match var {
            Var::RequestUri => self.request_uri(),
            Var::RealRequestUri => lossless::from_bytes(head.raw_path()),
            Var::RequestLine => lossless::from_bytes(&self.request_line().concat()).into_owned().into(),
            Var::IsArgs => if self.args().is_empty() { "" } else { "?" }.into(),
            Var::Scheme => self.ctx.scheme.into(),
            Var::Https => if self.ctx.scheme == "https" { "on" } else { "" }.into(),
            Var::ServerName => "_".into(),
            Var::ServerPort => self.ctx.server.port().to_string().into(),
            Var::ServerAddr => self.ctx.server.ip().to_string().into(),
            Var::RemotePort => self.ctx.client.port().to_string().into(),
            Var::RealipRemoteAddr => self.ctx.peer.ip().to_string().into(),
            Var::RealipRemotePort => self.ctx.peer.port().to_string().into(),
            Var::RemoteUser => return self.remote_user().map(Cow::Owned),
            Var::ServerProtocol => protocol(head.version).into(),
            Var::RequestId | Var::ApisixRequestId => self.ctx.id().into(),
            Var::RequestTime => seconds(self.ctx.started.elapsed()).into(),
            Var::RequestLength => {
                (self.head_length() + self.session.as_downstream().body_bytes_read()).to_string().into()
            }
            Var::RequestBody => match &self.ctx.body {
                BodyState::Read(body) | BodyState::PutBack(body) => String::from_utf8_lossy(body),
                BodyState::Unread => return None,
            },
            Var::Msec => milliseconds(SystemTime::now()).into(),
            Var::TimeIso8601 => clock::iso8601(self.ctx.started_at).into(),
            Var::TimeLocal => clock::common_log(self.ctx.started_at).into(),
            Var::Hostname => HOSTNAME.as_str().into(),
            Var::Pid => std::process::id().to_string().into(),
            Var::SslProtocol => return self.tls().map(|tls| tls.version.clone()),
            Var::SslCipher => return self.tls().map(|tls| tls.cipher.clone()),
            _ => return None,
        })
    }

    fn of_route(&self, var: &Var) -> Option<Cow<'_, str>> {
        let route = self.ctx.route.as_ref();
        let text = |text: &'_ std::sync::Arc<str>| Some(Cow::Owned(text.to_string()));
        match var {
            Var::ConsumerName => {
                self.ctx.consumer.as_ref().map(|consumer| Cow::Borrowed(&*consumer.username))
            }
            Var::ConsumerGroupId => self.ctx.consumer.as_ref()?.group_id.as_deref().map(Cow::Borrowed),
            Var::RouteId => text(&route?.id),
            Var::RouteName => text(route?.name.as_ref()?),
            Var::ServiceId => text(route?.service_id.as_ref()?),
            Var::ServiceName => text(route?.service_name.as_ref()?),
            Var::MatchedUri => {
                route?.paths.get(usize::from(self.ctx.matched_path)).map(|path| Cow::Borrowed(&**path))
            }
            Var::MatchedHost => {
                route?.hosts.get(usize::from(self.ctx.matched_host?)).map(|host| Cow::Borrowed(&**host))
            }
            Var::Other(name) if **name == *"credential_identifier" => {
                self.ctx.credential.as_ref().map(|(id, _)| Cow::Borrowed(&**id))
            }
            Var::Other(name) if name.starts_with("ext_plugin_") => {
                ext_calls::variable(self.ctx, name).map(Cow::Owned)
            }
            _ => None,
        }
    }

    fn of_response(&self, var: &Var) -> Option<Cow<'_, str>> {
        let upstream = &self.ctx.upstream;
        let per_try = |show: fn(&Try) -> Option<String>| {
            (!upstream.tries.is_empty()).then(|| join(&upstream.tries, show))
        };
        let sent = self.session.response_written();
        match var {
            Var::Status => self.ctx.status.map(|status| status.to_string().into()),
            Var::BytesSent | Var::BodyBytesSent => {
                Some(self.session.as_downstream().body_bytes_sent().to_string().into())
            }
            Var::UpstreamAddr => per_try(|one| Some(one.addr.to_string())),
            Var::UpstreamStatus => per_try(|one| one.status.map(|status| status.to_string())),
            Var::UpstreamResponseTime => per_try(|one| one.total.map(seconds)),
            Var::UpstreamConnectTime => per_try(|one| one.connect.map(seconds)),
            Var::UpstreamHeaderTime => per_try(|one| one.header.map(seconds)),
            Var::UpstreamResponseLength | Var::UpstreamBytesReceived => {
                Some(self.session.upstream_body_bytes_received().to_string().into())
            }
            Var::ApisixUpstreamResponseTime => {
                upstream.tries.last()?.total.map(|total| total.as_millis().to_string().into())
            }
            Var::UpstreamHost => upstream.host.as_ref()?.to_str().ok().map(Cow::Borrowed),
            Var::UpstreamScheme => {
                Some(if upstream.scheme.is_empty() { "http" } else { upstream.scheme }.into())
            }
            Var::UpstreamUri => Some(self.upstream_uri()),
            Var::BalancerIp => upstream.tries.last().map(|last| last.addr.ip().to_string().into()),
            Var::BalancerPort => upstream.tries.last().map(|last| last.addr.port().to_string().into()),
            Var::SentHttp(name) => find_header(&sent?.headers, name),
            Var::UpstreamHttp(name) if upstream.answered => find_header(&sent?.headers, name),
            _ => None,
        }
    }

    /// `$request` in pieces, to be written one after the other.
    pub(super) fn request_line(&self) -> [&[u8]; 5] {
        if let Some(line) = &self.ctx.sent_line {
            return pieces(line);
        }
        let head = self.session.req_header();
        let protocol = protocol(head.version).as_bytes();
        [head.method.as_str().as_bytes(), b" ", head.raw_path(), b" ", protocol]
    }

    /// `$request_uri` as APISIX restates it: the normalised path with the query.
    fn request_uri(&self) -> Cow<'_, str> {
        match self.session.req_header().uri.query() {
            Some(query) if !query.is_empty() => format!("{}?{query}", self.path()).into(),
            _ => self.path().into(),
        }
    }

    /// What goes to the node; empty while nothing rewrote it and it is what the client sent.
    fn upstream_uri(&self) -> Cow<'_, str> {
        self.ctx.edits.uri.as_deref().unwrap_or_default().into()
    }

    /// The user name of `Authorization: Basic`, for logs.
    fn remote_user(&self) -> Option<String> {
        let value = self.header(header::AUTHORIZATION)?;
        let (scheme, token) = value.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = STANDARD.decode(token.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        text.split_once(':').map(|(user, _)| user.to_owned()).filter(|user| !user.is_empty())
    }

    fn head_length(&self) -> usize {
        self.session.as_downstream().as_http1().map_or(0, |session| session.get_headers_raw_bytes().len())
    }

    fn tls(&self) -> Option<&pingora::protocols::tls::SslDigest> {
        self.session.digest()?.ssl_digest.as_deref()
    }
}

impl RequestCtx {
    /// The id of this request, made when somebody first asks: what the request-id plugin gave, else 32 random
    /// hex digits (nginx: `$request_id`).
    pub fn id(&self) -> &str {
        match &self.request_id {
            Some(id) => id,
            None => self.own_id.get_or_init(|| format!("{:032x}", fastrand::u128(..)).into()),
        }
    }
}

/// A header by name, `_` standing for `-` as in nginx's variables.
pub fn find_header<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, str>> {
    let found = match headers.get(name) {
        Some(value) => value,
        None if name.contains('-') => headers.iter().find(|(other, _)| same_header(other.as_str(), name))?.1,
        None => return None,
    };
    Some(lossless::from_bytes(found.as_bytes()))
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

fn join(tries: &[Try], show: fn(&Try) -> Option<String>) -> Cow<'static, str> {
    let mut all = String::new();
    for one in tries {
        let gap = if all.is_empty() { "" } else { ", " };
        let text = show(one);
        // Writing to a String cannot fail.
        let _ = write!(all, "{gap}{}", text.as_deref().unwrap_or("-"));
    }
    all.into()
}

fn seconds(time: Duration) -> String {
    format!("{}.{:03}", time.as_secs(), time.subsec_millis())
}

fn milliseconds(now: SystemTime) -> String {
    now.duration_since(UNIX_EPOCH).map_or_else(|_| "0.000".into(), seconds)
}
