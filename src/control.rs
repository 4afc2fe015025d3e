//! The one loop that turns store events into snapshots, and the only place that swaps them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;
use tokio::sync::watch;

use crate::{
    plugin::metrics::gateway::NodeStatus,
    resource::{Key, Kind},
    snapshot::{
        Current, Snapshot,
        compile::Env,
        workspace::{self, Workspace},
    },
    store::{Change, Event, Watch},
    upstream::{Node, Upstream, health::probe::Probes},
};

/// Compiles what stores report and lets requests see it.
pub struct Control {
    env: Arc<Env>,
    current: Arc<Current>,
    // Locked while a change is compiled and while somebody asks for faults; never per request.
    workspace: Mutex<Workspace>,
    applied: watch::Sender<Applied>,
}

/// How far the loop has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The store's revision that requests see.
    pub revision: u64,
    /// Whether the first full load is done.
    pub loaded: bool,
}

impl Control {
    /// Serves an empty configuration until the first event.
    pub fn new(env: Arc<Env>) -> Self {
        let workspace = Workspace::new(env.clone());
        let current = Arc::new(Current::new(Arc::new(Snapshot::empty(env.clone()))));
        Self { env, current, workspace: Mutex::new(workspace), applied: watch::Sender::default() }
    }

    /// Where the running snapshot is.
    pub fn current(&self) -> Arc<Current> {
        self.current.clone()
    }

    /// What compilation needs.
    pub fn env(&self) -> &Arc<Env> {
        &self.env
    }

    /// Follows a store for ever; what is queued at once is compiled at once.
    pub async fn run(&self, mut events: Watch, probes: &Probes) {
        loop {
            tokio::select! {
                event = events.recv() => {
                    let mut batch = vec![event];
                    while let Some(event) = events.try_recv() {
                        batch.push(event);
                    }
                    self.take(batch).await;
                }
                changed = self.env.secrets.changed() => self.publish(self.compiled(|one| one.take_secrets(&changed))),
            }
            self.sync_probes(probes);
        }
    }

    /// Probes exactly the nodes that requests may meet.
    pub fn sync_probes(&self, probes: &Probes) {
        let workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        probes.sync(workspace.upstreams());
    }

    /// Compiles events, fetches the secrets that they need for the first time, and swaps. Requests see the configuration
    /// before until then; the wait is bounded.
    pub async fn take(&self, events: Vec<Event>) {
        self.count_revisions(&events);
        let mut snapshot = self.compiled(|workspace| workspace.apply(events));
        let fetched = self.env.secrets.gather().await;
        if !fetched.is_empty() {
            snapshot = self.compiled(|workspace| workspace.take_secrets(&fetched));
        }
        self.publish(snapshot);
    }

    /// Compiles events with the secrets that are known, and swaps.
    pub fn apply(&self, events: Vec<Event>) {
        self.count_revisions(&events);
        self.publish(self.compiled(|workspace| workspace.apply(events)));
    }

    fn compiled(&self, change: impl FnOnce(&mut Workspace)) -> Arc<Snapshot> {
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut workspace);
        workspace.snapshot()
    }

    fn publish(&self, snapshot: Arc<Snapshot>) {
        let revision = snapshot.revision;
        self.current.swap(snapshot);
        self.applied.send_replace(Applied { revision, loaded: true });
    }

    /// APISIX: `etcd_modify_indexes`.
    fn count_revisions(&self, events: &[Event]) {
        let mut newest: BTreeMap<&'static str, u64> = BTreeMap::new();
        let mut note = |kind: Kind, revision: u64| {
            let known = newest.entry(kind.dir()).or_default();
            *known = revision.max(*known);
        };
        for event in events {
            match event {
                Event::Reset { entries, .. } => {
                    entries.iter().for_each(|entry| note(entry.key.kind(), entry.modified))
                }
                Event::Changes { changes, revision } => changes.iter().for_each(|change| match change {
                    Change::Put(entry) => note(entry.key.kind(), entry.modified),
                    Change::Delete(key) => note(key.kind(), *revision),
                }),
            }
        }
        for (kind, revision) in newest {
            self.env.metrics.gateway.set_revision(kind, revision);
        }
    }

    /// The health of every watched node, for metrics.
    pub fn node_status(&self) -> Vec<NodeStatus> {
        let workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |(key, upstream): (String, Arc<Upstream>)| -> Vec<NodeStatus> {
            let status = |node: &Node| NodeStatus {
                name: format!("/apisix{key}"),
                ip: node.host().to_owned(),
                port: node.port(),
                healthy: node.is_healthy(),
            };
            upstream.nodes().iter().map(status).collect()
        };
        workspace.upstreams().flat_map(of).collect()
    }

    /// Waits until requests see a revision: the Admin API answers after that.
    pub async fn applied(&self, revision: u64) {
        let mut applied = self.applied.subscribe();
        // The sender lives as long as `self`, so this cannot fail.
        let _ = applied.wait_for(|now| now.revision >= revision).await;
    }

    /// How far the loop has come.
    pub fn progress(&self) -> Applied {
        self.applied.borrow().clone()
    }

    /// Resources whose last good version is served because the newest does not compile.
    pub fn faults(&self) -> BTreeMap<Key, String> {
        self.workspace.lock().unwrap_or_else(PoisonError::into_inner).faults().clone()
    }

    /// The dry run: whether a resource would compile.
    ///
    /// # Errors
    /// Why not, in the words of the Admin API.
    pub fn check(&self, key: &Key, value: &Value) -> Result<(), String> {
        workspace::check(&self.env, key, value)
    }

    /// The health checks of a route, service or upstream with nodes of its own, as `GET /v1/healthcheck` shows them
    /// under a name.
    pub fn health(&self, key: &Key, name: &str) -> Option<Value> {
        self.workspace.lock().unwrap_or_else(PoisonError::into_inner).upstream_of(key)?.health_report(name)
    }

    /// Whether there is a resource.
    pub fn has(&self, key: &Key) -> bool {
        self.workspace.lock().unwrap_or_else(PoisonError::into_inner).has(key)
    }

    /// How many resources of a kind are served from, for status pages.
    pub fn count(&self, kind: Kind) -> usize {
        self.workspace.lock().unwrap_or_else(PoisonError::into_inner).count(kind)
    }
}
