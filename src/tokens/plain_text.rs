//! Text of people in a prompt, which must not become special tokens: one that holds `<|im_end|>` would end its turn
//! and begin another's. A template says nothing about which of its output people wrote, so it runs a second time, with
//! a stand-in for each character of theirs that special tokens are written with. What is a special token there is the
//! template's own; all else is encoded as text. Stand-ins are single characters, so that a template trims, cuts and
//! counts them as the originals; no text holds them already, so that nobody can write one.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use tokenizers::{
    AddedVocabulary, Encoding, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential,
    OffsetType, PreTokenizer, PreTokenizerWrapper, Tokenizer,
};

use super::Specials;

/// The parts of a tokenizer that encode text without special tokens in it, as `split_special_tokens` of transformers.
pub(super) struct PlainText {
    /// Does not look for special tokens; the other added ones are found as ever.
    added: AddedVocabulary,
    /// The split of a text that is not the first: some put a space before the first alone.
    later_split: Option<PreTokenizerWrapper>,
    /// Characters of special tokens; none is without one of them.
    marks: HashSet<char>,
    /// Some special token is looked for in the normalized text, so that what becomes a mark is one too.
    normalizes: bool,
}

/// Stand-ins for the characters of special tokens. By default there are none.
#[derive(Debug, Default)]
pub(crate) struct Mask {
    stand_ins: HashMap<char, char>,
    originals: HashMap<char, char>,
}

impl Mask {
    pub(super) fn is_empty(&self) -> bool {
        self.stand_ins.is_empty()
    }

    /// The text with stand-ins.
    pub(crate) fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        exchange(text, &self.stand_ins)
    }

    /// The text as it was.
    pub(super) fn undo<'a>(&self, text: &'a str) -> Cow<'a, str> {
        exchange(text, &self.originals)
    }
}

fn exchange<'a>(text: &'a str, by: &HashMap<char, char>) -> Cow<'a, str> {
    if by.is_empty() {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|letter| by.get(&letter).copied().unwrap_or(letter)).collect())
}

impl PlainText {
    /// # Errors
    /// A sentence, if the split cannot be written down.
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<Self, String> {
        let mut added = tokenizer.get_added_vocabulary().clone();
        added.set_encode_special_tokens(true);
        let (mut marks, mut normalizes) = (HashSet::new(), false);
        let all = added.get_added_tokens_decoder().values();
        for token in all.filter(|token| added.is_special_token(&token.content)) {
            let is_mark = |letter: &char| !letter.is_alphanumeric() && !letter.is_whitespace();
            match token.content.contains(|letter: char| is_mark(&letter)) {
                true => marks.extend(token.content.chars().filter(is_mark)),
                // A template may write it in capitals.
                false => marks.extend(token.content.chars().flat_map(|letter| {
                    std::iter::once(letter).chain(letter.to_lowercase()).chain(letter.to_uppercase())
                })),
            }
            normalizes |= token.normalized;
        }
        let later_split = tokenizer.get_pre_tokenizer().map(without_first_space).transpose()?;
        Ok(Self { added, later_split, marks, normalizes: normalizes && tokenizer.get_normalizer().is_some() })
    }

    /// Stand-ins for the marks in what people have written. `rendered` holds what the template adds to it.
    ///
    /// # Errors
    /// A sentence, if the texts leave no characters for them.
    pub(super) fn mask(
        &self,
        tokenizer: &Tokenizer,
        written: &[&str],
        rendered: &str,
    ) -> Result<Mask, String> {
        let letters: HashSet<char> = written.iter().flat_map(|text| text.chars()).collect();
        let found: Vec<char> =
            letters.into_iter().filter(|letter| self.is_mark(tokenizer, *letter)).collect();
        let is_private =
            |letter: &char| matches!(letter, '\u{E000}'..='\u{F8FF}' | '\u{F0000}'..='\u{FFFFD}');
        let texts = written.iter().copied().chain([rendered]).flat_map(str::chars);
        let taken: HashSet<char> = texts.chain(self.marks.iter().copied()).filter(is_private).collect();
        let free = ('\u{E000}'..='\u{F8FF}').chain('\u{F0000}'..='\u{FFFFD}');
        let stand_ins: HashMap<char, char> =
            found.iter().copied().zip(free.filter(|letter| !taken.contains(letter))).collect();
        if stand_ins.len() < found.len() {
            return Err("it uses too many of Unicode's private characters".to_owned());
        }
        let originals = stand_ins.iter().map(|(original, stand_in)| (*stand_in, *original)).collect();
        Ok(Mask { stand_ins, originals })
    }

    fn is_mark(&self, tokenizer: &Tokenizer, letter: char) -> bool {
        if self.marks.contains(&letter) {
            return true;
        }
        let Some(normalizer) = tokenizer.get_normalizer().filter(|_| self.normalizes) else { return false };
        if letter.is_ascii() || letter.is_whitespace() {
            return false;
        }
        // What it writes around any letter tells nothing of this one.
        let (own, any) = (normalized(normalizer, letter), normalized(normalizer, 'a'));
        own.chars().any(|made| self.marks.contains(&made) && !any.contains(made))
    }

    /// The places of special tokens in a text, with their numbers.
    pub(super) fn special_places(&self, tokenizer: &Tokenizer, text: &str) -> Vec<(Range<usize>, u32)> {
        let added = tokenizer.get_added_vocabulary();
        let parts = added.extract_and_normalize(tokenizer.get_normalizer(), text);
        let special = |id: u32| {
            let token = added.get_added_tokens_decoder().get(&id);
            token.is_some_and(|token| added.is_special_token(&token.content))
        };
        let splits = parts.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let tokens = splits.into_iter().filter_map(|(_, (start, end), tokens)| {
            let id = tokens.as_ref()?.first()?.id;
            special(id).then_some((start..end, id))
        });
        tokens.collect()
    }

    /// Encodes a text of which only these places are special tokens. `text_of` gives the text of what is between them.
    ///
    /// # Errors
    /// A sentence, if the tokenizer fails.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        places: &[(Range<usize>, u32)],
        length: usize,
        text_of: impl Fn(Range<usize>) -> Result<String, String>,
        specials: Specials,
    ) -> Result<Vec<u32>, String> {
        let (mut ids, mut begin) = (Vec::new(), 0);
        for (place, id) in places {
            if begin < place.start {
                self.append(tokenizer, &text_of(begin..place.start)?, begin, &mut ids)?;
            }
            ids.push(*id);
            begin = place.end;
        }
        if begin < length {
            self.append(tokenizer, &text_of(begin..length)?, begin, &mut ids)?;
        }
        let encoding: Encoding = ids.into_iter().map(|id| (id, String::new(), (0, 0), None, 0)).collect();
        let encoding = tokenizer.post_process(encoding, None, specials == Specials::Added);
        Ok(encoding.map_err(|error| error.to_string())?.get_ids().to_vec())
    }

    /// Appends the tokens of a piece of text that begins at so many bytes of the whole.
    fn append(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        begin: usize,
        ids: &mut Vec<u32>,
    ) -> Result<(), String> {
        use tokenizers::Model as _;
        let words = |error: tokenizers::Error| error.to_string();
        let mut parts = self.added.extract_and_normalize(tokenizer.get_normalizer(), text);
        let split = if begin == 0 { tokenizer.get_pre_tokenizer() } else { self.later_split.as_ref() };
        split.map_or(Ok(()), |split| split.pre_tokenize(&mut parts)).map_err(words)?;
        parts.tokenize(|part| tokenizer.get_model().tokenize(part.get())).map_err(words)?;
        let encoding = parts.into_encoding(None, 0, OffsetType::None).map_err(words)?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}

fn normalized(normalizer: &NormalizerWrapper, letter: char) -> String {
    let mut text = NormalizedString::from(letter.to_string());
    match normalizer.normalize(&mut text) {
        Ok(()) => text.get().to_owned(),
        Err(_) => letter.to_string(),
    }
}

/// The split, so that it puts no space before the first word of a text.
fn without_first_space(split: &PreTokenizerWrapper) -> Result<PreTokenizerWrapper, String> {
    let words = |error: serde_json::Error| error.to_string();
    let mut written = serde_json::to_value(split).map_err(words)?;
    change_first(&mut written);
    serde_json::from_value(written).map_err(words)
}

fn change_first(split: &mut serde_json::Value) {
    if let Some(scheme) = split.get_mut("prepend_scheme").filter(|scheme| *scheme == "first") {
        *scheme = "never".into();
    }
    let parts = split.get_mut("pretokenizers").and_then(serde_json::Value::as_array_mut);
    parts.into_iter().flatten().for_each(change_first);
}
