//! What the standard library has no word for: to stop a process, to end one in the middle of a step, and a clock that
//! all processes of a machine share.

#![expect(unsafe_code, reason = "functions of the C library, which take nothing but numbers")]

/// What is done to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    #[cfg(feature = "sim")]
    Kill,
    Stop,
    Continue,
}

/// Sends a signal to a process that this one has started, or is.
pub(crate) fn signal(process: u32, signal: Signal) {
    let number = match signal {
        #[cfg(feature = "sim")]
        Signal::Kill => libc::SIGKILL,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
    };
    let process = libc::pid_t::try_from(process).unwrap();
    // SAFETY: no memory is handed over.
    let sent = unsafe { libc::kill(process, number) };
    assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
}

/// Nanoseconds of the clock that neither jumps nor differs between processes. It goes on while a process is stopped.
pub(crate) fn clock() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes into the variable that it is given.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert_eq!(read, 0, "{}", std::io::Error::last_os_error());
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}
