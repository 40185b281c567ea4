//! Qwen2 as embedder: GTE-Qwen2 (Li et al., 2023) and Stella en 1.5B v5, whose own code lets tokens see their
//! whole text, and others that keep to what comes before. The two are told apart by `is_causal`, and
//! without it by whether the configuration names that code; one that names other code is refused, since it does not tell.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::Architecture;
use super::decoding::{AttentionDirection, Embedder};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::unsupported;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "qwen2",
    architectures: &["Qwen2ForCausalLM", "Qwen2Model"],
    read: |file, config| {
        Ok(Box::new(Embedder::read(file, config, direction(file, config, Some(OWN_CODE))?)?))
    },
};

/// The code that GTE-Qwen2 and Stella are published with.
pub(super) const OWN_CODE: &str = "modeling_qwen.Qwen2Model";

/// Attention settings of `config.json`.
#[derive(Deserialize)]
struct Attention {
    is_causal: Option<bool>,
    #[serde(default)]
    auto_map: Option<BTreeMap<String, Value>>,
}

/// The attention of an embedder, of whose repositories' own code `both_ways` has tokens see everything.
///
/// # Errors
/// [`Error::UnsupportedSetting`](crate::Error::UnsupportedSetting) for other code in a repository that does not say what is
/// seen.
pub(super) fn direction(file: &Path, config: &Value, both_ways: Option<&str>) -> Result<AttentionDirection> {
    let Attention { is_causal, auto_map } = parse(file, config)?;
    let code = auto_map.as_ref().and_then(|map| map.get("AutoModel")).filter(|code| !code.is_null());
    match (is_causal, code) {
        (Some(true), _) | (None, None) => Ok(AttentionDirection::Causal),
        (Some(false), _) => Ok(AttentionDirection::Bidirectional),
        (None, Some(code)) => {
            // Code of another repository has its name in front.
            let name = code.as_str().and_then(|code| code.rsplit("--").next());
            if name.is_some() && name == both_ways {
                return Ok(AttentionDirection::Bidirectional);
            }
            let found = code.as_str().map_or_else(|| code.to_string(), str::to_owned);
            Err(unsupported(file, "auto_map", &found, "transformers' own code, or with is_causal"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tokens_see_everything_where_the_configuration_or_its_code_says_so() {
        let direction = |config| direction(Path::new("config.json"), &config, Some(OWN_CODE)).unwrap();
        assert_eq!(direction(json!({})), AttentionDirection::Causal);
        assert_eq!(direction(json!({"is_causal": false})), AttentionDirection::Bidirectional);
        let code = json!({"AutoModel": "modeling_qwen.Qwen2Model"});
        assert_eq!(direction(json!({"auto_map": code})), AttentionDirection::Bidirectional);
        assert_eq!(direction(json!({"auto_map": code, "is_causal": true})), AttentionDirection::Causal);
        let elsewhere = json!({"AutoModel": "owner/name--modeling_qwen.Qwen2Model"});
        assert_eq!(direction(json!({"auto_map": elsewhere})), AttentionDirection::Bidirectional);
        for code in [json!({"AutoModel": null}), json!({"AutoModelForCausalLM": "modeling_x.X"})] {
            assert_eq!(direction(json!({"auto_map": code})), AttentionDirection::Causal);
        }
    }
}
