//! Which keys.
//!
//! Everything that is about keys is about an interval of them in the order of their bytes, so that there is one way to look
//! them up. One key is the interval up to the next that could be, and a prefix the one up to the next prefix.
//!
//! ```text
//! key "a"       a ≤ … < a\0          prefix "a"      a ≤ … < b          all       "" ≤ …
//! ```

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::ops::{Range, RangeFrom, RangeFull};

/// A half-open interval of keys, in the order of their bytes.
///
/// A string or byte slice converts into the range of that one key; `"a".."b"` and `"a"..` convert into what they say.
///
/// ```
/// # use quorate::KeyRange;
/// let jobs = KeyRange::prefix("jobs/");
/// assert!(jobs.contains(b"jobs/7") && !jobs.contains(b"jobs"));
/// assert!(KeyRange::from("a".."c").contains(b"bzz"));
/// assert_eq!(KeyRange::from("a"), KeyRange::key("a"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    pub(crate) start: Bytes,
    /// Exclusive; `None` is beyond the last key.
    pub(crate) end: Option<Bytes>,
}

impl KeyRange {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self { start: Bytes::new(), end: None }
    }

    /// One key.
    #[must_use]
    pub fn key(key: impl AsRef<[u8]>) -> Self {
        let key = key.as_ref();
        // The smallest key above k is k followed by a zero byte, so one key is a half-open interval too.
        let mut both = Vec::with_capacity(key.len() * 2 + 1);
        both.extend_from_slice(key);
        both.extend_from_slice(key);
        both.push(0);
        let both = Bytes::from(both);
        Self { start: both.slice(..key.len()), end: Some(both.slice(key.len()..)) }
    }

    /// Every key that begins with `prefix`; the empty prefix is every key.
    #[must_use]
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        let prefix = prefix.as_ref();
        let last = prefix.iter().rposition(|byte| *byte != u8::MAX);
        let end = last.map(|last| {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            Bytes::from(end)
        });
        Self { start: Bytes::copy_from_slice(prefix), end }
    }

    /// Whether `key` lies in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start <= key && self.end.as_ref().is_none_or(|end| key < end)
    }

    /// What its bounds take.
    pub(crate) fn bytes(&self) -> usize {
        self.start.len() + self.end.as_ref().map_or(0, Bytes::len)
    }

    /// The key, if the range can hold only one.
    pub(crate) fn as_key(&self) -> Option<&Bytes> {
        let end = self.end.as_ref()?;
        let (zero, stem) = end.split_last()?;
        (*zero == 0 && stem == self.start).then_some(&self.start)
    }

    /// Whether no key can lie in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether some key can lie in both.
    #[cfg(test)]
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.end.as_ref().is_none_or(|end| other.start < end)
            && other.end.as_ref().is_none_or(|end| self.start < end)
    }
}

macro_rules! one_key {
    ($($type:ty),*) => {$(
        impl From<$type> for KeyRange {
            fn from(key: $type) -> Self {
                Self::key(key)
            }
        }
    )*};
}
one_key!(&str, String, &String, &[u8], Vec<u8>, Bytes, &Bytes);

impl<const N: usize> From<&[u8; N]> for KeyRange {
    fn from(key: &[u8; N]) -> Self {
        Self::key(key)
    }
}

impl<K: AsRef<[u8]>> From<Range<K>> for KeyRange {
    fn from(range: Range<K>) -> Self {
        let end = Some(Bytes::copy_from_slice(range.end.as_ref()));
        Self { start: Bytes::copy_from_slice(range.start.as_ref()), end }
    }
}

impl<K: AsRef<[u8]>> From<RangeFrom<K>> for KeyRange {
    fn from(range: RangeFrom<K>) -> Self {
        Self { start: Bytes::copy_from_slice(range.start.as_ref()), end: None }
    }
}

impl From<RangeFull> for KeyRange {
    fn from(_: RangeFull) -> Self {
        Self::all()
    }
}
