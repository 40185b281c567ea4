//! Qwen2 as embedder: GTE-Qwen2 (Li et al., 2023) and Stella en 1.5B v5, whose own code lets tokens see their
//! whole text, and others that keep to what comes before. The two are told apart by `is_causal`, and
//! without it by whether the configuration names that code.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::Architecture;
use super::decoding::{AttentionDirection, Embedder};
use crate::architecture::{Family, parse};
use crate::error::Result;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "qwen2",
    architectures: &["Qwen2ForCausalLM", "Qwen2Model"],
    read: |file, config| Ok(Box::new(Embedder::read(file, config, direction(file, config)?)?)),
};

/// The code that GTE-Qwen2 and Stella are published with.
const OWN_CODE: &str = "modeling_qwen.Qwen2Model";

/// Attention settings of `config.json`.
#[derive(Deserialize)]
struct Attention {
    is_causal: Option<bool>,
    #[serde(default)]
    auto_map: Option<BTreeMap<String, Value>>,
}

pub(super) fn direction(file: &Path, config: &Value) -> Result<AttentionDirection> {
    let Attention { is_causal, auto_map } = parse(file, config)?;
    let code = auto_map.as_ref().and_then(|map| map.get("AutoModel")).and_then(Value::as_str);
    let both_ways = code.is_some_and(|code| code.ends_with(OWN_CODE));
    Ok(if is_causal.unwrap_or(!both_ways) {
        AttentionDirection::Causal
    } else {
        AttentionDirection::Bidirectional
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tokens_see_everything_where_the_configuration_or_its_code_says_so() {
        let direction = |config| direction(Path::new("config.json"), &config).unwrap();
        assert_eq!(direction(json!({})), AttentionDirection::Causal);
        assert_eq!(direction(json!({"is_causal": false})), AttentionDirection::Bidirectional);
        let code = json!({"AutoModel": "modeling_qwen.Qwen2Model"});
        assert_eq!(direction(json!({"auto_map": code})), AttentionDirection::Bidirectional);
        assert_eq!(direction(json!({"auto_map": code, "is_causal": true})), AttentionDirection::Causal);
    }
}
