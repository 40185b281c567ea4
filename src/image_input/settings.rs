//! Settings for taking in and fetching images.

use std::time::Duration;

use ipnet::IpNet;
use model_actors::Bytes;
use model_actors::isolation::Isolation;

use crate::error::{Error, Result};
use crate::limits::{ImageLimits, MAX_PARALLEL};

/// Settings for taking in images from outside.
///
/// ```
/// use candle_actors::{ImageLimits, ImageSettings};
/// let settings = ImageSettings::default().with_limits(ImageLimits::default().with_pixels(4_000_000));
/// assert!(settings.decoders >= 1);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ImageSettings {
    /// Limits on the size of an image.
    pub limits: ImageLimits,
    /// Settings for fetching images from addresses; nothing, to open none. Needs the feature
    /// `image-urls`.
    pub urls: Option<UrlSettings>,
    /// Number of images decoded at once, at least 1; as many as there are cores, at most 4. A decoder that is not done
    /// after [`Self::decode_timeout`], or when its caller is gone, is given up and replaced, as long as no more than
    /// this many that were given up have not ended.
    pub decoders: usize,
    /// Longest time for one image's file to be read, and for one image to be decoded, its header included,
    /// each with the wait for its turn; 30 s. The wait for room in the memory counts for neither.
    pub decode_timeout: Duration,
    /// Maximum number of bytes of all images at once, encoded and decoded, from before a request's images are decoded
    /// until the request ends; 2 GiB. Requests beyond it wait, and one that needs more than all of it goes
    /// alone. On top come:
    ///
    /// - images that are fetched or read and have no room yet: as many as [`UrlSettings::downloads`], and 16
    ///   files;
    /// - what callers who wait for room have handed over themselves, as bytes, base64 or pixels;
    /// - the decoders, those that were given up included, each with up to [`ImageLimits::decoder`], or an image's base64
    ///   and two copies of it;
    /// - pictures that [`ImageInput::pictures`](crate::ImageInput::pictures) has decoded, which are the
    ///   caller's, also when they are sent through a model's untyped handle.
    pub memory: Bytes,
    /// The place where encoded images are decoded, their headers included: threads of this process, unless set. With
    /// [`ProcessOptions`](crate::isolation::ProcessOptions) it is child processes, at most [`Self::decoders`] of them, which are
    /// started when images come and end after ten seconds without any. What a decoder does then, be it a segfault, an abort or a
    /// loop without end, it does to its child alone: the image that was decoded there gets
    /// [`Error::ImageDecoderDied`] or [`Error::ImageTooSlow`], and others are unaffected.
    ///
    /// A child decodes one image after another, of whichever callers, also after one that it found invalid. So this
    /// contains faults, not an attacker: an image that takes a child over without ending it sees those that are decoded there
    /// later, and can have other pixels come of them, as many as their headers say.
    ///
    /// Needs [`run_child_if_asked`](crate::isolation::run_child_if_asked) at the top of `main`, and Unix. Pixels are copied once more.
    /// Unless [`ProcessOptions::address_space`](crate::isolation::ProcessOptions::address_space) is set, on Linux it is limited to
    /// what images within [`Self::limits`] take, and 2 GiB;
    /// [`ProcessOptions::cancel_limit`](crate::isolation::ProcessOptions::cancel_limit) is for models, as a decoder that nobody
    /// waits for is killed at once. Where the engine's models run is another setting,
    /// [`EngineBuilder::isolation`](crate::EngineBuilder::isolation).
    ///
    /// ```no_run
    /// use candle_actors::isolation::{ProcessOptions, run_child_if_asked};
    /// use candle_actors::{Engine, ImageSettings, Source};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> candle_actors::Result<()> {
    /// run_child_if_asked(); // at the top of `main`
    /// let images = ImageSettings::default().with_isolation(ProcessOptions::default());
    /// let engine = Engine::builder()
    ///     .image_input(images)
    ///     .image_embedding("images", Source::directory("models/shapes-image-embedding"))
    ///     .start()
    ///     .await?;
    /// # engine.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub isolation: Isolation,
}

model_actors::setters! { ImageSettings {
    with_limits(limits: ImageLimits);
    with_urls(urls: impl Into<Option<UrlSettings>>) Into::into;
    with_decoders(decoders: usize);
    with_decode_timeout(decode_timeout: Duration);
    with_memory(memory: Bytes);
    with_isolation(isolation: impl Into<Isolation>) Into::into;
} }

impl Default for ImageSettings {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            limits: ImageLimits::default(),
            urls: Some(UrlSettings::default()),
            decoders: cores.min(4),
            decode_timeout: Duration::from_secs(30),
            memory: Bytes::mib(2048),
            isolation: Isolation::default(),
        }
    }
}

impl ImageSettings {
    /// # Errors
    /// [`Error::InvalidSetting`].
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |reason| Err(Error::InvalidSetting { setting: "image_input".into(), reason });
        let downloads = self.urls.as_ref().map_or(1, |urls| urls.downloads);
        for (what, count) in [("decoders", self.decoders), ("downloads", downloads)] {
            if !(1..=MAX_PARALLEL).contains(&count) {
                return invalid(format!("{count} {what} are asked for; 1 to {MAX_PARALLEL} are allowed"));
            }
        }
        match self.memory {
            Bytes(0) => invalid("no memory for images is given".to_owned()),
            _ => Ok(()),
        }
    }
}

/// Settings for fetching images from http and https addresses.
///
/// ```
/// use std::time::Duration;
/// use candle_actors::{ImageSettings, UrlSettings};
/// let urls = UrlSettings::default()
///     .with_total_timeout(Duration::from_secs(10))
///     // The application's own image server.
///     .with_allowed_networks(vec!["10.1.2.3/32".parse()?]);
/// let settings = ImageSettings::default().with_urls(urls);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UrlSettings {
    /// Time for a connection to stand, TLS included; 5 s.
    pub connect_timeout: Duration,
    /// Time without a byte; 10 s.
    pub read_timeout: Duration,
    /// Time for all of it, redirects included; 30 s. The wait for other downloads may take as much again.
    pub total_timeout: Duration,
    /// Maximum number of redirects that are followed; 5.
    pub redirects: usize,
    /// Number of images fetched at once, at least 1; 16. An image counts until it has room in the memory for
    /// images ([`ImageSettings::memory`]), so that no more of them lie beside it.
    pub downloads: usize,
    /// Networks that may be reached though they are not the public internet. None, unless set: addresses of
    /// this machine, of private and link-local networks, of metadata services and whatever else is reserved
    /// are refused.
    pub allowed_networks: Vec<IpNet>,
}

model_actors::setters! { UrlSettings {
    with_connect_timeout(connect_timeout: Duration);
    with_read_timeout(read_timeout: Duration);
    with_total_timeout(total_timeout: Duration);
    with_redirects(redirects: usize);
    with_downloads(downloads: usize);
    with_allowed_networks(allowed_networks: Vec<IpNet>);
} }

impl Default for UrlSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(10),
            total_timeout: Duration::from_secs(30),
            redirects: 5,
            downloads: 16,
            allowed_networks: Vec::new(),
        }
    }
}
