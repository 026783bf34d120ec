//! What the state machine promises, told as stories ([`golden`]), against a model ([`model`]), and against a hostile
//! disk and network ([`damage`], [`snapshots`]).

mod golden;
mod kit;
mod snapshots;
