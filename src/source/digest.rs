//! The digest of a model's files, by which the nodes of a cluster know that they have the same model: SHA-256 of names, lengths
//! and contents. Of a large file, which is weights, it reads its beginning, with the names and shapes of the tensors, and
//! pieces all over it: other weights differ nearly everywhere, and a few numbers that differ between two pieces are not seen.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use model_actors::LoadContext;
use sha2::{Digest as _, Sha256};

use super::open;
use crate::error::{Error, Result};

/// Name of this way to digest files: digests of another one are of other models.
const SCHEME: &str = "candle-1";
/// Longest file that is read whole.
const WHOLE: u64 = 64 << 20;
/// Number of pieces of a larger file that are read, the first and the last bytes among them, and their length.
const PIECES: u64 = 128;
const PIECE: u64 = 64 << 10;

/// Digest of these files, by their names in the model, and of the settings that change what it computes.
pub(super) fn of(files: &BTreeMap<String, PathBuf>, settings: &str, context: &LoadContext) -> Result<String> {
    let mut hash = Sha256::new();
    add_text(&mut hash, settings);
    for (name, path) in files {
        if context.should_stop() {
            return Err(Error::Stopped);
        }
        add_text(&mut hash, name);
        open(path)
            .and_then(|file| add_file(&mut hash, file))
            .map_err(|error| Error::unreadable(path, &error))?;
    }
    let mut digest = format!("{SCHEME}:");
    for byte in hash.finalize() {
        // Writing to a text cannot fail.
        let _ = write!(digest, "{byte:02x}");
    }
    Ok(digest)
}

fn add_text(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text);
}

fn add_file(hash: &mut Sha256, mut file: File) -> io::Result<()> {
    let length = file.metadata()?.len();
    hash.update(length.to_le_bytes());
    let mut bytes = Vec::new();
    for (from, count) in pieces(length) {
        bytes.clear();
        file.seek(SeekFrom::Start(from))?;
        (&mut file).take(count).read_to_end(&mut bytes)?;
        hash.update(&bytes);
    }
    Ok(())
}

/// Places and lengths of the pieces that are read of a file of so many bytes.
fn pieces(length: u64) -> impl Iterator<Item = (u64, u64)> {
    let (count, step, last) = match length <= WHOLE {
        true => (length.div_ceil(PIECE), PIECE, length.saturating_sub(1) / PIECE * PIECE),
        false => (PIECES, (length - PIECE) / (PIECES - 1), length - PIECE),
    };
    (0..count).map(move |index| (if index + 1 < count { index * step } else { last }, PIECE))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use model_actors::ModelId;

    use super::*;

    #[test]
    fn a_small_file_is_read_whole_and_a_large_one_from_its_beginning_to_its_end() {
        let small: Vec<_> = pieces(PIECE + 1).collect();
        assert_eq!(small, [(0, PIECE), (PIECE, PIECE)]);
        assert_eq!(pieces(0).count(), 0);
        let length = WHOLE + 1;
        let large: Vec<_> = pieces(length).collect();
        assert_eq!(
            (large.len() as u64, large[0], large[PIECES as usize - 1]),
            (PIECES, (0, PIECE), (length - PIECE, PIECE))
        );
        assert!(large.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn names_contents_lengths_and_settings_count_and_places_do_not() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let context = LoadContext::detached(&ModelId::from("m"));
        let digest = |folder: usize, files: &[(&str, &str)], settings: &str| {
            let files = files.iter().map(|(name, content)| {
                let path = folders[folder].path().join(name);
                std::fs::write(&path, content).unwrap();
                ((*name).to_owned(), path)
            });
            of(&files.collect(), settings, &context).unwrap()
        };
        let one = digest(0, &[("a", "1"), ("b", "23")], "");
        assert_eq!(one, digest(1, &[("a", "1"), ("b", "23")], ""));
        assert!(one.starts_with("candle-1:") && one.len() < 128, "{one}");
        let others = [
            digest(0, &[("a", "1"), ("b", "24")], ""),
            digest(0, &[("a", "12"), ("b", "3")], ""),
            digest(0, &[("a", "1"), ("c", "23")], ""),
            digest(0, &[("a", "1")], ""),
            digest(0, &[("a", "1"), ("b", "23")], "eight_bit"),
        ];
        assert!(!others.contains(&one));
    }
}
