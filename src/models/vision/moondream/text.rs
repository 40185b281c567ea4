//! Moondream's text model, like Phi's: attention and the middle layer work side by side on one norm, and half of each
//! head is rotated. The rows before the question, the image's, see each other both ways.

use std::path::Path;

use candle_core::{Device, Tensor};
use model_actors::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::families::parse;
use crate::kernels::causal::{CausalAttention, KvCache, LayerSegment, growing_bytes};
use crate::kernels::packed::PackedLinear;
use crate::kernels::rotary::{RopeTable, RotaryEmbedding};
use crate::kernels::{Activation, AttentionMask, LayerNorm};
use crate::models::towers::{MAX_SIZE, StackShape, check_stack, norm, with_defaults};
use crate::models::vision::{PROMPT_ROWS, misfit};
use crate::weights::WeightReader;

const EPSILON: f64 = 1e-5;
const BASE: f32 = 10_000.0;

/// `text` in the `config` of `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct TextConfig {
    pub(super) dim: usize,
    pub(super) vocab_size: usize,
    pub(super) max_context: usize,
    ff_dim: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: Option<usize>,
    /// Of quantized weights.
    group_size: Option<usize>,
}

fn defaults() -> Value {
    json!({
        "dim": 2048, "ff_dim": 8192, "n_layers": 24, "vocab_size": 51200, "max_context": 2048, "n_heads": 32
    })
}

impl TextConfig {
    pub(super) fn read(file: &Path, config: &Value) -> Result<Self> {
        let config: Self = parse(file, &with_defaults(defaults(), &[config]))?;
        check_stack(file, &config.shape())?;
        if config.group_size.is_some() {
            return Err(Error::UnsupportedSetting {
                file: file.to_owned(),
                what: "group_size".into(),
                found: "of quantized weights".to_owned(),
                supported: "none".into(),
            });
        }
        let counts = [config.vocab_size, config.max_context];
        let shared = config.kv_heads();
        let sound = counts.iter().all(|count| (1..=MAX_SIZE).contains(count))
            && (1..=config.n_heads).contains(&shared)
            && config.n_heads.is_multiple_of(shared)
            && config.size() >= 4;
        if !sound {
            let reason = "vocab_size, max_context, n_heads or n_kv_heads are out of range".to_owned();
            return Err(Error::InvalidConfig { file: file.to_owned(), reason });
        }
        Ok(config)
    }

    fn shape(&self) -> StackShape {
        StackShape {
            width: self.dim,
            middle: self.ff_dim,
            layers: self.n_layers,
            heads: self.n_heads,
            epsilon: EPSILON,
            activation: Activation::GeluTanh,
        }
    }

    fn kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    fn size(&self) -> usize {
        self.dim / self.n_heads
    }

    /// Keys and values of so many tokens.
    pub(super) fn memory(&self, tokens: usize) -> Bytes {
        let layer = KvCache::bytes_for(tokens, self.kv_heads() * self.size());
        Bytes(layer.saturating_mul(self.n_layers as u64))
    }

    /// What a pass over so many rows needs besides, where an answer has up to so many tokens.
    pub(super) fn scratch(&self, rows: usize, tokens: usize) -> Bytes {
        let words = (self.vocab_size as u64).saturating_mul(8);
        let growing = growing_bytes(tokens, self.kv_heads() * self.size());
        // Both halves of a layer are there side by side, with the mixed heads and sums that a stack has no more by then.
        let beside = (self.dim as u64).saturating_mul(6 * 4).saturating_mul(rows as u64);
        Bytes(words) + Bytes(growing) + Bytes(beside) + self.shape().scratch(rows, tokens)
    }
}

/// What a worker keeps of one answer.
pub(in crate::models::vision) struct Memory {
    layers: Vec<KvCache>,
    length: usize,
    /// Rows that see each other, `(rows, width)`; read in one step.
    prefix: Option<Tensor>,
    /// Words after them.
    words: Vec<u32>,
}

pub(super) struct TextModel {
    words: PackedLinear,
    layers: Vec<Layer>,
    causal: CausalAttention,
    whole: CausalAttention,
    frequencies: RotaryEmbedding,
    last_norm: LayerNorm,
    head: PackedLinear,
    device: Device,
}

struct Layer {
    norm: LayerNorm,
    mixed: PackedLinear,
    attended: PackedLinear,
    wide: PackedLinear,
    narrow: PackedLinear,
}

/// The rows of a step that belong to one answer.
struct Rows<'a> {
    memory: &'a mut Memory,
    length: usize,
}

impl TextModel {
    pub(super) fn load(config: &TextConfig, reader: &WeightReader<'_>, device: &Device) -> Result<Self> {
        let (width, size, shared) = (config.dim, config.size(), config.kv_heads());
        let load = |name: &str, outside: usize, inside: usize| {
            let (mut weight, name) = (Vec::new(), format!("text.{name}"));
            reader.append(&format!("{name}.weight"), &[outside, inside], &mut weight)?;
            let bias = reader.tensor(&format!("{name}.bias"), &[outside])?;
            PackedLinear::new(weight, inside, Some(bias), device)
        };
        let layers = (0..config.n_layers).map(|index| {
            let part = |part: &str| format!("blocks.{index}.{part}");
            Ok(Layer {
                norm: norm(reader, &format!("text.{}", part("ln")), width, EPSILON)?,
                mixed: load(&part("attn.qkv"), (config.n_heads + 2 * shared) * size, width)?,
                attended: load(&part("attn.proj"), width, width)?,
                wide: load(&part("mlp.fc1"), config.ff_dim, width)?,
                narrow: load(&part("mlp.fc2"), width, config.ff_dim)?,
            })
        });
        let mut words = Vec::new();
        reader.append("text.wte", &[config.vocab_size, width], &mut words)?;
        let causal = CausalAttention {
            heads: config.n_heads,
            kv_heads: shared,
            size,
            scale: 1.0 / (size as f32).sqrt(),
            soft_cap: None,
            mask: AttentionMask::Causal,
            head_norms: None,
        };
        let pairs = size / 4;
        let inverse_frequencies =
            (0..pairs).map(|pair| 1.0 / BASE.powf(pair as f32 / pairs as f32)).collect();
        Ok(Self {
            words: PackedLinear::new(words, width, None, device)?,
            layers: layers.collect::<Result<_>>()?,
            whole: CausalAttention { mask: AttentionMask::Full, ..causal.clone() },
            causal,
            frequencies: RotaryEmbedding::new(inverse_frequencies),
            last_norm: norm(reader, "text.post_ln", width, EPSILON)?,
            head: load("lm_head", config.vocab_size, width)?,
            device: device.clone(),
        })
    }

    /// An answer to a prompt of which nothing is read: words, an image's rows, and words again.
    pub(super) fn begin(&self, first: &[u32], image: &Tensor, rest: &[u32]) -> Result<Memory> {
        let width = self.causal.kv_heads * self.causal.size;
        let layers = self.layers.iter().map(|_| KvCache::new(width, &self.device));
        let prefix = match first {
            [] => image.clone(),
            first => Tensor::cat(&[&self.words.lookup(first)?, image], 0)?,
        };
        let layers = layers.collect::<Result<_>>()?;
        Ok(Memory { layers, length: 0, prefix: Some(prefix), words: rest.to_vec() })
    }

    /// Reads a part of the prompt. At its end, logits of the first token, `(1, vocabulary)`.
    pub(super) fn read(&self, memory: &mut Memory) -> Result<Option<Tensor>> {
        let (rows, attention) = match memory.prefix.take() {
            Some(prefix) => (prefix, &self.whole),
            None => {
                let part: Vec<u32> = memory.words.drain(..PROMPT_ROWS.min(memory.words.len())).collect();
                (self.words.lookup(&part)?, &self.causal)
            }
        };
        let length = rows.dim(0)?;
        let hidden = self.forward(rows, attention, &mut [Rows { memory, length }])?;
        if memory.prefix.is_some() || !memory.words.is_empty() {
            return Ok(None);
        }
        let last = hidden.narrow(0, length.saturating_sub(1), 1)?.contiguous()?;
        self.logits(&last).map(Some)
    }

    /// Reads one token of each answer: logits of the next, `(answers, vocabulary)`.
    pub(super) fn write(&self, answers: &mut [(&mut Memory, u32)]) -> Result<Tensor> {
        let tokens: Vec<u32> = answers.iter().map(|(_, token)| *token).collect();
        let rows = answers.iter_mut().map(|(memory, _)| Rows { memory, length: 1 });
        let hidden =
            self.forward(self.words.lookup(&tokens)?, &self.causal, &mut rows.collect::<Vec<_>>())?;
        self.logits(&hidden)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(&self.last_norm.of(hidden)?, Activation::Identity)
    }

    fn forward(&self, rows: Tensor, attention: &CausalAttention, answers: &mut [Rows<'_>]) -> Result<Tensor> {
        let mut rope = RopeTable::new(self.frequencies.inverse_frequencies.len());
        for answer in answers.iter() {
            let places = answer.memory.length..answer.memory.length + answer.length;
            rope.extend(&self.frequencies, places.map(|place| [place as u32; 3]));
        }
        let mut hidden = rows;
        for (index, layer) in self.layers.iter().enumerate() {
            let mut segments = Vec::with_capacity(answers.len());
            for answer in answers.iter_mut() {
                let (past, length) = (answer.memory.length, answer.length);
                let cache = answer.memory.layers.get_mut(index).ok_or_else(misfit)?;
                segments.push(LayerSegment { cache, past, length });
            }
            let input = layer.norm.of(&hidden)?;
            let mixed = layer.mixed.forward(&input, Activation::Identity)?;
            let attended = attention.forward(&mixed, &rope, &mut segments)?;
            let attended = layer.attended.forward(&attended, Activation::Identity)?;
            let wide = layer.wide.forward(&input, Activation::GeluTanh)?;
            hidden = ((hidden + attended)? + layer.narrow.forward(&wide, Activation::Identity)?)?;
        }
        answers.iter_mut().for_each(|answer| answer.memory.length += answer.length);
        Ok(hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_there_twice_while_they_grow_are_counted() {
        let config = TextConfig::read(Path::new("config.json"), &Value::Null).unwrap();
        let more = config.scratch(1, 100_000).0 - config.scratch(1, 50_000).0;
        assert_eq!(more, 50_000 * 2048 * 4);
    }
}
