//! The tokenizer and the chat template of a model in a GGUF file: its own, unless files beside it have them. The network is
//! left to the capabilities.

use std::path::Path;

use model_actors::LoadContext;

use crate::error::{Error, Result};
use crate::generation::{self, ChatTemplate, SpecialTokens};
use crate::gguf::GgufFile;
use crate::source::Files;
use crate::tokens::{TokenizerFiles, Tokens, special_names};

/// The tokenizer, the template and the ends of a model's texts, by its file and those beside it.
pub(crate) struct GgufText {
    /// The tokenizer beside the file, where there is one.
    pub(crate) tokenizer: Option<TokenizerFiles>,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) special: SpecialTokens,
    /// The tokens that the file calls ends.
    pub(crate) ends: Vec<u32>,
}

impl GgufText {
    /// Reads them.
    ///
    /// # Errors
    /// [`Error::InvalidGguf`] for a file without a tokenizer that has none beside it; those of the files beside it.
    pub(crate) fn read(files: &Files, file: &GgufFile, context: &LoadContext) -> Result<Self> {
        let tokenizer = TokenizerFiles::whole(files, context)?;
        let (mut template, mut special) = generation::read_chat_template(files, context)?;
        let mut ends = Vec::new();
        // A file may come without a tokenizer where there is one beside it.
        let own = match (file.tokenizer(), &tokenizer) {
            (Ok(own), _) => Some(own),
            (Err(_), Some(_)) => None,
            (Err(Error::InvalidGguf { file, reason }), None) => {
                let reason = format!(
                    "{reason}; take a file that has one, or load a directory that holds this file and the model's \
                     tokenizer.json"
                );
                return Err(Error::InvalidGguf { file, reason });
            }
            (Err(error), None) => return Err(error),
        };
        if let Some(own) = own {
            ends.extend(own.ends());
            if special == SpecialTokens::default() {
                special = generation::special_tokens_of(&own);
            }
            if let (None, Some(source)) = (&template, &own.chat_template) {
                template = Some(ChatTemplate::new(source, special.clone(), file.path())?);
            }
        }
        Ok(Self { tokenizer, template, special, ends })
    }
}

/// The file that has the tokenizer: one beside a GGUF file, or that itself.
pub(crate) fn tokenizer_path<'a>(tokenizer: Option<&'a TokenizerFiles>, file: &'a GgufFile) -> &'a Path {
    tokenizer.map_or(file.path(), TokenizerFiles::path)
}

/// Reads the tokenizer.
///
/// # Errors
/// [`Error::InvalidTokenizer`].
pub(crate) fn tokens(tokenizer: Option<&TokenizerFiles>, file: &GgufFile) -> Result<Tokens> {
    match tokenizer {
        Some(files) => Tokens::read_whole(files),
        None => generation::tokens_of(&file.tokenizer()?)
            .map_err(|reason| Error::InvalidTokenizer { file: file.path().to_owned(), reason }),
    }
}

/// The names of special tokens that settings beside a tokenizer have.
///
/// # Errors
/// Those of reading them.
pub(crate) fn names(
    tokenizer: Option<&TokenizerFiles>,
    files: &Files,
    context: &LoadContext,
) -> Result<Vec<String>> {
    tokenizer.map_or(Ok(Vec::new()), |_| special_names(files, context))
}
