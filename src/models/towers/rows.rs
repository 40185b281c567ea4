//! Rows of several sequences that lie one after another in a tensor.

use candle_core::Tensor;

use crate::error::Result;

/// The rows of `hidden` with these numbers.
pub(crate) fn pick(hidden: &Tensor, rows: impl Iterator<Item = usize>) -> Result<Tensor> {
    let rows: Vec<u32> = rows.map(|row| row as u32).collect();
    Ok(hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)?)
}

/// The first row of each sequence of these lengths.
pub(crate) fn starts(lengths: &[usize]) -> impl Iterator<Item = usize> {
    lengths.iter().scan(0, |next, length| {
        let start = *next;
        *next += length;
        Some(start)
    })
}
