//! A conversation about images as the model's chat template puts it, and the images' placeholders in it.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::Range;
use std::path::{Path, PathBuf};

use model_actors::{LoadContext, Role};
use serde_json::{Value, json};

use super::CAPABILITY;
use super::asked::Asked;
use super::small_files::SmallFiles;
use crate::architecture;
use crate::error::{Error, Result};
use crate::generation::{ChatTemplate, SpecialTokens};
use crate::limits::MAX_PROMPT_BYTES;
use crate::models::decoder::{self, DecoderConfig};
use crate::models::generation_config::GenerationConfig;
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
    pub(super) fn read(files: &SmallFiles<'_>, image: u32, context: &LoadContext) -> Result<Self> {
        let (template, special) = files.chat_template(context)?;
        let Some(template) = template else { return Err(files.missing("chat_template.json", context)) };
        let settings = files.generation(context)?;
        Ok(Self { template, special, settings, image, file: files.config(context)? })
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

    /// The prompt's tokens, in which the placeholder of each image is repeated for each of its `rows`, and their places.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a text that holds the placeholder, unless special tokens are split in it.
    pub(super) fn ask(
        &self,
        tokens: &Tokens,
        asked: &Asked<'_>,
        rows: &[usize],
    ) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let written = self.encode(tokens, asked, |text| text)?;
        self.check_count(&written, rows.len())?;
        let (mut ids, mut places, mut rows) = (Vec::with_capacity(written.len()), Vec::new(), rows.iter());
        for id in written {
            let count = if id == self.image { rows.next().copied().unwrap_or(0) } else { 1 };
            if id == self.image {
                places.push(ids.len()..ids.len() + count);
            }
            ids.extend(std::iter::repeat_n(id, count));
        }
        Ok((ids, places))
    }

    /// The same where words stand in the place of each of the placeholder's `word`, with `count` placeholders among all of
    /// them.
    pub(super) fn ask_in_words(
        &self,
        tokens: &Tokens,
        asked: &Asked<'_>,
        (word, words): (&str, &[String]),
        count: usize,
    ) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let ids = self.encode(tokens, asked, |text| replaced(&text, word, words))?;
        self.check_count(&ids, count)?;
        let is_image = |id: &u32| *id == self.image;
        let (mut places, mut end) = (Vec::new(), 0);
        for run in ids.chunk_by(|left, right| is_image(left) == is_image(right)) {
            let place = end..end + run.len();
            end = place.end;
            places.extend(run.first().is_some_and(is_image).then_some(place));
        }
        Ok((ids, places))
    }

    /// Refuses so many placeholders for images, each written as this word, that no prompt has room for them: before they are
    /// written.
    ///
    /// # Errors
    /// [`Error::InvalidInput`].
    pub(super) fn check_room(count: usize, word: &str) -> Result<()> {
        if count.saturating_mul(word.len()) <= MAX_PROMPT_BYTES {
            return Ok(());
        }
        let reason =
            format!("the images become {count} tokens of the prompt, which is more than any has room for");
        Err(Error::InvalidInput(reason))
    }

    /// The tokens of what `written` makes of the template's text. Where nothing is asked at all, a description is.
    fn encode(
        &self,
        tokens: &Tokens,
        asked: &Asked<'_>,
        written: impl Fn(String) -> String,
    ) -> Result<Vec<u32>> {
        let mut messages: Vec<(Role, Vec<Option<&str>>)> =
            asked.messages.iter().map(|message| (message.role, message.parts.clone())).collect();
        let is_empty = |part: &Option<&str>| part.is_none_or(str::is_empty);
        if messages.iter().all(|(_, parts)| parts.iter().all(is_empty))
            && let Some((_, parts)) = messages.last_mut()
        {
            parts.retain(Option::is_none);
            parts.push(Some(DEFAULT_QUESTION));
        }
        // As transformers: a template may write the token that begins a text itself.
        let has_begun = |text: &str| self.special.bos.as_deref().is_some_and(|bos| text.starts_with(bos));
        let specials = |text: &str| if has_begun(text) { Specials::AsWritten } else { Specials::Added };
        // The system's messages are the application's, and may hold special tokens.
        let is_of_people = |role: &Role| *role != Role::System;
        let of_people: Vec<&str> = messages
            .iter()
            .filter(|(role, _)| is_of_people(role))
            .flat_map(|(_, parts)| parts.iter().copied().flatten())
            .collect();
        let render = |mask: &Mask| {
            let masked = messages.iter().map(|(role, parts)| {
                let text = |text| if is_of_people(role) { mask.apply(text) } else { Cow::Borrowed(text) };
                (*role, parts.iter().map(|part| part.map(text)).collect())
            });
            self.template.render_parts(&masked.collect::<Vec<_>>()).map(&written)
        };
        tokens.encode_template(&of_people, render, |_| Ok(()), specials)
    }

    /// Refuses tokens among which there are not so many placeholders.
    fn check_count(&self, ids: &[u32], count: usize) -> Result<()> {
        let found = ids.iter().filter(|id| **id == self.image).count();
        let reason = match found.cmp(&count) {
            Ordering::Equal => return Ok(()),
            Ordering::Less => format!(
                "the chat template writes {found} tokens for images where {count} belong: it may take images of the \
                 user alone, or one"
            ),
            Ordering::Greater => "a message holds the token that stands for an image".to_owned(),
        };
        Err(Error::InvalidInput(reason))
    }
}

/// The text with each `word` replaced by the next of `words`, as far as there are some.
fn replaced(text: &str, word: &str, words: &[String]) -> String {
    let mut pieces = text.splitn(words.len() + 1, word);
    let mut replaced = pieces.next().unwrap_or_default().to_owned();
    for (piece, word) in pieces.zip(words) {
        replaced += word;
        replaced += piece;
    }
    replaced
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

/// The text half of a `config.json`.
pub(super) fn text_half(file: &Path, config: &Value, default: &str) -> Result<DecoderConfig> {
    architecture::find(decoder::FAMILIES, CAPABILITY, file, &text_config(config, default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_take_the_places_of_placeholders_in_order() {
        let words = ["<a><image>".to_owned(), "<b>".to_owned()];
        assert_eq!(replaced("x <image> y <image>", "<image>", &words), "x <a><image> y <b>");
        assert_eq!(replaced("<image><image><image>", "<image>", &words), "<a><image><b><image>");
        assert_eq!(replaced("x", "<image>", &words), "x");
        assert_eq!(replaced("x <image>", "<image>", &[]), "x <image>");
    }
}
