//! What the Control API tells of the runners of external plugins.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::{
    ext_plugin::{
        breaker::State,
        report::{self, Report},
        runner::Runner,
    },
    vars::clock,
};

/// A runner with its processes.
pub fn runner(runner: &Runner) -> Value {
    let reports = report::of(runner);
    let processes: Vec<Value> = reports.iter().enumerate().map(|(at, one)| process(at, one)).collect();
    json!({
        "name": runner.name(),
        "managed": runner.is_managed(),
        "ready": reports.iter().filter(|one| one.ready).count(),
        "waiting": runner.waiting(),
        "restarts": reports.iter().map(|one| one.story.restarts).sum::<u64>(),
        "processes": processes,
    })
}

fn process(place: usize, report: &Report) -> Value {
    let Report { story, .. } = report;
    let breaker = match report.breaker {
        State::Closed => "closed",
        State::Open => "open",
        State::HalfOpen => "half_open",
    };
    let error = story.last_error.as_ref().map(|(at, text)| json!({"at": time(*at), "text": text}));
    json!({
        "process": place,
        "state": story.stage.name(),
        "pid": (story.pid != 0).then_some(story.pid),
        "generation": story.generation,
        "socket": report.socket,
        "connections": report.connections,
        "in_flight": report.in_flight,
        "queued": report.queued,
        "restarts": story.restarts,
        "failed_starts": story.failed_starts,
        "circuit_breaker": breaker,
        "last_error": error,
    })
}

fn time(at: SystemTime) -> String {
    clock::iso8601(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext_plugin::runner::Limits;

    #[test]
    fn a_runner_is_shown() {
        let shown = runner(&Runner::external("go", "/r.sock".into(), Limits::default()));
        assert_eq!(
            (&shown["name"], &shown["managed"], &shown["ready"]),
            (&json!("go"), &json!(false), &json!(1))
        );
        let one = &shown["processes"][0];
        assert_eq!(
            (&one["state"], &one["pid"], &one["socket"]),
            (&json!("external"), &json!(null), &json!("/r.sock"))
        );
        assert_eq!((&one["circuit_breaker"], &one["last_error"]), (&json!("closed"), &json!(null)));
        let shown = runner(&Runner::managed("py", 2, Limits::default()));
        assert_eq!((&shown["ready"], &shown["processes"][1]["generation"]), (&json!(0), &json!(0)));
    }
}
