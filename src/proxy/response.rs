//! The response side of a proxied exchange.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora::{Result, http::ResponseHeader};
use pingora_proxy::Session;

use super::{
    Ctx,
    answer::{self, Fate},
    options::Options,
    respond,
};
use crate::plugin::{exchange::Exchange, phases::Phases};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
pub(super) const X_APISIX_UPSTREAM_STATUS: HeaderName = HeaderName::from_static("x-apisix-upstream-status");

/// Notes what the node answered; passive health checks learn from it.
pub fn note(ctx: &mut Ctx, head: &ResponseHeader) {
    if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
        return;
    }
    let status = head.status.as_u16();
    ctx.request.upstream.answered = true;
    if let Some(last) = ctx.request.upstream.tries.last_mut() {
        last.header = Some(last.began.elapsed());
        last.status = Some(status);
    }
}

/// Whether a plugin waits for the upstream's answer.
pub fn awaited(ctx: &Ctx) -> bool {
    runs(ctx, Phases::RESPONSE)
}

/// Whether some plugin has a hook in one of these phases.
fn runs(ctx: &Ctx, phases: Phases) -> bool {
    ctx.chain.meets(phases) || ctx.snapshot.as_ref().is_some_and(|snapshot| snapshot.global.meets(phases))
}

/// The head that the client sees.
///
/// # Errors
/// A header cannot be added: the map is full. A plugin answered instead, and the client is gone.
pub async fn head(
    session: &mut Session,
    ctx: &mut Ctx,
    options: &Options,
    head: &mut ResponseHeader,
) -> Result<()> {
    if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(());
    }
    if awaited(ctx) && head.status != StatusCode::SWITCHING_PROTOCOLS {
        // Boxed: other responses do not carry its state.
        if Box::pin(answer::begin(session, ctx, options, head)).await? == Fate::Held {
            return Ok(());
        }
    }
    dress(ctx, options, head)?;
    let Some(snapshot) = &ctx.snapshot else { return Ok(()) };
    let filters = Phases::HEADER_FILTER;
    if snapshot.global.has(filters) || ctx.chain.has(filters) {
        let mut x = Exchange::new(session, &mut ctx.request, &**snapshot);
        snapshot.global.header_filter(&mut x, head);
        ctx.chain.header_filter(&mut x, head);
        ctx.request.status = Some(head.status.as_u16());
    }
    frame(session, head)
}

/// What the gateway itself changes on a head of the upstream.
///
/// # Errors
/// A header cannot be added: the map is full.
pub(super) fn dress(ctx: &mut Ctx, options: &Options, head: &mut ResponseHeader) -> Result<()> {
    // A header of the connection to the node (RFC 9110 §7.6.1); nginx does not pass it on either.
    if head.headers.contains_key(&KEEP_ALIVE) {
        head.remove_header(&KEEP_ALIVE);
    }
    // A node that speaks HTTP/1.0 must not make the client's connection one.
    head.set_version(Version::HTTP_11);
    head.insert_header(header::SERVER, options.server.clone())?;
    // What the node said, whatever a plugin made of it.
    let status = ctx.request.upstream.tries.last().and_then(|last| last.status);
    let status = status.unwrap_or_else(|| head.status.as_u16());
    if options.show_upstream_status || (500..=599).contains(&status) {
        head.insert_header(X_APISIX_UPSTREAM_STATUS, statuses(ctx, status))?;
    }
    ctx.request.status = Some(head.status.as_u16());
    respond::join_headers(ctx, head)
}

/// All statuses of all tries, as nginx's `$upstream_status` lists them.
pub(super) fn statuses(ctx: &Ctx, last: u16) -> HeaderValue {
    let tries = &ctx.request.upstream.tries;
    if tries.len() < 2 {
        return last.into();
    }
    let all: Vec<String> =
        tries.iter().filter_map(|one| one.status).map(|status| status.to_string()).collect();
    HeaderValue::from_str(&all.join(", ")).unwrap_or_else(|_| last.into())
}

/// A filter that takes the length away leaves the body without an end in HTTP/1.1 unless it is chunked.
fn frame(session: &Session, head: &mut ResponseHeader) -> Result<()> {
    let request = session.req_header();
    let framed = head.headers.contains_key(header::CONTENT_LENGTH)
        || head.headers.contains_key(header::TRANSFER_ENCODING);
    let bodiless = bodiless(head.status)
        || head.status == StatusCode::SWITCHING_PROTOCOLS
        || request.method == Method::HEAD;
    if framed || bodiless || request.version != Version::HTTP_11 {
        return Ok(());
    }
    head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    Ok(())
}

/// Whether responses of this status have no body (RFC 9110 §6.4.1).
pub(super) fn bodiless(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// A piece of the body.
///
/// # Errors
/// The body is held back for a plugin and is larger than may be buffered.
pub fn body(session: &mut Session, ctx: &mut Ctx, chunk: &mut Option<Bytes>, last: bool) -> Result<()> {
    if !runs(ctx, Phases::BODY_FILTER.and(Phases::RESPONSE)) {
        return Ok(());
    }
    if ctx.held.is_some() {
        return answer::body(ctx, chunk, last);
    }
    let Some(snapshot) = &ctx.snapshot else { return Ok(()) };
    let mut x = Exchange::new(session, &mut ctx.request, &**snapshot);
    snapshot.global.body_filter(&mut x, chunk, last);
    ctx.chain.body_filter(&mut x, chunk, last);
    Ok(())
}
