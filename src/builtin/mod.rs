//! The registry of built-in plugins: one file each, one line here.
//!
//! To add a plugin: write `NAME.rs` (see [`crate::plugin::contract`]) and add its line, in order of priority.

use serde_json::{Map, Value};

use crate::plugin::{def::PluginDef, env::Registry};

pub mod shared;

/// Declares each module and makes one table of all: `auth` marks plugins that authenticate.
macro_rules! registry {
    ($($kind:ident $name:ident)*) => {
        $(pub mod $name;)*
        static PLUGINS: [PluginDef; [$(stringify!($name)),*].len()] = [$(PluginDef::$kind::<$name::Plugin>(),)*];
    };
}

registry! {
    of request_id
    of ext_plugin_pre_req
    of fault_injection
    of mocking
    of cors
    of ip_restriction
    of ua_restriction
    of referer_restriction
    of csrf
    of uri_blocker
    of request_validation
    of multi_auth
    of openid_connect
    of cas_auth
    of authz_casbin
    auth wolf_rbac
    auth ldap_auth_advanced
    auth ldap_auth
    auth hmac_auth
    auth basic_auth
    auth jwt_auth
    auth jwe_decrypt
    auth key_auth
    of acl
    of consumer_restriction
    of attach_consumer_label
    of forward_auth
    of opa
    of proxy_rewrite
    of limit_conn
    of limit_count
    of limit_req
    of redirect
    of response_rewrite
    of public_api
    of prometheus
    of echo
    of http_logger
    of ext_plugin_post_req
    of ext_plugin_post_resp
}

/// Every built-in plugin.
pub static REGISTRY: &[PluginDef] = &PLUGINS;

/// The plugins that config.yaml enables.
pub struct Enabled {
    plugins: Vec<&'static PluginDef>,
    attrs: Map<String, Value>,
}

impl Enabled {
    /// Takes the names of config.yaml's `plugins` (`None`: all that exist) and its `plugin_attr`.
    ///
    /// Names that do not exist here are for the caller to report: a real APISIX list has a hundred.
    pub fn new(names: Option<&[String]>, attrs: Map<String, Value>) -> Self {
        let wanted = |def: &&PluginDef| names.is_none_or(|names| names.iter().any(|name| name == def.name));
        let mut plugins: Vec<&'static PluginDef> = REGISTRY.iter().filter(wanted).collect();
        plugins.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(b.name)));
        Self { plugins, attrs }
    }

    /// These and one more, for tests of what no built-in plugin does.
    #[cfg(test)]
    pub fn with(mut self, def: &'static PluginDef) -> Self {
        self.plugins.push(def);
        self
    }
}

impl Registry for Enabled {
    fn find(&self, name: &str) -> Option<&'static PluginDef> {
        self.plugins.iter().find(|def| def.name == name).copied()
    }

    fn all(&self) -> &[&'static PluginDef] {
        &self.plugins
    }

    fn attr(&self, name: &str) -> Option<&Value> {
        self.attrs.get(name)
    }
}
