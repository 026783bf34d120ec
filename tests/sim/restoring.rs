//! **The power goes while a backup is restored, at any change of the disk: no node ever starts on half of it.**
//!
//! What a restore does to the disk is recorded. Then, after each change, and for each way in which a disk may forget, the
//! folder is made what it would have been. A node that is started there is refused, or has all of what was restored, or finds
//! a folder in which nothing had been begun; and when the restore had returned, it has all. Where it does not, the backup can
//! be restored again.

use crate::book::Book;
use crate::dice::Dice;
use crate::disk;
use crate::disk::model::{Image, Loss, Lost, Model};
use crate::run;
use quorate::{Backup, Node, Reason, Result};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// How many changes a restore makes, at least: fewer would mean that they are not seen.
const CHANGES_MIN: usize = 20;

/// Waits for something on a runtime of tokio's: nothing here is simulated but the disk.
fn real<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(future)
}

fn node(folder: &Path) -> Result<Node> {
    let heartbeat = Duration::from_millis(20);
    real(Node::builder(folder).heartbeat(heartbeat).solo())
}

/// Whether a node that starts there has all that was restored; `None` if it is refused.
fn has_all(folder: &Path) -> Option<bool> {
    match node(folder) {
        Ok(node) => Some(real(async {
            let found = node.client().get("key").await.expect("it serves");
            node.shutdown().await.expect("it ends");
            found.is_some()
        })),
        Err(error) => {
            let is_told = matches!(error.reason(), Reason::RestoreInterrupted { .. });
            assert!(is_told, "it says what to do: {error}");
            None
        }
    }
}

/// Whether nothing in the folder counts.
fn is_empty(folder: &Path) -> bool {
    let Ok(names) = fs::read_dir(folder) else { return true };
    let names = names.map(|it| it.expect("it can be read"));
    let mut names = names.map(|it| it.file_name().to_string_lossy().into_owned());
    names.all(|name| name == "LOCK" || name == "RESTORING.draft")
}

pub fn at_every_change() {
    let place = tempfile::Builder::new().prefix("quorate-restoring").tempdir_in(run::place());
    let place = place.expect("a folder");
    let (root, path) = (place.path().join("disk"), place.path().join("backup"));
    let old = node(&place.path().join("old")).expect("it starts");
    real(async {
        for number in 0..50u8 {
            old.client().put(format!("k{number}"), vec![number; 1000]).await.expect("it serves");
        }
        old.client().put("key", "value").await.expect("it serves");
        let mut bytes = Vec::new();
        old.backup(&mut bytes).await.expect("it can be read");
        fs::write(&path, bytes).expect("it can be written");
        old.shutdown().await.expect("it ends");
    });

    let mut dice = Dice::new(1).fork("restoring");
    fs::create_dir(&root).expect("it can be made");
    disk::take_over(&root, dice.fork("disk"));
    disk::record(Book::default());
    let member = root.join("member");
    real(Backup::restore(&path, &member)).expect("it is restored");
    let journal = disk::recorded();
    assert!(disk::is_right(&member), "harness: it is not what was recorded");
    assert!(journal.len() >= CHANGES_MIN, "{} changes", journal.len());

    let (mut model, mut refused, mut whole) = (Model::default(), 0, 0);
    for number in 0..=journal.len() {
        for loss in [Loss::All, Loss::Nothing, Loss::Some(50), Loss::Some(90)] {
            let image = model.image(loss, &mut dice, &mut Lost::default());
            let found = try_on(image, &member, &path, dice.percent(5));
            match found {
                None => refused += 1,
                Some(true) => whole += 1,
                Some(false) => {}
            }
            let is_done = number == journal.len();
            assert!(!is_done || found == Some(true), "it had been restored: {loss:?}");
        }
        if let Some(entry) = journal.get(number) {
            model.carry_out(&entry.change);
        }
    }
    println!("{} changes; {refused} images were refused, {whole} were whole", journal.len());
    assert!(refused > 0 && whole > 0);
}

/// Starts a node on an image, and restores the backup where it finds nothing. Returns what it found.
fn try_on(image: Image, folder: &Path, path: &Path, starts_again: bool) -> Option<bool> {
    disk::replace(folder, image);
    let found = if is_empty(folder) { Some(false) } else { has_all(folder) };
    assert!(found != Some(false) || is_empty(folder), "half of it counts");
    if found != Some(true) {
        real(Backup::restore(path, folder)).expect("it can be restored again");
        assert!(!starts_again || has_all(folder) == Some(true));
    }
    found
}
