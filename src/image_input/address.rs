//! Checks addresses before anything is sent to them, those of redirects included. An address is a secret: its
//! user, its password, its query and its path may all give access to something, so that errors show
//! only its scheme, host and port.

use std::net::IpAddr;

use ipnet::IpNet;
use reqwest::Url;

use crate::error::Result;
use crate::image_input::checks::{NO_ADDRESS, refused};
use crate::image_input::networks;
use crate::limits::MAX_ADDRESS_BYTES as MAX_LENGTH;

/// Schemes that errors name. Any other may be the user or the key of an address that lacks its own.
const KNOWN: [&str; 7] = ["blob", "data", "file", "ftp", "ftps", "ws", "wss"];

/// Parses an http or https address whose host is a name or an IP address that may be connected to.
///
/// # Errors
/// [`AddressRefused`](crate::Error::AddressRefused).
pub(crate) fn parse(text: &str, allowed: &[IpNet]) -> Result<Url> {
    check_length(text)?;
    // The parser's reason is left out: nothing tells that it holds no part of the address.
    let url = Url::parse(text.trim()).map_err(|_| refused(NO_ADDRESS, "it is no http or https address"))?;
    check(url, allowed)
}

/// Resolves a redirect.
///
/// # Errors
/// As [`parse`].
pub(crate) fn redirect(from: &Url, location: &str, allowed: &[IpNet]) -> Result<Url> {
    check_length(location)?;
    let url = from
        .join(location)
        .map_err(|_| refused(&origin(from), "it redirects to something that is no address"))?;
    check(url, allowed)
}

fn check_length(text: &str) -> Result<()> {
    match text.len() {
        0..=MAX_LENGTH => Ok(()),
        length => {
            Err(refused("(too long)", &format!("it has {length} bytes; at most {MAX_LENGTH} are allowed")))
        }
    }
}

fn check(url: Url, allowed: &[IpNet]) -> Result<Url> {
    if !matches!(url.scheme(), "http" | "https") {
        // What stands behind such a scheme is not taken apart as it is meant, so that nothing of it is shown.
        let scheme = KNOWN.into_iter().find(|known| *known == url.scheme()).unwrap_or("another scheme");
        return Err(refused(NO_ADDRESS, &format!("only http and https are opened, and not {scheme}")));
    }
    // The parser has turned decimal, octal and hexadecimal forms into the usual one.
    if let Some(number) = host_number(&url)
        && let Some(what) = networks::refusal(number, allowed)
    {
        return Err(refused(
            &origin(&url),
            &format!("it leads to {what}, which the application has to allow"),
        ));
    }
    Ok(url)
}

fn host_number(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    inner.parse().ok()
}

/// The part of an address that may be shown: `https://example.org:8080/…`.
pub(crate) fn origin(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{}://{host}:{port}/…", url.scheme()),
        None => format!("{}://{host}/…", url.scheme()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn numbers_are_recognised_in_every_form() {
        let refused = [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://127.1/",
            "http://127.0.0.1./",
            "http://0/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://%31%32%37.0.0.1/",
            "http://①②⑦.0.0.1/",
            "http://169.254.169.254/latest/meta-data/",
            "http://user@127.0.0.1/",
            "http://1.1.1.1@127.0.0.1/",
            "http://0251.0376.0251.0376/",
            "http:127.0.0.1",
            "http:/\\127.0.0.1",
            "HTTP://127.0.0.1",
            "http://[::]/",
        ];
        for text in refused {
            let result = parse(text, &[]);
            assert!(matches!(result, Err(Error::AddressRefused { .. })), "{text}: {result:?}");
        }
        let loopback = ["127.0.0.0/8".parse().unwrap()];
        assert!(parse("http://2130706433/", &loopback).is_ok());
        assert!(
            parse("http://1.1.1.1/", &[]).is_ok() && parse("https://example.org:8443/a?b#c", &[]).is_ok()
        );
    }

    #[test]
    fn other_schemes_and_what_is_no_address_are_refused() {
        let refused = [
            "file:///etc/passwd",
            "ftp://example.org/",
            "gopher://example.org/",
            "data:image/png;base64,AAAA",
            "",
            "javascript:alert(1)",
            "//example.org/a.png",
            "example.org/a.png",
            "http://",
            "http://[::1",
            "/etc/passwd",
            "unix:/run/socket",
            "ws://example.org/",
            "http://exa mple.org/",
            "http://example.org:99999/",
        ];
        for text in refused {
            assert!(matches!(parse(text, &[]), Err(Error::AddressRefused { .. })), "{text}");
        }
        assert!(parse(&format!("http://example.org/{}", "a".repeat(MAX_LENGTH)), &[]).is_err());
    }

    #[test]
    fn a_redirect_is_held_to_the_same() {
        let from = parse("https://example.org/a/b?c", &[]).unwrap();
        let to = |location| redirect(&from, location, &[]).map(|url| url.to_string());
        assert_eq!(to("/d").unwrap(), "https://example.org/d");
        assert_eq!(to("http://example.com").unwrap(), "http://example.com/");
        let refused = [
            "file:///etc/passwd",
            "http://127.0.0.1/",
            "//127.0.0.1/",
            "//0x7f.1/",
            "ftp://example.org/",
            "http://",
        ];
        for location in refused {
            assert!(to(location).is_err(), "{location}");
        }
    }

    #[test]
    fn an_error_shows_where_an_address_leads_and_no_more() {
        let url = Url::parse("http://user:secret1@127.0.0.1:81/secret2?secret3#secret4").unwrap();
        let words = check(url, &[]).unwrap_err().to_string();
        assert!(words.contains("http://127.0.0.1:81/…") && !words.contains("secret"), "{words}");
        let mistyped = [
            "secret",
            "ht!tp://secret",
            "http://user:secret@[::1",
            "x:secret",
            "secret:x",
            "secret://example.org/",
            "htps://user:secret@example.org/secret?secret",
            "htp://secret",
            "https+x://secret@secret:80/?secret#secret",
            "ttps:user:secret@example.org",
            "file://secret/secret",
            "ftp://secret.example.org/",
        ];
        for text in mistyped {
            let error = parse(text, &[]).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
            let from = Url::parse("https://example.org/").unwrap();
            if let Err(error) = redirect(&from, text, &[]) {
                assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
            }
        }
        assert!(parse("ftp://example.org/", &[]).unwrap_err().to_string().contains("and not ftp"));
    }
}
