//! From the chosen upstream to the request that its node sees, once per try.

use std::{sync::Arc, time::Instant};

use http::{HeaderValue, header};
use pingora::{
    Error, ErrorSource, ErrorType, Result,
    http::RequestHeader,
    upstreams::peer::{HttpPeer, Peer},
};
use pingora_proxy::Session;

use super::{Ctx, guard, respond, response};
use crate::{
    net::{
        escape::{Escape, escape_into},
        ip_text::IpText,
    },
    plugin::{
        body::BodyState,
        exchange::Exchange,
        reply::{CONTINUE, Flow, Reply},
        request::{RequestCtx, Try},
    },
    snapshot::{Route, RouteUpstream, Snapshot},
    upstream::{Failure, PeerOverride, PickError, Picked, Retry, Upstream, conf::PassHost},
};

// As text: Pingora keeps the case of a name, and copies one that is not static.
const X_REAL_IP: &str = "X-Real-IP";
const X_FORWARDED_FOR: &str = "X-Forwarded-For";

/// Finds the upstream and picks the first node. APISIX: `init.lua handle_upstream`.
pub async fn choose(session: &mut Session, ctx: &mut Ctx, snapshot: &Snapshot, route: &Route) -> Flow {
    let upstream = match lookup(ctx, snapshot, route) {
        Ok(upstream) => upstream,
        Err(reply) => return reply.into(),
    };
    if let Some(fault) = upstream.fault() {
        return Reply::status(fault.status).because(fault.reason.clone()).into();
    }
    if upstream.has_names() {
        upstream.ready().await;
    }
    ctx.upstream = Some(upstream);
    match pick(session, ctx) {
        Ok(picked) => {
            note_host(session, ctx, &picked);
            ctx.picked = Some(picked);
            CONTINUE
        }
        Err(e) => Reply::status(e.status()).because(e.to_string()).into(),
    }
}

fn lookup(ctx: &Ctx, snapshot: &Snapshot, route: &Route) -> Result<Arc<Upstream>, Reply> {
    let by_id = |id: &str| match snapshot.upstreams.get(id) {
        Some(upstream) => Ok(upstream.clone()),
        None => Err(Reply::status(502).because(format!("upstream {id} does not exist"))),
    };
    if let Some(id) = &ctx.request.edits.upstream_id {
        return by_id(id);
    }
    match &route.upstream {
        RouteUpstream::Inline(upstream) => Ok(upstream.clone()),
        RouteUpstream::Id(id) => by_id(id),
        RouteUpstream::None => {
            Err(Reply::status(503).because("missing upstream configuration in Route or Service"))
        }
    }
}

fn pick(session: &mut Session, ctx: &mut Ctx) -> Result<Picked, PickError> {
    let (Some(upstream), Some(snapshot)) = (ctx.upstream.clone(), ctx.snapshot.clone()) else {
        return Err(PickError::NoNodes);
    };
    let x = Exchange::new(session, &mut ctx.request, &*snapshot);
    upstream.pick(&mut ctx.selection, &x)
}

/// Notes what `$upstream_host` and `$upstream_scheme` are for this node.
fn note_host(session: &Session, ctx: &mut Ctx, picked: &Picked) {
    let Some(upstream) = &ctx.upstream else { return };
    let scheme = upstream.scheme();
    ctx.request.upstream.scheme = scheme.name();
    ctx.request.upstream.host = match upstream.pass_host() {
        // The client's own Host, or what a plugin put in its place; shared, not copied.
        PassHost::Pass => ctx.request.edits.host.clone().or_else(|| guard::host_header(session)),
        PassHost::Node | PassHost::Rewrite => HeaderValue::from_str(&upstream.host(picked, "", scheme)).ok(),
    };
}

/// The peer of the next try.
///
/// # Errors
/// There is none left, or the time for retries is over: 502, as APISIX.
pub fn peer(session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
    let picked = match ctx.picked.take() {
        Some(picked) => picked,
        None => {
            let picked = pick(session, ctx);
            let picked = picked.map_err(|e| Error::explain(ErrorType::HTTPStatus(502), e.to_string()))?;
            note_host(session, ctx, &picked);
            picked
        }
    };
    let Some(upstream) = &ctx.upstream else {
        return Error::e_explain(ErrorType::HTTPStatus(500), "proxying without an upstream");
    };
    let timeout = ctx.route.as_ref().and_then(|rule| rule.target.timeout.as_ref());
    let upgrade = may_switch(ctx) && !upstream.scheme().is_h2() && session.is_upgrade_req();
    let host = ctx.request.upstream.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
    let peer = upstream.peer(&picked, host, PeerOverride { timeout, scheme: None, upgrade });
    ctx.request.upstream.tries.push(Try {
        addr: picked.addr(),
        began: Instant::now(),
        connect: None,
        header: None,
        total: None,
        status: None,
    });
    ctx.current = Some(picked);
    Ok(peer)
}

/// Whether requests of the route may become tunnels.
fn may_switch(ctx: &Ctx) -> bool {
    ctx.route.as_ref().is_some_and(|rule| rule.target.websocket)
}

/// Turns the client's request into the one that the node sees.
///
/// # Errors
/// A plugin made a URI that is none.
pub fn request(session: &Session, ctx: &mut Ctx, head: &mut RequestHeader) -> Result<()> {
    if response::awaited(ctx) && !ctx.request.body.is_read() {
        // Anew with each try: a retry sends the body from its beginning.
        ctx.request.passed = Some(Box::default());
    }
    if let Some(method) = &ctx.request.edits.method {
        head.set_method(method.clone());
    }
    target(&ctx.request, session, head)?;
    if let Some(host) = &ctx.request.upstream.host
        && !head.headers.get_all(header::HOST).iter().eq([host])
    {
        head.insert_header(header::HOST, host.clone())?;
    }
    // The client was welcomed already (nginx: `proxy_set_header Expect ""`).
    if head.headers.contains_key(header::EXPECT) {
        head.remove_header(&header::EXPECT);
    }
    let client = IpText::new(ctx.request.client.ip());
    head.insert_header(X_REAL_IP, address(&client))?;
    forwarded_for(head, &client)?;
    if !may_switch(ctx) && head.headers.contains_key(header::UPGRADE) {
        head.remove_header(&header::UPGRADE);
        head.remove_header(&header::CONNECTION);
    }
    Ok(())
}

/// The target: what a plugin set, else the normalised path with an edited query, else exactly what came.
fn target(request: &RequestCtx, session: &Session, head: &mut RequestHeader) -> Result<()> {
    if let Some(uri) = &request.edits.uri {
        return head.set_raw_path(&crate::net::lossless::to_bytes(uri));
    }
    let Some(args) = &request.edits.args else {
        return origin_form(session, head);
    };
    let path = request.path.as_deref().unwrap_or_else(|| session.req_header().uri.path());
    let mut uri = String::with_capacity(path.len() + args.len() + 8);
    escape_into(&mut uri, path, Escape::Path);
    if !args.is_empty() {
        uri.push('?');
        uri.push_str(args);
    }
    head.set_raw_path(uri.as_bytes())
}

/// An absolute-form target goes on in origin form (RFC 9112 §3.2.2).
fn origin_form(session: &Session, head: &mut RequestHeader) -> Result<()> {
    let raw = session.req_header().raw_path();
    if raw.starts_with(b"/") {
        return Ok(());
    }
    let parts = crate::net::uri::split_target(raw);
    if parts.authority.is_none() {
        return Ok(());
    }
    let mut target = parts.path.to_vec();
    if !parts.args.is_empty() {
        target.push(b'?');
        target.extend_from_slice(parts.args);
    }
    head.set_raw_path(&target)
}

fn forwarded_for(head: &mut RequestHeader, client: &IpText) -> Result<()> {
    let mut list = Vec::new();
    for value in head.headers.get_all(&guard::X_FORWARDED_FOR) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    if list.is_empty() {
        return head.insert_header(X_FORWARDED_FOR, address(client));
    }
    list.extend_from_slice(client.as_bytes());
    let value = HeaderValue::from_bytes(&list).unwrap_or_else(|_| address(client));
    head.insert_header(X_FORWARDED_FOR, value)
}

/// The client's address as a header's value.
fn address(client: &IpText) -> HeaderValue {
    HeaderValue::from_bytes(client.as_bytes()).expect("an address is ASCII")
}

/// Ends the running try and says whether another may follow.
///
/// nginx: `proxy_next_upstream error timeout`, which leaves out methods that may have taken effect.
pub fn failed(
    session: &mut Session,
    ctx: &mut Ctx,
    peer: &HttpPeer,
    mut error: Box<Error>,
    sent: Sent,
) -> Box<Error> {
    let ours = ctx.held.is_some() && *error.esource() == ErrorSource::Internal;
    if *error.esource() == ErrorSource::Downstream || ours {
        error.set_retry(false);
        return error;
    }
    let failure = if respond::times_out(error.etype()) { Failure::Timeout } else { Failure::Tcp };
    if let Some(last) = ctx.request.upstream.tries.last_mut() {
        last.total = Some(last.began.elapsed());
        last.status.get_or_insert(if failure == Failure::Timeout { 504 } else { 502 });
    }
    let may_repeat = match sent {
        Sent::Nothing => true,
        // Plugins that have seen an answer see no second one.
        Sent::Request | Sent::OnKept if ctx.held.is_some() => false,
        Sent::Request | Sent::OnKept => {
            session.req_header().method.is_idempotent()
                && !session.as_ref().retry_buffer_truncated()
                && session.response_written().is_none()
        }
    };
    if sent == Sent::OnKept && may_repeat && failure == Failure::Tcp {
        // The node had closed the idle connection: nginx counts no try for that and asks the same node again.
        ctx.picked = ctx.current.take();
        error.set_retry(true);
        return error;
    }
    let (Some(upstream), Some(picked)) = (&ctx.upstream, ctx.current.take()) else { return error };
    let retry = match may_repeat {
        true => upstream.retry(&mut ctx.selection, &picked, failure),
        false => Retry::Exhausted,
    };
    error.set_retry(retry == Retry::Again);
    if retry == Retry::Again {
        let request_id = ctx.request.request_id.as_deref();
        let cause = respond::described(&error);
        tracing::info!(node = %picked.addr(), request_id, error = %cause, "another node is tried");
    } else {
        // The node that the client's status tells of: passive checks hear of it in the end.
        ctx.current = Some(picked);
    }
    if retry == Retry::TimedOut {
        return Error::because(ErrorType::HTTPStatus(502), "retry_timeout is over", error);
    }
    error.more_context(format!("peer {}", peer.address()))
}

/// How much of a request had left when a try failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Not even connected.
    Nothing,
    /// Perhaps all of it.
    Request,
    /// Perhaps all of it, on a connection kept from an earlier request.
    OnKept,
}

/// The body that is sent when the framework replays only its end: see `plugin::body`.
pub fn replayed_body(session: &Session, ctx: &Ctx) -> Option<bytes::Bytes> {
    if session.as_downstream().as_http1().is_some() {
        return None;
    }
    match &ctx.request.body {
        BodyState::PutBack(body) if !body.is_empty() => Some(body.clone()),
        _ => None,
    }
}
