//! What the fuzzers run: one module for each kind of foreign bytes, each with the invariant it holds.
//!
//! A module has one function, `run`, which panics when the invariant is broken. `fuzz_targets` hands it to libFuzzer,
//! `smoke` runs it over the seeds and over mutations of them, on any toolchain.

use serde_json::Value;

pub mod admin_body;
pub mod args;
pub mod basic_auth;
pub mod chunked;
pub mod config;
pub mod cookie;
pub mod discovery;
pub mod escape;
pub mod expr;
pub mod ext_plugin_frame;
pub mod ext_plugin_reply;
pub mod head;
pub mod hmac;
pub mod host;
pub mod jsonpath;
pub mod jwe;
pub mod jwks;
pub mod jwt;
pub mod ldap;
pub mod log_format;
pub mod pcre;
pub mod post_body;
pub mod request_line;
pub mod resources;
pub mod router;
pub mod schema;
pub mod session_cookie;
#[cfg(test)]
mod smoke;
pub mod target;
pub mod template;

/// Takes an input, and panics when the invariant of its module is broken.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: &[(&str, Target)] = &[
    ("admin_body", admin_body::run),
    ("args", args::run),
    ("basic_auth", basic_auth::run),
    ("chunked", chunked::run),
    ("config", config::run),
    ("cookie", cookie::run),
    ("discovery", discovery::run),
    ("escape", escape::run),
    ("expr", expr::run),
    ("ext_plugin_frame", ext_plugin_frame::run),
    ("ext_plugin_reply", ext_plugin_reply::run),
    ("head", head::run),
    ("hmac", hmac::run),
    ("host", host::run),
    ("jsonpath", jsonpath::run),
    ("jwe", jwe::run),
    ("jwks", jwks::run),
    ("jwt", jwt::run),
    ("ldap", ldap::run),
    ("log_format", log_format::run),
    ("pcre", pcre::run),
    ("post_body", post_body::run),
    ("request_line", request_line::run),
    ("resources", resources::run),
    ("router", router::run),
    ("schema", schema::run),
    ("session_cookie", session_cookie::run),
    ("target", target::run),
    ("template", template::run),
];

/// The first line and what follows it; `None` when one of them is no text.
fn lines(data: &[u8]) -> Option<(&str, &str)> {
    std::str::from_utf8(data).ok()?.split_once('\n')
}

/// A JSON value; `None` when it is none.
fn json(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

/// A request whose every variable is a part of a text, chosen by the variable's name.
struct Anything<'t>(&'t str);

impl portcullis::vars::var::Lookup for Anything<'_> {
    fn get(&self, var: &portcullis::vars::var::Var) -> Option<std::borrow::Cow<'_, str>> {
        let at = var.name().len() % (self.0.len() + 1);
        self.0.get(at..).map(Into::into)
    }
}
