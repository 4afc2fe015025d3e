//! The typed settings. Names and nesting are config.yaml's; defaults and checks are in the table of keys.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::compat::Compat;

/// Text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct Hidden(String);

impl Hidden {
    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.0.is_empty() { "\"\"" } else { "***" })
    }
}

/// The section `apisix`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "the table of keys describes each of them")]
pub struct Apisix {
    pub node_listen: Vec<NodeListen>,
    pub ssl: Tls,
    pub enable_ipv6: bool,
    pub enable_http2: bool,
    pub enable_server_tokens: bool,
    pub show_upstream_status_in_response_header: bool,
    pub router: Router,
    pub delete_uri_tail_slash: bool,
    pub normalize_uri_like_servlet: bool,
    pub match_uri_encoded_slash: bool,
    /// In MB; 0 is no limit.
    pub max_post_args_readable_size: u64,
    /// None when not written: `X-Forwarded-For` is then kept, as APISIX does.
    pub trusted_addresses: Option<Vec<String>>,
    /// None when not written: /etc/resolv.conf.
    pub dns_resolver: Option<Vec<SocketAddr>>,
    /// In seconds.
    pub dns_resolver_valid: Option<u64>,
    #[serde(deserialize_with = "seconds")]
    pub resolver_timeout: Duration,
    pub enable_resolv_search_opt: bool,
    pub proxy_mode: ProxyMode,
    pub stream_proxy: Option<StreamProxy>,
    pub proxy_cache: ProxyCache,
    pub lru: Lru,
    pub disable_upstream_healthcheck: bool,
    pub data_encryption: DataEncryption,
    pub enable_admin: bool,
    pub enable_control: bool,
    pub control: Listen,
    pub status: Option<Listen>,
    pub enable_dev_mode: bool,
}

/// One item of `node_listen` or `ssl.listen`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodeListen {
    /// None is every address.
    pub ip: Option<IpAddr>,
    /// The port; 0 takes any free one.
    pub port: u16,
    /// None is `apisix.enable_http2`.
    pub enable_http2: Option<bool>,
}

/// An address with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Listen {
    /// The address.
    pub ip: IpAddr,
    /// The port; 0 takes any free one.
    pub port: u16,
}

impl Listen {
    /// Both as one.
    pub fn address(self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

/// The section `apisix.ssl`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "the table of keys describes each of them")]
pub struct Tls {
    pub enable: bool,
    pub listen: Vec<NodeListen>,
    /// Space-separated, in nginx's notation.
    pub ssl_protocols: String,
    /// Colon-separated, in OpenSSL's notation.
    pub ssl_ciphers: String,
    pub ssl_session_tickets: bool,
    /// A file, or `system`.
    pub ssl_trusted_certificate: String,
    pub fallback_sni: Option<String>,
}

/// The section `apisix.router`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Router {
    /// How routes are matched.
    pub http: HttpRouter,
    /// How certificates are found.
    pub ssl: String,
}

/// `apisix.router.http`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HttpRouter {
    /// By host, then path.
    RadixtreeHostUri,
    /// By path.
    RadixtreeUri,
    /// By path, with parameters.
    RadixtreeUriWithParameter,
}

/// `apisix.proxy_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum ProxyMode {
    /// HTTP only.
    #[serde(rename = "http")]
    Http,
    /// TCP and UDP only.
    #[serde(rename = "stream")]
    Stream,
    /// Both.
    #[serde(rename = "http&stream")]
    Both,
}

/// The section `apisix.stream_proxy`: entries as written.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct StreamProxy {
    /// TCP ports.
    pub tcp: Vec<Value>,
    /// UDP ports.
    pub udp: Vec<Value>,
}

/// The section `apisix.proxy_cache`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ProxyCache {
    /// How long a response is kept that does not say it.
    #[serde(deserialize_with = "millis")]
    pub cache_ttl: Duration,
    /// The caches.
    pub zones: Vec<CacheZone>,
}

/// One cache of the plugin proxy-cache.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct CacheZone {
    /// Its name.
    pub name: String,
    /// In bytes.
    pub memory_size: u64,
    /// In bytes; with [`disk_path`](Self::disk_path) it is a disk cache.
    pub disk_size: Option<u64>,
    /// Its directory.
    pub disk_path: Option<String>,
    /// Directory levels, nginx's notation.
    pub cache_levels: Option<String>,
}

/// The section `apisix.lru`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Lru {
    /// The cache of secrets.
    pub secret: SecretCache,
}

/// The section `apisix.lru.secret`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct SecretCache {
    /// How long a secret is kept.
    #[serde(deserialize_with = "seconds")]
    pub ttl: Duration,
    /// How many are kept.
    pub count: usize,
    /// How long a failure is kept.
    #[serde(deserialize_with = "seconds")]
    pub neg_ttl: Duration,
    /// How many failures are kept.
    pub neg_count: usize,
}

/// The section `apisix.data_encryption`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DataEncryption {
    /// Whether `encrypt_fields` of plugins are encrypted.
    pub enable_encrypt_fields: bool,
    /// The first key encrypts, every key decrypts.
    pub keyring: Vec<Hidden>,
}

/// The section `deployment`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Deployment {
    /// What this instance does.
    pub role: Role,
    pub(super) role_traditional: RoleSection,
    pub(super) role_data_plane: RoleSection,
    pub(super) role_control_plane: RoleSection,
    /// The Admin API.
    pub admin: Admin,
    /// The etcd cluster.
    pub etcd: Etcd,
}

/// `deployment.role`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Proxy and Admin API.
    Traditional,
    /// Proxy only.
    DataPlane,
    /// Admin API only.
    ControlPlane,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct RoleSection {
    pub(super) config_provider: Provider,
}

/// Where resources come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    /// The store inside the gateway.
    Embedded,
    /// An etcd cluster.
    Etcd,
    /// conf/apisix.yaml, or the standalone Admin API.
    Yaml,
    /// conf/apisix.json.
    Json,
}

/// The section `deployment.admin`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "the table of keys describes each of them")]
pub struct Admin {
    pub admin_key: Vec<AdminKey>,
    pub admin_key_required: bool,
    /// IPs and CIDR blocks; empty is everybody.
    pub allow_admin: Vec<String>,
    pub admin_listen: Listen,
    pub enable_admin_cors: bool,
    pub enable_admin_ui: bool,
    pub https_admin: bool,
    pub admin_api_mtls: Option<AdminMtls>,
    pub admin_api_version: AdminVersion,
}

/// One key of the Admin API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AdminKey {
    /// A name for people.
    pub name: String,
    /// The key; empty: the generated one.
    pub key: Hidden,
    /// What it allows.
    pub role: AdminRole,
}

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminRole {
    /// Everything.
    Admin,
    /// Reading.
    Viewer,
}

/// `deployment.admin.admin_api_version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminVersion {
    /// APISIX 2's answers.
    #[serde(alias = "default")]
    V2,
    /// APISIX 3's answers.
    V3,
}

/// The section `deployment.admin.admin_api_mtls`; empty names are not set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "the table of keys describes each of them")]
pub struct AdminMtls {
    pub admin_ssl_cert: String,
    pub admin_ssl_cert_key: String,
    pub admin_ssl_ca_cert: String,
}

/// The section `deployment.etcd`; times in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "the table of keys describes each of them")]
pub struct Etcd {
    pub host: Vec<String>,
    pub prefix: String,
    pub timeout: u64,
    pub watch_timeout: u64,
    pub resync_delay: u64,
    pub health_check_timeout: i64,
    pub startup_retry: u64,
    pub user: Option<String>,
    pub password: Option<Hidden>,
    pub tls: EtcdTls,
}

/// The section `deployment.etcd.tls`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "the table of keys describes each of them")]
pub struct EtcdTls {
    pub cert: Option<String>,
    pub key: Option<String>,
    pub verify: bool,
    pub sni: Option<String>,
}

/// The section `nginx_config`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Nginx {
    pub(super) worker_processes: Option<usize>,
    /// Time for open requests after quit and reload.
    #[serde(deserialize_with = "millis")]
    pub worker_shutdown_timeout: Duration,
    /// Open files.
    pub worker_rlimit_nofile: u64,
    /// A file (see [`Settings::resolve`](crate::settings::Settings::resolve)), or `stderr`.
    pub error_log: String,
    /// nginx's name of the level.
    pub error_log_level: LogLevel,
    /// Environment of runners: `NAME` or `NAME=value`.
    pub envs: Vec<String>,
    /// The section `nginx_config.http`.
    pub http: NginxHttp,
}

/// `nginx_config.error_log_level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "nginx's levels")]
pub enum LogLevel {
    Debug,
    Info,
    Notice,
    Warn,
    Error,
    Crit,
    Alert,
    Emerg,
}

/// The section `nginx_config.http`; sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "the table of keys describes each of them")]
pub struct NginxHttp {
    pub enable_access_log: bool,
    pub access_log: String,
    pub access_log_buffer: u64,
    pub access_log_format: String,
    pub access_log_format_escape: LogEscape,
    #[serde(deserialize_with = "millis")]
    pub keepalive_timeout: Duration,
    #[serde(deserialize_with = "millis")]
    pub client_header_timeout: Duration,
    #[serde(deserialize_with = "millis")]
    pub client_body_timeout: Duration,
    #[serde(deserialize_with = "millis")]
    pub send_timeout: Duration,
    /// 0 is no limit.
    pub client_max_body_size: u64,
    pub underscores_in_headers: bool,
    pub real_ip_header: String,
    pub real_ip_recursive: bool,
    /// IPs, CIDR blocks and `unix:`.
    pub real_ip_from: Vec<String>,
    pub proxy_ssl_server_name: bool,
    pub upstream: UpstreamKeepalive,
}

/// `nginx_config.http.access_log_format_escape`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogEscape {
    /// `\xXX` for quotes, backslashes and control characters; `-` for nothing.
    Default,
    /// As inside JSON text.
    Json,
    /// Not at all.
    None,
}

/// The section `nginx_config.http.upstream`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct UpstreamKeepalive {
    /// Idle connections kept.
    pub keepalive: usize,
    /// Requests on one connection.
    pub keepalive_requests: u64,
    /// How long an idle connection is kept.
    #[serde(deserialize_with = "millis")]
    pub keepalive_timeout: Duration,
}

/// The section `ext-plugin`. [`Settings::runners`](crate::settings::Settings::runners) has its runners in one list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ExtPlugin {
    pub(super) cmd: Option<Vec<String>>,
    pub(super) path_for_test: Option<String>,
    pub(super) runners: Map<String, Value>,
    pub(super) connections: usize,
    /// Of calls to runners.
    pub timeout: ExtPluginTimeout,
    /// Of each process.
    pub circuit_breaker: ExtPluginBreaker,
    /// How long runners keep a configuration that they were told.
    #[serde(deserialize_with = "millis")]
    pub conf_expire: Duration,
}

/// The section `ext-plugin.circuit_breaker`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct ExtPluginBreaker {
    /// Calls in a row that do not reach the process until it opens; 0: it never does.
    pub failures: u32,
    /// Between two questions whether the process is back.
    #[serde(deserialize_with = "millis")]
    pub probe: Duration,
    /// How long a call may take until its process is asked whether it hangs; 0: it is not.
    #[serde(deserialize_with = "millis")]
    pub patience: Duration,
}

/// The section `ext-plugin.timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct ExtPluginTimeout {
    /// To connect.
    #[serde(deserialize_with = "millis")]
    pub connect: Duration,
    /// For a whole call.
    #[serde(deserialize_with = "millis")]
    pub call: Duration,
    /// Until a connection becomes free.
    #[serde(deserialize_with = "millis")]
    pub queue: Duration,
    /// Until a runner that is being started is ready.
    #[serde(deserialize_with = "millis")]
    pub ready: Duration,
}

/// A runner of external plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// The name by which plugins choose it.
    pub name: String,
    /// Its command and its words; none: somebody else starts it.
    pub cmd: Option<Vec<String>>,
    /// Its socket; none: one is made up for each process.
    pub socket: Option<PathBuf>,
    /// How many processes are started.
    pub processes: usize,
    /// Connections to each of them.
    pub connections: usize,
    /// Files and directories whose change starts new processes; absolute.
    pub watch: Vec<PathBuf>,
}

/// The section `graphql`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Graphql {
    /// Largest query in bytes.
    pub max_size: u64,
}

/// The section `portcullis`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Portcullis {
    pub(super) data_dir: String,
    /// Whose wording and defaults.
    pub compat: Compat,
    pub(super) threads: Option<usize>,
    pub(super) pid_file: Option<String>,
    pub(super) upgrade_sock: Option<String>,
    /// A response header that tells which plugin refused the request and why.
    pub debug_auth: bool,
    /// Logs show credentials where APISIX does: in arguments, and in the headers of log entries.
    pub log_credentials: bool,
    /// Largest request body held in memory for plugins, in bytes.
    pub request_body_buffer_max: u64,
}

/// `plugin_attr`: the attributes of each plugin, as JSON.
pub type PluginAttr = Map<String, Value>;

fn millis<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    u64::deserialize(from).map(Duration::from_millis)
}

fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    f64::deserialize(from).map(Duration::from_secs_f64)
}
