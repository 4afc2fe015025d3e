//! Addresses, hosts and URIs: pure functions, no I/O.
//!
//! What a request says about itself arrives as bytes; the rest of the gateway works on `str`. [`lossless`]
//! is the bridge, and everything here that turns foreign bytes into text goes through it.
//!
//! Nothing in this module may panic on any input, read a clock, or open a socket.

pub mod args;
pub mod chunked;
pub mod escape;
pub mod head;
pub mod host;
pub mod host_pattern;
pub mod ip_set;
pub mod ip_text;
pub mod letters;
pub mod lossless;
pub mod request_line;
pub mod uri;
