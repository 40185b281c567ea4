//! Settings of the hub that an application leaves out, from the environment variables of the Hugging Face
//! tools.

use std::path::PathBuf;

use hf_hub::Cache;
use reqwest::Url;
use reqwest::header::HeaderValue;

use crate::hub_settings::HubSettings;

/// The hub, where no other server is named.
const ENDPOINT: &str = "https://huggingface.co";

/// The server's address.
///
/// # Errors
/// The reason for which it is none, in words that do not hold it.
pub(super) fn endpoint(settings: &HubSettings) -> Result<Url, String> {
    let named = settings.endpoint.clone().or_else(|| variable("HF_ENDPOINT"));
    let url = Url::parse(named.as_deref().unwrap_or(ENDPOINT)).ok();
    url.filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or_else(|| "the endpoint is no http or https address".to_owned())
}

/// The cache folder.
///
/// # Errors
/// The reason for which there is none, in words.
pub(super) fn cache(settings: &HubSettings) -> Result<Cache, String> {
    let named = settings.cache.clone();
    let named = named.or_else(|| variable("HF_HUB_CACHE").map(PathBuf::from));
    let named = named.or_else(|| variable("HUGGINGFACE_HUB_CACHE").map(PathBuf::from));
    match named {
        Some(folder) => Ok(Cache::new(folder)),
        None => default_cache().ok_or_else(|| "no folder for the cache is known; set HF_HOME".to_owned()),
    }
}

/// The access token as a header, from the settings, `HF_TOKEN`, the file that `HF_TOKEN_PATH` names or the
/// one of a login.
pub(super) fn authorization(settings: &HubSettings) -> Option<HeaderValue> {
    let token = match &settings.token {
        Some(token) => token.secret().to_owned(),
        None if is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") => return None,
        None => variable("HF_TOKEN").or_else(token_file).or_else(|| default_cache()?.token())?,
    };
    let mut header = HeaderValue::from_str(&format!("Bearer {}", token.trim())).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// True if the variable is set to yes.
pub(super) fn is_set(name: &str) -> bool {
    variable(name).is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str()))
}

fn token_file() -> Option<String> {
    let token = std::fs::read_to_string(variable("HF_TOKEN_PATH")?).ok()?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

fn default_cache() -> Option<Cache> {
    if variable("HF_HOME").is_none()
        && let Some(folder) = variable("XDG_CACHE_HOME")
    {
        return Some(Cache::new(PathBuf::from(folder).join("huggingface").join("hub")));
    }
    // Without a home, the library would panic.
    (variable("HF_HOME").is_some() || std::env::home_dir().is_some()).then(Cache::from_env)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
