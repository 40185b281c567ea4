//! Whether what came is what was announced. hf-hub does not look, and a wrong file in its cache would stay there.

use std::path::Path;

use model_actors::{Bytes, LoadContext};
use sha2::Digest as _;

use super::HubFiles;
use crate::error::{Error, Result};

/// Bytes hashed at a time.
const PIECE: usize = 1 << 20;

impl HubFiles {
    /// hf-hub stores whatever comes, so what came is compared with what was announced: its length, and its checksum,
    /// which is the name that the cache gives to the content.
    pub(super) fn verify(
        &self,
        path: &Path,
        file: &str,
        announced: u64,
        context: &LoadContext,
    ) -> Result<()> {
        let (repository, name) = (self.name.clone(), file.to_owned());
        let unreadable = |source| Error::unreadable(path, &source);
        let actual = std::fs::metadata(path).map_err(unreadable)?.len();
        if announced > 0 && actual != announced {
            forget(path);
            let (expected, actual) = (Bytes(announced), Bytes(actual));
            return Err(Error::TransferTruncated { repository, file: name, expected, actual });
        }
        let Some(checksum) = stored_name(path) else { return Ok(()) };
        let matches = match checksum.len() {
            64 => hash(path, sha2::Sha256::new(), context)? == checksum,
            // Small files are named as git names them.
            40 => {
                let mut hasher = sha1::Sha1::new();
                hasher.update(format!("blob {actual}\0"));
                hash(path, hasher, context)? == checksum
            }
            _ => true,
        };
        if matches {
            return Ok(());
        }
        forget(path);
        Err(Error::ChecksumMismatch { repository, file: name })
    }
}

/// The name under which the cache keeps a file's content; nothing where it keeps copies instead of links.
fn stored_name(path: &Path) -> Option<String> {
    let name = std::fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned();
    name.chars().all(|letter| letter.is_ascii_hexdigit()).then_some(name)
}

/// Takes a file that proved wrong out of the cache, its content and its name.
fn forget(path: &Path) {
    for path in [std::fs::canonicalize(path).ok().as_deref(), Some(path)].into_iter().flatten() {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "a wrong file stays in the cache");
        }
    }
}

fn hash<D: sha2::Digest>(path: &Path, mut hasher: D, context: &LoadContext) -> Result<String> {
    use std::io::Read as _;
    let unreadable = |source| Error::unreadable(path, &source);
    let mut file = std::fs::File::open(path).map_err(unreadable)?;
    let mut piece = vec![0; PIECE];
    loop {
        let read = file.read(&mut piece).map_err(unreadable)?;
        if read == 0 {
            return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        if context.should_stop() {
            return Err(Error::Stopped);
        }
        context.advance(Bytes::ZERO);
        hasher.update(&piece[..read]);
    }
}
