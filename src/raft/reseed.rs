//! A state that is not trusted is replaced by that of another member, before this one takes part again: one that was found to
//! differ from that of the group, or whose bytes have changed on the disk.
//!
//! ```text
//! UNTRUSTED: the members  ─▶  ask one after the other: where does it stand?  ─▶  does the log lead on from there?
//!                                                                                   │ yes
//!                                       the log ends where it does not contradict  ◀─  a draft, pulled and verified
//!                                          │
//!        the node starts  ◀─  the mark goes  ◀─  CURRENT names it
//! ```
//!
//! Only the state is not trusted. The log and the vote have checksums of their own and are read back as they were written, so
//! this member has forgotten nothing that it promised: what it acknowledged is in its log, or in what it gets. It must not
//! vote before, all the same, because consensus wants to know at its start how far the state is.
//!
//! Where the state may stand, beside the own log:
//!
//! ```text
//! before its first entry    there would be a hole: another member has to be asked, or the same one later
//! at one of its entries     the log goes on from there
//! behind its end            openraft cuts the log up to it at the start, as after a snapshot whose log was not cut yet
//! at an index where the     that entry was never committed, nor was any after it, for the state is of what was: they
//! log has another entry     go, as they would with the leader's next message
//! ```
//!
//! A state behind the end of the own log may be of a later term than the own vote. Whoever got it in any other way, from a leader,
//! has that leader's vote as well: it takes nothing any more from one before it, and stands for no term that is over. openraft
//! counts on that, and asserts it of whoever is elected. So the vote is raised, to that of the leader who wrote the last entry of
//! the state: that is a vote that a majority has given. It is never lowered, so no promise is forgotten by it, and it is on the
//! disk before the state counts: with the higher vote and the old log this member is one that has heard of a later leader, and
//! has nothing of it yet.
//!
//! The state is believed as a snapshot is: its rows add up to its own hash. That the hash is the group's is what comparing finds
//! out, again and again.
//!
//! Invariants
//! - at whatever step the power goes, the mark is there, or the new state counts; with the mark nothing of a wrong state is
//!   opened, and all begins anew;
//! - a damaged state is not given up before there is another, for others may have lost theirs as well; it is opened again only
//!   if all of it is right;
//! - of the log nothing goes but what was never committed;
//! - a vote is only ever raised, and is no lower than the term of the state when that counts.

use super::config::Timing;
use super::format::log_id;
use super::identity::{Identity, Records};
use super::log::LogStore;
use super::network::{CHUNK_TIMEOUT, client, method, name, read_answer};
use super::state::{Draft, Loaded};
use super::{EntryPayload, LogId, Membership, Peer, Vote, aside};
use crate::codec::layout::Layout;
use crate::error::{Error, Fault, Reason};
use crate::fault::{Bug, Point, bug, point};
use crate::mvcc::{Generations, LoadError, Store};
use crate::wire::{PeerClient, PeerKind, Security};
use bytes::Bytes;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// Why a state is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It is not that of a majority: it is never opened again.
    Differs,
    /// Bytes of it have changed, or could not be read. If nobody gives another, and all of it is found to be right after all, it
    /// is opened again: somebody has put the file right, or it was the disk's bad moment.
    IsDamaged,
}

impl Why {
    /// Nothing that a mark of before began with.
    const IS_DAMAGED: u8 = 0xd1;
    const DIFFERS: u8 = 0xd0;

    /// What the mark says: this, and whom to ask.
    pub(super) fn word(self, membership: Option<&Membership>) -> Bytes {
        let why = if self == Self::IsDamaged { Self::IS_DAMAGED } else { Self::DIFFERS };
        let members = membership.map(Layout::to_bytes).unwrap_or_default();
        let word = [&[why], &members[..]].concat();
        [&crc32c::crc32c(&word).to_be_bytes()[..], &word].concat().into()
    }

    /// What a mark says. One that cannot be read is a mark all the same.
    fn read(word: Vec<u8>) -> (Self, Option<Membership>) {
        let mut word = Bytes::from(word);
        let said = word.split_off(word.len().min(4));
        let is_whole = crc32c::crc32c(&said).to_be_bytes() == word[..];
        match said.split_first() {
            Some((why, _)) if is_whole => {
                let is_damaged = *why == Self::IS_DAMAGED;
                let why = if is_damaged { Self::IsDamaged } else { Self::Differs };
                (why, Membership::from_bytes(said.slice(1..)).ok())
            }
            _ => (Self::Differs, None),
        }
    }
}

/// How long the environment of a damaged state may take to be closed.
const CLOSING: Duration = Duration::from_secs(5);

/// Marks a state in which a start has found that bytes have changed, if others have the same, so that the next start gets it
/// from them. Returns what to say of it.
///
/// Nothing but the tables may be damaged: the log has been read, and says what this member promised. Whoever has lost that is
/// not helped by a state.
pub(crate) async fn distrust_damaged(
    folder: &Path,
    map_bytes: usize,
    log: &LogStore,
    fault: Fault,
) -> Error {
    if !fault.is_of_tables() || log.is_pristine() {
        return fault.into();
    }
    match mark_damaged(folder, map_bytes, log).await {
        Ok(true) => advised(&fault.into()),
        Ok(false) => fault.into(),
        Err(unmarked) => {
            tracing::error!(error = %unmarked, "that the state is damaged could not be written down");
            fault.into()
        }
    }
}

async fn mark_damaged(folder: &Path, map_bytes: usize, log: &LogStore) -> Result<bool, Fault> {
    let records = Records::open(log).await?;
    let Some(founding) = &records.founding else { return Ok(false) };
    let generations = Generations::open(folder)?;
    let in_log = members_in_log(log).await?.newest;
    let members = in_log.or_else(|| members_in(&generations, map_bytes));
    // Whoever does not vote may have nothing of it yet.
    let voters: Vec<Peer> = match &members {
        None => founding.members().map(|(_, peer)| peer).collect(),
        Some(members) => {
            let votes = |node: u64| members.voter_ids().any(|voter| voter == node);
            nodes(members).filter(|(node, _)| votes(*node)).map(|(_, peer)| peer).collect()
        }
    };
    if voters.iter().all(|peer| peer.incarnation == records.incarnation) {
        return Ok(false);
    }
    generations.distrust(&Why::IsDamaged.word(members.as_ref()))?;
    Ok(true)
}

/// The members as a damaged state names them, if that much of it can be read.
fn members_in(generations: &Generations, map_bytes: usize) -> Option<Membership> {
    let store = Store::open(&generations.current(), map_bytes).ok()?;
    let members = store.view().ok().and_then(|view| view.membership());
    store.close(CLOSING);
    Membership::from_bytes(members?.1).ok()
}

/// The members that the own log names.
#[derive(Default)]
struct InLog {
    /// All, as far as it reaches back.
    all: BTreeMap<u64, Peer>,
    /// The last ones.
    newest: Option<Membership>,
}

async fn members_in_log(log: &LogStore) -> Result<InLog, Fault> {
    let (mut log, (purged, last)) = (log.clone(), log.ends());
    let end = last.map_or(0, |last| last.index + 1);
    let mut next = purged.map_or(0, |purged| purged.index + 1);
    let mut members = InLog::default();
    while next < end {
        let unread = |error| Fault::disk("cannot read the log", error);
        // A piece at a time: it may be a gibibyte.
        let entries = log.limited_get_log_entries(next, end).await.map_err(unread)?;
        let Some(read) = entries.last() else { break };
        next = read.log_id.index + 1;
        for entry in &entries {
            if let EntryPayload::Membership(named) = &entry.payload {
                members.all.extend(nodes(named));
                members.newest = Some(named.clone());
            }
        }
    }
    Ok(members)
}

fn nodes(members: &Membership) -> impl Iterator<Item = (u64, Peer)> {
    members.nodes().map(|(node, peer)| (*node, peer.clone()))
}

/// What an error about damaged bytes says beside that, if there is another state to be had.
pub(super) fn advised(error: &Error) -> Error {
    let detail = format!("{error}: start this member again, and it gets the state of another");
    Reason::Corrupt { detail }.into()
}

/// A data folder whose state is not to be opened.
#[derive(Debug)]
pub(crate) struct Reseed {
    generations: Generations,
    map_bytes: usize,
    why: Why,
    members: Option<Membership>,
}

/// Who gets a state, and how it is known to the others.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(crate) identity: Identity,
    pub(crate) timing: Timing,
    pub(crate) security: Security,
}

/// Why a member's state was not taken.
enum Refused {
    /// Another may do better, or the same one later.
    Now(Error),
    /// This member's own disk.
    Fault(Fault),
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<LoadError> for Refused {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Malformed(_) => Self::Now(Fault::from(error).into()),
            LoadError::Fault(fault) => Self::Fault(fault),
        }
    }
}

impl Reseed {
    /// Looks whether the state in a folder is one that is not to be opened.
    pub(crate) fn find(folder: &Path, map_bytes: usize) -> Result<Option<Self>, Fault> {
        let word = Generations::untrusted(folder)?;
        let Some(word) = word.filter(|_| !bug(Bug::UntrustedIsOpened)) else { return Ok(None) };
        let generations = Generations::open(folder)?;
        let (why, members) = Why::read(word);
        Ok(Some(Self { generations, map_bytes, why, members }))
    }

    /// Puts the state of another member in its place. `founders` are asked as well. One that was damaged, and not wrong, is
    /// trusted again if no member hands another out within `patience`, and all of it turns out to be right.
    ///
    /// # Errors
    /// If neither comes to pass, or this one's disk fails. Then it can be tried again.
    ///
    /// # Cancel safety
    /// May be dropped: the next start begins anew.
    pub(crate) async fn run(
        mut self,
        log: &LogStore,
        asker: &Asker,
        founders: impl Iterator<Item = (u64, Peer)>,
        patience: Duration,
    ) -> Result<(), Error> {
        let started = Instant::now();
        let others = self.others(log, asker, founders).await?;
        tracing::warn!(
            node = asker.identity.node,
            "the state is not trusted: another member is asked for its own"
        );
        loop {
            let mut refused = Vec::new();
            for (node, peer) in &others {
                match self.try_from(log, asker, (*node, peer)).await {
                    Ok(at) => {
                        tracing::info!(
                            node = asker.identity.node,
                            from = node,
                            ?at,
                            "the state was replaced"
                        );
                        return Ok(());
                    }
                    // Nobody will say anything else.
                    Err(Refused::Now(error)) if is_gone(&error, asker) => return Err(error),
                    Err(Refused::Now(error)) => refused.push(format!("{}: {error}", peer.address)),
                    Err(Refused::Fault(fault)) => return Err(fault.into()),
                }
            }
            if started.elapsed() > patience {
                if self.why == Why::IsDamaged && self.is_whole().await? {
                    tracing::warn!(
                        node = asker.identity.node,
                        "the state is right, and opened again"
                    );
                    return Ok(self.generations.trust()?);
                }
                return Err(no_seed(&refused));
            }
            tokio::time::sleep(asker.timing.heartbeat).await;
        }
    }

    /// Whether every row of the state is what was written, and none is missing.
    async fn is_whole(&self) -> Result<bool, Error> {
        let (path, map_bytes) = (self.generations.current(), self.map_bytes);
        let looked = aside(move || {
            let store = Store::open(&path, map_bytes)?;
            let _walk = store.walk();
            let looked = store.view().and_then(|view| view.verify());
            store.close(CLOSING);
            looked
        });
        match looked.await? {
            Ok(()) => Ok(true),
            Err(fault) if fault.is_of_tables() => Ok(false),
            Err(fault) => Err(fault.into()),
        }
    }

    /// The other members: whoever led last, those whom the mark names, and the rest. It need not name all of them, so whoever
    /// was a member once is asked as well.
    async fn others(
        &self,
        log: &LogStore,
        asker: &Asker,
        founders: impl Iterator<Item = (u64, Peer)>,
    ) -> Result<Vec<(u64, Peer)>, Fault> {
        let mut others: BTreeMap<u64, Peer> = founders.collect();
        others.extend(members_in_log(log).await?.all);
        let named: BTreeMap<u64, Peer> = self.members.iter().flat_map(nodes).collect();
        others.extend(named.clone());
        others.remove(&asker.identity.node);
        let led = log.vote().map(|vote| vote.leader_id.node_id);
        let mut others: Vec<_> = others.into_iter().collect();
        others.sort_by_key(|(node, _)| (Some(*node) != led, !named.contains_key(node)));
        Ok(others)
    }

    /// Gets the state of one member, and makes it the one that counts.
    async fn try_from(
        &mut self,
        log: &LogStore,
        asker: &Asker,
        from: (u64, &Peer),
    ) -> Result<LogId, Refused> {
        let Asker { identity, timing, ref security } = *asker;
        let mut client = client(PeerKind::Snapshot, identity, timing, security.clone(), from);
        let transfer = name().map_err(Refused::Now)?;
        let said = call(&mut client, method::SEED_BEGIN, transfer.to_bytes()).await?;
        let at: LogId = read_answer(said).map_err(Refused::Now)?;
        // What is of no use is not pulled: it would be gigabytes, and a share of the disk of whoever hands it out.
        cut_for(log, at)?;
        // Only for somebody who answers: it is an environment of its own.
        let draft = Draft::beside(&self.generations, self.map_bytes)?;
        let loaded = pull(&mut client, transfer, draft).await?;
        if loaded.view()?.applied().map(log_id) != Some(at) {
            return Err(unfit("the state of that member stands elsewhere than it said"));
        }
        fit(log, at).await?;
        raise_vote(log, at).await?;
        if bug(Bug::TrustedTooEarly) {
            self.generations.trust()?;
        }
        point(Point::SeedFits);
        loaded.become_current(&self.generations)?;
        if !bug(Bug::TrustedTooEarly) {
            self.generations.trust()?;
        }
        point(Point::SeedTrusted);
        Ok(at)
    }
}

/// Receives a state that a member has begun to hand out, and verifies it.
async fn pull(client: &mut PeerClient, transfer: u64, mut draft: Draft) -> Result<Loaded, Refused> {
    let mut offset = 0u64;
    loop {
        let piece = call(client, method::SEED_NEXT, (transfer, offset).to_bytes()).await?;
        if piece.is_empty() {
            break;
        }
        offset += piece.len() as u64;
        let pushed = aside(move || draft.push(&piece).map(|()| draft));
        draft = pushed.await.map_err(Refused::Now)??;
    }
    Ok(aside(move || draft.finish()).await.map_err(Refused::Now)??)
}

async fn call(client: &mut PeerClient, method: u16, body: Bytes) -> Result<Bytes, Refused> {
    client.call(method, body, CHUNK_TIMEOUT).await.map_err(Refused::Now)
}

/// Has the log end where it does not contradict a state at a committed entry, if it can lead on from there at all.
async fn fit(log: &LogStore, at: LogId) -> Result<(), Refused> {
    let Some(Cut { kept }) = cut_for(log, at)? else { return Ok(()) };
    let cut = log.clone().truncate_after(kept).await;
    cut.map_err(|error| Fault::disk("cannot cut the log", error))?;
    log.flush().await?;
    Ok(())
}

/// What of a log contradicts a state, and goes: all that is behind this entry.
#[derive(Debug)]
struct Cut {
    kept: Option<LogId>,
}

/// What has to go of the log, if anything, so that it leads on from a state. Changes nothing.
fn cut_for(log: &LogStore, at: LogId) -> Result<Option<Cut>, Refused> {
    let (purged, last) = log.ends();
    if purged.is_some_and(|purged| purged.index > at.index) {
        return Err(unfit("the state of that member ends before the own log begins"));
    }
    let own = log.id_at(at.index)?;
    if own == Some(at) {
        return Ok(None);
    }
    let kept = before(log, at.index)?;
    // Whoever led later has what was committed. So in the place of a committed entry, or before it, there is nothing of a later
    // term, and that member has applied what was never committed.
    if [own, kept].into_iter().flatten().any(|id| id.leader_id > at.leader_id) {
        return Err(unfit("the own log has entries of later terms than the state of that member"));
    }
    if kept == last {
        return Ok(None);
    }
    if kept < purged || kept < log.committed() {
        return Err(unfit(
            "the own log has committed something else than the state of that member",
        ));
    }
    Ok(Some(Cut { kept }))
}

/// Has the vote be that of the leader who wrote an entry, or a later one that was given already.
async fn raise_vote(log: &LogStore, at: LogId) -> Result<(), Fault> {
    let leaders = Vote { leader_id: *at.committed_leader_id(), committed: true };
    if log.vote().is_none_or(|own| own < leaders) {
        let saved = log.clone().save_vote(&leaders).await;
        saved.map_err(|error| Fault::disk("cannot write the vote", error))?;
    }
    Ok(())
}

/// The last entry before an index that the log knows of.
fn before(log: &LogStore, index: u64) -> Result<Option<LogId>, Fault> {
    let (_, Some(last)) = log.ends() else { return Ok(None) };
    let Some(below) = index.checked_sub(1) else { return Ok(None) };
    log.id_at(below.min(last.index))
}

/// Whether the group has removed this member meanwhile.
fn is_gone(error: &Error, asker: &Asker) -> bool {
    matches!(error.reason(), Reason::MemberRemoved { node } if node.get() == asker.identity.node)
}

fn unfit(what: &str) -> Refused {
    Refused::Now(Reason::Malformed { what: what.to_owned() }.into())
}

/// Who was asked, and why in vain.
fn no_seed(refused: &[String]) -> Error {
    let why = if refused.is_empty() { "there is none".to_owned() } else { refused.join("; ") };
    let detail = format!(
        "the state of this member is not that of the group, or is damaged, and no other member hands its own out: {why}"
    );
    Reason::Unreachable { detail }.into()
}

#[cfg(test)]
mod tests;
