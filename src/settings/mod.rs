//! Static settings: conf/config.yaml, read once at start.
