//! Signals: how an operator stops the gateway, hands it over and rotates its logs.
//!
//! | signal | what happens |
//! |-|-|
//! | `SIGTERM` | stops accepting; open requests have [`TERM_GRACE`] |
//! | `SIGINT` | stops at once |
//! | `SIGQUIT` | stops accepting; open requests have `worker_shutdown_timeout` |
//! | `SIGHUP`, `SIGUSR2` | hands the listeners over to a new process, then as `SIGQUIT` |
//! | `SIGUSR1` | reopens the logs |
//!
//! Pingora is told once and then sleeps through its whole grace period, deaf to signals; when that ends it drops what
//! is still open. So this module goes on listening and ends the process by itself ([`Hooks::leave`]) as soon as the
//! last request is done, its time is up, or a second signal is impatient. Invariant: the process never ends without
//! [`Hooks::leave`] or Pingora's return.
//!
//! Differs from APISIX: nginx drops open requests on `SIGTERM`.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep},
};

/// Time that open requests have after `SIGTERM`.
pub const TERM_GRACE: Duration = Duration::from_secs(10);
/// How long Pingora keeps accepting after it has sent its listeners to the new process (`CLOSE_TIMEOUT`).
const HAND_OVER: Duration = Duration::from_secs(5);
/// From the end of accepting until the count of open requests can be believed.
const SETTLE: Duration = Duration::from_millis(500);
/// How long a draining process keeps accepting, so that clients notice `Connection: close`.
const ANNOUNCE: Duration = Duration::from_secs(1);
/// How often open requests are counted.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A way to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// `SIGINT`.
    Now,
    /// `SIGTERM`.
    Soon,
    /// `SIGQUIT`.
    Drained,
    /// `SIGHUP` and `SIGUSR2`.
    HandedOver,
}

/// Something to wait for.
pub type Wait<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the process does on signals.
pub struct Hooks {
    /// Reopens the logs.
    pub reopen: Box<dyn Fn() + Send + Sync>,
    /// Starts a new process and lets go of what it needs, such as the store's file, once it stands ready for the
    /// listeners. `false` leaves everything as it is.
    pub hand_over: Box<dyn Fn() -> Wait<bool> + Send + Sync>,
    /// Is told before Pingora is: from now on clients are asked to connect anew.
    pub stopping: Box<dyn Fn(Stop) + Send + Sync>,
    /// Counts open requests.
    pub active: Box<dyn Fn() -> usize + Send + Sync>,
    /// Writes the last lines of the logs and ends the process.
    pub leave: Box<dyn Fn() + Send + Sync>,
}

/// See the module.
pub struct Signals {
    hooks: Arc<Hooks>,
    /// `nginx_config.worker_shutdown_timeout`.
    drain: Duration,
}

/// The signals themselves, registered.
struct Streams {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    reopen: Signal,
    reload: Signal,
    upgrade: Signal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Stop(Stop),
    Reopen,
    /// Not a signal: the successor stands ready.
    Ready,
}

impl Signals {
    /// `drain` is `nginx_config.worker_shutdown_timeout`. Pingora's `grace_period_seconds` must be [`grace_period`] of
    /// it: otherwise Pingora cuts open requests off first.
    pub fn new(hooks: Hooks, drain: Duration) -> Signals {
        Signals { hooks: Arc::new(hooks), drain }
    }

    /// Follows signals until one of them stops the process.
    async fn stop(&self, streams: &mut Streams) -> Stop {
        let mut heard = streams.next().await;
        loop {
            heard = match heard {
                Heard::Stop(Stop::HandedOver) => match self.hand_over(streams).await {
                    Some(heard) => heard,
                    None => streams.next().await,
                },
                Heard::Stop(stop) => return stop,
                Heard::Ready => return Stop::HandedOver,
                Heard::Reopen => {
                    (self.hooks.reopen)();
                    streams.next().await
                }
            }
        }
    }

    /// Starts a successor, listening all the while: whoever wants the process to end does not wait for another one to
    /// begin. `None` when there is no successor.
    async fn hand_over(&self, streams: &mut Streams) -> Option<Heard> {
        let mut ready = (self.hooks.hand_over)();
        loop {
            tokio::select! {
                ready = &mut ready => return ready.then_some(Heard::Ready),
                heard = streams.next() => match heard {
                    Heard::Reopen => (self.hooks.reopen)(),
                    // It is being done.
                    Heard::Stop(Stop::HandedOver) => {}
                    stop => return Some(stop),
                },
            }
        }
    }
}

/// Seconds for Pingora's `grace_period_seconds`: never before [`Hooks::leave`] would end the process.
pub fn grace_period(drain: Duration) -> u64 {
    drain.max(TERM_GRACE).as_secs() + 2
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let mut streams = match Streams::register() {
            Ok(streams) => streams,
            Err(error) => {
                tracing::error!(%error, "signals cannot be heard; only SIGKILL stops the gateway");
                return std::future::pending().await;
            }
        };
        let stop = self.stop(&mut streams).await;
        tracing::info!(?stop, "stopping");
        (self.hooks.stopping)(stop);
        let Some(leaving) = Leaving::new(stop, self.drain) else { return ShutdownSignal::FastShutdown };
        // Pingora's runtime keeps this task running while the main thread sleeps through the grace period.
        tokio::spawn(leave(self.hooks.clone(), leaving, streams));
        if stop == Stop::Drained {
            sleep(ANNOUNCE).await;
        }
        match stop {
            Stop::HandedOver => ShutdownSignal::GracefulUpgrade,
            _ => ShutdownSignal::GracefulTerminate,
        }
    }
}

impl Streams {
    fn register() -> io::Result<Streams> {
        Ok(Streams {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            reopen: signal(SignalKind::user_defined1())?,
            reload: signal(SignalKind::hangup())?,
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.interrupt.recv() => Heard::Stop(Stop::Now),
            _ = self.terminate.recv() => Heard::Stop(Stop::Soon),
            _ = self.quit.recv() => Heard::Stop(Stop::Drained),
            _ = self.reload.recv() => Heard::Stop(Stop::HandedOver),
            _ = self.upgrade.recv() => Heard::Stop(Stop::HandedOver),
            _ = self.reopen.recv() => Heard::Reopen,
        }
    }
}

/// When a stopping process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leaving {
    /// Time until the count of open requests means anything.
    blind: Duration,
    /// Time that open requests have after that.
    grace: Duration,
}

impl Leaving {
    /// `None`: Pingora ends it at once.
    fn new(stop: Stop, drain: Duration) -> Option<Leaving> {
        match stop {
            Stop::Now => None,
            Stop::Soon => Some(Leaving { blind: SETTLE, grace: TERM_GRACE }),
            Stop::Drained => Some(Leaving { blind: ANNOUNCE + SETTLE, grace: drain }),
            Stop::HandedOver => Some(Leaving { blind: HAND_OVER + SETTLE, grace: drain }),
        }
    }
}

/// Ends the process when nothing holds it any more.
async fn leave(hooks: Arc<Hooks>, leaving: Leaving, mut streams: Streams) {
    let drained = drained(&hooks, leaving);
    tokio::pin!(drained);
    loop {
        tokio::select! {
            () = &mut drained => break,
            heard = streams.next() => match heard {
                Heard::Reopen => (hooks.reopen)(),
                Heard::Stop(Stop::Now | Stop::Soon) => break,
                // It is being done.
                Heard::Stop(Stop::Drained | Stop::HandedOver) | Heard::Ready => {}
            },
        }
    }
    (hooks.leave)();
}

async fn drained(hooks: &Hooks, leaving: Leaving) {
    sleep(leaving.blind).await;
    let end = Instant::now() + leaving.grace;
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let open = (hooks.active)();
        if open == 0 {
            return;
        }
        if Instant::now() >= end {
            tracing::warn!(requests = open, "requests were cut off: their time is up");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use nix::{
        sys::signal::{Signal as Number, kill},
        unistd::Pid,
    };
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    /// Signals reach the whole process, so one test at a time.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    struct Process {
        signals: Arc<Signals>,
        said: UnboundedReceiver<String>,
        open: Arc<AtomicUsize>,
        /// Whether a successor gets ready; else starting one takes for ever.
        heir: Arc<AtomicBool>,
    }

    fn process(drain: Duration, open: usize) -> Process {
        let (say, said) = unbounded_channel::<String>();
        let (open, heir) = (Arc::new(AtomicUsize::new(open)), Arc::new(AtomicBool::new(true)));
        let (counted, ready) = (open.clone(), heir.clone());
        let say = move |text: String| drop(say.send(text));
        let (reopen, started, stopping, leave) = (say.clone(), say.clone(), say.clone(), say);
        let hooks = Hooks {
            reopen: Box::new(move || reopen("reopen".into())),
            hand_over: Box::new(move || {
                started("start".into());
                let ready = ready.load(Ordering::Relaxed);
                Box::pin(async move { if ready { true } else { std::future::pending().await } })
            }),
            stopping: Box::new(move |stop| stopping(format!("{stop:?}"))),
            active: Box::new(move || counted.load(Ordering::Relaxed)),
            leave: Box::new(move || leave("leave".into())),
        };
        Process { signals: Arc::new(Signals::new(hooks, drain)), said, open, heir }
    }

    fn raise(number: Number) {
        kill(Pid::this(), number).unwrap();
    }

    /// A signal, and what is said of it before the next one is sent.
    type Step = (Number, &'static [&'static str]);

    const QUIT: &[Step] = &[(Number::SIGQUIT, &["Drained"])];

    impl Process {
        /// Starts to listen, takes the steps one after the other, and tells what Pingora hears.
        async fn hears(&mut self, steps: &[Step]) -> ShutdownSignal {
            let signals = self.signals.clone();
            let mut heard = Box::pin(async move { signals.recv().await });
            // Its first look registers it; a signal before that would end the tests.
            tokio::time::timeout(Duration::ZERO, &mut heard).await.unwrap_err();
            let heard = tokio::spawn(heard);
            for (number, said) in steps {
                raise(*number);
                for said in *said {
                    assert_eq!(self.says().await, *said, "{steps:?}");
                }
            }
            heard.await.unwrap()
        }

        async fn says(&mut self) -> String {
            tokio::time::timeout(Duration::from_secs(20), self.said.recv()).await.unwrap().unwrap()
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_signal_has_its_meaning() {
        let _alone = ALONE.lock().await;
        let reopen: Step = (Number::SIGUSR1, &["reopen"]);
        let now: Step = (Number::SIGINT, &["Now"]);
        for (steps, expected) in [
            (&[now][..], "FastShutdown"),
            (&[(Number::SIGTERM, &["Soon"])], "GracefulTerminate"),
            (&[(Number::SIGQUIT, &["Drained"])], "GracefulTerminate"),
            (&[(Number::SIGUSR2, &["start", "HandedOver"])], "GracefulUpgrade"),
            (&[(Number::SIGHUP, &["start", "HandedOver"])], "GracefulUpgrade"),
            (&[reopen, reopen, now], "FastShutdown"),
        ] {
            let mut process = process(Duration::from_secs(3600), 1);
            assert_eq!(format!("{:?}", process.hears(steps).await), expected);
            assert!(process.said.is_empty());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stop_does_not_wait_for_a_successor() {
        let _alone = ALONE.lock().await;
        let mut process = process(Duration::from_secs(1), 0);
        process.heir.store(false, Ordering::Relaxed);
        let steps: [Step; 4] = [
            (Number::SIGUSR2, &["start"]),
            (Number::SIGHUP, &[]),
            (Number::SIGUSR1, &["reopen"]),
            (Number::SIGINT, &["Now"]),
        ];
        assert_eq!(format!("{:?}", process.hears(&steps).await), "FastShutdown");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_leaves_when_the_last_request_is_done() {
        let _alone = ALONE.lock().await;
        let mut process = process(Duration::from_secs(3600), 1);
        process.hears(QUIT).await;
        sleep(ANNOUNCE + SETTLE + 2 * LOOK_EVERY).await;
        assert!(process.said.is_empty(), "it left an open request");
        process.open.store(0, Ordering::Relaxed);
        assert_eq!(process.says().await, "leave");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_leaves_when_time_is_up() {
        let _alone = ALONE.lock().await;
        let mut process = process(Duration::from_millis(100), 1);
        process.hears(QUIT).await;
        assert_eq!(process.says().await, "leave");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_leaves_when_asked_twice() {
        let _alone = ALONE.lock().await;
        let mut process = process(Duration::from_secs(3600), 1);
        process.hears(QUIT).await;
        raise(Number::SIGQUIT);
        raise(Number::SIGUSR1);
        assert_eq!(process.says().await, "reopen");
        assert!(process.said.is_empty());
        raise(Number::SIGTERM);
        assert_eq!(process.says().await, "leave");
    }

    #[test]
    fn pingora_waits_longer_than_we_do() {
        for drain in [0, 5, 240] {
            let drain = Duration::from_secs(drain);
            for stop in [Stop::Soon, Stop::Drained] {
                let leaving = Leaving::new(stop, drain).unwrap();
                assert!(
                    Duration::from_secs(grace_period(drain)) > leaving.blind + leaving.grace,
                    "{stop:?} {drain:?}"
                );
            }
            // Pingora's own wait before the grace period is part of the blind time.
            let leaving = Leaving::new(Stop::HandedOver, drain).unwrap();
            assert!(HAND_OVER + Duration::from_secs(grace_period(drain)) > leaving.blind + leaving.grace);
        }
    }
}
