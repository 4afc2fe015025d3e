//! Runners and the calls that plugins make to them.
//!
//! A plugin makes a [`Caller`] when it is compiled, and calls [`Caller::request`] or [`Caller::response`]. Both say
//! what passes through the runner's plugins and bring an [`Answers`], which is asked for what the runner wants to
//! know besides: variables, the body of the request, the body of the response.

use std::{
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::Notify;

use super::{
    error::{CallError, Code},
    frame::kind,
    message::{self, Action, Encoder, RequestCall, ResponseCall, ResponseChange},
    pool::{Lease, Pool},
    token::{Conf, Known},
};

/// Tries of one call, all told, when its conf token is not known. APISIX: ext-plugin/init.lua `communicate`.
const TOKEN_TRIES: u32 = 3;

/// Failed starts after which calls no longer wait for a process to be ready.
const STUMBLES: u32 = 3;

/// Until the end of a process is noticed.
const NOTICE: Duration = Duration::from_millis(50);

/// Answers what a runner asks inside of a call.
///
/// `None` is: there is no such value. An error fails the call.
pub trait Answers: Send {
    /// A variable by its name without `$`.
    fn var(&mut self, name: &str) -> impl Future<Output = Result<Option<Bytes>, CallError>> + Send;
    /// The whole body of the request.
    fn request_body(&mut self) -> impl Future<Output = Result<Option<Bytes>, CallError>> + Send;
    /// The whole body of the upstream's response; in a request call there is none.
    fn response_body(&mut self) -> impl Future<Output = Result<Option<Bytes>, CallError>> + Send;
}

/// A request that passes through a runner's plugins.
pub trait Subject: Answers {
    /// What is sent of it.
    fn request(&self) -> RequestCall<'_>;
}

/// For calls in which a runner has nothing to ask.
struct Nothing;

impl Answers for Nothing {
    async fn var(&mut self, _name: &str) -> Result<Option<Bytes>, CallError> {
        Ok(None)
    }
    async fn request_body(&mut self) -> Result<Option<Bytes>, CallError> {
        Ok(None)
    }
    async fn response_body(&mut self) -> Result<Option<Bytes>, CallError> {
        Ok(None)
    }
}

/// Times and numbers of a runner.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Limits {
    /// Until a connection is accepted.
    pub connect: Duration,
    /// For a whole call, waiting and retries included.
    pub call: Duration,
    /// Until a connection becomes free.
    pub queue: Duration,
    /// Connections to one process.
    pub connections: usize,
}

impl Default for Limits {
    /// APISIX's times; it bounds neither the queue nor the connections.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            call: Duration::from_secs(60),
            queue: Duration::from_secs(5),
            connections: 256,
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

/// One process of a runner.
pub struct Process {
    runner: Box<str>,
    index: usize,
    /// Counts its lives: a token or connection of another one is worth nothing. Never 0.
    life: AtomicU32,
    flavour: AtomicU8,
    in_flight: AtomicUsize,
    pool: Pool,
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
        let token = self.prepare(&[], "portcullis#probe").await?;
        let flavour = if token == 0 { Flavour::OfficialPython } else { Flavour::Other };
        self.flavour.store(flavour as u8, Relaxed);
        Ok(())
    }

    fn is_official_python(&self) -> bool {
        self.flavour.load(Relaxed) == Flavour::OfficialPython as u8
    }

    async fn prepare(&self, entries: &[(String, String)], key: &str) -> Result<u32, CallError> {
        let mut lease = self.pool.lease(self, kind::PREPARE_CONF).await?;
        let connection = lease.connection();
        let reply = connection
            .call(kind::PREPARE_CONF, |encoder, _| Ok(encoder.prepare_conf(entries, key)), &mut Nothing)
            .await;
        let token = message::read_token(&reply.inspect_err(|e| self.note(e, &mut lease))?)?;
        lease.give_back();
        Ok(token)
    }

    fn note(&self, error: &CallError, lease: &mut Lease<'_>) {
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

    /// From now on calls go to this process in its place, or to none.
    pub fn install(&self, index: usize, process: Option<Arc<Process>>) {
        self.ready.rcu(|ready| {
            let mut next: Vec<_> = ready.iter().filter(|other| other.index != index).cloned().collect();
            next.extend(process.clone());
            next
        });
        if process.is_some() {
            self.stumbles.store(0, Relaxed);
            self.changed.notify_waiters();
        }
    }

    /// Notes that a process could not be started.
    pub fn stumbled(&self) {
        self.stumbles.fetch_add(1, Relaxed);
    }

    /// The process for the next call; while the runner is being started, that is waited for.
    async fn pick(&self, avoid: Option<usize>) -> Result<Arc<Process>, CallError> {
        if let Some(process) = self.least_busy(avoid) {
            return Ok(process);
        }
        let hopeless = self.stumbles.load(Relaxed) >= STUMBLES;
        if !self.managed || hopeless {
            return Err(CallError::NotReady(self.name.clone()));
        }
        let ready = async {
            loop {
                let changed = self.changed.notified();
                if let Some(process) = self.least_busy(avoid) {
                    return process;
                }
                changed.await;
            }
        };
        let ready = tokio::time::timeout(self.limits.queue, ready).await;
        ready.map_err(|_| CallError::NotReady(self.name.clone()))
    }

    /// The process with the fewest calls, and not `avoid` if there is another one.
    fn least_busy(&self, avoid: Option<usize>) -> Option<Arc<Process>> {
        let ready = self.ready.load();
        let busy = |process: &&Arc<Process>| (avoid == Some(process.index), process.in_flight());
        let first = if ready.len() > 1 { fastrand::usize(..ready.len()) } else { 0 };
        let (after, before) = (ready.iter().skip(first), ready.iter().take(first));
        after.chain(before).min_by_key(busy).cloned()
    }
}

/// The calls of one plugin configuration to its runner.
pub struct Caller {
    runner: Option<Arc<Runner>>,
    conf: Conf,
    limit: Duration,
}

/// A kind of call.
trait Call<A> {
    /// The type of its frames.
    const KIND: u8;
    /// What its reply says.
    type Reply;
    /// Writes the payload.
    fn write<'e>(
        &self,
        subject: &A,
        encoder: &'e mut Encoder,
        id: u32,
        token: u32,
    ) -> Result<&'e [u8], CallError>;
    /// Reads id and content of the reply.
    fn read(payload: &Bytes) -> Result<(u32, Self::Reply), CallError>;
    /// Whether a reply says nothing at all.
    fn is_empty(reply: &Self::Reply) -> bool;
}

struct ForRequest;

impl<A: Subject> Call<A> for ForRequest {
    const KIND: u8 = kind::HTTP_REQ_CALL;
    type Reply = Action;

    fn write<'e>(
        &self,
        subject: &A,
        encoder: &'e mut Encoder,
        id: u32,
        token: u32,
    ) -> Result<&'e [u8], CallError> {
        encoder.request(&subject.request(), id, token)
    }

    fn read(payload: &Bytes) -> Result<(u32, Action), CallError> {
        message::read_request_reply(payload)
    }

    fn is_empty(reply: &Action) -> bool {
        *reply == Action::None
    }
}

struct ForResponse<'a>(&'a ResponseCall<'a>);

impl<A> Call<A> for ForResponse<'_> {
    const KIND: u8 = kind::HTTP_RESP_CALL;
    type Reply = ResponseChange;

    fn write<'e>(
        &self,
        _subject: &A,
        encoder: &'e mut Encoder,
        id: u32,
        token: u32,
    ) -> Result<&'e [u8], CallError> {
        Ok(encoder.response(self.0, id, token))
    }

    fn read(payload: &Bytes) -> Result<(u32, ResponseChange), CallError> {
        message::read_response_reply(payload)
    }

    fn is_empty(reply: &ResponseChange) -> bool {
        *reply == ResponseChange::default()
    }
}

/// A try that failed, and what is known of the process it failed at.
struct Failed {
    error: CallError,
    life: u32,
    /// Whether it may be made again although something may have been sent.
    stale: bool,
}

impl Caller {
    /// `origin` is the resource that carries the configuration, as in APISIX's keys: `route#1`. `entries` are the
    /// runner's plugins and their configurations. `limit` replaces the runner's own for a whole call.
    pub fn new(
        runner: Option<Arc<Runner>>,
        origin: &str,
        plugin: &str,
        entries: Vec<(String, String)>,
        limit: Option<Duration>,
    ) -> Self {
        let processes = runner.as_ref().map_or(1, |runner| runner.processes);
        let limit = limit.or(runner.as_ref().map(|runner| runner.limits.call)).unwrap_or_default();
        Self { runner, conf: Conf::new(origin, plugin, entries, processes), limit }
    }

    /// Lets a request pass through the runner's plugins.
    ///
    /// # Errors
    /// See [`CallError`]; [`CallError::status`] is what the client is told.
    pub async fn request<S: Subject>(&self, subject: &mut S) -> Result<Action, CallError> {
        self.timed(ForRequest, subject).await
    }

    /// Lets a response pass through the runner's plugins. They see no more of the request than they ask for.
    ///
    /// # Errors
    /// As [`Caller::request`].
    pub async fn response<A: Answers>(
        &self,
        call: &ResponseCall<'_>,
        answers: &mut A,
    ) -> Result<ResponseChange, CallError> {
        self.timed(ForResponse(call), answers).await
    }

    async fn timed<A: Answers, C: Call<A>>(&self, call: C, answers: &mut A) -> Result<C::Reply, CallError> {
        let runner = self.runner.as_deref().ok_or(CallError::NoRunner)?;
        match tokio::time::timeout(self.limit, self.tries(runner, &call, answers)).await {
            Ok(reply) => reply,
            Err(_) => Err(CallError::Timeout(self.limit)),
        }
    }

    /// Tries until there is a reply or an error that no further try may change.
    async fn tries<A: Answers, C: Call<A>>(
        &self,
        runner: &Runner,
        call: &C,
        answers: &mut A,
    ) -> Result<C::Reply, CallError> {
        let (mut unknown_tokens, mut elsewhere, mut avoid) = (0, false, None);
        loop {
            let process = runner.pick(avoid).await?;
            let _counted = InFlight::new(&process);
            let failed = match self.once(runner, &process, call, answers).await {
                Ok(reply) => return Ok(reply),
                Err(failed) => failed,
            };
            if matches!(failed.error, CallError::Connect { .. }) {
                process.lost(failed.life);
            }
            match failed.error {
                CallError::Refused(Code::TokenNotFound) if unknown_tokens + 1 < TOKEN_TRIES => {
                    unknown_tokens += 1;
                }
                // Nothing was sent, or nobody has read it.
                CallError::Connect { .. } if !elsewhere && runner.managed => {
                    elsewhere = true;
                    if runner.processes == 1 {
                        // It has just ended; until that is noticed it seems to be ready.
                        tokio::time::sleep(NOTICE).await;
                    }
                }
                _ if failed.stale && !elsewhere => elsewhere = true,
                error => return Err(error),
            }
            avoid = elsewhere.then_some(process.index);
        }
    }

    async fn once<A: Answers, C: Call<A>>(
        &self,
        runner: &Runner,
        process: &Process,
        call: &C,
        answers: &mut A,
    ) -> Result<C::Reply, Failed> {
        let life = process.life();
        let failed = |error| Failed { error, life, stale: false };
        let token = self.token(runner, process).await.map_err(failed)?;
        let mut lease = process.pool.lease(process, C::KIND).await.map_err(failed)?;
        let id = next_id();
        let connection = lease.connection();
        let reply = connection
            .call(C::KIND, |encoder, subject| call.write(subject, encoder, id, token), answers)
            .await;
        let payload = match reply {
            Ok(payload) => payload,
            Err(error) => {
                let stale = lease.connection().was_stale();
                process.note(&error, &mut lease);
                if matches!(error, CallError::Refused(Code::TokenNotFound)) {
                    self.conf.forget(process.index, life, token);
                }
                return Err(Failed { error, life, stale });
            }
        };
        let (got, reply) = C::read(&payload).map_err(failed)?;
        if got != id && got != 0 {
            return Err(failed(CallError::OtherCall { got, asked: id }));
        }
        if got == 0 && C::is_empty(&reply) && process.is_official_python() {
            return Err(failed(CallError::Refused(Code::BadRequest)));
        }
        lease.give_back();
        Ok(reply)
    }

    /// The conf token of a process, fetched when there is none.
    async fn token(&self, runner: &Runner, process: &Process) -> Result<u32, CallError> {
        let (life, now) = (process.life(), runner.started.elapsed());
        let ticket = match self.conf.token(process.index, life, now).await {
            Known::Token(token) => return Ok(token),
            Known::Fetch(ticket) => ticket,
        };
        if process.flavour.load(Relaxed) == Flavour::Unknown as u8 {
            process.probe().await?;
        }
        let token = process.prepare(&self.conf.entries, &self.conf.next_key()).await?;
        if token == 0 && process.is_official_python() {
            return Err(CallError::Refused(Code::BadRequest));
        }
        ticket.fetched(life, token, now);
        Ok(token)
    }
}

/// A call that is under way at a process.
struct InFlight<'a>(&'a AtomicUsize);

impl<'a> InFlight<'a> {
    fn new(process: &'a Process) -> Self {
        process.in_flight.fetch_add(1, Relaxed);
        Self(&process.in_flight)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The number of the next call. Never 0: the official Python runner takes that for a failure of its own.
fn next_id() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    loop {
        let id = NEXT.fetch_add(1, Relaxed);
        if id != 0 {
            return id;
        }
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

    /// The runner of that name, or the default one.
    pub fn find(&self, name: Option<&str>) -> Option<&Arc<Runner>> {
        match name {
            Some(name) => self.all.iter().find(|runner| *runner.name == *name),
            None => self.all.first(),
        }
    }
}
