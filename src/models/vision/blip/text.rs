//! BLIP's text decoder: BERT with a causal mask, and in each layer a second attention, over the image.

use std::path::Path;

use candle_core::{Device, Tensor};
use model_actors::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{misfit, read_part};
use crate::error::{Error, Result};
use crate::kernels::causal::{CausalAttention, KvCache, LayerSegment, growing_bytes};
use crate::kernels::packed::PackedLinear;
use crate::kernels::rotary::RopeTable;
use crate::kernels::{Activation, AttentionMask, LayerNorm, scaled_dot_product_attention};
use crate::models::towers::{MAX_SIZE, StackShape, activation, check_stack, norm};
use crate::models::vision::PROMPT_ROWS;
use crate::weights::WeightReader;

/// `text_config`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct TextConfig {
    pub(super) vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    pub(super) bos_token_id: u32,
    pub(super) sep_token_id: u32,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    /// The image's width.
    #[serde(skip)]
    seen_width: usize,
    #[serde(skip)]
    shape: Option<StackShape>,
}

fn defaults() -> Value {
    json!({
        "vocab_size": 30524, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 8, "max_position_embeddings": 512, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "bos_token_id": 30522, "sep_token_id": 102
    })
}

impl TextConfig {
    /// Reads and checks it; the image's rows have `seen_width` numbers.
    pub(super) fn read(file: &Path, config: &Value, seen_width: usize) -> Result<Self> {
        let mut config: Self = read_part(file, defaults(), config)?;
        let shape = StackShape {
            width: config.hidden_size,
            middle: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            epsilon: config.layer_norm_eps,
            activation: activation(file, &config.hidden_act)?,
        };
        check_stack(file, &shape)?;
        let (words, places) = (config.vocab_size, config.max_position_embeddings);
        let known = |token: u32| (token as usize) < words;
        if !(1..=MAX_SIZE).contains(&words) || !(1..=MAX_SIZE).contains(&places) {
            let reason = format!("vocab_size and max_position_embeddings must be 1 to {MAX_SIZE}");
            return Err(Error::InvalidConfig { file: file.to_owned(), reason });
        }
        if !known(config.bos_token_id) || !known(config.sep_token_id) {
            let reason = "bos_token_id and sep_token_id must be below vocab_size".to_owned();
            return Err(Error::InvalidConfig { file: file.to_owned(), reason });
        }
        (config.seen_width, config.shape) = (seen_width, Some(shape));
        Ok(config)
    }

    fn row_bytes(&self) -> u64 {
        (self.hidden_size as u64).saturating_mul(8).saturating_mul(self.num_hidden_layers as u64)
    }

    /// Keys and values of so many tokens, or rows of images.
    pub(super) fn memory(&self, rows: usize) -> Bytes {
        Bytes(self.row_bytes().saturating_mul(rows as u64))
    }

    /// What a pass over so many rows needs besides, where a caption has up to so many tokens.
    pub(super) fn scratch(&self, rows: usize, tokens: usize) -> Bytes {
        let words = Bytes((self.vocab_size as u64).saturating_mul(8))
            + Bytes(growing_bytes(tokens, self.hidden_size));
        words + self.shape.map_or(Bytes(0), |shape| shape.scratch(rows, tokens))
    }
}

/// What a worker keeps of one caption.
pub(in crate::models::vision) struct Memory {
    prompt: Vec<u32>,
    read: usize,
    own: Vec<KvCache>,
    /// For each layer the image's keys and values, `(1, seen, width)` each.
    seen: Vec<[Tensor; 2]>,
}

pub(super) struct TextDecoder {
    /// With the bias of the logits; looking words up leaves it alone.
    words: PackedLinear,
    positions: Tensor,
    first_norm: LayerNorm,
    layers: Vec<Layer>,
    attention: CausalAttention,
    last: PackedLinear,
    last_norm: LayerNorm,
    activation: Activation,
    device: Device,
}

struct Layer {
    mixed: PackedLinear,
    attended: PackedLinear,
    attended_norm: LayerNorm,
    asking: PackedLinear,
    asked: PackedLinear,
    crossed: PackedLinear,
    crossed_norm: LayerNorm,
    wide: PackedLinear,
    narrow: PackedLinear,
    norm: LayerNorm,
}

const TEXT: &str = "text_decoder.bert";
const HEAD: &str = "text_decoder.cls.predictions";

impl TextDecoder {
    pub(super) fn load(config: &TextConfig, reader: &WeightReader<'_>, device: &Device) -> Result<Self> {
        let shape = config.shape.ok_or_else(misfit)?;
        let width = shape.width;
        let loader = Loader { reader, device, shape, seen_width: config.seen_width };
        let mut words = Vec::new();
        let name = format!("{TEXT}.embeddings.word_embeddings.weight");
        reader.append(&name, &[config.vocab_size, width], &mut words)?;
        let bias = reader.tensor(&format!("{HEAD}.bias"), &[config.vocab_size])?;
        let name = format!("{TEXT}.embeddings.position_embeddings.weight");
        Ok(Self {
            words: PackedLinear::new(words, width, Some(bias), device)?,
            positions: reader.tensor(&name, &[config.max_position_embeddings, width])?,
            first_norm: loader.norm(&format!("{TEXT}.embeddings.LayerNorm"))?,
            layers: (0..shape.layers).map(|index| loader.layer(index)).collect::<Result<_>>()?,
            attention: CausalAttention {
                heads: shape.heads,
                kv_heads: shape.heads,
                size: width / shape.heads,
                scale: 1.0 / ((width / shape.heads) as f32).sqrt(),
                soft_cap: None,
                mask: AttentionMask::Causal,
                head_norms: None,
            },
            last: loader.linear(&[&format!("{HEAD}.transform.dense")], width, width)?,
            last_norm: loader.norm(&format!("{HEAD}.transform.LayerNorm"))?,
            activation: shape.activation,
            device: device.clone(),
        })
    }

    /// A caption that begins with these tokens, of an image whose rows are `(seen, width)`.
    pub(super) fn begin(&self, prompt: Vec<u32>, image: &Tensor) -> Result<Memory> {
        let width = self.attention.heads * self.attention.size;
        let own = self.layers.iter().map(|_| KvCache::new(width, &self.device));
        let seen = self.layers.iter().map(|layer| {
            let both = layer.asked.forward(image, Activation::Identity)?.unsqueeze(0)?;
            let half = |first| both.narrow(2, first, width)?.contiguous();
            Ok([half(0)?, half(width)?])
        });
        Ok(Memory { prompt, read: 0, own: own.collect::<Result<_>>()?, seen: seen.collect::<Result<_>>()? })
    }

    /// Reads a part of the prompt. At its end, the last row's hidden state, `(1, width)`.
    pub(super) fn read(&self, memory: &mut Memory) -> Result<Option<Tensor>> {
        let part: Vec<u32> = memory.prompt.iter().skip(memory.read).take(PROMPT_ROWS).copied().collect();
        let hidden = self.forward(&part, &mut [(memory, part.len())])?;
        let at_end = memory.read >= memory.prompt.len();
        Ok(at_end.then(|| hidden.narrow(0, part.len().saturating_sub(1), 1)).transpose()?)
    }

    /// Reads one token of each caption: `(captions, width)`.
    pub(super) fn write(&self, captions: &mut [(&mut Memory, u32)]) -> Result<Tensor> {
        let tokens: Vec<u32> = captions.iter().map(|(_, token)| *token).collect();
        let mut memories: Vec<(&mut Memory, usize)> =
            captions.iter_mut().map(|(memory, _)| (&mut **memory, 1)).collect();
        self.forward(&tokens, &mut memories)
    }

    /// Hidden states to `(rows, vocabulary)`.
    pub(super) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let hidden = self.last_norm.of(&self.last.forward(hidden, self.activation)?)?;
        self.words.forward(&hidden, Activation::Identity)
    }

    /// The next tokens of several captions, so many of each.
    fn forward(&self, tokens: &[u32], captions: &mut [(&mut Memory, usize)]) -> Result<Tensor> {
        let places = captions.iter().flat_map(|(memory, count)| memory.read..memory.read + count);
        let places: Vec<u32> = places.map(|place| place as u32).collect();
        let positions = self.positions.index_select(&Tensor::new(places, &self.device)?, 0)?;
        let mut hidden = self.first_norm.of_sum(&self.words.lookup(tokens)?, &positions)?;
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = self.layer(index, layer, &hidden, captions)?;
        }
        captions.iter_mut().for_each(|(memory, count)| memory.read += *count);
        Ok(hidden)
    }

    fn layer(
        &self,
        index: usize,
        layer: &Layer,
        input: &Tensor,
        captions: &mut [(&mut Memory, usize)],
    ) -> Result<Tensor> {
        let mixed = layer.mixed.forward(input, Activation::Identity)?;
        let mut segments = Vec::with_capacity(captions.len());
        for (memory, count) in captions.iter_mut() {
            let (past, own) = (memory.read, memory.own.get_mut(index).ok_or_else(misfit)?);
            segments.push(LayerSegment { cache: own, past, length: *count });
        }
        let attended = self.attention.forward(&mixed, &RopeTable::new(0), &mut segments)?;
        let attended = layer.attended.forward(&attended, Activation::Identity)?;
        let attended = layer.attended_norm.of_sum(&attended, input)?;

        let asking = layer.asking.forward(&attended, Activation::Identity)?;
        let (mut first, mut crossed) = (0, Vec::with_capacity(captions.len()));
        for (memory, count) in captions.iter() {
            let [keys, values] = memory.seen.get(index).ok_or_else(misfit)?;
            let asking = asking.narrow(0, first, *count)?.unsqueeze(0)?;
            let CausalAttention { heads, scale, .. } = self.attention;
            crossed.push(
                scaled_dot_product_attention(&asking, keys, values, heads, f64::from(scale), None)?
                    .squeeze(0)?,
            );
            first += count;
        }
        let crossed = layer.crossed.forward(&Tensor::cat(&crossed, 0)?, Activation::Identity)?;
        let crossed = layer.crossed_norm.of_sum(&crossed, &attended)?;

        let wide = layer.wide.forward(&crossed, self.activation)?;
        layer.norm.of_sum(&layer.narrow.forward(&wide, Activation::Identity)?, &crossed)
    }
}

/// What loading each layer takes.
struct Loader<'a> {
    reader: &'a WeightReader<'a>,
    device: &'a Device,
    shape: StackShape,
    seen_width: usize,
}

impl Loader<'_> {
    fn norm(&self, name: &str) -> Result<LayerNorm> {
        norm(self.reader, name, self.shape.width, self.shape.epsilon)
    }

    /// Layers of `(outside, inside)` as one, one's outputs after the other's.
    fn linear(&self, names: &[&str], outside: usize, inside: usize) -> Result<PackedLinear> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            self.reader.append(&format!("{name}.weight"), &[outside, inside], &mut weight)?;
            self.reader.append(&format!("{name}.bias"), &[outside], &mut bias)?;
        }
        let length = bias.len();
        PackedLinear::new(weight, inside, Some(self.reader.place(bias, &[length])?), self.device)
    }

    fn layer(&self, index: usize) -> Result<Layer> {
        let StackShape { width, middle, .. } = self.shape;
        let part = |part: &str| format!("{TEXT}.encoder.layer.{index}.{part}");
        let one = |name: &str, outside, inside| self.linear(&[&part(name)], outside, inside);
        let own = ["query", "key", "value"].map(|name| part(&format!("attention.self.{name}")));
        let crossed = ["key", "value"].map(|name| part(&format!("crossattention.self.{name}")));
        Ok(Layer {
            mixed: self.linear(&own.each_ref().map(String::as_str), width, width)?,
            attended: one("attention.output.dense", width, width)?,
            attended_norm: self.norm(&part("attention.output.LayerNorm"))?,
            asking: one("crossattention.self.query", width, width)?,
            asked: self.linear(&crossed.each_ref().map(String::as_str), width, self.seen_width)?,
            crossed: one("crossattention.output.dense", width, width)?,
            crossed_norm: self.norm(&part("crossattention.output.LayerNorm"))?,
            wide: one("intermediate.dense", middle, width)?,
            narrow: one("output.dense", width, middle)?,
            norm: self.norm(&part("output.LayerNorm"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_there_twice_while_they_grow_are_counted() {
        let config = TextConfig::read(Path::new("config.json"), &Value::Null, 768).unwrap();
        let more = config.scratch(1, 100_000).0 - config.scratch(1, 50_000).0;
        assert_eq!(more, 50_000 * 768 * 4);
    }
}
