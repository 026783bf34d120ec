//! The hash of the whole state, kept up to date by each change.
//!
//! Two members at the same log position must hold the same state. To compare them cheaply, the state has a hash that is
//! the *sum* of the hashes of its rows: a row that comes adds its own, a row that goes takes it away, and nothing else
//! has to be read. Damage that a checksum cannot see (a row that is gone, or came back) shows when the sum is computed
//! anew.
//!
//! ```text
//! hash = settings(revision, compact_revision, …) + membership
//!      + Σ key(k, its Image) + Σ lease(id, ttl) + Σ client(id, …) + Σ answer(client, number, bytes)        modulo 2^128
//! ```
//!
//! A sum is only as good as what is summed, so each row goes through a pseudo-random function in the style of SipHash:
//! four words of state, two rounds for each word of input, four rounds at the end. Its words are big-endian, as all
//! bytes of ours; its key is a constant, for it guards against accidents and bugs, not against a member that lies.
//!
//! The layout of [`Image`] is hashed as it is written: a new layout is a new hash, so members compare only if they
//! agree on the format.

use super::records::{Head, Image, LeaseRow, Membership};
use crate::codec::layout::Layout;
use crate::types::LeaseId;

/// What members compare that have the same. It goes up whenever a state of the same rows gets another hash, so that a group
/// whose members are replaced by those of another version, one after the other, does not take that for damage.
pub(crate) const HASH_FORMAT: u8 = 4;

const KEY: u8 = 1;
const LEASE: u8 = 2;
const SETTINGS: u8 = 3;
const MEMBERSHIP: u8 = 4;
const CLIENT: u8 = 5;
const ANSWER: u8 = 6;

/// What an image takes with a value that is kept in its row, so that the buffer need not grow.
const ROOM: usize = 128;

/// What a key adds to the hash.
pub(super) fn of_key(key: &[u8], image: &Image) -> u128 {
    let mut bytes = Vec::with_capacity(1 + 4 + key.len() + ROOM);
    KEY.write(&mut bytes);
    // The length keeps the key apart from what follows it.
    crate::codec::layout::write_length(key.len(), &mut bytes);
    bytes.extend_from_slice(key);
    image.write(&mut bytes);
    digest(&bytes)
}

/// What a lease adds to the hash.
pub(super) fn of_lease(id: LeaseId, lease: &LeaseRow) -> u128 {
    let mut bytes = vec![LEASE];
    id.write(&mut bytes);
    lease.write(&mut bytes);
    digest(&bytes)
}

/// What a client adds to the hash, without the answers that are kept for it.
pub(super) fn of_client(id: u64, floor: u64, seen: u64) -> u128 {
    let mut bytes = vec![CLIENT];
    id.write(&mut bytes);
    floor.write(&mut bytes);
    seen.write(&mut bytes);
    digest(&bytes)
}

/// What an answer that is kept for a client adds to the hash.
pub(super) fn of_answer(client: u64, number: u64, answer: &[u8]) -> u128 {
    let mut bytes = Vec::with_capacity(1 + 8 + 8 + answer.len());
    ANSWER.write(&mut bytes);
    client.write(&mut bytes);
    number.write(&mut bytes);
    bytes.extend_from_slice(answer);
    digest(&bytes)
}

/// What the members of the group add to the hash.
pub(super) fn of_membership(membership: &Membership) -> u128 {
    let mut bytes = vec![MEMBERSHIP];
    membership.write(&mut bytes);
    digest(&bytes)
}

/// The hash of the state, from the sum of its rows and what stands once.
pub(super) fn of_state(head: &Head) -> u128 {
    let mut bytes = vec![SETTINGS];
    head.revision.write(&mut bytes);
    head.compact_revision.write(&mut bytes);
    head.keys.write(&mut bytes);
    head.lease_chosen.write(&mut bytes);
    head.client_chosen.write(&mut bytes);
    head.clients.write(&mut bytes);
    head.client_age.write(&mut bytes);
    head.ages.write(&mut bytes);
    head.is_short_of_room.write(&mut bytes);
    head.rows_hash.wrapping_add(digest(&bytes))
}

/// 128 bits that depend on every bit of `bytes` and on their number.
pub(super) fn digest(bytes: &[u8]) -> u128 {
    let mut state = State::NEW;
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        state.absorb(u64::from_be_bytes(*word));
    }
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    // The low byte is free: a tail has seven bytes at most.
    state.absorb(u64::from_be_bytes(last) | (bytes.len() as u64 & 0xff));
    state.finish()
}

/// Where a key comes to lie in a table in memory, which nobody can know who does not know the seed.
pub(super) fn of_place(seed: u64, key: &[u8]) -> u64 {
    let mut state = State::NEW;
    state.0[1] ^= seed;
    let (words, tail) = key.as_chunks::<8>();
    words.iter().for_each(|word| state.absorb(u64::from_be_bytes(*word)));
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    state.absorb(u64::from_be_bytes(last) | (key.len() as u64 & 0xff));
    state.stir(3);
    state.fold()
}

/// The four words that the input is stirred into.
struct State([u64; 4]);

impl State {
    /// The first hexadecimal digits of π's fraction: numbers with nothing up their sleeve.
    const NEW: Self = Self([
        0x243f_6a88_85a3_08d3,
        0x1319_8a2e_0370_7344,
        0xa409_3822_299f_31d0,
        0x082e_fa98_ec4e_6c89,
    ]);

    fn absorb(&mut self, word: u64) {
        self.0[3] ^= word;
        self.stir(2);
        self.0[0] ^= word;
    }

    fn finish(mut self) -> u128 {
        self.0[2] ^= 0xee;
        self.stir(4);
        let high = self.fold();
        self.0[1] ^= 0xdd;
        self.stir(4);
        u128::from(high) << 64 | u128::from(self.fold())
    }

    fn fold(&self) -> u64 {
        self.0.iter().fold(0, |folded, word| folded ^ word)
    }

    fn stir(&mut self, rounds: u32) {
        let [mut a, mut b, mut c, mut d] = self.0;
        for _ in 0..rounds {
            a = a.wrapping_add(b);
            c = c.wrapping_add(d);
            b = b.rotate_left(13) ^ a;
            d = d.rotate_left(16) ^ c;
            a = a.rotate_left(32).wrapping_add(d);
            c = c.wrapping_add(b);
            b = b.rotate_left(17) ^ c;
            d = d.rotate_left(21) ^ a;
            c = c.rotate_left(32);
        }
        self.0 = [a, b, c, d];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_bit_and_the_length_count() {
        let mut seen = BTreeSet::new();
        for length in 0..40 {
            let mut bytes = vec![0u8; length];
            assert!(seen.insert(digest(&bytes)), "{length} zeros");
            for bit in 0..length * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(seen.insert(digest(&bytes)), "bit {bit} of {length}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn half_of_the_bits_change_with_one_bit_of_input() {
        let changed = (0..512).map(|bit| {
            let mut bytes = [7u8; 64];
            bytes[bit / 8] ^= 1 << (bit % 8);
            (digest(&bytes) ^ digest(&[7u8; 64])).count_ones()
        });
        let average = changed.sum::<u32>() as f64 / 512.0;
        assert!((60.0..68.0).contains(&average), "{average}");
    }

    #[test]
    fn the_hash_is_golden() {
        // Members of different builds compare hashes: the function is part of the format.
        assert_eq!(format!("{:032x}", digest(b"")), GOLDEN_EMPTY);
        assert_eq!(format!("{:032x}", digest(b"quorate")), GOLDEN_NAME);
    }

    const GOLDEN_EMPTY: &str = "7293c9d5d54aab66631f2788f747bbbf";
    const GOLDEN_NAME: &str = "a4110067e3672e9ca518ad9318fdf810";
}
