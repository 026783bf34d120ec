//! A fresh group of processes of one side, and the callers that belong to it.
//!
//! ```text
//! Group ─┬─ quorate: three agents, each a member with callers inside (embedded) ─┐
//!        │                                                                       ├─ a fourth agent: remote callers
//!        ├─ etcd: three servers ─────────────────────────────────────────────────┘
//!        └─ hiqlite: three agents, each a member with callers inside
//! ```
//!
//! Dropping a group kills its processes and removes its files.

use crate::agent::{HiqliteMember, Part, Role};
use crate::etcd::server as etcd;
use crate::job::{Act, Job, Place, Reply, Sample};
use crate::meter::monotonic_ns;
use crate::proc::{self, Memory};
use crate::store::{Fresh, Result, Store};
use bytes::Bytes;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};

/// How long a group may take to serve, and a job to end. Load and fill have the time they ask for on top.
const PATIENCE: Duration = Duration::from_secs(180);
const JOB_PATIENCE: Duration = Duration::from_secs(1800);

/// What is the same for all groups of a run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) members: usize,
    pub(crate) heartbeat_ms: u64,
    pub(crate) election_ms: u64,
    /// Where the groups put their files.
    pub(crate) data: PathBuf,
    /// etcd's program, if it is there.
    pub(crate) etcd: Option<PathBuf>,
    /// Connections of remote callers to each member.
    pub(crate) connections: usize,
    /// How long quorate keeps history, if not as long as it does by itself.
    pub(crate) history: Option<Duration>,
}

/// Whose group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Quorate,
    Etcd,
    /// hiqlite, for callers of its cache.
    Hiqlite,
    /// hiqlite, for callers of its SQLite.
    HiqliteSql,
}

/// Where the callers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Column {
    /// A process beside etcd's servers, connected to all.
    Etcd,
    /// The same, connected to the leader.
    EtcdLeader,
    /// In the processes of all members of a quorate group.
    Embedded,
    /// In the leader's process.
    EmbeddedLeader,
    /// A process beside quorate's members, connected to all.
    Remote,
    /// In the processes of all members of a hiqlite group, calling its cache.
    Hiqlite,
    /// The same, calling its SQLite.
    HiqliteSql,
}

impl Column {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::EtcdLeader => "etcd-leader",
            Self::Embedded => "embedded",
            Self::EmbeddedLeader => "embedded-leader",
            Self::Remote => "remote",
            Self::Hiqlite => "hiqlite",
            Self::HiqliteSql => "hiqlite-sql",
        }
    }

    pub(crate) fn side(self) -> Side {
        match self {
            Self::Etcd | Self::EtcdLeader => Side::Etcd,
            Self::Embedded | Self::EmbeddedLeader | Self::Remote => Side::Quorate,
            Self::Hiqlite => Side::Hiqlite,
            Self::HiqliteSql => Side::HiqliteSql,
        }
    }

    /// The column of etcd that it is compared with: the same callers at the same members. hiqlite is beside quorate, and
    /// has none.
    pub(crate) fn beside(self) -> Option<Self> {
        match self {
            Self::Etcd | Self::EtcdLeader | Self::Hiqlite | Self::HiqliteSql => None,
            Self::Embedded | Self::Remote => Some(Self::Etcd),
            Self::EmbeddedLeader => Some(Self::EtcdLeader),
        }
    }
}

/// A running group.
pub(crate) struct Group {
    side: Side,
    settings: Settings,
    folder: TempDir,
    /// Of clients and, for etcd, of the other members.
    ports: Vec<(u16, u16)>,
    members: Vec<Option<Member>>,
    leader: usize,
    /// Callers outside of the members, and which member led when they connected.
    remote: Option<(Agent, usize)>,
}

enum Member {
    Agent(Agent),
    Server(Child),
}

impl Member {
    fn pid(&self) -> Option<u32> {
        match self {
            Self::Agent(agent) => agent.process.id(),
            Self::Server(process) => process.id(),
        }
    }

    fn process(&mut self) -> &mut Child {
        match self {
            Self::Agent(agent) => &mut agent.process,
            Self::Server(process) => process,
        }
    }
}

impl Group {
    /// Starts the members, and waits until one of them leads.
    pub(crate) async fn start(side: Side, settings: &Settings) -> Result<Self> {
        std::fs::create_dir_all(&settings.data)?;
        let folder = tempfile::Builder::new().prefix("group-").tempdir_in(&settings.data)?;
        let mut group = Self {
            side,
            settings: settings.clone(),
            folder,
            ports: free_ports(settings.members)?,
            members: Vec::new(),
            leader: 0,
            remote: None,
        };
        for index in 0..settings.members {
            let member = group.spawn(index)?;
            group.members.push(Some(member));
        }
        for index in 0..settings.members {
            group.wait_ready(index).await?;
        }
        group.find_leader().await?;
        Ok(group)
    }

    fn address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.ports[index].0)
    }

    fn spawn(&self, index: usize) -> Result<Member> {
        let folder = self.folder.path().join(format!("member-{index}"));
        std::fs::create_dir_all(&folder)?;
        match self.side {
            Side::Quorate => {
                let founders = (0..self.ports.len()).map(|index| self.address(index)).collect();
                let heartbeat_ms = self.settings.heartbeat_ms;
                let address = self.address(index);
                Ok(Member::Agent(Agent::spawn(&Role::Member {
                    folder,
                    address,
                    founders,
                    heartbeat_ms,
                    history: self.settings.history,
                })?))
            }
            Side::Etcd => {
                let binary = self.settings.etcd.as_ref().ok_or("etcd's program was not found")?;
                let (client_ports, peer_ports): (Vec<u16>, Vec<u16>) =
                    self.ports.iter().copied().unzip();
                let start = etcd::Start {
                    index,
                    folder: &folder,
                    peer_ports: &peer_ports,
                    client_ports: &client_ports,
                    heartbeat_ms: self.settings.heartbeat_ms,
                    election_ms: self.settings.election_ms,
                };
                let mut command = Command::from(etcd::command(binary, &start)?);
                Ok(Member::Server(command.kill_on_drop(true).spawn()?))
            }
            Side::Hiqlite => self.spawn_hiqlite(folder, index, Part::Cache),
            Side::HiqliteSql => self.spawn_hiqlite(folder, index, Part::Sql),
        }
    }

    fn spawn_hiqlite(&self, folder: PathBuf, index: usize, part: Part) -> Result<Member> {
        let ports = self.ports.clone();
        let member = HiqliteMember { folder, index, ports, part };
        Ok(Member::Agent(Agent::spawn(&Role::Hiqlite(member))?))
    }

    /// Waits until a member takes part in its group.
    async fn wait_ready(&mut self, index: usize) -> Result {
        match self.members[index].as_mut() {
            Some(Member::Agent(agent)) => agent.ready().await,
            Some(Member::Server(_)) => {
                let until = Instant::now() + PATIENCE;
                let address = self.address(index);
                while !etcd::status(&address).await.is_ok_and(|status| status.has_leader) {
                    if Instant::now() > until {
                        return Err(format!("member {index} of etcd does not serve").into());
                    }
                    sleep(Duration::from_millis(10)).await;
                }
                Ok(())
            }
            None => Err(format!("member {index} was not started").into()),
        }
    }

    /// Looks who leads, and waits until somebody does.
    pub(crate) async fn find_leader(&mut self) -> Result<usize> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            for index in 0..self.members.len() {
                let address = self.address(index);
                let leads = match &mut self.members[index] {
                    Some(Member::Agent(agent)) => agent.leads().await?,
                    Some(Member::Server(_)) => {
                        etcd::status(&address).await.is_ok_and(|status| status.is_leader)
                    }
                    None => false,
                };
                if leads {
                    self.leader = index;
                    return Ok(index);
                }
            }
            sleep(Duration::from_millis(10)).await;
        }
        Err("the group finds no leader".into())
    }

    /// Has the callers of a column do a job together.
    pub(crate) async fn work(&mut self, column: Column, job: &Job) -> Result<Sample> {
        self.find_leader().await?;
        match column {
            Column::Embedded | Column::EmbeddedLeader | Column::Hiqlite | Column::HiqliteSql => {
                let parts = if column == Column::EmbeddedLeader { 1 } else { self.members.len() };
                self.work_inside(&job.split(parts)).await
            }
            Column::Remote | Column::Etcd => self.remote().await?.ask(job).await,
            Column::EtcdLeader => self.remote().await?.ask(&job.clone().at(Place::Leader)).await,
        }
    }

    /// Each of `jobs` in a member's process, the first in the leader's, at the same time.
    async fn work_inside(&mut self, jobs: &[Job]) -> Result<Sample> {
        let count = self.members.len();
        let order: Vec<usize> = (0..count).map(|offset| (self.leader + offset) % count).collect();
        for (job, index) in jobs.iter().zip(&order) {
            self.agent(*index)?.tell(job).await?;
        }
        let mut done: Option<Sample> = None;
        let mut failed = None;
        for (_, index) in jobs.iter().zip(&order) {
            // All are heard, or the next job would get the answers to this one.
            match self.agent(*index)?.hear().await {
                Ok(sample) => {
                    done = Some(match done {
                        Some(before) => before.beside(sample),
                        None => sample,
                    });
                }
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or_else(|| done.ok_or_else(|| "nobody had anything to do".into()), Err)
    }

    /// The agent in a member's process.
    pub(crate) fn agent(&mut self, index: usize) -> Result<&mut Agent> {
        match &mut self.members[index] {
            Some(Member::Agent(agent)) => Ok(agent),
            _ => Err(format!("no agent is at member {index}").into()),
        }
    }

    /// The callers outside, connected to all members, the leader first.
    async fn remote(&mut self) -> Result<&mut Agent> {
        if self.remote.as_ref().is_none_or(|(_, leader)| *leader != self.leader) {
            let others = (0..self.members.len()).filter(|index| *index != self.leader);
            let order: Vec<usize> = std::iter::once(self.leader).chain(others).collect();
            self.remote = Some((self.callers(&order).await?, self.leader));
        }
        Ok(&mut self.remote.as_mut().expect("it was just made").0)
    }

    /// New callers outside, connected to these members.
    pub(crate) async fn callers(&self, members: &[usize]) -> Result<Agent> {
        let addresses = members.iter().map(|index| self.address(*index)).collect();
        let connections = self.settings.connections;
        let mut agent = Agent::spawn(&match self.side {
            Side::Quorate => Role::Remote { addresses, connections },
            Side::Etcd => Role::Etcd { addresses, connections },
            Side::Hiqlite | Side::HiqliteSql => {
                return Err("hiqlite has no callers outside here".into());
            }
        })?;
        agent.ready().await?;
        Ok(agent)
    }

    // -------------------------------------------------------------------------------------- what becomes of members

    /// Kills a member at once, as a loss of power of its process does.
    pub(crate) async fn kill(&mut self, index: usize) -> Result {
        if let Some(mut member) = self.members[index].take() {
            member.process().kill().await?;
        }
        Ok(())
    }

    /// Asks a member to end in good order, and does not wait for it.
    pub(crate) async fn ask_to_stop(&mut self, index: usize) -> Result {
        match &mut self.members[index] {
            Some(Member::Agent(agent)) => agent.tell(&Job::ShutDown).await,
            Some(Member::Server(process)) => {
                let id = process.id().and_then(|id| i32::try_from(id).ok());
                let pid = id.and_then(rustix::process::Pid::from_raw).ok_or("it has ended")?;
                Ok(rustix::process::kill_process(pid, rustix::process::Signal::TERM)?)
            }
            None => Ok(()),
        }
    }

    /// Starts members that were killed, and returns how long it took until one of them served: a linearizable read at
    /// the first, or, if the whole group was away, an acknowledged write.
    pub(crate) async fn start_again(&mut self, members: &[usize]) -> Result<Duration> {
        let all = members.len() == self.members.len();
        let began = monotonic_ns();
        for index in members {
            self.members[*index] = Some(self.spawn(*index)?);
        }
        let limit_ms = PATIENCE.as_millis() as u64;
        let at = match self.side {
            Side::Quorate | Side::Hiqlite | Side::HiqliteSql => {
                for index in members {
                    self.agent(*index)?.ready().await?;
                }
                let probe =
                    if all { Job::FirstWrite { limit_ms } } else { Job::FirstRead { limit_ms } };
                let sample = self.agent(members[0])?.ask(&probe).await?;
                sample.at_ns.ok_or("no time was told")?
            }
            Side::Etcd => self.first_answer_of_etcd(members[0], all).await?,
        };
        for index in members {
            if self.side == Side::Etcd {
                self.wait_ready(*index).await?;
            }
        }
        Ok(Duration::from_nanos(at.saturating_sub(began)))
    }

    async fn first_answer_of_etcd(&self, index: usize, write: bool) -> Result<u64> {
        let (until, address) = (Instant::now() + PATIENCE, self.address(index));
        while Instant::now() < until {
            let answer = async {
                let store = crate::etcd::Etcd::connect(&address).await?;
                match write {
                    true => store.put(&Bytes::from_static(b"p/0"), &Bytes::from_static(b"")).await,
                    false => {
                        store.get(&Bytes::from_static(b"k/00000000"), Fresh::Linearizable).await?;
                        Ok(())
                    }
                }
            };
            if let Ok(Ok(())) = timeout(Duration::from_millis(500), answer).await {
                return Ok(monotonic_ns());
            }
            sleep(Duration::from_millis(5)).await;
        }
        Err("etcd does not serve again".into())
    }

    // ----------------------------------------------------------------------------------------------- what they use

    /// Where the members are for their clients.
    pub(crate) fn addresses(&self) -> Vec<String> {
        (0..self.ports.len()).map(|index| self.address(index)).collect()
    }

    fn pids(&self) -> Vec<u32> {
        self.members.iter().flatten().filter_map(Member::pid).collect()
    }

    /// The mean memory of a member.
    pub(crate) fn memory(&self) -> Memory {
        let pids = self.pids();
        let all: Vec<Memory> = pids.iter().map(|pid| proc::memory(*pid)).collect();
        let mean =
            |of: fn(&Memory) -> u64| all.iter().map(of).sum::<u64>() / all.len().max(1) as u64;
        Memory { resident: mean(|it| it.resident), anonymous: mean(|it| it.anonymous) }
    }

    /// The threads and open files of a member, on average.
    pub(crate) fn threads_and_descriptors(&self) -> (f64, f64) {
        let pids = self.pids();
        let mean = |of: fn(u32) -> u64| {
            pids.iter().map(|pid| of(*pid)).sum::<u64>() as f64 / pids.len().max(1) as f64
        };
        (mean(proc::threads), mean(proc::descriptors))
    }

    /// Processor time of all members so far.
    pub(crate) fn processor_ns(&self) -> u64 {
        self.pids().into_iter().map(proc::processor_ns).sum()
    }

    /// Bytes that the disk of all members has been given to write so far, by them and by everybody else.
    pub(crate) fn disk_written_bytes(&self) -> Result<u64> {
        proc::disk_written_bytes(self.folder.path())
    }

    /// Bytes that the files of a member take, on average.
    pub(crate) fn file_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        fn of(folder: &std::path::Path) -> u64 {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries
                .map(|entry| match entry.metadata() {
                    Ok(data) if data.is_dir() => of(&entry.path()),
                    Ok(data) => data.blocks() * 512,
                    Err(_) => 0,
                })
                .sum()
        }
        of(self.folder.path()) / self.members.len() as u64
    }

    pub(crate) fn side(&self) -> Side {
        self.side
    }

    pub(crate) fn size(&self) -> usize {
        self.members.len()
    }

    /// For people who attach a profiler.
    pub(crate) fn processes(&self) -> String {
        let name = |index: usize| if index == self.leader { "leader" } else { "follower" };
        let members = self.members.iter().enumerate();
        let members = members.filter_map(|(index, member)| Some((index, member.as_ref()?.pid()?)));
        let mut said: Vec<String> =
            members.map(|(index, pid)| format!("{} {pid}", name(index))).collect();
        said.extend(
            self.remote.as_ref().and_then(|(it, _)| Some(format!("callers {}", it.process.id()?))),
        );
        said.join(", ")
    }

    /// Ends everything, and waits for it.
    pub(crate) async fn end(mut self) -> Result {
        drop(self.remote.take());
        for index in 0..self.members.len() {
            self.kill(index).await?;
        }
        Ok(())
    }
}

/// A process that carries out jobs.
pub(crate) struct Agent {
    process: Child,
    orders: ChildStdin,
    replies: Lines<BufReader<ChildStdout>>,
}

impl Agent {
    fn spawn(role: &Role) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("agent").arg(serde_json::to_string(role)?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn()?;
        let orders = process.stdin.take().ok_or("it is piped")?;
        let replies = BufReader::new(process.stdout.take().ok_or("it is piped")?).lines();
        Ok(Self { process, orders, replies })
    }

    async fn ready(&mut self) -> Result {
        match self.reply(PATIENCE).await? {
            Reply::Ready => Ok(()),
            other => Err(format!("an agent begins with {other:?}").into()),
        }
    }

    async fn leads(&mut self) -> Result<bool> {
        self.tell(&Job::Leads).await?;
        match self.reply(PATIENCE).await? {
            Reply::Leads(leads) => Ok(leads),
            other => Err(format!("an agent was asked who leads, and says {other:?}").into()),
        }
    }

    pub(crate) async fn ask(&mut self, job: &Job) -> Result<Sample> {
        self.tell(job).await?;
        self.hear().await
    }

    async fn tell(&mut self, job: &Job) -> Result {
        let line = serde_json::to_string(job)? + "\n";
        Ok(self.orders.write_all(line.as_bytes()).await?)
    }

    async fn hear(&mut self) -> Result<Sample> {
        match self.reply(JOB_PATIENCE).await? {
            Reply::Done(sample) => Ok(sample),
            other => Err(format!("a job ended with {other:?}").into()),
        }
    }

    async fn reply(&mut self, patience: Duration) -> Result<Reply> {
        let line = timeout(patience, self.replies.next_line()).await;
        let line = line.map_err(|_| "an agent does not answer")??;
        match serde_json::from_str(&line.ok_or("an agent has ended")?)? {
            Reply::Failed(error) => Err(error.into()),
            reply => Ok(reply),
        }
    }
}

/// Two free ports for each member. They are free until they are taken by somebody else.
fn free_ports(members: usize) -> Result<Vec<(u16, u16)>> {
    let mut held = Vec::new();
    let mut port = || -> Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        held.push(listener);
        Ok(port)
    };
    (0..members).map(|_| Ok((port()?, port()?))).collect()
}

/// A load for `work`, with everything that is usual.
pub(crate) fn load(act: Act, callers: usize) -> crate::job::Load {
    crate::job::Load {
        act,
        callers,
        place: Place::Spread,
        keys: 10_000,
        value_bytes: 256,
        warm_ms: 100,
        run_ms: 500,
    }
}
