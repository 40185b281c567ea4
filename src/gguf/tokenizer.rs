//! The tokenizer that a GGUF file carries in its metadata, as typed parts. Building one from them is left to
//! others.

use super::header::{Header, Value, whole};

/// Kind of a token, as `tokenizer.ggml.token_type` numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Normal,
    Unknown,
    /// Never made from text, and not shown in it.
    Control,
    UserDefined,
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
    /// For each token, or none at all.
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
}

/// Most tokens of a vocabulary; XLM-V has 901,629, though not in a GGUF file.
const MAX_TOKENS: usize = 1 << 20;

/// Tokens that end a turn by their names. Many files call only the base model's end the end, so llama.cpp
/// looks for these by name too.
const ENDS: [&str; 7] =
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>"];

impl GgufTokenizer {
    /// The numbers of tokens that end a turn by their names.
    pub(crate) fn ends_by_name(&self) -> impl Iterator<Item = u32> {
        let named = self.tokens.iter().enumerate().filter(|(_, token)| ENDS.contains(&token.as_str()));
        named.filter_map(|(id, _)| u32::try_from(id).ok())
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
            other => Err(format!("{} has {other:?} among its numbers", key("scores"))),
        });
        let scores = scores.collect::<Result<Vec<_>, _>>()?;
        let kinds = header.list(&key("token_type")).unwrap_or_default().iter().map(kind);
        let kinds = kinds.collect::<Result<Vec<_>, _>>()?;
        for (name, length) in [("scores", scores.len()), ("token_type", kinds.len())] {
            if length != 0 && length != tokens.len() {
                return Err(format!("{} has {length} values for {} tokens", key(name), tokens.len()));
            }
        }
        let token = |name: &str| -> Result<Option<u32>, String> {
            match header.number(&key(name)) {
                None => Ok(None),
                Some(number) if number < tokens.len() as u64 => Ok(Some(number as u32)),
                Some(number) => Err(format!("{} is {number}; there are {} tokens", key(name), tokens.len())),
            }
        };
        Ok(Self {
            model,
            pre: header.text(&key("pre")).map(str::to_owned),
            scores,
            kinds,
            merges: texts("merges")?,
            beginning: token("bos_token_id")?,
            end: token("eos_token_id")?,
            end_of_turn: token("eot_token_id")?,
            unknown: token("unknown_token_id")?,
            padding: token("padding_token_id")?,
            adds_beginning: header.truth(&key("add_bos_token")),
            adds_end: header.truth(&key("add_eos_token")),
            adds_space: header.truth(&key("add_space_prefix")),
            chat_template: header.text("tokenizer.chat_template").map(str::to_owned),
            tokens,
        })
    }
}

fn kind(value: &Value) -> Result<TokenKind, String> {
    match whole(value) {
        Some(1) => Ok(TokenKind::Normal),
        Some(2) => Ok(TokenKind::Unknown),
        Some(3) => Ok(TokenKind::Control),
        Some(4) => Ok(TokenKind::UserDefined),
        Some(5) => Ok(TokenKind::Unused),
        Some(6) => Ok(TokenKind::Byte),
        _ => Err(format!("tokenizer.ggml.token_type has the unknown kind {value:?}")),
    }
}
