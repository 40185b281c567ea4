//! Long texts, of which no more is tokenized than it takes to know what becomes of them: one that is cut to a few
//! hundred tokens is read up to there, and a prompt that cannot fit is refused by its bytes, or once enough of its
//! tokens are counted.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{ModelWrapper, Tokenizer};

use super::output_bounds::boundary;

/// Bytes of a text that is tokenized at once, however many tokens are wanted.
const PIECE: usize = 16 << 10;
/// Bytes that are read for each token that is wanted; words have fewer.
const BYTES_PER_TOKEN: usize = 16;
/// Tokens that a cut may add, of the word that it goes through and of what is put before each piece.
const LOST: usize = 64;

/// Factor by which a beginning of too few tokens grows, so that all beginnings are little beside the whole.
const GROWTH: usize = 8;

/// The tokens of a text that the tokenizer cuts to `longest`. A beginning counts for all of it once another of twice its
/// length is cut to the same tokens.
///
/// # Errors
/// Those of `encode`.
pub(super) fn encode_cut(
    text: &str,
    longest: usize,
    encode: impl Fn(&str) -> Result<Vec<u32>, String>,
) -> Result<Vec<u32>, String> {
    let mut bytes = longest.saturating_mul(BYTES_PER_TOKEN).max(PIECE);
    let mut shorter = None;
    while bytes < text.len() {
        let ids = encode(text.get(..boundary(text, bytes)).unwrap_or(text))?;
        if ids.len() >= longest && shorter.as_ref() == Some(&ids) {
            return Ok(ids);
        }
        let is_enough = ids.len() >= longest;
        shorter = Some(ids);
        bytes = bytes.saturating_mul(if is_enough { 2 } else { GROWTH });
        // Of a text of few tokens, a beginning that is most of it would be read for nothing.
        if !is_enough && bytes > text.len() / 2 {
            break;
        }
    }
    encode(text)
}

/// Number of tokens in the pieces of a text, up to the piece in which there are more than `limit` and [`LOST`] for each cut:
/// the whole has a few less. Nothing if there are not so many, or the text is short.
///
/// # Errors
/// Those of `count`.
pub(super) fn count_beyond(
    text: &str,
    limit: usize,
    count: impl Fn(&str) -> Result<usize, String>,
) -> Result<Option<usize>, String> {
    let (mut most, mut tokens, mut rest) = (limit, 0usize, text);
    while text.len() > 2 * PIECE && !rest.is_empty() {
        let (piece, after) = rest.split_at(boundary(rest, PIECE));
        (tokens, most) = (tokens.saturating_add(count(piece)?), most.saturating_add(LOST));
        if tokens > most {
            return Ok(Some(tokens));
        }
        rest = after;
    }
    Ok(None)
}

/// Most bytes of a text for each of its tokens, for a tokenizer that leaves nothing out: then a text of more bytes has
/// more tokens. Nothing for one that may leave out spaces, say, or take any word that it does not know for one token.
/// `vocabulary` has its tokens, the added ones included.
pub(super) fn bytes_per_token(tokenizer: &Tokenizer, vocabulary: &HashMap<String, u32>) -> Option<usize> {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
    let normalizer = tokenizer.get_normalizer().map(serde_json::to_value).transpose().ok()?;
    let split = tokenizer.get_pre_tokenizer().map(serde_json::to_value).transpose().ok()?;
    let knows = |token: String| tokenizer.token_to_id(&token).is_some();
    let is_byte_level = is_byte_level(normalizer.as_ref()) || is_byte_level(split.as_ref());
    let knows_all_bytes = is_byte_level && ByteLevel::alphabet().into_iter().map(String::from).all(knows)
        || model.byte_fallback && (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")).all(knows);
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    let takes_spaces = added.values().any(|token| token.lstrip || token.rstrip);
    if !knows_all_bytes || takes_spaces || !split.as_ref().is_none_or(keeps_all) {
        return None;
    }
    let shrinks = normalizer.as_ref().map_or(Some(1), shrinking)?;
    // Each letter of such a token stands for a byte of the text.
    let length = |token: &String| if is_byte_level { token.chars().count() } else { token.len() };
    let own = vocabulary.keys().map(length).max()?;
    let longest = added.values().map(|token| token.content.len()).fold(own, usize::max);
    longest.checked_mul(shrinks)
}

fn parts<'a>(step: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    step[list].as_array().into_iter().flatten()
}

fn is_byte_level(step: Option<&Value>) -> bool {
    step.is_some_and(|step| {
        let mut steps = parts(step, "pretokenizers").chain(parts(step, "normalizers"));
        step["type"] == "ByteLevel" || steps.any(|step| is_byte_level(Some(step)))
    })
}

/// True for a split that leaves nothing out.
fn keeps_all(split: &Value) -> bool {
    match split["type"].as_str() {
        Some("ByteLevel" | "Metaspace" | "Digits") => true,
        Some("Split") => split["behavior"] != "Removed",
        Some("Sequence") => parts(split, "pretokenizers").all(keeps_all),
        _ => false,
    }
}

/// Bytes of a text that a normalizer makes one of, at most.
fn shrinking(normalizer: &Value) -> Option<usize> {
    match normalizer["type"].as_str()? {
        "Prepend" | "ByteLevel" => Some(1),
        // Three letters of a Korean syllable become one.
        "NFC" => Some(3),
        "Replace" => {
            let pattern = normalizer["pattern"]["String"].as_str()?;
            let content = normalizer["content"].as_str()?;
            (content.len() >= pattern.len()).then_some(1)
        }
        "Sequence" => {
            parts(normalizer, "normalizers").try_fold(1usize, |all, step| all.checked_mul(shrinking(step)?))
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A token for each word, and a number of bytes that were read.
    fn words(text: &str, read: &Cell<usize>) -> Vec<u32> {
        read.set(read.get() + text.len());
        text.split_whitespace().map(|word| word.len() as u32).collect()
    }

    #[test]
    fn a_text_that_is_cut_is_read_as_far_as_that_and_has_the_tokens_of_the_whole() {
        for (text, most_read) in [
            ("word ".repeat(200_000), 200_000),
            ("  ".repeat(100_000) + &"word and ".repeat(1000), 260_000),
            // Few tokens of much text: not much more is read than once.
            (" ".repeat(1 << 20), (1 << 20) * 5 / 4),
            ("é".repeat(1 << 19), (1 << 20) * 5 / 4),
            ("é".repeat(500_000), 1_250_000),
            ("a ".repeat(10), 20),
        ] {
            let read = Cell::new(0);
            let cut = |text: &str| Ok(words(text, &read).into_iter().take(256).collect());
            let whole: Vec<u32> = words(&text, &Cell::new(0)).into_iter().take(256).collect();
            assert_eq!(encode_cut(&text, 256, cut).unwrap(), whole);
            assert!(read.get() <= most_read.min(3 * text.len()), "{} of {}", read.get(), text.len());
        }
    }

    #[test]
    fn counting_ends_a_little_beyond_the_limit_and_short_texts_are_not_counted() {
        let read = Cell::new(0);
        let count = |text: &str| Ok(words(text, &read).len());
        let counted = count_beyond(&"é a ".repeat(1 << 20), 100, count).unwrap();
        assert!(counted.unwrap() > 200 && read.get() <= PIECE, "{counted:?}, {}", read.get());
        // Less than twice the limit, in 20 pieces.
        let words_of_all = 1 << 17;
        for (limit, is_refused) in [(100_000, true), (words_of_all, false), (1 << 18, false)] {
            let counted = count_beyond(&"é a ".repeat(words_of_all / 2), limit, count).unwrap();
            assert_eq!(counted.is_some(), is_refused, "{limit}: {counted:?}");
        }
        read.set(0);
        assert_eq!(count_beyond(&"a ".repeat(1000), 1, count).unwrap(), None);
        assert_eq!(read.get(), 0);
        assert_eq!(count_beyond(&"word".repeat(1 << 16), 1, count).unwrap(), None);
    }
    #[test]
    fn tokens_of_bytes_are_as_long_as_their_bytes() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_to_text");
        for (name, factor) in [("llama", 1), ("qwen2", 3)] {
            let file = std::fs::read(root.join(name).join("tokenizer.json")).unwrap();
            let mut file: Value = serde_json::from_slice(&file).unwrap();
            file["model"]["vocab"]["Ġ".repeat(64)] = 9999.into();
            let tokenizer = Tokenizer::from_bytes(serde_json::to_vec(&file).unwrap()).unwrap();
            assert_eq!(bytes_per_token(&tokenizer, &tokenizer.get_vocab(true)), Some(64 * factor), "{name}");
            // A space is a letter of two bytes there, which stands for one.
            let text = " ".repeat(10_000);
            let tokens = tokenizer.encode(text.as_str(), false).unwrap().len();
            assert!(
                tokens >= text.len() / bytes_per_token(&tokenizer, &tokenizer.get_vocab(true)).unwrap(),
                "{name}: {tokens}"
            );
        }
    }
}
