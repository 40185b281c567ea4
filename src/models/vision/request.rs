//! One request on its way through a model: its crops go through the vision tower layer by layer, the prompt is read
//! part by part, and then the answer is written, a token a step. Between any two steps others may take theirs.

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use candle_core::Tensor;
use model_actors::{DescribeImage, ImageSource};

use super::{LoadedModel, Memory, Prompt};
use crate::error::{Error, Result};
use crate::generation::{Generation, Next};
use crate::image_input::picture_of;
use crate::pixels::check;

/// A request that is being served.
pub(super) struct Asked {
    pub(super) prompt: Prompt,
    stage: Stage,
    generation: Generation,
    /// Most tokens that it may come to have in memory.
    pub(super) room: usize,
}

/// How far it is.
enum Stage {
    /// A crop is in the tower.
    Looking { kept: Vec<Vec<Tensor>>, layer: usize, hidden: Option<Tensor> },
    /// The prompt is being read.
    Reading(Memory),
    /// This token is to be read next.
    Writing(Memory, u32),
}

/// What a step before the answer came to.
pub(super) enum Step {
    /// More such steps are needed.
    More,
    /// The prompt is read; these are the first token's logits.
    Read(Tensor),
}

impl Asked {
    /// Decodes and preprocesses the image, and refuses what does not fit the context.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] and the errors of images.
    pub(super) fn new(model: &LoadedModel, request: &DescribeImage) -> Result<Self> {
        let picture = match &request.image {
            // Decoded by whoever asked, within limits of its own.
            ImageSource::Picture(picture) => {
                check(picture)?;
                Cow::Borrowed(picture)
            }
            other => Cow::Owned(picture_of(other, &model.limits)?),
        };
        let prompt = model.network.prompt(&model.tokens, &picture, &request.question)?;
        let (needed, context) = (prompt.tokens.len(), model.context);
        if needed >= context {
            return Err(Error::InvalidInput(format!(
                "the image and the question take {needed} tokens, which leaves no room for an answer; the model's \
                 context has {context}"
            )));
        }
        let most = request.max_tokens.min(context - needed);
        let ends = model.network.ends();
        let generation = Generation::new(&model.tokens, &request.sampling, &[], most, &prompt.tokens, ends)?;
        let stage = Stage::Looking { kept: Vec::new(), layer: 0, hidden: None };
        Ok(Self { room: needed + most, prompt, stage, generation })
    }

    /// Whether it writes already.
    pub(super) fn writes(&self) -> bool {
        matches!(self.stage, Stage::Writing(..))
    }

    /// One step towards the answer's first token; a step of the answer is [`write`].
    pub(super) fn advance(&mut self, model: &LoadedModel) -> Result<Step> {
        let network = &*model.network;
        model.steps.fetch_add(1, Ordering::Relaxed);
        match &mut self.stage {
            Stage::Looking { kept, layer, hidden } => {
                match self.prompt.crops.get(kept.len().saturating_sub(usize::from(hidden.is_some()))) {
                    Some(crop) => {
                        look(model, crop, kept, layer, hidden)?;
                    }
                    None => {
                        let image = network.image(&self.prompt, kept)?;
                        self.stage = Stage::Reading(network.begin(&self.prompt, image)?);
                    }
                }
                Ok(Step::More)
            }
            Stage::Reading(memory) => Ok(network.read(memory)?.map_or(Step::More, Step::Read)),
            Stage::Writing(..) => Ok(Step::More),
        }
    }

    /// Chooses the next token by its logits, which are spoiled.
    ///
    /// # Errors
    /// [`Error::NotFiniteOutput`].
    pub(super) fn accept(&mut self, logits: &mut [f32]) -> Result<Next> {
        let next = self.generation.accept(logits)?;
        let stage =
            std::mem::replace(&mut self.stage, Stage::Looking { kept: Vec::new(), layer: 0, hidden: None });
        self.stage = match stage {
            Stage::Reading(memory) | Stage::Writing(memory, _) => Stage::Writing(memory, next.token),
            looking @ Stage::Looking { .. } => looking,
        };
        Ok(next)
    }

    /// What was kept of the image, if all of it was looked at just now. For comparison with a reference.
    pub(super) fn looked(&self, model: &LoadedModel) -> Result<Option<Tensor>> {
        match &self.stage {
            Stage::Looking { kept, hidden: None, .. } if kept.len() == self.prompt.crops.len() => {
                Ok(Some(model.network.image(&self.prompt, kept)?.rows))
            }
            _ => Ok(None),
        }
    }
}

/// One layer of the tower for one crop, or what comes before the first.
fn look(
    model: &LoadedModel,
    crop: &Tensor,
    kept: &mut Vec<Vec<Tensor>>,
    layer: &mut usize,
    hidden: &mut Option<Tensor>,
) -> Result<()> {
    let network = &*model.network;
    let next = match hidden.take() {
        None => {
            kept.push(Vec::new());
            *layer = 0;
            network.open_crop(crop)?
        }
        Some(before) => {
            let next = network.tower_layer(*layer, &before, crop)?;
            *layer += 1;
            next
        }
    };
    if let Some(kept) = kept.last_mut() {
        kept.extend(network.keep(*layer, &next)?);
    }
    if *layer < network.tower_layers() {
        *hidden = Some(next);
    }
    Ok(())
}

/// One step of several answers: logits of the next token of each, `(answers, vocabulary)`.
pub(super) fn write(model: &LoadedModel, asked: &mut [&mut Asked]) -> Result<Tensor> {
    model.steps.fetch_add(1, Ordering::Relaxed);
    let mut answers: Vec<(&mut Memory, u32)> = asked
        .iter_mut()
        .filter_map(|asked| match &mut asked.stage {
            Stage::Writing(memory, token) => Some((memory, *token)),
            Stage::Looking { .. } | Stage::Reading(_) => None,
        })
        .collect();
    model.network.write(&mut answers)
}

/// The rows of logits as numbers.
pub(super) fn rows(logits: &Tensor) -> Result<Vec<Vec<f32>>> {
    Ok(logits.to_vec2()?)
}
