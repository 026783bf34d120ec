//! One file of the log: a head, and the batches of blocks that were written to it one after another.
//!
//! ```text
//! file    head ++ blocks, numbered from 1
//! head    "QLOG" ++ format: u16 ++ segment: u32 ++ crc32c of these: u32, and zeros up to the first block
//! ```
//!
//! A batch is written when the one before it is on the disk, so that at most the last one can be torn. What stands behind
//! the last whole batch decides which it is:
//!
//! ```text
//! │ 1 │ 2 │ 2 │ 3 │ . │ . │      nothing more was written
//! │ 1 │ 2 │ 2 │ 3 │ . │ 4 │      the power went while batch 4 was written: nobody was told of it
//! │ 1 │ 2 │ 2 │ 3 │ . │ 5 │      batch 4 was on the disk once, for otherwise there would be no batch 5: damage
//! │ 1 │ 2 │ 2 │ 3 │ ? │ . │      no block that was ever written: damage
//! ```
//!
//! A file is made under another name, and gets its own when its head and its first batch are on the disk. It may be an
//! older segment that is not needed any more: to write over what is there takes a file system less than to make room.

use super::block::{self, BLOCK_BYTES, Block, ROOM};
use crate::error::Fault;
use crate::fault::{Point, point};
use crate::lmdb;
use bytes::Bytes;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 4] = b"QLOG";
/// What is in the blocks. The shape of the head never changes.
const FORMAT: u16 = 2;
const HEAD_BYTES: usize = 4 + 2 + 4 + 4;

/// The name of a file that is being made, or waits to be used again.
const DRAFT: &str = "draft";
const PREFIX: &str = "log-";

/// How much is read at once where much is wanted.
const WINDOW_BLOCKS: u32 = 512;

/// An open file of the log.
#[derive(Debug)]
pub(super) struct Segment {
    number: u32,
    path: PathBuf,
    file: File,
}

impl Segment {
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Makes a segment with its first batch, whole or not at all; of the draft that lies there, if there is one.
    pub(super) fn make(folder: &Path, number: u32, content: &[u8]) -> Result<Self, Fault> {
        let (draft, path) = (folder.join(DRAFT), folder.join(name(number)));
        let tried = |error| Fault::disk(format!("cannot make {}", path.display()), error);
        let mut bytes = head(number).to_vec();
        block::write(number, 1, 1, content, &mut bytes);
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(&draft);
        let file = file.map_err(tried)?;
        file.write_all_at(&bytes, 0).map_err(tried)?;
        point(Point::SegmentDrafted);
        file.sync_all().map_err(tried)?;
        fs::rename(&draft, &path).map_err(tried)?;
        point(Point::SegmentRenamed);
        lmdb::sync_folder(folder)?;
        Ok(Self { number, path, file })
    }

    /// Opens a segment, and makes sure of what is in it: whoever wrote it may have come to an end before it was synced, and
    /// from here on it counts as kept.
    pub(super) fn open(folder: &Path, number: u32) -> Result<Self, Fault> {
        let path = folder.join(name(number));
        let tried = |error| Fault::disk(format!("cannot open {}", path.display()), error);
        let file = File::options().read(true).write(true).open(&path).map_err(tried)?;
        file.sync_all().map_err(tried)?;
        Ok(Self { number, path, file })
    }

    /// Lets the file be used for a later segment, and returns when its name is gone for good: whoever starts must not find
    /// the later content under the old name.
    pub(super) fn recycle(&self, folder: &Path) -> Result<(), Fault> {
        let tried = |error| Fault::disk(format!("cannot rename {}", self.path.display()), error);
        fs::rename(&self.path, folder.join(DRAFT)).map_err(tried)?;
        point(Point::SegmentRecycled);
        lmdb::sync_folder(folder)
    }

    /// Removes the file. Whoever reads it may go on.
    pub(super) fn remove(&self) -> Result<(), Fault> {
        let tried = |error| Fault::disk(format!("cannot remove {}", self.path.display()), error);
        fs::remove_file(&self.path).map_err(tried)
    }

    /// Writes a batch, and so many blocks of zeros behind it. It is on the disk once it is [synced](Self::sync).
    pub(super) fn write(
        &self,
        batch: u32,
        number: u32,
        content: &[u8],
        zeros: u32,
    ) -> Result<(), Fault> {
        let mut bytes = Vec::new();
        block::write(self.number, batch, number, content, &mut bytes);
        bytes.resize(bytes.len() + zeros as usize * BLOCK_BYTES, 0);
        let begin = u64::from(number) * BLOCK_BYTES as u64;
        let tried = |error| Fault::disk(format!("cannot write {}", self.path.display()), error);
        self.file.write_all_at(&bytes, begin).map_err(tried)
    }

    /// Writes blocks as they are once more, and returns when they are on the disk.
    pub(super) fn rewrite(&self, blocks: Range<u32>) -> Result<(), Fault> {
        let mut bytes = vec![0; blocks.len() * BLOCK_BYTES];
        self.fill(&mut bytes, blocks.start)?;
        let begin = u64::from(blocks.start) * BLOCK_BYTES as u64;
        let tried = |error| Fault::disk(format!("cannot write {}", self.path.display()), error);
        self.file.write_all_at(&bytes, begin).map_err(tried)?;
        self.sync()
    }

    /// Returns when everything that was written is on the disk.
    pub(super) fn sync(&self) -> Result<(), Fault> {
        let tried = |error| Fault::disk(format!("cannot sync {}", self.path.display()), error);
        self.file.sync_data().map_err(tried)
    }

    /// The whole file.
    pub(super) fn bytes(&self) -> Result<Vec<u8>, Fault> {
        let tried = |error| Fault::disk(format!("cannot read {}", self.path.display()), error);
        fs::read(&self.path).map_err(tried)
    }

    /// How many blocks the file has, used or not.
    pub(super) fn blocks(&self) -> Result<u32, Fault> {
        let tried = |error| Fault::disk(format!("cannot read {}", self.path.display()), error);
        let bytes = self.file.metadata().map_err(tried)?.len();
        Ok(u32::try_from(bytes / BLOCK_BYTES as u64).unwrap_or(u32::MAX))
    }

    /// Reads whole blocks.
    fn fill(&self, bytes: &mut [u8], first: u32) -> Result<(), Fault> {
        let at = first as usize * BLOCK_BYTES;
        self.file.read_exact_at(bytes, at as u64).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                self.fault(&No::Wrong { block: first, what: "the file is too short" })
            }
            _ => Fault::disk(format!("cannot read {}", self.path.display()), error),
        })
    }

    /// What a finding in this file is for the member.
    pub(super) fn fault(&self, no: &No) -> Fault {
        let path = self.path.display();
        match no {
            No::Wrong { block, what } => {
                Fault::corrupt(format!("{path}: byte {}: {what}", *block as usize * BLOCK_BYTES))
            }
            No::Format(format) => Fault::format(format!(
                "{path}: the log has format {format}, and this version knows {FORMAT}"
            )),
        }
    }
}

/// Why a file is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum No {
    /// Something in it is not what was written.
    Wrong { block: u32, what: &'static str },
    /// Another version wrote it.
    Format(u16),
}

const CHANGED: &str = "a block has changed on the disk";

/// A part of a file that was read at once, for the one who reads many things in it.
#[derive(Debug, Default)]
pub(super) struct Window {
    segment: u32,
    /// The number of its first block.
    first: u32,
    bytes: Vec<u8>,
}

impl Window {
    /// What stands at `range` among the contents of a segment's blocks. If that is not at hand the file is read so far, and
    /// at best up to `ahead`.
    pub(super) fn read(
        &mut self,
        segment: &Segment,
        range: Range<u32>,
        ahead: impl FnOnce() -> u32,
    ) -> Result<Bytes, Fault> {
        let wanted = blocks(&range);
        let held = self.first..self.first + (self.bytes.len() / BLOCK_BYTES) as u32;
        if self.segment != segment.number || wanted.start < held.start || wanted.end > held.end {
            let end = blocks(&(range.start..ahead())).end.min(wanted.start + WINDOW_BLOCKS);
            let count = (end.max(wanted.end) - wanted.start) as usize;
            self.bytes.resize(count * BLOCK_BYTES, 0);
            segment.fill(&mut self.bytes, wanted.start)?;
            (self.segment, self.first) = (segment.number, wanted.start);
        }
        let begin = (wanted.start - self.first) as usize * BLOCK_BYTES;
        let bytes = &self.bytes[begin..begin + wanted.len() * BLOCK_BYTES];
        content(segment.number, wanted.start, bytes, &range).map_err(|no| segment.fault(&no))
    }
}

/// The numbers of the blocks in whose contents a range lies.
fn blocks(range: &Range<u32>) -> Range<u32> {
    let first = range.start / ROOM as u32;
    first..range.end.div_ceil(ROOM as u32).max(first + 1)
}

/// The part of the contents of blocks that was asked for.
fn content(segment: u32, first: u32, bytes: &[u8], range: &Range<u32>) -> Result<Bytes, No> {
    let mut content = Vec::with_capacity(range.len());
    let (start, end) = (range.start as usize, range.end as usize);
    for (number, block) in (first..).zip(bytes.as_chunks().0) {
        let begin = number as usize * ROOM;
        let piece = start.max(begin) - begin..end.min(begin + ROOM) - begin;
        let piece = match block::read(number, block) {
            Block::Written(it) if it.segment == segment => it.content.get(piece),
            _ => None,
        };
        content.extend_from_slice(piece.ok_or(No::Wrong { block: number, what: CHANGED })?);
    }
    Ok(content.into())
}

pub(super) fn head(number: u32) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..4].copy_from_slice(MAGIC);
    block[4..6].copy_from_slice(&FORMAT.to_be_bytes());
    block[6..10].copy_from_slice(&number.to_be_bytes());
    let sum = crc32c::crc32c(&block[..10]);
    block[10..HEAD_BYTES].copy_from_slice(&sum.to_be_bytes());
    block
}

/// A batch that was read whole.
pub(super) struct Batch {
    /// The number of its first block.
    pub(super) block: u32,
    pub(super) content: Bytes,
}

/// The batches of a file, one after another.
pub(super) struct Batches<'a> {
    segment: u32,
    blocks: &'a [[u8; BLOCK_BYTES]],
    /// Whether the file ends within a block.
    is_cut: bool,
    /// Where the next batch begins, and its number.
    pub(super) block: u32,
    pub(super) batch: u32,
}

impl<'a> Batches<'a> {
    pub(super) fn new(segment: u32, bytes: &'a [u8]) -> Result<Self, No> {
        let wrong = |what| No::Wrong { block: 0, what };
        let (blocks, rest) = bytes.as_chunks();
        let first = blocks.first().ok_or(wrong("the file is too short"))?;
        let sum = crc32c::crc32c(&first[..10]).to_be_bytes();
        if !first.starts_with(MAGIC) || first[10..HEAD_BYTES] != sum {
            return Err(wrong("no head of a file of the log"));
        }
        let format = u16::from_be_bytes([first[4], first[5]]);
        if format != FORMAT {
            return Err(No::Format(format));
        }
        if *first != head(segment) {
            return Err(wrong("the head of another file of the log"));
        }
        Ok(Self { segment, blocks, is_cut: !rest.is_empty(), block: 1, batch: 1 })
    }

    /// The next batch, if all of it is there.
    pub(super) fn next(&mut self) -> Option<Batch> {
        let begin = self.block;
        let mut content = Vec::new();
        for (number, block) in (begin..).zip(self.blocks.get(begin as usize..)?) {
            let Block::Written(written) = block::read(number, block) else { break };
            let is_next = written.segment == self.segment
                && written.batch == self.batch
                && written.is_first == (number == begin);
            if !is_next {
                break;
            }
            content.extend_from_slice(written.content);
            if written.is_last {
                self.block = number + 1;
                self.batch += 1;
                return Some(Batch { block: begin, content: content.into() });
            }
        }
        None
    }

    /// Looks at what is behind the last batch, and returns whether another one was begun there.
    pub(super) fn end(&self) -> Result<bool, No> {
        let mut is_torn = false;
        for (number, block) in (0..).zip(self.blocks).skip(self.block as usize) {
            match block::read(number, block) {
                Block::Written(it) if it.segment == self.segment && it.batch == self.batch => {
                    is_torn = true;
                }
                Block::Written(it) if it.segment == self.segment => {
                    return Err(No::Wrong { block: self.block, what: "what was written is gone" });
                }
                Block::Written(_) | Block::Unwritten => {}
                Block::Damaged => return Err(No::Wrong { block: number, what: CHANGED }),
            }
        }
        if self.is_cut {
            let block = self.blocks.len() as u32;
            return Err(No::Wrong { block, what: "the file ends within a block" });
        }
        Ok(is_torn)
    }
}

pub(super) fn name(number: u32) -> String {
    format!("{PREFIX}{number:08}")
}

/// The numbers of the segments in a folder, in order. A draft that nobody finished is removed.
pub(super) fn find(folder: &Path) -> Result<Vec<u32>, Fault> {
    let tried = |error| Fault::disk(format!("cannot read {}", folder.display()), error);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder).map_err(tried)? {
        let entry = entry.map_err(tried)?;
        let text = entry.file_name();
        let text = text.to_string_lossy();
        if text == DRAFT {
            fs::remove_file(entry.path()).map_err(tried)?;
        }
        let number = text.strip_prefix(PREFIX).and_then(|number| number.parse().ok());
        numbers.extend(number.filter(|number| name(*number) == text));
    }
    numbers.sort_unstable();
    Ok(numbers)
}
