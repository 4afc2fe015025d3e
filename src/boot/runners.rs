//! The runners of external plugins as config.yaml describes them.

use std::sync::Arc;

use crate::{
    ext_plugin::runner::{Limits, Runner, Runners},
    settings::{Settings, types},
};

/// All of them.
pub fn from(settings: &Settings) -> Runners {
    let one = |runner: types::Runner| {
        let timeout = settings.ext_plugin.timeout;
        let limits = Limits {
            connect: timeout.connect,
            call: timeout.call,
            queue: timeout.queue,
            connections: runner.connections,
        };
        let socket = runner.socket.unwrap_or_default();
        Arc::new(Runner::external(&runner.name, socket, limits))
    };
    Runners::new(settings.runners().into_iter().map(one).collect())
}
