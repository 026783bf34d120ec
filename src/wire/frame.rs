//! A frame: the envelope of every message after the preamble. Pure bytes in and out, no sockets.
//!
//! ```text
//! 0       4      5       6         8        16            20
//! ├ len ──┼ type ┼ flags ┼ method ─┼ id ────┼ [crc32c] ───┼ payload …
//!   u32     u8     u8      u16       u64      u32, if flag bit 0
//!         ╰───────────────── len counts these ────────────────────╯
//! ```
//!
//! | type | sent by | method, id | payload |
//! |---|---|---|---|
//! | 1 request | caller | which method, any id | Rpc: `timeout_ms: u32 ++ body`; peers: body |
//! | 2 cancel | Rpc caller | 0, id of the request | none; nobody waits for that answer any more |
//! | 3 response | callee | id of the request; peers: its method too | `1 ++ body`, or `0 ++ error` |
//! | 4 hello | peers, once each way | 0, 0 | who and whom; the answer is a status |
//! | 5 goodbye | callee | 0, 0 | none; it answers what is under way, and wants nothing new |
//!
//! The checksum is over all the bytes before it, the length included, and the payload. This version always sends it,
//! and members insist on it: a bit that flips on its way must not become a vote.
//!
//! Invariants
//! - a length is checked before anything is reserved for it, and memory grows with the bytes that have really come;
//! - a small frame owns its bytes: a key that somebody keeps pins its own frame in memory, never its neighbours;
//! - whatever is not a frame of this version is [`Nonsense`], after which the connection is of no use.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Everything before the checksum.
pub(super) const HEAD_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
const LEN_BYTES: usize = 4;
const FLAG_CRC: u8 = 1;
/// From this size on a payload keeps the buffer that it came in, instead of a copy.
const OWN_BUFFER_BYTES: usize = 64 * 1024;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FrameType {
    Request = 1,
    Cancel = 2,
    Response = 3,
    Hello = 4,
    Goodbye = 5,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) frame_type: FrameType,
    pub(super) method: u16,
    pub(super) id: u64,
    pub(super) payload: Bytes,
}

/// What a receiver accepts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accept {
    pub(super) payload_max: usize,
    pub(super) crc_required: bool,
}

/// Bytes that are no frame of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nonsense {
    Length(u32),
    Type(u8),
    Flags(u8),
    Checksum,
}

impl std::fmt::Display for Nonsense {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Length(len) => write!(f, "a frame of {len} bytes"),
            Self::Type(number) => write!(f, "a frame of type {number}"),
            Self::Flags(flags) => write!(f, "a frame with flags {flags:#04x}"),
            Self::Checksum => f.write_str("a frame whose checksum is wrong"),
        }
    }
}

impl FrameType {
    fn from_number(number: u8) -> Result<Self, Nonsense> {
        match number {
            1 => Ok(Self::Request),
            2 => Ok(Self::Cancel),
            3 => Ok(Self::Response),
            4 => Ok(Self::Hello),
            5 => Ok(Self::Goodbye),
            _ => Err(Nonsense::Type(number)),
        }
    }
}

impl Frame {
    /// A frame without method, id and payload.
    pub(super) fn bare(frame_type: FrameType) -> Self {
        Self { frame_type, method: 0, id: 0, payload: Bytes::new() }
    }

    /// Appends the frame to `out`.
    pub(super) fn encode(&self, out: &mut BytesMut) {
        let len = HEAD_BYTES - LEN_BYTES + CRC_BYTES + self.payload.len();
        let start = out.len();
        out.reserve(LEN_BYTES + len);
        out.put_u32(u32::try_from(len).expect("senders keep payloads below the limits"));
        out.put_u8(self.frame_type as u8);
        out.put_u8(FLAG_CRC);
        out.put_u16(self.method);
        out.put_u64(self.id);
        out.put_u32(checksum(&out[start..], &self.payload));
        out.put_slice(&self.payload);
    }

    /// Takes one frame from the front of `buffer`, if it is complete.
    pub(super) fn decode(buffer: &mut BytesMut, accept: Accept) -> Result<Option<Self>, Nonsense> {
        let Some(&head) = buffer.first_chunk::<HEAD_BYTES>() else {
            // Refuse a wild length at once, rather than wait for the rest of its head.
            return check_length(&buffer[..], accept).map(|_| None);
        };
        let Some(len) = check_length(&head, accept)? else { return Ok(None) };
        let (number, flags) = (head[4], head[5]);
        let frame_type = FrameType::from_number(number)?;
        let has_crc = flags == FLAG_CRC;
        if !has_crc && (flags != 0 || accept.crc_required) {
            return Err(Nonsense::Flags(flags));
        }
        let head_len = HEAD_BYTES + if has_crc { CRC_BYTES } else { 0 };
        let Some(payload_len) = (LEN_BYTES + len).checked_sub(head_len) else {
            return Err(Nonsense::Length(len as u32));
        };
        if payload_len > accept.payload_max {
            return Err(Nonsense::Length(len as u32));
        }
        if buffer.len() < LEN_BYTES + len {
            return Ok(None);
        }
        if has_crc {
            let expected = (&buffer[HEAD_BYTES..]).get_u32();
            if checksum(&buffer[..HEAD_BYTES], &buffer[head_len..][..payload_len]) != expected {
                return Err(Nonsense::Checksum);
            }
        }
        buffer.advance(head_len);
        let mut rest = &head[6..];
        let (method, id) = (rest.get_u16(), rest.get_u64());
        Ok(Some(Self { frame_type, method, id, payload: take_payload(buffer, payload_len) }))
    }
}

/// The length field, if it is there yet and can be one.
fn check_length(mut head: &[u8], accept: Accept) -> Result<Option<usize>, Nonsense> {
    if head.len() < LEN_BYTES {
        return Ok(None);
    }
    let len = head.get_u32();
    let smallest = HEAD_BYTES - LEN_BYTES;
    let largest = smallest + CRC_BYTES + accept.payload_max;
    if (smallest..=largest).contains(&(len as usize)) {
        Ok(Some(len as usize))
    } else {
        Err(Nonsense::Length(len))
    }
}

fn take_payload(buffer: &mut BytesMut, len: usize) -> Bytes {
    if len >= OWN_BUFFER_BYTES {
        return buffer.split_to(len).freeze();
    }
    let payload = Bytes::copy_from_slice(&buffer[..len]);
    buffer.advance(len);
    payload
}

pub(super) fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), payload)
}

/// Appends a request with this payload to `out`. For `crate::bench`.
#[cfg(feature = "bench")]
pub(crate) fn framed(payload: Bytes, out: &mut BytesMut) {
    Frame { frame_type: FrameType::Request, method: 1, id: 1, payload }.encode(out);
}

/// The payload of the frame at the front of `buffer`, received as members receive it. For `crate::bench`.
#[cfg(feature = "bench")]
pub(crate) fn unframed(buffer: &mut BytesMut) -> Option<Bytes> {
    let accept = Accept { payload_max: super::limits::RAFT_BYTES_MAX, crc_required: true };
    Frame::decode(buffer, accept).ok().flatten().map(|frame| frame.payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STRICT: Accept = Accept { payload_max: 100, crc_required: true };
    const LENIENT: Accept = Accept { payload_max: 100, crc_required: false };

    fn frame(payload: &'static [u8]) -> Frame {
        let payload = Bytes::from_static(payload);
        Frame { frame_type: FrameType::Request, method: 0x0102, id: 9, payload }
    }

    fn bytes_of(frame: &Frame) -> BytesMut {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        out
    }

    #[test]
    fn the_bytes_of_frames_are_golden() {
        let golden: &[u8] = &[
            0, 0, 0, 18, 1, 1, 1, 2, // len, type, flags, method
            0, 0, 0, 0, 0, 0, 0, 9, // id
            0x85, 0xf9, 0xf3, 0xdb, // crc32c
            b'h', b'i',
        ];
        assert_eq!(bytes_of(&frame(b"hi")), golden);
        assert_eq!(Frame::decode(&mut golden.into(), STRICT), Ok(Some(frame(b"hi"))));
        let goodbye = bytes_of(&Frame::bare(FrameType::Goodbye));
        assert_eq!(goodbye[..16], [0, 0, 0, 16, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(goodbye.len(), 20);
    }

    #[test]
    fn a_frame_without_checksum_is_for_clients_only() {
        let bytes: &[u8] = &[0, 0, 0, 13, 1, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 9, b'x'];
        assert_eq!(Frame::decode(&mut bytes.into(), LENIENT), Ok(Some(frame(b"x"))));
        assert_eq!(Frame::decode(&mut bytes.into(), STRICT), Err(Nonsense::Flags(0)));
    }

    #[test]
    fn a_wild_length_is_refused_before_anything_else_arrives() {
        let decode = |len: u32| Frame::decode(&mut len.to_be_bytes()[..].into(), STRICT);
        assert_eq!(decode(u32::MAX), Err(Nonsense::Length(u32::MAX)));
        assert_eq!(decode(117), Err(Nonsense::Length(117)));
        assert_eq!(decode(116), Ok(None));
        assert_eq!(decode(11), Err(Nonsense::Length(11)));
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let good = bytes_of(&frame(b"payload"));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // A longer length waits for bytes that do not come; everything else is refused.
            let decoded = Frame::decode(&mut bad, STRICT);
            assert!(matches!(decoded, Err(_) | Ok(None)), "bit {bit}: {decoded:?}");
        }
    }

    #[test]
    fn frames_come_out_whole_however_the_bytes_arrive() {
        let stream = [bytes_of(&frame(b"one")), bytes_of(&frame(b"")), bytes_of(&frame(b"three"))];
        let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
        for byte in stream.concat() {
            buffer.put_u8(byte);
            frames.extend(Frame::decode(&mut buffer, STRICT).unwrap());
        }
        assert_eq!(frames, [frame(b"one"), frame(b""), frame(b"three")]);
        assert!(buffer.is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            len in 0u32..200, frame_type in 0u8..8, flags in 0u8..3, crc_required: bool,
        ) {
            let accept = Accept { payload_max: 100, crc_required };
            let _ = Frame::decode(&mut bytes[..].into(), accept);
            let mut likely = BytesMut::new();
            likely.put_u32(len);
            likely.put_u8(frame_type);
            likely.put_u8(flags);
            likely.put_slice(&bytes);
            let _ = Frame::decode(&mut likely, accept);
        }
    }
}
