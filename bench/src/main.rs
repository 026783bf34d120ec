//! quorate beside its peers: the same work, one run. `bench/README.md` says how.
#![allow(dead_code)]

mod etcd;
mod report;
mod store;

fn main() {}
