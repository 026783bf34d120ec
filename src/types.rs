//! The nouns of the public API: revisions and ids, keys with their metadata, ranges, comparisons and operations.
//!
//! Everything here is a plain value. Where the rules of the data model need a word on a type, it stands with the type;
//! the rules as a whole are those of etcd (`KV` and `Watch` of its v3 API), with the differences listed in `DESIGN.md`.
//!
//! A point of the key-value history is a *revision*; a position in the Raft log is an *index*. They are never mixed.
//!
//! | file | |
//! |---|---|
//! | `limits` | of keys, values and requests |
//! | `numbers` | revisions and ids |
//! | `events` | what a key holds, and how that changes |
//! | `range` | which keys |
//! | `reads` | how fresh a read is, how it is sorted, and what it finds |
//! | `compare`, `ops` | if …, then …, and what came of it |
//! | `status` | leases, members, a node |
//! | `backup` | what is in one, and what was made of it |

#[cfg(feature = "node")]
mod backup;
mod compare;
mod events;
pub mod limits;
mod numbers;
mod ops;
mod range;
mod reads;
mod status;

#[cfg(feature = "node")]
pub use backup::{BackupInfo, Restored};
pub use compare::{Comparand, Compare};
pub(crate) use compare::{Operand, Relation};
pub use events::{Changes, Event, KeyValue};
pub use numbers::{FencingToken, LeaseId, NodeId, Revision};
pub(crate) use ops::{DeleteOp, GetOp, OpKind, PutOp, RangeOp, Shows, TxnOp};
pub use ops::{Op, OpResult, TxnOutcome};
pub use range::KeyRange;
pub use reads::{Consistency, Page, SortBy};
pub use status::{LeaseStatus, Member, Status};
