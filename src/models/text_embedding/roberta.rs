//! RoBERTa (Liu et al., 2019), XLM-RoBERTa (Conneau et al., 2020; multilingual E5, BGE-M3's dense vectors) and
//! CamemBERT: BERT's shape, with positions counted from the one after padding's.

use std::path::Path;

use serde::Deserialize;

use super::Architecture;
use super::bert::{Shape, is_part};
use super::encoder::{EncoderFamily, Sizes, Transformer, invalid};
use crate::error::Result;
use crate::families::{Family, parse};
use crate::weights::WeightReader;

/// This family's lines in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> =
    family("roberta", &["RobertaModel", "RobertaForMaskedLM"]);
pub(super) const MULTILINGUAL: Family<Box<dyn Architecture>> =
    family("xlm-roberta", &["XLMRobertaModel", "XLMRobertaForMaskedLM"]);
pub(super) const FRENCH: Family<Box<dyn Architecture>> =
    family("camembert", &["CamembertModel", "CamembertForMaskedLM"]);

const fn family(
    model_type: &'static str,
    architectures: &'static [&'static str],
) -> Family<Box<dyn Architecture>> {
    Family { model_type, architectures, read: |file, config| Ok(Box::new(Roberta::read(file, config)?)) }
}

/// What `config.json` has beside BERT's settings.
#[derive(Deserialize)]
struct Padding {
    #[serde(default = "one")]
    pad_token_id: Option<u32>,
}

fn one() -> Option<u32> {
    Some(1)
}

struct Roberta {
    shape: Shape,
    padding: u32,
}

impl Roberta {
    fn read(file: &Path, config: &serde_json::Value) -> Result<Self> {
        let shape = Shape::read(file, config)?;
        let Padding { pad_token_id } = parse(file, config)?;
        let padding = pad_token_id.ok_or_else(|| invalid(file, "pad_token_id is null".to_owned()))?;
        if shape.max_position_embeddings <= padding as usize + 1 {
            let positions = shape.max_position_embeddings;
            let reason =
                format!("{positions} positions leave none after that of the padding token {padding}");
            return Err(invalid(file, reason));
        }
        Ok(Self { shape, padding })
    }
}

impl EncoderFamily for Roberta {
    const PREFIXES: &'static [&'static str] = &["", "roberta."];
    const WORDS: &'static str = "embeddings.word_embeddings.weight";

    fn sizes(&self) -> Sizes {
        let sizes = self.shape.sizes();
        Sizes { longest: sizes.longest - self.padding as usize - 1, ..sizes }
    }

    fn is_part(&self, name: &str) -> bool {
        is_part(name)
    }

    fn assemble(&self, reader: &WeightReader<'_>) -> Result<Transformer> {
        self.shape.assemble(reader, Some(self.padding))
    }
}
