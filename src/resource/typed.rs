//! Types of members that several resources share, and how they are read.
//!
//! The schemas take an empty object for an empty list and the other way round; so do the readers here.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error};
use serde_json::{Map, Value};

/// Plugin configurations by plugin name.
pub type Plugins = Map<String, Value>;

/// `labels`.
pub type Labels = BTreeMap<String, String>;

/// An id, written as a string or an integer; `1` and `"1"` are the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub Arc<str>);

impl Id {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Id(text.into())),
            Value::Number(number) if !number.is_f64() => Ok(Id(number.to_string().into())),
            other => Err(D::Error::custom(format!("an id is a string or an integer, not {other}"))),
        }
    }
}

/// Time limits towards an upstream, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Timeout {
    /// To establish a connection.
    pub connect: f64,
    /// Between two writes.
    pub send: f64,
    /// Between two reads.
    pub read: f64,
}

/// Reads a list; `{}` is an empty one.
pub(super) fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    match Value::deserialize(deserializer)? {
        Value::Object(members) if members.is_empty() => Ok(Vec::new()),
        other => Vec::deserialize(other).map_err(D::Error::custom),
    }
}

/// Reads a map of any kind; `[]` is an empty one.
pub(super) fn map<'de, D, M>(deserializer: D) -> Result<M, D::Error>
where
    D: Deserializer<'de>,
    M: DeserializeOwned,
{
    match Value::deserialize(deserializer)? {
        Value::Array(items) if items.is_empty() => M::deserialize(Value::Object(Map::new())),
        other => M::deserialize(other),
    }
    .map_err(D::Error::custom)
}
