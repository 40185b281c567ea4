//! The loading of what models with several residual streams have around their blocks, and in them.

use super::super::config::{Bias, NormKind, StreamsConfig, TransformerConfig};
use super::super::names::Names;
use super::super::norm::Norm;
use super::super::streams::{Alternation, BlockInputs, Streams};
use super::super::tensors::{Linears, Tensors};
use super::{BlockLoader, misfit};
use crate::error::Result;
use crate::kernels::rms_norm::RmsNorm;

/// Reads what is before and after the blocks.
pub(super) fn streams(
    config: &TransformerConfig,
    streams: StreamsConfig,
    names: &Names,
    tensors: &dyn Tensors,
) -> Result<Streams> {
    let (width, names) = (config.width, names.streams);
    let linear = |name: &str, out_dim| tensors.projection(&Linears::new(&[(name, out_dim)], width, Bias::No));
    let one_for_each = |path: &str| {
        let names = (1..streams.count).map(|index| format!("{path}{}", index - 1));
        names.map(|name| linear(&name, width)).collect::<Result<Vec<_>>>()
    };
    Ok(Streams {
        embed: one_for_each(names.embed)?,
        unembed: one_for_each(names.unembed)?,
        inputs: BlockInputs {
            projection: linear(names.inputs, config.inputs_width())?,
            norm: tensors.norm(names.inputs_norm, streams.input_size, config.norm, config.epsilon)?,
            size: streams.input_size,
        },
        width,
    })
}

impl BlockLoader<'_> {
    pub(super) fn alternation(&self, streams: StreamsConfig) -> Result<Alternation> {
        let (config, names, width) = (self.config, self.names.streams, self.config.width);
        let StreamsConfig { count, active, laurel_rank, input_size, .. } = streams;
        let linear = |name: &str, in_dim, out_dim| {
            self.projection(&[(name, out_dim)], Linears::new(&[], in_dim, Bias::No))
        };
        let norm = |name: &str| {
            self.tensors.norm(&format!("{}{name}", self.layers.path), width, config.norm, config.epsilon)
        };
        let router_norm = match (norm(names.router_norm)?, config.norm) {
            // What is normed is divided by the width.
            (Norm::Rms(norm), NormKind::Rms) => {
                let weight = (norm.weight / width as f64)?;
                Norm::Rms(RmsNorm { weight, ..norm })
            }
            _ => return Err(misfit("residual streams are of models with root-mean-square norms")),
        };
        Ok(Alternation {
            count,
            active,
            router_norm,
            router: linear(names.router, width, count)?,
            prediction: linear(names.prediction, count, count.saturating_mul(count))?,
            correction: linear(names.correction, count, count)?,
            output_scale: self
                .tensors
                .vector(&format!("{}{}", self.layers.path, names.output_scale), width)?,
            laurel_down: linear(names.laurel_down, width, laurel_rank)?,
            laurel_up: linear(names.laurel_up, laurel_rank, width)?,
            laurel_norm: norm(names.laurel_norm)?,
            gate: linear(names.gate, width, input_size)?,
            activation: config.activation,
            projection: linear(names.projection, input_size, width)?,
            norm: norm(names.norm)?,
        })
    }
}
