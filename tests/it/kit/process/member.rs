//! What runs in a member's process.

use super::load::Load;
use crate::kit::HEARTBEAT;
use quorate::{Client, Event, KeyRange, Node, Revision};
use std::io::Write;
use std::path::PathBuf;
use std::thread;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Where a member finds what it is.
pub(super) const MEMBER: &str = "QUORATE_TEST_MEMBER";
pub(super) const LIFE: &str = "QUORATE_TEST_LIFE";
pub(super) const DATA: &str = "QUORATE_TEST_DATA";
pub(super) const ADDRESSES: &str = "QUORATE_TEST_ADDRESSES";
pub(super) const SNAPSHOT: &str = "QUORATE_TEST_SNAPSHOT";
pub(super) const POINTS: &str = "QUORATE_TEST_POINTS";
pub(super) const SHRINKS: &str = "QUORATE_TEST_SHRINKS";

/// Not a test: what a member's process runs. Without its environment it does nothing.
#[test]
fn member_process() {
    let Ok(member) = std::env::var(MEMBER) else { return };
    #[cfg(feature = "sim")]
    super::points::arm(&told(POINTS), told(SHRINKS) == true.to_string());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(member.parse().unwrap()));
}

fn told(what: &str) -> String {
    std::env::var(what).unwrap()
}

/// Says a line, whole, also while other tasks speak.
pub(super) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more when the test has ended; then this process ends as well.
    if out.write_all(format!("@{line}\n").as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

async fn run(member: usize) {
    let addresses: Vec<String> = told(ADDRESSES).split(',').map(str::to_owned).collect();
    let started = Node::builder(PathBuf::from(told(DATA)))
        .listen(&addresses[member])
        .heartbeat(HEARTBEAT)
        .snapshot_every(told(SNAPSHOT).parse().unwrap())
        .form(addresses)
        .await;
    let node = match started {
        Ok(node) => node,
        Err(error) => return say(&format!("fatal {:?} {error}", error.reason())),
    };
    // An application would report this; here it must not happen at all.
    node.ready().await.unwrap();
    say("ready");
    tokio::select! {
        () = obey(&node) => {}
        cause = node.failed() => {
            say(&format!("fatal {cause}"));
            std::process::exit(2);
        }
    }
    node.shutdown().await.unwrap();
    say("down");
}

/// Does what the test says, until that is to shut down.
async fn obey(node: &Node) {
    let mut load = Load::new(node.client(), told(LIFE));
    let mut told = orders();
    let mut watches = JoinSet::new();
    while let Some(line) = told.recv().await {
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "write" => load.write(rest.parse().unwrap()),
            "work" => load.work(rest.parse().unwrap()),
            "pause" => load.pause().await,
            "watch" => {
                let from = Revision::from(rest.parse::<u64>().unwrap());
                watches.spawn(follow(node.client(), from));
            }
            "compact" => {
                // It may fail as anything may; the test looks at what comes of it.
                let _ = node.client().compact(rest.parse::<u64>().unwrap().into()).await;
            }
            "status" => say_status(node),
            "leases" => {
                let leases = node.client().lease_list().await;
                say(&format!("leases {}", leases.map_or(usize::MAX, |leases| leases.len())));
            }
            "shutdown" => return load.pause().await,
            other => panic!("told to {other:?}"),
        }
    }
}

/// The lines that the test says.
fn orders() -> mpsc::Receiver<String> {
    let (orders, told) = mpsc::channel(16);
    thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { break };
            if orders.blocking_send(line).is_err() {
                return;
            }
        }
        // The test has gone, so this process goes as well.
        std::process::exit(0);
    });
    told
}

fn say_status(node: &Node) {
    let status = node.status();
    let applied = status.applied_index.unwrap_or(0);
    let (revision, hash) = (status.revision, status.state_hash);
    let is_leader = status.leader == Some(node.id());
    say(&format!("status {applied} {revision} {hash:032x} {is_leader}"));
}

/// Follows all keys and says what happens: a line for each revision, so that no line is of half of one.
async fn follow(client: Client, from: Revision) {
    let mut watch = client.watch(KeyRange::all()).from(from).prev().await.unwrap();
    loop {
        let changes = match watch.recv().await {
            Ok(changes) => changes,
            Err(error) if *error.reason() == quorate::Reason::Closed => return,
            Err(error) => panic!("the watch has ended: {error}"),
        };
        let text: Vec<String> = changes.events.iter().map(describe).collect();
        say(&format!("event {} {}", changes.revision, text.join(",")));
    }
}

fn describe(event: &Event) -> String {
    let text = |bytes: &[u8]| match String::from_utf8_lossy(bytes) {
        nothing if nothing.is_empty() => "-".to_owned(),
        text => text.into_owned(),
    };
    let key = text(event.key());
    match event {
        Event::Put { kv, prev } => {
            let prev = prev.as_ref().map_or("-".to_owned(), |prev| text(&prev.value));
            format!("put {key} {} {prev}", text(&kv.value))
        }
        _ => format!("delete {key}"),
    }
}
