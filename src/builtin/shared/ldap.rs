//! What the LDAP plugins share: connections to a directory, binds and the search for one entry.
//!
//! Invariant: a bind with a password sends a password; an empty one would be an unauthenticated bind (RFC 4513
//! §5.1.2), which directories answer with success. No error text holds a password.
//!
//! Every round trip runs in a task of its own: a directory that answers nonsense can make the library panic, and then
//! that task is lost, not the request. A client that goes away does not leave a connection half used, either.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use ldap3::{
    DerefAliases, Ldap, LdapConnAsync, LdapConnSettings, LdapError, LdapResult, Scope, SearchEntry,
    SearchOptions, SearchResult,
};
use native_tls::TlsConnector;

use super::{is_secret_ref, tls};

/// RFC 4511 appendix A: the operation succeeded.
const SUCCESS: u32 = 0;
/// RFC 4511 appendix A: more entries match than were asked for.
const SIZE_LIMIT_EXCEEDED: u32 = 4;
/// RFC 4511 appendix A: name or password is wrong.
const INVALID_CREDENTIALS: u32 = 49;

/// The most groups of one user; with more nobody knows whether the right one is among them.
const MOST_GROUPS: i32 = 1000;

/// How the connection is protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tls {
    /// Not at all.
    Off,
    /// TLS from the first byte.
    Ldaps,
    /// TLS after a request for it.
    StartTls,
}

/// How a directory is reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the connection is protected.
    pub tls: Tls,
    /// Whether the server's certificate must be valid for its name.
    pub verify: bool,
    /// The longest that connecting, and each operation, may take.
    pub timeout: Duration,
    /// How long a connection waits for the next request; `None`: it is closed.
    pub keepalive: Option<Duration>,
    /// How many connections wait at most.
    pub pool: usize,
}

/// Why the directory did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LdapFailure {
    /// It said no to the name and the password.
    #[error("the directory refuses the name or the password")]
    Credentials,
    /// It answered an operation with another result.
    #[error("{operation} failed with result {code}{}", Told(.text))]
    Result {
        /// What was asked.
        operation: &'static str,
        /// The code of RFC 4511.
        code: u32,
        /// The directory's own words.
        text: String,
    },
    /// No answer: no connection, no TLS, or it broke.
    #[error("no answer from the directory: {0}")]
    Transport(String),
    /// No answer in time.
    #[error("no answer from the directory within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// Refused here: an empty password must not be sent.
    #[error("an empty password is not sent to the directory")]
    EmptyPassword,
}

/// The directory's own words, if it had any.
struct Told<'t>(&'t str);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The reason goes into one line of the log.
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0.escape_debug()) }
    }
}

/// What a search for one entry found.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// That one.
    One(Entry),
    /// No entry.
    None,
    /// More than one.
    Several,
}

/// An entry of a user.
#[derive(Debug, Default, PartialEq)]
pub struct Entry {
    /// Its distinguished name, as the directory writes it.
    pub name: String,
    /// The names of the groups that it is in, if they were asked for.
    pub groups: Vec<String>,
}

/// A search for the groups of an entry: those that name it as a member.
#[derive(Clone, Debug)]
pub struct Groups {
    /// Where the search begins; the whole tree below is searched.
    pub base: Arc<str>,
    /// The attribute of a group that holds the names of its members.
    pub member: Arc<str>,
    /// The attribute that holds its own name.
    pub name: Arc<str>,
}

/// A search for the entry of one user.
#[derive(Clone, Debug)]
pub struct Search {
    /// Where the search begins; the whole tree below is searched.
    pub base: Arc<str>,
    /// The filter, its values escaped.
    pub filter: String,
    /// The most entries that the server shall send.
    pub size_limit: i32,
    /// The longest that the server shall search, in seconds; 0: its own limit.
    pub time_limit: i32,
    /// The groups to look for when there is exactly one entry.
    pub groups: Option<Groups>,
}

/// Name and password of a bind.
#[derive(Clone, Debug)]
pub struct Login {
    /// The distinguished name; empty for an anonymous bind.
    pub name: Arc<str>,
    /// The password; empty for an anonymous bind.
    pub password: Password,
}

/// A password, which `Debug` does not show.
#[derive(Clone)]
pub struct Password(Arc<str>);

impl From<&str> for Password {
    fn from(password: &str) -> Self {
        Self(password.into())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// What is asked of the directory over one connection.
#[derive(Debug)]
enum Work {
    /// A bind with a user's name and password.
    Bind(Login),
    /// A search as a service, and a bind with the name found.
    SearchAndBind { service: Login, search: Search, password: Password },
}

/// One directory, with the connections that wait for the next request.
pub struct Directory {
    shared: Arc<Shared>,
}

struct Shared {
    /// `None`: a reference to a secret that did not resolve.
    url: Option<String>,
    options: Options,
    connector: Option<TlsConnector>,
    // Held while a connection is pushed or popped, never across an await; requests wait for the directory far longer.
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// The one that waited longest is the first.
    connections: VecDeque<(Instant, Ldap)>,
    /// Whether somebody will close those that wait for too long.
    watched: bool,
}

impl Directory {
    /// A directory at `host[:port]`.
    ///
    /// # Errors
    /// The address is none.
    pub fn new(address: &str, default_port: u16, options: Options) -> Result<Self, String> {
        let scheme = if options.tls == Tls::Ldaps { "ldaps" } else { "ldap" };
        let url = match split_address(address.strip_prefix("ldap://").unwrap_or(address)) {
            Some((host, port)) => Some(format!("{scheme}://{host}:{}", port.unwrap_or(default_port))),
            // It may resolve later; until then nobody is let in.
            None if is_secret_ref(address) => None,
            None => return Err("ldap_uri must be a host, or a host and a port, without a scheme".into()),
        };
        let connector = if options.tls == Tls::Off { None } else { Some(tls::connector(options.verify)?) };
        Ok(Self { shared: Arc::new(Shared { url, options, connector, waiting: Mutex::default() }) })
    }

    /// Binds with a name and a password.
    ///
    /// # Errors
    /// Anything but success.
    pub async fn bind(&self, login: Login) -> Result<(), LdapFailure> {
        self.run(Work::Bind(login)).await.map(|_| ())
    }

    /// Binds with a service's name, or anonymously, and searches; if there is exactly one entry, searches its groups and
    /// binds with its name and the password, all over one connection.
    ///
    /// # Errors
    /// [`LdapFailure::Credentials`] only for the last bind; the service's refusal is a [`LdapFailure::Result`].
    pub async fn search_and_bind(
        &self,
        service: Login,
        search: Search,
        password: Password,
    ) -> Result<Found, LdapFailure> {
        self.run(Work::SearchAndBind { service, search, password }).await
    }

    async fn run(&self, work: Work) -> Result<Found, LdapFailure> {
        let shared = self.shared.clone();
        let task = tokio::spawn(async move { shared.run(&work).await });
        task.await.unwrap_or_else(|_| Err(LdapFailure::Transport("it makes no sense".into())))
    }
}

impl Shared {
    /// Works over a connection that waited or, if that turns out to be broken, over a new one.
    async fn run(self: Arc<Self>, work: &Work) -> Result<Found, LdapFailure> {
        loop {
            let kept = self.kept();
            let waited = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            let outcome = self.perform(&mut connection, work).await;
            match &outcome {
                Err(LdapFailure::Transport(_)) if waited => continue,
                // After another result, or none, nobody knows what state the connection is in.
                Ok(_) | Err(LdapFailure::Credentials) => self.keep(connection),
                Err(_) => (),
            }
            return outcome;
        }
    }

    async fn perform(&self, connection: &mut Ldap, work: &Work) -> Result<Found, LdapFailure> {
        match work {
            Work::Bind(login) => {
                self.bind_as_user(connection, &login.name, &login.password.0).await?;
                Ok(Found::One(Entry { name: login.name.to_string(), groups: Vec::new() }))
            }
            Work::SearchAndBind { service, search, password } => {
                // A connection that waited is bound as whoever used it last.
                self.bind(connection, "the bind for the search", &service.name, &service.password.0).await?;
                let mut found = self.search(connection, search).await?;
                if let Found::One(entry) = &mut found {
                    // As the service, which may see groups that the user may not.
                    if let Some(groups) = &search.groups {
                        entry.groups =
                            self.groups_of(connection, &entry.name, groups, search.time_limit).await?;
                    }
                    self.bind_as_user(connection, &entry.name, &password.0).await?;
                }
                Ok(found)
            }
        }
    }

    async fn bind_as_user(
        &self,
        connection: &mut Ldap,
        name: &str,
        password: &str,
    ) -> Result<(), LdapFailure> {
        if password.is_empty() || name.is_empty() {
            return Err(LdapFailure::EmptyPassword);
        }
        match self.bind(connection, "the bind", name, password).await {
            Err(LdapFailure::Result { code: INVALID_CREDENTIALS, .. }) => Err(LdapFailure::Credentials),
            outcome => outcome,
        }
    }

    async fn bind(
        &self,
        connection: &mut Ldap,
        operation: &'static str,
        name: &str,
        password: &str,
    ) -> Result<(), LdapFailure> {
        let result = connection.with_timeout(self.options.timeout).simple_bind(name, password).await;
        let result = result.map_err(|error| self.unanswered(error))?;
        succeeded(operation, result)
    }

    async fn search(&self, connection: &mut Ldap, search: &Search) -> Result<Found, LdapFailure> {
        let options = SearchOptions::new()
            .deref(DerefAliases::Always)
            .sizelimit(search.size_limit)
            .timelimit(search.time_limit);
        let SearchResult(entries, result) = connection
            .with_search_options(options)
            .with_timeout(self.options.timeout)
            // RFC 4511 §4.5.1.8: no attributes, only the name.
            .search(&search.base, Scope::Subtree, &search.filter, ["1.1"])
            .await
            .map_err(|error| self.unanswered(error))?;
        if result.rc == SIZE_LIMIT_EXCEEDED {
            return Ok(Found::Several);
        }
        succeeded("the search", result)?;
        let mut entries = entries.into_iter().filter(|entry| !entry.is_ref() && !entry.is_intermediate());
        Ok(match (entries.next(), entries.next()) {
            (None, _) => Found::None,
            (Some(entry), None) => {
                Found::One(Entry { name: SearchEntry::construct(entry).dn, groups: Vec::new() })
            }
            (Some(_), Some(_)) => Found::Several,
        })
    }

    async fn groups_of(
        &self,
        connection: &mut Ldap,
        name: &str,
        groups: &Groups,
        time_limit: i32,
    ) -> Result<Vec<String>, LdapFailure> {
        let operation = "the search for groups";
        let failed = |text: &str| LdapFailure::Result { operation, code: 0, text: text.into() };
        let filter = equals_filter(&groups.member, name).ok_or_else(|| failed("the entry has no name"))?;
        let options = SearchOptions::new().sizelimit(MOST_GROUPS).timelimit(time_limit);
        let SearchResult(entries, result) = connection
            .with_search_options(options)
            .with_timeout(self.options.timeout)
            .search(&groups.base, Scope::Subtree, &filter, [&*groups.name])
            .await
            .map_err(|error| self.unanswered(error))?;
        succeeded(operation, result)?;
        let entries = entries.into_iter().filter(|entry| !entry.is_ref() && !entry.is_intermediate());
        // Attributes are named as the directory likes, in any case of letters.
        let named = entries.filter_map(|entry| {
            let mut attributes = SearchEntry::construct(entry).attrs.into_iter();
            let (_, values) =
                attributes.find(|(attribute, _)| attribute.eq_ignore_ascii_case(&groups.name))?;
            values.into_iter().next()
        });
        Ok(named.collect())
    }

    async fn connect(&self) -> Result<Ldap, LdapFailure> {
        let mut settings = LdapConnSettings::new()
            .set_conn_timeout(self.options.timeout)
            .set_starttls(self.options.tls == Tls::StartTls);
        if let Some(connector) = &self.connector {
            settings = settings.set_connector(connector.clone());
        }
        let Some(url) = &self.url else {
            return Err(LdapFailure::Transport("ldap_uri is a reference that does not resolve".into()));
        };
        let connecting = LdapConnAsync::with_settings(settings, url).await;
        let (driver, connection) = connecting.map_err(|error| self.unanswered(error))?;
        tokio::spawn(async move {
            // What goes wrong is told by the operation that waits for an answer.
            let _ = driver.drive().await;
        });
        Ok(connection)
    }

    fn unanswered(&self, error: LdapError) -> LdapFailure {
        match error {
            LdapError::Timeout { .. } => LdapFailure::Timeout(self.options.timeout),
            // Requests that could not be sent hold the password, so that these errors are never shown as they are.
            LdapError::OpSend { .. } | LdapError::ResultRecv { .. } | LdapError::EndOfStream => {
                LdapFailure::Transport("the connection is closed".into())
            }
            LdapError::LdapResult { result } => {
                LdapFailure::Result { operation: "StartTLS", code: result.rc, text: result.text }
            }
            error => LdapFailure::Transport(error.to_string()),
        }
    }

    /// The connection that waited least, if it is still open.
    fn kept(&self) -> Option<Ldap> {
        let mut waiting = self.waiting();
        while let Some((_, mut connection)) = waiting.connections.pop_back() {
            if !connection.is_closed() {
                return Some(connection);
            }
        }
        None
    }

    /// Lets a connection wait for the next request, and sees to it that it does not wait for ever.
    fn keep(self: &Arc<Self>, connection: Ldap) {
        let Some(keepalive) = self.options.keepalive else { return };
        let mut waiting = self.waiting();
        if waiting.connections.len() >= self.options.pool {
            waiting.connections.pop_front();
        }
        waiting.connections.push_back((Instant::now(), connection));
        if !std::mem::replace(&mut waiting.watched, true) {
            tokio::spawn(watch(Arc::downgrade(self), keepalive));
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes connections that waited for too long; ends when none waits or the configuration is gone.
async fn watch(directory: Weak<Shared>, keepalive: Duration) {
    loop {
        tokio::time::sleep(keepalive).await;
        let Some(directory) = directory.upgrade() else { return };
        let mut waiting = directory.waiting();
        while waiting.connections.front().is_some_and(|(since, _)| since.elapsed() >= keepalive) {
            waiting.connections.pop_front();
        }
        if waiting.connections.is_empty() {
            waiting.watched = false;
            return;
        }
    }
}

fn succeeded(operation: &'static str, result: LdapResult) -> Result<(), LdapFailure> {
    match result.rc {
        SUCCESS => Ok(()),
        code => Err(LdapFailure::Result { operation, code, text: result.text }),
    }
}

/// Host and port of `host[:port]`; an IPv6 address stands in brackets.
/// APISIX: `core.utils.parse_addr`.
fn split_address(address: &str) -> Option<(&str, Option<u16>)> {
    let host_ends = if address.starts_with('[') { address.find(']')? + 1 } else { 0 };
    let colon = address[host_ends..].find(':').map(|at| at + host_ends);
    let (host, port) = match colon {
        Some(colon) => (&address[..colon], Some(address[colon + 1..].parse().ok()?)),
        None => (address, None),
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_v6 = |text: &str| text.parse::<std::net::Ipv6Addr>().is_ok();
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => is_v6(address),
        None => !host.is_empty() && host.bytes().all(plain),
    };
    is_host.then_some((host, port))
}

/// A value as it stands in a distinguished name (RFC 4514 §2.4). Where the RFC leaves a choice, as APISIX has it,
/// because consumers name themselves with the result.
/// APISIX: lua-resty-ldap `escape_dn_value`.
pub fn escape_dn(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len() + 8);
    let last = value.len().saturating_sub(1);
    for (at, character) in value.char_indices() {
        let at_an_end = character == ' ' && (at == 0 || at == last) || character == '#' && at == 0;
        match character {
            '\0' => escaped.push_str("\\00"),
            '\\' | '"' | ',' | '+' | '<' | '>' | ';' | '=' => escaped.extend(['\\', character]),
            _ if at_an_end => escaped.extend(['\\', character]),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// `(attribute=value)` with the value escaped (RFC 4515 §3); `None` if the attribute is none.
pub fn equals_filter(attribute: &str, value: &str) -> Option<String> {
    let filter = format!("({attribute}={})", ldap3::ldap_escape(value));
    ldap3::parse_filter(&filter).is_ok().then_some(filter)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_escaped_for_names() {
        for (value, expected) in [
            ("ann", "ann"),
            ("comma,user", r"comma\,user"),
            (r#"a\b"c+d<e>f;g=h"#, r#"a\\b\"c\+d\<e\>f\;g\=h"#),
            (" a ", r"\ a\ "),
            (" ", r"\ "),
            ("  ", r"\ \ "),
            ("a b", "a b"),
            ("#a#", r"\#a#"),
            ("a\0b", r"a\00b"),
            ("hé", "hé"),
            ("", ""),
        ] {
            assert_eq!(escape_dn(value), expected, "{value:?}");
        }
    }

    #[test]
    fn values_are_escaped_for_filters() {
        for (value, expected) in [
            ("ann", "(uid=ann)"),
            ("*", r"(uid=\2a)"),
            ("*)(objectClass=*", r"(uid=\2a\29\28objectClass=\2a)"),
            ("\\", r"(uid=\5c)"),
            ("\0", r"(uid=\00)"),
            ("admin~", "(uid=admin~)"),
        ] {
            assert_eq!(equals_filter("uid", value).as_deref(), Some(expected), "{value:?}");
        }
        assert!(equals_filter("1.2.840.113556.1.4.656;binary", "a").is_some());
    }

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("ldap.example.org", Some(("ldap.example.org", None))),
            ("127.0.0.1:1389", Some(("127.0.0.1", Some(1389)))),
            ("[::1]", Some(("[::1]", None))),
            ("[::1]:1389", Some(("[::1]", Some(1389)))),
            ("::1", None),
            ("[::1", None),
            ("[a]:1", None),
            ("ldap://a:389", None),
            ("a:", None),
            ("a:x", None),
            ("a:70000", None),
            ("user@a", None),
            ("a/b", None),
            ("", None),
        ] {
            assert_eq!(split_address(text), expected, "{text}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let login = Login { name: "cn=a".into(), password: "hush".into() };
        let search = Search {
            base: "dc=b".into(),
            filter: "(cn=a)".into(),
            size_limit: 2,
            time_limit: 5,
            groups: None,
        };
        let work = Work::SearchAndBind { service: login, search, password: "secret".into() };
        let shown = format!("{work:?}");
        assert!(!shown.contains("hush") && !shown.contains("secret"), "{shown}");
    }

    proptest! {
        // RFC 4514 §3: what the escaped text means is what was escaped.
        #[test]
        fn escaped_names_mean_what_was_written(value in any::<String>()) {
            let escaped = escape_dn(&value);
            let mut read = String::new();
            let mut rest = escaped.chars();
            while let Some(character) = rest.next() {
                match character {
                    '\\' => match rest.next() {
                        Some('0') => {
                            prop_assert_eq!(rest.next(), Some('0'));
                            read.push('\0');
                        }
                        Some(other) => read.push(other),
                        None => prop_assert!(false, "ends in a backslash"),
                    },
                    ',' | '+' | '"' | '<' | '>' | ';' | '\0' => prop_assert!(false, "not escaped: {}", character),
                    other => read.push(other),
                }
            }
            prop_assert_eq!(read, value);
        }

        #[test]
        fn filters_stay_one_comparison(value in any::<String>()) {
            let filter = equals_filter("cn", &value).expect("a filter");
            let inner = &filter[1..filter.len() - 1];
            prop_assert!(!inner.contains(['(', ')', '*', '\0']));
        }

        #[test]
        fn any_text_may_be_an_address(text in any::<String>()) {
            let _ = split_address(&text);
        }
    }
}
