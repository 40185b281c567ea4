//! Decoders in GGUF files: from the metadata to a configuration, and the tensors under the names and in the order
//! that files of the Llama family have. Weights stay in their blocks. What each architecture's metadata means follows
//! llama.cpp, which the format comes from; what is computed follows transformers.

use std::path::Path;

use candle_core::{Device, Tensor};
use model_actors::LoadContext;

use super::config::{
    Bias, Biases, DecoderConfig, FeedForward, Fusion, Head, HeadNorms, LayerConfig, NormWeight, Norms,
    layer_count,
};
use super::load::{self, Part, Tensors};
use super::rope::{Rope, RopeParameters, RopeShape};
use super::{Decoder, misfit};
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::kernels::packed::{PackedLinear, QuantizedRows, RowUse};
use crate::kernels::{Activation, AttentionMask};

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

impl DecoderConfig {
    /// What the metadata of a GGUF file describe.
    ///
    /// # Errors
    /// [`Error::UnsupportedArchitecture`], [`Error::InvalidGguf`].
    pub(crate) fn from_gguf(file: &GgufFile) -> Result<Self> {
        let (name, architecture) = architecture(file)?;
        let metadata = Metadata { file, name };
        let base = metadata.base()?;
        match architecture {
            Architecture::Llama => Ok(base),
            Architecture::Qwen2 => {
                Ok(Self { biases: Biases { query_key_value: Bias::Yes, ..Biases::NONE }, ..base })
            }
            Architecture::Qwen3 => Ok(Self { head_norms: HeadNorms::EachHead, ..base }),
            Architecture::Phi3 => metadata.phi3(base),
            Architecture::Gemma3 => metadata.gemma3(base),
        }?
        .checked(file.path())
    }

    /// Reads the weights of a GGUF file.
    pub(crate) fn load_gguf(
        &self,
        file: &GgufFile,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Decoder> {
        let (_, architecture) = architecture(file)?;
        load::load(self, &GgufTensors { file, config: self, architecture, device, context }, device)
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

    /// The decoder of Llama's shape with these metadata.
    fn base(&self) -> Result<DecoderConfig> {
        if self.optional("expert_count").is_some_and(|count| count > 0) {
            return Err(self.file.invalid("a mixture of experts is not supported in GGUF".to_owned()));
        }
        let (width, heads) = (self.required("embedding_length")?, self.required("attention.head_count")?);
        let head_size = self.optional("attention.key_length").or(width.checked_div(heads)).unwrap_or(0);
        let middle = self.required("feed_forward_length")?;
        let layer =
            LayerConfig { mask: AttentionMask::Causal, rope: 0, feed_forward: FeedForward::Dense { middle } };
        let words =
            self.file.header().tensor("token_embd.weight").and_then(|words| words.shape.first().copied());
        let config = DecoderConfig {
            vocabulary: words.ok_or(Error::MissingTensor { tensor: "token_embd.weight".to_owned() })?,
            width,
            context: self.required("context_length")?,
            heads,
            kv_heads: self.optional("attention.head_count_kv").unwrap_or(heads),
            head_size,
            attention_scale: 1.0 / (head_size as f32).sqrt(),
            attention_cap: None,
            logit_cap: None,
            embedding_scale: None,
            activation: Activation::Silu,
            epsilon: self.float("attention.layer_norm_rms_epsilon").unwrap_or(1e-6),
            norm_weight: NormWeight::Factor,
            norms: Norms::Before,
            head_norms: HeadNorms::None,
            biases: Biases::NONE,
            fusion: Fusion::Separate,
            head: Head::Own,
            layers: vec![layer; layer_count(self.file.path(), self.required("block_count")?)?],
            ropes: Vec::new(),
            end_tokens: self.end_tokens(),
        };
        Ok(DecoderConfig { ropes: vec![self.rope(&config, "rope.freq_base", 10_000.0)?], ..config })
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
        let turned = self.optional("rope.dimension_count").unwrap_or(config.head_size);
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
        let shape = RopeShape { head_size: turned, context: config.context, base: otherwise };
        let rope = parameters.rope(path, shape)?;
        // Llama 3.1's stretch is a tensor of divisors.
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

    /// Fused tensors, and other frequencies for long texts.
    fn phi3(&self, base: DecoderConfig) -> Result<DecoderConfig> {
        let mask = match self.optional("attention.sliding_window") {
            Some(window) if window > 0 => AttentionMask::SlidingWindow(window),
            _ => AttentionMask::Causal,
        };
        let mut config = DecoderConfig { fusion: Fusion::Fused, ..base };
        config.layers.iter_mut().for_each(|layer| layer.mask = mask);
        let short = self.factors("rope_factors_short.weight")?;
        let long = self.factors("rope_factors_long.weight")?;
        if let (Some(short), Some(long), Some(rope)) = (short, long, config.ropes.first()) {
            let original = self.required("rope.scaling.original_context_length")?;
            let attention_factor = self.float("rope.scaling.attn_factor").unwrap_or(1.0) as f32;
            let mut stretched = self.divided(rope, &short, attention_factor)?;
            stretched.long = Some((original, self.divided(rope, &long, attention_factor)?.frequencies));
            config.ropes = vec![stretched];
        }
        Ok(config)
    }

    /// As Gemma 3 in safetensors, but that norms have their factor whole.
    fn gemma3(&self, base: DecoderConfig) -> Result<DecoderConfig> {
        let window = self.required("attention.sliding_window")?;
        let pattern = self.optional("attention.sliding_window_pattern").unwrap_or(6).max(1);
        // The largest of them scales by its width, the others by their heads' size; files tell it only by their depth.
        let scaled = if base.layers.len() == 62 { base.width / base.heads.max(1) } else { base.head_size };
        let scale = self.float("attention.scale").unwrap_or(1.0 / (scaled as f64).sqrt());
        let mut config = DecoderConfig {
            attention_scale: scale as f32,
            logit_cap: self.float("final_logit_softcapping").map(|cap| cap as f32),
            embedding_scale: Some((base.width as f64).sqrt() as f32),
            activation: Activation::GeluTanh,
            norms: Norms::Around,
            head_norms: HeadNorms::EachHead,
            ..base
        };
        let own = self.float("rope.freq_base_swa").unwrap_or(10_000.0);
        let shape = RopeShape { head_size: config.head_size, context: config.context, base: own };
        config.ropes = vec![
            self.rope(&config, "rope.freq_base", 1_000_000.0)?,
            RopeParameters::default().rope(self.file.path(), shape)?,
        ];
        for (index, layer) in config.layers.iter_mut().enumerate() {
            if !(index + 1).is_multiple_of(pattern) {
                (layer.mask, layer.rope) = (AttentionMask::SlidingWindow(window), 1);
            }
        }
        Ok(config)
    }
}

/// The tensors of a GGUF file.
struct GgufTensors<'a> {
    file: &'a GgufFile,
    config: &'a DecoderConfig,
    architecture: Architecture,
    device: &'a Device,
    context: &'a LoadContext,
}

const OUTPUT: &str = "output.weight";

impl GgufTensors<'_> {
    /// A tensor's name here, from its name in safetensors files.
    fn name(&self, name: &str) -> Result<String> {
        let unknown = || misfit("a tensor that GGUF files have no name for");
        let Some(rest) = name.strip_prefix("layers.") else {
            return match name {
                "embed_tokens.weight" => Ok("token_embd.weight".to_owned()),
                "norm.weight" => Ok("output_norm.weight".to_owned()),
                _ => Err(unknown()),
            };
        };
        let (layer, part) = rest.split_once('.').ok_or_else(unknown)?;
        let (part, end) = part.rsplit_once('.').ok_or_else(unknown)?;
        let around = self.config.norms == Norms::Around;
        let part = match part {
            "input_layernorm" => "attn_norm",
            "post_attention_layernorm" if around => "post_attention_norm",
            "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
            "post_feedforward_layernorm" => "post_ffw_norm",
            "self_attn.q_proj" => "attn_q",
            "self_attn.k_proj" => "attn_k",
            "self_attn.v_proj" => "attn_v",
            "self_attn.qkv_proj" => "attn_qkv",
            "self_attn.o_proj" => "attn_output",
            "self_attn.q_norm" => "attn_q_norm",
            "self_attn.k_norm" => "attn_k_norm",
            "mlp.gate_proj" => "ffn_gate",
            "mlp.up_proj" | "mlp.gate_up_proj" => "ffn_up",
            "mlp.down_proj" => "ffn_down",
            _ => return Err(unknown()),
        };
        Ok(format!("blk.{layer}.{part}.{end}"))
    }

    /// Whether the rows of a tensor are in llama.cpp's own order, in which the numbers of a pair that is turned
    /// together are neighbours.
    fn is_permuted(&self, name: &str) -> bool {
        self.architecture == Architecture::Llama && (name.contains(".q_proj") || name.contains(".k_proj"))
    }

    fn rows(&self, name: &str, outside: usize, inside: usize) -> Result<QuantizedRows> {
        let found = self.name(&format!("{name}.weight"))?;
        self.stored_rows(&found, outside, inside, self.is_permuted(name))
    }

    fn stored_rows(
        &self,
        name: &str,
        outside: usize,
        inside: usize,
        permuted: bool,
    ) -> Result<QuantizedRows> {
        let stored = self.file.read(name, &[outside, inside], self.context)?;
        let bytes = match permuted {
            true => in_order(&stored.bytes, outside, self.config.head_size),
            false => stored.bytes,
        };
        Ok(QuantizedRows { dtype: stored.dtype, bytes, outside })
    }
}

impl Tensors for GgufTensors<'_> {
    fn has_head(&self) -> bool {
        self.file.contains(OUTPUT)
    }

    fn vector(&self, name: &str, length: usize) -> Result<Tensor> {
        let values = self.file.numbers(&self.name(name)?, &[length], self.context)?;
        Ok(Tensor::from_vec(values, length, self.device)?)
    }

    fn linear(&self, parts: &[Part<'_>], inside: usize, bias: Bias) -> Result<PackedLinear> {
        let (mut rows, mut biases) = (Vec::new(), Vec::new());
        for Part { name, outside } in parts {
            rows.push(self.rows(name, *outside, inside)?);
            if bias == Bias::Yes {
                let values =
                    self.file.numbers(&self.name(&format!("{name}.bias"))?, &[*outside], self.context)?;
                match self.is_permuted(name) {
                    true => biases.extend(in_order(&values, *outside, self.config.head_size)),
                    false => biases.extend(values),
                }
            }
        }
        let length = biases.len();
        let bias = match bias {
            Bias::Yes => Some(Tensor::from_vec(biases, length, self.device)?),
            Bias::No => None,
        };
        let looked_up = parts.iter().any(|part| part.name == "embed_tokens");
        let use_of_rows = if looked_up { RowUse::LookedUp } else { RowUse::MultipliedOnly };
        PackedLinear::quantized(rows, inside, bias, self.device, use_of_rows)
    }

    fn head(&self, outside: usize, inside: usize) -> Result<PackedLinear> {
        let rows = self.stored_rows(OUTPUT, outside, inside, false)?;
        PackedLinear::quantized(vec![rows], inside, None, self.device, RowUse::MultipliedOnly)
    }
}

/// Rows, each of as many values, from llama.cpp's order to that of safetensors files: in each head first the first
/// numbers of all pairs, then the second.
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
