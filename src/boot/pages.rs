//! Huge pages: a waste for a small configuration, good for a large one.
//!
//! The allocator asks for memory in huge pages where the system leaves that to programs (`madvise`, as Debian does). An
//! empty gateway touches a few places of each and pays for all of it: 9 MB. With many resources the pages fill, and
//! one lookup among 100,000 routes meets fewer of them. Invariant: a matter of speed and size only; where the system
//! does not know huge pages nothing happens.

use std::{env, os::unix::process::CommandExt, process::Command};

use nix::sys::prctl::{get_thp_disable, set_thp_disable};

use crate::store::Event;

/// Resources from which on huge pages are worth it: they take about 10 MB.
const MANY: usize = 5_000;

/// Does without huge pages until [`for_all`] says otherwise. To be called first of all.
///
/// The allocator has taken two of them before `main`, and a page that is there stays. So the program begins once more,
/// as the same process, which keeps what was switched off (PR_SET_THP_DISABLE in prctl(2)).
pub fn small() {
    let is_off = || get_thp_disable() == Ok(true);
    if is_off() {
        return;
    }
    // Refused only by systems without huge pages, where there is nothing to be gained either.
    let _ = set_thp_disable(true);
    let (Ok(program), mut arguments) = (env::current_exe(), env::args_os()) else { return };
    let Some(name) = arguments.next().filter(|_| is_off()) else { return };
    // It returns only if it failed, and larger by 4 MB the program works as well.
    let _ = Command::new(program).arg0(name).args(arguments).exec();
}

/// Lets those who are started from here have huge pages: the choice above goes on to them.
pub fn any() {
    let _ = set_thp_disable(false);
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
