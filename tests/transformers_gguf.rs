//! The gate of GGUF files that candle-transformers computes: each architecture has a fixture, and is let in if it writes what
//! its reference writes, in four ways. Such a model runs in a process of its own, and nowhere else. What a person or an
//! operator can do to a text is tried on each.
//!
//! Children are this executable, so its `main` begins as an application's does, and there is no test harness.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg_attr(not(target_os = "linux"), allow(unused, reason = "children are found in /proc"))]

mod common;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use candle_actors::isolation::{Isolation, ProcessOptions, run_child_if_asked};
use candle_actors::{
    Completion, Engine, Error, GenerateText, LoadOptions, Prompt, ReplyStream, Source, SourceSpec,
    StandaloneModel, TextGenerationModel, TextGenerator, TextToText,
};
use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use common::folders::families_of;
use common::gguf::rewritten;
use common::root;
use common::text::one_worker;
use serde::Deserialize;
use tempfile::TempDir;

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() {
    run_child_if_asked();
    block_on(every_architecture_writes_the_text_of_its_reference());
    block_on(only_a_process_of_its_own_runs_such_a_model());
    block_on(what_the_library_would_pass_over_is_refused_by_its_name());
    block_on(a_text_is_dropped_crashed_and_unloaded());
    println!("test result: ok");
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(300), test).await.expect("it ends") });
}

/// Prompt and the 64 tokens that the reference writes after it.
#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
    /// The first text, its answer and more, and what follows that.
    continued: Case,
}

fn folder(name: &str) -> PathBuf {
    root().join("tests/fixtures/transformers_gguf").join(name)
}

/// Prompts of a model as texts, each with the text that is expected, and the continued one.
fn expected(name: &str) -> (Vec<(String, String)>, (String, String)) {
    let file = std::fs::read(folder(name).join("expected.json")).unwrap();
    let Expected { cases, continued } = serde_json::from_slice(&file).unwrap();
    // The fixture of its safetensors has the same tokenizer.
    let twin = root().join("tests/fixtures/transformers").join(name);
    let twin = TextGenerationModel::load(Source::directory(twin)).unwrap();
    let text = |case: &Case| {
        let prompt = twin.decode(&case.prompt).unwrap();
        assert_eq!(twin.tokenize(&Prompt::Raw(prompt.clone())).unwrap(), case.prompt, "{name}");
        (prompt, twin.decode(&case.greedy).unwrap())
    };
    (cases.iter().map(text).collect(), text(&continued))
}

async fn engine(name: &str, isolation: impl Into<Isolation>) -> (Engine, TextGenerator) {
    let spec = SourceSpec::from(Source::directory(folder(name))).with_isolation(isolation);
    let engine = Engine::builder().pool_config(one_worker()).text_to_text(name, spec).start().await.unwrap();
    let model = engine.text_to_text(name).unwrap();
    (engine, model)
}

fn request(prompt: &str, tokens: usize) -> GenerateText {
    GenerateText::from(prompt).with_max_tokens(tokens)
}

/// Chunks of a stream together, and its output.
async fn read(mut stream: ReplyStream<TextToText>) -> (String, Completion) {
    let mut text = String::new();
    while let Some(piece) = stream.next().await {
        text.push_str(&piece.unwrap().text);
    }
    (text, stream.output().await.unwrap())
}

async fn every_architecture_writes_the_text_of_its_reference() {
    for name in families_of("transformers_gguf") {
        let (cases, continued) = expected(&name);
        assert!(cases.len() >= 4, "{name}");
        let (engine, model) = engine(&name, ProcessOptions::default()).await;
        let check = |way: &str, (prompt, expected): &(String, String), found: &str| {
            assert_eq!(found, expected, "{name} {way}, after {prompt:?}");
        };
        for (way, asked) in [("alone", &cases[..]), ("continued", std::slice::from_ref(&continued))] {
            for case in asked {
                let completion = model.generate(request(&case.0, 64)).await.unwrap();
                check(way, case, &completion.text);
                assert_eq!(completion.usage.completion_tokens, 64, "{name}");
            }
        }
        for case in &cases {
            // A text that leaves in the middle, and another one.
            let mut stream = model.stream(request("The rain in the", 64)).await.unwrap();
            stream.next().await;
            drop(stream);
            model.generate(request("A train", 8)).await.unwrap();
            check("again", case, &model.generate(request(&case.0, 64)).await.unwrap().text);
        }
        for pair in cases.windows(2) {
            let mut streams = Vec::new();
            for (prompt, _) in pair {
                streams.push(model.stream(request(prompt, 64)).await.unwrap());
            }
            for (case, stream) in pair.iter().zip(streams) {
                let (text, completion) = read(stream).await;
                check("interleaved", case, &completion.text);
                assert_eq!(text, completion.text, "{name}: the pieces are the whole");
            }
        }
        // Several answers to one prompt, which begin together.
        let (prompt, _) = &cases[0];
        let several = model.generate(request(prompt, 64).with_answers(3)).await.unwrap();
        assert_eq!(several.others.len(), 2, "{name}");
        several.answers().for_each(|answer| check("with others", &cases[0], &answer.text));
        check("again", &cases[1], &model.generate(request(&cases[1].0, 64)).await.unwrap().text);
        println!("{name}: {} texts in four ways", cases.len());
        assert!(engine.shutdown().await.is_clean());
    }
}

async fn only_a_process_of_its_own_runs_such_a_model() {
    for name in families_of("transformers_gguf") {
        let refused = |error: &Error| {
            let message = error.to_string();
            assert!(message.contains("isolation") && message.contains("with_isolation"), "{name}: {message}");
        };
        let alone = TextGenerationModel::load(Source::directory(folder(&name))).err().unwrap();
        assert!(matches!(&alone, Error::InvalidSetting { setting, .. } if setting == "isolation"), "{alone}");
        refused(&alone);
        let (engine, model) = engine(&name, Isolation::Thread).await;
        refused(&model.generate(request("The rain", 4)).await.unwrap_err());
        assert!(engine.shutdown().await.is_clean());
        let exact = LoadOptions::default().with_exact_products(true);
        let exact = TextGenerationModel::load_with(Source::directory(folder(&name)), exact).err().unwrap();
        assert!(exact.to_string().contains("exact_products"), "{exact}");
    }
    let unknown = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(folder("glm4").join("tiny-glm4.gguf")).unwrap();
    let place = bytes.windows(4).position(|bytes| bytes == b"glm4").unwrap();
    let renamed = [&bytes[..place], b"glm9", &bytes[place + 4..]].concat();
    std::fs::write(unknown.path().join("model.gguf"), renamed).unwrap();
    let error = TextGenerationModel::load(Source::directory(unknown.path())).err().unwrap();
    let Error::UnsupportedArchitecture { found, supported, .. } = &error else { panic!("{error}") };
    assert_eq!(found, "glm9");
    for name in ["llama", "glm4", "lfm2"] {
        assert!(supported.iter().any(|supported| *supported == name), "{error}");
    }
}

/// Writes a GGUF file with other tensors and metadata.
fn changed(
    name: &str,
    change: impl FnOnce(&mut HashMap<String, QTensor>, &mut HashMap<String, Value>),
) -> TempDir {
    let own = tempfile::tempdir().unwrap();
    rewritten(&folder(name).join(format!("tiny-{name}.gguf")), &own.path().join("model.gguf"), change);
    own
}

/// The library neither checks shapes nor looks at what it does not need, and goes without biases that it cannot read.
async fn what_the_library_would_pass_over_is_refused_by_its_name() {
    let numbers = |sides: (usize, usize)| {
        let numbers = Tensor::ones(sides, DType::F32, &Device::Cpu).unwrap();
        QTensor::quantize(&numbers, GgmlDType::F32).unwrap()
    };
    let nan = || {
        let numbers = Tensor::full(f32::NAN, 64, &Device::Cpu).unwrap();
        QTensor::quantize(&numbers, GgmlDType::F32).unwrap()
    };
    let q = "blk.0.attn_q.weight";
    let cases = [
        (
            "glm4",
            changed("glm4", |tensors, _| {
                drop(tensors.insert("blk.0.surprising".to_owned(), numbers((2, 32))))
            }),
            "blk.0.surprising",
        ),
        ("glm4", changed("glm4", |tensors, _| drop(tensors.remove(q))), q),
        ("glm4", changed("glm4", |tensors, _| drop(tensors.insert(q.to_owned(), numbers((32, 32))))), q),
        (
            "glm4",
            changed("glm4", |tensors, _| drop(tensors.insert("blk.1.attn_q.bias".to_owned(), nan()))),
            "blk.1.attn_q.bias",
        ),
        (
            "glm4",
            changed("glm4", |_, metadata| {
                metadata.insert("glm4.rope.dimension_count".to_owned(), Value::U32(16));
            }),
            "rope.dimension_count",
        ),
        (
            "glm4",
            changed("glm4", |_, metadata| {
                metadata.insert("glm4.rope.scaling.factor".to_owned(), Value::F32(4.0));
            }),
            "rope.scaling.factor",
        ),
        (
            "lfm2",
            changed("lfm2", |tensors, _| drop(tensors.remove("blk.0.shortconv.conv.weight"))),
            "blk.0.shortconv.conv.weight",
        ),
        (
            "lfm2",
            changed("lfm2", |_, metadata| {
                metadata.insert("lfm2.shortconv.l_cache".to_owned(), Value::U32(u32::MAX));
            }),
            "shortconv.conv.weight",
        ),
    ];
    for (name, folder, told) in cases {
        let spec =
            SourceSpec::from(Source::directory(folder.path())).with_isolation(ProcessOptions::default());
        let engine =
            Engine::builder().pool_config(one_worker()).text_to_text(name, spec).start().await.unwrap();
        let error = engine.text_to_text(name).unwrap().generate(request("The rain", 4)).await.unwrap_err();
        assert!(error.to_string().contains(told), "{name}, {told}: {error}");
        assert!(engine.shutdown().await.is_clean());
    }
    // A text of one token, after another text.
    let (engine, model) = engine("lfm2", ProcessOptions::default()).await;
    model.generate(request("The rain", 4)).await.unwrap();
    let error = model.generate(request("The", 4)).await.unwrap_err();
    assert!(error.to_string().contains("more than one token"), "{error}");
    model.generate(request("The rain", 4)).await.unwrap();
    assert!(engine.shutdown().await.is_clean());
}

/// The children of this process.
fn children() -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<_>>()).collect()
}

async fn a_text_is_dropped_crashed_and_unloaded() {
    for name in families_of("transformers_gguf") {
        let (engine, model) = engine(&name, ProcessOptions::default()).await;
        let calm = model.generate(request("The rain", 64)).await.unwrap();
        // Cancelled in the middle: the next text is answered by the same process, long before that one would have ended.
        let before = children();
        let mut stream = model.stream(request("The rain", 400)).await.unwrap();
        stream.next().await.unwrap().unwrap();
        drop(stream);
        assert_eq!(model.generate(request("The rain", 64)).await.unwrap(), calm, "{name}");
        assert_eq!((children(), before.len()), (before, 1), "{name}");
        // Killed in the middle: whoever has read of it is told, and the next one finds another process.
        let killed = children();
        let mut stream = model.stream(request("The rain", 400)).await.unwrap();
        stream.next().await.unwrap().unwrap();
        assert!(Command::new("kill").args(["-KILL", &killed[0].to_string()]).status().unwrap().success());
        let mut end = Ok(());
        while let Some(piece) = stream.next().await {
            end = piece.map(drop);
        }
        let told = end.and(stream.output().await.map(drop)).unwrap_err();
        assert!(told.to_string().contains("process"), "{name}: {told}");
        assert_eq!(model.generate(request("The rain", 64)).await.unwrap(), calm, "{name}");
        assert_ne!(children(), killed, "{name}");
        // Unloaded in the middle: the text is written to its end.
        let mut stream = model.stream(request("The rain", 64)).await.unwrap();
        let begun = stream.next().await.unwrap().unwrap();
        let ((rest, completion), unloaded) =
            tokio::join!(read(stream), model.model().unload(Duration::from_secs(60)));
        unloaded.unwrap();
        assert_eq!((begun.text + &rest, &completion), (calm.text.clone(), &calm), "{name}");
        assert_eq!(children(), Vec::<i32>::new(), "{name}");
        assert_eq!(model.generate(request("The rain", 64)).await.unwrap(), calm, "{name}");
        assert!(engine.shutdown().await.is_clean());
    }
}
