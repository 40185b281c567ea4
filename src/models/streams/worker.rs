//! How requests come and go while a worker writes: they join and leave between steps, each is answered as soon as it
//! is complete, and a reader that is slow holds up its own text alone.

use model_actors::{Batch, Capability, Completion, EmitError, Failure, Item, RequestId};

use super::{Held, Steps, Streams};

/// Runs a batch to its end, and whatever joins it meanwhile. `room` is what the caches of all texts together may hold,
/// in tokens.
///
/// # Errors
/// A computation that failed, for all texts.
pub(crate) fn serve<C, S>(model: &S, room: usize, batch: &mut Batch<'_, C>) -> Result<(), Failure>
where
    C: Capability<Chunk = String, Output = Completion>,
    S: Steps<C::Request>,
{
    let mut streams = Streams::new(room);
    let mut new = batch.items().len();
    loop {
        begin(model, &mut streams, batch, new);
        hand_out(&mut streams, batch);
        let moved = streams.step(model)?;
        batch.tick();
        hand_out(&mut streams, batch);
        new = batch.join();
        if batch.items().iter().all(Item::should_stop) {
            return Ok(());
        }
        if !moved && new == 0 {
            // Every text waits for its reader.
            batch.pause();
        }
    }
}

/// Takes in the last `new` items; one with a bad request fails alone.
fn begin<C, S>(model: &S, streams: &mut Streams<RequestId, S::State>, batch: &Batch<'_, C>, new: usize)
where
    C: Capability,
    S: Steps<C::Request>,
{
    for item in batch.items().iter().rev().take(new).rev() {
        if item.should_stop() {
            continue;
        }
        match model.begin(item.request()) {
            Ok(start) if start.prompt == 0 => {
                item.fail(Failure::invalid_input("the prompt has no tokens"));
            }
            Ok(start) => streams.add(item.id(), start),
            Err(error) => item.fail(error.into()),
        }
        batch.tick();
    }
}

/// Gives readers what there is for them, and lets go of texts that nobody waits for.
fn hand_out<C, State>(streams: &mut Streams<RequestId, State>, batch: &Batch<'_, C>)
where
    C: Capability<Chunk = String, Output = Completion>,
{
    for key in streams.keys() {
        let over = match batch.items().iter().find(|item| item.id() == key) {
            Some(item) if !item.should_stop() => streams.held(key).is_some_and(|held| deliver(item, held)),
            _ => true,
        };
        if over {
            streams.remove(key);
        }
    }
}

/// Gives one reader what there is for it; what it has no room for stays. True if nothing more is to come.
fn deliver<C>(item: &Item<C>, held: &mut Option<Held>) -> bool
where
    C: Capability<Chunk = String, Output = Completion>,
{
    let mut next = match held.take() {
        Some(Held { next: Ok(next) }) => next,
        Some(Held { next: Err(error) }) => {
            item.fail(error.into());
            return true;
        }
        None => return false,
    };
    match next.text.take().map_or(Ok(()), |text| item.try_emit(text)) {
        Ok(()) => {}
        Err(EmitError::Stopped) => return true,
        Err(EmitError::Full(text)) => {
            next.text = Some(text);
            *held = Some(Held { next: Ok(next) });
            return false;
        }
    }
    match next.finished {
        Some(completion) => {
            item.finish(completion);
            true
        }
        None => false,
    }
}
