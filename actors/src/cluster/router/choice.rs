//! The choice of the place where a request runs: here if it is served at once; otherwise where the estimated wait is
//! shortest, of two peers chosen at random and this node. Two choices spread nearly as well as all, and no node is sent
//! everything at once by peers that have all heard the same (Mitzenmacher, The Power of Two Choices, 2001).

use std::time::Duration;

use super::protocol::{Boot, Offer, Wanted};

/// A model of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// The model.
    pub wanted: Wanted,
    /// True if it is in memory.
    pub resident: bool,
    /// True if a worker is free now.
    pub at_once: bool,
    /// Numbers of slots of its two lanes.
    pub capacity: [u32; 2],
    /// Numbers of those that requests of this node hold that run here.
    pub used: [u32; 2],
    /// Cost of the requests that wait or run.
    pub queue: u64,
    /// Measured cost of what is served in a second; 0 while nothing is known.
    pub rate: u64,
    /// Time that a load takes.
    pub load: Duration,
}

/// The place where a request runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Here,
    At(Boot),
}

/// Wait per unit of cost while the rate is not known: long enough that a queue of unknown speed is avoided.
const UNKNOWN: Duration = Duration::from_millis(100);

/// Estimated time until a request is served: the queue before it at the measured rate, and the load.
pub(super) fn wait(queue: u64, rate: u64, resident: bool, load: Duration) -> Duration {
    let queue = u32::try_from(queue).unwrap_or(u32::MAX);
    let turn = match u32::try_from(rate) {
        Ok(0) => UNKNOWN.saturating_mul(queue),
        Ok(rate) => Duration::from_secs(1).saturating_mul(queue) / rate,
        Err(_) => Duration::ZERO,
    };
    if resident { turn } else { turn.saturating_add(load) }
}

/// Chooses a place. `peers` are those with a free slot, each with its offer and the cost that was sent there since.
pub(super) fn choose(
    own: Option<&Own>,
    peers: &[(Boot, &Offer, u64)],
    random: &mut fastrand::Rng,
) -> Option<Place> {
    if own.is_some_and(|own| own.at_once && own.resident) {
        return Some(Place::Here);
    }
    let here = own.map(|own| (wait(own.queue, own.rate, own.resident, own.load), Place::Here));
    let first = (!peers.is_empty()).then(|| random.usize(..peers.len()));
    // Another one than the first, each with the same chance.
    let second =
        first.filter(|_| peers.len() > 1).map(|first| (first + random.usize(1..peers.len())) % peers.len());
    let drawn = first.into_iter().chain(second).filter_map(|index| peers.get(index));
    let there = drawn.map(|(boot, offer, sent)| {
        (wait(offer.queue.saturating_add(*sent), offer.rate, offer.resident, offer.load), Place::At(*boot))
    });
    // The first of equals is taken: this node, if it is one.
    here.into_iter().chain(there).min_by_key(|(wait, _)| *wait).map(|(_, place)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(queue: u64, resident: bool) -> Offer {
        let wanted = Wanted { model: "m".into(), digest: "d".into() };
        Offer { wanted, resident, slots: [1, 1], queue, rate: 10, load: Duration::from_secs(5) }
    }

    fn own(at_once: bool, queue: u64) -> Own {
        let Offer { wanted, resident, rate, load, .. } = offer(0, true);
        Own { wanted, resident, at_once, capacity: [4, 4], used: [0, 0], queue, rate, load }
    }

    #[test]
    fn here_first_if_it_is_served_at_once() {
        let idle = offer(0, true);
        let chosen = choose(Some(&own(true, 100)), &[(Boot(1), &idle, 0)], &mut fastrand::Rng::with_seed(1));
        assert_eq!(chosen, Some(Place::Here));
    }

    #[test]
    fn the_shortest_wait_counts_queue_load_and_what_was_sent_since() {
        let (mut random, idle, cold) = (fastrand::Rng::with_seed(1), offer(0, true), offer(0, false));
        let mut at = |own: Option<&Own>, peers: &[(Boot, &Offer, u64)]| choose(own, peers, &mut random);
        let busy = own(false, 20);
        assert_eq!(at(Some(&busy), &[(Boot(1), &idle, 0)]), Some(Place::At(Boot(1))));
        assert_eq!(
            at(Some(&busy), &[(Boot(1), &cold, 0)]),
            Some(Place::Here),
            "a load takes longer than the queue"
        );
        assert_eq!(at(Some(&busy), &[(Boot(1), &idle, 30)]), Some(Place::Here), "it was sent there already");
        assert_eq!(at(None, &[(Boot(1), &cold, 0), (Boot(2), &idle, 0)]), Some(Place::At(Boot(2))));
        assert_eq!(at(None, &[]), None);
    }

    #[test]
    fn of_many_equal_peers_all_are_chosen() {
        let (mut random, idle) = (fastrand::Rng::with_seed(7), offer(0, true));
        let peers: Vec<(Boot, &Offer, u64)> = (0..5).map(|boot| (Boot(boot), &idle, 0)).collect();
        let mut chosen: Vec<_> = (0..200).filter_map(|_| choose(None, &peers, &mut random)).collect();
        chosen.sort_by_key(|place| match place {
            Place::At(boot) => boot.0,
            Place::Here => u64::MAX,
        });
        chosen.dedup();
        assert_eq!(chosen.len(), 5);
    }
}
