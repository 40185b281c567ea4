//! Pictures painted from images through the engine: files are fetched and decoded for the painter, a mask keeps what it
//! leaves black, and a bad image fails its own request before anything is loaded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use candle_actors::{Engine, ErrorKind, ImagePainter, ImageSource, PaintImage, Picture, Source};

const SIDE: usize = 64;

async fn studio() -> (Engine, ImagePainter) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_to_image/sd15");
    let engine = Engine::builder().text_to_image("tiny", Source::directory(folder)).start().await.unwrap();
    let painter = engine.text_to_image("tiny").unwrap();
    (engine, painter)
}

/// A picture in a file, and what it shows.
fn saved(folder: &Path, name: &str, colour: impl Fn(usize, usize) -> [u8; 3]) -> (PathBuf, Picture) {
    let pixels = (0..SIDE * SIDE).flat_map(|at| colour(at % SIDE, at / SIDE)).collect();
    let picture = Picture::new(SIDE, SIDE, pixels);
    let path = folder.join(name);
    let side = SIDE as u32;
    image::save_buffer(&path, &picture.rgb, side, side, image::ColorType::Rgb8).unwrap();
    (path, picture)
}

fn request(image: ImageSource) -> PaintImage {
    PaintImage::from("a red circle").with_image(image).with_steps(4).with_seed(3)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_and_its_pixels_paint_the_same_whole_and_in_steps() {
    let folder = tempfile::tempdir().unwrap();
    let (path, picture) = saved(folder.path(), "image.png", |x, y| [(x * 4) as u8, (y * 4) as u8, 90]);
    let (engine, painter) = studio().await;
    let painted = painter.paint(request(ImageSource::Path(path.clone()))).await.unwrap();
    assert_eq!((painted.width, painted.height), (SIDE, SIDE));
    assert_eq!(painted, painter.paint(request(ImageSource::Picture(picture))).await.unwrap());

    let half = request(ImageSource::Path(path)).with_strength(0.5);
    let mut stream = painter.stream(half.with_preview(true)).await.unwrap();
    let mut steps = Vec::new();
    while let Some(step) = stream.next().await {
        let step = step.unwrap();
        assert!(step.preview.is_some());
        steps.push((step.step, step.of));
    }
    // This scheduler makes its second step twice, and begins with the third call.
    assert_eq!(steps, [(1, 3), (2, 3), (3, 3)]);
    assert_ne!(stream.output().await.unwrap(), painted);
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mask_leaves_black_does_not_depend_on_the_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let (image, _) = saved(folder.path(), "image.png", |x, y| [(x * 4) as u8, (y * 4) as u8, 90]);
    let (mask, _) = saved(folder.path(), "mask.png", |_, y| if y < SIDE / 2 { [255; 3] } else { [0; 3] });
    let (engine, painter) = studio().await;
    let masked = request(ImageSource::Path(image)).with_mask(ImageSource::Path(mask));
    let one = painter.paint(masked.clone()).await.unwrap();
    let two = painter.paint(masked.with_prompt("boats in the rain").with_seed(3)).await.unwrap();
    // The decoder looks a few pixels around, through its convolutions, and far through its attention, but weakly.
    let row = |picture: &Picture, row: usize| picture.rgb[row * SIDE * 3..(row + 1) * SIDE * 3].to_vec();
    let difference = |at: usize| {
        let (one, two) = (row(&one, at), row(&two, at));
        one.iter().zip(&two).map(|(one, two)| u32::from(one.abs_diff(*two))).sum::<u32>()
    };
    let (anew, kept) = (difference(8), difference(SIDE - 1));
    println!("painted anew {anew}, kept {kept}");
    assert!(anew > 10 * kept, "{anew}, {kept}");
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_image_fails_its_own_request_before_a_load() {
    let (engine, painter) = studio().await;
    let missing = painter.paint(request(ImageSource::Path("no/such/file.png".into()))).await.unwrap_err();
    assert!(missing.to_string().contains("no/such/file.png"), "{missing}");
    let other = painter.paint(request(ImageSource::Bytes(b"no image".to_vec()))).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::InvalidInput, "{other}");
    let unfetched = ImageSource::Path("no/such/file.png".into());
    let error = painter.paint(request(unfetched).with_strength(3.0)).await.unwrap_err();
    assert!(error.to_string().contains("the strength 3"), "{error}");
    let status = engine.system().status();
    assert!(status.model("text_to_image", "tiny").is_none_or(|model| model.workers.is_empty()));
    assert!(engine.shutdown().await.is_clean());
}
