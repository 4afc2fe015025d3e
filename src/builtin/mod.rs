//! The registry of built-in plugins: one file each, one line here.
