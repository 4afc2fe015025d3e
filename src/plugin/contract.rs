//! What a plugin is: the typed trait that authors implement and the object-safe face the chain calls.
//!
//! To add a plugin: write `src/builtin/NAME.rs` with `pub struct Plugin` implementing [`Plugin`], add its line
//! to the registry in `src/builtin/mod.rs`. Chain, Admin schema, plugin list and documents derive from that.

use std::{any::Any, borrow::Cow, fmt, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use pingora::http::ResponseHeader;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    answer::Answer,
    credentials::Place,
    env::{BuildEnv, CheckEnv},
    exchange::Exchange,
    phases::Phases,
    reply::{CONTINUE, Flow},
};

/// A built-in plugin.
///
/// One value of the type is one *compiled configuration* on one resource: regexes, templates and address sets
/// are compiled in [`Plugin::build`], once per configuration change, never per request.
pub trait Plugin: Send + Sync + Sized + 'static {
    /// APISIX's name, for example `key-auth`.
    const NAME: &'static str;
    /// APISIX's number; higher runs first.
    const PRIORITY: i32;
    /// The hooks that exist. A declared phase whose hook is not written answers 500 and names itself.
    const PHASES: Phases;
    /// APISIX: `run_policy = "prefer_route"`: the copy in a global rule is skipped when the route has the plugin.
    const PREFER_ROUTE: bool = false;
    /// APISIX: `type = "auth"` without a consumer's side: runs others that have one. Consumers cannot bring it along.
    const RUNS_AUTH: bool = false;
    /// APISIX: `scope = "global"`: switched on in config.yaml, nothing to attach to a route.
    const GLOBAL: bool = false;
    /// Top-level or dotted fields that are encrypted at rest. APISIX: `encrypt_fields`.
    const ENCRYPT: &'static [&'static str] = &[];

    /// The configuration as the schema lets it through. Unknown fields are ignored.
    type Config: DeserializeOwned;

    /// The JSON schema of the configuration on a route, service, consumer…, as APISIX serves it.
    fn schema() -> Value;

    /// The JSON schema of the plugin's metadata, if it has any.
    fn metadata_schema() -> Option<Value> {
        None
    }

    /// What APISIX's `check_schema` makes of a configuration before it judges it; the Admin API stores the result.
    /// `None`: nothing. `build` gets what is stored, which need not have come from the Admin API.
    fn completed(_conf: &Value, _env: &CheckEnv<'_>) -> Option<Value> {
        None
    }

    /// What APISIX's `check_schema` rules beyond the JSON schema; the text is the whole error after `err: `.
    ///
    /// # Errors
    /// The text that APISIX gives.
    fn check(_conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        Ok(())
    }

    /// The text for a configuration that the JSON schema refuses, where APISIX's `check_schema` has one of its own.
    fn reword(_conf: &Value, error: String) -> String {
        error
    }

    /// Whether a configuration that the JSON schema refuses is accepted all the same.
    fn pardons(_conf: &Value, _env: &CheckEnv<'_>) -> bool {
        false
    }

    /// Compiles the configuration. May not block on the network.
    ///
    /// # Errors
    /// What is wrong with the configuration, for the operator; reported as
    /// `failed to check the configuration of plugin NAME err: …`.
    fn build(config: Self::Config, env: &BuildEnv<'_>) -> Result<Self, String>;

    /// The hooks that this configuration needs: some of [`Plugin::PHASES`]. What it leaves out costs nothing.
    fn phases(&self) -> Phases {
        Self::PHASES
    }

    /// Tells where this configuration looks for credentials in a request: logs show a mask in their place.
    fn credentials(&self, _tell: &mut dyn FnMut(Place<'_>)) {}

    /// Endpoints that become reachable through a route with `public-api`; `attr` is the plugin's `plugin_attr`.
    fn apis(_attr: Option<&Value>) -> Vec<PublicApi> {
        Vec::new()
    }

    /// Runs before access control.
    fn rewrite(&self, x: &mut Exchange<'_>) -> impl Future<Output = Flow> + Send {
        async { undeclared(Self::NAME, "rewrite", x) }
    }

    /// Access control.
    fn access(&self, x: &mut Exchange<'_>) -> impl Future<Output = Flow> + Send {
        async { undeclared(Self::NAME, "access", x) }
    }

    /// Runs after the upstream was chosen.
    fn before_proxy(&self, x: &mut Exchange<'_>) -> impl Future<Output = Flow> + Send {
        async { undeclared(Self::NAME, "before_proxy", x) }
    }

    /// The upstream answered, and nothing has left yet: may wait, change status and headers, ask for the body and
    /// replace it. `Break` answers in the upstream's place. Not called for replies of the gateway, nor after an
    /// upgrade (101).
    fn response(&self, _answer: &mut Answer) -> impl Future<Output = Flow> + Send {
        async { missing(Self::NAME, "response") }
    }

    /// May change the head of the response, whoever made it. Cannot await: see ARCHITECTURE.md.
    fn header_filter(&self, _x: &mut Exchange<'_>, _head: &mut ResponseHeader) {}

    /// May change, hold back or replace a piece of the response's body. `last` is true on the final call.
    fn body_filter(&self, _x: &mut Exchange<'_>, _chunk: &mut Option<Bytes>, _last: bool) {}

    /// The exchange is over; the client has its answer.
    fn log(&self, _x: &mut Exchange<'_>) {}
}

/// A plugin that proves who the consumer is.
pub trait AuthPlugin: Plugin {
    /// The consumer's side: secrets and options of one consumer or credential, compiled.
    type Credential: Send + Sync + 'static;
    /// The field of the consumer's configuration that identifies it.
    const KEY: &'static str;
    /// Whether two consumers may not have the same. Where they may, the one that was written last counts.
    /// APISIX: `consumer.lua plugin_unique_key_attrs`.
    const UNIQUE: bool = true;
    /// What APISIX 3.2 called that field, if it had another name. It counts when the field is not there.
    const FORMER_KEY: Option<&'static str> = None;
    /// What identifies a consumer that leaves [`AuthPlugin::KEY`] out.
    const DEFAULT_KEY: Option<&'static str> = None;
    /// Whether the consumer's side has a schema of its own; without one it is checked with its schema all the same, but
    /// nobody is shown one. APISIX: a plugin without `consumer_schema`.
    const OWN_SCHEMA: bool = true;
    /// Secret fields of the consumer's side, encrypted at rest.
    const ENCRYPT_CREDENTIAL: &'static [&'static str] = &[];

    /// The JSON schema of the consumer's side. APISIX: `consumer_schema`.
    fn consumer_schema() -> Value;

    /// [`Plugin::completed`] of the consumer's side.
    fn completed_consumer(_conf: &Value, _env: &CheckEnv<'_>) -> Option<Value> {
        None
    }

    /// What APISIX's `check_schema` rules beyond the schema on the consumer's side.
    ///
    /// # Errors
    /// The text that APISIX gives.
    fn check_consumer(_conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        Ok(())
    }

    /// Compiles the consumer's side. Secret references are already resolved.
    ///
    /// # Errors
    /// What is wrong, for the operator.
    fn credential(conf: &Value, env: &BuildEnv<'_>) -> Result<Self::Credential, String>;
}

/// The future of one hook.
pub type HookFuture<'a> = Pin<Box<dyn Future<Output = Flow> + Send + 'a>>;

/// The object-safe face of [`Plugin`]; never implemented by hand.
pub trait Hooks: Send + Sync {
    /// See [`Plugin::phases`].
    fn phases(&self) -> Phases;
    /// See [`Plugin::credentials`].
    fn credentials(&self, tell: &mut dyn FnMut(Place<'_>));
    /// See [`Plugin::rewrite`].
    fn rewrite<'a>(&'a self, x: &'a mut Exchange<'_>) -> HookFuture<'a>;
    /// See [`Plugin::access`].
    fn access<'a>(&'a self, x: &'a mut Exchange<'_>) -> HookFuture<'a>;
    /// See [`Plugin::before_proxy`].
    fn before_proxy<'a>(&'a self, x: &'a mut Exchange<'_>) -> HookFuture<'a>;
    /// See [`Plugin::response`].
    fn response<'a>(&'a self, answer: &'a mut Answer) -> HookFuture<'a>;
    /// See [`Plugin::header_filter`].
    fn header_filter(&self, x: &mut Exchange<'_>, head: &mut ResponseHeader);
    /// See [`Plugin::body_filter`].
    fn body_filter(&self, x: &mut Exchange<'_>, chunk: &mut Option<Bytes>, last: bool);
    /// See [`Plugin::log`].
    fn log(&self, x: &mut Exchange<'_>);
}

impl<P: Plugin> Hooks for P {
    fn phases(&self) -> Phases {
        Plugin::phases(self)
    }
    fn credentials(&self, tell: &mut dyn FnMut(Place<'_>)) {
        Plugin::credentials(self, tell);
    }
    fn rewrite<'a>(&'a self, x: &'a mut Exchange<'_>) -> HookFuture<'a> {
        Box::pin(Plugin::rewrite(self, x))
    }
    fn access<'a>(&'a self, x: &'a mut Exchange<'_>) -> HookFuture<'a> {
        Box::pin(Plugin::access(self, x))
    }
    fn before_proxy<'a>(&'a self, x: &'a mut Exchange<'_>) -> HookFuture<'a> {
        Box::pin(Plugin::before_proxy(self, x))
    }
    fn response<'a>(&'a self, answer: &'a mut Answer) -> HookFuture<'a> {
        Box::pin(Plugin::response(self, answer))
    }
    fn header_filter(&self, x: &mut Exchange<'_>, head: &mut ResponseHeader) {
        Plugin::header_filter(self, x, head);
    }
    fn body_filter(&self, x: &mut Exchange<'_>, chunk: &mut Option<Bytes>, last: bool) {
        Plugin::body_filter(self, x, chunk, last);
    }
    fn log(&self, x: &mut Exchange<'_>) {
        Plugin::log(self, x);
    }
}

/// A hook that was declared in [`Plugin::PHASES`] but not written: the first test of the plugin finds it.
fn undeclared(plugin: &str, phase: &str, _x: &mut Exchange<'_>) -> Flow {
    missing(plugin, phase)
}

fn missing(plugin: &str, phase: &str) -> Flow {
    super::reply::Reply::status(500)
        .because(format!("plugin {plugin} declares {phase} but has no such hook"))
        .into()
}

/// The compiled consumer's side of an auth plugin, its type erased.
pub type AnyCredential = Arc<dyn Any + Send + Sync>;

/// An endpoint that a plugin offers behind `public-api`.
#[derive(Clone)]
pub struct PublicApi {
    /// Methods it answers.
    pub methods: &'static [&'static str],
    /// Exact path.
    pub path: Cow<'static, str>,
    /// Query arguments out of which it takes credentials.
    pub secret_args: &'static [&'static str],
    /// Whether there are credentials in the body of its request or its answer.
    pub secret_bodies: bool,
    /// Answers the request; a `Continue` is taken as 200 without a body.
    pub handler: for<'a> fn(&'a mut Exchange<'_>) -> HookFuture<'a>,
}

impl fmt::Debug for PublicApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicApi({:?} {})", self.methods, self.path)
    }
}

/// Always goes on: for hooks that only observe.
pub async fn go_on() -> Flow {
    CONTINUE
}
