//! quorate beside its peers: the same work, one run. `bench/README.md` says how.
#![allow(dead_code)]

mod limit;
mod plots;
mod report;
mod store;

fn main() {}
