//! The rules of the source tree: who may use whom, who may name what, and how files look.
//!
//! A failure names file and line and says what to do. The tables are the rules; a new exception needs a reason in
//! its row.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The modules of the library from the ground up. A module may use those of lower floors and nobody else: neighbours
/// on a floor do not know each other.
const FLOORS: &[(&[&str], &str)] = &[
    (&["yaml", "net", "schema", "compat"], "texts, addresses and rules: they know nothing of a gateway"),
    (&["vars", "settings", "trust"], "what requests and config.yaml are asked for; whom connections believe"),
    (&["resource", "secret"], "what users write"),
    (
        &["store", "upstream", "ext_plugin"],
        "where resources live; where requests go; who holds external plugins: none knows ours",
    ),
    (&["plugin"], "the contract of plugins: no plugin is named there"),
    (&["builtin"], "the plugins: they never see a snapshot"),
    (&["snapshot", "secret_source"], "everything compiled; the secret managers"),
    (&["control"], "the only one who swaps snapshots"),
    (&["ops"], "what operators see; requests are written down there"),
    (&["admin", "proxy"], "the two servers: neither knows the other"),
    (&["boot"], "the only assembler"),
    (&["cli"], "what people type"),
];

/// Uses that go upward all the same.
const UPWARD: &[(&str, &str, &str)] = &[("boot", "cli", "the banner is shown when the listeners are known")];

/// Names that belong to few files; a path that ends in `/` stands for everything below it.
const NAMES: &[(&str, &[&str], &str)] = &[
    ("serde_yaml", &["yaml.rs", "yaml/"], "the crate is no longer maintained and must stay replaceable"),
    (
        "ArcSwap",
        &["snapshot/mod.rs", "upstream/resolve.rs", "ext_plugin/runner.rs"],
        "a request sees one configuration and loads it once",
    ),
    ("ProxyHttp", &["proxy/"], "one implementation of the framework's proxy"),
    ("redb", &["store/embedded.rs", "store/embedded/"], "one store, one database"),
    ("pingora_load_balancing", &["upstream/"], "balancing belongs to upstreams"),
    ("hickory_resolver", &["upstream/resolve.rs"], "names are resolved in one place"),
    ("jsonwebtoken", &["builtin/shared/jwt/"], "tokens are read in one place"),
    ("argon2", &["builtin/basic_auth.rs"], "hashed passwords are one plugin's matter"),
    ("bcrypt", &["builtin/basic_auth.rs"], "hashed passwords are one plugin's matter"),
    ("aes", &["secret/encryption.rs"], "one cipher in one place"),
    ("cbc", &["secret/encryption.rs"], "one cipher in one place"),
    ("reqwest", &["builtin/shared/http_call.rs"], "calls to others have one set of bounds"),
    (
        "flatbuffers",
        &["ext_plugin/message.rs", "ext_plugin/proto.rs"],
        "messages are read and written in one place",
    ),
    (
        "unsafe",
        &["ext_plugin/proto.rs"],
        "only what flatc writes is unsafe; whatever else needs it has a safe crate",
    ),
    ("unsafe_code", &["ext_plugin/mod.rs"], "the one exception is declared there"),
    ("clap", &["cli.rs", "cli/"], "the command line ends there"),
    ("chrono", &["vars/clock.rs"], "one clock"),
    ("tracing_subscriber", &["ops/telemetry.rs"], "one place decides where logs go"),
    ("mimalloc", &["main.rs"], "a library does not choose the allocator"),
    (
        "read_request_body",
        &["plugin/body.rs", "admin/"],
        "a body that a proxied request read must be put back: plugin::body does both",
    ),
    ("anyhow", &["boot.rs", "boot/", "builtin/shared/"], "errors have types below boot"),
    ("std::env", &["settings/", "cli.rs", "cli/", "boot/"], "settings come from settings"),
    (
        "thread::sleep",
        &["boot/handover.rs", "ops/sink.rs", "store/embedded.rs"],
        "a worker thread that sleeps serves nobody",
    ),
    (
        "Mutex",
        &[
            "boot.rs",
            "control.rs",
            "admin/",
            "ops/",
            "store/",
            "upstream/peer.rs",
            "upstream/resolve.rs",
            "upstream/health/",
            "plugin/answer.rs",
            "plugin/env.rs",
            "plugin/metrics/",
            "secret/cache.rs",
            "secret_source/gcp.rs",
            "builtin/limit_count.rs",
            "builtin/openid_connect/provider.rs",
            "builtin/shared/",
            "ext_plugin/pool.rs",
            "ext_plugin/stats.rs",
            "ext_plugin/token.rs",
        ],
        "a lock on the way of a request needs a reason; add the file here with its why-comment beside the lock",
    ),
    (
        "RwLock",
        &[
            "admin/mod.rs",
            "admin/crud.rs",
            "ops/telemetry.rs",
            "plugin/metrics/family.rs",
            "store/catalog.rs",
        ],
        "readers wait for a writer: use an ArcSwap, or say beside the lock why nobody on the way of a request waits",
    ),
];

/// Texts that no file may contain.
const FORBIDDEN: &[(&str, &str)] = &[
    (concat!("TO", "DO"), "do it, or say in the documentation what is missing"),
    (concat!("FIX", "ME"), "fix it"),
    (concat!("todo", "!("), "do it"),
    (concat!("unimplemented", "!("), "implement it"),
    (concat!("#[", "ignore"), "a test that does not run is none"),
    (concat!("dbg", "!("), "use tracing"),
    (concat!("/ro", "ot/"), "a path of somebody's machine"),
    (concat!("/wo", "rk/"), "a path of somebody's machine"),
    (concat!("/tmp", "/ref"), "a path of somebody's machine"),
    (concat!("crates", ".io"), "name no registry: the tools know theirs"),
    (concat!("docker", ".io"), "name no registry: the tools know theirs"),
    (concat!("pypi", ".org"), "name no registry: the tools know theirs"),
    (concat!("npmjs", ".org"), "name no registry: the tools know theirs"),
];

/// Crates that are in the manifest ahead of the plugins that need them, so that their branches do not collide over it.
/// Take the row out with the first use.
const AHEAD: &[&str] = &["flatbuffers"];

/// No file is longer.
const MAX_LINES: usize = 800;

/// Written by programs, from what people read instead.
const GENERATED: &[&str] = &["src/ext_plugin/proto.rs"];

/// Files that only tests see, besides those under `tests/`.
const TEST_FILES: &[&str] = &["tests.rs", "testing.rs", "conformance.rs", "oracle.rs", "allocations.rs"];

/// A source file.
struct Source {
    path: PathBuf,
    /// From `src/` on, with `/`.
    name: String,
    text: String,
}

impl Source {
    /// `net` for `net/uri.rs` and for `net.rs`.
    fn module(&self) -> &str {
        self.name.split(['/', '.']).next().unwrap_or_default()
    }

    fn is_test(&self) -> bool {
        self.name.contains("/tests/") || TEST_FILES.iter().any(|file| self.name.ends_with(file))
    }

    /// The lines that are not test code, with their numbers and without their comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.text.find("#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        let lines = self.text[..end].lines().enumerate();
        lines.map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
    }

    fn fault(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path.display())
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(directory: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            // what builds of the external plugins leave behind is nobody's text
            let name = entry.file_name();
            if !["target", "node_modules", "dist"].iter().any(|made| name == *made)
                && !name.to_string_lossy().starts_with('.')
            {
                files(&path, out);
            }
        } else {
            out.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    files(&root().join("src"), &mut paths);
    paths.sort();
    let source = |path: PathBuf| {
        let name =
            path.strip_prefix(root().join("src")).expect("it lies below src").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("sources are text");
        Source { path: path.strip_prefix(root()).expect("as above").to_owned(), name, text }
    };
    paths.into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "rs")).map(source).collect()
}

#[track_caller]
fn none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|(modules, _)| modules.contains(&module))
}

/// The modules that a text names after `crate::`, with their places.
fn uses(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        if text[..at].ends_with("$")
            || text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_')
        {
            continue;
        }
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(first_names(list).into_iter().map(|name| (at, name))),
            None => found.extend(first_name(rest).map(|name| (at, name))),
        }
    }
    found
}

fn first_name(text: &str) -> Option<String> {
    let name: String = text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// `a::b, c::{d, e}, f}` names a, c and f.
fn first_names(list: &str) -> Vec<String> {
    let (mut depth, mut names, mut start) = (0, Vec::new(), 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.extend(first_name(&list[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.extend(first_name(&list[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn uses_are_found() {
    let names = |text: &str| uses(text).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    assert_eq!(names("use crate::net::uri;"), ["net"]);
    assert_eq!(names("use crate::{\n    net::{uri, host},\n    vars,\n};"), ["net", "vars"]);
    assert_eq!(names("x(crate::a::b(), $crate::c, mycrate::d)"), ["a"]);
}

#[test]
fn modules_use_lower_floors_only() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let own = source.module();
        if own == "main" || own == "lib" {
            continue;
        }
        let Some(own_floor) = floor(own) else {
            faults.push(
                source.fault(1, &format!("`{own}` stands on no floor: add it to FLOORS in tests/tidy.rs")),
            );
            continue;
        };
        let code: Vec<&str> = source.code().map(|(_, line)| line).collect();
        let code = code.join("\n");
        for (at, used) in uses(&code) {
            let upward = UPWARD.iter().any(|(from, to, _)| *from == own && *to == used);
            if used == own || upward || floor(&used).is_some_and(|floor| floor < own_floor) {
                continue;
            }
            let line = code[..at].lines().count().max(1);
            let what =
                format!("`{own}` may not use `{used}`: move what both need to a lower floor, or hand it in");
            faults.push(source.fault(line, &what));
        }
    }
    none(&faults);
}

/// Whether code names a crate, type or function; `builtin::prometheus` does not name `prometheus`.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        let joined = |c: char| c.is_alphanumeric() || c == '_';
        let quoted = before.matches('"').count() % 2 == 1;
        !quoted && !before.ends_with(joined) && !after.starts_with(joined)
    })
}

#[test]
fn names_stay_where_they_belong() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        for (word, places, why) in NAMES {
            let here = |place: &str| {
                source.name == place || (place.ends_with('/') && source.name.starts_with(place))
            };
            if places.iter().any(|place| here(place)) {
                continue;
            }
            for (line, _) in source.code().filter(|(_, code)| names(code, word)) {
                faults.push(source.fault(line, &format!("`{word}` belongs to {}: {why}", places.join(", "))));
            }
        }
    }
    none(&faults);
}

#[test]
fn every_module_says_what_it_is_for() {
    let mut faults = Vec::new();
    for source in sources() {
        // `mod tests` of a module that says it already.
        if !source.name.ends_with("/tests.rs") && !source.text.starts_with("//! ") {
            faults
                .push(source.fault(1, "begin with `//!`: what the module is for, and what it must never do"));
        }
    }
    none(&faults);
}

/// Everything that people read or run.
fn readable() -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for directory in ["src", "tests", "bench", "conf", ".ci", "plugins"] {
        files(&root().join(directory), &mut paths);
    }
    for entry in fs::read_dir(root()).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_file() && path.file_name().is_some_and(|name| name != "Cargo.lock" && name != ".git") {
            paths.push(path);
        }
    }
    let generated = ["json", "svg", "pem", "redb", "lock"];
    paths.retain(|path| path.extension().is_none_or(|kind| generated.iter().all(|one| kind != *one)));
    paths
}

#[test]
fn files_are_short_and_clean() {
    let mut faults = Vec::new();
    for path in readable() {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        let count = text.lines().count();
        if count > MAX_LINES && name.ends_with(".rs") && !GENERATED.contains(&name.as_str()) {
            faults.push(format!(
                "{name}:{count}: longer than {MAX_LINES} lines: split it where its subject does"
            ));
        }
        for (index, line) in text.lines().enumerate() {
            for (word, why) in FORBIDDEN.iter().filter(|(word, _)| line.contains(word)) {
                faults.push(format!("{name}:{}: {word:?}: {why}", index + 1));
            }
        }
    }
    none(&faults);
}

/// `module::test` between backticks.
fn named_tests(text: &str) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let spans = text.split('`').skip(1).step_by(2);
    spans.filter(|span| span.contains("::") && span.chars().all(is_name)).map(str::to_owned).collect()
}

#[test]
fn tests_that_the_list_of_the_tutorial_names_exist() {
    let text = fs::read_to_string(root().join("docs/article.md")).expect("the list is there");
    let names = named_tests(&text);
    assert!(names.len() > 10, "{names:?}");
    let mut faults = Vec::new();
    for name in names {
        let (module, test) = name.rsplit_once("::").expect("it has a module");
        let path = root().join("tests").join(module.replace("::", "/"));
        let file = fs::read_to_string(path.with_extension("rs"))
            .or_else(|_| fs::read_to_string(path.join("mod.rs")));
        if !file.unwrap_or_default().contains(&format!("#[test]\nfn {test}()")) {
            faults.push(format!(
                "docs/article.md names {name}, which is no test: name the one that replays the step"
            ));
        }
    }
    none(&faults);
}

/// The plugins in the order of the registry.
fn registry() -> Vec<String> {
    let text = fs::read_to_string(root().join("src/builtin/mod.rs")).unwrap();
    let list =
        text.split("registry! {").nth(1).and_then(|rest| rest.split('}').next()).expect("the registry");
    list.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
}

#[test]
fn every_plugin_is_registered_in_order_and_has_tests() {
    let mut faults = Vec::new();
    let registered = registry();
    let priorities = priorities();
    for pair in registered.windows(2) {
        let number = |name: &str| priorities.get(name).copied().unwrap_or(i64::MIN);
        if number(&pair[0]) <= number(&pair[1]) {
            faults
                .push(format!("src/builtin/mod.rs: {} comes before {}: sort by priority", pair[1], pair[0]));
        }
    }
    let mut tests: BTreeMap<String, bool> = BTreeMap::new();
    for source in sources() {
        let Some(rest) = source.name.strip_prefix("builtin/") else { continue };
        let plugin = rest.split(['/', '.']).next().unwrap_or_default().to_owned();
        if !["mod", "shared"].contains(&plugin.as_str()) {
            *tests.entry(plugin).or_default() |=
                source.text.contains("#[test]") || source.text.contains("#[tokio::test");
        }
    }
    for (plugin, tested) in &tests {
        if !registered.contains(plugin) {
            faults.push(format!("src/builtin/{plugin}.rs: add it to registry! in src/builtin/mod.rs"));
        }
        if !tested {
            faults.push(format!("src/builtin/{plugin}.rs: write tests beside it"));
        }
    }
    assert!(
        !registered.is_empty() && registered.iter().all(|plugin| tests.contains_key(plugin)),
        "{registered:?}"
    );
    none(&faults);
}

/// What the program itself says; the names with underscores, as files have them.
fn priorities() -> BTreeMap<String, i64> {
    let text = crate::support::tool::stdout(crate::support::gateway::PROGRAM, &["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
    let plugins = schema["plugins"].as_object().expect("plugins");
    let priority = |plugin: &serde_json::Value| plugin["priority"].as_i64().expect("a priority");
    plugins.iter().map(|(name, plugin)| (name.replace('-', "_"), priority(plugin))).collect()
}

#[test]
fn every_dependency_is_used() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).and_then(|rest| rest.split("\n[").next());
    let sources = sources();
    let mut faults = Vec::new();
    for line in section.expect("dependencies").lines() {
        let Some((name, _)) = line.split_once(" = ") else { continue };
        let krate = name.trim().replace('-', "_");
        if line.starts_with('#')
            || AHEAD.contains(&name.trim())
            || sources.iter().any(|source| source.code().any(|(_, code)| names(code, &krate)))
        {
            continue;
        }
        faults.push(format!("Cargo.toml: nothing in src names `{name}`: remove it"));
    }
    none(&faults);
}
