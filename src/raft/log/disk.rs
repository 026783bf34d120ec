//! The log's tables in LMDB, and the thread that writes them.
//!
//! Jobs that nobody waits for (commit index, purge, truncate) do not cause an fsync: they ride on the next job that
//! somebody does wait for, in their order.

use super::super::{Entry, LogId, Vote};
use super::{Flushed, Shared};
use crate::codec::layout::Layout;
use crate::error::Fault;
use crate::fault::{Bug, Point, bug, point};
use crate::lmdb::{self, Env, ReadTxn};
use bytes::Bytes;
use heed::byteorder::BigEndian;
use heed::types::{Bytes as Raw, Str, U64};
use heed::{CommitOrAbort, Database, PutFlags, RoTxn, RwTxn};
use openraft::storage::IOFlushed;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{oneshot, watch};

/// The format of both tables. A newer one is refused, an older one would be converted here.
const FORMAT: u16 = 1;
/// How much of the log is checked when it is opened.
const VERIFIED_BYTES: usize = 64 << 20;
/// Jobs that wait for somebody to need an fsync, at most.
const RIDING_MAX: usize = 1024;

/// The names of the records in the table `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meta {
    Format,
    Vote,
    Committed,
    Purged,
    /// Who this member is.
    Identity,
    /// Who founded the group.
    Founding,
}

impl Meta {
    pub(super) const ALL: [Self; 6] =
        [Self::Format, Self::Vote, Self::Committed, Self::Purged, Self::Identity, Self::Founding];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Vote => "vote",
            Self::Committed => "committed",
            Self::Purged => "purged",
            Self::Identity => "identity",
            Self::Founding => "founding",
        }
    }
}

/// A piece of work for the writer thread.
pub(super) enum Job {
    Vote {
        vote: Vote,
        done: oneshot::Sender<Result<(), Fault>>,
    },
    Append {
        job: u64,
        entries: Vec<Entry>,
        flushed: IOFlushed<super::super::Types>,
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
    Meta {
        name: Meta,
        value: Bytes,
        done: oneshot::Sender<Result<(), Fault>>,
    },
    Barrier {
        done: oneshot::Sender<Result<(), Fault>>,
    },
    /// Something to be held as long as this thread may write.
    Hold {
        what: Arc<dyn Send + std::marker::Sync>,
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
}

/// The two tables.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    log: Database<'static, U64<BigEndian>, Raw>,
    meta: Database<'static, Str, Raw>,
}

impl Disk {
    pub(super) fn open(folder: &Path, map_bytes: usize) -> Result<(Env, Self), Fault> {
        Self::open_with(folder, map_bytes, lmdb::Sync::Strict)
    }

    pub(super) fn open_with(
        folder: &Path,
        map_bytes: usize,
        sync: lmdb::Sync,
    ) -> Result<(Env, Self), Fault> {
        let options = lmdb::Options { map_bytes, tables: 2, readers: 128, sync };
        let env = lmdb::open(folder, options)?;
        let is_new = !lmdb::has_tables(&env);
        let made = env.create_databases_and_commit(env.write_txn()?, |opener, txn| {
            if is_new {
                let log = opener.create_database(txn, Some("log"))?;
                let meta = opener.create_database(txn, Some("meta"))?;
                return Ok(CommitOrAbort::<_, ()>::Commit((log, meta)));
            }
            let lost = |table| Fault::corrupt(format!("the log's table {table:?} is missing"));
            let log = opener.open_database(txn, Some("log"))?.ok_or_else(|| lost("log"))?;
            let meta = opener.open_database(txn, Some("meta"))?.ok_or_else(|| lost("meta"))?;
            Ok::<_, Fault>(CommitOrAbort::Commit((log, meta)))
        });
        let (log, meta) = made?.unwrap_commit();
        let disk = Self { log, meta };
        let mut txn = env.write_txn()?;
        disk.check_format(&mut txn)?;
        disk.check_records(&txn)?;
        txn.commit()?;
        Ok((env, disk))
    }

    fn check_format(&self, txn: &mut RwTxn<'_>) -> Result<(), Fault> {
        let Some(bytes) = self.read_meta(txn, Meta::Format)? else {
            return self.write_meta(txn, Meta::Format, &FORMAT.to_bytes());
        };
        match u16::from_bytes(bytes) {
            Ok(FORMAT) => Ok(()),
            Ok(other) => Err(Fault::format(format!(
                "the log has format {other}, this version knows {FORMAT}"
            ))),
            Err(_) => Err(Fault::corrupt("the log's format number")),
        }
    }

    /// A record whose name has changed would be missed and made anew: a vote given twice, another identity.
    pub(super) fn check_records(&self, txn: &RoTxn<'_>) -> Result<(), Fault> {
        for row in self.meta.iter(txn)? {
            let (name, _) = row?;
            let known = Meta::ALL.into_iter().find(|known| known.name() == name);
            let unknown = || Fault::corrupt(format!("the log's record {name:?} is none of ours"));
            self.read_meta(txn, known.ok_or_else(unknown)?)?;
        }
        Ok(())
    }

    /// What is on the disk, as the state to begin with.
    pub(super) fn load(&self, env: &Env) -> Result<Shared, Fault> {
        let txn = env.read_txn()?;
        let purged: Option<LogId> = self.read_record(&txn, Meta::Purged)?;
        let next = purged.map_or(0, |id| id.index + 1);
        let last = match self.log.last(&txn)? {
            Some((index, record)) if index >= next => Some(check_entry(index, record)?.log_id),
            Some(_) | None => purged,
        };
        if let (Some((first, _)), Some(last)) = (self.log.first(&txn)?, last)
            && last.index >= next
        {
            let whole = last.index - first + 1 == self.log.len(&txn)?;
            if first > next && purged.is_some() || !whole {
                return Err(Fault::corrupt("the log has a hole"));
            }
        }
        let shared = Shared {
            vote: self.read_record(&txn, Meta::Vote)?,
            committed: self.read_record(&txn, Meta::Committed)?,
            purged,
            last,
            ..Shared::default()
        };
        self.verify_newest(&txn)?;
        Ok(shared)
    }

    /// Reads the newest entries: bytes that changed on the disk are better found now than by a follower's question. The
    /// rest are checked when they are read.
    fn verify_newest(&self, txn: &ReadTxn<'_>) -> Result<(), Fault> {
        let mut bytes = 0;
        for row in self.log.rev_iter(txn)? {
            let (index, record) = row?;
            check_entry(index, record)?;
            bytes += record.len();
            if bytes > VERIFIED_BYTES {
                break;
            }
        }
        Ok(())
    }

    /// The bytes of all pages that the entries take.
    pub(super) fn bytes(&self, env: &Env) -> Result<u64, Fault> {
        let txn = env.read_txn()?;
        let stat = self.log.stat(&txn)?;
        let pages = stat.branch_pages + stat.leaf_pages + stat.overflow_pages;
        Ok(pages as u64 * u64::from(stat.page_size))
    }

    fn read_record<T: Layout>(&self, txn: &ReadTxn<'_>, name: Meta) -> Result<Option<T>, Fault> {
        let Some(bytes) = self.read_meta(txn, name)? else { return Ok(None) };
        let corrupt = |_| Fault::corrupt(format!("the log's record {:?}", name.name()));
        T::from_bytes(bytes).map(Some).map_err(corrupt)
    }

    pub(super) fn read_meta(&self, txn: &RoTxn<'_>, name: Meta) -> Result<Option<Bytes>, Fault> {
        let Some(record) = self.meta.get(txn, name.name())? else { return Ok(None) };
        let value = checked(name.name().as_bytes(), record);
        let corrupt = || {
            Fault::corrupt(format!("the log's record {:?} has changed on the disk", name.name()))
        };
        value.map(|value| Some(Bytes::copy_from_slice(value))).ok_or_else(corrupt)
    }

    pub(super) fn write_meta(
        &self,
        txn: &mut RwTxn<'_>,
        name: Meta,
        value: &[u8],
    ) -> Result<(), Fault> {
        let record = sealed(name.name().as_bytes(), value.to_vec());
        Ok(self.meta.put(txn, name.name(), &record)?)
    }

    /// Reads entries, without a gap, until `take` has enough.
    pub(super) fn read_entries(
        &self,
        txn: &ReadTxn<'_>,
        range: Range<u64>,
        mut take: impl FnMut(Entry) -> bool,
    ) -> Result<(), Fault> {
        for (next, row) in (range.start..).zip(self.log.range(txn, &range)?) {
            let (index, record) = row?;
            if index != next {
                return Err(Fault::corrupt(format!("the log lacks entry {next}")));
            }
            if !take(check_entry(index, record)?) {
                break;
            }
        }
        Ok(())
    }

    /// Removes everything. For `crate::fuzz`.
    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn clear(&self, txn: &mut RwTxn<'_>) -> Result<(), Fault> {
        self.log.clear(txn)?;
        Ok(self.meta.clear(txn)?)
    }

    /// Writes whatever it is given as an entry. For `crate::fuzz`.
    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn put_entry(
        &self,
        txn: &mut RwTxn<'_>,
        index: u64,
        value: Vec<u8>,
    ) -> Result<(), Fault> {
        Ok(self.log.put(txn, &index, &sealed(&index.to_be_bytes(), value))?)
    }

    #[cfg(test)]
    pub(super) fn flip_a_bit(&self, txn: &mut RwTxn<'_>, index: u64) {
        let mut record = self.log.get(txn, &index).unwrap().unwrap().to_vec();
        record[5] ^= 1;
        self.log.put(txn, &index, &record).unwrap();
    }

    fn carry_out(&self, txn: &mut RwTxn<'_>, job: &Job) -> Result<(), Fault> {
        point(match job {
            Job::Vote { .. } => Point::LogWritesVote,
            Job::Append { .. } => Point::LogWritesEntries,
            Job::Truncate { .. } => Point::LogWritesTruncation,
            Job::Purge { .. } => Point::LogWritesPurge,
            Job::Committed { .. } => Point::LogWritesCommitted,
            Job::Meta { .. } | Job::Barrier { .. } | Job::Hold { .. } => Point::LogWritesRecord,
        });
        match job {
            Job::Vote { vote, .. } => self.write_meta(txn, Meta::Vote, &vote.to_bytes()),
            Job::Committed { committed } => {
                self.write_meta(txn, Meta::Committed, &committed.to_bytes())
            }
            Job::Append { entries, .. } => entries.iter().try_for_each(|entry| {
                let index = entry.log_id.index;
                let mut bytes = Vec::new();
                entry.write(&mut bytes);
                let record = sealed(&index.to_be_bytes(), bytes);
                Ok(self.log.put_with_flags(txn, PutFlags::APPEND, &index, &record)?)
            }),
            Job::Truncate { from } => {
                self.log.delete_range(txn, &(*from..))?;
                Ok(())
            }
            Job::Purge { upto } => {
                self.log.delete_range(txn, &(..=upto.index))?;
                self.write_meta(txn, Meta::Purged, &upto.to_bytes())
            }
            Job::Meta { name, value, .. } => self.write_meta(txn, *name, value),
            Job::Barrier { .. } | Job::Hold { .. } => Ok(()),
        }
    }
}

/// The handler of the writer thread.
pub(super) fn writer(
    env: Env,
    disk: Disk,
    shared: Arc<Mutex<Shared>>,
    flushed: watch::Sender<Flushed>,
) -> impl FnMut(Vec<Job>) + Send {
    let mut riding: Vec<Job> = Vec::new();
    let mut failed: Option<Fault> = None;
    let mut held = Vec::new();
    move |batch| {
        for job in batch {
            match job {
                Job::Hold { what } => held.push(what),
                job => riding.push(job),
            }
        }
        if riding.len() < RIDING_MAX && riding.iter().all(Job::rides) {
            return;
        }
        point(Point::LogBatch);
        let mut jobs = std::mem::take(&mut riding);
        if bug(Bug::AcknowledgeBeforeSync) {
            acknowledge_too_early(&mut jobs);
        }
        let written = match &failed {
            Some(fault) => Err(fault.clone()),
            None => write(&env, &disk, &jobs),
        };
        let last = jobs.iter().rev().find_map(|job| match job {
            Job::Append { job, .. } => Some(*job),
            _ => None,
        });
        match &written {
            Ok(()) => {
                point(Point::LogSynced);
                if let Some(last) = last {
                    shared.lock().unwrap_or_else(PoisonError::into_inner).settle(last);
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
        answer(jobs, &written);
        point(Point::LogAnswered);
    }
}

/// For [`Bug::AcknowledgeBeforeSync`]: tells openraft of entries that are not on the disk.
fn acknowledge_too_early(jobs: &mut [Job]) {
    for job in jobs {
        if let Job::Append { flushed, .. } = job {
            std::mem::replace(flushed, IOFlushed::noop()).io_completed(Ok(()));
        }
    }
}

/// Writes all jobs in one transaction. A panic counts as a failure, so that nobody waits for an answer that never comes.
fn write(env: &Env, disk: &Disk, jobs: &[Job]) -> Result<(), Fault> {
    let write = || {
        let mut txn = env.write_txn()?;
        point(Point::LogBegun);
        jobs.iter().try_for_each(|job| disk.carry_out(&mut txn, job))?;
        point(Point::LogBeforeSync);
        #[cfg(test)]
        super::tests::seam::before_sync(env)?;
        Ok(txn.commit()?)
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
            Job::Vote { done, .. } | Job::Meta { done, .. } | Job::Barrier { done } => {
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

/// A record with its checksum, which covers the key too: a record in the wrong place is as wrong as one that changed.
pub(super) fn sealed(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let sum = crc32c::crc32c_append(crc32c::crc32c(key), &value);
    value.extend_from_slice(&sum.to_be_bytes());
    value
}

/// The value of a record, if its checksum holds.
pub(super) fn checked<'a>(key: &[u8], record: &'a [u8]) -> Option<&'a [u8]> {
    let (value, sum) = record.split_last_chunk::<4>()?;
    let actual = crc32c::crc32c_append(crc32c::crc32c(key), value);
    (actual.to_be_bytes() == *sum).then_some(value)
}

pub(super) fn check_entry(index: u64, record: &[u8]) -> Result<Entry, Fault> {
    let Some(value) = checked(&index.to_be_bytes(), record) else {
        return Err(Fault::corrupt(format!("log entry {index} has changed on the disk")));
    };
    let unreadable = |_| Fault::format(format!("this version cannot read log entry {index}"));
    let entry = Entry::from_bytes(Bytes::copy_from_slice(value)).map_err(unreadable)?;
    if entry.log_id.index == index {
        Ok(entry)
    } else {
        Err(Fault::corrupt(format!("log entry {index} is entry {}", entry.log_id.index)))
    }
}
