//! Checks of a whole state: every row by itself, as [`Scrub`] does, and against the rows that it hangs together with.
//!
//! Tests call [`verify`] after everything that they do, and it is what an operator runs on a folder that is in doubt.
//!
//! ```text
//! latest ◀──▶ lease_keys ──▶ lease          latest ──▶ val        what a key is now is what its last change made,
//!    │                                         ▲                  and what each change replaced is what the one
//!    └─▶ ev ──▶ ev ──▶ … ──────────────────────┘                  before it made; of each change one thing knows
//! gone ─▶ ┘     ▲
//!             kidx
//! ```

use super::View;
use super::hash;
use super::keys;
use super::read::Reader;
use super::records::{Change, FIRST_TURN, Format, Gone, Image, Record, Table, Value, next_turn};
use super::scrub::{Scrub, check_digest};
use crate::api::Position;
use crate::error::Fault;
use crate::types::Revision;
use std::ops::Bound;

/// Checks every row, alone and against the others.
pub(super) fn verify(view: &View) -> Result<(), Fault> {
    let mut scrub = Scrub::new(view);
    while scrub.step(usize::MAX)? > 0 {}
    let state = view.reader();
    state.tables.meta::<Format>(state.txn)?;
    check_links(view)?;
    check_chains(&state)?;
    check_values(&state)
}

/// Checks the rows without content, which no checksum covers, against the rows that they point to and come from.
pub(super) fn check_links(view: &View) -> Result<(), Fault> {
    let state = view.reader();
    check_leases(&state)?;
    check_events(&state)
}

impl Reader<'_> {
    /// Shows every row of a table.
    pub(super) fn each(
        &self,
        table: Table,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        for row in self.tables.range(self.txn, table, Bound::Unbounded, Bound::Unbounded)? {
            let (key, row) = row?;
            visit(key, row)?;
        }
        Ok(())
    }
}

fn ensure(is_right: bool, fault: impl FnOnce() -> Fault) -> Result<(), Fault> {
    if is_right { Ok(()) } else { Err(fault()) }
}

/// Each key with a lease is among the keys of that lease, and the other way round.
fn check_leases(state: &Reader<'_>) -> Result<(), Fault> {
    state.each(Table::Latest, |key, row| {
        let Some(lease) = Image::open(key, row)?.lease else { return Ok(()) };
        let row_key = keys::attachment(lease, key);
        let attached = state.tables.raw(state.txn, Table::Attachments, &row_key)?;
        attached.ok_or_else(|| Table::Attachments.missing(&row_key))?;
        state.lease(lease)?.map(|_| ()).ok_or_else(|| Table::Leases.missing(&keys::lease(lease)))
    })?;
    state.each(Table::Attachments, |row_key, _| {
        let pair = keys::parse_attachment(row_key);
        let (lease, key) = pair.ok_or_else(|| Table::Attachments.corrupt(row_key))?;
        match state.image(key)? {
            Some(image) if image.lease == Some(lease) => Ok(()),
            _ => Err(Table::Attachments.corrupt(row_key)),
        }
    })
}

/// History has a row for each change from its first to the newest revision, and `kidx` has one for each of turn 0.
fn check_events(state: &Reader<'_>) -> Result<(), Fault> {
    let mut last: Option<Position> = None;
    let mut restored = None;
    let mut indexed = 0;
    state.each(Table::Events, |row_key, row| {
        let at = keys::parse_position(row_key).ok_or_else(|| Table::Events.corrupt(row_key))?;
        let change = Change::open(row_key, row)?;
        let follows = match last {
            // What was restored has no history before it.
            None if change.is_restore() => {
                restored = Some(at.revision);
                at.sub == 0 && at.revision <= state.compact_revision
            }
            Some(_) if change.is_restore() => false,
            // Physical compaction stops anywhere below the compacted revision, within a revision too.
            None => at.revision <= first_kept(state),
            Some(last) if at.revision == last.revision => {
                at.sub == last.sub + 1 && restored != Some(at.revision)
            }
            Some(last) => at == Position::start_of(last.revision.next()),
        };
        let is_indexed = change.turn != 0 || {
            indexed += 1;
            let history = keys::history(&change.key, at);
            state.tables.raw(state.txn, Table::History, &history)?.is_some()
        };
        last = Some(at);
        ensure(follows && is_indexed, || Table::Events.corrupt(row_key))
    })?;
    let newest = last.map_or(Revision::FIRST, |last| last.revision);
    let rows = state.tables.count(state.txn, Table::History)?;
    ensure(newest == state.revision && rows == indexed, || {
        Fault::damaged("history does not end where the state stands")
    })
}

/// The oldest revision whose changes must all be there.
fn first_kept(state: &Reader<'_>) -> Revision {
    state.compact_revision.max(Revision::FIRST.next())
}

/// What each change replaced is what the change before it made, and the last one made what is now. A chain has no end of
/// its own: of each change something else knows, once; but for those that only wait for physical compaction.
fn check_chains(state: &Reader<'_>) -> Result<(), Fault> {
    // The sums of all positions, and of those that somebody knows of.
    let (mut all, mut known) = (0u128, 0u128);
    let sum = |sum: &mut u128, at: Position| {
        if state.is_kept(at) {
            *sum = sum.wrapping_add(hash::digest(&keys::position(at)));
        }
    };
    let begin = first_there(state)?;
    let is_there = |at: Position| begin.is_some_and(|begin| at >= begin);
    state.each(Table::Events, |row_key, row| {
        let at = keys::parse_position(row_key).ok_or_else(|| Table::Events.corrupt(row_key))?;
        let change = Change::open(row_key, row)?;
        if change.is_restore() {
            return Ok(());
        }
        for image in change.prev.iter().chain(&change.new) {
            check_digest(state, &change.key, image)?;
        }
        sum(&mut all, at);
        let right = match change.before() {
            Some(before) if is_there(before) => {
                sum(&mut known, before);
                let before = state.tables.change(state.txn, &change.key, before)?;
                before.new == change.prev && change.turn == next_turn(before.turn)
            }
            _ => match &change.prev {
                Some(prev) => change.turn == next_turn(prev.turn),
                None => change.gone.is_some() || change.turn == FIRST_TURN,
            },
        };
        ensure(right, || Table::Events.corrupt(row_key))
    })?;
    state.each(Table::Latest, |key, row| {
        let image = Image::open(key, row)?;
        if !is_there(image.modified) {
            return Ok(());
        }
        sum(&mut known, image.modified);
        let change = state.tables.change(state.txn, key, image.modified)?;
        ensure(change.new == Some(image), || Table::Latest.corrupt(key))
    })?;
    state.each(Table::Gone, |key, row| {
        let gone = Gone::open(key, row)?;
        ensure(is_there(gone.at), || Table::Gone.corrupt(key))?;
        sum(&mut known, gone.at);
        let change = state.tables.change(state.txn, key, gone.at)?;
        ensure(change.new.is_none() && change.turn == gone.turn, || Table::Gone.corrupt(key))
    })?;
    ensure(all == known, || Fault::damaged("history has a change that no key leads to"))
}

/// The first change that is there, whether or not compaction still has to take it away.
fn first_there(state: &Reader<'_>) -> Result<Option<Position>, Fault> {
    let first = state.tables.seek(state.txn, Table::Events, &[0])?;
    let parse = |(key, _)| keys::parse_position(key).ok_or_else(|| Table::Events.corrupt(key));
    first.map(parse).transpose()
}

/// Each large value is the one of its key now, or what a change that is still there replaced. That those have theirs was
/// checked, and none is replaced twice.
fn check_values(state: &Reader<'_>) -> Result<(), Fault> {
    let mut needed = 0;
    let mut need = |image: Option<&Image>| {
        needed += u64::from(image.is_some_and(|it| matches!(it.value, Value::Large { .. })));
    };
    state.each(Table::Latest, |key, row| {
        need(Some(&Image::open(key, row)?));
        Ok(())
    })?;
    state.each(Table::Events, |row_key, row| {
        need(Change::open(row_key, row)?.prev.as_ref());
        Ok(())
    })?;
    let there = state.tables.count(state.txn, Table::Values)?;
    ensure(there == needed, || Fault::damaged("there are large values that nobody needs"))
}
