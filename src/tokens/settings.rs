//! Settings of a tokenizer beside its vocabulary: `tokenizer_config.json`, `special_tokens_map.json` and
//! `added_tokens.json`. transformers builds the classes that are listed here anew from them, whatever `tokenizer.json`
//! says of normalizer, split and the tokens around a text; other classes only get the tokens that are added.

use std::collections::HashSet;

use model_actors::LoadContext;
use serde_json::Value;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::utils::{Lowercase, Sequence as Normalizers};
use tokenizers::normalizers::{BertNormalizer, NFC};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{
    AddedToken, ModelWrapper, NormalizerWrapper, SplitDelimiterBehavior, Tokenizer, TruncationDirection,
};

use super::{class_names, special_names};
use crate::error::Result;
use crate::source::Files;

/// Names of tokens that all classes know.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Pre-tokenizer of Qwen2, which splits digits.
pub(crate) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Class of a tokenizer, as far as transformers builds it anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Class {
    Bert,
    MpNet,
    Roberta,
    Gpt2,
    Qwen2,
    XlmRoberta,
    Llama,
    T5,
    /// Gemma's in lower case.
    Siglip2,
    /// Taken as the files have it.
    #[default]
    AsWritten,
}

/// Kinds of models whose tokenizers transformers takes as the files have them, whatever class these name.
const AS_WRITTEN: [&str; 54] = [
    "arctic",
    "aria",
    "bigbird_pegasus",
    "ernie4_5",
    "ernie4_5_moe",
    "flex_olmo",
    "fuyu",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "glm4v",
    "glm4v_moe",
    "gpt_bigcode",
    "granite",
    "granitemoe",
    "granitemoehybrid",
    "granitemoeshared",
    "hyperclovax",
    "internlm2",
    "internlm3",
    "jamba",
    "kimi_linear",
    "kosmos-2",
    "llava",
    "llava_next",
    "minicpm3",
    "minicpmv",
    "minimax_m2",
    "ministral",
    "ministral3",
    "mistral",
    "mistral3",
    "mixtral",
    "modernbert",
    "modernbert-decoder",
    "molmo",
    "nemotron",
    "olmo2",
    "olmo3",
    "olmo_hybrid",
    "openvla",
    "paddleocr_vl",
    "persimmon",
    "phi3",
    "phi3_v",
    "phimoe",
    "pixtral",
    "smolvlm",
    "stablelm",
    "umt5",
    "vipllava",
    "voxtral",
    "xlm-roberta-xl",
];

impl Class {
    fn named(name: &str) -> Self {
        match name.strip_suffix("Fast").unwrap_or(name) {
            "BertTokenizer"
            | "DistilBertTokenizer"
            | "ElectraTokenizer"
            | "MobileBertTokenizer"
            | "ConvBertTokenizer"
            | "LayoutLMTokenizer" => Self::Bert,
            "MPNetTokenizer" => Self::MpNet,
            "RobertaTokenizer" | "BartTokenizer" | "LongformerTokenizer" | "LEDTokenizer" => Self::Roberta,
            "GPT2Tokenizer" => Self::Gpt2,
            "Qwen2Tokenizer" => Self::Qwen2,
            "XLMRobertaTokenizer" => Self::XlmRoberta,
            "LlamaTokenizer" => Self::Llama,
            "T5Tokenizer" => Self::T5,
            "Siglip2Tokenizer" => Self::Siglip2,
            _ => Self::AsWritten,
        }
    }

    /// The class that transformers has for a kind of model.
    fn of_model(kind: &str) -> Option<Self> {
        Some(match kind {
            "bert" | "distilbert" | "electra" | "mobilebert" | "convbert" | "megatron-bert"
            | "nomic_bert" | "blip" | "chinese_clip" => Self::Bert,
            "mpnet" => Self::MpNet,
            "roberta" | "bart" | "longformer" | "data2vec-text" | "ibert" | "lilt" => Self::Roberta,
            "gpt2" | "gpt_neo" | "gptj" | "phi" | "blip-2" => Self::Gpt2,
            "qwen2" | "qwen3" | "qwen2_moe" | "qwen3_moe" | "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl"
            | "qwen3_vl_moe" => Self::Qwen2,
            "xlm-roberta" | "gte" | "jina_embeddings_v3" | "metaclip_2" => Self::XlmRoberta,
            "t5" | "mt5" => Self::T5,
            "siglip2" => Self::Siglip2,
            kind if AS_WRITTEN.contains(&kind) => Self::AsWritten,
            _ => return None,
        })
    }

    /// As transformers chooses between what the files name and what it has for the kind of model.
    fn choose(named: Option<&str>, kind: &str) -> Self {
        let own = Self::of_model(kind);
        match (named.map(Self::named), own) {
            (None, own) => own.unwrap_or_default(),
            (Some(named), Some(own)) if named != own => match own {
                Self::AsWritten => Self::AsWritten,
                // Files of this kind that name another class are wrong.
                own if matches!(kind, "qwen2" | "siglip2") => own,
                _ => named,
            },
            (Some(named), _) => named,
        }
    }

    /// The token that a class gives a name by default.
    fn token(self, name: &str) -> Option<&'static str> {
        let [begin, end, unknown, pad, mask] = match self {
            Self::Bert => ["[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"],
            Self::MpNet => ["<s>", "</s>", "[UNK]", "<pad>", "<mask>"],
            Self::Roberta | Self::XlmRoberta => ["<s>", "</s>", "<unk>", "<pad>", "<mask>"],
            Self::Gpt2 => ["<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "", ""],
            Self::Qwen2 => ["", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", ""],
            Self::Llama => ["<s>", "</s>", "<unk>", "", ""],
            Self::T5 => ["", "</s>", "<unk>", "<pad>", ""],
            Self::Siglip2 => ["<bos>", "<eos>", "<unk>", "<pad>", "<mask>"],
            Self::AsWritten => return None,
        };
        let encloses = matches!(self, Self::Bert | Self::MpNet | Self::Roberta | Self::XlmRoberta);
        let token = match name {
            "bos_token" if self != Self::Bert => begin,
            "eos_token" if self != Self::Bert => end,
            "cls_token" if encloses => begin,
            "sep_token" if encloses => end,
            "unk_token" => unknown,
            "pad_token" => pad,
            "mask_token" => mask,
            _ => "",
        };
        Some(token).filter(|token| !token.is_empty())
    }
}

/// A token that is added to a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Added {
    content: String,
    special: bool,
    normalized: bool,
    lstrip: bool,
    rstrip: bool,
    single_word: bool,
}

impl Added {
    /// Reads a token: its text, or a table with it. `special` holds for one that does not say it.
    fn read(token: &Value, special: bool) -> Option<Self> {
        let content = token.get("content").unwrap_or(token).as_str()?.to_owned();
        let flag = |name: &str| token.get(name).and_then(Value::as_bool);
        let special = flag("special").unwrap_or(special);
        Some(Self {
            content,
            special,
            normalized: flag("normalized").unwrap_or(!special),
            lstrip: flag("lstrip").unwrap_or(false),
            rstrip: flag("rstrip").unwrap_or(false),
            single_word: flag("single_word").unwrap_or(false),
        })
    }

    fn of(token: &AddedToken) -> Self {
        Self {
            content: token.content.clone(),
            special: token.special,
            normalized: token.normalized,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            single_word: token.single_word,
        }
    }

    fn token(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), self.special)
            .normalized(self.normalized)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .single_word(self.single_word)
    }
}

/// The settings of a tokenizer in the files beside its vocabulary.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenizerSettings {
    pub(super) class: Class,
    /// The class that the files name.
    named_class: Option<String>,
    /// `model_type` of `config.json`.
    kind: String,
    /// `tokenizer_config.json`, with what goes before it of `special_tokens_map.json`.
    config: Value,
    /// Tokens that are added, by their numbers.
    added: Vec<Added>,
}

impl TokenizerSettings {
    pub(crate) fn read(files: &Files, folder: &str, context: &LoadContext) -> Result<Self> {
        let json = |name: &str| files.optional_json::<Value>(&format!("{folder}{name}"), context);
        let config = special_names::config(files, folder, context)?;
        let model = json("config.json")?.unwrap_or_default();
        let added = match config.get("added_tokens_decoder").and_then(Value::as_object) {
            Some(table) => {
                let mut numbered: Vec<(u32, Added)> = table
                    .iter()
                    .filter_map(|(id, token)| Some((id.parse().ok()?, Added::read(token, false)?)))
                    .collect();
                numbered.sort_by_key(|(id, _)| *id);
                numbered.into_iter().map(|(_, token)| token).collect()
            }
            None => legacy(&config, json("added_tokens.json")?.as_ref()),
        };
        let text = |of: &Value, name: &str| of.get(name).and_then(Value::as_str).map(str::to_owned);
        let named_class = text(&config, "tokenizer_class").or_else(|| text(&model, "tokenizer_class"));
        let kind = text(&model, "model_type").unwrap_or_default();
        let class = Class::choose(named_class.as_deref(), &kind);
        Ok(Self { class, named_class, kind, config, added })
    }

    /// The same for a vocabulary of word pieces, which only some classes have; nothing for another class.
    pub(super) fn of_word_pieces(&self) -> Option<Self> {
        let class = if self.class == Class::MpNet { Class::MpNet } else { Class::Bert };
        class_names::has_word_pieces(self.named_class.as_deref()).then(|| Self { class, ..self.clone() })
    }

    /// The class that the files name, if any.
    pub(super) fn named_class(&self) -> Option<&str> {
        self.named_class.as_deref()
    }

    /// The class that would make of a SentencePiece model what only itself does.
    pub(super) fn class_of_own_pieces(&self) -> Option<&str> {
        // Of these kinds of models, transformers passes by the class.
        let as_written = AS_WRITTEN.contains(&self.kind.as_str());
        class_names::own_pieces(self.named_class.as_deref(), &self.kind).filter(|_| !as_written)
    }

    pub(super) fn truth(&self, name: &str) -> Option<bool> {
        self.config.get(name).and_then(Value::as_bool)
    }

    pub(super) fn number(&self, name: &str) -> Option<usize> {
        self.config.get(name).and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok())
    }

    /// The text of a token that has a name: as the files say, or as the class does where they are silent.
    pub(crate) fn token(&self, name: &str) -> Option<String> {
        let Some(token) = self.config.get(name) else { return self.class.token(name).map(str::to_owned) };
        token.get("content").unwrap_or(token).as_str().map(str::to_owned)
    }

    /// All tokens that the files give a name, by it.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        let table = self.config.as_object().into_iter().flatten();
        let named = table.filter(|(name, _)| name.ends_with("_token"));
        named.filter_map(|(name, token)| {
            Some((name.as_str(), token.get("content").unwrap_or(token).as_str()?))
        })
    }

    /// True if the tokens of a pair come with the segments of the two texts.
    pub(super) fn tells_segments(&self) -> bool {
        match self.config.get("model_input_names").and_then(Value::as_array) {
            Some(names) => names.iter().any(|name| name == "token_type_ids"),
            None => self.class == Class::Bert && self.kind != "distilbert",
        }
    }

    /// The side of a text that is cut, where the settings name it.
    pub(super) fn cut_side(&self) -> Option<TruncationDirection> {
        match self.config.get("truncation_side").and_then(Value::as_str) {
            Some("left") => Some(TruncationDirection::Left),
            Some("right") => Some(TruncationDirection::Right),
            _ => None,
        }
    }

    /// True if special tokens in a text are read as any other letters of it.
    pub(super) fn splits_special_tokens(&self) -> bool {
        self.config.get("split_special_tokens").and_then(Value::as_bool).unwrap_or(false)
    }

    /// The tokens to be added: all that the files list, and those with a name, unless the vocabulary has them so.
    pub(super) fn additions(&self, tokenizer: &Tokenizer) -> Vec<AddedToken> {
        let known: HashSet<Added> = tokenizer.get_added_tokens_decoder().values().map(Added::of).collect();
        let mut additions: Vec<Added> =
            self.added.iter().filter(|token| !known.contains(token)).cloned().collect();
        let all = known.iter().chain(&additions);
        let mut contents: HashSet<String> = all.map(|token| token.content.clone()).collect();
        for token in special_names::tokens(&self.config) {
            let Some(token) = Added::read(token, true) else { continue };
            if contents.insert(token.content.clone()) {
                additions.push(Added { special: true, ..token });
            }
        }
        // Those of the class belong to the vocabulary of a model, which has no rows for others.
        let own = NAMED.iter().filter(|name| self.config.get(name).is_none());
        for content in own.filter_map(|name| self.class.token(name)) {
            if tokenizer.token_to_id(content).is_some() && contents.insert(content.to_owned()) {
                additions.extend(Added::read(&Value::from(content), true));
            }
        }
        additions.iter().map(Added::token).collect()
    }

    /// Builds the parts anew that the class has of its own.
    ///
    /// # Errors
    /// A sentence about a token that the vocabulary lacks.
    pub(super) fn rebuild(&self, tokenizer: &mut Tokenizer) -> Result<(), String> {
        let failed = |error: tokenizers::Error| error.to_string();
        match (self.class, tokenizer.get_model()) {
            (Class::Bert | Class::MpNet, ModelWrapper::WordPiece(_)) => {
                let normalizer = BertNormalizer::new(
                    true,
                    self.truth("tokenize_chinese_chars").unwrap_or(true),
                    self.truth("strip_accents"),
                    self.truth("do_lower_case").unwrap_or(true),
                );
                tokenizer.with_normalizer(Some(NormalizerWrapper::from(normalizer))).map_err(failed)?;
                tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
                tokenizer.with_decoder(Some(WordPieceDecoder::default()));
                self.enclose(tokenizer);
            }
            (Class::Roberta | Class::Gpt2, ModelWrapper::BPE(_)) => {
                let prefix = self.truth("add_prefix_space").unwrap_or(false);
                tokenizer.with_normalizer(None::<NormalizerWrapper>).map_err(failed)?;
                tokenizer.with_pre_tokenizer(Some(ByteLevel::new(prefix, true, true)));
                tokenizer.with_decoder(Some(ByteLevel::default()));
                if self.class == Class::Roberta {
                    self.enclose(tokenizer);
                }
            }
            (Class::Qwen2, ModelWrapper::BPE(_)) => {
                let prefix = self.truth("add_prefix_space").unwrap_or(false);
                let pattern = SplitPattern::Regex(QWEN2.to_owned());
                let words = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(failed)?;
                let split = vec![words.into(), ByteLevel::new(prefix, true, false).into()];
                tokenizer.with_normalizer(Some(NormalizerWrapper::from(NFC))).map_err(failed)?;
                tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(split)));
                tokenizer.with_decoder(Some(ByteLevel::default()));
            }
            (Class::Llama, ModelWrapper::BPE(_)) if !Self::splits_bytes(tokenizer) => {
                let scheme = match (self.truth("add_prefix_space"), self.truth("legacy")) {
                    (Some(false), _) => PrependScheme::Never,
                    (_, Some(true)) => PrependScheme::Always,
                    _ => PrependScheme::First,
                };
                tokenizer.with_normalizer(None::<NormalizerWrapper>).map_err(failed)?;
                tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, false)));
            }
            (Class::Siglip2, ModelWrapper::BPE(_)) => {
                let space = Replace::new(" ", "▁").map_err(failed)?;
                let normalizer = Normalizers::new(vec![Lowercase.into(), space.into()]);
                let pattern = SplitPattern::String(" ".to_owned());
                let behaviour = SplitDelimiterBehavior::MergedWithPrevious;
                let words = Split::new(pattern, behaviour, false).map_err(failed)?;
                tokenizer.with_normalizer(Some(NormalizerWrapper::from(normalizer))).map_err(failed)?;
                tokenizer.with_pre_tokenizer(Some(words));
            }
            (Class::XlmRoberta, ModelWrapper::Unigram(_)) => {
                let prefix = self.truth("add_prefix_space").unwrap_or(true);
                let scheme = if prefix { PrependScheme::Always } else { PrependScheme::Never };
                let space = Metaspace::new('▁', scheme, true);
                let split = vec![WhitespaceSplit.into(), space.clone().into()];
                tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(split)));
                tokenizer.with_decoder(Some(space));
                self.enclose(tokenizer);
            }
            _ => {}
        }
        Ok(())
    }

    /// True if the tokenizer splits texts as Llama 3's does, whose files name the class of Llama 2.
    fn splits_bytes(tokenizer: &Tokenizer) -> bool {
        let split = tokenizer.get_pre_tokenizer().and_then(|split| serde_json::to_string(split).ok());
        split.is_some_and(|split| split.contains("\"ByteLevel\""))
    }

    /// Puts the class's tokens around each text, where the vocabulary has them.
    fn enclose(&self, tokenizer: &mut Tokenizer) {
        let known = |name: &str| {
            let token = self.token(name)?;
            tokenizer.token_to_id(&token).map(|id| (token, id))
        };
        match (known("cls_token"), known("sep_token")) {
            (Some(begin), Some(end)) if self.class == Class::Bert => {
                tokenizer.with_post_processor(Some(BertProcessing::new(end, begin)));
            }
            // The same, but for the two ends between the texts of a pair.
            (Some(begin), Some(end)) => {
                tokenizer.with_post_processor(Some(RobertaProcessing::new(end, begin)));
            }
            _ => {}
        }
    }
}

/// The tokens of `added_tokens.json`, by their numbers. Those that have a name are special.
fn legacy(config: &Value, file: Option<&Value>) -> Vec<Added> {
    let special: Vec<&str> = special_names::tokens(config)
        .into_iter()
        .filter_map(|token| token.get("content").unwrap_or(token).as_str())
        .collect();
    let table = file.and_then(Value::as_object).into_iter().flatten();
    let mut numbered: Vec<(u64, &String)> =
        table.filter_map(|(token, id)| Some((id.as_u64()?, token))).collect();
    numbered.sort_unstable();
    let added = |(_, token): (u64, &String)| {
        let is_special = special.contains(&token.as_str());
        Added::read(&Value::from(token.clone()), is_special)
    };
    numbered.into_iter().filter_map(added).collect()
}
