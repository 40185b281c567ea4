//! The choice of the place where a request runs. Here, if it is served at once. Otherwise at one of those who hold the model,
//! where the estimated wait is shortest, of two peers chosen at random and this node: two choices spread nearly as well as
//! all, and no node is sent everything at once by peers that have all heard the same (Mitzenmacher, The Power of Two
//! Choices, 2001). Where nobody holds it, or all who do take much longer than one more load, where its bytes fit with the
//! least eviction.

use std::time::Duration;

use super::protocol::{Boot, Offer, Room, Wanted};

/// A model of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// The model.
    pub wanted: Wanted,
    /// Number of its workers that serve.
    pub workers: u32,
    /// Numbers of slots of its two lanes.
    pub capacity: [u32; 2],
    /// Numbers of those that requests of this node hold that run here.
    pub used: [u32; 2],
    /// Number of the requests that wait or run.
    pub requests: u32,
    /// Their cost.
    pub queue: u64,
    /// Measured time per unit of cost, with all workers at work; none while nothing is known.
    pub unit: Option<Duration>,
    /// Time until it serves, if it is not in memory, or that its load would take.
    pub load: Duration,
    /// Bytes that it takes with one worker, as far as they are known.
    pub bytes: Option<u64>,
    /// The memory that it would be loaded into, if it is not in memory.
    pub room: Option<Room>,
}

impl Own {
    /// True if it is in memory.
    pub const fn is_resident(&self) -> bool {
        self.workers > 0
    }

    /// True if a worker is free now.
    pub const fn serves_at_once(&self) -> bool {
        self.requests < self.workers
    }

    /// The offer of it to a peer, with these numbers of slots.
    pub(super) fn offer(&self, slots: [u32; 2]) -> Offer {
        let Self { wanted, requests, queue, unit, load, bytes, room, .. } = self.clone();
        // What takes more than a second is not unknown.
        let rate = unit.filter(|unit| !unit.is_zero()).map(|unit| (1.0 / unit.as_secs_f64()).max(1.0) as u64);
        Offer {
            wanted,
            resident: self.is_resident(),
            slots,
            queue,
            rate: rate.unwrap_or(0),
            load,
            requests: Some(u64::from(requests)),
            unit,
            bytes,
            room,
        }
    }

    /// Counts a request of this cost that goes to its pool now.
    pub(super) fn add(&mut self, cost: u64) {
        self.requests = self.requests.saturating_add(1);
        self.queue = self.queue.saturating_add(cost);
    }
}

/// The place where a request runs. This node goes before others that are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Here,
    At(Boot),
}

/// Bytes of others that have to go for a model to be loaded, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Eviction {
    Of(u64),
    Unknown,
    /// It does not fit, whatever goes that can.
    TooLittle,
}

impl Eviction {
    fn of(room: Option<Room>, bytes: Option<u64>) -> Self {
        let (Some(Room { free, evictable }), Some(bytes)) = (room, bytes) else { return Self::Unknown };
        match bytes.saturating_sub(free) {
            missing if missing <= evictable => Self::Of(missing),
            _ => Self::TooLittle,
        }
    }
}

/// Requests that were sent to a peer since it told its load, and their cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) requests: u32,
    pub(super) cost: u64,
}

impl Sent {
    pub(super) fn add(&mut self, cost: u64) {
        (self.requests, self.cost) = (self.requests.saturating_add(1), self.cost.saturating_add(cost));
    }
}

/// Number of times as long as one more load takes that all who hold a model have to take for it to spread: a burst, or a load
/// that is under way, is no reason to load it everywhere.
const SPREAD: u32 = 2;

/// Time for a request where nobody knows how long the model takes.
const UNKNOWN: Duration = Duration::from_millis(100);

/// A place that can serve a request, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) place: Place,
    /// It has a slot for the request.
    pub(super) is_free: bool,
    /// The model is in memory, or will be, as it has requests.
    holds: bool,
    /// Number and cost of the requests that are before it.
    requests: u64,
    queue: u64,
    unit: Option<Duration>,
    /// Time until the model serves there; none if it is in memory.
    load: Duration,
    bytes: Option<u64>,
    room: Option<Room>,
}

impl Candidate {
    pub(super) fn here(own: &Own) -> Self {
        Self {
            place: Place::Here,
            is_free: true,
            holds: own.is_resident() || own.requests > 0,
            requests: u64::from(own.requests),
            queue: own.queue,
            unit: own.unit,
            load: if own.is_resident() { Duration::ZERO } else { own.load },
            bytes: own.bytes,
            room: own.room,
        }
    }

    pub(super) fn there(boot: Boot, offer: &Offer, sent: Sent, is_free: bool) -> Self {
        let requests = offer.requests().saturating_add(u64::from(sent.requests));
        Self {
            place: Place::At(boot),
            is_free,
            holds: offer.resident || requests > 0,
            requests,
            queue: offer.queue.saturating_add(sent.cost),
            unit: offer.unit,
            load: if offer.resident { Duration::ZERO } else { offer.load },
            bytes: offer.bytes,
            room: offer.room,
        }
    }
}

/// Places that can serve a model, to be compared.
struct Comparison<'a> {
    wanted: &'a Wanted,
    /// Cost of the request.
    cost: u64,
    /// Shortest time per unit of cost of all of them.
    fastest: Option<Duration>,
    /// Bytes of the model: its files are the same everywhere.
    bytes: Option<u64>,
}

impl<'a> Comparison<'a> {
    fn of(all: &[Candidate], wanted: &'a Wanted, cost: u64) -> Self {
        let fastest = all.iter().filter_map(|candidate| candidate.unit).min();
        let bytes = all.iter().filter_map(|candidate| candidate.bytes).max();
        Self { wanted, cost, fastest, bytes }
    }

    /// Estimated time until the request is served: the load, and the work before it and its own at the measured rate, or at
    /// the fastest of the others where none was measured, so that it is tried.
    fn wait(&self, candidate: &Candidate) -> Duration {
        let turn = match candidate.unit.or(self.fastest) {
            Some(unit) => times(unit, candidate.queue.saturating_add(self.cost)),
            None => times(UNKNOWN, candidate.requests.saturating_add(1)),
        };
        turn.saturating_add(candidate.load)
    }

    fn eviction(&self, candidate: &Candidate) -> Eviction {
        Eviction::of(candidate.room, self.bytes)
    }

    /// Time that the load of others takes who have to go for this one, at its own pace: they will be back.
    fn reload(&self, candidate: &Candidate) -> Duration {
        match (self.eviction(candidate), self.bytes) {
            (Eviction::Of(missing), Some(bytes)) if bytes > 0 => {
                let nanos = candidate.load.as_nanos().saturating_mul(u128::from(missing)) / u128::from(bytes);
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
            _ => Duration::ZERO,
        }
    }

    /// Of those who do not hold the model, the one where it is loaded with the least eviction.
    fn freshest<'c>(&self, all: &'c [Candidate]) -> Option<&'c Candidate> {
        let fresh = all.iter().filter(|candidate| !candidate.holds && candidate.is_free);
        fresh.min_by_key(|candidate| {
            (self.eviction(candidate), candidate.place != Place::Here, turn(candidate.place, self.wanted))
        })
    }
}

/// Chooses a place for a request of this cost that has waited for so long, or none if it is better off with waiting for a
/// slot. `peers` are those who serve its model.
pub(super) fn choose(
    own: Option<&Own>,
    peers: &[Candidate],
    wanted: &Wanted,
    (cost, waited): (u64, Duration),
    random: &mut fastrand::Rng,
) -> Option<Place> {
    if own.is_some_and(Own::serves_at_once) {
        return Some(Place::Here);
    }
    let all: Vec<Candidate> = own.map(Candidate::here).into_iter().chain(peers.iter().copied()).collect();
    let compared = Comparison::of(&all, wanted, cost);
    let fresh = compared.freshest(&all);
    let holders = all.iter().filter(|candidate| candidate.holds);
    let Some(shortest) = holders.clone().map(|candidate| compared.wait(candidate)).min() else {
        return fresh.map(|candidate| candidate.place);
    };
    let are_full = holders.clone().all(|candidate| !candidate.is_free);
    // Hot: one more load serves it much sooner than any who hold it, or would have served it by now, while none of them had a
    // slot for it.
    let spreads = |fresh: &&Candidate| {
        let wait = compared.wait(fresh).saturating_add(compared.reload(fresh));
        // How long requests take has to be known.
        let is_sooner = compared.fastest.is_some() && wait.saturating_mul(SPREAD) < shortest;
        compared.eviction(fresh) != Eviction::TooLittle && (is_sooner || (are_full && wait < waited))
    };
    if let Some(fresh) = fresh.filter(spreads) {
        return Some(fresh.place);
    }
    let free: Vec<&Candidate> = holders.filter(|candidate| candidate.is_free).collect();
    // Cold: while the first of them has nothing to do, the others can go.
    let first = free.iter().min_by_key(|candidate| turn(candidate.place, wanted));
    let is_idle = |first: &&&Candidate| {
        first.requests == 0 && first.load.is_zero() && compared.wait(first) <= shortest.saturating_mul(3) / 2
    };
    if let Some(first) = first.filter(is_idle) {
        return Some(first.place);
    }
    let (here, there): (Vec<&Candidate>, Vec<&Candidate>) =
        free.into_iter().partition(|candidate| candidate.place == Place::Here);
    let one = (!there.is_empty()).then(|| random.usize(..there.len()));
    // Another one than the first, each with the same chance.
    let other = one.filter(|_| there.len() > 1).map(|one| (one + random.usize(1..there.len())) % there.len());
    let drawn = one.into_iter().chain(other).filter_map(|index| there.get(index).copied());
    // The first of equals is taken: this node, if it is one.
    let chosen = here.into_iter().chain(drawn).min_by_key(|candidate| compared.wait(candidate));
    chosen.map(|candidate| candidate.place)
}

/// The place where a model is, or is loaded with the least eviction: all who ask find the same one.
pub(super) fn home<'a>(all: &'a [Candidate], wanted: &Wanted) -> Option<&'a Candidate> {
    let holders = all.iter().filter(|candidate| candidate.holds);
    let held = holders.min_by_key(|candidate| (candidate.load, turn(candidate.place, wanted)));
    held.or_else(|| Comparison::of(all, wanted, 1).freshest(all))
}

/// A number of a place for a model, another one for each model, so that equal nodes have different models (rendezvous hashing,
/// FNV-1a).
fn turn(place: Place, wanted: &Wanted) -> u64 {
    let boot = match place {
        Place::Here => return 0,
        Place::At(Boot(boot)) => boot,
    };
    let text = wanted.model.as_str().bytes().chain(wanted.digest.bytes());
    text.chain(boot.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn times(time: Duration, count: u64) -> Duration {
    let nanos = time.as_nanos().saturating_mul(u128::from(count));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn candidate(boot: u64, requests: u64, queue: u64, unit: Duration) -> Candidate {
        let (place, unit, load) = (Place::At(Boot(boot)), Some(unit), Duration::ZERO);
        let (is_free, holds) = (true, true);
        Candidate { place, is_free, holds, requests, queue, unit, load, bytes: None, room: None }
    }

    fn cold(boot: u64, load: Duration) -> Candidate {
        Candidate { load, holds: false, ..candidate(boot, 0, 0, MILLI) }
    }

    /// A node that would load the model in a second, with so many bytes free and evictable of the 100 that it takes.
    fn roomy(boot: u64, free: u64, evictable: u64) -> Candidate {
        let room = Some(Room { free, evictable });
        Candidate { room, bytes: Some(100), ..cold(boot, Duration::from_secs(1)) }
    }

    fn wanted() -> Wanted {
        Wanted { model: "m".into(), digest: "d".into() }
    }

    fn own(workers: u32, requests: u32, queue: u64) -> Own {
        let (capacity, used, unit) = ([4, 4], [0, 0], Some(MILLI));
        let (wanted, load) = (wanted(), Duration::from_secs(5));
        Own { wanted, workers, capacity, used, requests, queue, unit, load, bytes: None, room: None }
    }

    /// The place of a request of cost 10.
    fn at(own: Option<&Own>, peers: &[Candidate]) -> Option<Place> {
        choose(own, peers, &wanted(), (10, Duration::ZERO), &mut fastrand::Rng::with_seed(1))
    }

    #[test]
    fn here_first_if_it_is_served_at_once() {
        let faster = candidate(1, 0, 0, MILLI / 10);
        assert_eq!(at(Some(&own(2, 1, 1000)), &[faster]), Some(Place::Here));
        assert_eq!(at(Some(&own(2, 2, 1000)), &[faster]), Some(Place::At(Boot(1))));
        assert_eq!(at(None, &[]), None);
    }

    #[test]
    fn the_cost_before_a_request_counts_and_not_the_number_of_requests() {
        let (one_long, many_short) = (candidate(1, 1, 1000, MILLI), candidate(2, 9, 90, MILLI));
        assert_eq!(at(None, &[one_long, many_short]), Some(Place::At(Boot(2))));
        assert_eq!(at(Some(&own(1, 1, 1000)), &[many_short]), Some(Place::At(Boot(2))));
        assert_eq!(at(Some(&own(1, 9, 90)), &[one_long]), Some(Place::Here));
    }

    #[test]
    fn a_fast_node_is_given_more_than_a_slow_one() {
        let slow = |queue| candidate(1, 1, queue, MILLI * 10);
        let fast = |queue| candidate(2, 1, queue, MILLI);
        assert_eq!(at(None, &[slow(0), fast(0)]), Some(Place::At(Boot(2))), "of two idle ones");
        assert_eq!(at(None, &[slow(0), fast(80)]), Some(Place::At(Boot(2))), "90 ms there, 100 ms else");
        assert_eq!(at(None, &[slow(0), fast(100)]), Some(Place::At(Boot(1))));
    }

    #[test]
    fn a_busy_node_that_has_the_model_goes_before_an_idle_one_that_would_load_it_longer() {
        let busy = |queue| candidate(1, 5, queue, MILLI);
        let idle = cold(2, Duration::from_secs(5));
        assert_eq!(at(None, &[busy(9000), idle]), Some(Place::At(Boot(1))));
        assert_eq!(at(None, &[busy(11_000), idle]), Some(Place::At(Boot(2))));
        // And so does this node.
        assert_eq!(at(Some(&own(1, 1, 9000)), &[idle]), Some(Place::Here));
        assert_eq!(at(Some(&own(1, 1, 11_000)), &[idle]), Some(Place::At(Boot(2))));
        assert_eq!(at(Some(&own(0, 0, 0)), &[busy(9000)]), Some(Place::At(Boot(1))));
        assert_eq!(at(Some(&own(0, 0, 0)), &[busy(11_000)]), Some(Place::Here));
    }

    #[test]
    fn a_node_of_unknown_speed_is_taken_to_be_as_fast_as_the_fastest() {
        let known = candidate(1, 1, 10, MILLI);
        let unknown = |requests, queue| Candidate { unit: None, ..candidate(2, requests, queue, MILLI) };
        assert_eq!(at(None, &[known, unknown(0, 0)]), Some(Place::At(Boot(2))), "it is tried");
        assert_eq!(at(None, &[known, unknown(1, 11)]), Some(Place::At(Boot(1))));
        let other = Candidate { place: Place::At(Boot(3)), ..unknown(3, 1) };
        assert_eq!(at(None, &[other, unknown(2, 100)]), Some(Place::At(Boot(2))), "nobody knows the speed");
    }

    #[test]
    fn no_load_of_a_peer_overflows() {
        let endless = Candidate { load: Duration::MAX, ..candidate(1, u64::MAX, u64::MAX, Duration::MAX) };
        assert_eq!(at(None, &[endless]), Some(Place::At(Boot(1))));
        assert_eq!(at(None, &[endless, candidate(2, 1, 1, MILLI)]), Some(Place::At(Boot(2))));
    }

    #[test]
    fn a_model_that_nobody_has_is_loaded_where_it_fits_with_the_least_eviction() {
        let at = |peers: &[Candidate]| at(None, peers);
        assert_eq!(at(&[roomy(1, 40, 90), roomy(2, 90, 90), roomy(3, 95, 0)]), Some(Place::At(Boot(2))));
        assert_eq!(at(&[roomy(1, 0, 100), roomy(3, 95, 0)]), Some(Place::At(Boot(1))), "it fits there alone");
        assert_eq!(at(&[roomy(3, 95, 0)]), Some(Place::At(Boot(3))), "it waits for room");
        let unknown = Candidate { room: None, ..roomy(4, 0, 0) };
        assert_eq!(at(&[unknown, roomy(1, 0, 100)]), Some(Place::At(Boot(1))));
        assert_eq!(at(&[unknown, roomy(3, 95, 0)]), Some(Place::At(Boot(4))));
        // One node knows how large it is, and that is true of all.
        let unsized_one = |boot, free| Candidate { bytes: None, ..roomy(boot, free, 1000) };
        assert_eq!(
            at(&[unsized_one(1, 50), unsized_one(2, 70), roomy(3, 60, 1000)]),
            Some(Place::At(Boot(2)))
        );
    }

    #[test]
    fn of_equal_nodes_this_one_loads_it_or_else_the_same_one_whoever_asks() {
        let peers: Vec<Candidate> = (1..5).map(|boot| roomy(boot, 200, 0)).collect();
        let own = Own { room: peers[0].room, bytes: Some(100), ..own(0, 0, 0) };
        assert_eq!(at(Some(&own), &peers), Some(Place::Here));
        let full = Own { room: Some(Room { free: 50, evictable: 1000 }), ..own };
        let chosen = at(Some(&full), &peers);
        assert_ne!(chosen, Some(Place::Here), "something would have to go here");
        let reversed: Vec<Candidate> = peers.iter().rev().copied().collect();
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            assert_eq!(choose(None, &reversed, &wanted(), (10, Duration::ZERO), &mut random), chosen);
        }
        assert_eq!(home(&peers, &wanted()).map(|candidate| candidate.place), chosen);
        // Another model has another place.
        let others = (0..20).map(|model| Wanted { model: format!("model {model}").into(), ..wanted() });
        let mut places: Vec<_> =
            others.filter_map(|other| home(&peers, &other).map(|candidate| candidate.place)).collect();
        places.sort();
        places.dedup();
        assert_eq!(places.len(), 4);
    }

    #[test]
    fn who_loads_a_model_holds_it_for_those_who_come_after() {
        let loading = Candidate { holds: true, requests: 1, queue: 10, ..roomy(1, 0, 0) };
        assert_eq!(at(None, &[roomy(2, 500, 0), loading]), Some(Place::At(Boot(1))));
        assert_eq!(
            home(&[roomy(2, 500, 0), loading], &wanted()).map(|found| found.place),
            Some(loading.place)
        );
    }

    #[test]
    fn a_hot_model_spreads_where_that_is_much_sooner_than_to_wait() {
        let hot = |queue| candidate(1, 9, queue, MILLI);
        assert_eq!(at(None, &[hot(1900), roomy(2, 200, 0)]), Some(Place::At(Boot(1))));
        assert_eq!(at(None, &[hot(2100), roomy(2, 200, 0)]), Some(Place::At(Boot(2))), "a load is sooner");
        // What would have to go for it will be loaded again: a second more.
        assert_eq!(at(None, &[hot(2100), roomy(2, 0, 200)]), Some(Place::At(Boot(1))));
        assert_eq!(at(None, &[hot(4100), roomy(2, 0, 200)]), Some(Place::At(Boot(2))));
        assert_eq!(at(None, &[hot(4100), roomy(2, 0, 200), roomy(3, 200, 0)]), Some(Place::At(Boot(3))));
        assert_eq!(at(None, &[hot(9000), roomy(2, 0, 99)]), Some(Place::At(Boot(1))), "it does not fit");
        let unmeasured = |queue| Candidate { unit: None, ..hot(queue) };
        let fresh = Candidate { unit: None, ..roomy(2, 200, 0) };
        assert_eq!(at(None, &[unmeasured(9000), fresh]), Some(Place::At(Boot(1))), "who knows how hot it is");
        // The one that waits for a slot of a node that is not hot waits on.
        let full = |queue| Candidate { is_free: false, ..hot(queue) };
        assert_eq!(at(None, &[full(1900), roomy(2, 200, 0)]), None);
        assert_eq!(at(None, &[full(2100), roomy(2, 200, 0)]), Some(Place::At(Boot(2))));
        assert_eq!(at(None, &[full(2100)]), None);
        // Not for ever: by now it would have been loaded here.
        let mut here = own(0, 0, 0);
        here.load = Duration::from_secs(1);
        let after = |millis| {
            let random = &mut fastrand::Rng::with_seed(1);
            choose(Some(&here), &[full(100)], &wanted(), (10, MILLI * millis), random)
        };
        assert_eq!(after(900), None);
        assert_eq!(after(1100), Some(Place::Here));
    }

    #[test]
    fn a_cold_model_is_asked_for_in_one_place() {
        let idle: Vec<Candidate> = (1..6).map(|boot| candidate(boot, 0, 0, MILLI)).collect();
        let chosen = at(None, &idle);
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            assert_eq!(choose(None, &idle, &wanted(), (10, Duration::ZERO), &mut random), chosen);
        }
        // It has something to do, or is slow.
        for change in
            [|one: &mut Candidate| one.requests = 1, |one: &mut Candidate| one.unit = Some(MILLI * 3)]
        {
            let mut changed = idle.clone();
            changed.iter_mut().filter(|one| Some(one.place) == chosen).for_each(change);
            let mut random = fastrand::Rng::with_seed(7);
            let all =
                (0..200).filter_map(|_| choose(None, &changed, &wanted(), (10, Duration::ZERO), &mut random));
            let mut all: Vec<Place> = all.collect();
            all.sort();
            all.dedup();
            assert!(all.len() >= 4, "{all:?}");
        }
    }
}
