//! Comparing states: every few seconds each member asks all others for the hashes that theirs had, and judges itself.
//!
//! ```text
//! marks ⇄ marks of the others ─▶ judge ─┬─ equal
//!                                       ├─ others differ: say so
//!                                       ├─ nobody can tell: say so, and in `Status`
//!                                       └─ own fault: mark the folder ─▶ fail ─▶ (the next start) reseed
//! ```
//!
//! Checksums find what has changed on a disk. This finds what was wrong before it was sealed: a bug of ours in how a command is
//! applied, a row that is gone together with what would have told of it, memory that lies.
//!
//! What a checksum finds instead ends in the same way: the folder is marked, and the next start gets another state. But only if
//! it was found in the tables, and there are others who have them. The log is nobody else's.
//!
//! A member judges nobody but itself. It asks over connections that name both ends, like those for votes, so that it is its own
//! group that answers.
//!
//! Invariants
//! - a member that finds itself at fault is marked on the disk before it fails, so that no start opens that state again, unless
//!   its disk does not answer;
//! - it fails by the way of every other fault: it applies nothing more, its reads are refused, and its consensus ends.

use super::marks::{Report, Verdict, judge};
use super::member::Shared;
use super::network::{client, method, read_answer};
use super::reseed::Why;
use super::{Membership, Peer};
use crate::error::{Error, Fault, Reason};
use crate::fault::{Bug, bug};
use crate::wire::{PeerClient, PeerKind};
use bytes::Bytes;
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How often members compare, in heartbeats: every 4 s with the default.
const EVERY_HEARTBEATS: u32 = 20;

/// Compares this member's state with those of the others, as long as it lives.
pub(super) async fn compare(shared: Arc<Shared>) {
    let mut peers = Peers::default();
    let mut quotas = BTreeMap::new();
    loop {
        tokio::time::sleep(pause(shared.timing.heartbeat * EVERY_HEARTBEATS)).await;
        shared.state.seeds.drop_idle();
        let membership = shared.membership();
        let reports = peers.ask(&shared, &membership).await;
        if note_quotas(shared.quota.0, &reports, &mut quotas) {
            let (node, quota) = (shared.identity.node, shared.quota.0);
            tracing::warn!(
                node,
                quota,
                others = ?quotas,
                "members have different quotas: that of the leader counts, whoever it is by then"
            );
        }
        // What was applied meanwhile is more to find in common.
        let own = shared.report();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let verdict = judge(shared.identity.node, &voters, &own, &reports);
        if let Verdict::OwnFault { index, own, others } = verdict {
            isolate(&shared, &membership, Reason::StateDiffers { index, own, others }).await;
            return;
        }
        tell(&shared, verdict);
    }
}

impl Shared {
    /// What this member has to say of its state.
    pub(super) fn report(&self) -> Report {
        let mut report = self.state.report();
        report.quota = Some(self.quota.0);
        if bug(Bug::ReportsAnotherHash) {
            // Nobody has the same.
            let other = u128::from(self.identity.incarnation);
            report.marks.iter_mut().for_each(|mark| mark.hash ^= other);
        }
        report
    }
}

/// Keeps which members have another quota, and says whether there is news of it. Who does not answer is as it was.
fn note_quotas(
    own: u64,
    reports: &BTreeMap<u64, Report>,
    different: &mut BTreeMap<u64, u64>,
) -> bool {
    let before = different.clone();
    for (node, quota) in reports.iter().filter_map(|(node, report)| Some((*node, report.quota?))) {
        if quota == own {
            different.remove(&node);
        } else {
            different.insert(node, quota);
        }
    }
    !different.is_empty() && *different != before
}

/// Between half of the time and once and a half, so that members do not fall into step.
fn pause(time: Duration) -> Duration {
    let half = u64::try_from(time.as_millis() / 2).unwrap_or(u64::MAX);
    // Without randomness there is no jitter, which harms nobody.
    let more = getrandom::u64().unwrap_or(half) % (2 * half).max(1);
    Duration::from_millis(half + more)
}

/// Marks the folder, and ends this member's part in the group.
async fn isolate(shared: &Arc<Shared>, membership: &Membership, reason: Reason) {
    tracing::error!(node = shared.identity.node, %reason, "this member's state is not that of the group");
    // A disk that stalls or fails must not keep a wrong state in service. Without a mark the next life finds out again.
    mark(shared, Why::Differs, membership).await;
    shared.state.fail(Fault::from_reason(reason));
}

/// Marks the folder if this member has failed because bytes of its tables have changed, and others have the same state. Says
/// whether the next start gets that of another.
pub(super) async fn mark_damaged(shared: &Shared) -> bool {
    if !shared.state.check().is_err_and(|fault| fault.is_of_tables()) {
        return false;
    }
    let membership = shared.membership();
    // A learner may have nothing of it yet.
    let is_alone = membership.voter_ids().all(|node| node == shared.identity.node);
    !is_alone && mark(shared, Why::IsDamaged, &membership).await
}

/// Marks the state as one that is not to be opened again, and says whether that is on the disk.
async fn mark(shared: &Shared, why: Why, membership: &Membership) -> bool {
    let marked = shared.state.distrust(why, why.word(Some(membership)));
    match timeout(shared.timing.election_max(), marked).await {
        Ok(Ok(())) => true,
        Ok(Err(fault)) => {
            let error = Error::from(fault);
            tracing::error!(node = shared.identity.node, %error, "that the state is not trusted could not be written down");
            false
        }
        Err(_) => false,
    }
}

/// Says what there is to say about others, once. What was found stays found until members were seen to be equal again.
fn tell(shared: &Shared, verdict: Verdict) {
    if verdict == Verdict::Unknown {
        return;
    }
    let node = shared.identity.node;
    let was = shared.compared.send_replace(verdict.clone());
    match (was, verdict) {
        (Verdict::Undecided { .. }, Verdict::Undecided { .. }) => {}
        (_, Verdict::Undecided { index }) => {
            tracing::error!(node, index, "members have different states, and no majority has one");
        }
        (Verdict::Others { nodes: before, .. }, Verdict::Others { nodes, .. })
            if nodes == before => {}
        (_, Verdict::Others { index, nodes }) => {
            tracing::warn!(node, index, ?nodes, "these members have another state than a majority");
        }
        (_, Verdict::Unknown | Verdict::Equal | Verdict::OwnFault { .. }) => {}
    }
}

/// The connections to the other members.
#[derive(Default)]
struct Peers(BTreeMap<u64, (Peer, PeerClient)>);

impl Peers {
    /// Asks all of them at once. Who does not answer has nothing to say.
    async fn ask(&mut self, shared: &Shared, membership: &Membership) -> BTreeMap<u64, Report> {
        self.follow(shared, membership);
        let patience = shared.timing.election_min();
        let asked = self.0.iter_mut().map(|(node, (_, client))| async move {
            let answer = client.call(method::MARKS, Bytes::new(), patience).await;
            Some((*node, answer.and_then(read_answer::<Report>).ok()?))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// One connection to each member that there is now.
    fn follow(&mut self, shared: &Shared, membership: &Membership) {
        let Shared { identity, timing, ref security, .. } = *shared;
        let others = membership.nodes().filter(|(node, _)| **node != identity.node);
        let others: BTreeMap<u64, &Peer> = others.map(|(node, peer)| (*node, peer)).collect();
        self.0.retain(|node, (peer, _)| others.get(node).is_some_and(|now| *now == peer));
        for (node, peer) in others {
            self.0.entry(node).or_insert_with(|| {
                let client =
                    client(PeerKind::Raft, identity, timing, security.clone(), (node, peer));
                (peer.clone(), client)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As often as it changes, and not as often as they compare.
    #[test]
    fn quotas_that_differ_are_told_once() {
        let said = |quotas: &[(u64, Option<u64>)]| -> BTreeMap<u64, Report> {
            let report = |quota| Report { format: 1, marks: Vec::new(), quota };
            quotas.iter().map(|(node, quota)| (*node, report(*quota))).collect()
        };
        let mut different = BTreeMap::new();
        let mut round = |quotas: &[(u64, Option<u64>)]| {
            let is_news = note_quotas(8, &said(quotas), &mut different);
            (is_news, different.len())
        };
        assert_eq!(round(&[(2, Some(8)), (3, None)]), (false, 0));
        assert_eq!(round(&[(2, Some(8)), (3, Some(4))]), (true, 1));
        assert_eq!(round(&[(2, Some(8)), (3, Some(4))]), (false, 1));
        assert_eq!(round(&[(2, Some(8))]), (false, 1), "who is silent is as it was");
        assert_eq!(round(&[(2, Some(6)), (3, Some(4))]), (true, 2));
        assert_eq!(round(&[(2, Some(8)), (3, Some(8))]), (false, 0));
        assert_eq!(round(&[(3, Some(4))]), (true, 1));
    }
}
