//! Llama and Mistral as embedders (E5-Mistral, SFR, Linq and others): decoders, of which mostly the last token's vector
//! is taken. Tokens see what comes before them, unless `is_causal` says otherwise; a repository whose own code may have
//! them see everything is refused, since its configuration does not tell.

use std::path::Path;

use serde_json::Value;

use super::Architecture;
use super::decoding::Embedder;
use super::qwen2::direction;
use crate::architecture::Family;
use crate::error::Result;

/// The families' entries in the list.
pub(super) const LLAMA: Family<Box<dyn Architecture>> = family("llama", &["LlamaModel", "LlamaForCausalLM"]);
pub(super) const MISTRAL: Family<Box<dyn Architecture>> =
    family("mistral", &["MistralModel", "MistralForCausalLM"]);

const fn family(
    model_type: &'static str,
    architectures: &'static [&'static str],
) -> Family<Box<dyn Architecture>> {
    Family { model_type, architectures, read: |file, config| Ok(Box::new(read(file, config)?)) }
}

fn read(file: &Path, config: &Value) -> Result<Embedder> {
    Embedder::read(file, config, direction(file, config, None)?)
}
