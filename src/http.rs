//! The HTTP client that models and images are fetched with. Sets up TLS and names failures; what may be
//! asked, and where a redirect may lead, is left to `hub` and `image_input`.

use std::sync::Arc;

use reqwest::ClientBuilder;
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;

/// A client that follows no redirect by itself and trusts the certificates that the operating system trusts.
///
/// # Errors
/// The reason for which TLS cannot be set up, in words.
pub(crate) fn client() -> Result<ClientBuilder, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(BuilderVerifierExt::with_platform_verifier)
        .map_err(|error| error.to_string())?
        .with_no_client_auth();
    Ok(ClientBuilder::new()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .http1_only()
        .referer(false)
        .user_agent(concat!("candle-actors/", env!("CARGO_PKG_VERSION"))))
}

/// The last cause in a chain of errors; the ones above it say no more than "request failed".
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
