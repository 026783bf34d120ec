//! What the state machine promises, told as stories ([`golden`]), against a model ([`model`]), in bulk ([`bulk`]), and against a
//! hostile disk and network ([`damage`], [`snapshots`], [`backups`]).

mod backups;
mod bulk;
mod damage;
mod dedup;
mod golden;
pub(super) mod kit;
mod lazy;
mod model;
mod snapshots;
