//! No image within the limits takes more memory than they say, whatever its header claims. This is the only test of its
//! process, because it counts every byte of the process's heap.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use candle_actors::{Bytes, Error, ImageInput, ImageLimits, ImageSettings, ImageSource, Picture};
use common::root;
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// For metadata and rows, as `ImageLimits::decoder` says.
const ON_TOP: usize = 64 << 20;
/// Of each file, with other bytes in their headers.
const COPIES: usize = 60;

fn file(name: &str) -> Vec<u8> {
    std::fs::read(root().join("tests/fixtures/images").join(name)).unwrap()
}

/// Most bytes of the heap while an image is decoded, beyond those before.
async fn most(input: &ImageInput, bytes: &[u8]) -> (usize, Result<Picture, Error>) {
    let source = ImageSource::Bytes(bytes.to_vec());
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let result = input.picture(source).await;
    (HEAP.peak_usage().saturating_sub(before), result)
}

/// Sets the checksums of a PNG's parts right, so that what they hold is looked at.
fn with_checksums(mut png: Vec<u8>) -> Vec<u8> {
    let mut at = 8;
    while let Some(length) = png.get(at..at + 4) {
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let Some(end) = at.checked_add(8 + length).filter(|end| end + 4 <= png.len()) else { break };
        let sum = !png[at + 4..end].iter().fold(!0u32, |sum, byte| {
            (0..8)
                .fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xEDB8_8320 & (sum & 1).wrapping_neg()))
        });
        png[end..end + 4].copy_from_slice(&sum.to_be_bytes());
        at = end + 4;
    }
    png
}

async fn fuzzed_headers_stay_within_the_limits() {
    let mut random = fastrand::Rng::with_seed(12);
    let limits = ImageLimits::default().with_pixels(4_000_000).with_decoder(Bytes::mib(64));
    let input = ImageInput::new(ImageSettings::default().with_limits(limits)).unwrap();
    let mut names: Vec<String> = std::fs::read_dir(root().join("tests/fixtures/images"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| [".png", ".jpg", ".webp", ".gif", ".bmp"].iter().any(|end| name.ends_with(end)))
        .collect();
    names.sort();
    let mut decoded = 0;
    for name in names {
        let whole = file(&name);
        for _ in 0..COPIES {
            let mut bytes = whole.clone();
            let header = bytes.len().min(random.usize(16..600));
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..header);
                let end = bytes.len().min(at + random.usize(1..5));
                let value = random.u8(..);
                bytes[at..end].fill(if random.bool() { 0xFF } else { value });
            }
            let bytes = if name.ends_with(".png") { with_checksums(bytes) } else { bytes };
            let (most, result) = most(&input, &bytes).await;
            assert!(most <= (64 << 20) + ON_TOP + 4 * bytes.len(), "{name}: {most} bytes");
            decoded += usize::from(result.is_ok());
        }
    }
    assert!(decoded > 100, "{decoded}");
}

/// The image has the pixels that are there, and grey.
async fn a_jpeg_of_48_megapixels_is_decoded_within_the_limits() {
    let input = ImageInput::new(ImageSettings::default()).unwrap();
    for name in ["rgb_444.jpg", "progressive_444.jpg"] {
        let mut bytes = file(name);
        let frame = bytes.windows(2).position(|pair| matches!(pair, [0xFF, 0xC0..=0xC2])).unwrap();
        bytes[frame + 5..frame + 7].copy_from_slice(&6048u16.to_be_bytes());
        bytes[frame + 7..frame + 9].copy_from_slice(&8064u16.to_be_bytes());
        let (most, picture) = most(&input, &bytes).await;
        let picture = picture.unwrap();
        assert_eq!((picture.width, picture.height), (8064, 6048), "{name}");
        println!("{name}: {most} bytes");
        assert!(most <= ImageLimits::default().decoder.0 as usize + ON_TOP, "{name}: {most} bytes");
    }
}

async fn metadata_that_is_not_there_takes_no_memory() {
    let input = ImageInput::new(ImageSettings::default()).unwrap();
    let mut webp = file("oriented.webp");
    let exif = webp.windows(4).position(|kind| kind == b"EXIF").unwrap();
    let claimed = 0xFFFF_FFF0u32.to_le_bytes();
    webp[exif + 4..exif + 8].copy_from_slice(&claimed);
    let (most, result) = most(&input, &webp).await;
    assert!(matches!(result, Err(Error::InvalidImage { .. })), "{result:?}");
    assert!(most <= ON_TOP, "{most} bytes");
}

/// Parts of a WebP behind each other, with the size of the whole.
fn webp(parts: &[&[u8]]) -> Vec<u8> {
    let parts = parts.concat();
    [b"RIFF".as_slice(), &(parts.len() as u32 + 4).to_le_bytes(), b"WEBP", &parts].concat()
}

/// A part that the decoder jumps over by its size, and the parts in it claim to be larger.
async fn a_webp_that_hides_its_parts_takes_no_memory() {
    let input = ImageInput::new(ImageSettings::default()).unwrap();
    let lossless = &file("lossless.webp")[12..];
    let frame = [b"ANMF".as_slice(), &24u32.to_le_bytes(), &[0; 16], b"XXXX\xF0\xFF\xFF\xFF"].concat();
    let header = |flags, width, height| {
        [b"VP8X".as_slice(), &10u32.to_le_bytes(), &[flags, 0, 0, 0, width, 0, 0, height, 0, 0]].concat()
    };
    let exif = b"EXIF\xF0\xFF\xFF\xFF";
    let mut lossy = file("lossy.webp")[12..].to_vec();
    lossy[14..18].copy_from_slice(&[0xFF, 0x3F, 0xFF, 0x3F]);
    for (name, file) in [
        ("metadata", webp(&[&header(8, 36, 22), &frame, lossless, exif])),
        ("size", webp(&[&header(0, 0, 0), &lossy])),
    ] {
        let (most, result) = most(&input, &file).await;
        println!("{name}: {most} bytes");
        assert!(matches!(result, Err(Error::InvalidImage { .. })), "{name}: {result:?}");
        assert!(most <= 1 << 20, "{name}: {most} bytes");
    }
}

/// The decoder would put all extended metadata together again at each segment.
async fn metadata_of_a_jpeg_is_left_out() {
    let input = ImageInput::new(ImageSettings::default()).unwrap();
    let whole = file("rgb_444.jpg");
    let extended = b"http://ns.adobe.com/xmp/extension/\0";
    let data = [extended.as_slice(), &[b'0'; 32], &4u32.to_be_bytes(), &[0; 4], b"data"].concat();
    let length = (data.len() as u16 + 2).to_be_bytes();
    let segment = [&[0xFF, 0xE1], &length[..], &data].concat();
    let with = |times| [&whole[..2], &segment.repeat(times), &whole[2..]].concat();
    let plain = input.picture(ImageSource::Bytes(whole.clone())).await.unwrap();
    assert_eq!(input.picture(ImageSource::Bytes(with(100))).await.unwrap(), plain);
    let refused = input.picture(ImageSource::Bytes(with(100_000))).await;
    assert!(matches!(refused, Err(Error::InvalidImage { .. })), "{refused:?}");
}

async fn a_lossless_webp_is_counted_with_its_tables() {
    let webp = file("lossless.webp");
    // Of 37 x 23 pixels, with seven bytes each beside the output.
    let pixels = 37 * 23 * (3 + 7);
    let limits = ImageLimits::default().with_decoder(Bytes(pixels + 500 * webp.len() as u64 / 2));
    let input = ImageInput::new(ImageSettings::default().with_limits(limits)).unwrap();
    let (_, result) = most(&input, &webp).await;
    assert!(matches!(result, Err(Error::ImageTooLarge { .. })), "{result:?}");
    assert!(input.picture(ImageSource::Bytes(file("lossy.webp"))).await.is_ok());
}

#[tokio::test]
async fn no_image_takes_more_memory_than_the_limits_say() {
    // The control: what is allocated is counted.
    let (before, kept) = (HEAP.current_usage(), vec![1u8; 1 << 20]);
    assert!(HEAP.current_usage() - before >= kept.len());
    fuzzed_headers_stay_within_the_limits().await;
    a_jpeg_of_48_megapixels_is_decoded_within_the_limits().await;
    metadata_that_is_not_there_takes_no_memory().await;
    a_webp_that_hides_its_parts_takes_no_memory().await;
    metadata_of_a_jpeg_is_left_out().await;
    a_lossless_webp_is_counted_with_its_tables().await;
}
