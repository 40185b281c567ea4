//! Fakes of the shipped capabilities, with their real requests and outputs: an application's tests send what the
//! application sends, and get answers without weights. Faults are added by `fault`.

use std::sync::Arc;

use crate::batch::{Batch, Item};
use crate::capability::{
    Capability, Completion, DescribeImage, EmbedImages, EmbedInput, EmbedTexts, Embeddings, FinishReason,
    GenerateText, ImageEmbedding, PaintImage, PaintStep, Picture, Prompt, RankedDocument, Ranking,
    RerankDocuments, Reranking, TextChunk, TextEmbedding, TextToImage, TextToText, TextToken, Usage, Vision,
    VisionMessage,
};
use crate::error::Failure;
use crate::id::Bytes;
use crate::model::{Footprint, LoadContext, Loader, Model, Weights};

/// Length of the vectors of fake embeddings.
const DIMENSIONS: usize = 8;
/// Width and height of fake pictures, in pixels.
const SIDE: usize = 8;

/// An answer as it is sent: chunks, then the output.
///
/// ```
/// use model_actors::testing::{FakeCapability, Answers};
/// use model_actors::{GenerateText, TextToText};
/// let Answers { chunks, output } = TextToText::answer(&GenerateText::from("a small cat"));
/// let text: String = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
/// assert_eq!((text.as_str(), output.text.as_str()), ("a small cat", "a small cat"));
/// ```
#[derive(Debug)]
pub struct Answers<C: Capability> {
    /// Chunks of a stream; none for a one-shot capability.
    pub chunks: Vec<C::Chunk>,
    /// The output.
    pub output: C::Output,
}

impl<C: Capability> Answers<C> {
    /// An output without chunks.
    pub fn whole(output: C::Output) -> Self {
        Self { chunks: Vec::new(), output }
    }
}

/// A capability that has an answer to every request without a model, always the same to the same request.
///
/// ```
/// use model_actors::testing::FakeCapability;
/// use model_actors::{EmbedTexts, TextEmbedding};
/// let vectors = TextEmbedding::answer(&EmbedTexts::new(["a cat", "a dog"])).output.vectors;
/// assert_eq!((vectors.len(), vectors[0].len()), (2, 8));
/// assert_ne!(vectors[0], vectors[1]);
/// ```
pub trait FakeCapability: Capability {
    /// The answer to a request.
    fn answer(request: &Self::Request) -> Answers<Self>
    where
        Self: Sized;
}

/// Texts give unit vectors of length 8 that depend on their bytes alone; a word counts as a token.
impl FakeCapability for TextEmbedding {
    fn answer(request: &EmbedTexts) -> Answers<Self> {
        let (outputs, texts) = (request.outputs, &request.texts);
        let wanted = |is_wanted| if is_wanted { &texts[..] } else { &[] };
        let vectors = wanted(outputs.vectors).iter().map(|text| unit_vector(text.as_bytes()));
        let token = |word: &str| TextToken::new(hash(word.as_bytes()) as u32, word);
        let tokens = |text: &String| text.split_whitespace().map(token).collect();
        let count = wanted(outputs.vectors).iter().map(|text| text.split_whitespace().count()).sum();
        let embeddings = Embeddings::new(vectors.collect()).with_usage(Usage::new(count, 0));
        Answers::whole(embeddings.with_tokens(wanted(outputs.tokens).iter().map(tokens).collect()))
    }
}

/// Texts give unit vectors of length 8 that depend on their bytes; images such that depend on their pixels, or on
/// where they come from while they are not decoded.
impl FakeCapability for ImageEmbedding {
    fn answer(request: &EmbedImages) -> Answers<Self> {
        Answers::whole(Embeddings::new(match &request.input {
            EmbedInput::Texts(texts) => texts.iter().map(|text| unit_vector(text.as_bytes())).collect(),
            EmbedInput::Images(images) => images
                .iter()
                .map(|image| match image.pixels() {
                    Some(picture) => unit_vector(&picture.rgb),
                    None => unit_vector(format!("{image:?}").as_bytes()),
                })
                .collect(),
        }))
    }
}

/// A document scores the share of the query's words that it has; a word counts as a token.
impl FakeCapability for Reranking {
    fn answer(request: &RerankDocuments) -> Answers<Self> {
        let words = || request.query.split_whitespace();
        let rank = |(index, document): (usize, &String)| {
            let found = words().filter(|word| document.split_whitespace().any(|other| other == *word));
            let score = found.count() as f32 / words().count().max(1) as f32;
            RankedDocument::new(index, score, score)
        };
        let length = |document: &String| words().count() + document.split_whitespace().count();
        let usage = Usage::new(request.documents.iter().map(length).sum(), 0);
        let documents = request.documents.iter().enumerate().map(rank).collect();
        Answers::whole(Ranking::new(documents, usage).top(request.top_n))
    }
}

/// Repeats the last message, or the prompt, word by word; a word counts as a token.
impl FakeCapability for TextToText {
    fn answer(request: &GenerateText) -> Answers<Self> {
        let text = match &request.prompt {
            Prompt::Messages(messages) => messages.last().map_or("", |message| message.content.as_str()),
            Prompt::Raw(text) => text,
        };
        repeat(text, request.max_tokens)
    }
}

/// Repeats the last text, or says that it is a picture, word by word; a word counts as a token.
impl FakeCapability for Vision {
    fn answer(request: &DescribeImage) -> Answers<Self> {
        let last = request.messages.iter().flat_map(VisionMessage::texts).last();
        repeat(last.unwrap_or("a picture"), request.max_tokens)
    }
}

/// Paints in one colour, which depends on the prompt, in 8 × 8 pixels or the size asked for, in 4 steps or as many as
/// are asked for.
impl FakeCapability for TextToImage {
    fn answer(request: &PaintImage) -> Answers<Self> {
        let (width, height) = request.size.unwrap_or((SIDE, SIDE));
        let colour = hash(request.prompt.as_bytes()).to_le_bytes();
        let paint = |width: usize, height: usize| {
            let rgb = colour[..3].repeat(width.saturating_mul(height));
            Picture::new(width, height, rgb)
        };
        let steps = request.steps.unwrap_or(4);
        let step = |step| PaintStep::new(step, steps, request.preview.then(|| paint(SIDE, SIDE)));
        Answers { chunks: (1..=steps).map(step).collect(), output: paint(width, height) }
    }
}

fn repeat<C>(text: &str, max_tokens: usize) -> Answers<C>
where
    C: Capability<Chunk = TextChunk, Output = Completion>,
{
    let words: Vec<&str> = text.split_inclusive(' ').collect();
    let written: Vec<&str> = words.iter().take(max_tokens).copied().collect();
    let reason = if written.len() < words.len() { FinishReason::Length } else { FinishReason::Stop };
    let usage = Usage::new(words.len(), written.len());
    let chunks = written.iter().map(|word| TextChunk::from(*word)).collect();
    Answers { output: Completion::new(written.concat(), reason, usage), chunks }
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

fn unit_vector(bytes: &[u8]) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(hash(bytes));
    let vector: Vec<f32> = (0..DIMENSIONS).map(|_| random.f32() - 0.5).collect();
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    vector.into_iter().map(|value| value / length).collect()
}

/// A loader of a model that answers each request as a function says, or as [`FakeCapability`] does by default. The
/// model ticks progress and looks at its cancel mark before each chunk.
///
/// ```
/// use model_actors::testing::{Answers, FakeLoader};
/// use model_actors::{Completion, Failure, FinishReason, ModelSpec, TextToText, Usage};
/// let loader = FakeLoader::<TextToText>::new(|request| match request.max_tokens {
///     1 => Err(Failure::invalid_input("one token is too few")),
///     _ => Ok(Answers::whole(Completion::new("Yes.", FinishReason::Stop, Usage::new(3, 2)))),
/// });
/// let spec = ModelSpec::new("chat", loader);
/// # drop(spec);
/// ```
pub struct FakeLoader<C: Capability> {
    answer: AnswerFn<C>,
    footprint: Footprint,
}

type AnswerFn<C> = Arc<dyn Fn(&<C as Capability>::Request) -> Result<Answers<C>, Failure> + Send + Sync>;

impl<C: FakeCapability> Default for FakeLoader<C> {
    fn default() -> Self {
        Self::new(|request| Ok(C::answer(request)))
    }
}

impl<C: Capability> FakeLoader<C> {
    /// A model of 10 MiB, and 1 MiB for each worker, that answers so. A failure ends its request alone.
    pub fn new(answer: impl Fn(&C::Request) -> Result<Answers<C>, Failure> + Send + Sync + 'static) -> Self {
        Self { answer: Arc::new(answer), footprint: Footprint::new(Bytes::mib(10), Bytes::mib(1)) }
    }

    /// Memory that the model is charged with.
    #[must_use]
    pub fn with_footprint(mut self, footprint: Footprint) -> Self {
        self.footprint = footprint;
        self
    }
}

impl<C: Capability> Clone for FakeLoader<C> {
    fn clone(&self) -> Self {
        Self { answer: self.answer.clone(), footprint: self.footprint }
    }
}

impl<C: Capability> Loader<C> for FakeLoader<C> {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(self.footprint)
    }

    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<C>>, Failure> {
        Ok(Arc::new(self.clone()))
    }
}

impl<C: Capability> Weights<C> for FakeLoader<C> {
    fn footprint(&self) -> Footprint {
        self.footprint
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<C>>, Failure> {
        Ok(Box::new(self.clone()))
    }
}

impl<C: Capability> Model<C> for FakeLoader<C> {
    fn run(&mut self, batch: &mut Batch<C>) -> Result<(), Failure> {
        let mut done = 0;
        while done < batch.items().len() {
            batch.items()[done..].iter().for_each(|item| self.answer(batch, item));
            let joined = batch.join();
            done = batch.items().len() - joined;
        }
        Ok(())
    }
}

impl<C: Capability> FakeLoader<C> {
    fn answer(&self, batch: &Batch<C>, item: &Item<C>) {
        batch.tick();
        let Answers { chunks, output } = match (self.answer)(item.request()) {
            Ok(answers) => answers,
            Err(failure) => return item.fail(failure),
        };
        let sent = chunks.into_iter().try_for_each(|chunk| {
            batch.tick();
            item.emit(chunk)
        });
        // Nobody waits for the output of one that could not be sent.
        if sent.is_ok() {
            item.finish(output);
        }
    }
}
