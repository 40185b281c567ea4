//! One request on its way through a model: its crops go through the vision tower layer by layer, a large one
//! in parts of layers, the prompt is read part by part, and then the answer is written, a token a step.
//! Between any two steps others may take theirs.

use std::sync::atomic::Ordering;

use candle_core::Tensor;
use model_actors::{DescribeImage, Picture};

use super::{Answer, LoadedModel, Network, Prompt, Unfinished};
use crate::error::{Error, Result};
use crate::generation::Generation;
use crate::models::continuous_batching::{Logits, Start, blocks};
use crate::pixels::check;

/// A request that is being served.
pub(crate) struct Asked {
    pub(super) prompt: Prompt,
    /// `(3, height, width)` each; none once the tower has seen them.
    pub(super) crops: Vec<Tensor>,
    pub(super) stage: Stage,
}

/// The stages of a request.
pub(super) enum Stage {
    /// A crop is in the tower.
    Looking(Looking),
    /// The prompt is being read.
    Reading(Answer),
    /// This token is to be read next.
    Writing(Answer, u32),
}

/// The progress of the crops through the tower.
#[derive(Default)]
pub(super) struct Looking {
    /// The rows kept of each crop that the tower is through with.
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

impl Asked {
    /// Preprocesses the image, and refuses what leaves no room for an answer.
    ///
    /// # Errors
    /// [`Error::InvalidInput`], [`Error::PromptTooLong`].
    pub(super) fn begin(
        model: &LoadedModel,
        picture: &Picture,
        request: &DescribeImage,
    ) -> Result<Start<Self>> {
        check(picture)?;
        let sides = (picture.width, picture.height);
        let prompt = model.network.prompt(&model.tokens, sides, &request.question)?;
        let needed = prompt.tokens.len();
        let most = request.max_tokens.min(model.limits.room_after(needed, model.context)?);
        let ends = model.network.ends();
        let generation = Generation::new(&model.tokens, &request.sampling, &[], most, &prompt.tokens, ends)?;
        // Nothing was computed for what is refused by now.
        let crops = model.network.crops(picture)?;
        let state = Self { prompt, crops, stage: Stage::Looking(Looking::default()) };
        Ok(Start { state, generation, most: room(needed + most, model.apart) })
    }

    /// One step towards the answer's first token: its logits once the prompt is read.
    pub(super) fn advance(&mut self, model: &LoadedModel) -> Logits {
        let network = &*model.network;
        model.steps.fetch_add(1, Ordering::Relaxed);
        match &mut self.stage {
            Stage::Looking(looking) => {
                match self.crops.get(looking.done.len()) {
                    Some(crop) => looking.step(network, crop)?,
                    None => {
                        let image = network.image(&self.prompt, &looking.done)?;
                        self.stage = Stage::Reading(network.begin(&self.prompt, image)?);
                        // They are of no use any more.
                        self.crops = Vec::new();
                    }
                }
                Ok(None)
            }
            Stage::Reading(answer) => {
                let Some(logits) = network.language_model().read(answer)? else { return Ok(None) };
                logits.to_vec2()?.into_iter().next().map(Some).ok_or(Error::NotFiniteOutput)
            }
            Stage::Writing(..) => Ok(None),
        }
    }

    /// The token that was chosen, which is to be read next.
    pub(super) fn chosen(&mut self, token: u32) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Looking(Looking::default())) {
            Stage::Reading(answer) | Stage::Writing(answer, _) => Stage::Writing(answer, token),
            looking @ Stage::Looking(_) => looking,
        };
    }

    /// The image's rows, if the tower has seen all of it just now. For comparison with a reference.
    pub(super) fn looked(&self, model: &LoadedModel) -> Result<Option<Tensor>> {
        match &self.stage {
            Stage::Looking(Looking { done, .. }) if done.len() == self.crops.len() => {
                Ok(Some(model.network.image(&self.prompt, done)?.rows))
            }
            _ => Ok(None),
        }
    }
}

impl Looking {
    /// The opening of a crop, a layer of the tower with what is kept of it, or a part of one of these.
    fn step(&mut self, network: &dyn Network, crop: &Tensor) -> Result<()> {
        let was_in_parts = self.parts.is_some();
        let hidden = match &self.at {
            At::Keeping(hidden) => return self.keep(network, hidden.clone()),
            At::Opening => network.open_crop(crop, &mut self.parts)?,
            At::Layer(before) => {
                let after = network.tower_step(self.layers, before, crop, &mut self.parts)?;
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
        if self.layers == network.tower_layers() {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::loader::StandaloneModel as _;
    use crate::models::vision::{ImageRows, LanguageModel, VisionModel, misfit};
    use crate::source::Source;
    use crate::tokens::Tokens;

    /// A model that knows what is to be read and can do nothing else.
    struct Reader(Arc<dyn Network>);

    impl Network for Reader {
        fn ends(&self) -> &[u32] {
            self.0.ends()
        }

        fn prompt(&self, tokens: &Tokens, sides: (usize, usize), question: &str) -> Result<Prompt> {
            self.0.prompt(tokens, sides, question)
        }

        fn crops(&self, _: &Picture) -> Result<Vec<Tensor>> {
            Err(misfit())
        }

        fn open_crop(&self, _: &Tensor, _: &mut Option<Unfinished>) -> Result<Option<Tensor>> {
            Err(misfit())
        }

        fn tower_layers(&self) -> usize {
            0
        }

        fn tower_step(
            &self,
            _: usize,
            _: &Tensor,
            _: &Tensor,
            _: &mut Option<Unfinished>,
        ) -> Result<Option<Tensor>> {
            Err(misfit())
        }

        fn keep(&self, _: usize, _: &Tensor, _: &mut Option<Unfinished>) -> Result<Option<Vec<Tensor>>> {
            Err(misfit())
        }

        fn image(&self, _: &Prompt, _: &[Vec<Tensor>]) -> Result<ImageRows> {
            Err(misfit())
        }

        fn language_model(&self) -> &LanguageModel {
            self.0.language_model()
        }
    }

    #[test]
    fn a_prompt_that_is_too_long_is_refused_before_the_picture_is_cut() {
        for family in ["llava", "llava_next", "moondream", "blip", "qwen3_vl"] {
            let folder = format!("{}/tests/fixtures/vision/{family}", env!("CARGO_MANIFEST_DIR"));
            let model = VisionModel::load(Source::directory(folder)).unwrap();
            let shared = Arc::into_inner(model.shared).unwrap();
            let model = LoadedModel { network: Arc::new(Reader(Arc::clone(&shared.network))), ..shared };
            let picture = Picture { width: 64, height: 64, rgb: vec![0; 64 * 64 * 3] };
            let begin = |question: String| {
                let image = model_actors::ImageSource::Path("unused".into());
                let sampling = model_actors::Sampling::default();
                let request = DescribeImage::new(image)
                    .with_question(question)
                    .with_sampling(sampling)
                    .with_max_tokens(5);
                Asked::begin(&model, &picture, &request).map(|_| ()).unwrap_err()
            };
            let error = begin("word ".repeat(3000));
            assert!(matches!(error, Error::PromptTooLong { .. }), "{family}: {error}");
            let error = begin("word".to_owned());
            assert!(matches!(error, Error::Compute(_)), "{family}: {error}");
        }
    }

    #[test]
    fn what_is_kept_apart_takes_its_room_beside_the_pieces_of_the_cache() {
        assert_eq!(room(1, 577), 128 + 577);
        assert_eq!(room(128, 0), 128);
    }
}
