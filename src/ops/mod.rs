//! Operation: what an operator sees of a running gateway, and the signals it obeys.
//!
//! [`access_log`] and [`telemetry`] write the two logs; [`control_api`], [`status`] and [`export`] answer on
//! listeners of their own; [`signals`] tells Pingora when to stop. Invariant: nothing here changes how a request is
//! answered, and nothing on the way of a request waits for a disk.

pub mod access_log;
mod answer;
pub mod control_api;
pub mod export;
mod health_page;
mod log_file;
pub mod log_format;
mod runners_page;
pub mod signals;
mod sink;
pub mod status;
pub mod telemetry;
mod view;
