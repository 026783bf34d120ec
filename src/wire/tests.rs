//! What the wire promises, over real sockets on loopback. This file is the kit; the promises are below it.

#[cfg(feature = "tls")]
pub(crate) mod authority;
mod calls;
mod hostile;
mod peers;
mod shutdown;
#[cfg(feature = "tls")]
mod tls;
mod together;

use super::frame::{Accept, Frame, FrameType};
use super::limits::Bounds;
use super::listener::serve_within;
use super::preamble::{ANSWER_BYTES, Answer, Preamble as Words};
use super::socket::{self, Socket};
use super::*;
use crate::api::{Call, CursorId, Follow, Request, Response};
use crate::error::{Error, Reason};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tower::util::BoxCloneSyncService;

const GROUP: u128 = 77;
const SERVER: u64 = 2;
const CALLER: u64 = 1;
/// Longer than any test: a wait that takes so long has failed.
const LONG: Duration = Duration::from_secs(20);
/// What is to pass in a test.
const SHORT: Duration = Duration::from_millis(40);

const MEMBER: Endpoint = Endpoint { group: GROUP, node: CALLER };

/// Counts something that happens elsewhere, so that a test can wait for it.
struct Signal(Semaphore);

impl Signal {
    fn new() -> Self {
        Self(Semaphore::new(0))
    }

    fn raise(&self) {
        self.0.add_permits(1);
    }

    async fn wait(&self) {
        tokio::time::timeout(LONG, self.0.acquire()).await.expect("it happens").unwrap().forget();
    }
}

/// A handler that does what the request says, and tells what becomes of it.
struct Stage {
    status: Mutex<Status>,
    hello_status: Mutex<Status>,
    /// The bodies of peer calls, as they began.
    seen: Mutex<Vec<Bytes>>,
    services: AtomicU64,
    entered: Signal,
    gate: Signal,
    dropped: Signal,
}

/// Raises `dropped` when a handler ends before its gate opened.
struct Inside<'a>(Option<&'a Stage>);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if let Some(stage) = self.0 {
            stage.dropped.raise();
        }
    }
}

impl Stage {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            status: Mutex::new(Status::Ok),
            hello_status: Mutex::new(Status::Ok),
            seen: Mutex::default(),
            services: AtomicU64::new(0),
            entered: Signal::new(),
            gate: Signal::new(),
            dropped: Signal::new(),
        })
    }

    async fn pass_gate(&self) {
        let mut inside = Inside(Some(self));
        self.entered.raise();
        self.gate.0.acquire().await.unwrap().forget();
        inside.0 = None;
    }

    async fn act(&self, body: Bytes) -> Result<Bytes, Error> {
        match &body[..] {
            b"panic" => panic!("as asked"),
            b"large" => Ok(Bytes::from(vec![0; limits::RPC_RESPONSE_BYTES_MAX + 1])),
            b"mebibyte" => {
                self.pass_gate().await;
                Ok(Bytes::from(vec![0; 1 << 20]))
            }
            b"gate" => {
                self.pass_gate().await;
                Ok(body)
            }
            b"refuse" => Err(Reason::LeaderChanged.into()),
            b"wordy" => {
                let detail = "x".repeat(limits::SNAPSHOT_BYTES_MAX);
                Err(Reason::BadOption { detail }.into())
            }
            b"closed" => Err(Reason::Closed.into()),
            _ => Ok(body),
        }
    }

    async fn handle(&self, call: Call) -> Result<Response, Error> {
        match call.request {
            Request::Founding(body) => self.act(body).await.map(Response::Founding),
            // A write; `forwarded` asks for an answer that is too large.
            Request::Propose { forwarded: true, .. } => {
                let detail = "x".repeat(limits::RPC_RESPONSE_BYTES_MAX);
                Err(Reason::BadOption { detail }.into())
            }
            Request::Propose { forwarded: false, .. } | Request::Follow(_) => {
                self.pass_gate().await;
                Ok(Response::Propose(Vec::new()))
            }
            Request::Status => panic!("as asked"),
            _ => Ok(Response::ReadIndex(7)),
        }
    }
}

/// The part of a stage that can be handed to a server.
struct Actor(Arc<Stage>);

impl Handler for Actor {
    fn welcome(&self, preamble: &Preamble) -> Welcome {
        let status = match *self.0.status.lock().unwrap() {
            Status::Ok => preamble.check_group(GROUP),
            refusal => refusal,
        };
        Welcome { status, group: GROUP, node: SERVER }
    }

    fn service(&self, _: bool) -> BoxCloneSyncService<Call, Response, Error> {
        self.0.services.fetch_add(1, Ordering::SeqCst);
        let stage = self.0.clone();
        BoxCloneSyncService::new(tower::service_fn(move |call: Call| {
            let stage = stage.clone();
            async move { stage.handle(call).await }
        }))
    }

    fn hello(&self, _: PeerKind, _: &Hello) -> Status {
        *self.0.hello_status.lock().unwrap()
    }

    fn peer_call(
        &self,
        _: PeerKind,
        from: u64,
        _: u16,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Error>> {
        assert_eq!(from, CALLER);
        self.0.seen.lock().unwrap().push(body.clone());
        let stage = self.0.clone();
        async move { stage.act(body).await }.boxed()
    }
}

/// A server, its stage and its address.
struct Kit {
    stage: Arc<Stage>,
    server: Server,
    address: String,
}

impl Kit {
    async fn new() -> Self {
        Self::within(Bounds::default()).await
    }

    async fn within(bounds: Bounds) -> Self {
        Self::at("127.0.0.1:0", bounds).await
    }

    async fn at(address: &str, bounds: Bounds) -> Self {
        Self::with(address, Security::Loopback, bounds).await
    }

    async fn with(address: &str, security: Security, bounds: Bounds) -> Self {
        let listener = bind(address, security).await.unwrap();
        let stage = Stage::new();
        let server = serve_within(listener, Arc::new(Actor(stage.clone())), bounds);
        let address = server.local_address().to_string();
        Self { stage, server, address }
    }

    fn client(&self) -> RpcClient {
        client_of(&self.address)
    }

    fn peer(&self, kind: PeerKind) -> PeerClient {
        peer_of(kind, &self.address)
    }

    /// A connection that is open and of which nothing has been said.
    async fn raw(&self) -> Socket {
        socket::connect(&self.address, &Security::Loopback).await.unwrap()
    }

    /// A connection whose preamble was answered.
    async fn greeted(&self, kind: Kind) -> Socket {
        let mut socket = self.raw().await;
        socket.write_all(&Words::new(kind, MEMBER).encode()).await.unwrap();
        assert_eq!(read_answer(&mut socket).await.status, Status::Ok);
        socket
    }

    /// The server still serves. Where its patience is short, a slow machine may need to ask twice.
    async fn is_well(&self) {
        let asks = async {
            let client = self.client();
            while say(&client, "well").await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, asks).await.expect("the server lives on");
    }
}

fn client_of(address: &str) -> RpcClient {
    RpcClient::new(address.to_owned(), Endpoint::client(), Security::Loopback, Handle::current())
}

fn peer_of(kind: PeerKind, address: &str) -> PeerClient {
    PeerClient::new(kind, address.to_owned(), Security::Loopback, Arc::new(|| (MEMBER, hello())))
}

fn hello() -> Hello {
    Hello {
        from: CALLER,
        to: SERVER,
        from_incarnation: 1,
        to_incarnation: 0,
        heartbeat_ms: 100,
        election_min_ms: 500,
        election_max_ms: 1000,
        lease_reads: false,
    }
}

fn founding(text: &str) -> Request {
    Request::Founding(Bytes::copy_from_slice(text.as_bytes()))
}

fn write() -> Request {
    Request::Propose { proposals: Vec::new(), forwarded: false }
}

fn follow() -> Request {
    Request::Follow(Follow {
        call: 1,
        stream: 1,
        after: 0,
        added: Vec::new(),
        removed: vec![CursorId(1)],
        wait: LONG,
        bytes_max: 0,
    })
}

async fn ask(client: &RpcClient, request: Request, timeout: Duration) -> Result<Response, Error> {
    client.call(Call { request, timeout }).await
}

/// Sends a text to be acted upon.
async fn say(client: &RpcClient, text: &str) -> Result<Bytes, Error> {
    match ask(client, founding(text), LONG).await? {
        Response::Founding(body) => Ok(body),
        other => panic!("not an answer to this: {other:?}"),
    }
}

async fn read_answer(socket: &mut Socket) -> Answer {
    let mut bytes = [0; ANSWER_BYTES];
    socket.read_exact(&mut bytes).await.unwrap();
    Answer::decode(&bytes).unwrap()
}

/// The next frame, `None` at the end.
async fn read_frame(socket: &mut Socket) -> Option<Frame> {
    let accept = Accept { payload_max: 1 << 24, crc_required: true };
    let mut buffer = BytesMut::new();
    loop {
        if let Some(frame) = Frame::decode(&mut buffer, accept).unwrap() {
            assert!(buffer.is_empty(), "one frame at a time");
            return Some(frame);
        }
        // Byte for byte, so as not to take from the next frame.
        match tokio::time::timeout(LONG, socket.read_u8()).await.expect("the server says something")
        {
            Ok(byte) => buffer.extend([byte]),
            Err(_) => return None,
        }
    }
}

fn encoded(frame: &Frame) -> BytesMut {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out
}

/// A frame as an Rpc client sends it.
fn rpc_frame(id: u64, method: u16, timeout_ms: u32, body: &[u8]) -> Frame {
    let payload = [&timeout_ms.to_be_bytes(), body].concat().into();
    Frame { frame_type: FrameType::Request, method, id, payload }
}

/// The server has closed the connection.
async fn is_closed(socket: &mut Socket) {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(LONG, socket.read_to_end(&mut rest)).await;
    // A reset is an end too: the server need not read what it does not understand.
    if end.expect("the server closes the connection").is_ok() {
        assert!(rest.is_empty(), "closed without a word, not with {rest:?}");
    }
}

/// Waits until only `count` tasks of this runtime are left.
async fn tasks_left(count: usize) {
    let settled = async {
        while Handle::current().metrics().num_alive_tasks() > count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, settled).await.expect("no task is left behind");
}

fn reason_of<T>(result: Result<T, Error>) -> Reason {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.reason().clone(),
    }
}
