//! The stand-in where the feature `structured` is off: every constraint is refused.

use std::convert::Infallible;

use model_actors::Constraint;
use serde_json::Value;

use super::Fault;
use crate::error::Result;
use crate::tokens::Tokens;

pub(super) const TRIE_BYTES: u64 = 0;

pub(super) struct Vocabulary(Infallible);
pub(super) struct Template(Infallible);
pub(crate) struct Grammar(Infallible);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    #[expect(dead_code, reason = "no text has a constraint")]
    More,
    Complete,
}

/// The schema as it is.
pub(crate) fn compiled_schema(schema: &Value) -> Value {
    schema.clone()
}

fn absent() -> Fault {
    Fault::new("this build of candle-actors has no feature `structured`")
}

pub(super) fn check(_: &Constraint) -> Result<(), Fault> {
    Err(absent())
}

impl Vocabulary {
    pub(super) fn new(_: &Tokens, _: &[u32], _: usize) -> Result<Self, Fault> {
        Err(absent())
    }

    pub(super) fn compile(&self, _: &Constraint) -> Result<Template, Fault> {
        match self.0 {}
    }
}

impl Template {
    pub(super) fn begin(&self, _: &Vocabulary) -> Grammar {
        match self.0 {}
    }
}

impl Grammar {
    pub(crate) fn fork(&self) -> Self {
        match self.0 {}
    }

    pub(crate) fn bar(&mut self, _: &mut [f32], _: &[u32], _: bool) -> Result<()> {
        match self.0 {}
    }

    pub(crate) fn take(&mut self, _: u32) -> Result<Progress> {
        match self.0 {}
    }
}
