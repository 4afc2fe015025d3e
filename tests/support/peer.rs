//! Servers of others that run beside a test: an OpenID provider, a CAS server, a Redis.
//!
//! Each listens on 127.0.0.1 only, keeps its files in a directory of its own and ends with the test.

use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::Value;
use tempfile::TempDir;

use super::{certificates, client::Request, eventually, gateway::free_port, tool};

/// A process that ends with the test.
struct Peer(Child);

impl Peer {
    fn start(command: &mut Command) -> Self {
        let program = command.get_program().to_owned();
        let child = command.stdin(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|e| {
            panic!("{program:?} cannot be run ({e}): `make test` installs what tests need")
        }))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server behind TLS that speaks HTTP/1.1 and HTTP/2; see `tests/peers/secure/server.mjs`.
pub struct SecureServer {
    _peer: Peer,
    /// Its certificates.
    pub home: TempDir,
    /// Where it listens.
    pub port: u16,
}

impl SecureServer {
    /// Starts one with a certificate that nobody vouches for.
    #[track_caller]
    pub fn start() -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str| home.path().join(name).display().to_string();
        let (key, cert) = (file("key.pem"), file("cert.pem"));
        let arguments = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=up.test -keyout";
        let arguments: Vec<&str> = arguments.split(' ').chain([&*key, "-out", &*cert]).collect();
        super::tool::stdout("openssl", &arguments);
        Self::run(home, &[&key, &cert])
    }

    /// Starts one whose certificate is of an authority of its own (`ca.pem` in its directory) for `localhost`. It asks
    /// clients for certificates of that authority.
    #[track_caller]
    pub fn vouched_for() -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        certificates::make(home.path());
        let files = ["server.key", "server.pem", "ca.pem"].map(|name| home.path().join(name));
        let files =
            files.each_ref().map(|file| file.to_str().expect("temporary directories have plain names"));
        Self::run(home, &files)
    }

    #[track_caller]
    fn run(home: TempDir, files: &[&str]) -> Self {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peers/secure/server.mjs");
        let mut command = Command::new("node");
        command.arg(script).args(files).stdout(Stdio::piped());
        let mut peer = Peer::start(&mut command);
        let mut line = String::new();
        let output = peer.0.stdout.take().expect("it is a pipe");
        BufReader::new(output).read_line(&mut line).expect("its output can be read");
        let said: Value = serde_json::from_str(&line).expect("it says where it listens");
        let port = u16::try_from(said["port"].as_u64().expect("a port")).expect("a port");
        Self { _peer: peer, home, port }
    }
}

/// The library `oidc-provider` as a server; see `tests/peers/oidc/provider.mjs`.
pub struct OpenIdProvider {
    peer: Option<Peer>,
    options: Value,
    /// Where it listens.
    pub port: u16,
}

impl OpenIdProvider {
    /// Starts one with these options.
    #[track_caller]
    pub fn start(mut options: Value) -> Self {
        // One that nobody else gets while it is stopped.
        let port = free_port();
        options["port"] = port.into();
        let mut provider = Self { peer: None, options, port };
        provider.run();
        provider
    }

    fn run(&mut self) {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peers/oidc/provider.mjs");
        let mut command = Command::new("node");
        command.arg(script).arg(self.options.to_string()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut peer = Peer::start(&mut command);
        let mut line = String::new();
        let mut output = BufReader::new(peer.0.stdout.take().expect("it is a pipe"));
        output.read_line(&mut line).expect("its output can be read");
        // It says more later on, and ends when nobody reads that.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        let ready = line.starts_with('{');
        assert!(ready, "the OpenID provider does not start: run `.ci/setup test`; it said {line:?}");
        self.peer = Some(peer);
    }

    /// An address of it.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Its discovery document's address.
    pub fn discovery(&self) -> String {
        self.url("/.well-known/openid-configuration")
    }

    /// How often a path of it was asked for.
    #[track_caller]
    pub fn count(&self, path: &str) -> u64 {
        Request::new(self.port, "GET", "/counts").send().json()[path].as_u64().unwrap_or(0)
    }

    /// Stops it; its port stays free for [`OpenIdProvider::again`].
    pub fn stop(&mut self) {
        self.peer = None;
    }

    /// Starts it again, with new keys, at the same address.
    #[track_caller]
    pub fn again(&mut self) {
        self.run();
    }

    /// Lets it sign with new keys.
    #[track_caller]
    pub fn rotate(&self) {
        let before = self.keys();
        let id = self.peer.as_ref().expect("it runs").0.id();
        let id = Pid::from_raw(i32::try_from(id).expect("process numbers are small"));
        nix::sys::signal::kill(id, Signal::SIGUSR1).expect("it can be signalled");
        eventually("the provider has new keys", || self.keys() != before);
    }

    /// Its published keys.
    #[track_caller]
    pub fn keys(&self) -> Value {
        Request::new(self.port, "GET", "/jwks").send().expect(200).json()
    }
}

/// The package `django-cas-server` as a server; see `tests/peers/cas/server.py`.
pub struct CasServer {
    _peer: Peer,
    _home: TempDir,
    /// Where it listens.
    pub port: u16,
}

impl CasServer {
    /// Starts one.
    #[track_caller]
    pub fn start() -> Self {
        let home = tempfile::Builder::new().prefix("portcullis-cas-").tempdir().expect("a directory");
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(root.join("target/cas/bin/python"));
        command.arg(root.join("tests/peers/cas/server.py")).arg(home.path());
        command.env("PYTHONDONTWRITEBYTECODE", "1").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut peer = Peer::start(&mut command);
        let mut line = String::new();
        let output = peer.0.stdout.take().expect("it is a pipe");
        BufReader::new(output).read_line(&mut line).expect("its output can be read");
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|_| {
            panic!("the CAS server does not start: run `.ci/setup test`; it said {line:?}")
        });
        let port = u16::try_from(said["port"].as_u64().expect("a port")).expect("a port");
        Self { _peer: peer, _home: home, port }
    }

    /// The address that its pages are under.
    pub fn uri(&self) -> String {
        format!("http://127.0.0.1:{}/cas", self.port)
    }
}

/// A Redis.
pub struct Redis {
    _peer: Peer,
    home: TempDir,
    password: String,
    tls: bool,
    /// Where it listens.
    pub port: u16,
}

impl Redis {
    /// Starts one that wants this password.
    #[track_caller]
    pub fn start(password: &str) -> Self {
        Self::run(password, false)
    }

    /// As [`Redis::start`], and it speaks TLS only, with a certificate for `localhost`.
    #[track_caller]
    pub fn with_tls(password: &str) -> Self {
        Self::run(password, true)
    }

    #[track_caller]
    fn run(password: &str, tls: bool) -> Self {
        let home = tempfile::Builder::new().prefix("portcullis-redis-").tempdir().expect("a directory");
        let port = free_port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--requirepass", password]);
        command.arg("--dir").arg(home.path()).stdout(Stdio::null());
        if tls {
            certificates::make(home.path());
            command.args(["--port", "0", "--tls-port", &port.to_string(), "--tls-auth-clients", "no"]);
            let files = [("cert", "server.pem"), ("key", "server.key"), ("ca-cert", "ca.pem")]
                .map(|(option, name)| (format!("--tls-{option}-file"), home.path().join(name)));
            files.iter().for_each(|(option, file)| {
                command.arg(option).arg(file);
            });
        } else {
            command.args(["--port", &port.to_string()]);
        }
        let peer = Peer::start(&mut command);
        eventually("the Redis listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { _peer: peer, home, password: password.to_owned(), tls, port }
    }

    /// The certificate of the authority that signed its own.
    pub fn authority(&self) -> String {
        self.home.path().join("ca.pem").display().to_string()
    }

    /// What `redis-cli` says.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> String {
        let (port, authority) = (self.port.to_string(), self.authority());
        let mut all = vec!["-p", &port, "-a", &self.password, "--no-auth-warning", "--raw"];
        if self.tls {
            all.extend(["-h", "localhost", "--tls", "--cacert", &authority]);
        }
        all.extend(arguments);
        tool::stdout("redis-cli", &all).trim().to_owned()
    }
}
