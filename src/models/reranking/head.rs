//! The classifier behind an encoder: one vector of a pair's token vectors, mostly a layer and an activation, sometimes a
//! norm, and the layer that makes the logit. Families name the tensors.

use candle_core::{Device, Tensor};
use model_actors::LoadContext;

use crate::error::Result;
use crate::kernels::Activation;
use crate::models::transformer::{
    Bias, Norm, NormKind, Projection, SafeTensors, Tensors as _, Workload, is_tensor_of,
};
use crate::weights::WeightFiles;

/// A classifier as data. Names are without `.weight` and `.bias`.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadConfig {
    pub(super) pooling: HeadPooling,
    /// The layer before the last.
    pub(super) dense: &'static str,
    pub(super) dense_bias: Bias,
    pub(super) activation: Activation,
    /// The norm after it, with its epsilon.
    pub(super) norm: Option<(&'static str, NormKind, f64)>,
    /// The last layer.
    pub(super) logit: &'static str,
    /// Beginnings of the names that its tensors alone have.
    pub(super) beginnings: &'static [&'static str],
}

/// The vector of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadPooling {
    FirstToken,
    Mean,
}

impl HeadConfig {
    /// True for its tensors.
    pub(super) fn uses(&self, tensor: &str) -> bool {
        let norm = self.norm.map_or("", |(name, ..)| name);
        [self.dense, norm, self.logit].iter().any(|name| is_tensor_of(name, tensor))
    }

    /// True for names beside its tensors, which may belong to what it computes.
    pub(super) fn is_beside(&self, tensor: &str) -> bool {
        self.beginnings.iter().any(|beginning| tensor.starts_with(beginning))
    }

    /// Loads it for an encoder of this width.
    pub(super) fn load(
        &self,
        width: usize,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Head> {
        let reader = weights.reader("", device, context);
        let tensors = SafeTensors::new(&reader, "", Workload::WholeSequences);
        let norm = self.norm.map(|(name, kind, epsilon)| tensors.norm(name, width, kind, epsilon));
        Ok(Head {
            pooling: self.pooling,
            dense: tensors.linear(self.dense, width, width, self.dense_bias)?,
            activation: self.activation,
            norm: norm.transpose()?,
            logit: tensors.linear(self.logit, 1, width, Bias::Yes)?,
        })
    }
}

/// A loaded classifier.
pub(super) struct Head {
    pooling: HeadPooling,
    dense: Projection,
    activation: Activation,
    norm: Option<Norm>,
    logit: Projection,
}

impl Head {
    /// One logit for each pair, of token vectors `(tokens, width)`.
    pub(super) fn forward(&self, hidden: &Tensor, lengths: &[usize]) -> Result<Vec<f32>> {
        let pooled = self.pooling.of(hidden, lengths)?;
        let dense = self.dense.forward(&pooled, self.activation)?;
        let normed = match &self.norm {
            Some(norm) => norm.forward(&dense)?,
            None => dense,
        };
        Ok(self.logit.forward(&normed, Activation::Identity)?.flatten_all()?.to_vec1()?)
    }
}

impl HeadPooling {
    fn of(self, hidden: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let begins = lengths.iter().scan(0, |next, length| {
            let begin = *next;
            *next += length;
            Some(begin)
        });
        match self {
            Self::FirstToken => {
                let begins: Vec<u32> = begins.map(|begin| begin as u32).collect();
                Ok(hidden.index_select(&Tensor::new(begins, hidden.device())?, 0)?)
            }
            Self::Mean => {
                let means = begins.zip(lengths).map(|(begin, length)| {
                    hidden.narrow(0, begin, *length).and_then(|pair| pair.mean_keepdim(0))
                });
                Ok(Tensor::cat(&means.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
            }
        }
    }
}
