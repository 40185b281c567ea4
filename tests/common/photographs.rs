//! The photographs of the repository.

use candle_actors::{ImageInput, ImageSettings, ImageSource, Picture};
use tokio::runtime::Runtime;

use super::root;

/// The path of a photograph.
pub(crate) fn path(name: &str) -> std::path::PathBuf {
    root().join("tests/fixtures/photographs").join(name)
}

/// Its pixels, as every image from outside is decoded.
pub(crate) fn photograph(name: &str) -> Picture {
    let source = ImageSource::Path(path(name));
    let decode = || {
        let images = ImageInput::new(ImageSettings::default().with_urls(None)).unwrap();
        Runtime::new().unwrap().block_on(images.picture(source)).unwrap()
    };
    // Not on this thread, which may be one of a runtime.
    std::thread::spawn(decode).join().unwrap()
}
