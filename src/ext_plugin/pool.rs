//! The connections to one process of a runner: bounded, kept while they are idle, never shared by two calls.
//!
//! Each thread keeps its own idle connections: a socket wakes the runtime that opened it, and another thread would
//! have to be woken in turn.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    conn::Connection,
    error::CallError,
    runner::{Limits, Process},
};

/// How long a connection may be idle. The official Python runner closes it after a minute.
const MAX_IDLE: Duration = Duration::from_secs(50);

/// Threads that keep connections of their own; more than that share.
const SHARDS: usize = 32;

/// Idle connections that one thread keeps.
const IDLE_PER_SHARD: usize = 64;

/// See the module.
pub struct Pool {
    path: PathBuf,
    limits: Limits,
    permits: Arc<Semaphore>,
    // Held for a push or a pop, practically always by the one thread whose shard it is.
    shards: [Mutex<VecDeque<Idle>>; SHARDS],
    /// Connections that are open: in use, idle, or still owed a reply.
    open: Arc<AtomicUsize>,
    waiting: AtomicUsize,
}

struct Idle {
    open: Open,
    since: Instant,
}

/// A connection that is counted as long as it is open.
struct Open {
    connection: Connection,
    _count: Count,
}

struct Count(Arc<AtomicUsize>);

impl Count {
    fn new(of: &Arc<AtomicUsize>) -> Self {
        of.fetch_add(1, Relaxed);
        Self(of.clone())
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A connection for one call. Dropped without [`Lease::give_back`] it is closed, or drained first when the runner
/// still owes a reply; until then it counts as one in use.
pub struct Lease<'a> {
    pool: &'a Pool,
    held: Option<(Open, OwnedSemaphorePermit)>,
    /// The type of the call's reply.
    kind: u8,
    /// What is done when that comes although nobody waits for it any more.
    late: Option<Box<dyn FnOnce() + Send>>,
}

/// This thread's shard.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Relaxed) % SHARDS;
    }
    OWN.with(|own| *own)
}

impl Pool {
    /// No connections yet.
    pub fn new(path: PathBuf, limits: Limits) -> Self {
        Self {
            path,
            limits,
            permits: Arc::new(Semaphore::new(limits.connections)),
            shards: std::array::from_fn(|_| Mutex::default()),
            open: Arc::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Whether a call would not have to wait for a connection.
    pub fn has_room(&self) -> bool {
        self.permits.available_permits() > 0
    }

    /// Calls that wait for a connection.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// A connection for a call of type `kind`: an idle one, else a new one; waits while all are in use.
    ///
    /// # Errors
    /// None became free in time, or the runner cannot be connected to.
    pub async fn lease(&self, process: &Process, kind: u8) -> Result<Lease<'_>, CallError> {
        let permit = self.permit(process).await?;
        let open = match self.idle(process) {
            Some(open) => open,
            None => self.connect(process).await?,
        };
        Ok(Lease { pool: self, held: Some((open, permit)), kind, late: None })
    }

    async fn connect(&self, process: &Process) -> Result<Open, CallError> {
        self.make_room();
        let count = Count::new(&self.open);
        let connection = Connection::open(&self.path, self.limits.connect, process.life()).await?;
        Ok(Open { connection, _count: count })
    }

    async fn permit(&self, process: &Process) -> Result<OwnedSemaphorePermit, CallError> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        self.waiting.fetch_add(1, Relaxed);
        let waiting = Waiting(&self.waiting);
        let permit = tokio::time::timeout(self.limits.queue, self.permits.clone().acquire_owned()).await;
        drop(waiting);
        match permit {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(CallError::NotReady(process.runner().into())),
            Err(_) => Err(CallError::Busy { runner: process.runner().into(), waited: self.limits.queue }),
        }
    }

    /// An idle connection of this thread that may be used.
    fn idle(&self, process: &Process) -> Option<Open> {
        loop {
            let Idle { mut open, since } = self.shard(shard()).pop_back()?;
            if !open.connection.is_quiet() {
                // It ended, or something stray came: either way the process may be another one by now.
                process.lost(open.connection.life);
            } else if since.elapsed() < MAX_IDLE && open.connection.life == process.life() {
                return Some(open);
            }
        }
    }

    /// Closes an idle connection of another thread when there are as many as may be.
    fn make_room(&self) {
        if self.open() < self.limits.connections {
            return;
        }
        let _ = (0..SHARDS).find_map(|shard| self.shard(shard).pop_front());
    }

    fn keep(&self, mut open: Open) {
        open.connection.reused = true;
        let now = Instant::now();
        let mut shard = self.shard(shard());
        shard.push_back(Idle { open, since: now });
        let old = |idle: &Idle| now.duration_since(idle.since) > MAX_IDLE;
        let gone =
            (shard.len() > IDLE_PER_SHARD || shard.front().is_some_and(old)).then(|| shard.pop_front());
        drop(shard);
        drop(gone);
    }

    fn shard(&self, index: usize) -> std::sync::MutexGuard<'_, VecDeque<Idle>> {
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Lease<'_> {
    /// The connection.
    pub fn connection(&mut self) -> &mut Connection {
        let (open, _) = self.held.as_mut().expect("held until it is given back");
        &mut open.connection
    }

    /// What is to be done when the call is given up and the reply comes all the same.
    pub fn when_late(&mut self, note: impl FnOnce() + Send + 'static) {
        self.late = Some(Box::new(note));
    }

    /// Keeps the connection for later calls: the call went well.
    pub fn give_back(mut self) {
        if let Some((open, _permit)) = self.held.take() {
            self.pool.keep(open);
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let Some((open, permit)) = self.held.take() else { return };
        if !open.connection.is_owed() {
            return;
        }
        let (kind, patience, late) = (self.kind, self.pool.limits.call, self.late.take());
        // There is no runtime while the program ends.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let Open { connection, _count } = open;
                let answered = connection.drain(kind, patience).await;
                if let Some(note) = late.filter(|_| answered) {
                    note();
                }
                drop(permit);
            });
        }
    }
}
