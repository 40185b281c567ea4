//! Tensors that hold the matrices of several layers, one after another along their first dimension: each is read alone, so
//! that no more than it is in memory. What the parts are is left to the families.

use std::path::{Path, PathBuf};

use super::numbers::{Numbers, append_numbers};
use super::{BYTES, Entry, WeightFiles, WeightReader, check_finite};
use crate::error::{Error, Result};

impl Entry {
    /// One of the parts along the first dimension of a tensor whose numbers lie row by row.
    fn part(&self, index: usize) -> Option<Self> {
        let (count, shape) = self.shape.split_first()?;
        let bytes = self.bytes.checked_div(*count as u64).filter(|_| index < *count)?;
        let start = self.start + bytes * index as u64;
        Some(Self { shape: shape.to_vec(), start, bytes, ..self.clone() })
    }
}

impl WeightFiles {
    /// The first of the files.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.files.first().map(PathBuf::as_path)
    }

    /// True if the name of a tensor begins so.
    pub(crate) fn has_beginning(&self, beginning: &str) -> bool {
        self.entries.keys().any(|name| name.starts_with(beginning))
    }
}

impl WeightReader<'_> {
    /// A tensor of this shape, of which the file may have the first two dimensions as one.
    fn stacked(&self, name: &str, shape: &[usize]) -> Result<(String, Entry)> {
        let flat = match shape {
            [count, rows, rest @ ..] => count.checked_mul(*rows).map(|rows| [&[rows], rest].concat()),
            _ => None,
        };
        match flat.and_then(|flat| self.entry(name, &flat).ok()) {
            Some((tensor, entry)) => Ok((tensor, Entry { shape: shape.to_vec(), ..entry.clone() })),
            None => self.entry(name, shape).map(|(tensor, entry)| (tensor, entry.clone())),
        }
    }

    /// Appends the numbers of one of the parts along a tensor's first dimension, row by row.
    pub(crate) fn append_part(
        &self,
        name: &str,
        shape: &[usize],
        index: usize,
        values: &mut Vec<f32>,
    ) -> Result<()> {
        let (tensor, entry) = self.stacked(name, shape)?;
        let numbers = Numbers::from_name(&entry.dtype).filter(|numbers| numbers.bytes() > 1);
        let begin = values.len();
        match (numbers, &entry.strides, entry.part(index)) {
            (Some(numbers), None, Some(part)) => {
                values.reserve_exact(part.shape.iter().product());
                self.read(&part, |piece| append_numbers(piece, numbers, values))?;
                self.weights.read.add(&tensor);
                check_finite(tensor, &values[begin..])
            }
            // Of others the whole is read: their numbers do not lie together, or need scales.
            _ => {
                let mut all = Vec::new();
                self.append(name, shape, &mut all)?;
                let length = all.len() / shape.first().copied().unwrap_or(0).max(1);
                values.extend(all.iter().skip(index.saturating_mul(length)).take(length));
                Ok(())
            }
        }
    }

    /// The bytes of one of the parts along the first dimension of a tensor of bytes.
    pub(crate) fn part_bytes(&self, name: &str, shape: &[usize], index: usize) -> Result<Vec<u8>> {
        let (tensor, entry) = self.entry(name, shape)?;
        let size = shape.iter().try_fold(1u64, |product, side| product.checked_mul(*side as u64));
        let part = entry
            .part(index)
            .filter(|_| entry.dtype == BYTES && entry.strides.is_none() && size == Some(entry.bytes));
        let Some(part) = part else {
            return Err(Error::UnsupportedNumbers { tensor, found: entry.dtype.clone() });
        };
        // As large as the header says, which fits the file.
        let mut bytes = Vec::with_capacity(part.bytes as usize);
        self.read(&part, |piece| bytes.extend_from_slice(piece))?;
        self.weights.read.add(&tensor);
        Ok(bytes)
    }
}
