//! `portcullis plugin test`: one call to one plugin, and what it would do in words.

use std::fmt::Write as _;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use pingora::http::ResponseHeader;

use super::super::{Exit, print};
use super::Trial;
use crate::boot;
use crate::ext_plugin::call::{Answers, Caller, Subject, Terms};
use crate::ext_plugin::error::CallError;
use crate::ext_plugin::message::{Action, Entry, RequestCall, ResponseCall, ResponseChange};
use crate::ext_plugin::runner::{Limits, Runner};
use crate::net::{args, escape};
use crate::ops::telemetry;
use crate::settings::Settings;

/// Calls the plugin and prints what came of it.
pub fn run(trial: &Trial, settings: Option<&Settings>) -> Exit {
    let mut exchange = match Exchange::new(trial) {
        Ok(exchange) => exchange,
        Err(fault) => {
            eprintln!("{fault}");
            return Exit::Usage;
        }
    };
    telemetry::to_terminal();
    // Nobody else may listen in the place of the runner.
    let sockets = std::env::temp_dir().join(format!("portcullis-{}", std::process::id()));
    let made = DirBuilder::new().mode(0o700).create(&sockets);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = match made.and(runtime) {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{}: {error}", sockets.display());
            return Exit::Refused;
        }
    };
    let told = runtime.block_on(async {
        let runner = runner(trial, settings, &sockets)?;
        let conf = vec![(trial.plugin.clone(), trial.conf.clone())];
        let caller = Caller::new(Some(runner), "test#1", "portcullis", conf, Terms::default());
        exchange.pass(&caller).await
    });
    // The runner's end of the leash is closed with it.
    drop(runtime);
    let _ = std::fs::remove_dir_all(&sockets);
    match told {
        Ok(told) => print(&format!("{}{told}", exchange.asked)),
        Err(fault) => {
            eprintln!("{}the plugin cannot be called: {fault}", exchange.asked);
            Exit::Plugin
        }
    }
}

/// The runner that listens on the socket that was named, or one that is started as the gateway would.
fn runner(trial: &Trial, settings: Option<&Settings>, sockets: &Path) -> Result<Arc<Runner>, String> {
    if let Some(socket) = &trial.socket {
        return Ok(Arc::new(Runner::external("default", socket.clone(), Limits::default())));
    }
    let name = trial.runner.as_deref();
    let runner = settings.and_then(|settings| boot::start_runner(settings, name, sockets.to_owned()));
    runner.ok_or_else(|| match &trial.runner {
        Some(name) => format!("ext-plugin.runners of config.yaml has no runner {name}"),
        None => {
            "config.yaml has no runner: ext-plugin.cmd, path_for_test or runners; or say --socket".to_owned()
        }
    })
}

/// The request and the response that the plugin is shown.
struct Exchange<'t> {
    trial: &'t Trial,
    method: Method,
    path: Vec<u8>,
    query: &'t str,
    headers: HeaderMap,
    host: String,
    body: Option<Bytes>,
    response: Option<ResponseHeader>,
    response_body: Option<Bytes>,
    /// What the plugin asked for, a line each.
    asked: String,
}

impl<'t> Exchange<'t> {
    fn new(trial: &'t Trial) -> Result<Self, String> {
        let (path, query) = trial.target.split_once('?').unwrap_or((&trial.target, ""));
        let mut headers = HeaderMap::new();
        for (name, value) in pairs(&trial.headers)? {
            headers.append(name, value);
        }
        let host = headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or("127.0.0.1").to_owned();
        Ok(Self {
            trial,
            method: Method::from_bytes(trial.method.as_bytes()).map_err(|e| format!("--method: {e}"))?,
            path: escape::unescape_uri(path.as_bytes()).into_owned().into_bytes(),
            query,
            headers,
            host,
            body: content(trial.data.as_deref())?,
            response: trial.response.map(|status| head(status, &trial.response_headers)).transpose()?,
            response_body: content(trial.response_data.as_deref())?,
            asked: String::new(),
        })
    }

    /// What the plugin would do, in words.
    async fn pass(&mut self, caller: &Caller) -> Result<String, String> {
        let Some(head) = self.response.take() else {
            let action = caller.request(self).await.reply.map_err(|e| e.to_string())?;
            return Ok(told_of_request(&action));
        };
        let change =
            caller.response(&ResponseCall { head: &head }, self).await.reply.map_err(|e| e.to_string())?;
        Ok(told_of_response(&change))
    }

    /// A variable that was given, or that the request tells.
    fn find(&self, name: &str) -> Option<String> {
        let given = self.trial.vars.iter().filter_map(|var| var.split_once('='));
        if let Some((_, value)) = given.rev().find(|(given, _)| *given == name) {
            return Some(value.to_owned());
        }
        if let Some(arg) = name.strip_prefix("arg_") {
            return args::text(self.query.as_bytes(), arg).map(Into::into);
        }
        if let Some(header) = name.strip_prefix("http_") {
            let value = self.headers.get(header.replace('_', "-"))?;
            return Some(String::from_utf8_lossy(value.as_bytes()).into_owned());
        }
        match name {
            "uri" => Some(String::from_utf8_lossy(&self.path).into_owned()),
            "request_uri" => Some(self.trial.target.clone()),
            "args" | "query_string" => Some(self.query.to_owned()),
            "request_method" => Some(self.method.to_string()),
            "remote_addr" => Some(self.trial.client.to_string()),
            "host" => Some(self.host.clone()),
            "scheme" => Some("http".to_owned()),
            "status" => self.trial.response.map(|status| status.to_string()),
            _ => None,
        }
    }

    fn note(&mut self, what: &str, body: Option<&Bytes>) {
        let told = body.map_or("there is none".to_owned(), |body| format!("{} bytes", body.len()));
        let _ = writeln!(self.asked, "asked for {what}: {told}");
    }
}

impl Answers for Exchange<'_> {
    async fn var(&mut self, name: &str) -> Result<Option<Bytes>, CallError> {
        let value = self.find(name);
        let _ = match &value {
            Some(value) => writeln!(self.asked, "asked for ${name}: {value}"),
            None => writeln!(self.asked, "asked for ${name}: not set (--var {name}=VALUE sets it)"),
        };
        Ok(value.map(Into::into))
    }

    async fn request_body(&mut self) -> Result<Option<Bytes>, CallError> {
        let body = self.body.clone();
        self.note("the request's body", body.as_ref());
        Ok(body)
    }

    async fn response_body(&mut self) -> Result<Option<Bytes>, CallError> {
        let body = self.response_body.clone();
        self.note("the response's body", body.as_ref());
        Ok(body)
    }
}

impl Subject for Exchange<'_> {
    fn request(&self) -> RequestCall<'_> {
        RequestCall {
            client: self.trial.client,
            method: &self.method,
            path: &self.path,
            args: self.query,
            headers: &self.headers,
            host: Some(self.host.as_bytes()),
        }
    }
}

fn head(status: u16, headers: &[String]) -> Result<ResponseHeader, String> {
    let mut head = ResponseHeader::build(status, None).map_err(|e| format!("--response: {e}"))?;
    for (name, value) in pairs(headers)? {
        head.append_header(name, value).map_err(|e| format!("--response-header: {e}"))?;
    }
    Ok(head)
}

fn pairs(lines: &[String]) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let pair = |line: &String| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().parse().ok()?, HeaderValue::from_bytes(value.trim().as_bytes()).ok()?))
    };
    lines.iter().map(|line| pair(line).ok_or_else(|| format!("{line:?} is no header: NAME: VALUE"))).collect()
}

/// A body as it was given, or the file that was named.
fn content(given: Option<&str>) -> Result<Option<Bytes>, String> {
    match given.map(|given| (given, given.strip_prefix('@'))) {
        None => Ok(None),
        Some((_, Some(file))) => {
            let read = std::fs::read(file);
            read.map(|bytes| Some(bytes.into())).map_err(|e| format!("{file}: {e}"))
        }
        Some((text, None)) => Ok(Some(Bytes::copy_from_slice(text.as_bytes()))),
    }
}

fn told_of_request(action: &Action) -> String {
    match action {
        Action::None => "the request goes on unchanged\n".to_owned(),
        Action::Stop(stop) => {
            let status = if stop.status == 0 { 200 } else { stop.status };
            let mut told = format!("the plugin answers {}\n", worded(status));
            entries(&mut told, "header", &stop.headers);
            body(&mut told, &stop.body);
            told
        }
        Action::Rewrite(rewrite) => {
            let mut changes = String::new();
            if let Some(path) = &rewrite.path {
                let _ = writeln!(changes, "  path: {}", shown(path));
            }
            entries(&mut changes, "header", &rewrite.headers);
            entries(&mut changes, "argument", &rewrite.args);
            entries(&mut changes, "header of the response", &rewrite.response_headers);
            body(&mut changes, &rewrite.body);
            if changes.is_empty() {
                return told_of_request(&Action::None);
            }
            format!("the request goes on, changed:\n{changes}")
        }
    }
}

fn told_of_response(change: &ResponseChange) -> String {
    let mut changes = String::new();
    if change.status != 0 {
        let _ = writeln!(changes, "  status: {}", worded(change.status));
    }
    entries(&mut changes, "header", &change.headers);
    body(&mut changes, &change.body);
    if changes.is_empty() {
        return "the response goes on unchanged\n".to_owned();
    }
    format!("the response goes on, changed:\n{changes}")
}

/// A status with its words.
fn worded(status: u16) -> String {
    StatusCode::from_u16(status).map_or_else(|_| status.to_string(), |status| status.to_string())
}

fn entries(told: &mut String, what: &str, entries: &[Entry]) {
    for entry in entries {
        let name = shown(&entry.name);
        let _ = match &entry.value {
            Some(value) => writeln!(told, "  {what} {name}: {}", shown(value)),
            None => writeln!(told, "  {what} {name} is deleted"),
        };
    }
}

fn body(told: &mut String, body: &Bytes) {
    if !body.is_empty() {
        let _ = writeln!(told, "  body, {} bytes:\n{}", body.len(), shown(body));
    }
}

/// Text, without what would command a terminal.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let tame =
        |c: char| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(tame).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(action: Action, expected: &str) {
        assert_eq!(told_of_request(&action), expected);
    }

    fn entry(name: &'static str, value: Option<&'static str>) -> Entry {
        Entry {
            name: Bytes::from_static(name.as_bytes()),
            value: value.map(|v| Bytes::from_static(v.as_bytes())),
        }
    }

    #[test]
    fn decisions() {
        use crate::ext_plugin::message::{Rewrite, Stop};
        check(Action::None, "the request goes on unchanged\n");
        check(Action::Rewrite(Rewrite::default()), "the request goes on unchanged\n");
        let headers = vec![entry("X-A", Some("b\x1b[0m"))];
        check(
            Action::Stop(Stop { status: 403, headers: headers.clone(), body: "no".into() }),
            "the plugin answers 403 Forbidden\n  header X-A: b\u{fffd}[0m\n  body, 2 bytes:\nno\n",
        );
        check(
            Action::Rewrite(Rewrite {
                path: Some("/x".into()),
                headers: vec![entry("h", None)],
                args: vec![entry("a", Some("1"))],
                ..Rewrite::default()
            }),
            "the request goes on, changed:\n  path: /x\n  header h is deleted\n  argument a: 1\n",
        );
        assert_eq!(
            told_of_response(&ResponseChange { status: 202, ..ResponseChange::default() }),
            "the response goes on, changed:\n  status: 202 Accepted\n",
        );
    }
}
