//! Settings of a request for text through the actors: log probabilities, penalties, biases, ends and the model's own
//! sampling, alone and in company.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use candle_actors::{
    CallOptions, Completion, FinishReason, GenerateText, LoadOptions, ModelHandle, Prompt, Sampling, Source,
    StandaloneModel, TextChunk, TextGenerationModel, TextToText, TokenLogprobs,
};
use common::text::{counted, expected, family, load, one_worker};
use tempfile::TempDir;

async fn read(handle: &ModelHandle<TextToText>, request: GenerateText) -> (Vec<TextChunk>, Completion) {
    let mut stream = handle.stream(request, CallOptions::default()).await.unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.next().await {
        chunks.push(chunk.unwrap());
    }
    (chunks, stream.output().await.unwrap())
}

/// Everything that changes the choice of tokens, at once.
fn with_everything(seed: u64) -> GenerateText {
    let sampling = Sampling::default()
        .with_temperature(1.2)
        .with_top_k(60)
        .with_repetition_penalty(1.1)
        .with_frequency_penalty(0.4)
        .with_presence_penalty(-0.3)
        .with_logit_bias([(10, 2.0), (70, -1.0), (80, 1.5)].into())
        .with_seed(seed);
    let request = GenerateText::from("The cat").with_sampling(sampling).with_max_tokens(40);
    request.with_min_tokens(20).with_logprobs(3).with_stop_tokens(vec![5, 6, 7])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_gives_the_same_text_and_log_probabilities_alone_and_in_company() {
    let (system, handle, model) = counted("llama", one_worker()).await;
    let alone: Vec<Completion> =
        (0..8).map(|seed| model.generate(&[with_everything(seed)]).unwrap().remove(0)).collect();
    let reads = (0..8).map(|seed| read(&handle, with_everything(seed)));
    for ((chunks, together), alone) in futures_util::future::join_all(reads).await.into_iter().zip(&alone) {
        assert_eq!(&together, alone);
        let text: String = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
        let told: Vec<TokenLogprobs> = chunks.into_iter().flat_map(|chunk| chunk.logprobs).collect();
        assert_eq!((text, told), (together.text, together.logprobs));
        assert!(together.usage.completion_tokens >= 20);
    }
    assert!((1..8).any(|index| alone[index].text != alone[0].text));
    assert!(system.shutdown().await.is_clean());
}

/// Natural logarithms of the softmax.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    logits.iter().map(|logit| f64::from(logit - largest) - sum.ln()).collect()
}

#[test]
fn log_probabilities_are_those_of_the_model_at_each_place() {
    for name in ["llama", "gemma3", "gguf_qwen3"] {
        let model = load(name);
        let case = &expected(name, &model)[0];
        let request = GenerateText::from(case.prompt.as_str()).with_max_tokens(16).with_logprobs(5);
        let sampling = Sampling::default().with_temperature(1.5).with_seed(3).with_presence_penalty(1.0);
        let completion = model.generate(&[request.with_sampling(sampling)]).unwrap().remove(0);
        let mut tokens = model.tokenize(&Prompt::Raw(case.prompt.clone())).unwrap();
        let prompt = tokens.len();
        tokens.extend(completion.logprobs.iter().map(|token| token.chosen.token));
        assert_eq!(completion.logprobs.len(), completion.usage.completion_tokens);
        let logits = model.logits(&tokens).unwrap();
        let mut largest = 0f64;
        for (found, logits) in completion.logprobs.iter().zip(&logits[prompt - 1..]) {
            let own = log_softmax(logits);
            for token in found.top.iter().chain([&found.chosen]) {
                largest = largest.max((own[token.token as usize] - f64::from(token.logprob)).abs());
            }
            let most = own.iter().copied().fold(f64::MIN, f64::max);
            assert!((f64::from(found.top[0].logprob) - most).abs() < 1e-4, "{name}");
            assert!(
                found.top.is_sorted_by(|left, right| left.logprob >= right.logprob) && found.top.len() == 5
            );
        }
        println!("{name}: log probabilities, largest difference {largest:.1e}");
        assert!(largest < 1e-4, "{name}: {largest}");
    }
}

#[test]
fn the_bytes_of_all_tokens_are_the_text() {
    // Others leave out the letters beside bytes that are none.
    for name in ["llama", "qwen3", "gguf_qwen3"] {
        let model = load(name);
        let sampling = Sampling::default().with_temperature(3.0).with_seed(1);
        let request =
            GenerateText::from("The cat").with_max_tokens(60).with_sampling(sampling).with_logprobs(0);
        let completion = model.generate(&[request]).unwrap().remove(0);
        let with_text = |token: &&TokenLogprobs| !model.decode(&[token.chosen.token]).unwrap().is_empty();
        let own = |token: &TokenLogprobs| token.chosen.bytes.clone();
        let bytes: Vec<u8> = completion.logprobs.iter().filter(with_text).flat_map(own).collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert_eq!(text, completion.text, "{name}");
    }
}

#[test]
fn biases_and_penalties_change_the_choice_and_stop_tokens_end_it() {
    let model = load("llama");
    let with = |sampling: Sampling| GenerateText::from("The cat").with_max_tokens(12).with_sampling(sampling);
    let tokens = |request: GenerateText| -> (Vec<u32>, Completion) {
        let completion = model.generate(&[request.with_logprobs(0)]).unwrap().remove(0);
        (completion.logprobs.iter().map(|token| token.chosen.token).collect(), completion)
    };
    let (plain, _) = tokens(with(Sampling::default()));
    let (only, _) = tokens(with(Sampling::default().with_logit_bias([(70, 100.0)].into())));
    assert_eq!(only, [70; 12]);
    let (without, _) = tokens(with(Sampling::default().with_logit_bias([(plain[0], -100.0)].into())));
    assert!(!without.contains(&plain[0]) && without[0] != plain[0]);
    // So much is between no two logits of the model, so that each token is there once.
    let apart = Sampling::default().with_presence_penalty(2.0).with_frequency_penalty(2.0);
    let (penalized, _) = tokens(with(apart.clone().with_logit_bias([(70, 100.0)].into())));
    assert_eq!(penalized, [70; 12], "a bias of 100 is more than 12 penalties of 2");
    let repeats =
        |tokens: &[u32]| tokens.len() - tokens.iter().collect::<std::collections::HashSet<_>>().len();
    let (different, _) = tokens(with(apart));
    assert!(repeats(&different) < repeats(&plain) || repeats(&plain) == 0, "{plain:?} {different:?}");
    let stop = with(Sampling::default()).with_stop_tokens(vec![plain[4]]);
    let first = plain.iter().position(|token| *token == plain[4]).unwrap();
    let (cut, completion) = tokens(stop.clone());
    assert_eq!((cut.as_slice(), completion.finish_reason), (&plain[..=first], FinishReason::Stop));
    assert_eq!(completion.text, model.decode(&plain[..first]).unwrap());
    let (longer, _) = tokens(stop.with_min_tokens(12));
    assert!(longer.len() == 12 && !longer.contains(&plain[4]));
}

#[test]
fn the_sampling_of_the_files_is_taken_where_a_request_asks_for_it() {
    let folder = TempDir::new().unwrap();
    for entry in std::fs::read_dir(family("llama")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let written = r#"{"do_sample": true, "temperature": 0.9, "top_k": 7, "top_p": 0.95, "min_p": 0.01}"#;
    std::fs::write(folder.path().join("generation_config.json"), written).unwrap();
    let model = TextGenerationModel::load(Source::directory(folder.path())).unwrap();
    let text = |sampling: Sampling| {
        let request = GenerateText::from("The cat").with_max_tokens(30).with_sampling(sampling.with_seed(4));
        model.generate(&[request]).unwrap().remove(0).text
    };
    let own = Sampling::default().with_temperature(0.9).with_top_k(7).with_top_p(0.95).with_min_p(0.01);
    assert_eq!(text(Sampling::of_model()), text(own));
    let greedy = text(Sampling::default());
    assert_ne!(text(Sampling::of_model()), greedy);
    assert_eq!(text(Sampling::of_model().with_temperature(0.0)), greedy);
}

/// A file that samples by a setting that is not read is told of where a request asks for its sampling, and only there.
#[test]
fn a_sampling_of_the_files_that_is_not_read_is_refused_where_it_is_asked_for() {
    let folder = TempDir::new().unwrap();
    for entry in std::fs::read_dir(family("llama")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let written = r#"{"do_sample": true, "temperature": 0.9, "typical_p": 0.2}"#;
    std::fs::write(folder.path().join("generation_config.json"), written).unwrap();
    let source = Source::directory(folder.path());
    let ask = |model: &TextGenerationModel, sampling: Sampling| {
        let request = GenerateText::from("The cat").with_max_tokens(3).with_sampling(sampling);
        model.generate(&[request]).map(drop)
    };
    let model = TextGenerationModel::load(source.clone()).unwrap();
    let refused = ask(&model, Sampling::of_model()).unwrap_err().to_string();
    assert!(refused.contains("typical_p"), "{refused}");
    ask(&model, Sampling::of_model().with_temperature(0.0)).unwrap();
    ask(&model, Sampling::default()).unwrap();
    let allowed = LoadOptions::default().with_allow_unread(true);
    let model = TextGenerationModel::load_with(source, allowed).unwrap();
    ask(&model, Sampling::of_model()).unwrap();
}
