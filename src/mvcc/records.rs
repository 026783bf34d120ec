//! The rows of the tables, laid out by hand and sealed.
//!
//! LMDB has no checksums of its own, so that a rotten bit would come back as somebody's value. Each row carries one,
//! over its table, its key and its content: a row that was damaged, or that stands under another key than it was
//! written for, is a fault and never an answer.
//!
//! ```text
//! row       version: u8 ++ content ++ crc32c(table: u8 ++ key ++ version ++ content): u32
//!
//! Image     create_revision: u64 ++ modified: position ++ version: u64 ++ lease: u64 (0 is none) ++ turn: u8
//!           ++ length: u32 ++ value, if length ≤ 64; else its digest: u128, and the value is in `val` under `modified`
//! Change    1 ++ key ++ Image ++ 1 ++ prev: Image              a put over something
//!           1 ++ key ++ Image ++ 0 ++ gone: Option<position>   a put where nothing was; where it went, if that is known
//!           2 ++ key ++ turn: u8 ++ prev: Image                a delete
//!           3 ++ key length: u32, which is 0                   no key: the state was restored at this revision
//! Gone      at: position ++ turn: u8                           the delete after which a key is not there
//! ```
//!
//! Each change of a key so knows the one before it, and the newest is known to `latest` or `gone`: a chain, backwards. The
//! turn counts the changes along it, and those of turn 0, one of [`TURNS`], are in `kidx` as well, so that nobody has to
//! follow a chain from its end to find a place in it.
//!
//! A state that was [restored](super::restore) has keys and no history. Its revision is one that nothing has happened in; a
//! mark stands there, so that history has no hole, and goes the way of all history when it is compacted away.
//!
//! Rows without content (`kidx`, `lease_keys`) are empty and checked against the rows that they point to.
//! A new field goes to the end of a new version; the golden bytes at the end of this file hold each version in place.

use super::dedup::ClientRow;
use super::keys;
use super::{LogPosition, hash};
use crate::api::{AGES, Position};
use crate::codec::layout::{Input, Layout, Malformed, layout, write_length};
use crate::error::Fault;
use crate::types::{LeaseId, Revision};
use bytes::Bytes;
use std::time::Duration;

/// The version of every row that this code writes.
const VERSION: u8 = 1;
/// A chain of changes has an entry in `kidx` for each so many of them.
pub(super) const TURNS: u8 = 64;
/// The turn of the first change in a chain.
pub(super) const FIRST_TURN: u8 = 1;

/// The turn after one.
pub(super) fn next_turn(turn: u8) -> u8 {
    (turn + 1) % TURNS
}

/// The longest value that is kept beside its metadata, and so three times: there, in its change, and in the change that
/// follows, as what was before it. A longer one is written once, to `val`.
pub(super) const INLINE_BYTES_MAX: usize = 64;

/// Nothing has been counted so far by anybody. A row that says so comes from a member that lies, and the next number would
/// not be one.
pub(super) const COUNT_MAX: u64 = 1 << 62;

/// The number of a table, in checksums and snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Table {
    Latest = 1,
    Gone = 2,
    Values = 3,
    Events = 4,
    History = 5,
    Leases = 6,
    Attachments = 7,
    Dedup = 8,
    Meta = 9,
}

impl Table {
    /// All of them, in the order in which a snapshot carries them.
    pub(super) const ALL: [Self; 9] = [
        Self::Latest,
        Self::Gone,
        Self::Values,
        Self::Events,
        Self::History,
        Self::Leases,
        Self::Attachments,
        Self::Dedup,
        Self::Meta,
    ];

    /// Its name in the environment.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Latest => "latest",
            Self::Gone => "gone",
            Self::Values => "val",
            Self::Events => "ev",
            Self::History => "kidx",
            Self::Leases => "lease",
            Self::Attachments => "lease_keys",
            Self::Dedup => "dedup",
            Self::Meta => "meta",
        }
    }

    /// The fault that a row is not what was written.
    pub(super) fn corrupt(self, key: &[u8]) -> Fault {
        Fault::damaged(format!("table {}: the row {} is damaged", self.name(), key.escape_ascii()))
    }

    /// The fault that a row which another one points to is not there.
    pub(super) fn missing(self, key: &[u8]) -> Fault {
        Fault::damaged(format!("table {}: the row {} is missing", self.name(), key.escape_ascii()))
    }
}

/// What most rows fit in: a change with both values in it, and keys of a usual length.
const ROW_ROOM: usize = 384;

/// A record that is a row of a table.
pub(super) trait Record: Layout {
    const TABLE: Table;

    /// The row that holds this record under `key`.
    fn seal(&self, key: &[u8]) -> Vec<u8> {
        let mut row = Vec::with_capacity(ROW_ROOM);
        row.push(VERSION);
        self.write(&mut row);
        checksum(Self::TABLE, key, &row).write(&mut row);
        row
    }

    /// The record in the row under `key`.
    fn open(key: &[u8], row: &[u8]) -> Result<Self, Fault> {
        Self::of_content(key, content(Self::TABLE, key, row)?)
    }

    /// The record in the content of the row under `key`, which was checked.
    fn of_content(key: &[u8], content: &[u8]) -> Result<Self, Fault> {
        let record = Self::from_bytes(Bytes::copy_from_slice(content));
        record.map_err(|Malformed| Self::TABLE.corrupt(key))
    }
}

/// The content of a row, after its checksum and version were checked.
pub(super) fn content<'row>(
    table: Table,
    key: &[u8],
    row: &'row [u8],
) -> Result<&'row [u8], Fault> {
    let (sealed, sum) = row.split_last_chunk::<4>().ok_or_else(|| table.corrupt(key))?;
    if u32::from_be_bytes(*sum) != checksum(table, key, sealed) {
        return Err(table.corrupt(key));
    }
    match sealed.split_first() {
        Some((&VERSION, content)) => Ok(content),
        Some((version, _)) => Err(Fault::format(format!(
            "table {}: a row of version {version}, and this program knows {VERSION}",
            table.name()
        ))),
        None => Err(table.corrupt(key)),
    }
}

/// The row of this content, whatever it is. For `crate::fuzz`.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn sealed(table: Table, key: &[u8], content: &[u8]) -> Vec<u8> {
    let mut row = [&[VERSION], content].concat();
    checksum(table, key, &row).write(&mut row);
    row
}

fn checksum(table: Table, key: &[u8], sealed: &[u8]) -> u32 {
    let sum = crc32c::crc32c(&[table as u8]);
    crc32c::crc32c_append(crc32c::crc32c_append(sum, key), sealed)
}

/// The state of a key after a put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) create_revision: Revision,
    /// The put that made this state.
    pub(super) modified: Position,
    pub(super) version: u64,
    pub(super) lease: Option<LeaseId>,
    /// That of the put, in the chain of the key's changes.
    pub(super) turn: u8,
    pub(super) value: Value,
}

/// The value of an [`Image`], or where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Inline(Bytes),
    /// In `val`, under the position of the put. The digest ties the two together, and lets the rolling hash forget the
    /// value without reading it again.
    Large {
        length: u32,
        digest: u128,
    },
}

impl Value {
    /// How a value of these bytes is kept.
    pub(super) fn of(value: &Bytes) -> Self {
        if value.len() <= INLINE_BYTES_MAX {
            return Self::Inline(value.clone());
        }
        let length = u32::try_from(value.len()).expect("limits keep values below 4 GiB");
        Self::Large { length, digest: hash::digest(value) }
    }

    /// How long the value is.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Inline(value) => value.len(),
            Self::Large { length, .. } => *length as usize,
        }
    }
}

impl Record for Image {
    const TABLE: Table = Table::Latest;
}

impl Layout for Image {
    fn write(&self, out: &mut Vec<u8>) {
        self.create_revision.write(out);
        self.modified.write(out);
        self.version.write(out);
        self.lease.map_or(0, LeaseId::get).write(out);
        self.turn.write(out);
        write_length(self.value.len(), out);
        match &self.value {
            Value::Inline(value) => out.extend_from_slice(value),
            Value::Large { digest, .. } => digest.write(out),
        }
    }

    fn read(input: &mut Input) -> Result<Self, Malformed> {
        Ok(Self {
            create_revision: Revision::read(input)?,
            modified: Position::read(input)?,
            version: u64::read(input)?,
            lease: Some(u64::read(input)?).filter(|lease| *lease != 0).map(LeaseId::from),
            turn: read_turn(input)?,
            value: match u32::read(input)? {
                length if length as usize <= INLINE_BYTES_MAX => {
                    Value::Inline(input.take(length as usize)?)
                }
                length => Value::Large { length, digest: u128::read(input)? },
            },
        })
    }
}

fn read_turn(input: &mut Input) -> Result<u8, Malformed> {
    let turn = u8::read(input)?;
    if turn < TURNS { Ok(turn) } else { Err(Malformed) }
}

/// One change of one key: an event, with the state before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) key: Bytes,
    /// The state that a put made; a delete leaves none.
    pub(super) new: Option<Image>,
    pub(super) prev: Option<Image>,
    /// If there was nothing: the delete after which that was so, if there was one since history begins.
    pub(super) gone: Option<Position>,
    /// Its place in the chain of the key's changes.
    pub(super) turn: u8,
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const RESTORE: u8 = 3;

impl Change {
    /// The mark at the revision of a state that was restored.
    pub(super) fn restore() -> Self {
        Self { key: Bytes::new(), new: None, prev: None, gone: None, turn: FIRST_TURN }
    }

    /// Whether it is that mark, and no change of a key.
    pub(super) fn is_restore(&self) -> bool {
        self.new.is_none() && self.prev.is_none()
    }

    /// The change before it of its key, if there was one since history begins, or began.
    pub(super) fn before(&self) -> Option<Position> {
        self.prev.as_ref().map(|prev| prev.modified).or(self.gone)
    }

    /// The key of a change and whether it is a put, from its row's content, without reading the rest: most rows that a
    /// watch passes are of no interest to it. A mark has the empty key, which nothing else has.
    pub(super) fn peek(content: &[u8]) -> Option<(&[u8], bool)> {
        let (number, rest) = content.split_first()?;
        let (key, _) = split_prefixed(rest)?;
        Some((key, *number == PUT))
    }
}

impl Record for Change {
    const TABLE: Table = Table::Events;
}

impl Layout for Change {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(match (&self.new, &self.prev) {
            (Some(_), _) => PUT,
            (None, Some(_)) => DELETE,
            (None, None) => RESTORE,
        });
        self.key.write(out);
        match (&self.new, &self.prev) {
            (Some(new), prev) => {
                new.write(out);
                prev.write(out);
                if prev.is_none() {
                    self.gone.write(out);
                }
            }
            (None, Some(prev)) => {
                self.turn.write(out);
                prev.write(out);
            }
            (None, None) => assert!(self.key.is_empty(), "a delete deletes something"),
        }
    }

    fn read(input: &mut Input) -> Result<Self, Malformed> {
        let number = u8::read(input)?;
        let key = Bytes::read(input)?;
        match number {
            PUT => {
                let (new, prev) = (Image::read(input)?, Option::<Image>::read(input)?);
                let gone = if prev.is_none() { Option::read(input)? } else { None };
                Ok(Self { key, turn: new.turn, new: Some(new), prev, gone })
            }
            DELETE => {
                let turn = read_turn(input)?;
                Ok(Self { key, turn, new: None, prev: Some(Image::read(input)?), gone: None })
            }
            RESTORE if key.is_empty() => Ok(Self::restore()),
            _ => Err(Malformed),
        }
    }
}

/// A key that was deleted, and is not there: its last change, for as long as that is history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone {
    pub(super) at: Position,
    pub(super) turn: u8,
}

impl Layout for Gone {
    fn write(&self, out: &mut Vec<u8>) {
        self.at.write(out);
        self.turn.write(out);
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        Ok(Self { at: Position::read(input)?, turn: read_turn(input)? })
    }
}

impl Record for Gone {
    const TABLE: Table = Table::Gone;
}

/// A value too large to stand beside its metadata. The key tells a snapshot whom to ask whether it is still needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LargeValue {
    pub(super) key: Bytes,
    pub(super) value: Bytes,
}
layout!(struct LargeValue { key, value });

impl LargeValue {
    /// The key and the value in a row's content: all that a read wants, where a record of its own costs two copies.
    pub(super) fn peek(content: &[u8]) -> Option<(&[u8], &[u8])> {
        let (key, rest) = split_prefixed(content)?;
        let (value, rest) = split_prefixed(rest)?;
        rest.is_empty().then_some((key, value))
    }
}

/// The bytes that their length stands before, and what comes after them.
fn split_prefixed(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = content.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

impl Record for LargeValue {
    const TABLE: Table = Table::Values;
}

/// A lease. Who holds it and how long it still lives is the leader's to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaseRow {
    pub(super) ttl: Duration,
}
layout!(struct LeaseRow { ttl });

impl Record for LeaseRow {
    const TABLE: Table = Table::Leases;
}

/// A row of `meta`, which has one of each kind.
pub(super) trait MetaRow: Record {
    const KEY: &'static [u8];
}

/// Where the state stands. Replicated: equal on all members at an equal log position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The last log entry that is in the state.
    pub(super) applied: Option<LogPosition>,
    /// The newest revision.
    pub(super) revision: Revision,
    /// The oldest revision that can be read and watched from; 0 before the first compaction.
    pub(super) compact_revision: Revision,
    /// How many keys there are.
    pub(super) keys: u64,
    /// The last lease id that the group chose by itself.
    pub(super) lease_chosen: u64,
    /// The last id of a client.
    pub(super) client_chosen: u64,
    /// How many clients there are.
    pub(super) clients: u64,
    /// How many slices of the time have passed after which a client is forgotten.
    pub(super) client_age: u64,
    /// The newest revision of so many slices of time ago, the last one first; 0 before there were as many.
    pub(super) ages: Ages,
    /// Whether nothing that takes room is applied.
    pub(super) is_short_of_room: bool,
    /// The sum of the hashes of all keys, leases, clients and the membership.
    pub(super) rows_hash: u128,
}
layout!(struct Head {
    applied, revision, compact_revision, keys, lease_chosen, client_chosen, clients, client_age, ages,
    is_short_of_room, rows_hash,
});

/// Revisions in the order in which time passed, the last one first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ages([u64; AGES]);

impl Ages {
    /// A slice of time has passed, and this is the newest revision. Returns the one that there was [`AGES`] slices ago.
    pub(super) fn pass(&mut self, revision: Revision) -> Revision {
        let oldest = self.0[AGES - 1];
        self.0.rotate_right(1);
        self.0[0] = revision.get();
        Revision::from(oldest)
    }

    /// Whether nothing has changed in all that time.
    pub(super) fn are_all(&self, revision: Revision) -> bool {
        self.0.iter().all(|age| *age == revision.get())
    }

    fn are_possible(&self, revision: Revision) -> bool {
        self.0.is_sorted_by(|later, earlier| later >= earlier) && self.0[0] <= revision.get()
    }
}

impl Layout for Ages {
    fn write(&self, out: &mut Vec<u8>) {
        self.0.iter().for_each(|age| age.write(out));
    }

    fn read(input: &mut Input) -> Result<Self, Malformed> {
        let mut ages = Self::default();
        for age in &mut ages.0 {
            *age = u64::read(input)?;
        }
        Ok(ages)
    }
}

impl Head {
    /// The state of a group in which nothing has happened.
    pub(super) fn empty() -> Self {
        Self {
            applied: None,
            revision: Revision::FIRST,
            compact_revision: Revision::from(0),
            keys: 0,
            lease_chosen: 0,
            client_chosen: 0,
            clients: 0,
            client_age: 0,
            ages: Ages::default(),
            is_short_of_room: false,
            rows_hash: 0,
        }
    }

    /// A row has come, of this hash.
    pub(super) fn add(&mut self, hash: u128) {
        self.rows_hash = self.rows_hash.wrapping_add(hash);
    }

    /// A row has gone, of this hash.
    pub(super) fn subtract(&mut self, hash: u128) {
        self.rows_hash = self.rows_hash.wrapping_sub(hash);
    }

    /// Whether each of its numbers has one after it, and nothing was forgotten that has not happened.
    fn is_possible(&self) -> bool {
        let Self { revision, compact_revision, keys, lease_chosen, .. } = *self;
        let Self { client_chosen, clients, client_age, .. } = *self;
        let (term, index) = self.applied.map_or((0, 0), |at| (at.term, at.index));
        let counted = [revision.get(), keys, lease_chosen, client_chosen, client_age, term, index];
        let is_past = compact_revision <= revision && self.ages.are_possible(revision);
        let can_count = counted.into_iter().all(|number| number <= COUNT_MAX);
        is_past && can_count && clients <= client_chosen
    }
}

impl Record for Head {
    const TABLE: Table = Table::Meta;
}

impl MetaRow for Head {
    const KEY: &'static [u8] = b"head";
}

/// The members of the group, in the words of the consensus layer, and the log entry that named them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    pub(super) position: LogPosition,
    pub(super) members: Bytes,
}
layout!(struct Membership { position, members });

impl Record for Membership {
    const TABLE: Table = Table::Meta;
}

impl MetaRow for Membership {
    const KEY: &'static [u8] = b"membership";
}

/// What wrote the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    /// The tables and what they mean.
    pub(super) schema: u16,
    /// How cold structs are encoded.
    pub(super) codec: u16,
}
layout!(struct Format { schema, codec });

impl Format {
    /// What this code writes.
    pub(super) const CURRENT: Self = Self { schema: 4, codec: 1 };
}

impl Record for Format {
    const TABLE: Table = Table::Meta;
}

impl MetaRow for Format {
    const KEY: &'static [u8] = b"format";
}

/// Checks a row of any table as far as that is possible without the others.
pub(super) fn check_row(table: Table, key: &[u8], row: &[u8]) -> Result<(), Fault> {
    let legal = |is_legal: bool| if is_legal { Ok(()) } else { Err(table.corrupt(key)) };
    match table {
        Table::Latest => legal(Image::open(key, row)?.version <= COUNT_MAX),
        Table::Gone => Gone::open(key, row).map(|_| ()),
        Table::Values => {
            legal(keys::parse_position(key).is_some())?;
            LargeValue::open(key, row).map(|_| ())
        }
        Table::Events => {
            legal(keys::parse_position(key).is_some())?;
            Change::open(key, row).map(|_| ())
        }
        Table::History => legal(keys::parse_history(key).is_some() && row.is_empty()),
        Table::Leases => {
            legal(keys::parse_lease(key).is_some())?;
            LeaseRow::open(key, row).map(|_| ())
        }
        Table::Attachments => legal(keys::parse_attachment(key).is_some() && row.is_empty()),
        Table::Dedup => {
            legal(keys::parse_client(key).is_some())?;
            legal(ClientRow::open(key, row)?.is_possible())
        }
        Table::Meta => match key {
            Head::KEY => legal(Head::open(key, row)?.is_possible()),
            Membership::KEY => Membership::open(key, row).map(|_| ()),
            Format::KEY => Format::open(key, row).map(|_| ()),
            _ => legal(false),
        },
    }
}

#[cfg(test)]
mod tests;
