//! The gated network of a layer's second half, and many of them of which a router picks a few for each token (Shazeer
//! et al., 2017).

use candle_core::{D, DType, Tensor};

use super::config::ExpertWeights;
use crate::error::Result;
use crate::kernels::Activation;
use crate::kernels::glu::glu;
use crate::kernels::packed::PackedLinear;

/// A gated network.
pub(super) struct Gated {
    /// Gate and up in one product.
    pub(super) wide: PackedLinear,
    pub(super) narrow: PackedLinear,
    pub(super) activation: Activation,
}

impl Gated {
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let wide = glu(&self.wide.forward(input, Activation::Identity)?, self.activation)?;
        self.narrow.forward(&wide, Activation::Identity)
    }
}

/// Gated networks with their router.
pub(super) struct Experts {
    pub(super) router: PackedLinear,
    pub(super) experts: Vec<Gated>,
    /// How many work on each token.
    pub(super) chosen: usize,
    pub(super) weights: ExpertWeights,
}

impl Experts {
    /// Each expert sees the rows that chose it; a row's results are added up in the experts' order, whatever the other
    /// rows chose.
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let scores = self.router.forward(input, Activation::Identity)?;
        let shares = candle_nn::ops::softmax(&scores, D::Minus1)?.to_vec2::<f32>()?;
        let mut rows: Vec<(Vec<u32>, Vec<f32>)> = vec![Default::default(); self.experts.len()];
        for (row, shares) in shares.iter().enumerate() {
            for (expert, weight) in choose(shares, self.chosen, self.weights) {
                if let Some((rows, weights)) = rows.get_mut(expert) {
                    rows.push(row as u32);
                    weights.push(weight);
                }
            }
        }
        let mut out = Tensor::zeros(input.shape(), DType::F32, input.device())?;
        for (expert, (rows, weights)) in self.experts.iter().zip(rows) {
            if rows.is_empty() {
                continue;
            }
            let count = rows.len();
            let rows = Tensor::from_vec(rows, count, input.device())?;
            let weights = Tensor::from_vec(weights, (count, 1), input.device())?;
            let made = expert.forward(&input.index_select(&rows, 0)?)?.broadcast_mul(&weights)?;
            out = out.index_add(&rows, &made, 0)?;
        }
        Ok(out)
    }
}

/// The experts with the largest shares, and what each one's result counts.
fn choose(shares: &[f32], chosen: usize, weights: ExpertWeights) -> Vec<(usize, f32)> {
    let mut best: Vec<(usize, f32)> = shares.iter().copied().enumerate().collect();
    best.sort_by(|left, right| right.1.total_cmp(&left.1));
    best.truncate(chosen);
    if weights == ExpertWeights::OfChosen {
        let sum: f32 = best.iter().map(|(_, share)| share).sum();
        best.iter_mut().for_each(|(_, share)| *share /= sum);
    }
    best
}
