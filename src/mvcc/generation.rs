//! Several states side by side on the disk, and which of them counts.
//!
//! A state is never replaced in place: LMDB can close an environment only when the last reader is gone, and a snapshot
//! that is being loaded must not touch the state that it will replace. So each state has a folder with a number, and one
//! small file names the one that counts.
//!
//! ```text
//! CURRENT          "state-000007 sum"    replaced as a whole: it names the old state or the new one
//! state-000007/    the state
//! state-000008/    a draft: a snapshot is being loaded, or a smaller copy made; rubbish, if the node dies before it counts
//! RESTORING        a backup is being restored, and the rest is rubbish until this is gone
//! UNTRUSTED        the state that counts is not to be opened: another one has to take its place first
//! ```
//!
//! Invariants
//! - what `CURRENT` names is whole and on the disk before it is named; and it has a checksum, for who believed a wrong name would
//!   remove the right state;
//! - a number is not used twice in a folder while the process lives, nor one that was found there, so that a late reader of an
//!   old state cannot meet a new one, nor what is left of an earlier node remove it: a node that is shut down may have a draft
//!   that is looked over for minutes more, and another may have begun in its folder meanwhile;
//! - one state after the other is published: those who do so wait for each other;
//! - without `CURRENT` there is no state; a folder with one that lost its `CURRENT`, or the other way round, was meddled
//!   with, and a member that began anew there would forget what it has promised;
//! - a folder into which a backup is being restored is no data folder: `RESTORING` is there before the first thing that is
//!   restored, and goes when all of it is on the disk;
//! - a state that is not trusted is not opened: `UNTRUSTED` goes after `CURRENT` names another one, and not before.

use crate::error::{Fault, Reason};
use crate::fault::{Point, point};
use crate::lmdb;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const CURRENT: &str = "CURRENT";
const PREFIX: &str = "state-";
const FIRST: u64 = 1;
/// The number of a state that was restored. That one must be there from its first day; the first may not have been made.
const RESTORED: u64 = FIRST + 1;
const MARK: &str = "RESTORING";
const UNTRUSTED: &str = "UNTRUSTED";
/// What a file is called before it replaces another.
const DRAFT: &str = "draft";
/// The lock of the folder, which is no part of what is in it.
const LOCK: &str = "LOCK";

/// The highest number that this process has given out in each folder. They stay, a few words each: what a node has left behind
/// says to nobody when it goes.
static GIVEN: Mutex<BTreeMap<PathBuf, Arc<AtomicU64>>> = Mutex::new(BTreeMap::new());

/// What gives out the numbers of a folder, above one that was found there.
fn numbers_above(folder: &Path, found: u64) -> Result<Arc<AtomicU64>, Fault> {
    let cannot = |error| Fault::disk(format!("cannot open {}", folder.display()), error);
    let real = folder.canonicalize().map_err(cannot)?;
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let highest = given.entry(real).or_default();
    highest.fetch_max(found, Ordering::SeqCst);
    Ok(Arc::clone(highest))
}

/// The states of a node.
#[derive(Debug)]
pub(crate) struct Generations {
    folder: PathBuf,
    current: AtomicU64,
    /// The highest number that was given out, by this node or one before it.
    highest: Arc<AtomicU64>,
    /// Whether there may be states before the one that counts.
    has_older: AtomicBool,
}

/// A draft whose name is ready to be the one that counts.
#[derive(Debug)]
#[must_use = "it does not count yet"]
pub(crate) struct Announced<'a> {
    generations: &'a Generations,
    number: u64,
}

impl Announced<'_> {
    /// Makes it the state that counts. After an error nobody knows whether it is, and nothing may be written to either.
    pub(crate) fn publish(self) -> Result<(), Fault> {
        let Self { generations, number } = self;
        lmdb::name_drafted(&generations.folder.join(CURRENT))?;
        generations.current.store(number, Ordering::SeqCst);
        generations.has_older.store(true, Ordering::SeqCst);
        Ok(())
    }
}

impl Generations {
    /// Finds the state that counts, and removes what others left behind.
    pub(crate) fn open(folder: &Path) -> Result<Self, Fault> {
        lmdb::make_folder(folder)?;
        lmdb::sync_names_found(folder)?;
        Self::check_restored(folder)?;
        let current = match read_current(folder)? {
            Some(current) => current,
            None => begin(folder)?,
        };
        let highest = numbers(folder)?.last().copied().unwrap_or(current).max(current);
        let generations = Self {
            folder: folder.to_owned(),
            current: current.into(),
            highest: numbers_above(folder, highest)?,
            has_older: false.into(),
        };
        generations.check_current()?;
        generations.remove_others(|_| true)?;
        Ok(generations)
    }

    /// Refuses a folder into which a backup was restored only in part.
    pub(crate) fn check_restored(folder: &Path) -> Result<(), Fault> {
        let mark = folder.join(MARK);
        match mark.try_exists() {
            Ok(false) => Ok(()),
            Ok(true) => {
                let path = folder.display().to_string();
                Err(Fault::from_reason(Reason::RestoreInterrupted { path }))
            }
            Err(error) => Err(Fault::disk(format!("cannot read {}", mark.display()), error)),
        }
    }

    /// The room that there is where they are, if that is known.
    pub(crate) fn disk(&self) -> Option<lmdb::Room> {
        lmdb::room(&self.folder)
    }

    /// How many bytes of it are left.
    pub(crate) fn room(&self) -> Option<u64> {
        self.disk().map(|disk| disk.left)
    }

    /// The folder of the state that counts.
    pub(crate) fn current(&self) -> PathBuf {
        self.path(self.number())
    }

    fn number(&self) -> u64 {
        self.current.load(Ordering::SeqCst)
    }

    /// A folder for a new state. It does not exist yet.
    pub(crate) fn draft(&self) -> PathBuf {
        self.path(self.highest.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Makes a draft the state that counts. What is in it must be on the disk.
    pub(crate) fn publish(&self, draft: &Path) -> Result<(), Fault> {
        self.announce(draft)?.publish()?;
        point(Point::SnapshotPublished);
        Ok(())
    }

    /// Does all that it takes to publish a draft but the last step. After an error the state that counted still does.
    pub(crate) fn announce(&self, draft: &Path) -> Result<Announced<'_>, Fault> {
        let number = draft.file_name().and_then(|name| parse(&name.to_string_lossy()));
        let is_draft = |number: &u64| self.path(*number) == draft && *number > self.number();
        let number = number.filter(is_draft).ok_or_else(|| {
            Fault::assertion(format!("{} is no draft of this node", draft.display()))
        })?;
        lmdb::sync_folder(draft)?;
        lmdb::sync_folder(&self.folder)?;
        lmdb::draft_file(&self.folder.join(CURRENT), naming(number).as_bytes())?;
        Ok(Announced { generations: self, number })
    }

    /// Marks the state that counts as one that is not to be opened again, and keeps a word about that. Who does so names
    /// another one, and then [trusts](Self::trust) that.
    pub(crate) fn distrust(&self, word: &[u8]) -> Result<(), Fault> {
        lmdb::replace_file(&self.folder.join(UNTRUSTED), word)
    }

    /// The word about the state that counts in a folder, if that is not to be opened.
    pub(crate) fn untrusted(folder: &Path) -> Result<Option<Vec<u8>>, Fault> {
        let mark = folder.join(UNTRUSTED);
        match fs::read(&mark) {
            Ok(word) => Ok(Some(word)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Fault::disk(format!("cannot read {}", mark.display()), error)),
        }
    }

    /// Whether the state that counts is one that is not to be opened.
    pub(crate) fn is_distrusted(&self) -> Result<bool, Fault> {
        Self::untrusted(&self.folder).map(|word| word.is_some())
    }

    /// Another state counts now. If the power goes first, that one is replaced once more.
    pub(crate) fn trust(&self) -> Result<(), Fault> {
        remove_file(&self.folder, UNTRUSTED)
    }

    /// Removes the states before the one that counts that nobody has open any more; the others at a later call. Returns
    /// whether there were any.
    pub(crate) fn remove_older(&self) -> Result<bool, Fault> {
        if !self.has_older.swap(false, Ordering::SeqCst) {
            return Ok(false);
        }
        let (current, mut is_left, mut any) = (self.number(), false, false);
        let removed = self.remove_others(|number| {
            let is_open = number < current && !lmdb::is_closed(&self.path(number));
            let is_over = number < current && !is_open;
            (is_left, any) = (is_left || is_open, any || is_over);
            is_over
        });
        self.has_older.fetch_or(is_left || removed.is_err(), Ordering::SeqCst);
        removed.map(|()| any)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(name(number))
    }

    /// The state that counts must be there. Only the first one may not have been made yet, and then there is no other.
    fn check_current(&self) -> Result<(), Fault> {
        let path = self.current();
        let is_alone = || Ok::<_, Fault>(numbers(&self.folder)?.iter().all(|it| *it == FIRST));
        if path.join("data.mdb").exists() || self.number() == FIRST && is_alone()? {
            return Ok(());
        }
        Err(Fault::corrupt(format!("{} is named by {CURRENT} and is not there", path.display())))
    }

    fn remove_others(&self, mut which: impl FnMut(u64) -> bool) -> Result<(), Fault> {
        for number in numbers(&self.folder)? {
            if number != self.number() && which(number) {
                remove(&self.path(number))?;
            }
        }
        Ok(())
    }
}

/// Removes a state. Its owner may be about to do the same.
fn remove(path: &Path) -> Result<(), Fault> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Fault::disk(format!("cannot remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// A data folder that a backup is being restored into. Whoever has it has locked the folder.
#[derive(Debug)]
pub(crate) struct Restoring(PathBuf);

impl Restoring {
    /// Begins in a folder that is empty, or where this was begun before and did not end.
    pub(crate) fn begin(folder: &Path) -> Result<Self, Fault> {
        let names = names(folder)?;
        let began = names.iter().any(|name| name == MARK);
        let is_ours = |name: &String| {
            let is_left = began && (name == MARK || is_restored(name));
            is_left || name == LOCK || *name == draft_of(MARK)
        };
        if !names.iter().all(is_ours) {
            let path = folder.display().to_string();
            return Err(Fault::from_reason(Reason::FolderNotEmpty { path }));
        }
        let restoring = Self(folder.to_owned());
        if began {
            restoring.clear()?;
        } else {
            lmdb::replace_file(&folder.join(MARK), b"a backup is being restored here")?;
        }
        Ok(restoring)
    }

    /// Where the state goes. It does not exist yet.
    pub(crate) fn state(&self) -> PathBuf {
        self.0.join(name(RESTORED))
    }

    /// Makes it a data folder. The state must be on the disk, and closed.
    pub(crate) fn publish(self) -> Result<(), Fault> {
        lmdb::sync_folder(&self.state())?;
        write_current(&self.0, RESTORED)?;
        self.remove_mark()
    }

    /// Leaves the folder empty, as far as that is possible: what could not be removed is still marked.
    pub(crate) fn abandon(self) {
        let _ = self.clear().and_then(|()| self.remove_mark());
    }

    /// Removes everything but the mark.
    fn clear(&self) -> Result<(), Fault> {
        for name in names(&self.0)?.iter().filter(|name| is_restored(name)) {
            let path = self.0.join(name);
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed
                .map_err(|error| Fault::disk(format!("cannot remove {}", path.display()), error))?;
        }
        lmdb::sync_folder(&self.0)
    }

    fn remove_mark(&self) -> Result<(), Fault> {
        remove_file(&self.0, MARK)
    }
}

/// Removes a file for good.
fn remove_file(folder: &Path, name: &str) -> Result<(), Fault> {
    let path = folder.join(name);
    let tried = |error| Fault::disk(format!("cannot remove {}", path.display()), error);
    fs::remove_file(&path).map_err(tried)?;
    lmdb::sync_folder(folder)
}

/// Whether a name is of something that restoring makes.
fn is_restored(text: &str) -> bool {
    text == name(RESTORED) || text == CURRENT || text == draft_of(CURRENT)
}

fn draft_of(name: &str) -> String {
    format!("{name}.{DRAFT}")
}

fn names(folder: &Path) -> Result<Vec<String>, Fault> {
    let tried = |error| Fault::disk(format!("cannot read {}", folder.display()), error);
    let entries = fs::read_dir(folder).map_err(tried)?;
    entries
        .map(|entry| Ok(entry.map_err(tried)?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn name(number: u64) -> String {
    format!("{PREFIX}{number:06}")
}

/// The number of a name, if it is one of ours to the letter.
fn parse(text: &str) -> Option<u64> {
    let number = text.strip_prefix(PREFIX)?.parse().ok()?;
    (name(number) == text).then_some(number)
}

/// What names a state.
fn naming(number: u64) -> String {
    let name = name(number);
    format!("{name} {:08x}", crc32c::crc32c(name.as_bytes()))
}

fn parse_naming(text: &str) -> Option<u64> {
    match text.split_once(' ') {
        Some((name, _)) => parse(name).filter(|number| naming(*number) == text),
        // Of an earlier version.
        None => parse(text),
    }
}

fn read_current(folder: &Path) -> Result<Option<u64>, Fault> {
    let path = folder.join(CURRENT);
    match fs::read(&path) {
        Ok(text) => match parse_naming(&String::from_utf8_lossy(&text)) {
            Some(number) => Ok(Some(number)),
            None => Err(Fault::corrupt(format!("{} names no state", path.display()))),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Fault::disk(format!("cannot read {}", path.display()), error)),
    }
}

fn write_current(folder: &Path, number: u64) -> Result<(), Fault> {
    lmdb::replace_file(&folder.join(CURRENT), naming(number).as_bytes())
}

/// Names the first state of a node, before it is made.
fn begin(folder: &Path) -> Result<u64, Fault> {
    if let Some(number) = numbers(folder)?.first() {
        return Err(Fault::corrupt(format!(
            "{} has {} and no {CURRENT} that names it",
            folder.display(),
            name(*number)
        )));
    }
    write_current(folder, FIRST)?;
    Ok(FIRST)
}

/// The numbers of all states in a folder, in order.
fn numbers(folder: &Path) -> Result<Vec<u64>, Fault> {
    let mut found: Vec<u64> = names(folder)?.iter().filter_map(|name| parse(name)).collect();
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(state: &Path) {
        fs::create_dir(state).unwrap();
        fs::write(state.join("data.mdb"), state.to_string_lossy().as_bytes()).unwrap();
    }

    #[test]
    fn the_published_state_counts_after_a_restart_and_the_rest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let states = Generations::open(folder.path()).unwrap();
        assert_eq!(states.current(), folder.path().join("state-000001"));
        fill(&states.current());
        let (refused, loaded, late) = (states.draft(), states.draft(), states.draft());
        [&refused, &loaded, &late].into_iter().for_each(|draft| fill(draft));
        states.publish(&loaded).unwrap();
        assert_eq!(states.current(), loaded);
        assert!(states.remove_older().unwrap());
        assert!(!refused.exists() && loaded.exists() && late.exists());

        let states = Generations::open(folder.path()).unwrap();
        assert_eq!(states.current(), loaded);
        assert!(!late.exists());
        assert_eq!(
            states.draft(),
            folder.path().join("state-000005"),
            "a found number is not used"
        );
        Generations::open(folder.path()).unwrap();
    }

    /// A node that has been shut down may drop a draft minutes later, with its folder, and another has begun there.
    #[test]
    fn no_number_is_used_by_two_lives_of_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let mut given = std::collections::BTreeSet::new();
        // By another name it is the same folder.
        let names = [folder.path().to_owned(), folder.path().join("aside/..")];
        fs::create_dir(folder.path().join("aside")).unwrap();
        for life in 0..4 {
            let states = Generations::open(&names[life % 2]).unwrap();
            if life == 0 {
                fill(&states.current());
            }
            // One that is there when the next life begins, which removes it; and one that is not made yet.
            let drafts = [states.draft(), states.draft()];
            fill(&drafts[0]);
            let fresh =
                drafts.iter().all(|draft| given.insert(draft.file_name().unwrap().to_owned()));
            assert!(fresh, "in life {life}: {drafts:?}");
        }
    }

    #[test]
    fn a_draft_that_was_not_published_leaves_the_old_state() {
        let folder = tempfile::tempdir().unwrap();
        let states = Generations::open(folder.path()).unwrap();
        fill(&states.current());
        let draft = states.draft();
        fill(&draft);
        fs::write(folder.path().join("CURRENT.draft"), "state-0000").unwrap();
        fs::create_dir(folder.path().join("state-7")).unwrap();
        let states = Generations::open(folder.path()).unwrap();
        assert!(states.current().join("data.mdb").exists() && !draft.exists());
        assert!(folder.path().join("state-7").exists(), "not ours");
    }

    /// At whatever step the power goes, there is the mark, or a state that another one has taken the place of.
    #[test]
    fn a_state_that_is_not_trusted_stays_so_until_another_one_counts() {
        let folder = tempfile::tempdir().unwrap();
        let untrusted = || Generations::untrusted(folder.path()).unwrap();
        let states = Generations::open(folder.path()).unwrap();
        fill(&states.current());
        assert_eq!(untrusted(), None);
        states.distrust(b"why").unwrap();
        let draft = states.draft();
        fill(&draft);
        Generations::open(folder.path()).unwrap();
        assert_eq!(untrusted().as_deref(), Some(&b"why"[..]), "the draft was not named");
        fill(&draft);
        states.publish(&draft).unwrap();
        assert_eq!(
            untrusted().as_deref(),
            Some(&b"why"[..]),
            "it is named, and may go with the power"
        );
        let states = Generations::open(folder.path()).unwrap();
        assert_eq!(states.current(), draft);
        states.trust().unwrap();
        assert_eq!(untrusted(), None);
    }

    #[test]
    fn a_folder_that_was_meddled_with_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let states = Generations::open(folder.path()).unwrap();
        let draft = states.draft();
        fill(&draft);
        states.publish(&draft).unwrap();
        assert!(states.publish(&draft).is_err(), "published twice");
        assert!(states.publish(Path::new("elsewhere/state-000009")).is_err());

        let current = folder.path().join(CURRENT);
        fs::write(&current, "state-2").unwrap();
        assert!(Generations::open(folder.path()).is_err());
        // As an earlier version names it, and not the right one.
        fs::write(&current, "state-000001").unwrap();
        assert!(Generations::open(folder.path()).is_err());
        for at in 0..naming(2).len() * 8 {
            let mut flipped = naming(2).into_bytes();
            flipped[at / 8] ^= 1 << (at % 8);
            fs::write(&current, flipped).unwrap();
            assert!(Generations::open(folder.path()).is_err(), "bit {at}");
        }
        fs::write(&current, "state-000003").unwrap();
        assert!(Generations::open(folder.path()).is_err());
        fs::remove_file(&current).unwrap();
        assert!(Generations::open(folder.path()).is_err());
        assert!(draft.join("data.mdb").exists(), "and nothing is lost");
    }

    fn reason(result: Result<impl std::fmt::Debug, Fault>) -> Reason {
        result.unwrap_err().reason().clone()
    }

    /// At whatever step the power goes, the folder is refused as a data folder, and can be restored into again.
    #[test]
    fn a_folder_that_was_restored_in_part_is_no_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        let interrupted = Reason::RestoreInterrupted { path };
        for steps in 0..4 {
            let restoring = Restoring::begin(folder.path()).unwrap();
            assert_eq!(names(folder.path()).unwrap(), [MARK], "what was left is gone");
            if steps > 0 {
                fill(&restoring.state());
            }
            if steps > 1 {
                fs::write(folder.path().join("CURRENT.draft"), "state-0").unwrap();
            }
            if steps > 2 {
                write_current(folder.path(), RESTORED).unwrap();
            }
            assert_eq!(reason(Generations::open(folder.path())), interrupted);
        }
        let restoring = Restoring::begin(folder.path()).unwrap();
        fill(&restoring.state());
        restoring.publish().unwrap();
        let states = Generations::open(folder.path()).unwrap();
        assert_eq!(states.current(), folder.path().join("state-000002"));
        fs::remove_dir_all(states.current()).unwrap();
        assert!(Generations::open(folder.path()).is_err(), "it is never made anew");
    }

    #[test]
    fn what_is_not_left_by_a_restore_is_in_its_way() {
        for name in ["state-000002", "CURRENT", "raft", "notes", ".hidden", "RESTORING2"] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(LOCK), "").unwrap();
            fs::write(folder.path().join(name), "mine").unwrap();
            let path = folder.path().display().to_string();
            let refused = reason(Restoring::begin(folder.path()));
            assert_eq!(refused, Reason::FolderNotEmpty { path }, "{name}");
            assert_eq!(fs::read(folder.path().join(name)).unwrap(), b"mine");
            assert!(!folder.path().join(MARK).exists());
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("RESTORING.draft"), "").unwrap();
        let restoring = Restoring::begin(folder.path()).unwrap();
        fill(&restoring.state());
        fs::write(folder.path().join("notes"), "mine").unwrap();
        assert!(Restoring::begin(folder.path()).is_err(), "somebody has begun to use it");
        assert!(restoring.state().exists());
        fs::remove_file(folder.path().join("notes")).unwrap();
        restoring.abandon();
        assert_eq!(names(folder.path()).unwrap(), Vec::<String>::new());
    }
}
