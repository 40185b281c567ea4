//! Decoders in GGUF files: from the metadata to a configuration and a table of the tensors' names. The meaning of each
//! architecture's metadata follows llama.cpp, which the format comes from; what is computed follows transformers.

mod metadata;
mod experts;
mod rope;
mod tensors;
mod gemma;
mod delta_net;
#[cfg(test)]
mod tests;

use candle_core::Device;
use model_actors::LoadContext;

use super::config::{DecoderConfig, Embeddings, Head, LlamaSizes, llama_blocks};
use super::load;
use super::model::{Decoder, Logits};
use super::names::{DecoderNames, LLAMA, PHI, PHI3};
use super::{gpt_oss, phi};
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::kernels::delta_net::ValueOrder;
use crate::kernels::packed::Arithmetic;
use crate::kernels::rotary::QueryGrowth;
use crate::kernels::{Activation, AttentionMask};
use crate::models::config_file::unsupported;
use crate::models::transformer::{
    ExpertNames, FeedForwardConfig, HeadNorms, MatrixOrder, Names, QkvNames, Tensors as _, UpNames,
    layer_count,
};
pub(crate) use metadata::Metadata;
use rope::Sizes;
use tensors::GgufTensors;

/// The architectures, in the order that errors list them.
const ARCHITECTURES: [(&str, Architecture); 17] = [
    ("llama", Architecture::Llama),
    ("mistral3", Architecture::Mistral3),
    ("smollm3", Architecture::SmolLm3),
    ("qwen2", Architecture::Qwen2),
    ("qwen2vl", Architecture::Qwen2Vl),
    ("qwen2moe", Architecture::Qwen2Moe),
    ("qwen3", Architecture::Qwen3),
    ("qwen3moe", Architecture::Qwen3Moe),
    ("qwen3next", Architecture::Qwen3Next),
    ("qwen35", Architecture::Qwen35),
    ("qwen35moe", Architecture::Qwen35Moe),
    ("phi2", Architecture::Phi2),
    ("phi3", Architecture::Phi3),
    ("gemma", Architecture::Gemma),
    ("gemma2", Architecture::Gemma2),
    ("gemma3", Architecture::Gemma3),
    ("gpt-oss", Architecture::GptOss),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Architecture {
    /// Mixtral as well, which has a number of experts.
    Llama,
    /// The text half of Mistral 3, and Ministral 3.
    Mistral3,
    SmolLm3,
    Qwen2,
    /// The text half of Qwen2-VL and Qwen2.5-VL.
    Qwen2Vl,
    Qwen2Moe,
    Qwen3,
    Qwen3Moe,
    Qwen3Next,
    Qwen35,
    Qwen35Moe,
    Phi2,
    Phi3,
    Gemma,
    Gemma2,
    Gemma3,
    GptOss,
}

impl Architecture {
    /// True where the rows of queries and keys are in llama.cpp's own order.
    fn is_permuted(self) -> bool {
        matches!(self, Self::Llama | Self::Mistral3 | Self::SmolLm3)
    }

    /// Names of the modules in the reference implementation.
    fn modules(self) -> &'static DecoderNames {
        match self {
            Self::Phi2 => &PHI,
            Self::Phi3 => &PHI3,
            _ => &LLAMA,
        }
    }

    fn may_have_experts(self) -> bool {
        let without_nets = matches!(self, Self::Llama | Self::Qwen2Moe | Self::Qwen3Moe | Self::GptOss);
        without_nets || matches!(self, Self::Qwen3Next | Self::Qwen35Moe)
    }
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
/// Those of mixtures of experts, whose matrices are in one tensor for each place.
const EXPERTS: DecoderNames = DecoderNames {
    blocks: Names {
        router: "ffn_gate_inp",
        experts: ExpertNames::Stacked {
            up: UpNames::Separate { gate: "ffn_gate_exps", up: "ffn_up_exps" },
            up_order: MatrixOrder::Outputs,
            down: "ffn_down_exps",
            down_order: MatrixOrder::Outputs,
            bias: "",
        },
        // Of the expert that sees every token.
        up: UpNames::Separate { gate: "ffn_gate_shexp", up: "ffn_up_shexp" },
        down: "ffn_down_shexp",
        shared_gate: "ffn_gate_inp_shexp",
        ..NAMES.blocks
    },
    ..NAMES
};
const GPT_OSS: DecoderNames = DecoderNames {
    blocks: Names { sinks: "attn_sinks.weight", feed_forward_norm: "post_attention_norm", ..EXPERTS.blocks },
    ..EXPERTS
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
            Architecture::Llama if metadata.has_experts()? => metadata.mixtral(&mut config)?,
            // Biases are read where a file has them.
            Architecture::Llama | Architecture::Qwen2 | Architecture::Qwen2Vl => {}
            Architecture::Mistral3 => metadata.mistral3(&mut config)?,
            // No file tells the layers without positions.
            Architecture::SmolLm3 => {
                config.transformer.layers.iter_mut().skip(3).step_by(4).for_each(|layer| layer.rope = None);
            }
            Architecture::Qwen2Moe => metadata.qwen2_moe(&mut config)?,
            Architecture::Qwen3 => config.transformer.attention.head_norms = HeadNorms::EachHead,
            Architecture::Qwen3Moe => {
                config.transformer.attention.head_norms = HeadNorms::EachHead;
                metadata.qwen3_moe(&mut config)?;
            }
            Architecture::Qwen3Next => {
                metadata.qwen3_next_moe(&mut config)?;
                metadata.delta_nets(&mut config, ValueOrder::Grouped)?;
            }
            Architecture::Qwen35 => metadata.delta_nets(&mut config, ValueOrder::Tiled)?,
            Architecture::Qwen35Moe => {
                metadata.qwen3_next_moe(&mut config)?;
                metadata.delta_nets(&mut config, ValueOrder::Tiled)?;
            }
            Architecture::Phi2 => {
                phi::shape(&mut config);
                config.transformer.activation = Activation::GeluTanh;
            }
            Architecture::Phi3 => metadata.phi3(&mut config)?,
            Architecture::Gemma => gemma::shape(&mut config),
            Architecture::Gemma2 => metadata.gemma2(&mut config)?,
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
            (_, architecture) if architecture.is_permuted() => Some(self.transformer.attention.head_size),
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
        let has_experts = self.has_experts()?;
        if has_experts && !architecture.may_have_experts() {
            return Err(self.file.invalid(format!("{} has no mixture of experts", self.name)));
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
        if !has_experts {
            let lengths = "feed_forward_length";
            let lengths = self.of_layers(lengths)?.ok_or_else(|| self.missing(lengths))?;
            for (layer, intermediate) in blocks.layers.iter_mut().zip(lengths) {
                layer.feed_forward = FeedForwardConfig::Gated { intermediate };
            }
        }
        let context = self.required("context_length")?;
        let rotated = self.optional("rope.dimension_count")?.unwrap_or(head_size);
        if architecture.is_permuted() {
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
            names: self.names(architecture, has_experts),
            modules: Some(architecture.modules()),
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

    /// The tensors' names: files fuse projections or not, whatever their architecture; permuted rows and those of mixtures
    /// of experts are never fused.
    fn names(&self, architecture: Architecture, has_experts: bool) -> &'static DecoderNames {
        let is_fused = |fused: &str, part: &str| {
            let has = |name: &str| self.file.contains(&format!("blk.0.{name}.weight"));
            !architecture.is_permuted() && has(fused) && !has(part)
        };
        let is_dense = architecture == Architecture::Phi2;
        let is_old = || self.file.contains("blk.0.ssm_in.weight");
        match architecture {
            Architecture::GptOss => return &GPT_OSS,
            Architecture::Qwen3Next if is_old() => return &delta_net::OLD_QWEN3_NEXT,
            Architecture::Qwen3Next => return &delta_net::QWEN3_NEXT,
            Architecture::Qwen35 => return &delta_net::QWEN3_5,
            Architecture::Qwen35Moe => return &delta_net::QWEN3_5_MOE,
            _ => {}
        }
        if has_experts {
            return &EXPERTS;
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

    /// Mistral 3: queries that grow with the position, and a part of YaRN's attention factor.
    fn mistral3(&self, config: &mut DecoderConfig) -> Result<()> {
        let beta = self.float("attention.temperature_scale").filter(|beta| *beta != 0.0);
        let original = self.optional("rope.scaling.original_context_length")?.unwrap_or(config.context);
        let original = u32::try_from(original).ok().filter(|original| *original > 0);
        let growth = match (beta, original) {
            (None, _) => None,
            (Some(beta), Some(original)) if beta.is_finite() => {
                Some(QueryGrowth { beta: beta as f32, original })
            }
            _ => {
                let reason =
                    "attention.temperature_scale or rope.scaling.original_context_length is no usable number";
                return Err(self.file.invalid(reason.to_owned()));
            }
        };
        let divisor = self.yarn_divisor();
        for rope in &mut config.transformer.ropes {
            let long = rope.long.as_mut().map(|(_, long)| long);
            for frequencies in [Some(&mut rope.frequencies), long].into_iter().flatten() {
                frequencies.query_growth = growth;
                frequencies.attention_factor /= divisor as f32;
            }
        }
        Ok(())
    }

    /// Phi-3: a window in every layer.
    fn phi3(&self, config: &mut DecoderConfig) -> Result<()> {
        let masks = self.masks(0, 0)?;
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
        let masks = self.masks(0, 2)?;
        config.transformer.layers.iter_mut().zip(masks).for_each(|(layer, mask)| layer.mask = mask);
        Ok(())
    }
}
