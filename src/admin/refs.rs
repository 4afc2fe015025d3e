//! What a resource says about others: ids that must exist, keys that must be unique, and who still uses what is to
//! be removed. APISIX: admin/*.lua `check_conf` and `delete_checker`, consumer.lua `check_duplicate_key`.
//!
//! Invariant: called while no other write of this process is under way.

use serde_json::Value;

use super::{
    Admin,
    error::AdminError,
    judge::{Subject, id_text},
    kinds::rules,
};
use crate::{
    plugin::env::Registry,
    resource::{Key, Kind},
    schema::is_secret_reference,
    store::{Entry, StoreError},
};

impl Admin {
    /// Whether the ids in a resource exist.
    pub(super) async fn references_exist(&self, subject: &Subject<'_>) -> Result<(), AdminError> {
        self.client_certificate(subject).await?;
        for reference in rules(subject.kind).references {
            let Some(id) = subject.value.get(reference.member).and_then(id_text) else { continue };
            if self.store.get(&Key::new(reference.kind, id.as_str())).await?.is_none() {
                let noun = reference.kind.singular();
                let text = format!("failed to fetch {noun} info by {noun} id [{id}], response code: 404");
                return Err(AdminError::Invalid(text));
            }
        }
        if subject.kind == Kind::StreamRoute {
            self.superior(subject).await?;
        }
        Ok(())
    }

    async fn client_certificate(&self, subject: &Subject<'_>) -> Result<(), AdminError> {
        let pointer = match subject.kind {
            Kind::Upstream => "/tls/client_cert_id",
            Kind::Route | Kind::Service => "/upstream/tls/client_cert_id",
            _ => return Ok(()),
        };
        let Some(id) = subject.value.pointer(pointer).and_then(id_text) else { return Ok(()) };
        let fault = match self.store.get(&Key::new(Kind::Ssl, id.as_str())).await? {
            None => "response code: 404",
            Some(entry) if value(&entry).get("type").and_then(Value::as_str) != Some("client") => {
                "wrong ssl type"
            }
            Some(_) => return Ok(()),
        };
        Err(AdminError::Invalid(format!("failed to fetch ssl info by ssl id [{id}], {fault}")))
    }

    async fn superior(&self, subject: &Subject<'_>) -> Result<(), AdminError> {
        let Some(protocol) = subject.value.get("protocol") else { return Ok(()) };
        let Some(superior) = protocol.get("superior_id").and_then(id_text) else { return Ok(()) };
        if subject.id == Some(superior.as_str()) {
            return Err(AdminError::Invalid("stream route can not set itself as superior_id".into()));
        }
        let Some(entry) = self.store.get(&Key::new(Kind::StreamRoute, superior.as_str())).await? else {
            let text = format!("failed to fetch stream routes[{superior}], response code: 404");
            return Err(AdminError::Invalid(text));
        };
        let theirs = value(&entry);
        let name = |protocol: Option<&Value>| protocol?.get("name")?.as_str().map(str::to_owned);
        let (own, theirs) = (name(Some(protocol)), name(theirs.get("protocol")));
        match (own, theirs) {
            (Some(own), Some(theirs)) if own != theirs => Err(AdminError::Invalid(format!(
                "protocol mismatch: subordinate protocol [{own}] does not match superior protocol [{theirs}]"
            ))),
            _ => Ok(()),
        }
    }

    /// Whether nobody else has what must be unique: the keys of consumers and credentials, and the plugins of global
    /// rules.
    pub(super) async fn is_unique(&self, subject: &Subject<'_>) -> Result<(), AdminError> {
        match subject.kind {
            Kind::Consumer | Kind::Credential => self.keys_are_unique(subject).map_err(AdminError::Invalid),
            Kind::GlobalRule if !self.control.env().compat.global_rules_share_plugins() => {
                self.global_plugins_are_unique(subject).await
            }
            _ => Ok(()),
        }
    }

    fn keys_are_unique(&self, subject: &Subject<'_>) -> Result<(), String> {
        let Some(plugins) = subject.value.get("plugins").and_then(Value::as_object) else { return Ok(()) };
        if !self.control.env().compat.keys_have_one_owner() {
            return Ok(());
        }
        let username = subject.value.get("username").and_then(Value::as_str);
        let name = subject.consumer.or(username).unwrap_or_default();
        let credential = subject.id.filter(|_| subject.kind == Kind::Credential);
        let snapshot = self.control.current().load();
        for (plugin, conf) in plugins {
            let auth = self.control.env().registry.find(plugin).and_then(|def| def.auth.as_ref());
            let Some(auth) = auth.filter(|auth| auth.unique) else { continue };
            let Some(key) = auth.identity(conf) else { continue };
            // What it stands for is known only when it is used.
            if is_secret_reference(key) {
                continue;
            }
            let Some(owner) = snapshot.consumers.find(plugin, key) else { continue };
            let owner_name = &*owner.consumer.username;
            let owner_credential = owner.credential.as_ref().map(|(id, _)| &**id);
            // A consumer may share a key with its own credentials, a credential with nobody.
            let is_self = owner_name == name && (credential.is_none() || owner_credential == credential);
            if !is_self {
                let owner = match owner_credential {
                    Some(id) => format!("credential: {id} of consumer: {owner_name}"),
                    None => format!("consumer: {owner_name}"),
                };
                let field = auth.key;
                return Err(format!("duplicate {field} of plugin {plugin} found with {owner}"));
            }
        }
        Ok(())
    }

    async fn global_plugins_are_unique(&self, subject: &Subject<'_>) -> Result<(), AdminError> {
        let Some(plugins) = subject.value.get("plugins").and_then(Value::as_object) else { return Ok(()) };
        for entry in self.store.list(Kind::GlobalRule).await? {
            if Some(entry.key.id()) == subject.id {
                continue;
            }
            let other = value(&entry);
            let theirs = other.get("plugins").and_then(Value::as_object);
            let both = plugins.keys().find(|name| theirs.is_some_and(|theirs| theirs.contains_key(*name)));
            if let Some(name) = both {
                let id = entry.key.id();
                let text = format!("plugin '{name}' already exists in global rule with id '{id}'");
                return Err(AdminError::Invalid(text));
            }
        }
        Ok(())
    }

    /// Whether nobody uses what is to be removed.
    pub(super) async fn is_unused(&self, kind: Kind, id: &str) -> Result<(), AdminError> {
        let user = match kind {
            Kind::Upstream => self.user_of_upstream(id).await?,
            Kind::Service => {
                let users = [(Kind::Route, "route"), (Kind::StreamRoute, "stream_route")];
                let user = self.user_by_member(&users, "service_id", id).await?;
                user.map(|user| format!("can not delete this service directly, {user} is still using it now"))
            }
            Kind::PluginConfig => {
                let user = self.user_by_member(&[(Kind::Route, "route")], "plugin_config_id", id).await?;
                user.map(|user| format!("can not delete this plugin config, {user} is still using it now"))
            }
            Kind::ConsumerGroup => {
                let user = self.user_by_member(&[(Kind::Consumer, "consumer")], "group_id", id).await?;
                user.map(|user| format!("can not delete this consumer group, {user} is still using it now"))
            }
            Kind::Proto => self.user_of_proto(id).await?,
            Kind::StreamRoute => {
                let uses = |value: &Value| value.pointer("/protocol/superior_id").and_then(id_text);
                let user =
                    self.find(Kind::StreamRoute, "superior_id", |value| uses(value).as_deref() == Some(id));
                user.await?.map(|user| {
                    format!(
                        "can not delete this stream route directly, stream route [{user}] is still using it as \
                         superior_id"
                    )
                })
            }
            _ => None,
        };
        user.map_or(Ok(()), |text| Err(AdminError::Invalid(text)))
    }

    async fn user_by_member(
        &self,
        users: &[(Kind, &str)],
        member: &str,
        id: &str,
    ) -> Result<Option<String>, StoreError> {
        for (kind, noun) in users {
            let names = |value: &Value| value.get(member).and_then(id_text).as_deref() == Some(id);
            if let Some(user) = self.find(*kind, member, names).await? {
                return Ok(Some(format!("{noun} [{user}]")));
            }
        }
        Ok(None)
    }

    async fn user_of_upstream(&self, id: &str) -> Result<Option<String>, StoreError> {
        const USERS: [(Kind, &str); 6] = [
            (Kind::Route, "route"),
            (Kind::Service, "service"),
            (Kind::PluginConfig, "plugin_config"),
            (Kind::Consumer, "consumer"),
            (Kind::ConsumerGroup, "consumer_group"),
            (Kind::GlobalRule, "global_rules"),
        ];
        for (kind, noun) in USERS {
            if let Some(user) = self.find(kind, "traffic-split", |value| splits_to(value, id)).await? {
                let text =
                    format!("can not delete this upstream, plugin in {noun} [{user}] is still using it now");
                return Ok(Some(text));
            }
            let names = |value: &Value| value.get("upstream_id").and_then(id_text).as_deref() == Some(id);
            if let Some(user) = self.find(kind, "upstream_id", names).await? {
                return Ok(Some(format!(
                    "can not delete this upstream, {noun} [{user}] is still using it now"
                )));
            }
        }
        Ok(None)
    }

    async fn user_of_proto(&self, id: &str) -> Result<Option<String>, StoreError> {
        let uses = |value: &Value| {
            let named = value.pointer("/plugins/grpc-transcode/proto_id").and_then(id_text);
            named.as_deref() == Some(id)
        };
        for (kind, noun) in [(Kind::Route, "route"), (Kind::Service, "service")] {
            if let Some(user) = self.find(kind, "grpc-transcode", uses).await? {
                return Ok(Some(format!("can not delete this proto, {noun} [{user}] is still using it now")));
            }
        }
        Ok(None)
    }

    /// The id of the first resource of a kind that fits. `mark` is a text that all that fit contain: only those are
    /// parsed.
    async fn find(
        &self,
        kind: Kind,
        mark: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Option<String>, StoreError> {
        let entries = self.store.list(kind).await?;
        let found = entries.iter().find(|entry| entry.value.contains(mark) && fits(&value(entry)));
        Ok(found.map(|entry| entry.key.own_id().to_owned()))
    }
}

/// Whether plugin traffic-split of a resource sends requests to an upstream.
fn splits_to(value: &Value, id: &str) -> bool {
    let rules = value.pointer("/plugins/traffic-split/rules").and_then(Value::as_array);
    let targets = rules.into_iter().flatten().filter_map(|rule| rule.get("weighted_upstreams")?.as_array());
    let ids = targets.flatten().filter_map(|target| target.get("upstream_id").and_then(id_text));
    ids.into_iter().any(|target| target == id)
}

/// A stored value; what a store holds is JSON.
pub(super) fn value(entry: &Entry) -> Value {
    serde_json::from_str(&entry.value).unwrap_or_default()
}
