//! The loader: from the tensors of a file to a stack of blocks in memory. It follows a configuration and a
//! table of names, so that the same few steps serve every family; the kind of file is left to [`Tensors`].

mod layers;
mod delta_net;
mod streams;
mod adapter;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::attention::{Attention, CrossAttention};
use super::block::{Block, Order};
use super::config::{
    AttentionConfig, AttentionSinks, Bias, DistanceVectorsConfig, ExpertForm, FeedForwardConfig, HeadNorms,
    LayerConfig, MixerConfig, NormPlacement, RelativeBiasConfig, TransformerConfig, ValueNorm, Workload,
};
use super::feed_forward::{Dense, Experts, FeedForward, Gated};
use super::mixer::Mixer;
use super::names::{ExpertNames, MatrixOrder, Names, UpNames};
use super::norm::{Norm, SublayerNorms};
use super::projection::Projection;
use super::stack::Transformer;
use super::tensors::{Linears, Tensors};
use crate::error::{Error, Result};
use crate::kernels::causal::{CausalAttention, KeyValues};
use crate::kernels::glu::GluForm;
use crate::kernels::rms_norm::RmsNorm;
use crate::kernels::{DistanceVectors, RelativeBias};
pub(crate) use adapter::{LowRankMatrices, load_adapter, low_rank};
use layers::BlockLayers;

/// Reads a stack of blocks.
pub(crate) fn load(
    config: &TransformerConfig,
    names: &Names,
    tensors: &dyn Tensors,
    device: &Device,
) -> Result<Transformer> {
    let relative_bias = relative_bias(config, names, tensors)?;
    let blocks = config.layers.iter().enumerate().map(|(index, layer)| {
        let path = format!("{}{index}.", names.blocks);
        let layers = BlockLayers { config, names, path };
        BlockLoader { config, names, layers, tensors, device, relative_bias: relative_bias.as_ref() }
            .block(layer)
    });
    Ok(Transformer {
        blocks: blocks.collect::<Result<_>>()?,
        streams: match config.streams {
            Some(streams) => Some(self::streams::streams(config, streams, names, tensors)?),
            None => None,
        },
        ropes: config.ropes.clone(),
        width: config.width,
        kv_width: config.kv_width(),
        workload: config.workload,
        device: device.clone(),
    })
}

/// Reads a feed-forward network as the first block of the configuration has it, for heads that have one.
pub(crate) fn load_feed_forward(
    config: &TransformerConfig,
    names: &Names,
    tensors: &dyn Tensors,
) -> Result<FeedForward> {
    let layer = config.layers.first().ok_or_else(|| misfit("there are no blocks"))?;
    let layers = BlockLayers { config, names, path: String::new() };
    BlockLoader { config, names, layers, tensors, device: &Device::Cpu, relative_bias: None }
        .feed_forward(layer)
}

/// Reads the biases by distance that all blocks share.
fn relative_bias(
    config: &TransformerConfig,
    names: &Names,
    tensors: &dyn Tensors,
) -> Result<Option<Arc<RelativeBias>>> {
    let AttentionConfig { heads, relative_bias, .. } = config.attention;
    let Some(RelativeBiasConfig { buckets, max_distance }) = relative_bias else { return Ok(None) };
    let table = tensors.tensor(&format!("{}.weight", names.relative_bias), &[buckets, heads])?;
    let table: Vec<f32> = table.flatten_all()?.to_vec1()?;
    Ok(Some(Arc::new(match config.workload {
        Workload::WholeSequences => RelativeBias::new(&table, heads, max_distance),
        Workload::GrowingSequences => RelativeBias::causal(&table, heads, max_distance),
    })))
}

/// The loading of one block.
struct BlockLoader<'a> {
    config: &'a TransformerConfig,
    names: &'a Names,
    layers: BlockLayers<'a>,
    tensors: &'a dyn Tensors,
    device: &'a Device,
    relative_bias: Option<&'a Arc<RelativeBias>>,
}

impl BlockLoader<'_> {
    fn block(&self, layer: &LayerConfig) -> Result<Block> {
        let cross_attention = match self.config.cross_attention.filter(|_| layer.looks_beside) {
            Some(seen) => Some(self.cross_attention(seen)?),
            None => None,
        };
        Ok(Block {
            mixer: match layer.mixer {
                MixerConfig::Attention => Mixer::Attention(self.attention(layer)?),
                MixerConfig::DeltaNet(sizes) => Mixer::DeltaNet(Box::new(self.delta_net(layer, sizes)?)),
            },
            attention_norms: self.attention_norms(layer)?,
            cross_attention,
            feed_forward: self.feed_forward(layer)?,
            feed_forward_norms: self.feed_forward_norms()?,
            alternation: match self.config.streams {
                Some(streams) => Some(Box::new(self.alternation(streams)?)),
                None => None,
            },
            order: match self.config.norm_placement {
                NormPlacement::Parallel => Order::Parallel,
                _ => Order::Sequential,
            },
        })
    }

    fn norm(&self, name: &str, width: usize) -> Result<Option<Norm>> {
        let name = format!("{}{name}", self.layers.path);
        self.tensors.norm(&name, width, self.config.norm, self.config.epsilon).map(Some)
    }

    fn attention_norms(&self, layer: &LayerConfig) -> Result<SublayerNorms> {
        let (names, width) = (self.names, self.config.width);
        let norm = |name| self.norm(name, width);
        let none = SublayerNorms::default();
        Ok(match self.config.norm_placement {
            NormPlacement::Pre | NormPlacement::Parallel if layer.input_is_normed => none,
            NormPlacement::Pre | NormPlacement::Parallel => {
                SublayerNorms { input: norm(names.attention_norm)?, ..none }
            }
            NormPlacement::Post => SublayerNorms { sum: norm(names.attention_norm)?, ..none },
            NormPlacement::Sandwich => SublayerNorms {
                input: norm(names.attention_norm)?,
                output: norm(names.attention_output_norm)?,
                ..none
            },
        })
    }

    fn feed_forward_norms(&self) -> Result<SublayerNorms> {
        let (names, width) = (self.names, self.config.width);
        let norm = |name| self.norm(name, width);
        let none = SublayerNorms::default();
        Ok(match self.config.norm_placement {
            NormPlacement::Parallel => none,
            NormPlacement::Pre => SublayerNorms { input: norm(names.feed_forward_norm)?, ..none },
            NormPlacement::Post => SublayerNorms { sum: norm(names.feed_forward_norm)?, ..none },
            NormPlacement::Sandwich => SublayerNorms {
                input: norm(names.feed_forward_norm)?,
                output: norm(names.feed_forward_output_norm)?,
                ..none
            },
        })
    }

    /// Linear layers by their names in the block.
    fn projection(&self, parts: &[(&str, usize)], layers: Linears<'_>) -> Result<Projection> {
        self.layers.named(parts, layers, |layers| self.tensors.projection(layers))
    }

    fn attention(&self, layer: &LayerConfig) -> Result<Attention> {
        let (config, attention) = (self.config, &self.config.attention);
        let read = |layers: &Linears<'_>| self.tensors.projection(layers);
        Ok(Attention {
            qkv_proj: self.layers.qkv(layer, read)?,
            output_gate: attention.output_gate,
            kernel: CausalAttention {
                heads: attention.heads,
                kv_heads: attention.kv_heads,
                size: attention.head_size,
                scale: attention.scale,
                soft_cap: attention.soft_cap,
                mask: layer.mask,
                head_norms: self.head_norms(layer)?,
                value_norm: match attention.value_norm {
                    ValueNorm::None => None,
                    ValueNorm::EachHead => {
                        let weight = Tensor::ones(attention.head_size, DType::F32, self.device)?;
                        Some(RmsNorm { weight, epsilon: config.epsilon })
                    }
                },
                key_values: match layer.key_values_of {
                    Some(_) => KeyValues::Shared,
                    None => KeyValues::Own,
                },
                sinks: self.sinks()?,
                relative_bias: self.relative_bias.cloned(),
            },
            alibi_slopes: attention.alibi_slopes.clone(),
            distance_vectors: self.distance_vectors()?,
            rope: layer.rope,
            key_values_of: layer.key_values_of,
            out_proj: self.layers.attention_output(read)?,
        })
    }

    fn distance_vectors(&self) -> Result<Option<DistanceVectors>> {
        let AttentionConfig { head_size, distance_vectors, .. } = self.config.attention;
        let Some(DistanceVectorsConfig { reach, rows }) = distance_vectors else { return Ok(None) };
        if self.config.workload != Workload::WholeSequences {
            return Err(misfit("vectors of distances are of encoders"));
        }
        let name = format!("{}{}.weight", self.layers.path, self.names.distance_vectors);
        let table = self.tensors.tensor(&name, &[(2 * reach).saturating_sub(1), head_size])?;
        Ok(Some(DistanceVectors::new(table.flatten_all()?.to_vec1()?, head_size, rows)))
    }

    fn head_norms(&self, layer: &LayerConfig) -> Result<Option<(RmsNorm, RmsNorm)>> {
        let AttentionConfig { head_size, head_norms, .. } = self.config.attention;
        if head_norms == HeadNorms::None {
            return Ok(None);
        }
        let query_norm = self.norm(self.names.query_norm, head_size)?;
        let key_norm = match layer.key_values_of {
            // There are no keys that it would be applied to.
            Some(_) => query_norm.clone(),
            None => self.norm(self.names.key_norm, head_size)?,
        };
        match (query_norm, key_norm) {
            (Some(Norm::Rms(query)), Some(Norm::Rms(key))) => Ok(Some((query, key))),
            _ => Err(misfit("norms of heads are root-mean-square norms")),
        }
    }

    fn sinks(&self) -> Result<Vec<f32>> {
        match (self.config.attention.sinks, self.config.workload) {
            (AttentionSinks::None, _) => Ok(Vec::new()),
            (AttentionSinks::EachHead, Workload::WholeSequences) => {
                Err(misfit("attention sinks are of decoders"))
            }
            (AttentionSinks::EachHead, Workload::GrowingSequences) => {
                let name = format!("{}{}", self.layers.path, self.names.sinks);
                Ok(self.tensors.vector(&name, self.config.attention.heads)?.to_vec1()?)
            }
        }
    }

    fn cross_attention(&self, seen: usize) -> Result<(CrossAttention, SublayerNorms)> {
        let (config, names, width) = (self.config, &self.names.cross_attention, self.config.width);
        let (heads, biases) = (config.attention.heads * config.attention.head_size, config.biases);
        let attention = CrossAttention {
            query_proj: self.projection(&[(names.query, heads)], Linears::new(&[], width, biases.qkv))?,
            kv_proj: self.projection(
                &[(names.key, heads), (names.value, heads)],
                Linears::new(&[], seen, biases.qkv),
            )?,
            out_proj: self
                .projection(&[(names.out_proj, width)], Linears::new(&[], heads, biases.attention_output))?,
            heads: config.attention.heads,
            scale: f64::from(config.attention.scale),
        };
        let (input, sum) = match config.norm_placement {
            NormPlacement::Post => (None, self.norm(names.norm, width)?),
            _ => (self.norm(names.norm, width)?, None),
        };
        Ok((attention, SublayerNorms { input, output: None, sum }))
    }

    fn feed_forward(&self, layer: &LayerConfig) -> Result<FeedForward> {
        let (config, names) = (self.config, self.names);
        let read = |layers: &Linears<'_>| self.tensors.projection(layers);
        match layer.feed_forward {
            FeedForwardConfig::Dense { intermediate } => Ok(FeedForward::Dense(Dense {
                up: self.layers.up(intermediate, read)?,
                activation: config.activation,
                down: self.down(names.feed_forward, intermediate)?,
            })),
            FeedForwardConfig::Gated { intermediate } => {
                let form = layer.glu.unwrap_or(config.glu);
                self.gated(names.feed_forward, intermediate, form).map(FeedForward::Gated)
            }
            FeedForwardConfig::Experts {
                intermediate,
                count,
                chosen,
                weights,
                router_bias,
                form,
                shared,
            } => {
                let router = Linears::new(&[], config.width, router_bias);
                let router_of_one = Linears::new(&[], config.width, Bias::No);
                Ok(FeedForward::Experts(Box::new(Experts {
                    router: self.projection(&[(names.router, count)], router)?,
                    experts: self.experts(intermediate, count, form)?,
                    bias: match (form, names.experts) {
                        (ExpertForm::Dense, ExpertNames::Stacked { bias, .. }) => {
                            Some(self.tensors.vector(&format!("{}{bias}", self.layers.path), config.width)?)
                        }
                        _ => None,
                    },
                    chosen,
                    weights,
                    shared: match shared {
                        Some(width) => Some((
                            self.projection(&[(names.shared_gate, 1)], router_of_one)?,
                            self.gated(names.shared_expert, width, config.glu)?,
                        )),
                        None => None,
                    },
                })))
            }
        }
    }

    fn experts(&self, intermediate: usize, count: usize, form: ExpertForm) -> Result<Vec<FeedForward>> {
        let (config, width) = (self.config, self.config.width);
        let numbered = |path: &str| {
            let gated = |expert| self.gated(&format!("{path}{expert}."), intermediate, config.glu);
            (0..count).map(|expert| gated(expert).map(FeedForward::Gated)).collect()
        };
        let (up, up_order, down, down_order) = match (self.names.experts, form) {
            (ExpertNames::Numbered(path), ExpertForm::Gated) => return numbered(path),
            (ExpertNames::NumberedOrStacked { numbered: path, gate_up, down }, ExpertForm::Gated) => {
                if !self.tensors.contains(&format!("{}{gate_up}", self.layers.path)) {
                    return numbered(path);
                }
                (UpNames::GateUp(gate_up), MatrixOrder::Outputs, down, MatrixOrder::Outputs)
            }
            (ExpertNames::Numbered(_) | ExpertNames::NumberedOrStacked { .. }, ExpertForm::Dense) => {
                return Err(misfit("dense experts are stacked"));
            }
            (ExpertNames::Stacked { up, up_order, down, down_order, .. }, _) => {
                (up, up_order, down, down_order)
            }
        };
        let ups = |layers: &Linears<'_>| self.tensors.stacked(layers, count, up_order);
        let downs = |bias| {
            let into = Linears::new(&[], intermediate, bias);
            self.layers
                .named(&[(down, width)], into, |layers| self.tensors.stacked(layers, count, down_order))
        };
        if form == ExpertForm::Gated {
            let pairs =
                self.layers.gate_up("", up, intermediate, ups)?.into_iter().zip(downs(config.biases.down)?);
            return Ok(pairs
                .map(|(up, down)| FeedForward::Gated(self.gated_of(up, down, config.glu)))
                .collect());
        }
        let UpNames::Dense(up) = up else {
            return Err(misfit("a network without a gate has one projection up"));
        };
        let ups = self.layers.named(&[(up, intermediate)], Linears::new(&[], width, Bias::No), ups)?;
        let dense = |(up, down)| FeedForward::Dense(Dense { up, activation: config.activation, down });
        Ok(ups.into_iter().zip(downs(Bias::No)?).map(dense).collect())
    }

    fn gated(&self, path: &str, intermediate: usize, form: GluForm) -> Result<Gated> {
        let projection = |layers: &Linears<'_>| self.tensors.projection(layers);
        let gate_up = self.layers.gate_up(path, self.names.up, intermediate, projection)?;
        Ok(self.gated_of(gate_up, self.down(path, intermediate)?, form))
    }

    fn gated_of(&self, gate_up: Projection, down: Projection, form: GluForm) -> Gated {
        Gated { gate_up, activation: self.config.activation, form, down }
    }

    fn down(&self, path: &str, intermediate: usize) -> Result<Projection> {
        self.layers.down(path, intermediate, |layers| self.tensors.projection(layers))
    }
}

fn misfit(reason: &str) -> Error {
    Error::compute(format!("loading a transformer: {reason}"))
}
