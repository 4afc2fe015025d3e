//! The response side of a proxied exchange.

use bytes::Bytes;
use http::{Method, StatusCode, Version, header};
use pingora::{Result, http::ResponseHeader};
use pingora_proxy::Session;

use super::{
    Ctx,
    answer::{self, Fate},
    head::{bodiless, dress},
    options::Options,
};
use crate::plugin::{exchange::Exchange, phases::Phases};

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

/// Says where the body ends. A filter that takes the length away leaves it without an end in HTTP/1.1 unless it is
/// chunked; HTTP/1.0 has no chunks, so there it ends with the connection (RFC 9112 §6.1).
fn frame(session: &mut Session, head: &mut ResponseHeader) -> Result<()> {
    let request = session.req_header();
    let is_old = request.version < Version::HTTP_11;
    if is_old {
        head.remove_header(&header::TRANSFER_ENCODING);
    }
    let framed = head.headers.contains_key(header::CONTENT_LENGTH)
        || head.headers.contains_key(header::TRANSFER_ENCODING);
    let bodiless = bodiless(head.status)
        || head.status == StatusCode::SWITCHING_PROTOCOLS
        || request.method == Method::HEAD;
    if framed || bodiless {
        return Ok(());
    }
    if is_old {
        session.as_downstream_mut().set_keepalive(None);
    } else if request.version == Version::HTTP_11 {
        head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    Ok(())
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
