//! Every named point of the code, in real processes: once somebody stands still there, and once somebody ends there.
//!
//! ```text
//! points that are left ─ deal: some of them, after some passes ─▶ member ─ passes one ─▶ @fired ─▶ ends, or goes on
//!          ▲                                                        │
//!          └────────────── the others ◀── starts again, with others ┴── provoked: killed, left behind, led astray
//! ```
//!
//! Most points are passed all the time. For the others the run does again and again what leads to them: a member stays
//! away until it needs a snapshot, or until that is cut off in its middle; a leader writes what nobody else has; leases are left
//! to expire; the past is forgotten, and files get smaller; the state of a member is lost, and it is told not to trust it.
//! A point that was not passed in either way fails the test.

use super::check::check;
use crate::kit::process::points::KILL;
use crate::kit::process::{Group, TTL};
use crate::kit::{Dice, PATIENCE, damage};
use quorate::sim::Point;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Logs are cut so often that a member needs a snapshot soon, but not after each restart.
const SNAPSHOT_EVERY: u64 = 200;
/// How many points a member has at once.
const DEALT: usize = 12;
/// Passed once in the life of a group, so that they are dealt first, one to each.
const FOUNDING: [Point; 3] = [Point::LogWritesRecord, Point::CoreMembership, Point::StartFounded];
/// How often everything is provoked before a point counts as never passed.
const ROUNDS: usize = 12;
/// Longer than the sender of a snapshot waits for one chunk, in milliseconds.
const CUT_OFF: &str = "11000";

/// What happens at the points of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Stop,
    Kill,
}

#[test]
fn every_point_stops_and_kills_and_nothing_is_lost() {
    let stopped = Run::of(How::Stop).finish();
    let killed = Run::of(How::Kill).finish();
    let mut never = Vec::new();
    println!("{:<24} {:>10} {:>10}", "point", "stopped at", "killed at");
    for point in Point::ALL {
        let count = |fired: &BTreeMap<Point, u64>| fired.get(point).copied().unwrap_or(0);
        let (stops, kills) = (count(&stopped), count(&killed));
        println!("{:<24} {stops:>10} {kills:>10}", format!("{point:?}"));
        if stops == 0 || kills == 0 {
            never.push(*point);
        }
    }
    assert_eq!(never, [], "these never fired, in one way or both");
}

struct Run {
    group: Group,
    how: How,
    dice: Dice,
    left: BTreeSet<Point>,
    /// How often a point was dealt. What was dealt in vain is rare, and fires at its first pass.
    dealt: BTreeMap<Point, u32>,
    fired: BTreeMap<Point, u64>,
    /// How often the receiver of a snapshot has stood still for [`CUT_OFF`].
    cut_off: u64,
    /// Who gets ready does not begin to work.
    at_rest: bool,
    members: [Member; 3],
}

/// What a run knows of a member, beside its process.
#[derive(Clone, Copy)]
struct Member {
    started: Instant,
    is_ready: bool,
    works: bool,
    /// It stays down for now.
    is_away: bool,
}

impl Member {
    fn starts() -> Self {
        Self { started: Instant::now(), is_ready: false, works: false, is_away: false }
    }
}

impl Run {
    fn of(how: How) -> Self {
        let dice = Dice::new(&format!("every_point_{how:?}"));
        let mut group = Group::new(3);
        group.snapshot_every = SNAPSHOT_EVERY;
        group.shrinks_early = true;
        let left = Point::ALL.iter().copied().collect();
        let member = Member::starts();
        let (dealt, fired, members) = (BTreeMap::new(), BTreeMap::new(), [member; 3]);
        Self { group, how, dice, left, dealt, fired, cut_off: 0, at_rest: false, members }
    }

    /// Returns how often each point has fired.
    fn finish(mut self) -> BTreeMap<Point, u64> {
        for (member, point) in FOUNDING.into_iter().enumerate() {
            self.start(member, &[point]);
        }
        self.until("the group is founded", |run| {
            run.members.iter().all(|it| it.works).then_some(())
        });
        for round in 1..=ROUNDS {
            self.provoke();
            let names = if self.left.len() > DEALT { "" } else { &format!(": {:?}", self.left) };
            println!("{:?}, round {round}: {} points are left{names}", self.how, self.left.len());
            if self.left.is_empty() {
                break;
            }
        }
        self.end()
    }

    /// Does all that leads to rare points.
    fn provoke(&mut self) {
        self.end_the_reign();
        self.forget_the_past();
        self.lead_astray();
        let member = self.dice.roll(3);
        self.leave_behind(member);
        let member = self.dice.roll(3);
        self.cut_a_snapshot_off(member);
        let member = self.dice.roll(3);
        self.lose_the_state(member);
        let member = self.dice.roll(3);
        self.let_leases_expire(member);
    }

    fn end_the_reign(&mut self) {
        let leader = self.leader();
        self.take_away(leader);
        self.goes_on(10);
        self.bring_back(&[leader]);
    }

    fn forget_the_past(&mut self) {
        let seen = (0..3).map(|member| self.group.seen(member)).min().unwrap();
        let member = self.leader();
        if self.group.members[member].is_some() {
            self.group.tell(member, &format!("compact {seen}"));
        }
        self.goes_on(20);
    }

    /// Has a leader write what nobody else gets, so that it has to take that back when it is led again.
    fn lead_astray(&mut self) {
        let leader = self.leader();
        let others = [(leader + 1) % 3, (leader + 2) % 3];
        others.iter().for_each(|other| self.take_away(*other));
        if self.group.members[leader].is_some() {
            // Those who work already may wait for what others have got.
            self.group.tell(leader, "write 4");
        }
        sleep(Duration::from_millis(100));
        self.take_away(leader);
        // What they agree on is that one of them leads, which is in the place of what they have not got. If there was more of
        // it the other would need a snapshot.
        self.at_rest = true;
        self.bring_back(&others);
        self.bring_back(&[leader]);
        self.at_rest = false;
        self.goes_on(10);
    }

    /// Has a member miss more than is kept of the log.
    fn leave_behind(&mut self, member: usize) {
        self.take_away(member);
        self.goes_on(usize::try_from(SNAPSHOT_EVERY).unwrap() * 3);
        self.bring_back(&[member]);
        self.goes_on(10);
    }

    /// Has a member that needs a snapshot stand still while it gets one. Its sender asks how far that has come.
    fn cut_a_snapshot_off(&mut self, member: usize) {
        if [Point::SnapshotResumes, Point::SnapshotResumed].iter().all(|it| !self.left.contains(it))
        {
            return;
        }
        self.take_away(member);
        self.goes_on(usize::try_from(SNAPSHOT_EVERY).unwrap() * 3);
        let (before, asked) = (self.cut_off, self.arm(Point::SnapshotResumed));
        self.start_armed(member, &format!("{:?}:0:{CUT_OFF},{asked}", Point::SnapshotChunk));
        // On a busy machine the log may not have been cut yet, and leads on.
        self.until("a snapshot comes", |run| {
            (run.cut_off > before || run.members[member].is_ready).then_some(())
        });
        self.bring_back(&[member]);
        self.goes_on(10);
    }

    /// Has a member find that its state is not to be opened, and nothing in it that could be.
    fn lose_the_state(&mut self, member: usize) {
        self.take_away(member);
        let data = self.group.data(member);
        std::fs::write(data.join("UNTRUSTED"), "by the test").unwrap();
        std::fs::write(damage::state_file(&data), "rubbish").unwrap();
        self.bring_back(&[member]);
        self.goes_on(10);
    }

    fn let_leases_expire(&mut self, member: usize) {
        self.take_away(member);
        let started = Instant::now();
        // A new leader gives them their whole time again, and an election on top.
        self.until("leases expire", |_| (started.elapsed() > TTL * 2).then_some(()));
        self.bring_back(&[member]);
    }

    fn leader(&mut self) -> usize {
        self.until("there is a leader", |run| run.group.leader())
    }

    fn take_away(&mut self, member: usize) {
        self.members[member].is_away = true;
        if self.group.members[member].is_some() {
            self.group.kill(member);
        }
        (self.members[member].is_ready, self.members[member].works) = (false, false);
    }

    fn bring_back(&mut self, members: &[usize]) {
        members.iter().for_each(|member| self.members[*member].is_away = false);
        self.until("members are back", |run| {
            members.iter().all(|member| run.members[*member].is_ready).then_some(())
        });
    }

    /// Waits until so many more writes were acknowledged.
    fn goes_on(&mut self, more: usize) {
        let target = self.group.acks(&[]) + more;
        self.until("writes go on", |run| (run.group.acks(&[]) >= target).then_some(()));
    }

    /// Asks again and again until there is an answer, and starts again who has ended meanwhile.
    fn until<T>(&mut self, what: &str, mut answer: impl FnMut(&mut Self) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            self.tend();
            if let Some(answer) = answer(self) {
                return answer;
            }
            assert!(started.elapsed() < PATIENCE, "still waiting: {what}, left {:?}", self.left);
            sleep(Duration::from_millis(5));
        }
    }

    fn tend(&mut self) {
        for member in 0..3 {
            if self.group.has_ended(member) {
                let status = self.group.bury(member);
                assert_eq!(status.signal(), Some(libc::SIGKILL), "member {member}: {status}");
                (self.members[member].is_ready, self.members[member].works) = (false, false);
            }
        }
        self.note();
        for member in 0..3 {
            let it = &mut self.members[member];
            if self.group.members[member].is_some() {
                it.is_ready = it.is_ready || self.group.is_ready(member);
                let late = !it.is_ready && it.started.elapsed() > PATIENCE;
                assert!(!late, "member {member} does not get ready");
                if it.is_ready && !it.works && !self.at_rest {
                    it.works = true;
                    self.group.work(member);
                }
            } else if !it.is_away {
                let points = self.deal();
                self.start(member, &points);
            }
        }
    }

    /// Takes note of what has fired.
    fn note(&mut self) {
        for (point, how) in self.group.heard.lock().unwrap().fired.drain(..) {
            let point = Point::named(&point).unwrap();
            self.cut_off += u64::from(how == CUT_OFF);
            if (how == KILL) == (self.how == How::Kill) {
                self.left.remove(&point);
                *self.fired.entry(point).or_default() += 1;
            }
        }
    }

    fn deal(&mut self) -> Vec<Point> {
        let mut left: Vec<Point> = self.left.iter().copied().collect();
        while left.len() > DEALT {
            left.swap_remove(self.dice.roll(left.len()));
        }
        left
    }

    fn start(&mut self, member: usize, points: &[Point]) {
        let armed: Vec<String> = points.iter().map(|point| self.arm(*point)).collect();
        self.start_armed(member, &armed.join(","));
    }

    fn start_armed(&mut self, member: usize, words: &str) {
        self.group.spawn_armed(member, words);
        self.members[member] = Member::starts();
    }

    fn arm(&mut self, point: Point) -> String {
        let dealt = self.dealt.entry(point).or_default();
        let passes = match *dealt {
            _ if FOUNDING.contains(&point) => 0,
            0 => self.dice.roll(30),
            1 => self.dice.roll(4),
            _ => 0,
        };
        *dealt += 1;
        let how = match self.how {
            How::Kill => KILL,
            // Shorter than anybody notices; for a few heartbeats; longer than an election.
            How::Stop => ["20", "200", "1200"][self.dice.roll(8).saturating_sub(5)],
        };
        format!("{point:?}:{passes}:{how}")
    }

    /// All members start once more, without points, and have to be what they should be.
    fn end(mut self) -> BTreeMap<Point, u64> {
        self.left.clear();
        for member in 0..3 {
            self.take_away(member);
            self.bring_back(&[member]);
        }
        // Those who have gone do not hold up those who came after them.
        self.group.wait_act(&[]);
        let end = self.group.settle();
        self.note();
        println!("{:?}: {}", self.how, check(&self.group, end.revision));
        self.fired
    }
}
