//! The only file that names `serde_yaml`.
