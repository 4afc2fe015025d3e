//! The data plane: `ProxyHttp` for the gateway.
