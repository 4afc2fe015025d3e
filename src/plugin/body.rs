//! The one owner of request-body reads.
//!
//! Pingora 0.9 replays a body that was read before proxying only from a 64 KiB buffer and hangs beyond it. So
//! the body is read here, whole and bounded, and before the request goes on it is put back in front of the
//! connection ([`unread`]): the framework then reads it again as if it had just arrived, whatever its size.
//!
//! Invariant: nobody else calls `read_request_body`.

use std::{any::Any, io::Cursor, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{Version, header};
use pingora::{
    Error, ErrorType, Result,
    http::RequestHeader,
    protocols::{
        Stream,
        http::{ServerSession, v1::server::HttpSession as SessionV1},
    },
};
use pingora_proxy::Session;

use super::{exchange::Exchange, linger, reply::Reply, request::RequestCtx, source::Source};

/// Pingora's replay buffer, in bytes (`BODY_BUF_LIMIT`); also the largest piece one read returns.
const REPLAY_LIMIT: usize = 64 * 1024;

/// A body up to this length is read to keep its connection, when nobody wants it.
const SHORT: usize = 1024 * 1024;

/// How far the request body has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum BodyState {
    /// Still with the client.
    #[default]
    Unread,
    /// Here, whole; must be put back before proxying.
    Read(Bytes),
    /// Put back; the framework will read it (again).
    PutBack(Bytes),
}

impl BodyState {
    /// Whether the whole body is in memory.
    pub fn is_read(&self) -> bool {
        !matches!(self, BodyState::Unread)
    }
}

/// Reads the whole body once; later calls answer from memory.
///
/// # Errors
/// A 413 reply when it is larger than `ctx.body_limit`, a 400 when it cannot be read.
pub async fn read(session: &mut Session, ctx: &mut RequestCtx) -> Result<Bytes, Reply> {
    if let BodyState::Read(body) | BodyState::PutBack(body) = &ctx.body {
        return Ok(body.clone());
    }
    if session.as_mut().is_body_empty() {
        ctx.body = BodyState::Read(Bytes::new());
        return Ok(Bytes::new());
    }
    let declared = declared_length(session);
    if declared.is_some_and(|length| length > ctx.body_limit) {
        return Err(too_large(ctx.body_limit));
    }
    answer_expectation(session).await?;
    let body = read_all(session, declared, ctx.body_limit).await?;
    ctx.body = BodyState::Read(body.clone());
    Ok(body)
}

/// Replaces the body that the upstream will see.
pub fn replace(ctx: &mut RequestCtx, body: Bytes) {
    ctx.body = BodyState::Read(body);
}

/// A request body on its way to the upstream, kept for plugins of the response phase.
#[derive(Debug, Default)]
pub struct Passed {
    pieces: Vec<Bytes>,
    length: usize,
    whole: bool,
}

impl Passed {
    /// Keeps a piece, unless the body is more than `limit` bytes: then nothing is kept.
    pub fn keep(&mut self, piece: Option<&Bytes>, last: bool, limit: usize) {
        if let Some(piece) = piece.filter(|piece| !piece.is_empty()) {
            self.length = self.length.saturating_add(piece.len());
            self.pieces.push(piece.clone());
        }
        if self.length > limit {
            self.pieces = Vec::new();
        }
        self.whole |= last;
    }
}

/// The body as it went to the upstream, for when the upstream has answered.
///
/// # Errors
/// A 413 reply when it was larger than may be buffered, a 503 when the upstream answered before it had all come.
pub fn passed(x: &mut Exchange<'_>) -> Result<Bytes, Reply> {
    if let BodyState::Read(body) | BodyState::PutBack(body) = &x.ctx.body {
        return Ok(body.clone());
    }
    if x.session.as_mut().is_body_empty() {
        return Ok(Bytes::new());
    }
    let body = match &x.ctx.passed {
        Some(passed) if passed.length > x.ctx.body_limit => return Err(too_large(x.ctx.body_limit)),
        Some(passed) if passed.whole => joined(&passed.pieces),
        _ => {
            return Err(
                Reply::status(503).because("the upstream answered before the request body had all come")
            );
        }
    };
    // Variables that look into the body find it there.
    x.ctx.body = BodyState::PutBack(body.clone());
    Ok(body)
}

/// The pieces of a body in one.
pub fn joined(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [] => Bytes::new(),
        [one] => one.clone(),
        pieces => pieces.concat().into(),
    }
}

/// Puts a body that was read back in front of the connection.
///
/// # Errors
/// The connection is in no state for it, which would be an error of this module.
pub async fn unread(session: &mut Session, ctx: &mut RequestCtx) -> Result<()> {
    let BodyState::Read(body) = &ctx.body else { return Ok(()) };
    let body = body.clone();
    ctx.body = BodyState::PutBack(body.clone());
    if session.as_downstream().as_http1().is_none() {
        // HTTP/2: `read_all` kept the replay buffer usable, or refused.
        return Ok(());
    }
    if body.is_empty() && session.as_mut().is_body_empty() {
        return Ok(());
    }
    put_back(session, body).await
}

fn declared_length(session: &Session) -> Option<usize> {
    let value = session.req_header().headers.get(header::CONTENT_LENGTH)?;
    value.to_str().ok()?.trim().parse().ok()
}

fn too_large(limit: usize) -> Reply {
    Reply::status(413).because(format!("request body larger than the {limit} bytes that may be buffered"))
}

/// Lets the connection outlive an answer that comes before the request's body was read: what is left of the body is
/// read behind it and thrown away. A long body is not worth it, and one that its client holds back until it is told to go
/// on may never come: then the framework closes the connection.
pub fn outlive(session: &mut Session) {
    let is_short = declared_length(session).is_some_and(|length| length <= SHORT);
    if is_short && !session.req_header().headers.contains_key(header::EXPECT) {
        let downstream = session.as_downstream_mut();
        downstream.set_close_on_response_before_downstream_finish(false);
        downstream.set_total_drain_timeout(Some(linger::LONGEST));
    }
}

/// Tells a client that waits with its body to send it, when nobody has read it yet: the request goes on. As in
/// nginx the upstream is not asked.
///
/// # Errors
/// The client is gone.
pub async fn welcome(session: &mut Session, ctx: &RequestCtx) -> Result<()> {
    let waits = ctx.body == BodyState::Unread && session.req_header().headers.get(header::EXPECT).is_some();
    if waits { go_on(session).await } else { Ok(()) }
}

/// A client that sent `Expect: 100-continue` holds its body back until it is told to go on (RFC 9110 §10.1.1).
async fn answer_expectation(session: &mut Session) -> Result<(), Reply> {
    if session.req_header().headers.get(header::EXPECT).is_none() {
        return Ok(());
    }
    go_on(session)
        .await
        .map_err(|e| Reply::status(400).because(format!("client went away before its body: {e}")))
}

/// Writes `100 Continue`. The framework closes a connection on which a response begins before the request has ended, and
/// takes this one for a response; the connection may be kept all the same.
async fn go_on(session: &mut Session) -> Result<()> {
    let downstream = session.as_downstream_mut();
    let keepalive = downstream.get_keepalive();
    downstream.write_continue_response().await?;
    downstream.set_keepalive(keepalive);
    Ok(())
}

async fn read_all(session: &mut Session, declared: Option<usize>, limit: usize) -> Result<Bytes, Reply> {
    let framed = session.as_downstream().as_http1().is_none();
    let mut body = BytesMut::with_capacity(first_room(declared, limit));
    if framed && declared.is_none() {
        session.as_mut().enable_retry_buffering();
    }
    loop {
        // HTTP/2 cannot be put back, so the last 64 KiB are kept in the framework's replay buffer: that makes it
        // call the body filter, which sends what was read here.
        if framed && declared.is_some_and(|length| length - body.len().min(length) <= REPLAY_LIMIT) {
            session.as_mut().enable_retry_buffering();
        }
        let piece = session.as_downstream_mut().read_request_body().await;
        match piece.map_err(|e| Reply::status(400).because(format!("request body could not be read: {e}")))? {
            Some(piece) if body.len() + piece.len() > limit => return Err(too_large(limit)),
            Some(piece) => body.extend_from_slice(&piece),
            None => break,
        }
    }
    if framed && declared.is_none() && body.len() > REPLAY_LIMIT {
        return Err(too_large(REPLAY_LIMIT));
    }
    Ok(body.freeze())
}

/// Room made before anything has come: a client gets memory for what it sends, not for what it announces.
fn first_room(declared: Option<usize>, limit: usize) -> usize {
    declared.unwrap_or(0).min(limit).min(REPLAY_LIMIT)
}

/// Makes a new HTTP/1 session over the same connection, whose input begins with the same head (now with the
/// length of the body) and the body.
async fn put_back(session: &mut Session, body: Bytes) -> Result<()> {
    let mut head = session.req_header().clone();
    head.remove_header(&header::TRANSFER_ENCODING);
    head.remove_header(&header::EXPECT);
    head.insert_header(header::CONTENT_LENGTH, body.len())?;

    let mut old = take_out(session)?;
    let kept = Kept::of(&mut old);
    let mut source = Source::of(old.into_inner());
    source.again(body);
    begin_again(session, &head, source, kept).await
}

/// The session of an HTTP/1 connection; an empty one stands in for it.
fn take_out(session: &mut Session) -> Result<SessionV1> {
    let parked = ServerSession::new_http1(Box::new(Cursor::new(Vec::<u8>::new())));
    match std::mem::replace(session.as_downstream_mut(), parked) {
        ServerSession::H1(old) => Ok(old),
        _ => Error::e_explain(ErrorType::InternalError, "only the input of HTTP/1 is put back"),
    }
}

/// Makes a session that reads the head and then `input`.
async fn begin_again(session: &mut Session, head: &RequestHeader, input: Stream, kept: Kept) -> Result<()> {
    let mut fresh = SessionV1::new(input);
    fresh.set_pipelined_prefix(wire(head));
    if fresh.read_request().await?.is_none() {
        return Error::e_explain(ErrorType::InternalError, "the request that was put back is gone");
    }
    kept.give(&mut fresh);
    *session.as_downstream_mut() = ServerSession::H1(fresh);
    Ok(())
}

/// The settings of a connection, which travel from an old session to the new one.
struct Kept {
    keepalive: Option<u64>,
    read: Option<Duration>,
    write: Option<Duration>,
    reuses: Option<u32>,
    user: Option<Box<dyn Any + Send + Sync>>,
}

impl Kept {
    fn of(old: &mut SessionV1) -> Self {
        Self {
            keepalive: old.get_keepalive_timeout(),
            read: old.get_read_timeout(),
            write: old.get_write_timeout(),
            reuses: old.get_keepalive_reuses_remaining(),
            user: old.take_connection_user_context(),
        }
    }

    fn give(self, fresh: &mut SessionV1) {
        fresh.set_server_keepalive(self.keepalive);
        fresh.set_read_timeout(self.read);
        fresh.set_write_timeout(self.write);
        fresh.set_keepalive_reuses_remaining(self.reuses);
        fresh.set_connection_user_context(self.user);
    }
}

fn wire(head: &RequestHeader) -> BytesMut {
    let mut out = BytesMut::with_capacity(1024);
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(head.raw_path());
    out.extend_from_slice(if head.version == Version::HTTP_10 { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" });
    head.header_to_h1_wire(&mut out);
    out.extend_from_slice(b"\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announced_length_makes_little_room() {
        for (declared, limit, room) in [
            (None, usize::MAX, 0),
            (Some(10), usize::MAX, 10),
            (Some(10), 5, 5),
            (Some(usize::MAX), usize::MAX, REPLAY_LIMIT),
        ] {
            assert_eq!(first_room(declared, limit), room, "{declared:?} {limit}");
        }
    }
}
