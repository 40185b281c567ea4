//! Images from outside: a path, an address, base64, bytes or pixels become a decoded [`Picture`], within
//! limits. All input is treated as hostile. A caller's task does this before its request is queued, so that a
//! model's worker sees only pixels; preprocessing is left to `preprocessing`. The order is always
//! the same: check what can be checked, bring the encoded bytes here, read their headers, take room in the
//! memory for images for just what they need, decode, and keep the pictures' part of the room until the
//! request ends.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _};
use model_actors::isolation::Isolation;
use model_actors::{ImageSource, LeasedPicture, Picture};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};
use crate::limits::ImageLimits;

mod checks;
mod settings;
pub(crate) mod base64;
mod formats;
mod jpeg;
mod webp;
mod to_rgb;
mod decode;
mod memory;
mod apart;
mod decoder_threads;
mod file;
#[cfg(feature = "image-urls")]
mod networks;
#[cfg(feature = "image-urls")]
pub(crate) mod address;
#[cfg(feature = "image-urls")]
mod fetch;
#[cfg(not(feature = "image-urls"))]
mod no_fetch;
#[cfg(test)]
mod tests;

use apart::Apart;
use checks::{refused, too_large};
use decoder_threads::Decoders;
#[cfg(feature = "image-urls")]
use fetch::Fetcher;
use memory::{ImageMemory, ImagePermit};
#[cfg(not(feature = "image-urls"))]
use no_fetch::Fetcher;

pub(crate) use apart::DecodeImage;
pub(crate) use decode::{decode, has_all_bytes};
pub use settings::{ImageSettings, UrlSettings};

/// Number of images taken in together, and of files of all requests read at once.
const AT_ONCE: usize = 16;
/// Bytes of a pixel that is decoded.
const BYTES_A_PIXEL: u64 = 3;
/// Reason for opening no address, where none is opened.
const NO_FETCHER: &str = if cfg!(feature = "image-urls") {
    "the application opens none"
} else {
    "this build of candle-actors is without the feature `image-urls`"
};

/// Turns images from outside into pictures. Cheap to clone; clones share the limits.
///
/// ```
/// use candle_actors::{ImageInput, ImageSettings};
/// use candle_actors::ImageSource;
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
    decoders: Decoders,
    /// Processes in place of them, for all but base64.
    apart: Option<Apart>,
    /// Permits to read files. A thread that hangs in a dead file system keeps its permit and nothing else.
    files: Arc<Semaphore>,
    memory: ImageMemory,
    fetcher: Option<Fetcher>,
}

impl ImageInput {
    /// Creates an input with these settings; no connection or file is opened yet.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`].
    pub fn new(settings: ImageSettings) -> Result<Self> {
        settings.check()?;
        let memory = ImageMemory::new(settings.memory);
        let decoders = Decoders::new(settings.decoders);
        let files = Arc::new(Semaphore::new(AT_ONCE));
        let fetcher = settings.urls.as_ref().and_then(Fetcher::new);
        let apart = match &settings.isolation {
            Isolation::Process(options) => {
                Some(Apart::new(options.clone(), &settings.limits, settings.decoders)?)
            }
            _ => None,
        };
        Ok(Self { shared: Arc::new(Shared { settings, decoders, apart, files, memory, fetcher }) })
    }

    /// Ends the processes that decode images, those that have one after it, and waits for their end for at most so long.
    pub(crate) async fn end(&self, patience: Duration) {
        if let Some(apart) = &self.shared.apart {
            // They end without anybody who waits, too.
            let _ = tokio::time::timeout(patience, apart.end()).await;
        }
    }

    /// Limits on each image.
    pub fn limits(&self) -> &ImageLimits {
        &self.shared.settings.limits
    }

    /// Fetches or reads one image and decodes it. Reading happens on a thread for blocking work, decoding on one of its
    /// own. A picture that is returned does not count against [`ImageSettings::memory`] any more.
    ///
    /// # Errors
    /// [`Error::ImageTooLarge`], [`Error::UnsupportedImage`], [`Error::InvalidImage`], [`Error::ImageTooSlow`];
    /// [`Error::NoRoomForImages`] after [`ImageSettings::decode_timeout`]; [`Error::UnreadableFile`] for a path;
    /// [`Error::ImageDecoderDied`] where images are decoded in processes of their own;
    /// [`Error::AddressRefused`] and [`Error::DownloadFailed`] for an address.
    pub async fn picture(&self, source: ImageSource) -> Result<Picture> {
        let mut pictures = self.pictures(vec![source]).await?;
        pictures.pop().ok_or_else(|| Error::InvalidInput("no image came back".to_owned()))
    }

    /// Fetches or reads several images and decodes them, in order, or returns the first error. At most 16 are taken in at a
    /// time, and no more addresses than may be fetched at once.
    ///
    /// # Errors
    /// As [`Self::picture`]; also [`Error::ImageTooLarge`] if they have too many pixels together.
    pub async fn pictures(&self, sources: Vec<ImageSource>) -> Result<Vec<Picture>> {
        self.check(&sources)?;
        let (mut pictures, mut pixels) = (Vec::new(), 0);
        for portion in self.portions(sources, AT_ONCE) {
            // What is decoded keeps no room: two such callers, each with a part, would wait for each other.
            let patience = self.shared.settings.decode_timeout;
            let (decoded, ..) = self.taken_in(portion, &mut pixels, patience).await?;
            pictures.extend(decoded);
        }
        Ok(pictures)
    }

    /// The images in parts that [`Self::leased`] takes: of at most so many, and with no more addresses than
    /// may be fetched at once.
    pub(crate) fn portions(
        &self,
        sources: impl IntoIterator<Item = ImageSource>,
        most: usize,
    ) -> Vec<Vec<ImageSource>> {
        let downloads = self.shared.fetcher.as_ref().map_or(most, Fetcher::downloads);
        let mut portions: Vec<Vec<ImageSource>> = Vec::new();
        let mut addresses = 0;
        for source in sources {
            addresses += usize::from(is_address(&source));
            match portions.last_mut().filter(|portion| portion.len() < most && addresses <= downloads) {
                Some(portion) => portion.push(source),
                None => {
                    addresses = usize::from(is_address(&source));
                    portions.push(vec![source]);
                }
            }
        }
        portions
    }

    /// As [`Self::pictures`], for a request of one portion that waits for room so long, or not at all if that
    /// is zero. Its pictures keep the room that they need. Also tells how long it waited.
    ///
    /// # Errors
    /// As [`Self::pictures`].
    pub(crate) async fn leased(
        &self,
        sources: Vec<ImageSource>,
        patience: Duration,
    ) -> Result<(Vec<ImageSource>, Duration)> {
        self.check(&sources)?;
        let addresses = sources.iter().filter(|source| is_address(source)).count();
        if let Some(most) =
            self.shared.fetcher.as_ref().map(Fetcher::downloads).filter(|most| addresses > *most)
        {
            return Err(Error::InvalidInput(format!(
                "the request has {addresses} images at addresses; at most {most} are fetched at once, as \
                 UrlSettings::downloads is set"
            )));
        }
        let (pictures, room, waited) = self.taken_in(sources, &mut 0, patience).await?;
        room.shrink(pictures.iter().map(|picture| picture.rgb.len() as u64).sum());
        let lease = |picture| ImageSource::Leased(LeasedPicture::new(picture, room.clone()));
        Ok((pictures.into_iter().map(lease).collect(), waited))
    }

    /// Refuses an image that is evidently over a limit before anything is fetched, read or waited for.
    fn check(&self, sources: &[ImageSource]) -> Result<()> {
        let limits = self.limits();
        let mut pixels = 0;
        for source in sources {
            match source {
                ImageSource::Path(_) => {}
                ImageSource::Url(address) => self.fetcher()?.check(address)?,
                ImageSource::Base64(text) => base64::check_length(text, limits)?,
                ImageSource::Bytes(bytes) => too_large("bytes", bytes.len() as u64, limits.encoded.0)?,
                source => {
                    let picture = source.pixels().ok_or_else(unsupported)?;
                    decode::check_picture(picture, limits)?;
                    self.add_pixels(&mut pixels, pixels_of(picture))?;
                }
            }
        }
        Ok(())
    }

    /// Decodes what was checked. Whatever is waited for is taken for all of the images at once and in one
    /// order (leave to fetch, leave to read, room), so that no request waits for another that waits for it;
    /// and nothing slow, a server or a disk, is waited for while there is room.
    async fn taken_in(
        &self,
        sources: Vec<ImageSource>,
        pixels: &mut u64,
        patience: Duration,
    ) -> Result<(Vec<Picture>, ImagePermit, Duration)> {
        let memory = &self.shared.memory;
        if patience.is_zero() && memory.is_short() {
            return Err(memory.none(patience));
        }
        let here = self.here(sources, pixels).await?;
        let began = Instant::now();
        let room = memory.room(here.iter().map(Here::bytes).sum(), patience).await?;
        let waited = began.elapsed();
        // From here on the room counts their bytes, and the leave goes back.
        let sources: Vec<_> =
            here.into_iter().map(|image| (image.source, image.pixels, image.spent)).collect();
        let waiting =
            sources.into_iter().map(|(source, pixels, spent)| self.decoded(source, pixels, spent, &room));
        let pictures = futures_util::stream::iter(waiting).buffered(AT_ONCE).try_collect().await?;
        Ok((pictures, room, waited))
    }

    /// Fetches and reads the encoded images, and reads the headers of all.
    async fn here(&self, sources: Vec<ImageSource>, pixels: &mut u64) -> Result<Vec<Here>> {
        let (mut to_fetch, mut to_read, waited) = self.leave(&sources).await?;
        let arriving = sources.into_iter().map(|source| {
            let leave = match source {
                ImageSource::Url(_) => to_fetch.as_mut().and_then(|leave| leave.split(1)),
                ImageSource::Path(_) => to_read.as_mut().and_then(|leave| leave.split(1)),
                _ => None,
            };
            self.brought(source, leave, waited)
        });
        let mut arriving = std::pin::pin!(futures_util::stream::iter(arriving).buffered(AT_ONCE));
        let mut here = Vec::new();
        while let Some(image) = arriving.next().await {
            let image = image?;
            self.add_pixels(pixels, image.pixels)?;
            here.push(image);
        }
        Ok(here)
    }

    /// Leave to fetch and leave to read the request's images, and how long it waited for the latter. Images
    /// keep it until they have room, so that a shortage of room shows here too, and is called by its name.
    async fn leave(&self, sources: &[ImageSource]) -> Result<(Leave, Leave, Duration)> {
        let cause = |error, after| match &self.shared.memory {
            memory if memory.is_short() => memory.none(after),
            _ => error,
        };
        let addresses = sources.iter().filter(|source| is_address(source)).count();
        let to_fetch = match addresses {
            0 => None,
            count => {
                let fetcher = self.fetcher()?;
                Some(fetcher.leave(count).await.map_err(|error| cause(error, fetcher.patience()))?)
            }
        };
        let files = sources.iter().filter(|source| matches!(source, ImageSource::Path(_))).count();
        let began = Instant::now();
        let permits = Arc::clone(&self.shared.files).acquire_many_owned(files.min(AT_ONCE) as u32);
        let late = |error| cause(error, self.shared.settings.decode_timeout);
        let permit = self.in_time(Duration::ZERO, permits).await.map_err(late)?;
        Ok((to_fetch, Some(permit.map_err(|_| Error::Stopped)?), began.elapsed()))
    }

    fn fetcher(&self) -> Result<&Fetcher> {
        let fetcher = self.shared.fetcher.as_ref();
        fetcher.ok_or_else(|| refused("any address", NO_FETCHER))
    }

    async fn brought(&self, source: ImageSource, leave: Leave, waited: Duration) -> Result<Here> {
        let (source, leave) = match source {
            ImageSource::Url(address) => {
                let bytes = self.fetcher()?.fetch(&address, self.limits()).await?;
                (ImageSource::Bytes(bytes), leave)
            }
            ImageSource::Path(path) => {
                let (bytes, leave) = self.read(path, leave, waited).await?;
                (ImageSource::Bytes(bytes), leave)
            }
            source => (source, leave),
        };
        if let Some(picture) = source.pixels() {
            return Ok(Here { pixels: pixels_of(picture), source, spent: Duration::ZERO, _leave: leave });
        }
        if let Some(apart) = &self.shared.apart {
            return self.brought_apart(source, leave, apart).await;
        }
        let header = move |limits: &ImageLimits| {
            let mut bytes = match source {
                ImageSource::Base64(text) => base64::decode(&text, limits)?,
                ImageSource::Bytes(bytes) => bytes,
                _ => return Err(unsupported()),
            };
            let pixels = decode::pixels(&bytes, limits)?;
            // Their length is what is counted when they take room.
            bytes.shrink_to_fit();
            Ok(Here { pixels, source: ImageSource::Bytes(bytes), spent: Duration::ZERO, _leave: leave })
        };
        let began = Instant::now();
        let here = self.on_decoder((), Duration::ZERO, header).await?;
        Ok(Here { spent: began.elapsed(), ..here })
    }

    /// As above, with the header read in another process. The text of base64 is decoded here, which no decoder of images does.
    async fn brought_apart(&self, source: ImageSource, leave: Leave, apart: &Apart) -> Result<Here> {
        let began = Instant::now();
        let bytes = match source {
            ImageSource::Base64(text) => {
                self.on_decoder((), Duration::ZERO, move |limits| base64::decode(&text, limits)).await?
            }
            ImageSource::Bytes(bytes) => bytes,
            _ => return Err(unsupported()),
        };
        let limits = self.limits();
        too_large("bytes", bytes.len() as u64, limits.encoded.0)?;
        let (pixels, mut bytes) = self.in_time(began.elapsed(), apart.pixels(bytes, limits)).await??;
        too_large("pixels", pixels, limits.pixels)?;
        bytes.shrink_to_fit();
        Ok(Here { pixels, source: ImageSource::Bytes(bytes), spent: began.elapsed(), _leave: leave })
    }

    /// Not on a decoder: a file system that hangs would keep it.
    async fn read(&self, path: PathBuf, leave: Leave, waited: Duration) -> Result<(Vec<u8>, Leave)> {
        let shared = Arc::clone(&self.shared);
        let work = tokio::task::spawn_blocking(move || (file::read(&path, &shared.settings.limits), leave));
        let (bytes, leave) = self.in_time(waited, work).await?.map_err(|_| Error::Stopped)?;
        Ok((bytes?, leave))
    }

    async fn decoded(
        &self,
        source: ImageSource,
        pixels: u64,
        spent: Duration,
        room: &ImagePermit,
    ) -> Result<Picture> {
        match (source, &self.shared.apart) {
            (ImageSource::Bytes(bytes), Some(apart)) => {
                self.in_time(spent, apart.decode(bytes, pixels, self.limits(), room.clone())).await?
            }
            (ImageSource::Bytes(bytes), None) => {
                self.on_decoder(room.clone(), spent, move |limits| decode(&bytes, limits)).await
            }
            (ImageSource::Picture(picture), _) => Ok(picture),
            (ImageSource::Leased(picture), _) => Ok(Picture::clone(&picture)),
            _ => Err(unsupported()),
        }
    }

    /// The only place where anything is decoded in this process, in what is left of the image's time for it. Keeps `held`
    /// until the bytes are gone, even where nobody waits any more.
    async fn on_decoder<T: Send + 'static>(
        &self,
        held: impl Send + 'static,
        spent: Duration,
        work: impl FnOnce(&ImageLimits) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        let work = self.shared.decoders.run(move || {
            let result = work(&shared.settings.limits);
            drop(held);
            result
        });
        self.in_time(spent, work).await?
    }

    /// Waits for a step of reading an image or of decoding it, as long as what was spent before leaves time
    /// for it.
    async fn in_time<T>(&self, spent: Duration, step: impl Future<Output = T>) -> Result<T> {
        let after = self.shared.settings.decode_timeout;
        let left = after.saturating_sub(spent);
        tokio::time::timeout(left, step).await.map_err(|_| Error::ImageTooSlow { after })
    }

    fn add_pixels(&self, sum: &mut u64, pixels: u64) -> Result<()> {
        *sum = sum.saturating_add(pixels);
        too_large("pixels together with the ones before it", *sum, self.limits().request_pixels)
    }
}

/// Permit to fetch or to read, given back on drop.
type Leave = Option<OwnedSemaphorePermit>;

/// An image that is here, encoded or decoded, and how many pixels it has.
struct Here {
    source: ImageSource,
    pixels: u64,
    /// Time that its header took on a decoder, with the wait for one.
    spent: Duration,
    /// Bounds its bytes until they have room.
    _leave: Leave,
}

impl Here {
    /// Bytes that it takes until it is decoded.
    fn bytes(&self) -> u64 {
        let encoded = match &self.source {
            ImageSource::Bytes(bytes) => bytes.len() as u64,
            _ => 0,
        };
        encoded.saturating_add(self.pixels.saturating_mul(BYTES_A_PIXEL))
    }
}

fn is_address(source: &ImageSource) -> bool {
    matches!(source, ImageSource::Url(_))
}

fn pixels_of(picture: &Picture) -> u64 {
    (picture.width as u64).saturating_mul(picture.height as u64)
}

fn unsupported() -> Error {
    Error::InvalidInput("the image comes from a source that is not supported".to_owned())
}

/// The pixels of an image that was decoded before it was sent, which is all that a worker takes.
///
/// # Errors
/// [`Error::InvalidInput`] for an image from anywhere else.
pub(crate) fn decoded(source: &ImageSource) -> Result<&Picture> {
    source.pixels().ok_or_else(|| {
        Error::InvalidInput(
            "a worker opens and decodes no images; send the request through this crate's handles, or with what \
             `Engine::images` makes of the image"
                .to_owned(),
        )
    })
}

/// The pixels of an image for a model without an engine around it, within the default limits. Blocks.
///
/// # Errors
/// As [`ImageInput::picture`]; [`Error::InvalidInput`] for an address, which only an engine opens.
pub(crate) fn opened(source: &ImageSource) -> Result<Cow<'_, Picture>> {
    let limits = &ImageLimits::default();
    Ok(Cow::Owned(match source {
        ImageSource::Path(path) => decode(&file::read(path, limits)?, limits)?,
        ImageSource::Base64(text) => decode(&base64::decode(text, limits)?, limits)?,
        ImageSource::Bytes(bytes) => decode(bytes, limits)?,
        source => return decoded(source).map(Cow::Borrowed),
    }))
}
