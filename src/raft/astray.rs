//! For tests: members that have applied something else than the others. What they have on the disk is sealed, whole, and adds
//! up to its own hash, so that nothing but comparing can find it.

use super::Membership;
use super::config::Timing;
use super::identity::Identity;
use super::log::LogStore;
use super::reseed::{Asker, Reseed, Why};
use super::state::State;
use crate::api::{Command, Proposal};
use crate::mvcc::{Body, Entry, Generations, LogPosition};
use crate::types::{Op, TxnOp};
use crate::wire::Security;
use std::path::Path;
use std::time::Duration;

/// The entry that was applied last.
pub(crate) fn applied(state: &State) -> LogPosition {
    state.moment().unwrap().applied().unwrap()
}

/// The same of a member that does not run.
pub(crate) fn applied_in(folder: &Path) -> LogPosition {
    with(folder, |state| applied(state))
}

/// Has a member that does not run apply an entry of its own, as that at a position: a put, or nothing.
pub(crate) fn apply(
    folder: &Path,
    position: LogPosition,
    put: Option<(&'static str, &'static str)>,
) {
    let command = |(key, value)| {
        let put = Op::put(key, value);
        Body::Command(Proposal::from(Command::Txn(TxnOp::single(put.0))).into())
    };
    let body = put.map_or(Body::Blank, command);
    with(folder, |state| {
        state.apply_for_test(&[Entry { position, body }]);
        futures::executor::block_on(state.durable_view()).map(drop).unwrap();
    });
}

/// The position after another, in the same term.
pub(crate) fn next(position: LogPosition) -> LogPosition {
    LogPosition { index: position.index + 1, ..position }
}

/// Marks the state of a member that does not run as one that is not to be opened, without a word.
pub(crate) fn distrust(folder: &Path) {
    Generations::open(folder).unwrap().distrust(b"").unwrap();
}

/// The same of one that is damaged.
pub(crate) fn distrust_as_damaged(folder: &Path) {
    Generations::open(folder).unwrap().distrust(&Why::IsDamaged.word(None)).unwrap();
}

/// Has a member that does not run get the state of one of these, as its start would, and says of which terms its vote and that
/// state are then.
pub(crate) async fn reseed(
    folder: &Path,
    identity: Identity,
    heartbeat: Duration,
    members: &Membership,
) -> (u64, u64) {
    let log = LogStore::open(&folder.join("raft"), 64 << 20).unwrap();
    let reseed = Reseed::find(folder, 64 << 20).unwrap().expect("it is marked");
    let asker = Asker { identity, timing: Timing { heartbeat }, security: Security::default() };
    let others = members.nodes().map(|(node, peer)| (*node, peer.clone()));
    reseed.run(&log, &asker, others, Duration::from_secs(20)).await.unwrap();
    let vote = log.vote().map_or(0, |vote| vote.leader_id.term);
    assert!(log.close(Duration::from_secs(20)));
    (vote, applied_in(folder).term)
}

fn with<T>(folder: &Path, work: impl FnOnce(&std::sync::Arc<State>) -> T) -> T {
    let state = State::open(folder, 64 << 20).unwrap();
    let done = work(&state);
    assert!(state.close(Duration::from_secs(20)));
    done
}
