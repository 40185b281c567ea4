//! The choice of a place: here or there, in one place or in several, by work, speed, room and failures.

use super::*;

const MILLI: Duration = Duration::from_millis(1);

fn candidate(boot: u64, requests: u64, queue: u64, unit: Duration) -> Candidate {
    let (place, unit, load) = (Place::At(Boot(boot)), Some(unit), Duration::ZERO);
    let (is_free, holds) = (true, true);
    Candidate { place, is_free, holds, requests, queue, unit, load, bytes: None, room: None, failed: 0 }
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
    Own { wanted, workers, capacity, used, requests, queue, unit, load, bytes: None, room: None, failed: 0 }
}

/// Time in which a request has to have begun.
const LEFT: Duration = Duration::from_secs(5);

fn asking(cost: u64, waited: Duration) -> Asking {
    Asking { cost, waited, left: LEFT }
}

/// The place of a request of cost 10.
fn at(own: Option<&Own>, peers: &[Candidate]) -> Option<Place> {
    choose(own, peers, &wanted(), asking(10, Duration::ZERO), &mut fastrand::Rng::with_seed(1))
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
    assert_eq!(at(&[unsized_one(1, 50), unsized_one(2, 70), roomy(3, 60, 1000)]), Some(Place::At(Boot(2))));
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
        assert_eq!(choose(None, &reversed, &wanted(), asking(10, Duration::ZERO), &mut random), chosen);
    }
    assert_eq!(home(&peers, &wanted(), LEFT), chosen);
    // Another model has another place.
    let others = (0..20).map(|model| Wanted { model: format!("model {model}").into(), ..wanted() });
    let mut places: Vec<_> = others.filter_map(|other| home(&peers, &other, LEFT)).collect();
    places.sort();
    places.dedup();
    assert_eq!(places.len(), 4);
}

#[test]
fn who_loads_a_model_holds_it_for_those_who_come_after() {
    let loading = Candidate { holds: true, requests: 1, queue: 10, ..roomy(1, 0, 0) };
    assert_eq!(at(None, &[roomy(2, 500, 0), loading]), Some(Place::At(Boot(1))));
    assert_eq!(home(&[roomy(2, 500, 0), loading], &wanted(), LEFT), Some(loading.place));
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
        choose(Some(&here), &[full(100)], &wanted(), asking(10, MILLI * millis), random)
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
        assert_eq!(choose(None, &idle, &wanted(), asking(10, Duration::ZERO), &mut random), chosen);
    }
    // It has something to do, or is slow.
    for change in [|one: &mut Candidate| one.requests = 1, |one: &mut Candidate| one.unit = Some(MILLI * 3)] {
        let mut changed = idle.clone();
        changed.iter_mut().filter(|one| Some(one.place) == chosen).for_each(change);
        let mut random = fastrand::Rng::with_seed(7);
        let all = (0..200)
            .filter_map(|_| choose(None, &changed, &wanted(), asking(10, Duration::ZERO), &mut random));
        let mut all: Vec<Place> = all.collect();
        all.sort();
        all.dedup();
        assert!(all.len() >= 4, "{all:?}");
    }
}

#[test]
fn a_node_that_fails_what_it_runs_is_left_out_while_there_is_another() {
    let failing = |boot| Candidate { failed: 50, ..candidate(boot, 0, 0, MILLI / 10) };
    let busy = candidate(2, 9, 900, MILLI);
    assert_eq!(at(None, &[failing(1), busy]), Some(Place::At(Boot(2))), "it is soon done, with errors");
    let sometimes = Candidate { failed: 49, ..failing(1) };
    assert_eq!(at(None, &[sometimes, busy]), Some(Place::At(Boot(1))));
    // Without another one it is as good as any.
    assert_eq!(at(None, &[failing(1)]), Some(Place::At(Boot(1))));
    assert_eq!(home(&[failing(1)], &wanted(), LEFT), Some(Place::At(Boot(1))));
    assert!(at(None, &[failing(1), failing(2)]).is_some());
    // One that would have to load it is another one, if it fits there.
    assert_eq!(at(None, &[failing(1), roomy(2, 200, 0)]), Some(Place::At(Boot(2))));
    assert_eq!(home(&[failing(1), roomy(2, 200, 0)], &wanted(), LEFT), Some(Place::At(Boot(2))));
    assert_eq!(at(None, &[failing(1), roomy(2, 99, 0)]), Some(Place::At(Boot(1))));
    // One without a slot is worth the wait.
    assert_eq!(at(None, &[failing(1), Candidate { is_free: false, ..busy }]), None);
    // So it is with this node.
    let here = Own { failed: 80, ..own(1, 0, 0) };
    assert_eq!(at(Some(&here), &[busy]), Some(Place::At(Boot(2))));
    assert_eq!(at(Some(&here), &[failing(1)]), Some(Place::Here));
    assert_eq!(at(Some(&own(1, 1, 1000)), &[failing(1)]), Some(Place::Here));
}

#[test]
fn a_failing_node_is_left_out_for_a_load_only_if_that_is_done_in_time_and_evicts_nothing() {
    let failing = Candidate { failed: 50, ..candidate(1, 0, 0, MILLI) };
    let places = |other: Candidate| {
        let place = at(None, &[failing, other]);
        assert_eq!(home(&[failing, other], &wanted(), LEFT), place);
        place
    };
    let (first, other) = (Some(Place::At(Boot(1))), Some(Place::At(Boot(2))));
    assert_eq!(places(roomy(2, 100, 0)), other);
    assert_eq!(places(roomy(2, 99, 1000)), first, "one that works would go");
    assert_eq!(places(cold(2, MILLI)), first, "whether it fits is not known");
    assert_eq!(places(Candidate { load: LEFT, ..roomy(2, 100, 0) }), other);
    assert_eq!(places(Candidate { load: LEFT + MILLI, ..roomy(2, 100, 0) }), first, "it would be too late");
    // Of several, only those that are such.
    let late = Candidate { load: LEFT * 2, ..roomy(2, 1000, 0) };
    assert_eq!(at(None, &[failing, late, roomy(3, 100, 0)]), Some(Place::At(Boot(3))));
    // Where nobody holds it, it has to be loaded anyway.
    let failed = Candidate { failed: 50, ..roomy(1, 100, 0) };
    assert_eq!(at(None, &[failed, roomy(2, 0, 100)]), other);
}
