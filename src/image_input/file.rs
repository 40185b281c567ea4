//! An image's file, read within its limit. What is no regular file (a pipe, a device) is refused, because
//! reading it may never end: by its name, so that a device is not even opened, and once more when it is open,
//! because what a name stands for may change in between.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result};
use crate::image_input::checks::{NO_ADDRESS, refused, too_large};
use crate::limits::ImageLimits;
use crate::secrets::looks_like_address;

/// The file's bytes.
///
/// # Errors
/// [`Error::UnreadableFile`], [`Error::ImageTooLarge`]; [`Error::AddressRefused`] for an address in place of a path,
/// which may hold a password.
pub(crate) fn read(path: &Path, limits: &ImageLimits) -> Result<Vec<u8>> {
    let limit = limits.encoded.0;
    let unreadable = |source: io::Error| match looks_like_address(path) {
        // The error's own words may hold the path.
        true => {
            let reason = format!("it is given as a file's path, which cannot be read: {}", source.kind());
            refused(NO_ADDRESS, &reason)
        }
        false => Error::unreadable(path, &source),
    };
    check_regular(&std::fs::metadata(path).map_err(unreadable)?).map_err(unreadable)?;
    let file = open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    check_regular(&metadata).map_err(unreadable)?;
    too_large("bytes", metadata.len(), limit)?;
    let mut bytes = Vec::new();
    // It may grow while it is read.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable)?;
    too_large("bytes", bytes.len() as u64, limit)?;
    Ok(bytes)
}

fn check_regular(metadata: &std::fs::Metadata) -> io::Result<()> {
    match metadata.is_file() {
        true => Ok(()),
        false => Err(io::Error::other("it is no regular file")),
    }
}

/// Without waiting for a writer, if it is a pipe by now.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK | libc::O_NOCTTY);
    options.open(path)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_without_a_writer_is_refused_by_its_name_and_once_it_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("picture.png");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let error = read(&pipe, &ImageLimits::default()).unwrap_err();
        assert!(matches!(&error, Error::UnreadableFile { .. }), "{error}");
        assert!(error.to_string().contains("no regular file"), "{error}");
        // As where the name became a pipe's after it was looked at. On a thread, so that waiting is seen as
        // such.
        let (done, waits) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(open(&pipe).and_then(|file| check_regular(&file.metadata()?))));
        let result = waits.recv_timeout(std::time::Duration::from_secs(20));
        let error = result.expect("opening a pipe waits for its writer").unwrap_err();
        assert!(error.to_string().contains("no regular file"), "{error}");
    }

    #[test]
    fn an_address_in_place_of_a_path_is_not_shown() {
        let limits = ImageLimits::default();
        let addresses = [
            "htps://user:secret@example.org/a.png?key=secret",
            "https:/secret",
            "s3://secret",
            "//user:secret@host/a.png",
            "//secret@host/a.png",
            "//host/a.png?key=secret",
            "//host:80/a.png?key=secret",
            "https:user:secret@host",
            "https:host/secret",
            "HTTP:secret",
            "htps:host/a.png?key=secret",
            "user:secret@host/a.png",
            "us_er:secret@host/a.png",
        ];
        for text in addresses {
            let error = read(Path::new(text), &limits).unwrap_err();
            assert!(matches!(&error, Error::AddressRefused { .. }), "{text}: {error}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
            assert!(error.to_string().contains("not found"), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("user:secret@host");
        std::fs::create_dir(&path).unwrap();
        let error = read(&path, &limits).unwrap_err();
        assert!(matches!(&error, Error::AddressRefused { .. }), "{error}");
        assert!(!error.to_string().contains("not found"), "{error}");
        for text in [
            "no/such/file.png",
            "//no/such/file.png",
            "a@b?.png",
            "C:/no/such/file.png",
            "/no:/such.png",
            "no such:/file",
        ] {
            let error = read(Path::new(text), &limits).unwrap_err();
            assert!(matches!(&error, Error::UnreadableFile { .. }), "{error}");
        }
    }
}
