//! The snapshots that other members are sending to this one.
//!
//! ```text
//! begin 7 ─▶ chunk 0 ─▶ chunk 1 ─▶ ✕ the connection breaks          one at a time of each member
//!                                   resume 7? ─▶ "up to here" ─▶ chunk 2 ─▶ … ─▶ end
//! ```
//!
//! A chunk is written to its end also if the call that brought it is dropped, and until then whoever asks how far it is
//! waits. So what is answered is what is here. The same goes for the end: a large snapshot takes longer to be looked over than
//! a call may last, so the sender calls again, and finds it done. It is nowhere but in memory how far a draft is: after a
//! restart there is none, and the sender begins anew.
//!
//! Invariants
//! - a chunk is taken only if it goes on where the last one ended: one that comes twice, or late, changes nothing;
//! - of each member there is one, and [`DRAFTS_MAX`] of all: the one that has rested longest gives way;
//! - one that nobody goes on with for [`REST_MAX`] goes: its sender leads no more, or has ended.

use crate::mvcc::LoadError;
use crate::raft::machine::SnapshotMetaOf;
use crate::raft::state::{Draft, Loaded};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as Line, OwnedMutexGuard};
use tokio::time::Instant;

/// How many snapshots may be under way. One leader sends one; another begins while that of the last was cut off. Each is
/// an environment of its own, and whoever calls itself a member can begin one.
const DRAFTS_MAX: usize = 4;
/// How long nobody goes on with a snapshot before it is dropped. Far longer than a sender that is slowed down, or whose
/// connection broke, lets it rest.
const REST_MAX: Duration = Duration::from_secs(300);

/// A snapshot that is being received.
#[derive(Debug)]
pub(super) struct Receiving {
    /// What its sender calls it; nothing, if that is of a version that cannot resume.
    transfer: Option<u64>,
    stage: Stage,
    received: u64,
}

#[derive(Debug)]
enum Stage {
    Draft(Draft),
    /// All of it is here, and in order.
    Whole(SnapshotMetaOf, Loaded),
}

impl Receiving {
    pub(super) fn new(transfer: Option<u64>, draft: Draft) -> Self {
        Self { transfer, stage: Stage::Draft(draft), received: 0 }
    }
}

type Place = Arc<Line<Option<Receiving>>>;

/// A draft whose turn it is. Nobody else has it meanwhile.
pub(super) type Turn = OwnedMutexGuard<Option<Receiving>>;

#[derive(Debug)]
struct Entry {
    place: Place,
    /// When it was last called for.
    at: Instant,
}

/// The drafts, by their senders.
#[derive(Debug, Default)]
pub(super) struct Drafts(Mutex<HashMap<u64, Entry>>);

impl Drafts {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<u64, Entry>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes room for a snapshot of a member. What had the place is to be dropped where that may take a while.
    pub(super) fn make_room(&self, from: u64) -> impl Send + use<> {
        self.with(|drafts| {
            let old = drafts.remove(&from);
            let oldest = drafts.iter().min_by_key(|(_, entry)| entry.at);
            let oldest = oldest.map(|(from, _)| *from).filter(|_| drafts.len() >= DRAFTS_MAX);
            [old, oldest.and_then(|from| drafts.remove(&from))]
        })
    }

    /// Has a member go on with this one.
    pub(super) fn put(&self, from: u64, receiving: Receiving) {
        let place = Arc::new(Line::new(Some(receiving)));
        self.with(|drafts| drops(drafts.insert(from, Entry { place, at: Instant::now() })));
    }

    /// The draft of a member, once nobody else has it.
    pub(super) async fn turn(&self, from: u64) -> Option<Turn> {
        let place = self.with(|drafts| {
            let entry = drafts.get_mut(&from)?;
            entry.at = Instant::now();
            Some(Arc::clone(&entry.place))
        });
        Some(place?.lock_owned().await)
    }

    /// What is whole of a member, which is then no draft any more.
    pub(super) fn take(&self, from: u64, mut turn: Turn) -> Option<(SnapshotMetaOf, Loaded)> {
        // Another may have begun meanwhile, and has the place.
        self.with(|drafts| {
            let is_it = |it: &Entry| Arc::ptr_eq(&it.place, OwnedMutexGuard::mutex(&turn));
            if drafts.get(&from).is_some_and(is_it) {
                drops(drafts.remove(&from));
            }
        });
        match turn.take()?.stage {
            Stage::Whole(meta, loaded) => Some((meta, loaded)),
            Stage::Draft(_) => None,
        }
    }

    /// Takes out those that nobody goes on with, to be dropped where that may take a while.
    pub(super) fn take_idle(&self) -> Option<impl Send + use<>> {
        self.with(|drafts| {
            let is_idle = |_: &u64, entry: &mut Entry| {
                entry.at.elapsed() > REST_MAX && Arc::strong_count(&entry.place) == 1
            };
            let idle: Vec<Entry> = drafts.extract_if(is_idle).map(|(_, entry)| entry).collect();
            (!idle.is_empty()).then_some(idle)
        })
    }
}

/// Only the entry goes: what was in its place is taken, or was never there.
fn drops(_: Option<Entry>) {}

/// Looks over what has come, if that is still to do. After an error there is no draft any more.
pub(super) fn finish(
    mut turn: Turn,
    look: impl FnOnce(Draft) -> Result<(SnapshotMetaOf, Loaded), LoadError>,
) -> Result<Turn, LoadError> {
    if let Some(receiving) = turn.take() {
        let Receiving { transfer, stage, received } = receiving;
        let stage = match stage {
            Stage::Draft(draft) => {
                let (meta, loaded) = look(draft)?;
                Stage::Whole(meta, loaded)
            }
            whole @ Stage::Whole(..) => whole,
        };
        *turn = Some(Receiving { transfer, stage, received });
    }
    Ok(turn)
}

/// How far a transfer is, if it is this one.
pub(super) fn received(turn: Option<&Turn>, transfer: u64) -> Option<u64> {
    let receiving = turn.and_then(|turn| turn.as_ref());
    receiving.filter(|it| it.transfer == Some(transfer)).map(|it| it.received)
}

/// Whether a chunk is the next one.
pub(super) fn is_next(turn: &Turn, offset: u64) -> bool {
    turn.as_ref().is_some_and(|receiving| receiving.received == offset)
}

/// Takes the next chunk. After an error there is no draft any more.
pub(super) fn push(mut turn: Turn, chunk: &Bytes) -> Result<(), LoadError> {
    let Some(receiving) = turn.as_mut() else { return Ok(()) };
    let pushed = match &mut receiving.stage {
        Stage::Draft(draft) => draft.push(chunk),
        Stage::Whole(..) => Err(LoadError::Malformed("there is more behind its end")),
    };
    receiving.received += chunk.len() as u64;
    if pushed.is_err() {
        *turn = None;
    }
    pushed
}
