//! Why a login does not go on: a sentence for the log, and whose fault it is.

use super::token::Doubt;
use crate::plugin::reply::{Class, Reply};

/// See the module.
pub struct Fault {
    pub(super) class: Class,
    reason: String,
}

impl Fault {
    /// Of another class than the gateway's own faults.
    pub(super) fn new(class: Class, reason: impl Into<String>) -> Self {
        Self { class, reason: reason.into() }
    }

    /// The provider, or what keeps sessions, does not answer or answers nonsense.
    pub(super) fn unavailable(reason: impl Into<String>) -> Self {
        Self::new(Class::Unavailable, reason)
    }

    /// The answer to the client, which tells nothing.
    pub(super) fn reply(self) -> Reply {
        Reply::status(500).because(format!("OIDC authentication failed: {}", self.reason)).classed(self.class)
    }
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::new(Class::Internal, reason)
    }
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

impl From<Doubt> for Fault {
    fn from(doubt: Doubt) -> Self {
        Self::new(doubt.class, doubt)
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        fault.reason
    }
}
