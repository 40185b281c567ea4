//! Several answers to one prompt: each is what it would be alone, with a seed, an end and numbers of its own, and the prompt
//! is read once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;

use candle_actors::{
    AnswerEnd, Bytes, CallOptions, Completion, Constraint, DescribeImage, Engine, ErrorKind, FinishReason,
    GenerateText, GenerationLimits, ImageSource, Sampling, Source, SourceSpec, TextGenerator,
};
use common::folders::families_of;
use common::text::{counted, family, one_worker};
use common::{root, until_nothing_runs};

const PROMPT: &str = "The cat sleeps on the old wooden table in the kitchen, and it rains. ";
const ANSWERS: usize = 4;
const TOKENS: usize = 24;

/// Of each kind of state: full attention, windows and shared keys, long frequencies, quantised, experts, gated delta nets, and
/// those of candle-transformers, which read the prompt again.
fn families() -> Vec<&'static str> {
    let mut families = vec!["llama", "gemma3n", "phi3", "gguf_llama", "gguf_gpt_oss", "qwen3_next"];
    if cfg!(feature = "transformers") {
        families.extend(["transformers/olmo", "transformers/granite", "transformers/stablelm"]);
    }
    families
}

async fn engine(name: &str, limits: GenerationLimits) -> (Engine, TextGenerator) {
    let source = SourceSpec::from(Source::directory(family(name))).with_generation(limits);
    let engine =
        Engine::builder().pool_config(one_worker()).text_to_text("base", source).start().await.unwrap();
    let model = engine.text_to_text("base").unwrap();
    (engine, model)
}

fn without_prefix_cache() -> GenerationLimits {
    GenerationLimits::default().with_prefix_cache_tokens(0)
}

fn request(sampling: Sampling) -> GenerateText {
    GenerateText::from(PROMPT.repeat(4)).with_max_tokens(TOKENS).with_sampling(sampling).with_logprobs(1)
}

fn wild() -> Sampling {
    Sampling::default().with_temperature(1.5).with_seed(u64::MAX - 1)
}

/// The answers as requests of their own, one after the other.
async fn alone(model: &TextGenerator, request: &GenerateText) -> Vec<Completion> {
    let mut answers = Vec::new();
    for answer in 0..request.answers {
        let own = request.clone().with_answers(1).with_sampling(request.sampling.of_answer(answer));
        answers.push(model.generate(own).await.unwrap());
    }
    answers
}

fn same(answers: &[Completion], expected: &[Completion], about: &str) {
    assert_eq!(answers.len(), expected.len(), "{about}");
    for (index, (answer, expected)) in answers.iter().zip(expected).enumerate() {
        assert_eq!(answer.text, expected.text, "{about}, answer {index}");
        assert_eq!(answer.finish_reason, expected.finish_reason, "{about}, answer {index}");
        assert_eq!(answer.usage.prompt_tokens, expected.usage.prompt_tokens, "{about}, answer {index}");
        assert_eq!(
            answer.usage.completion_tokens, expected.usage.completion_tokens,
            "{about}, answer {index}"
        );
        // Texts that outgrow a rotary embedding are read again, together in pieces.
        if !about.contains("phi3") {
            assert_eq!(answer.logprobs, expected.logprobs, "{about}, answer {index}: to the last bit");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_is_what_it_is_alone() {
    for name in families() {
        for limits in [without_prefix_cache(), GenerationLimits::default()] {
            let (engine, model) = engine(name, limits).await;
            for sampling in [Sampling::default(), wild()] {
                let is_wild = sampling.seed.is_some();
                let asked = request(sampling).with_answers(ANSWERS);
                let expected = alone(&model, &asked).await;
                let whole = model.generate(asked).await.unwrap();
                assert_eq!(
                    whole.total_usage().prompt_tokens,
                    expected[0].usage.prompt_tokens,
                    "it counts once"
                );
                let written: usize = expected.iter().map(|answer| answer.usage.completion_tokens).sum();
                assert_eq!(whole.total_usage().completion_tokens, written);
                let answers = whole.into_answers();
                same(&answers, &expected, name);
                let texts: BTreeSet<&str> = answers.iter().map(|answer| answer.text.as_str()).collect();
                assert_eq!(texts.len(), if is_wild { ANSWERS } else { 1 }, "{name}: {texts:?}");
            }
            assert!(engine.shutdown().await.is_clean());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prompt_is_read_once_and_the_answers_are_written_together() {
    // Without a cache of prefixes.
    let (system, handle, model) = counted("llama", one_worker()).await;
    let steps = async |request: GenerateText| {
        let before = model.steps();
        let completion = handle.call(request, CallOptions::default()).await.unwrap();
        (model.steps() - before, completion)
    };
    let (one, _) = steps(request(Sampling::default())).await;
    let (all, whole) = steps(request(Sampling::default()).with_answers(ANSWERS)).await;
    // 128 tokens of prompts go through a step.
    let prompt = whole.usage.prompt_tokens.div_ceil(128) as u64;
    assert!(prompt > 1, "{prompt} steps");
    assert_eq!(all, one, "as many as for one answer");
    assert_eq!(all, prompt + whole.usage.completion_tokens as u64 - 1);
    assert_eq!(whole.others.len(), ANSWERS - 1);
    assert!(system.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_say_which_answer_they_belong_to_and_one_ends_early_by_a_stop_string() {
    let (engine, model) = engine("llama", without_prefix_cache()).await;
    let asked = request(wild()).with_answers(ANSWERS);
    let free = alone(&model, &asked).await;
    // A piece of the first answer that the last one lacks.
    let letters: Vec<char> = free[0].text.chars().collect();
    let mut pieces = letters.windows(2).map(|pair| pair.iter().collect::<String>());
    let stop = pieces.find(|piece| free[1..].iter().any(|other| !other.text.contains(piece))).unwrap();
    let asked = asked.with_stop(vec![stop]);
    let expected = alone(&model, &asked).await;
    let lengths: BTreeSet<usize> = expected.iter().map(|answer| answer.usage.completion_tokens).collect();
    assert!(lengths.len() > 1 && expected[0].finish_reason == FinishReason::Stop, "{lengths:?}");
    let mut stream = model.stream(asked).await.unwrap();
    let mut texts = vec![String::new(); ANSWERS];
    let mut logprobs = vec![Vec::new(); ANSWERS];
    let (mut ends, mut after) = (vec![None; ANSWERS], 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.unwrap();
        assert_eq!(ends[chunk.answer], None, "nothing comes after an answer's end");
        after += usize::from(ends.iter().any(Option::is_some));
        ends[chunk.answer] = chunk.end;
        texts[chunk.answer] += &chunk.text;
        logprobs[chunk.answer].extend(chunk.logprobs);
    }
    let answers = stream.output().await.unwrap().into_answers();
    same(&answers, &expected, "llama");
    for ((answer, text), logprobs) in answers.iter().zip(texts).zip(logprobs) {
        assert_eq!((&answer.text, &answer.logprobs), (&text, &logprobs));
    }
    let told = answers.iter().map(|answer| Some(AnswerEnd::new(answer.finish_reason, answer.usage)));
    assert_eq!(ends, told.collect::<Vec<_>>());
    assert!(after > ANSWERS, "an end is told while others are written: {after} chunks after the first");
    // The end of one answer alone is that of the stream.
    let mut stream = model.stream(request(wild())).await.unwrap();
    while let Some(chunk) = stream.next().await {
        assert_eq!(chunk.unwrap().end, None);
    }
    assert!(engine.shutdown().await.is_clean());
}

/// Two at a time have room, beside others that come meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn answers_beyond_the_room_of_a_worker_wait_and_are_the_same() {
    let (engine, model) = engine("llama", without_prefix_cache().with_kv_cache_tokens(512)).await;
    let asked = request(wild()).with_answers(5);
    let expected = alone(&model, &asked).await;
    let other = model.generate(request(Sampling::default())).await.unwrap();
    let (several, one) = tokio::join!(model.generate(asked), model.generate(request(Sampling::default())));
    same(&several.unwrap().into_answers(), &expected, "llama");
    assert_eq!(one.unwrap(), other);
    assert!(engine.shutdown().await.is_clean());
}

#[cfg(feature = "structured")]
#[tokio::test(flavor = "multi_thread")]
async fn each_answer_keeps_to_the_constraint() {
    let (engine, model) = engine("llama", without_prefix_cache()).await;
    let rule = Constraint::Regex("[a-z]{3,9}( [a-z]{2,5}){1,3}".to_owned());
    let asked = request(wild()).with_constraint(rule).with_answers(ANSWERS).with_max_tokens(64);
    let expected = alone(&model, &asked).await;
    let answers = model.generate(asked).await.unwrap().into_answers();
    same(&answers, &expected, "llama");
    let texts: BTreeSet<&str> = answers.iter().map(|answer| answer.text.as_str()).collect();
    assert!(texts.len() > 1 && texts.iter().all(|text| text.contains(' ')), "{texts:?}");
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_ends_all_answers_and_too_many_are_refused_before_they_are_queued() {
    let (engine, model) = engine("llama", GenerationLimits::default()).await;
    for answers in [0, 33] {
        let refused = model.generate(request(wild()).with_answers(answers)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
        assert!(refused.to_string().contains("1 to 32"), "{refused}");
    }
    let long = request(wild()).with_answers(ANSWERS).with_max_tokens(4000);
    let mut stream = model.stream(long).await.unwrap();
    let mut seen = BTreeSet::new();
    while seen.len() < ANSWERS {
        seen.insert(stream.next().await.unwrap().unwrap().answer);
    }
    drop(stream);
    until_nothing_runs(model.model()).await;
    assert!(engine.system().status().memory.iter().all(|memory| memory.charged == Bytes::ZERO));
    let whole = model.generate(request(wild()).with_answers(2)).await.unwrap();
    assert_eq!(whole.answers().count(), 2);
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_about_an_image_that_is_looked_at_once_are_what_they_are_alone() {
    for name in families_of("vision") {
        let folder = Source::directory(root().join("tests/fixtures/vision").join(&name));
        let engine =
            Engine::builder().pool_config(one_worker()).vision("base", folder).start().await.unwrap();
        let model = engine.vision("base").unwrap();
        let image = root().join("tests/fixtures/vision_images");
        let image = std::fs::read_dir(image).unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
        let asked = DescribeImage::new(ImageSource::Path(image))
            .with_question("What is it?")
            .with_max_tokens(12)
            .with_logprobs(1)
            .with_sampling(wild())
            .with_answers(3);
        let mut expected = Vec::new();
        for answer in 0..3 {
            let own = asked.clone().with_answers(1).with_sampling(asked.sampling.of_answer(answer));
            expected.push(model.describe(own).await.unwrap());
        }
        let answers = model.describe(asked).await.unwrap().into_answers();
        same(&answers, &expected, &name);
        let texts: BTreeSet<&str> = answers.iter().map(|answer| answer.text.as_str()).collect();
        assert!(texts.len() > 1, "{name}: {texts:?}");
        assert!(engine.shutdown().await.is_clean());
    }
}
