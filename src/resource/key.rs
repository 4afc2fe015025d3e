//! The name of one resource in the store: its kind and its id.

use std::fmt;
use std::sync::Arc;

use super::Kind;

/// Kind and id of a resource. The id of a credential is `jack/credentials/c1`, that of a secret `vault/1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    kind: Kind,
    id: Arc<str>,
}

/// Why a path names no resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The path is not below the store's prefix.
    #[error("key {0} is outside of the store's prefix")]
    Prefix(String),
    /// The folder is no kind's.
    #[error("key {0} names no kind of resource")]
    Kind(String),
    /// The id is missing or has the wrong number of parts.
    #[error("key {0} has no usable id")]
    Id(String),
}

impl Key {
    /// Prefix of all keys unless the settings name another.
    pub const PREFIX: &'static str = "/apisix";

    /// Names a resource. The id is taken as it is: see [`Key::parse`] for foreign text.
    pub fn new(kind: Kind, id: impl Into<Arc<str>>) -> Key {
        Key { kind, id: id.into() }
    }

    /// What the resource is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The id, with the consumer's name for a credential and the manager's for a secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The id, sharing its memory.
    pub fn shared_id(&self) -> Arc<str> {
        Arc::clone(&self.id)
    }

    /// The last part of the id: what the resource's `id` member says (`c1` of `jack/credentials/c1`).
    pub fn own_id(&self) -> &str {
        match self.kind {
            Kind::Credential => self.id.rsplit('/').next().unwrap_or(&self.id),
            _ => &self.id,
        }
    }

    /// The consumer a credential belongs to.
    pub fn consumer(&self) -> Option<&str> {
        (self.kind == Kind::Credential).then(|| self.id.split('/').next()).flatten()
    }

    /// The manager of a secret: `vault`, `aws` or `gcp`.
    pub fn secret_manager(&self) -> Option<&str> {
        (self.kind == Kind::Secret).then(|| self.id.split('/').next()).flatten()
    }

    /// `/apisix/routes/1`.
    pub fn path(&self) -> String {
        self.path_under(Key::PREFIX)
    }

    /// The key below another prefix (etcd's `prefix` setting).
    pub fn path_under(&self, prefix: &str) -> String {
        let dir = match self.kind {
            Kind::Credential => Kind::Consumer.dir(),
            kind => kind.dir(),
        };
        format!("{prefix}/{dir}/{}", self.id)
    }

    /// Reads `/apisix/routes/1`.
    ///
    /// # Errors
    /// [`KeyError`] when the path is no resource's.
    pub fn parse(path: &str) -> Result<Key, KeyError> {
        Key::parse_under(Key::PREFIX, path)
    }

    /// Reads a key below another prefix.
    ///
    /// # Errors
    /// [`KeyError`] when the path is no resource's.
    pub fn parse_under(prefix: &str, path: &str) -> Result<Key, KeyError> {
        let below = path.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/'));
        let below = below.ok_or_else(|| KeyError::Prefix(path.to_owned()))?;
        let (dir, id) = below.split_once('/').unwrap_or((below, ""));
        let kind = Kind::from_dir(dir).ok_or_else(|| KeyError::Kind(path.to_owned()))?;
        let parts: Vec<&str> = id.split('/').collect();
        let kind = match (kind, parts.as_slice()) {
            (Kind::Consumer, [_, "credentials", _]) => Kind::Credential,
            (Kind::Secret, [_, _]) => Kind::Secret,
            (Kind::Secret | Kind::Credential, _) => return Err(KeyError::Id(path.to_owned())),
            (kind, [_]) => kind,
            _ => return Err(KeyError::Id(path.to_owned())),
        };
        if parts.contains(&"") {
            return Err(KeyError::Id(path.to_owned()));
        }
        Ok(Key::new(kind, id))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(path: &str, kind: Kind, id: &str, own_id: &str) {
        let key = Key::parse(path).expect(path);
        assert_eq!((key.kind(), key.id(), key.own_id()), (kind, id, own_id));
        assert_eq!(key.path(), path);
    }

    #[test]
    fn keys_and_paths() {
        check("/apisix/routes/1", Kind::Route, "1", "1");
        check("/apisix/consumers/jack", Kind::Consumer, "jack", "jack");
        check("/apisix/consumers/jack/credentials/c1", Kind::Credential, "jack/credentials/c1", "c1");
        check("/apisix/secrets/vault/1", Kind::Secret, "vault/1", "vault/1");
        check("/apisix/plugin_metadata/http-logger", Kind::PluginMetadata, "http-logger", "http-logger");
        let key = Key::parse("/apisix/consumers/jack/credentials/c1").expect("a credential's key");
        assert_eq!((key.consumer(), key.secret_manager()), (Some("jack"), None));
        assert_eq!(key.path_under("/other"), "/other/consumers/jack/credentials/c1");
    }

    #[test]
    fn no_keys() {
        for path in ["/apisix/routes", "/apisix/routes/", "/apisix/routes/1/2", "/apisix/secrets/vault"] {
            assert_eq!(Key::parse(path), Err(KeyError::Id(path.to_owned())));
        }
        assert_eq!(
            Key::parse("/apisix/credentials/1"),
            Err(KeyError::Id("/apisix/credentials/1".to_owned()))
        );
        assert_eq!(Key::parse("/apisix/nope/1"), Err(KeyError::Kind("/apisix/nope/1".to_owned())));
        assert_eq!(Key::parse("/other/routes/1"), Err(KeyError::Prefix("/other/routes/1".to_owned())));
    }

    proptest! {
        #[test]
        fn what_parses_prints_itself(path in "(/apisix)?/(routes|consumers|secrets|x)(/[a-z]{0,3}){0,4}(/credentials/a)?") {
            if let Ok(key) = Key::parse(&path) {
                prop_assert_eq!(key.path(), path);
            }
        }
    }
}
