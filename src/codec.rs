//! Bytes in and out, of two kinds.
//!
//! - [`layout`]: records laid out by hand, with numbered variants, for everything that is hot or that outlives this
//!   version: log entries, table rows, requests. A golden-bytes test holds each in place.
//! - [`encode`] and [`decode`]: bincode, for cold structs that are read by the version that wrote them or checked by a
//!   format number beside them, and for values of applications that choose it. This file is the only one that names bincode, so that it can be replaced in one place.
//!
//! Neither panics on hostile bytes. Records laid out by hand never take more memory than the input could fill. bincode
//! believes the length of a list or string up to [`COLD_BYTES_MAX`] before it has seen what is in it, and no further.

pub(crate) mod layout;

use layout::Malformed;
use serde::{Serialize, de::DeserializeOwned};

/// The most that a cold struct may take; a member list of hundreds fits.
const COLD_BYTES_MAX: usize = 1024 * 1024;

/// The bytes of a cold struct.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let config = bincode::config::standard().with_limit::<COLD_BYTES_MAX>();
    bincode::serde::encode_to_vec(value, config).expect("our own structs have no unsupported types")
}

/// A cold struct from all of `bytes`.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    let config = bincode::config::standard().with_limit::<COLD_BYTES_MAX>();
    match bincode::serde::decode_from_slice(bytes, config) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok(_) | Err(_) => Err(Malformed),
    }
}

/// The bytes of a value of an application's type.
pub(crate) fn encode_value<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    bincode::serde::encode_to_vec(value, bincode::config::standard())
        .map_err(|error| error.to_string())
}

/// A value of an application's type from all of `bytes`. It is not believed that a few of them are a large one.
pub(crate) fn decode_value<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let config = bincode::config::standard();
    // An element may take dozens of times in memory what it takes as bytes, and the bound is a constant of a type.
    let decoded = if bytes.len() < 0x1000 {
        bincode::serde::decode_from_slice(bytes, config.with_limit::<0x4_0000>())
    } else if bytes.len() < 0x1_0000 {
        bincode::serde::decode_from_slice(bytes, config.with_limit::<0x40_0000>())
    } else {
        bincode::serde::decode_from_slice(bytes, config.with_limit::<0x400_0000>())
    };
    match decoded {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok(_) => Err("there is more than a value".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cold_structs_come_back_and_trailing_bytes_are_refused() {
        let value = (7u64, "name".to_owned(), vec![1u16, 2]);
        let mut bytes = encode(&value);
        assert_eq!(decode::<(u64, String, Vec<u16>)>(&bytes).unwrap(), value);
        bytes.push(0);
        assert!(decode::<(u64, String, Vec<u16>)>(&bytes).is_err());
    }

    #[test]
    fn a_length_beyond_the_input_is_an_error() {
        let huge = encode(&u64::MAX);
        assert!(decode::<Vec<u64>>(&huge).is_err());
    }
}
