//! Leases, as the state knows them: an id, a time to live, and the keys that go when it goes.
//!
//! No time passes here. Whether a lease is due is decided by the leader alone, who reads the clock and proposes its end;
//! what is applied is "this lease ends", and it ends at the same log entry everywhere.
//!
//! ```text
//! lease       7        → ttl 60 s
//! lease_keys  7 ++ b   →              revoke 7, or expire [7]:  one revision with  DELETE b, DELETE d
//!             7 ++ d   →
//! ```
//!
//! Invariants
//! - `lease_keys` holds exactly the pairs of `latest`: a put moves its key, a delete takes it off;
//! - a lease and its keys go together, in one revision, in key order; a lease without keys takes none. So no write gives it more
//!   than [`limits::LEASE_KEYS_MAX`], and an expiry ends no further lease when it has deleted as many as a transaction may;
//! - an expiry counts only in the term of the leader that decided it. One that was paused after deciding, and comes
//!   back deposed, must not end a lease whose renewal its successor has confirmed.

use super::apply::Writer;
use super::plan::{Plan, Step};
use super::read::{Reader, Rows};
use super::records::{LeaseRow, Record, Table};
use super::{LeaseChange, Stop, hash, keys};
use crate::api::Applied;
use crate::error::{Fault, Reason};
use crate::fault::{Bug, Point, bug, point};
use crate::types::{LeaseId, PutOp, limits};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

/// What a key takes in a list of them, beside itself; roughly.
pub(crate) const KEY_BYTES: usize = 8;
/// After how many keys an expiry ends no further lease.
const ENDED_KEYS_MAX: u64 = if cfg!(test) { 1000 } else { limits::DELETED_KEYS_MAX };

/// A lease with its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) id: LeaseId,
    pub(crate) ttl: Duration,
    /// In order.
    pub(crate) keys: Vec<Bytes>,
}

impl Reader<'_> {
    /// A lease with its keys.
    pub(super) fn lease_with_keys(&self, id: LeaseId) -> Result<Option<Lease>, Fault> {
        let Some(LeaseRow { ttl }) = self.lease(id)? else { return Ok(None) };
        Ok(Some(Lease { id, ttl, keys: self.lease_keys(id)? }))
    }

    /// Every lease with its time to live.
    pub(super) fn leases(&self) -> Result<Vec<(LeaseId, Duration)>, Fault> {
        let all = Bound::Unbounded;
        let mut rows = Rows::new(self.tables.range(self.txn, Table::Leases, all, all)?)?;
        let mut leases = Vec::new();
        let mut add = |key: &[u8], lease: LeaseRow| {
            let id = keys::parse_lease(key).ok_or_else(|| Table::Leases.corrupt(key))?;
            leases.push((id, lease.ttl));
            Ok::<_, Fault>(())
        };
        for (key, lease) in self.front.leases() {
            while let Some((row_key, row)) = rows.take_below(key)? {
                add(row_key, LeaseRow::open(row_key, row)?)?;
            }
            rows.skip(key)?;
            lease.map_or(Ok(()), |lease| add(key, lease))?;
        }
        while let Some((row_key, row)) = rows.take()? {
            add(row_key, LeaseRow::open(row_key, row)?)?;
        }
        Ok(leases)
    }

    fn lease_keys(&self, id: LeaseId) -> Result<Vec<Bytes>, Fault> {
        Ok(self.lease_keys_within(id, usize::MAX)?.unwrap_or_default())
    }

    /// The keys of a lease, if they take no more than `room`, each [`KEY_BYTES`] more than it has.
    pub(super) fn lease_keys_within(
        &self,
        id: LeaseId,
        room: usize,
    ) -> Result<Option<Vec<Bytes>>, Fault> {
        let (mut keys, mut left) = (Vec::new(), Some(room));
        self.each_lease_key(id, &mut |key| {
            left = left.and_then(|left| left.checked_sub(KEY_BYTES + key.len()));
            if left.is_some() {
                keys.push(Bytes::copy_from_slice(key));
            }
        })?;
        Ok(left.map(|_| keys))
    }

    fn each_lease_key(&self, id: LeaseId, visit: &mut dyn FnMut(&[u8])) -> Result<(), Fault> {
        let start = keys::lease(id);
        let end = id.get().checked_add(1).map(|next| keys::lease(LeaseId::from(next)));
        let start = Bound::Included(&start[..]);
        let end = end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..]));
        let mut rows = Rows::new(self.tables.range(self.txn, Table::Attachments, start, end)?)?;
        let mut add = |row_key: &[u8]| {
            let pair = keys::parse_attachment(row_key).filter(|(lease, _)| *lease == id);
            let (_, key) = pair.ok_or_else(|| Table::Attachments.corrupt(row_key))?;
            visit(key);
            Ok::<_, Fault>(())
        };
        for (row_key, is_attached) in self.front.attachments(start, end) {
            while let Some((below, _)) = rows.take_below(row_key)? {
                add(below)?;
            }
            rows.skip(row_key)?;
            if *is_attached {
                add(row_key)?;
            }
        }
        while let Some((row_key, _)) = rows.take()? {
            add(row_key)?;
        }
        Ok(())
    }
}

/// How many keys leases have, of those that were asked for. Nothing but what the state says, which takes longer to count.
#[derive(Debug, Default)]
pub(super) struct Attached(BTreeMap<LeaseId, u64>);

impl Attached {
    /// A key has moved from one lease to another.
    pub(super) fn moves(&mut self, from: Option<LeaseId>, to: Option<LeaseId>) {
        if let Some(count) = from.and_then(|from| self.0.get_mut(&from)) {
            // A damaged table may have shown less than there was.
            *count = count.saturating_sub(1);
        }
        if let Some(count) = to.and_then(|to| self.0.get_mut(&to)) {
            *count += 1;
        }
    }

    fn of(&mut self, lease: LeaseId, state: &Reader<'_>) -> Result<u64, Fault> {
        if let Some(count) = self.0.get(&lease) {
            return Ok(*count);
        }
        let mut count = 0;
        state.each_lease_key(lease, &mut |_| count += 1)?;
        self.0.insert(lease, count);
        Ok(count)
    }
}

/// How many keys a plan attaches to each lease that they have not been attached to before.
fn attaches(
    plan: &Plan<'_>,
    state: &Reader<'_>,
    more: &mut BTreeMap<LeaseId, u64>,
) -> Result<(), Fault> {
    for step in &plan.steps {
        match step {
            Step::Put(PutOp { key, lease: Some(lease), .. }) => {
                let before = state.image(key)?.and_then(|before| before.lease);
                if before != Some(*lease) {
                    *more.entry(*lease).or_default() += 1;
                }
            }
            Step::Txn(nested) => attaches(nested, state, more)?,
            Step::Put(_) | Step::Get(_) | Step::Delete(_) | Step::Range(_) => {}
        }
    }
    Ok(())
}

impl Writer<'_> {
    /// Whether leases can take the keys that a plan attaches to them.
    pub(super) fn check_leases(&mut self, plan: &Plan<'_>) -> Result<(), Stop> {
        let mut more = BTreeMap::new();
        attaches(plan, &self.reader(), &mut more)?;
        for (lease, more) in more {
            let mut attached = std::mem::take(self.attached);
            let has = attached.of(lease, &self.reader());
            *self.attached = attached;
            let (has, limit) = (has?, limits::LEASE_KEYS_MAX);
            if has + more > limit {
                return Err(Reason::LeaseFull { lease, limit }.into());
            }
        }
        Ok(())
    }

    pub(super) fn grant(&mut self, id: Option<LeaseId>, ttl: Duration) -> Result<Applied, Stop> {
        point(Point::CoreLease);
        if ttl > limits::TTL_MAX {
            return Err(Reason::TtlTooLarge.into());
        }
        // What was proposed here may be finer than what travelled in the log to the others.
        let ttl = Duration::from_millis(ttl.as_millis().try_into().expect("below 100 years"));
        // No lease has number 0: it is how "none" is compared and stored.
        let id = match id.filter(|id| id.get() != 0) {
            Some(lease) if self.reader().lease(lease)?.is_some() => {
                return Err(Reason::LeaseExists { lease }.into());
            }
            Some(id) => id,
            None => self.choose_lease()?,
        };
        let lease = LeaseRow { ttl };
        self.active.lease(&keys::lease(id), Some(lease));
        self.head.rows_hash = self.head.rows_hash.wrapping_add(hash::of_lease(id, &lease));
        self.leases.push(LeaseChange::Granted { id, ttl });
        Ok(Applied::Granted { id, ttl, revision: self.revision() })
    }

    /// The next id that is free. Ids are chosen in order, so that one is never chosen twice.
    fn choose_lease(&mut self) -> Result<LeaseId, Fault> {
        loop {
            self.head.lease_chosen += 1;
            let id = LeaseId::from(self.head.lease_chosen);
            if self.reader().lease(id)?.is_none() {
                return Ok(id);
            }
        }
    }

    pub(super) fn revoke(&mut self, id: LeaseId) -> Result<Applied, Stop> {
        if self.end_lease(id)?.is_none() {
            return Err(Reason::LeaseNotFound { lease: id }.into());
        }
        Ok(Applied::Revoked { revision: self.revision() })
    }

    pub(super) fn expire(
        &mut self,
        deciding_term: u64,
        term: u64,
        leases: &[LeaseId],
    ) -> Result<Applied, Stop> {
        point(Point::CoreExpire);
        if term != deciding_term && !bug(Bug::ExpireOutlivesTerm) {
            return Err(Reason::LeaderChanged.into());
        }
        if leases.len() > limits::EXPIRE_LEASES_MAX {
            let (actual, limit) = (leases.len() as u64, limits::EXPIRE_LEASES_MAX as u64);
            return Err(Reason::TooManyOperations { actual, limit }.into());
        }
        let (mut ended, mut deleted) = (Vec::new(), 0);
        for id in leases.iter().copied().collect::<BTreeSet<_>>() {
            // Those that are left are due again at once.
            if deleted >= ENDED_KEYS_MAX {
                break;
            }
            // One that was revoked meanwhile is nobody's fault.
            if let Some(keys) = self.end_lease(id)? {
                deleted += keys;
                ended.push(id);
            }
        }
        Ok(Applied::Expired { leases: ended, revision: self.revision() })
    }

    /// Ends a lease and deletes its keys, in a revision of their own. Returns how many it had, if there was such a lease.
    fn end_lease(&mut self, id: LeaseId) -> Result<Option<u64>, Fault> {
        let Some(Lease { ttl, keys: attached, .. }) = self.reader().lease_with_keys(id)? else {
            return Ok(None);
        };
        let count = attached.len() as u64;
        for key in attached {
            let image = self.reader().image(&key)?.filter(|image| image.lease == Some(id));
            let image = image.ok_or_else(|| Table::Attachments.corrupt(&key))?;
            self.remove(key, image);
        }
        self.end_revision();
        self.active.lease(&keys::lease(id), None);
        let lease = LeaseRow { ttl };
        self.head.rows_hash = self.head.rows_hash.wrapping_sub(hash::of_lease(id, &lease));
        self.leases.push(LeaseChange::Ended { id });
        self.attached.0.remove(&id);
        Ok(Some(count))
    }
}
