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
    Compare, DeleteOp, GetOp, LeaseId, Op, OpKind, Operand, PutOp, RangeOp, Relation, TxnOp,
};
use std::ops::ControlFlow;

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
    pub(super) fn resolve(txn: &'op TxnOp, state: &Reader<'_>) -> Result<Self, Fault> {
        let mut succeeded = true;
        for compare in &txn.when {
            succeeded = succeeded && holds(compare, state)?;
        }
        let branch = if succeeded { &txn.then } else { &txn.otherwise };
        let steps = branch.iter().map(|op| Step::resolve(op, state));
        Ok(Self { succeeded, steps: steps.collect::<Result<_, Fault>>()? })
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
    fn resolve(op: &'op Op, state: &Reader<'_>) -> Result<Self, Fault> {
        Ok(match &op.0 {
            OpKind::Put(put) => Self::Put(put),
            OpKind::Get(get) => Self::Get(get),
            OpKind::Delete(delete) => Self::Delete(delete),
            OpKind::Range(range) => Self::Range(range),
            OpKind::Txn(nested) => Self::Txn(Plan::resolve(nested, state)?),
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
fn holds(compare: &Compare, state: &Reader<'_>) -> Result<bool, Fault> {
    if let Some(key) = compare.range.as_key() {
        let image = state.image(key)?;
        return key_holds(compare, key, image.as_ref(), state);
    }
    let (mut all, mut any) = (true, false);
    state.scan(&compare.range, None, &mut |key, found: Scanned<'_>| {
        any = true;
        all = key_holds(compare, key, Some(&found.image(key)?), state)?;
        Ok(if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    if any { Ok(all) } else { key_holds(compare, &[], None, state) }
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
