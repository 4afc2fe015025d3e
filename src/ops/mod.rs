//! Operation: access log, error log, metrics, control and status API.
