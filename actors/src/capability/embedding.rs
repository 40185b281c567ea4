//! The two embedding capabilities: texts or images to vectors.

use serde::{Deserialize, Serialize};

use super::vectors::{SparseVector, VectorArray};
use super::{BatchKey, Capability, Cost, NoChunk, Usage};
use crate::capability::image::ImageSource;
use crate::config::QueueCapacity;
use crate::error::Cause;
use crate::limits::{MAX_EMBED_PROMPT_BYTES, MAX_ITEMS, MAX_TEXT_BYTES};

/// The capability of turning texts into vectors. One-shot.
///
/// ```
/// use model_actors::{Capability, EmbedTexts, TextEmbedding};
/// assert!(TextEmbedding::check(&EmbedTexts::default()).is_err(), "no text");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct TextEmbedding;

/// A request to embed texts. The answer is one vector each, in order.
///
/// ```
/// use model_actors::{EmbedPrompt, EmbedTexts};
/// let request = EmbedTexts::from("The cat sleeps.").with_dimensions(256);
/// assert_eq!(request.texts.len(), 1);
/// let request = EmbedTexts::new(["a cat", "a dog"]).with_prompt(EmbedPrompt::Named("query".to_owned()));
/// assert_eq!(request.texts.len(), 2);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EmbedTexts {
    /// 1 to 256 texts of up to 1 MiB each.
    pub texts: Vec<String>,
    /// Prompt before each text; `None` for the model's default.
    pub prompt: Option<EmbedPrompt>,
    /// Number of leading dimensions to keep, for models trained that way (Matryoshka). `None`: all.
    pub dimensions: Option<usize>,
    /// Fate of a text with more tokens than the model takes.
    pub truncate: Truncate,
    /// Outputs wanted of each text; its vector.
    pub outputs: EmbedOutputs,
}

setters! { EmbedTexts {
    with_texts(texts: Vec<String>);
    with_prompt(prompt: impl Into<Option<EmbedPrompt>>) Into::into;
    with_dimensions(dimensions: impl Into<Option<usize>>) Into::into;
    with_truncate(truncate: Truncate);
    with_outputs(outputs: EmbedOutputs);
} }

impl EmbedTexts {
    /// A request for these texts, with the model's default prompt and all dimensions.
    pub fn new<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self { texts: texts.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// Fate of a text with more tokens than a model takes.
///
/// ```
/// use model_actors::{EmbedTexts, Truncate};
/// let request = EmbedTexts::from("a very long text").with_truncate(Truncate::Refuse);
/// assert_ne!(request.truncate, Truncate::default());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Truncate {
    /// It is cut to what the model takes, and the output says so.
    #[default]
    Cut,
    /// It is refused with both numbers of tokens.
    Refuse,
}

/// Outputs wanted of texts to embed.
///
/// ```
/// use model_actors::{EmbedOutputs, EmbedTexts};
/// let request = EmbedTexts::from("a cat").with_outputs(EmbedOutputs::tokens());
/// assert!(!request.outputs.vectors && request.outputs.tokens);
/// assert!(EmbedTexts::from("a cat").outputs.vectors);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EmbedOutputs {
    /// A vector for each text.
    pub vectors: bool,
    /// The tokens of each text. Alone, they are there without a pass through the model.
    pub tokens: bool,
    /// A weight for each token of each text, of models that have them (BGE-M3).
    pub sparse: bool,
    /// A vector for each token of each text, for late interaction, of models that have them (BGE-M3, and ColBERT, which has
    /// nothing else). ColBERT reads texts as documents, unless the prompt `query` is named.
    pub token_vectors: bool,
}

setters! { EmbedOutputs {
    with_vectors(vectors: bool);
    with_tokens(tokens: bool);
    with_sparse(sparse: bool);
    with_token_vectors(token_vectors: bool);
} }

impl EmbedOutputs {
    /// The tokens alone.
    pub const fn tokens() -> Self {
        Self { vectors: false, tokens: true, sparse: false, token_vectors: false }
    }

    /// True if texts have to go through the model.
    pub const fn need_model(self) -> bool {
        self.vectors || self.sparse || self.token_vectors
    }
}

/// The vectors alone.
impl Default for EmbedOutputs {
    fn default() -> Self {
        Self { vectors: true, tokens: false, sparse: false, token_vectors: false }
    }
}

/// Prompt before each text, for models that were trained with one.
///
/// ```
/// use model_actors::{EmbedPrompt, EmbedTexts};
/// let prompt = EmbedPrompt::Text("query: ".to_owned());
/// let request = EmbedTexts::from("how cats sleep").with_prompt(prompt);
/// # drop(request);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EmbedPrompt {
    /// The name of a prompt that the model's own files define (`query`, `document`).
    Named(String),
    /// The prompt itself, up to 16 KiB, for models that define none in their files but were trained with one
    /// (E5), and for instructions that say the task (`Instruct: …\nQuery: `). Empty for none, whatever the
    /// model's default.
    Text(String),
}

impl<T: Into<String>> From<T> for EmbedTexts {
    fn from(text: T) -> Self {
        Self::new([text])
    }
}

/// The output of a request to embed: a vector for each of its texts or images, in order.
///
/// ```
/// use model_actors::Embeddings;
/// let embeddings = Embeddings::new(vec![vec![0.6, 0.8], vec![1.0, 0.0]]);
/// assert_eq!(embeddings.vectors[0].len(), embeddings.vectors[1].len());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Embeddings {
    /// The vectors, all of one length.
    #[serde(with = "crate::wire::floats")]
    pub vectors: Vec<Vec<f32>>,
    /// Numbers of tokens that went through the model; 0 for images.
    #[serde(skip_serializing_if = "is_none")]
    pub usage: Usage,
    /// Indices of the texts that had more tokens than the model takes, and were cut.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cut: Vec<usize>,
    /// The tokens of each text, special ones and those beyond what the model takes included; none unless they were asked
    /// for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<Vec<TextToken>>,
    /// The weights of each text's tokens, special ones left out; none unless they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sparse: Vec<SparseVector>,
    /// The vectors of each text's tokens, each of length 1; none unless they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub token_vectors: Vec<VectorArray<f32>>,
}

setters! { Embeddings {
    with_usage(usage: Usage);
    with_cut(cut: Vec<usize>);
    with_tokens(tokens: Vec<Vec<TextToken>>);
    with_sparse(sparse: Vec<SparseVector>);
    with_token_vectors(token_vectors: Vec<VectorArray<f32>>);
} }

impl Embeddings {
    /// Creates the output from its vectors.
    pub fn new(vectors: Vec<Vec<f32>>) -> Self {
        Self { vectors, ..Self::default() }
    }

    /// The vectors as one array. `None` if they differ in length, as those of a model do not.
    pub fn to_array(&self) -> Option<VectorArray<f32>> {
        VectorArray::of(&self.vectors)
    }
}

fn is_none(usage: &Usage) -> bool {
    *usage == Usage::default()
}

/// A token of a text.
///
/// ```
/// let token = model_actors::TextToken::new(7592, "hello");
/// assert_eq!((token.id, token.text.as_str()), (7592, "hello"));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TextToken {
    /// Its number in the vocabulary.
    pub id: u32,
    /// Its entry in the vocabulary, in which a sign may stand for a space or a byte.
    pub text: String,
}

impl TextToken {
    /// The token of this number and entry.
    pub fn new(id: u32, text: impl Into<String>) -> Self {
        Self { id, text: text.into() }
    }
}

impl Capability for TextEmbedding {
    type Request = EmbedTexts;
    type Chunk = NoChunk;
    type Output = Embeddings;
    const NAME: &'static str = "text_embedding";
    const QUEUE: QueueCapacity = QueueCapacity::new(100, 50);

    fn check(request: &EmbedTexts) -> Result<(), Cause> {
        if let Some(EmbedPrompt::Text(prompt)) = &request.prompt
            && prompt.len() > MAX_EMBED_PROMPT_BYTES
        {
            let bytes = prompt.len();
            return Err(format!(
                "the prompt has {bytes} bytes; at most {MAX_EMBED_PROMPT_BYTES} are allowed"
            )
            .into());
        }
        if !request.outputs.need_model() && !request.outputs.tokens {
            return Err("the request asks for no output".into());
        }
        check_texts("text", &request.texts)
    }

    /// Numbers of tokens in; of texts that were embedded.
    fn usage(output: &Embeddings) -> Option<Usage> {
        Some(output.usage)
    }

    /// The outputs that are asked for: texts of a batch go through the model together.
    fn batch_key(request: &EmbedTexts) -> BatchKey {
        let EmbedOutputs { vectors, tokens, sparse, token_vectors } = request.outputs;
        let bits = [vectors, tokens, sparse, token_vectors].into_iter();
        BatchKey(bits.fold(0, |key, bit| key << 1 | u64::from(bit)))
    }

    /// Approximate number of tokens: four bytes of English make one, and each text has two special ones.
    fn cost(request: &EmbedTexts) -> Cost {
        let prompt = match &request.prompt {
            Some(EmbedPrompt::Text(prompt)) => prompt.len(),
            _ => 0,
        };
        Cost(request.texts.iter().map(|text| (prompt + text.len()) as u64 / 4 + 2).sum())
    }
}

/// The capability of turning images, or texts that find them, into vectors. One-shot.
///
/// ```
/// use model_actors::{Capability, EmbedImages, ImageEmbedding};
/// assert!(ImageEmbedding::check(&EmbedImages::default()).is_err(), "no image");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct ImageEmbedding;

/// A request to embed images, or texts into the same space so that a text finds images.
///
/// ```
/// use model_actors::{EmbedImages, ImageSource};
/// let request = EmbedImages::images([ImageSource::Path("cat.png".into())]);
/// assert_eq!(request.input.len(), 1);
/// ```
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EmbedImages {
    /// The images, or the texts.
    pub input: EmbedInput,
}

impl EmbedImages {
    /// A request to embed images.
    pub fn images(images: impl IntoIterator<Item = ImageSource>) -> Self {
        Self { input: EmbedInput::Images(images.into_iter().collect()) }
    }

    /// A request to embed texts.
    pub fn texts(texts: impl IntoIterator<Item: Into<String>>) -> Self {
        Self { input: EmbedInput::Texts(texts.into_iter().map(Into::into).collect()) }
    }
}

/// The input of an [`EmbedImages`]: images or texts, never both.
///
/// ```
/// use model_actors::EmbedInput;
/// assert!(EmbedInput::default().is_empty());
/// assert_eq!(EmbedInput::Texts(vec!["a cat".to_owned()]).len(), 1);
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbedInput {
    /// 1 to 256 images.
    Images(Vec<ImageSource>),
    /// 1 to 256 texts of up to 1 MiB each.
    Texts(Vec<String>),
}

impl EmbedInput {
    /// Number of images or texts.
    pub fn len(&self) -> usize {
        match self {
            Self::Images(images) => images.len(),
            Self::Texts(texts) => texts.len(),
        }
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// No image.
impl Default for EmbedInput {
    fn default() -> Self {
        Self::Images(Vec::new())
    }
}

impl Capability for ImageEmbedding {
    type Request = EmbedImages;
    type Chunk = NoChunk;
    type Output = Embeddings;
    const NAME: &'static str = "image_embedding";
    const QUEUE: QueueCapacity = QueueCapacity::new(50, 50);

    fn check(request: &EmbedImages) -> Result<(), Cause> {
        match &request.input {
            EmbedInput::Images(images) => check_count("images", images.len()),
            EmbedInput::Texts(texts) => check_texts("text", texts),
        }
    }

    /// Number of images or texts.
    fn cost(request: &EmbedImages) -> Cost {
        Cost(request.input.len() as u64)
    }

    fn batch_key(request: &EmbedImages) -> BatchKey {
        BatchKey(matches!(request.input, EmbedInput::Texts(_)).into())
    }
}

/// Checks the number and the length of texts, which an error calls so.
pub(super) fn check_texts(what: &str, texts: &[String]) -> Result<(), Cause> {
    check_count(&format!("{what}s"), texts.len())?;
    let mut numbered = texts.iter().enumerate();
    numbered.try_for_each(|(index, text)| check_text(&format!("{what} {index}"), text))
}

pub(super) fn check_text(name: &str, text: &str) -> Result<(), Cause> {
    match text.len() {
        0..=MAX_TEXT_BYTES => Ok(()),
        bytes => Err(format!("{name} has {bytes} bytes; at most {MAX_TEXT_BYTES} are allowed").into()),
    }
}

fn check_count(what: &str, count: usize) -> Result<(), Cause> {
    match count {
        0 => Err(format!("the request holds no {what}").into()),
        1..=MAX_ITEMS => Ok(()),
        _ => Err(format!("the request holds {count} {what}; at most {MAX_ITEMS} are allowed").into()),
    }
}
