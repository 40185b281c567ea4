//! Qwen3-Embedding (Zhang et al., 2025): Qwen3, of which the last token's vector is taken. Its tokenizer ends
//! each text, and its instructions are prompts like any other.

use super::Architecture;
use super::decoding::Embedder;
use super::qwen2::{OWN_CODE, direction};
use crate::architecture::Family;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "qwen3",
    architectures: &["Qwen3ForCausalLM", "Qwen3Model"],
    read: |file, config| {
        Ok(Box::new(Embedder::read(file, config, direction(file, config, Some(OWN_CODE))?)?))
    },
};

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::super::decoding::AttentionDirection;
    use super::super::qwen2;
    use super::*;
    use crate::error::Error;

    #[test]
    fn code_of_which_the_attention_is_not_known_is_refused() {
        let file = Path::new("config.json");
        let others = ["modeling_x.BiQwen3Model", "not_modeling_qwen.Qwen2Model"].map(|code| json!(code));
        for code in others.into_iter().chain([json!(["modeling_qwen.Qwen2Model", null])]) {
            let config = json!({"auto_map": {"AutoModel": code}});
            for read in [qwen2::FAMILY.read, FAMILY.read] {
                let refused = read(file, &config).err().unwrap();
                assert!(
                    matches!(&refused, Error::UnsupportedSetting { what, .. } if what == "auto_map"),
                    "{refused}"
                );
            }
            let config = json!({"auto_map": {"AutoModel": code}, "is_causal": false});
            assert_eq!(direction(file, &config, Some(OWN_CODE)).unwrap(), AttentionDirection::Bidirectional);
        }
    }
}
