//! Several states side by side on the disk, and which of them counts.
//!
//! A state is never replaced in place: LMDB can close an environment only when the last reader is gone, and a snapshot
//! that is being loaded must not touch the state that it will replace. So each state has a folder with a number, and one
//! small file names the one that counts.
//!
//! ```text
//! CURRENT          "state-000007"        replaced as a whole: it names the old state or the new one
//! state-000007/    the state
//! state-000008/    a draft: a snapshot is being loaded; rubbish, if the node dies before it is published
//! ```
//!
//! Invariants
//! - what `CURRENT` names is whole and on the disk before it is named;
//! - a number is not used twice while the node lives, so a late reader of an old state cannot meet a new one;
//! - without `CURRENT` there is no state; a folder with one that lost its `CURRENT`, or the other way round, was meddled
//!   with, and a member that began anew there would forget what it has promised.

use crate::error::Fault;
use crate::fault::{Point, point};
use crate::lmdb;
use std::fs;
use std::path::{Path, PathBuf};

const CURRENT: &str = "CURRENT";
const PREFIX: &str = "state-";
const FIRST: u64 = 1;

/// The states of a node.
#[derive(Debug)]
pub(crate) struct Generations {
    folder: PathBuf,
    current: u64,
    /// The highest number that was given out.
    highest: u64,
}

impl Generations {
    /// Finds the state that counts, and removes what others left behind.
    pub(crate) fn open(folder: &Path) -> Result<Self, Fault> {
        lmdb::make_folder(folder)?;
        // A process may have come to its end between giving a name and making sure of it.
        lmdb::sync_folder(folder)?;
        let current = match read_current(folder)? {
            Some(current) => current,
            None => begin(folder)?,
        };
        let generations = Self { folder: folder.to_owned(), current, highest: current };
        generations.check_current()?;
        generations.remove_others(|_| true)?;
        Ok(generations)
    }

    /// The folder of the state that counts.
    pub(crate) fn current(&self) -> PathBuf {
        self.path(self.current)
    }

    /// A folder for a new state. It does not exist yet.
    pub(crate) fn draft(&mut self) -> PathBuf {
        self.highest += 1;
        self.path(self.highest)
    }

    /// Makes a draft the state that counts. What is in it must be on the disk.
    pub(crate) fn publish(&mut self, draft: &Path) -> Result<(), Fault> {
        let number = draft.file_name().and_then(|name| parse(&name.to_string_lossy()));
        let number = number.filter(|number| self.path(*number) == draft && *number > self.current);
        let number = number.ok_or_else(|| {
            Fault::assertion(format!("{} is no draft of this node", draft.display()))
        })?;
        lmdb::sync_folder(draft)?;
        lmdb::sync_folder(&self.folder)?;
        write_current(&self.folder, number)?;
        point(Point::SnapshotPublished);
        self.current = number;
        Ok(())
    }

    /// Removes the states before the one that counts. Only when they are closed.
    pub(crate) fn remove_older(&self) -> Result<(), Fault> {
        self.remove_others(|number| number < self.current)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(name(number))
    }

    /// The state that counts must be there. Only the first one may not have been made yet.
    fn check_current(&self) -> Result<(), Fault> {
        let path = self.current();
        if self.current == FIRST || path.join("data.mdb").exists() {
            return Ok(());
        }
        Err(Fault::corrupt(format!("{} is named by {CURRENT} and is not there", path.display())))
    }

    fn remove_others(&self, which: impl Fn(u64) -> bool) -> Result<(), Fault> {
        for number in numbers(&self.folder)? {
            if number != self.current && which(number) {
                let path = self.path(number);
                let tried = |error| Fault::disk(format!("cannot remove {}", path.display()), error);
                fs::remove_dir_all(&path).map_err(tried)?;
            }
        }
        Ok(())
    }
}

fn name(number: u64) -> String {
    format!("{PREFIX}{number:06}")
}

/// The number of a name, if it is one of ours to the letter.
fn parse(text: &str) -> Option<u64> {
    let number = text.strip_prefix(PREFIX)?.parse().ok()?;
    (name(number) == text).then_some(number)
}

fn read_current(folder: &Path) -> Result<Option<u64>, Fault> {
    let path = folder.join(CURRENT);
    match fs::read(&path) {
        Ok(text) => match parse(&String::from_utf8_lossy(&text)) {
            Some(number) => Ok(Some(number)),
            None => Err(Fault::corrupt(format!("{} names no state", path.display()))),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Fault::disk(format!("cannot read {}", path.display()), error)),
    }
}

fn write_current(folder: &Path, number: u64) -> Result<(), Fault> {
    lmdb::replace_file(&folder.join(CURRENT), name(number).as_bytes())
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
    let tried = |error| Fault::disk(format!("cannot read {}", folder.display()), error);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(tried)? {
        let name = entry.map_err(tried)?.file_name();
        found.extend(parse(&name.to_string_lossy()));
    }
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
        let mut states = Generations::open(folder.path()).unwrap();
        assert_eq!(states.current(), folder.path().join("state-000001"));
        fill(&states.current());
        let (refused, loaded, late) = (states.draft(), states.draft(), states.draft());
        [&refused, &loaded, &late].into_iter().for_each(|draft| fill(draft));
        states.publish(&loaded).unwrap();
        assert_eq!(states.current(), loaded);
        states.remove_older().unwrap();
        assert!(!refused.exists() && loaded.exists() && late.exists());

        let mut states = Generations::open(folder.path()).unwrap();
        assert_eq!(states.current(), loaded);
        assert!(!late.exists());
        assert_eq!(states.draft(), late);
        Generations::open(folder.path()).unwrap();
    }

    #[test]
    fn a_draft_that_was_not_published_leaves_the_old_state() {
        let folder = tempfile::tempdir().unwrap();
        let mut states = Generations::open(folder.path()).unwrap();
        fill(&states.current());
        let draft = states.draft();
        fill(&draft);
        fs::write(folder.path().join("CURRENT.draft"), "state-0000").unwrap();
        fs::create_dir(folder.path().join("state-7")).unwrap();
        let states = Generations::open(folder.path()).unwrap();
        assert!(states.current().join("data.mdb").exists() && !draft.exists());
        assert!(folder.path().join("state-7").exists(), "not ours");
    }

    #[test]
    fn a_folder_that_was_meddled_with_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut states = Generations::open(folder.path()).unwrap();
        let draft = states.draft();
        fill(&draft);
        states.publish(&draft).unwrap();
        assert!(states.publish(&draft).is_err(), "published twice");
        assert!(states.publish(Path::new("elsewhere/state-000009")).is_err());

        let current = folder.path().join(CURRENT);
        fs::write(&current, "state-2").unwrap();
        assert!(Generations::open(folder.path()).is_err());
        fs::write(&current, "state-000003").unwrap();
        assert!(Generations::open(folder.path()).is_err());
        fs::remove_file(&current).unwrap();
        assert!(Generations::open(folder.path()).is_err());
        assert!(draft.join("data.mdb").exists(), "and nothing is lost");
    }
}
