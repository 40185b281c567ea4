//! The tokenizer that a GGUF file carries in its metadata, as typed parts. Building one from them is left to
//! others.

use super::header::{Header, Value};

/// Kind of a token, as `tokenizer.ggml.token_type` numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Normal,
    Unknown,
    /// Never made from text that people write, and not shown in an answer.
    Control,
    /// Found in text before anything else, and shown as it is.
    UserDefined,
    /// Shown in no answer. Kinds without a meaning count as this one.
    Unused,
    /// One byte, `<0x0A>`.
    Byte,
}

/// `tokenizer.ggml.*` and the chat template.
#[derive(Debug, Clone)]
pub(crate) struct GgufTokenizer {
    /// `gpt2` for byte-level BPE, `llama` for SentencePiece.
    pub(crate) model: String,
    /// Name of the pre-tokenizer, which splits text before BPE.
    pub(crate) pre: Option<String>,
    pub(crate) tokens: Vec<String>,
    /// For each token, or none at all.
    pub(crate) scores: Vec<f32>,
    /// For each token, or none at all, as the file has them; [`Self::kind`] is what counts.
    pub(crate) kinds: Vec<TokenKind>,
    /// Pairs with a space between them, in their order.
    pub(crate) merges: Vec<String>,
    pub(crate) beginning: Option<u32>,
    pub(crate) end: Option<u32>,
    /// The end of a turn, where it is another one.
    pub(crate) end_of_turn: Option<u32>,
    pub(crate) unknown: Option<u32>,
    pub(crate) padding: Option<u32>,
    pub(crate) adds_beginning: Option<bool>,
    pub(crate) adds_end: Option<bool>,
    pub(crate) adds_space: Option<bool>,
    pub(crate) chat_template: Option<String>,
    /// Tokens that end a text beside those: the end of a message, and padding, name and separator of files in code.
    pub(crate) other_ends: Vec<u32>,
    /// Spaces and lines after a special token belong to it, as Phi-3's tokenizer has it.
    pub(crate) strips_after_special: bool,
    /// `<|end|>` ends a part of an answer, and other tokens the answer; see [`Self::has_parts`].
    pub(crate) has_parts: bool,
}

/// Maximum number of tokens of a vocabulary; XLM-V has 901,629, though not in a GGUF file.
const MAX_TOKENS: usize = 1 << 20;

/// Names of tokens that end a text. Many files call only the base model's end the end, so llama.cpp looks for these by
/// name too. Whatever kind the file says they are of, they are control tokens.
const ENDS: [&str; 33] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];
/// Names of other tokens that are control tokens, whatever kind the file says they are of: the parts of code that is to be
/// filled in.
const CONTROLS: [&str; 23] = [
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
];
/// Names of tokens that are shown, whatever kind the file says they are of: the channels of GPT-OSS.
const SHOWN: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

impl GgufTokenizer {
    /// Kind of a token: its name counts for more than what the file says.
    pub(crate) fn kind(&self, id: usize) -> TokenKind {
        let own = self.kinds.get(id).copied().unwrap_or(TokenKind::Normal);
        let begins_as_special = |name: &&str| name.starts_with(['<', '[', '_', '▁']);
        match self.tokens.get(id).map(String::as_str).filter(begins_as_special) {
            Some(name) if SHOWN.contains(&name) || self.is_end_of_part(name) => TokenKind::UserDefined,
            Some(name) if ENDS.contains(&name) || CONTROLS.contains(&name) => TokenKind::Control,
            _ => own,
        }
    }

    /// The numbers of all tokens that end a text.
    pub(crate) fn ends(&self) -> impl Iterator<Item = u32> {
        let is_end = |name: &str| ENDS.contains(&name) && !self.is_end_of_part(name);
        let named = self.tokens.iter().enumerate().filter(move |(_, name)| is_end(name));
        let named = named.filter_map(|(id, _)| u32::try_from(id).ok());
        named.chain(self.end).chain(self.end_of_turn).chain(self.other_ends.iter().copied())
    }

    fn is_end_of_part(&self, name: &str) -> bool {
        self.has_parts && name == "<|end|>"
    }

    /// True for the tokens of models that end a part of an answer with `<|end|>`, and the answer itself with other tokens.
    pub(crate) fn has_parts(tokens: &[String]) -> bool {
        let has = |names: [&str; 2]| tokens.iter().any(|token| names.contains(&token.as_str()));
        has(["<|return|>", "<|flush|>"]) && has(["<|call|>", "<|calls|>"])
    }

    pub(super) fn read(header: &Header) -> Result<Self, String> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let texts = |name: &str| -> Result<Vec<String>, String> {
            let list = header.list(&key(name)).unwrap_or_default().iter();
            let texts = list.map(|value| match value {
                Value::Text(text) => Ok(text.clone()),
                other => Err(format!("{} has {other:?} among its texts", key(name))),
            });
            texts.collect()
        };
        let count = header.list(&key("tokens")).map_or(0, <[Value]>::len);
        if count > MAX_TOKENS {
            return Err(format!("it has {count} tokens; at most {MAX_TOKENS} are allowed"));
        }
        let tokens = texts("tokens")?;
        let model = header.text(&key("model")).filter(|_| !tokens.is_empty());
        let model = model.ok_or_else(|| "it has no tokenizer".to_owned())?.to_owned();
        let scores = header.list(&key("scores")).unwrap_or_default().iter().map(|value| match value {
            Value::Float(score) => Ok(*score as f32),
            Value::Signed(score) => Ok(*score as f32),
            other => Err(format!("{} has {other:?} among its numbers", key("scores"))),
        });
        let scores = scores.collect::<Result<Vec<_>, _>>()?;
        let kinds = header.list(&key("token_type")).unwrap_or_default().iter().map(kind);
        let kinds = kinds.collect::<Result<Vec<_>, _>>()?;
        for (name, length) in [("scores", scores.len()), ("token_type", kinds.len())] {
            if length != 0 && length < tokens.len() {
                return Err(format!("{} has {length} values for {} tokens", key(name), tokens.len()));
            }
        }
        // llama.cpp takes its default where a number is none of a token.
        let (count, is_sentence_piece) = (tokens.len(), model == "llama");
        let known = |number: u64| u32::try_from(number).ok().filter(|id| (*id as usize) < count);
        let token = |name: &str, default: Option<u64>| {
            let own = header.number(&key(name)).and_then(known);
            own.or_else(|| default.filter(|_| is_sentence_piece).and_then(known))
        };
        let others = ["eom_token_id", "fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id"];
        let other_ends = others.into_iter().filter_map(|name| token(name, None)).collect();
        let beginning = token("bos_token_id", Some(1));
        let adds_beginning = header.truth(&key("add_bos_token"));
        if adds_beginning == Some(true) && beginning.is_none() {
            return Err(format!(
                "{} is true, and {} names no token",
                key("add_bos_token"),
                key("bos_token_id")
            ));
        }
        let (end, adds_end) = (token("eos_token_id", Some(2)), header.truth(&key("add_eos_token")));
        if adds_end == Some(true) && end.is_none() {
            return Err(format!(
                "{} is true, and {} names no token",
                key("add_eos_token"),
                key("eos_token_id")
            ));
        }
        let name = header.text("general.name").unwrap_or_default().to_lowercase();
        Ok(Self {
            model,
            pre: header
                .text(&key("pre"))
                .or_else(|| pre_of(header.text("general.architecture")?))
                .map(str::to_owned),
            scores,
            kinds,
            merges: texts("merges")?,
            beginning,
            end,
            end_of_turn: token("eot_token_id", None),
            unknown: token("unknown_token_id", Some(0)),
            padding: token("padding_token_id", None),
            adds_beginning,
            adds_end,
            adds_space: header.truth(&key("add_space_prefix")),
            chat_template: header.text("tokenizer.chat_template").map(str::to_owned),
            other_ends,
            strips_after_special: ["phi-3", "phi3"].iter().any(|phi| name.contains(phi)),
            has_parts: Self::has_parts(&tokens),
            tokens,
        })
    }
}

/// The pre-tokenizer of all models of an architecture, for files from before it was told (May 2024).
fn pre_of(architecture: &str) -> Option<&'static str> {
    match architecture {
        "phi2" => Some("gpt-2"),
        "qwen2" => Some("qwen2"),
        _ => None,
    }
}

fn kind(value: &Value) -> Result<TokenKind, String> {
    Ok(match value {
        Value::Unsigned(1) | Value::Signed(1) => TokenKind::Normal,
        Value::Unsigned(2) | Value::Signed(2) => TokenKind::Unknown,
        Value::Unsigned(3) | Value::Signed(3) => TokenKind::Control,
        Value::Unsigned(4) | Value::Signed(4) => TokenKind::UserDefined,
        Value::Unsigned(6) | Value::Signed(6) => TokenKind::Byte,
        Value::Unsigned(_) | Value::Signed(_) => TokenKind::Unused,
        _ => return Err(format!("tokenizer.ggml.token_type has {value:?}, which is no number")),
    })
}
