//! Tokenizer from the metadata of a GGUF file: the one that transformers would make of the same vocabulary. What its tokens
//! are written as follows from their kinds.

mod splits;
#[cfg(test)]
mod tests;

use ahash::AHashMap;
use serde_json::{Value, json};
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};

use super::template::SpecialTokens;
use crate::gguf::{GgufTokenizer, TokenKind};
use crate::tokens::{MAX_ADDED_TOKENS, MAX_MERGES, MAX_TOKENS, Pieces, Tokens, byte_of, letters_to_bytes};
use splits::Split;

/// Maximum number of bytes of a piece that others merge to; no vocabulary has longer ones.
const MAX_PIECE: usize = 256;

/// Builds the tokenizer of a file.
///
/// # Errors
/// A sentence about the setting that is not supported or makes no sense.
pub(crate) fn tokens_of(gguf: &GgufTokenizer) -> Result<Tokens, String> {
    check_size(gguf, gguf.merges.len())?;
    let parts = match gguf.model.as_str() {
        "gpt2" => byte_level(gguf)?,
        "llama" => sentence_piece(gguf)?,
        other => {
            return Err(format!("the tokenizer model {other:?} is not supported; supported are gpt2, llama"));
        }
    };
    let steps = json!({
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.split,
        "post_processor": post_processor(gguf),
        "decoder": parts.decoder,
    });
    let tokens = Tokens::of_bpe(parts.model, steps, added_tokens(gguf)?)?.written_by(pieces(gguf));
    Ok(match special_tokens_of(gguf).bos {
        Some(beginning) if begins(gguf) => tokens.around_chats(beginning),
        _ => tokens,
    })
}

/// Refuses a vocabulary with so many merges that is larger than that of a `tokenizer.json` may be.
fn check_size(gguf: &GgufTokenizer, merges: usize) -> Result<(), String> {
    let tokens = gguf.tokens.len();
    if tokens > MAX_TOKENS {
        return Err(format!("it has {tokens} tokens; at most {MAX_TOKENS} are allowed"));
    }
    if merges > MAX_MERGES.saturating_sub(tokens / 3) {
        return Err(format!(
            "it has {merges} merges for {tokens} tokens; at most {MAX_MERGES} are allowed, less one for three tokens"
        ));
    }
    Ok(())
}

/// The text of each token, as `token_to_piece` of llama.cpp writes it.
fn pieces(gguf: &GgufTokenizer) -> Pieces {
    let sentence_piece = gguf.model == "llama";
    let piece = |(id, token): (usize, &String)| -> Vec<u8> {
        match gguf.kind(id) {
            TokenKind::Control | TokenKind::Unknown | TokenKind::Unused => Vec::new(),
            TokenKind::UserDefined => token.clone().into_bytes(),
            TokenKind::Byte => byte_of(token).map_or_else(|| token.clone().into_bytes(), |byte| vec![byte]),
            TokenKind::Normal if sentence_piece => token.replace('▁', " ").into_bytes(),
            TokenKind::Normal => letters_to_bytes(token),
        }
    };
    let pieces = gguf.tokens.iter().enumerate().map(|token| piece(token).into_boxed_slice());
    Pieces::new(pieces.collect(), sentence_piece && gguf.adds_space.unwrap_or(true))
}

/// Special tokens that chat templates write by name.
pub(crate) fn special_tokens_of(gguf: &GgufTokenizer) -> SpecialTokens {
    let name = |id: Option<u32>| gguf.tokens.get(id? as usize).cloned();
    SpecialTokens {
        bos: name(gguf.beginning),
        eos: name(gguf.end),
        unk: name(gguf.unknown),
        pad: name(gguf.padding),
        ..SpecialTokens::default()
    }
}

/// The model, and the sections of `tokenizer.json` that differ between the two kinds of tokenizer.
struct Parts {
    normalizer: Value,
    split: Value,
    decoder: Value,
    model: BpeBuilder,
}

fn vocabulary(gguf: &GgufTokenizer) -> Vocab {
    gguf.tokens.iter().cloned().zip(0..).collect()
}

/// The pre-tokenizer that a file of byte-level BPE names.
fn split(gguf: &GgufTokenizer) -> Result<Split, String> {
    match gguf.pre.as_deref() {
        // llama.cpp takes a split of its own then, which no model was trained with, and warns of bad texts.
        None | Some("" | "default") => {
            Err("it does not say how its tokenizer splits text (tokenizer.ggml.pre), as files made before May 2024 do \
                 not; take a newer file of the model, or load the directory that holds this one and the model's \
                 tokenizer.json"
                .to_owned())
        }
        Some(name) => Split::named(name).ok_or_else(|| {
            let supported = splits::names().collect::<Vec<_>>().join(", ");
            format!("the split {name:?} of its tokenizer is not supported; supported are {supported}")
        }),
    }
}

/// Byte-level BPE, with the merges of the file.
fn byte_level(gguf: &GgufTokenizer) -> Result<Parts, String> {
    let split = split(gguf)?;
    let is_word =
        |(id, token): (usize, &String)| gguf.kind(id) == TokenKind::Normal && token.chars().nth(1).is_some();
    if gguf.merges.is_empty() && gguf.tokens.iter().enumerate().any(is_word) {
        return Err(
            "it lists no merges (tokenizer.ggml.merges), without which no word of it is found; take another \
                    file of the model"
                .to_owned(),
        );
    }
    let pair = |merge: &String| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => Err(format!("the merge {merge:?} is no pair")),
    };
    let merges: Merges = gguf.merges.iter().map(pair).collect::<Result<_, _>>()?;
    let model = BPE::builder().vocab_and_merges(vocabulary(gguf), merges).ignore_merges(split.whole_words);
    let normalizer = if split.composes { json!({"type": "NFC"}) } else { Value::Null };
    let decoder =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    Ok(Parts { normalizer, split: split.written(), decoder, model })
}

/// BPE of SentencePiece, whose merges follow from the scores.
fn sentence_piece(gguf: &GgufTokenizer) -> Result<Parts, String> {
    let prefix = gguf.adds_space.unwrap_or(true);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let begin = prefix.then(|| json!({"type": "Prepend", "prepend": "▁"}));
    let normalizers: Vec<Value> = begin.into_iter().chain([spaces]).collect();
    let strip = prefix.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let decoders = [
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let decoders: Vec<Value> = decoders.into_iter().chain(strip).collect();
    let unknown = (0..gguf.tokens.len()).find(|id| gguf.kind(*id) == TokenKind::Unknown);
    let unknown = gguf.unknown.map(|id| id as usize).or(unknown).and_then(|id| gguf.tokens.get(id));
    let model = BPE::builder().vocab_and_merges(vocabulary(gguf), merges_by_score(gguf)?);
    let model = model.fuse_unk(true).byte_fallback(true);
    let model = match unknown {
        Some(unknown) => model.unk_token(unknown.clone()),
        None => model,
    };
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        split: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model,
    })
}

/// Lists every pair of pieces that make another piece, those of the highest scores first: SentencePiece
/// merges the pair whose result has the highest score, BPE the pair that is listed first.
fn merges_by_score(gguf: &GgufTokenizer) -> Result<Merges, String> {
    let is_piece =
        |id: usize| matches!(gguf.kind(id), TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused);
    let pieces: AHashMap<&str, usize> = gguf
        .tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| is_piece(*id))
        .map(|(id, token)| (token.as_str(), id))
        .collect();
    let mut found = Vec::new();
    for (id, token) in gguf.tokens.iter().enumerate().filter(|(id, _)| is_piece(*id)) {
        if token.len() > MAX_PIECE {
            continue;
        }
        let score = gguf.scores.get(id).copied().unwrap_or(0.0);
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(first), Some(second)) = (pieces.get(left), pieces.get(right)) {
                found.push((score, *first, *second, left, right));
            }
        }
        check_size(gguf, found.len())?;
    }
    // No two are the same pair.
    found.sort_unstable_by(|left, right| {
        right.0.total_cmp(&left.0).then((left.1, left.2).cmp(&(right.1, right.2)))
    });
    Ok(found.into_iter().map(|(_, _, _, left, right)| (left.to_owned(), right.to_owned())).collect())
}

/// Tokens that are matched in text before the model runs (`added_tokens`).
fn added_tokens(gguf: &GgufTokenizer) -> Result<Vec<AddedToken>, String> {
    let named = [gguf.beginning, gguf.end, gguf.end_of_turn, gguf.unknown, gguf.padding];
    let added = |(id, token): (usize, &String)| {
        let special = match gguf.kind(id) {
            TokenKind::Control | TokenKind::Unknown => true,
            TokenKind::UserDefined => false,
            TokenKind::Normal if gguf.kinds.is_empty() => {
                named.into_iter().flatten().any(|named| named as usize == id).then_some(true)?
            }
            TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => return None,
        };
        let strips =
            gguf.strips_after_special && !["<unk>", "<s>", "<|endoftext|>"].contains(&token.as_str());
        Some(AddedToken::from(token.clone(), special).normalized(false).rstrip(strips))
    };
    // No more of them are built than tell that there are too many.
    let added: Vec<AddedToken> =
        gguf.tokens.iter().enumerate().filter_map(added).take(MAX_ADDED_TOKENS + 1).collect();
    if added.len() > MAX_ADDED_TOKENS {
        return Err(format!("more than {MAX_ADDED_TOKENS} of its tokens are special or defined by its user"));
    }
    Ok(added)
}

/// True if a text begins with the token of the beginning. Where the file does not say, llama.cpp's own answer holds.
fn begins(gguf: &GgufTokenizer) -> bool {
    let split_begins = || gguf.pre.as_deref().and_then(Split::named).is_some_and(|split| split.begins);
    gguf.adds_beginning.unwrap_or_else(|| gguf.model == "llama" || split_begins())
}

/// Post-processor that puts the tokens of beginning and end around a text, where the file asks for it.
fn post_processor(gguf: &GgufTokenizer) -> Value {
    let first = gguf.beginning.filter(|_| begins(gguf));
    let last = gguf.end.filter(|_| gguf.adds_end.unwrap_or(false));
    let name = |id: u32| gguf.tokens.get(id as usize).cloned().unwrap_or_default();
    let token = |id: u32| json!({"SpecialToken": {"id": name(id), "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let around = |id: &str| -> Vec<Value> {
        first.map(token).into_iter().chain([text(id)]).chain(last.map(token)).collect()
    };
    if first.is_none() && last.is_none() {
        return Value::Null;
    }
    let entry = |id: u32| (name(id), json!({"id": name(id), "ids": [id], "tokens": [name(id)]}));
    let special: serde_json::Map<String, Value> = first.into_iter().chain(last).map(entry).collect();
    let pair: Vec<Value> = around("A").into_iter().chain(around("B")).collect();
    json!({"type": "TemplateProcessing", "single": around("A"), "pair": pair, "special_tokens": special})
}
