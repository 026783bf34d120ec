//! The committed inputs, replayed; and where they come from.

use super::{Codec, Heap, MIB, TARGETS, Target, target};
use crate::api::{
    Applied, Change, Command, Cursor, CursorId, Follow, Followed, Join, News, Origin, Position,
    Proposal, Query, Request, Response,
};
use crate::codec::layout::Layout;
use crate::error::{Error, Reason};
use crate::mvcc;
use crate::raft;
use crate::types::{
    Changes, Compare, Consistency, Event, KeyRange, KeyValue, LeaseId, LeaseStatus, Member, NodeId,
    Op, OpResult, Page, Revision, Status, TxnOp, TxnOutcome,
};
use crate::wire;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// More would be downloaded by everybody, and replayed by everybody's tests.
const CORPUS_BYTES_MAX: u64 = 300 * 1024;

/// The name of each input, and the input.
type Seeds = Vec<(String, Vec<u8>)>;
type MakeSeeds = fn() -> Seeds;

/// A path in the repository. A published package has neither `tests` nor `fuzz`.
fn path(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn is_package() -> bool {
    !path("tests").exists()
}

fn folder(target: &Target) -> PathBuf {
    path("tests/corpus").join(target.name)
}

/// The committed inputs of a target.
fn corpus(target: &Target) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(folder(target)).expect("each target has a folder");
    let files = files.map(|file| file.unwrap().path());
    let named = |path: PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, fs::read(path).unwrap())
    };
    files.map(named).collect()
}

/// Runs a target once, counting the heap of this thread.
fn check(target: &Target, input: &[u8]) {
    target.check(input, |run| allocation_counter::measure(run).bytes_max);
}

#[test]
#[expect(clippy::print_stdout, reason = "a test says what it replays")]
fn every_input_that_was_kept_keeps_every_promise() {
    if is_package() {
        return;
    }
    let (mut all, mut bytes) = (0, 0);
    for target in TARGETS {
        let corpus = corpus(target);
        for (name, input) in &corpus {
            println!("{}/{name}", target.name);
            check(target, input);
            bytes += input.len() as u64;
        }
        assert!(corpus.len() >= 4, "{} replays {} inputs", target.name, corpus.len());
        all += corpus.len();
    }
    assert!(all > 100, "{all} inputs were replayed");
    assert!(bytes <= CORPUS_BYTES_MAX, "the corpus has {bytes} bytes");
}

#[test]
fn the_corpus_has_what_this_version_writes() {
    if is_package() {
        return;
    }
    for (target, seeds) in seeds() {
        let corpus = corpus(target);
        for (name, seed) in seeds {
            let kept = corpus.get(&name);
            assert!(kept == Some(&seed), "{}/{name} is another: make it anew", target.name);
        }
    }
}

#[test]
fn no_folder_of_the_corpus_is_without_a_target() {
    if is_package() {
        return;
    }
    for folder in fs::read_dir(path("tests/corpus")).unwrap() {
        let name = folder.unwrap().file_name().to_string_lossy().into_owned();
        assert!(target(&name).is_some(), "nothing replays {name}");
    }
    let names: BTreeSet<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names.len(), TARGETS.len());
}

#[test]
fn a_fuzzer_stands_before_every_target() {
    if is_package() {
        return;
    }
    let folder = path("fuzz");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    for Target { name, .. } in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "no binary {name}");
        let source = folder.join("fuzz_targets").join(format!("{name}.rs"));
        let source = fs::read_to_string(source).unwrap();
        assert!(source.contains(&format!("\"{name}\"")), "it is for another: {source}");
    }
}

#[test]
#[should_panic(expected = "bytes of heap")]
fn a_decoder_that_believes_a_length_is_caught() {
    fn greedy(input: &[u8]) {
        let length = input.first_chunk().map_or(0, |length| u32::from_be_bytes(*length));
        let believed: Vec<u8> = Vec::with_capacity(length as usize);
        drop(std::hint::black_box(believed));
    }
    let target =
        Target { name: "greedy", run: greedy, heap: Heap { for_each_byte: 4, at_all: 64 } };
    check(&target, &[0, 0, 0, 9, 1, 2]);
    check(&target, &(MIB as u32).to_be_bytes());
}

/// Makes the seeds anew, after a format has moved: `cargo test --lib fuzz -- --ignored`.
#[test]
#[ignore = "it writes the corpus"]
fn make_the_seeds() {
    for (target, seeds) in seeds() {
        let folder = folder(target);
        fs::create_dir_all(&folder).unwrap();
        for (name, seed) in seeds {
            fs::write(folder.join(name), seed).unwrap();
        }
    }
}

fn seeds() -> Vec<(&'static Target, Seeds)> {
    let all: &[(&str, MakeSeeds)] = &[
        ("preamble", wire::fuzz::seeds::preamble),
        ("frames", wire::fuzz::seeds::frames),
        ("request", requests),
        ("response", responses),
        ("command", commands),
        ("value", values),
        ("value_bincode", values_with_bincode),
        ("entry", raft::fuzz::seeds::entry),
        ("peer_call", raft::fuzz::seeds::peer_call),
        ("founding", raft::fuzz::seeds::founding),
        ("log_record", raft::log::fuzz::seeds::record),
        ("log", raft::log::fuzz::seeds::log),
        ("tables", mvcc::fuzz::seeds::tables),
        ("snapshot", mvcc::fuzz::seeds::snapshot),
        ("backup", mvcc::fuzz::seeds::backup),
        ("apply", mvcc::fuzz::seeds::apply),
        ("lmdb_file", mvcc::fuzz::seeds::lmdb_file),
    ];
    assert_eq!(all.len(), TARGETS.len());
    all.iter().map(|(name, seeds)| (target(name).unwrap(), seeds())).collect()
}

fn seed(name: &str, bytes: impl AsRef<[u8]>) -> (String, Vec<u8>) {
    (name.to_owned(), bytes.as_ref().to_vec())
}

/// One of each command; the first has one of each comparison and operation.
fn each_command() -> Vec<Proposal> {
    let lease = LeaseId::from(7);
    let when = [
        Compare::absent("a"),
        Compare::value("b").equals("2"),
        Compare::mod_revision(KeyRange::prefix("c")).above(3u64),
        Compare::version("d").below(4u64),
    ];
    let then = [
        Op::put("k", "v").lease(lease).prev(),
        Op::delete("x".."z").prev(),
        Op::range(KeyRange::all()).limit(3),
        Op::txn([], [Op::get("deep")], []),
    ];
    let txn = TxnOp { when: when.into(), then: then.into(), otherwise: vec![Op::get("k")] };
    let origin = Some(Origin { client: 1, sequence: 2, lowest_outstanding: 2, again: false });
    vec![
        Proposal { origin, command: Command::Txn(txn) },
        Command::Grant { id: None, ttl: Duration::from_secs(9) }.into(),
        Command::Grant { id: Some(lease), ttl: Duration::MAX }.into(),
        Command::Revoke(lease).into(),
        Command::Expire { deciding_term: 5, leases: vec![lease, LeaseId::from(8)] }.into(),
        Command::Compact(Revision::from(u64::MAX)).into(),
        Command::Age { deciding_term: 5 }.into(),
        Command::Room { is_short: true }.into(),
        Command::Register.into(),
        Command::AgeClients { deciding_term: 5 }.into(),
    ]
}

fn commands() -> Seeds {
    let names = ["txn", "grant", "grant-with-an-id", "revoke", "expire", "compact"];
    let commands = names.iter().zip(each_command());
    let mut all: Seeds = commands.map(|(name, it)| seed(name, it.to_bytes())).collect();
    all.push(seed("an-unknown-command", [1, 0, 99]));
    all.push(seed("a-wild-count", [1, 0, 1, 255, 255, 255, 255]));
    // Transactions in transactions, deeper than anybody may nest them.
    let level = [5, 0, 0, 0, 0, 0, 0, 0, 1];
    let deep = [&[1, 0, 1][..], &[0, 0, 0, 0, 0, 0, 0, 1], &level.repeat(100)].concat();
    all.push(seed("too-deep", deep));
    all.push(seed("outcome", outcome().to_bytes()));
    all
}

fn requests() -> Seeds {
    let cursor = |range: KeyRange| Cursor {
        range,
        next: Position { revision: Revision::from(3), sub: 1 },
        puts: true,
        deletes: false,
        prev: true,
    };
    let follow = Follow {
        stream: 1,
        call: 2,
        after: 1,
        added: vec![(CursorId(1), cursor(KeyRange::all())), (CursorId(2), cursor("a".into()))],
        removed: vec![CursorId(9)],
        wait: Duration::from_secs(1),
        bytes_max: 1 << 20,
    };
    let query = Query {
        txn: TxnOp::single(Op::range(KeyRange::prefix("a")).0),
        consistency: Consistency::Serializable,
        revision_min: Some(Revision::from(4)),
    };
    let get =
        |consistency| Query { txn: TxnOp::single(Op::get("a").0), consistency, revision_min: None };
    let leases = vec![LeaseId::from(1), LeaseId::from(u64::MAX)];
    let join = Join {
        address: "d:1".into(),
        incarnation: 7,
        name: "jobs".into(),
        heartbeat: Duration::from_millis(200),
    };
    let change = |change| Request::Change { change, forwarded: true };
    let all = [
        ("propose", Request::Propose { proposals: each_command(), forwarded: true }),
        ("query", Request::Query(query)),
        (
            "queries",
            Request::Queries(vec![get(Consistency::Serializable), get(Consistency::Linearizable)]),
        ),
        ("follow", Request::Follow(follow)),
        ("keep-alive", Request::KeepAlive { leases: leases.clone(), forwarded: false }),
        ("leases", Request::Leases { only: Some(leases), keys: true, forwarded: false }),
        ("leases-all", Request::Leases { only: None, keys: false, forwarded: true }),
        ("read-index", Request::ReadIndex),
        ("status", Request::Status),
        ("founding", Request::Founding(Bytes::from_static(b"question"))),
        ("join", Request::Join { join, forwarded: true }),
        ("members", Request::Members { forwarded: false }),
        ("promote", change(Change::Promote(NodeId::from(1030)))),
        ("remove", change(Change::Remove(NodeId::from(2)))),
        ("replace", change(Change::Replace { old: NodeId::from(2), new: Some(NodeId::from(7)) })),
    ];
    let body = |request: &Request| {
        let mut bytes = vec![request.method() as u8];
        request.write_body(&mut bytes);
        bytes
    };
    let mut seeds: Seeds = all.iter().map(|(name, it)| seed(name, body(it))).collect();
    seeds.push(seed("an-unknown-method", [9]));
    seeds.push(seed("a-wild-count", [4, 0, 0, 16, 1, 0, 0]));
    // As much memory for as few bytes as there can be.
    let empty = [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].repeat(500);
    let many = [&[2, 0, 0, 0, 0, 0, 0, 1, 244][..], &empty, &[0, 0, 0, 0, 1, 0]].concat();
    seeds.push(seed("many-empty-transactions", many));
    seeds
}

fn key_value() -> KeyValue {
    KeyValue {
        key: "k".into(),
        value: "v".into(),
        create_revision: Revision::from(2),
        mod_revision: Revision::from(3),
        version: 2,
        lease: Some(LeaseId::from(7)),
    }
}

fn outcome() -> TxnOutcome {
    let kv = key_value();
    let revision = Revision::from(3);
    let page = Page { entries: vec![kv.clone()], more: true, count: 9, revision };
    let nested = TxnOutcome { succeeded: false, revision, results: vec![OpResult::Get(None)] };
    let results = vec![
        OpResult::Put { prev: Some(kv.clone()) },
        OpResult::Get(Some(kv.clone())),
        OpResult::Deleted { count: 1, prev: vec![kv] },
        OpResult::Range(page),
        OpResult::Txn(nested),
    ];
    TxnOutcome { succeeded: true, revision, results }
}

fn responses() -> Seeds {
    let (kv, revision) = (key_value(), Revision::from(3));
    let applied = [
        Ok(Applied::Txn(outcome())),
        Ok(Applied::Granted { id: 7.into(), ttl: Duration::from_secs(9), revision }),
        Ok(Applied::Revoked { revision }),
        Ok(Applied::Expired { leases: vec![7.into()], revision }),
        Ok(Applied::Compacted { revision }),
        Ok(Applied::Noted { revision }),
        Err(Error::from(Reason::KeyNotFound)),
    ];
    let events = vec![
        Event::Put { kv: kv.clone(), prev: Some(kv) },
        Event::Delete { key: "k".into(), revision, prev: None },
    ];
    let news = News::Changes {
        changes: vec![Changes { revision, events }],
        next: Position { revision, sub: 1 },
        fragment: true,
    };
    let ended = News::Ended(Reason::Compacted { at: revision });
    let news = vec![(CursorId(1), news), (CursorId(2), ended)];
    let status = LeaseStatus {
        id: 7.into(),
        ttl: Duration::from_secs(9),
        remaining: Duration::from_secs(8),
        keys: vec!["k".into()],
    };
    let node = Status {
        id: NodeId::from(1),
        group: 1 << 100,
        leader: Some(NodeId::from(2)),
        term: 3,
        revision,
        applied_index: Some(4),
        state_hash: 5,
        bytes_in_use: 6,
        bytes_on_disk: 7,
        quota: 8,
        is_short_of_room: true,
        members: vec![(NodeId::from(1), "a:1".into())],
        states_differ_at: Some(9),
    };
    let member = Member {
        id: NodeId::from(1030),
        address: "d:1".into(),
        is_voter: false,
        is_leader: false,
        behind: Some(9),
        silent_for: Some(Duration::from_millis(200)),
    };
    let followed = Followed::Step { number: 1, progress: revision, news };
    let alive = vec![Ok(Duration::from_secs(9)), Err(Reason::LeaseNotFound { lease: 7.into() })];
    let all: Vec<(&str, Result<Response, Error>)> = vec![
        ("propose", Ok(Response::Propose(applied.into()))),
        ("query", Ok(Response::Query(outcome()))),
        ("queries", Ok(Response::Queries(vec![Ok(outcome()), Err(Reason::NoLeader.into())]))),
        ("follow", Ok(Response::Follow(followed))),
        ("follow-unknown", Ok(Response::Follow(Followed::Unknown))),
        ("keep-alive", Ok(Response::KeepAlive(alive))),
        (
            "leases",
            Ok(Response::Leases { leases: vec![Some(status), None], revision: Revision::from(7) }),
        ),
        ("read-index", Ok(Response::ReadIndex(u64::MAX))),
        ("status", Ok(Response::Status(Box::new(node)))),
        ("founding", Ok(Response::Founding("answer".into()))),
        ("join", Ok(Response::Join { node: NodeId::from(1030), founding: "record".into() })),
        ("members", Ok(Response::Members(vec![member]))),
        ("change", Ok(Response::Change)),
        ("refused", Err(Reason::NotLeader { leader: Some(NodeId::from(2)) }.into())),
        ("unknown", Err(Error::from(Reason::ConnectionLost).unknown_outcome())),
    ];
    let mut seeds: Seeds = all.iter().map(|(name, it)| seed(name, it.to_bytes())).collect();
    // Each reason that there is, with numbers for whatever it names.
    for number in 1..=64 {
        let fields = [&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2][..], &[0; 24]].concat();
        for length in [0, 1, 4, 8, 12, 16, 40] {
            let reason = [&[number], &fields[..length]].concat();
            let length = (reason.len() as u32).to_be_bytes();
            let bytes = [&[0, 1, 0, 0, 0, 0][..], &length, &reason].concat();
            if matches!(Result::<Response, Error>::from_bytes(bytes.clone().into()),
                Ok(Err(error)) if !matches!(error.reason(), Reason::Unrecognized { .. }))
            {
                seeds.push(seed(&format!("reason-{number}"), bytes));
                break;
            }
        }
    }
    // As much memory for as few bytes as there can be.
    let many = [&[1, 5, 0, 0, 16, 0][..], &[0; 4096]].concat();
    seeds.push(seed("many-unknown-leases", many));
    seeds.push(seed("a-wild-count", [1, 5, 255, 255, 255, 255, 0]));
    seeds
}

fn values_with_bincode() -> Seeds {
    let table = BTreeMap::from([("a", vec![Some((1u64, "one")), None])]);
    let table = Codec::Bincode.encode(&table).unwrap();
    let results = Codec::Bincode.encode(&vec![Ok::<i8, char>(-1), Err('x')]).unwrap();
    let duration = Codec::Bincode.encode(&Some(Duration::from_millis(1500))).unwrap();
    let many = Codec::Bincode.encode(&vec![None::<Duration>; 5000]).unwrap();
    vec![
        seed("table", table),
        seed("results", results),
        seed("duration", duration),
        seed("many", many),
        seed("a-wild-length", [253, 255, 255, 255, 255, 255, 255, 255, 255]),
        seed("a-wild-length-in-a-list", [1, 1, b'a', 252, 255, 255, 255, 255]),
        seed("no-text", [1, 2, 0xff, 0xfe, 0]),
    ]
}

fn values() -> Seeds {
    let table = BTreeMap::from([("a", vec![Some((1u64, "one")), None])]);
    let table = Codec::Json.encode(&table).unwrap();
    let results = Codec::Json.encode(&vec![Ok::<i8, char>(-1), Err('x')]).unwrap();
    let duration = Codec::Json.encode(&Some(Duration::from_millis(1500))).unwrap();
    vec![
        seed("table", table),
        seed("results", results),
        seed("duration", duration),
        seed("a-number", "1e308"),
        seed("a-number-too-large", "-1e999999999"),
        seed("too-deep", "[".repeat(1000)),
        seed("no-text", [0xff, 0xfe, b'"', 0xc0]),
        seed("cut-off", "{\"a\":[[1,\"\\ud800"),
        seed("a-duration-too-long", "{\"secs\":18446744073709551615,\"nanos\":4294967295}"),
    ]
}
