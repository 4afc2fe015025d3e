//! A client's connection: its first bytes, and how long it may be idle.
//!
//! Pingora's own look at a clear-text connection waits for the 24 bytes of HTTP/2's preface, for ever: a short
//! HTTP/1.0 request, or garbage, would get no answer. Three bytes tell enough, and the wait for them is bounded.
//!
//! Pingora sets a timer for every wait between two requests. Here a connection has one timer for its whole life, which
//! looks at the time its last request ended: requests pay two stores.
//!
//! Differs from APISIX: `keepalive_timeout` bounds the time to the end of the next request's head, not to its first byte.

use std::{
    pin::pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use pingora::{
    apps::{HttpServerApp, ServerApp},
    protocols::{Stream, http::ServerSession as HttpSession},
    server::ShutdownWatch,
};
use pingora_proxy::HttpProxy;

use super::Gateway;
use crate::plugin::metrics::Metrics;

/// How HTTP/2's preface begins (RFC 9113 §3.4). No method of HTTP/1 that anybody uses begins like this.
const PREFACE: &[u8; 3] = b"PRI";

/// What listens for clients.
pub struct Front {
    /// One for all listeners: it has the connections to nodes, and a megabyte of trusted authorities.
    pub proxy: Arc<HttpProxy<Gateway>>,
    /// Whether HTTP/2 in clear is wanted.
    pub http2: bool,
    /// How long a client may take to send its first bytes. nginx: `client_header_timeout`.
    pub patience: Duration,
    /// How long a connection may stay open from one answer to the head of the next request.
    /// nginx: `keepalive_timeout`.
    pub keepalive: Duration,
    /// Counts connections.
    pub metrics: Arc<Metrics>,
}

/// Counts one connection as open until it is dropped.
struct Open<'a>(&'a Metrics);

impl<'a> Open<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.gateway.accepted.fetch_add(1, Ordering::Relaxed);
        metrics.gateway.active.fetch_add(1, Ordering::Relaxed);
        Self(metrics)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.gateway.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Since when a connection waits for its next request, in milliseconds since [`ZERO`].
struct Idle(AtomicU64);

/// Stands for no time: there is a request, or there was none yet, for which Pingora has a timer.
const BUSY: u64 = u64::MAX;
/// The time is over; a request that comes now is not served any more.
const OVER: u64 = u64::MAX - 1;
static ZERO: LazyLock<Instant> = LazyLock::new(Instant::now);

tokio::task_local! {
    /// The connection that the running task serves. Streams of HTTP/2 have none.
    static CONNECTION: Arc<Idle>;
}

/// A request begins on the connection of the running task. False: the connection is being closed this very moment, and
/// the client must find that nothing was done.
pub fn begin() -> bool {
    // Without a connection nobody looks.
    CONNECTION.try_with(|idle| idle.0.swap(BUSY, Ordering::Relaxed) != OVER).unwrap_or(true)
}

/// The request is over, and the connection waits for another.
pub fn idle(now: Instant) {
    let _ = CONNECTION.try_with(|idle| idle.0.store(since_zero(now), Ordering::Relaxed));
}

fn since_zero(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*ZERO).as_millis()).unwrap_or(OVER - 1)
}

impl Idle {
    /// How long the connection may go on; `None` when its time is over, and then no request begins any more.
    fn rest(&self, limit: Duration, now: Instant) -> Option<Duration> {
        let since = self.0.load(Ordering::Relaxed);
        if since == BUSY {
            return Some(limit);
        }
        let idle = Duration::from_millis(since_zero(now).saturating_sub(since));
        let rest = limit.saturating_sub(idle);
        if !rest.is_zero() {
            return Some(rest);
        }
        // Unless a request was quicker.
        let over = self.0.compare_exchange(since, OVER, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        (!over).then_some(limit)
    }
}

impl Front {
    /// Serves HTTP/1 until the client leaves or is idle for too long.
    async fn serve(&self, stream: Stream, shutdown: &ShutdownWatch) {
        let idle = Arc::new(Idle(AtomicU64::new(BUSY)));
        // In the task that the framework made. In one of its own, requests moved between threads more often, and an
        // upstream connection that the pool's watcher on another thread is just letting go of counts as taken there.
        let mut serving = pin!(CONNECTION.scope(idle.clone(), self.requests(stream, shutdown)));
        let mut wait = pin!(tokio::time::sleep(self.keepalive));
        loop {
            tokio::select! {
                biased;
                () = &mut serving => return,
                () = &mut wait => {}
            }
            let Some(rest) = idle.rest(self.keepalive, Instant::now()) else { return };
            wait.as_mut().reset((Instant::now() + rest).into());
        }
    }

    /// One request after another. Pingora's own loop would look for HTTP/2 again.
    async fn requests(&self, stream: Stream, shutdown: &ShutdownWatch) {
        let mut session = HttpSession::new_http1(stream);
        // Until the first request decides, in `guard`.
        session.set_keepalive((!*shutdown.borrow()).then_some(self.patience.as_secs().max(1)));
        while let Some(reused) = self.proxy.process_new_http(session, shutdown).await {
            let (stream, settings) = reused.consume();
            session = HttpSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
        }
    }
}

#[async_trait]
impl ServerApp for Front {
    async fn process_new(self: &Arc<Self>, mut stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let _open = Open::new(&self.metrics);
        if !self.http2 {
            self.serve(stream, shutdown).await;
            return None;
        }
        let mut first = [0; PREFACE.len()];
        let peeked = tokio::time::timeout(self.patience, stream.try_peek(&mut first)).await;
        match peeked {
            Ok(Ok(true)) if first == *PREFACE => return self.proxy.process_new(stream, shutdown).await,
            Ok(Ok(_)) => self.serve(stream, shutdown).await,
            // Gone, or silent for too long.
            Ok(Err(_)) | Err(_) => {}
        }
        None
    }

    async fn cleanup(&self) {
        self.proxy.cleanup().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn only_an_idle_connection_runs_out_of_time() {
        let connection = Idle(AtomicU64::new(BUSY));
        let after = |seconds| *ZERO + Duration::from_secs(seconds);
        assert_eq!(connection.rest(LIMIT, after(1000)), Some(LIMIT), "a request takes its time");
        connection.0.store(since_zero(after(1000)), Ordering::Relaxed);
        assert_eq!(connection.rest(LIMIT, after(1059)), Some(Duration::from_secs(1)));
        assert_eq!(connection.rest(LIMIT, after(1060)), None);
    }

    #[tokio::test]
    async fn requests_mark_the_connection_of_their_task() {
        let connection = Arc::new(Idle(AtomicU64::new(BUSY)));
        let end = *ZERO + Duration::from_millis(7);
        CONNECTION.scope(connection.clone(), async { idle(end) }).await;
        assert_eq!(connection.0.load(Ordering::Relaxed), 7);
        assert!(CONNECTION.scope(connection.clone(), async { begin() }).await);
        CONNECTION.scope(connection.clone(), async { idle(end) }).await;
        assert_eq!(connection.rest(LIMIT, end + LIMIT), None);
        assert!(!CONNECTION.scope(connection.clone(), async { begin() }).await, "too late");
        // Outside of a connection, as in a stream of HTTP/2, nothing happens.
        idle(end);
        assert!(begin());
    }
}
