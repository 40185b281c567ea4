//! The small trained models of this repository give correct answers, not only well-formed ones, and give the
//! same ones while their workers crash. All questions are about held-out scenes; only requests for stories
//! could not be held out (`models/README.md`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../examples/common/scenes.rs"]
mod scenes;
#[path = "../examples/common/vectors.rs"]
mod vectors;
#[path = "common/fragile.rs"]
mod fragile;

use std::path::PathBuf;

use candle_actors::model_actors::testing::Fuse;
use candle_actors::{
    DescribeImage, Engine, Event, GenerateText, ImageDescriber, ImageEmbeddingModel, ImageSource,
    LoadOptions, Message, ModelSpec, PaintImage, Picture, Sampling, Source, StandaloneModel,
    TextEmbeddingModel, TextGenerationModel, TextToImageModel, VisionModel,
};
use fragile::fragile;
use scenes::{HeldOut, Scene};
use vectors::nearest;

/// Groups of images that are tested.
const GROUPS: usize = 2;
const CHATS: usize = 60;
const PROMPTS: usize = 10;

fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn source(name: &str) -> Source {
    Source::directory(models().join(name))
}

fn held_out() -> HeldOut {
    HeldOut::read(&models()).unwrap()
}

fn drawn(scene: &Scene) -> ImageSource {
    scene.image(&models())
}

async fn look(describer: &ImageDescriber, image: ImageSource, question: &str) -> String {
    let (question, sampling) = (question.to_owned(), Sampling::default());
    let answer = describer
        .describe(
            DescribeImage::new(image).with_question(question).with_sampling(sampling).with_max_tokens(64),
        )
        .await;
    answer.unwrap().text.trim().to_owned()
}

fn paint(prompt: &str, seed: u64) -> PaintImage {
    PaintImage::from(prompt).with_seed(seed)
}

const SENTENCES: [&str; 4] = [
    "The cat is sleeping on the sofa.",
    "The stock market fell sharply on Monday.",
    "A kitten naps on the couch.",
    "She plays the violin in an orchestra.",
];

async fn the_similar_one_ranks_first(engine: &Engine) {
    let vectors = engine.text_embedding("english").unwrap().embed_batch(SENTENCES).await.unwrap();
    assert_eq!(nearest(&vectors[0], &vectors[1..]), Some(1));
}

#[tokio::test]
async fn the_similar_sentence_ranks_first() {
    let builder = Engine::builder().text_embedding("english", source("english-embedding-small"));
    let engine = builder.start().await.unwrap();
    the_similar_one_ranks_first(&engine).await;
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test]
async fn each_caption_finds_its_image_among_twenty() {
    let builder = Engine::builder().image_embedding("finder", source("shapes-image-embedding"));
    let engine = builder.start().await.unwrap();
    let finder = engine.image_embedding("finder").unwrap();
    let data = held_out();
    let (mut found, mut asked) = (0, 0);
    for scenes in data.pictures.chunks(data.group).take(GROUPS) {
        let images = finder.embed_images(scenes.iter().map(drawn)).await.unwrap();
        let texts = finder.embed_texts(scenes.iter().map(|scene| scene.caption.clone())).await.unwrap();
        found += texts.iter().enumerate().filter(|(own, text)| nearest(text, &images) == Some(*own)).count();
        asked += texts.len();
    }
    assert_eq!(asked, 20 * GROUPS);
    assert!(found * 10 >= asked * 9, "{found} of {asked} captions found their picture");
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test]
async fn questions_about_pictures_are_answered_right() {
    let engine = Engine::builder().vision("describer", source("shapes-vision")).start().await.unwrap();
    let describer = engine.vision("describer").unwrap();
    let data = held_out();
    let (mut right, mut asked) = (0, 0);
    for scene in data.pictures.iter().take(data.group) {
        for (question, answer) in &scene.questions {
            right += usize::from(look(&describer, drawn(scene), question).await == *answer);
            asked += 1;
        }
    }
    assert!(right * 10 >= asked * 9, "{right} of {asked} answers are right");
    let mut described = 0;
    for scene in data.pictures.iter().take(data.group) {
        let said = look(&describer, drawn(scene), "Describe the picture.").await;
        described += usize::from(said == scene.description);
    }
    assert!(described * 10 >= data.group * 9, "{described} of {} descriptions are right", data.group);
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test]
async fn questions_about_scenes_in_words_are_answered_right_and_stories_are_grammatical() {
    let engine = Engine::builder().text_to_text("chat", source("shapes-chat")).start().await.unwrap();
    let chat = engine.text_to_text("chat").unwrap();
    let data = held_out();
    let chats = &data.chats[..CHATS];
    let asked = chats.iter().map(|(question, _)| GenerateText::chat([Message::user(question)]));
    let answers = chat.generate_batch(asked).await.unwrap();
    let right = answers.iter().zip(chats).filter(|(answer, (_, right))| answer.text.trim() == right).count();
    assert!(right * 10 >= CHATS * 9, "{right} of {CHATS} answers are right");

    let asked = data.stories.iter().map(|request| GenerateText::chat([Message::user(request)]));
    let stories = chat.generate_batch(asked).await.unwrap();
    let [first, second] = [
        "A small red circle lived in a city. One sunny morning a large blue square came by.",
        "The square was afraid of the dark. So the circle lit a lamp.",
    ];
    assert!(data.is_story(&format!("{first} {second}")));
    for broken in [second.replace("lit a", "a lit"), second.replace("lit a lamp", "lit"), first.to_owned()] {
        assert!(!data.is_story(&format!("{first} {broken}")), "the control: {broken}");
    }
    let good = stories.iter().filter(|story| data.is_story(&story.text)).count();
    assert!(good * 10 >= stories.len() * 9, "{good} of {} stories are grammatical", stories.len());
    let is_own =
        |(request, text): (&String, &str)| scenes::layout(text).first() == scenes::layout(request).first();
    let own = data
        .stories
        .iter()
        .zip(stories.iter().map(|story| &*story.text))
        .filter(|pair| is_own(*pair))
        .count();
    assert!(own * 10 >= stories.len() * 9, "{own} of {} stories are about what was asked for", stories.len());
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test]
async fn a_painted_image_matches_its_prompt_by_description_and_by_embedding() {
    let engine = Engine::builder()
        .text_to_image("painter", source("shapes-text-to-image"))
        .vision("describer", source("shapes-vision"))
        .image_embedding("finder", source("shapes-image-embedding"))
        .start()
        .await
        .unwrap();
    let (painter, describer) =
        (engine.text_to_image("painter").unwrap(), engine.vision("describer").unwrap());
    let prompts = &held_out().prompts[..PROMPTS];
    let (mut pictures, mut described): (Vec<Picture>, usize) = (Vec::new(), 0);
    for (prompt, seed) in prompts.iter().zip(1..) {
        let picture = painter.paint(paint(prompt, seed)).await.unwrap();
        let said = look(&describer, ImageSource::Picture(picture.clone()), "Describe the picture.").await;
        println!("{prompt}: {said}");
        described += usize::from(scenes::things(&said) == scenes::things(prompt));
        pictures.push(picture);
    }
    assert!(described * 10 >= PROMPTS * 8, "{described} of {PROMPTS} are described by their words");
    let finder = engine.image_embedding("finder").unwrap();
    let images = finder.embed_images(pictures.into_iter().map(ImageSource::Picture)).await.unwrap();
    let texts = finder.embed_texts(prompts.iter().cloned()).await.unwrap();
    let found = texts.iter().enumerate().filter(|(own, text)| nearest(text, &images) == Some(*own)).count();
    assert!(found * 10 >= PROMPTS * 8, "{found} of {PROMPTS} are found by their words");
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answers_are_the_same_while_workers_crash() {
    let engine = Engine::builder().start().await.unwrap();
    let (options, data) = (LoadOptions::default, held_out());
    let embedding = TextEmbeddingModel::loader(source("english-embedding-small"), options()).unwrap();
    let finding = ImageEmbeddingModel::loader(source("shapes-image-embedding"), options()).unwrap();
    let looking = VisionModel::loader(source("shapes-vision"), options()).unwrap();
    let painting = TextToImageModel::loader(source("shapes-text-to-image"), options()).unwrap();
    let writing = TextGenerationModel::loader(source("shapes-chat"), options()).unwrap();
    let fuses = [
        fragile(&engine, "english", embedding, |spec| spec),
        fragile(&engine, "finder", finding, |spec| spec),
        fragile(&engine, "describer", looking, ModelSpec::continuous),
        fragile(&engine, "painter", painting, |spec| spec),
        fragile(&engine, "chat", writing, ModelSpec::continuous),
    ];
    let (finder, describer) =
        (engine.image_embedding("finder").unwrap(), engine.vision("describer").unwrap());
    let (painter, chat) = (engine.text_to_image("painter").unwrap(), engine.text_to_text("chat").unwrap());
    let prompt = &data.prompts[0];
    let ask = || async {
        the_similar_one_ranks_first(&engine).await;
        let chats = data.chats[..8].iter().map(|(question, _)| GenerateText::chat([Message::user(question)]));
        let picture = painter.paint(paint(prompt, 1)).await.unwrap();
        let painted = ImageSource::Picture(picture);
        let images = [painted.clone()].into_iter().chain(data.pictures[..9].iter().map(drawn));
        let images = finder.embed_images(images).await.unwrap();
        let words = finder.embed_texts([prompt]).await.unwrap();
        assert_eq!(nearest(&words[0], &images), Some(0), "the picture is found by its words");
        let said = look(&describer, painted, "Describe the picture.").await;
        assert_eq!(scenes::things(&said), scenes::things(prompt), "the picture is what was asked for");
        (
            images,
            said,
            chat.generate_batch(chats)
                .await
                .unwrap()
                .into_iter()
                .map(|answer| answer.text)
                .collect::<Vec<_>>(),
        )
    };
    let calm = ask().await;
    let right = calm.2.iter().zip(&data.chats).filter(|(answer, (_, right))| answer.trim() == right).count();
    assert!(right >= 7, "{right} of 8 answers are right");
    let mut events = engine.events();
    for ticks in [1, 2] {
        fuses.iter().for_each(|fuse| fuse.light(ticks));
        assert!(ask().await == calm, "an answer after a crash at tick {ticks} differs");
        assert!(!fuses.iter().any(Fuse::is_lit), "every model's worker crashed");
    }
    let mut crashed: Vec<String> = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let Event::WorkerCrashed { model, .. } = event {
            crashed.push(model.to_string());
        }
    }
    crashed.sort();
    assert_eq!(
        crashed,
        [
            "chat",
            "chat",
            "describer",
            "describer",
            "english",
            "english",
            "finder",
            "finder",
            "painter",
            "painter"
        ]
    );
    assert!(engine.shutdown().await.is_clean());
}
