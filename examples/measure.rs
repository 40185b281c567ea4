//! Measures the small models of this repository on held-out data, and prints the figures of their cards.
//! `models/README.md` describes the held-out data.
//!
//! ```text
//! cargo run --release --example measure
//! ```
//!
//! The data is `models/shapes/held_out/`, made by `models/shapes/held_out.py`, and `held_out.json` and
//! `paraphrases.json` of `models/english-embedding-small/`. Descriptions of scenes are parsed in
//! `common/scenes.rs`. It fails if a model misses its target.

#[path = "common/scenes.rs"]
mod scenes;
#[path = "common/small_models.rs"]
mod small_models;
#[path = "common/vectors.rs"]
mod vectors;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use candle_actors::{
    DescribeImage, Engine, GenerateText, ImageDescriber, ImageSource, Message, PaintImage, Sampling, Source,
};
use clap::{Parser, ValueEnum};
use scenes::HeldOut;
use serde::Deserialize;
use vectors::{nearest, similarity};

type Failure = Box<dyn std::error::Error>;

/// Measures the small models of this repository on held-out data.
#[derive(Parser)]
struct Arguments {
    /// The folder of the models.
    #[arg(long, default_value = small_models::SMALL_MODELS)]
    models: PathBuf,
    /// Only these.
    only: Vec<Part>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Part {
    English,
    Images,
    Vision,
    Painting,
    Chat,
}

/// Number of held-out cases that a model got right.
#[derive(Clone)]
struct Figure {
    what: String,
    right: usize,
    of: usize,
    /// Target in percent.
    target: Option<usize>,
}

impl Figure {
    fn new(what: impl Into<String>, right: usize, of: usize) -> Self {
        Self { what: what.into(), right, of, target: None }
    }

    fn at_least(self, percent: usize) -> Self {
        Self { target: Some(percent), ..self }
    }

    fn is_missed(&self) -> bool {
        self.target.is_some_and(|percent| self.right * 100 < percent * self.of)
    }
}

impl Display for Figure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, right, of, target } = self;
        write!(formatter, "{what:<70} {right:>4} of {of:<4} {:>5.1} %", 100.0 * *right as f64 / *of as f64)?;
        match target {
            Some(percent) => write!(formatter, "  (target {percent} %)"),
            None => Ok(()),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    let models = &arguments.models;
    small_models::say_if_missing(models);
    let folder = |name: &str| Source::directory(models.join(name));
    let engine = Engine::builder()
        .text_embedding("english", folder("english-embedding-small"))
        .image_embedding("finder", folder("shapes-image-embedding"))
        .vision("describer", folder("shapes-vision"))
        .text_to_image("painter", folder("shapes-text-to-image"))
        .text_to_text("chat", folder("shapes-chat"))
        .start()
        .await?;
    let data = HeldOut::read(models)?;
    let mut missed = 0;
    for part in Part::value_variants() {
        if !arguments.only.is_empty() && !arguments.only.contains(part) {
            continue;
        }
        let figures = match part {
            Part::English => measure_english(&engine, &models.join("english-embedding-small")).await?,
            Part::Images => measure_images(&engine, &data, models).await?,
            Part::Vision => measure_vision(&engine, &data, models).await?,
            Part::Painting => measure_painting(&engine, &data).await?,
            Part::Chat => {
                [measure_chat(&engine, &data).await?, measure_stories(&engine, &data).await?].concat()
            }
        };
        figures.iter().for_each(|figure| println!("{figure}"));
        missed += figures.iter().filter(|figure| figure.is_missed()).count();
    }
    engine.shutdown().await;
    match missed {
        0 => Ok(()),
        missed => Err(format!("targets missed: {missed}").into()),
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// A text of `held_out.json`, and which of these texts is the nearest by the model's teacher.
#[derive(Deserialize)]
struct Taught {
    text: String,
    nearest: usize,
}

async fn measure_english(engine: &Engine, folder: &Path) -> Result<Vec<Figure>, Failure> {
    let model = engine.text_embedding("english")?;
    let triples: Vec<[String; 3]> = read(&folder.join("paraphrases.json"))?;
    let mut right = 0;
    for triple in &triples {
        let vectors = model.embed_batch(triple.clone()).await?;
        right += usize::from(similarity(&vectors[0], &vectors[1]) > similarity(&vectors[0], &vectors[2]));
    }
    let taught: Vec<Taught> = read(&folder.join("held_out.json"))?;
    let vectors = model.embed_batch(taught.iter().map(|taught| taught.text.clone())).await?;
    let (mut first, mut among_five) = (0, 0);
    for (own, (text, taught)) in vectors.iter().zip(&taught).enumerate() {
        let wanted = vectors.get(taught.nearest).ok_or("held_out.json names a text that it does not have")?;
        let wanted = similarity(text, wanted);
        let others = vectors.iter().enumerate().filter(|(other, _)| *other != own);
        let nearer = others.filter(|(_, other)| similarity(text, other) > wanted).count();
        first += usize::from(nearer == 0);
        among_five += usize::from(nearer < 5);
    }
    Ok(vec![
        Figure::new("english: a paraphrase is nearer than an unrelated sentence", right, triples.len()),
        Figure::new("english: the teacher's nearest of held-out texts is the nearest", first, taught.len()),
        Figure::new("english: and among the first five", among_five, taught.len()),
    ])
}

async fn measure_images(engine: &Engine, data: &HeldOut, models: &Path) -> Result<Vec<Figure>, Failure> {
    let model = engine.image_embedding("finder")?;
    let mut right = 0;
    for scenes in data.pictures.chunks(data.group) {
        let images = model.embed_images(scenes.iter().map(|scene| scene.image(models))).await?;
        let texts = model.embed_texts(scenes.iter().map(|scene| scene.caption.clone())).await?;
        let finds = |(own, text): &(usize, &Vec<f32>)| nearest(text, &images) == Some(*own);
        right += texts.iter().enumerate().filter(finds).count();
    }
    let what = format!("images: a text finds its picture among {}", data.group);
    Ok(vec![Figure::new(what, right, data.pictures.len()).at_least(90)])
}

async fn measure_vision(engine: &Engine, data: &HeldOut, models: &Path) -> Result<Vec<Figure>, Failure> {
    let model = engine.vision("describer")?;
    let (mut asked, mut answered, mut described) = (0, 0, 0);
    for scene in &data.pictures {
        let image = scene.image(models);
        for (question, answer) in &scene.questions {
            asked += 1;
            answered += usize::from(look(&model, image.clone(), question).await? == *answer);
        }
        described += usize::from(look(&model, image, "Describe the picture.").await? == scene.description);
    }
    Ok(vec![
        Figure::new("vision: questions about colours and numbers, word for word", answered, asked)
            .at_least(90),
        Figure::new("vision: descriptions, word for word", described, data.pictures.len()).at_least(90),
    ])
}

async fn look(model: &ImageDescriber, image: ImageSource, question: &str) -> Result<String, Failure> {
    let (question, sampling) = (question.to_owned(), Sampling::default());
    let completion = model
        .describe(
            DescribeImage::new(image).with_question(question).with_sampling(sampling).with_max_tokens(64),
        )
        .await?;
    Ok(completion.text.trim().to_owned())
}

/// Checks painted images by the descriptions of the vision model.
async fn measure_painting(engine: &Engine, data: &HeldOut) -> Result<Vec<Figure>, Failure> {
    let (painter, describer) = (engine.text_to_image("painter")?, engine.vision("describer")?);
    let (mut same_things, mut same_places) = (0, 0);
    for (prompt, seed) in data.prompts.iter().zip(1..) {
        let picture = painter.paint(PaintImage::from(prompt).with_seed(seed)).await?;
        let said = look(&describer, ImageSource::Picture(picture), "Describe the picture.").await?;
        same_things += usize::from(scenes::things(&said) == scenes::things(prompt));
        same_places += usize::from(scenes::layout(&said) == scenes::layout(prompt));
    }
    let painted = data.prompts.len();
    Ok(vec![
        Figure::new("painting: the described colours and shapes are the prompt's", same_things, painted)
            .at_least(80),
        Figure::new("painting: and they stand as the prompt says", same_places, painted).at_least(80),
    ])
}

async fn measure_chat(engine: &Engine, data: &HeldOut) -> Result<Vec<Figure>, Failure> {
    let model = engine.text_to_text("chat")?;
    let requests = data.chats.iter().map(|(question, _)| GenerateText::chat([Message::user(question)]));
    let answers = model.generate_batch(requests).await?;
    let mut kinds: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (answer, (question, expected)) in answers.iter().zip(&data.chats) {
        let (right, of) = kinds.entry(kind(question)).or_default();
        *right += usize::from(answer.text.trim() == expected);
        *of += 1;
    }
    let right = kinds.values().map(|(right, _)| right).sum();
    let all = "chat: questions about a scene in words, word for word";
    let all = Figure::new(all, right, data.chats.len()).at_least(90);
    let kinds =
        kinds.into_iter().map(|(kind, (right, of))| Figure::new(format!("      {kind} …"), right, of));
    Ok([all].into_iter().chain(kinds).collect())
}

/// The first two words of the question that stands after a scene in words.
fn kind(question: &str) -> String {
    let asked = question.rsplit(". ").next().unwrap_or(question);
    asked.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

async fn measure_stories(engine: &Engine, data: &HeldOut) -> Result<Vec<Figure>, Failure> {
    let model = engine.text_to_text("chat")?;
    let requests = data.stories.iter().map(|request| GenerateText::chat([Message::user(request)]));
    let stories = model.generate_batch(requests).await?;
    let good = stories.iter().filter(|story| data.is_story(&story.text)).count();
    let own = data.stories.iter().zip(&stories);
    let own = own
        .filter(|(request, story)| scenes::layout(request).first() == scenes::layout(&story.text).first())
        .count();
    let different: BTreeSet<&str> = stories.iter().map(|story| story.text.trim()).collect();
    Ok(vec![
        Figure::new("chat: stories of which every sentence is grammatical", good, stories.len()).at_least(90),
        Figure::new("chat: stories about the thing that was asked for", own, stories.len()),
        Figure::new("chat: different ones among these stories", different.len(), stories.len()),
    ])
}
