//! Values of a type, as the bytes that are stored.
//!
//! | | read and written by hand | a type may gain a field | size |
//! |---|---|---|---|
//! | [`Codec::Json`] | yes | yes, with a default | names in each value |
//! | [`Codec::Bincode`] | no | no: use another key | the values alone |

use crate::codec;
use crate::error::{Error, Reason, Result};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// How values of a type are stored.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// use quorate::Codec;
///
/// let points = client.map::<(u32, u32)>("points/");
/// points.put("a", &(3, 4)).await?;
/// assert_eq!(client.get("points/a").await?.expect("it is there").value, "[3,4]");
///
/// let small = client.map::<(u32, u32)>("small/").codec(Codec::Bincode);
/// small.put("a", &(3, 4)).await?;
/// assert_eq!(client.get("small/a").await?.expect("it is there").value, &[3, 4][..]);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// JSON, for what operators read and edit. A field that is added to the type needs a default, and then old values
    /// can be read.
    #[default]
    Json,
    /// bincode 2 in its standard configuration: little, and for programs only. The type cannot change: what was written by
    /// another version of it is an error, or worse, makes sense.
    Bincode,
}

impl Codec {
    pub(crate) fn encode<T: Serialize>(self, value: &T) -> Result<Bytes> {
        let type_name = std::any::type_name::<T>();
        match self {
            Self::Json => serde_json::to_vec(value).map(Bytes::from).map_err(|error| {
                let detail = format!("a {type_name} cannot be written as JSON");
                Error::new(Reason::WrongType { detail }).because(error)
            }),
            Self::Bincode => codec::encode_value(value).map(Bytes::from).map_err(|why| {
                let detail = format!("a {type_name} cannot be written with bincode: {why}");
                Error::new(Reason::WrongType { detail })
            }),
        }
    }

    /// A value from how it is stored under `key`.
    pub(crate) fn decode<T: DeserializeOwned>(self, key: &[u8], value: &[u8]) -> Result<T> {
        match self {
            Self::Json => serde_json::from_slice(value).map_err(|error| wrong_type(key, &error)),
            Self::Bincode => codec::decode_value(value).map_err(|why| wrong_type(key, &why)),
        }
    }
}

pub(super) fn wrong_type(key: &[u8], why: &dyn std::fmt::Display) -> Error {
    let key = key.escape_ascii();
    Error::new(Reason::WrongType { detail: format!("the entry {key} is not as expected: {why}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::collections::BTreeMap;

    #[test]
    fn either_codec_gives_back_what_was_put_in_and_refuses_the_rest() {
        let value: BTreeMap<String, (u8, Option<f64>)> =
            [("a".to_owned(), (1, Some(0.5))), ("b".to_owned(), (255, None))].into();
        for codec in [Codec::Json, Codec::Bincode] {
            let bytes = codec.encode(&value).unwrap();
            assert_eq!(codec.decode::<BTreeMap<_, _>>(b"k", &bytes).unwrap(), value);
            let cut = codec.decode::<BTreeMap<String, (u8, Option<f64>)>>(b"k", &bytes[1..]);
            assert_eq!(cut.unwrap_err().kind(), ErrorKind::Codec);
            let longer = [&bytes[..], b"!"].concat();
            let longer = codec.decode::<BTreeMap<String, (u8, Option<f64>)>>(b"k", &longer);
            assert_eq!(longer.unwrap_err().kind(), ErrorKind::Codec);
        }
        let keys: BTreeMap<(u8, u8), u8> = [((1, 2), 3)].into();
        assert_eq!(Codec::Json.encode(&keys).unwrap_err().kind(), ErrorKind::Codec);
        let huge = codec::encode_value(&u64::MAX).unwrap();
        assert!(Codec::Bincode.decode::<Vec<u64>>(b"k", &huge).is_err(), "it takes no such memory");
    }
}
