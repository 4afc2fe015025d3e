//! What runners print: into the gateway's log, line by line, never more than an operator can read.

use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

/// Longer lines are cut into several. APISIX: 3800 bytes.
const LINE: u64 = 3800;

/// Lines of one runner's process that a second may bring.
const LINES_PER_SECOND: u32 = 200;

/// How many lines pass.
struct Gate {
    since: Instant,
    passed: u32,
    stopped: u64,
}

impl Gate {
    fn new(now: Instant) -> Self {
        Self { since: now, passed: 0, stopped: 0 }
    }

    /// Whether a line passes, and how many were stopped since the last one that did.
    fn passes(&mut self, now: Instant) -> (bool, u64) {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            (self.since, self.passed) = (now, 0);
        }
        if self.passed >= LINES_PER_SECOND {
            self.stopped += 1;
            return (false, 0);
        }
        self.passed += 1;
        (true, std::mem::take(&mut self.stopped))
    }
}

/// Logs what comes until it ends. APISIX logs it as warnings, too.
pub async fn follow(from: impl AsyncRead + Unpin, runner: &str, process: usize) {
    let mut reader = BufReader::new(from);
    let mut gate = Gate::new(Instant::now());
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let (passes, stopped) = gate.passes(Instant::now());
        if stopped > 0 {
            tracing::warn!(runner, process, lines = stopped, "the runner printed more than is logged");
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if passes && !text.is_empty() {
            tracing::warn!(runner, process, "{text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut() {
        let start = Instant::now();
        let mut gate = Gate::new(start);
        let passed = (0..1000).filter(|_| gate.passes(start).0).count();
        assert_eq!(passed, 200);
        assert_eq!(gate.passes(start + Duration::from_secs(1)), (true, 800));
        assert_eq!(gate.passes(start + Duration::from_secs(1)), (true, 0));
    }
}
