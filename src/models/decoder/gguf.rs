//! Decoders in GGUF files: from the metadata to a configuration and a table of the tensors' names. The meaning of each
//! architecture's metadata follows llama.cpp, which the format comes from; what is computed follows transformers.

mod metadata;
mod rope;
mod tensors;
#[cfg(test)]
mod tests;

use candle_core::Device;
use model_actors::LoadContext;

use super::config::{DecoderConfig, Embeddings, Head, LlamaSizes, llama_blocks};
use super::load;
use super::model::{Decoder, Logits};
use super::names::{DecoderNames, LLAMA};
use super::{gpt_oss, phi};
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::kernels::packed::Arithmetic;
use crate::kernels::{Activation, AttentionMask};
use crate::models::config_file::unsupported;
use crate::models::transformer::{
    ExpertNames, FeedForwardConfig, HeadNorms, MatrixOrder, Names, NormPlacement, QkvNames, Tensors as _,
    UpNames, layer_count,
};
use metadata::Metadata;
use rope::Sizes;
use tensors::GgufTensors;

/// The architectures, in the order that errors list them.
const ARCHITECTURES: [(&str, Architecture); 7] = [
    ("llama", Architecture::Llama),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("phi2", Architecture::Phi2),
    ("phi3", Architecture::Phi3),
    ("gemma3", Architecture::Gemma3),
    ("gpt-oss", Architecture::GptOss),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Phi2,
    Phi3,
    Gemma3,
    GptOss,
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
const FUSED: DecoderNames =
    DecoderNames { blocks: Names { qkv: FUSED_QKV, up: FUSED_UP, ..NAMES.blocks }, ..NAMES };
const FUSED_QKV_ALONE: DecoderNames =
    DecoderNames { blocks: Names { qkv: FUSED_QKV, ..NAMES.blocks }, ..NAMES };
const FUSED_UP_ALONE: DecoderNames = DecoderNames { blocks: Names { up: FUSED_UP, ..NAMES.blocks }, ..NAMES };
/// GPT-OSS's, in which the experts' matrices are in one tensor for each place.
const GPT_OSS: DecoderNames = DecoderNames {
    blocks: Names {
        sinks: "attn_sinks.weight",
        feed_forward_norm: "post_attention_norm",
        router: "ffn_gate_inp",
        experts: ExpertNames::Stacked {
            up: UpNames::Separate { gate: "ffn_gate_exps", up: "ffn_up_exps" },
            up_order: MatrixOrder::Outputs,
            down: "ffn_down_exps",
            down_order: MatrixOrder::Outputs,
            bias: "",
        },
        ..NAMES.blocks
    },
    ..NAMES
};
/// The same without gates.
const DENSE: DecoderNames =
    DecoderNames { blocks: Names { up: UpNames::Dense("ffn_up"), ..NAMES.blocks }, ..NAMES };
const DENSE_FUSED_QKV: DecoderNames =
    DecoderNames { blocks: Names { qkv: FUSED_QKV, ..DENSE.blocks }, ..DENSE };
const FUSED_QKV: QkvNames = QkvNames::Fused("attn_qkv");
const FUSED_UP: UpNames = UpNames::GateUp("ffn_up");

impl DecoderConfig {
    /// The decoder that the metadata of a GGUF file describe.
    ///
    /// # Errors
    /// [`Error::UnsupportedArchitecture`], [`Error::InvalidGguf`].
    pub(crate) fn from_gguf(file: &GgufFile) -> Result<Self> {
        let (name, architecture) = architecture(file)?;
        let count = Metadata { file, name, layers: 1 }.required("block_count")?;
        let metadata = Metadata { file, name, layers: layer_count(file.path(), count)? };
        let mut config = metadata.base(architecture)?;
        match architecture {
            // Biases are read where a file has them.
            Architecture::Llama | Architecture::Qwen2 => {}
            Architecture::Qwen3 => config.transformer.attention.head_norms = HeadNorms::EachHead,
            Architecture::Phi2 => {
                phi::shape(&mut config);
                config.transformer.activation = Activation::GeluTanh;
            }
            Architecture::Phi3 => metadata.phi3(&mut config)?,
            Architecture::Gemma3 => metadata.gemma3(&mut config)?,
            Architecture::GptOss => metadata.gpt_oss(&mut config)?,
        }
        file.check_types(|tensor| config.uses(tensor))?;
        config.checked(file.path())
    }

    /// Reads the weights of a GGUF file.
    pub(crate) fn load_gguf(
        &self,
        file: &GgufFile,
        device: &Device,
        arithmetic: Arithmetic,
        context: &LoadContext,
    ) -> Result<Decoder> {
        let permuted = match architecture(file)? {
            (_, Architecture::Llama) => Some(self.transformer.attention.head_size),
            _ => None,
        };
        let tensors = GgufTensors { file, permuted, device, arithmetic, context };
        let mut decoder = load::load(self, self.names, &tensors, &tensors, device)?;
        if matches!(decoder.logits, Logits::Tied) && tensors.contains("output.bias") {
            let bias = tensors.vector("output.bias", self.vocabulary)?;
            decoder.token_embeddings = decoder.token_embeddings.with_bias(bias);
        }
        Ok(decoder)
    }
}

fn architecture(file: &GgufFile) -> Result<(&'static str, Architecture)> {
    let kind = file.header().text("general.type").unwrap_or("model");
    if kind != "model" {
        return Err(unsupported(file.path(), "general.type", kind, "model"));
    }
    let found = file.header().text("general.architecture").unwrap_or("(none named)");
    ARCHITECTURES.into_iter().find(|(name, _)| *name == found).ok_or_else(|| Error::UnsupportedArchitecture {
        found: found.to_owned(),
        capability: "text to text in GGUF".into(),
        supported: ARCHITECTURES.into_iter().map(|(name, _)| name.into()).collect(),
    })
}

impl Metadata<'_> {
    /// Llama's decoder with these metadata.
    fn base(&self, architecture: Architecture) -> Result<DecoderConfig> {
        let has_experts = self.optional("expert_count")?.is_some_and(|count| count > 0);
        if has_experts && architecture != Architecture::GptOss {
            return Err(self.file.invalid("a mixture of experts is not supported in GGUF".to_owned()));
        }
        let (width, heads) = (self.required("embedding_length")?, self.required("attention.head_count")?);
        let whole = width.checked_div(heads);
        let head_size = self.optional("attention.key_length")?.or(whole).unwrap_or(0);
        self.same("attention.value_length", head_size, head_size)?;
        let epsilon = match architecture {
            Architecture::Phi2 => "attention.layer_norm_epsilon",
            _ => "attention.layer_norm_rms_epsilon",
        };
        let mut blocks = llama_blocks(LlamaSizes {
            width,
            intermediate: 1,
            heads,
            kv_heads: self.optional("attention.head_count_kv")?.unwrap_or(heads),
            head_size,
            epsilon: self.float(epsilon).ok_or_else(|| self.missing(epsilon))?,
            masks: vec![AttentionMask::Causal; self.layers],
        });
        let lengths = match architecture {
            Architecture::GptOss => "expert_feed_forward_length",
            _ => "feed_forward_length",
        };
        let lengths = self.of_layers(lengths)?.ok_or_else(|| self.missing(lengths))?;
        for (layer, intermediate) in blocks.layers.iter_mut().zip(lengths) {
            layer.feed_forward = FeedForwardConfig::Gated { intermediate };
        }
        let context = self.required("context_length")?;
        let rotated = self.optional("rope.dimension_count")?.unwrap_or(head_size);
        if architecture == Architecture::Llama {
            // Its rows are in an order that holds for whole heads alone.
            self.same("rope.dimension_count", head_size, head_size)?;
        }
        blocks.ropes = vec![self.rope(Sizes { rotated, context })?];
        let embeddings = self.file.header().tensor("token_embd.weight");
        let vocabulary = embeddings.and_then(|embeddings| embeddings.shape.first().copied());
        Ok(DecoderConfig {
            vocabulary: vocabulary.ok_or(Error::MissingTensor { tensor: "token_embd.weight".to_owned() })?,
            context,
            embeddings: Embeddings::Plain,
            transformer: blocks,
            head: Head::Tied,
            logit_cap: None,
            end_tokens: Vec::new(),
            names: self.names(architecture),
        })
    }

    /// Refuses a file in which a size, or its default, is another than the one that is supported.
    fn same(&self, key: &str, default: usize, supported: usize) -> Result<()> {
        match self.optional(key)?.unwrap_or(default) {
            size if size == supported => Ok(()),
            size => {
                let supported = format!("{supported}, the size of a head's keys");
                Err(unsupported(self.path(), self.key(key), &size.to_string(), supported))
            }
        }
    }

    /// The tensors' names: files fuse projections or not, whatever their architecture; Llama's rows are never fused.
    fn names(&self, architecture: Architecture) -> &'static DecoderNames {
        let is_fused = |fused: &str, part: &str| {
            let has = |name: &str| self.file.contains(&format!("blk.0.{name}.weight"));
            architecture != Architecture::Llama && has(fused) && !has(part)
        };
        let is_dense = architecture == Architecture::Phi2;
        if architecture == Architecture::GptOss {
            return &GPT_OSS;
        }
        match (is_fused("attn_qkv", "attn_q"), is_fused("ffn_up", "ffn_gate")) {
            (true, _) if is_dense => &DENSE_FUSED_QKV,
            (false, _) if is_dense => &DENSE,
            (true, true) => &FUSED,
            (true, false) => &FUSED_QKV_ALONE,
            (false, true) => &FUSED_UP_ALONE,
            (false, false) => &NAMES,
        }
    }

    /// Phi-3: a window in every layer.
    fn phi3(&self, config: &mut DecoderConfig) -> Result<()> {
        let masks = self.masks(0)?;
        config.transformer.layers.iter_mut().zip(masks).for_each(|(layer, mask)| layer.mask = mask);
        Ok(())
    }

    /// GPT-OSS: a window in every other layer; as in llama.cpp, the bound of the gated networks is in no file.
    fn gpt_oss(&self, config: &mut DecoderConfig) -> Result<()> {
        let experts = gpt_oss::Experts {
            intermediate: self.required("expert_feed_forward_length")?,
            count: self.required("expert_count")?,
            chosen: self.required("expert_used_count")?,
            limit: 7.0,
        };
        gpt_oss::shape(config, &experts);
        let masks = self.masks(2)?;
        config.transformer.layers.iter_mut().zip(masks).for_each(|(layer, mask)| layer.mask = mask);
        Ok(())
    }

    /// Gemma 3, as in safetensors, but that norms have their factors whole.
    fn gemma3(&self, config: &mut DecoderConfig) -> Result<()> {
        config.logit_cap =
            self.float("final_logit_softcapping").filter(|cap| *cap != 0.0).map(|cap| cap as f32);
        config.embeddings = Embeddings::Scaled((config.width() as f64).sqrt() as f32);
        let context = config.context;
        let transformer = &mut config.transformer;
        let (width, attention) = (transformer.width, &mut transformer.attention);
        // The largest of them scales by its width, the others by their heads' size; files tell it only by their depth.
        let scaled = match self.layers {
            62 => width / attention.heads.max(1),
            _ => attention.head_size,
        };
        // As in llama.cpp, `attention.scale` counts for nothing.
        attention.scale = (1.0 / (scaled as f64).sqrt()) as f32;
        attention.head_norms = HeadNorms::EachHead;
        transformer.activation = Activation::GeluTanh;
        transformer.norm_placement = NormPlacement::Sandwich;
        let rotated = self.optional("rope.dimension_count")?.unwrap_or(attention.head_size);
        transformer.ropes.push(self.sliding_rope(Sizes { rotated, context })?);
        for (layer, mask) in transformer.layers.iter_mut().zip(self.masks(6)?) {
            layer.mask = mask;
            if mask != AttentionMask::Causal {
                layer.rope = Some(1);
            }
        }
        Ok(())
    }
}
