//! What goes wrong, and when.
//!
//! A run draws a mix of faults, so that some runs have much of one kind, and others a little of each. Each fault has an
//! end; at the end of the run all of them have.

use crate::dice::Dice;
use crate::disk::Trouble;
use crate::group::{CLIENTS, Group, Member};
use crate::net::{HostId, Weather};
use crate::points::Happens;
use quorate::Reason;
use quorate::sim::Point;
use std::fmt::Debug;
use std::time::Duration;

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Partition,
    OneWay,
    Bridge,
    Ring,
    Loss,
    Resets,
    Twice,
    Kill,
    PowerLoss,
    PowerLossOfAll,
    LongOutage,
    ShortPause,
    LongPause,
    SlowDisk,
    DiskFull,
    DiskFails,
    /// The disk of a member is lost.
    Wipe,
    /// The state of a member was found to be wrong.
    Distrust,
    /// The state of a member seems to be wrong, which it has to find out.
    Differ,
    /// The leader is cut off, and all others begin anew, without a memory of it.
    Usurp,
    /// The leader is cut off, and what it goes on to write will have to go again; its disk may be slow at that.
    Depose,
    /// Something happens at a point of the code.
    Point,
}

const ALL: [Fault; 22] = [
    Fault::Wipe,
    Fault::Distrust,
    Fault::Differ,
    Fault::Usurp,
    Fault::Depose,
    Fault::Point,
    Fault::Partition,
    Fault::OneWay,
    Fault::Bridge,
    Fault::Ring,
    Fault::Loss,
    Fault::Resets,
    Fault::Twice,
    Fault::Kill,
    Fault::PowerLoss,
    Fault::PowerLossOfAll,
    Fault::LongOutage,
    Fault::ShortPause,
    Fault::LongPause,
    Fault::SlowDisk,
    Fault::DiskFull,
    Fault::DiskFails,
];

/// The faults of a run.
pub struct Nemesis {
    dice: Dice,
    mix: Vec<Fault>,
    points: Vec<Point>,
    /// How long it is quiet between two, at most.
    quiet: Duration,
    next: Duration,
    /// What ends when.
    ends: Vec<(Duration, End)>,
    calm: Weather,
    pub counts: Vec<(String, u64)>,
    /// How many members have found their own states to differ.
    pub found: u64,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Links,
    Weather,
    Restart(usize),
    Resume(usize),
    /// A slow disk begins, which ends in its turn.
    Slow(usize),
    Disk(usize),
    Power(usize),
}

impl Nemesis {
    pub fn new(group: &Group) -> Self {
        let mut dice = Dice::new(group.setup.seed).fork("nemesis");
        let mut all = ALL;
        dice.shuffle(&mut all);
        let mut mix = all[..dice.within(0, 8) as usize].to_vec();
        let mut points = Point::ALL.to_vec();
        // For whoever looks for something.
        let named =
            |list: &str, it: &dyn Debug| list.split(',').any(|name| name == format!("{it:?}"));
        if let Ok(only) = std::env::var("MIX") {
            mix = ALL.into_iter().filter(|fault| named(&only, fault)).collect();
        }
        if let Ok(only) = std::env::var("POINTS") {
            points.retain(|point| named(&only, point));
        }
        let quiet = group.setup.heartbeat * dice.within(10, 100) as u32;
        let next = group.setup.heartbeat * 60;
        let calm = group.setup.weather;
        Self {
            dice,
            mix,
            points,
            quiet,
            next,
            ends: Vec::new(),
            calm,
            counts: Vec::new(),
            found: 0,
        }
    }

    /// Nothing goes wrong any more.
    pub fn none(group: &Group) -> Self {
        let calm = group.setup.weather;
        let dice = Dice::new(0);
        let (mix, points, ends, counts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self {
            dice,
            mix,
            points,
            quiet: Duration::ZERO,
            next: Duration::MAX,
            ends,
            calm,
            counts,
            found: 0,
        }
    }

    /// Between two steps.
    pub fn act(&mut self, group: &mut Group) {
        let now = group.now;
        let (due, later) = self.ends.drain(..).partition(|(at, _)| *at <= now);
        self.ends = later;
        let due: Vec<(Duration, End)> = due;
        due.into_iter().for_each(|(_, end)| self.end(group, end));
        if now >= self.next && !self.mix.is_empty() {
            let fault = *self.dice.pick(&self.mix);
            self.begin(group, fault);
            if self.dice.percent(50) {
                self.begin(group, Fault::Point);
            }
            let quiet = self.quiet.as_millis() as u64;
            self.next = now + Duration::from_millis(self.dice.roll(quiet + 1));
        }
        self.raise_fallen(group);
        self.replace_failed(group);
    }

    /// Whoever ended at a point is started again, and whoever stands still goes on.
    fn raise_fallen(&mut self, group: &mut Group) {
        for index in 0..group.members.len() {
            let (ends, now) = (&mut self.ends, group.now);
            let is_awaited = |ends: &[(Duration, End)]| {
                ends.iter().any(|(_, end)| {
                    matches!(end, End::Restart(it) | End::Resume(it) | End::Disk(it) if *it == index)
                })
            };
            let soon = now + group.setup.heartbeat * self.dice.within(0, 40) as u32;
            if !group.members[index].is_running() && !is_awaited(ends) {
                ends.push((soon, End::Restart(index)));
                self.power_may_follow(group, index, soon);
            } else if group.members[index].is_paused() && !is_awaited(ends) {
                ends.push((soon, End::Resume(index)));
            }
        }
    }

    /// Ends everything at once.
    pub fn heal(&mut self, group: &mut Group) {
        self.mix.clear();
        self.ends.clear();
        group.points.disarm();
        group.net.mend();
        group.net.set_weather(self.calm);
        for index in 0..group.members.len() {
            group.pause(index, false);
            if group.members[index].is_in_trouble || group.members[index].differs {
                group.kill(index);
            }
            group.differ(index, false);
            let sync_takes = group.members[index].sync_takes;
            group.trouble(index, Trouble { sync_takes, ..Trouble::default() });
            group.restart(index);
        }
    }

    fn begin(&mut self, group: &mut Group, fault: Fault) {
        let heartbeat = group.setup.heartbeat;
        let beats = |dice: &mut Dice, low, high| heartbeat * dice.within(low, high) as u32;
        let until = group.now + beats(&mut self.dice, 2, 80);
        let victim = self.dice.roll(group.members.len() as u64) as usize;
        match self.counts.iter_mut().find(|(name, _)| *name == format!("{fault:?}")) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((format!("{fault:?}"), 1)),
        }
        group.book.say(|| format!("{fault:?} m{victim} until {until:?}"));
        match fault {
            Fault::Partition | Fault::OneWay | Fault::Bridge | Fault::Ring => {
                self.cut(group, fault);
                self.ends.push((until, End::Links));
            }
            Fault::Loss | Fault::Twice => {
                let mut weather = self.calm;
                match fault {
                    Fault::Loss => weather.loss = self.dice.within(1, 40),
                    _ => weather.twice = self.dice.within(1, 200),
                }
                group.net.set_weather(weather);
                self.ends.push((until, End::Weather));
            }
            Fault::Resets => {
                for _ in 0..self.dice.within(1, 10) {
                    let hosts = group.members.len() as u64;
                    let (one, other) = (self.dice.within(1, hosts), self.dice.within(1, hosts));
                    group.net.reset_one(one as HostId, other as HostId);
                }
                group.net.reset_one(victim as HostId + 1, CLIENTS);
            }
            Fault::Kill => {
                group.kill(victim);
                let until = group.now + beats(&mut self.dice, 0, 40);
                self.ends.push((until, End::Restart(victim)));
                self.power_may_follow(group, victim, until);
            }
            Fault::PowerLoss => {
                group.lose_power(victim);
                let until = group.now + beats(&mut self.dice, 0, 40);
                self.ends.push((until, End::Restart(victim)));
            }
            Fault::PowerLossOfAll => {
                for index in 0..group.members.len() {
                    group.lose_power(index);
                    let until = group.now + beats(&mut self.dice, 0, 40);
                    self.ends.push((until, End::Restart(index)));
                }
            }
            Fault::LongOutage => {
                group.lose_power(victim);
                let until = group.now + beats(&mut self.dice, 100, 400);
                self.ends.push((until, End::Restart(victim)));
            }
            Fault::ShortPause | Fault::LongPause => {
                group.pause(victim, true);
                let (low, high) = if fault == Fault::ShortPause { (1, 10) } else { (10, 100) };
                let until = group.now + beats(&mut self.dice, low, high);
                self.ends.push((until, End::Resume(victim)));
            }
            Fault::Wipe => {
                // Whoever has lost its disk is not let in again as whom it was, so a majority has to be left until somebody
                // else has taken that place.
                if can_spare_one(group) {
                    let joins = self.dice.percent(60);
                    group.wipe(victim, joins);
                    self.ends.push((until, End::Restart(victim)));
                }
            }
            Fault::Differ => {
                // As if it had applied something else: but what it answers is right, so that all other checks hold.
                if can_spare_one(group) {
                    group.differ(victim, true);
                }
            }
            Fault::Distrust => {
                // As in a group that has found it out by itself: there is a majority without it.
                let member = &group.members[victim];
                let has_state = member.peek().is_some_and(|peek| peek.applied.is_some());
                if has_state && !member.is_paused() && !member.is_in_trouble && can_spare_one(group)
                {
                    group.distrust(victim);
                    let until = group.now + beats(&mut self.dice, 0, 40);
                    self.ends.push((until, End::Restart(victim)));
                    self.power_may_follow(group, victim, until);
                }
            }
            Fault::Usurp => {
                let Some(leader) = self.cut_off_leader(group) else { return };
                group.stare(leader);
                for other in (0..group.members.len()).filter(|other| *other != leader) {
                    group.kill(other);
                    self.ends.push((group.now, End::Restart(other)));
                }
                self.ends.push((until, End::Links));
            }
            Fault::Depose => {
                let Some(leader) = self.cut_off_leader(group) else { return };
                let until = group.now + beats(&mut self.dice, 15, 50);
                if self.dice.percent(50) {
                    self.ends.push((until, End::Slow(leader)));
                }
                self.ends.push((until, End::Links));
            }
            Fault::Point => {
                let point = *self.dice.pick(&self.points);
                let happens = [Happens::PowerLoss, Happens::Kill, Happens::Stall];
                let (happens, skip) = (*self.dice.pick(&happens), self.dice.roll(5));
                group.points.arm(point, happens, skip);
            }
            Fault::SlowDisk => {
                self.slow_down(group, victim);
                self.ends.push((until, End::Disk(victim)));
            }
            Fault::DiskFull | Fault::DiskFails => {
                let sync_takes = group.members[victim].sync_takes;
                let mut trouble = Trouble { sync_takes, ..Trouble::default() };
                match fault {
                    Fault::DiskFull => trouble.writes_fail = Some(libc::ENOSPC),
                    _ => trouble.syncs_fail = Some(libc::EIO),
                }
                group.trouble(victim, trouble);
                self.ends.push((until, End::Disk(victim)));
            }
        }
    }

    fn end(&mut self, group: &mut Group, end: End) {
        match end {
            End::Links => group.net.mend(),
            End::Weather => group.net.set_weather(self.calm),
            End::Restart(index) => group.restart(index),
            End::Resume(index) => group.pause(index, false),
            End::Power(index) => {
                group.lose_power(index);
                self.ends.push((group.now, End::Restart(index)));
            }
            End::Slow(index) => {
                self.slow_down(group, index);
                let until = group.now + group.setup.heartbeat * self.dice.within(2, 40) as u32;
                self.ends.push((until, End::Disk(index)));
            }
            End::Disk(index) => {
                let sync_takes = group.members[index].sync_takes;
                group.trouble(index, Trouble { sync_takes, ..Trouble::default() });
                if group.members[index].is_in_trouble {
                    // What a failed write has left behind only a restart can tell.
                    match self.dice.percent(50) {
                        true => group.lose_power(index),
                        false => {
                            group.kill(index);
                            // What a sync has not written is lost later, if somebody counted on it.
                            let later = group.setup.heartbeat * self.dice.within(1, 10) as u32;
                            self.ends.push((group.now + later, End::Power(index)));
                        }
                    }
                    self.ends.push((group.now, End::Restart(index)));
                }
            }
        }
    }

    /// What a killed process had not synced is there when the next one starts, and goes with the power, soon.
    fn power_may_follow(&mut self, group: &Group, index: usize, start: Duration) {
        if self.dice.percent(50) {
            let later = group.setup.heartbeat.mul_f64(self.dice.roll(200) as f64 / 10.0);
            self.ends.push((start + later, End::Power(index)));
        }
    }

    fn slow_down(&mut self, group: &mut Group, index: usize) {
        let sync_takes = group.setup.heartbeat * self.dice.within(1, 20) as u32;
        group.trouble(index, Trouble { sync_takes, ..Trouble::default() });
    }

    /// Cuts the leader off from all other members, if there is one.
    fn cut_off_leader(&self, group: &Group) -> Option<usize> {
        let leads = |peek: quorate::Peek| peek.is_leader;
        let leader = group.members.iter().position(|it| it.peek().is_some_and(leads))?;
        for other in (0..group.members.len()).filter(|other| *other != leader) {
            group.net.cut(leader as HostId + 1, other as HostId + 1);
            group.net.cut(other as HostId + 1, leader as HostId + 1);
        }
        Some(leader)
    }

    /// A member whose disk failed has ended, and somebody restarts it when the disk is well again.
    fn replace_failed(&mut self, group: &mut Group) {
        for index in 0..group.members.len() {
            let member = &group.members[index];
            let failed = member.peek().and_then(|peek| peek.failed).or_else(|| member.refused());
            let Some(error) = failed.filter(|_| !member.is_paused()) else { continue };
            if member.is_wiped && matches!(error.reason(), Reason::IncarnationRefused { .. }) {
                // As it should be.
                continue;
            }
            let is_found = matches!(error.reason(), Reason::StateDiffers { .. }) && member.differs;
            if is_found {
                self.found += 1;
            }
            if !member.is_in_trouble && !is_found {
                group.book.violation(format!("m{index} has failed without a reason: {error:?}"));
            }
            group.kill(index);
            if !self
                .ends
                .iter()
                .any(|(_, end)| matches!(end, End::Disk(it) | End::Restart(it) if *it == index))
            {
                self.ends.push((group.now, End::Restart(index)));
            }
        }
    }

    fn cut(&mut self, group: &mut Group, fault: Fault) {
        let mut hosts: Vec<HostId> = (1..=group.members.len() as HostId).collect();
        self.dice.shuffle(&mut hosts);
        let some = self.dice.roll(hosts.len() as u64) as usize;
        for (i, one) in hosts.iter().enumerate() {
            for (j, other) in hosts.iter().enumerate().filter(|(j, _)| *j != i) {
                let is_cut = match fault {
                    // Two sides.
                    Fault::Partition => (i < some) != (j < some),
                    // One side hears, and is not heard.
                    Fault::OneWay => i < some && j >= some,
                    // Two sides, and one that belongs to both.
                    Fault::Bridge => i != 0 && j != 0 && (i <= some) != (j <= some),
                    // Each reaches its neighbours only.
                    _ => i.abs_diff(j) != 1 && i.abs_diff(j) != hosts.len() - 1,
                };
                if is_cut {
                    group.net.cut(*one, *other);
                }
            }
        }
        if self.dice.percent(30) {
            group.net.cut(CLIENTS, hosts[0]);
        }
    }
}

/// Whether a majority has its disk and a state, also without one more.
fn can_spare_one(group: &Group) -> bool {
    let is_without = |it: &&Member| it.is_wiped || it.differs || it.is_distrusted();
    let without = group.members.iter().filter(is_without).count();
    (without + 1) * 2 < group.members.len()
}
