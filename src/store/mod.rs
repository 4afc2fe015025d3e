//! Where resources live: one trait, several stores.
