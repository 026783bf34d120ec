//! Records laid out by hand: big-endian numbers, lengths before bytes, a number for each variant of an enum.
//!
//! ```text
//! u8 u16 u32 u64 u128   big-endian                 Bytes, String   u32 length ++ bytes
//! bool                  one byte, 0 or 1           Vec<T>          u32 count ++ items
//! Option<T>             one byte, 0 or 1 ++ T      Duration        u64 milliseconds
//! struct                fields in order            enum            u8 number ++ fields
//! ```
//!
//! [`layout!`](crate::codec::layout::layout) writes both directions of a struct or enum from one list, so that they
//! cannot disagree. The numbers are part of the disk and wire formats: never reuse or reorder one.
//!
//! Invariants
//! - reading never panics, and never allocates more than the bytes at hand could fill;
//! - nesting is bounded ([`DEPTH_MAX`]), so that hostile bytes cannot exhaust the stack;
//! - byte strings are read as slices of the input, without a copy.

use bytes::{Buf, Bytes};
use std::time::Duration;

/// How deep records nest. Transactions nest to `limits::TXN_DEPTH_MAX`, three records a level.
const DEPTH_MAX: u32 = 64;

/// The bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("malformed bytes")
    }
}

impl std::error::Error for Malformed {}

/// Bytes that are read from the front.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    bytes: Bytes,
    depth: u32,
}

impl Input {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { bytes, depth: 0 }
    }

    /// How many bytes are left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// The next `length` bytes, shared with the input.
    pub(crate) fn take(&mut self, length: usize) -> Result<Bytes, Malformed> {
        if length > self.bytes.len() {
            return Err(Malformed);
        }
        Ok(self.bytes.split_to(length))
    }

    /// All bytes that are left.
    pub(crate) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }

    /// Reads what lies one level deeper.
    pub(crate) fn nested<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<T, Malformed> {
        if self.depth == DEPTH_MAX {
            return Err(Malformed);
        }
        self.depth += 1;
        let read = read(self);
        self.depth -= 1;
        read
    }
}

/// A record with a fixed layout.
pub(crate) trait Layout: Sized {
    /// Appends the record to `out`.
    fn write(&self, out: &mut Vec<u8>);

    /// Reads one record from the front of `input`.
    fn read(input: &mut Input) -> Result<Self, Malformed>;

    /// The record alone, as bytes.
    fn to_bytes(&self) -> Bytes {
        let mut out = Vec::new();
        self.write(&mut out);
        out.into()
    }

    /// The record that takes up all of `bytes`.
    fn from_bytes(bytes: Bytes) -> Result<Self, Malformed> {
        let mut input = Input::new(bytes);
        let record = Self::read(&mut input)?;
        if input.remaining() == 0 { Ok(record) } else { Err(Malformed) }
    }
}

macro_rules! numbers {
    ($($type:ty: $get:ident),*) => {$(
        impl Layout for $type {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
            fn read(input: &mut Input) -> Result<Self, Malformed> {
                // In place: a slice of its own would count a reference, only to be dropped at once.
                if input.remaining() < size_of::<$type>() {
                    return Err(Malformed);
                }
                Ok(input.bytes.$get())
            }
        }
    )*};
}
numbers!(u8: get_u8, u16: get_u16, u32: get_u32, u64: get_u64, u128: get_u128);

/// Writes a length or count.
pub(crate) fn write_length(length: usize, out: &mut Vec<u8>) {
    u32::try_from(length).expect("limits keep every length below 4 GiB").write(out);
}

impl Layout for bool {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        match u8::read(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }
}

impl Layout for Bytes {
    fn write(&self, out: &mut Vec<u8>) {
        write_length(self.len(), out);
        out.extend_from_slice(self);
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        let length = u32::read(input)?;
        input.take(length as usize)
    }
}

impl Layout for String {
    fn write(&self, out: &mut Vec<u8>) {
        write_length(self.len(), out);
        out.extend_from_slice(self.as_bytes());
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        let bytes = Bytes::read(input)?;
        Self::from_utf8(bytes.into()).map_err(|_| Malformed)
    }
}

impl Layout for Duration {
    fn write(&self, out: &mut Vec<u8>) {
        u64::try_from(self.as_millis()).unwrap_or(u64::MAX).write(out);
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        u64::read(input).map(Self::from_millis)
    }
}

impl<T: Layout> Layout for Option<T> {
    fn write(&self, out: &mut Vec<u8>) {
        self.is_some().write(out);
        if let Some(value) = self {
            value.write(out);
        }
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        bool::read(input)?.then(|| T::read(input)).transpose()
    }
}

impl<T: Layout> Layout for Box<T> {
    fn write(&self, out: &mut Vec<u8>) {
        self.as_ref().write(out);
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        T::read(input).map(Self::new)
    }
}

impl<T: Layout, E: Layout> Layout for Result<T, E> {
    fn write(&self, out: &mut Vec<u8>) {
        self.is_ok().write(out);
        match self {
            Ok(value) => value.write(out),
            Err(error) => error.write(out),
        }
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        Ok(if bool::read(input)? { Ok(T::read(input)?) } else { Err(E::read(input)?) })
    }
}

/// Reads a list of at most `count_max` items. Small items in large numbers take far more memory than bytes, so whoever
/// reads what a stranger sent says how many there may be.
pub(crate) fn read_list<T: Layout>(
    input: &mut Input,
    count_max: usize,
) -> Result<Vec<T>, Malformed> {
    let count = u32::read(&mut input.clone())? as usize;
    if count <= count_max { Vec::read(input) } else { Err(Malformed) }
}

impl<T: Layout> Layout for Vec<T> {
    fn write(&self, out: &mut Vec<u8>) {
        write_length(self.len(), out);
        for item in self {
            item.write(out);
        }
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        let count = u32::read(input)? as usize;
        // Each item takes a byte at least, so a count beyond the input is a lie; and an item in memory may be much
        // larger than its bytes, so the capacity grows with what is really read: also where a list is the first item of
        // a list, and so on, each with another lie. It never grows beyond the count.
        if count > input.remaining() {
            return Err(Malformed);
        }
        input.nested(|input| {
            let mut items = Self::new();
            for left in (1..=count).rev() {
                if items.len() == items.capacity() {
                    items.reserve_exact(left.min(items.len().max(4)));
                }
                items.push(T::read(input)?);
            }
            Ok(items)
        })
    }
}

impl<A: Layout, B: Layout> Layout for (A, B) {
    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
        self.1.write(out);
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        Ok((A::read(input)?, B::read(input)?))
    }
}

/// Implements [`Layout`] for a struct (its fields in the order given), or for an enum (each variant with its number).
macro_rules! layout {
    (struct $type:ident { $($field:ident),* $(,)? }) => {
        impl $crate::codec::layout::Layout for $type {
            fn write(&self, out: &mut Vec<u8>) {
                let Self { $($field),* } = self;
                $($crate::codec::layout::Layout::write($field, out);)*
            }
            fn read(
                input: &mut $crate::codec::layout::Input,
            ) -> Result<Self, $crate::codec::layout::Malformed> {
                Ok(Self { $($field: $crate::codec::layout::Layout::read(input)?),* })
            }
        }
    };
    (struct $type:ident ($item:ident)) => {
        impl $crate::codec::layout::Layout for $type {
            fn write(&self, out: &mut Vec<u8>) {
                let Self($item) = self;
                $crate::codec::layout::Layout::write($item, out);
            }
            fn read(
                input: &mut $crate::codec::layout::Input,
            ) -> Result<Self, $crate::codec::layout::Malformed> {
                Ok(Self($crate::codec::layout::Layout::read(input)?))
            }
        }
    };
    (enum $type:ident {
        $($number:literal => $variant:ident $(($($item:ident),*))? $({$($field:ident),*})?),* $(,)?
    }) => {
        impl $crate::codec::layout::Layout for $type {
            fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant $(($($item),*))? $({$($field),*})? => {
                        out.push($number);
                        $($($crate::codec::layout::Layout::write($item, out);)*)?
                        $($($crate::codec::layout::Layout::write($field, out);)*)?
                    })*
                }
            }
            fn read(
                input: &mut $crate::codec::layout::Input,
            ) -> Result<Self, $crate::codec::layout::Malformed> {
                let number = <u8 as $crate::codec::layout::Layout>::read(input)?;
                input.nested(|input| match number {
                    $($number => {
                        $($(let $item = $crate::codec::layout::Layout::read(input)?;)*)?
                        $($(let $field = $crate::codec::layout::Layout::read(input)?;)*)?
                        Ok(Self::$variant $(($($item),*))? $({$($field),*})?)
                    })*
                    _ => {
                        let _ = input;
                        Err($crate::codec::layout::Malformed)
                    }
                })
            }
        }
    };
}
pub(crate) use layout;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Shape {
        Point,
        Circle { radius: u32, name: String },
        Group(Vec<Shape>),
    }
    layout!(enum Shape { 1 => Point, 2 => Circle { radius, name }, 7 => Group(shapes) });

    #[test]
    fn records_come_back() {
        let shape =
            Shape::Group(vec![Shape::Point, Shape::Circle { radius: 258, name: "c".into() }]);
        let bytes = shape.to_bytes();
        assert_eq!(bytes[..], [7, 0, 0, 0, 2, 1, 2, 0, 0, 1, 2, 0, 0, 0, 1, b'c']);
        assert_eq!(Shape::from_bytes(bytes).unwrap(), shape);
    }

    #[test]
    fn hostile_bytes_are_an_error() {
        let huge_count = Bytes::from_static(&[7, 255, 255, 255, 255, 1]);
        assert_eq!(Shape::from_bytes(huge_count), Err(Malformed));
        let unknown_number = Bytes::from_static(&[9]);
        assert_eq!(Shape::from_bytes(unknown_number), Err(Malformed));
        let trailing = Bytes::from_static(&[1, 0]);
        assert_eq!(Shape::from_bytes(trailing), Err(Malformed));
        let very_deep = Bytes::from([7, 0, 0, 0, 1].repeat(100_000));
        assert_eq!(Shape::from_bytes(very_deep), Err(Malformed));
    }
}
