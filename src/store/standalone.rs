//! The API-driven standalone mode: one document holds all resources and is replaced as a whole
//! (APISIX: admin/standalone.lua, admin/config_validate.lua, core/config_yaml.lua `sync_data`).
//!
//! [`apply`] is the pure half: from a request body and the document before to the document after, or to APISIX's text
//! of what is wrong. [`Standalone`] keeps the document and feeds a [`MemoryStore`]. HTTP is the Admin API's.
//!
//! Invariant: a refused document changes nothing.
//!
//! Differs from APISIX: where Lua's table order decides which of several faults is named, the order here is fixed;
//! a list entry that is no object is refused with a sentence instead of an internal error.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Map, Number, Value, json};
use tokio::sync::Mutex;

use super::{MemoryStore, StoreError, compact};
use crate::resource::{Key, Kind};

/// The header, and the member of the document, that identifies a document.
pub const DIGEST: &str = "X-Digest";

/// The header, and the member of the document, with the time of the last change in Unix seconds.
pub const LAST_MODIFIED: &str = "X-Last-Modified";

/// The top-level lists of a document, in the order in which they are checked.
pub const LISTS: [&str; 13] = [
    "upstreams",
    "services",
    "routes",
    "stream_routes",
    "consumers",
    "consumer_groups",
    "ssls",
    "global_rules",
    "plugin_configs",
    "plugin_metadata",
    "protos",
    "secrets",
    "plugins",
];

/// An accepted document: what GET answers.
#[derive(Clone, PartialEq)]
pub struct Document {
    members: Map<String, Value>,
}

// By hand: a derived one would print the secrets of consumers and plugins.
impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document").field("digest", &self.digest()).finish_non_exhaustive()
    }
}

/// What became of a well-formed request.
#[derive(Clone, Debug, PartialEq)]
pub enum Applied {
    /// The digest is that of the present document (204).
    Unchanged,
    /// The document to be from now on (202).
    Accepted(Document),
}

/// Why a document was refused.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The document is faulty; the text is APISIX's (400).
    #[error("{0}")]
    Faulty(String),
    /// The store failed (500).
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The document of the API-driven standalone mode and the store it feeds.
pub struct Standalone {
    store: Arc<MemoryStore>,
    /// Whether there is a document.
    fed: AtomicBool,
    /// Held over the store's write: documents must reach the store in the order in which they were accepted.
    present: Mutex<Present>,
}

#[derive(Default)]
struct Present {
    document: Option<Document>,
    lists: HashMap<&'static str, InForce>,
}

/// One list as the gateway obeys it, which is not always what the document says: an item whose `modifiedIndex` stays
/// is not taken over.
#[derive(Clone, Default)]
struct InForce {
    version: f64,
    items: HashMap<Key, (Index, Arc<str>)>,
}

/// The revision an item claims, or its list's version if it claims none.
#[derive(Clone, PartialEq)]
struct Index(Value);

/// An item of a list with the key it is stored under.
pub(super) struct Item<'a> {
    pub(super) key: Key,
    pub(super) value: &'a Value,
}

impl Standalone {
    /// A store without a document.
    ///
    /// # Errors
    /// As [`MemoryStore::new`].
    pub fn new() -> io::Result<Standalone> {
        let store = Arc::new(MemoryStore::new()?);
        Ok(Standalone { store, fed: AtomicBool::new(false), present: Mutex::default() })
    }

    /// Whether a document was accepted since the start.
    pub fn is_fed(&self) -> bool {
        self.fed.load(Ordering::Acquire)
    }

    /// The store that holds the resources of the document.
    pub fn store(&self) -> &Arc<MemoryStore> {
        &self.store
    }

    /// Replaces the document; see [`apply`]. `now` is in Unix seconds.
    ///
    /// # Errors
    /// [`ApplyError::Faulty`] with APISIX's text; nothing has changed then.
    pub async fn put(
        &self,
        body: &Value,
        digest: &str,
        now: u64,
        check: impl FnMut(&str, &Value) -> Result<(), String>,
    ) -> Result<Applied, ApplyError> {
        let mut present = self.present.lock().await;
        let applied =
            apply(body, digest, now, present.document.as_ref(), check).map_err(ApplyError::Faulty)?;
        if let Applied::Accepted(document) = &applied {
            let lists = in_force(document, &present.lists);
            let items = lists.values().flat_map(|list| &list.items);
            let desired = items.map(|(key, (_, value))| (key.clone(), Arc::clone(value))).collect();
            self.store.replace(desired).await?;
            *present = Present { document: Some(document.clone()), lists };
            self.fed.store(true, Ordering::Release);
        }
        Ok(applied)
    }

    /// The present document; before the first one, all versions are 0 and there is no digest.
    pub async fn document(&self) -> Document {
        self.present.lock().await.document.clone().unwrap_or_else(Document::initial)
    }
}

impl Document {
    fn initial() -> Document {
        let members = LISTS.iter().map(|list| (version_key(list), json!(0))).collect();
        Document { members }
    }

    /// The document as JSON object.
    pub fn members(&self) -> &Map<String, Value> {
        &self.members
    }

    /// The digest it came with.
    pub fn digest(&self) -> Option<&str> {
        self.members.get(DIGEST)?.as_str()
    }

    /// When it was accepted, in Unix seconds.
    pub fn last_modified(&self) -> Option<u64> {
        self.members.get(LAST_MODIFIED)?.as_u64()
    }

    fn version(&self, list: &str) -> f64 {
        self.members.get(&version_key(list)).and_then(Value::as_f64).unwrap_or(0.0)
    }
}

/// What a request makes of the present document. `check` judges one item of the named list as the Admin API judges a
/// write of it. `now` is in Unix seconds.
///
/// # Errors
/// APISIX's `error_msg` of a 400.
pub fn apply(
    body: &Value,
    digest: &str,
    now: u64,
    present: Option<&Document>,
    mut check: impl FnMut(&str, &Value) -> Result<(), String>,
) -> Result<Applied, String> {
    if present.is_some_and(|present| present.digest() == Some(digest)) {
        return Ok(Applied::Unchanged);
    }
    for list in LISTS {
        if body.get(version_key(list)).is_some_and(|version| !version.is_number()) {
            return Err(format!("{} must be a number", version_key(list)));
        }
        check_list(list, body, &mut check)?;
    }
    let mut members = Map::new();
    for list in LISTS {
        put_list(list, body, present, &mut members)?;
    }
    members.insert(LAST_MODIFIED.into(), json!(now));
    members.insert(DIGEST.into(), json!(digest));
    Ok(Applied::Accepted(Document { members }))
}

/// The name under which a document keeps the version of a list.
fn version_key(list: &str) -> String {
    format!("{list}_conf_version")
}

fn check_list(
    list: &str,
    body: &Value,
    check: &mut impl FnMut(&str, &Value) -> Result<(), String>,
) -> Result<(), String> {
    let Some(items) = body.get(list).and_then(Value::as_array) else { return Ok(()) };
    let mut known = HashSet::new();
    for (position, item) in items.iter().enumerate() {
        if !item.is_object() {
            let position = position + 1;
            return Err(format!("invalid item data of [{list}/{position}], it should be an object"));
        }
        check(list, item)?;
        let id = item.get("id").filter(|id| !id.is_null());
        let (id, what) = match id {
            Some(id) if list == "consumers" => (Some(id), "credential id"),
            None if list == "consumers" => (item.get("username"), "username"),
            id => (id, "id"),
        };
        // As in Lua, the number 1 and the text "1" are not the same id.
        if let Some(id) = id
            && !known.insert(id.to_string())
        {
            return Err(format!("found duplicate {what} {} in {list}", plain(id)));
        }
    }
    Ok(())
}

fn put_list(
    list: &str,
    body: &Value,
    present: Option<&Document>,
    members: &mut Map<String, Value>,
) -> Result<(), String> {
    let key = version_key(list);
    let old = present.map_or(0.0, |present| present.version(list));
    let (version, number) = match body.get(&key) {
        Some(Value::Number(number)) => (number.as_f64().unwrap_or(old), number.clone()),
        _ => (old + 1.0, to_number(old + 1.0)),
    };
    if version < old {
        return Err(format!("{key} must be greater than or equal to ({})", to_number(old)));
    }
    members.insert(key, Value::Number(number));
    let items = if version == old {
        present.and_then(|present| present.members.get(list))
    } else {
        body.get(list).filter(|items| items.as_array().is_some_and(|items| !items.is_empty()))
    };
    if let Some(items) = items {
        members.insert(list.into(), items.clone());
    }
    Ok(())
}

/// What the lists are after a document was accepted.
fn in_force(document: &Document, before: &HashMap<&'static str, InForce>) -> HashMap<&'static str, InForce> {
    let mut lists = HashMap::new();
    for list in LISTS {
        let old = before.get(list).cloned().unwrap_or_default();
        let version = document.version(list);
        let kind = if list == "plugins" { None } else { Kind::from_dir(list) };
        let new = match kind {
            Some(kind) if version != old.version => {
                let items = document.members.get(list).map(|list| items(kind, list)).unwrap_or_default();
                InForce { version, items: taken_over(items, version, old.items) }
            }
            _ => old,
        };
        lists.insert(list, new);
    }
    lists
}

fn taken_over(
    items: Vec<Item<'_>>,
    version: f64,
    mut old: HashMap<Key, (Index, Arc<str>)>,
) -> HashMap<Key, (Index, Arc<str>)> {
    let mut new: HashMap<Key, (Index, Arc<str>)> = HashMap::with_capacity(items.len());
    for Item { key, value } in items {
        let claimed = value.get("modifiedIndex").filter(|index| !index.is_null());
        let index = Index(claimed.cloned().unwrap_or_else(|| Value::Number(to_number(version))));
        let known = new.remove(&key).or_else(|| old.remove(&key));
        let kept = known.filter(|(before, _)| claimed.is_some() && *before == index);
        new.insert(key, kept.unwrap_or_else(|| (index, stored(value))));
    }
    new
}

/// An item without `modifiedIndex`, which is about the document, not about the resource.
fn stored(value: &Value) -> Arc<str> {
    let Value::Object(members) = value else { return compact(value) };
    if !members.contains_key("modifiedIndex") {
        return compact(value);
    }
    let members = members.iter().filter(|(name, _)| *name != "modifiedIndex");
    compact(&Value::Object(members.map(|(name, member)| (name.clone(), member.clone())).collect()))
}

/// The items of a list with their keys: the id, else the username, else `arr_` and the position from 1
/// (APISIX: core/config_yaml.lua). Consumers whose id is `jack/credentials/c1` are credentials. What is not a list
/// has no items.
pub(super) fn items(kind: Kind, list: &Value) -> Vec<Item<'_>> {
    let Some(list) = list.as_array() else { return Vec::new() };
    let item = |(position, value): (usize, &'_ Value)| {
        let id =
            value.get("id").filter(|id| !id.is_null() && !id.is_object()).or_else(|| value.get("username"));
        let id = id.map_or_else(|| format!("arr_{}", position + 1), plain);
        let is_credential = kind == Kind::Consumer && id.contains("/credentials/");
        Key::new(if is_credential { Kind::Credential } else { kind }, id)
    };
    list.iter().enumerate().map(|(at, value)| Item { key: item((at, value)), value }).collect()
}

/// A value as Lua's `tostring` shows it, quotes aside.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => {
            number.as_f64().map_or_else(|| number.to_string(), |n| to_number(n).to_string())
        }
        other => other.to_string(),
    }
}

/// A Lua number as JSON: whole ones have no point.
fn to_number(number: f64) -> Number {
    // Beyond 2^53 a Lua number has lost its last digits too.
    let whole = number as i64;
    if whole as f64 == number {
        return Number::from(whole);
    }
    Number::from_f64(number).unwrap_or_else(|| Number::from(0))
}

#[cfg(test)]
mod tests;
