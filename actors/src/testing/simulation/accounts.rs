//! The turns of the tenants of one model, worked out beside the scheduler from what happens: in plain lists, without its
//! maps and heaps.

use crate::id::Tenant;

/// One tenant that has requests or is in deficit.
#[derive(Debug)]
struct Account {
    tenant: Option<Tenant>,
    weight: u128,
    /// The round of its next turn, in units of 2^-20, and its place in it.
    round: u128,
    place: (bool, u64),
    /// Requests that have not run yet.
    waiting: Vec<usize>,
}

impl Account {
    fn turn(&self) -> (u128, bool, u64) {
        (self.round, self.place.0, self.place.1)
    }
}

/// The accounts of one model's tenants.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    accounts: Vec<Account>,
    clock: u128,
    entered: u64,
}

impl Accounts {
    pub(super) fn enter(&mut self, tenant: &Option<Tenant>, weight: u32, request: usize) {
        self.entered += 1;
        match self.accounts.iter_mut().find(|account| account.tenant == *tenant) {
            Some(account) => account.waiting.push(request),
            None => self.accounts.push(Account {
                tenant: tenant.clone(),
                weight: weight.into(),
                round: self.clock,
                place: (false, self.entered),
                waiting: vec![request],
            }),
        }
    }

    /// A request is not in the queue any more, if it was.
    pub(super) fn leave(&mut self, request: usize) {
        for account in &mut self.accounts {
            account.waiting.retain(|other| *other != request);
        }
        self.forget_paid();
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn forget_paid(&mut self) {
        if self.accounts.iter().all(|account| account.waiting.is_empty()) {
            return self.clear();
        }
        let clock = self.clock;
        self.accounts.retain(|account| !account.waiting.is_empty() || account.round > clock);
    }

    fn is_in_deficit(account: &&Account) -> bool {
        account.waiting.is_empty()
    }

    /// The tenant whose turn it is among those that have such a request.
    pub(super) fn next(&self, may_run: impl Fn(usize) -> bool) -> Option<&Option<Tenant>> {
        let able = |account: &&Account| account.waiting.iter().any(|request| may_run(*request));
        self.accounts.iter().filter(able).min_by_key(|account| account.turn()).map(|account| &account.tenant)
    }

    /// A batch begins: the clock is in the round of the next turn.
    pub(super) fn begin(&mut self) {
        let present = self.accounts.iter().filter(|account| !account.waiting.is_empty());
        self.clock =
            present.map(|account| account.round).min().map_or(self.clock, |round| round.max(self.clock));
        self.forget_paid();
    }

    pub(super) fn serve(&mut self, request: usize, cost: u64, most: u64) {
        self.entered += 1;
        let (alone, clock, entered) = (self.accounts.len() == 1, self.clock, self.entered);
        let (cost, most) = (u128::from(cost) << 20, u128::from(most.max(cost)) << 20);
        let Some(account) = self.accounts.iter_mut().find(|account| account.waiting.contains(&request))
        else {
            return;
        };
        if !alone {
            let round = account.round + cost.div_ceil(account.weight);
            account.round = round.min((clock + most.div_ceil(account.weight)).max(account.round));
        }
        account.place = (true, if alone && account.place.0 { account.place.1 } else { entered });
        if !alone {
            self.advance(cost);
        }
        self.leave(request);
    }

    /// The clock goes on by one round for the weights of all, of those in deficit until they have paid.
    fn advance(&mut self, mut cost: u128) {
        loop {
            let weight: u128 = self.accounts.iter().map(|account| account.weight).sum();
            let in_deficit = self.accounts.iter().filter(Self::is_in_deficit);
            match in_deficit.map(|account| account.round).min() {
                Some(round) if (round - self.clock) * weight <= cost => {
                    cost -= (round - self.clock) * weight;
                    self.clock = round;
                    self.forget_paid();
                }
                _ => return self.clock += cost / weight.max(1),
            }
        }
    }
}
