//! Tokenizer of prompts to token ids of one fixed length, as text to image models are trained: truncated, or
//! padded with tokens that the model attends to. Older repositories have CLIP's vocabulary and merges in
//! place of a `tokenizer.json`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer, TruncationParams};

use super::repository::Repository;
use crate::error::{Error, Result};
use crate::source::{read_config, read_json};
use crate::tokens::{OutputBounds, Specials, open};

/// Maximum number of tokens of a prompt, special tokens included.
const MAX_PROMPT: usize = 4096;
/// Maximum number of merges of CLIP's tokenizer, which has 48,894.
const MAX_MERGES: usize = 1 << 18;
/// Pre-tokenizer of CLIP.
const CLIP_PATTERN: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Token in a configuration file: its text, or an object with it.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum TokenEntry {
    Text(String),
    Added { content: String },
}

impl TokenEntry {
    fn text(self) -> String {
        match self {
            Self::Text(content) | Self::Added { content } => content,
        }
    }
}

/// `tokenizer_config.json` and `special_tokens_map.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    model_max_length: Option<f64>,
    bos_token: Option<TokenEntry>,
    eos_token: Option<TokenEntry>,
    unk_token: Option<TokenEntry>,
    pad_token: Option<TokenEntry>,
    added_tokens_decoder: Option<serde_json::Value>,
}

impl TokenizerConfig {
    /// Takes over the special tokens of `special_tokens_map.json`, unless the configuration lists added
    /// tokens itself.
    fn with_special_tokens(self, map: Self) -> Self {
        if self.added_tokens_decoder.is_some() {
            return self;
        }
        Self {
            bos_token: map.bos_token.or(self.bos_token),
            eos_token: map.eos_token.or(self.eos_token),
            unk_token: map.unk_token.or(self.unk_token),
            pad_token: map.pad_token.or(self.pad_token),
            ..self
        }
    }
}

enum TokenizerFile {
    Whole(PathBuf),
    /// `vocab.json` and `merges.txt` of CLIP.
    Parts {
        vocabulary: PathBuf,
        merges: PathBuf,
    },
}

/// Files of a tokenizer, found but not read.
pub(super) struct TokenizerFiles {
    file: TokenizerFile,
    config: TokenizerConfig,
}

impl TokenizerFiles {
    /// Finds the tokenizer in a folder, whose name ends with a slash.
    pub(super) fn find(repository: &Repository<'_>, folder: &str) -> Result<Self> {
        let Repository { files, context, .. } = *repository;
        let file = match files.optional(&format!("{folder}tokenizer.json"), context)? {
            Some(path) => TokenizerFile::Whole(path),
            None => TokenizerFile::Parts {
                vocabulary: files.required(&format!("{folder}vocab.json"), context)?,
                merges: files.required(&format!("{folder}merges.txt"), context)?,
            },
        };
        let read = |name: &str| files.optional_json::<TokenizerConfig>(&format!("{folder}{name}"), context);
        let config = read("tokenizer_config.json")?.unwrap_or_default();
        let map = read("special_tokens_map.json")?.unwrap_or_default();
        Ok(Self { file, config: config.with_special_tokens(map) })
    }

    /// Tokens of a prompt by `model_max_length`; those of CLIP without it.
    pub(super) fn max_length(&self) -> usize {
        self.config.model_max_length.map_or(77, |length| (length as usize).min(MAX_PROMPT))
    }

    /// Reads the tokenizer, for prompts of `length` tokens, special ones included.
    ///
    /// # Errors
    /// [`Error::InvalidTokenizer`] for files that make no tokenizer and for a length that has no room for a prompt.
    pub(super) fn read(&self, length: usize) -> Result<PromptTokens> {
        let path = match &self.file {
            TokenizerFile::Whole(path) => path,
            TokenizerFile::Parts { vocabulary, .. } => vocabulary,
        };
        let invalid = |reason: String| Error::InvalidTokenizer { file: path.clone(), reason };
        let mut tokenizer = match &self.file {
            TokenizerFile::Whole(path) => open(path)?,
            TokenizerFile::Parts { vocabulary, merges } => {
                let words = read_json::<HashMap<String, u32>>(vocabulary);
                let words = words.map_err(|error| as_tokenizer(error, vocabulary))?;
                let merges = read_merges(merges)?;
                self.build_clip(words, merges).map_err(|error| invalid(error.to_string()))?
            }
        };
        let output_bounds = OutputBounds::of(&tokenizer).map_err(invalid)?;
        let special = {
            use tokenizers::PostProcessor as _;
            tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false))
        };
        if !(special + 1..=MAX_PROMPT).contains(&length) {
            let least = special + 1;
            let reason =
                format!("prompts of {length} tokens are asked for; {least} to {MAX_PROMPT} are allowed");
            return Err(invalid(reason));
        }
        let truncation = TruncationParams { max_length: length, ..TruncationParams::default() };
        tokenizer.with_padding(None);
        tokenizer.with_truncation(Some(truncation)).map_err(|error| invalid(error.to_string()))?;
        let pad = text_of(&self.config.pad_token, END);
        let pad = tokenizer
            .token_to_id(&pad)
            .ok_or_else(|| invalid(format!("its vocabulary has no token {pad:?} to fill up with")))?;
        let vocabulary = tokenizer.get_vocab(true).values().max().map_or(0, |largest| *largest as usize + 1);
        Ok(PromptTokens { tokenizer, output_bounds, length, pad, vocabulary, file: path.clone() })
    }

    /// Builds CLIP's tokenizer from its vocabulary and merges, as transformers does.
    fn build_clip(&self, vocabulary: HashMap<String, u32>, merges: Merges) -> tokenizers::Result<Tokenizer> {
        let [start, end, unknown, pad] = [
            (&self.config.bos_token, START),
            (&self.config.eos_token, END),
            (&self.config.unk_token, END),
            (&self.config.pad_token, END),
        ]
        .map(|(token, default)| text_of(token, default));
        let model = BPE::builder()
            .vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), merges)
            .end_of_word_suffix("</w>".to_owned())
            .continuing_subword_prefix(String::new())
            .unk_token(unknown.clone())
            .build()?;
        let mut tokenizer = Tokenizer::new(model);
        let spaces =
            Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".into()), " ")?;
        let normalizers = vec![NFC.into(), spaces.into(), Lowercase.into()];
        tokenizer.with_normalizer(Some(Normalizers::new(normalizers)))?;
        let split =
            Split::new(SplitPattern::Regex(CLIP_PATTERN.into()), SplitDelimiterBehavior::Removed, true)?;
        let bytes = ByteLevel::new(false, true, true);
        tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![split.into(), bytes.into()])));
        let special = [&start, &end, &unknown, &pad].map(|token| AddedToken::from(token.clone(), true));
        tokenizer.add_special_tokens(special.to_vec())?;
        let id = |token: &String| {
            let id = tokenizer.token_to_id(token);
            id.map(|id| (token.clone(), id)).ok_or_else(|| format!("its vocabulary has no token {token:?}"))
        };
        let processor =
            RobertaProcessing::new(id(&end)?, id(&start)?).trim_offsets(false).add_prefix_space(false);
        tokenizer.with_post_processor(Some(processor));
        Ok(tokenizer)
    }
}

/// Merges of a file: a pair of tokens on each line, and a line with the file's version.
///
/// # Errors
/// [`Error::InvalidTokenizer`] for a line that is no pair, and for too many of them.
fn read_merges(path: &Path) -> Result<Merges> {
    let invalid = |reason: String| Error::InvalidTokenizer { file: path.to_owned(), reason };
    let bytes = read_config(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| invalid(error.to_string()))?;
    let mut merges = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with("#version")) {
        let pair = line.split_once(' ').filter(|(_, right)| !right.contains(' '));
        let (left, right) =
            pair.ok_or_else(|| invalid(format!("its merge {} is no pair", merges.len() + 1)))?;
        if merges.len() == MAX_MERGES {
            return Err(invalid(format!("it has more than {MAX_MERGES} merges")));
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

/// The error of a vocabulary that is none, as one of a tokenizer.
fn as_tokenizer(error: Error, path: &Path) -> Error {
    match error {
        Error::InvalidConfig { reason, .. } => Error::InvalidTokenizer { file: path.to_owned(), reason },
        error => error,
    }
}

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Text of a special token.
fn text_of(token: &Option<TokenEntry>, default: &str) -> String {
    token.clone().map_or_else(|| default.to_owned(), TokenEntry::text)
}

/// Tokenizer for prompts of one length.
pub(super) struct PromptTokens {
    tokenizer: Tokenizer,
    output_bounds: OutputBounds,
    length: usize,
    pad: u32,
    vocabulary: usize,
    file: PathBuf,
}

impl PromptTokens {
    /// Number of tokens of every prompt.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Checks the vocabulary against the number of a model's token embeddings.
    ///
    /// # Errors
    /// [`Error::InvalidTokenizer`] if it has tokens without an embedding.
    pub(super) fn check(&self, known: usize) -> Result<()> {
        if self.vocabulary <= known {
            return Ok(());
        }
        let reason = format!("it has {} tokens; the text encoder's vocab_size is {known}", self.vocabulary);
        Err(Error::InvalidTokenizer { file: self.file.clone(), reason })
    }

    /// Tokenizes a prompt with its special tokens, truncated or padded to the length.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it cannot be tokenized.
    pub(super) fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        let failed = |error: String| Error::InvalidInput(format!("the prompt cannot be tokenized: {error}"));
        let mut ids = self.output_bounds.encode(&self.tokenizer, prompt, Specials::Added).map_err(failed)?;
        ids.resize(self.length, self.pad);
        Ok(ids)
    }
}
