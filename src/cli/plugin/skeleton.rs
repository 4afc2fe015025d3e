//! `portcullis plugin new`: a plugin that works, with its runner and the configuration of a gateway.
//!
//! The files are those of `plugins/`, so that what is written here is what is tested there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::{Exit, print};
use super::Language;

/// Names are parts of file names and of classes.
const LONGEST_NAME: usize = 63;

/// A path below the new directory, and what stands there.
type File = (&'static str, &'static str);

/// Files of `plugins/$from`, which come to lie in `$to`.
macro_rules! files {
    ($from:literal => $to:literal: $($path:literal),+ $(,)?) => {
        &[$((concat!($to, $path), include_str!(concat!("../../../plugins/", $from, "/", $path)))),+]
    };
}

const PYTHON: &[File] = files!("python" => "runner/":
    "LICENSE",
    "bin/py-runner",
    "apisix/__init__.py",
    "apisix/py.typed",
    "apisix/plugins/__init__.py",
    "apisix/runner/__init__.py",
    "apisix/runner/__main__.py",
    "apisix/runner/calls.py",
    "apisix/runner/channel.py",
    "apisix/runner/cli.py",
    "apisix/runner/confs.py",
    "apisix/runner/server.py",
    "apisix/runner/wire.py",
    "apisix/runner/http/__init__.py",
    "apisix/runner/http/request.py",
    "apisix/runner/http/response.py",
    "apisix/runner/plugin/__init__.py",
    "apisix/runner/plugin/core.py",
);

const NODE: &[File] = files!("node" => "runner/":
    "LICENSE",
    "package.json",
    "package-lock.json",
    "tsconfig.json",
    "bin/runner.js",
    "src/cli.ts",
    "src/confs.ts",
    "src/connection.ts",
    "src/http.ts",
    "src/index.ts",
    "src/plugins.ts",
    "src/processes.ts",
    "src/server.ts",
    "src/wire.ts",
);

const GO: &[File] = files!("go" => "": "Makefile", "go.mod", "go.sum", "main.go");

const JAVA: &[File] = files!("java" => "":
    "Makefile",
    "pom.xml",
    "src/main/java/portcullis/plugins/Main.java",
    "src/main/resources/application.yaml",
);

const README: &str = include_str!("../../../plugins/skeleton/README.md");
const CONFIG: &str = include_str!("../../../plugins/skeleton/config.yaml");
const ROUTES: &str = include_str!("../../../plugins/skeleton/apisix.yaml");

const PYTHON_MAKEFILE: &str = ".PHONY: build run test
build: ## nothing has to be built
\t@python3 -c 'import sys; sys.exit(\"Python 3.9 or newer is needed\" if sys.version_info < (3, 9) else 0)'

run: build ## in the foreground, where `ext-plugin.path_for_test` of a gateway looks
\tAPISIX_LISTEN_ADDRESS=$${APISIX_LISTEN_ADDRESS:-unix:/tmp/runner.sock} exec python3 runner/bin/py-runner start --plugins plugins

test: build
";

const NODE_MAKEFILE: &str = ".PHONY: build run test
build: runner/dist/made ## the runner; the plugin needs no building

run: build ## in the foreground, where `ext-plugin.path_for_test` of a gateway looks
\tAPISIX_LISTEN_ADDRESS=$${APISIX_LISTEN_ADDRESS:-unix:/tmp/runner.sock} exec node runner/bin/runner.js plugins

runner/dist/made: runner/package-lock.json runner/tsconfig.json $(wildcard runner/src/*.ts)
\tcd runner && npm ci --no-audit --no-fund --ignore-scripts && npm run --silent build
\t@touch $@

test: build
\tfor file in plugins/*.js; do node --check $$file || exit 1; done
";

/// What every Makefile ends with, after what the language itself tests: the plugin is called.
const TRIALS: &str = "\tportcullis plugin test -c conf/config.yaml {NAME} /hello
\tportcullis plugin test -c conf/config.yaml {NAME} '/hello?stop=1'
\tportcullis plugin test -c conf/config.yaml {NAME} --response 200
";

/// What differs between the languages.
struct Kind {
    language: &'static str,
    needs: &'static str,
    /// What does not depend on the plugin's name.
    files: &'static [File],
    makefile: Option<&'static str>,
    plugin: &'static str,
    /// Where the plugin lies; `{NAME}` and `{CLASS}` stand in it.
    path: &'static str,
    /// The words that start the runner; those that begin with `/` lie in the directory.
    cmd: &'static [&'static str],
    watch: &'static str,
    /// What has to be done after a change.
    rebuild: &'static str,
    /// Where more is written.
    more: &'static str,
}

impl Language {
    fn kind(self) -> Kind {
        match self {
            Language::Python => Kind {
                language: "Python",
                needs: "Python 3.9 or newer and nothing else; the runner lies in `runner`",
                files: PYTHON,
                makefile: Some(PYTHON_MAKEFILE),
                plugin: include_str!("../../../plugins/skeleton/python/plugin.py"),
                path: "plugins/{MODULE}.py",
                cmd: &["python3", "/runner/bin/py-runner", "start", "--plugins", "/plugins"],
                watch: "/plugins",
                rebuild: "",
                more: "Every module in `plugins` may have plugins.",
            },
            Language::Node => Kind {
                language: "JavaScript",
                needs: "Node 20 or newer; the runner lies in `runner`",
                files: NODE,
                makefile: Some(NODE_MAKEFILE),
                plugin: include_str!("../../../plugins/skeleton/node/plugin.js"),
                path: "plugins/{NAME}.js",
                cmd: &["node", "/runner/bin/runner.js", "/plugins"],
                watch: "/plugins",
                rebuild: "",
                more: "Every file in `plugins` may have a plugin.",
            },
            Language::Go => Kind {
                language: "Go, on Apache's module",
                needs: "Go 1.19 or newer",
                files: GO,
                makefile: None,
                plugin: include_str!("../../../plugins/skeleton/go/plugin.go"),
                path: "plugins/plugin.go",
                cmd: &["/runner", "run"],
                watch: "/runner",
                rebuild: " and say `make build`",
                more: "A body that `r.Body()` or `w.ReadBody()` cannot read gives an error: answer it, or the request passes.",
            },
            Language::Java => Kind {
                language: "Java, on Apache's module",
                needs: "Java 11 or newer and Maven",
                files: JAVA,
                makefile: None,
                plugin: include_str!("../../../plugins/skeleton/java/Plugin.java"),
                path: "src/main/java/portcullis/plugins/{CLASS}.java",
                cmd: &["java", "-XX:TieredStopAtLevel=1", "-jar", "/target/plugins.jar"],
                watch: "/target/plugins.jar",
                rebuild: " and say `make build`",
                more: "Every `@Component` of the package that is a `PluginFilter` is a plugin.",
            },
        }
    }
}

/// Writes it into a new directory of the plugin's name.
pub fn write(language: Language, name: &str) -> Exit {
    if !is_name(name) {
        eprintln!("{name:?} is no name of a plugin: lower-case letters, digits and -, a letter first");
        return Exit::Usage;
    }
    match lay(language, name) {
        Ok(directory) => print(&format!(
            "{0} is there; {0}/README.md tells how it is built, tried out and run\n",
            directory.display()
        )),
        Err((path, error)) => {
            eprintln!("{}: {error}", path.display());
            Exit::Refused
        }
    }
}

fn is_name(name: &str) -> bool {
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.ends_with('-');
    let all = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    begins && all && name.len() <= LONGEST_NAME
}

/// `rate-card` → `RateCardPlugin`: no class of a language has such a name.
fn class(name: &str) -> String {
    let part = |part: &str| {
        let mut letters = part.chars();
        letters
            .next()
            .map(|first| first.to_ascii_uppercase().to_string() + letters.as_str())
            .unwrap_or_default()
    };
    let joined: String = name.split('-').map(part).collect();
    if joined.ends_with("Plugin") && joined != "Plugin" { joined } else { joined + "Plugin" }
}

fn lay(language: Language, name: &str) -> Result<PathBuf, (PathBuf, io::Error)> {
    let relative = PathBuf::from(name);
    let home = std::path::absolute(&relative).map_err(|error| (relative.clone(), error))?;
    // What is there already may be somebody's work.
    fs::create_dir(&home).map_err(|error| (relative.clone(), error))?;
    for (path, text) in files(language, name, &home) {
        let path = home.join(path);
        let parent = path.parent().unwrap_or(&home);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text))
            .map_err(|error| (path.clone(), error))?;
    }
    Ok(relative)
}

/// Everything that is written.
fn files(language: Language, name: &str, home: &Path) -> Vec<(String, String)> {
    let kind = language.kind();
    let lies = |word: &str| match word.strip_prefix('/') {
        Some(below) => home.join(below).display().to_string(),
        None => word.to_owned(),
    };
    let cmd: Vec<String> = kind.cmd.iter().map(|word| lies(word)).collect();
    let (class, module) = (class(name), name.replace('-', "_"));
    let module = if language == Language::Python { format!("{module}_plugin") } else { module };
    let fill = |text: &str| {
        let names = [("{NAME}", name), ("{CLASS}", &class), ("{MODULE}", &module)];
        names.iter().fold(text.to_owned(), |text, (place, word)| text.replace(place, word))
    };
    let path = fill(kind.path);
    let readme = README
        .replace("{LANGUAGE}", kind.language)
        .replace("{PLUGIN}", &path)
        .replace("{NEEDS}", kind.needs)
        .replace("{REBUILD}", kind.rebuild)
        .replace("{MORE}", kind.more);
    let config = CONFIG
        .replace("{CMD}", &serde_json::json!(cmd).to_string())
        .replace("{WATCH}", &serde_json::json!([lies(kind.watch)]).to_string());
    let made = [
        (path, kind.plugin),
        ("README.md".to_owned(), &readme),
        ("conf/config.yaml".to_owned(), &config),
        ("conf/apisix.yaml".to_owned(), ROUTES),
    ];
    let makefile = kind.makefile.map(|text| ("Makefile", text));
    let as_is = kind.files.iter().copied().chain(makefile);
    let mut all: Vec<(String, String)> =
        as_is.map(|(path, text)| (path.to_owned(), text.to_owned())).collect();
    all.extend(made.into_iter().map(|(path, text)| (path, fill(text))));
    for (_, text) in all.iter_mut().filter(|(path, _)| path == "Makefile") {
        text.push_str(&fill(TRIALS));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expected: Option<&str>) {
        assert_eq!(is_name(name).then(|| class(name)).as_deref(), expected, "{name}");
    }

    #[test]
    fn names() {
        check("hello", Some("HelloPlugin"));
        check("rate-card2", Some("RateCard2Plugin"));
        check("my-plugin", Some("MyPlugin"));
        check("plugin", Some("PluginPlugin"));
        check("main", Some("MainPlugin"));
        for wrong in ["", "-", "a-", "Hello", "2a", "a_b", "../a", "a/b", "ä"] {
            check(wrong, None);
        }
    }

    #[test]
    fn nothing_is_left_unfilled() {
        for language in [Language::Python, Language::Node, Language::Go, Language::Java] {
            let all = files(language, "hello", Path::new("/srv/hello"));
            let own = all.iter().rev().take(4);
            for (path, text) in own {
                let words = [
                    "NAME", "CLASS", "MODULE", "LANGUAGE", "PLUGIN", "NEEDS", "REBUILD", "MORE", "CMD",
                    "WATCH",
                ];
                for word in words {
                    assert!(!text.contains(&format!("{{{word}}}")), "{language:?} {path}: {word}");
                }
            }
            let makefile = all.iter().find(|(path, _)| path == "Makefile");
            let (_, makefile) = makefile.expect("a Makefile");
            let (_, tests) = makefile.split_once("\ntest: build\n").expect("a target to test");
            assert!(tests.lines().all(|line| line.starts_with('\t')), "{language:?}: {tests}");
            assert!(tests.ends_with(&TRIALS.replace("{NAME}", "hello")), "{language:?}: {tests}");
            assert!(makefile.contains("\nrun: build"), "{language:?}: {makefile}");
        }
    }

    /// A runner whose new file is forgotten here would not start.
    #[test]
    fn the_runners_are_whole() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins");
        for (files, directory, ending) in [
            (PYTHON, "python/apisix/runner", "py"),
            (PYTHON, "python/apisix/runner/http", "py"),
            (NODE, "node/src", "ts"),
        ] {
            for entry in fs::read_dir(root.join(directory)).expect("a directory").flatten() {
                let path = entry.path();
                if path.extension().is_some_and(|one| one == ending) {
                    let (_, below) = directory.split_once('/').expect("a language");
                    let file = format!("runner/{below}/{}", entry.file_name().display());
                    assert!(files.iter().any(|(path, _)| *path == file), "{file}");
                }
            }
        }
    }
}
