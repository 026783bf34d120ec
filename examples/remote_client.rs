//! A worker that is no member of the group: it connects from outside, and goes on when members die.
//!
//! `cargo run --example remote_client` starts a group of three in a temporary folder, and a worker who knows the address
//! of one of them. Members are shut down and started again under it, one after the other. It ends after all three.
//!
//! The claim: no write of the worker is lost and none happens twice, whatever has to be sent again; its watch sees each of
//! them once; and what it has read it never sees an older state of.

#![allow(clippy::print_stdout)] // an example shows what it does

use quorate::{Client, Consistency, Event, Node, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// Short, for the example's sake: who leads is replaced after five to ten of these without a sign of life.
const HEARTBEAT: Duration = Duration::from_millis(50);
/// How long the worker waits for one answer: longer than the group needs for a new leader.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let addresses = free_addresses();
    let start = |at: usize| member(folder.path(), &addresses, at);
    let members = futures::future::try_join3(start(0), start(1), start(2)).await?;
    let mut members = [Some(members.0), Some(members.1), Some(members.2)];

    // One address is enough: the others are learned.
    let worker = Client::connect([addresses[0].clone()]).await?;
    let mut seen = worker.watch("ticket").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut work_under_way = JoinSet::new();
    work_under_way.spawn(work(worker.clone(), Arc::clone(&stop)));
    for (at, place) in members.iter_mut().enumerate() {
        if let Some(member) = place.take() {
            println!("member {} is shut down", member.id());
            member.shutdown().await?;
        }
        // The worker gets on without it.
        let now = worker.get("ticket").timeout(PATIENCE).await?.map_or(0, |kv| kv.version);
        while worker.get("ticket").timeout(PATIENCE).await?.map_or(0, |kv| kv.version) < now + 20 {}
        *place = Some(start(at).await?);
    }
    stop.store(true, Ordering::Relaxed);
    let ended = work_under_way.join_next().await.expect("there is one");
    let count = ended.expect("the worker does not panic")?;

    let ticket = worker.get("ticket").await?.expect("it was written");
    assert_eq!(ticket.version, count, "as many writes as were asked for");
    let mut expected = 1;
    while expected <= count {
        for event in seen.recv().await?.events {
            let Event::Put { kv, .. } = event else { panic!("nobody deletes it") };
            assert_eq!(kv.version, expected, "each of them once, in order");
            expected += 1;
        }
    }
    println!("{count} tickets were written, each once, and each was seen");
    for member in members.into_iter().flatten() {
        member.shutdown().await?;
    }
    Ok(())
}

/// Counts, in a way that would show a write that is lost or happens twice: each write says what was there before it.
async fn work(client: Client, stop: Arc<AtomicBool>) -> Result<u64> {
    let mut count = 0;
    let mut newest = 0.into();
    while !stop.load(Ordering::Relaxed) {
        let put = client.put("ticket", format!("{}", count + 1)).prev().timeout(PATIENCE);
        let (revision, before) = put.await?;
        assert_eq!(before.map_or(0, |kv| kv.version), count);
        count += 1;
        // Whichever member answers, also one that lags behind the others: time does not go back.
        let read = client.get("ticket").consistency(Consistency::Serializable).timeout(PATIENCE);
        let read = read.await?.expect("it was just written").mod_revision;
        assert!(read >= revision && read >= newest);
        newest = read;
    }
    Ok(count)
}

async fn member(folder: &Path, addresses: &[String], at: usize) -> Result<Node> {
    let node = Node::builder(folder.join(at.to_string()))
        .listen(&addresses[at])
        .heartbeat(HEARTBEAT)
        .form(addresses)
        .await?;
    node.ready().await?;
    Ok(node)
}

fn free_addresses() -> Vec<String> {
    let free = |_| std::net::TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let ports: Vec<_> = (0..3).map(free).collect(); // held at once, so that they differ
    let address =
        |port: &std::net::TcpListener| port.local_addr().expect("it is bound").to_string();
    ports.iter().map(address).collect()
}
