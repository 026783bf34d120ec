//! What the port reads from strangers and members, for [`mod@crate::fuzz`].
//!
//! The inputs of the targets:
//!
//! ```text
//! preamble   what: u8 (0 preamble, 1 answer, 2 hello, 3 its answer) ++ bytes
//! frames     how: u8 (bit 0: with right checksums; the rest: where it is cut) ++ a stream of frames
//! ```

use super::frame::{Accept, Frame, FrameType, HEAD_BYTES, Nonsense, checksum};
use super::limits::{RAFT_BYTES_MAX, RPC_REQUEST_BYTES_MAX};
use super::peer::read_answer;
use super::preamble::{ANSWER_BYTES, Answer, Hello, PREAMBLE_BYTES, Preamble, Status};
use super::transport::received;
use crate::api::{Request, Response};
use crate::codec::layout::Layout;
use crate::error::Error;
use bytes::{Bytes, BytesMut};
use tarpc::ClientMessage;

const STRICT: Accept = Accept { payload_max: RAFT_BYTES_MAX + 1, crc_required: true };
const LENIENT: Accept = Accept { payload_max: RPC_REQUEST_BYTES_MAX, crc_required: false };

/// The first words on a connection.
pub(crate) fn preamble(input: &[u8]) {
    match input.split_first() {
        Some((0, bytes)) => greeting(bytes),
        Some((1, bytes)) => answer(bytes),
        Some((2, bytes)) => {
            let Ok(hello) = Hello::from_payload(Bytes::copy_from_slice(bytes)) else { return };
            // The tail of a newer version is not kept.
            assert_eq!(Hello::from_payload(hello.to_payload()), Ok(hello));
        }
        Some((3, bytes)) => {
            let Ok(status) = Status::from_payload(Bytes::copy_from_slice(bytes)) else { return };
            let again = Status::from_payload(status.to_payload());
            assert_eq!(again.expect("what was written can be read"), status);
        }
        _ => {}
    }
}

fn greeting(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<PREAMBLE_BYTES>() else { return };
    let Ok(preamble) = Preamble::decode(bytes) else { return };
    assert_eq!(preamble.encode(), *bytes);
    let _ = (preamble.common_version(), preamble.check_group(1));
}

fn answer(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<ANSWER_BYTES>() else { return };
    let Ok(answer) = Answer::decode(bytes) else { return };
    assert_eq!(answer.encode(), *bytes);
    let _ = answer.status.check("address", 1, 2, answer.callee.node);
}

/// A stream of frames, and what each of them carries.
pub(crate) fn frames(input: &[u8]) {
    let Some((how, stream)) = input.split_first() else { return };
    let (is_repaired, cut) = (how & 1 == 1, 1 + usize::from(how >> 1));
    let stream = if is_repaired { repaired(stream) } else { stream.to_vec() };
    for accept in [STRICT, LENIENT] {
        let whole = decode(&stream, stream.len().max(1), accept);
        let pieces = decode(&stream, cut, accept);
        assert_eq!(whole, pieces, "cut at {cut}");
        whole.frames.into_iter().for_each(|frame| take(frame, accept));
    }
}

/// What came of a stream.
#[derive(Debug, PartialEq)]
struct Decoded {
    frames: Vec<Frame>,
    /// What ended it, or what was left of it.
    end: Result<BytesMut, Nonsense>,
}

/// Decodes as a connection does whose bytes come in pieces.
fn decode(stream: &[u8], cut: usize, accept: Accept) -> Decoded {
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
    for piece in stream.chunks(cut) {
        buffer.extend_from_slice(piece);
        loop {
            match Frame::decode(&mut buffer, accept) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(nonsense) => return Decoded { frames, end: Err(nonsense) },
            }
        }
    }
    Decoded { frames, end: Ok(buffer) }
}

/// What either side does with a frame.
fn take(frame: Frame, accept: Accept) {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    assert_eq!(Frame::decode(&mut bytes, accept), Ok(Some(frame.clone())));
    assert!(bytes.is_empty());
    match frame.frame_type {
        FrameType::Request => {
            if let Ok(ClientMessage::Request(asked)) = received(frame) {
                let _ = Request::read_body(asked.message.method, asked.message.body);
            }
        }
        FrameType::Response => {
            let _ = read_answer(frame.payload.clone());
            let _ = Result::<Response, Error>::from_bytes(frame.payload);
        }
        FrameType::Hello => {
            let _ = Hello::from_payload(frame.payload.clone());
            let _ = Status::from_payload(frame.payload);
        }
        FrameType::Cancel | FrameType::Goodbye => {}
    }
}

/// The stream with right checksums in all frames that are whole and have one.
fn repaired(stream: &[u8]) -> Vec<u8> {
    const PAYLOAD: usize = HEAD_BYTES + size_of::<u32>();
    let mut stream = stream.to_vec();
    let mut rest = &mut stream[..];
    while let Some(length) = rest.first_chunk::<4>() {
        let end = 4usize.saturating_add(u32::from_be_bytes(*length) as usize);
        let Some((frame, next)) = rest.split_at_mut_checked(end) else { break };
        if frame.len() < PAYLOAD {
            break;
        }
        let sum = checksum(&frame[..HEAD_BYTES], &frame[PAYLOAD..]);
        frame[HEAD_BYTES..PAYLOAD].copy_from_slice(&sum.to_be_bytes());
        rest = next;
    }
    stream
}

/// What these targets begin with: the name of each input, and the input.
#[cfg(test)]
pub(crate) mod seeds {
    use super::super::preamble::{Endpoint, Kind, PeerKind};
    use super::*;
    use crate::error::Reason;

    const CALLER: Endpoint = Endpoint { group: 0x0102, node: 7 };

    pub(crate) fn preamble() -> Vec<(String, Vec<u8>)> {
        let hello = Hello {
            from: 1,
            to: 2,
            from_incarnation: 3,
            to_incarnation: 0,
            heartbeat_ms: 100,
            election_min_ms: 500,
            election_max_ms: 1000,
            lease_reads: false,
        };
        let answer = Answer { status: Status::Ok, version: 1, features: 0, callee: CALLER };
        let preamble = |kind| Preamble::new(kind, CALLER).encode();
        let seed =
            |what: u8, name: &str, bytes: &[u8]| (name.to_owned(), [&[what], bytes].concat());
        vec![
            seed(0, "client", &Preamble::new(Kind::Rpc, Endpoint::client()).encode()),
            seed(0, "raft", &preamble(Kind::Peer(PeerKind::Raft))),
            seed(0, "snapshot", &preamble(Kind::Peer(PeerKind::Snapshot))),
            seed(0, "cut-off", &preamble(Kind::Rpc)[..40]),
            seed(1, "answer", &answer.encode()),
            seed(1, "answer-of-a-newer-version", &[255; ANSWER_BYTES]),
            seed(2, "hello", &hello.to_payload()),
            seed(3, "hello-answered", &Status::TimingDiffers.to_payload()),
        ]
    }

    pub(crate) fn frames() -> Vec<(String, Vec<u8>)> {
        let framed = |frame_type, method, payload: &[u8]| {
            let payload = Bytes::copy_from_slice(payload);
            let mut out = BytesMut::new();
            Frame { frame_type, method, id: 9, payload }.encode(&mut out);
            out.to_vec()
        };
        let status = framed(FrameType::Request, 7, &[0, 0, 1, 0]);
        let refused = Result::<Response, Error>::Err(Reason::NoLeader.into()).to_bytes();
        let refused = framed(FrameType::Response, 7, &refused);
        let cancel = framed(FrameType::Cancel, 0, &[]);
        let goodbye = framed(FrameType::Goodbye, 0, &[]);
        let hello = framed(FrameType::Hello, 0, &[0, 0, 0]);
        let stream = [&status[..], &cancel, &refused, &hello, &goodbye].concat();
        let mut flipped = status.clone();
        flipped[22] ^= 1;
        let seed = |how: u8, name: &str, bytes: &[u8]| (name.to_owned(), [&[how], bytes].concat());
        vec![
            seed(0, "each-type", &stream),
            seed(0x0f, "each-type-in-pieces", &stream),
            seed(0, "without-a-checksum", b"\0\0\0\x0d\x01\0\x01\x02\0\0\0\0\0\0\0\x09x"),
            seed(0, "a-flipped-bit", &flipped),
            seed(1, "a-flipped-bit-repaired", &flipped),
            seed(0, "cut-off", &status[..status.len() - 1]),
            seed(0, "a-wild-length", &[255; 24]),
            seed(0, "the-smallest-length", b"\0\0\0\x0c\x01\x01\x01\x02\0\0\0\0\0\0\0\x09"),
        ]
    }
}
