//! The feed-forward network of a block: two projections with an activation between them, a gated one (SwiGLU,
//! GeGLU), or many gated ones of which a router picks a few for each token (Shazeer et al., 2017).

use candle_core::{D, DType, Tensor};

use super::config::ExpertWeights;
use super::projection::Projection;
use crate::error::Result;
use crate::kernels::Activation;
use crate::kernels::glu::{GluForm, glu};

/// A feed-forward network.
pub(crate) enum FeedForward {
    Dense(Dense),
    Gated(Gated),
    Experts(Experts),
}

impl FeedForward {
    /// `(rows, width)` to the same.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(dense) => dense.forward(input),
            Self::Gated(gated) => gated.forward(input),
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
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.down.forward(&self.up.forward(input, self.activation)?, Activation::Identity)
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
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let gate_up = self.gate_up.forward(input, Activation::Identity)?;
        let intermediate = glu(&gate_up, self.activation, self.form)?;
        self.down.forward(&intermediate, Activation::Identity)
    }
}

/// Gated networks with their router.
pub(crate) struct Experts {
    pub(super) router: Projection,
    pub(super) experts: Vec<Gated>,
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
            let output = expert.forward(&input.index_select(&rows, 0)?)?.broadcast_mul(&weights)?;
            out = out.index_add(&rows, &output, 0)?;
        }
        match &self.shared {
            Some((gate, shared)) => {
                let weights = candle_nn::ops::sigmoid(&gate.forward(input, Activation::Identity)?)?;
                Ok((out + shared.forward(input)?.broadcast_mul(&weights)?)?)
            }
            None => Ok(out),
        }
    }
}

/// The experts with the largest shares, and the weight of each one's output.
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
