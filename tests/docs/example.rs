//! Examples of a page: finding them, typing them into a shell, comparing what comes back.

use std::{
    collections::HashMap,
    fs,
    io::Read,
    net::TcpStream,
    os::unix::{fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use nix::{sys::signal::Signal, unistd::Pid};

use crate::support::{
    PATIENCE, eventually,
    gateway::{Gateway, KEY, PROGRAM, Setup, free_port},
};

/// Where the pages are.
pub const PAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/plugins");

/// Beginnings of lines whose rest differs from run to run.
const VOLATILE: [&str; 6] = [
    "X-RateLimit-Reset: ",
    "x-request-id: 0",
    "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.",
    "apisix_bandwidth{type=\"ingress\",route=\"1\",",
    "apisix_bandwidth{type=\"egress\",route=\"1\",",
    "apisix_http_status{code=\"200\",route=\"1\",",
];

/// Pages whose answers depend on how fast the machine is or another server answers, or on a count that is made after the
/// answer: what they show comes true, but not always at once.
const EVENTUAL: [&str; 6] =
    ["forward-auth", "limit-conn", "limit-req", "opa", "openid-connect", "prometheus"];

/// The names of the plugins that have pages.
pub fn pages() -> impl Iterator<Item = String> {
    let mut names: Vec<String> = fs::read_dir(PAGES)
        .expect("the pages are there")
        .filter_map(|file| file.ok()?.file_name().to_str()?.strip_suffix(".md").map(str::to_owned))
        .filter(|name| name != "README")
        .collect();
    names.sort();
    names.into_iter()
}

/// A page's text.
#[track_caller]
pub fn read(page: &str) -> String {
    fs::read_to_string(Path::new(PAGES).join(format!("{page}.md"))).unwrap_or_else(|e| panic!("{page}: {e}"))
}

/// One thing to type, and what is shown after it.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub script: String,
    pub answer: Option<String>,
}

/// The first block of a language.
pub fn block<'t>(text: &'t str, language: &str) -> Option<&'t str> {
    blocks(text).find(|(known, _)| *known == language).map(|(_, text)| text)
}

/// Every block with its language, in order.
fn blocks(text: &str) -> impl Iterator<Item = (&str, &str)> {
    // Outside and inside take turns.
    text.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap_or((block, "")))
}

/// What stands under "Example".
pub fn steps(page: &str) -> Vec<Step> {
    let (_, rest) = page.split_once("\n## Example\n").unwrap_or_default();
    let example = rest.split("\n## ").next().unwrap_or_default();
    let mut steps: Vec<Step> = Vec::new();
    for (language, text) in blocks(example) {
        match (language, steps.last_mut()) {
            ("bash", _) => steps.push(Step { script: text.to_owned(), answer: None }),
            ("", Some(step)) if step.answer.is_none() => step.answer = Some(text.to_owned()),
            _ => {}
        }
    }
    steps
}

/// A gateway, the upstream of README.md and a shell.
pub struct Desk {
    gateway: Gateway,
    replaced: HashMap<String, String>,
    upstream: Child,
    background: std::sync::Mutex<Vec<Child>>,
}

impl Desk {
    /// Starts them. `ports` are those that the page names, and where they are.
    #[track_caller]
    pub fn new(setup: Setup, ports: &[(u16, u16)]) -> Self {
        let upstream = free_port();
        let gateway = setup.start();
        let mut replaced: HashMap<String, String> = [
            (1980, upstream),
            (9080, gateway.ports.http),
            (9180, gateway.ports.admin),
            (9091, gateway.ports.metrics),
        ]
        .iter()
        .chain(ports)
        .map(|(from, to)| (format!("127.0.0.1:{from}"), format!("127.0.0.1:{to}")))
        .collect();
        replaced.extend(
            ports.iter().map(|(from, to)| (format!("127.0.0.1%3A{from}"), format!("127.0.0.1%3A{to}"))),
        );
        let (from, to) = (gateway.ports.http, "127.0.0.1%3A9080".to_owned());
        replaced.insert(to, format!("127.0.0.1%3A{from}"));
        replaced.insert("http.server 1980".into(), format!("http.server {upstream}"));
        let bin = gateway.path("bin");
        fs::create_dir(&bin).expect("a directory can be made");
        symlink(PROGRAM, bin.join("portcullis")).expect("a link can be made");
        let readme = read("README");
        let script = replace(&replaced, block(&readme, "bash").expect("what the examples assume"));
        // The upstream runs in the background of this shell.
        let mut child = shell(&gateway, &format!("{script}\necho \"$KEY\" > key\nwait\n"));
        drop(child.stdout.take());
        let desk = Self { gateway, replaced, upstream: child, background: Default::default() };
        eventually("the upstream of the examples listens", || {
            TcpStream::connect(("127.0.0.1", upstream)).is_ok()
        });
        eventually("the key is shown", || {
            fs::read_to_string(desk.gateway.path("key")).is_ok_and(|key| key.trim() == KEY)
        });
        desk
    }

    /// Another text that changes.
    pub fn replace(&mut self, from: &str, to: &str) {
        self.replaced.insert(from.to_owned(), to.to_owned());
    }

    /// A page's steps, with the ports of here.
    #[track_caller]
    pub fn steps(&self, page: &str) -> Vec<Step> {
        let here = |text: &str| replace(&self.replaced, text);
        let steps = steps(&read(page)).into_iter();
        steps
            .map(|step| Step { script: here(&step.script), answer: step.answer.as_deref().map(here) })
            .collect()
    }

    /// Runs a page.
    #[track_caller]
    pub fn run(&self, page: &str) {
        if page == "limit-conn" {
            // The large file of that page.
            fs::write(self.gateway.path("www/big"), vec![0; 20 << 20]).expect("a file can be written");
        }
        let steps = self.steps(page);
        assert!(steps.iter().any(|step| step.answer.is_some()), "{page}.md has no example with an answer");
        self.all(page, &steps);
    }

    /// Runs some steps of a page.
    #[track_caller]
    pub fn all(&self, page: &str, steps: &[Step]) {
        for step in steps {
            match &step.answer {
                None => self.prepare(page, &step.script),
                Some(answer) => self.compare(page, &step.script, answer),
            }
        }
    }

    /// What only prepares must succeed.
    #[track_caller]
    fn prepare(&self, page: &str, script: &str) {
        if script.contains("py-runner start") {
            return self.start_runner(script);
        }
        let told = self.shell(script);
        assert!(told.contains("\"value\"") && !told.contains("error_msg"), "{page}.md:\n{script}\n{told}");
    }

    #[track_caller]
    fn compare(&self, page: &str, script: &str, answer: &str) {
        let begun = Instant::now();
        loop {
            let told = self.shell(script);
            match difference(&told, answer) {
                None => return,
                Some(_) if EVENTUAL.contains(&page) && begun.elapsed() < PATIENCE => {}
                Some(line) => {
                    panic!("{page}.md: at {line:?}\n--- typed\n{script}--- shown\n{answer}--- got\n{told}")
                }
            }
        }
    }

    /// Types something in; what it prints.
    #[track_caller]
    pub fn shell(&self, script: &str) -> String {
        let mut child = shell(&self.gateway, script);
        let mut told = String::new();
        let mut output = child.stdout.take().expect("it is a pipe");
        output.read_to_string(&mut told).unwrap_or_else(|e| panic!("{script}: {e}"));
        end(&mut child);
        told
    }

    /// A runner that runs beside the example.
    #[track_caller]
    fn start_runner(&self, script: &str) {
        let mut command = bash(&self.gateway, script);
        let child = command.current_dir(env!("CARGO_MANIFEST_DIR")).stdout(Stdio::null()).spawn();
        self.background.lock().unwrap().push(child.expect("bash can be run"));
        let socket = PathBuf::from(&self.replaced["/tmp/runner.sock"]);
        eventually("the runner listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    }

    /// Forgets what a page made.
    #[track_caller]
    pub fn clear(&self) {
        for kind in ["routes", "consumers"] {
            let list = self.gateway.admin("GET", &format!("/{kind}")).send().expect(200).json();
            for one in list["list"].as_array().into_iter().flatten() {
                let key = one["key"].as_str().and_then(|key| key.rsplit('/').next()).expect("a key");
                self.gateway.delete(&format!("/{kind}/{key}"));
            }
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        end(&mut self.upstream);
        for child in self.background.lock().unwrap().iter_mut() {
            end(child);
        }
    }
}

fn replace(replaced: &HashMap<String, String>, text: &str) -> String {
    // In one walk, so that a port that was put in is not taken for another one.
    let mut out = String::new();
    let mut rest = text;
    'walk: while let Some(first) = rest.chars().next() {
        for (from, to) in replaced {
            if let Some(after) = rest.strip_prefix(from.as_str())
                && !after.starts_with(|c: char| c.is_ascii_digit())
            {
                out.push_str(to);
                rest = after;
                continue 'walk;
            }
        }
        out.push(first);
        rest = &rest[first.len_utf8()..];
    }
    out
}

fn bash(gateway: &Gateway, script: &str) -> Command {
    let path = format!("{}:{}", gateway.path("bin").display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    command.args(["-c", script]).current_dir(gateway.path("")).process_group(0).stdin(Stdio::null());
    command.env("PATH", path).env("KEY", KEY).stdout(Stdio::piped());
    command
}

#[track_caller]
fn shell(gateway: &Gateway, script: &str) -> Child {
    bash(gateway, script).stderr(Stdio::null()).spawn().expect("bash can be run")
}

/// Ends a shell and what it started, which is a process group of this test's own.
fn end(child: &mut Child) {
    let group = Pid::from_raw(i32::try_from(child.id()).expect("process numbers are small"));
    let _ = nix::sys::signal::killpg(group, Signal::SIGKILL);
    let _ = child.wait();
}

/// The line of an answer that is not in what came back; `None` if all are.
fn difference(told: &str, answer: &str) -> Option<String> {
    let mut told = told.lines().map(|line| line.trim_end_matches('\r')).peekable();
    let shown: Vec<&str> = answer.lines().collect();
    let mut head = false;
    for (at, line) in shown.iter().enumerate() {
        let begins = line.starts_with("HTTP/1.1 ");
        if head && !begins && !line.is_empty() {
            // Headers that are not shown say nothing about the plugin.
            while told.peek().is_some_and(|other| !other.is_empty() && !same(other, line, true)) {
                told.next();
            }
        }
        if line.is_empty() && head {
            while told.next_if(|other| !other.is_empty()).is_some() {}
        }
        if begins && at > 0 {
            // Behind an answer whose body is not shown comes the next one.
            while told.next_if(|other| !other.starts_with("HTTP/1.1 ")).is_some() {}
        }
        if !told.next().is_some_and(|other| same(other, line, head)) {
            return Some((*line).to_owned());
        }
        head = (head || begins) && !line.is_empty();
        if line.ends_with('…') && !head {
            while told.next_if(|other| !other.starts_with("HTTP/1.1 ")).is_some() {}
        }
    }
    // Without an empty line there was no body to be shown.
    if head { None } else { told.next().map(|line| format!("and then {line:?}")) }
}

/// Whether a line is the one that is shown; names of headers may be written either way.
fn same(told: &str, shown: &str, header: bool) -> bool {
    if let Some(shown) = shown.strip_suffix('…') {
        return match header {
            true => told.len() >= shown.len() && same_header(&told[..shown.len()], shown),
            false => told.starts_with(shown),
        };
    }
    let volatile = VOLATILE.iter().any(|start| {
        let begins = |line: &str| line.get(..start.len()).is_some_and(|own| own.eq_ignore_ascii_case(start));
        begins(told) && begins(shown)
    });
    volatile || told == shown || header && same_header(told, shown)
}

fn same_header(told: &str, shown: &str) -> bool {
    match (told.split_once(':'), shown.split_once(':')) {
        (Some((name, value)), Some((other, expected))) => {
            name.eq_ignore_ascii_case(other) && value == expected
        }
        _ => false,
    }
}

#[test]
fn steps_are_found() {
    let page = "# x\n```bash\nno\n```\n## Example\n\n```bash\na\n```\ntext\n```bash\nb\n```\n\n```\nc\n```\n\n```json\n{}\n```\n\n## Differences\n```bash\nd\n```\n";
    let step = |script: &str, answer: Option<&str>| Step {
        script: script.to_owned(),
        answer: answer.map(str::to_owned),
    };
    assert_eq!(steps(page), [step("a\n", None), step("b\n", Some("c\n"))]);
}

#[test]
fn answers_are_compared() {
    let told = "HTTP/1.1 401 Unauthorized\r\nDate: x\r\nWWW-Authenticate: a b\r\nServer: y\r\n\r\nno\n";
    let check = |answer: &str, differs: Option<&str>| {
        assert_eq!(difference(told, answer).as_deref(), differs, "{answer}");
    };
    check("HTTP/1.1 401 Unauthorized\nwww-authenticate: a b\n\nno\n", None);
    check("HTTP/1.1 401 Unauthorized\n\nno\n", None);
    check("HTTP/1.1 401 Unauthorized\nwww-authenticate: a…\n", None);
    check("HTTP/1.1 401 Unauthorized\n\nn…\n", None);
    check("HTTP/1.1 200 OK\n", Some("HTTP/1.1 200 OK"));
    check("HTTP/1.1 401 Unauthorized\nwww-authenticate: a\n\nno\n", Some("www-authenticate: a"));
    check("HTTP/1.1 401 Unauthorized\n\nyes\n", Some("yes"));
    assert_eq!(difference("a\nb\n", "a\n").as_deref(), Some("and then \"b\""));
    assert_eq!(difference("a\n", "a\nb\n").as_deref(), Some("b"));
    assert_eq!(
        difference("HTTP/1.1 200 OK\n\na\nHTTP/1.1 404 No\n\nb\n", "HTTP/1.1 200 OK\nHTTP/1.1 404 No\n\nb\n"),
        None
    );
}
