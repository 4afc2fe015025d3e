//! Closes a connection whose client may still be sending.
//!
//! A socket that is closed with bytes in it that nobody read is reset, and a client that is reset while it sends does not
//! see the answer that is on its way to it. So writing ends, and what comes is thrown away until the client has ended, too
//! (RFC 9112 §9.6). nginx: `lingering_close`.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    runtime::Handle,
    time::timeout,
};

/// How long in all. nginx: `lingering_time`.
pub const LONGEST: Duration = Duration::from_secs(30);

/// How long for more to come. nginx: `lingering_timeout`.
const PATIENCE: Duration = Duration::from_secs(5);

/// So much is read at a time.
const ROOM: usize = 16 << 10;

/// Closes it in a task of its own.
pub fn close(connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    // There is no runtime while the program ends.
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(timeout(LONGEST, discard(connection)));
    }
}

async fn discard(mut connection: impl AsyncRead + AsyncWrite + Unpin) {
    if connection.shutdown().await.is_err() {
        return;
    }
    let mut room = vec![0; ROOM];
    while let Ok(Ok(1..)) = timeout(PATIENCE, connection.read(&mut room)).await {}
}
