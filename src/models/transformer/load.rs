//! The loader: from the tensors of a file to a stack of blocks in memory. It follows a configuration and a
//! table of names, so that the same few steps serve every family; the kind of file is left to [`Tensors`].

mod delta_net;
mod streams;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::attention::{Attention, CrossAttention};
use super::block::{Block, Order};
use super::config::{
    AttentionConfig, AttentionSinks, Bias, DistanceVectorsConfig, ExpertForm, FeedForwardConfig, HeadNorms,
    LayerConfig, MixerConfig, NormPlacement, OutputGate, RelativeBiasConfig, TransformerConfig, ValueNorm,
    Workload,
};
use super::feed_forward::{Dense, Experts, FeedForward, Gated};
use super::mixer::Mixer;
use super::names::{ExpertNames, MatrixOrder, Names, QkvNames, UpNames};
use super::norm::{Norm, SublayerNorms};
use super::projection::Projection;
use super::stack::Transformer;
use super::tensors::{Linears, RowOrder, Tensors};
use crate::error::{Error, Result};
use crate::kernels::causal::{CausalAttention, KeyValues};
use crate::kernels::glu::GluForm;
use crate::kernels::rms_norm::RmsNorm;
use crate::kernels::{DistanceVectors, RelativeBias};

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
        BlockLoader { config, names, tensors, device, path, relative_bias: relative_bias.as_ref() }
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
    BlockLoader { config, names, tensors, device: &Device::Cpu, path: String::new(), relative_bias: None }
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
    if config.workload != Workload::WholeSequences {
        return Err(misfit("biases by distance are of encoders"));
    }
    let table = tensors.tensor(&format!("{}.weight", names.relative_bias), &[buckets, heads])?;
    let table: Vec<f32> = table.flatten_all()?.to_vec1()?;
    Ok(Some(Arc::new(RelativeBias::new(&table, heads, max_distance))))
}

/// The loading of one block.
struct BlockLoader<'a> {
    config: &'a TransformerConfig,
    names: &'a Names,
    tensors: &'a dyn Tensors,
    device: &'a Device,
    path: String,
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
        let name = format!("{}{name}", self.path);
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
        self.named(parts, layers, |layers| self.tensors.projection(layers))
    }

    /// Applies `read` to linear layers by their names in the block.
    fn named<R>(
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

    fn attention(&self, layer: &LayerConfig) -> Result<Attention> {
        let (config, attention, names) = (self.config, &self.config.attention, self.names);
        let (heads, shared) = (attention.heads * attention.head_size, config.kv_width());
        let queries = match attention.output_gate {
            OutputGate::None => heads,
            OutputGate::EachHead => 2 * heads,
        };
        let qkv = Linears::new(&[], config.width, config.biases.qkv);
        let qkv_proj = match names.qkv {
            QkvNames::Separate([query, ..]) if layer.key_values_of.is_some() => {
                self.projection(&[(query, queries)], qkv)?
            }
            QkvNames::Fused(name) => self.projection(&[(name, queries + 2 * shared)], qkv)?,
            QkvNames::Separate([query, key, value]) => {
                let unbiased = (attention.key_bias == Some(Bias::No)).then_some(key);
                let qkv = Linears { unbiased, ..qkv };
                self.projection(&[(query, queries), (key, shared), (value, shared)], qkv)?
            }
        };
        let out = Linears::new(&[], heads, config.biases.attention_output);
        let out = Linears { scale: names.attention_scale, ..out };
        Ok(Attention {
            qkv_proj,
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
            },
            alibi_slopes: attention.alibi_slopes.clone(),
            relative_bias: self.relative_bias.cloned(),
            distance_vectors: self.distance_vectors()?,
            rope: layer.rope,
            key_values_of: layer.key_values_of,
            out_proj: self.projection(&[(names.out_proj, config.width)], out)?,
        })
    }

    fn distance_vectors(&self) -> Result<Option<DistanceVectors>> {
        let AttentionConfig { head_size, distance_vectors, .. } = self.config.attention;
        let Some(DistanceVectorsConfig { reach, rows }) = distance_vectors else { return Ok(None) };
        if self.config.workload != Workload::WholeSequences {
            return Err(misfit("vectors of distances are of encoders"));
        }
        let name = format!("{}{}.weight", self.path, self.names.distance_vectors);
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
                let name = format!("{}{}", self.path, self.names.sinks);
                Ok(self.tensors.vector(&name, self.config.attention.heads)?.to_vec1()?)
            }
        }
    }

    fn cross_attention(&self, seen: usize) -> Result<(CrossAttention, SublayerNorms)> {
        let (config, names, width) = (self.config, &self.names.cross_attention, self.config.width);
        let own = Linears::new(&[], width, Bias::Yes);
        let attention = CrossAttention {
            query_proj: self.projection(&[(names.query, width)], own)?,
            kv_proj: self.projection(
                &[(names.key, width), (names.value, width)],
                Linears::new(&[], seen, Bias::Yes),
            )?,
            out_proj: self.projection(&[(names.out_proj, width)], Linears::new(&[], width, Bias::Yes))?,
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
        match layer.feed_forward {
            FeedForwardConfig::Dense { intermediate } => {
                let UpNames::Dense(up) = names.up else {
                    return Err(misfit("a network without a gate has one projection up"));
                };
                let name = format!("{}{up}", names.feed_forward);
                let up = Linears::new(&[], config.width, config.biases.up);
                Ok(FeedForward::Dense(Dense {
                    up: self.projection(&[(name.as_str(), intermediate)], up)?,
                    activation: config.activation,
                    down: self.down(names.feed_forward, intermediate)?,
                }))
            }
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
                            Some(self.tensors.vector(&format!("{}{bias}", self.path), config.width)?)
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
                if !self.tensors.contains(&format!("{}{gate_up}", self.path)) {
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
            self.named(&[(down, width)], into, |layers| self.tensors.stacked(layers, count, down_order))
        };
        if form == ExpertForm::Gated {
            let pairs = self.gate_up("", up, intermediate, ups)?.into_iter().zip(downs(config.biases.down)?);
            return Ok(pairs
                .map(|(up, down)| FeedForward::Gated(self.gated_of(up, down, config.glu)))
                .collect());
        }
        let UpNames::Dense(up) = up else {
            return Err(misfit("a network without a gate has one projection up"));
        };
        let ups = self.named(&[(up, intermediate)], Linears::new(&[], width, Bias::No), ups)?;
        let dense = |(up, down)| FeedForward::Dense(Dense { up, activation: config.activation, down });
        Ok(ups.into_iter().zip(downs(Bias::No)?).map(dense).collect())
    }

    fn gated(&self, path: &str, intermediate: usize, form: GluForm) -> Result<Gated> {
        let projection = |layers: &Linears<'_>| self.tensors.projection(layers);
        let gate_up = self.gate_up(path, self.names.up, intermediate, projection)?;
        Ok(self.gated_of(gate_up, self.down(path, intermediate)?, form))
    }

    fn gated_of(&self, gate_up: Projection, down: Projection, form: GluForm) -> Gated {
        Gated { gate_up, activation: self.config.activation, form, down }
    }

    /// Applies `read` to the projections into a gated network.
    fn gate_up<R>(
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

    fn down(&self, path: &str, intermediate: usize) -> Result<Projection> {
        let down = Linears::new(&[], intermediate, self.config.biases.down);
        let down = Linears { scale: self.names.feed_forward_scale, ..down };
        let name = format!("{path}{}", self.names.down);
        self.projection(&[(name.as_str(), self.config.width)], down)
    }
}

fn misfit(reason: &str) -> Error {
    Error::compute(format!("loading a transformer: {reason}"))
}
