//! The acts of the tour, in order. Each asks models for something and tells what came of it.

use std::cell::Cell;
use std::fmt::{self, Display};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_actors::{Engine, LoadOptions, Source, TextGenerationModel};
use console::style;
use model_actors::testing::{Fuse, HookedLoader};
use model_actors::{
    Bytes, DescribeImage, Device, Event, GenerateText, ImageSource, Message, ModelSpec, ModelStatus,
    PaintImage, Picture, PoolConfig, ReplyStream, Sampling, ShutdownReport, System, SystemConfig, TextToText,
};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::picture::{self, lines};
use crate::png;
use crate::screen::Stage;
use crate::show::{self, LIMIT, Outcome, event, started};
use crate::vectors::{nearest, similarity};

/// For the reader, if there is one.
const PAUSE: Duration = Duration::from_millis(1500);
/// Between two pieces of text, so that a person can see them come.
const BEAT: Duration = Duration::from_millis(15);
/// Callers at a time.
const CALLERS: usize = 200;
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

/// What is left when all is over.
pub(crate) struct Curtain {
    report: ShutdownReport,
    most: Bytes,
    charged: Bytes,
    resident: [Option<Bytes>; 2],
}

impl show::Curtain for Curtain {
    fn left_nothing(&self) -> bool {
        self.report.is_clean() && self.charged == Bytes::ZERO
    }
}

impl Display for Curtain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { most, charged, resident, .. } = self;
        write!(
            formatter,
            "  bytes returned           {} of {most}",
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
        let system =
            SystemConfig { maintenance_interval: Duration::from_millis(500), ..SystemConfig::default() };
        let pool =
            PoolConfig { max_workers: 2, cooldown_idle: Duration::from_secs(10), ..PoolConfig::default() };
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
        let loader = TextGenerationModel::loader(source("shapes-chat"), LoadOptions::default())?;
        let burning = fuse.clone();
        let chat = ModelSpec::new("chat", HookedLoader::new(loader, move || burning.burn())).continuous();
        engine.system().client::<TextToText>()?.register(chat)?;
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
            callers.spawn(async move { model.embed(format!("{} {caller}", SENTENCES[caller % 4])).await });
        }
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
            let words = self.listen(self.ask(question).await?, question).await?;
            self.stage.keep(said(question, &words)).await;
        }
        self.rest().await;
        Ok(())
    }

    async fn ask(&self, question: &str) -> Outcome<ReplyStream<TextToText>> {
        let request = GenerateText::chat([Message::user(question)]);
        Ok(self.engine.text_to_text("chat")?.stream(request).await?)
    }

    /// Shows an answer as it comes, to its end.
    async fn listen(&self, mut stream: ReplyStream<TextToText>, question: &str) -> Outcome<String> {
        let mut words = String::new();
        while let Some(piece) = stream.next().await {
            words.push_str(&piece);
            self.stage.live(said(question, &words)).await;
            if picture::can_be_shown() {
                sleep(BEAT).await;
            }
        }
        Ok(stream.output().await?.text)
    }

    async fn paint(&self) -> Outcome<Vec<Picture>> {
        self.stage.act("Text to image: three pictures that no training saw, a step each in turn").await;
        let painter = self.engine.text_to_image("painter")?;
        // So that the pictures are shared out over all workers.
        painter.model().preload().await?;
        let mut streams = Vec::new();
        for (prompt, seed) in PROMPTS.into_iter().zip(SEED..) {
            let request = PaintImage {
                seed: Some(seed),
                steps: Some(STEPS),
                preview: true,
                ..PaintImage::from(prompt)
            };
            streams.push(painter.stream(request).await?);
        }
        let mut previews: Vec<Picture> = Vec::new();
        // All take the same number of steps.
        loop {
            let (mut shown, mut told) = (Vec::new(), String::new());
            for stream in &mut streams {
                if let Some(step) = stream.next().await {
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
            let request = |question: &str| DescribeImage {
                image: ImageSource::Picture(picture.clone()),
                question: question.to_owned(),
                sampling: Sampling::default(),
                max_tokens: 64,
            };
            let (description, count) = tokio::join!(
                describer.describe(request("Describe the picture.")),
                describer.describe(request("How many shapes are there?")),
            );
            self.stage
                .keep(vec![format!("{number}.png  {} {}", description?.text.trim(), count?.text.trim())])
                .await;
        }
        self.rest().await;
        Ok(())
    }

    async fn find(&self, pictures: &[Picture]) -> Outcome {
        let drawn: Vec<PathBuf> =
            (0..17).map(|number| self.models.join(format!("shapes/held_out/{number:03}.png"))).collect();
        let of = drawn.len() + pictures.len();
        self.stage.act(&format!("Image embedding: each found among {of} pictures by its words")).await;
        let finder = self.engine.image_embedding("finder")?;
        let painted = pictures.iter().cloned().map(ImageSource::Picture);
        let images = painted.chain(drawn.iter().cloned().map(ImageSource::Path));
        let (images, texts) = tokio::join!(finder.embed_images(images), finder.embed_texts(PROMPTS));
        let images = images?;
        for (prompt, text) in PROMPTS.iter().zip(texts?) {
            let best = nearest(&text, &images).unwrap_or_default();
            let name = match best.checked_sub(pictures.len()) {
                Some(drawn) => format!("{drawn:03}.png"),
                None => format!("{}.png", best + 1),
            };
            self.stage.keep(vec![format!("{name}  {:.2}  {prompt}", similarity(&text, &images[best]))]).await;
        }
        self.rest().await;
        Ok(())
    }

    async fn crash(&self) -> Outcome {
        self.stage.act("A worker crashes on purpose in the middle of a stream").await;
        let mut events = self.engine.events();
        self.fuse.light(TICKS_TO_CRASH);
        let stream = self.ask(STORY).await?;
        let replaced = async {
            let crash = |event: &Event| matches!(event, Event::WorkerCrashed { .. });
            event(&mut events, "the worker crashes", crash).await?;
            event(&mut events, "its replacement starts", |event| started(event, "chat")).await
        };
        let (heard, replaced) = tokio::join!(self.listen(stream, STORY), replaced);
        replaced?;
        let Err(error) = heard else { return Err("the worker did not crash".into()) };
        self.stage.tell(&format!("its reader is told: {error}")).await;
        self.stage.tell("the next answer, by the replacement:").await;
        let words = self.listen(self.ask(STORY).await?, STORY).await?;
        self.stage.keep(said(STORY, &words)).await;
        self.rest().await;
        Ok(())
    }

    async fn cool_down(&self) -> Outcome {
        self.stage.act("Nobody asks any more: all models cool down to zero").await;
        let system = self.system();
        let mut status = system.watch();
        let empty = status.wait_for(|status| status.workers().next().is_none());
        timeout(LIMIT, empty).await.map_err(|_| "the workers did not cool down")??;
        self.stage.done().await;
        Ok(())
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
        self.stage.done().await;
        if picture::can_be_shown() {
            sleep(PAUSE).await;
        }
    }

    fn charged(&self) -> Bytes {
        self.engine.system().charged(&Device::host()).unwrap_or_default().0
    }
}

/// What was asked, and what is answered to it, in lines of a readable length.
fn said(question: &str, answer: &str) -> Vec<String> {
    const WIDTH: usize = 90;
    let mut lines = vec![format!("{} {}", style("you  ").dim(), question), String::new()];
    for word in answer.split_whitespace() {
        if lines.last().is_some_and(|line| line.len() + word.len() >= WIDTH) {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        }
    }
    for (number, line) in lines.iter_mut().skip(1).enumerate() {
        let who = if number == 0 { "model" } else { "     " };
        *line = format!("{} {line}", style(who).green());
    }
    lines
}

fn resident() -> Option<Bytes> {
    Some(Bytes(memory_stats::memory_stats()?.physical_mem as u64))
}
