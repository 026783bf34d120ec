//! Why a leader must not resume its term after a restart.
//!
//! A leader's entry can be committed by its followers' disks before it reached its own. If the leader then loses power,
//! comes back at once and resumes its term, it issues the same log id again, for another entry. Followers compare ids
//! only: they acknowledge, and the group disagrees about an acknowledged write for ever.
//!
//! The test plays this with our own log, whose disk can be held. With openraft's default, the last writes differ; as we
//! configure it, they do not. The first is the proof that the test would see it.

use super::config::{Retention, Timing, config};
use super::log::LogStore;
use super::log::tests::seam;
use super::machine::{Machine, SnapshotData};
use super::state::State;
use super::{Payload, Peer, Types, Vote};
use crate::api::{Command, Proposal};
use crate::types::{Op, TxnOp};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{sleep, timeout};

type Raft = openraft::Raft<Types, Machine>;
type SnapshotOf = openraft::alias::SnapshotOf<Types, SnapshotData>;

/// The members that can be reached, by id: the network is a function call.
#[derive(Clone, Default)]
struct Router(Arc<Mutex<BTreeMap<u64, Raft>>>);

impl Router {
    fn reach(&self, target: u64) -> Result<Raft, RPCError<Types>> {
        let raft = self.0.lock().unwrap().get(&target).cloned();
        raft.ok_or_else(|| RPCError::Unreachable(Unreachable::from_string("off the network")))
    }
}

impl RaftNetworkFactory<Types> for Router {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _: &Peer) -> Link {
        Link { router: self.clone(), target }
    }
}

struct Link {
    router: Router,
    target: u64,
}

fn failed(error: impl std::fmt::Display) -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string(error))
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.router.reach(self.target)?.append_entries(rpc).await.map_err(failed)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.router.reach(self.target)?.vote(rpc).await.map_err(failed)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.router.reach(self.target)?.pre_vote(rpc).await.map_err(failed)
    }

    async fn full_snapshot(
        &mut self,
        _: Vote,
        _: SnapshotOf,
        _: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        unreachable!("the log is long enough")
    }
}

/// A member, and where it keeps its data.
struct Member {
    id: u64,
    folder: PathBuf,
    raft: Raft,
    log: LogStore,
    state: Arc<State>,
}

const MAP: usize = 64 << 20;

impl Member {
    async fn start(id: u64, folder: &Path, router: &Router, restore: bool) -> Self {
        let log = LogStore::open(&folder.join("raft"), 1 << 20).unwrap();
        let state = State::open(folder, MAP).unwrap();
        let machine = Machine::new(Arc::clone(&state), Some(log.clone()));
        let timing = Timing { heartbeat: Duration::from_millis(150) };
        let mut config = config(timing, Retention::default());
        if restore {
            config.enable_leader_restore = Some(true);
        }
        let raft = Raft::new(id, Arc::new(config), router.clone(), log.clone(), machine);
        let raft = raft.await.unwrap();
        router.0.lock().unwrap().insert(id, raft.clone());
        Self { id, folder: folder.to_owned(), raft, log, state }
    }

    /// Loses what is not on the disk, and returns where the rest is.
    async fn lose_power(self, router: &Router) -> PathBuf {
        router.0.lock().unwrap().remove(&self.id);
        let seam = seam::of(&self.folder.join("raft"));
        seam.set(seam::Disk::Crashed);
        self.raft.shutdown().await.unwrap();
        let Self { folder, log, state, raft, .. } = self;
        drop(raft);
        let closed = tokio::task::spawn_blocking(move || {
            let limit = Duration::from_secs(10);
            [state.close(limit), log.close(limit)]
        });
        assert_eq!(closed.await.unwrap(), [true, true], "something holds the disk");
        seam.set(seam::Disk::Works);
        folder
    }

    fn value(&self, key: &str) -> Option<String> {
        let read = TxnOp::single(Op::get(key).0);
        let outcome = self.state.read(&read).unwrap().unwrap();
        match outcome.results.into_iter().next() {
            Some(crate::types::OpResult::Get(kv)) => {
                kv.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
            }
            _ => unreachable!(),
        }
    }
}

fn put(key: &str, value: &str) -> Payload {
    let put = Op::put(key, value.to_owned());
    Proposal::from(Command::Txn(TxnOp::single(put.0))).into()
}

/// Writes through whichever member takes it.
async fn write_anywhere(members: &[&Member], payload: &Payload) {
    for _ in 0..200 {
        for member in members {
            let write = member.raft.client_write(payload.clone());
            if let Ok(Ok(_)) = timeout(Duration::from_millis(500), write).await {
                return;
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("nobody takes the write");
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Plays the scenario and returns, for each member, what it holds under the two keys written around the loss of power.
async fn play(restore: bool) -> Vec<[Option<String>; 2]> {
    let folder = tempfile::tempdir().unwrap();
    let router = Router::default();
    let path = |id: u64| folder.path().join(id.to_string());
    let first = Member::start(1, &path(1), &router, restore).await;
    let second = Member::start(2, &path(2), &router, restore).await;
    let third = Member::start(3, &path(3), &router, restore).await;
    let peers: BTreeMap<u64, Peer> = (1..=3).map(|id| (id, Peer::default())).collect();
    first.raft.initialize(peers).await.unwrap();
    until("node 1 leads", || first.raft.is_leader()).await;
    write_anywhere(&[&first], &put("base", "base")).await;
    until("all have the base", || {
        [&first, &second, &third].iter().all(|it| it.value("base").is_some())
    })
    .await;

    // The leader's own disk stalls; the followers' carry the entry, so it is acknowledged as committed.
    seam::of(&first.folder.join("raft")).set(seam::Disk::Holds);
    let mut write = tokio::task::JoinSet::new();
    let raft = first.raft.clone();
    write.spawn(async move { raft.client_write(put("a", "acknowledged")).await.is_ok() });
    until("the followers have it", || [&second, &third].iter().all(|it| it.value("a").is_some()))
        .await;
    write.shutdown().await;

    // Power is lost, and is back well within the followers' patience.
    let first = first.lose_power(&router).await;
    let first = Member::start(1, &first, &router, restore).await;
    let members = [&first, &second, &third];
    write_anywhere(&members, &put("b", "later")).await;
    // A group that disagrees never comes to rest equal, so this waits for a while and no longer.
    let settled = until("all have the later write", || {
        members.iter().all(|it| it.value("b").is_some() && it.value("a").is_some())
    });
    let _ = timeout(Duration::from_secs(3), settled).await;
    let values = members.iter().map(|it| [it.value("a"), it.value("b")]).collect();
    for member in members {
        member.raft.shutdown().await.unwrap();
    }
    values
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_configured_an_acknowledged_write_survives_the_power_loss_of_its_leader() {
    let both = [Some("acknowledged".to_owned()), Some("later".to_owned())];
    assert_eq!(play(false).await, [both.clone(), both.clone(), both]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_leader_restore_the_group_disagrees_so_the_test_can_see_it() {
    let values = play(true).await;
    let first = &values[0];
    assert!(
        values.iter().any(|other| other != first),
        "openraft no longer needs the setting: {values:?}"
    );
}
