//! Ledger of the soak test: the outcome of each request as its caller saw it, and the discrepancies at the
//! end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use candle_actors::model_actors::Error;
use serde::Serialize;

use super::meter::{MetricCounts, Reading};
use super::{Options, Plant};

/// Events that a soak has to see; without them its success proves little.
const FAULTS: [&str; 10] = [
    "breaker opened",
    "child of the system killed",
    "evicted, cooldown",
    "evicted, make_room",
    "evicted, shutdown",
    "evicted, unload",
    "load failed",
    "worker crashed",
    "worker restarted",
    "worker stuck",
];
/// Errors that a soak has to see.
const ERRORS: [&str; 6] =
    ["circuit_open", "memory_exhausted", "poison", "shutting_down", "slow_reader", "worker_stuck"];

/// Outcome of a request for its caller.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The requested answer.
    Good,
    /// The answer to another request.
    Wrong,
    /// An error before it was accepted.
    Refused(Error),
    /// An error, and whether this request is the cause.
    Failed(Error, Earned),
    /// Cancelled by its caller.
    Cancelled,
    /// No answer came, long after every deadline.
    Never,
}

/// Cause of an error, seen from the request that got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Earned {
    /// The request itself, or a limit that it met.
    Yes,
    /// Another request.
    No,
}

/// Collects the outcomes of all requests.
pub(crate) struct Ledger {
    /// Number of times that each request has ended.
    endings: Vec<AtomicU8>,
    counts: Mutex<Counts>,
    plant: Option<Plant>,
}

/// Counts of callers and event listeners.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Counts {
    /// Requests handed to the library.
    pub(crate) sent: u64,
    /// Of these, refused before they had a slot. A call that ends with `shutting_down` counts as refused.
    pub(crate) refused: u64,
    /// Ended well.
    pub(crate) ok: u64,
    /// Ended with an error, by reason; the refused ones are among them.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Given up by their callers.
    pub(crate) cancelled: u64,
    /// Ended with the answer to another request.
    pub(crate) wrong_answers: u64,
    /// Ended with an error that another request caused.
    pub(crate) undeserved_errors: u64,
    /// Calls of preload, unload and pin.
    pub(crate) calls: u64,
    /// Those that did not return.
    pub(crate) calls_unanswered: u64,
    /// Events of the systems, by kind.
    pub(crate) faults: BTreeMap<String, u64>,
}

impl Ledger {
    /// An empty ledger for so many requests.
    pub(crate) fn new(requests: usize, plant: Option<Plant>) -> Self {
        let endings = (0..requests).map(|_| AtomicU8::new(0)).collect();
        Self { endings, counts: Mutex::default(), plant }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request is handed to the library.
    pub(crate) fn sent(&self) {
        self.counts().sent += 1;
    }

    /// A request has ended.
    pub(crate) fn ended(&self, request: usize, ending: Ending) {
        let times = match self.plant {
            Some(Plant::Lost) if request == 7 => 0,
            Some(Plant::Twice) if request == 7 => 2,
            _ => 1,
        };
        if matches!(ending, Ending::Never) {
            return;
        }
        for _ in 0..times {
            self.endings[request].fetch_add(1, Ordering::Relaxed);
            self.count(&ending);
        }
    }

    fn count(&self, ending: &Ending) {
        let mut counts = self.counts();
        match ending {
            Ending::Good => counts.ok += 1,
            Ending::Wrong => {
                counts.ok += 1;
                counts.wrong_answers += 1;
            }
            Ending::Refused(error) | Ending::Failed(error, _) => {
                *counts.errors.entry(error.reason().to_owned()).or_default() += 1;
                counts.refused += u64::from(matches!(ending, Ending::Refused(_)));
                counts.undeserved_errors += u64::from(matches!(ending, Ending::Failed(_, Earned::No)));
            }
            Ending::Cancelled => counts.cancelled += 1,
            Ending::Never => {}
        }
    }

    /// A call of preload, unload or pin has returned, or not.
    pub(crate) fn called(&self, returned: bool) {
        let mut counts = self.counts();
        counts.calls += 1;
        counts.calls_unanswered += u64::from(!returned);
    }

    /// Something happened in the tree.
    pub(crate) fn saw(&self, fault: &str) {
        *self.counts().faults.entry(fault.to_owned()).or_default() += 1;
    }

    /// Sums up the outcome and its discrepancies.
    pub(crate) fn report(
        &self,
        options: Options,
        took: Duration,
        (before, after): (Reading, Reading),
        metrics: MetricCounts,
    ) -> Report {
        let times = || self.endings.iter().map(|endings| endings.load(Ordering::Relaxed));
        let mut report = Report {
            seed: options.seed,
            requests: options.requests,
            seconds: took.as_secs_f64(),
            counts: self.counts().clone(),
            answered_twice: times().filter(|times| *times > 1).count() as u64,
            never_answered: times().filter(|times| *times == 0).count() as u64,
            before,
            after,
            metrics,
            discrepancies: Vec::new(),
        };
        report.discrepancies = report.check();
        report
    }
}

/// The outcome of a soak.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// Seed of all random choices.
    pub(crate) seed: u64,
    /// Requests wanted.
    pub(crate) requests: usize,
    /// Duration of the soak.
    pub(crate) seconds: f64,
    /// Counts of callers and event listeners.
    #[serde(flatten)]
    pub(crate) counts: Counts,
    /// Requests that ended more than once.
    pub(crate) answered_twice: u64,
    /// Requests that did not end.
    pub(crate) never_answered: u64,
    /// In use before the first system.
    pub(crate) before: Reading,
    /// In use after the last.
    pub(crate) after: Reading,
    /// Counts of the metrics.
    pub(crate) metrics: MetricCounts,
    /// Discrepancies, in words.
    pub(crate) discrepancies: Vec<String>,
}

impl Report {
    /// Requests that had a slot.
    pub(crate) fn accepted(&self) -> u64 {
        self.counts.sent - self.counts.refused
    }

    /// True without discrepancies.
    pub(crate) fn adds_up(&self) -> bool {
        self.discrepancies.is_empty()
    }

    /// Events and errors that never occurred, without which the soak proves little.
    pub(crate) fn faults_that_did_not_happen(&self) -> Vec<&'static str> {
        let faults = FAULTS.into_iter().filter(|fault| !self.counts.faults.contains_key(*fault));
        faults.chain(ERRORS.into_iter().filter(|reason| self.error(reason) == 0)).collect()
    }

    fn errors(&self) -> u64 {
        self.counts.errors.values().sum()
    }

    fn error(&self, reason: &str) -> u64 {
        self.counts.errors.get(reason).copied().unwrap_or(0)
    }

    fn check(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut equal = |what: &str, left: u64, right: u64| {
            if left != right {
                found.push(format!("{what}: {left} against {right}"));
            }
        };
        let (counts, metrics) = (&self.counts, &self.metrics);
        equal("requests sent and wanted", counts.sent, self.requests as u64);
        let ended = counts.ok + self.errors() + counts.cancelled;
        equal("requests ended and sent", ended, counts.sent);
        equal("answered twice", self.answered_twice, 0);
        equal("never answered", self.never_answered, 0);
        equal("answers to something else", counts.wrong_answers, 0);
        equal("errors that another request had earned", counts.undeserved_errors, 0);
        equal("calls that did not return", counts.calls_unanswered, 0);
        equal("requests, by metric and by caller", metrics.requests, counts.sent);
        equal("ended well, by metric and by caller", metrics.succeeded, counts.ok);
        equal("cancelled, by metric and by caller", metrics.cancelled, counts.cancelled);
        equal("timeouts, by metric and by caller", metrics.timeouts, self.error("timeout"));
        equal("queue full, by metric and by caller", metrics.queue_full, self.error("overloaded"));
        let reasons = metrics.errors.keys().chain(counts.errors.keys());
        for reason in reasons.collect::<std::collections::BTreeSet<_>>() {
            let counted = metrics.errors.get(reason).copied().unwrap_or(0);
            equal(&format!("{reason}, by metric and by caller"), counted, self.error(reason));
        }
        equal("slots held after and before", self.after.slots as u64, self.before.slots as u64);
        equal("bytes charged after and before", self.after.bytes, self.before.bytes);
        equal("models in memory after and before", self.after.models as u64, self.before.models as u64);
        let or_none = |number: Option<usize>| number.unwrap_or(0) as u64;
        equal("threads after and before", or_none(self.after.threads), or_none(self.before.threads));
        let [after, before] = [&self.after, &self.before].map(|reading| or_none(reading.descriptors));
        equal("file descriptors after and before", after, before);
        found
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(formatter, "soak: {} requests, seed {}, {:.1} s\n", self.requests, self.seed, self.seconds)?;
        let mut line = |what: &str, number: u64| writeln!(formatter, "  {what:<28}{number:>9}");
        line("sent", counts.sent)?;
        line("refused", counts.refused)?;
        line("accepted", self.accepted())?;
        line("ok", counts.ok)?;
        line("errors", self.errors())?;
        for (reason, number) in &counts.errors {
            line(&format!("  {reason}"), *number)?;
        }
        line("cancelled by their caller", counts.cancelled)?;
        line("answered twice", self.answered_twice)?;
        line("never answered", self.never_answered)?;
        line("wrong answers", counts.wrong_answers)?;
        line("undeserved errors", counts.undeserved_errors)?;
        line("preload, unload, pin calls", counts.calls)?;
        line("  that did not return", counts.calls_unanswered)?;
        writeln!(formatter, "\nwhat happened in the trees")?;
        for (fault, number) in &counts.faults {
            writeln!(formatter, "  {fault:<28}{number:>9}")?;
        }
        for fault in self.faults_that_did_not_happen() {
            writeln!(formatter, "  {fault:<28}    never")?;
        }
        self.fmt_readings(formatter)?;
        match self.adds_up() {
            true => write!(formatter, "\nEverything adds up; the metrics agree with the callers."),
            false => write!(formatter, "\nIT DOES NOT ADD UP:\n  {}", self.discrepancies.join("\n  ")),
        }
    }
}

impl Report {
    fn fmt_readings(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "\nin use{:>23}{:>9}", "before", "after")?;
        let mut line = |what: &str, before: String, after: String| {
            writeln!(formatter, "  {what:<18}{before:>9}{after:>9}")
        };
        let known = |number: Option<usize>| number.map_or("unknown".to_owned(), |number| number.to_string());
        let (before, after) = (&self.before, &self.after);
        line("slots", before.slots.to_string(), after.slots.to_string())?;
        line("bytes", before.bytes.to_string(), after.bytes.to_string())?;
        line("models", before.models.to_string(), after.models.to_string())?;
        line("threads", known(before.threads), known(after.threads))?;
        line("descriptors", known(before.descriptors), known(after.descriptors))
    }
}
