//! Whole states that this member hands out to members that do not trust their own: the other side of [`super::reseed`].
//!
//! It is the stream of a snapshot, and pulled: whoever asks is not a member yet that could be pushed to, and need not be asked
//! by a leader. It goes at the rate of snapshots, and shares that with them ([`super::pace`]).
//!
//! ```text
//! begin 7 ─▶ "it stands at index 90" ─▶ next 7, 0 ─▶ piece ─▶ next 7, 512 Ki ─▶ piece ─▶ … ─▶ nothing more
//!               └ of no use to its log: asks somebody else, and nothing was sent
//! ```
//!
//! Each keeps a view of the tables open, and with it the pages of that moment, so there are few, and one that nobody pulls, or
//! that is pulled too slowly, goes. As long as one is handed out the log is spared as for a snapshot: whoever gets it goes on
//! with what comes behind it.
//!
//! Invariants
//! - there is one for each member, and a new beginning drops the old one;
//! - whoever begins names it, and a question that names another, late or come twice, changes nothing;
//! - a piece is handed out once: after a lost answer a member begins anew.

use super::LogId;
use super::format::log_id;
use super::network::CHUNK_BYTES;
use super::pace::{Pace, Transfer};
use super::state::{Counted, State};
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
    /// What whoever gets it calls it.
    transfer: u64,
    /// Gone while a piece is being read.
    reader: Option<SnapshotReader>,
    sent: u64,
    under_way: Transfer,
    /// When it was pulled last.
    at: Instant,
    sending: Counted,
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

    fn drop_of(&self, to: u64) {
        drop(self.seeds().as_mut().and_then(|seeds| seeds.remove(&to)));
    }

    /// Does something with what a member calls by this name, if it is still that.
    fn with<T>(&self, to: u64, transfer: u64, work: impl FnOnce(&mut Seed) -> T) -> Option<T> {
        let mut seeds = self.seeds();
        let seed = seeds.as_mut()?.get_mut(&to)?;
        (seed.transfer == transfer).then(|| work(seed))
    }

    /// The piece of a transfer that begins at `offset`; nothing after the last. Reads the disk.
    pub(super) fn next(
        &self,
        to: u64,
        transfer: u64,
        offset: u64,
        pace: &Pace,
    ) -> Result<Bytes, LoadError> {
        const NOT_NEXT: LoadError = LoadError::Malformed("seed: this piece is not the next one");
        let take = |seed: &mut Seed| {
            let reader = seed.reader.take_if(|_| seed.sent == offset)?;
            Some((reader, seed.under_way.check(pace, seed.sent, seed.sending.all())))
        };
        let (mut reader, in_time) = self.with(to, transfer, take).flatten().ok_or(NOT_NEXT)?;
        let piece = match in_time {
            Ok(()) => reader.next_chunk(CHUNK_BYTES),
            Err(reason) => Err(Fault::from_reason(reason)),
        };
        // Another may have begun meanwhile, and has the place.
        let is_it = self.with(to, transfer, |seed| {
            if let Ok(Some(piece)) = &piece {
                seed.reader = Some(reader);
                seed.sent += piece.len() as u64;
                seed.at = Instant::now();
            }
        });
        is_it.ok_or(NOT_NEXT)?;
        if !matches!(piece, Ok(Some(_))) {
            self.drop_of_transfer(to, transfer);
        }
        Ok(piece?.unwrap_or_default())
    }

    fn drop_of_transfer(&self, to: u64, transfer: u64) {
        let mut seeds = self.seeds();
        let over = seeds.as_mut().map(|seeds| {
            seeds.extract_if(|node, seed| *node == to && seed.transfer == transfer).next()
        });
        drop(over);
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
    /// Begins to hand out what is applied by now, and says how far that is. Who has applied nothing has nothing to hand out.
    pub(super) async fn begin_seed(
        self: &Arc<Self>,
        to: u64,
        transfer: u64,
    ) -> Result<Option<LogId>, Fault> {
        self.seeds.drop_of(to);
        let view = self.flushed_view().await?;
        let Some(at) = view.applied().map(log_id) else { return Ok(None) };
        let seed = Seed {
            transfer,
            reader: Some(SnapshotReader::new(view)),
            sent: 0,
            under_way: Transfer::begin(),
            at: Instant::now(),
            sending: self.sending.begin(),
        };
        self.seeds.put(to, seed)?;
        Ok(Some(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::{Body, Entry, LogPosition};
    use crate::raft::network::SNAPSHOT_RATE;

    const AT: LogPosition = LogPosition { term: 1, node: 1, index: 1 };

    fn filled(folder: &std::path::Path) -> Arc<State> {
        let state = State::open_unsynced(folder);
        state.apply_for_test(&[Entry { position: AT, body: Body::Blank }]);
        state
    }

    fn next(state: &State, to: u64, transfer: u64, offset: u64) -> Result<Bytes, LoadError> {
        state.seeds.next(to, transfer, offset, &Pace::new(SNAPSHOT_RATE))
    }

    fn is_malformed(piece: &Result<Bytes, LoadError>) -> bool {
        matches!(piece, Err(LoadError::Malformed(_)))
    }

    #[tokio::test]
    async fn each_member_gets_one_from_the_beginning_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let state = filled(folder.path());
        assert!(is_malformed(&next(&state, 2, 7, 0)), "it has not begun");
        assert_eq!(state.begin_seed(2, 7).await.unwrap(), Some(log_id(AT)));
        assert!(state.sending.is_any(), "the log behind it is needed");
        let first = next(&state, 2, 7, 0).unwrap();
        state.begin_seed(2, 7).await.unwrap();
        assert!(is_malformed(&next(&state, 2, 7, first.len() as u64)), "it has begun anew");
        assert_eq!(next(&state, 2, 7, 0).unwrap(), first);
        assert!(is_malformed(&next(&state, 2, 7, 0)), "a piece is handed out once");
        assert_eq!(next(&state, 2, 7, first.len() as u64).unwrap(), Bytes::new(), "that was all");
        assert!(is_malformed(&next(&state, 2, 7, first.len() as u64)));
        assert!(!state.sending.is_any());
    }

    /// A question of a call that was given up may come after the next beginning, or still be at work then.
    #[tokio::test]
    async fn a_late_question_changes_nothing_of_what_has_begun_since() {
        let folder = tempfile::tempdir().unwrap();
        let state = filled(folder.path());
        state.begin_seed(2, 7).await.unwrap();
        // It has taken the reader, and is at the disk.
        let taken = state.seeds.with(2, 7, |seed| seed.reader.take()).flatten();
        assert!(taken.is_some());
        state.begin_seed(2, 8).await.unwrap();
        assert_eq!(state.seeds.with(2, 7, |seed| seed.reader = taken), None, "it comes too late");
        assert!(is_malformed(&next(&state, 2, 7, 0)));
        state.seeds.drop_of_transfer(2, 7);
        let first = next(&state, 2, 8, 0).unwrap();
        assert!(is_malformed(&next(&state, 2, 7, first.len() as u64)));
        assert_eq!(next(&state, 2, 8, first.len() as u64).unwrap(), Bytes::new(), "it goes on");
    }

    #[tokio::test]
    async fn one_that_is_pulled_too_slowly_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let state = filled(folder.path());
        state.begin_seed(2, 7).await.unwrap();
        let late = state.seeds.next(2, 7, 0, &Pace::new(SNAPSHOT_RATE).impatient());
        let Err(LoadError::Fault(fault)) = late else { panic!("{late:?}") };
        assert!(matches!(fault.reason(), Reason::TransferTooSlow { bytes: 0, .. }), "{fault}");
        state.fail(fault);
        state.check().expect("it is not this member that is slow");
        assert!(!state.sending.is_any() && is_malformed(&next(&state, 2, 7, 0)), "it is gone");
    }

    #[tokio::test]
    async fn who_has_applied_nothing_has_nothing_to_hand_out() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        assert_eq!(state.begin_seed(2, 7).await.unwrap(), None);
        assert!(is_malformed(&next(&state, 2, 7, 0)));
    }

    /// Each keeps pages from being reused.
    #[tokio::test]
    async fn there_are_few_and_none_outlives_its_use() {
        let folder = tempfile::tempdir().unwrap();
        let state = filled(folder.path());
        for to in [2, 3, 2] {
            state.begin_seed(to, 7).await.unwrap();
        }
        let refused = state.begin_seed(4, 7).await.unwrap_err();
        assert_eq!(*refused.reason(), Reason::TooManyRequests);
        state.seeds.drop_idle();
        assert!(state.begin_seed(4, 7).await.is_err(), "they are young");
        tokio::time::pause();
        tokio::time::advance(REST_MAX).await;
        state.seeds.drop_idle();
        tokio::time::resume();
        state.begin_seed(4, 7).await.unwrap();
        assert!(state.close(Duration::from_secs(10)), "it is not kept open");
        assert!(state.begin_seed(4, 7).await.is_err());
    }
}
