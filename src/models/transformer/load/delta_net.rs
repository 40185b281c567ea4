//! The loading of gated delta nets.

use candle_core::Tensor;

use super::super::config::{Bias, LayerConfig, NormKind, Workload};
use super::super::delta_net::DeltaNet;
use super::super::names::{DeltaNetForm, DeltaNetInputs};
use super::super::norm::Norm;
use super::super::tensors::{Linears, RowOrder};
use super::{BlockLoader, misfit};
use crate::error::Result;
use crate::kernels::AttentionMask;
use crate::kernels::delta_net::{DeltaNetSizes, GatedDeltaNet};

impl BlockLoader<'_> {
    pub(super) fn delta_net(&self, layer: &LayerConfig, sizes: DeltaNetSizes) -> Result<DeltaNet> {
        if layer.mask != AttentionMask::Causal || self.config.workload != Workload::GrowingSequences {
            return Err(misfit("gated delta nets are of decoders, and see what comes before a row alone"));
        }
        let (names, width, heads) = (self.names.delta_net, self.config.width, sizes.value_heads);
        let linears = |order| Linears { order, ..Linears::new(&[], width, Bias::No) };
        let whole = |name: &str| format!("{}{name}", self.layers.path);
        let group = sizes.group();
        let groups = |runs| linears(RowOrder::Groups { count: sizes.key_heads, runs });
        let (input_proj, gates_proj) = match names.inputs {
            DeltaNetInputs::Grouped { qkvz, ba } => {
                let (key, values) = (sizes.key_size, group * sizes.value_size);
                (
                    self.projection(&[(qkvz, sizes.projected())], groups([key, key, values, values]))?,
                    self.projection(&[(ba, 2 * heads)], groups([group, group, 0, 0]))?,
                )
            }
            DeltaNetInputs::GroupedGates { qkv, z, ba } => (
                self.projection(
                    &[(qkv, sizes.channels()), (z, sizes.values())],
                    linears(RowOrder::AsStored),
                )?,
                self.projection(&[(ba, 2 * heads)], groups([group, group, 0, 0]))?,
            ),
            DeltaNetInputs::Separate { qkv, z, b, a } => {
                let plain = || linears(RowOrder::AsStored);
                (
                    self.projection(&[(qkv, sizes.channels()), (z, sizes.values())], plain())?,
                    self.projection(&[(b, heads), (a, heads)], plain())?,
                )
            }
        };
        let convolution = whole(&format!("{}.weight", names.convolution));
        let (channels, taps) = (sizes.channels(), sizes.taps);
        let rates = self.tensors.vector(&whole(names.log_rates), heads)?;
        let (convolution, log_rates) = match names.form {
            DeltaNetForm::Transformers => {
                (self.tensors.tensor(&convolution, &[channels, 1, taps])?.squeeze(1)?, rates)
            }
            DeltaNetForm::Gguf => {
                let rates: Vec<f32> = rates.to_vec1()?;
                if rates.iter().any(|rate| *rate > 0.0) {
                    return Err(misfit("a rate of decay, of which files have the negative, is below 0"));
                }
                let logarithms: Vec<f32> = rates.iter().map(|rate| (-rate).ln()).collect();
                let logarithms = Tensor::from_vec(logarithms, heads, self.device)?;
                (self.tensors.tensor(&convolution, &[channels, taps])?, logarithms)
            }
        };
        let norm = whole(names.norm);
        // Unlike the model's other norms, it never has its factors less 1.
        let norm = match self.tensors.norm(&norm, sizes.value_size, NormKind::Rms, self.config.epsilon)? {
            Norm::Rms(norm) => norm,
            Norm::Layer(_) => return Err(misfit("the norm of a gated delta net is a root-mean-square norm")),
        };
        let out = Linears::new(&[], sizes.values(), Bias::No);
        Ok(DeltaNet {
            input_proj,
            gates_proj,
            kernel: GatedDeltaNet {
                sizes,
                convolution: convolution.t()?.contiguous()?,
                activation: self.config.activation,
                log_rates,
                decay_bias: self.tensors.vector(&whole(names.decay_bias), heads)?,
                norm,
            },
            out_proj: self.projection(&[(names.out_proj, width)], out)?,
        })
    }
}
