//! A backup: what a member's state was at one moment, as a stream of bytes that needs no group to be read.
//!
//! It is the [snapshot](super::snapshot) that members send each other, behind a header that says whose it is. So one format is
//! written, and verified, in one place.
//!
//! ```text
//! backup    "QBKP" ++ version: u8 ++ group: u128 ++ name length: u32 ++ name ++ crc32c of everything before: u32
//!           ++ snapshot: "QSNP" …, to its trailer, and nothing behind it
//! ```
//!
//! [`BackupReader`] reads one out of a [`View`]; [`Inspector`] is pushed one, in pieces cut anywhere, and believes nothing.
//! The reader has an inspector look at all that it gives away: a backup is no place to find out that a disk has been lying.
//!
//! What an inspector checks without keeping anything is *sums*: the rows add up to the hash of their head, as in
//! [`hash`](mod@super::hash); each large value is one that a key has, or that a change replaced; each key with a lease is
//! among the keys of a lease. What two sides must say, both, is added on the one and taken away on the other. (That the lease
//! itself is there cannot be added up; a state that was restored is asked for it before it counts.)
//!
//! Invariants
//! - a refusal names the byte at which the damage begins, and the row, if it is in one;
//! - an inspector holds no more than what it was pushed at once, the header, and one row.

use super::dedup::ClientRow;
use super::records::{
    Change, Format, Head, Image, LargeValue, LeaseRow, Membership, MetaRow, Record, Table, Value,
};
use super::snapshot::SnapshotReader;
use super::unpack::{Refused, Row, Unpacker};
use super::{View, hash, keys};
use crate::api::{Position, check_key};
use crate::codec::layout::{Input, Layout, Malformed};
use crate::error::{Fault, Reason};
use crate::types::{BackupInfo, Revision};
use bytes::{Bytes, BytesMut};

const MAGIC: &[u8; 4] = b"QBKP";
const VERSION: u8 = 1;
/// What stands before the name: magic, version, group, and the length of the name.
const FIXED_BYTES: usize = MAGIC.len() + 1 + 16 + 4;
/// The longest name of a group. A group with a longer one cannot be founded.
const NAME_BYTES_MAX: usize = 1 << 20;
const SUM_BYTES: usize = 4;

/// Whose backup it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) group: u128,
    pub(crate) name: String,
}

impl Origin {
    pub(super) fn header(&self) -> Result<Bytes, Fault> {
        if self.name.len() > NAME_BYTES_MAX {
            let detail = "the name of the group is too long for a backup".to_owned();
            return Err(Fault::from_reason(Reason::BadOption { detail }));
        }
        let mut header = MAGIC.to_vec();
        VERSION.write(&mut header);
        self.group.write(&mut header);
        self.name.write(&mut header);
        crc32c::crc32c(&header).write(&mut header);
        Ok(header.into())
    }
}

/// Reads a state as a backup. Holds a [`View`]: a reader that is not pulled keeps the file growing.
#[derive(Debug)]
pub(crate) struct BackupReader {
    header: Option<Bytes>,
    rows: SnapshotReader,
    inspector: Inspector,
}

impl BackupReader {
    /// A reader of a view of what is flushed.
    pub(crate) fn new(view: View, origin: &Origin) -> Result<Self, Fault> {
        let (header, rows) = (Some(origin.header()?), SnapshotReader::new(view));
        Ok(Self { header, rows, inspector: Inspector::new() })
    }

    /// The next piece, of about `bytes_max` bytes; none when there is no more.
    pub(crate) fn next_chunk(&mut self, bytes_max: usize) -> Result<Option<Bytes>, Fault> {
        let chunk = match self.header.take() {
            Some(header) => Some(header),
            None => self.rows.next_chunk(bytes_max)?,
        };
        if let Some(chunk) = &chunk {
            self.inspector.push(chunk, |_| Ok(())).map_err(of_this_member)?;
        }
        Ok(chunk)
    }

    /// What was read, if that was all of it and it is right.
    pub(crate) fn finish(self) -> Result<BackupInfo, Fault> {
        self.inspector.finish().map(|found| found.info).map_err(of_this_member)
    }
}

/// What is wrong with a backup that is being read is wrong with the disk that it is read from.
fn of_this_member(fault: Fault) -> Fault {
    match fault.reason() {
        Reason::BackupDamaged { detail, .. } => Fault::damaged(detail.clone()),
        _ => fault,
    }
}

/// A backup that was whole, and all of it right.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) info: BackupInfo,
    pub(super) head: Head,
    pub(super) membership: Option<Membership>,
}

/// Verifies a backup that it is pushed.
#[derive(Debug)]
pub(crate) struct Inspector {
    /// The header as far as it has come, and then whose backup it is.
    header: BytesMut,
    origin: Option<Origin>,
    rows: Unpacker,
    tally: Tally,
    bytes: u64,
}

impl Inspector {
    pub(crate) fn new() -> Self {
        let (header, origin, tally) = (BytesMut::new(), None, Tally::new());
        Self { header, origin, rows: Unpacker::new(), tally, bytes: 0 }
    }

    /// Takes the next bytes, and shows each row that is whole by now to `visit`.
    pub(super) fn push(
        &mut self,
        chunk: &[u8],
        mut visit: impl FnMut(&Row) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.bytes += chunk.len() as u64;
        if self.origin.is_some() {
            self.rows.push(chunk);
        } else {
            self.header.extend_from_slice(chunk);
            self.read_header()?;
        }
        while let Some(row) = self.rows.next().map_err(|refused| self.refusal(refused))? {
            let place = (row.table, row.key.clone());
            let counted = self.tally.count(&row);
            counted.map_err(|what| self.refusal(self.rows.damaged(what, Some(place))))?;
            visit(&row)?;
        }
        Ok(())
    }

    /// The same for one that only wants to know.
    pub(crate) fn inspect(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        self.push(chunk, |_| Ok(()))
    }

    /// What the backup holds, if it was whole.
    pub(crate) fn info(self) -> Result<BackupInfo, Fault> {
        self.finish().map(|found| found.info)
    }

    pub(super) fn finish(self) -> Result<Found, Fault> {
        if self.origin.is_none() {
            return Err(damaged("the backup ends within its header", self.bytes, None));
        }
        self.rows.finish().map_err(|refused| self.refusal(refused))?;
        self.tally.check_format()?;
        let checked = self.tally.check();
        let head = checked.map_err(|what| self.refusal(self.rows.damaged(what, None)))?;
        let Origin { group, name } = self.origin.unwrap_or_default();
        let info = BackupInfo {
            group_name: name,
            group,
            revision: head.revision,
            compact_revision: head.compact_revision,
            keys: head.keys,
            leases: self.tally.leases,
            bytes: self.bytes,
            state_hash: hash::of_state(&head),
        };
        Ok(Found { info, head, membership: self.tally.membership })
    }

    /// Reads the header if all of it is there. What is behind it goes on to the rows.
    fn read_header(&mut self) -> Result<(), Fault> {
        let there = self.header.len().min(MAGIC.len());
        if self.header[..there] != MAGIC[..there] {
            return Err(damaged("this is no backup", 0, None));
        }
        if let Some(version) = self.header.get(MAGIC.len()).filter(|it| **it != VERSION) {
            return Err(Fault::format(format!(
                "the backup is of version {version}, and this program knows {VERSION}"
            )));
        }
        let Some((_, length)) =
            self.header.get(..FIXED_BYTES).and_then(<[u8]>::split_last_chunk::<4>)
        else {
            return Ok(());
        };
        let length = u32::from_be_bytes(*length) as usize;
        let place = (FIXED_BYTES - size_of::<u32>()) as u64;
        if length > NAME_BYTES_MAX {
            return Err(damaged("the name of the group is too long", place, None));
        }
        let sealed = FIXED_BYTES + length;
        if self.header.len() < sealed + SUM_BYTES {
            return Ok(());
        }
        let header = self.header.split_to(sealed + SUM_BYTES).freeze();
        let origin = read_origin(&header, sealed);
        self.origin = Some(origin.map_err(|Malformed| damaged("the header is damaged", 0, None))?);
        self.rows.push(&std::mem::take(&mut self.header));
        Ok(())
    }

    /// A refusal of rows, in the words of somebody who has a file.
    fn refusal(&self, refused: Refused) -> Fault {
        let header = self.origin.as_ref().map_or(0, |origin| FIXED_BYTES + origin.name.len());
        let begin = (header + SUM_BYTES) as u64;
        match refused {
            Refused::Version(text) => Fault::format(text),
            Refused::Damaged { what, offset, row } => damaged(what, begin + offset, row.as_ref()),
        }
    }
}

fn read_origin(header: &Bytes, sealed: usize) -> Result<Origin, Malformed> {
    let mut input = Input::new(header.clone());
    input.take(MAGIC.len() + 1)?;
    let (group, name) = (u128::read(&mut input)?, String::read(&mut input)?);
    let sum = u32::read(&mut input)?;
    if sum == crc32c::crc32c(&header[..sealed]) {
        Ok(Origin { group, name })
    } else {
        Err(Malformed)
    }
}

fn damaged(what: &str, offset: u64, row: Option<&(Table, Bytes)>) -> Fault {
    let place =
        row.map(|(table, key)| format!(", in table {}, row {}", table.name(), key.escape_ascii()));
    let detail = format!("{what}: at byte {offset}{}", place.unwrap_or_default());
    Fault::from_reason(Reason::BackupDamaged { offset, detail })
}

/// What the rows that have come by add up to.
#[derive(Debug)]
struct Tally {
    rows_hash: u128,
    clients: u64,
    keys: u64,
    leases: u64,
    /// The newest revision that a key speaks of.
    newest: Revision,
    /// Large values that somebody has, less those that are there.
    large: u128,
    /// Keys with a lease, less those that are among the keys of one.
    attached: u128,
    first_change: Option<Position>,
    last_change: Option<Position>,
    /// Whether history begins with a restore.
    is_restored: bool,
    format: Option<Format>,
    head: Option<Head>,
    membership: Option<Membership>,
}

impl Tally {
    fn new() -> Self {
        Self {
            rows_hash: 0,
            clients: 0,
            keys: 0,
            leases: 0,
            newest: Revision::FIRST,
            large: 0,
            attached: 0,
            first_change: None,
            last_change: None,
            is_restored: false,
            format: None,
            head: None,
            membership: None,
        }
    }

    /// Counts a row, which was checked alone.
    fn count(&mut self, row: &Row) -> Result<(), &'static str> {
        const WHAT: &str = "a row of the snapshot is damaged";
        // One that no write could have made would end all members at the next change of it.
        const KEY: &str = "a row of a key that cannot be";
        let Row { table, key, row } = row;
        match table {
            Table::Latest => {
                let image = Image::open(key, row).map_err(|_| WHAT)?;
                check_key(key).map_err(|_| KEY)?;
                self.rows_hash = self.rows_hash.wrapping_add(hash::of_key(key, &image));
                self.keys += 1;
                self.newest = self.newest.max(image.create_revision).max(image.modified.revision);
                self.large = self.large.wrapping_add(of_large(key, &image));
                if let Some(lease) = image.lease {
                    let attached = hash::digest(&keys::attachment(lease, key));
                    self.attached = self.attached.wrapping_add(attached);
                }
            }
            Table::Values => {
                let at = keys::parse_position(key).ok_or(WHAT)?;
                let LargeValue { key, value } = LargeValue::open(key, row).map_err(|_| WHAT)?;
                check_key(&key).map_err(|_| KEY)?;
                self.large = self.large.wrapping_sub(of_value(&key, at, &Value::of(&value)));
            }
            Table::Events => self.change(key, row).ok_or(WHAT)?,
            Table::Leases => {
                let id = keys::parse_lease(key).ok_or(WHAT)?;
                let lease = LeaseRow::open(key, row).map_err(|_| WHAT)?;
                self.rows_hash = self.rows_hash.wrapping_add(hash::of_lease(id, &lease));
                self.leases += 1;
            }
            Table::Attachments => self.attached = self.attached.wrapping_sub(hash::digest(key)),
            Table::Meta => self.meta(key, row).map_err(|_| WHAT)?,
            Table::Dedup => {
                let client = keys::parse_client(key).ok_or(WHAT)?;
                let row = ClientRow::open(key, row).map_err(|_| WHAT)?;
                self.rows_hash = self.rows_hash.wrapping_add(row.hash(client));
                self.clients += 1;
            }
            Table::Gone | Table::History => {}
        }
        Ok(())
    }

    /// Counts a change, if it is the one that follows.
    fn change(&mut self, key: &[u8], row: &[u8]) -> Option<()> {
        let at = keys::parse_position(key)?;
        let change = Change::open(key, row).ok()?;
        let is_restored = self.is_restored && self.last_change == self.first_change;
        let follows = match self.last_change {
            None => at.sub == 0,
            Some(_) if change.is_restore() => false,
            Some(last) if at.revision == last.revision => {
                at.sub == last.sub.checked_add(1)? && !is_restored
            }
            Some(last) => at == Position::start_of(last.revision.next()),
        };
        if !follows {
            return None;
        }
        self.is_restored |= change.is_restore();
        self.first_change.get_or_insert(at);
        self.last_change = Some(at);
        if let Some(prev) = &change.prev {
            self.large = self.large.wrapping_add(of_large(&change.key, prev));
        }
        Some(())
    }

    fn meta(&mut self, key: &[u8], row: &[u8]) -> Result<(), Fault> {
        match key {
            Head::KEY => self.head = Some(Head::open(key, row)?),
            Membership::KEY => {
                let membership = Membership::open(key, row)?;
                self.rows_hash = self.rows_hash.wrapping_add(hash::of_membership(&membership));
                self.membership = Some(membership);
            }
            _ => self.format = Some(Format::open(key, row)?),
        }
        Ok(())
    }

    /// Refuses what a newer version wrote.
    fn check_format(&self) -> Result<(), Fault> {
        match self.format.filter(|format| *format != Format::CURRENT) {
            Some(Format { schema, codec }) => Err(Fault::format(format!(
                "the backup has schema {schema} and codec {codec}, and this program knows {} and {}",
                Format::CURRENT.schema,
                Format::CURRENT.codec
            ))),
            None => Ok(()),
        }
    }

    /// The head, if everything adds up to it.
    fn check(&self) -> Result<Head, &'static str> {
        let head = self.head.ok_or("the backup has no head")?;
        self.format.ok_or("the backup has no format")?;
        let first = match self.is_restored {
            true => head.compact_revision,
            false => head.compact_revision.max(Revision::FIRST.next()),
        };
        let has_history = match (self.first_change, self.last_change) {
            (Some(begin), Some(end)) => begin.revision == first && end.revision == head.revision,
            _ => head.revision == Revision::FIRST,
        };
        // What was restored goes on above all of its keys.
        let is_present = self.newest <= head.revision;
        let sums = [head.rows_hash.wrapping_sub(self.rows_hash), self.large, self.attached];
        if has_history
            && is_present
            && head.keys == self.keys
            && head.clients == self.clients
            && sums == [0; 3]
        {
            return Ok(head);
        }
        Err("the rows do not belong together")
    }
}

/// What the large value of a state of a key adds up to; nothing if it has none.
fn of_large(key: &[u8], image: &Image) -> u128 {
    match image.value {
        Value::Large { .. } => of_value(key, image.modified, &image.value),
        Value::Inline(_) => 0,
    }
}

/// Tied to its key and to the put that wrote it. One that is not large adds up to something that no state of a key has.
fn of_value(key: &[u8], at: Position, value: &Value) -> u128 {
    let digest = match value {
        Value::Large { digest, .. } => *digest,
        Value::Inline(_) => 0,
    };
    let mut bytes = keys::position(at).to_vec();
    (value.len() as u64).write(&mut bytes);
    digest.write(&mut bytes);
    bytes.extend_from_slice(key);
    hash::digest(&bytes)
}
