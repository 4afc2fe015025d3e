//! A real Open Policy Agent with a few policies, on a free port of this machine.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::{client::Request, eventually, gateway::free_port, tool};

/// Decides by header, method, path and query; tells who is refused why.
const EXAMPLE: &str = r#"package example

default allow := false

allow if {
    input.request.headers["test-header"] == "only-for-test"
    input.request.method == "GET"
    startswith(input.request.path, "/hello")
    input.request.query.test != "abcd"
    input.request.query.user
}

allow if startswith(input.request.path, "/open")

headers := {"user": input.request.query.user, "X-Nr": 7} if allow

headers := {"Location": "http://example.com/auth"} if { not allow; input.request.query.user == "alice" }

headers := {"test": "abcd", "abcd": ["test", "more"]} if { not allow; input.request.query.user == "bob" }

status_code := 302 if { not allow; input.request.query.user == "alice" }

reason := "Give you a string reason" if { not allow; input.request.query.user == "carla" }

reason := {"code": 40001, "desc": "Give you an object reason"} if { not allow; input.request.query.user == "dylon" }
"#;

/// Refuses, and tells what it saw.
const ECHO: &str = "package echo\n\nallow := false\n\nreason := input\n";

/// Things that are no permission.
const ODD: &str = "package odd\n\ntext := {\"allow\": \"yes\"}\n\nnothing := {\"allow\": null}\n\nset := {\"allow\": []}\n\nbare := true\n";

/// The running agent. It ends when it is dropped.
pub struct Opa {
    /// Where it listens.
    pub port: u16,
    child: Child,
    _home: TempDir,
}

impl Opa {
    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start() -> Self {
        Self::with(&[("example.rego", EXAMPLE), ("echo.rego", ECHO), ("odd.rego", ODD)])
    }

    /// As [`Opa::start`], with these policies by the names of their files.
    #[track_caller]
    pub fn with(policies: &[(&str, &str)]) -> Self {
        let home = tempfile::Builder::new().prefix("portcullis-opa-").tempdir().expect("a directory");
        for (name, text) in policies {
            fs::write(home.path().join(name), text).expect("it can be written");
        }
        let port = free_port();
        let mut command = Command::new(program());
        command.args(["run", "--server", "--skip-version-check", "--log-level", "error"]);
        command.args(["--addr", &format!("127.0.0.1:{port}")]).arg(home.path());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().unwrap_or_else(|e| {
            panic!("{} cannot be run ({e}): `make test` installs what tests need", program().display())
        });
        let started = Self { port, child, _home: home };
        let healthy =
            || Request::new(port, "GET", "/health").try_send().is_ok_and(|answer| answer.status == 200);
        eventually("the agent answers", healthy);
        started
    }

    /// Its address, as a route names it.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Opa {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where Go puts programs that it installs.
fn program() -> PathBuf {
    PathBuf::from(tool::stdout("go", &["env", "GOPATH"]).trim()).join("bin/opa")
}
