//! What a transaction may take: how much its answer carries, how many keys it deletes, and, of a write, how many it goes through.
//!
//! All of it follows from the state, so no gateway can check them, and once the first operation has run nothing may stop the rest.
//! So they are computed before.
//!
//! ```text
//! get, put or delete with prev     what is there now, or what the transaction itself has put there
//! range                            its page as of now, and what the transaction itself has put into it
//!   behind a change                as much of the next entries as that can have moved into the page
//! ```
//!
//! Invariant: what a transaction may do depends on the state and itself alone, and is the same on each member.

use super::Stop;
use super::plan::{Effort, Plan, Step};
use super::read::{Reader, Scanned};
use crate::error::{Fault, Reason};
use crate::types::{DeleteOp, KeyRange, RangeOp, Revision, Shows, limits};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// What a key-value takes beside its key and its value, and at most.
const ENTRY_BYTES: usize = 64;
const ENTRY_BYTES_MAX: usize = ENTRY_BYTES + limits::KEY_BYTES_MAX + limits::VALUE_BYTES_MAX;

/// What the operations so far take.
struct Budget<'a> {
    state: &'a Reader<'a>,
    effort: &'a Effort,
    /// Of the answer.
    bytes: usize,
    /// The keys that were put, and what each takes.
    put: BTreeMap<&'a [u8], usize>,
    deleted: u64,
}

/// Refuses a plan whose answer would be too large, or that deletes too many keys.
pub(super) fn check<'a>(
    plan: &'a Plan<'_>,
    state: &'a Reader<'a>,
    effort: &'a Effort,
) -> Result<(), Stop> {
    match &plan.steps[..] {
        // One key, or one page, is never too much.
        [Step::Get(_) | Step::Put(_)] => Ok(()),
        [Step::Range(_)] if effort.has_no_end() => Ok(()),
        _ => Budget { state, effort, bytes: 0, put: BTreeMap::new(), deleted: 0 }.take(plan),
    }
}

impl<'a> Budget<'a> {
    fn take(&mut self, plan: &'a Plan<'_>) -> Result<(), Stop> {
        for step in &plan.steps {
            match step {
                Step::Get(get) => self.get(&get.key, get.at)?,
                Step::Put(put) => {
                    if put.prev {
                        self.get(&put.key, None)?;
                    }
                    let value = match put.ignore_value {
                        true => self.state.image(&put.key)?.map_or(0, |image| image.value.len()),
                        false => put.value.len(),
                    };
                    self.put.insert(&put.key, ENTRY_BYTES + put.key.len() + value);
                }
                Step::Delete(delete) => self.delete(delete)?,
                Step::Range(range) => self.bytes += self.page_bytes(range)?,
                Step::Txn(nested) => self.take(nested)?,
            }
            self.check()?;
        }
        Ok(())
    }

    fn get(&mut self, key: &[u8], at: Option<Revision>) -> Result<(), Fault> {
        let image = match at.filter(|at| *at < self.state.revision) {
            Some(at) => self.state.image_at(key, at)?,
            None => self.state.image(key)?,
        };
        let now = image.map_or(0, |image| ENTRY_BYTES + key.len() + image.value.len());
        self.bytes += now.max(self.put.get(key).copied().unwrap_or(0));
        Ok(())
    }

    /// The most that the page of a range can take.
    fn page_bytes(&mut self, range: &RangeOp) -> Result<usize, Stop> {
        // What the transaction has deleted, or put elsewhere in the order, makes room for as many entries from behind a page
        // that is cut off. The past stays as it is.
        let is_past = range.at.is_some_and(|at| at < self.state.revision);
        let moved = if is_past { 0 } else { self.deleted + self.put.len() as u64 };
        let moved = u32::try_from(moved).unwrap_or(u32::MAX);
        let limit = if range.limit == 0 { 0 } else { range.limit.saturating_add(moved) };
        let wide = RangeOp { limit, ..range.clone() };
        let (mut each, more) = self.state.page_sizes(&wide, self.effort)?;
        self.effort.check()?;
        let most = if range.limit == 0 { usize::MAX } else { range.limit as usize };
        if more && each.len() as u64 != u64::from(limit) && moved > 0 {
            // It is cut off by its bytes: of what may move into it nothing is known.
            return Ok(most.saturating_mul(ENTRY_BYTES_MAX).min(limits::PAGE_BYTES_MAX));
        }
        each.sort_unstable_by(|one, other| other.cmp(one));
        let there: usize = each.into_iter().take(most).sum();
        let own = self.put.iter().filter(|(key, _)| range.range.contains(key));
        let own = match (range.shows, range.keys_only) {
            (Shows::Count, _) => 0,
            (_, true) => own.map(|(key, _)| ENTRY_BYTES + key.len()).sum::<usize>(),
            _ => own.map(|(_, bytes)| bytes).sum::<usize>(),
        };
        Ok((there + own).min(limits::PAGE_BYTES_MAX))
    }

    fn delete(&mut self, delete: &DeleteOp) -> Result<(), Stop> {
        if delete.range.as_key().is_some() && !delete.prev {
            self.deleted += 1;
            return Ok(());
        }
        self.count(&delete.range, delete.prev)
    }

    fn count(&mut self, range: &KeyRange, prev: bool) -> Result<(), Stop> {
        let state = self.state;
        let mut visit = |key: &[u8], found: Scanned<'_>| {
            self.deleted += 1;
            if prev {
                self.bytes += ENTRY_BYTES + key.len() + found.image(key)?.value.len();
            }
            let goes_on = self.check().is_ok();
            Ok(if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        };
        Ok(state.scan(range, None, &mut visit)?)
    }

    fn check(&self) -> Result<(), Reason> {
        if self.bytes > limits::ANSWER_BYTES_MAX {
            return Err(Reason::ResultTooLarge { limit: limits::ANSWER_BYTES_MAX as u64 });
        }
        let limit = limits::DELETED_KEYS_MAX;
        if self.deleted > limit { Err(Reason::TooManyKeys { limit }) } else { Ok(()) }
    }
}
