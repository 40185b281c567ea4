//! Memory of images: the images of all requests together stay within their limit, from before they are
//! decoded until their requests end. An image that is refused anyway does not wait for memory, a slow server
//! holds none, and nothing is fetched for a request that is refused or meets a full queue.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::future::ready;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use candle_actors::{
    Bytes, DescribeImage, EmbedImages, Engine, EngineBuilder, Error, ImageDescriber, ImageInput, ImageLimits,
    ImageSettings, ImageSource, Picture, PoolConfig, QueueCapacity, ReplyStream, Sampling, Source,
    UrlSettings, Vision, WhenFull, model_actors,
};
use common::root;
use common::web::{Answer, WebServer};

const BRIEF: Duration = Duration::from_millis(50);

fn png() -> Vec<u8> {
    std::fs::read(root().join("tests/fixtures/images/rgb.png")).unwrap()
}

fn picture() -> Picture {
    Picture::new(32, 32, vec![128; 3072])
}

/// Settings with this much memory; an image here has 3,072 bytes of pixels.
fn settings(memory: u64) -> ImageSettings {
    let urls = UrlSettings::default()
        .with_allowed_networks(vec!["127.0.0.1/32".parse().unwrap()])
        .with_read_timeout(Duration::from_secs(60))
        .with_total_timeout(Duration::from_secs(60));
    ImageSettings::default()
        .with_limits(ImageLimits::default().with_pixels(1024).with_encoded(Bytes(5 << 10)))
        .with_urls(urls)
        .with_memory(Bytes(memory))
}

fn builder(memory: u64) -> EngineBuilder {
    with_settings(settings(memory))
}

fn with_settings(settings: ImageSettings) -> EngineBuilder {
    let source = Source::directory(root().join("tests/fixtures/vision/blip"));
    // An answer that nobody reads does not end, and keeps its image.
    let pool = PoolConfig::default().with_stream_buffer(1);
    Engine::builder().image_input(settings).pool_config(pool).vision("blip", source)
}

fn request(image: ImageSource) -> DescribeImage {
    DescribeImage::new(image)
        .with_question(String::new())
        .with_sampling(Sampling::default())
        .with_max_tokens(2)
}

/// Request that runs until it is dropped, and the memory of its image.
async fn endless(model: &ImageDescriber, image: ImageSource) -> ReplyStream<Vision> {
    model.stream(request(image).with_max_tokens(64)).await.unwrap()
}

/// As the first, with another size in its header.
fn claiming(width: u32, height: u32) -> Vec<u8> {
    let mut png = png();
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = !png[12..29].iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xEDB8_8320 & (sum & 1).wrapping_neg()))
    });
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    png
}

fn has_no_room<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::NoRoomForImages { .. }))
}

#[tokio::test]
async fn a_slow_server_delays_other_downloads_but_no_local_image() {
    let server = WebServer::start("127.0.0.1", |_| {
        vec![("/silent", Answer::Silent), ("/a.png", Answer::Whole(png()))]
    });
    let mut settings = settings(9 << 10);
    let urls = settings.urls.take().unwrap();
    // Each of two images takes leave, and no more than one request of two.
    settings.urls = Some(urls.with_downloads(2).with_total_timeout(Duration::from_millis(400)));
    let input = ImageInput::new(settings).unwrap();
    let fetching = {
        let (input, address) = (input.clone(), server.url("/silent"));
        tokio::spawn(async move { input.pictures(vec![ImageSource::Url(address); 2]).await })
    };
    while server.requests().len() < 2 {
        tokio::task::yield_now().await;
    }
    input.picture(ImageSource::Bytes(png())).await.unwrap();
    input.picture(ImageSource::Picture(picture())).await.unwrap();
    let other = ImageSource::Url(server.url("/a.png"));
    let waiting = {
        let (input, other) = (input.clone(), other.clone());
        tokio::spawn(async move { input.picture(other).await })
    };
    let late = fetching.await.unwrap().unwrap_err();
    assert!(late.to_string().contains("not complete after 400 ms"), "{late}");
    // Before the first were given up, it could not even begin.
    waiting.await.unwrap().unwrap();
    // Many more than may be fetched at once are fetched all the same.
    assert_eq!(input.pictures(vec![other; 9]).await.unwrap().len(), 9);
    // More than all the room goes alone, and is not refused.
    input.pictures(vec![ImageSource::Bytes(png()); 9]).await.unwrap();
}

#[tokio::test]
async fn many_callers_share_little_image_memory() {
    let input = ImageInput::new(settings(9 << 10)).unwrap();
    let pictures = (0..50).map(|_| input.picture(ImageSource::Bytes(png())));
    for picture in futures_util::future::join_all(pictures).await {
        assert_eq!(picture.unwrap().width, 37);
    }
    let error = ImageInput::new(settings(0)).unwrap_err();
    assert!(matches!(error, Error::InvalidSetting { .. }), "{error}");
}

async fn holds_its_room_until_it_ends(model: &ImageDescriber) {
    let stream = endless(model, ImageSource::Picture(picture())).await;
    let refused = model.clone().timeout(BRIEF).describe(request(ImageSource::Picture(picture()))).await;
    assert!(has_no_room(&refused), "{:?}", refused.map(drop));
    drop(stream);
    model.describe(request(ImageSource::Picture(picture()))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_holds_the_memory_of_its_images_until_it_ends() {
    // Room for one picture and a half.
    let engine = builder(3072 * 3 / 2).start().await.unwrap();
    let model = engine.vision("blip").unwrap();
    model.model().preload().await.unwrap();
    holds_its_room_until_it_ends(&model).await;
    holds_its_room_until_it_ends(&model).await;
    // What was set aside for an image that was to be decoded is cut down to what it has.
    let stream = endless(&model, ImageSource::Bytes(png())).await;
    let small = Picture::new(8, 8, vec![0; 192]);
    model.describe(request(ImageSource::Picture(small))).await.unwrap();
    drop(stream);
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test]
async fn a_full_queue_is_checked_before_anything_is_fetched() {
    let server = WebServer::start("127.0.0.1", |_| vec![("/a.png", Answer::Whole(png()))]);
    let queue = Some(QueueCapacity::new(1, 1));
    let pool = PoolConfig::default().with_queue(queue);
    let engine = builder(1 << 20).pool_config(pool).start().await.unwrap();
    let model = engine.vision("blip").unwrap();
    let mut first = std::pin::pin!(model.describe(request(ImageSource::Picture(picture()))));
    tokio::select! {
        biased;
        _ = &mut first => panic!("it was answered before its model was loaded"),
        () = ready(()) => {}
    }
    let url = || request(ImageSource::Url(server.url("/a.png")));
    let impatient = model.clone().when_full(WhenFull::Fail);
    let refusals = [impatient.describe(url()).await.map(drop), impatient.stream(url()).await.map(drop)];
    for refusal in refusals {
        assert!(matches!(refusal, Err(Error::Actor(model_actors::Error::Overloaded { .. }))), "{refusal:?}");
    }
    assert_eq!(server.connections(), 0);
    first.await.unwrap();
    impatient.describe(url()).await.unwrap();
    assert_eq!(server.connections(), 1);
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_take_decoded_images_only() {
    let source = Source::directory(root().join("tests/fixtures/image_embedding/clip"));
    let engine = builder(1 << 20).image_embedding("clip", source).start().await.unwrap();
    let clip = engine.image_embedding("clip").unwrap();
    let blip = engine.vision("blip").unwrap();
    let path = root().join("tests/fixtures/photographs/cat.png");
    // It has more bytes than are allowed.
    let error = clip.embed_image(ImageSource::Path(path.clone())).await.unwrap_err();
    assert!(matches!(error, Error::ImageTooLarge { limit: 5120, .. }), "{error}");
    for image in [ImageSource::Path(path), ImageSource::Bytes(png()), ImageSource::Base64("AAAA".into())] {
        let options = model_actors::CallOptions::default();
        let errors = [
            clip.model()
                .call(EmbedImages::images([image.clone()]), options.clone())
                .await
                .map(drop)
                .unwrap_err(),
            blip.model().call(request(image), options).await.map(drop).unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, model_actors::Error::InvalidInput { .. }), "{error}");
            assert!(error.to_string().contains("decodes no images"), "{error}");
        }
    }
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_over_a_limit_is_refused_without_a_wait_for_memory() {
    let engine = builder(3072).start().await.unwrap();
    let model = engine.vision("blip").unwrap();
    let stream = endless(&model, ImageSource::Picture(picture())).await;
    let model = model.timeout(BRIEF);
    let too_large = [
        ImageSource::Bytes(vec![0; 6 << 10]),
        ImageSource::Base64("A".repeat(10 << 10)),
        // Within the limit by its length, and not when it is decoded.
        ImageSource::Base64(BASE64_STANDARD.encode(vec![0; (5 << 10) + 1])),
        ImageSource::Picture(Picture::new(33, 32, vec![0; 3168])),
        ImageSource::Bytes(claiming(64, 64)),
        ImageSource::Base64(BASE64_STANDARD.encode(claiming(64, 64))),
    ];
    for image in too_large {
        let words = format!("{image:?}");
        let error = model.describe(request(image)).await.unwrap_err();
        assert!(matches!(error, Error::ImageTooLarge { .. }), "{words}: {error}");
    }
    let error = model.describe(request(ImageSource::Picture(Picture::new(32, 32, vec![])))).await;
    assert!(matches!(error, Err(Error::InvalidImage { .. })), "{error:?}");
    let error = model.describe(request(ImageSource::Bytes(b"<html>".to_vec()))).await;
    assert!(matches!(error, Err(Error::UnsupportedImage { .. })), "{error:?}");
    // The control: what is within them has to wait.
    assert!(has_no_room(&model.describe(request(ImageSource::Bytes(png()))).await));
    drop(stream);
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test]
async fn decoded_images_are_counted_before_anything_is_fetched() {
    let server = WebServer::start("127.0.0.1", |_| vec![("/a.png", Answer::Whole(png()))]);
    let limits = ImageLimits::default().with_request_pixels(2047);
    let input = ImageInput::new(settings(1 << 20).with_limits(limits)).unwrap();
    let url = ImageSource::Url(server.url("/a.png"));
    let two = vec![url.clone(), ImageSource::Picture(picture()), ImageSource::Picture(picture())];
    let error = input.pictures(two).await.unwrap_err();
    assert!(matches!(error, Error::ImageTooLarge { found: 2048, limit: 2047, .. }), "{error}");
    assert_eq!(server.connections(), 0);
    // What is fetched counts too, also across the portions in which images are taken in.
    let error = input.pictures(vec![url; 17]).await.unwrap_err();
    assert!(matches!(error, Error::ImageTooLarge { found: 2553, limit: 2047, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_image_reserves_little_memory_whatever_the_limits_allow() {
    let settings = settings(12 << 10).with_limits(ImageLimits::default());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.png");
    std::fs::write(&path, png()).unwrap();
    let engine = with_settings(settings).start().await.unwrap();
    let model = engine.vision("blip").unwrap();
    let stream = endless(&model, ImageSource::Picture(picture())).await;
    let small = [
        ImageSource::Bytes(png()),
        ImageSource::Base64(BASE64_STANDARD.encode(png())),
        ImageSource::Path(path),
    ];
    for image in small {
        model.describe(request(image)).await.unwrap();
    }
    drop(stream);
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test]
async fn no_memory_is_reserved_while_more_addresses_are_fetched() {
    let server = WebServer::start("127.0.0.1", |_| {
        vec![("/a.png", Answer::Whole(png())), ("/silent", Answer::Silent)]
    });
    // Room for one image.
    let mut settings = settings(4 << 10).with_decode_timeout(Duration::from_secs(20));
    settings.urls = settings.urls.map(|urls| urls.with_downloads(1));
    let input = ImageInput::new(settings).unwrap();
    let many = {
        let input = input.clone();
        let mut many = vec![ImageSource::Url(server.url("/a.png")); 3];
        many.push(ImageSource::Url(server.url("/silent")));
        tokio::spawn(async move { input.pictures(many).await })
    };
    while !server.requests().iter().any(|request| request.contains("/silent")) {
        tokio::task::yield_now().await;
    }
    input.picture(ImageSource::Bytes(png())).await.unwrap();
    many.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_names_the_shortage_of_image_memory_that_caused_it() {
    let server = WebServer::start("127.0.0.1", |_| vec![("/a.png", Answer::Whole(png()))]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.png");
    std::fs::write(&path, png()).unwrap();
    let mut settings = settings(3072);
    let brief = Duration::from_secs(1);
    settings.urls = settings.urls.map(|urls| urls.with_downloads(1).with_total_timeout(brief));
    let engine = with_settings(settings).start().await.unwrap();
    let model = engine.vision("blip").unwrap();
    let stream = endless(&model, ImageSource::Picture(picture())).await;
    let url = || request(ImageSource::Url(server.url("/a.png")));
    let waiting = {
        let (model, request) = (model.clone(), url());
        tokio::spawn(async move { model.describe(request).await })
    };
    while server.connections() == 0 {
        tokio::task::yield_now().await;
    }
    // It has its image, and waits for room with the only leave to fetch.
    let second = model.describe(url()).await;
    assert!(has_no_room(&second), "{second:?}");
    assert_eq!(server.connections(), 1);
    drop(stream);
    waiting.await.unwrap().unwrap();
    model.describe(url()).await.unwrap();
    assert!(engine.shutdown().await.is_clean());
}

async fn refusals(model: &ImageDescriber, request: &DescribeImage) -> Vec<Result<(), Error>> {
    let mut refusals = Vec::new();
    for when_full in [WhenFull::Wait, WhenFull::Fail] {
        let model = model.clone().when_full(when_full);
        refusals.push(model.describe(request.clone()).await.map(drop));
        refusals.push(model.stream(request.clone()).await.map(drop));
    }
    refusals
}

#[tokio::test]
async fn a_request_is_checked_and_a_closed_model_noticed_before_anything_is_fetched() {
    use model_actors::Error as Actor;
    let server = WebServer::start("127.0.0.1", |_| vec![("/a.png", Answer::Whole(png()))]);
    let source = Source::directory(root().join("tests/fixtures/image_embedding/clip"));
    let engine = builder(1 << 20).image_embedding("clip", source).start().await.unwrap();
    let model = engine.vision("blip").unwrap();
    let clip = engine.image_embedding("clip").unwrap();
    let url = ImageSource::Url(server.url("/a.png"));
    let good = request(url.clone());
    let invalid = good.clone().with_max_tokens(0);
    for refused in refusals(&model, &invalid).await {
        assert!(matches!(refused, Err(Error::InvalidInput(_))), "{refused:?}");
    }
    engine.remove::<Vision>(model.id()).unwrap();
    for refused in refusals(&model, &good).await {
        assert!(matches!(refused, Err(Error::Actor(Actor::UnknownModel { .. }))), "{refused:?}");
    }
    assert!(engine.shutdown().await.is_clean());
    let impatient = clip.clone().when_full(WhenFull::Fail);
    for refused in [clip.embed_image(url.clone()).await, impatient.embed_image(url.clone()).await] {
        assert!(matches!(refused, Err(Error::Actor(Actor::ShuttingDown))), "{refused:?}");
    }
    let refused = clip.embed_images([url]).await;
    assert!(matches!(refused, Err(Error::Actor(Actor::ShuttingDown))), "{refused:?}");
    assert_eq!(server.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_wait_does_not_wait_for_image_memory_either() {
    let server = WebServer::start("127.0.0.1", |_| vec![("/a.png", Answer::Whole(png()))]);
    let source = Source::directory(root().join("tests/fixtures/image_embedding/clip"));
    let engine = builder(3072).image_embedding("clip", source).start().await.unwrap();
    let model = engine.vision("blip").unwrap();
    let clip = engine.image_embedding("clip").unwrap();
    let stream = endless(&model, ImageSource::Picture(picture())).await;
    let long = Duration::from_secs(3600);
    let (model, clip) = (model.timeout(long), clip.timeout(long));
    let (impatient, hasty) = (model.clone().when_full(WhenFull::Fail), clip.when_full(WhenFull::Fail));
    for image in [ImageSource::Picture(picture()), ImageSource::Url(server.url("/a.png"))] {
        let refusals = async {
            [
                impatient.describe(request(image.clone())).await.map(drop),
                impatient.stream(request(image.clone())).await.map(drop),
                hasty.embed_image(image.clone()).await.map(drop),
                hasty.embed_images([image.clone()]).await.map(drop),
            ]
        };
        let refusals = tokio::time::timeout(Duration::from_secs(20), refusals).await;
        for refusal in refusals.expect("it waits for room") {
            assert!(has_no_room(&refusal), "{refusal:?}");
        }
    }
    assert_eq!(server.connections(), 0);
    drop(stream);
    model.describe(request(ImageSource::Picture(picture()))).await.unwrap();
    assert!(engine.shutdown().await.is_clean());
}
