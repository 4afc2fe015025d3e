//! A client's connection: its first bytes, and how long it may be idle.
//!
//! Pingora's own look at a clear-text connection waits for the 24 bytes of HTTP/2's preface, for ever: a short
//! HTTP/1.0 request, or garbage, would get no answer. Three bytes tell enough, and the wait for them is bounded.
//!
//! The first line of every request is looked at before Pingora parses it: what nginx takes and Pingora does not is
//! escaped, and what is no request is answered and logged like all others, through a request that stands in for it.
//!
//! Pingora sets a timer for every wait between two requests. Here a connection has one timer for its whole life, which
//! looks at the time its last request ended: requests pay two stores.
//!
//! Differs from APISIX: `keepalive_timeout` bounds the time to the end of the next request's head, not to its first byte.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::BytesMut;
use memchr::memmem;
use pingora::{
    apps::{HttpServerApp, ServerApp},
    protocols::{Stream, http::ServerSession as HttpSession},
    server::ShutdownWatch,
};
use pingora_proxy::HttpProxy;
use tokio::io::AsyncReadExt;

use super::Gateway;
use crate::{
    net::request_line::{self, Line, Refusal},
    plugin::metrics::Metrics,
};

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

/// What the task of a connection and the requests on it tell each other.
struct Connection {
    /// Since when it waits for its next request, in milliseconds since [`ZERO`].
    idle: AtomicU64,
    /// Why the request that begins now is none; it is the last one.
    refused: OnceLock<Refused>,
}

/// A request that stands in for something that is none.
#[derive(Clone)]
pub struct Refused {
    /// What its client is told, and why.
    pub why: Refusal,
    /// The line it sent.
    pub line: Box<[u8]>,
}

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
    /// As it should.
    Well,
    /// The connection is being closed this very moment, and the client must find that nothing was done.
    TooLate,
    /// It was no request.
    Refused(Box<Refused>),
}

/// A request begins on the connection of the running task.
pub fn begin() -> Begun {
    // Without a connection nobody looks.
    CONNECTION.try_with(|connection| connection.begin()).unwrap_or(Begun::Well)
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
        Self { idle: AtomicU64::new(BUSY), refused: OnceLock::new() }
    }

    fn begin(&self) -> Begun {
        match self.idle.swap(BUSY, Ordering::Relaxed) {
            OVER => Begun::TooLate,
            REFUSED => {
                self.refused.get().map_or(Begun::Well, |refused| Begun::Refused(Box::new(refused.clone())))
            }
            _ => Begun::Well,
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
        let mut serving = pin!(CONNECTION.scope(connection.clone(), self.requests(stream, shutdown)));
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
    async fn requests(&self, mut stream: Stream, shutdown: &ShutdownWatch) {
        let mut end = shutdown.clone();
        let mut end = pin!(async move {
            // Fails when nobody can say any more that the process ends.
            let _ = end.wait_for(|ends| *ends).await;
        });
        // Until the first request decides, in `guard`.
        let keepalive = (!*shutdown.borrow()).then_some(self.patience.as_secs().max(1));
        let first =
            tokio::time::timeout(self.patience, beginning(&mut stream, end.as_mut(), &self.metrics)).await;
        let Ok(Some(head)) = first else { return };
        let mut session = HttpSession::new_http1(stream);
        session.set_keepalive(keepalive);
        read_first(&mut session, head);
        while let Some(reused) = self.proxy.process_new_http(session, shutdown).await {
            let (mut stream, settings) = reused.consume();
            let Some(head) = beginning(&mut stream, end.as_mut(), &self.metrics).await else { return };
            session = HttpSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            read_first(&mut session, head);
        }
    }
}

/// The framework begins with these bytes.
fn read_first(session: &mut HttpSession, head: BytesMut) {
    if let HttpSession::H1(session) = session {
        session.set_pipelined_prefix(head);
    }
}

/// As much as the framework reads at once.
const ROOM: usize = 4096;
/// Beyond this the framework reads on, and `guard` says what is too long.
const LONGEST: usize = 64 * 1024;
/// What the gateway answers when there is no request. Its answer is for what was refused.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n";

/// Counts a connection whose request has come in part until it is dropped.
struct Reading<'a>(&'a Metrics);

impl<'a> Reading<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.gateway.reading.fetch_add(1, Ordering::Relaxed);
        Self(metrics)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.gateway.reading.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a head ends behind `from`, where the search was before.
fn is_whole(input: &[u8], from: usize) -> bool {
    let news = &input[from.saturating_sub(2)..];
    let ends = |end: &[u8]| news.ends_with(end) || memmem::find(news, end).is_some();
    ends(b"\n\r\n") || ends(b"\n\n")
}

/// Reads a request's head and mends its first line; `None` when the client, or this process, has gone before.
async fn beginning(
    stream: &mut Stream,
    mut end: Pin<&mut (dyn Future<Output = ()> + Send)>,
    metrics: &Metrics,
) -> Option<BytesMut> {
    let mut input = BytesMut::with_capacity(ROOM);
    let mut reading = None;
    let mut searched = 0;
    loop {
        tokio::select! {
            biased;
            read = stream.read_buf(&mut input) => {
                if read.ok()? == 0 {
                    return None;
                }
            }
            () = &mut end => return None,
        }
        if searched == 0 {
            match request_line::look(&input) {
                Line::Refused(why) => return Some(refused(stream, input, why).await),
                Line::Mended { line, length } => {
                    let rest = input.split_off(length);
                    input = BytesMut::from(&line[..]);
                    input.unsplit(rest);
                }
                Line::Plain => {}
                Line::Partial if input.len() < LONGEST => {
                    reading.get_or_insert_with(|| Reading::new(metrics));
                    continue;
                }
                Line::Partial => return Some(input),
            }
        }
        if is_whole(&input, searched) || input.len() >= LONGEST {
            return Some(input);
        }
        searched = input.len();
        reading.get_or_insert_with(|| Reading::new(metrics));
    }
}

/// Leaves the answer to a request that stands in.
async fn refused(stream: &mut Stream, mut input: BytesMut, why: Refusal) -> BytesMut {
    rest_of_head(stream, &mut input).await;
    let mut lines = input[..].split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let line = lines.find(|line| !line.is_empty()).unwrap_or_default().into();
    let _ = CONNECTION.try_with(|connection| connection.refuse(Refused { why, line }));
    BytesMut::from(STAND_IN)
}

/// Reads what belongs to a head whose first line is refused, as far as it comes at once: a client that is cut off
/// while it sends may not see its answer.
async fn rest_of_head(stream: &mut Stream, input: &mut BytesMut) {
    const AT_ONCE: Duration = Duration::from_millis(100);
    while !is_whole(input, 0) && input.len() < LONGEST {
        let read = tokio::time::timeout(AT_ONCE, stream.read_buf(input)).await;
        if !matches!(read, Ok(Ok(1..))) {
            return;
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

    fn well() -> bool {
        matches!(begin(), Begun::Well)
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
        let end = Box::pin(std::future::pending());
        let mut stream: Stream =
            Box::new(std::io::Cursor::new(b"NO\x01 / HTTP/1.1\r\nX: y\r\n\r\n".to_vec()));
        let task = async {
            let mut end = end;
            let metrics = Metrics::new(prometheus::Registry::new());
            let head = beginning(&mut stream, end.as_mut(), &metrics).await.unwrap();
            assert_eq!(head, STAND_IN);
            let Begun::Refused(refused) = begin() else { panic!("not refused") };
            assert_eq!((refused.why.status, &*refused.line), (400, &b"NO\x01 / HTTP/1.1"[..]));
            assert!(well());
        };
        CONNECTION.scope(connection, task).await;
    }
}
