//! A file that says it is a backup.
//!
//! One that is refused is damaged, or of another version: it is never a fault of the disk that it is restored to. One that
//! is restored is a state like any other: it verifies, and goes on.

use super::super::Store;
use super::super::backup::Inspector;
#[cfg(test)]
use super::super::backup::Origin;
use super::super::restore::Restorer;
use super::snapshot::{believe, go_on, repaired};
use super::{MAP_BYTES, close, emptied};
use crate::error::{Fault, Reason};
use crate::lmdb::Sync;
use std::path::Path;

/// A backup, pushed in pieces: looked at, and restored.
pub(crate) fn backup(folder: &Path, input: &[u8]) {
    let Some((how, bytes)) = input.split_first() else { return };
    let bytes = if how & 1 == 1 { sealed(bytes) } else { bytes.to_vec() };
    let cut = (bytes.len() / (1 + usize::from(how >> 1) % 8)).max(1);
    let inspected = inspect(&bytes, cut);
    match restore(folder, &bytes, cut) {
        Ok(store) => {
            let info = inspected.expect("what can be restored was looked at");
            assert_eq!(info.bytes, bytes.len() as u64);
            believe(&store);
            go_on(&store);
            close(store);
        }
        Err(fault) => assert!(is_refusal(&fault), "a backup is no fault of this member: {fault}"),
    }
}

fn inspect(bytes: &[u8], cut: usize) -> Result<crate::types::BackupInfo, Fault> {
    let mut inspector = Inspector::new();
    let read = bytes.chunks(cut).try_for_each(|piece| inspector.inspect(piece));
    let inspected = read.and_then(|()| inspector.info());
    if let Err(fault) = &inspected {
        assert!(is_refusal(fault), "{fault}");
        if let Reason::BackupDamaged { offset, .. } = fault.reason() {
            assert!(*offset <= bytes.len() as u64, "{fault}");
        }
    }
    inspected
}

fn restore(folder: &Path, bytes: &[u8], cut: usize) -> Result<Store, Fault> {
    let mut restorer = Restorer::new_with(&emptied(folder), MAP_BYTES, 1000, Sync::Never)?;
    bytes.chunks(cut).try_for_each(|piece| restorer.push(piece))?;
    restorer.finish().map(|(store, _)| store)
}

/// A revision that has no thousandth after it is refused as an option.
fn is_refusal(fault: &Fault) -> bool {
    let reason = fault.reason();
    matches!(
        reason,
        Reason::BackupDamaged { .. } | Reason::UnreadableFormat { .. } | Reason::BadOption { .. }
    )
}

/// The same header with its checksum put right, and the same rows with theirs.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    const LENGTH_AT: usize = 21;
    let length = bytes.get(LENGTH_AT..).and_then(<[u8]>::first_chunk);
    let length = length.map_or(0, |length| u32::from_be_bytes(*length) as usize);
    let Some((header, rest)) = bytes.split_at_checked((LENGTH_AT + 4).saturating_add(length))
    else {
        return bytes.to_vec();
    };
    let sum = crc32c::crc32c(header).to_be_bytes();
    [header, &sum, &repaired(rest.get(4..).unwrap_or_default())].concat()
}

#[cfg(test)]
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let stream = super::snapshot::stream_of_everything();
    let origin = Origin { group: 1 << 100, name: "group".into() };
    let header = origin.header().unwrap();
    let whole = [&header, &stream[..]].concat();
    let seed = |how: u8, name: &str, bytes: &[u8]| (name.to_owned(), [&[how], bytes].concat());
    vec![
        seed(0, "whole", &whole),
        seed(1, "whole-sealed", &whole),
        seed(7, "whole-in-pieces", &whole),
        seed(0, "cut-off", &whole[..whole.len() - 1]),
        seed(0, "header-cut-off", &header[..header.len() - 1]),
        seed(0, "no-header", &stream),
        seed(0, "a-newer-version", b"QBKP\x02"),
        seed(0, "a-wild-length", &[&header[..21], &[0xff; 40]].concat()),
    ]
}
