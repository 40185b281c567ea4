//! Images by URL: forbidden addresses are not opened. Each refusal is tested against a server of this
//! machine, with the control that the same address is opened where the application allows it.
#![cfg(feature = "image-urls")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use candle_actors::{
    Bytes, Error, ErrorKind, ImageInput, ImageLimits, ImageSettings, ImageSource, Picture, UrlSettings,
};
use common::root;
use common::web::{Answer, WebServer};

fn png() -> Vec<u8> {
    std::fs::read(root().join("tests/fixtures/images/rgb.png")).unwrap()
}

fn pixels() -> Vec<u8> {
    std::fs::read(root().join("tests/fixtures/images/rgb.png.rgb")).unwrap()
}

/// Settings with long timeouts for a busy machine; each test of a timeout shortens its own.
fn patient() -> UrlSettings {
    let long = Duration::from_secs(60);
    UrlSettings::default().with_connect_timeout(long).with_read_timeout(long).with_total_timeout(long)
}

fn allowing(networks: &[&str]) -> UrlSettings {
    let allowed_networks = networks.iter().map(|network| network.parse().unwrap()).collect();
    patient().with_allowed_networks(allowed_networks)
}

async fn fetch(urls: UrlSettings, address: &str) -> Result<Picture, Error> {
    let limits = ImageLimits::default().with_encoded(Bytes(64 << 10));
    let settings = ImageSettings::default().with_limits(limits).with_urls(urls);
    ImageInput::new(settings).unwrap().picture(ImageSource::Url(address.to_owned())).await
}

fn is_refused(result: &Result<Picture, Error>) -> bool {
    matches!(result, Err(Error::AddressRefused { .. }))
}

/// A name that is unknown and one that leads inside are told alike.
fn leads_nowhere(result: &Result<Picture, Error>) -> bool {
    let retried = |error: &Error| matches!(error.kind(), ErrorKind::Unavailable { .. });
    matches!(result, Err(error @ Error::DownloadFailed { reason, .. }) if reason.contains("unknown") && retried(error))
}

/// Addresses that lead to no image.
fn said(result: Result<Picture, Error>) -> String {
    result.map_or_else(|error| error.to_string(), |_| "a picture".to_owned())
}

#[tokio::test]
async fn this_machine_is_refused_unless_the_application_allows_it() {
    let server = WebServer::start("127.0.0.1", |_| vec![("/a.png", Answer::Whole(png()))]);
    let port = server.port();
    let forms = [
        format!("http://127.0.0.1:{port}/a.png"),
        format!("http://2130706433:{port}/a.png"),
        format!("http://0x7f000001:{port}/a.png"),
        format!("http://0177.0.0.1:{port}/a.png"),
        format!("http://127.1:{port}/a.png"),
        format!("http://[::ffff:127.0.0.1]:{port}/a.png"),
        format!("http://[::ffff:7f00:1]:{port}/a.png"),
        format!("http://localhost:{port}/a.png"),
        format!("http://LocalHost:{port}/a.png"),
    ];
    for address in &forms {
        let result = fetch(patient(), address).await;
        let is_name = address.to_lowercase().contains("localhost");
        let expected = if is_name { leads_nowhere(&result) } else { is_refused(&result) };
        assert!(expected, "{address}: {}", said(result));
    }
    assert_eq!(server.connections(), 0);
    // The control: the same server, allowed.
    for address in &forms {
        let picture = fetch(allowing(&["127.0.0.0/8"]), address).await;
        assert_eq!(
            picture.map(|picture| picture.rgb).map_err(|error| error.to_string()),
            Ok(pixels()),
            "{address}"
        );
    }
    assert_eq!(server.connections(), forms.len());
}

#[tokio::test]
async fn a_host_name_that_resolves_to_this_machine_is_refused() {
    let server = WebServer::start("127.0.0.1", |_| vec![("/a.png", Answer::Whole(png()))]);
    let address = format!("http://localhost:{}/a.png", server.port());
    // Other networks are allowed, and do not help.
    let result = fetch(allowing(&["10.0.0.0/8", "127.0.0.2/32"]), &address).await;
    assert!(leads_nowhere(&result), "{}", said(result));
    let inside = said(result);
    assert_eq!(server.connections(), 0);
    // Nobody can ask by the errors which names there are inside.
    let unknown = fetch(patient(), "http://no-such-host.invalid/a.png").await;
    assert!(leads_nowhere(&unknown), "{}", said(unknown));
    let own = format!("http://localhost:{}/", server.port());
    assert_eq!(
        inside.replace(&own, "ADDRESS/"),
        said(unknown).replace("http://no-such-host.invalid/", "ADDRESS/")
    );
}

#[tokio::test]
async fn private_networks_and_metadata_services_are_refused_at_once() {
    let hosts = [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[::]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:7f00:1::]",
        "224.0.0.1",
    ];
    for host in hosts {
        let result = fetch(patient(), &format!("http://{host}/latest/meta-data/")).await;
        assert!(is_refused(&result), "{host}: {}", said(result));
    }
}

#[tokio::test]
async fn a_redirect_is_checked_as_the_first_address_is() {
    let inner = WebServer::start("127.0.0.1", |_| vec![("/secret", Answer::Whole(png()))]);
    let port = inner.port();
    let outer = WebServer::start("127.0.0.2", |own| {
        vec![
            ("/number", Answer::Redirect(format!("http://127.0.0.1:{port}/secret"))),
            ("/decimal", Answer::Redirect(format!("http://2130706433:{port}/secret"))),
            ("/name", Answer::Redirect(format!("http://localhost:{port}/secret"))),
            ("/no-scheme", Answer::Redirect(format!("//127.0.0.1:{port}/secret"))),
            ("/twice", Answer::Redirect(format!("{own}/name"))),
            ("/file", Answer::Redirect("file:///etc/passwd".to_owned())),
            ("/ftp", Answer::Redirect("ftp://example.org/a.png".to_owned())),
            ("/metadata", Answer::Redirect("http://169.254.169.254/latest/meta-data/".to_owned())),
        ]
    });
    for path in ["/number", "/decimal", "/name", "/no-scheme", "/twice", "/file", "/ftp", "/metadata"] {
        let result = fetch(allowing(&["127.0.0.2/32"]), &outer.url(path)).await;
        let is_name = ["/name", "/twice"].contains(&path);
        let expected = if is_name { leads_nowhere(&result) } else { is_refused(&result) };
        assert!(expected, "{path}: {}", said(result));
    }
    assert_eq!(inner.connections(), 0);
    // The control.
    for path in ["/number", "/decimal", "/name", "/no-scheme", "/twice"] {
        let result = fetch(allowing(&["127.0.0.0/8"]), &outer.url(path)).await;
        assert_eq!(said(result), "a picture", "{path}");
    }
    assert_eq!(inner.connections(), 5);
}

#[tokio::test]
async fn redirects_end() {
    let server = WebServer::start("127.0.0.1", |_| {
        vec![
            ("/loop", Answer::Redirect("/loop".to_owned())),
            ("/there", Answer::Redirect("/back".to_owned())),
            ("/back", Answer::Redirect("/there".to_owned())),
            ("/3", Answer::Redirect("2".to_owned())),
            ("/2", Answer::Redirect("1?a=b".to_owned())),
            ("/1", Answer::Redirect("/a.png".to_owned())),
            ("/a.png", Answer::Whole(png())),
            ("/nowhere", Answer::RedirectToNowhere),
        ]
    });
    let settings = || allowing(&["127.0.0.1/32"]).with_redirects(3);
    for path in ["/loop", "/there"] {
        let before = server.requests().len();
        let result = fetch(settings(), &server.url(path)).await;
        assert!(is_refused(&result), "{path}: {}", said(result));
        assert_eq!(server.requests().len() - before, 4);
    }
    assert_eq!(said(fetch(settings(), &server.url("/3")).await), "a picture");
    let one_less = settings().with_redirects(2);
    assert!(is_refused(&fetch(one_less, &server.url("/3")).await));
    assert!(said(fetch(settings(), &server.url("/nowhere")).await).contains("redirects to nowhere"));
}

#[tokio::test]
async fn other_schemes_are_refused() {
    for address in ["file:///etc/passwd", "ftp://127.0.0.1/a.png", "data:image/png;base64,AAAA", "a.png", ""]
    {
        let result = fetch(allowing(&["0.0.0.0/0", "::/0"]), address).await;
        assert!(is_refused(&result), "{address}: {}", said(result));
    }
}

#[tokio::test]
async fn an_application_can_forbid_all_addresses() {
    let settings = ImageSettings::default().with_urls(None);
    let input = ImageInput::new(settings).unwrap();
    let result = input.picture(ImageSource::Url("http://example.org/a.png".to_owned())).await;
    assert!(is_refused(&result), "{}", said(result));
}

#[tokio::test]
async fn a_silent_server_ends_with_the_read_timeout() {
    let server =
        WebServer::start("127.0.0.1", |_| vec![("/silent", Answer::Silent), ("/stalled", Answer::Stalled)]);
    let settings = || allowing(&["127.0.0.1/32"]).with_read_timeout(Duration::from_millis(50));
    for path in ["/silent", "/stalled"] {
        let words = said(fetch(settings(), &server.url(path)).await);
        assert!(words.contains("nothing came for too long"), "{path}: {words}");
    }
}

/// Listener that never accepts and whose queue is full, so the kernel answers no further connection. Other
/// systems refuse such connections, or take more than they are asked to.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_attempt_to_connect_ends_with_the_connect_timeout() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    let is_full = |queue: &mut Vec<_>| {
        let connection = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200));
        connection.map(|connection| queue.push(connection)).is_err()
    };
    while !is_full(&mut queue) {
        assert!(queue.len() < 1000, "the queue has no end");
    }
    let settings = allowing(&["127.0.0.1/32"]).with_connect_timeout(Duration::from_millis(50));
    let words = said(fetch(settings, &format!("http://{address}/a.png")).await);
    assert!(words.contains("no connection in time"), "{words}");
}

#[tokio::test]
async fn a_slow_body_ends_with_the_total_timeout() {
    let server = WebServer::start("127.0.0.1", |_| {
        vec![("/trickle", Answer::Trickle), ("/stalled", Answer::Stalled), ("/silent", Answer::Silent)]
    });
    let settings = || allowing(&["127.0.0.1/32"]).with_total_timeout(Duration::from_millis(100));
    for path in ["/trickle", "/stalled", "/silent"] {
        let words = said(fetch(settings(), &server.url(path)).await);
        assert!(words.contains("not complete after 100 ms"), "{path}: {words}");
    }
}

#[tokio::test]
async fn the_size_limit_holds_whatever_the_server_says() {
    let server = WebServer::start("127.0.0.1", |_| {
        vec![
            ("/endless", Answer::Endless),
            ("/claims", Answer::Claims(1 << 40)),
            ("/much", Answer::NoLength(vec![0; 65 << 10])),
            ("/a.png", Answer::NoLength(png())),
        ]
    });
    for path in ["/endless", "/claims", "/much"] {
        let result = fetch(allowing(&["127.0.0.1/32"]), &server.url(path)).await;
        let too_large = matches!(result, Err(Error::ImageTooLarge { limit: 65_536, .. }));
        assert!(too_large, "{path}: {}", said(result));
    }
    assert_eq!(said(fetch(allowing(&["127.0.0.1/32"]), &server.url("/a.png")).await), "a picture");
}

#[tokio::test]
async fn broken_answers_are_named() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = WebServer::start("127.0.0.1", |_| {
        vec![
            ("/cut", Answer::Cut(png())),
            ("/garbage", Answer::Garbage),
            ("/gone", Answer::Status(410)),
            ("/empty", Answer::Whole(Vec::new())),
            ("/page", Answer::Whole(b"<html>not found</html>".to_vec())),
            ("/text", Answer::CalledText(png())),
        ]
    });
    let cases = [
        (server.url("/cut"), "broke off"),
        (server.url("/garbage"), "broke off"),
        (server.url("/gone"), "status 410"),
        (server.url("/nothing"), "status 404"),
        (server.url("/empty"), "empty"),
        (server.url("/page"), "HTML"),
        (server.url("/text"), "a picture"),
        (format!("http://{closed}/"), "no connection"),
        ("http://no-such-host.invalid/".to_owned(), "no connection"),
    ];
    for (address, named) in cases {
        let words = said(fetch(allowing(&["127.0.0.1/32"]), &address).await);
        assert!(words.contains(named), "{address}: {words}");
    }
}

#[tokio::test]
async fn credentials_go_to_their_own_server_alone() {
    let other = WebServer::start("127.0.0.2", |_| vec![("/a.png", Answer::Whole(png()))]);
    let target = other.url("/a.png");
    let first = WebServer::start("127.0.0.1", |_| vec![("/a.png", Answer::Redirect(target))]);
    let address = format!("http://user:password@127.0.0.1:{}/a.png?signature=secret", first.port());
    assert_eq!(said(fetch(allowing(&["127.0.0.0/8"]), &address).await), "a picture");
    let (asked, forwarded) =
        (first.requests().concat().to_lowercase(), other.requests().concat().to_lowercase());
    assert!(asked.contains("authorization: basic") && asked.contains("signature=secret"), "{asked}");
    assert!(!forwarded.contains("authorization") && !forwarded.contains("referer"), "{forwarded}");
    assert!(!forwarded.contains("secret") && !forwarded.contains("cookie"), "{forwarded}");
}
