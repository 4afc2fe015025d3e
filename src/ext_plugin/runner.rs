//! Runners and their processes: which one is called next, and what is known of it.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::{
    breaker::{Breaker, Rules},
    call::Nothing,
    error::CallError,
    frame::kind,
    message,
    pool::{Lease, Pool},
    stats::{Stats, Told},
};

/// Failed starts after which calls no longer wait for a process to be ready.
const STUMBLES: u32 = 3;

/// The key of a PrepareConf that only asks whether a process is there.
pub const PROBE_KEY: &str = "portcullis#probe";

/// Times and numbers of a runner.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Limits {
    /// Until a connection is accepted.
    pub connect: Duration,
    /// For a whole call, waiting and retries included.
    pub call: Duration,
    /// Until a connection becomes free.
    pub queue: Duration,
    /// Until a process that is being started is ready.
    pub ready: Duration,
    /// How long it keeps a configuration that it was told.
    pub expire: Duration,
    /// How long a call may take until its process is asked whether it hangs; 0: it is not.
    pub patience: Duration,
    /// Connections to one process.
    pub connections: usize,
    /// When its circuit breaker opens.
    pub breaker: Rules,
}

impl Default for Limits {
    /// APISIX's times; it bounds neither the queue nor the connections.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            call: Duration::from_secs(60),
            queue: Duration::from_secs(5),
            ready: Duration::from_secs(30),
            expire: Duration::from_secs(3600),
            patience: Duration::from_secs(10),
            connections: 256,
            breaker: Rules { failures: 5, probe: Duration::from_millis(250) },
        }
    }
}

/// A runner: a program that holds external plugins, in one or more processes.
pub struct Runner {
    name: Box<str>,
    limits: Limits,
    /// How many processes it has when all are well.
    processes: usize,
    /// Those that may be called. Replaced as a whole, so that a call never waits for a change.
    ready: ArcSwap<Vec<Arc<Process>>>,
    /// Whether the gateway starts its processes.
    managed: bool,
    /// Starts that failed since the last one that did not.
    stumbles: AtomicU32,
    /// Calls that wait for a process to be ready.
    waiting: AtomicUsize,
    stats: Stats,
    /// Of each place.
    told: Box<[Arc<Told>]>,
    /// When there was no process any more, in milliseconds since `started`.
    down: AtomicU64,
    /// When each process is started again, likewise; 0: it runs or is being started.
    pauses: Box<[AtomicU64]>,
    changed: Notify,
    started: Instant,
}

/// Which program answers. It is found out by a PrepareConf without plugins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Flavour {
    Unknown = 0,
    /// Gives token 0 to whatever goes wrong, and an empty reply.
    OfficialPython = 1,
    Other = 2,
}

/// The process that is called next.
pub(super) struct Chosen {
    pub process: Arc<Process>,
    /// Whether the call is one of the single ones that find out whether calls to it still hang.
    pub trial: bool,
}

/// One process of a runner.
pub struct Process {
    runner: Box<str>,
    index: usize,
    /// Counts its lives: a token or connection of another one is worth nothing. Never 0.
    life: AtomicU32,
    flavour: AtomicU8,
    in_flight: AtomicUsize,
    pool: Pool,
    breaker: Breaker,
    watched: AtomicBool,
    born: Instant,
    /// When it answered the question whether it is there, as far as somebody waits for that; on its breaker's clock.
    heard: AtomicU64,
    /// It does not listen or answer any more.
    deserted: Notify,
    /// Its process group; 0 when somebody else started it.
    group: i32,
}

impl Process {
    /// A process that listens on a socket.
    pub fn new(runner: &str, index: usize, path: PathBuf, limits: Limits) -> Self {
        static LIVES: AtomicU32 = AtomicU32::new(1);
        Self {
            runner: runner.into(),
            index,
            // Far apart, so that no life of one process is ever a life of its successor.
            life: AtomicU32::new(LIVES.fetch_add(1 << 16, Relaxed).max(1)),
            flavour: AtomicU8::new(Flavour::Unknown as u8),
            in_flight: AtomicUsize::new(0),
            pool: Pool::new(path, limits),
            breaker: Breaker::new(limits.breaker),
            watched: AtomicBool::new(false),
            born: Instant::now(),
            heard: AtomicU64::new(0),
            deserted: Notify::new(),
            group: 0,
        }
    }

    /// A process that the gateway started, in a process group of its own.
    pub fn managed(runner: &Runner, index: usize, path: PathBuf, group: i32) -> Self {
        Self { group, ..Self::new(&runner.name, index, path, runner.limits) }
    }

    /// Its process group; 0 when somebody else started it.
    pub fn group(&self) -> i32 {
        self.group
    }

    /// The runner's name.
    pub fn runner(&self) -> &str {
        &self.runner
    }

    /// Its place among the runner's processes.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its circuit breaker.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Notes whether somebody waits for its breaker to close; `false` when it was like that before.
    pub(super) fn watched(&self, watched: bool) -> bool {
        self.watched.swap(watched, Relaxed) != watched
    }

    /// Milliseconds on the clock of its breaker.
    pub fn now(&self) -> u64 {
        millis(self.born.elapsed())
    }

    /// It answered, or nobody asked before.
    pub(super) fn hears(&self) {
        self.heard.store(self.now(), Relaxed);
    }

    /// How long it has answered nothing.
    pub(super) fn silence(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.heard.load(Relaxed)))
    }

    /// It is of no use any more: whoever started it replaces it.
    pub(super) fn desert(&self) {
        self.deserted.notify_one();
    }

    /// Resolves when it is of no use any more.
    pub async fn deserted(&self) {
        self.deserted.notified().await;
    }

    /// The number of its present life.
    pub fn life(&self) -> u32 {
        self.life.load(Relaxed)
    }

    /// Its connections.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Calls that are made to it or wait for it.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// A connection of this life was found ended: what listens now may be a new process that knows no token.
    pub fn lost(&self, life: u32) {
        let next = life.wrapping_add(1).max(1);
        if self.life.compare_exchange(life, next, Relaxed, Relaxed).is_ok() {
            self.flavour.store(Flavour::Unknown as u8, Relaxed);
        }
    }

    /// Asks it to answer a PrepareConf without plugins, which tells whether it is ready and what it is.
    ///
    /// # Errors
    /// It is not ready.
    pub async fn probe(&self) -> Result<(), CallError> {
        let token = self.prepare(&[], PROBE_KEY).await?;
        let flavour = if token == 0 { Flavour::OfficialPython } else { Flavour::Other };
        self.flavour.store(flavour as u8, Relaxed);
        Ok(())
    }

    /// Whether it is not known what program it is.
    pub(super) fn is_unknown(&self) -> bool {
        self.flavour.load(Relaxed) == Flavour::Unknown as u8
    }

    pub(super) fn is_official_python(&self) -> bool {
        self.flavour.load(Relaxed) == Flavour::OfficialPython as u8
    }

    /// Makes a configuration known; gives its token.
    pub(super) async fn prepare(&self, entries: &[(String, String)], key: &str) -> Result<u32, CallError> {
        let mut lease = self.pool.lease(self, kind::PREPARE_CONF).await?;
        let connection = lease.connection();
        let reply = connection
            .call(kind::PREPARE_CONF, |encoder, _| Ok(encoder.prepare_conf(entries, key)), &mut Nothing)
            .await;
        let token = message::read_token(&reply.inspect_err(|e| self.note(e, &mut lease))?)?;
        lease.give_back();
        Ok(token)
    }

    /// Notes what an error tells of the process.
    pub(super) fn note(&self, error: &CallError, lease: &mut Lease<'_>) {
        if matches!(error, CallError::Closed | CallError::Cut | CallError::Io(_)) {
            self.lost(lease.connection().life);
        }
    }
}

impl Runner {
    /// A runner that somebody else starts: one process, which is taken to be there.
    pub fn external(name: &str, path: PathBuf, limits: Limits) -> Self {
        let process = Arc::new(Process::new(name, 0, path, limits));
        Self::new(name, 1, vec![process], limits)
    }

    /// A runner whose processes the gateway starts; see [`super::supervisor`].
    pub fn managed(name: &str, processes: usize, limits: Limits) -> Self {
        Self { managed: true, ..Self::new(name, processes, Vec::new(), limits) }
    }

    fn new(name: &str, processes: usize, ready: Vec<Arc<Process>>, limits: Limits) -> Self {
        Self {
            name: name.into(),
            limits,
            processes,
            ready: ArcSwap::from_pointee(ready),
            managed: false,
            stumbles: AtomicU32::new(0),
            waiting: AtomicUsize::new(0),
            stats: Stats::default(),
            told: (0..processes).map(|_| Arc::default()).collect(),
            down: AtomicU64::new(0),
            pauses: (0..processes).map(|_| AtomicU64::new(0)).collect(),
            changed: Notify::new(),
            started: Instant::now(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many processes it has when all are well.
    pub fn processes(&self) -> usize {
        self.processes
    }

    /// Its times and numbers.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether the gateway starts its processes.
    pub fn is_managed(&self) -> bool {
        self.managed
    }

    /// The counters of its calls.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What became of the process in this place.
    pub fn told(&self, index: usize) -> &Arc<Told> {
        &self.told[index]
    }

    /// The processes that may be called.
    pub fn ready(&self) -> Arc<Vec<Arc<Process>>> {
        self.ready.load_full()
    }

    /// Calls that wait for a process to be ready.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// The clock of its tokens.
    pub fn clock(&self) -> Duration {
        self.started.elapsed()
    }

    /// From now on calls go to this process in its place, or to none.
    pub fn install(&self, index: usize, process: Option<Arc<Process>>) {
        self.pauses[index].store(0, Relaxed);
        self.replace(|other| other.index != index, process.as_ref());
        if process.is_some() {
            self.stumbles.store(0, Relaxed);
            self.changed.notify_waiters();
        }
    }

    /// Nobody listens on the socket of this process: it has just ended, or will never be of use again.
    pub fn lose(&self, process: &Arc<Process>) {
        self.replace(|other| !Arc::ptr_eq(other, process), None);
        process.desert();
    }

    fn replace(&self, stays: impl Fn(&Arc<Process>) -> bool, new: Option<&Arc<Process>>) {
        let before = self.ready.rcu(|ready| {
            let mut next: Vec<_> = ready.iter().filter(|other| stays(other)).cloned().collect();
            next.extend(new.cloned());
            next
        });
        if !before.is_empty() && self.ready.load().is_empty() {
            self.down.store(millis(self.clock()), Relaxed);
        }
    }

    /// Notes that a process could not be started.
    pub fn stumbled(&self) {
        self.stumbles.fetch_add(1, Relaxed);
    }

    /// A process is started again after a pause, and not before.
    pub fn pauses(&self, index: usize, pause: Duration) {
        self.pauses[index].store(millis(self.clock() + pause), Relaxed);
        // Those who wait may have hoped for less.
        self.changed.notify_waiters();
    }

    /// A process is being started.
    pub fn starts(&self, index: usize) {
        self.pauses[index].store(0, Relaxed);
    }

    /// Since when no process is ready.
    pub(super) fn down_since(&self) -> tokio::time::Instant {
        (self.started + Duration::from_millis(self.down.load(Relaxed))).into()
    }

    /// When a call that began then takes so long that its process may hang; none: it is never asked.
    pub(super) fn doubt(&self, began: tokio::time::Instant) -> Option<tokio::time::Instant> {
        let patience = self.limits.patience;
        began.checked_add(patience).filter(|_| !patience.is_zero())
    }

    /// Until when a process may take to be ready, from now on.
    pub(super) fn patience(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + self.limits.ready
    }

    /// The process for the next call: the one with the fewest calls, and not `avoid` if there is another one. None: none
    /// is ready.
    ///
    /// # Errors
    /// The circuit breakers of all of them are open.
    pub(super) fn choose(&self, avoid: Option<usize>) -> Result<Option<Chosen>, CallError> {
        let ready = self.ready.load();
        let busy = |process: &&Arc<Process>| (avoid == Some(process.index), process.in_flight());
        let first = if ready.len() > 1 { fastrand::usize(..ready.len()) } else { 0 };
        let (after, before) = (ready.iter().skip(first), ready.iter().take(first));
        let closed = after.chain(before).filter(|process| process.breaker.is_closed());
        if let Some(process) = closed.min_by_key(busy) {
            return Ok(Some(Chosen { process: process.clone(), trial: false }));
        }
        // When all connections wait for what hangs, one more would only wait for a connection.
        let may_try = |process: &&Arc<Process>| {
            process.pool.has_room() && process.breaker.lets_one_through(process.now())
        };
        match ready.iter().find(may_try) {
            Some(process) => Ok(Some(Chosen { process: process.clone(), trial: true })),
            None if ready.is_empty() => Ok(None),
            None => Err(CallError::Broken(self.name.clone())),
        }
    }

    /// The process for the next call, as soon as one is ready.
    ///
    /// # Errors
    /// Until then none is, or there is no hope that one will be.
    pub(super) async fn await_ready(
        &self,
        avoid: Option<usize>,
        until: tokio::time::Instant,
    ) -> Result<Chosen, CallError> {
        let _counted = Counted::new(&self.waiting);
        loop {
            let changed = self.changed.notified();
            if let Some(chosen) = self.choose(avoid)? {
                return Ok(chosen);
            }
            let not_ready = || CallError::NotReady(self.name.clone());
            if !self.managed || self.is_hopeless(until) {
                return Err(not_ready());
            }
            tokio::time::timeout_at(until, changed).await.map_err(|_| not_ready())?;
        }
    }

    /// Whether no process will be ready by then.
    fn is_hopeless(&self, until: tokio::time::Instant) -> bool {
        let until = millis(until.into_std().saturating_duration_since(self.started));
        self.stumbles.load(Relaxed) >= STUMBLES || self.pauses.iter().all(|pause| pause.load(Relaxed) > until)
    }
}

/// Milliseconds, as far as they can be counted.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Something that is counted as long as it is there.
pub struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(of: &'a AtomicUsize) -> Self {
        of.fetch_add(1, Relaxed);
        Self(of)
    }

    /// A call that is under way at a process.
    pub fn call(process: &'a Process) -> Self {
        Self::new(&process.in_flight)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The runners of config.yaml, the default one first.
#[derive(Default)]
pub struct Runners {
    all: Vec<Arc<Runner>>,
}

impl Runners {
    /// In this order; the first is the default.
    pub fn new(all: Vec<Arc<Runner>>) -> Self {
        Self { all }
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<Runner>] {
        &self.all
    }

    /// The runner of that name, or the default one.
    pub fn find(&self, name: Option<&str>) -> Option<&Arc<Runner>> {
        match name {
            Some(name) => self.all.iter().find(|runner| *runner.name == *name),
            None => self.all.first(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processes(count: usize) -> (Runner, Vec<Arc<Process>>) {
        let runner = Runner::managed("many", count, Limits::default());
        let process = |index| Arc::new(Process::managed(&runner, index, "/nowhere".into(), 0));
        let all: Vec<_> = (0..count).map(process).collect();
        for process in &all {
            runner.install(process.index, Some(process.clone()));
        }
        (runner, all)
    }

    #[track_caller]
    fn check(runner: &Runner, avoid: Option<usize>, expected: Option<(usize, bool)>) {
        for _ in 0..20 {
            let chosen = runner.choose(avoid).expect("a breaker is closed");
            assert_eq!(chosen.map(|chosen| (chosen.process.index, chosen.trial)), expected);
        }
    }

    #[test]
    fn the_least_busy_is_called() {
        let (runner, all) = processes(3);
        let busy: Vec<_> = [0, 0, 1, 2, 2].into_iter().map(|at| Counted::call(&all[at])).collect();
        check(&runner, None, Some((1, false)));
        drop(busy);
        let _busy = (Counted::call(&all[1]), Counted::call(&all[2]));
        check(&runner, None, Some((0, false)));
        runner.install(0, None);
        check(&runner, Some(1), Some((2, false)));
        runner.install(2, None);
        check(&runner, Some(1), Some((1, false)));
        runner.install(1, None);
        check(&runner, None, None);
    }

    #[test]
    fn one_that_hangs_is_tried_when_there_is_no_other() {
        let (runner, all) = processes(2);
        assert!(all[1].breaker.hangs());
        check(&runner, Some(0), Some((0, false)));
        assert!(all[0].breaker.hangs());
        assert!(matches!(runner.choose(None), Err(CallError::Broken(_))));
        all[1].breaker.answered(all[1].now());
        let trial = runner.choose(None).ok().flatten().expect("a trial");
        assert_eq!((trial.process.index, trial.trial), (1, true));
    }

    #[test]
    fn the_first_runner_is_the_default() {
        let named = |name| Arc::new(Runner::managed(name, 1, Limits::default()));
        let runners = Runners::new(vec![named("py"), named("go")]);
        let find = |name| runners.find(name).map(|runner| runner.name().to_owned());
        assert_eq!(find(None).as_deref(), Some("py"));
        assert_eq!(find(Some("go")).as_deref(), Some("go"));
        assert_eq!(find(Some("java")), None);
    }
}
