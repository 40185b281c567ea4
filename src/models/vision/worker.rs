//! How a worker serves several requests at once. In each round one request that has not begun to write takes one short
//! step (a layer of the vision tower, a part of its prompt), and all that write take one together; between rounds
//! others join and leave. So a large image delays nobody by more than a layer.

use std::collections::HashMap;

use model_actors::{Batch, Failure, Item, Model, RequestId, Vision};

use super::request::{Step, rows, write};
use super::{Asked, RESERVED_TOKENS, VisionModel};
use crate::error::Result;
use crate::generation::Next;

/// The requests of a run, by their numbers.
type Requests = HashMap<RequestId, State>;

/// Where a request stands.
enum State {
    /// Being served.
    Served(Box<Asked>),
    /// Answered, refused, or nobody waits for it.
    Over,
}

impl Model<Vision> for VisionModel {
    fn run(&mut self, batch: &mut Batch<'_, Vision>) -> Result<(), Failure> {
        let mut requests = Requests::new();
        loop {
            self.admit(batch, &mut requests);
            if !requests.values().any(|state| matches!(state, State::Served(_))) {
                // Those who wait have no room, and there is nobody whose end would make some: none wait, that is.
                if batch.join() == 0 {
                    return Ok(());
                }
                continue;
            }
            self.prepare(batch, &mut requests);
            batch.tick();
            self.write(batch, &mut requests)?;
            batch.join();
        }
    }
}

impl VisionModel {
    /// Begins what is new and has room, and lets go of what nobody waits for.
    fn admit(&self, batch: &Batch<'_, Vision>, requests: &mut Requests) {
        let here = |id: &RequestId| batch.items().iter().any(|item| item.id() == *id);
        requests.retain(|id, _| here(id));
        for item in batch.items() {
            if item.should_stop() {
                requests.insert(item.id(), State::Over);
            } else if !requests.contains_key(&item.id()) && self.has_room(requests) {
                let state = match Asked::new(&self.shared, item.request()) {
                    Ok(asked) => State::Served(Box::new(asked)),
                    Err(error) => {
                        item.fail(error.into());
                        State::Over
                    }
                };
                requests.insert(item.id(), state);
                batch.tick();
            }
        }
    }

    /// Whether the texts in memory leave room for another. One is always taken, however long it may become.
    fn has_room(&self, requests: &Requests) -> bool {
        let served = requests.values().filter_map(|state| match state {
            State::Served(asked) => Some(asked.room),
            State::Over => None,
        });
        let taken = served.fold(None, |sum: Option<usize>, room| Some(sum.unwrap_or(0).saturating_add(room)));
        taken.is_none_or(|taken| taken < RESERVED_TOKENS)
    }

    /// One step of the first request, in the order of arrival, that does not write yet.
    fn prepare(&self, batch: &Batch<'_, Vision>, requests: &mut Requests) {
        let next = batch.items().iter().find(|item| match requests.get(&item.id()) {
            Some(State::Served(asked)) => !asked.writes(),
            Some(State::Over) | None => false,
        });
        let Some(item) = next else { return };
        let Some(State::Served(asked)) = requests.get_mut(&item.id()) else { return };
        let next = match self.threads.run(|| asked.advance(&self.shared)) {
            Ok(Step::More) => return,
            Ok(Step::Read(logits)) => rows(&logits).and_then(|rows| accept(asked, rows.into_iter().next())),
            Err(error) => Err(error),
        };
        if deliver(item, next) {
            requests.insert(item.id(), State::Over);
        }
    }

    /// One token of each request that writes.
    fn write(&self, batch: &Batch<'_, Vision>, requests: &mut Requests) -> Result<(), Failure> {
        let mut writing: Vec<(RequestId, &mut Asked)> = Vec::new();
        for (id, state) in requests.iter_mut() {
            match state {
                State::Served(asked) if asked.writes() => writing.push((*id, asked)),
                State::Served(_) | State::Over => {}
            }
        }
        if writing.is_empty() {
            return Ok(());
        }
        let mut asked: Vec<&mut Asked> = writing.iter_mut().map(|(_, asked)| &mut **asked).collect();
        let logits = self.threads.run(|| rows(&write(&self.shared, &mut asked)?))?;
        batch.tick();
        let mut over = Vec::new();
        for ((id, asked), logits) in writing.into_iter().zip(logits) {
            let next = accept(asked, Some(logits));
            let item = batch.items().iter().find(|item| item.id() == id);
            if item.is_none_or(|item| deliver(item, next)) {
                over.push(id);
            }
        }
        for id in over {
            requests.insert(id, State::Over);
        }
        Ok(())
    }
}

fn accept(asked: &mut Asked, logits: Option<Vec<f32>>) -> Result<Next> {
    asked.accept(&mut logits.unwrap_or_default())
}

/// Sends what a step made. True if the request is over with it.
fn deliver(item: &Item<Vision>, next: Result<Next>) -> bool {
    match next {
        Ok(Next { text, finished, .. }) => {
            if let Some(text) = text
                && item.emit(text).is_err()
            {
                return true;
            }
            match finished {
                Some(completion) => {
                    item.finish(completion);
                    true
                }
                None => false,
            }
        }
        Err(error) => {
            item.fail(error.into());
            true
        }
    }
}
