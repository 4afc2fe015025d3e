//! The first bytes of a connection: HTTP/1 or HTTP/2 with prior knowledge.
//!
//! Pingora's own look at a clear-text connection waits for the 24 bytes of HTTP/2's preface, for ever: a short
//! HTTP/1.0 request, or garbage, would get no answer. Three bytes tell enough, and the wait for them is bounded.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use pingora::{apps::ServerApp, protocols::Stream, server::ShutdownWatch};
use pingora_proxy::HttpProxy;

use super::Gateway;
use crate::plugin::metrics::Metrics;

/// How HTTP/2's preface begins (RFC 9113 §3.4). No method of HTTP/1 that anybody uses begins like this.
const PREFACE: &[u8; 3] = b"PRI";

/// What listens for clients.
pub struct Front {
    /// Speaks HTTP/1 only.
    pub http1: Arc<HttpProxy<Gateway>>,
    /// Speaks HTTP/2 in clear, where it is wanted.
    pub http2: Option<Arc<HttpProxy<Gateway>>>,
    /// How long a client may take to send its first bytes. nginx: `client_header_timeout`.
    pub patience: Duration,
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

#[async_trait]
impl ServerApp for Front {
    async fn process_new(self: &Arc<Self>, mut stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let _open = Open::new(&self.metrics);
        let Some(http2) = &self.http2 else { return self.http1.process_new(stream, shutdown).await };
        let mut first = [0; PREFACE.len()];
        let peeked = tokio::time::timeout(self.patience, stream.try_peek(&mut first)).await;
        match peeked {
            Ok(Ok(true)) if first == *PREFACE => http2.process_new(stream, shutdown).await,
            Ok(Ok(_)) => self.http1.process_new(stream, shutdown).await,
            // Gone, or silent for too long.
            Ok(Err(_)) | Err(_) => None,
        }
    }

    async fn cleanup(&self) {
        self.http1.cleanup().await;
        if let Some(http2) = &self.http2 {
            http2.cleanup().await;
        }
    }
}
