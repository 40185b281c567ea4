//! Gated delta net (Yang et al., 2025, arXiv 2412.06464), which Qwen3-Next has in place of attention in most layers: a
//! short convolution over the last tokens, and a memory of fixed size for each head, which fades and is corrected by
//! each token. Rows of several sequences lie one after another; each sequence has a state of its own. The memory is
//! brought up to date token by token, so that a row's result is the same to the last bit however a prompt is cut and
//! whatever the other sequences are. On the processor, sequences and heads are spread over the caller's threads; on an
//! accelerator it is candle's operations. Projections are left to the families.

mod state;
mod memory;
#[cfg(test)]
mod tests;

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use super::activation::Activation;
use super::causal::LayerSegment;
use super::cpu::{split_rows_at, threads, threads_for, with_values};
use super::glu::{GluForm, glu};
use super::rms_norm::RmsNorm;
use crate::error::Result;
use memory::{EPSILON, Task};
pub(crate) use state::{DeltaNetSizes, DeltaNetState, ValueOrder};
use state::{Store, misfit};

/// Gated delta net of one layer.
#[derive(Debug, Clone)]
pub(crate) struct GatedDeltaNet {
    pub(crate) sizes: DeltaNetSizes,
    /// Weights of the convolution, `(taps, channels)`, that of the token itself last.
    pub(crate) convolution: Tensor,
    /// Activation after the convolution.
    pub(crate) activation: Activation,
    /// Logarithm of a value head's rate of decay, `(value_heads)`.
    pub(crate) log_rates: Tensor,
    /// Bias of the decays, `(value_heads)`.
    pub(crate) decay_bias: Tensor,
    /// Norm of each head's output, before the gate.
    pub(crate) norm: RmsNorm,
}

/// Numbers that each row has for each value head: the part of its memory that stays, and the part of the correction that
/// is made.
struct Gates {
    decay: Vec<f32>,
    beta: Vec<f32>,
}

impl GatedDeltaNet {
    /// Brings the states up to date and reads them. Each row of `projected` is a token's queries, keys, values and output
    /// gates; of `gates`, `(rows, 2 · value_heads)`, what becomes its betas and decays; `segments` cover the rows in
    /// order. Gives `(rows, value_heads · value_size)`, before the output projection.
    pub(crate) fn forward(
        &self,
        projected: &Tensor,
        gates: &Tensor,
        segments: &mut [LayerSegment<'_, DeltaNetState>],
    ) -> Result<Tensor> {
        let (count, sizes) = (projected.dim(0)?, self.sizes);
        let fits = [sizes.key_heads, sizes.value_heads, sizes.key_size, sizes.value_size]
            .iter()
            .all(|size| *size > 0)
            && sizes.taps > 1
            && sizes.value_heads.is_multiple_of(sizes.key_heads)
            && projected.dims() == [count, sizes.projected()]
            && gates.dims() == [count, 2 * sizes.value_heads]
            && segments.iter().map(|segment| segment.length).sum::<usize>() == count;
        if !fits {
            return Err(misfit("heads and lengths do not fit the rows"));
        }
        for segment in segments.iter_mut() {
            segment.cache.begin(segment.past, segment.length)?;
        }
        let read = match projected.device() {
            Device::Cpu => self.on_cpu(projected, gates, segments)?,
            _ => self.on_any(projected, gates, segments)?,
        };
        // The norm of each head, and then its gate.
        let heads = read.reshape((count * sizes.value_heads, sizes.value_size))?;
        let normed = self.norm.forward(&heads)?.reshape((count, sizes.values()))?;
        let gate = projected.narrow(1, sizes.channels(), sizes.values())?;
        glu(&Tensor::cat(&[&gate, &normed], 1)?.contiguous()?, Activation::Silu, GluForm::Plain)
    }

    fn on_cpu(
        &self,
        projected: &Tensor,
        gates: &Tensor,
        segments: &mut [LayerSegment<'_, DeltaNetState>],
    ) -> Result<Tensor> {
        let (count, sizes) = (projected.dim(0)?, self.sizes);
        let gates = self.gates(gates)?;
        let mixed = with_values(projected, |projected| self.convolve(projected, segments))??;
        let (group, heads) = (sizes.group(), sizes.value_heads);
        let mut tasks = Vec::new();
        let mut first = 0;
        for segment in segments {
            let rows = first..first + segment.length;
            let memory = &mut segment.cache.on_host(sizes)?.memory;
            let memories = memory.chunks_exact_mut(group * sizes.key_size * sizes.value_size);
            tasks.extend(memories.enumerate().map(|(head, memory)| Task {
                sizes,
                head,
                memory,
                mixed: &mixed[rows.start * sizes.channels()..rows.end * sizes.channels()],
                decay: &gates.decay[rows.start * heads..rows.end * heads],
                beta: &gates.beta[rows.start * heads..rows.end * heads],
                first,
            }));
            first += segment.length;
        }
        let done: Vec<(usize, usize, Vec<f32>)> = match threads() {
            1 => tasks.into_iter().map(Task::run).collect(),
            _ => tasks.into_par_iter().map(Task::run).collect(),
        };
        let (width, part) = (sizes.values(), group * sizes.value_size);
        let mut out = vec![0.0; count * width];
        for (first, head, values) in done {
            for (row, values) in (first..).zip(values.chunks_exact(part)) {
                for (place, value) in values.chunks_exact(sizes.value_size).enumerate() {
                    let begin = row * width + sizes.value_head(head, place) * sizes.value_size;
                    out[begin..begin + sizes.value_size].copy_from_slice(value);
                }
            }
        }
        Ok(Tensor::from_vec(out, (count, width), &Device::Cpu)?)
    }

    /// Decays, `exp(-rate · softplus(x + bias))`, and betas, which are sigmoids.
    fn gates(&self, gates: &Tensor) -> Result<Gates> {
        let heads = self.sizes.value_heads;
        let (rates, bias): (Vec<f32>, Vec<f32>) = (self.log_rates.to_vec1()?, self.decay_bias.to_vec1()?);
        let decay_of = |(x, (log_rate, bias)): (&f32, (&f32, &f32))| {
            let x = x + bias;
            let soft = if x > 20.0 { x } else { x.exp().ln_1p() };
            (-log_rate.exp() * soft).exp()
        };
        with_values(gates, |gates| {
            let (mut decay, mut beta) = (Vec::new(), Vec::new());
            for row in gates.chunks_exact(2 * heads) {
                let (betas, decays) = row.split_at(heads);
                beta.extend(betas.iter().map(|x| 1.0 / (1.0 + (-x).exp())));
                decay.extend(decays.iter().zip(rates.iter().zip(&bias)).map(decay_of));
            }
            Gates { decay, beta }
        })
    }

    /// The convolution over each sequence, activated: `(rows, channels)`. Keeps the last rows that went in.
    fn convolve(
        &self,
        projected: &[f32],
        segments: &mut [LayerSegment<'_, DeltaNetState>],
    ) -> Result<Vec<f32>> {
        let sizes = self.sizes;
        let (width, channels, kept) = (sizes.projected(), sizes.channels(), sizes.taps - 1);
        let mut out = vec![0.0; projected.len() / width * channels];
        let (mut inputs, mut outputs) = (projected, out.as_mut_slice());
        for segment in segments {
            let length = segment.length;
            let (own, rest) = std::mem::take(&mut outputs).split_at_mut(length * channels);
            let (input, others) = inputs.split_at(length * width);
            (inputs, outputs) = (others, rest);
            let before = &mut segment.cache.on_host(sizes)?.rows;
            with_values(&self.convolution, |weights| {
                split_rows_at(own, channels, threads_for(length * channels), |first, rows| {
                    for (place, out) in (first..).zip(rows.chunks_exact_mut(channels)) {
                        for (tap, weights) in weights.chunks_exact(channels).enumerate() {
                            let seen = match (place + tap).checked_sub(kept) {
                                Some(row) => &input[row * width..row * width + channels],
                                None => &before[(place + tap) * channels..(place + tap + 1) * channels],
                            };
                            for ((out, weight), x) in out.iter_mut().zip(weights).zip(seen) {
                                *out += weight * x;
                            }
                        }
                        self.activation.on_values(out);
                    }
                });
            })?;
            // Of the rows before, so many are among the last.
            let old = kept.saturating_sub(length);
            before.copy_within((kept - old) * channels.., 0);
            let last = input.chunks_exact(width).skip(length.saturating_sub(kept));
            for (kept, row) in before.chunks_exact_mut(channels).skip(old).zip(last) {
                kept.copy_from_slice(&row[..channels]);
            }
        }
        Ok(out)
    }

    /// Computes the same with candle's operations.
    fn on_any(
        &self,
        projected: &Tensor,
        gates: &Tensor,
        segments: &mut [LayerSegment<'_, DeltaNetState>],
    ) -> Result<Tensor> {
        let heads = self.sizes.value_heads;
        let beta = candle_nn::ops::sigmoid(&gates.narrow(1, 0, heads)?.contiguous()?)?;
        let x = gates.narrow(1, heads, heads)?.broadcast_add(&self.decay_bias)?;
        let soft = (x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
        let decay = soft.broadcast_mul(&self.log_rates.exp()?)?.neg()?.exp()?;
        let (mut out, mut first) = (Vec::with_capacity(segments.len()), 0);
        for segment in segments {
            let rows = |tensor: &Tensor| tensor.narrow(0, first, segment.length)?.contiguous();
            let (projected, decay, beta) = (rows(projected)?, rows(&decay)?, rows(&beta)?);
            out.push(self.sequence_on_any(segment, &projected, &decay, &beta)?);
            first += segment.length;
        }
        Ok(Tensor::cat(&out, 0)?)
    }

    fn sequence_on_any(
        &self,
        segment: &mut LayerSegment<'_, DeltaNetState>,
        projected: &Tensor,
        decay: &Tensor,
        beta: &Tensor,
    ) -> Result<Tensor> {
        let (sizes, length) = (self.sizes, segment.length);
        let DeltaNetSizes { key_heads, value_heads, key_size, value_size, taps, order } = sizes;
        let (before, mut memory) = segment.cache.on_device(sizes, projected.device())?;
        let seen = Tensor::cat(&[&before, &projected.narrow(1, 0, sizes.channels())?.contiguous()?], 0)?;
        let mut mixed = Tensor::zeros((length, sizes.channels()), DType::F32, projected.device())?;
        for tap in 0..taps {
            mixed = (mixed
                + seen.narrow(0, tap, length)?.broadcast_mul(&self.convolution.narrow(0, tap, 1)?)?)?;
        }
        let mixed = self.activation.on_tensor(mixed)?;
        // Of length 1, one for each value head.
        let unit = |first| -> Result<Tensor> {
            let all = mixed.narrow(1, first, sizes.keys())?.contiguous()?;
            let (shape, times) = match order {
                ValueOrder::Grouped => ((length, key_heads, 1, key_size), (1, 1, sizes.group(), 1)),
                ValueOrder::Tiled => ((length, 1, key_heads, key_size), (1, sizes.group(), 1, 1)),
            };
            let all = all.reshape(shape)?;
            let size = (all.sqr()?.sum_keepdim(D::Minus1)? + f64::from(EPSILON))?.sqrt()?;
            let all = all.broadcast_div(&size)?.repeat(times)?;
            Ok(all.reshape((length, value_heads, key_size))?)
        };
        let (queries, keys) = ((unit(0)? / (key_size as f64).sqrt())?, unit(sizes.keys())?);
        let values = mixed.narrow(1, 2 * sizes.keys(), sizes.values())?.contiguous()?;
        let values = values.reshape((length, value_heads, 1, value_size))?;
        let mut out = Vec::with_capacity(length);
        for row in 0..length {
            let each = |tensor: &Tensor| tensor.get(row)?.reshape((value_heads, 1, ()));
            let (query, key) = (each(&queries)?, each(&keys)?);
            memory = memory.broadcast_mul(&each(decay)?)?;
            let known = key.matmul(&memory)?;
            let correction = (values.get(row)? - known)?.broadcast_mul(&each(beta)?)?;
            memory = (memory + key.transpose(1, 2)?.contiguous()?.matmul(&correction)?)?;
            out.push(query.matmul(&memory)?.reshape((1, sizes.values()))?);
        }
        let rows = seen.narrow(0, length, taps - 1)?.copy()?;
        segment.cache.store = Store::Device { rows, memory };
        Ok(Tensor::cat(&out, 0)?)
    }
}
