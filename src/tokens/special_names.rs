//! Tokens that `tokenizer_config.json` and `special_tokens_map.json` call special. transformers adds them to those of
//! `tokenizer.json`, which may call the same tokens ordinary, or lack them.

use model_actors::LoadContext;
use serde_json::Value;

use crate::error::Result;
use crate::source::Files;

/// Reads the names of special tokens; none without the files. What is no token's name there is left out.
///
/// # Errors
/// Those of reading the files.
pub(crate) fn special_names(files: &Files, context: &LoadContext) -> Result<Vec<String>> {
    Ok(names(&config(files, "", context)?))
}

/// The token that has this name in a folder's files, `mask_token` say.
///
/// # Errors
/// Those of reading the files.
pub(crate) fn named_token(
    files: &Files,
    folder: &str,
    name: &str,
    context: &LoadContext,
) -> Result<Option<String>> {
    let config = config(files, folder, context)?;
    let token = config.get(name).map(|token| token.get("content").unwrap_or(token));
    Ok(token.and_then(Value::as_str).map(str::to_owned))
}

/// `tokenizer_config.json` of a folder, over which the tokens of `special_tokens_map.json` go unless it lists added tokens
/// itself, as in transformers.
///
/// # Errors
/// Those of reading the files.
pub(super) fn config(files: &Files, folder: &str, context: &LoadContext) -> Result<Value> {
    let json = |name: &str| files.optional_json::<Value>(&format!("{folder}{name}"), context);
    let mut config = json("tokenizer_config.json")?.unwrap_or_default();
    if config.get("added_tokens_decoder").is_some() {
        return Ok(config);
    }
    let Some(Value::Object(map)) = json("special_tokens_map.json")? else { return Ok(config) };
    match &mut config {
        Value::Object(config) => config.extend(map),
        config => *config = Value::Object(map),
    }
    Ok(config)
}

/// The tokens that have a name of their own, and those of the lists: their texts, or tables with these.
pub(super) fn tokens(config: &Value) -> Vec<&Value> {
    let is_token = |token: &Value| token.is_string() || token.get("content").is_some();
    let table = config.as_object().into_iter().flatten();
    let named = table.filter(|(name, token)| name.ends_with("_token") && is_token(token));
    let lists = ["additional_special_tokens", "extra_special_tokens"];
    let listed = lists.iter().filter_map(|list| config.get(list)).flat_map(values);
    named.map(|(_, token)| token).chain(listed).collect()
}

fn names(config: &Value) -> Vec<String> {
    let added = config.get("added_tokens_decoder").into_iter().flat_map(values);
    let special = added.filter(|token| token.get("special") == Some(&Value::Bool(true)));
    let text = |token: &Value| token.get("content").unwrap_or(token).as_str().map(str::to_owned);
    tokens(config).into_iter().chain(special).filter_map(text).collect()
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
            "bos_token": "a", "eos_token": {"content": "b"}, "image_token": "h", "pad_token": null,
            "add_eos_token": true, "model_max_length": 9,
            "additional_special_tokens": ["c", {"content": "d"}, 7], "extra_special_tokens": {"image": "e"},
            "added_tokens_decoder": {"1": {"content": "f", "special": true}, "2": {"content": "g", "special": false}},
        });
        let mut found = names(&config);
        found.sort_unstable();
        assert_eq!(found, ["a", "b", "c", "d", "e", "f", "h"]);
        assert!(names(&json!([])).is_empty() && names(&json!({"added_tokens_decoder": 1})).is_empty());
    }
}
