//! The configuration that the Helm chart of the tutorial's time made of its default values.
//!
//! The tutorial installs APISIX 3.2 by that chart: its config.yaml names etcd, nginx and Lua settings, and a list of
//! plugins that has no public-api, on which the tutorial stumbles.

use serde_json::json;

use crate::support::gateway::Setup;

/// `apisix.plugins` of its values.
const PLUGINS: &[&str] = &[
    "api-breaker",
    "authz-keycloak",
    "basic-auth",
    "batch-requests",
    "consumer-restriction",
    "cors",
    "echo",
    "fault-injection",
    "file-logger",
    "grpc-transcode",
    "grpc-web",
    "hmac-auth",
    "http-logger",
    "ip-restriction",
    "ua-restriction",
    "jwt-auth",
    "kafka-logger",
    "key-auth",
    "limit-conn",
    "limit-count",
    "limit-req",
    "node-status",
    "openid-connect",
    "authz-casbin",
    "prometheus",
    "proxy-cache",
    "proxy-mirror",
    "proxy-rewrite",
    "redirect",
    "referer-restriction",
    "request-id",
    "request-validation",
    "response-rewrite",
    "serverless-post-function",
    "serverless-pre-function",
    "sls-logger",
    "syslog",
    "tcp-logger",
    "udp-logger",
    "uri-blocker",
    "wolf-rbac",
    "zipkin",
    "traffic-split",
    "gzip",
    "real-ip",
    "ext-plugin-pre-req",
    "ext-plugin-post-req",
];

/// Adds all that the chart writes beside addresses and keys.
pub fn configured(setup: Setup) -> Setup {
    let cache = json!({
        "cache_ttl": "10s",
        "zones": [{
            "name": "disk_cache_one", "memory_size": "50m", "disk_size": "1G",
            "disk_path": "cache_one", "cache_levels": "1:2",
        }],
    });
    let format = r#"$remote_addr - $remote_user [$time_local] $http_host \"$request\" $status $body_bytes_sent $request_time \"$http_referer\" \"$http_user_agent\" $upstream_addr $upstream_status $upstream_response_time"#;
    [
        ("apisix.enable_heartbeat", json!(true)),
        ("apisix.enable_admin", json!(true)),
        ("apisix.enable_admin_cors", json!(true)),
        ("apisix.enable_debug", json!(false)),
        ("apisix.enable_control", json!(true)),
        ("apisix.enable_dev_mode", json!(false)),
        ("apisix.enable_reuseport", json!(true)),
        ("apisix.enable_ipv6", json!(true)),
        ("apisix.enable_server_tokens", json!(true)),
        ("apisix.proxy_cache", cache),
        ("apisix.router", json!({"http": "radixtree_host_uri", "ssl": "radixtree_sni"})),
        ("apisix.dns_resolver_valid", json!(30)),
        ("apisix.resolver_timeout", json!(5)),
        ("nginx_config.error_log_level", json!("warn")),
        ("nginx_config.worker_processes", json!("auto")),
        ("nginx_config.enable_cpu_affinity", json!(true)),
        ("nginx_config.worker_rlimit_nofile", json!(20480)),
        ("nginx_config.event.worker_connections", json!(10620)),
        ("nginx_config.http.enable_access_log", json!(true)),
        ("nginx_config.http.access_log", json!("/dev/stdout")),
        ("nginx_config.http.access_log_format", json!(format)),
        ("nginx_config.http.access_log_format_escape", json!("default")),
        ("nginx_config.http.keepalive_timeout", json!("60s")),
        ("nginx_config.http.client_header_timeout", json!("60s")),
        ("nginx_config.http.client_body_timeout", json!("60s")),
        ("nginx_config.http.send_timeout", json!("10s")),
        ("nginx_config.http.underscores_in_headers", json!("on")),
        ("nginx_config.http.real_ip_header", json!("X-Real-IP")),
        ("nginx_config.http.real_ip_from", json!(["127.0.0.1", "unix:"])),
        ("plugins", json!(PLUGINS)),
        ("stream_plugins", json!(["mqtt-proxy", "ip-restriction", "limit-conn"])),
        ("deployment.role", json!("traditional")),
        ("deployment.role_traditional", json!({"config_provider": "etcd"})),
        ("deployment.admin.allow_admin", json!(["127.0.0.1/24"])),
        ("deployment.etcd", json!({"host": ["http://apisix-etcd:2379"], "prefix": "/apisix", "timeout": 30})),
    ]
    .into_iter()
    .fold(setup, |setup, (path, value)| setup.set(path, value))
}
