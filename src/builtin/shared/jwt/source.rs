//! Published keys that somebody else keeps: fetched by URL when they are first asked for, then refreshed off the
//! request path, and kept while their source is down.
//!
//! Invariant: a request waits for a fetch only if there are no keys yet, or none with the `kid` it brings; strangers
//! cause at most one fetch in [`RETRY`].

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use sha2::{Digest, Sha256};
use tracing::warn;

use super::jwks::KeySet;
use crate::builtin::shared::http_call::{Call, Client, Options};

/// The least time between two fetches from one source.
const RETRY: Duration = Duration::from_secs(5);

/// The largest document that is read, in bytes.
const LARGEST: usize = 1 << 20;

/// The keys as they were last fetched.
pub struct Current {
    /// The keys.
    pub keys: KeySet,
    /// Another one when the document is another.
    pub print: [u8; 32],
    fetched: Instant,
}

/// Where keys come from.
pub struct Source {
    url: String,
    client: Client,
    refresh: Duration,
    retry: Duration,
    current: ArcSwapOption<Current>,
    // Waited for only by requests that cannot be judged before the fetch of another one has ended.
    last_try: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

/// What makes two configurations share their keys: address, verification of certificates, refresh.
type Key = (String, bool, Duration);

// Locked while a configuration is compiled, never per request. Sources that no configuration holds go with the last.
static SOURCES: LazyLock<Mutex<HashMap<Key, Weak<Source>>>> = LazyLock::new(Mutex::default);

impl Source {
    /// The source at an address; one for all who ask for the same. Nothing is fetched yet.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn at(url: &str, verify: bool, refresh: Duration) -> Result<Arc<Self>, String> {
        let mut sources = SOURCES.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (url.to_owned(), verify, refresh);
        if let Some(source) = sources.get(&key).and_then(Weak::upgrade) {
            return Ok(source);
        }
        let source = Arc::new(Self::new(url, verify, refresh, RETRY)?);
        sources.retain(|_, source| source.strong_count() > 0);
        sources.insert(key, Arc::downgrade(&source));
        Ok(source)
    }

    fn new(url: &str, verify: bool, refresh: Duration, retry: Duration) -> Result<Self, String> {
        let options =
            Options { verify, timeout: Duration::from_secs(5), max_body: LARGEST, ..Options::default() };
        Ok(Self {
            url: url.to_owned(),
            client: Client::new(&options)?,
            refresh,
            retry,
            current: ArcSwapOption::empty(),
            last_try: Arc::default(),
        })
    }

    /// The keys. Waits for them the first time; later a fetch goes on beside the requests.
    ///
    /// # Errors
    /// There are none yet, and why they could not be fetched.
    pub async fn keys(self: &Arc<Self>) -> Result<Arc<Current>, String> {
        let Some(current) = self.current.load_full() else {
            let mut last_try = self.last_try.lock().await;
            if let Some(current) = self.current.load_full() {
                return Ok(current);
            }
            return self.fetch(&mut last_try).await;
        };
        if current.fetched.elapsed() > self.refresh
            && let Ok(mut last_try) = self.last_try.clone().try_lock_owned()
            && !self.is_too_soon(*last_try)
        {
            let source = self.clone();
            tokio::spawn(async move { source.fetch(&mut last_try).await });
        }
        Ok(current)
    }

    /// Newer keys than these, fetched now unless that was tried a moment ago; `None` if there are none.
    pub async fn newer(&self, than: &Arc<Current>) -> Option<Arc<Current>> {
        let mut last_try = self.last_try.lock().await;
        let current = self.current.load_full().filter(|current| !Arc::ptr_eq(current, than));
        match current {
            Some(current) => Some(current),
            None => self.fetch(&mut last_try).await.ok(),
        }
    }

    fn is_too_soon(&self, last_try: Option<Instant>) -> bool {
        last_try.is_some_and(|at| at.elapsed() < self.retry)
    }

    async fn fetch(&self, last_try: &mut Option<Instant>) -> Result<Arc<Current>, String> {
        if self.is_too_soon(*last_try) {
            return Err("the keys could not be fetched a moment ago".into());
        }
        *last_try = Some(Instant::now());
        match self.document().await {
            Ok(current) => {
                let current = Arc::new(current);
                self.current.store(Some(current.clone()));
                Ok(current)
            }
            Err(reason) => {
                warn!(%reason, "cannot fetch published keys; those that are known stay in use");
                Err(reason)
            }
        }
    }

    async fn document(&self) -> Result<Current, String> {
        let answer = self.client.send(Call::get(&self.url)).await.map_err(|e| e.to_string())?;
        if answer.status != http::StatusCode::OK {
            return Err(format!("the source of keys answered {}", answer.status.as_u16()));
        }
        let keys = KeySet::parse(&answer.body)?;
        if keys.is_empty() {
            return Err("the source of keys has none that can be used".into());
        }
        Ok(Current { keys, print: Sha256::digest(&answer.body).into(), fetched: Instant::now() })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// Answers every connection with the body, or not at all.
    struct Server {
        body: Arc<Mutex<Option<&'static str>>>,
        asked: Arc<AtomicUsize>,
        url: String,
    }

    impl Server {
        fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}/keys", listener.local_addr().unwrap());
            let (body, asked) = (Arc::new(Mutex::new(None::<&str>)), Arc::new(AtomicUsize::new(0)));
            let (said, counted) = (body.clone(), asked.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    counted.fetch_add(1, Ordering::SeqCst);
                    let Some(body) = *said.lock().unwrap() else { continue };
                    let _ = stream.read(&mut [0; 4096]);
                    let length = body.len();
                    let _ = write!(
                        stream,
                        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
                    );
                }
            });
            Self { body, asked, url }
        }

        fn says(&self, body: Option<&'static str>) {
            *self.body.lock().unwrap() = body;
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }

        fn source(&self, refresh: Duration, retry: Duration) -> Arc<Source> {
            Arc::new(Source::new(&self.url, true, refresh, retry).unwrap())
        }
    }

    const ONE: &str =
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    const OTHER: &str =
        r#"{"keys":[ {"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn keys_stay_while_their_source_is_down() {
        let server = Server::new();
        let source = server.source(Duration::ZERO, Duration::ZERO);
        assert!(source.keys().await.is_err());
        server.says(Some(ONE));
        let first = source.keys().await.unwrap();
        assert_eq!(first.keys.len(), 1);
        server.says(None);
        assert!(source.newer(&first).await.is_none());
        assert!(Arc::ptr_eq(&source.keys().await.unwrap(), &first));
        server.says(Some(OTHER));
        // The fetch goes on beside the requests, which get what is there.
        let begun = Instant::now();
        while source.keys().await.unwrap().print == first.print {
            assert!(begun.elapsed() < Duration::from_secs(30), "no fetch in the background");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let source = server.source(LONG, Duration::ZERO);
        assert!(source.keys().await.is_ok());
        for useless in [r#"{"keys":[]}"#, "no JSON"] {
            server.says(Some(useless));
            let current = source.keys().await.unwrap();
            assert!(source.newer(&current).await.is_none());
        }
        assert_eq!(source.keys().await.unwrap().keys.len(), 1);
    }

    #[tokio::test]
    async fn fetches_are_bounded() {
        let server = Server::new();
        server.says(Some(ONE));
        let source = server.source(LONG, LONG);
        let first = source.keys().await.unwrap();
        for _ in 0..10 {
            assert!(source.keys().await.is_ok());
            assert!(source.newer(&first).await.is_none());
        }
        assert_eq!(server.asked(), 1);
        let source = server.source(LONG, Duration::ZERO);
        let first = source.keys().await.unwrap();
        server.says(Some(OTHER));
        assert!(source.newer(&first).await.is_some_and(|newer| newer.print != first.print));
        assert!(source.newer(&first).await.is_some());
        assert_eq!(server.asked(), 3, "the second one who asks gets what the first one fetched");
    }

    #[test]
    fn equal_sources_are_shared() {
        let at = |url: &str, verify| Source::at(url, verify, LONG).unwrap();
        let one = at("http://127.0.0.1:1/shared", true);
        assert!(Arc::ptr_eq(&one, &at("http://127.0.0.1:1/shared", true)));
        assert!(!Arc::ptr_eq(&one, &at("http://127.0.0.1:1/shared", false)));
        assert!(!Arc::ptr_eq(&one, &at("http://127.0.0.1:1/other", true)));
    }
}
