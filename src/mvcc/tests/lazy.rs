//! The real thing as a member runs it: what is applied is in memory, and goes to the tables now and then.

use super::kit::{MAP_BYTES, open};
use crate::mvcc::tape::Tape;
use crate::mvcc::{Core, Entry, Flush, Recent, View};
use std::sync::Arc;

/// A state whose tables lag behind.
pub(super) struct Lazy {
    folder: tempfile::TempDir,
    pub(super) core: Core,
    flush: Option<Flush>,
    /// What is kept of flushes that were written.
    recent: Recent,
}

impl Lazy {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let core = Core::new(open(folder.path(), MAP_BYTES), 7).unwrap();
        Self { folder, core, flush: None, recent: Recent::default() }
    }

    pub(super) fn view(&self) -> View {
        let moment = Arc::new(self.core.moment());
        View::open(|| Ok(Arc::clone(&moment))).unwrap()
    }

    /// Something that the threads of a member do in between: freeze, write, go on without it, compact; or it dies, and has
    /// the rest of the log applied again.
    pub(super) fn step(&mut self, tape: &mut Tape<'_>, log: &[Entry]) {
        match tape.below(6) {
            0 if !self.core.is_flushing() => self.flush = self.core.freeze(),
            1 | 2 => {
                self.write();
            }
            3 if self.flush.is_none() => self.flushed(),
            4 => drop(self.core.moment().store().compact_step(1 + tape.below(4)).unwrap()),
            5 if tape.once_in(4) => self.reopen(log),
            _ => {}
        }
    }

    pub(super) fn reopen(&mut self, log: &[Entry]) {
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        *self = Self { folder, ..Self::new() };
        let store = open(self.folder.path(), MAP_BYTES);
        self.core = Core::new(store, 8).unwrap();
        let applied = self.core.moment().applied().map_or(0, |at| at.index);
        self.core.apply(&log[applied as usize..]).unwrap();
    }

    pub(super) fn settle(&mut self) {
        self.write();
        self.flushed();
        self.flush = self.core.freeze();
        self.write();
        self.flushed();
    }

    pub(super) fn write(&mut self) {
        if let Some(mut flush) = self.flush.take() {
            flush.write().unwrap();
            self.recent = flush.take_recent();
        }
    }

    pub(super) fn flushed(&mut self) {
        drop(self.core.flushed(self.recent.clone()));
    }
}
