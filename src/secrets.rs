//! Redaction of addresses, which may hold a secret: user, password, query and path may all give access to
//! something, and an address may stand where a path or a name is meant.

use std::path::Path;

/// Text that is shown of an address in place of a path or a name.
pub(crate) const HIDDEN: &str = "(an address)";

/// The part of an endpoint that may be shown: `https://example.org:8080/…`.
pub(crate) fn shown_endpoint(address: &str) -> String {
    let shown = || {
        let (scheme, rest) = address.split_once("://")?;
        let authority = rest.split(['/', '\\', '?', '#']).next()?;
        let host = authority.rsplit('@').next()?;
        let (name, port) = host
            .rsplit_once(':')
            .filter(|(name, _)| !name.contains('[') || name.ends_with(']'))
            .unwrap_or((host, "0"));
        let is_host = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte))
            && port.bytes().all(|byte| byte.is_ascii_digit());
        (matches!(scheme, "http" | "https") && is_host).then(|| format!("{scheme}://{host}/…"))
    };
    shown().unwrap_or_else(|| HIDDEN.to_owned())
}

/// True for an address in the wrong place, such as `htps://user:password@example.org`. A path may have two
/// slashes in a row, but hardly behind a colon, nor a user or a query behind them.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_shown_without_what_it_holds() {
        let shown = [
            ("https://huggingface.co", "https://huggingface.co/…"),
            ("http://user:secret@127.0.0.1:80/secret?secret#secret", "http://127.0.0.1:80/…"),
            ("http://[::1]", "http://[::1]/…"),
            ("http://[::1]:81/secret", "http://[::1]:81/…"),
            ("user:secret@host", HIDDEN),
            ("secret://host", HIDDEN),
            ("https://user:secret", HIDDEN),
            ("https://user:secret/host@host", HIDDEN),
            ("https://se cret", HIDDEN),
            ("https://", HIDDEN),
            ("", HIDDEN),
        ];
        for (address, expected) in shown {
            assert_eq!(shown_endpoint(address), expected, "{address}");
        }
    }
}
