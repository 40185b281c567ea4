//! Prompts to token numbers of one fixed length, as text to image models are trained: cut, or filled up with
//! padding that the model sees. Older repositories have CLIP's vocabulary and merges in place of a
//! `tokenizer.json`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer, TruncationParams};

use super::repository::Repository;
use crate::error::{Error, Result};
use crate::tokens::{OutputBounds, Specials, open};

/// Most tokens of a prompt.
const MAX_PROMPT: usize = 4096;
/// How CLIP splits a text into words.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A token, as text or with how it is matched.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Added { content: String },
}

impl Token {
    fn text(self) -> String {
        match self {
            Self::Text(content) | Self::Added { content } => content,
        }
    }
}

/// `tokenizer_config.json` and `special_tokens_map.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Settings {
    model_max_length: Option<f64>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    unk_token: Option<Token>,
    pad_token: Option<Token>,
    added_tokens_decoder: Option<serde_json::Value>,
}

impl Settings {
    /// The map of special tokens goes before, unless the settings tell of added tokens themselves.
    fn with(self, map: Self) -> Self {
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
    Parts { vocabulary: PathBuf, merges: PathBuf },
}

/// The files of a tokenizer, found but not read.
pub(super) struct TokenizerFiles {
    file: TokenizerFile,
    settings: Settings,
}

impl TokenizerFiles {
    /// The tokenizer in a folder, which is named with a slash at its end.
    pub(super) fn find(repository: &Repository<'_>, folder: &str) -> Result<Self> {
        let Repository { files, context, .. } = *repository;
        let file = match files.optional(&format!("{folder}tokenizer.json"), context)? {
            Some(path) => TokenizerFile::Whole(path),
            None => TokenizerFile::Parts {
                vocabulary: files.required(&format!("{folder}vocab.json"), context)?,
                merges: files.required(&format!("{folder}merges.txt"), context)?,
            },
        };
        let read = |name: &str| files.optional_json::<Settings>(&format!("{folder}{name}"), context);
        let settings = read("tokenizer_config.json")?.unwrap_or_default();
        let map = read("special_tokens_map.json")?.unwrap_or_default();
        Ok(Self { file, settings: settings.with(map) })
    }

    /// Tokens of a prompt, where the settings say; CLIP's number where they do not.
    pub(super) fn longest(&self) -> usize {
        self.settings.model_max_length.map_or(77, |length| (length as usize).min(MAX_PROMPT))
    }

    /// Reads the tokenizer, for prompts of `length` tokens, special ones included.
    pub(super) fn read(&self, length: usize) -> Result<PromptTokens> {
        let path = match &self.file {
            TokenizerFile::Whole(path) => path,
            TokenizerFile::Parts { vocabulary, .. } => vocabulary,
        };
        let invalid = |reason: String| Error::InvalidTokenizer { file: path.clone(), reason };
        let mut tokenizer = match &self.file {
            TokenizerFile::Whole(path) => open(path)?,
            TokenizerFile::Parts { vocabulary, merges } => {
                self.clip(vocabulary, merges).map_err(|error| invalid(error.to_string()))?
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
        let pad = name(&self.settings.pad_token, END);
        let pad = tokenizer
            .token_to_id(&pad)
            .ok_or_else(|| invalid(format!("its vocabulary has no token {pad:?} to fill up with")))?;
        let vocabulary = tokenizer.get_vocab(true).values().max().map_or(0, |largest| *largest as usize + 1);
        Ok(PromptTokens { tokenizer, output_bounds, length, pad, vocabulary, file: path.clone() })
    }

    /// CLIP's tokenizer, as transformers puts it together.
    fn clip(&self, vocabulary: &Path, merges: &Path) -> tokenizers::Result<Tokenizer> {
        let [start, end, unknown, pad] = [
            (&self.settings.bos_token, START),
            (&self.settings.eos_token, END),
            (&self.settings.unk_token, END),
            (&self.settings.pad_token, END),
        ]
        .map(|(token, default)| name(token, default));
        let (vocabulary, merges) = (vocabulary.to_string_lossy(), merges.to_string_lossy());
        let model = BPE::from_file(&vocabulary, &merges)
            .end_of_word_suffix("</w>".to_owned())
            .continuing_subword_prefix(String::new())
            .unk_token(unknown.clone())
            .build()?;
        let mut tokenizer = Tokenizer::new(model);
        let spaces =
            Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".into()), " ")?;
        let normalizers = vec![NFC.into(), spaces.into(), Lowercase.into()];
        tokenizer.with_normalizer(Some(Normalizers::new(normalizers)))?;
        let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)?;
        let bytes = ByteLevel::new(false, true, true);
        tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])));
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

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

fn name(token: &Option<Token>, default: &str) -> String {
    token.clone().map_or_else(|| default.to_owned(), Token::text)
}

/// A tokenizer for prompts of one length.
pub(super) struct PromptTokens {
    tokenizer: Tokenizer,
    output_bounds: OutputBounds,
    length: usize,
    pad: u32,
    vocabulary: usize,
    file: PathBuf,
}

impl PromptTokens {
    /// Tokens of every prompt.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// # Errors
    /// [`Error::InvalidTokenizer`] where it knows tokens that a model of so many does not.
    pub(super) fn check(&self, known: usize) -> Result<()> {
        if self.vocabulary <= known {
            return Ok(());
        }
        let reason = format!("it has {} tokens; the text encoder's vocab_size is {known}", self.vocabulary);
        Err(Error::InvalidTokenizer { file: self.file.clone(), reason })
    }

    /// The tokens of a prompt with the special ones, cut or filled up to the length.
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
