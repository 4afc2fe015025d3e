//! The runners of external plugins, gathered from `ext-plugin.cmd`, `path_for_test` and `runners`.
//!
//! Invariant: a runner that is wrong is left out and reported; the others stay.

use std::path::Path;

use serde_json::{Map, Value};

use crate::settings::Settings;
use crate::settings::check::Finding;
use crate::settings::fault::{Severity, nearest};
use crate::settings::types::Runner;

/// The name of the runner that APISIX's own keys describe.
const DEFAULT: &str = "default";

/// More processes than any machine has cores for one runner.
const MAX_PROCESSES: u64 = 256;

/// What an entry of `ext-plugin.runners` may have.
const KEYS: [&str; 5] = ["cmd", "socket", "processes", "connections", "watch"];

/// All of them, and what is wrong with those that are left out.
pub fn all(settings: &Settings) -> (Vec<Runner>, Vec<Finding>) {
    let section = &settings.ext_plugin;
    let (mut runners, mut findings) = (Vec::new(), Vec::new());
    if section.cmd.is_some() || section.path_for_test.is_some() {
        let empty = section.cmd.as_ref().is_some_and(Vec::is_empty);
        if empty {
            findings.push(wrong("ext-plugin.cmd", "a program and its arguments", "got an empty list"));
        }
        runners.push(Runner {
            name: DEFAULT.to_owned(),
            cmd: section.cmd.clone().filter(|_| !empty),
            socket: section.path_for_test.as_deref().map(|path| settings.resolve(Path::new(socket(path)))),
            processes: 1,
            connections: section.connections,
            watch: Vec::new(),
        });
        runners.retain(|runner| runner.cmd.is_some() || runner.socket.is_some());
    }
    for (name, value) in &section.runners {
        let path = format!("ext-plugin.runners.{name}");
        match entry(settings, name, value, &path) {
            Ok(_) if runners.iter().any(|other| other.name == *name) => {
                let right = "another name: ext-plugin.cmd and path_for_test describe the runner of this one";
                findings.push(wrong(&path, right, "it stands there twice"));
            }
            Ok(runner) => runners.push(runner),
            Err(finding) => findings.push(finding),
        }
    }
    (runners, findings)
}

fn wrong(path: &str, right: &str, what: &str) -> Finding {
    Finding::new(Severity::Error, path, right, what)
}

/// People write the prefix that runners are given.
fn socket(path: &str) -> &str {
    path.strip_prefix("unix:").unwrap_or(path)
}

fn entry(settings: &Settings, name: &str, value: &Value, path: &str) -> Result<Runner, Finding> {
    let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if !named {
        return Err(wrong(path, "a name of letters, digits, - and _", "got another one"));
    }
    let Some(value) = value.as_object() else {
        return Err(wrong(
            path,
            "keys and values: cmd or socket, processes, connections, watch",
            "got no such",
        ));
    };
    if let Some(unknown) = value.keys().find(|key| !KEYS.contains(&key.as_str())) {
        let path = format!("{path}.{unknown}");
        let mut finding = wrong(&path, "a known key", "unknown key");
        finding.nearest = nearest(unknown, KEYS).map(str::to_owned);
        return Err(finding);
    }
    let cmd = words(value, "cmd", path)?;
    let given = text(value, "socket", path)?;
    if cmd.is_none() && given.is_none() {
        return Err(wrong(path, "cmd or socket", "got neither"));
    }
    let processes = number(value, "processes", path, MAX_PROCESSES)?.unwrap_or(1);
    if processes > 1 && given.is_some() {
        let right = "one process on a socket that is given; without socket each gets its own";
        return Err(wrong(&format!("{path}.processes"), right, &format!("got {processes}")));
    }
    let watch = words(value, "watch", path)?.unwrap_or_default();
    Ok(Runner {
        name: name.to_owned(),
        cmd,
        socket: given.map(|path| settings.resolve(Path::new(socket(&path)))),
        processes,
        connections: number(value, "connections", path, 65536)?.unwrap_or(settings.ext_plugin.connections),
        watch: watch.iter().map(|path| settings.resolve(Path::new(path))).collect(),
    })
}

fn words(value: &Map<String, Value>, key: &str, path: &str) -> Result<Option<Vec<String>>, Finding> {
    let Some(list) = value.get(key) else { return Ok(None) };
    let words: Option<Vec<String>> = list
        .as_array()
        .filter(|list| !list.is_empty())
        .and_then(|list| list.iter().map(|word| word.as_str().map(str::to_owned)).collect());
    words.map(Some).ok_or_else(|| wrong(&format!("{path}.{key}"), "a list of texts", "got something else"))
}

fn text(value: &Map<String, Value>, key: &str, path: &str) -> Result<Option<String>, Finding> {
    match value.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
        Some(_) => Err(wrong(&format!("{path}.{key}"), "the path of a unix socket", "got something else")),
    }
}

fn number(value: &Map<String, Value>, key: &str, path: &str, most: u64) -> Result<Option<usize>, Finding> {
    let Some(written) = value.get(key) else { return Ok(None) };
    let number = written.as_u64().filter(|number| (1..=most).contains(number));
    let number = number.and_then(|number| usize::try_from(number).ok());
    let right = format!("a whole number from 1 to {most}");
    number.map(Some).ok_or_else(|| wrong(&format!("{path}.{key}"), &right, &format!("got {written}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::from_text;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let file = Path::new("/gw/conf/config.yaml");
        let settings = from_text(text, Some(file), &|_| None).settings;
        let (runners, findings) = all(&settings);
        let show = |runner: &Runner| {
            let cmd = runner.cmd.as_ref().map(|cmd| cmd.join(" ")).unwrap_or_default();
            let socket = runner.socket.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
            let watch = runner.watch.iter().map(|path| format!(" watch {}", path.display()));
            let (name, processes, connections) = (&runner.name, runner.processes, runner.connections);
            format!("{name}: {cmd}|{socket} {processes}x{connections}{}", watch.collect::<String>())
        };
        let shown: Vec<String> = runners
            .iter()
            .map(show)
            .chain(findings.iter().map(|f| format!("{}: {}, {}", f.path, f.right, f.what)))
            .collect();
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn runners() {
        check("", &[]);
        check("ext-plugin: {path_for_test: /tmp/r.sock}", &["default: |/tmp/r.sock 1x256"]);
        check("ext-plugin: {path_for_test: \"unix:r.sock\"}", &["default: |/gw/r.sock 1x256"]);
        check("ext-plugin: {cmd: [a, b], path_for_test: /r, connections: 8}", &["default: a b|/r 1x8"]);
        check(
            "ext-plugin:\n  cmd: [x]\n  runners: {py: {cmd: [py], processes: 4, watch: [plugins]}, go: {socket: /go}}",
            &["default: x| 1x256", "py: py| 4x256 watch /gw/plugins", "go: |/go 1x256"],
        );
    }

    #[test]
    fn faults() {
        check("ext-plugin: {cmd: []}", &["ext-plugin.cmd: a program and its arguments, got an empty list"]);
        check("ext-plugin: {runners: {a: {}}}", &["ext-plugin.runners.a: cmd or socket, got neither"]);
        check(
            "ext-plugin: {runners: {a: {cmd: x}}}",
            &["ext-plugin.runners.a.cmd: a list of texts, got something else"],
        );
        check(
            "ext-plugin: {runners: {a: {cmd: [x], prozesses: 2}}}",
            &["ext-plugin.runners.a.prozesses: a known key, unknown key"],
        );
        check(
            "ext-plugin: {runners: {a: {cmd: [x], processes: 0}, b: {socket: /b}}}",
            &["b: |/b 1x256", "ext-plugin.runners.a.processes: a whole number from 1 to 256, got 0"],
        );
        check(
            "ext-plugin: {runners: {\"a b\": {cmd: [x]}}}",
            &["ext-plugin.runners.a b: a name of letters, digits, - and _, got another one"],
        );
    }
}
