//! The format of what nodes of a cluster tell each other: golden files pin it, and a node reads what one of an earlier build
//! says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/golden.rs"]
mod golden;

use std::time::Duration;

use model_actors::cluster::router::{CallKey, CallKind, Load, Message, Offer, Refusal, Room, Run, Wanted};
use model_actors::{Lane, wire};

use golden::pinned;

fn wanted() -> Wanted {
    Wanted { model: "acme/english".into(), digest: "sha256:ab".into() }
}

/// As a node of the first build tells it.
fn offer() -> Offer {
    Offer {
        wanted: wanted(),
        resident: true,
        slots: [7, 50],
        queue: 3,
        rate: 40,
        load: Duration::from_millis(1500),
        requests: None,
        unit: None,
        bytes: None,
        room: None,
        failed: 0,
    }
}

fn load(offer: Offer) -> Message {
    Message::Load(Load {
        number: 9,
        heard: 8,
        leaving: false,
        offers: vec![offer],
        below: Run(12),
        runs: vec![(Run(10), 33)],
        guests: vec![Run(4)],
    })
}

#[test]
fn the_format_is_the_one_of_the_golden_files() {
    let measured = Offer { queue: 900, requests: Some(3), unit: Some(Duration::from_micros(25)), ..offer() };
    pinned("cluster_load", &load(offer()));
    pinned("cluster_load_measured", &load(measured));
    let placed = Offer {
        resident: false,
        bytes: Some(90 << 20),
        room: Some(Room { free: 50 << 20, evictable: 4 << 30 }),
        ..offer()
    };
    pinned("cluster_load_with_room", &load(placed));
    pinned("cluster_load_failing", &load(Offer { failed: 80, ..offer() }));
    let ask = Message::Ask { run: Run(12), after: 9, wanted: wanted(), lane: Lane::Batch };
    pinned("cluster_ask", &ask);
    let others = vec![
        Message::Cancel(Run(1)),
        Message::Credit(Run(1), 40),
        Message::Refused(Run(1), Refusal::Full),
        Message::Refused(Run(1), Refusal::Unable),
        Message::Began(Run(1)),
        Message::Chunk(Run(1), 2),
        Message::End(Run(1), 3),
    ];
    pinned("cluster_others", &others);
    let calls = vec![
        Message::Call {
            call: CallKey(5),
            wanted: wanted(),
            kind: CallKind::Preload,
            within: Duration::from_secs(300),
        },
        Message::Call { call: CallKey(6), wanted: wanted(), kind: CallKind::Unload, within: Duration::ZERO },
        Message::Call {
            call: CallKey(7),
            wanted: wanted(),
            kind: CallKind::Pin(true),
            within: Duration::ZERO,
        },
        Message::Called(CallKey(5)),
        Message::NotCalled(CallKey(6)),
        Message::CallOff(CallKey(7)),
    ];
    pinned("cluster_calls", &calls);
}

#[test]
fn the_load_of_an_earlier_build_is_read_without_its_rate_which_is_of_requests() {
    let told = wire::encode(&offer()).unwrap();
    let read: Offer = wire::decode(&told).unwrap();
    assert_eq!((read.requests(), read.unit), (3, None));
}
