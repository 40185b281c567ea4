//! The two embedding capabilities: texts or images to vectors.

use serde::{Deserialize, Serialize};

use super::{BatchKey, Capability, Cost, NoChunk};
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
}

setters! { EmbedTexts {
    with_texts(texts: Vec<String>);
    with_prompt(prompt: impl Into<Option<EmbedPrompt>>) Into::into;
    with_dimensions(dimensions: impl Into<Option<usize>>) Into::into;
} }

impl EmbedTexts {
    /// A request for these texts, with the model's default prompt and all dimensions.
    pub fn new<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self { texts: texts.into_iter().map(Into::into).collect(), ..Self::default() }
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
}

impl Embeddings {
    /// Creates the output from its vectors.
    pub fn new(vectors: Vec<Vec<f32>>) -> Self {
        Self { vectors }
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
        check_texts("text", &request.texts)
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
