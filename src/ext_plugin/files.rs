//! The files that a runner is made of: whether they changed.
//!
//! Invariant: what counts is the files alone. A directory changes, too, when an interpreter leaves a cache there as it
//! starts, and each start would be followed by another one.

use std::{
    fs::{self, Metadata},
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;

/// Files and directories that are looked at, at most.
const MOST: usize = 10_000;

/// Between two looks at files that have just changed: who writes them may not be done yet.
const SETTLE: Duration = Duration::from_millis(250);

/// Such looks, after which nobody is waited for.
const SETTLES: usize = 20;

/// Files as they were at some time; another one if one of them was written, moved, added or removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct State(u64);

impl State {
    /// Looks at files, and at those in directories.
    pub async fn of(paths: &[PathBuf]) -> Self {
        let paths = paths.to_vec();
        tokio::task::spawn_blocking(move || Self::now(paths)).await.unwrap_or_default()
    }

    /// Looks until nothing changes any more. Half of a program does not start, and a half-copied plugin does not load.
    pub async fn settled(mut self, paths: &[PathBuf]) -> Self {
        for _ in 0..SETTLES {
            sleep(SETTLE).await;
            let now = Self::of(paths).await;
            if now == self {
                break;
            }
            self = now;
        }
        self
    }

    fn now(mut open: Vec<PathBuf>) -> Self {
        let (mut state, mut count) = (0_u64, 0);
        while let Some(path) = open.pop() {
            if is_cache(&path) {
                continue;
            }
            // One that has gone meanwhile is one less.
            let Ok(meta) = fs::metadata(&path) else { continue };
            count += 1;
            if !meta.is_dir() {
                // A sum: directories are read in any order.
                state = state.wrapping_add(hash(&path, &meta));
            } else if count < MOST {
                open.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            }
        }
        Self(state)
    }
}

/// What compilers and package managers leave there changes by itself.
fn is_cache(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "__pycache__" || name == "node_modules")
}

fn hash(path: &Path, meta: &Metadata) -> u64 {
    let mut hasher = DefaultHasher::new();
    (path, meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_change() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let now = || State::now(vec![home.path().to_owned(), at("not there")]);
        fs::write(at("a.py"), "1").unwrap();
        fs::create_dir(at("below")).unwrap();
        fs::write(at("below/b.py"), "2").unwrap();
        let mut before = now();
        assert_eq!(now(), before);
        let mut changed = |what: &str, change: &dyn Fn(), expected: bool| {
            change();
            assert_eq!(now() != before, expected, "{what}");
            before = now();
        };
        changed("written", &|| fs::write(at("a.py"), "two").unwrap(), true);
        changed("written below", &|| fs::write(at("below/b.py"), "three").unwrap(), true);
        changed("added", &|| fs::write(at("c.py"), "").unwrap(), true);
        changed("renamed", &|| fs::rename(at("c.py"), at("d.py")).unwrap(), true);
        changed("replaced by an older one", &|| fs::rename(at("d.py"), at("a.py")).unwrap(), true);
        changed("removed", &|| fs::remove_file(at("a.py")).unwrap(), true);
        changed("a cache", &|| fs::create_dir(at("__pycache__")).unwrap(), false);
        changed("in a cache", &|| fs::write(at("__pycache__/a.pyc"), "1").unwrap(), false);
        changed("packages", &|| fs::create_dir_all(at("below/node_modules/x")).unwrap(), false);
    }
}
