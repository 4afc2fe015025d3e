//! Texts kept in a Redis for a while, for plugins that keep sessions there.
//!
//! One connection, made when first needed, is shared by all requests; a broken one is replaced and the command tried
//! once more, and one that nobody needs for a while is closed. Every command ends within its time-outs.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Cmd, FromRedisValue, RedisConnectionInfo, RedisError, aio::MultiplexedConnection,
    cmd,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Mutex,
    time::timeout,
};
use tokio_native_tls::TlsConnector;

use super::tls;

/// Where the Redis is and how it is spoken to.
#[derive(Clone)]
pub struct Options {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The user to authenticate as; none: the default user.
    pub username: Option<String>,
    /// The password; none: no authentication.
    pub password: Option<String>,
    /// The number of the database.
    pub database: i64,
    /// What keys begin with; a colon follows.
    pub prefix: String,
    /// TLS, if it is spoken.
    pub tls: Option<Tls>,
    /// The longest that connecting and authenticating may take.
    pub connect_timeout: Duration,
    /// The longest that a command may take.
    pub timeout: Duration,
    /// How long the connection is kept when nobody needs it.
    pub idle: Duration,
}

/// How TLS is spoken.
#[derive(Clone)]
pub struct Tls {
    /// Whether the certificate must be valid.
    pub verify: bool,
    /// The name that is asked for and that the certificate must have; none: the host.
    pub server_name: Option<String>,
}

/// Keeps texts.
pub struct RedisStore {
    host: String,
    port: u16,
    login: RedisConnectionInfo,
    tls: Option<(TlsConnector, String)>,
    connect_timeout: Duration,
    timeout: Duration,
    idle: Duration,
    prefix: String,
    // Held while a connection is made, so that a Redis that comes back is not run over.
    kept: Arc<Mutex<Option<Kept>>>,
}

/// The connection and when it was last needed.
struct Kept {
    connection: MultiplexedConnection,
    used: Instant,
}

impl RedisStore {
    /// Prepares the connection; nothing is sent.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(options: Options) -> Result<Self, String> {
        let tls = match options.tls {
            None => None,
            Some(tls) => {
                let connector = tls::connector(tls.verify)?.into();
                Some((connector, tls.server_name.unwrap_or_else(|| options.host.clone())))
            }
        };
        let mut login = RedisConnectionInfo::default().set_db(options.database);
        if let Some(username) = options.username {
            login = login.set_username(username);
        }
        if let Some(password) = options.password {
            login = login.set_password(password);
        }
        Ok(Self {
            host: options.host,
            port: options.port,
            login,
            tls,
            connect_timeout: options.connect_timeout,
            timeout: options.timeout,
            idle: options.idle,
            prefix: options.prefix,
            kept: Arc::default(),
        })
    }

    /// The text under a key.
    ///
    /// # Errors
    /// The Redis does not answer, or not as it should.
    pub async fn get(&self, key: &str) -> Result<Option<String>, String> {
        self.run(cmd("GET").arg(self.key(key))).await
    }

    /// Keeps a text for so many seconds.
    ///
    /// # Errors
    /// As above.
    pub async fn put(&self, key: &str, text: &str, seconds: u64) -> Result<(), String> {
        self.run(cmd("SET").arg(self.key(key)).arg(text).arg("EX").arg(seconds)).await
    }

    /// Forgets a key.
    ///
    /// # Errors
    /// As above.
    pub async fn delete(&self, key: &str) -> Result<(), String> {
        self.run(cmd("DEL").arg(self.key(key))).await
    }

    fn key(&self, key: &str) -> String {
        format!("{}:{key}", self.prefix)
    }

    async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, String> {
        let mut tried = false;
        loop {
            let mut connection = self.connected().await?;
            match command.query_async(&mut connection).await {
                Ok(answer) => return Ok(answer),
                // Every command here may be given twice.
                Err(error) if !tried && (error.is_connection_dropped() || error.is_io_error()) => {
                    tried = true;
                    *self.kept.lock().await = None;
                }
                Err(error) => {
                    *self.kept.lock().await = None;
                    return Err(self.told(&error.to_string()));
                }
            }
        }
    }

    async fn connected(&self) -> Result<MultiplexedConnection, String> {
        let mut kept = self.kept.lock().await;
        if let Some(kept) = &mut *kept {
            kept.used = Instant::now();
            return Ok(kept.connection.clone());
        }
        let connection = match timeout(self.connect_timeout, self.connect()).await {
            Ok(made) => made.map_err(|error| self.told(&error))?,
            Err(_) => {
                let limit = self.connect_timeout.as_millis();
                return Err(self.told(&format!("no connection within {limit} milliseconds")));
            }
        };
        *kept = Some(Kept { connection: connection.clone(), used: Instant::now() });
        tokio::spawn(close_when_idle(Arc::downgrade(&self.kept), self.idle));
        Ok(connection)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| e.to_string())?;
        // A command is small and must not wait for a second one.
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        match &self.tls {
            None => self.log_in(stream).await,
            Some((tls, name)) => {
                let stream = tls.connect(name, stream).await.map_err(|e| format!("TLS: {e}"))?;
                self.log_in(stream).await
            }
        }
        .map_err(|error| error.to_string())
    }

    async fn log_in<S>(&self, stream: S) -> Result<MultiplexedConnection, RedisError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let settings = AsyncConnectionConfig::new().set_response_timeout(Some(self.timeout));
        let (connection, driver) =
            MultiplexedConnection::new_with_config(&self.login, stream, settings).await?;
        tokio::spawn(driver);
        Ok(connection)
    }

    fn told(&self, error: &str) -> String {
        format!("redis {}:{}: {error}", self.host, self.port)
    }
}

/// Lets go of the connection once nobody needed it for so long; ends with it.
async fn close_when_idle(kept: Weak<Mutex<Option<Kept>>>, idle: Duration) {
    let mut wait = idle;
    loop {
        tokio::time::sleep(wait).await;
        let Some(kept) = kept.upgrade() else { return };
        let mut kept = kept.lock().await;
        let Some(unused) = kept.as_ref().map(|kept| kept.used.elapsed()) else { return };
        if unused >= idle {
            *kept = None;
            return;
        }
        wait = idle - unused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_who_does_not_answer() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let store = RedisStore::new(Options {
            host: "127.0.0.1".into(),
            port: free.port(),
            username: None,
            password: Some("secret".into()),
            database: 0,
            prefix: "sessions".into(),
            tls: None,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            idle: Duration::from_secs(10),
        })
        .unwrap();
        let error = store.get("a").await.unwrap_err();
        assert!(error.starts_with(&format!("redis {free}: ")) && !error.contains("secret"), "{error}");
    }
}
