//! A worker's run of a batch: the images are interleaved, a step each, so that all of them make progress.
//! Each is answered when it is finished, and dropped between two steps, or two parts of a step, when nobody
//! waits for it any more.

use model_actors::{Batch, Failure, Item, Model, TextToImage};

use super::denoising::Progress;
use super::model::TextToImageModel;
use super::noise::Noise;
use super::pipeline::Watch;
use crate::error::{Error, Result};

impl Model<TextToImage> for TextToImageModel {
    fn run(&mut self, batch: &mut Batch<'_, TextToImage>) -> Result<(), Failure> {
        let mut running = Vec::new();
        for item in batch.items() {
            item.begin();
            let watch = || is_wanted(item);
            let started = self.start(item.request(), Noise::seeded(item.request().seed), &Watch(&watch));
            if let Some(denoising) = isolate(item, started)? {
                running.push((item, denoising));
            }
        }
        while !running.is_empty() {
            for (item, mut denoising) in std::mem::take(&mut running) {
                let watch = || is_wanted(item);
                let progress = self.advance(&mut denoising, &Watch(&watch));
                let goes_on = match isolate(item, progress)? {
                    Some(Progress::Step(step)) => item.emit(step).is_ok(),
                    Some(Progress::Finished(picture)) => {
                        item.finish(picture);
                        false
                    }
                    None => false,
                };
                if goes_on {
                    running.push((item, denoising));
                }
            }
        }
        Ok(())
    }
}

/// Reports progress, and whether somebody still waits for the answer.
fn is_wanted(item: &Item<TextToImage>) -> bool {
    item.tick();
    !item.should_stop()
}

/// Answers an error that concerns one request to that request alone; an error of the computation ends the
/// run.
fn isolate<T>(item: &Item<TextToImage>, result: Result<T>) -> Result<Option<T>, Failure> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error @ (Error::Compute(_) | Error::OutOfMemory(_))) => Err(error.into()),
        Err(error) => {
            item.fail(error.into());
            Ok(None)
        }
    }
}
