//! The values of secret managers, kept in memory for whoever compiles a configuration.
//!
//! APISIX: secret.lua, its cache. What compiling asked for in vain is fetched before the configuration is served
//! ([`Secrets::gather`]), and again in the background ([`Secrets::run`]); whoever follows [`Secrets::changed`] compiles
//! anew what a changed value concerns. A value that was good stays while its manager does not answer.
//!
//! Invariant: compiling never waits for a manager, and no request ever asks one.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{Reference, ResolveError, Revealed, SecretRef, SecretSource, resolve_env, resolve_in};

/// How long a change of configuration waits for values it needs for the first time. Its owner waits for the answer of
/// the Admin API; what comes later is taken in by the background.
const GATHER: Duration = Duration::from_secs(5);
/// How long one fetch may take; its calls have time-outs of their own.
const FETCH: Duration = Duration::from_secs(30);
/// A refresh sooner than this would be a storm.
const SOONEST: Duration = Duration::from_millis(100);

/// How long values and failures are believed. `apisix.lru.secret` of config.yaml.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// How long a value is kept before it is fetched again.
    pub value: Duration,
    /// How long a failure is kept.
    pub failure: Duration,
}

/// The secret managers by name.
pub type Sources = HashMap<&'static str, Box<dyn SecretSource>>;

/// Looks a variable of the environment up.
pub type Environment = fn(&str) -> Option<String>;

/// See the module.
pub struct Secrets {
    sources: Sources,
    lifetimes: Lifetimes,
    environment: Environment,
    // Locked while a configuration is compiled and after a fetch, never across one and never per request.
    state: Mutex<State>,
    asked: Notify,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Secret resources by `manager/id`.
    confs: HashMap<String, Value>,
    kept: HashMap<SecretRef, Kept>,
    changed: BTreeSet<SecretRef>,
}

struct Kept {
    /// The last good value.
    value: Option<Value>,
    /// Why the last fetch brought none.
    error: Option<ResolveError>,
    /// Counts the values.
    version: u64,
    /// When to fetch again.
    due: Instant,
}

impl Secrets {
    /// Nothing is known yet.
    pub fn new(sources: Sources, lifetimes: Lifetimes, environment: Environment) -> Self {
        Self {
            sources,
            lifetimes: Lifetimes {
                value: lifetimes.value.max(SOONEST),
                failure: lifetimes.failure.max(SOONEST),
            },
            environment,
            state: Mutex::default(),
            asked: Notify::new(),
            changed: Notify::new(),
        }
    }

    /// The value of a reference as far as it is known now.
    ///
    /// # Errors
    /// Why there is none.
    pub fn resolve(&self, reference: &Reference) -> Result<Revealed, ResolveError> {
        match reference {
            Reference::Env { name, field } => resolve_env(name, field.as_deref(), self.environment),
            Reference::Secret(secret) => self.kept(secret),
        }
    }

    fn kept(&self, secret: &SecretRef) -> Result<Revealed, ResolveError> {
        let mut state = self.lock();
        let kept = state.kept.entry(secret.clone()).or_insert_with(Kept::unknown);
        match (&kept.value, &kept.error) {
            (Some(value), _) => Ok(Revealed::new(value.clone())),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Err(ResolveError::Pending),
        }
    }

    /// Tells a value from the one before it, without showing it; for whoever compares configurations.
    pub fn version(&self, secret: &SecretRef) -> u64 {
        self.lock().kept.get(secret).map_or(0, |kept| kept.version)
    }

    /// Takes in a secret resource, or that it is gone. What hangs on it is fetched anew.
    pub fn configure(&self, id: &str, conf: Option<Value>) {
        let mut state = self.lock();
        let same = match &conf {
            Some(conf) => state.confs.get(id) == Some(conf),
            None => !state.confs.contains_key(id),
        };
        if same {
            return;
        }
        match conf {
            Some(conf) => _ = state.confs.insert(id.to_owned(), conf),
            None => _ = state.confs.remove(id),
        }
        let now = Instant::now();
        let (manager, id) = id.split_once('/').unwrap_or((id, ""));
        for (secret, kept) in &mut state.kept {
            if secret.manager == manager && secret.id == id {
                kept.due = now;
            }
        }
    }

    /// Forgets the values that nobody needs any more.
    pub fn keep(&self, needed: impl Fn(&SecretRef) -> bool) {
        let mut state = self.lock();
        if !state.kept.is_empty() {
            state.kept.retain(|secret, _| needed(secret));
        }
    }

    /// Fetches what was asked for in vain and what is due, waits a bounded time for it, and tells what changed.
    pub async fn gather(self: &Arc<Self>) -> BTreeSet<SecretRef> {
        let due = self.due();
        if due.is_empty() {
            return BTreeSet::new();
        }
        if timeout(GATHER, self.fetch_all(due)).await.is_err() {
            tracing::warn!(
                "secret managers do not answer; the configuration does not wait for them any longer"
            );
        }
        // It may sleep for longer than the new values are good.
        self.asked.notify_one();
        std::mem::take(&mut self.lock().changed)
    }

    /// Refreshes for ever.
    pub async fn run(self: Arc<Self>) {
        loop {
            let next = self.lock().kept.values().map(|kept| kept.due).min();
            match next {
                Some(next) => tokio::select! {
                    () = sleep_until(next) => {}
                    () = self.asked.notified() => {}
                },
                None => self.asked.notified().await,
            }
            self.fetch_all(self.due()).await;
        }
    }

    /// Waits until values are not what they were, and tells which. Nothing is lost when it is not awaited to the end.
    pub async fn changed(&self) -> BTreeSet<SecretRef> {
        loop {
            {
                let mut state = self.lock();
                if !state.changed.is_empty() {
                    return std::mem::take(&mut state.changed);
                }
            }
            self.changed.notified().await;
        }
    }

    fn due(&self) -> Vec<SecretRef> {
        let now = Instant::now();
        let state = self.lock();
        state.kept.iter().filter(|(_, kept)| kept.due <= now).map(|(secret, _)| secret.clone()).collect()
    }

    async fn fetch_all(self: &Arc<Self>, secrets: Vec<SecretRef>) {
        let mut fetches = JoinSet::new();
        let asked = self.dues(&secrets);
        for secret in secrets {
            let all = self.clone();
            fetches.spawn(async move {
                let found = all.fetch(&secret).await;
                all.take(&secret, found);
            });
        }
        while fetches.join_next().await.is_some() {}
        self.postpone(&asked);
    }

    fn dues(&self, secrets: &[SecretRef]) -> Vec<(SecretRef, Instant)> {
        let state = self.lock();
        secrets.iter().filter_map(|secret| Some((secret.clone(), state.kept.get(secret)?.due))).collect()
    }

    /// What a fetch left as it was, because it broke down, is not asked for again at once.
    fn postpone(&self, asked: &[(SecretRef, Instant)]) {
        let mut state = self.lock();
        let now = Instant::now();
        for (secret, due) in asked {
            if let Some(kept) = state.kept.get_mut(secret).filter(|kept| kept.due == *due) {
                tracing::error!(manager = %secret.manager, id = %secret.id, key = %secret.key, "fetching a secret broke down");
                kept.due = now + self.lifetimes.failure;
            }
        }
    }

    async fn fetch(&self, secret: &SecretRef) -> Result<Revealed, ResolveError> {
        let SecretRef { manager, id, key } = secret;
        let conf = self.lock().confs.get(&format!("{manager}/{id}")).cloned();
        let Some(mut conf) = conf else {
            return Err(ResolveError::NoConf { manager: manager.clone(), id: id.clone() });
        };
        let source =
            self.sources.get(&**manager).ok_or_else(|| failed(secret, "there is no such manager"))?;
        // APISIX: only `$env://` may stand in a secret resource.
        let unresolved = resolve_in(&mut conf, |reference| match reference {
            Reference::Env { name, field } => resolve_env(name, field.as_deref(), self.environment),
            Reference::Secret(_) => {
                Err(failed(secret, "a secret resource cannot have references to secrets"))
            }
        });
        if let Some(first) = unresolved.first() {
            return Err(first.error.clone());
        }
        match timeout(FETCH, source.fetch(&conf, key)).await {
            Ok(found) => found,
            Err(_) => Err(failed(secret, "it did not answer in time")),
        }
    }

    /// Notes what a fetch brought.
    fn take(&self, secret: &SecretRef, found: Result<Revealed, ResolveError>) {
        let mut state = self.lock();
        let Some(kept) = state.kept.get_mut(secret) else { return };
        let now = Instant::now();
        match found {
            Ok(value) => {
                let value = value.into_value();
                kept.due = now + self.lifetimes.value;
                kept.error = None;
                if kept.value.as_ref() == Some(&value) {
                    return;
                }
                kept.value = Some(value);
                kept.version += 1;
            }
            Err(error) => {
                kept.due = now + self.lifetimes.failure;
                let SecretRef { manager, id, key } = secret;
                let stays = kept.value.is_some();
                tracing::warn!(%manager, %id, %key, %error, stays, "secret cannot be fetched");
                kept.error = Some(error);
                return;
            }
        }
        state.changed.insert(secret.clone());
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Secrets {
    /// No manager, no environment: for configurations that are looked at and not served.
    fn default() -> Self {
        let lifetimes = Lifetimes { value: Duration::from_secs(300), failure: Duration::from_secs(60) };
        Self::new(Sources::new(), lifetimes, |_| None)
    }
}

impl Kept {
    fn unknown() -> Self {
        Self { value: None, error: None, version: 0, due: Instant::now() }
    }
}

fn failed(secret: &SecretRef, why: &str) -> ResolveError {
    ResolveError::Source { manager: secret.manager.clone(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use async_trait::async_trait;
    use serde_json::json;

    use super::*;

    /// Answers `TOKEN-KEY-N`, N counting the fetches; nothing while the token is `down`.
    #[derive(Default)]
    struct Counting(AtomicUsize);

    #[async_trait]
    impl SecretSource for Counting {
        async fn fetch(&self, conf: &Value, key: &str) -> Result<Revealed, ResolveError> {
            let count = self.0.fetch_add(1, Relaxed) + 1;
            match conf["token"].as_str() {
                Some("down") => Err(ResolveError::Source { manager: "vault".into(), why: "down".into() }),
                Some("hangs") => std::future::pending().await,
                Some(token) => Ok(Revealed::new(json!(format!("{token}-{key}-{count}")))),
                None => Ok(Revealed::new(Value::Null)),
            }
        }
    }

    fn environment(name: &str) -> Option<String> {
        (name == "TOKEN").then(|| "from-env".into())
    }

    fn secrets(value: Duration) -> Arc<Secrets> {
        let source: Box<dyn SecretSource> = Box::new(Counting::default());
        let lifetimes = Lifetimes { value, failure: value };
        Arc::new(Secrets::new(HashMap::from([("vault", source)]), lifetimes, environment))
    }

    fn reference(key: &str) -> SecretRef {
        SecretRef { manager: "vault".into(), id: "1".into(), key: key.into() }
    }

    #[track_caller]
    fn check(secrets: &Secrets, key: &str, expected: Result<&str, &str>) {
        let found = secrets.resolve(&Reference::Secret(reference(key)));
        let found = found.map(Revealed::into_value).map_err(|error| error.to_string());
        assert_eq!(found, expected.map(|value| json!(value)).map_err(str::to_owned));
    }

    const LONG: Duration = Duration::from_secs(3600);
    const PENDING: &str = "its secret manager did not answer yet";

    #[tokio::test(start_paused = true)]
    async fn a_value_is_fetched_once_and_again_when_its_resource_changes() {
        let secrets = secrets(LONG);
        check(&secrets, "a", Err(PENDING));
        assert!(secrets.gather().await.is_empty());
        check(&secrets, "a", Err("no secret conf vault/1"));
        secrets.configure("vault/1", Some(json!({"token": "t"})));
        assert_eq!(secrets.gather().await, BTreeSet::from([reference("a")]));
        check(&secrets, "a", Ok("t-a-1"));
        assert!(secrets.gather().await.is_empty());
        check(&secrets, "a", Ok("t-a-1"));
        let version = secrets.version(&reference("a"));
        secrets.configure("vault/1", Some(json!({"token": "$env://TOKEN"})));
        assert_eq!(secrets.gather().await.len(), 1);
        check(&secrets, "a", Ok("from-env-a-2"));
        assert_ne!(secrets.version(&reference("a")), version);
        secrets.keep(|_| false);
        assert!(secrets.lock().kept.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_value_stays() {
        let secrets = secrets(LONG);
        secrets.configure("vault/1", Some(json!({"token": "t"})));
        check(&secrets, "a", Err(PENDING));
        secrets.gather().await;
        secrets.configure("vault/1", Some(json!({"token": "down"})));
        check(&secrets, "b", Err(PENDING));
        assert!(secrets.gather().await.is_empty());
        check(&secrets, "a", Ok("t-a-1"));
        check(&secrets, "b", Err("secret manager vault: down"));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_long_for_a_manager_that_hangs() {
        let secrets = secrets(LONG);
        secrets.configure("vault/1", Some(json!({"token": "hangs"})));
        check(&secrets, "a", Err(PENDING));
        let begun = Instant::now();
        secrets.gather().await;
        assert_eq!(begun.elapsed().as_secs(), GATHER.as_secs());
        check(&secrets, "a", Err(PENDING));
    }

    #[tokio::test(start_paused = true)]
    async fn values_are_refreshed() {
        let secrets = secrets(Duration::from_secs(1));
        secrets.configure("vault/1", Some(json!({"token": "t"})));
        check(&secrets, "a", Err(PENDING));
        assert_eq!(secrets.gather().await.len(), 1);
        let refreshing = tokio::spawn(secrets.clone().run());
        assert_eq!(secrets.changed().await.len(), 1);
        refreshing.abort();
        assert!(secrets.version(&reference("a")) >= 2);
    }
}
