//! SentencePiece models, which are protobuf files, as the `tokenizer.json` that transformers makes of them: Unigram for
//! XLM-RoBERTa and T5, BPE for Llama, and by the model's own settings for other classes.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use prost::bytes::Buf as _;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use serde_json::{Map, Value, json};

use super::output_bounds::MAX_MERGES;
use super::settings::{Class, TokenizerSettings};

/// Maximum number of pieces; XLM-V has 901,629.
const MAX_PIECES: usize = 1 << 20;
/// Maximum number of bytes of a piece that others merge to; no vocabulary has longer ones.
const MAX_MERGED: usize = 256;
/// Sign for a space.
const SPACE: &str = "▁";

#[derive(Clone, PartialEq, prost::Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    /// 1 is an ordinary piece, 2 what is unknown, 3 a control token, 4 a token of the user, 5 unused, 6 a byte.
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Trainer {
    /// 1 is Unigram, 2 BPE.
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
    #[prost(string, optional, tag = "45")]
    unk_piece: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

impl Piece {
    fn text(&self) -> &str {
        self.piece.as_deref().unwrap_or_default()
    }

    fn points(&self) -> f64 {
        f64::from(self.score.unwrap_or_default())
    }

    fn sort(&self) -> i32 {
        self.kind.unwrap_or(1)
    }
}

/// The `tokenizer.json` of a model's bytes.
///
/// # Errors
/// A sentence about bytes that are no such model, and about one that is too large.
pub(super) fn tokenizer(bytes: &[u8], settings: &TokenizerSettings) -> Result<Value, String> {
    let model = read(bytes)?;
    let [begin, end] = ["bos_token", "eos_token"].map(|name| settings.token(name));
    let added: Vec<Value> =
        model.pieces.iter().zip(0u32..).filter_map(|(piece, id)| added(piece, id)).collect();
    let parts = match settings.class {
        Class::Llama => llama(&model, settings)?,
        Class::XlmRoberta => {
            let names = ["<s>", "<pad>", "</s>", "<unk>"].map(|name| (name.to_owned(), 0.0));
            let pieces = model.pieces.iter().skip(3).map(|piece| (piece.text().to_owned(), piece.points()));
            let mask = std::iter::once(("<mask>".to_owned(), 0.0));
            let vocabulary = names.into_iter().chain(pieces).chain(mask).collect();
            unigram(&model, vocabulary, 3, false)
        }
        Class::T5 => {
            let pieces = model.pieces.iter().map(|piece| (piece.text().to_owned(), piece.points()));
            let count = settings.number("extra_ids").unwrap_or(100).min(MAX_EXTRA);
            let extra = (0..count).rev().map(|at| (format!("<extra_id_{at}>"), 0.0));
            unigram(&model, pieces.chain(extra).collect(), 2, false)
        }
        _ => plain(&model, settings)?,
    };
    let adds = |name: &str, token: Option<String>| token.filter(|_| settings.truth(name) == Some(true));
    let around = match settings.class {
        Class::T5 => [None, end],
        _ => [adds("add_bos_token", begin), adds("add_eos_token", end)],
    };
    let post_processor = post_processor(&parts.model, around)?;
    // Of the classes that number their pieces otherwise, the settings name them all.
    let added = if settings.class == Class::XlmRoberta { Vec::new() } else { added };
    Ok(json!({
        "version": "1.0", "added_tokens": added, "normalizer": parts.normalizer, "pre_tokenizer": parts.split,
        "post_processor": post_processor, "decoder": parts.decoder, "model": parts.model,
    }))
}

/// Maximum number of tokens beside the pieces that T5 counts.
const MAX_EXTRA: usize = 1000;

/// Sections of `tokenizer.json` that differ between the classes.
struct Parts {
    normalizer: Value,
    split: Value,
    decoder: Value,
    model: Value,
}

fn read(bytes: &[u8]) -> Result<Model, String> {
    let invalid = |error: prost::DecodeError| format!("it is no SentencePiece model: {error}");
    // An empty piece takes two bytes of the file and far more of memory.
    let (mut rest, mut pieces) = (bytes, 0usize);
    while rest.has_remaining() {
        let (tag, wire) = decode_key(&mut rest).map_err(invalid)?;
        skip_field(wire, tag, &mut rest, DecodeContext::default()).map_err(invalid)?;
        pieces += usize::from(tag == 1);
        if pieces > MAX_PIECES {
            return Err(format!("it has more than {MAX_PIECES} pieces, the most that are allowed"));
        }
    }
    let model = Model::decode(bytes).map_err(invalid)?;
    if model.pieces.is_empty() {
        return Err("it is no SentencePiece model: it has no pieces".to_owned());
    }
    Ok(model)
}

/// Control tokens are special, those of the user are matched too.
fn added(piece: &Piece, id: u32) -> Option<Value> {
    matches!(piece.sort(), 3 | 4).then(|| {
        json!({
            "id": id, "content": piece.text(), "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": piece.sort() == 3,
        })
    })
}

fn metaspace(scheme: &str, split: bool) -> Value {
    json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split})
}

/// Where a space is put before a text: before each part between added tokens, before the first alone, or nowhere.
fn scheme(prefix: bool, legacy: bool) -> &'static str {
    match (prefix, legacy) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    }
}

fn vocabulary(model: &Model) -> Map<String, Value> {
    model.pieces.iter().zip(0u32..).map(|(piece, id)| (piece.text().to_owned(), id.into())).collect()
}

fn charsmap(model: &Model) -> Option<Value> {
    let map = model.normalizer.as_ref()?.precompiled_charsmap.as_ref().filter(|map| !map.is_empty())?;
    Some(json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(map)}))
}

/// BPE of Llama, whose merges follow from the order of the pieces.
fn llama(model: &Model, settings: &TokenizerSettings) -> Result<Parts, String> {
    let prefix = settings.truth("add_prefix_space").unwrap_or(true);
    let legacy = settings.truth("legacy").unwrap_or(false);
    let strip = prefix.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let decoders = [replaced_space(), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    let ranks = |_: &Piece, id: usize| (0.0, id);
    Ok(Parts {
        normalizer: Value::Null,
        split: metaspace(scheme(prefix, legacy), false),
        decoder: json!({"type": "Sequence", "decoders": decoders.into_iter().chain(strip).collect::<Vec<_>>()}),
        model: bpe(model, merges(model, |_| true, ranks)?, None, true, false),
    })
}

fn replaced_space() -> Value {
    json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "})
}

fn bpe(model: &Model, merges: Vec<Value>, unknown: Option<&str>, bytes: bool, whole: bool) -> Value {
    json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": bytes, "ignore_merges": whole,
        "vocab": vocabulary(model), "merges": merges,
    })
}

/// Lists every pair of pieces that make another one, in the order of the ranks of what they make.
fn merges(
    model: &Model,
    is_merged: impl Fn(&Piece) -> bool,
    rank: impl Fn(&Piece, usize) -> (f64, usize),
) -> Result<Vec<Value>, String> {
    let pieces = || model.pieces.iter().enumerate().filter(|(_, piece)| is_merged(piece));
    let ids: HashMap<&str, usize> = pieces().map(|(id, piece)| (piece.text(), id)).collect();
    let mut found = Vec::new();
    for (id, piece) in pieces().filter(|(_, piece)| piece.text().len() <= MAX_MERGED) {
        for (at, _) in piece.text().char_indices().skip(1) {
            let (left, right) = piece.text().split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                found.push((rank(piece, id), left, right));
            }
        }
        if found.len() > MAX_MERGES {
            return Err(format!("its pieces merge in more than {MAX_MERGES} ways"));
        }
    }
    let letters = |text: &str| text.chars().count();
    found.sort_by(|(a, left, right), (b, other_left, other_right)| {
        let lengths = (letters(left), letters(right)).cmp(&(letters(other_left), letters(other_right)));
        a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(lengths)
    });
    Ok(found.into_iter().map(|(_, left, right)| json!([left, right])).collect())
}

fn unigram(model: &Model, vocabulary: Vec<(String, f64)>, unknown: usize, bytes: bool) -> Parts {
    let space = metaspace("always", true);
    Parts {
        normalizer: charsmap(model).unwrap_or_default(),
        split: json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]}),
        decoder: metaspace("always", true),
        model: json!({"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": bytes}),
    }
}

/// By the settings that the model has itself, as SentencePiece encodes.
fn plain(model: &Model, settings: &TokenizerSettings) -> Result<Parts, String> {
    let trainer = model.trainer.clone().unwrap_or_default();
    let rules = model.normalizer.clone().unwrap_or_default();
    let bytes = trainer.byte_fallback.unwrap_or(false);
    let prefix = rules.add_dummy_prefix.unwrap_or(true);
    let legacy = settings.truth("legacy").unwrap_or(true);
    if model.pieces.iter().any(|piece| piece.sort() == 4) {
        return Err(
            "it has tokens of its users and a class of tokenizers that is not known; take a tokenizer.json \
                    of the model"
                .to_owned(),
        );
    }
    let replace =
        |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let regex = |pattern: &str| json!({"Regex": pattern});
    let mut normalizers: Vec<Value> = charsmap(model).into_iter().collect();
    if rules.remove_extra_whitespaces.unwrap_or(true) {
        normalizers.push(replace(regex(r"\A +| +\z"), ""));
        normalizers.push(replace(regex(" {2,}"), " "));
    }
    if rules.escape_whitespaces.unwrap_or(true) {
        normalizers.push(replace(json!({"String": " "}), SPACE));
    }
    if prefix && legacy {
        normalizers.push(replace(regex(r"\A▁"), "▁▁"));
    }
    let mut decoders = vec![replaced_space()];
    if bytes {
        decoders.push(json!({"type": "ByteFallback"}));
    }
    if prefix || bytes {
        decoders.push(json!({"type": "Fuse"}));
    }
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = usize::try_from(trainer.unk_id.unwrap_or_default()).unwrap_or_default();
    let is_normal = |piece: &Piece| piece.sort() == 1;
    let model = match trainer.model_type.unwrap_or(1) {
        1 => {
            let pieces = model.pieces.iter().map(|piece| (piece.text(), piece.points()));
            let vocabulary: Vec<(&str, f64)> = pieces.collect();
            json!({"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": bytes})
        }
        2 => {
            let merges = merges(model, is_normal, |piece, id| (-piece.points(), id))?;
            let unknown = trainer.unk_piece.as_deref().unwrap_or("<unk>");
            bpe(model, merges, Some(unknown), bytes, false)
        }
        other => return Err(format!("its model has the kind {other}; supported are Unigram, 1, and BPE, 2")),
    };
    let split = if prefix { metaspace(scheme(true, legacy), false) } else { Value::Null };
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        split,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model,
    })
}

/// Puts tokens around each text.
fn post_processor(model: &Value, around: [Option<String>; 2]) -> Result<Value, String> {
    let id = |token: &String| {
        let at = match model.get("vocab") {
            Some(Value::Object(vocabulary)) => vocabulary.get(token).and_then(Value::as_u64),
            Some(Value::Array(pieces)) => {
                let named = |piece: &Value| piece.get(0).and_then(Value::as_str) == Some(token);
                pieces.iter().position(named).map(|at| at as u64)
            }
            _ => None,
        };
        at.ok_or_else(|| format!("it lacks the token {token:?}, which is to stand around each text"))
    };
    let [begin, end] = around;
    if begin.is_none() && end.is_none() {
        return Ok(Value::Null);
    }
    let token = |token: &String| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let with = |id: &str| -> Vec<Value> {
        begin.iter().map(token).chain([text(id)]).chain(end.iter().map(token)).collect()
    };
    let special: Map<String, Value> = begin
        .iter()
        .chain(&end)
        .map(|token| Ok((token.clone(), json!({"id": token, "ids": [id(token)?], "tokens": [token]}))))
        .collect::<Result<_, String>>()?;
    let pair: Vec<Value> = with("A").into_iter().chain(with("B")).collect();
    Ok(json!({"type": "TemplateProcessing", "single": with("A"), "pair": pair, "special_tokens": special}))
}
