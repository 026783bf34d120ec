//! A service with several instances, and a caller who always knows which of them are there.
//!
//! `cargo run --example service_discovery` starts a group of one in a temporary folder, three instances of a service, and
//! a caller who reaches the group over TCP. It ends when the group has been away and is back.
//!
//! The claim: who registers is found with what it says of itself; who leaves, or whose session ends, is not found any more;
//! and while the group is away the caller goes on with the instances that it knows.

#![allow(clippy::print_stdout)] // an example shows what it does

use quorate::recipes::{Mirror, Registration};
use quorate::{Client, Node, Result, Session};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// What an instance says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Instance {
    address: String,
    version: String,
    /// How much of the traffic it can take, beside the others.
    weight: u32,
}

/// Short, for the example's sake.
const HEARTBEAT: Duration = Duration::from_millis(50);
/// An instance that has died is found for about so long.
const TTL: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr());
    let address = port.expect("there is a free port").to_string();
    let node = start(folder.path(), &address).await?;

    let caller = Client::connect([address.clone()]).await?;
    let mut billing = caller.discover::<Instance>("billing").await?;
    let (first, kept) = instance(&node, "10.0.0.1:80").await?;
    let (second, leaving) = instance(&node, "10.0.0.2:80").await?;
    let (third, dying) = instance(&node, "10.0.0.3:80").await?;
    shows(&mut billing, &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]).await?;

    let own = billing.get(kept.id()).expect("it is there");
    kept.update(&Instance { weight: 50, ..(*own).clone() }).await?;
    while billing.get(kept.id()).expect("it stays").weight != 50 {
        billing.changed().await?;
    }
    println!("the first takes more of the traffic now");

    leaving.leave().await?;
    shows(&mut billing, &["10.0.0.1:80", "10.0.0.3:80"]).await?;
    // The session of the third ends, as it does when its process is killed: what hung on it goes with it.
    third.close().await?;
    shows(&mut billing, &["10.0.0.1:80"]).await?;

    node.shutdown().await?;
    let unreachable = caller.get("anything").timeout(Duration::from_millis(200)).await;
    assert!(unreachable.is_err(), "the group is away");
    assert_eq!(billing.snapshot().len(), 1, "an old list serves better than none");
    println!("the group is away, and the caller goes on with what it knows");

    let node = start(folder.path(), &address).await?;
    let (fourth, new) = instance(&node, "10.0.0.4:80").await?;
    while billing.get(new.id()).is_none() {
        billing.changed().await?;
    }
    println!("the group is back, and so are its news");
    drop((first, second, fourth, dying));
    node.shutdown().await
}

async fn start(folder: &Path, address: &str) -> Result<Node> {
    Node::builder(folder).listen(address).heartbeat(HEARTBEAT).solo().await
}

/// An instance registers itself. In a program of its own it would do so with its own client, and again on a new session
/// when this one is lost.
async fn instance(node: &Node, address: &str) -> Result<(Session, Registration)> {
    let session = node.client().session(TTL).await?;
    let version = "1.4.2".to_owned();
    let instance = Instance { address: address.to_owned(), version, weight: 10 };
    let registration = session.register("billing", &instance).await?;
    Ok((session, registration))
}

/// Waits until the caller knows these and no others.
async fn shows(billing: &mut Mirror<Instance>, addresses: &[&str]) -> Result<()> {
    loop {
        let found = billing.snapshot();
        let mut found: Vec<&str> = found.values().map(|it| &*it.address).collect();
        found.sort_unstable();
        if found == addresses {
            println!("the caller knows {}", found.join(", "));
            return Ok(());
        }
        billing.changed().await?;
    }
}
