//! The input that a model makes of a query and a document: a pair of texts, put together by its tokenizer, or a prompt
//! that asks a language model.

use model_actors::{RerankDocuments, Truncate};

use super::Watch;
use crate::error::{Error, Result};
use crate::tokens::{Specials, TokenIds, Tokens};

/// Forms of a model's input.
#[derive(Debug, Clone, Copy)]
pub(super) enum PairForm {
    /// A pair of texts; an instruction stands before the query.
    Texts,
    /// A prompt.
    Prompt(&'static PairPrompt),
}

/// A prompt that asks of a query and a document whether they belong together.
#[derive(Debug)]
pub(super) struct PairPrompt {
    /// Before the instruction, the query and the document, and after them.
    pub(super) around: [&'static str; 2],
    /// Names that stand before each of the three.
    pub(super) names: [&'static str; 3],
    /// The instruction of a request that has none.
    pub(super) instruction: &'static str,
}

/// Makes a model's input of requests.
pub(super) struct PairEncoder {
    tokens: Tokens,
    /// The instruction of a request that has none.
    instruction: String,
    longest: usize,
    form: EncodedForm,
}

enum EncodedForm {
    Texts,
    Prompt {
        names: [&'static str; 3],
        around: [Vec<u32>; 2],
        /// Number of tokens between them.
        room: usize,
    },
}

impl PairEncoder {
    /// An encoder of inputs of at most `longest` tokens.
    ///
    /// # Errors
    /// A sentence, for a prompt that the tokenizer cannot read or that has no room.
    pub(super) fn new(
        tokens: Tokens,
        form: PairForm,
        instruction: Option<String>,
        longest: usize,
    ) -> Result<Self, String> {
        let prompt = match form {
            PairForm::Texts => {
                let instruction = instruction.unwrap_or_default();
                return Ok(Self { tokens, instruction, longest, form: EncodedForm::Texts });
            }
            PairForm::Prompt(prompt) => prompt,
        };
        let encode =
            |text: &str| tokens.encode_prompt(text, Specials::AsWritten).map_err(|error| error.to_string());
        let around = [encode(prompt.around[0])?, encode(prompt.around[1])?];
        let taken = around.iter().map(Vec::len).sum::<usize>();
        let Some(room @ 1..) = longest.checked_sub(taken) else {
            return Err(format!("inputs of {longest} tokens have no room beside {taken} of the prompt"));
        };
        let instruction = instruction.unwrap_or_else(|| prompt.instruction.to_owned());
        let form = EncodedForm::Prompt { names: prompt.names, around, room };
        Ok(Self { tokens, instruction, longest, form })
    }

    /// The inputs of a request, one for each document.
    pub(super) fn encode(&self, request: &RerankDocuments, watch: &Watch<'_>) -> Result<Vec<TokenIds>> {
        let RerankDocuments { query, documents, instruction, .. } = request;
        let instruction = instruction.as_ref().unwrap_or(&self.instruction);
        match &self.form {
            EncodedForm::Texts => {
                let query = format!("{instruction}{query}");
                let first = self.tokens.pair_text(&query)?;
                let pair = |(index, document): (usize, &String)| {
                    watch()?;
                    let pair = self.tokens.pair(&first, &self.tokens.pair_text(document)?)?;
                    if pair.is_cut && request.truncate == Truncate::Refuse {
                        let tokens = self.tokens.count_pair(&query, document)?;
                        return Err(Error::TextTooLong { index, tokens, limit: self.longest });
                    }
                    Ok(pair)
                };
                documents.iter().enumerate().map(pair).collect()
            }
            EncodedForm::Prompt { names: [first, second, third], around: [before, after], room } => {
                let pair = |(index, document): (usize, &String)| {
                    watch()?;
                    let text = format!("{first}{instruction}{second}{query}{third}{document}");
                    let cut = self.tokens.encode_written_cut(&text, *room)?;
                    if cut.is_cut && request.truncate == Truncate::Refuse {
                        let whole = self.tokens.encode_written(&text, Specials::AsWritten)?.len();
                        let tokens = before.len() + whole + after.len();
                        return Err(Error::TextTooLong { index, tokens, limit: self.longest });
                    }
                    let ids = [&before[..], &cut.ids, after].concat();
                    Ok(TokenIds { ids, ..cut })
                };
                documents.iter().enumerate().map(pair).collect()
            }
        }
    }
}
