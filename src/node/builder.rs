//! How a node comes to be: alone, with the other founders of its group, or in a group that is there already.

use super::door::{Door, Doorkeeper};
use super::{Node, PrivateRuntime, Running, log_folder};
use crate::api::{Join, check_address};
use crate::client::home::Home;
use crate::error::{Error, Fault, Reason, Result};
use crate::fault::{Point, point};
use crate::lmdb::FolderLock;
use crate::raft;
use crate::raft::config::{History, Quota, Retention, Timing};
use crate::raft::founding::{Desk, Founders};
use crate::raft::identity::{Base, Founding, Identity, Records};
use crate::raft::joining;
use crate::raft::log::LogStore;
use crate::raft::member::{Member, Parts};
use crate::raft::network::SNAPSHOT_RATE;
use crate::raft::pace::RATE_MIN;
use crate::raft::reseed::{Asker, Reseed, distrust_damaged};
use crate::raft::state::State;
use crate::wire::{self, Endpoint, Listener, RpcClient, Security};
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// The address space reserved for the state. Its file grows only as it is used.
pub(super) const STATE_MAP_BYTES: u64 = 128 << 30;
/// The smallest state that makes sense.
const STATE_MAP_BYTES_MIN: u64 = 16 << 20;
/// More than any process has room for. What it has not is found out by asking for less.
const STATE_MAP_BYTES_MAX: u64 = 64 << 40;
/// The granularity of all maps: a multiple of every page size in use.
const MAP_STEP: u64 = 1 << 20;
/// How long a start waits for the threads of a node that had the folder before.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// How long a founder waits for the others.
const PATIENCE: Duration = Duration::from_secs(300);

/// In which of the three ways it is started.
enum Start {
    Solo,
    Form(Founders),
    Join { seeds: Vec<String>, own: String },
}

/// Describes a node before it starts: [`Node::builder`].
///
/// Nothing happens before [`solo`](Self::solo), [`form`](Self::form) or [`join`](Self::join).
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// use quorate::Node;
/// use std::time::Duration;
///
/// let node = Node::builder(folder.path())
///     .listen("127.0.0.1:0")
///     .group_name("jobs")
///     .heartbeat(Duration::from_millis(100))
///     .map_size(1 << 30)
///     .snapshot_every(50_000)
///     .solo()
///     .await?;
/// assert!(node.local_address().is_some());
/// # node.shutdown().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing before `solo`, `form` or `join`"]
pub struct NodeBuilder {
    folder: PathBuf,
    listen: Option<String>,
    advertise: Option<String>,
    security: Security,
    name: String,
    timing: Timing,
    quota: Quota,
    history: History,
    pub(super) retention: Retention,
    snapshot_rate: u64,
    map_bytes: u64,
    patience: Duration,
}

impl NodeBuilder {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            listen: None,
            advertise: None,
            security: Security::default(),
            name: String::new(),
            timing: Timing::default(),
            quota: Quota::default(),
            history: History::default(),
            retention: Retention::default(),
            snapshot_rate: SNAPSHOT_RATE.get(),
            map_bytes: STATE_MAP_BYTES,
            patience: PATIENCE,
        }
    }

    /// The address, `host:port`, to listen on for the other members and for remote clients.
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = Some(address.into());
        self
    }

    /// The address under which the others reach this node, if it is another than the one it listens on.
    ///
    /// ```
    /// // Behind a mapped port: it listens on one address, and the others are told of another.
    /// let builder = quorate::Node::builder("data")
    ///     .listen("0.0.0.0:7401")
    ///     .advertise("10.0.0.1:7401")
    ///     .plaintext();
    /// # let _ = builder;
    /// ```
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.advertise = Some(address.into());
        self
    }

    /// Allows unencrypted traffic on addresses that are not loopback. Excludes `tls`.
    pub fn plaintext(mut self) -> Self {
        self.security = self.security.and(Security::Plaintext);
        self
    }

    /// Encrypts connections, and has certificates say who is a member and who is a client. All members need it. Needs the
    /// feature `tls`.
    ///
    /// ```
    /// use quorate::{Node, Tls};
    ///
    /// let tls = Tls::new("tls/ca.pem").identity("tls/member.pem", "tls/member.key");
    /// let builder = Node::builder("data")
    ///     .listen("0.0.0.0:7401")
    ///     .advertise("a.example.com:7401")
    ///     .tls(tls);
    /// # let _ = builder;
    /// ```
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: crate::wire::Tls) -> Self {
        self.security = self.security.and(Security::of_member(tls));
        self
    }

    /// Names the group, so that two groups that are set up on the same addresses by mistake do not mix.
    pub fn group_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How often the leader shows that it is there; 200 ms unless said otherwise, between 20 ms and 10 s, and the same on
    /// all members.
    ///
    /// A leader is replaced after fifteen to twenty heartbeats without one: for ten of them its followers hold to it, and
    /// then one stands for election after another five to ten. The shortest lease is fifteen. Slow disks want a slower
    /// one: an answer includes a flush.
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.timing.heartbeat = every;
        self
    }

    /// How much address space to reserve for the state, in bytes: the most that it can ever take. 128 GiB unless said
    /// otherwise.
    pub fn map_size(mut self, bytes: u64) -> Self {
        self.map_bytes = bytes;
        self
    }

    /// After how many entries the log is cut; 20,000 unless said otherwise. Half as many are kept behind the cut, so that
    /// a member that was away for a short time catches up from the log.
    pub fn snapshot_every(mut self, entries: u64) -> Self {
        self.retention.snapshot_every = entries;
        self.retention.kept = entries / 2;
        self
    }

    /// How many bytes of snapshots this node sends in a second, to all members together that have fallen behind the log;
    /// 16 MiB unless said otherwise, and 1 MiB at least. A member that gets its state anew, because its own
    /// [differs](Reason::StateDiffers) or is [damaged](Reason::Corrupt), gets it at that rate as well.
    ///
    /// A snapshot shares a disk and a connection with the writes of the group, and must not be what they wait for. But as long
    /// as it takes, the log behind it is kept, up to a gibibyte, or an eighth of a small disk: if more is written meanwhile, it was for nothing, and the next
    /// one begins. So a group that writes much wants it faster: at the default a state of a gibibyte takes a minute.
    ///
    /// It also says what the connection is good for. A snapshot that comes forward at less than an eighth of its share of it is given up
    /// after ten minutes, with a warning that says [`Reason::TransferTooSlow`], and begun anew, for the file of the sender grows
    /// as long as it is sent. If the way to a member carries no more, lower the rate.
    ///
    /// ```
    /// // A fast network, and disks that nothing slows down.
    /// let builder = quorate::Node::builder("data").snapshot_rate(200 << 20);
    /// # let _ = builder;
    /// ```
    pub fn snapshot_rate(mut self, bytes_per_second: u64) -> Self {
        self.snapshot_rate = bytes_per_second;
        self
    }

    /// How many bytes keys, history and leases may take; 8 GiB unless said otherwise, three quarters of the
    /// [`map_size`](Self::map_size) at most, half of a small one, and the same on all members.
    ///
    /// Beyond that the group refuses whatever takes room with [`Reason::NoSpace`], and goes on to delete, to compact, to end
    /// leases, and to answer reads. When a tenth is free it takes writes again. [`Status`](crate::Status) shows how much is
    /// in use. A deleted key takes room until its history is forgotten.
    ///
    /// What counts is what the leader holds: the pages that its rows are in, the rows of history that wait to be removed
    /// included, and what was applied and is not in the tables yet, as bytes. What does not:
    /// - the log, which has a bound of its own; pages of the file that are free, and a smaller copy while it is made;
    /// - writes that the leader has taken on and that are not applied yet, about 64 MiB at most. They are carried out all the
    ///   same if the group hears of the alarm behind them, so the quota may be passed by that much: it is no exact limit, and
    ///   the disk has to have more.
    ///
    /// The same happens when the leader's disk has less than 256 MiB left, until there is a quarter more than that. (Of a disk
    /// of less than 4 GiB it is a sixteenth, but 96 MiB, and a quarter if that is less.) Up to half of it may be free in the
    /// state's file instead. It is looked at four times a second: who fills it faster than that can still find it full, and
    /// then fails, with all that was acknowledged. Each member also cuts its log shorter while its disk is that full, and
    /// one that is far behind needs a snapshot then.
    ///
    /// It is the leader's quota that counts, and its count. If members have different ones, the limit changes with the leader;
    /// each says so in a warning. A member with less room than the leader may be unable to store what the group has taken,
    /// and then fails.
    pub fn quota(mut self, bytes: u64) -> Self {
        self.quota = Quota(bytes);
        self
    }

    /// For how long the past can be read, and watched from; one hour unless said otherwise, one second at least, and the same
    /// on all members. What is older is compacted.
    ///
    /// It is as long at least, and up to a tenth longer. When the leader changes it may be another tenth. But when
    /// there is no [room](Self::quota), and history can make some, the older half of it goes, and then half of what is left, until
    /// there is room or nothing is left: a watch or a read that needs it is told [`Reason::Compacted`].
    pub fn keep_history(mut self, time: Duration) -> Self {
        self.history = History::For(time);
        self
    }

    /// Keeps so many revisions of history, and up to a tenth more, whatever their age. When there is no
    /// [room](Self::quota) it goes as [`keep_history`](Self::keep_history) says, for what has just been deleted is history as
    /// well.
    pub fn keep_revisions(mut self, revisions: u64) -> Self {
        self.history = History::Revisions(revisions);
        self
    }

    /// Keeps history until somebody calls [`Client::compact`](crate::Client::compact), also when there is no room.
    pub fn keep_all_history(mut self) -> Self {
        self.history = History::All;
        self
    }

    /// How long [`form`](Self::form) waits for the other founders when the group is founded, [`join`](Self::join) for the
    /// group, and any start for another member when this one's [state differs](Reason::StateDiffers) or is
    /// [damaged](Reason::Corrupt); five minutes unless said otherwise.
    pub fn patience(mut self, others: Duration) -> Self {
        self.patience = others;
        self
    }

    /// Starts a group of one: for tests, for development, and for services on a single host.
    ///
    /// It is as durable as a larger group, and not available while its host is away. It needs no
    /// [`listen`](Self::listen), unless remote clients are to reach it.
    ///
    /// # Errors
    ///
    /// If the folder is in use, damaged, from a newer version, or belongs to a larger group; if the address cannot be
    /// listened on.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends what was started, a moment later. The folder stays usable.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// let node = quorate::Node::builder(folder.path()).solo().await?;
    /// assert_eq!(node.status().leader, Some(node.id()));
    /// # node.shutdown().await?;
    /// # Ok(()) }
    /// ```
    pub async fn solo(self) -> Result<Node> {
        self.start(Start::Solo).await
    }

    /// Founds a group with the others, or takes this node's place in it again.
    ///
    /// Every founder passes the same addresses, its own among them, on every start. The group is founded once, when all
    /// of them are there; from then on each starts without waiting for the others, and a majority of them is enough to
    /// serve. Ids follow from the sorted list, once, and are kept in the folders.
    ///
    /// # Errors
    ///
    /// - [`Reason::BadMembers`] if the list has an address twice, or not this node's own;
    /// - [`Reason::FoundersDiffer`] if another founder has another list, or the group was founded by another; if a backup
    ///   was [restored](crate::Backup::restore) into the folder of one founder and not of another, or not the same;
    /// - [`Reason::IncarnationRefused`] if the group exists and this folder is not the one that founded it: its data was
    ///   lost, and with it the votes it gave. It must not come back under the old id;
    /// - [`Reason::Unreachable`], with the addresses, if founders do not answer within [`patience`](Self::patience); or if this
    ///   member's state [differed](Reason::StateDiffers) from that of the group or was damaged, and no other hands its own out
    ///   in that time;
    /// - [`Reason::Corrupt`] if bytes in the folder have changed. If it is only the state, the text says that the next start
    ///   gets that of another member;
    /// - if the folder is in use, damaged or from a newer version; if the address cannot be listened on.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends what was started, a moment later. The folder stays usable.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// use quorate::Node;
    /// # let free = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    /// # let addresses = [free()?, free()?, free()?].map(|address| address.to_string());
    ///
    /// // Three members in one process; elsewhere each has a process of its own.
    /// let member = |n: usize| {
    ///     let address = addresses[n].clone();
    ///     Node::builder(folder.path().join(n.to_string())).listen(address).form(addresses.clone())
    /// };
    /// let (first, second, third) = futures::future::try_join3(member(0), member(1), member(2)).await?;
    ///
    /// first.client().put("greeting", "hello").await?;
    /// let read = third.client().get("greeting").await?;
    /// assert_eq!(read.expect("it was written").value, "hello");
    /// # drop(second);
    /// # Ok(()) }
    /// ```
    pub async fn form<A: Into<String>>(self, members: impl IntoIterator<Item = A>) -> Result<Node> {
        let members = members.into_iter().map(Into::into).collect();
        let start = Start::Form(Founders::new(&self.name, members, &self.own_address()?)?);
        self.start(start).await
    }

    /// Joins a group that is there already, through any of its members, or takes this node's place in it again.
    ///
    /// The group gives the node an id that nobody had before, and the node keeps that in its folder. It is a *learner*: it
    /// gets all data, and answers clients, and it does not count when the group agrees, before
    /// [`Client::promote_member`](crate::Client::promote_member) or
    /// [`Client::replace_member`](crate::Client::replace_member) makes it a voter. A member whose data was lost comes back
    /// in this way, with an empty folder, and replaces the one that it was.
    ///
    /// A folder that is a member's already just starts, whatever the seeds are, a founder's as well. The node's own address
    /// may be among them. It needs the [`heartbeat`](Self::heartbeat) of the group; a [`group_name`](Self::group_name) is
    /// compared if there is one.
    ///
    /// # Errors
    ///
    /// - [`Reason::BadMembers`] if no seed is given, or the folder holds a restored backup: who joins begins with nothing;
    ///   if a copy of this folder is a member elsewhere; if another member answers at this node's address. The address of a
    ///   member that is down, and that this one is to replace, can be used;
    /// - [`Reason::FoundersDiffer`] if the group has another name, or was started with [`solo`](Self::solo); if the folder
    ///   is of a member with another address;
    /// - [`Reason::TimingDiffers`] if the group has another heartbeat;
    /// - [`Reason::Unreachable`], with the addresses, if no seed lets it in within [`patience`](Self::patience);
    /// - if the folder is in use, damaged or from a newer version; if the address cannot be listened on.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends what was started, a moment later. The folder stays usable, and asks for the same id again.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// use quorate::Node;
    /// # let free = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    /// # let [first, second] = [free()?, free()?].map(|address| address.to_string());
    ///
    /// let founder = Node::builder(folder.path().join("1")).listen(&first).form([&first]).await?;
    /// let node = Node::builder(folder.path().join("2")).listen(&second).join([&first]).await?;
    /// node.ready().await?;
    ///
    /// node.client().promote_member(node.id()).await?;
    /// let members = node.client().members().await?;
    /// assert!(members.len() == 2 && members.iter().all(|member| member.is_voter));
    /// # drop(founder);
    /// # Ok(()) }
    /// ```
    pub async fn join<A: Into<String>>(self, seeds: impl IntoIterator<Item = A>) -> Result<Node> {
        let own = self.own_address()?;
        check_address(&own)?;
        let mut seeds: Vec<String> = seeds.into_iter().map(Into::into).collect();
        seeds.retain(|seed| *seed != own);
        if seeds.is_empty() {
            let detail = "a node joins through another member: name one".to_owned();
            return Err(Reason::BadMembers { detail }.into());
        }
        seeds.iter().try_for_each(|seed| check_address(seed))?;
        self.start(Start::Join { seeds, own }).await
    }

    /// Where the others reach this node.
    fn own_address(&self) -> Result<String> {
        let detail = || "a member of a group needs an address: say listen()".to_owned();
        let own = self.advertise.as_ref().or(self.listen.as_ref());
        own.cloned().ok_or_else(|| Reason::BadAddress { detail: detail() }.into())
    }

    async fn start(self, start: Start) -> Result<Node> {
        self.security.check()?;
        self.timing.check()?;
        self.history.check()?;
        self.quota.within(self.map_bytes)?;
        if self.map_bytes < STATE_MAP_BYTES_MIN || self.retention.snapshot_every == 0 {
            let detail = "a map has at least 16 MiB, and a snapshot comes after one entry at least";
            return Err(Reason::BadOption { detail: detail.to_owned() }.into());
        }
        self.checked_snapshot_rate()?;
        let mut runtime = PrivateRuntime::start()?;
        match runtime.run(self.run(start)).await {
            Ok(running) => {
                let home = Home::new(runtime.handle());
                Ok(Node { running: Some(running), home, names: Arc::default(), runtime })
            }
            Err(error) => {
                // The port and the folder are free when the caller hears of it.
                runtime.end().await;
                Err(error)
            }
        }
    }

    fn checked_snapshot_rate(&self) -> Result<NonZeroU64> {
        NonZeroU64::new(self.snapshot_rate).filter(|rate| rate.get() >= RATE_MIN).ok_or_else(|| {
            let detail = format!(
                "snapshots go at {RATE_MIN} bytes a second at least, and not at {}: the file and the log grow meanwhile",
                self.snapshot_rate
            );
            Reason::BadOption { detail }.into()
        })
    }

    /// Everything from the lock to the first call, on the node's own runtime.
    async fn run(self, start: Start) -> Result<Running> {
        // The order matters: nothing in the folder is touched before it is ours, and nobody is answered before the
        // folder has said who this is.
        let lock = Arc::new(self.lock().await?);
        point(Point::StartLocked);
        raft::backup::check_restored(&self.folder)?;
        let listener = self.bind().await?;
        let log = LogStore::open(&log_folder(&self.folder), self.retention.segment_bytes())?;
        log.hold(Arc::clone(&lock) as Arc<_>)?;
        point(Point::StartLogOpen);
        let map_bytes = self.map_bytes.min(STATE_MAP_BYTES_MAX).next_multiple_of(MAP_STEP);
        let map_bytes = usize::try_from(map_bytes).unwrap_or(usize::MAX);
        // A state that is not to be opened is replaced as soon as it is known who asks for another.
        let reseed = Reseed::find(&self.folder, map_bytes)?;
        let open = || self.open_state(map_bytes, &log);
        let state = match reseed {
            Some(_) => None,
            None => match open() {
                Ok(state) => Some(state),
                Err(fault) => {
                    return Err(distrust_damaged(&self.folder, map_bytes, &log, fault).await);
                }
            },
        };
        let mut records = Records::open(&log).await?;
        let base = state.as_ref().and_then(|state| state.base());
        if state.as_ref().is_some_and(|state| state.now().applied.is_none()) {
            records.check_base(base)?;
        }
        let door = Arc::new(Door::new());
        let server = listener.map(|it| wire::serve(it, Arc::new(Doorkeeper(Arc::clone(&door)))));
        let solo = matches!(start, Start::Solo);
        let founders = match start {
            Start::Solo => Founders::alone(&self.name),
            Start::Form(founders) => founders,
            Start::Join { seeds, own } => {
                if records.founding.is_none() {
                    self.let_in(&mut records, &log, base, &seeds, &own).await?;
                }
                let founding = records.founding.as_ref();
                let unknown = || Fault::assertion("whoever was let in knows the group");
                self.founders_of(founding.ok_or_else(unknown)?, own)?
            }
        };
        let desk = Desk::new(founders.on(base), records);
        door.found(desk.clone());
        let identity = self.identify(&desk, &log, solo).await?;
        point(Point::StartFounded);
        if let Some(reseed) = reseed {
            let asker = Asker { identity, timing: self.timing, security: self.security.clone() };
            reseed.run(&log, &asker, desk.members(), self.patience).await?;
        }
        let state = match state {
            Some(state) => state,
            None => open()?,
        };
        state.hold(Arc::clone(&lock));
        let parts = Parts {
            identity,
            timing: self.timing,
            quota: self.quota.within(state.map_bytes()?)?,
            history: self.history,
            retention: self.retention,
            snapshot_rate: self.checked_snapshot_rate()?,
            log,
            state,
            desk: desk.clone(),
            security: self.security.clone(),
        };
        let member = Member::start(parts).await?;
        door.open(Arc::clone(&member.shared));
        point(Point::StartServes);
        if desk.initializes() {
            member.initialize(desk.members()).await?;
        }
        if solo {
            member.leads().await?;
        }
        Ok(Running { member, server, door, lock })
    }

    /// Opens the state, if there is the log that led to it.
    fn open_state(&self, map_bytes: usize, log: &LogStore) -> Result<Arc<State>, Fault> {
        let state = State::open(&self.folder, map_bytes)?;
        if log.is_pristine() && state.head().borrow().applied.is_some() {
            // Begun anew, it would be another group with the same data, or a member that has forgotten its votes.
            let folder = self.folder.display();
            let lost = format!("{folder} has a state, and has lost the log that led to it");
            return Err(Fault::corrupt(lost));
        }
        point(Point::StartStateOpen);
        Ok(state)
    }

    /// Locks the folder. The threads of a node that has just ended may hold it for another moment.
    async fn lock(&self) -> Result<FolderLock> {
        let until = Instant::now() + LOCK_PATIENCE;
        loop {
            let error = match FolderLock::take(&self.folder) {
                Ok(lock) => return Ok(lock),
                Err(fault) => Error::from(fault),
            };
            if !matches!(error.reason(), Reason::AlreadyOpen { .. }) || Instant::now() > until {
                return Err(error);
            }
            tokio::time::sleep(LOCK_PATIENCE / 100).await;
        }
    }

    async fn bind(&self) -> Result<Option<Listener>> {
        let Some(address) = &self.listen else { return Ok(None) };
        wire::bind(address, self.security.clone()).await.map(Some)
    }

    /// Has the group take this node in, and keeps as whom.
    async fn let_in(
        &self,
        records: &mut Records,
        log: &LogStore,
        base: Option<Base>,
        seeds: &[String],
        own: &str,
    ) -> Result<()> {
        if base.is_some() || !log.is_pristine() {
            let folder = self.folder.display();
            let detail =
                format!("{folder} has a state of its own: a node joins with an empty folder");
            return Err(Reason::BadMembers { detail }.into());
        }
        let join = Join {
            address: own.to_owned(),
            incarnation: records.incarnation,
            name: self.name.clone(),
            heartbeat: self.timing.heartbeat,
        };
        let joined = joining::ask(seeds, &join, &self.security, self.patience).await?;
        Ok(records.join(log, joined).await?)
    }

    /// The founders as the folder knows them, for a node that was not told.
    fn founders_of(&self, founding: &Founding, own: String) -> Result<Founders> {
        if !self.name.is_empty() && self.name != founding.name {
            let detail = format!("the group is named {:?}, not {:?}", founding.name, self.name);
            return Err(Reason::FoundersDiffer { detail }.into());
        }
        Ok(Founders::of(founding, own))
    }

    /// Who this node is: as the folder says, or as the founding makes it.
    async fn identify(&self, desk: &Desk, log: &LogStore, solo: bool) -> Result<Identity> {
        if let Some(identity) = desk.known(log)? {
            return Ok(identity);
        }
        if solo {
            return desk.found_alone(log).await;
        }
        let who = Endpoint { group: 0, node: 0 };
        let client = |address: &String| {
            let client =
                RpcClient::new(address.clone(), who, self.security.clone(), Handle::current());
            (address.clone(), client)
        };
        let clients: BTreeMap<String, RpcClient> = desk.others().map(client).collect();
        desk.found(log, clients, self.patience).await
    }
}
