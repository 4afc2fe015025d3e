//! Calls of plugins to their runners.
//!
//! A plugin makes a [`Caller`] when it is compiled, and calls [`Caller::request`] or [`Caller::response`]. Both say
//! what passes through the runner's plugins and bring an [`Answers`], which is asked for what the runner wants to
//! know besides: variables, the body of the request, the body of the response.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use pingora::time::{Elapsed, timeout};
use tokio::time::Instant;

use super::{
    error::{CallError, Code},
    frame::kind,
    message::{self, Action, Encoder, RequestCall, ResponseCall, ResponseChange},
    runner::{Chosen, Counted, Process, Runner},
    stats::{Histogram, Series},
    token::{Conf, Known},
    watch,
};

/// Tries of one call, all told, when its conf token is not known. APISIX: ext-plugin/init.lua `communicate`.
const TOKEN_TRIES: u32 = 3;

/// Tries of one call when nobody accepts it.
const CONNECT_TRIES: u32 = 3;

/// How long a call waits that was let through to find out whether calls still hang. What is answered later, but in its
/// time, shows as well that they do not.
const TRIAL: Duration = Duration::from_millis(500);

/// How long calls that may go without the runner wait for one that is not ready, from the moment on when it was not.
const GRACE: Duration = Duration::from_millis(500);

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
pub struct Nothing;

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

/// What came of a call.
pub struct Called<T> {
    /// The reply, or why there is none.
    pub reply: Result<T, CallError>,
    /// How long it took, waiting and retries included.
    pub took: Duration,
}

/// A kind of call, by its reply.
trait Kind {
    /// The type of its frames.
    const KIND: u8;
    /// What its reply says.
    type Reply;
    /// Reads id and content of the reply.
    fn read(payload: &Bytes) -> Result<(u32, Self::Reply), CallError>;
    /// Whether a reply says nothing at all.
    fn is_empty(reply: &Self::Reply) -> bool;
}

/// A kind of call, by what it is about.
trait Call<A>: Kind {
    /// Writes the payload.
    fn write<'e>(
        &self,
        subject: &A,
        encoder: &'e mut Encoder,
        id: u32,
        token: u32,
    ) -> Result<&'e [u8], CallError>;
}

struct ForRequest;

impl Kind for ForRequest {
    const KIND: u8 = kind::HTTP_REQ_CALL;
    type Reply = Action;

    fn read(payload: &Bytes) -> Result<(u32, Action), CallError> {
        message::read_request_reply(payload)
    }

    fn is_empty(reply: &Action) -> bool {
        *reply == Action::None
    }
}

impl<A: Subject> Call<A> for ForRequest {
    fn write<'e>(
        &self,
        subject: &A,
        encoder: &'e mut Encoder,
        id: u32,
        token: u32,
    ) -> Result<&'e [u8], CallError> {
        encoder.request(&subject.request(), id, token)
    }
}

struct ForResponse<'a>(&'a ResponseCall<'a>);

impl Kind for ForResponse<'_> {
    const KIND: u8 = kind::HTTP_RESP_CALL;
    type Reply = ResponseChange;

    fn read(payload: &Bytes) -> Result<(u32, ResponseChange), CallError> {
        message::read_response_reply(payload)
    }

    fn is_empty(reply: &ResponseChange) -> bool {
        *reply == ResponseChange::default()
    }
}

impl<A> Call<A> for ForResponse<'_> {
    fn write<'e>(
        &self,
        _subject: &A,
        encoder: &'e mut Encoder,
        id: u32,
        token: u32,
    ) -> Result<&'e [u8], CallError> {
        Ok(encoder.response(self.0, id, token))
    }
}

/// A try that failed, and what is known of the process it failed at.
struct Failed {
    error: CallError,
    life: u32,
    /// Whether it may be made again although something may have been sent: nobody read it, or it has no effect.
    again: bool,
}

/// Where the time of a try goes, seen from outside: whose fault it is when it is over.
#[derive(Default)]
struct Course {
    stage: AtomicU8,
    /// What clients and upstreams took until they had sent what the runner asked for, in milliseconds.
    answering: AtomicU64,
}

/// Waits for the runner.
const CALLED: u8 = 0;
/// Waits for a connection.
const QUEUED: u8 = 1;
/// Waits for what the runner asked for.
const ANSWERING: u8 = 2;

impl Course {
    async fn answer<F: Future>(&self, answer: F, times: &Histogram) -> F::Output {
        let since = Instant::now();
        self.stage.store(ANSWERING, Relaxed);
        let answer = answer.await;
        self.stage.store(CALLED, Relaxed);
        let took = since.elapsed();
        times.observe(took);
        self.answering.fetch_add(u64::try_from(took.as_millis()).unwrap_or(u64::MAX), Relaxed);
        answer
    }

    /// Whether it was the runner who let the time pass: a client that sends its body slowly must not open a breaker.
    fn is_runners(&self, limit: Duration) -> bool {
        let answering = Duration::from_millis(self.answering.load(Relaxed));
        self.stage.load(Relaxed) == CALLED && answering < limit / 2
    }
}

/// Somebody's answers, and how long they took.
struct Timed<'a, A> {
    answers: &'a mut A,
    course: &'a Course,
    times: &'a Histogram,
}

impl<A: Answers> Answers for Timed<'_, A> {
    async fn var(&mut self, name: &str) -> Result<Option<Bytes>, CallError> {
        self.course.answer(self.answers.var(name), self.times).await
    }
    async fn request_body(&mut self) -> Result<Option<Bytes>, CallError> {
        self.course.answer(self.answers.request_body(), self.times).await
    }
    async fn response_body(&mut self) -> Result<Option<Bytes>, CallError> {
        self.course.answer(self.answers.response_body(), self.times).await
    }
}

impl<S: Subject> Subject for Timed<'_, S> {
    fn request(&self) -> RequestCall<'_> {
        self.answers.request()
    }
}

/// What a plugin configuration says of its calls.
#[derive(Clone, Copy, Default, Debug)]
pub struct Terms {
    /// For a whole call, in place of the runner's own time.
    pub limit: Option<Duration>,
    /// The request may go on without the runner: then it does not wait long for one that is not ready.
    pub optional: bool,
}

/// The calls of one plugin configuration to its runner.
pub struct Caller {
    runner: Option<(Arc<Runner>, Arc<Series>)>,
    conf: Conf,
    limit: Duration,
    optional: bool,
}

impl Caller {
    /// `origin` is the resource that carries the configuration, as in APISIX's keys: `route#1`. `entries` are the
    /// runner's plugins and their configurations.
    pub fn new(
        runner: Option<Arc<Runner>>,
        origin: &str,
        plugin: &str,
        entries: Vec<(String, String)>,
        terms: Terms,
    ) -> Self {
        let processes = runner.as_ref().map_or(1, |runner| runner.processes());
        let limit = terms.limit.or(runner.as_ref().map(|runner| runner.limits().call)).unwrap_or_default();
        let expire = runner.as_ref().map(|runner| runner.limits().expire).unwrap_or_default();
        let conf = Conf::new(origin, plugin, entries, processes, expire);
        let runner = runner.map(|runner| {
            let series = runner.stats().series(plugin, &names(&conf.entries));
            (runner, series)
        });
        Self { runner, conf, limit, optional: terms.optional }
    }

    /// The runner, if there is one.
    pub fn runner(&self) -> Option<&Arc<Runner>> {
        self.runner.as_ref().map(|(runner, _)| runner)
    }

    /// Lets a request pass through the runner's plugins.
    ///
    /// # Errors
    /// See [`CallError`]; [`CallError::status`] is what the client is told.
    pub async fn request<S: Subject>(&self, subject: &mut S) -> Called<Action> {
        self.counted(&ForRequest, subject).await
    }

    /// Lets a response pass through the runner's plugins. They see no more of the request than they ask for.
    ///
    /// # Errors
    /// As [`Caller::request`].
    pub async fn response<A: Answers>(
        &self,
        call: &ResponseCall<'_>,
        answers: &mut A,
    ) -> Called<ResponseChange> {
        self.counted(&ForResponse(call), answers).await
    }

    async fn counted<A: Answers, C>(&self, call: &C, answers: &mut A) -> Called<C::Reply>
    where
        C: Kind + for<'a> Call<Timed<'a, A>>,
    {
        let Some((runner, series)) = &self.runner else {
            return Called { reply: Err(CallError::NoRunner), took: Duration::ZERO };
        };
        let began = Instant::now();
        let reply = self.tries(runner, series, began, call, answers).await;
        let took = began.elapsed();
        series.calls.observe(took);
        if let Err(error) = &reply {
            series.failed(error);
        }
        Called { reply, took }
    }

    /// Tries until there is a reply or an error that no further try may change.
    async fn tries<A: Answers, C>(
        &self,
        runner: &Arc<Runner>,
        series: &Series,
        began: Instant,
        call: &C,
        answers: &mut A,
    ) -> Result<C::Reply, CallError>
    where
        C: Kind + for<'a> Call<Timed<'a, A>>,
    {
        let deadline = began + self.limit;
        let doubt = runner.doubt(began).filter(|doubt| *doubt < deadline);
        let (mut unknown_tokens, mut unconnected, mut again, mut avoid) = (0, 0, false, None);
        loop {
            let Chosen { process, trial } = self.process(runner, avoid, deadline).await?;
            let _counted = Counted::call(&process);
            let (began, course) = (process.now(), Course::default());
            let mut timed = Timed { answers: &mut *answers, course: &course, times: &series.questions };
            let late = trial.then_some(deadline);
            let once = pin!(self.once(runner, series, &process, call, &mut timed, late));
            let doubtful = || {
                if !trial && course.stage.load(Relaxed) == CALLED {
                    watch::suspect(&process);
                }
                trial && course.is_runners(TRIAL)
            };
            let (doubt, limit) = match Instant::now() + TRIAL {
                over if trial && over < deadline => (Some(over), TRIAL),
                _ => (doubt, self.limit),
            };
            let tried = in_time(once, doubt, deadline, doubtful).await;
            let failed = match tried {
                Ok(Ok(reply)) => {
                    process.breaker().succeeded(|| process.now());
                    return Ok(reply);
                }
                Ok(Err(failed)) => failed,
                Err(_) => {
                    let limit = if Instant::now() < deadline { limit } else { self.limit };
                    if course.is_runners(limit) {
                        blame(runner, &process, began, &CallError::Timeout(limit));
                    }
                    return Err(CallError::Timeout(limit));
                }
            };
            if !failed.again || again {
                blame(runner, &process, began, &failed.error);
            }
            if matches!(failed.error, CallError::Connect { .. }) {
                process.lost(failed.life);
            }
            match failed.error {
                CallError::Refused(Code::TokenNotFound) if unknown_tokens + 1 < TOKEN_TRIES => {
                    unknown_tokens += 1;
                    continue;
                }
                // Nothing was sent.
                CallError::Connect { .. } if unconnected + 1 < CONNECT_TRIES && runner.is_managed() => {
                    runner.lose(&process);
                    unconnected += 1;
                }
                _ if failed.again && !again => again = true,
                error => return Err(error),
            }
            avoid = Some(process.index());
        }
    }

    /// The process that is to be called; one that is being started is waited for.
    async fn process(
        &self,
        runner: &Runner,
        avoid: Option<usize>,
        deadline: Instant,
    ) -> Result<Chosen, CallError> {
        if let Some(chosen) = runner.choose(avoid)? {
            return Ok(chosen);
        }
        let patience = if self.optional { runner.down_since() + GRACE } else { runner.patience() };
        runner.await_ready(avoid, patience.min(deadline)).await
    }

    /// One try. A reply that comes when the try was given up, but until `late`, counts for the breaker.
    async fn once<'a, A: Answers, C: Call<Timed<'a, A>>>(
        &self,
        runner: &Runner,
        series: &Series,
        process: &Arc<Process>,
        call: &C,
        answers: &mut Timed<'a, A>,
        late: Option<Instant>,
    ) -> Result<C::Reply, Failed> {
        let (course, life) = (answers.course, process.life());
        let failed = |error| Failed { error, life, again: false };
        let token = self.token(runner, series, process).await.map_err(|error| {
            let again = matches!(error, CallError::Closed | CallError::Cut | CallError::Io(_));
            Failed { error, life, again }
        })?;
        course.stage.store(QUEUED, Relaxed);
        let mut lease = process.pool().lease(process, C::KIND).await.map_err(failed)?;
        course.stage.store(CALLED, Relaxed);
        if let Some(deadline) = late {
            let process = process.clone();
            lease.when_late(move || {
                if Instant::now() < deadline {
                    process.breaker().succeeded(|| process.now());
                }
            });
        }
        let id = next_id();
        let connection = lease.connection();
        let reply = connection
            .call(C::KIND, |encoder, subject| call.write(subject, encoder, id, token), answers)
            .await;
        let payload = match reply {
            Ok(payload) => payload,
            Err(error) => {
                let again = lease.connection().was_stale();
                process.note(&error, &mut lease);
                if matches!(error, CallError::Refused(Code::TokenNotFound)) {
                    self.conf.forget(process.index(), life, token);
                }
                return Err(Failed { error, life, again });
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
    async fn token(&self, runner: &Runner, series: &Series, process: &Process) -> Result<u32, CallError> {
        let (life, now) = (process.life(), runner.clock());
        let ticket = match self.conf.token(process.index(), life, now).await {
            Known::Token(token) => {
                series.hits.fetch_add(1, Relaxed);
                return Ok(token);
            }
            Known::Fetch(ticket) => {
                series.misses.fetch_add(1, Relaxed);
                ticket
            }
            Known::Renew(ticket) => {
                series.renewals.fetch_add(1, Relaxed);
                ticket
            }
        };
        let began = Instant::now();
        if process.is_unknown() {
            process.probe().await?;
        }
        let token = process.prepare(&self.conf.entries, &self.conf.next_key()).await?;
        if token == 0 && process.is_official_python() {
            return Err(CallError::Refused(Code::BadRequest));
        }
        ticket.fetched(life, token, now);
        series.prepared.observe(began.elapsed());
        Ok(token)
    }
}

/// The names of a runner's plugins, as metrics show them.
fn names(entries: &[(String, String)]) -> String {
    entries.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",")
}

/// Counts a failure that began then for the breaker, if it is the runner's.
fn blame(runner: &Runner, process: &Arc<Process>, began: u64, error: &CallError) {
    if error.is_runners() {
        runner.told(process.index()).call_failed(error);
        let hung = matches!(error, CallError::Timeout(_));
        if process.breaker().failed(began, hung) {
            let (runner, process) = (process.runner(), process.index());
            tracing::warn!(runner, process, %error, "the runner's circuit breaker opens");
        }
        if !process.breaker().is_closed() {
            watch::begin(process);
        }
    } else if matches!(error, CallError::Refused(_)) {
        process.breaker().succeeded(|| process.now());
    }
}

/// What comes of a try until the deadline. At a moment of doubt before, `is_over` says whether that is enough.
///
/// With the framework's timers, which are hundredths of a second apart: hardly any is ever due, and one of the runtime
/// that is due earlier than all others costs a write, to wake the thread that sets it.
async fn in_time<F: Future>(
    mut tried: Pin<&mut F>,
    doubt: Option<Instant>,
    deadline: Instant,
    is_over: impl FnOnce() -> bool,
) -> Result<F::Output, Elapsed> {
    if let Some(doubt) = doubt {
        let outcome = until(doubt, tried.as_mut()).await;
        if outcome.is_ok() || is_over() {
            return outcome;
        }
    }
    until(deadline, tried).await
}

async fn until<F: Future>(deadline: Instant, tried: Pin<&mut F>) -> Result<F::Output, Elapsed> {
    // The first of the framework's timers of a process must not be due at once: it counts the time from that one on,
    // and subtracts a millisecond.
    const LEAST: Duration = Duration::from_millis(1);
    timeout(deadline.saturating_duration_since(Instant::now()).max(LEAST), tried).await
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
