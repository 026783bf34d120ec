//! What the kernel says of a process: memory, processor time, bytes handed to the disk.

use std::fs;

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

/// Nanoseconds that all threads of a process have run.
pub(crate) fn processor_ns(pid: u32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let of_thread = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    };
    threads.flatten().filter_map(of_thread).sum()
}

/// Bytes that a process has caused to be written to the disk.
pub(crate) fn written_bytes(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let written = io.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    written.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0)
}
