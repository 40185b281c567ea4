//! The acts of the tour, in order. Each asks models for something and tells what came of it.

use std::cell::Cell;
use std::fmt::{self, Display};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_actors::model_actors::testing::{Fuse, HookedLoader};
use candle_actors::{
    Bytes, DescribeImage, Device, Engine, EngineResources, Event, GenerateText, ImageSource, LoadOptions,
    Message, ModelId, ModelSpec, ModelStatus, PaintImage, Picture, PoolConfig, ReplyStream, Sampling,
    ShutdownReport, Source, StandaloneModel, System, SystemConfig, TextGenerationModel, TextToText,
    WorkerPhase,
};
use console::{StyledObject, Term, style};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::picture::lines;
use crate::png;
use crate::screen::Stage;
use crate::show::{self, LIMIT, Outcome, event, started};
use crate::vectors::{nearest, similarity};

/// For the reader, if there is one.
const PAUSE: Duration = Duration::from_millis(1500);
/// Between two pieces of text, so that a person can see them come.
const BEAT: Duration = Duration::from_millis(15);
/// Callers at a time: enough to see them wait.
const CALLERS: usize = 2000;
/// The first drawings of `models/shapes/held_out`, less those that show what a prompt asks for.
const DRAWN: usize = 18;
/// A tick for each token: the worker crashes in the middle of the story.
const TICKS_TO_CRASH: u64 = 25;

const SENTENCES: [&str; 4] = [
    "A cat sleeps on the sofa.",
    "A kitten naps on the couch.",
    "The bus was late again this morning.",
    "She plays the violin in an orchestra.",
];
const QUESTIONS: [&str; 2] = [
    "There is a small red circle left of a large blue square. What colour is the square?",
    "There is a small red circle left of a large blue square. What is left of the blue square?",
];
const STORY: &str = "Tell me a short story about a small red circle.";
/// None of these was among what the painter and the others were trained on.
const PROMPTS: [&str; 3] = [
    "a yellow square left of a green circle",
    "a green square below a purple square",
    "a blue circle left of a green triangle",
];
const SEED: u64 = 1;
const STEPS: usize = 25;
/// Letters of a line of text: with the name before it, it stands on a terminal of 80.
const WIDTH: usize = 62;
/// Of each model.
const WORKERS: usize = 2;

/// Resources that are left at the end.
pub(crate) struct Curtain {
    report: ShutdownReport,
    most: Bytes,
    charged: Bytes,
    resident: [Option<Bytes>; 2],
}

impl show::Curtain for Curtain {
    fn left_nothing(&self) -> bool {
        self.report.is_clean() && self.most > Bytes::ZERO && self.charged == Bytes::ZERO
    }
}

impl Display for Curtain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { most, charged, resident, .. } = self;
        write!(
            formatter,
            "  bytes returned           {} of the {most} set aside for models",
            Bytes(most.0.saturating_sub(charged.0))
        )?;
        match resident {
            [Some(before), Some(after)] => {
                write!(formatter, "\n  resident memory          {before} before the cooldown, {after} after")
            }
            _ => Ok(()),
        }
    }
}

/// The engine with its five models, and where the acts are seen.
pub(crate) struct Acts {
    stage: Stage,
    engine: Engine,
    fuse: Fuse,
    models: PathBuf,
    out: PathBuf,
    /// The most that was charged at the end of an act.
    most: Cell<Bytes>,
}

impl Acts {
    /// Starts the engine. Registering the models loads none of them.
    pub(crate) async fn start(stage: Stage, models: PathBuf, out: PathBuf) -> Outcome<Self> {
        std::fs::create_dir_all(&out).map_err(|error| format!("cannot make {}: {error}", out.display()))?;
        let source = |name: &str| Source::directory(models.join(name));
        // Short times, so that the tour ends within a minute.
        let system = SystemConfig::default().with_maintenance_interval(Duration::from_millis(500));
        let pool =
            PoolConfig::default().with_max_workers(WORKERS).with_cooldown_idle(Duration::from_secs(15));
        let engine = Engine::builder()
            .system_config(system)
            .pool_config(pool)
            .text_embedding("english", source("english-embedding-small"))
            .image_embedding("finder", source("shapes-image-embedding"))
            .vision("describer", source("shapes-vision"))
            .text_to_image("painter", source("shapes-text-to-image"))
            .start()
            .await?;
        // The chat model's workers can be made to crash.
        let fuse = Fuse::default();
        let burning = fuse.clone();
        let chat = move |id: ModelId, _: &EngineResources| {
            let loader = TextGenerationModel::loader(source("shapes-chat"), LoadOptions::default())?;
            Ok(ModelSpec::new(id, HookedLoader::new(loader, move || burning.burn())).continuous())
        };
        engine.register::<TextToText>("chat", chat)?;
        Ok(Self { stage, engine, fuse, models, out, most: Cell::default() })
    }

    /// The system, to look at.
    pub(crate) fn system(&self) -> System {
        self.engine.system().clone()
    }

    /// Plays every act and shuts down.
    pub(crate) async fn play(self) -> Outcome<Curtain> {
        self.stage
            .tell("five models are registered, none is loaded; each is loaded by its first request")
            .await;
        self.sentences().await?;
        self.chat().await?;
        let pictures = self.paint().await?;
        self.describe(&pictures).await?;
        self.find(&pictures).await?;
        self.crash().await?;
        let before = resident();
        self.cool_down().await?;
        let after = resident();
        let (most, charged) = (self.most.get(), self.charged());
        Ok(Curtain { report: self.engine.shutdown().await, most, charged, resident: [before, after] })
    }

    async fn sentences(&self) -> Outcome {
        self.stage.act("Text embedding: sentences that mean the same are near").await;
        let model = self.engine.text_embedding("english")?;
        let vectors = model.embed_batch(SENTENCES).await?;
        let near = |index: usize| similarity(&vectors[0], &vectors[index]);
        let mut others: Vec<usize> = (1..SENTENCES.len()).collect();
        others.sort_by(|left, right| near(*right).total_cmp(&near(*left)));
        let table = others.into_iter().map(|index| format!("{:.2}  {}", near(index), SENTENCES[index]));
        self.stage.keep([format!("      {}", SENTENCES[0])].into_iter().chain(table).collect()).await;

        self.stage.tell(&format!("{CALLERS} callers at once, a sentence each")).await;
        let (began, mut callers) = (Instant::now(), JoinSet::new());
        for caller in 0..CALLERS {
            let model = model.clone();
            let sentence = SENTENCES[caller % SENTENCES.len()];
            callers.spawn(async move { model.embed(format!("{sentence} {caller}")).await });
        }
        self.see(|model| model.queued_interactive > 0 && all_are(model, "english", WorkerPhase::Busy)).await;
        while let Some(answer) = callers.join_next().await {
            answer??;
        }
        self.stage.tell(&format!("all answered after {:.2} s", began.elapsed().as_secs_f64())).await;
        self.rest().await;
        Ok(())
    }

    async fn chat(&self) -> Outcome {
        self.stage.act("Text to text: an answer, as it is written").await;
        for question in QUESTIONS {
            self.answer(question).await?;
        }
        self.rest().await;
        Ok(())
    }

    async fn ask(&self, question: &str) -> Outcome<ReplyStream<TextToText>> {
        let request = GenerateText::chat([Message::user(question)]);
        Ok(self.engine.text_to_text("chat")?.stream(request).await?)
    }

    /// Asks, and shows the whole answer.
    async fn answer(&self, question: &str) -> Outcome {
        let mut words = String::new();
        self.listen(self.ask(question).await?, question, &mut words).await?;
        self.stage.keep(said(question, &words)).await;
        Ok(())
    }

    /// Shows an answer as it comes; `words` has what came of it, also where it breaks off.
    async fn listen(
        &self,
        mut stream: ReplyStream<TextToText>,
        question: &str,
        words: &mut String,
    ) -> Outcome {
        while let Some(piece) = stream.next().await {
            words.push_str(&piece?.text);
            self.stage.live(said(question, words)).await;
            if has_reader() {
                sleep(BEAT).await;
            }
        }
        stream.output().await?;
        Ok(())
    }

    async fn paint(&self) -> Outcome<Vec<Picture>> {
        self.stage.act("Text to image: three pictures not in the training data, a step each in turn").await;
        let painter = self.engine.text_to_image("painter")?;
        // So that the pictures are shared out over both workers.
        painter.model().preload().await?;
        self.until(|model| all_are(model, "painter", WorkerPhase::Idle)).await;
        let mut streams = Vec::new();
        for (prompt, seed) in PROMPTS.into_iter().zip(SEED..) {
            let request = PaintImage::from(prompt).with_seed(seed).with_steps(STEPS).with_preview(true);
            streams.push(painter.stream(request).await?);
        }
        self.see(|model| all_are(model, "painter", WorkerPhase::Busy)).await;
        let mut previews: Vec<Picture> = Vec::new();
        // All take the same number of steps.
        loop {
            let (mut shown, mut told) = (Vec::new(), String::new());
            for stream in &mut streams {
                if let Some(step) = stream.next().await {
                    let step = step?;
                    told = format!("step {} of {}", step.step, step.of);
                    shown.extend(step.preview);
                }
            }
            if shown.is_empty() {
                break;
            }
            previews = shown;
            self.stage.live(lines(&previews).into_iter().chain([told]).collect()).await;
        }
        drop(previews);
        let mut pictures = Vec::new();
        for stream in streams {
            pictures.push(stream.output().await?);
        }
        let mut kept = lines(&pictures);
        for (number, (prompt, picture)) in (1..).zip(PROMPTS.iter().zip(&pictures)) {
            let path = self.out.join(format!("{number}.png"));
            png::save(picture, &path)?;
            kept.push(format!("{}  {prompt}", style(path.display()).cyan()));
        }
        self.stage.keep(kept).await;
        self.rest().await;
        Ok(pictures)
    }

    async fn describe(&self, pictures: &[Picture]) -> Outcome {
        self.stage.act("Vision: the pictures in words").await;
        let describer = self.engine.vision("describer")?;
        for (number, picture) in (1..).zip(pictures) {
            let request = |question: &str| {
                DescribeImage::new(ImageSource::Picture(picture.clone()))
                    .with_question(question.to_owned())
                    .with_sampling(Sampling::default())
                    .with_max_tokens(64)
            };
            let (description, count) = tokio::join!(
                describer.describe(request("Describe the picture.")),
                describer.describe(request("How many shapes are there?")),
            );
            self.stage
                .keep(vec![
                    format!("{number}.png  {}", description?.text.trim()),
                    format!("       How many shapes? {}", count?.text.trim()),
                ])
                .await;
        }
        self.rest().await;
        Ok(())
    }

    async fn find(&self, pictures: &[Picture]) -> Outcome {
        // Number 5 shows what the third prompt asks for.
        let drawn: Vec<usize> = (0..DRAWN).filter(|number| *number != 5).collect();
        let of = drawn.len() + pictures.len();
        self.stage.act(&format!("Image embedding: the nearest of {of} pictures to each prompt")).await;
        let finder = self.engine.image_embedding("finder")?;
        let painted = pictures.iter().cloned().map(ImageSource::Picture);
        let path = |number: &usize| self.models.join(format!("shapes/held_out/{number:03}.png"));
        let images = painted.chain(drawn.iter().map(path).map(ImageSource::Path));
        let (images, texts) = tokio::join!(finder.embed_images(images), finder.embed_texts(PROMPTS));
        let images = images?;
        let mut found = 0;
        for (own, (prompt, text)) in PROMPTS.iter().zip(texts?).enumerate() {
            let best = nearest(&text, &images).ok_or("there are no pictures")?;
            found += usize::from(best == own);
            let name = match best.checked_sub(pictures.len()) {
                Some(other) => format!("{:03}.png", drawn[other]),
                None => format!("{}.png", best + 1),
            };
            let near = similarity(&text, &images[best]);
            self.stage.keep(vec![format!("{name}  similarity {near:.2}  {prompt}")]).await;
        }
        self.stage.tell(&format!("{found} of {} are the picture painted for it", PROMPTS.len())).await;
        self.rest().await;
        Ok(())
    }

    async fn crash(&self) -> Outcome {
        self.stage.act("A worker crashes on purpose in the middle of a stream").await;
        let mut events = self.engine.events();
        self.fuse.light(TICKS_TO_CRASH);
        let stream = self.ask(STORY).await?;
        let reader = async {
            let mut words = String::new();
            let heard = self.listen(stream, STORY, &mut words).await;
            let Err(error) = heard else { return Err("the worker did not crash".into()) };
            self.stage.keep(said(STORY, &format!("{words} …"))).await;
            self.stage.tell(&format!("its reader is told: {error}")).await;
            Outcome::Ok(())
        };
        let replaced = async {
            let crash = |event: &Event| matches!(event, Event::WorkerCrashed { model, .. } if model.as_str() == "chat");
            event(&mut events, "the worker crashes", crash).await?;
            event(&mut events, "its replacement starts", |event| started(event, "chat")).await
        };
        let (read, replaced) = tokio::join!(reader, replaced);
        read?;
        replaced?;
        self.stage.tell("the next answers:").await;
        self.answer(STORY).await?;
        self.answer(QUESTIONS[0]).await?;
        self.rest().await;
        Ok(())
    }

    async fn cool_down(&self) -> Outcome {
        self.stage.act("Nobody asks any more: all models cool down to zero").await;
        let system = self.system();
        let mut status = system.watch();
        let empty = status.wait_for(|status| status.workers().next().is_none());
        timeout(LIMIT, empty).await.map_err(|_| "the workers did not cool down")??;
        self.stage.tree().await;
        Ok(())
    }

    /// Waits for a model to be so. Only a while: what is over before it was seen does not hold up the tour.
    async fn until(&self, so: impl Fn(&ModelStatus) -> bool) -> bool {
        let mut status = self.engine.system().watch();
        let is_so = status.wait_for(|status| status.pools.iter().flat_map(|pool| &pool.models).any(&so));
        timeout(Duration::from_secs(1), is_so).await.is_ok()
    }

    /// Shows the tree with a model that is so.
    async fn see(&self, so: impl Fn(&ModelStatus) -> bool) {
        if self.until(so).await {
            self.stage.tree().await;
        }
    }

    /// The end of an act, once the tree shows it.
    async fn rest(&self) {
        self.most.set(self.most.get().max(self.charged()));
        let is_quiet =
            |model: &ModelStatus| model.in_flight + model.queued_interactive + model.queued_batch == 0;
        let mut status = self.engine.system().watch();
        let quiet = status.wait_for(|status| status.pools.iter().flat_map(|pool| &pool.models).all(is_quiet));
        // A tree that is late is shown as it is.
        let _ = timeout(LIMIT, quiet).await;
        self.stage.tree().await;
        if has_reader() {
            sleep(PAUSE).await;
        }
    }

    fn charged(&self) -> Bytes {
        self.engine.system().charged(&Device::host()).unwrap_or_default().0
    }
}

/// It is this model, and all its workers, as many as there may be, are in this phase.
fn all_are(model: &ModelStatus, id: &str, phase: WorkerPhase) -> bool {
    model.model.as_str() == id
        && model.workers.len() == WORKERS
        && model.workers.iter().all(|worker| worker.phase == phase)
}

/// Somebody reads as it comes.
fn has_reader() -> bool {
    Term::stdout().is_term()
}

/// A question and its answer, in lines of a readable length.
fn said(question: &str, answer: &str) -> Vec<String> {
    let wrapped = |name: &StyledObject<&str>, text: &str| -> Vec<String> {
        let texts = textwrap::wrap(text.trim(), WIDTH);
        let line =
            |(number, text)| format!("{} {text}", if number == 0 { name.to_string() } else { " ".repeat(5) });
        texts.iter().enumerate().map(line).collect()
    };
    [wrapped(&style("you  ").dim(), question), wrapped(&style("model").green(), answer)].concat()
}

fn resident() -> Option<Bytes> {
    Some(Bytes(memory_stats::memory_stats()?.physical_mem as u64))
}
