//! The files of a tokenizer: `tokenizer.json`, or the vocabulary that it is built from where there is none, and the
//! settings beside it. Either way it becomes one `tokenizer.json`, under the same bounds.

use std::path::{Path, PathBuf};

use model_actors::LoadContext;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokenizers::{Tokenizer, TruncationDirection};

use super::output_bounds::{self, MAX_MERGES, MAX_TOKENS, guarded};
use super::reading;
use super::sentence_piece;
use super::settings::{Class, TokenizerSettings};
use crate::error::{Error, Result};
use crate::source::{Files, Values, read_config, read_json};

/// Files of a tokenizer, found but not read.
#[derive(Debug, Clone)]
pub(crate) struct TokenizerFiles {
    vocabulary: Vocabulary,
    settings: TokenizerSettings,
}

#[derive(Debug, Clone)]
enum Vocabulary {
    /// `tokenizer.json`.
    Whole(PathBuf),
    /// `vocab.txt`: a token on each line.
    WordPiece(PathBuf),
    /// `vocab.json` and `merges.txt`.
    Pairs { vocabulary: PathBuf, merges: PathBuf },
    /// `tokenizer.model`, or another name of it.
    SentencePiece(PathBuf),
}

/// Names that SentencePiece models have.
const SENTENCE_PIECE: [&str; 3] = ["tokenizer.model", "sentencepiece.bpe.model", "spiece.model"];

impl TokenizerFiles {
    /// Finds the tokenizer in a folder of a model, whose name is empty or ends with a slash.
    ///
    /// # Errors
    /// [`Error::MissingFile`] for `tokenizer.json` if there is none of the files; [`Error::UnsupportedSetting`] for a class of
    /// tokenizers that reads them in a way of its own.
    pub(crate) fn find(files: &Files, folder: &str, context: &LoadContext) -> Result<Self> {
        let optional = |name: &str| files.optional(&format!("{folder}{name}"), context);
        let settings = TokenizerSettings::read(files, folder, context)?;
        if let Some(path) = optional("tokenizer.json")? {
            return Ok(Self { vocabulary: Vocabulary::Whole(path), settings });
        }
        let words = optional("vocab.txt")?;
        if let (Some(path), Some(settings)) = (&words, settings.of_word_pieces()) {
            return Ok(Self { vocabulary: Vocabulary::WordPiece(path.clone()), settings });
        }
        if let (Some(vocabulary), Some(merges)) = (optional("vocab.json")?, optional("merges.txt")?) {
            return Ok(Self { vocabulary: Vocabulary::Pairs { vocabulary, merges }, settings });
        }
        for name in SENTENCE_PIECE {
            if let Some(path) = optional(name)? {
                return match settings.class_of_own_pieces() {
                    Some(class) => Err(unsupported_class(path, class)),
                    None => Ok(Self { vocabulary: Vocabulary::SentencePiece(path), settings }),
                };
            }
        }
        if let (Some(path), Some(class)) = (words, settings.named_class()) {
            return Err(unsupported_class(path, class));
        }
        files.required(&format!("{folder}tokenizer.json"), context).map(Self::from)
    }

    /// `tokenizer.json` with the settings beside it, where there is one.
    ///
    /// # Errors
    /// Those of reading the settings.
    pub(crate) fn whole(files: &Files, context: &LoadContext) -> Result<Option<Self>> {
        let Some(path) = files.optional("tokenizer.json", context)? else { return Ok(None) };
        let settings = TokenizerSettings::read(files, "", context)?;
        Ok(Some(Self { vocabulary: Vocabulary::Whole(path), settings }))
    }

    /// The file that has the vocabulary.
    pub(crate) fn path(&self) -> &Path {
        match &self.vocabulary {
            Vocabulary::Whole(path) | Vocabulary::WordPiece(path) | Vocabulary::SentencePiece(path) => path,
            Vocabulary::Pairs { vocabulary, .. } => vocabulary,
        }
    }

    /// The length that `tokenizer.json` itself cuts texts to, if it does.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a file that is no tokenizer.
    pub(crate) fn own_longest(&self) -> Result<Option<usize>> {
        #[derive(Deserialize)]
        struct File {
            truncation: Option<Cut>,
        }
        #[derive(Deserialize)]
        struct Cut {
            max_length: usize,
        }
        let Vocabulary::Whole(path) = &self.vocabulary else { return Ok(None) };
        Ok(read_json::<File>(path)?.truncation.map(|cut| cut.max_length))
    }

    /// The side of a text that is cut, where the settings name it.
    pub(super) fn cut_side(&self) -> Option<TruncationDirection> {
        self.settings.cut_side()
    }

    /// True if the tokens of a pair come with the segments of the two texts.
    pub(super) fn tells_segments(&self) -> bool {
        self.settings.tells_segments()
    }

    /// True if special tokens in a text are read as any other letters of it.
    pub(super) fn splits_special_tokens(&self) -> bool {
        self.settings.splits_special_tokens()
    }

    /// Reads the tokenizer, which is not checked yet: see [`super::OutputBounds::of`].
    ///
    /// # Errors
    /// [`Error::InvalidTokenizer`] for files that make no tokenizer.
    pub(super) fn open(&self) -> Result<Tokenizer> {
        let invalid = |reason: String| Error::InvalidTokenizer { file: self.path().to_owned(), reason };
        let bytes = match &self.vocabulary {
            Vocabulary::Whole(path) => read_config(path)?,
            Vocabulary::WordPiece(path) => {
                let text = text(path)?;
                written(self.word_pieces(&text).map_err(invalid)?).map_err(invalid)?
            }
            Vocabulary::SentencePiece(path) => {
                let model = read_config(path)?;
                written(sentence_piece::tokenizer(&model, &self.settings).map_err(invalid)?)
                    .map_err(invalid)?
            }
            Vocabulary::Pairs { vocabulary, merges } => {
                let (words, merges) = (text(vocabulary)?, text(merges)?);
                written(self.pairs(&words, &merges).map_err(invalid)?).map_err(invalid)?
            }
        };
        let tokenizer = guarded(|| {
            let mut tokenizer = reading::read(&bytes)?;
            self.complete(&mut tokenizer)?;
            Ok(tokenizer)
        });
        tokenizer.map_err(invalid)
    }

    /// Takes over the settings beside the vocabulary.
    fn complete(&self, tokenizer: &mut Tokenizer) -> Result<(), String> {
        self.settings.rebuild(tokenizer)?;
        let additions = self.settings.additions(tokenizer);
        let contents = additions.iter().map(|token| json!({"content": token.content}));
        let added = json!({
            "normalizer": tokenizer.get_normalizer(), "added_tokens": contents.collect::<Vec<_>>(),
        });
        let added = written(added)?;
        output_bounds::check_size(&added)?;
        output_bounds::check_added(&added)?;
        tokenizer.add_tokens(additions).map(drop).map_err(|error| error.to_string())
    }

    fn word_pieces(&self, text: &str) -> Result<Value, String> {
        if text.lines().nth(MAX_TOKENS).is_some() {
            return Err(format!("it has more than {MAX_TOKENS} tokens, the most that are allowed"));
        }
        let words = text.lines().map(|line| line.trim_end().to_owned());
        let vocabulary: Map<String, Value> = words.zip(0u32..).map(|(word, id)| (word, id.into())).collect();
        Ok(json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": null,
            "model": {
                "type": "WordPiece", "unk_token": self.settings.token("unk_token"),
                "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocabulary,
            },
        }))
    }

    /// Byte-level BPE.
    fn pairs(&self, words: &str, merges: &str) -> Result<Value, String> {
        let bytes =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        // Normalizer and split are the class's.
        if !matches!(self.settings.class, Class::Roberta | Class::Gpt2 | Class::Qwen2) {
            return Err("it is vocab.json and merges.txt of a class of tokenizers that is not built from them; take a \
                        tokenizer.json of the model"
                .to_owned());
        }
        // Before anything of them is kept; one value is the table itself.
        serde_json::from_str::<Values<{ MAX_TOKENS + 1 }>>(words).map_err(|error| error.to_string())?;
        let vocabulary: Map<String, Value> =
            serde_json::from_str(words).map_err(|error| error.to_string())?;
        let lines =
            merges.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("#version"));
        if lines.clone().nth(MAX_MERGES).is_some() {
            return Err(format!("it has more than {MAX_MERGES} merges, the most that are allowed"));
        }
        let pairs = lines.map(|line| match line.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok(json!([left, right])),
            _ => Err(format!("the merge {line:?} is no pair")),
        });
        Ok(json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": bytes,
            "post_processor": null, "decoder": bytes,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocabulary, "merges": pairs.collect::<Result<Vec<_>, _>>()?,
            },
        }))
    }
}

/// A `tokenizer.json` by itself, without settings.
impl From<PathBuf> for TokenizerFiles {
    fn from(path: PathBuf) -> Self {
        Self { vocabulary: Vocabulary::Whole(path), settings: TokenizerSettings::default() }
    }
}

impl From<&Path> for TokenizerFiles {
    fn from(path: &Path) -> Self {
        Self::from(path.to_owned())
    }
}

impl From<&PathBuf> for TokenizerFiles {
    fn from(path: &PathBuf) -> Self {
        Self::from(path.clone())
    }
}

impl From<&TokenizerFiles> for TokenizerFiles {
    fn from(files: &TokenizerFiles) -> Self {
        files.clone()
    }
}

/// The error for a vocabulary that a class reads in a way of its own.
fn unsupported_class(file: PathBuf, class: &str) -> Error {
    Error::UnsupportedSetting {
        file,
        what: "tokenizer_class".into(),
        found: class.to_owned(),
        supported: "the tokenizer.json of this model, which transformers writes when it saves the tokenizer"
            .into(),
    }
}

fn text(path: &Path) -> Result<String> {
    String::from_utf8(read_config(path)?).map_err(|error| Error::InvalidTokenizer {
        file: path.to_owned(),
        reason: format!("it is no text: {error}"),
    })
}

fn written(json: Value) -> Result<Vec<u8>, String> {
    serde_json::to_vec(&json).map_err(|error| error.to_string())
}
