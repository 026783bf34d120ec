//! The physical limits of the machine, measured beside every comparison.
//!
//! A figure without them says little: a put waits for a disk and for the network, and both differ a hundredfold between
//! machines. Who reads a report later can tell from these what a store could have done at best, and whether two reports
//! came from machines that are alike at all.
//!
//! ```text
//! fdatasync      one write in place, and it is on the disk      what a put of a single caller waits for
//! batched        256 small records, one fdatasync               what many callers can share
//! loopback       64 bytes there and back                        what a call to another process costs
//! copy           64 MiB from memory to memory                   what large values cost
//! ```
//!
//! Each is measured for a fixed time and not for a fixed number of turns, so that a slow disk makes the result coarse
//! and not the run long. The plain system calls are used, without a runtime, because a limit must not contain what is
//! compared with it.

use crate::report::{Limits, Machine};
use crate::store::Result;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

const PAGE_BYTES: usize = 4096;
/// The file that is written in place: larger than what a disk merges, small enough to allocate at once.
const FILE_PAGES: u64 = 4096;
const RECORD_BYTES: usize = 300;
const BATCH_RECORDS: usize = 256;
/// Where the file that is appended to begins again, so that a fast disk is not filled.
const APPENDED_BYTES_MAX: u64 = 64 << 20;
const MESSAGE_BYTES: usize = 64;
const COPY_BYTES: usize = 64 << 20;

/// Measures all limits, the disk's in `folder`. Takes less than 2 seconds if `quick`, otherwise less than 10.
pub(crate) fn measure(folder: &Path, quick: bool) -> Result<Limits> {
    let time = Duration::from_millis(if quick { 350 } else { 2000 });
    let syncs = sync_in_place(folder, time)?;
    let trips = loopback(time)?;
    let copies = copy(time);
    Ok(Limits {
        fdatasync_p50_us: percentile(&syncs, 0.5),
        fdatasync_p99_us: percentile(&syncs, 0.99),
        batched_records_per_second: append_batches(folder, time)?,
        loopback_p50_us: percentile(&trips, 0.5),
        copy_bytes_per_second: COPY_BYTES as f64 / (percentile(&copies, 0.5) / 1e6),
    })
}

/// Prints the limits as a small table.
pub(crate) fn print(limits: &Limits) {
    println!("limits of this machine");
    for (name, value) in table(limits) {
        println!("  {name:<42} {value:>14}");
    }
}

/// Describes the machine, and the file system of `folder`. What cannot be found out is empty or 0.
pub(crate) fn machine(folder: &Path) -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    Machine {
        cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or(std::env::consts::ARCH).into(),
        cores: std::thread::available_parallelism().map_or(0, |cores| cores.get() as u32),
        memory_bytes: field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|value| value.strip_suffix(" kB")?.parse::<u64>().ok())
            .map_or(0, |kib| kib * 1024),
        kernel: read("/proc/sys/kernel/osrelease").trim().into(),
        file_system: fs::canonicalize(folder)
            .ok()
            .and_then(|folder| file_system(&read("/proc/self/mountinfo"), &folder))
            .unwrap_or_default(),
    }
}

/// The times of single writes in place, each with its `fdatasync`, in microseconds and rising.
fn sync_in_place(folder: &Path, time: Duration) -> Result<Vec<f64>> {
    let mut file = tempfile::tempfile_in(folder)?;
    // Written and not only reserved: the first write to a reserved block changes metadata, which is synced as well.
    for _ in 0..FILE_PAGES {
        file.write_all(&[1; PAGE_BYTES])?;
    }
    file.sync_all()?;
    let mut page = 0;
    sample(time, || {
        file.write_all_at(&[page as u8; PAGE_BYTES], page % FILE_PAGES * PAGE_BYTES as u64)?;
        file.sync_data()?;
        page += 1;
        Ok(())
    })
}

/// Records per second, if they are appended 256 at a time and then synced.
fn append_batches(folder: &Path, time: Duration) -> Result<f64> {
    let file = tempfile::tempfile_in(folder)?;
    let batch = [2; RECORD_BYTES * BATCH_RECORDS];
    let (mut end, mut batches, mut spent) = (0, 0, Duration::ZERO);
    let began = Instant::now();
    while began.elapsed() < time || batches == 0 {
        if end + batch.len() as u64 > APPENDED_BYTES_MAX {
            begin_again(&file)?;
            end = 0;
        }
        let before = Instant::now();
        file.write_all_at(&batch, end)?;
        file.sync_data()?;
        spent += before.elapsed();
        batches += 1;
        end += batch.len() as u64;
    }
    Ok((batches * BATCH_RECORDS) as f64 / spent.as_secs_f64())
}

/// Empties a file. What that costs is not a part of appending, so it is synced here.
fn begin_again(file: &File) -> Result {
    file.set_len(0)?;
    file.sync_all()?;
    Ok(())
}

/// The times of round trips between two threads, in microseconds and rising.
fn loopback(time: Duration) -> Result<Vec<f64>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let echo = std::thread::spawn(move || answer(far));
    let mut message = [3; MESSAGE_BYTES];
    let trips = sample(time, || {
        near.write_all(&message)?;
        near.read_exact(&mut message)?;
        Ok(())
    });
    // Closing is what ends the other thread.
    drop(near);
    echo.join().map_err(|_| "the echoing thread panicked")?;
    trips
}

/// Sends back whatever comes, until the connection is closed.
fn answer(mut stream: TcpStream) {
    let mut message = [0; MESSAGE_BYTES];
    while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {}
}

/// The times of copying 64 MiB, in microseconds and rising.
fn copy(time: Duration) -> Vec<f64> {
    let from = vec![4_u8; COPY_BYTES];
    // Written before it is timed, or the first copy would pay for the pages.
    let mut to = vec![5_u8; COPY_BYTES];
    sample(time, || {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
        Ok(())
    })
    .expect("copying in memory does not fail")
}

/// Repeats something for a while, at least once, and returns how long each turn took, in microseconds and rising.
fn sample(time: Duration, mut turn: impl FnMut() -> Result) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    let began = Instant::now();
    while began.elapsed() < time || times.is_empty() {
        let before = Instant::now();
        turn()?;
        times.push(before.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The smallest of the times that is not less than the given share of them.
fn percentile(rising: &[f64], share: f64) -> f64 {
    let rank = (rising.len() as f64 * share).ceil() as usize;
    rising.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn table(limits: &Limits) -> [(&'static str, String); 5] {
    [
        ("4 KiB in place and fdatasync, median", format!("{:.0} µs", limits.fdatasync_p50_us)),
        ("4 KiB in place and fdatasync, 99 %", format!("{:.0} µs", limits.fdatasync_p99_us)),
        (
            "300 B appended, fdatasync for each 256",
            format!("{:.0} /s", limits.batched_records_per_second),
        ),
        ("64 B over loopback and back, median", format!("{:.1} µs", limits.loopback_p50_us)),
        (
            "copying 64 MiB in memory",
            format!("{:.1} GiB/s", limits.copy_bytes_per_second / f64::from(1 << 30)),
        ),
    ]
}

/// The value of the first line `name : value` of a file in `/proc`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then_some(value.trim())
    })
}

/// The type of the file system that a folder lies on, from the text of `mountinfo`.
///
/// The device number would be simpler, but btrfs and overlays show another one to `stat` than here.
fn file_system(mounts: &str, folder: &Path) -> Option<String> {
    mounts
        .lines()
        .filter_map(|line| {
            // 36 35 98:0 /root /mount/point options optional… - type source options
            let (before, after) = line.split_once(" - ")?;
            let point = unescape(before.split(' ').nth(4)?);
            let depth = Path::new(&point).components().count();
            folder.starts_with(&point).then_some((depth, after.split(' ').next()?))
        })
        // The last of those that are equally deep: it hides the others.
        .max_by_key(|(depth, _)| *depth)
        .map(|(_, kind)| kind.to_string())
}

/// Spaces and the like are written as `\040` in `mountinfo`.
fn unescape(point: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(point.to_string(), |point, (escape, plain)| point.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_measured_in_the_time_that_was_promised() {
        let folder = tempfile::tempdir().unwrap();
        let began = Instant::now();
        let limits = measure(folder.path(), true).unwrap();
        // Generous: the disk of a busy machine may take long to allocate the file.
        assert!(began.elapsed() < Duration::from_secs(20));
        for (name, value) in [
            ("fdatasync p50", limits.fdatasync_p50_us),
            ("batched", limits.batched_records_per_second),
            ("loopback", limits.loopback_p50_us),
            ("copy", limits.copy_bytes_per_second),
        ] {
            assert!(value.is_finite() && value > 0.0, "{name} is {value}");
        }
        assert!(limits.fdatasync_p50_us <= limits.fdatasync_p99_us);
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "a file was left behind");
        print(&limits);
    }

    #[test]
    fn the_machine_is_described() {
        let folder = tempfile::tempdir().unwrap();
        let machine = machine(folder.path());
        println!("{machine:?}");
        assert!(machine.cores > 0 && machine.memory_bytes > 0);
        assert!(!machine.cpu.is_empty() && !machine.kernel.is_empty());
        assert!(!machine.file_system.is_empty());
    }

    #[test]
    fn the_deepest_and_last_mount_names_the_file_system() {
        let mounts = "\
            1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
            2 1 0:5 / /data rw shared:1 - xfs /dev/sdb rw\n\
            3 1 0:6 / /data rw - btrfs /dev/sdc rw\n\
            4 1 0:7 / /with\\040space rw - tmpfs none rw\n";
        let of = |folder: &str| file_system(mounts, Path::new(folder));
        assert_eq!(of("/home"), Some("ext4".into()));
        assert_eq!(of("/data/group"), Some("btrfs".into()));
        assert_eq!(of("/database"), Some("ext4".into()));
        assert_eq!(of("/with space/x"), Some("tmpfs".into()));
        assert_eq!(file_system("", Path::new("/")), None);
    }

    #[test]
    fn a_percentile_is_one_of_the_times() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.5), 50.0);
        assert_eq!(percentile(&hundred, 0.99), 99.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
