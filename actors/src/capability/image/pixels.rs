//! Pictures and image sources as they travel between processes: decoded pixels alone, checked when they are written and
//! again when they are read. Fetching and decoding an image before it travels is left to the capabilities' handles.

use serde::de::Error as _;
use serde::ser::{Error as _, SerializeStruct};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ImageSource, Picture};
use crate::error::Cause;

/// A picture as it was read, before it is checked.
#[derive(Deserialize)]
pub(super) struct Travelling {
    width: usize,
    height: usize,
    #[serde(with = "serde_bytes")]
    rgb: Vec<u8>,
}

/// Checks the number of bytes of a picture of these sides.
pub(super) fn check(width: usize, height: usize, bytes: usize) -> Result<(), Cause> {
    let needed = width.checked_mul(height).and_then(|pixels| pixels.checked_mul(3));
    match needed {
        Some(needed) if needed == bytes && needed > 0 => Ok(()),
        _ => Err(Cause::new(format!("a picture of {width} x {height} pixels cannot have {bytes} bytes"))),
    }
}

impl TryFrom<Travelling> for Picture {
    type Error = Cause;

    fn try_from(read: Travelling) -> Result<Self, Cause> {
        let Travelling { width, height, rgb } = read;
        check(width, height, rgb.len())?;
        Ok(Self { width, height, rgb })
    }
}

impl Serialize for Picture {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.check().map_err(S::Error::custom)?;
        let mut fields = serializer.serialize_struct("Picture", 3)?;
        fields.serialize_field("width", &self.width)?;
        fields.serialize_field("height", &self.height)?;
        fields.serialize_field("rgb", serde_bytes::Bytes::new(&self.rgb))?;
        fields.end()
    }
}

/// Pixels are written. An image that is yet to be fetched or decoded is refused, as its path or address means nothing
/// elsewhere, and as only the caller's own limits hold for it.
impl Serialize for ImageSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.pixels() {
            Some(picture) => picture.serialize(serializer),
            None => Err(S::Error::custom("an image travels as pixels; decode it first")),
        }
    }
}

impl<'de> Deserialize<'de> for ImageSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = Travelling::deserialize(deserializer)?;
        Picture::try_from(read).map(Self::Picture).map_err(D::Error::custom)
    }
}
