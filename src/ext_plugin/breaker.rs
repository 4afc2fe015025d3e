//! The circuit breaker of one process of a runner: one that is dead or hangs costs a few calls, not all of them.
//!
//! It opens after a run of calls that did not reach the process, or when the process answers nothing while a call is
//! under way for long. While it is open no call is made; somebody else ([`super::watch`]) asks the process whether it is
//! back. If the calls had failed at once, its answer is enough. If they had hung, a process that answers may hang all the
//! same: then single calls are let through, and the first that ends well closes the breaker. They are what shows that
//! it is back, so there is one in less than a second; and few enough that those that hang, too, are no burden.
//!
//! Pure: time is brought along, in milliseconds of any clock that only goes forward. Invariant: no lock, and a call that
//! ends well writes nothing while all is well.

use std::{
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The first pause between two calls that are let through, in milliseconds; it doubles.
const FIRST_PAUSE: u64 = 250;

/// The longest one: a runner that is back is used again within a second.
const LAST_PAUSE: u64 = 750;

/// When a breaker opens, and how it closes again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Calls in a row that did not reach the process; 0: it never opens.
    pub failures: u32,
    /// Between two questions whether the process is back.
    pub probe: Duration,
}

/// What a breaker lets through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// Every call.
    Closed = 0,
    /// None.
    Open = 1,
    /// Single ones: the process answers again, but calls had hung.
    HalfOpen = 2,
}

/// See the module.
pub struct Breaker {
    rules: Rules,
    state: AtomicU8,
    /// Calls in a row that failed.
    failures: AtomicU32,
    /// Whether one of them had hung.
    hung: AtomicBool,
    /// When it was closed the last time: calls that began before tell of times that are over.
    closed: AtomicU64,
    /// When the next call is let through.
    trial: AtomicU64,
    pause: AtomicU64,
}

impl Breaker {
    /// Closed.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            state: AtomicU8::new(State::Closed as u8),
            failures: AtomicU32::new(0),
            hung: AtomicBool::new(false),
            closed: AtomicU64::new(0),
            trial: AtomicU64::new(0),
            pause: AtomicU64::new(FIRST_PAUSE),
        }
    }

    /// By which it acts.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// What it lets through.
    pub fn state(&self) -> State {
        match self.state.load(Relaxed) {
            0 => State::Closed,
            1 => State::Open,
            _ => State::HalfOpen,
        }
    }

    /// Whether every call is let through.
    pub fn is_closed(&self) -> bool {
        self.state() == State::Closed
    }

    /// Whether the caller's is one of the single calls that are let through.
    pub fn lets_one_through(&self, now: u64) -> bool {
        let due = self.trial.load(Relaxed);
        if self.state() != State::HalfOpen || now < due {
            return false;
        }
        let pause = self.pause.load(Relaxed);
        if self.trial.compare_exchange(due, now + pause, Relaxed, Relaxed).is_err() {
            return false;
        }
        self.pause.store((pause * 2).min(LAST_PAUSE), Relaxed);
        true
    }

    /// A call reached the process.
    pub fn succeeded(&self, now: impl FnOnce() -> u64) {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
            self.hung.store(false, Relaxed);
        }
        if !self.is_closed() {
            self.close(now());
        }
    }

    /// A call that began then did not reach the process; `hung` if it was not even refused. Whether this opened the
    /// breaker.
    pub fn failed(&self, began: u64, hung: bool) -> bool {
        if self.rules.failures == 0 || began < self.closed.load(Relaxed) {
            return false;
        }
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        if hung {
            self.hung.store(true, Relaxed);
        }
        match self.state() {
            State::Closed if failures >= self.rules.failures => self.change(State::Closed, State::Open),
            State::HalfOpen => {
                self.change(State::HalfOpen, State::Open);
                false
            }
            _ => false,
        }
    }

    /// The process answers nothing at all while calls are under way. Whether this opened the breaker.
    pub fn hangs(&self) -> bool {
        let opened = self.rules.failures > 0 && self.change(State::Closed, State::Open);
        if opened {
            self.hung.store(true, Relaxed);
        }
        opened
    }

    /// The process answered a question.
    pub fn answered(&self, now: u64) {
        if self.hung.load(Relaxed) {
            self.change(State::Open, State::HalfOpen);
        } else if !self.is_closed() {
            self.close(now);
        }
    }

    /// The process did not. When it answers the next time it may be another one, which has not hung yet.
    pub fn unanswered(&self, gone: bool) {
        self.change(State::HalfOpen, State::Open);
        if gone {
            self.hung.store(false, Relaxed);
            self.trial.store(0, Relaxed);
            self.pause.store(FIRST_PAUSE, Relaxed);
        }
    }

    fn close(&self, now: u64) {
        self.closed.store(now, Relaxed);
        self.failures.store(0, Relaxed);
        self.hung.store(false, Relaxed);
        self.trial.store(0, Relaxed);
        self.pause.store(FIRST_PAUSE, Relaxed);
        self.state.store(State::Closed as u8, Relaxed);
    }

    fn change(&self, from: State, to: State) -> bool {
        self.state.compare_exchange(from as u8, to as u8, Relaxed, Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a story of words and shows the state after it. `f` and `h` are calls that failed and hung, `s` one that
    /// succeeded, `H` a process that was found to hang, `a`, `u` and `g` one that answered, did not, or is gone; `t` and
    /// `x` a call that is let through or is not; a number is the time from then on; `<N` a call that failed and had begun
    /// at N.
    #[track_caller]
    fn check(story: &str, expected: State) {
        let breaker = Breaker::new(Rules { failures: 3, probe: Duration::ZERO });
        let mut now = 0;
        for word in story.split_whitespace() {
            match word {
                "f" => _ = breaker.failed(now, false),
                "h" => _ = breaker.failed(now, true),
                "H" => _ = breaker.hangs(),
                "s" => breaker.succeeded(|| now),
                "a" => breaker.answered(now),
                "u" => breaker.unanswered(false),
                "g" => breaker.unanswered(true),
                "t" => assert!(breaker.lets_one_through(now), "{story}: at {now}"),
                "x" => assert!(!breaker.lets_one_through(now), "{story}: at {now}"),
                word => match word.strip_prefix('<') {
                    Some(began) => _ = breaker.failed(began.parse().unwrap(), false),
                    None => now = word.parse().unwrap(),
                },
            }
        }
        assert_eq!(breaker.state(), expected, "{story}");
    }

    #[test]
    fn opens_and_closes() {
        check("f f", State::Closed);
        check("f f s f f", State::Closed);
        check("f f f", State::Open);
        check("f f f x u x", State::Open);
        check("f f f a", State::Closed);
        check("f f f a f f", State::Closed);
        check("f f f s", State::Closed);
        check("f h f a", State::HalfOpen);
        check("f h f a s", State::Closed);
        check("f h f a h", State::Open);
        check("f h f a u", State::Open);
        check("f h f g a", State::Closed);
        check("H x", State::Open);
        check("H a t x", State::HalfOpen);
        check("H a t s", State::Closed);
        check("f H s f f", State::Closed);
    }

    #[test]
    fn calls_are_let_through_more_seldom_up_to_a_bound() {
        check("h h h a 1000 t x 1249 x 1250 t 1749 x 1750 t 2499 x 2500 t 3249 x 3250 t", State::HalfOpen);
        check("h h h a 1000 t h x a 1200 x 1250 t s", State::Closed);
        check("h h h a 1000 t g a 1001", State::Closed);
    }

    #[test]
    fn times_that_are_over_do_not_count() {
        check("10 f f f a <5 <5 <5 <5", State::Closed);
        check("10 f f f a <10 <10 <10", State::Open);
    }

    #[test]
    fn it_opens_once() {
        let breaker = Breaker::new(Rules { failures: 2, probe: Duration::ZERO });
        assert!(!breaker.failed(0, true));
        assert!(breaker.failed(0, true));
        assert!(!breaker.failed(0, true));
        breaker.answered(0);
        assert!(!breaker.failed(0, true));
        let never = Breaker::new(Rules { failures: 0, probe: Duration::ZERO });
        assert!((0..9).all(|_| !never.failed(0, true) && !never.hangs()) && never.is_closed());
    }
}
