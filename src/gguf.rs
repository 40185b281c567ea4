//! Reads GGUF files: the header with its metadata first, within limits that hold whatever the file claims,
//! then one tensor after another in small pieces. The meaning of metadata and tensors is left to the
//! families, dequantisation to the kernels.

mod header;
mod tokenizer;

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use model_actors::{Bytes, LoadContext};

use crate::error::{Error, Result};
use crate::kernels::ggml::GgmlType;
use crate::source;
pub(crate) use header::{Header, read_header};
pub(crate) use tokenizer::{GgufTokenizer, TokenKind};

/// Bytes read between two looks at progress and at the stop mark.
const PIECE: usize = 1 << 20;

/// A GGUF file of which the header has been read.
#[derive(Debug)]
pub(crate) struct GgufFile {
    path: PathBuf,
    header: Header,
}

/// One tensor's blocks, row by row.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) dtype: GgmlType,
    pub(crate) bytes: Vec<u8>,
}

impl GgufFile {
    /// Reads the header.
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
        let file = Self { path: path.to_owned(), header };
        match file.header.number("split.count") {
            Some(count) if count > 1 => Err(Error::UnsupportedSetting {
                file: file.path,
                what: "split.count".into(),
                found: count.to_string(),
                supported: "files in one piece".into(),
            }),
            _ => Ok(file),
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
            let (kind, supported) = (tensor.kind, GgmlType::NAMES);
            return Err(self.invalid(format!(
                "the tensor {name} is of type {kind}, which is not supported; supported are {supported}"
            )));
        };
        let unreadable = |source| Error::unreadable(&self.path, &source);
        let mut file = source::open(&self.path).map_err(unreadable)?;
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
