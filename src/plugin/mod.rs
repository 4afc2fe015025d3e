//! The plugin contract: what a plugin is, what it sees, and how a route's plugins become a chain.
//!
//! Start with [`contract::Plugin`]. Invariant: nothing here knows of routes' matching, stores or snapshots.

pub mod answer;
pub mod body;
pub mod chain;
pub mod consumer;
pub mod contract;
pub mod credentials;
pub mod def;
pub mod env;
pub mod exchange;
pub mod ext_calls;
pub mod fingerprint;
pub mod head_lookup;
pub mod linger;
pub mod lookup;
pub mod meta;
pub mod metrics;
pub mod phases;
pub mod reply;
pub mod request;
pub mod source;
#[cfg(test)]
pub mod testing;
