//! Connections for requests that switch protocols (WebSocket).
//!
//! Pingora 0.9 looks at the answer and at what is left of the request in an order left to chance. When it meets the
//! answer `101` before the request's own end, it takes that end for the end of the tunnel and closes it
//! (`pingora-proxy`, `proxy_handle_upstream`); a node on the same machine is quick enough for that once in a hundred
//! times. So the first look for an answer finds nothing here, and the request's end, which waits already, is taken.
//!
//! Invariant: such a connection serves one request; none of them is kept, and none that was kept is used.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use pingora::{
    Error, ErrorType, Result,
    connectors::L4Connect,
    protocols::l4::{
        socket::SocketAddr as PeerAddr,
        stream::Stream,
        virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream},
    },
    upstreams::peer::HttpPeer,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};

/// Keeps these connections apart from others, whatever their group.
const GROUP: u64 = 0x7570_6772_6164_6564;

/// Makes a peer's connection one that may switch protocols.
pub(super) fn prepare(peer: &mut HttpPeer) {
    peer.group_key ^= GROUP;
    peer.options.idle_timeout = Some(Duration::ZERO);
    peer.options.custom_l4 = Some(Arc::new(Connect(peer.options.connection_timeout)));
}

/// Connects within this time. The framework leaves the limit to whoever connects in its place.
#[derive(Debug)]
struct Connect(Option<Duration>);

#[async_trait]
impl L4Connect for Connect {
    async fn connect(&self, addr: &PeerAddr) -> Result<Stream> {
        let Some(addr) = addr.as_inet() else {
            return Error::e_explain(ErrorType::InternalError, "only IP addresses are connected to");
        };
        let limit = self.0.unwrap_or(Duration::MAX);
        let connected = timeout(limit, TcpStream::connect(addr)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = connected.map_err(|e| refused(addr, e))?;
        Ok(VirtualSocketStream::new(Box::new(Patient { stream, hesitates: false })).into())
    }
}

fn refused(addr: &SocketAddr, error: io::Error) -> Box<Error> {
    let kind = match error.kind() {
        io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
        io::ErrorKind::TimedOut => ErrorType::ConnectTimedout,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => ErrorType::ConnectNoRoute,
        _ => ErrorType::ConnectError,
    };
    Error::because(kind, format!("cannot connect to {addr}"), error)
}

/// A connection whose first look for an answer after each write finds nothing, and is asked for at once again.
#[derive(Debug)]
struct Patient {
    stream: TcpStream,
    hesitates: bool,
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.hesitates) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.hesitates = true;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl VirtualSocket for Patient {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.stream.set_nodelay(true),
            // No peer asks for it.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    async fn connect(addr: SocketAddr, limit: Duration) -> Result<Stream> {
        Connect(Some(limit)).connect(&PeerAddr::Inet(addr)).await
    }

    #[tokio::test]
    async fn the_first_look_after_a_write_finds_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let stream =
            TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        let (mut node, _) = listener.accept().await.expect("a connection");
        node.write_all(b"early").await.expect("written");
        let mut ours = Patient { stream, hesitates: false };
        ours.stream.readable().await.expect("there is something");
        ours.write_all(b"request").await.expect("written");
        let mut buf = [0; 16];
        let mut looks = 0;
        let length = std::future::poll_fn(|cx| {
            looks += 1;
            let mut buf = ReadBuf::new(&mut buf);
            Pin::new(&mut ours).poll_read(cx, &mut buf).map_ok(|()| buf.filled().len())
        });
        assert_eq!(length.await.expect("read"), 5);
        assert!(looks >= 2, "{looks}");
        let mut request = [0; 7];
        node.read_exact(&mut request).await.expect("the request");
    }

    #[tokio::test]
    async fn failures_have_the_kinds_that_decide_about_retries() {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = free.local_addr().expect("an address");
        drop(free);
        let refused = connect(addr, Duration::from_secs(30)).await.expect_err("nobody listens");
        assert_eq!(refused.etype(), &ErrorType::ConnectRefused);
        let late = connect(addr, Duration::ZERO).await.expect_err("no time");
        assert!(matches!(late.etype(), ErrorType::ConnectTimedout | ErrorType::ConnectRefused));
    }
}
