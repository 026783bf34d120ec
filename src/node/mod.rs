//! A member of a group, inside this process.
//!
//! ```text
//! Node ─┬─ private runtime ─┬─ openraft, its network, leases, reads      an application that blocks its own
//!       │                   └─ listener: Door ─▶ gateway, peer server    executor costs the group no leader
//!       ├─ thread quorate-log, thread quorate-state: LMDB
//!       └─ data folder: LOCK · raft/ (log, vote, identity) · state-000001/ · CURRENT
//! ```
//!
//! [`Node::builder`] makes one; the folder remembers who it is. [`Node::shutdown`] hands the leadership over first, and
//! leaves nothing behind: no thread, task, socket or open file. Dropping a node ends it like a crash does, which is
//! always safe: what was acknowledged is on the disk.
//!
//! Several nodes may live in one process, each with a folder of its own.

mod backup;
mod builder;
mod door;

pub use backup::Backup;
pub use builder::NodeBuilder;

use crate::api::{Call, Response};
use crate::client::home::Home;
use crate::client::{Client, Names};
use crate::error::{Error, Fault, Reason, Result};
use crate::lmdb::{self, FolderLock};
use crate::raft::aside;
use crate::raft::gateway::Gateway;
use crate::raft::member::{Member, Shared};
use crate::raft::state::State;
use crate::types::{NodeId, Status};
use crate::wire::Server;
use door::Door;
use futures::future::{Either, select};
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::time::timeout;
use tower::util::BoxCloneSyncService;

/// How long a call of this node's own clients waits, unless they say otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a shutdown waits for calls under way, and for each environment to close.
const GRACE: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 5000 });

/// A member of a group, running inside this process.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// # let folder = tempfile::tempdir()?;
/// use quorate::Node;
///
/// let node = Node::builder(folder.path()).solo().await?;
/// node.client().put("greeting", "hello").await?;
/// node.shutdown().await?;
///
/// let node = Node::builder(folder.path()).solo().await?; // the same member, with the same data
/// let read = node.client().get("greeting").await?;
/// assert_eq!(read.map(|kv| kv.value).as_deref(), Some(&b"hello"[..]));
/// # node.shutdown().await?;
/// # Ok(()) }) }
/// ```
pub struct Node {
    running: Option<Running>,
    /// Where its clients live. It ends before the runtime does.
    home: Home,
    /// What its clients go by, all of them: the group remembers so many, and no more.
    names: Arc<Names>,
    runtime: PrivateRuntime,
}

/// Everything that a shutdown takes apart.
struct Running {
    member: Member,
    server: Option<Server>,
    door: Arc<Door>,
    lock: Arc<FolderLock>,
}

impl Node {
    /// Begins to describe a node whose data is in `data_dir`. One folder holds one member; its identity is in there, and
    /// never asked for again.
    ///
    /// ```
    /// use quorate::Node;
    /// let builder = Node::builder("data").listen("127.0.0.1:7401");
    /// # let _ = builder;
    /// ```
    pub fn builder(data_dir: impl AsRef<Path>) -> NodeBuilder {
        NodeBuilder::new(data_dir.as_ref().to_owned())
    }

    /// A client that reaches this node without a socket.
    ///
    /// Its watches and sessions are served by the node's own threads. After the node has ended its calls fail with
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// use quorate::ErrorKind;
    ///
    /// let client = node.client();
    /// client.put("greeting", "hello").await?;
    /// node.shutdown().await?;
    /// assert_eq!(client.get("greeting").await.unwrap_err().kind(), ErrorKind::Closed);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn client(&self) -> Client {
        let gateway = Gateway::new(Arc::clone(self.shared()));
        let service = BoxCloneSyncService::<Call, Response, Error>::new(gateway);
        Client::over(service, self.home.clone(), TIMEOUT, Arc::clone(&self.names))
    }

    /// This member's id.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// println!("I am member {}", node.id());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn id(&self) -> NodeId {
        NodeId::from(self.shared().identity.node)
    }

    /// Where it listens, if it does; the port that the system chose, if it was asked to.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// let node = quorate::Node::builder(folder.path()).listen("127.0.0.1:0").solo().await?;
    /// let address = node.local_address().expect("it was told to listen");
    /// assert_ne!(address.port(), 0);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.running().server.as_ref().map(Server::local_address)
    }

    /// What the node knows about itself and its group. Never waits.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// assert_eq!(node.status().id, node.id());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared().status()
    }

    /// Waits until this node knows a leader and has caught up with it.
    ///
    /// # Errors
    ///
    /// The cause, if the node fails meanwhile; what they say, if so many other members refuse to talk to this one that it
    /// cannot take part: its folder is of another group, say, or its [`heartbeat`](NodeBuilder::heartbeat) is another. It
    /// does not give up otherwise: a group that has lost its majority is waited for.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// node.ready().await?;
    /// assert!(node.status().leader.is_some());
    /// # Ok(()) }
    /// ```
    pub async fn ready(&self) -> Result<()> {
        let shared = Arc::clone(self.shared());
        let failed = self.running().member.failed();
        let ready = async move {
            // A node that is refused may know a leader, and never catch up with it.
            let limit = shared.timing.election_max();
            loop {
                let mut caught_up = pin!(async {
                    let position = shared.reads.round().await?;
                    shared.applied(position.index).await
                });
                loop {
                    let done = timeout(limit, caught_up.as_mut()).await;
                    match (done, shared.refused()) {
                        (Ok(Ok(())), _) => return Ok(()),
                        (Ok(Err(error)), _) if !error.is_retryable() => return Err(error),
                        (_, Some(refused)) => return Err(refused),
                        (Ok(Err(_)), None) => break,
                        (Err(_), None) => {}
                    }
                }
                tokio::time::sleep(shared.timing.heartbeat / 4).await;
            }
        };
        self.runtime.run(unless_failed(failed, ready)).await
    }

    /// Completes when the node has failed, with the cause: a failed disk, bytes on it that have changed, or a state that
    /// [differs](Reason::StateDiffers) from that of the group.
    ///
    /// A node that has failed takes no part in the group any more, and its process goes on. Shut it down and start it
    /// again, or replace its folder and let it join as a new member. If its state differed, the start gets that of another
    /// member first.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    ///
    /// ```
    /// # async fn f(node: quorate::Node) {
    /// let cause = node.failed().await;
    /// eprintln!("this member is out of service: {cause}");
    /// # }
    /// ```
    pub async fn failed(&self) -> Error {
        cause(self.running().member.failed()).await
    }

    /// Ends the node in good order: finishes the writes under way, hands the leadership over if it has it, closes its
    /// sockets, and closes the disk.
    ///
    /// # Errors
    ///
    /// If the disk could not be closed within a few seconds, because something still reads from it. Nothing is lost by
    /// that; the folder can be opened again when the process has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future is the same as dropping the node.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// node.shutdown().await?;
    /// # Ok(()) }
    /// ```
    pub async fn shutdown(mut self) -> Result<()> {
        let running = self.running.take().expect("a node runs until it is shut down");
        let _dropped = Abandon(Arc::clone(&running.member.shared.state));
        let done = self.runtime.run(running.shutdown()).await;
        self.home.end();
        self.runtime.end().await;
        done
    }

    /// How this member stands, for a simulation.
    #[cfg(feature = "sim")]
    #[doc(hidden)]
    #[must_use]
    pub fn peek(&self) -> crate::raft::peek::Peek {
        self.running().member.peek()
    }

    /// Committed history from a revision on, and the revision to go on from, for a simulation.
    ///
    /// # Errors
    /// If it was compacted away, or cannot be read.
    #[cfg(feature = "sim")]
    #[doc(hidden)]
    pub fn history(&self, from: u64) -> Result<(Vec<crate::types::Changes>, u64)> {
        self.shared().history(from)
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("a node runs until it is shut down")
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.running().member.shared
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("identity", &self.shared().identity).finish_non_exhaustive()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.home.end();
        drop(self.running.as_ref().map(|it| Abandon(Arc::clone(&it.member.shared.state))));
    }
}

/// Lets go of the state when it is dropped: clients may outlive a node, whose folder must not stay open for them. A state
/// that was closed has nothing to let go of.
struct Abandon(Arc<State>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl Running {
    async fn shutdown(self) -> Result<()> {
        let Self { member, server, door, lock } = self;
        member.hand_over().await;
        door.close();
        // Remote watches would wait for news until the grace is over.
        member.shared.state.interest.close();
        if let Some(server) = server {
            server.shutdown(GRACE).await;
        }
        let (log, state) = member.stop(GRACE).await;
        #[cfg(feature = "sim")]
        crate::sim::let_others_end().await;
        let closed = aside(move || {
            // Both, whatever becomes of the first.
            let closed = [state.close(GRACE), log.close(GRACE)];
            drop(lock);
            closed.into_iter().all(|closed| closed)
        });
        match timeout(GRACE * 3, closed).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false) | Err(_)) | Err(_) => {
                Err(Fault::assertion("the data folder is still being read after the shutdown")
                    .into())
            }
        }
    }
}

/// A runtime that may be dropped anywhere, also inside another one.
struct PrivateRuntime {
    handle: Handle,
    /// Gone once it was told to end; in a simulation there is none of its own.
    own: Option<Runtime>,
}

impl PrivateRuntime {
    fn start() -> Result<Self> {
        #[cfg(feature = "sim")]
        if crate::sim::world().is_some() {
            return Ok(Self { handle: Handle::current(), own: None });
        }
        // None of its tasks does more than a little work at a time, so one thread is enough; and where there are few
        // processors, a second one costs more in waking each other than it can do.
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(if processors <= 2 { 1 } else { 2 })
            .thread_name("quorate")
            .enable_all()
            .build();
        let cannot = |error| Error::from(Fault::disk("cannot start the node's threads", error));
        let runtime = runtime.map_err(cannot)?;
        Ok(Self { handle: runtime.handle().clone(), own: Some(runtime) })
    }

    fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs a future there, whatever executor waits for it. If the waiting is dropped, so is the future.
    async fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn_on(future, &self.handle);
        match tasks.join_next().await {
            Some(Ok(done)) => done,
            Some(Err(error)) if error.is_panic() => {
                Err(Fault::assertion(lmdb::panic_text(&*error.into_panic())).into())
            }
            Some(Err(_)) | None => Err(Reason::Closed.into()),
        }
    }

    /// Ends all tasks and threads, and waits for it.
    async fn end(&mut self) {
        if let Some(runtime) = self.own.take() {
            let (done, ended) = tokio::sync::oneshot::channel();
            // Waiting for a runtime's threads blocks, which an executor's own threads must not.
            let waiter =
                std::thread::Builder::new().name("quorate-end".to_owned()).spawn(move || {
                    runtime.shutdown_timeout(GRACE);
                    let _ = done.send(());
                });
            if waiter.is_ok() {
                let _ = ended.await;
            }
        }
    }
}

impl Drop for PrivateRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.own.take() {
            runtime.shutdown_background();
        }
    }
}

/// The cause of the end of a member, when it has come.
async fn cause(mut failed: watch::Receiver<Option<Error>>) -> Error {
    let failed = failed.wait_for(Option::is_some).await;
    failed.ok().and_then(|cause| cause.clone()).unwrap_or_else(|| Reason::Closed.into())
}

/// What `future` gives, unless the member ends before: it would then wait for what never comes.
async fn unless_failed<T>(
    failed: watch::Receiver<Option<Error>>,
    future: impl Future<Output = Result<T>>,
) -> Result<T> {
    match select(pin!(future), pin!(cause(failed))).await {
        Either::Left((done, _)) => done,
        Either::Right((cause, _)) => Err(cause),
    }
}

/// The folder of the log's environment.
fn log_folder(data: &Path) -> PathBuf {
    data.join("raft")
}

#[cfg(test)]
mod tests;
