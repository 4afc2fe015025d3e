//! Starts the processes of runners, watches over them, replaces them.
//!
//! One task for each process. A process counts as ready when it answered a PrepareConf; only then calls reach it. To
//! replace one, its successor is started first: calls change over when that is ready, and the old one ends when its
//! last call did. Invariant: never on the way of a request.

use std::{
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::UnixStream,
    process::{Child, Command},
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    files::State,
    output,
    runner::{Process, Runner},
    stats::Stage,
};

/// How long a process may take until it is ready. A JVM on a busy machine takes longer than half a minute; what ends, or
/// cannot be started, is noticed at once anyway.
const START: Duration = Duration::from_secs(120);

/// How long one question whether it is may take.
const PROBE: Duration = Duration::from_secs(5);

/// Between two looks whether it is.
const LOOK: Duration = Duration::from_millis(20);

/// The first pause before a process that ended is started again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause, when it does not start at all.
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// The longest one when it did: it serves for a while, and that is better than nothing.
const LAST_PAUSE_OF_READY: Duration = Duration::from_secs(1);

/// A process that was ready for so long is taken to be well: the pause is the first one again.
const WELL: Duration = Duration::from_secs(10);

/// How long a process that is replaced may take to answer its last calls.
const LAST_CALL: Duration = Duration::from_secs(60);

/// Until a process that was told to end is taken to have ended; its guard is faster.
const STOP: Duration = Duration::from_secs(5);

/// Until a process whose socket is gone is taken to be alive.
const NOTICE: Duration = Duration::from_secs(1);

/// Between two looks at the files that are watched.
const WATCH: Duration = Duration::from_secs(1);

/// How a runner is started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The program that ends the runner when the gateway is gone: the gateway's own.
    pub guard: PathBuf,
    /// The runner's command and its words.
    pub cmd: Vec<String>,
    /// Its whole environment, without what the protocol adds.
    pub environment: Vec<(OsString, OsString)>,
    /// The socket; none: one for each process in `sockets`.
    pub socket: Option<PathBuf>,
    /// Where sockets are made.
    pub sockets: PathBuf,
    /// What is watched for changes.
    pub watch: Vec<PathBuf>,
}

/// Runs the processes of a runner until the program ends.
pub async fn run(runner: Arc<Runner>, launch: Launch) {
    let launch = Arc::new(launch);
    let (changed, _) = watch::channel(());
    for index in 0..runner.processes() {
        tokio::spawn(keep(runner.clone(), launch.clone(), index, changed.subscribe()));
    }
    if launch.watch.is_empty() {
        return std::future::pending().await;
    }
    let mut seen = State::of(&launch.watch).await;
    loop {
        sleep(WATCH).await;
        let now = State::of(&launch.watch).await;
        if now != seen {
            seen = now.settled(&launch.watch).await;
            tracing::warn!(runner = runner.name(), "files of the runner changed; new processes are started");
            let _ = changed.send(());
        }
    }
}

/// A process that runs.
struct Running {
    child: Child,
    /// Its end stops the process.
    leash: UnixStream,
    process: Arc<Process>,
    since: Instant,
}

/// How long a process is away before it is started again: ever longer as long as it is not well.
struct Pause(Duration);

impl Pause {
    /// After a start that failed.
    fn after_failed_start(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(LAST_PAUSE);
        pause
    }

    /// After the end of one that was ready for so long.
    fn after_life(&mut self, lived: Duration) -> Duration {
        let pause = if lived >= WELL { FIRST_PAUSE } else { self.0.min(LAST_PAUSE_OF_READY) };
        self.0 = pause * 2;
        pause
    }
}

/// Keeps one process of a runner running.
async fn keep(runner: Arc<Runner>, launch: Arc<Launch>, index: usize, mut changed: watch::Receiver<()>) {
    let mut pause = Pause(FIRST_PAUSE);
    let mut running: Option<Running> = None;
    let told = runner.told(index).clone();
    loop {
        let Some(now) = &mut running else {
            runner.starts(index);
            told.tell(|story| story.stage = Stage::Starting);
            match start(&runner, &launch, index).await {
                Ok(ready) => {
                    runner.install(index, Some(ready.process.clone()));
                    running = Some(ready);
                }
                Err(e) => {
                    tracing::error!(runner = runner.name(), process = index, error = %e, "the runner does not start");
                    runner.stumbled();
                    told.tell(|story| story.failed_starts += 1);
                    told.failed(&e);
                    rest(&runner, index, pause.after_failed_start()).await;
                }
            }
            continue;
        };
        let status = tokio::select! {
            status = now.child.wait() => Some(status),
            // It may have just ended, too.
            () = now.process.deserted() => timeout(NOTICE, now.child.wait()).await.ok(),
            _ = changed.changed() => {
                running = replace(&runner, &launch, index, running.take()).await;
                continue;
            }
        };
        runner.install(index, None);
        let status = match status {
            Some(status) => status.map_or_else(|e| e.to_string(), |status| status.to_string()),
            None => "alive, but it does not listen or answer".to_owned(),
        };
        let lived = now.since.elapsed();
        tracing::warn!(runner = runner.name(), process = index, status, ?lived, "the runner ended");
        told.tell(|story| story.restarts += 1);
        told.failed(&format_args!("it ended after {lived:?}: {status}"));
        if let Some(ended) = running.take() {
            stop(ended).await;
        }
        rest(&runner, index, pause.after_life(lived)).await;
    }
}

/// Waits before the next start.
async fn rest(runner: &Runner, index: usize, pause: Duration) {
    runner.pauses(index, pause);
    runner.told(index).tell(|story| (story.stage, story.pid) = (Stage::Pausing, 0));
    sleep(pause).await;
}

/// Puts a new process in the place of one that runs well.
async fn replace(runner: &Runner, launch: &Launch, index: usize, old: Option<Running>) -> Option<Running> {
    // Two cannot listen on one socket: calls wait until the new one does.
    if launch.socket.is_some() {
        runner.told(index).tell(|story| story.stage = Stage::Ending);
        runner.install(index, None);
        if let Some(old) = old {
            retire(old).await;
        }
        return None;
    }
    match start(runner, launch, index).await {
        Ok(new) => {
            runner.install(index, Some(new.process.clone()));
            if let Some(old) = old {
                tokio::spawn(retire(old));
            }
            Some(new)
        }
        Err(e) => {
            tracing::error!(runner = runner.name(), process = index, error = %e, "the new runner does not start; the old one stays");
            runner.told(index).tell(|story| story.failed_starts += 1);
            runner.told(index).failed(&e);
            old
        }
    }
}

/// Ends a process when its last call has ended.
async fn retire(old: Running) {
    let until = Instant::now() + LAST_CALL;
    loop {
        // First, because a call may have chosen it at this very moment.
        sleep(LOOK).await;
        if old.process.in_flight() == 0 || Instant::now() > until {
            break;
        }
    }
    let socket = old.process.pool().path().to_owned();
    stop(old).await;
    let _ = std::fs::remove_file(socket);
}

/// Ends a process, if it has not ended by itself, and what it has started.
async fn stop(mut old: Running) {
    let group = old.process.group();
    drop(old.leash);
    let _ = timeout(STOP, old.child.wait()).await;
    end_group(&old.child, group);
}

/// Ends what is left of a process group whose leader has ended.
fn end_group(leader: &Child, group: i32) {
    if leader.id().is_none() && group > 1 {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

/// Starts a process and waits until it is ready.
async fn start(runner: &Runner, launch: &Launch, index: usize) -> io::Result<Running> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let socket = launch.socket.clone().unwrap_or_else(|| {
        let serial = SERIAL.fetch_add(1, Relaxed);
        launch.sockets.join(format!("runner-{}-{}-{serial}.sock", runner.name(), std::process::id()))
    });
    match std::fs::remove_file(&socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let (mut child, leash) = spawn(launch, &socket, runner.limits().expire)?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or(0);
    for out in
        [child.stdout.take().map(Output::Out), child.stderr.take().map(Output::Err)].into_iter().flatten()
    {
        let name = runner.name().to_owned();
        tokio::spawn(async move {
            match out {
                Output::Out(out) => output::follow(out, &name, index).await,
                Output::Err(err) => output::follow(err, &name, index).await,
            }
        });
    }
    let mut leash = BufReader::new(leash);
    let mut line = String::new();
    let told = timeout(START, leash.read_line(&mut line)).await;
    let pid: u32 = told.ok().and_then(Result::ok).and_then(|_| line.trim().parse().ok()).unwrap_or(0);
    let process = Arc::new(Process::managed(runner, index, socket, group));
    let until = Instant::now() + START;
    loop {
        if matches!(timeout(PROBE, process.probe()).await, Ok(Ok(()))) {
            tracing::info!(runner = runner.name(), process = index, pid, "the runner is ready");
            runner.told(index).tell(|story| {
                (story.stage, story.pid) = (Stage::Ready, pid);
                story.generation += 1;
            });
            let since = Instant::now();
            return Ok(Running { child, leash: leash.into_inner(), process, since });
        }
        if let Some(status) = child.try_wait()? {
            end_group(&child, group);
            return Err(io::Error::other(format!("it ended before it was ready: {status}")));
        }
        if Instant::now() > until {
            return Err(io::Error::other(format!("it was not ready within {START:?}")));
        }
        sleep(LOOK).await;
    }
}

enum Output {
    Out(tokio::process::ChildStdout),
    Err(tokio::process::ChildStderr),
}

fn spawn(launch: &Launch, socket: &Path, expire: Duration) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = Command::new(&launch.guard)
        .arg0("portcullis")
        .args(["runner-guard", "--"])
        .args(&launch.cmd)
        .env_clear()
        .envs(launch.environment.iter().cloned())
        .env("APISIX_LISTEN_ADDRESS", format!("unix:{}", socket.display()))
        .env("APISIX_CONF_EXPIRE_TIME", expire.as_secs().to_string())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    Ok((child, UnixStream::from_std(ours)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pauses in milliseconds of a runner's story: `x` a start that failed, a number the seconds that it was ready.
    #[track_caller]
    fn check(story: &str, expected: &[u64]) {
        let mut pause = Pause(FIRST_PAUSE);
        let pauses = story.split_whitespace().map(|word| match word.parse() {
            Ok(lived) => pause.after_life(Duration::from_secs(lived)),
            Err(_) => pause.after_failed_start(),
        });
        let expected = expected.iter().copied().map(Duration::from_millis);
        assert_eq!(pauses.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{story}");
    }

    #[test]
    fn pauses_grow_and_begin_anew() {
        check("x x x x", &[100, 200, 400, 800]);
        check(
            "x x x x x x x x x x x",
            &[100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000],
        );
        check("1 1 1 1 1 1", &[100, 200, 400, 800, 1000, 1000]);
        check("1 1 1 60 1", &[100, 200, 400, 100, 200]);
        check("x x x x x 1 x", &[100, 200, 400, 800, 1600, 1000, 2000]);
    }
}
