//! Images as values, and the two capabilities around them: painting one is here, talking about some in `vision`.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{BatchKey, Capability};
use crate::config::QueueCapacity;
use crate::error::Cause;
use crate::limits::{MAX_GUIDANCE, MAX_PAINTED_SIDE, MAX_PAINTING_PROMPT_BYTES, MAX_STEPS};

mod pixels;
mod vision;

pub use vision::{ContentPart, DescribeImage, Vision, VisionMessage};

/// Source of an image.
///
/// ```
/// use model_actors::ImageSource;
/// let source = ImageSource::Url("https://user:password@example.org/cat.png?signature=5".to_owned());
/// assert_eq!(format!("{source:?}"), "Url(…)");
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub enum ImageSource {
    /// A file.
    Path(PathBuf),
    /// An http or https address.
    Url(String),
    /// An encoded file in base64.
    Base64(String),
    /// An encoded file.
    Bytes(Vec<u8>),
    /// Pixels.
    Picture(Picture),
    /// Pixels together with a lease, such as a part of a memory budget, that is released with the last clone.
    Leased(LeasedPicture),
}

impl ImageSource {
    /// The pixels, where they are here already.
    pub fn pixels(&self) -> Option<&Picture> {
        match self {
            Self::Picture(picture) => Some(picture),
            Self::Leased(picture) => Some(picture),
            Self::Path(_) | Self::Url(_) | Self::Base64(_) | Self::Bytes(_) => None,
        }
    }
}

/// An address may hold a password or a signature, and the content is large: neither is shown.
impl fmt::Debug for ImageSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => formatter.debug_tuple("Path").field(path).finish(),
            Self::Url(_) => formatter.write_str("Url(…)"),
            Self::Base64(text) => write!(formatter, "Base64({} letters)", text.len()),
            Self::Bytes(bytes) => write!(formatter, "Bytes({})", bytes.len()),
            Self::Picture(picture) => picture.fmt(formatter),
            Self::Leased(picture) => picture.fmt(formatter),
        }
    }
}

/// Decoded pixels, 8 bits each of red, green and blue, row by row from the top.
///
/// ```
/// use model_actors::Picture;
/// let picture = Picture::new(2, 1, vec![0; 6]);
/// assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
/// ```
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "pixels::Travelling")]
#[non_exhaustive]
pub struct Picture {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `width × height × 3` bytes.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// A picture of these pixels. Their number is checked where a picture is used.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Self {
        Self { width, height, rgb }
    }

    /// Checks that there are pixels, and as many as the sides say.
    ///
    /// # Errors
    /// A sentence with the sides and the number of bytes.
    ///
    /// ```
    /// use model_actors::Picture;
    /// assert!(Picture::new(2, 1, vec![0; 6]).check().is_ok());
    /// assert!(Picture::new(2, 2, vec![0; 6]).check().is_err());
    /// ```
    pub fn check(&self) -> Result<(), Cause> {
        pixels::check(self.width, self.height, self.rgb.len())
    }
}

/// Its size alone.
impl fmt::Debug for Picture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Picture({} x {})", self.width, self.height)
    }
}

/// A picture with a lease (a part of a memory budget, say) that is released when the last clone is dropped. A
/// request keeps its pictures until the pool has let go of it, which may be later than its caller does.
///
/// ```
/// use std::sync::Arc;
/// use model_actors::{LeasedPicture, Picture};
/// let budget = Arc::new(());
/// let picture = LeasedPicture::new(Picture::new(1, 1, vec![0; 3]), Arc::clone(&budget));
/// let clone = picture.clone();
/// drop(picture);
/// assert_eq!((clone.width, Arc::strong_count(&budget)), (1, 2));
/// drop(clone);
/// assert_eq!(Arc::strong_count(&budget), 1);
/// ```
#[derive(Clone)]
pub struct LeasedPicture(Arc<Leased>);

struct Leased {
    picture: Picture,
    /// Dropped with the picture, and not used otherwise.
    _lease: Box<dyn Any + Send + Sync>,
}

impl LeasedPicture {
    /// A picture that keeps `lease`.
    pub fn new(picture: Picture, lease: impl Any + Send + Sync) -> Self {
        Self(Arc::new(Leased { picture, _lease: Box::new(lease) }))
    }
}

impl Deref for LeasedPicture {
    type Target = Picture;

    fn deref(&self) -> &Picture {
        &self.0.picture
    }
}

impl fmt::Debug for LeasedPicture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.picture.fmt(formatter)
    }
}

/// The capability of painting an image from a prompt. Streamed: one chunk for each diffusion step.
///
/// ```
/// use model_actors::{Capability, PaintImage, TextToImage};
/// assert!(TextToImage::check(&PaintImage::from("a red circle")).is_ok());
/// ```
#[derive(Debug, Clone, Copy)]
pub struct TextToImage;

/// A request to paint a picture: from noise, from another image, or anew where a mask says so.
///
/// ```
/// use model_actors::{ImageSource, PaintImage};
/// let request = PaintImage::from("a red circle left of a blue square").with_steps(20).with_seed(7);
/// assert_eq!(request.size, None); // the model's own
/// let again = request.with_image(ImageSource::Path("sketch.png".into())).with_strength(0.6);
/// let only_the_sky = again.with_mask(ImageSource::Path("sky.png".into()));
/// # drop(only_the_sky);
/// ```
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PaintImage {
    /// Description of the picture.
    pub prompt: String,
    /// Description of content to avoid; as long as a prompt may be.
    pub negative_prompt: Option<String>,
    /// Image to begin with: noise is added to it, and painting removes that. `None`: painting begins with noise alone.
    pub image: Option<ImageSource>,
    /// How much of the image is painted anew, above 0 and up to 1: the part of the steps that are taken, from as much
    /// noise. Unless set, 0.8, or 1 with a mask.
    pub strength: Option<f32>,
    /// Mask of the image, of any size: what is white in it is painted anew, what is black stays, but for the loss of the
    /// model's own encoding. It takes an image.
    pub mask: Option<ImageSource>,
    /// Width and height in pixels, up to 4,096 each; without, those of the image to begin with, rounded down to what the
    /// model can paint, or the model's own. The image and the mask are resized to it.
    pub size: Option<(usize, usize)>,
    /// Diffusion steps, up to 1,000; without, the model's own number.
    pub steps: Option<usize>,
    /// Classifier-free guidance scale, 0 to 100; without, the model's own.
    pub guidance: Option<f32>,
    /// Makes the picture repeatable.
    pub seed: Option<u64>,
    /// The scheduler's name; without, the model's own.
    pub scheduler: Option<String>,
    /// Sends a [`PaintStep::preview`] with each step of a stream.
    pub preview: bool,
}

setters! { PaintImage {
    with_prompt(prompt: impl Into<String>) Into::into;
    with_negative_prompt(negative_prompt: impl Into<Option<String>>) Into::into;
    with_image(image: impl Into<Option<ImageSource>>) Into::into;
    with_strength(strength: impl Into<Option<f32>>) Into::into;
    with_mask(mask: impl Into<Option<ImageSource>>) Into::into;
    with_size(size: impl Into<Option<(usize, usize)>>) Into::into;
    with_steps(steps: impl Into<Option<usize>>) Into::into;
    with_guidance(guidance: impl Into<Option<f32>>) Into::into;
    with_seed(seed: impl Into<Option<u64>>) Into::into;
    with_scheduler(scheduler: impl Into<Option<String>>) Into::into;
    with_preview(preview: bool);
} }

impl<T: Into<String>> From<T> for PaintImage {
    fn from(prompt: T) -> Self {
        Self { prompt: prompt.into(), ..Self::default() }
    }
}

/// One finished diffusion step.
///
/// ```
/// let step = model_actors::PaintStep::new(3, 20, None);
/// assert_eq!((step.step, step.of), (3, 20));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PaintStep {
    /// Number of the step, from 1.
    pub step: usize,
    /// Number of all steps.
    pub of: usize,
    /// Small preview of the picture after this step, if the request asks for it.
    pub preview: Option<Picture>,
}

impl PaintStep {
    /// Step `step` of `of`.
    pub fn new(step: usize, of: usize, preview: Option<Picture>) -> Self {
        Self { step, of, preview }
    }
}

impl Capability for TextToImage {
    type Request = PaintImage;
    type Chunk = PaintStep;
    type Output = Picture;
    const NAME: &'static str = "text_to_image";
    const QUEUE: QueueCapacity = QueueCapacity::new(20, 20);

    fn check(request: &PaintImage) -> Result<(), Cause> {
        check_text("prompt", &request.prompt)?;
        if let Some((width, height)) = request.size
            && !((1..=MAX_PAINTED_SIDE).contains(&width) && (1..=MAX_PAINTED_SIDE).contains(&height))
        {
            return Err(format!(
                "the size {width}x{height} is outside 1 to {MAX_PAINTED_SIDE} pixels a side"
            )
            .into());
        }
        match request.strength {
            Some(strength) if !(strength > 0.0 && strength <= 1.0) => {
                return Err(format!("the strength {strength} is asked for; above 0 to 1 are allowed").into());
            }
            Some(_) if request.image.is_none() => {
                return Err("a strength takes an image to begin with".into());
            }
            _ => {}
        }
        if request.mask.is_some() && request.image.is_none() {
            return Err("a mask takes the image that it is of".into());
        }
        if let Some(negative) = request.negative_prompt.as_ref().filter(|text| !text.is_empty()) {
            check_text("negative prompt", negative)?;
        }
        if let Some(guidance) = request.guidance
            && !(0.0..=MAX_GUIDANCE).contains(&guidance)
        {
            return Err(
                format!("the guidance {guidance} is asked for; 0 to {MAX_GUIDANCE} are allowed").into()
            );
        }
        match request.steps {
            Some(steps) if !(1..=MAX_STEPS).contains(&steps) => {
                Err(format!("{steps} steps are asked for; 1 to {MAX_STEPS} are allowed").into())
            }
            _ => Ok(()),
        }
    }

    /// The size: only pictures of one size share a batch.
    fn batch_key(request: &PaintImage) -> BatchKey {
        let pixels = request.image.as_ref().and_then(ImageSource::pixels);
        let (width, height) = request.size.or(pixels.map(|it| (it.width, it.height))).unwrap_or((0, 0));
        BatchKey((width as u64) << 32 | height as u64)
    }
}

fn check_text(what: &str, text: &str) -> Result<(), Cause> {
    match text.len() {
        0 => Err(format!("the {what} is empty").into()),
        1..=MAX_PAINTING_PROMPT_BYTES => Ok(()),
        bytes => {
            Err(format!("the {what} has {bytes} bytes; at most {MAX_PAINTING_PROMPT_BYTES} are allowed")
                .into())
        }
    }
}
