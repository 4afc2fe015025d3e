//! Asks a process whose circuit breaker is open whether it is back, so that no call has to find out; and one with a call
//! that takes long whether it hangs, so that not every client has to wait until it is out of time.

use std::{
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::{
    call::Nothing,
    conn::Connection,
    error::CallError,
    frame::kind,
    runner::{PROBE_KEY, Process},
};

/// How long an answer of a process is waited for that seems to hang.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long one is waited for before the process is asked again: what listens by then may be its successor.
const AGAIN: Duration = Duration::from_millis(500);

/// A process of ours that answers nothing for so long is replaced.
const HUNG: Duration = Duration::from_secs(10);

/// How long an answer that comes later still counts.
const DRAIN: Duration = Duration::from_secs(10);

/// Asks until the breaker is closed or the process is replaced. There is one who asks, however often this is called.
pub fn begin(process: &Arc<Process>) {
    // There is no runtime while the program ends.
    if let (true, Ok(runtime)) = (process.watched(true), tokio::runtime::Handle::try_current()) {
        runtime.spawn(ask(Arc::downgrade(process)));
    }
}

/// Asks a process once, because a call to it takes long. One that does not answer gets no further calls until it does:
/// what is slow is a plugin, what answers nothing is the process.
pub fn suspect(process: &Arc<Process>) {
    if !process.breaker().is_closed() || !process.watched(true) {
        return;
    }
    let process = process.clone();
    let listen = async move {
        let hangs = matches!(knock(&process, PATIENCE).await, Err(error) if is_silence(&error));
        if hangs && process.breaker().hangs() {
            let (runner, process) = (process.runner(), process.index());
            let error = "it answers nothing while a call is under way";
            tracing::warn!(runner, process, error, "the runner's circuit breaker opens");
        }
        process.watched(false);
        if !process.breaker().is_closed() {
            begin(&process);
        }
    };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(listen)),
        Err(_) => drop(listen),
    }
}

async fn ask(process: Weak<Process>) {
    if let Some(process) = process.upgrade() {
        process.hears();
    }
    loop {
        let Some(process) = process.upgrade() else { return };
        let breaker = process.breaker();
        match knock(&process, AGAIN).await {
            Ok(()) => {
                process.hears();
                breaker.answered(process.now());
            }
            Err(error) if is_silence(&error) => {
                breaker.unanswered(false);
                if process.silence() > HUNG {
                    process.desert();
                }
            }
            Err(_) => {
                process.hears();
                breaker.unanswered(true);
            }
        }
        if breaker.is_closed() {
            process.watched(false);
            // It may have been opened between the two.
            if breaker.is_closed() || !process.watched(true) {
                tracing::info!(
                    runner = process.runner(),
                    process = process.index(),
                    "the runner's circuit breaker is closed"
                );
                return;
            }
        }
        let pause = breaker.rules().probe;
        drop(process);
        sleep(pause).await;
    }
}

/// A PrepareConf without plugins over a connection of its own: those for calls may all be in use by what hangs.
async fn knock(process: &Arc<Process>, patience: Duration) -> Result<(), CallError> {
    let mut connection = Connection::open(process.pool().path(), patience, process.life()).await?;
    let mut nothing = Nothing;
    let question = connection.call(
        kind::PREPARE_CONF,
        |encoder, _| Ok(encoder.prepare_conf(&[], PROBE_KEY)),
        &mut nothing,
    );
    match timeout(patience, question).await {
        Ok(Ok(_) | Err(CallError::Refused(_))) => Ok(()),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            tokio::spawn(listen(connection, Arc::downgrade(process)));
            Err(CallError::Timeout(patience))
        }
    }
}

/// Waits for an answer that is late: a busy machine is no hanging runner.
async fn listen(connection: Connection, process: Weak<Process>) {
    let life = connection.life;
    let answered = connection.drain(kind::PREPARE_CONF, DRAIN).await;
    if let Some(process) = process.upgrade().filter(|process| answered && process.life() == life) {
        process.hears();
        process.breaker().answered(process.now());
    }
}

/// Whether this is how a process hangs: it answers nothing, or accepts no connection any more.
fn is_silence(error: &CallError) -> bool {
    match error {
        CallError::Timeout(_) => true,
        CallError::Connect { source, .. } => {
            matches!(source.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
        }
        _ => false,
    }
}
