//! What the gateway says when it has started: where it listens, where its data is, what to try first.
//!
//! Invariant: never a key.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::settings::types::{Provider, Role};
use crate::settings::{Listener, Settings};

/// The text, several lines, with a newline at the end. Addresses are those of the settings: where a port is 0 the
/// caller tells the real one itself.
pub fn banner(settings: &Settings) -> String {
    shown(settings, &program(std::env::args().next()))
}

/// The program as it can be typed again in the same directory.
fn program(invoked: Option<String>) -> String {
    let typed = |name: &String| name.contains('/') && !name.contains(char::is_whitespace);
    invoked.filter(typed).unwrap_or_else(|| "portcullis".to_owned())
}

fn shown(settings: &Settings, program: &str) -> String {
    let mut lines = Vec::new();
    let file =
        settings.file().map_or_else(|| "built-in defaults".to_owned(), |file| file.display().to_string());
    lines.push(format!("Portcullis {} with {file}", env!("CARGO_PKG_VERSION")));
    let mut line = |name: &str, value: String| lines.push(format!("  {name:<11}{value}"));
    let http = settings.http_listeners();
    if !http.is_empty() {
        line("HTTP", addresses(&http));
    }
    if let Some(admin) = settings.admin_address() {
        line("Admin API", format!("{}/apisix/admin", admin_url(settings, admin)));
    }
    if let Some(control) = settings.control_address() {
        line("Control", format!("http://{control}"));
    }
    if let Ok(Some(metrics)) = settings.prometheus_address() {
        line("Metrics", format!("http://{metrics}{}", export_uri(settings)));
    }
    line("Resources", resources(settings));
    line("Data", settings.data_dir().display().to_string());
    if let Some(admin) = settings.admin_address() {
        let required = settings.deployment.admin.admin_key_required;
        line("Admin key", if required { show_key(settings, program) } else { "not required".to_owned() });
        line("Try", first_request(settings, admin, program));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn addresses(listeners: &[Listener]) -> String {
    listeners.iter().map(|listener| listener.address.to_string()).collect::<Vec<_>>().join(", ")
}

fn admin_url(settings: &Settings, admin: SocketAddr) -> String {
    let scheme = if settings.https_admin() { "https" } else { "http" };
    format!("{scheme}://{}", reachable(admin))
}

/// An address to type: nobody can connect to 0.0.0.0 everywhere.
fn reachable(address: SocketAddr) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port())
}

fn export_uri(settings: &Settings) -> &str {
    let uri = settings.plugin_attr.get("prometheus").and_then(|attr| attr.get("export_uri"));
    uri.and_then(serde_json::Value::as_str).unwrap_or("/apisix/prometheus/metrics")
}

fn resources(settings: &Settings) -> String {
    match settings.provider() {
        Provider::Embedded | Provider::Etcd => "embedded store".to_owned(),
        Provider::Yaml if settings.deployment.role == Role::Traditional => {
            "PUT /apisix/admin/configs, kept in memory only".to_owned()
        }
        Provider::Yaml | Provider::Json => settings.resource_file().display().to_string(),
    }
}

fn show_key(settings: &Settings, program: &str) -> String {
    format!("{program} admin-key{}", config_option(settings))
}

fn config_option(settings: &Settings) -> String {
    let file = settings.file().filter(|file| *file != std::path::Path::new("conf/config.yaml"));
    file.map(|file| format!(" -c {}", file.display())).unwrap_or_default()
}

fn first_request(settings: &Settings, admin: SocketAddr, program: &str) -> String {
    let key = if settings.deployment.admin.admin_key_required {
        format!(" -H \"X-API-KEY: $({})\"", show_key(settings, program))
    } else {
        String::new()
    };
    format!("curl{key} {}/apisix/admin/routes", admin_url(settings, admin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::from_text;
    use std::path::Path;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let loaded = from_text(text, Some(Path::new("/opt/gateway/conf/config.yaml")), &|_| None);
        assert!(!loaded.failed(), "{:?}", loaded.faults);
        let version = format!("Portcullis {} with /opt/gateway/conf/config.yaml", env!("CARGO_PKG_VERSION"));
        let mut lines = vec![version.as_str()];
        lines.extend(expected);
        assert_eq!(shown(&loaded.settings, "portcullis"), lines.join("\n") + "\n");
    }

    #[test]
    fn commands_can_be_pasted() {
        for (invoked, typed) in [
            ("portcullis", "portcullis"),
            ("target/release/portcullis", "target/release/portcullis"),
            ("/opt/my gateway/portcullis", "portcullis"),
        ] {
            assert_eq!(program(Some(invoked.to_owned())), typed);
        }
        assert_eq!(program(None), "portcullis");
        let settings = from_text("", None, &|_| None).settings;
        let said = shown(&settings, "target/release/portcullis");
        assert!(said.contains("  Admin key  target/release/portcullis admin-key\n"), "{said}");
    }

    #[test]
    fn banners() {
        let key = "portcullis admin-key -c /opt/gateway/conf/config.yaml";
        check(
            "",
            &[
                "  HTTP       0.0.0.0:9080, [::]:9080",
                "  Admin API  http://127.0.0.1:9180/apisix/admin",
                "  Control    http://127.0.0.1:9090",
                "  Metrics    http://127.0.0.1:9091/apisix/prometheus/metrics",
                "  Resources  embedded store",
                "  Data       /opt/gateway/data",
                &format!("  Admin key  {key}"),
                &format!(
                    "  Try        curl -H \"X-API-KEY: $({key})\" http://127.0.0.1:9180/apisix/admin/routes"
                ),
            ],
        );
        check(
            "apisix: {node_listen: 80, enable_ipv6: false, enable_control: false, ssl: {enable: false}}\n\
             plugins: []\n\
             deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}",
            &[
                "  HTTP       0.0.0.0:80",
                "  Resources  /opt/gateway/conf/apisix.yaml",
                "  Data       /opt/gateway/data",
            ],
        );
    }

    #[test]
    fn a_document_is_in_no_file() {
        let text = "deployment: {role: traditional, role_traditional: {config_provider: yaml}}";
        let settings = from_text(text, None, &|_| None).settings;
        assert!(banner(&settings).contains("  Resources  PUT /apisix/admin/configs, kept in memory only\n"));
    }

    #[test]
    fn never_a_key() {
        let text = "deployment: {admin: {admin_key: [{name: a, key: sesame, role: admin}], admin_listen: {ip: 0.0.0.0}}}";
        let settings = from_text(text, None, &|_| None).settings;
        assert!(!banner(&settings).contains("sesame"));
        assert!(!format!("{settings:?}").contains("sesame"));
        assert!(banner(&settings).contains("http://127.0.0.1:9180/apisix/admin"));
    }
}
