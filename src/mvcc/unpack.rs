//! Taking a [snapshot stream](super::snapshot) apart: rows come out, each checked alone and against the one before it.
//!
//! ```text
//! bytes, cut anywhere ──▶ push ──▶ next ──▶ row ──▶ row ──▶ … ──▶ nothing more
//!                                   └─ refused: what is wrong, at which byte, and in which row
//! ```
//!
//! Whoever takes rows out believes them once [`Unpacker::finish`] has said that the stream was whole.
//!
//! Invariants
//! - nothing is believed about a length before it was compared with what is possible: a lie fills no memory;
//! - a row comes out only if its table is known, its seal is right, its content is legal and its key is above the last one;
//! - after a refusal there is nothing but refusals.

use super::keys;
use super::records::{Table, check_row};
use super::snapshot::{
    HEADER_BYTES, MAGIC, ROW_BYTES_MAX, ROW_HEADER_BYTES, TRAILER, TRAILER_BYTES, VERSION,
};
use crate::error::Reason;
use bytes::{Buf, Bytes, BytesMut};

/// Takes a stream apart.
#[derive(Debug)]
pub(super) struct Unpacker {
    /// Bytes that were pushed and not yet taken apart.
    pushed: BytesMut,
    progress: Progress,
    /// How many bytes were taken apart.
    offset: u64,
    rows: u64,
    /// Of everything that was taken apart.
    sum: u32,
}

/// How far the stream was taken apart.
#[derive(Debug)]
enum Progress {
    Header,
    /// Rows, above the last one.
    Rows(Option<(Table, Bytes)>),
    Done,
    Failed,
}

/// A row as it stood in the stream.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) table: Table,
    pub(super) key: Bytes,
    pub(super) row: Bytes,
}

/// Why a stream is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is of a version that this program does not know, which the text names.
    Version(String),
    /// It is not what was written: from this byte on, in this row if it is one.
    Damaged { what: &'static str, offset: u64, row: Option<(Table, Bytes)> },
}

/// What stands in a stream.
enum Piece {
    Header,
    Row(Row),
    Trailer { rows: u64, sum: u32 },
}

impl Unpacker {
    pub(super) fn new() -> Self {
        let (pushed, progress) = (BytesMut::new(), Progress::Header);
        Self { pushed, progress, offset: 0, rows: 0, sum: 0 }
    }

    /// Takes the next bytes of the stream.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.pushed.extend_from_slice(bytes);
    }

    /// How many bytes wait to be taken apart.
    pub(super) fn waiting(&self) -> usize {
        self.pushed.len()
    }

    /// How many rows came out.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// The next row, if all of it is there.
    pub(super) fn next(&mut self) -> Result<Option<Row>, Refused> {
        let next = self.try_next();
        if next.is_err() {
            self.progress = Progress::Failed;
        }
        next
    }

    /// Whether the stream was whole.
    pub(super) fn finish(&self) -> Result<(), Refused> {
        match self.progress {
            Progress::Done if self.pushed.is_empty() => Ok(()),
            Progress::Done => Err(self.damaged("bytes after the end of the snapshot", None)),
            Progress::Failed => Err(self.damaged("the snapshot was refused before", None)),
            Progress::Header | Progress::Rows(_) => {
                let offset = self.offset + self.pushed.len() as u64;
                Err(Refused::Damaged { what: "the snapshot ends too early", offset, row: None })
            }
        }
    }

    /// The refusal of what comes next.
    pub(super) fn damaged(&self, what: &'static str, row: Option<(Table, Bytes)>) -> Refused {
        Refused::Damaged { what, offset: self.offset, row }
    }

    fn try_next(&mut self) -> Result<Option<Row>, Refused> {
        while let Some((piece, length)) = self.next_piece()? {
            let row = match piece {
                Piece::Header => {
                    self.progress = Progress::Rows(None);
                    None
                }
                Piece::Row(row) => {
                    self.check(&row)?;
                    self.progress = Progress::Rows(Some((row.table, row.key.clone())));
                    self.rows += 1;
                    Some(row)
                }
                Piece::Trailer { rows, sum } => {
                    let before = &self.pushed[..length - size_of::<u32>()];
                    if rows != self.rows || sum != crc32c::crc32c_append(self.sum, before) {
                        return Err(self.damaged("the snapshot has another checksum", None));
                    }
                    self.progress = Progress::Done;
                    None
                }
            };
            self.sum = crc32c::crc32c_append(self.sum, &self.pushed[..length]);
            self.pushed.advance(length);
            self.offset += length as u64;
            if row.is_some() {
                return Ok(row);
            }
        }
        Ok(None)
    }

    /// A row is what was written, and stands where it belongs: tables in their order, and the keys of each rising.
    fn check(&self, row: &Row) -> Result<(), Refused> {
        let Row { table, key, row } = row;
        let place = || Some((*table, key.clone()));
        if let Progress::Rows(Some((last, last_key))) = &self.progress
            && (last, last_key) >= (table, key)
        {
            return Err(self.damaged("the rows of the snapshot are out of order", place()));
        }
        let Err(fault) = check_row(*table, key, row) else { return Ok(()) };
        match fault.reason() {
            // Its seal is right.
            Reason::UnreadableFormat { detail } => Err(Refused::Version(detail.clone())),
            _ => Err(self.damaged("a row of the snapshot is damaged", place())),
        }
    }

    /// The piece at the front of what was pushed and its length, if all of it is there.
    fn next_piece(&self) -> Result<Option<(Piece, usize)>, Refused> {
        let pushed = &self.pushed[..];
        match self.progress {
            Progress::Failed => Err(self.damaged("the snapshot was refused before", None)),
            Progress::Done if pushed.is_empty() => Ok(None),
            Progress::Done => Err(self.damaged("bytes after the end of the snapshot", None)),
            Progress::Header if pushed.len() < HEADER_BYTES => Ok(None),
            Progress::Header => match pushed[..HEADER_BYTES].split_last() {
                Some((&VERSION, magic)) if magic == MAGIC => {
                    Ok(Some((Piece::Header, HEADER_BYTES)))
                }
                Some((version, magic)) if magic == MAGIC => Err(Refused::Version(format!(
                    "the snapshot is of version {version}, and this program knows {VERSION}"
                ))),
                _ => Err(self.damaged("not a snapshot", None)),
            },
            Progress::Rows(_) if pushed.first() == Some(&TRAILER) => Ok(trailer(pushed)),
            Progress::Rows(_) => row(pushed).map_err(|what| self.damaged(what, None)),
        }
    }
}

fn trailer(pushed: &[u8]) -> Option<(Piece, usize)> {
    let mut rest = pushed.get(1..TRAILER_BYTES)?;
    let (rows, sum) = (rest.get_u64(), rest.get_u32());
    Some((Piece::Trailer { rows, sum }, TRAILER_BYTES))
}

fn row(pushed: &[u8]) -> Result<Option<(Piece, usize)>, &'static str> {
    // Lengths are checked before the bytes are waited for: a lie must not fill the memory.
    let Some((header, rest)) = pushed.split_first_chunk::<ROW_HEADER_BYTES>() else {
        return Ok(None);
    };
    let [number, high, low] = *header;
    let key_length = usize::from(u16::from_be_bytes([high, low]));
    let table = Table::ALL.into_iter().find(|table| *table as u8 == number);
    let table = table.ok_or("a row of an unknown table")?;
    if key_length == 0 || key_length > keys::TABLE_KEY_BYTES_MAX {
        return Err("a row with an impossible key");
    }
    let Some((key, rest)) = rest.split_at_checked(key_length) else { return Ok(None) };
    let Some((length, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    let row_length = u32::from_be_bytes(*length) as usize;
    if row_length > ROW_BYTES_MAX {
        return Err("a row that is too long");
    }
    let Some(row) = rest.get(..row_length) else { return Ok(None) };
    let (key, row) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(row));
    let length = ROW_HEADER_BYTES + key_length + 4 + row_length;
    Ok(Some((Piece::Row(Row { table, key, row }), length)))
}
