//! External plugins: programs of the user's own that take part in requests and responses, in any language.
//!
//! A *runner* is a process that holds such plugins and listens on a unix socket. The gateway makes calls to it
//! ([`call`]), one at a time on a connection ([`conn`]), in the frames ([`frame`]) and messages ([`message`]) that
//! APISIX speaks with its runners. It knows nothing of HTTP exchanges: who calls says what to send and answers what
//! the runner asks back ([`call::Answers`]).
//!
//! Invariant: a runner that hangs, dies or talks nonsense costs the calls it was given, never the gateway.

pub mod breaker;
pub mod call;
pub mod conn;
pub mod error;
mod files;
pub mod frame;
pub mod guard;
pub mod message;
pub mod output;
pub mod pool;
// flatc writes unsafe code; see Cargo.toml. Only `message` and tests name it.
#[allow(unsafe_code, missing_docs, unused, clippy::all, clippy::unwrap_used)]
pub mod proto;
pub mod report;
pub mod runner;
pub mod stats;
pub mod supervisor;
pub mod token;
pub mod watch;
