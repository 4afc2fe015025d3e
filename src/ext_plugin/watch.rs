//! Asks a process whose circuit breaker is open whether it is back, so that no call has to find out.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{
    call::Nothing,
    conn::Connection,
    error::CallError,
    frame::kind,
    runner::{PROBE_KEY, Process},
};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// A process of ours that answers nothing for so long is replaced.
const HUNG: Duration = Duration::from_secs(10);

/// How long an answer that comes later is read before the connection is closed.
const DRAIN: Duration = Duration::from_secs(10);

/// Asks until the breaker is closed or the process is replaced. There is one who asks, however often this is called.
pub fn begin(process: &Arc<Process>) {
    // There is no runtime while the program ends.
    if let (true, Ok(runtime)) = (process.watched(true), tokio::runtime::Handle::try_current()) {
        runtime.spawn(ask(Arc::downgrade(process)));
    }
}

async fn ask(process: Weak<Process>) {
    let mut silent: Option<Instant> = None;
    loop {
        let Some(process) = process.upgrade() else { return };
        let breaker = process.breaker();
        match knock(&process).await {
            Ok(()) => {
                silent = None;
                breaker.answered(process.now());
            }
            Err(CallError::Timeout(_)) => {
                breaker.unanswered(false);
                if silent.get_or_insert_with(Instant::now).elapsed() > HUNG {
                    process.desert();
                }
            }
            Err(_) => {
                silent = None;
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
async fn knock(process: &Process) -> Result<(), CallError> {
    let mut connection = Connection::open(process.pool().path(), PATIENCE, process.life()).await?;
    let mut nothing = Nothing;
    let question = connection.call(
        kind::PREPARE_CONF,
        |encoder, _| Ok(encoder.prepare_conf(&[], PROBE_KEY)),
        &mut nothing,
    );
    match timeout(PATIENCE, question).await {
        Ok(Ok(_) | Err(CallError::Refused(_))) => Ok(()),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            tokio::spawn(connection.drain(kind::PREPARE_CONF, DRAIN));
            Err(CallError::Timeout(PATIENCE))
        }
    }
}
