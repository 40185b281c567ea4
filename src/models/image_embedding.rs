//! Image embedding: from a source's files to a model that answers batches of images, and of texts where the family puts
//! both into one space. The list of families is here, and what they share: preprocessing, tokenizing, packing images
//! into passes, and the three roles of the actors' model contract. A family's computation is left to its file, and
//! the transformers underneath to `towers`.

#[cfg(feature = "transformers")]
mod chinese_clip;
mod clip;
mod dinov2;
mod dinov3;
#[cfg(feature = "transformers")]
mod fast_vit;
mod inputs;
mod open_clip;
mod plan;
mod siglip;
#[cfg(feature = "transformers")]
mod vit;
mod worker;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, Footprint, LoadContext, Picture};

use crate::architecture::Family;
use crate::device::{Compute, ComputeThreads};
use crate::error::{Error, Result};
use crate::limits::MAX_IMAGE_ROWS;
use crate::loader::{WorkerModel, standalone_model};
use crate::models::answers::{Watch, check};
use crate::pooling::normalize;
use crate::preprocessing::{Preprocessing, Processor};
use crate::weights::{NAME, WeightFiles};
use inputs::{Input, Pass, Texts};
pub(crate) use plan::ImageEmbeddingPlan;

/// The families, in the order that errors list them. A new one is its file and its line here.
const FAMILIES: &[Family<Box<dyn Architecture>>] = &[
    clip::FAMILY,
    clip::FAMILY_OF_IMAGES,
    clip::FAMILY_OF_TEXTS,
    open_clip::FAMILY,
    siglip::FAMILY,
    siglip::FAMILY_NAFLEX,
    dinov2::FAMILY,
    dinov2::FAMILY_WITH_REGISTERS,
    dinov3::FAMILY,
    #[cfg(feature = "transformers")]
    vit::FAMILY,
    #[cfg(feature = "transformers")]
    chinese_clip::FAMILY,
];

/// The capability's name in errors.
const CAPABILITY: &str = "image embedding";

/// A model that is not loaded, as its configuration describes it.
trait Architecture: Send + Sync {
    /// Length of a vector.
    fn dimensions(&self) -> usize;
    /// Its image side, if it has one.
    fn images(&self) -> Option<ImageSide>;
    /// Its text side, if it has one.
    fn texts(&self) -> Option<TextSide>;
    /// The preprocessing of images, where the configuration has it.
    fn preprocessing(&self) -> Option<Preprocessing> {
        None
    }
    /// Name of its weight files, without an ending.
    fn weights(&self) -> &'static str {
        NAME
    }
    /// True for tensors of the file that change no vector.
    fn has_no_effect(&self, tensor: &str) -> bool;
    /// True for the tensors of the file that are loaded.
    fn uses(&self, tensor: &str) -> bool;
    /// Bytes that a pass over so many rows needs besides the weights, where the longest image or text has `longest`.
    fn scratch(&self, rows: usize, longest: usize) -> Bytes;
    fn load(&self, weights: &WeightFiles, device: &Device, context: &LoadContext)
    -> Result<Arc<dyn Encoder>>;
}

/// An image side as the configuration describes it.
#[derive(Debug, Clone, Copy)]
struct ImageSide {
    /// The family whose preprocessing stands in where the files do not say.
    processor: Processor,
    size: ImageSize,
    /// Pixels along a patch's side.
    patch: usize,
    /// Rows of an image before those of its patches.
    leading: usize,
}

impl ImageSide {
    /// Rows that an image of this width and height becomes.
    fn rows(&self, width: usize, height: usize) -> usize {
        let patches = (width / self.patch.max(1)).saturating_mul(height / self.patch.max(1));
        patches.saturating_add(self.leading)
    }
}

/// Sizes of the images that a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ImageSize {
    /// Squares of this side.
    Square(usize),
    /// Any; pixels that fill no patch are left out.
    Any,
    /// Whole patches, as the preprocessing makes them.
    WholePatches,
}

/// A text side as the configuration describes it.
#[derive(Debug, Clone, Copy)]
struct TextSide {
    /// Number of tokens that it knows.
    vocabulary: usize,
    /// Maximum number of tokens of a text, special ones included.
    longest: usize,
    padding: Padding,
}

/// Padding of texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Padding {
    /// Texts keep their own lengths.
    None,
    /// All texts are padded to the longest that the model takes, and the padding is attended to, as in training.
    ToLongest,
    /// The same with this token after the text.
    ToLongestWith(u32),
}

/// A loaded model. It keeps nothing between passes, so that all workers share one.
trait Encoder: Send + Sync {
    /// The threads on which a worker computes it.
    fn threads(&self, threads: usize) -> Result<ComputeThreads> {
        ComputeThreads::for_kernels(threads)
    }
    /// One row for each image of `(3, height, width)`, as the model makes it: `(images, dimensions)`. It asks `watch`
    /// between layers. Only asked of a family with an image side.
    fn images(&self, images: &[Tensor], watch: &Watch<'_>) -> Result<Tensor>;
    /// The same for texts, whose tokens lie one text after another. Only asked of a family with a text side.
    fn texts(&self, ids: &[u32], lengths: &[usize]) -> Result<Tensor>;
}

/// Memory that a worker needs for the pictures of a pass, beside what text embedding takes for each thread.
const WORKER_SCRATCH: Bytes = Bytes::mib(16);

/// Bytes of a pass of an encoder of the library, of so many heads and these widths of layers and of their feed-forward
/// networks: scores and weights of attention beside each other, and the rows in all their forms.
#[cfg(feature = "transformers")]
fn encoder_scratch(
    (heads, width, intermediate): (usize, usize, usize),
    rows: usize,
    longest: usize,
) -> Bytes {
    let product =
        |sides: &[usize]| sides.iter().fold(4, |bytes: u64, side| bytes.saturating_mul(*side as u64));
    let inputs = rows.div_ceil(longest.max(1)).max(1);
    let scores = product(&[4, heads, inputs, longest, longest]);
    let hidden = product(&[16, width, rows.max(longest)]);
    let inner = product(&[4, intermediate, rows.max(longest)]);
    Bytes(scores.saturating_add(hidden).saturating_add(inner))
}

/// The error for an image that a model without an image side is given.
fn without_image_side() -> Error {
    Error::InvalidInput("the model has no image side: it embeds texts alone, so give it no images".to_owned())
}

/// The error for a text that a model without a text side is given.
fn without_text_side() -> Error {
    Error::InvalidInput(
        "the model has no text side: it embeds images alone, so no text can be compared with them".to_owned(),
    )
}

/// An image side and what is made of a picture for it.
#[derive(Debug, Clone)]
struct Images {
    side: ImageSide,
    preprocessing: Preprocessing,
}

/// A model in memory, shared by its workers.
pub(crate) struct LoadedModel {
    encoder: Arc<dyn Encoder>,
    images: Option<Images>,
    texts: Option<Texts>,
    compute: Compute,
    device: Device,
    footprint: Footprint,
    plan: Arc<ImageEmbeddingPlan>,
}

impl LoadedModel {
    /// The input that the model is given of a picture.
    fn image(&self, picture: &Picture) -> Result<Input> {
        let Images { side, preprocessing } = self.images()?;
        let (width, height, pixels) = preprocessing.values(picture)?;
        let patch = side.patch;
        if width < patch || height < patch {
            let reason =
                format!("the picture is {width}x{height} pixels; a patch of the model is {patch}x{patch}");
            return Err(Error::InvalidInput(reason));
        }
        let rows = side.rows(width, height);
        if rows > MAX_IMAGE_ROWS {
            let reason = format!(
                "the picture of {width}x{height} pixels becomes {rows} rows of the model; at most {MAX_IMAGE_ROWS} are \
                 allowed"
            );
            return Err(Error::InvalidInput(reason));
        }
        Ok(Input::Image { pixels, width, height, rows })
    }

    fn images(&self) -> Result<&Images> {
        self.images.as_ref().ok_or_else(without_image_side)
    }

    /// The input that the model is given of a text.
    fn text(&self, text: &str) -> Result<Input> {
        match &self.texts {
            Some(texts) => Ok(Input::Text(texts.tokens(text)?)),
            None => Err(without_text_side()),
        }
    }

    /// One pass: the vector of each input, as the model makes it.
    fn run(&self, threads: &ComputeThreads, pass: Pass, watch: &Watch<'_>) -> Result<Vec<Vec<f32>>> {
        threads.run(|| {
            let vectors = match pass {
                Pass::Images(images) => {
                    let tensor =
                        |(pixels, width, height)| Tensor::from_vec(pixels, (3, height, width), &self.device);
                    let images: Vec<Tensor> = images.into_iter().map(tensor).collect::<Result<_, _>>()?;
                    self.encoder.images(&images, watch)?
                }
                Pass::Texts { ids, lengths } => self.encoder.texts(&ids, &lengths)?,
            };
            let vectors: Vec<Vec<f32>> = vectors.to_vec2()?;
            Ok(vectors)
        })
    }
}

/// A loaded image embedding model without actors around it, for tools and for comparison: the very code that a worker
/// runs.
///
/// Vectors have the length 1, whatever the family, so that the product of two is the cosine of their angle: it is how
/// CLIP and SigLIP were trained to be compared. [`Self::image_features`] and [`Self::text_features`] give what the
/// model makes before that: the projected class token or end token for CLIP, the probe's or the last token's vector
/// for SigLIP, the normed class token for DINOv2 and DINOv3 (`pooler_output`).
///
/// ```no_run
/// use candle_actors::{ImageEmbeddingModel, Source, StandaloneModel};
/// use candle_actors::Picture;
/// # fn main() -> candle_actors::Result<()> {
/// let model = ImageEmbeddingModel::load(Source::repository("openai/clip-vit-large-patch14"))?;
/// let black = Picture::new(2, 2, vec![0; 12]);
/// let vectors = model.embed_images(&[black])?;
/// assert_eq!(vectors[0].len(), model.dimensions());
/// # Ok(())
/// # }
/// ```
pub struct ImageEmbeddingModel {
    shared: Arc<LoadedModel>,
    threads: ComputeThreads,
}

standalone_model!(ImageEmbeddingModel for ImageEmbedding);

impl WorkerModel for ImageEmbeddingModel {
    type Plan = ImageEmbeddingPlan;

    fn over(shared: Arc<LoadedModel>) -> Result<Self> {
        let threads = shared.encoder.threads(shared.compute.threads)?;
        Ok(Self { shared, threads })
    }

    fn loaded(&self) -> &Arc<LoadedModel> {
        &self.shared
    }

    fn footprint_of(loaded: &LoadedModel) -> Footprint {
        loaded.footprint
    }
}

impl ImageEmbeddingModel {
    /// The length of its vectors.
    pub fn dimensions(&self) -> usize {
        self.shared.plan.architecture.dimensions()
    }

    /// True if images can be embedded. A text tower that is published alone embeds texts into the space of the images
    /// of another model.
    pub fn has_image_side(&self) -> bool {
        self.shared.images.is_some()
    }

    /// True if texts can be embedded into the images' space.
    pub fn has_text_side(&self) -> bool {
        self.shared.texts.is_some()
    }

    /// One vector of length 1 for each image, in order.
    ///
    /// # Errors
    /// [`Error::InvalidInput`], also if the model has no image side; [`Error::Compute`].
    pub fn embed_images(&self, images: &[Picture]) -> Result<Vec<Vec<f32>>> {
        Ok(unit(self.image_features(images)?))
    }

    /// One vector of length 1 for each text, in order, in the images' space.
    ///
    /// # Errors
    /// As [`ImageEmbeddingModel::embed_images`]; [`Error::InvalidInput`] if the model has no text side.
    pub fn embed_texts<T: AsRef<str>>(&self, texts: &[T]) -> Result<Vec<Vec<f32>>> {
        Ok(unit(self.text_features(texts)?))
    }

    /// Computes the unnormalised vector of each image, in order.
    ///
    /// # Errors
    /// As [`ImageEmbeddingModel::embed_images`].
    pub fn image_features(&self, images: &[Picture]) -> Result<Vec<Vec<f32>>> {
        self.features(images.iter().map(|image| self.shared.image(image)))
    }

    /// Computes the unnormalised vector of each text, in order.
    ///
    /// # Errors
    /// As [`ImageEmbeddingModel::embed_texts`].
    pub fn text_features<T: AsRef<str>>(&self, texts: &[T]) -> Result<Vec<Vec<f32>>> {
        self.features(texts.iter().map(|text| self.shared.text(text.as_ref())))
    }

    /// The model's input for an image: width, height, and `3 × height × width` numbers.
    ///
    /// # Errors
    /// [`Error::InvalidInput`].
    pub fn preprocess(&self, image: &Picture) -> Result<(usize, usize, Vec<f32>)> {
        self.shared.images()?.preprocessing.values(image)
    }

    fn run(&self, inputs: Vec<Input>) -> Result<Vec<Vec<f32>>> {
        self.shared.run(&self.threads, Pass::of(inputs), &|| Ok(()))
    }

    fn features(&self, inputs: impl Iterator<Item = Result<Input>>) -> Result<Vec<Vec<f32>>> {
        let mut vectors = Vec::new();
        let mut waiting: Vec<Input> = Vec::new();
        for input in inputs {
            let input = input?;
            if !inputs::fits(&waiting, &input) {
                vectors.extend(self.run(std::mem::take(&mut waiting))?);
            }
            waiting.push(input);
        }
        if !waiting.is_empty() {
            vectors.extend(self.run(waiting)?);
        }
        vectors.into_iter().map(check).collect()
    }
}

fn unit(mut vectors: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    vectors.iter_mut().for_each(|vector| normalize(vector));
    vectors
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{Source, StandaloneModel as _};

    #[test]
    fn a_pass_asks_between_layers_whether_anybody_waits() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/image_embedding/dinov2");
        let model = ImageEmbeddingModel::load(Source::directory(folder)).unwrap();
        let picture = Picture::new(35, 35, vec![9; 35 * 35 * 3]);
        let run = |stop_at: usize| {
            let pass = Pass::of(vec![model.shared.image(&picture).unwrap()]);
            let looks = AtomicUsize::new(0);
            let watch = || match looks.fetch_add(1, Ordering::Relaxed) + 1 {
                look if look == stop_at => Err(Error::Stopped),
                _ => Ok(()),
            };
            let result = model.shared.run(&model.threads, pass, &watch);
            (result, looks.into_inner())
        };
        let (vectors, looks) = run(usize::MAX);
        // Before each of three layers and after the last.
        assert_eq!((vectors.unwrap().len(), looks), (1, 4));
        let (stopped, looks) = run(2);
        assert!(matches!(stopped, Err(Error::Stopped)));
        assert_eq!(looks, 2);
    }
}
