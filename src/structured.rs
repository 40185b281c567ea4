//! Structured output: texts that keep to a JSON schema, a regular expression or a grammar, token by token. A constraint is
//! compiled on a thread with a large stack and a deadline, once in the caller's task, where what cannot be met is refused,
//! and once for a model's tokenizer, which it is kept for. Choosing a token of those that it leaves is up to `generation`.
//!
//! The work is llguidance's, in `engine`. It catches its own panics; for that it wraps the process's panic hook the first
//! time, so that its own are not printed and all others are passed on.

#[cfg(feature = "structured")]
mod place;
#[cfg(feature = "structured")]
mod schema;
#[cfg(feature = "structured")]
mod engine;
#[cfg(feature = "structured")]
mod types;
#[cfg(not(feature = "structured"))]
#[path = "structured/absent.rs"]
mod engine;

#[cfg(all(test, feature = "structured"))]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use model_actors::{Bytes, Constraint, Tool};

use crate::error::{Error, Result};
use crate::large_stack::{Failure, Threads};
use crate::tokens::Tokens;
#[cfg(not(feature = "structured"))]
pub(crate) use engine::compiled_schema;
pub(crate) use engine::{Grammar, Progress};
use engine::{Template, Vocabulary};
#[cfg(feature = "structured")]
pub(crate) use schema::adapted as compiled_schema;
#[cfg(feature = "structured")]
pub(crate) use types::{schema_of, value_of};

/// Maximum number of constraints that a model keeps compiled, and that are known to be good.
const MAX_KEPT: usize = 16;
/// Maximum number of bytes of one of them.
const MAX_KEPT_BYTES: usize = 16 << 10;

/// Fault of a constraint, and the place of it where that is known.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    place: String,
    reason: String,
}

impl Fault {
    fn new(reason: impl Into<String>) -> Self {
        Self { place: String::new(), reason: reason.into() }
    }
}

/// The last constraints, the newest at the end, with what is kept of each.
struct Kept<T>(Mutex<VecDeque<(Constraint, T)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Kept<T> {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(Constraint, T)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something of what is kept of a constraint.
    fn find<O>(&self, constraint: &Constraint, of: impl FnOnce(&T) -> O) -> Option<O> {
        self.lock().iter().find(|(kept, _)| kept == constraint).map(|(_, value)| of(value))
    }

    fn keep(&self, constraint: Constraint, value: T) {
        if constraint.text().len() > MAX_KEPT_BYTES {
            return;
        }
        let mut kept = self.lock();
        kept.retain(|(other, _)| *other != constraint);
        kept.push_back((constraint, value));
        if kept.len() > MAX_KEPT {
            kept.pop_front();
        }
    }
}

/// The error about a constraint whose compilation failed; `fault` came from it, if it ended.
fn failed(constraint: &Constraint, failure: Failure, fault: Option<Fault>) -> Error {
    let name = constraint.to_string();
    match (failure, fault) {
        (Failure::Busy(reason), _) => Error::ConstraintUnavailable { constraint: name, reason },
        (Failure::Work(_), Some(Fault { place, reason })) => {
            Error::InvalidConstraint { constraint: name, place, reason }
        }
        (Failure::Work(reason), None) => {
            Error::InvalidConstraint { constraint: name, place: String::new(), reason }
        }
    }
}

/// Compiles on a thread with a large stack.
fn compiled<T: Send + 'static>(
    threads: &Threads,
    constraint: &Constraint,
    compile: impl FnOnce(&Constraint) -> Result<T, Fault> + Send + 'static,
) -> Result<T> {
    let (found, own) = (Arc::new(Mutex::new(None)), constraint.clone());
    let told = Arc::clone(&found);
    let work = move || {
        compile(&own).map_err(|fault| {
            let reason = fault.reason.clone();
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
            reason
        })
    };
    threads.run(work).map_err(|failure| {
        let fault = found.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed(constraint, failure, fault)
    })
}

/// The check of constraints in the caller's task, before a request is queued: whether they are well formed, are understood,
/// and leave any text. A clone shares what it knows.
#[derive(Clone)]
pub(crate) struct ConstraintCheck {
    threads: Threads,
    good: Arc<Kept<()>>,
}

impl Default for ConstraintCheck {
    fn default() -> Self {
        Self { threads: Threads::of_many("constraint"), good: Arc::default() }
    }
}

impl fmt::Debug for ConstraintCheck {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ConstraintCheck")
    }
}

impl ConstraintCheck {
    /// Checks the schemas of tools as constraints of their arguments.
    ///
    /// # Errors
    /// As [`Self::check`], with the tool's name.
    pub(crate) async fn check_tools(&self, tools: &[Tool]) -> Result<()> {
        for tool in tools {
            let schema = Constraint::json_schema(&tool.parameters);
            self.check(Some(&schema)).await.map_err(|error| match error {
                Error::InvalidConstraint { constraint, place, reason } => {
                    let constraint = format!("{constraint} of the tool {}", tool.name);
                    Error::InvalidConstraint { constraint, place, reason }
                }
                other => other,
            })?;
        }
        Ok(())
    }

    /// Checks a constraint, off the threads of the async runtime, and within the time that a thread has.
    ///
    /// # Errors
    /// [`Error::InvalidConstraint`], [`Error::ConstraintUnavailable`].
    pub(crate) async fn check(&self, constraint: Option<&Constraint>) -> Result<()> {
        let Some(constraint) = constraint else { return Ok(()) };
        if self.good.find(constraint, |()| ()).is_some() {
            return Ok(());
        }
        let (threads, own) = (self.threads.clone(), constraint.clone());
        let checked = tokio::task::spawn_blocking(move || compiled(&threads, &own, engine::check));
        checked.await.unwrap_or_else(|error| {
            let (constraint, reason) = (constraint.to_string(), error.to_string());
            Err(Error::ConstraintUnavailable { constraint, reason })
        })?;
        self.good.keep(constraint.clone(), ());
        Ok(())
    }
}

/// The constraints of one model: its vocabulary as a trie, which is made for the first of them, and the last ones that were
/// compiled for it. Shared by the workers.
pub(crate) struct Grammars {
    tokens: Tokens,
    ends: Vec<u32>,
    rows: usize,
    threads: Threads,
    vocabulary: OnceLock<Arc<Vocabulary>>,
    kept: Kept<Template>,
}

impl Grammars {
    /// Those of a model with so many rows, whose texts end with any of `ends`.
    pub(crate) fn new(tokens: &Tokens, ends: &[u32], rows: usize) -> Self {
        Self {
            tokens: tokens.clone(),
            ends: ends.to_vec(),
            rows,
            threads: Threads::of_many("grammar"),
            vocabulary: OnceLock::new(),
            kept: Kept::default(),
        }
    }

    /// Memory that the trie of a vocabulary with so many rows takes.
    pub(crate) fn bytes(rows: usize) -> Bytes {
        Bytes((rows as u64).saturating_mul(engine::TRIE_BYTES))
    }

    /// The constraint of a new text, which is at its beginning.
    ///
    /// # Errors
    /// [`Error::InvalidConstraint`], [`Error::ConstraintUnavailable`].
    pub(crate) fn begin(&self, constraint: &Constraint) -> Result<Grammar> {
        let vocabulary = self.vocabulary(constraint)?;
        if let Some(grammar) = self.kept.find(constraint, |template| template.begin(&vocabulary)) {
            return Ok(grammar);
        }
        let own = Arc::clone(&vocabulary);
        let template = compiled(&self.threads, constraint, move |constraint| own.compile(constraint))?;
        let grammar = template.begin(&vocabulary);
        self.kept.keep(constraint.clone(), template);
        Ok(grammar)
    }

    fn vocabulary(&self, constraint: &Constraint) -> Result<Arc<Vocabulary>> {
        if let Some(vocabulary) = self.vocabulary.get() {
            return Ok(Arc::clone(vocabulary));
        }
        let (tokens, ends, rows) = (self.tokens.clone(), self.ends.clone(), self.rows);
        let made = compiled(&self.threads, constraint, move |_| Vocabulary::new(&tokens, &ends, rows))?;
        Ok(Arc::clone(self.vocabulary.get_or_init(|| Arc::new(made))))
    }
}
