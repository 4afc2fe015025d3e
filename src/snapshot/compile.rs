//! From a stored plugin configuration to a step of a chain.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use serde_json::{Map, Value};

use super::router::Mode;
use crate::{
    builtin::{self, Enabled},
    compat::Compat,
    plugin::{
        answer::Answer,
        chain::{Chain, Step},
        contract::{HookFuture, Hooks, PublicApi},
        credentials::Place,
        def::PluginDef,
        env::{BuildEnv, Carry, Origin, Registry},
        exchange::Exchange,
        fingerprint::{self, Fingerprint},
        meta::{self, Meta},
        metrics::Metrics,
        phases::Phases,
        reply::CONTINUE,
    },
    secret::{self, Reference, ResolveError, SecretRef, cache::Secrets, encryption::Keyring},
    settings::fault::nearest,
    upstream::{
        conf::{ChecksSwitch, KeepaliveConf, TimeoutConf, UpstreamDefaults},
        resolve::{Resolver, ResolverConf},
    },
};

/// What compilation needs and what lives as long as the process.
pub struct Env {
    /// The enabled plugins.
    pub registry: Enabled,
    /// The APISIX whose texts are spoken.
    pub compat: Compat,
    /// `apisix.router.http`.
    pub mode: Mode,
    /// Decrypts fields that the Admin API encrypted; `None` when encryption is off.
    pub keyring: Option<Keyring>,
    /// What references to secrets stand for.
    pub secrets: Arc<Secrets>,
    /// State that outlives snapshots.
    pub carry: Carry,
    /// Metrics that plugins feed.
    pub metrics: Arc<Metrics>,
    /// `portcullis.debug_auth`.
    pub debug_auth: bool,
    /// Whether nobody has judged the resources by their schemas: they come from a file.
    pub unjudged: bool,
    /// What upstreams share.
    pub upstream: UpstreamDefaults,
    /// Endpoints behind `public-api`.
    pub apis: Vec<PublicApi>,
}

impl Env {
    /// What config.yaml's defaults make, with every plugin: for what runs without one, tests and micro-benchmarks.
    ///
    /// # Panics
    /// The system's resolver cannot be set up.
    #[must_use]
    pub fn plain() -> Self {
        Self {
            registry: Enabled::new(None, Map::new()),
            compat: Compat::Now,
            mode: Mode::HostUri,
            keyring: None,
            secrets: Arc::default(),
            carry: Carry::default(),
            metrics: Arc::new(Metrics::new(prometheus::Registry::new())),
            debug_auth: false,
            unjudged: false,
            upstream: UpstreamDefaults {
                resolver: Resolver::new(&ResolverConf::default()).expect("a resolver"),
                timeout: TimeoutConf::default(),
                keepalive: KeepaliveConf::default(),
                checks: ChecksSwitch::On,
            },
            apis: Vec::new(),
        }
    }
}

/// Compiles the plugins of one resource. Steps of `old` whose configuration did not change are kept: their
/// counters go on.
///
/// # Errors
/// The first plugin that cannot be compiled: `failed to check the configuration of plugin NAME err: …`.
pub fn chain(
    env: &Env,
    origin: &Origin,
    plugins: &Map<String, Value>,
    metadata: &dyn Fn(&str) -> Option<Value>,
    old: Option<&Chain>,
) -> Result<Chain, String> {
    let mut steps = Vec::with_capacity(plugins.len());
    for (name, conf) in plugins {
        let Some(def) = env.registry.find(name) else {
            absent(name, origin)?;
            continue;
        };
        steps.push(step(env, origin, def, conf, metadata(name), old)?);
    }
    Ok(Chain::new(steps))
}

/// A plugin that config.yaml switches off is left out, as in APISIX. (Not in a file, which was judged before.)
///
/// Differs from APISIX: one that does not exist at all makes its resource a bad one. What was meant may have been
/// authentication, and a route without it would be open.
fn absent(name: &str, origin: &Origin) -> Result<(), String> {
    let known = || builtin::REGISTRY.iter().map(|def| def.name);
    if known().any(|known| known == name) {
        tracing::warn!(plugin = %name, %origin, "plugin is not enabled; it does not run");
        return Ok(());
    }
    let hint = nearest(name, known()).map(|near| format!(", did you mean {near}?")).unwrap_or_default();
    Err(format!("unknown plugin [{name}]{hint}"))
}

fn step(
    env: &Env,
    origin: &Origin,
    def: &'static PluginDef,
    conf: &Value,
    metadata: Option<Value>,
    old: Option<&Chain>,
) -> Result<Arc<Step>, String> {
    let source = source(env, def, conf, metadata.as_ref());
    let same =
        |step: &&Arc<Step>| step.def.name == def.name && step.origin == *origin && step.source == source;
    let kept = old.and_then(|chain| chain.steps().iter().find(same));
    if let Some(step) = kept {
        return Ok(step.clone());
    }
    let fault = |e: String| format!("failed to check the configuration of plugin {} err: {e}", def.name);
    let meta = Meta::compile(conf).map_err(fault)?;
    let hooks: Box<dyn Hooks> = if meta.disable {
        Box::new(Disabled)
    } else {
        let mut conf = conf.clone();
        reveal(env, &mut conf, def.encrypt);
        let build = build_env(env, origin, def.name, metadata.as_ref());
        def.build(conf, &build).map_err(fault)?
    };
    Ok(Arc::new(Step { def, meta, hooks, origin: origin.clone(), source }))
}

/// What a plugin's build may see.
pub fn build_env<'a>(
    env: &'a Env,
    origin: &'a Origin,
    name: &str,
    metadata: Option<&'a Value>,
) -> BuildEnv<'a> {
    BuildEnv {
        origin,
        metadata,
        attr: env.registry.attr(name),
        registry: &env.registry,
        compat: env.compat,
        carry: &env.carry,
        metrics: &env.metrics,
    }
}

/// Decrypts secret fields and resolves references. What does not resolve stays as it is, as in APISIX, and is
/// logged by name, never by value. Says whether everything resolved.
pub fn reveal(env: &Env, conf: &mut Value, encrypted: &[&str]) -> bool {
    if let Some(keyring) = &env.keyring {
        keyring.decrypt_fields(conf, encrypted);
    }
    let unresolved = secret::resolve_in(conf, |reference| env.secrets.resolve(reference));
    // What is pending is fetched before the configuration is served, and then told if it fails.
    for one in unresolved.iter().filter(|one| one.error != ResolveError::Pending) {
        tracing::warn!(reference = %one.reference, at = %one.pointer, error = %one.error, "secret reference does not resolve");
    }
    unresolved.is_empty()
}

/// The values of secret managers that plugins need, also those that are encrypted at rest.
pub fn secrets_of(env: &Env, plugins: &Map<String, Value>) -> BTreeSet<SecretRef> {
    let known = plugins.iter().filter_map(|(name, conf)| Some((env.registry.find(name)?, conf)));
    known.flat_map(|(def, conf)| secrets_in(env, def, conf)).collect()
}

fn secrets_in(env: &Env, def: &PluginDef, conf: &Value) -> BTreeSet<SecretRef> {
    let mut conf = Cow::Borrowed(conf);
    if let Some(keyring) = &env.keyring {
        let of_consumers = def.auth.as_ref().map_or(&[][..], |auth| auth.encrypt);
        for fields in [def.encrypt, of_consumers].into_iter().filter(|fields| !fields.is_empty()) {
            keyring.decrypt_fields(conf.to_mut(), fields);
        }
    }
    managed(&conf)
}

/// The values of secret managers that a configuration names in clear.
pub fn managed(conf: &Value) -> BTreeSet<SecretRef> {
    let secret = |reference| match reference {
        Reference::Secret(secret) => Some(secret),
        Reference::Env { .. } => None,
    };
    secret::references(conf).into_iter().filter_map(secret).collect()
}

/// What a step is compiled from: equal sources make equal steps. Secrets are in it by version, not by value.
fn source(env: &Env, def: &PluginDef, conf: &Value, metadata: Option<&Value>) -> Fingerprint {
    let mut source = conf.to_string();
    if let Some(metadata) = metadata {
        source.push_str(&format!("\n{metadata}"));
    }
    for secret in secrets_in(env, def, conf) {
        source.push_str(&format!("\n{}", env.secrets.version(&secret)));
    }
    fingerprint::of(std::iter::once(source.as_str()))
}

/// Checks that a plugin map compiles, without keeping anything: the dry run of the Admin API.
///
/// # Errors
/// As [`chain`].
pub fn dry_run(env: &Env, origin: &Origin, plugins: &Map<String, Value>) -> Result<(), String> {
    for (name, conf) in plugins {
        let Some(def) = env.registry.find(name) else { continue };
        if !meta::disabled(conf) {
            step(env, origin, def, conf, None, None)?;
        }
    }
    Ok(())
}

/// Stands for a plugin that `_meta.disable` switches off, whose configuration may be anything.
struct Disabled;

impl Hooks for Disabled {
    fn phases(&self) -> Phases {
        Phases::NONE
    }
    fn credentials(&self, _: &mut dyn FnMut(Place<'_>)) {}
    fn rewrite<'a>(&'a self, _: &'a mut Exchange<'_>) -> HookFuture<'a> {
        Box::pin(async { CONTINUE })
    }
    fn access<'a>(&'a self, _: &'a mut Exchange<'_>) -> HookFuture<'a> {
        Box::pin(async { CONTINUE })
    }
    fn before_proxy<'a>(&'a self, _: &'a mut Exchange<'_>) -> HookFuture<'a> {
        Box::pin(async { CONTINUE })
    }
    fn response<'a>(&'a self, _: &'a mut Answer) -> HookFuture<'a> {
        Box::pin(async { CONTINUE })
    }
    fn header_filter(&self, _: &mut Exchange<'_>, _: &mut pingora::http::ResponseHeader) {}
    fn body_filter(&self, _: &mut Exchange<'_>, _: &mut Option<bytes::Bytes>, _: bool) {}
    fn log(&self, _: &mut Exchange<'_>) {}
}
