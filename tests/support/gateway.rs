//! The gateway as users run it: a process with a configuration file in a directory of its own.
//!
//! Every gateway has its own directory and its own ports, so that tests run beside each other. It is ended by its
//! process number when the test is over; what it wrote is shown when the test failed.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Instant,
};

use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    PATIENCE,
    client::{Request, Response},
    eventually, tool,
};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_portcullis");

/// The key of the Admin API in every test.
pub const KEY: &str = "key-of-the-tests";

/// How a gateway will be started.
pub struct Setup {
    config: Value,
    ports: Ports,
    resources: Option<Value>,
    home: TempDir,
    program: PathBuf,
    /// Shell commands before the start, such as `ulimit`.
    prelude: String,
    environment: Vec<(String, String)>,
}

/// Where it listens.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// The data plane.
    pub http: u16,
    /// The Admin API.
    pub admin: u16,
    /// The Control API.
    pub control: u16,
    /// `/status`.
    pub status: u16,
    /// The export server of prometheus.
    pub metrics: u16,
}

/// A running gateway.
pub struct Gateway {
    /// Where it listens.
    pub ports: Ports,
    child: Child,
    home: TempDir,
    program: PathBuf,
}

/// A port that nobody listens on, now or later.
pub fn free_port() -> u16 {
    // Below the ports that the kernel gives to outgoing connections.
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = (std::process::id().wrapping_mul(97) % u32::from(COUNT)) as u16;
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (u32::from(begin) + u32::from(offset)).rem_euclid(u32::from(COUNT)) as u16;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

impl Setup {
    /// With the embedded store and the Admin API.
    pub fn new() -> Self {
        let ports = Ports {
            http: free_port(),
            admin: free_port(),
            control: free_port(),
            status: free_port(),
            metrics: free_port(),
        };
        let config = json!({
            "apisix": {
                "node_listen": [{"ip": "127.0.0.1", "port": ports.http}],
                "ssl": {"enable": false},
                "control": {"port": ports.control},
                "status": {"ip": "127.0.0.1", "port": ports.status},
            },
            "deployment": {"admin": {
                "admin_key": [{"name": "admin", "key": KEY, "role": "admin"}],
                "admin_listen": {"ip": "127.0.0.1", "port": ports.admin},
            }},
            "nginx_config": {"error_log": "stderr"},
            "plugin_attr": {"prometheus": {"export_addr": {"ip": "127.0.0.1", "port": ports.metrics}}},
        });
        let home =
            tempfile::Builder::new().prefix("portcullis-test-").tempdir().expect("a temporary directory");
        fs::create_dir(home.path().join("conf")).expect("a directory can be made in it");
        let program = PathBuf::from(PROGRAM);
        Self {
            config,
            ports,
            resources: None,
            home,
            program,
            prelude: String::new(),
            environment: Vec::new(),
        }
    }

    /// With resources from `apisix.yaml` and without an Admin API.
    pub fn file(resources: Value) -> Self {
        let mut setup = Self::new();
        setup.resources = Some(resources);
        setup
            .set("apisix.enable_admin", false)
            .set("deployment.role", "data_plane")
            .set("deployment.role_data_plane.config_provider", "yaml")
    }

    /// Puts other resources into `apisix.yaml`.
    pub fn resources(mut self, resources: Value) -> Self {
        self.resources = Some(resources);
        self
    }

    /// Where its data plane will listen.
    pub fn http(&self) -> u16 {
        self.ports.http
    }

    /// Sets a key of config.yaml, given with dots.
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        let place = path.split('.').fold(&mut self.config, |section, name| &mut section[name]);
        *place = value.into();
        self
    }

    /// Takes a key out of config.yaml, given with dots.
    pub fn without(mut self, path: &str) -> Self {
        let (section, name) = path.rsplit_once('.').expect("a key of a section");
        let pointer = format!("/{}", section.replace('.', "/"));
        let section = self.config.pointer_mut(&pointer).and_then(Value::as_object_mut);
        section.expect("a section").remove(name);
        self
    }

    /// Speaks as APISIX 3.2 did.
    pub fn speaking_3_2(self) -> Self {
        self.set("portcullis.compat", "3.2")
    }

    /// Runs shell commands in front of the gateway, such as `ulimit`.
    pub fn prelude(mut self, commands: &str) -> Self {
        self.prelude = commands.to_owned();
        self
    }

    /// Sets an environment variable.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs a copy of the program that the test may replace.
    pub fn own_program(mut self) -> Self {
        self.program = self.home.path().join("portcullis");
        tool::copy(PROGRAM, &self.program);
        self
    }

    /// Its directory.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Writes the configuration and runs one command to its end: `["test"]`, or `["run"]` when it must fail.
    pub fn command(&self, arguments: &[&str]) -> Output {
        self.write();
        let mut command = program(&self.program, self.home.path(), arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        to_its_end(command)
    }

    /// Starts it and waits until it serves.
    #[track_caller]
    pub fn start(self) -> Gateway {
        self.write();
        let child = self.spawn();
        let watched = self.watched();
        let gateway = Gateway { ports: self.ports, child, home: self.home, program: self.program };
        gateway.until_ready(&watched)
    }

    fn write(&self) {
        let conf = self.home.path().join("conf");
        // JSON is YAML.
        fs::write(conf.join("config.yaml"), format!("{:#}\n", self.config))
            .expect("the configuration can be written");
        if let Some(resources) = &self.resources {
            write_resources(&conf, resources);
        }
    }

    fn watched(&self) -> Vec<u16> {
        let enabled = |pointer: &str| self.config.pointer(pointer) != Some(&Value::Bool(false));
        let mut ports = vec![self.ports.http];
        if enabled("/apisix/enable_admin") {
            ports.push(self.ports.admin);
        }
        // Each listener is a service of its own, and none waits for another.
        if enabled("/apisix/enable_control") {
            ports.push(self.ports.control);
        }
        let exports = enabled("/plugin_attr/prometheus/enable_export_server");
        if exports && self.config.get("plugins").is_none() {
            ports.push(self.ports.metrics);
        }
        ports.push(self.ports.status);
        ports
    }

    fn spawn(&self) -> Child {
        let log = |name: &str| fs::File::create(self.home.path().join(name)).expect("a log can be made");
        let config = self.home.path().join("conf/config.yaml");
        let mut command = if self.prelude.is_empty() {
            let mut command = Command::new(&self.program);
            command.arg("run").arg("-c").arg(config);
            command
        } else {
            let mut command = Command::new("sh");
            let script = format!("{}; exec \"$0\" run -c \"$1\"", self.prelude);
            command.arg("-c").arg(script).arg(&self.program).arg(config);
            command
        };
        command.current_dir(self.home.path()).stdin(Stdio::null());
        command.stdout(log("stdout.log")).stderr(log("stderr.log")).process_group(0);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.spawn().expect("the program can be run")
    }
}

fn program(file: &Path, home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(file);
    command.args(arguments).current_dir(home).stdin(Stdio::null());
    command
}

/// Runs a command that ends by itself; one that does not fails the test.
#[track_caller]
fn to_its_end(mut command: Command) -> Output {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program can be run");
    let begun = Instant::now();
    let mut late = false;
    // What these commands print fits into a pipe.
    while matches!(child.try_wait(), Ok(None)) {
        if begun.elapsed() > PATIENCE {
            late = true;
            let _ = child.kill();
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("it ran");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!late, "{command:?} did not end by itself; it said:\n{said}");
    output
}

/// Puts a new `apisix.yaml` in the place of the old one.
fn write_resources(conf: &Path, resources: &Value) {
    let text = match resources {
        Value::String(text) => text.clone(),
        value => format!("{value:#}\n#END\n"),
    };
    let (new, file) = (conf.join("apisix.yaml.new"), conf.join("apisix.yaml"));
    fs::write(&new, text).expect("the resources can be written");
    fs::rename(new, file).expect("and put in place");
}

impl Gateway {
    /// Starts one with the embedded store and the Admin API.
    #[track_caller]
    pub fn start() -> Self {
        Setup::new().start()
    }

    /// Starts one with resources from a file.
    #[track_caller]
    pub fn file(resources: Value) -> Self {
        Setup::file(resources).start()
    }

    #[track_caller]
    fn until_ready(mut self, watched: &[u16]) -> Self {
        let begun = Instant::now();
        loop {
            let listening = || watched.iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok());
            if self.pid() == Some(self.child.id()) && self.hears() && listening() {
                return self;
            }
            let gone = self.child.try_wait().expect("a child can be asked");
            assert!(gone.is_none(), "the gateway ended at its start: {gone:?}");
            assert!(begun.elapsed() < PATIENCE, "the gateway does not serve {watched:?} in time");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Whether it hears signals, which would end it before that.
    fn hears(&self) -> bool {
        // The last one that it asks for.
        let last = 1 << (Signal::SIGUSR2 as u64 - 1);
        let caught = self.status("SigCgt:").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
        caught.is_some_and(|mask| mask & last != 0)
    }

    /// What the system says about its process; the first word of a line.
    fn status(&self, name: &str) -> Option<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.to_owned())
    }

    /// A request to the data plane.
    pub fn request(&self, method: &str, target: &str) -> Request {
        Request::new(self.ports.http, method, target)
    }

    /// GET from the data plane.
    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        self.request("GET", target).send()
    }

    /// A request to the Admin API with the key; the path is what follows `/apisix/admin`.
    pub fn admin(&self, method: &str, path: &str) -> Request {
        Request::new(self.ports.admin, method, &format!("/apisix/admin{path}")).header("X-API-KEY", KEY)
    }

    /// Creates or replaces a resource; fails the test when that is refused.
    #[track_caller]
    pub fn put(&self, path: &str, resource: Value) -> Response {
        let response = self.admin("PUT", path).json(&resource).send();
        assert!(matches!(response.status, 200 | 201), "PUT {path}: {} {}", response.status, response.text());
        response
    }

    /// Removes a resource.
    #[track_caller]
    pub fn delete(&self, path: &str) -> Response {
        self.admin("DELETE", path).send().expect(200)
    }

    /// GET from the Control API.
    #[track_caller]
    pub fn control(&self, target: &str) -> Response {
        Request::new(self.ports.control, "GET", target).send()
    }

    /// Puts a new `apisix.yaml` in place: a document, or text as it is.
    pub fn rewrite(&self, resources: impl Into<Value>) {
        write_resources(&self.path("conf"), &resources.into());
    }

    /// A file in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// What it said on standard error.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.path("stderr.log")).unwrap_or_default()
    }

    /// Runs another command of the program on the same configuration.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut arguments = arguments.to_vec();
        arguments.extend(["-c", "conf/config.yaml"]);
        to_its_end(program(&self.program, self.home.path(), &arguments))
    }

    /// The process that serves, as its pid file says.
    pub fn pid(&self) -> Option<u32> {
        fs::read_to_string(self.path("data/portcullis.pid")).ok()?.trim().parse().ok()
    }

    /// The process that was started.
    pub fn child(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the process that was started.
    pub fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(process(self.child.id()), signal).expect("the gateway can be signalled");
    }

    /// Ends it as a power cut would, and starts it again on what it left behind.
    #[track_caller]
    pub fn restart_after_kill(mut self) -> Self {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.start_again()
    }

    /// Waits until the started process is over.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the gateway ends", || {
            status = self.child.try_wait().expect("a child can be asked");
            status.is_some()
        });
        status.expect("just seen")
    }

    /// Whether the started process is still there.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Starts the program again after its process ended.
    #[track_caller]
    pub fn start_again(mut self) -> Self {
        let log = fs::OpenOptions::new()
            .append(true)
            .open(self.path("stderr.log"))
            .expect("the log of the first start");
        let mut command = program(&self.program, self.home.path(), &["run", "-c"]);
        command.arg(self.path("conf/config.yaml")).stdout(Stdio::null()).stderr(log).process_group(0);
        self.child = command.spawn().expect("the program can be run");
        let admin = fs::read_to_string(self.path("conf/config.yaml")).expect("the configuration");
        let mut watched = vec![self.ports.http];
        if !admin.contains("\"enable_admin\": false") {
            watched.push(self.ports.admin);
        }
        self.until_ready(&watched)
    }

    /// Its resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.status("VmRSS:").and_then(|number| number.parse().ok()).unwrap_or(0)
    }
}

fn process(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).expect("process numbers are small"))
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the gateway in {} said:\n{}----", self.home.path().display(), self.stderr());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        // After a reload another process serves: it belongs to the same process group, which is this test's own.
        let _ = nix::sys::signal::killpg(process(self.child.id()), Signal::SIGKILL);
    }
}
