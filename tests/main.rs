//! The black-box tests: the built program, driven as users drive it. This binary does not know the library.
//!
//! One module per part of what the program promises; `support` is what they stand on, `tidy` holds the rules of
//! the source tree. `PORTCULLIS_LONG=1` lengthens the runs that look for slow leaks.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

mod admin;
mod article;
mod bad_input;
mod bodies;
mod churn;
mod docs;
mod early_answers;
mod ext_plugin;
mod file_mode;
mod ops;
mod pipelining;
mod plugins;
mod process;
mod routing;
mod secure_upstream;
mod speaking_3_2;
mod store;
mod tidy;
mod upstream;
mod wire;
