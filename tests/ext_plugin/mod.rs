//! External plugins: what a runner decides is done, and what can go wrong with one costs only the calls it got.

mod calls;
mod faults;
mod languages;
mod observed;
mod outages;
mod own;
mod reload;
mod responses;
mod routes;
mod secure;
mod supervised;

use serde_json::{Value, json};

use crate::support::{
    client::Response,
    gateway::{Gateway, Setup},
    runner::Runner,
    upstream::Upstream,
};

/// For tests that count connections: a worker keeps those to runners to itself, and cannot always have the one to a node
/// that another has just put back.
fn one_worker(setup: Setup) -> Setup {
    setup.set("nginx_config.worker_processes", 1)
}

/// What the Control API shows of them.
#[track_caller]
fn runners(gateway: &Gateway) -> Value {
    gateway.control("/v1/ext-plugin/runners").expect(200).json()
}

/// A gateway whose only route has external plugins, with its runner and upstream.
struct Fixture {
    gateway: Gateway,
    runner: Runner,
    upstream: Upstream,
}

impl Fixture {
    /// The route's plugins, as in a route.
    #[track_caller]
    fn new(plugins: Value) -> Self {
        Self::with(plugins, |setup| setup)
    }

    /// The same with other settings.
    #[track_caller]
    fn with(plugins: Value, change: impl FnOnce(Setup) -> Setup) -> Self {
        let upstream = Upstream::echo();
        let runner = Runner::start();
        let route = json!({"id": "1", "uri": "/*", "plugins": plugins, "upstream": upstream.resource()});
        let setup = Setup::file(json!({"routes": [route]}))
            .set("ext-plugin.path_for_test", runner.socket().display().to_string());
        Self { gateway: change(setup).start(), runner, upstream }
    }

    #[track_caller]
    fn get(&self, target: &str) -> Response {
        self.gateway.get(target)
    }
}
