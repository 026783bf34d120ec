//! Who is in the group, and how that changes while it runs. The leader decides, and the log carries it.
//!
//! ```text
//! join ──▶ learner: one entry ──▶ follows the log, or gets a snapshot ──▶ has caught up?
//!                                                                            │ promote, or replace
//!                                                     old voters and new ◀───┘
//!                                          agree on both lists (joint) ──▶ agree on the new list ──▶ done
//!                                                     │ the leader is gone: the next finishes it (reconcile)
//! ```
//!
//! Invariants
//! - nobody votes who has not caught up, and whoever is replaced goes in the same change in which the new one comes: at no
//!   time does the group have a voter less that works;
//! - one change at a time, and each is made of the members that it was decided by: the entry that named them has to be the
//!   last that names any, or nothing happens;
//! - a change after which the voters that answer would be no majority is refused: it could be agreed on, and then nothing
//!   ever again;
//! - every change may be asked for again: what has happened already is the answer that it happened;
//! - an id is given once, with the entry that takes somebody in ([`id_after`]), and whoever was removed hears so from
//!   whomever it calls, and ends.
//!
//! A learner that never catches up stays one. It counts for nothing; the leader says in its log that it is silent, and
//! `Client::members` shows it, until somebody removes it.

use super::Types;
use super::config::Timing;
use super::identity::{FOUNDERS_MAX, Founding, id_after, is_removed};
use super::member::{Raft, Shared, cut_log};
use super::{Membership, Peer, StoredMembership};
use crate::api::{Call, Change, Join, Request, Response};
use crate::codec;
use crate::error::{Error, Fault, Reason};
use crate::types::{Member, NodeId};
use crate::wire::{Endpoint, RpcClient};
use futures::future::{Either, join_all, select};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::Precondition;
use openraft::{ChangeMembers, Instant as _, RaftMetrics};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How many entries a member may lack and be a voter: about what is under way to it at any time.
const LAG_MAX: u64 = 1000;

/// How long a leader waits at most to hear of a member for the first time. Less than whoever joins waits for an answer.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(2);

/// What a change comes to.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// These vote from now on; of them, this one has not before.
    Vote { voters: BTreeSet<u64>, new: Option<u64> },
    /// A learner goes.
    Forget(u64),
    /// It has happened.
    Done,
}

fn metrics(raft: &Raft) -> RaftMetrics<Types> {
    raft.metrics().borrow_watched().clone()
}

/// Makes sure that this member leads. A round that others lead is answered to members that do not, too.
async fn confirm(shared: &Shared) -> Result<(), Error> {
    let confirmed = shared.reads.round().await?;
    if confirmed.node == shared.identity.node { Ok(()) } else { Err(Reason::LeaderChanged.into()) }
}

/// The members that the group has agreed on, if no change of them is under way.
fn settled(metrics: &RaftMetrics<Types>) -> Result<Arc<StoredMembership>, Error> {
    let members = &metrics.membership_config;
    let is_settled = members.log_id() == metrics.committed_membership_config.log_id()
        && members.log_id().is_some()
        && members.membership().get_joint_config().len() == 1;
    if is_settled { Ok(Arc::clone(members)) } else { Err(Reason::MembersAreChanging.into()) }
}

// ---------------------------------------------------------------------------------------------------- to come in

/// Takes in whoever asks, or says again as whom it was. Only on the leader.
pub(super) async fn admit(shared: &Shared, join: &Join) -> Result<Response, Error> {
    let founding = shared.desk.founding().ok_or_else(|| Error::from(Reason::Starting))?;
    check(&founding, shared.timing, join)?;
    confirm(shared).await?;
    let settled = settled(&metrics(&shared.raft))?;
    let node = match known(settled.membership(), join)? {
        Some(node) => node,
        None => {
            check_address(shared, settled.membership(), join).await?;
            take_in(shared, &settled, join).await?
        }
    };
    Ok(Response::Join { node: node.into(), founding: codec::encode(&founding).into() })
}

/// Refuses who could never take part.
fn check(founding: &Founding, timing: Timing, join: &Join) -> Result<(), Error> {
    let differ = |detail: String| Err(Reason::FoundersDiffer { detail }.into());
    if !join.name.is_empty() && join.name != founding.name {
        return differ(format!("the group is named {:?}, not {:?}", founding.name, join.name));
    }
    if founding.addresses().any(str::is_empty) {
        return differ(
            "this is a group of one, which was started with solo(): others cannot join it"
                .to_owned(),
        );
    }
    if join.heartbeat != timing.heartbeat {
        return Err(Reason::TimingDiffers.into());
    }
    Ok(())
}

/// The id of a folder that was let in before, and may not have heard of it.
fn known(members: &Membership, join: &Join) -> Result<Option<u64>, Error> {
    let Some((node, peer)) = members.nodes().find(|(_, it)| it.incarnation == join.incarnation)
    else {
        return Ok(None);
    };
    if peer.address == join.address {
        return Ok(Some(*node));
    }
    let (was, is) = (&peer.address, &join.address);
    let detail = format!(
        "the folder at {is} is member {node} at {was} already: if that is wrong, remove member {node} first"
    );
    Err(Reason::BadMembers { detail }.into())
}

/// Refuses an address at which another member answers: whoever calls the new one would reach that, and the new one would wait to
/// be called for ever. One that is silent is no hindrance: it may be what is to be replaced. What counts is what it answers
/// from now on, as for a majority ([`check_quorum`]): a node that takes the place of another at once must not be refused.
async fn check_address(shared: &Shared, members: &Membership, join: &Join) -> Result<(), Error> {
    let there = members.nodes().filter(|(_, peer)| peer.address == join.address);
    let there: Vec<u64> = there.map(|(node, _)| *node).collect();
    let asked = Instant::now();
    // Of one that a new leader has not heard of yet it hears within a heartbeat or two.
    let unheard = (shared.timing.heartbeat * 3).min(ADDRESS_PATIENCE);
    loop {
        let (metrics, so_far) = (metrics(&shared.raft), asked.elapsed());
        let silent_for = |node: &u64| lag(shared.identity.node, &metrics, *node).1;
        let answers = |node: &&u64| {
            **node == shared.identity.node || silent_for(node).is_some_and(|it| it < so_far)
        };
        if let Some(node) = there.iter().find(answers) {
            let address = &join.address;
            let detail = format!(
                "member {node} is at {address} and answers: give this node an address of its own with listen() or \
                 advertise(), or remove or stop member {node} first"
            );
            return Err(Reason::BadMembers { detail }.into());
        }
        let is_gone = |node: &u64| match silent_for(node) {
            Some(silent_for) => !is_alive(shared, Some(silent_for)),
            None => so_far > unheard,
        };
        if there.iter().all(is_gone) {
            return Ok(());
        }
        sleep(shared.timing.heartbeat / 4).await;
    }
}

async fn take_in(shared: &Shared, settled: &StoredMembership, join: &Join) -> Result<u64, Error> {
    let at = settled.log_id().ok_or_else(|| Error::from(Reason::MembersAreChanging))?;
    let node = id_after(at.index);
    let peer = Peer { address: join.address.clone(), incarnation: join.incarnation };
    let change = ChangeMembers::AddNodes(BTreeMap::from([(node, peer)]));
    propose(shared, change, settled).await?;
    tracing::info!(node, address = join.address, "a member has joined, as a learner");
    Ok(node)
}

// ---------------------------------------------------------------------------------------------------- to vote, or go

/// Changes who votes. Only on the leader.
pub(super) async fn change(shared: &Shared, change: Change) -> Result<Response, Error> {
    confirm(shared).await?;
    let settled = settled(&metrics(&shared.raft))?;
    let founders = shared.desk.founding().map_or(0, |founding| founding.founders.len() as u64);
    let next = settled.log_id().map_or(0, |at| id_after(at.index));
    // Of an id that could have been given, and is not there, the member is gone.
    let was_given =
        |node: u64| (1..=founders).contains(&node) || (id_after(0)..next).contains(&node);
    let change = match plan(settled.membership(), change, was_given)? {
        Plan::Done => return Ok(Response::Change),
        Plan::Forget(node) => ChangeMembers::RemoveNodes([node].into()),
        Plan::Vote { voters, new } => {
            if let Some(new) = new {
                check_caught_up(shared, new)?;
            }
            check_quorum(shared, &voters).await?;
            if voters.len() % 2 == 0 {
                tracing::warn!(
                    voters = voters.len(),
                    "one voter less would survive as many losses"
                );
            }
            ChangeMembers::ReplaceAllVoters(voters)
        }
    };
    tracing::info!(?change, "the members change");
    propose(shared, change, &settled).await?;
    Ok(Response::Change)
}

/// What a change comes to, among these members.
fn plan(
    members: &Membership,
    change: Change,
    was_given: impl Fn(u64) -> bool,
) -> Result<Plan, Error> {
    let mut voters: BTreeSet<u64> = members.voter_ids().collect();
    let unknown = |node: u64| Err(Reason::MemberNotFound { node: node.into() }.into());
    let is_member = |node: u64| members.get_node(&node).is_some();
    match change {
        Change::Promote(node) => match node.get() {
            node if voters.contains(&node) => Ok(Plan::Done),
            node if is_member(node) => {
                voters.insert(node);
                Ok(Plan::Vote { voters, new: Some(node) })
            }
            node => unknown(node),
        },
        Change::Remove(node) => match node.get() {
            node if voters.remove(&node) => Ok(Plan::Vote { voters, new: None }),
            node if is_member(node) => Ok(Plan::Forget(node)),
            node if was_given(node) => Ok(Plan::Done),
            node => unknown(node),
        },
        Change::Replace { old, new } => {
            let old = old.get();
            let new = new.map(NodeId::get);
            if let Some(new) = new.filter(|new| !is_member(*new)) {
                return unknown(new);
            }
            if !is_member(old) {
                // Without a name nobody can tell whether somebody came in its place, or it was just removed.
                let is_done = was_given(old) && new.is_some_and(|new| voters.contains(&new));
                return if is_done { Ok(Plan::Done) } else { unknown(old) };
            }
            let new = new.map_or_else(|| only_learner(members), Ok)?;
            if old == new || !voters.remove(&old) {
                let detail = format!("member {old} is no voter that member {new} could replace");
                return Err(Reason::BadMembers { detail }.into());
            }
            let new = voters.insert(new).then_some(new);
            Ok(Plan::Vote { voters, new })
        }
    }
}

/// The member that can only be meant.
fn only_learner(members: &Membership) -> Result<u64, Error> {
    let learners: Vec<u64> = members.learner_ids().collect();
    let detail = match learners[..] {
        [learner] => return Ok(learner),
        [] => "there is nobody to come: a node has to join first".to_owned(),
        _ => format!("there are several who could come, so say who: {learners:?}"),
    };
    Err(Reason::BadMembers { detail }.into())
}

/// How far a member is behind, and how long it has been silent, as far as the leader `own` knows.
fn lag(own: u64, metrics: &RaftMetrics<Types>, node: u64) -> (Option<u64>, Option<Duration>) {
    if node == own {
        return (Some(0), Some(Duration::ZERO));
    }
    let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(&node)?.as_ref());
    let silent_for = heard.map(|at| at.elapsed());
    let next = metrics.last_log_index.map_or(0, |last| last + 1);
    let matched = metrics.replication.as_ref().and_then(|matched| matched.get(&node).copied());
    let has = matched.map(|matched| matched.map_or(0, |id| id.index + 1));
    (has.filter(|_| silent_for.is_some()).map(|has| next.saturating_sub(has)), silent_for)
}

fn is_alive(shared: &Shared, silent_for: Option<Duration>) -> bool {
    silent_for.is_some_and(|silent| silent < shared.timing.election_max())
}

/// Whether a member is fed by the log, and not far behind. Who has nothing of the log, or less than its beginning, is waiting
/// for a snapshot, however short the log is.
fn follows(own: u64, metrics: &RaftMetrics<Types>, node: u64) -> bool {
    if node == own {
        return true;
    }
    let matched = metrics.replication.as_ref().and_then(|matched| *matched.get(&node)?);
    let purged = metrics.purged.map(|id| id.index);
    let is_fed = matched.is_some_and(|matched| Some(matched.index) >= purged);
    is_fed && lag(own, metrics, node).0.is_some_and(|behind| behind <= LAG_MAX)
}

/// Refuses a voter that would hold up the others.
fn check_caught_up(shared: &Shared, node: u64) -> Result<(), Error> {
    let (own, metrics) = (shared.identity.node, metrics(&shared.raft));
    let (behind, silent_for) = lag(own, &metrics, node);
    let behind = behind.filter(|_| is_alive(shared, silent_for));
    if behind.is_some() && follows(own, &metrics, node) {
        return Ok(());
    }
    Err(Reason::NotCaughtUp { node: node.into(), behind }.into())
}

/// Refuses voters of which no majority answers and follows. What counts is what they answer from now on, for which they have an
/// election's time: one that has ended a moment ago would be waited for, for ever, by a group that has agreed to need it.
async fn check_quorum(shared: &Shared, voters: &BTreeSet<u64>) -> Result<(), Error> {
    let (own, started) = (shared.identity.node, Instant::now());
    loop {
        let (metrics, so_far) = (metrics(&shared.raft), started.elapsed());
        let has_answered = |node: &&u64| {
            let silent_for = lag(own, &metrics, **node).1;
            let has = silent_for.is_some_and(|silent| silent < so_far);
            **node == own || (has && follows(own, &metrics, **node))
        };
        let alive = voters.iter().filter(has_answered).count();
        if alive * 2 > voters.len() {
            return Ok(());
        }
        if voters.is_empty() || so_far > shared.timing.election_max() {
            let detail = match voters.len() {
                0 => "the last voter of a group cannot go".to_owned(),
                all => format!(
                    "of the {all} members that would vote after the change {alive} answer and have most of the log, \
                     which is no majority"
                ),
            };
            return Err(Reason::QuorumAtRisk { detail }.into());
        }
        sleep(shared.timing.heartbeat / 4).await;
    }
}

/// Has the group agree on a change of these members. Whoever leaves the voters leaves the group.
async fn propose(
    shared: &Shared,
    change: ChangeMembers<u64, Peer>,
    members: &StoredMembership,
) -> Result<(), Error> {
    let decided_by =
        Precondition::LastMembershipLogId { last_membership_log_id: *members.log_id() };
    let changed = shared.raft.change_membership_if(change, false, [decided_by]).await;
    match changed {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(error)) => Err(refused(&error)),
        Err(RaftError::Fatal(_)) => Err(shared.stopped().unknown_outcome()),
    }
}

/// What openraft's refusal means. A change has two steps, and the first may have happened.
fn refused(error: &ClientWriteError<Types>) -> Error {
    let reason = match error {
        ClientWriteError::ForwardToLeader(forward) => {
            return super::reads::not_leader(forward).unknown_outcome();
        }
        ClientWriteError::LogEntryDiscarded(_) => Reason::LeaderChanged,
        ClientWriteError::PreconditionFailed(_) => Reason::MembersAreChanging,
        ClientWriteError::ChangeMembershipError(error) => match error {
            ChangeMembershipError::InProgress(_)
            | ChangeMembershipError::UncommittedLeaderLog(_) => Reason::MembersAreChanging,
            ChangeMembershipError::LearnerNotFound(learner) => {
                Reason::MemberNotFound { node: learner.node_id.into() }
            }
            other => return Error::from(Fault::assertion(other.to_string())),
        },
    };
    Error::from(reason).unknown_outcome()
}

// ---------------------------------------------------------------------------------------------------- to be seen

/// The members. Only on the leader.
pub(super) async fn list(shared: &Shared) -> Result<Response, Error> {
    confirm(shared).await?;
    let metrics = metrics(&shared.raft);
    let members = metrics.membership_config.membership();
    let voters: BTreeSet<u64> = members.voter_ids().collect();
    let member = |(node, peer): (&u64, &Peer)| {
        let (behind, silent_for) = lag(shared.identity.node, &metrics, *node);
        Member {
            id: NodeId::from(*node),
            address: peer.address.clone(),
            is_voter: voters.contains(node),
            is_leader: *node == shared.identity.node,
            behind,
            silent_for,
        }
    };
    Ok(Response::Members(members.nodes().map(member).collect()))
}

impl Shared {
    /// Whether a member was removed, as far as this one has heard.
    pub(crate) fn is_removed(&self, node: u64) -> bool {
        let members = Arc::clone(&self.raft.metrics().borrow_watched().committed_membership_config);
        let was_given = node > FOUNDERS_MAX as u64 || self.desk.incarnation(node).is_some();
        let at = members.log_id().as_ref().filter(|_| was_given);
        at.is_some_and(|at| is_removed(node, members.membership(), at.index))
    }
}

// ---------------------------------------------------------------------------------------------------- beside all that

/// Finishes what another leader has begun, and looks after who has joined.
pub(super) async fn reconcile(shared: Arc<Shared>) {
    let mut unfinished = None;
    let mut silent = BTreeSet::new();
    loop {
        sleep(shared.timing.election_max()).await;
        begin_log_anew(&shared).await;
        if !shared.leadership().is_me {
            ask_around(&shared).await;
            (unfinished, silent) = (None, BTreeSet::new());
            continue;
        }
        let metrics = metrics(&shared.raft);
        let members = &metrics.membership_config;
        let is_joint = members.membership().get_joint_config().len() > 1;
        let seen = members.log_id().filter(|_| is_joint);
        // Whoever has begun it is still at it, or was a moment ago.
        if seen.is_some() && seen == unfinished {
            tracing::info!("finishing a change of the members that was begun");
            let nobody_more = ChangeMembers::AddVoterIds(BTreeSet::new());
            let finished = propose(&shared, nobody_more, members);
            // If it fails, its time comes again.
            let _ = timeout(shared.timing.election_max(), finished).await;
        }
        unfinished = seen;
        let own = shared.identity.node;
        let alive = |node: &u64| is_alive(&shared, lag(own, &metrics, *node).1);
        let now: BTreeSet<u64> =
            members.membership().learner_ids().filter(|node| !alive(node)).collect();
        for node in now.difference(&silent) {
            tracing::warn!(node, "a learner does not answer; it stays until it is removed");
        }
        silent = now;
    }
}

/// Cuts the log of a group that began with a backup once: its first entries lead nowhere without that, and whoever joins has
/// to begin with a snapshot.
async fn begin_log_anew(shared: &Shared) {
    if shared.desk.began_restored() && metrics(&shared.raft).purged.is_none() {
        cut_log(shared).await;
    }
}

/// Asks the others, after a long silence, whether this member is still one of them. A voter would hear of it when it stands
/// for election, but a learner never does.
async fn ask_around(shared: &Shared) {
    let heard = *shared.heard.lock().unwrap_or_else(PoisonError::into_inner);
    if heard.elapsed() < 2 * shared.timing.election_max() {
        return;
    }
    let own = shared.identity;
    let who = Endpoint { group: own.group, node: own.node };
    let known: Vec<(u64, Peer)> = match shared.membership() {
        none if none.nodes().next().is_none() => shared.desk.members().collect(),
        members => members.nodes().map(|(id, peer)| (*id, peer.clone())).collect(),
    };
    let others = known.into_iter().filter(|(id, _)| *id != own.node);
    join_all(others.map(|(id, peer)| async move {
        // A new connection, for it is its first words that count.
        let other =
            RpcClient::new(peer.address, who, shared.security.clone(), shared.runtime.clone());
        let call = Call { request: Request::Status, timeout: shared.timing.election_max() };
        shared.refusals.note(id, &other.call(call).await);
    }))
    .await;
}

/// Ends this member when the group has removed it: it would call the others for ever, and whoever asks it would be told what
/// it remembers.
pub(super) async fn leave(shared: Arc<Shared>) {
    let node = shared.identity.node;
    let mut changes = shared.raft.server_metrics();
    loop {
        // A leader that has removed itself stays until the others know.
        if shared.is_removed(node) && !shared.leadership().is_me {
            break;
        }
        // What is in the log says when to look whether the group has agreed on it.
        let may_be = shared.membership().get_node(&node).is_none();
        let pause = if may_be { shared.timing.heartbeat } else { Duration::from_secs(3600) };
        let (removed, changed) =
            (pin!(shared.refusals.removed()), pin!(timeout(pause, changes.changed())));
        match select(removed, changed).await {
            Either::Left(((), _)) => break,
            Either::Right((Ok(Err(_)), _)) => return,
            Either::Right(_) => {}
        }
    }
    shared.state.end_with(Fault::from_reason(Reason::MemberRemoved { node: node.into() }));
}

#[cfg(test)]
impl Shared {
    fn is_joint(members: &StoredMembership) -> bool {
        members.membership().get_joint_config().len() > 1
    }

    /// Begins a change, and forgets about it before the group has agreed on the first of its two steps.
    pub(crate) async fn begin_change_for_test(&self, voters: [u64; 3]) {
        let mut change = std::pin::pin!(self.raft.change_membership(voters, false));
        while !Self::is_joint(&metrics(&self.raft).membership_config) {
            let ended = timeout(Duration::from_millis(10), change.as_mut()).await;
            assert!(ended.is_err(), "the group has agreed");
        }
    }

    /// Waits until it has.
    pub(crate) async fn has_begun_change_for_test(&self) {
        while !Self::is_joint(&metrics(&self.raft).committed_membership_config) {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::LogPosition;
    use crate::raft::format::log_id;
    use openraft::metrics::SerdeInstant;

    /// 1 to 3 vote, 1030 and perhaps 1040 have joined.
    fn members(learners: &[u64]) -> Membership {
        let peer = |id: u64| Peer { address: format!("{id}:1"), incarnation: id };
        let nodes: BTreeMap<u64, Peer> =
            [1, 2, 3].iter().chain(learners).map(|id| (*id, peer(*id))).collect();
        Membership::new(vec![[1, 2, 3].into()], nodes).unwrap()
    }

    fn planned(members: &Membership, change: Change) -> Result<Plan, Reason> {
        let was_given = |node: u64| (1..=4).contains(&node) || (1024..1050).contains(&node);
        plan(members, change, was_given).map_err(|error| error.reason().clone())
    }

    fn vote(voters: &[u64], new: Option<u64>) -> Result<Plan, Reason> {
        Ok(Plan::Vote { voters: voters.iter().copied().collect(), new })
    }

    #[test]
    fn whoever_is_replaced_goes_as_the_new_one_comes() {
        let replace = |old: u64, new: Option<u64>| Change::Replace {
            old: old.into(),
            new: new.map(Into::into),
        };
        let one = members(&[1030]);
        assert_eq!(planned(&one, replace(2, Some(1030))), vote(&[1, 3, 1030], Some(1030)));
        assert_eq!(planned(&one, replace(2, None)), vote(&[1, 3, 1030], Some(1030)));
        assert_eq!(planned(&one, replace(2, Some(3))), vote(&[1, 3], None));
        let two = members(&[1030, 1040]);
        assert!(matches!(planned(&two, replace(2, None)), Err(Reason::BadMembers { .. })));
        assert!(matches!(planned(&members(&[]), replace(2, None)), Err(Reason::BadMembers { .. })));
        assert!(matches!(planned(&one, replace(1030, Some(1030))), Err(Reason::BadMembers { .. })));
        let unknown = |node: u64| Err(Reason::MemberNotFound { node: node.into() });
        assert_eq!(planned(&one, replace(99, None)), unknown(99));
        assert_eq!(planned(&one, replace(2, Some(1041))), unknown(1041));
        // Asked again: 4 is gone, and 3 votes.
        assert_eq!(planned(&one, replace(4, Some(3))), Ok(Plan::Done));
        assert_eq!(planned(&one, replace(4, None)), unknown(4), "or was it just removed?");
        assert_eq!(planned(&one, replace(4, Some(1030))), unknown(4));
    }

    #[test]
    fn a_change_that_has_happened_is_no_error() {
        let one = members(&[1030]);
        let promote = |node: u64| planned(&one, Change::Promote(node.into()));
        let remove = |node: u64| planned(&one, Change::Remove(node.into()));
        assert_eq!(promote(1030), vote(&[1, 2, 3, 1030], Some(1030)));
        assert_eq!(promote(3), Ok(Plan::Done));
        assert_eq!(promote(1031), Err(Reason::MemberNotFound { node: 1031.into() }));
        assert_eq!(remove(3), vote(&[1, 2], None));
        assert_eq!(remove(1030), Ok(Plan::Forget(1030)));
        assert_eq!(remove(1031), Ok(Plan::Done));
        assert_eq!(remove(99), Err(Reason::MemberNotFound { node: 99.into() }));
        assert_eq!(remove(2000), Err(Reason::MemberNotFound { node: 2000.into() }));
    }

    /// Whether member 1030 follows a leader whose log begins behind `purged`, and has `length` entries, of which it has those
    /// up to `matched`.
    fn follows_with(matched: Option<u64>, purged: Option<u64>, length: u64) -> bool {
        let id = |index| log_id(LogPosition { term: 1, node: 1, index });
        let mut metrics = RaftMetrics::new_initial(1);
        metrics.last_log_index = length.checked_sub(1);
        metrics.purged = purged.map(id);
        metrics.replication = Some(BTreeMap::from([(1030, matched.map(id))]));
        let now = SerdeInstant::new(openraft::alias::InstantOf::<Types>::now());
        metrics.heartbeat = Some(BTreeMap::from([(1030, Some(now))]));
        follows(1, &metrics, 1030)
    }

    /// It answers, and in a short log it lacks little, but it may wait for a snapshot for as long as that takes.
    #[test]
    fn who_has_nothing_of_the_log_does_not_follow_it() {
        assert!(!follows_with(None, None, 1));
        assert!(!follows_with(None, None, 10));
        assert!(!follows_with(None, Some(5), 10));
        assert!(!follows_with(Some(4), Some(5), 10), "it ends before the log begins");
        assert!(follows_with(Some(5), Some(5), 10));
        assert!(follows_with(Some(0), None, 10));
    }

    #[test]
    fn who_lacks_more_than_is_under_way_does_not_follow_the_log() {
        assert!(follows_with(Some(9), None, 10 + LAG_MAX));
        assert!(!follows_with(Some(9), None, 11 + LAG_MAX));
        let metrics = RaftMetrics::new_initial(1);
        assert!(follows(1, &metrics, 1), "the leader itself");
        assert!(!follows(1, &metrics, 1030), "nothing was heard of it");
    }

    #[test]
    fn a_folder_that_asks_twice_is_one_member() {
        let one = members(&[1030]);
        let join = |address: &str, incarnation: u64| Join {
            address: address.to_owned(),
            incarnation,
            name: String::new(),
            heartbeat: Duration::from_millis(200),
        };
        assert_eq!(known(&one, &join("1030:1", 1030)).unwrap(), Some(1030));
        assert_eq!(known(&one, &join("1030:1", 7)).unwrap(), None, "the folder was wiped");
        let copied = known(&one, &join("other:1", 1030)).unwrap_err();
        assert!(matches!(copied.reason(), Reason::BadMembers { .. }));
    }
}
