//! Secret fields on their way into the store and out of it. APISIX: plugin.lua `encrypt_conf` and `decrypt_conf`,
//! upstream.lua `encrypt_conf`, ssl.lua `aes_encrypt_pkey`, admin/utils.lua `decrypt_params`.
//!
//! Invariant: encrypting what is encrypted changes nothing for private keys, and PATCH decrypts before it merges, so
//! nothing is ever encrypted twice.

use serde_json::Value;

use super::kinds::{Plugins, rules};
use crate::{
    plugin::{
        def::{PluginDef, SchemaType},
        env::Registry,
    },
    resource::Kind,
    secret::encryption::Keyring,
};

/// The keyring together with what says which fields are secret.
pub struct Crypt<'a> {
    /// `None`: nothing is encrypted.
    pub keyring: Option<&'a Keyring>,
    /// The enabled plugins.
    pub registry: &'a dyn Registry,
}

impl Crypt<'_> {
    /// Encrypts a resource as it is stored. `id` names the plugin of plugin metadata.
    pub fn encrypt(&self, kind: Kind, id: &str, value: &mut Value) {
        let Some(keyring) = self.keyring else { return };
        self.each_plugin(kind, id, value, |conf, fields| keyring.encrypt_fields(conf, fields));
        match kind {
            Kind::Route | Kind::Service | Kind::StreamRoute => {
                private_key(keyring, value.pointer_mut("/upstream/tls/client_key"));
            }
            Kind::Upstream => private_key(keyring, value.pointer_mut("/tls/client_key")),
            Kind::Ssl => {
                private_key(keyring, value.get_mut("key"));
                let keys = value.get_mut("keys").and_then(Value::as_array_mut);
                keys.into_iter().flatten().for_each(|key| private_key(keyring, Some(key)));
            }
            _ => {}
        }
    }

    /// Decrypts the plugins of a resource; private keys stay as they are.
    pub fn decrypt(&self, kind: Kind, id: &str, value: &mut Value) {
        let Some(keyring) = self.keyring else { return };
        self.each_plugin(kind, id, value, |conf, fields| keyring.decrypt_fields(conf, fields));
    }

    fn each_plugin(&self, kind: Kind, id: &str, value: &mut Value, turn: impl Fn(&mut Value, &[&str])) {
        if kind == Kind::PluginMetadata {
            if let Some(def) = self.registry.find(id) {
                let fields = metadata_fields(def);
                turn(value, &fields.iter().map(String::as_str).collect::<Vec<_>>());
            }
            return;
        }
        let consumer = matches!(rules(kind).plugins, Plugins::Consumer | Plugins::Credential);
        let plugins = value.get_mut("plugins").and_then(Value::as_object_mut);
        for (name, conf) in plugins.into_iter().flatten() {
            let Some(def) = self.registry.find(name) else { continue };
            // A plugin that does not authenticate has one set of fields only.
            let fields = def.auth.as_ref().filter(|_| consumer).map_or(def.encrypt, |auth| auth.encrypt);
            turn(conf, fields);
        }
    }
}

fn metadata_fields(def: &PluginDef) -> Vec<String> {
    let schema = def.schema(SchemaType::Metadata);
    let fields = schema.as_ref().and_then(|schema| schema.json.get("encrypt_fields")?.as_array());
    fields.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Only what is PEM is encrypted: anything else is encrypted already, or a reference.
fn private_key(keyring: &Keyring, key: Option<&mut Value>) {
    if let Some(Value::String(key)) = key
        && key.starts_with("---")
    {
        *key = keyring.encrypt(key);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::builtin::Enabled;

    #[test]
    fn private_keys_are_encrypted_once_and_never_shown() {
        #[track_caller]
        fn check(kind: Kind, mut value: Value, pointer: &str) {
            let registry = Enabled::new(None, serde_json::Map::new());
            let keyring = Keyring::new(&["qeddd145sfvddff3".to_owned()]);
            let crypt = Crypt { keyring: Some(&keyring), registry: &registry };
            crypt.encrypt(kind, "1", &mut value);
            let once = value.pointer(pointer).cloned().unwrap();
            assert_ne!(once, json!("---secret"));
            crypt.encrypt(kind, "1", &mut value);
            crypt.decrypt(kind, "1", &mut value);
            assert_eq!(value.pointer(pointer), Some(&once));
        }
        check(Kind::Ssl, json!({"key": "---secret"}), "/key");
        check(Kind::Ssl, json!({"keys": ["---secret"]}), "/keys/0");
        check(Kind::Upstream, json!({"tls": {"client_key": "---secret"}}), "/tls/client_key");
        let inline = json!({"upstream": {"tls": {"client_key": "---secret"}}});
        check(Kind::Route, inline.clone(), "/upstream/tls/client_key");
        check(Kind::Service, inline.clone(), "/upstream/tls/client_key");
        check(Kind::StreamRoute, inline, "/upstream/tls/client_key");
    }

    #[test]
    fn references_stay() {
        let registry = Enabled::new(None, serde_json::Map::new());
        let keyring = Keyring::new(&["qeddd145sfvddff3".to_owned()]);
        let crypt = Crypt { keyring: Some(&keyring), registry: &registry };
        let mut value = json!({"key": "$secret://vault/1/a/b"});
        crypt.encrypt(Kind::Ssl, "1", &mut value);
        assert_eq!(value, json!({"key": "$secret://vault/1/a/b"}));
    }
}
