//! Bytes of a data folder that have changed: noticed at the start or when they are read, and never taken for data.

use super::{Kept, builder, refused};
use crate::kit::Dice;
use crate::kit::damage::{copy, files, flip, flip_at, flip_bit, log_file, state_file};
use crate::kit::opener::{keys, open_elsewhere, value_of};
use futures::TryStreamExt;
use quorate::{Client, Error, ErrorKind, KeyRange, Node, Reason};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;

/// A folder of a group of one that holds [`keys`], each with its [`value_of`] it, and was shut down in good order.
struct Folder(TempDir);

impl Folder {
    async fn filled() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let node = builder(&folder.path()).solo().await.unwrap();
        for key in keys() {
            node.client().put(&key, value_of(key.as_bytes())).await.unwrap();
        }
        node.shutdown().await.unwrap();
        folder
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn log(&self) -> PathBuf {
        log_file(&self.path())
    }

    fn state(&self) -> PathBuf {
        state_file(&self.path())
    }

    async fn start(&self) -> quorate::Result<Node> {
        builder(&self.path()).solo().await
    }
}

/// Holds an error against what it has to say about bytes that changed.
fn is_corrupt(error: &Error, text: &str) {
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    assert!(matches!(error.reason(), Reason::Corrupt { .. }), "{error:?}");
    assert!(!error.is_retryable(), "{error}");
    assert!(error.to_string().contains(text), "{:?} does not say {text:?}", error.to_string());
}

/// Reads everything, and shows that what is read is what was written. Returns what a reader met first.
async fn read_all(client: &Client) -> quorate::Result<()> {
    for key in keys() {
        let found = client.get(&key).await?;
        let found = found.unwrap_or_else(|| panic!("{key} is there, and was not found"));
        assert_eq!(found.value, value_of(key.as_bytes()), "a wrong value of {key}");
    }
    let all: Vec<_> = client.range(KeyRange::prefix("k/")).stream().try_collect().await?;
    assert_eq!(all.len(), keys().count());
    assert!(all.iter().all(|kv| kv.value == value_of(&kv.key)));
    Ok(())
}

/// Wherever a record of the state has changed, the node does not start, and says what is wrong; and when the bytes are
/// put right again, nothing is lost.
#[tokio::test]
async fn a_state_that_has_changed_is_refused_at_the_start() {
    let folder = Folder::filled().await;
    let small = value_of(b"k/11");
    let large = value_of(b"k/17");
    let at_end = large.len() - 1;
    // Of a value, of a long one, of a key, of a lock's worth of other places.
    for (known, skip) in [(&small, 0), (&small, small.len() - 1), (&large, 0), (&large, at_end)] {
        assert!(flip(&folder.state(), known, skip) > 0);
        let error = refused(folder.start().await, ErrorKind::Storage, "damaged");
        is_corrupt(&error, "table ");
        let mut changed = known.clone();
        changed[skip] ^= 0x40;
        assert!(flip(&folder.state(), &changed, skip) > 0, "it is put right again");
    }
    let node = folder.start().await.unwrap();
    read_all(&node.client()).await.unwrap();
    node.shutdown().await.unwrap();
}

/// A key that has changed is not an empty place: whoever asks for it must not be told that it is not there.
#[tokio::test]
async fn a_key_that_has_changed_does_not_vanish() {
    let folder = Folder::filled().await;
    for key in ["k/00", "k/21", "k/39"] {
        assert!(flip(&folder.state(), key.as_bytes(), 2) > 0);
        let error = refused(folder.start().await, ErrorKind::Storage, "");
        is_corrupt(&error, "");
        let mut changed = key.as_bytes().to_vec();
        changed[2] ^= 0x40;
        assert!(flip(&folder.state(), &changed, 2) > 0, "it is put right again");
    }
    let node = folder.start().await.unwrap();
    read_all(&node.client()).await.unwrap();
    node.shutdown().await.unwrap();
}

/// The names of the tables are bytes on the disk as well. A table that cannot be found must not be made anew.
#[tokio::test]
async fn a_table_whose_name_has_changed_is_not_made_anew() {
    let folder = Folder::filled().await;
    let tables = ["latest", "val", "ev", "kidx", "lease", "lease_keys", "dedup", "meta"];
    let before = folder.0.path().join("before");
    copy(&folder.path(), &before);
    for table in tables {
        let node_of = |name: &str| {
            // A node of LMDB's main table: the size of the name, the name, and a number that is zero.
            let mut bytes = vec![u8::try_from(name.len()).unwrap(), 0];
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes
        };
        assert!(flip(&folder.state(), &node_of(table), 2) > 0, "{table} is there");
        let error = refused(folder.start().await, ErrorKind::Storage, "");
        is_corrupt(&error, "");
        fs::remove_dir_all(folder.path()).unwrap();
        copy(&before, &folder.path());
    }
    let node = folder.start().await.unwrap();
    read_all(&node.client()).await.unwrap();
    node.shutdown().await.unwrap();
}

/// Wherever the log has changed, in an entry, a vote, or who this member is, also in what was written last: the node does
/// not start, and says where; and when the bytes are put right again, nothing is lost.
#[tokio::test]
async fn a_log_that_has_changed_is_refused_at_the_start_with_the_place() {
    let mut dice = Dice::new("a_log_that_has_changed_is_refused_at_the_start_with_the_place");
    let folder = Folder::filled().await;
    let used = fs::read(folder.log()).unwrap().iter().rposition(|byte| *byte != 0).unwrap();
    let places = (0..=used).step_by(512).map(|block| block + dice.roll(512)).chain([used]);
    for at in places.collect::<Vec<_>>() {
        let bit = dice.roll(8);
        flip_bit(&folder.log(), at, bit);
        let error = refused(folder.start().await, ErrorKind::Storage, "log-00000001: byte ");
        is_corrupt(&error, &format!("byte {}: ", at / 512 * 512));
        flip_bit(&folder.log(), at, bit);
    }
    let node = folder.start().await.unwrap();
    read_all(&node.client()).await.unwrap();
    node.shutdown().await.unwrap();
}

/// Bytes that change under a running node are noticed by whoever reads them, and the node fails with the cause. Whoever
/// comes after is told the same at once, and the process goes on.
#[tokio::test]
async fn bytes_that_change_under_a_running_node_stop_it_with_the_cause() {
    let folder = Folder::filled().await;
    let node = folder.start().await.unwrap();
    let client = node.client();
    read_all(&client).await.unwrap();
    assert!(flip(&folder.state(), &value_of(b"k/23"), 3) > 0);

    let error = refused(client.get("k/23").await, ErrorKind::Storage, "k/23 is damaged");
    is_corrupt(&error, "table latest: the row ");
    let cause = timeout(Duration::from_secs(10), node.failed()).await.unwrap();
    is_corrupt(&cause, "k/23 is damaged");
    // At once, and not when the time is up.
    let soon = Duration::from_secs(5);
    let write = timeout(soon, client.put("k/24", "v")).await.unwrap();
    is_corrupt(&write.unwrap_err(), "k/23 is damaged");
    let read = timeout(soon, client.get("k/24")).await.unwrap();
    is_corrupt(&read.unwrap_err(), "k/23 is damaged");
    is_corrupt(&timeout(soon, node.ready()).await.unwrap().unwrap_err(), "k/23 is damaged");
    node.shutdown().await.unwrap();

    // It was only the one.
    let mut changed = value_of(b"k/23");
    changed[3] ^= 0x40;
    assert!(flip(&folder.state(), &changed, 3) > 0);
    let node = folder.start().await.unwrap();
    read_all(&node.client()).await.unwrap();
    Kept::write(&node.client(), "after").await.check(&node.client()).await;
    node.shutdown().await.unwrap();
}

/// A write that meets a record that has changed is no exception: its error is the cause, and not "a bug of quorate".
#[tokio::test]
async fn a_write_that_meets_changed_bytes_says_so() {
    let folder = Folder::filled().await;
    let node = folder.start().await.unwrap();
    assert!(flip(&folder.state(), &value_of(b"k/23"), 3) > 0);
    let error = node.client().put("k/23", "new").await.unwrap_err();
    is_corrupt(&error, "k/23 is damaged");
    assert!(error.may_have_applied(), "it is in the log, and other members may have applied it");
    let cause = timeout(Duration::from_secs(10), node.failed()).await.unwrap();
    is_corrupt(&cause, "k/23 is damaged");
    node.shutdown().await.unwrap();
}

/// A bit that flips anywhere in either file, most of all where LMDB keeps numbers that it believes: the process
/// lives, no wrong answer is given, and if something is refused the error is one of the disk.
///
/// `QUORATE_FLIPS` says how many to try, and `QUORATE_SEED` which.
#[tokio::test]
async fn a_bit_that_flips_anywhere_neither_ends_the_process_nor_lies() {
    let mut dice = Dice::new("a_bit_that_flips_anywhere_neither_ends_the_process_nor_lies");
    let flips = std::env::var("QUORATE_FLIPS").map_or(24, |flips| flips.parse().unwrap());
    let folder = Folder::filled().await;
    let copied = folder.0.path().join("copy");
    let mut served = 0;
    for flip in 0..flips {
        copy(&folder.path(), &copied);
        let file = &files(&copied)[flip % 2];
        let bytes = fs::read(file).unwrap();
        let at = match flip % 6 {
            // Somewhere; in one of the two pages with which all begins; in the head of any other.
            0 | 1 => dice.roll(bytes.len()),
            2 | 3 => dice.roll(2) * 4096 + dice.roll(160),
            _ => dice.roll(bytes.len() / 4096) * 4096 + dice.roll(40),
        };
        flip_bit(file, at, dice.roll(8));
        let opened = open_elsewhere(&copied);
        let flipped = format!("{} at {at}", file.strip_prefix(&copied).unwrap().display());
        assert_eq!(opened.crash, None, "{flipped}: the process has died: {opened:?}");
        assert_eq!(opened.said("wrong"), None, "{flipped}: a wrong answer: {opened:?}");
        let refusals = ["refused", "answered", "failed"].map(|word| opened.said(word));
        for refusal in refusals.into_iter().flatten() {
            assert!(refusal.starts_with("Storage "), "{flipped}: {refusal}");
            assert!(!refusal.contains("bug"), "{flipped}: {refusal}");
        }
        let is_served = opened.said("served").is_some();
        assert!(is_served || refusals.iter().any(Option::is_some), "{flipped}: {opened:?}");
        served += usize::from(is_served);
        fs::remove_dir_all(&copied).unwrap();
    }
    println!("{flips} flips: {served} harmless, the others refused");
}

/// A file that says of itself that it is of another version of LMDB, or none at all, is refused as such.
#[tokio::test]
async fn a_file_of_another_format_is_refused() {
    let folder = Folder::filled().await;
    let file = folder.state();
    // The head of both meta pages: 16 bytes of page header, magic, version.
    [20, 4096 + 20].into_iter().for_each(|at| flip_at(&file, at));
    let error = refused(folder.start().await, ErrorKind::Storage, "MDB_VERSION_MISMATCH");
    assert!(matches!(error.reason(), Reason::UnreadableFormat { .. }), "{error:?}");
    assert!(error.to_string().contains(file.parent().unwrap().to_str().unwrap()));
    [20, 4096 + 20].into_iter().for_each(|at| flip_at(&file, at));
    [16, 4096 + 16].into_iter().for_each(|at| flip_at(&file, at));
    is_corrupt(&folder.start().await.unwrap_err(), "cannot open");
    [16, 4096 + 16].into_iter().for_each(|at| flip_at(&file, at));
    // A log of the version before this one.
    let older = folder.path().join("raft/data.mdb");
    fs::write(&older, "").unwrap();
    let error = refused(folder.start().await, ErrorKind::Storage, "a log of format 1");
    assert!(matches!(error.reason(), Reason::UnreadableFormat { .. }), "{error:?}");
    fs::remove_file(&older).unwrap();
    let node = folder.start().await.unwrap();
    read_all(&node.client()).await.unwrap();
    node.shutdown().await.unwrap();
}

/// The small file that names the state, and what it names.
#[tokio::test]
async fn a_state_that_is_not_named_or_not_there_is_refused() {
    let folder = Folder::filled().await;
    let current = folder.path().join("CURRENT");
    let name = fs::read(&current).unwrap();
    for wrong in ["", "state-000009", "state-1", "../state-000001", "state-000001\n", "\u{fffd}"] {
        fs::write(&current, wrong).unwrap();
        is_corrupt(&folder.start().await.unwrap_err(), "");
    }
    fs::remove_file(&current).unwrap();
    is_corrupt(&folder.start().await.unwrap_err(), "no CURRENT that names it");
    // A bit of it, wherever, and whatever it would name.
    for at in 0..name.len() * 8 {
        let mut flipped = name.clone();
        flipped[at / 8] ^= 1 << (at % 8);
        fs::write(&current, flipped).unwrap();
        is_corrupt(&folder.start().await.unwrap_err(), "");
    }
    fs::write(&current, name).unwrap();
    let node = folder.start().await.unwrap();
    read_all(&node.client()).await.unwrap();
    node.shutdown().await.unwrap();
}

/// One half of a folder is not taken for a new one: a log that is lost is missed, and so is a state that the log does
/// not reach back to. A state that it does reach back to is made again.
#[tokio::test]
async fn a_folder_that_has_lost_a_part_is_refused_or_made_whole() {
    let folder = Folder::filled().await;
    let aside = folder.0.path().join("aside");
    fs::rename(folder.path().join("raft"), &aside).unwrap();
    for _ in 0..2 {
        let error = folder.start().await.unwrap_err();
        is_corrupt(&error, "has a state, and has lost the log that led to it");
    }
    fs::remove_dir_all(folder.path().join("raft")).unwrap();
    fs::rename(&aside, folder.path().join("raft")).unwrap();

    let lose_the_state = || {
        fs::remove_dir_all(folder.state().parent().unwrap()).unwrap();
        fs::remove_file(folder.path().join("CURRENT")).unwrap();
    };
    lose_the_state();
    let node = folder.start().await.unwrap();
    read_all(&node.client()).await.unwrap();
    node.shutdown().await.unwrap();

    let node = builder(&folder.path()).snapshot_every(10).solo().await.unwrap();
    for number in 0..30 {
        node.client().put(format!("more/{number}"), "v").await.unwrap();
    }
    node.shutdown().await.unwrap();
    lose_the_state();
    is_corrupt(&folder.start().await.unwrap_err(), "purged");
}
