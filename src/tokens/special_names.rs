//! Names of the tokens that `tokenizer_config.json` calls special. transformers adds them to those of `tokenizer.json`,
//! which may call the same tokens ordinary.

use model_actors::LoadContext;
use serde_json::Value;

use crate::error::Result;
use crate::source::Files;

const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Reads them; none without the file. What is no token's name there is left out.
///
/// # Errors
/// Those of reading the file.
pub(crate) fn special_names(files: &Files, context: &LoadContext) -> Result<Vec<String>> {
    let config: Option<Value> = files.optional_json("tokenizer_config.json", context)?;
    Ok(config.as_ref().map(names).unwrap_or_default())
}

fn names(config: &Value) -> Vec<String> {
    let named = NAMED.iter().filter_map(|name| config.get(name));
    let lists = ["additional_special_tokens", "extra_special_tokens"];
    let listed = lists.iter().filter_map(|list| config.get(list)).flat_map(values);
    let added = config.get("added_tokens_decoder").into_iter().flat_map(values);
    let special = added.filter(|token| token.get("special") == Some(&Value::Bool(true)));
    let text = |token: &Value| token.get("content").unwrap_or(token).as_str().map(str::to_owned);
    named.chain(listed).chain(special).filter_map(text).collect()
}

fn values(list: &Value) -> Vec<&Value> {
    match list {
        Value::Array(list) => list.iter().collect(),
        Value::Object(table) => table.values().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_that_the_settings_call_special_are_found_in_all_their_forms() {
        let config = json!({
            "bos_token": "a", "eos_token": {"content": "b"}, "pad_token": null, "model_max_length": 9,
            "additional_special_tokens": ["c", {"content": "d"}, 7], "extra_special_tokens": {"image": "e"},
            "added_tokens_decoder": {"1": {"content": "f", "special": true}, "2": {"content": "g", "special": false}},
        });
        assert_eq!(names(&config), ["a", "b", "c", "d", "e", "f"]);
        assert!(names(&json!([])).is_empty() && names(&json!({"added_tokens_decoder": 1})).is_empty());
    }
}
