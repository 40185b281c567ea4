//! The gate of the families of candle-transformers: each has a fixture that its reference made, and is let in if it writes
//! what the reference writes, in four ways. What a person or an operator can do to a text is tried on one of each kind of
//! state.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(feature = "transformers")]

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_actors::{
    Completion, Engine, Error, Event, GenerateText, LoadOptions, ModelSpec, Prompt, ReplyStream, Source,
    SourceSpec, StandaloneModel, TextGenerationModel, TextGenerator, TextToText, TransformersFamily,
    TransformersModel,
};
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::olmo2;
use common::folders::families_of;
use common::fragile::fragile;
use common::text::{counted, one_worker};
use common::{difference, root, steps_after_drop};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

/// One of each kind of state: a cache beside the model, a clone, a model built anew, the state of a recurrent model.
const KINDS: [&str; 4] = ["granite", "olmo2", "stablelm", "mamba"];

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
    continued: Option<Case>,
}

fn folder(name: &str) -> PathBuf {
    root().join("tests/fixtures/transformers").join(name)
}

fn expected(name: &str) -> Expected {
    serde_json::from_slice(&std::fs::read(folder(name).join("expected.json")).unwrap()).unwrap()
}

fn load(name: &str) -> TextGenerationModel {
    TextGenerationModel::load(Source::directory(folder(name)))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn request(prompt: &str, tokens: usize) -> GenerateText {
    GenerateText::from(prompt).with_max_tokens(tokens)
}

async fn engine(name: &str) -> (Engine, TextGenerator) {
    let source = Source::directory(folder(name));
    let engine =
        Engine::builder().pool_config(one_worker()).text_to_text(name, source).start().await.unwrap();
    let model = engine.text_to_text(name).unwrap();
    (engine, model)
}

/// Chunks of a stream together, and its output.
async fn read(mut stream: ReplyStream<TextToText>) -> (String, Completion) {
    let mut text = String::new();
    while let Some(piece) = stream.next().await {
        text.push_str(&piece.unwrap().text);
    }
    (text, stream.output().await.unwrap())
}

/// A way in which a family is asked.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Alone,
    /// After other texts by the same worker.
    Again,
    /// Two streams at a time.
    Interleaved,
    /// A second turn, which holds the first and its answer.
    Continued,
}

/// Asks all families in one way, and compares their texts with those of the references.
async fn gate(way: Way) {
    for name in families_of("transformers") {
        let model = load(&name);
        let Expected { cases, continued } = expected(&name);
        let asked = if way == Way::Continued { continued.into_iter().collect() } else { cases };
        // Prompts whose text has exactly their tokens, each with the text that is expected.
        let texts: Vec<(String, String)> = asked
            .iter()
            .map(|case| (model.decode(&case.prompt).unwrap(), case))
            .filter(|(prompt, case)| model.tokenize(&Prompt::Raw(prompt.clone())).unwrap() == case.prompt)
            .map(|(prompt, case)| (prompt, model.decode(&case.greedy).unwrap()))
            .collect();
        let least = if way == Way::Continued { 1 } else { 4 };
        assert!(texts.len() >= least, "{name}: {} of {} prompts", texts.len(), asked.len());
        let (engine, generator) = engine(&name).await;
        let check = |prompt: &str, expected: &str, found: &str| {
            assert_eq!(found, expected, "{name}, after {prompt:?}");
        };
        match way {
            Way::Interleaved => {
                for pair in texts.windows(2) {
                    let mut streams = Vec::new();
                    for (prompt, _) in pair {
                        streams.push(generator.stream(request(prompt, 64)).await.unwrap());
                    }
                    for ((prompt, expected), stream) in pair.iter().zip(streams) {
                        let (text, completion) = read(stream).await;
                        check(prompt, expected, &completion.text);
                        assert_eq!(text, completion.text, "{name}: the pieces are the whole");
                    }
                }
            }
            Way::Alone | Way::Again | Way::Continued => {
                for (prompt, expected) in &texts {
                    if way == Way::Again {
                        // It leaves in the middle of its text.
                        let mut stream = generator.stream(request("The rain in the", 64)).await.unwrap();
                        stream.next().await;
                        drop(stream);
                        generator.generate(request("A train", 8)).await.unwrap();
                    }
                    let completion = generator.generate(request(prompt, 64)).await.unwrap();
                    check(prompt, expected, &completion.text);
                    assert_eq!(completion.usage.completion_tokens, 64, "{name}");
                }
            }
        }
        assert!(engine.shutdown().await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_writes_the_text_of_its_reference() {
    gate(Way::Alone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_text_is_left_for_the_next_one() {
    gate(Way::Again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_streams_that_take_turns_do_not_mix() {
    gate(Way::Interleaved).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_turn_goes_on_from_the_first() {
    gate(Way::Continued).await;
}

/// Logits after each prompt, which greedy choices alone would not compare. Falcon differs the most, whose activation the library
/// approximates.
#[test]
fn every_familys_logits_are_those_of_its_reference() {
    for name in families_of("transformers") {
        let model = load(&name);
        let file = candle_core::safetensors::load(folder(&name).join("expected.safetensors"), &Device::Cpu);
        let tensors: HashMap<String, Tensor> = file.unwrap();
        let mut most: f32 = 0.0;
        for (index, case) in expected(&name).cases.iter().enumerate() {
            let expected: Vec<f32> = tensors[&format!("prompt.{index}")].to_vec1().unwrap();
            let found = model.logits(&case.prompt).unwrap().pop().unwrap();
            most = most.max(difference(&found, &expected));
        }
        println!("{name}: largest difference of logits {most:.1e}");
        assert!(most < 3e-3, "{name}: {most}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_stops_the_model_within_a_token() {
    for name in KINDS {
        let (system, handle, model) = counted(&format!("transformers/{name}"), one_worker()).await;
        for pieces in 1..=3 {
            let more = steps_after_drop(&handle, request("The cat", 400), pieces, || model.steps()).await;
            // One may have been about to begin.
            assert!(more <= 1, "{name}: {more} steps after the drop");
        }
        assert!(system.shutdown().await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_the_middle_of_a_text_changes_none() {
    let engine = Engine::builder().pool_config(one_worker()).start().await.unwrap();
    for name in KINDS {
        let source = Source::directory(folder(name));
        let loader = TextGenerationModel::loader(source, LoadOptions::default()).unwrap();
        let fuse = fragile(&engine, name, loader, ModelSpec::continuous);
        let generator = engine.text_to_text(name).unwrap();
        let calm = generator.generate(request("The rain", 48)).await.unwrap();
        let mut events = engine.events();
        fuse.light(7);
        let again = generator.generate(request("The rain", 48)).await.unwrap();
        assert_eq!(again, calm, "{name}");
        assert!(!fuse.is_lit(), "{name}: no worker crashed");
        while !matches!(events.recv().await.unwrap(), Event::WorkerCrashed { .. }) {}
    }
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unload_waits_for_the_text_that_is_being_written() {
    for name in KINDS {
        let (engine, generator) = engine(name).await;
        let calm = generator.generate(request("The rain", 64)).await.unwrap();
        let mut stream = generator.stream(request("The rain", 64)).await.unwrap();
        let begun = stream.next().await.unwrap().unwrap();
        let ((rest, completion), unloaded) =
            tokio::join!(read(stream), generator.model().unload(Duration::from_secs(60)));
        unloaded.unwrap();
        assert_eq!((begun.text + &rest, &completion), (calm.text.clone(), &calm), "{name}");
        // The next request loads it anew.
        assert_eq!(generator.generate(request("The rain", 64)).await.unwrap(), calm, "{name}");
        assert!(engine.shutdown().await.is_clean());
    }
}

/// A copy of a fixture, which may be changed.
fn copy(name: &str) -> TempDir {
    let own = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), own.path().join(entry.file_name())).unwrap();
    }
    own
}

/// Changes the configuration in a folder.
fn configure(folder: &Path, change: impl FnOnce(&mut Value)) {
    let file = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(file, config.to_string()).unwrap();
}

fn refusal(folder: &Path) -> Error {
    TextGenerationModel::load(Source::directory(folder)).err().unwrap()
}

#[test]
fn the_error_for_an_unknown_architecture_lists_all_families() {
    let own = copy("olmo2");
    configure(own.path(), |config| {
        config["model_type"] = "unheard_of".into();
        config["architectures"] = Value::Null;
    });
    let error = refusal(own.path());
    let Error::UnsupportedArchitecture { found, supported, .. } = &error else { panic!("{error}") };
    assert_eq!(found, "unheard_of");
    let of_library = families_of("transformers").into_iter().map(|name| {
        let config = std::fs::read(folder(&name).join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        config["model_type"].as_str().unwrap().to_owned()
    });
    for name in of_library.chain(["llama", "gpt_oss", "qwen3_5", "phi3"].map(str::to_owned)) {
        assert!(supported.iter().any(|supported| *supported == name), "{name}: {error}");
    }
}

/// Python's json writes infinite numbers, as in the published files of Mamba 2; transformers 5 has them in a table.
#[test]
fn a_file_with_infinite_numbers_is_read_as_python_reads_it() {
    let calm = load("mamba2").logits(&[5, 6, 7]).unwrap();
    let with_limit = |limit: &str| {
        let own = copy("mamba2");
        let file = own.path().join("config.json");
        let config = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, config.replacen('{', &format!("{{\"time_step_limit\": {limit},"), 1)).unwrap();
        let loaded = TextGenerationModel::load(Source::directory(own.path()));
        loaded.map(|model| model.logits(&[5, 6, 7]).unwrap())
    };
    for limit in ["[0.0, Infinity]", r#"[0.0, {"__float__": "Infinity"}]"#] {
        assert_eq!(with_limit(limit).unwrap(), calm, "{limit}");
    }
    for limit in ["[0.0, 0.1]", "[-Infinity, Infinity]", "[NaN, Infinity]"] {
        let error = with_limit(limit).unwrap_err();
        assert!(
            matches!(&error, Error::UnreadSetting { setting, .. } if setting == "time_step_limit"),
            "{limit}: {error}"
        );
    }
}

/// Settings that the library's types take, and that its computation leaves out or has at one value.
#[test]
fn a_setting_that_the_library_has_at_one_value_is_refused_at_another() {
    for (name, setting, value) in [
        ("falcon", "alibi", Value::Bool(true)),
        ("falcon", "rope_theta", 20_000.into()),
        ("starcoder2", "mlp_type", "gated".into()),
        ("mamba", "state_size", 32.into()),
        ("mamba2", "n_groups", 2.into()),
        ("deepseek_v2", "topk_method", "group_limited_greedy".into()),
        ("stablelm", "qk_layernorm", Value::Bool(true)),
        ("gpt_bigcode", "multi_query", Value::Bool(false)),
        ("granite", "hidden_act", "gelu".into()),
        ("lfm2", "conv_bias", Value::Bool(true)),
    ] {
        let own = copy(name);
        configure(own.path(), |config| config[setting] = value);
        let error = refusal(own.path());
        let is_refusal = matches!(&error, Error::UnsupportedSetting { what, .. } if what == setting);
        assert!(is_refusal, "{name}, {setting}: {error}");
    }
    // A scaling of rotary positions that the family does not know.
    let own = copy("olmo2");
    let scaling = serde_json::json!({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0});
    configure(own.path(), |config| config["rope_parameters"] = scaling);
    let error = refusal(own.path());
    assert!(
        matches!(&error, Error::UnreadSetting { setting, .. } if setting.starts_with("rope_")),
        "{error}"
    );
}

#[test]
fn sizes_that_no_model_has_are_refused_before_the_library_sees_them() {
    for (name, setting, value) in [
        ("olmo2", "num_attention_heads", 0),
        ("olmo2", "num_key_value_heads", 3),
        ("granite", "max_position_embeddings", 1 << 40),
        ("stablelm", "num_hidden_layers", 1 << 20),
        ("mamba2", "head_dim", 0),
        ("deepseek_v2", "vocab_size", 0),
    ] {
        let own = copy(name);
        configure(own.path(), |config| config[setting] = u64::from_ne_bytes(i64::to_ne_bytes(value)).into());
        let error = refusal(own.path());
        assert!(matches!(error, Error::InvalidConfig { .. }), "{name}, {setting}: {error}");
    }
}

#[test]
fn a_tensor_that_is_missing_or_has_another_shape_is_named() {
    let change = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let own = copy("olmo2");
        let file = own.path().join("model.safetensors");
        let mut tensors: HashMap<String, Tensor> =
            candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
        change(&mut tensors);
        candle_core::safetensors::save(&tensors, &file).unwrap();
        refusal(own.path())
    };
    let name = "model.layers.1.mlp.up_proj.weight";
    let missing = change(&|tensors| drop(tensors.remove(name)));
    assert!(matches!(&missing, Error::MissingTensor { tensor } if tensor == name), "{missing}");
    let turned = change(&|tensors| {
        let matrix = tensors[name].t().unwrap().contiguous().unwrap();
        tensors.insert(name.to_owned(), matrix);
    });
    assert!(matches!(&turned, Error::ShapeMismatch { tensor, .. } if tensor == name), "{turned}");
    let more = change(&|tensors| {
        let matrix = tensors[name].clone();
        tensors.insert("model.layers.7.mlp.up_proj.weight".to_owned(), matrix);
    });
    let is_named = |tensor: &str| tensor == "model.layers.7.mlp.up_proj.weight";
    assert!(matches!(&more, Error::UnreadTensor { tensor, .. } if is_named(tensor)), "{more}");
}

/// A family that this crate does not list, in an application's own lines.
struct Mine(olmo2::Model);

impl TransformersModel for Mine {
    type Config = olmo2::Config;
    type Stream = olmo2::Model;
    const MODEL_TYPE: &'static str = "mine";

    fn load(config: &olmo2::Config, weights: VarBuilder<'static>) -> candle_core::Result<Self> {
        olmo2::Model::new(config, weights).map(Self)
    }

    fn begin(&self) -> candle_core::Result<olmo2::Model> {
        Ok(self.0.clone())
    }

    fn forward(
        &self,
        text: &mut olmo2::Model,
        tokens: &Tensor,
        before: usize,
    ) -> candle_core::Result<Tensor> {
        text.forward(tokens, before)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_brings_a_family_of_its_own() {
    let own = copy("olmo2");
    configure(own.path(), |config| {
        config["model_type"] = "mine".into();
        config["tie_word_embeddings"] = false.into();
    });
    assert!(matches!(refusal(own.path()), Error::UnsupportedArchitecture { .. }));
    let source = || Source::directory(own.path());
    let family = TransformersFamily::of::<Mine>();
    let spec = SourceSpec::from(source()).with_family(family);
    let engine = Engine::builder().text_to_text("mine", spec).start().await.unwrap();
    let written = engine.text_to_text("mine").unwrap().generate(request("The cat", 32)).await.unwrap();
    assert_eq!(written, load("olmo2").generate(&[request("The cat", 32)]).unwrap()[0]);
    let options = LoadOptions::default().with_family(family);
    let alone = TextGenerationModel::load_with(source(), options.clone()).unwrap();
    assert_eq!(alone.generate(&[request("The cat", 32)]).unwrap()[0], written);
    // It is no family for other models.
    let other = TextGenerationModel::load_with(Source::directory(folder("olmo")), options);
    assert!(matches!(other.err().unwrap(), Error::UnsupportedArchitecture { .. }));
    assert!(engine.shutdown().await.is_clean());
}

/// A worker writes one text of such a model at a time, and the others of its batch after it.
#[test]
fn texts_of_a_model_that_is_built_anew_are_written_one_after_another() {
    let asked = [request("The cat", 16), request("A train", 16)];
    for (name, together) in [("stablelm", false), ("olmo2", true)] {
        let model = load(name);
        let alone: Vec<Completion> = asked
            .iter()
            .map(|asked| model.generate(std::slice::from_ref(asked)).unwrap().remove(0))
            .collect();
        assert_eq!(model.generate(&asked).unwrap(), alone, "{name}");
        // A worker's share is for one text, or for many.
        let shares = model.footprint().per_worker;
        println!("{name}: {shares} a worker, several texts at a time: {together}");
    }
}
