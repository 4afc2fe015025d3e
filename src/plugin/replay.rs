//! A connection whose next input is known already: what was read from it is read again.
//!
//! It can also read along a chunked body and break off where that is ambiguous.
//!
//! Invariant: bytes come out in the order in which the client sent them; writing goes straight through.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use pingora::{
    protocols::{
        ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
        TimingDigest, UniqueID, UniqueIDType, raw_connect::ProxyDigest, tls::SslDigest,
    },
    tls::ssl::SslRef,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::chunked::Chunks;

/// See the module.
#[derive(Debug)]
pub struct Replay {
    first: Bytes,
    inner: Stream,
    /// What the body that comes is held against.
    chunks: Option<Chunks>,
}

impl Replay {
    /// A connection that begins with `first` once more.
    pub fn new(first: Bytes, connection: Stream) -> Self {
        if !connection.as_any().is::<Replay>() {
            return Self { first, inner: connection, chunks: None };
        }
        let earlier = connection.into_any().downcast::<Replay>().expect("its type was just asked for");
        // What an earlier request replayed is read by now: no second layer.
        let inner: Stream = if earlier.first.is_empty() { earlier.inner } else { earlier };
        Self { first, inner, chunks: None }
    }

    /// The same, when the input is a chunked body that must have one meaning only. Reading fails with
    /// [`io::ErrorKind::InvalidData`] where it has not.
    pub fn checked(first: Bytes, connection: Stream) -> Self {
        Self { chunks: Some(Chunks::default()), ..Self::new(first, connection) }
    }

    fn poll_any(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let size = buf.remaining().min(self.first.len());
        buf.put_slice(&self.first[..size]);
        self.first.advance(size);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Replay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(self.poll_any(cx, buf))?;
        let checked = match &mut self.chunks {
            Some(chunks) => chunks.check(&buf.filled()[before..]),
            None => Ok(()),
        };
        Poll::Ready(checked.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e)))
    }
}

impl AsyncWrite for Replay {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Replay {
    async fn shutdown(&mut self) {
        self.inner.shutdown().await;
    }
}

impl UniqueID for Replay {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Replay {
    fn get_ssl(&self) -> Option<&SslRef> {
        self.inner.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for Replay {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.inner.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.inner.get_write_pending_time()
    }
}

impl GetProxyDigest for Replay {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Replay {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

impl Peek for Replay {}
