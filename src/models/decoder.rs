//! Decoder-only language models: text to text, text embedding and vision all run on them. The differences
//! between families are data, a [`DecoderConfig`], which a family's file makes from `config.json` or from the
//! metadata of a GGUF file; the blocks are those of `transformer`. Weights are shared; each sequence has a
//! cache of its own. Sampling, tokenizing and pooling are left to the capabilities.

mod names;
mod config;
mod settings;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3n;
mod gpt_oss;
mod llama;
mod mistral;
mod phi;
mod phi3;
mod phimoe;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod qwen3_next;
mod qwen3_5;
mod smollm3;
mod model;
mod load;
mod gguf;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod prefix_tests;
#[cfg(test)]
mod settings_tests;
#[cfg(test)]
mod speed;

use crate::architecture::Family;
pub(crate) use config::{DecoderConfig, Embeddings, Head};
#[cfg(feature = "transformers")]
pub(crate) use gguf::Metadata;
pub(crate) use model::Decoder;
pub(crate) use names::{DecoderNames, QWEN3_VL_MOE};

/// The families, in the order that errors list them. A new one is its file and its line here.
pub(crate) const FAMILIES: &[Family<DecoderConfig>] = &[
    llama::FAMILY,
    smollm3::FAMILY,
    qwen2::FAMILY,
    qwen2_moe::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
    qwen3_next::FAMILY,
    qwen3_5::FAMILY,
    qwen3_5::WITH_EXPERTS,
    qwen3_5::WITH_IMAGES,
    qwen3_5::EXPERTS_WITH_IMAGES,
    phi::FAMILY,
    phi3::FAMILY,
    phimoe::FAMILY,
    mistral::FAMILY,
    mistral::ALTERNATING,
    mistral::MINISTRAL3,
    mistral::WITH_IMAGES,
    gemma::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    gemma3::WITH_IMAGES,
    gemma3n::FAMILY,
    gemma3n::WITH_IMAGES,
    gpt_oss::FAMILY,
];
