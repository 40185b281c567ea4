//! Names of files, repositories and revisions. They come from others too, from a model's own files above all, and become
//! parts of paths and of addresses.

/// Maximum bytes of the name of a file, a repository or a revision.
pub(super) const MAX_PATH_BYTES: usize = 256;

/// True for names with slashes between them that are the same in a path, in an address and in the cache: none is empty or
/// leads up, and no character has a meaning of its own in one of these, on any system: a colon names a drive or a stream
/// of a file on Windows.
pub(super) fn is_plain(names: &str) -> bool {
    let is_allowed = |letter: char| !letter.is_control() && !"\\?#%:".contains(letter);
    let is_name = |name: &str| !matches!(name, "" | "." | "..") && name.chars().all(is_allowed);
    names.len() <= MAX_PATH_BYTES && names.split('/').all(is_name)
}

/// `owner/name`, and not a path.
pub(super) fn is_repository_name(text: &str) -> bool {
    text.split_once('/').is_some_and(|(owner, name)| is_name(owner) && is_name(name))
}

/// Letters, digits, `-`, `_` and `.`, which it does not begin with: an owner, or a repository of the hub's first days,
/// which had none. As on the hub, `..` and `--` are in none: the latter stands for the slash in the cache.
pub(super) fn is_name(text: &str) -> bool {
    let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let is_sound = !text.starts_with('.') && !text.contains("..") && !text.contains("--");
    (1..=MAX_PATH_BYTES).contains(&text.len()) && is_sound && text.chars().all(is_allowed)
}
