//! Restoring: a new state with the keys of a backup, and nothing else of it.
//!
//! ```text
//! kept       latest, the large values that are in it, lease, lease_keys
//! dropped    history (ev, kidx, gone, values of the past), the log position, the members
//! new        revision + bump, lease_chosen + bump; compact_revision = the new revision, where history begins with a mark
//! ```
//!
//! The group that is founded on it has a log that begins anew, but its clients remember the old group. So no number that
//! they may hold is given out twice: revisions, fencing tokens (which are revisions) and the ids of leases go on from far
//! above all that the old group can have reached after the backup. A watch that asks for what the new group does not know
//! is told that it was compacted.
//!
//! Invariants
//! - a key keeps its value, its lease and all that is said of it: revisions, version, and its place in the chain of changes;
//! - the state does not exist before every byte of the backup was verified, and then survives a loss of power;
//! - the same backup with the same bump is the same state, to the hash.

use super::backup::{Found, Inspector};
use super::dedup::ClientRow;
use super::records::{COUNT_MAX, Change, Format, Head, Image, LargeValue, Record, Table};
use super::snapshot::{LoadError, check_sums};
use super::tables::Tables;
use super::unpack::Row;
use super::{Store, VERIFIED_BYTES, hash, keys, lmdb, open_environment};
use crate::api::Position;
use crate::error::{Fault, Reason};
use crate::types::{BackupInfo, Revision};
use heed::RwTxn;
use std::path::Path;

/// Loads a backup into a new environment. After an error it is of no use, and its folder is rubbish.
pub(crate) struct Restorer {
    env: lmdb::Env,
    tables: Tables,
    inspector: Inspector,
    bump: u64,
    /// What the clients of the old group have added to its hash.
    forgotten: u128,
}

impl std::fmt::Debug for Restorer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Restorer").field(&self.inspector).finish()
    }
}

impl Restorer {
    /// Begins in a folder that holds no state. Revisions will go on `bump` above those of the backup.
    pub(crate) fn new(folder: &Path, map_bytes: usize, bump: u64) -> Result<Self, Fault> {
        Self::new_with(folder, map_bytes, bump, lmdb::Sync::LastCommitMayBeLost)
    }

    pub(super) fn new_with(
        folder: &Path,
        map_bytes: usize,
        bump: u64,
        sync: lmdb::Sync,
    ) -> Result<Self, Fault> {
        // What no backup could be restored with is refused before anything is made.
        bumped(0, bump)?;
        let env = open_environment(folder, map_bytes, sync)?;
        let tables = Tables::make(&env)?;
        Ok(Self { env, tables, inspector: Inspector::new(), bump, forgotten: 0 })
    }

    /// Takes the next bytes of the backup, and writes what is kept of them in one transaction.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        let Self { env, tables, inspector, forgotten, .. } = self;
        let mut txn = env.write_txn()?;
        inspector.push(chunk, |row| {
            if row.table == Table::Dedup
                && let Some(client) = keys::parse_client(&row.key)
            {
                // Whoever it is knows the old group, and will not be answered by this one.
                let hash = ClientRow::open(&row.key, &row.row)?.hash(client);
                *forgotten = forgotten.wrapping_add(hash);
            }
            keep(&mut txn, *tables, row)
        })?;
        txn.commit()?;
        Ok(())
    }

    /// The store, and what the backup was, if it was whole and everything in it is right.
    pub(crate) fn finish(self) -> Result<(Store, BackupInfo), Fault> {
        let Self { env, tables, inspector, bump, forgotten } = self;
        let Found { info, head, membership } = inspector.finish()?;
        let members = membership.as_ref().map_or(0, hash::of_membership);
        let revision = bumped(head.revision.get(), bump)?;
        let head = Head {
            applied: None,
            revision: Revision::from(revision),
            compact_revision: Revision::from(revision),
            keys: head.keys,
            lease_chosen: bumped(head.lease_chosen, bump)?,
            client_chosen: bumped(head.client_chosen, bump)?,
            rows_hash: head.rows_hash.wrapping_sub(members).wrapping_sub(forgotten),
            ..Head::empty()
        };
        let mut txn = env.write_txn()?;
        let at = keys::position(Position::start_of(head.revision));
        tables.append(&mut txn, &at, &Change::restore())?;
        tables.put_meta(&mut txn, &Format::CURRENT)?;
        tables.put_meta(&mut txn, &head)?;
        txn.commit()?;
        let store = Store::of(env, tables);
        // What was verified was read from the backup, and what counts is what was written.
        let checked = check_sums(&store.view()?, store.bytes()? <= VERIFIED_BYTES);
        checked.map_err(|error| match error {
            LoadError::Malformed(_) => {
                let offset = info.bytes;
                let detail =
                    format!("the keys and leases do not belong together: at byte {offset}");
                Fault::from_reason(Reason::BackupDamaged { offset, detail })
            }
            LoadError::Fault(fault) => fault,
        })?;
        store.force_sync()?;
        Ok((store, info))
    }
}

/// Writes a row, if it is of the present.
fn keep(txn: &mut RwTxn<'_>, tables: Tables, row: &Row) -> Result<(), Fault> {
    let Row { table, key, row } = row;
    let is_kept = match table {
        Table::Latest | Table::Leases | Table::Attachments => true,
        Table::Values => {
            let value = LargeValue::open(key, row)?;
            let image = tables.find::<Image>(txn, &value.key)?;
            image.map(|image| image.modified) == keys::parse_position(key)
        }
        Table::Gone | Table::Events | Table::History | Table::Dedup | Table::Meta => false,
    };
    if is_kept { tables.append_raw(txn, *table, key, row) } else { Ok(()) }
}

/// A number that goes on above one that was given out.
fn bumped(number: u64, bump: u64) -> Result<u64, Fault> {
    // Half of what can be counted is left for the group.
    let bumped = number.checked_add(bump).filter(|bumped| bump > 0 && *bumped <= COUNT_MAX / 2);
    bumped.ok_or_else(|| {
        let detail = format!("revisions cannot go on {bump} above {number}");
        Fault::from_reason(Reason::BadOption { detail })
    })
}
