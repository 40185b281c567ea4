//! Vectors of 32-bit floats, for `#[serde(with = "…")]`: little-endian bytes in the format of [`wire`](crate::wire), plain
//! numbers where people read the format (JSON).

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::ByteBuf;

/// Writes the vectors.
///
/// ```
/// use model_actors::{Embeddings, wire};
/// let embeddings = Embeddings::new(vec![vec![0.5; 384]]);
/// assert!(wire::encode(&embeddings)?.len() < 384 * size_of::<f32>() + 32);
/// assert_eq!(serde_json::to_string(&Embeddings::new(vec![vec![0.5]])).unwrap(), r#"{"vectors":[[0.5]]}"#);
/// # Ok::<(), wire::WireError>(())
/// ```
///
/// # Errors
/// Those of the format.
pub fn serialize<S: Serializer>(vectors: &[Vec<f32>], serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() {
        return vectors.serialize(serializer);
    }
    let mut sequence = serializer.serialize_seq(Some(vectors.len()))?;
    for vector in vectors {
        let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
        sequence.serialize_element(serde_bytes::Bytes::new(&bytes))?;
    }
    sequence.end()
}

/// Reads the vectors.
///
/// # Errors
/// Those of the format, and bytes that are no whole number of floats.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<f32>>, D::Error> {
    if deserializer.is_human_readable() {
        return Vec::deserialize(deserializer);
    }
    deserializer.deserialize_seq(Vectors)
}

struct Vectors;

impl<'de> Visitor<'de> for Vectors {
    type Value = Vec<Vec<f32>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("vectors as little-endian bytes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut vectors = Vec::new();
        while let Some(bytes) = sequence.next_element::<ByteBuf>()? {
            let (numbers, rest) = bytes.as_chunks::<{ size_of::<f32>() }>();
            if !rest.is_empty() {
                return Err(A::Error::custom(format_args!("a vector of {} bytes", bytes.len())));
            }
            vectors.push(numbers.iter().map(|number| f32::from_le_bytes(*number)).collect());
        }
        Ok(vectors)
    }
}
