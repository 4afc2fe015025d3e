//! Why a call to a runner failed.

use std::{io, time::Duration};

/// What a runner says instead of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// It did not understand, or a plugin of a Python runner failed.
    BadRequest,
    /// Its plugin failed.
    ServiceUnavailable,
    /// It does not know the conf token.
    TokenNotFound,
    /// A number that means nothing here.
    Unknown(u8),
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// config.yaml has neither `ext-plugin.cmd` nor `path_for_test` nor `runners`.
    #[error("no runner is configured")]
    NoRunner,
    /// None of the runner's processes is ready.
    #[error("runner {0}: no process of it is ready")]
    NotReady(Box<str>),
    /// So many calls failed that none is made for a while.
    #[error("runner {0}: its circuit breaker is open")]
    Broken(Box<str>),
    /// Every connection was in use for too long.
    #[error("runner {runner}: no connection became free within {waited:?}")]
    Busy {
        /// The runner.
        runner: Box<str>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Its socket does not answer.
    #[error("failed to connect to the unix socket {path}: {source}")]
    Connect {
        /// The socket.
        path: Box<str>,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the runner broke: {0}")]
    Io(#[from] io::Error),
    /// The runner closed the connection in place of a reply.
    #[error("the runner closed the connection")]
    Closed,
    /// The connection ended inside of a frame.
    #[error("the runner closed the connection inside of a frame")]
    Cut,
    /// It did not answer in time.
    #[error("the runner did not answer within {0:?}")]
    Timeout(Duration),
    /// What would have to be sent is more than a frame can carry.
    #[error("{what} is larger than the {} bytes that a frame can carry", super::frame::MAX_PAYLOAD)]
    TooLarge {
        /// What.
        what: &'static str,
    },
    /// It answered with an error.
    #[error("the runner answered: {}", .0.text())]
    Refused(Code),
    /// A reply of a type that nobody asked for.
    #[error("the runner answered with a frame of type {0}")]
    UnexpectedType(u8),
    /// A reply to another call: the stream cannot be trusted any more.
    #[error("the runner answered call {got} instead of {asked}")]
    OtherCall {
        /// The reply's id.
        got: u32,
        /// Ours.
        asked: u32,
    },
    /// A frame whose payload is not what its type says.
    #[error("the runner sent a broken message: {0}")]
    Malformed(String),
    /// The runner asked for something that no call has.
    #[error("the runner asked for extra info of type {0}")]
    UnknownQuestion(u8),
    /// What the runner asked for cannot be had.
    #[error("what the runner asked for cannot be had: {why}")]
    Unanswerable {
        /// What the client is told.
        status: u16,
        /// Why.
        why: String,
    },
    /// The method has no number in the protocol.
    #[error("the protocol has no number for the method {0}")]
    Method(String),
    /// The reply asks for something that HTTP does not have.
    #[error("the runner answered {0}")]
    Absurd(String),
}

impl Code {
    /// By its number.
    pub fn new(number: u8) -> Code {
        match number {
            0 => Code::BadRequest,
            1 => Code::ServiceUnavailable,
            2 => Code::TokenNotFound,
            other => Code::Unknown(other),
        }
    }

    /// APISIX's words: ext-plugin/init.lua `err_to_msg`.
    fn text(self) -> String {
        match self {
            Code::BadRequest => "bad request".into(),
            Code::ServiceUnavailable => "service unavailable".into(),
            Code::TokenNotFound => "conf token not found".into(),
            Code::Unknown(number) => format!("unknown err {number}"),
        }
    }
}

impl CallError {
    /// What the client is told: 503 as in APISIX, or 413 when it sent more than a frame can carry.
    pub fn status(&self) -> u16 {
        match self {
            CallError::TooLarge { what: REQUEST_BODY } => 413,
            CallError::Unanswerable { status, .. } => *status,
            _ => 503,
        }
    }

    /// A word for it, as metrics and logs have it: one of [`KINDS`].
    pub fn kind(&self) -> &'static str {
        match self {
            CallError::NoRunner => "no_runner",
            CallError::NotReady(_) => "not_ready",
            CallError::Broken(_) => "circuit_open",
            CallError::Busy { .. } => "queue_timeout",
            CallError::Connect { .. } => "connect",
            CallError::Io(_) => "io",
            CallError::Closed => "closed",
            CallError::Cut => "cut",
            CallError::Timeout(_) => "timeout",
            CallError::TooLarge { .. } => "too_large",
            CallError::Refused(Code::BadRequest) => "bad_request",
            CallError::Refused(Code::ServiceUnavailable) => "service_unavailable",
            CallError::Refused(Code::TokenNotFound) => "token_not_found",
            CallError::Refused(Code::Unknown(_)) => "unknown_error",
            CallError::UnexpectedType(_) => "unexpected_type",
            CallError::OtherCall { .. } => "other_call",
            CallError::Malformed(_) => "malformed",
            CallError::UnknownQuestion(_) => "unknown_question",
            CallError::Unanswerable { .. } => "unanswerable",
            CallError::Method(_) => "method",
            CallError::Absurd(_) => "absurd",
        }
    }

    /// Whether the runner is to blame, so that its circuit breaker counts it.
    pub fn is_runners(&self) -> bool {
        matches!(
            self,
            CallError::Connect { .. }
                | CallError::Io(_)
                | CallError::Closed
                | CallError::Cut
                | CallError::Timeout(_)
                | CallError::Malformed(_)
                | CallError::UnexpectedType(_)
                | CallError::OtherCall { .. }
        )
    }
}

/// All words for errors.
pub const KINDS: [&str; 21] = [
    "no_runner",
    "not_ready",
    "circuit_open",
    "queue_timeout",
    "connect",
    "io",
    "closed",
    "cut",
    "timeout",
    "too_large",
    "bad_request",
    "service_unavailable",
    "token_not_found",
    "unknown_error",
    "unexpected_type",
    "other_call",
    "malformed",
    "unknown_question",
    "unanswerable",
    "method",
    "absurd",
];

/// What is too large when a client sent it.
pub const REQUEST_BODY: &str = "the request body";
