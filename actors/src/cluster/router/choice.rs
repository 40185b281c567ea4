//! The choice of the place where a request runs. Here, if it is served at once. Otherwise at one of those who hold the model,
//! where the estimated wait is shortest, of two peers chosen at random and this node: two choices spread nearly as well as
//! all, and no node is sent everything at once by peers that have all heard the same (Mitzenmacher, The Power of Two
//! Choices, 2001). Where nobody holds it, or all who do take much longer than one more load, where its bytes fit with the
//! least eviction. A node that fails what it runs is soon done with it, and so would be sent everything: it is left out while
//! another one can serve without much ado.

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
    /// Percent of its latest requests that it has failed; 0 once that was long ago.
    pub failed: u8,
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
        let Self { wanted, requests, queue, unit, load, bytes, room, failed, .. } = self.clone();
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
            failed,
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

/// Percent of its latest requests that a model has failed from which on its node is a place only if there is no other.
const FAILING: u8 = 50;

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
    failed: u8,
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
            failed: own.failed,
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
            failed: offer.failed,
        }
    }

    fn fails(&self) -> bool {
        self.failed >= FAILING
    }
}

/// Those who can serve a model: without the ones that fail what they run, unless there are none but them. A failing one that
/// holds it is left out for one that would have to load it only where that is done in the time that is left, and nothing goes
/// for it: what is known to work there may be worth more than this request.
fn sound(mut all: Vec<Candidate>, left: Duration) -> Vec<Candidate> {
    let bytes = all.iter().filter_map(|candidate| candidate.bytes).max();
    let is_sound = |candidate: &Candidate| candidate.holds && !candidate.fails();
    let are_failing = all.iter().any(|candidate| candidate.holds) && !all.iter().any(is_sound);
    let serves = |candidate: &Candidate| {
        let fits = match Eviction::of(candidate.room, bytes) {
            Eviction::Of(missing) => !are_failing || (missing == 0 && candidate.load <= left),
            Eviction::Unknown => !are_failing,
            Eviction::TooLittle => false,
        };
        !candidate.fails() && (candidate.holds || fits)
    };
    if all.iter().any(serves) {
        all.retain(|candidate| if are_failing { serves(candidate) } else { !candidate.fails() });
    }
    all
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

/// A request, as far as its place depends on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking {
    pub(super) cost: u64,
    /// Time for which it has waited.
    pub(super) waited: Duration,
    /// Time in which it has to have begun.
    pub(super) left: Duration,
}

/// Chooses a place for a request, or none if it is better off with waiting for a slot. `peers` are those who serve its model.
pub(super) fn choose(
    own: Option<&Own>,
    peers: &[Candidate],
    wanted: &Wanted,
    Asking { cost, waited, left }: Asking,
    random: &mut fastrand::Rng,
) -> Option<Place> {
    let all = sound(own.map(Candidate::here).into_iter().chain(peers.iter().copied()).collect(), left);
    let is_here = all.iter().any(|candidate| candidate.place == Place::Here);
    if is_here && own.is_some_and(Own::serves_at_once) {
        return Some(Place::Here);
    }
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

/// The place where a model is, or is loaded with the least eviction, in so much time: all who ask find the same one.
pub(super) fn home(all: &[Candidate], wanted: &Wanted, left: Duration) -> Option<Place> {
    let all = sound(all.to_vec(), left);
    let holders = all.iter().filter(|candidate| candidate.holds);
    let held = holders.min_by_key(|candidate| (candidate.load, turn(candidate.place, wanted)));
    let home = held.or_else(|| Comparison::of(&all, wanted, 1).freshest(&all));
    home.map(|candidate| candidate.place)
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
mod tests;
