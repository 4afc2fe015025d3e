//! The response phase: what the upstream answered, in the hands of plugins that may wait.
//!
//! The framework lends an answer's head and its body in different calls, and the one for the body may not wait.
//! So the hooks of this phase run as one future of their own ([`Phase`]), which owns the answer and rests between
//! those calls. The exchange is lent to it through a [`Desk`]: a hook lays down what it wants and waits, and
//! whoever drives the future fetches it. A chain without such a plugin never comes here.
//!
//! Invariant: nothing here writes to the client.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};

use bytes::Bytes;
use pingora::http::ResponseHeader;

use super::{
    body,
    chain::{Chain, Step},
    exchange::Exchange,
    phases::Phases,
    reply::{CONTINUE, Flow, Reply},
};

/// The upstream's answer on its way to the client.
///
/// Hooks of the response phase get this instead of an [`Exchange`], because they may go on when the framework has
/// taken the exchange back; [`Link::ask`] reaches it.
pub struct Answer {
    /// Status and headers; what stands here at the end goes on. Content-Length follows a replaced body by itself.
    pub head: ResponseHeader,
    /// The way to everything else.
    pub link: Link,
}

/// The way to what is not in an answer's head: its body, and the exchange it belongs to.
pub struct Link {
    body: AnswerBody,
    desk: Arc<Desk>,
    running: usize,
}

/// Where the body of an answer is.
#[derive(Debug, PartialEq)]
pub enum AnswerBody {
    /// Nobody asked for it: it streams past.
    Passing,
    /// Read, and nobody changed it.
    Whole(Bytes),
    /// Made by a plugin.
    Replaced(Bytes),
}

impl Link {
    /// Lets a question look at the exchange: variables, the route, private state. The question may not wait.
    pub async fn ask<T: Send + 'static>(
        &mut self,
        question: impl FnOnce(&mut Exchange<'_>) -> T + Send + 'static,
    ) -> T {
        let (running, told) = (self.running, Arc::new(Mutex::new(None)));
        let teller = told.clone();
        let ask = move |x: &mut Exchange<'_>| {
            x.running = running;
            *lock(&teller) = Some(question(x));
        };
        self.desk.want(Wish::Ask(Box::new(ask))).await;
        let answer = lock(&told).take();
        answer.expect("the question was asked before the hooks go on")
    }

    /// The whole request body, as it went to the upstream; empty if there was none.
    ///
    /// # Errors
    /// It was larger than may be buffered, or the upstream answered before it had all come.
    pub async fn request_body(&mut self) -> Result<Bytes, Reply> {
        match self.desk.want(Wish::RequestBody).await {
            Given::Body(body) => body,
            Given::Asked | Given::NoBody => Ok(Bytes::new()),
        }
    }

    /// The whole body of the answer, held back from the client while it is read; empty if there is none.
    /// What a plugin put in its place, if one did.
    ///
    /// # Errors
    /// Its announced length is larger than `limit` bytes or the gateway's own bound: nothing was read, and the answer
    /// can still go on as it is. One without an announced length that proves larger ends in 502 by itself.
    pub async fn body(&mut self, limit: usize) -> Result<Bytes, Reply> {
        if let AnswerBody::Whole(body) | AnswerBody::Replaced(body) = &self.body {
            return Ok(body.clone());
        }
        match self.desk.want(Wish::Body { limit }).await {
            Given::Body(body) => {
                let body = body?;
                self.body = AnswerBody::Whole(body.clone());
                Ok(body)
            }
            Given::Asked | Given::NoBody => Ok(Bytes::new()),
        }
    }

    /// Puts a body in place of the upstream's, which is not even waited for.
    pub fn replace(&mut self, body: impl Into<Bytes>) {
        self.body = AnswerBody::Replaced(body.into());
    }
}

type Question = Box<dyn FnOnce(&mut Exchange<'_>) + Send>;

/// What a hook waits for.
enum Wish {
    Ask(Question),
    RequestBody,
    Body { limit: usize },
}

/// What it gets.
enum Given {
    Asked,
    Body(Result<Bytes, Reply>),
    NoBody,
}

/// Between the hooks and whoever drives them.
#[derive(Default)]
struct Desk {
    // Never contended: both sides run on the one task of the request, in turns. The lock only makes it shareable.
    papers: Mutex<Papers>,
}

#[derive(Default)]
struct Papers {
    wish: Option<Wish>,
    given: Option<Given>,
}

impl Desk {
    async fn want(&self, wish: Wish) -> Given {
        let mut wish = Some(wish);
        poll_fn(|_| {
            let mut papers = lock(&self.papers);
            if let Some(wish) = wish.take() {
                // What is left of a wish that nobody waits for any longer goes.
                *papers = Papers { wish: Some(wish), given: None };
                return Poll::Pending;
            }
            papers.given.take().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    fn give(&self, given: Given) {
        lock(&self.papers).given = Some(given);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The hooks of the response phase at work on one answer.
pub struct Phase {
    // The lock is never taken: it makes the future shareable, which the framework asks of everything.
    hooks: Mutex<Pin<Box<dyn Future<Output = Box<Verdict>> + Send>>>,
    desk: Arc<Desk>,
}

/// Why the hooks stopped working.
enum Pause {
    Wish(Wish),
    Over(Box<Verdict>),
}

/// How far the hooks came.
pub enum Progress {
    /// They go on when they have the body; see [`Phase::give_body`].
    WantsBody {
        /// How many bytes it may have.
        limit: usize,
    },
    /// They are through.
    Over(Box<Verdict>),
}

/// What the hooks made of the answer.
pub struct Verdict {
    /// Status and headers.
    pub head: ResponseHeader,
    /// The body.
    pub body: AnswerBody,
    /// `Break`: the reply goes out in the answer's place.
    pub flow: Flow,
}

impl Phase {
    /// Puts the hooks of these chains to work, one chain after the other. Nothing runs before [`Phase::run`].
    pub fn new(chains: [Chain; 2], head: ResponseHeader) -> Phase {
        let desk = Arc::new(Desk::default());
        let link = Link { body: AnswerBody::Passing, desk: desk.clone(), running: 0 };
        let answer = Answer { head, link };
        Phase { hooks: Mutex::new(Box::pin(hooks(chains, answer))), desk }
    }

    /// Lets the hooks work until they are through or want the body.
    pub async fn run(&mut self, x: &mut Exchange<'_>) -> Progress {
        loop {
            match self.next().await {
                Pause::Over(verdict) => return Progress::Over(verdict),
                Pause::Wish(Wish::Body { limit }) => return Progress::WantsBody { limit },
                Pause::Wish(Wish::RequestBody) => self.desk.give(Given::Body(body::passed(x))),
                Pause::Wish(Wish::Ask(question)) => {
                    question(x);
                    self.desk.give(Given::Asked);
                }
            }
        }
    }

    /// Works until the next wish or the end.
    async fn next(&mut self) -> Pause {
        let hooks = self.hooks.get_mut().unwrap_or_else(PoisonError::into_inner);
        poll_fn(|context| {
            if let Poll::Ready(verdict) = hooks.as_mut().poll(context) {
                return Poll::Ready(Pause::Over(verdict));
            }
            lock(&self.desk.papers).wish.take().map_or(Poll::Pending, |wish| Poll::Ready(Pause::Wish(wish)))
        })
        .await
    }

    /// Gives the hooks the body that they wanted, or says why there is none.
    pub fn give_body(&mut self, body: Result<Bytes, Reply>) {
        self.desk.give(Given::Body(body));
    }

    /// Tells the hooks that this answer has no body.
    pub fn give_no_body(&mut self) {
        self.desk.give(Given::NoBody);
    }
}

async fn hooks(chains: [Chain; 2], mut answer: Answer) -> Box<Verdict> {
    let mut flow = CONTINUE;
    for step in chains.iter().flat_map(|chain| chain.for_phase(Phases::RESPONSE)) {
        if !applies(step, &mut answer).await {
            continue;
        }
        answer.link.running = step.identity();
        if let Flow::Break(reply) = step.hooks.response(&mut answer).await {
            let step = step.clone();
            flow = answer.link.ask(move |x| Flow::Break(step.stopped(reply, x))).await;
            break;
        }
    }
    Box::new(Verdict { head: answer.head, body: answer.link.body, flow })
}

async fn applies(step: &Arc<Step>, answer: &mut Answer) -> bool {
    if step.meta.filter.is_none() {
        return true;
    }
    let step = step.clone();
    answer.link.ask(move |x| step.applies(x)).await
}
