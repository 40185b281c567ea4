//! Checksums as the hub names contents by them: SHA-256 of large files, git's own of the others.

use sha2::Digest as _;

/// A content's checksum, computed while it arrives.
pub(super) struct Checksum {
    expected: String,
    hasher: Hasher,
}

enum Hasher {
    Sha256(sha2::Sha256),
    Git(sha1::Sha1),
    /// Of a server that names contents in another way.
    Unknown,
}

impl Checksum {
    /// For a content of so many bytes; git's checksum covers the length.
    pub(super) fn new(expected: &str, length: u64) -> Self {
        let hasher = match expected.len() {
            64 => Hasher::Sha256(sha2::Sha256::new()),
            40 => Hasher::Git(sha1::Sha1::new_with_prefix(format!("blob {length}\0"))),
            _ => Hasher::Unknown,
        };
        Self { expected: expected.to_ascii_lowercase(), hasher }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.hasher {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Git(hasher) => hasher.update(bytes),
            Hasher::Unknown => {}
        }
    }

    /// True if the content is the expected one, also where it is named in an unknown way.
    pub(super) fn matches(self) -> bool {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        match self.hasher {
            Hasher::Sha256(hasher) => hex(&hasher.finalize()) == self.expected,
            Hasher::Git(hasher) => hex(&hasher.finalize()) == self.expected,
            Hasher::Unknown => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(expected: &str, content: &[u8]) -> bool {
        let mut checksum = Checksum::new(expected, content.len() as u64);
        content.chunks(3).for_each(|piece| checksum.update(piece));
        checksum.matches()
    }

    #[test]
    fn contents_are_told_by_both_kinds_of_checksum() {
        // From `printf hello | sha256sum` and `printf hello | git hash-object --stdin`.
        let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let git = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0";
        for expected in [sha256, git, &git.to_uppercase()] {
            assert!(matches(expected, b"hello") && !matches(expected, b"hallo"), "{expected}");
        }
        assert!(matches("0123456789abcdef", b"anything"));
    }
}
