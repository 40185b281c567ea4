//! Requests to the hub. The token goes to the configured server alone, and what fails for a passing reason is
//! tried again.

use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, ETAG, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode, Url};

use super::cache::is_hex;
use super::environment;
use super::errors::FileName;
use crate::error::Result;
use crate::http;
use crate::hub_settings::HubSettings;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before the second attempt; doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// Redirects from one address to the content.
const MAX_REDIRECTS: usize = 10;

const COMMIT: &str = "x-repo-commit";
/// Of content that lies on another server.
const LINKED_ETAG: &str = "x-linked-etag";
const LINKED_SIZE: &str = "x-linked-size";

/// A client of one server.
pub(super) struct Client {
    http: reqwest::Client,
    endpoint: Url,
    authorization: Option<HeaderValue>,
    retries: usize,
}

impl Client {
    /// # Errors
    /// The reason for which it cannot be set up, in words.
    pub(super) fn new(settings: &HubSettings) -> std::result::Result<Self, String> {
        let http = http::client()?
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|error| http::innermost(&error.without_url()))?;
        Ok(Self {
            http,
            endpoint: environment::endpoint(settings)?,
            authorization: environment::authorization(settings),
            retries: settings.retries,
        })
    }

    /// Address of a file's content.
    pub(super) fn file(&self, repository: &str, revision: &str, file: &str) -> Url {
        let names = repository.split('/').chain(["resolve", revision]).chain(file.split('/'));
        self.address(names)
    }

    /// Address of what the hub says about a repository, or about a revision of it.
    pub(super) fn about(&self, repository: &str, revision: Option<&str>) -> Url {
        let names = ["api", "models"].into_iter().chain(repository.split('/'));
        let revision = revision.map(|revision| ["revision", revision]);
        self.address(names.chain(revision.into_iter().flatten()))
    }

    /// An address under the endpoint. No name can leave its place: what has a meaning in an address is
    /// escaped.
    fn address<'a>(&self, names: impl Iterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        // Addresses of http and https have a path.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(names);
        }
        url
    }

    /// Asks what is at an address, without the content itself: until an answer tells the content's checksum,
    /// also where it redirects to another server for the content.
    pub(super) async fn head(&self, url: Url, name: FileName<'_>) -> Result<Response> {
        self.follow(Method::HEAD, url, name, |to, answer| {
            self.is_own(to) && text(answer.headers(), COMMIT).is_none()
        })
        .await
    }

    /// Asks for the content.
    pub(super) async fn get(&self, url: Url, name: FileName<'_>) -> Result<Response> {
        self.follow(Method::GET, url, name, |_, _| true).await
    }

    /// Follows redirects as long as they are wanted.
    async fn follow(
        &self,
        method: Method,
        mut url: Url,
        name: FileName<'_>,
        wanted: impl Fn(&Url, &Response) -> bool,
    ) -> Result<Response> {
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.send(&method, &url).await.map_err(|error| name.unanswered(error))?;
            match redirect(&url, &answer) {
                Some(to) if wanted(&to, &answer) => url = to,
                _ => return Ok(answer),
            }
        }
        Err(name.failed(format!("more than {MAX_REDIRECTS} redirects")))
    }

    async fn send(&self, method: &Method, url: &Url) -> reqwest::Result<Response> {
        let mut pause = FIRST_PAUSE;
        for _ in 0..self.retries {
            match self.send_once(method, url).await {
                Ok(answer) if is_passing(answer.status()) => {}
                Err(error) if error.is_connect() || error.is_timeout() || error.is_request() => {}
                answer => return answer,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
        self.send_once(method, url).await
    }

    async fn send_once(&self, method: &Method, url: &Url) -> reqwest::Result<Response> {
        // Compressed on the way, the content would have another length than announced.
        let mut headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
        if self.is_own(url)
            && let Some(authorization) = &self.authorization
        {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        self.http.request(method.clone(), url.clone()).headers(headers).send().await
    }

    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }
}

/// Target of a redirect.
fn redirect(from: &Url, answer: &Response) -> Option<Url> {
    let location = answer.headers().get(LOCATION).filter(|_| answer.status().is_redirection())?;
    let is_allowed = |url: &Url| match url.scheme() {
        "https" => true,
        // What was asked for in secret is not fetched in the open.
        "http" => from.scheme() == "http",
        _ => false,
    };
    from.join(location.to_str().ok()?).ok().filter(is_allowed)
}

fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// The commit that an answer speaks of.
pub(super) fn commit(answer: &Response) -> Option<String> {
    text(answer.headers(), COMMIT).filter(|commit| is_hex(commit)).map(str::to_owned)
}

/// A content, as the hub announces it.
pub(super) struct Announced {
    pub(super) commit: String,
    pub(super) checksum: String,
    pub(super) length: Option<u64>,
}

impl Announced {
    /// # Errors
    /// [`TransferFailed`](crate::Error::TransferFailed) if the answer lacks a part or holds what is no checksum.
    pub(super) fn read(answer: &Response, name: FileName<'_>) -> Result<Self> {
        let headers = answer.headers();
        let checksum = text(headers, LINKED_ETAG).or_else(|| text(headers, ETAG.as_str()));
        let checksum = checksum.map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
        let checksum = checksum.filter(|tag| is_hex(tag)).ok_or_else(|| name.failed("no checksum came"))?;
        let commit = commit(answer).ok_or_else(|| name.failed("no commit came"))?;
        // That of a redirect is its own.
        let own = text(headers, "content-length").filter(|_| answer.status().is_success());
        let length: Option<u64> = text(headers, LINKED_SIZE).or(own).and_then(|length| length.parse().ok());
        length.map_or(Ok(()), |length| name.check_length(length))?;
        Ok(Self { commit, checksum: checksum.to_owned(), length })
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
