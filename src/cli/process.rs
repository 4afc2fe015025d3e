//! Finds the running gateway by its pid file and sends it signals.
//!
//! Invariant: a process that is not a gateway is never signalled, even when its number stands in a stale pid file.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli::Exit;

/// Why the running gateway was not signalled.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// There is no pid file.
    #[error("not running: there is no {}", .0.display())]
    NoFile(PathBuf),
    /// The pid file names a process that is gone.
    #[error("not running: {} names process {pid}, which is gone", file.display())]
    Gone {
        /// The pid file.
        file: PathBuf,
        /// The number in it.
        pid: i32,
    },
    /// The pid file names a process of another program.
    #[error("not running: {} names process {pid}, which is {program}", file.display())]
    Other {
        /// The pid file.
        file: PathBuf,
        /// The number in it.
        pid: i32,
        /// The name of that process.
        program: String,
    },
    /// The pid file holds no number.
    #[error("{} holds no process number", .0.display())]
    NoNumber(PathBuf),
    /// The pid file cannot be read.
    #[error("{}: {source}", file.display())]
    Unreadable {
        /// The pid file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The signal was refused.
    #[error("process {pid} cannot be signalled: {source}")]
    Refused {
        /// The process.
        pid: i32,
        /// Why.
        source: Errno,
    },
}

impl SignalError {
    /// The exit code of a command that failed with this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoFile(_) | Self::Gone { .. } | Self::Other { .. } => Exit::NotRunning,
            Self::NoNumber(_) | Self::Unreadable { .. } | Self::Refused { .. } => Exit::Refused,
        }
    }
}

/// Ends the gateway at once; gives its process number.
///
/// # Errors
/// When there is none, or it may not be signalled.
pub fn stop(pid_file: &Path) -> Result<i32, SignalError> {
    send(pid_file, Some(Signal::SIGTERM))
}

/// Ends the gateway after its open requests; gives its process number.
///
/// # Errors
/// As [`stop`].
pub fn quit(pid_file: &Path) -> Result<i32, SignalError> {
    send(pid_file, Some(Signal::SIGQUIT))
}

/// The process number of the running gateway.
///
/// # Errors
/// As [`stop`].
pub fn running(pid_file: &Path) -> Result<i32, SignalError> {
    send(pid_file, None)
}

fn send(file: &Path, signal: Option<Signal>) -> Result<i32, SignalError> {
    let pid = read(file)?;
    let file = file.to_path_buf();
    // Nothing is sent yet: this only asks whether the process is there.
    match kill(Pid::from_raw(pid), None) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Err(SignalError::Gone { file, pid }),
        Err(source) => return Err(SignalError::Refused { pid, source }),
    }
    if let Some(program) = other_program(pid) {
        return Err(SignalError::Other { file, pid, program });
    }
    let Some(signal) = signal else { return Ok(pid) };
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) => Ok(pid),
        Err(Errno::ESRCH) => Err(SignalError::Gone { file, pid }),
        Err(source) => Err(SignalError::Refused { pid, source }),
    }
}

fn read(file: &Path) -> Result<i32, SignalError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(SignalError::NoFile(file.to_path_buf()));
        }
        Err(source) => return Err(SignalError::Unreadable { file: file.to_path_buf(), source }),
    };
    // 0 and negative numbers mean process groups to kill(2).
    let number = text.trim().parse().ok().filter(|pid| *pid > 0);
    number.ok_or_else(|| SignalError::NoNumber(file.to_path_buf()))
}

/// The name of a process, if it is known and not a gateway's.
fn other_program(pid: i32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned();
    let own = std::env::current_exe().ok();
    let own = own.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    // The kernel keeps 15 bytes of a name.
    let same = |known: &str| known.starts_with(&name) && (known == name || name.len() == 15);
    let ours = same("portcullis") || own.is_some_and(|own| same(&own));
    (!ours).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    #[track_caller]
    fn check(content: Option<&str>, expected: &str, exit: Exit) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("portcullis.pid");
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let error = stop(&file).unwrap_err();
        assert_eq!(error.to_string(), expected.replace("FILE", &file.display().to_string()));
        assert_eq!(error.exit(), exit);
    }

    #[test]
    fn nothing_to_signal() {
        check(None, "not running: there is no FILE", Exit::NotRunning);
        check(Some("abc"), "FILE holds no process number", Exit::Refused);
        check(Some("-1"), "FILE holds no process number", Exit::Refused);
        check(Some("0"), "FILE holds no process number", Exit::Refused);
        check(
            Some("999999999"),
            "not running: FILE names process 999999999, which is gone",
            Exit::NotRunning,
        );
    }

    fn sleeper(program: &Path) -> Child {
        Command::new(program).arg("60").spawn().unwrap()
    }

    #[test]
    fn only_a_gateway_is_signalled() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let mut other = sleeper(Path::new("sleep"));
        std::fs::write(&file, format!("{}\n", other.id())).unwrap();
        while !std::fs::read_to_string(format!("/proc/{}/comm", other.id())).unwrap().starts_with("sleep") {
            std::thread::yield_now();
        }
        let error = quit(&file).unwrap_err();
        assert!(error.to_string().ends_with("which is sleep"), "{error}");
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_gateway_is_signalled() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("portcullis");
        let sleep =
            ["/bin/sleep", "/usr/bin/sleep"].into_iter().find(|path| Path::new(path).exists()).unwrap();
        // In another process: a file that another test's child inherits while it is written cannot be run.
        assert!(Command::new("cp").arg(sleep).arg(&program).status().unwrap().success());
        let mut gateway = sleeper(&program);
        while !std::fs::read_to_string(format!("/proc/{}/comm", gateway.id()))
            .unwrap()
            .starts_with("portcullis")
        {
            std::thread::yield_now();
        }
        let file = directory.path().join("pid");
        std::fs::write(&file, gateway.id().to_string()).unwrap();
        let pid = i32::try_from(gateway.id()).unwrap();
        assert_eq!(running(&file).unwrap(), pid);
        assert_eq!(stop(&file).unwrap(), pid);
        assert_eq!(gateway.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
    }
}
