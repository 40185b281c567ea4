//! The ledger of requests, and the invariants: each is answered once, in time, with the chunks of one run; one that may
//! not run twice does not; no node takes more than it has slots, nor a request for other files.

use std::collections::{BTreeMap, BTreeSet};

pub(super) use super::calls::Broken;
use super::calls::Calls;
use crate::cluster::router::{Boot, GRACE, RequestKey, WINDOW, Wanted};
use crate::id::Time;

/// A piece of an answer: the execution that it comes from, and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) execution: u64,
    pub(super) number: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) wanted: Wanted,
    pub(super) lane: usize,
    pub(super) cost: u64,
    /// It is its own node's to run.
    pub(super) here: bool,
    reruns: bool,
    deadline: Time,
    pub(super) end: Time,
    executions: Vec<u64>,
    delivered: Vec<Piece>,
    read: u64,
    answered: Option<&'static str>,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) calls: Calls,
    pub(super) entries: BTreeMap<(Boot, RequestKey), Entry>,
    /// Those that are neither answered nor over.
    open: BTreeSet<(Boot, RequestKey)>,
    executions: u64,
}

impl Ledger {
    pub(super) fn open(
        &mut self,
        at: (Boot, RequestKey),
        wanted: Wanted,
        lane: usize,
        cost: u64,
        reruns: bool,
        times: [Time; 2],
    ) {
        let [deadline, end] = times;
        let (executions, delivered) = (Vec::new(), Vec::new());
        let (read, answered) = (0, None);
        let entry = Entry {
            wanted,
            lane,
            cost,
            here: false,
            reruns,
            deadline,
            end,
            executions,
            delivered,
            read,
            answered,
        };
        self.entries.insert(at, entry);
        self.open.insert(at);
    }

    /// An execution of a request begins somewhere. Returns its number.
    pub(super) fn execute(&mut self, at: (Boot, RequestKey), digest: &str) -> Result<u64, Broken> {
        self.executions += 1;
        let Some(entry) = self.entries.get_mut(&at) else { return Ok(self.executions) };
        entry.executions.push(self.executions);
        if *entry.wanted.digest != *digest {
            return Err((
                "only the same files",
                format!("{at:?} wants {:?} and runs with {digest}", entry.wanted),
            ));
        }
        if !entry.reruns && entry.executions.len() > 1 {
            return Err((
                "what may not run twice does not",
                format!("{at:?} runs as {:?}", entry.executions),
            ));
        }
        Ok(self.executions)
    }

    pub(super) fn deliver(&mut self, at: (Boot, RequestKey), piece: Piece) -> Result<(), Broken> {
        let Some(entry) = self.entries.get_mut(&at) else {
            return Err(("known", format!("{at:?} is delivered")));
        };
        if entry.answered.is_some() {
            return Err(("nothing after the answer", format!("{at:?} gets {piece:?}")));
        }
        let expected = entry.delivered.len() as u64;
        let is_of_one = entry.delivered.iter().all(|before| before.execution == piece.execution);
        if piece.number != expected || !is_of_one {
            let detail = format!("{at:?} gets {piece:?} after {:?}", entry.delivered);
            return Err(("the chunks of one run, in order", detail));
        }
        entry.delivered.push(piece);
        match entry.delivered.len() as u64 - entry.read {
            0..=WINDOW => Ok(()),
            unread => Err(("the window of a stream", format!("{at:?} has {unread} chunks unread"))),
        }
    }

    /// The caller reads so many chunks. Returns the number that it has read.
    pub(super) fn read(&mut self, at: (Boot, RequestKey), more: u64) -> u64 {
        let Some(entry) = self.entries.get_mut(&at) else { return 0 };
        entry.read = (entry.read + more).min(entry.delivered.len() as u64);
        entry.read
    }

    pub(super) fn answer(
        &mut self,
        at: (Boot, RequestKey),
        with: &'static str,
        now: Time,
    ) -> Result<(), Broken> {
        let Some(entry) = self.entries.get_mut(&at) else {
            return Err(("known", format!("{at:?} is answered")));
        };
        self.open.remove(&at);
        if let Some(before) = entry.answered.replace(with) {
            return Err(("answered once", format!("{at:?} gets {with} after {before}")));
        }
        let latest = if entry.delivered.is_empty() { entry.deadline.min(entry.end) } else { entry.end };
        if with == "late" && now < latest {
            return Err(("late is late", format!("{at:?} at {now:?}, before {latest:?}")));
        }
        Ok(())
    }

    /// A result comes: it is of the run whose chunks were delivered, and all of them.
    pub(super) fn finish(&mut self, at: (Boot, RequestKey), last: Piece, now: Time) -> Result<(), Broken> {
        self.answer(at, "finished", now)?;
        let Some(entry) = self.entries.get(&at) else { return Ok(()) };
        let is_whole = entry.delivered.len() as u64 == last.number
            && entry.delivered.iter().all(|piece| piece.execution == last.execution);
        if is_whole {
            Ok(())
        } else {
            Err(("a whole answer", format!("{at:?} ends with {last:?}: {entry:?}")))
        }
    }

    pub(super) fn close(&mut self, at: (Boot, RequestKey)) {
        self.open.remove(&at);
    }

    /// Closes the requests and calls of a node that has died.
    pub(super) fn close_all(&mut self, boot: Boot) {
        self.open.retain(|(at, _)| *at != boot);
        self.calls.close_all(boot);
    }

    /// Requests that are open.
    pub(super) fn open_of(&self, boot: Boot) -> impl Iterator<Item = &Entry> {
        let of_node = (boot, RequestKey(0))..=(boot, RequestKey(u64::MAX));
        self.open.range(of_node).filter_map(|at| self.entries.get(at))
    }

    /// Nobody waits beyond the time that was set.
    pub(super) fn check_times(&self, now: Time) -> Result<(), Broken> {
        let late =
            |at: &&(Boot, RequestKey)| self.entries.get(at).is_some_and(|entry| now > entry.end + GRACE);
        self.calls.check_times(now)?;
        match self.open.iter().find(late) {
            Some(at) => {
                Err(("answered in time", format!("{at:?} waits at {now:?}: {:?}", self.entries.get(at))))
            }
            None => Ok(()),
        }
    }

    pub(super) fn check_end(&self) -> Result<(), Broken> {
        self.calls.check_end()?;
        match self.open.first() {
            Some(at) => Err(("each request is answered", format!("{at:?}: {:?}", self.entries.get(at)))),
            None => Ok(()),
        }
    }
}
