//! One run, from its seed to its verdict.
use crate::book::{Book, Pages};
use crate::check;
use crate::check::agreement::Truth;
use crate::check::consensus::Consensus;
use crate::dice::Dice;
use crate::disk;
use crate::group::{Group, History, Member, Setup};
use crate::nemesis::Nemesis;
use crate::net::{Net, Weather};
use crate::points::Points;
use crate::said::Said;
use crate::system;
use quorate::Peek;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub fn setup(seed: u64) -> Setup {
    let mut dice = Dice::new(seed).fork("setup");
    let millis = Duration::from_millis;
    let members = *dice.pick(&[1, 2, 3, 3, 3, 4, 5, 5, 7]);
    let is_tight = Dice::new(seed).fork("room").percent(15);
    let mut history = history(&mut Dice::new(seed).fork("history"));
    if is_tight && matches!(history, History::All) {
        // What is deleted makes room only when it is forgotten.
        history = History::Revisions(dice.clone().within(20, 200));
    }
    Setup {
        seed,
        members,
        heartbeat: millis(50),
        step: millis(2),
        history,
        is_tight,
        snapshot_every: *dice.pick(&[1, 2, 5, 20, 100, 500, 2000]),
        weather: Weather {
            latency: (millis(1), millis(dice.within(1, 10))),
            loss: 0,
            twice: 0,
            again: millis(200),
        },
        rates: (0..=members).map(|_| dice.within(0, 40) as i64 - 20).collect(),
        sync_takes: (0..members).map(|_| millis(dice.within(0, 5))).collect(),
        workers: dice.within(1, 3) as usize,
        lasts: millis(50) * dice.within(200, 600) as u32,
        network: [0, 0],
    }
}

/// In some runs so little that watches find it gone.
fn history(dice: &mut Dice) -> History {
    match dice.roll(4) {
        0 => History::Revisions(dice.within(20, 200)),
        1 => History::For(Duration::from_millis(dice.within(1000, 10_000))),
        _ => History::All,
    }
}

/// What came out of a run.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub violations: Vec<String>,
    /// Stands for everything that was sent: equal if and only if two runs were.
    pub trace: u64,
    pub simulated: Duration,
    pub summary: String,
    /// What has happened, by name.
    pub counts: BTreeMap<String, u64>,
}

/// How many heartbeats a group that is whole again may take until it serves.
const RECOVERY_BEATS: u32 = 400;

pub fn run(seed: u64) -> Report {
    let root = folder(seed);
    let dice = Dice::new(seed);
    system::take_over_randomness(dice.fork("system"));
    system::set_clock(Duration::ZERO);
    disk::take_over(root.path(), dice.fork("disk"));
    let book = Book::default();
    if std::env::var_os("TRACE").is_some() {
        book.speak();
        let said = tracing::subscriber::set_global_default(Said(book.clone()));
        said.expect("each seed has a process of its own");
    }
    let setup = setup(seed);
    let net = Net::new(dice.fork("net"), setup.weather);
    let points =
        Points::new(dice.fork("points"), net.clone(), book.clone(), root.path(), setup.members);
    quorate::sim::install(net.clone());
    quorate::sim::install_hook(points.clone());
    let group = Group::new(setup, root.path(), book, net, points);
    group.book.say(|| format!("{:?}", group.setup));
    let nemesis = Nemesis::new(&group);
    let truth = Truth::new(group.members.len());
    let mut run = Run::new(group, nemesis, truth);
    run.live();
    run.report()
}

/// Errors name files, and clients are told of errors: two runs are the same only in a folder of one name.
fn folder(seed: u64) -> tempfile::TempDir {
    let mut folder = tempfile::Builder::new();
    match std::env::var(FOLDER) {
        Ok(name) => {
            let name = format!("quorate-sim-{name}-{seed}");
            // One that was killed may have left it.
            let _ = std::fs::remove_dir_all(place().join(&name));
            folder.prefix(&name).rand_bytes(0).tempdir_in(place())
        }
        Err(_) => folder.prefix("quorate-sim").tempdir_in(place()),
    }
    .expect("a folder")
}

/// The variable that names the folder of a run.
pub const FOLDER: &str = "FOLDER";

/// In memory, where there is such a place.
pub fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

pub struct Run {
    pub group: Group,
    nemesis: Nemesis,
    truth: Truth,
    consensus: Consensus,
}

impl Run {
    pub fn new(group: Group, nemesis: Nemesis, truth: Truth) -> Self {
        Self { group, nemesis, truth, consensus: Consensus::default() }
    }

    fn live(&mut self) {
        (0..self.group.members.len()).for_each(|index| self.group.start(index));
        self.group.start_clients();
        let end = self.group.setup.lasts;
        while self.group.now < end && !self.has_violations() {
            self.nemesis.act(&mut self.group);
            self.step();
        }
        self.group.book.say(|| "everything heals".to_owned());
        self.nemesis.heal(&mut self.group);
        self.recover(60);
    }

    fn has_violations(&self) -> bool {
        !self.group.book.pages().violations.is_empty()
    }

    pub fn step(&mut self) {
        self.group.step();
        let mut violations = Vec::new();
        let peeks: Vec<_> = self.group.members.iter().map(|it| (it, it.peek())).collect();
        let peeks: Vec<_> = peeks.into_iter().filter_map(|(it, peek)| Some((it, peek?))).collect();
        self.consensus.observe(&self.group.book, &peeks, &mut violations);
        self.note_revisions(&peeks);
        self.check_history(&peeks, &mut violations);
        for (member, peek) in &peeks {
            if member.lost.contains(&peek.node) {
                let index = member.index;
                violations
                    .push(format!("membership: m{index} lost its disk, and takes part again"));
            }
        }
        if self.group.steps.is_multiple_of(10) {
            self.truth.observe(&self.group, &mut violations);
            self.group.book.pages().observed = self.truth.head();
        }
        violations.into_iter().for_each(|it| self.group.book.violation(it));
    }

    /// Writes down when revisions are first seen anywhere.
    fn note_revisions(&self, peeks: &[(&Member, Peek)]) {
        let highest = peeks.iter().map(|(_, it)| it.revision).max();
        self.group.book.pages().note_seen(highest.unwrap_or(1));
    }

    /// History is forgotten when somebody asks for it, or when it is old enough.
    fn check_history(&self, peeks: &[(&Member, Peek)], violations: &mut Vec<String>) {
        let mut pages = self.group.book.pages();
        for (_, peek) in peeks {
            let begin = peek.compacted;
            if begin == 0 || pages.compactions.iter().any(|asked| *asked >= begin) {
                continue;
            }
            // By whichever clock, of which none is that wrong.
            let since = |time: Duration| self.group.now.saturating_sub(time.mul_f64(0.95));
            let is_old = match self.group.setup.history {
                History::All => false,
                // A group that is short of room keeps none of it.
                _ if self.group.setup.is_tight => true,
                History::Revisions(count) => begin + count <= pages.newest(),
                History::For(time) => pages.seen_at(begin).is_none_or(|seen| seen <= since(time)),
            };
            if !is_old {
                violations.push(format!("history: before {begin} it is gone too early: {peek:?}"));
            }
            pages.compactions.push(begin);
        }
    }

    /// A group that is whole again serves, and all its members become equal, at least so many heartbeats later.
    pub fn recover(&mut self, rest: u32) {
        let limit = self.group.now + self.group.setup.heartbeat * RECOVERY_BEATS;
        let (mut is_probing, mut quiet_since) = (false, None);
        while self.group.now < limit && !self.has_violations() {
            self.nemesis.act(&mut self.group);
            self.step();
            is_probing = is_probing || self.group.probe();
            if quiet_since.is_none()
                && self.group.book.pages().probed == self.group.healthy().count()
            {
                self.group.book.close();
                quiet_since = Some(self.group.now);
            }
            let since = quiet_since.map(|since| self.group.now - since);
            if since >= Some(self.group.setup.heartbeat * rest)
                && self.group.steps.is_multiple_of(50)
                && self.is_settled()
            {
                return;
            }
        }
        if !self.has_violations() {
            let why = self.why_unwell(quiet_since);
            self.group.book.violation(why);
        }
    }

    fn why_unwell(&self, quiet_since: Option<Duration>) -> String {
        let members = self.group.members.iter();
        let peeks: Vec<_> = members.map(|it| (it.refused(), it.peek())).collect();
        let pages = self.group.book.pages();
        format!(
            "alive: {RECOVERY_BEATS} heartbeats after everything was healed the group is not well: all have written since \
             {quiet_since:?}; {} keys outlive their leases; watches are behind: {:?}; {peeks:?}",
            check::leases::left(&pages, &self.truth),
            check::watches::behind(&pages, &self.truth),
        )
    }

    /// All are equal, and what was left to expire has.
    fn is_settled(&self) -> bool {
        let pages = self.group.book.pages();
        self.are_equal()
            && self.group.healthy().all(|member| !member.is_wiped)
            && check::leases::left(&pages, &self.truth) == 0
            && check::watches::behind(&pages, &self.truth).is_empty()
    }

    /// One leader, and the same state everywhere, all of which has been looked at: what was applied last may not be
    /// committed to the file yet.
    fn are_equal(&self) -> bool {
        let peeks: Vec<_> = self.group.healthy().map(|it| it.peek()).collect();
        let Some(Some(first)) = peeks.first().cloned() else { return false };
        peeks.iter().all(|peek| {
            peek.as_ref().is_some_and(|peek| {
                peek.leader == first.leader
                    && peek.leader.is_some()
                    && peek.applied == first.applied
                    && peek.hash == first.hash
                    && peek.states_differ_at.is_none()
                    && peek.revision <= self.truth.head()
            })
        })
    }

    /// Checks everything, and ends the group.
    pub fn report(mut self) -> Report {
        let mut violations = Vec::new();
        if !self.has_violations() {
            self.truth.observe(&self.group, &mut violations);
            self.truth.check_whole(&mut violations);
            let pages = self.group.book.pages();
            violations.extend(check::all(&pages, &self.truth));
        }
        self.group.stop();
        let pages = self.group.book.pages();
        violations.splice(0..0, pages.violations.iter().cloned());
        let counts = self.counts(&pages);
        let summary = format!("{:?}", self.group.setup);
        Report {
            seed: self.group.setup.seed,
            violations,
            trace: self.group.net.trace(),
            simulated: self.group.now,
            summary,
            counts,
        }
    }

    fn counts(&self, pages: &Pages) -> BTreeMap<String, u64> {
        let net = self.group.net.counts();
        let answered = pages.operations.iter().filter(|it| it.end().is_some()).count();
        let counts = [
            ("members", self.group.members.len() as u64),
            ("starts of members", self.group.members.iter().map(|it| u64::from(it.starts)).sum()),
            ("revisions", self.truth.head()),
            ("operations", pages.operations.len() as u64),
            ("operations answered", answered as u64),
            ("ranges read", pages.reads.len() as u64),
            ("watches", pages.watches.len() as u64),
            ("batches told to watches", pages.watches.iter().map(|it| it.told.len() as u64).sum()),
            ("leases", pages.leases.len() as u64),
            ("writes refused for want of room", pages.no_room),
            ("acts of holders", pages.acts.len() as u64),
            ("compactions asked for", pages.compactions.len() as u64),
            ("states found to differ", self.nemesis.found),
            ("net: connections", net.connections),
            ("net: chunks sent", net.chunks),
            ("net: chunks lost once", net.lost),
            ("net: chunks held by a cut", net.held),
            ("net: frames sent twice", net.twice),
            ("net: steps of watches sent again late", net.late),
            ("net: connections broken off", net.resets),
            ("disk: writes lost", self.disk(|it| it.lost.writes)),
            ("disk: writes torn", self.disk(|it| it.lost.torn)),
            ("disk: names lost", self.disk(|it| it.lost.names)),
            ("disk: syncs", self.disk(|it| it.syncs)),
        ];
        let counts = counts.into_iter().map(|(name, count)| (name.to_owned(), count));
        let faults = self.nemesis.counts.iter();
        let counts = counts.chain(self.group.points.counts());
        counts.chain(faults.map(|(name, count)| (format!("fault: {name}"), *count))).collect()
    }

    fn disk(&self, which: impl Fn(&disk::Counts) -> u64) -> u64 {
        self.group.members.iter().map(|member| which(&disk::counts(&member.folder))).sum()
    }
}
