//! The standalone file: resources come from `apisix.yaml` or `apisix.json`, which is looked at each second
//! (APISIX: core/config_yaml.lua).
//!
//! A file that cannot be read or parsed changes nothing: what was there stays, and [`FileStore::fault`] says why.
//! Whether an item is a sound resource is not asked here; the control loop finds that out item by item.
//! It must never write the file.
//!
//! Differs from APISIX: an item keeps its revision while its content stays, so a change of one route recompiles one
//! route. `id` is not copied into values that lack it; the key has it.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Number, Value};
use tokio::sync::watch;

use super::{
    Committed, Entry, Store, StoreError, Watch, Write, catalog::Catalog, compact, draft::Draft,
    standalone::items,
};
use crate::resource::{Key, Kind};

/// Replaces `${{VAR}}` and `${{VAR:=default}}` in a text, or says which variable is missing.
pub type Substitute = fn(&str) -> Result<String, String>;

/// Turns YAML text into a value, or says what is wrong with it.
pub type Parse = fn(&str) -> Result<Value, String>;

/// How often the file is looked at.
const POLL: Duration = Duration::from_secs(1);

/// A file changed more recently than this may change again without its time stamp telling.
const SETTLED: Duration = Duration::from_secs(2);

/// The last bytes of a YAML file in which APISIX looks for the end flag.
const END_FLAG_WINDOW: usize = 10;

/// The notation of the file.
#[derive(Clone, Copy, Debug)]
pub enum FileFormat {
    /// `apisix.yaml`: variables are replaced in the text, and the last line must be `#END`.
    Yaml(Parse),
    /// `apisix.json`: variables are replaced in the parsed strings, which may turn into numbers and booleans.
    Json,
}

/// One entry of the `plugins` list of the file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct EnabledPlugin {
    /// The plugin's name.
    pub name: String,
    /// Whether the stream plugin of that name is meant.
    #[serde(default)]
    pub stream: bool,
}

/// The resources of a file.
pub struct FileStore {
    path: PathBuf,
    format: FileFormat,
    substitute: Substitute,
    catalog: Arc<Catalog>,
    /// Guards against two polls at once; never held while waiting.
    seen: Mutex<Seen>,
    plugins: watch::Sender<Option<Arc<[EnabledPlugin]>>>,
    fault: watch::Sender<Option<Arc<str>>>,
}

#[derive(Default)]
struct Seen {
    stamp: Option<Stamp>,
    /// The hash of the text last looked at, sound or not.
    text: Option<u64>,
}

/// By what a changed file is recognized without reading it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    size: u64,
    inode: u64,
}

impl FileStore {
    /// A store fed by the file `path`, which is read once now. A missing or faulty file gives an empty store with
    /// a [`FileStore::fault`].
    pub fn new(path: PathBuf, format: FileFormat, substitute: Substitute) -> FileStore {
        let store = FileStore {
            path,
            format,
            substitute,
            catalog: Catalog::new(Vec::new(), 0),
            seen: Mutex::default(),
            plugins: watch::Sender::new(None),
            fault: watch::Sender::new(None),
        };
        store.poll();
        store
    }

    /// Looks at the file each second, for ever. Spawned by whoever assembles the gateway.
    pub async fn follow(self: Arc<Self>) {
        let mut clock = tokio::time::interval(POLL);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            let store = Arc::clone(&self);
            // Parsing a big file takes longer than other tasks of this thread may be kept waiting.
            if let Err(error) = tokio::task::spawn_blocking(move || store.poll()).await {
                tracing::error!(%error, "looking at the config file failed");
            }
        }
    }

    /// Looks at the file now and takes over what changed.
    pub fn poll(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match self.read_if_changed(&mut seen) {
            Ok(None) => {}
            Ok(Some(text)) => match self.parse(&text) {
                Ok(document) => {
                    self.take_over(&document);
                    self.report(None);
                    tracing::warn!(path = %self.path.display(), "config file reloaded");
                }
                Err(why) => self.report(Some(&why)),
            },
            Err(error) => {
                // Not remembered as seen: the same file may become readable.
                *seen = Seen::default();
                self.report(Some(&format!("failed to open file {} : {error}", self.path.display())));
            }
        }
    }

    /// What is wrong with the file as a whole; `None` when it was taken over.
    pub fn fault(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.fault.subscribe()
    }

    /// The `plugins` list of the file; `None` while it has none, then the list of config.yaml counts.
    pub fn plugins(&self) -> watch::Receiver<Option<Arc<[EnabledPlugin]>>> {
        self.plugins.subscribe()
    }

    fn read_if_changed(&self, seen: &mut Seen) -> io::Result<Option<String>> {
        let metadata = fs::metadata(&self.path)?;
        let stamp = Stamp {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.len(),
            inode: metadata.ino(),
        };
        if seen.stamp == Some(stamp) {
            return Ok(None);
        }
        let text = String::from_utf8(fs::read(&self.path)?)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))?;
        let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        seen.stamp = age.is_some_and(|age| age >= SETTLED).then_some(stamp);
        let hash = hash(&text);
        Ok((seen.text.replace(hash) != Some(hash)).then_some(text))
    }

    /// The texts are APISIX's, as the file's users search for them.
    fn parse(&self, text: &str) -> Result<Map<String, Value>, String> {
        let document = match self.format {
            FileFormat::Yaml(parse) => {
                if !has_end_flag(text) {
                    return Err(format!("missing valid end flag in file {}", self.path.display()));
                }
                parse(&(self.substitute)(text)?).map(|mut document| {
                    members(&mut document).for_each(nothing_is_a_table);
                    document
                })?
            }
            FileFormat::Json => {
                let document =
                    serde_json::from_str(text).map_err(|error| format!("failed to decode json: {error}"))?;
                substitute_parsed(document, self.substitute)?
            }
        };
        match document {
            Value::Object(document) => Ok(document),
            Value::Null => Err("failed update config: empty table".to_owned()),
            _ => Err("the file must hold a map from kinds of resources to lists of them".to_owned()),
        }
    }

    fn take_over(&self, document: &Map<String, Value>) {
        let mut desired = Vec::new();
        for kind in Kind::ALL {
            let Some(list) = document.get(kind.dir()) else { continue };
            desired.extend(items(kind, list).into_iter().map(|item| (item.key, compact(item.value))));
        }
        let mut draft = Draft::new(&self.catalog);
        draft.replace(desired);
        let (changes, revision) = draft.into_changes();
        self.catalog.apply(changes, revision);
        self.plugins.send_replace(enabled_plugins(document.get("plugins")));
    }

    fn report(&self, fault: Option<&str>) {
        let changed = self.fault.send_if_modified(|known| {
            let changed = known.as_deref() != fault;
            *known = fault.map(Arc::from);
            changed
        });
        if let Some(fault) = fault.filter(|_| changed) {
            tracing::error!(path = %self.path.display(), error = fault, "config file refused, nothing changed");
        }
    }
}

const FED_BY_FILE: StoreError = StoreError::ReadOnly("resources come from a file");

#[async_trait]
impl Store for FileStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        Ok(self.catalog.get(key))
    }

    async fn list_prefix(&self, kind: Kind, prefix: &str) -> Result<Vec<Entry>, StoreError> {
        Ok(self.catalog.list_prefix(kind, prefix))
    }

    async fn commit(&self, _: Vec<Write>) -> Result<Committed, StoreError> {
        Err(FED_BY_FILE)
    }

    async fn next_id(&self) -> Result<u64, StoreError> {
        Err(FED_BY_FILE)
    }

    fn watch(&self) -> Watch {
        self.catalog.watch()
    }
}

/// To the YAML reader of APISIX nothing is an empty table: `key-auth:` is a plugin without options.
fn nothing_is_a_table(value: &mut Value) {
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    members(value).for_each(nothing_is_a_table);
}

fn members(value: &mut Value) -> Box<dyn Iterator<Item = &mut Value> + '_> {
    match value {
        Value::Array(items) => Box::new(items.iter_mut()),
        Value::Object(members) => Box::new(members.values_mut()),
        _ => Box::new(std::iter::empty()),
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// `#END`, then nothing but white space, all within the last ten bytes (APISIX: core/config_yaml.lua).
fn has_end_flag(text: &str) -> bool {
    let bytes = text.as_bytes();
    let tail = &bytes[bytes.len().saturating_sub(END_FLAG_WINDOW)..];
    let spaces = tail.iter().rev().take_while(|byte| byte.is_ascii_whitespace() || **byte == 0x0b).count();
    tail[..tail.len() - spaces].ends_with(b"#END")
}

fn enabled_plugins(list: Option<&Value>) -> Option<Arc<[EnabledPlugin]>> {
    let list = list?.as_array()?;
    let mut plugins = Vec::with_capacity(list.len());
    for item in list {
        match EnabledPlugin::deserialize(item) {
            Ok(plugin) => plugins.push(plugin),
            Err(error) => {
                // APISIX: the whole list is refused, the plugins of config.yaml stay.
                tracing::error!(%error, "failed to check item data of [plugins]");
                return None;
            }
        }
    }
    Some(plugins.into())
}

/// Replaces variables in every string and key (APISIX: cli/file.lua `resolve_conf_var`).
fn substitute_parsed(value: Value, substitute: Substitute) -> Result<Value, String> {
    Ok(match value {
        Value::String(text) => {
            let replaced = substitute(&text)?;
            if replaced == text { Value::String(text) } else { retyped(replaced) }
        }
        Value::Array(items) => {
            let items = items.into_iter().map(|item| substitute_parsed(item, substitute));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        Value::Object(members) => {
            let mut replaced = Map::with_capacity(members.len());
            for (key, member) in members {
                replaced.insert(substitute(&key)?, substitute_parsed(member, substitute)?);
            }
            Value::Object(replaced)
        }
        other => other,
    })
}

/// What Lua's `tonumber` and APISIX make of the text of a variable.
fn retyped(text: String) -> Value {
    let trimmed = text.trim();
    match trimmed {
        "true" if text == trimmed => return Value::Bool(true),
        "false" if text == trimmed => return Value::Bool(false),
        _ => {}
    }
    let hexadecimal = trimmed.strip_prefix("0x").or_else(|| trimmed.strip_prefix("0X"));
    let integer = match hexadecimal {
        Some(digits) if !digits.starts_with('+') => i64::from_str_radix(digits, 16).ok(),
        Some(_) => None,
        None => trimmed.parse().ok(),
    };
    if let Some(integer) = integer {
        return Value::Number(Number::from(integer));
    }
    // "inf" and "nan" parse too, but no JSON number says them.
    match trimmed.parse::<f64>().ok().and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None => Value::String(text),
    }
}

#[cfg(test)]
mod tests;
