//! One request on its way through a model: the crops of its images go through the vision tower layer by layer, a
//! large one in parts of layers, the prompt is read part by part, and then the answer is written, a token a step.
//! Between any two steps others may take theirs.

use std::sync::atomic::Ordering;

use candle_core::Tensor;
use model_actors::{DescribeImage, Picture};

use super::asked::Asked;
use super::{Answer, ImageRows, LoadedModel, Network, Prompt, Unfinished};
use crate::error::{Error, Result};
use crate::generation::{Generation, TextSettings};
use crate::models::continuous_batching::{Logits, Start, blocks};
use crate::preprocessing::check;
use crate::structured::Grammar;

/// A request that is being served.
pub(crate) struct ActiveRequest {
    pub(super) prompt: Prompt,
    /// Those of each image, `(3, height, width)` each; none once the tower has seen all.
    pub(super) crops: Vec<Vec<Tensor>>,
    pub(super) stage: Stage,
}

/// The stages of a request.
pub(super) enum Stage {
    /// The images are in the tower, crop by crop.
    Encoding(Encoding),
    /// The prompt is being read.
    Prefill(Answer),
    /// This token is to be read next.
    Decoding(Answer, u32),
}

/// The progress of the images through the tower.
#[derive(Default)]
pub(super) struct Encoding {
    /// The images that the tower is through with.
    pub(super) seen: Vec<ImageRows>,
    /// The rows kept of each crop of the next one that the tower is through with.
    done: Vec<Vec<Tensor>>,
    /// Those of the crop that is in it.
    kept: Vec<Tensor>,
    /// Number of blocks that this crop has gone through.
    layers: usize,
    at: At,
    /// The parts made so far, where the crop is in the midst of something.
    parts: Option<Unfinished>,
}

/// The next step of a crop.
#[derive(Default)]
enum At {
    #[default]
    Opening,
    /// Rows may be kept of the last block's output.
    Keeping(Tensor),
    Layer(Tensor),
}

impl ActiveRequest {
    /// Preprocesses the images, and refuses what leaves no room for an answer.
    ///
    /// # Errors
    /// [`Error::InvalidInput`], [`Error::PromptTooLong`].
    pub(super) fn begin(
        model: &LoadedModel,
        pictures: &[&Picture],
        request: &DescribeImage,
    ) -> Result<Start<Self>> {
        pictures.iter().try_for_each(|picture| check(picture))?;
        let sides = pictures.iter().map(|picture| (picture.width, picture.height)).collect();
        let prompt = model.network.prompt(&model.tokens, &Asked::of(&request.messages, sides)?)?;
        let needed = prompt.tokens.len();
        let vocabulary = model.network.language_model().decoder.vocabulary();
        let mut settings = TextSettings::of_question(request, vocabulary)?;
        let most = settings.max_tokens.min(model.limits.room_after(needed, model.context)?);
        settings.max_tokens = most;
        settings.sampling = model.settings.complete(settings.sampling)?;
        let ends = model.network.ends();
        let grammar = request.constraint.as_ref().map(|one| model.grammars.begin(one)).transpose()?;
        let before = model.network.before(&prompt);
        let generation = |answer, grammar| {
            let generation = Generation::new(&model.tokens, &settings.of_answer(answer), before, ends)?;
            Ok::<_, Error>(generation.after(needed).keeping_to(grammar))
        };
        let another = |answer| generation(answer, grammar.as_ref().map(Grammar::fork));
        let others = (1..request.answers).map(another).collect::<Result<_>>()?;
        let generation = generation(0, grammar)?;
        // Nothing was computed for what is refused by now.
        let crops = pictures.iter().map(|picture| model.network.crops(picture, pictures.len()));
        let crops = crops.collect::<Result<_>>()?;
        let state = Self { prompt, crops, stage: Stage::Encoding(Encoding::default()) };
        Ok(Start { state, generation, others, most: room(needed + most, model.apart) })
    }

    /// The same request before its first step, while it has its crops.
    pub(super) fn again(&self) -> Self {
        let (prompt, crops) = (self.prompt.clone(), self.crops.clone());
        Self { prompt, crops, stage: Stage::Encoding(Encoding::default()) }
    }

    /// A copy of its own, if the prompt is read and no token is chosen.
    pub(super) fn fork(&self) -> Result<Option<Self>> {
        let Stage::Prefill(answer) = &self.stage else { return Ok(None) };
        let Some(answer) = answer.fork()? else { return Ok(None) };
        Ok(Some(Self { prompt: self.prompt.clone(), crops: Vec::new(), stage: Stage::Prefill(answer) }))
    }

    /// One step towards the answer's first token: its logits once the prompt is read.
    pub(super) fn advance(&mut self, model: &LoadedModel) -> Logits {
        let network = &*model.network;
        model.steps.fetch_add(1, Ordering::Relaxed);
        match &mut self.stage {
            Stage::Encoding(encoding) => {
                let next = encoding.seen.len();
                match (self.crops.get(next), self.prompt.sides.get(next)) {
                    (Some(crops), Some(sides)) => match crops.get(encoding.done.len()) {
                        Some(crop) => encoding.step(network, crop)?,
                        None => {
                            let kept = std::mem::take(&mut encoding.done);
                            encoding.seen.push(network.image(*sides, self.crops.len(), &kept)?);
                        }
                    },
                    _ => {
                        self.stage = Stage::Prefill(network.begin(&self.prompt, &encoding.seen)?);
                        // They are of no use any more.
                        self.crops = Vec::new();
                    }
                }
                Ok(None)
            }
            Stage::Prefill(answer) => {
                let Some(logits) = network.language_model().read(answer)? else { return Ok(None) };
                logits.to_vec2()?.into_iter().next().map(Some).ok_or(Error::NotFiniteOutput)
            }
            Stage::Decoding(..) => Ok(None),
        }
    }

    /// The token that was chosen, which is to be read next.
    pub(super) fn chosen(&mut self, token: u32) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Encoding(Encoding::default())) {
            Stage::Prefill(answer) | Stage::Decoding(answer, _) => Stage::Decoding(answer, token),
            encoding @ Stage::Encoding(_) => encoding,
        };
    }

    /// The images' rows, if the tower has just seen the last of them. For comparison with a reference.
    pub(super) fn looked(&self) -> Option<&[ImageRows]> {
        match &self.stage {
            Stage::Encoding(Encoding { seen, .. }) if seen.len() == self.crops.len() => Some(seen),
            _ => None,
        }
    }
}

impl Encoding {
    /// The opening of a crop, a layer of the tower with what is kept of it, or a part of one of these.
    fn step(&mut self, network: &dyn Network, crop: &Tensor) -> Result<()> {
        let was_in_parts = self.parts.is_some();
        let hidden = match &self.at {
            At::Keeping(hidden) => return self.keep(network, hidden.clone()),
            At::Opening => network.tower().open(crop, &mut self.parts)?,
            At::Layer(before) => {
                let after = network.tower().step(self.layers, before, crop, &mut self.parts)?;
                self.layers += usize::from(after.is_some());
                after
            }
        };
        let Some(hidden) = hidden else { return Ok(()) };
        self.at = At::Keeping(hidden.clone());
        // After the last of many parts, what is kept takes steps of its own.
        if was_in_parts { Ok(()) } else { self.keep(network, hidden) }
    }

    fn keep(&mut self, network: &dyn Network, hidden: Tensor) -> Result<()> {
        let Some(kept) = network.keep(self.layers, &hidden, &mut self.parts)? else { return Ok(()) };
        self.kept.extend(kept);
        self.at = At::Layer(hidden);
        if self.layers == network.tower().depth() {
            self.done.push(std::mem::take(&mut self.kept));
            (self.layers, self.at) = (0, At::Opening);
        }
        Ok(())
    }
}

/// The room that an answer takes: its tokens in the pieces in which caches grow, and the rows that are kept
/// apart.
pub(super) fn room(tokens: usize, apart: usize) -> usize {
    blocks(tokens).saturating_add(apart)
}
