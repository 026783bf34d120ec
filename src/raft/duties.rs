//! What a leader does without being asked.
//!
//! ```text
//! leads, confirmed ──▶ reign: every lease gets its full time ──▶ expire: those that are due
//!                  └─▶ forget: history that is old enough, and clients that have not written for long
//! ```
//!
//! Every member has these tasks, and in all but the leader they wait. Each ends in a command in the log, so that all members
//! carry out the same, and is decided by what only a leader has: the clock that counts, or the first word.
//!
//! Invariants
//! - a lease ends, and history gets older, by the clock of a leader that was confirmed when the time began, and in its term;
//! - whatever could not be proposed is decided anew.

use super::config::History;
use super::member::Shared;
use crate::api::{AGES, CLIENT_AGES, Call, Command, Proposal, Request};
use crate::fault::{Bug, Point, bug, point};
use crate::types::{LeaseId, Revision, limits};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How often it is looked whether history has too many revisions.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// After what time a client is forgotten. Simulated hours are long.
const CLIENT_IDLE: Duration =
    if cfg!(feature = "sim") { Duration::from_secs(30) } else { limits::CLIENT_IDLE };

/// Begins a reign over the leases when this member leads and is confirmed, and ends it when it does not.
pub(super) async fn reign(shared: Arc<Shared>) {
    let mut leadership = shared.leadership_changes();
    let mut reigns: Option<u64> = None;
    loop {
        let now = leadership.borrow_and_update().clone();
        if reigns != Some(now.term).filter(|_| now.is_me) {
            shared.state.lessor.end();
            reigns = None;
        }
        if now.is_me && reigns.is_none() && begin_reign(&shared, now.term).await {
            reigns = Some(now.term);
        }
        let retry = now.is_me && reigns.is_none();
        let pause = if retry { shared.timing.heartbeat } else { Duration::from_secs(3600) };
        if let Ok(Err(_)) = timeout(pause, leadership.changed()).await {
            return;
        }
    }
}

/// Confirms the leadership, applies what came before it, and hands all leases to the lessor.
async fn begin_reign(shared: &Arc<Shared>, term: u64) -> bool {
    point(Point::ReignBegins);
    let Ok(confirmed) = shared.reads.round().await else { return false };
    let is_own = confirmed.term == term && confirmed.node == shared.identity.node;
    if !is_own || shared.applied(confirmed.index).await.is_err() {
        return false;
    }
    let grace = shared.timing.election_max();
    // On the thread that applies, so that no grant or end falls between reading the leases and following them.
    let begun = shared.state.in_order(move |state| {
        let leases = state.view()?.leases()?;
        state.lessor.begin(term, leases, grace);
        Ok(())
    });
    point(Point::ReignBegun);
    match begun.await {
        Ok(()) => true,
        Err(fault) => {
            shared.state.fail(fault);
            false
        }
    }
}

/// Proposes the end of leases that are due.
pub(super) async fn expire(shared: Arc<Shared>) {
    loop {
        let (deciding_term, leases) = shared.state.lessor.due().await;
        point(Point::LeaseDue);
        let command = Command::Expire { deciding_term, leases: leases.clone() };
        let proposed = shared.raft.client_write(Proposal::from(command).into());
        let limit = shared.timing.election_max();
        let answer = timeout(limit, proposed).await;
        point(Point::LeaseExpired);
        let is_done = matches!(&answer, Ok(Ok(written)) if matches!(written.data, Some(Ok(_))));
        if !is_done && bug(Bug::ExpireOutlivesTerm) {
            expire_elsewhere(&shared, deciding_term, &leases).await;
        }
        // Also of those that ended some are left over, if there was much to delete.
        let pause = if is_done { Duration::ZERO } else { shared.timing.heartbeat };
        shared.state.lessor.retry(deciding_term, &leases, Instant::now() + pause);
    }
}

/// For [`Bug::ExpireOutlivesTerm`]: has the next leader carry out what this one has decided.
async fn expire_elsewhere(shared: &Shared, deciding_term: u64, leases: &[LeaseId]) {
    for _ in 0..100 {
        tokio::time::sleep(shared.timing.heartbeat).await;
        let Some(leader) = shared.leader_client(&shared.leadership()) else { continue };
        let command = Command::Expire { deciding_term, leases: leases.to_vec() };
        let request = Request::Propose { proposals: vec![command.into()], forwarded: true };
        if leader.call(Call { request, timeout: shared.timing.election_max() }).await.is_ok() {
            return;
        }
    }
}

/// Has history forgotten when it is old enough, as long as this member leads.
pub(super) async fn forget(shared: Arc<Shared>, history: History) {
    match history {
        History::All => {}
        History::For(time) => age(&shared, time).await,
        History::Revisions(kept) => bound(&shared, kept).await,
    }
}

/// Lets history get older.
async fn age(shared: &Shared, time: Duration) {
    loop {
        let before = shared.leadership();
        let has_begun = before.is_me && has_caught_up(shared).await;
        tokio::time::sleep(time / AGES as u32).await;
        let Ok(moment) = shared.state.moment() else { return };
        // A slice counts only if all of it was of one leader, and began when everything before it was applied.
        // What waits to be committed is not history yet, however long that takes.
        if has_begun && shared.leadership() == before && !moment.is_ageless() {
            let age = Proposal::from(Command::Age { deciding_term: before.term });
            let _ = shared.raft.client_write(age.into()).await;
        }
    }
}

/// Keeps so many revisions of it.
async fn bound(shared: &Shared, kept: u64) {
    loop {
        tokio::time::sleep(FORGET_EVERY).await;
        let Ok(moment) = shared.state.moment() else { return };
        let first = moment.revision().get().saturating_sub(kept);
        let old = first.saturating_sub(moment.compact_revision().get());
        if shared.leadership().is_me && old > kept / AGES as u64 {
            propose(shared, Command::Compact(Revision::from(first))).await;
        }
    }
}

/// Has clients forgotten that have not written for long, as long as this member leads.
pub(super) async fn forget_clients(shared: Arc<Shared>) {
    loop {
        let before = shared.leadership();
        let has_begun = before.is_me && has_caught_up(&shared).await;
        tokio::time::sleep(CLIENT_IDLE / u32::try_from(CLIENT_AGES).unwrap_or(1)).await;
        let Ok(moment) = shared.state.moment() else { return };
        // A slice counts only if all of it was of one leader, and began when everything before it was applied: those that
        // wait to be committed would pass all at once.
        if has_begun && shared.leadership() == before && moment.has_clients() {
            propose(&shared, Command::AgeClients { deciding_term: before.term }).await;
        }
    }
}

/// Whether this member leads, and has applied all that was committed by now.
pub(super) async fn has_caught_up(shared: &Shared) -> bool {
    match shared.reads.round().await {
        Ok(confirmed) => shared.applied(confirmed.index).await.is_ok(),
        Err(_) => false,
    }
}

/// Proposes a command of the leader's own. If that fails, its time comes again.
pub(super) async fn propose(shared: &Shared, command: Command) {
    let proposed = shared.raft.client_write(Proposal::from(command).into());
    let _ = timeout(shared.timing.election_max(), proposed).await;
}
