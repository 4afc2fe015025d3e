//! What a plugin may see while its configuration is checked and compiled.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;

use super::{contract::PublicApi, def::PluginDef, metrics::Metrics};
use crate::compat::Compat;

/// The resource that carries a plugin's configuration.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    /// `route`, `service`, `consumer`, `consumer_group`, `plugin_config`, `global_rule`.
    pub kind: &'static str,
    /// The resource's id.
    pub id: Arc<str>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.kind, self.id)
    }
}

/// The enabled plugins.
pub trait Registry: Send + Sync {
    /// An enabled plugin by name.
    fn find(&self, name: &str) -> Option<&'static PluginDef>;
    /// All enabled plugins, by priority, highest first.
    fn all(&self) -> &[&'static PluginDef];
    /// `plugin_attr.NAME` of config.yaml.
    fn attr(&self, name: &str) -> Option<&Value>;
    /// The endpoints that the enabled plugins offer behind `public-api`.
    fn apis(&self) -> Vec<PublicApi> {
        self.all().iter().flat_map(|def| (def.apis)(self.attr(def.name))).collect()
    }
}

/// What a check may see.
#[derive(Clone, Copy)]
pub struct CheckEnv<'a> {
    /// The enabled plugins, for plugins that contain others (multi-auth, workflow).
    pub registry: &'a dyn Registry,
    /// The APISIX whose texts are spoken.
    pub compat: Compat,
    /// Whether the plugin whose configuration is checked has metadata.
    pub has_metadata: bool,
}

/// What a build may see.
#[derive(Clone, Copy)]
pub struct BuildEnv<'a> {
    /// The resource that carries the configuration.
    pub origin: &'a Origin,
    /// The plugin's metadata resource.
    pub metadata: Option<&'a Value>,
    /// `plugin_attr.NAME` of config.yaml.
    pub attr: Option<&'a Value>,
    /// The enabled plugins.
    pub registry: &'a dyn Registry,
    /// The APISIX whose texts are spoken.
    pub compat: Compat,
    /// State that outlives a snapshot.
    pub carry: &'a Carry,
    /// Metrics that plugins feed.
    pub metrics: &'a Arc<Metrics>,
}

/// State that outlives a snapshot: counters shared by a group, caches, pools; kept by type and name.
///
/// A compiled plugin whose configuration did not change is itself carried over, so that its own counters
/// survive; this is for state that several configurations share.
#[derive(Default)]
pub struct Carry {
    // Locked while a configuration is compiled, never per request.
    states: Mutex<HashMap<(TypeId, String), Arc<dyn Any + Send + Sync>>>,
}

impl Carry {
    /// The state of type `T` called `name`, made by `new` the first time.
    pub fn state<T: Send + Sync + 'static>(&self, name: &str, new: impl FnOnce() -> T) -> Arc<T> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = states.entry((TypeId::of::<T>(), name.to_owned())).or_insert_with(|| Arc::new(new()));
        entry.clone().downcast().expect("the key names the type")
    }
}
