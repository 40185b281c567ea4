//! The parts of an answer: what the model thinks before it, the words, and calls of tools. They are told apart as the text
//! comes, by the marks of the model's chat template; a text that may still become a mark is held back.

use model_actors::{FinishReason, Tool, ToolCall};

use super::calls::CallFormat;
#[cfg(test)]
use super::calls::sample::ticket;
use crate::error::{Error, Result};

/// Marks around what a model thinks, as chat templates have them.
const THOUGHTS: [(&str, &str); 2] = [("<think>", "</think>"), ("[THINK]", "[/THINK]")];

/// How the parts of a model's answers are marked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PartMarks {
    thoughts: Option<(&'static str, &'static str)>,
    calls: Option<&'static CallFormat>,
}

impl PartMarks {
    /// The marks in a chat template's text.
    pub(crate) fn of_template(template: &str) -> Self {
        let thoughts = THOUGHTS.into_iter().find(|(_, closing)| template.contains(closing));
        Self { thoughts, calls: CallFormat::of_template(template) }
    }

    /// The format of calls.
    pub(crate) fn calls(&self) -> Option<&'static CallFormat> {
        self.calls
    }

    /// The same for an answer without tools.
    pub(crate) fn without_calls(self) -> Self {
        Self { calls: None, ..self }
    }

    /// All marks, of which some are special tokens in some vocabularies.
    pub(super) fn all(&self) -> impl Iterator<Item = &'static str> {
        let thoughts = self.thoughts.into_iter().flat_map(|(opening, closing)| [opening, closing]);
        thoughts.chain(self.calls.into_iter().flat_map(CallFormat::marks))
    }

    /// The mark with which a thought begins.
    pub(super) fn thought(&self) -> Option<&'static str> {
        self.thoughts.map(|(opening, _)| opening)
    }
}

/// New text of each part.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) reasoning: String,
    pub(super) calls: Vec<ToolCall>,
}

impl Piece {
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.reasoning.is_empty() && self.calls.is_empty()
    }

    /// Both pieces, one after the other.
    pub(super) fn and(mut self, next: Self) -> Self {
        self.text.push_str(&next.text);
        self.reasoning.push_str(&next.reasoning);
        self.calls.extend(next.calls);
        self
    }
}

/// The part that a text is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum At {
    /// Before the first letter that is no white space.
    Start,
    /// At the beginning of a thought, whose first line break is no part of it.
    Thought,
    Thinking,
    /// At the beginning of the answer after a thought.
    Answer,
    #[default]
    Words,
    Call,
}

/// The parts of one text; by default it is words alone.
#[derive(Debug, Default)]
pub(super) struct Parts {
    marks: PartMarks,
    at: At,
    /// Text that is not told yet.
    held: String,
    /// Tools that are called, whose schemas some formats are read by.
    tools: Vec<Tool>,
}

impl Parts {
    /// Those of an answer to a prompt that ends with this text; a template may begin a thought itself.
    pub(super) fn new(marks: PartMarks, prompt_end: &str) -> Self {
        let thinks = marks.thought().is_some_and(|opening| prompt_end.trim_end().ends_with(opening));
        let at = match thinks {
            true => At::Thought,
            false if marks == PartMarks::default() => At::Words,
            false => At::Start,
        };
        Self { marks, at, held: String::new(), tools: Vec::new() }
    }

    /// The same, with the tools that its calls are for.
    pub(super) fn calling(self, tools: &[Tool]) -> Self {
        Self { tools: tools.to_vec(), ..self }
    }

    /// True while the model thinks: what it writes is no part of the answer.
    pub(super) fn thinks(&self) -> bool {
        matches!(self.at, At::Thought | At::Thinking)
    }

    /// True before the first letter of the answer.
    pub(super) fn is_at_start(&self) -> bool {
        self.at == At::Start && self.held.is_empty()
    }

    /// Takes more text.
    ///
    /// # Errors
    /// [`Error::UnexpectedOutput`] for a call that cannot be read.
    pub(super) fn push(&mut self, text: &str) -> Result<Piece> {
        self.held.push_str(text);
        let mut piece = Piece::default();
        while self.step(&mut piece)? {}
        Ok(piece)
    }

    /// Tells what was held back, at the end of the text; a call that was cut off is left out.
    ///
    /// # Errors
    /// [`Error::UnexpectedOutput`] for a call that a text ends in by itself.
    pub(super) fn flush(&mut self, reason: FinishReason) -> Result<Piece> {
        let held = std::mem::take(&mut self.held);
        match self.at {
            At::Thought | At::Thinking => Ok(Piece { reasoning: held, ..Piece::default() }),
            At::Call if reason == FinishReason::Length => Ok(Piece::default()),
            At::Call => {
                let reason = "the model's call of a tool has no end".to_owned();
                Err(Error::UnexpectedOutput { reason })
            }
            // After calls, white space is no part of the answer.
            At::Answer => Ok(Piece::default()),
            At::Start | At::Words => Ok(Piece { text: held, ..Piece::default() }),
        }
    }

    /// One step through the held text. False if it needs more.
    fn step(&mut self, piece: &mut Piece) -> Result<bool> {
        match self.at {
            At::Start => Ok(self.start()),
            At::Thought => Ok(self.skip_space(At::Thinking)),
            At::Answer => Ok(self.skip_space(At::Words)),
            At::Thinking => {
                let closing = self.marks.thoughts.map_or("", |(_, closing)| closing);
                let (told, found) = self.until(closing);
                piece.reasoning.push_str(&told);
                if found {
                    piece.reasoning.truncate(piece.reasoning.trim_end().len());
                    self.at = At::Answer;
                }
                Ok(found)
            }
            At::Words => {
                let Some(format) = self.marks.calls else {
                    piece.text.push_str(&std::mem::take(&mut self.held));
                    return Ok(false);
                };
                let (told, found) = self.until(format.opening);
                piece.text.push_str(&told);
                if found {
                    piece.text.truncate(piece.text.trim_end().len());
                    self.at = At::Call;
                }
                Ok(found)
            }
            At::Call => {
                let Some(format) = self.marks.calls else { return Ok(false) };
                if !format.may_be_whole(&self.held) {
                    return Ok(false);
                }
                let Some((calls, taken)) = format.read(&self.held, &self.tools)? else { return Ok(false) };
                self.held.drain(..taken);
                piece.calls.extend(calls);
                // What follows are further calls, or words.
                self.at = if format.may_be_bare { At::Start } else { At::Answer };
                Ok(!self.held.is_empty())
            }
        }
    }

    /// Looks for what begins an answer: a thought, a call without an opening, or words.
    fn start(&mut self) -> bool {
        let begun = self.held.trim_start();
        if begun.is_empty() {
            return false;
        }
        if let Some(opening) = self.marks.thought() {
            if let Some(rest) = begun.strip_prefix(opening) {
                (self.held, self.at) = (rest.to_owned(), At::Thought);
                return true;
            }
            if opening.starts_with(begun) {
                return false;
            }
        }
        let is_call = self.marks.calls.is_some_and(|format| format.may_be_bare) && begun.starts_with('{');
        self.at = if is_call { At::Call } else { At::Words };
        true
    }

    /// Leaves out white space at the beginning of a part.
    fn skip_space(&mut self, then: At) -> bool {
        let rest = self.held.trim_start();
        if rest.is_empty() {
            return false;
        }
        self.held = rest.to_owned();
        self.at = then;
        true
    }

    /// The text before a mark, which is taken, or as much as can be no part of one.
    fn until(&mut self, mark: &str) -> (String, bool) {
        if let Some(at) = self.held.find(mark) {
            let rest = self.held.split_off(at + mark.len());
            let mut told = std::mem::replace(&mut self.held, rest);
            told.truncate(at);
            return (told, true);
        }
        let keep = super::stop::overlap(&self.held, mark);
        // White space before a mark is no part of the text.
        let told = self.held[..self.held.len() - keep].trim_end().len();
        let rest = self.held.split_off(told);
        (std::mem::replace(&mut self.held, rest), false)
    }
}

#[cfg(test)]
#[path = "parts_tests.rs"]
mod tests;
