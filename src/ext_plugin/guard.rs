//! The process between the gateway and a runner: it ends the runner when the gateway is gone, however it went.
//!
//! `portcullis runner-guard PROGRAM ARGUMENT…` starts the runner in its own process group. Its standard input is a
//! socket to the gateway: the runner's process number goes out over it, and its end is the order to stop, so that
//! `kill -9` of the gateway leaves no orphan.

use std::{ffi::OsString, io, os::fd::AsFd, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::getpgrp,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::Command,
    signal::unix::{SignalKind, signal},
    time::timeout,
};

/// Between SIGTERM and SIGKILL. APISIX: 1 s.
const GRACE: Duration = Duration::from_secs(1);

/// Runs until the runner or the gateway is gone. Gives the runner's exit code; 128 and the number of the signal that
/// ended it.
///
/// # Errors
/// The runner cannot be started.
pub fn run(words: &[OsString]) -> io::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(watch(words))
}

async fn watch(words: &[OsString]) -> io::Result<u8> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(io::Error::other("no runner is named"));
    };
    let gateway = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    gateway.set_nonblocking(true)?;
    let mut gateway = UnixStream::from_std(gateway)?;
    // Heard, so that the signal to the whole group does not end this process before the runner.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut runner = Command::new(program).args(arguments).stdin(Stdio::null()).spawn()?;
    let pid = runner.id().unwrap_or_default();
    gateway.write_all(format!("{pid}\n").as_bytes()).await?;
    let mut byte = [0];
    tokio::select! {
        status = runner.wait() => return Ok(code(status?)),
        _ = gateway.read(&mut byte) => {}
        _ = terminate.recv() => {}
    }
    let _ = killpg(getpgrp(), Signal::SIGTERM);
    let ended = timeout(GRACE, runner.wait()).await;
    // What the runner started itself, and this process with it.
    if ended.is_err() {
        let _ = killpg(getpgrp(), Signal::SIGKILL);
    }
    Ok(0)
}

fn code(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let number = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(number).unwrap_or(1)
}
