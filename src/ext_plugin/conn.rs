//! A connection to a runner: one call in flight, questions answered inside of it.
//!
//! Invariant: a frame leaves in one write, header and payload together, because there are runners that read them as
//! if they came so. After any error the connection is of no use any more.

use std::{
    io::{self, IoSlice},
    os::fd::AsRawFd,
    path::Path,
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use tokio::{
    io::{AsyncReadExt, Interest},
    net::UnixStream,
    time::{Instant, sleep, timeout_at},
};

use super::{
    call::Answers,
    error::{CallError, REQUEST_BODY},
    frame::{self, HEADER, Read, kind},
    message::{self, Encoder, Question},
};

/// Room in the kernel for what was sent and not read yet, in bytes. There are runners that take what is there for a
/// whole frame; with the default of 208 KiB they cut larger ones.
const SEND_BUFFER: usize = 16 << 20;

/// Room made at once for what a runner announces, in bytes.
const ROOM: usize = 64 << 10;

/// Longer than any reply to PrepareConf of a runner there is: 24 bytes with the header.
const LONGEST_PREPARED: usize = 64;

/// Between two tries to connect to a runner whose backlog is full.
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);

/// See the module.
pub struct Connection {
    stream: UnixStream,
    encoder: Encoder,
    buffer: BytesMut,
    /// Which life of its process it was opened in.
    pub life: u32,
    /// Whether calls passed over it before.
    pub reused: bool,
    progress: Progress,
    /// The frame that answered the last PrepareConf; the Java runner says it twice.
    prepared: Vec<u8>,
}

/// How far the call under way has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    /// There is none.
    Idle,
    /// Sent, and nothing was heard.
    Sent,
    /// The runner has begun to answer or ask.
    Heard,
    /// It failed, and left no trace: it was sent over a connection that had become stale.
    Stale,
    /// It failed.
    Failed,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens, or nobody accepts within `patience`.
    pub async fn open(path: &Path, patience: Duration, life: u32) -> Result<Self, CallError> {
        let failed = |source| CallError::Connect { path: path.display().to_string().into(), source };
        let deadline = Instant::now() + patience;
        let stream = loop {
            match timeout_at(deadline, UnixStream::connect(path)).await {
                Ok(Ok(stream)) => break stream,
                // The backlog is full: unlike TCP, a unix socket does not wait for itself.
                Ok(Err(e)) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    sleep(BACKLOG_PAUSE).await;
                }
                Ok(Err(e)) => return Err(failed(e)),
                Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
            }
        };
        // More than the system's limit takes a privilege, without which the limit is as good as it gets.
        if setsockopt(&stream, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            let _ = setsockopt(&stream, sockopt::SndBuf, &SEND_BUFFER);
        }
        let (encoder, buffer) = (Encoder::default(), BytesMut::new());
        let prepared = Vec::new();
        Ok(Self { stream, encoder, buffer, life, reused: false, progress: Progress::Idle, prepared })
    }

    /// Whether nothing came since the last reply: neither a stray frame nor the end.
    pub fn is_quiet(&mut self) -> bool {
        while self.skips_repeat() {}
        let nothing =
            |peeked: io::Result<usize>| peeked.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
        self.buffer.is_empty() && nothing(self.peek(&mut [0]))
    }

    /// Takes the reply to PrepareConf away when it came once more. Otherwise a runner that says it twice would be
    /// taken for one that was restarted, and asked to prepare again with every call.
    fn skips_repeat(&mut self) -> bool {
        let length = self.prepared.len();
        if length == 0 {
            return false;
        }
        if self.buffer.starts_with(&self.prepared) {
            self.buffer.advance(length);
            return true;
        }
        let mut came = [0; LONGEST_PREPARED];
        let whole = self.buffer.is_empty()
            && self.peek(&mut came[..length]).is_ok_and(|peeked| peeked == length)
            && came[..length] == self.prepared[..];
        whole && recv(self.stream.as_raw_fd(), &mut came[..length], MsgFlags::MSG_DONTWAIT) == Ok(length)
    }

    /// What came and was not read yet, as far as the runtime has heard of it: the system is asked only if something
    /// did.
    fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let peek = || Ok(recv(self.stream.as_raw_fd(), into, flags)?);
        self.stream.try_io(Interest::READABLE, peek)
    }

    /// Whether a reply is owed: closing now would throw away what the runner is about to write.
    pub fn is_owed(&self) -> bool {
        matches!(self.progress, Progress::Sent | Progress::Heard)
    }

    /// Whether the call that failed may be made again: it was sent over a connection that had become stale, and
    /// nothing was heard.
    pub fn was_stale(&self) -> bool {
        self.progress == Progress::Stale
    }

    /// Makes a call: sends what `write` writes, answers questions, gives the payload of the reply.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<A: Answers>(
        &mut self,
        kind: u8,
        write: impl for<'e> FnOnce(&'e mut Encoder, &A) -> Result<&'e [u8], CallError>,
        answers: &mut A,
    ) -> Result<Bytes, CallError> {
        let reply = self.exchange(kind, write, answers).await;
        if let (kind::PREPARE_CONF, Ok(payload)) = (kind, &reply) {
            self.note_prepared(payload);
        }
        self.progress = match &reply {
            Ok(_) | Err(CallError::Refused(_)) => Progress::Idle,
            Err(CallError::Closed | CallError::Io(_))
                if self.reused && self.progress == Progress::Sent && self.buffer.is_empty() =>
            {
                Progress::Stale
            }
            Err(_) => Progress::Failed,
        };
        reply
    }

    fn note_prepared(&mut self, payload: &[u8]) {
        self.prepared.clear();
        if let Some(header) = frame::header(kind::PREPARE_CONF, payload.len())
            && HEADER + payload.len() <= LONGEST_PREPARED
        {
            self.prepared.extend_from_slice(&header);
            self.prepared.extend_from_slice(payload);
        }
    }

    async fn exchange<A: Answers>(
        &mut self,
        kind: u8,
        write: impl for<'e> FnOnce(&'e mut Encoder, &A) -> Result<&'e [u8], CallError>,
        answers: &mut A,
    ) -> Result<Bytes, CallError> {
        let payload = write(&mut self.encoder, answers)?;
        self.progress = Progress::Sent;
        send(&self.stream, kind, message::kind_name(kind), payload).await?;
        loop {
            let (got, payload) = receive(&mut self.stream, &mut self.buffer).await?;
            self.progress = Progress::Heard;
            match got {
                got if got == kind => return Ok(payload),
                kind::EXTRA_INFO => self.answer(&payload, answers).await?,
                kind::ERROR => return Err(message::read_error(&payload)),
                // The Java runner answers a PrepareConf twice; the second time may fall into the next call.
                kind::PREPARE_CONF => {}
                other => return Err(CallError::UnexpectedType(other)),
            }
        }
    }

    async fn answer<A: Answers>(&mut self, payload: &Bytes, answers: &mut A) -> Result<(), CallError> {
        let (what, result) = match message::read_question(payload)? {
            Question::Var(name) => ("a variable", answers.var(&name).await?),
            Question::RequestBody => (REQUEST_BODY, answers.request_body().await?),
            Question::ResponseBody => ("the response body", answers.response_body().await?),
        };
        let payload = self.encoder.answer(result.as_deref());
        send(&self.stream, kind::EXTRA_INFO, what, payload).await
    }

    /// Reads what a call that was given up still owes, until the reply, the end or the time is over: a peer that
    /// goes away with unread data kills the JavaScript runner. Whether there was a reply.
    pub async fn drain(mut self, kind: u8, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while let Ok(Ok((got, _))) = timeout_at(end, receive(&mut self.stream, &mut self.buffer)).await {
            if got == kind || got == kind::ERROR || got == kind::EXTRA_INFO {
                return got != kind::EXTRA_INFO;
            }
        }
        false
    }
}

/// Sends a frame; `what` it is, for the error when it is too large.
async fn send(stream: &UnixStream, kind: u8, what: &'static str, payload: &[u8]) -> Result<(), CallError> {
    let header = frame::header(kind, payload.len()).ok_or(CallError::TooLarge { what })?;
    let mut sent = 0;
    while sent < HEADER + payload.len() {
        let (first, rest) = match sent.checked_sub(HEADER) {
            None => (&header[sent..], payload),
            Some(sent) => (&payload[sent..], &[][..]),
        };
        match stream.try_write_vectored(&[IoSlice::new(first), IoSlice::new(rest)]) {
            Ok(written) => sent += written,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                return Err(CallError::Closed);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// The next frame: its type and payload.
async fn receive(stream: &mut UnixStream, buffer: &mut BytesMut) -> Result<(u8, Bytes), CallError> {
    loop {
        let least = match frame::read(buffer) {
            Read::Frame { kind, payload } => {
                buffer.advance(HEADER);
                return Ok((kind, buffer.split_to(payload).freeze()));
            }
            Read::Incomplete(least) => least,
        };
        // Memory is given for what comes, not for what is announced.
        buffer.reserve((least - buffer.len()).clamp(4096, ROOM));
        match stream.read_buf(buffer).await {
            Ok(0) if buffer.is_empty() => return Err(CallError::Closed),
            Ok(0) => return Err(CallError::Cut),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(CallError::Closed),
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Sends bytes in pieces and gives the frames that are read of them, and why there are no more.
    fn read_in_pieces(bytes: Vec<u8>, pieces: Vec<usize>) -> (Vec<(u8, Bytes)>, CallError) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            let send = async move {
                let mut rest = &bytes[..];
                for piece in pieces {
                    let (now, later) = rest.split_at(piece.min(rest.len()));
                    theirs.write_all(now).await.unwrap();
                    tokio::task::yield_now().await;
                    rest = later;
                }
                theirs.write_all(rest).await.unwrap();
            };
            let read = async {
                let (mut frames, mut buffer) = (Vec::new(), BytesMut::new());
                loop {
                    match receive(&mut ours, &mut buffer).await {
                        Ok(frame) => frames.push(frame),
                        Err(error) => return (frames, error),
                    }
                }
            };
            tokio::join!(send, read).1
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn frames_are_read_however_they_come(
            frames in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..3000)), 0..5),
            pieces in proptest::collection::vec(0..400_usize, 0..12),
            behind in proptest::collection::vec(any::<u8>(), 0..4),
        ) {
            let mut bytes = Vec::new();
            for (kind, payload) in &frames {
                bytes.extend_from_slice(&frame::header(*kind, payload.len()).expect("a small payload"));
                bytes.extend_from_slice(payload);
            }
            bytes.extend_from_slice(&behind);
            let (read, end) = read_in_pieces(bytes, pieces);
            let expected: Vec<_> =
                frames.into_iter().map(|(kind, payload)| (kind, Bytes::from(payload))).collect();
            prop_assert_eq!(read, expected);
            let clean = matches!(end, CallError::Closed);
            prop_assert_eq!(clean, behind.is_empty(), "{}", end);
        }
    }
}
