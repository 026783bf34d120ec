//! A door for the fuzzers in `fuzz/`: everything that reads bytes from outside, one function for each.
//!
//! Behind the feature `fuzz`, hidden, and no part of the API. The bytes may come from a stranger at the port, from a
//! member that lies, or from a disk that rots. A [`Target`] does with them what a member or a client does, and panics only
//! if a promise is broken. So the same functions serve a fuzzer, which invents bytes, and `cargo test`, which replays
//! those that somebody has kept.
//!
//! ```text
//! fuzz/fuzz_targets/*   invented ─┐
//!                                 ├─▶ Target::check ─▶ measured: the door of the module ─▶ its decoders, as they are
//! tests/corpus/*/*      kept ─────┘
//! ```
//!
//! Checksums would end almost every invention at once. So most targets can put the right ones in, as somebody would who
//! means harm, and the first byte of the input says whether they do.
//!
//! Invariants
//! - bytes that are refused have changed nothing, and bytes that are taken come out again as they went in, or as the
//!   same record where the format leaves a choice;
//! - no input costs more heap than its target declares for its length: what a decoder asks for grows with what has
//!   really come, never with what a length says.

#[cfg(test)]
mod corpus;
mod folder;

use crate::api::{self, Proposal, Request, Response};
use crate::client::Codec;
use crate::codec::layout::Layout;
use crate::error::Error;
use crate::mvcc;
use crate::raft;
use crate::types::TxnOutcome;
use crate::wire;
use bytes::Bytes;
use folder::in_folder;
use std::collections::BTreeMap;
use std::time::Duration;

/// Something that reads bytes from outside.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    run: fn(&[u8]),
    heap: Heap,
}

/// The heap that an input may take: something for each of its bytes, and something at all.
#[derive(Clone, Copy, Debug)]
struct Heap {
    for_each_byte: u64,
    at_all: u64,
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What a decoder of flat records may take: small items are larger in memory, and a list is there twice while it grows.
const RECORDS: Heap = Heap { for_each_byte: 64, at_all: 64 * KIB };
/// What a client may take for an answer, which no limit of a batch bounds: the state of a lease that is unknown is one
/// byte there, and 64 in memory.
const ANSWERS: Heap = Heap { for_each_byte: 256, at_all: 64 * KIB };
/// What a decoder of cold structs may take: it believes a length up to a mebibyte, of a list and of what is in it.
const COLD: Heap = Heap { for_each_byte: 64, at_all: 2 * MIB + 64 * KIB };
/// What a state may take beside its rows, which are in LMDB's pages: answers, and a piece of a stream.
const STATE: Heap = Heap { for_each_byte: 64, at_all: 256 * KIB };
/// What commands may take that make a value of thousands of bytes out of one, and read it again and again.
const COMMANDS: Heap = Heap { for_each_byte: 4 * KIB, at_all: MIB };
/// What a file may take, which is not the input, but has changed as it says.
const FILE: Heap = Heap { for_each_byte: 64, at_all: 4 * MIB };

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "preamble", run: wire::fuzz::preamble, heap: RECORDS },
    Target { name: "frames", run: wire::fuzz::frames, heap: ANSWERS },
    Target { name: "request", run: request, heap: RECORDS },
    Target { name: "response", run: response, heap: ANSWERS },
    Target { name: "command", run: command, heap: RECORDS },
    Target { name: "value", run: value, heap: RECORDS },
    Target { name: "value_bincode", run: value_bincode, heap: COLD },
    Target { name: "entry", run: raft::fuzz::entry, heap: RECORDS },
    Target { name: "peer_call", run: raft::fuzz::peer_call, heap: RECORDS },
    Target { name: "founding", run: raft::fuzz::founding, heap: COLD },
    Target { name: "log_record", run: raft::log::fuzz::record, heap: COLD },
    Target {
        name: "log",
        run: |input| in_folder(|it| raft::log::fuzz::log(it, input)),
        heap: STATE,
    },
    Target { name: "tables", run: mvcc::fuzz::tables, heap: RECORDS },
    Target {
        name: "snapshot",
        run: |input| in_folder(|it| mvcc::fuzz::snapshot(it, input)),
        heap: STATE,
    },
    Target {
        name: "backup",
        run: |input| in_folder(|it| mvcc::fuzz::backup(it, input)),
        heap: STATE,
    },
    Target {
        name: "apply",
        run: |input| in_folder(|it| mvcc::fuzz::apply(it, input)),
        heap: COMMANDS,
    },
    Target {
        name: "lmdb_file",
        run: |input| in_folder(|it| mvcc::fuzz::lmdb_file(it, input)),
        heap: FILE,
    },
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

impl Target {
    /// Runs it once, and panics if a promise is broken. `measure` calls what it is given, and returns the most bytes of
    /// the heap that were taken at once meanwhile.
    pub fn check(&self, input: &[u8], measure: impl FnOnce(&mut dyn FnMut()) -> u64) {
        let taken = measure(&mut || (self.run)(input));
        let allowed = self.heap_max(input.len());
        assert!(
            taken <= allowed,
            "{}: {taken} bytes of heap for {} of input, and {allowed} are declared",
            self.name,
            input.len()
        );
    }

    /// The most heap that an input of this length may take.
    #[must_use]
    pub fn heap_max(&self, length: usize) -> u64 {
        self.heap.at_all + self.heap.for_each_byte * length as u64
    }
}

/// A request, as a server reads it: the number of its method, and its body.
fn request(input: &[u8]) {
    let Some((method, body)) = input.split_first() else { return };
    let method = u16::from(*method);
    let Ok(request) = Request::read_body(method, Bytes::copy_from_slice(body)) else { return };
    let mut again = Vec::new();
    request.write_body(&mut again);
    assert_eq!(request.method(), method);
    assert_eq!(again, body, "another body: {request:?}");
    // A group that grants leases of three seconds at least.
    let _ = api::check(&request, Duration::from_secs(3));
}

/// An answer, as a client reads it.
fn response(input: &[u8]) {
    type Answer = Result<Response, Error>;
    let Ok(answer) = Answer::from_bytes(Bytes::copy_from_slice(input)) else { return };
    if let Err(error) = &answer {
        let _ = (error.to_string(), error.kind(), error.is_retryable());
    }
    // The text beside a reason that both sides know is not kept, so the first bytes may be others; not the second.
    let written = answer.to_bytes();
    let again = Answer::from_bytes(written.clone()).expect("what was written can be read");
    assert_eq!(again.to_bytes(), written, "another answer: {answer:?}");
}

/// A command with its origin, as it stands in the log; and its outcome.
fn command(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    if let Ok(proposal) = Proposal::from_bytes(bytes.clone()) {
        assert_eq!(proposal.to_bytes(), bytes, "another proposal: {proposal:?}");
        let proposals = vec![proposal];
        let _ = api::check(&Request::Propose { proposals, forwarded: false }, Duration::ZERO);
    }
    if let Ok(outcome) = TxnOutcome::from_bytes(bytes.clone()) {
        assert_eq!(outcome.to_bytes(), bytes, "another outcome: {outcome:?}");
    }
}

/// The value of a key, as typed maps, mirrors and configurations read it: of any type that an application may have.
fn value(input: &[u8]) {
    values(Codec::Json, input);
}

/// The same, where they are stored with bincode.
fn value_bincode(input: &[u8]) {
    values(Codec::Bincode, input);
}

fn values(codec: Codec, input: &[u8]) {
    type Table = BTreeMap<String, Vec<Option<(u64, String)>>>;
    comes_back::<Table>(codec, input);
    comes_back::<Vec<Result<i8, char>>>(codec, input);
    comes_back::<Option<Duration>>(codec, input);
    let _ = codec.decode::<f64>(b"key", input);
    let _ = codec.decode::<()>(input, input);
}

fn comes_back<T>(codec: Codec, input: &[u8])
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    match codec.decode::<T>(b"key", input) {
        Ok(value) => {
            let bytes = codec.encode(&value).expect("what was decoded can be encoded");
            let again = codec.decode::<T>(b"key", &bytes).expect("what was written can be read");
            assert_eq!(again, value);
        }
        Err(error) => drop(error.to_string()),
    }
}
