//! What the log reads from its disk, for [`mod@crate::fuzz`].
//!
//! The inputs of the targets:
//!
//! ```text
//! log_record   what: u8 (0 entry, 1 entry with a right checksum, 2 and more: a record of `meta` with one)
//!              ++ entry: index u64 ++ bytes        record: bytes
//! log          rows, each: what: u8 ++ index: u64 ++ length: u16 ++ bytes; all with right checksums
//! ```

use super::super::identity::Founding;
use super::super::{LogId, Vote};
use super::disk::{Disk, Meta, check_entry, checked, sealed};
use crate::codec;
use crate::codec::layout::{Input, Layout, Malformed};
use crate::lmdb::{self, Env};
use bytes::Bytes;
use std::cell::OnceCell;
use std::path::Path;

const MAP_BYTES: usize = 64 << 20;
/// Rows of one log; more say nothing new.
const ROWS_MAX: usize = 64;

/// One row.
pub(crate) fn record(input: &[u8]) {
    let Some((what, bytes)) = input.split_first() else { return };
    match what {
        0 | 1 => {
            let Some((index, row)) = bytes.split_first_chunk() else { return };
            let row = if *what == 1 { sealed(index, row.to_vec()) } else { row.to_vec() };
            let Ok(entry) = check_entry(u64::from_be_bytes(*index), &row) else { return };
            assert_eq!(entry.log_id.index.to_be_bytes(), *index);
            let again = sealed(index, entry.to_bytes().to_vec());
            assert_eq!(check_entry(entry.log_id.index, &again).ok(), Some(entry));
        }
        what => {
            let meta = Meta::ALL[usize::from(*what) % Meta::ALL.len()];
            let row = sealed(meta.name().as_bytes(), bytes.to_vec());
            let value = checked(meta.name().as_bytes(), &row).expect("the checksum is right");
            read_meta(meta, Bytes::copy_from_slice(value));
        }
    }
}

fn read_meta(meta: Meta, value: Bytes) {
    match meta {
        Meta::Format => drop(u16::from_bytes(value)),
        Meta::Vote => drop(Vote::from_bytes(value)),
        Meta::Committed | Meta::Purged => drop(LogId::from_bytes(value)),
        Meta::Identity => drop(codec::decode::<u64>(&value)),
        Meta::Founding => drop(codec::decode::<Founding>(&value)),
    }
}

/// A whole log: what a member does when it starts, and what it then reads for others.
pub(crate) fn log(folder: &Path, input: &[u8]) {
    thread_local! {
        static DISK: OnceCell<(Env, Disk)> = const { OnceCell::new() };
    }
    DISK.with(|opened| {
        let open = || Disk::open_with(&folder.join("log"), MAP_BYTES, lmdb::Sync::Never);
        let open = || open().expect("a new folder takes a log");
        let (env, disk) = opened.get_or_init(open);
        if write(env, disk, input).is_ok() {
            read(env, disk);
        }
    });
}

/// Makes the log the rows of the input.
fn write(env: &Env, disk: &Disk, input: &[u8]) -> Result<(), Malformed> {
    let input = &mut Input::new(Bytes::copy_from_slice(input));
    let mut txn = env.write_txn().expect("nobody else writes");
    disk.clear(&mut txn).expect("an empty log can be written");
    for _ in 0..ROWS_MAX {
        if input.remaining() == 0 {
            break;
        }
        let (what, index) = (u8::read(input)?, u64::read(input)?);
        let length = u16::read(input)?;
        let value = input.take(usize::from(length))?.to_vec();
        let written = match what {
            0 => disk.put_entry(&mut txn, index, value),
            what => {
                let meta = Meta::ALL[usize::from(what) % Meta::ALL.len()];
                disk.write_meta(&mut txn, meta, &value)
            }
        };
        written.expect("there is room for a few rows");
    }
    txn.commit().expect("there is room for a few rows");
    Ok(())
}

fn read(env: &Env, disk: &Disk) {
    let txn = env.read_txn().expect("there are few readers");
    if disk.check_records(&txn).is_err() {
        return;
    }
    let Ok(loaded) = disk.load(env) else { return };
    let end = |id: Option<LogId>| id.map_or(0, |id| id.index + 1);
    let (first, end) = (end(loaded.purged), end(loaded.last));
    let mut next = first;
    let read = disk.read_entries(&txn, first..end, |entry| {
        assert_eq!(entry.log_id.index, next);
        next += 1;
        true
    });
    if read.is_ok() && loaded.purged.is_some() {
        assert_eq!(next, end.max(first), "a log that was loaded has no hole");
    }
}

/// What these targets begin with: the name of each input, and the input.
#[cfg(test)]
pub(crate) mod seeds {
    use super::*;
    use crate::mvcc::LogPosition;

    fn seed(what: u8, name: &str, bytes: &[u8]) -> (String, Vec<u8>) {
        (name.to_owned(), [&[what], bytes].concat())
    }

    fn vote() -> Bytes {
        Bytes::from_static(&[1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 1])
    }

    fn position(index: u64) -> Bytes {
        LogPosition { term: 3, node: 1, index }.to_bytes()
    }

    pub(crate) fn record() -> Vec<(String, Vec<u8>)> {
        let entries = super::super::super::fuzz::seeds::entries();
        let mut all = Vec::new();
        for (name, entry) in ["membership", "blank", "put", "expire"].iter().zip(entries) {
            let index = entry.log_id.index.to_be_bytes();
            let bytes = entry.to_bytes();
            let row = sealed(&index, bytes.to_vec());
            all.push(seed(0, name, &[&index[..], &row].concat()));
            all.push(seed(1, &format!("{name}-unsealed"), &[&index[..], &bytes].concat()));
        }
        all.push(seed(0, "shorter-than-a-checksum", &[0; 11]));
        all.push(seed(6, "format", &1u16.to_bytes()));
        all.push(seed(7, "vote", &vote()));
        all.push(seed(8, "committed", &position(1)));
        all.push(seed(9, "purged", &position(u64::MAX)));
        all.push(seed(10, "identity", &codec::encode(&u64::MAX)));
        all
    }

    fn rows(rows: &[(u8, u64, Bytes)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (what, index, row) in rows {
            bytes.push(*what);
            index.write(&mut bytes);
            (row.len() as u16).write(&mut bytes);
            bytes.extend_from_slice(row);
        }
        bytes
    }

    pub(crate) fn log() -> Vec<(String, Vec<u8>)> {
        let entries = super::super::super::fuzz::seeds::entries();
        let entries = entries.map(|entry| (0, entry.log_id.index, entry.to_bytes()));
        let (format, vote) = ((6, 0, 1u16.to_bytes()), (1, 0, vote()));
        let purged = |index| (3, 0, position(index));
        let whole = [&[format.clone(), vote, (2, 0, position(3))], &entries[..]].concat();
        let begun = [&[format.clone(), purged(2)], &entries[2..]].concat();
        let hole = [&entries[..1], &entries[2..]].concat();
        let seed = |name: &str, all: &[_]| (name.to_owned(), rows(all));
        vec![
            seed("whole", &whole),
            seed("purged", &begun),
            seed("all-purged", &[format.clone(), purged(9)]),
            seed("a-hole", &hole),
            seed("an-entry-in-another-place", &[(0, 9, entries[0].2.clone())]),
            seed("empty", &[format]),
        ]
    }
}
