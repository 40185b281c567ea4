//! Reads GGUF files: the header with its metadata first, within limits that hold whatever the file claims,
//! then one tensor after another in small pieces. A file may be in several parts. The meaning of metadata and tensors is left to the
//! families, dequantisation to the kernels.

mod header;
mod tokenizer;

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use model_actors::{Bytes, LoadContext};

use crate::error::{Error, Result};
use crate::kernels::ggml::GgmlType;
use crate::notes::Notes;
use crate::source::{self, GgufPart, Unread};
pub(crate) use header::{Header, Value, read_header};
pub(crate) use tokenizer::{GgufTokenizer, TokenKind};

/// Bytes read between two looks at progress and at the stop mark.
const PIECE: usize = 1 << 20;
/// Maximum number of parts of a file.
const MAX_PARTS: usize = 1024;

/// A GGUF file of which the header has been read.
#[derive(Debug)]
pub(crate) struct GgufFile {
    /// Of the part with the metadata, the first.
    path: PathBuf,
    /// Of the other parts, in their order.
    others: Vec<PathBuf>,
    header: Header,
    read: Notes,
}

/// One tensor's blocks, row by row.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) dtype: GgmlType,
    pub(crate) bytes: Vec<u8>,
}

impl GgufFile {
    /// Reads the header; of a file in parts, that of this part alone.
    ///
    /// # Errors
    /// [`Error::InvalidGguf`] if it is malformed, [`Error::TruncatedWeights`] if tensors lie beyond the file's end.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let unreadable = |source| Error::unreadable(path, &source);
        let file = source::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        let header = read_header(BufReader::new(file), size)
            .map_err(|reason| Error::InvalidGguf { file: path.to_owned(), reason })?;
        let end = header.tensors().map(|(_, tensor)| tensor.end()).max().unwrap_or(0);
        if end > size {
            return Err(Error::TruncatedWeights { file: path.to_owned(), expected: end, actual: size });
        }
        Ok(Self { path: path.to_owned(), others: Vec::new(), header, read: Notes::default() })
    }

    /// The same with all of its parts, each of which `find` gives the path of by its name. The metadata are those of the
    /// first.
    ///
    /// # Errors
    /// As [`Self::open`] and `find`; [`Error::InvalidGguf`] for parts that do not belong together.
    pub(crate) fn with_parts(self, find: impl Fn(&str) -> Result<PathBuf>) -> Result<Self> {
        let count = self.header.number("split.count").unwrap_or(1);
        if count <= 1 {
            return Ok(self);
        }
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let part = GgufPart::of(&name).filter(|part| part.count as u64 == count && part.count <= MAX_PARTS);
        let Some(part) = part else {
            let reason = format!(
                "it is one of {count} parts, of which at most {MAX_PARTS} are allowed, and is not named as llama.cpp \
                 names them: model-00001-of-{count:05}.gguf"
            );
            return Err(self.invalid(reason));
        };
        let mut whole = match part.number {
            1 => self,
            _ => Self::open(&find(&part.name(1))?)?,
        };
        whole.check_part(0, count)?;
        for number in 2..=part.count {
            let other = Self::open(&find(&part.name(number))?)?;
            other.check_part(number as u64 - 1, count)?;
            let Self { path, header, .. } = other;
            if let Err(reason) = whole.header.add_part(number - 1, header) {
                return Err(Error::InvalidGguf { file: path, reason });
            }
            whole.others.push(path);
        }
        let (found, told) =
            (whole.header.tensors().count() as u64, whole.header.number("split.tensors.count"));
        match told {
            Some(told) if told != found => {
                Err(whole.invalid(format!("its parts have {found} tensors, of {told} that it tells of")))
            }
            _ => Ok(whole),
        }
    }

    /// Refuses a part that is another one than its name says, or of another file.
    fn check_part(&self, number: u64, count: u64) -> Result<()> {
        let found = (self.header.number("split.no"), self.header.number("split.count"));
        match found {
            (own, Some(of)) if own.unwrap_or(0) == number && of == count => Ok(()),
            (own, of) => Err(self.invalid(format!(
                "by its name it is part {} of {count}; it says that it is part {} of {}",
                number + 1,
                own.unwrap_or(0).saturating_add(1),
                of.unwrap_or(1)
            ))),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Error for a malformed file.
    pub(crate) fn invalid(&self, reason: String) -> Error {
        Error::InvalidGguf { file: self.path.clone(), reason }
    }

    fn unsupported(&self, tensor: &str, kind: u32) -> Error {
        let (kind, supported) = (GgmlType::unsupported_name(kind), GgmlType::NAMES);
        self.invalid(format!(
            "the tensor {tensor} is of type {kind}, which is not supported; take a file of the model whose types are; \
             supported are {supported}"
        ))
    }

    /// Refuses a file in which a tensor that `is_read` picks is of a type that is not supported.
    ///
    /// # Errors
    /// [`Error::InvalidGguf`], which names the first such tensor and its type.
    pub(crate) fn check_types(&self, is_read: impl Fn(&str) -> bool) -> Result<()> {
        let unknown = self
            .header
            .tensors()
            .filter(|(name, tensor)| GgmlType::from_number(tensor.kind).is_none() && is_read(name.as_str()));
        match unknown.min_by_key(|(name, _)| name.as_str()) {
            Some((name, tensor)) => Err(self.unsupported(name, tensor.kind)),
            None => Ok(()),
        }
    }

    /// The tokenizer that it carries.
    ///
    /// # Errors
    /// [`Error::InvalidGguf`] if it carries none, or one whose parts do not fit each other.
    pub(crate) fn tokenizer(&self) -> Result<GgufTokenizer> {
        GgufTokenizer::read(&self.header).map_err(|reason| self.invalid(reason))
    }

    /// The bytes that its tensors take on disk, and in memory where they stay as they are.
    pub(crate) fn bytes(&self) -> Bytes {
        self.header.tensors().map(|(_, tensor)| Bytes(tensor.bytes)).sum()
    }

    pub(crate) fn contains(&self, tensor: &str) -> bool {
        self.header.tensor(tensor).is_some()
    }

    /// Refuses a tensor that was not read, once all that is needed has been, unless `unread` allows it. `has_no_effect` is
    /// true for those that may be left unread.
    ///
    /// # Errors
    /// [`Error::UnreadTensor`] names the first of them.
    pub(crate) fn check_all_read(&self, unread: Unread, has_no_effect: impl Fn(&str) -> bool) -> Result<()> {
        self.read.check(unread, self.header.tensors().map(|(name, _)| name.as_str()), has_no_effect)
    }

    /// Reads one tensor as it is stored; the shape must be this.
    pub(crate) fn read(&self, name: &str, shape: &[usize], context: &LoadContext) -> Result<Stored> {
        let Some(tensor) = self.header.tensor(name) else {
            return Err(Error::MissingTensor { tensor: name.to_owned() });
        };
        if tensor.shape != shape {
            return Err(Error::ShapeMismatch {
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: tensor.shape.clone(),
            });
        }
        let Some(dtype) = GgmlType::from_number(tensor.kind) else {
            return Err(self.unsupported(name, tensor.kind));
        };
        let path = match tensor.part {
            0 => &self.path,
            part => self.others.get(part - 1).ok_or(Error::MissingTensor { tensor: name.to_owned() })?,
        };
        let unreadable = |source| Error::unreadable(path, &source);
        let mut file = source::open(path).map_err(unreadable)?;
        file.seek(SeekFrom::Start(tensor.start)).map_err(unreadable)?;
        // The header's sizes fit the file, so this asks for no more than is there.
        let mut bytes = vec![0; tensor.bytes as usize];
        for piece in bytes.chunks_mut(PIECE) {
            if context.should_stop() {
                return Err(Error::Stopped);
            }
            file.read_exact(piece).map_err(unreadable)?;
            context.advance(Bytes(piece.len() as u64));
        }
        let row = shape.last().copied().unwrap_or(1);
        if let Some(row_index) = dtype.first_damaged_row(&bytes, row) {
            return Err(Error::NotFinite {
                tensor: name.to_owned(),
                index: row_index * row,
                value: f32::NAN.to_string(),
            });
        }
        self.read.add(name);
        Ok(Stored { dtype, bytes })
    }

    /// Reads one tensor as numbers.
    pub(crate) fn numbers(&self, name: &str, shape: &[usize], context: &LoadContext) -> Result<Vec<f32>> {
        let stored = self.read(name, shape, context)?;
        let mut values = vec![0.0; shape.iter().product()];
        stored.dtype.decode(&stored.bytes, &mut values);
        Ok(values)
    }
}
