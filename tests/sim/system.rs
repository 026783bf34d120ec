//! The C library's functions that a simulation takes over: randomness, the clock, and everything that changes files.
//!
//! The linker prefers a function of the program to one of a shared library, so those below are what LMDB, the standard
//! library and every crate call. Outside of a simulation each does what the system would.
//!
//! ```text
//! getrandom, clock_gettime ──▶ the seed, and the time of the simulation
//! open pwrite fdatasync rename … ──▶ the system, and a note in the [disk](super::disk)
//! ```
//!
//! Invariant: nothing here allocates, locks or fails for a file that is not of the simulated disk, but for a look at
//! its path or its number.

#![allow(unsafe_code, reason = "functions of the C library are replaced")]
#![allow(clippy::missing_safety_doc, reason = "each is as safe as the one it replaces")]

use crate::dice::Dice;
use crate::disk;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

static RANDOM: Mutex<Option<Dice>> = Mutex::new(None);
/// Nanoseconds; 0 is the system's own.
static CLOCK: AtomicU64 = AtomicU64::new(0);

/// When a simulation begins: a while after the beginning of time, so that something can be taken off. And before the
/// system's own time, so that who waits for a lock with a limit, which nobody can let go of meanwhile, gives up at once.
const BEGINNING: Duration = Duration::from_secs(100);

/// From now on this process's randomness comes from `dice`.
pub fn take_over_randomness(dice: Dice) {
    *RANDOM.lock().unwrap() = Some(dice);
}

/// From now on it is so long since the beginning.
pub fn set_clock(now: Duration) {
    CLOCK.store((BEGINNING + now).as_nanos() as u64, Ordering::Relaxed);
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: u32) -> isize {
    let mut random = RANDOM.lock().unwrap();
    let Some(dice) = random.as_mut() else {
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize };
    };
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&dice.next().to_be_bytes()[..chunk.len()]);
    }
    length as isize
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    let now = Duration::from_nanos(CLOCK.load(Ordering::Relaxed));
    if now.is_zero() {
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int };
    }
    let time = unsafe { &mut *time };
    time.tv_sec = now.as_secs() as libc::time_t;
    time.tv_nsec = i64::from(now.subsec_nanos());
    0
}

/// Ends this process after so many seconds, by the system's clock.
pub fn end_after(seconds: u32) {
    unsafe { libc::alarm(seconds) };
}

/// Keeps this process on one processor: its threads run one at a time, and hand over faster there. Whoever is woken waits
/// until the other sleeps, instead of running into the lock that the other still holds.
pub fn stay_on(processor: usize) {
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let batch = libc::sched_param { sched_priority: 0 };
    unsafe {
        libc::CPU_SET(processor, &mut set);
        // Where that is not allowed it is only slower.
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
        libc::sched_setscheduler(0, libc::SCHED_BATCH, &batch);
    }
}

fn fail(error: c_int) -> isize {
    unsafe { *libc::__errno_location() = error };
    -1
}

/// The path that a call names.
unsafe fn path(folder: c_int, name: *const c_char) -> PathBuf {
    let name = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes()));
    if name.is_absolute() || folder == libc::AT_FDCWD {
        return name.to_owned();
    }
    match std::fs::read_link(format!("/proc/self/fd/{folder}")) {
        Ok(folder) => folder.join(name),
        Err(_) => name.to_owned(),
    }
}

unsafe fn open_at(folder: c_int, name: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    let open = || unsafe { libc::syscall(libc::SYS_openat, folder, name, flags, mode) as c_int };
    if !disk::is_on() {
        return open();
    }
    let path = unsafe { path(folder, name) };
    let change = match disk::before_open(&path, flags) {
        Ok(change) => change,
        Err(error) => return fail(error) as c_int,
    };
    let opened = open();
    if opened >= 0 {
        disk::opened(opened, &path, flags, change);
    }
    opened
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(name: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    unsafe { open_at(libc::AT_FDCWD, name, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(name: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    unsafe { open_at(libc::AT_FDCWD, name, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(
    folder: c_int,
    name: *const c_char,
    flags: c_int,
    mode: libc::mode_t,
) -> c_int {
    unsafe { open_at(folder, name, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(
    folder: c_int,
    name: *const c_char,
    flags: c_int,
    mode: libc::mode_t,
) -> c_int {
    unsafe { open_at(folder, name, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(file: c_int) -> c_int {
    if disk::is_on() {
        disk::closed(file);
    }
    unsafe { libc::syscall(libc::SYS_close, file) as c_int }
}

/// Writes, or does what the disk says instead.
unsafe fn write_at(file: c_int, bytes: *const c_void, length: usize, at: Option<i64>) -> isize {
    let write = || unsafe {
        match at {
            Some(at) => libc::syscall(libc::SYS_pwrite64, file, bytes, length, at) as isize,
            None => libc::syscall(libc::SYS_write, file, bytes, length) as isize,
        }
    };
    if !disk::is_on() {
        return write();
    }
    let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), length) };
    disk::write(file, bytes, at, write).unwrap_or_else(fail)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(file: c_int, bytes: *const c_void, length: usize) -> isize {
    unsafe { write_at(file, bytes, length, None) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(
    file: c_int,
    bytes: *const c_void,
    length: usize,
    at: i64,
) -> isize {
    unsafe { write_at(file, bytes, length, Some(at)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(
    file: c_int,
    bytes: *const c_void,
    length: usize,
    at: i64,
) -> isize {
    unsafe { write_at(file, bytes, length, Some(at)) }
}

/// Writes parts one after another, from `at` on or where the file stands.
unsafe fn write_all(
    file: c_int,
    parts: *const libc::iovec,
    count: c_int,
    at: Option<i64>,
) -> isize {
    let parts = unsafe { std::slice::from_raw_parts(parts, count as usize) };
    let mut written = 0;
    for part in parts {
        let at = at.map(|at| at + written as i64);
        let one = unsafe { write_at(file, part.iov_base, part.iov_len, at) };
        if one < 0 {
            return if written > 0 { written } else { one };
        }
        written += one;
        if (one as usize) < part.iov_len {
            break;
        }
    }
    written
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(file: c_int, parts: *const libc::iovec, count: c_int) -> isize {
    unsafe { write_all(file, parts, count, None) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev(
    file: c_int,
    parts: *const libc::iovec,
    count: c_int,
    at: i64,
) -> isize {
    unsafe { write_all(file, parts, count, Some(at)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev64(
    file: c_int,
    parts: *const libc::iovec,
    count: c_int,
    at: i64,
) -> isize {
    unsafe { write_all(file, parts, count, Some(at)) }
}

unsafe fn seek(file: c_int, offset: i64, whence: c_int) -> i64 {
    let at = unsafe { libc::syscall(libc::SYS_lseek, file, offset, whence) };
    if at >= 0 && disk::is_on() {
        disk::stands(file, at as usize);
    }
    at
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lseek(file: c_int, offset: i64, whence: c_int) -> i64 {
    unsafe { seek(file, offset, whence) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lseek64(file: c_int, offset: i64, whence: c_int) -> i64 {
    unsafe { seek(file, offset, whence) }
}

unsafe fn sync(file: c_int, system: libc::c_long) -> c_int {
    if disk::is_on() {
        match disk::sync(file) {
            disk::Synced::Elsewhere => {}
            disk::Synced::Here => return 0,
            disk::Synced::Failed(error) => return fail(error) as c_int,
        }
    }
    unsafe { libc::syscall(system, file) as c_int }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(file: c_int) -> c_int {
    unsafe { sync(file, libc::SYS_fdatasync) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(file: c_int) -> c_int {
    unsafe { sync(file, libc::SYS_fsync) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let rename = || unsafe {
        let here = libc::AT_FDCWD;
        libc::syscall(libc::SYS_renameat2, here, from, here, to, 0) as c_int
    };
    if !disk::is_on() {
        return rename();
    }
    let paths = unsafe { (path(libc::AT_FDCWD, from), path(libc::AT_FDCWD, to)) };
    match disk::before_rename(&paths.0, &paths.1) {
        Ok(()) => rename(),
        Err(error) => fail(error) as c_int,
    }
}

unsafe fn unlink_at(folder: c_int, name: *const c_char, flags: c_int) -> c_int {
    if disk::is_on() {
        disk::before_unlink(&unsafe { path(folder, name) });
    }
    unsafe { libc::syscall(libc::SYS_unlinkat, folder, name, flags) as c_int }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(name: *const c_char) -> c_int {
    unsafe { unlink_at(libc::AT_FDCWD, name, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlinkat(folder: c_int, name: *const c_char, flags: c_int) -> c_int {
    unsafe { unlink_at(folder, name, flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn rmdir(name: *const c_char) -> c_int {
    unsafe { unlink_at(libc::AT_FDCWD, name, libc::AT_REMOVEDIR) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(name: *const c_char, mode: libc::mode_t) -> c_int {
    let made = unsafe { libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, name, mode) as c_int };
    if made == 0 && disk::is_on() {
        disk::made_folder(&unsafe { path(libc::AT_FDCWD, name) });
    }
    made
}
