//! The only assembler: settings, store, control loop, server. Everything meets here and nowhere else.
//!
//! Invariant: threads and files are opened after the configuration proved right, and listeners accept only when
//! the whole configuration is loaded.

mod check;
mod handover;
mod keys;
mod pages;
mod ports;
mod runners;
mod secrets;
mod store;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use async_trait::async_trait;
use http::{HeaderName, HeaderValue};
use pingora::{
    apps::{
        HttpServerOptions,
        http_app::{HttpServer, ServeHttp},
    },
    listeners::TcpSocketOptions,
    server::{
        RunArgs, Server, ShutdownWatch,
        configuration::{Opt, ServerConf},
    },
    services::{
        background::{BackgroundService, background_service},
        listening::Service,
    },
};
use pingora_proxy::HttpProxy;
use serde_json::{Value, json};

use self::{handover::Lifecycle, store::Opened};
pub use self::{
    handover::reload,
    pages::{any as with_huge_pages, small as without_huge_pages},
    runners::start as start_runner,
};
use crate::{
    admin::{self, Admin},
    builtin::{
        self, Enabled,
        shared::{batch, ext_plugin},
    },
    cli::banner,
    compat::Compat,
    control::Control,
    net::ip_set::IpSet,
    ops::{
        access_log::AccessLog,
        control_api::{ControlApi, KeyStyle},
        export::{Export, Render},
        signals::{self, Hooks, Signals},
        status::Status,
        telemetry::{self, ErrorLog},
    },
    plugin::{
        def::{PluginDef, SchemaType},
        env::{Carry, Registry},
        metrics::{self, Metrics},
    },
    proxy::{
        Gateway,
        front::Front,
        options::{Options, RealIp},
    },
    resource::{self, Kind},
    secret::encryption::Keyring,
    settings::{
        Settings,
        fault::Fault,
        types::{HttpRouter, Provider},
    },
    snapshot::{compile::Env, router::Mode},
    store::{Event, FileStore, Watch},
    trust,
    upstream::{
        conf::{ChecksSwitch, KeepaliveConf, TimeoutConf, UpstreamDefaults},
        health::probe::Probes,
        resolve::{Families, Resolver, ResolverConf},
    },
};

/// Runs the gateway until it is told to stop.
///
/// # Errors
/// Why it could not start: a directory that cannot be made, a port in use, a store that cannot be opened.
pub fn run(settings: Settings) -> Result<()> {
    let data = settings.data_dir();
    std::fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
    let error_log = telemetry::init(&settings).context("cannot open the error log")?;
    let access_log = AccessLog::open(&settings).context("cannot open the access log")?;
    let control = Arc::new(Control::new(Arc::new(environment(&settings)?)));
    if settings.https_admin() {
        bail!(
            "deployment.admin.https_admin is not supported yet, and the Admin API is not served in clear instead"
        );
    }
    let options = Opt { upgrade: handover::is_successor(), ..Opt::default() };
    let mut server = Server::new_with_opt_and_conf(options, server_conf(&settings));
    // A successor waits here for the listeners of the running process, which has let go of the store by then.
    server.bootstrap();
    let opened = store::open(&settings)?;
    if opened.embedded.is_some() {
        control.env().metrics.gateway.set_store_reachable(true);
    }
    let events = load(&control, &opened);
    if !handover::is_successor() {
        ports::free(&settings)?;
        handover::write_pid(&settings.pid_file())?;
    }
    let lifecycle = Arc::new(Lifecycle::new(&settings, opened.embedded.clone()));
    let assembly = Assembly {
        settings: &settings,
        control: &control,
        opened: &opened,
        lifecycle: &lifecycle,
        access_log: &access_log,
    };
    assembly.services(&mut server, events)?;
    let signals = Signals::new(assembly.hooks(error_log), settings.nginx_config.worker_shutdown_timeout);
    eprint!("{}", banner::banner(&settings));
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
    access_log.iter().for_each(AccessLog::flush);
    batch::flush(LAST_ENTRIES);
    lifecycle.forget_pid();
    Ok(())
}

/// Compiles all that the store holds, so that the first request meets all of it.
fn load(control: &Arc<Control>, opened: &Opened) -> Watch {
    let mut events = opened.store.watch();
    let all: Vec<Event> = events.try_recv().into_iter().collect();
    pages::for_all(&all);
    secrets::load(control, all);
    let watched = control.clone();
    // Set once, here.
    let _ = control.env().metrics.runners.set(ext_plugin::runners(&control.env().carry));
    control.env().metrics.gateway.set_node_source(Box::new(move || watched.node_status()));
    events
}

/// What the services are made of.
struct Assembly<'a> {
    settings: &'a Settings,
    control: &'a Arc<Control>,
    opened: &'a Opened,
    lifecycle: &'a Arc<Lifecycle>,
    access_log: &'a Option<AccessLog>,
}

impl Assembly<'_> {
    /// All that listens or runs in the background.
    fn services(&self, server: &mut Server, events: Watch) -> Result<()> {
        self.background(server, events);
        self.runners(server);
        self.data_plane(server)?;
        self.admin(server)?;
        self.operation(server)
    }

    /// The control loop and what refreshes itself.
    fn background(&self, server: &mut Server, events: Watch) {
        let background = Background {
            control: self.control.clone(),
            file: self.opened.file.clone(),
            events: Mutex::new(Some(events)),
            pid_file: self.settings.pid_file(),
        };
        let mut service = background_service("configuration", background);
        service.threads = Some(1);
        server.add_service(service);
    }

    /// The processes of external plugins.
    fn runners(&self, server: &mut Server) {
        let supervision = runners::Supervision::new(self.settings, &self.control.env().carry);
        if !supervision.is_empty() {
            let mut service = background_service("runners", supervision);
            service.threads = Some(1);
            server.add_service(service);
        }
    }

    /// One proxy service for listeners with HTTP/2 and one for those without.
    fn data_plane(&self, server: &mut Server) -> Result<()> {
        let proxy = self.proxy(server)?;
        for http2 in [false, true] {
            let listeners = self.settings.http_listeners();
            let listeners: Vec<_> = listeners.into_iter().filter(|one| one.http2 == http2).collect();
            if listeners.is_empty() {
                continue;
            }
            let front = Front {
                proxy: proxy.clone(),
                http2,
                patience: self.settings.nginx_config.http.client_header_timeout,
                keepalive: self.settings.nginx_config.http.keepalive_timeout,
                metrics: self.control.env().metrics.clone(),
            };
            let mut service = Service::new("proxy".to_owned(), front);
            for listener in listeners {
                listen(&mut service, listener.address);
            }
            server.add_service(service);
        }
        Ok(())
    }

    /// Pingora's proxy around the gateway.
    fn proxy(&self, server: &Server) -> Result<Arc<HttpProxy<Gateway>>> {
        let mut proxy = HttpProxy::new(self.gateway()?, server.configuration.clone());
        proxy.handle_init_modules();
        let mut options = HttpServerOptions::default();
        // Asked of connections that begin as HTTP/2 does.
        options.h2c = true;
        options.h2_idle_timeout = Some(self.settings.nginx_config.http.keepalive_timeout);
        proxy.server_options = Some(options);
        Ok(Arc::new(proxy))
    }

    fn gateway(&self) -> Result<Gateway> {
        Ok(Gateway {
            current: self.control.current(),
            options: options(self.settings, self.lifecycle.draining.clone())?,
            access_log: self.access_log.clone(),
            metrics: self.control.env().metrics.clone(),
        })
    }

    /// The Admin API, where this role has one.
    fn admin(&self, server: &mut Server) -> Result<()> {
        let settings = self.settings;
        let Some(address) = settings.admin_address() else { return Ok(()) };
        let key = keys::generated(settings)?;
        let options = admin::Options::new(settings, &key, settings.portcullis.compat);
        let options = options.map_err(|e| anyhow!("deployment.admin.allow_admin: {e}"))?;
        let control = self.control.clone();
        let admin = match &self.opened.standalone {
            Some(standalone) => Admin::standalone(options, standalone.clone(), control),
            None => Admin::new(options, self.opened.store.clone(), control),
        };
        serve(server, "Admin API", address, admin);
        Ok(())
    }

    /// Control API, status and metrics: one thread each.
    fn operation(&self, server: &mut Server) -> Result<()> {
        let settings = self.settings;
        let style = match settings.provider() {
            Provider::Embedded | Provider::Etcd => KeyStyle::Etcd,
            Provider::Yaml | Provider::Json => KeyStyle::File,
        };
        if let Some(address) = settings.control_address() {
            let app = ControlApi::new(self.control.clone(), self.opened.store.clone(), style);
            serve(server, "control API", address, app);
        }
        if let Some(address) = settings.status_address() {
            let status = Status::new(self.control.clone(), self.opened.standalone.clone());
            serve(server, "status API", address, status);
        }
        let export = settings.prometheus_address().map_err(|e| anyhow!("plugin_attr.prometheus: {e}"))?;
        if let Some(address) = export {
            let registry = self.control.env().metrics.clone();
            let render: Render = Arc::new(move || metrics::render(&registry));
            serve(server, "metrics", address, Export::new(settings.plugin_attr.get("prometheus"), render));
        }
        Ok(())
    }

    /// What signals do.
    fn hooks(&self, error_log: ErrorLog) -> Hooks {
        let (for_reopen, for_leave) = (self.access_log.clone(), self.access_log.clone());
        let (successor, stopping, leaving) =
            (self.lifecycle.clone(), self.lifecycle.clone(), self.lifecycle.clone());
        let metrics = self.control.env().metrics.clone();
        Hooks {
            reopen: Box::new(move || {
                error_log.reopen();
                for_reopen.iter().for_each(AccessLog::reopen);
            }),
            hand_over: Box::new(move || {
                let successor = successor.clone();
                Box::pin(async move { successor.hand_over().await })
            }),
            stopping: Box::new(move |_| stopping.draining.store(true, Ordering::Relaxed)),
            active: Box::new(move || {
                // A request that ends while it is counted may make the sum negative for an instant.
                usize::try_from(metrics.gateway.busy.load(Ordering::Relaxed)).unwrap_or(0)
            }),
            leave: Box::new(move || {
                for_leave.iter().for_each(AccessLog::flush);
                leaving.forget_pid();
                batch::flush(LAST_ENTRIES);
                std::process::exit(0);
            }),
        }
    }
}

/// A service of its own with one thread.
fn serve<A: ServeHttp + Send + Sync + 'static>(server: &mut Server, name: &str, address: SocketAddr, app: A) {
    let mut service = Service::new(name.to_owned(), HttpServer::new_app(app));
    service.threads = Some(1);
    listen(&mut service, address);
    server.add_service(service);
}

fn listen<A>(service: &mut Service<A>, address: SocketAddr) {
    let mut options = TcpSocketOptions::default();
    // An IPv6 address is for IPv6 alone: IPv4 has a listener of its own.
    options.ipv6_only = address.is_ipv6().then_some(true);
    service.add_tcp_with_settings(&address.to_string(), options);
}

/// Follows the store, keeps names resolved and nodes probed.
struct Background {
    control: Arc<Control>,
    file: Option<Arc<FileStore>>,
    events: Mutex<Option<Watch>>,
    pid_file: PathBuf,
}

#[async_trait]
impl BackgroundService for Background {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Some(events) = self.events.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        if handover::is_successor() {
            // `reload` returns when it sees this, so only now that signals are heard.
            tokio::time::sleep(SETTLE).await;
            if let Err(e) = handover::write_pid(&self.pid_file) {
                tracing::error!(error = %format!("{e:#}"), "stop, quit and reload will not find this process");
            }
        }
        tokio::spawn(self.control.env().upstream.resolver.clone().run());
        tokio::spawn(self.control.env().secrets.clone().run());
        if let Some(file) = &self.file {
            tokio::spawn(file.clone().follow());
        }
        let probes = Probes::default();
        self.control.sync_probes(&probes);
        tokio::select! {
            () = self.control.run(events, &probes) => {}
            _ = shutdown.changed() => {}
        }
    }
}

fn server_conf(settings: &Settings) -> ServerConf {
    let mut conf = ServerConf::default();
    conf.threads = settings.worker_threads();
    conf.upgrade_sock = settings.upgrade_sock().display().to_string();
    conf.pid_file = String::new();
    conf.grace_period_seconds = Some(signals::grace_period(settings.nginx_config.worker_shutdown_timeout));
    conf.graceful_shutdown_timeout_seconds = Some(1);
    // Pingora's pool is per process; smaller than the concurrency it costs a quarter of the throughput.
    conf.upstream_keepalive_pool_size = settings.nginx_config.http.upstream.keepalive.max(64) * conf.threads;
    conf.max_retries = MAX_TRIES;
    // Read by the framework, which would panic: `environment` read it before.
    conf.ca_file = trusted(settings).map(|file| file.display().to_string());
    conf
}

/// How long the end of the process waits for servers to take the last log entries.
const LAST_ENTRIES: Duration = Duration::from_secs(5);

/// From the start of services until signals are heard.
const SETTLE: Duration = Duration::from_millis(100);

/// More tries than any upstream has nodes worth trying; Pingora's own bound.
const MAX_TRIES: usize = 64;

/// The file of the authorities that are trusted instead of the system's.
fn trusted(settings: &Settings) -> Option<PathBuf> {
    let file = settings.apisix.ssl.ssl_trusted_certificate.as_str();
    (file != "system").then(|| settings.resolve(Path::new(file)))
}

fn environment(settings: &Settings) -> Result<Env> {
    if let Some(file) = trusted(settings) {
        trust::only(&file).map_err(|e| anyhow!("apisix.ssl.ssl_trusted_certificate: {e}"))?;
    }
    let registry = Enabled::new(settings.plugins.as_deref(), attributes(settings));
    let compat = settings.portcullis.compat;
    let apis = registry.apis();
    let apisix = &settings.apisix;
    Ok(Env {
        registry,
        compat,
        mode: match apisix.router.http {
            HttpRouter::RadixtreeHostUri => Mode::HostUri,
            HttpRouter::RadixtreeUri => Mode::Uri,
            HttpRouter::RadixtreeUriWithParameter => Mode::UriWithParameter,
        },
        keyring: apisix.data_encryption.enable_encrypt_fields.then(|| {
            let keys: Vec<String> =
                apisix.data_encryption.keyring.iter().map(|key| key.reveal().to_owned()).collect();
            Keyring::new(&keys)
        }),
        secrets: Arc::new(secrets::of(settings)),
        carry: carry(settings),
        metrics: Arc::new(Metrics::new(prometheus::Registry::new())),
        debug_auth: settings.portcullis.debug_auth,
        unjudged: matches!(settings.provider(), Provider::Yaml | Provider::Json),
        upstream: upstream_defaults(settings)?,
        apis,
    })
}

/// What plugins find when they are compiled: the runners of external plugins.
fn carry(settings: &Settings) -> Carry {
    let carry = Carry::default();
    carry.state("ext-plugin", || runners::from(settings));
    carry
}

/// `plugin_attr`, with what the redirect plugin must know of the TLS listeners. APISIX: `redirect.lua get_port`.
fn attributes(settings: &Settings) -> serde_json::Map<String, Value> {
    let mut attributes = settings.plugin_attr.clone();
    let ports: Vec<u16> = settings.https_listeners().iter().map(|listener| listener.address.port()).collect();
    let redirect = attributes.entry("redirect").or_insert_with(|| json!({}));
    if let Some(redirect) = redirect.as_object_mut() {
        redirect.entry("ssl_ports").or_insert_with(|| json!(ports));
    }
    attributes
}

fn upstream_defaults(settings: &Settings) -> Result<UpstreamDefaults> {
    let apisix = &settings.apisix;
    let conf = ResolverConf {
        servers: apisix.dns_resolver.clone().unwrap_or_default(),
        valid: apisix.dns_resolver_valid.map(Duration::from_secs),
        timeout: apisix.resolver_timeout,
        families: if apisix.enable_ipv6 { Families::V4ThenV6 } else { Families::V4 },
    };
    let keepalive = &settings.nginx_config.http.upstream;
    Ok(UpstreamDefaults {
        resolver: Resolver::new(&conf)?,
        timeout: TimeoutConf::default(),
        keepalive: KeepaliveConf {
            size: u32::try_from(keepalive.keepalive).unwrap_or(u32::MAX),
            idle_timeout: keepalive.keepalive_timeout.as_secs_f64(),
            requests: u32::try_from(keepalive.keepalive_requests).unwrap_or(u32::MAX),
        },
        checks: if apisix.disable_upstream_healthcheck { ChecksSwitch::Off } else { ChecksSwitch::On },
    })
}

fn options(settings: &Settings, draining: Arc<AtomicBool>) -> Result<Options> {
    let (apisix, http) = (&settings.apisix, &settings.nginx_config.http);
    let compat = settings.portcullis.compat;
    let server =
        if apisix.enable_server_tokens { format!("APISIX/{}", compat.version()) } else { "APISIX".into() };
    let addresses =
        |list: &[String]| IpSet::parse(list.iter().map(String::as_str).filter(|one| *one != "unix:"));
    let real_ip_from =
        addresses(&http.real_ip_from).map_err(|e| anyhow!("nginx_config.http.real_ip_from: {e}"))?;
    let trusted = apisix.trusted_addresses.as_deref().map(addresses).transpose();
    Ok(Options {
        compat,
        server: HeaderValue::from_str(&server)?,
        delete_uri_tail_slash: apisix.delete_uri_tail_slash,
        normalize_uri_like_servlet: apisix.normalize_uri_like_servlet,
        match_uri_encoded_slash: apisix.match_uri_encoded_slash,
        show_upstream_status: apisix.show_upstream_status_in_response_header,
        trusted: trusted.map_err(|e| anyhow!("apisix.trusted_addresses: {e}"))?,
        real_ip: (!real_ip_from.is_empty()).then_some(RealIp {
            header: HeaderName::from_bytes(http.real_ip_header.as_bytes())?,
            from: real_ip_from,
            recursive: http.real_ip_recursive,
        }),
        max_body: (http.client_max_body_size > 0).then_some(http.client_max_body_size),
        max_buffered_body: usize::try_from(settings.portcullis.request_body_buffer_max).unwrap_or(usize::MAX),
        keepalive: http.keepalive_timeout,
        body_timeout: http.client_body_timeout,
        send_timeout: http.send_timeout,
        log_credentials: settings.portcullis.log_credentials,
        draining,
    })
}

/// The schema that `portcullis schema NAME` prints: a plugin's, a resource's, or all of them.
pub fn schema(name: Option<&str>) -> Option<Value> {
    let plugin = |def: &PluginDef| {
        let side = |of| def.schema(of).map(|compiled| compiled.json.clone());
        json!({
            "priority": def.priority,
            "schema": side(SchemaType::Route),
            "consumer_schema": side(SchemaType::Consumer),
            "metadata_schema": side(SchemaType::Metadata),
        })
    };
    let Some(name) = name else {
        let plugins: serde_json::Map<_, _> =
            builtin::REGISTRY.iter().map(|def| (def.name.to_owned(), plugin(def))).collect();
        let main: serde_json::Map<_, _> = Kind::ALL
            .iter()
            .map(|kind| (kind.schema_name().to_owned(), resource::schema_json(*kind, Compat::Now).clone()))
            .collect();
        return Some(json!({ "main": main, "plugins": plugins }));
    };
    if let Some(def) = builtin::REGISTRY.iter().find(|def| def.name == name) {
        return Some(plugin(def));
    }
    let kind = Kind::ALL.into_iter().find(|kind| kind.schema_name() == name || kind.dir() == name)?;
    Some(resource::schema_json(kind, Compat::Now).clone())
}

/// Names the plugins of config.yaml that do not exist here.
pub fn check_plugins(settings: &Settings) -> Option<Fault> {
    check::plugins(settings)
}

/// Compiles every resource of the resource file: what `portcullis test` does in file mode.
pub fn check_resources(settings: &Settings) -> Vec<Fault> {
    check::resources(settings)
}
