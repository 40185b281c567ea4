//! A vision model's part in the steps of a worker: a request that has not begun to write fills a step's share
//! of prompts with a layer of the vision tower, or what comes before and after the layers, or a part of one
//! of these, or a part of its prompt; and all that write read one token each. So once a picture is cut, which
//! is done in one go between two steps, its size delays nobody by more than a layer over a crop of some
//! thousand rows. Who takes part, and who waits, is left to `continuous_batching`.

use std::sync::atomic::Ordering;

use model_actors::{Batch, DescribeImage, Failure, Model, Vision};

use super::request::{ActiveRequest, Stage};
use super::{Answer, PROMPT_ROWS, VisionModel, misfit};
use crate::error::Result;
use crate::image_input::decoded;
use crate::models::continuous_batching::{self, Logits, Part, Start, Steps};

impl Model<Vision> for VisionModel {
    fn run(&mut self, batch: &mut Batch<'_, Vision>) -> Result<(), Failure> {
        continuous_batching::serve(self, self.shared.limits, batch)
    }
}

impl Steps<DescribeImage> for VisionModel {
    type State = ActiveRequest;

    fn begin(&self, request: &DescribeImage) -> Result<Start<ActiveRequest>> {
        let pictures = request.images().map(decoded).collect::<Result<Vec<_>>>()?;
        ActiveRequest::begin(&self.shared, &pictures, request)
    }

    fn unread(&self, asked: &ActiveRequest) -> usize {
        if matches!(asked.stage, Stage::Decoding(..)) { 1 } else { PROMPT_ROWS }
    }

    fn step(&self, texts: &mut [Part<'_, ActiveRequest>]) -> Result<Vec<Logits>> {
        let mut made = Vec::with_capacity(texts.len());
        let (mut places, mut answers) = (Vec::new(), Vec::new());
        for (place, Part { state, .. }) in texts.iter_mut().enumerate() {
            if self.unread(state) > 1 {
                made.push(self.threads.run(|| state.advance(&self.shared)));
            } else if let Stage::Decoding(answer, token) = &mut state.stage {
                places.push(place);
                answers.push((answer, *token));
                made.push(Ok(None));
            }
        }
        if !answers.is_empty() {
            let rows = self.write(&mut answers)?;
            for (place, row) in places.into_iter().zip(rows) {
                made[place] = Ok(Some(row));
            }
        }
        Ok(made)
    }

    fn chosen(&self, asked: &mut ActiveRequest, token: u32) {
        asked.chosen(token);
    }

    fn again(&self, asked: &ActiveRequest) -> Result<ActiveRequest> {
        Ok(asked.again())
    }

    fn fork(&self, asked: &ActiveRequest) -> Result<Option<ActiveRequest>> {
        asked.fork()
    }
}

impl VisionModel {
    /// One token of each answer.
    fn write(&self, answers: &mut [(&mut Answer, u32)]) -> Result<Vec<Vec<f32>>> {
        self.shared.steps.fetch_add(1, Ordering::Relaxed);
        let rows = self.threads.run(|| self.shared.network.language_model().write(answers))?.to_vec2()?;
        if rows.len() == answers.len() { Ok(rows) } else { Err(misfit()) }
    }
}
