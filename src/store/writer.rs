//! When a write becomes true: one thread takes whatever transactions wait, makes them durable together, applies them
//! to the catalogue and only then answers. While the disk is busy with one group, the next one gathers.
//!
//! Invariants: nobody gets an answer before the group is durable; when it cannot be made durable nobody's write took
//! place; the order of revisions is the order of events.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{Change, Committed, Entry, Outage, StoreError, Write, catalog::Catalog, draft::Draft, now_ms};
use crate::resource::Key;

/// The most transactions made durable at once; bounds how long the first of them waits.
const MAX_GROUP: usize = 1024;

/// The longest sleep between looks at the clock: deadlines are wall-clock times, and that clock may be set.
const MAX_SLEEP: Duration = Duration::from_secs(5);

/// Where changes survive the process.
pub(super) trait Journal: Send + 'static {
    /// Makes the changes durable, all or none.
    fn append(&mut self, changes: &[Change], revision: u64) -> Result<(), Outage>;

    /// Gets the journal going again after a failed `append`, and says what it holds: the failed group may or may not
    /// have reached it.
    fn recover(&mut self) -> Result<Held, Outage>;

    /// Lets go of the file for good; `append` and `recover` then fail.
    fn close(&mut self);
}

/// What a journal holds.
pub(super) struct Held {
    pub(super) entries: Vec<Entry>,
    pub(super) revision: u64,
}

/// The thread's other end. Dropping it ends the thread and closes the journal.
pub(super) struct Writer {
    catalog: Arc<Catalog>,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

enum Job {
    Commit(Vec<Write>, Reply),
    Replace(Vec<(Key, Arc<str>)>, Reply),
    Close(oneshot::Sender<()>),
}

type Reply = oneshot::Sender<Result<Committed, StoreError>>;

struct Loop<J> {
    catalog: Arc<Catalog>,
    journal: J,
    /// A group failed, so the journal must recover before the next one.
    down: bool,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn start(catalog: Arc<Catalog>, journal: impl Journal) -> std::io::Result<Writer> {
        let (jobs, queue) = mpsc::channel();
        let mut state = Loop { catalog: Arc::clone(&catalog), journal, down: false };
        let thread = thread::Builder::new().name("store-writer".into()).spawn(move || state.run(&queue))?;
        Ok(Writer { catalog, jobs: Some(jobs), thread: Some(thread) })
    }

    pub(super) fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    pub(super) async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        self.ask(|reply| Job::Commit(writes, reply)).await
    }

    /// Makes the whole state exactly this.
    pub(super) async fn replace(&self, desired: Vec<(Key, Arc<str>)>) -> Result<(), StoreError> {
        self.ask(|reply| Job::Replace(desired, reply)).await.map(drop)
    }

    /// Finishes what waits, then lets go of the journal.
    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.jobs.as_ref().is_some_and(|jobs| jobs.send(Job::Close(done)).is_ok()) {
            // An error means the thread is gone, and the journal with it.
            let _ = closed.await;
        }
    }

    async fn ask(&self, job: impl FnOnce(Reply) -> Job) -> Result<Committed, StoreError> {
        let stopped = StoreError::Unavailable(Outage::Stopped);
        let (reply, answer) = oneshot::channel();
        let Some(jobs) = &self.jobs else { return Err(stopped) };
        if jobs.send(job(reply)).is_err() {
            return Err(stopped);
        }
        answer.await.unwrap_or(Err(stopped))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl<J: Journal> Loop<J> {
    fn run(&mut self, queue: &mpsc::Receiver<Job>) {
        loop {
            match queue.recv_timeout(self.sleep()) {
                Ok(first) => self.group(first, queue),
                Err(RecvTimeoutError::Timeout) => self.expire(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.journal.close();
    }

    fn sleep(&self) -> Duration {
        let Some(deadline) = self.catalog.next_deadline() else { return MAX_SLEEP };
        Duration::from_millis(deadline.saturating_sub(now_ms())).min(MAX_SLEEP)
    }

    /// Carries out everything that waits as one group.
    fn group(&mut self, first: Job, queue: &mpsc::Receiver<Job>) {
        self.expire();
        let mut close = None;
        let mut jobs = vec![first];
        jobs.extend(queue.try_iter().take(MAX_GROUP));
        let outage = self.recover().err();
        let catalog = Arc::clone(&self.catalog);
        let mut draft = Draft::new(&catalog);
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            match job {
                // What came after the close in the same group was sent too late, but nobody was told so yet.
                Job::Close(done) => close = Some(done),
                Job::Commit(writes, reply) => answers.push((reply, draft.commit(writes, now_ms()))),
                Job::Replace(desired, reply) => {
                    draft.replace(desired);
                    answers.push((reply, Ok(Committed::default())));
                }
            }
        }
        let (changes, revision) = draft.into_changes();
        let outcome = match outage {
            Some(outage) => Err(outage),
            None => self.make_true(changes, revision),
        };
        if close.is_some() {
            self.journal.close();
        }
        for (reply, answer) in answers {
            let answer = match &outcome {
                Ok(()) => answer,
                Err(outage) => Err(StoreError::Unavailable(outage.clone())),
            };
            // The caller may have gone away; the write took place all the same.
            let _ = reply.send(answer);
        }
        if let Some(done) = close {
            let _ = done.send(());
        }
    }

    fn make_true(&mut self, changes: Vec<Change>, revision: u64) -> Result<(), Outage> {
        if changes.is_empty() {
            return Ok(());
        }
        if let Err(outage) = self.journal.append(&changes, revision) {
            self.down = true;
            if !matches!(outage, Outage::HandingOver) {
                tracing::error!(error = %outage, "store cannot write, serving what is in memory");
            }
            // Often possible at once; if not, the next write tries again and reports why.
            let _ = self.recover();
            return Err(outage);
        }
        self.catalog.apply(changes, revision);
        Ok(())
    }

    fn recover(&mut self) -> Result<(), Outage> {
        if !self.down {
            return Ok(());
        }
        let held = self.journal.recover()?;
        self.catalog.skip_to(held.revision);
        let catalog = Arc::clone(&self.catalog);
        let mut draft = Draft::new(&catalog);
        draft.restore(held.entries, held.revision);
        let (changes, revision) = draft.into_changes();
        self.catalog.apply(changes, revision);
        self.down = false;
        tracing::info!("store can write again");
        Ok(())
    }

    /// Removes what has lived its time.
    fn expire(&mut self) {
        let due = self.catalog.due(now_ms());
        if due.is_empty() {
            return;
        }
        let changes: Vec<Change> = due.into_iter().map(Change::Delete).collect();
        let revision = self.catalog.next_revision();
        // The deadline is durable already and is looked at when the journal is read, so an entry goes at its time
        // even while the disk fails.
        if !self.down && self.journal.append(&changes, revision).is_err() {
            self.down = true;
        }
        self.catalog.apply(changes, revision);
    }
}
