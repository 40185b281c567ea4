//! The system's part in a cluster: starts the membership as one of its children, and takes leave of the peers before it
//! drains, so that they send their requests elsewhere.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::{Common, System, SystemActorState, SystemMessage};
use crate::cluster::ClusterConfig;
use crate::error::Result;
use crate::node::{Membership, MembershipArguments, NodeSlot, SpawnSpeaker};

/// Name of the membership among the children of the system.
pub(super) const CLUSTER: &str = "cluster";

/// Time for the results of guests to go out at the end, and for what was handed to the sessions: they tell nobody when
/// they have written it.
const FAREWELL: Duration = Duration::from_millis(500);
const WRITTEN: Duration = Duration::from_millis(50);

/// All that a node needs to join, and to join again.
#[derive(Clone)]
pub(crate) struct ClusterPlan {
    config: Arc<ClusterConfig>,
    speakers: Vec<Arc<dyn SpawnSpeaker>>,
    pub(super) address: Arc<OnceLock<SocketAddr>>,
    _slot: Arc<NodeSlot>,
}

impl ClusterPlan {
    pub(super) fn new(config: ClusterConfig, speakers: Vec<Arc<dyn SpawnSpeaker>>) -> Result<Self> {
        config.validate()?;
        let _slot = Arc::new(NodeSlot::take()?);
        Ok(Self { config: Arc::new(config), speakers, address: Arc::default(), _slot })
    }

    /// Refuses requests for other nodes' models from now on.
    pub(super) fn close(&self) {
        self.speakers.iter().for_each(|speaker| speaker.close());
    }
}

/// Starts the membership, if the system has one.
pub(super) async fn start_membership(
    common: &Common,
    myself: &ActorRef<SystemMessage>,
) -> std::result::Result<Option<ractor::ActorCell>, ActorProcessingErr> {
    let Some(plan) = &common.cluster else { return Ok(None) };
    let arguments = MembershipArguments {
        config: plan.config.clone(),
        clock: common.clock,
        status: common.status.clone(),
        speakers: plan.speakers.clone(),
        address: plan.address.clone(),
    };
    let name = common.name_of(CLUSTER);
    let (membership, _) = Membership::spawn_linked(name, Membership, arguments, myself.get_cell()).await?;
    Ok(Some(membership.get_cell()))
}

impl SystemActorState {
    /// Tells the peers that this node is about to go.
    pub(super) fn take_leave(&self) {
        let speakers = self.common.cluster.iter().flat_map(|plan| &plan.speakers);
        speakers.for_each(|speaker| speaker.leave());
    }

    /// Waits until the guests' results have gone out.
    pub(super) async fn see_guests_off(&self) {
        let Some(plan) = &self.common.cluster else { return };
        let settled = async {
            for speaker in &plan.speakers {
                speaker.settled().await;
            }
        };
        if tokio::time::timeout(FAREWELL, settled).await.is_err() {
            tracing::warn!("the node goes before all results have gone out to its peers");
        }
        tokio::time::sleep(WRITTEN).await;
    }
}

impl System {
    /// Address on which this node listens for its peers, if it is one of a cluster.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> model_actors::Result<()> {
    /// use model_actors::{ClusterConfig, PoolConfig, System, SystemConfig, TextEmbedding};
    /// let node = ClusterConfig::new("models", "left", "sixteen bytes or more of chance", ([127, 0, 0, 1], 0).into());
    /// let builder = System::builder(SystemConfig::default()).shared_pool::<TextEmbedding>(PoolConfig::default());
    /// let system = builder.cluster(node).start().await?;
    /// assert!(system.cluster_address().is_some_and(|address| address.port() > 0));
    /// # system.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn cluster_address(&self) -> Option<SocketAddr> {
        self.inner.common.cluster.as_ref()?.address.get().copied()
    }
}
