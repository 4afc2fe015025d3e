//! Upstreams: nodes, balancers, name resolution.
