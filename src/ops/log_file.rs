//! Where a log goes: a file that can be reopened, or a stream of the process.
//!
//! Invariant: a file is only ever appended to, so several processes may share it during a hand-over.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

/// Where a log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFile {
    /// A file; its directory is made.
    Path(PathBuf),
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// nginx can send logs to syslog or keep them in memory, the gateway cannot.
    #[error("cannot log to {0}: name a file, /dev/stdout or /dev/stderr")]
    Kind(String),
    /// The operating system refuses.
    #[error("cannot open the log {}: {source}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl LogFile {
    /// Reads a setting; `resolve` says from where relative paths count.
    ///
    /// # Errors
    /// For nginx's `syslog:` and `memory:`.
    pub fn parse(setting: &str, resolve: impl FnOnce(&Path) -> PathBuf) -> Result<LogFile, LogFileError> {
        match setting {
            "/dev/stdout" | "stdout" => Ok(LogFile::Stdout),
            "/dev/stderr" | "stderr" => Ok(LogFile::Stderr),
            other if other.starts_with("syslog:") || other.starts_with("memory:") => {
                Err(LogFileError::Kind(other.to_owned()))
            }
            path => Ok(LogFile::Path(resolve(Path::new(path)))),
        }
    }

    /// Opens it, again after it was moved away.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn open(&self) -> Result<File, LogFileError> {
        let opened = match self {
            LogFile::Path(path) => append_to(path),
            // Not by name: /dev/stdout cannot be opened when it is a socket, as under systemd.
            LogFile::Stdout => io::stdout().as_fd().try_clone_to_owned().map(File::from),
            LogFile::Stderr => io::stderr().as_fd().try_clone_to_owned().map(File::from),
        };
        opened.map_err(|source| LogFileError::Open { path: self.name().to_owned(), source })
    }

    /// Its name, for messages.
    pub fn name(&self) -> &Path {
        match self {
            LogFile::Path(path) => path,
            LogFile::Stdout => Path::new("/dev/stdout"),
            LogFile::Stderr => Path::new("/dev/stderr"),
        }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    OpenOptions::new().append(true).create(true).open(path)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn settings() {
        #[track_caller]
        fn check(setting: &str, expected: Option<LogFile>) {
            let parsed = LogFile::parse(setting, |path| Path::new("/home").join(path));
            assert_eq!(parsed.ok(), expected, "{setting}");
        }
        check("logs/access.log", Some(LogFile::Path("/home/logs/access.log".into())));
        check("/var/log/a.log", Some(LogFile::Path("/var/log/a.log".into())));
        check("/dev/stdout", Some(LogFile::Stdout));
        check("/dev/stderr", Some(LogFile::Stderr));
        check("stderr", Some(LogFile::Stderr));
        check("/dev/null", Some(LogFile::Path("/dev/null".into())));
        check("syslog:server=127.0.0.1", None);
        check("memory:32m", None);
    }

    #[test]
    fn a_file_is_made_with_its_directory_and_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/x.log");
        let log = LogFile::Path(path.clone());
        log.open().unwrap().write_all(b"one\n").unwrap();
        log.open().unwrap().write_all(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn streams_and_refusals() {
        LogFile::Stderr.open().unwrap();
        let refused = LogFile::Path("/proc/none/x.log".into()).open().unwrap_err();
        assert!(refused.to_string().starts_with("cannot open the log /proc/none/x.log: "), "{refused}");
    }
}
