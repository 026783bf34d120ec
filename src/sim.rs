//! The seams through which a simulation takes a member's world over: its sockets, and its threads.
//!
//! Behind the feature `sim`, hidden, and no part of the API. A simulation runs whole groups in one thread, each member in
//! a tokio runtime of its own whose clock the simulation moves. Timers and tasks need no seam then, and neither do
//! randomness and the disk, which come from the C library and are taken over there. What is left is here.
//!
//! ```text
//! wire::socket ── connect, bind ──▶ World                            the simulation's thread
//!                                                    ┌────────────────────────────────────────────┐
//! lmdb::Worker ── message ──▶ queue ··▶ pump (a task of the member) ── resume ─┐                   │
//!                                        ▲  sleeps as long as the disk takes   ▼                   │
//!                                        └──────────── yields: idle, or a stall of the disk ── worker thread
//! ```
//!
//! A worker keeps its thread, for LMDB wants its transactions on one, but it runs only while its pump waits for it: at any
//! moment one thread runs, so that a run depends on nothing but its seed.
//!
//! Invariants
//! - without a [`World`] everything is as without the feature, so that tests of both kinds share one build;
//! - a worker that is dropped is run to its end first, as a thread would be;
//! - a thread is in the middle of something only at a [`Point`], where it holds no lock that another one needs.

pub use crate::fault::{Bug, Point};
use futures::future::BoxFuture;
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{EnterGuard, Handle};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// An open connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Sync + Unpin + std::fmt::Debug {}

/// A bound port.
pub trait Port: Send + Sync + std::fmt::Debug {
    /// The next connection.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Box<dyn Io>>>;
    /// Where it listens.
    fn address(&self) -> SocketAddr;
}

/// What members live in instead of the operating system.
pub trait World: Send + Sync + 'static {
    /// Connects the member that runs now.
    fn connect(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Io>>>;
    /// Listens, as the member that runs now.
    fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Port>>;
}

/// Who is asked at the [points](Point) of the code.
pub trait Hook: Send + Sync + 'static {
    /// The member that runs now passes a point.
    fn point(&self, point: Point);
    /// Whether a bug was put back.
    fn bug(&self, bug: Bug) -> bool;
    /// Whether the file of a state is made smaller as soon as a little of it is free: real processes that live for seconds
    /// have no other way to that.
    fn shrinks_early(&self) -> bool {
        false
    }
}

static HOOK: OnceLock<Box<dyn Hook>> = OnceLock::new();

/// From now on `hook` is asked. Said once.
pub fn install_hook(hook: impl Hook) {
    assert!(HOOK.set(Box::new(hook)).is_ok(), "a process has one hook");
}

pub(crate) fn hook() -> Option<&'static dyn Hook> {
    HOOK.get().map(|hook| &**hook)
}

static WORLD: OnceLock<Box<dyn World>> = OnceLock::new();

/// From now on all members of this process live in `world`. Said once, before the first of them.
pub fn install(world: impl World) {
    assert!(WORLD.set(Box::new(world)).is_ok(), "a process has one world");
}

pub(crate) fn world() -> Option<&'static dyn World> {
    WORLD.get().map(|world| &**world)
}

/// Lets the tasks that were told to end come to it: here nobody else runs while somebody waits for a lock.
pub(crate) async fn let_others_end() {
    if world().is_some() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// How often each worker may run while a reader gives way: a flush is written, synced, and shown by another one.
const GIVE_WAY_ROUNDS: usize = 4;

/// Why a worker does not run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It runs, and its pump waits.
    Worker,
    /// It has nothing to do.
    Idle,
    /// Its disk takes so long.
    Stalled(Duration),
    Ended,
}

/// Whose turn it is, of a worker and its pump.
#[derive(Debug)]
pub(crate) struct Baton {
    turn: Mutex<Turn>,
    changed: Condvar,
    runtime: Handle,
    wanted: Notify,
}

thread_local! {
    /// On the thread of a worker.
    static HELD: RefCell<Option<Arc<Baton>>> = const { RefCell::new(None) };
    /// On the simulation's thread: every worker.
    static WORKERS: RefCell<Vec<Weak<Baton>>> = const { RefCell::new(Vec::new()) };
}

/// Lets the workers of the member that runs now run on in the middle of what it does, as threads would. Their disk takes no
/// time meanwhile. On the thread of a worker it does nothing.
pub fn give_way() {
    let Ok(runtime) = Handle::try_current() else { return };
    let workers: Vec<_> = WORKERS.with_borrow_mut(|workers| {
        workers.retain(|worker| worker.strong_count() > 0);
        let workers = workers.iter().filter_map(Weak::upgrade);
        workers.filter(|worker| worker.runtime.id() == runtime.id()).collect()
    });
    for _ in 0..GIVE_WAY_ROUNDS {
        for worker in &workers {
            worker.resume();
        }
    }
}

/// Has the worker whose thread this is wait for its disk. Elsewhere it does nothing.
pub fn stall(how_long: Duration) {
    if let Some(baton) = HELD.with_borrow(Clone::clone) {
        baton.give(Turn::Stalled(how_long));
    }
}

impl Baton {
    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On the worker's thread: lets the others run until it is resumed.
    fn give(&self, why: Turn) {
        let mut turn = self.turn();
        *turn = why;
        self.changed.notify_all();
        while *turn != Turn::Worker {
            turn = self.changed.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs the worker until it yields.
    fn resume(&self) -> Turn {
        let mut turn = self.turn();
        if *turn == Turn::Ended {
            return Turn::Ended;
        }
        *turn = Turn::Worker;
        self.changed.notify_all();
        while *turn == Turn::Worker {
            turn = self.changed.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        *turn
    }

    /// On the worker's thread, before it takes its next messages.
    pub(crate) fn idle(&self) {
        self.give(Turn::Idle);
    }

    /// On the worker's thread, first of all. What it returns lends it the member's clock.
    pub(crate) fn hold(self: &Arc<Self>) -> EnterGuard<'_> {
        HELD.with_borrow_mut(|held| *held = Some(Arc::clone(self)));
        self.give(Turn::Idle);
        self.runtime.enter()
    }

    /// On the worker's thread, last of all.
    pub(crate) fn end(&self) {
        *self.turn() = Turn::Ended;
        self.changed.notify_all();
    }
}

/// Runs a worker, as a task of its member. Dropping it runs the worker to its end.
#[derive(Debug)]
pub(crate) struct Pump {
    baton: Arc<Baton>,
    task: JoinSet<()>,
}

impl Pump {
    /// `None` without a world.
    pub(crate) fn new() -> Option<Self> {
        world()?;
        let baton = Arc::new(Baton {
            turn: Mutex::new(Turn::Worker),
            changed: Condvar::new(),
            runtime: Handle::current(),
            wanted: Notify::new(),
        });
        Some(Self { baton, task: JoinSet::new() })
    }

    pub(crate) fn baton(&self) -> Arc<Baton> {
        Arc::clone(&self.baton)
    }

    /// The worker's thread has been started.
    pub(crate) fn start(&mut self) {
        let mut turn = self.baton.turn();
        while *turn == Turn::Worker {
            turn = self.baton.changed.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        drop(turn);
        let baton = self.baton();
        WORKERS.with_borrow_mut(|workers| workers.push(Arc::downgrade(&baton)));
        self.task.spawn_on(pump(baton), &self.baton.runtime);
    }

    /// There is a message.
    pub(crate) fn wake(&self) {
        self.baton.wanted.notify_one();
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        let is_own = HELD
            .with_borrow(|held| held.as_ref().is_some_and(|held| Arc::ptr_eq(held, &self.baton)));
        // A worker that drops its own sender finds that out when it looks for the next message.
        while !is_own && self.baton.resume() != Turn::Ended {}
    }
}

/// Runs a worker until it has nothing to do when its member's runtime ends: a thread would not end with that, and what
/// waits for it may be all that keeps it.
struct Drained(Arc<Baton>);

impl Drop for Drained {
    fn drop(&mut self) {
        while let Turn::Stalled(_) = self.0.resume() {}
    }
}

async fn pump(baton: Arc<Baton>) {
    let _drained = Drained(Arc::clone(&baton));
    loop {
        match baton.resume() {
            Turn::Stalled(how_long) => tokio::time::sleep(how_long).await,
            Turn::Ended => return,
            Turn::Idle | Turn::Worker => baton.wanted.notified().await,
        }
    }
}
