//! Log probabilities as OpenAI's two endpoints for text have them.

use candle_actors::{TokenLogprob, TokenLogprobs};
use serde_json::{Map, Value, json};

/// Those of a chat: an object for each token, with the most probable ones in its place.
pub(crate) fn of_chat(tokens: &[TokenLogprobs]) -> Value {
    let tokens = tokens.iter().map(|token| {
        let mut chosen = token_of_chat(&token.chosen);
        if let Some(fields) = chosen.as_object_mut() {
            let top: Vec<Value> = token.top.iter().map(token_of_chat).collect();
            fields.insert("top_logprobs".to_owned(), top.into());
        }
        chosen
    });
    json!({ "content": tokens.collect::<Vec<_>>(), "refusal": null })
}

fn token_of_chat(token: &TokenLogprob) -> Value {
    json!({ "token": token.text(), "logprob": token.logprob, "bytes": token.bytes })
}

/// Those of a completion: a list for each property. `offset` is the number of characters before the first token, and is
/// moved behind the last.
pub(crate) fn of_completion(tokens: &[TokenLogprobs], offset: &mut usize) -> Value {
    let offsets: Vec<usize> = tokens
        .iter()
        .map(|token| {
            let next = *offset + token.chosen.text().chars().count();
            std::mem::replace(offset, next)
        })
        .collect();
    let top = |token: &TokenLogprobs| {
        let pairs = token.top.iter().map(|token| (token.text().into_owned(), json!(token.logprob)));
        Value::Object(pairs.collect::<Map<_, _>>())
    };
    json!({
        "tokens": tokens.iter().map(|token| token.chosen.text()).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.chosen.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}
