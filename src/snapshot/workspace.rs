//! Derives the next snapshot from the running one and what changed.
//!
//! What depends on a changed resource is compiled again, nothing else: a route when its service or plugin config
//! changes, but not when its upstream does. A resource that does not compile keeps its last good version, and its
//! fault is remembered until it is mended. Owned by the control loop; nothing here runs per request.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use serde_json::Value;

use super::{
    Fault, Route, RouteUpstream, Snapshot,
    client_certs::ClientCerts,
    compile::{self, Env},
    consumers::{self, Claimed},
    judge,
    router::{MethodSet, Rule},
    upstreams,
};
use crate::{
    net::ip_set::IpSet,
    plugin::{
        chain::Chain,
        consumer::{Authenticated, Consumer},
        env::Origin,
        request::RouteMeta,
    },
    resource::{self, Key, Kind, typed::Plugins},
    schema::lua,
    secret::SecretRef,
    store::{Change, Entry, Event},
    upstream::{Upstream, conf::TimeoutConf},
    vars::expr::Expr,
};

/// See the module.
pub struct Workspace {
    env: Arc<Env>,
    raw: HashMap<Key, Raw>,
    /// Metadata by plugin, as it was last good.
    metadata: HashMap<String, Value>,
    /// Compiled plugins of services and plugin configs, shared by their routes; and of global rules.
    chains: HashMap<Key, Chain>,
    /// Compiled inline upstreams of services.
    service_upstreams: HashMap<Arc<str>, Arc<Upstream>>,
    rules: HashMap<Arc<str>, Arc<Rule<Route>>>,
    /// Upstreams with health checks, by the resource that they are written into: few among many.
    checked: BTreeMap<Key, Arc<Upstream>>,
    client_certs: ClientCerts,
    /// Who is compiled with what: routes by the service or plugin config they name, and all that have an upstream by the
    /// ssl resource it names.
    users: HashMap<Key, HashSet<Key>>,
    claimed: Claimed,
    /// Resources by the values of secret managers that they need, and the other way round.
    secret_users: HashMap<SecretRef, HashSet<Key>>,
    secrets: HashMap<Key, BTreeSet<SecretRef>>,
    faults: BTreeMap<Key, String>,
    next_order: u64,
    snapshot: Snapshot,
}

struct Raw {
    text: Arc<str>,
    modified: u64,
    /// Position among the resources of its kind: APISIX's last tie-break between routes.
    order: u64,
    /// What this resource is compiled with: see `Workspace::users`.
    names: Vec<Key>,
}

impl Workspace {
    /// An empty configuration.
    pub fn new(env: Arc<Env>) -> Self {
        let snapshot = Snapshot::empty(env.clone());
        Self {
            env,
            raw: HashMap::new(),
            metadata: HashMap::new(),
            chains: HashMap::new(),
            service_upstreams: HashMap::new(),
            rules: HashMap::new(),
            checked: BTreeMap::new(),
            client_certs: ClientCerts::default(),
            users: HashMap::new(),
            claimed: HashMap::new(),
            secret_users: HashMap::new(),
            secrets: HashMap::new(),
            faults: BTreeMap::new(),
            next_order: 0,
            snapshot,
        }
    }

    /// Resources that do not compile, and why.
    pub fn faults(&self) -> &BTreeMap<Key, String> {
        &self.faults
    }

    /// Whether there is a resource.
    pub fn has(&self, key: &Key) -> bool {
        self.raw.contains_key(key)
    }

    /// How many resources of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.raw.keys().filter(|key| key.kind() == kind).count()
    }

    /// The compiled upstream that a route, service or upstream holds itself; a route may have its service's.
    pub fn upstream_of(&self, key: &Key) -> Option<&Arc<Upstream>> {
        match key.kind() {
            Kind::Upstream => self.snapshot.upstreams.get(key.id()),
            Kind::Service => self.service_upstreams.get(key.id()),
            Kind::Route => match &self.rules.get(key.id())?.target.upstream {
                RouteUpstream::Inline(upstream) => Some(upstream),
                _ => None,
            },
            _ => None,
        }
    }

    /// Every upstream with health checks by the path that the control API names it by: those with an id, and those
    /// written into services and routes.
    pub fn upstreams(&self) -> impl Iterator<Item = (String, Arc<Upstream>)> + '_ {
        let named = |(key, upstream): (&Key, &Arc<Upstream>)| (key.path_under(""), upstream.clone());
        self.checked.iter().map(named)
    }

    /// Notes whether the upstream that a resource holds itself has health checks.
    fn note_checks(&mut self, key: &Key, own: Option<Arc<Upstream>>) {
        match own.filter(|upstream| upstream.has_checks()) {
            Some(upstream) => drop(self.checked.insert(key.clone(), upstream)),
            None => drop(self.checked.remove(key)),
        }
    }

    /// The snapshot as it stands.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(self.snapshot.clone())
    }

    /// Takes events in and compiles what they touch.
    pub fn apply(&mut self, events: Vec<Event>) {
        let mut dirty = BTreeSet::new();
        for event in events {
            match event {
                Event::Reset { entries, revision } => {
                    self.reset(entries, &mut dirty);
                    self.snapshot.revision = revision;
                }
                Event::Changes { changes, revision } => {
                    for change in changes {
                        self.take(change, &mut dirty);
                    }
                    self.snapshot.revision = revision;
                }
            }
        }
        self.compile(dirty);
        self.env.secrets.keep(|secret| self.secret_users.contains_key(secret));
    }

    /// Compiles what needs secrets whose values changed.
    pub fn take_secrets(&mut self, changed: &BTreeSet<SecretRef>) {
        let users = changed.iter().filter_map(|secret| self.secret_users.get(secret));
        let dirty: BTreeSet<Key> = users.flatten().cloned().collect();
        self.compile(dirty);
    }

    /// A reset is a set of changes: what is the same as before is not compiled again.
    fn reset(&mut self, entries: Vec<Entry>, dirty: &mut BTreeSet<Key>) {
        let kept: HashSet<&Key> = entries.iter().map(|entry| &entry.key).collect();
        let gone: Vec<Key> = self.raw.keys().filter(|key| !kept.contains(key)).cloned().collect();
        for key in gone {
            self.take(Change::Delete(key), dirty);
        }
        // APISIX reads a directory in the order of its keys.
        let mut entries = entries;
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        for entry in entries {
            self.take(Change::Put(entry), dirty);
        }
    }

    fn take(&mut self, change: Change, dirty: &mut BTreeSet<Key>) {
        match change {
            Change::Put(entry) => {
                let old = self.raw.get(&entry.key);
                if old.is_some_and(|old| old.modified == entry.modified && old.text == entry.value) {
                    return;
                }
                let order = old.map_or(self.next_order, |old| old.order);
                self.next_order = self.next_order.max(order + 1);
                dirty.insert(entry.key.clone());
                let raw = Raw { text: entry.value, modified: entry.modified, order, names: Vec::new() };
                if let Some(old) = self.raw.insert(entry.key.clone(), raw) {
                    self.forget_users(&entry.key, &old.names);
                }
            }
            Change::Delete(key) => {
                if let Some(old) = self.raw.remove(&key) {
                    self.forget_users(&key, &old.names);
                    dirty.insert(key);
                }
            }
        }
    }

    fn forget_users(&mut self, key: &Key, names: &[Key]) {
        for name in names {
            if let Some(users) = self.users.get_mut(name) {
                users.remove(key);
            }
        }
    }

    /// Compiles in the order of dependence: what routes are made of comes before them.
    fn compile(&mut self, mut dirty: BTreeSet<Key>) {
        self.spread(&mut dirty);
        let rank = |kind: Kind| match kind {
            Kind::PluginMetadata | Kind::Secret | Kind::Proto | Kind::Ssl | Kind::StreamRoute => 0,
            Kind::Upstream | Kind::PluginConfig | Kind::Service | Kind::ConsumerGroup | Kind::GlobalRule => 1,
            Kind::Consumer => 2,
            Kind::Credential => 3,
            Kind::Route => 4,
        };
        let mut order: Vec<Key> = dirty.into_iter().collect();
        order.sort_by_key(|key| rank(key.kind()));
        let mut globals_changed = false;
        for key in order {
            globals_changed |= key.kind() == Kind::GlobalRule;
            match self.one(&key) {
                Ok(()) => {
                    self.faults.remove(&key);
                }
                Err(why) => {
                    tracing::error!(resource = %key, error = %why, "resource does not compile; its last good version stays");
                    self.faults.insert(key, why);
                }
            }
        }
        if globals_changed {
            self.merge_global_rules();
        }
    }

    /// Adds what depends on what changed.
    fn spread(&self, dirty: &mut BTreeSet<Key>) {
        if dirty.iter().any(|key| key.kind() == Kind::PluginMetadata) {
            // Rare, and any plugin anywhere may read it; unchanged steps are kept all the same.
            dirty.extend(self.raw.keys().cloned());
            return;
        }
        let credentials = self.credentials_of_changed(dirty);
        let mut changed: Vec<Key> =
            dirty.iter().filter(|key| self.users.contains_key(*key)).cloned().collect();
        while let Some(users) = changed.pop().map(|key| self.users.get(&key)) {
            // Their users as well: a certificate reaches routes through their services.
            let users = users.into_iter().flatten().filter(|user| dirty.insert((*user).clone()));
            changed.extend(users.cloned());
        }
        dirty.extend(credentials);
    }

    /// A credential holds its consumer, so it follows the consumer's changes.
    fn credentials_of_changed(&self, dirty: &BTreeSet<Key>) -> Vec<Key> {
        let changed: HashSet<&str> =
            dirty.iter().filter(|key| key.kind() == Kind::Consumer).map(|key| key.id()).collect();
        if changed.is_empty() {
            return Vec::new();
        }
        let credentials = self.raw.keys().filter(|key| key.kind() == Kind::Credential);
        credentials.filter(|key| key.consumer().is_some_and(|name| changed.contains(name))).cloned().collect()
    }

    fn one(&mut self, key: &Key) -> Result<(), String> {
        let stored = self.raw.get(key).map(|raw| raw.text.clone());
        if self.env.unjudged
            && let Some(stored) = &stored
        {
            let has_metadata = |name: &str| self.raw.contains_key(&Key::new(Kind::PluginMetadata, name));
            judge::resource(&self.env, key, &serde_json::from_str(stored).map_err(text)?, &has_metadata)?;
        }
        if key.kind() == Kind::Route {
            return self.route(key, stored.as_deref());
        }
        let value = stored.map(|text| serde_json::from_str::<Value>(&text)).transpose().map_err(text)?;
        self.note_secrets(key, value.as_ref().map(|value| self.secrets_of(key, value)).unwrap_or_default());
        match key.kind() {
            Kind::Service => self.service(key, value),
            Kind::Upstream => self.upstream(key, value),
            Kind::Consumer => self.consumer(key, value),
            Kind::Credential => self.credential(key, value),
            Kind::ConsumerGroup => self.consumer_group(key, value),
            Kind::PluginConfig | Kind::GlobalRule => self.plugins_of(key, value.as_ref()),
            Kind::Secret => {
                self.env.secrets.configure(key.id(), value);
                Ok(())
            }
            Kind::PluginMetadata => {
                match value {
                    Some(value) => self.metadata.insert(key.id().to_owned(), value),
                    None => self.metadata.remove(key.id()),
                };
                Ok(())
            }
            Kind::Ssl => match value {
                Some(value) => self.client_certs.put(&self.env, key.shared_id(), &value),
                None => {
                    self.client_certs.remove(key.id());
                    Ok(())
                }
            },
            Kind::Route | Kind::Proto | Kind::StreamRoute => Ok(()),
        }
    }

    fn secrets_of(&self, key: &Key, value: &Value) -> BTreeSet<SecretRef> {
        match (key.kind(), value.get("plugins")) {
            (Kind::Ssl, _) => compile::managed(value),
            (_, Some(Value::Object(plugins))) => compile::secrets_of(&self.env, plugins),
            _ => BTreeSet::new(),
        }
    }

    fn note_secrets(&mut self, key: &Key, needed: BTreeSet<SecretRef>) {
        for secret in self.secrets.remove(key).unwrap_or_default() {
            if let Some(users) = self.secret_users.get_mut(&secret) {
                users.remove(key);
                if users.is_empty() {
                    self.secret_users.remove(&secret);
                }
            }
        }
        if needed.is_empty() {
            return;
        }
        for secret in &needed {
            self.secret_users.entry(secret.clone()).or_default().insert(key.clone());
        }
        self.secrets.insert(key.clone(), needed);
    }

    fn metadata(&self) -> impl Fn(&str) -> Option<Value> + '_ {
        |name| self.metadata.get(name).cloned()
    }

    fn chain(&self, key: &Key, value: &Value, old: Option<&Chain>) -> Result<Chain, String> {
        match value.get("plugins") {
            Some(Value::Object(plugins)) => self.chain_of(key, plugins, old),
            _ => Ok(Chain::default()),
        }
    }

    fn chain_of(&self, key: &Key, plugins: &Plugins, old: Option<&Chain>) -> Result<Chain, String> {
        if plugins.is_empty() {
            return Ok(Chain::default());
        }
        compile::chain(&self.env, &origin(key), plugins, &self.metadata(), old)
    }

    /// Compiles the plugins of a resource that is a set of plugins and nothing more.
    fn plugins_of(&mut self, key: &Key, value: Option<&Value>) -> Result<(), String> {
        let Some(value) = value else {
            self.chains.remove(key);
            return Ok(());
        };
        let chain = self.chain(key, value, self.chains.get(key))?;
        self.chains.insert(key.clone(), chain);
        Ok(())
    }

    fn service(&mut self, key: &Key, value: Option<Value>) -> Result<(), String> {
        self.plugins_of(key, value.as_ref())?;
        let service =
            value.map(|value| resource::parse::<resource::Service>(&value)).transpose().map_err(text)?;
        let own = service.as_ref().and_then(|service| service.upstream.as_ref());
        self.note_names(key, certificate(own).into_iter().collect());
        let Some(conf) = service.and_then(|service| service.upstream) else {
            self.service_upstreams.remove(key.id());
            self.note_checks(key, None);
            return Ok(());
        };
        let old = self.service_upstreams.get(key.id());
        let upstream = upstreams::compile(&self.env, &self.client_certs, &conf, old)?;
        self.note_checks(key, Some(upstream.clone()));
        self.service_upstreams.insert(key.shared_id(), upstream);
        Ok(())
    }

    fn upstream(&mut self, key: &Key, value: Option<Value>) -> Result<(), String> {
        let Some(value) = value else {
            self.snapshot.upstreams.remove(key.id());
            self.note_checks(key, None);
            return Ok(());
        };
        let conf = resource::parse::<resource::Upstream>(&value).map_err(text)?;
        self.note_names(key, certificate(Some(&conf)).into_iter().collect());
        let old = self.snapshot.upstreams.get(key.id());
        let upstream = upstreams::compile(&self.env, &self.client_certs, &conf, old)?;
        self.note_checks(key, Some(upstream.clone()));
        self.snapshot.upstreams.insert(key.shared_id(), upstream);
        Ok(())
    }

    fn consumer_group(&mut self, key: &Key, value: Option<Value>) -> Result<(), String> {
        let Some(value) = value else {
            self.snapshot.groups.remove(key.id());
            return Ok(());
        };
        let chain = self.chain(key, &value, self.snapshot.groups.get(key.id()))?;
        self.snapshot.groups.insert(key.shared_id(), chain);
        Ok(())
    }

    fn consumer(&mut self, key: &Key, value: Option<Value>) -> Result<(), String> {
        let Some(value) = value else {
            self.release(key);
            self.snapshot.consumers.remove(key.id());
            return Ok(());
        };
        let conf = resource::parse::<resource::Consumer>(&value).map_err(text)?;
        let old = self.snapshot.consumers.by_name(key.id()).map(|consumer| consumer.plugins.clone());
        let (secrets, plugins) =
            consumers::compile(&self.env, &origin(key), &conf.plugins, &self.metadata(), old.as_ref())?;
        let custom_id = conf.labels.get("custom_id").and_then(|id| consumers::header(id));
        let consumer = Arc::new(Consumer {
            username: key.shared_id(),
            header: consumers::header(key.id()).ok_or("the username does not fit into a header")?,
            custom_id,
            group_id: conf.group_id.map(|id| id.0),
            labels: value.get("labels").cloned().unwrap_or_default(),
            stored: self.stored(key).unwrap_or_default(),
            plugins,
            is_bare: conf.plugins.is_empty(),
        });
        self.snapshot.consumers.insert(consumer.clone());
        self.claim(key, secrets, &consumer, None);
        Ok(())
    }

    fn credential(&mut self, key: &Key, value: Option<Value>) -> Result<(), String> {
        let consumer = key.consumer().and_then(|name| self.snapshot.consumers.by_name(name)).cloned();
        let (Some(value), Some(consumer)) = (value, consumer) else {
            self.release(key);
            return Ok(());
        };
        let conf = resource::parse::<resource::Credential>(&value).map_err(text)?;
        let (secrets, _) =
            consumers::compile(&self.env, &origin(key), &conf.plugins, &self.metadata(), None)?;
        let id: Arc<str> = key.own_id().into();
        let header = consumers::header(&id).ok_or("the id does not fit into a header")?;
        self.claim(key, secrets, &consumer, Some((id, header)));
        Ok(())
    }

    fn claim(
        &mut self,
        key: &Key,
        secrets: consumers::Secrets,
        consumer: &Arc<Consumer>,
        credential: Option<(Arc<str>, http::HeaderValue)>,
    ) {
        self.release(key);
        let mut claimed = Vec::with_capacity(secrets.len());
        for (plugin, name, secret) in secrets {
            let who = Authenticated { consumer: consumer.clone(), credential: credential.clone(), secret };
            self.snapshot.consumers.claim(plugin, name.clone(), key.clone(), Arc::new(who));
            claimed.push((plugin, name));
        }
        if !claimed.is_empty() {
            self.claimed.insert(key.clone(), claimed);
        }
    }

    fn release(&mut self, key: &Key) {
        for (plugin, name) in self.claimed.remove(key).unwrap_or_default() {
            self.snapshot.consumers.release(plugin, name, key);
        }
    }

    /// APISIX drops a plugin that two global rules have: neither runs. `plugin.lua merge_global_rules`. In 3.2 both do.
    fn merge_global_rules(&mut self) {
        let mut rules: Vec<(&Key, &Chain)> =
            self.chains.iter().filter(|(key, _)| key.kind() == Kind::GlobalRule).collect();
        rules.sort_by_key(|(key, _)| *key);
        let shared = self.env.compat.global_rules_share_plugins();
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (_, chain) in &rules {
            for step in chain.steps() {
                *seen.entry(step.def.name).or_default() += 1;
            }
        }
        let steps = rules
            .iter()
            .flat_map(|(_, chain)| chain.steps())
            .filter(|step| shared || seen[step.def.name] == 1);
        self.snapshot.global = Chain::new(steps.cloned().collect());
    }

    fn route(&mut self, key: &Key, stored: Option<&str>) -> Result<(), String> {
        let Some(stored) = stored else {
            if let Some(rule) = self.rules.remove(key.id()) {
                self.snapshot.router.remove(&rule);
            }
            self.note_secrets(key, BTreeSet::new());
            self.note_checks(key, None);
            return Ok(());
        };
        let conf = resource::read::<resource::Route>(stored).map_err(text)?;
        self.note_secrets(key, compile::secrets_of(&self.env, &conf.plugins));
        let service = conf.service_id.as_ref().map(|id| Key::new(Kind::Service, id.0.clone()));
        let plugin_config =
            conf.plugin_config_id.as_ref().map(|id| Key::new(Kind::PluginConfig, id.0.clone()));
        let named = [service, plugin_config, certificate(conf.upstream.as_ref())];
        self.note_names(key, named.into_iter().flatten().collect());
        let has_upstream = conf.upstream.is_some() && conf.upstream_id.is_none();
        let rule = if conf.status == 0 { None } else { Some(self.rule(key, conf)?) };
        if let Some(old) = self.rules.remove(key.id()) {
            self.snapshot.router.remove(&old);
        }
        let own = rule.as_ref().and_then(|rule| match &rule.target.upstream {
            RouteUpstream::Inline(upstream) if has_upstream => Some(upstream.clone()),
            _ => None,
        });
        self.note_checks(key, own);
        if let Some(rule) = rule {
            let rule = Arc::new(rule);
            self.snapshot.router.insert(rule.clone());
            self.rules.insert(key.shared_id(), rule);
        }
        Ok(())
    }

    fn note_names(&mut self, key: &Key, names: Vec<Key>) {
        for name in &names {
            self.users.entry(name.clone()).or_default().insert(key.clone());
        }
        if let Some(raw) = self.raw.get_mut(key) {
            raw.names = names;
        }
    }

    fn rule(&self, key: &Key, conf: resource::Route) -> Result<Rule<Route>, String> {
        let service = self.service_of(&conf)?;
        let paths =
            if conf.uris.is_empty() { conf.uri.clone().into_iter().collect() } else { conf.uris.clone() };
        let hosts = match (&conf.hosts, &conf.host, &service) {
            (hosts, ..) if !hosts.is_empty() => Some(hosts.clone()),
            (_, Some(host), _) => Some(vec![host.clone()]),
            (.., Some(service)) if !service.hosts.is_empty() => Some(service.hosts.clone()),
            _ => None,
        };
        let addresses: Vec<&str> =
            conf.remote_addrs.iter().chain(&conf.remote_addr).map(String::as_str).collect();
        let methods = conf
            .methods
            .iter()
            .map(|name| MethodSet::from_name(name))
            .fold(MethodSet::EMPTY, |all, one| all | one);
        let route =
            self.compiled(key, &conf, service.as_ref(), &paths, hosts.as_deref().unwrap_or_default())?;
        let mut rule = Rule::new(key.shared_id(), &paths, route);
        if let Some(hosts) = &hosts {
            rule = rule.with_hosts(hosts);
        }
        rule.methods = methods;
        rule.remote_addrs = match addresses.is_empty() {
            true => None,
            false => Some(Arc::new(IpSet::parse(addresses)?)),
        };
        rule.priority = conf.priority;
        rule.order = self.raw.get(key).map_or(0, |raw| raw.order);
        Ok(rule)
    }

    /// The text of a resource, shared.
    fn stored(&self, key: &Key) -> Option<Arc<str>> {
        self.raw.get(key).map(|raw| raw.text.clone())
    }

    fn service_of(&self, conf: &resource::Route) -> Result<Option<resource::Service>, String> {
        let Some(id) = &conf.service_id else { return Ok(None) };
        let key = Key::new(Kind::Service, id.0.clone());
        let compiled = self.chains.contains_key(&key);
        let Some(raw) = self.raw.get(&key).filter(|_| compiled) else { return Ok(None) };
        resource::read(&raw.text).map(Some).map_err(text)
    }

    fn compiled(
        &self,
        key: &Key,
        conf: &resource::Route,
        service: Option<&resource::Service>,
        paths: &[String],
        hosts: &[String],
    ) -> Result<Route, String> {
        let old = self.rules.get(key.id()).map(|rule| &rule.target);
        let own = self.chain_of(key, &conf.plugins, old.map(|old| &old.chain))?;
        let under = |kind, id: &Option<resource::typed::Id>| match id {
            Some(id) => self.chains.get(&Key::new(kind, id.0.clone())),
            None => None,
        };
        let mut chain = under(Kind::Service, &conf.service_id).cloned().unwrap_or_default();
        if let Some(plugins) = under(Kind::PluginConfig, &conf.plugin_config_id) {
            chain = chain.overlaid(plugins);
        }
        Ok(Route {
            meta: RouteMeta {
                id: key.shared_id(),
                name: conf.name.as_deref().map(Arc::from),
                service_id: service.and(conf.service_id.as_ref()).map(|id| id.0.clone()),
                service_name: service.and_then(|service| service.name.as_deref()).map(Arc::from),
                paths: paths.iter().map(|path| path.as_str().into()).collect(),
                hosts: hosts.iter().map(|host| host.as_str().into()).collect(),
                stored: self.stored(key).unwrap_or_default(),
                stored_service: conf
                    .service_id
                    .as_ref()
                    .and_then(|id| self.stored(&Key::new(Kind::Service, id.0.clone()))),
            },
            chain: chain.overlaid(&own),
            upstream: self.route_upstream(conf, service, old)?,
            timeout: conf.timeout.map(|t| TimeoutConf { connect: t.connect, send: t.send, read: t.read }),
            websocket: conf
                .enable_websocket
                .or(service.and_then(|service| service.enable_websocket))
                .unwrap_or(false),
            vars: condition(conf)?,
            fault: self.fault(conf, service),
        })
    }

    fn fault(&self, conf: &resource::Route, service: Option<&resource::Service>) -> Option<Fault> {
        let missing = |kind, id: &Option<resource::typed::Id>| match id {
            // One that never compiled is missing as well: without its plugins the route would be open.
            Some(id) => !self.chains.contains_key(&Key::new(kind, id.0.clone())),
            None => false,
        };
        if missing(Kind::PluginConfig, &conf.plugin_config_id) {
            return Some(Fault::PluginConfigMissing);
        }
        (conf.service_id.is_some() && service.is_none()).then_some(Fault::ServiceMissing)
    }

    /// The route's own upstream wins over the service's. APISIX: `plugin.lua merge_service_route`.
    fn route_upstream(
        &self,
        conf: &resource::Route,
        service: Option<&resource::Service>,
        old: Option<&Route>,
    ) -> Result<RouteUpstream, String> {
        if let Some(id) = &conf.upstream_id {
            return Ok(RouteUpstream::Id(id.0.clone()));
        }
        if let Some(upstream) = &conf.upstream {
            let old = match old.map(|old| &old.upstream) {
                Some(RouteUpstream::Inline(upstream)) => Some(upstream),
                _ => None,
            };
            let upstream = upstreams::compile(&self.env, &self.client_certs, upstream, old)?;
            return Ok(RouteUpstream::Inline(upstream));
        }
        let Some(service) = service else { return Ok(RouteUpstream::None) };
        if let Some(id) = &service.upstream_id {
            return Ok(RouteUpstream::Id(id.0.clone()));
        }
        let inline = conf.service_id.as_ref().and_then(|id| self.service_upstreams.get(&id.0));
        Ok(inline.map_or(RouteUpstream::None, |upstream| RouteUpstream::Inline(upstream.clone())))
    }
}

/// Checks that a resource compiles by itself, keeping nothing: the dry run of the Admin API.
///
/// # Errors
/// What is wrong, in the words of the Admin API.
pub fn check(env: &Env, key: &Key, value: &Value) -> Result<(), String> {
    if let Some(Value::Object(plugins)) = value.get("plugins") {
        match key.kind() {
            Kind::Consumer | Kind::Credential => {
                consumers::compile(env, &origin(key), plugins, &|_| None, None).map(drop)?;
            }
            _ => compile::dry_run(env, &origin(key), plugins)?,
        }
    }
    match key.kind() {
        Kind::Route => {
            let conf = resource::parse::<resource::Route>(value).map_err(text)?;
            condition(&conf)?;
            conf.upstream.as_ref().map(|upstream| upstreams::check(env, upstream)).transpose().map(drop)
        }
        Kind::Service => {
            let conf = resource::parse::<resource::Service>(value).map_err(text)?;
            conf.upstream.as_ref().map(|upstream| upstreams::check(env, upstream)).transpose().map(drop)
        }
        Kind::Upstream => upstreams::check(env, &resource::parse::<resource::Upstream>(value).map_err(text)?),
        _ => Ok(()),
    }
}

/// The ssl resource that an upstream shows to its nodes.
fn certificate(upstream: Option<&resource::Upstream>) -> Option<Key> {
    let id = upstream?.tls.as_ref()?.client_cert_id.as_ref()?;
    Some(Key::new(Kind::Ssl, id.0.clone()))
}

fn condition(conf: &resource::Route) -> Result<Option<Box<Expr>>, String> {
    if conf.filter_func.is_some() {
        return Err("filter_func is Lua code, which does not run here: write the condition as vars".into());
    }
    if conf.vars.is_empty() {
        return Ok(None);
    }
    let mut vars = Value::Array(conf.vars.clone());
    lua::integers(&mut vars);
    Expr::parse(&vars)
        .map(|vars| Some(Box::new(vars)))
        .map_err(|e| format!("failed to validate the 'vars' expression: {e}"))
}

fn origin(key: &Key) -> Origin {
    Origin { kind: key.kind().schema_name(), id: key.shared_id() }
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}
