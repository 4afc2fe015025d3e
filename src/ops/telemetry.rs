//! The error log: what the gateway says of itself. APISIX: `nginx_config.error_log*`.
//!
//! Lines of `tracing`, and of crates that use `log`, go to a file or to standard error. Pingora reports every broken
//! connection as a warning or error; those are of use only to somebody who looks for them, so they show from level
//! info on. Invariant: nothing is written to standard output, and colours only to a terminal.

use std::{
    fmt,
    fs::File,
    io::{self, IsTerminal, Write},
    panic,
    sync::{Arc, PoisonError, RwLock},
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_log::NormalizeEvent;
use tracing_subscriber::{
    Layer,
    fmt::MakeWriter,
    layer::{Context, Filter, SubscriberExt},
    registry::LookupSpan,
    util::{SubscriberInitExt, TryInitError},
};

use super::log_file::{LogFile, LogFileError};
use crate::settings::{Settings, types::LogLevel};

/// What Pingora logs as an error, though a client alone can cause it.
const CHATTER: [&str; 4] =
    ["Downstream handshake", "H2 handshake error", "HTTP server fails to", "TLS shutdown failed"];

/// The error log. Clones write to the same file.
#[derive(Clone)]
pub struct ErrorLog(Arc<Shared>);

struct Shared {
    target: LogFile,
    /// Written only when the file is reopened.
    file: RwLock<Arc<File>>,
}

/// Why there can be no error log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The file cannot be opened.
    #[error(transparent)]
    File(#[from] LogFileError),
    /// Somebody has set up logging before.
    #[error("logging is already set up: {0}")]
    Taken(#[from] TryInitError),
}

/// Sends all that is logged from now on to the log that the settings name; panics, too.
///
/// # Errors
/// When the file cannot be opened, or when it is called twice.
pub fn init(settings: &Settings) -> Result<ErrorLog, TelemetryError> {
    let nginx = &settings.nginx_config;
    let log = ErrorLog::open(LogFile::parse(&nginx.error_log, |path| settings.resolve(path))?)?;
    subscriber(&log, nginx.error_log_level).try_init()?;
    panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string);
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let what = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
        tracing::error!(at, panic = what, "the gateway has a fault; please report it");
    }));
    Ok(log)
}

impl ErrorLog {
    fn open(target: LogFile) -> Result<ErrorLog, LogFileError> {
        let file = RwLock::new(Arc::new(target.open()?));
        Ok(ErrorLog(Arc::new(Shared { target, file })))
    }

    /// Opens the file again: somebody has moved it away. nginx: SIGUSR1.
    pub fn reopen(&self) {
        match self.0.target.open() {
            Ok(file) => *self.0.file.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(file),
            Err(error) => tracing::error!(%error, "error log goes on in the old file"),
        }
    }

    fn is_terminal(&self) -> bool {
        self.0.file.read().unwrap_or_else(PoisonError::into_inner).is_terminal()
    }
}

/// One event on its way.
pub struct Line(Arc<File>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.0).flush()
    }
}

impl MakeWriter<'_> for ErrorLog {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line(self.0.file.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// What is logged from now on goes to standard error, a short line each: for commands that people wait for.
pub fn to_terminal() {
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).without_time().with_target(false);
    let lines = lines.with_ansi(io::stderr().is_terminal());
    // Somebody who has set one before keeps it.
    let _ = tracing::subscriber::set_global_default(
        tracing_subscriber::registry().with(lines.with_filter(LevelFilter::WARN)),
    );
}

fn subscriber(log: &ErrorLog, level: LogLevel) -> impl Subscriber + Send + Sync + 'static {
    let mut lines = tracing_subscriber::fmt::layer().with_writer(log.clone());
    // Left alone on a terminal, where NO_COLOR still counts.
    if !log.is_terminal() {
        lines = lines.with_ansi(false);
    }
    tracing_subscriber::registry().with(lines.with_filter(Tamed::new(level)))
}

/// Which events are worth a line.
struct Tamed {
    own: LevelFilter,
    pingora: LevelFilter,
    others: LevelFilter,
}

impl Tamed {
    fn new(level: LogLevel) -> Tamed {
        let (own, pingora, others) = match level {
            // Never Pingora's own debug lines: they show whole request heads, credentials and all.
            LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::INFO, LevelFilter::INFO),
            LogLevel::Info | LogLevel::Notice => (LevelFilter::INFO, LevelFilter::WARN, LevelFilter::WARN),
            LogLevel::Warn => (LevelFilter::WARN, LevelFilter::ERROR, LevelFilter::WARN),
            // There is nothing above an error here.
            LogLevel::Error | LogLevel::Crit | LogLevel::Alert | LogLevel::Emerg => {
                (LevelFilter::ERROR, LevelFilter::ERROR, LevelFilter::ERROR)
            }
        };
        Tamed { own, pingora, others }
    }

    fn shows(&self, meta: &Metadata<'_>) -> bool {
        let limit = match meta.target() {
            target if is_pingora(target) => self.pingora,
            target if target.starts_with(env!("CARGO_CRATE_NAME")) => self.own,
            _ => self.others,
        };
        *meta.level() <= limit
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Filter<S> for Tamed {
    fn enabled(&self, meta: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.shows(meta)
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        // Events that come from `log`, as Pingora's do, show their origin only here.
        let normalized = event.normalized_metadata();
        let meta = normalized.as_ref().unwrap_or_else(|| event.metadata());
        if !self.shows(meta) {
            return false;
        }
        if !is_pingora(meta.target()) || self.own >= LevelFilter::INFO {
            return true;
        }
        let mut message = Message::default();
        event.record(&mut message);
        !CHATTER.iter().any(|chatter| message.0.starts_with(chatter))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // So that a `debug!` on the way of a request costs one load of an integer.
        Some(self.own.max(self.pingora).max(self.others))
    }
}

fn is_pingora(target: &str) -> bool {
    target.starts_with("pingora")
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use tracing_log::log::{Level, Record};

    use super::*;

    fn logged(level: LogLevel, say: impl FnOnce(&ErrorLog, PathBuf)) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("error.log");
        let log = ErrorLog::open(LogFile::Path(path.clone())).unwrap();
        tracing::subscriber::with_default(subscriber(&log, level), || say(&log, path.clone()));
        fs::read_to_string(path).unwrap()
    }

    /// What is left of a line without its time.
    fn line(written: &str) -> &str {
        written.split_once(' ').map_or("", |(_, rest)| rest.trim())
    }

    #[test]
    fn a_line_has_its_fields_and_no_colour() {
        let written = logged(LogLevel::Warn, |_, _| {
            tracing::warn!(target: "portcullis::x", route = %"r1", status = 502, "runner call failed");
        });
        assert_eq!(line(&written), "WARN portcullis::x: runner call failed route=r1 status=502");
        assert_eq!(written.lines().count(), 1);
    }

    /// As Pingora does.
    fn say(level: Level, target: &str, text: &str) {
        let args = format_args!("{text}");
        let record = Record::builder().level(level).target(target).args(args).build();
        tracing_log::format_trace(&record).unwrap();
    }

    #[test]
    fn levels() {
        #[track_caller]
        fn check(level: LogLevel, expected: &str) {
            let written = logged(level, |_, _| {
                tracing::error!(target: "portcullis", "E");
                tracing::warn!(target: "portcullis", "W");
                tracing::info!(target: "portcullis", "I");
                tracing::debug!(target: "portcullis", "D");
                tracing::trace!(target: "portcullis", "T");
                say(Level::Error, "pingora_proxy", "pe");
                say(Level::Warn, "pingora_proxy", "pw");
                say(Level::Info, "pingora_proxy", "pi");
                say(Level::Debug, "pingora_proxy", "Sending header to upstream");
                say(Level::Error, "pingora_core::services::listening", "Downstream handshake error x");
                say(Level::Error, "pingora_core::services::listening", "Accept() failed");
                tracing::warn!(target: "hickory", "hw");
                tracing::info!(target: "hickory", "hi");
            });
            let said: Vec<&str> =
                written.lines().filter_map(|line| line.rsplit_once(": ")).map(|(_, said)| said).collect();
            assert_eq!(said.join(","), expected, "{level:?}");
        }
        check(LogLevel::Emerg, "E,pe,Accept() failed");
        check(LogLevel::Error, "E,pe,Accept() failed");
        check(LogLevel::Warn, "E,W,pe,Accept() failed,hw");
        check(LogLevel::Notice, "E,W,I,pe,pw,Downstream handshake error x,Accept() failed,hw");
        check(LogLevel::Debug, "E,W,I,D,pe,pw,pi,Downstream handshake error x,Accept() failed,hw,hi");
    }

    #[test]
    fn reopening_follows_a_moved_file() {
        let written = logged(LogLevel::Warn, |log, path| {
            tracing::warn!(target: "portcullis", "old");
            fs::rename(&path, path.with_extension("1")).unwrap();
            tracing::warn!(target: "portcullis", "still old");
            log.reopen();
            tracing::warn!(target: "portcullis", "new");
            let old = fs::read_to_string(path.with_extension("1")).unwrap();
            assert_eq!(old.lines().count(), 2);
        });
        assert_eq!(line(&written), "WARN portcullis: new");
    }
}
