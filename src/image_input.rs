//! Images from outside: a path, an address, base64, bytes or pixels become a decoded [`Picture`], within limits. All
//! of it is taken for hostile. A caller's task fetches and decodes before its request is queued, so that a model's
//! worker sees pixels alone; what the models make of the pixels is left to them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model_actors::{ImageSource, Picture};
use tokio::sync::Semaphore;

use crate::error::{Error, Result};
use crate::limits::ImageLimits;

mod base64;
mod decode;
mod file;

pub(crate) use decode::decode;

/// How images are taken in.
///
/// ```
/// use candle_actors::{ImageLimits, ImageSettings};
/// let settings = ImageSettings {
///     limits: ImageLimits { pixels: 4_000_000, ..ImageLimits::default() },
///     ..ImageSettings::default()
/// };
/// assert!(settings.decoders >= 1);
/// ```
#[derive(Debug, Clone)]
pub struct ImageSettings {
    /// How large an image may be.
    pub limits: ImageLimits,
    /// How many images are decoded at once, at least 1; as many as there are cores, at most 4.
    pub decoders: usize,
    /// How long reading and decoding one image may take, the wait for a free decoder included; 30 s.
    pub decode_timeout: Duration,
}

impl Default for ImageSettings {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            limits: ImageLimits::default(),
            decoders: cores.min(4),
            decode_timeout: Duration::from_secs(30),
        }
    }
}

/// Turns images from outside into pictures. Cheap to clone; clones share the limits.
///
/// ```
/// use candle_actors::{ImageInput, ImageSettings};
/// use model_actors::ImageSource;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> candle_actors::Result<()> {
/// let images = ImageInput::new(ImageSettings::default())?;
/// let gif = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";
/// let picture = images.picture(ImageSource::Base64(gif.to_owned())).await?;
/// assert_eq!((picture.width, picture.height), (1, 1));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ImageInput {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: ImageSettings,
    decoders: Arc<Semaphore>,
}

impl ImageInput {
    /// Opens nothing yet.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`].
    pub fn new(settings: ImageSettings) -> Result<Self> {
        if !(1..=1024).contains(&settings.decoders) {
            let reason = format!("{} decoders are asked for; 1 to 1,024 are allowed", settings.decoders);
            return Err(Error::InvalidSetting { setting: "image_input", reason });
        }
        let decoders = Arc::new(Semaphore::new(settings.decoders));
        Ok(Self { shared: Arc::new(Shared { settings, decoders }) })
    }

    /// The limits.
    pub fn limits(&self) -> &ImageLimits {
        &self.shared.settings.limits
    }

    /// The image's pixels. Reading and decoding happen on a thread for blocking work.
    ///
    /// # Errors
    /// [`Error::ImageTooLarge`], [`Error::UnsupportedImage`], [`Error::InvalidImage`], [`Error::ImageTooSlow`];
    /// [`Error::UnreadableFile`] for a path.
    pub async fn picture(&self, source: ImageSource) -> Result<Picture> {
        match source {
            ImageSource::Picture(picture) => {
                decode::check_picture(&picture, self.limits())?;
                Ok(picture)
            }
            source => self.decode(source).await,
        }
    }

    /// All of them, in order; the first that fails ends it.
    ///
    /// # Errors
    /// As [`Self::picture`].
    pub async fn pictures(&self, sources: Vec<ImageSource>) -> Result<Vec<Picture>> {
        let pictures = sources.into_iter().map(|source| self.picture(source));
        futures_util::future::try_join_all(pictures).await
    }

    async fn decode(&self, source: ImageSource) -> Result<Picture> {
        let after = self.shared.settings.decode_timeout;
        let work = async {
            let decoders = Arc::clone(&self.shared.decoders);
            let permit = decoders.acquire_owned().await.map_err(|_| Error::Stopped)?;
            let shared = Arc::clone(&self.shared);
            let work = tokio::task::spawn_blocking(move || {
                let picture = picture_of(&source, &shared.settings.limits);
                drop(permit);
                picture
            });
            work.await.map_err(|_| Error::InvalidImage { reason: "the decoder failed".to_owned() })?
        };
        tokio::time::timeout(after, work).await.map_err(|_| Error::ImageTooSlow { after })?
    }
}

/// The pixels of an image that is here: what a worker does with a request that did not come through this crate's
/// handles. Blocks.
///
/// # Errors
/// As [`ImageInput::picture`]; [`Error::InvalidInput`] for an address, which a worker does not open.
pub(crate) fn picture_of(source: &ImageSource, limits: &ImageLimits) -> Result<Picture> {
    match source {
        ImageSource::Path(path) => decode_file(path, limits),
        ImageSource::Base64(text) => decode(&base64::decode(text, limits)?, limits),
        ImageSource::Bytes(bytes) => decode(bytes, limits),
        ImageSource::Picture(picture) => {
            decode::check_picture(picture, limits)?;
            Ok(picture.clone())
        }
        ImageSource::Url(_) => Err(Error::InvalidInput(
            "a worker opens no address; the image must be fetched before the request, as this crate's handles do"
                .to_owned(),
        )),
        _ => Err(Error::InvalidInput("the image comes from a source that is not supported".to_owned())),
    }
}

fn decode_file(path: &Path, limits: &ImageLimits) -> Result<Picture> {
    decode(&file::read(path, limits)?, limits)
}

/// Refuses what is over a limit.
pub(crate) fn too_large(what: &'static str, found: u64, limit: u64) -> Result<()> {
    if found > limit { Err(Error::ImageTooLarge { what, found, limit }) } else { Ok(()) }
}
