//! Images from files and bytes: every supported format decodes to the pixels of the reference, and everything
//! else is refused with a clear error, within the limits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use candle_actors::{Bytes, Error, ImageInput, ImageLimits, ImageSettings, ImageSource, Picture};
use common::root;

fn folder() -> PathBuf {
    root().join("tests/fixtures/images")
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn with_limits(limits: ImageLimits) -> ImageInput {
    ImageInput::new(ImageSettings::default().with_limits(limits)).unwrap()
}

async fn decode(bytes: Vec<u8>) -> Result<Picture, Error> {
    with_limits(ImageLimits::default()).picture(ImageSource::Bytes(bytes)).await
}

async fn decode_base64(text: String) -> Result<Picture, Error> {
    with_limits(ImageLimits::default()).picture(ImageSource::Base64(text)).await
}

fn differences<'a>(left: &'a [u8], right: &'a [u8]) -> impl Iterator<Item = u8> + 'a {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(a, b)| a.abs_diff(*b))
}

/// To the bit, but for JPEG, whose decoder rounds differently from libjpeg.
#[tokio::test]
async fn every_kind_of_file_gives_the_reference_pixels() {
    let expected: BTreeMap<String, (usize, usize)> = serde_json::from_slice(&file("expected.json")).unwrap();
    assert!(expected.len() > 50);
    for (name, size) in &expected {
        let picture = decode(file(name)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((picture.width, picture.height), *size, "{name}");
        let reference = file(&format!("{name}.rgb"));
        let most = differences(&picture.rgb, &reference).max().unwrap();
        let sum: u64 = differences(&picture.rgb, &reference).map(u64::from).sum();
        let mean = sum as f64 / reference.len() as f64;
        println!("{name}: at most {most}, on average {mean:.4}");
        let (allowed, allowed_mean) = match name.rsplit_once('.').unwrap() {
            // A few pixels, in which a corner of the colour counts for much.
            ("tiny_1x17" | "tiny_2x2", "jpg") => (5, 2.0),
            (_, "jpg") => (4, 0.5),
            _ => (0, 0.0),
        };
        assert!(most <= allowed && mean <= allowed_mean, "{name}: {most}, {mean}");
    }
}

#[cfg(not(feature = "image-urls"))]
#[tokio::test]
async fn an_address_is_refused_with_the_feature_that_would_open_it() {
    let address = ImageSource::Url("http://example.org/a.png".to_owned());
    let error = with_limits(ImageLimits::default()).picture(address).await.unwrap_err();
    assert!(matches!(error, Error::AddressRefused { .. }), "{error}");
    assert!(error.to_string().contains("`image-urls`"), "{error}");
}

#[tokio::test]
async fn an_unsupported_format_is_named_with_those_that_are_supported() {
    let cases: [(Vec<u8>, &str); 9] = [
        (file("icon.ico"), "ICO"),
        (file("picture.avif"), "AVIF"),
        (b"II*\0\x08\0\0\0\0\0".to_vec(), "TIFF"),
        (b"%PDF-1.7".to_vec(), "PDF"),
        (b"\n<!DOCTYPE html><html>".to_vec(), "HTML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(), "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0".to_vec(), "HEIC"),
        (b"the cat sleeps".to_vec(), "no known format"),
        (Vec::new(), "empty"),
    ];
    for (bytes, named) in cases {
        let error = decode(bytes).await.unwrap_err();
        assert!(matches!(error, Error::UnsupportedImage { .. }), "{error}");
        let words = error.to_string();
        assert!(words.contains(named) && words.contains("PNG, JPEG, WebP, GIF and BMP"), "{words}");
    }
}

/// A file that is truncated anywhere is refused, or decodes to the same image where only a trailer is
/// missing.
#[tokio::test]
async fn truncated_files_are_refused() {
    let names = [
        "rgb.png",
        "interlaced.png",
        "palette_4.png",
        "rgb_420.jpg",
        "progressive_444.jpg",
        "lossy.webp",
        "lossless.webp",
        "lossy_alpha.webp",
        "plain.gif",
        "rgb.bmp",
    ];
    for name in names {
        let whole = file(name);
        let picture = decode(whole.clone()).await.unwrap();
        let mut refused = 0;
        for length in (0..whole.len()).step_by(whole.len() / 23) {
            match decode(whole[..length].to_vec()).await {
                Err(Error::InvalidImage { .. } | Error::UnsupportedImage { .. }) => refused += 1,
                Err(error) => panic!("{name}: {error}"),
                Ok(cut) => assert_eq!(cut, picture, "{name} with {length} of {} bytes", whole.len()),
            }
        }
        assert!(refused >= 20, "{name}: {refused}");
    }
}

#[tokio::test]
async fn the_content_decides_and_not_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("picture.jpg");
    std::fs::write(&path, file("rgb.png")).unwrap();
    let picture = with_limits(ImageLimits::default()).picture(ImageSource::Path(path)).await.unwrap();
    assert_eq!(picture.rgb, file("rgb.png.rgb"));
}

#[tokio::test]
async fn each_limit_refuses_with_both_numbers() {
    let default = ImageLimits::default;
    let bytes = file("rgb.png").len() as u64;
    let cases = [
        (default().with_encoded(Bytes(bytes - 1)), bytes, bytes - 1),
        (default().with_pixels(37 * 23 - 1), 37 * 23, 37 * 23 - 1),
        (default().with_side(36), 37, 36),
        (default().with_aspect(1), 2, 1),
        (default().with_decoder(Bytes(37 * 23 * 9 - 1)), 37 * 23 * 9, 37 * 23 * 9 - 1),
    ];
    for (limits, found_value, limit_value) in cases {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture");
        std::fs::write(&path, file("rgb.png")).unwrap();
        let sources = [
            ImageSource::Bytes(file("rgb.png")),
            ImageSource::Base64(BASE64_STANDARD.encode(file("rgb.png"))),
            ImageSource::Path(path),
        ];
        for source in sources {
            let error = with_limits(limits.clone()).picture(source).await.unwrap_err();
            let Error::ImageTooLarge { found, limit, .. } = error else { panic!("{error}") };
            assert_eq!((found, limit), (found_value, limit_value));
        }
    }
    // The control: at the limits, all of it is taken.
    let limits = default()
        .with_encoded(Bytes(bytes))
        .with_pixels(37 * 23)
        .with_side(37)
        .with_aspect(2)
        .with_decoder(Bytes(37 * 23 * 9));
    assert!(with_limits(limits).picture(ImageSource::Bytes(file("rgb.png"))).await.is_ok());
}

#[tokio::test]
async fn base64_comes_in_many_forms() {
    let bytes = file("rgba.png");
    let standard = BASE64_STANDARD.encode(&bytes);
    let lines: Vec<&str> =
        standard.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let forms = [
        standard.clone(),
        BASE64_STANDARD_NO_PAD.encode(&bytes),
        BASE64_URL_SAFE.encode(&bytes),
        BASE64_URL_SAFE_NO_PAD.encode(&bytes),
        format!("data:image/png;base64,{standard}"),
        format!("DATA:;BASE64,{standard}"),
        // The media type is not trusted.
        format!("data:image/jpeg;base64,{standard}"),
        lines.join("\r\n"),
        format!("\n {standard}\n"),
    ];
    for text in forms {
        assert_eq!(decode_base64(text.clone()).await.unwrap().rgb, file("rgba.png.rgb"), "{text:.40}");
    }
    let wrong =
        ["", "$$$$", "data:image/png;base64", "data:image/png,abc", "data:image/png;base64,A", "äöü", "A-/_"];
    for text in wrong {
        let error = decode_base64(text.to_owned()).await.unwrap_err();
        let refused = matches!(error, Error::InvalidImage { .. } | Error::UnsupportedImage { .. });
        assert!(refused, "{text}: {error}");
    }
    let mixed = format!("{}-/", &standard[..40]);
    assert!(decode_base64(mixed).await.is_err());
}

#[tokio::test]
async fn base64_is_measured_before_it_is_decoded() {
    let limits = ImageLimits::default().with_encoded(Bytes(1000));
    for text in ["A".repeat(10_000), " ".repeat(10_000), format!("data:{},", "x".repeat(10_000))] {
        let error = with_limits(limits.clone()).picture(ImageSource::Base64(text)).await.unwrap_err();
        assert!(matches!(error, Error::ImageTooLarge { limit: 1000, .. }), "{error}");
    }
}

#[tokio::test]
async fn pixels_must_be_what_they_claim() {
    let input = with_limits(ImageLimits::default());
    let good = Picture::new(2, 3, vec![7; 18]);
    assert_eq!(input.picture(ImageSource::Picture(good.clone())).await.unwrap(), good);
    let wrong =
        [(2, 3, 17), (0, 0, 0), (0, 5, 0), (usize::MAX, 2, 6), (1 << 40, 1 << 40, 0), (100_000, 1, 300_000)];
    for (width, height, bytes) in wrong {
        let picture = Picture::new(width, height, vec![0; bytes]);
        let error = input.picture(ImageSource::Picture(picture)).await.unwrap_err();
        assert!(matches!(error, Error::InvalidImage { .. } | Error::ImageTooLarge { .. }), "{error}");
    }
}

#[tokio::test]
async fn only_files_are_read() {
    let input = with_limits(ImageLimits::default());
    let folder = tempfile::tempdir().unwrap();
    let mut paths = vec![folder.path().to_owned(), folder.path().join("nothing.png")];
    if cfg!(unix) {
        // Reading it would never end.
        paths.push("/dev/zero".into());
        // Opening it would wait for a writer.
        let pipe = folder.path().join("pipe.png");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        paths.push(pipe);
    }
    for path in paths {
        let error = input.picture(ImageSource::Path(path)).await.unwrap_err();
        assert!(matches!(error, Error::UnreadableFile { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_decoder_that_takes_too_long_is_not_waited_for() {
    // 25 million pixels take many times a millisecond.
    let mut png = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut png);
    image::RgbImage::new(5000, 5000).write_with_encoder(encoder).unwrap();
    let settings = ImageSettings::default().with_decode_timeout(Duration::from_millis(1));
    let result = ImageInput::new(settings).unwrap().picture(ImageSource::Bytes(png)).await;
    assert!(matches!(result, Err(Error::ImageTooSlow { .. })), "{:?}", result.map(|_| ()));
}

#[tokio::test]
async fn many_images_are_decoded_in_order_and_settings_are_checked() {
    let input = ImageInput::new(ImageSettings::default().with_decoders(2)).unwrap();
    let names = ["rgb.png", "rgba.png", "grey.png", "plain.gif", "rgb.bmp"];
    let sources = names.iter().cycle().take(40).map(|name| ImageSource::Bytes(file(name))).collect();
    let pictures = input.pictures(sources).await.unwrap();
    for (name, picture) in names.iter().cycle().zip(&pictures) {
        assert_eq!(picture.rgb, file(&format!("{name}.rgb")), "{name}");
    }
    let limits = ImageLimits::default().with_request_pixels(37 * 23 * 3 - 1);
    let sources = names.iter().map(|name| ImageSource::Bytes(file(name))).collect();
    let error = with_limits(limits).pictures(sources).await.unwrap_err();
    assert!(matches!(error, Error::ImageTooLarge { found: 2553, limit: 2552, .. }), "{error}");
    let error = ImageInput::new(ImageSettings::default().with_decoders(0)).unwrap_err();
    assert!(matches!(error, Error::InvalidSetting { .. }), "{error}");
}
