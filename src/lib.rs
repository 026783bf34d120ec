//! [ARCHITECTURE.md]: crate::_docs::architecture
//! [DESIGN.md]: crate::_docs::design
//!
#![doc = include_str!("../README.md")]
//!
//! # Where things are
//!
#![cfg_attr(
    feature = "node",
    doc = "- [`Node`] is a member inside this process; [`NodeBuilder`] makes one."
)]
#![cfg_attr(
    feature = "node",
    doc = "- [`Backup`] has what can be done with a backup, which [`Node::backup`] makes."
)]
//! - [`Client`] is a handle to a group, local or remote; [`client`] has the requests that its methods return.
//! - [`Session`] is a lease that is kept alive; locks and elections hang on one.
//! - [`Watch`] yields changes; [`Map`] is a prefix with values of one type.
//! - [`recipes`] has locks, leader election, mirrors, configuration and service discovery.
#![cfg_attr(feature = "tls", doc = "- [`Tls`] has the certificates of members and clients.")]
//! - [`Error`] says what to do next, [`Reason`] what happened.
//! - [`limits`] has the bounds of keys, values and requests.
//!
//! The other types at the root are plain values: revisions and ids, ranges, comparisons, operations and outcomes.
//!
//! Longer documents: [ARCHITECTURE.md], [DESIGN.md], and the [changelog](crate::_docs::changelog).
#![cfg_attr(not(test), deny(clippy::unwrap_used))]
// Client and node share one vocabulary and one wire, of which a client alone uses half.
#![cfg_attr(not(feature = "node"), allow(dead_code, unused_imports))]

mod api;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
pub mod client;
mod codec;
mod error;
mod fault;
#[cfg(all(feature = "node", any(test, feature = "fuzz")))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(feature = "node")]
mod lmdb;
#[cfg(feature = "node")]
mod mvcc;
#[cfg(feature = "node")]
mod node;
#[cfg(feature = "node")]
mod raft;
pub mod recipes;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod sim;
mod types;
mod wire;

pub use client::{Client, ClientBuilder, Codec, Map, Session, Watch};
pub use error::{Error, ErrorKind, Reason, Result};
#[cfg(feature = "node")]
pub use node::{Backup, Node, NodeBuilder};
#[cfg(feature = "sim")]
#[doc(hidden)]
pub use raft::peek::Peek;
#[cfg(feature = "node")]
pub use types::{BackupInfo, Restored};
pub use types::{
    Changes, Comparand, Compare, Consistency, Event, FencingToken, KeyRange, KeyValue, LeaseId,
    LeaseStatus, Member, NodeId, Op, OpResult, Page, Revision, SortBy, Status, TxnOutcome, limits,
};
#[cfg(feature = "tls")]
pub use wire::Tls;

/// The documents of the repository, for reading beside the code.
#[cfg(doc)]
pub mod _docs {
    #[doc = "[DESIGN.md]: design\n\n"]
    #[doc = include_str!("../ARCHITECTURE.md")]
    pub mod architecture {}
    #[doc = "[ARCHITECTURE.md]: architecture\n\n"]
    #[doc = include_str!("../DESIGN.md")]
    pub mod design {}
    #[doc = include_str!("../CHANGELOG.md")]
    pub mod changelog {}
}
