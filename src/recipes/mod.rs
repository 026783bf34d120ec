//! Recipes: what programs are coordinated with, built on the public client alone.
//!
//! Two bricks carry them all. A *place in line* (`line.rs`) is a key that one contender holds; the oldest is at the
//! head. A *mirror* (`mirror.rs`) is a local copy of some keys that follows every change.
//!
//! ```text
//! Session::lock ───────┐                             ┌── Client::config   one value, read without waiting
//! Session::election ───┴─ a place in line   a mirror ┼── Client::mirror   all values below a prefix
//!   campaign, lead                                   ├── Client::discover what Session::register has made known
//!                                                    └── Election::observe
//! ```
//!
//! # What a lock is worth
//!
//! Without a token check at the resource mutual exclusion does not hold. A holder can be paused by its operating
//! system, its hypervisor or its garbage collector after it has looked whether it still holds, for longer than any
//! deadline, and then go on. Nobody outside of the resource can prevent that. So every lock and leadership has a
//! [`FencingToken`](crate::FencingToken), which grows from holder to holder: hand it to the resource, and let the
//! resource refuse smaller ones. If the resource is this group, put `held()` into the transaction.
//!
//! # Where the keys are
//!
//! Locks, elections and services live below `quorate/lock/`, `quorate/election/` and `quorate/service/`, where an operator can
//! read them. To force a holder out, revoke its lease, whose id its key says, in hexadecimal digits: its session is lost with all
//! that it holds. To delete the key lets the next one in beside it, for it hears of that only from what carries `held()` or the
//! token. Configuration and mirrors live where you say.

pub mod config;
#[cfg(feature = "discover")]
mod discover;
pub mod election;
mod line;
pub mod lock;
pub mod mirror;
pub mod registry;

pub use config::Config;
pub use election::{Election, Leader, Leadership};
pub use lock::LockGuard;
pub use mirror::Mirror;
pub use registry::Registration;
