//! Walk through a WebP's parts, as the decoder goes: from part to part by the sizes that they claim, and into a frame only
//! within the frame. It believes sizes that lead past the end of the file, and an image's size only after it has taken
//! memory for it; here a file with such a part is refused.

use crate::error::{Error, Result};

/// Bytes of the file before its parts.
const FILE: usize = 12;
/// Bytes of a frame before its parts.
const FRAME: usize = 16;
/// Flag of the extended header: the file has frames.
const ANIMATED: u8 = 0x02;

/// Width and height.
type Size = (u32, u32);

/// Parts of a WebP that tell how much memory decoding it takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct WebpParts {
    /// Bytes that are compressed without loss: an image, or its alpha channel.
    pub(crate) lossless: u64,
    /// Whether it has frames.
    pub(crate) animated: bool,
}

/// Parts that follow each other.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    /// The next part's kind and content; none where no header of one is left.
    fn next(&mut self) -> Result<Option<(&'a [u8; 4], &'a [u8])>> {
        let Some((kind, rest)) = self.0.split_first_chunk::<4>() else { return Ok(None) };
        let Some((size, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let size = u32::from_le_bytes(*size) as usize;
        let Some((content, rest)) = rest.split_at_checked(size) else {
            return Err(invalid(format!("a part of it claims {size} bytes and {} are left", rest.len())));
        };
        // A part of odd length is followed by a byte of nothing, which may lack at the end.
        self.0 = rest.get(size % 2..).unwrap_or_default();
        Ok(Some((kind, content)))
    }
}

/// Walks through a WebP's parts.
///
/// # Errors
/// [`Error::InvalidImage`] if a part claims more bytes than are there, is there twice or where it does not belong, or
/// holds an image of another size than is announced.
pub(crate) fn webp_parts(bytes: &[u8]) -> Result<WebpParts> {
    let mut parts = Parts(bytes.get(FILE..).unwrap_or_default());
    let mut found = WebpParts::default();
    match parts.next()? {
        Some((b"VP8X", header)) => {
            let canvas = header.get(4..10).map(|sizes| (u24(sizes) + 1, u24(&sizes[3..]) + 1));
            let canvas = canvas.ok_or_else(|| invalid("its header is too short".to_owned()))?;
            found.animated = header[0] & ANIMATED != 0;
            extended(parts, canvas, &mut found)?;
        }
        Some((b"VP8L", content)) => found.lossless = content.len() as u64,
        // Nothing else of the file is read.
        _ => {}
    }
    Ok(found)
}

fn extended(mut parts: Parts<'_>, canvas: Size, found: &mut WebpParts) -> Result<()> {
    let mut images = Images::default();
    let mut has_animation = false;
    while let Some((kind, content)) = parts.next()? {
        match kind {
            b"VP8X" => return Err(invalid("it has two headers".to_owned())),
            b"ANIM" if has_animation => return Err(invalid("it is animated twice".to_owned())),
            b"ANIM" => has_animation = true,
            b"ANMF" if found.animated => frame(content, canvas, found)?,
            b"ANMF" => return Err(invalid("it has a frame and is not animated".to_owned())),
            b"VP8 " | b"VP8L" | b"ALPH" if found.animated => {
                return Err(invalid("it has an image outside of its frames".to_owned()));
            }
            kind => images.add(kind, content, canvas, found)?,
        }
    }
    Ok(())
}

fn frame(content: &[u8], canvas: Size, found: &mut WebpParts) -> Result<()> {
    let Some((header, parts)) = content.split_at_checked(FRAME) else {
        return Err(invalid("a frame of it is too short".to_owned()));
    };
    let size = (u24(&header[6..]) + 1, u24(&header[9..]) + 1);
    if size.0 > canvas.0 || size.1 > canvas.1 {
        return Err(invalid("a frame of it is larger than the image".to_owned()));
    }
    let (mut parts, mut images) = (Parts(parts), Images::default());
    while let Some((kind, content)) = parts.next()? {
        images.add(kind, content, size, found)?;
    }
    Ok(())
}

/// Parts with pixels of the file or of a frame, of which each may be there once.
#[derive(Debug, Default)]
struct Images {
    image: bool,
    alpha: bool,
}

impl Images {
    fn add(&mut self, kind: &[u8; 4], content: &[u8], announced: Size, found: &mut WebpParts) -> Result<()> {
        let (size, seen) = match kind {
            b"VP8 " => (lossy_size(content), &mut self.image),
            b"VP8L" => (lossless_size(content), &mut self.image),
            b"ALPH" => (Some(announced), &mut self.alpha),
            _ => return Ok(()),
        };
        if std::mem::replace(seen, true) {
            return Err(invalid("it has two images where one belongs".to_owned()));
        }
        if size != Some(announced) {
            let (width, height) = announced;
            return Err(invalid(format!("it announces {width} x {height} pixels and holds others")));
        }
        if kind != b"VP8 " {
            found.lossless += content.len() as u64;
        }
        Ok(())
    }
}

fn lossy_size(content: &[u8]) -> Option<Size> {
    let &[a, b, c, d] = content.get(6..10)?.first_chunk()?;
    let side = |bytes| u32::from(u16::from_le_bytes(bytes) & 0x3FFF);
    Some((side([a, b]), side([c, d])))
}

fn lossless_size(content: &[u8]) -> Option<Size> {
    let sizes = u32::from_le_bytes(*content.get(1..5)?.first_chunk()?);
    Some(((sizes & 0x3FFF) + 1, (sizes >> 14 & 0x3FFF) + 1))
}

/// The number in the first three bytes.
fn u24(bytes: &[u8]) -> u32 {
    bytes.iter().take(3).rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn invalid(reason: String) -> Error {
    Error::InvalidImage { reason }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn file(name: &str) -> Vec<u8> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images/");
        std::fs::read(format!("{folder}{name}")).unwrap()
    }

    fn part(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let size = u32::try_from(content.len()).unwrap().to_le_bytes();
        [kind.as_slice(), &size, content, &[0][..content.len() % 2]].concat()
    }

    fn webp(parts: &[Vec<u8>]) -> Vec<u8> {
        let parts = parts.concat();
        [b"RIFF".as_slice(), &(parts.len() as u32 + 4).to_le_bytes(), b"WEBP", &parts].concat()
    }

    /// Header of so many pixels less one on each side.
    fn header(flags: u8, side: u8) -> Vec<u8> {
        part(b"VP8X", &[flags, 0, 0, 0, side, 0, 0, side, 0, 0])
    }

    /// Image of 16 x 16 pixels.
    fn lossless() -> Vec<u8> {
        part(b"VP8L", &[&[0x2F][..], &(15u32 | 15 << 14).to_le_bytes(), &[0; 9]].concat())
    }

    fn lossy(side: u16) -> Vec<u8> {
        let [low, high] = side.to_le_bytes();
        part(b"VP8 ", &[0, 0, 0, 0x9D, 1, 0x2A, low, high, low, high, 0, 0])
    }

    fn frame_of(side: u8, parts: &[Vec<u8>]) -> Vec<u8> {
        let size = [0, 0, 0, 0, 0, 0, side, 0, 0, side, 0, 0, 0, 0, 0, 0];
        part(b"ANMF", &[size.to_vec(), parts.concat()].concat())
    }

    #[test]
    fn the_parts_of_a_webp_are_told_apart() {
        let parts_of = |name| webp_parts(&file(name)).unwrap();
        assert_eq!(parts_of("lossy.webp"), WebpParts::default());
        assert!(!parts_of("lossless.webp").animated && parts_of("lossless.webp").lossless > 0);
        assert!(parts_of("lossy_alpha.webp").lossless > 0);
        assert!(parts_of("animated.webp").animated);
        let animation = part(b"ANIM", &[0; 6]);
        let still = webp(&[header(0, 15), lossless()]);
        assert_eq!(webp_parts(&still).unwrap(), WebpParts { lossless: 14, animated: false });
        let moving = webp(&[header(ANIMATED, 15), animation, frame_of(15, &[lossless()])]);
        assert_eq!(webp_parts(&moving).unwrap(), WebpParts { lossless: 14, animated: true });
    }

    #[test]
    fn a_webp_whose_parts_hide_others_is_refused() {
        let hidden = [b"XXXX".as_slice(), &0xFFFF_FFF0u32.to_le_bytes()].concat();
        let animation = || part(b"ANIM", &[0; 6]);
        let refused = [
            webp(&[header(0, 15), frame_of(0, std::slice::from_ref(&hidden)), lossless()]),
            webp(&[header(0, 15), frame_of(15, &[lossless()]), lossless()]),
            webp(&[header(ANIMATED, 15), animation(), frame_of(0, &[hidden]), lossless()]),
            webp(&[header(ANIMATED, 15), animation(), frame_of(15, &[lossless()]), lossless()]),
            webp(&[header(ANIMATED, 15), animation(), frame_of(15, &[lossless(), lossless()])]),
            webp(&[header(ANIMATED, 15), animation(), animation(), frame_of(15, &[lossless()])]),
            webp(&[header(ANIMATED, 15), animation(), frame_of(14, &[lossless()])]),
            webp(&[header(ANIMATED, 14), animation(), frame_of(15, &[lossless()])]),
            webp(&[header(0, 15), lossless(), lossless()]),
            webp(&[header(0, 15), header(0, 15), lossless()]),
            webp(&[header(0, 0), lossy(16_383)]),
            webp(&[header(0, 0), lossless()]),
            webp(&[part(b"VP8X", &[0; 9]), lossless()]),
        ];
        for (number, file) in refused.into_iter().enumerate() {
            let result = webp_parts(&file);
            assert!(matches!(result, Err(Error::InvalidImage { .. })), "{number}: {result:?}");
        }
        let mut whole = file("oriented.webp");
        assert!(webp_parts(&whole).is_ok());
        whole.truncate(whole.len() - 2);
        assert!(webp_parts(&whole).is_err());
    }
}
