//! The names of variables, parsed: `$uri`, `$arg_x`, `$http_x_k`, `$post_arg.a[*].b`…
//!
//! Names follow APISIX's core/ctx.lua, then nginx. Parsing never fails: a name nobody knows is
//! [`Var::Other`], which has a value only if a plugin sets one.

use std::borrow::Cow;

use crate::vars::body::PostPath;
use crate::vars::lua::Value;

/// One request, asked for its variables. Implemented by whoever holds the request; must be cheap to ask twice.
pub trait Lookup {
    /// The variable as text (Lua's `tostring` of it), or `None` when it has no value. An empty text is a value.
    fn get(&self, var: &Var) -> Option<Cow<'_, str>>;

    /// The variable with its type, for expressions. Implement it for variables that are not text: numbers and
    /// lists of JSON bodies, `graphql_root_fields`, arguments without a value (`true`).
    fn value(&self, var: &Var) -> Option<Value<'_>> {
        self.get(var).map(Value::Text)
    }
}

/// A variable.
#[derive(Clone, Debug, PartialEq)]
pub enum Var {
    /// The normalised path; plugins may rewrite it.
    Uri,
    /// Normalised path and query, as routed, never rewritten.
    RequestUri,
    /// The request target as the client sent it.
    RealRequestUri,
    /// The request line.
    RequestLine,
    /// The query string, without `?`.
    Args,
    /// `?` when there is a query string, else empty.
    IsArgs,
    /// The method.
    Method,
    /// `http` or `https`.
    Scheme,
    /// `on` under TLS, else empty.
    Https,
    /// The host asked for: lower case, without port.
    Host,
    /// The name of the listening server.
    ServerName,
    /// The local port.
    ServerPort,
    /// The local address.
    ServerAddr,
    /// The client's address, after the `real-ip` rules.
    RemoteAddr,
    /// The client's port, after the `real-ip` rules.
    RemotePort,
    /// The peer's address, before the `real-ip` rules.
    RealipRemoteAddr,
    /// The peer's port, before the `real-ip` rules.
    RealipRemotePort,
    /// The user name of basic authentication.
    RemoteUser,
    /// `HTTP/1.1`, `HTTP/2.0`…
    ServerProtocol,
    /// The identifier made for this request, 32 hex digits.
    RequestId,
    /// The identifier that the request goes by in APISIX's logs.
    ApisixRequestId,
    /// The status sent to the client.
    Status,
    /// Seconds since the request began, with milliseconds.
    RequestTime,
    /// Bytes of the request: line, header and body.
    RequestLength,
    /// `OK` once the request is complete, else empty.
    RequestCompletion,
    /// The request body.
    RequestBody,
    /// Bytes sent to the client.
    BytesSent,
    /// Bytes of body sent to the client.
    BodyBytesSent,
    /// Serial number of the connection.
    Connection,
    /// Requests so far on the connection.
    ConnectionRequests,
    /// Nodes tried, separated by commas.
    UpstreamAddr,
    /// Their statuses.
    UpstreamStatus,
    /// Seconds spent on them.
    UpstreamResponseTime,
    /// Seconds until they were connected.
    UpstreamConnectTime,
    /// Seconds until their header came.
    UpstreamHeaderTime,
    /// Bytes of their bodies.
    UpstreamResponseLength,
    /// Bytes received from them.
    UpstreamBytesReceived,
    /// Bytes sent to them.
    UpstreamBytesSent,
    /// `HIT`, `MISS`…
    UpstreamCacheStatus,
    /// The Host header sent to the node.
    UpstreamHost,
    /// The request target sent to the node.
    UpstreamUri,
    /// The scheme spoken to the node.
    UpstreamScheme,
    /// The node's host as configured, before DNS.
    UpstreamUnresolvedHost,
    /// Milliseconds spent on the last node.
    ApisixUpstreamResponseTime,
    /// Seconds since 1970, with milliseconds.
    Msec,
    /// The local time, ISO 8601.
    TimeIso8601,
    /// The local time, common log format.
    TimeLocal,
    /// The name of this machine.
    Hostname,
    /// The number of this process.
    Pid,
    /// The authenticated consumer.
    ConsumerName,
    /// Its group.
    ConsumerGroupId,
    /// The matched route.
    RouteId,
    /// Its name.
    RouteName,
    /// Its service.
    ServiceId,
    /// The name of the service.
    ServiceName,
    /// The uri pattern that matched.
    MatchedUri,
    /// The host pattern that matched.
    MatchedHost,
    /// The address of the node picked.
    BalancerIp,
    /// The port of the node picked.
    BalancerPort,
    /// The response body, for loggers that collect it.
    RespBody,
    /// The name of the GraphQL operation, maybe empty.
    GraphqlName,
    /// `query`, `mutation` or `subscription`.
    GraphqlOperation,
    /// A list: the fields it asks for.
    GraphqlRootFields,
    /// The TLS version of the client's connection.
    SslProtocol,
    /// Its cipher.
    SslCipher,
    /// The name asked for with SNI.
    SslServerName,
    /// `arg_NAME`: the first query argument of that name, decoded; see [`crate::net::args::find`].
    Arg(Box<str>),
    /// `http_NAME`: a request header, here in lower case with `-` for `_`; see [`same_header`].
    Http(Box<str>),
    /// `sent_http_NAME`: a response header, written as in [`Var::Http`].
    SentHttp(Box<str>),
    /// `upstream_http_NAME`: a header of the node's response, written as in [`Var::Http`].
    UpstreamHttp(Box<str>),
    /// `cookie_NAME`; see [`crate::vars::cookie::find`].
    Cookie(Box<str>),
    /// `post_arg_NAME`: a field of an urlencoded form; see [`crate::vars::body::PostBody::field`].
    PostArg(Box<str>),
    /// `post_arg.PATH`: a part of the body; see [`crate::vars::body::PostBody::path`].
    PostArgPath {
        /// What follows `post_arg.`.
        text: Box<str>,
        /// The same, parsed.
        path: PostPath,
    },
    /// `uri_param_NAME`: a parameter of the matched uri pattern.
    UriParam(Box<str>),
    /// Any other name, as written.
    Other(Box<str>),
}

/// Variables without a parameter, by their name.
const NAMED: &[(&str, Var)] = &[
    ("uri", Var::Uri),
    ("request_uri", Var::RequestUri),
    ("real_request_uri", Var::RealRequestUri),
    ("request", Var::RequestLine),
    ("args", Var::Args),
    ("is_args", Var::IsArgs),
    ("request_method", Var::Method),
    ("scheme", Var::Scheme),
    ("https", Var::Https),
    ("host", Var::Host),
    ("server_name", Var::ServerName),
    ("server_port", Var::ServerPort),
    ("server_addr", Var::ServerAddr),
    ("remote_addr", Var::RemoteAddr),
    ("remote_port", Var::RemotePort),
    ("realip_remote_addr", Var::RealipRemoteAddr),
    ("realip_remote_port", Var::RealipRemotePort),
    ("remote_user", Var::RemoteUser),
    ("server_protocol", Var::ServerProtocol),
    ("request_id", Var::RequestId),
    ("apisix_request_id", Var::ApisixRequestId),
    ("status", Var::Status),
    ("request_time", Var::RequestTime),
    ("request_length", Var::RequestLength),
    ("request_completion", Var::RequestCompletion),
    ("request_body", Var::RequestBody),
    ("bytes_sent", Var::BytesSent),
    ("body_bytes_sent", Var::BodyBytesSent),
    ("connection", Var::Connection),
    ("connection_requests", Var::ConnectionRequests),
    ("upstream_addr", Var::UpstreamAddr),
    ("upstream_status", Var::UpstreamStatus),
    ("upstream_response_time", Var::UpstreamResponseTime),
    ("upstream_connect_time", Var::UpstreamConnectTime),
    ("upstream_header_time", Var::UpstreamHeaderTime),
    ("upstream_response_length", Var::UpstreamResponseLength),
    ("upstream_bytes_received", Var::UpstreamBytesReceived),
    ("upstream_bytes_sent", Var::UpstreamBytesSent),
    ("upstream_cache_status", Var::UpstreamCacheStatus),
    ("upstream_host", Var::UpstreamHost),
    ("upstream_uri", Var::UpstreamUri),
    ("upstream_scheme", Var::UpstreamScheme),
    ("upstream_unresolved_host", Var::UpstreamUnresolvedHost),
    ("apisix_upstream_response_time", Var::ApisixUpstreamResponseTime),
    ("msec", Var::Msec),
    ("time_iso8601", Var::TimeIso8601),
    ("time_local", Var::TimeLocal),
    ("hostname", Var::Hostname),
    ("pid", Var::Pid),
    ("consumer_name", Var::ConsumerName),
    ("consumer_group_id", Var::ConsumerGroupId),
    ("route_id", Var::RouteId),
    ("route_name", Var::RouteName),
    ("service_id", Var::ServiceId),
    ("service_name", Var::ServiceName),
    ("matched_uri", Var::MatchedUri),
    ("matched_host", Var::MatchedHost),
    ("balancer_ip", Var::BalancerIp),
    ("balancer_port", Var::BalancerPort),
    ("resp_body", Var::RespBody),
    ("graphql_name", Var::GraphqlName),
    ("graphql_operation", Var::GraphqlOperation),
    ("graphql_root_fields", Var::GraphqlRootFields),
    ("ssl_protocol", Var::SslProtocol),
    ("ssl_cipher", Var::SslCipher),
    ("ssl_server_name", Var::SslServerName),
];

/// Other names of the same variables.
const ALIASES: &[(&str, &str)] = &[
    ("method", "request_method"),
    ("query_string", "args"),
    ("document_uri", "uri"),
    ("request_line", "request"),
    ("content_type", "http_content_type"),
    ("content_length", "http_content_length"),
];

impl Var {
    /// Parses a name, without `$`. Prefixes (`arg_`…) and names of arguments, cookies and fields are
    /// case-sensitive, header names and nginx's own variables are not.
    #[must_use]
    pub fn parse(name: &str) -> Self {
        // APISIX looks prefixes up in this order.
        let rest = |prefix: &str| name.strip_prefix(prefix).map(Box::<str>::from);
        if let Some(cookie) = rest("cookie_") {
            return Self::Cookie(cookie);
        }
        if let Some(arg) = rest("arg_") {
            return Self::Arg(arg);
        }
        if let Some(field) = rest("post_arg_") {
            return Self::PostArg(field);
        }
        if let Some(param) = rest("uri_param_") {
            return Self::UriParam(param);
        }
        if let Some(text) = rest("post_arg.") {
            return Self::PostArgPath { path: PostPath::parse(&text), text };
        }
        Self::parse_nginx(name)
    }

    /// The canonical name, without `$`.
    #[must_use]
    pub fn name(&self) -> Cow<'_, str> {
        let header = |prefix: &str, name: &str| Cow::Owned(format!("{prefix}{}", name.replace('-', "_")));
        match self {
            Self::Arg(name) => Cow::Owned(format!("arg_{name}")),
            Self::Http(name) => header("http_", name),
            Self::SentHttp(name) => header("sent_http_", name),
            Self::UpstreamHttp(name) => header("upstream_http_", name),
            Self::Cookie(name) => Cow::Owned(format!("cookie_{name}")),
            Self::PostArg(name) => Cow::Owned(format!("post_arg_{name}")),
            Self::PostArgPath { text, .. } => Cow::Owned(format!("post_arg.{text}")),
            Self::UriParam(name) => Cow::Owned(format!("uri_param_{name}")),
            Self::Other(name) => Cow::Borrowed(name),
            named => {
                let found = NAMED.iter().find(|(_, var)| var == named);
                Cow::Borrowed(found.map_or("", |(name, _)| name))
            }
        }
    }

    /// Whether the request body must be read before the variable has its value. GraphQL variables need it
    /// unless the method is GET.
    #[must_use]
    pub fn needs_body(&self) -> bool {
        matches!(
            self,
            Self::PostArg(_)
                | Self::PostArgPath { .. }
                | Self::RequestBody
                | Self::GraphqlName
                | Self::GraphqlOperation
                | Self::GraphqlRootFields
        )
    }

    fn parse_nginx(name: &str) -> Self {
        let lower = name.to_ascii_lowercase();
        let lower = ALIASES.iter().find(|(alias, _)| *alias == lower).map_or(&*lower, |(_, name)| name);
        let header = |prefix: &str| lower.strip_prefix(prefix).map(|h| h.replace('_', "-").into_boxed_str());
        if let Some(header) = header("http_") {
            return Self::Http(header);
        }
        if let Some(header) = header("sent_http_") {
            return Self::SentHttp(header);
        }
        if let Some(header) = header("upstream_http_") {
            return Self::UpstreamHttp(header);
        }
        let named = NAMED.iter().find(|(own, _)| *own == lower);
        named.map_or_else(|| Self::Other(name.into()), |(_, var)| var.clone())
    }
}

/// Whether a header of a message is the one that [`Var::Http`] and its like name: case does not matter, and
/// neither does `_` against `-`. APISIX runs nginx with `underscores_in_headers on`.
#[must_use]
pub fn same_header(header: &str, wanted: &str) -> bool {
    let fold = |b: u8| if b == b'_' { b'-' } else { b.to_ascii_lowercase() };
    header.len() == wanted.len() && header.bytes().zip(wanted.bytes()).all(|(a, b)| fold(a) == fold(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(name: &str, expected: Var, canonical: &str) {
        let var = Var::parse(name);
        assert_eq!(var, expected);
        assert_eq!(var.name(), canonical);
    }

    #[test]
    fn names() {
        check("uri", Var::Uri, "uri");
        check("URI", Var::Uri, "uri");
        check("document_uri", Var::Uri, "uri");
        check("method", Var::Method, "request_method");
        check("query_string", Var::Args, "args");
        check("arg_Name", Var::Arg("Name".into()), "arg_Name");
        check("http_X_Key", Var::Http("x-key".into()), "http_x_key");
        check("http_x-key", Var::Http("x-key".into()), "http_x_key");
        check("content_type", Var::Http("content-type".into()), "http_content_type");
        check("sent_http_server", Var::SentHttp("server".into()), "sent_http_server");
        check("upstream_http_a_b", Var::UpstreamHttp("a-b".into()), "upstream_http_a_b");
        check("cookie_Foo-bar", Var::Cookie("Foo-bar".into()), "cookie_Foo-bar");
        check("post_arg_k", Var::PostArg("k".into()), "post_arg_k");
        check("uri_param_id", Var::UriParam("id".into()), "uri_param_id");
        check("graphql_root_fields", Var::GraphqlRootFields, "graphql_root_fields");
        check("nobody", Var::Other("nobody".into()), "nobody");
        check("", Var::Other("".into()), "");
        assert_eq!(Var::parse("post_arg.a[*].b").name(), "post_arg.a[*].b");
    }

    #[test]
    fn every_name_is_its_own() {
        for (name, var) in NAMED {
            check(name, var.clone(), name);
        }
        for (alias, name) in ALIASES {
            assert_eq!(Var::parse(alias), Var::parse(name));
            assert!(!NAMED.iter().any(|(own, _)| own == alias));
        }
    }

    #[test]
    fn bodies() {
        for (name, needs) in [
            ("post_arg_a", true),
            ("post_arg.a.b", true),
            ("graphql_name", true),
            ("arg_a", false),
            ("uri", false),
        ] {
            assert_eq!(Var::parse(name).needs_body(), needs, "{name}");
        }
    }

    #[test]
    fn headers() {
        assert!(same_header("X-Api_Key", "x-api-key"));
        assert!(!same_header("X-Api-Keys", "x-api-key"));
        assert!(!same_header("X.Api-Key", "x-api-key"));
    }

    proptest! {
        #[test]
        fn parsing_the_canonical_name_is_stable(name in "(arg_|http_|cookie_|post_arg\\.|sent_http_|)\\PC{0,10}") {
            let var = Var::parse(&name);
            prop_assert_eq!(Var::parse(&var.name()), var);
        }
    }
}
