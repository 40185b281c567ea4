//! The tensors of a GGUF file, one after another as in one file, as candle reads them: each by this crate's own reader, with
//! its progress, its stop mark and its checks, whichever part of the file it lies in.

use std::io::{self, Read, Seek, SeekFrom};

use model_actors::LoadContext;

use crate::error::Error;
use crate::gguf::GgufFile;

/// A reader of tensors that were placed.
pub(in crate::models::transformers) struct TensorReader<'a> {
    file: &'a GgufFile,
    context: &'a LoadContext,
    /// Names and first bytes, in their order.
    placed: Vec<(String, u64)>,
    end: u64,
    position: u64,
    /// Bytes of the tensor that was read last, and its first.
    read: Option<(u64, Vec<u8>)>,
    /// The first error, whose type would not survive in one of candle.
    error: Option<Error>,
}

impl<'a> TensorReader<'a> {
    pub(super) fn new(file: &'a GgufFile, context: &'a LoadContext) -> Self {
        Self { file, context, placed: Vec::new(), end: 0, position: 0, read: None, error: None }
    }

    /// Places a tensor of the file behind those before it. Gives its first byte.
    pub(super) fn place(&mut self, tensor: &str) -> u64 {
        let (start, bytes) = (self.end, self.file.header().tensor(tensor).map_or(0, |tensor| tensor.bytes));
        self.placed.push((tensor.to_owned(), start));
        self.end = start.saturating_add(bytes);
        start
    }

    /// The first error.
    pub(super) fn error(&mut self) -> Option<Error> {
        self.error.take()
    }

    /// The first byte of the tensor that has this one, and its bytes.
    fn tensor_at(&mut self, position: u64) -> io::Result<(u64, &[u8])> {
        let before = self.placed.partition_point(|(_, start)| *start <= position);
        let placed = before.checked_sub(1).and_then(|index| self.placed.get(index));
        let (name, start) = placed.ok_or(io::ErrorKind::UnexpectedEof)?;
        if self.read.as_ref().is_none_or(|(read, _)| read != start) {
            // The old one first, so that there are never two.
            self.read = None;
            let shape = self.file.header().tensor(name).map(|tensor| tensor.shape.clone());
            let stored = self.file.read(name, &shape.unwrap_or_default(), self.context);
            match stored {
                Ok(stored) => self.read = Some((*start, stored.bytes)),
                Err(error) => {
                    let told = io::Error::other(error.to_string());
                    self.error.get_or_insert(error);
                    return Err(told);
                }
            }
        }
        match &self.read {
            Some((start, bytes)) => Ok((*start, bytes)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Read for TensorReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.end {
            return Ok(0);
        }
        let position = self.position;
        let (start, bytes) = self.tensor_at(position)?;
        let from = usize::try_from(position - start).map_err(io::Error::other)?;
        let rest = bytes.get(from..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.position = position.saturating_add(count as u64);
        Ok(count)
    }
}

impl Seek for TensorReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(place) => Some(place),
            SeekFrom::End(offset) => self.end.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = place.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
