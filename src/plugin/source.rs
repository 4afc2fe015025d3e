//! A client's HTTP/1 connection, from which one request at a time can be read.
//!
//! The framework reads ahead, and what belongs to the next request it would drop or take for an error. So nothing is given
//! out beyond the request's end; what came behind it waits here for the next one (RFC 9112 §9.3.2). A body that was read
//! can be read again, and a chunked one must have one meaning only. Who drops it while the client may still be sending hears
//! the client out, so that it sees its answer.
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
use bytes::{Buf, Bytes, BytesMut};
use pingora::{
    protocols::{
        ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
        TimingDigest, UniqueID, UniqueIDType, raw_connect::ProxyDigest, tls::SslDigest,
    },
    tls::ssl::SslRef,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::linger;
use crate::net::{
    chunked::{ChunkError, Chunks},
    head::Framing,
};

/// See the module.
#[derive(Debug)]
pub struct Source {
    /// Read before all else: a body, once more.
    first: Bytes,
    inner: Stream,
    rest: Rest,
    /// What came behind the request.
    ahead: BytesMut,
    /// Whether the client has ended, or the connection is broken.
    gone: bool,
}

/// What is still to come of the request.
#[derive(Debug)]
enum Rest {
    /// Everything: the connection may become a tunnel.
    Open,
    /// So many bytes.
    Bytes(u64),
    /// The rest of a chunked body.
    Chunks(Chunks),
    /// Nobody knows how much: it was refused.
    Lost,
}

impl Rest {
    fn is_over(&self) -> bool {
        match self {
            Self::Open => false,
            Self::Bytes(left) => *left == 0,
            Self::Chunks(chunks) => chunks.is_over(),
            Self::Lost => true,
        }
    }

    /// How many of these bytes belong to the request.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        match self {
            Self::Open => Ok(bytes.len()),
            Self::Bytes(left) => {
                let own = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= own as u64;
                Ok(own)
            }
            Self::Chunks(chunks) => chunks.check(bytes),
            Self::Lost => Ok(0),
        }
    }
}

impl Source {
    /// A connection that nothing was read from.
    pub fn new(connection: Stream) -> Box<Self> {
        Box::new(Self {
            first: Bytes::new(),
            inner: connection,
            rest: Rest::Open,
            ahead: BytesMut::new(),
            gone: false,
        })
    }

    /// The source in a connection that the framework had; a new one if it had none.
    pub fn of(connection: Stream) -> Box<Self> {
        if !connection.as_any().is::<Self>() {
            return Self::new(connection);
        }
        connection.into_any().downcast().expect("its type was just asked for")
    }

    /// What has come of the next request already, and where the rest of its head comes from.
    pub fn upcoming(&mut self) -> (BytesMut, &mut Stream) {
        (std::mem::take(&mut self.ahead), &mut self.inner)
    }

    /// A request begins whose head has that framing. Of `input`, what has come of it, only what belongs to it stays.
    ///
    /// # Errors
    /// Its body is malformed; reading it would fail, too, with [`io::ErrorKind::InvalidData`].
    pub fn begin(&mut self, input: &mut BytesMut, head: usize, framing: Framing) -> Result<(), ChunkError> {
        self.rest = match framing {
            Framing::Open => Rest::Open,
            Framing::Length(length) => Rest::Bytes(length),
            Framing::Chunked => Rest::Chunks(Chunks::default()),
        };
        let end = head + self.own(&input[head..])?;
        if end < input.len() {
            self.ahead = input.split_off(end);
        }
        Ok(())
    }

    /// The request is refused: what the client may still send of it is no request, either.
    pub fn refuse(&mut self) {
        self.rest = Rest::Lost;
    }

    /// How many of these bytes belong to the request.
    fn own(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        let own = self.rest.take(bytes);
        if own.is_err() {
            self.refuse();
        }
        own
    }

    /// Whether the client may be sending something that nobody will read.
    fn is_heard_out(&self) -> bool {
        let more = match &self.rest {
            Rest::Open => false,
            Rest::Lost => true,
            Rest::Bytes(_) | Rest::Chunks(_) => !self.rest.is_over() || !self.ahead.is_empty(),
        };
        self.gone || !more
    }

    /// The body of the running request, which has come as a whole, is read again as `body`.
    pub fn again(&mut self, body: Bytes) {
        self.first = body;
        // What may become a tunnel goes on as one.
        if !matches!(self.rest, Rest::Open) {
            self.rest = Rest::Bytes(0);
        }
    }
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.first.is_empty() {
            let size = buf.remaining().min(this.first.len());
            buf.put_slice(&this.first[..size]);
            this.first.advance(size);
            return Poll::Ready(Ok(()));
        }
        let is_over = this.rest.is_over();
        if is_over && !this.ahead.is_empty() {
            // There is no more to know of the client before its next request.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let room = buf.remaining();
        let read = ready!(Pin::new(&mut this.inner).poll_read(cx, buf));
        let came = &buf.filled()[before..];
        this.gone = read.is_err() || (came.is_empty() && room > 0);
        read?;
        let own = this.own(came).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        if own < came.len() {
            this.ahead.extend_from_slice(&came[own..]);
            buf.set_filled(before + own);
            if is_over {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Source {
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

impl Drop for Source {
    fn drop(&mut self) {
        if !self.is_heard_out() {
            let none: Stream = Box::new(io::Cursor::new(Vec::new()));
            linger::close(std::mem::replace(&mut self.inner, none));
        }
    }
}

#[async_trait]
impl Shutdown for Source {
    async fn shutdown(&mut self) {
        self.inner.shutdown().await;
    }
}

impl UniqueID for Source {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Source {
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

impl GetTimingDigest for Source {
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

impl GetProxyDigest for Source {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Source {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

impl Peek for Source {}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io::Cursor};

    use proptest::{collection::vec, prelude::*};
    use tokio::{io::AsyncReadExt, runtime::Builder};

    use super::*;

    fn run<T>(test: impl Future<Output = T>) -> T {
        Builder::new_current_thread().build().expect("a runtime").block_on(test)
    }

    fn over(sent: &[u8]) -> Box<Source> {
        Source::new(Box::new(Cursor::new(sent.to_vec())))
    }

    /// Reads at most so many bytes; `None` when the source has nothing to say.
    async fn read(source: &mut Source, most: usize) -> Option<io::Result<Vec<u8>>> {
        let mut room = vec![0; most];
        poll_fn(|cx| {
            let mut buf = ReadBuf::new(&mut room);
            Poll::Ready(match Pin::new(&mut *source).poll_read(cx, &mut buf) {
                Poll::Pending => None,
                Poll::Ready(read) => Some(read.map(|()| buf.filled().to_vec())),
            })
        })
        .await
    }

    /// A body of one of the two framings, as it is sent.
    fn body() -> impl Strategy<Value = (bool, Vec<u8>)> {
        let chunk = vec(any::<u8>(), 1..20)
            .prop_map(|data| [format!("{:x}\r\n", data.len()).as_bytes(), &data[..], &b"\r\n"[..]].concat());
        prop_oneof![
            vec(any::<u8>(), 0..40).prop_map(|data| (false, data)),
            vec(chunk, 0..4).prop_map(|chunks| (true, [&chunks.concat()[..], b"0\r\n\r\n"].concat())),
        ]
    }

    proptest! {
        #[test]
        fn every_request_gets_its_own_bytes(bodies in vec(body(), 1..5), with_head in 1..60usize, most in 1..60usize) {
            // A head of one byte.
            let sent: Vec<u8> = bodies.iter().flat_map(|(_, body)| [&b"H"[..], body].concat()).collect();
            let mut source = over(&sent);
            run(async {
                for (chunked, body) in &bodies {
                    let (mut input, rest) = source.upcoming();
                    if input.is_empty() {
                        let mut room = vec![0; with_head];
                        let came = rest.read(&mut room).await.expect("it is there");
                        input.extend_from_slice(&room[..came]);
                    }
                    let framing = if *chunked { Framing::Chunked } else { Framing::Length(body.len() as u64) };
                    source.begin(&mut input, 1, framing).expect("it is well formed");
                    while input.len() <= body.len() {
                        let more = read(&mut source, most).await.expect("it is not over").expect("it is well formed");
                        prop_assert!(!more.is_empty(), "the connection ended");
                        input.extend_from_slice(&more);
                    }
                    prop_assert_eq!(&input[1..], &body[..]);
                    // What comes now is the next request, or the end of the connection.
                    let next = read(&mut source, most).await;
                    prop_assert!(next.is_none_or(|end| end.is_ok_and(|bytes| bytes.is_empty())));
                }
                Ok(())
            })?;
        }
    }

    #[test]
    fn malformed_chunks_break_off() {
        let mut source = over(b"1\r\nabc");
        source.begin(&mut BytesMut::from("H"), 1, Framing::Chunked).expect("nothing of it has come");
        let error = run(read(&mut source, 99)).expect("an answer").expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(source.begin(&mut BytesMut::from("Hx\r\n"), 1, Framing::Chunked).is_err());
    }

    #[test]
    fn a_body_is_read_again_before_the_next_request() {
        let mut source = over(b"next");
        source.begin(&mut BytesMut::from("Hbody"), 1, Framing::Length(4)).expect("it is well formed");
        source.again(Bytes::from_static(b"another body"));
        let mut source = Source::of(source);
        run(async {
            assert_eq!(read(&mut source, 7).await.expect("bytes").expect("bytes"), b"another");
            assert_eq!(read(&mut source, 99).await.expect("bytes").expect("bytes"), b" body");
            assert!(read(&mut source, 1).await.is_none());
        });
        let (ahead, rest) = source.upcoming();
        let mut left = String::new();
        run(rest.read_to_string(&mut left)).expect("text");
        assert_eq!((&ahead[..], &*left), (&b"n"[..], "ext"));
    }

    #[test]
    fn who_may_be_sending_is_heard_out() {
        let begun = |sent: &str, framing| {
            let mut source = over(b"");
            let _ = source.begin(&mut BytesMut::from(sent), 1, framing);
            source.is_heard_out()
        };
        assert!(over(b"").is_heard_out(), "no request has begun");
        assert!(begun("H", Framing::Open));
        assert!(begun("Hbody", Framing::Length(4)));
        assert!(begun("H0\r\n\r\n", Framing::Chunked));
        assert!(!begun("Hbod", Framing::Length(4)));
        assert!(!begun("Hbody, and the next", Framing::Length(4)));
        assert!(!begun("H1\r\na", Framing::Chunked));
        assert!(!begun("Hx", Framing::Chunked), "refused");
        let mut source = over(b"");
        source.begin(&mut BytesMut::from("H"), 1, Framing::Length(4)).expect("nothing of it has come");
        assert!(run(read(&mut source, 9)).expect("an answer").expect("the end").is_empty());
        assert!(source.is_heard_out(), "it has ended");
        let mut source = over(b"what is left of it");
        source.refuse();
        assert!(run(read(&mut source, 9)).is_none(), "nothing is read of what was refused");
        assert!(!source.is_heard_out());
    }

    #[test]
    fn a_tunnel_has_no_end() {
        let mut source = over(b"abc");
        let mut input = BytesMut::from("Hearly");
        source.begin(&mut input, 1, Framing::Open).expect("anything is");
        assert_eq!(input, "Hearly");
        assert_eq!(run(read(&mut source, 99)).expect("bytes").expect("bytes"), b"abc");
    }
}
