//! The runners of external plugins as config.yaml describes them.

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use pingora::{server::ShutdownWatch, services::background::BackgroundService};

use crate::{
    ext_plugin::{
        breaker::Rules,
        runner::{Limits, Runner, Runners},
        supervisor::{self, Launch},
    },
    plugin::env::Carry,
    settings::{Settings, types},
};

/// The program that this process runs, also after its file was replaced.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// What nginx hands on besides `nginx_config.envs`. APISIX: cli/ngx_tpl.lua.
const HANDED_ON: [&str; 3] = ["PATH", "TZ", "APISIX_PROFILE"];

/// The longest path that a unix socket has, without room for a runner's name.
const LONGEST: usize = 60;

/// Runners are told in whole seconds how long they keep a configuration.
const SHORTEST_EXPIRE: Duration = Duration::from_secs(1);

/// All of them.
pub fn from(settings: &Settings) -> Runners {
    let one = |runner: types::Runner| {
        let (timeout, breaker) = (settings.ext_plugin.timeout, settings.ext_plugin.circuit_breaker);
        let limits = Limits {
            connect: timeout.connect,
            call: timeout.call,
            queue: timeout.queue,
            ready: timeout.ready,
            expire: settings.ext_plugin.conf_expire.max(SHORTEST_EXPIRE),
            patience: breaker.patience,
            connections: runner.connections,
            breaker: Rules { failures: breaker.failures, probe: breaker.probe },
        };
        Arc::new(match runner.cmd {
            Some(_) => Runner::managed(&runner.name, runner.processes, limits),
            None => Runner::external(&runner.name, runner.socket.unwrap_or_default(), limits),
        })
    };
    Runners::new(settings.runners().into_iter().map(one).collect())
}

/// The runner of that name, or the first one, started on the runtime of whoever calls if config.yaml has a command for
/// it. It listens in the directory `sockets`, and ends with the runtime.
pub fn start(settings: &Settings, name: Option<&str>, sockets: PathBuf) -> Option<Arc<Runner>> {
    let runners = from(settings);
    let runner = runners.find(name)?.clone();
    let described = settings.runners().into_iter().find(|described| described.name == runner.name())?;
    if let Some(launch) = launch(described, settings) {
        // A gateway that runs keeps the socket that may be given.
        let launch = Launch { sockets, socket: None, watch: Vec::new(), ..launch };
        tokio::spawn(supervisor::run(runner.clone(), launch));
    }
    Some(runner)
}

/// How a runner is started, if the gateway is to do that.
fn launch(runner: types::Runner, settings: &Settings) -> Option<Launch> {
    Some(Launch {
        guard: OWN_PROGRAM.into(),
        cmd: runner.cmd?,
        environment: environment(&settings.nginx_config.envs),
        socket: runner.socket,
        sockets: sockets(settings),
        watch: runner.watch,
    })
}

/// Keeps the processes running that config.yaml has a command for.
pub struct Supervision(Vec<(Arc<Runner>, Launch)>);

impl Supervision {
    /// For the runners that plugins find in `carry`.
    pub fn new(settings: &Settings, carry: &Carry) -> Self {
        let runners = carry.state("ext-plugin", Runners::default);
        let found = |runner: types::Runner| {
            let found = runners.find(Some(&runner.name))?.clone();
            Some((found, launch(runner, settings)?))
        };
        Self(settings.runners().into_iter().filter_map(found).collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[async_trait]
impl BackgroundService for Supervision {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        for (runner, launch) in &self.0 {
            tokio::spawn(supervisor::run(runner.clone(), launch.clone()));
        }
        // The processes stay until the last request is answered: they end with this one.
        let _ = shutdown.changed().await;
    }
}

/// Where sockets are made.
fn sockets(settings: &Settings) -> PathBuf {
    let data = settings.data_dir();
    if data.as_os_str().len() <= LONGEST { data } else { std::env::temp_dir() }
}

/// A runner sees what nginx would show it: what is listed, by name or with a value.
fn environment(listed: &[String]) -> Vec<(OsString, OsString)> {
    let own = |name: &str| std::env::var_os(name).map(|value| (name.into(), value));
    let listed = listed.iter().filter_map(|entry| match entry.split_once('=') {
        Some((name, value)) => Some((name.into(), value.into())),
        None => own(entry),
    });
    HANDED_ON.into_iter().filter_map(own).chain(listed).collect()
}
