//! LMDB environments, and the threads that write to them.
//!
//! All `unsafe` of the crate is here, in [`open`]: its caller promises LMDB that nobody else changes the file, that it
//! is on a local disk, and that it is not opened twice. [`FolderLock`] keeps other processes out, heed's own table
//! keeps out a second opening in this process, and a network file system is the user's to avoid.
//!
//! ```text
//! any thread ── message ──▶ Worker: one OS thread, in order, all that wait at once ──▶ one write transaction
//! any thread ── read transaction (short, `Send`) ──▶ pages, shared
//! ```
//!
//! Invariants
//! - a write transaction begins and ends on the one [`Worker`] thread of its environment: LMDB's writer lock must be
//!   released by the thread that took it, or the next writer waits for ever;
//! - the LMDB in the binary is the one that was compiled with this crate ([`LMDB_VERSION`]): two of them in one binary
//!   are merged silently by the linker, and the other one would write another file format;
//! - a file is looked over before LMDB maps it ([`audit`]), for LMDB believes every number in it;
//! - a write that failed is never tried again: after a failed sync nobody knows what is on the disk.

mod audit;

use crate::error::{Fault, Reason};
use crate::fault::{Bug, Point, bug, point};
#[cfg(feature = "sim")]
use crate::sim;
use heed::{EnvFlags, EnvOpenOptions, WithoutTls};
use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{io, thread};

/// An open environment. Cheap to clone; it closes when the last clone and the last read transaction are gone.
pub(crate) type Env = heed::Env<WithoutTls>;
/// A read transaction that borrows its environment.
pub(crate) type ReadTxn<'env> = heed::RoTxn<'env, WithoutTls>;
/// A read transaction that keeps its environment open.
pub(crate) type OwnedReadTxn = heed::RoTxn<'static, WithoutTls>;

/// How long an opening waits for threads of a node that has ended: they finish what they were given.
const CLOSING: Duration =
    if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(5) };

/// The version of the bundled LMDB.
const LMDB_VERSION: (i32, i32, i32) = (0, 9, 70);

/// What LMDB calls its file.
const FILE: &str = "data.mdb";
/// There while all pages of it are being read.
const WALK: &str = "WALK";

/// How an environment is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Address space to reserve. The file grows only as it is used; the reservation is never changed while open.
    pub(crate) map_bytes: usize,
    /// How many tables it has. Each transaction copies a record of each, so exactly the number.
    pub(crate) tables: u32,
    /// How many read transactions there may be at once.
    pub(crate) readers: u32,
    /// Whether a commit is on the disk when it returns.
    pub(crate) sync: Sync,
}

/// What is left of the last commit after a loss of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    /// It may be gone, whole; the one before it is there. Saves one of two flushes.
    LastCommitMayBeLost,
    /// Perhaps nothing that makes sense. For tests that lose no power, and open thousands of environments; and for
    /// benchmarks of everything but the disk.
    #[cfg(any(test, feature = "bench"))]
    Never,
}

impl Sync {
    /// Whether anything is promised about what is on the disk.
    fn is_durable(self) -> bool {
        match self {
            Self::LastCommitMayBeLost => true,
            #[cfg(any(test, feature = "bench"))]
            Self::Never => false,
        }
    }
}

/// Opens the environment in `folder`, and makes it if there is none.
pub(crate) fn open(folder: &Path, options: Options) -> Result<Env, Fault> {
    let version = heed::lmdb_version();
    if (version.major, version.minor, version.patch) != LMDB_VERSION {
        return Err(Fault::format(format!(
            "another LMDB ({}.{}.{}) is linked into this program and replaces ours, {LMDB_VERSION:?}",
            version.major, version.minor, version.patch
        )));
    }
    make_folder(folder)?;
    // Whoever opens has locked the data folder, so what is still open is the end of a node that was there before.
    if !has_closed(folder) {
        return Err(Fault::already_open(folder));
    }
    let file = folder.join(FILE);
    if !file.exists() && options.sync.is_durable() {
        make_empty(folder, options)?;
    } else if options.sync.is_durable() {
        sync_names_found(folder)?;
    }
    look_over(folder, &file)?;
    let env = open_mapped(folder, options)?;
    env.clear_stale_readers()?;
    Ok(env)
}

/// What `WALK` says by its length, which takes no room: all pages are being read; they are being looked over for that; one is damaged.
const UNDER_WAY: u64 = 0;
const LOOKED_OVER: u64 = 1;
const DAMAGED: u64 = 2;

/// Looks over the pages of a file, if there are not too many, or the last process that read all of them may have died of one.
fn look_over(folder: &Path, file: &Path) -> Result<(), Fault> {
    let walk = folder.join(WALK);
    let say = |length| File::options().write(true).open(&walk).and_then(|it| it.set_len(length));
    let said = fs::metadata(&walk).ok().map(|found| found.len());
    let is_suspect = matches!(said, Some(UNDER_WAY | DAMAGED));
    if said == Some(UNDER_WAY) {
        // It may take so long that somebody ends this process as well: then the file is believed again.
        let _ = say(LOOKED_OVER);
    }
    let depth = if is_suspect { audit::Depth::All } else { audit::Depth::Small };
    let looked = audit::audit(file, depth);
    match &looked {
        Err(audit::Finding::Wrong(_)) if is_suspect => drop(say(DAMAGED)),
        Err(audit::Finding::Io(_)) if is_suspect => drop(say(UNDER_WAY)),
        _ => drop(Walk(walk.clone())),
    }
    looked.map_err(|finding| match finding {
        audit::Finding::Wrong(what) => Fault::damaged(format!("{}: {what}", file.display())),
        audit::Finding::Io(error) => Fault::disk(format!("cannot open {}", file.display()), error),
    })
}

/// Somebody reads all pages of a file. Should one of them be LMDB's end, and with it that of the process, then the next start finds
/// this, and looks the file over however large it is.
#[derive(Debug)]
pub(crate) struct Walk(PathBuf);

/// Begins to read all pages of an environment.
pub(crate) fn walk(env: &Env) -> Walk {
    let walk = Walk(env.path().join(WALK));
    // Without it a start looks the file over as seldom as ever, which is no reason not to read.
    let _ = fs::write(&walk.0, []);
    walk
}

impl Drop for Walk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes an environment with nothing in it, whole or not at all. LMDB would write the first pages in their place, and a
/// loss of power could leave some of them, which looks like the damage of a file that has held promises.
fn make_empty(folder: &Path, options: Options) -> Result<(), Fault> {
    let draft = folder.join("draft");
    let tried = |error| Fault::disk(format!("cannot make {}", draft.display()), error);
    // What another loss of power has left.
    remove_if_there(&draft).map_err(tried)?;
    fs::create_dir(&draft).map_err(tried)?;
    let env = open_mapped(&draft, options)?;
    env.force_sync()?;
    if !close(env, CLOSING) {
        return Err(Fault::already_open(&draft));
    }
    point(Point::EnvDrafted);
    fs::rename(draft.join(FILE), folder.join(FILE)).map_err(tried)?;
    point(Point::EnvRenamed);
    remove_if_there(&draft).map_err(tried)?;
    sync_folder(folder)
}

fn remove_if_there(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens an environment, with less of the address space if there is not so much of it.
fn open_mapped(folder: &Path, options: Options) -> Result<Env, Fault> {
    let mut map_bytes = options.map_bytes;
    loop {
        match open_once(folder, Options { map_bytes, ..options }) {
            // Address space may be limited (containers, 32-bit): half of it is still a lot.
            Err(heed::Error::Io(error))
                if error.kind() == io::ErrorKind::OutOfMemory && map_bytes > 64 << 20 =>
            {
                map_bytes /= 2;
            }
            Err(heed::Error::EnvAlreadyOpened) => return Err(Fault::already_open(folder)),
            Err(error) => return Err(fault(format!("cannot open {}", folder.display()), error)),
            Ok(env) => return Ok(env),
        }
    }
}

/// Waits until an environment that is open in this process is closed; returns whether it is.
fn has_closed(folder: &Path) -> bool {
    closing(folder).is_none_or(|closing| closing.wait_timeout(CLOSING))
}

/// The end of the environment that is open in a folder, in this process.
fn closing(folder: &Path) -> Option<heed::EnvClosingEvent> {
    // heed knows each by its real path.
    folder.canonicalize().ok().and_then(heed::env_closing_event)
}

/// Whether somebody has made tables here. They are made all at once, so one that is then missing was damaged, and must
/// not be made anew.
pub(crate) fn has_tables(env: &Env) -> bool {
    env.unnamed_database_stat().entries > 0
}

#[expect(unsafe_code, reason = "the promises that LMDB asks for, kept as the module says")]
fn open_once(folder: &Path, options: Options) -> heed::Result<Env> {
    let mut open = EnvOpenOptions::new().read_txn_without_tls();
    open.map_size(options.map_bytes).max_dbs(options.tables).max_readers(options.readers);
    match options.sync {
        // SAFETY: the flag costs the last commit at most, which the caller asked for.
        Sync::LastCommitMayBeLost => unsafe {
            open.flags(EnvFlags::NO_META_SYNC);
        },
        // SAFETY: neither tests nor benchmarks lose power.
        #[cfg(any(test, feature = "bench"))]
        Sync::Never => unsafe {
            open.flags(EnvFlags::NO_SYNC);
        },
    }
    // SAFETY: see the module.
    unsafe { open.open(folder) }
}

/// How many bytes a file system has, and how many of them are left for us.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) all: u64,
    pub(crate) left: u64,
}

/// The room on the file system of a folder; nothing, if it does not say.
pub(crate) fn room(folder: &Path) -> Option<Room> {
    let found = rustix::fs::statvfs(folder).ok().filter(|found| found.f_blocks > 0)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Some(Room { all: bytes(found.f_blocks), left: bytes(found.f_bavail) })
}

/// Makes a folder and those above it, and makes sure that their names survive a loss of power.
pub(crate) fn make_folder(folder: &Path) -> Result<(), Fault> {
    let here = |above| if above == Path::new("") { Path::new(".") } else { above };
    let above = || folder.ancestors().skip(1).map(here);
    let was_there = folder.is_dir();
    let missing = above().take_while(|above| !above.is_dir()).count();
    let tried = |error| Fault::disk(format!("cannot make the folder {}", folder.display()), error);
    fs::create_dir_all(folder).map_err(tried)?;
    let is_closed = |above: &&Path| {
        File::open(above).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    // Of a folder that was there a process may have made the name, and have come to its end before it made sure of that. If
    // it stands where this one may not look, it was somebody else who made it.
    let closed = above().next().filter(is_closed);
    if was_there && closed.is_some() {
        return Ok(());
    }
    above().take(missing + 1).try_for_each(sync_folder)
}

/// Makes sure of the names that are there at a start: a process may have come to its end between giving a name and making
/// sure of it.
pub(crate) fn sync_names_found(folder: &Path) -> Result<(), Fault> {
    if bug(Bug::FoundNamesNotSynced) { Ok(()) } else { sync_folder(folder) }
}

/// Makes the names in a folder survive a loss of power.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), Fault> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    point(Point::FolderSynced);
    synced
        .map_err(|error| Fault::disk(format!("cannot sync the folder {}", folder.display()), error))
}

/// Replaces a small file as a whole: after a loss of power it has the old content or the new.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<(), Fault> {
    draft_file(path, content)?;
    name_drafted(path)
}

fn draft_of(path: &Path) -> PathBuf {
    path.with_extension("draft")
}

fn cannot_write(path: &Path) -> impl FnOnce(io::Error) -> Fault {
    move |error| Fault::disk(format!("cannot write {}", path.display()), error)
}

/// The first half of [`replace_file`], which changes nothing yet, and needs room on the disk.
pub(crate) fn draft_file(path: &Path, content: &[u8]) -> Result<(), Fault> {
    let write = || -> io::Result<()> {
        let mut file = File::create(draft_of(path))?;
        io::Write::write_all(&mut file, content)?;
        point(Point::FileDrafted);
        file.sync_all()?;
        point(Point::FileSynced);
        Ok(())
    };
    write().map_err(cannot_write(path))
}

/// The second half. After an error nobody knows which of the two contents a loss of power would leave.
pub(crate) fn name_drafted(path: &Path) -> Result<(), Fault> {
    fs::rename(draft_of(path), path).map_err(cannot_write(path))?;
    point(Point::FileRenamed);
    path.parent().map_or(Ok(()), sync_folder)
}

/// Whether no environment is open in a folder, in this process.
pub(crate) fn is_closed(folder: &Path) -> bool {
    closing(folder).is_none()
}

/// Waits until no clone of the environment and no read transaction is left, so that the folder can be opened again.
/// Returns whether that happened within `limit`.
pub(crate) fn close(env: Env, limit: Duration) -> bool {
    env.prepare_for_closing().wait_timeout(limit)
}

/// Keeps other processes, and other nodes of this one, out of a data folder. Dropping it lets them in.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock, or says that the folder is open elsewhere.
    pub(crate) fn take(folder: &Path) -> Result<Self, Fault> {
        make_folder(folder)?;
        let path: PathBuf = folder.join("LOCK");
        let opened = File::options().create(true).truncate(false).write(true).open(&path);
        let file = opened
            .map_err(|error| Fault::disk(format!("cannot write to {}", folder.display()), error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(Fault::already_open(folder)),
            Err(fs::TryLockError::Error(error)) => {
                Err(Fault::disk(format!("cannot lock {}", path.display()), error))
            }
        }
    }
}

impl From<heed::Error> for Fault {
    fn from(error: heed::Error) -> Self {
        fault("LMDB", error)
    }
}

/// Sorts LMDB's errors into a disk that failed, bytes that are wrong, and another format.
fn fault(tried: impl Into<String>, error: heed::Error) -> Fault {
    use heed::MdbError::{Corrupted, Invalid, PageNotFound, VersionMismatch};
    let tried = tried.into();
    match error {
        heed::Error::Mdb(Corrupted | PageNotFound | Invalid) => {
            Fault::damaged(format!("{tried}: {error}"))
        }
        heed::Error::Mdb(VersionMismatch) => Fault::format(format!("{tried}: {error}")),
        heed::Error::Decoding(_) => Fault::damaged(format!("{tried}: {error}")),
        heed::Error::Io(error) => Fault::disk(tried, error),
        heed::Error::Mdb(_) | heed::Error::Encoding(_) | heed::Error::EnvAlreadyOpened => {
            Fault::disk(tried, error)
        }
    }
}

/// A thread of its own that handles messages in order, all that wait at once.
///
/// Its queue has no bound of its own: entries in it were admitted by somebody who counts bytes, and whatever else is there
/// is a few words for each caller that waits for it, or has given up waiting for a disk that stalls. If the handler panics the thread ends, and every later message is answered with
/// the cause. Dropping the worker lets it finish what waits, without waiting for it; [`Worker::join`] waits.
pub(crate) struct Worker<M> {
    messages: mpsc::Sender<M>,
    /// After `messages`, so that the thread finds them closed when this runs it to its end.
    #[cfg(feature = "sim")]
    pump: Option<sim::Pump>,
    thread: thread::JoinHandle<()>,
    cause: Arc<OnceLock<Fault>>,
}

impl<M> std::fmt::Debug for Worker<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Worker").field(&self.thread.thread().name()).finish()
    }
}

impl<M: Send + 'static> Worker<M> {
    /// Starts a thread that hands each batch of messages to `handle`.
    pub(crate) fn spawn(
        name: &str,
        mut handle: impl FnMut(Vec<M>) + Send + 'static,
    ) -> Result<Self, Fault> {
        Self::spawn_with(name, move |inbox| {
            while let Some(batch) = inbox.next() {
                handle(batch);
            }
        })
    }

    /// Starts a thread that takes its messages itself, for one that keeps something open between two batches.
    pub(crate) fn spawn_with(
        name: &str,
        run: impl FnOnce(&Inbox<M>) + Send + 'static,
    ) -> Result<Self, Fault> {
        let (messages, waiting) = mpsc::channel::<M>();
        let cause = Arc::new(OnceLock::new());
        let panicked = Arc::clone(&cause);
        let inbox = Inbox {
            waiting,
            #[cfg(feature = "sim")]
            baton: None,
        };
        let run = move |inbox: &Inbox<M>| {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(inbox))) {
                let _ = panicked.set(Fault::assertion(panic_text(&*panic)));
            }
        };
        #[cfg(feature = "sim")]
        let mut pump = sim::Pump::new();
        #[cfg(feature = "sim")]
        let (inbox, run) = simulated(inbox, run, pump.as_ref());
        let started = thread::Builder::new().name(name.to_owned()).spawn(move || run(&inbox));
        let thread =
            started.map_err(|error| Fault::disk(format!("cannot start thread {name}"), error))?;
        #[cfg(feature = "sim")]
        pump.iter_mut().for_each(sim::Pump::start);
        Ok(Self {
            messages,
            #[cfg(feature = "sim")]
            pump,
            thread,
            cause,
        })
    }

    /// Queues a message, or says why the thread has ended.
    pub(crate) fn send(&self, message: M) -> Result<(), Fault> {
        self.messages.send(message).map_err(|_| self.cause())?;
        #[cfg(feature = "sim")]
        self.pump.iter().for_each(sim::Pump::wake);
        Ok(())
    }

    /// Why the thread has ended, for a caller whose message was never answered.
    pub(crate) fn cause(&self) -> Fault {
        self.cause.get().cloned().unwrap_or_else(|| Fault::from_reason(Reason::Closed))
    }

    /// Waits until everything that was sent is handled and the thread has ended. Blocks: not for async code.
    pub(crate) fn join(self) {
        drop(self.messages);
        #[cfg(feature = "sim")]
        drop(self.pump);
        // The thread catches the panics of its handler.
        let _ = self.thread.join();
    }
}

/// What a [`Worker`] has been sent.
pub(crate) struct Inbox<M> {
    waiting: mpsc::Receiver<M>,
    #[cfg(feature = "sim")]
    baton: Option<Arc<sim::Baton>>,
}

/// The same, run by a pump if there is one.
#[cfg(feature = "sim")]
fn simulated<M>(
    inbox: Inbox<M>,
    run: impl FnOnce(&Inbox<M>) + Send + 'static,
    pump: Option<&sim::Pump>,
) -> (Inbox<M>, impl FnOnce(&Inbox<M>) + Send + 'static) {
    let baton = pump.map(sim::Pump::baton);
    let inbox = Inbox { baton: baton.clone(), ..inbox };
    let run = move |inbox: &Inbox<M>| {
        let _clock = baton.as_ref().map(|baton| baton.hold());
        run(inbox);
        baton.iter().for_each(|baton| baton.end());
    };
    (inbox, run)
}

impl<M> Inbox<M> {
    /// Waits for a message, and returns all that wait; `None` when nobody can send any more.
    pub(crate) fn next(&self) -> Option<Vec<M>> {
        #[cfg(feature = "sim")]
        let first = match &self.baton {
            Some(baton) => loop {
                match self.waiting.try_recv() {
                    Err(mpsc::TryRecvError::Empty) => baton.idle(),
                    came => break came.ok()?,
                }
            },
            None => self.waiting.recv().ok()?,
        };
        #[cfg(not(feature = "sim"))]
        let first = self.waiting.recv().ok()?;
        let mut batch = vec![first];
        batch.extend(self.waiting.try_iter());
        Some(batch)
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::sync::Mutex;

    const SMALL: Options =
        Options { map_bytes: 16 << 20, tables: 1, readers: 8, sync: Sync::LastCommitMayBeLost };

    #[test]
    fn a_second_opening_is_refused_with_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path(), SMALL).unwrap();
        let text = open(folder.path(), SMALL).unwrap_err().to_string();
        assert!(text.contains(&*folder.path().to_string_lossy()), "{text}");
        assert!(close(first, Duration::from_secs(5)));
        open(folder.path(), SMALL).unwrap();
    }

    /// Or a page that is the end of whoever reads it would be that again after each start.
    #[test]
    fn a_process_that_ended_while_it_read_all_pages_has_the_next_one_look_them_over() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { map_bytes: 512 << 20, ..SMALL };
        let env = open(folder.path(), options).unwrap();
        let made = env.create_databases_and_commit(env.write_txn().unwrap(), |opener, txn| {
            let table: heed::Database<'_, heed::types::Bytes, heed::types::Bytes> =
                opener.create_database(txn, Some("t"))?;
            table.put(txn, b"a key", b"a value")?;
            Ok::<_, heed::Error>(heed::CommitOrAbort::<_, ()>::Commit(()))
        });
        made.unwrap();
        drop(walk(&env));
        assert!(!folder.path().join(WALK).exists());
        assert!(close(env, Duration::from_secs(5)));
        // Too large to be looked over at each start.
        let path = folder.path().join(FILE);
        File::options().write(true).open(&path).unwrap().set_len(300 << 20).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut whole = vec![0; 1 << 16];
        file.read_exact_at(&mut whole, 0).unwrap();
        let at = whole.windows(5).position(|window| window == b"a key").unwrap();
        // The head of its page: how much of it is free.
        let at = at / 4096 * 4096 + 12;
        file.write_all_at(&[whole[at] ^ 0x80], at as u64).unwrap();
        let env = open(folder.path(), options).unwrap();
        let _is_killed = std::mem::ManuallyDrop::new(walk(&env));
        assert!(close(env, Duration::from_secs(5)));
        for _ in 0..2 {
            assert!(open(folder.path(), options).unwrap_err().is_of_tables());
        }
        // Whoever was ended while it looked them over has a next start that does not.
        fs::write(folder.path().join(WALK), [0]).unwrap();
        assert!(close(open(folder.path(), options).unwrap(), Duration::from_secs(5)));
        fs::write(folder.path().join(WALK), []).unwrap();
        file.write_all_at(&whole[at..=at], at as u64).unwrap();
        open(folder.path(), options).unwrap();
        assert!(!folder.path().join(WALK).exists(), "that is over");
    }

    #[test]
    fn a_locked_folder_is_refused_until_the_lock_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(folder.path()).unwrap();
        assert!(FolderLock::take(folder.path()).is_err());
        drop(lock);
        FolderLock::take(folder.path()).unwrap();
    }

    #[test]
    fn a_worker_handles_everything_in_order_before_it_ends() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let worker = Worker::spawn("test", move |batch: Vec<u32>| {
            sink.lock().unwrap().extend(batch);
        })
        .unwrap();
        (0..1000).for_each(|number| worker.send(number).unwrap());
        worker.join();
        assert_eq!(*seen.lock().unwrap(), (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_ends_the_worker_with_its_cause() {
        let worker =
            Worker::spawn("test", |batch: Vec<u32>| assert!(batch.is_empty(), "not empty"))
                .unwrap();
        worker.send(1).unwrap();
        while worker.send(2).is_ok() {
            thread::yield_now();
        }
        assert!(worker.cause().to_string().contains("not empty"));
    }
}
