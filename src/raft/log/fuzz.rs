//! What the log reads from its disk, for [`mod@crate::fuzz`].
//!
//! The inputs of the targets:
//!
//! ```text
//! log_record   what a batch holds
//! log          pieces, each: what: u8 ++ length: u16 ++ bytes
//!              0 a batch, in right blocks       1 the next file begins, whatever the bytes
//!              2 a byte of the file so far changes: at: u16 ++ with: u8
//! ```

use super::super::identity::{Founding, Joined};
use super::super::{Entry, LogId, Vote};
use super::block;
use super::disk::{self, Disk, Found, Writing};
use super::record::{self, Meta, Record};
use super::segment;
use crate::codec;
use crate::codec::layout::{Input, Layout, Malformed};
use crate::mvcc::LogPosition;
use crate::raft::EntryPayload;
use crate::raft::format::log_id;
use bytes::Bytes;
use std::fs;
use std::path::Path;

/// The size of the files. Small ones are begun more often.
const SEGMENT_BYTES: u64 = 16 << 10;
/// Pieces of one log; more say nothing new.
const PIECES_MAX: usize = 64;

/// What a batch holds.
pub(crate) fn record(input: &[u8]) {
    let (content, mut at) = (Bytes::copy_from_slice(input), 0);
    while at < content.len() {
        let Ok((record, next)) = record::read(&content, at) else { return };
        assert!(next > at, "a record takes some bytes");
        let mut again = Vec::new();
        match record {
            Record::Entry { at, length, index } => {
                let Ok(entry) = Entry::from_bytes(content.slice(at..at + length)) else { return };
                assert_eq!(entry.log_id.index, index);
                record::write_entry(&entry, &mut again);
                let (record, _) = record::read(&again.into(), 0).expect("it was just written");
                assert!(matches!(record, Record::Entry { index: same, .. } if same == index));
                return;
            }
            Record::Truncate { from } => record::write_truncate(from, &mut again),
            Record::Value { name, value } => {
                record::write_value(name, &value, &mut again);
                read_value(name, value);
            }
            Record::Begin { next, blocks } => record::write_begin(next, blocks, &mut again),
        }
        assert_eq!(again, content[at..next], "a record is written in one way");
        at = next;
    }
}

fn read_value(name: Meta, value: Bytes) {
    match name {
        Meta::Vote => drop(Vote::from_bytes(value)),
        Meta::Committed | Meta::Purged => drop(LogId::from_bytes(value)),
        Meta::Identity => drop(codec::decode::<u64>(&value)),
        Meta::Founding => drop(codec::decode::<Founding>(&value)),
        Meta::Joined => drop(codec::decode::<Joined>(&value)),
    }
}

/// A whole log: what a member does when it starts, what it then reads for others, and that it goes on.
pub(crate) fn log(folder: &Path, input: &[u8]) {
    let folder = folder.join("log");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("there is room for a folder");
    let Ok(files) = files(input) else { return };
    for (number, bytes) in (1..).zip(files) {
        let file = folder.join(segment::name(number));
        fs::write(file, bytes).expect("there is room for a few blocks");
    }
    let Ok((mut disk, found)) = Disk::open(&folder, SEGMENT_BYTES) else { return };
    let Ok(next) = read(&found) else { return };
    let mut writing = Writing::default();
    let id = log_id(LogPosition { term: 1, node: 1, index: next });
    writing.entry(&Entry { log_id: id, payload: EntryPayload::Blank });
    disk.write(writing).expect("there is room for an entry");
    let (_, found) =
        Disk::open(&folder, SEGMENT_BYTES).expect("what was taken once is taken again");
    assert_eq!(found.last, Some(id));
    assert_eq!(read(&found).ok(), Some(next + 1));
}

/// Reads all entries, and returns the index of the one that comes next.
fn read(found: &Found) -> Result<u64, crate::error::Fault> {
    let (first, end) = (found.index.first(), found.index.next());
    let mut next = first;
    disk::read(&found.index.find(first, end, usize::MAX)?, |entry| {
        assert_eq!(entry.log_id.index, next);
        next += 1;
        true
    })?;
    assert_eq!(next, end, "a log that was opened has no hole");
    Ok(next)
}

/// The files that an input stands for.
fn files(input: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let input = &mut Input::new(Bytes::copy_from_slice(input));
    let (mut files, mut batch) = (vec![segment::head(1).to_vec()], 1);
    for _ in 0..PIECES_MAX {
        if input.remaining() == 0 {
            break;
        }
        let (what, length) = (u8::read(input)?, u16::read(input)?);
        let mut bytes = Input::new(input.take(usize::from(length))?);
        let number = files.len() as u32;
        let file = files.last_mut().expect("there is one file at least");
        match what {
            0 => {
                let block = (file.len() / block::BLOCK_BYTES) as u32;
                block::write(number, batch, block, &bytes.rest(), file);
                batch += 1;
            }
            1 => {
                files.push(segment::head(number + 1).to_vec());
                batch = 1;
            }
            _ => {
                let (at, with) = (u16::read(&mut bytes)?, u8::read(&mut bytes)?);
                let at = usize::from(at) % file.len();
                file[at] ^= with;
            }
        }
    }
    Ok(files)
}

/// What these targets begin with: the name of each input, and the input.
#[cfg(test)]
pub(crate) mod seeds {
    use super::*;

    fn begin(next: u64, blocks: u32) -> Vec<u8> {
        let mut content = Vec::new();
        record::write_begin(next, blocks, &mut content);
        let vote = [1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 1];
        record::write_value(Meta::Vote, &vote, &mut content);
        content
    }

    fn entries(first: usize, count: usize) -> Vec<u8> {
        let mut content = Vec::new();
        for entry in super::super::super::fuzz::seeds::entries().iter().skip(first).take(count) {
            record::write_entry(entry, &mut content);
        }
        content
    }

    fn truncate(from: u64) -> Vec<u8> {
        let mut content = Vec::new();
        record::write_truncate(from, &mut content);
        content
    }

    fn purge(index: u64) -> Vec<u8> {
        let mut content = Vec::new();
        let upto = LogPosition { term: 3, node: 1, index }.to_bytes();
        record::write_value(Meta::Purged, &upto, &mut content);
        content
    }

    pub(crate) fn record() -> Vec<(String, Vec<u8>)> {
        let seed = |name: &str, bytes| (name.to_owned(), bytes);
        let mut all: Vec<_> = ["membership", "blank", "put", "expire"]
            .iter()
            .enumerate()
            .map(|(index, name)| seed(name, entries(index, 1)))
            .collect();
        let mut identity = Vec::new();
        record::write_value(Meta::Identity, &codec::encode(&u64::MAX), &mut identity);
        all.push(seed("begin", begin(7, 8)));
        all.push(seed("truncate", truncate(u64::MAX)));
        all.push(seed("purged", purge(9)));
        all.push(seed("identity", identity));
        all
    }

    fn pieces(pieces: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (what, piece) in pieces {
            bytes.push(*what);
            (piece.len() as u16).write(&mut bytes);
            bytes.extend_from_slice(piece);
        }
        bytes
    }

    pub(crate) fn log() -> Vec<(String, Vec<u8>)> {
        let seed = |name: &str, all: &[_]| (name.to_owned(), pieces(all));
        let (batch, file, change) = (0, 1, 2);
        let whole = [(batch, begin(0, 0)), (batch, entries(0, 2)), (batch, entries(2, 2))];
        let changed = [&whole[..], &[(change, vec![6, 4, 1])]].concat();
        let next =
            [&whole[..], &[(file, vec![]), (batch, begin(4, 4)), (batch, purge(9))]].concat();
        let torn = [&whole[..], &[(change, vec![6, 14, 2])]].concat();
        vec![
            seed("whole", &whole),
            seed("a-changed-block", &changed),
            seed("an-end-that-is-no-end", &torn),
            seed("two-files", &next),
            seed("purged", &[(batch, begin(0, 0)), (batch, entries(0, 4)), (batch, purge(1))]),
            seed(
                "truncated",
                &[(batch, begin(0, 0)), (batch, entries(0, 4)), (batch, truncate(2))],
            ),
            seed("a-hole", &[(batch, begin(0, 0)), (batch, entries(0, 1)), (batch, entries(2, 1))]),
            seed("empty", &[(batch, begin(0, 0))]),
        ]
    }
}
