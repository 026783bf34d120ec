//! A state that was streamed is the state that was there, and a stream that was touched is no state at all.

use super::kit::{Lab, MAP_BYTES, cursor, show_changes};
use crate::api::Command;
use crate::lmdb::Sync;
use crate::mvcc::snapshot::{LoadError, SnapshotLoader, SnapshotReader};
use crate::mvcc::{Body, Store, View};
use crate::types::{LeaseId, Op, Revision};
use bytes::Bytes;
use proptest::prelude::*;
use std::path::Path;
use std::sync::OnceLock;

/// A state with something in every table, values large and small, and half of its history compacted away.
fn lab() -> Lab {
    let mut lab = Lab::new();
    let lease = lab.grant();
    let large = |fill: u8| Bytes::from(vec![fill; 3000]);
    for round in 0..6u8 {
        lab.run(Op::put("large", large(round))).unwrap();
        lab.run(Op::put(format!("k{round}"), vec![round; 10]).lease(lease)).unwrap();
        lab.run(Op::put([b'z', 0, round], large(round)).lease(lease)).unwrap();
    }
    lab.run(Op::delete("k1".."k3")).unwrap();
    lab.run(Op::put("old", large(77))).unwrap();
    lab.run(Op::delete("large")).unwrap();
    let members = lab.entry(Body::Membership(Bytes::from_static(b"one, two and three")));
    lab.store().apply(&[members]).unwrap();
    lab.apply(Command::Compact(Revision::from(14))).unwrap();
    lab
}

fn stream(view: View, bytes_max: usize) -> Vec<Bytes> {
    let mut reader = SnapshotReader::new(view);
    std::iter::from_fn(|| reader.next_chunk(bytes_max).unwrap()).collect()
}

fn load(folder: &Path, chunks: &[Bytes]) -> Result<Store, LoadError> {
    let mut loader = SnapshotLoader::new_with(folder, MAP_BYTES, Sync::Never)?;
    chunks.iter().try_for_each(|chunk| loader.push(chunk))?;
    loader.finish()
}

fn load_in_new_folder(chunks: &[Bytes]) -> Result<(), LoadError> {
    let folder = tempfile::tempdir().unwrap();
    load(folder.path(), chunks).map(|_| ())
}

#[test]
fn a_loaded_snapshot_is_the_state_that_was_read() {
    let lab = lab();
    for bytes_max in [1, 7, 1000, 1 << 20] {
        let chunks = stream(lab.view(), bytes_max);
        assert!(chunks.iter().rev().skip(1).all(|chunk| chunk.len() == bytes_max));
        let folder = tempfile::tempdir().unwrap();
        let store = load(folder.path(), &chunks).unwrap();
        let (old, new) = (lab.view(), store.view().unwrap());
        new.verify().unwrap();
        assert_eq!(new.hash(), old.hash());
        assert_eq!((new.applied(), new.revision()), (old.applied(), old.revision()));
        assert_eq!(new.compact_revision(), old.compact_revision());
        assert_eq!(new.membership().unwrap(), old.membership().unwrap());
        assert_eq!(new.leases().unwrap(), old.leases().unwrap());
        let lease = LeaseId::from(1);
        assert_eq!(new.lease(lease).unwrap(), old.lease(lease).unwrap());
        let events = |view: &View| {
            let events = view.events(&cursor(.., 14), view.revision(), usize::MAX);
            show_changes(&events.unwrap().unwrap().changes)
        };
        assert_eq!(events(&new), events(&old));
        for at in 14..=old.revision().get() {
            let op = super::kit::txn([], [Op::range(..).at(Revision::from(at))], []);
            assert_eq!(new.query(&op).unwrap(), old.query(&op).unwrap());
        }
        assert_eq!(stream(new, 1 << 20), stream(old, 1 << 20), "and it streams the same");
    }
}

#[test]
fn the_stream_does_not_show_how_far_physical_compaction_has_come() {
    let lab = lab();
    let before = stream(lab.view(), 4096);
    for rows_max in [1, 2, 5, 100] {
        lab.store().compact_step(rows_max).unwrap();
        lab.view().verify().unwrap();
        assert!(stream(lab.view(), 4096) == before, "after {rows_max} more rows");
    }
}

#[test]
fn a_loaded_store_goes_on_where_the_other_one_was() {
    let mut lab = lab();
    let folder = tempfile::tempdir().unwrap();
    let store = load(folder.path(), &stream(lab.view(), 4096)).unwrap();
    let put = crate::types::TxnOp::single(Op::put("next", vec![1; 500]).0);
    let entry = lab.entry(super::kit::body(Command::Txn(put)));
    let there = lab.store().apply(std::slice::from_ref(&entry)).unwrap();
    let here = store.apply(&[entry]).unwrap();
    assert_eq!(here.outcomes, there.outcomes);
    assert_eq!(store.view().unwrap().hash(), lab.view().hash());
    store.view().unwrap().verify().unwrap();
}

#[test]
fn a_snapshot_of_an_empty_state_loads() {
    let lab = Lab::new();
    let folder = tempfile::tempdir().unwrap();
    let store = load(folder.path(), &stream(lab.view(), 100)).unwrap();
    assert_eq!(store.view().unwrap().applied(), None);
    assert_eq!(store.view().unwrap().revision(), Revision::FIRST);
}

#[test]
fn a_stream_of_a_newer_version_is_the_senders_mistake_and_no_fault_of_this_member() {
    let refused = load_in_new_folder(&[Bytes::from_static(b"QSNP\x04")]);
    assert!(matches!(refused, Err(LoadError::Malformed(_))), "{refused:?}");
}

#[test]
fn the_bytes_of_a_stream_are_golden() {
    let chunks = stream(Lab::new().view(), 1 << 20);
    let mut golden = b"QSNP\x04".to_vec();
    golden.extend(b"\x09\x00\x06format\x00\x00\x00\x09\x01\x00\x04\x00\x01");
    golden.extend(crc32c::crc32c(b"\x09format\x01\x00\x04\x00\x01").to_be_bytes());
    let mut head = vec![1, 0]; // version, nothing applied
    head.extend([0, 0, 0, 0, 0, 0, 0, 1]); // revision
    // compact revision, keys, chosen lease, chosen client, clients, their age, ages, room, hash
    head.extend([0; 8 + 8 + 8 + 3 * 8 + 80 + 1 + 16]);
    let sum = crc32c::crc32c_append(crc32c::crc32c(b"\x09head"), &head);
    golden.extend(b"\x09\x00\x04head\x00\x00\x00\x9f");
    golden.extend(head);
    golden.extend(sum.to_be_bytes());
    golden.extend(b"\xff\x00\x00\x00\x00\x00\x00\x00\x02");
    golden.extend(crc32c::crc32c(&golden).to_be_bytes());
    assert_eq!(chunks.concat().escape_ascii().to_string(), golden.escape_ascii().to_string());
}

#[test]
fn a_folder_with_a_state_or_half_of_one_takes_no_snapshot() {
    let lab = lab();
    let chunks = stream(lab.view(), 1000);
    let folder = lab.close();
    assert!(matches!(load(folder.path(), &chunks), Err(LoadError::Fault(_))));

    let folder = tempfile::tempdir().unwrap();
    let mut loader = SnapshotLoader::new_with(folder.path(), MAP_BYTES, Sync::Never).unwrap();
    loader.push(&chunks[..chunks.len() / 2].concat().into()).unwrap();
    loader.load().unwrap();
    drop(loader);
    let fault = Store::open_with(folder.path(), MAP_BYTES, Sync::Never).unwrap_err();
    assert!(fault.to_string().contains("format is missing"), "{fault}");
}

/// The stream of [`lab`], made once.
fn whole() -> &'static [u8] {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    WHOLE.get_or_init(|| stream(lab().view(), 1 << 20).concat())
}

fn refused(bytes: impl Into<Vec<u8>>) -> bool {
    load_in_new_folder(&[Bytes::from(bytes.into())]).is_err()
}

#[test]
fn a_torn_or_lengthened_stream_is_refused() {
    assert!(!refused(whole()));
    for length in (0..whole().len()).step_by(97).chain([whole().len() - 1]) {
        assert!(refused(&whole()[..length]), "{length} bytes");
    }
    assert!(refused([whole(), b"\0"].concat()));
    assert!(refused([whole(), whole()].concat()));
}

#[test]
fn reordered_doubled_and_missing_pieces_are_refused() {
    let chunks = stream(lab().view(), 500);
    assert!(load_in_new_folder(&chunks).is_ok());
    for at in 0..chunks.len() - 1 {
        let mut swapped = chunks.clone();
        swapped.swap(at, at + 1);
        assert!(swapped == chunks || load_in_new_folder(&swapped).is_err(), "swapped at {at}");
        let mut doubled = chunks.clone();
        doubled.insert(at, chunks[at].clone());
        assert!(load_in_new_folder(&doubled).is_err(), "doubled at {at}");
        let mut missing = chunks.clone();
        missing.remove(at);
        assert!(load_in_new_folder(&missing).is_err(), "missing at {at}");
    }
}

#[test]
fn a_lie_about_a_length_fills_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut loader = SnapshotLoader::new_with(folder.path(), MAP_BYTES, Sync::Never).unwrap();
    loader.push(&Bytes::from_static(b"QSNP\x04\x01\x00\x01k\xff\xff\xff\xff")).unwrap();
    assert!(matches!(loader.load(), Err(LoadError::Malformed("a row that is too long"))));
    assert!(loader.push(&Bytes::from_static(b"more")).is_ok());
    assert!(loader.finish().is_err(), "and after an error nothing is believed");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn a_stream_with_any_other_byte_is_refused(at in 0..whole().len(), change in 1..=255u8) {
        let mut bytes = whole().to_vec();
        bytes[at] ^= change;
        prop_assert!(refused(bytes));
    }

    #[test]
    fn random_bytes_after_a_header_are_refused(rest in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(refused([&b"QSNP\x04"[..], &rest].concat()));
    }
}
