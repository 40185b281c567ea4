//! The header of a GGUF file (version 2 and 3, little endian): metadata, then names, shapes, types and places
//! of the tensors. Every length in it is only believed as far as the file has bytes for it.

use std::collections::HashMap;
use std::io::Read;

use crate::kernels::ggml::GgmlType;

const MAGIC: &[u8; 4] = b"GGUF";
/// Most metadata values, list items included, and tensors: the vocabulary of Gemma 3 takes 1.3 million.
const MAX_ITEMS: u64 = 4 << 20;
/// Maximum number of bytes of a text.
const MAX_TEXT: u64 = 1 << 20;
/// Maximum number of bytes of all texts together: the vocabulary of Gemma 3 takes 10 MB.
const MAX_TEXTS: u64 = 64 << 20;
/// Most bytes of the longer texts that are left out, since nothing reads them: a whole `tokenizer.json`, say.
const MAX_SKIPPED: u64 = 256 << 20;
/// Type of a text.
const TEXT: u32 = 8;
const MAX_RANK: u32 = 4;
/// Maximum number of bytes that the tensors' places are multiples of.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Truth(bool),
    Text(String),
    List(Vec<Value>),
}

/// Contents of a header.
#[derive(Debug, Default)]
pub(crate) struct Header {
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
}

/// Type, shape and place of one tensor.
#[derive(Debug, Clone)]
pub(crate) struct TensorInfo {
    /// Number of the part of the file that it is in, from 0 on.
    pub(crate) part: usize,
    /// The number of its type.
    pub(crate) kind: u32,
    /// Sides, the innermost last.
    pub(crate) shape: Vec<usize>,
    /// From the start of the file.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
}

impl TensorInfo {
    pub(crate) fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes)
    }
}

impl Header {
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number that is not negative.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        whole(self.value(key)?)
    }

    pub(crate) fn float(&self, key: &str) -> Option<f64> {
        match self.value(key)? {
            Value::Float(value) => Some(*value),
            Value::Unsigned(value) => Some(*value as f64),
            Value::Signed(value) => Some(*value as f64),
            _ => None,
        }
    }

    pub(crate) fn truth(&self, key: &str) -> Option<bool> {
        match self.value(key)? {
            Value::Truth(value) => Some(*value),
            _ => None,
        }
    }

    pub(crate) fn list(&self, key: &str) -> Option<&[Value]> {
        match self.value(key)? {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Adds the tensors of another part.
    ///
    /// # Errors
    /// A sentence, if a tensor is in both.
    pub(super) fn add_part(&mut self, part: usize, header: Self) -> Result<(), String> {
        for (name, tensor) in header.tensors {
            if self.tensors.contains_key(&name) {
                return Err(format!("the tensor {name:?} is in an earlier part too"));
            }
            self.tensors.insert(name, TensorInfo { part, ..tensor });
        }
        Ok(())
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.metadata.iter()
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&String, &TensorInfo)> {
        self.tensors.iter()
    }
}

/// A whole number that is not negative.
fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::Unsigned(value) => Some(*value),
        Value::Signed(value) => u64::try_from(*value).ok(),
        _ => None,
    }
}

/// Reads the header of a file of `size` bytes from its beginning.
///
/// # Errors
/// In words, what makes no sense. Never panics, and never asks for memory that the file's own bytes do not
/// fill.
pub(crate) fn read_header(input: impl Read, size: u64) -> Result<Header, String> {
    let mut reader = Reader { input, place: 0, size, items: 0, texts: 0, skipped: 0 };
    if &reader.bytes::<4>()? != MAGIC {
        return Err("it does not begin with GGUF".to_owned());
    }
    let version = reader.u32()?;
    if (2..=3).contains(&version.swap_bytes()) {
        return Err("its numbers have their highest byte first; take a file of the usual order".to_owned());
    }
    if !(2..=3).contains(&version) {
        return Err(format!("its version is {version}; supported are 2 and 3"));
    }
    let (tensors, values) = (reader.u64()?, reader.u64()?);
    if tensors > MAX_ITEMS || values > MAX_ITEMS {
        return Err(format!("it claims {tensors} tensors and {values} metadata values"));
    }
    let mut header = Header::default();
    for _ in 0..values {
        let key = reader.text()?;
        let kind = reader.u32()?;
        if let Some(value) = reader.value_of(&key, kind)? {
            header.metadata.insert(key, value);
        }
    }
    let mut infos = Vec::new();
    for _ in 0..tensors {
        infos.push(reader.tensor()?);
    }
    let alignment = header.number("general.alignment").unwrap_or(32);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(format!("its alignment is {alignment}"));
    }
    let base = reader.place.next_multiple_of(alignment);
    for (name, mut tensor) in infos {
        let start = base.checked_add(tensor.start).filter(|start| start.checked_add(tensor.bytes).is_some());
        tensor.start = start.ok_or_else(|| format!("the tensor {name:?} lies at an impossible place"))?;
        if header.tensors.contains_key(&name) {
            return Err(format!("it has two tensors {name:?}"));
        }
        header.tensors.insert(name, tensor);
    }
    Ok(header)
}

struct Reader<R> {
    input: R,
    place: u64,
    size: u64,
    /// Values, list items and tensors read so far.
    items: u64,
    /// Bytes of texts read so far.
    texts: u64,
    /// Bytes of texts left out so far.
    skipped: u64,
}

impl<R: Read> Reader<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|error| format!("its header cannot be read: {error}"))?;
        self.place += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn item(&mut self) -> Result<(), String> {
        self.items += 1;
        if self.items > MAX_ITEMS {
            return Err(format!("its header has more than {MAX_ITEMS} values"));
        }
        Ok(())
    }

    /// The value of a key; nothing for a text that is too long to keep, if nothing reads it.
    fn value_of(&mut self, key: &str, kind: u32) -> Result<Option<Value>, String> {
        if kind != TEXT {
            return self.value(kind).map(Some);
        }
        self.item()?;
        let length = self.u64()?;
        let is_read = ["general.architecture", "tokenizer.ggml.", "tokenizer.chat_template"];
        if length <= MAX_TEXT || is_read.iter().any(|read| key.starts_with(read)) {
            return self.text_of(length).map(|text| Some(Value::Text(text)));
        }
        self.skipped = self.skipped.saturating_add(length);
        if self.skipped > MAX_SKIPPED || length > self.size.saturating_sub(self.place) {
            return Err(format!("it has a text of {length} bytes, more than there can be"));
        }
        let skipped = std::io::copy(&mut self.input.by_ref().take(length), &mut std::io::sink());
        if skipped.map_err(|error| format!("its header cannot be read: {error}"))? != length {
            return Err("its header ends in the middle of a text".to_owned());
        }
        self.place += length;
        Ok(None)
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.u64()?;
        self.text_of(length)
    }

    fn text_of(&mut self, length: u64) -> Result<String, String> {
        self.texts = self.texts.saturating_add(length);
        if length > MAX_TEXT || self.texts > MAX_TEXTS || length > self.size.saturating_sub(self.place) {
            return Err(format!("it has a text of {length} bytes, more than there can be"));
        }
        let mut bytes = Vec::new();
        let read = self.input.by_ref().take(length).read_to_end(&mut bytes);
        read.map_err(|error| format!("its header cannot be read: {error}"))?;
        if bytes.len() as u64 != length {
            return Err("its header ends in the middle of a text".to_owned());
        }
        self.place += length;
        // Vocabularies hold tokens that are no text on their own; what they cannot be is shown as such.
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        if kind != 9 {
            return self.single(kind);
        }
        let (kind, length) = (self.u32()?, self.u64()?);
        if kind == 9 {
            return Err("it has a list of lists".to_owned());
        }
        // Each item takes a byte at least.
        if length > self.size.saturating_sub(self.place) || length > MAX_ITEMS {
            return Err(format!("it has a list of {length} values, more than there can be"));
        }
        let mut list = Vec::new();
        for _ in 0..length {
            list.push(self.single(kind)?);
        }
        Ok(Value::List(list))
    }

    fn single(&mut self, kind: u32) -> Result<Value, String> {
        self.item()?;
        Ok(match kind {
            0 => Value::Unsigned(self.bytes().map(u8::from_le_bytes)?.into()),
            1 => Value::Signed(self.bytes().map(i8::from_le_bytes)?.into()),
            2 => Value::Unsigned(self.bytes().map(u16::from_le_bytes)?.into()),
            3 => Value::Signed(self.bytes().map(i16::from_le_bytes)?.into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(self.bytes().map(i32::from_le_bytes)?.into()),
            6 => Value::Float(self.bytes().map(f32::from_le_bytes)?.into()),
            7 => Value::Truth(self.bytes::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(self.bytes().map(i64::from_le_bytes)?),
            12 => Value::Float(self.bytes().map(f64::from_le_bytes)?),
            other => return Err(format!("it has a value of the unknown type {other}")),
        })
    }

    /// Reads a tensor's name and information; its place is still counted from the end of the header.
    fn tensor(&mut self) -> Result<(String, TensorInfo), String> {
        self.item()?;
        let name = self.text()?;
        let rank = self.u32()?;
        if rank > MAX_RANK {
            return Err(format!("the tensor {name:?} has {rank} dimensions"));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            shape.push(self.u64()?);
        }
        // The file has the innermost side first.
        shape.reverse();
        let (kind, start) = (self.u32()?, self.u64()?);
        let impossible = || format!("the tensor {name:?} of shape {shape:?} has an impossible size");
        let sides = shape.iter().map(|side| usize::try_from(*side)).collect::<Result<Vec<_>, _>>();
        let sides = sides.map_err(|_| impossible())?;
        // Also where a side is zero: whoever multiplies the sides, in any order, stays within bounds.
        sides
            .iter()
            .filter(|side| **side > 0)
            .try_fold(1usize, |all, side| all.checked_mul(*side))
            .ok_or_else(impossible)?;
        // A type that is not known may be one that no family asks for.
        let bytes = match GgmlType::from_number(kind) {
            Some(dtype) => dtype.bytes_of(&sides).ok_or_else(impossible)?,
            None => 0,
        };
        Ok((name, TensorInfo { part: 0, kind, shape: sides, start, bytes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    fn start(tensors: u64, values: u64) -> Vec<u8> {
        [MAGIC.as_slice(), &3u32.to_le_bytes(), &tensors.to_le_bytes(), &values.to_le_bytes()].concat()
    }

    fn read(bytes: &[u8]) -> Result<Header, String> {
        read_header(bytes, bytes.len() as u64)
    }

    fn sound() -> Vec<u8> {
        let list = [9u32.to_le_bytes(), 8u32.to_le_bytes()].concat();
        let sides = [64u64, 2].map(u64::to_le_bytes).concat();
        let tensor = [2u32.to_le_bytes().to_vec(), sides, 8u32.to_le_bytes().to_vec()];
        [
            start(1, 2),
            text("general.architecture"),
            8u32.to_le_bytes().to_vec(),
            text("llama"),
            text("tokens"),
            list,
            2u64.to_le_bytes().to_vec(),
            text("a"),
            text("b"),
            text("w"),
            tensor.concat(),
            0u64.to_le_bytes().to_vec(),
        ]
        .concat()
    }

    #[test]
    fn a_sound_header_is_read() {
        let header = read(&sound()).unwrap();
        assert_eq!(header.text("general.architecture"), Some("llama"));
        assert_eq!(header.list("tokens").unwrap().len(), 2);
        let tensor = header.tensor("w").unwrap();
        assert_eq!((tensor.shape.as_slice(), tensor.bytes), (&[2, 64][..], 2 * 2 * 34));
    }

    /// The bytes of such a tensor are none, and still its sides must not multiply to more than there are
    /// numbers for.
    #[test]
    fn a_side_of_zero_makes_no_other_side_possible() {
        for kind in [0u32, 8, 99] {
            let tensor = |sides: [u64; 3]| {
                let sides = sides.map(u64::to_le_bytes).concat();
                let entry =
                    [text("w"), 3u32.to_le_bytes().to_vec(), sides, kind.to_le_bytes().to_vec()].concat();
                read(&[start(1, 0), entry, 0u64.to_le_bytes().to_vec(), vec![0; 64]].concat())
            };
            assert!(tensor([0, 1 << 40, 1 << 40]).is_err() && tensor([1 << 40, 0, 1 << 40]).is_err());
            assert!(tensor([0, 1 << 20, 1 << 20]).is_ok());
        }
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_an_error_or_a_header() {
        let sound = sound();
        for end in 0..sound.len() {
            assert!(read(&sound[..end]).is_err(), "cut at {end}");
        }
        for place in 0..sound.len() {
            for bits in [0x01, 0x80, 0xff] {
                let mut damaged = sound.clone();
                damaged[place] ^= bits;
                let _ = read(&damaged);
            }
        }
    }

    #[test]
    fn claims_beyond_the_file_are_refused_without_memory_for_them() {
        let huge = u64::MAX.to_le_bytes().to_vec();
        let list =
            [text("l"), 9u32.to_le_bytes().to_vec(), 4u32.to_le_bytes().to_vec(), huge.clone()].concat();
        let nested =
            [text("l"), 9u32.to_le_bytes().to_vec(), 9u32.to_le_bytes().to_vec(), huge.clone()].concat();
        let side = [text("w"), 2u32.to_le_bytes().to_vec(), huge.clone(), huge.clone(), vec![0; 12]].concat();
        for (start, rest) in [
            (start(u64::MAX, 0), Vec::new()),
            (start(0, u64::MAX), Vec::new()),
            (start(0, 1), huge),
            (start(0, 1), list),
            (start(0, 1), nested),
            (start(1, 0), side),
        ] {
            assert!(read(&[start, rest].concat()).is_err());
        }
    }
    #[test]
    fn a_long_text_that_nothing_reads_is_left_out_and_one_that_is_read_is_refused() {
        let value = |key: &str, bytes: usize| {
            let long = [(bytes as u64).to_le_bytes().to_vec(), vec![b'a'; bytes]].concat();
            [text(key), TEXT.to_le_bytes().to_vec(), long].concat()
        };
        let long = MAX_TEXT as usize + 1;
        for key in ["tokenizer.huggingface.json", "general.description"] {
            let file = [start(0, 2), value(key, long), value("general.architecture", 5)].concat();
            let header = read(&file).unwrap();
            assert_eq!(
                (header.text(key), header.text("general.architecture")),
                (None, Some("aaaaa")),
                "{key}"
            );
            assert!(read(&file[..long]).is_err(), "{key} cut");
        }
        for key in ["tokenizer.chat_template", "tokenizer.ggml.model", "general.architecture"] {
            assert!(read(&[start(0, 1), value(key, long)].concat()).is_err(), "{key}");
        }
        let claims = [text("a"), TEXT.to_le_bytes().to_vec(), u64::MAX.to_le_bytes().to_vec()].concat();
        assert!(read(&[start(0, 1), claims].concat()).is_err());
    }
}
