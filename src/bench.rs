//! A door for the micro-benchmarks in `bench/`: the parts of a write and of a read, each alone.
//!
//! Behind the feature `bench`, hidden, and no part of the API: whatever is here may change or go in any version. The
//! benchmarks measure what a member does, and a member does it with types that nobody else may see. So each is wrapped
//! here, and made before the clock runs.
//!
//! ```text
//! a write    Request ──▶ bytes ──▶ framed ══▶ unframed ──▶ Request ──▶ Entry ──▶ bytes ──▶ State::apply(&Batch) ··▶ flush
//! a read     State::ask(&Question) ──▶ Answer               a view is opened, asked once, and dropped
//! a watch    State::events(range, from)                     the same, step after step, up to the newest revision
//! ```
//!
//! It computes nothing of its own, and checks only that what is measured has happened.
//!
//! Invariant: batches are applied in the order in which they were made, for their entries are numbered.

use crate::api::{self, Command, Cursor, Position, Proposal};
use crate::codec::layout::Layout;
use crate::error::{Error, Reason, Result};
use crate::lmdb::Sync;
use crate::mvcc::{self, Body, Core, LogPosition, Moment, Store, View};
use crate::raft::state::FLUSH_BYTES;
use crate::raft::{self, format};
use crate::types::{KeyRange, Op, OpResult, Revision, TxnOp, TxnOutcome};
use crate::wire;
use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Address space for a state. Far more than any benchmark fills.
const MAP_BYTES: usize = 16 << 30;
/// How many bytes a client takes in one step of its watches.
const STEP_BYTES: usize = 1024 * 1024;

/// A state in a folder, as a member keeps it.
#[derive(Debug)]
pub struct State {
    core: Mutex<Core>,
    moment: ArcSwap<Moment>,
    /// The index of the last entry that was made.
    index: AtomicU64,
}

impl State {
    /// Makes an empty state. If it is durable, each batch is flushed as a member flushes it; else never.
    pub fn create(folder: &Path, is_durable: bool) -> Result<Self> {
        let sync = if is_durable { Sync::LastCommitMayBeLost } else { Sync::Never };
        let core = Core::new(Store::open_with(folder, MAP_BYTES, sync)?, 0)?;
        let moment = ArcSwap::from_pointee(core.moment());
        Ok(Self { core: Mutex::new(core), moment, index: AtomicU64::new(0) })
    }

    /// Entries of one put each.
    pub fn batch(&self, puts: impl IntoIterator<Item = (Bytes, Bytes)>) -> Batch {
        let entry = |(key, value)| {
            let index = self.index.fetch_add(1, Ordering::Relaxed) + 1;
            let position = LogPosition { term: 1, node: 1, index };
            mvcc::Entry { position, body: Body::Command(Arc::new(put(key, value))) }
        };
        Batch(puts.into_iter().map(entry).collect())
    }

    /// Applies a batch in memory, shows it, and returns the newest revision. What has gathered is flushed as often as a
    /// member does it for its size.
    pub fn apply(&self, batch: &Batch) -> Result<u64> {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let applied = core.apply(&batch.0)?;
        self.moment.store(Arc::new(core.moment()));
        let is_full = core.bytes() >= FLUSH_BYTES;
        drop(core);
        if is_full {
            self.flush()?;
        }
        let refused = applied.outcomes.into_iter().flatten().find_map(std::result::Result::err);
        refused.map_or(Ok(applied.revision.get()), |reason| Err(reason.into()))
    }

    /// Flushes what was applied.
    pub fn flush(&self) -> Result<()> {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut flush) = core.freeze() {
            flush.write()?;
            drop(core.flushed(flush.take_recent()));
            self.moment.store(Arc::new(core.moment()));
        }
        Ok(())
    }

    fn view(&self) -> Result<View> {
        Ok(View::open(|| Ok(self.moment.load_full()))?)
    }

    /// Answers a question from a view of its own.
    pub fn ask(&self, question: &Question) -> Result<Answer> {
        Ok(Answer(mvcc::read(|| Ok(self.moment.load_full()), &question.0)??))
    }

    /// Reads the events of a range from a revision on, in steps as a watch takes them. Returns how many there were.
    pub fn events(&self, range: &KeyRange, from: u64) -> Result<usize> {
        let next = Position::start_of(Revision::from(from));
        let mut cursor =
            Cursor { range: range.clone(), next, puts: true, deletes: true, prev: false };
        let view = self.view()?;
        let mut count = 0;
        loop {
            let step = view.events(&cursor, view.revision(), STEP_BYTES)??;
            count += step.changes.iter().map(|changes| changes.events.len()).sum::<usize>();
            cursor.next = step.next;
            if !step.more {
                return Ok(count);
            }
        }
    }
}

/// Entries of the log that are applied together.
#[derive(Debug)]
pub struct Batch(Vec<mvcc::Entry>);

/// A transaction that only reads.
#[derive(Debug)]
pub struct Question(TxnOp);

impl Question {
    /// What a key holds.
    #[must_use]
    pub fn get(key: &[u8]) -> Self {
        Self::of(Op::get(key))
    }

    /// The first keys of a range with their values; no limit is 0.
    #[must_use]
    pub fn range(range: KeyRange, limit: u32) -> Self {
        Self::of(Op::range(range).limit(limit))
    }

    /// How many keys a range has.
    #[must_use]
    pub fn count(range: KeyRange) -> Self {
        Self::of(Op::range(range).count_only())
    }

    fn of(op: Op) -> Self {
        Self(TxnOp::single(op.0))
    }
}

/// The answer to a [`Question`].
#[derive(Debug)]
pub struct Answer(TxnOutcome);

impl Answer {
    /// How many keys it shows, and how many its range has.
    #[must_use]
    pub fn keys(&self) -> (usize, u64) {
        match self.0.results.first() {
            Some(OpResult::Get(found)) => (usize::from(found.is_some()), found.iter().len() as u64),
            Some(OpResult::Range(page)) => (page.entries.len(), page.count),
            _ => (0, 0),
        }
    }
}

/// A call that proposes puts, as it travels to a gateway.
#[derive(Debug)]
pub struct Request(api::Request);

impl Request {
    /// A request of one put.
    #[must_use]
    pub fn put(key: Bytes, value: Bytes) -> Self {
        Self(api::Request::Propose { proposals: vec![put(key, value)], forwarded: false })
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.0.write_body(&mut out);
        out
    }

    /// The request that proposes, from its bytes.
    pub fn decode(bytes: Bytes) -> Result<Self> {
        api::Request::read_body(1, bytes).map(Self).map_err(|_| malformed("request"))
    }
}

/// An entry of the log, as it is written to the disk and sent to members.
#[derive(Debug)]
pub struct Entry(raft::Entry);

impl Entry {
    /// An entry of one put.
    #[must_use]
    pub fn put(key: Bytes, value: Bytes) -> Self {
        let log_id = format::log_id(LogPosition { term: 1, node: 1, index: 1 });
        let payload = raft::EntryPayload::Normal(put(key, value).into());
        Self(raft::Entry { log_id, payload })
    }

    /// Its bytes. Those of the proposal in it are there already.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        self.0.to_bytes()
    }

    /// An entry, and the proposal in it, from its bytes.
    pub fn decode(bytes: Bytes) -> Result<Self> {
        raft::Entry::from_bytes(bytes).map(Self).map_err(|_| malformed("entry"))
    }
}

/// Appends the frame of a request with this payload to `out`.
pub fn framed(payload: Bytes, out: &mut BytesMut) {
    wire::framed(payload, out);
}

/// Takes a frame from the front of `buffer`, checks its checksum, and returns its payload.
pub fn unframed(buffer: &mut BytesMut) -> Result<Bytes> {
    wire::unframed(buffer).ok_or_else(|| malformed("frame"))
}

fn put(key: Bytes, value: Bytes) -> Proposal {
    Command::Txn(TxnOp::single(Op::put(key, value).0)).into()
}

fn malformed(what: &str) -> Error {
    Reason::Malformed { what: what.to_owned() }.into()
}
