//! Checks that a model is shared out between tenants as the accounts say, and that no work is lost. A tenant whose turn it
//! is and whose requests wait while others run waits longer than its share allows.

use super::world::World;

impl World {
    /// A request of a tenant comes into the queue, unless its time is up.
    pub(super) fn enter_share(&mut self, pool: usize, model: usize, request: usize) {
        if self.scenario.tenants.len() == 1 || self.requests[request].deadline <= self.now {
            return;
        }
        let tenant = &self.requests[request].tenant;
        let weight = self.scenario.pools[pool][model].policy.config.tenants.weight_of(tenant.as_ref());
        self.pools[pool].models[model].accounts.enter(tenant, weight, request);
    }

    /// Each of these requests, which run now for the first time, is of the tenant whose turn it is: among those who have
    /// one of the batch's key, or among all, for the first and for those that join a run.
    pub(super) fn check_shares(&mut self, pool: usize, model: usize, batch: &[usize], joins: bool) {
        if self.scenario.tenants.len() == 1 {
            return;
        }
        let most = self.scenario.pools[pool][model].policy.config.batch.cost;
        let fresh: Vec<usize> =
            batch.iter().copied().filter(|request| !self.requests[*request].reran).collect();
        let Some(first) = fresh.first().copied() else { return };
        let mut accounts = std::mem::take(&mut self.pools[pool].models[model].accounts);
        accounts.begin();
        for request in fresh {
            let (key, cost) = (self.requests[request].key, self.requests[request].cost);
            let is_free = joins || request == first;
            let next = accounts.next(|other| is_free || self.requests[other].key == key);
            let in_turn = next == Some(&self.requests[request].tenant);
            let waits = (!in_turn).then(|| format!("{next:?} waits while request {request} runs"));
            self.check("no tenant waits longer than its share", |_| in_turn, || waits.unwrap_or_default());
            accounts.serve(request, cost, most);
        }
        self.pools[pool].models[model].accounts = accounts;
    }

    /// The scheduler's queues hold the requests that were given to it, no more and no less.
    pub(super) fn check_work(&mut self, pool: usize) {
        let state = &self.pools[pool];
        let waiting: usize = state.scheduler.models().map(|model| model.queue.len()).sum();
        let expected = state.queued.len();
        self.check("work is conserved", |_| waiting == expected, || format!("{waiting} of {expected} wait"));
    }
}
