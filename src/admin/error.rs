//! The one place that makes HTTP of what went wrong, and the shape of every answer.
//!
//! Texts and statuses are APISIX's; a text here never holds a key, a secret or a stored value.

use http::{
    HeaderName, HeaderValue,
    header::{CONTENT_TYPE, DATE},
};
use serde_json::{Value, json};

use crate::{compat::Compat, store::StoreError};

/// An answer, before the edge adds what every answer has.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Headers, each at most once.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body, as sent.
    pub body: Vec<u8>,
}

/// Why a request is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// 400 with an `error_msg`.
    #[error("{0}")]
    Invalid(String),
    /// 400 with a bare text.
    #[error("{0}")]
    BareText(&'static str),
    /// 400: the body is no JSON; it is shown to who sent it.
    #[error("invalid request body: {reason}")]
    Body {
        /// What the parser says.
        reason: String,
        /// The body.
        echo: String,
    },
    /// 400: a list of faults.
    #[error("Configuration validation failed")]
    Faults(Vec<Value>),
    /// 401, with the reason for those who may know it.
    #[error("failed to check token")]
    Denied(&'static str),
    /// 404 with an `error_msg`.
    #[error("{0}")]
    NotFound(String),
    /// 404: no such resource.
    #[error("Key not found")]
    NoSuchKey,
    /// 405 with an `error_msg`.
    #[error("{0}")]
    NotAllowed(String),
    /// 503: somebody else was quicker.
    #[error("value changed before overwritten")]
    Changed,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A page of nginx: no such address, or no entry.
    #[error("status {0}")]
    Page(u16),
}

impl AdminError {
    /// The answer.
    pub fn into_response(self, compat: Compat) -> Response {
        let text = self.to_string();
        match self {
            AdminError::Invalid(_) => Response::error_msg(400, &text),
            AdminError::BareText(_) => Response::text(400, &text),
            AdminError::Body { echo, .. } => {
                Response::json(400, &json!({"error_msg": text, "req_body": echo}))
            }
            AdminError::Faults(faults) => Response::json(400, &json!({"error_msg": text, "errors": faults})),
            AdminError::Denied(why) if compat.describes_denial() => {
                Response::json(401, &json!({"description": why, "error_msg": text}))
            }
            AdminError::Denied(_) => Response::error_msg(401, &text),
            AdminError::NotFound(_) => Response::error_msg(404, &text),
            AdminError::NoSuchKey => Response::json(404, &json!({"message": text})),
            AdminError::NotAllowed(_) => Response::error_msg(405, &text),
            AdminError::Changed => Response::error_msg(503, &text),
            AdminError::Store(error) => Response::error_msg(store_status(&error), &text),
            AdminError::Page(status) => Response::page(status),
        }
    }
}

fn store_status(error: &StoreError) -> u16 {
    match error {
        StoreError::ReadOnly(_) => 405,
        StoreError::BadKey(_) => 400,
        _ => 503,
    }
}

impl Response {
    /// A JSON document; it ends with a newline, as every table that APISIX answers.
    pub fn json(status: u16, body: &Value) -> Response {
        let mut response = Response::text(status, &body.to_string());
        response.body.push(b'\n');
        response
    }

    /// `{"error_msg": …}`.
    pub fn error_msg(status: u16, text: &str) -> Response {
        Response::json(status, &json!({"error_msg": text}))
    }

    /// A text as it is. Its type is JSON all the same: APISIX sets that before it knows what it will say.
    pub fn text(status: u16, body: &str) -> Response {
        Response { status, headers: vec![json_type()], body: body.as_bytes().to_vec() }
    }

    /// No body.
    pub fn empty(status: u16) -> Response {
        Response::text(status, "")
    }

    /// The page that nginx shows for a status.
    pub fn page(status: u16) -> Response {
        let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let title = format!("{status} {}", reason.unwrap_or_default());
        let body = format!(
            "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n\
             <hr><center>openresty</center>\r\n<p><em>Powered by <a href=\"https://apisix.apache.org/\">APISIX</a>.\
             </em></p></body>\r\n</html>\r\n"
        );
        let html = (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        Response { status, headers: vec![html], body: body.into_bytes() }
    }

    /// Sets a header; what no header can carry is left out.
    pub fn set(&mut self, name: HeaderName, value: &str) {
        let Ok(value) = HeaderValue::from_str(value) else { return };
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value));
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.as_str().eq_ignore_ascii_case(name));
        found.and_then(|(_, value)| value.to_str().ok())
    }

    /// The answer as the server takes it.
    pub fn into_http(mut self) -> http::Response<Vec<u8>> {
        self.set(DATE, &httpdate::fmt_http_date(std::time::SystemTime::now()));
        if self.status != 204 {
            let length = self.body.len().to_string();
            self.set(http::header::CONTENT_LENGTH, &length);
        }
        let mut response = http::Response::new(self.body);
        *response.status_mut() = http::StatusCode::from_u16(self.status).unwrap_or_default();
        response.headers_mut().extend(self.headers);
        response
    }
}

fn json_type() -> (HeaderName, HeaderValue) {
    (CONTENT_TYPE, HeaderValue::from_static("application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        resource::{Key, Kind},
        store::Outage,
    };

    #[track_caller]
    fn check(error: AdminError, status: u16, body: &str) {
        let response = error.into_response(Compat::Now);
        assert_eq!((response.status, String::from_utf8(response.body).unwrap().as_str()), (status, body));
    }

    #[test]
    fn bodies() {
        check(AdminError::Invalid("x".into()), 400, "{\"error_msg\":\"x\"}\n");
        check(AdminError::BareText("x y"), 400, "x y");
        let denied = "{\"description\":\"missing apikey\",\"error_msg\":\"failed to check token\"}\n";
        check(AdminError::Denied("missing apikey"), 401, denied);
        check(AdminError::NoSuchKey, 404, "{\"message\":\"Key not found\"}\n");
        let outage = StoreError::Unavailable(Outage::TakenOver);
        let text = "{\"error_msg\":\"the store cannot write: another process has taken over the store\"}\n";
        check(outage.into(), 503, text);
        let read_only = StoreError::ReadOnly("apisix.yaml");
        check(read_only.into(), 405, "{\"error_msg\":\"the store is read-only: apisix.yaml\"}\n");
        let bad = StoreError::BadKey(Key::new(Kind::Route, "a/b"));
        check(bad.into(), 400, "{\"error_msg\":\"/apisix/routes/a/b cannot be the key of a resource\"}\n");
    }

    #[test]
    fn older_apisix_does_not_say_why() {
        let response = AdminError::Denied("wrong apikey").into_response(Compat::V3_2);
        assert_eq!(response.body, b"{\"error_msg\":\"failed to check token\"}\n");
    }

    #[test]
    fn pages_are_html() {
        let page = Response::page(404);
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        assert!(page.body.starts_with(b"<html>\r\n<head><title>404 Not Found</title>"));
    }

    #[test]
    fn the_length_is_told() {
        let sent = Response::json(200, &json!({})).into_http();
        assert_eq!(sent.headers()["content-length"], "3");
        assert!(!Response::empty(204).into_http().headers().contains_key("content-length"));
    }
}
