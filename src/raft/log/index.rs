//! Where on the disk each entry of the log stands. In memory, twelve bytes for each.

use super::block::BLOCK_BYTES;
use super::segment::Segment;
use crate::error::Fault;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// The segments that are there, and where in them the entries of the log are.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Oldest first, without a gap.
    segments: VecDeque<Held>,
    /// The index of the first entry that has a place, or would have.
    first: u64,
    places: VecDeque<Place>,
}

/// A segment, and what it is needed for.
#[derive(Debug)]
struct Held {
    segment: Arc<Segment>,
    /// Entries from here on never stood in it.
    end: u64,
    blocks: u32,
}

/// Where an entry stands: among the contents of the blocks of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) at: u32,
    pub(super) length: u32,
}

impl Place {
    pub(super) fn range(&self) -> Range<u32> {
        self.at..self.at.saturating_add(self.length)
    }
}

/// An entry that can be read, whatever becomes of the log meanwhile.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) index: u64,
    pub(super) segment: Arc<Segment>,
    pub(super) place: Place,
}

/// What was written, in the order in which it was.
#[derive(Debug)]
pub(super) enum Step {
    /// A new segment, the newest from here on.
    Segment(Arc<Segment>),
    Entry {
        index: u64,
        place: Place,
    },
    Truncate {
        from: u64,
    },
    Purge {
        upto: u64,
    },
    /// So many blocks of the newest segment are in use.
    Blocks(u32),
}

impl Index {
    /// The index of the entry that comes next.
    pub(super) fn next(&self) -> u64 {
        self.first + self.places.len() as u64
    }

    /// The index of the first entry that is there, if there is one.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Without entries, and with `next` as the index of the first one.
    pub(super) fn begin(&mut self, next: u64) {
        self.first = next;
        self.places.clear();
    }

    /// Takes note of what was written. An entry that is not the next one is not taken, and false is returned.
    pub(super) fn take(&mut self, step: Step) -> bool {
        match step {
            Step::Segment(segment) => {
                let end = self.next();
                self.segments.push_back(Held { segment, end, blocks: 0 });
            }
            Step::Entry { index, place } => {
                if index != self.next() {
                    return false;
                }
                self.places.push_back(place);
                if let Some(newest) = self.segments.back_mut() {
                    newest.end = newest.end.max(index + 1);
                }
            }
            Step::Truncate { from } => {
                self.places.truncate(
                    usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX),
                );
                self.first = self.first.min(from);
            }
            Step::Purge { upto } => {
                let gone = (upto + 1).saturating_sub(self.first).min(self.places.len() as u64);
                self.places.drain(..gone as usize);
                self.first = self.first.max(upto + 1);
            }
            Step::Blocks(blocks) => {
                if let Some(newest) = self.segments.back_mut() {
                    newest.blocks = blocks;
                }
            }
        }
        true
    }

    /// Lets go of the segments at the front that hold nothing any more.
    pub(super) fn release(&mut self) -> Vec<Arc<Segment>> {
        let mut released = Vec::new();
        while self.segments.len() > 1
            && self.segments.front().is_some_and(|oldest| oldest.end <= self.first)
        {
            released.extend(self.segments.pop_front().map(|oldest| oldest.segment));
        }
        released
    }

    /// Where the entries of a range stand: all, or from the first on as many as have `bytes_max` bytes, but one at least.
    pub(super) fn find(
        &self,
        start: u64,
        end: u64,
        bytes_max: usize,
    ) -> Result<Vec<Located>, Fault> {
        let mut bytes = 0usize;
        let mut found = Vec::new();
        for index in start..end {
            let lacks = || Fault::corrupt(format!("the log lacks entry {index}"));
            let position = index.checked_sub(self.first).and_then(|it| usize::try_from(it).ok());
            let place =
                position.and_then(|position| self.places.get(position)).ok_or_else(lacks)?;
            bytes = bytes.saturating_add(place.length as usize);
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            let segment = self.segment(place.segment).ok_or_else(lacks)?;
            found.push(Located { index, segment, place: *place });
        }
        Ok(found)
    }

    fn segment(&self, number: u32) -> Option<Arc<Segment>> {
        let oldest = self.segments.front()?.segment.number();
        let held = self.segments.get(number.checked_sub(oldest)? as usize)?;
        Some(Arc::clone(&held.segment))
    }

    /// What all segments take on the disk.
    pub(super) fn bytes(&self) -> u64 {
        let blocks = self.segments.iter().map(|held| u64::from(held.blocks));
        blocks.sum::<u64>() * BLOCK_BYTES as u64
    }
}
