#![doc = "wip"]
#![cfg_attr(not(test), deny(clippy::unwrap_used))]
#![allow(dead_code, unused_imports)] // while the modules are being built

mod api;
pub mod client;
mod codec;
mod error;
#[cfg(feature = "node")]
mod lmdb;
#[cfg(feature = "node")]
mod mvcc;
#[cfg(feature = "node")]
mod node;
#[cfg(feature = "node")]
mod raft;
pub mod recipes;
mod types;
mod wire;

pub use client::{Client, ClientBuilder, Map, Session, Watch};
pub use error::{Error, ErrorKind, Reason, Result};
#[cfg(feature = "node")]
pub use node::{Node, NodeBuilder};
pub use types::{
    Changes, Comparand, Compare, Consistency, Event, FencingToken, KeyRange, KeyValue, LeaseId,
    LeaseStatus, NodeId, Op, OpResult, Page, Revision, SortBy, Status, TxnOutcome, limits,
};
