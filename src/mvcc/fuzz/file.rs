//! A file of LMDB in which bytes have changed.
//!
//! LMDB believes every number in its file, so a file is looked over before it is opened. Whatever that lets through must
//! not end the process: rows may be refused, nothing may crash, and what is written on top must be believed again.

use super::super::{Body, Entry, LogPosition, SnapshotReader, Store};
use super::{MAP_BYTES, close, emptied, open};
use crate::api::{Command, Proposal};
use crate::lmdb::Sync;
use crate::types::{KeyRange, LeaseId, Op, TxnOp};
use bytes::Bytes;
use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The bytes of a patch before those that it puts.
const PATCH_HEAD_BYTES: usize = 4;
/// What LMDB writes, and what it follows: the head of a page with the first of its offsets, or all of a meta.
const PAGE_BYTES: usize = 4096;
const PAGE_HEAD_BYTES: usize = 160;
/// Patches of one file.
const PATCHES_MAX: usize = 32;

/// A file that was whole, but for some patches.
pub(crate) fn lmdb_file(folder: &Path, input: &[u8]) {
    let Some((which, patches)) = input.split_first() else { return };
    let images = images(folder);
    let file = patched(&images[usize::from(*which) % images.len()], patches);
    let state = emptied(folder);
    fs::create_dir_all(&state).expect("the folder can be made");
    fs::write(state.join("data.mdb"), file).expect("the file can be written");
    let Ok(store) = Store::open_with(&state, MAP_BYTES, Sync::Never) else { return };
    let was_written = use_it(&store);
    close(store);
    if was_written {
        let again = Store::open_with(&state, MAP_BYTES, Sync::Never);
        close(again.expect("what LMDB has written is believed"));
    }
}

/// Everything that a member does with a state. Returns whether it wrote to it.
fn use_it(store: &Store) -> bool {
    let Ok(view) = store.view() else { return false };
    let _ = view.verify();
    let everything = TxnOp::single(Op::range(KeyRange::all()).0);
    let _ = view.query(&everything);
    let _ = (view.leases(), view.membership());
    let applied = view.applied();
    let mut reader = SnapshotReader::new(view);
    while let Ok(Some(_)) = reader.next_chunk(1 << 16) {}
    drop(reader);
    let mut is_written = false;
    for (op, index) in changes().into_iter().zip(applied.map_or(1, |last| last.index + 1)..) {
        let body = Body::Command(Arc::new(Command::Txn(TxnOp::single(op.0)).into()));
        let position = LogPosition { term: 1, node: 1, index };
        is_written |= store.apply(&[Entry { position, body }]).is_ok();
    }
    let _ = store.compact_step(1000);
    is_written
}

/// Writes that take free pages, split pages, and merge them.
fn changes() -> [Op; 4] {
    [
        Op::put("k05", vec![5; 10]),
        Op::put("k11", vec![6; 9000]),
        Op::delete("k10".."k4"),
        Op::put("m", vec![7; 250]),
    ]
}

/// The image with the patches in it.
///
/// ```text
/// how: u8      0xff              the file ends at `place`
///              0x80 and more     the low four bits say how many bytes, and `place` is a page (u8) and one of its heads' bytes
///              else              how many bytes, and `place` is anywhere
/// place: u24 ++ bytes
/// ```
fn patched(image: &[u8], patches: &[u8]) -> Vec<u8> {
    let (mut file, mut rest) = (image.to_vec(), patches);
    for _ in 0..PATCHES_MAX {
        let Some((&[how, high, middle, low], after)) = rest.split_first_chunk::<PATCH_HEAD_BYTES>()
        else {
            break;
        };
        rest = after;
        let in_page = usize::from(u16::from_be_bytes([middle, low]));
        let place = match how {
            0x80..=0xfe => usize::from(high) * PAGE_BYTES + in_page % PAGE_HEAD_BYTES,
            _ => usize::from(high) << 16 | in_page,
        };
        let place = place % file.len().max(1);
        if how == 0xff {
            file.truncate(place);
            continue;
        }
        let length = if how < 0x80 { how } else { how & 0xf };
        let length = usize::from(length).min(rest.len()).min(file.len() - place);
        let (bytes, after) = rest.split_at(length);
        file[place..place + length].copy_from_slice(bytes);
        rest = after;
    }
    file
}

/// Files that are whole, made once: a small one, and one with branches, long values and lists of free pages.
fn images(folder: &Path) -> &'static [Vec<u8>; 2] {
    static IMAGES: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    IMAGES.get_or_init(|| [image(folder, 3), image(folder, 24)])
}

fn image(folder: &Path, keys: u64) -> Vec<u8> {
    let state = emptied(folder);
    let store = open(&state);
    let mut index = 0;
    let mut apply = |body: Body| {
        index += 1;
        let position = LogPosition { term: 1, node: 1, index };
        store.apply(&[Entry { position, body }]).expect("an image can be made");
    };
    let command = |command: Command| Body::Command(Arc::new(Proposal::from(command)));
    apply(Body::Membership(Bytes::from_static(b"one and two")));
    let lease = LeaseId::from(1);
    apply(command(Command::Grant { id: Some(lease), ttl: Duration::from_secs(60) }));
    for key in 0..keys {
        let length = [10, 200, 300, 5000][key as usize % 4];
        let put = Op::put(format!("k{key:02}"), vec![key as u8; length]);
        let put = if key % 3 == 0 { put.lease(lease) } else { put };
        apply(command(Command::Txn(TxnOp::single(put.0))));
    }
    apply(command(Command::Txn(TxnOp::single(Op::delete("k2".."k3").0))));
    apply(command(Command::Compact((1 + keys / 3).into())));
    store.compact_step(1000).expect("an image can be made");
    close(store);
    fs::read(state.join("data.mdb")).expect("the image is there")
}

#[cfg(test)]
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let patch = |which: u8, how: u8, place: u32, bytes: &[u8]| {
        let place = place.to_be_bytes();
        [&[which, how][..], &place[1..], bytes].concat()
    };
    let seed = |name: &str, bytes: Vec<u8>| (name.to_owned(), bytes);
    // Where the numbers are: `lmdb/audit.rs` has a drawing.
    let (page, flags, lower, nodes) = (4096, 10, 12, 16);
    let mut all = vec![
        seed("small", vec![0]),
        seed("large", vec![1]),
        seed("cut-off", patch(1, 0xff, 3 * page, &[])),
        seed("last-page-of-a-meta", patch(0, 8, 16 + 24 + 96, &[255; 8])),
        seed("root-of-a-meta", patch(0, 8, 16 + 24 + 48 + 40, &[2, 0, 0, 0, 0, 0, 0, 0])),
        seed("transaction-of-a-meta", patch(0, 8, 16 + 24 + 96 + 8, &[255; 8])),
    ];
    for at in 2..12 {
        let of_page =
            |how: u8, place: u8, bytes: &[u8]| [&[1, 0x80 | how, at, 0, place][..], bytes].concat();
        all.push(seed(&format!("flags-of-page-{at}"), of_page(2, flags, &[4, 0])));
        all.push(seed(&format!("bounds-of-page-{at}"), of_page(4, lower, &[255; 4])));
        all.push(seed(&format!("node-of-page-{at}"), of_page(2, nodes, &[16, 0])));
    }
    all
}
