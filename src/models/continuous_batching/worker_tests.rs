//! The moments at which a worker begins requests, with a model that waits for leave before each step.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use model_actors::{
    Batch, CallOptions, Failure, Footprint, GenerateText, LoadContext, Loader, Model, ModelSpec, PoolConfig,
    Prompt, System, SystemConfig, TextToText, Weights,
};

use super::{Generation, Logits, Part, Result, Start, Steps, serve};
use crate::error::Error;
use crate::generation::TextSettings;
use crate::limits::GenerationLimits;
use crate::tokens::Tokens;

/// Calls of the worker to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Begun,
    Refused,
    Step,
}

/// Its texts have a row to read in each step and write tokens without text, so that no reader is ever waited
/// for; a prompt `bad` is refused.
#[derive(Clone)]
struct Gated {
    tokens: Arc<Tokens>,
    leave: Arc<Mutex<Receiver<()>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Gated {
    fn note(&self, asked: Asked) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
    }
}

impl Steps<GenerateText> for Gated {
    type State = ();

    fn begin(&self, request: &GenerateText) -> Result<Start<()>> {
        if matches!(&request.prompt, Prompt::Raw(text) if text == "bad") {
            self.note(Asked::Refused);
            return Err(Error::InvalidInput("it is bad".to_owned()));
        }
        self.note(Asked::Begun);
        let settings = TextSettings { max_tokens: request.max_tokens, ..TextSettings::default() };
        let generation = Generation::new(&self.tokens, &settings, &[], &[])?;
        Ok(Start { state: (), generation, others: Vec::new(), most: 1 })
    }

    fn unread(&self, (): &()) -> usize {
        1
    }

    fn step(&self, texts: &mut [Part<'_, ()>]) -> Result<Vec<Logits>> {
        self.note(Asked::Step);
        // It is an error once there is leave for all.
        self.leave.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
        let silent = self.tokens.id("<|im_start|>").unwrap() as usize;
        let logits: Vec<f32> = (0..384).map(|id| if id == silent { 50.0 } else { 0.0 }).collect();
        Ok(texts.iter().map(|_| Ok(Some(logits.clone()))).collect())
    }

    fn chosen(&self, (): &mut (), _: u32) {}

    fn again(&self, (): &()) -> Result<()> {
        Ok(())
    }

    fn fork(&self, (): &()) -> Result<Option<()>> {
        Ok(Some(()))
    }
}

impl Model<TextToText> for Gated {
    fn run(&mut self, batch: &mut Batch<'_, TextToText>) -> Result<(), Failure> {
        serve(self, GenerationLimits::default(), batch)
    }
}

impl Weights<TextToText> for Gated {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<TextToText>>, Failure> {
        Ok(Box::new(self.clone()))
    }
}

impl Loader<TextToText> for Gated {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(Footprint::default())
    }

    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<TextToText>>, Failure> {
        Ok(Arc::new(self.clone()))
    }
}

fn gated() -> (Gated, Sender<()>) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_to_text/llama/tokenizer.json");
    let (leave, waits) = channel();
    let tokens = Arc::new(Tokens::read_whole(&file).unwrap());
    (Gated { tokens, leave: Arc::new(Mutex::new(waits)), asked: Arc::default() }, leave)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_refused_do_not_hold_up_a_text_one_after_the_other() {
    let (model, leave) = gated();
    let pool = PoolConfig::default().with_max_workers(1).with_cold_start_workers(1);
    let system = System::builder(SystemConfig::default()).pool::<TextToText>(pool).start().await.unwrap();
    let spec = ModelSpec::new("gated", model.clone()).continuous();
    let handle = system.client::<TextToText>().unwrap().register(spec).unwrap();
    let asked = |prompt: &str, max_tokens| GenerateText::from(prompt).with_max_tokens(max_tokens);
    let stream = |prompt, tokens| handle.stream(asked(prompt, tokens), CallOptions::default());
    // It writes on until it is dropped.
    let long = stream("long", 1 << 20).await.unwrap();
    leave.send(()).unwrap();
    while model.asked.lock().unwrap().len() < 3 {
        tokio::task::yield_now().await;
    }
    // In its second step, others come.
    let mut others = Vec::new();
    for prompt in ["bad", "bad", "bad", "fine", "fine"] {
        others.push(stream(prompt, 20).await.unwrap());
    }
    drop(leave);
    for (index, stream) in others.into_iter().enumerate() {
        let written = stream.output().await.ok().map(|completion| completion.usage.completion_tokens);
        assert_eq!(written, (index >= 3).then_some(20));
    }
    drop(long);
    assert!(system.shutdown().await.is_clean());
    let asked = model.asked.lock().unwrap().clone();
    let begun = asked.iter().filter(|asked| **asked == Asked::Begun).count();
    let refused: Vec<&[Asked]> = asked.windows(2).filter(|pair| pair[0] == Asked::Refused).collect();
    assert_eq!((begun, refused.len()), (3, 3), "of {} steps", asked.len());
    assert!(refused.iter().all(|pair| pair[1] == Asked::Step), "a step comes after each");
}
