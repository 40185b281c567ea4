//! Requests of a worker that writes: they join and leave between steps, and each is answered as soon as it is
//! complete. A reader that is slow holds up its own text, and who waits for the room that this text keeps;
//! nobody else that is being written.

use std::collections::VecDeque;

use model_actors::{Batch, Capability, Completion, EmitError, Failure, Item, RequestId, TextChunk};

use super::{Held, Prepared, Steps, Streams, Wait};
use crate::limits::GenerationLimits;

/// Runs a batch to its end, and whatever joins it meanwhile, within these limits.
///
/// # Errors
/// A computation that failed, for all texts.
pub(crate) fn serve<C, S>(
    model: &S,
    limits: GenerationLimits,
    batch: &mut Batch<'_, C>,
) -> Result<(), Failure>
where
    C: Capability<Chunk = TextChunk, Output = Completion>,
    S: Steps<C::Request>,
{
    let mut streams = Streams::new(limits);
    let mut new: VecDeque<RequestId> = batch.items().iter().map(Item::id).collect();
    let mut waits = Vec::new();
    loop {
        let over = end_waits(batch, &mut waits, &mut new);
        begin(model, &mut streams, batch, (&mut new, &mut waits));
        drop(over);
        hand_out(&mut streams, batch);
        // However long a prompt takes to read, its request waits no longer.
        batch.items().iter().filter(|item| streams.reads(item.id())).for_each(Item::begin);
        let moved = streams.step(model)?;
        batch.tick();
        hand_out(&mut streams, batch);
        let joined = batch.join();
        let items = batch.items();
        new.extend(items.iter().skip(items.len().saturating_sub(joined)).map(Item::id));
        if batch.items().iter().all(Item::should_stop) {
            return Ok(());
        }
        let may_begin = !new.is_empty() && streams.wants_more(model);
        if !moved && !may_begin {
            // Every text waits for its reader, or for what it needs.
            batch.pause();
        }
    }
}

/// Begins requests in the order of their arrival, as far as it is of use; one that is bad fails alone. A
/// request that is refused has taken time, as its prompt may have been tokenized, and fills no step; so where
/// others write, they get a step first.
fn begin<C, S>(
    model: &S,
    streams: &mut Streams<RequestId, S::State>,
    batch: &Batch<'_, C>,
    (new, waits): (&mut VecDeque<RequestId>, &mut Vec<(RequestId, Wait)>),
) where
    C: Capability,
    S: Steps<C::Request>,
{
    while streams.wants_more(model)
        && let Some(id) = new.pop_front()
    {
        let Some(item) = batch.items().iter().find(|item| item.id() == id) else { continue };
        if item.should_stop() {
            continue;
        }
        let begun = match model.prepare(item.request()) {
            // Held until its text has it too.
            Ok(Prepared::There(_held)) => model.begin(item.request()),
            Ok(Prepared::Later(wait)) => {
                waits.push((id, wait));
                continue;
            }
            Err(error) => Err(error),
        };
        let begun = match begun {
            Ok(start) if model.unread(&start.state) == 0 => {
                Err(Failure::invalid_input("the prompt has no tokens"))
            }
            begun => begun.and_then(|start| streams.add(model, id, start)).map_err(Failure::from),
        };
        let was_refused = begun.is_err();
        if let Err(failure) = begun {
            item.fail(failure);
        }
        batch.tick();
        if was_refused && streams.moves() {
            return;
        }
    }
}

/// Ends the waits that are over: their requests are the next to begin, in their order, or fail. What they waited for is there as long as what
/// is returned.
fn end_waits<C: Capability>(
    batch: &Batch<'_, C>,
    waits: &mut Vec<(RequestId, Wait)>,
    new: &mut VecDeque<RequestId>,
) -> Vec<(RequestId, Wait)> {
    let mut ready = Vec::new();
    let is_over = |(id, wait): &mut (RequestId, Wait)| {
        let item = batch.items().iter().find(|item| item.id() == *id).filter(|item| !item.should_stop());
        match (item, item.and_then(|_| wait())) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(_), Some(Ok(()))) => {
                ready.push(*id);
                true
            }
            (Some(item), Some(Err(error))) => {
                item.fail(error.into());
                true
            }
        }
    };
    let over = waits.extract_if(.., is_over).collect();
    ready.into_iter().rev().for_each(|id| new.push_front(id));
    over
}

/// Gives readers what there is for them, and lets go of texts that nobody waits for.
fn hand_out<C, State>(streams: &mut Streams<RequestId, State>, batch: &Batch<'_, C>)
where
    C: Capability<Chunk = TextChunk, Output = Completion>,
{
    for (key, answer) in streams.texts() {
        let item = batch.items().iter().find(|item| item.id() == key).filter(|item| !item.should_stop());
        let Some(item) = item else {
            streams.remove(key);
            continue;
        };
        match streams.held(key, answer).map_or(Delivered::Waits, |held| deliver(item, answer, held)) {
            Delivered::Waits => {}
            Delivered::Over => streams.remove(key),
            Delivered::Complete(completion) => {
                if let Some(whole) = streams.finish(key, answer, completion) {
                    item.finish(whole);
                }
            }
        }
    }
}

/// State of an answer, once its reader has what it has room for.
enum Delivered {
    /// More is to come.
    Waits,
    Complete(Completion),
    /// Its request is answered with an error, or its reader has gone.
    Over,
}

/// Gives one reader what there is for it; what it has no room for stays.
fn deliver<C>(item: &Item<C>, answer: usize, held: &mut Option<Held>) -> Delivered
where
    C: Capability<Chunk = TextChunk, Output = Completion>,
{
    let mut next = match held.take() {
        Some(Held { next: Ok(next) }) => next,
        Some(Held { next: Err(error) }) => {
            item.fail(error.into());
            return Delivered::Over;
        }
        None => return Delivered::Waits,
    };
    let emitted = match next.chunk.take() {
        Some(chunk) => item.try_emit(chunk.with_answer(answer)),
        None => Ok(()),
    };
    match emitted {
        Ok(()) => {}
        Err(EmitError::Stopped) => return Delivered::Over,
        Err(EmitError::Full(chunk)) => {
            next.chunk = Some(chunk);
            *held = Some(Held { next: Ok(next) });
            return Delivered::Waits;
        }
    }
    next.finished.map_or(Delivered::Waits, Delivered::Complete)
}
