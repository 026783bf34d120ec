//! Members as processes of their own, so that they can be killed, and stopped.
//!
//! A member is this test binary, started again to run the one test `member_process`. It is told what to do on its
//! standard input and says what happens on its standard output, one line each, so that what it has said survives it.
//!
//! ```text
//! in:   write N      begin N writers                          out:  @ack ID REVISION ANSWERED
//!       work N       the same, with a counter, a reader,            @failed ID MAY_HAVE_APPLIED TEXT
//!                    and somebody who wants the lock
//!       pause        end what they do                               @missed ID
//!       watch R      follow all keys from revision R                @read BEGUN REVISION COUNTER
//!       compact R    forget what was before revision R              @act AT TOKEN LIFE, @lost TOKEN
//!       leases       how many there are                             @event REVISION CHANGE,…
//!       status                                                      @leases N, @status APPLIED REVISION HASH LEADS
//!       shutdown     pause, then end in good order                  @ready, @down, @fatal TEXT, @fired POINT HOW
//! ```
//!
//! A process that is stopped is not gone: its connections stand, what was sent to it waits, and its clock goes on.

mod heard;
mod load;
mod member;
#[cfg(feature = "sim")]
pub(crate) mod points;

pub(crate) use heard::{Heard, SeenChanges, author};

use super::os::{Signal, signal};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What all members count up.
pub(crate) const COUNTER: &str = "counter";
/// Where the token of the lock is written, by whoever has it.
pub(crate) const FENCE: &str = "fence";
/// How long a session outlives its member.
pub(crate) const TTL: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) applied: u64,
    pub(crate) revision: u64,
    pub(crate) hash: String,
    pub(crate) is_leader: bool,
}

/// A member's process.
pub(crate) struct Process {
    child: Child,
    life: String,
    input: ChildStdin,
    lines: Arc<Lines>,
    reader: Option<thread::JoinHandle<()>>,
    is_stopped: bool,
}

/// Lines that are answers, and not part of what was [`Heard`].
#[derive(Default)]
struct Lines {
    ready: AtomicBool,
    down: AtomicBool,
    fatal: Mutex<Option<String>>,
    status: Mutex<Option<Status>>,
    leases: Mutex<Option<usize>>,
}

/// A group of processes with their folders.
pub(crate) struct Group {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) addresses: Vec<String>,
    pub(crate) snapshot_every: u64,
    /// Whether members make their files smaller as soon as a little is free. Only with the feature `sim`.
    pub(crate) shrinks_early: bool,
    /// What members do all day.
    pub(crate) order: &'static str,
    pub(crate) heard: Arc<Mutex<Heard>>,
    pub(crate) members: Vec<Option<Process>>,
    lives: usize,
}

impl Group {
    /// Folders and addresses for so many members, none of which runs.
    pub(crate) fn new(count: usize) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            addresses: super::addresses(count),
            snapshot_every: 500,
            shrinks_early: false,
            order: "work 4",
            heard: Arc::default(),
            members: (0..count).map(|_| None).collect(),
            lives: 0,
        }
    }

    /// Starts all members, which found a group, and waits until all of them work.
    pub(crate) fn start(&mut self) {
        (0..self.members.len()).for_each(|member| self.spawn(member));
        (0..self.members.len()).for_each(|member| self.begin(member));
    }

    pub(crate) fn data(&self, member: usize) -> PathBuf {
        self.folder.path().join(format!("node-{member}"))
    }

    /// Starts a member's process.
    pub(crate) fn spawn(&mut self, member: usize) {
        self.spawn_armed(member, "");
    }

    /// The same, with points at which something happens to it.
    pub(crate) fn spawn_armed(&mut self, member: usize, points: &str) {
        assert!(self.members[member].is_none(), "member {member} runs");
        self.lives += 1;
        self.members[member] = Some(Process::spawn(self, member, points));
    }

    /// Waits until a member is ready, and has it work, and follow the history from where it was.
    pub(crate) fn begin(&mut self, member: usize) {
        super::until(&format!("member {member} is ready"), || self.is_ready(member).then_some(()));
        self.work(member);
    }

    pub(crate) fn is_ready(&self, member: usize) -> bool {
        self.members[member].as_ref().unwrap().is_ready()
    }

    /// Has a member that is ready work, and follow the history from where it was.
    pub(crate) fn work(&mut self, member: usize) {
        let next = self.seen(member) + 1;
        self.tell(member, &format!("watch {next}"));
        self.tell(member, self.order);
    }

    /// The newest revision that a member has seen.
    pub(crate) fn seen(&self, member: usize) -> u64 {
        let heard = self.heard.lock().unwrap();
        let last = heard.events.get(&member).and_then(|events| events.last());
        last.map_or(1, |changes| changes.revision)
    }

    pub(crate) fn tell(&mut self, member: usize, what: &str) {
        self.members[member].as_mut().unwrap().tell(what);
    }

    /// Kills a member with SIGKILL, also one that is stopped.
    pub(crate) fn kill(&mut self, member: usize) {
        self.members[member].as_mut().unwrap().child.kill().unwrap();
        self.bury(member);
    }

    /// Whether a member's process has ended by itself.
    #[cfg(feature = "sim")]
    pub(crate) fn has_ended(&mut self, member: usize) -> bool {
        let process = self.members[member].as_mut();
        process.is_some_and(|process| process.child.try_wait().unwrap().is_some())
    }

    /// Waits for the end of a process that was killed, and returns how it ended.
    pub(crate) fn bury(&mut self, member: usize) -> ExitStatus {
        let mut process = self.members[member].take().unwrap();
        let status = process.child.wait().unwrap();
        // What it has said before is heard to the end.
        process.reader.take().unwrap().join().unwrap();
        if let Some(fatal) = process.fatal() {
            panic!("member {member} has failed: {fatal}");
        }
        self.heard.lock().unwrap().killed.insert(process.life.clone());
        status
    }

    /// Stops a member: it does nothing at all until it is resumed.
    pub(crate) fn stop(&mut self, member: usize) {
        let process = self.members[member].as_mut().unwrap();
        signal(process.child.id(), Signal::Stop);
        process.is_stopped = true;
    }

    pub(crate) fn resume(&mut self, member: usize) {
        let process = self.members[member].as_mut().unwrap();
        signal(process.child.id(), Signal::Continue);
        process.is_stopped = false;
    }

    /// Has a member end in good order, and waits for it.
    pub(crate) fn shutdown(&mut self, member: usize) {
        let mut process = self.members[member].take().unwrap();
        process.tell("shutdown");
        let status = process.child.wait().unwrap();
        process.reader.take().unwrap().join().unwrap();
        assert!(process.lines.down.load(Ordering::SeqCst), "member {member} did not end well");
        assert!(status.success(), "member {member} ended with {status}");
    }

    pub(crate) fn status(&mut self, member: usize) -> Status {
        let process = self.members[member].as_mut().unwrap();
        *process.lines.status.lock().unwrap() = None;
        process.tell("status");
        let lines = Arc::clone(&process.lines);
        super::until("a status", || lines.status.lock().unwrap().take())
    }

    fn leases(&mut self, member: usize) -> usize {
        let process = self.members[member].as_mut().unwrap();
        *process.lines.leases.lock().unwrap() = None;
        process.tell("leases");
        let lines = Arc::clone(&process.lines);
        super::until("leases", || lines.leases.lock().unwrap().take())
    }

    /// Who leads, if one of those who are ready says soon that it does.
    pub(crate) fn leader(&mut self) -> Option<usize> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(2) {
            for process in self.members.iter_mut().flatten().filter(|it| it.is_obedient()) {
                process.tell("status");
            }
            thread::sleep(Duration::from_millis(10));
            let leads = |process: &Process| {
                let status = process.lines.status.lock().unwrap().take();
                process.is_obedient() && status.is_some_and(|status| status.is_leader)
            };
            let leader = self.members.iter().position(|it| it.as_ref().is_some_and(leads));
            if leader.is_some() {
                return leader;
            }
        }
        None
    }

    /// Waits until somebody, other than `without`, does something under the lock, and returns who.
    pub(crate) fn wait_act(&self, without: &[usize]) -> usize {
        let acts = || self.heard.lock().unwrap().acts.len();
        let before = acts();
        super::until("the lock goes round", || {
            let heard = self.heard.lock().unwrap();
            let mut actors = heard.acts[before..].iter().map(|act| act.member);
            actors.find(|actor| !without.contains(actor))
        })
    }

    /// How many writes were acknowledged so far, by members other than `without`.
    pub(crate) fn acks(&self, without: &[usize]) -> usize {
        let heard = self.heard.lock().unwrap();
        heard.acks_of.iter().filter(|it| !without.contains(it.0)).map(|it| it.1).sum()
    }

    /// Waits until `more` writes were acknowledged by members other than `without`.
    pub(crate) fn wait_acks(&self, more: usize, without: &[usize]) {
        let target = self.acks(without) + more;
        super::until("writes go on", || (self.acks(without) >= target).then_some(()));
    }

    /// Ends all work, waits until the last lease has ended and all members have applied the same, and returns it.
    pub(crate) fn settle(&mut self) -> Status {
        let running: Vec<usize> =
            (0..self.members.len()).filter(|member| self.members[*member].is_some()).collect();
        running.iter().for_each(|member| self.tell(*member, "pause"));
        super::until("no lease is left", || (self.leases(running[0]) == 0).then_some(()));
        let mut last = None;
        super::until("all members are equal and at rest", || {
            let all: Vec<Status> = running.iter().map(|member| self.status(*member)).collect();
            let first = (all[0].applied, all[0].revision);
            let is_equal = all.iter().all(|it| (it.applied, it.revision) == first);
            let at_rest = is_equal && last == Some(first);
            last = is_equal.then_some(first);
            if at_rest {
                let hashes: Vec<&String> = all.iter().map(|it| &it.hash).collect();
                assert!(
                    hashes.iter().all(|hash| *hash == hashes[0]),
                    "members at the same log index disagree: {all:?}"
                );
            }
            at_rest.then(|| all[0].clone())
        })
    }
}

impl Process {
    fn spawn(group: &Group, member: usize, points: &str) -> Self {
        let life = group.lives.to_string();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kit::process::member::member_process", "--nocapture", "--quiet"])
            .env(member::MEMBER, member.to_string())
            .env(member::LIFE, &life)
            .env(member::DATA, group.data(member))
            .env(member::ADDRESSES, group.addresses.join(","))
            .env(member::SNAPSHOT, group.snapshot_every.to_string())
            .env(member::POINTS, points)
            .env(member::SHRINKS, group.shrinks_early.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let lines = Arc::new(Lines::default());
        let (sink, heard) = (Arc::clone(&lines), Arc::clone(&group.heard));
        let reader = thread::spawn(move || {
            for line in output.lines() {
                let Ok(line) = line else { return };
                if let Some(said) = line.strip_prefix('@') {
                    heard::hear(&heard, &sink, member, said);
                } else if line.contains("panicked") {
                    println!("member {member}: {line}");
                }
            }
        });
        Self { child, life, input, lines, reader: Some(reader), is_stopped: false }
    }

    fn tell(&mut self, what: &str) {
        // A process that has just been killed hears nothing.
        let _ = writeln!(self.input, "{what}");
    }

    fn is_ready(&self) -> bool {
        if let Some(fatal) = self.fatal() {
            panic!("the member did not start: {fatal}");
        }
        self.lines.ready.load(Ordering::SeqCst)
    }

    /// Whether it does what it is told.
    fn is_obedient(&self) -> bool {
        !self.is_stopped && self.lines.ready.load(Ordering::SeqCst)
    }

    /// Why the member could not start, or has failed.
    fn fatal(&self) -> Option<String> {
        self.lines.fatal.lock().unwrap().clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A test that has failed leaves no process behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
