//! How a worker serves several requests at once. In each round one request that has not begun to write takes one short
//! step (a layer of the vision tower, a part of its prompt), and all that write take one together; between rounds
//! others join and leave. So a large image delays nobody by more than a layer, and a reader who does not keep up delays
//! nobody at all.

use std::collections::HashMap;

use model_actors::{Batch, EmitError, Failure, Item, Model, RequestId, Vision};

use super::request::{Step, rows, write};
use super::{Asked, RESERVED_TOKENS, VisionModel};
use crate::error::Result;
use crate::generation::Next;

/// The requests of a run, by their numbers.
type Requests = HashMap<RequestId, State>;

/// Where a request stands.
enum State {
    /// Being served.
    Served(Box<Served>),
    /// Answered, refused, or nobody waits for it.
    Over,
}

struct Served {
    asked: Asked,
    /// What its reader has no room for yet. It takes no step meanwhile.
    held: Option<Next>,
}

/// What became of a round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    Stepped,
    /// All wait for their readers.
    Idle,
}

impl Model<Vision> for VisionModel {
    fn run(&mut self, batch: &mut Batch<'_, Vision>) -> Result<(), Failure> {
        let mut requests = Requests::new();
        loop {
            self.admit(batch, &mut requests);
            if !requests.values().any(|state| matches!(state, State::Served(_))) {
                // Nobody waits for room either: one is always taken.
                if batch.join() == 0 {
                    return Ok(());
                }
                continue;
            }
            for item in batch.items() {
                settle(item, &mut requests);
            }
            let prepared = self.prepare(batch, &mut requests);
            batch.tick();
            let written = self.write(batch, &mut requests)?;
            if (prepared, written) == (Round::Idle, Round::Idle) {
                batch.pause();
            }
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
            } else if !requests.contains_key(&item.id()) && has_room(requests) {
                let state = match Asked::new(&self.shared, item.request()) {
                    Ok(asked) => State::Served(Box::new(Served { asked, held: None })),
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

    /// One step of the first request, in the order of arrival, that does not write yet.
    fn prepare(&self, batch: &Batch<'_, Vision>, requests: &mut Requests) -> Round {
        for item in batch.items() {
            let Some(State::Served(served)) = requests.get_mut(&item.id()) else { continue };
            if served.asked.writes() || served.held.is_some() {
                continue;
            }
            let next = match self.threads.run(|| served.asked.advance(&self.shared)) {
                Ok(Step::More) => return Round::Stepped,
                Ok(Step::Read(logits)) => {
                    rows(&logits).and_then(|rows| accept(&mut served.asked, rows.into_iter().next()))
                }
                Err(error) => Err(error),
            };
            take(item, requests, next);
            return Round::Stepped;
        }
        Round::Idle
    }

    /// One token of each request that writes and whose reader keeps up.
    fn write(&self, batch: &Batch<'_, Vision>, requests: &mut Requests) -> Result<Round, Failure> {
        let mut writing: Vec<(RequestId, &mut Asked)> = Vec::new();
        for (id, state) in requests.iter_mut() {
            match state {
                State::Served(served) if served.asked.writes() && served.held.is_none() => {
                    writing.push((*id, &mut served.asked));
                }
                State::Served(_) | State::Over => {}
            }
        }
        if writing.is_empty() {
            return Ok(Round::Idle);
        }
        let mut asked: Vec<&mut Asked> = writing.iter_mut().map(|(_, asked)| &mut **asked).collect();
        let logits = self.threads.run(|| rows(&write(&self.shared, &mut asked)?))?;
        let made = writing.into_iter().zip(logits);
        let made: Vec<_> = made.map(|((id, asked), logits)| (id, accept(asked, Some(logits)))).collect();
        for (id, next) in made {
            if let Some(item) = batch.items().iter().find(|item| item.id() == id) {
                take(item, requests, next);
            }
        }
        Ok(Round::Stepped)
    }
}

/// Whether the texts in memory leave room for another. One is always taken, however long it may become.
fn has_room(requests: &Requests) -> bool {
    let served = requests.values().filter_map(|state| match state {
        State::Served(served) => Some(served.asked.room),
        State::Over => None,
    });
    let taken = served.fold(None, |sum: Option<usize>, room| Some(sum.unwrap_or(0).saturating_add(room)));
    taken.is_none_or(|taken| taken < RESERVED_TOKENS)
}

fn accept(asked: &mut Asked, logits: Option<Vec<f32>>) -> Result<Next> {
    asked.accept(&mut logits.unwrap_or_default())
}

/// What a step made goes to its reader, or is kept until there is room.
fn take(item: &Item<Vision>, requests: &mut Requests, next: Result<Next>) {
    match (next, requests.get_mut(&item.id())) {
        (Ok(next), Some(State::Served(served))) => {
            served.held = Some(next);
            settle(item, requests);
        }
        (Ok(_), _) => {}
        (Err(error), _) => {
            item.fail(error.into());
            requests.insert(item.id(), State::Over);
        }
    }
}

/// Sends what is held for a reader, as far as there is room.
fn settle(item: &Item<Vision>, requests: &mut Requests) {
    let Some(State::Served(served)) = requests.get_mut(&item.id()) else { return };
    let Some(mut next) = served.held.take() else { return };
    let sent = next.text.take().map_or(Ok(()), |text| item.try_emit(text));
    match (sent, next.finished.take()) {
        (Err(EmitError::Full(text)), finished) => {
            served.held = Some(Next { text: Some(text), finished, ..next });
        }
        (Ok(()), None) => {}
        (Ok(()), Some(completion)) => {
            item.finish(completion);
            requests.insert(item.id(), State::Over);
        }
        (Err(EmitError::Stopped), _) => {
            requests.insert(item.id(), State::Over);
        }
    }
}
