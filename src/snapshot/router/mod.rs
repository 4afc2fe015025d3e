//! Route matching: the three routers of APISIX.
