//! Certificates: what the gateway shows to clients (by SNI) or to upstreams.
//!
//! Invariant: says what the resource may hold; never says what a key contains.

use serde::Deserialize;
use serde_json::{Value, json};

use super::typed::{Id, Labels};
use super::{DecryptKey, parts, pem};
use crate::schema::is_secret_reference;

/// A certificate with its key as stored.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Ssl {
    /// Its id.
    pub id: Option<Id>,
    /// What it is for, for people.
    pub desc: Option<String>,
    /// Labels, for people and for filters.
    #[serde(deserialize_with = "super::typed::map")]
    pub labels: Labels,
    /// When it was created, in seconds since 1970.
    pub create_time: Option<i64>,
    /// When it was last written, in seconds since 1970.
    pub update_time: Option<i64>,
    /// Whom it is shown to.
    #[serde(rename = "type")]
    pub kind: SslType,
    /// The certificate in PEM, or a reference to a secret.
    pub cert: String,
    /// Its key, in PEM, encrypted, or a reference to a secret.
    pub key: String,
    /// The name it is for; `*.` stands for one label.
    pub sni: Option<String>,
    /// The names it is for.
    #[serde(deserialize_with = "super::typed::list")]
    pub snis: Vec<String>,
    /// Further certificates, for other kinds of keys.
    #[serde(deserialize_with = "super::typed::list")]
    pub certs: Vec<String>,
    /// Their keys, in their order.
    #[serde(deserialize_with = "super::typed::list")]
    pub keys: Vec<String>,
    /// What clients must show; `None`: nothing.
    pub client: Option<SslClient>,
    /// `1` when it is in use, `0` when not.
    pub status: u8,
    /// TLS versions allowed; `None`: the settings'.
    pub ssl_protocols: Option<Vec<String>>,
}

/// Whom a certificate is shown to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SslType {
    /// To clients.
    #[default]
    Server,
    /// To upstreams.
    Client,
}

/// What a client must show.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct SslClient {
    /// Certificates of the authorities trusted, in PEM.
    pub ca: String,
    /// Longest chain accepted.
    #[serde(default = "default_depth")]
    pub depth: u32,
    /// Paths that need no client certificate.
    #[serde(default, deserialize_with = "super::typed::list")]
    pub skip_mtls_uri_regex: Vec<String>,
}

fn default_depth() -> u32 {
    1
}

impl Default for Ssl {
    fn default() -> Ssl {
        Ssl {
            id: None,
            desc: None,
            labels: Labels::new(),
            create_time: None,
            update_time: None,
            kind: SslType::Server,
            cert: String::new(),
            key: String::new(),
            sni: None,
            snis: Vec::new(),
            certs: Vec::new(),
            keys: Vec::new(),
            client: None,
            status: 1,
            ssl_protocols: None,
        }
    }
}

// By hand: a derived one would print the keys.
impl std::fmt::Debug for Ssl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = (&self.sni, &self.snis);
        f.debug_struct("Ssl").field("id", &self.id).field("kind", &self.kind).field("names", &names).finish()
    }
}

/// APISIX: schema_def.lua ssl.
pub(super) fn schema() -> Value {
    let sni = parts::host();
    let client = json!({
        "type": "object",
        "properties": {
            "ca": parts::certificate(),
            "depth": {"type": "integer", "minimum": 0, "default": 1},
            "skip_mtls_uri_regex": {
                "type": "array",
                "minItems": 1,
                "uniqueItems": true,
                "items": {"description": "uri regular expression to skip mtls", "type": "string"},
            },
        },
        "required": ["ca"],
    });
    let kind =
        "ssl certificate type, server to server certificate, client to client certificate for upstream";
    let status = "ssl status, 1 to enable, 0 to disable";
    json!({
        "type": "object",
        "properties": {
            "id": parts::id(),
            "desc": parts::desc(),
            "labels": parts::labels(),
            "create_time": parts::timestamp(),
            "update_time": parts::timestamp(),
            "type": {"description": kind, "type": "string", "default": "server", "enum": ["server", "client"]},
            "cert": parts::certificate(),
            "key": parts::private_key(),
            "sni": sni,
            "snis": {"type": "array", "items": sni, "minItems": 1},
            "certs": {"type": "array", "items": parts::certificate()},
            "keys": {"type": "array", "items": parts::private_key()},
            "client": client,
            "status": {"description": status, "type": "integer", "enum": [1, 0], "default": 1},
            "ssl_protocols": {
                "description": "set ssl protocols",
                "type": "array",
                "maxItems": 3,
                "uniqueItems": true,
                "items": {"enum": ["TLSv1.1", "TLSv1.2", "TLSv1.3"]},
            },
        },
        "if": {"properties": {"type": {"enum": ["server"]}}},
        "then": {"oneOf": [{"required": ["sni", "key", "cert"]}, {"required": ["snis", "key", "cert"]}]},
        "else": {"required": ["key", "cert"]},
        "additionalProperties": false,
    })
}

/// What is checked after the schema. APISIX: ssl.lua check_ssl_conf.
pub(super) fn check(conf: &Value, decrypt: DecryptKey<'_>) -> Result<(), String> {
    let text = |name: &str| conf.get(name).and_then(Value::as_str).unwrap_or_default();
    check_pair(text("cert"), text("key"), decrypt)?;
    if text("type") == "client" {
        return Ok(());
    }
    let (certs, keys) = (texts(conf.get("certs")), texts(conf.get("keys")));
    if certs.len() != keys.len() {
        return Err("mismatched number of certs and keys".to_owned());
    }
    for (at, (cert, key)) in certs.iter().zip(keys).enumerate() {
        check_pair(cert, key, decrypt)
            .map_err(|reason| format!("failed to handle cert-key pair[{}]: {reason}", at + 1))?;
    }
    match conf.get("client").and_then(|client| client.get("ca")).and_then(Value::as_str) {
        Some(ca) if !is_secret_reference(ca) => {
            pem::check_cert(ca).map_err(|reason| format!("failed to validate client_cert: {reason}"))
        }
        _ => Ok(()),
    }
}

fn check_pair(cert: &str, key: &str, decrypt: DecryptKey<'_>) -> Result<(), String> {
    if is_secret_reference(cert) || is_secret_reference(key) {
        return Ok(());
    }
    pem::check_pair(cert, key, decrypt)
}

fn texts(list: Option<&Value>) -> Vec<&str> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}
