//! Huge pages: a waste for a small configuration, good for a large one.
//!
//! The allocator asks for memory in huge pages where the system leaves that to programs (`madvise`, as Debian does). An
//! empty gateway touches a few places of each and pays for all of it: 9 MB. With many resources the pages fill, and
//! one lookup among 100,000 routes meets fewer of them. Invariant: a matter of speed and size only; where the system
//! does not know huge pages nothing happens.

use nix::sys::prctl::set_thp_disable;

use crate::store::Event;

/// Resources from which on huge pages are worth it: they take about 10 MB.
const MANY: usize = 5_000;

/// Does without huge pages until [`for_all`] says otherwise. To be called first of all: a page that is there stays.
pub fn small() {
    // Refused only by systems without huge pages.
    let _ = set_thp_disable(true);
}

/// To be called before this is compiled.
pub fn for_all(loaded: &[Event]) {
    let count = |event: &Event| match event {
        Event::Reset { entries, .. } => entries.len(),
        Event::Changes { changes, .. } => changes.len(),
    };
    if loaded.iter().map(count).sum::<usize>() >= MANY {
        let _ = set_thp_disable(false);
    }
}
