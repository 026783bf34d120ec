//! A disk that forgets.
//!
//! Files are the system's, in a folder in memory. What this adds is a note of everything that was written and not synced
//! since, with what was there before. When the power goes, of each file, and of the names in each folder, some of that is
//! lost, as a real disk may lose it: writes in any combination, and torn at a sector; names from some point on.
//!
//! ```text
//! write ──▶ the file        note: at, before, after      sync ──▶ the notes of this file are dropped
//! rename, unlink, mkdir ──▶ the folder   note: how to undo it    sync of the folder ──▶ those of its names
//! power loss ──▶ image: every file with its notes undone, but for those that chance keeps
//! ```
//!
//! A member that lost power is still in memory for a moment, and may write; none of that counts. When it is gone, its
//! folder is made what the image says.
//!
//! Invariants
//! - what was synced before the loss of power is in the image;
//! - a sync that has not returned has promised nothing;
//! - a write that an `O_DSYNC` file took is on the disk when it returns.

use crate::dice::Dice;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A write reaches the disk whole, or up to a multiple of this.
const SECTOR: usize = 512;

static ON: AtomicBool = AtomicBool::new(false);
static DISK: Mutex<Option<Disk>> = Mutex::new(None);

struct Disk {
    root: PathBuf,
    /// The files of the simulated disk that are open.
    open: BTreeMap<c_int, Open>,
    members: BTreeMap<PathBuf, Member>,
    dice: Dice,
}

#[derive(Clone)]
struct Open {
    path: PathBuf,
    is_sync: bool,
}

/// The disk of one member.
#[derive(Default)]
struct Member {
    written: BTreeMap<PathBuf, Vec<Write>>,
    named: Vec<Naming>,
    /// What its disk holds since the power went.
    image: Option<Image>,
    trouble: Trouble,
    counts: Counts,
}

/// What is wrong with the disk of a member, from now on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    /// How long a sync takes, at most and in ordinary times.
    pub sync_takes: Duration,
    /// Every write fails with this error.
    pub writes_fail: Option<c_int>,
    /// Every sync fails with this error.
    pub syncs_fail: Option<c_int>,
}

/// What has happened to a disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub writes: u64,
    pub syncs: u64,
    pub lost: u64,
    pub torn: u64,
}

struct Write {
    at: usize,
    /// What was there, if the file was that long.
    before: Vec<u8>,
    length_before: usize,
    after: Vec<u8>,
}

/// A change of names, and how it is undone.
struct Naming {
    folder: PathBuf,
    undo: Undo,
}

enum Undo {
    Remove(PathBuf),
    /// Puts a file there again, or a folder.
    Restore(PathBuf, Option<Vec<u8>>),
    /// Takes the new name back, and puts what it had replaced in its place.
    Rename {
        from: PathBuf,
        to: PathBuf,
        replaced: Option<Vec<u8>>,
    },
}

/// All files of a member, by path, and all its folders.
#[derive(Clone, Default)]
pub struct Image {
    files: BTreeMap<PathBuf, Vec<u8>>,
    folders: Vec<PathBuf>,
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

/// From now on `root` is the simulated disk, with a folder for each member.
pub fn take_over(root: &Path, dice: Dice) {
    let root = root.to_owned();
    *disk() = Some(Disk { root, open: BTreeMap::new(), members: BTreeMap::new(), dice });
    ON.store(true, Ordering::SeqCst);
}

pub fn is_on() -> bool {
    ON.load(Ordering::SeqCst)
}

/// What is wrong with the disk of the member in `folder` from now on.
pub fn trouble(folder: &Path, trouble: Trouble) {
    with(|disk| disk.members.entry(folder.to_owned()).or_default().trouble = trouble);
}

pub fn counts(folder: &Path) -> Counts {
    with(|disk| disk.members.get(folder).map(|it| it.counts)).flatten().unwrap_or_default()
}

/// The power of the member in `folder` goes, now.
pub fn lose_power(folder: &Path) {
    with(|disk| {
        let mut dice = disk.dice.clone();
        let member = disk.members.entry(folder.to_owned()).or_default();
        if member.image.is_none() {
            let image = member.image_of(folder, &mut dice);
            member.image = Some(image);
        }
        disk.dice = dice;
    });
}

/// The member in `folder` was killed, and its machine goes on: nothing is lost.
pub fn killed(folder: &Path) {
    with(|disk| {
        let member = disk.members.entry(folder.to_owned()).or_default();
        if member.image.is_none() {
            member.image = Some(Image::read(folder));
        }
    });
}

/// The disk of a member that has ended is lost.
pub fn wipe(folder: &Path) {
    with(|disk| {
        disk.members.remove(folder);
        let _ = fs::remove_dir_all(folder);
    });
}

/// Makes the folder of a member what the disk holds, once nobody has it open any more.
pub fn restore(folder: &Path) {
    let image = with(|disk| {
        disk.open.retain(|_, open| !open.path.starts_with(folder));
        let member = disk.members.get_mut(folder)?;
        member.named.clear();
        member.written.clear();
        member.image.take()
    });
    if let Some(image) = image.flatten() {
        ON.store(false, Ordering::SeqCst);
        image.write(folder);
        ON.store(true, Ordering::SeqCst);
    }
}

fn with<T>(work: impl FnOnce(&mut Disk) -> T) -> Option<T> {
    // What is read and written here is none of the members' business.
    let mut disk = disk();
    let was_on = ON.swap(false, Ordering::SeqCst);
    let done = disk.as_mut().map(work);
    ON.store(was_on, Ordering::SeqCst);
    done
}

impl Disk {
    /// The member whose file this is, unless it has lost its power.
    fn member_of(&mut self, path: &Path) -> Option<&mut Member> {
        let inside = path.strip_prefix(&self.root).ok()?;
        let folder = self.root.join(inside.components().next()?);
        Some(self.members.entry(folder).or_default()).filter(|member| member.image.is_none())
    }
}

/// Before a file is opened: what the flags would destroy is noted.
pub fn before_open(path: &Path, flags: c_int) -> Result<(), c_int> {
    if flags & (libc::O_CREAT | libc::O_TRUNC) == 0 || is_lock(path) {
        return Ok(());
    }
    with(|disk| {
        let Some(member) = disk.member_of(path) else { return Ok(()) };
        match fs::read(path) {
            Ok(before) if flags & libc::O_TRUNC != 0 && !before.is_empty() => {
                member.named.push(naming(path, Undo::Restore(path.to_owned(), Some(before))));
            }
            Ok(_) => {}
            Err(_) if flags & libc::O_CREAT == 0 => {}
            Err(_) => {
                if let Some(error) = member.trouble.writes_fail {
                    return Err(error);
                }
                member.named.push(naming(path, Undo::Remove(path.to_owned())));
            }
        }
        Ok(())
    })
    .unwrap_or(Ok(()))
}

pub fn opened(file: c_int, path: &Path, flags: c_int) {
    with(|disk| {
        if path.starts_with(&disk.root) && !is_lock(path) {
            let is_sync = flags & libc::O_DSYNC != 0;
            disk.open.insert(file, Open { path: path.to_owned(), is_sync });
        }
    });
}

pub fn closed(file: c_int) {
    with(|disk| disk.open.remove(&file));
}

pub fn before_write(file: c_int, bytes: &[u8], at: Option<i64>) -> Result<(), c_int> {
    with(|disk| {
        let Some(Open { path, is_sync }) = disk.open.get(&file).cloned() else { return Ok(()) };
        let Some(member) = disk.member_of(&path) else { return Ok(()) };
        member.counts.writes += 1;
        if let Some(error) = member.trouble.writes_fail {
            return Err(error);
        }
        if is_sync {
            return member.trouble.syncs_fail.map_or(Ok(()), Err);
        }
        let length_before = fs::metadata(&path).map_or(0, |it| it.len() as usize);
        // Those who do not say where have just made the file, and write it from the front.
        let at = at.map_or(length_before, |at| at as usize);
        let mut before = vec![0; bytes.len().min(length_before.saturating_sub(at))];
        if let Ok(file) = File::open(&path) {
            let _ = file.read_exact_at(&mut before, at as u64);
        }
        let write = Write { at, before, length_before, after: bytes.to_vec() };
        member.written.entry(path).or_default().push(write);
        Ok(())
    })
    .unwrap_or(Ok(()))
}

pub fn sync(file: c_int) -> Synced {
    let found = with(|disk| {
        let path = disk.open.get(&file)?.path.clone();
        if path == disk.root {
            // The folder of the members' folders.
            disk.members.values_mut().for_each(|member| member.forget_names_in(&path));
            return Some((path, Some(Trouble::default())));
        }
        let Some(member) = disk.member_of(&path) else { return Some((path, None)) };
        member.counts.syncs += 1;
        let trouble = member.trouble;
        Some((path, Some(trouble)))
    });
    let Some((path, trouble)) = found.flatten() else { return Synced::Elsewhere };
    let Some(trouble) = trouble else { return Synced::Failed(libc::EIO) };
    // Only LMDB's own syncs take time: whoever replaces a small file may hold a lock that the simulation's thread wants.
    if path.ends_with("data.mdb") && !trouble.sync_takes.is_zero() {
        quorate::sim::stall(trouble.sync_takes);
    }
    if let Some(error) = trouble.syncs_fail {
        return Synced::Failed(error);
    }
    let synced = with(|disk| {
        if path != disk.root {
            let Some(member) = disk.member_of(&path) else { return false };
            member.written.remove(&path);
            member.forget_names_in(&path);
        }
        true
    });
    if synced == Some(true) { Synced::Here } else { Synced::Failed(libc::EIO) }
}

pub fn before_rename(from: &Path, to: &Path) -> Result<(), c_int> {
    with(|disk| {
        let Some(member) = disk.member_of(to) else { return Ok(()) };
        if let Some(error) = member.trouble.writes_fail {
            return Err(error);
        }
        let replaced = fs::read(to).ok();
        let undo = Undo::Rename { from: from.to_owned(), to: to.to_owned(), replaced };
        member.named.push(naming(to, undo));
        if let Some(writes) = member.written.remove(from) {
            member.written.insert(to.to_owned(), writes);
        }
        Ok(())
    })
    .unwrap_or(Ok(()))
}

pub fn before_unlink(path: &Path) {
    if is_lock(path) {
        return;
    }
    with(|disk| {
        let Some(member) = disk.member_of(path) else { return };
        let content = if path.is_dir() { None } else { fs::read(path).ok() };
        member.named.push(naming(path, Undo::Restore(path.to_owned(), content)));
    });
}

pub fn made_folder(path: &Path) {
    with(|disk| {
        if let Some(member) = disk.member_of(path) {
            member.named.push(naming(path, Undo::Remove(path.to_owned())));
        }
    });
}

fn naming(path: &Path, undo: Undo) -> Naming {
    Naming { folder: path.parent().unwrap_or(path).to_owned(), undo }
}

/// LMDB's table of readers, and the lock of the folder, mean nothing after a restart.
fn is_lock(path: &Path) -> bool {
    path.ends_with("lock.mdb") || path.ends_with("LOCK")
}

impl Member {
    /// They are on the disk.
    fn forget_names_in(&mut self, folder: &Path) {
        self.named.retain(|naming| naming.folder != folder);
    }

    /// What is left of the folder if the power goes now.
    fn image_of(&mut self, folder: &Path, dice: &mut Dice) -> Image {
        let mut image = Image::read(folder);
        // What kind of disk it was shows when it fails.
        let keep = *dice.pick(&[0, 0, 50, 90, 100]);
        for (path, writes) in &self.written {
            if let Some(content) = image.files.get_mut(path) {
                forget(content, writes, keep, dice, &mut self.counts);
            }
        }
        let kept = dice.roll(self.named.len() as u64 + 1) as usize;
        for naming in self.named.drain(kept..).rev() {
            self.counts.lost += 1;
            naming.undo.carry_out(&mut image);
        }
        image
    }
}

/// Undoes all writes, and carries out those again that chance keeps.
fn forget(
    content: &mut Vec<u8>,
    writes: &[Write],
    keep: u64,
    dice: &mut Dice,
    counts: &mut Counts,
) {
    for write in writes.iter().rev() {
        content.truncate(write.length_before.max(write.at));
        content.resize(write.length_before, 0);
        let end = write.at + write.before.len();
        if end <= content.len() {
            content[write.at..end].copy_from_slice(&write.before);
        }
    }
    for write in writes {
        if !dice.percent(keep) {
            counts.lost += 1;
            continue;
        }
        let sectors = write.after.len().div_ceil(SECTOR) as u64;
        let is_torn = dice.percent(20);
        counts.torn += u64::from(is_torn);
        let length = if is_torn { dice.roll(sectors) as usize * SECTOR } else { write.after.len() };
        let end = write.at + length;
        if content.len() < end {
            content.resize(end, 0);
        }
        content[write.at..end].copy_from_slice(&write.after[..length]);
    }
}

impl Undo {
    fn carry_out(self, image: &mut Image) {
        match self {
            Self::Remove(path) => {
                image.files.retain(|file, _| !file.starts_with(&path));
                image.folders.retain(|folder| !folder.starts_with(&path));
            }
            Self::Restore(path, Some(content)) => drop(image.files.insert(path, content)),
            Self::Restore(path, None) => image.folders.push(path),
            Self::Rename { from, to, replaced } => {
                if let Some(content) = image.files.remove(&to) {
                    image.files.insert(from, content);
                }
                if let Some(content) = replaced {
                    image.files.insert(to, content);
                }
            }
        }
    }
}

impl Image {
    fn read(folder: &Path) -> Self {
        let mut image = Self::default();
        image.add(folder);
        image
    }

    fn add(&mut self, folder: &Path) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        self.folders.push(folder.to_owned());
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                self.add(&path);
            } else if !is_lock(&path) {
                let content = fs::read(&path);
                self.files.insert(path, content.expect("a file of the simulation can be read"));
            }
        }
    }

    fn write(&self, folder: &Path) {
        let write = || -> io::Result<()> {
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
        };
        write().expect("the simulation's folder can be written");
    }
}
