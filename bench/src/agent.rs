//! A process that carries out jobs: a member with its callers inside, or callers alone.
//!
//! ```text
//! compare ── job, a line of JSON ──▶ agent ── callers ──▶ its own member, or members elsewhere
//!         ◀── reply, a line ────────
//! ```
//!
//! It ends when its standard input does, so nothing outlives a controller that was killed.

use crate::etcd::Etcd;
#[cfg(feature = "hiqlite")]
use crate::hiqlite::Hiqlite;
use crate::job::{Job, Reply};
use crate::ours::Quorate;
use crate::store::{Error, Result, Store};
use crate::work::Worker;
use quorate::{Client, Node};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// Who an agent is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// A member of a quorate group, with callers in its process.
    Member {
        folder: PathBuf,
        address: String,
        founders: Vec<String>,
        heartbeat_ms: u64,
        history: Option<Duration>,
    },
    /// Remote callers of a quorate group; the leader's address comes first.
    Remote { addresses: Vec<String>, connections: usize },
    /// Callers of an etcd cluster; the leader's address comes first.
    Etcd { addresses: Vec<String>, connections: usize },
    /// A member of a hiqlite group, with callers in its process.
    Hiqlite(HiqliteMember),
}

/// One of the members of a hiqlite group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HiqliteMember {
    pub(crate) folder: PathBuf,
    /// Which of the members this is, from 0.
    pub(crate) index: usize,
    /// Of all members: for requests, and for Raft.
    pub(crate) ports: Vec<(u16, u16)>,
    /// What its callers use.
    pub(crate) part: Part,
}

/// The two things that hiqlite is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    Cache,
    Sql,
}

/// Runs until standard input ends.
pub(crate) fn run(role: &str) -> Result {
    let role: Role = serde_json::from_str(role)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let ran = runtime.block_on(serve(role));
    if let Err(error) = &ran {
        say(&Reply::Failed(error.to_string()))?;
    }
    // Callers that still wait for a group that is gone would be waited for.
    runtime.shutdown_background();
    ran
}

async fn serve(role: Role) -> Result {
    match role {
        Role::Member { folder, address, founders, heartbeat_ms, history } => {
            let node = Node::builder(folder)
                .listen(address)
                .heartbeat(Duration::from_millis(heartbeat_ms));
            let node = match history {
                Some(time) => node.keep_history(time),
                None => node,
            };
            let node = node.form(founders).await?;
            obey(vec![vec![Quorate(node.client())]], Here::Quorate(Box::new(node))).await
        }
        Role::Remote { addresses, connections } => {
            let connect = async |address: &str| Ok(Quorate(Client::connect([address]).await?));
            let stores = connect_all(&addresses, connections, connect).await?;
            obey(stores, Here::Nobody).await
        }
        Role::Etcd { addresses, connections } => {
            let connect = async |address: &str| Etcd::connect(address).await;
            let stores = connect_all(&addresses, connections, connect).await?;
            obey(stores, Here::Nobody).await
        }
        #[cfg(feature = "hiqlite")]
        Role::Hiqlite(member) => {
            let store = Hiqlite::start(&member).await?;
            obey(vec![vec![store.clone()]], Here::Hiqlite(store)).await
        }
        #[cfg(not(feature = "hiqlite"))]
        Role::Hiqlite(_) => Err("this was built without the feature `hiqlite`".into()),
    }
}

/// The member in this process.
enum Here {
    Nobody,
    Quorate(Box<Node>),
    #[cfg(feature = "hiqlite")]
    Hiqlite(Hiqlite),
}

impl Here {
    async fn leads(&self) -> Result<bool> {
        match self {
            Self::Nobody => Err("no member is here".into()),
            Self::Quorate(node) => {
                let status = node.status();
                Ok(status.leader == Some(status.id))
            }
            #[cfg(feature = "hiqlite")]
            Self::Hiqlite(member) => member.leads().await,
        }
    }

    async fn shut_down(self) -> Result {
        match self {
            Self::Nobody => Ok(()),
            Self::Quorate(node) => Ok(node.shutdown().await?),
            #[cfg(feature = "hiqlite")]
            Self::Hiqlite(member) => member.shut_down().await,
        }
    }
}

/// So many connections to each address.
async fn connect_all<S: Store>(
    addresses: &[String],
    connections: usize,
    connect: impl AsyncFn(&str) -> Result<S>,
) -> Result<Vec<Vec<S>>> {
    let mut stores = Vec::new();
    for address in addresses {
        let mut connected = Vec::new();
        for _ in 0..connections {
            connected.push(connect(address).await?);
        }
        stores.push(connected);
    }
    Ok(stores)
}

/// Carries out jobs until there are no more.
async fn obey<S: Store>(stores: Vec<Vec<S>>, here: Here) -> Result {
    let (jobs, mut todo) = mpsc::unbounded_channel();
    // Reading blocks; the thread ends with the process.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(std::io::Result::ok) {
            if jobs.send(line).is_err() {
                return;
            }
        }
    });
    let mut worker = Worker::new(stores);
    say(&Reply::Ready)?;
    while let Some(line) = todo.recv().await {
        match serde_json::from_str(&line)? {
            Job::ShutDown => {
                drop(worker);
                here.shut_down().await?;
                return say(&Reply::Done(Default::default()));
            }
            Job::Leads => say(&Reply::Leads(here.leads().await?))?,
            job => {
                let done = worker.carry_out(job).await;
                say(
                    &done.map_or_else(|error: Error| Reply::Failed(error.to_string()), Reply::Done)
                )?;
            }
        }
    }
    Ok(())
}

fn say(reply: &Reply) -> Result {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, reply)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}
