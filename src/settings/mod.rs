//! Static settings: config.yaml, read once at start, never reloaded.
//!
//! Reading order: [`keys`] declares every key; [`check`] lays a written file over the defaults of that table;
//! [`rules`] binds settings to each other; [`types`] is what the rest of the gateway sees. Invariant: [`Settings`]
//! is always whole. A wrong value is a [`Fault`] and its default stands; whether to start is the caller's decision.
//!
//! Relative paths inside the settings (`data_dir`, logs, certificates) count from [`Settings::home`]: the directory
//! above `conf/` when the file is in one, else the directory of the file. So they mean the same from wherever the
//! gateway is started, and the same as in APISIX, whose prefix is that directory.

pub mod check;
pub mod document;
pub mod fault;
pub mod keys;
pub mod kind;
mod outside;
mod rules;
mod runners;
pub mod substitute;
pub mod types;
pub mod units;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::settings::check::Finding;
use crate::settings::fault::{Fault, Severity};
use crate::settings::keys::Moved;
use crate::settings::substitute::Environment;
use crate::settings::types::{
    Apisix, Deployment, ExtPlugin, Graphql, Nginx, NodeListen, PluginAttr, Portcullis, Provider, Role, Runner,
};
use crate::yaml;
use crate::yaml::positions::Positions;

/// Every setting of the gateway.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Settings {
    /// Listeners, routing, TLS, DNS, encryption.
    pub apisix: Apisix,
    /// What APISIX tells nginx: threads, logs, timeouts, sizes.
    pub nginx_config: Nginx,
    /// Role, Admin API, etcd.
    pub deployment: Deployment,
    /// Plugins that may be used; none: all of the default list. The order means nothing.
    pub plugins: Option<Vec<String>>,
    /// The same for streams.
    pub stream_plugins: Option<Vec<String>>,
    /// Attributes of plugins, over APISIX's defaults; each plugin reads its own.
    pub plugin_attr: PluginAttr,
    /// The runner of external plugins.
    #[serde(rename = "ext-plugin")]
    pub ext_plugin: ExtPlugin,
    /// GraphQL matching.
    pub graphql: Graphql,
    /// What APISIX does not have.
    pub portcullis: Portcullis,
    #[serde(skip)]
    origin: Origin,
}

/// Where the settings come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Origin {
    /// As the user named it; none: built-in defaults.
    file: Option<PathBuf>,
    /// Absolute.
    home: PathBuf,
    /// Absolute.
    conf: PathBuf,
    profile: String,
}

/// One address to listen on for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Address and port; an IPv6 address is for IPv6 alone.
    pub address: SocketAddr,
    /// Whether HTTP/2 is spoken.
    pub http2: bool,
}

/// Settings and what is wrong with the file they were read from.
#[derive(Debug)]
pub struct Loaded {
    /// Whole in any case.
    pub settings: Settings,
    /// Sorted by line.
    pub faults: Vec<Fault>,
}

impl Loaded {
    /// Whether a fault forbids to start.
    pub fn failed(&self) -> bool {
        self.faults.iter().any(|fault| fault.severity == Severity::Error)
    }
}

/// The file read when none is named: `conf/config.yaml`, or `conf/config-PROFILE.yaml` with `APISIX_PROFILE`.
pub fn default_file(environment: Environment<'_>) -> PathBuf {
    PathBuf::from(format!("conf/config{}.yaml", profile_suffix(&profile(environment))))
}

fn profile(environment: Environment<'_>) -> String {
    environment("APISIX_PROFILE").unwrap_or_default()
}

fn profile_suffix(profile: &str) -> String {
    if profile.is_empty() { String::new() } else { format!("-{profile}") }
}

/// Reads a file.
pub fn load(file: &Path, environment: Environment<'_>) -> Loaded {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            let mut loaded = from_text("", Some(file), environment);
            loaded.faults.push(whole_file(file, None, format!("cannot be read: {error}")));
            return loaded;
        }
    };
    from_text(&text, Some(file), environment)
}

/// The built-in defaults, with what the environment says.
pub fn built_in(environment: Environment<'_>) -> Loaded {
    from_text("", None, environment)
}

/// Reads the text of a file; the name is for messages and for relative paths.
pub fn from_text(text: &str, file: Option<&Path>, environment: Environment<'_>) -> Loaded {
    let mut findings = Vec::new();
    let (mut written, broken) = match yaml::parse(text) {
        Ok(value) => (value, None),
        Err(error) => (Value::Null, Some(error)),
    };
    for missing in substitute::in_value(&mut written, environment) {
        let right = format!("the variable {0} to be set, or a default: ${{{{{0}:=…}}}}", missing.name);
        findings.push(Finding::new(Severity::Error, &missing.path, &right, "it is not set"));
    }
    let moved = outside::relocate(&mut written, &mut findings);
    outside::reserved_variables(&mut written, environment, &mut findings);
    let checked = check::check(&written);
    findings.extend(checked.findings);
    let mut settings = typed(checked.effective, &mut findings);
    settings.origin = origin(file, environment);
    findings.extend(rules::apply(&mut settings, &written, environment));
    let mut faults = locate(findings, file, &Positions::scan(text), &moved);
    if let Some(error) = broken {
        // Whatever follows from an unreadable file is not a fault of its own.
        faults.clear();
        faults.push(whole_file(file.unwrap_or(Path::new("")), error.line, error.what));
    }
    Loaded { settings, faults }
}

/// The table of keys and the types agree (a test holds them together); should they not, that is a fault too.
fn typed(effective: Value, findings: &mut Vec<Finding>) -> Settings {
    match serde_json::from_value(effective) {
        Ok(settings) => settings,
        Err(error) => {
            findings.push(Finding::new(Severity::Error, "", "", error.to_string()));
            let defaults = check::check(&Value::Null).effective;
            serde_json::from_value(defaults).expect("a test reads the defaults of the table")
        }
    }
}

fn origin(file: Option<&Path>, environment: Environment<'_>) -> Origin {
    let named = file.map_or_else(|| PathBuf::from("conf/config.yaml"), Path::to_path_buf);
    let absolute = std::path::absolute(&named).unwrap_or(named);
    let conf = absolute.parent().unwrap_or(Path::new("/")).to_path_buf();
    let home = match conf.parent() {
        Some(above) if conf.ends_with("conf") => above.to_path_buf(),
        _ => conf.clone(),
    };
    Origin { file: file.map(Path::to_path_buf), home, conf, profile: profile(environment) }
}

fn whole_file(file: &Path, line: Option<usize>, what: String) -> Fault {
    let file = file.display().to_string();
    Fault {
        severity: Severity::Error,
        file,
        line,
        path: String::new(),
        what,
        right: String::new(),
        nearest: None,
    }
}

fn locate(findings: Vec<Finding>, file: Option<&Path>, lines: &Positions, moved: &[&Moved]) -> Vec<Fault> {
    let file = file.map_or_else(|| "built-in defaults".to_owned(), |file| file.display().to_string());
    let mut faults: Vec<Fault> = findings
        .into_iter()
        .map(|finding| {
            let path = written_path(finding.path, moved);
            Fault {
                severity: finding.severity,
                file: file.clone(),
                line: lines.line(&path),
                path,
                what: finding.what,
                right: finding.right,
                nearest: finding.nearest,
            }
        })
        .collect();
    faults.sort_by_key(|fault| (fault.line.unwrap_or(usize::MAX), std::cmp::Reverse(fault.severity)));
    faults
}

/// The path under which the user wrote what was moved.
fn written_path(path: String, moved: &[&Moved]) -> String {
    for place in moved {
        let Some(rest) = path.strip_prefix(place.to) else { continue };
        if rest.is_empty() || rest.starts_with(['.', '[']) {
            return format!("{}{rest}", place.from);
        }
    }
    path
}

impl Default for Settings {
    /// The built-in defaults, without any environment.
    fn default() -> Self {
        built_in(&|_| None).settings
    }
}

impl Settings {
    /// The file the settings were read from, as the user named it; none: built-in defaults.
    pub fn file(&self) -> Option<&Path> {
        self.origin.file.as_deref()
    }

    /// The directory relative paths count from; absolute.
    pub fn home(&self) -> &Path {
        &self.origin.home
    }

    /// A path of the settings, absolute.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.origin.home.join(path)
    }

    /// A path that counts from the directory of the file itself: the certificates of `admin_api_mtls`, which nginx
    /// looks for in `conf/`.
    pub fn resolve_in_conf(&self, path: &Path) -> PathBuf {
        self.origin.conf.join(path)
    }

    /// Where the embedded store and the generated admin key are.
    pub fn data_dir(&self) -> PathBuf {
        self.resolve(Path::new(&self.portcullis.data_dir))
    }

    /// The file with the generated admin key.
    pub fn admin_key_file(&self) -> PathBuf {
        self.data_dir().join("admin.key")
    }

    /// The file with the number of the running process.
    pub fn pid_file(&self) -> PathBuf {
        self.in_data_dir(self.portcullis.pid_file.as_deref(), "portcullis.pid")
    }

    /// The socket over which a running process hands its listeners to a new one.
    pub fn upgrade_sock(&self) -> PathBuf {
        self.in_data_dir(self.portcullis.upgrade_sock.as_deref(), "upgrade.sock")
    }

    fn in_data_dir(&self, named: Option<&str>, name: &str) -> PathBuf {
        named.map_or_else(|| self.data_dir().join(name), |path| self.resolve(Path::new(path)))
    }

    /// The resource file of the providers `yaml` and `json`: apisix.yaml beside the settings, or
    /// apisix-PROFILE.yaml.
    pub fn resource_file(&self) -> PathBuf {
        let ending = if self.provider() == Provider::Json { "json" } else { "yaml" };
        self.origin.conf.join(format!("apisix{}.{ending}", profile_suffix(&self.origin.profile)))
    }

    /// Where resources come from.
    pub fn provider(&self) -> Provider {
        let deployment = &self.deployment;
        match deployment.role {
            Role::Traditional => deployment.role_traditional.config_provider,
            Role::DataPlane => deployment.role_data_plane.config_provider,
            Role::ControlPlane => deployment.role_control_plane.config_provider,
        }
    }

    fn set_provider(&mut self, provider: Provider) {
        let deployment = &mut self.deployment;
        match deployment.role {
            Role::Traditional => deployment.role_traditional.config_provider = provider,
            Role::DataPlane => deployment.role_data_plane.config_provider = provider,
            Role::ControlPlane => deployment.role_control_plane.config_provider = provider,
        }
    }

    /// Worker threads: `portcullis.threads`, else `nginx_config.worker_processes`, else one for each CPU.
    pub fn worker_threads(&self) -> usize {
        if self.apisix.enable_dev_mode {
            return 1;
        }
        let written = self.portcullis.threads.or(self.nginx_config.worker_processes);
        written.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Whether a plugin may be used, as far as the list `plugins` says; without a list the default list decides.
    pub fn lists_plugin(&self, name: &str) -> Option<bool> {
        self.plugins.as_ref().map(|plugins| plugins.iter().any(|plugin| plugin == name))
    }

    /// Where clients connect by HTTP; none on a control plane.
    pub fn http_listeners(&self) -> Vec<Listener> {
        self.listeners(&self.apisix.node_listen)
    }

    /// Where clients connect by HTTPS; none on a control plane.
    pub fn https_listeners(&self) -> Vec<Listener> {
        if self.apisix.ssl.enable { self.listeners(&self.apisix.ssl.listen) } else { Vec::new() }
    }

    fn listeners(&self, written: &[NodeListen]) -> Vec<Listener> {
        let mut out: Vec<Listener> = Vec::new();
        if self.deployment.role == Role::ControlPlane {
            return out;
        }
        for listen in written {
            let http2 = listen.enable_http2.unwrap_or(self.apisix.enable_http2);
            let mut add = |ip: IpAddr| {
                let address = SocketAddr::new(ip, listen.port);
                if listen.port == 0 || out.iter().all(|known| known.address != address) {
                    out.push(Listener { address, http2 });
                }
            };
            add(listen.ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()));
            // Two sockets on port 0 would get two different ports.
            if listen.ip.is_none() && self.apisix.enable_ipv6 && listen.port != 0 {
                add(Ipv6Addr::UNSPECIFIED.into());
            }
        }
        out
    }

    /// The runners of external plugins, the default one first.
    pub fn runners(&self) -> Vec<Runner> {
        runners::all(self).0
    }

    /// Where the Admin API listens, if it does.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.apisix.enable_admin.then(|| self.deployment.admin.admin_listen.address())
    }

    /// Whether the Admin API is spoken by HTTPS.
    pub fn https_admin(&self) -> bool {
        self.apisix.enable_admin && self.deployment.admin.https_admin
    }

    /// Where the Control API listens, if it does.
    pub fn control_address(&self) -> Option<SocketAddr> {
        self.apisix.enable_control.then(|| self.apisix.control.address())
    }

    /// Where the Status API listens, if it does.
    pub fn status_address(&self) -> Option<SocketAddr> {
        self.apisix.status.map(|listen| listen.address())
    }

    /// Where metrics are exported, if they are.
    ///
    /// # Errors
    /// What is wrong with `plugin_attr.prometheus.export_addr`.
    pub fn prometheus_address(&self) -> Result<Option<SocketAddr>, String> {
        let Some(attr) = self.plugin_attr.get("prometheus") else { return Ok(None) };
        let enabled = attr.get("enable_export_server").and_then(Value::as_bool).unwrap_or(false);
        if !enabled || self.lists_plugin("prometheus") == Some(false) {
            return Ok(None);
        }
        let ip = attr.pointer("/export_addr/ip").and_then(Value::as_str).unwrap_or("127.0.0.1");
        let port = attr.pointer("/export_addr/port").unwrap_or(&Value::Null);
        let port = if port.is_null() { Some(9091) } else { port.as_u64() };
        match (ip.parse::<IpAddr>(), port.and_then(|port| u16::try_from(port).ok())) {
            (Ok(ip), Some(port)) => Ok(Some(SocketAddr::new(ip, port))),
            (Err(_), _) => Err(format!("{ip:?} is not an IP address")),
            (_, None) => Err("its port is not one".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests;
