//! Everything compiled, immutable, swapped at once.

pub mod router;
