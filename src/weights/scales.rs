//! Scales of 8-bit weights, read and multiplied. Which tensors they are is left to `quantised`.

use super::numbers::{Numbers, append_numbers};
use super::quantised::{self, SCALES};
use super::{Entry, WeightReader};
use crate::error::{Error, Result};

impl WeightReader<'_> {
    /// Multiplies 8-bit numbers with their scales.
    pub(super) fn scale(
        &self,
        values: &mut [f32],
        tensor: &str,
        shape: &[usize],
        scales: &Entry,
    ) -> Result<()> {
        let Some(numbers) = Numbers::from_name(&scales.dtype) else {
            let found = format!("{} scales of 8-bit", scales.dtype);
            return Err(Error::UnsupportedNumbers { tensor: tensor.to_owned(), found });
        };
        let mut factors = Vec::with_capacity(scales.shape.iter().product());
        self.read(scales, |piece| append_numbers(piece, numbers, &mut factors))?;
        let scaled = quantised::scale(values, shape, &factors, &scales.shape, self.weights.block);
        scaled.ok_or_else(|| Error::ShapeMismatch {
            tensor: format!("{tensor}{}", SCALES[0]),
            expected: shape.to_vec(),
            found: scales.shape.clone(),
        })
    }
}
