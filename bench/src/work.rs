//! The work itself, written once for all sides.
//!
//! A [`Worker`] lives in an agent, in a process of its own or in that of a member, and carries out one [`Job`] after the
//! other. Its callers are tasks of the agent's runtime, as an application's would be. All keys lie under `k/`; what is
//! watched, leased or timed has prefixes of its own, so that one job does not disturb the next.

use crate::job::{Act, Job, Load, Place, Sample};
use crate::meter::{Caller, Meter, histogram, monotonic_ns};
use crate::store::{Fresh, Held, Result, Session, Store, Watch};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Puts in one transaction when a group is filled. etcd's default allows 128.
const FILL_BATCH: u64 = 100;
/// Transactions under way when a group is filled, and the bytes that they may hold together.
const FILL_CALLERS: usize = 16;
const FILL_BYTES_MAX: usize = 256 << 10;
/// How long a session outlives its process.
const SESSION_TTL: Duration = Duration::from_secs(10);
/// How long a wait for a single event may take before the job counts as failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// The prefixes of keys.
const KEYS: &str = "k/";
const WATCHED: &str = "w/";
const PROBE: &str = "p/";

/// Carries out jobs.
pub(crate) struct Worker<S: Store> {
    /// By member, the one that led when they were made first: the connections to it.
    stores: Vec<Vec<S>>,
    watches: JoinSet<()>,
    /// Events that all watches have seen.
    seen: Arc<AtomicU64>,
    leases: Vec<u64>,
    /// Chosen anew by each worker: names of things that must not meet those of others.
    tag: u64,
}

impl<S: Store> Worker<S> {
    pub(crate) fn new(stores: Vec<Vec<S>>) -> Self {
        let (watches, seen) = (JoinSet::new(), Arc::default());
        Self { stores, watches, seen, leases: Vec::new(), tag: fastrand::u64(..) }
    }

    pub(crate) async fn carry_out(&mut self, job: Job) -> Result<Sample> {
        match job {
            Job::Load(load) => Ok(self.load(load).await),
            Job::Fill { from, to, value_bytes } => self.fill(from, to, value_bytes).await,
            Job::Distinct { from, to, callers, value_bytes } => {
                self.distinct(from, to, callers, value_bytes).await
            }
            Job::WatchLatency { run_ms } => self.watch_latency(millis(run_ms)).await,
            Job::OpenWatches { count, apart } => self.open_watches(count, apart).await,
            Job::FanOut { putters, run_ms } => Ok(self.fan_out(putters, millis(run_ms)).await),
            Job::CloseWatches => {
                self.watches.shutdown().await;
                Ok(Sample::default())
            }
            Job::OpenLeases { count, ttl_ms, place } => {
                self.open_leases(count, millis(ttl_ms), place).await
            }
            Job::KeepAlive { callers, run_ms, place } => {
                self.keep_alive(callers, millis(run_ms), place).await
            }
            Job::Expiry { leases, ttl_ms } => self.expiry(leases, millis(ttl_ms)).await,
            Job::Lock { first, callers, names, run_ms } => {
                self.lock(first..first + callers, names, millis(run_ms)).await
            }
            Job::HandOver { turns, waited_ms } => self.hand_over(turns, millis(waited_ms)).await,
            Job::FirstWrite { limit_ms } => self.first(true, millis(limit_ms)).await,
            Job::FirstRead { limit_ms } => self.first(false, millis(limit_ms)).await,
            Job::Gap { run_ms } => Ok(self.gap(millis(run_ms)).await),
            Job::Leads | Job::ShutDown => Err("not a job for a worker".into()),
        }
    }

    fn store(&self, caller: usize, place: Place) -> S {
        let members = match place {
            Place::Spread => self.stores.len(),
            Place::Leader => 1,
        };
        let connections = &self.stores[caller % members];
        connections[caller / members % connections.len()].clone()
    }

    fn first_store(&self) -> &S {
        &self.stores[0][0]
    }

    // ------------------------------------------------------------------------------------------- keys and values

    async fn load(&self, load: Load) -> Sample {
        let meter = Meter::new(millis(load.warm_ms), millis(load.run_ms));
        let value = value(load.value_bytes);
        let mut callers = JoinSet::new();
        for index in 0..load.callers {
            let (store, caller) = (self.store(index, load.place), meter.caller());
            callers.spawn(act_again(store, caller, load.act, load.keys, value.clone()));
        }
        callers.join_all().await;
        meter.sample()
    }

    async fn fill(&self, from: u64, to: u64, value_bytes: usize) -> Result<Sample> {
        let batch = FILL_BATCH.min((FILL_BYTES_MAX / value_bytes.max(1)).max(1) as u64);
        let value = value(value_bytes);
        let began = Instant::now();
        let mut batches = futures::stream::iter((from..to).step_by(batch as usize).enumerate())
            .map(|(index, begin)| {
                let end = (begin + batch).min(to);
                let pairs = (begin..end).map(|index| (key(index), value.clone())).collect();
                let store = self.store(index, Place::Spread);
                async move { store.put_all(pairs).await }
            })
            .buffer_unordered(FILL_CALLERS);
        while let Some(done) = batches.next().await {
            done?;
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok(Sample { seconds, operations: to - from, ..Sample::default() })
    }

    async fn distinct(
        &self,
        from: u64,
        to: u64,
        callers: usize,
        value_bytes: usize,
    ) -> Result<Sample> {
        let mut order: Vec<u64> = (from..to).collect();
        fastrand::shuffle(&mut order);
        let (order, next) = (Arc::new(order), Arc::new(AtomicU64::new(0)));
        let (value, meter) = (value(value_bytes), Meter::new(Duration::ZERO, DAY));
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for index in 0..callers {
            let (store, mut caller) = (self.store(index, Place::Spread), meter.caller());
            let (order, next, value) = (Arc::clone(&order), Arc::clone(&next), value.clone());
            tasks.spawn(async move {
                while let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let began = Instant::now();
                    let outcome = store.put(&key(*index), &value).await;
                    caller.count(began, &outcome);
                }
            });
        }
        tasks.join_all().await;
        Ok(Sample { seconds: began.elapsed().as_secs_f64(), ..meter.sample() })
    }

    // --------------------------------------------------------------------------------------------------- watches

    async fn watch_latency(&self, run: Duration) -> Result<Sample> {
        let store = self.first_store();
        let prefix = Bytes::from(format!("{WATCHED}latency/"));
        let mut watch = store.watch(&prefix).await?;
        let (meter, value) = (Meter::new(run / 5, run), value(256));
        let mut caller = meter.caller();
        for index in 0_u64.. {
            let key = Bytes::from(format!("{WATCHED}latency/{}", index % 1000));
            let began = Instant::now();
            // Both are awaited, and the event may come before the put is answered: the time is that of the event.
            let seen =
                async { timeout(PATIENCE, watch.next()).await.map(|it| (it, Instant::now())) };
            let (put, seen) = tokio::join!(store.put(&key, &value), seen);
            put?;
            let (changes, at) = seen.map_err(|_| "a watch has missed an event")?;
            changes?;
            let now = Instant::now();
            if !caller.count(began + (now - at), &Ok(())) {
                break;
            }
        }
        drop(caller);
        Ok(meter.sample())
    }

    async fn open_watches(&mut self, count: usize, apart: bool) -> Result<Sample> {
        let began = Instant::now();
        let mut opening = FuturesUnordered::new();
        // There may be some already.
        let opened = self.watches.len();
        for index in 0..count {
            let store = self.store(index, Place::Spread);
            let prefix = match apart {
                true => format!("{WATCHED}apart/{:016x}/{}/", self.tag, opened + index),
                false => format!("{WATCHED}fan/"),
            };
            opening.push(async move { store.watch(&Bytes::from(prefix)).await });
            if opening.len() >= 256 {
                let watch = opening.next().await.expect("some are being opened")?;
                follow(&mut self.watches, watch, &self.seen);
            }
        }
        while let Some(watch) = opening.next().await {
            follow(&mut self.watches, watch?, &self.seen);
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok(Sample { seconds, operations: count as u64, ..Sample::default() })
    }

    async fn fan_out(&self, putters: usize, run: Duration) -> Sample {
        let meter = Meter::new(run / 5, run);
        let mut tasks = JoinSet::new();
        for index in 0..putters {
            let (store, mut caller) = (self.store(index, Place::Spread), meter.caller());
            let (key, value) = (Bytes::from(format!("{WATCHED}fan/{index}")), value(256));
            tasks.spawn(async move {
                loop {
                    let began = Instant::now();
                    let outcome = store.put(&key, &value).await;
                    if !caller.count(began, &outcome) {
                        break;
                    }
                }
            });
        }
        sleep(run / 5).await;
        let (before, began) = (self.seen.load(Ordering::Relaxed), Instant::now());
        sleep_until(began + run).await;
        let seen = self.seen.load(Ordering::Relaxed) - before;
        let seconds = began.elapsed().as_secs_f64();
        tasks.join_all().await;
        let mut sample = meter.sample();
        sample.extra.insert("puts_per_second".to_owned(), sample.per_second());
        // The figure is the events; the times are those of the puts that caused them.
        (sample.operations, sample.seconds) = (seen, seconds);
        sample
    }

    // ---------------------------------------------------------------------------------------------------- leases

    async fn open_leases(&mut self, count: usize, ttl: Duration, place: Place) -> Result<Sample> {
        let began = Instant::now();
        let mut grants = futures::stream::iter(0..count)
            .map(|index| {
                let store = self.store(index, place);
                async move { store.grant(ttl).await }
            })
            .buffer_unordered(256);
        let mut leases = Vec::with_capacity(count);
        while let Some(lease) = grants.next().await {
            leases.push(lease?);
        }
        drop(grants);
        self.leases = leases;
        let seconds = began.elapsed().as_secs_f64();
        Ok(Sample { seconds, operations: count as u64, ..Sample::default() })
    }

    async fn keep_alive(&self, callers: usize, run: Duration, place: Place) -> Result<Sample> {
        if self.leases.is_empty() {
            return Err("there are no leases to keep alive".into());
        }
        let meter = Meter::new(run / 5, run);
        let leases: Arc<[u64]> = self.leases.as_slice().into();
        let mut tasks = JoinSet::new();
        for index in 0..callers {
            let (store, mut caller) = (self.store(index, place), meter.caller());
            let leases = Arc::clone(&leases);
            tasks.spawn(async move {
                let mut at = index;
                loop {
                    let began = Instant::now();
                    let outcome = store.keep_alive(leases[at % leases.len()]).await;
                    at += callers;
                    if !caller.count(began, &outcome) {
                        break;
                    }
                }
            });
        }
        tasks.join_all().await;
        Ok(meter.sample())
    }

    async fn expiry(&self, leases: usize, ttl: Duration) -> Result<Sample> {
        let prefix = format!("{WATCHED}expiry/{:016x}/", self.tag);
        let mut watch = self.first_store().watch(&Bytes::from(prefix.clone())).await?;
        let mut deadlines = Vec::with_capacity(leases);
        for index in 0..leases {
            let store = self.first_store();
            let lease = store.grant(ttl).await?;
            // From the answer on the lease has its whole time; when the deadline was set exactly nobody outside knows.
            deadlines.push(Instant::now() + ttl);
            let key = Bytes::from(format!("{prefix}{index:06}"));
            store.put_leased(&key, &Bytes::from_static(b"leased"), lease).await?;
        }
        let (mut times, mut gone, mut early) = (histogram(), 0, 0.0);
        let last = deadlines.last().copied().unwrap_or_else(Instant::now) + PATIENCE;
        while gone < leases {
            let seen = tokio::time::timeout_at(last, watch.next()).await;
            let now = Instant::now();
            for change in seen.map_err(|_| "leases do not expire")?? {
                if change.value.is_some() {
                    continue;
                }
                gone += 1;
                let index: usize = std::str::from_utf8(&change.key[prefix.len()..])?.parse()?;
                if now < deadlines[index] {
                    early += 1.0;
                }
                let late = now.saturating_duration_since(deadlines[index]);
                times.saturating_record(late.as_nanos().max(1) as u64);
            }
        }
        let times = times.iter_recorded();
        let times = times.map(|it| (it.value_iterated_to(), it.count_at_value())).collect();
        let extra = [("early".to_owned(), early)].into();
        Ok(Sample { operations: leases as u64, times, extra, ..Sample::default() })
    }

    // -------------------------------------------------------------------------------------- locks and elections

    async fn lock(&self, callers: Range<usize>, names: usize, run: Duration) -> Result<Sample> {
        let mut sessions = Vec::new();
        for index in callers {
            let session = self.store(index, Place::Spread).session(SESSION_TTL).await?;
            sessions.push((format!("bench-{}", index % names), session));
        }
        let meter = Meter::new(run / 5, run);
        let mut tasks = JoinSet::new();
        for (name, session) in sessions {
            let mut caller = meter.caller();
            tasks.spawn(async move {
                loop {
                    let began = Instant::now();
                    let outcome = cycle(&session, &name).await;
                    if !caller.count(began, &outcome) {
                        break;
                    }
                }
                session.close().await
            });
        }
        tasks.join_all().await.into_iter().collect::<Result>()?;
        Ok(meter.sample())
    }

    async fn hand_over(&self, turns: usize, waited: Duration) -> Result<Sample> {
        let (first, second) = (self.store(0, Place::Spread), self.store(1, Place::Spread));
        let one = Arc::new(first.session(SESSION_TTL).await?);
        let other = Arc::new(second.session(SESSION_TTL).await?);
        let (mut leading, mut waiting) = (one, other);
        let mut lead = leading.campaign("bench", "one").await?;
        let mut times = histogram();
        let mut candidate = JoinSet::new();
        for _ in 0..turns {
            let next = Arc::clone(&waiting);
            candidate.spawn(async move {
                next.campaign("bench", "other").await.map(|it| (it, Instant::now()))
            });
            sleep(waited).await;
            let began = Instant::now();
            lead.release().await?;
            let elected = timeout(PATIENCE, candidate.join_next()).await;
            let elected = elected.map_err(|_| "nobody is elected")?;
            let (next, at) = elected.ok_or("nobody stands for election")???;
            times.saturating_record((at - began).as_nanos().max(1) as u64);
            lead = next;
            std::mem::swap(&mut leading, &mut waiting);
        }
        lead.release().await?;
        let times = times.iter_recorded();
        let times = times.map(|it| (it.value_iterated_to(), it.count_at_value())).collect();
        Ok(Sample { operations: turns as u64, times, ..Sample::default() })
    }

    // ------------------------------------------------------------------------------------------------- failures

    /// Tries again and again, without waiting for earlier attempts, which may hang on a member that is gone.
    async fn first(&self, write: bool, limit: Duration) -> Result<Sample> {
        let (until, mut attempts) = (Instant::now() + limit, JoinSet::new());
        let mut last_error = None;
        for index in 0.. {
            if Instant::now() >= until {
                break;
            }
            let store = self.store(index, Place::Spread);
            attempts.spawn(async move {
                let probe = Bytes::from(format!("{PROBE}{}", index % 16));
                match write {
                    true => store.put(&probe, &Bytes::from_static(b"probe")).await?,
                    false => drop(store.get(&key(0), Fresh::Linearizable).await?),
                }
                Ok(monotonic_ns())
            });
            let next = Instant::now() + Duration::from_millis(20);
            while let Ok(Some(ended)) = tokio::time::timeout_at(next, attempts.join_next()).await {
                match ended.map_err(crate::store::Error::from).and_then(|it: Result<u64>| it) {
                    Ok(at) => {
                        return Ok(Sample { operations: 1, at_ns: Some(at), ..Sample::default() });
                    }
                    Err(error) => last_error = Some(error),
                }
            }
            sleep_until(next).await;
        }
        Err(last_error.unwrap_or_else(|| "nothing was answered in time".into()))
    }

    async fn gap(&self, run: Duration) -> Sample {
        let (until, mut attempts) = (Instant::now() + run, JoinSet::new());
        let mut gaps = Gaps { last: Instant::now(), longest: Duration::ZERO };
        let mut sample = Sample { seconds: run.as_secs_f64(), ..Sample::default() };
        for index in 0.. {
            let next = Instant::now() + Duration::from_millis(5);
            if next >= until {
                break;
            }
            let store = self.store(index, Place::Spread);
            attempts.spawn(async move {
                let probe = Bytes::from(format!("{PROBE}{}", index % 16));
                store.put(&probe, &Bytes::from_static(b"probe")).await
            });
            while let Ok(Some(ended)) = tokio::time::timeout_at(next, attempts.join_next()).await {
                match ended.map_err(crate::store::Error::from).and_then(|it| it) {
                    Ok(()) => {
                        sample.operations += 1;
                        gaps.acknowledged();
                    }
                    Err(error) => {
                        sample.errors += 1;
                        sample.first_error.get_or_insert_with(|| error.to_string());
                    }
                }
            }
            sleep_until(next).await;
        }
        // A silence that lasts to the end is a gap, too.
        let longest = gaps.longest.max(until - gaps.last);
        sample.extra.insert("gap_ms".to_owned(), longest.as_secs_f64() * 1e3);
        sample
    }
}

/// Acknowledgements in order, and the longest time between two of them.
struct Gaps {
    last: Instant,
    longest: Duration,
}

impl Gaps {
    fn acknowledged(&mut self) {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
    }
}

/// As long as no job takes.
const DAY: Duration = Duration::from_secs(86_400);

async fn act_again<S: Store>(store: S, mut caller: Caller, act: Act, keys: u64, value: Bytes) {
    let prefix = Bytes::from_static(KEYS.as_bytes());
    // A list of ten million keys would be larger than what is measured, and would lie in a member's own memory.
    let any = || fastrand::u64(..keys);
    loop {
        let began = Instant::now();
        let outcome = match act {
            Act::Put => store.put(&key(any()), &value).await,
            Act::Txn => {
                let first = any();
                let puts = [&key(first), &key((first + 1) % keys)];
                store.txn(&key(any()), puts, &value).await
            }
            Act::Get(fresh) => store.get(&key(any()), fresh).await.map(drop),
            Act::Range => store.range(&prefix).await.map(drop),
            Act::Count => store.count(&prefix).await.map(drop),
            Act::Grant => store.grant(Duration::from_secs(60)).await.map(drop),
        };
        if !caller.count(began, &outcome) {
            return;
        }
    }
}

async fn cycle<T: Session>(session: &T, name: &str) -> Result {
    session.lock(name).await?.release().await
}

/// Counts what a watch sees, until it is dropped.
fn follow<W: Watch>(watches: &mut JoinSet<()>, mut watch: W, seen: &Arc<AtomicU64>) {
    let seen = Arc::clone(seen);
    watches.spawn(async move {
        while let Ok(changes) = watch.next().await {
            seen.fetch_add(changes.len() as u64, Ordering::Relaxed);
        }
    });
}

/// `k/00000042`, in a few nanoseconds: it is made anew for each operation.
fn key(index: u64) -> Bytes {
    let mut text = *b"k/00000000";
    let mut rest = index;
    for digit in text[KEYS.len()..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    assert_eq!(rest, 0, "a key has eight digits");
    Bytes::copy_from_slice(&text)
}

/// Random bytes, so that nothing can be compressed.
fn value(bytes: usize) -> Bytes {
    std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect()
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[cfg(test)]
mod tests;
