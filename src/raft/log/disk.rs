//! The log's files: what is read of them at the start, and how they are written from then on.
//!
//! ```text
//! log-00000003   begin: entry 20 comes next ++ vote, identity, … ++ 20 21 22 ++ truncate 22 ++ 22 23 …
//! log-00000004   begin: entry 40 comes next, 812 blocks of the file before count ++ vote, identity, … ++ 40 41 …
//! ```
//!
//! What is said once in a while, a vote, who this member is, stands among the entries, in the order in which it was said,
//! and again at the beginning of each file. So files that hold purged entries only can go, from the front.
//!
//! Invariants
//! - a batch is on the disk before the next one is written, and before anybody hears of it;
//! - if the end of the newest file is torn a new file is begun, which says how much of the one before it counts: nothing is
//!   ever written over a batch that was begun;
//! - whatever is believed was in a whole batch of blocks, each with a checksum; whatever else is found is refused, with its
//!   place.

use super::super::{Entry, LogId};
use super::block::{self, BLOCK_BYTES, ROOM};
use super::index::{Index, Located, Place, Step};
use super::record::{self, Meta, Record};
use super::segment::{self, Batch, Batches, No, Segment, Window};
use crate::codec::layout::Layout;
use crate::error::Fault;
use crate::fault::{Bug, Point, bug, point};
use crate::lmdb;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The blocks by which a new file grows at a time, so that most writes need no more room: 256 KiB.
const ROOM_BLOCKS: u32 = 512;
/// How many entries may be read at once.
const AHEAD_MAX: usize = 4096;
/// The fewest blocks of a file, so that it holds more than its beginning.
const SEGMENT_BLOCKS_MIN: u64 = 16;

/// The values that are to be known beside the entries.
pub(super) type Values = BTreeMap<Meta, Bytes>;

/// The files, for the one who writes them.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    /// A file is full when it has so many blocks.
    segment_blocks: u32,
    newest: Newest,
    values: Values,
    /// The index of the entry that comes next.
    next: u64,
    /// Whether a file waits to be used again.
    has_spare: bool,
}

/// The file that is written to.
#[derive(Debug)]
struct Newest {
    segment: Arc<Segment>,
    /// Where the next batch goes, and its number.
    block: u32,
    batch: u32,
    /// The blocks that the file has, used or not.
    room: u32,
}

/// What was found at the start.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) index: Index,
    pub(super) last: Option<LogId>,
    pub(super) values: Values,
}

impl Found {
    /// A value that was written, if there is one.
    pub(super) fn value<T: Layout>(&self, name: Meta) -> Result<Option<T>, Fault> {
        value(&self.values, name)
    }
}

/// What is to be written at once.
#[derive(Debug, Default)]
pub(super) struct Writing {
    content: Vec<u8>,
    steps: Vec<Step>,
    values: Values,
}

impl Writing {
    pub(super) fn entry(&mut self, entry: &Entry) {
        let (at, length) = record::write_entry(entry, &mut self.content);
        // Where the batch begins is known when it is written.
        let place = Place { segment: 0, at: at as u32, length: length as u32 };
        self.steps.push(Step::Entry { index: entry.log_id.index, place });
    }

    pub(super) fn truncate(&mut self, from: u64) {
        record::write_truncate(from, &mut self.content);
        self.steps.push(Step::Truncate { from });
    }

    pub(super) fn purge(&mut self, upto: &LogId) {
        self.value(Meta::Purged, upto.to_bytes());
        self.steps.push(Step::Purge { upto: upto.index });
    }

    pub(super) fn value(&mut self, name: Meta, value: Bytes) {
        record::write_value(name, &value, &mut self.content);
        self.values.insert(name, value);
    }

    pub(super) fn values(&self) -> &Values {
        &self.values
    }

    /// How many bytes it has.
    pub(super) fn bytes(&self) -> usize {
        self.content.len()
    }
}

impl Disk {
    /// Opens the log in a folder, or makes an empty one. A file is full when it has `segment_bytes`.
    pub(super) fn open(folder: &Path, segment_bytes: u64) -> Result<(Self, Found), Fault> {
        lmdb::make_folder(folder)?;
        let numbers = segment::find(folder)?;
        check_names(folder, &numbers)?;
        lmdb::sync_names_found(folder)?;
        let Replay { mut index, values, end } = Replay::of(folder, &numbers)?;
        let last = last_entry(&index, &values)?;
        let next = index.next();
        if let Some(End { newest, last, .. }) = &end
            && !bug(Bug::TailNotRewritten)
        {
            // The sync of the one who wrote it may have failed. Then it is in memory only, where a sync that is repeated
            // does not look.
            newest.segment.rewrite(*last..newest.block)?;
        }
        let newest = match end {
            Some(End { newest, is_torn: false, .. }) => newest,
            end => {
                let newest = begin(folder, end.as_ref().map(|end| &end.newest), next, &values)?;
                index.take(Step::Segment(Arc::clone(&newest.segment)));
                newest
            }
        };
        index.take(Step::Blocks(newest.block));
        let blocks = (segment_bytes / BLOCK_BYTES as u64).max(SEGMENT_BLOCKS_MIN);
        let segment_blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let folder = folder.to_owned();
        let mut disk = Self { folder, segment_blocks, newest, values, next, has_spare: false };
        disk.remove(index.release())?;
        let values = disk.values.clone();
        Ok((disk, Found { index, last, values }))
    }

    /// Writes a batch and returns when it is on the disk: then its steps are to be taken.
    pub(super) fn write(&mut self, writing: Writing) -> Result<Vec<Step>, Fault> {
        #[cfg(test)]
        super::tests::seam::before_write(&self.folder)?;
        let Writing { content, steps: relative, values } = writing;
        let mut steps = Vec::with_capacity(relative.len() + 2);
        let blocks = block::count(content.len()) as u32;
        if self.newest.block + blocks > self.segment_blocks && self.newest.batch > 2 {
            self.newest = begin(&self.folder, Some(&self.newest), self.next, &self.values)?;
            self.has_spare = false;
            steps.push(Step::Segment(Arc::clone(&self.newest.segment)));
        }
        let Newest { segment, block, batch, room } = &mut self.newest;
        let end = *block + blocks;
        let zeros = if end <= *room {
            0
        } else {
            *room = end.next_multiple_of(ROOM_BLOCKS.min(self.segment_blocks));
            *room - end
        };
        segment.write(*batch, *block, &content, zeros)?;
        point(Point::LogBeforeSync);
        segment.sync()?;
        let begin = *block * ROOM as u32;
        steps.extend(relative.into_iter().map(|step| match step {
            Step::Entry { index, place } => {
                let place = Place { segment: segment.number(), at: begin + place.at, ..place };
                Step::Entry { index, place }
            }
            step => step,
        }));
        *block += blocks;
        *batch += 1;
        steps.push(Step::Blocks(*block));
        self.values.extend(values);
        for step in &steps {
            self.next = match step {
                Step::Entry { index, .. } => index + 1,
                Step::Truncate { from } => self.next.min(*from),
                Step::Purge { upto } => self.next.max(upto + 1),
                Step::Segment(_) | Step::Blocks(_) => self.next,
            };
        }
        Ok(steps)
    }

    /// Removes the files of segments that hold nothing any more. One is kept to be used again, unless somebody reads it.
    pub(super) fn remove(&mut self, released: Vec<Arc<Segment>>) -> Result<(), Fault> {
        for segment in released {
            // Nobody can begin to read it any more.
            if self.has_spare || Arc::strong_count(&segment) > 1 {
                segment.remove()?;
                // One after the other, so that no gap is ever left.
                lmdb::sync_folder(&self.folder)?;
            } else {
                segment.recycle(&self.folder)?;
                self.has_spare = true;
            }
        }
        Ok(())
    }
}

/// Begins the file after `before`.
fn begin(
    folder: &Path,
    before: Option<&Newest>,
    next: u64,
    values: &Values,
) -> Result<Newest, Fault> {
    let (number, blocks) = before.map_or((0, 0), |it| (it.segment.number(), it.block));
    let mut content = Vec::new();
    record::write_begin(next, blocks, &mut content);
    values.iter().for_each(|(name, value)| record::write_value(*name, value, &mut content));
    let number = number.checked_add(1).ok_or_else(|| {
        Fault::corrupt(format!("{}: a file of the log has the largest number", folder.display()))
    })?;
    let segment = Arc::new(Segment::make(folder, number, &content)?);
    let room = segment.blocks()?;
    Ok(Newest { segment, block: 1 + block::count(content.len()) as u32, batch: 2, room })
}

/// Files are numbered without a gap. Those of a version before segments are refused.
fn check_names(folder: &Path, numbers: &[u32]) -> Result<(), Fault> {
    if folder.join("data.mdb").exists() {
        let folder = folder.display();
        return Err(Fault::format(format!(
            "{folder} has a log of format 1, and this version knows 2"
        )));
    }
    let gap = numbers.windows(2).find(|pair| pair[0].checked_add(1) != Some(pair[1]));
    gap.map_or(Ok(()), |pair| {
        let folder = folder.display();
        Err(Fault::corrupt(format!(
            "{folder}: a file of the log after number {} is missing",
            pair[0]
        )))
    })
}

/// What the files say, in their order.
#[derive(Default)]
struct Replay {
    index: Index,
    values: Values,
    end: Option<End>,
}

/// Where the newest file ends.
struct End {
    newest: Newest,
    /// Where its last batch begins.
    last: u32,
    /// Whether something was begun there that is not whole.
    is_torn: bool,
}

impl Replay {
    fn of(folder: &Path, numbers: &[u32]) -> Result<Self, Fault> {
        let mut replay = Self::default();
        for number in numbers {
            replay.segment(&Arc::new(Segment::open(folder, *number)?))?;
        }
        Ok(replay)
    }

    fn segment(&mut self, segment: &Arc<Segment>) -> Result<(), Fault> {
        let bytes = segment.bytes()?;
        let found = self.batches(segment, &bytes).map_err(|no| segment.fault(&no))?;
        self.end = Some(found);
        Ok(())
    }

    fn batches(&mut self, segment: &Arc<Segment>, bytes: &[u8]) -> Result<End, No> {
        let mut batches = Batches::new(segment.number(), bytes)?;
        let wrong = |block, what| No::Wrong { block, what };
        let Some(first) = batches.next() else {
            batches.end()?;
            return Err(wrong(1, "the beginning is gone"));
        };
        let mut at = self.begin(&first.content).map_err(|what| wrong(1, what))?;
        self.index.take(Step::Segment(Arc::clone(segment)));
        let mut batch = Some(first);
        let mut last = 1;
        while let Some(Batch { block, content }) = batch {
            let read = self.records(segment.number(), block, &content, at);
            read.map_err(|what| wrong(block, what))?;
            last = block;
            (batch, at) = (batches.next(), 0);
        }
        let is_torn = batches.end()?;
        self.index.take(Step::Blocks(batches.block));
        let (segment, room) = (Arc::clone(segment), (bytes.len() / BLOCK_BYTES) as u32);
        let newest = Newest { segment, block: batches.block, batch: batches.batch, room };
        Ok(End { newest, last, is_torn })
    }

    /// Reads how a segment begins, which has to fit how the one before it ends. Returns where its other records begin.
    fn begin(&mut self, content: &Bytes) -> Result<usize, &'static str> {
        let Ok((Record::Begin { next, blocks }, at)) = record::read(content, 0) else {
            return Err("no beginning of a file of the log");
        };
        match &self.end {
            None => self.index.begin(next),
            Some(before) if before.newest.block != blocks => {
                return Err("the file before this one has not as many blocks as it had");
            }
            Some(_) if self.index.next() != next => {
                return Err("the file before this one does not end where it did");
            }
            Some(_) => {}
        }
        Ok(at)
    }

    fn records(
        &mut self,
        segment: u32,
        block: u32,
        content: &Bytes,
        mut at: usize,
    ) -> Result<(), &'static str> {
        let begin = block as usize * ROOM;
        while at < content.len() {
            let (record, next) = record::read(content, at).map_err(|_| "no record of a log")?;
            let is_taken = match record {
                Record::Entry { index, at, length } => {
                    let place = place(segment, begin + at, length).ok_or("too far behind")?;
                    self.index.take(Step::Entry { index, place })
                }
                Record::Truncate { from } => self.index.take(Step::Truncate { from }),
                Record::Value { name, value } => {
                    if name == Meta::Purged {
                        let purged = LogId::from_bytes(value.clone()).map_err(|_| "no log id")?;
                        self.index.take(Step::Purge { upto: purged.index });
                    }
                    self.values.insert(name, value);
                    true
                }
                Record::Begin { .. } => false,
            };
            if !is_taken {
                return Err("a record in the wrong place");
            }
            at = next;
        }
        Ok(())
    }
}

fn place(segment: u32, at: usize, length: usize) -> Option<Place> {
    Some(Place { segment, at: u32::try_from(at).ok()?, length: u32::try_from(length).ok()? })
}

fn value<T: Layout>(values: &Values, name: Meta) -> Result<Option<T>, Fault> {
    let unreadable = |_| Fault::format(format!("this version cannot read the log's {name:?}"));
    values.get(&name).map(|value| T::from_bytes(value.clone())).transpose().map_err(unreadable)
}

/// The id of the last entry, or of the last one that was purged. The entries begin behind that.
fn last_entry(index: &Index, values: &Values) -> Result<Option<LogId>, Fault> {
    let purged: Option<LogId> = value(values, Meta::Purged)?;
    let first = purged.map_or(0, |id| id.index + 1);
    if index.first() > first {
        return Err(Fault::corrupt(format!("the log lacks entry {first}")));
    }
    let mut last = purged;
    let end = index.next();
    read(&index.find(index.first().max(end.saturating_sub(1)), end, usize::MAX)?, |entry| {
        last = Some(entry.log_id);
        true
    })?;
    Ok(last)
}

/// Reads entries where they stand, until `take` has enough.
pub(super) fn read(found: &[Located], mut take: impl FnMut(Entry) -> bool) -> Result<(), Fault> {
    let mut window = Window::default();
    for (position, Located { index, segment, place }) in found.iter().enumerate() {
        let ahead = || {
            let is_near = |next: &&Located| next.place.segment == place.segment;
            let last = found[position..].iter().take(AHEAD_MAX).take_while(is_near).last();
            last.map_or(0, |last| last.place.range().end)
        };
        let bytes = window.read(segment, place.range(), ahead)?;
        let unreadable = |_| Fault::format(format!("this version cannot read log entry {index}"));
        let entry = Entry::from_bytes(bytes).map_err(unreadable)?;
        if entry.log_id.index != *index {
            let other = entry.log_id.index;
            return Err(Fault::corrupt(format!("log entry {index} is entry {other}")));
        }
        if !take(entry) {
            break;
        }
    }
    Ok(())
}
