//! A worker's run of a batch: it preprocesses the images of all requests one after another, packs them into
//! passes, looks at each step at who has gone, and answers each request as soon as its last vector is there.

use model_actors::{Batch, EmbedImages, EmbedInput, Embeddings, Failure, ImageEmbedding, Item, Model};

use super::inputs::{Input, Pass, fits};
use super::{ImageEmbeddingModel, normalize};
use crate::error::{Error, Result};
use crate::image_input::decoded;
use crate::models::answers::{Answers, check, watch};

/// The place of an image or text in a batch.
#[derive(Debug, Clone, Copy)]
struct Place {
    item: usize,
    index: usize,
}

/// A batch under way.
struct Run<'a, 'b> {
    model: &'a ImageEmbeddingModel,
    batch: &'a Batch<'b, ImageEmbedding>,
    answers: Answers<Vec<f32>>,
    /// Inputs of the next pass.
    waiting: Vec<(Place, Input)>,
}

impl Model<ImageEmbedding> for ImageEmbeddingModel {
    fn run(&mut self, batch: &mut Batch<'_, ImageEmbedding>) -> Result<(), Failure> {
        let mut run = Run { model: self, batch, answers: Answers::default(), waiting: Vec::new() };
        for (item, request) in batch.items().iter().enumerate() {
            let count = request.request().input.len();
            run.answers.open(item, count);
            for index in 0..count {
                run.take(Place { item, index })?;
            }
        }
        Ok(run.pass()?)
    }
}

impl Run<'_, '_> {
    /// Prepares one image or text for a pass, and runs those before it if it has no room beside them. If it
    /// is bad, its item fails alone.
    fn take(&mut self, place: Place) -> Result<()> {
        let Some(item) = self.batch.items().get(place.item) else { return Ok(()) };
        if item.should_stop() {
            self.answers.remove(place.item);
        }
        if !self.answers.contains(place.item) {
            return Ok(());
        }
        let input = self.prepare(item.request(), place.index);
        self.batch.tick();
        match input {
            Ok(input) => {
                let inputs = self.waiting.iter().map(|(_, input)| input);
                if !fits(inputs, &input) {
                    self.pass()?;
                }
                self.waiting.push((place, input));
            }
            Err(error) => {
                self.answers.remove(place.item);
                self.waiting.retain(|(other, _)| other.item != place.item);
                item.fail(error.into());
            }
        }
        Ok(())
    }

    fn prepare(&self, request: &EmbedImages, index: usize) -> Result<Input> {
        let shared = &self.model.shared;
        match &request.input {
            EmbedInput::Images(images) => shared.image(decoded(&images[index])?),
            EmbedInput::Texts(texts) => shared.text(&texts[index]),
        }
    }

    /// Runs what waits and is still wanted.
    fn pass(&mut self) -> Result<()> {
        let items = self.batch.items();
        let wanted = |(place, _): &(Place, Input)| !items[place.item].should_stop();
        let waiting = std::mem::take(&mut self.waiting).into_iter().filter(wanted);
        let (places, inputs): (Vec<Place>, Vec<Input>) = waiting.unzip();
        if inputs.is_empty() {
            return Ok(());
        }
        let waited: Vec<&Item<ImageEmbedding>> = places.iter().map(|place| &items[place.item]).collect();
        let vectors = match self.model.shared.run(&self.model.threads, Pass::of(inputs), &|| watch(&waited)) {
            // Whoever waits for other passes still gets them.
            Err(Error::Stopped) => return Ok(()),
            vectors => vectors?,
        };
        self.batch.tick();
        for (place, vector) in places.into_iter().zip(vectors) {
            let item = &items[place.item];
            match check(vector) {
                Ok(mut vector) => {
                    normalize(&mut vector);
                    if let Some(vectors) = self.answers.put(place.item, place.index, vector) {
                        item.finish(Embeddings::new(vectors));
                    }
                }
                Err(error) if self.answers.contains(place.item) => {
                    self.answers.remove(place.item);
                    item.fail(error.into());
                }
                Err(_) => {}
            }
        }
        Ok(())
    }
}
