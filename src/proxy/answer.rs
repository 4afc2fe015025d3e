//! The response phase around the framework: an answer may be held back until plugins have seen its body.
//!
//! The plugins begin in `response_filter` ([`begin`]). As long as none asks for the body it never stops streaming.
//! When one does, the head is held back: in its place the framework gets an informational one that the session was
//! told to swallow, [`body`] keeps the pieces, and the answer leaves in `logging` ([`conclude`]), where waiting is
//! allowed again and the upstream's connection is already back in its pool. What is whole without the upstream
//! (a refusal, a replaced body) leaves at once, and the rest of the upstream's body is dropped.
//!
//! Invariant: an answer that was held back leaves whole or not at all.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use pingora::{Error, ErrorSource, ErrorType, Result, http::ResponseHeader};
use pingora_proxy::Session;

use super::{Ctx, head::bodiless, options::Options, respond};
use crate::plugin::{
    answer::{AnswerBody, Phase, Progress, Verdict},
    body,
    exchange::Exchange,
    reply::{Flow, Reply},
};

/// How much of a body that nobody wants any more is read so that its connection can be kept, in bytes.
const DRAIN_LIMIT: usize = 64 << 10;
/// And for how long.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// An answer that the framework does not send.
pub enum Held {
    /// The plugins wait for its body.
    Collecting(Box<Collected>),
    /// It has left; what still comes is dropped.
    Sent {
        /// When it left.
        at: Instant,
        /// How much has come since.
        dropped: usize,
    },
}

/// What is there of an answer that is held back.
pub struct Collected {
    phase: Phase,
    pieces: Vec<Bytes>,
    length: usize,
    limit: usize,
    trailers: Option<HeaderMap>,
    status: StatusCode,
}

/// What became of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It streams on.
    Passes,
    /// It is in [`Ctx::held`].
    Held,
}

/// Lets the plugins look at an answer whose head has come.
///
/// # Errors
/// The client is gone.
pub async fn begin(
    session: &mut Session,
    ctx: &mut Ctx,
    options: &Options,
    head: &mut ResponseHeader,
) -> Result<Fate> {
    let Some(snapshot) = ctx.snapshot.clone() else { return Ok(Fate::Passes) };
    let facts = Facts::of(session, head);
    ctx.request.status = Some(facts.status.as_u16());
    // Swallowed unless something better takes its place.
    let own = std::mem::replace(head, ResponseHeader::build(StatusCode::EARLY_HINTS, Some(0))?);
    let mut phase = Phase::new([snapshot.global.clone(), ctx.chain.clone()], own);
    let verdict = loop {
        let mut x = Exchange::new(session, &mut ctx.request, &*snapshot);
        match phase.run(&mut x).await {
            Progress::Over(verdict) => break verdict,
            Progress::WantsBody { .. } if facts.bodiless => phase.give_no_body(),
            Progress::WantsBody { limit } => {
                let limit = limit.min(ctx.request.body_limit);
                if facts.length.is_some_and(|length| length > limit) {
                    phase.give_body(Err(too_large(limit)));
                    continue;
                }
                swallow_heads(session);
                let status = facts.status;
                let collected =
                    Collected { phase, pieces: Vec::new(), length: 0, limit, trailers: None, status };
                ctx.held = Some(Held::Collecting(Box::new(collected)));
                return Ok(Fate::Held);
            }
        }
    };
    if verdict.passes(&facts) {
        *head = verdict.head;
        if verdict.body != AnswerBody::Passing {
            // Nobody knows how long the body is that a GET would get.
            head.remove_header(&header::CONTENT_LENGTH);
        }
        return Ok(Fate::Passes);
    }
    swallow_heads(session);
    ctx.held = Some(Held::Sent { at: Instant::now(), dropped: 0 });
    send(session, ctx, options, *verdict, None).await?;
    Ok(Fate::Held)
}

/// What a head says of the body behind it.
struct Facts {
    status: StatusCode,
    /// The client asked for the head alone.
    alone: bool,
    bodiless: bool,
    length: Option<usize>,
}

impl Facts {
    fn of(session: &Session, head: &ResponseHeader) -> Self {
        let length = head.headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let alone = session.req_header().method == Method::HEAD;
        let bodiless = bodiless(head.status) || alone || length == Some(0);
        Self { status: head.status, alone, bodiless, length }
    }
}

impl Verdict {
    /// Whether the upstream's body streams on behind this head.
    fn passes(&self, facts: &Facts) -> bool {
        // A status that changed whether there is a body at all leaves none to stream.
        self.flow.is_continue()
            && (self.body == AnswerBody::Passing || facts.alone)
            && bodiless(self.head.status) == bodiless(facts.status)
    }
}

/// HTTP/1.1 sends informational heads on unless it is told not to; HTTP/2 never does.
fn swallow_heads(session: &mut Session) {
    session.as_downstream_mut().set_ignore_info_resp(true);
}

fn too_large(limit: usize) -> Reply {
    Reply::status(502)
        .because(format!("the upstream's answer is larger than the {limit} bytes that may be buffered"))
}

/// A piece of the body of an answer that is held back.
///
/// # Errors
/// It is larger than may be buffered.
pub fn body(ctx: &mut Ctx, chunk: &mut Option<Bytes>, last: bool) -> Result<()> {
    let piece = chunk.take().unwrap_or_default();
    match &mut ctx.held {
        None => {}
        Some(Held::Sent { at, dropped }) => {
            *dropped += piece.len();
            if !last && (*dropped > DRAIN_LIMIT || at.elapsed() > DRAIN_TIME) {
                return Err(internal(ErrorType::ReadError, "nobody wants the rest of the answer".into()));
            }
        }
        Some(Held::Collecting(collected)) => {
            collected.length += piece.len();
            if collected.length > collected.limit {
                let reason = too_large(collected.limit).reason.unwrap_or_default();
                return Err(internal(ErrorType::HTTPStatus(502), reason));
            }
            if !piece.is_empty() {
                collected.pieces.push(piece);
            }
        }
    }
    if last && let Some(one) = ctx.request.upstream.tries.last_mut() {
        one.total = Some(one.began.elapsed());
    }
    Ok(())
}

fn internal(kind: ErrorType, reason: String) -> Box<Error> {
    let mut error = Error::explain(kind, reason);
    error.esource = ErrorSource::Internal;
    error
}

/// Trailers of an answer that is held back; what stands in for them ends the body without a byte.
pub fn trailers(ctx: &mut Ctx, trailers: &mut HeaderMap) -> Option<Bytes> {
    if let Held::Collecting(collected) = ctx.held.as_mut()? {
        collected.trailers = Some(std::mem::take(trailers));
    }
    Some(Bytes::new())
}

/// Sends an answer that was held back, now that the exchange with the upstream is over.
pub async fn conclude(session: &mut Session, ctx: &mut Ctx, options: &Options, failed: bool) {
    let Some(Held::Collecting(collected)) = ctx.held.take() else { return };
    // The client was told already, or is gone.
    let Some(snapshot) = ctx.snapshot.clone().filter(|_| !failed) else { return };
    let Collected { mut phase, pieces, trailers, status, limit, .. } = *collected;
    ctx.request.status = Some(status.as_u16());
    phase.give_body(Ok(body::joined(&pieces)));
    let verdict = loop {
        let mut x = Exchange::new(session, &mut ctx.request, &*snapshot);
        match phase.run(&mut x).await {
            Progress::Over(verdict) => break *verdict,
            // Who asked before has it; this would be one that threw it away.
            Progress::WantsBody { .. } => phase.give_body(Err(too_large(limit))),
        }
    };
    if let Err(e) = send(session, ctx, options, verdict, trailers).await {
        tracing::debug!(error = %e, "client went away before its answer");
        session.as_downstream_mut().set_keepalive(None);
    }
}

/// Sends an answer that is whole.
async fn send(
    session: &mut Session,
    ctx: &mut Ctx,
    options: &Options,
    verdict: Verdict,
    trailers: Option<HeaderMap>,
) -> Result<()> {
    let Verdict { head, body, flow } = verdict;
    let (body, trailers) = match (flow, body) {
        (Flow::Break(reply), _) => return respond::send(session, ctx, options, reply).await,
        (_, AnswerBody::Whole(body)) => (body, trailers),
        (_, AnswerBody::Replaced(body)) => (body, None),
        (_, AnswerBody::Passing) => (Bytes::new(), None),
    };
    respond::deliver(session, ctx, options, head, body, trailers).await
}
