//! Lines on their way to a file: gathered by those who make them, written by one thread.
//!
//! Invariant: whoever adds a line never waits for the disk. When the disk does not keep up, whole batches of lines
//! are dropped and counted. Start reading at [`Sink::line`].

use std::{
    cell::Cell,
    fs::File,
    io::{self, Write},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::log_file::{LogFile, LogFileError};

/// More threads than this share buffers.
const SHARDS: usize = 64;
/// Bytes that may wait for the disk.
const MAX_WAITING: usize = 16 << 20;
/// How often losses are reported.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// A file, with buffers in front of it.
pub struct Sink {
    shared: Arc<Shared>,
    queue: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    // Locks, because the writer empties buffers that are not full. Every thread has its own as long as there are not
    // too many, so a lock is taken by two only when the writer comes by, and never held over a system call.
    shards: Box<[Shard]>,
    /// Bytes after which a buffer is handed over.
    limit: usize,
    reopen: AtomicBool,
    dropped: AtomicU64,
}

/// Alone on its cache lines.
#[repr(align(128))]
#[derive(Default)]
struct Shard(Mutex<Batch>);

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

enum Job {
    Write(Batch),
    /// Look at the flags.
    Wake,
    /// Write everything, then say so.
    Flush(SyncSender<()>),
}

impl Sink {
    /// Opens the file and starts the thread, so not before the process has daemonized. `limit` is the size of a
    /// buffer in bytes; what lies in one is written after `interval` at the latest.
    ///
    /// # Errors
    /// When the file cannot be opened, or there is no thread to be had.
    pub fn open(file: LogFile, limit: usize, interval: Duration) -> Result<Sink, LogFileError> {
        let shared = Arc::new(Shared {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            limit,
            reopen: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        });
        let (queue, jobs) = sync_channel((MAX_WAITING / limit.max(1)).clamp(64, 4096));
        let output = file.open()?;
        let path = file.name().to_owned();
        let now = Instant::now();
        let writer = Writer {
            shared: shared.clone(),
            file,
            output,
            interval,
            next_sweep: now + interval,
            next_report: now,
            reported: 0,
        };
        let thread = thread::Builder::new().name("access-log".into()).spawn(move || writer.run(&jobs));
        let thread = thread.map_err(|source| LogFileError::Open { path, source })?;
        Ok(Sink { shared, queue: Some(queue), writer: Some(thread) })
    }

    /// Adds a line; `write` appends it, with its line end, to what it is given.
    pub fn line(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let limit = self.shared.limit;
        let full = {
            let mut batch = self.shared.shards[shard()].lock();
            if batch.bytes.capacity() == 0 {
                // The last line goes beyond the limit.
                batch.bytes.reserve(limit + 1024);
            }
            write(&mut batch.bytes);
            batch.lines += 1;
            if batch.bytes.len() < limit {
                return;
            }
            mem::take(&mut *batch)
        };
        self.hand_over(full);
    }

    /// Lines that were dropped because the disk failed or did not keep up.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Lets the writer open the file again, after what it has to write now.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        if let Some(queue) = &self.queue {
            // If the queue is full the writer is busy, and looks at the flag anyway.
            let _ = queue.try_send(Job::Wake);
        }
    }

    /// Waits until everything is written, but not longer than `limit`. Says whether it is.
    pub fn flush(&self, limit: Duration) -> bool {
        let Some(queue) = &self.queue else { return true };
        let deadline = Instant::now() + limit;
        let (done, is_done) = sync_channel(1);
        let mut job = Job::Flush(done);
        loop {
            match queue.try_send(job) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => {
                    job = back;
                    thread::sleep(Duration::from_millis(5));
                }
                Err(TrySendError::Full(_)) => return false,
            }
        }
        is_done.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok()
    }

    fn hand_over(&self, batch: Batch) {
        let lines = batch.lines;
        let sent = self.queue.as_ref().is_some_and(|queue| queue.try_send(Job::Write(batch)).is_ok());
        if !sent {
            self.shared.dropped.fetch_add(lines, Ordering::Relaxed);
        }
    }
}

impl Drop for Sink {
    /// Writes what is left; waits for the disk.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // The thread does not panic; if it did, there is nobody to tell.
            let _ = writer.join();
        }
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Batch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The buffer of this thread.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
    }
    // A thread that is ending has no number any more.
    MINE.try_with(Cell::get).unwrap_or(0)
}

/// The thread that owns the file.
struct Writer {
    shared: Arc<Shared>,
    file: LogFile,
    output: File,
    interval: Duration,
    next_sweep: Instant,
    next_report: Instant,
    reported: u64,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let wait = self.next_sweep.saturating_duration_since(Instant::now());
            let job = jobs.recv_timeout(wait);
            if let Ok(Job::Write(batch)) = job {
                self.write(batch);
            } else if let Ok(Job::Flush(done)) = job {
                self.sweep();
                // Whoever asked may have stopped waiting.
                let _ = done.try_send(());
            } else if let Err(RecvTimeoutError::Disconnected) = job {
                return self.sweep();
            }
            if self.shared.reopen.swap(false, Ordering::Acquire) {
                self.sweep();
                self.reopen();
            }
            if Instant::now() >= self.next_sweep {
                self.sweep();
                self.report();
                self.next_sweep = Instant::now() + self.interval;
            }
        }
    }

    /// Writes what lies in the buffers.
    fn sweep(&mut self) {
        for at in 0..self.shared.shards.len() {
            let batch = mem::take(&mut *self.shared.shards[at].lock());
            if batch.lines > 0 {
                self.write(batch);
            }
        }
    }

    fn write(&mut self, batch: Batch) {
        if let Err(error) = self.output.write_all(&batch.bytes) {
            self.shared.dropped.fetch_add(batch.lines, Ordering::Relaxed);
            self.complain(&error);
        }
    }

    fn complain(&mut self, error: &io::Error) {
        if self.report_is_due() {
            tracing::error!(file = %self.file.name().display(), %error, "access log cannot be written");
        }
    }

    fn report(&mut self) {
        let dropped = self.shared.dropped.load(Ordering::Relaxed);
        if dropped > self.reported && self.report_is_due() {
            let lines = dropped - self.reported;
            self.reported = dropped;
            tracing::warn!(file = %self.file.name().display(), lines, "lines of the access log were dropped");
        }
    }

    fn report_is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.next_report;
        if due {
            self.next_report = now + REPORT_EVERY;
        }
        due
    }

    fn reopen(&mut self) {
        match self.file.open() {
            Ok(output) => self.output = output,
            // The old one is better than none.
            Err(error) => tracing::error!(%error, "access log goes on in the old file"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    fn open(path: PathBuf, limit: usize, interval: Duration) -> Sink {
        Sink::open(LogFile::Path(path), limit, interval).unwrap()
    }

    fn add(sink: &Sink, text: &str) {
        sink.line(|out| out.extend_from_slice(text.as_bytes()));
    }

    #[track_caller]
    fn eventually(path: &std::path::Path, expected: &str) {
        let deadline = Instant::now() + SOON;
        while fs::read_to_string(path).unwrap_or_default() != expected {
            assert!(Instant::now() < deadline, "{:?}", fs::read_to_string(path));
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn lines_wait_for_each_other_until_somebody_asks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let sink = open(path.clone(), 1000, Duration::from_secs(3600));
        add(&sink, "one\n");
        add(&sink, "two\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        assert!(sink.flush(SOON));
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        add(&sink, "three\n");
        drop(sink);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
    }

    #[test]
    fn a_full_buffer_is_written_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let sink = open(path.clone(), 8, Duration::from_secs(3600));
        add(&sink, "1234567\n");
        eventually(&path, "1234567\n");
    }

    #[test]
    fn a_buffer_is_written_after_the_interval() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let sink = open(path.clone(), 1000, Duration::from_millis(10));
        add(&sink, "one\n");
        eventually(&path, "one\n");
    }

    #[test]
    fn reopening_follows_a_moved_file() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("x.log"), directory.path().join("x.1"));
        let sink = open(path.clone(), 1000, Duration::from_secs(3600));
        add(&sink, "old\n");
        fs::rename(&path, &moved).unwrap();
        sink.reopen();
        let deadline = Instant::now() + SOON;
        while !path.exists() {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(2));
        }
        add(&sink, "new\n");
        assert!(sink.flush(SOON));
        assert_eq!(fs::read_to_string(&moved).unwrap(), "old\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
    }

    #[test]
    fn no_line_is_lost_or_torn_between_threads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let sink = open(path.clone(), 256, Duration::from_millis(1));
        thread::scope(|scope| {
            for thread in 0..4 {
                let sink = &sink;
                scope.spawn(move || (0..2000).for_each(|line| add(sink, &format!("{thread}:{line}\n"))));
            }
        });
        assert!(sink.flush(SOON));
        assert_eq!(sink.dropped(), 0);
        let written = fs::read_to_string(&path).unwrap();
        let mut lines: Vec<&str> = written.lines().collect();
        let mut expected: Vec<String> =
            (0..4).flat_map(|thread| (0..2000).map(move |line| format!("{thread}:{line}"))).collect();
        lines.sort_unstable();
        expected.sort_unstable();
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_disk_that_stands_still_stops_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        nix_pipe(&path);
        // A pipe that nobody reads is a disk that stands still; reading its other end ends the test.
        let reader = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let sink = open(path, 1 << 20, Duration::from_secs(3600));
        let line = vec![b'x'; 1 << 20];
        let began = Instant::now();
        for _ in 0..200 {
            sink.line(|out| out.extend_from_slice(&line));
        }
        assert!(began.elapsed() < SOON);
        assert!(sink.dropped() >= 100, "{}", sink.dropped());
        assert!(!sink.flush(Duration::from_millis(20)));
        // The thread stays in its system call until the process ends.
        mem::forget((sink, reader));
    }

    fn nix_pipe(path: &std::path::Path) {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    }
}
