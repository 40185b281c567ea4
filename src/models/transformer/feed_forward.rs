//! The feed-forward network of a block: two projections with an activation between them, a gated one (SwiGLU,
//! GeGLU), or many gated ones of which a router picks a few for each token (Shazeer et al., 2017).

use candle_core::{D, DType, Tensor};

use super::adapter::{AdaptedLayer, RowAdapters};
use super::config::ExpertWeights;
use super::projection::Projection;
use crate::error::Result;
use crate::kernels::Activation;
use crate::kernels::glu::{GluForm, glu};

/// A feed-forward network.
pub(crate) enum FeedForward {
    Dense(Dense),
    Gated(Gated),
    Experts(Box<Experts>),
}

impl FeedForward {
    /// `(rows, width)` to the same.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.forward_adapted(input, RowAdapters::default())
    }

    /// The same with what adapters add. None changes experts.
    pub(super) fn forward_adapted(&self, input: &Tensor, adapters: RowAdapters<'_>) -> Result<Tensor> {
        match self {
            Self::Dense(dense) => dense.forward(input, adapters),
            Self::Gated(gated) => gated.forward(input, adapters),
            Self::Experts(experts) => experts.forward(input),
        }
    }
}

/// `down(activation(up(x)))`.
pub(crate) struct Dense {
    pub(super) up: Projection,
    pub(super) activation: Activation,
    pub(super) down: Projection,
}

impl Dense {
    fn forward(&self, input: &Tensor, adapters: RowAdapters<'_>) -> Result<Tensor> {
        let intermediate = adapters.forward(AdaptedLayer::Up, &self.up, input, self.activation)?;
        adapters.forward(AdaptedLayer::Down, &self.down, &intermediate, Activation::Identity)
    }
}

/// `down(activation(gate(x)) · up(x))`.
pub(crate) struct Gated {
    /// Gate and up projection in one product, the gate first.
    pub(super) gate_up: Projection,
    pub(super) activation: Activation,
    pub(super) form: GluForm,
    pub(super) down: Projection,
}

impl Gated {
    fn forward(&self, input: &Tensor, adapters: RowAdapters<'_>) -> Result<Tensor> {
        let gate_up = adapters.forward(AdaptedLayer::Up, &self.gate_up, input, Activation::Identity)?;
        let intermediate = glu(&gate_up, self.activation, self.form)?;
        adapters.forward(AdaptedLayer::Down, &self.down, &intermediate, Activation::Identity)
    }
}

/// Networks with their router.
pub(crate) struct Experts {
    pub(super) router: Projection,
    /// Each of them dense or gated.
    pub(super) experts: Vec<FeedForward>,
    /// Bias on the sum of their outputs.
    pub(super) bias: Option<Tensor>,
    /// Number of experts that work on each token.
    pub(super) chosen: usize,
    pub(super) weights: ExpertWeights,
    /// One more that sees every row, and the layer whose sigmoid is its weight.
    pub(super) shared: Option<(Projection, Gated)>,
}

impl Experts {
    /// Each expert sees the rows that chose it; a row's results are added up in the experts' order, whatever
    /// the other rows chose.
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let scores = self.router.forward(input, Activation::Identity)?;
        let shares = match self.weights {
            ExpertWeights::SparseMixer { .. } => scores,
            ExpertWeights::OfAll | ExpertWeights::OfChosen => candle_nn::ops::softmax(&scores, D::Minus1)?,
        };
        let shares = shares.to_vec2::<f32>()?;
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
            let output = expert.forward(&input.index_select(&rows, 0)?)?.broadcast_mul(&weights)?;
            out = out.index_add(&rows, &output, 0)?;
        }
        if let Some(bias) = &self.bias {
            out = out.broadcast_add(bias)?;
        }
        match &self.shared {
            Some((gate, shared)) => {
                let weights = candle_nn::ops::sigmoid(&gate.forward(input, Activation::Identity)?)?;
                let shared = shared.forward(input, RowAdapters::default())?;
                Ok((out + shared.broadcast_mul(&weights)?)?)
            }
            None => Ok(out),
        }
    }
}

/// The experts with the largest shares, or scores, and the weight of each one's output.
fn choose(shares: &[f32], chosen: usize, weights: ExpertWeights) -> Vec<(usize, f32)> {
    if let ExpertWeights::SparseMixer { jitter } = weights {
        return sparse_mixer(shares, chosen, jitter);
    }
    let mut best: Vec<(usize, f32)> = shares.iter().copied().enumerate().collect();
    best.sort_by(|left, right| right.1.total_cmp(&left.1));
    best.truncate(chosen);
    if weights == ExpertWeights::OfChosen {
        let sum: f32 = best.iter().map(|(_, share)| share).sum();
        best.iter_mut().for_each(|(_, share)| *share /= sum);
    }
    best
}

/// One expert after another, each with its share in the softmax over those left that are about as good.
fn sparse_mixer(scores: &[f32], chosen: usize, jitter: f32) -> Vec<(usize, f32)> {
    let mut left: Vec<(usize, f32)> = scores.iter().copied().enumerate().collect();
    let mut picked = Vec::with_capacity(chosen);
    for _ in 0..chosen {
        let best = left.iter().enumerate().max_by(|(one, (_, x)), (other, (_, y))| {
            // The first of equals.
            x.total_cmp(y).then(other.cmp(one))
        });
        let Some((place, (expert, best))) = best.map(|(place, best)| (place, *best)) else { break };
        let is_as_good = |score: f32| (best - score) / score.abs().max(best) <= 2.0 * jitter;
        let rivals = left.iter().filter(|(_, score)| is_as_good(*score));
        let sum: f32 = rivals.map(|(_, score)| (score - best).exp()).sum();
        picked.push((expert, 1.0 / sum));
        left.swap_remove(place);
    }
    picked
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `sparsemixer` of transformers has them.
    #[test]
    fn sparse_mixer_weighs_an_expert_among_its_equals() {
        let mixed = |scores: &[f32]| sparse_mixer(scores, 2, 0.1);
        // 1.7 is within a fifth of 2, and not within a tenth; 1.0 is within neither, of 2 or of 1.7.
        let [first, second] = mixed(&[1.0, 2.0, 1.7, -3.0])[..] else { panic!("two are picked") };
        assert_eq!((first.0, second), (1, (2, 1.0)));
        assert!((first.1 - 1.0 / (1.0 + (-0.3f32).exp())).abs() < 1e-6);
        assert_eq!(mixed(&[-1.0, -2.0, -9.0]), [(0, 1.0), (1, 1.0)]);
        assert_eq!(mixed(&[0.0, 5.0, 0.0]).len(), 2);
    }
}
