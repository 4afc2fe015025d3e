//! Consumers and credentials, indexed so that a lookup costs the same for one and for ten thousand.

use std::{collections::HashMap, sync::Arc};

use http::HeaderValue;
use serde_json::{Map, Value};

use super::{
    compile::{self, Env},
    shard_map::ShardMap,
};
use crate::{
    plugin::{
        chain::Chain,
        consumer::{Authenticated, Consumer},
        env::{Origin, Registry},
    },
    resource::Key,
};

/// Who claims a key of one plugin.
type Claims = ShardMap<Arc<[Claim]>>;

/// Consumers by name and, per auth plugin, by the field that identifies them.
#[derive(Clone)]
pub struct Consumers {
    names: ShardMap<Arc<Consumer>>,
    // A handful of plugins: scanning them is quicker than hashing their names.
    keys: Arc<[(&'static str, Claims)]>,
}

/// Somebody who claims a key. More than one may, in configuration that no Admin API checked: the last loaded
/// wins, as in APISIX, and the others come back when it goes.
#[derive(Clone)]
pub struct Claim {
    owner: Key,
    who: Arc<Authenticated>,
}

impl Consumers {
    /// No consumers; a table for each enabled auth plugin.
    pub fn new(env: &Env) -> Self {
        let auth = env.registry.all().iter().filter(|def| def.auth.is_some());
        Self { names: ShardMap::new(), keys: auth.map(|def| (def.name, ShardMap::new())).collect() }
    }

    /// The consumer or credential of a plugin that a key identifies.
    pub fn find(&self, plugin: &str, key: &str) -> Option<&Arc<Authenticated>> {
        self.table(plugin)?.get(key)?.last().map(|claim| &claim.who)
    }

    /// Whether anybody can authenticate with a plugin.
    pub fn has_any(&self, plugin: &str) -> bool {
        self.table(plugin).is_some_and(|table| !table.is_empty())
    }

    /// A consumer by name.
    pub fn by_name(&self, username: &str) -> Option<&Arc<Consumer>> {
        self.names.get(username)
    }

    /// How many consumers there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn table(&self, plugin: &str) -> Option<&Claims> {
        self.keys.iter().find(|(name, _)| *name == plugin).map(|(_, table)| table)
    }

    pub(super) fn insert(&mut self, consumer: Arc<Consumer>) {
        self.names.insert(consumer.username.clone(), consumer);
    }

    pub(super) fn remove(&mut self, username: &str) {
        self.names.remove(username);
    }

    pub(super) fn claim(&mut self, plugin: &str, key: Arc<str>, owner: Key, who: Arc<Authenticated>) {
        self.edit(plugin, key, |claims| {
            claims.retain(|claim| claim.owner != owner);
            claims.push(Claim { owner: owner.clone(), who: who.clone() });
        });
    }

    pub(super) fn release(&mut self, plugin: &str, key: Arc<str>, owner: &Key) {
        self.edit(plugin, key, |claims| claims.retain(|claim| claim.owner != *owner));
    }

    fn edit(&mut self, plugin: &str, key: Arc<str>, change: impl Fn(&mut Vec<Claim>)) {
        let tables = Arc::make_mut(&mut self.keys);
        let Some((_, table)) = tables.iter_mut().find(|(name, _)| *name == plugin) else { return };
        let mut claims = table.get(&key).map(|claims| claims.to_vec()).unwrap_or_default();
        change(&mut claims);
        if claims.is_empty() {
            table.remove(&key);
        } else {
            table.insert(key, claims.into());
        }
    }
}

/// The auth plugins of one consumer or credential, compiled: plugin, key, secret.
pub type Secrets = Vec<(&'static str, Arc<str>, crate::plugin::contract::AnyCredential)>;

/// Splits a plugin map into proofs of identity and plugins that run.
///
/// # Errors
/// A plugin that cannot be compiled.
pub fn compile(
    env: &Env,
    origin: &Origin,
    plugins: &Map<String, Value>,
    metadata: &dyn Fn(&str) -> Option<Value>,
    old: Option<&Chain>,
) -> Result<(Secrets, Chain), String> {
    let (mut secrets, mut running) = (Vec::new(), Map::new());
    for (name, conf) in plugins {
        let Some(auth) = env.registry.find(name).and_then(|def| def.auth.as_ref().map(|auth| (def, auth)))
        else {
            running.insert(name.clone(), conf.clone());
            continue;
        };
        let (def, auth) = auth;
        let mut conf = conf.clone();
        // A reference that does not resolve must never match its own literal text.
        if !compile::reveal(env, &mut conf, auth.encrypt) {
            continue;
        }
        let Some(key) = auth.identity(&conf) else { continue };
        let build = compile::build_env(env, origin, def.name, None);
        let secret = auth
            .credential(&conf, &build)
            .map_err(|e| format!("failed to check the configuration of plugin {} err: {e}", def.name))?;
        secrets.push((def.name, Arc::from(key), secret));
    }
    Ok((secrets, compile::chain(env, origin, &running, metadata, old)?))
}

/// Secrets by owner, so that a change can take back what the owner claimed before.
pub type Claimed = HashMap<Key, Vec<(&'static str, Arc<str>)>>;

/// A header value of a name that the schema let through; `None` for what no header can carry.
pub fn header(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}
