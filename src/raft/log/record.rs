//! What the log writes down, one after another: entries, and what is to be known beside them.
//!
//! ```text
//! record   length: u32 ++ what: u8 ++ content        the length is that of the content
//!          1 entry       as in `format.rs`
//!          2 truncate    from: u64                    entries from there on are gone
//!          3 value       name: u8 ++ value            replaces the one before it
//!          4 begin       next: u64 ++ blocks: u32     only at the beginning of a segment: the index of the entry that
//!                                                     comes next, and how many blocks of the segment before it count
//! ```
//!
//! They carry no checksums of their own: the blocks that they stand in do.

use super::super::{Entry, LogId};
use crate::codec::layout::{Input, Layout, Malformed, write_length};
use bytes::Bytes;

/// The names of the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Meta {
    Vote = 1,
    Committed = 2,
    Purged = 3,
    /// Who this member is.
    Identity = 4,
    /// Who founded the group.
    Founding = 5,
    /// As whom it has joined the group, and who founded that.
    Joined = 6,
}

impl Meta {
    pub(super) const ALL: [Self; 6] =
        [Self::Vote, Self::Committed, Self::Purged, Self::Identity, Self::Founding, Self::Joined];
}

const ENTRY: u8 = 1;
const TRUNCATE: u8 = 2;
const VALUE: u8 = 3;
const BEGIN: u8 = 4;

/// The bytes before the content of a record.
const HEAD: usize = 4 + 1;

/// A record as it is read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// The index of an entry, and where among the bytes it stands. Whether it can be read shows when it is.
    Entry {
        index: u64,
        at: usize,
        length: usize,
    },
    Truncate {
        from: u64,
    },
    Value {
        name: Meta,
        value: Bytes,
    },
    Begin {
        next: u64,
        blocks: u32,
    },
}

/// Appends an entry, and returns where it stands and how long it is.
pub(super) fn write_entry(entry: &Entry, out: &mut Vec<u8>) -> (usize, usize) {
    write(ENTRY, out, |out| entry.write(out))
}

pub(super) fn write_truncate(from: u64, out: &mut Vec<u8>) {
    write(TRUNCATE, out, |out| from.write(out));
}

pub(super) fn write_value(name: Meta, value: &[u8], out: &mut Vec<u8>) {
    write(VALUE, out, |out| {
        out.push(name as u8);
        out.extend_from_slice(value);
    });
}

pub(super) fn write_begin(next: u64, blocks: u32, out: &mut Vec<u8>) {
    write(BEGIN, out, |out| {
        next.write(out);
        blocks.write(out);
    });
}

fn write(what: u8, out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) -> (usize, usize) {
    let begin = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, what]);
    content(out);
    let at = begin + HEAD;
    let length = out.len() - at;
    let mut head = Vec::with_capacity(4);
    write_length(length, &mut head);
    out[begin..begin + 4].copy_from_slice(&head);
    (at, length)
}

/// The record at `at`, and where the next one begins.
pub(super) fn read(bytes: &Bytes, at: usize) -> Result<(Record, usize), Malformed> {
    let mut input = Input::new(bytes.slice(at.min(bytes.len())..));
    let (length, what) = (u32::read(&mut input)? as usize, u8::read(&mut input)?);
    let content = input.take(length)?;
    let begin = at + HEAD;
    let record = match what {
        ENTRY => Record::Entry { index: entry_index(content)?, at: begin, length },
        TRUNCATE => Record::Truncate { from: u64::from_bytes(content)? },
        VALUE => {
            let mut content = Input::new(content);
            let number = u8::read(&mut content)?;
            let name = Meta::ALL.into_iter().find(|name| *name as u8 == number);
            Record::Value { name: name.ok_or(Malformed)?, value: content.rest() }
        }
        BEGIN => {
            let (next, blocks) = Layout::from_bytes(content)?;
            Record::Begin { next, blocks }
        }
        _ => return Err(Malformed),
    };
    Ok((record, begin + length))
}

/// The index of an entry, without reading the rest of it: a version comes first, then its id.
fn entry_index(entry: Bytes) -> Result<u64, Malformed> {
    let mut input = Input::new(entry);
    let _version = u8::read(&mut input)?;
    Ok(LogId::read(&mut input)?.index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::LogPosition;
    use crate::raft::EntryPayload;
    use crate::raft::format::log_id;

    #[test]
    fn the_bytes_of_records_are_golden() {
        let mut out = Vec::new();
        let entry = Entry {
            log_id: log_id(LogPosition { term: 1, node: 2, index: 3 }),
            payload: EntryPayload::Blank,
        };
        assert_eq!(write_entry(&entry, &mut out), (5, 26));
        write_truncate(7, &mut out);
        write_value(Meta::Identity, b"me", &mut out);
        write_begin(9, 8, &mut out);
        let golden = [
            &[0, 0, 0, 26, 1, 1][..],
            &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 1],
            &[0, 0, 0, 8, 2, 0, 0, 0, 0, 0, 0, 0, 7],
            &[0, 0, 0, 3, 3, 4, b'm', b'e'],
            &[0, 0, 0, 12, 4, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 8],
        ];
        assert_eq!(out, golden.concat());

        let (bytes, mut at, mut records) = (Bytes::from(out), 0, Vec::new());
        while at < bytes.len() {
            let (record, next) = read(&bytes, at).unwrap();
            records.push(record);
            at = next;
        }
        let value = Record::Value { name: Meta::Identity, value: Bytes::from_static(b"me") };
        assert_eq!(
            records,
            [
                Record::Entry { index: 3, at: 5, length: 26 },
                Record::Truncate { from: 7 },
                value,
                Record::Begin { next: 9, blocks: 8 },
            ]
        );
    }

    #[test]
    fn what_is_no_record_does_not_parse() {
        for bytes in [
            &[][..],
            &[0, 0, 0, 1, 2],
            &[0, 0, 0, 0, 9],
            &[0, 0, 0, 1, 3, 0],
            &[0, 0, 0, 7, 2, 0, 0, 0, 0, 0, 0, 0],
            &[255, 255, 255, 255, 1, 1],
        ] {
            assert!(read(&Bytes::copy_from_slice(bytes), 0).is_err(), "{bytes:?}");
        }
        assert!(read(&Bytes::new(), 9).is_err());
    }
}
