//! Decoders in GGUF files: from the metadata to a configuration, a table of the tensors' names, and the
//! tensors with their rows in the order of safetensors files. Weights stay quantised. The meaning of each
//! architecture's metadata follows llama.cpp, which the format comes from; what is computed follows
//! transformers.

use std::path::Path;

use candle_core::{Device, Tensor};
use model_actors::LoadContext;

use super::config::{DecoderConfig, Embeddings, Head, LlamaSizes, llama_blocks};
use super::load;
use super::model::Decoder;
use super::names::{DecoderNames, LLAMA};
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::kernels::packed::{PackedLinear, QuantizedRows, RowUse};
use crate::kernels::{Activation, AttentionMask};
use crate::models::transformer::{
    Bias, HeadNorms, Linears, Names, NormPlacement, QkvNames, Rope, RopeParameters, RopeShape, Tensors,
    UpNames, layer_count,
};

/// Most factors of a rotary embedding. A head is small; a tensor that claims more is no set of factors.
const MAX_FACTORS: usize = 1 << 16;

/// The architectures, in the order that errors list them.
const ARCHITECTURES: [(&str, Architecture); 5] = [
    ("llama", Architecture::Llama),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("phi3", Architecture::Phi3),
    ("gemma3", Architecture::Gemma3),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Phi3,
    Gemma3,
}

/// The tensors' names, without `.weight` and `.bias`.
const NAMES: DecoderNames = DecoderNames {
    prefixes: &[""],
    token_embeddings: "token_embd",
    blocks: Names {
        blocks: "blk.",
        attention_norm: "attn_norm",
        qkv: QkvNames::Separate(["attn_q", "attn_k", "attn_v"]),
        query_norm: "attn_q_norm",
        key_norm: "attn_k_norm",
        out_proj: "attn_output",
        attention_output_norm: "post_attention_norm",
        feed_forward_norm: "ffn_norm",
        feed_forward: "",
        up: UpNames::Separate { gate: "ffn_gate", up: "ffn_up" },
        down: "ffn_down",
        feed_forward_output_norm: "post_ffw_norm",
        ..Names::NONE
    },
    norm: "output_norm",
    heads: &["output"],
    ..LLAMA
};

/// The same with fused projections.
const FUSED: DecoderNames = DecoderNames {
    blocks: Names { qkv: QkvNames::Fused("attn_qkv"), up: UpNames::GateUp("ffn_up"), ..NAMES.blocks },
    ..NAMES
};

impl DecoderConfig {
    /// The decoder that the metadata of a GGUF file describe.
    ///
    /// # Errors
    /// [`Error::UnsupportedArchitecture`], [`Error::InvalidGguf`].
    pub(crate) fn from_gguf(file: &GgufFile) -> Result<Self> {
        let (name, architecture) = architecture(file)?;
        let metadata = Metadata { file, name };
        let mut config = metadata.base()?;
        match architecture {
            Architecture::Llama => {}
            Architecture::Qwen2 => config.transformer.biases.qkv = Bias::Yes,
            Architecture::Qwen3 => config.transformer.attention.head_norms = HeadNorms::EachHead,
            Architecture::Phi3 => metadata.phi3(&mut config)?,
            Architecture::Gemma3 => metadata.gemma3(&mut config)?,
        }
        config.checked(file.path())
    }

    /// Reads the weights of a GGUF file.
    pub(crate) fn load_gguf(
        &self,
        file: &GgufFile,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Decoder> {
        let permuted = match architecture(file)? {
            (_, Architecture::Llama) => Some(self.transformer.attention.head_size),
            _ => None,
        };
        let tensors = GgufTensors { file, permuted, device, context };
        load::load(self, self.names, &tensors, &tensors, device)
    }
}

fn architecture(file: &GgufFile) -> Result<(&'static str, Architecture)> {
    let found = file.header().text("general.architecture").unwrap_or("(none named)");
    ARCHITECTURES.into_iter().find(|(name, _)| *name == found).ok_or_else(|| Error::UnsupportedArchitecture {
        found: found.to_owned(),
        capability: "text to text in GGUF".into(),
        supported: ARCHITECTURES.into_iter().map(|(name, _)| name.into()).collect(),
    })
}

/// A file's metadata, which carry the architecture's name before theirs.
struct Metadata<'a> {
    file: &'a GgufFile,
    name: &'static str,
}

impl Metadata<'_> {
    fn optional(&self, key: &str) -> Option<usize> {
        let number = self.file.header().number(&format!("{}.{key}", self.name));
        number.and_then(|number| usize::try_from(number).ok())
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.optional(key).ok_or_else(|| self.file.invalid(format!("it has no number {}.{key}", self.name)))
    }

    fn float(&self, key: &str) -> Option<f64> {
        self.file.header().float(&format!("{}.{key}", self.name))
    }

    /// Llama's decoder with these metadata.
    fn base(&self) -> Result<DecoderConfig> {
        if self.optional("expert_count").is_some_and(|count| count > 0) {
            return Err(self.file.invalid("a mixture of experts is not supported in GGUF".to_owned()));
        }
        let (width, heads) = (self.required("embedding_length")?, self.required("attention.head_count")?);
        let head_size = self.optional("attention.key_length").or(width.checked_div(heads)).unwrap_or(0);
        let layers = layer_count(self.file.path(), self.required("block_count")?)?;
        let blocks = llama_blocks(LlamaSizes {
            width,
            intermediate: self.required("feed_forward_length")?,
            heads,
            kv_heads: self.optional("attention.head_count_kv").unwrap_or(heads),
            head_size,
            epsilon: self.float("attention.layer_norm_rms_epsilon").unwrap_or(1e-6),
            masks: vec![AttentionMask::Causal; layers],
        });
        let embeddings = self.file.header().tensor("token_embd.weight");
        let vocabulary = embeddings.and_then(|embeddings| embeddings.shape.first().copied());
        let mut config = DecoderConfig {
            vocabulary: vocabulary.ok_or(Error::MissingTensor { tensor: "token_embd.weight".to_owned() })?,
            context: self.required("context_length")?,
            embeddings: Embeddings::Plain,
            transformer: blocks,
            head: Head::Own(Bias::No),
            logit_cap: None,
            end_tokens: self.end_tokens(),
            names: &NAMES,
        };
        config.transformer.ropes = vec![self.rope(&config, "rope.freq_base", 10_000.0)?];
        Ok(config)
    }

    fn end_tokens(&self) -> Vec<u32> {
        let keys = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
        let tokens = keys.into_iter().filter_map(|key| self.file.header().number(key));
        let mut tokens: Vec<u32> = tokens.filter_map(|token| u32::try_from(token).ok()).collect();
        tokens.dedup();
        tokens
    }

    fn rope(&self, config: &DecoderConfig, base: &str, otherwise: f64) -> Result<Rope> {
        let path: &Path = self.file.path();
        let head_size = config.transformer.attention.head_size;
        let rotated = self.optional("rope.dimension_count").unwrap_or(head_size);
        let scaling = self.file.header().text(&format!("{}.rope.scaling.type", self.name)).unwrap_or("none");
        let kind = match scaling {
            "none" | "longrope" => "default",
            other => other,
        };
        let parameters = RopeParameters {
            rope_theta: self.float(base),
            rope_type: Some(kind.to_owned()),
            factor: self.float("rope.scaling.factor"),
            original_max_position_embeddings: self.optional("rope.scaling.original_context_length"),
            attention_factor: self.float("rope.scaling.yarn_attn_factor"),
            beta_fast: self.float("rope.scaling.yarn_beta_fast"),
            beta_slow: self.float("rope.scaling.yarn_beta_slow"),
            ..RopeParameters::default()
        };
        let shape = RopeShape { head_size: rotated, context: config.context, base: otherwise };
        let rope = parameters.rope(path, shape)?;
        // Llama 3.1's scaling is a tensor of divisors.
        match self.factors("rope_freqs.weight")? {
            None => Ok(rope),
            Some(factors) => self.divided(&rope, &factors, 1.0),
        }
    }

    fn factors(&self, tensor: &str) -> Result<Option<Vec<f32>>> {
        let Some(info) = self.file.header().tensor(tensor) else { return Ok(None) };
        let shape = info.shape.clone();
        if shape.len() != 1 || shape.iter().any(|side| *side > MAX_FACTORS) {
            return Err(self.file.invalid(format!("the tensor {tensor} has the shape {shape:?}")));
        }
        let context = LoadContext::detached(&self.name.into());
        self.file.numbers(tensor, &shape, &context).map(Some)
    }

    fn divided(&self, rope: &Rope, factors: &[f32], attention_factor: f32) -> Result<Rope> {
        let steps = &rope.frequencies.inverse_frequencies;
        if steps.len() != factors.len() {
            let (found, needed) = (factors.len(), steps.len());
            return Err(self.file.invalid(format!("it has {found} rotary factors for {needed} frequencies")));
        }
        let steps = steps.iter().zip(factors).map(|(step, factor)| step / factor);
        Ok(Rope::new(steps.collect(), attention_factor))
    }

    /// Phi-3: fused tensors, and other frequencies for long texts.
    fn phi3(&self, config: &mut DecoderConfig) -> Result<()> {
        let mask = match self.optional("attention.sliding_window") {
            Some(window) if window > 0 => AttentionMask::SlidingWindow(window),
            _ => AttentionMask::Causal,
        };
        config.names = &FUSED;
        config.transformer.layers.iter_mut().for_each(|layer| layer.mask = mask);
        let short = self.factors("rope_factors_short.weight")?;
        let long = self.factors("rope_factors_long.weight")?;
        if let (Some(short), Some(long), Some(rope)) = (short, long, config.transformer.ropes.first()) {
            let original = self.required("rope.scaling.original_context_length")?;
            let attention_factor = self.float("rope.scaling.attn_factor").unwrap_or(1.0) as f32;
            let mut scaled = self.divided(rope, &short, attention_factor)?;
            scaled.long = Some((original, self.divided(rope, &long, attention_factor)?.frequencies));
            config.transformer.ropes = vec![scaled];
        }
        Ok(())
    }

    /// Gemma 3, as in safetensors, but that norms have their factors whole.
    fn gemma3(&self, config: &mut DecoderConfig) -> Result<()> {
        let window = self.required("attention.sliding_window")?;
        let pattern = self.optional("attention.sliding_window_pattern").unwrap_or(6).max(1);
        config.logit_cap = self.float("final_logit_softcapping").map(|cap| cap as f32);
        config.embeddings = Embeddings::Scaled((config.width() as f64).sqrt() as f32);
        let ropes = vec![
            self.rope(config, "rope.freq_base", 1_000_000.0)?,
            RopeParameters::default().rope(
                self.file.path(),
                RopeShape {
                    head_size: config.transformer.attention.head_size,
                    context: config.context,
                    base: self.float("rope.freq_base_swa").unwrap_or(10_000.0),
                },
            )?,
        ];
        let transformer = &mut config.transformer;
        let (width, attention) = (transformer.width, &mut transformer.attention);
        // The largest of them scales by its width, the others by their heads' size; files tell it only by their depth.
        let scaled = match transformer.layers.len() {
            62 => width / attention.heads.max(1),
            _ => attention.head_size,
        };
        attention.scale = self.float("attention.scale").unwrap_or(1.0 / (scaled as f64).sqrt()) as f32;
        attention.head_norms = HeadNorms::EachHead;
        transformer.activation = Activation::GeluTanh;
        transformer.norm_placement = NormPlacement::Sandwich;
        transformer.ropes = ropes;
        for (index, layer) in transformer.layers.iter_mut().enumerate() {
            if !(index + 1).is_multiple_of(pattern) {
                (layer.mask, layer.rope) = (AttentionMask::SlidingWindow(window), Some(1));
            }
        }
        Ok(())
    }
}

/// The tensors of a GGUF file.
struct GgufTensors<'a> {
    file: &'a GgufFile,
    /// Size of the heads whose queries and keys have their rows in llama.cpp's own order, in which the two
    /// numbers of a rotated pair are neighbours; nothing where no rows have.
    permuted: Option<usize>,
    device: &'a Device,
    context: &'a LoadContext,
}

impl GgufTensors<'_> {
    /// The size of the heads of a layer whose rows are permuted.
    fn permuted(&self, name: &str) -> Option<usize> {
        self.permuted.filter(|_| name.ends_with(".attn_q") || name.ends_with(".attn_k"))
    }

    fn rows(&self, name: &str, out_dim: usize, in_dim: usize) -> Result<QuantizedRows> {
        let stored = self.file.read(&format!("{name}.weight"), &[out_dim, in_dim], self.context)?;
        let bytes = match self.permuted(name) {
            Some(head_size) => in_order(&stored.bytes, out_dim, head_size),
            None => stored.bytes,
        };
        Ok(QuantizedRows { dtype: stored.dtype, bytes, out_dim })
    }

    fn bias(&self, name: &str, out_dim: usize) -> Result<Vec<f32>> {
        let values = self.file.numbers(&format!("{name}.bias"), &[out_dim], self.context)?;
        Ok(match self.permuted(name) {
            Some(head_size) => in_order(&values, out_dim, head_size),
            None => values,
        })
    }
}

impl Tensors for GgufTensors<'_> {
    fn contains(&self, name: &str) -> bool {
        self.file.contains(name)
    }

    fn vector(&self, name: &str, length: usize) -> Result<Tensor> {
        let values = self.file.numbers(name, &[length], self.context)?;
        Ok(Tensor::from_vec(values, length, self.device)?)
    }

    fn packed(&self, layers: &Linears<'_>, rows: RowUse) -> Result<PackedLinear> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for (name, out_dim) in layers.parts {
            weight.push(self.rows(name, *out_dim, layers.in_dim)?);
            if layers.bias == Bias::Yes {
                bias.extend(self.bias(name, *out_dim)?);
            }
        }
        let bias = match layers.bias {
            Bias::Yes => Some(Tensor::from_vec(bias, layers.out_dim(), self.device)?),
            Bias::No => None,
        };
        PackedLinear::quantized(weight, layers.in_dim, bias, self.device, rows)
    }
}

/// Rows, each of as many values, from llama.cpp's order to that of safetensors files: in each head first the
/// first numbers of all pairs, then the second.
fn in_order<T: Copy>(values: &[T], rows: usize, head_size: usize) -> Vec<T> {
    let row = values.len() / rows.max(1);
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks(row * head_size.max(1)) {
        for half in 0..2 {
            let rows = head.chunks(row.max(1)).skip(half).step_by(2);
            rows.for_each(|row| out.extend_from_slice(row));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_come_in_the_order_of_halves() {
        let values = [[0, 0], [2, 2], [1, 1], [3, 3], [4, 4], [6, 6], [5, 5], [7, 7]].concat();
        let ordered: Vec<i32> = (0..8).flat_map(|value| [value, value]).collect();
        assert_eq!(in_order(&values, 8, 4), ordered);
    }
}
