//! The head of a response: what the gateway makes of the upstream's, and what both kinds of responses have in common.

use http::{HeaderName, HeaderValue, StatusCode, Version, header};
use pingora::{Result, http::ResponseHeader};

use super::{Ctx, options::Options};
use crate::{
    net::letters,
    plugin::request::{HeaderMode, ResponseField},
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
pub(super) const X_APISIX_UPSTREAM_STATUS: HeaderName = HeaderName::from_static("x-apisix-upstream-status");

/// What the gateway itself changes on a head of the upstream.
///
/// # Errors
/// A header cannot be added: the map is full.
pub fn dress(ctx: &mut Ctx, options: &Options, head: &mut ResponseHeader) -> Result<()> {
    // A header of the connection to the node (RFC 9110 §7.6.1); nginx does not pass it on either.
    if head.headers.contains_key(&KEEP_ALIVE) {
        head.remove_header(&KEEP_ALIVE);
    }
    // Where there are several they are the same, or the framework had not taken them.
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    if let (Some(length), Some(_)) = (lengths.next(), lengths.next()) {
        let length = length.clone();
        head.insert_header(header::CONTENT_LENGTH, length)?;
    }
    // A node that speaks HTTP/1.0 must not make the client's connection one.
    head.set_version(Version::HTTP_11);
    head.insert_header(header::SERVER, options.server.clone())?;
    // What the node said, whatever a plugin made of it.
    let status = ctx.request.upstream.tries.last().and_then(|last| last.status);
    let status = status.unwrap_or_else(|| head.status.as_u16());
    if options.show_upstream_status || (500..=599).contains(&status) {
        head.insert_header(letters::of(&X_APISIX_UPSTREAM_STATUS), statuses(ctx, status))?;
    }
    ctx.request.status = Some(head.status.as_u16());
    join_headers(ctx, head)
}

/// All statuses of all tries, as nginx's `$upstream_status` lists them.
pub fn statuses(ctx: &Ctx, last: u16) -> HeaderValue {
    let tries = &ctx.request.upstream.tries;
    if tries.len() < 2 {
        return last.into();
    }
    let all: Vec<String> =
        tries.iter().filter_map(|one| one.status).map(|status| status.to_string()).collect();
    HeaderValue::from_str(&all.join(", ")).unwrap_or_else(|_| last.into())
}

/// Headers that plugins set before the response's head was there.
pub fn join_headers(ctx: &mut Ctx, head: &mut ResponseHeader) -> Result<()> {
    for ResponseField { name, letters, value, mode } in ctx.request.response_headers.drain(..) {
        // Beside an upstream's header of the same name, as nginx does; but one Content-Type is enough.
        match (mode, letters) {
            (HeaderMode::Set, _) if name == header::CONTENT_TYPE || name == header::LOCATION => {
                head.insert_header(letters::of(&name), value)?;
            }
            (_, Some(letters)) => {
                head.append_header(letters, value)?;
            }
            (_, None) => {
                head.append_header(letters::of(&name), value)?;
            }
        }
    }
    Ok(())
}

/// Whether responses of this status have no body (RFC 9110 §6.4.1).
pub fn bodiless(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}
