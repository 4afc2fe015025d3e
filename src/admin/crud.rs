//! Reading and writing resources, one way for all kinds. APISIX: admin/resource.lua, and core/etcd.lua for the
//! shapes of answers.
//!
//! A write goes: body → id → times → form → references → plugins → unique keys → defaults → encryption → dry run →
//! store → until requests see it → answer. Writes of this process wait for each other, so that what was checked still
//! holds when it is stored; guards protect against writers elsewhere.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tokio::sync::{RwLockReadGuard, RwLockWriteGuard};

use super::{
    Admin, ApiVersion,
    crypt::Crypt,
    error::{AdminError, Response},
    judge::{self, Id, Subject, id_text},
    kinds::{Verb, has_id, rules},
    list, patch,
    refs::value,
};
use crate::{
    resource::{self, Key, Kind},
    store::{Committed, Entry, Guard, StoreError, Write, compact},
};

/// How long an answer waits until requests see the write. It is stored already: a slow compilation delays the
/// answer, it does not change it.
const VISIBLE_WITHIN: Duration = Duration::from_secs(10);

/// The resource or the list that a path names.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Of which kind.
    pub kind: Kind,
    /// Its id, without consumer or manager; `None` for the list.
    pub id: Option<String>,
    /// The consumer of a credential, the manager of a secret.
    pub owner: Option<String>,
    /// What follows, for PATCH.
    pub below: Vec<String>,
}

/// A request to a resource, taken apart.
pub struct Call {
    /// Which resource.
    pub target: Target,
    /// The body.
    pub body: Option<Value>,
    /// How long the entry shall live.
    pub ttl: Option<Duration>,
    /// The query string.
    pub query: String,
}

impl Target {
    fn key(&self, id: &str) -> Key {
        let owner = self.owner.as_deref().unwrap_or_default();
        match self.kind {
            Kind::Credential => Key::new(Kind::Credential, format!("{owner}/credentials/{id}")),
            Kind::Secret => Key::new(Kind::Secret, format!("{owner}/{id}")),
            kind => Key::new(kind, id),
        }
    }

    /// The id as the resource's own member has it.
    fn written_id(&self) -> Option<String> {
        let id = self.id.as_ref()?;
        match self.kind {
            Kind::Secret => Some(format!("{}/{id}", self.owner.as_deref().unwrap_or_default())),
            _ => Some(id.clone()),
        }
    }

    fn needed_id(&self) -> Result<&str, AdminError> {
        let missing = || AdminError::Invalid(format!("missing {} id", self.kind.singular()));
        self.id.as_deref().ok_or_else(missing)
    }
}

/// What a write holds from its checks until requests see it.
enum Turn<'a> {
    Alone { _held: RwLockWriteGuard<'a, ()> },
    Shared { _held: RwLockReadGuard<'a, ()> },
}

impl Admin {
    /// Carries out a request to a resource.
    pub(super) async fn crud(&self, verb: Verb, call: Call) -> Result<Response, AdminError> {
        let kind = call.target.kind;
        if rules(kind).refused.contains(&verb) {
            let text = format!("not supported `{}` method for {}", verb.name(), kind.singular());
            return Err(AdminError::NotAllowed(text));
        }
        match verb {
            Verb::Get => match &call.target.id {
                Some(id) => self.get(&call.target.key(id)).await,
                None => self.list(&call).await,
            },
            Verb::Put => self.put(call).await,
            Verb::Post => self.post(call).await,
            Verb::Delete => self.delete(&call).await,
            Verb::Patch => self.patch(call).await,
        }
    }

    async fn get(&self, key: &Key) -> Result<Response, AdminError> {
        let entry = self.store.get(key).await?.ok_or(AdminError::NoSuchKey)?;
        let mut node = self.node(&entry);
        if self.options.version == ApiVersion::V2 {
            // Only lists tell revisions in this version.
            node = json!({"node": {"key": node["key"], "value": node["value"]}, "action": "get"});
        }
        Ok(Response::json(200, &node))
    }

    async fn list(&self, call: &Call) -> Result<Response, AdminError> {
        let target = &call.target;
        let (entries, dir) = match (target.kind, &target.owner) {
            (Kind::Credential, Some(consumer)) => {
                let entries =
                    self.store.list_prefix(Kind::Credential, &format!("{consumer}/credentials/")).await?;
                // A folder of which nobody made sure that it exists is found only while something is in it.
                if entries.is_empty() {
                    return Err(AdminError::NoSuchKey);
                }
                (entries, format!("{}/consumers/{consumer}/credentials", Key::PREFIX))
            }
            (kind, _) => (self.store.list(kind).await?, format!("{}/{}", Key::PREFIX, kind.dir())),
        };
        if self.options.version == ApiVersion::V2 {
            let nodes: Vec<Value> = entries.iter().map(|entry| self.node(entry)).collect();
            let node = json!({"key": dir, "dir": true, "nodes": nodes});
            return Ok(Response::json(200, &json!({"node": node, "action": "get"})));
        }
        let page = list::select(target.kind, entries, &call.query)?;
        let nodes: Vec<Value> = page.entries.iter().map(|entry| self.node(entry)).collect();
        Ok(Response::json(200, &json!({"list": nodes, "total": page.total})))
    }

    async fn put(&self, mut call: Call) -> Result<Response, AdminError> {
        let kind = call.target.kind;
        if kind == Kind::Secret {
            call.target.needed_id()?;
        }
        let _turn = self.turn(kind).await;
        let mut members = self.body(kind, call.body.take(), Id::Needed, call.target.written_id())?;
        let mut value = Value::Object(std::mem::take(&mut members));
        let id = self.judge(&call.target, &value).await?;
        let key = call.target.key(&id);
        if let Some(consumer) = key.consumer() {
            let owner = Key::new(Kind::Consumer, consumer);
            if self.store.get(&owner).await?.is_none() {
                return Err(AdminError::NotFound("consumer not found".into()));
            }
        }
        let before = self.store.get(&key).await?;
        if let Some(members) = value.as_object_mut() {
            match kind {
                Kind::PluginMetadata => {
                    members.insert("id".into(), Value::String(id));
                }
                _ => stamp(members, before.as_ref()),
            }
        }
        let value = self.ready(&key, value)?;
        let committed = self.commit(vec![put(&key, &value, Guard::Any, call.ttl)]).await?;
        let created = committed.puts.first().is_some_and(|put| put.created);
        Ok(self.written(if created { 201 } else { 200 }, "set", &key, &value))
    }

    async fn post(&self, mut call: Call) -> Result<Response, AdminError> {
        let kind = call.target.kind;
        let _turn = self.turn(kind).await;
        let members = self.body(kind, call.body.take(), Id::Refused, call.target.written_id())?;
        let mut value = Value::Object(members);
        self.judge(&call.target, &value).await?;
        let id = format!("{:020}", self.store.next_id().await?);
        if let Some(members) = value.as_object_mut() {
            stamp(members, None);
            members.insert("id".into(), Value::String(id.clone()));
        }
        let key = call.target.key(&id);
        let value = self.ready(&key, value)?;
        self.commit(vec![put(&key, &value, Guard::Absent, call.ttl)]).await?;
        Ok(self.written(201, "create", &key, &value))
    }

    async fn delete(&self, call: &Call) -> Result<Response, AdminError> {
        let kind = call.target.kind;
        let id = call.target.needed_id()?;
        let key = call.target.key(id);
        // Nobody may begin to use what is checked to be unused.
        let _alone = self.writing.write().await;
        let force = crate::net::args::text(call.query.as_bytes(), "force");
        if force.as_deref() != Some("true") {
            self.is_unused(kind, id).await?;
        }
        let writes = match kind {
            Kind::Consumer => Write::remove_consumer(key.clone(), Guard::Any),
            _ => vec![Write::Delete { key: key.clone(), guard: Guard::Any }],
        };
        let committed = self.commit(writes).await?;
        if !committed.deleted.iter().any(|entry| entry.key == key) {
            return Err(AdminError::NoSuchKey);
        }
        Ok(match self.options.version {
            ApiVersion::V3 => Response::json(200, &json!({"deleted": "1", "key": key.path()})),
            ApiVersion::V2 => {
                let body = json!({"deleted": "1", "key": key.path(), "node": {}, "action": "delete"});
                Response::json(200, &body)
            }
        })
    }

    async fn patch(&self, mut call: Call) -> Result<Response, AdminError> {
        let kind = call.target.kind;
        if kind == Kind::Secret && call.target.id.is_none() {
            return Err(AdminError::Invalid("no secret id".into()));
        }
        let key = call.target.key(call.target.needed_id()?);
        let invalid = |text: &str| AdminError::Invalid(text.to_owned());
        let change = call.body.take().ok_or_else(|| invalid("missing new configuration"))?;
        let _turn = self.turn(kind).await;
        let whole = call.target.below.is_empty();
        if whole && !change.is_object() && !change.is_array() {
            return Err(invalid("invalid configuration"));
        }
        let entry = self.store.get(&key).await?.ok_or(AdminError::NoSuchKey)?;
        let mut before = value(&entry);
        self.crypt().decrypt(kind, key.id(), &mut before);
        let mut members = match before {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        apply(&mut members, &call.target.below, change)?;
        judge::tidy(&mut members);
        let settled = judge::settle_id(kind, Id::Needed, call.target.written_id(), &mut members);
        settled.map_err(AdminError::Invalid)?;
        let value = Value::Object(members);
        self.judge(&call.target, &value).await?;
        let value = self.ready(&key, value)?;
        let writes = vec![put(&key, &value, Guard::Revision(entry.modified), call.ttl)];
        match self.commit(writes).await {
            Err(AdminError::Store(StoreError::Conflict { .. })) => Err(AdminError::Changed),
            Err(error) => Err(error),
            Ok(_) => Ok(self.written(200, "compareAndSwap", &key, &value)),
        }
    }

    /// The body of a PUT or POST as an object with its id settled.
    fn body(
        &self,
        kind: Kind,
        body: Option<Value>,
        need: Id,
        id: Option<String>,
    ) -> Result<Map<String, Value>, AdminError> {
        let mut members =
            judge::object(kind, body, self.control.env().compat).map_err(AdminError::Invalid)?;
        judge::settle_id(kind, need, id, &mut members).map_err(AdminError::Invalid)?;
        if self.control.env().compat.forbids_times() {
            judge::forbid_times(&members).map_err(AdminError::Invalid)?;
        }
        judge::tidy(&mut members);
        Ok(members)
    }

    /// All checks but the dry run. Gives the last part of the key: an id, or a consumer's name; nothing for a POST.
    async fn judge(&self, target: &Target, value: &Value) -> Result<String, AdminError> {
        let own = value.get("id").and_then(id_text);
        let written = if has_id(target.kind) { own } else { target.id.clone() };
        let subject =
            Subject { kind: target.kind, id: written.as_deref(), consumer: target.owner.as_deref(), value };
        self.judge_form(&subject).map_err(AdminError::Invalid)?;
        // A consumer's group is looked up last.
        let consumer = target.kind == Kind::Consumer;
        if !consumer {
            self.references_exist(&subject).await?;
        }
        self.judge_plugins(&subject).map_err(AdminError::Invalid)?;
        self.is_unique(&subject).await?;
        if consumer {
            self.references_exist(&subject).await?;
        }
        let name = value.get("username").and_then(Value::as_str);
        Ok(match target.kind {
            Kind::Consumer => name.unwrap_or_default().to_owned(),
            Kind::Secret => target.id.clone().unwrap_or_default(),
            _ => written.unwrap_or_default(),
        })
    }

    /// A good resource as it is stored, after the dry run.
    fn ready(&self, key: &Key, mut value: Value) -> Result<Value, AdminError> {
        resource::tell_strangers(key, &value, self.control.env().compat);
        self.complete(key.kind(), &mut value);
        if self.control.env().compat.echoes_defaults() {
            self.fill_defaults(key.kind(), &mut value);
        }
        self.crypt().encrypt(key.kind(), key.id(), &mut value);
        self.control.check(key, &value).map_err(AdminError::Invalid)?;
        Ok(value)
    }

    /// Writes run side by side, so that the store can make many durable at once; those whose checks look at other
    /// resources of their kind (equal keys, equal plugins) run alone.
    async fn turn(&self, kind: Kind) -> Turn<'_> {
        match kind {
            Kind::Consumer | Kind::Credential | Kind::GlobalRule => {
                Turn::Alone { _held: self.writing.write().await }
            }
            _ => Turn::Shared { _held: self.writing.read().await },
        }
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, AdminError> {
        let committed = self.store.commit(writes).await?;
        if committed.revision > 0 {
            self.visible(committed.revision).await;
        }
        Ok(committed)
    }

    /// Waits until requests see a revision.
    pub(super) async fn visible(&self, revision: u64) {
        if tokio::time::timeout(VISIBLE_WITHIN, self.control.applied(revision)).await.is_err() {
            tracing::warn!(revision, "stored, but requests do not see it yet");
        }
    }

    fn written(&self, status: u16, action: &str, key: &Key, value: &Value) -> Response {
        let node = json!({"key": key.path(), "value": value});
        match self.options.version {
            ApiVersion::V3 => Response::json(status, &node),
            ApiVersion::V2 => Response::json(status, &json!({"node": node, "action": action})),
        }
    }

    /// An entry as it is shown: plugins decrypted, private keys of certificates left out.
    fn node(&self, entry: &Entry) -> Value {
        let kind = entry.key.kind();
        let mut shown = value(entry);
        self.crypt().decrypt(kind, entry.key.id(), &mut shown);
        if kind == Kind::Ssl
            && let Some(members) = shown.as_object_mut()
        {
            members.shift_remove("key");
            members.shift_remove("keys");
        }
        json!({
            "key": entry.key.path(),
            "value": shown,
            "createdIndex": entry.created,
            "modifiedIndex": entry.modified,
        })
    }

    fn crypt(&self) -> Crypt<'_> {
        let env = self.control.env();
        Crypt { keyring: env.keyring.as_ref(), registry: &env.registry }
    }
}

fn put(key: &Key, value: &Value, guard: Guard, ttl: Option<Duration>) -> Write {
    Write::Put { key: key.clone(), value: compact(value), guard, ttl }
}

/// Sets the times of a PUT or POST; those the body brought stay. APISIX: admin/utils.lua.
fn stamp(members: &mut Map<String, Value>, before: Option<&Entry>) {
    let created = before.and_then(|entry| value(entry).get("create_time").cloned());
    members.entry("create_time").or_insert_with(|| created.unwrap_or_else(now));
    members.entry("update_time").or_insert_with(now);
}

/// Changes a stored object as a PATCH says, times included.
fn apply(members: &mut Map<String, Value>, below: &[String], change: Value) -> Result<(), AdminError> {
    let mut brings_time = false;
    if below.is_empty() {
        match &change {
            Value::Object(change) => {
                brings_time = change.get("update_time").is_some_and(|time| !time.is_null());
                patch::merge(members, change);
            }
            Value::Array(items) if items.is_empty() => {}
            _ => return Err(AdminError::Invalid("invalid configuration".into())),
        }
    } else {
        let path: Vec<&str> = below.iter().map(String::as_str).collect();
        patch::set_at(members, &path, change).map_err(AdminError::Invalid)?;
    }
    members.entry("create_time").or_insert_with(now);
    if !brings_time {
        members.insert("update_time".into(), now());
    }
    Ok(())
}

fn now() -> Value {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Value::from(since.as_secs())
}
