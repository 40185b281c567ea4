//! The prefix cache through the actors: answers are the same to the token with it and without, later turns read what is
//! new, and its bytes are in the budget and go with the model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use candle_actors::{
    Bytes, Completion, Engine, GenerateText, GenerationLimits, MemoryStatus, PoolConfig, Sampling, Source,
    SourceSpec, TextGenerator,
};
use common::text::{family, one_worker};
use futures_util::future::join_all;

/// Of each kind: full attention, windows and shared keys, long frequencies, quantised, experts; the last has a state that
/// cannot be divided. That keys are the same to the last bit is tested for all, beside the decoder.
const FAMILIES: [&str; 6] = ["llama", "gemma3n", "phi3", "gguf_llama", "gguf_gpt_oss", "qwen3_next"];
const WHOLE: &str = "qwen3_next";
const TURNS: usize = 4;
/// Tokens of a block.
const BLOCK: usize = 64;

async fn engine(name: &str, tokens: usize, pool: PoolConfig) -> (Engine, TextGenerator) {
    let limits = GenerationLimits::default().with_prefix_cache_tokens(tokens);
    let source = SourceSpec::from(Source::directory(family(name))).with_generation(limits);
    let engine = Engine::builder().pool_config(pool).text_to_text(name, source).start().await.unwrap();
    let model = engine.text_to_text(name).unwrap();
    (engine, model)
}

fn sampled(seed: u64) -> Sampling {
    match seed {
        0 => Sampling::default(),
        seed => Sampling::default().with_temperature(1.0).with_seed(seed),
    }
}

/// The answers of a conversation in which each turn's prompt begins with all that was said before.
async fn conversation(model: &TextGenerator, talker: usize) -> Vec<Completion> {
    let mut said = "The cat sleeps on the old wooden table in the kitchen, and it rains. ".to_owned();
    let mut answers = Vec::new();
    for turn in 0..TURNS {
        said += &format!("Talker {talker} asks, for the {turn}th time, where the small dog is now. ");
        let request = GenerateText::from(said.as_str())
            .with_max_tokens(12)
            .with_sampling(sampled((talker % 2 * (turn + 7)) as u64));
        let answer = model.generate(request).await.unwrap();
        said += &answer.text;
        answers.push(answer);
    }
    answers
}

fn texts(answers: &[Completion]) -> Vec<(&str, usize, usize)> {
    let text = |answer: &'_ Completion| (answer.usage.prompt_tokens, answer.usage.completion_tokens);
    answers.iter().map(|answer| (answer.text.as_str(), text(answer).0, text(answer).1)).collect()
}

fn cached(answers: &[Completion]) -> Vec<usize> {
    answers.iter().map(|answer| answer.usage.cached_tokens).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_the_same_to_the_token_and_later_turns_read_what_is_new() {
    for name in FAMILIES {
        let (without, plain) = engine(name, 0, one_worker()).await;
        let (with, keeping) = engine(name, 8192, one_worker()).await;
        for talker in 0..2 {
            let (expected, answers) =
                (conversation(&plain, talker).await, conversation(&keeping, talker).await);
            assert_eq!(texts(&answers), texts(&expected), "{name}");
            assert_eq!(cached(&expected), [0; TURNS], "{name}: there is none");
            for (before, after) in answers.iter().zip(&answers[1..]) {
                let (read, found) = (before.usage.prompt_tokens / BLOCK * BLOCK, after.usage.cached_tokens);
                // The end of a prompt may be tokenized in another way once more follows.
                let expected = if name == WHOLE { 0..=0 } else { read.saturating_sub(BLOCK)..=read };
                assert!(expected.contains(&found), "{name}: {found} of {read}");
            }
        }
        // Four at once, of which two have been heard before.
        let all = |model| join_all((0..4).map(move |talker| conversation(model, talker)));
        let (expected, answers) = (all(&plain).await, all(&keeping).await);
        for (expected, answers) in expected.iter().zip(&answers) {
            assert_eq!(texts(answers), texts(expected), "{name}, in company");
        }
        let found: usize = answers.iter().flat_map(|answers| cached(answers)).sum();
        println!("{name}: {found} tokens of 4 conversations were found");
        assert_eq!(found > 0, name != WHOLE, "{name}");
        assert!(without.shutdown().await.is_clean());
        assert!(with.shutdown().await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_bytes_are_in_the_budget_and_go_with_the_model() {
    let (engine, model) = engine("llama", 4 * BLOCK, PoolConfig::default()).await;
    let memory = || engine.system().status().memory[0].clone();
    let mut most = Bytes(0);
    for talker in 0..6 {
        conversation(&model, talker).await;
        let MemoryStatus { charged, cached, .. } = memory();
        assert!(cached > Bytes(0) && charged > cached);
        most = most.max(cached);
    }
    conversation(&model, 9).await;
    assert_eq!(memory().cached, most, "it is full, and takes no more");
    model.model().unload(Duration::from_secs(30)).await.unwrap();
    let MemoryStatus { charged, cached, .. } = memory();
    assert_eq!((charged, cached), (Bytes(0), Bytes(0)));
    assert_eq!(conversation(&model, 0).await[0].usage.cached_tokens, 0, "nothing is left of it");
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_a_model_share_it() {
    let pool = PoolConfig::default().with_max_workers(2).with_cold_start_workers(2);
    let (engine, model) = engine("llama", 8192, pool).await;
    let expected = conversation(&model, 0).await;
    for answers in join_all((0..8).map(|_| conversation(&model, 0))).await {
        assert_eq!(texts(&answers), texts(&expected));
        assert!(
            cached(&answers).iter().all(|found| *found >= BLOCK || answers[0].usage.prompt_tokens <= BLOCK)
        );
    }
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_has_keys_of_its_own() {
    let adapter = || Source::directory(common::root().join("tests/fixtures/adapters/llama/plain"));
    let said = "The cat sleeps on the old wooden table in the kitchen, and it rains all day long. ".repeat(4);
    let mut answers = Vec::new();
    for tokens in [0, 8192] {
        let limits = GenerationLimits::default().with_prefix_cache_tokens(tokens);
        let source = SourceSpec::from(Source::directory(family("llama"))).with_generation(limits);
        let source = source.with_adapter("plain", adapter());
        let engine = Engine::builder().pool_config(one_worker()).text_to_text("llama", source);
        let engine = engine.start().await.unwrap();
        let model = engine.text_to_text("llama").unwrap();
        let mut texts = Vec::new();
        for name in [None, Some("plain"), None, Some("plain")] {
            let request = GenerateText::from(said.as_str()).with_max_tokens(12);
            let answer = model.generate(request.with_adapter(name.map(str::to_owned))).await.unwrap();
            texts.push((answer.text, answer.usage.cached_tokens > 0));
        }
        assert_eq!([texts[0].1, texts[1].1], [false; 2], "the first of each reads all");
        assert_eq!([texts[2].1, texts[3].1], [tokens > 0; 2]);
        answers.push(texts.into_iter().map(|(text, _)| text).collect::<Vec<_>>());
        assert!(engine.shutdown().await.is_clean());
    }
    assert_eq!(answers[0], answers[1]);
    assert_ne!(answers[0][0], answers[0][1]);
}
