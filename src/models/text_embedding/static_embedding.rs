//! Static embeddings (Tulkens and van Dongen, 2024: model2vec; sentence-transformers' `StaticEmbedding`): a vector for
//! each token whatever is around it, and their mean for a text. There is no transformer and no `config.json` that would
//! say how large the table is; the weights do. The table stays in the host's memory, since nothing is computed with it
//! but that mean.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};

use super::{Architecture, Encoder, TokenBatch, Watch};
use crate::error::{Error, Result};
use crate::limits::MAX_TEXT_BYTES;
use crate::models::config_file::{invalid, unsupported};
use crate::models::transformer::check_side;
use crate::source::Files;
use crate::weights::WeightFiles;

/// The table's names: sentence-transformers' own, and model2vec's.
const TABLES: [&str; 2] = ["embedding.weight", "embeddings"];
/// A factor for each token (model2vec).
const FACTORS: &str = "weights";
/// Numbers of the tokens' rows in a table of fewer (model2vec).
const MAPPING: &str = "mapping";
/// Maximum number of texts of a pass that its memory is counted for.
const TEXTS: usize = 4096;

/// A table of tokens' vectors that is not loaded.
pub(super) struct StaticEmbedding {
    name: &'static str,
    vocabulary: usize,
    width: usize,
    has_factors: bool,
}

impl StaticEmbedding {
    /// Reads the size of the table in a folder, which is named with a slash at its end or empty.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] without a table; [`Error::UnsupportedSetting`] for one that tokens share rows of.
    pub(super) fn read(files: &Files, folder: &str, context: &LoadContext) -> Result<Self> {
        let weights = WeightFiles::open(files, folder, context)?;
        let file = PathBuf::from(files.name());
        let missing = || Error::MissingTensor { tensor: TABLES.join(" or ") };
        let table = TABLES.into_iter().find_map(|name| Some((name, weights.shape(name)?)));
        let (name, shape) = table.ok_or_else(missing)?;
        let &[vocabulary, width] = shape else {
            return Err(invalid(
                &file,
                format!("the tensor {name} has the shape {shape:?}, and is no table"),
            ));
        };
        check_table(&file, vocabulary, width)?;
        if weights.contains(MAPPING) {
            return Err(unsupported(&file, "the tensor", MAPPING, "tables with a row for each token"));
        }
        Ok(Self { name, vocabulary, width, has_factors: weights.contains(FACTORS) })
    }
}

fn check_table(file: &Path, vocabulary: usize, width: usize) -> Result<()> {
    check_side(file, "the number of rows of the table", vocabulary)?;
    check_side(file, "the width of the table", width)
}

impl Architecture for StaticEmbedding {
    fn width(&self) -> usize {
        self.width
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn longest(&self) -> usize {
        // No text has more tokens than bytes.
        MAX_TEXT_BYTES
    }

    fn takes_bare_texts(&self) -> bool {
        true
    }

    fn uses(&self, tensor: &str) -> bool {
        tensor == self.name || (self.has_factors && tensor == FACTORS)
    }

    fn has_no_effect(&self, _: &str) -> bool {
        false
    }

    fn scratch(&self, _: usize, _: usize) -> Bytes {
        Bytes((self.width as u64).saturating_mul(4 * TEXTS as u64))
    }

    fn load(&self, weights: &WeightFiles, _: &Device, context: &LoadContext) -> Result<Arc<dyn Encoder>> {
        let reader = weights.reader("", &Device::Cpu, context);
        let (mut rows, mut factors) = (Vec::new(), Vec::new());
        reader.append(self.name, &[self.vocabulary, self.width], &mut rows)?;
        if self.has_factors {
            reader.append(FACTORS, &[self.vocabulary], &mut factors)?;
        }
        for (row, factor) in rows.chunks_exact_mut(self.width).zip(factors) {
            row.iter_mut().for_each(|value| *value *= factor);
        }
        Ok(Arc::new(Table { rows, width: self.width }))
    }
}

/// A loaded table, row by row.
struct Table {
    rows: Vec<f32>,
    width: usize,
}

impl Encoder for Table {
    fn gives_texts(&self) -> bool {
        true
    }

    /// The mean of each text's rows; nothing but zeros for a text without tokens.
    fn encode(&self, batch: &TokenBatch, watch: &Watch<'_>) -> Result<Tensor> {
        let mut means = vec![0.0; batch.lengths.len() * self.width];
        let mut ids = batch.ids.as_slice();
        for (mean, length) in means.chunks_exact_mut(self.width).zip(&batch.lengths) {
            watch()?;
            let (own, rest) = ids.split_at((*length).min(ids.len()));
            ids = rest;
            for id in own {
                let begin = (*id as usize).saturating_mul(self.width);
                let row = self.rows.get(begin..begin.saturating_add(self.width));
                let row = row.ok_or_else(|| Error::compute(format!("the token {id} has no row")))?;
                mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            mean.iter_mut().for_each(|sum| *sum /= own.len().max(1) as f32);
        }
        Ok(Tensor::from_vec(means, (batch.lengths.len(), self.width), &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::limits::MAX_TEXT_BYTES;
    use crate::{Source, StandaloneModel as _, TextEmbeddingModel};

    const TEXT: &str = "hello world and whatever comes after it";

    /// The fixture with another tokenizer_config.json, sentence_bert_config.json and truncation of its own.
    fn model(truncation: Value) -> TextEmbeddingModel {
        let from =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_embedding/static");
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors", "modules.json"] {
            std::fs::copy(from.join(name), folder.path().join(name)).unwrap();
        }
        let write =
            |name: &str, value: &Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        let mut tokenizer: Value =
            serde_json::from_slice(&std::fs::read(from.join("tokenizer.json")).unwrap()).unwrap();
        tokenizer["truncation"] = truncation;
        write("tokenizer.json", &tokenizer);
        write("tokenizer_config.json", &json!({"model_max_length": 3, "truncation_side": "left"}));
        write("sentence_bert_config.json", &json!({"max_seq_length": 4}));
        TextEmbeddingModel::load(Source::directory(folder.path())).unwrap()
    }

    /// First numbers of the vectors that sentence-transformers 6.2.0 makes with these files, of which it reads the
    /// tokenizer.json alone.
    #[test]
    fn only_the_tokenizer_itself_cuts_texts() {
        let cut = |length: usize, side: &str| json!({"max_length": length, "direction": side, "strategy": "LongestFirst", "stride": 0});
        let cases = [
            (Value::Null, [-0.072_624_88, 0.358_030_35, -0.176_413_43]),
            // Too short for the special tokens, which are left out.
            (cut(1, "Right"), [-0.083_670_5, -0.030_922_802, -0.288_915_25]),
            (cut(5, "Right"), [0.050_203_27, 0.261_706_1, -0.044_483_684]),
            (cut(5, "Left"), [-0.214_805_54, 0.075_276_52, -0.189_153_16]),
        ];
        for (truncation, wanted) in cases {
            let model = model(truncation.clone());
            let found = model.embed(&[TEXT]).unwrap().swap_remove(0);
            let apart = found.iter().zip(wanted).map(|(one, other): (&f32, f32)| (one - other).abs());
            assert!(apart.fold(0.0, f32::max) < 1e-5, "{truncation}: {:?}", &found[..3]);
            let longest = truncation["max_length"].as_u64().unwrap_or(MAX_TEXT_BYTES as u64);
            assert_eq!(model.max_tokens() as u64, longest);
        }
    }
}
