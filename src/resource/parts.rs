//! Parts of the resources' schemas that several kinds, and plugins, share. APISIX: schema_def.lua.
//!
//! Invariant: what the Admin API serves from these must equal APISIX's answer, descriptions included.

use serde_json::{Value, json};

/// Host names, addresses and `*.` wildcards.
pub const HOST_PATTERN: &str = r"^\*$|^\*?[0-9a-zA-Z-._\[\]:]+$";

const ID_PATTERN: &str = "^[a-zA-Z0-9-_.]+$";
const METHODS: [&str; 10] =
    ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PURGE"];

/// Id of a resource: a string or a positive integer.
pub fn id() -> Value {
    json!({"anyOf": [
        {"type": "string", "minLength": 1, "maxLength": 64, "pattern": ID_PATTERN},
        {"type": "integer", "minimum": 1},
    ]})
}

/// Id of a credential: an id, or its consumer's name and it.
pub fn credential_id() -> Value {
    json!({"oneOf": [
        id(),
        {
            "type": "string",
            "minLength": 15,
            "maxLength": 128,
            "pattern": "^[a-zA-Z0-9-_]+/credentials/[a-zA-Z0-9-_.]+$",
        },
    ]})
}

/// `name`.
pub fn name() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": 256})
}

/// `desc`.
pub fn desc() -> Value {
    json!({"type": "string", "maxLength": 256})
}

/// `labels`.
pub fn labels() -> Value {
    json!({
        "description": "key/value pairs to specify attributes",
        "type": "object",
        "patternProperties": {".*": label_value()},
    })
}

/// One label's value.
pub fn label_value() -> Value {
    json!({
        "description": "value of label",
        "type": "string",
        "pattern": r"^\S+$",
        "maxLength": 256,
        "minLength": 1,
    })
}

/// `create_time` and `update_time`, in seconds since 1970.
pub fn timestamp() -> Value {
    json!({"type": "integer"})
}

/// `plugins`: each configuration is judged by its plugin.
pub fn plugins() -> Value {
    json!({"type": "object"})
}

/// A host.
pub fn host() -> Value {
    json!({"type": "string", "pattern": HOST_PATTERN})
}

/// A non-empty list of distinct hosts.
pub fn hosts() -> Value {
    json!({"type": "array", "items": host(), "minItems": 1, "uniqueItems": true})
}

/// An HTTP method.
pub fn method() -> Value {
    json!({"description": "HTTP method", "type": "string", "enum": METHODS})
}

/// Alternatives of an address or a network, for `anyOf`.
pub fn ip() -> Value {
    let segment = "([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])";
    let ipv4 = [segment; 4].join(r"\.");
    let ipv6 = "([a-fA-F0-9]{0,4}:){1,8}(:[a-fA-F0-9]{0,4}){0,8}([a-fA-F0-9]{0,4})?";
    json!([
        {"title": "IPv4", "type": "string", "format": "ipv4"},
        {"title": "IPv4/CIDR", "type": "string", "pattern": format!("^{ipv4}/([12]?[0-9]|3[0-2])$")},
        {"title": "IPv6", "type": "string", "format": "ipv6"},
        {"title": "IPv6/CIDR", "type": "string", "pattern": format!("^{ipv6}/[0-9]{{1,3}}$")},
    ])
}

/// A client's address or network.
pub fn remote_addr() -> Value {
    json!({"description": "client IP", "type": "string", "anyOf": ip()})
}

/// `timeout`, in seconds.
pub fn timeout() -> Value {
    let limit = json!({"type": "number", "exclusiveMinimum": 0});
    json!({
        "type": "object",
        "properties": {"connect": limit, "send": limit, "read": limit},
        "required": ["connect", "send", "read"],
    })
}

/// `enable_websocket`.
pub fn enable_websocket() -> Value {
    json!({"description": "enable websocket for request", "type": "boolean"})
}

/// `script`, Lua code of the plugin orchestration.
pub fn script() -> Value {
    json!({"type": "string", "minLength": 10, "maxLength": 102_400})
}

/// A URI with a host, as secrets and loggers name their servers.
pub fn uri() -> Value {
    json!({"type": "string", "pattern": r"^[^\/]+:\/\/([\da-zA-Z.-]+|\[[\da-fA-F:]+\])(:\d+)?"})
}

/// A certificate in PEM.
pub fn certificate() -> Value {
    json!({"type": "string", "minLength": 128, "maxLength": 65_536})
}

/// A private key in PEM.
pub fn private_key() -> Value {
    json!({"type": "string", "minLength": 64, "maxLength": 65_536})
}

/// A port.
pub fn port() -> Value {
    json!({"type": "integer", "minimum": 1, "maximum": 65_535})
}

fn described(mut schema: Value, description: &str) -> Value {
    schema["description"] = json!(description);
    schema
}

fn count(minimum: u8, default: u8) -> Value {
    json!({"type": "integer", "minimum": minimum, "maximum": 254, "default": default})
}

fn http_statuses(default: &[u16]) -> Value {
    json!({
        "type": "array",
        "minItems": 1,
        "items": {"type": "integer", "minimum": 200, "maximum": 599},
        "uniqueItems": true,
        "default": default,
    })
}

fn check_type() -> Value {
    json!({"type": "string", "enum": ["http", "https", "tcp"], "default": "http"})
}

/// `checks.active`.
pub fn health_check_active() -> Value {
    let interval = json!({"type": "integer", "minimum": 1, "default": 1});
    json!({
        "type": "object",
        "properties": {
            "type": check_type(),
            "timeout": {"type": "number", "default": 1},
            "concurrency": {"type": "integer", "default": 10},
            "host": host(),
            "port": port(),
            "http_method": {"type": "string", "enum": METHODS, "default": "GET"},
            "http_path": {"type": "string", "default": "/"},
            "http_req_body": {"type": "string", "default": ""},
            "https_verify_certificate": {"type": "boolean", "default": true},
            "healthy": {
                "type": "object",
                "properties": {
                    "interval": interval,
                    "http_statuses": http_statuses(&[200, 302]),
                    "successes": count(1, 2),
                },
            },
            "unhealthy": {
                "type": "object",
                "properties": {
                    "interval": interval,
                    "http_statuses": http_statuses(&[429, 404, 500, 501, 502, 503, 504, 505]),
                    "http_failures": count(1, 5),
                    "tcp_failures": count(1, 2),
                    "timeouts": count(1, 3),
                },
            },
            "req_headers": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "string", "uniqueItems": true},
            },
        },
    })
}

/// Statuses a passive check takes for healthy unless told otherwise.
pub const PASSIVE_HEALTHY: [u16; 19] =
    [200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 305, 306, 307, 308];

/// `checks.passive`.
pub fn health_check_passive() -> Value {
    json!({
        "type": "object",
        "properties": {
            "type": check_type(),
            "healthy": {
                "type": "object",
                "properties": {"http_statuses": http_statuses(&PASSIVE_HEALTHY), "successes": count(0, 5)},
            },
            "unhealthy": {
                "type": "object",
                "properties": {
                    "http_statuses": http_statuses(&[429, 500, 503]),
                    "tcp_failures": count(0, 2),
                    "timeouts": count(0, 7),
                    "http_failures": count(0, 5),
                },
            },
        },
    })
}

/// `checks`.
pub fn health_checks() -> Value {
    json!({
        "type": "object",
        "properties": {"active": health_check_active(), "passive": health_check_passive()},
        "anyOf": [{"required": ["active"]}, {"required": ["active", "passive"]}],
    })
}

/// `nodes`: a map from address to weight, or a list.
pub fn nodes() -> Value {
    let weight = json!({"description": "weight of node", "type": "integer", "minimum": 0});
    json!({"anyOf": [
        {"type": "object", "patternProperties": {".*": weight}},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "host": host(),
                    "port": described(port(), "port of node"),
                    "weight": weight,
                    "priority": {"description": "priority of node", "type": "integer", "default": 0},
                    "metadata": {"description": "metadata of node", "type": "object"},
                },
                "required": ["host", "weight"],
            },
        },
    ]})
}

fn upstream_tls() -> Value {
    let verify = "Turn on server certificate verification, currently only kafka upstream is supported";
    json!({
        "type": "object",
        "properties": {
            "client_cert_id": id(),
            "client_cert": certificate(),
            "client_key": private_key(),
            "verify": {"type": "boolean", "description": verify, "default": false},
        },
        "dependencies": {
            "client_cert": {"required": ["client_key"]},
            "client_key": {"required": ["client_cert"]},
            "client_cert_id": {"not": {"required": ["client_cert", "client_key"]}},
        },
    })
}

fn keepalive_pool() -> Value {
    json!({
        "type": "object",
        "properties": {
            "size": {"type": "integer", "default": 320, "minimum": 1},
            "idle_timeout": {"type": "number", "default": 60, "minimum": 0},
            "requests": {"type": "integer", "default": 1000, "minimum": 1},
        },
    })
}

fn discovery_args() -> Value {
    json!({
        "type": "object",
        "properties": {
            "namespace_id": {"description": "namespace id", "type": "string"},
            "group_name": {"description": "group name", "type": "string"},
        },
    })
}

/// An upstream, by itself or within a route, a service or a stream route.
pub fn upstream() -> Value {
    const SCHEME: &str = "The scheme of the upstream. For L7 proxy, it can be one of grpc/grpcs/http/https. \
         For L4 proxy, it can be one of tcp/tls/udp. For specific protocols, it can be kafka.";
    json!({
        "type": "object",
        "properties": {
            "id": id(),
            "name": name(),
            "desc": desc(),
            "labels": labels(),
            "create_time": timestamp(),
            "update_time": timestamp(),
            "nodes": nodes(),
            "retries": {"type": "integer", "minimum": 0},
            "retry_timeout": {"type": "number", "minimum": 0},
            "timeout": timeout(),
            "tls": upstream_tls(),
            "keepalive_pool": keepalive_pool(),
            "type": {
                "description": "algorithms of load balancing",
                "type": "string",
                "default": "roundrobin",
            },
            "checks": health_checks(),
            "hash_on": {
                "type": "string",
                "default": "vars",
                "enum": ["vars", "header", "cookie", "consumer", "vars_combinations"],
            },
            "key": {"description": "the key of chash for dynamic load balancing", "type": "string"},
            "scheme": {
                "default": "http",
                "enum": ["grpc", "grpcs", "http", "https", "tcp", "tls", "udp", "kafka"],
                "description": SCHEME,
            },
            "discovery_type": {"description": "discovery type", "type": "string"},
            "discovery_args": discovery_args(),
            "pass_host": {
                "description": "mod of host passing",
                "type": "string",
                "enum": ["pass", "node", "rewrite"],
                "default": "pass",
            },
            "upstream_host": host(),
            "service_name": {"type": "string", "maxLength": 256, "minLength": 1},
        },
        "oneOf": [{"required": ["nodes"]}, {"required": ["service_name", "discovery_type"]}],
        "additionalProperties": false,
    })
}

/// `key` of a consistent-hashing upstream that hashes on a variable.
pub fn hash_variable() -> Value {
    let names = "(uri|server_name|server_addr|request_uri|remote_port\
                 |remote_addr|query_string|host|hostname|mqtt_client_id)";
    json!({"type": "string", "pattern": format!("^({names}|arg_[0-9a-zA-z_-]+)$")})
}

/// `key` of a consistent-hashing upstream that hashes on a header or a cookie.
pub fn hash_header() -> Value {
    json!({"type": "string", "pattern": "^[a-zA-Z0-9-_]+$"})
}

/// `realm` of an authentication plugin: printable, without what a quoted header value would need escaped.
pub fn realm(default: &str) -> Value {
    json!({
        "type": "string",
        "pattern": "^[\x20-\x21\x23-\x5B\\]-\x7E]+$",
        "default": default,
        "minLength": 1,
        "maxLength": 128,
    })
}

/// `anonymous_consumer` of an authentication plugin: a consumer's name.
pub fn anonymous_consumer() -> Value {
    json!({"type": "string", "minLength": 1})
}

/// `_meta`, which every plugin's configuration may hold.
pub fn plugin_meta() -> Value {
    const FILTER: &str = "filter determines whether the plugin needs to be executed at runtime";
    const PRE_FUNCTION: &str = "function to be executed in each phase before execution of plugins. \
         The pre_function will have access to two arguments: `conf` and `ctx`.";
    json!({
        "type": "object",
        "properties": {
            "disable": {"type": "boolean"},
            "error_response": {"oneOf": [{"type": "string"}, {"type": "object"}]},
            "priority": {"description": "priority of plugins by customized order", "type": "integer"},
            "filter": {"description": FILTER, "type": "array"},
            "pre_function": {"description": PRE_FUNCTION, "type": "string"},
        },
        "additionalProperties": false,
    })
}
