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

/// A response made by the gateway.
///
/// Its Content-Type is `text/plain; charset=utf-8` unless a header says otherwise, also for JSON: that is
/// what APISIX sends (nginx `default_type`).
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Status code, 200–599.
    pub status: u16,
    /// Headers that replace those of the same name.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What is sent after the head.
    pub body: ReplyBody,
    /// Why, for the log only; never shown to the client.
    pub reason: Option<String>,
}

impl Reply {
    /// A bare status, with the default error page.
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: ReplyBody::Default, reason: None }
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
}

impl From<Reply> for Flow {
    fn from(reply: Reply) -> Self {
        ControlFlow::Break(reply)
    }
}
