//! Three members, one of which leads. Stop it in any way you like, and another takes over.
//!
//! ```text
//! cargo run --example leader_election           all three in this process: each leads once, and resigns
//!
//! cargo run --example leader_election -- 1      in a terminal of its own, and so on: kill the one that leads,
//! cargo run --example leader_election -- 2      look who does next, and start it again
//! cargo run --example leader_election -- 3
//! ```
//!
//! The claim: there is never more than one leader by the word of the group, and every leader has a larger token than
//! all before it. So one that is not the leader any more cannot write, though it may not know it yet.

#![allow(clippy::print_stdout)] // an example shows what it does

use quorate::recipes::Leadership;
use quorate::{Client, Node, Op, Reason, Result};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

const ADDRESSES: [&str; 3] = ["127.0.0.1:7401", "127.0.0.1:7402", "127.0.0.1:7403"];
/// How long after a leader is gone the next one leads, at most: the shorter, the less a pause is forgiven.
const TTL: Duration = Duration::from_secs(4);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    match std::env::args().nth(1).as_deref() {
        None | Some("--once") => Ok(all_in_one().await?),
        Some(number @ ("1" | "2" | "3")) => {
            let address = ADDRESSES[number.parse::<usize>()? - 1];
            let folder = std::env::temp_dir().join("quorate-leader-election").join(number);
            println!("{address}: data in {}", folder.display());
            Ok(one_of_three(&folder, address).await?)
        }
        Some(_) => {
            Err("say which of the three this is: 1, 2 or 3; or nothing, for all in one".into())
        }
    }
}

// ---------------------------------------------------------------------------------------- one of three, for ever

/// A member of the group, and a candidate.
async fn one_of_three(folder: &Path, address: &str) -> Result<()> {
    println!("{address}: waits for the others");
    let node = Node::builder(folder).listen(address).form(ADDRESSES).await?;
    node.ready().await?;
    println!("{address}: stands in line");
    let client = node.client();
    let session = client.session(TTL).await?;
    let work = async |leadership: Arc<Leadership>| {
        println!("{address}: leads with token {}", leadership.token());
        loop {
            match run_a_job(&client, &leadership, address).await {
                Ok(true) => println!("{address}: ran a job"),
                Ok(false) => println!("{address}: was refused"), // and will hear in a moment that it has lost the lead
                // The group is choosing its own leader anew, say.
                Err(error) if error.is_retryable() => println!("{address}: goes on after {error}"),
                Err(error) => return Err(error),
            }
            sleep(Duration::from_secs(1)).await;
        }
    };
    session.election("scheduler").lead(address, work).await
}

/// What only the leader does: the group itself refuses it to everybody else.
async fn run_a_job(client: &Client, leadership: &Leadership, name: &str) -> Result<bool> {
    let mark = Op::put("scheduler/last-run-by", name.to_owned());
    Ok(client.txn().when(leadership.held()).then(mark).await?.succeeded)
}

// --------------------------------------------------------------------------------------- three in one, each once

async fn all_in_one() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let nodes = three_members(folder.path()).await?;
    let last = Arc::new(AtomicU64::new(0));
    let mut reigns = JoinSet::new();
    for node in &nodes {
        reigns.spawn(lead_once(node.client(), format!("node-{}", node.id()), Arc::clone(&last)));
    }
    while let Some(reign) = reigns.join_next().await {
        reign.expect("no candidate panics")?;
    }
    for node in nodes {
        node.shutdown().await?;
    }
    println!("three leaders, one after the other");
    Ok(())
}

/// Waits its turn, leads, and resigns. `last` is the token of whoever led before.
async fn lead_once(client: Client, name: String, last: Arc<AtomicU64>) -> Result<()> {
    let session = client.session(TTL).await?;
    let election = session.election("scheduler");
    let leadership = election.campaign(&name).await?;
    let token = leadership.token();
    println!("{name}: leads with token {token}");
    let before = last.swap(token.get(), Ordering::SeqCst);
    assert!(before < token.get(), "every leader has a larger token than all before it");
    assert!(run_a_job(&client, &leadership, &name).await?, "it leads, so it may write");
    let leader = election.leader().await?.expect("somebody leads");
    assert_eq!((&leader.name, leader.token), (&name, token));
    let stale = leadership.held();
    leadership.resign().await?;
    let late = client.txn().when(stale).then(Op::put("scheduler/late", name.clone())).await?;
    assert!(!late.succeeded, "it led, so it may not write any more");
    println!("{name}: has resigned, and a late write of it was refused");
    Ok(())
}

/// Three members with ports that nobody else uses.
async fn three_members(folder: &Path) -> Result<Vec<Node>> {
    loop {
        let addresses = free_addresses();
        let mut founding = JoinSet::new();
        for address in &addresses {
            let data = folder.join(address.replace(':', "-"));
            let builder = Node::builder(data).listen(address).heartbeat(Duration::from_millis(50));
            founding.spawn(builder.form(addresses.clone()));
        }
        let mut nodes = Vec::new();
        while let Some(formed) = founding.join_next().await {
            match formed.expect("no founder panics") {
                // Somebody was faster: the others would wait for this one in vain.
                Err(error) if matches!(error.reason(), Reason::BadAddress { .. }) => break,
                formed => nodes.push(formed?),
            }
        }
        if nodes.len() == addresses.len() {
            return Ok(nodes);
        }
    }
}

fn free_addresses() -> Vec<String> {
    let bind = |_| TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let listeners: Vec<TcpListener> = (0..3).map(bind).collect();
    let address = |listener: &TcpListener| listener.local_addr().expect("it is bound").to_string();
    listeners.iter().map(address).collect()
}
