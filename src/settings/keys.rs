//! The table of every known key of config.yaml: path, type, default, meaning.
//!
//! The one place a setting is declared: checking, the nearest name in messages, the defaults of
//! [`Settings`](crate::settings::Settings) and the documented `conf/config.yaml` all come from here. Keys, types and
//! defaults are APISIX 3.18's (apisix/cli/config.lua, apisix/cli/schema.lua); where ours differ a comment says so.

use crate::settings::kind::Kind;

/// One known key.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Path from the top, `[]` for the items of a list: `apisix.node_listen[].port`.
    pub path: &'static str,
    /// Type of the value.
    pub kind: Kind,
    /// The default, as JSON text.
    pub default: &'static str,
    /// What it does, in a line.
    pub meaning: &'static str,
    /// Whether `conf/config.yaml` shows it.
    pub shown: Shown,
}

/// How the documented `conf/config.yaml` shows a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Not at all.
    No,
    /// With its default.
    Default,
    /// As a comment, with this example.
    Example(&'static str),
}

const fn key(path: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Setting {
    Setting { path, kind, default, meaning, shown: Shown::No }
}

const fn show(path: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Setting {
    Setting { path, kind, default, meaning, shown: Shown::Default }
}

const fn example(path: &'static str, kind: Kind, example: &'static str, meaning: &'static str) -> Setting {
    Setting { path, kind, default: "null", meaning, shown: Shown::Example(example) }
}

const fn with_default(default: &'static str, setting: Setting) -> Setting {
    Setting { default, ..setting }
}

const fn inert(path: &'static str) -> Setting {
    Setting { path, kind: Kind::Inert, default: "null", meaning: "", shown: Shown::No }
}

/// A key of an older APISIX and where it stands now.
pub struct Moved {
    /// The place in APISIX 2.x.
    pub from: &'static str,
    /// The place in APISIX 3.x.
    pub to: &'static str,
}

/// Keys that are read in their old place too, with a warning; the new place wins.
pub const MOVED: &[Moved] = &[
    Moved { from: "apisix.admin_key", to: "deployment.admin.admin_key" },
    Moved { from: "apisix.allow_admin", to: "deployment.admin.allow_admin" },
    Moved { from: "apisix.admin_listen", to: "deployment.admin.admin_listen" },
    Moved { from: "apisix.port_admin", to: "deployment.admin.admin_listen.port" },
    Moved { from: "apisix.https_admin", to: "deployment.admin.https_admin" },
    Moved { from: "apisix.admin_api_mtls", to: "deployment.admin.admin_api_mtls" },
    Moved { from: "apisix.admin_api_version", to: "deployment.admin.admin_api_version" },
    Moved { from: "apisix.enable_admin_cors", to: "deployment.admin.enable_admin_cors" },
    Moved { from: "apisix.config_center", to: "deployment.role_traditional.config_provider" },
    Moved { from: "apisix.ssl.listen_port", to: "apisix.ssl.listen" },
    Moved { from: "apisix.ssl.enable_http2", to: "apisix.enable_http2" },
    Moved { from: "apisix.ssl.key_encrypt_salt", to: "apisix.data_encryption.keyring" },
    Moved { from: "apisix.data_encryption.enable", to: "apisix.data_encryption.enable_encrypt_fields" },
    Moved { from: "etcd", to: "deployment.etcd" },
];

/// Where resources come from: APISIX's providers and `embedded`, the store inside the gateway.
const PROVIDERS: &[&str] = &["embedded", "etcd", "yaml", "json"];
const LEVELS: &[&str] = &["debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"];
const ROUTERS: &[&str] = &["radixtree_host_uri", "radixtree_uri", "radixtree_uri_with_parameter"];
const ANY: i64 = i64::MAX;

const CIPHERS: &str = "\"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:\
    ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:\
    DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384\"";

const ACCESS_LOG_FORMAT: &str = r#""$remote_addr - $remote_user [$time_local] $http_host \"$request\" $status $body_bytes_sent $request_time \"$http_referer\" \"$http_user_agent\" $upstream_addr $upstream_status $upstream_response_time \"$upstream_scheme://$upstream_host$upstream_uri\" \"$apisix_request_id\"""#;

const CACHE_ZONES: &str = r#"[
    {"name": "disk_cache_one", "memory_size": "50m", "disk_size": "1G", "disk_path": "/tmp/disk_cache_one", "cache_levels": "1:2"},
    {"name": "memory_cache", "memory_size": "50m"}]"#;

const PLUGIN_ATTR: &str = r#"{
    "log-rotate": {"timeout": 10000, "interval": 3600, "max_kept": 168, "max_size": -1, "enable_compression": false},
    "skywalking": {"service_name": "APISIX", "service_instance_name": "APISIX Instance Name", "endpoint_addr": "http://127.0.0.1:12800", "report_interval": 3},
    "opentelemetry": {"trace_id_source": "x-request-id", "resource": {"service.name": "APISIX"},
        "collector": {"address": "127.0.0.1:4318", "request_timeout": 3, "request_headers": {"Authorization": "token"}},
        "batch_span_processor": {"drop_on_queue_full": false, "max_queue_size": 1024, "batch_timeout": 2, "inactive_timeout": 1, "max_export_batch_size": 16},
        "set_ngx_var": false},
    "prometheus": {"export_uri": "/apisix/prometheus/metrics", "metric_prefix": "apisix_", "enable_export_server": true,
        "export_addr": {"ip": "127.0.0.1", "port": 9091}, "refresh_interval": 15},
    "server-info": {"report_ttl": 60},
    "proxy-mirror": {"timeout": {"connect": "60s", "read": "60s", "send": "60s"}},
    "zipkin": {"set_ngx_var": false}}"#;

/// Every known key. A section stands before its keys; sections without a row of their own are plain.
// One row, one line: a table is read down its columns.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    // apisix
    show("apisix.node_listen", Kind::OneOrList, "[9080]", "HTTP: a port, or a list of ports or {ip, port}; without ip every address"),
    key("apisix.node_listen[]", Kind::Listen, "null", "a port or {ip, port}"),
    key("apisix.node_listen[].ip", Kind::Ip, "null", "every address when absent"),
    key("apisix.node_listen[].port", Kind::Port, "9080", "0 takes any free port"),
    // APISIX refuses this since 3.9; configurations of 3.2 have it.
    key("apisix.node_listen[].enable_http2", Kind::Bool, "null", "as apisix.enable_http2 when absent"),
    key("apisix.ssl", Kind::Section, "null", "TLS"),
    key("apisix.ssl.enable", Kind::Bool, "true", "HTTPS; read, but not served yet"),
    key("apisix.ssl.listen", Kind::OneOrList, "[{\"port\": 9443}]", "HTTPS: a list of {ip, port}; not served yet"),
    key("apisix.ssl.listen[]", Kind::Listen, "null", "a port or {ip, port}"),
    key("apisix.ssl.listen[].ip", Kind::Ip, "null", "every address when absent"),
    key("apisix.ssl.listen[].port", Kind::Port, "9443", "0 takes any free port"),
    key("apisix.ssl.listen[].enable_http2", Kind::Bool, "null", "as apisix.enable_http2 when absent"),
    inert("apisix.ssl.listen[].enable_http3"),
    key("apisix.ssl.ssl_protocols", Kind::Text, "\"TLSv1.2 TLSv1.3\"", "versions of TLS"),
    key("apisix.ssl.ssl_ciphers", Kind::Text, CIPHERS, "ciphers, in OpenSSL's notation"),
    key("apisix.ssl.ssl_session_tickets", Kind::Bool, "false", "session tickets weaken forward secrecy"),
    key("apisix.ssl.ssl_trusted_certificate", Kind::Text, "\"system\"", "file of trusted CA certificates (PEM), or system"),
    key("apisix.ssl.fallback_sni", Kind::Text, "null", "server name of clients that send none"),
    key("apisix.enable_ipv6", Kind::Bool, "true", "listen on [::] too; ask for AAAA records"),
    show("apisix.enable_http2", Kind::Bool, "true", "HTTP/2 for clients"),
    key("apisix.enable_server_tokens", Kind::Bool, "true", "the version in the Server header"),
    key("apisix.show_upstream_status_in_response_header", Kind::Bool, "false", "X-APISIX-Upstream-Status always, not for 5xx only"),
    show("apisix.router.http", Kind::Choice(ROUTERS), "\"radixtree_host_uri\"", "or radixtree_uri, radixtree_uri_with_parameter (/user/:id)"),
    key("apisix.router.ssl", Kind::Choice(&["radixtree_sni"]), "\"radixtree_sni\"", "how certificates are found"),
    key("apisix.delete_uri_tail_slash", Kind::Bool, "false", "match /a/ as /a"),
    key("apisix.normalize_uri_like_servlet", Kind::Bool, "false", "path rules of the Java servlet specification"),
    key("apisix.match_uri_encoded_slash", Kind::Bool, "false", "%2F stays part of a path parameter"),
    key("apisix.max_post_args_readable_size", Kind::Int(0, ANY), "64", "MB of body read for post_arg.* matching; 0 is no limit"),
    example("apisix.trusted_addresses", Kind::List, "[10.0.0.0/8]", "peers whose X-Forwarded-* headers are kept"),
    key("apisix.trusted_addresses[]", Kind::Cidr, "null", "IP or CIDR"),
    example("apisix.dns_resolver", Kind::List, "[1.1.1.1]", "DNS servers; absent: /etc/resolv.conf"),
    key("apisix.dns_resolver[]", Kind::DnsServer, "null", "IP or IP:port"),
    key("apisix.dns_resolver_valid", Kind::Int(0, ANY), "null", "seconds an answer is kept, in place of its TTL"),
    key("apisix.resolver_timeout", Kind::Seconds, "5", "seconds to wait for a DNS answer"),
    key("apisix.enable_resolv_search_opt", Kind::Bool, "true", "the search option of /etc/resolv.conf"),
    key("apisix.proxy_mode", Kind::Choice(&["http", "stream", "http&stream"]), "\"http\"", "what is proxied"),
    key("apisix.stream_proxy", Kind::OptionalSection, "null", "TCP and UDP ports"),
    key("apisix.stream_proxy.tcp", Kind::List, "[]", "ports, or {addr, tls}"),
    key("apisix.stream_proxy.tcp[]", Kind::Any, "null", "a port, an address, or {addr, tls}"),
    key("apisix.stream_proxy.udp", Kind::List, "[]", "ports"),
    key("apisix.stream_proxy.udp[]", Kind::Any, "null", "a port or an address"),
    inert("apisix.stream_proxy.only"),
    key("apisix.proxy_cache.cache_ttl", Kind::Time, "\"10s\"", "how long a response is kept that does not say it"),
    key("apisix.proxy_cache.zones", Kind::List, CACHE_ZONES, "caches of the plugin proxy-cache"),
    key("apisix.proxy_cache.zones[]", Kind::Section, "null", "one cache"),
    key("apisix.proxy_cache.zones[].name", Kind::Text, "\"\"", "name used by the plugin"),
    key("apisix.proxy_cache.zones[].memory_size", Kind::Size, "\"50m\"", "memory for it or its index"),
    key("apisix.proxy_cache.zones[].disk_size", Kind::Size, "null", "disk for it"),
    key("apisix.proxy_cache.zones[].disk_path", Kind::Text, "null", "directory"),
    key("apisix.proxy_cache.zones[].cache_levels", Kind::Text, "null", "directory levels"),
    key("apisix.lru.secret.ttl", Kind::Seconds, "300", "seconds a secret is kept"),
    key("apisix.lru.secret.count", Kind::Int(1, ANY), "512", "secrets kept"),
    key("apisix.lru.secret.neg_ttl", Kind::Seconds, "60", "seconds a failure is kept"),
    key("apisix.lru.secret.neg_count", Kind::Int(1, ANY), "512", "failures kept"),
    key("apisix.disable_upstream_healthcheck", Kind::Bool, "false", "no health checks at all"),
    show("apisix.data_encryption.enable_encrypt_fields", Kind::Bool, "true", "secrets in plugin configurations and private keys are stored encrypted"),
    key("apisix.data_encryption.keyring", Kind::OneOrList, "[\"qeddd145sfvddff3\", \"edd1c9f0985e76a2\"]", "the first key encrypts, every key decrypts"),
    key("apisix.data_encryption.keyring[]", Kind::EncryptionKey, "null", "16 or 32 bytes"),
    show("apisix.enable_admin", Kind::Bool, "true", "the Admin API (role data_plane: never, control_plane: always)"),
    show("apisix.enable_control", Kind::Bool, "true", "the Control API: health, schemas, metrics of this instance"),
    key("apisix.control", Kind::Section, "null", "where the Control API listens"),
    key("apisix.control.ip", Kind::Ip, "\"127.0.0.1\"", "address"),
    show("apisix.control.port", Kind::Port, "9090", ""),
    inert("apisix.control.router"),
    example("apisix.status", Kind::OptionalSection, "{ip: 127.0.0.1, port: 7085}", "/status and /status/ready for probes"),
    key("apisix.status.ip", Kind::Ip, "\"127.0.0.1\"", "address"),
    key("apisix.status.port", Kind::Port, "7085", "port"),
    key("apisix.enable_dev_mode", Kind::Bool, "false", "one worker thread"),
    inert("apisix.enable_reuseport"),
    inert("apisix.extra_lua_path"),
    inert("apisix.extra_lua_cpath"),
    inert("apisix.lua_module_hook"),
    inert("apisix.proxy_protocol"),
    inert("apisix.disable_sync_configuration_during_start"),
    inert("apisix.worker_startup_time_threshold"),
    inert("apisix.tracing"),
    inert("apisix.enable_debug"),
    inert("apisix.enable_heartbeat"),
    inert("apisix.id"),
    inert("apisix.events"),
    // deployment
    show("deployment.role", Kind::Choice(&["traditional", "data_plane", "control_plane"]), "\"traditional\"", "traditional, data_plane (no Admin API) or control_plane (no proxy)"),
    // Differs from APISIX: the default is etcd there. A written deployment.etcd makes it etcd here too.
    show("deployment.role_traditional.config_provider", Kind::Choice(PROVIDERS), "\"embedded\"", "embedded (a file in data_dir), yaml or json (conf/apisix.yaml)"),
    key("deployment.role_data_plane.config_provider", Kind::Choice(PROVIDERS), "\"embedded\"", "as role_traditional"),
    inert("deployment.role_data_plane.control_plane"),
    key("deployment.role_control_plane.config_provider", Kind::Choice(PROVIDERS), "\"embedded\"", "as role_traditional"),
    inert("deployment.role_control_plane.conf_server"),
    inert("deployment.certs"),
    inert("deployment.config_provider"),
    show("deployment.admin.admin_key", Kind::List, "[{\"name\": \"admin\", \"key\": \"\", \"role\": \"admin\"}]", "an empty key is generated at the first start: portcullis admin-key shows it"),
    key("deployment.admin.admin_key[]", Kind::Section, "null", "one key"),
    key("deployment.admin.admin_key[].name", Kind::Text, "\"admin\"", "a name for people"),
    key("deployment.admin.admin_key[].key", Kind::Secret, "\"\"", "empty: generated"),
    key("deployment.admin.admin_key[].role", Kind::Choice(&["admin", "viewer"]), "\"admin\"", "a viewer may only read"),
    key("deployment.admin.admin_key_required", Kind::Bool, "true", "false: whoever reaches the Admin API may use it"),
    show("deployment.admin.allow_admin", Kind::List, "[\"127.0.0.0/24\"]", "who may reach the Admin API; an empty list: everybody"),
    key("deployment.admin.allow_admin[]", Kind::Cidr, "null", "IP or CIDR"),
    // Differs from APISIX: 0.0.0.0 there.
    show("deployment.admin.admin_listen.ip", Kind::Ip, "\"127.0.0.1\"", "0.0.0.0 to reach the Admin API from elsewhere"),
    show("deployment.admin.admin_listen.port", Kind::Port, "9180", ""),
    key("deployment.admin.enable_admin_cors", Kind::Bool, "true", "Access-Control-Allow-Origin: * on the Admin API"),
    key("deployment.admin.enable_admin_ui", Kind::Bool, "true", "the dashboard; not there yet"),
    key("deployment.admin.https_admin", Kind::Bool, "false", "the Admin API by HTTPS; needs admin_api_mtls"),
    key("deployment.admin.admin_api_mtls", Kind::OptionalSection, "null", "certificates of the Admin API"),
    key("deployment.admin.admin_api_mtls.admin_ssl_cert", Kind::Text, "\"\"", "certificate file"),
    key("deployment.admin.admin_api_mtls.admin_ssl_cert_key", Kind::Text, "\"\"", "private key file"),
    key("deployment.admin.admin_api_mtls.admin_ssl_ca_cert", Kind::Text, "\"\"", "CA of client certificates; empty: none asked for"),
    key("deployment.admin.admin_api_version", Kind::Choice(&["v3", "v2", "default"]), "\"v3\"", "shape of the answers"),
    with_default(
        "[\"http://127.0.0.1:2379\"]",
        key("deployment.etcd.host", Kind::List, "[\"http://127.0.0.1:2379\"]", "servers of one etcd cluster; not supported yet, the embedded store serves instead"),
    ),
    key("deployment.etcd.host[]", Kind::Url, "null", "http://… or https://…"),
    key("deployment.etcd.prefix", Kind::Text, "\"/apisix\"", "prefix of every key"),
    key("deployment.etcd.timeout", Kind::Int(1, ANY), "30", "seconds for one request"),
    key("deployment.etcd.watch_timeout", Kind::Int(1, ANY), "50", "seconds until a watch is renewed"),
    key("deployment.etcd.resync_delay", Kind::Int(0, ANY), "5", "seconds until a failed sync is tried again"),
    key("deployment.etcd.health_check_timeout", Kind::Int(i64::MIN, ANY), "10", "seconds a failed server is left out"),
    key("deployment.etcd.startup_retry", Kind::Int(0, ANY), "2", "tries at start"),
    key("deployment.etcd.user", Kind::Text, "null", "user name"),
    key("deployment.etcd.password", Kind::Secret, "null", "password"),
    key("deployment.etcd.tls.cert", Kind::Text, "null", "client certificate file"),
    key("deployment.etcd.tls.key", Kind::Text, "null", "client key file"),
    key("deployment.etcd.tls.verify", Kind::Bool, "true", "check the server's certificate"),
    key("deployment.etcd.tls.sni", Kind::Text, "null", "server name; absent: the host of the address"),
    inert("deployment.etcd.use_grpc"),
    inert("deployment.etcd.health_check_retry"),
    // nginx_config
    show("nginx_config.worker_processes", Kind::Workers, "\"auto\"", "worker threads: auto is one for each CPU ($APISIX_WORKER_PROCESSES wins)"),
    key("nginx_config.worker_shutdown_timeout", Kind::Time, "\"240s\"", "time for open requests after quit and reload"),
    key("nginx_config.worker_rlimit_nofile", Kind::Int(0, ANY), "20480", "open files; only ever raised, and not above the hard limit"),
    // Differs from APISIX: logs/error.log there.
    show("nginx_config.error_log", Kind::Text, "\"stderr\"", "a file, or stderr"),
    show("nginx_config.error_log_level", Kind::Choice(LEVELS), "\"warn\"", "debug, info, notice, warn, error, crit, alert or emerg"),
    key("nginx_config.envs", Kind::List, "[]", "environment variables runners of external plugins get: NAME or NAME=value"),
    key("nginx_config.envs[]", Kind::Text, "null", "NAME or NAME=value"),
    show("nginx_config.http.enable_access_log", Kind::Bool, "true", "a line for each request"),
    show("nginx_config.http.access_log", Kind::Text, "\"logs/access.log\"", "a file (its directory is made), or /dev/stdout"),
    key("nginx_config.http.access_log_buffer", Kind::Size, "16384", "bytes gathered before they are written"),
    key("nginx_config.http.access_log_format", Kind::Text, ACCESS_LOG_FORMAT, "nginx's notation"),
    key("nginx_config.http.access_log_format_escape", Kind::Choice(&["default", "json", "none"]), "\"default\"", "how variables are escaped"),
    key("nginx_config.http.keepalive_timeout", Kind::Time, "\"60s\"", "how long an idle client connection is kept"),
    key("nginx_config.http.client_header_timeout", Kind::Time, "\"60s\"", "time for the whole request header"),
    key("nginx_config.http.client_body_timeout", Kind::Time, "\"60s\"", "time between two reads of the request body"),
    key("nginx_config.http.send_timeout", Kind::Time, "\"10s\"", "time between two writes of the response"),
    show("nginx_config.http.client_max_body_size", Kind::Size, "0", "larger request bodies are answered 413; 0 is no limit"),
    inert("nginx_config.http.client_body_buffer_size"),
    inert("nginx_config.http.large_client_header_buffers"),
    key("nginx_config.http.underscores_in_headers", Kind::Bool, "\"on\"", "keep headers with underscores in their names"),
    key("nginx_config.http.real_ip_header", Kind::Text, "\"X-Real-IP\"", "header with the client's address"),
    key("nginx_config.http.real_ip_recursive", Kind::Bool, "\"off\"", "the last address that is not trusted"),
    key("nginx_config.http.real_ip_from", Kind::List, "[\"127.0.0.1\", \"unix:\"]", "peers whose real_ip_header is believed"),
    key("nginx_config.http.real_ip_from[]", Kind::Cidr, "null", "IP, CIDR or unix:"),
    key("nginx_config.http.proxy_ssl_server_name", Kind::Bool, "true", "send the server name to TLS upstreams"),
    key("nginx_config.http.upstream.keepalive", Kind::Int(0, ANY), "320", "idle upstream connections kept"),
    key("nginx_config.http.upstream.keepalive_requests", Kind::Int(1, ANY), "1000", "requests on one upstream connection"),
    key("nginx_config.http.upstream.keepalive_timeout", Kind::Time, "\"60s\"", "how long an idle upstream connection is kept"),
    inert("nginx_config.http.charset"),
    inert("nginx_config.http.variables_hash_max_size"),
    inert("nginx_config.http.lua_shared_dict"),
    inert("nginx_config.http.lua_shared_dicts"),
    inert("nginx_config.http.custom_lua_shared_dict"),
    inert("nginx_config.user"),
    inert("nginx_config.enable_cpu_affinity"),
    inert("nginx_config.max_pending_timers"),
    inert("nginx_config.max_running_timers"),
    inert("nginx_config.event"),
    inert("nginx_config.meta"),
    inert("nginx_config.stream"),
    inert("nginx_config.main_configuration_snippet"),
    inert("nginx_config.http_configuration_snippet"),
    inert("nginx_config.http_server_configuration_snippet"),
    inert("nginx_config.http_server_location_configuration_snippet"),
    inert("nginx_config.http_admin_configuration_snippet"),
    inert("nginx_config.http_end_configuration_snippet"),
    inert("nginx_config.stream_configuration_snippet"),
    // plugins
    example("plugins", Kind::List, "[key-auth, limit-count]", "plugins that may be used; absent: all of them"),
    key("plugins[]", Kind::Text, "null", "name"),
    key("stream_plugins", Kind::List, "null", "the same for streams"),
    key("stream_plugins[]", Kind::Text, "null", "name"),
    with_default(
        PLUGIN_ATTR,
        example("plugin_attr", Kind::Overlay, "{prometheus: {export_addr: {ip: 127.0.0.1, port: 9091}}}", "settings of plugins for the whole instance"),
    ),
    example("ext-plugin.cmd", Kind::List, "[python3, /opt/runner/bin/py-runner, start]", "the runner of external plugins, started and watched over"),
    key("ext-plugin.cmd[]", Kind::Text, "null", "a word of the command"),
    key("ext-plugin.path_for_test", Kind::Text, "null", "its socket; without cmd somebody else starts the runner"),
    with_default("{}", example("ext-plugin.runners", Kind::Overlay, "{py: {cmd: [py-runner, start], processes: 4}}", "several runners by name: {cmd or socket, processes, connections, watch}")),
    key("ext-plugin.connections", Kind::Int(1, 65536), "256", "connections to one process of a runner"),
    key("ext-plugin.timeout.connect", Kind::Time, "\"1s\"", "time to connect to a runner"),
    key("ext-plugin.timeout.call", Kind::Time, "\"60s\"", "time for a whole call, waiting included"),
    key("ext-plugin.timeout.queue", Kind::Time, "\"5s\"", "time until a connection becomes free"),
    key("ext-plugin.timeout.ready", Kind::Time, "\"30s\"", "time until a runner that is being started is ready"),
    key("ext-plugin.circuit_breaker.failures", Kind::Int(0, 1_000_000), "5", "calls in a row that do not reach a process until none is made for a while; 0: never"),
    key("ext-plugin.circuit_breaker.probe", Kind::Time, "\"250ms\"", "pause between two questions whether the process is back"),
    key("ext-plugin.circuit_breaker.patience", Kind::Time, "\"10s\"", "a process with a call that takes longer is asked whether it hangs; 0: never"),
    key("ext-plugin.conf_expire", Kind::Time, "\"1h\"", "how long runners keep a plugin's configuration, in whole seconds; it is sent anew after four fifths"),
    key("graphql.max_size", Kind::Size, "1048576", "largest GraphQL query, in bytes"),
    inert("discovery"),
    inert("wasm"),
    inert("xrpc"),
    inert("http"),
    // portcullis: what APISIX does not have
    show("portcullis.data_dir", Kind::Text, "\"data\"", "the embedded store, the generated admin key, the pid file"),
    show("portcullis.compat", Kind::Choice(&["now", "3.2"]), "\"now\"", "wording and defaults of APISIX 3.18, or of 3.2"),
    key("portcullis.threads", Kind::Workers, "null", "worker threads, before nginx_config.worker_processes"),
    key("portcullis.pid_file", Kind::Text, "null", "absent: portcullis.pid in data_dir"),
    key("portcullis.upgrade_sock", Kind::Text, "null", "hands listeners to a new process; absent: upgrade.sock in data_dir"),
    key("portcullis.debug_auth", Kind::Bool, "false", "X-Portcullis-Refused: PLUGIN: REASON on what a plugin refuses"),
    key("portcullis.log_credentials", Kind::Bool, "false", "true: logs show credentials in arguments and headers, as APISIX's do"),
    show("portcullis.request_body_buffer_max", Kind::Size, "\"64m\"", "memory for the body of one request a plugin reads; larger: 413"),
];
