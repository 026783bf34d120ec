//! A disk that forgets.
//!
//! Files are the system's, in a folder in memory. Beside them stands a [`model`] of each member's disk, which is told of
//! every change, and knows what was synced. When the power goes it says what is left.
//!
//! ```text
//! write, rename, … ──▶ the file, and the model      sync ──▶ the model, and nothing else
//! power loss ──▶ image, from the model ──▶ the folder, once the member has ended
//! recording ──▶ and every change, with its time, into a journal: the power may go at any moment of it, later
//! ```
//!
//! A member that lost power is still in memory for a moment, and may write; none of that counts.
//!
//! Invariants
//! - a sync that has not returned has promised nothing;
//! - a write that an `O_DSYNC` file took is on the disk when it returns.

pub mod model;

use crate::book::Book;
use crate::dice::Dice;
use crate::history::Moment;
use model::{Change, Image, Loss, Lost, Model};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many microseconds a sync takes while a real group is recorded, at most: enough for others to do something meanwhile.
const RECORDED_SYNC: u64 = 2000;
/// One of so many syncs takes so many times as long.
const SLOW_SYNC: u64 = 30;

static ON: AtomicBool = AtomicBool::new(false);
static DISK: Mutex<Option<Disk>> = Mutex::new(None);

thread_local! {
    /// What this thread does to files is none of the members' business.
    static ASIDE: Cell<bool> = const { Cell::new(false) };
}

struct Disk {
    root: PathBuf,
    /// The files of the simulated disk that are open.
    open: BTreeMap<c_int, Open>,
    members: BTreeMap<PathBuf, Member>,
    dice: Dice,
    /// Where changes are written down, by the time of this book.
    journal: Option<(Book, Vec<Entry>)>,
}

/// A change of a member's disk, and when it was made.
#[derive(Clone, Debug)]
pub struct Entry {
    pub at: Moment,
    pub member: PathBuf,
    pub change: Change,
}

struct Open {
    path: PathBuf,
    is_durable: bool,
    /// Where those write who do not say where.
    at: usize,
}

/// The disk of one member.
#[derive(Default)]
struct Member {
    model: Model,
    /// What its disk holds since the power went, or its process ended.
    image: Option<Image>,
    /// Its process ended, and what was not synced is still not.
    is_killed: bool,
    trouble: Trouble,
    failing: Option<Failing>,
    counts: Counts,
}

/// What is wrong with the disk of a member, from now on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    /// How long a sync takes.
    pub sync_takes: Duration,
    /// Every write fails with this error.
    pub writes_fail: Option<c_int>,
    /// Every sync fails with this error.
    pub syncs_fail: Option<c_int>,
}

/// When a disk fails that counts.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    /// After so many changes and syncs.
    pub after: u64,
    pub error: c_int,
    /// Only that one fails, and not all that follow.
    pub is_once: bool,
}

/// What has happened to a disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub syncs: u64,
    pub lost: Lost,
}

/// What became of a sync.
pub enum Synced {
    Elsewhere,
    Here,
    Failed(c_int),
}

fn disk() -> MutexGuard<'static, Option<Disk>> {
    DISK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with<T>(work: impl FnOnce(&mut Disk) -> T) -> Option<T> {
    disk().as_mut().map(work)
}

fn aside<T>(work: impl FnOnce() -> io::Result<T>) -> T {
    ASIDE.set(true);
    let done = work().expect("the simulation's folder can be read and written");
    ASIDE.set(false);
    done
}

/// From now on `root` is the simulated disk, with a folder for each member.
pub fn take_over(root: &Path, dice: Dice) {
    let root = root.to_owned();
    let (open, members) = (BTreeMap::new(), BTreeMap::new());
    *disk() = Some(Disk { root, open, members, dice, journal: None });
    ON.store(true, Ordering::SeqCst);
}

pub fn is_on() -> bool {
    ON.load(Ordering::SeqCst) && !ASIDE.get()
}

/// From now on every change is written down.
pub fn record(book: Book) {
    with(|disk| disk.journal = Some((book, Vec::new())));
}

/// What was written down, in order.
pub fn recorded() -> Vec<Entry> {
    with(|disk| disk.journal.take().map(|(_, entries)| entries)).flatten().unwrap_or_default()
}

/// What is wrong with the disk of the member in `folder` from now on.
pub fn trouble(folder: &Path, trouble: Trouble) {
    with(|disk| disk.members.entry(folder.to_owned()).or_default().trouble = trouble);
}

/// The disk of the member in `folder` fails by and by.
pub fn fail(folder: &Path, failing: Failing) {
    with(|disk| disk.members.entry(folder.to_owned()).or_default().failing = Some(failing));
}

/// It does not any more. Returns whether it has.
pub fn heal(folder: &Path) -> bool {
    let failing = with(|disk| disk.members.get_mut(folder)?.failing.take());
    failing.flatten().is_none_or(|failing| failing.after == 0 && !failing.is_once)
}

pub fn counts(folder: &Path) -> Counts {
    with(|disk| disk.members.get(folder).map(|it| it.counts)).flatten().unwrap_or_default()
}

/// The power of the member in `folder` goes, now.
pub fn lose_power(folder: &Path) {
    with(|disk| {
        // What kind of disk it was shows when it fails.
        let loss = match *disk.dice.pick(&[0, 0, 50, 90, 100]) {
            0 => Loss::All,
            keep => Loss::Some(keep),
        };
        let member = disk.members.entry(folder.to_owned()).or_default();
        if member.image.is_none() {
            let lost = &mut member.counts.lost;
            member.image = Some(member.model.image(loss, &mut disk.dice, lost));
        }
    });
}

/// The member in `folder` was killed, and its machine goes on: nothing is lost, until the power goes.
pub fn killed(folder: &Path) {
    with(|disk| {
        let member = disk.members.entry(folder.to_owned()).or_default();
        if member.image.is_none() {
            member.image = Some(member.model.now().clone());
            member.is_killed = true;
        }
    });
}

/// The disk of a member that has ended is lost.
pub fn wipe(folder: &Path) {
    with(|disk| disk.members.remove(folder));
    // It may never have come as far as to have one.
    aside(|| if folder.exists() { fs::remove_dir_all(folder) } else { Ok(()) });
}

/// The disk of a member that does not run is this from now on.
pub fn replace(folder: &Path, image: Image) {
    with(|disk| disk.members.entry(folder.to_owned()).or_default().image = Some(image));
    restore(folder);
}

/// The member in `folder` was killed at a moment that its disk stood like this, and its machine goes on.
pub fn replace_killed(folder: &Path, model: Model) {
    with(|disk| {
        let member = disk.members.entry(folder.to_owned()).or_default();
        member.image = Some(model.now().clone());
        member.model = model;
        member.is_killed = true;
    });
    restore(folder);
}

/// Makes the folder of a member what the disk holds, once nobody has it open any more.
pub fn restore(folder: &Path) {
    let image = with(|disk| {
        disk.open.retain(|_, open| !open.path.starts_with(folder));
        let member = disk.members.get_mut(folder)?;
        let image = member.image.take()?;
        if !std::mem::take(&mut member.is_killed) {
            member.model = Model::new(image.clone());
        }
        Some(image)
    });
    if let Some(image) = image.flatten() {
        aside(|| image.write(folder));
    }
}

/// Whether the model of a disk is right: it holds what the files do.
pub fn is_right(folder: &Path) -> bool {
    let files = aside(|| Image::read(folder));
    with(|disk| {
        let member = disk.members.get(folder);
        member.is_none_or(|it| it.image.is_some() || it.model.now().files == files.files)
    })
    .unwrap_or(true)
}

impl Member {
    /// Whether something can be written.
    fn may_write(&mut self) -> Result<(), c_int> {
        let fails = self.failing_now().or(self.trouble.writes_fail);
        fails.map_or(Ok(()), Err)
    }

    /// What becomes of the next change or sync, of a disk that counts them.
    fn failing_now(&mut self) -> Option<c_int> {
        let failing = self.failing.as_mut()?;
        if failing.after > 0 {
            failing.after -= 1;
            return None;
        }
        let error = failing.error;
        if failing.is_once {
            self.failing = None;
        }
        Some(error)
    }
}

impl Disk {
    /// The member whose file this is, unless it has lost its power.
    fn member_of(&mut self, path: &Path) -> Option<(PathBuf, &mut Member)> {
        let inside = path.strip_prefix(&self.root).ok()?;
        let folder = self.root.join(inside.components().next()?);
        let member = self.members.entry(folder.clone()).or_default();
        member.image.is_none().then_some((folder, member))
    }

    /// Notes a change of the member in `folder`.
    fn note(&mut self, folder: PathBuf, change: Change) {
        self.members.entry(folder.clone()).or_default().model.carry_out(&change);
        if let Some((book, entries)) = &mut self.journal {
            entries.push(Entry { at: book.stamp(), member: folder, change });
        }
    }

    /// The same of whosever path it is.
    fn note_at(&mut self, path: &Path, change: Change) {
        if let Some((folder, _)) = self.member_of(path) {
            self.note(folder, change);
        }
    }
}

/// Before a file is opened: what that will make of it, if the disk lets it.
pub fn before_open(path: &Path, flags: c_int) -> Result<Option<Change>, c_int> {
    if flags & (libc::O_CREAT | libc::O_TRUNC) == 0 || is_lock(path) {
        return Ok(None);
    }
    with(|disk| {
        let Some((_, member)) = disk.member_of(path) else { return Ok(None) };
        match member.model.now().files.get(path) {
            Some(content) if flags & libc::O_TRUNC == 0 || content.is_empty() => return Ok(None),
            None if flags & libc::O_CREAT == 0 => return Ok(None),
            Some(_) => {}
            None => member.may_write()?,
        }
        Ok(Some(Change::Create(path.to_owned())))
    })
    .unwrap_or(Ok(None))
}

pub fn opened(file: c_int, path: &Path, flags: c_int, change: Option<Change>) {
    with(|disk| {
        disk.open.remove(&file);
        if let Some(change) = change {
            disk.note_at(path, change);
        }
        if path.starts_with(&disk.root) && !is_lock(path) {
            let (path, is_durable) = (path.to_owned(), flags & libc::O_DSYNC != 0);
            disk.open.insert(file, Open { path, is_durable, at: 0 });
        }
    });
}

/// Whoever does not say where it writes does so here.
pub fn stands(file: c_int, at: usize) {
    with(|disk| disk.open.get_mut(&file).map(|open| open.at = at));
}

pub fn closed(file: c_int) {
    with(|disk| disk.open.remove(&file));
}

/// Writes with `write`, if the disk lets it.
pub fn write(
    file: c_int,
    bytes: &[u8],
    at: Option<i64>,
    write: impl Fn() -> isize,
) -> Result<isize, c_int> {
    let open = with(|disk| {
        let open = disk.open.get(&file)?;
        Some((open.path.clone(), open.is_durable, at.map_or(open.at, |at| at as usize)))
    });
    let Some((path, is_durable, place)) = open.flatten() else { return Ok(write()) };
    with(|disk| {
        let Some((_, member)) = disk.member_of(&path) else { return Ok(()) };
        let syncs_fail = member.trouble.syncs_fail.filter(|_| is_durable);
        member.may_write()?;
        syncs_fail.map_or(Ok(()), Err)
    })
    .unwrap_or(Ok(()))?;
    let written = write();
    with(|disk| {
        let bytes = bytes[..written.max(0) as usize].to_vec();
        if let Some(open) = disk.open.get_mut(&file).filter(|_| at.is_none()) {
            open.at += bytes.len();
        }
        let change = Change::Write { path: path.clone(), at: place, bytes, is_durable };
        disk.note_at(&path, change);
    });
    Ok(written)
}

fn recorded_sync(dice: &mut Dice) -> u64 {
    let is_slow = dice.roll(SLOW_SYNC) == 0;
    dice.roll(RECORDED_SYNC) * if is_slow { SLOW_SYNC } else { 1 }
}

pub fn sync(file: c_int) -> Synced {
    let found = with(|disk| {
        let path = disk.open.get(&file)?.path.clone();
        let recorded = disk.journal.is_some().then(|| recorded_sync(&mut disk.dice));
        if path == disk.root {
            // The folder of the members' folders.
            for folder in disk.members.keys().cloned().collect::<Vec<_>>() {
                let begun = disk.members[&folder].model.last();
                disk.note(folder, Change::Sync { path: path.clone(), begun });
            }
            return Some((path, None));
        }
        let Some((_, member)) = disk.member_of(&path) else { return Some((path, None)) };
        member.counts.syncs += 1;
        let fails = member.failing_now().or(member.trouble.syncs_fail);
        let trouble = Trouble { syncs_fail: fails, ..member.trouble };
        let begun = (trouble, member.model.last(), recorded);
        Some((path, Some(begun)))
    });
    let Some((path, begun)) = found.flatten() else { return Synced::Elsewhere };
    let Some((trouble, begun, recorded)) = begun else {
        let is_root = with(|disk| disk.root == path) == Some(true);
        return if is_root { Synced::Here } else { Synced::Failed(libc::EIO) };
    };
    // Only those of the log and of LMDB take time: whoever replaces a small file may hold a lock that the simulation's
    // thread wants.
    if is_data(&path) && !trouble.sync_takes.is_zero() {
        quorate::sim::stall(trouble.sync_takes);
    }
    if let Some(micros) = recorded {
        std::thread::sleep(Duration::from_micros(micros));
    }
    if let Some(error) = trouble.syncs_fail {
        with(|disk| disk.note_at(&path, Change::SyncFailed { path: path.clone(), begun }));
        return Synced::Failed(error);
    }
    let synced = with(|disk| {
        let (folder, _) = disk.member_of(&path)?;
        disk.note(folder, Change::Sync { path, begun });
        Some(())
    });
    if synced.flatten().is_some() { Synced::Here } else { Synced::Failed(libc::EIO) }
}

fn is_data(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name == "data.mdb" || name.starts_with("log-")
}

pub fn before_rename(from: &Path, to: &Path) -> Result<(), c_int> {
    with(|disk| {
        let Some((folder, member)) = disk.member_of(to) else { return Ok(()) };
        member.may_write()?;
        disk.note(folder, Change::Rename { from: from.to_owned(), to: to.to_owned() });
        // Who has it open goes on writing to it under its new name.
        for open in disk.open.values_mut().filter(|open| open.path == from) {
            open.path = to.to_owned();
        }
        Ok(())
    })
    .unwrap_or(Ok(()))
}

pub fn before_unlink(path: &Path) {
    if !is_lock(path) {
        with(|disk| disk.note_at(path, Change::Remove(path.to_owned())));
    }
}

pub fn made_folder(path: &Path) {
    with(|disk| disk.note_at(path, Change::MakeFolder(path.to_owned())));
}

/// LMDB's table of readers, and the lock of the folder, mean nothing after a restart.
fn is_lock(path: &Path) -> bool {
    path.ends_with("lock.mdb") || path.ends_with("LOCK")
}

impl Image {
    fn read(folder: &Path) -> io::Result<Self> {
        let mut image = Self::default();
        if folder.is_dir() {
            image.add(folder)?;
        }
        Ok(image)
    }

    fn add(&mut self, folder: &Path) -> io::Result<()> {
        self.folders.insert(folder.to_owned());
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                self.add(&path)?;
            } else if !is_lock(&path) {
                self.files.insert(path.clone(), fs::read(&path)?);
            }
        }
        Ok(())
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        for folder in &self.folders {
            fs::create_dir_all(folder)?;
        }
        for (path, content) in &self.files {
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            fs::write(path, content)?;
        }
        Ok(())
    }
}
