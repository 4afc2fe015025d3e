//! Addresses, hosts and URIs: pure functions, no I/O.
