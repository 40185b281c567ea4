//! The two embedding capabilities: texts or images to vectors.

use super::{BatchKey, Capability, Cost, NoChunk};
use crate::capability::image::ImageSource;
use crate::config::QueueCapacity;
use crate::limits::{MAX_EMBED_PROMPT_BYTES, MAX_ITEMS, MAX_TEXT_BYTES};

/// Text to vector. One-shot.
#[derive(Debug, Clone, Copy)]
pub struct TextEmbedding;

/// A few texts to embed; one vector each comes back, in order.
///
/// ```
/// use model_actors::EmbedTexts;
/// let request = EmbedTexts::from("The cat sleeps.");
/// assert_eq!(request.texts.len(), 1);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EmbedTexts {
    /// 1 to 256 texts of up to 1 MiB each.
    pub texts: Vec<String>,
    /// What comes before each text, or nothing for what the model has as its default.
    pub prompt: Option<EmbedPrompt>,
    /// Keep only the first so many dimensions, for models trained that way.
    pub dimensions: Option<usize>,
}

/// What comes before each text, for models trained with it.
///
/// ```
/// use model_actors::{EmbedPrompt, EmbedTexts};
/// let prompt = Some(EmbedPrompt::Text("query: ".to_owned()));
/// let request = EmbedTexts { prompt, ..EmbedTexts::from("how cats sleep") };
/// # drop(request);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbedPrompt {
    /// The name of a prompt that the model's own files define (`query`, `document`).
    Named(String),
    /// The prompt itself, up to 16 KiB, for models that define none in their files but were trained with one (E5), and
    /// for instructions that say the task (`Instruct: …\nQuery: `). Empty for none, whatever the model's default.
    Text(String),
}

impl<T: Into<String>> From<T> for EmbedTexts {
    fn from(text: T) -> Self {
        Self { texts: vec![text.into()], ..Self::default() }
    }
}

/// One vector for each input, in order, all of one length.
pub type Embeddings = Vec<Vec<f32>>;

impl Capability for TextEmbedding {
    type Request = EmbedTexts;
    type Chunk = NoChunk;
    type Output = Embeddings;
    const NAME: &'static str = "text_embedding";
    const QUEUE: QueueCapacity = QueueCapacity { interactive: 100, batch: 50 };

    fn check(request: &EmbedTexts) -> Result<(), String> {
        if let Some(EmbedPrompt::Text(prompt)) = &request.prompt
            && prompt.len() > MAX_EMBED_PROMPT_BYTES
        {
            let bytes = prompt.len();
            return Err(format!(
                "the prompt has {bytes} bytes; at most {MAX_EMBED_PROMPT_BYTES} are allowed"
            ));
        }
        check_texts(&request.texts)
    }

    /// About the number of tokens: four bytes of English make one, and each text has two special ones.
    fn cost(request: &EmbedTexts) -> Cost {
        let prompt = match &request.prompt {
            Some(EmbedPrompt::Text(prompt)) => prompt.len(),
            _ => 0,
        };
        Cost(request.texts.iter().map(|text| (prompt + text.len()) as u64 / 4 + 2).sum())
    }
}

/// Image to vector. One-shot.
#[derive(Debug, Clone, Copy)]
pub struct ImageEmbedding;

/// Images to embed, or texts to embed into the same space so that text finds images.
///
/// ```
/// use model_actors::{EmbedImages, ImageSource};
/// let request = EmbedImages::Images(vec![ImageSource::Path("cat.png".into())]);
/// assert!(matches!(request, EmbedImages::Images(_)));
/// ```
#[derive(Debug, Clone)]
pub enum EmbedImages {
    /// 1 to 256 images.
    Images(Vec<ImageSource>),
    /// 1 to 256 texts of up to 1 MiB each.
    Texts(Vec<String>),
}

impl Capability for ImageEmbedding {
    type Request = EmbedImages;
    type Chunk = NoChunk;
    type Output = Embeddings;
    const NAME: &'static str = "image_embedding";
    const QUEUE: QueueCapacity = QueueCapacity { interactive: 50, batch: 50 };

    fn check(request: &EmbedImages) -> Result<(), String> {
        match request {
            EmbedImages::Images(images) => check_count("images", images.len()),
            EmbedImages::Texts(texts) => check_texts(texts),
        }
    }

    /// In images or texts.
    fn cost(request: &EmbedImages) -> Cost {
        Cost(match request {
            EmbedImages::Images(images) => images.len() as u64,
            EmbedImages::Texts(texts) => texts.len() as u64,
        })
    }

    fn batch_key(request: &EmbedImages) -> BatchKey {
        BatchKey(matches!(request, EmbedImages::Texts(_)).into())
    }
}

fn check_texts(texts: &[String]) -> Result<(), String> {
    check_count("texts", texts.len())?;
    match texts.iter().enumerate().find(|(_, text)| text.len() > MAX_TEXT_BYTES) {
        Some((index, text)) => {
            Err(format!("text {index} has {} bytes; at most {MAX_TEXT_BYTES} are allowed", text.len()))
        }
        None => Ok(()),
    }
}

fn check_count(what: &str, count: usize) -> Result<(), String> {
    match count {
        0 => Err(format!("the request holds no {what}")),
        1..=MAX_ITEMS => Ok(()),
        _ => Err(format!("the request holds {count} {what}; at most {MAX_ITEMS} are allowed")),
    }
}
