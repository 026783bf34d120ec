//! A network of byte streams between hosts, as TCP would make it, and everything that can go wrong with one.
//!
//! ```text
//! connect ─ syn ──▶ port's queue ─▶ accept              what is sent over a link that is cut waits, as TCP sends it
//!         ◀─ ack ──                                     again and again, until the link is mended or the stream reset;
//! write ── chunk, a while later ──▶ read buffer         what is lost comes later, and with it all that follows it
//! ```
//!
//! Whatever happens, happens between two steps of the simulation: [`Net::advance`] delivers what is due by then. Frames of
//! members can be sent twice: a network does not do that to a stream, but a member must be able to bear it.
//!
//! Invariants
//! - the bytes of a stream arrive in order, each once, or the stream ends in an error;
//! - a host that lost its power says nothing; its peers find out when it is back, or never.

use crate::dice::Dice;
use crate::history::Moment;
use bytes::{Buf, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::{BoxFuture, poll_fn};
use quorate::sim::{Io, Port, World};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How many bytes of one stream may be under way.
const WINDOW: usize = 256 << 10;
/// The first bytes that a caller says, which are no frame.
const CALLERS_WORDS: usize = 41;
/// Among them the kind of the connection, which is this for clients.
const KIND_AT: usize = 4;
const CLIENTS_KIND: u8 = 1;
/// After so long a host that does not answer is asked again.
const KNOCK_AGAIN: Duration = Duration::from_secs(1);
/// The method of a step of watches.
const FOLLOW: [u8; 2] = [0, 3];
const FRAME_HEAD: usize = 4;

pub type HostId = u8;

/// The simulation itself.
pub const NOBODY: HostId = 0;
/// Hosts from here on are no members.
pub const CLIENT_HOSTS: HostId = 100;

/// The network. Clones are the same.
#[derive(Clone, Debug)]
pub struct Net(Arc<Mutex<Inner>>);

/// What the links are like.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub latency: (Duration, Duration),
    /// Of a hundred chunks so many are lost once.
    pub loss: u64,
    /// Of a thousand frames between members so many come twice.
    pub twice: u64,
    /// How long it takes until a lost chunk is sent again.
    pub again: Duration,
}

#[derive(Debug)]
struct Inner {
    now: Moment,
    running: HostId,
    dice: Dice,
    weather: Weather,
    /// Host by the third number of its address.
    ports: BTreeMap<SocketAddr, PortState>,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    due: BinaryHeap<Reverse<(Moment, u64)>>,
    events: BTreeMap<u64, Event>,
    cut: BTreeSet<(HostId, HostId)>,
    /// What waits for a link that is cut.
    held: BTreeMap<(HostId, HostId), VecDeque<Event>>,
    off: BTreeSet<HostId>,
    counts: Counts,
    trace: u64,
}

/// What has happened in the network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub connections: u64,
    pub chunks: u64,
    pub bytes: u64,
    pub lost: u64,
    pub held: u64,
    pub twice: u64,
    pub late: u64,
    pub resets: u64,
}

#[derive(Debug)]
struct PortState {
    host: HostId,
    waiting: VecDeque<u64>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Connection {
    /// The caller, then the callee.
    hosts: [HostId; 2],
    state: State,
    connector: Option<Waker>,
    /// What each of them reads.
    pipes: [Pipe; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asking,
    Open,
    Refused,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Pipe {
    arrived: BytesMut,
    under_way: usize,
    /// Nothing arrives before what was sent earlier.
    not_before: Moment,
    has_ended: bool,
    is_reset: bool,
    /// The reader has gone.
    is_closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    sent: Sent,
}

/// How the bytes that were sent so far divide into frames.
#[derive(Debug, Default)]
struct Sent {
    total: usize,
    kind: u8,
    frame: BytesMut,
    /// What comes again before the next frame.
    late: BytesMut,
}

#[derive(Debug)]
enum Event {
    Syn(u64, SocketAddr),
    Answer(u64, bool),
    Chunk(u64, usize, Bytes),
    End(u64, usize),
    Reset(u64, usize),
}

impl Net {
    pub fn new(dice: Dice, weather: Weather) -> Self {
        Self(Arc::new(Mutex::new(Inner::new(dice, weather))))
    }

    /// Begins anew, when all hosts have ended.
    pub fn reset(&self, dice: Dice, weather: Weather) {
        *self.inner() = Inner::new(dice, weather);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivers everything that is due at `now`.
    pub fn advance(&self, now: Moment) {
        let mut inner = self.inner();
        inner.now = now;
        while let Some(Reverse((at, number))) = inner.due.peek().copied()
            && at <= now
        {
            inner.due.pop();
            let event = inner.events.remove(&number).expect("each event is delivered once");
            inner.deliver(event);
        }
    }

    /// Whose tasks run now.
    pub fn running(&self) -> HostId {
        self.inner().running
    }

    /// Whose tasks run from now on.
    pub fn runs(&self, host: HostId) {
        self.inner().running = host;
    }

    /// Stands for everything that was sent so far, and when.
    pub fn trace(&self) -> u64 {
        self.inner().trace
    }

    pub fn counts(&self) -> Counts {
        self.inner().counts
    }

    pub fn set_weather(&self, weather: Weather) {
        self.inner().weather = weather;
    }

    /// Cuts what goes from one host to another.
    pub fn cut(&self, from: HostId, to: HostId) {
        self.inner().cut.insert((from, to));
    }

    /// Mends all links.
    pub fn mend(&self) {
        let mut inner = self.inner();
        inner.cut.clear();
        inner.release();
    }

    /// The power of a host goes: it says nothing any more.
    pub fn power_off(&self, host: HostId) {
        let mut inner = self.inner();
        inner.off.insert(host);
        inner.ports.retain(|_, port| port.host != host);
    }

    /// It is back, and knows of no connection that was.
    pub fn power_on(&self, host: HostId) {
        self.inner().off.remove(&host);
        self.reset_all(host);
    }

    /// Breaks all connections of a host, as the end of its process does.
    pub fn reset_all(&self, host: HostId) {
        let mut inner = self.inner();
        let of_host = |connection: &&u64| inner.connections[connection].hosts.contains(&host);
        let ids: Vec<u64> = inner.connections.keys().filter(of_host).copied().collect();
        ids.into_iter().for_each(|id| inner.break_off(id));
    }

    /// Breaks one connection between two hosts, if there is one.
    pub fn reset_one(&self, one: HostId, other: HostId) {
        let mut inner = self.inner();
        let between = |it: &&u64| {
            let hosts = inner.connections[it].hosts;
            hosts == [one, other] || hosts == [other, one]
        };
        let found: Vec<u64> = inner.connections.keys().filter(between).copied().collect();
        if !found.is_empty() {
            let index = inner.dice.roll(found.len() as u64) as usize;
            inner.break_off(found[index]);
        }
    }
}

/// Whose host an address is: its last number.
fn host_of(address: SocketAddr) -> HostId {
    match address {
        SocketAddr::V4(address) => address.ip().octets()[3],
        SocketAddr::V6(_) => 0,
    }
}

impl Inner {
    fn new(dice: Dice, weather: Weather) -> Self {
        Self {
            now: Moment::ZERO,
            running: 0,
            dice,
            weather,
            ports: BTreeMap::new(),
            connections: BTreeMap::new(),
            next: 0,
            due: BinaryHeap::new(),
            events: BTreeMap::new(),
            cut: BTreeSet::new(),
            held: BTreeMap::new(),
            off: BTreeSet::new(),
            counts: Counts::default(),
            trace: 0,
        }
    }

    fn at(&mut self, at: Moment, event: Event) {
        self.next += 1;
        self.events.insert(self.next, event);
        self.due.push(Reverse((at, self.next)));
    }

    fn note(&mut self, bytes: &[u8]) {
        let sum = crc32c::crc32c(bytes);
        let when = self.now.as_nanos() as u64;
        self.trace =
            (self.trace.rotate_left(7) ^ u64::from(sum) ^ when).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn latency(&mut self) -> Duration {
        let (low, high) = self.weather.latency;
        let span = (high.saturating_sub(low)).as_micros() as u64;
        let mut latency = low + Duration::from_micros(self.dice.roll(span + 1));
        while self.dice.percent(self.weather.loss) {
            self.counts.lost += 1;
            latency += self.weather.again;
        }
        latency
    }

    fn soon(&mut self, event: Event) {
        let at = self.now + self.latency();
        self.at(at, event);
    }

    /// Sends over a pipe, behind what was sent before.
    fn send(&mut self, id: u64, side: usize, event: Event) {
        let latency = self.latency();
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let pipe = &mut connection.pipes[side];
        pipe.not_before = pipe.not_before.max(now + latency);
        let at = pipe.not_before;
        self.at(at, event);
    }

    /// The link that an event goes over.
    fn link(&self, event: &Event) -> Option<(HostId, HostId)> {
        let (id, to) = match event {
            Event::Syn(id, _) => (id, 1),
            Event::Answer(id, _) => (id, 0),
            Event::Chunk(id, side, _) | Event::End(id, side) | Event::Reset(id, side) => {
                (id, *side)
            }
        };
        let hosts = self.connections.get(id)?.hosts;
        Some((hosts[1 - to], hosts[to]))
    }

    fn deliver(&mut self, event: Event) {
        let Some(link) = self.link(&event) else { return };
        if self.cut.contains(&link) {
            self.counts.held += 1;
            return self.held.entry(link).or_default().push_back(event);
        }
        if self.off.contains(&link.1) {
            return self.not_heard(event);
        }
        match event {
            Event::Syn(id, to) => self.knock(id, to),
            Event::Answer(id, accepted) => {
                let Some(connection) = self.connections.get_mut(&id) else { return };
                connection.state = if accepted { State::Open } else { State::Refused };
                wake(&mut connection.connector);
            }
            Event::Chunk(id, side, bytes) => {
                let Some(connection) = self.connections.get_mut(&id) else { return };
                let pipe = &mut connection.pipes[side];
                pipe.under_way -= bytes.len();
                if !pipe.is_closed && !pipe.is_reset {
                    pipe.arrived.extend_from_slice(&bytes);
                }
                wake(&mut pipe.reader);
                wake(&mut pipe.writer);
            }
            Event::End(id, side) => {
                let Some(connection) = self.connections.get_mut(&id) else { return };
                connection.pipes[side].has_ended = true;
                wake(&mut connection.pipes[side].reader);
                self.forget_if_over(id);
            }
            Event::Reset(id, side) => {
                let Some(connection) = self.connections.get_mut(&id) else { return };
                connection.reset(side);
                self.forget_if_over(id);
            }
        }
    }

    /// What comes to a host without power is lost; only who knocks knocks again, as long as it waits.
    fn not_heard(&mut self, event: Event) {
        let Event::Syn(id, _) = event else { return };
        if self.connections[&id].pipes[0].is_closed {
            self.connections.remove(&id);
        } else {
            self.at(self.now + KNOCK_AGAIN, event);
        }
    }

    fn knock(&mut self, id: u64, to: SocketAddr) {
        let is_open = match self.ports.get_mut(&to) {
            Some(port) => {
                port.waiting.push_back(id);
                wake(&mut port.waker);
                true
            }
            None => false,
        };
        self.soon(Event::Answer(id, is_open));
    }

    fn break_off(&mut self, id: u64) {
        self.counts.resets += 1;
        for side in [0, 1] {
            // Now, and not behind what is under way: a reset overtakes.
            self.soon(Event::Reset(id, side));
        }
        if self.connections[&id].state == State::Asking {
            self.soon(Event::Answer(id, false));
        }
    }

    /// What waited for links that are whole again is sent on, in its order.
    fn release(&mut self) {
        let whole: Vec<_> =
            self.held.keys().filter(|link| !self.cut.contains(link)).copied().collect();
        for link in whole {
            for event in self.held.remove(&link).unwrap_or_default() {
                match event {
                    Event::Chunk(id, side, _) | Event::End(id, side) => self.send(id, side, event),
                    other => self.soon(other),
                }
            }
        }
    }

    fn forget_if_over(&mut self, id: u64) {
        let is_over = |pipe: &Pipe| pipe.is_closed && (pipe.is_reset || pipe.has_ended);
        if self.connections.get(&id).is_some_and(|it| it.pipes.iter().all(is_over)) {
            self.connections.remove(&id);
        }
    }

    /// Cuts what a member sends into frames, and sends some of them twice.
    fn repeat(&mut self, id: u64, side: usize, bytes: &[u8]) -> Bytes {
        let chance = self.weather.twice;
        let Some(connection) = self.connections.get_mut(&id) else { return Bytes::new() };
        // Only what a caller sends: an answer that comes twice is an error of the other side.
        let sent = &mut connection.pipes[side].sent;
        let words = CALLERS_WORDS.saturating_sub(sent.total).min(bytes.len());
        if sent.total == 0 {
            sent.kind = bytes.get(KIND_AT).copied().unwrap_or(CLIENTS_KIND);
        }
        sent.total += bytes.len();
        if side == 0 || chance == 0 && sent.frame.is_empty() {
            return Bytes::copy_from_slice(bytes);
        }
        let mut out = BytesMut::from(&bytes[..words]);
        sent.frame.extend_from_slice(&bytes[words..]);
        while let Some(head) = sent.frame.first_chunk::<FRAME_HEAD>() {
            let length = FRAME_HEAD + u32::from_be_bytes(*head) as usize;
            if sent.frame.len() < length {
                break;
            }
            let frame = sent.frame.split_to(length);
            // What comes late comes right before the next.
            out.extend_from_slice(&std::mem::take(&mut sent.late));
            out.extend_from_slice(&frame);
            let is_request = frame.get(4) == Some(&1);
            let is_again = is_request && self.dice.roll(1000) < chance;
            match sent.kind {
                // A write that a client sends twice is two writes, but a question that comes late must do no harm.
                CLIENTS_KIND if is_again && frame.get(6..8) == Some(&FOLLOW) => {
                    self.counts.late += 1;
                    sent.late.extend_from_slice(&frame);
                }
                CLIENTS_KIND => {}
                _ if is_again => {
                    self.counts.twice += 1;
                    out.extend_from_slice(&frame);
                }
                _ => {}
            }
        }
        out.freeze()
    }
}

impl Connection {
    fn reset(&mut self, side: usize) {
        let pipe = &mut self.pipes[side];
        pipe.is_reset = true;
        wake(&mut pipe.reader);
        // Who reads there also writes the other way.
        let other = &mut self.pipes[1 - side];
        wake(&mut other.writer);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl World for Net {
    fn connect(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        let net = self.clone();
        let id = {
            let mut inner = self.inner();
            let hosts = [inner.running, host_of(to)];
            inner.next += 1;
            let id = inner.next;
            let pipes = [Pipe::default(), Pipe::default()];
            let connection = Connection { hosts, state: State::Asking, connector: None, pipes };
            inner.connections.insert(id, connection);
            inner.counts.connections += 1;
            inner.soon(Event::Syn(id, to));
            id
        };
        // Whoever gives up waiting drops this, and the connection with it.
        let end = End { net, id, side: 0 };
        async move {
            poll_fn(|context| end.poll_open(context)).await?;
            Ok(Box::new(end) as Box<dyn Io>)
        }
        .boxed()
    }

    fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Port>> {
        let mut inner = self.inner();
        if inner.ports.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let host = inner.running;
        inner.ports.insert(address, PortState { host, waiting: VecDeque::new(), waker: None });
        Ok(Box::new(Bound { net: self.clone(), address }))
    }
}

#[derive(Debug)]
struct Bound {
    net: Net,
    address: SocketAddr,
}

impl Port for Bound {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Box<dyn Io>>> {
        let mut inner = self.net.inner();
        let Some(port) = inner.ports.get_mut(&self.address) else { return Poll::Pending };
        match port.waiting.pop_front() {
            Some(id) => Poll::Ready(Ok(Box::new(End { net: self.net.clone(), id, side: 1 }))),
            None => {
                port.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.net.inner().ports.remove(&self.address);
    }
}

/// One end of a connection.
#[derive(Debug)]
struct End {
    net: Net,
    id: u64,
    side: usize,
}

impl Io for End {}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl End {
    fn poll_open(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.net.inner();
        let Some(connection) = inner.connections.get_mut(&self.id) else {
            return Poll::Ready(Err(reset()));
        };
        match connection.state {
            State::Open => Poll::Ready(Ok(())),
            State::Refused => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            State::Asking => {
                connection.connector = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.net.inner();
        let Some(connection) = inner.connections.get_mut(&self.id) else {
            return Poll::Ready(Err(reset()));
        };
        let pipe = &mut connection.pipes[self.side];
        if pipe.is_reset {
            return Poll::Ready(Err(reset()));
        }
        if pipe.arrived.is_empty() {
            if pipe.has_ended {
                return Poll::Ready(Ok(()));
            }
            pipe.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = pipe.arrived.len().min(buffer.remaining());
        buffer.put_slice(&pipe.arrived[..length]);
        pipe.arrived.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.net.inner();
        let to = 1 - self.side;
        let is_broken =
            inner.connections.get(&self.id).is_none_or(|it| it.pipes[self.side].is_reset);
        if is_broken {
            return Poll::Ready(Err(reset()));
        }
        let out = {
            let pipe = &mut inner.connections.get_mut(&self.id).expect("it is there").pipes[to];
            if pipe.under_way >= WINDOW {
                pipe.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            inner.repeat(self.id, to, bytes)
        };
        inner.note(&out);
        inner.counts.chunks += 1;
        inner.counts.bytes += out.len() as u64;
        if let Some(connection) = inner.connections.get_mut(&self.id) {
            connection.pipes[to].under_way += out.len();
        }
        if !out.is_empty() {
            inner.send(self.id, to, Event::Chunk(self.id, to, out));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.net.inner();
        let to = 1 - self.side;
        inner.send(self.id, to, Event::End(self.id, to));
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut inner = self.net.inner();
        let to = 1 - self.side;
        let Some(connection) = inner.connections.get_mut(&self.id) else { return };
        connection.pipes[self.side].is_closed = true;
        let host = connection.hosts[self.side];
        // A host without power says nothing.
        if !inner.off.contains(&host) {
            inner.send(self.id, to, Event::End(self.id, to));
        }
        inner.forget_if_over(self.id);
    }
}
