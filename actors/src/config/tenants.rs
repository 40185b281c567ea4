//! Settings of the sharing of a model between tenants: the weight of each, and the bounds of their queues and of their
//! number. The sharing itself is left to the scheduler, that of slots to the model's entry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{QueueCapacity, check_name, require};
use crate::error::Result;
use crate::id::Tenant;
use crate::limits::{MAX_TENANT_WEIGHT, MAX_TENANTS};

/// The sharing of a model between the tenants that its requests are made for
/// ([`CallOptions::tenant`](crate::CallOptions::tenant)). While several have requests waiting, each is served cost
/// ([`Capability::cost`](crate::Capability::cost)) in proportion to its weight; what one does not use goes to the others.
/// Lane, priority and age order the requests of one tenant. Requests without a tenant count as those of one more tenant.
///
/// ```
/// use model_actors::{PoolConfig, QueueCapacity, Tenant, TenantConfig};
/// let tenants = TenantConfig::default()
///     .with_queue(QueueCapacity::new(40, 20))
///     .with_tenant_weight(Tenant::from("the chat window"), 4);
/// assert_eq!(tenants.weight_of(Some(&"the chat window".into())), 4);
/// assert_eq!(tenants.weight_of(Some(&"anybody else".into())), 1);
/// assert!(PoolConfig::default().with_tenants(tenants).validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TenantConfig {
    /// Weights of named tenants.
    pub weights: BTreeMap<Tenant, u32>,
    /// Weight of every other tenant, and of the requests without one.
    pub weight: u32,
    /// Capacities of one tenant's part of the two queues. `None`: it may fill them. A caller who finds its tenant's part
    /// full waits, or gets [`Error::Overloaded`](crate::Error::Overloaded), as with a full queue.
    pub queue: Option<QueueCapacity>,
    /// Maximum number of tenants that have requests in a lane at a time, those that wait for a slot included. One more
    /// gets [`Error::TooManyTenants`](crate::Error::TooManyTenants) at once. Requests without a tenant are not refused.
    pub most: usize,
}

impl Default for TenantConfig {
    fn default() -> Self {
        Self { weights: BTreeMap::new(), weight: 1, queue: None, most: 256 }
    }
}

setters! { TenantConfig {
    with_weights(weights: BTreeMap<Tenant, u32>);
    with_weight(weight: u32);
    with_queue(queue: impl Into<Option<QueueCapacity>>) Into::into;
    with_most(most: usize);
} }

impl TenantConfig {
    /// Gives one tenant a weight of its own.
    #[must_use]
    pub fn with_tenant_weight(mut self, tenant: Tenant, weight: u32) -> Self {
        self.weights.insert(tenant, weight);
        self
    }

    /// The weight of a tenant, or of the requests without one.
    pub fn weight_of(&self, tenant: Option<&Tenant>) -> u32 {
        tenant.and_then(|tenant| self.weights.get(tenant)).copied().unwrap_or(self.weight)
    }

    pub(super) fn validate(&self) -> Result<()> {
        let may_be = 1..=MAX_TENANT_WEIGHT;
        require(may_be.contains(&self.weight), "tenants.weight", "must be 1 to 1,000")?;
        require(self.weights.len() <= MAX_TENANTS, "tenants.weights", "must be at most 4,096")?;
        for (tenant, weight) in &self.weights {
            check_name("tenants.weights", tenant.as_str())?;
            require(may_be.contains(weight), "tenants.weights", "each must be 1 to 1,000")?;
        }
        let parts = self.queue.iter().flat_map(|queue| [queue.interactive, queue.batch]);
        let may_have = 1..=1 << 20;
        for part in parts {
            require(may_have.contains(&part), "tenants.queue", "each must be 1 to 1,048,576")?;
        }
        require((1..=MAX_TENANTS).contains(&self.most), "tenants.most", "must be 1 to 4,096")
    }
}
