//! From token vectors to one vector a text: the modules that follow the transformer in a
//! sentence-transformers model (`modules.json`), pooling, dense layers and normalisation, on the processor.
//! The transformer is left to `models`.

mod dense;
mod token_layers;

use std::borrow::Cow;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use model_actors::LoadContext;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::kernels::{Activation, Linear, with_values};
use crate::source::Files;
use dense::activation_of;
pub(crate) use token_layers::TokenLayers;

/// One entry of `modules.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Module {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Module {
    /// The class name, without the package that it lives in.
    fn class(&self) -> &str {
        self.kind.rsplit('.').next().unwrap_or(&self.kind)
    }

    /// True for a class of the repository's own code.
    fn is_own(&self) -> bool {
        !self.kind.starts_with("sentence_transformers.")
    }

    /// Its folder, with a slash at the end, or nothing for the model's own.
    fn folder(&self) -> String {
        match self.path.trim_end_matches('/') {
            "" | "." => String::new(),
            path => format!("{path}/"),
        }
    }
}

/// `1_Pooling/config.json`, as sentence-transformers writes it since version 6 or before. Several modes give
/// their vectors one after another.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PoolingConfig {
    pooling_mode: Option<PoolingModes>,
    include_prompt: Option<bool>,
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: bool,
    pooling_mode_max_tokens: bool,
    pooling_mode_mean_sqrt_len_tokens: bool,
    pooling_mode_weightedmean_tokens: bool,
    pooling_mode_lasttoken: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum PoolingModes {
    One(String),
    Several(Vec<String>),
}

/// Ways to make one vector of token vectors. A new one needs a variant, a row of [`Pooling::MODES`] and an arm of
/// [`Pooling::append`]; where older files turn it on by a boolean, also a field of [`PoolingConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    FirstToken,
    Max,
    Mean,
    /// The sum over the square root of the number of tokens.
    MeanSqrtLength,
    /// Later tokens weigh more: 1, 2, 3 …
    WeightedMean,
    LastToken,
}

/// A pooling, its name in `pooling_mode`, and the boolean of older files that turns it on.
type Mode = (Pooling, &'static str, fn(&PoolingConfig) -> bool);

impl Pooling {
    /// All modes, in the order in which older files give their vectors.
    const MODES: [Mode; 6] = [
        (Self::FirstToken, "cls", |config| config.pooling_mode_cls_token),
        (Self::Max, "max", |config| config.pooling_mode_max_tokens),
        (Self::Mean, "mean", |config| config.pooling_mode_mean_tokens),
        (Self::MeanSqrtLength, "mean_sqrt_len_tokens", |config| config.pooling_mode_mean_sqrt_len_tokens),
        (Self::WeightedMean, "weightedmean", |config| config.pooling_mode_weightedmean_tokens),
        (Self::LastToken, "lasttoken", |config| config.pooling_mode_lasttoken),
    ];

    fn from_name(name: &str) -> Option<Self> {
        Self::MODES.into_iter().find(|(_, known, _)| *known == name).map(|(pooling, ..)| pooling)
    }

    fn name(self) -> &'static str {
        let own = Self::MODES.into_iter().find(|(pooling, ..)| *pooling == self);
        own.map_or("", |(_, name, _)| name)
    }

    /// The names of all modes, for an error.
    fn names() -> String {
        Self::MODES.map(|(_, name, _)| name).join(", ")
    }
}

fn yes() -> bool {
    true
}

/// A step after pooling.
enum Step {
    Dense(Linear, Activation),
    Normalize,
}

/// Everything after the transformer.
pub(crate) struct Head {
    poolings: Vec<Pooling>,
    /// True if a prompt's tokens are pooled with the text's.
    with_prompt: bool,
    steps: Vec<Step>,
    width: usize,
}

/// The order of the modules, and the folder of the transformer, with a slash at its end.
#[derive(Clone)]
pub(crate) struct Modules {
    pub(crate) transformer: String,
    /// In place of the transformer is a table of tokens' vectors.
    pub(crate) is_static: bool,
    rest: Vec<Module>,
    /// No file lists them.
    is_bare: bool,
    /// The pooling of a model whose modules name none.
    unnamed: Pooling,
    /// The transformer is of the repository's own code.
    is_own: bool,
}

/// Settings of a bare transformer by which its pooling is chosen.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Bare {
    architectures: Option<Vec<String>>,
    is_causal: Option<bool>,
}

impl Bare {
    fn is_language_model(&self) -> bool {
        let name = self.architectures.as_ref().and_then(|names| names.first());
        name.is_some_and(|name| name.ends_with("ForCausalLM")) && self.is_causal != Some(false)
    }
}

const SENTENCE: &str = "sentence_embedding";
const MODULES: &str = "modules.json";
const MAX_POOLINGS: usize = Pooling::MODES.len();
const SUPPORTED: &str = "Transformer, Pooling, Dense, Normalize, Dropout";

impl Modules {
    /// Reads `modules.json`. A model without one is a bare transformer, which sentence-transformers pools by mean, and a
    /// language model by its last token; one with a chat template would get each text through that.
    ///
    /// # Errors
    /// Those of reading a file; [`Error::UnsupportedSetting`].
    pub(crate) fn read(files: &Files, context: &LoadContext) -> Result<Self> {
        let Some(modules) = files.optional_json::<Vec<Module>>(MODULES, context)? else {
            let bare: Bare = files.optional_json("config.json", context)?.unwrap_or_default();
            let unnamed = if bare.is_language_model() { Pooling::LastToken } else { Pooling::Mean };
            if unnamed == Pooling::LastToken && has_chat_template(files, context)? {
                let supported = "none, or a modules.json that says how texts become vectors";
                return Err(unsupported(
                    "tokenizer_config.json",
                    "chat_template",
                    "a template".into(),
                    supported,
                ));
            }
            let (transformer, rest) = (String::new(), Vec::new());
            return Ok(Self { transformer, is_static: false, rest, is_bare: true, unnamed, is_own: false });
        };
        let mut modules = modules.into_iter();
        let (transformer, is_static, is_own) = match modules.next() {
            Some(first) if first.class() == "Transformer" => (first.folder(), false, first.is_own()),
            Some(first) if first.class() == "StaticEmbedding" => (first.folder(), true, false),
            first => {
                let found = first.map_or("nothing".to_owned(), |module| module.kind);
                return Err(unsupported(MODULES, "the first module", found, "Transformer, StaticEmbedding"));
            }
        };
        // A text of a static embedding has one row, which is its vector.
        let unnamed = if is_static { Pooling::FirstToken } else { Pooling::Mean };
        Ok(Self { transformer, is_static, rest: modules.collect(), is_bare: false, unnamed, is_own })
    }

    /// The same of a family whose own code pools in this way and normalises, where it is the only module.
    pub(crate) fn pooled_by_own_code(mut self, pooling: Pooling) -> Self {
        if self.is_own && self.rest.is_empty() {
            self.unnamed = pooling;
            self.rest.push(Module { path: String::new(), kind: "Normalize".to_owned() });
        }
        self
    }

    /// Reads what follows a transformer of this width. `longest` and `width` of every layer are checked.
    pub(crate) fn head(&self, files: &Files, width: usize, context: &LoadContext) -> Result<Head> {
        let mut head = Head::bare(width);
        for module in &self.rest {
            match module.class() {
                "Pooling" if head.poolings.is_empty() => {
                    (head.poolings, head.with_prompt) = read_pooling(files, &module.folder(), context)?;
                    head.width *= head.poolings.len();
                }
                "Normalize" => head.steps.push(Step::Normalize),
                "Dense" => head.add_dense(files, &module.folder(), context)?,
                // Only of use while training.
                "Dropout" => {}
                _ => return Err(unsupported(MODULES, "the module", module.kind.clone(), SUPPORTED)),
            }
        }
        if head.poolings.is_empty() {
            head.poolings.push(self.unnamed);
        }
        Ok(head)
    }
}

fn has_chat_template(files: &Files, context: &LoadContext) -> Result<bool> {
    let config: Option<serde_json::Value> = files.optional_json("tokenizer_config.json", context)?;
    let written = config.and_then(|config| config.get("chat_template").map(|template| !template.is_null()));
    Ok(written == Some(true) || files.optional("chat_template.jinja", context)?.is_some())
}

fn unsupported(
    file: &str,
    what: &'static str,
    found: String,
    supported: impl Into<Cow<'static, str>>,
) -> Error {
    Error::UnsupportedSetting {
        file: PathBuf::from(file),
        what: what.into(),
        found,
        supported: supported.into(),
    }
}

/// The poolings, and whether a prompt is pooled too.
fn read_pooling(files: &Files, folder: &str, context: &LoadContext) -> Result<(Vec<Pooling>, bool)> {
    let file = format!("{folder}config.json");
    let config: PoolingConfig = files.required_json(&file, context)?;
    let with_prompt = config.include_prompt.unwrap_or(true);
    let known = |name: String| {
        Pooling::from_name(&name).ok_or_else(|| unsupported(&file, "the pooling", name, Pooling::names()))
    };
    let poolings: Vec<Pooling> = match config.pooling_mode {
        Some(PoolingModes::One(name)) => vec![known(name)?],
        Some(PoolingModes::Several(names)) => names.into_iter().map(known).collect::<Result<_>>()?,
        None => {
            let chosen = Pooling::MODES.into_iter().filter(|(_, _, chosen)| chosen(&config));
            let chosen: Vec<Pooling> = chosen.map(|(pooling, ..)| pooling).collect();
            if chosen.is_empty() { vec![Pooling::Mean] } else { chosen }
        }
    };
    if poolings.is_empty() {
        return Err(unsupported(&file, "the pooling", "(none chosen)".into(), Pooling::names()));
    }
    if poolings.len() > MAX_POOLINGS {
        let reason = format!("{} poolings at once; at most {MAX_POOLINGS} are allowed", poolings.len());
        return Err(Error::InvalidConfig { file: PathBuf::from(file), reason });
    }
    Ok((poolings, with_prompt))
}

impl Head {
    /// Of a model that pools nothing.
    pub(crate) fn bare(width: usize) -> Self {
        Self { poolings: Vec::new(), with_prompt: true, steps: Vec::new(), width }
    }

    /// The length of the vectors that come out.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// The names of the poolings.
    pub(crate) fn poolings(&self) -> Vec<String> {
        self.poolings.iter().map(|pooling| pooling.name().to_owned()).collect()
    }

    /// True if vectors come out with the length 1.
    pub(crate) fn normalizes(&self) -> bool {
        matches!(self.steps.last(), Some(Step::Normalize))
    }

    /// True if a prompt's tokens are left out of the pooling.
    pub(crate) fn leaves_out_prompts(&self) -> bool {
        !self.with_prompt
    }

    /// One vector for each text. `hidden` is `(tokens, width)`, the texts one after another with these
    /// `lengths`, of which the first `skipped` tokens, fewer than all, are not pooled.
    pub(crate) fn forward(
        &self,
        hidden: &Tensor,
        lengths: &[usize],
        skipped: &[usize],
    ) -> Result<Vec<Vec<f32>>> {
        let hidden = hidden.to_device(&Device::Cpu)?.contiguous()?;
        let (_, width) = hidden.dims2()?;
        let mut vectors = with_values(&hidden, |values| self.pool(values, lengths, skipped, width))?;
        for step in &self.steps {
            match step {
                Step::Normalize => vectors.iter_mut().for_each(|vector| normalize(vector)),
                Step::Dense(layer, activation) => vectors = dense(layer, *activation, vectors)?,
            }
        }
        Ok(vectors)
    }

    fn pool(&self, mut values: &[f32], lengths: &[usize], skipped: &[usize], width: usize) -> Vec<Vec<f32>> {
        let mut vectors = Vec::with_capacity(lengths.len());
        for (length, skipped) in lengths.iter().zip(skipped) {
            let (text, rest) = values.split_at(length * width);
            values = rest;
            let mut vector = Vec::with_capacity(width * self.poolings.len());
            for pooling in &self.poolings {
                pooling.append(text, *skipped, width, &mut vector);
            }
            vectors.push(vector);
        }
        vectors
    }
}

impl Pooling {
    /// Appends one text's pooled vector; the text has more tokens than are skipped.
    fn append(self, text: &[f32], skipped: usize, width: usize, vector: &mut Vec<f32>) {
        let text = &text[skipped * width..];
        let count = text.len() / width;
        match self {
            Self::FirstToken => vector.extend_from_slice(&text[..width]),
            Self::LastToken => vector.extend_from_slice(&text[text.len() - width..]),
            Self::Max => fold(text, width, vector, f32::NEG_INFINITY, |max, x, _| max.max(x), 1.0),
            Self::Mean => fold(text, width, vector, 0.0, |sum, x, _| sum + x, 1.0 / count as f32),
            Self::MeanSqrtLength => {
                fold(text, width, vector, 0.0, |sum, x, _| sum + x, 1.0 / (count as f32).sqrt());
            }
            Self::WeightedMean => {
                // A token weighs what its place in the whole text says, whether or not a prompt is left out.
                let weights = (count * (2 * skipped + count + 1)) as f32 / 2.0;
                let step = |sum, x: f32, place: usize| sum + x * (skipped + place + 1) as f32;
                fold(text, width, vector, 0.0, step, 1.0 / weights);
            }
        }
    }
}

fn fold(
    text: &[f32],
    width: usize,
    vector: &mut Vec<f32>,
    start: f32,
    step: impl Fn(f32, f32, usize) -> f32,
    scale: f32,
) {
    let begin = vector.len();
    vector.resize(begin + width, start);
    let folded = &mut vector[begin..];
    for (place, token) in text.chunks_exact(width).enumerate() {
        for (sum, x) in folded.iter_mut().zip(token) {
            *sum = step(*sum, *x, place);
        }
    }
    folded.iter_mut().for_each(|sum| *sum *= scale);
}

/// Scales to the length 1, as PyTorch does: a vector shorter than 1e-12 is divided by that.
pub(crate) fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    let scale = (1.0 / length.max(1e-12)) as f32;
    vector.iter_mut().for_each(|x| *x *= scale);
}

fn dense(layer: &Linear, activation: Activation, vectors: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
    let (count, width) = (vectors.len(), vectors.first().map_or(0, Vec::len));
    let input = Tensor::from_vec(vectors.concat(), (count, width), &Device::Cpu)?;
    Ok(layer.forward(&input, activation)?.to_vec2()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pooling_is_what_its_name_says() {
        let text = [1.0, 4.0, 4.0, -2.0];
        let pooled = |pooling: Pooling| {
            let mut vector = Vec::new();
            pooling.append(&text, 0, 2, &mut vector);
            vector
        };
        assert_eq!(pooled(Pooling::FirstToken), [1.0, 4.0]);
        assert_eq!(pooled(Pooling::LastToken), [4.0, -2.0]);
        assert_eq!(pooled(Pooling::Max), [4.0, 4.0]);
        assert_eq!(pooled(Pooling::Mean), [2.5, 1.0]);
        assert_eq!(pooled(Pooling::MeanSqrtLength), [5.0 / 2f32.sqrt(), 2.0 / 2f32.sqrt()]);
        assert_eq!(pooled(Pooling::WeightedMean), [3.0, 0.0]);
    }

    #[test]
    fn a_prompt_that_is_left_out_weighs_nothing() {
        let text = [9.0, 1.0, 4.0];
        for (pooling, expected) in [
            (Pooling::FirstToken, 1.0),
            (Pooling::Max, 4.0),
            (Pooling::Mean, 2.5),
            (Pooling::WeightedMean, (2.0 + 12.0) / 5.0),
        ] {
            let mut vector = Vec::new();
            pooling.append(&text, 1, 1, &mut vector);
            assert_eq!(vector, [expected]);
        }
    }

    #[test]
    fn a_normalized_vector_has_length_one_and_zero_stays_zero() {
        let mut vector = [3.0, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zero = [0.0; 3];
        normalize(&mut zero);
        assert_eq!(zero, [0.0; 3]);
    }
}
