//! A backup is what was there, a backup that was touched is none, and what is restored from it is the present and no past.

use super::kit::{Lab, MAP_BYTES, body, cursor, rows, show, show_changes, txn};
use crate::api::{Command, Position};
use crate::error::{Error, ErrorKind, Fault, Reason};
use crate::lmdb::Sync;
use crate::mvcc::backup::{BackupReader, Inspector, Origin};
use crate::mvcc::fuzz::{rows_of, stream_of_rows};
use crate::mvcc::records::{Change, Format, Head, LargeValue, MetaRow, Record, Table};
use crate::mvcc::restore::Restorer;
use crate::mvcc::snapshot::{SnapshotLoader, SnapshotReader};
use crate::mvcc::{Body, Entry, LogPosition, Store, View, keys};
use crate::types::{BackupInfo, KeyValue, LeaseId, Op, OpResult, Revision};
use bytes::Bytes;
use proptest::prelude::*;
use std::path::Path;
use std::sync::OnceLock;
use tempfile::TempDir;

const BUMP: u64 = 1000;

fn origin() -> Origin {
    Origin { group: 0x11, name: "jobs".into() }
}

/// A state with something in every table, large values of now and of the past, and the beginning of history compacted away.
fn lab() -> Lab {
    let mut lab = Lab::new();
    let lease = lab.grant();
    lab.grant();
    let large = |fill: u8| Bytes::from(vec![fill; 300]);
    lab.run(Op::put("a", large(1))).unwrap();
    lab.run(Op::put("a", large(2)).lease(lease)).unwrap();
    lab.run(Op::put("b", large(3)).lease(lease)).unwrap();
    lab.put("b", "4");
    lab.put("gone", "5");
    lab.run(Op::delete("gone")).unwrap();
    lab.run(Op::put([b'z', 0], large(6))).unwrap();
    lab.put("last", "7");
    let members = lab.entry(Body::Membership(Bytes::from_static(b"one, two and three")));
    lab.store().apply(&[members]).unwrap();
    lab.apply(Command::Compact(Revision::from(4))).unwrap();
    lab
}

pub(super) fn backup(view: View) -> (Vec<u8>, BackupInfo) {
    let mut reader = BackupReader::new(view, &origin()).unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.next_chunk(100).unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    (bytes, reader.finish().unwrap())
}

/// The backup of [`lab`], made once.
fn whole() -> &'static [u8] {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    WHOLE.get_or_init(|| backup(lab().view()).0)
}

fn inspect(bytes: &[u8], cut: usize) -> Result<BackupInfo, Fault> {
    let mut inspector = Inspector::new();
    bytes.chunks(cut).try_for_each(|chunk| inspector.inspect(chunk))?;
    inspector.info()
}

fn restore_in(folder: &Path, bytes: &[u8], cut: usize, bump: u64) -> Result<Store, Fault> {
    let mut restorer = Restorer::new_with(folder, MAP_BYTES, bump, Sync::Never)?;
    bytes.chunks(cut).try_for_each(|chunk| restorer.push(chunk))?;
    restorer.finish().map(|(store, _)| store)
}

pub(super) fn restore(bytes: &[u8], bump: u64) -> Result<(TempDir, Store), Fault> {
    let folder = tempfile::tempdir().unwrap();
    let store = restore_in(folder.path(), bytes, bytes.len(), bump)?;
    Ok((folder, store))
}

/// Where a refusal says that the damage is, and all that it says.
fn place(refused: Result<BackupInfo, Fault>) -> (u64, String) {
    let error = Error::from(refused.expect_err("it was touched"));
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    match error.reason() {
        Reason::BackupDamaged { offset, detail } => {
            assert!(detail.contains(&format!("at byte {offset}")), "{detail}");
            (*offset, detail.clone())
        }
        other => panic!("{other:?}"),
    }
}

fn all_keys(view: &View) -> Vec<String> {
    let found = view.query(&txn([], [Op::range(..)], [])).unwrap().unwrap();
    match &found.results[..] {
        [OpResult::Range(page)] => page.entries.iter().map(|kv: &KeyValue| show(kv)).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_backup_is_a_header_and_the_snapshot() {
    let lab = lab();
    let (bytes, info) = backup(lab.view());
    let mut golden = b"QBKP\x01".to_vec();
    golden.extend([0; 15]);
    golden.extend(b"\x11\x00\x00\x00\x04jobs");
    golden.extend(crc32c::crc32c(&golden).to_be_bytes());
    let mut reader = SnapshotReader::new(lab.view());
    while let Some(chunk) = reader.next_chunk(1 << 20).unwrap() {
        golden.extend_from_slice(&chunk);
    }
    assert_eq!(bytes.escape_ascii().to_string(), golden.escape_ascii().to_string());
    let view = lab.view();
    let expected = BackupInfo {
        group_name: "jobs".into(),
        group: 0x11,
        revision: view.revision(),
        compact_revision: Revision::from(4),
        keys: 4,
        leases: 2,
        bytes: bytes.len() as u64,
        state_hash: view.hash(),
    };
    assert_eq!(info, expected);
    for cut in [1, 7, 1000, bytes.len()] {
        assert_eq!(inspect(&bytes, cut).unwrap(), expected);
    }
}

#[test]
fn every_flipped_byte_is_refused_with_its_place() {
    let header = whole().windows(4).position(|it| it == b"QSNP").unwrap();
    for at in 0..whole().len() {
        for bit in [0, 3, 7] {
            let mut bytes = whole().to_vec();
            bytes[at] ^= 1 << bit;
            if at == 4 || at == header + 4 {
                let error = Error::from(inspect(&bytes, 999).unwrap_err());
                assert!(matches!(error.reason(), Reason::UnreadableFormat { .. }), "{error}");
                continue;
            }
            let (offset, detail) = place(inspect(&bytes, 999));
            assert!(offset <= bytes.len() as u64, "{at}: {detail}");
            // A row without a seal of its own shows in the sum at the end, and another length in a row that never ends or
            // in what comes after it.
            let is_late =
                ["another checksum", "too early", "within its header", "together", "unknown table"];
            let is_late = is_late.iter().any(|late| detail.contains(late));
            assert!(is_late || offset <= at as u64, "{at}: {detail}");
        }
    }
}

#[test]
fn every_truncation_is_refused_with_its_place() {
    for length in 0..whole().len() {
        let (offset, _) = place(inspect(&whole()[..length], 999));
        assert_eq!(offset, length as u64);
    }
    let longer = [whole(), b"\0"].concat();
    assert_eq!(place(inspect(&longer, 999)).0, whole().len() as u64);
    assert!(restore(&longer, BUMP).is_err());
    assert!(restore(&whole()[..whole().len() - 1], BUMP).is_err());
}

#[test]
fn a_damaged_row_is_named() {
    let at = whole().windows(4).position(|it| it == b"last").unwrap();
    let mut bytes = whole().to_vec();
    bytes[at + 8] ^= 1;
    let (offset, detail) = place(inspect(&bytes, 999));
    assert_eq!(offset, at as u64 - 3);
    let text =
        format!("a row of the snapshot is damaged: at byte {offset}, in table latest, row last");
    assert_eq!(detail, text);
}

#[test]
fn another_version_is_refused_as_such() {
    for bytes in [&b"QBKP\x02"[..], b"QBKP\x00anything"] {
        let error = Error::from(inspect(bytes, 999).unwrap_err());
        assert!(matches!(error.reason(), Reason::UnreadableFormat { .. }), "{error}");
    }
    // A row that is well sealed, and the format of the state.
    let header = whole().windows(4).position(|it| it == b"QSNP").unwrap();
    let (head, stream) = whole().split_at(header);
    for name in [&b"last"[..], b"format"] {
        let mut all = rows_of(stream);
        let (table, key, row) = all.iter_mut().find(|row| row.1 == name).unwrap();
        let newer: Vec<u8> = if name == b"last" {
            [&[2], &row[1..row.len() - 4]].concat()
        } else {
            vec![1, 0, 5, 0, 1]
        };
        let sum = crc32c::crc32c(&[&[*table], &key[..], &newer].concat());
        *row = [&newer[..], &sum.to_be_bytes()].concat();
        let error = Error::from(inspect(&[head, &stream_of_rows(&all)].concat(), 999).unwrap_err());
        assert!(matches!(error.reason(), Reason::UnreadableFormat { .. }), "{error}");
    }
    for bytes in [&b"QSNP\x04"[..], b"Q\0", b"", b"QBKP", &[0; 1000]] {
        place(inspect(bytes, 999));
    }
}

#[test]
fn a_lie_about_a_length_fills_no_memory() {
    let mut bytes = whole()[..21].to_vec();
    bytes.extend(u32::MAX.to_be_bytes());
    assert_eq!(place(inspect(&bytes, 999)).0, 21);
    let header = whole().windows(4).position(|it| it == b"QSNP").unwrap();
    let row = [&whole()[..header + 5], b"\x01\x00\x01k\xff\xff\xff\xff"].concat();
    assert_eq!(place(inspect(&row, 999)).0, header as u64 + 5);
    let name = Origin { group: 1, name: "x".repeat((1 << 20) + 1) };
    let refused = BackupReader::new(lab().view(), &name).unwrap_err();
    assert!(matches!(refused.reason(), Reason::BadOption { .. }), "{refused}");
}

/// Rows that are whole and belong to another state: sums tell, though nothing is kept to compare with.
#[test]
fn rows_of_another_state_are_refused() {
    let header = whole().windows(4).position(|it| it == b"QSNP").unwrap();
    let (head, stream) = whole().split_at(header);
    let all = rows_of(stream);
    assert_eq!([head, &stream_of_rows(&all)].concat(), whole());
    for left_out in 0..all.len() {
        let (number, ..) = all[left_out];
        // Nothing points to a row of `gone` but the delete, and to one of `kidx` but the change.
        if number == Table::Gone as u8 || number == Table::History as u8 {
            continue;
        }
        let mut rest = all.clone();
        rest.remove(left_out);
        let bytes = [head, &stream_of_rows(&rest)].concat();
        let is_members = all[left_out].1 == b"membership";
        assert!(inspect(&bytes, 999).is_err(), "{number} {is_members}");
        assert!(restore(&bytes, BUMP).is_err());
    }
}

/// Changes a row: its table, its key, and what is in it.
type Edit<'a> = dyn FnMut(u8, &mut Vec<u8>, &mut Vec<u8>) + 'a;

/// Somebody who can seal rows can still not make a state that no group could have come to.
#[test]
fn sealed_rows_that_no_write_has_made_are_refused() {
    let header = whole().windows(4).position(|it| it == b"QSNP").unwrap();
    let (head, stream) = whole().split_at(header);
    let edited = |edit: &mut Edit<'_>| {
        let mut all = rows_of(stream);
        all.iter_mut().for_each(|(table, key, row)| edit(*table, key, row));
        let repaired = crate::mvcc::fuzz::repaired(&stream_of_rows(&all));
        [head, &repaired].concat()
    };
    let whole = edited(&mut |_, _, _| {});
    restore(&whole, BUMP).unwrap();
    // The last key of its table: another one in its place is above all others, too.
    let too_long = edited(&mut |table, key, _| {
        if table == Table::Latest as u8 && key.starts_with(b"z") {
            *key = vec![b'z'; 1025];
        }
    });
    let of_the_future = edited(&mut |table, key, row| {
        if table == Table::Latest as u8 && key == b"last" {
            // The highest byte but one of its create_revision.
            row[2] = 1;
        }
    });
    let empty_key = edited(&mut |table, _, row| {
        if table == Table::Values as u8 {
            *row = LargeValue { key: Bytes::new(), value: vec![1; 300].into() }.seal(b"");
        }
    });
    let no_lease = edited(&mut |table, key, _| {
        if table == Table::Leases as u8 && key.ends_with(&[1]) {
            key[0] = 0;
            key[7] = 0;
        }
    });
    for (what, bytes) in [
        ("a key that is too long", too_long),
        ("a revision of the future", of_the_future),
        ("a value of no key", empty_key),
        ("a lease that is not there", no_lease),
    ] {
        let refused = restore(&bytes, BUMP).map(drop).unwrap_err();
        let is_told = matches!(refused.reason(), Reason::BackupDamaged { .. });
        assert!(is_told, "{what}: {refused}");
    }
}

#[test]
fn a_restored_state_has_the_present_and_no_past() {
    let lab = lab();
    let old = lab.view();
    let (bytes, _) = backup(lab.view());
    let (_folder, store) = restore(&bytes, BUMP).unwrap();
    let view = store.view().unwrap();
    view.verify().unwrap();
    let revision = old.revision().get() + BUMP;
    assert_eq!(view.revision().get(), revision);
    assert_eq!((view.compact_revision(), view.applied()), (view.revision(), None));
    assert_eq!(view.membership(), None);
    assert_eq!(all_keys(&view), all_keys(&old), "with their revisions, versions and leases");
    assert_eq!(view.leases().unwrap(), old.leases().unwrap());
    let lease = LeaseId::from(1);
    assert_eq!(view.lease(lease).unwrap(), old.lease(lease).unwrap());

    // To the byte: these rows, the mark, the format and the head, and nothing else.
    let values: Vec<_> = [3u64, 8].map(|at| keys::position(Position::start_of(at.into()))).into();
    let kept = |(table, key, _): &(Table, Vec<u8>, Vec<u8>)| match table {
        Table::Latest | Table::Leases | Table::Attachments => true,
        Table::Values => values.iter().any(|value| value[..] == key[..]),
        _ => false,
    };
    let mut expected: Vec<_> = rows(lab.store()).into_iter().filter(kept).collect();
    assert_eq!(expected.len(), 4 + 2 + 2 + 1);
    let at = keys::position(Position::start_of(revision.into())).to_vec();
    let head = Head {
        applied: None,
        revision: revision.into(),
        compact_revision: revision.into(),
        keys: 4,
        lease_chosen: 2 + BUMP,
        client_chosen: BUMP,
        rows_hash: view.head().rows_hash,
        ..Head::empty()
    };
    let sealed = Change::restore().seal(&at);
    expected.push((Table::Events, at, sealed));
    let format = Format::CURRENT.seal(Format::KEY);
    expected.push((Table::Meta, Format::KEY.to_vec(), format));
    expected.push((Table::Meta, Head::KEY.to_vec(), head.seal(Head::KEY)));
    expected.sort();
    assert_eq!(rows(&store), expected);
}

#[test]
fn the_same_backup_and_bump_are_the_same_state() {
    let hash = |cut: usize, bump: u64| {
        let folder = tempfile::tempdir().unwrap();
        restore_in(folder.path(), whole(), cut, bump).unwrap().view().unwrap().hash()
    };
    assert_eq!(hash(100, BUMP), hash(whole().len(), BUMP));
    assert_ne!(hash(1000, BUMP), hash(1000, BUMP + 1));
}

#[test]
fn a_bump_leaves_the_past_and_something_for_the_future() {
    for bump in [0, 1 << 61, u64::MAX] {
        let refused = restore(whole(), bump).unwrap_err();
        assert!(matches!(refused.reason(), Reason::BadOption { .. }), "{refused}");
    }
    restore(whole(), 1).unwrap();
    restore(whole(), (1 << 61) - 100).unwrap();
}

fn apply(store: &Store, index: u64, command: Command) {
    let position = LogPosition { term: 1, node: 1, index };
    let batch = store.apply(&[Entry { position, body: body(command) }]).unwrap();
    batch.outcomes[0].as_ref().unwrap().as_ref().unwrap();
}

/// A watch of before is told so; one from the restored revision on sees what comes after it, with what was before.
#[test]
fn history_begins_with_what_is_written_next() {
    let (_folder, store) = restore(whole(), BUMP).unwrap();
    let base = store.view().unwrap().revision();
    let events = |range: Option<&str>, from: Revision| {
        let view = store.view().unwrap();
        let range = range.map_or(crate::types::KeyRange::all(), crate::types::KeyRange::key);
        let events = view.events(&cursor(range, from.get()), view.revision(), usize::MAX);
        events.unwrap().map(|events| show_changes(&events.changes))
    };
    let before = Revision::from(base.get() - 1);
    assert_eq!(events(None, before), Err(Reason::Compacted { at: base }));
    assert_eq!(events(Some("a"), Revision::from(5)), Err(Reason::Compacted { at: base }));
    assert_eq!(events(None, base), Ok(vec![]), "the mark is no event");
    assert_eq!(events(Some("a"), base), Ok(vec![]));

    apply(&store, 0, Command::Txn(txn([], [Op::put("b", "8")], [])));
    apply(&store, 1, Command::Txn(txn([], [Op::delete("a")], [])));
    apply(&store, 2, Command::Txn(txn([], [Op::put("gone", "9")], [])));
    store.view().unwrap().verify().unwrap();
    let (one, three) = (base.next(), base.next().next().next());
    let seen = events(None, base).unwrap();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[0], format!("{one}: put b{{4,{one},3}}=8 was b{{4,5,2}}=4"));
    assert!(seen[1].contains("delete a was a{2,3,2}@1="), "{}", seen[1]);
    assert_eq!(seen[2], format!("{three}: put gone{{{three},{three},1}}=9"));
    assert_eq!(events(Some("b"), base).unwrap(), seen[..1]);
    assert_eq!(events(None, one).unwrap(), seen);
    let then = |at: Revision| {
        let op = txn([], [Op::range(..).at(at)], []);
        let found = store.view().unwrap().query(&op).unwrap()?;
        match found.results.into_iter().next() {
            Some(OpResult::Range(page)) => Ok(page.entries.iter().map(show).collect::<Vec<_>>()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(then(before), Err(Reason::Compacted { at: base }));
    assert_eq!(then(base), Ok(all_keys(&lab().view())));

    // A member that falls behind gets all of it, and the mark goes when its revision is compacted away.
    let load = |view: View| {
        let folder = tempfile::tempdir().unwrap();
        let mut loader = SnapshotLoader::new_with(folder.path(), MAP_BYTES, Sync::Never).unwrap();
        let mut reader = SnapshotReader::new(view);
        while let Some(chunk) = reader.next_chunk(500).unwrap() {
            loader.push(&chunk).unwrap();
        }
        let loaded = loader.finish().unwrap();
        (folder, loaded)
    };
    let (_folder, loaded) = load(store.view().unwrap());
    assert_eq!(rows(&loaded), rows(&store));
    for store in [&store, &loaded] {
        apply(store, 3, Command::Compact(one.next()));
        while !store.compact_step(1).unwrap() {
            store.view().unwrap().verify().unwrap();
        }
        let events = rows(store).into_iter().filter(|row| row.0 == Table::Events);
        assert_eq!(events.count(), 2);
        store.view().unwrap().verify().unwrap();
    }
    load(store.view().unwrap()).1.view().unwrap().verify().unwrap();
}

#[test]
fn an_empty_state_and_a_restored_one_can_be_restored() {
    let (bytes, info) = backup(Lab::new().view());
    assert_eq!((info.revision, info.keys), (Revision::FIRST, 0));
    let (_folder, store) = restore(&bytes, BUMP).unwrap();
    assert_eq!(store.view().unwrap().revision().get(), 1 + BUMP);
    let (again, info) = backup(store.view().unwrap());
    assert_eq!(info.compact_revision.get(), 1 + BUMP);
    let (_folder, store) = restore(&again, BUMP).unwrap();
    let view = store.view().unwrap();
    view.verify().unwrap();
    assert_eq!(view.revision().get(), 1 + 2 * BUMP);

    let (_folder, store) = restore(whole(), BUMP).unwrap();
    let (again, _) = backup(store.view().unwrap());
    let (_folder, twice) = restore(&again, BUMP).unwrap();
    assert_eq!(all_keys(&twice.view().unwrap()), all_keys(&lab().view()));
}

/// A mark anywhere else than at the beginning of history, and at a revision that is not compacted, is a hole.
#[test]
fn a_mark_where_history_goes_on_is_refused() {
    for revision in [2u64, 3] {
        let mut lab = Lab::new();
        lab.put("a", "1");
        lab.put("b", "2");
        let at = keys::position(Position::start_of(revision.into()));
        let mut txn = lab.store().env.write_txn().unwrap();
        lab.store().tables.put(&mut txn, &at, &Change::restore()).unwrap();
        txn.commit().unwrap();
        assert!(lab.view().verify().is_err(), "{revision}");
        let mut reader = BackupReader::new(lab.view(), &origin()).unwrap();
        let read = std::iter::from_fn(|| reader.next_chunk(100).transpose());
        let read = read.collect::<Result<Vec<_>, _>>();
        let refused = read.map(drop).and_then(|()| reader.finish().map(drop)).unwrap_err();
        assert!(matches!(refused.reason(), Reason::Corrupt { .. }), "it is the disk: {refused}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// As a fuzzer does it: other bytes, and every checksum put right.
    #[test]
    fn other_bytes_that_somebody_has_sealed_are_refused_or_a_state_that_goes_on(
        edits in proptest::collection::vec((0..whole().len(), any::<u8>()), 1..4),
        how in any::<u8>(),
    ) {
        let mut input = [&[how | 1], whole()].concat();
        edits.into_iter().for_each(|(at, byte)| input[at + 1] = byte);
        let folder = tempfile::tempdir().unwrap();
        crate::mvcc::fuzz::backup(folder.path(), &input);
    }
}
