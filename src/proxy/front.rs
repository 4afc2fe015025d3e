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
        Arc, LazyLock, OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::{
    apps::{HttpServerApp, ServerApp},
    protocols::{Stream, http::ServerSession as HttpSession},
    server::ShutdownWatch,
};
use pingora_proxy::HttpProxy;

use super::{
    Gateway,
    incoming::{self, Incoming, Known, Refused},
};
use crate::plugin::{metrics::Metrics, source::Source};

/// HTTP/2's preface (RFC 9113 §3.4). No method of HTTP/1 that anybody uses begins like this.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// So much of it tells enough: hardly anybody sends less.
const BEGINNING: usize = 3;

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

/// What the task of a connection and the requests on it tell each other.
struct Connection {
    /// Since when it waits for its next request, in milliseconds since [`ZERO`].
    idle: AtomicU64,
    /// What is known of the request that begins now: [`CLAIMS`], [`PIPELINED`].
    known: AtomicU8,
    /// Why the request that begins now is none; it is the last one.
    refused: OnceLock<Refused>,
}

const CLAIMS: u8 = 1;
const PIPELINED: u8 = 2;

/// Stands for no time: there is a request, or there was none yet, for which there is a timer of its own.
const BUSY: u64 = u64::MAX;
/// The time is over; a request that comes now is not served any more.
const OVER: u64 = u64::MAX - 1;
/// The request that begins now stands in for one that was refused.
const REFUSED: u64 = u64::MAX - 2;
static ZERO: LazyLock<Instant> = LazyLock::new(Instant::now);

tokio::task_local! {
    /// The connection that the running task serves. Streams of HTTP/2 have none.
    static CONNECTION: Arc<Connection>;
}

/// How a request begins.
pub enum Begun {
    /// As it should. `None`: nobody looked at its head, as in a stream of HTTP/2.
    Well(Option<Known>),
    /// The connection is being closed this very moment, and the client must find that nothing was done.
    TooLate,
    /// It was no request.
    Refused(Box<Refused>),
}

/// A request begins on the connection of the running task.
pub fn begin() -> Begun {
    CONNECTION.try_with(|connection| connection.begin()).unwrap_or(Begun::Well(None))
}

/// The request is over, and the connection waits for another.
pub fn idle(now: Instant) {
    let _ = CONNECTION.try_with(|connection| connection.idle.store(since_zero(now), Ordering::Relaxed));
}

fn since_zero(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*ZERO).as_millis()).unwrap_or(REFUSED - 1)
}

impl Connection {
    fn new() -> Self {
        Self { idle: AtomicU64::new(BUSY), known: AtomicU8::new(CLAIMS), refused: OnceLock::new() }
    }

    fn begin(&self) -> Begun {
        match self.idle.swap(BUSY, Ordering::Relaxed) {
            OVER => Begun::TooLate,
            REFUSED => match self.refused.get() {
                Some(refused) => Begun::Refused(Box::new(refused.clone())),
                None => Begun::Well(None),
            },
            _ => {
                let known = self.known.load(Ordering::Relaxed);
                Begun::Well(Some(Known { claims: known & CLAIMS != 0, pipelined: known & PIPELINED != 0 }))
            }
        }
    }

    /// Tells the request that begins next what is known of it; what the framework reads.
    fn receive(&self, incoming: Incoming) -> BytesMut {
        match incoming {
            Incoming::Request(head, Known { claims, pipelined }) => {
                let known = (u8::from(claims) * CLAIMS) | (u8::from(pipelined) * PIPELINED);
                self.known.store(known, Ordering::Relaxed);
                head
            }
            Incoming::Refused(stand_in, refused) => {
                self.refuse(*refused);
                stand_in
            }
        }
    }

    fn refuse(&self, refused: Refused) {
        // Nothing is read from the connection after the first.
        let _ = self.refused.set(refused);
        self.idle.store(REFUSED, Ordering::Relaxed);
    }

    /// How long the connection may go on; `None` when its time is over, and then no request begins any more.
    fn rest(&self, limit: Duration, now: Instant) -> Option<Duration> {
        let since = self.idle.load(Ordering::Relaxed);
        if matches!(since, BUSY | REFUSED) {
            return Some(limit);
        }
        let idle = Duration::from_millis(since_zero(now).saturating_sub(since));
        let rest = limit.saturating_sub(idle);
        if !rest.is_zero() {
            return Some(rest);
        }
        // Unless a request was quicker.
        let over = self.idle.compare_exchange(since, OVER, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        (!over).then_some(limit)
    }
}

impl Front {
    /// Serves HTTP/1 until the client leaves or is idle for too long.
    async fn serve(&self, stream: Stream, shutdown: &ShutdownWatch) {
        let connection = Arc::new(Connection::new());
        // In the task that the framework made. In one of its own, requests moved between threads more often, and an
        // upstream connection that the pool's watcher on another thread is just letting go of counts as taken there.
        let mut serving =
            pin!(CONNECTION.scope(connection.clone(), self.requests(&connection, stream, shutdown)));
        let mut wait = pin!(tokio::time::sleep(self.keepalive));
        loop {
            tokio::select! {
                biased;
                () = &mut serving => return,
                () = &mut wait => {}
            }
            let Some(rest) = connection.rest(self.keepalive, Instant::now()) else { return };
            wait.as_mut().reset((Instant::now() + rest).into());
        }
    }

    /// One request after another. Pingora's own loop would look for HTTP/2 again.
    async fn requests(&self, connection: &Connection, stream: Stream, shutdown: &ShutdownWatch) {
        let mut end = shutdown.clone();
        let mut end = pin!(async move {
            // Fails when nobody can say any more that the process ends.
            let _ = end.wait_for(|ends| *ends).await;
        });
        // Until the first request decides, in `guard`.
        let keepalive = (!*shutdown.borrow()).then_some(self.patience.as_secs().max(1));
        let mut source = Source::new(stream);
        let first = incoming::head(&mut source, end.as_mut(), &self.metrics);
        let Ok(Some(head)) = tokio::time::timeout(self.patience, first).await else { return };
        let mut session = HttpSession::new_http1(source);
        session.set_keepalive(keepalive);
        read_first(&mut session, connection.receive(head));
        while let Some(reused) = self.proxy.process_new_http(session, shutdown).await {
            let (stream, settings) = reused.consume();
            let mut source = Source::of(stream);
            let Some(head) = incoming::head(&mut source, end.as_mut(), &self.metrics).await else { return };
            session = HttpSession::new_http1(source);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            read_first(&mut session, connection.receive(head));
        }
    }
}

/// The framework begins with these bytes.
fn read_first(session: &mut HttpSession, head: BytesMut) {
    if let HttpSession::H1(session) = session {
        session.set_pipelined_prefix(head);
    }
}

/// The whole preface, or else Pingora would serve HTTP/1 by itself.
async fn begins_as_http2(stream: &mut Stream) -> std::io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    let known = stream.try_peek(&mut first[..BEGINNING]).await?;
    if !known || first[..BEGINNING] != PREFACE[..BEGINNING] {
        return Ok(false);
    }
    stream.try_peek(&mut first).await?;
    Ok(first == *PREFACE)
}

#[async_trait]
impl ServerApp for Front {
    async fn process_new(self: &Arc<Self>, mut stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let _open = Open::new(&self.metrics);
        if !self.http2 {
            self.serve(stream, shutdown).await;
            return None;
        }
        match tokio::time::timeout(self.patience, begins_as_http2(&mut stream)).await {
            Ok(Ok(true)) => return self.proxy.process_new(stream, shutdown).await,
            Ok(Ok(false)) => self.serve(stream, shutdown).await,
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
    use crate::net::request_line::Refusal;

    fn well() -> bool {
        matches!(begin(), Begun::Well(_))
    }

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn only_an_idle_connection_runs_out_of_time() {
        let connection = Connection::new();
        let after = |seconds| *ZERO + Duration::from_secs(seconds);
        assert_eq!(connection.rest(LIMIT, after(1000)), Some(LIMIT), "a request takes its time");
        connection.idle.store(since_zero(after(1000)), Ordering::Relaxed);
        assert_eq!(connection.rest(LIMIT, after(1059)), Some(Duration::from_secs(1)));
        assert_eq!(connection.rest(LIMIT, after(1060)), None);
    }

    #[tokio::test]
    async fn requests_mark_the_connection_of_their_task() {
        let connection = Arc::new(Connection::new());
        let end = *ZERO + Duration::from_millis(7);
        CONNECTION.scope(connection.clone(), async { idle(end) }).await;
        assert_eq!(connection.idle.load(Ordering::Relaxed), 7);
        assert!(CONNECTION.scope(connection.clone(), async { well() }).await);
        CONNECTION.scope(connection.clone(), async { idle(end) }).await;
        assert_eq!(connection.rest(LIMIT, end + LIMIT), None);
        assert!(!CONNECTION.scope(connection.clone(), async { well() }).await, "too late");
        // Outside of a connection, as in a stream of HTTP/2, nothing happens.
        idle(end);
        assert!(well());
    }

    #[tokio::test]
    async fn what_is_no_request_is_told_once() {
        let connection = Arc::new(Connection::new());
        let why = Refusal { status: 400, reason: "nonsense" };
        let refused = Box::new(Refused { why, line: (*b"NO").into() });
        assert_eq!(connection.receive(Incoming::Refused(BytesMut::from("GET /"), refused)), "GET /");
        let task = async {
            let Begun::Refused(refused) = begin() else { panic!("not refused") };
            assert_eq!((refused.why, &*refused.line), (why, &b"NO"[..]));
            assert!(well());
        };
        CONNECTION.scope(connection, task).await;
    }

    #[tokio::test]
    async fn what_a_head_says_is_told() {
        let connection = Arc::new(Connection::new());
        for (claims, pipelined) in [(false, false), (true, false), (false, true), (true, true)] {
            let known = Known { claims, pipelined };
            connection.receive(Incoming::Request(BytesMut::new(), known));
            let begun = CONNECTION.scope(connection.clone(), async { begin() }).await;
            assert!(matches!(begun, Begun::Well(Some(told)) if told == known), "{known:?}");
        }
    }
}
