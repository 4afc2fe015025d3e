//! The plugins over HTTP: for each the essential cases, as a client and an upstream see them.
//!
//! One module per group; what only the code can see is tested beside it.

mod auth;
mod cas_auth;
mod consumers;
mod decision;
mod judged;
mod ldap;
mod limit;
mod loggers;
mod openid_connect;
mod pinned;
mod reasons;
mod refusals;
mod secrets;
mod security;
mod tokens;
mod transform;
mod wolf;

use serde_json::{Value, json};

use crate::support::{client::Response, gateway::Gateway, upstream::Upstream};

/// A gateway with one route for everything, and its upstream that tells what it saw.
struct Fixture {
    gateway: Gateway,
    upstream: Upstream,
}

impl Fixture {
    /// One route with these plugins.
    #[track_caller]
    fn new(plugins: Value) -> Self {
        Self::with_consumers(plugins, json!([]))
    }

    /// One route with these plugins, and consumers.
    #[track_caller]
    fn with_consumers(plugins: Value, consumers: Value) -> Self {
        let upstream = Upstream::echo();
        let route = json!({"id": "1", "uri": "/*", "plugins": plugins, "upstream": upstream.resource()});
        let gateway = Gateway::file(json!({"routes": [route], "consumers": consumers}));
        Self { gateway, upstream }
    }

    /// GET with headers.
    #[track_caller]
    fn get(&self, target: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = self.gateway.request("GET", target);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.send()
    }
}

/// The body of a plugin's refusal.
fn message(text: &str) -> String {
    format!("{}\n", json!({"message": text}))
}
