//! Callers that ask all the time, and the ledger of what they were told.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model_actors::{CallOptions, Error, ModelHandle};
use tokio::task::JoinHandle;

use crate::Outcome;
use crate::node::{Echo, Say};

/// Number of chunks of each stream.
const CHUNKS: u64 = 10;

/// Callers at work.
pub(crate) struct Load {
    going: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    began: Instant,
    callers: Vec<JoinHandle<BTreeMap<String, u64>>>,
}

impl Load {
    /// Begins with so many callers, each second of which reads streams. A request takes the model so long.
    pub(crate) fn begin(model: &ModelHandle<Echo>, callers: usize, time: Duration) -> Self {
        Self::with(model, callers, time, true)
    }

    /// Begins with callers that read no streams.
    pub(crate) fn calls(model: &ModelHandle<Echo>, callers: usize, time: Duration) -> Self {
        Self::with(model, callers, time, false)
    }

    fn with(model: &ModelHandle<Echo>, callers: usize, time: Duration, streams: bool) -> Self {
        let (going, served) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let call = |caller: usize| {
            let (model, going, served) = (model.clone(), going.clone(), served.clone());
            tokio::spawn(async move {
                let mut ledger = BTreeMap::new();
                while going.load(Ordering::Relaxed) {
                    let outcome = match streams && caller % 2 == 1 {
                        true => stream(&model, time).await,
                        false => model.call(Say::after("", time), CallOptions::default()).await.map(drop),
                    };
                    served.fetch_add(u64::from(outcome.is_ok()), Ordering::Relaxed);
                    let outcome =
                        outcome.map_or_else(|error| error.reason().to_owned(), |()| "ok".to_owned());
                    *ledger.entry(outcome).or_default() += 1;
                }
                ledger
            })
        };
        let callers = (0..callers).map(call).collect();
        Self { going, served, began: Instant::now(), callers }
    }

    /// Ends after a while.
    pub(crate) async fn after(self, time: Duration) -> Ledger {
        tokio::time::sleep(time).await;
        self.end().await
    }

    /// Ends, and adds up what all were told.
    pub(crate) async fn end(self) -> Ledger {
        let took = self.began.elapsed();
        self.going.store(false, Ordering::Relaxed);
        // Those that are under way now are in the ledger, and not in the rate.
        let rate = self.served.load(Ordering::Relaxed) as f64 / took.as_secs_f64();
        let mut ledger = Ledger { outcomes: BTreeMap::new(), took, rate };
        for caller in self.callers {
            let told = caller.await.unwrap_or_else(|_| BTreeMap::from([("panicked".to_owned(), 1)]));
            told.into_iter()
                .for_each(|(outcome, count)| *ledger.outcomes.entry(outcome).or_default() += count);
        }
        ledger
    }
}

/// Reads a stream to its end; its chunks come in order.
async fn stream(model: &ModelHandle<Echo>, time: Duration) -> Result<(), Error> {
    let say = Say::chunks(CHUNKS, time / u32::try_from(CHUNKS).unwrap_or(1));
    let mut stream = model.stream(say, CallOptions::default()).await?;
    let mut next = 0;
    while let Some(chunk) = stream.next().await {
        if chunk? != next {
            return Err(Error::InvalidInput { cause: "a chunk is not in its place".into() });
        }
        next += 1;
    }
    stream.output().await.map(drop)
}

/// Answers that all callers were given.
pub(crate) struct Ledger {
    outcomes: BTreeMap<String, u64>,
    took: Duration,
    rate: f64,
}

impl Ledger {
    fn served(&self) -> u64 {
        self.outcomes.get("ok").copied().unwrap_or(0)
    }

    /// Requests that were served in a second, while all callers asked.
    pub(crate) fn rate(&self) -> f64 {
        self.rate
    }

    /// Fails if requests had another end than an answer or the loss of the node that had begun with them.
    pub(crate) fn check(&self) -> Outcome {
        match self.outcomes.keys().find(|outcome| !["ok", "peer_lost"].contains(&outcome.as_str())) {
            Some(outcome) => Err(format!("requests ended with {outcome}").into()),
            None => Ok(()),
        }
    }

    /// Fails if any request failed.
    pub(crate) fn check_all_served(&self) -> Outcome {
        match self.outcomes.len() == 1 && self.served() > 0 {
            true => Ok(()),
            false => Err(format!("not all were served: {self}").into()),
        }
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: u64 = self.outcomes.values().sum();
        write!(formatter, "{all} requests in {:.1} s:", self.took.as_secs_f64())?;
        self.outcomes.iter().try_for_each(|(outcome, count)| write!(formatter, " {outcome} {count}"))
    }
}
