//! One connection that is opened when somebody needs it.
//!
//! ```text
//!          enter                     welcome                  goodbye, broken, idle for long, silent
//!  Idle ──────────▶ Connecting ──────────────▶ Up ─────────────────────────────────────────▶ Idle
//!                    ▲       │ refused
//!                    │       ▼
//!                    └────── Down, until the back-off has passed
//!                     enter
//! ```
//!
//! While an attempt is under way, callers wait for it. During the back-off they are told at once why it failed, so that
//! they can try somebody else. A failed attempt doubles the back-off, a connection resets it; there is no need for
//! chance in it, since it is callers who start attempts, at moments of their own.
//!
//! Invariants
//! - at most one attempt is under way;
//! - a task of an older generation never changes the state of a newer one;
//! - dropping the lane ends its tasks, and with them its sockets. No task holds the lane.

use crate::error::{Error, Reason};
use crate::wire::connection::{Came, Connection, Patience};
use crate::wire::dial::Target;
use crate::wire::frame::Accept;
use crate::wire::limits::{
    BACK_OFF_MAX, BACK_OFF_MIN, CLIENT_IDLE, CONNECT_TIMEOUT, RPC_RESPONSE_BYTES_MAX, STALL,
};
use crate::wire::preamble::{Endpoint, Kind};
use crate::wire::transport::{Ask, ClientTransport};
use bytes::Bytes;
use futures::future::{Either, select};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Calls that may be under way at once; what a server allows on one connection. More wait here for their turn.
const CALLS_IN_FLIGHT_MAX: usize = 1024;

pub(super) type Channel = tarpc::client::Channel<Ask, Bytes>;

/// Whom both lanes of a client call.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) target: Target,
    pub(super) who: Endpoint,
    /// The group at the other end, once it was told: a client never changes the group without noticing.
    pub(super) group: OnceLock<u128>,
}

/// A connection, whether it is open or not.
#[derive(Debug)]
pub(super) struct Lane {
    peer: Arc<Peer>,
    state: Arc<watch::Sender<State>>,
    tasks: Mutex<JoinSet<()>>,
}

/// A channel to call on, and which connection it belongs to.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) channel: Channel,
    came: Came,
    generation: u64,
    state: Arc<watch::Sender<State>>,
}

impl Live {
    /// How often something has come on it.
    pub(super) fn came(&self) -> u64 {
        self.came.count()
    }

    /// Nobody calls on it any more. Whether somebody would have.
    pub(super) fn leave(&self) -> bool {
        self.state.send_if_modified(|state| {
            let is_up = state.generation == self.generation && matches!(state.link, Link::Up(..));
            if is_up {
                state.link = Link::Idle;
            }
            is_up
        })
    }

    /// Waits until nobody calls on it any more.
    pub(super) async fn left(&self) {
        let is_left = |state: &State| {
            state.generation != self.generation || !matches!(state.link, Link::Up(..))
        };
        let _ = self.state.subscribe().wait_for(is_left).await;
    }
}

#[derive(Debug)]
struct State {
    /// Counts the attempts.
    generation: u64,
    /// Failed attempts since the last connection.
    failures: u32,
    link: Link,
}

#[derive(Debug)]
enum Link {
    Idle,
    Connecting,
    Up(Channel, Came),
    Down { error: Error, until: Instant },
}

impl Lane {
    pub(super) fn new(peer: Arc<Peer>) -> Self {
        let state = State { generation: 0, failures: 0, link: Link::Idle };
        Self { peer, state: Arc::new(watch::Sender::new(state)), tasks: Mutex::default() }
    }

    /// The channel to call on; opens the connection if need be.
    ///
    /// # Cancel safety
    /// A dropped wait leaves the attempt to those who still wait, or to the next caller.
    pub(super) async fn enter(&self, runtime: &Handle) -> Result<Live, Error> {
        let mut state = self.state.subscribe();
        // A connection may end right before one looks at it, or right after it was opened.
        for _ in 0..2 {
            self.begin_if_due(runtime);
            let settled = state.wait_for(|state| !matches!(state.link, Link::Connecting)).await;
            let settled = settled.map_err(|_| Error::from(Reason::Closed))?;
            match &settled.link {
                Link::Up(channel, came) => {
                    let (channel, came) = (channel.clone(), came.clone());
                    let (generation, state) = (settled.generation, Arc::clone(&self.state));
                    return Ok(Live { channel, came, generation, state });
                }
                Link::Down { error, .. } => return Err(error.clone()),
                Link::Idle | Link::Connecting => {}
            }
        }
        Err(self.peer.target.unreachable("closed at once"))
    }

    /// Whoever calls from now on does so on a new connection.
    pub(super) fn renew(&self) {
        self.state.send_if_modified(|state| {
            let is_up = matches!(state.link, Link::Up(..));
            if is_up {
                state.link = Link::Idle;
            }
            is_up
        });
    }

    /// Does something in the background, which ends with the lane.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static, runtime: &Handle) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, runtime);
    }

    fn begin_if_due(&self, runtime: &Handle) {
        let mut generation = None;
        self.state.send_if_modified(|state| {
            let due = match &state.link {
                Link::Idle => true,
                Link::Down { until, .. } => *until <= Instant::now(),
                Link::Connecting | Link::Up(..) => false,
            };
            if due {
                state.generation += 1;
                state.link = Link::Connecting;
                generation = Some(state.generation);
            }
            due
        });
        if let Some(generation) = generation {
            let attempt = Attempt { state: self.state.clone(), generation };
            self.spawn(run(self.peer.clone(), attempt), runtime);
        }
    }
}

/// The right of one task to change the state, as long as it is the newest.
struct Attempt {
    state: Arc<watch::Sender<State>>,
    generation: u64,
}

impl Attempt {
    fn set(&self, link: Link) {
        set(&self.state, self.generation, link);
    }

    fn failed(&self, error: Error) {
        let failures = self.state.borrow().failures;
        let until = Instant::now() + back_off(failures);
        self.set(Link::Down { error, until });
    }
}

impl Drop for Attempt {
    /// Nobody waits for ever for a task that was dropped with its runtime.
    fn drop(&mut self) {
        let waited_for = {
            let state = self.state.borrow();
            state.generation == self.generation && matches!(state.link, Link::Connecting)
        };
        if waited_for {
            self.failed(Reason::Closed.into());
        }
    }
}

fn set(state: &watch::Sender<State>, generation: u64, link: Link) {
    state.send_if_modified(|state| {
        let newest = state.generation == generation;
        if newest {
            match &link {
                Link::Up(..) => state.failures = 0,
                Link::Down { .. } => state.failures = state.failures.saturating_add(1),
                Link::Idle | Link::Connecting => {}
            }
            state.link = link;
        }
        newest
    });
}

fn back_off(failures: u32) -> Duration {
    BACK_OFF_MIN.saturating_mul(1 << failures.min(16)).min(BACK_OFF_MAX)
}

/// The life of one connection.
async fn run(peer: Arc<Peer>, attempt: Attempt) {
    let connection = match timeout(CONNECT_TIMEOUT, open(&peer)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return attempt.failed(error),
        Err(_) => return attempt.failed(peer.target.not_in_time()),
    };
    let (goodbye, drained) = oneshot::channel();
    let mut config = tarpc::client::Config::default();
    config.max_in_flight_requests = CALLS_IN_FLIGHT_MAX;
    let came = connection.came();
    let transport = ClientTransport::new(connection, goodbye);
    let tarpc::client::NewClient { client, dispatch } = tarpc::client::new(config, transport);
    attempt.set(Link::Up(client, came));
    // After a goodbye new calls go to a new connection, while the answers under way still come on this one: it ends
    // when the last of their callers lets go of the channel.
    let mut dispatch = pin!(dispatch);
    let ended = match select(dispatch.as_mut(), drained).await {
        Either::Left((ended, _)) => ended,
        Either::Right(_) => {
            attempt.set(Link::Idle);
            dispatch.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(address = peer.target.address, %error, "connection lost");
    }
    attempt.set(Link::Idle);
}

async fn open(peer: &Peer) -> Result<Connection<crate::wire::socket::Socket>, Error> {
    let group = peer.group.get().copied().unwrap_or(peer.who.group);
    let who = Endpoint { group, ..peer.who };
    let (socket, callee) = peer.target.open(Kind::Rpc, who, 0).await?;
    if callee.group != 0 {
        let _ = peer.group.set(callee.group);
    }
    let accept = Accept { payload_max: RPC_RESPONSE_BYTES_MAX, crc_required: false };
    Ok(Connection::new(socket, accept, Patience { stall: STALL, idle: CLIENT_IDLE }))
}
