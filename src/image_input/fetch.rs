//! Images over http and https: one client, which connects to no address that `networks` refuses. A name's
//! addresses are filtered where the client looks them up, so that what was checked is what is connected to;
//! numbers and redirects are checked by `address` before each request, which is why redirects are followed
//! here and not by the client. It takes no proxy from the environment, because a proxy would look names up
//! itself, past the filter.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, LOCATION};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::{Error, Result};
use crate::http::{self, innermost};
use crate::image_input::address::{self, origin};
use crate::image_input::checks::refused;
use crate::image_input::networks;
use crate::image_input::settings::UrlSettings;
use crate::limits::ImageLimits;

/// Most look-ups of names at once. One that hangs keeps its thread for as long as the system's resolver
/// tries.
const MAX_LOOKUPS: usize = 16;
/// Tenths of the time to connect that the look-up of a name may take, so that one that hangs is told as such.
const LOOKUP_TENTHS: u32 = 9;

/// The client, opened with the first image.
pub(crate) struct Fetcher {
    settings: UrlSettings,
    downloads: Arc<Semaphore>,
    client: OnceLock<Client>,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Fetcher").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Fetcher {
    pub(crate) fn new(settings: &UrlSettings) -> Option<Self> {
        let downloads = Arc::new(Semaphore::new(settings.downloads));
        Some(Self { downloads, settings: settings.clone(), client: OnceLock::new() })
    }

    /// Number of images that may be fetched at once.
    pub(crate) fn downloads(&self) -> usize {
        self.settings.downloads
    }

    /// Longest wait of [`Self::leave`].
    pub(crate) fn patience(&self) -> Duration {
        self.settings.total_timeout
    }

    /// Refuses an address that is not allowed, before its name is looked up.
    ///
    /// # Errors
    /// [`Error::AddressRefused`].
    pub(crate) fn check(&self, text: &str) -> Result<()> {
        address::parse(text, &self.settings.allowed_networks).map(drop)
    }

    /// Permits to fetch so many images of a request, taken all at once, so that none waits for another's
    /// while it has a part.
    ///
    /// # Errors
    /// [`Error::DownloadFailed`].
    pub(crate) async fn leave(&self, images: usize) -> Result<OwnedSemaphorePermit> {
        let permits = images.min(self.settings.downloads) as u32;
        let permits = Arc::clone(&self.downloads).acquire_many_owned(permits);
        let after = self.patience();
        let late =
            |_| failed("any address".to_owned(), format!("other downloads took {} ms", after.as_millis()));
        let permit = tokio::time::timeout(after, permits).await.map_err(late)?;
        permit.map_err(|_| Error::Stopped)
    }

    /// Fetches the bytes at an address, for which the caller holds a permit.
    ///
    /// # Errors
    /// [`Error::AddressRefused`], [`Error::DownloadFailed`], [`Error::ImageTooLarge`].
    pub(crate) async fn fetch(&self, text: &str, limits: &ImageLimits) -> Result<Vec<u8>> {
        let url = address::parse(text, &self.settings.allowed_networks)?;
        let from = origin(&url);
        let after = self.settings.total_timeout;
        let work = async {
            let (url, response) = self.follow(url).await?;
            read(&url, response, limits.encoded.0).await
        };
        let late = |_| failed(from, format!("it was not complete after {} ms", after.as_millis()));
        tokio::time::timeout(after, work).await.map_err(late)?
    }

    /// Follows redirects to the first other response.
    async fn follow(&self, mut url: Url) -> Result<(Url, Response)> {
        let client = self.client()?;
        for _ in 0..=self.settings.redirects {
            let response = client.get(url.clone()).header(ACCEPT, "image/*").send().await;
            let response = response.map_err(|error| name_error(&url, error))?;
            match response.status() {
                StatusCode::OK => return Ok((url, response)),
                status if status.is_redirection() => {
                    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                    let no_location = || failed(origin(&url), "it redirects to nowhere".to_owned());
                    url = address::redirect(
                        &url,
                        location.ok_or_else(no_location)?,
                        &self.settings.allowed_networks,
                    )?;
                }
                status => {
                    return Err(failed(origin(&url), format!("it answered with status {}", status.as_u16())));
                }
            }
        }
        let reason = format!("more than {} redirects led to it", self.settings.redirects);
        Err(refused(&origin(&url), &reason))
    }

    fn client(&self) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let resolver = FilteringResolver {
            allowed: self.settings.allowed_networks.clone().into(),
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            longest: self.settings.connect_timeout / 10 * LOOKUP_TENTHS,
        };
        let failed = |reason| failed("any address".to_owned(), reason);
        let client = http::client()
            .map_err(failed)?
            .dns_resolver(Arc::new(resolver))
            .no_proxy()
            .connect_timeout(self.settings.connect_timeout)
            .read_timeout(self.settings.read_timeout)
            // An idle connection would outlive what it was checked for, and the runtime that it was made on.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| failed(innermost(&error.without_url())))?;
        Ok(self.client.get_or_init(|| client))
    }
}

/// Reads the body, at most to the limit. A declared length over it ends the transfer early.
async fn read(url: &Url, mut response: Response, limit: u64) -> Result<Vec<u8>> {
    let too_large = |found| Error::ImageTooLarge { what: "bytes".into(), found, limit };
    if let Some(length) = response.content_length().filter(|length| *length > limit) {
        return Err(too_large(length));
    }
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| name_error(url, error))? {
        let found = bytes.len() as u64 + piece.len() as u64;
        if found > limit {
            return Err(too_large(found));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

fn name_error(url: &Url, error: reqwest::Error) -> Error {
    let error = error.without_url();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        if cause.is::<LeadsNowhere>() {
            return failed(origin(url), LEADS_NOWHERE.to_owned());
        }
        source = cause.source();
    }
    let reason = match &error {
        error if error.is_timeout() && error.is_connect() => "no connection in time".to_owned(),
        error if error.is_timeout() => "nothing came for too long".to_owned(),
        error if error.is_connect() => format!("no connection: {}", innermost(error)),
        error => format!("the transfer broke off: {}", innermost(error)),
    };
    failed(origin(url), reason)
}

fn failed(address: String, reason: String) -> Error {
    Error::DownloadFailed { address, reason }
}

/// One error for a name that is unknown, one that leads to networks that are not allowed, and one that cannot be looked up
/// at present: callers could otherwise ask which names there are inside. It is worth another attempt, since trouble of the
/// resolver is no fault of theirs.
const LEADS_NOWHERE: &str = "there is no connection to it: its name cannot be looked up, is unknown, or leads only to \
                             networks that the application has to allow";

/// Error for a name that has no address that may be connected to.
#[derive(Debug, thiserror::Error)]
#[error("the name leads to no address that may be connected to")]
struct LeadsNowhere;

/// Looks names up and gives only the addresses that may be connected to.
struct FilteringResolver {
    allowed: Arc<[IpNet]>,
    lookups: Arc<Semaphore>,
    /// Longest look-up, the wait for its turn included.
    longest: Duration,
}

impl Resolve for FilteringResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (allowed, lookups, longest) =
            (Arc::clone(&self.allowed), Arc::clone(&self.lookups), self.longest);
        let looked_up = async move {
            let permit = lookups.acquire_owned().await?;
            let (answer, found) = oneshot::channel();
            // A thread of its own: the system's resolver cannot be interrupted, and a runtime waits for its
            // threads.
            std::thread::Builder::new().name("image-lookup".to_owned()).spawn(move || {
                let addresses = (name.as_str(), 0).to_socket_addrs();
                drop(permit);
                // Nobody may wait any more.
                drop(answer.send(addresses));
            })?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(found.await?.map_err(|_| LeadsNowhere)?)
        };
        Box::pin(async move {
            let found = tokio::time::timeout(longest, looked_up).await.map_err(|_| LeadsNowhere)??;
            let may_be_reached = |found: &SocketAddr| networks::refusal(found.ip(), &allowed).is_none();
            let addresses: Vec<SocketAddr> = found.filter(may_be_reached).collect();
            match addresses.is_empty() {
                true => Err(LeadsNowhere.into()),
                false => Ok(Box::new(addresses.into_iter()) as Addrs),
            }
        })
    }
}
