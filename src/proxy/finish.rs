//! The end of an exchange: log hooks, access log, metrics.

use std::time::Instant;

use pingora_proxy::Session;

use super::{Ctx, Gateway, front, response};
use crate::plugin::exchange::Exchange;

/// Runs once per request, after the client has its answer or is gone.
pub fn finish(gateway: &Gateway, session: &mut Session, ctx: &mut Ctx) {
    let now = Instant::now();
    front::idle(now);
    if let Some(last) = ctx.request.upstream.tries.last_mut() {
        last.total.get_or_insert(now.saturating_duration_since(last.began));
    }
    let written = session.response_written().map(|head| head.status.as_u16());
    // nginx's 499: the client went away before there was an answer.
    let status = written.or(ctx.request.status).unwrap_or(499);
    ctx.request.status = Some(status);
    if let (Some(upstream), Some(picked)) = (&ctx.upstream, ctx.current.take()) {
        let last = ctx.request.upstream.tries.last();
        let latency = last.and_then(|last| last.total).unwrap_or_default();
        // A runner that fails, or changes the status, says nothing about the node.
        let own = last.filter(|_| response::awaited(ctx)).and_then(|last| last.status);
        upstream.finish(picked, own.unwrap_or(status), latency);
    }
    let Some(snapshot) = ctx.snapshot.clone() else { return };
    let mut x = Exchange::new(session, &mut ctx.request, &*snapshot);
    if !gateway.options.log_credentials {
        x.mask([&snapshot.global, &ctx.chain]);
    }
    snapshot.global.log(&mut x, Some(&ctx.chain));
    ctx.chain.log(&mut x, None);
    if let Some(log) = &gateway.access_log {
        log.write(&x);
    }
}
