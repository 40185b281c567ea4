//! Many callers at once whose requests kill processes at random: each gets one answer, those who did nothing get theirs, and
//! nothing is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use model_actors::isolation::ProcessOptions;
use model_actors::{CallOptions, Error, ModelHandle, RestartConfig};

use crate::model::*;

pub(crate) const ALONE: [crate::tests::Test; 2] = [
    ("the_ledger_adds_up", || block_on(the_ledger_adds_up(false))),
    ("the_ledger_adds_up_where_requests_join", || block_on(the_ledger_adds_up(true))),
];

const CALLERS: u64 = 24;

/// Answers by their kind.
#[derive(Default)]
struct Ledger {
    answered: AtomicUsize,
    streamed: AtomicUsize,
    cut_off: AtomicUsize,
    poisonous: AtomicUsize,
    cancelled: AtomicUsize,
}

fn count(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::SeqCst);
}

/// `ISOLATION_SOAK` sets another number of requests of each caller than 12.
async fn the_ledger_adds_up(joins: bool) {
    let rounds = std::env::var("ISOLATION_SOAK").map_or(12, |rounds| rounds.parse().unwrap());
    let (system, pool) = timings();
    // The deaths of poisonous requests do not count, but those in mid-stream may.
    let restart = RestartConfig::default()
        .with_max_restarts(1000)
        .with_first_backoff(std::time::Duration::from_millis(1))
        .with_max_backoff(std::time::Duration::from_millis(10));
    let stage = Stage::with((system, pool.with_restart(restart).with_max_workers(3))).await;
    let loader = ActLoader { joins, ..ActLoader::default() };
    let model = stage.model_with("one", loader, ProcessOptions::default());
    let ledger = Arc::new(Ledger::default());
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (model, ledger) = (model.clone(), ledger.clone());
            tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(caller);
                for _ in 0..rounds {
                    one(&model, &ledger, &mut random).await;
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let Ledger { answered, streamed, cut_off, poisonous, cancelled } = &*ledger;
    let counts =
        [answered, streamed, cut_off, poisonous, cancelled].map(|count| count.load(Ordering::SeqCst));
    println!("answered, streamed, cut off, poisonous, cancelled: {counts:?}");
    assert_eq!(counts.iter().sum::<usize>(), CALLERS as usize * rounds, "one answer each");
    // Whether a stream is beside a death in the middle of its run is a matter of luck.
    assert!([answered, streamed, poisonous, cancelled].iter().all(|count| count.load(Ordering::SeqCst) > 0));
    stage.finish().await;
}

async fn one(model: &ModelHandle<Acts>, ledger: &Ledger, random: &mut fastrand::Rng) {
    let number = random.u64(..);
    match random.u8(0..100) {
        // It did nothing, and whatever happens beside it, it is answered.
        0..70 => {
            let said = ask(model, Act::Reply(number.to_string())).await;
            assert_eq!(said.unwrap().words, number.to_string());
            count(&ledger.answered);
        }
        70..82 => {
            let request = Ask { chunks: 40, ..Act::Reply(number.to_string()).into() };
            let mut stream = model.stream(request, CallOptions::default()).await.unwrap();
            let mut expected = 0..40;
            loop {
                match stream.next().await {
                    Some(Ok(chunk)) => assert_eq!(Some(chunk), expected.next()),
                    Some(Err(error)) => {
                        assert!(matches!(error, Error::WorkerCrashed { .. }), "{error}");
                        return count(&ledger.cut_off);
                    }
                    None => break,
                }
            }
            assert_eq!((stream.output().await.unwrap().words, expected.next()), (number.to_string(), None));
            count(&ledger.streamed);
        }
        82..94 => {
            let act = match random.usize(0..8) {
                fate @ 0..5 => Act::Die(Fate::ALL[fate].0),
                5 => Act::Panic,
                6 => Act::Garbage(vec![0xff; 4]),
                _ => Act::Garbage(vec![0, 0, 0, 1, 7]),
            };
            let error = ask(model, act).await.unwrap_err();
            assert!(matches!(error, Error::Poison { .. }), "{error}");
            count(&ledger.poisonous);
        }
        _ => {
            let request = Ask { chunks: 1, ..Act::UntilCancelled.into() };
            let mut stream = model.stream(request, CallOptions::default()).await.unwrap();
            let _ = stream.next().await;
            drop(stream);
            count(&ledger.cancelled);
        }
    }
}
