//! What a transaction will do, decided before it does anything.
//!
//! All comparisons, those of nested transactions too, look at the state before the outermost one. So the branches are
//! known before the first operation runs, and with them everything that could still forbid one: an unknown lease, a
//! missing key whose value is to be kept, a revision that is gone. All of it is checked first; then nothing can fail
//! halfway, and a rejected transaction has written nothing.
//!
//! ```text
//! TxnOp ── resolve: compare ──▶ Plan ── check: leases, kept keys, revisions ──▶ run, which no rule can stop
//! ```
//!
//! Checking against the state *before* is exact: no key changes twice in a transaction ([`crate::api::check_txn`]), so
//! no operation can make or remove the key that a later one keeps the value of.

use super::Stop;
use super::read::{Reader, Scanned};
use super::records::Image;
use crate::error::{Fault, Reason};
use crate::types::{
    Compare, DeleteOp, GetOp, LeaseId, Op, OpKind, Operand, PutOp, RangeOp, Relation, TxnOp, limits,
};
use std::cell::Cell;
use std::ops::ControlFlow;

/// How many bytes of a value count for a key.
const VALUE_BYTES: usize = 4096;
/// The most keys that a write goes through.
pub(super) const READ_KEYS_MAX: u64 = if cfg!(test) { 20_000 } else { limits::READ_KEYS_MAX };

/// How many keys a transaction may still go through. What a write goes through, all members do, on the thread that applies. So
/// whatever is counted is the same on all of them.
pub(super) struct Effort {
    left: Cell<Option<u64>>,
}

impl Effort {
    pub(super) fn of_write() -> Self {
        Self { left: Cell::new(Some(READ_KEYS_MAX)) }
    }

    /// Reads keep nobody else from anything.
    pub(super) fn of_read() -> Self {
        Self { left: Cell::new(Some(u64::MAX)) }
    }

    pub(super) fn has_no_end(&self) -> bool {
        self.left.get().is_some_and(|left| left > READ_KEYS_MAX)
    }

    /// Goes through one more, if it may.
    pub(super) fn step(&self) -> ControlFlow<()> {
        self.spend(1)
    }

    /// Looks at a value, which counts for as many keys as it is large.
    pub(super) fn value(&self, bytes: usize) -> ControlFlow<()> {
        self.spend((bytes / VALUE_BYTES) as u64)
    }

    fn spend(&self, keys: u64) -> ControlFlow<()> {
        self.left.set(self.left.get().and_then(|left| left.checked_sub(keys)));
        match self.left.get() {
            Some(_) => ControlFlow::Continue(()),
            None => ControlFlow::Break(()),
        }
    }

    pub(super) fn check(&self) -> Result<(), Reason> {
        let limit = READ_KEYS_MAX;
        self.left.get().map(drop).ok_or(Reason::TooManyKeysRead { limit })
    }
}

/// The operations that a transaction will carry out.
pub(super) struct Plan<'op> {
    /// Whether all comparisons held.
    pub(super) succeeded: bool,
    pub(super) steps: Vec<Step<'op>>,
}

/// One operation.
pub(super) enum Step<'op> {
    Put(&'op PutOp),
    Get(&'op GetOp),
    Delete(&'op DeleteOp),
    Range(&'op RangeOp),
    Txn(Plan<'op>),
}

impl<'op> Plan<'op> {
    /// Decides which branches run.
    pub(super) fn resolve(
        txn: &'op TxnOp,
        state: &Reader<'_>,
        effort: &Effort,
    ) -> Result<Self, Stop> {
        let mut succeeded = true;
        for compare in &txn.when {
            succeeded = succeeded && holds(compare, state, effort)?;
        }
        let branch = if succeeded { &txn.then } else { &txn.otherwise };
        let steps = branch.iter().map(|op| Step::resolve(op, state, effort));
        Ok(Self { succeeded, steps: steps.collect::<Result<_, Stop>>()? })
    }

    /// Checks whatever depends on the state. The first operation that cannot run is the one that is reported.
    pub(super) fn check(&self, state: &Reader<'_>) -> Result<(), Stop> {
        self.steps.iter().try_for_each(|step| match step {
            Step::Put(put) => check_put(put, state),
            Step::Get(get) => Ok(state.check_revision(get.at)?),
            Step::Range(range) => Ok(state.check_revision(range.at)?),
            Step::Delete(_) => Ok(()),
            Step::Txn(nested) => nested.check(state),
        })
    }
}

impl<'op> Step<'op> {
    fn resolve(op: &'op Op, state: &Reader<'_>, effort: &Effort) -> Result<Self, Stop> {
        Ok(match &op.0 {
            OpKind::Put(put) => Self::Put(put),
            OpKind::Get(get) => Self::Get(get),
            OpKind::Delete(delete) => Self::Delete(delete),
            OpKind::Range(range) => Self::Range(range),
            OpKind::Txn(nested) => Self::Txn(Plan::resolve(nested, state, effort)?),
        })
    }
}

fn check_put(put: &PutOp, state: &Reader<'_>) -> Result<(), Stop> {
    if let Some(lease) = put.lease
        && state.lease(lease)?.is_none()
    {
        return Err(Reason::LeaseNotFound { lease }.into());
    }
    let keeps = put.ignore_value || put.ignore_lease;
    if keeps && state.image(&put.key)?.is_none() {
        return Err(Reason::KeyNotFound.into());
    }
    Ok(())
}

/// Whether a comparison holds: for all keys of its range, or for a missing key if there is none.
fn holds(compare: &Compare, state: &Reader<'_>, effort: &Effort) -> Result<bool, Stop> {
    let is_of_value = matches!(compare.operand, Operand::Value(_));
    if let Some(key) = compare.range.as_key() {
        let image = state.image(key)?;
        if let Some(image) = image.as_ref().filter(|_| is_of_value) {
            let _ = effort.value(image.value.len());
            effort.check()?;
        }
        return Ok(key_holds(compare, key, image.as_ref(), state)?);
    }
    let (mut all, mut any) = (true, false);
    state.scan_within(&compare.range, None, effort, &mut |key, found: Scanned<'_>| {
        any = true;
        let image = found.image(key)?;
        if is_of_value && effort.value(image.value.len()).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        all = key_holds(compare, key, Some(&image), state)?;
        Ok(if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    effort.check()?;
    if any { Ok(all) } else { Ok(key_holds(compare, &[], None, state)?) }
}

fn key_holds(
    compare: &Compare,
    key: &[u8],
    image: Option<&Image>,
    state: &Reader<'_>,
) -> Result<bool, Fault> {
    let number = |of: fn(&Image) -> u64| image.map_or(0, of);
    let (stored, wanted) = match &compare.operand {
        Operand::Value(wanted) => {
            // A missing key has no value that any relation could hold for.
            let Some(image) = image else { return Ok(false) };
            return Ok(relates(compare.relation, &state.value(key, image)?, wanted));
        }
        Operand::CreateRevision(wanted) => (number(|image| image.create_revision.get()), wanted),
        Operand::ModRevision(wanted) => (number(|image| image.modified.revision.get()), wanted),
        Operand::Version(wanted) => (number(|image| image.version), wanted),
        Operand::Lease(wanted) => (number(|image| image.lease.map_or(0, LeaseId::get)), wanted),
    };
    Ok(relates(compare.relation, &stored, wanted))
}

fn relates<T: Ord>(relation: Relation, stored: &T, wanted: &T) -> bool {
    match relation {
        Relation::Equal => stored == wanted,
        Relation::NotEqual => stored != wanted,
        Relation::Less => stored < wanted,
        Relation::Greater => stored > wanted,
    }
}
