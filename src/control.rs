//! The one loop that turns store events into snapshots.
