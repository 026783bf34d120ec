//! Whether there is room, and what is done while there is not.
//!
//! ```text
//! the rows have reached the quota ────────────────┐            ┌─▶ whatever takes room is refused
//! the disk, with what is free in the file, ───────┼─▶ alarm ───┼─▶ history goes, half by half
//!   has less than the spare                       │   (log)    │     (unless it is the log that lacks)
//! the disk alone has less than half of that ──────┘            └─▶ the log is cut early
//! ```
//!
//! The tables can write to what is free in their file; the log needs the disk. A member that finds no room at all fails, and
//! loses nothing; this is so that it does not come to that, and so that a group whose room comes back goes on by itself.
//!
//! Invariants
//! - it is the leader's room that counts, and the alarm is in the log: members that refused by their own would disagree;
//! - history goes before its time only if that makes room, by a leader that has applied everything, and when what was
//!   forgotten before has left the tables;
//! - what the alarm needs to go by itself, deletes and compaction, is never refused.

use super::config::History;
use super::duties::{has_caught_up, propose};
use super::member::Shared;
use crate::api::Command;
use crate::lmdb;
use crate::types::Revision;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether there is room.
const CHECK_EVERY: Duration = Duration::from_millis(250);

/// What there has to be to write to, in bytes: for what is under way, the log, and all that goes on without room. Of a small
/// disk it is a sixteenth, but not less than a few files of the log take, and of a tiny one a quarter.
const SPARE: u64 = 256 << 20;
pub(super) const SPARE_MIN: u64 = 96 << 20;

/// What there is too little room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lack {
    /// More rows, by the quota.
    rows: bool,
    /// What is flushed, even in what is free in the file.
    tables: bool,
    /// The log.
    log: bool,
}

impl Lack {
    /// What a member lacks now. Whoever was short of room has to have some more before he is not.
    fn of(shared: &Shared, was_short: bool) -> Self {
        let rows = shared.quota.is_short(shared.state.used(), was_short);
        // What was applied is still to be written.
        let ahead = shared.state.moment().map_or(0, |moment| moment.bytes_ahead());
        let (tables, log) = match shared.state.disk() {
            Some((disk, free)) => {
                let left = disk.left.saturating_sub(ahead);
                lacks(lmdb::Room { left, ..disk }, free, was_short)
            }
            None => (false, false),
        };
        Self { rows, tables, log }
    }

    fn is_any(self) -> bool {
        self.rows || self.tables || self.log
    }
}

/// Whether a disk has too little for the tables, of whose file so much is `free`, and for the log.
fn lacks(disk: lmdb::Room, free: u64, was_short: bool) -> (bool, bool) {
    let spare = (disk.all / 16).clamp(SPARE_MIN, SPARE).min(disk.all / 4);
    let wanted = if was_short { spare / 4 * 5 } else { spare };
    (disk.left.saturating_add(free) < wanted, disk.left < wanted / 2)
}

/// Tells the group when there is no room any more, and when there is again, as long as this member leads.
pub(super) async fn watch_room(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(CHECK_EVERY).await;
        let Ok(moment) = shared.state.moment() else { return };
        let was_short = moment.is_short_of_room();
        let lack = Lack::of(&shared, was_short);
        shared.set_disk_short(lack.tables || lack.log);
        if lack.is_any() != was_short && shared.leadership().is_me {
            let (used, quota) = (shared.state.used(), shared.quota.0);
            match lack {
                Lack { rows: true, .. } => tracing::warn!(used, quota, "the quota is used up"),
                Lack { rows: false, .. } if lack.is_any() => {
                    tracing::warn!("the disk is nearly full")
                }
                Lack { .. } => tracing::info!(used, quota, "there is room again"),
            }
            propose(&shared, Command::Room { is_short: lack.is_any() }).await;
        }
    }
}

/// Gives the older half of history up when that helps, and then half of what is left, as long as this member leads. It is worth
/// less than the writes that are refused.
pub(super) async fn make_room(shared: Arc<Shared>, history: History) {
    if matches!(history, History::All) {
        return;
    }
    loop {
        tokio::time::sleep(CHECK_EVERY).await;
        let Ok(moment) = shared.state.moment() else { return };
        let before = shared.leadership();
        if !moment.is_short_of_room() || !before.is_me || !has_caught_up(&shared).await {
            continue;
        }
        // What was forgotten goes when that is in the tables.
        if shared.state.settled().await.is_err() {
            return;
        }
        // First whether all of it has gone, and then how much there is: what has just gone must count.
        let is_gone = !shared.state.forgets();
        let Ok(moment) = shared.state.moment() else { return };
        let Lack { rows, tables, log } = Lack::of(&shared, true);
        // Without room for the log, none in the tables would end the alarm.
        let is_wanted = moment.is_short_of_room() && (rows || (tables && !log));
        let (newest, first) = (moment.revision().get(), moment.compact_revision().get());
        let half = (newest - first).div_ceil(2);
        if is_gone && is_wanted && half > 0 && shared.leadership() == before {
            propose(&shared, Command::Compact(Revision::from(first + half))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_lacks_is_there_again_with_a_quarter_more() {
        // What has to be left of tiny, small and large disks, in MiB.
        for (all, spare) in [(100 << 20, 25), (1 << 30, 96), (2 << 30, 128), (1 << 40, 256)] {
            let part = |percent: u64| ((spare * percent) << 20) / 100;
            let mut was_short = false;
            for (left, free, tables, log) in [
                (100, 0, false, false),
                (99, 0, true, false),
                (124, 0, true, false),
                (125, 0, false, false),
                (50, 50, false, false),
                (49, 100, false, true),
                (62, 100, false, true),
                (70, 50, true, false),
                (70, 60, false, false),
                (0, 0, true, true),
            ] {
                let room = lmdb::Room { all, left: part(left) };
                let lacked = lacks(room, part(free), was_short);
                assert_eq!(lacked, (tables, log), "{left} and {free} of {spare}");
                was_short = tables || log;
            }
        }
        let nothing = lmdb::Room { all: 0, left: 0 };
        assert_eq!(lacks(nothing, 0, false), (false, false), "whoever says nothing");
    }
}
