//! Phi-3 and Phi-4: queries, keys and values in one tensor, gate and up in another, and a rotary embedding
//! that has other frequencies for long texts.

use std::path::Path;

use serde_json::{Value, json};

use super::config::DecoderConfig;
use super::names::PHI3;
use super::settings::Settings;
use crate::architecture::Family;
use crate::error::Result;

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "phi3", architectures: &["Phi3ForCausalLM", "Phi3Model"], read };

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let mut settings = Settings::read(file, config, defaults())?.window_of_family().partial_rotary();
    for form in [&mut settings.rope.rope_scaling, &mut settings.rope.rope_parameters].into_iter().flatten() {
        rename_yarn(form);
    }
    let base = settings.decoder(file, |_| true)?;
    DecoderConfig { names: &PHI3, ..base }.checked(file)
}

/// Older revisions of the models with long contexts call LongRoPE `yarn`, and the reference implementation reads it so.
fn rename_yarn(form: &mut Value) {
    for name in ["type", "rope_type"] {
        if let Some(kind) = form.get_mut(name).filter(|kind| *kind == "yarn") {
            *kind = json!("longrope");
        }
    }
}

fn defaults() -> Value {
    json!({
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5
    })
}
