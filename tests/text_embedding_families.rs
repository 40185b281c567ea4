//! Every text embedding family gives the numbers of its reference implementation, alone and in any batch, with prompts
//! and with fewer dimensions. The models are tiny and random; `tests/references/text_embedding.py` makes them and says
//! where each reference comes from.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::PathBuf;

use candle_actors::{Engine, Error, Source, TextEmbeddingModel};
use common::difference;
use model_actors::{EmbedPrompt, EmbedTexts};
use serde::Deserialize;

/// The largest difference from the reference.
const TOLERANCE: f32 = 1e-4;
/// The largest difference between a text alone and the same in a batch.
const BATCH_TOLERANCE: f32 = 1e-5;

/// A text as it was given to the reference, and what came back.
#[derive(Deserialize)]
struct Case {
    text: String,
    /// A prompt by its name in the model's files.
    named: Option<String>,
    /// A prompt by its words.
    written: Option<String>,
    dimensions: Option<usize>,
    embedding: Vec<f32>,
}

impl Case {
    fn prompt(&self) -> Option<EmbedPrompt> {
        let named = self.named.clone().map(EmbedPrompt::Named);
        named.or_else(|| self.written.clone().map(EmbedPrompt::Text))
    }

    fn request(&self) -> EmbedTexts {
        let texts = vec![self.text.clone()];
        EmbedTexts { texts, prompt: self.prompt(), dimensions: self.dimensions }
    }
}

fn folder(family: &str) -> PathBuf {
    common::root().join("tests/fixtures/text_embedding").join(family)
}

fn load(family: &str) -> TextEmbeddingModel {
    TextEmbeddingModel::load(Source::directory(folder(family))).unwrap()
}

fn cases(family: &str) -> Vec<Case> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    let text = std::fs::read(folder(family).join("expected.json")).unwrap();
    serde_json::from_slice::<File>(&text).unwrap().cases
}

/// Compares each case alone with its reference, and the cases without a prompt alone with the same in batches.
fn compare(family: &str) {
    let (model, cases) = (load(family), cases(family));
    let alone: Vec<Vec<f32>> =
        cases.iter().map(|case| model.embed_request(&case.request()).unwrap().swap_remove(0)).collect();
    let differences = cases.iter().zip(&alone).map(|(case, vector)| difference(&case.embedding, vector));
    let largest = differences.fold(0.0, f32::max);

    let plain: Vec<(&str, &Vec<f32>)> = cases
        .iter()
        .zip(&alone)
        .filter(|(case, _)| case.prompt().is_none() && case.dimensions.is_none())
        .map(|(case, vector)| (case.text.as_str(), vector))
        .collect();
    let mut apart: f32 = 0.0;
    for size in [2, 3, plain.len()] {
        for batch in plain.chunks(size) {
            let texts: Vec<&str> = batch.iter().rev().map(|(text, _)| *text).collect();
            for (vector, (_, alone)) in model.embed(&texts).unwrap().iter().zip(batch.iter().rev()) {
                apart = apart.max(difference(vector, alone));
            }
        }
    }
    println!("{family}: {} cases, largest difference {largest:.2e}, in batches {apart:.2e}", cases.len());
    assert!(largest <= TOLERANCE, "{family}: {largest} from the reference");
    assert!(apart <= BATCH_TOLERANCE, "{family}: {apart} between alone and in a batch");
}

macro_rules! families {
    ($($family:ident),* $(,)?) => {
        $(#[test]
        fn $family() {
            compare(stringify!($family));
        })*
    };
}

families!(
    bert,
    distilbert,
    roberta,
    xlm_roberta,
    jina_bert,
    nomic_bert,
    modernbert,
    stella_400m,
    gte_qwen2,
    stella_1_5b,
    qwen3,
    nv_embed,
);

#[test]
fn dimensions_that_the_model_lists_are_the_only_ones() {
    let ask = |family: &str, dimensions| {
        let request = EmbedTexts { dimensions: Some(dimensions), ..EmbedTexts::from("Hello") };
        load(family).embed_request(&request)
    };
    for dimensions in [8, 16, 32] {
        let vector = ask("nomic_bert", dimensions).unwrap().swap_remove(0);
        let length: f32 = vector.iter().map(|x| x * x).sum();
        assert!(vector.len() == dimensions && (length - 1.0).abs() < 1e-5);
    }
    for (family, dimensions) in [("nomic_bert", 9), ("nomic_bert", 0), ("bert", 0), ("bert", 33)] {
        let error = ask(family, dimensions).unwrap_err();
        assert!(matches!(&error, Error::InvalidInput(words) if words.contains("32")), "{family}: {error}");
    }
    assert_eq!(ask("bert", 9).unwrap()[0].len(), 9);
}

#[test]
fn prompts_that_are_not_there_or_leave_no_room_are_refused() {
    let ask = |family: &str, prompt| {
        let request = EmbedTexts { prompt: Some(prompt), ..EmbedTexts::from("Hello") };
        load(family).embed_request(&request).unwrap_err().to_string()
    };
    let words = ask("nomic_bert", EmbedPrompt::Named("passage".to_owned()));
    assert!(words.contains("search_document, search_query"), "{words}");
    let words = ask("nv_embed", EmbedPrompt::Text("too long ".repeat(100)));
    assert!(words.contains("no room"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_ask_for_prompts_as_the_model_itself_does() {
    let engine = Engine::builder()
        .text_embedding("nomic", Source::directory(folder("nomic_bert")))
        .text_embedding("e5", Source::directory(folder("xlm_roberta")))
        .start()
        .await
        .unwrap();
    let (nomic, e5) = (engine.text_embedding("nomic").unwrap(), engine.text_embedding("e5").unwrap());
    for (family, handle) in [("nomic_bert", nomic), ("xlm_roberta", e5)] {
        for case in cases(family).into_iter().filter(|case| case.text.len() < 1000) {
            let mut handle = handle.clone();
            if let Some(name) = &case.named {
                handle = handle.prompt(name);
            }
            if let Some(prompt) = &case.written {
                handle = handle.prompt_text(prompt);
            }
            if let Some(dimensions) = case.dimensions {
                handle = handle.dimensions(dimensions);
            }
            let vector = handle.embed(case.text.as_str()).await.unwrap();
            assert!(difference(&vector, &case.embedding) <= TOLERANCE);
        }
    }
    assert!(engine.shutdown().await.is_clean());
}
