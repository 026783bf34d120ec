//! The bytes of the wire, made by hand as a stranger would: `src/wire` is not asked.
//!
//! ```text
//! preamble 41 ▶   magic "QRT\0" | kind u8 | lowest, highest version u16 | features u64 | group u128 | node u64
//! ◀ answer 35     status u8 | version u16 | features u64 | group u128 | node u64
//! frame           length u32 | type u8 | flags u8 | method u16 | id u64 | crc32c u32 | payload
//! ```

use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Kinds of connections.
pub(crate) const RPC: u8 = 1;
pub(crate) const RAFT: u8 = 2;
pub(crate) const SNAPSHOT: u8 = 3;

/// What a callee answers.
pub(crate) const OK: u8 = 0;
pub(crate) const NO_COMMON_VERSION: u8 = 1;
pub(crate) const WRONG_GROUP: u8 = 2;
pub(crate) const WRONG_TARGET: u8 = 3;
pub(crate) const INCARNATION_REFUSED: u8 = 5;
pub(crate) const TIMING_DIFFERS: u8 = 6;
pub(crate) const TOO_MANY_CONNECTIONS: u8 = 7;

/// Types of frames.
pub(crate) const REQUEST: u8 = 1;
pub(crate) const RESPONSE: u8 = 3;
pub(crate) const HELLO: u8 = 4;

/// What a caller says first.
#[derive(Clone, Copy)]
pub(crate) struct Preamble {
    pub(crate) kind: u8,
    pub(crate) versions: (u16, u16),
    pub(crate) group: u128,
    pub(crate) node: u64,
}

impl Preamble {
    pub(crate) fn new(kind: u8, group: u128, node: u64) -> Self {
        Self { kind, versions: (1, 1), group, node }
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        let Self { kind, versions: (lowest, highest), group, node } = self;
        let mut bytes = b"QRT\0".to_vec();
        bytes.push(kind);
        bytes.extend_from_slice(&lowest.to_be_bytes());
        bytes.extend_from_slice(&highest.to_be_bytes());
        bytes.extend_from_slice(&0u64.to_be_bytes());
        bytes.extend_from_slice(&group.to_be_bytes());
        bytes.extend_from_slice(&node.to_be_bytes());
        bytes
    }
}

/// What a member says to another after the preamble.
#[derive(Clone, Copy)]
pub(crate) struct Hello {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) incarnations: (u64, u64),
    pub(crate) heartbeat_ms: u64,
}

impl Hello {
    /// A frame with the timing that follows from the heartbeat.
    pub(crate) fn frame(self) -> Vec<u8> {
        let Self { from, to, incarnations: (ours, theirs), heartbeat_ms } = self;
        let mut payload = Vec::new();
        for number in [from, to, ours, theirs, heartbeat_ms, 5 * heartbeat_ms, 10 * heartbeat_ms] {
            payload.extend_from_slice(&number.to_be_bytes());
        }
        // No reads by lease, and nothing that a later version would add.
        payload.extend_from_slice(&[0, 0, 0]);
        frame(HELLO, 0, 0, &payload)
    }
}

pub(crate) fn frame(frame_type: u8, method: u16, id: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + payload.len()).unwrap();
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[frame_type, 1]);
    bytes.extend_from_slice(&method.to_be_bytes());
    bytes.extend_from_slice(&id.to_be_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes), payload);
    bytes.extend_from_slice(&sum.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A connection on which anything may be said.
pub(crate) struct Stranger(TcpStream);

/// The callee's answer to a preamble.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u8,
    pub(crate) group: u128,
    pub(crate) node: u64,
}

impl Stranger {
    pub(crate) async fn connect(address: &str) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// Connects and introduces itself.
    pub(crate) async fn greet(address: &str, preamble: Preamble) -> (Self, Answer) {
        let mut stranger = Self::connect(address).await;
        stranger.say(&preamble.bytes()).await;
        let answer = stranger.answer().await;
        (stranger, answer)
    }

    /// Connects as a member, and returns what the callee thinks of its hello.
    pub(crate) async fn visit(address: &str, preamble: Preamble, hello: Hello) -> (Self, u8) {
        let (mut stranger, answer) = Self::greet(address, preamble).await;
        assert_eq!(answer.status, OK);
        stranger.say(&hello.frame()).await;
        let (frame_type, payload) = stranger.hear().await.unwrap();
        assert_eq!((frame_type, payload.len()), (HELLO, 3));
        (stranger, payload[0])
    }

    pub(crate) async fn say(&mut self, bytes: &[u8]) {
        // Whoever is sent nonsense may hang up in the middle of it.
        let _ = self.0.write_all(bytes).await;
    }

    async fn answer(&mut self) -> Answer {
        let mut bytes = [0; 35];
        self.0.read_exact(&mut bytes).await.unwrap();
        let group = u128::from_be_bytes(bytes[11..27].try_into().unwrap());
        let node = u64::from_be_bytes(bytes[27..].try_into().unwrap());
        Answer { status: bytes[0], group, node }
    }

    /// The type and payload of the next frame.
    pub(crate) async fn hear(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let length = self.0.read_u32().await?;
        let mut rest = vec![0; length as usize];
        self.0.read_exact(&mut rest).await?;
        Ok((rest[0], rest.split_off(16)))
    }

    /// Waits until the callee has hung up, and returns how many bytes it has said before.
    pub(crate) async fn is_cut_off(&mut self) -> usize {
        let mut said = Vec::new();
        // An end and a reset are the same to us.
        let _ = self.0.read_to_end(&mut said).await;
        said.len()
    }
}
