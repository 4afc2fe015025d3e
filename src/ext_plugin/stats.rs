//! What is counted of the calls to a runner, and what is known of its processes.
//!
//! Invariant: whoever calls holds the counters already, so that a call costs a few additions; names are looked at when a
//! configuration is compiled and when somebody reads.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use super::error::{CallError, KINDS};

/// The upper bounds of a histogram's classes, in microseconds; the last class has none.
pub const BOUNDS: [u64; 15] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
    30_000_000,
];

/// Configurations that are counted apart in one runner; what comes later is counted together.
const MAX_SERIES: usize = 256;

/// How they are called then.
const OTHERS: &str = "other";

/// How long things took.
#[derive(Default)]
pub struct Histogram {
    classes: [AtomicU64; BOUNDS.len() + 1],
    /// Microseconds.
    sum: AtomicU64,
}

/// Counters of one plugin of ours with the same plugins of a runner.
pub struct Series {
    /// Our plugin, for example `ext-plugin-pre-req`.
    pub hook: Box<str>,
    /// The runner's plugins in running order; empty: those of its own choice.
    pub plugins: Box<str>,
    /// Calls for requests or responses, waiting and retries included.
    pub calls: Histogram,
    /// Configurations that were made known.
    pub prepared: Histogram,
    /// Questions of the runner, until they were answered.
    pub questions: Histogram,
    /// Calls that had a conf token.
    pub hits: AtomicU64,
    /// Tokens that were fetched because there was none.
    pub misses: AtomicU64,
    /// Tokens that were fetched because theirs had grown old.
    pub renewals: AtomicU64,
    errors: [AtomicU64; KINDS.len()],
}

impl Histogram {
    /// One more.
    pub fn observe(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = BOUNDS.iter().position(|bound| took <= *bound).unwrap_or(BOUNDS.len());
        self.classes[class].fetch_add(1, Relaxed);
        self.sum.fetch_add(took, Relaxed);
    }

    /// How many there were in each class and all those before it, and how long they took together.
    pub fn read(&self) -> ([u64; BOUNDS.len() + 1], Duration) {
        let mut so_far = 0;
        let classes = std::array::from_fn(|class| {
            so_far += self.classes[class].load(Relaxed);
            so_far
        });
        (classes, Duration::from_micros(self.sum.load(Relaxed)))
    }
}

impl Series {
    fn new(hook: &str, plugins: &str) -> Self {
        Self {
            hook: hook.into(),
            plugins: plugins.into(),
            calls: Histogram::default(),
            prepared: Histogram::default(),
            questions: Histogram::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            renewals: AtomicU64::new(0),
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// A call failed.
    pub fn failed(&self, error: &CallError) {
        let kind = error.kind();
        if let Some(at) = KINDS.iter().position(|known| *known == kind) {
            self.errors[at].fetch_add(1, Relaxed);
        }
    }

    /// How many calls failed, by kind; none that did not happen.
    pub fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counted = KINDS.iter().zip(&self.errors).map(|(kind, count)| (*kind, count.load(Relaxed)));
        counted.filter(|(_, count)| *count > 0)
    }
}

/// The counters of one runner.
#[derive(Default)]
pub struct Stats {
    // Locked when a configuration is compiled and when somebody reads, never per call.
    series: Mutex<Vec<Arc<Series>>>,
}

impl Stats {
    /// The counters for a plugin of ours with these plugins of the runner.
    pub fn series(&self, hook: &str, plugins: &str) -> Arc<Series> {
        let mut all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let find =
            |plugins: &str| all.iter().find(|series| *series.hook == *hook && *series.plugins == *plugins);
        let known = find(plugins).or_else(|| find(OTHERS).filter(|_| all.len() >= MAX_SERIES));
        if let Some(known) = known {
            return known.clone();
        }
        let series = Arc::new(Series::new(hook, if all.len() < MAX_SERIES { plugins } else { OTHERS }));
        all.push(series.clone());
        series
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Series>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a process does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Stage {
    /// Somebody else starts it.
    #[default]
    External,
    /// It is not ready yet.
    Starting,
    /// It gets calls.
    Ready,
    /// It ended, and is started after a pause.
    Pausing,
    /// It ends, so that another one can take its place.
    Ending,
}

/// What became of one process and those before it in its place.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// What it does.
    pub stage: Stage,
    /// The runner's own number; 0: there is none, or nobody knows it.
    pub pid: u32,
    /// How many there were that got ready.
    pub generation: u64,
    /// How many of them ended by themselves.
    pub restarts: u64,
    /// How many did not get ready.
    pub failed_starts: u64,
    /// Why something failed the last time, and when.
    pub last_error: Option<(SystemTime, String)>,
}

/// The story of one place.
#[derive(Default)]
pub struct Told {
    // Locked by the one who starts the process, by calls that failed and by readers; calls do not wait for it.
    story: Mutex<Story>,
}

impl Told {
    /// What is known.
    pub fn read(&self) -> Story {
        self.lock().clone()
    }

    /// Goes on with the story.
    pub fn tell(&self, change: impl FnOnce(&mut Story)) {
        change(&mut self.lock());
    }

    /// Something failed.
    pub fn failed(&self, error: &dyn std::fmt::Display) {
        self.tell(|story| story.fails(error));
    }

    /// A call failed; when somebody else looks at the story just now, it is not told.
    pub fn call_failed(&self, error: &CallError) {
        if let Ok(mut story) = self.story.try_lock() {
            story.fails(error);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Story> {
        self.story.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Story {
    fn fails(&mut self, error: &dyn std::fmt::Display) {
        self.last_error = Some((SystemTime::now(), error.to_string()));
    }
}

impl Stage {
    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Stage::External => "external",
            Stage::Starting => "starting",
            Stage::Ready => "ready",
            Stage::Pausing => "pausing",
            Stage::Ending => "ending",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_classes() {
        let histogram = Histogram::default();
        for micros in [0, 50, 51, 30_000_000, 30_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let (classes, sum) = histogram.read();
        assert_eq!((classes[0], classes[1], classes[14], classes[15]), (2, 3, 4, 5));
        assert_eq!(sum, Duration::from_micros(60_000_102));
    }

    #[test]
    fn series_are_shared_and_bounded() {
        let stats = Stats::default();
        let first = stats.series("pre", "a");
        assert!(Arc::ptr_eq(&first, &stats.series("pre", "a")));
        assert!(!Arc::ptr_eq(&first, &stats.series("post", "a")));
        for number in 0..1000 {
            stats.series("pre", &number.to_string());
        }
        assert_eq!(stats.all().len(), MAX_SERIES + 1);
        assert_eq!(&*stats.series("pre", "999").plugins, "other");
        assert!(Arc::ptr_eq(&first, &stats.series("pre", "a")));
    }

    #[test]
    fn errors_are_counted_by_kind() {
        let series = Series::new("pre", "a");
        series.failed(&CallError::Closed);
        series.failed(&CallError::Closed);
        series.failed(&CallError::Timeout(Duration::ZERO));
        assert_eq!(series.errors().collect::<Vec<_>>(), [("closed", 2), ("timeout", 1)]);
    }
}
