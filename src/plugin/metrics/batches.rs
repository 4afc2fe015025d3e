//! How many log entries wait in batches. APISIX: batch-processor.lua `set_metrics`.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::text;

/// Name of the processor, route of its first entry, address of the listener.
pub type Labels = [String; 3];

/// See the module.
#[derive(Default)]
pub struct Batches {
    // Locked by the thread of the loggers and by scrapes, never per request.
    waiting: Mutex<BTreeMap<Labels, usize>>,
}

impl Batches {
    /// So many entries wait.
    pub fn set(&self, labels: &Labels, waiting: usize) {
        let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(labels) {
            Some(known) => *known = waiting,
            None => _ = all.insert(labels.clone(), waiting),
        }
    }

    /// The processor is gone.
    pub fn remove(&self, labels: &Labels) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(labels);
    }

    pub(super) fn render(&self, out: &mut String, prefix: &str) {
        let all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if all.is_empty() {
            return;
        }
        let name = format!("{prefix}batch_process_entries");
        text::family(out, &name, "batch process remaining entries", "gauge");
        for ([processor, route, server], waiting) in &all {
            let labels = [("name", &**processor), ("route_id", &**route), ("server_addr", &**server)];
            text::sample(out, &name, &labels, waiting);
        }
    }
}
