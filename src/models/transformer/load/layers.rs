//! The linear layers of a block by their names and sizes, as the configuration has them: for whoever reads something of
//! each, be it its weight or what an adapter adds to it.

use super::super::config::{Bias, LayerConfig, OutputGate, TransformerConfig};
use super::super::names::{Names, QkvNames, UpNames};
use super::super::tensors::{Linears, RowOrder};
use super::misfit;
use crate::error::Result;

/// The layers of one block.
pub(super) struct BlockLayers<'a> {
    pub(super) config: &'a TransformerConfig,
    pub(super) names: &'a Names,
    /// The beginning of the names of the block's tensors.
    pub(super) path: String,
}

impl BlockLayers<'_> {
    /// Applies `read` to linear layers by their names in the block.
    pub(super) fn named<R>(
        &self,
        parts: &[(&str, usize)],
        layers: Linears<'_>,
        read: impl FnOnce(&Linears<'_>) -> R,
    ) -> R {
        let names: Vec<String> = parts.iter().map(|(name, _)| format!("{}{name}", self.path)).collect();
        let parts: Vec<(&str, usize)> =
            names.iter().zip(parts).map(|(name, (_, out_dim))| (name.as_str(), *out_dim)).collect();
        let scale = layers.scale.map(|scale| format!("{}{scale}", self.path));
        let unbiased = layers.unbiased.map(|name| format!("{}{name}", self.path));
        read(&Linears { parts: &parts, scale: scale.as_deref(), unbiased: unbiased.as_deref(), ..layers })
    }

    /// Applies `read` to the projections to queries, keys and values.
    pub(super) fn qkv<R>(&self, layer: &LayerConfig, read: impl FnOnce(&Linears<'_>) -> R) -> R {
        let (config, attention) = (self.config, &self.config.attention);
        let (heads, shared) = (attention.heads * attention.head_size, config.kv_width());
        let queries = match attention.output_gate {
            OutputGate::None => heads,
            OutputGate::EachHead => 2 * heads,
        };
        let qkv = Linears::new(&[], config.width, config.biases.qkv);
        match self.names.qkv {
            QkvNames::Separate([query, ..]) if layer.key_values_of.is_some() => {
                self.named(&[(query, queries)], qkv, read)
            }
            QkvNames::Fused(name) => self.named(&[(name, queries + 2 * shared)], qkv, read),
            QkvNames::Separate([query, key, value]) => {
                let unbiased = (attention.key_bias == Some(Bias::No)).then_some(key);
                let qkv = Linears { unbiased, ..qkv };
                self.named(&[(query, queries), (key, shared), (value, shared)], qkv, read)
            }
        }
    }

    /// Applies `read` to the projection of what attention gives.
    pub(super) fn attention_output<R>(&self, read: impl FnOnce(&Linears<'_>) -> R) -> R {
        let heads = self.config.attention.heads * self.config.attention.head_size;
        let out = Linears::new(&[], heads, self.config.biases.attention_output);
        let out = Linears { scale: self.names.attention_scale, ..out };
        self.named(&[(self.names.out_proj, self.config.width)], out, read)
    }

    /// Applies `read` to the projection into a network without a gate.
    pub(super) fn up<R>(
        &self,
        intermediate: usize,
        read: impl FnOnce(&Linears<'_>) -> Result<R>,
    ) -> Result<R> {
        let UpNames::Dense(up) = self.names.up else {
            return Err(misfit("a network without a gate has one projection up"));
        };
        let name = format!("{}{up}", self.names.feed_forward);
        let up = Linears::new(&[], self.config.width, self.config.biases.up);
        self.named(&[(name.as_str(), intermediate)], up, read)
    }

    /// Applies `read` to the projections into a gated network.
    pub(super) fn gate_up<R>(
        &self,
        path: &str,
        names: UpNames,
        intermediate: usize,
        read: impl FnOnce(&Linears<'_>) -> Result<R>,
    ) -> Result<R> {
        let both = Linears::new(&[], self.config.width, self.config.biases.up);
        let fused = |name: &str, order, read| {
            let name = format!("{path}{name}");
            self.named(&[(name.as_str(), 2 * intermediate)], Linears { order, ..both }, read)
        };
        match names {
            UpNames::Separate { gate, up } => {
                let [gate, up] = [gate, up].map(|part| format!("{path}{part}"));
                self.named(&[(gate.as_str(), intermediate), (up.as_str(), intermediate)], both, read)
            }
            UpNames::GateUp(name) => fused(name, RowOrder::AsStored, read),
            UpNames::UpGate(name) => fused(name, RowOrder::Swapped, read),
            UpNames::Interleaved(name) => fused(name, RowOrder::Interleaved, read),
            UpNames::Dense(_) => Err(misfit("a gated network has a gate")),
        }
    }

    /// Applies `read` to the projection out of a network.
    pub(super) fn down<R>(&self, path: &str, intermediate: usize, read: impl FnOnce(&Linears<'_>) -> R) -> R {
        let down = Linears::new(&[], intermediate, self.config.biases.down);
        let down = Linears { scale: self.names.feed_forward_scale, ..down };
        let name = format!("{path}{}", self.names.down);
        self.named(&[(name.as_str(), self.config.width)], down, read)
    }
}
