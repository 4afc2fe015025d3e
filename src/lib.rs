//! Portcullis: an API gateway on Pingora that speaks Apache APISIX's language.
//!
//! The map of the code is ARCHITECTURE.md. Modules, in reading order:

pub mod compat;
pub mod settings;
pub mod yaml;

pub mod net;
pub mod vars;

pub mod resource;
pub mod schema;
pub mod secret;

pub mod ext_plugin;
pub mod store;
pub mod trust;
pub mod upstream;

pub mod plugin;

pub mod builtin;
pub mod secret_source;
pub mod snapshot;

pub mod admin;
pub mod control;
pub mod ops;
pub mod proxy;

pub mod boot;
pub mod cli;
