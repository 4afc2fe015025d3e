//! The access log: one line for each request. APISIX: `nginx_config.http.access_log*`.
//!
//! The format is compiled by `log_format`; lines lie in a buffer of the thread that made them until `sink` writes
//! them. Invariant: a request never waits for the disk; lines are lost rather than requests delayed, and counted.
//!
//! Differs from APISIX: buffered lines are written after one second, not three.

use std::{sync::Arc, time::Duration};

use super::{
    log_file::{LogFile, LogFileError},
    log_format::{Format, FormatError},
    sink::Sink,
};
use crate::{plugin::exchange::Exchange, settings::Settings};

/// How long a line may lie in a buffer.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// How long the end of the process waits for the disk.
const LAST_FLUSH: Duration = Duration::from_secs(5);

/// See the module. Clones write to the same file.
#[derive(Clone)]
pub struct AccessLog {
    format: Arc<Format>,
    sink: Arc<Sink>,
}

/// Why there can be no access log.
#[derive(Debug, thiserror::Error)]
pub enum AccessLogError {
    /// The format cannot be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The file cannot be opened.
    #[error(transparent)]
    File(#[from] LogFileError),
}

impl AccessLog {
    /// Opens the log that the settings ask for, if they do. Starts a thread, so not before the process has
    /// daemonized.
    ///
    /// # Errors
    /// When the format or the file is unusable.
    pub fn open(settings: &Settings) -> Result<Option<AccessLog>, AccessLogError> {
        let http = &settings.nginx_config.http;
        if !http.enable_access_log || http.access_log == "off" {
            return Ok(None);
        }
        let format = Format::parse(&http.access_log_format, http.access_log_format_escape)?;
        let file = LogFile::parse(&http.access_log, |path| settings.resolve(path))?;
        let limit = usize::try_from(http.access_log_buffer).unwrap_or(usize::MAX).min(16 << 20);
        let sink = Sink::open(file, limit, FLUSH_EVERY)?;
        Ok(Some(AccessLog { format: Arc::new(format), sink: Arc::new(sink) }))
    }

    /// Writes the line of an exchange that is over.
    pub fn write(&self, x: &Exchange<'_>) {
        self.sink.line(|out| self.format.write(out, x));
    }

    /// Opens the file again: somebody has moved it away. nginx: SIGUSR1.
    pub fn reopen(&self) {
        self.sink.reopen();
    }

    /// Writes what lies in buffers, before the process ends. Waits at most a few seconds for the disk.
    pub fn flush(&self) {
        if !self.sink.flush(LAST_FLUSH) {
            tracing::warn!("the end of the access log is not written: the disk does not answer");
        }
    }

    /// Lines lost since the start, because the disk failed or did not keep up.
    pub fn dropped(&self) -> u64 {
        self.sink.dropped()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{
        plugin::testing::exchange,
        settings::{from_text, types::LogEscape},
    };

    fn settings(home: &Path, http: &str) -> Settings {
        let text = format!("nginx_config:\n  http: {http}\n");
        let loaded = from_text(&text, Some(&home.join("conf/config.yaml")), &|_| None);
        assert!(loaded.faults.is_empty(), "{:?}", loaded.faults);
        loaded.settings
    }

    #[test]
    fn settings_say_where_and_how() {
        let home = tempfile::tempdir().unwrap();
        let settings =
            settings(home.path(), "{access_log_format: '{\"u\":\"$uri\"}', access_log_format_escape: json}");
        assert_eq!(settings.nginx_config.http.access_log_format_escape, LogEscape::Json);
        let log = AccessLog::open(&settings).unwrap().unwrap();
        let clone = log.clone();
        exchange("GET /a%22b HTTP/1.1\r\nHost: a\r\n\r\n", async |x| {
            x.ctx.path = Some("/a\"b".into());
            log.write(x);
            clone.write(x);
        });
        log.flush();
        assert_eq!(log.dropped(), 0);
        let written = fs::read_to_string(home.path().join("logs/access.log")).unwrap();
        assert_eq!(written, "{\"u\":\"/a\\\"b\"}\n".repeat(2));
    }

    #[test]
    fn it_can_be_off() {
        let home = tempfile::tempdir().unwrap();
        for http in ["{enable_access_log: false}", "{access_log: 'off'}"] {
            assert!(AccessLog::open(&settings(home.path(), http)).unwrap().is_none(), "{http}");
        }
    }

    #[test]
    fn faults_are_told() {
        let home = tempfile::tempdir().unwrap();
        #[track_caller]
        fn check(settings: &Settings, expected: &str) {
            let error = AccessLog::open(settings).map(drop).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        check(&settings(home.path(), "{access_log_format: 'a $ b'}"), "invalid access_log_format: ");
        check(&settings(home.path(), "{access_log: 'syslog:server=x'}"), "cannot log to syslog:server=x");
        check(&settings(home.path(), "{access_log: /proc/none/x}"), "cannot open the log /proc/none/x");
    }
}
