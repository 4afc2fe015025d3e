//! A document of somebody else's server: fetched when first needed, kept fresh in the background after that.
//!
//! While the source is down the last document stays in use: a provider that restarts must not lock everybody out.
//! One fetch serves all who wait for it, and a source that just failed is left alone for a moment.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;

/// How long a source is left alone after it failed.
const PAUSE: Duration = Duration::from_secs(1);

/// How old a document is at least when it is fetched again because it lacked something: whoever sends tokens with
/// invented key ids must not make us call the provider for each.
const RENEWABLE: Duration = Duration::from_secs(5);

/// A document and when it came.
pub struct Kept<T> {
    /// Differs from that of every other document of the same source.
    pub generation: u64,
    since: Instant,
    document: T,
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.document
    }
}

/// A source of one document.
pub struct Fresh<T> {
    current: ArcSwapOption<Kept<T>>,
    // Held while somebody fetches, so that one fetch serves all who have nothing yet. Holds when and why it failed.
    fetching: Mutex<Option<(Instant, String)>>,
    refreshing: AtomicBool,
    generations: AtomicU64,
}

impl<T> Default for Fresh<T> {
    fn default() -> Self {
        Self {
            current: ArcSwapOption::empty(),
            fetching: Mutex::new(None),
            refreshing: AtomicBool::new(false),
            generations: AtomicU64::new(0),
        }
    }
}

impl<T: Send + Sync + 'static> Fresh<T> {
    /// The document. Only who comes first waits for `fetch`; one older than `lifetime` is answered with while a newer
    /// one is fetched in the background.
    ///
    /// # Errors
    /// There is none yet, and fetching failed.
    pub async fn get<F>(self: &Arc<Self>, lifetime: Duration, fetch: F) -> Result<Arc<Kept<T>>, String>
    where
        F: Future<Output = Result<T, String>> + Send + 'static,
    {
        let Some(kept) = self.current.load_full() else {
            let mut failed = self.fetching.lock().await;
            return match self.current.load_full() {
                Some(kept) => Ok(kept),
                None => self.fetch(&mut failed, fetch).await,
            };
        };
        if kept.since.elapsed() >= lifetime {
            self.refresh(fetch);
        }
        Ok(kept)
    }

    /// A document newer than one that lacks something, or the same if it is too young to be fetched again.
    ///
    /// # Errors
    /// Fetching failed.
    pub async fn renew<F>(&self, lacking: &Kept<T>, fetch: F) -> Result<Arc<Kept<T>>, String>
    where
        F: Future<Output = Result<T, String>>,
    {
        let mut failed = self.fetching.lock().await;
        if let Some(kept) = self.current.load_full()
            && (kept.generation != lacking.generation || kept.since.elapsed() < RENEWABLE)
        {
            return Ok(kept);
        }
        self.fetch(&mut failed, fetch).await
    }

    fn refresh<F>(self: &Arc<Self>, fetch: F)
    where
        F: Future<Output = Result<T, String>> + Send + 'static,
    {
        if self.refreshing.swap(true, Ordering::Acquire) {
            return;
        }
        let refreshing = Refreshing(self.clone());
        tokio::spawn(async move {
            let source = &refreshing.0;
            let mut failed = source.fetching.lock().await;
            if failed.as_ref().is_some_and(|(at, _)| at.elapsed() < PAUSE) {
                return;
            }
            if let Err(error) = source.fetch(&mut failed, fetch).await {
                tracing::warn!(%error, "a document could not be refreshed, the last one stays in use");
            }
        });
    }

    async fn fetch<F>(&self, failed: &mut Option<(Instant, String)>, fetch: F) -> Result<Arc<Kept<T>>, String>
    where
        F: Future<Output = Result<T, String>>,
    {
        if let Some((at, error)) = failed
            && at.elapsed() < PAUSE
        {
            return Err(error.clone());
        }
        match fetch.await {
            Ok(document) => {
                *failed = None;
                let generation = self.generations.fetch_add(1, Ordering::Relaxed);
                let kept = Arc::new(Kept { generation, since: Instant::now(), document });
                self.current.store(Some(kept.clone()));
                Ok(kept)
            }
            Err(error) => {
                *failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

/// Ends a refresh, also one that is dropped midway.
struct Refreshing<T>(Arc<Fresh<T>>);

impl<T> Drop for Refreshing<T> {
    fn drop(&mut self) {
        self.0.refreshing.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    async fn counted(calls: Arc<AtomicUsize>, answer: Result<u32, String>) -> Result<u32, String> {
        calls.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        answer
    }

    #[tokio::test]
    async fn one_fetch_serves_all() {
        let (source, calls) = (Arc::new(Fresh::default()), Arc::new(AtomicUsize::new(0)));
        let one = source.get(LONG, counted(calls.clone(), Ok(1)));
        let other = source.get(LONG, counted(calls.clone(), Ok(2)));
        let (one, other) = tokio::join!(one, other);
        assert_eq!((**one.unwrap(), **other.unwrap(), calls.load(Ordering::SeqCst)), (1, 1, 1));
    }

    #[tokio::test]
    async fn a_source_that_failed_is_left_alone() {
        let (source, calls) = (Arc::new(Fresh::<u32>::default()), Arc::new(AtomicUsize::new(0)));
        for _ in 0..3 {
            let answer = source.get(LONG, counted(calls.clone(), Err("down".into()))).await;
            assert_eq!(answer.err().as_deref(), Some("down"));
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn the_old_one_serves_until_there_is_a_newer_one() {
        let (source, calls) = (Arc::new(Fresh::default()), Arc::new(AtomicUsize::new(0)));
        source.get(LONG, counted(calls.clone(), Ok(1))).await.unwrap();
        let old = source.get(Duration::ZERO, counted(calls.clone(), Ok(2))).await.unwrap();
        assert_eq!(**old, 1);
        while **source.get(LONG, counted(calls.clone(), Ok(9))).await.unwrap() == 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        let failing = counted(calls.clone(), Err("down".into()));
        assert_eq!(**source.get(Duration::ZERO, failing).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn is_not_renewed_again_and_again() {
        let (source, calls) = (Arc::new(Fresh::default()), Arc::new(AtomicUsize::new(0)));
        let first = source.get(LONG, counted(calls.clone(), Ok(1))).await.unwrap();
        let same = source.renew(&first, counted(calls.clone(), Ok(2))).await.unwrap();
        assert_eq!((same.generation, calls.load(Ordering::SeqCst)), (first.generation, 1));
    }
}
