//! The limits of what comes from outside: every number in one place, so that an application can read what it will be
//! refused. Enforcing them is left to whoever reads the input.

use model_actors::Bytes;

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
