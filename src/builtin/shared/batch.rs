//! The batch processor that loggers share: entries wait in memory and leave in batches, never on the request path.
//!
//! APISIX: utils/batch-processor.lua, utils/batch-processor-manager.lua. A request pushes its entry and goes on. One
//! thread for all loggers collects, sends, tries again and gives up; a plugin says only how a batch is sent.
//!
//! Invariant: memory is bounded. Of each plugin at most `max_pending_entries` entries exist, queued or on their way;
//! those beyond are dropped and counted in `portcullis_log_entries_dropped_total`.
//!
//! Differs from APISIX: what waits is sent when the process ends ([`flush`]) or its configuration goes; a batch that is
//! `inactive_timeout` old is sent then, not at the next look of a timer; batches of one configuration that are on
//! their way at once are bounded in number.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{
    runtime::{Builder, Handle},
    sync::{Notify, Semaphore, mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    plugin::{
        env::BuildEnv,
        exchange::Exchange,
        metrics::{Metrics, batches::Labels},
    },
    vars::var::Var,
};

/// How many batches of one configuration are on their way at once.
const AT_ONCE: usize = 16;
/// APISIX: `DEFAULT_MAX_PENDING_ENTRIES`.
const MAX_PENDING: usize = 8192;
/// What is lost is told this often at most, in seconds.
const TELL_EVERY: u64 = 1;

/// The options that every logger with batches has. APISIX: `batch-processor.lua schema`.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// Names the processor in logs and metrics; by default the plugin's name in words.
    pub name: Option<String>,
    /// How often a batch that could not be sent is tried again.
    #[serde(default)]
    pub max_retry_count: u32,
    /// Seconds between tries.
    #[serde(default = "one")]
    pub retry_delay: u64,
    /// Seconds after its first entry at which a batch is sent.
    #[serde(default = "sixty")]
    pub buffer_duration: u64,
    /// Seconds after its last entry at which a batch is sent.
    #[serde(default = "five")]
    pub inactive_timeout: u64,
    /// Entries with which a batch is full.
    #[serde(default = "thousand")]
    pub batch_max_size: usize,
}

fn one() -> u64 {
    1
}

fn five() -> u64 {
    5
}

fn sixty() -> u64 {
    60
}

fn thousand() -> usize {
    1000
}

/// Adds the options of batches to a plugin's schema. APISIX: `wrap_schema`.
pub fn wrap_schema(mut schema: Value, name: &str) -> Value {
    let options = json!({
        "name": {"type": "string", "default": name},
        "max_retry_count": {"type": "integer", "minimum": 0, "default": 0},
        "retry_delay": {"type": "integer", "minimum": 0, "default": 1},
        "buffer_duration": {"type": "integer", "minimum": 1, "default": 60},
        "inactive_timeout": {"type": "integer", "minimum": 1, "default": 5},
        "batch_max_size": {"type": "integer", "minimum": 1, "default": 1000}
    });
    let (Some(properties), Value::Object(options)) = (properties(&mut schema), options) else {
        return schema;
    };
    // In front, where APISIX finds fault with them; a plugin's own rule for one of them wins.
    let own = std::mem::replace(properties, options);
    properties.extend(own);
    schema
}

/// Adds the bound of what waits to the schema of a plugin's metadata. APISIX: `wrap_metadata_schema`.
pub fn wrap_metadata_schema(mut schema: Value) -> Value {
    if let Some(properties) = properties(&mut schema) {
        let rule = json!({
            "type": "integer",
            "minimum": 1,
            "default": MAX_PENDING,
            "description": "maximum number of entries waiting to be processed; new entries are discarded while the backlog exceeds it"
        });
        properties.insert("max_pending_entries".into(), rule);
    }
    schema
}

fn properties(schema: &mut Value) -> Option<&mut Map<String, Value>> {
    schema.get_mut("properties")?.as_object_mut()
}

/// Why a batch was not taken.
#[derive(Debug, Default)]
pub struct Failure {
    /// What happened, for the log; it holds no secret and nothing of the entries.
    pub reason: String,
    /// How many of the batch's first entries were taken all the same.
    pub taken: usize,
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self { reason, taken: 0 }
    }
}

/// The future of one try.
pub type Sending<'b> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'b>>;

/// Sends a batch. Implemented by each logger.
pub trait Deliver: Send + Sync + 'static {
    /// One try, which must end by itself.
    fn deliver<'b>(&'b self, entries: &'b [String]) -> Sending<'b>;
}

/// The entries of one configuration on their way.
pub struct Batch {
    shared: Arc<Shared>,
    // Made with the first entry: a configuration that is only checked starts nothing.
    entrance: OnceLock<mpsc::UnboundedSender<String>>,
}

struct Shared {
    plugin: &'static str,
    name: String,
    config: Config,
    max_pending: usize,
    backlog: Arc<Backlog>,
    permits: Semaphore,
    metrics: Arc<Metrics>,
    /// Values of `apisix_batch_process_entries`' labels: those of the first entry, as in APISIX.
    labels: OnceLock<Labels>,
    deliver: Box<dyn Deliver>,
}

/// What waits of one plugin, whatever the configuration.
#[derive(Default)]
struct Backlog {
    pending: AtomicUsize,
    untold: AtomicU64,
    told: AtomicU64,
}

impl Batch {
    /// Prepares the batches of one configuration; nothing runs before the first entry.
    pub fn new(plugin: &'static str, config: Config, env: &BuildEnv<'_>, deliver: impl Deliver) -> Self {
        let configured = env.metadata.and_then(|metadata| metadata.get("max_pending_entries")?.as_u64());
        let max_pending = configured.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(MAX_PENDING);
        let name = config.name.clone().unwrap_or_else(|| plugin.replace('-', " "));
        let shared = Shared {
            plugin,
            name,
            config,
            max_pending,
            backlog: env.carry.state(plugin, Backlog::default),
            permits: Semaphore::new(AT_ONCE),
            metrics: env.metrics.clone(),
            labels: OnceLock::new(),
            deliver: Box::new(deliver),
        };
        Self { shared: Arc::new(shared), entrance: OnceLock::new() }
    }

    /// Takes an entry, a JSON text, without waiting. One too many is dropped and counted.
    pub fn push(&self, entry: String, x: &Exchange<'_>) {
        self.shared.labels.get_or_init(|| {
            let text = |var| x.var(&var).unwrap_or_default().into_owned();
            [self.shared.name.clone(), text(Var::RouteId), text(Var::ServerAddr)]
        });
        self.take(entry);
    }

    fn take(&self, entry: String) {
        let (shared, outbox) = (&self.shared, outbox());
        if shared.backlog.pending.load(Relaxed) >= shared.max_pending {
            return shared.drop_new();
        }
        shared.backlog.pending.fetch_add(1, Relaxed);
        outbox.pending.fetch_add(1, Relaxed);
        let entrance = self.entrance.get_or_init(|| {
            let (entrance, entries) = mpsc::unbounded_channel();
            if let Some(handle) = &outbox.handle {
                handle.spawn(collect(shared.clone(), entries, outbox.leaving.subscribe()));
            }
            entrance
        });
        if entrance.send(entry).is_err() {
            shared.settle(1);
            shared.drop_new();
        }
    }

    /// Whether batches have one entry each: it is then sent as it is, not in a list.
    pub fn is_single(&self) -> bool {
        self.shared.config.batch_max_size == 1
    }
}

/// What the loggers of this process share: a thread, and the count of what waits.
struct Outbox {
    // `None` only if the system has no thread to give; entries are then dropped and counted.
    handle: Option<Handle>,
    pending: AtomicUsize,
    emptied: Notify,
    leaving: watch::Sender<bool>,
}

static OUTBOX: OnceLock<Outbox> = OnceLock::new();

fn outbox() -> &'static Outbox {
    OUTBOX.get_or_init(Outbox::start)
}

impl Outbox {
    fn start() -> Self {
        let handle = Self::thread();
        if handle.is_none() {
            tracing::error!("no thread for loggers: what they should send is dropped");
        }
        let (leaving, _) = watch::channel(false);
        Self { handle, pending: AtomicUsize::new(0), emptied: Notify::new(), leaving }
    }

    fn thread() -> Option<Handle> {
        let runtime = Builder::new_current_thread().enable_all().build().ok()?;
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new().name("loggers".into());
        thread.spawn(move || runtime.block_on(std::future::pending::<()>())).ok()?;
        Some(handle)
    }
}

/// Sends what waits without waiting for more, and ends when all of it is gone or the time is up. Called when the process
/// ends; blocks.
pub fn flush(limit: Duration) {
    let Some(outbox) = OUTBOX.get() else { return };
    outbox.leaving.send_replace(true);
    let Some(handle) = &outbox.handle else { return };
    let (done, wait) = std::sync::mpsc::channel();
    handle.spawn(async move {
        loop {
            let emptied = outbox.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if outbox.pending.load(Relaxed) == 0 {
                break;
            }
            emptied.await;
        }
        // Nobody listens when the time is up.
        let _ = done.send(());
    });
    if wait.recv_timeout(limit).is_err() {
        let entries = outbox.pending.load(Relaxed);
        tracing::error!(entries, "log entries are lost: their servers did not take them in time");
    }
}

/// Collects the entries of one configuration until it is gone and all of them are on their way.
async fn collect(
    shared: Arc<Shared>,
    mut entries: mpsc::UnboundedReceiver<String>,
    mut leaving: watch::Receiver<bool>,
) {
    let inactive = Duration::from_secs(shared.config.inactive_timeout);
    let duration = Duration::from_secs(shared.config.buffer_duration);
    let mut buffer: Vec<String> = Vec::new();
    let (mut first, mut last) = (Instant::now(), Instant::now());
    let mut left = *leaving.borrow();
    loop {
        let due = (last + inactive).min(first + duration);
        tokio::select! {
            entry = entries.recv() => {
                let Some(entry) = entry else { break };
                last = Instant::now();
                if buffer.is_empty() {
                    first = last;
                }
                buffer.push(entry);
                let full = buffer.len() >= shared.config.batch_max_size;
                if full || (left && entries.is_empty()) {
                    shared.clone().send(&mut buffer, &leaving);
                } else {
                    shared.show(buffer.len());
                }
            }
            () = sleep_until(due), if !buffer.is_empty() => shared.clone().send(&mut buffer, &leaving),
            _ = leaving.changed(), if !left => {
                left = true;
                shared.clone().send(&mut buffer, &leaving);
            }
        }
    }
    shared.clone().send(&mut buffer, &leaving);
    if let Some(labels) = shared.labels.get() {
        shared.metrics.batches.remove(labels);
    }
}

impl Shared {
    /// Lets a batch go.
    fn send(self: Arc<Self>, buffer: &mut Vec<String>, leaving: &watch::Receiver<bool>) {
        if buffer.is_empty() {
            return;
        }
        let batch = std::mem::take(buffer);
        self.show(0);
        tokio::spawn(Self::carry(self, batch, leaving.clone()));
    }

    /// Tries until the batch is taken or was tried often enough.
    async fn carry(self: Arc<Self>, mut batch: Vec<String>, mut leaving: watch::Receiver<bool>) {
        // Never closed, so this cannot fail.
        let Ok(_permit) = self.permits.acquire().await else { return };
        let mut tries = 0;
        loop {
            let Err(failure) = self.deliver.deliver(&batch).await else { return self.settle(batch.len()) };
            let taken = failure.taken.min(batch.len());
            batch.drain(..taken);
            self.settle(taken);
            tries += 1;
            let (plugin, name) = (self.plugin, &self.name);
            if tries > self.config.max_retry_count {
                tracing::error!(plugin, name, entries = batch.len(), reason = %failure.reason, "log entries are dropped: their server does not take them");
                self.count_lost("failed", batch.len());
                return self.settle(batch.len());
            }
            tracing::warn!(plugin, name, entries = batch.len(), reason = %failure.reason, "log entries will be sent again");
            let left = *leaving.borrow();
            tokio::select! {
                () = sleep(Duration::from_secs(self.config.retry_delay)), if !left => {}
                _ = leaving.changed(), if !left => {}
                else => {}
            }
        }
    }

    /// Entries are no longer on their way.
    fn settle(&self, count: usize) {
        self.backlog.pending.fetch_sub(count, Relaxed);
        let outbox = outbox();
        if outbox.pending.fetch_sub(count, Relaxed) == count {
            outbox.emptied.notify_waiters();
        }
    }

    /// There is no room for an entry.
    fn drop_new(&self) {
        self.count_lost("backlog", 1);
        self.backlog.untold.fetch_add(1, Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let told = self.backlog.told.load(Relaxed);
        if now >= told + TELL_EVERY && self.backlog.told.compare_exchange(told, now, Relaxed, Relaxed).is_ok()
        {
            let entries = self.backlog.untold.swap(0, Relaxed);
            let plugin = self.plugin;
            tracing::error!(
                plugin,
                entries,
                max_pending = self.max_pending,
                "log entries are dropped: too many wait"
            );
        }
    }

    fn count_lost(&self, reason: &'static str, count: usize) {
        self.metrics.lost_entries.with_label_values(&[self.plugin, reason]).inc_by(count as u64);
    }

    /// APISIX: `set_metrics`.
    fn show(&self, waiting: usize) {
        if let Some(labels) = self.labels.get() {
            self.metrics.batches.set(labels, waiting);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc::Sender};

    use super::*;
    use crate::plugin::testing::Setup;

    /// Answers tries in turn and tells of each.
    struct Script {
        answers: Mutex<Vec<Result<(), Failure>>>,
        tried: Sender<Vec<String>>,
    }

    impl Deliver for Script {
        fn deliver<'b>(&'b self, entries: &'b [String]) -> Sending<'b> {
            let answer = self.answers.lock().unwrap().pop().unwrap_or(Ok(()));
            self.tried.send(entries.to_vec()).unwrap();
            Box::pin(async move { answer })
        }
    }

    fn config(conf: Value) -> Config {
        serde_json::from_value(conf).unwrap()
    }

    /// Pushes entries and tells the tries; `answers` are given from the last on.
    #[track_caller]
    fn check(conf: Value, answers: Vec<Result<(), Failure>>, pushed: &[&str], tries: &[&[&str]]) {
        let (tried, seen) = std::sync::mpsc::channel();
        let setup = Setup::new();
        let script = Script { answers: Mutex::new(answers), tried };
        let batch = Batch::new("test", config(conf), &setup.build_env(), script);
        pushed.iter().for_each(|entry| batch.take((*entry).to_owned()));
        for expected in tries {
            let entries = seen.recv_timeout(Duration::from_secs(30)).expect("a try");
            assert_eq!(&entries, expected);
        }
        drop(batch);
    }

    #[test]
    fn a_full_batch_leaves_at_once() {
        let conf = json!({"batch_max_size": 2, "inactive_timeout": 600, "buffer_duration": 600});
        check(conf, vec![], &["1", "2", "3", "4"], &[&["1", "2"], &["3", "4"]]);
        check(json!({"batch_max_size": 1}), vec![], &["1", "2"], &[&["1"], &["2"]]);
    }

    #[test]
    fn the_rest_leaves_when_nothing_more_comes() {
        check(json!({"inactive_timeout": 1}), vec![], &["1", "2"], &[&["1", "2"]]);
        let conf = json!({"inactive_timeout": 600, "buffer_duration": 1});
        check(conf, vec![], &["1", "2"], &[&["1", "2"]]);
    }

    #[test]
    fn the_rest_leaves_when_the_configuration_goes() {
        let (tried, seen) = std::sync::mpsc::channel();
        let setup = Setup::new();
        let conf = config(json!({"inactive_timeout": 600, "buffer_duration": 600}));
        let script = Script { answers: Mutex::default(), tried };
        let batch = Batch::new("test", conf, &setup.build_env(), script);
        batch.take("1".into());
        drop(batch);
        assert_eq!(seen.recv_timeout(Duration::from_secs(30)).unwrap(), ["1"]);
    }

    #[test]
    fn what_was_not_taken_is_sent_again() {
        let refused = |taken| Err(Failure { reason: "no".into(), taken });
        let conf = json!({"batch_max_size": 3, "max_retry_count": 2, "retry_delay": 0});
        let all: &[&str] = &["1", "2", "3"];
        check(conf.clone(), vec![Ok(()), refused(0)], all, &[all, all]);
        check(conf.clone(), vec![Ok(()), refused(2)], all, &[all, &["3"]]);
        check(conf, vec![refused(0), refused(0), refused(0)], all, &[all, all, all]);
    }

    #[test]
    fn too_many_are_dropped_and_counted() {
        let (tried, _seen) = std::sync::mpsc::channel();
        let setup = Setup::new().metadata(json!({"max_pending_entries": 3}));
        let conf = config(json!({"inactive_timeout": 600, "buffer_duration": 600}));
        let script = Script { answers: Mutex::default(), tried };
        let batch = Batch::new("bounded", conf, &setup.build_env(), script);
        (0..5).for_each(|entry| batch.take(entry.to_string()));
        let lost = &setup.build_env().metrics.lost_entries;
        assert_eq!(lost.with_label_values(&["bounded", "backlog"]).get(), 2);
    }
}
