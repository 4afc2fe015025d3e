//! Whole files: what they mean, and what is said about their faults.

use super::*;
use crate::compat::Compat;
use crate::settings::types::{HttpRouter, LogLevel, ProxyMode};

fn read(text: &str) -> Loaded {
    read_with(text, &[])
}

fn read_with(text: &str, variables: &[(&str, &str)]) -> Loaded {
    let environment =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    from_text(text, Some(Path::new("/gw/conf/config.yaml")), &environment)
}

fn shown(loaded: &Loaded) -> Vec<String> {
    let line = |fault: &Fault| format!("{} {fault}", fault.severity).replace("/gw/conf/config.yaml", "F");
    loaded.faults.iter().map(line).collect()
}

#[track_caller]
fn check_faults(text: &str, expected: &[&str]) {
    assert_eq!(shown(&read(text)), expected, "{text}");
}

#[track_caller]
fn fine(text: &str) -> Settings {
    let loaded = read(text);
    assert_eq!(shown(&loaded), [""; 0], "{text}");
    loaded.settings
}

#[test]
fn defaults_run_out_of_the_box() {
    let settings = Settings::default();
    assert_eq!(settings.provider(), Provider::Embedded);
    assert_eq!(settings.deployment.role, Role::Traditional);
    assert_eq!(settings.admin_address(), Some("127.0.0.1:9180".parse().unwrap()));
    assert_eq!(settings.control_address(), Some("127.0.0.1:9090".parse().unwrap()));
    assert_eq!(settings.prometheus_address(), Ok(Some("127.0.0.1:9091".parse().unwrap())));
    assert_eq!(settings.status_address(), None);
    assert_eq!(settings.http_listeners().len(), 2);
    assert_eq!(settings.plugins, None);
    assert_eq!(settings.apisix.router.http, HttpRouter::RadixtreeHostUri);
    assert_eq!(settings.apisix.proxy_mode, ProxyMode::Http);
    assert_eq!(settings.apisix.data_encryption.keyring[0].reveal(), "qeddd145sfvddff3");
    assert_eq!(settings.apisix.resolver_timeout.as_secs(), 5);
    assert_eq!(settings.nginx_config.http.send_timeout.as_secs(), 10);
    assert_eq!(settings.nginx_config.error_log_level, LogLevel::Warn);
    assert!(settings.nginx_config.http.underscores_in_headers);
    assert_eq!(settings.portcullis.compat, Compat::Now);
    assert_eq!(settings.deployment.admin.allow_admin, ["127.0.0.0/24"]);
    assert_eq!(built_in(&|_| None).faults, []);
}

#[test]
fn compat_chooses_the_router_that_nobody_wrote() {
    let router = |text: &str| fine(text).apisix.router.http;
    assert_eq!(router("portcullis:\n  compat: now\n"), HttpRouter::RadixtreeHostUri);
    assert_eq!(router("portcullis:\n  compat: \"3.2\"\n"), HttpRouter::RadixtreeUri);
    let written = "portcullis:\n  compat: \"3.2\"\napisix:\n  router:\n    http: radixtree_host_uri\n";
    assert_eq!(router(written), HttpRouter::RadixtreeHostUri);
}

#[test]
fn the_documented_file_is_the_defaults() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/config.yaml");
    if std::env::var_os("UPDATE_DOCUMENT").is_some() {
        std::fs::write(&file, document::document()).unwrap();
    }
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text, document::document(), "run this test with UPDATE_DOCUMENT=1 to write the file");
    let loaded = from_text(&text, None, &|_| None);
    assert_eq!(loaded.faults, []);
    assert_eq!(loaded.settings, Settings::default());
}

#[test]
fn commented_lines_of_the_documented_file_are_right() {
    let mut text = String::new();
    for line in document::document().lines() {
        let bare = line.trim_start();
        let indent = &line[..line.len() - bare.len()];
        let key =
            bare.strip_prefix("# ").filter(|rest| rest.trim_start().starts_with("etcd:") || is_setting(rest));
        text.push_str(&key.map_or(line.to_owned(), |key| format!("{indent}{key}")));
        text.push('\n');
    }
    let loaded = from_text(&text, None, &|_| None);
    assert_eq!(loaded.faults, [], "{text}");
    assert_eq!(loaded.settings.apisix.dns_resolver.unwrap().len(), 1, "{text}");
}

/// `key: value`, `key:` or `  key: [..]`, not a sentence.
fn is_setting(text: &str) -> bool {
    let key = text.trim_start().split(':').next().unwrap_or_default();
    text.contains(':')
        && !key.is_empty()
        && key.bytes().all(|byte| byte.is_ascii_lowercase() || b"_-".contains(&byte))
}

#[test]
fn the_example_of_resources_is_yaml() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/apisix.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    assert_eq!(text.lines().last(), Some("#END"));
    let value = yaml::parse(&text).unwrap();
    assert!(value["routes"].as_array().is_some_and(|routes| !routes.is_empty()));
}

/// As the container image of APISIX is usually configured, with etcd beside it.
const COMPOSE: &str = r#"
apisix:
  node_listen: 9080
  enable_ipv6: false
  enable_control: true
  control: {ip: "0.0.0.0", port: 9092}
deployment:
  admin:
    allow_admin:
      - 0.0.0.0/0
    admin_key:
      - name: "admin"
        key: 0123456789abcdef0123456789abcdef
        role: admin
      - {name: "viewer", key: fedcba9876543210fedcba9876543210, role: viewer}
  etcd:
    host:
      - "http://etcd:2379"
    prefix: "/apisix"
    timeout: 30
plugin_attr:
  prometheus:
    export_addr: {ip: "0.0.0.0", port: 9091}
"#;

/// As a Helm chart writes it.
const HELM: &str = r#"
apisix:
  node_listen:
    - 9080
  enable_heartbeat: true
  enable_admin: true
  enable_admin_cors: true
  enable_debug: false
  enable_dev_mode: false
  enable_reuseport: true
  enable_ipv6: true
  enable_http2: true
  enable_server_tokens: true
  proxy_cache:
    cache_ttl: 10s
    zones:
      - {name: disk_cache_one, memory_size: 50m, disk_size: 1G, disk_path: "/tmp/disk_cache_one", cache_levels: "1:2"}
      - name: memory_cache
        memory_size: 50m
  router:
    http: radixtree_host_uri
    ssl: 'radixtree_sni'
  proxy_mode: http
  dns_resolver_valid: 30
  resolver_timeout: 5
  ssl:
    enable: false
    listen:
      - port: 9443
        enable_http3: false
    ssl_protocols: "TLSv1.2 TLSv1.3"
    ssl_ciphers: "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
  status: {ip: "0.0.0.0", port: 7085}
nginx_config:
  error_log: "/dev/stderr"
  error_log_level: "warn"
  worker_processes: "auto"
  enable_cpu_affinity: true
  worker_rlimit_nofile: 20480
  event:
    worker_connections: 10620
  http:
    enable_access_log: true
    access_log: "/dev/stdout"
    access_log_format: '$remote_addr - $remote_user [$time_local] $http_host \"$request\"'
    access_log_format_escape: default
    keepalive_timeout: "60s"
    client_header_timeout: 60s
    client_body_timeout: 60s
    send_timeout: 10s
    underscores_in_headers: "on"
    real_ip_header: "X-Real-IP"
    real_ip_from:
      - 127.0.0.1
      - 'unix:'
deployment:
  role: traditional
  role_traditional:
    config_provider: etcd
  admin:
    allow_admin: [127.0.0.1/24]
    admin_listen: {ip: 0.0.0.0, port: 9180}
    admin_key:
      - {name: admin, key: "${{ADMIN_KEY:=0123456789abcdef0123456789abcdef}}", role: admin}
  etcd:
    host: ["http://apisix-etcd.default.svc.cluster.local:2379"]
    prefix: "/apisix"
    timeout: 30
    tls: {verify: true}
discovery:
  dns: {servers: ["10.0.0.1:53"]}
plugins: [key-auth, prometheus]
stream_plugins: [mqtt-proxy]
plugin_attr:
  prometheus: {enable_export_server: true, export_uri: /apisix/prometheus/metrics, metric_prefix: apisix_}
"#;

#[test]
fn configurations_of_apisix() {
    let compose = read(COMPOSE);
    let hint = "warning F:8: deployment.admin.admin_listen.ip: expected 0.0.0.0 for those whom allow_admin invites, \
                the Admin API listens on 127.0.0.1 only";
    assert_eq!(shown(&compose), [hint]);
    let settings = compose.settings;
    assert_eq!(settings.provider(), Provider::Etcd);
    assert_eq!(settings.deployment.etcd.host, ["http://etcd:2379"]);
    assert_eq!(settings.http_listeners().len(), 1);
    assert_eq!(settings.prometheus_address(), Ok(Some("0.0.0.0:9091".parse().unwrap())));
    assert_eq!(settings.deployment.admin.admin_key[1].role, types::AdminRole::Viewer);

    let helm = read(HELM);
    let expected = [
        "warning F:7: apisix.enable_admin_cors: expected at deployment.admin.enable_admin_cors (its place since \
         APISIX 3), read here all the same",
        "warning F: no meaning here, not read: apisix.enable_reuseport, apisix.enable_heartbeat, \
         nginx_config.enable_cpu_affinity, nginx_config.event, discovery",
    ];
    assert_eq!(shown(&helm), expected);
    assert_eq!(helm.settings.https_listeners(), []);
    assert_eq!(helm.settings.apisix.proxy_cache.zones[0].disk_size, Some(1 << 30));
    assert_eq!(helm.settings.lists_plugin("cors"), Some(false));
}

#[test]
fn the_old_place_of_the_admin_key() {
    let text = "apisix:\n  node_listen: 9080\n  admin_key:\n    - name: admin\n      key: abc\n      role: boss\n  allow_admin:\n    - 127.0.0.0/24\n";
    check_faults(
        text,
        &[
            "warning F:3: apisix.admin_key: expected at deployment.admin.admin_key (its place since APISIX 3), read here all the same",
            "error F:6: apisix.admin_key[0].role: expected admin or viewer, got \"boss\"",
            "warning F:7: apisix.allow_admin: expected at deployment.admin.allow_admin (its place since APISIX 3), read here all the same",
        ],
    );
    assert_eq!(read(text).settings.deployment.admin.admin_key[0].key.reveal(), "abc");
}

#[test]
fn faults_have_lines() {
    check_faults(
        "apisix:\n  node_listen: abc\n",
        &["error F:2: apisix.node_listen[0]: expected a port from 0 to 65535, got \"abc\""],
    );
    check_faults(
        "apisix:\n  node_listne: 80\n",
        &["warning F:2: apisix.node_listne: unknown key, not read; did you mean node_listen?"],
    );
    check_faults(
        "a: [1\nb: 2\n",
        &["error F:2: did not find expected ',' or ']', while parsing a flow sequence"],
    );
    check_faults(
        "apisix:\n  enable_admin: true\n  enable_admin: true\n",
        &["error F:3: apisix.enable_admin is already written on line 2"],
    );
    check_faults("abc", &["error F: expected a section of keys and values, got \"abc\""]);
    check_faults(
        "apisix:\n  control:\n    port: ${{PORT}}\n",
        &[
            "error F:3: apisix.control.port: expected the variable PORT to be set, or a default: ${{PORT:=…}}, it is not set",
        ],
    );
    check_faults(
        "nginx_config:\n  http:\n    send_timeout: 10 sec\n",
        &[
            "error F:3: nginx_config.http.send_timeout: expected a time such as 60s, 10ms, 1h30m or a number of seconds, got \"10 sec\"",
        ],
    );
}

#[test]
fn ports() {
    let already = |text: &str, path: &str, rest: &str| {
        check_faults(text, &[&format!("error F:1: {path}: expected a port of its own, {rest}")]);
    };
    already("apisix: {node_listen: 9180}", "apisix.node_listen[0]", "9180 is already the port of Admin API");
    already(
        "apisix: {control: {port: 9180}}",
        "apisix.control.port",
        "9180 is already the port of Admin API",
    );
    already("apisix: {node_listen: 9443}", "apisix.ssl.listen[0]", "9443 is already the port of HTTP");
    fine("apisix: {node_listen: [{ip: 127.0.0.1, port: 80}, {ip: 127.0.0.2, port: 80}]}");
    fine("apisix: {node_listen: 9443, ssl: {enable: false}}");
    fine(
        "apisix: {node_listen: 0, control: {port: 0}, ssl: {listen: [{port: 0}]}}\ndeployment: {admin: {admin_listen: {port: 0}}}",
    );
    fine("apisix: {node_listen: 9091}\nplugins: []");
    let two = fine(
        "apisix: {node_listen: [80, 80, {ip: '::1', port: 80, enable_http2: false}], enable_ipv6: false}",
    )
    .http_listeners();
    let expected = [
        Listener { address: "0.0.0.0:80".parse().unwrap(), http2: true },
        Listener { address: "[::1]:80".parse().unwrap(), http2: false },
    ];
    assert_eq!(two, expected);
}

#[track_caller]
fn check_provider(text: &str, variables: &[(&str, &str)], role: Role, provider: Provider, faults: &[&str]) {
    let loaded = read_with(text, variables);
    assert_eq!(shown(&loaded), faults, "{text}");
    assert_eq!((loaded.settings.deployment.role, loaded.settings.provider()), (role, provider), "{text}");
}

#[test]
fn providers() {
    use Provider::{Embedded, Etcd, Json, Yaml};
    use Role::{ControlPlane, DataPlane, Traditional};
    let alone = [("APISIX_STAND_ALONE", "true")];
    check_provider("", &[], Traditional, Embedded, &[]);
    check_provider("deployment: {etcd: {prefix: /a}}", &[], Traditional, Etcd, &[]);
    check_provider("", &[("APISIX_DEPLOYMENT_ETCD_HOST", "[\"http://e:2379\"]")], Traditional, Etcd, &[]);
    check_provider("deployment: {role_traditional: {config_provider: yaml}}", &alone, Traditional, Yaml, &[]);
    check_provider("", &alone, DataPlane, Yaml, &[]);
    check_provider(
        "deployment: {role: data_plane, role_data_plane: {config_provider: json}}",
        &[],
        DataPlane,
        Json,
        &[],
    );
    check_provider(
        "deployment: {role: control_plane, role_control_plane: {config_provider: etcd}}",
        &[],
        ControlPlane,
        Etcd,
        &[],
    );
    check_provider(
        "deployment: {role_traditional: {config_provider: etcd}}",
        &alone,
        Traditional,
        Etcd,
        &[
            "error F:1: deployment.role_traditional.config_provider: expected yaml or json, $APISIX_STAND_ALONE is true and this names another",
        ],
    );
    check_provider(
        "deployment: {role: data_plane}",
        &[],
        DataPlane,
        Embedded,
        &[
            "error F:1: deployment.role_data_plane.config_provider: expected embedded, etcd, yaml or json, it is not written",
        ],
    );
    check_provider(
        "deployment: {role: control_plane, role_control_plane: {config_provider: yaml}}",
        &[],
        ControlPlane,
        Yaml,
        &[
            "error F:1: deployment.role_control_plane.config_provider: expected etcd or embedded, a control plane cannot write to a file",
        ],
    );
    assert_eq!(
        read("deployment: {role: data_plane, role_data_plane: {config_provider: etcd}}")
            .settings
            .admin_address(),
        None
    );
}

#[test]
fn the_admin_api() {
    check_faults(
        "deployment: {admin: {admin_key: [], allow_admin: [127.0.0.1]}}",
        &[
            "error F:1: deployment.admin.admin_key: expected at least one key, which may be empty to have one generated, got none",
        ],
    );
    check_faults(
        "deployment: {admin: {https_admin: true}}",
        &[
            "error F:1: deployment.admin.https_admin: expected admin_ssl_cert and admin_ssl_cert_key in deployment.admin.admin_api_mtls, one is missing",
        ],
    );
    check_faults(
        "deployment: {admin: {admin_key_required: false}}",
        &[
            "warning F:1: deployment.admin.admin_key_required: expected true, whoever reaches the Admin API may change everything",
        ],
    );
    check_faults(
        "deployment: {admin: {admin_key: [{key: {a: sesame}}]}}",
        &["error F:1: deployment.admin.admin_key[0].key: expected text, got something else (not shown)"],
    );
    check_faults(
        "apisix: {ssl: {ssl_trusted_certificate: none.pem}}",
        &[
            "error F:1: apisix.ssl.ssl_trusted_certificate: expected a file that is there, /gw/none.pem does not exist",
        ],
    );
}

#[test]
fn the_etcd_cluster() {
    check_faults(
        "deployment: {etcd: {host: []}}",
        &["error F:1: deployment.etcd.host: expected at least one address, got none"],
    );
    check_faults(
        "deployment:\n  etcd:\n    host:\n      - 127.0.0.1:2379\n",
        &["error F:4: deployment.etcd.host[0]: expected http://… or https://…, got \"127.0.0.1:2379\""],
    );
    let settings = fine("deployment: {etcd: {user: root, password: 12345, tls: {verify: false}}}");
    assert_eq!(settings.deployment.etcd.password.as_ref().map(types::Hidden::reveal), Some("12345"));
    assert!(!format!("{settings:?}").contains("12345"));
}

#[test]
fn null_takes_a_default_away() {
    let emptied = fine(
        "apisix: {ssl: {enable: null}, data_encryption: {keyring: null}, node_listen: null}\ndeployment: {admin: {allow_admin: null}}",
    );
    assert!(!emptied.apisix.ssl.enable && emptied.apisix.data_encryption.keyring.is_empty());
    // What is needed, or keeps somebody out, stays.
    assert_eq!(emptied.deployment.admin.allow_admin, fine("{}").deployment.admin.allow_admin);
    assert_eq!(emptied.apisix.node_listen.len(), 1);
}

#[test]
fn dns_servers() {
    let loaded = read("apisix:\n  dns_resolver:\n    - 1.1.1.1\n    - fe80::1%eth0\n    - ::1\n");
    let expected = "warning F:4: apisix.dns_resolver[1]: left out: addresses with a zone are not supported";
    assert_eq!(shown(&loaded), [expected]);
    let servers = ["1.1.1.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
    assert_eq!(loaded.settings.apisix.dns_resolver, Some(servers.to_vec()));
    assert_eq!(fine("apisix: {dns_resolver: null}").apisix.dns_resolver, None);
}

#[track_caller]
fn check_places(file: &str, home: &str, resources: &str) {
    let environment = |name: &str| (name == "APISIX_PROFILE").then(|| "dev".to_owned());
    let settings =
        from_text("portcullis: {pid_file: /run/p.pid}", Some(Path::new(file)), &environment).settings;
    assert_eq!(settings.home(), Path::new(home));
    assert_eq!(settings.resource_file(), Path::new(resources));
    assert_eq!(settings.upgrade_sock(), Path::new(home).join("data/upgrade.sock"));
    assert_eq!(settings.pid_file(), Path::new("/run/p.pid"));
    assert_eq!(default_file(&environment), Path::new("conf/config-dev.yaml"));
}

#[test]
fn places() {
    check_places("/gw/conf/config.yaml", "/gw", "/gw/conf/apisix-dev.yaml");
    check_places("/tmp/x/config.yaml", "/tmp/x", "/tmp/x/apisix-dev.yaml");
    let here = std::env::current_dir().unwrap();
    assert_eq!(Settings::default().home(), here);
    assert_eq!(Settings::default().data_dir(), here.join("data"));
}

#[test]
fn threads() {
    let count = |text: &str, variables: &[(&str, &str)]| read_with(text, variables).settings.worker_threads();
    assert_eq!(count("nginx_config: {worker_processes: 3}", &[]), 3);
    assert_eq!(count("nginx_config: {worker_processes: 3}", &[("APISIX_WORKER_PROCESSES", "5")]), 5);
    assert_eq!(count("portcullis: {threads: 2}", &[("APISIX_WORKER_PROCESSES", "5")]), 2);
    assert_eq!(count("apisix: {enable_dev_mode: true}", &[]), 1);
    assert!(count("", &[]) >= 1);
}

proptest::proptest! {
    #[test]
    fn any_text_gives_whole_settings(text in "(apisix|deployment|plugins|etcd|admin|[a-z:{}\\[\\]\n ,0-9$-]){0,20}") {
        let loaded = read(&text);
        proptest::prop_assert!(loaded.settings.worker_threads() > 0);
    }
}
