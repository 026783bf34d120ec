//! What a disk holds, and what it would hold if the power went now. Pure: it touches no file.
//!
//! ```text
//! write, rename, unlink, … ──▶ now         what everybody reads
//!                          └─▶ unsynced    how to take each back, in order; a sync drops those of its file or folder
//! power loss ──▶ image: now, with all that is unsynced taken back, but for what chance keeps
//! ```
//!
//! A write is kept, lost, or torn at a sector, each by itself. Names are kept up to some point: a file system writes them
//! down in order.
//!
//! Invariants
//! - what was written before a sync began that has ended is in the image, unless a sync that failed came between: then it
//!   counts as written, is still read, and no later sync looks at it;
//! - the image is of one moment, also for names and contents of different files.

use crate::dice::Dice;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A write reaches the disk whole, or up to a multiple of this.
const SECTOR: usize = 512;

/// Files and folders, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    pub folders: BTreeSet<PathBuf>,
}

/// Something that changes a disk.
#[derive(Clone, Debug)]
pub enum Change {
    MakeFolder(PathBuf),
    /// Makes an empty file, or empties one.
    Create(PathBuf),
    Write {
        path: PathBuf,
        at: usize,
        bytes: Vec<u8>,
        /// It was on the disk when it returned.
        is_durable: bool,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    /// Removes a file, or an empty folder.
    Remove(PathBuf),
    /// What was written to a file, or named in a folder, is on the disk, if it was the change `begun` or an earlier one.
    Sync {
        path: PathBuf,
        begun: u64,
    },
    /// It was to be, and none of it is.
    SyncFailed {
        path: PathBuf,
        begun: u64,
    },
}

/// How much of what is not synced a power loss leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing of it.
    All,
    /// All of it.
    Nothing,
    /// So many writes of a hundred, and some of those torn.
    Some(u64),
}

/// What was lost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lost {
    pub writes: u64,
    pub torn: u64,
    pub names: u64,
}

/// The disk of one member.
#[derive(Clone, Debug, Default)]
pub struct Model {
    now: Image,
    /// How many changes there were.
    changes: u64,
    written: BTreeMap<PathBuf, Vec<Write>>,
    named: Vec<Naming>,
}

#[derive(Clone, Debug)]
struct Write {
    number: u64,
    at: usize,
    /// What was there, if the file was that long.
    before: Vec<u8>,
    length_before: usize,
    after: Vec<u8>,
    /// No sync looks at it any more.
    is_forgotten: bool,
}

/// A change of names, and how it is undone.
#[derive(Clone, Debug)]
struct Naming {
    number: u64,
    folder: PathBuf,
    undo: Undo,
}

#[derive(Clone, Debug)]
enum Undo {
    Forget(PathBuf),
    RestoreFile(PathBuf, Old),
    RestoreFolder(PathBuf),
    /// Takes the new name back, and puts what it had replaced in its place.
    Rename {
        from: PathBuf,
        to: PathBuf,
        replaced: Option<Old>,
    },
}

/// A file that has lost its name, with what of it was not synced.
#[derive(Clone, Debug)]
struct Old {
    content: Vec<u8>,
    written: Vec<Write>,
}

impl Model {
    /// A disk that holds an image, all of it synced.
    pub fn new(now: Image) -> Self {
        Self { now, ..Self::default() }
    }

    /// What everybody reads.
    pub fn now(&self) -> &Image {
        &self.now
    }

    /// The number of the last change: what a sync that begins now takes with it.
    pub fn last(&self) -> u64 {
        self.changes
    }

    pub fn carry_out(&mut self, change: &Change) {
        self.changes += 1;
        match change {
            Change::MakeFolder(path) => {
                self.now.folders.insert(path.clone());
                self.note(path, Undo::Forget(path.clone()));
            }
            Change::Create(path) => self.create(path),
            Change::Write { path, at, bytes, is_durable } => {
                self.write(path, *at, bytes, *is_durable);
            }
            Change::Rename { from, to } => self.rename(from, to),
            Change::Remove(path) => self.remove(path),
            Change::Sync { path, begun } => {
                if let Some(writes) = self.written.get_mut(path) {
                    writes.retain(|write| write.number > *begun || write.is_forgotten);
                }
                self.named.retain(|naming| naming.folder != *path || naming.number > *begun);
            }
            Change::SyncFailed { path, begun } => {
                let writes = self.written.get_mut(path).into_iter().flatten();
                let begun = writes.filter(|write| write.number <= *begun);
                begun.for_each(|write| write.is_forgotten = true);
            }
        }
    }

    fn note(&mut self, path: &Path, undo: Undo) {
        let folder = path.parent().unwrap_or(path).to_owned();
        self.named.push(Naming { number: self.changes, folder, undo });
    }

    fn create(&mut self, path: &Path) {
        let undo = match self.take(path) {
            Some(old) => Undo::RestoreFile(path.to_owned(), old),
            None => Undo::Forget(path.to_owned()),
        };
        self.now.files.insert(path.to_owned(), Vec::new());
        self.note(path, undo);
    }

    /// Takes a file from under its name.
    fn take(&mut self, path: &Path) -> Option<Old> {
        let written = self.written.remove(path).unwrap_or_default();
        self.now.files.remove(path).map(|content| Old { content, written })
    }

    fn write(&mut self, path: &Path, at: usize, bytes: &[u8], is_durable: bool) {
        // Who has it open may go on writing to a file that was removed, and nobody will read it.
        let Some(file) = self.now.files.get_mut(path) else { return };
        let (length_before, end) = (file.len(), at + bytes.len());
        if !is_durable {
            let before = file[at.min(length_before)..end.min(length_before)].to_vec();
            let (number, after) = (self.changes, bytes.to_vec());
            let writes = self.written.entry(path.to_owned()).or_default();
            // Whoever writes in the same place has it written.
            let overlaps = |write: &&mut Write| write.at < end && at < write.at + write.after.len();
            writes.iter_mut().filter(overlaps).for_each(|write| write.is_forgotten = false);
            let is_forgotten = false;
            writes.push(Write { number, at, before, length_before, after, is_forgotten });
        }
        file.resize(length_before.max(end), 0);
        file[at..end].copy_from_slice(bytes);
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        let Some(Old { content, written }) = self.take(from) else { return };
        let replaced = self.take(to);
        self.now.files.insert(to.to_owned(), content);
        self.written.insert(to.to_owned(), written);
        self.note(to, Undo::Rename { from: from.to_owned(), to: to.to_owned(), replaced });
    }

    fn remove(&mut self, path: &Path) {
        if let Some(old) = self.take(path) {
            self.note(path, Undo::RestoreFile(path.to_owned(), old));
        } else if self.now.folders.remove(path) {
            self.note(path, Undo::RestoreFolder(path.to_owned()));
        }
    }

    /// What is left if the power goes now.
    pub fn image(&self, loss: Loss, dice: &mut Dice, lost: &mut Lost) -> Image {
        let mut image = self.now.clone();
        for (path, writes) in &self.written {
            if let Some(content) = image.files.get_mut(path) {
                forget(content, writes, loss, dice, lost);
            }
        }
        let kept = match loss {
            Loss::All => 0,
            Loss::Nothing => self.named.len(),
            Loss::Some(_) => dice.roll(self.named.len() as u64 + 1) as usize,
        };
        for naming in self.named[kept..].iter().rev() {
            lost.names += 1;
            naming.undo.carry_out(&mut image, &mut |old| {
                let mut content = old.content.clone();
                forget(&mut content, &old.written, loss, dice, lost);
                content
            });
        }
        image
    }
}

/// Takes all writes back, and carries out those again that chance keeps.
fn forget(content: &mut Vec<u8>, writes: &[Write], loss: Loss, dice: &mut Dice, lost: &mut Lost) {
    for write in writes.iter().rev() {
        let end = write.at + write.after.len();
        if content.len() <= end {
            content.truncate(write.length_before.max(write.at));
            content.resize(write.length_before, 0);
        } else {
            // Something behind it is kept.
            content[write.length_before.clamp(write.at, end)..end].fill(0);
        }
        content[write.at.min(write.length_before)..][..write.before.len()]
            .copy_from_slice(&write.before);
    }
    for write in writes {
        let keep = match loss {
            Loss::All => 0,
            Loss::Nothing => 100,
            Loss::Some(keep) => keep,
        };
        if !dice.percent(keep) {
            lost.writes += 1;
            continue;
        }
        let sectors = write.after.len().div_ceil(SECTOR) as u64;
        let is_torn = loss != Loss::Nothing && dice.percent(20);
        lost.torn += u64::from(is_torn);
        let length = if is_torn { dice.roll(sectors) as usize * SECTOR } else { write.after.len() };
        let end = write.at + length;
        if content.len() < end {
            content.resize(end, 0);
        }
        content[write.at..end].copy_from_slice(&write.after[..length]);
    }
}

impl Undo {
    /// `kept` is what the disk has kept of a file.
    fn carry_out(&self, image: &mut Image, kept: &mut dyn FnMut(&Old) -> Vec<u8>) {
        match self {
            Self::Forget(path) => {
                image.files.retain(|file, _| !file.starts_with(path));
                image.folders.retain(|folder| !folder.starts_with(path));
            }
            Self::RestoreFile(path, old) => {
                image.files.insert(path.clone(), kept(old));
            }
            Self::RestoreFolder(path) => {
                image.folders.insert(path.clone());
            }
            Self::Rename { from, to, replaced } => {
                if let Some(content) = image.files.remove(to) {
                    image.files.insert(from.clone(), content);
                }
                if let Some(old) = replaced {
                    image.files.insert(to.clone(), kept(old));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        Path::new("/d").join(name)
    }

    fn write(name: &str, at: usize, bytes: &[u8]) -> Change {
        Change::Write { path: path(name), at, bytes: bytes.to_vec(), is_durable: false }
    }

    fn sync(model: &Model, name: &str) -> Change {
        Change::Sync { path: path(name), begun: model.last() }
    }

    /// A disk with the file `a`, which is synced, and its name as well.
    fn with_a(bytes: &[u8]) -> Model {
        let files = BTreeMap::from([(path("a"), bytes.to_vec())]);
        Model::new(Image { files, folders: BTreeSet::from([path("")]) })
    }

    fn after(model: &Model, loss: Loss, seed: u64) -> BTreeMap<PathBuf, Vec<u8>> {
        model.image(loss, &mut Dice::new(seed), &mut Lost::default()).files
    }

    #[test]
    fn what_was_not_synced_is_lost_and_what_was_is_not() {
        let mut model = with_a(b"0123");
        model.carry_out(&write("a", 1, b"ab"));
        model.carry_out(&sync(&model, "a"));
        model.carry_out(&write("a", 2, b"XYZ"));
        model.carry_out(&write("a", 0, b"W"));
        assert_eq!(model.now().files[&path("a")], b"WaXYZ");
        assert_eq!(after(&model, Loss::All, 0)[&path("a")], b"0ab3");
        assert_eq!(after(&model, Loss::Nothing, 0)[&path("a")], b"WaXYZ");
    }

    /// As Linux has it: the pages count as clean, and only the memory has them.
    #[test]
    fn what_a_failed_sync_was_to_write_is_not_written_by_the_next_one() {
        let mut model = with_a(b"0123");
        model.carry_out(&write("a", 2, b"abc"));
        let begun = model.last();
        model.carry_out(&Change::SyncFailed { path: path("a"), begun });
        model.carry_out(&write("a", 5, b"xy"));
        model.carry_out(&sync(&model, "a"));
        assert_eq!(model.now().files[&path("a")], b"01abcxy");
        assert_eq!(after(&model, Loss::All, 0)[&path("a")], b"0123\0xy");
        model.carry_out(&write("a", 2, b"abc"));
        model.carry_out(&sync(&model, "a"));
        assert_eq!(after(&model, Loss::All, 0)[&path("a")], b"01abcxy");
    }

    #[test]
    fn a_sync_takes_nothing_with_it_that_came_after_its_beginning() {
        let mut model = with_a(b"");
        model.carry_out(&write("a", 0, b"1"));
        let begun = sync(&model, "a");
        model.carry_out(&write("a", 1, b"2"));
        model.carry_out(&begun);
        assert_eq!(after(&model, Loss::All, 0)[&path("a")], b"1");
        let durable =
            Change::Write { path: path("a"), at: 0, bytes: b"9".to_vec(), is_durable: true };
        model.carry_out(&durable);
        assert_eq!(after(&model, Loss::All, 0)[&path("a")], b"9");
    }

    #[test]
    fn writes_are_lost_one_by_one_and_torn_at_sectors() {
        let mut model = with_a(&[0; 3 * SECTOR]);
        model.carry_out(&write("a", 0, &[1; 2 * SECTOR]));
        model.carry_out(&write("a", 2 * SECTOR, &[2; SECTOR]));
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let content = after(&model, Loss::Some(50), seed).remove(&path("a")).unwrap();
            let sectors = content.chunks(SECTOR).map(|sector| {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is whole");
                sector[0]
            });
            seen.insert(sectors.collect::<Vec<u8>>());
        }
        let all = [[0, 0, 0], [0, 0, 2], [1, 0, 0], [1, 0, 2], [1, 1, 0], [1, 1, 2]];
        assert_eq!(seen, all.map(|sectors| sectors.to_vec()).into());
    }

    #[test]
    fn a_name_is_lost_without_a_sync_of_its_folder_and_gives_back_what_it_replaced() {
        let mut model = with_a(b"old");
        model.carry_out(&Change::Create(path("new")));
        model.carry_out(&write("new", 0, b"content"));
        model.carry_out(&sync(&model, "new"));
        model.carry_out(&Change::Rename { from: path("new"), to: path("a") });
        assert_eq!(model.now().files.len(), 1);
        let lost = after(&model, Loss::All, 0);
        assert_eq!(lost, BTreeMap::from([(path("a"), b"old".to_vec())]));
        model.carry_out(&sync(&model, ""));
        let kept = after(&model, Loss::All, 0);
        assert_eq!(kept, BTreeMap::from([(path("a"), b"content".to_vec())]));
    }

    #[test]
    fn names_are_kept_up_to_some_point_in_their_order() {
        let mut model = with_a(b"");
        for name in ["b", "c"] {
            model.carry_out(&Change::Create(path(name)));
        }
        model.carry_out(&Change::Remove(path("a")));
        let mut seen = BTreeSet::new();
        for seed in 0..100 {
            let names = after(&model, Loss::Some(100), seed).into_keys();
            seen.insert(names.map(|it| it.file_name().unwrap().to_owned()).collect::<Vec<_>>());
        }
        let all = [vec!["a"], vec!["a", "b"], vec!["a", "b", "c"], vec!["b", "c"]];
        assert_eq!(seen, all.map(|names| names.into_iter().map(Into::into).collect()).into());
    }

    #[test]
    fn what_comes_back_with_its_name_has_lost_what_was_not_synced() {
        let mut model = with_a(b"old");
        model.carry_out(&write("a", 0, b"new"));
        model.carry_out(&Change::Remove(path("a")));
        assert_eq!(after(&model, Loss::All, 0)[&path("a")], b"old");
        model.carry_out(&Change::Create(path("b")));
        model.carry_out(&Change::Rename { from: path("b"), to: path("a") });
        assert_eq!(after(&model, Loss::All, 0)[&path("a")], b"old");
    }

    /// Who has it open may go on.
    #[test]
    fn a_removed_file_stays_removed() {
        let mut model = with_a(b"old");
        model.carry_out(&Change::Remove(path("a")));
        model.carry_out(&write("a", 0, b"more"));
        assert!(model.now().files.is_empty());
        assert_eq!(after(&model, Loss::All, 0)[&path("a")], b"old");
    }
}
