//! Zero-downtime hand-over to a new process of the same or a newer binary.
//!
//! The running process starts its successor with the same arguments. The successor checks its configuration, then
//! listens on the upgrade socket. Only then the old one lets go of the store and sends its listeners; for a few
//! seconds both accept connections, and the old one asks its clients to come again (`Connection: close`). What it
//! still serves it finishes. If the successor never gets that far, the old process simply goes on.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{sys::signal::Signal, unistd::Pid};

use crate::{settings::Settings, store::EmbeddedStore};

/// Set for a process that takes over from a running one.
const SUCCESSOR: &str = "PORTCULLIS_SUCCESSOR";

/// How long a successor may take to check its configuration.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Whether this process was started to take over from a running one.
pub fn is_successor() -> bool {
    std::env::var_os(SUCCESSOR).is_some()
}

/// Notes which process serves.
///
/// # Errors
/// The file cannot be written.
pub fn write_pid(file: &Path) -> Result<()> {
    let text = format!("{}\n", std::process::id());
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Tells the running process to hand over, and waits until another one serves.
///
/// # Errors
/// It is not running, or the successor did not start; its messages are in the log of the running process.
pub fn reload(settings: &Settings) -> Result<()> {
    let file = settings.pid_file();
    let old = read_pid(&file)?;
    nix::sys::signal::kill(Pid::from_raw(old), Signal::SIGHUP)
        .context("cannot signal the running process")?;
    let begun = std::time::Instant::now();
    while begun.elapsed() < START_LIMIT {
        std::thread::sleep(Duration::from_millis(100));
        match read_pid(&file) {
            Ok(pid) if pid != old => return Ok(()),
            _ => {}
        }
    }
    bail!("process {old} still serves: its log says why the new one did not start")
}

fn read_pid(file: &Path) -> Result<i32> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    text.trim().parse().with_context(|| format!("{} holds no process number", file.display()))
}

/// What this process gives up when another one takes over or when it ends.
pub struct Lifecycle {
    /// Set while clients are asked to connect anew.
    pub draining: Arc<AtomicBool>,
    embedded: Option<Arc<EmbeddedStore>>,
    upgrade_sock: PathBuf,
    pid_file: PathBuf,
    /// Taken at the start: afterwards a newer file may lie under the name.
    program: io::Result<PathBuf>,
}

impl Lifecycle {
    /// Notes what there is to give up.
    pub fn new(settings: &Settings, embedded: Option<Arc<EmbeddedStore>>) -> Self {
        Self {
            draining: Arc::new(AtomicBool::new(false)),
            embedded,
            upgrade_sock: settings.upgrade_sock(),
            pid_file: settings.pid_file(),
            program: std::env::current_exe(),
        }
    }

    /// Starts a successor and lets go of the store once it stands ready; `false` leaves everything as it is.
    pub async fn hand_over(&self) -> bool {
        let mut child = match self.spawn() {
            Ok(child) => child,
            Err(e) => {
                tracing::error!(error = %format!("{e:#}"), "cannot start a new process; this one goes on");
                return false;
            }
        };
        if !self.ready(&mut child).await {
            tracing::error!("the new process did not get ready; this one goes on");
            // It may be past help: a failed kill means that it is gone already.
            let _ = child.kill();
            let _ = child.wait();
            return false;
        }
        if let Some(store) = &self.embedded {
            store.close().await;
        }
        tracing::info!(successor = child.id(), "handing over");
        true
    }

    fn spawn(&self) -> Result<Child> {
        let program = self.program.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
        // A left-over socket would look like a successor that is ready.
        match fs::remove_file(&self.upgrade_sock) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).context("cannot remove the upgrade socket");
            }
            _ => {}
        }
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1)).env(SUCCESSOR, "1");
        command.spawn().with_context(|| format!("cannot run {}", program.display()))
    }

    async fn ready(&self, child: &mut Child) -> bool {
        let limit = tokio::time::Instant::now() + START_LIMIT;
        while tokio::time::Instant::now() < limit {
            if self.upgrade_sock.exists() {
                return true;
            }
            if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    /// Removes the pid file unless a successor has written its own number into it.
    pub fn forget_pid(&self) {
        if read_pid(&self.pid_file).is_ok_and(|pid| pid.unsigned_abs() == std::process::id()) {
            let _ = fs::remove_file(&self.pid_file);
        }
    }
}
