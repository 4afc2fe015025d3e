//! OpenBao in its development mode: a real secret manager that speaks Vault's API.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    client::{Request, Response},
    eventually,
    gateway::free_port,
};

/// Shown by whoever may do everything.
pub const TOKEN: &str = "root-token-of-the-tests";

/// A running server with its key-value engine of version 1 under `kv` and of version 2 under `secret`.
pub struct OpenBao {
    /// Where it listens.
    pub port: u16,
    child: Child,
    home: TempDir,
}

impl OpenBao {
    /// Starts one.
    #[track_caller]
    pub fn start() -> Self {
        let bao = Self::on(two_free_ports());
        let engine = json!({"type": "kv", "options": {"version": "1"}});
        bao.request("POST", "/v1/sys/mounts/kv").json(&engine).send().expect(204);
        bao
    }

    #[track_caller]
    fn on(port: u16) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/openbao/bao");
        let child = Command::new(&program)
            .args(["server", "-dev", "-dev-no-store-token"])
            .arg(format!("-dev-root-token-id={TOKEN}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .env("HOME", home.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.unwrap_or_else(|e| {
            panic!("{} cannot be run ({e}): `.ci/setup test` installs it", program.display())
        });
        let bao = Self { port, child, home };
        eventually("OpenBao serves", || {
            let health = Request::new(port, "GET", "/v1/sys/health").try_send();
            health.is_ok_and(|answer| answer.status == 200)
        });
        assert!(bao.home.path().exists());
        bao
    }

    /// `http://127.0.0.1:PORT`.
    pub fn uri(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Writes a secret into an engine: `kv/jack`, or `secret/data/jack` in version 2.
    #[track_caller]
    pub fn write(&self, path: &str, members: Value) -> Response {
        let body = if path.starts_with("secret/data/") { json!({"data": members}) } else { members };
        let answer = self.request("POST", &format!("/v1/{path}")).json(&body).send();
        assert!(matches!(answer.status, 200 | 204), "{path}: {} {}", answer.status, answer.text());
        answer
    }

    fn request(&self, method: &str, target: &str) -> Request {
        Request::new(self.port, method, target).header("X-Vault-Token", TOKEN)
    }
}

/// The first of two that follow each other: the second one is for its cluster.
fn two_free_ports() -> u16 {
    let mut port = free_port();
    loop {
        let next = free_port();
        if next == port + 1 {
            return port;
        }
        port = next;
    }
}

impl Drop for OpenBao {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
