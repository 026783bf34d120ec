//! The deadlines of leases, on the leader.
//!
//! That a lease exists is replicated; when it ends is not. Only the leader counts time, on its own monotonic clock, and
//! when a lease is due it *proposes* its expiry, which counts only in the term in which it was decided.
//!
//! ```text
//! granted, ended (applied) ─▶ ┌ reign of term 7 ───────────────┐
//! renewed (quorum round)   ─▶ │ lease 12  ttl 5 s  due at 41.2 │ ─ due ─▶ Expire { deciding term 7, leases } ─▶ log
//!                             └────────────────────────────────┘
//! ```
//!
//! Invariants
//! - a lease is never due earlier than its time to live after the last renewal that was acknowledged, by whichever
//!   leader: a new leader gives every lease its full time again, and an election on top;
//! - a renewal is acknowledged only after a round in which a quorum confirmed this leader, begun after the renewal came;
//! - once a lease is due it is not renewed any more, whatever becomes of the proposal.

use crate::error::Reason;
use crate::fault::{Bug, bug};
use crate::mvcc::LeaseChange;
use crate::types::{LeaseId, limits};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The deadlines, while this member leads.
#[derive(Debug, Default)]
pub(crate) struct Lessor {
    reign: Mutex<Option<Reign>>,
    changed: Notify,
}

/// What a lease has been given, and what is left of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remaining {
    pub(crate) ttl: Duration,
    pub(crate) left: Duration,
}

#[derive(Debug)]
struct Reign {
    term: u64,
    leases: HashMap<LeaseId, Deadline>,
    /// Of all leases that are not being expired, each as its [`Deadline`] says.
    due: BTreeSet<(Instant, LeaseId)>,
}

#[derive(Clone, Copy, Debug)]
struct Deadline {
    ttl: Duration,
    due: Instant,
    expiring: bool,
}

impl Lessor {
    fn reign(&self) -> MutexGuard<'_, Option<Reign>> {
        self.reign.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On the state's thread, when this member leads in `term`: every lease gets its full time, and `grace` on top for
    /// what the election took.
    pub(crate) fn begin(&self, term: u64, leases: Vec<(LeaseId, Duration)>, grace: Duration) {
        let now = Instant::now();
        // For the bug: as if most of the time had passed.
        let shorter = |ttl| if bug(Bug::NoGraceForNewReign) { ttl / 8 } else { ttl + grace };
        let mut reign = Reign { term, leases: HashMap::new(), due: BTreeSet::new() };
        leases.into_iter().for_each(|(id, ttl)| reign.put(id, ttl, later(now, shorter(ttl))));
        *self.reign() = Some(reign);
        self.changed.notify_one();
    }

    /// This member does not lead any more.
    pub(crate) fn end(&self) {
        *self.reign() = None;
    }

    /// On the state's thread, after every batch.
    pub(crate) fn note(&self, changes: &[LeaseChange]) {
        if changes.is_empty() {
            return;
        }
        let mut reign = self.reign();
        let Some(reign) = reign.as_mut() else { return };
        let now = Instant::now();
        for change in changes {
            match change {
                LeaseChange::Granted { id, ttl } => reign.put(*id, *ttl, later(now, *ttl)),
                LeaseChange::Ended { id } => reign.take(*id),
            }
        }
        self.changed.notify_one();
    }

    /// Starts the time of leases anew. The caller has confirmed that this member leads, after it was asked.
    /// `None` if it does not lead, or not long enough to know the leases.
    pub(crate) fn renew(
        &self,
        term: u64,
        ids: &[LeaseId],
    ) -> Option<Vec<Result<Duration, Reason>>> {
        let mut reign = self.reign();
        let reign = reign.as_mut().filter(|reign| reign.term == term)?;
        let now = Instant::now();
        Some(ids.iter().map(|id| reign.renew(*id, now)).collect())
    }

    /// What is left of leases; `None` as for [`Self::renew`].
    pub(crate) fn remaining(
        &self,
        only: Option<&[LeaseId]>,
    ) -> Option<Vec<(LeaseId, Option<Remaining>)>> {
        let reign = self.reign();
        let reign = reign.as_ref()?;
        let now = Instant::now();
        let remaining = |id: &LeaseId| {
            let lease = reign.leases.get(id).filter(|lease| lease.is_alive(now))?;
            // What a new leader has added for the election is no promise.
            Some(Remaining { ttl: lease.ttl, left: lease.ttl.min(lease.due - now) })
        };
        let mut all: Vec<LeaseId> =
            only.map_or_else(|| reign.leases.keys().copied().collect(), <[_]>::to_vec);
        if only.is_none() {
            all.sort_unstable();
        }
        Some(all.iter().map(|id| (*id, remaining(id))).collect())
    }

    /// Whether any of the leases is due, so that its end is on its way through the log.
    pub(crate) fn any_due(&self, ids: &[LeaseId]) -> bool {
        let reign = self.reign();
        let Some(reign) = reign.as_ref() else { return false };
        let now = Instant::now();
        ids.iter().any(|id| reign.leases.get(id).is_some_and(|lease| !lease.is_alive(now)))
    }

    /// Waits until leases are due, and returns them with the term that decided so.
    ///
    /// # Cancel safety
    /// Leases that were returned are not returned again until [`Self::retry`]; a dropped future has taken none.
    pub(crate) async fn due(&self) -> (u64, Vec<LeaseId>) {
        loop {
            let changed = self.changed.notified();
            let next = {
                let mut reign = self.reign();
                let now = Instant::now();
                match reign.as_mut() {
                    None => None,
                    Some(reign) => {
                        let due = reign.take_due(now);
                        if !due.is_empty() {
                            return (reign.term, due);
                        }
                        reign.due.first().map(|(at, _)| *at)
                    }
                }
            };
            match next {
                None => changed.await,
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, changed).await;
                }
            }
        }
    }

    /// Of these leases those that are still there are due again at `at`: the proposal to expire them failed, or left them over.
    pub(crate) fn retry(&self, term: u64, ids: &[LeaseId], at: Instant) {
        let mut reign = self.reign();
        let Some(reign) = reign.as_mut().filter(|reign| reign.term == term) else { return };
        for id in ids {
            if let Some(lease) = reign.leases.get_mut(id).filter(|lease| lease.expiring) {
                // It stays marked, so that it is not renewed; only the proposal is repeated. It is due when the list says
                // so: whoever takes the lease away finds it there.
                lease.due = lease.due.max(at);
                reign.due.insert((lease.due, *id));
            }
        }
        self.changed.notify_one();
    }
}

impl Deadline {
    fn is_alive(&self, now: Instant) -> bool {
        !self.expiring && now < self.due
    }
}

impl Reign {
    fn put(&mut self, id: LeaseId, ttl: Duration, due: Instant) {
        self.take(id);
        self.leases.insert(id, Deadline { ttl, due, expiring: false });
        self.due.insert((due, id));
    }

    fn take(&mut self, id: LeaseId) {
        if let Some(lease) = self.leases.remove(&id) {
            self.due.remove(&(lease.due, id));
        }
    }

    fn renew(&mut self, id: LeaseId, now: Instant) -> Result<Duration, Reason> {
        match self.leases.get(&id).copied() {
            Some(lease) if lease.is_alive(now) => {
                self.put(id, lease.ttl, later(now, lease.ttl));
                Ok(lease.ttl)
            }
            Some(_) | None => Err(Reason::LeaseNotFound { lease: id }),
        }
    }

    fn take_due(&mut self, now: Instant) -> Vec<LeaseId> {
        let mut due = Vec::new();
        while let Some((at, id)) = self.due.first().copied()
            && at <= now
            && due.len() < limits::EXPIRE_LEASES_MAX
        {
            self.due.pop_first();
            if let Some(lease) = self.leases.get_mut(&id) {
                lease.expiring = true;
                due.push(id);
            }
        }
        due.sort_unstable();
        due
    }
}

/// A time so far from now that it never comes is a time that far away.
fn later(now: Instant, by: Duration) -> Instant {
    now + by.min(limits::TTL_MAX * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn id(number: u64) -> LeaseId {
        LeaseId::from(number)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_due_its_time_to_live_after_the_last_renewal() {
        let lessor = Lessor::default();
        lessor.begin(7, vec![], Duration::ZERO);
        lessor.note(&[LeaseChange::Granted { id: id(1), ttl: TTL }]);
        let start = Instant::now();
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(lessor.renew(7, &[id(1)]).unwrap(), [Ok(TTL)]);
        assert_eq!(lessor.due().await, (7, vec![id(1)]));
        assert_eq!(start.elapsed().as_secs(), 9);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_gives_the_full_time_and_an_election_on_top() {
        let lessor = Lessor::default();
        let start = Instant::now();
        lessor.begin(8, vec![(id(1), TTL)], Duration::from_secs(2));
        assert_eq!(lessor.due().await, (8, vec![id(1)]));
        assert_eq!(start.elapsed().as_secs(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_is_not_renewed_even_if_the_proposal_failed() {
        let lessor = Lessor::default();
        lessor.begin(7, vec![(id(1), TTL)], Duration::ZERO);
        let (term, due) = lessor.due().await;
        let gone = Reason::LeaseNotFound { lease: id(1) };
        assert_eq!(lessor.renew(7, &[id(1)]).unwrap(), [Err(gone.clone())]);
        lessor.retry(term, &due, Instant::now() + Duration::from_millis(200));
        assert_eq!(lessor.renew(7, &[id(1)]).unwrap(), [Err(gone)]);
        assert_eq!(lessor.due().await, (7, vec![id(1)]));
        lessor.note(&[LeaseChange::Ended { id: id(1) }]);
        assert!(!lessor.any_due(&[id(1)]));
    }

    /// The proposal that seemed to have failed got through, and then somebody made a lease of the same id.
    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_made_again_has_its_full_time() {
        let lessor = Lessor::default();
        lessor.begin(7, vec![(id(1), TTL)], Duration::ZERO);
        let (term, due) = lessor.due().await;
        lessor.retry(term, &due, Instant::now() + Duration::from_millis(200));
        lessor.note(&[LeaseChange::Ended { id: id(1) }]);
        lessor.note(&[LeaseChange::Granted { id: id(1), ttl: TTL }]);
        let start = Instant::now();
        assert_eq!(lessor.due().await, (7, vec![id(1)]));
        assert_eq!(start.elapsed(), TTL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_in_another_term_is_not_taken() {
        let lessor = Lessor::default();
        assert!(lessor.renew(7, &[id(1)]).is_none());
        lessor.begin(7, vec![(id(1), TTL)], Duration::ZERO);
        assert!(lessor.renew(6, &[id(1)]).is_none());
        lessor.end();
        assert!(lessor.renew(7, &[id(1)]).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pile_of_expiries_is_proposed_in_bounded_steps() {
        let lessor = Lessor::default();
        lessor.begin(7, (0..2500).map(|n| (id(n), TTL)).collect(), Duration::ZERO);
        let sizes = [lessor.due().await.1, lessor.due().await.1, lessor.due().await.1];
        assert_eq!(sizes.map(|due| due.len()), [1000, 1000, 500]);
    }
}
