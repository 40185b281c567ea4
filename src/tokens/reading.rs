//! Tokenizers read from the bytes of a `tokenizer.json`, or put together. Those of BPE take no detour through a tree of JSON
//! of the whole file, by which the `tokenizers` crate finds the kind of a model: with 262,144 tokens it takes longer than
//! all else of a load. What they compute is the crate's own. Bounds on what they make of a text are left to `output_bounds`.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::bpe::{BPE, BpeBuilder};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PaddingParams, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer, TokenizerBuilder, TruncationParams,
};

use super::output_bounds::{check_added, check_growth, check_size, guarded};

/// The version of files that there is.
const VERSION: &str = "1.0";

/// The steps before and after the model, as `tokenizer.json` has them.
#[derive(Deserialize)]
struct Steps {
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
}

/// A `tokenizer.json` whose model is BPE.
#[derive(Deserialize)]
struct File {
    #[serde(default = "first_version")]
    version: String,
    truncation: Option<TruncationParams>,
    padding: Option<PaddingParams>,
    #[serde(default)]
    added_tokens: Vec<Numbered>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
    model: BPE,
}

fn first_version() -> String {
    VERSION.to_owned()
}

/// An added token, whose number the vocabulary has too.
#[derive(Deserialize)]
struct Numbered {
    #[serde(rename = "id")]
    _id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

/// The tokenizer that the bytes of a `tokenizer.json` describe, which is not checked yet:
/// see [`OutputBounds::of`](super::OutputBounds::of). It may panic.
///
/// # Errors
/// A sentence that names the fault.
pub(super) fn read(file: &[u8]) -> Result<Tokenizer, String> {
    check_size(file)?;
    check_added(file)?;
    let is_known = |file: &File| file.version == VERSION;
    let Some(file) = serde_json::from_slice(file).ok().filter(is_known) else {
        return Tokenizer::from_bytes(file).map_err(|error| error.to_string());
    };
    let File { normalizer, pre_tokenizer, post_processor, decoder, model, added_tokens, .. } = file;
    let steps = Steps { normalizer, pre_tokenizer, post_processor, decoder };
    let added = added_tokens.into_iter().map(|added| added.token).collect();
    assembled(model, steps, (file.truncation, file.padding), added)
}

/// Puts a tokenizer together. `steps` are those of a `tokenizer.json` around its model.
///
/// # Errors
/// A sentence that names the fault.
pub(super) fn put_together(
    model: BpeBuilder,
    steps: Value,
    added: Vec<AddedToken>,
) -> Result<Tokenizer, String> {
    guarded(|| {
        let steps: Steps = serde_json::from_value(steps).map_err(|error| error.to_string())?;
        let bytes = added.iter().map(|token| token.content.len()).sum();
        check_growth(steps.normalizer.as_ref(), bytes)?;
        assembled(model.build().map_err(|error| error.to_string())?, steps, (None, None), added)
    })
}

/// In the order of the crate's own reader.
fn assembled(
    model: BPE,
    steps: Steps,
    (truncation, padding): (Option<TruncationParams>, Option<PaddingParams>),
    added: Vec<AddedToken>,
) -> Result<Tokenizer, String> {
    let words = |error: tokenizers::Error| error.to_string();
    let builder = TokenizerBuilder::new()
        .with_model(model)
        .with_normalizer(steps.normalizer)
        .with_pre_tokenizer(steps.pre_tokenizer)
        .with_post_processor(steps.post_processor)
        .with_decoder(steps.decoder)
        .with_truncation(truncation)
        .with_padding(padding);
    let mut tokenizer: Tokenizer = builder.build().map_err(words)?.into();
    tokenizer.add_tokens(added).map_err(words)?;
    Ok(tokenizer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::path::Path;

    use super::*;

    /// Every fixture's tokenizer is the one that the crate reads.
    #[test]
    fn what_is_read_is_what_the_crate_reads() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_to_text");
        let mut count = 0;
        for folder in std::fs::read_dir(fixtures).unwrap() {
            let Ok(file) = std::fs::read(folder.unwrap().path().join("tokenizer.json")) else { continue };
            let own = read(&file).unwrap();
            let theirs = Tokenizer::from_bytes(&file).unwrap();
            assert_eq!(own.to_string(false).unwrap(), theirs.to_string(false).unwrap());
            count += usize::from(serde_json::from_slice::<File>(&file).is_ok());
        }
        assert!(count > 10, "{count} are BPE");
    }

    #[test]
    fn a_file_of_another_kind_or_version_is_left_to_the_crate() {
        let word_piece = r#"{"version": "1.0", "model": {"type": "WordPiece", "unk_token": "x", "continuing_subword_prefix": "", "max_input_chars_per_word": 9, "vocab": {"x": 0}}}"#;
        assert_eq!(read(word_piece.as_bytes()).unwrap().get_vocab_size(true), 1);
        let newer = r#"{"version": "2.0", "model": {"type": "BPE", "vocab": {"x": 0}, "merges": []}}"#;
        assert!(read(newer.as_bytes()).unwrap_err().contains("2.0"));
        // Added tokens have numbers, and a truncation that leaves no room is no fault here.
        let model = r#""model": {"type": "BPE", "vocab": {"x": 0}, "merges": []}"#;
        let added = |id: &str| {
            format!(
                r#"{{"added_tokens": [{{{id} "content": "y", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}}], {model}}}"#
            )
        };
        assert!(read(added("").as_bytes()).is_err());
        assert_eq!(read(added(r#""id": 1,"#).as_bytes()).unwrap().token_to_id("y"), Some(1));
        let cut = format!(
            r#"{{"truncation": {{"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 4}}, {model}}}"#
        );
        assert_eq!(read(cut.as_bytes()).unwrap().get_truncation().unwrap().stride, 4);
        let broken = r#"{"model": {"type": "BPE", "vocab": {"x": 0}, "merges": [["x", "y"]]}}"#;
        assert!(read(broken.as_bytes()).is_err());
    }
}
