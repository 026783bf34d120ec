//! The parts of a write and of a read, each alone: `cargo bench -p quorate-bench --bench micro`.
//!
//! They answer "where does the time go" and "did this change help", not "how fast is it": there is no network, no Raft
//! and, but for `apply::durable`, no disk. What a user meets is measured by `compare`.
//!
//! ```text
//! codec, frame    bytes in and out          request, entry, checksum
//! apply           entries ──▶ state         batches of puts, without and with flushes
//! get, range      state ──▶ answer          each from a view of its own, as a member answers
//! events          history ──▶ watch         all steps from a revision up to the newest
//! ```
//!
//! Every state has keys `key/00000000`, `key/00000001` … with values of 256 bytes, so a prefix of the right length is a
//! range of ten, a thousand or ten thousand. Which keys are read and written is random, with one seed.
//!
//! States lie in the folder for temporary files, which `TMPDIR` names. On a disk, half of `apply::memory` is the copying
//! of pages to the file system's cache; for a steadier figure let it name a folder in memory, where `apply::durable`
//! then says nothing.
//!
//! The whole takes about half a minute. A word after `--` runs what has it in its name.

use bytes::{Bytes, BytesMut};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use quorate::KeyRange;
use quorate::bench::{self, Answer, Batch, Entry, Question, Request, State};
use tempfile::TempDir;

const KEYS: usize = 10_000;
const MANY_KEYS: usize = 1_000_000;
const VALUE_BYTES: usize = 256;
/// How many puts fill a state at once.
const FILL: usize = 4096;
const SEED: u64 = 7;

fn main() {
    divan::main();
}

/// A state with its folder, which goes with it.
struct Lab {
    state: State,
    _folder: TempDir,
}

impl Lab {
    fn new(is_durable: bool) -> Self {
        let folder = tempfile::tempdir().expect("there is room for a folder");
        let state = State::create(folder.path(), is_durable).expect("the folder is empty");
        Self { state, _folder: folder }
    }

    /// Each key was put once, in order.
    fn filled(keys: usize, is_durable: bool) -> Self {
        let lab = Self::new(is_durable);
        lab.put(0..keys);
        lab
    }

    fn put(&self, keys: impl Iterator<Item = usize>) {
        let mut keys = keys.peekable();
        while keys.peek().is_some() {
            let batch = self.batch(keys.by_ref().take(FILL));
            self.apply(&batch);
        }
        self.state.flush().expect("the disk takes it");
    }

    fn batch(&self, keys: impl Iterator<Item = usize>) -> Batch {
        self.state.batch(keys.map(|number| (key(number), value(VALUE_BYTES))))
    }

    fn apply(&self, batch: &Batch) -> u64 {
        self.state.apply(batch).expect("the batch is applied")
    }

    fn ask(&self, question: &Question) -> Answer {
        self.state.ask(question).expect("the question is answered")
    }

    fn events(&self, range: &KeyRange, from: u64) -> usize {
        self.state.events(range, from).expect("history is there")
    }
}

fn key(number: usize) -> Bytes {
    format!("key/{number:08}").into()
}

/// A value of its own, as each request that arrives has one.
fn value(bytes: usize) -> Bytes {
    vec![b'v'; bytes].into()
}

/// The range of so many keys, a power of ten, in a state of ten thousand.
fn range(keys: usize) -> KeyRange {
    let digits = 8 - keys.ilog10() as usize;
    KeyRange::prefix(&key(0)[..4 + digits])
}

#[divan::bench_group(sample_count = 1000, max_time = 2.5)]
mod apply {
    use super::*;

    #[divan::bench(args = [1, 16, 256, 4096])]
    fn memory(bencher: Bencher<'_, '_>, puts: usize) {
        let lab = Lab::filled(KEYS, false);
        puts_over(&lab, bencher, puts, VALUE_BYTES, |batch| lab.apply(batch));
    }

    /// Values of eight bytes.
    #[divan::bench(args = [256])]
    fn small(bencher: Bencher<'_, '_>, puts: usize) {
        let lab = Lab::filled(KEYS, false);
        puts_over(&lab, bencher, puts, 8, |batch| lab.apply(batch));
    }

    /// With a flush for each batch.
    #[divan::bench(args = [1, 16, 256, 4096])]
    fn durable(bencher: Bencher<'_, '_>, puts: usize) {
        let lab = Lab::filled(KEYS, true);
        puts_over(&lab, bencher, puts, VALUE_BYTES, |batch| {
            lab.apply(batch);
            lab.state.flush().expect("the disk takes it");
        });
    }

    /// Puts of keys that exist.
    fn puts_over<T>(
        lab: &Lab,
        bencher: Bencher<'_, '_>,
        puts: usize,
        bytes: usize,
        apply: impl Fn(&Batch) -> T,
    ) {
        let mut random = fastrand::Rng::with_seed(SEED);
        let mut put = || (key(random.usize(..KEYS)), value(bytes));
        bencher
            .counter(ItemsCount::new(puts))
            .with_inputs(|| lab.state.batch((0..puts).map(|_| put())))
            .bench_local_refs(|batch| apply(batch));
    }
}

#[divan::bench_group(sample_count = 2000, sample_size = 16, max_time = 1)]
mod get {
    use super::*;

    #[divan::bench(args = [KEYS, MANY_KEYS])]
    fn hit(bencher: Bencher<'_, '_>, keys: usize) {
        let lab = Lab::filled(keys, false);
        let mut random = fastrand::Rng::with_seed(SEED);
        assert_eq!(lab.ask(&Question::get(&key(keys - 1))).keys(), (1, 1));
        bencher
            .counter(ItemsCount::new(1usize))
            .with_inputs(|| Question::get(&key(random.usize(..keys))))
            .bench_local_refs(|question| lab.ask(question));
    }

    #[divan::bench]
    fn miss(bencher: Bencher<'_, '_>) {
        let lab = Lab::filled(KEYS, false);
        let question = Question::get(b"key/absent");
        bencher.counter(ItemsCount::new(1usize)).bench_local(|| lab.ask(&question));
    }
}

#[divan::bench_group(sample_count = 200, max_time = 1)]
mod range_of {
    use super::*;

    /// Keys and values.
    #[divan::bench(args = [10, 1000, 10_000])]
    fn entries(bencher: Bencher<'_, '_>, keys: usize) {
        ask(bencher, keys, keys, &Question::range(range(keys), 0));
    }

    /// The first ten of so many, which are counted to the last.
    #[divan::bench(args = [1000, 10_000])]
    fn first_ten(bencher: Bencher<'_, '_>, keys: usize) {
        ask(bencher, keys, 10, &Question::range(range(keys), 10));
    }

    #[divan::bench(args = [10, 1000, 10_000])]
    fn count(bencher: Bencher<'_, '_>, keys: usize) {
        ask(bencher, keys, 0, &Question::count(range(keys)));
    }

    fn ask(bencher: Bencher<'_, '_>, keys: usize, shown: usize, question: &Question) {
        let lab = Lab::filled(KEYS, false);
        assert_eq!(lab.ask(question).keys(), (shown, keys as u64));
        bencher.counter(ItemsCount::new(keys)).bench_local(|| lab.ask(question));
    }
}

#[divan::bench_group(sample_count = 200, max_time = 1)]
mod events {
    use super::*;

    #[divan::bench(args = [100, 10_000])]
    fn matching(bencher: Bencher<'_, '_>, revisions: usize) {
        follow(bencher, revisions, revisions, &KeyRange::prefix("key/"));
    }

    /// The watch passes them all, and finds nothing.
    #[divan::bench(args = [100, 10_000])]
    fn passing(bencher: Bencher<'_, '_>, revisions: usize) {
        follow(bencher, revisions, 0, &KeyRange::prefix("other/"));
    }

    /// One key that has not changed meanwhile is looked up, not searched for.
    #[divan::bench(args = [10_000])]
    fn of_quiet_key(bencher: Bencher<'_, '_>, revisions: usize) {
        follow(bencher, revisions, 0, &KeyRange::key(key(KEYS)));
    }

    fn follow(bencher: Bencher<'_, '_>, revisions: usize, found: usize, range: &KeyRange) {
        let lab = Lab::filled(KEYS, false);
        let random = &mut fastrand::Rng::with_seed(SEED);
        let newest = lab.apply(&lab.batch(std::iter::empty()));
        lab.put((0..revisions).map(|_| random.usize(..KEYS)));
        assert_eq!(lab.events(range, newest + 1), found);
        bencher.counter(ItemsCount::new(revisions)).bench_local(|| lab.events(range, newest + 1));
    }
}

#[divan::bench_group(sample_count = 200, max_time = 0.5)]
mod codec {
    use super::*;

    #[divan::bench(args = [256, 64 * 1024])]
    fn request_encode(bencher: Bencher<'_, '_>, bytes: usize) {
        let request = Request::put(key(0), value(bytes));
        bencher.counter(BytesCount::new(bytes)).bench_local(|| request.encode());
    }

    /// The value is a slice of the bytes, so its length does not matter.
    #[divan::bench(args = [256, 64 * 1024])]
    fn request_decode(bencher: Bencher<'_, '_>, bytes: usize) {
        let encoded = Bytes::from(Request::put(key(0), value(bytes)).encode());
        bencher
            .counter(ItemsCount::new(1usize))
            .bench_local(|| Request::decode(encoded.clone()).expect("a request"));
    }

    #[divan::bench(args = [256, 64 * 1024])]
    fn entry_encode(bencher: Bencher<'_, '_>, bytes: usize) {
        let entry = Entry::put(key(0), value(bytes));
        bencher.counter(BytesCount::new(bytes)).bench_local(|| entry.encode());
    }

    #[divan::bench(args = [256, 64 * 1024])]
    fn entry_decode(bencher: Bencher<'_, '_>, bytes: usize) {
        let encoded = Entry::put(key(0), value(bytes)).encode();
        bencher
            .counter(ItemsCount::new(1usize))
            .bench_local(|| Entry::decode(encoded.clone()).expect("an entry"));
    }
}

#[divan::bench_group(sample_count = 200, max_time = 0.5)]
mod frame {
    use super::*;

    /// Into a buffer with room, as a connection keeps one.
    #[divan::bench(args = [256, 64 * 1024])]
    fn encode(bencher: Bencher<'_, '_>, bytes: usize) {
        let payload = value(bytes);
        let mut out = BytesMut::with_capacity(2 * bytes);
        bencher.counter(BytesCount::new(bytes)).bench_local(|| {
            out.clear();
            bench::framed(payload.clone(), &mut out);
        });
    }

    #[divan::bench(args = [256, 64 * 1024])]
    fn decode(bencher: Bencher<'_, '_>, bytes: usize) {
        let mut frame = BytesMut::new();
        bench::framed(value(bytes), &mut frame);
        bencher
            .counter(BytesCount::new(bytes))
            .with_inputs(|| frame.clone())
            .bench_local_refs(|frame| bench::unframed(frame).expect("a frame"));
    }
}
