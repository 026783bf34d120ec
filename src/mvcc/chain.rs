//! The changes of one key, from the newest one back.
//!
//! ```text
//! latest[a] or gone[a] ──▶ 9.0 ──▶ 7.0 ──▶ 6.2 ──▶ … ──▶ 2.0          in the overlays first, then in `ev`
//!                                           ▲
//! kidx[a, …]               a change of turn 0, one of 64: to begin there saves the way from the newest one
//! ```
//!
//! Invariant: a chain ends where history does. What compaction has taken away, or still has to, is not in it.

use super::keys;
use super::overlay::{Found, Step};
use super::read::Reader;
use super::records::{Change, Gone, Image, Table};
use crate::api::Position;
use crate::error::Fault;
use crate::types::Revision;

/// A place in a chain.
#[derive(Clone, Copy, Debug)]
enum Link {
    Here(Found),
    Table(Position),
}

/// A change of a key, wherever it stands.
#[derive(Debug)]
pub(super) enum Linked<'a> {
    Here(&'a Step),
    Table(Position, Box<Change>),
}

impl Linked<'_> {
    pub(super) fn at(&self) -> Position {
        match self {
            Self::Here(step) => step.at,
            Self::Table(at, _) => *at,
        }
    }

    /// The state that it made, if it was a put.
    pub(super) fn made(&self) -> Option<&Image> {
        match self {
            Self::Here(step) => step.new.as_ref(),
            Self::Table(_, change) => change.new.as_ref(),
        }
    }

    /// The state that it replaced, if there was one.
    pub(super) fn prev(&self) -> Option<&Image> {
        match self {
            Self::Here(step) => step.prev.as_ref(),
            Self::Table(_, change) => change.prev.as_ref(),
        }
    }

    fn before(&self) -> Option<Position> {
        match self {
            Self::Here(step) => step.before(),
            Self::Table(_, change) => change.before(),
        }
    }
}

impl<'a> Reader<'a> {
    /// The first change of a key after a revision.
    pub(super) fn first_change_after(
        &self,
        key: &[u8],
        after: Revision,
    ) -> Result<Option<Linked<'a>>, Fault> {
        let from = Position::start_of(after.next());
        let Some(newest) = self.newest_in_tables(key)?.filter(|newest| *newest >= from) else {
            let found = self.front.oldest(key, from);
            return Ok(found.map(|found| Linked::Here(self.front.step(found))));
        };
        let mut first = None;
        let mut next = Some(Link::Table(self.nearest(key, from, newest)?));
        while let Some(link) = next {
            let linked = self.linked(key, link)?;
            if linked.at() < from {
                break;
            }
            next = self.link_before(key, link, &linked);
            first = Some(linked);
        }
        Ok(first)
    }

    /// Changes of a key from a position on and before another one, in their order: some of them, and all if there are
    /// none behind those.
    pub(super) fn changes_of_key(
        &self,
        key: &[u8],
        from: Position,
        to: Position,
    ) -> Result<Vec<Linked<'a>>, Fault> {
        let mut next = match self.newest_in_tables(key)?.filter(|newest| *newest >= from) {
            Some(newest) => Some(Link::Table(self.nearest(key, from, newest)?)),
            None => self.newest_here(key, to).map(Link::Here),
        };
        let mut found = Vec::new();
        while let Some(link) = next {
            let linked = self.linked(key, link)?;
            if linked.at() < from {
                break;
            }
            next = self.link_before(key, link, &linked);
            if linked.at() < to {
                found.push(linked);
            }
        }
        found.reverse();
        Ok(found)
    }

    /// The newest change of a key in the overlays, of those before a position.
    fn newest_here(&self, key: &[u8], to: Position) -> Option<Found> {
        match self.front.oldest(key, to) {
            Some(behind) => self.front.before(key, behind),
            None => self.front.newest(key),
        }
    }

    /// The newest change of a key that is not in the overlays.
    fn newest_in_tables(&self, key: &[u8]) -> Result<Option<Position>, Fault> {
        let newest = match self.front.oldest(key, Position::start_of(Revision::FIRST)) {
            Some(oldest) => self.front.step(oldest).before(),
            None => match self.tables.find::<Image>(self.txn, key)? {
                Some(image) => Some(image.modified),
                None => self.tables.find::<Gone>(self.txn, key)?.map(|gone| gone.at),
            },
        };
        Ok(newest.filter(|at| self.is_kept(*at)))
    }

    /// Of the changes of a key in the tables up to `newest`, one that is at or behind `from` with few before it that are so
    /// too.
    fn nearest(&self, key: &[u8], from: Position, newest: Position) -> Result<Position, Fault> {
        let bound = keys::history(key, from);
        let Some((row_key, _)) = self.tables.seek(self.txn, Table::History, &bound)? else {
            return Ok(newest);
        };
        let parsed = keys::parse_history(row_key);
        let (found, at) = parsed.ok_or_else(|| Table::History.corrupt(row_key))?;
        Ok(if found == key { at.min(newest) } else { newest })
    }

    fn linked(&self, key: &[u8], link: Link) -> Result<Linked<'a>, Fault> {
        Ok(match link {
            Link::Here(found) => Linked::Here(self.front.step(found)),
            Link::Table(at) => Linked::Table(at, Box::new(self.tables.change(self.txn, key, at)?)),
        })
    }

    fn link_before(&self, key: &[u8], link: Link, linked: &Linked<'_>) -> Option<Link> {
        if let Link::Here(found) = link
            && let Some(before) = self.front.before(key, found)
        {
            return Some(Link::Here(before));
        }
        linked.before().filter(|at| self.is_kept(*at)).map(Link::Table)
    }
}
