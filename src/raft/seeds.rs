//! Whole states that this member hands out to members that do not trust their own: the other side of [`super::reseed`].
//!
//! It is the stream of a snapshot, and pulled: whoever asks is not a member yet that could be pushed to, and need not be asked
//! by a leader. Each keeps a view of the tables open, and with it the pages of that moment, so there are few, and one that
//! nobody pulls goes.
//!
//! Invariants
//! - there is one for each member, and a new beginning drops the old one;
//! - a piece is handed out once: after a lost answer a member begins anew.

use super::network::CHUNK_BYTES;
use super::state::State;
use crate::error::{Fault, Reason};
use crate::mvcc::{LoadError, SnapshotReader};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How many are handed out at once.
const SEEDS_MAX: usize = 2;
/// How long one may rest.
const REST_MAX: Duration = Duration::from_secs(30);

/// The states that are being handed out, by who gets them. None, once this member has ended.
#[derive(Debug)]
pub(crate) struct Seeds(Mutex<Option<HashMap<u64, Seed>>>);

#[derive(Debug)]
struct Seed {
    reader: SnapshotReader,
    sent: u64,
    /// When it was pulled last.
    at: Instant,
}

impl Default for Seeds {
    fn default() -> Self {
        Self(Mutex::new(Some(HashMap::new())))
    }
}

impl Seeds {
    fn seeds(&self) -> MutexGuard<'_, Option<HashMap<u64, Seed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, to: u64, seed: Seed) -> Result<(), Fault> {
        let mut seeds = self.seeds();
        let Some(seeds) = seeds.as_mut() else { return Err(Fault::from_reason(Reason::Closed)) };
        if seeds.len() >= SEEDS_MAX && !seeds.contains_key(&to) {
            return Err(Fault::from_reason(Reason::TooManyRequests));
        }
        seeds.insert(to, seed);
        Ok(())
    }

    fn take(&self, to: u64) -> Option<Seed> {
        self.seeds().as_mut()?.remove(&to)
    }

    /// The piece that begins at `offset`; nothing after the last. Reads the disk.
    pub(super) fn next(&self, to: u64, offset: u64) -> Result<Bytes, LoadError> {
        let Some(mut seed) = self.take(to).filter(|seed| seed.sent == offset) else {
            return Err(LoadError::Malformed("seed: this piece is not the next one"));
        };
        let Some(piece) = seed.reader.next_chunk(CHUNK_BYTES)? else { return Ok(Bytes::new()) };
        seed.sent += piece.len() as u64;
        seed.at = Instant::now();
        self.put(to, seed)?;
        Ok(piece)
    }

    /// Drops those that nobody pulls any more.
    pub(super) fn drop_idle(&self) {
        if let Some(seeds) = self.seeds().as_mut() {
            seeds.retain(|_, seed| seed.at.elapsed() < REST_MAX);
        }
    }

    /// Drops all of them, for good.
    pub(super) fn close(&self) {
        drop(self.seeds().take());
    }
}

impl State {
    /// Begins to hand out what is applied by now.
    pub(super) async fn begin_seed(self: &Arc<Self>, to: u64) -> Result<(), Fault> {
        drop(self.seeds.take(to));
        let view = self.flushed_view().await?;
        self.seeds.put(to, Seed { reader: SnapshotReader::new(view), sent: 0, at: Instant::now() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::{Body, Entry, LogPosition};

    fn filled(folder: &std::path::Path) -> Arc<State> {
        let state = State::open_unsynced(folder);
        let position = LogPosition { term: 1, node: 1, index: 1 };
        state.apply_for_test(&[Entry { position, body: Body::Blank }]);
        state
    }

    fn is_malformed(piece: &Result<Bytes, LoadError>) -> bool {
        matches!(piece, Err(LoadError::Malformed(_)))
    }

    #[tokio::test]
    async fn each_member_gets_one_from_the_beginning_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let state = filled(folder.path());
        assert!(is_malformed(&state.seeds.next(2, 0)), "it has not begun");
        state.begin_seed(2).await.unwrap();
        let first = state.seeds.next(2, 0).unwrap();
        state.begin_seed(2).await.unwrap();
        assert!(is_malformed(&state.seeds.next(2, first.len() as u64)), "it has begun anew");
        state.begin_seed(2).await.unwrap();
        assert_eq!(state.seeds.next(2, 0).unwrap(), first);
        assert_eq!(state.seeds.next(2, first.len() as u64).unwrap(), Bytes::new(), "that was all");
        assert!(is_malformed(&state.seeds.next(2, first.len() as u64)));
    }

    /// Each keeps pages from being reused.
    #[tokio::test]
    async fn there_are_few_and_none_outlives_its_use() {
        let folder = tempfile::tempdir().unwrap();
        let state = filled(folder.path());
        for to in [2, 3, 2] {
            state.begin_seed(to).await.unwrap();
        }
        let refused = state.begin_seed(4).await.unwrap_err();
        assert_eq!(*refused.reason(), Reason::TooManyRequests);
        state.seeds.drop_idle();
        assert!(state.begin_seed(4).await.is_err(), "they are young");
        tokio::time::pause();
        tokio::time::advance(REST_MAX).await;
        state.seeds.drop_idle();
        tokio::time::resume();
        state.begin_seed(4).await.unwrap();
        assert!(state.close(Duration::from_secs(10)), "it is not kept open");
        assert!(state.begin_seed(4).await.is_err());
    }
}
