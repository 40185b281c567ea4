//! Settings for the Hugging Face hub, as plain data. They exist without the feature `hub` too, so that no signature
//! changes with it; the transfer itself is left to `hub`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::secrets::shown_endpoint;

/// Settings for the Hugging Face hub. What is not set comes from the environment, as for other tools: `HF_ENDPOINT`,
/// `HF_HUB_CACHE` or `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`.
///
/// ```
/// use candle_actors::HubSettings;
/// let settings = HubSettings::default()
///     .with_offline(true)
///     .with_token("hf_secret")
///     .with_endpoint("https://user:secret@example.org");
/// assert!(!format!("{settings:?}").contains("secret"));
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubSettings {
    /// Address of the server. A user and a password in it are not shown.
    pub endpoint: Option<String>,
    /// Cache folder, in the layout that other tools share.
    pub cache: Option<PathBuf>,
    /// Access token.
    pub token: Option<HubToken>,
    /// Takes files from the cache alone.
    pub offline: bool,
    /// Longest time without a byte, after which a transfer ends with an error; 60 s.
    pub stall_limit: Duration,
    /// Further attempts after a request has failed for a passing reason; 3.
    pub retries: usize,
}

model_actors::setters! { HubSettings {
    with_endpoint(endpoint: impl Into<String>) some;
    with_cache(cache: impl Into<PathBuf>) some;
    with_token(token: impl Into<HubToken>) some;
    with_offline(offline: bool);
    with_stall_limit(stall_limit: Duration);
    with_retries(retries: usize);
} }

fn some<T>(value: impl Into<T>) -> Option<T> {
    Some(value.into())
}

impl Default for HubSettings {
    fn default() -> Self {
        Self {
            endpoint: None,
            cache: None,
            token: None,
            offline: false,
            stall_limit: Duration::from_secs(60),
            retries: 3,
        }
    }
}

impl fmt::Debug for HubSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, cache, token, offline, stall_limit, retries } = self;
        formatter
            .debug_struct("HubSettings")
            .field("endpoint", &endpoint.as_deref().map(shown_endpoint))
            .field("cache", cache)
            .field("token", token)
            .field("offline", offline)
            .field("stall_limit", stall_limit)
            .field("retries", retries)
            .finish()
    }
}

/// Access token of the hub, which no log and no error shows.
///
/// ```
/// let token = candle_actors::HubToken::from("hf_secret");
/// assert_eq!(format!("{token:?}"), "HubToken(…)");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct HubToken(String);

impl HubToken {
    /// The token itself, for the request to the hub alone.
    #[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "only the hub is shown a token"))]
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl From<&str> for HubToken {
    fn from(token: &str) -> Self {
        Self(token.to_owned())
    }
}

impl From<String> for HubToken {
    fn from(token: String) -> Self {
        Self(token)
    }
}

impl fmt::Debug for HubToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("HubToken(…)")
    }
}
