//! The keys of the tables: how revisions, user keys and lease ids become bytes that LMDB orders as we need them.
//!
//! ```text
//! position     revision: u64 ++ sub: u32                                 history order is byte order
//! history key  esc(user key) ++ position                                 all changes of a key, oldest first
//! attachment   lease: u64 ++ user key                                    all keys of a lease, in key order
//! ```
//!
//! A user key is of any length, so `a ++ position` could sort into the middle of the history of `a\0…`. Escaping makes
//! the border visible: `00` becomes `00 FF`, and the key ends with `00 01`. No escaped key is a prefix of another, and
//! escaped keys sort as the keys do.
//!
//! ```text
//! a      61 00 01            a\0    61 00 FF 00 01            ab     61 62 00 01
//! ```

use crate::api::Position;
use crate::types::{LeaseId, Revision};

/// The bytes of a [`Position`].
pub(super) const POSITION_BYTES: usize = 12;

/// The longest key that a table may have to hold: the longest escaped key, its end, and a position.
pub(super) const TABLE_KEY_BYTES_MAX: usize =
    crate::types::limits::ESCAPED_KEY_BYTES_MAX + END.len() + POSITION_BYTES;

/// Stands after an escaped key. Smaller than an escaped zero, so that a key sorts before all that it begins.
const END: [u8; 2] = [0, 1];
/// What follows a zero byte of the key.
const ZERO: u8 = 0xff;

/// The key of an event and of a large value.
pub(super) fn position(position: Position) -> [u8; POSITION_BYTES] {
    let mut bytes = [0; POSITION_BYTES];
    bytes[..8].copy_from_slice(&position.revision.get().to_be_bytes());
    bytes[8..].copy_from_slice(&position.sub.to_be_bytes());
    bytes
}

/// The position whose key this is.
pub(super) fn parse_position(bytes: &[u8]) -> Option<Position> {
    let bytes: [u8; POSITION_BYTES] = bytes.try_into().ok()?;
    let (revision, sub) = bytes.split_first_chunk::<8>()?;
    let sub = sub.try_into().ok()?;
    Some(Position {
        revision: Revision::from(u64::from_be_bytes(*revision)),
        sub: u32::from_be_bytes(sub),
    })
}

/// The key in `kidx` of the change of a user key at a position.
pub(super) fn history(key: &[u8], at: Position) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + END.len() + POSITION_BYTES);
    escape(key, &mut bytes);
    bytes.extend_from_slice(&position(at));
    bytes
}

/// The user key and the position of a key in `kidx`.
pub(super) fn parse_history(bytes: &[u8]) -> Option<(Vec<u8>, Position)> {
    let (escaped, position) = bytes.split_at_checked(bytes.len().checked_sub(POSITION_BYTES)?)?;
    Some((unescape(escaped)?, parse_position(position)?))
}

/// The key in `lease_keys` of a user key that is attached to a lease.
pub(super) fn attachment(lease: LeaseId, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + key.len());
    bytes.extend_from_slice(&lease.get().to_be_bytes());
    bytes.extend_from_slice(key);
    bytes
}

/// The lease and the user key of a key in `lease_keys`.
pub(super) fn parse_attachment(bytes: &[u8]) -> Option<(LeaseId, &[u8])> {
    let (lease, key) = bytes.split_first_chunk::<8>()?;
    Some((LeaseId::from(u64::from_be_bytes(*lease)), key))
}

/// The key in `dedup` of a client.
pub(super) fn client(id: u64) -> [u8; 8] {
    id.to_be_bytes()
}

/// The client whose key this is.
pub(super) fn parse_client(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// The key in `lease` of a lease.
pub(super) fn lease(id: LeaseId) -> [u8; 8] {
    id.get().to_be_bytes()
}

/// The lease whose key this is.
pub(super) fn parse_lease(bytes: &[u8]) -> Option<LeaseId> {
    Some(LeaseId::from(u64::from_be_bytes(bytes.try_into().ok()?)))
}

fn escape(key: &[u8], out: &mut Vec<u8>) {
    for byte in key {
        out.push(*byte);
        if *byte == 0 {
            out.push(ZERO);
        }
    }
    out.extend_from_slice(&END);
}

fn unescape(escaped: &[u8]) -> Option<Vec<u8>> {
    let mut key = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.strip_suffix(&END)?.iter();
    while let Some(byte) = bytes.next() {
        if *byte == 0 && bytes.next() != Some(&ZERO) {
            return None;
        }
        key.push(*byte);
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_of_the_keys_are_golden() {
        let at = Position { revision: Revision::from(258), sub: 3 };
        assert_eq!(position(at), [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3]);
        assert_eq!(
            history(b"a\0b", at),
            [b'a', 0, 0xff, b'b', 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3]
        );
        assert_eq!(attachment(LeaseId::from(7), b"k"), [0, 0, 0, 0, 0, 0, 0, 7, b'k']);
    }

    #[test]
    fn what_is_no_key_does_not_parse() {
        assert_eq!(parse_position(&[0; 11]), None);
        assert_eq!(parse_history(&[0; 11]), None);
        assert_eq!(parse_history(&[0; 14]), None);
        assert_eq!(unescape(b"a\0\0\0\x01"), None);
        assert_eq!(parse_attachment(&[0; 7]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn history_keys_sort_by_key_then_position(
            a in vec(prop_oneof![Just(0u8), Just(1), Just(255), Just(b'a')], 1..6),
            b in vec(prop_oneof![Just(0u8), Just(1), Just(255), Just(b'a')], 1..6),
            (revision, sub) in (any::<u64>(), any::<u32>()),
            (other_revision, other_sub) in (any::<u64>(), any::<u32>()),
        ) {
            let here = Position { revision: Revision::from(revision), sub };
            let there = Position { revision: Revision::from(other_revision), sub: other_sub };
            let order = (&a, here).cmp(&(&b, there));
            prop_assert_eq!(history(&a, here).cmp(&history(&b, there)), order);
            prop_assert_eq!(parse_history(&history(&a, here)), Some((a.clone(), here)));
        }
    }
}
