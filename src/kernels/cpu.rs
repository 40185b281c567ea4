//! Access to tensors in host memory, and the distribution of their rows over threads: the rayon pool that the
//! caller runs in, or the caller's thread alone.

use candle_core::{CpuStorage, Storage, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Number of threads that work is spread over: those of the rayon pool that the caller runs in, or 1.
pub(super) fn threads() -> usize {
    if rayon::current_thread_index().is_some() { rayon::current_num_threads() } else { 1 }
}

/// Fewest numbers of elementwise work that are worth a thread of their own.
const MIN_NUMBERS: usize = 1 << 14;

/// Like [`threads`], but 1 for so few numbers that handing them over takes longer.
pub(super) fn threads_for(numbers: usize) -> usize {
    if numbers < 2 * MIN_NUMBERS { 1 } else { threads() }
}

/// Runs `work` on all rows of `width` numbers, some consecutive rows for each thread.
pub(super) fn split_rows(
    values: &mut [f32],
    width: usize,
    threads: usize,
    work: impl Fn(&mut [f32]) + Sync + Send,
) {
    if threads == 1 {
        return work(values);
    }
    let per_thread = (values.len() / width.max(1)).div_ceil(threads).max(1) * width;
    values.par_chunks_mut(per_thread).for_each(work);
}

/// Like [`split_rows`], but `work` is also given the index of its first row.
pub(super) fn split_rows_at<T: Send>(
    values: &mut [T],
    width: usize,
    threads: usize,
    work: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    if threads == 1 {
        return work(0, values);
    }
    let rows = (values.len() / width.max(1)).div_ceil(threads).max(1);
    let pieces = values.par_chunks_mut((rows * width).max(1)).enumerate();
    pieces.for_each(|(piece, values)| work(piece * rows, values));
}

/// Lends the numbers of a contiguous 32-bit tensor in host memory.
///
/// # Errors
/// [`Error::Compute`] for any other tensor.
pub(crate) fn with_values<R>(tensor: &Tensor, work: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(work(&values[start..end])),
        _ => Err(Error::compute("a kernel was given a tensor that it cannot read in place")),
    }
}
