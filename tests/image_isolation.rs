//! Images decoded in processes of their own, by a decoder that does to its process what the image says: its caller gets one
//! typed error, other images are unaffected, and nothing is left. With the decoder of this crate, pixels are compared in
//! `isolation.rs`.
//!
//! Children are this executable, so its `main` begins as an application's does, and there is no test harness.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg_attr(not(target_os = "linux"), allow(unused, reason = "children are found in /proc"))]

use std::time::Duration;

use candle_actors::isolation::{IsolatedWork, KnownLoader, ProcessEnd, ProcessOptions};
use candle_actors::model_actors::isolation::{run_child_if_asked, sabotage};
use candle_actors::{Error, ErrorKind, ImageInput, ImageLimits, ImageSettings, ImageSource, Picture};
use serde::{Deserialize, Serialize};

/// Stands for the decoder of this crate in the children of this executable.
struct Decoder;

#[derive(Serialize, Deserialize)]
struct Encoded {
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    header: bool,
}

#[derive(Serialize, Deserialize)]
enum Decoded {
    Header(u64),
    Picture(Picture),
    Failed(Error),
}

impl IsolatedWork for Decoder {
    const NAME: &'static str = "image_decoder";
    type Input = Encoded;
    type Output = Decoded;

    /// Poison of a header acts while that is read, other poison when the image is decoded.
    fn work(Encoded { bytes, header }: Encoded) -> Decoded {
        let text = String::from_utf8(bytes).unwrap();
        match text.strip_prefix("header ") {
            Some(poison) => poisoned(poison),
            None if !header => poisoned(&text),
            None => {}
        }
        match header {
            true if text == "invalid" => Decoded::Failed(Error::InvalidImage { reason: "it is".to_owned() }),
            true if text == "lengthy" => Decoded::Failed(Error::InvalidImage { reason: "x".repeat(5000) }),
            true if text == "other" => Decoded::Failed(Error::Stopped),
            true if text == "huge" => Decoded::Header(u64::MAX),
            true => Decoded::Header(2),
            false if text == "more" => Decoded::Picture(Picture::new(1000, 100, vec![7; 300_000])),
            false if text == "another" => Decoded::Picture(Picture::new(1, 1, vec![7; 3])),
            false => Decoded::Picture(picture()),
        }
    }
}

fn picture() -> Picture {
    Picture::new(2, 1, vec![1, 2, 3, 4, 5, 6])
}

fn poisoned(poison: &str) {
    match poison {
        "segfault" => loop {
            // The first one finds the handler of the standard library, which steps aside.
            let process = std::process::id().to_string();
            std::process::Command::new("kill").args(["-SEGV", &process]).status().unwrap();
        },
        "abort" => std::process::abort(),
        "exit" => std::process::exit(3),
        "memory" => drop(std::hint::black_box(vec![1_u8; 8 << 30])),
        "loop" => loop {
            std::hint::spin_loop();
        },
        "garbage" => {
            sabotage::write_garbage(&[0xff; 16]);
            loop {
                std::thread::park();
            }
        }
        _ => {}
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() {
    run_child_if_asked([KnownLoader::of_work::<Decoder>()]);
    block_on(poison_ends_its_image_alone());
    block_on(an_image_that_takes_for_ever_is_given_up());
    block_on(pixels_are_checked());
    block_on(nothing_is_left_after_many_images());
    println!("test result: ok");
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), test).await.expect("it ends") });
    settle_children(&runtime);
}

/// Waits until no process is left, not even a zombie.
fn settle_children(runtime: &tokio::runtime::Runtime) {
    let none = async {
        while !children().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let none = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), none).await });
    assert!(none.is_ok(), "{:?} are left", children());
}

/// The children of this process.
fn children() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn input(settings: ImageSettings) -> ImageInput {
    ImageInput::new(settings.with_isolation(ProcessOptions::default())).unwrap()
}

async fn decode(input: &ImageInput, text: &str) -> Result<Picture, Error> {
    input.picture(ImageSource::Bytes(text.as_bytes().to_vec())).await
}

async fn poison_ends_its_image_alone() {
    let input = input(ImageSettings::default().with_decoders(2));
    let signal = |number| ProcessEnd::Signal { number };
    let ends = [
        ("segfault", Some(signal(11)), "SIGSEGV"),
        ("abort", Some(signal(6)), "SIGABRT"),
        ("memory", Some(signal(6)), "SIGABRT"),
        ("exit", Some(ProcessEnd::Exited { status: 3 }), "status 3"),
        ("garbage", None, "broke the protocol"),
    ];
    for (poison, expected, word) in ends {
        for poison in [poison.to_owned(), format!("header {poison}")] {
            let others = || decode(&input, "an image");
            let (one, error, other) = tokio::join!(others(), decode(&input, &poison), others());
            assert_eq!((one.unwrap(), other.unwrap()), (picture(), picture()), "beside {poison}");
            let error = error.unwrap_err();
            let Error::ImageDecoderDied { end } = &error else { panic!("{poison}: {error}") };
            assert!(error.to_string().contains(word), "{error}");
            match &expected {
                Some(expected) => assert_eq!(end, expected),
                None => assert!(matches!(end, ProcessEnd::Protocol { .. }), "{error}"),
            }
            assert_eq!(error.kind(), ErrorKind::Internal);
        }
    }
    // Of a request with several images it is the request's.
    let images = ["an image", "abort", "an image"].map(|text| ImageSource::Bytes(text.into()));
    let error = input.pictures(images.to_vec()).await.unwrap_err();
    assert!(matches!(error, Error::ImageDecoderDied { .. }), "{error}");
    assert_eq!(decode(&input, "an image").await.unwrap(), picture());
}

async fn an_image_that_takes_for_ever_is_given_up() {
    let patience = Duration::from_millis(500);
    let input = input(ImageSettings::default().with_decoders(1).with_decode_timeout(patience));
    for poison in ["loop", "header loop"] {
        let error = decode(&input, poison).await.unwrap_err();
        assert!(matches!(error, Error::ImageTooSlow { after } if after == patience), "{error}");
        // The only place is back, as the process was killed.
        while decode(&input, "an image").await.is_err() {}
    }
    assert_eq!(children().len(), 1);
    // So it is for a caller that goes.
    let gone = tokio::time::timeout(Duration::from_millis(50), decode(&input, "loop")).await;
    assert!(gone.is_err());
    while decode(&input, "an image").await.is_err() {}
    assert_eq!(children().len(), 1);
}

async fn pixels_are_checked() {
    let input = input(
        ImageSettings::default().with_limits(ImageLimits::default().with_encoded(candle_actors::Bytes(64))),
    );
    let error = decode(&input, "huge").await.unwrap_err();
    assert!(matches!(error, Error::ImageTooLarge { found: u64::MAX, .. }), "{error}");
    for broken in ["another", "more", "lengthy", "other"] {
        let error = decode(&input, broken).await.unwrap_err();
        assert!(matches!(&error, Error::ImageDecoderDied { end: ProcessEnd::Protocol { .. } }), "{error}");
        // One that says more than it can have to say is not listened to.
        assert_eq!(error.to_string().contains("bytes; at most"), broken == "more", "{error}");
    }
    let error = decode(&input, "invalid").await.unwrap_err();
    assert!(matches!(&error, Error::InvalidImage { reason } if reason == "it is"), "{error}");
    let error = decode(&input, &"x".repeat(65)).await.unwrap_err();
    assert!(matches!(error, Error::ImageTooLarge { found: 65, limit: 64, .. }), "{error}");
}

/// Number of the descriptors of this process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

async fn nothing_is_left_after_many_images() {
    let before = descriptors();
    for cycle in 0..30 {
        let input = input(ImageSettings::default().with_decoders(3));
        let images = (0..6).map(|_| ImageSource::Bytes("an image".into())).collect();
        assert_eq!(input.pictures(images).await.unwrap(), vec![picture(); 6]);
        assert!(children().len() <= 3, "{:?}", children());
        let poison = ["segfault", "abort", "garbage", "exit"][cycle % 4];
        assert!(decode(&input, poison).await.is_err());
        drop(input);
        // Those of the next cycle are counted alone.
        let settled = async {
            while !children().is_empty() || descriptors() > before {
                tokio::task::yield_now().await;
            }
        };
        let settled = tokio::time::timeout(Duration::from_secs(10), settled).await;
        assert!(settled.is_ok(), "{:?} and {} descriptors, {before} before", children(), descriptors());
    }
}
