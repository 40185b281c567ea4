//! The settings with which a node joins a cluster, and the TLS of its connections.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::config::check_first_name;
use crate::error::{Error, Result};

/// Least number of bytes of a cluster's secret.
const LEAST_SECRET: usize = 16;
/// Maximum number of addresses of peers.
const MOST_PEERS: usize = 64;

/// Membership of a node in a cluster.
///
/// ```
/// use model_actors::ClusterConfig;
/// let secret = "sixteen bytes or more of chance";
/// let config = ClusterConfig::new("models", "left", secret, ([127, 0, 0, 1], 7001).into())
///     .with_peers(["127.0.0.1:7002".to_owned()]);
/// assert!(config.validate().is_ok());
/// let open = ClusterConfig::new("models", "left", secret, ([0, 0, 0, 0], 7001).into());
/// assert!(open.validate().is_err(), "off loopback there is no cluster without TLS");
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct ClusterConfig {
    /// Name of the cluster. Nodes of other clusters are strangers.
    pub cluster: String,
    /// Name of this node, which no other of the cluster has.
    pub node: String,
    /// Address that it listens on.
    pub listen: SocketAddr,
    /// Addresses of peers that it connects to, `host:port`; the host is what the certificate of the peer has to be for. Of
    /// two nodes one has to know the other.
    pub peers: Vec<String>,
    /// TLS of all connections. Without it, all addresses are of loopback.
    pub tls: Option<ClusterTls>,
    secret: String,
}

crate::setters! { ClusterConfig {
    with_peers(peers: impl IntoIterator<Item = String>) Vec::from_iter;
    with_tls(tls: impl Into<Option<ClusterTls>>) Into::into;
} }

impl ClusterConfig {
    /// A node without peers and without TLS. The secret is the same on all nodes of the cluster.
    pub fn new(
        cluster: impl Into<String>,
        node: impl Into<String>,
        secret: impl Into<String>,
        listen: SocketAddr,
    ) -> Self {
        let (cluster, node, secret) = (cluster.into(), node.into(), secret.into());
        Self { cluster, node, listen, peers: Vec::new(), tls: None, secret }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names the first one that is out of range.
    pub fn validate(&self) -> Result<()> {
        check_first_name("cluster", &self.cluster)?;
        check_first_name("node", &self.node)?;
        let refuse = |setting: &'static str, reason: String| {
            Err(Error::InvalidConfig { setting: setting.into(), reason })
        };
        if self.node.contains(['#', '@']) {
            return refuse("node", "the name of a node has neither # nor @".to_owned());
        }
        if self.secret.len() < LEAST_SECRET {
            return refuse("secret", format!("has at least {LEAST_SECRET} bytes"));
        }
        if self.peers.len() > MOST_PEERS {
            return refuse("peers", format!("are at most {MOST_PEERS}"));
        }
        if let Some(peer) = self.peers.iter().find(|peer| host_of(peer).is_none()) {
            return refuse("peers", format!("{peer:?} is no host and port, as in 10.0.0.2:7000"));
        }
        let is_open = !self.listen.ip().is_loopback() || !self.peers.iter().all(|peer| is_loopback(peer));
        if is_open && self.tls.is_none() {
            let reason = "needed, as an address is not of loopback: what goes there can be read and changed on its way";
            return refuse("tls", reason.to_owned());
        }
        Ok(())
    }

    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }
}

impl fmt::Debug for ClusterConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, node, listen, peers, tls, secret: _ } = self;
        let parts = (cluster, node, listen, peers, tls.is_some());
        write!(formatter, "ClusterConfig {parts:?}")
    }
}

/// The host of `host:port`.
pub(crate) fn host_of(peer: &str) -> Option<&str> {
    let (host, port) = peer.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then_some(host)
}

fn is_loopback(peer: &str) -> bool {
    let address = peer.parse::<SocketAddr>();
    address.map_or_else(|_| host_of(peer) == Some("localhost"), |address| address.ip().is_loopback())
}

/// TLS of a node: TLS 1.3, where both ends show a certificate that one of the authorities has signed.
///
/// ```no_run
/// use model_actors::ClusterTls;
/// use std::path::Path;
/// let tls = ClusterTls::from_pem(Path::new("node.pem"), Path::new("node.key"), Path::new("authority.pem"))?;
/// # Ok::<(), model_actors::Error>(())
/// ```
#[derive(Clone)]
pub struct ClusterTls {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

impl ClusterTls {
    /// Reads the node's certificate with what it is signed by, its key, and the authorities that sign the peers', as PEM.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a file that cannot be read or does not fit.
    pub fn from_pem(certificates: &Path, key: &Path, authorities: &Path) -> Result<Self> {
        let chain = read_certificates(certificates)?;
        let read = || PrivateKeyDer::from_pem_file(key).map_err(|error| refused(key, &error));
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(authorities)? {
            roots.add(certificate).map_err(|error| refused(authorities, &error))?;
        }
        let (roots, provider) = (Arc::new(roots), Arc::new(default_provider()));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| refused(authorities, &error))?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| refused(certificates, &error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), read()?)
            .map_err(|error| refused(certificates, &error))?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| refused(certificates, &error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, read()?)
            .map_err(|error| refused(certificates, &error))?;
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

impl fmt::Debug for ClusterTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ClusterTls")
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| refused(path, &error))?;
    let read: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| refused(path, &error))?;
    match read.is_empty() {
        true => Err(refused(path, &"it has no certificate")),
        false => Ok(read),
    }
}

fn refused(path: &Path, reason: &dyn fmt::Display) -> Error {
    Error::InvalidConfig { setting: "tls".into(), reason: format!("{}: {reason}", path.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "a secret of the tests";

    #[test]
    fn an_address_off_loopback_needs_tls() {
        let listening = |listen: &str, peer: &str| {
            let config = ClusterConfig::new("c", "n", SECRET, listen.parse().unwrap());
            config.with_peers([peer.to_owned()]).validate()
        };
        assert!(listening("127.0.0.1:0", "localhost:1").is_ok());
        assert!(listening("[::1]:0", "[::1]:1").is_ok());
        for (listen, peer) in
            [("0.0.0.0:0", "127.0.0.1:1"), ("127.0.0.1:0", "10.0.0.1:1"), ("127.0.0.1:0", "far:1")]
        {
            assert!(listening(listen, peer).unwrap_err().to_string().contains("tls"), "{listen} {peer}");
        }
        assert!(listening("127.0.0.1:0", "127.0.0.1").unwrap_err().to_string().contains("host and port"));
    }

    #[test]
    fn the_secret_is_long_and_is_not_told() {
        let config = |secret: &str| ClusterConfig::new("c", "n", secret, ([127, 0, 0, 1], 0).into());
        assert!(config("short").validate().is_err());
        assert!(!format!("{:?}", config(SECRET)).contains(SECRET));
    }
}
