//! A group of real members at work, and everything that their disks and their clients saw.
//!
//! The members are three nodes of this process, on its own threads and on loopback. One of them ends and comes back, so
//! that starts, and snapshots that are installed, are among what is recorded.

use super::MEMBERS;
use crate::book::{Book, Pages};
use crate::check::agreement::Truth;
use crate::dice::Dice;
use crate::disk::model::Change;
use crate::disk::{self, Entry};
use crate::group::{CLIENTS, Setup, folder};
use crate::history::Moment;
use crate::net::HostId;
use crate::work::{self, Worker};
use futures::future::join_all;
use quorate::Node;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How many clients work at each member, and as many far from all.
const WORKERS: usize = 10;
/// How often the members' history is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// So many changes of the disks it takes about until three members have founded a group.
const FIRST_CHANGES: usize = 120;

/// What was recorded.
pub struct Recording {
    pub folders: [PathBuf; MEMBERS],
    pub journal: Vec<Entry>,
    pub pages: Pages,
    /// What the members have shown of their history, by and by.
    pub truth: Truth,
    pub violations: Vec<String>,
    /// When it ended.
    pub end: Moment,
}

/// The group that is recorded.
struct Live<'a> {
    setup: &'a Setup,
    root: &'a Path,
    book: Book,
    truth: Truth,
    violations: Vec<String>,
    nodes: [Option<Node>; MEMBERS],
    starts: [u32; MEMBERS],
}

impl Recording {
    /// How often a member has named a state as the one that counts: first its own, then one that it was sent.
    pub fn published(&self) -> u64 {
        let is_named = |entry: &&Entry| matches!(&entry.change, Change::Rename { to, .. } if to.ends_with("CURRENT"));
        self.journal.iter().filter(is_named).count() as u64
    }

    /// Any moment of it. Nobody has been promised anything in the first ones, but a group has to come of them as well;
    /// they are few, so they have a share of their own.
    pub fn moment(&self, dice: &mut Dice) -> Moment {
        let end = match dice.percent(20) {
            true => self.journal.get(FIRST_CHANGES).map_or(self.end, |entry| entry.at),
            false => self.end,
        };
        Duration::from_nanos(dice.roll(end.as_nanos() as u64))
    }

    /// A moment right after a change of names, which counts for whoever starts next, and need not be synced.
    /// Each kind of name as often as the others: what counts most is named least.
    pub fn naming(&self, dice: &mut Dice) -> Moment {
        let mut kinds: BTreeMap<String, Vec<Moment>> = BTreeMap::new();
        for Entry { at, change, .. } in &self.journal {
            if let Change::Rename { to: path, .. }
            | Change::MakeFolder(path)
            | Change::Create(path) = change
            {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let kind = name.replace(|letter: char| letter.is_ascii_hexdigit(), "");
                kinds.entry(kind).or_default().push(*at);
            }
        }
        let kinds: Vec<_> = kinds.into_values().collect();
        let moments = dice.pick(&kinds);
        *dice.pick(moments)
    }

    pub fn make(setup: &Setup, root: &Path) -> Self {
        let dice = Dice::new(setup.seed).fork("recording");
        let book = Book::default();
        disk::take_over(root, dice.fork("disk"));
        disk::record(book.clone());
        let mut live = Live {
            setup,
            root,
            book: book.clone(),
            truth: Truth::new(MEMBERS),
            violations: Vec::new(),
            nodes: Default::default(),
            starts: [0; MEMBERS],
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(3)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        runtime.block_on(live.live(dice));
        let Live { truth, mut violations, nodes, .. } = live;
        runtime.block_on(async { drop(nodes) });
        // It waits for its threads, so that nothing of this is left when the simulation begins.
        drop(runtime);
        let journal = disk::recorded();
        let (end, pages) = (book.stamp(), book.pages().clone());
        let folders = std::array::from_fn(|index| folder(root, index));
        for folder in folders.iter().filter(|folder| !disk::is_right(folder)) {
            violations.push(format!("harness: {folder:?} is not what was recorded"));
        }
        Self { folders, journal, pages, truth, violations, end }
    }
}

impl Live<'_> {
    async fn live(&mut self, mut dice: Dice) {
        let starts = join_all((0..MEMBERS).map(|index| start(self.setup, self.root, index))).await;
        for (index, node) in starts.into_iter().enumerate() {
            self.put_to_work(index, node);
        }
        let addresses: Vec<String> = (0..MEMBERS).map(|it| self.setup.address(it)).collect();
        for worker in 0..WORKERS {
            work::remote(self.worker(format!("remote.w{worker}"), CLIENTS), addresses.clone());
        }
        let third = self.setup.lasts / 3;
        let away = dice.roll(MEMBERS as u64) as usize;
        self.look_on(third).await;
        let node = self.nodes[away].take().expect("it runs");
        node.shutdown().await.expect("it can end");
        self.look_on(third).await;
        let node = start(self.setup, self.root, away).await;
        self.put_to_work(away, node);
        self.look_on(third).await;
        self.book.close();
        for node in self.nodes.iter_mut().filter_map(Option::take) {
            node.shutdown().await.expect("it can end");
        }
    }

    fn worker(&self, name: String, host: HostId) -> Worker {
        Worker::new(&self.book, self.setup.seed, name, host, self.setup.heartbeat)
    }

    fn put_to_work(&mut self, index: usize, node: Node) {
        self.starts[index] += 1;
        for worker in 0..WORKERS {
            let name = format!("m{index}.{}.w{worker}", self.starts[index]);
            work::embedded(self.worker(name, index as HostId + 1), node.client());
        }
        self.nodes[index] = Some(node);
    }

    /// Writes down what the members show, for a while.
    async fn look_on(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            for (index, node) in self.nodes.iter().enumerate() {
                let Some(node) = node else { continue };
                self.truth.look(index, self.starts[index], node, &mut self.violations);
            }
            self.note_seen();
            sleep(LOOK).await;
        }
    }

    fn note_seen(&self) {
        let mut pages = self.book.pages();
        pages.observed = self.truth.head();
        pages.note_seen(self.truth.head());
    }
}

async fn start(setup: &Setup, root: &Path, index: usize) -> Node {
    let addresses: Vec<String> = (0..MEMBERS).map(|it| setup.address(it)).collect();
    let builder = Node::builder(folder(root, index))
        .listen(setup.address(index))
        .heartbeat(setup.heartbeat)
        .snapshot_every(setup.snapshot_every)
        .map_size(64 << 20);
    builder.form(addresses).await.expect("a member of a sound group starts")
}
