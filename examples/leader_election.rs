//! Three programs, one of which leads. Stop it in any way you like, and another takes over.
//!
//! In three terminals:
//!
//! ```text
//! cargo run --example leader_election -- 1
//! cargo run --example leader_election -- 2
//! cargo run --example leader_election -- 3
//! ```
//!
//! Or all three in this process, where each leads once and then resigns:
//!
//! ```text
//! cargo run --example leader_election -- --once
//! ```
//!
//! The claim: there is never more than one leader by the word of the group, and every leader has a larger token than
//! all before it. So a leader that was cut off cannot write, though it may not know it yet.

#![allow(clippy::print_stdout)]

use quorate::recipes::Leadership;
use quorate::{Client, FencingToken, Node, Op, Result};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

const ADDRESSES: [&str; 3] = ["127.0.0.1:7401", "127.0.0.1:7402", "127.0.0.1:7403"];
/// How long after a leader is gone the next one leads, at most: the shorter, the less a pause is forgiven.
const TTL: Duration = Duration::from_secs(4);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("--once") => Ok(all_in_one().await?),
        Some(number @ ("1" | "2" | "3")) => {
            let address = ADDRESSES[number.parse::<usize>()? - 1];
            let folder = std::env::temp_dir().join("quorate-leader-election").join(number);
            Ok(one_of_three(&folder, address).await?)
        }
        _ => Err("say which of the three this is: 1, 2 or 3; or --once for all in one".into()),
    }
}

/// A member of the group, and a candidate, for ever.
async fn one_of_three(folder: &Path, address: &str) -> Result<()> {
    println!("{address}: waiting for the others");
    let node = Node::builder(folder).listen(address).form(ADDRESSES).await?;
    node.ready().await?;
    println!("{address}: member {}, standing in line", node.id());
    let session = node.client().session(TTL).await?;
    let client = node.client();
    session
        .election("scheduler")
        .lead(address, async |leadership| {
            println!("{address}: leading with token {}", leadership.token());
            loop {
                run_a_job(&client, &leadership, address).await?;
                sleep(Duration::from_secs(1)).await;
            }
        })
        .await
}

/// What only the leader does: the group itself refuses it to everybody else.
async fn run_a_job(client: &Client, leadership: &Leadership, name: &str) -> Result<bool> {
    let mark = Op::put("scheduler/last-run-by", name.to_owned());
    let outcome = client.txn().when(leadership.held()).then(mark).await?;
    println!("{name}: ran a job at revision {}", outcome.revision);
    Ok(outcome.succeeded)
}

/// Three members in one process. Each leads once, and resigns.
async fn all_in_one() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let addresses = free_addresses();
    let mut founding = JoinSet::new();
    for address in addresses.clone() {
        let data = folder.path().join(address.replace(':', "-"));
        let builder = Node::builder(data).listen(&address).heartbeat(Duration::from_millis(50));
        founding.spawn(builder.form(addresses.clone()));
    }
    let nodes: Vec<Node> = founding.join_all().await.into_iter().collect::<Result<_>>()?;

    let mut reigns = JoinSet::<Result<()>>::new();
    let (begun, mut tokens) = mpsc::channel(nodes.len());
    for node in &nodes {
        let (client, name, begun) = (node.client(), format!("node-{}", node.id()), begun.clone());
        reigns.spawn(async move {
            let session = client.session(TTL).await?;
            let leadership = session.election("scheduler").campaign(&name).await?;
            assert!(run_a_job(&client, &leadership, &name).await?, "it leads, so it may write");
            let leader = session.election("scheduler").leader().await?.expect("somebody leads");
            assert_eq!((&leader.name, leader.token), (&name, leadership.token()));
            begun.send(leadership.token()).await.expect("there is room for all");
            let stale = leadership.held();
            leadership.resign().await?;
            let late = client.txn().when(stale).then(Op::put("scheduler/late", name)).await?;
            assert!(!late.succeeded, "it led, so it may not write any more");
            Ok(())
        });
    }
    drop(begun);
    let mut last = FencingToken::from(0);
    while let Some(token) = tokens.recv().await {
        assert!(token > last, "every leader has a larger token than those before it");
        println!("a reign began: token {token}");
        last = token;
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

/// Three ports that nobody uses now.
fn free_addresses() -> Vec<String> {
    let bind = |_| TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let listeners: Vec<TcpListener> = (0..3).map(bind).collect();
    let address = |listener: &TcpListener| listener.local_addr().expect("it is bound").to_string();
    listeners.iter().map(address).collect()
}
