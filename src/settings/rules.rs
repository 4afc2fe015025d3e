//! Rules that bind several settings: the provider of a role, ports, the Admin API's keys and certificates.
//!
//! Invariant: looks at the file system only to see whether a named file is there, and opens no port.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::settings::Settings;
use crate::settings::check::Finding;
use crate::settings::fault::Severity;
use crate::settings::outside::at;
use crate::settings::runners;
use crate::settings::substitute::Environment;
use crate::settings::types::{HttpRouter, Provider, Role};

/// Chooses what the configuration left open (provider, role, Admin API), then checks the rules.
pub fn apply(settings: &mut Settings, written: &Value, environment: Environment<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    choose_provider(settings, written, environment, &mut findings);
    // APISIX: cli/file.lua read_yaml_conf does the same by role.
    match settings.deployment.role {
        Role::Traditional => {}
        Role::DataPlane => settings.apisix.enable_admin = false,
        Role::ControlPlane => settings.apisix.enable_admin = true,
    }
    choose_router(settings, written);
    check_provider(settings, written, &mut findings);
    check_ports(settings, &mut findings);
    check_admin(settings, written, &mut findings);
    check_files(settings, &mut findings);
    check_environment(settings, &mut findings);
    findings.extend(runners::all(settings).1);
    findings
}

/// APISIX 3.2's conf/config-default.yaml matches by path first; later versions match by host first.
fn choose_router(settings: &mut Settings, written: &Value) {
    if settings.portcullis.compat.routes_by_path_alone() && at(written, "apisix.router.http").is_none() {
        settings.apisix.router.http = HttpRouter::RadixtreeUri;
    }
}

/// The key of the section that holds a role's provider.
pub(super) fn role_section(role: Role) -> &'static str {
    match role {
        Role::Traditional => "deployment.role_traditional.config_provider",
        Role::DataPlane => "deployment.role_data_plane.config_provider",
        Role::ControlPlane => "deployment.role_control_plane.config_provider",
    }
}

fn choose_provider(
    settings: &mut Settings,
    written: &Value,
    environment: Environment<'_>,
    findings: &mut Vec<Finding>,
) {
    let stand_alone = environment("APISIX_STAND_ALONE").is_some_and(|value| value == "true");
    // APISIX's image writes this role into an empty configuration in stand-alone mode.
    if stand_alone
        && at(written, "deployment.role").is_none()
        && at(written, "deployment.role_traditional").is_none()
    {
        settings.deployment.role = Role::DataPlane;
    }
    let role = settings.deployment.role;
    let path = role_section(role);
    let named = at(written, path).is_some();
    let etcd = at(written, "deployment.etcd").is_some();
    if !named && stand_alone {
        settings.set_provider(Provider::Yaml);
    } else if !named && etcd {
        settings.set_provider(Provider::Etcd);
    } else if !named && role != Role::Traditional {
        findings.push(Finding::new(
            Severity::Error,
            path,
            "embedded, etcd, yaml or json",
            "it is not written",
        ));
    }
    let file = matches!(settings.provider(), Provider::Yaml | Provider::Json);
    if stand_alone && !file {
        let what = "$APISIX_STAND_ALONE is true and this names another";
        findings.push(Finding::new(Severity::Error, path, "yaml or json", what));
    }
}

fn check_provider(settings: &Settings, written: &Value, findings: &mut Vec<Finding>) {
    let role = settings.deployment.role;
    let provider = settings.provider();
    if role == Role::ControlPlane && matches!(provider, Provider::Yaml | Provider::Json) {
        let what = "a control plane cannot write to a file";
        findings.push(Finding::new(Severity::Error, role_section(role), "etcd or embedded", what));
    }
    let none = at(written, "deployment.etcd.host").and_then(Value::as_array).is_some_and(Vec::is_empty);
    if provider == Provider::Etcd && none {
        let finding =
            Finding::new(Severity::Error, "deployment.etcd.host", "at least one address", "got none");
        findings.push(finding);
    }
}

/// No two services may share a port. APISIX: cli/ops.lua validate_and_get_listen_addr, listen_table_insert.
fn check_ports(settings: &Settings, findings: &mut Vec<Finding>) {
    let mut taken: HashMap<u16, &'static str> = HashMap::new();
    let prometheus = match settings.prometheus_address() {
        Ok(address) => address,
        Err(what) => {
            let path = "plugin_attr.prometheus.export_addr";
            findings.push(Finding::new(Severity::Error, path, "{ip, port}", what));
            None
        }
    };
    let own: [(&'static str, &str, Option<SocketAddr>); 4] = [
        ("Admin API", "deployment.admin.admin_listen.port", settings.admin_address()),
        ("Status API", "apisix.status.port", settings.status_address()),
        ("Control API", "apisix.control.port", settings.control_address()),
        ("metrics", "plugin_attr.prometheus.export_addr.port", prometheus),
    ];
    for (name, path, address) in own {
        let Some(port) = address.map(|address| address.port()) else { continue };
        claim(&mut taken, port, name, path, findings);
    }
    let (http, https) = (&settings.apisix.node_listen, &settings.apisix.ssl.listen);
    for (index, listen) in http.iter().enumerate() {
        claim(&mut taken, listen.port, "HTTP", &format!("apisix.node_listen[{index}]"), findings);
    }
    if !settings.apisix.ssl.enable {
        return;
    }
    for (index, listen) in https.iter().enumerate() {
        claim(&mut taken, listen.port, "HTTPS", &format!("apisix.ssl.listen[{index}]"), findings);
    }
}

fn claim(
    taken: &mut HashMap<u16, &'static str>,
    port: u16,
    name: &'static str,
    path: &str,
    out: &mut Vec<Finding>,
) {
    match taken.get(&port) {
        // 0 takes any free port.
        _ if port == 0 => {}
        None => drop(taken.insert(port, name)),
        // The same port on several addresses is one service.
        Some(other) if *other == name && name.starts_with("HTTP") => {}
        Some(other) => {
            let what = format!("{port} is already the port of {other}");
            out.push(Finding::new(Severity::Error, path, "a port of its own", what));
        }
    }
}

fn check_admin(settings: &Settings, written: &Value, findings: &mut Vec<Finding>) {
    if !settings.apisix.enable_admin {
        return;
    }
    let admin = &settings.deployment.admin;
    let local_only = admin.allow_admin == ["127.0.0.0/24"];
    if !admin.admin_key_required {
        let what = "whoever reaches the Admin API may change everything";
        findings.push(Finding::new(Severity::Warning, "deployment.admin.admin_key_required", "true", what));
    } else if admin.admin_key.is_empty() && !local_only {
        let right = "at least one key, which may be empty to have one generated";
        findings.push(Finding::new(Severity::Error, "deployment.admin.admin_key", right, "got none"));
    }
    let mtls = admin.admin_api_mtls.as_ref();
    let complete = mtls.is_some_and(|m| !m.admin_ssl_cert.is_empty() && !m.admin_ssl_cert_key.is_empty());
    if admin.https_admin && !complete {
        let right = "admin_ssl_cert and admin_ssl_cert_key in deployment.admin.admin_api_mtls";
        findings.push(Finding::new(Severity::Error, "deployment.admin.https_admin", right, "one is missing"));
    }
    // Differs from APISIX: it listens on 0.0.0.0, so a configuration made for it may count on that.
    let listens = at(written, "deployment.admin.admin_listen.ip").is_some();
    let invited = admin.allow_admin.iter().any(|who| !is_local(who)) || admin.allow_admin.is_empty();
    if invited && !listens && admin.admin_listen.ip.is_loopback() {
        let right = "0.0.0.0 for those whom allow_admin invites";
        let what = format!("the Admin API listens on {} only", admin.admin_listen.ip);
        findings.push(Finding::new(Severity::Warning, "deployment.admin.admin_listen.ip", right, what));
    }
}

fn is_local(who: &str) -> bool {
    who.starts_with("127.") || who == "::1" || who == "::1/128" || who == "unix:"
}

fn check_files(settings: &Settings, findings: &mut Vec<Finding>) {
    let mut files: Vec<(&str, &str, PathBuf)> = Vec::new();
    let trusted = settings.apisix.ssl.ssl_trusted_certificate.as_str();
    if trusted != "system" {
        files.push(("apisix.ssl.ssl_trusted_certificate", trusted, settings.resolve(Path::new(trusted))));
    }
    if let Some(mtls) = settings.deployment.admin.admin_api_mtls.as_ref().filter(|_| settings.https_admin()) {
        let named = [
            ("deployment.admin.admin_api_mtls.admin_ssl_cert", &mtls.admin_ssl_cert),
            ("deployment.admin.admin_api_mtls.admin_ssl_cert_key", &mtls.admin_ssl_cert_key),
            ("deployment.admin.admin_api_mtls.admin_ssl_ca_cert", &mtls.admin_ssl_ca_cert),
        ];
        files.extend(
            named.map(|(path, file)| (path, file.as_str(), settings.resolve_in_conf(Path::new(file)))),
        );
    }
    for (path, _, place) in files.into_iter().filter(|(_, file, _)| !file.is_empty()) {
        if !place.exists() {
            let what = format!("{} does not exist", place.display());
            findings.push(Finding::new(Severity::Error, path, "a file that is there", what));
        }
    }
}

/// APISIX: cli/schema.lua, nginx_config.envs.
fn check_environment(settings: &Settings, findings: &mut Vec<Finding>) {
    for (index, entry) in settings.nginx_config.envs.iter().enumerate() {
        let named = !entry.is_empty() && !entry.starts_with('=');
        if !named || entry.chars().any(|c| c.is_ascii_control()) {
            let path = format!("nginx_config.envs[{index}]");
            let what = "got control characters or no name";
            findings.push(Finding::new(Severity::Error, &path, "NAME or NAME=value", what));
        }
    }
}
