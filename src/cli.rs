//! The command line: what `portcullis` can be told, and its exit codes.
//!
//! Invariant: commands that need no running gateway start none, and no command prints a secret but `admin-key`.

pub mod banner;
mod plugin;
mod process;
mod report;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::boot;
use crate::cli::process::SignalError;
use crate::ext_plugin::guard;
use crate::settings::substitute::process_environment;
use crate::settings::types::{AdminRole, Provider};
use crate::settings::{self, Loaded, Settings};

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The configuration or a resource file has a fault.
    Configuration = 1,
    /// The command line was not understood.
    Usage = 2,
    /// There is no running gateway to talk to.
    NotRunning = 3,
    /// The gateway could not start, or the new one could not take over.
    Start = 4,
    /// What was asked for does not exist.
    Unknown = 5,
    /// The operating system refused.
    Refused = 6,
    /// A plugin that was tried out failed.
    Plugin = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the configuration or a resource file has a fault
  2  the command line was not understood
  3  no gateway is running
  4  the gateway could not start, or the new one could not take over
  5  what was asked for does not exist
  6  the operating system refused
  7  the plugin that was tried out failed

Settings are read from conf/config.yaml (conf/config-PROFILE.yaml with APISIX_PROFILE=PROFILE).
Without that file the built-in defaults serve.";

#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about, after_help = EXIT_CODES, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway in the foreground
    #[command(visible_alias = "start")]
    Run(Config),
    /// Check the configuration and, in file mode, the resources; start nothing
    #[command(visible_alias = "check")]
    Test(Config),
    /// Stop the running gateway; open requests have ten seconds
    Stop(Config),
    /// Stop the running gateway when its open requests are answered
    Quit(Config),
    /// Start a new gateway that takes over from the running one without a gap
    Reload(Config),
    /// Print the key of the Admin API
    AdminKey(Config),
    /// Print the JSON schema of a plugin or a resource, or of everything
    Schema {
        /// Such as key-auth or route
        #[arg(value_name = "PLUGIN|RESOURCE")]
        name: Option<String>,
    },
    /// Begin a plugin of your own, or try one out
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the version
    Version,
    /// Start a runner of external plugins that ends with the gateway; for the gateway itself
    #[command(hide = true)]
    RunnerGuard {
        /// The runner's command
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
}

#[derive(Debug, clap::Args)]
struct Config {
    /// Read the settings from this file
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Parses the command line and carries it out.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come as errors too; a closed pipe is nobody's fault.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    if let Command::RunnerGuard { words } = &cli.command {
        return runner_guard(words);
    }
    execute(cli.command).into()
}

fn execute(command: Command) -> Exit {
    match command {
        Command::Run(config) => {
            // Before anything else takes memory.
            boot::without_huge_pages();
            run(&config)
        }
        Command::Test(config) => test(&config),
        Command::Stop(config) => {
            with_settings(&config, |settings| signal(settings, process::stop, "stopping"))
        }
        Command::Quit(config) => {
            with_settings(&config, |settings| signal(settings, process::quit, "quitting"))
        }
        Command::Reload(config) => with_settings(&config, reload),
        Command::AdminKey(config) => with_settings(&config, admin_key),
        Command::Schema { name } => schema(name.as_deref()),
        Command::Plugin(command) => plugin::execute(command),
        Command::Completions { shell } => completions(shell),
        Command::RunnerGuard { .. } => Exit::Usage,
        Command::Version => print(&format!("portcullis {}\n", env!("CARGO_PKG_VERSION"))),
    }
}

/// Ends as the runner did.
fn runner_guard(words: &[OsString]) -> ExitCode {
    boot::with_huge_pages();
    match guard::run(words) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let program = words.first().map(|word| word.to_string_lossy()).unwrap_or_default();
            eprintln!("{program} cannot be started: {error}");
            Exit::Start.into()
        }
    }
}

/// Reads the named file, or the default one, or takes the built-in defaults when that is not there.
fn load(config: &Config) -> Loaded {
    let default = settings::default_file(&process_environment);
    let mut loaded = match &config.config {
        Some(file) => settings::load(file, &process_environment),
        None if default.exists() => settings::load(&default, &process_environment),
        None => settings::built_in(&process_environment),
    };
    loaded.faults.extend(boot::check_plugins(&loaded.settings));
    loaded
}

fn with_settings(config: &Config, act: impl FnOnce(&Settings) -> Exit) -> Exit {
    let loaded = load(config);
    if loaded.failed() {
        report::faults(&loaded.faults);
        return Exit::Configuration;
    }
    act(&loaded.settings)
}

fn run(config: &Config) -> Exit {
    let loaded = load(config);
    report::faults(&loaded.faults);
    if loaded.failed() {
        return Exit::Configuration;
    }
    if loaded.settings.file().is_none() {
        let file = settings::default_file(&process_environment);
        eprintln!("no {}: the built-in defaults serve", file.display());
    }
    match boot::run(loaded.settings) {
        Ok(()) => Exit::Done,
        Err(error) => {
            eprintln!("could not start: {error:#}");
            Exit::Start
        }
    }
}

fn test(config: &Config) -> Exit {
    let mut loaded = load(config);
    if matches!(loaded.settings.provider(), Provider::Yaml | Provider::Json) && !loaded.failed() {
        loaded.faults.extend(boot::check_resources(&loaded.settings));
    }
    report::faults(&loaded.faults);
    let name =
        loaded.settings.file().map_or("built-in defaults".to_owned(), |file| file.display().to_string());
    if loaded.failed() {
        eprintln!("{name}: configuration test failed");
        return Exit::Configuration;
    }
    // APISIX's words, on which scripts rely.
    print("configuration test is successful\n")
}

fn signal(settings: &Settings, send: fn(&Path) -> Result<i32, SignalError>, doing: &str) -> Exit {
    match send(&settings.pid_file()) {
        Ok(pid) => print(&format!("{doing} process {pid}\n")),
        Err(error) => {
            eprintln!("{error}");
            error.exit()
        }
    }
}

fn reload(settings: &Settings) -> Exit {
    if let Err(error) = process::running(&settings.pid_file()) {
        eprintln!("{error}");
        return error.exit();
    }
    match boot::reload(settings) {
        Ok(()) => Exit::Done,
        Err(error) => {
            eprintln!("could not reload: {error:#}");
            Exit::Start
        }
    }
}

fn admin_key(settings: &Settings) -> Exit {
    let keys = &settings.deployment.admin.admin_key;
    let written = keys.iter().find(|key| key.role == AdminRole::Admin && !key.key.reveal().is_empty());
    if let Some(key) = written {
        return print(&format!("{}\n", key.key.reveal()));
    }
    let file = settings.admin_key_file();
    match std::fs::read_to_string(&file) {
        Ok(key) => print(&format!("{}\n", key.trim_end())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("no admin key yet: `portcullis run` makes {} at its first start", file.display());
            Exit::Unknown
        }
        Err(error) => {
            eprintln!("{}: {error}", file.display());
            Exit::Refused
        }
    }
}

fn schema(name: Option<&str>) -> Exit {
    match boot::schema(name) {
        Some(schema) => print(&format!("{schema:#}\n")),
        None => {
            eprintln!("no plugin or resource is called {}", name.unwrap_or("that"));
            Exit::Unknown
        }
    }
}

fn completions(shell: Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "portcullis", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes to standard output; a reader that went away is no fault.
fn print(text: &str) -> Exit {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Exit::Refused,
        _ => Exit::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: &str) {
        let shown = match Cli::try_parse_from(line.split(' ')) {
            Ok(cli) => format!("{:?}", cli.command),
            Err(error) => format!("{:?}", error.kind()),
        };
        assert_eq!(shown, expected, "{line}");
    }

    #[test]
    fn command_lines() {
        Cli::command().debug_assert();
        check("portcullis run", "Run(Config { config: None })");
        check("portcullis start -c a.yaml", "Run(Config { config: Some(\"a.yaml\") })");
        check("portcullis test --config a", "Test(Config { config: Some(\"a\") })");
        check("portcullis admin-key", "AdminKey(Config { config: None })");
        check("portcullis schema key-auth", "Schema { name: Some(\"key-auth\") }");
        check("portcullis schema", "Schema { name: None }");
        check("portcullis completions bash", "Completions { shell: Bash }");
        check("portcullis version", "Version");
        check("portcullis -V", "DisplayVersion");
        check("portcullis stopp", "InvalidSubcommand");
        check("portcullis run -c", "InvalidValue");
    }

    #[test]
    fn every_exit_code_is_in_the_help() {
        let codes = [
            Exit::Done,
            Exit::Configuration,
            Exit::Usage,
            Exit::NotRunning,
            Exit::Start,
            Exit::Unknown,
            Exit::Refused,
            Exit::Plugin,
        ];
        for code in codes {
            let line = format!("\n  {}  ", code as u8);
            assert!(EXIT_CODES.contains(&line), "{code:?}");
        }
    }

    #[test]
    fn admin_keys_and_settings() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        let config = Config { config: Some(file.clone()) };
        assert_eq!(execute(Command::AdminKey(Config { config: Some(file.clone()) })), Exit::Configuration);
        std::fs::write(&file, "apisix: {enable_admin: true}").unwrap();
        let loaded = load(&config);
        assert!(!loaded.failed());
        assert_eq!(loaded.settings.admin_key_file(), directory.path().join("data/admin.key"));
        assert_eq!(admin_key(&loaded.settings), Exit::Unknown);
        std::fs::create_dir(directory.path().join("data")).unwrap();
        std::fs::write(loaded.settings.admin_key_file(), "abc\n").unwrap();
        assert_eq!(admin_key(&loaded.settings), Exit::Done);
        assert_eq!(execute(Command::Stop(config)), Exit::NotRunning);
    }
}
