//! Reads safetensors, and the tensors of PyTorch's own files: the header first, so that a model's size is known before a
//! byte of it is in memory, then one tensor after another in small pieces, so that memory holds little more than the
//! weights themselves. Shapes and numbers are checked on the way; the meaning of the tensors is left to the families.

mod quantised;
mod numbers;
mod scales;
mod strided;
mod parts;
mod renamed;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};
use crate::limits::{MAX_HEADER_BYTES, MAX_TENSORS};
use crate::notes::Notes;
use crate::pickle::{self, StoredTensor};
use crate::source::{self, Files, Unread};
use numbers::{Numbers, append_numbers};
use quantised::SCALES;
pub(crate) use renamed::{Renamed, TwoFiles, Way, in_order};
use strided::Scatter;

/// Bytes read between two looks at progress and at the stop mark.
const PIECE: usize = 1 << 20;
/// Most weight files that a list of them names; that of the same model names 163.
const MAX_SHARDS: usize = 4096;
/// Maximum number of dimensions of a tensor.
const MAX_RANK: usize = 8;

/// Name of weight files, without an ending, unless a part of a larger model has a name of its own.
pub(crate) const NAME: &str = "model";
/// Endings after the name, in the order in which they are looked for: whole or in shards, and the same in
/// half precision as diffusers saves it.
const ENDINGS: [&str; 5] = [
    "safetensors",
    "safetensors.index.json",
    "fp16.safetensors",
    "safetensors.index.fp16.json",
    "fp16.safetensors.index.json",
];
/// Names of PyTorch's own files beside those of safetensors, which are looked for first.
const PICKLES: [(&str, &str); 2] = [(NAME, "pytorch_model"), ("open_clip_model", "open_clip_pytorch_model")];
const PICKLE_ENDINGS: [&str; 3] = ["bin", "bin.index.json", "fp16.bin"];

/// Name of the type of tensors that hold bytes.
const BYTES: &str = "U8";

/// Type, shape and place of one tensor.
#[derive(Debug, Clone)]
struct Entry {
    file: usize,
    dtype: String,
    shape: Vec<usize>,
    /// Steps from one number to the next along each dimension, where they do not lie row by row.
    strides: Option<Vec<usize>>,
    /// From the start of the file.
    start: u64,
    bytes: u64,
}

#[derive(Deserialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The entries of a header. What else it says is not kept.
struct HeaderEntries(HashMap<String, HeaderEntry>);

impl<'de> Deserialize<'de> for HeaderEntries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = HeaderEntries;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a table of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderEntries, A::Error> {
                let mut entries = HashMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.insert(name, map.next_value()?);
                    }
                }
                Ok(HeaderEntries(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: HashMap<String, String>,
}

/// The headers of a model's weight files.
#[derive(Default)]
pub(crate) struct WeightFiles {
    files: Vec<PathBuf>,
    entries: HashMap<String, Entry>,
    /// Rows and columns of 8-bit weights that share a scale.
    block: quantised::Block,
    read: Notes,
    unread: Unread,
    eight_bit: bool,
    /// The files that all tensors are in, in place of those above.
    gguf: Option<TwoFiles>,
}

impl WeightFiles {
    /// Finds the weights in a folder of the model, which is named with a slash at its end or empty, fetching
    /// them where they are not here yet, and reads their headers.
    pub(crate) fn open(files: &Files, folder: &str, context: &LoadContext) -> Result<Self> {
        Self::open_named(files, folder, NAME, context)
    }

    /// As [`WeightFiles::open`], for files of this name in place of `model`.
    pub(crate) fn open_named(files: &Files, folder: &str, name: &str, context: &LoadContext) -> Result<Self> {
        if name == NAME && files.unread == Unread::Refused {
            refuse_adapter(files, folder, context)?;
        }
        let weights = Self::find(files, folder, name, context)?;
        quantised::check_names(weights.entries.keys(), files, folder, context)?;
        Ok(weights)
    }

    /// The tensors of one file.
    pub(crate) fn of_file(files: &Files, path: PathBuf) -> Result<Self> {
        let mut weights = Self { unread: files.unread, ..Self::default() };
        weights.add(path)?;
        Ok(weights)
    }

    fn find(files: &Files, folder: &str, name: &str, context: &LoadContext) -> Result<Self> {
        let block = quantised::block_of(files, folder, context)?;
        let (unread, eight_bit) = (files.unread, files.eight_bit);
        let mut weights = Self { block, unread, eight_bit, ..Self::default() };
        // Pickles often have another name than safetensors.
        let pickle = PICKLES.iter().find(|(own, _)| *own == name).map_or(name, |(_, pickle)| pickle);
        let forms = [(name, &ENDINGS[..], "safetensors"), (pickle, &PICKLE_ENDINGS[..], "bin")];
        for (name, endings, shards) in forms {
            for ending in endings {
                let file = format!("{folder}{name}.{ending}");
                if !ending.ends_with("json") {
                    if let Some(path) = files.optional(&file, context)? {
                        weights.add(path)?;
                        return Ok(weights);
                    }
                } else if let Some(index) = files.optional_json(&file, context)? {
                    weights.add_shards(files, folder, index, shards, context)?;
                    return Ok(weights);
                }
            }
        }
        Err(missing(files, folder, name, context))
    }

    fn add_shards(
        &mut self,
        files: &Files,
        folder: &str,
        index: ShardIndex,
        ending: &str,
        context: &LoadContext,
    ) -> Result<()> {
        let shards: BTreeSet<String> = index.weight_map.into_values().collect();
        if shards.len() > MAX_SHARDS {
            let reason =
                format!("the list of weight files has {}; at most {MAX_SHARDS} are allowed", shards.len());
            return Err(Error::InvalidConfig { file: PathBuf::from(files.name()), reason });
        }
        for shard in shards {
            if !shard.strip_suffix(ending).is_some_and(|name| name.ends_with('.')) {
                let reason = format!("the list of weight files has {shard:?}, which is none");
                return Err(Error::InvalidConfig { file: PathBuf::from(files.name()), reason });
            }
            self.add(files.required(&format!("{folder}{shard}"), context)?)?;
        }
        Ok(())
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let file = self.files.len();
        let header = match path.extension().is_some_and(|ending| ending == "bin" || ending == "pt") {
            true => pickle::read(&path)?.into_iter().map(|tensor| from_pickle(tensor, file)).collect(),
            false => read_header(&path, file)?,
        };
        if self.entries.len().saturating_add(header.len()) > MAX_TENSORS {
            let reason =
                format!("the weight files up to this one have more than {MAX_TENSORS} tensors together");
            return Err(Error::CorruptWeights { file: path, reason });
        }
        self.entries.extend(header);
        self.files.push(path);
        Ok(())
    }

    pub(crate) fn contains(&self, tensor: &str) -> bool {
        self.entries.contains_key(tensor) || self.gguf.as_ref().is_some_and(|gguf| gguf.contains(tensor))
    }

    /// The shape of a tensor, if there is one of this name.
    pub(crate) fn shape(&self, tensor: &str) -> Option<&[usize]> {
        self.entries.get(tensor).map(|entry| entry.shape.as_slice())
    }

    /// Every tensor's name and shape.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.entries.iter().map(|(name, entry)| (name.clone(), entry.shape.clone())).collect()
    }

    /// Bytes in memory of the tensors that `wanted` picks: 32-bit numbers, except in matrices that `packed` picks, where
    /// those of 16 bits stay so and any may be quantised.
    pub(crate) fn bytes_in_memory(
        &self,
        wanted: impl Fn(&str) -> bool,
        packed: impl Fn(&str) -> bool,
    ) -> Bytes {
        let of = |(name, entry): (&String, &Entry)| {
            let numbers =
                entry.shape.iter().fold(1, |numbers: u64, side| numbers.saturating_mul(*side as u64));
            let is_packed = entry.shape.len() > 1 && packed(name);
            let is_quantised = self.eight_bit && entry.shape.last().is_some_and(|side| side % 32 == 0);
            Bytes(match entry.dtype.as_str() {
                // Those of quantised numbers stay so.
                BYTES => numbers,
                _ if is_packed && is_quantised => (numbers / 32).saturating_mul(34),
                "BF16" | "F16" if is_packed => numbers.saturating_mul(2),
                _ => numbers.saturating_mul(4),
            })
        };
        let gguf = self.gguf.as_ref().map_or(Bytes::ZERO, |gguf| gguf.bytes_in_memory(&wanted));
        gguf + self.entries.iter().filter(|(name, _)| wanted(name)).map(of).sum()
    }

    /// Bytes on disk of the tensors that `wanted` picks.
    pub(crate) fn bytes_on_disk(&self, wanted: impl Fn(&str) -> bool) -> Bytes {
        let gguf = self.gguf.as_ref().map_or(Bytes::ZERO, TwoFiles::bytes_on_disk);
        let bytes = |(_, entry): (&String, &Entry)| Bytes(entry.bytes);
        gguf + self.entries.iter().filter(|(name, _)| wanted(name)).map(bytes).sum()
    }

    /// Refuses a tensor that was not read, once all that is needed has been. `has_no_effect` is true for those that may be
    /// left unread.
    ///
    /// # Errors
    /// [`Error::UnreadTensor`] names the first of them.
    pub(crate) fn check_all_read(&self, has_no_effect: impl Fn(&str) -> bool) -> Result<()> {
        if let Some(gguf) = &self.gguf {
            return gguf.check_all_read(self.unread, has_no_effect);
        }
        self.read.check(self.unread, self.entries.keys().map(String::as_str), has_no_effect)
    }

    /// A reader of tensors whose names begin with `prefix`.
    pub(crate) fn reader<'a>(
        &'a self,
        prefix: &'static str,
        device: &'a Device,
        context: &'a LoadContext,
    ) -> WeightReader<'a> {
        WeightReader { weights: self, prefix, device, context }
    }
}

/// Refuses a folder whose weights an adapter beside them changes, as PEFT has it: transformers loads it without a word.
fn refuse_adapter(files: &Files, folder: &str, context: &LoadContext) -> Result<()> {
    const FILE: &str = "adapter_config.json";
    match files.optional(&format!("{folder}{FILE}"), context)? {
        Some(file) => Err(Error::UnsupportedSetting {
            file,
            what: "the adapter".into(),
            found: FILE.into(),
            supported: "one by request (`with_adapter`), or weights that it is merged into".into(),
        }),
        None => Ok(()),
    }
}

/// Error for a model without weights that are read, which tells one that has a pickle of another name from one that
/// has nothing.
fn missing(files: &Files, folder: &str, name: &str, context: &LoadContext) -> Error {
    let file = format!("{folder}consolidated.00.pth");
    match files.exists(&file, context) {
        Ok(true) => return Error::PickleOnly { model: files.name(), file },
        Ok(false) => {}
        Err(error) => return error,
    }
    match files.pickle(folder) {
        Some(file) => Error::PickleOnly { model: files.name(), file },
        None => files.missing(&format!("{folder}{name}.safetensors"), context),
    }
}

fn read_header(path: &Path, file: usize) -> Result<Vec<(String, Entry)>> {
    let unreadable = |source| Error::unreadable(path, &source);
    let corrupt = |reason: String| Error::CorruptWeights { file: path.to_owned(), reason };
    let truncated = |expected, actual| Error::TruncatedWeights { file: path.to_owned(), expected, actual };

    let mut opened = source::open(path).map_err(unreadable)?;
    let size = opened.metadata().map_err(unreadable)?.len();
    let mut length = [0; 8];
    if size < 8 {
        return Err(truncated(8, size));
    }
    opened.read_exact(&mut length).map_err(unreadable)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(corrupt(format!(
            "its header claims {length} bytes; at most {MAX_HEADER_BYTES} are allowed"
        )));
    }
    if 8 + length > size {
        return Err(truncated(8 + length, size));
    }
    let mut header = Vec::new();
    opened.take(length).read_to_end(&mut header).map_err(unreadable)?;
    let HeaderEntries(header) = serde_json::from_slice(&header)
        .map_err(|error| corrupt(format!("its header is not as it should be: {error}")))?;

    let mut entries = Vec::with_capacity(header.len());
    let mut end = 8 + length;
    for (name, entry) in header {
        let entry = read_entry(&name, entry, file, 8 + length).map_err(corrupt)?;
        end = end.max(entry.start + entry.bytes);
        entries.push((name, entry));
    }
    if end > size {
        return Err(truncated(end, size));
    }
    Ok(entries)
}

fn from_pickle(tensor: StoredTensor, file: usize) -> (String, Entry) {
    let StoredTensor { name, dtype, shape, strides, start, bytes } = tensor;
    (name, Entry { file, dtype: dtype.to_owned(), shape, strides, start, bytes })
}

fn read_entry(name: &str, entry: HeaderEntry, file: usize, base: u64) -> Result<Entry, String> {
    let HeaderEntry { dtype, shape, data_offsets: (begin, end) } = entry;
    let bytes = end.checked_sub(begin).ok_or_else(|| format!("the tensor {name:?} ends before it begins"))?;
    if shape.len() > MAX_RANK {
        return Err(format!("the tensor {name:?} has {} dimensions", shape.len()));
    }
    let elements = shape.iter().try_fold(1usize, |product, side| product.checked_mul(*side));
    let start = base.checked_add(begin).filter(|start| start.checked_add(bytes).is_some());
    let (Some(elements), Some(start)) = (elements, start) else {
        return Err(format!("the tensor {name:?} has an impossible size"));
    };
    if let Some(numbers) = Numbers::from_name(&dtype)
        && elements.checked_mul(numbers.bytes()).map(|needed| needed as u64) != Some(bytes)
    {
        return Err(format!("the tensor {name:?} of shape {shape:?} and type {dtype} has {bytes} bytes"));
    }
    Ok(Entry { file, dtype, shape, strides: None, start, bytes })
}

/// Reads tensors as 32-bit numbers onto a device.
pub(crate) struct WeightReader<'a> {
    weights: &'a WeightFiles,
    prefix: &'static str,
    device: &'a Device,
    context: &'a LoadContext,
}

impl<'a> WeightReader<'a> {
    /// Device that tensors are put on.
    pub(crate) fn device(&self) -> &'a Device {
        self.device
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.weights.contains(&format!("{}{name}", self.prefix))
    }

    /// True if matrices are to be quantised to 8 bits.
    pub(crate) fn eight_bit(&self) -> bool {
        self.weights.eight_bit
    }

    /// Notes that a tensor, which may be there, is not needed.
    pub(crate) fn leave(&self, name: &str) {
        self.weights.read.add(&format!("{}{name}", self.prefix));
    }

    /// One tensor of exactly this shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let mut values = Vec::new();
        self.append(name, shape, &mut values)?;
        self.place(values, shape)
    }

    /// Puts numbers onto the device.
    pub(crate) fn place(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::from_vec(values, shape, self.device)?)
    }

    /// Appends one tensor's numbers, row by row.
    pub(crate) fn append(&self, name: &str, shape: &[usize], values: &mut Vec<f32>) -> Result<()> {
        if let Some(gguf) = &self.weights.gguf {
            let (tensor, begin) = (format!("{}{name}", self.prefix), values.len());
            gguf.append(&tensor, shape, values, self.context)?;
            return check_finite(tensor, &values[begin..]);
        }
        let (tensor, entry) = self.entry(name, shape)?;
        let scales = SCALES.iter().find_map(|ending| self.weights.entries.get(&format!("{tensor}{ending}")));
        let (numbers, scales) = match (Numbers::from_name(&entry.dtype), scales) {
            (Some(numbers @ (Numbers::F8E4M3 | Numbers::F8E5M2)), Some(scales)) => (numbers, Some(scales)),
            (None | Some(Numbers::F8E4M3 | Numbers::F8E5M2 | Numbers::F8E8M0), _) => {
                return Err(Error::UnsupportedNumbers { tensor, found: entry.dtype.clone() });
            }
            (Some(numbers), _) => (numbers, None),
        };
        let begin = values.len();
        // The shape is the header's by now, and the header's fit the file, so this asks for no more than is there.
        values.reserve_exact(shape.iter().product());
        match &entry.strides {
            None => self.read(entry, |piece| append_numbers(piece, numbers, values))?,
            Some(strides) => {
                values.resize(begin + shape.iter().product::<usize>(), 0.0);
                let mut scatter = Scatter::new(shape, strides, &mut values[begin..]);
                let mut read = Vec::new();
                self.read(entry, |piece| {
                    read.clear();
                    append_numbers(piece, numbers, &mut read);
                    scatter.take(&read);
                })?;
            }
        }
        if let Some(scales) = scales {
            self.scale(&mut values[begin..], &tensor, shape, scales)?;
            let names = SCALES.iter().map(|ending| format!("{tensor}{ending}"));
            let scale = names.into_iter().find(|name| self.weights.contains(name));
            scale.iter().for_each(|name| self.weights.read.add(name));
        }
        self.weights.read.add(&tensor);
        check_finite(tensor, &values[begin..])
    }

    /// The whole name of a tensor of exactly this shape, and where it is.
    fn entry(&self, name: &str, shape: &[usize]) -> Result<(String, &'a Entry)> {
        let tensor = format!("{}{name}", self.prefix);
        let Some(entry) = self.weights.entries.get(&tensor) else {
            return Err(Error::MissingTensor { tensor });
        };
        match entry.shape == shape {
            true => Ok((tensor, entry)),
            false => {
                Err(Error::ShapeMismatch { tensor, expected: shape.to_vec(), found: entry.shape.clone() })
            }
        }
    }

    /// Reads a tensor in pieces, each of whole numbers.
    fn read(&self, entry: &Entry, mut take: impl FnMut(&[u8])) -> Result<()> {
        let path = &self.weights.files[entry.file];
        let unreadable = |source| Error::unreadable(path, &source);
        let mut file = source::open(path).map_err(unreadable)?;
        file.seek(SeekFrom::Start(entry.start)).map_err(unreadable)?;
        let mut left = entry.bytes as usize;
        let mut piece = vec![0; left.min(PIECE)];
        while left > 0 {
            if self.context.should_stop() {
                return Err(Error::Stopped);
            }
            let piece = &mut piece[..left.min(PIECE)];
            file.read_exact(piece).map_err(unreadable)?;
            take(piece);
            left -= piece.len();
            self.context.advance(Bytes(piece.len() as u64));
        }
        Ok(())
    }
}

fn check_finite(tensor: String, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(Error::NotFinite { tensor, index, value: values[index].to_string() }),
        None => Ok(()),
    }
}
