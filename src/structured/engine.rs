//! Constraints by llguidance: a vocabulary becomes a trie of the bytes of its tokens, a constraint an Earley parser over a
//! lexer of regular expressions' derivatives, and the two give the tokens that a text may go on with. To be called on a
//! large stack but for [`Grammar`], whose work does not recurse.

use std::sync::{Arc, LazyLock};

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, panic_utils};
use model_actors::Constraint;
use serde_json::Value;

use super::{Fault, place, schema};
use crate::error::{Error, Result};
use crate::tokens::Tokens;

/// Bytes that the trie and its parts take for each row of a model, as measured with 131,072 words of two to ten letters.
pub(super) const TRIE_BYTES: u64 = 384;
/// Maximum number of states of a text's lexer, of one to two kilobytes each.
const MAX_LEXER_STATES: usize = 1 << 15;
/// Maximum number of rows of a model, which the trie has 24 bits for.
const MAX_VOCABULARY: usize = 1 << 21;
/// Maximum number of bytes of a token that constrained texts may have; the trie has ten bits for its depth.
const MAX_TOKEN_BYTES: usize = 1000;
/// Maximum number of letters of an error that are told.
const MAX_REASON: usize = 500;
/// First byte of a special token in the trie, where it is followed by the token's name.
const SPECIAL: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
/// A model's vocabulary.
pub(super) struct Vocabulary {
    factory: ParserFactory,
    /// Tokens that begin with a space, where the tokenizer leaves that out at the beginning of a text.
    stripped: Option<SimpleVob>,
}

/// A compiled constraint, from which each text has its own.
pub(super) struct Template(Matcher);

/// The constraint of one text.
pub(crate) struct Grammar {
    matcher: Matcher,
    tokens: usize,
    vocabulary: Arc<Vocabulary>,
}

/// State of a text after a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It may go on.
    More,
    /// It satisfies the constraint and cannot go on.
    Complete,
}

/// Runs what llguidance does not guard itself, so that a panic is a fault.
macro_rules! guarded {
    ($work:expr) => {
        panic_utils::catch_unwind(std::panic::AssertUnwindSafe(|| $work)).map_err(|error| fault(&error))
    };
}

/// A fault in few words: without the state of the parser and the backtrace of a panic.
fn fault(error: &impl std::fmt::Display) -> Fault {
    let words = format!("{error:#}");
    let end =
        ["\n<backtrace>", "\n<state>", "\n<non-verbose/>"].iter().filter_map(|mark| words.find(mark)).min();
    let words = words.get(..end.unwrap_or(words.len())).unwrap_or(&words).trim();
    Fault::new(words.chars().take(MAX_REASON).collect::<String>())
}

fn limits() -> ParserLimits {
    ParserLimits { max_lexer_states: MAX_LEXER_STATES, verbose_errors: false, ..ParserLimits::default() }
}

fn factory(environment: ApproximateTokEnv) -> Result<ParserFactory, Fault> {
    let environment: TokEnv = Arc::new(environment);
    let mut factory = guarded!(ParserFactory::new_simple(&environment))?;
    factory.quiet();
    *factory.limits_mut() = limits();
    Ok(factory)
}

/// The constraint in llguidance's form.
fn grammar(constraint: &Constraint) -> Result<TopLevelGrammar, Fault> {
    match constraint {
        Constraint::JsonSchema(text) => Ok(schema_grammar(&schema::parsed(text)?)),
        Constraint::Regex(expression) => Ok(TopLevelGrammar::from_regex(expression)),
        Constraint::Lark(grammar) => Ok(TopLevelGrammar::from_lark(grammar.clone())),
        _ => Err(Fault::new("it is of a kind that is not supported")),
    }
}

fn schema_grammar(schema: &Value) -> TopLevelGrammar {
    TopLevelGrammar::from_json_schema(schema::adapted(schema))
}

/// A vocabulary of single bytes, which can write whatever any model can.
static ANY_BYTES: LazyLock<Result<ParserFactory, String>> =
    LazyLock::new(|| factory(ApproximateTokEnv::single_byte()).map_err(|fault| fault.reason));

/// Checks a constraint without a model. What a grammar says of a model's special tokens is left to the model.
pub(super) fn check(constraint: &Constraint) -> Result<(), Fault> {
    let any = ANY_BYTES.as_ref().map_err(Fault::new)?;
    if let Constraint::Lark(_) = constraint {
        let grammar = grammar(constraint)?;
        return guarded!(GrammarInit::Serialized(grammar).to_internal(None, limits())).map(drop);
    }
    matcher(any, constraint).map(drop)
}

/// A parser at the beginning of a text, which has a way to go on.
fn matcher(factory: &ParserFactory, constraint: &Constraint) -> Result<Matcher, Fault> {
    let start = |grammar: TopLevelGrammar| -> Result<Matcher, Fault> {
        let parser = factory.create_parser(grammar).map_err(|error| fault(&error))?;
        let mut matcher = Matcher::new(Ok(parser));
        matcher.compute_mask().map_err(|_| Fault::new("no text satisfies it"))?;
        Ok(matcher)
    };
    let started = start(grammar(constraint)?);
    let (Err(fault), Constraint::JsonSchema(text)) = (&started, constraint) else { return started };
    let place = place::of(&schema::parsed(text)?, &fault.reason, |part| {
        start(schema_grammar(part)).err().map(|fault| fault.reason)
    });
    started.map_err(|fault| Fault { place, ..fault })
}

/// The bytes of each row's token: none for what no text has.
fn words(tokens: &Tokens, rows: u32) -> Vec<Vec<u8>> {
    let word = |id: u32| {
        let bytes = tokens.bytes(id);
        match bytes.first() {
            None => Vec::new(),
            _ if bytes.len() > MAX_TOKEN_BYTES => Vec::new(),
            _ if !tokens.has_text(id) => [&[SPECIAL], bytes.as_slice()].concat(),
            // No text in UTF-8 has the byte.
            Some(&SPECIAL) => Vec::new(),
            Some(_) => bytes,
        }
    };
    (0..rows).map(word).collect()
}

impl Vocabulary {
    /// The trie of a model's vocabulary with so many rows.
    pub(super) fn new(tokens: &Tokens, ends: &[u32], rows: usize) -> Result<Self, Fault> {
        let rows =
            u32::try_from(rows).ok().filter(|rows| *rows as usize <= MAX_VOCABULARY).ok_or_else(|| {
                Fault::new(format!("the model has {rows} tokens; at most {MAX_VOCABULARY} are allowed"))
            })?;
        let words = words(tokens, rows);
        let ends: Vec<u32> = ends.iter().copied().filter(|end| *end < rows).collect();
        let trie = guarded!(Ok(TokTrie::from(&TokRxInfo::new(rows, INVALID_TOKEN), &words)))?;
        let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) };
        let stripped = stripped(tokens, &trie, &words);
        Ok(Self { factory: factory(ApproximateTokEnv::new(trie))?, stripped })
    }

    /// Compiles a constraint for it.
    pub(super) fn compile(&self, constraint: &Constraint) -> Result<Template, Fault> {
        matcher(&self.factory, constraint).map(Template)
    }
}

/// Tokens that begin with a space, if the tokenizer leaves it out at the beginning of a text.
fn stripped(tokens: &Tokens, trie: &TokTrie, words: &[Vec<u8>]) -> Option<SimpleVob> {
    let is_spaced =
        |word: &Vec<u8>| word.starts_with(b" ") && word.get(1).is_some_and(|second| *second != b' ');
    let first = u32::try_from(words.iter().position(is_spaced)?).ok()?;
    if tokens.decode(&[first]).ok()?.starts_with(' ') {
        return None;
    }
    let mut stripped = trie.alloc_token_set();
    let spaced = words.iter().enumerate().filter(|(_, word)| word.starts_with(b" "));
    spaced.for_each(|(token, _)| stripped.set(token, true));
    Some(stripped)
}

impl Template {
    /// The constraint of a new text. It shares nothing with other texts, so that they neither wait for nor fail each other.
    pub(super) fn begin(&self, vocabulary: &Arc<Vocabulary>) -> Grammar {
        Grammar { matcher: self.0.deep_clone(), tokens: 0, vocabulary: Arc::clone(vocabulary) }
    }
}

impl Grammar {
    /// The same constraint of another text, which shares nothing with this one.
    pub(crate) fn fork(&self) -> Self {
        let vocabulary = Arc::clone(&self.vocabulary);
        Self { matcher: self.matcher.deep_clone(), tokens: self.tokens, vocabulary }
    }

    /// Sets the logits of all tokens that the text cannot go on with to negative infinity. Of `ends`, which end the text
    /// whatever they stand for, none is left while the text does not satisfy the constraint, nor with `bars_ends`, unless
    /// nothing else is.
    ///
    /// # Errors
    /// [`Error::ConstraintFailed`] if no token is left.
    pub(crate) fn bar(&mut self, logits: &mut [f32], ends: &[u32], bars_ends: bool) -> Result<()> {
        let mut allowed =
            self.matcher.compute_mask().map_err(|error| self.dead_end(&fault(&error).reason))?;
        let is_whole = self.matcher.is_accepting().map_err(|error| self.dead_end(&fault(&error).reason))?;
        if let Some(stripped) = self.vocabulary.stripped.as_ref().filter(|_| self.tokens == 0) {
            allowed.sub(stripped);
        }
        let mut without_ends = allowed.clone();
        let tokens = allowed.len();
        for end in ends.iter().copied().filter(|end| (*end as usize) < tokens) {
            allowed.set(end as usize, is_whole);
            without_ends.set(end as usize, false);
        }
        if bars_ends && !without_ends.is_zero() {
            allowed = without_ends;
        }
        if allowed.is_zero() {
            return Err(self.dead_end("the vocabulary has no token for it"));
        }
        let (pieces, words) = (logits.chunks_mut(u32::BITS as usize), allowed.as_slice());
        for (piece, word) in pieces.zip(words.iter().copied().chain(std::iter::repeat(0))) {
            match word {
                0 => piece.fill(f32::NEG_INFINITY),
                _ => piece.iter_mut().enumerate().for_each(|(bit, logit)| {
                    // One that penalties made infinite is still better than what the text cannot have.
                    *logit = if word >> bit & 1 == 1 { logit.max(f32::MIN) } else { f32::NEG_INFINITY };
                }),
            }
        }
        Ok(())
    }

    /// Goes on with a token that is no end.
    ///
    /// # Errors
    /// [`Error::ConstraintFailed`].
    pub(crate) fn take(&mut self, token: u32) -> Result<Progress> {
        self.tokens += 1;
        self.matcher.consume_token(token).map_err(|error| self.dead_end(&fault(&error).reason))?;
        Ok(if self.matcher.is_stopped() { Progress::Complete } else { Progress::More })
    }

    fn dead_end(&self, reason: &str) -> Error {
        Error::ConstraintFailed { tokens: self.tokens, reason: reason.to_owned() }
    }
}
