//! The thread that writes the log.
//!
//! ```text
//! queue   append append vote truncate append │ …
//!         └────── one batch, one sync ───────┘   then everybody who waits hears of it, in order
//! ```
//!
//! Jobs that nobody waits for (commit index, purge, truncate) do not cause a sync: they ride on the next job that somebody
//! does wait for, in their order.

use super::super::{Entry, LogId, Types, Vote};
use super::disk::{Disk, Writing};
use super::record::Meta;
use super::{Flushed, Shared};
use crate::codec::layout::Layout;
use crate::error::Fault;
use crate::fault::{Bug, Point, bug, point};
use crate::lmdb;
use bytes::Bytes;
use openraft::storage::IOFlushed;
use std::convert::Infallible;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use tokio::sync::{oneshot, watch};

/// Jobs that wait for somebody to need a sync, at most.
const RIDING_MAX: usize = 1024;
/// What is written at once, about: more goes into a batch of its own.
const BATCH_BYTES: usize = 8 << 20;

/// A piece of work for the thread.
pub(super) enum Job {
    Vote {
        vote: Vote,
        done: oneshot::Sender<Result<(), Fault>>,
    },
    Append {
        job: u64,
        entries: Vec<Entry>,
        flushed: IOFlushed<Types>,
    },
    Truncate {
        from: u64,
    },
    Purge {
        upto: LogId,
    },
    Committed {
        committed: LogId,
    },
    Value {
        name: Meta,
        value: Bytes,
        done: oneshot::Sender<Result<(), Fault>>,
    },
    Barrier {
        done: oneshot::Sender<Result<(), Fault>>,
    },
    /// Something to be held as long as this thread may write.
    Hold {
        what: Arc<dyn Send + Sync>,
    },
}

impl Job {
    /// Whether nobody waits for it.
    fn rides(&self) -> bool {
        matches!(
            self,
            Self::Truncate { .. } | Self::Purge { .. } | Self::Committed { .. } | Self::Hold { .. }
        )
    }

    fn write(&self, writing: &mut Writing) {
        match self {
            Self::Vote { vote, .. } => writing.value(Meta::Vote, vote.to_bytes()),
            Self::Append { entries, .. } => entries.iter().for_each(|entry| writing.entry(entry)),
            Self::Truncate { from } => writing.truncate(*from),
            Self::Purge { upto } => writing.purge(upto),
            Self::Committed { committed } => writing.value(Meta::Committed, committed.to_bytes()),
            Self::Value { name, value, .. } => writing.value(*name, value.clone()),
            Self::Barrier { .. } | Self::Hold { .. } => {}
        }
        point(match self {
            Self::Vote { .. } => Point::LogWritesVote,
            Self::Append { .. } => Point::LogWritesEntries,
            Self::Truncate { .. } => Point::LogWritesTruncation,
            Self::Purge { .. } => Point::LogWritesPurge,
            Self::Committed { .. } => Point::LogWritesCommitted,
            Self::Value { .. } | Self::Barrier { .. } | Self::Hold { .. } => Point::LogWritesRecord,
        });
    }
}

/// Goes when the thread has ended.
pub(super) type Alive = mpsc::Sender<Infallible>;

/// What the thread holds as long as it may write; let go of in this order.
struct Held {
    what: Vec<Arc<dyn Send + Sync>>,
    _alive: Alive,
}

impl Held {
    /// A method, so that the closure below takes all of it, and not one field.
    fn take(&mut self, what: Arc<dyn Send + Sync>) {
        self.what.push(what);
    }
}

/// The handler of the thread.
pub(super) fn writer(
    mut disk: Disk,
    shared: Arc<Mutex<Shared>>,
    flushed: watch::Sender<Flushed>,
    alive: Alive,
) -> impl FnMut(Vec<Job>) + Send {
    let mut riding: Vec<Job> = Vec::new();
    let mut failed: Option<Fault> = None;
    let mut held = Held { what: Vec::new(), _alive: alive };
    move |batch| {
        for job in batch {
            match job {
                Job::Hold { what } => held.take(what),
                job => riding.push(job),
            }
        }
        if riding.len() < RIDING_MAX && riding.iter().all(Job::rides) {
            return;
        }
        point(Point::LogBatch);
        let mut jobs = mem::take(&mut riding);
        if bug(Bug::AcknowledgeBeforeSync) {
            acknowledge_too_early(&mut jobs);
        }
        let written = match &failed {
            Some(fault) => Err(fault.clone()),
            None => write(&mut disk, &shared, &jobs),
        };
        match &written {
            Ok(()) => {
                point(Point::LogSynced);
                if let Some(last) = last_append(&jobs) {
                    flushed.send_modify(|flushed| flushed.job = last);
                }
            }
            Err(fault) => {
                // A sync that failed may have lost what was written before it, so nothing that follows is believed.
                failed = Some(fault.clone());
                flushed.send_modify(|flushed| flushed.failed = Some(fault.clone()));
            }
        }
        point(Point::LogSettled);
        let last = last_append(&jobs).unwrap_or(0);
        let waiters = lock(&shared).let_go(&written, last);
        waiters.into_iter().for_each(|waiter| waiter(written.clone()));
        answer(jobs, &written);
        point(Point::LogAnswered);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn last_append(jobs: &[Job]) -> Option<u64> {
    jobs.iter().rev().find_map(|job| match job {
        Job::Append { job, .. } => Some(*job),
        _ => None,
    })
}

/// For [`Bug::AcknowledgeBeforeSync`]: tells openraft of entries that are not on the disk.
fn acknowledge_too_early(jobs: &mut [Job]) {
    for job in jobs {
        if let Job::Append { flushed, .. } = job {
            mem::replace(flushed, IOFlushed::noop()).io_completed(Ok(()));
        }
    }
}

/// Writes all jobs and settles them. A panic counts as a failure, so that nobody waits for an answer that never comes.
fn write(disk: &mut Disk, shared: &Mutex<Shared>, jobs: &[Job]) -> Result<(), Fault> {
    let write = || {
        let (mut writing, mut begin) = (Writing::default(), 0);
        for (end, job) in (1..).zip(jobs) {
            job.write(&mut writing);
            if writing.bytes() < BATCH_BYTES && end < jobs.len() {
                continue;
            }
            let values = writing.values().clone();
            let steps = disk.write(mem::take(&mut writing))?;
            let released = lock(shared).written(steps, values, last_append(&jobs[begin..end]))?;
            disk.remove(released)?;
            begin = end;
        }
        Ok(())
    };
    catch_unwind(AssertUnwindSafe(write))
        .unwrap_or_else(|panic| Err(Fault::assertion(lmdb::panic_text(&*panic))))
}

/// Tells everybody who waits. Of openraft's callbacks the newest speaks for all before it.
fn answer(jobs: Vec<Job>, written: &Result<(), Fault>) {
    let io = || written.clone().map_err(super::io_error);
    let mut newest = None;
    for job in jobs {
        match job {
            Job::Append { flushed: flushed @ IOFlushed::Notify(_), .. } => newest = Some(flushed),
            Job::Append { flushed, .. } => flushed.io_completed(io()),
            Job::Vote { done, .. } | Job::Value { done, .. } | Job::Barrier { done } => {
                // Whoever asked may have gone.
                let _ = done.send(written.clone());
            }
            Job::Truncate { .. } | Job::Purge { .. } | Job::Committed { .. } | Job::Hold { .. } => {
            }
        }
    }
    if let Some(newest) = newest {
        newest.io_completed(io());
    }
}
