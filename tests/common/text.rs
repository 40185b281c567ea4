//! Tiny decoders with the texts that transformers generates with them, and a model whose steps can be
//! counted.

use std::path::PathBuf;
use std::sync::Arc;

use candle_actors::{
    Failure, Footprint, LoadContext, LoadOptions, Loader, Model, ModelHandle, ModelSpec, PoolConfig, Prompt,
    Source, StandaloneModel, System, SystemConfig, TextGenerationModel, TextToText, Weights,
};
use serde::Deserialize;

use super::root;

/// Prompt and the 64 tokens that the reference generates after it.
#[derive(Deserialize)]
pub(crate) struct Continuation {
    pub(crate) prompt: Vec<u32>,
    pub(crate) greedy: Vec<u32>,
}

/// Prompt as text, and the expected text.
#[derive(Clone)]
pub(crate) struct Expected {
    pub(crate) prompt: String,
    pub(crate) prompt_tokens: usize,
    pub(crate) text: String,
}

/// A family's folder; those of candle-transformers are named as `transformers/olmo`.
pub(crate) fn family(name: &str) -> PathBuf {
    let fixtures = root().join("tests/fixtures");
    if name.contains('/') { fixtures.join(name) } else { fixtures.join("text_to_text").join(name) }
}

/// A model whose numbers are the reference's, also in GGUF.
pub(crate) fn load(name: &str) -> TextGenerationModel {
    let options = LoadOptions::default().with_exact_products(true);
    TextGenerationModel::load_with(Source::directory(family(name)), options).unwrap()
}

/// Texts of the reference, for prompts whose text has exactly the tokens of the reference's prompt.
pub(crate) fn expected(name: &str, model: &TextGenerationModel) -> Vec<Expected> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Continuation>,
    }
    let text = std::fs::read(family(name).join("expected.json")).unwrap();
    let cases = serde_json::from_slice::<File>(&text).unwrap().cases;
    let of = |case: &Continuation| {
        let prompt = model.decode(&case.prompt).unwrap();
        let tokens = model.tokenize(&Prompt::Raw(prompt.clone())).unwrap();
        let text = model.decode(&case.greedy).unwrap();
        (tokens == case.prompt).then_some(Expected { prompt, prompt_tokens: tokens.len(), text })
    };
    let found: Vec<Expected> = cases.iter().filter_map(of).collect();
    assert!(found.len() >= 3, "{name}: {} of {} prompts", found.len(), cases.len());
    found
}

/// A loaded model as the actors see it; the model itself stays in the test's hands, so that its steps can be
/// counted.
struct Counted(Arc<TextGenerationModel>);

impl Loader<TextToText> for Counted {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(self.0.footprint())
    }

    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<TextToText>>, Failure> {
        Ok(Arc::new(Self(Arc::clone(&self.0))))
    }
}

impl Weights<TextToText> for Counted {
    fn footprint(&self) -> Footprint {
        self.0.footprint()
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<TextToText>>, Failure> {
        Ok(Box::new(self.0.try_clone()?))
    }
}

/// One worker, so that all requests meet in it.
pub(crate) fn one_worker() -> PoolConfig {
    PoolConfig::default().with_max_workers(1).with_cold_start_workers(1)
}

/// A system with one worker of a model.
pub(crate) async fn counted(
    name: &str,
    pool: PoolConfig,
) -> (System, ModelHandle<TextToText>, Arc<TextGenerationModel>) {
    let model = Arc::new(load(name));
    let system = System::builder(SystemConfig::default()).pool::<TextToText>(pool).start().await.unwrap();
    let spec = ModelSpec::new("model", Counted(Arc::clone(&model))).continuous();
    let handle = system.client::<TextToText>().unwrap().register(spec).unwrap();
    handle.preload().await.unwrap();
    (system, handle, model)
}
