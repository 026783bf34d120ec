//! A disk that lies is found out: a damaged row is a fault that stops the node, not an answer, and not a panic.

use super::kit::{Lab, cursor, rows, txn};
use crate::api::Command;
use crate::error::{Error, ErrorKind, Fault, Reason};
use crate::mvcc::records::{Format, MetaRow, Record, Table};
use crate::mvcc::{Body, Scrub, SnapshotReader, Store, View};
use crate::types::{LeaseId, Op, OpKind, OpResult, Page, RangeOp, Revision, Shows};
use bytes::Bytes;
use std::fs;

/// A state with something in every table but `dedup`.
fn lab() -> Lab {
    let mut lab = Lab::new();
    let lease = lab.grant();
    lab.put("a", "1");
    lab.run(Op::put("a", vec![7; 1000]).lease(lease)).unwrap();
    lab.run(Op::put("b", vec![8; 300]).lease(lease)).unwrap();
    lab.run(Op::put("a\0", "3")).unwrap();
    lab.run(Op::put("b", "4")).unwrap();
    lab.run(Op::delete("a\0")).unwrap();
    let members = lab.entry(Body::Membership(Bytes::from_static(b"one and two")));
    lab.store().apply(&[members]).unwrap();
    lab
}

fn write(store: &Store, table: Table, key: &[u8], row: &[u8]) {
    let mut txn = store.env.write_txn().unwrap();
    store.tables.put_raw(&mut txn, table, key, row).unwrap();
    txn.commit().unwrap();
}

fn remove(store: &Store, table: Table, key: &[u8]) {
    let mut txn = store.env.write_txn().unwrap();
    store.tables.remove(&mut txn, table, key).unwrap();
    txn.commit().unwrap();
}

/// Every kind of read, each with its answer or that there was a fault.
fn answers(view: &View) -> Vec<Result<String, ErrorKind>> {
    let mut all = Vec::new();
    let mut answer = |found: Result<String, Fault>| {
        all.push(found.map_err(|fault| Error::from(fault).kind()));
    };
    for at in [None, Some(2), Some(3), Some(5), Some(6)] {
        for op in [Op::range(..), Op::get("a"), Op::get("b"), Op::get("a\0")] {
            let op = at.map_or(op.clone(), |at: u64| op.at(Revision::from(at)));
            answer(view.query(&txn([], [op], [])).map(|found| format!("{found:?}")));
        }
    }
    for (range, from) in [(.., 0), (.., 4)] {
        let events = view.events(&cursor(range, from), view.revision(), usize::MAX);
        answer(events.map(|events| format!("{events:?}")));
    }
    answer(view.events(&cursor("a", 0), view.revision(), 10).map(|events| format!("{events:?}")));
    answer(view.lease(LeaseId::from(1)).map(|lease| format!("{lease:?}")));
    answer(view.leases().map(|leases| format!("{leases:?}")));
    answer(view.recompute_hash().map(|hash| format!("{hash}")));
    all
}

#[test]
fn a_flipped_byte_of_a_row_is_a_fault_or_does_not_matter() {
    let lab = lab();
    let store = lab.store();
    let right = answers(&lab.view());
    assert!(right.iter().all(Result::is_ok));
    for (table, key, row) in rows(store) {
        for at in 0..row.len() {
            let mut damaged = row.clone();
            damaged[at] ^= 1 << (at % 8);
            write(store, table, &key, &damaged);
            // The head is read when a view is made.
            if let Ok(view) = store.view() {
                let kinds = answers(&view);
                for (answer, right) in kinds.iter().zip(&right) {
                    let is_fault = *answer == Err(ErrorKind::Storage);
                    assert!(is_fault || answer == right, "{table:?} {at}: {answer:?}");
                }
                let verified = view.verify().map_err(|fault| Error::from(fault).kind());
                assert_eq!(verified, Err(ErrorKind::Storage), "{table:?} {at}");
            }
        }
        write(store, table, &key, &row);
    }
    assert_eq!(answers(&lab.view()), right);
    lab.view().verify().unwrap();
}

/// A page that does not count does not look behind its end, where there may be a million keys more.
#[test]
fn who_does_not_count_stops_where_the_page_is_full() {
    let mut lab = Lab::new();
    for number in 10..99 {
        lab.put(&format!("k{number}"), "v");
    }
    let before = Revision::from(lab.put("k10", "w") - 1);
    write(lab.store(), Table::Latest, b"k98", b"no row");
    let page = |shows: Shows| {
        let Op(OpKind::Range(op)) = Op::range(..).limit(10).at(before) else { panic!("a range") };
        let op = Op(OpKind::Range(RangeOp { shows, ..op }));
        lab.view().query(&txn([], [op], []))
    };
    assert!(page(Shows::Both).is_err());
    let found = page(Shows::Entries).unwrap().unwrap().results.remove(0);
    let OpResult::Range(Page { entries, more, count, .. }) = found else { panic!("a page") };
    assert_eq!((entries.len(), more, count), (10, true, 0));
}

#[test]
fn a_missing_or_displaced_row_is_found() {
    let lab = lab();
    let store = lab.store();
    let all = rows(store);
    for (table, key, row) in &all {
        remove(store, *table, key);
        let found = store.view().and_then(|view| view.verify());
        assert!(found.is_err(), "{table:?} {}", key.escape_ascii());
        write(store, *table, key, row);
        let Some((_, other, _)) = all.iter().find(|row| row.0 == *table && row.1 != *key) else {
            continue;
        };
        if !row.is_empty() {
            write(store, *table, other, row);
            let found = store.view().and_then(|view| view.verify());
            assert!(found.is_err(), "{table:?} {}", key.escape_ascii());
            let restored = &all.iter().find(|row| row.0 == *table && row.1 == *other).unwrap().2;
            write(store, *table, other, restored);
        }
    }
    lab.view().verify().unwrap();
}

#[test]
fn a_watch_does_not_step_over_a_missing_event() {
    let lab = lab();
    for lost in [2, 4, 7] {
        let key = crate::mvcc::keys::position(crate::api::Position::start_of(lost.into()));
        let (_, _, row) = rows(lab.store())
            .into_iter()
            .find(|row| row.1 == key && row.0 == Table::Events)
            .unwrap();
        remove(lab.store(), Table::Events, &key);
        let view = lab.view();
        let fault = view.events(&cursor(.., 0), view.revision(), usize::MAX).unwrap_err();
        assert_eq!(Error::from(fault).kind(), ErrorKind::Storage);
        write(lab.store(), Table::Events, &key, &row);
    }
}

#[test]
fn writes_stop_at_a_damaged_row_too() {
    let mut lab = lab();
    let (table, key, row) = rows(lab.store()).remove(0);
    assert_eq!((table, &key[..]), (Table::Latest, &b"a"[..]));
    write(lab.store(), table, &key, &row[1..]);
    let before = lab.view().applied();
    for op in [Op::put("a", "9"), Op::delete(..), Op::put("a", "").ignore_value()] {
        let entry = lab.entry(super::kit::body(Command::Txn(txn([], [op], []))));
        let fault = lab.store().apply(&[entry]).unwrap_err();
        assert!(matches!(Error::from(fault).reason(), Reason::Corrupt { .. }));
        lab.index -= 1;
    }
    assert_eq!(lab.view().applied(), before, "nothing was committed");
}

#[test]
fn a_byte_that_rots_in_the_file_is_not_served() {
    for marker in [&b"a small value that stands in a leaf"[..], &[0xA7; 5000]] {
        let mut lab = Lab::new();
        lab.run(Op::put("a", Bytes::from_static(marker))).unwrap();
        let folder = lab.close();
        let path = folder.path().join("data.mdb");
        let mut bytes = fs::read(&path).unwrap();
        let length = marker.len().min(100);
        let places: Vec<_> = bytes
            .windows(length)
            .enumerate()
            .filter(|(_, window)| *window == &marker[..length])
            .map(|(at, _)| at)
            .collect();
        assert!(!places.is_empty());
        places.iter().for_each(|at| bytes[at + 17] ^= 0x10);
        fs::write(&path, bytes).unwrap();
        let store = super::kit::open(folder.path(), super::kit::MAP_BYTES);
        let found = store.view().unwrap().query(&txn([], [Op::get("a")], []));
        assert!(matches!(Error::from(found.unwrap_err()).reason(), Reason::Corrupt { .. }));
    }
}

#[test]
fn a_state_of_a_newer_version_is_refused_untouched() {
    let lab = lab();
    let newer = Format { schema: Format::CURRENT.schema + 1, codec: Format::CURRENT.codec };
    write(lab.store(), Table::Meta, Format::KEY, &newer.seal(Format::KEY));
    let before = rows(lab.store());
    let folder = lab.close();
    let fault = Store::open(folder.path(), super::kit::MAP_BYTES).unwrap_err();
    assert!(matches!(Error::from(fault).reason(), Reason::UnreadableFormat { .. }));

    let folder_text = folder.path().join("data.mdb");
    fs::write(&folder_text, b"not an environment").unwrap();
    let fault = Store::open(folder.path(), super::kit::MAP_BYTES).unwrap_err();
    assert_eq!(Error::from(fault).kind(), ErrorKind::Storage);
    assert!(!before.is_empty());
}

#[test]
fn a_row_of_a_newer_version_is_refused_as_such() {
    let lab = lab();
    let (table, key, row) = rows(lab.store()).remove(0);
    let content = &row[1..row.len() - 4];
    let newer = [&[2][..], content].concat();
    let sum = crc32c::crc32c_append(crc32c::crc32c(&[table as u8]), &key);
    let sum = crc32c::crc32c_append(sum, &newer);
    write(lab.store(), table, &key, &[&newer[..], &sum.to_be_bytes()].concat());
    let fault = lab.view().query(&txn([], [Op::get("a")], [])).unwrap_err();
    assert!(matches!(Error::from(fault).reason(), Reason::UnreadableFormat { .. }));
}

#[test]
fn a_full_disk_is_a_fault_that_leaves_the_last_batch_whole() {
    let mut lab = Lab::with_map(1 << 20);
    let mut committed = lab.view().hash();
    let fault = loop {
        let put = Command::Txn(txn([], [Op::put(lab.index.to_string(), vec![1; 40_000])], []));
        let entry = lab.entry(super::kit::body(put));
        match lab.store().apply(&[entry]) {
            Ok(_) => committed = lab.view().hash(),
            Err(fault) => break fault,
        }
    };
    assert_eq!(Error::from(fault).kind(), ErrorKind::Storage);
    let view = lab.view();
    assert_eq!(view.hash(), committed);
    assert_eq!(view.applied().unwrap().index, lab.index - 1);
    view.verify().unwrap();
}

/// Where the pages of a live file are that LMDB finds its way by, in the layout that `lmdb/audit.rs` draws.
struct Pages(Vec<u8>);

impl Pages {
    const BYTES: usize = 4096;
    const BRANCH: u16 = 1;
    const LEAF: u16 = 2;

    #[expect(clippy::host_endian_bytes, reason = "LMDB's files are in the byte order of the host")]
    fn short(&self, at: usize) -> usize {
        u16::from_ne_bytes([self.0[at], self.0[at + 1]]).into()
    }

    /// Where pages of a kind begin that hold a key with this prefix.
    fn with(&self, kind: u16, prefix: &[u8]) -> Vec<usize> {
        let pages = (2..self.0.len() / Self::BYTES).map(|page| page * Self::BYTES);
        let is_kind = |at: &usize| self.short(at + 10) == usize::from(kind);
        let holds = |at: &usize| {
            self.0[*at..at + Self::BYTES].windows(prefix.len()).any(|window| window == prefix)
        };
        pages.filter(is_kind).filter(holds).collect()
    }

    /// Where a node of a page begins.
    fn node(&self, page: usize, number: usize) -> usize {
        page + self.short(page + 16 + 2 * number)
    }

    /// One key less on a leaf.
    fn without_last_key(&self, leaf: usize) -> (usize, Vec<u8>) {
        (leaf + 12, vec![self.0[leaf + 12].wrapping_sub(2)])
    }

    /// A way to the second page below that begins too late.
    fn with_late_way(&self, branch: usize) -> (usize, Vec<u8>) {
        let node = self.node(branch, 1);
        let end = node + 8 + self.short(node + 6);
        (end - 1, vec![self.0[end - 1] ^ 0x40])
    }

    /// A way to the second page below that leads to the first again.
    fn with_way_back(&self, branch: usize) -> (usize, Vec<u8>) {
        let [first, second] = [0, 1].map(|number| self.node(branch, number));
        (second, self.0[first..first + 6].to_vec())
    }
}

/// Which bytes stand where instead, on a page that begins there.
type Damage = fn(&Pages, usize) -> (usize, Vec<u8>);

/// The bits rot while the file is mapped, so nobody looks it over; and the rows are all there.
#[test]
fn a_page_that_leads_past_rows_is_found() {
    use std::os::unix::fs::FileExt;
    let mut lab = Lab::new();
    let puts = (0..2000).map(|n| Command::Txn(txn([], [Op::put(format!("rot-{n:06}"), "v")], [])));
    lab.batch(puts);
    let path = lab.folder.path().join("data.mdb");
    let pages = Pages(fs::read(&path).unwrap());
    let file = fs::File::options().write(true).open(&path).unwrap();
    let all = |view: View| {
        let mut scrub = Scrub::new(view);
        loop {
            match scrub.step(4096) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(fault) => return Err(fault),
            }
        }
    };
    let there = || (0..2000).filter(|n| lab.get(&format!("rot-{n:06}")).is_some()).count();
    let prefix = b"rot-00";
    let damages: [(u16, Damage); 3] = [
        (Pages::LEAF, Pages::without_last_key),
        (Pages::BRANCH, Pages::with_late_way),
        (Pages::BRANCH, Pages::with_way_back),
    ];
    for (number, (kind, damage)) in damages.into_iter().enumerate() {
        let mut times = 0;
        for page in pages.with(kind, prefix) {
            let (at, other) = damage(&pages, page);
            file.write_all_at(&other, at as u64).unwrap();
            // Pages that are free by now may look the same.
            if there() < 2000 {
                let fault = all(lab.view()).unwrap_err();
                assert!(fault.is_of_tables(), "{fault:?}");
                let mut reader = SnapshotReader::new(lab.view());
                let sent = std::iter::from_fn(|| reader.next_chunk(4096).transpose());
                // Whoever goes over all rows comes by those whose way is too late.
                let is_whole = sent.collect::<Result<Vec<_>, _>>().is_ok();
                assert_eq!(is_whole, number == 1, "damage {number}");
                times += 1;
            }
            file.write_all_at(&pages.0[at..at + other.len()], at as u64).unwrap();
            all(lab.view()).unwrap();
        }
        assert!(times > 0, "nothing was hidden by damage {number}");
    }
}
