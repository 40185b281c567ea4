//! A router and its peers, step by step.

use super::*;

const MODEL: &str = "m";

fn wanted() -> Wanted {
    Wanted { model: MODEL.into(), digest: "1".into() }
}

fn at(millis: u64) -> Time {
    Time::after_start(Duration::from_millis(millis))
}

/// A peer's model, in memory or not, with so many slots for this node.
fn offer(resident: bool, slots: u32) -> Offer {
    Offer {
        wanted: wanted(),
        resident,
        slots: [slots, slots],
        queue: 100,
        rate: 0,
        load: Duration::from_secs(1),
        requests: Some(u64::from(resident)),
        unit: Some(Duration::from_millis(1)),
        bytes: Some(100),
        room: (!resident).then_some(Room { free: 200, evictable: 0 }),
        failed: 0,
    }
}

/// A router that these peers, numbered from 1, have told what they serve.
fn router(offers: impl IntoIterator<Item = Offer>) -> Router {
    let mut router = Router::new(1);
    for (peer, offer) in (1..).map(Boot).zip(offers) {
        router.step(Input::Linked(peer), at(0));
        tell(&mut router, peer, 1, offer);
    }
    router
}

fn tell(router: &mut Router, from: Boot, number: u64, offer: Offer) -> Vec<Effect> {
    let load = Load {
        number,
        heard: 0,
        leaving: false,
        offers: vec![offer],
        below: Run(0),
        runs: Vec::new(),
        guests: Vec::new(),
    };
    router.step(Input::Heard { from, message: Message::Load(load) }, at(0))
}

fn submit(router: &mut Router, key: u64, impatient: bool) -> Vec<Effect> {
    let request = Request {
        wanted: wanted(),
        lane: Lane::Interactive,
        rank: i128::from(key),
        cost: 10,
        deadline: at(10_000),
        end: at(20_000),
        reruns: true,
        impatient,
    };
    router.step(Input::Submit(RequestKey(key), request), at(0))
}

/// The peer that a request goes to.
fn asked(effects: &[Effect]) -> Option<Boot> {
    effects.iter().find_map(|effect| if let Effect::Ask { to, .. } = effect { Some(*to) } else { None })
}

#[test]
fn who_does_not_wait_loads_a_model_in_no_second_place() {
    let full = || router([offer(true, 0), offer(false, 5)]);
    assert_eq!(submit(&mut full(), 1, true), [Effect::Fail(RequestKey(1), Failed::Full)]);
    assert_eq!(submit(&mut full(), 1, false), [], "it waits");
    let mut one_slot = router([offer(true, 1), offer(false, 5)]);
    assert_eq!(asked(&submit(&mut one_slot, 1, true)), Some(Boot(1)));
    assert_eq!(submit(&mut one_slot, 2, true), [Effect::Fail(RequestKey(2), Failed::Full)]);
    // Nobody has it: it is loaded, whoever asks.
    assert_eq!(asked(&submit(&mut router([offer(false, 5)]), 1, true)), Some(Boot(1)));
    // It is hot: a load is sooner than any who hold it.
    let hot = Offer { queue: 5000, ..offer(true, 0) };
    assert_eq!(asked(&submit(&mut router([hot, offer(false, 5)]), 1, true)), Some(Boot(2)));
}

#[test]
fn a_peer_that_fails_what_it_runs_is_sent_nothing_until_it_says_otherwise() {
    let failing = Offer { queue: 0, requests: Some(0), failed: 90, ..offer(true, 50) };
    let mut router = router([failing.clone(), offer(true, 50)]);
    for key in 0..20 {
        assert_eq!(asked(&submit(&mut router, key, false)), Some(Boot(2)));
    }
    tell(&mut router, Boot(1), 2, Offer { failed: 0, ..failing });
    assert_eq!(asked(&submit(&mut router, 20, false)), Some(Boot(1)));
}

#[test]
fn an_unload_is_answered_once_all_who_serve_the_model_have_done_it() {
    let mut router = router([offer(true, 5), offer(false, 5), offer(true, 5)]);
    let call = |key, kind| Input::Call { key: CallKey(key), wanted: wanted(), kind, ends: at(10_000) };
    let to = |effects: Vec<Effect>| -> Vec<Boot> {
        let told = effects.into_iter().filter_map(|effect| match effect {
            Effect::Tell(boot, Message::Call { .. }) => Some(boot),
            _ => None,
        });
        told.collect()
    };
    assert_eq!(to(router.step(call(1, CallKind::Unload), at(0))), [1, 2, 3].map(Boot));
    let called = |router: &mut Router, from, key| {
        router.step(Input::Heard { from: Boot(from), message: Message::Called(CallKey(key)) }, at(0))
    };
    assert_eq!(called(&mut router, 1, 1), [Effect::NoteCall(CallKey(1))]);
    assert_eq!(called(&mut router, 1, 1), [], "it has answered already");
    assert_eq!(called(&mut router, 3, 1), [Effect::NoteCall(CallKey(1))]);
    let last = [Effect::NoteCall(CallKey(1)), Effect::EndCall(CallKey(1), None)];
    assert_eq!(called(&mut router, 2, 1), last);
    assert_eq!(to(router.step(call(2, CallKind::Preload), at(0))).len(), 1);
}
