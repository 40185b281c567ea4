//! Redaction of addresses, which may hold a secret: user, password, query and path may all give access to something, and
//! an address may stand where a path or a name is meant.

use std::path::Path;

use reqwest::Url;

/// Text that is shown of an address in place of a path or a name.
pub(crate) const HIDDEN: &str = "(an address)";

/// The part of an address that may be shown: `https://example.org:8080/…`.
pub(crate) fn origin(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{}://{host}:{port}/…", url.scheme()),
        None => format!("{}://{host}/…", url.scheme()),
    }
}

/// True for an address in the wrong place, such as `htps://user:password@example.org`. A path may have two slashes in a
/// row, but hardly behind a colon, nor a user or a query behind them.
pub(crate) fn looks_like_address(path: &Path) -> bool {
    let path = path.to_string_lossy();
    let holds_a_secret = path.contains(['@', '?']);
    let Some((scheme, rest)) = path.split_once(':') else { return path.starts_with("//") && holds_a_secret };
    let is_scheme =
        scheme.len() > 1 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    match scheme {
        _ if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") => true,
        _ if is_scheme => holds_a_secret || path.contains(":/"),
        // A drive of Windows.
        _ if scheme.len() == 1 && rest.starts_with(['/', '\\']) => false,
        _ => rest.contains('@') || (scheme.starts_with("//") && holds_a_secret),
    }
}
