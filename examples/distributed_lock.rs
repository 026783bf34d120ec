//! Workers that share something which only one may touch at a time.
//!
//! `cargo run --example distributed_lock` starts a group of one in a temporary folder, and five workers that reach it
//! over TCP, as processes of their own would. It ends after three rounds.
//!
//! The claim: no addition to the balance is lost, though every worker reads it, thinks, and writes it back; and a
//! worker that has lost the lock without knowing it cannot write.

#![allow(clippy::print_stdout)] // an example shows what it does

use quorate::{Client, Node, Op, Result, Session};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

const WORKERS: u64 = 5;
const ROUNDS: u64 = 3;
const TTL: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let builder = Node::builder(folder.path()).listen("127.0.0.1:0");
    let node = builder.heartbeat(Duration::from_millis(50)).solo().await?;
    let address = node.local_address().expect("it listens").to_string();

    for round in 1..=ROUNDS {
        let mut workers = JoinSet::new();
        for worker in 1..=WORKERS {
            let address = address.clone();
            workers.spawn(async move {
                let client = Client::connect([address]).await?;
                add_one(&client.session(TTL).await?, worker).await
            });
        }
        while let Some(done) = workers.join_next().await {
            done.expect("no worker panics")?;
        }
        let balance = read_balance(&node.client()).await?;
        assert_eq!(balance, round * WORKERS, "no addition is lost");
        println!("round {round}: the balance is {balance}");
    }
    a_stale_holder_cannot_write(&node.client()).await?;
    node.shutdown().await
}

/// Reads the balance, thinks, and writes one more.
async fn add_one(session: &Session, worker: u64) -> Result<()> {
    let lock = session.lock("billing/balance").await?; // first come, first served
    let balance = read_balance(session.client()).await?;
    sleep(Duration::from_millis(10)).await;
    let write = Op::put("balance", (balance + 1).to_string());
    // Not only under the lock: on condition that it is still held. That is what makes it safe.
    let done = session.client().txn().when(lock.held()).then(write).await?;
    assert!(done.succeeded, "the session lives, so the lock is held");
    println!("worker {worker} with token {}: {balance} -> {}", lock.token(), balance + 1);
    lock.release().await // or drop it: it is then released in the background
}

async fn read_balance(client: &Client) -> Result<u64> {
    let stored = client.get("balance").await?;
    Ok(stored.map_or(0, |kv| {
        let text = std::str::from_utf8(&kv.value).expect("workers write digits");
        text.parse().expect("workers write digits")
    }))
}

/// A holder whose lease the group has ended, and that goes on as if nothing had happened.
async fn a_stale_holder_cannot_write(client: &Client) -> Result<()> {
    let session = client.session(TTL).await?;
    let lock = session.lock("billing/balance").await?;
    client.lease_revoke(session.lease_id()).await?; // as if this process had been paused for too long

    let other = client.session(TTL).await?;
    let next = other.lock("billing/balance").await?;
    assert!(next.token() > lock.token());

    let late = client.txn().when(lock.held()).then(Op::put("balance", "0")).await?;
    assert!(!late.succeeded, "a stale holder cannot write");
    println!("token {} was refused, for {} holds the lock", lock.token(), next.token());
    next.release().await
}
