//! The loop over a sequence's rows on the processor, in which each row corrects the memories of some heads and reads them.

use pulp::{Arch, Simd, WithSimd};

use super::super::rows::sum_of;
use super::state::DeltaNetSizes;

/// Added to the squared length of queries and keys before they are brought to length 1.
pub(super) const EPSILON: f32 = 1e-6;

/// The rows of one sequence, for the value heads of one key head.
pub(super) struct Task<'a> {
    pub(super) sizes: DeltaNetSizes,
    /// Number of the key head.
    pub(super) head: usize,
    pub(super) memory: &'a mut [f32],
    /// `(rows, channels)`.
    pub(super) mixed: &'a [f32],
    /// `(rows, value_heads)` each.
    pub(super) decay: &'a [f32],
    pub(super) beta: &'a [f32],
    /// Number of the sequence's first row in the pass.
    pub(super) first: usize,
}

impl Task<'_> {
    /// Gives the number of the first row, that of the head, and the outputs, `(rows, value heads of the group ·
    /// value_size)`.
    pub(super) fn run(self) -> (usize, usize, Vec<f32>) {
        let (first, head) = (self.first, self.head);
        (first, head, Arch::new().dispatch(self))
    }
}

impl WithSimd for Task<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<f32> {
        let Self { sizes, head, memory, mixed, decay, beta, .. } = self;
        let (key_size, value_size, group) = (sizes.key_size, sizes.value_size, sizes.group());
        let length = mixed.len() / sizes.channels();
        let mut out = vec![0.0; length * group * value_size];
        let mut correction = vec![0.0; value_size];
        let scale = 1.0 / (key_size as f32).sqrt();
        let rows = mixed.chunks_exact(sizes.channels()).zip(out.chunks_exact_mut(group * value_size));
        for (row, (mixed, out)) in rows.enumerate() {
            let query = &mixed[head * key_size..(head + 1) * key_size];
            let key = &mixed[sizes.keys() + head * key_size..][..key_size];
            let values = &mixed[2 * sizes.keys()..];
            let length_of = |values: &[f32]| (sum_of(values, |x| x * x) + EPSILON).sqrt();
            let (query_factor, key_factor) = (scale / length_of(query), 1.0 / length_of(key));
            let memories = memory.chunks_exact_mut(key_size * value_size);
            let heads = memories.zip(out.chunks_exact_mut(value_size));
            for (index, (memory, out)) in heads.enumerate() {
                let value_head = sizes.value_head(head, index);
                let value = &values[value_head * value_size..][..value_size];
                let place = row * sizes.value_heads + value_head;
                let (decay, beta) = (decay[place], beta[place]);
                // The value that the faded memory has under the key.
                correction.fill(0.0);
                for (memory, key) in memory.chunks_exact_mut(value_size).zip(key) {
                    let key = key * key_factor;
                    for (memory, known) in memory.iter_mut().zip(&mut correction) {
                        *memory *= decay;
                        *known += key * *memory;
                    }
                }
                for (known, value) in correction.iter_mut().zip(value) {
                    *known = (value - *known) * beta;
                }
                for (memory, (key, query)) in memory.chunks_exact_mut(value_size).zip(key.iter().zip(query)) {
                    let (key, query) = (key * key_factor, query * query_factor);
                    for ((memory, correction), out) in memory.iter_mut().zip(&correction).zip(&mut *out) {
                        *memory += key * correction;
                        *out += query * *memory;
                    }
                }
            }
        }
        out
    }
}
