//! A header that claims a gigantic image allocates nothing, because the size is checked before decoding. This
//! is the only test of its process, because it counts every byte of the process's heap.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::alloc::System;

use candle_actors::{Bytes, Error, ImageInput, ImageLimits, ImageSettings, ImageSource};
use common::root;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Far less than the claimed images, and more than reading the small files takes.
const LITTLE: usize = 1 << 20;

fn file(name: &str) -> Vec<u8> {
    std::fs::read(root().join("tests/fixtures/images").join(name)).unwrap()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xEDB8_8320 & (sum & 1).wrapping_neg()))
    })
}

fn claims(width: u32, height: u32) -> Vec<u8> {
    let mut png = file("rgb.png");
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let checksum = crc32(&png[12..29]).to_be_bytes();
    png[29..33].copy_from_slice(&checksum);
    png
}

/// Bytes that `work` allocates, those that are freed again included.
async fn taken(input: &ImageInput, bytes: Vec<u8>) -> (Result<(), Error>, usize) {
    let before = HEAP.stats().bytes_allocated;
    let result = input.picture(ImageSource::Bytes(bytes)).await.map(drop);
    (result, HEAP.stats().bytes_allocated - before)
}

#[tokio::test]
async fn a_claimed_size_is_refused_before_memory_is_allocated() {
    let input = ImageInput::new(ImageSettings::default()).unwrap();
    // The first picture starts the thread that decodes.
    input.picture(ImageSource::Bytes(file("rgb.png"))).await.unwrap();
    let mut gif = file("plain.gif");
    gif[6..10].copy_from_slice(&[0xFF; 4]);
    let mut jpeg = file("rgb_444.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xFF; 4]);
    let mut bmp = file("rgb.bmp");
    bmp[18..26].copy_from_slice(&[0xFF, 0xFF, 0, 0, 0xFF, 0xFF, 0, 0]);
    for (name, bytes) in [("png", claims(30_000, 30_000)), ("gif", gif), ("jpeg", jpeg), ("bmp", bmp)] {
        let (result, bytes) = taken(&input, bytes).await;
        assert!(matches!(result, Err(Error::ImageTooLarge { .. })), "{name}: {result:?}");
        println!("{name}: {bytes} bytes");
        assert!(bytes < LITTLE, "{name}: {bytes}");
    }
    // The control: where the claim is within the limits, its memory is taken, and counted.
    let limits = ImageLimits::default().with_decoder(Bytes::mib(512));
    let input = ImageInput::new(ImageSettings::default().with_limits(limits)).unwrap();
    let (result, bytes) = taken(&input, claims(4000, 4000)).await;
    assert!(matches!(result, Err(Error::InvalidImage { .. })), "{result:?}");
    assert!(bytes > 4000 * 4000 * 3, "{bytes}");
}
