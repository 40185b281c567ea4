//! The speakers of all shared pools, whatever their capabilities: each can be started, and started again.

use std::pin::Pin;
use std::sync::Arc;

use ractor::{Actor, ActorCell, SpawnErr};
use tokio::sync::oneshot;

use super::messages::{SpeakerArguments, SpeakerMessage};
use super::speaker::Speaker;
use super::way::Way;
use crate::capability::Portable;
use crate::cluster::Elsewhere;

type Spawning<'a> = Pin<Box<dyn Future<Output = Result<ActorCell, SpawnErr>> + Send + 'a>>;

/// Starts the speaker of a pool. Implemented once, for every capability that can travel.
pub(crate) trait SpawnSpeaker: Send + Sync {
    fn spawn(self: Arc<Self>, arguments: SpeakerArguments, supervisor: ActorCell) -> Spawning<'static>;
    /// Tells the peers that this node is about to go.
    fn leave(&self);
    /// Waits until it has no guests.
    fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    /// Refuses requests from now on.
    fn close(&self);
}

impl<C: Portable> SpawnSpeaker for Way<C> {
    fn spawn(self: Arc<Self>, arguments: SpeakerArguments, supervisor: ActorCell) -> Spawning<'static> {
        Box::pin(async move {
            let Some(shared) = self.shared() else {
                return Err(SpawnErr::StartupFailed("its system is gone".into()));
            };
            let speaker = Speaker::new(self.clone(), shared);
            let (actor, _) = Speaker::spawn_linked(None, speaker, arguments, supervisor).await?;
            let cell = actor.get_cell();
            self.lead_to(actor);
            Ok(cell)
        })
    }

    fn leave(&self) {
        self.tell(SpeakerMessage::Leave);
    }

    fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let (done, settled) = oneshot::channel();
        self.tell(SpeakerMessage::Settle(done));
        // A speaker that is gone has no guests.
        Box::pin(async move { drop(settled.await) })
    }

    fn close(&self) {
        Elsewhere::close(self);
    }
}
