//! Text to text through the actors: texts agree with the references, alone and in a batch, and every stop
//! condition ends them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::time::Duration;

use candle_actors::{
    CallOptions, Completion, Engine, Error, FinishReason, GenerateText, GenerationLimits, LoadOptions,
    Message, ModelHandle, PoolConfig, Prompt, ReplyStream, Sampling, Source, SourceSpec, StandaloneModel,
    TextGenerationModel, TextGenerator, TextToText, model_actors,
};
use candle_core::{DType, Device, Tensor};
use common::folders::families_of;
use common::text::{counted, expected, family, load, one_worker};
use common::{steps_after_drop, until_nothing_runs};
use tempfile::TempDir;

/// Families that have to generate several texts in one batch.
const TOGETHER: [&str; 2] = ["llama", "qwen3"];

async fn engine(name: &str, pool: PoolConfig) -> (Engine, TextGenerator) {
    let source = SourceSpec::from(Source::directory(family(name))).with_exact_products(true);
    let engine = Engine::builder().pool_config(pool).text_to_text(name, source).start().await.unwrap();
    let model = engine.text_to_text(name).unwrap();
    (engine, model)
}

fn request(prompt: &str, max_tokens: usize) -> GenerateText {
    GenerateText::from(prompt).with_max_tokens(max_tokens)
}

/// Chunks and output of a stream.
async fn read(mut stream: ReplyStream<TextToText>) -> (String, Completion) {
    let mut text = String::new();
    while let Some(piece) = stream.next().await {
        let piece = piece.unwrap();
        assert!(!piece.text.is_empty());
        text.push_str(&piece.text);
    }
    (text, stream.output().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_generates_the_text_of_its_reference_alone_and_in_a_batch() {
    for name in families_of("text_to_text") {
        let cases = expected(&name, &load(&name));
        let (engine, model) = engine(&name, one_worker()).await;
        for case in &cases {
            let Completion { text, finish_reason, usage, .. } =
                model.generate(request(&case.prompt, 64)).await.unwrap();
            assert_eq!(text, case.text, "{name}: {:?}", case.prompt);
            assert_eq!(finish_reason, FinishReason::Length);
            assert_eq!((usage.prompt_tokens, usage.completion_tokens), (case.prompt_tokens, 64));
        }
        // Each joins when the one before has begun to write; one leaves early.
        let mut streams = Vec::new();
        let mut leaver = None;
        for (index, case) in cases.iter().cycle().take(8).enumerate() {
            let mut stream = model.stream(request(&case.prompt, 64)).await.unwrap();
            let mut begun = String::new();
            for _ in 0..=index % 3 {
                begun.extend(stream.next().await.transpose().unwrap().map(|chunk| chunk.text));
            }
            streams.push((case.clone(), begun, stream));
            match index {
                2 => leaver = Some(model.stream(request("The", 64)).await.unwrap()),
                5 => drop(leaver.take()),
                _ => {}
            }
        }
        for (case, begun, stream) in streams {
            let (rest, completion) = read(stream).await;
            assert_eq!(completion.text, case.text, "{name}, in company: {:?}", case.prompt);
            assert_eq!(begun + &rest, completion.text, "the pieces are the whole");
        }
        println!("{name}: {} prompts, 64 tokens each, alone and as 8 of 9 together: the same", cases.len());
        assert!(engine.shutdown().await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_generated_in_one_batch() {
    for name in TOGETHER {
        let (system, handle, model) = counted(name, one_worker()).await;
        let before = model.steps();
        let prompts: Vec<String> = (0..8).map(|index| format!("The cat {index}")).collect();
        let mut streams = Vec::new();
        for prompt in &prompts {
            streams.push(handle.stream(request(prompt, 64), CallOptions::default()).await.unwrap());
        }
        let mut together = Vec::new();
        for stream in streams {
            together.push(read(stream).await.1);
        }
        let steps = model.steps() - before;
        let tokens: usize = together.iter().map(|completion| completion.usage.completion_tokens).sum();
        println!("{name}: 8 texts of {tokens} tokens in all took {steps} steps");
        assert!(tokens > 8 * 16, "{name}: {tokens} tokens");
        assert!((steps as usize) < tokens / 2, "{name}: {steps} steps for {tokens} tokens");
        for (completion, prompt) in together.iter().zip(&prompts) {
            assert_eq!(completion, &model.generate(&[request(prompt, 64)]).unwrap()[0], "{name}");
        }
        assert!(system.shutdown().await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_stops_the_model_within_a_step() {
    for name in TOGETHER {
        let pool = one_worker().with_stream_buffer(4096);
        let (system, handle, model) = counted(name, pool).await;
        let request = request("The cat", 500);
        model.generate(std::slice::from_ref(&request)).unwrap();
        let whole = model.steps();
        for pieces in 1..=5 {
            let more = steps_after_drop(&handle, request.clone(), pieces, || model.steps()).await;
            println!("{name}: {more} steps after the drop");
            // One may have been about to begin.
            assert!(more <= 1, "{name}: {more}");
        }
        assert!(model.steps() - whole < 5 * whole, "{name} wrote to the end each time: {whole} steps");
        assert!(system.shutdown().await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_or_does_not_read_delays_no_other() {
    let pool = one_worker().with_stream_buffer(2);
    let (system, handle, model) = counted("llama", pool).await;
    let unread = handle.stream(request("The rain", 64), CallOptions::default()).await.unwrap();
    for prompt in ["The cat", "The train"] {
        let (_, completion) =
            read(handle.stream(request(prompt, 64), CallOptions::default()).await.unwrap()).await;
        assert_eq!(completion, model.generate(&[request(prompt, 64)]).unwrap()[0]);
    }
    let (text, completion) = read(unread).await;
    assert_eq!(completion, model.generate(&[request("The rain", 64)]).unwrap()[0]);
    assert_eq!(text, completion.text, "it lost nothing");
    assert!(system.shutdown().await.is_clean());
}

fn sampled(seed: u64) -> GenerateText {
    let sampling = Sampling::default()
        .with_temperature(1.0)
        .with_top_k(50)
        .with_top_p(0.95)
        .with_repetition_penalty(1.1)
        .with_seed(seed);
    request("The cat sleeps", 48).with_sampling(sampling)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_gives_the_same_text_whatever_runs_beside_it() {
    let (engine, model) = engine("qwen3", one_worker()).await;
    let alone = model.generate(sampled(1)).await.unwrap();
    assert_ne!(alone.text, model.generate(sampled(2)).await.unwrap().text);
    let (same, other, again, greedy) = tokio::join!(
        model.generate(sampled(1)),
        model.generate(sampled(3)),
        model.generate(sampled(1)),
        model.generate(request("How do I", 30)),
    );
    assert_eq!((same.unwrap(), again.unwrap()), (alone.clone(), alone));
    assert!(other.is_ok() && greedy.is_ok());
    let unseeded = sampled(0).with_sampling(sampled(0).sampling.with_seed(None));
    let (left, right) = (model.generate(unseeded.clone()).await, model.generate(unseeded).await);
    assert_ne!(left.unwrap().text, right.unwrap().text, "without a seed no two are the same");
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_ends_the_text_before_it() {
    let model = load("llama");
    let case = expected("llama", &model).remove(2);
    let (engine, generator) = engine("llama", one_worker()).await;
    // Strings of several pieces, cut out of the reference's own text.
    let letters: Vec<(usize, char)> = case.text.char_indices().collect();
    for (from, to) in [(3, 9), (10, 24), (20, 21), (30, 47)] {
        let stop = case.text[letters[from].0..letters[to].0].to_owned();
        let asked = request(&case.prompt, 64).with_stop(vec!["never there".to_owned(), stop.clone()]);
        let (text, completion) = read(generator.stream(asked).await.unwrap()).await;
        let expected = &case.text[..case.text.find(&stop).unwrap()];
        assert_eq!((text.as_str(), completion.text.as_str()), (expected, expected));
        assert_eq!(completion.finish_reason, FinishReason::Stop);
        assert!(completion.usage.completion_tokens < 64);
    }
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn generation_ends_at_the_context_length() {
    let (engine, model) = engine("llama", one_worker()).await;
    let loaded = load("llama");
    assert_eq!(loaded.max_tokens(), 512);
    let words = |count: usize| "The ".repeat(count);
    let tokens = |text: &str| loaded.tokenize(&Prompt::Raw(text.to_owned())).unwrap().len();
    let long = words(300);
    assert!(tokens(&long) > 512, "{}", tokens(&long));
    let error = model.generate(request(&long, 1)).await.unwrap_err();
    let words_of_it = error.to_string();
    assert!(matches!(error, Error::PromptTooLong { limit: 512, .. }), "{error}");
    assert!(words_of_it.contains(&tokens(&long).to_string()) && words_of_it.contains("512"), "{words_of_it}");

    let almost = words((1..300).rev().find(|count| tokens(&words(*count)) < 510).unwrap());
    let room = 512 - tokens(&almost);
    for asked in [1 << 20, room + 1, room, 1] {
        let completion = model.generate(request(&almost, asked)).await.unwrap();
        assert_eq!(completion.finish_reason, FinishReason::Length);
        assert_eq!(completion.usage.completion_tokens, room.min(asked));
        assert_eq!(completion.usage.prompt_tokens, tokens(&almost));
    }
    assert!(engine.shutdown().await.is_clean());
}

fn limited(name: &str, writing: GenerationLimits) -> Result<TextGenerationModel, Error> {
    let options = LoadOptions::default().with_generation(writing);
    TextGenerationModel::load_with(Source::directory(family(name)), options)
}

#[test]
fn kv_cache_tokens_limits_prompt_and_answer() {
    let limits = GenerationLimits::default().with_kv_cache_tokens(200).with_max_sequences(4);
    let (small, usual) = (limited("llama", limits).unwrap(), load("llama"));
    assert_eq!((small.max_tokens(), usual.max_tokens()), (200, 512));
    assert!(small.footprint().per_worker < usual.footprint().per_worker);
    let more = limited("llama", limits.with_max_sequences(32)).unwrap();
    let logits = 2 * 4 * 384 * (32 - 4);
    assert!(more.footprint().per_worker.0 >= small.footprint().per_worker.0 + logits, "logits are counted");

    let long = "The ".repeat(150);
    let tokens = small.tokenize(&Prompt::Raw(long.clone())).unwrap().len();
    let error = small.generate(&[request(&long, 1)]).unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { prompt, limit: 200, .. } if prompt == tokens), "{error}");
    let message = error.to_string();
    assert!(message.contains("200") && message.contains("kv_cache_tokens"), "{message}");
    let completion = small.generate(&[request("The cat", 1000)]).unwrap().remove(0);
    assert_eq!(completion.usage.prompt_tokens + completion.usage.completion_tokens, 200);

    // Two that do not fit together are written one after the other, and are the same.
    let asked = [request("The cat", 130), request("The cat", 130)];
    let steps = |model: &TextGenerationModel| {
        let before = model.steps();
        (model.generate(&asked).unwrap(), model.steps() - before)
    };
    let ((alone, apart), (both, together)) = (steps(&small), steps(&usual));
    println!("{apart} steps apart, {together} together");
    assert_eq!((alone, apart), (both, 2 * together));

    for (limits, setting) in [
        (limits.with_kv_cache_tokens(127), "kv_cache_tokens"),
        (limits.with_kv_cache_tokens(usize::MAX), "kv_cache_tokens"),
        (limits.with_max_sequences(0), "max_sequences"),
    ] {
        let error = limited("llama", limits).err().unwrap();
        assert!(
            matches!(&error, Error::InvalidSetting { setting: found, .. } if found == setting),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_takes_the_limits_of_each_model() {
    let source = || Source::directory(family("llama"));
    let limits = GenerationLimits::default().with_kv_cache_tokens(128);
    let with = |limits| SourceSpec::from(source()).with_generation(limits);
    let builder = Engine::builder().text_to_text("small", with(limits));
    let engine = builder.text_to_text("usual", source()).start().await.unwrap();
    let long = "The ".repeat(120);
    let error = engine.text_to_text("small").unwrap().generate(request(&long, 1)).await.unwrap_err();
    assert!(error.to_string().contains("128"), "{error}");
    assert!(engine.text_to_text("usual").unwrap().generate(request(&long, 1)).await.is_ok());
    let wrong = limits.with_max_sequences(0);
    let error = engine.register::<TextToText>("wrong", with(wrong)).err().unwrap();
    assert!(matches!(&error, Error::InvalidSetting { setting, .. } if setting == "max_sequences"), "{error}");
    assert!(engine.shutdown().await.is_clean());
}

/// Phi-3's rotary embedding changes for all of a text that becomes longer than this.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_outgrows_its_rotary_embedding_is_prefilled_again_in_chunks() {
    let folder = copy_of("phi3");
    let file = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["original_max_position_embeddings"] = 300.into();
    std::fs::write(&file, config.to_string()).unwrap();
    let model = TextGenerationModel::load(Source::directory(folder.path())).unwrap();
    let prompt = "The cat sleeps. ".repeat(20);
    let tokens = model.tokenize(&Prompt::Raw(prompt.clone())).unwrap();
    assert!((130..250).contains(&tokens.len()), "{}", tokens.len());
    let before = model.steps();
    let whole = model.generate(&[request(&prompt, 200)]).unwrap().remove(0);
    let (steps, pieces) = (model.steps() - before, tokens.len().div_ceil(128) as u64);
    // 199 tokens are read one at a time, but for the one with which 301 are read again in three pieces.
    println!("{} tokens of prompt, 200 written, {steps} steps", tokens.len());
    assert_eq!((whole.usage.completion_tokens, steps), (200, pieces + 198 + 3));
    // What is written then is what a prompt of that length is followed by.
    let mut written = tokens.clone();
    while written.len() < 301 {
        let logits = model.logits(&written).unwrap().pop().unwrap();
        let best = (0..logits.len()).max_by(|left, right| logits[*left].total_cmp(&logits[*right]));
        written.push(best.unwrap() as u32);
    }
    let mut long = written.clone();
    for _ in 0..20 {
        let logits = model.logits(&long).unwrap().pop().unwrap();
        let best = (0..logits.len()).max_by(|left, right| logits[*left].total_cmp(&logits[*right]));
        long.push(best.unwrap() as u32);
    }
    let text = model.decode(&long[tokens.len()..]).unwrap();
    let text = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
    assert!(whole.text.trim_start().starts_with(text.trim_start()), "{:?} is not {text:?}", whole.text);
    // Beside others it is the same.
    let together = model.generate(&[request("The rain", 220), request(&prompt, 200)]).unwrap();
    assert_eq!(together[1], whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_token_ends_the_text() {
    let model = load("llama");
    let case = expected("llama", &model).remove(0);
    let folder = copy_of("llama");
    // What the reference writes as its sixth token becomes an end.
    let tokens: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("expected.json")).unwrap()).unwrap();
    let sixth = &tokens["cases"][0]["greedy"][5];
    let settings = serde_json::json!({ "eos_token_id": [383, sixth] });
    std::fs::write(folder.path().join("generation_config.json"), settings.to_string()).unwrap();
    let model = TextGenerationModel::load(Source::directory(folder.path())).unwrap();
    let completion = model.generate(&[request(&case.prompt, 64)]).unwrap().remove(0);
    assert_eq!((completion.finish_reason, completion.usage.completion_tokens), (FinishReason::Stop, 6));
    assert!(case.text.starts_with(&completion.text) && completion.text.len() < case.text.len());
}

/// The settings of `config.json` count where there is no other file, which goes before them.
#[test]
fn generation_defaults_are_those_of_the_models_files() {
    let case = expected("llama", &load("llama")).remove(0);
    let folder = copy_of("llama");
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(folder.path().join(name)).unwrap()).unwrap()
    };
    let write = |name: &str, json: &serde_json::Value| {
        std::fs::write(folder.path().join(name), json.to_string()).unwrap();
    };
    let generate = |sampling: Sampling| {
        let model = TextGenerationModel::load(Source::directory(folder.path())).unwrap();
        let request = request(&case.prompt, 64).with_sampling(sampling);
        model.generate(&[request]).unwrap().remove(0)
    };
    let mut config = read("config.json");
    config["eos_token_id"] = read("expected.json")["cases"][0]["greedy"][5].clone();
    write("config.json", &config);
    std::fs::remove_file(folder.path().join("generation_config.json")).unwrap();
    let ended = generate(Sampling::default());
    assert_eq!((ended.finish_reason, ended.usage.completion_tokens), (FinishReason::Stop, 6));

    for setting in ["no_repeat_ngram_size", "min_length"] {
        let mut changed = config.clone();
        changed[setting] = 3.into();
        write("config.json", &changed);
        let error = TextGenerationModel::load(Source::directory(folder.path())).err().unwrap();
        assert!(matches!(&error, Error::UnreadSetting { setting: named, .. } if named == setting), "{error}");
    }
    write("config.json", &config);

    write("generation_config.json", &serde_json::json!({"eos_token_id": [383]}));
    assert_eq!(generate(Sampling::default()).text, case.text);
    write("generation_config.json", &serde_json::json!({"eos_token_id": [383], "repetition_penalty": 1.5}));
    let penalised = generate(Sampling::default());
    assert_ne!(penalised.text, case.text);
    assert_eq!(penalised, generate(Sampling::default().with_repetition_penalty(1.5)));
    assert_eq!(generate(Sampling::default().with_repetition_penalty(1.0)).text, case.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_rendered_by_the_chat_template() {
    let (engine, model) = engine("llama", one_worker()).await;
    let messages = [Message::system("Be brief."), Message::user("What is rain?")];
    let written = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is rain?<|im_end|>\n\
                   <|im_start|>assistant\n";
    let chat = model.generate(GenerateText::chat(messages).with_max_tokens(20)).await.unwrap();
    assert_eq!(chat, model.generate(request(written, 20)).await.unwrap());
    assert!(engine.shutdown().await.is_clean());

    let folder = copy_of("llama");
    std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
    let model = TextGenerationModel::load(Source::directory(folder.path())).unwrap();
    let error = model.generate(&[GenerateText::chat([Message::user("Hello")])]).unwrap_err();
    assert!(error.to_string().contains("no chat template"), "{error}");
    assert!(model.generate(&[request("Hello", 2)]).is_ok());
    let template = "{% for message in messages %}{{ message.content }}!{% endfor %}";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let model = TextGenerationModel::load(Source::directory(folder.path())).unwrap();
    let tokens = model.tokenize(&Prompt::Messages(vec![Message::user("The cat")])).unwrap();
    assert_eq!(model.decode(&tokens).unwrap(), "The cat!");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_before_the_first_output_is_met() {
    let (system, handle, model) = counted("llama", one_worker()).await;
    let brief = CallOptions::default().with_timeout(Duration::from_nanos(1));
    let error = handle.call(request("The cat", 500), brief).await.unwrap_err();
    assert!(matches!(error, model_actors::Error::Timeout { .. }), "{error}");
    until_nothing_runs(&handle).await;
    assert!(model.steps() <= 1, "{}", model.steps());
    assert!(handle.call(request("The cat", 5), CallOptions::default()).await.is_ok());
    assert!(system.shutdown().await.is_clean());
}

async fn refused(handle: &ModelHandle<TextToText>, request: GenerateText, word: &str) {
    let error = handle.call(request, CallOptions::default()).await.unwrap_err();
    assert!(matches!(error, model_actors::Error::InvalidInput { .. }), "{error}");
    assert!(error.to_string().contains(word), "{word}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_fail_alone() {
    let (system, handle, _) = counted("llama", one_worker()).await;
    let with = |change: fn(&mut GenerateText)| {
        let mut request = request("The cat", 5);
        change(&mut request);
        request
    };
    let good = handle.stream(request("The cat", 64), CallOptions::default()).await.unwrap();
    refused(&handle, request("", 5), "empty").await;
    refused(&handle, GenerateText::chat([]), "empty").await;
    refused(&handle, request("The", 0), "max_tokens").await;
    refused(&handle, with(|request| request.sampling.temperature = Some(f32::NAN)), "temperature").await;
    refused(&handle, with(|request| request.sampling.temperature = Some(-0.1)), "temperature").await;
    refused(&handle, with(|request| request.sampling.top_k = Some(0)), "top_k").await;
    refused(&handle, with(|request| request.sampling.top_p = Some(0.0)), "top_p").await;
    refused(&handle, with(|request| request.sampling.top_p = Some(f32::NAN)), "top_p").await;
    refused(&handle, with(|request| request.sampling.min_p = Some(1.0)), "min_p").await;
    refused(&handle, with(|request| request.sampling.repetition_penalty = Some(0.0)), "penalty").await;
    refused(&handle, with(|request| request.stop = vec![String::new()]), "stop").await;
    refused(&handle, with(|request| request.stop = vec!["x".to_owned(); 17]), "stop").await;
    refused(&handle, with(|request| request.stop = vec!["x".repeat(257)]), "stop").await;
    refused(&handle, with(|request| request.stop_tokens = vec![384]), "stop_tokens").await;
    refused(&handle, with(|request| request.min_tokens = 6), "min_tokens").await;
    refused(&handle, with(|request| request.logprobs = Some(21)), "logprobs").await;
    refused(&handle, with(|request| request.sampling.presence_penalty = 2.5), "presence_penalty").await;
    refused(&handle, with(|request| request.sampling.logit_bias = [(384, 1.0)].into()), "logit_bias").await;
    refused(&handle, request(&"x".repeat((4 << 20) + 1), 5), "bytes").await;
    refused(&handle, request(&"word \u{0} é 🦀 ".repeat(10_000), 5), "512").await;
    let many = vec![Message::user("x"); 1025];
    refused(&handle, GenerateText::chat(many), "messages").await;
    assert_eq!(read(good).await.1.usage.completion_tokens, 64);
    let strange = "\u{0}\u{fffd}\u{202e}<|im_end|><|im_start|>\r\n\u{1f9d1}\u{200d}\u{1f680}";
    assert!(handle.call(request(strange, 8), CallOptions::default()).await.is_ok());
    assert!(system.shutdown().await.is_clean());
}

/// Copy of a family's folder that may be changed.
fn copy_of(name: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in std::fs::read_dir(family(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// The published sizes above 1B take images too: the settings of the text model are one level down, its
/// tensors have a prefix, and the file also has those of the vision tower.
#[test]
fn the_text_half_of_a_vision_model_loads_as_a_text_model() {
    for (family, kind) in [("gemma3", "gemma3"), ("ministral3", "mistral3")] {
        let alone = load(family);
        let tokens = alone.tokenize(&Prompt::Raw("The cat sleeps. ".repeat(10))).unwrap();
        let expected = alone.logits(&tokens).unwrap();
        let folder = copy_of(family);
        let [settings, weights] = ["config.json", "model.safetensors"].map(|file| folder.path().join(file));
        let text: serde_json::Value = serde_json::from_slice(&std::fs::read(&settings).unwrap()).unwrap();
        let mut nested =
            serde_json::json!({ "model_type": kind, "text_config": text, "vision_config": {"width": 8} });
        if kind == "mistral3" {
            nested["vision_feature_layer"] = (-1).into();
            nested["projector_hidden_act"] = "gelu".into();
            nested["spatial_merge_size"] = 2.into();
        }
        std::fs::write(&settings, nested.to_string()).unwrap();
        let tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
        // As published, and as transformers 5 saves it.
        for prefix in ["language_model.model.", "model.language_model."] {
            let with_prefix = |name: &str| match name.strip_prefix("model.") {
                Some(name) => format!("{prefix}{name}"),
                None => format!("language_model.{name}"),
            };
            let renamed = tensors.iter().map(|(name, tensor)| (with_prefix(name), tensor.clone()));
            let mut renamed: HashMap<String, Tensor> = renamed.collect();
            let other = Tensor::ones(8, DType::F32, &Device::Cpu).unwrap();
            renamed.insert("vision_tower.vision_model.post_layernorm.weight".to_owned(), other);
            candle_core::safetensors::save(&renamed, &weights).unwrap();
            let model = TextGenerationModel::load(Source::directory(folder.path())).unwrap();
            assert_eq!(model.logits(&tokens).unwrap(), expected, "{family} {prefix}");
            assert_eq!(model.footprint(), alone.footprint(), "{family} {prefix}");
        }
    }
}

fn broken(file: &str, content: &str) -> Error {
    let folder = copy_of("llama");
    std::fs::write(folder.path().join(file), content).unwrap();
    TextGenerationModel::load(Source::directory(folder.path())).err().expect("it loads")
}

#[test]
fn damaged_files_are_named() {
    let error = broken("config.json", r#"{"model_type": "rwkv"}"#);
    let words = error.to_string();
    assert!(matches!(error, Error::UnsupportedArchitecture { .. }), "{error}");
    assert!(["rwkv", "text to text", "llama", "qwen3"].iter().all(|word| words.contains(word)), "{words}");
    for (file, content) in [
        ("config.json", "{ not json"),
        ("generation_config.json", r#"{"eos_token_id": "x"}"#),
        ("tokenizer_config.json", r#"{"chat_template": 7}"#),
        ("tokenizer_config.json", r#"{"chat_template": "{% for %}"}"#),
        ("chat_template.json", "7"),
        ("chat_template.jinja", "{{ "),
    ] {
        let error = broken(file, content);
        assert!(matches!(error, Error::InvalidConfig { .. }), "{file}: {error}");
        assert!(error.to_string().contains(file), "{file}: {error}");
    }
    let error = broken("tokenizer.json", "{}");
    assert!(matches!(error, Error::InvalidTokenizer { .. }), "{error}");
}

#[test]
fn a_gguf_file_uses_its_own_tokenizer_and_a_directory_the_one_beside_it() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("model.gguf");
    let sound = std::fs::read(family("gguf_qwen2").join("tiny-qwen2-Q4_0.gguf")).unwrap();
    let load = |path: &std::path::Path| TextGenerationModel::load(Source::directory(path));
    std::fs::write(&file, &sound).unwrap();
    let beside = folder.path().join("tokenizer.json");
    std::fs::write(&beside, "nothing of use").unwrap();
    assert!(load(&file).is_ok(), "what lies beside it is not looked at");
    assert!(matches!(load(folder.path()), Err(Error::InvalidTokenizer { .. })));

    let name = b"tokenizer.ggml.model";
    let place = sound.windows(name.len()).position(|window| window == name).unwrap();
    let mut without = sound;
    without[place..place + name.len()].copy_from_slice(b"tokenizer.ggml.other");
    std::fs::write(&file, &without).unwrap();
    std::fs::copy(family("qwen2").join("tokenizer.json"), &beside).unwrap();
    let error = load(&file).err().unwrap();
    assert!(matches!(error, Error::InvalidGguf { .. }), "{error}");
    assert!(error.to_string().contains("load a directory that holds this file"), "{error}");
    assert!(load(folder.path()).is_ok());
}
