//! What every test stands on: the gateway as a process, an upstream that records, a client that sees every byte.
//!
//! Nothing here may know the library: tests see what users see. Nothing here may sleep for a fixed time: what takes
//! a while is waited for with [`eventually`].

pub mod browser;
pub mod certificates;
pub mod chromium;
pub mod client;
pub mod dns;
pub mod gateway;
pub mod opa;
pub mod openbao;
pub mod peer;
pub mod runner;
pub mod slapd;
pub mod tool;
pub mod upstream;
pub mod wolf;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The longest that anything awaited may take, on a busy machine too. The gateway waits less long for upstreams and
/// runners, so that its answer comes before the client gives up.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until a condition holds; fails the test when it does not come true in time.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Holds others up until the test lets them pass.
#[derive(Clone, Default)]
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    /// Lets everybody pass from now on.
    pub fn open(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Waits until it is open.
    #[track_caller]
    pub fn pass(&self) {
        eventually("the gate opens", || self.0.load(Ordering::Relaxed));
    }
}

/// Sets a flag at its end, also when the test fails: other threads that go on until then end as well.
pub struct Finish<'a>(pub &'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A JSON pointer's value, for short assertions.
#[track_caller]
pub fn at<'a>(value: &'a serde_json::Value, pointer: &str) -> &'a serde_json::Value {
    value.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}
