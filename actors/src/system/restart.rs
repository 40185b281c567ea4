//! The new starts of the system's children, once their backoff is over.

use ractor::{ActorProcessingErr, ActorRef};

use super::{Child, SystemActorState, SystemMessage, start_maintenance};
use crate::maintenance::eviction::PoolIndex;
use crate::maintenance::{MaintenanceMessage, PoolCommand};
use crate::status::SystemState;
use crate::telemetry::Event;

impl SystemActorState {
    pub(super) async fn restart(
        &mut self,
        myself: &ActorRef<SystemMessage>,
        child: Child,
    ) -> Result<(), ActorProcessingErr> {
        if self.state() != SystemState::Running {
            return Ok(());
        }
        let restarted = match child {
            Child::Maintenance => self.restart_maintenance(myself).await,
            #[cfg(feature = "cluster")]
            Child::Membership => {
                let started = super::membership::start_membership(&self.common, myself).await;
                started.map(|membership| self.membership = membership)
            }
            Child::Pool(index) => self.restart_pool(myself, index).await,
        };
        restarted.or_else(|error| self.restart_or_give_up(myself, child, &error.to_string()))
    }

    async fn restart_pool(
        &mut self,
        myself: &ActorRef<SystemMessage>,
        index: PoolIndex,
    ) -> Result<(), ActorProcessingErr> {
        self.start_pool(myself, index).await?;
        let capability = self.named(Child::Pool(index));
        self.common.events.report(Event::PoolRestarted { capability });
        Ok(())
    }

    async fn restart_maintenance(
        &mut self,
        myself: &ActorRef<SystemMessage>,
    ) -> Result<(), ActorProcessingErr> {
        self.maintenance = start_maintenance(&self.common, self.pools.len(), myself).await?;
        for (index, pool) in self.pools.iter().enumerate() {
            let Some(commands) = pool.commands() else { continue };
            let pool_up = MaintenanceMessage::PoolUp { pool: PoolIndex(index), commands: commands.clone() };
            let _ = self.maintenance.send_message(pool_up);
            let _ = commands.send_message(PoolCommand::MaintenanceRestarted(self.maintenance.clone()));
        }
        Ok(())
    }
}
