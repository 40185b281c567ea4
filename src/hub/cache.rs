//! One repository in the cache of the Hugging Face tools, whose layout `hf_hub` knows: contents under the
//! names of their checksums, a folder of links for each commit, and the commit of each branch.
//!
//! ```text
//! models--owner--name/blobs/<checksum>
//!                     snapshots/<commit>/config.json -> ../../blobs/<checksum>
//!                     refs/main
//!                     .no_exist/<commit>/modules.json
//! .locks/models--owner--name/<checksum>.lock
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

/// Result of a look-up.
pub(super) enum Cached {
    /// The file's path.
    File(PathBuf),
    /// The hub has said before that the repository has no such file.
    KnownMissing,
    Unknown,
}

/// One revision of a repository in the cache.
pub(super) struct RepositoryCache {
    links: CacheRepo,
    revision: String,
    folder: PathBuf,
    locks: PathBuf,
}

impl RepositoryCache {
    pub(super) fn new(cache: &Cache, repository: &str, revision: &str) -> Self {
        let repo = Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
        let name = repo.folder_name();
        Self {
            folder: cache.path().join(&name),
            locks: cache.path().join(".locks").join(name),
            links: cache.repo(repo),
            revision: revision.to_owned(),
        }
    }

    /// The commit that the revision was last seen at, or is.
    pub(super) fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let commit = fs::read_to_string(self.folder.join("refs").join(&self.revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_hex(commit))
    }

    /// Looks a file up without asking the hub.
    pub(super) fn find(&self, file: &str) -> Cached {
        let Some(commit) = self.commit() else { return Cached::Unknown };
        let Ok(path) = inside(&self.links.pointer_path(&commit), file) else { return Cached::Unknown };
        match path.exists() {
            true => Cached::File(path),
            false if self.missing_mark(&commit, file).is_ok_and(|mark| mark.exists()) => Cached::KnownMissing,
            false => Cached::Unknown,
        }
    }

    /// Path of the content with this checksum, which may not be there yet.
    pub(super) fn blob(&self, checksum: &str) -> PathBuf {
        self.folder.join("blobs").join(checksum)
    }

    /// Gives a content its name in a commit, and the revision its commit.
    pub(super) fn link(&self, commit: &str, file: &str, checksum: &str) -> io::Result<PathBuf> {
        self.remember(commit)?;
        let path = inside(&self.links.pointer_path(commit), file)?;
        make_parent(&path)?;
        let up = "../".repeat(Path::new(file).components().count() + 1);
        let target = PathBuf::from(format!("{up}blobs/{checksum}"));
        if fs::read_link(&path).is_ok_and(|present| present == target) {
            return Ok(path);
        }
        // Others may link the same name, and readers must find it at every moment.
        let unnamed = unique_sibling(&path);
        #[cfg(unix)]
        std::os::unix::fs::symlink(&target, &unnamed)?;
        // Links need a right of their own on Windows.
        #[cfg(not(unix))]
        fs::copy(self.blob(checksum), &unnamed)?;
        fs::rename(&unnamed, &path).inspect_err(|_| drop(fs::remove_file(&unnamed)))?;
        Ok(path)
    }

    /// Notes that the commit has no such file, so that nobody needs the hub to know.
    pub(super) fn note_missing(&self, commit: &str, file: &str) -> io::Result<()> {
        self.remember(commit)?;
        let mark = self.missing_mark(commit, file)?;
        make_parent(&mark)?;
        fs::write(mark, "")
    }

    /// The lock of a content, held until it is dropped, or nothing while another process holds it. A file
    /// system without locks gives it at once.
    pub(super) fn lock(&self, checksum: &str) -> io::Result<Option<File>> {
        let path = self.locks.join(format!("{checksum}.lock"));
        make_parent(&path)?;
        let file = File::create(path)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(None),
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(file)),
        }
    }

    fn remember(&self, commit: &str) -> io::Result<()> {
        // Written again, it would be empty for a moment to a reader.
        let is_known = self.commit().as_deref() == Some(commit);
        if is_known || is_commit(&self.revision) { Ok(()) } else { self.links.create_ref(commit) }
    }

    fn missing_mark(&self, commit: &str, file: &str) -> io::Result<PathBuf> {
        inside(&self.folder.join(".no_exist").join(commit), file)
    }
}

/// The path of a file in a folder. Names are checked where they come from; one that could lead out on this system is
/// refused here once more, because a file is written there.
fn inside(folder: &Path, file: &str) -> io::Result<PathBuf> {
    let mut parts = Path::new(file).components();
    match !file.is_empty() && parts.all(|part| matches!(part, Component::Normal(_))) {
        true => Ok(folder.join(file)),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "the file's name leads out of the cache")),
    }
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// A path in the same folder that nobody else uses, in this process or another.
fn unique_sibling(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && is_hex(revision)
}

/// Names of commits and contents become parts of paths, so that nothing else may stand in them.
pub(super) fn is_hex(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leads_out_of_the_cache_is_neither_linked_nor_noted_nor_found() {
        let folder = tempfile::tempdir().unwrap();
        let (commit, checksum) = ("a".repeat(40), "1".repeat(40));
        let cache = RepositoryCache::new(&Cache::new(folder.path().to_owned()), "somebody/tiny", &commit);
        let absolute = folder.path().join("outside").display().to_string();
        for file in ["../../outside", "/outside", "a/../../../outside", "", "..", &absolute] {
            assert!(cache.link(&commit, file, &checksum).is_err(), "{file}");
            assert!(cache.note_missing(&commit, file).is_err(), "{file}");
            assert!(matches!(cache.find(file), Cached::Unknown), "{file}");
        }
        assert!(cache.note_missing(&commit, "1_Pooling/config.json").is_ok());
        assert!(matches!(cache.find("1_Pooling/config.json"), Cached::KnownMissing));
    }

    #[test]
    fn a_name_linked_by_many_is_there_at_every_moment() {
        let folder = tempfile::tempdir().unwrap();
        let commit = "a".repeat(40);
        let cache = RepositoryCache::new(&Cache::new(folder.path().to_owned()), "somebody/tiny", "main");
        let checksums = ["1", "2"].map(|digit| digit.repeat(40));
        fs::create_dir_all(cache.folder.join("blobs")).unwrap();
        checksums.iter().for_each(|checksum| fs::write(cache.blob(checksum), "").unwrap());
        std::thread::scope(|scope| {
            for checksum in checksums.iter().cycle().take(4) {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let path = cache.link(&commit, "config.json", checksum).unwrap();
                        assert!(path.exists());
                    }
                });
            }
        });
        let names = fs::read_dir(cache.links.pointer_path(&commit)).unwrap();
        assert_eq!(names.count(), 1, "nothing is left beside it");
    }
}
