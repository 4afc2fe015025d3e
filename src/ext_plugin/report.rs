//! What operators are told of a runner's processes.

use super::{breaker::State, runner::Runner, stats::Story};

/// One process, as it is now.
#[derive(Clone, Debug)]
pub struct Report {
    /// What became of it and those before it.
    pub story: Story,
    /// Whether it may be called.
    pub ready: bool,
    /// Its circuit breaker.
    pub breaker: State,
    /// Its socket.
    pub socket: String,
    /// Calls that are made to it or wait for it.
    pub in_flight: usize,
    /// Of these, those that wait for a connection.
    pub queued: usize,
    /// Connections that are open.
    pub connections: usize,
}

/// All processes of a runner, by their place.
pub fn of(runner: &Runner) -> Vec<Report> {
    let ready = runner.ready();
    let report = |place: usize| {
        let process = ready.iter().find(|process| process.index() == place);
        Report {
            story: runner.told(place).read(),
            ready: process.is_some(),
            breaker: process.map_or(State::Closed, |process| process.breaker().state()),
            socket: process.map(|process| process.pool().path().display().to_string()).unwrap_or_default(),
            in_flight: process.map_or(0, |process| process.in_flight()),
            queued: process.map_or(0, |process| process.pool().waiting()),
            connections: process.map_or(0, |process| process.pool().open()),
        }
    };
    (0..runner.processes()).map(report).collect()
}
