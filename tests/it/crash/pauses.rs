//! Members that are stopped for a while: shorter than an election takes, longer, and longer than a session lives.
//!
//! A member that was stopped does not know it. It wakes up as the leader that it was, or as the holder of a lock, with
//! orders in its queue and answers in its sockets, and finds out that the others did not wait.

use crate::kit::process::{Group, TTL};
use crate::kit::{Dice, HEARTBEAT};
use std::fmt;
use std::thread::sleep;
use std::time::Duration;

/// Elections begin when nothing was heard for ten heartbeats, and take up to as long again.
const ELECTION: Duration = HEARTBEAT.saturating_mul(20);

/// How often members were stopped, and with them who led, or had the lock for longer than its session lives.
#[derive(Default)]
pub(crate) struct Paused {
    pub(crate) pauses: usize,
    leaders: usize,
    outlived: usize,
    rounds: usize,
}

impl fmt::Display for Paused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pauses, leaders, outlived, .. } = self;
        write!(f, "{pauses} pauses, {leaders} of the leader, {outlived} of a holder beyond its ttl")
    }
}

impl Paused {
    /// Stops somebody, or two, and has them go on. Each kind in turn.
    pub(crate) fn pause(&mut self, group: &mut Group, dice: &mut Dice) {
        group.wait_acks(20 + dice.roll(60), &[]);
        let leader = group.leader();
        let anybody = match dice.roll(2) {
            0 => leader.unwrap_or(0),
            _ => dice.roll(3),
        };
        let some = Duration::from_millis(u64::try_from(dice.roll(400)).unwrap());
        self.rounds += 1;
        self.pauses += match self.rounds % 5 {
            1 => self.stop_holder(group),
            2 => self.stop(group, &[anybody], leader, HEARTBEAT + some),
            3 => self.stop(group, &[leader.unwrap_or(0)], leader, ELECTION + some),
            4 => self.stop(group, &[anybody, (anybody + 1) % 3], leader, ELECTION / 2 + some * 2),
            _ => self.stop_while_others_are_killed(group, dice, anybody, leader),
        };
    }

    /// Stops whoever has the lock until somebody else has it.
    fn stop_holder(&mut self, group: &mut Group) -> usize {
        let holder = group.wait_act(&[]);
        group.stop(holder);
        // It may just have passed it on, and then somebody else has it at once.
        sleep(TTL);
        group.wait_act(&[holder]);
        self.outlived += 1;
        resume(group, &[holder]);
        1
    }

    fn stop(
        &mut self,
        group: &mut Group,
        members: &[usize],
        leader: Option<usize>,
        how_long: Duration,
    ) -> usize {
        members.iter().for_each(|member| group.stop(*member));
        self.leaders += usize::from(leader.is_some_and(|leader| members.contains(&leader)));
        sleep(how_long);
        resume(group, members);
        members.len()
    }

    /// Whoever comes back finds that another has gone, or both.
    fn stop_while_others_are_killed(
        &mut self,
        group: &mut Group,
        dice: &mut Dice,
        member: usize,
        leader: Option<usize>,
    ) -> usize {
        let victims: Vec<usize> = [(member + 1) % 3, (member + 2) % 3][dice.roll(2)..].to_vec();
        group.stop(member);
        self.leaders += usize::from(leader == Some(member));
        sleep(HEARTBEAT * u32::try_from(dice.roll(20)).unwrap());
        victims.iter().for_each(|victim| group.kill(*victim));
        sleep(HEARTBEAT * u32::try_from(dice.roll(10)).unwrap());
        group.resume(member);
        sleep(HEARTBEAT * u32::try_from(dice.roll(10)).unwrap());
        victims.iter().for_each(|victim| group.spawn(*victim));
        victims.iter().for_each(|victim| group.begin(*victim));
        1
    }
}

/// Has members go on, and waits until they work again, whatever they have missed.
fn resume(group: &mut Group, members: &[usize]) {
    members.iter().for_each(|member| group.resume(*member));
    for member in members {
        let others: Vec<usize> = (0..3).filter(|other| other != member).collect();
        group.wait_acks(1, &others);
    }
}
