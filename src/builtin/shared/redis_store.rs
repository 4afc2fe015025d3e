//! Texts kept in a Redis for a while, for plugins that keep sessions there.
//!
//! One connection, made when first needed, is shared by all requests; a broken one is replaced and the command tried
//! once more. Every command ends within its time-out.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, aio::MultiplexedConnection, cmd,
};
use tokio::sync::Mutex;

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
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Whether its certificate must be valid.
    pub verify: bool,
    /// The longest that connecting may take.
    pub connect_timeout: Duration,
    /// The longest that a command may take.
    pub timeout: Duration,
}

/// Keeps texts.
pub struct RedisStore {
    client: Client,
    settings: AsyncConnectionConfig,
    peer: String,
    prefix: String,
    // Held while a connection is made, so that a Redis that comes back is not run over.
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl RedisStore {
    /// Prepares the connection; nothing is sent.
    ///
    /// # Errors
    /// The options make no address.
    pub fn new(options: Options) -> Result<Self, String> {
        let peer = format!("redis {}:{}", options.host, options.port);
        let address = match options.tls {
            false => ConnectionAddr::Tcp(options.host, options.port),
            true => ConnectionAddr::TcpTls {
                host: options.host,
                port: options.port,
                insecure: !options.verify,
                tls_params: None,
            },
        };
        let mut login = RedisConnectionInfo::default().set_db(options.database);
        if let Some(username) = options.username {
            login = login.set_username(username);
        }
        if let Some(password) = options.password {
            login = login.set_password(password);
        }
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(options.connect_timeout))
            .set_response_timeout(Some(options.timeout));
        let client = address
            .into_connection_info()
            .and_then(|info| Client::open(info.set_redis_settings(login)))
            .map_err(|error| told(&peer, &error))?;
        Ok(Self { client, settings, peer, prefix: options.prefix, connection: Mutex::new(None) })
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
            let mut connection = self.connected().await.map_err(|error| told(&self.peer, &error))?;
            match command.query_async(&mut connection).await {
                Ok(answer) => return Ok(answer),
                // Every command here may be given twice.
                Err(error) if !tried && (error.is_connection_dropped() || error.is_io_error()) => {
                    tried = true;
                    *self.connection.lock().await = None;
                }
                Err(error) => {
                    *self.connection.lock().await = None;
                    return Err(told(&self.peer, &error));
                }
            }
        }
    }

    async fn connected(&self) -> Result<MultiplexedConnection, RedisError> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = &*kept {
            return Ok(connection.clone());
        }
        let connection = self.client.get_multiplexed_async_connection_with_config(&self.settings).await?;
        *kept = Some(connection.clone());
        Ok(connection)
    }
}

fn told(peer: &str, error: &RedisError) -> String {
    format!("{peer}: {error}")
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
            tls: false,
            verify: true,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
        })
        .unwrap();
        let error = store.get("a").await.unwrap_err();
        assert!(error.starts_with(&format!("redis {free}: ")) && !error.contains("secret"), "{error}");
    }
}
