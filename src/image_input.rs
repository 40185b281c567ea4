//! Images from outside: a path, an address, base64, bytes or pixels become a decoded [`Picture`], within limits. All
//! of it is taken for hostile. A caller's task fetches and decodes before its request is queued, so that a model's
//! worker sees pixels alone; what the models make of the pixels is left to them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use model_actors::{ImageSource, Picture};
use tokio::sync::Semaphore;

use crate::error::{Error, Result};
use crate::limits::ImageLimits;

pub(crate) mod base64;
mod content;
mod pixels;
mod jpeg;
mod decode;
mod file;
mod networks;
pub(crate) mod address;
mod fetch;

use fetch::Fetcher;

pub(crate) use decode::decode;
pub use fetch::UrlSettings;
pub use networks::Network;

/// How many images of one request are on their way at once. Each may hold its encoded bytes.
const AT_ONCE: usize = 16;

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
    /// How images are fetched from addresses; nothing, to open none.
    pub urls: Option<UrlSettings>,
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
            urls: Some(UrlSettings::default()),
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
    fetcher: Option<Fetcher>,
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
        let fetcher = settings.urls.clone().map(Fetcher::new).transpose()?;
        Ok(Self { shared: Arc::new(Shared { settings, decoders, fetcher }) })
    }

    /// The limits.
    pub fn limits(&self) -> &ImageLimits {
        &self.shared.settings.limits
    }

    /// The image's pixels. Reading and decoding happen on a thread for blocking work.
    ///
    /// # Errors
    /// [`Error::ImageTooLarge`], [`Error::UnsupportedImage`], [`Error::InvalidImage`], [`Error::ImageTooSlow`];
    /// [`Error::UnreadableFile`] for a path; [`Error::AddressRefused`] and [`Error::DownloadFailed`] for an address.
    pub async fn picture(&self, source: ImageSource) -> Result<Picture> {
        match source {
            ImageSource::Picture(picture) => {
                decode::check_picture(&picture, self.limits())?;
                Ok(picture)
            }
            ImageSource::Url(address) => {
                let bytes = match &self.shared.fetcher {
                    Some(fetcher) => fetcher.fetch(&address, self.limits()).await?,
                    None => return Err(address::refused("any address", "the application opens none")),
                };
                self.decode(ImageSource::Bytes(bytes)).await
            }
            source => self.decode(source).await,
        }
    }

    /// All of them, in order; the first that fails ends it.
    ///
    /// # Errors
    /// As [`Self::picture`]; also [`Error::ImageTooLarge`] if they have too many pixels together.
    pub async fn pictures(&self, sources: Vec<ImageSource>) -> Result<Vec<Picture>> {
        let mut pictures = Vec::new();
        let mut pixels = 0u64;
        let waiting = sources.into_iter().map(|source| self.picture(source));
        let mut arriving = std::pin::pin!(futures_util::stream::iter(waiting).buffered(AT_ONCE));
        while let Some(picture) = arriving.next().await {
            let picture = picture?;
            pixels = pixels.saturating_add(picture.width as u64 * picture.height as u64);
            too_large("pixels together with the ones before it", pixels, self.limits().request_pixels)?;
            pictures.push(picture);
        }
        Ok(pictures)
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
