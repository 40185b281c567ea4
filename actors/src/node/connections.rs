//! The connections of this node. ractor_cluster's node server keeps the sessions; what it leaves open is done here. Peers
//! are accepted on a port of our own, where a handshake has a time and a number, and does not hold up the next one. What
//! has not shown the secret in time is closed. Peers are dialled, again after a backoff. A session whose peer has fallen
//! silent is stopped. The speakers of the shared pools are children here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::node::{NodeConnectionMode, NodeServerSessionInformation};
use ractor_cluster::{
    IncomingEncryptionMode, NetworkStream, NodeEventSubscription, NodeServer, NodeServerMessage,
    NodeSessionMessage,
};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::dialing::Dial;
use super::messages::{MembershipMessage, SpeakerArguments};
use super::spawn::SpawnSpeaker;
use crate::cluster::{ClusterConfig, ClusterTls, host_of};
use crate::error::{Error, Result};
use crate::id::Time;
use crate::progress::Clock;
use crate::status::SystemStatus;

/// Time for a connection to be made, and for a peer to show that it knows the secret.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Number of connections that are being accepted.
const HANDSHAKES: usize = 64;
/// Time between two looks at what is to be dialled or closed.
const LOOK: Duration = Duration::from_millis(100);
/// Largest frame that a peer may send: a letter with a piece, or with the models of a pool.
const MAX_FRAME: u64 = 2 << 20;

/// True while a node lives in this process.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The place of this process's node, given back when it is dropped.
pub(crate) struct NodeSlot(());

impl NodeSlot {
    /// Takes the place.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if a node lives in this process.
    pub(crate) fn take() -> Result<Self> {
        match TAKEN.swap(true, Ordering::AcqRel) {
            false => Ok(Self(())),
            true => Err(Error::InvalidConfig {
                setting: "cluster".into(),
                reason: "this process is a node of a cluster already, and can be one only".to_owned(),
            }),
        }
    }
}

impl Drop for NodeSlot {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

/// Arguments that a membership starts with.
#[derive(Clone)]
pub(crate) struct MembershipArguments {
    pub(crate) config: Arc<ClusterConfig>,
    pub(crate) clock: Clock,
    pub(crate) status: watch::Sender<SystemStatus>,
    pub(crate) speakers: Vec<Arc<dyn SpawnSpeaker>>,
    /// The address that it listens on, once it does.
    pub(crate) address: Arc<OnceLock<SocketAddr>>,
}

/// Passes the node server's events on.
struct Subscription(ActorRef<MembershipMessage>);

impl NodeEventSubscription for Subscription {
    fn node_session_opened(&self, session: NodeServerSessionInformation) {
        let _ = self.0.send_message(MembershipMessage::Opened(session));
    }

    fn node_session_disconnected(&self, session: NodeServerSessionInformation) {
        let _ = self.0.send_message(MembershipMessage::Disconnected(session));
    }

    fn node_session_authenticated(&self, session: NodeServerSessionInformation) {
        let _ = self.0.send_message(MembershipMessage::Authenticated(session));
    }
}

struct Session {
    actor: ActorRef<NodeSessionMessage>,
    node_id: u64,
    /// The node, once it has shown the secret.
    node: Option<String>,
    since: Time,
}

/// The actor of a node's connections and speakers.
pub(crate) struct Membership;

pub(crate) struct MembershipState {
    arguments: MembershipArguments,
    server: ActorRef<NodeServerMessage>,
    sessions: HashMap<ActorId, Session>,
    dials: Vec<Dial>,
    /// The address that a dialled connection leads to, and the one that was dialled.
    dialled: HashMap<String, String>,
    speakers: Vec<Option<ActorCell>>,
    acceptor: AbortHandle,
}

impl Drop for MembershipState {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

impl Actor for Membership {
    type Msg = MembershipMessage;
    type State = MembershipState;
    type Arguments = MembershipArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: MembershipArguments,
    ) -> std::result::Result<Self::State, ActorProcessingErr> {
        let config = &arguments.config;
        let encryption = match &config.tls {
            Some(tls) => IncomingEncryptionMode::Tls(TlsAcceptor::from(tls.server.clone())),
            None => IncomingEncryptionMode::Raw,
        };
        // Its own listener cannot be left out. It is on a port of loopback that nobody is told of, under the same rules.
        let server = NodeServer::new(
            0,
            config.secret().to_owned(),
            config.node.clone(),
            config.node.clone(),
            Some(encryption),
            Some(NodeConnectionMode::Isolated),
        )
        .with_listen_addr([127, 0, 0, 1].into())
        .with_max_inbound_frame_size(MAX_FRAME);
        let (server, _) = NodeServer::spawn_linked(None, server, (), myself.get_cell()).await?;
        let subscription = Box::new(Subscription(myself.clone()));
        server.send_message(NodeServerMessage::SubscribeToEvents {
            id: "membership".to_owned(),
            subscription,
        })?;
        // Started again, it is reached where it was.
        let listen = arguments.address.get().copied().unwrap_or(config.listen);
        let listener = TcpListener::bind(listen).await?;
        let address = *arguments.address.get_or_init(|| listener.local_addr().unwrap_or(listen));
        tracing::info!(node = config.node, %address, "the node listens for peers");
        let acceptor = tokio::spawn(accept(listener, config.tls.clone(), server.clone())).abort_handle();
        let dials = config.peers.iter().cloned().map(Dial::new).collect();
        let mut state = MembershipState {
            server,
            sessions: HashMap::new(),
            dials,
            dialled: HashMap::new(),
            speakers: vec![None; arguments.speakers.len()],
            acceptor,
            arguments,
        };
        for index in 0..state.speakers.len() {
            state.start_speaker(&myself, index).await?;
        }
        myself.send_interval(LOOK, || MembershipMessage::Look);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> std::result::Result<(), ActorProcessingErr> {
        match message {
            MembershipMessage::Opened(session) => state.opened(session),
            MembershipMessage::Authenticated(session) => state.authenticated(&session),
            MembershipMessage::Disconnected(session) => state.disconnected(&session),
            MembershipMessage::Dialled(address, outcome) => state.dialled(address, outcome),
            MembershipMessage::Hangup(node_id) => state.stop_session(node_id),
            MembershipMessage::Look => state.look(&myself),
            MembershipMessage::RestartSpeaker(index) => state.start_speaker(&myself, index).await?,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> std::result::Result<(), ActorProcessingErr> {
        let (actor, reason) = match event {
            SupervisionEvent::ActorFailed(actor, error) => (actor, error.to_string()),
            SupervisionEvent::ActorTerminated(actor, _, reason) => (actor, reason.unwrap_or_default()),
            _ => return Ok(()),
        };
        let is_it =
            |cell: &Option<ActorCell>| cell.as_ref().is_some_and(|cell| cell.get_id() == actor.get_id());
        match state.speakers.iter().position(is_it) {
            Some(index) => {
                tracing::error!(reason, "the speaker of a pool ended and is started again");
                state.speakers[index] = None;
                myself.send_after(LOOK, move || MembershipMessage::RestartSpeaker(index));
                Ok(())
            }
            None if actor.get_id() == state.server.get_id() => {
                Err(format!("the node server ended: {reason}").into())
            }
            None => Ok(()),
        }
    }
}

impl MembershipState {
    fn now(&self) -> Time {
        self.arguments.clock.now()
    }

    async fn start_speaker(
        &mut self,
        myself: &ActorRef<MembershipMessage>,
        index: usize,
    ) -> std::result::Result<(), ActorProcessingErr> {
        let Some(speaker) = self.arguments.speakers.get(index).cloned() else { return Ok(()) };
        let arguments = SpeakerArguments {
            cluster: self.arguments.config.cluster.as_str().into(),
            node: self.arguments.config.node.as_str().into(),
            status: self.arguments.status.clone(),
            membership: myself.clone(),
        };
        self.speakers[index] = Some(speaker.spawn(arguments, myself.get_cell()).await?);
        Ok(())
    }

    fn opened(&mut self, session: NodeServerSessionInformation) {
        let since = self.now();
        let NodeServerSessionInformation { actor, node_id, .. } = session;
        self.sessions.insert(actor.get_id(), Session { actor, node_id, node: None, since });
    }

    fn authenticated(&mut self, session: &NodeServerSessionInformation) {
        let Some(name) = session.peer_name.as_ref().map(|name| node_name(&name.name)) else { return };
        if let Some(known) = self.sessions.get_mut(&session.actor.get_id()) {
            known.node = Some(name.clone());
        }
        if !session.is_server
            && let Some(dial) = self.dial_of(&session.peer_addr)
        {
            dial.node = Some(name);
            dial.is_up();
        }
    }

    fn disconnected(&mut self, session: &NodeServerSessionInformation) {
        let (now, random) = (self.now(), fastrand::f64());
        let known = self.sessions.remove(&session.actor.get_id());
        let name = session.peer_name.as_ref().map(|name| node_name(&name.name));
        if known.is_some_and(|known| known.node.is_none()) {
            tracing::warn!(
                address = session.peer_addr,
                "a connection ended before its peer had shown that it is of this cluster: it does not know the secret, \
                 speaks another protocol, or is connected already"
            );
        }
        if !session.is_server
            && let Some(dial) = self.dial_of(&session.peer_addr)
        {
            dial.node = name.or(dial.node.take());
            dial.is_down(now, random);
            self.dialled.remove(&session.peer_addr);
        }
    }

    fn dial_of(&mut self, peer: &str) -> Option<&mut Dial> {
        let address = self.dialled.get(peer)?;
        self.dials.iter_mut().find(|dial| dial.address == *address)
    }

    fn dialled(&mut self, address: String, outcome: Result<SocketAddr, String>) {
        let (now, random) = (self.now(), fastrand::f64());
        let Some(dial) = self.dials.iter_mut().find(|dial| dial.address == address) else { return };
        match outcome {
            Ok(peer) => {
                self.dialled.insert(peer.to_string(), address);
            }
            Err(reason) => {
                tracing::info!(address, reason, "a peer cannot be reached; it is tried again");
                dial.is_down(now, random);
            }
        }
    }

    fn stop_session(&self, node_id: u64) {
        let sessions = self.sessions.values().filter(|session| session.node_id == node_id);
        sessions.for_each(|session| session.actor.stop(Some("its peer is silent".to_owned())));
    }

    fn look(&mut self, myself: &ActorRef<MembershipMessage>) {
        let now = self.now();
        let strangers = self.sessions.values().filter(|session| session.node.is_none());
        for session in strangers.filter(|session| now.since(session.since) > HANDSHAKE) {
            session.actor.stop(Some("it did not show the secret in time".to_owned()));
        }
        let connected =
            |node: &str| self.sessions.values().any(|session| session.node.as_deref() == Some(node));
        for dial in self.dials.iter_mut().filter(|dial| dial.is_due(now, connected)) {
            dial.dials(now);
            let (address, myself) = (dial.address.clone(), myself.clone());
            let (tls, server) = (self.arguments.config.tls.clone(), self.server.clone());
            tokio::spawn(async move {
                let dialled = tokio::time::timeout(HANDSHAKE, connect(&address, tls.as_ref())).await;
                let outcome = dialled.unwrap_or_else(|_| Err("it does not answer".to_owned()));
                let (outcome, stream) = match outcome {
                    Ok((peer, stream)) => (Ok(peer), Some(stream)),
                    Err(reason) => (Err(reason), None),
                };
                // The address is known before the session tells of it.
                let _ = myself.send_message(MembershipMessage::Dialled(address, outcome));
                if let Some(stream) = stream {
                    let _ =
                        server.send_message(NodeServerMessage::ConnectionOpened { stream, is_server: false });
                }
            });
        }
    }
}

/// The name of a node as it joined: ractor_cluster has it twice.
fn node_name(name: &str) -> String {
    name.split_once('@').map_or(name, |(node, _)| node).to_owned()
}

/// Accepts connections until the task is ended.
async fn accept(listener: TcpListener, tls: Option<ClusterTls>, server: ActorRef<NodeServerMessage>) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        // Never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(LOOK).await;
                continue;
            }
        };
        let (tls, server) = (tls.clone(), server.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE, welcome(stream, peer, tls)).await {
                Ok(Ok(stream)) => {
                    let stream = Box::new(stream);
                    let _ =
                        server.send_message(NodeServerMessage::ConnectionOpened { stream, is_server: true });
                }
                Ok(Err(error)) => {
                    tracing::warn!(%peer, %error, "a connection was refused: no TLS of this cluster")
                }
                Err(_) => tracing::warn!(%peer, "a connection was refused: it took too long to begin"),
            }
            drop(place);
        });
    }
}

async fn welcome(
    stream: TcpStream,
    peer_addr: SocketAddr,
    tls: Option<ClusterTls>,
) -> std::io::Result<NetworkStream> {
    stream.set_nodelay(true)?;
    let local_addr = stream.local_addr()?;
    Ok(match tls {
        None => NetworkStream::Raw { peer_addr, local_addr, stream },
        Some(tls) => {
            let stream = TlsAcceptor::from(tls.server).accept(stream).await?;
            NetworkStream::TlsServer { peer_addr, local_addr, stream }
        }
    })
}

/// Connects to a peer.
async fn connect(
    address: &str,
    tls: Option<&ClusterTls>,
) -> std::result::Result<(SocketAddr, Box<NetworkStream>), String> {
    let told = |error: std::io::Error| error.to_string();
    let mut failed = "its name has no address".to_owned();
    for peer_addr in lookup_host(address).await.map_err(told)? {
        let stream = match TcpStream::connect(peer_addr).await {
            Ok(stream) => stream,
            Err(error) => {
                failed = told(error);
                continue;
            }
        };
        stream.set_nodelay(true).map_err(told)?;
        let local_addr = stream.local_addr().map_err(told)?;
        let stream = match tls {
            None => NetworkStream::Raw { peer_addr, local_addr, stream },
            Some(tls) => {
                let host = host_of(address).unwrap_or_default().to_owned();
                let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
                let stream =
                    TlsConnector::from(tls.client.clone()).connect(name, stream).await.map_err(told)?;
                NetworkStream::TlsClient { peer_addr, local_addr, stream }
            }
        };
        return Ok((peer_addr, Box::new(stream)));
    }
    Err(failed)
}
