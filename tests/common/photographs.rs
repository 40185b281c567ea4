//! The photographs of the repository.

use model_actors::Picture;

use super::root;

/// Where a photograph lies.
pub(crate) fn path(name: &str) -> std::path::PathBuf {
    root().join("tests/fixtures/photographs").join(name)
}

/// Its pixels.
pub(crate) fn photograph(name: &str) -> Picture {
    let image = image::open(path(name)).unwrap().into_rgb8();
    Picture { width: image.width() as usize, height: image.height() as usize, rgb: image.into_raw() }
}
