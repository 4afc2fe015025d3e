//! Answers of the operator's listeners, as nginx and APISIX's `core.response` shape them.
//!
//! Invariant: whole answers only; nothing here reads a request.

use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::{Value, json};

/// nginx's type of what has none.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// A body that is text.
pub fn text(status: StatusCode, body: impl Into<String>) -> Response<Vec<u8>> {
    build(status, TEXT, body.into())
}

/// A Lua table: JSON with a line end.
pub fn json(status: StatusCode, body: &Value) -> Response<Vec<u8>> {
    build(status, JSON, format!("{body}\n"))
}

/// A page.
pub fn html(status: StatusCode, body: String) -> Response<Vec<u8>> {
    build(status, HTML, body)
}

/// `{"error_msg": …}`.
pub fn error(status: StatusCode, message: &str) -> Response<Vec<u8>> {
    json(status, &json!({"error_msg": message}))
}

/// What nginx answers where there is nothing.
pub fn not_found() -> Response<Vec<u8>> {
    let title = "404 Not Found";
    html(
        StatusCode::NOT_FOUND,
        format!(
            "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n</body>\r\n</html>\r\n"
        ),
    )
}

/// Takes the body away where the method forbids one; its length stays in the head (RFC 9110 §9.3.2).
pub fn for_method(mut response: Response<Vec<u8>>, method: &Method) -> Response<Vec<u8>> {
    if method == Method::HEAD {
        response.body_mut().clear();
    }
    response
}

fn build(status: StatusCode, kind: HeaderValue, body: String) -> Response<Vec<u8>> {
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(body.into_bytes());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    // Pingora writes the head as it is: without a length the client would wait for the connection to close.
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(response: Response<Vec<u8>>, status: u16, kind: &str, body: &str) {
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()[header::CONTENT_TYPE], kind);
        assert_eq!(response.headers()[header::CONTENT_LENGTH], body.len().to_string().as_str());
        assert_eq!(String::from_utf8_lossy(response.body()), body);
    }

    #[test]
    fn shapes() {
        check(text(StatusCode::OK, "done"), 200, "text/plain; charset=utf-8", "done");
        check(json(StatusCode::OK, &json!([])), 200, "application/json", "[]\n");
        check(error(StatusCode::NOT_FOUND, "no"), 404, "application/json", "{\"error_msg\":\"no\"}\n");
        check(html(StatusCode::OK, "<p>".into()), 200, "text/html; charset=utf-8", "<p>");
        assert_eq!(not_found().status(), 404);
    }

    #[test]
    fn an_answer_to_head_keeps_its_length() {
        let response = for_method(text(StatusCode::OK, "done"), &Method::HEAD);
        assert_eq!(response.headers()[header::CONTENT_LENGTH], "4");
        assert!(response.body().is_empty());
        assert_eq!(for_method(text(StatusCode::OK, "done"), &Method::GET).body(), b"done");
    }
}
