//! Text of people in a prompt, which must not become special tokens: one that holds `<|im_end|>` would end its turn
//! and begin another's. A template says nothing about which of its output people wrote, so it runs a second time, with
//! a stand-in for each character of theirs that special tokens are written with. What is a special token there is the
//! template's own; all else is encoded as text. Stand-ins are single characters, so that a template trims, cuts and
//! counts them as the originals; no text holds them already, so that nobody can write one.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use tokenizers::{
    AddedToken, AddedVocabulary, Encoding, Model as _, ModelWrapper, NormalizedString, Normalizer,
    NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizer, PreTokenizerWrapper, Token, Tokenizer,
};

use super::Specials;

/// Tokens of models that think, which are no turn marks although templates write them: answers hold them.
const THOUGHTS: [&str; 2] = ["<think>", "</think>"];

/// The parts of a tokenizer that encode text without special tokens in it, as `split_special_tokens` of transformers.
pub(super) struct PlainText {
    /// Does not look for special tokens; the other added ones are found as ever.
    added: AddedVocabulary,
    /// The split of a text that is not the first: some put a space before the first alone.
    later_split: Option<PreTokenizerWrapper>,
    /// The tokens that the tokenizer or its settings call special.
    special: HashSet<u32>,
    /// The other added tokens that are turn marks if the template itself writes them.
    candidates: HashSet<u32>,
    /// Characters of both; no token is without one of them, unless it is all spaces.
    marks: HashSet<char>,
    /// Some of these tokens is looked for in the normalized text, so that what becomes a mark is one too.
    normalizes: bool,
    /// Number of the token for letters that the model does not know.
    unknown: Option<u32>,
}

/// The place of an added token in a text, and its number.
pub(super) type Place = (Range<usize>, u32);

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
    /// `named` are called special by the tokenizer's settings, and count if they are added tokens.
    ///
    /// # Errors
    /// A sentence, if the split cannot be written down.
    pub(super) fn of(tokenizer: &Tokenizer, named: &[String]) -> Result<Self, String> {
        let known = tokenizer.get_added_vocabulary();
        let named = named.iter().filter_map(|name| known.get_vocab().get(name)).copied();
        let added = without(tokenizer, known, named)?;
        let (mut special, mut candidates) = (HashSet::new(), HashSet::new());
        let (mut marks, mut normalizes) = (HashSet::new(), false);
        for (id, token) in added.get_added_tokens_decoder() {
            let is_mark = |letter: &char| !letter.is_alphanumeric() && !letter.is_whitespace();
            let has_marks = token.content.contains(|letter: char| is_mark(&letter));
            if added.is_special_token(&token.content) {
                special.insert(*id);
            } else if has_marks && !THOUGHTS.contains(&token.content.as_str()) {
                candidates.insert(*id);
            } else {
                continue;
            }
            match has_marks {
                true => marks.extend(token.content.chars().filter(is_mark)),
                // A template may write it in capitals.
                false => marks.extend(
                    token.content.chars().filter(|letter| !letter.is_whitespace()).flat_map(|letter| {
                        std::iter::once(letter).chain(letter.to_lowercase()).chain(letter.to_uppercase())
                    }),
                ),
            }
            normalizes |= token.normalized;
        }
        let later_split = tokenizer.get_pre_tokenizer().map(without_first_space).transpose()?;
        let unknown = match tokenizer.get_model().tokenize("\u{10FFFF}").as_deref() {
            Ok([token]) => Some(token.id),
            _ => None,
        };
        let normalizes = normalizes && tokenizer.get_normalizer().is_some();
        Ok(Self { added, later_split, special, candidates, marks, normalizes, unknown })
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

    /// The added tokens of a masked text that are turn marks, beside those that are special in any text.
    pub(super) fn turn_marks(&self, tokenizer: &Tokenizer, masked: &str) -> HashSet<u32> {
        places(tokenizer, masked, |id| self.candidates.contains(&id)).into_iter().map(|(_, id)| id).collect()
    }

    /// The places of special tokens and of these turn marks in a text.
    pub(super) fn special_places(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        turn_marks: &HashSet<u32>,
    ) -> Vec<Place> {
        places(tokenizer, text, |id| self.special.contains(&id) || turn_marks.contains(&id))
    }

    /// True if a text holds a token that is special or could be a turn mark.
    pub(super) fn holds_any(&self, tokenizer: &Tokenizer, text: &str) -> bool {
        !self.special_places(tokenizer, text, &self.candidates).is_empty()
    }

    /// Encodes a text of which only these places are special tokens; turn marks elsewhere are text too. `text_of` gives
    /// the text of what is between them.
    ///
    /// # Errors
    /// A sentence, if the tokenizer fails.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        (places, turn_marks): (&[Place], &HashSet<u32>),
        length: usize,
        text_of: impl Fn(Range<usize>) -> Result<String, String>,
        specials: Specials,
    ) -> Result<Vec<u32>, String> {
        let added = match turn_marks.is_empty() {
            true => Cow::Borrowed(&self.added),
            false => Cow::Owned(without(tokenizer, &self.added, turn_marks.iter().copied())?),
        };
        let mut ids = Vec::new();
        let append = |range: Range<usize>, ids: &mut Vec<u32>| match range.is_empty() {
            true => Ok(()),
            false => self.append(tokenizer, &added, &text_of(range.clone())?, range.start, ids),
        };
        let mut begin = 0;
        for (place, id) in places {
            append(begin..place.start, &mut ids)?;
            ids.push(*id);
            begin = place.end;
        }
        append(begin..length, &mut ids)?;
        let encoding: Encoding = ids.into_iter().map(|id| (id, String::new(), (0, 0), None, 0)).collect();
        let encoding = tokenizer.post_process(encoding, None, specials == Specials::Added);
        Ok(encoding.map_err(|error| error.to_string())?.get_ids().to_vec())
    }

    /// Appends the tokens of a piece of text that begins at so many bytes of the whole.
    fn append(
        &self,
        tokenizer: &Tokenizer,
        added: &AddedVocabulary,
        text: &str,
        begin: usize,
        ids: &mut Vec<u32>,
    ) -> Result<(), String> {
        let words = |error: tokenizers::Error| error.to_string();
        let mut parts = added.extract_and_normalize(tokenizer.get_normalizer(), text);
        let split = if begin == 0 { tokenizer.get_pre_tokenizer() } else { self.later_split.as_ref() };
        split.map_or(Ok(()), |split| split.pre_tokenize(&mut parts)).map_err(words)?;
        parts.tokenize(|part| self.tokenize(tokenizer.get_model(), added, part.get())).map_err(words)?;
        let encoding = parts.into_encoding(None, 0, OffsetType::None).map_err(words)?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The tokens of a word. A model's own vocabulary may hold special tokens, and make one of their text: its letters are
    /// taken one by one then.
    fn tokenize(
        &self,
        model: &ModelWrapper,
        added: &AddedVocabulary,
        word: &str,
    ) -> tokenizers::Result<Vec<Token>> {
        let is_special = |token: &Token, text: &str| {
            let known = added.get_added_tokens_decoder().get(&token.id);
            known.is_some_and(|known| {
                let is_unknown = self.unknown == Some(token.id) && text != known.content;
                added.is_special_token(&known.content) && !is_unknown && !known.content.trim().is_empty()
            })
        };
        let mut tokens = Vec::new();
        for token in model.tokenize(word)? {
            let text = word.get(token.offsets.0..token.offsets.1).unwrap_or(word);
            if !is_special(&token, text) {
                tokens.push(token);
                continue;
            }
            for letter in text.char_indices().filter_map(|(at, letter)| text.get(at..at + letter.len_utf8()))
            {
                let alone = model.tokenize(letter)?;
                if alone.iter().any(|token| is_special(token, letter)) {
                    return Err(format!("{letter:?} is a special token, and cannot be told from one").into());
                }
                tokens.extend(alone);
            }
        }
        Ok(tokens)
    }
}

/// The added tokens in a text that are `wanted`.
fn places(tokenizer: &Tokenizer, text: &str, wanted: impl Fn(u32) -> bool) -> Vec<Place> {
    let parts = tokenizer.get_added_vocabulary().extract_and_normalize(tokenizer.get_normalizer(), text);
    let splits = parts.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let tokens = splits.into_iter().filter_map(|(_, (start, end), tokens)| {
        let id = tokens.as_ref()?.first()?.id;
        wanted(id).then_some((start..end, id))
    });
    tokens.collect()
}

/// Numbers of tokens with their lengths and the lengths of what is before each, in letters, which stand-ins leave as they
/// are. Nothing for a token that begins or ends inside of a letter.
pub(super) fn in_letters(text: &str, places: &[Place]) -> Option<Vec<(usize, usize, u32)>> {
    let letters = |range: Range<usize>| text.get(range).map(|text| text.chars().count());
    let mut end = 0;
    let measured = places.iter().map(|(place, id)| {
        let before = letters(end..place.start)?;
        end = place.end;
        Some((before, letters(place.clone())?, *id))
    });
    measured.collect()
}

/// The added tokens, so that special ones and these are not looked for.
fn without(
    tokenizer: &Tokenizer,
    added: &AddedVocabulary,
    more: impl Iterator<Item = u32>,
) -> Result<AddedVocabulary, String> {
    let mut added = added.clone();
    let more: Vec<AddedToken> = more
        .filter_map(|id| added.get_added_tokens_decoder().get(&id))
        .map(|token| token.clone().special(true))
        .collect();
    if !more.is_empty() {
        let changed = added.add_special_tokens(more, tokenizer.get_model(), tokenizer.get_normalizer());
        changed.map_err(|error| error.to_string())?;
    }
    added.set_encode_special_tokens(true);
    Ok(added)
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
