//! gRPC requests that go to whichever instances of a service there are.
//!
//! `cargo run -p quorate-example-balance` starts a group of one in a temporary folder, three instances of a greeter, and a
//! caller whose channel balances over the instances that it discovers.
//!
//! ```text
//! instance ── register ──▶ the group ── discover ──▶ Mirror::changes ──▶ tonic's balancer ──▶ instance
//! ```
//!
//! The claim: all instances get requests; one that leaves gets none any more, and no request fails for it; and when the
//! group is away the balancer goes on with the instances that it knows.

#![allow(clippy::print_stdout)] // an example shows what it does

mod greeter;

use futures::StreamExt;
use greeter::{Caller, Greeter};
use quorate::recipes::Registration;
use quorate::{Client, Node};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint, channel};
use tower::discover::Change;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let node = Node::builder(folder.path()).solo().await?;
    let mut instances = Vec::new();
    for name in ["Ada", "Grace", "Edsger"] {
        instances.push(Instance::start(&node.client(), name).await?);
    }
    let mut tasks = JoinSet::new();
    let (channel, mut known) = channel(&node.client(), &mut tasks).await?;
    let mut caller = Caller::new(channel);
    while known.borrow_and_update().len() < 3 {
        known.changed().await?;
    }

    let answered = ask(&mut caller, 300).await?;
    println!("three instances:   {answered:?}");
    assert_eq!(answered.len(), 3, "all of them get requests");

    // It is still there for those who have not heard that it goes.
    let Instance { name, registration, shutdown, server } =
        instances.pop().expect("there are three");
    registration.leave().await?;
    while known.borrow_and_update().len() > 2 {
        ask(&mut caller, 10).await?;
    }
    ask(&mut caller, 10).await?;
    let _ = shutdown.send(());
    server.join_all().await;
    let answered = ask(&mut caller, 300).await?;
    println!("{name} has left:   {answered:?}");
    assert!(answered.len() == 2 && !answered.contains_key(name), "and nobody noticed");

    node.shutdown().await?;
    let answered = ask(&mut caller, 300).await?;
    println!("no group:          {answered:?}");
    assert_eq!(answered.len(), 2, "what is known stays");
    Ok(())
}

/// A channel over the instances that there are, whichever they are, and which of them it has been told of.
async fn channel(
    client: &Client,
    tasks: &mut JoinSet<()>,
) -> Result<(Channel, watch::Receiver<BTreeSet<String>>)> {
    let (told, known) = watch::channel(BTreeSet::new());
    let (channel, endpoints) = Channel::balance_channel(16);
    let mut changes = client.discover::<String>("greeter").await?.changes();
    tasks.spawn(async move {
        while let Some(Ok(change)) = changes.next().await {
            // The balancer has a type of its own for the same.
            let (id, is_there, change) = match change {
                Change::Insert(id, address) => {
                    match Endpoint::try_from(format!("http://{address}")) {
                        Ok(endpoint) => (id.clone(), true, channel::Change::Insert(id, endpoint)),
                        Err(error) => {
                            println!("{id} has registered under {address}: {error}");
                            continue;
                        }
                    }
                }
                Change::Remove(id) => (id.clone(), false, channel::Change::Remove(id)),
            };
            if endpoints.send(change).await.is_err() {
                return;
            }
            told.send_modify(|known| {
                let _ = if is_there { known.insert(id) } else { known.remove(&id) };
            });
        }
    });
    Ok((channel, known))
}

/// Asks so often, and counts who has answered.
async fn ask(caller: &mut Caller, times: usize) -> Result<BTreeMap<String, usize>> {
    let mut answered = BTreeMap::new();
    for _ in 0..times {
        *answered.entry(caller.who().await?).or_default() += 1;
    }
    Ok(answered)
}

/// An instance of the service, as a process of its own would run it.
struct Instance {
    name: &'static str,
    registration: Registration,
    shutdown: oneshot::Sender<()>,
    server: JoinSet<()>,
}

impl Instance {
    async fn start(client: &Client, name: &'static str) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0").await?;
        let address = port.local_addr()?.to_string();
        let (shutdown, told) = oneshot::channel();
        let mut server = JoinSet::new();
        server.spawn(Greeter::new(name).serve(port, told));
        // Only now, for from now on there will be requests.
        let session = client.session(Duration::from_secs(10)).await?;
        let registration = session.register("greeter", &address).await?;
        Ok(Self { name, registration, shutdown, server })
    }
}
