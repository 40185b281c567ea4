//! What comes from outside has limits, and all of them are here. What is over one is refused with both numbers, before
//! memory is asked for and before anything is queued.
//!
//! | what | limit | refused with |
//! |---|---|---|
//! | texts or images of one embedding request | [`MAX_ITEMS`], 256 | `InvalidInput` |
//! | bytes of one text to embed | [`MAX_TEXT_BYTES`], 1 MiB | `InvalidInput` |
//! | bytes of a prompt, all messages together | [`MAX_PROMPT_BYTES`], 4 MiB | `InvalidInput` |
//! | messages of a prompt | [`MAX_MESSAGES`], 1,024 | `InvalidInput` |
//! | tokens of a prompt | the model's context, and what a worker's caches hold (8,192), less one | `InvalidInput`, with both numbers |
//! | bytes of a prompt before texts to embed | [`MAX_EMBED_PROMPT_BYTES`], 16 KiB | `InvalidInput` |
//! | a chat template's source, steps and text | 256 KiB, 1,000,000, 8 MiB | `InvalidConfig`, `InvalidInput` |
//! | tokens to generate | [`MAX_TOKENS`], 1,048,576; the context ends a text sooner | `InvalidInput` |
//! | stop strings, and bytes of one | [`MAX_STOPS`], 16; [`MAX_STOP_BYTES`], 256 | `InvalidInput` |
//! | bytes of a question or of a prompt to paint | [`MAX_QUESTION_BYTES`], 64 KiB | `InvalidInput` |
//! | sides of a picture to paint | [`MAX_PAINTED_SIDE`], 4,096 pixels | `InvalidInput` |
//! | diffusion steps | [`MAX_STEPS`], 1,000 | `InvalidInput` |
//! | an image's encoded bytes, pixels, sides, memory to decode | [`ImageLimits`], set by the application | [`ImageTooLarge`] |
//! | sides of what a model is given of an image | [`MAX_MODEL_SIDE`], 4,096 pixels | `InvalidInput`, or `InvalidConfig` |
//! | pixels of that, and of what it is made of on the way | [`MAX_MODEL_PIXELS`], 67,108,864 | `InvalidInput` |
//! | time, redirects and networks of an image's address | [`UrlSettings`], set by the application | [`DownloadFailed`], [`AddressRefused`] |
//! | requests that wait for a model | `QueueCapacity` of the capability | `QueueFull`, or the caller waits |
//! | requests that run together | `BatchLimits` of the pool | they wait |
//! | bytes of a model's configuration file | [`MAX_CONFIG_BYTES`], 64 MiB | `InvalidConfig` |
//! | bytes of a weight file's header | [`MAX_HEADER_BYTES`], 100 MiB | `CorruptWeights` |
//!
//! `InvalidInput` is the actors' error; the others are variants of [`Error`](crate::Error).
//!
//! [`ImageTooLarge`]: crate::Error::ImageTooLarge
//! [`DownloadFailed`]: crate::Error::DownloadFailed
//! [`AddressRefused`]: crate::Error::AddressRefused
//! [`UrlSettings`]: crate::UrlSettings

use model_actors::Bytes;
pub use model_actors::limits::*;

/// Most bytes of a model's configuration file.
pub const MAX_CONFIG_BYTES: u64 = 64 << 20;
/// Most bytes of a weight file's header.
pub const MAX_HEADER_BYTES: u64 = 100 << 20;

/// Longest side, in pixels, of what a model is given of an image.
pub const MAX_MODEL_SIDE: usize = 4096;
/// Most pixels of what a model is given of an image, and of what it is made of on the way.
pub const MAX_MODEL_PIXELS: usize = 64 << 20;

/// How large an image may be. What is over a limit is refused before memory is asked for.
///
/// ```
/// use candle_actors::ImageLimits;
/// use model_actors::Bytes;
/// let small = ImageLimits { encoded: Bytes::mib(1), pixels: 1_000_000, ..ImageLimits::default() };
/// assert!(small.pixels < ImageLimits::default().pixels);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLimits {
    /// Most bytes of an encoded image (PNG, JPEG …), before base64; 32 MiB.
    pub encoded: Bytes,
    /// Most pixels, width × height; 50 million, which takes a photograph of 48 megapixels.
    pub pixels: u64,
    /// Longest side in pixels; 16,384.
    pub side: u32,
    /// How many times longer one side may be than the other; 200. A strip of one pixel's height would become gigantic
    /// when a model scales its shorter side to the size that it needs.
    pub aspect: u32,
    /// Most pixels of all images of one request together; 500 million, which take 1.5 GB.
    pub request_pixels: u64,
    /// Most bytes that decoding one image may take, the decoded image included; 512 MiB.
    pub decoder: Bytes,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            encoded: Bytes::mib(32),
            pixels: 50_000_000,
            side: 16_384,
            aspect: 200,
            request_pixels: 500_000_000,
            decoder: Bytes::mib(512),
        }
    }
}
