//! The data plane: APISIX's phases on Pingora's hooks.
//!
//! Each hook below calls one function of one module and nothing else. Start with [`request::filter`].
//! Invariant: only this module implements `ProxyHttp`, and only [`respond`] makes HTTP out of errors.

#[cfg(test)]
mod allocations;
mod answer;
mod finish;
pub mod front;
mod guard;
mod head;
mod incoming;
mod media_type;
pub mod options;
mod request;
mod respond;
mod response;
pub mod testing;
mod upstream;

use std::sync::{Arc, atomic::Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use pingora::{
    Error, Result,
    http::{RequestHeader, ResponseHeader},
    modules::http::HttpModules,
    protocols::Digest,
    upstreams::peer::HttpPeer,
};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use self::{answer::Held, options::Options, upstream::Sent};
use crate::{
    ops::access_log::AccessLog,
    plugin::{chain::Chain, metrics::Metrics, request::RequestCtx},
    snapshot::{Current, Route, Snapshot, router::Rule},
    upstream::{Picked, Selection, Upstream},
};

/// The gateway as Pingora sees it.
pub struct Gateway {
    /// Where the running snapshot is.
    pub current: Arc<Current>,
    /// What config.yaml says.
    pub options: Options,
    /// Where requests are written down.
    pub access_log: Option<AccessLog>,
    /// Counts requests.
    pub metrics: Arc<Metrics>,
}

/// Counts one request as under way until it is dropped; a stopping process waits for those.
struct Busy(Arc<Metrics>);

impl Busy {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.gateway.busy.fetch_add(1, Ordering::Relaxed);
        metrics.gateway.requests.fetch_add(1, Ordering::Relaxed);
        Self(metrics.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.gateway.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One request on its way.
#[derive(Default)]
pub struct Ctx {
    /// The configuration that this request sees from start to end.
    snapshot: Option<Arc<Snapshot>>,
    /// What plugins share.
    request: RequestCtx,
    route: Option<Arc<Rule<Route>>>,
    /// The plugins of route, group and consumer, as they apply to this request.
    chain: Chain,
    upstream: Option<Arc<Upstream>>,
    selection: Selection,
    /// Picked but not yet tried.
    picked: Option<Picked>,
    /// Being tried.
    current: Option<Picked>,
    /// The upstream's answer while the framework must not send it.
    held: Option<Held>,
    /// Bytes of the request body that went on, for `client_max_body_size`.
    body_sent: u64,
    _busy: Option<Busy>,
}

#[async_trait]
impl ProxyHttp for Gateway {
    // Boxed: Pingora moves it through a dozen nested futures, and boxes and copies those for every request.
    type CTX = Box<Ctx>;

    fn new_ctx(&self) -> Box<Ctx> {
        Box::new(Ctx { _busy: Some(Busy::new(&self.metrics)), ..Ctx::default() })
    }

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {
        // Compression belongs to plugins; a module that does nothing would still cost every request.
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Box<Ctx>) -> Result<bool> {
        request::filter(self, session, ctx).await
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Box<Ctx>) -> Result<Box<HttpPeer>> {
        upstream::peer(session, ctx)
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        if let Some(last) = ctx.request.upstream.tries.last_mut() {
            last.connect = Some(last.began.elapsed());
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        head: &mut RequestHeader,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        upstream::request(session, ctx, head)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        request::body(&self.options, session, ctx, body, end)
    }

    async fn upstream_response_filter(
        &self,
        _: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        response::note(ctx, head);
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        response::head(session, ctx, &self.options, head).await
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Box<Ctx>,
    ) -> Result<Option<std::time::Duration>> {
        response::body(session, ctx, body, end)?;
        Ok(None)
    }

    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Box<Ctx>,
    ) -> Result<Option<Bytes>> {
        Ok(answer::trailers(ctx, trailers))
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        peer: &HttpPeer,
        ctx: &mut Box<Ctx>,
        e: Box<Error>,
    ) -> Box<Error> {
        upstream::failed(session, ctx, peer, e, Sent::Nothing)
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        e: Box<Error>,
        ctx: &mut Box<Ctx>,
        reused: bool,
    ) -> Box<Error> {
        upstream::failed(session, ctx, peer, e, if reused { Sent::OnKept } else { Sent::Request })
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Box<Ctx>) -> FailToProxy {
        respond::failed(session, ctx, &self.options, e).await
    }

    fn suppress_error_log(&self, _: &Session, _: &Box<Ctx>, _: &Error) -> bool {
        // `respond::failed` writes one line with route and request id.
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Box<Ctx>, _: &Error, _: ProxyWarnLogContext) -> bool {
        // `upstream::failed` writes it; Pingora's line may show a head.
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Box<Ctx>) {
        if ctx.held.is_some() {
            // Boxed: other requests do not carry its state.
            Box::pin(answer::conclude(session, ctx, &self.options, error.is_some())).await;
        }
        finish::finish(self, session, ctx);
    }
}
