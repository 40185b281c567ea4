//! The waiting requests of one model in a line for each tenant, and whose turn it is: deficit round robin in cost.
//!
//! In each round a tenant has its weight in cost to spend. A request may cost more: it leaves the tenant in deficit, and
//! the tenant's next turn is in the round by which that is paid. Rounds in which it is nobody's turn are passed at once, so
//! a turn costs a look-up, whatever costs and weights are. The clock tells the round that all would be in if they were
//! served side by side: it goes on with each cost that is served, one round for the weights of all who wait or are in
//! deficit. Who comes without a deficit has its turn in the clock's round, before those who were served: who asks for
//! little waits for little, and one that stays has its share beside ever new ones who come, are served and go.
//!
//! With one tenant all of this is the order of ranks. Which requests share a batch is left to `batching`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, btree_map};
use std::iter::Peekable;

use rustc_hash::FxHashMap;

use super::ticket::{Rank, Ticket};
use crate::capability::Cost;
use crate::id::Tenant;

/// Number of bits of the fraction of a round.
const FRACTION: u32 = 20;
/// Maximum number of tenants without requests whose deficit is remembered; that of further ones is forgiven.
const MOST_ABSENT: usize = 1024;

/// A number of rounds with its fraction. A cost is below 2^84 of them, so no queue comes to their end.
type Rounds = u128;

/// The turn of a tenant: its round, in it who was not served yet before who was, and then in order. No two are the same.
type Turn = (Rounds, Standing, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    New,
    Served,
}

/// One tenant's requests.
#[derive(Debug)]
struct Line {
    weight: u32,
    turn: Turn,
    waiting: BTreeMap<Rank, Ticket>,
}

/// The lines of all tenants that have requests or are in deficit.
#[derive(Debug, Default)]
pub(super) struct Shares {
    lines: FxHashMap<Option<Tenant>, Line>,
    /// The turns of those that have requests.
    turns: BTreeMap<Turn, Option<Tenant>>,
    /// The turns of those that have none, all after the clock's round.
    absent: BTreeMap<Turn, Option<Tenant>>,
    clock: Rounds,
    /// The weights of all lines together.
    weight: u64,
    /// Number of requests.
    len: usize,
    next: u64,
}

impl Shares {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of requests of each tenant that has any.
    pub(super) fn depths(&self) -> impl Iterator<Item = (Option<&Tenant>, usize)> {
        let present = self.turns.values().filter_map(|tenant| Some((tenant, self.lines.get(tenant)?)));
        present.map(|(tenant, line)| (tenant.as_ref(), line.waiting.len()))
    }

    /// Lets a request of a tenant of this weight wait.
    pub(super) fn push(&mut self, rank: Rank, weight: u32, ticket: Ticket) {
        let tenant = &ticket.tenant;
        if !self.lines.contains_key(tenant) {
            self.next += 1;
            let (weight, turn) = (weight.max(1), (self.clock, Standing::New, self.next));
            self.weight += u64::from(weight);
            self.turns.insert(turn, tenant.clone());
            self.lines.insert(tenant.clone(), Line { weight, turn, waiting: BTreeMap::new() });
        }
        let Some(line) = self.lines.get_mut(tenant) else { return };
        if let Some(tenant) = self.absent.remove(&line.turn) {
            self.turns.insert(line.turn, tenant);
        }
        self.len += 1;
        line.waiting.insert(rank, ticket);
    }

    /// Takes out a request that is not served.
    pub(super) fn remove(&mut self, tenant: &Option<Tenant>, rank: Rank) -> Option<Ticket> {
        let line = self.lines.get_mut(tenant)?;
        let ticket = line.waiting.remove(&rank)?;
        self.len -= 1;
        if self.len == 0 {
            // Nobody is kept from anything, so nobody owes anything.
            self.clear();
        } else if line.waiting.is_empty() {
            let turn = line.turn;
            self.turns.remove(&turn);
            if turn.0 > self.clock && self.absent.len() < MOST_ABSENT {
                self.absent.insert(turn, tenant.clone());
            } else {
                self.forget(tenant);
            }
        }
        Some(ticket)
    }

    /// Takes out a request that is served, at its cost. `most` is the cost of a full batch: nobody's deficit is more, so
    /// that who filled batches for which others had nothing does not wait for all of it.
    pub(super) fn serve(&mut self, tenant: &Option<Tenant>, rank: Rank, most: u64) -> Option<Ticket> {
        let alone = self.lines.len() == 1;
        let line = self.lines.get_mut(tenant)?;
        let cost = line.waiting.get(&rank)?.cost;
        // One who is alone has all there is: its deficit would be paid at once.
        if !alone || line.turn.1 == Standing::New {
            self.next += 1;
            let mut turn = (line.turn.0, Standing::Served, self.next);
            if !alone {
                let most = self.clock + rounds(Cost(most.max(cost.0)), line.weight);
                turn.0 = (turn.0 + rounds(cost, line.weight)).min(most.max(turn.0));
            }
            self.turns.remove(&line.turn);
            self.turns.insert(turn, tenant.clone());
            line.turn = turn;
        }
        if !alone {
            self.advance(cost);
        }
        self.remove(tenant, rank)
    }

    /// Brings the clock to the round of the next turn, before a batch is served.
    pub(super) fn begin(&mut self) {
        if let Some((turn, _)) = self.turns.first_key_value() {
            self.clock = self.clock.max(turn.0);
            self.forget_paid();
        }
    }

    /// Has the clock go on with a cost that is served. Who is absent counts until its deficit is paid.
    fn advance(&mut self, cost: Cost) {
        let mut left = units(cost);
        while let Some((turn, _)) = self.absent.first_key_value() {
            let needed = (turn.0 - self.clock) * Rounds::from(self.weight);
            if needed > left {
                break;
            }
            left -= needed;
            self.clock = turn.0;
            self.forget_paid();
        }
        self.clock += left / Rounds::from(self.weight.max(1));
    }

    fn forget_paid(&mut self) {
        while let Some(entry) = self.absent.first_entry().filter(|entry| entry.key().0 <= self.clock) {
            let tenant = entry.remove();
            self.forget(&tenant);
        }
    }

    fn forget(&mut self, tenant: &Option<Tenant>) {
        if let Some(line) = self.lines.remove(tenant) {
            self.weight -= u64::from(line.weight);
        }
    }

    fn clear(&mut self) {
        self.lines.clear();
        self.turns.clear();
        self.absent.clear();
        (self.clock, self.weight, self.len) = (0, 0, 0);
    }

    /// The requests in the order of service.
    pub(super) fn in_turn(&self) -> InTurn<'_> {
        InTurn {
            lines: &self.lines,
            unseen: self.turns.iter().peekable(),
            seen: Vec::new(),
            later: BinaryHeap::new(),
            current: None,
            next: self.next,
        }
    }

    /// Takes out all requests.
    pub(super) fn take_all(&mut self) -> Vec<Ticket> {
        let (mut all, mut in_turn) = (Vec::with_capacity(self.len), self.in_turn());
        while let Some(ticket) = in_turn.next() {
            all.push(ticket.clone());
            in_turn.serve(ticket.cost);
        }
        self.clear();
        all
    }
}

/// A request that costs nothing counts as 1, as it takes a place.
fn units(cost: Cost) -> Rounds {
    Rounds::from(cost.0.max(1)) << FRACTION
}

/// The rounds by which a tenant has paid for a cost. Rounded up, and the clock down, so that who comes anew is before who
/// was served.
fn rounds(cost: Cost, weight: u32) -> Rounds {
    units(cost).div_ceil(Rounds::from(weight.max(1)))
}

/// Goes through the requests in the order of service: the ones of the tenant whose turn it is, by rank, until one is
/// served. A tenant is looked at when its turn comes.
pub(super) struct InTurn<'a> {
    lines: &'a FxHashMap<Option<Tenant>, Line>,
    unseen: Peekable<btree_map::Iter<'a, Turn, Option<Tenant>>>,
    /// The tenants that had a turn, with the requests that they have left.
    seen: Vec<(u32, btree_map::Values<'a, Rank, Ticket>)>,
    /// Their next turns.
    later: BinaryHeap<Reverse<(Turn, usize)>>,
    /// The tenant whose turn it is.
    current: Option<(Turn, usize)>,
    next: u64,
}

impl<'a> InTurn<'a> {
    /// The next request of the tenant whose turn it is. One that has no more is out.
    pub(super) fn next(&mut self) -> Option<&'a Ticket> {
        loop {
            let (turn, index) = match self.current {
                Some(current) => current,
                None => self.next_turn()?,
            };
            self.current = Some((turn, index));
            if let Some(ticket) = self.seen.get_mut(index).and_then(|(_, line)| line.next()) {
                return Some(ticket);
            }
            self.current = None;
        }
    }

    fn next_turn(&mut self) -> Option<(Turn, usize)> {
        let again = self.later.peek().map(|Reverse((turn, _))| *turn);
        match self.unseen.peek() {
            Some((turn, _)) if again.is_none_or(|again| **turn < again) => {
                let (turn, tenant) = self.unseen.next()?;
                let line = self.lines.get(tenant)?;
                self.seen.push((line.weight, line.waiting.values()));
                Some((*turn, self.seen.len() - 1))
            }
            _ => self.later.pop().map(|Reverse(seen)| seen),
        }
    }

    /// The request that was given last is served.
    pub(super) fn serve(&mut self, cost: Cost) {
        let Some((turn, index)) = self.current.take() else { return };
        let Some((weight, _)) = self.seen.get(index) else { return };
        self.next += 1;
        let turn = (turn.0 + rounds(cost, *weight), Standing::Served, self.next);
        self.later.push(Reverse((turn, index)));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::id::RequestId;
    use crate::id::Time;

    /// More than any batch here costs.
    const MOST: u64 = 1_000_000;

    fn named(tenant: &str) -> Option<Tenant> {
        (!tenant.is_empty()).then(|| Tenant::from(tenant))
    }

    fn push(shares: &mut Shares, tenant: &str, weight: u32, request: u64, cost: u64) {
        let ticket = Ticket::new(RequestId(request), Time::NEVER);
        let ticket = Ticket { tenant: named(tenant), cost: Cost(cost), ..ticket };
        shares.push((i128::from(request), RequestId(request)), weight, ticket);
    }

    /// Serves the next, as a batch of its own.
    fn serve(shares: &mut Shares) -> Option<Ticket> {
        shares.begin();
        let next = shares.in_turn().next()?.clone();
        let rank = (i128::from(next.request.0), next.request);
        shares.serve(&next.tenant, rank, MOST)
    }

    fn order(shares: &mut Shares, most: usize) -> Vec<u64> {
        std::iter::from_fn(|| serve(shares)).take(most).map(|ticket| ticket.request.0).collect()
    }

    #[test]
    fn the_cost_that_is_served_is_as_the_weights_are_whatever_each_request_costs() {
        let (mut shares, mut served) = (Shares::default(), BTreeMap::<_, u64>::new());
        for request in 0..6000 {
            push(&mut shares, "heavy", 3, request, 1 + request % 7);
            push(&mut shares, "light", 1, 10_000 + request, 40);
            push(&mut shares, "", 2, 20_000 + request, 11);
        }
        for _ in 0..4000 {
            let ticket = serve(&mut shares).unwrap();
            *served.entry(ticket.tenant).or_default() += ticket.cost.0;
            let parts = [("heavy", 3), ("light", 1), ("", 2)];
            let parts =
                parts.map(|(tenant, weight)| served.get(&named(tenant)).copied().unwrap_or(0) / weight);
            let (most, least) = (parts.iter().max().unwrap(), parts.iter().min().unwrap());
            assert!(most - least <= 80, "{parts:?}");
        }
    }

    #[test]
    fn who_asks_for_little_is_next_however_much_another_has_waiting() {
        let mut shares = Shares::default();
        (0..20_000).for_each(|request| push(&mut shares, "bulk", 1, request, 5));
        assert_eq!(order(&mut shares, 3), [0, 1, 2]);
        push(&mut shares, "chat", 1, 90_000, 5);
        assert_eq!(order(&mut shares, 2), [90_000, 3]);
        push(&mut shares, "chat", 1, 90_001, 5);
        push(&mut shares, "chat", 1, 90_002, 5);
        assert_eq!(order(&mut shares, 4), [90_001, 4, 90_002, 5], "two at once are an equal share");
    }

    #[test]
    fn a_deficit_is_not_left_behind_by_going() {
        let mut shares = Shares::default();
        (0..100).for_each(|request| push(&mut shares, "bulk", 1, request, 1));
        assert_eq!(order(&mut shares, 1), [0]);
        push(&mut shares, "large", 1, 1000, 10);
        assert_eq!(order(&mut shares, 1), [1000], "it is new");
        push(&mut shares, "large", 1, 1001, 10);
        let next = order(&mut shares, 15);
        let place = next.iter().position(|request| *request == 1001).unwrap();
        assert!((4..=10).contains(&place), "{next:?}");
    }

    #[test]
    fn tenants_that_come_are_served_and_go_for_ever_leave_its_share_to_one_that_stays() {
        let mut shares = Shares::default();
        (0..100).for_each(|request| push(&mut shares, "stays", 1, request, 20));
        assert_eq!(order(&mut shares, 1), [0]);
        let (mut waited, mut served) = (0, 0);
        for guest in 0..200 {
            push(&mut shares, &format!("guest {guest}"), 1, 1000 + guest, 20);
            let is_guest = order(&mut shares, 1)[0] >= 1000;
            (waited, served) = if is_guest { (waited + 1, served) } else { (0, served + 1) };
            assert!(waited <= shares.lines.len(), "{waited} of {} after guest {guest}", shares.lines.len());
        }
        assert!(served >= 10, "{served}");
    }

    #[test]
    fn a_deficit_is_one_batch_at_most_and_an_empty_queue_forgets_all() {
        let mut shares = Shares::default();
        (0..100).for_each(|request| push(&mut shares, "rides", 1, request, 10));
        (0..10).for_each(|request| push(&mut shares, "other", 1, 1000 + request, 10));
        // A run of a key for which the other has nothing: 90, where a batch has 10.
        for request in 0..9 {
            shares.serve(&named("rides"), (i128::from(request), RequestId(request)), 10).unwrap();
        }
        let waits = order(&mut shares, 20).iter().position(|request| *request < 1000).unwrap();
        assert!((4..=6).contains(&waits), "{waits}: the other is owed 45, not 90");
        assert_eq!(order(&mut shares, 1000).len(), 81);
        assert!(shares.is_empty() && shares.lines.is_empty() && shares.turns.is_empty());
        assert_eq!((shares.absent.len(), shares.clock, shares.weight), (0, 0, 0));
    }

    #[test]
    fn those_who_have_gone_are_remembered_up_to_a_bound() {
        let mut shares = Shares::default();
        push(&mut shares, "stays", 1000, 0, 1);
        for guest in 1..1500 {
            push(&mut shares, &format!("guest {guest}"), 1, guest, 1_000_000_000);
            let rank = (i128::from(guest), RequestId(guest));
            shares.serve(&named(&format!("guest {guest}")), rank, u64::MAX).unwrap();
        }
        assert_eq!((shares.lines.len(), shares.absent.len()), (MOST_ABSENT + 1, MOST_ABSENT));
        assert_eq!((shares.weight, shares.len), (1000 + MOST_ABSENT as u64, 1));
        assert_eq!(shares.depths().collect::<Vec<_>>(), [(named("stays").as_ref(), 1)]);
    }
}
