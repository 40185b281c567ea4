//! Pools as children of the system, without their capability in the type: each can be started again,
//! commanded and recognised. Deciding when is left to the system.

use std::pin::Pin;
use std::sync::Arc;

use ractor::{Actor, ActorCell, DerivedActorRef, SpawnErr};

use crate::capability::Capability;
use crate::client::PoolShared;
use crate::error::Error;
use crate::maintenance::PoolCommand;
use crate::pool::{Pool, PoolArguments, PoolMessage};

type Spawning<'a> =
    Pin<Box<dyn Future<Output = Result<(ActorCell, DerivedActorRef<PoolCommand>), SpawnErr>> + Send + 'a>>;

/// Starts the pool of one capability and opens or closes its gate. Implemented once, for every capability.
pub(crate) trait SpawnPool: Send + Sync {
    fn capability(&self) -> &'static str;
    fn spawn(&self, arguments: PoolArguments, system: ActorCell) -> Spawning<'_>;
    fn down(&self);
    fn close(&self, error: &Error);
    /// Names of the threads that have not ended, whether the pool runs or not.
    fn threads(&self) -> Vec<String>;
    fn threads_ended(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    /// Waits until the requests that were answered have been dropped.
    fn requests_dropped(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    /// Sets the gauges of its models to what they are without a pool.
    fn reset_gauges(&self);
}

impl<C: Capability> SpawnPool for Arc<PoolShared<C>> {
    fn capability(&self) -> &'static str {
        C::NAME
    }

    fn spawn(&self, arguments: PoolArguments, system: ActorCell) -> Spawning<'_> {
        Box::pin(async move {
            let (actor, _) = Pool::<C>::spawn_linked(
                arguments.name.clone(),
                Pool::new(self.gate.intake(), self.catalogue.clone(), self.roster.clone()),
                arguments,
                system,
            )
            .await?;
            let (cell, commands) = (actor.get_cell(), actor.get_derived());
            // Of what it has taken over it tells with its first message.
            let _ = actor.send_message(PoolMessage::Publish);
            self.gate.up(actor);
            Ok((cell, commands))
        })
    }

    fn down(&self) {
        self.gate.down();
    }

    fn close(&self, error: &Error) {
        // First the gate knows why, then those who wait for a slot are refused and ask it.
        self.gate.close(error);
        self.catalogue.close();
    }

    fn threads(&self) -> Vec<String> {
        self.roster.names()
    }

    fn threads_ended(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.roster.emptied())
    }

    fn requests_dropped(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.roster.drops.over())
    }

    fn reset_gauges(&self) {
        self.catalogue.reset_gauges();
    }
}

/// A pool and, while it runs, its actor.
pub(crate) struct PoolChild {
    spawn: Arc<dyn SpawnPool>,
    actor: Option<(ActorCell, DerivedActorRef<PoolCommand>)>,
}

impl PoolChild {
    pub(crate) fn new(spawn: Arc<dyn SpawnPool>) -> Self {
        Self { spawn, actor: None }
    }

    pub(crate) fn capability(&self) -> &'static str {
        self.spawn.capability()
    }

    pub(crate) async fn start(
        &mut self,
        arguments: PoolArguments,
        system: ActorCell,
    ) -> Result<DerivedActorRef<PoolCommand>, SpawnErr> {
        let (cell, commands) = self.spawn.spawn(arguments, system).await?;
        self.actor = Some((cell, commands.clone()));
        Ok(commands)
    }

    pub(crate) fn threads(&self) -> Vec<String> {
        self.spawn.threads()
    }

    pub(crate) async fn threads_ended(&self) {
        self.spawn.threads_ended().await;
    }

    pub(crate) async fn requests_dropped(&self) {
        self.spawn.requests_dropped().await;
    }

    pub(crate) fn reset_gauges(&self) {
        self.spawn.reset_gauges();
    }

    pub(crate) fn is(&self, actor: &ActorCell) -> bool {
        self.actor.as_ref().is_some_and(|(cell, _)| cell.get_id() == actor.get_id())
    }

    pub(crate) fn commands(&self) -> Option<&DerivedActorRef<PoolCommand>> {
        self.actor.as_ref().map(|(_, commands)| commands)
    }

    pub(crate) fn ended(&mut self) {
        self.actor = None;
        self.spawn.down();
        self.spawn.reset_gauges();
    }

    pub(crate) fn close(&self, error: &Error) {
        self.spawn.close(error);
    }
}
