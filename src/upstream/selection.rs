//! What one request remembers between its tries.
//!
//! Invariant: the first try allocates nothing.

use std::time::Instant;

/// The tries of one request; new for every request.
#[derive(Debug, Default)]
pub struct Selection {
    /// Indices of the nodes that failed, few by nature.
    tried: Vec<u32>,
    /// The priority group picked from.
    pub(super) group: usize,
    /// Tries made so far, the running one included.
    tries: u32,
    /// After this moment there is no other try.
    pub(super) deadline: Option<Instant>,
}

impl Selection {
    /// Tries made so far, the running one included.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    pub(super) fn count_try(&mut self) {
        self.tries += 1;
    }

    pub(super) fn has_tried(&self, node: u32) -> bool {
        self.tried.contains(&node)
    }

    pub(super) fn mark_tried(&mut self, node: u32) {
        if !self.has_tried(node) {
            self.tried.push(node);
        }
    }
}

/// Whether a request gets another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Pick again.
    Again,
    /// `retries` are used up: the error stands.
    Exhausted,
    /// `retry_timeout` has passed: 502.
    TimedOut,
}

/// How a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection, or it broke.
    Tcp,
    /// No answer in time.
    Timeout,
    /// An answer that calls for another node.
    Status(u16),
}
