//! Every response that the gateway makes itself: the one place that turns replies and errors into HTTP.
//!
//! Invariant: the chain's response phases run on these too, as in APISIX (CORS headers on a 401). Pingora's own
//! error responses skip them, so they are used for nothing but dead connections.

use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use pingora::{Error, ErrorSource, ErrorType, Result, http::ResponseHeader};
use pingora_proxy::{FailToProxy, Session};

use super::{Ctx, answer::Held, head, media_type, options::Options};
use crate::net::letters;
use crate::plugin::{
    body,
    exchange::Exchange,
    reply::{Reply, ReplyBody},
    request::HeaderMode,
};
use crate::vars::clock;

const HTML_BARE: HeaderValue = HeaderValue::from_static("text/html");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// Sends a reply to the client through the response phases of the chains.
///
/// # Errors
/// The client is gone.
pub async fn send(session: &mut Session, ctx: &mut Ctx, options: &Options, reply: Reply) -> Result<()> {
    let path = ctx.request.path.as_deref().unwrap_or(session.req_header().uri.path());
    let (mut head, body) = compose(&reply, options, path)?;
    ctx.request.status = Some(head.status.as_u16());
    if let (None, Some(reason)) = (ctx.request.answered_by, &reply.reason) {
        let (route, request_id) = named(ctx);
        match reply.status {
            // What clients do wrong would fill the log.
            ..500 => tracing::debug!(route, request_id, status = reply.status, reason, "request refused"),
            status => tracing::warn!(route, request_id, status, error = reason, "request failed"),
        }
    }
    head::join_headers(ctx, &mut head)?;
    for (name, value) in reply.headers {
        head.insert_header(letters::of(&name), value)?;
    }
    let mut body = Some(body);
    filter(session, ctx, &mut head, &mut body);
    body::outlive(session);
    write(session, head, body.unwrap_or_default()).await
}

/// Sends an answer of the upstream that plugins wanted to see whole, through the response phases of the chains.
///
/// # Errors
/// The client is gone.
pub async fn deliver(
    session: &mut Session,
    ctx: &mut Ctx,
    options: &Options,
    mut head: ResponseHeader,
    body: Bytes,
    trailers: Option<HeaderMap>,
) -> Result<()> {
    head::dress(ctx, options, &mut head)?;
    let mut body = Some(body);
    filter(session, ctx, &mut head, &mut body);
    let trailers = trailers.filter(|_| session.as_downstream().is_http2());
    let Some(trailers) = trailers else {
        return write(session, head, body.unwrap_or_default()).await;
    };
    head.remove_header(&header::TRANSFER_ENCODING);
    session.write_response_header(Box::new(head), false).await?;
    session.write_response_body(body, false).await?;
    session.as_downstream_mut().write_response_trailers(trailers).await
}

/// nginx's own status: on the wire and in the log it is 400, with a page of its own.
const HEAD_TOO_LARGE: u16 = 494;

/// Head and body as APISIX would make them before any filter, for a request of this path.
fn compose(reply: &Reply, options: &Options, path: &str) -> Result<(ResponseHeader, Bytes)> {
    let status = if reply.status == HEAD_TOO_LARGE { 400 } else { reply.status };
    let mut head = ResponseHeader::build(status, Some(8))?;
    let (kind, body) = match &reply.body {
        ReplyBody::Json(value) => (Some(media_type::of_path(path)), Bytes::from(format!("{value}\n"))),
        ReplyBody::Bytes(bytes) => (Some(media_type::of_path(path)), bytes.clone()),
        ReplyBody::Default => match error_page(reply.status) {
            // nginx: ngx_http_charset_filter leaves these two alone.
            Some(page) if matches!(reply.status, 301 | 302) => (Some(HTML_BARE), page),
            Some(page) => (Some(HTML), page),
            None => ((reply.status < 300).then(|| media_type::of_path(path)), Bytes::new()),
        },
    };
    if let Some(kind) = kind {
        head.insert_header(header::CONTENT_TYPE, kind)?;
    }
    head.insert_header(header::SERVER, options.server.clone())?;
    head.insert_header(
        header::DATE,
        HeaderValue::from_str(&clock::http_date(SystemTime::now())).expect("a date is ASCII"),
    )?;
    Ok((head, body))
}

fn filter(session: &mut Session, ctx: &mut Ctx, head: &mut ResponseHeader, body: &mut Option<Bytes>) {
    let Some(snapshot) = ctx.snapshot.clone() else { return };
    let (global, chain) = (snapshot.global.clone(), ctx.chain.clone());
    let mut x = Exchange::new(session, &mut ctx.request, &*snapshot);
    global.header_filter(&mut x, head);
    chain.header_filter(&mut x, head);
    x.ctx.status = Some(head.status.as_u16());
    global.body_filter(&mut x, body, true);
    chain.body_filter(&mut x, body, true);
}

async fn write(session: &mut Session, mut head: ResponseHeader, body: Bytes) -> Result<()> {
    let bodiless = head.status == StatusCode::NO_CONTENT || head.status == StatusCode::NOT_MODIFIED;
    head.remove_header(&header::TRANSFER_ENCODING);
    if bodiless {
        head.remove_header(&header::CONTENT_LENGTH);
        head.remove_header(&header::CONTENT_TYPE);
    } else {
        head.set_content_length(body.len())?;
    }
    let silent = bodiless || body.is_empty() || session.req_header().method == Method::HEAD;
    session.write_response_header(Box::new(head), silent).await?;
    if silent {
        return session.as_downstream_mut().finish_body().await;
    }
    session.write_response_body(Some(body), true).await
}

/// What a client is told when proxying failed; `None` when it is gone. APISIX: nginx's 502 and 504.
pub fn from_error(error: &Error) -> Option<Reply> {
    let status = match error.etype() {
        ErrorType::HTTPStatus(status) => *status,
        kind => match error.esource() {
            ErrorSource::Upstream if times_out(kind) => 504,
            ErrorSource::Upstream => 502,
            ErrorSource::Downstream if is_ambiguous(error) => 400,
            ErrorSource::Downstream => return from_client_error(kind),
            ErrorSource::Internal | ErrorSource::Unset => 500,
        },
    };
    Some(Reply::status(status).because(described(error)))
}

/// An error for the log. Of a head that could not be read, Pingora shows the bytes; they may hold cookies and
/// credentials, so only what is wrong with them is told.
pub(super) fn described(error: &Error) -> String {
    let text = error.to_string();
    match text.split_once(" context: buf: ") {
        Some((before, _)) => format!("{before} cause: {} (head not shown)", error.root_cause()),
        None => text,
    }
}

/// Whether a chunked body broke off because it had no single meaning; see [`crate::plugin::source`].
fn is_ambiguous(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::InvalidData)
}

pub(super) fn times_out(kind: &ErrorType) -> bool {
    matches!(
        kind,
        ErrorType::ConnectTimedout
            | ErrorType::ReadTimedout
            | ErrorType::WriteTimedout
            | ErrorType::TLSHandshakeTimedout
    )
}

fn from_client_error(kind: &ErrorType) -> Option<Reply> {
    match kind {
        ErrorType::ReadTimedout => Some(Reply::status(408)),
        ErrorType::WriteError
        | ErrorType::ReadError
        | ErrorType::ConnectionClosed
        | ErrorType::WriteTimedout => None,
        _ => Some(Reply::status(400)),
    }
}

/// The page for a status without a body of its own; nginx has one for the statuses it knows from 301 on.
fn error_page(status: u16) -> Option<Bytes> {
    let known =
        matches!(status, 301..=303 | 307 | 308 | 400..=406 | 408..=416 | 421 | 429 | 431 | 500..=505 | 507);
    if status == HEAD_TOO_LARGE {
        const WHAT: &str = "Request Header Or Cookie Too Large";
        let more = format!("<center>{WHAT}</center>\r\n");
        return Some(page(&format!("400 {WHAT}"), "400 Bad Request", &more));
    }
    if !known {
        return None;
    }
    let reason = StatusCode::from_u16(status).ok()?;
    let reason = match status {
        302 => "Found",
        413 => "Request Entity Too Large",
        414 => "Request-URI Too Large",
        503 => "Service Temporarily Unavailable",
        504 => "Gateway Time-out",
        416 => "Requested Range Not Satisfiable",
        _ => reason.canonical_reason().unwrap_or_default(),
    };
    let title = format!("{status} {reason}");
    Some(page(&title, &title, ""))
}

fn page(title: &str, heading: &str, more: &str) -> Bytes {
    Bytes::from(format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{heading}</h1></center>\r\n{more}<hr><center>portcullis</center>\r\n</body>\r\n</html>\r\n"
    ))
}

/// Answers for an upstream that could not, with the error pages and the response phases of every other reply.
pub async fn failed(session: &mut Session, ctx: &mut Ctx, options: &Options, error: &Error) -> FailToProxy {
    if let Some(Held::Sent { .. }) = ctx.held.take() {
        // The client has its answer; only the upstream's connection is lost.
        return FailToProxy { error_code: 0, can_reuse_downstream: false };
    }
    let cause = described(error);
    let (route, request_id) = named(ctx);
    let Some(mut reply) = from_error(error) else {
        tracing::debug!(route, request_id, error = %cause, "client went away");
        return FailToProxy { error_code: 0, can_reuse_downstream: false };
    };
    let status = reply.status;
    tracing::warn!(route, request_id, status, error = %cause, "request failed");
    // Told already.
    reply.reason = None;
    // The framework leaves the client after a failure, whatever it is told.
    session.as_downstream_mut().set_keepalive(None);
    let begun = session.response_written().is_some_and(|head| !head.status.is_informational());
    if !begun {
        note_upstream_status(ctx, options, status);
        if let Err(e) = send(session, ctx, options, reply).await {
            tracing::debug!(error = %e, "client went away before its error");
        }
    }
    FailToProxy { error_code: status, can_reuse_downstream: false }
}

/// Route and request, for the log.
fn named(ctx: &Ctx) -> (Option<&str>, Option<&str>) {
    (ctx.request.route.as_ref().map(|route| &*route.id), ctx.request.request_id.as_deref())
}

/// nginx counts a node that failed to answer as 502 or 504 in `$upstream_status`; APISIX shows it.
fn note_upstream_status(ctx: &mut Ctx, options: &Options, status: u16) {
    if !ctx.request.upstream.tries.is_empty() && (options.show_upstream_status || status >= 500) {
        let value = head::statuses(ctx, status);
        ctx.request.set_response_header(head::X_APISIX_UPSTREAM_STATUS, value, HeaderMode::Set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: Box<Error>, expected: &str) {
        assert_eq!(described(&error), expected);
        let reply = from_error(&error).expect("the client is still there");
        assert_eq!(reply.reason.as_deref(), Some(expected));
    }

    #[test]
    fn a_broken_head_is_never_shown() {
        let cause = std::io::Error::other("invalid header name");
        let head = "buf: HTTP/1.1 200 OK\\r\\nSet-Cookie: session=sesame cause: x";
        let mut error = Error::because(ErrorType::InvalidHTTPHeader, head, cause);
        error.as_up();
        let error = error.more_context("peer 127.0.0.1:80");
        check(
            error,
            "Upstream InvalidHTTPHeader context: peer 127.0.0.1:80 cause:  cause: invalid header name (head not shown)",
        );
    }

    #[test]
    fn other_errors_are_shown_whole() {
        let mut error = Error::explain(ErrorType::ConnectRefused, "no listener");
        error.as_up();
        check(error, "Upstream ConnectRefused context: no listener");
    }
}
