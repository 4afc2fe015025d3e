//! Programs of the machine that tests use.

use std::{
    path::Path,
    process::{Command, Output},
};

/// Runs a program that must be there; `make test` installs what is missing.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|e| panic!("{program} cannot be run ({e}): `make test` installs what tests need"))
}

/// Runs it and gives what it printed; a failure fails the test.
#[track_caller]
pub fn stdout(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// Copies a program that is to be run. Another process writes it: what this one has open while another test starts a
/// program is open there, too, and a file that is open for writing cannot be run.
#[track_caller]
pub fn copy(from: &str, to: &Path) {
    stdout("cp", &[from, to.to_str().expect("a path of text")]);
}
