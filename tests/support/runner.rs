//! The stub runner (`tests/stub_runner.rs`), started by a test itself.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{eventually, gateway::PROGRAM};

/// The program, which `cargo test` builds among the examples.
pub fn program() -> PathBuf {
    let built = Path::new(PROGRAM).parent().expect("it lies in a directory").join("examples/stub_runner");
    assert!(built.exists(), "{} is missing: cargo build --example stub_runner", built.display());
    built
}

/// A configuration of ext-plugin-*: one of the stub's plugins.
pub fn conf(name: &str, value: impl Into<Value>) -> Value {
    let text = match value.into() {
        Value::String(text) => text,
        value => value.to_string(),
    };
    json!({"conf": [{"name": name, "value": text}]})
}

/// The processes of the runners that a gateway has started, whatever program they run: each is its guard's child.
pub fn started_by(gateway: u32) -> Vec<i32> {
    let parent_of = |pid: i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before may have spaces and parentheses.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let alive = fields.next()? != "Z";
        fields.next()?.parse().ok().filter(|_| alive)
    };
    let all = fs::read_dir("/proc").expect("there are processes").flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    all.filter(|pid| {
        let grandparent = parent_of(*pid).and_then(parent_of);
        grandparent.is_some_and(|grandparent| u32::try_from(grandparent) == Ok(gateway))
    })
    .collect()
}

/// A runner that somebody else than the gateway started.
pub struct Runner {
    home: TempDir,
    child: Option<Child>,
}

impl Runner {
    /// Starts it and waits until it listens.
    #[track_caller]
    pub fn start() -> Self {
        let mut runner = Self::stopped();
        runner.start_again();
        runner
    }

    /// Its socket has a name, but nobody listens.
    pub fn stopped() -> Self {
        let home = tempfile::Builder::new().prefix("stub-").tempdir().expect("a temporary directory");
        Self { home, child: None }
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.home.path().join("r.sock")
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_file(self.socket());
    }

    /// Its process number.
    pub fn pid(&self) -> i32 {
        let child = self.child.as_ref().expect("it runs");
        i32::try_from(child.id()).expect("process numbers are small")
    }

    /// Starts it after [`Runner::kill`].
    #[track_caller]
    pub fn start_again(&mut self) {
        let mut command = Command::new(program());
        command.env("APISIX_LISTEN_ADDRESS", format!("unix:{}", self.socket().display()));
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn();
        self.child = Some(child.expect("the stub can be run"));
        let socket = self.socket();
        eventually("the stub runner listens", || UnixStream::connect(&socket).is_ok());
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.kill();
    }
}
