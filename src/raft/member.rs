//! The running member: what its parts share, and the tasks that follow its leadership.
//!
//! ```text
//! openraft's metrics ─▶ leadership (who, which term) ─┬─▶ gateway: where writes go
//!                                                     ├─▶ leases: a reign begins, a reign ends
//!                                                     └─▶ the application: Node::leadership
//! ```
//!
//! All tasks live in the node's private runtime and are owned by the [`Member`]: an application that blocks its own
//! executor must not cost the group its leader.

use super::Types;
use super::compare;
use super::config::{History, Quota, Retention, Timing, config};
use super::convoy::{Convoy, travel};
use super::duties;
use super::founding::Desk;
use super::identity::Identity;
use super::log::{Health, LogStore};
use super::machine::Machine;
use super::marks::Verdict;
use super::members;
use super::network::{Bulk, Network, Refusals};
use super::pace::Pace;
use super::reads::{Reads, rounds};
use super::reseed;
use super::room;
use super::scrub::scrub_in_time;
use super::state::{FLUSH_EVERY, Head, State, compact_in_time, shrink_in_time};
use crate::error::{Error, ErrorKind, Fault, Reason};
use crate::types::{NodeId, Status};
use crate::wire::{Endpoint, RpcClient, Security};
use futures::future::{Either, select};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use openraft::{Instant as _, RaftMetrics, ServerState};
use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

pub(crate) type Raft = openraft::Raft<Types, Machine>;

/// Bytes of proposals that may be under way at once, in units of a kilobyte.
pub(crate) const ADMISSION_UNITS: u32 = 64 << 10;

/// How many long reads may be carried out at a time, each on a thread of its own.
const LONG_READS_MAX: usize = 8;

/// How often the size of the log is looked at.
const LOG_CHECK_EVERY: Duration = Duration::from_millis(500);
/// How long it is waited until what is to be cut is gone, before it is looked again how much that is.
const CUT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a snapshot may take to be made: a flush of the state.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(30);

/// Who leads the group, as this member sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub(crate) term: u64,
    pub(crate) leader: Option<u64>,
    pub(crate) address: Option<Arc<str>>,
    pub(crate) is_me: bool,
}

/// What the parts of a member share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) identity: Identity,
    pub(crate) timing: Timing,
    pub(crate) quota: Quota,
    pub(crate) raft: Raft,
    pub(crate) state: Arc<State>,
    pub(crate) reads: Reads,
    pub(crate) convoy: Convoy,
    pub(crate) desk: Desk,
    pub(crate) admission: Semaphore,
    /// Long reads of somebody elsewhere that are carried out.
    pub(super) long_reads: Arc<Semaphore>,
    disk: Health,
    is_disk_short: AtomicBool,
    pub(super) leadership: watch::Sender<Leadership>,
    pub(super) refusals: Refusals,
    /// How fast whole states may go to others, all together.
    pub(super) pace: Pace,
    /// What came of comparing the state with those of the others.
    pub(crate) compared: watch::Sender<Verdict>,
    /// The first cause that has ended this member.
    pub(crate) failed: watch::Receiver<Option<Error>>,
    clients: Mutex<HashMap<String, RpcClient>>,
    pub(super) security: Security,
    pub(super) runtime: Handle,
    /// When a leader was heard of last.
    pub(super) heard: Mutex<Instant>,
}

impl Shared {
    pub(crate) fn leadership(&self) -> Leadership {
        self.leadership.borrow().clone()
    }

    pub(crate) fn leadership_changes(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// The members, as far as this one has heard.
    pub(crate) fn membership(&self) -> super::Membership {
        self.raft.server_metrics().borrow_watched().membership_config.membership().clone()
    }

    pub(crate) fn head(&self) -> Head {
        self.state.now()
    }

    /// The way to the gateway of the leader, if it is another member.
    pub(crate) fn leader_client(&self, leadership: &Leadership) -> Option<RpcClient> {
        let address = leadership.address.as_ref().filter(|_| !leadership.is_me)?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&**address) {
            return Some(client.clone());
        }
        let who = Endpoint { group: self.identity.group, node: self.identity.node };
        let client =
            RpcClient::new(address.to_string(), who, self.security.clone(), self.runtime.clone());
        clients.insert(address.to_string(), client.clone());
        Some(client)
    }

    /// Says so when another has taken the leader's place, and has had a heartbeat's time to say so: whoever has vanished does
    /// not answer, and a leader that has only stood back does.
    pub(super) async fn led_by_another(&self, leadership: &Leadership) -> Reason {
        let mut changes = self.leadership_changes();
        let is_another = |now: &Leadership| now.leader.is_some() && now.leader != leadership.leader;
        if changes.wait_for(is_another).await.is_err() {
            // This member has ended, and says so itself.
            return std::future::pending().await;
        }
        sleep(self.timing.heartbeat).await;
        Reason::LeaderChanged
    }

    /// The log index up to which the log was cut.
    #[cfg(test)]
    pub(crate) fn purged(&self) -> Option<u64> {
        self.raft.metrics().borrow_watched().purged.map(|id| id.index)
    }

    /// What this member knows about itself and its group.
    pub(crate) fn status(&self) -> Status {
        let leadership = self.leadership();
        let members = self.membership();
        let members = members.nodes().map(|(id, peer)| ((*id).into(), peer.address.clone()));
        let (head, state_hash) = self.state.summary();
        Status {
            id: NodeId::from(self.identity.node),
            group: self.identity.group,
            leader: leadership.leader.map(NodeId::from),
            term: leadership.term,
            revision: head.revision,
            applied_index: head.applied,
            state_hash,
            bytes_in_use: self.state.used(),
            bytes_on_disk: self.state.store().and_then(|store| store.bytes()).unwrap_or(0),
            quota: self.quota.0,
            is_short_of_room: self.is_short_of_room(),
            members: members.collect(),
            states_differ_at: self.states_differ_at(),
        }
    }

    /// Where members were found to differ, with no majority that has the same.
    pub(super) fn states_differ_at(&self) -> Option<u64> {
        match *self.compared.borrow() {
            Verdict::Undecided { index } => Some(index),
            Verdict::Unknown
            | Verdict::Equal
            | Verdict::Others { .. }
            | Verdict::OwnFault { .. } => None,
        }
    }

    /// Whether whatever takes room is refused: the group has said so, or is about to.
    pub(crate) fn is_short_of_room(&self) -> bool {
        let Ok(moment) = self.state.moment() else { return false };
        // Only the leader's own room counts, or a member could refuse for ever what the group takes.
        let used = self.state.used() + moment.bytes_ahead();
        let lacks_some = || self.quota.is_short(used, false) || self.is_disk_short();
        moment.is_short_of_room() || (self.leadership().is_me && lacks_some())
    }

    /// Whether this member's disk was nearly full when it was last looked at.
    pub(super) fn is_disk_short(&self) -> bool {
        self.is_disk_short.load(Ordering::Relaxed)
    }

    pub(super) fn set_disk_short(&self, is_short: bool) {
        self.is_disk_short.store(is_short, Ordering::Relaxed);
    }

    /// Why this member will not get anywhere, if a majority wants nothing of it: it is of another group, say.
    pub(crate) fn refused(&self) -> Option<Error> {
        self.refusals.by_too_many(&self.membership().voter_ids().collect())
    }

    /// Why openraft does not answer any more.
    pub(crate) fn stopped(&self) -> Error {
        self.fault().unwrap_or_else(|| Reason::Closed.into())
    }

    /// An error of the leader, of a request that this member has passed on to it.
    pub(crate) fn passed_on(&self, error: Error) -> Error {
        passed_on(self.identity.node, error)
    }

    /// The fault of this member, if it has one: as whoever met it reported it, and else in openraft's words.
    fn fault(&self) -> Option<Error> {
        let fault = self.state.fault().borrow().clone();
        let fault = fault.or_else(|| self.disk.fault().map(Error::from));
        fault.or_else(|| end_of(&self.raft))
    }

    /// Waits until the entry at `index` is applied here.
    pub(crate) async fn applied(&self, index: u64) -> Result<(), Error> {
        self.reached(|head| head.applied >= Some(index)).await
    }

    /// Waits until this member has come so far, unless it fails before.
    pub(crate) async fn reached(&self, mut far: impl FnMut(&Head) -> bool) -> Result<(), Error> {
        if far(&self.head()) {
            return Ok(());
        }
        let (mut head, mut failed) = (self.state.head(), self.failed.clone());
        let (reached, failed) = (pin!(head.wait_for(far)), pin!(failed.wait_for(Option::is_some)));
        match select(reached, failed).await {
            Either::Left((reached, _)) => reached.map(drop).map_err(|_| Reason::Closed.into()),
            Either::Right(_) => Err(self.stopped()),
        }
    }
}

/// The cause of openraft's end, if it is none of our own.
fn end_of(raft: &Raft) -> Option<Error> {
    let state = raft.metrics().borrow_watched().running_state.clone();
    state.err().as_ref().and_then(super::fatal).map(Error::from)
}

/// A running member. Dropping it ends its tasks.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) shared: Arc<Shared>,
    log: LogStore,
    tasks: JoinSet<()>,
}

/// Who could take the leadership over.
enum Successor {
    Ready(u64),
    /// Somebody could, and lacks entries yet.
    Behind,
    Nobody,
}

/// What a member is put together from.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) identity: Identity,
    pub(crate) timing: Timing,
    pub(crate) quota: Quota,
    pub(crate) history: History,
    pub(crate) retention: Retention,
    /// How many bytes of snapshots are sent in a second.
    pub(crate) snapshot_rate: NonZeroU64,
    pub(crate) log: LogStore,
    pub(crate) state: Arc<State>,
    pub(crate) desk: Desk,
    pub(crate) security: Security,
}

impl Member {
    #[cfg(feature = "sim")]
    pub(crate) fn peek(&self) -> super::peek::Peek {
        self.shared.peek(&self.log)
    }

    /// Starts the member on the current runtime.
    pub(crate) async fn start(parts: Parts) -> Result<Self, Error> {
        let Parts { identity, timing, quota, history, retention, snapshot_rate, .. } = parts;
        let Parts { log, state, desk, security, .. } = parts;
        let refusals = Refusals::default();
        let pace = Pace::new(snapshot_rate);
        let bulk = Bulk { pace: pace.clone(), state: Arc::clone(&state) };
        let network = Network::new(identity, timing, security.clone(), refusals.clone(), bulk);
        let machine = Machine::new(Arc::clone(&state), Some(log.clone()));
        let config = Arc::new(config(timing, retention));
        let raft = Raft::new(identity.node, config, network, log.clone(), machine).await;
        let raft = raft.map_err(|fatal| {
            super::fatal(&fatal).map_or_else(|| Error::from(Reason::Closed), Error::from)
        })?;
        let (reads, waiting) = Reads::new();
        let (convoy, passengers) = Convoy::new();
        let (failed, failures) = watch::channel(None);
        let shared = Arc::new(Shared {
            identity,
            timing,
            quota,
            raft,
            state,
            reads,
            convoy,
            desk,
            admission: Semaphore::new(ADMISSION_UNITS as usize),
            long_reads: Arc::new(Semaphore::new(LONG_READS_MAX)),
            disk: log.health(),
            is_disk_short: AtomicBool::new(false),
            leadership: watch::Sender::new(Leadership::default()),
            refusals,
            pace,
            compared: watch::Sender::new(Verdict::Unknown),
            failed: failures,
            clients: Mutex::default(),
            security,
            runtime: Handle::current(),
            heard: Mutex::new(Instant::now()),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(rounds(Arc::clone(&shared), waiting));
        tasks.spawn(travel(Arc::clone(&shared), passengers));
        tasks.spawn(follow_leadership(Arc::clone(&shared)));
        tasks.spawn(duties::reign(Arc::clone(&shared)));
        tasks.spawn(duties::expire(Arc::clone(&shared)));
        tasks.spawn(flush_in_time(Arc::clone(&shared)));
        tasks.spawn(compact_in_time(Arc::clone(&shared.state)));
        tasks.spawn(shrink_in_time(Arc::clone(&shared.state)));
        tasks.spawn(duties::forget(Arc::clone(&shared), history));
        tasks.spawn(duties::forget_clients(Arc::clone(&shared)));
        tasks.spawn(room::watch_room(Arc::clone(&shared)));
        tasks.spawn(room::make_room(Arc::clone(&shared), history));
        tasks.spawn(compare::compare(Arc::clone(&shared)));
        tasks.spawn(scrub_in_time(Arc::clone(&shared)));
        tasks.spawn(members::reconcile(Arc::clone(&shared)));
        tasks.spawn(members::leave(Arc::clone(&shared)));
        tasks.spawn(watch_health(Arc::clone(&shared), failed));
        tasks.spawn(bound_log(Arc::clone(&shared), log.clone(), retention));
        Ok(Self { shared, log, tasks })
    }

    /// Founds the group, once, with the members of the founding record. The members may do this at the same time.
    pub(crate) async fn initialize(
        &self,
        members: impl Iterator<Item = (u64, super::Peer)>,
    ) -> Result<(), Error> {
        let members: BTreeMap<_, _> = members.collect();
        match self.shared.raft.initialize(members).await {
            // It has been done before.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotInMembers(error))) => {
                Err(Fault::assertion(error.to_string()).into())
            }
            Err(RaftError::Fatal(_)) => Err(self.shared.stopped()),
        }
    }

    /// Waits until this member leads, for one that is alone and has nobody else to wait for.
    pub(crate) async fn leads(&self) -> Result<(), Error> {
        let (mut leadership, mut failed) = (self.shared.leadership_changes(), self.failed());
        let leads = pin!(leadership.wait_for(|leadership| leadership.is_me));
        let failed = pin!(failed.wait_for(Option::is_some));
        match select(leads, failed).await {
            Either::Left((Ok(_), _)) => Ok(()),
            Either::Left((Err(_), _)) | Either::Right(_) => Err(self.shared.stopped()),
        }
    }

    /// Completes with the cause when the member has failed.
    pub(crate) fn failed(&self) -> watch::Receiver<Option<Error>> {
        self.shared.failed.clone()
    }

    /// Gives the leadership to another voter that has everything, if this member has it and there is one.
    ///
    /// Writes that were admitted are finished first, and new ones are refused: a transfer that is under way cannot be
    /// taken back, and an entry that it leaves behind would have an unknown outcome.
    pub(crate) async fn hand_over(&self) {
        let limit = self.shared.timing.election_max();
        let all_done = self.shared.admission.acquire_many(ADMISSION_UNITS);
        if let Ok(Ok(all)) = timeout(limit, all_done).await {
            all.forget();
        }
        self.shared.admission.close();
        let mut leadership = self.shared.leadership_changes();
        let until = Instant::now() + limit;
        while self.shared.leadership().is_me && Instant::now() < until {
            match self.successor() {
                Successor::Ready(node) => {
                    if self.shared.raft.trigger().transfer_leader(node).await.is_ok() {
                        let _ = timeout(limit, leadership.wait_for(|now| !now.is_me)).await;
                    }
                    return;
                }
                // A follower that is a heartbeat behind has caught up at the next.
                Successor::Behind => tokio::time::sleep(self.shared.timing.heartbeat / 4).await,
                Successor::Nobody => return,
            }
        }
    }

    /// Who could lead next: a voter that has been heard of lately and has all that this leader has.
    fn successor(&self) -> Successor {
        let metrics = self.shared.raft.metrics().borrow_watched().clone();
        let (Some(matched), Some(heard)) = (metrics.replication, metrics.heartbeat) else {
            return Successor::Nobody;
        };
        let patience = self.shared.timing.election_max();
        let voters = metrics.membership_config.membership().voter_ids();
        let mut alive = voters.filter(|id| {
            let heard = heard.get(id).and_then(|at| at.as_ref());
            *id != self.shared.identity.node && heard.is_some_and(|at| at.elapsed() < patience)
        });
        let mut any = false;
        let ready = alive.find(|id| {
            any = true;
            let matched = matched.get(id).and_then(|matched| matched.as_ref());
            matched.map(|id| id.index) >= metrics.last_log_index
        });
        match ready {
            Some(node) => Successor::Ready(node),
            None if any => Successor::Behind,
            None => Successor::Nobody,
        }
    }

    /// Ends openraft and all tasks. The environments close when the last reader has gone. A disk that stalls is not
    /// waited for longer than `grace`, three times.
    pub(crate) async fn stop(mut self, grace: Duration) -> (LogStore, Arc<State>) {
        // It only fails if the core has panicked, which is an end as well.
        let _ = timeout(grace, self.shared.raft.shutdown()).await;
        self.tasks.shutdown().await;
        // What is handed in and applied may as well be kept, so that the next start has nothing to do again; a failed disk
        // has been reported before.
        let _ = timeout(grace, self.log.flush()).await;
        let _ = timeout(grace, self.shared.state.settled()).await;
        (self.log.clone(), Arc::clone(&self.shared.state))
    }
}

/// Publishes who leads, whenever that changes.
async fn follow_leadership(shared: Arc<Shared>) {
    let mut metrics = shared.raft.server_metrics();
    loop {
        let now = {
            let metrics = metrics.borrow_watched();
            let is_me = metrics.state == ServerState::Leader && metrics.vote.committed;
            let leader = metrics.current_leader;
            let members = metrics.membership_config.membership();
            let peer = leader.and_then(|leader| members.get_node(&leader));
            let address = peer.map(|peer| peer.address.as_str().into());
            Leadership { term: metrics.vote.leader_id.term, leader, address, is_me }
        };
        shared.leadership.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Has what is applied flushed, a moment later at the latest.
async fn flush_in_time(shared: Arc<Shared>) {
    let mut head = shared.state.head();
    while head.changed().await.is_ok() {
        tokio::time::sleep(FLUSH_EVERY).await;
        // What stands in its way is reported where it happens.
        let _ = shared.state.settled().await;
    }
}

/// Cuts the log when it takes too many bytes. openraft counts entries only, and thirty thousand large ones are many
/// gigabytes. Of a small disk it has an eighth, so that it is not the log that fills it. While a disk is nearly full a sixteenth
/// of all that is too much: nobody writes then who would cut it by what he adds.
///
/// openraft cuts nothing that a member reads which is behind. So long as it is slow, but answers, that would be for ever: it is
/// told that it cannot be reached, and gets a snapshot ([`network`](super::network)).
async fn bound_log(shared: Arc<Shared>, log: LogStore, retention: Retention) {
    let state = &shared.state;
    // Only whole files are given back.
    let least = 2 * retention.segment_bytes();
    loop {
        let disk = state.disk().map_or(u64::MAX, |(disk, _)| disk.all);
        let most = retention.bytes.min((disk / 8).max(least));
        let most = if shared.is_disk_short() { most.min((most / 16).max(least)) } else { most };
        state.log_bytes_max.store(most, Ordering::Relaxed);
        if log.bytes() <= most {
            state.log_cut.store(0, Ordering::Relaxed);
        } else if let Some(upto) = cut_log(&shared).await {
            state.log_cut.store(upto, Ordering::Relaxed);
            // Before it is gone there is nothing more to cut: openraft would be told to cut less than it was told before.
            let mut metrics = shared.raft.metrics();
            let is_cut = async {
                let is_behind =
                    |it: &RaftMetrics<Types>| it.purged.as_ref().is_none_or(|id| id.index < upto);
                while is_behind(&metrics.borrow_watched()) {
                    metrics.changed().await.ok()?;
                }
                Some(())
            };
            // A call to whoever does not answer lasts half of that.
            let patience = CUT_PATIENCE.max(shared.timing.election_max());
            let _ = timeout(patience, is_cut).await;
        }
        tokio::time::sleep(LOG_CHECK_EVERY).await;
    }
}

/// Has a snapshot made of what is applied, and the older three quarters of the log removed. Returns up to where, if that is
/// under way.
pub(super) async fn cut_log(shared: &Shared) -> Option<u64> {
    let applied = shared.head().applied?;
    shared.raft.trigger().snapshot().await.ok()?;
    let mut metrics = shared.raft.metrics();
    let made = async {
        loop {
            let (snapshot, purged) = {
                let metrics = metrics.borrow_watched();
                (metrics.snapshot.map(|id| id.index), metrics.purged.map(|id| id.index))
            };
            if let Some(snapshot) = snapshot.filter(|snapshot| *snapshot >= applied) {
                return Some((snapshot, purged.unwrap_or(0)));
            }
            metrics.changed().await.ok()?;
        }
    };
    // It may not be made at all, if the log is spared for somebody: then it is asked for again.
    let (snapshot, purged) = timeout(SNAPSHOT_PATIENCE, made).await.ok()??;
    // With the snapshot openraft has decided by itself to keep no more entries than these, and will not cut less.
    let kept = shared.raft.config().max_in_snapshot_log_to_keep;
    let upto = (applied - applied.saturating_sub(purged) / 4).max(snapshot.saturating_sub(kept));
    // It fails only if openraft has ended.
    shared.raft.trigger().purge_log(upto).await.ok()?;
    Some(upto)
}

/// Reports the first cause that ends this member.
async fn watch_health(shared: Arc<Shared>, failed: watch::Sender<Option<Error>>) {
    let mut metrics = shared.raft.metrics();
    let mut faults = shared.state.fault();
    let mut ended = false;
    loop {
        faults.mark_unchanged();
        if let Some(error) = shared.fault() {
            tracing::error!(node = shared.identity.node, %error, "the node has failed");
            let is_replaced = compare::mark_damaged(&shared).await;
            let error = if is_replaced { reseed::advised(&error) } else { error };
            shared.state.interest.end(error.clone());
            failed.send_replace(Some(error));
            // A member that is at odds with its own disk must not go on leading or voting.
            let _ = shared.raft.shutdown().await;
            return;
        }
        if ended {
            if shared.raft.metrics().borrow_watched().running_state.is_err() {
                // It was told to.
                return;
            }
            // It has panicked, and wrote nothing down. Whoever asks it for something hears so.
            let Err(end) = shared.raft.with_raft_state(|_| ()).await else { return };
            let Some(cause) = super::fatal(&end) else { return };
            shared.state.fail(cause);
            continue;
        }
        // openraft writes its cause down before it goes, unless it panics: look once more.
        let (metrics, faults) = (pin!(metrics.changed()), pin!(faults.changed()));
        ended = match select(metrics, faults).await {
            Either::Left((changed, _)) => changed.is_err(),
            Either::Right((changed, _)) => changed.is_err(),
        };
    }
}

/// What an error of another member, the leader, says to whoever asked this one: that it has ended, whatever its end was, is no
/// end of this one, and somebody else leads soon. Nor is it the caller's business that the two do not trust each other, which
/// may be so for a while when certificates are replaced.
fn passed_on(own: u64, error: Error) -> Error {
    let is_its_end = match error.reason() {
        Reason::MemberRemoved { node } => node.get() != own,
        _ => matches!(
            error.kind(),
            ErrorKind::Storage | ErrorKind::Closed | ErrorKind::Unauthenticated
        ),
    };
    if error.kind() == ErrorKind::Unauthenticated {
        tracing::warn!(%error, "the leader is not reached");
    }
    match (is_its_end, error.may_have_applied()) {
        (false, _) => error,
        (true, false) => Reason::NoLeader.into(),
        (true, true) => Error::from(Reason::LeaderChanged).unknown_outcome(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise a client hears that its member was removed, or shut down, and gives up, when that was another.
    #[test]
    fn the_end_of_a_leader_is_not_that_of_whoever_asks_it() {
        let removed = |node: u64| Error::from(Reason::MemberRemoved { node: node.into() });
        assert_eq!(*passed_on(1, removed(2)).reason(), Reason::NoLeader);
        assert_eq!(*passed_on(1, removed(1)).reason(), *removed(1).reason());
        let detail = || "a certificate has expired".to_owned();
        for end in [
            Reason::Closed,
            Reason::AssertionFailed { detail: "a bug".to_owned() },
            Reason::Untrusted { detail: detail() },
        ] {
            let passed = passed_on(1, end.clone().into());
            assert!(passed.is_retryable() && !passed.may_have_applied());
            let passed = passed_on(1, Error::from(end).unknown_outcome());
            assert_eq!(*passed.reason(), Reason::LeaderChanged);
            assert!(passed.may_have_applied());
        }
        let refused = Error::from(Reason::NoSpace);
        assert_eq!(*passed_on(1, refused).reason(), Reason::NoSpace);
    }
}
