//! `apisix.status`: whether the gateway runs, and whether it has its configuration. APISIX: init.lua `status_ready`.
//!
//! Ready once is ready for good: a store that goes away later does not take the configuration with it, and during a
//! graceful stop the listener closes like the others. Invariant: answering reads two values and nothing else.

use std::sync::Arc;

use async_trait::async_trait;
use http::{Response, StatusCode};
use pingora::{apps::http_app::ServeHttp, protocols::http::ServerSession};

use super::answer;
use crate::{control::Control, store::standalone::Standalone};

/// See the module.
pub struct Status {
    control: Arc<Control>,
    standalone: Option<Arc<Standalone>>,
}

impl Status {
    /// Answers for what this loop has loaded; in API-driven standalone mode that is nothing before the first document.
    pub fn new(control: Arc<Control>, standalone: Option<Arc<Standalone>>) -> Status {
        Status { control, standalone }
    }

    /// The answer to a path, whatever the method, as in APISIX.
    pub fn handle(&self, path: &str) -> Response<Vec<u8>> {
        let is_fed = self.standalone.as_ref().is_none_or(|standalone| standalone.is_fed());
        respond(path, is_fed && self.control.progress().loaded)
    }
}

/// nginx takes the longest of the prefixes `/status` and `/status/ready`.
fn respond(path: &str, loaded: bool) -> Response<Vec<u8>> {
    if !path.starts_with("/status") {
        return answer::not_found();
    }
    if loaded || !path.starts_with("/status/ready") {
        return answer::text(StatusCode::OK, r#"{"status":"ok"}"#);
    }
    // One loop stands for all workers here.
    let body = r#"{"status":"error","error":"worker id: 0 has not received configuration"}"#;
    answer::text(StatusCode::SERVICE_UNAVAILABLE, body)
}

#[async_trait]
impl ServeHttp for Status {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let head = session.req_header();
        answer::for_method(self.handle(head.uri.path()), &head.method)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        #[track_caller]
        fn check(path: &str, loaded: bool, status: u16, body: &str) {
            let response = respond(path, loaded);
            assert_eq!(response.status(), status, "{path}");
            let written = String::from_utf8_lossy(response.body());
            assert!(written.contains(body), "{path}: {written}");
        }
        let not_yet = r#"{"status":"error","error":"worker id: 0 has not received configuration"}"#;
        for loaded in [false, true] {
            check("/status", loaded, 200, r#"{"status":"ok"}"#);
            check("/status/", loaded, 200, r#"{"status":"ok"}"#);
            check("/", loaded, 404, "404 Not Found");
            check("/x/status", loaded, 404, "404 Not Found");
        }
        check("/status/ready", true, 200, r#"{"status":"ok"}"#);
        check("/status/ready", false, 503, not_yet);
        check("/status/ready/", false, 503, not_yet);
    }
}
