//! The messages of the actors of a node, and what a speaker starts with.

use std::net::SocketAddr;
use std::sync::Arc;

use ractor::message::{BoxedDowncastErr, SerializedMessage};
use ractor::{ActorRef, Message as RactorMessage};
use ractor_cluster::node::NodeServerSessionInformation;
use tokio::sync::{oneshot, watch};

use super::guests::Says;
use crate::capability::Capability;
use crate::catalogue::Registered;
use crate::cluster::router::{Boot, CallKey, RequestKey, Run};
use crate::cluster::{Body, ElsewhereCall, Letter};
use crate::error::{Cause, Result};
use crate::id::RequestId;
use crate::job::Accepted;
use crate::scheduler::CallId;
use crate::status::SystemStatus;
use crate::wire::{self, WireError};

/// Messages of the membership actor.
pub(crate) enum MembershipMessage {
    Opened(NodeServerSessionInformation),
    Authenticated(NodeServerSessionInformation),
    Disconnected(NodeServerSessionInformation),
    /// A dialled connection stands, or could not be made.
    Dialled(String, Result<SocketAddr, String>),
    /// A peer is silent: close the session with it.
    Hangup(u64),
    Look,
    RestartSpeaker(usize),
}

crate::impl_message!(MembershipMessage);

/// Arguments that a speaker starts with.
#[derive(Clone)]
pub(crate) struct SpeakerArguments {
    pub(crate) cluster: Arc<str>,
    pub(crate) node: Arc<str>,
    pub(crate) status: watch::Sender<SystemStatus>,
    pub(crate) membership: ActorRef<MembershipMessage>,
}

/// Messages of a speaker. Those of peers come as letters.
pub(crate) enum SpeakerMessage<C: Capability> {
    Letter(Result<Letter, WireError>),
    Submit {
        model: Arc<Registered<C>>,
        accepted: Accepted<C>,
    },
    Cancel(RequestId),
    /// The request has gone out, or could not be written.
    Sent(Run, RequestKey, Result<(), Cause>),
    Read(RequestKey, u64),
    Guest(Boot, Run, Says),
    /// A call on a model that other nodes alone serve.
    Call(ElsewhereCall<C>),
    CallerGone(CallId),
    /// A peer's call is answered, with a body unless the peer is gone.
    Hosted(Boot, CallKey, Option<Body>),
    Tick,
    Leave,
    /// Tell once there are no guests.
    Settle(oneshot::Sender<()>),
}

impl<C: Capability> RactorMessage for SpeakerMessage<C> {
    /// This is what makes its actor known to peers.
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        // Letters alone go to other nodes.
        Err(BoxedDowncastErr)
    }

    fn deserialize(message: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        match message {
            SerializedMessage::Cast { args, .. } => Ok(Self::Letter(wire::decode(&args))),
            _ => Err(BoxedDowncastErr),
        }
    }
}
