//! Active checks: one background task for each upstream that has them.
//!
//! Serving nodes are probed every `healthy.interval` seconds, the others every `unhealthy.interval`, at most
//! `concurrency` at a time. [`Probes::sync`] starts and stops tasks when the configuration changes.

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pingora::tls::{
    error::ErrorStack,
    ssl::{SslConnector, SslMethod, SslVerifyMode},
    tokio_ssl::SslStream,
    x509::{
        X509,
        store::{X509Store, X509StoreBuilder},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tracing::debug;

use super::{
    super::{
        Upstream,
        conf::{ActiveConf, CheckKind, PassHost, seconds},
        node::Node,
        selection::Failure,
    },
    Active, Checker, Count, report,
};
use crate::trust;

/// No status line is longer.
const STATUS_LINE_MOST: usize = 512;

/// The running probes of all upstreams.
#[derive(Default)]
pub struct Probes {
    /// Locked when configuration changes only.
    running: Mutex<HashMap<String, Running>>,
}

struct Running {
    upstream: Arc<Upstream>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Probes {
    /// Makes exactly these upstreams be probed, by their key such as `/upstreams/1`; those without active checks are
    /// passed over. An upstream that is the same object as before goes on undisturbed. Must be called in a Tokio
    /// runtime, which runs the probes.
    pub fn sync(&self, wanted: impl IntoIterator<Item = (String, Arc<Upstream>)>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = HashMap::new();
        for (key, upstream) in wanted {
            let has_active = upstream.checker.as_ref().is_some_and(|c| c.active.is_some());
            if !has_active || upstream.nodes.is_empty() {
                continue;
            }
            let kept = running.remove(&key).filter(|old| Arc::ptr_eq(&old.upstream, &upstream));
            let entry = kept
                .unwrap_or_else(|| Running { task: tokio::spawn(watch(Arc::clone(&upstream))), upstream });
            next.insert(key, entry);
        }
        *running = next;
    }

    /// How many upstreams are being probed.
    pub fn len(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing is being probed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The connector of https probes.
pub(super) struct Tls(SslConnector);

impl Tls {
    /// `None` for checks in clear.
    ///
    /// # Errors
    /// When the TLS library cannot be set up.
    pub(super) fn for_checks(conf: &ActiveConf) -> Result<Option<Tls>, String> {
        if conf.kind != CheckKind::Https {
            return Ok(None);
        }
        let mut builder = SslConnector::builder(SslMethod::tls()).map_err(|e| e.to_string())?;
        match trust::authorities() {
            _ if !conf.https_verify_certificate => builder.set_verify(SslVerifyMode::NONE),
            Some(pem) => builder.set_cert_store(store_of(pem).map_err(|e| e.to_string())?),
            None => {}
        }
        Ok(Some(Tls(builder.build())))
    }
}

fn store_of(pem: &[u8]) -> Result<X509Store, ErrorStack> {
    let mut store = X509StoreBuilder::new()?;
    for certificate in X509::stack_from_pem(pem)? {
        store.add_cert(certificate)?;
    }
    Ok(store.build())
}

#[derive(Clone, Copy)]
enum Mode {
    Up,
    Down,
}

async fn watch(upstream: Arc<Upstream>) {
    // nodes that are down answer slowly: they must not delay the others
    tokio::join!(watch_mode(&upstream, Mode::Up), watch_mode(&upstream, Mode::Down));
}

async fn watch_mode(upstream: &Arc<Upstream>, mode: Mode) {
    let Some((_, Active { conf, .. })) = checks(upstream) else {
        return;
    };
    let every = match mode {
        Mode::Up => conf.healthy.interval,
        Mode::Down => conf.unhealthy.interval,
    };
    let every = Duration::from_secs(every.max(1));
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        round(upstream, conf.concurrency.max(1), mode).await;
    }
}

fn checks(upstream: &Upstream) -> Option<(&Checker, &Active)> {
    let checker = upstream.checker.as_ref()?;
    Some((checker, checker.active.as_ref()?))
}

async fn round(upstream: &Arc<Upstream>, concurrency: usize, mode: Mode) {
    let permits = Arc::new(Semaphore::new(concurrency.min(Semaphore::MAX_PERMITS)));
    // dropping the set, when the watching task is aborted, aborts the probes
    let mut probes = JoinSet::new();
    for node in &upstream.nodes {
        let up = node.state().health.health().is_up();
        if up != matches!(mode, Mode::Up) {
            continue;
        }
        let (upstream, node, permits) = (Arc::clone(upstream), node.clone(), Arc::clone(&permits));
        probes.spawn(async move {
            let _permit = permits.acquire_owned().await;
            probe(&upstream, &node).await;
        });
    }
    while probes.join_next().await.is_some() {}
}

async fn probe(upstream: &Upstream, node: &Node) {
    let Some((_, active)) = checks(upstream) else {
        return;
    };
    let Active { conf, limits, .. } = active;
    if let Some(name) = node.name() {
        name.ready().await;
    }
    let Some(mut addr) = node.addr() else {
        return;
    };
    addr.set_port(conf.port.unwrap_or(node.port()));
    let host = probe_host(upstream, node, conf, addr);
    let limit = seconds(conf.timeout).max(Duration::from_millis(1));
    let outcome = match timeout(limit, ask(active, addr, &host)).await {
        Err(_) => limits.failure(Failure::Timeout),
        Ok(Err(error)) => {
            debug!(%addr, %error, "probe failed");
            limits.failure(Failure::Tcp)
        }
        Ok(Ok(None)) => Some((Count::Success, limits.successes)),
        Ok(Ok(Some(status))) => limits.status(status),
    };
    report(node, outcome);
}

/// `Host` and TLS name of a probe (APISIX: `healthcheck_manager.lua` compute_targets).
fn probe_host(upstream: &Upstream, node: &Node, conf: &ActiveConf, addr: SocketAddr) -> String {
    if upstream.pass_host == PassHost::Rewrite && !upstream.upstream_host.is_empty() {
        return upstream.upstream_host.to_string();
    }
    if let Some(name) = node.name() {
        return name.host().to_owned();
    }
    conf.host.clone().unwrap_or_else(|| addr.ip().to_string())
}

/// Connects and, but for tcp, asks; `None` when a connection is all there is to know.
async fn ask(active: &Active, addr: SocketAddr, host: &str) -> std::io::Result<Option<u16>> {
    let stream = TcpStream::connect(addr).await?;
    let request = request(&active.conf, host);
    match (&active.tls, active.conf.kind) {
        (_, CheckKind::Tcp) => Ok(None),
        (Some(Tls(connector)), CheckKind::Https) => {
            let setup = connector.configure().map_err(std::io::Error::other)?;
            let ssl = setup.into_ssl(host).map_err(std::io::Error::other)?;
            let mut stream = SslStream::new(ssl, stream).map_err(std::io::Error::other)?;
            Pin::new(&mut stream).connect().await.map_err(std::io::Error::other)?;
            exchange(stream, &request).await.map(Some)
        }
        _ => exchange(stream, &request).await.map(Some),
    }
}

fn request(conf: &ActiveConf, host: &str) -> Vec<u8> {
    let mut head = format!("{} {} HTTP/1.1\r\nConnection: close\r\n", conf.http_method, conf.http_path);
    for line in &conf.req_headers {
        head.push_str(line);
        head.push_str("\r\n");
    }
    head.push_str(&format!("Host: {host}\r\n"));
    if !conf.http_req_body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", conf.http_req_body.len()));
    }
    head.push_str("\r\n");
    head.push_str(&conf.http_req_body);
    head.into_bytes()
}

/// Sends the request and reads no further than the status line; a line that is none gives 0, which is a failure.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> std::io::Result<u16> {
    stream.write_all(request).await?;
    let mut line = Vec::with_capacity(64);
    while !line.contains(&b'\n') {
        if line.len() > STATUS_LINE_MOST {
            return Ok(0);
        }
        if stream.read_buf(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(status(&line).unwrap_or(0))
}

fn status(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line.split(|&b| b == b'\n').next()?).ok()?;
    let mut words = line.split_ascii_whitespace();
    let version = words.next()?;
    if !version.get(..5)?.eq_ignore_ascii_case("HTTP/") {
        return None;
    }
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn status_lines() {
        for (line, want) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], Some(200)),
            (b"HTTP/1.0 503\r\nx: y\r\n", Some(503)),
            (b"http/1.1  404  x\n", Some(404)),
            (b"SSH-2.0-OpenSSH\r\n", None),
            (b"HTTP/1.1\r\n", None),
            (b"HTTP/1.1 OK\r\n", None),
            (b"\n", None),
        ] {
            assert_eq!(status(line), want, "{}", String::from_utf8_lossy(line));
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(line in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = status(&line);
        }
    }

    #[test]
    fn requests() {
        let conf = ActiveConf {
            http_path: "/health".to_owned(),
            req_headers: vec!["User-Agent: probe".to_owned()],
            http_req_body: "hi".to_owned(),
            ..ActiveConf::default()
        };
        let sent = String::from_utf8(request(&conf, "a.com")).expect("text");
        assert_eq!(
            sent,
            "GET /health HTTP/1.1\r\nConnection: close\r\nUser-Agent: probe\r\nHost: a.com\r\nContent-Length: 2\r\n\r\nhi"
        );
    }
}
