//! The files of a model's folder. A link may not lead out of it, since a model that somebody else has made would show any
//! file of this machine to whoever asks the model; and what is no regular file is not read, because reading it may never
//! end. What is found is read elsewhere, through [`open`].

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _};
use std::path::{Path, PathBuf};

use super::gguf_part::GgufPart;
use super::placeholder;
use crate::error::{Error, Result};

/// A folder with a model's files, or the one GGUF file that is the model.
pub(crate) struct Folder {
    path: PathBuf,
    /// Links may lead out of the folder.
    follow_links: bool,
}

impl Folder {
    pub(super) fn new(path: &Path, follow_links: bool) -> Self {
        Self { path: path.to_owned(), follow_links }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn follows_links(&self) -> bool {
        self.follow_links
    }

    /// True if it is a file, which is the model.
    pub(super) fn is_file(&self) -> bool {
        self.path.is_file()
    }

    /// The path of a file in it, or nothing if it has none.
    ///
    /// # Errors
    /// [`Error::UnreadableFile`] for what is no regular file, and for a link that leads out of the folder.
    pub(super) fn find(&self, file: &str) -> Result<Option<PathBuf>> {
        let path = self.path.join(file);
        let found = std::fs::metadata(&path).and_then(|about| {
            check_regular(&about)?;
            if self.follow_links { Ok(()) } else { check_inside(&self.path, &path) }
        });
        match found {
            Ok(()) => Ok(Some(path)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(Error::unreadable(&path, &error)),
        }
    }

    /// The only GGUF file in it; of one in parts, the first that is there.
    ///
    /// # Errors
    /// [`Error::SeveralGgufFiles`] if it has more than one; those of [`Folder::find`].
    pub(super) fn only_gguf(&self) -> Result<Option<PathBuf>> {
        // Where the same model lies in both forms, the one that nothing was lost of is meant.
        let whole = ["model.safetensors", "model.safetensors.index.json"];
        if whole.iter().any(|file| self.path.join(file).is_file()) {
            return Ok(None);
        }
        let mut files = self.gguf_files()?;
        // The image half of a vision model of llama.cpp, beside its text half.
        if files.iter().any(|file| !is_projector(file)) {
            files.retain(|file| !is_projector(file));
        }
        files.sort_unstable();
        files.dedup_by(|later, first| match (GgufPart::of(first), GgufPart::of(later)) {
            (Some(first), Some(later)) => first.is_of_same_file(&later),
            _ => false,
        });
        match files.as_slice() {
            [] => Ok(None),
            [file] => self.find(file),
            _ => Err(Error::SeveralGgufFiles { model: self.path.display().to_string(), files }),
        }
    }

    /// The only GGUF file in it that is the vision tower of another.
    ///
    /// # Errors
    /// [`Error::SeveralGgufFiles`] if it has more than one; those of [`Folder::find`].
    pub(super) fn only_projector(&self) -> Result<Option<PathBuf>> {
        let mut files = self.gguf_files()?;
        files.retain(|file| is_projector(file));
        files.sort_unstable();
        match files.as_slice() {
            [] => Ok(None),
            [file] => self.find(file),
            _ => Err(Error::SeveralGgufFiles { model: self.path.display().to_string(), files }),
        }
    }

    /// Names of all GGUF files in it.
    fn gguf_files(&self) -> Result<Vec<String>> {
        let unreadable = |source| Error::unreadable(&self.path, &source);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if is_gguf(&path)
                && path.is_file()
                && let Some(name) = path.file_name()
            {
                files.push(name.to_string_lossy().into_owned());
            }
        }
        Ok(files)
    }

    /// A pickle in a folder of this one, which is named with a slash at its end or empty, if no safetensors are there.
    pub(super) fn pickle(&self, folder: &str) -> Option<String> {
        let name = only_pickle(&self.path.join(folder))?;
        Some(format!("{folder}{name}"))
    }
}

/// Refuses a file outside of the folder, once all links are followed.
fn check_inside(folder: &Path, file: &Path) -> io::Result<()> {
    let (folder, file) = (folder.canonicalize()?, file.canonicalize()?);
    if file.starts_with(&folder) || is_in_hub_cache(&folder, &file) {
        return Ok(());
    }
    Err(io::Error::other(
        "it is a link that leads out of the model's folder; `Source::follow_links` allows that, for folders of your own",
    ))
}

/// True for a content in the cache of the Hugging Face tools, and a snapshot in the same cache, or a folder in one, which is
/// of links to such contents. The contents may lie elsewhere, on another disk, and the cache's own folder be a link to
/// them; so that a folder of this shape does not open any other, contents and commits have to be named by checksums.
fn is_in_hub_cache(folder: &Path, file: &Path) -> bool {
    let is_named =
        |path: &Path, is: fn(&str) -> bool| path.file_name().and_then(OsStr::to_str).is_some_and(is);
    let is_repository = |path: &&Path| {
        let commit = folder.strip_prefix(path.join("snapshots")).ok().and_then(|rest| rest.iter().next());
        is_named(path, |name| name.starts_with("models--"))
            && commit.and_then(OsStr::to_str).is_some_and(is_checksum)
    };
    let repository = folder.ancestors().find(is_repository);
    let blobs = repository.and_then(|repository| repository.join("blobs").canonicalize().ok());
    is_named(file, is_checksum) && blobs.is_some_and(|blobs| file.parent() == Some(blobs.as_path()))
}

/// True for a name that is a checksum of git or of SHA-256.
fn is_checksum(name: &str) -> bool {
    matches!(name.len(), 40 | 64) && name.bytes().all(|letter| letter.is_ascii_hexdigit())
}

fn check_regular(about: &Metadata) -> io::Result<()> {
    match about.is_file() {
        true => Ok(()),
        false => Err(io::Error::other("it is no regular file")),
    }
}

/// Opens a file of a model.
///
/// # Errors
/// Those of the system, one for what is no regular file: a pipe, a device, a folder, and one that carries
/// [`Error::Placeholder`], for what lies in the place of a file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // By its name, so that a device is not even opened, and once more when it is open, because what a name stands for may
    // change in between.
    check_regular(&std::fs::metadata(path)?)?;
    let mut options = OpenOptions::new();
    options.read(true);
    // Without waiting for a writer, if it is a pipe by now.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK | libc::O_NOCTTY);
    let mut file = options.open(path)?;
    check_regular(&file.metadata()?)?;
    let mut beginning = Vec::with_capacity(placeholder::BEGINNING);
    (&mut file).take(placeholder::BEGINNING as u64).read_to_end(&mut beginning)?;
    file.rewind()?;
    match placeholder::refused(path, &beginning) {
        Some(error) => Err(io::Error::other(error)),
        None => Ok(file),
    }
}

/// The bytes of a file of a model, unless it has more than so many.
///
/// # Errors
/// [`Error::UnreadableFile`]; [`Error::InvalidConfig`] for a larger one.
pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let unreadable = |source| Error::unreadable(path, &source);
    let file = open(path).map_err(unreadable)?;
    let too_large = |bytes: u64| {
        let reason = format!("it has {bytes} bytes; at most {most} are allowed");
        Error::InvalidConfig { file: path.to_owned(), reason }
    };
    let length = file.metadata().map_err(unreadable)?.len();
    if length > most {
        return Err(too_large(length));
    }
    let mut bytes = Vec::new();
    // It may grow while it is read.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > most { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}

fn is_projector(file: &str) -> bool {
    file.to_lowercase().contains("mmproj")
}

pub(super) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// The ending that pickles share with other files; these names have it for one.
const PICKLED: &str = "pytorch_model";
/// Beginnings of the names of files that a training leaves beside a model's weights.
const LEFT_BEHIND: [&str; 3] = ["optimizer", "scheduler", "rng_state"];

/// True for a file that is a pickle by its name, as PyTorch and its users name them.
pub(super) fn is_pickle(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    ends(&[".ckpt", ".pkl", ".pt", ".pth"]) || ends(&[".bin"]) && name.contains(PICKLED)
}

fn only_pickle(directory: &Path) -> Option<String> {
    let files = std::fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    let files: Vec<PathBuf> = files.filter(|path| path.is_file()).collect();
    if files.iter().any(|path| path.extension().is_some_and(|extension| extension == "safetensors")) {
        return None;
    }
    let pickles = files.iter().filter(|path| is_pickle(path)).filter_map(|path| path.file_name());
    let names = pickles.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| !LEFT_BEHIND.iter().any(|left| name.starts_with(left))).min()
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder with a model beside a secret.
    fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let (model, secret) = (root.path().join("model"), root.path().join("secret.json"));
        std::fs::create_dir_all(model.join("inner")).unwrap();
        std::fs::write(&secret, "{}").unwrap();
        std::fs::write(model.join("config.json"), "{}").unwrap();
        (root, model, secret)
    }

    #[test]
    fn a_link_that_leads_out_of_the_folder_is_refused_unless_links_are_followed() {
        let (root, model, secret) = folders();
        symlink(&secret, model.join("absolute.json")).unwrap();
        symlink("../secret.json", model.join("relative.json")).unwrap();
        symlink("absolute.json", model.join("chain.json")).unwrap();
        symlink(root.path(), model.join("folder")).unwrap();
        let (closed, open) = (Folder::new(&model, false), Folder::new(&model, true));
        for file in ["absolute.json", "relative.json", "chain.json", "folder/secret.json"] {
            let error = closed.find(file).unwrap_err();
            assert!(matches!(&error, Error::UnreadableFile { .. }), "{file}: {error}");
            assert!(error.to_string().contains("follow_links"), "{file}: {error}");
            assert!(open.find(file).unwrap().is_some(), "{file}");
        }
        // Inside, a link may lead where it likes; one that leads nowhere is no file.
        symlink("../config.json", model.join("inner/config.json")).unwrap();
        symlink("nowhere", model.join("broken.json")).unwrap();
        assert!(
            closed.find("inner/config.json").unwrap().is_some()
                && closed.find("config.json").unwrap().is_some()
        );
        assert!(closed.find("broken.json").unwrap().is_none() && closed.find("none.json").unwrap().is_none());
        // The folder itself may be a link, as its name was given.
        let link = root.path().join("link");
        symlink(&model, &link).unwrap();
        assert!(Folder::new(&link, false).find("config.json").unwrap().is_some());
        assert!(Folder::new(&link, false).find("absolute.json").is_err());
    }

    #[test]
    fn links_to_the_contents_of_the_hubs_cache_are_followed_and_no_others_in_it() {
        let (root, _, secret) = folders();
        let repository = root.path().join("models--somebody--tiny");
        let (commit, blob, other) = ("01".repeat(20), "ab".repeat(20), "cd".repeat(32));
        let snapshot = repository.join("snapshots").join(&commit);
        std::fs::create_dir_all(snapshot.join("unet")).unwrap();
        std::fs::create_dir_all(repository.join("blobs")).unwrap();
        std::fs::write(repository.join("blobs").join(&blob), "{}").unwrap();
        std::fs::write(repository.join("other"), "{}").unwrap();
        symlink(&secret, repository.join("blobs").join(&other)).unwrap();
        let link = |to: &str, name: &str| symlink(to, snapshot.join(name)).unwrap();
        link(&format!("../../blobs/{blob}"), "config.json");
        link(&format!("../../../blobs/{blob}"), "unet/config.json");
        link(&format!("../../blobs/{other}"), "out.json");
        link("../../other", "other.json");
        // The contents of another repository may be on another disk.
        let (elsewhere, moved) = (root.path().join("elsewhere"), root.path().join("models--somebody--moved"));
        let moved_snapshot = moved.join("snapshots").join(&commit);
        std::fs::create_dir_all(&moved_snapshot).unwrap();
        std::fs::create_dir_all(&elsewhere).unwrap();
        std::fs::write(elsewhere.join(&blob), "{}").unwrap();
        symlink(&elsewhere, moved.join("blobs")).unwrap();
        symlink(format!("../../blobs/{blob}"), moved_snapshot.join("config.json")).unwrap();
        symlink(&secret, moved_snapshot.join("out.json")).unwrap();
        // A folder that has the shape of the cache alone.
        std::fs::write(elsewhere.join("passwd"), "{}").unwrap();
        symlink("../../blobs/passwd", moved_snapshot.join("named.json")).unwrap();
        let odd = moved.join("snapshots/main");
        std::fs::create_dir_all(&odd).unwrap();
        symlink(format!("../../blobs/{blob}"), odd.join("config.json")).unwrap();
        assert!(Folder::new(&odd, false).find("config.json").is_err());
        let moved = Folder::new(&moved_snapshot, false);
        assert!(moved.find("named.json").is_err());
        assert!(moved.find("config.json").unwrap().is_some() && moved.find("out.json").is_err());
        let folder = Folder::new(&snapshot, false);
        assert!(folder.find("config.json").unwrap().is_some());
        assert!(folder.find("unet/config.json").unwrap().is_some());
        assert!(Folder::new(&snapshot.join("unet"), false).find("config.json").unwrap().is_some());
        assert!(folder.find("out.json").is_err() && folder.find("other.json").is_err());
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
        let (_root, model, _) = folders();
        let pipe = model.join("pipe.json");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(model.join("socket.json")).unwrap();
        symlink("/dev/zero", model.join("device.json")).unwrap();
        symlink("pipe.json", model.join("link.json")).unwrap();
        let (done, waits) = std::sync::mpsc::channel();
        // On a thread, so that waiting is seen as such.
        std::thread::spawn(move || {
            for file in ["pipe.json", "socket.json", "device.json", "link.json", "inner"] {
                for follow_links in [false, true] {
                    done.send(Folder::new(&model, follow_links).find(file).map(|_| ())).unwrap();
                }
                done.send(read(&model.join(file), 9).map(|_| ())).unwrap();
            }
        });
        for _ in 0..15 {
            let refused = waits.recv_timeout(std::time::Duration::from_secs(20)).unwrap().unwrap_err();
            assert!(refused.to_string().contains("no regular file"), "{refused}");
        }
    }

    #[test]
    fn a_file_of_more_bytes_than_allowed_is_refused() {
        let (_root, model, _) = folders();
        let file = model.join("config.json");
        assert_eq!(read(&file, 2).unwrap(), b"{}");
        assert!(matches!(read(&file, 1), Err(Error::InvalidConfig { .. })));
    }
}
