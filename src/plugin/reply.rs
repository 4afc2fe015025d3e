//! A response that the gateway makes itself, as a plugin describes it.
//!
//! Invariant: nothing here writes to the client; `proxy::respond` is the only place that does.

use std::ops::ControlFlow;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use serde_json::{Value, json};

/// What a hook answers: go on, or stop with a reply. `?` works on it.
pub type Flow = ControlFlow<Reply>;

/// Goes on with the next plugin.
pub const CONTINUE: Flow = ControlFlow::Continue(());

/// The body of a [`Reply`].
#[derive(Clone, Debug, PartialEq)]
pub enum ReplyBody {
    /// None given: for a status ≥ 300 the error page of the gateway is sent, as nginx does it.
    Default,
    /// A JSON document; APISIX ends it with a newline.
    Json(Value),
    /// Bytes as they are.
    Bytes(Bytes),
}

/// What kind of reason a refusal has: the label of its counter, so the set is small and fixed.
///
/// A reply has none of its own as long as its status tells enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// There are no credentials.
    Missing,
    /// The credentials, or the request, cannot be read.
    Malformed,
    /// The credentials name nobody.
    Unknown,
    /// The credentials are not right: password, signature, digest.
    Wrong,
    /// The credentials were right at another time.
    Expired,
    /// Somebody known may not do this.
    Forbidden,
    /// Too much at once, or too often.
    Limited,
    /// Something is larger than allowed.
    TooLarge,
    /// What is asked for does not exist.
    NotFound,
    /// A service that the decision needs does not answer, or answers nonsense.
    Unavailable,
    /// The gateway or its configuration is at fault.
    Internal,
    /// None of the others.
    Other,
}

impl Class {
    /// The label: one static word.
    pub const fn label(self) -> &'static str {
        match self {
            Class::Missing => "missing",
            Class::Malformed => "malformed",
            Class::Unknown => "unknown",
            Class::Wrong => "wrong",
            Class::Expired => "expired",
            Class::Forbidden => "forbidden",
            Class::Limited => "limited",
            Class::TooLarge => "too_large",
            Class::NotFound => "not_found",
            Class::Unavailable => "unavailable",
            Class::Internal => "internal",
            Class::Other => "other",
        }
    }

    /// What a status says by itself.
    const fn of_status(status: u16) -> Self {
        match status {
            400 | 415 | 422 => Class::Malformed,
            401 | 407 => Class::Wrong,
            403 => Class::Forbidden,
            404 => Class::NotFound,
            413 | 414 | 431 => Class::TooLarge,
            429 => Class::Limited,
            500 => Class::Internal,
            502..=504 => Class::Unavailable,
            _ => Class::Other,
        }
    }
}

/// A response made by the gateway.
///
/// Its Content-Type is `text/plain; charset=utf-8`, also for JSON, unless a header says otherwise or the path that was
/// asked for ends like a file of another kind (`.html`): that is what APISIX sends (nginx `default_type`, `types`).
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Status code, 200–599.
    pub status: u16,
    /// Headers that replace those of the same name.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What is sent after the head.
    pub body: ReplyBody,
    /// Why, for the log only; never shown to the client unless `portcullis.debug_auth` is on. It holds no secret.
    pub reason: Option<String>,
    class: Option<Class>,
}

impl Reply {
    /// A bare status, with the default error page.
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: ReplyBody::Default, reason: None, class: None }
    }

    /// `{"message": text}`, the form of most plugins.
    pub fn message(status: u16, text: impl Into<String>) -> Self {
        Self::json(status, json!({ "message": text.into() }))
    }

    /// `{"error_msg": text}`, the form of the gateway's core and of some plugins.
    pub fn error_msg(status: u16, text: impl Into<String>) -> Self {
        Self::json(status, json!({ "error_msg": text.into() }))
    }

    /// A JSON document, sent with a newline at its end.
    pub fn json(status: u16, body: Value) -> Self {
        Self { body: ReplyBody::Json(body), ..Self::status(status) }
    }

    /// Bytes as they are.
    pub fn bytes(status: u16, body: impl Into<Bytes>) -> Self {
        Self { body: ReplyBody::Bytes(body.into()), ..Self::status(status) }
    }

    /// Adds a header that replaces others of its name.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Notes why, for the log.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Says what kind of reason it is, where the status does not tell.
    #[must_use]
    pub fn classed(mut self, class: Class) -> Self {
        self.class = Some(class);
        self
    }

    /// What kind of reason it is.
    pub fn class(&self) -> Class {
        self.class.unwrap_or(Class::of_status(self.status))
    }
}

impl From<Reply> for Flow {
    fn from(reply: Reply) -> Self {
        ControlFlow::Break(reply)
    }
}
