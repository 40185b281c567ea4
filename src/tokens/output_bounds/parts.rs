//! Worst-case growth of a text in each part of a tokenizer, as it stands in `tokenizer.json`. Refuses parts
//! that no model needs; bounding the growth of one text is left to `output_bounds`.

use serde::Serialize;
use serde_json::Value;
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessor as _, PostProcessorWrapper, PreTokenizerWrapper,
};

/// Largest growth of a normalizer, in bytes for each byte. The worst cases of published models' steps multiply to some
/// thousands (ALBERT).
pub(super) const MAX_NORMALIZED: usize = 16_384;
/// Largest growth of a split or a decoder, in bytes for each byte; published models reach 4.
pub(super) const MAX_SPLIT: usize = 16;
/// Most special tokens around a text, and most pieces of a template.
const MAX_ADDED: usize = 64;

fn written(part: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(part).map_err(|error| error.to_string())
}

/// Worst-case growth in a part of a tokenizer, in bytes for each byte.
fn factor(name: &str, part: Option<&impl Serialize>, most: usize) -> Result<usize, String> {
    let factor = part.map(written).transpose()?.map_or(1, |part| of_step(&part));
    match factor <= most {
        true => Ok(factor),
        false => Err(format!("its {name} can make {factor} bytes of one; at most {most} are allowed")),
    }
}

/// Worst-case growth in each step of a normalizer.
///
/// # Errors
/// A sentence, if all of them together make too much.
pub(super) fn normalizer(normalizer: Option<&NormalizerWrapper>) -> Result<Vec<usize>, String> {
    factor("normalizer", normalizer, MAX_NORMALIZED)?;
    let steps = normalizer.map(steps).unwrap_or_default();
    steps.into_iter().map(|step| written(step).map(|step| of_step(&step))).collect()
}

/// Worst-case growth in a split.
///
/// # Errors
/// A sentence, if that is too much or the split would panic.
pub(super) fn split(split: Option<&PreTokenizerWrapper>) -> Result<usize, String> {
    split.map(|split| check_split(&written(split)?)).transpose()?;
    factor("split", split, MAX_SPLIT)
}

/// Worst-case growth in a decoder, for each byte of a token.
///
/// # Errors
/// A sentence, if that is too much.
pub(super) fn decoder(decoder: Option<&DecoderWrapper>) -> Result<usize, String> {
    factor("decoder", decoder, MAX_SPLIT)
}

/// Refuses a template that would write the text more than once, or too many tokens around it.
///
/// # Errors
/// A sentence that names the fault.
pub(super) fn check_post_processor(processor: &PostProcessorWrapper) -> Result<(), String> {
    check_templates(&written(processor)?)?;
    match processor.added_tokens(false) {
        added if added > MAX_ADDED => {
            Err(format!("it adds {added} tokens to a text; at most {MAX_ADDED} are allowed"))
        }
        _ => Ok(()),
    }
}

/// A normalizer's steps, one after another.
pub(super) fn steps(normalizer: &NormalizerWrapper) -> Vec<&NormalizerWrapper> {
    match normalizer {
        NormalizerWrapper::Sequence(several) => several.as_ref().iter().flat_map(steps).collect(),
        one => vec![one],
    }
}

/// Worst-case growth in a step, steps within it one after another.
fn of_step(step: &Value) -> usize {
    let text = |name: &str| step.get(name).and_then(Value::as_str).unwrap_or_default();
    match text("type") {
        "Sequence" => {
            let steps = ["normalizers", "pretokenizers", "decoders"].into_iter();
            let steps = steps.filter_map(|name| step.get(name)?.as_array()).flatten();
            steps.map(of_step).fold(1, usize::saturating_mul)
        }
        "Replace" => {
            let content = text("content").len();
            match step.pointer("/pattern/String").and_then(Value::as_str) {
                Some(pattern) if !pattern.is_empty() => content.div_ceil(pattern.len()).max(1),
                // It may find nothing at all on both sides of a letter.
                _ => content.saturating_mul(2).saturating_add(1),
            }
        }
        // Before each part of a text, of which each byte may be one.
        "Prepend" => text("prepend").len().saturating_add(1),
        "Metaspace" => text("replacement").len().saturating_add(1),
        // Two bytes for one, and for the space in front; to decode, the sign for what is no text.
        "ByteLevel" => 4,
        "Precompiled" => longest_entry(text("precompiled_charsmap")).max(1),
        // The longest that Unicode's tables have, in UTF-8.
        "NFKC" | "NFKD" => 11,
        "NFC" | "NFD" => 3,
        "Lowercase" => 2,
        // Spaces around Chinese letters, then NFD, then small letters.
        "BertNormalizer" => 12,
        // A space between words; one for a sign, which may be empty and so on both sides of a letter.
        "WordPiece" => 2,
        "BPEDecoder" | "CTC" => 3,
        // The others leave out, cut, or put one sign for another.
        _ => 1,
    }
}

/// Bytes of the longest text of a map of characters as SentencePiece writes it: the size of a trie, the trie,
/// and texts with a zero after each.
fn longest_entry(map: &str) -> usize {
    use base64::Engine as _;
    let Ok(map) = base64::prelude::BASE64_STANDARD.decode(map) else { return usize::MAX };
    let Some((size, rest)) = map.split_first_chunk::<4>() else { return 1 };
    let texts = rest.get(u32::from_le_bytes(*size) as usize..).unwrap_or_default();
    texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(1)
}

/// Refuses a split into pieces of no letters, as the tokenizer would find out by a panic.
fn check_split(split: &Value) -> Result<(), String> {
    if split["type"] == "FixedLength" && split["length"].as_u64() == Some(0) {
        return Err("its split cuts a text into pieces of no letters".to_owned());
    }
    split["pretokenizers"].as_array().into_iter().flatten().try_for_each(check_split)
}

/// Refuses templates that the tokenizer could not apply to one text, as it would find out by a panic, or that
/// write it more than once.
fn check_templates(processor: &Value) -> Result<(), String> {
    let mut templates = Vec::new();
    find_templates(processor, &mut templates);
    let [template] = templates.as_slice() else {
        return match templates.len() {
            0 => Ok(()),
            // What the first leaves is pieces, which the next would take for texts.
            several => Err(format!("its post-processor has {several} templates")),
        };
    };
    let pieces = template["single"].as_array().map(Vec::as_slice).unwrap_or_default();
    if pieces.len() > MAX_ADDED {
        return Err(format!("its template has {} pieces; at most {MAX_ADDED} are allowed", pieces.len()));
    }
    let texts = pieces.iter().filter(|piece| piece.get("Sequence").is_some()).count();
    if texts > 1 || pieces.iter().any(|piece| piece["Sequence"]["id"] == "B") {
        return Err(format!("its template for one text has places for {texts}, or for a second one"));
    }
    for name in pieces.iter().filter_map(|piece| piece["SpecialToken"]["id"].as_str()) {
        let count = |list: &str| template["special_tokens"][name][list].as_array().map(Vec::len);
        if count("ids").is_none() || count("ids") != count("tokens") {
            return Err(format!("its template names the special token {name:?}, which it does not explain"));
        }
    }
    Ok(())
}

fn find_templates<'a>(processor: &'a Value, found: &mut Vec<&'a Value>) {
    if processor.get("single").is_some() {
        found.push(processor);
    }
    for step in processor.get("processors").and_then(Value::as_array).into_iter().flatten() {
        find_templates(step, found);
    }
}
