//! A question about an image as the model's chat template puts it, and the image's placeholder in it.

use std::ops::Range;
use std::path::PathBuf;

use model_actors::LoadContext;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::generation::{ChatTemplate, SpecialTokens, read_chat_template};
use crate::models::generation_config::GenerationConfig;
use crate::source::Files;
use crate::tokens::{Mask, Specials, Tokens};

/// The question where the request has none.
const DEFAULT_QUESTION: &str = "Describe this image.";

/// A chat template with the tokens around it.
#[derive(Clone)]
pub(super) struct Chat {
    template: ChatTemplate,
    special: SpecialTokens,
    settings: GenerationConfig,
    /// The placeholder.
    image: u32,
    file: PathBuf,
}

impl Chat {
    /// Reads the template and the tokens that end an answer; `image` is the number of the placeholder.
    ///
    /// # Errors
    /// [`Error::MissingFile`] if there is no template.
    pub(super) fn read(files: &Files, image: u32, context: &LoadContext) -> Result<Self> {
        let (template, special) = read_chat_template(files, context)?;
        let Some(template) = template else { return Err(files.missing("chat_template.json", context)) };
        let settings = GenerationConfig::read(files, context)?;
        let file = files.required("config.json", context)?;
        Ok(Self { template, special, settings, image, file })
    }

    /// The tokens that end an answer; `family` are those of the text half.
    pub(super) fn ends(&self, tokens: &Tokens, family: &[u32]) -> Vec<u32> {
        let named = self.special.eos.as_deref().and_then(|name| tokens.id(name));
        self.settings.ends(family, named)
    }

    /// Refuses a placeholder that the model has no row for.
    pub(super) fn check(&self, vocabulary: usize) -> Result<()> {
        if (self.image as usize) < vocabulary {
            return Ok(());
        }
        let reason = format!("the image's token {} is not below vocab_size {vocabulary}", self.image);
        Err(Error::InvalidConfig { file: self.file.clone(), reason })
    }

    /// The prompt's tokens, in which the placeholder is repeated for each of `rows`, and where.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a question that holds the placeholder, unless special tokens are split in it.
    pub(super) fn ask(
        &self,
        tokens: &Tokens,
        question: &str,
        rows: usize,
    ) -> Result<(Vec<u32>, Range<usize>)> {
        let mut ids = self.encode(tokens, question, |text| text)?;
        let place = self.places(&ids, 1)?.start;
        ids.splice(place..=place, std::iter::repeat_n(self.image, rows));
        Ok((ids, place..place + rows))
    }

    /// The same where words stand in the place of the placeholder's `word`, with `count` placeholders among them: the
    /// prompt's tokens, and the place of all from the first placeholder to the last.
    pub(super) fn ask_in_words(
        &self,
        tokens: &Tokens,
        question: &str,
        (word, words): (&str, &str),
        count: usize,
    ) -> Result<(Vec<u32>, Range<usize>)> {
        let ids = self.encode(tokens, question, |text| text.replacen(word, words, 1))?;
        let image = self.places(&ids, count)?;
        Ok((ids, image))
    }

    /// The tokens of what `written` makes of the template's text.
    fn encode(
        &self,
        tokens: &Tokens,
        question: &str,
        written: impl Fn(String) -> String,
    ) -> Result<Vec<u32>> {
        let question = if question.is_empty() { DEFAULT_QUESTION } else { question };
        // As transformers: a template may write the token that begins a text itself.
        let has_begun = |text: &str| self.special.bos.as_deref().is_some_and(|bos| text.starts_with(bos));
        let specials = |text: &str| if has_begun(text) { Specials::AsWritten } else { Specials::Added };
        let render = |mask: &Mask| self.template.render_image_question(&mask.apply(question)).map(&written);
        tokens.encode_template(&[question], render, |_| Ok(()), specials)
    }

    /// The place of all tokens from the first placeholder to the last, of which there are `count`.
    fn places(&self, ids: &[u32], count: usize) -> Result<Range<usize>> {
        let is_image = |id: &u32| *id == self.image;
        let found = ids.iter().filter(|id| is_image(id)).count();
        match (ids.iter().position(is_image), ids.iter().rposition(is_image)) {
            (Some(first), Some(last)) if found == count => Ok(first..last + 1),
            (None, _) | (_, None) => {
                let reason = "the chat template writes no token for the image".to_owned();
                Err(Error::InvalidInput(reason))
            }
            _ => {
                let reason = "the question holds the token that stands for the image".to_owned();
                Err(Error::InvalidInput(reason))
            }
        }
    }
}

/// A part of `config.json` that is there or null.
pub(super) fn part<'a>(config: &'a Value, name: &str) -> &'a Value {
    config.get(name).unwrap_or(&Value::Null)
}

/// The text half's part of `config.json`, of the model type `default` where it names none, and tied to its
/// embeddings where either table says so.
pub(super) fn text_config(config: &Value, default: &str) -> Value {
    let mut text = part(config, "text_config").clone();
    if text.is_null() {
        text = json!({});
    }
    if let Some(settings) = text.as_object_mut() {
        if !settings.contains_key("architectures") {
            settings.entry("model_type").or_insert_with(|| default.into());
        }
        if config.get("tie_word_embeddings") == Some(&Value::Bool(true)) {
            settings.insert("tie_word_embeddings".to_owned(), true.into());
        }
    }
    text
}
