//! What the kernel says: of a process its memory and processor time, of a disk what it was given to write.
//!
//! What a process writes is not asked of the process. The kernel counts there what becomes dirty in memory, and it counts
//! whole folios: where those are large, a page that is written again and again is counted as many pages each time. The
//! device counts what reaches it, from whomever it comes; so a machine that measures should do nothing else.

use crate::store::Result;
use rustix::fs::{major, minor};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a process's memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// All that is in memory, pages of mapped files included.
    pub(crate) resident: u64,
    /// What is the process's own: heap and stacks.
    pub(crate) anonymous: u64,
}

pub(crate) fn memory(pid: u32) -> Memory {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let bytes = |name| kilobytes(name).unwrap_or(0) * 1024;
    Memory { resident: bytes("VmRSS:"), anonymous: bytes("RssAnon:") }
}

/// How many threads a process has.
pub(crate) fn threads(pid: u32) -> u64 {
    names(format!("/proc/{pid}/task"))
}

/// How many files and sockets a process has open.
pub(crate) fn descriptors(pid: u32) -> u64 {
    names(format!("/proc/{pid}/fd"))
}

fn names(folder: String) -> u64 {
    fs::read_dir(folder).map_or(0, |names| names.count() as u64)
}

/// Nanoseconds that all threads of a process have run.
pub(crate) fn processor_ns(pid: u32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let of_thread = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    };
    threads.flatten().filter_map(of_thread).sum()
}

/// Bytes that the disk below a folder has been given to write since the machine was started, by everybody.
pub(crate) fn disk_written_bytes(folder: &Path) -> Result<u64> {
    let device = fs::metadata(folder)?.dev();
    let path = format!("/sys/dev/block/{}:{}/stat", major(device), minor(device));
    let missing =
        |error| format!("{} lies on no disk that counts: {path}: {error}", folder.display());
    let stat = fs::read_to_string(&path).map_err(missing)?;
    sectors_written(&stat)
        .map(|sectors| sectors * 512)
        .ok_or_else(|| format!("{path} has another layout").into())
}

/// The seventh field, in sectors of 512 bytes whatever the disk's own are.
fn sectors_written(stat: &str) -> Option<u64> {
    stat.split_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_sectors_written_are_the_seventh_field() {
        let stat =
            "  297290 12485 13397250 622621 4420007 140275 77454072 3293661 0 176756 4026703";
        assert_eq!(sectors_written(stat), Some(77_454_072));
        assert_eq!(sectors_written("1 2 3"), None);
    }

    #[test]
    fn what_is_synced_is_counted() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let before = match disk_written_bytes(folder.path()) {
            Ok(bytes) => bytes,
            // A file system of several disks, or of none.
            Err(error) => return eprintln!("not tested: {error}"),
        };
        let mut file = tempfile::tempfile_in(folder.path()).unwrap();
        file.write_all(&vec![1; 1 << 20]).unwrap();
        file.sync_all().unwrap();
        assert!(disk_written_bytes(folder.path()).unwrap() - before >= 1 << 20);
    }
}
