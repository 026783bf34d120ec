//! Members as processes of their own, so that they can be killed.
//!
//! A member is this test binary, started again to run the one test [`member_process`]. It is told what to do on its
//! standard input and says what happens on its standard output, one line each, so that what it has said survives it.
//!
//! ```text
//! in:   write N      begin N writers, each key used once      out:  @ack KEY REVISION
//!       pause        stop them                                      @failed MAY_HAVE_APPLIED TEXT
//!       watch R      follow all keys from revision R                @event REVISION KEY PUT|DELETE PREV
//!       status                                                      @status APPLIED REVISION HASH LEADER
//!       shutdown     pause, then end in good order                  @down
//! ```

use super::HEARTBEAT;
use quorate::{Event, KeyRange, Node, Revision};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What members have said, of all their lives together.
#[derive(Default)]
pub(crate) struct Heard {
    /// Acknowledged writes: key, revision, when it was heard, and from which member.
    pub(crate) acks: Vec<Ack>,
    /// Failed writes: whether they may have been applied, and why.
    pub(crate) failures: Vec<(bool, String)>,
    /// For each member, the events that its watch has delivered, over all its lives.
    pub(crate) events: BTreeMap<usize, Vec<SeenEvent>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Ack {
    pub(crate) key: String,
    pub(crate) revision: u64,
    pub(crate) at: Instant,
    pub(crate) member: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenEvent {
    pub(crate) revision: u64,
    pub(crate) key: String,
    pub(crate) text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) applied: u64,
    pub(crate) revision: u64,
    pub(crate) hash: String,
    pub(crate) leader: usize,
}

/// A member's process.
pub(crate) struct Process {
    child: Child,
    input: ChildStdin,
    lines: Arc<Lines>,
    reader: Option<thread::JoinHandle<()>>,
}

/// Lines that are answers, and not part of what was [`Heard`].
#[derive(Default)]
struct Lines {
    ready: AtomicBool,
    down: AtomicBool,
    fatal: Mutex<Option<String>>,
    status: Mutex<Option<Status>>,
}

/// A group of processes with their folders.
pub(crate) struct Group {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) addresses: Vec<String>,
    pub(crate) heard: Arc<Mutex<Heard>>,
    pub(crate) members: Vec<Option<Process>>,
}

impl Group {
    /// Starts `count` members that found a group, and waits until all are ready.
    pub(crate) fn start(count: usize) -> Self {
        let mut group = Self {
            folder: tempfile::tempdir().unwrap(),
            addresses: super::addresses(count),
            heard: Arc::default(),
            members: (0..count).map(|_| None).collect(),
        };
        (0..count).for_each(|member| group.spawn(member));
        (0..count).for_each(|member| group.wait_ready(member));
        group
    }

    pub(crate) fn data(&self, member: usize) -> PathBuf {
        self.folder.path().join(format!("node-{member}"))
    }

    /// Starts a member's process.
    pub(crate) fn spawn(&mut self, member: usize) {
        assert!(self.members[member].is_none(), "member {member} runs");
        let process =
            Process::spawn(member, &self.data(member), &self.addresses, Arc::clone(&self.heard));
        self.members[member] = Some(process);
    }

    pub(crate) fn wait_ready(&mut self, member: usize) {
        let process = self.members[member].as_mut().unwrap();
        super::until(&format!("member {member} is ready"), || process.is_ready().then_some(()));
    }

    pub(crate) fn tell(&mut self, member: usize, what: &str) {
        self.members[member].as_mut().unwrap().tell(what);
    }

    /// Kills a member with SIGKILL.
    pub(crate) fn kill(&mut self, member: usize) {
        let mut process = self.members[member].take().unwrap();
        process.child.kill().unwrap();
        process.child.wait().unwrap();
        // What it has said before is heard to the end.
        process.reader.take().unwrap().join().unwrap();
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

    /// How many writes were acknowledged so far, by members other than `without`.
    pub(crate) fn acks(&self, without: &[usize]) -> usize {
        let heard = self.heard.lock().unwrap();
        heard.acks.iter().filter(|ack| !without.contains(&ack.member)).count()
    }

    /// Waits until `more` writes were acknowledged by members other than `without`.
    pub(crate) fn wait_acks(&self, more: usize, without: &[usize]) {
        let target = self.acks(without) + more;
        super::until("writes go on", || (self.acks(without) >= target).then_some(()));
    }

    /// Has all members follow the history from where they were.
    pub(crate) fn watch(&mut self, member: usize) {
        let next = {
            let heard = self.heard.lock().unwrap();
            let last = heard.events.get(&member).and_then(|events| events.last());
            last.map_or(2, |event| event.revision + 1)
        };
        self.tell(member, &format!("watch {next}"));
    }

    /// Stops the writers and waits until all members have applied the same, and returns it.
    pub(crate) fn settle(&mut self) -> Status {
        let running: Vec<usize> =
            (0..self.members.len()).filter(|member| self.members[*member].is_some()).collect();
        running.iter().for_each(|member| self.tell(*member, "pause"));
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
    fn spawn(member: usize, data: &Path, addresses: &[String], heard: Arc<Mutex<Heard>>) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kit::process::member_process", "--nocapture", "--quiet"])
            .env("QUORATE_TEST_MEMBER", member.to_string())
            .env("QUORATE_TEST_DATA", data)
            .env("QUORATE_TEST_ADDRESSES", addresses.join(","))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let lines = Arc::new(Lines::default());
        let sink = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            for line in output.lines() {
                let Ok(line) = line else { return };
                if let Some(said) = line.strip_prefix('@') {
                    sink.take(member, said, &heard);
                } else if line.contains("panicked") {
                    println!("member {member}: {line}");
                }
            }
        });
        Self { child, input, lines, reader: Some(reader) }
    }

    fn tell(&mut self, what: &str) {
        // A process that has just been killed hears nothing.
        let _ = writeln!(self.input, "{what}");
    }

    fn is_ready(&mut self) -> bool {
        if let Some(fatal) = self.fatal() {
            panic!("the member did not start: {fatal}");
        }
        self.lines.ready.load(Ordering::SeqCst)
    }

    /// Why the member could not start, or has failed.
    pub(crate) fn fatal(&self) -> Option<String> {
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

impl Lines {
    fn take(&self, member: usize, said: &str, heard: &Mutex<Heard>) {
        let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
        let words: Vec<&str> = rest.split(' ').collect();
        match word {
            "ready" => self.ready.store(true, Ordering::SeqCst),
            "down" => self.down.store(true, Ordering::SeqCst),
            "fatal" => *self.fatal.lock().unwrap() = Some(rest.to_owned()),
            "status" => {
                *self.status.lock().unwrap() = Some(Status {
                    applied: words[0].parse().unwrap(),
                    revision: words[1].parse().unwrap(),
                    hash: words[2].to_owned(),
                    leader: words[3].parse().unwrap(),
                });
            }
            "ack" => {
                let (key, revision) = (words[0].to_owned(), words[1].parse().unwrap());
                let ack = Ack { key, revision, at: Instant::now(), member };
                heard.lock().unwrap().acks.push(ack);
            }
            "failed" => {
                let (unknown, text) = rest.split_once(' ').unwrap();
                heard.lock().unwrap().failures.push((unknown == "true", text.to_owned()));
            }
            "event" => {
                let (revision, text) = rest.split_once(' ').unwrap();
                let key = text.split(' ').next().unwrap().to_owned();
                let (revision, text) = (revision.parse().unwrap(), text.to_owned());
                let seen = SeenEvent { revision, key, text };
                heard.lock().unwrap().events.entry(member).or_default().push(seen);
            }
            other => panic!("a member said {other:?}"),
        }
    }
}

/// Not a test: what a member's process runs. Without its environment it does nothing.
#[test]
fn member_process() {
    let Ok(member) = std::env::var("QUORATE_TEST_MEMBER") else { return };
    let data = PathBuf::from(std::env::var("QUORATE_TEST_DATA").unwrap());
    let addresses = std::env::var("QUORATE_TEST_ADDRESSES").unwrap();
    let addresses: Vec<String> = addresses.split(',').map(str::to_owned).collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run_member(member.parse().unwrap(), data, addresses));
}

/// Says a line, whole, also while other tasks speak.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more when the test has ended; then this process ends as well.
    if out.write_all(format!("@{line}\n").as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

async fn run_member(member: usize, data: PathBuf, addresses: Vec<String>) {
    let started = Node::builder(data)
        .listen(&addresses[member])
        .heartbeat(HEARTBEAT)
        .snapshot_every(std::env::var("QUORATE_TEST_SNAPSHOT").map_or(500, |n| n.parse().unwrap()))
        .form(addresses.clone())
        .await;
    let node = match started {
        Ok(node) => node,
        Err(error) => return say(&format!("fatal {:?} {error}", error.reason())),
    };
    // An application would report this; here it must not happen at all.
    node.ready().await.unwrap();
    say("ready");

    let paused = Arc::new(AtomicBool::new(false));
    let writers = Arc::new(Mutex::new(tokio::task::JoinSet::new()));
    let (commands, mut told) = tokio::sync::mpsc::channel::<String>(16);
    thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { break };
            if commands.blocking_send(line).is_err() {
                return;
            }
        }
        // The test has gone, so this process goes as well.
        std::process::exit(0);
    });
    let failed = async {
        let cause = node.failed().await;
        say(&format!("fatal {cause}"));
    };
    let mut failed = Box::pin(failed);
    loop {
        let line = tokio::select! {
            line = told.recv() => line.unwrap(),
            () = &mut failed => std::process::exit(2),
        };
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "write" => {
                for writer in 0..rest.parse::<usize>().unwrap() {
                    let (client, paused) = (node.client(), Arc::clone(&paused));
                    writers.lock().unwrap().spawn(write(client, member, writer, paused));
                }
            }
            "pause" => pause(&paused, &writers).await,
            "watch" => {
                let from = Revision::from(rest.parse::<u64>().unwrap());
                let client = node.client();
                tokio::spawn(follow(client, from));
            }
            "status" => {
                let status = node.status();
                let leader = status.leader.map_or(0, |leader| leader.get());
                let applied = status.applied_index.unwrap_or(0);
                let (revision, hash) = (status.revision, status.state_hash);
                say(&format!("status {applied} {revision} {hash:032x} {leader}"));
            }
            "shutdown" => {
                pause(&paused, &writers).await;
                break;
            }
            other => panic!("told to {other:?}"),
        }
    }
    drop(failed);
    node.shutdown().await.unwrap();
    say("down");
}

async fn pause(paused: &AtomicBool, writers: &Mutex<tokio::task::JoinSet<()>>) {
    paused.store(true, Ordering::SeqCst);
    let mut waiting = std::mem::take(&mut *writers.lock().unwrap());
    while waiting.join_next().await.is_some() {}
    paused.store(false, Ordering::SeqCst);
}

/// Writes key after key, each once, and says what became of it.
async fn write(client: quorate::Client, member: usize, writer: usize, paused: Arc<AtomicBool>) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let life = std::process::id();
    while !paused.load(Ordering::SeqCst) {
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let key = format!("w/{member}-{life}-{writer}-{number}");
        match client.put(&key, key.clone()).timeout(Duration::from_secs(20)).await {
            Ok(revision) => say(&format!("ack {key} {revision}")),
            Err(error) => say(&format!("failed {} {error}", error.may_have_applied())),
        }
    }
}

/// Follows all keys and says each event.
async fn follow(client: quorate::Client, from: Revision) {
    let mut watch = client.watch(KeyRange::all()).from(from).prev().await.unwrap();
    loop {
        let changes = match watch.recv().await {
            Ok(changes) => changes,
            Err(error) if *error.reason() == quorate::Reason::Closed => return,
            Err(error) => panic!("the watch has ended: {error}"),
        };
        for event in changes.events {
            let (revision, key) =
                (event.revision(), String::from_utf8_lossy(event.key()).into_owned());
            let what = match &event {
                Event::Put { kv, prev } => {
                    assert_eq!(kv.value, key.as_bytes());
                    format!("put {}", prev.is_some())
                }
                _ => "delete".to_owned(),
            };
            say(&format!("event {revision} {key} {what}"));
        }
    }
}
