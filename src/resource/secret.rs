//! Secrets: where references (`$secret://vault/1/…`) are looked up. APISIX: secret/{vault,aws,gcp}.lua.
//!
//! The manager is the first part of the resource's id; each has its own schema.
//! Invariant: says what the resource may hold; fetching is done elsewhere.

use std::{fmt, sync::LazyLock};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{ParseError, parse, parts};
use crate::schema::Schema;

/// A secret manager's access as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// HashiCorp Vault.
    Vault(Vault),
    /// AWS Secrets Manager.
    Aws(Aws),
    /// GCP Secret Manager.
    Gcp(Gcp),
}

/// Access to HashiCorp Vault; texts may be `$env://` references.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Vault {
    /// Where it listens.
    pub uri: String,
    /// Path of the key-value engine and below.
    pub prefix: String,
    /// Token to show.
    pub token: String,
    /// Vault's name space.
    pub namespace: Option<String>,
}

// By hand: a derived one would print the token.
impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Vault");
        shown.field("uri", &self.uri);
        shown.field("prefix", &self.prefix);
        shown.field("namespace", &self.namespace);
        shown.finish_non_exhaustive()
    }
}

/// Access to AWS Secrets Manager; texts may be `$env://` references.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Aws {
    /// Id of the access key.
    pub access_key_id: String,
    /// The access key.
    pub secret_access_key: String,
    /// Token of a temporary access key.
    pub session_token: Option<String>,
    /// Region asked.
    #[serde(default = "default_region")]
    pub region: String,
    /// Where it listens, when not at AWS's own address.
    pub endpoint_url: Option<String>,
}

// By hand: a derived one would print the keys.
impl fmt::Debug for Aws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Aws");
        shown.field("access_key_id", &self.access_key_id);
        shown.field("region", &self.region);
        shown.field("endpoint_url", &self.endpoint_url);
        shown.finish_non_exhaustive()
    }
}

/// Access to GCP Secret Manager: exactly one of both is given.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Gcp {
    /// The service account.
    pub auth_config: Option<GcpAuth>,
    /// A file with the service account.
    pub auth_file: Option<String>,
    /// Whether the servers' certificates are verified.
    #[serde(default = "default_verify")]
    pub ssl_verify: bool,
}

/// A service account of GCP.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct GcpAuth {
    /// Its address.
    pub client_email: String,
    /// Its key, in PEM.
    pub private_key: String,
    /// The project whose secrets are read.
    pub project_id: String,
    /// Where a token is fetched.
    #[serde(default = "default_token_uri")]
    pub token_uri: String,
    /// What the token is for.
    #[serde(default = "default_scope")]
    pub scope: Vec<String>,
    /// Where secrets are read.
    #[serde(default = "default_entries_uri")]
    pub entries_uri: String,
}

// By hand: a derived one would print the key.
impl fmt::Debug for GcpAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("GcpAuth");
        shown.field("client_email", &self.client_email);
        shown.field("project_id", &self.project_id);
        shown.field("token_uri", &self.token_uri);
        shown.field("scope", &self.scope);
        shown.finish_non_exhaustive()
    }
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

fn default_verify() -> bool {
    true
}

fn default_token_uri() -> String {
    "https://oauth2.googleapis.com/token".to_owned()
}

fn default_scope() -> Vec<String> {
    vec!["https://www.googleapis.com/auth/cloud-platform".to_owned()]
}

fn default_entries_uri() -> String {
    "https://secretmanager.googleapis.com/v1".to_owned()
}

static VAULT: LazyLock<Schema> = LazyLock::new(|| compiled(&vault()));
static AWS: LazyLock<Schema> = LazyLock::new(|| compiled(&aws()));
static GCP: LazyLock<Schema> = LazyLock::new(|| compiled(&gcp()));

fn compiled(document: &Value) -> Schema {
    Schema::compile(document).expect("the documents of this module are schemas")
}

impl Secret {
    /// Reads a secret of the named manager.
    ///
    /// # Errors
    /// [`ParseError`] when a member's value does not fit; an unknown manager reads as no secret at all (`None`).
    pub fn parse(manager: &str, value: &Value) -> Result<Option<Secret>, ParseError> {
        Ok(match manager {
            "vault" => Some(Secret::Vault(parse(value)?)),
            "aws" => Some(Secret::Aws(parse(value)?)),
            "gcp" => Some(Secret::Gcp(parse(value)?)),
            _ => None,
        })
    }
}

/// The schema of a manager; `None` when there is no such manager.
pub fn schema(manager: &str) -> Option<&'static Schema> {
    match manager {
        "vault" => Some(&VAULT),
        "aws" => Some(&AWS),
        "gcp" => Some(&GCP),
        _ => None,
    }
}

/// Judges a secret of the named manager. APISIX: admin/secrets.lua check_conf.
///
/// # Errors
/// The `error_msg` of APISIX.
pub fn check(manager: &str, value: &Value) -> Result<(), String> {
    let schema = schema(manager).ok_or_else(|| format!("invalid secret manager: {manager}"))?;
    schema.check(value).map_err(|reason| format!("invalid configuration: {reason}"))
}

fn vault() -> Value {
    let text = json!({"type": "string"});
    json!({
        "type": "object",
        "properties": {"uri": parts::uri(), "prefix": text, "token": text, "namespace": text},
        "required": ["uri", "prefix", "token"],
    })
}

fn aws() -> Value {
    let text = json!({"type": "string"});
    json!({
        "type": "object",
        "properties": {
            "access_key_id": text,
            "secret_access_key": text,
            "session_token": text,
            "region": {"type": "string", "default": default_region()},
            "endpoint_url": parts::uri(),
        },
        "required": ["access_key_id", "secret_access_key"],
    })
}

fn gcp() -> Value {
    let text = json!({"type": "string"});
    let auth_config = json!({
        "type": "object",
        "properties": {
            "client_email": text,
            "private_key": text,
            "project_id": text,
            "token_uri": {"type": "string", "default": default_token_uri()},
            "scope": {"type": "array", "items": text, "default": default_scope()},
            "entries_uri": {"type": "string", "default": default_entries_uri()},
        },
        "required": ["client_email", "private_key", "project_id"],
    });
    json!({
        "type": "object",
        "properties": {
            "auth_config": auth_config,
            "ssl_verify": {"type": "boolean", "default": true},
            "auth_file": text,
        },
        "oneOf": [{"required": ["auth_config"]}, {"required": ["auth_file"]}],
    })
}
