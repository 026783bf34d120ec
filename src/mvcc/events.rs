//! One step of a watch: the events from a cursor on.
//!
//! History is a table in revision order, so a watch is no more than a place in it. The node keeps nothing between two
//! steps: it reads on from the cursor, and says where the cursor stands afterwards, even when nothing matched.
//!
//! ```text
//! ev      2.0  3.0  4.0  4.1  4.2  5.0  6.0
//!                   ▲ cursor                       step: changes of 4 and 5, next = 6.0
//!                   4.0  4.1  │ 4.2                revision 4 alone is too large: changes of 4 (4.0, 4.1),
//!                             ▲ next               fragment, next = 4.2
//! ```
//!
//! A step ends at the revision it was told to end at, or earlier, when it has gathered enough bytes or looked at enough
//! rows: then there is `more`. It ends between two revisions if it can, because a transaction must never be seen half.
//! Only a revision that is too large for a step of its own is cut, into fragments.
//!
//! Invariants
//! - `next` never goes back, and nothing below it is ever sent again;
//! - `fragment` ⇔ `next.sub > 0`: the last of the changes is of `next.revision` and goes on in the next step. A step that
//!   begins inside of a revision always has an entry for it, perhaps without events, so that whoever joins the fragments
//!   learns how they end. (Only a step that cannot move, for its revision has not happened here yet, has none);
//! - history has no holes: a missing row is a fault, not a lost event.

use super::keys;
use super::read::Reader;
use super::records::{self, Change, Record, Table};
use super::{Stop, records::Image};
use crate::api::{Cursor, Position};
use crate::error::{Fault, Reason};
use crate::types::{Changes, Event, KeyValue, Revision};
use bytes::Bytes;
use std::ops::Bound;

/// How many rows a step looks at. A watch of a quiet key in a busy group passes so many without finding anything.
const ROWS_MAX: usize = 4096;
/// What each event costs beside its keys and values.
const EVENT_BYTES: usize = 128;

/// What a step of a watch found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Events {
    /// Oldest first. Each revision once, and whole, but for fragments.
    pub(crate) changes: Vec<Changes>,
    /// Where the cursor stands now.
    pub(crate) next: Position,
    /// Whether the last of the changes goes on at `next`.
    pub(crate) fragment: bool,
    /// Whether the step ended before the revision that it was asked to reach.
    pub(crate) more: bool,
}

impl<'txn> Reader<'txn> {
    pub(super) fn events(
        &self,
        cursor: &Cursor,
        upto: Revision,
        bytes_max: usize,
    ) -> Result<Events, Stop> {
        if cursor.next.revision < self.compact_revision {
            return Err(Reason::Compacted { at: self.compact_revision }.into());
        }
        let upto = upto.min(self.revision);
        if cursor.next.revision > upto {
            let fragment = cursor.next.sub > 0;
            let next = cursor.next;
            return Ok(Events { changes: Vec::new(), next, fragment, more: false });
        }
        let gathering = Gathering::new(self, cursor, bytes_max);
        Ok(match cursor.range.as_key() {
            Some(key) => self.events_of_key(key, upto, gathering)?,
            None => self.events_of_range(upto, gathering)?,
        })
    }

    /// Reads the chain of one key: a quiet key in a busy group costs nothing to watch.
    fn events_of_key(
        &self,
        key: &Bytes,
        upto: Revision,
        mut gathering: Gathering<'_>,
    ) -> Result<Events, Fault> {
        let mut from = gathering.cursor.next;
        let to = Position::start_of(upto.next());
        loop {
            let changes = self.changes_of_key(key, from, to)?;
            let Some(last) = changes.last() else { return Ok(gathering.finish(upto)) };
            let behind = Position { sub: last.at().sub.saturating_add(1), ..last.at() };
            for change in changes {
                let at = change.at();
                if !gathering.admits(at) || !gathering.add(at, key, change.made(), change.prev())? {
                    return Ok(gathering.stop_before(at));
                }
            }
            from = behind;
        }
    }

    /// Reads all of history, and keeps what lies in the range: from the tables up to where the overlays go on.
    fn events_of_range(
        &self,
        upto: Revision,
        mut gathering: Gathering<'_>,
    ) -> Result<Events, Fault> {
        let from = gathering.cursor.next;
        let end = Position::start_of(upto.next());
        let here = self.front.first();
        let mut last = None;
        let rows_end = keys::position(here.map_or(end, |here| here.min(end)));
        let rows_from = keys::position(from);
        let bounds = (Bound::Included(&rows_from[..]), Bound::Excluded(&rows_end[..]));
        let rows = match rows_from < rows_end {
            true => Some(self.tables.range(self.txn, Table::Events, bounds.0, bounds.1)?),
            false => None,
        };
        for row in rows.into_iter().flatten() {
            let (row_key, row) = row?;
            let at = keys::parse_position(row_key).filter(|at| gathering.follows(last, *at));
            let at = at.ok_or_else(|| Table::Events.corrupt(row_key))?;
            last = Some(at);
            if !gathering.admits(at) {
                return Ok(gathering.stop_before(at));
            }
            let content = records::content(Table::Events, row_key, row)?;
            let (key, is_put) =
                Change::peek(content).ok_or_else(|| Table::Events.corrupt(row_key))?;
            if key.is_empty() || !gathering.wants(key, is_put) {
                continue;
            }
            let Change { key, new, prev, .. } = Change::of_content(row_key, content)?;
            if !gathering.add(at, &key, new.as_ref(), prev.as_ref())? {
                return Ok(gathering.stop_before(at));
            }
        }
        for (key, made) in self.front.history(from).take_while(|(_, made)| made.at < end) {
            let at = made.at;
            if !gathering.follows(last, at) {
                return Err(Table::Events.missing(&keys::position(at)));
            }
            last = Some(at);
            if !gathering.admits(at)
                || !gathering.add(at, key, made.new.as_ref(), made.prev.as_ref())?
            {
                return Ok(gathering.stop_before(at));
            }
        }
        if !gathering.reached(last, upto) {
            return Err(Table::Events.missing(&keys::position(Position::start_of(upto))));
        }
        Ok(gathering.finish(upto))
    }
}

/// The events of a step so far.
struct Gathering<'step> {
    reader: &'step Reader<'step>,
    cursor: &'step Cursor,
    bytes_max: usize,
    rows: usize,
    bytes: usize,
    /// Whole revisions.
    whole: Vec<Changes>,
    /// The revision whose rows are being looked at.
    open: Changes,
}

impl<'step> Gathering<'step> {
    fn new(reader: &'step Reader<'step>, cursor: &'step Cursor, bytes_max: usize) -> Self {
        let open = Changes { revision: cursor.next.revision, events: Vec::new() };
        Self { reader, cursor, bytes_max, rows: 0, bytes: 0, whole: Vec::new(), open }
    }

    /// Whether a row is the one that must come after `last` if no row was lost.
    fn follows(&self, last: Option<Position>, at: Position) -> bool {
        let start = self.cursor.next;
        match last {
            Some(last) if at.revision == last.revision => Some(at.sub) == last.sub.checked_add(1),
            Some(last) => at == Position::start_of(last.revision.next()),
            None if start < first_change() => at == first_change(),
            // A cursor may stand behind the last change of its revision.
            None => {
                at == start || (start.sub > 0 && at == Position::start_of(start.revision.next()))
            }
        }
    }

    /// Whether `last` is of the revision that a scan up to `upto` must end with if no row was lost.
    fn reached(&self, last: Option<Position>, upto: Revision) -> bool {
        let start = self.cursor.next;
        match last {
            Some(last) => last.revision == upto,
            None => upto == Revision::FIRST || (start.sub > 0 && start.revision == upto),
        }
    }

    /// Counts a row; false if it is one too many for this step.
    fn admits(&mut self, at: Position) -> bool {
        if at.revision != self.open.revision {
            self.close();
            self.open.revision = at.revision;
        }
        self.rows += 1;
        self.rows <= ROWS_MAX
    }

    /// Whether the watch asked for such an event.
    fn wants(&self, key: &[u8], is_put: bool) -> bool {
        let kind = if is_put { self.cursor.puts } else { self.cursor.deletes };
        kind && self.cursor.range.contains(key)
    }

    /// Adds an event if the watch asked for it; false if there is no room for it in this step.
    fn add(
        &mut self,
        at: Position,
        key: &Bytes,
        new: Option<&Image>,
        prev: Option<&Image>,
    ) -> Result<bool, Fault> {
        if !self.wants(key, new.is_some()) {
            return Ok(true);
        }
        let prev = prev.filter(|_| self.cursor.prev);
        let value_bytes = |image: Option<&Image>| image.map_or(0, |image| image.value.len());
        let bytes = EVENT_BYTES + key.len() + value_bytes(new) + value_bytes(prev);
        if self.bytes > 0 && self.bytes + bytes > self.bytes_max {
            return Ok(false);
        }
        self.bytes += bytes;
        let prev = prev.map(|image| self.key_value(key, image)).transpose()?;
        self.open.events.push(match new {
            Some(image) => Event::Put { kv: self.key_value(key, image)?, prev },
            None => Event::Delete { key: key.clone(), revision: at.revision, prev },
        });
        Ok(true)
    }

    fn key_value(&self, key: &Bytes, image: &Image) -> Result<KeyValue, Fault> {
        self.reader.key_value(key.clone(), image)
    }

    /// Whether the open revision began before this step did.
    fn is_resumed(&self) -> bool {
        self.cursor.next.sub > 0 && self.open.revision == self.cursor.next.revision
    }

    /// Ends the open revision, of which no row is left.
    fn close(&mut self) {
        let events = std::mem::take(&mut self.open.events);
        if !events.is_empty() || self.is_resumed() {
            self.whole.push(Changes { revision: self.open.revision, events });
        }
    }

    /// Ends the step with everything looked at.
    fn finish(mut self, upto: Revision) -> Events {
        self.close();
        let next = Position::start_of(upto.next());
        Events { changes: self.whole, next, fragment: false, more: false }
    }

    /// Ends the step before a row of the open revision.
    fn stop_before(mut self, at: Position) -> Events {
        let began = self.cursor.next;
        let fragment = at.revision == began.revision && at > began;
        let next = if fragment { at } else { Position::start_of(at.revision).max(began) };
        if fragment {
            self.whole.push(self.open);
        }
        Events { changes: self.whole, next, fragment, more: true }
    }
}

/// Where history begins: the first write makes the revision after that of the empty group.
fn first_change() -> Position {
    Position::start_of(Revision::FIRST.next())
}
