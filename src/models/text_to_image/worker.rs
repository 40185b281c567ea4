//! How a worker runs a batch: its pictures take turns, a step each, so that all of them make progress; each is answered
//! when it is finished, and dropped at the next turn, or between two parts of a step, when nobody waits for it.

use model_actors::{Batch, Failure, Item, Model, TextToImage};

use super::{Advance, Noise, TextToImageModel, Watch};
use crate::error::{Error, Result};

impl Model<TextToImage> for TextToImageModel {
    fn run(&mut self, batch: &mut Batch<'_, TextToImage>) -> Result<(), Failure> {
        let mut easels = Vec::new();
        for item in batch.items() {
            let watch = || is_wanted(item);
            let begun = self.begin(item.request(), Noise::seeded(item.request().seed), &Watch(&watch));
            if let Some(painting) = alone(item, begun)? {
                easels.push((item, painting));
            }
        }
        while !easels.is_empty() {
            for (item, mut painting) in std::mem::take(&mut easels) {
                let watch = || is_wanted(item);
                let advance = self.advance(&mut painting, &Watch(&watch));
                let goes_on = match alone(item, advance)? {
                    Some(Advance::Step(step)) => item.emit(step).is_ok(),
                    Some(Advance::Finished(picture)) => {
                        item.finish(picture);
                        false
                    }
                    None => false,
                };
                if goes_on {
                    easels.push((item, painting));
                }
            }
        }
        Ok(())
    }
}

fn is_wanted(item: &Item<TextToImage>) -> bool {
    item.tick();
    !item.should_stop()
}

/// What is wrong with one request ends that request; what is wrong with the computation ends the run.
fn alone<T>(item: &Item<TextToImage>, result: Result<T>) -> Result<Option<T>, Failure> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error @ (Error::Compute(_) | Error::OutOfMemory(_))) => Err(error.into()),
        Err(error) => {
            item.fail(error.into());
            Ok(None)
        }
    }
}
