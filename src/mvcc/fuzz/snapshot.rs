//! A stream that says it is a state.
//!
//! A stream that is refused is the sender's fault, never this member's. One that is taken is a state like any other: it
//! verifies, it streams the same again, and commands can be applied to it.

use super::super::dedup::ClientRow;
use super::super::hash;
use super::super::records::{Head, Image, LeaseRow, Membership, MetaRow, Record, Table, sealed};
use super::super::snapshot::{LoadError, SnapshotLoader, SnapshotReader, TRAILER};
use super::super::{Body, Entry, LogPosition, Store, View, keys};
use super::{MAP_BYTES, close, emptied, view};
use crate::api::{Command, Proposal};
use crate::lmdb::Sync;
use crate::types::{KeyRange, Op, TxnOp};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

/// A stream, pushed in pieces.
pub(crate) fn snapshot(folder: &Path, input: &[u8]) {
    let Some((how, stream)) = input.split_first() else { return };
    let stream = if how & 1 == 1 { repaired(stream) } else { stream.to_vec() };
    // Each piece is a transaction, so a few of them.
    let cut = (stream.len() / (1 + usize::from(how >> 1) % 8)).max(1);
    match load(folder, &stream, cut) {
        Ok(store) => {
            believe(&store);
            let again = read(view(&store));
            close(store);
            let loaded = load(folder, &again, again.len()).expect("what was streamed is taken");
            assert!(read(view(&loaded)) == again, "a state streams the same again");
            go_on(&loaded);
            close(loaded);
        }
        Err(LoadError::Malformed(_)) => {}
        Err(LoadError::Fault(fault)) => panic!("a stream is no fault of this member: {fault}"),
    }
}

fn load(folder: &Path, stream: &[u8], cut: usize) -> Result<Store, LoadError> {
    let folder = emptied(folder);
    let mut loader = SnapshotLoader::new_with(&folder, MAP_BYTES, Sync::Never)?;
    for piece in stream.chunks(cut.max(1)) {
        loader.push(&Bytes::copy_from_slice(piece))?;
        loader.load()?;
    }
    loader.finish()
}

fn read(view: View) -> Vec<u8> {
    let mut reader = SnapshotReader::new(view);
    let mut stream = Vec::new();
    while let Some(piece) = reader.next_chunk(1000).expect("a state that was taken is whole") {
        stream.extend_from_slice(&piece);
    }
    stream
}

pub(super) fn believe(store: &Store) {
    let view = view(store);
    view.verify().expect("a state that was taken is whole");
    let everything = TxnOp::single(Op::range(KeyRange::all()).0);
    view.query(&everything).expect("each row can be read").expect("it only reads");
    view.leases().expect("each lease can be read");
}

/// Applies what any group may come by next.
pub(super) fn go_on(store: &Store) {
    let last = view(store).applied();
    let revision = view(store).revision();
    let put = Op::put("next", vec![1; 300]);
    let txns = [put, Op::delete(KeyRange::all())].map(|op| Command::Txn(TxnOp::single(op.0)));
    let ttl = std::time::Duration::from_secs(9);
    let commands =
        txns.into_iter().chain([Command::Grant { id: None, ttl }, Command::Compact(revision)]);
    for (command, index) in commands.zip(last.map_or(1, |last| last.index + 1)..) {
        let position = LogPosition { term: 1, node: 1, index };
        let body = Body::Command(Arc::new(Proposal::from(command)));
        store.apply(&[Entry { position, body }]).expect("a state that was taken goes on");
    }
    while !store.compact_step(100).expect("history that was taken can be forgotten") {}
    view(store).verify().expect("a state that went on is whole");
}

/// Where the pieces of a stream are that can be taken for rows: each with its table, its key, and its row.
pub(in crate::mvcc) fn rows(stream: &[u8]) -> Vec<(u8, Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    let mut rest = stream.get(5..).unwrap_or_default();
    while let Some((&[table, high, low], after)) = rest.split_first_chunk() {
        if table == TRAILER {
            break;
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some((key, after)) = after.split_at_checked(length) else { break };
        let Some((length, after)) = after.split_first_chunk() else { break };
        let length = u32::from_be_bytes(*length) as usize;
        let Some((row, after)) = after.split_at_checked(length) else { break };
        rows.push((table, key.to_vec(), row.to_vec()));
        rest = after;
    }
    rows
}

/// The stream of the same rows, each with a right checksum, under a head with the right sum, and with a right trailer.
pub(in crate::mvcc) fn repaired(stream: &[u8]) -> Vec<u8> {
    let mut rows = rows(stream);
    let (mut keys, mut sum) = (0, 0u128);
    for (number, key, row) in &mut rows {
        let Some(table) = Table::ALL.into_iter().find(|table| *table as u8 == *number) else {
            continue;
        };
        if let Some((version_and_content, _)) = row.split_last_chunk::<4>() {
            let content = version_and_content.split_first().map_or(&[][..], |(_, content)| content);
            *row = sealed(table, key, content);
        }
        let (added, counted) = worth(table, key, row);
        sum = sum.wrapping_add(added);
        keys += counted;
    }
    for (number, key, row) in &mut rows {
        if *number == Table::Meta as u8
            && key == Head::KEY
            && let Ok(head) = Head::open(key, row)
        {
            *row = Head { keys, rows_hash: sum, ..head }.seal(key);
        }
    }
    written(&rows)
}

/// What a row adds to the hash of the state and to the number of its keys.
fn worth(table: Table, key: &[u8], row: &[u8]) -> (u128, u64) {
    match table {
        Table::Latest => match Image::open(key, row) {
            Ok(image) => (hash::of_key(key, &image), 1),
            Err(_) => (0, 0),
        },
        Table::Leases => match (keys::parse_lease(key), LeaseRow::open(key, row)) {
            (Some(id), Ok(lease)) => (hash::of_lease(id, &lease), 0),
            _ => (0, 0),
        },
        Table::Meta if key == Membership::KEY => match Membership::open(key, row) {
            Ok(membership) => (hash::of_membership(&membership), 0),
            Err(_) => (0, 0),
        },
        Table::Meta
        | Table::Gone
        | Table::Values
        | Table::Events
        | Table::History
        | Table::Attachments => (0, 0),
        Table::Dedup => match (keys::parse_client(key), ClientRow::open(key, row)) {
            (Some(id), Ok(client)) => (client.hash(id), 0),
            _ => (0, 0),
        },
    }
}

pub(in crate::mvcc) fn written(rows: &[(u8, Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut stream = b"QSNP\x04".to_vec();
    for (table, key, row) in rows {
        stream.push(*table);
        stream.extend_from_slice(&(key.len() as u16).to_be_bytes());
        stream.extend_from_slice(key);
        stream.extend_from_slice(&(row.len() as u32).to_be_bytes());
        stream.extend_from_slice(row);
    }
    stream.push(TRAILER);
    stream.extend_from_slice(&(rows.len() as u64).to_be_bytes());
    let sum = crc32c::crc32c(&stream);
    stream.extend_from_slice(&sum.to_be_bytes());
    stream
}

/// A state with something in every table but `dedup`, and some of its history compacted away.
#[cfg(test)]
pub(super) fn stream_of_everything() -> Vec<u8> {
    use crate::mvcc::tests::kit::Lab;
    let mut lab = Lab::new();
    let lease = lab.grant();
    lab.put("a", "1");
    lab.run(Op::put("a", vec![7; 300]).lease(lease)).unwrap();
    lab.run(Op::put("b", vec![8; 300]).lease(lease)).unwrap();
    lab.run(Op::put("a\0", "3")).unwrap();
    lab.run(Op::put("b", "4")).unwrap();
    lab.run(Op::delete("a\0")).unwrap();
    let members = lab.entry(Body::Membership(Bytes::from_static(b"one and two")));
    lab.store().apply(&[members]).unwrap();
    lab.apply(Command::Compact(4.into())).unwrap();
    read(lab.view())
}

/// A state of one key, whose numbers are as somebody wants them.
#[cfg(test)]
fn stream_of(version: u64, edit: impl FnOnce(&mut Head)) -> Vec<u8> {
    use super::super::records::{Change, Format, Value};
    use crate::api::Position;
    let mut head = Head { revision: 2.into(), ..Head::empty() };
    edit(&mut head);
    let (key, at) = (Bytes::from_static(b"next"), Position::start_of(head.revision));
    let image = Image {
        create_revision: head.revision,
        modified: at,
        version,
        lease: None,
        turn: 1,
        value: Value::Inline(Bytes::new()),
    };
    let new = Some(image.clone());
    let change = Change { key: key.clone(), new, prev: None, gone: None, turn: 1 };
    let position = keys::position(at).to_vec();
    let row = |table: Table, key: Vec<u8>, row: Vec<u8>| (table as u8, key, row);
    repaired(&written(&[
        row(Table::Latest, key.to_vec(), image.seal(&key)),
        row(Table::Events, position.clone(), change.seal(&position)),
        row(Table::Meta, Format::KEY.to_vec(), Format::CURRENT.seal(Format::KEY)),
        row(Table::Meta, Head::KEY.to_vec(), head.seal(Head::KEY)),
    ]))
}

#[cfg(test)]
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let (whole, empty) = (stream_of_everything(), read(crate::mvcc::tests::kit::Lab::new().view()));
    let seed = |how: u8, name: &str, bytes: &[u8]| (name.to_owned(), [&[how], bytes].concat());
    let end = u64::MAX;
    let revision = |head: &mut Head| {
        (head.revision, head.compact_revision) = (end.into(), end.into());
    };
    let applied = |head: &mut Head| {
        head.applied = Some(LogPosition { term: 1, node: 1, index: end });
    };
    let all = rows(&whole);
    let mut swapped = all.clone();
    swapped.swap(0, 1);
    let mut lacking = all.clone();
    lacking.remove(all.len() / 2);
    vec![
        seed(0, "whole", &whole),
        seed(1, "whole-repaired", &whole),
        seed(7, "whole-in-pieces", &whole),
        seed(0, "empty", &empty),
        seed(1, "empty-repaired", &empty),
        seed(0, "cut-off", &whole[..whole.len() - 1]),
        seed(1, "rows-out-of-order", &written(&swapped)),
        seed(1, "a-row-is-missing", &written(&lacking)),
        seed(0, "one-key", &stream_of(1, |_| {})),
        seed(0, "version-at-its-end", &stream_of(end, |_| {})),
        seed(0, "revision-at-its-end", &stream_of(1, revision)),
        seed(0, "applied-at-its-end", &stream_of(1, applied)),
        seed(0, "leases-at-their-end", &stream_of(1, |head| head.lease_chosen = end)),
        seed(0, "compacted-in-the-future", &stream_of(1, |head| head.compact_revision = 99.into())),
        seed(0, "a-newer-version", b"QSNP\x04"),
        seed(0, "a-wild-length", b"QSNP\x03\x01\x00\x01k\xff\xff\xff\xff"),
    ]
}
