//! **The disk fails at any change, once or for good, or is full from then on: what was acknowledged is there afterwards.**
//!
//! A node starts, is written to, and ends, on a disk that counts what is done to it, and fails at one number. Then the disk is
//! well again, the power has gone, and a node starts on what is left. This is done for each number, until there are no more.
//!
//! ```text
//! change      0   1   2   3   4   5   …          EIO at 3, and only there
//!             ok  ok  ok  EIO ok  ok  …          EIO from 3 on
//! node        start ── put ── put ── shutdown    no room from 3 on
//! ```
//!
//! Whoever calls hears of it with an error that says so, or not at all: a failed flush is no news to a client whose write is in
//! the log.

use crate::dice::Dice;
use crate::disk::{self, Failing};
use crate::run;
use quorate::{ErrorKind, Node, Result};
use std::path::Path;
use std::time::Duration;

/// How many changes a node makes, at least: fewer would mean that they are not seen.
const CHANGES_MIN: u64 = 30;
const PUTS: usize = 8;

pub fn at_every_change() {
    for (error, is_once, step) in
        [(libc::EIO, true, 1), (libc::EIO, false, 3), (libc::ENOSPC, false, 3)]
    {
        let (mut told, mut acknowledged) = (0, 0);
        for after in (0..).step_by(step) {
            let failing = Failing { after, error, is_once };
            let Some(outcome) = attempt(failing) else {
                assert!(after >= CHANGES_MIN, "{after} changes");
                println!(
                    "errno {error}, once: {is_once}: {after} changes, {told} attempts were told, \
                     {acknowledged} writes acknowledged"
                );
                break;
            };
            told += u64::from(outcome.was_told);
            acknowledged += outcome.acknowledged;
        }
        assert!(told > 0 && acknowledged > 0);
    }
}

struct Outcome {
    was_told: bool,
    acknowledged: u64,
}

/// `None` if the disk was not used so often.
fn attempt(failing: Failing) -> Option<Outcome> {
    let place = tempfile::Builder::new().prefix("quorate-failing").tempdir_in(run::place());
    let place = place.expect("a folder");
    disk::take_over(place.path(), Dice::new(failing.after).fork("disk"));
    let member = place.path().join("member");
    disk::fail(&member, failing);
    let (acknowledged, told) = real(write(&member));
    let was_met = disk::heal(&member);
    disk::lose_power(&member);
    disk::restore(&member);
    if let Some(error) = &told {
        let is_typed = matches!(error.kind(), ErrorKind::Storage | ErrorKind::Unavailable);
        assert!(is_typed, "{failing:?}: {error:?}");
    }
    let found = real(read(&member));
    let found = found.unwrap_or_else(|error| panic!("{failing:?}: it starts again: {error:?}"));
    for key in &acknowledged {
        assert!(found.contains(key), "{failing:?}: {key} was acknowledged, and is gone");
    }
    let (was_told, acknowledged) = (told.is_some(), acknowledged.len() as u64);
    was_met.then_some(Outcome { was_told, acknowledged })
}

/// Waits for something on a runtime of tokio's: nothing here is simulated but the disk.
fn real<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(future)
}

async fn start(folder: &Path) -> Result<Node> {
    Node::builder(folder).heartbeat(Duration::from_millis(20)).map_size(16 << 20).solo().await
}

/// Writes until something fails, and returns what was acknowledged, and what failed.
async fn write(folder: &Path) -> (Vec<String>, Option<quorate::Error>) {
    let mut acknowledged = Vec::new();
    let node = match start(folder).await {
        Ok(node) => node,
        Err(error) => return (acknowledged, Some(error)),
    };
    let client = node.client();
    let mut failed = None;
    for number in 0..PUTS {
        let key = format!("k{number}");
        match client.put(&*key, vec![number as u8; 700]).timeout(Duration::from_secs(5)).await {
            Ok(_) => acknowledged.push(key),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let ended = node.shutdown().await;
    (acknowledged, failed.or(ended.err()))
}

async fn read(folder: &Path) -> Result<Vec<String>> {
    let node = start(folder).await?;
    let mut found = Vec::new();
    for number in 0..PUTS {
        let key = format!("k{number}");
        if let Some(kv) = node.client().get(&*key).await? {
            assert_eq!(kv.value, vec![number as u8; 700]);
            found.push(key);
        }
    }
    node.shutdown().await?;
    Ok(found)
}
