//! Requests that leave no room for an answer, and the room that an answer takes.

use std::sync::Arc;

use candle_core::Tensor;
use model_actors::{DescribeImage, Picture};

use super::asked::Asked;
use super::request::{ActiveRequest, room};
use super::{
    ImageRows, LanguageModel, LoadedModel, Network, Prompt, StepwiseTower, Unfinished, VisionModel, misfit,
};
use crate::error::{Error, Result};
use crate::loader::StandaloneModel as _;
use crate::source::Source;
use crate::tokens::Tokens;

/// A model that knows what is to be read and can do nothing else.
struct Reader(Arc<dyn Network>);

impl Network for Reader {
    fn ends(&self) -> &[u32] {
        self.0.ends()
    }

    fn prompt(&self, tokens: &Tokens, asked: &Asked<'_>) -> Result<Prompt> {
        self.0.prompt(tokens, asked)
    }

    fn crops(&self, _: &Picture, _: usize) -> Result<Vec<Tensor>> {
        Err(misfit())
    }

    fn tower(&self) -> &dyn StepwiseTower {
        self.0.tower()
    }

    fn keep(&self, _: usize, _: &Tensor, _: &mut Option<Unfinished>) -> Result<Option<Vec<Tensor>>> {
        Err(misfit())
    }

    fn image(&self, _: (usize, usize), _: usize, _: &[Vec<Tensor>]) -> Result<ImageRows> {
        Err(misfit())
    }

    fn language_model(&self) -> &LanguageModel {
        self.0.language_model()
    }
}

#[test]
fn a_prompt_that_is_too_long_is_refused_before_the_picture_is_cut() {
    for family in [
        "llava",
        "llava_next",
        "llava_onevision",
        "pixtral",
        "mistral3",
        "moondream",
        "blip",
        "blip2",
        "blip2_t5",
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "idefics3",
        "gemma3",
    ] {
        let folder = format!("{}/tests/fixtures/vision/{family}", env!("CARGO_MANIFEST_DIR"));
        let model = VisionModel::load(Source::directory(folder)).unwrap();
        let shared = Arc::into_inner(model.shared).unwrap();
        let model = LoadedModel { network: Arc::new(Reader(Arc::clone(&shared.network))), ..shared };
        let picture = Picture::new(64, 64, vec![0; 64 * 64 * 3]);
        let begin = |question: String| {
            let image = model_actors::ImageSource::Path("unused".into());
            let sampling = model_actors::Sampling::default();
            let request =
                DescribeImage::new(image).with_question(question).with_sampling(sampling).with_max_tokens(5);
            ActiveRequest::begin(&model, &[&picture], &request).map(|_| ()).unwrap_err()
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
