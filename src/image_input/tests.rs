//! Files and decoders do not get into each other's way, what is counted is what is held, and requests are cut
//! into portions by their addresses.

use super::*;

/// Brief enough to be waited for.
fn input() -> ImageInput {
    let settings = ImageSettings::default().with_decode_timeout(Duration::from_millis(200));
    ImageInput::new(settings).unwrap()
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images").join(name)
}

/// Keeps all decoders at work until it is dropped.
async fn all_decoders(input: &ImageInput) -> Vec<std::sync::mpsc::Sender<()>> {
    let mut ends = Vec::new();
    for _ in 0..input.shared.settings.decoders {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = tokio::sync::oneshot::channel();
        let shared = Arc::clone(&input.shared);
        let work = move || {
            begin.send(()).map_err(|()| Error::Stopped)?;
            Ok(ended.recv().is_err())
        };
        tokio::spawn(async move { shared.decoders.run(work).await });
        begun.await.unwrap();
        ends.push(end);
    }
    ends
}

/// A file system that hangs keeps the threads that read from it for good, and with them their leave.
#[tokio::test]
async fn files_that_hang_keep_no_decoder() {
    let input = input();
    let hanging = Arc::clone(&input.shared.files).acquire_many_owned(AT_ONCE as u32).await.unwrap();
    let bytes = std::fs::read(path("rgb.png")).unwrap();
    input.picture(ImageSource::Bytes(bytes)).await.unwrap();
    let late = input.picture(ImageSource::Path(path("rgb.png"))).await;
    assert!(matches!(late, Err(Error::ImageTooSlow { .. })), "{late:?}");
    drop(hanging);
    input.picture(ImageSource::Path(path("rgb.png"))).await.unwrap();
}

#[tokio::test]
async fn a_file_is_read_before_there_is_a_decoder_for_it() {
    let input = input();
    let busy = all_decoders(&input).await;
    let missing = input.picture(ImageSource::Path(path("missing.png"))).await;
    assert!(matches!(missing, Err(Error::UnreadableFile { .. })), "{missing:?}");
    let late = input.picture(ImageSource::Path(path("rgb.png"))).await;
    assert!(matches!(late, Err(Error::ImageTooSlow { .. })), "{late:?}");
    drop(busy);
    // All leave is back, also that of those who were not waited for.
    input.pictures(vec![ImageSource::Path(path("rgb.png")); AT_ONCE + 1]).await.unwrap();
}

#[tokio::test]
async fn a_header_takes_of_the_time_to_decode_an_image() {
    let hour = Duration::from_secs(3600);
    let input = ImageInput::new(ImageSettings::default().with_decode_timeout(hour)).unwrap();
    let busy = all_decoders(&input).await;
    let room = input.shared.memory.room(1, Duration::ZERO).await.unwrap();
    let bytes = std::fs::read(path("rgb.png")).unwrap();
    let late = input.decoded(ImageSource::Bytes(bytes), 1, hour, &room).await;
    assert!(matches!(late, Err(Error::ImageTooSlow { after }) if after == hour), "{late:?}");
    drop(busy);
}

#[tokio::test]
async fn encoded_bytes_hold_no_more_than_is_counted() {
    let mut bytes = Vec::with_capacity(1 << 20);
    bytes.extend(std::fs::read(path("rgb.png")).unwrap());
    let sources = vec![ImageSource::Path(path("rgb.png")), ImageSource::Bytes(bytes)];
    for image in input().here(sources, &mut 0).await.unwrap() {
        let held = match &image.source {
            ImageSource::Bytes(bytes) => bytes.capacity() as u64,
            _ => 0,
        };
        assert_eq!(image.bytes(), held + image.pixels * BYTES_A_PIXEL);
    }
}

#[tokio::test]
async fn only_addresses_are_counted_against_downloads() {
    let urls = UrlSettings::default().with_downloads(2);
    let input = ImageInput::new(ImageSettings::default().with_urls(urls)).unwrap();
    let url = || ImageSource::Url(String::new());
    let file = || ImageSource::Path(PathBuf::new());
    let sizes = |sources: Vec<ImageSource>, most| -> Vec<usize> {
        input.portions(sources, most).iter().map(Vec::len).collect()
    };
    let one_and_many: Vec<_> = std::iter::once(url()).chain((0..200).map(|_| file())).collect();
    assert_eq!(sizes(one_and_many, 300), [201]);
    assert_eq!(sizes(vec![url(); 5], 4), [2, 2, 1]);
    assert_eq!(sizes(vec![file(); 9], 4), [4, 4, 1]);
    assert_eq!(sizes(vec![url(), file(), url(), file(), url(), url(), url()], 4), [4, 2, 1]);
    assert!(sizes(vec![], 4).is_empty());
}
