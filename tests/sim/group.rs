//! A group of members and its clients, each in a runtime of its own, and the clock that moves them all.
//!
//! ```text
//! step:  net delivers what is due ─▶ host 1 runs for a step of *its* clock ─▶ host 2 … ─▶ clients ─▶ look at everybody
//! ```
//!
//! A runtime with a paused clock does all that it can at a moment, then jumps to its next timer, up to the end of the
//! step. So a member whose clock is fast gets a longer step, and one that is paused gets none, and later a jump.
//!
//! Invariants
//! - one thread runs at a time, and hosts in their order, so that a run follows from its seed;
//! - hosts hear of each other between two steps only.

use crate::book::Book;
use crate::disk::{self, Trouble};
use crate::history::Moment;
use crate::net::{CLIENT_HOSTS, HostId, NOBODY, Net, Weather};
use crate::points::{Happens, Points};
use crate::system;
use crate::work::{self, Worker};
use quorate::{Error, Node, Peek};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::Instant;

/// The host of all remote clients.
pub const CLIENTS: HostId = CLIENT_HOSTS;

/// The quota of a group that is short of room.
const TIGHT_BYTES: u64 = 1 << 20;

/// What a group is like.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub members: usize,
    pub heartbeat: Duration,
    pub step: Duration,
    pub snapshot_every: u64,
    pub history: History,
    /// Values are large, and there is no room for many.
    pub is_tight: bool,
    pub weather: Weather,
    /// How much faster than the simulation's each clock runs, in parts of a thousand; the clients' is the last.
    pub rates: Vec<i64>,
    pub sync_takes: Vec<Duration>,
    pub workers: usize,
    /// How long it works before everything is healed.
    pub lasts: Duration,
    /// The middle of the members' addresses.
    pub network: [u8; 2],
}

impl Setup {
    /// Where a member is. The last number is its place, by which the network knows its host.
    pub fn address(&self, index: usize) -> String {
        let [high, low] = self.network;
        format!("127.{high}.{low}.{}:7000", index + 1)
    }
}

/// A runtime with a clock of its own.
struct Host {
    id: HostId,
    runtime: Option<Runtime>,
    began: Option<Instant>,
    /// How far its clock was told to be since it began.
    local: Duration,
    rate: f64,
    /// How long it has not run.
    missed: Duration,
    paused: bool,
}

/// How much history is kept.
#[derive(Clone, Copy, Debug)]
pub enum History {
    All,
    For(Duration),
    Revisions(u64),
}

/// A member, running or not.
pub struct Member {
    pub index: usize,
    pub folder: PathBuf,
    pub address: String,
    host: Host,
    life: Arc<Mutex<Life>>,
    /// How often it was started.
    pub starts: u32,
    pub sync_takes: Duration,
    /// It has lost its disk, and with it the votes that it gave, and nobody has taken its place yet.
    pub is_wiped: bool,
    /// It comes back as somebody new, which takes the place of whom it was.
    pub joins: bool,
    /// Who it was when it lost its disk. Nobody is that again.
    pub lost: BTreeSet<u64>,
    /// Whether it has taken that place.
    has_replaced: Arc<AtomicBool>,
    /// Its disk may fail it.
    pub is_in_trouble: bool,
    /// It says another hash of its state than that has, so that it is to find itself at fault.
    pub differs: bool,
}

/// How a start went.
#[derive(Debug, Default)]
pub enum Life {
    #[default]
    Starting,
    Up(Box<Node>),
    Refused(Error),
}

pub struct Group {
    pub setup: Setup,
    pub now: Moment,
    pub net: Net,
    pub book: Book,
    pub members: Vec<Member>,
    clients: Host,
    pub points: Points,
    pub steps: u64,
}

impl Host {
    fn new(id: HostId, per_mille: i64) -> Self {
        Self {
            id,
            runtime: None,
            began: None,
            local: Duration::ZERO,
            rate: 1.0 + per_mille as f64 / 1000.0,
            missed: Duration::ZERO,
            paused: false,
        }
    }

    fn start(&mut self) -> &Runtime {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without a driver can be made");
        self.began = Some(runtime.block_on(async { Instant::now() }));
        self.local = Duration::ZERO;
        self.missed = Duration::ZERO;
        self.paused = false;
        self.runtime.insert(runtime)
    }

    /// Runs it for `step` of the simulation's time.
    fn step(&mut self, step: Duration, net: &Net) {
        let (Some(runtime), Some(began)) = (&self.runtime, self.began) else { return };
        let step = step.mul_f64(self.rate);
        if self.paused {
            self.missed += step;
            return;
        }
        net.runs(self.id);
        if !self.missed.is_zero() {
            let missed = std::mem::take(&mut self.missed);
            self.local += missed;
            runtime.block_on(async { tokio::time::advance(missed).await });
        }
        self.local += step;
        runtime.block_on(async { tokio::time::sleep_until(began + self.local).await });
        // Nothing happens to whoever is only looked at.
        net.runs(NOBODY);
    }
}

/// The files of a folder that this process has open.
fn still_open(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let paths = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    paths.filter(|path| path.starts_with(folder)).collect()
}

impl Member {
    /// Looks at the node, if there is one.
    pub fn with<T>(&self, look: impl FnOnce(&Node) -> T) -> Option<T> {
        let _context = self.host.runtime.as_ref()?.enter();
        match &*self.life.lock().unwrap_or_else(PoisonError::into_inner) {
            Life::Up(node) => Some(look(node)),
            Life::Starting | Life::Refused(_) => None,
        }
    }

    pub fn peek(&self) -> Option<Peek> {
        self.with(Node::peek)
    }

    pub fn is_running(&self) -> bool {
        self.host.runtime.is_some()
    }

    /// Whether its next start gets the state of another, or this one does right now.
    pub fn is_distrusted(&self) -> bool {
        self.folder.join("UNTRUSTED").exists()
    }

    pub fn is_paused(&self) -> bool {
        self.host.paused
    }

    /// Why it could not start, if it could not.
    pub fn refused(&self) -> Option<Error> {
        match &*self.life.lock().unwrap_or_else(PoisonError::into_inner) {
            Life::Refused(error) => Some(error.clone()),
            Life::Starting | Life::Up(_) => None,
        }
    }
}

/// The folder of a member.
pub fn folder(root: &Path, index: usize) -> PathBuf {
    root.join(format!("m{index}"))
}

impl Group {
    /// Nobody runs yet. The network and the points are the process's.
    pub fn new(setup: Setup, root: &Path, book: Book, net: Net, points: Points) -> Self {
        let member = |index: usize| Member {
            index,
            folder: folder(root, index),
            address: setup.address(index),
            host: Host::new(index as HostId + 1, setup.rates[index]),
            life: Arc::default(),
            starts: 0,
            sync_takes: setup.sync_takes[index],
            is_in_trouble: false,
            differs: false,
            is_wiped: false,
            joins: false,
            lost: BTreeSet::new(),
            has_replaced: Arc::default(),
        };
        let members = (0..setup.members).map(member).collect();
        let clients = Host::new(CLIENTS, setup.rates[setup.members]);
        let now = Moment::ZERO;
        if setup.is_tight {
            book.fill_up();
        }
        Self { setup, now, net, book, members, clients, points, steps: 0 }
    }

    /// Starts a member, on whatever its disk holds.
    pub fn start(&mut self, index: usize) {
        if self.members[index].is_distrusted() {
            // It has found out.
            self.differ(index, false);
        }
        let addresses: Vec<String> = self.members.iter().map(|it| it.address.clone()).collect();
        let member = &mut self.members[index];
        let takes = Trouble { sync_takes: member.sync_takes, ..Trouble::default() };
        disk::trouble(&member.folder, takes);
        member.starts += 1;
        member.is_in_trouble = false;
        *member.life.lock().unwrap_or_else(PoisonError::into_inner) = Life::Starting;
        let life = Arc::clone(&member.life);
        let builder = Node::builder(&member.folder)
            .listen(&*member.address)
            .heartbeat(self.setup.heartbeat)
            .snapshot_every(self.setup.snapshot_every)
            .map_size(64 << 20);
        let builder = match self.setup.history {
            History::All => builder.keep_all_history(),
            History::For(time) => builder.keep_history(time),
            History::Revisions(count) => builder.keep_revisions(count),
        };
        let builder = if self.setup.is_tight { builder.quota(TIGHT_BYTES) } else { builder };
        let name = format!("m{index}.{}", member.starts);
        let seed = self.setup.seed;
        let workers = self.setup.workers;
        let book = self.book.clone();
        let (host, heartbeat) = (member.host.id, self.setup.heartbeat);
        let (joins, own) = (member.joins, member.address.clone());
        let has_replaced = Arc::clone(&member.has_replaced);
        self.net.runs(host);
        let runtime = member.host.start();
        runtime.spawn(async move {
            let started =
                if joins { builder.join(addresses).await } else { builder.form(addresses).await };
            let node = match started {
                Ok(node) => node,
                Err(error) => {
                    *life.lock().unwrap_or_else(PoisonError::into_inner) = Life::Refused(error);
                    return;
                }
            };
            let client = node.client();
            if joins {
                let id = node.id();
                tokio::spawn(work::replace(client.clone(), id, own, heartbeat, has_replaced));
            }
            *life.lock().unwrap_or_else(PoisonError::into_inner) = Life::Up(Box::new(node));
            let greeter = Worker::new(&book, seed, format!("{name}.g"), host, heartbeat);
            work::greet(greeter, client.clone());
            for worker in 0..workers {
                let worker = Worker::new(&book, seed, format!("{name}.w{worker}"), host, heartbeat);
                work::embedded(worker, client.clone());
            }
        });
        self.book.rise(self.members[index].host.id);
        self.book.say(|| format!("m{index} starts"));
    }

    /// Starts the remote clients.
    pub fn start_clients(&mut self) {
        let addresses: Vec<String> = self.members.iter().map(|it| it.address.clone()).collect();
        let (book, seed, workers) = (self.book.clone(), self.setup.seed, self.setup.workers);
        let heartbeat = self.setup.heartbeat;
        self.net.runs(CLIENTS);
        let runtime = self.clients.start();
        let _context = runtime.enter();
        for worker in 0..workers + 2 {
            let worker = Worker::new(&book, seed, format!("remote.w{worker}"), CLIENTS, heartbeat);
            work::remote(worker, addresses.clone());
        }
    }

    /// Has somebody at a member read again and again.
    pub fn stare(&mut self, index: usize) {
        let member = &self.members[index];
        let Some(client) = member.with(|node| node.client()) else { return };
        let name = format!("m{index}.{:?}", self.now);
        let (seed, heartbeat) = (self.setup.seed, self.setup.heartbeat);
        let worker = Worker::new(&self.book, seed, name, member.host.id, heartbeat);
        let _context = member.host.runtime.as_ref().map(Runtime::enter);
        work::stare(worker, client);
    }

    /// Has every member write once. Returns whether all can be asked.
    pub fn probe(&mut self) -> bool {
        let clients: Vec<_> = self.healthy().map(|it| it.with(Node::client)).collect();
        if clients.iter().any(Option::is_none) {
            return false;
        }
        for (member, client) in self.healthy().zip(clients.into_iter().flatten()) {
            let (seed, heartbeat) = (self.setup.seed, self.setup.heartbeat);
            let name = format!("m{}.probe.{:?}", member.index, self.now);
            let worker = Worker::new(&self.book, seed, name, member.host.id, heartbeat);
            let _context = member.host.runtime.as_ref().map(Runtime::enter);
            work::probe(worker, client);
        }
        true
    }

    /// Ends a member. What its disk holds after that was settled before.
    fn end(&mut self, index: usize) {
        let member = &mut self.members[index];
        self.net.runs(member.host.id);
        if let Some(runtime) = member.host.runtime.take() {
            {
                let _context = runtime.enter();
                *member.life.lock().unwrap_or_else(PoisonError::into_inner) = Life::Starting;
            }
            drop(runtime);
        }
        for left in still_open(&member.folder) {
            self.book.violation(format!("leak: m{index} has ended, and {left:?} is still open"));
        }
        disk::restore(&member.folder);
        self.net.runs(NOBODY);
    }

    /// The process of a member is killed; its machine goes on.
    pub fn kill(&mut self, index: usize) {
        self.book.say(|| format!("m{index} is killed"));
        disk::killed(&self.members[index].folder);
        self.end(index);
        self.net.reset_all(self.members[index].host.id);
    }

    /// The power of a member goes.
    pub fn lose_power(&mut self, index: usize) {
        self.book.say(|| format!("m{index} loses its power"));
        self.net.power_off(self.members[index].host.id);
        disk::lose_power(&self.members[index].folder);
        self.end(index);
    }

    /// The power of a member goes, and its disk is lost. It may join later, as somebody new.
    pub fn wipe(&mut self, index: usize, joins: bool) {
        let was = self.members[index].peek().map(|peek| peek.node);
        self.lose_power(index);
        self.book.say(|| format!("m{index} loses its disk, and joins: {joins}"));
        let member = &mut self.members[index];
        member.is_wiped = true;
        member.joins = joins;
        // A founder's id is its place.
        member.lost.extend(was.into_iter().chain([index as u64 + 1]));
        member.has_replaced = Arc::default();
        self.book.pages().gone.insert(member.address.clone());
        disk::wipe(&member.folder);
    }

    /// From now on the state of a member seems to differ from those of the others, or does not any more.
    pub fn differ(&mut self, index: usize, differs: bool) {
        self.members[index].differs = differs;
        self.points.differ(index, differs);
    }

    /// A member has found that its state is wrong, and has ended. There is nothing in that state that could be opened.
    pub fn distrust(&mut self, index: usize) {
        self.kill(index);
        self.book.say(|| format!("the state of m{index} is not trusted"));
        let folder = &self.members[index].folder;
        disk::trouble(folder, Trouble::default());
        let write = |path: PathBuf, content: &[u8]| {
            let mut file = std::fs::File::create(path)?;
            std::io::Write::write_all(&mut file, content)?;
            file.sync_all()
        };
        let written = write(folder.join("UNTRUSTED"), b"by the simulation")
            .and_then(|()| std::fs::File::open(folder)?.sync_all())
            .and_then(|()| std::fs::read_to_string(folder.join("CURRENT")))
            .and_then(|current| {
                let name = current.split(' ').next().unwrap_or_default();
                write(folder.join(name).join("data.mdb"), b"rubbish")
            });
        written.expect("the disk of a member that has a state can be written");
    }

    /// The members that are to be well in the end.
    pub fn healthy(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.is_wiped || member.joins)
    }

    /// Starts a member again, whose power is back if it was gone.
    pub fn restart(&mut self, index: usize) {
        if !self.members[index].is_running() {
            self.net.power_on(self.members[index].host.id);
            self.start(index);
        }
    }

    pub fn pause(&mut self, index: usize, paused: bool) {
        if self.members[index].host.paused != paused {
            self.book
                .say(|| format!("m{index} {}", if paused { "stands still" } else { "goes on" }));
            self.members[index].host.paused = paused;
        }
    }

    pub fn trouble(&mut self, index: usize, trouble: Trouble) {
        self.book.say(|| format!("m{index} {trouble:?}"));
        let member = &mut self.members[index];
        member.is_in_trouble |= trouble.writes_fail.is_some() || trouble.syncs_fail.is_some();
        disk::trouble(&member.folder, trouble);
    }

    /// Moves the time on by a step.
    pub fn step(&mut self) {
        self.now += self.setup.step;
        self.steps += 1;
        system::set_clock(self.now);
        self.book.turn(self.now);
        self.net.advance(self.now);
        let step = self.setup.step;
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            member.host.step(step, &self.net);
            if member.is_wiped && member.has_replaced.load(Ordering::Relaxed) {
                member.is_wiped = false;
                self.book.say(|| format!("m{index} is in its own place again"));
            }
            match self.points.happened(index) {
                Some(Happens::PowerLoss) => self.lose_power(index),
                Some(Happens::Kill) => self.kill(index),
                Some(Happens::Stall) => self.pause(index, true),
                None => {}
            }
        }
        self.clients.step(step, &self.net);
    }

    /// Ends everything.
    pub fn stop(&mut self) {
        (0..self.members.len()).for_each(|index| {
            if !disk::is_right(&self.members[index].folder) {
                self.book
                    .violation(format!("harness: the disk of m{index} is not what was written"));
            }
            disk::killed(&self.members[index].folder);
            self.end(index);
        });
        drop(self.clients.runtime.take());
    }
}
