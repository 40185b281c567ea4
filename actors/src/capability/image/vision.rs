//! Vision: a conversation whose messages have images among their words in, a stream of text out. What an answer is, and
//! how its tokens are chosen, is shared with text to text; how a family shows images to its words is the models'.

use serde::{Deserialize, Serialize};

use super::ImageSource;
use crate::capability::generation::{
    Completion, Constraint, Role, Sampling, TextChunk, Usage, check_answers, check_ends, check_logprobs,
    check_min_tokens, check_tokens, is_one,
};
use crate::capability::{Batching, Capability, Cost};
use crate::config::QueueCapacity;
use crate::error::Cause;
use crate::limits::{MAX_IMAGES, MAX_MESSAGES, MAX_PARTS, MAX_PROMPT_BYTES};

/// The capability of answering in a conversation about images in text. Streamed.
///
/// ```
/// use model_actors::{Capability, DescribeImage, ImageSource, Vision};
/// let request = DescribeImage::new(ImageSource::Path("cat.png".into())).with_max_tokens(0);
/// assert!(Vision::check(&request).is_err());
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Vision;

/// A part of a message: some text, or an image.
///
/// ```
/// use model_actors::{ContentPart, ImageSource};
/// let cat = ContentPart::from(ImageSource::Path("cat.png".into()));
/// assert!(matches!(cat, ContentPart::Image(_)));
/// assert!(matches!(ContentPart::from("What is this?"), ContentPart::Text(_)));
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ContentPart {
    /// Text.
    Text(String),
    /// An image.
    Image(ImageSource),
}

impl From<ImageSource> for ContentPart {
    fn from(image: ImageSource) -> Self {
        Self::Image(image)
    }
}

impl From<String> for ContentPart {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for ContentPart {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// One message of a conversation about images.
///
/// ```
/// use model_actors::{ImageSource, VisionMessage};
/// let [left, right] = ["left.png", "right.png"].map(|file| ImageSource::Path(file.into()));
/// let message = VisionMessage::user([left.into(), "and".into(), right.into(), "What differs?".into()]);
/// assert_eq!(message.content.len(), 4);
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VisionMessage {
    /// Speaker.
    pub role: Role,
    /// Texts and images, in their order; at least one. A model's chat template may put a message's images before its texts.
    pub content: Vec<ContentPart>,
}

impl VisionMessage {
    /// A message of this speaker.
    pub fn new(role: Role, content: impl IntoIterator<Item = ContentPart>) -> Self {
        Self { role, content: content.into_iter().collect() }
    }

    /// Instructions to the model.
    pub fn system(text: impl Into<String>) -> Self {
        Self::new(Role::System, [ContentPart::Text(text.into())])
    }

    /// A message of the person.
    pub fn user(content: impl IntoIterator<Item = ContentPart>) -> Self {
        Self::new(Role::User, content)
    }

    /// An earlier answer of the model.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::new(Role::Assistant, [ContentPart::Text(text.into())])
    }

    /// The texts of its parts.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.content.iter().filter_map(|part| match part {
            ContentPart::Text(text) => Some(text.as_str()),
            ContentPart::Image(_) => None,
        })
    }

    /// The images among its parts.
    pub fn images(&self) -> impl Iterator<Item = &ImageSource> {
        self.content.iter().filter_map(|part| match part {
            ContentPart::Image(image) => Some(image),
            ContentPart::Text(_) => None,
        })
    }
}

/// A request to describe an image, or to answer in a conversation about some.
///
/// ```
/// use model_actors::{DescribeImage, ImageSource, VisionMessage};
/// let image = |file: &str| ImageSource::Path(file.into());
/// let request = DescribeImage::new(image("cat.png")).with_question("What colour is the cat?").with_max_tokens(64);
/// assert_eq!(request.sampling.temperature, None); // greedy
/// let request = DescribeImage::chat([
///     VisionMessage::user([image("cat.png").into(), "What colour is the cat?".into()]),
///     VisionMessage::assistant("Black."),
///     VisionMessage::user([image("other.png").into(), "And this one?".into()]),
/// ]);
/// assert_eq!(request.images().count(), 2);
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "Received")]
#[non_exhaustive]
pub struct DescribeImage {
    /// The conversation, rendered with the model's chat template: 1 to 1,024 messages of at most 4,096 parts together, with
    /// at most 16 images and 4 MiB of text. Families that complete a text about one image (BLIP, BLIP-2, Moondream) take
    /// one message of one image and a text, which may be missing for those that caption an image unasked.
    pub messages: Vec<VisionMessage>,
    /// Sampling of the tokens.
    pub sampling: Sampling,
    /// Maximum number of tokens to generate, 1 to 1,048,576; 256 by default.
    pub max_tokens: usize,
    /// Minimum number of tokens: see [`GenerateText::min_tokens`](crate::GenerateText::min_tokens).
    pub min_tokens: usize,
    /// Stop strings: see [`GenerateText::stop`](crate::GenerateText::stop).
    pub stop: Vec<String>,
    /// Stop tokens: see [`GenerateText::stop_tokens`](crate::GenerateText::stop_tokens).
    pub stop_tokens: Vec<u32>,
    /// Log probabilities: see [`GenerateText::logprobs`](crate::GenerateText::logprobs).
    pub logprobs: Option<usize>,
    /// Rule that the whole text keeps to: see [`GenerateText::constraint`](crate::GenerateText::constraint).
    pub constraint: Option<Constraint>,
    /// Number of answers: see [`GenerateText::answers`](crate::GenerateText::answers).
    #[serde(skip_serializing_if = "is_one")]
    pub answers: usize,
}

setters! { DescribeImage {
    with_messages(messages: Vec<VisionMessage>);
    with_sampling(sampling: Sampling);
    with_max_tokens(max_tokens: usize);
    with_min_tokens(min_tokens: usize);
    with_stop(stop: Vec<String>);
    with_stop_tokens(stop_tokens: Vec<u32>);
    with_logprobs(logprobs: impl Into<Option<usize>>) Into::into;
    with_constraint(constraint: impl Into<Option<Constraint>>) Into::into;
    with_answers(answers: usize);
} }

/// An empty conversation, which [`Capability::check`] refuses: set one with [`DescribeImage::with_messages`].
impl Default for DescribeImage {
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            sampling: Sampling::default(),
            max_tokens: 256,
            min_tokens: 0,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            logprobs: None,
            constraint: None,
            answers: 1,
        }
    }
}

impl DescribeImage {
    /// A request about one image, without a question, with greedy sampling and at most 256 tokens.
    pub fn new(image: ImageSource) -> Self {
        Self::chat([VisionMessage::user([image.into()])])
    }

    /// A request for the model's next message in a conversation.
    pub fn chat(messages: impl IntoIterator<Item = VisionMessage>) -> Self {
        Self::default().with_messages(messages.into_iter().collect())
    }

    /// Sets the question or instruction: the one text of the last message, behind its images. Without one, a model that
    /// captions an image unasked (BLIP) does so, and others are asked to describe it.
    #[must_use]
    pub fn with_question(mut self, question: impl Into<String>) -> Self {
        let question = question.into();
        if self.messages.is_empty() {
            self.messages.push(VisionMessage::user([]));
        }
        if let Some(last) = self.messages.last_mut() {
            last.content.retain(|part| matches!(part, ContentPart::Image(_)));
            last.content.extend((!question.is_empty()).then_some(ContentPart::Text(question)));
        }
        self
    }

    /// The images of all messages, in their order.
    pub fn images(&self) -> impl Iterator<Item = &ImageSource> {
        self.messages.iter().flat_map(VisionMessage::images)
    }

    /// The places of the images of all messages, in their order.
    pub fn images_mut(&mut self) -> impl Iterator<Item = &mut ImageSource> {
        let parts = self.messages.iter_mut().flat_map(|message| &mut message.content);
        parts.filter_map(|part| match part {
            ContentPart::Image(image) => Some(image),
            ContentPart::Text(_) => None,
        })
    }
}

/// A request as it comes from another process. One that knows of no conversations sends an image and a question.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Received {
    messages: Vec<VisionMessage>,
    image: Option<ImageSource>,
    question: String,
    sampling: Sampling,
    max_tokens: Option<usize>,
    min_tokens: usize,
    stop: Vec<String>,
    stop_tokens: Vec<u32>,
    logprobs: Option<usize>,
    constraint: Option<Constraint>,
    answers: Option<usize>,
}

impl From<Received> for DescribeImage {
    fn from(received: Received) -> Self {
        let request = match received.image {
            Some(image) if received.messages.is_empty() => Self::new(image).with_question(received.question),
            _ => Self::chat(received.messages),
        };
        Self {
            sampling: received.sampling,
            max_tokens: received.max_tokens.unwrap_or(request.max_tokens),
            min_tokens: received.min_tokens,
            stop: received.stop,
            stop_tokens: received.stop_tokens,
            logprobs: received.logprobs,
            constraint: received.constraint,
            answers: received.answers.unwrap_or(request.answers),
            ..request
        }
    }
}

impl Capability for Vision {
    type Request = DescribeImage;
    type Chunk = TextChunk;
    type Output = Completion;
    const NAME: &'static str = "vision";
    const QUEUE: QueueCapacity = QueueCapacity::new(50, 50);
    /// An answer takes long, so that nobody should wait for another's end.
    const BATCHING: Batching = Batching::Continuous;

    fn check(request: &DescribeImage) -> Result<(), Cause> {
        check_tokens(request.max_tokens)?;
        request.sampling.check()?;
        check_ends(&request.stop, &request.stop_tokens)?;
        check_min_tokens(request.min_tokens, request.max_tokens)?;
        check_answers(request.answers)?;
        check_logprobs(request.logprobs, request.max_tokens, request.answers)?;
        request.constraint.as_ref().map_or(Ok(()), Constraint::check)?;
        check_messages(&request.messages)
    }

    /// Each answer counts as one.
    fn cost(request: &DescribeImage) -> Cost {
        Cost(request.answers as u64)
    }

    fn usage(output: &Completion) -> Option<Usage> {
        Some(output.total_usage())
    }
}

/// Checks a conversation. Only the model knows whether it takes several messages or images, and whether it needs a text.
fn check_messages(messages: &[VisionMessage]) -> Result<(), Cause> {
    if messages.is_empty() {
        return Err("the conversation has no messages".into());
    }
    let sum = |of: fn(&VisionMessage) -> usize| messages.iter().map(of).fold(0, usize::saturating_add);
    for (name, found, most) in [
        ("messages", messages.len(), MAX_MESSAGES),
        ("parts", sum(|message| message.content.len()), MAX_PARTS),
        ("images", sum(|message| message.images().count()), MAX_IMAGES),
        ("bytes of text", sum(|message| message.texts().map(str::len).sum()), MAX_PROMPT_BYTES),
    ] {
        if found > most {
            return Err(format!("the conversation has {found} {name}; at most {most} are allowed").into());
        }
    }
    for message in messages {
        if message.content.is_empty() {
            return Err(format!("a message of the {} has neither text nor image", message.role.name()).into());
        }
        if message.role == Role::Tool {
            return Err("a conversation about images has no results of tools".into());
        }
    }
    Ok(())
}
