//! `portcullis plugin`: external plugins are begun and tried out without a gateway.

mod skeleton;
mod trial;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{Config, Exit, with_settings};

/// What can be done with external plugins.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a plugin to begin with, and all that is needed to run it, into a directory of its name
    New {
        /// The language
        language: Language,
        /// The plugin's name: letters, digits and -
        name: String,
    },
    /// Call a plugin with a request, or a response, and print what it would do; no gateway is needed
    Test(Box<Trial>),
}

/// A language with a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Language {
    Python,
    Node,
    Go,
    Java,
}

/// A plugin and what it is called with.
#[derive(Debug, Args)]
pub struct Trial {
    #[command(flatten)]
    config: Config,
    /// The runner's name in `ext-plugin.runners`; the first one when absent
    #[arg(long)]
    runner: Option<String>,
    /// Call the runner that listens on this socket; otherwise the one of the configuration is started
    #[arg(long, value_name = "PATH", conflicts_with = "runner")]
    socket: Option<PathBuf>,
    /// The plugin's configuration, as it stands in `value` in a route
    #[arg(long, default_value = "", value_name = "TEXT")]
    conf: String,
    /// The request's method
    #[arg(short = 'X', long, default_value = "GET")]
    method: String,
    /// A header of the request: NAME: VALUE
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// The request's body; @FILE reads it from a file
    #[arg(short, long, value_name = "BODY")]
    data: Option<String>,
    /// The client's address
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "ADDRESS")]
    client: IpAddr,
    /// A variable that the plugin may ask for: NAME=VALUE
    #[arg(long = "var", value_name = "VARIABLE")]
    vars: Vec<String>,
    /// Show the plugin a response with this status, as ext-plugin-post-resp does, in place of the request
    #[arg(long, value_name = "STATUS")]
    response: Option<u16>,
    /// A header of the response: NAME: VALUE
    #[arg(long = "response-header", value_name = "HEADER", requires = "response")]
    response_headers: Vec<String>,
    /// The response's body; @FILE reads it from a file
    #[arg(long, value_name = "BODY", requires = "response")]
    response_data: Option<String>,
    /// The plugin
    plugin: String,
    /// The request's path, with a query if you like
    #[arg(default_value = "/")]
    target: String,
}

/// Carries it out.
pub fn execute(command: Command) -> Exit {
    match command {
        Command::New { language, name } => skeleton::write(language, &name),
        Command::Test(trial) => match trial.socket {
            Some(_) => trial::run(&trial, None),
            None => with_settings(&trial.config, |settings| trial::run(&trial, Some(settings))),
        },
    }
}
