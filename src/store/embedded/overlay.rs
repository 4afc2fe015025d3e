//! A file as a database may change it in memory: for one that must be read and cannot be written.
//!
//! A process that was killed while it wrote leaves work to be done before the content can be read. What that changes is
//! kept here, page by page; the rest is read from the file when it is asked for.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt, sync::Mutex};

use redb::StorageBackend;

const PAGE: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct Overlay {
    file: File,
    changed: Mutex<Changed>,
}

#[derive(Debug)]
struct Changed {
    length: u64,
    /// Of the file only this much counts; behind it are zeros.
    valid: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

/// One page and what of it is meant: `(number, from, until)`.
fn pages(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + length as u64;
    let first = offset / PAGE as u64;
    (first..end.div_ceil(PAGE as u64)).map(move |number| {
        let start = number * PAGE as u64;
        let within = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(PAGE).min(PAGE);
        (number, within(offset), within(end))
    })
}

impl Overlay {
    /// Over a file that nobody else writes to.
    ///
    /// # Errors
    /// Its length cannot be had.
    pub fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, changed: Mutex::new(Changed { length, valid: length, pages: BTreeMap::new() }) })
    }

    fn changed(&self) -> std::sync::MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What the file has at this place.
    fn original(&self, valid: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(valid.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let (from_file, beyond) = out.split_at_mut(there);
        beyond.fill(0);
        self.file.read_exact_at(from_file, offset)
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.changed().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let changed = self.changed();
        if offset.saturating_add(out.len() as u64) > changed.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        for (number, from, until) in pages(offset, out.len()) {
            let part = &mut out[done..done + (until - from)];
            done += part.len();
            match changed.pages.get(&number) {
                Some(page) => part.copy_from_slice(&page[from..until]),
                None => self.original(changed.valid, number * PAGE as u64 + from as u64, part)?,
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut changed = self.changed();
        if length < changed.length {
            changed.valid = changed.valid.min(length);
            changed.pages.retain(|number, _| number * (PAGE as u64) < length);
            let within = usize::try_from(length % PAGE as u64).unwrap_or(0);
            if let Some(page) = changed.pages.get_mut(&(length / PAGE as u64)) {
                page[within..].fill(0);
            }
        }
        changed.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changed = self.changed();
        if offset.saturating_add(data.len() as u64) > changed.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        for (number, from, until) in pages(offset, data.len()) {
            let part = &data[done..done + (until - from)];
            done += part.len();
            if !changed.pages.contains_key(&number) {
                let mut page = vec![0; PAGE].into_boxed_slice();
                self.original(changed.valid, number * PAGE as u64, &mut page)?;
                changed.pages.insert(number, page);
            }
            if let Some(page) = changed.pages.get_mut(&number) {
                page[from..until].copy_from_slice(part);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use redb::backends::InMemoryBackend;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Length(u16),
        Write(u16, Vec<u8>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => (0..20_000u16).prop_map(Step::Length),
            4 => (0..20_000u16, proptest::collection::vec(any::<u8>(), 0..6_000)).prop_map(|(at, data)| Step::Write(at, data)),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_copy_of_the_file(
            content in proptest::collection::vec(any::<u8>(), 0..16_000),
            steps in proptest::collection::vec(step(), 0..12),
        ) {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&content).unwrap();
            let overlay = Overlay::new(file.try_clone().unwrap()).unwrap();
            let copy = InMemoryBackend::new();
            copy.set_len(content.len() as u64).unwrap();
            copy.write(0, &content).unwrap();
            for step in steps {
                match step {
                    Step::Length(length) => {
                        overlay.set_len(length.into()).unwrap();
                        copy.set_len(length.into()).unwrap();
                    }
                    Step::Write(at, data) if u64::from(at) + data.len() as u64 <= copy.len().unwrap() => {
                        overlay.write(at.into(), &data).unwrap();
                        copy.write(at.into(), &data).unwrap();
                    }
                    Step::Write(at, data) => prop_assert!(overlay.write(at.into(), &data).is_err()),
                }
                let length = copy.len().unwrap();
                prop_assert_eq!(overlay.len().unwrap(), length);
                let (mut one, mut other) = (vec![1; length as usize], vec![2; length as usize]);
                overlay.read(0, &mut one).unwrap();
                copy.read(0, &mut other).unwrap();
                prop_assert_eq!(one, other);
                prop_assert!(overlay.read(length, &mut [0]).is_err());
            }
            let mut now = vec![0; content.len()];
            file.read_exact_at(&mut now, 0).unwrap();
            prop_assert_eq!(now, content, "the file is as it was");
        }
    }
}
