//! Text to text: from a source's files to a model that writes. The families are one decoder with a configuration for
//! each, in `decoder`, and those of candle-transformers, in `transformers`; here is what surrounds them: configuration,
//! tokenizer, chat template, limits, and the three roles of the actors' model contract.

mod prefix;
mod network;
mod adapters;
mod plan;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use model_actors::{
    Batch, Capability as _, Completion, Failure, Footprint, GenerateText, Model, Prompt, TextToText, Tool,
    ToolChoice,
};

use crate::device::{Compute, ComputeThreads};
use crate::error::{Error, Result};
use crate::generation::{ChatTemplate, Conversation, Generation, PartMarks, TextSettings, encode_messages};
use crate::limits::GenerationLimits;
use crate::loader::{WorkerModel, standalone_model};
use crate::models::continuous_batching::{self, Logits, Part, Prepared, Start, Steps, Streams};
use crate::models::generation_config::GenerationConfig;
use crate::models::transformer::Adapter;
use crate::structured::{Grammar, Grammars};
use crate::tokens::{Specials, Tokens};
use adapters::Adapters;
use network::{Network, State};
pub(crate) use plan::TextToTextPlan;
use prefix::Prefixes;

/// A model in memory, shared by its workers.
pub(crate) struct LoadedModel {
    network: Network,
    /// Blocks that texts which begin alike share, if it has those.
    prefixes: Option<Prefixes>,
    tokens: Tokens,
    template: Option<ChatTemplate>,
    end_tokens: Vec<u32>,
    grammars: Grammars,
    adapters: Adapters,
    /// Marks of the parts of answers to conversations.
    marks: PartMarks,
    settings: GenerationConfig,
    limits: GenerationLimits,
    compute: Compute,
    footprint: Footprint,
    /// Steps that all of its workers have begun.
    steps: AtomicU64,
}

impl LoadedModel {
    /// Maximum number of tokens of prompt and answer together.
    fn longest(&self) -> usize {
        self.network.context().min(self.limits.kv_cache_tokens)
    }

    /// The marks of an answer's parts.
    fn marks(&self, request: &GenerateText) -> Result<PartMarks> {
        match (&request.prompt, offered(request)) {
            (Prompt::Messages(_), []) => Ok(self.marks.without_calls()),
            (Prompt::Messages(_), _) => {
                let knows_tools =
                    self.template.as_ref().is_some_and(|template| template.text().contains("tools"));
                let reason = match (knows_tools, self.marks.calls()) {
                    (true, Some(_)) => return Ok(self.marks),
                    (true, None) => "the model writes calls of tools in a way that is not known",
                    (false, _) => "the model's chat template takes no tools",
                };
                Err(Error::InvalidInput(reason.to_owned()))
            }
            _ => Ok(PartMarks::default()),
        }
    }

    /// Rule that an answer keeps to: the request's constraint, or the format of calls of its tools.
    fn grammar(&self, request: &GenerateText) -> Result<Option<Grammar>> {
        let calls = self.marks.calls().filter(|_| !offered(request).is_empty()).map(|format| {
            let special = |mark: &str| self.tokens.id(mark).filter(|id| !self.tokens.has_text(*id));
            format.grammar(&request.tools, &request.tool_choice, request.parallel_tool_calls, special)
        });
        let calls = calls.transpose()?;
        calls.as_ref().or(request.constraint.as_ref()).map(|one| self.grammars.begin(one)).transpose()
    }

    /// Refuses a prompt that is far too long before all of it is tokenized.
    fn check_length(&self, text: &str) -> Result<()> {
        match self.tokens.count_beyond(text, self.longest())? {
            Some(count) => self.limits.room_after(count, self.network.context()).map(drop),
            None => Ok(()),
        }
    }

    /// The tokens of a request's prompt; `check` may refuse its text before.
    fn tokenize(&self, request: &GenerateText, check: impl Fn(&str) -> Result<()>) -> Result<Vec<u32>> {
        let tokens = match &request.prompt {
            Prompt::Raw(text) => {
                check(text)?;
                self.tokens.encode_prompt(text, Specials::Added)?
            }
            Prompt::Messages(messages) => {
                let Some(template) = &self.template else {
                    let reason = "the model has no chat template, so it takes a raw prompt, not messages";
                    return Err(Error::InvalidInput(reason.to_owned()));
                };
                let (tools, arguments) = (offered(request), Some(&request.template_arguments));
                let chat = Conversation { messages, tools, arguments };
                encode_messages(&self.tokens, template, chat, check)?
            }
            _ => return Err(Error::InvalidInput("this kind of prompt is not supported".to_owned())),
        };
        if tokens.is_empty() {
            return Err(Error::InvalidInput("the prompt has no tokens".to_owned()));
        }
        Ok(tokens)
    }
}

/// The tools that a request lets the model call.
fn offered(request: &GenerateText) -> &[Tool] {
    if request.tool_choice == ToolChoice::None { &[] } else { &request.tools }
}

/// A loaded text to text model without actors around it, for tools and for comparison: the very code that a worker
/// runs.
///
/// ```no_run
/// use candle_actors::{Source, StandaloneModel, TextGenerationModel};
/// use candle_actors::GenerateText;
/// # fn main() -> candle_actors::Result<()> {
/// let model = TextGenerationModel::load(Source::repository("HuggingFaceTB/SmolLM2-135M-Instruct"))?;
/// let answers = model.generate(&[GenerateText::from("Once upon a time"), GenerateText::from("The sun")])?;
/// assert_eq!(answers.len(), 2);
/// # Ok(())
/// # }
/// ```
pub struct TextGenerationModel {
    shared: Arc<LoadedModel>,
    threads: ComputeThreads,
}

standalone_model!(TextGenerationModel for TextToText);

impl WorkerModel for TextGenerationModel {
    type Plan = TextToTextPlan;

    fn over(shared: Arc<LoadedModel>) -> Result<Self> {
        let threads = shared.network.threads(shared.compute.threads)?;
        Ok(Self { shared, threads })
    }

    fn loaded(&self) -> &Arc<LoadedModel> {
        &self.shared
    }

    fn footprint_of(loaded: &LoadedModel) -> Footprint {
        loaded.footprint
    }
}

impl TextGenerationModel {
    /// Most tokens of a prompt and its answer together: the model's context, or what a worker's caches hold.
    pub fn max_tokens(&self) -> usize {
        self.shared.longest()
    }

    /// Steps that this model and its clones have begun. A step reads a piece of a prompt or chooses a token, for all
    /// texts that are written together; in a model of candle-transformers, for the one whose turn it is.
    pub fn steps(&self) -> u64 {
        self.shared.steps.load(Ordering::SeqCst)
    }

    /// A prompt's tokens, as the model sees them.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it cannot be tokenized, or the chat template refuses it.
    pub fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        self.shared.tokenize(&GenerateText::default().with_prompt(prompt.clone()), |_| Ok(()))
    }

    /// The text of tokens, without the special ones.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the tokenizer fails, or the text becomes too long.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.shared.tokens.decode(tokens)
    }

    /// The logits after each of these tokens, one number for each token of the vocabulary.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a token that the model does not know or more than its context; [`Error::Compute`].
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        self.logits_with(None, tokens)
    }

    /// The same of the model as an adapter of this name changes it.
    ///
    /// # Errors
    /// As [`Self::logits`]; [`Error::UnknownAdapter`], [`Error::BrokenAdapter`].
    pub fn adapted_logits(&self, adapter: &str, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let held = self.shared.adapters.get(adapter)?;
        self.logits_with(Some(&held.adapter), tokens)
    }

    fn logits_with(&self, adapter: Option<&Adapter>, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let network = &self.shared.network;
        if let Some(unknown) = tokens.iter().find(|token| **token as usize >= network.vocabulary()) {
            return Err(Error::InvalidInput(format!("the model has no token {unknown}")));
        }
        self.threads.run(|| network.logits(tokens, adapter))
    }

    /// Generates the completions of several requests, in order, in one continuous batch.
    ///
    /// # Errors
    /// The first error of a request, or [`Error::Compute`]; either ends all.
    pub fn generate(&self, requests: &[GenerateText]) -> Result<Vec<Completion>> {
        let mut streams = Streams::new(self.shared.limits);
        for (key, request) in requests.iter().enumerate() {
            TextToText::check(request).map_err(Error::from)?;
            streams.add(self, key, self.begin(request)?)?;
        }
        let mut answers: Vec<Option<Completion>> = requests.iter().map(|_| None).collect();
        while streams.step(self)? {
            for (key, answer) in streams.texts() {
                let Some(held) = streams.held(key, answer).and_then(Option::take) else { continue };
                if let Some(completion) = held.next?.finished
                    && let Some(whole) = streams.finish(key, answer, completion)
                    && let Some(answer) = answers.get_mut(key)
                {
                    *answer = Some(whole);
                }
            }
        }
        let missing = || Error::compute("a text was not finished");
        answers.into_iter().map(|answer| answer.ok_or_else(missing)).collect()
    }
}

impl Model<TextToText> for TextGenerationModel {
    fn run(&mut self, batch: &mut Batch<'_, TextToText>) -> Result<(), Failure> {
        continuous_batching::serve(self, self.shared.limits, batch)
    }
}

impl Steps<GenerateText> for TextGenerationModel {
    type State = State;

    fn begin(&self, request: &GenerateText) -> Result<Start<State>> {
        let model = &*self.shared;
        let tokens = model.tokenize(request, |text| model.check_length(text))?;
        let vocabulary = model.network.vocabulary();
        if let Some(unknown) = tokens.iter().find(|token| **token as usize >= vocabulary) {
            let reason = format!("the prompt has the token {unknown}; the model knows {vocabulary}");
            return Err(Error::InvalidInput(reason));
        }
        let room = model.limits.room_after(tokens.len(), model.network.context())?;
        let mut settings = TextSettings::of(request, vocabulary)?;
        let max_tokens = settings.max_tokens.min(room);
        settings.max_tokens = max_tokens;
        settings.sampling = model.settings.complete(settings.sampling)?;
        let adapter = request.adapter.as_deref().map(|name| model.adapters.get(name)).transpose()?;
        let (marks, grammar) = (model.marks(request)?, model.grammar(request)?);
        let most = tokens.len() + max_tokens;
        let state = State::new(&model.network, model.prefixes.as_ref(), tokens, adapter)?;
        let tokens = &state.tokens;
        let generation = |answer, grammar| -> Result<Generation> {
            let settings = settings.of_answer(answer);
            let generation = Generation::new(&model.tokens, &settings, tokens, &model.end_tokens)?;
            let generation = generation.keeping_to(grammar).in_parts(marks, tokens, offered(request));
            Ok(generation.with_cached_tokens(state.cached()))
        };
        let another = |answer| generation(answer, grammar.as_ref().map(Grammar::fork));
        let others = (1..request.answers).map(another).collect::<Result<_>>()?;
        Ok(Start { generation: generation(0, grammar)?, others, most, state })
    }

    fn prepare(&self, request: &GenerateText) -> Result<Prepared> {
        let adapter = request.adapter.as_deref();
        adapter.map_or(Ok(Prepared::There(None)), |name| self.shared.adapters.prepare(name))
    }

    fn unread(&self, state: &State) -> usize {
        state.unread()
    }

    fn piece(&self, state: &State, most: usize) -> usize {
        state.piece(most)
    }

    fn step(&self, texts: &mut [Part<'_, State>]) -> Result<Vec<Logits>> {
        let step = self.shared.steps.fetch_add(1, Ordering::SeqCst) + 1;
        self.threads.run(|| self.shared.network.step(self.shared.prefixes.as_ref(), texts, step))
    }

    fn chosen(&self, state: &mut State, token: u32) {
        self.shared.network.chosen(state, token);
    }

    fn again(&self, state: &State) -> Result<State> {
        state.again(&self.shared.network, self.shared.prefixes.as_ref())
    }

    fn fork(&self, state: &State) -> Result<Option<State>> {
        state.fork()
    }
}
