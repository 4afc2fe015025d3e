//! The listener from which Prometheus fetches metrics: `plugin_attr.prometheus.export_addr` and `export_uri`.
//! APISIX: plugins/prometheus/exporter.lua `export_metrics`.
//!
//! Invariant: it renders what it is given and knows no metric.

use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, Response, StatusCode};
use pingora::{apps::http_app::ServeHttp, protocols::http::ServerSession};
use serde_json::Value;

use super::answer;

/// `export_uri` when it is not written.
const DEFAULT_URI: &str = "/apisix/prometheus/metrics";

/// Writes all metrics down in Prometheus' text format.
pub type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// See the module.
pub struct Export {
    uri: Box<str>,
    render: Render,
}

impl Export {
    /// Takes the path from `plugin_attr.prometheus`.
    pub fn new(attr: Option<&Value>, render: Render) -> Export {
        let uri = attr.and_then(|attr| attr.get("export_uri")).and_then(Value::as_str);
        Export { uri: uri.unwrap_or(DEFAULT_URI).into(), render }
    }

    /// The answer to a request.
    pub fn handle(&self, method: &Method, path: &str) -> Response<Vec<u8>> {
        if method == Method::GET && path == &*self.uri {
            answer::text(StatusCode::OK, (self.render)())
        } else {
            answer::not_found()
        }
    }
}

#[async_trait]
impl ServeHttp for Export {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let head = session.req_header();
        answer::for_method(self.handle(&head.method, head.uri.path()), &head.method)
    }
}

#[cfg(test)]
mod tests {
    use http::header;
    use serde_json::json;

    use super::*;

    #[test]
    fn answers() {
        #[track_caller]
        fn check(attr: Value, method: Method, path: &str, status: u16) {
            let export = Export::new(Some(&attr), Arc::new(|| "up 1\n".into()));
            let response = export.handle(&method, path);
            assert_eq!(response.status(), status, "{path}");
            if status == 200 {
                assert_eq!(response.body(), b"up 1\n");
                assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
            }
        }
        check(json!({}), Method::GET, "/apisix/prometheus/metrics", 200);
        check(json!({}), Method::GET, "/apisix/prometheus/metrics/", 404);
        check(json!({}), Method::POST, "/apisix/prometheus/metrics", 404);
        check(json!({}), Method::HEAD, "/apisix/prometheus/metrics", 404);
        check(json!({"export_uri": "/m"}), Method::GET, "/m", 200);
        check(json!({"export_uri": "/m"}), Method::GET, "/apisix/prometheus/metrics", 404);
    }
}
