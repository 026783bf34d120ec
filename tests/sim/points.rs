//! What happens at the points of the code, and the bugs that were put back.
//!
//! A point is armed with something that happens when a member passes it, whichever is the first to do so. The power of
//! that member goes in the very middle of what it does: its disk is what it was at that moment, and nothing that it still
//! says is heard, though it runs on to the end of the step without knowing.

use crate::book::Book;
use crate::dice::Dice;
use crate::disk;
use crate::group::folder;
use crate::net::{CLIENT_HOSTS, HostId, NOBODY, Net};
use quorate::sim::{Bug, Hook, Point};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happens {
    PowerLoss,
    /// The process ends, and its machine goes on.
    Kill,
    /// Nothing but that the member stands still for a while.
    Stall,
}

/// The points of a run. Clones are the same.
#[derive(Clone)]
pub struct Points(Arc<Inner>);

struct Inner {
    net: Net,
    book: Book,
    folders: Vec<PathBuf>,
    bugs: Vec<Bug>,
    state: Mutex<State>,
}

struct State {
    dice: Dice,
    armed: Vec<Armed>,
    happened: BTreeMap<usize, Happens>,
    passed: BTreeMap<Point, u64>,
    fired: BTreeMap<(Point, &'static str), u64>,
    /// Members that say another hash of their states than those have.
    differing: BTreeSet<usize>,
}

struct Armed {
    point: Point,
    happens: Happens,
    skip: u64,
}

/// What happened at a point, in the counts of a run.
pub const ENDED: &str = "ended at";
pub const STALLED: &str = "stood still at";

/// How many points are armed at once, at most: the oldest gives way.
const ARMED_MAX: usize = 8;

/// One in so many times a thread that is at a point has to wait for others.
const PREEMPTED: u64 = 100;
/// The same where something is shown or looked at in two steps.
const BETWEEN_PREEMPTED: u64 = 8;

impl Points {
    /// Of so many members in folders of `root`. Those bugs are put back that the variable `BUGS` names.
    pub fn new(dice: Dice, net: Net, book: Book, root: &Path, members: usize) -> Self {
        let folders = (0..members).map(|index| folder(root, index)).collect();
        let names = std::env::var("BUGS").unwrap_or_default();
        let names = names.split(',').filter(|name| !name.is_empty());
        let bugs = names.map(|name| Bug::named(name).expect("a bug of that name")).collect();
        let state = State {
            dice,
            armed: Vec::new(),
            happened: BTreeMap::new(),
            passed: BTreeMap::new(),
            fired: BTreeMap::new(),
            differing: BTreeSet::new(),
        };
        Self(Arc::new(Inner { net, book, folders, bugs, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has something happen at a point, after it was passed so often.
    pub fn arm(&self, point: Point, happens: Happens, skip: u64) {
        let mut state = self.state();
        if state.armed.len() >= ARMED_MAX {
            state.armed.remove(0);
        }
        state.armed.push(Armed { point, happens, skip });
    }

    /// From now on a member says another hash of its state than that has, or does not any more.
    pub fn differ(&self, member: usize, differs: bool) {
        let mut state = self.state();
        match differs {
            true => state.differing.insert(member),
            false => state.differing.remove(&member),
        };
    }

    pub fn disarm(&self) {
        self.state().armed.clear();
    }

    /// What happened to a member in the step that it has just done.
    pub fn happened(&self, member: usize) -> Option<Happens> {
        self.state().happened.remove(&member)
    }

    pub fn counts(&self) -> impl Iterator<Item = (String, u64)> + use<> {
        let state = self.state();
        let passed = Point::ALL.iter().map(|point| {
            (format!("passed: {point:?}"), state.passed.get(point).copied().unwrap_or(0))
        });
        let fired = state.fired.iter();
        let fired = fired.map(|((point, how), count)| (format!("{how}: {point:?}"), *count));
        passed.chain(fired).collect::<Vec<_>>().into_iter()
    }
}

/// Has the thread that is at a point stop for a while, with others running meanwhile.
fn preempt(point: Point, how_long: Duration) {
    match point {
        Point::ViewBegins => quorate::sim::give_way(),
        // Of the simulation's own thread nothing can go on without it.
        _ => quorate::sim::stall(how_long),
    }
}

impl Hook for Points {
    fn point(&self, point: Point) {
        let host: HostId = self.0.net.running();
        if host == NOBODY || host >= CLIENT_HOSTS {
            return;
        }
        let member = usize::from(host) - 1;
        let mut state = self.state();
        *state.passed.entry(point).or_default() += 1;
        if state.happened.contains_key(&member) {
            return;
        }
        let (is_preempted, for_millis) = (state.dice.roll(PREEMPTED) == 0, state.dice.within(1, 3));
        let is_between = matches!(point, Point::ViewBegins | Point::StateMoment);
        if is_preempted || (is_between && state.dice.roll(BETWEEN_PREEMPTED) == 0) {
            drop(state);
            return preempt(point, Duration::from_millis(for_millis));
        }
        let Some(index) = state.armed.iter().position(|armed| armed.point == point) else { return };
        if state.armed[index].skip > 0 {
            state.armed[index].skip -= 1;
            return;
        }
        let happens = state.armed.remove(index).happens;
        state.happened.insert(member, happens);
        let how = if happens == Happens::Stall { STALLED } else { ENDED };
        *state.fired.entry((point, how)).or_default() += 1;
        drop(state);
        self.0.book.say(|| format!("m{member} {happens:?} at {point:?}"));
        match happens {
            Happens::Stall => return,
            Happens::PowerLoss => disk::lose_power(&self.0.folders[member]),
            Happens::Kill => disk::killed(&self.0.folders[member]),
        }
        self.0.net.power_off(host);
        self.0.book.fall(host);
    }

    fn bug(&self, bug: Bug) -> bool {
        let differs = |host: HostId| {
            host != NOBODY && self.state().differing.contains(&(usize::from(host) - 1))
        };
        self.0.bugs.contains(&bug)
            || (bug == Bug::ReportsAnotherHash && differs(self.0.net.running()))
    }
}
