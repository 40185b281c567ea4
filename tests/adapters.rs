//! Adapters (LoRA) of models that write text: they compute what PEFT does, share batches with each other and with their base,
//! and one that is broken fails nobody else's request.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_actors::{
    Bytes, Completion, Engine, Error, ErrorKind, FinishReason, GenerateText, LoadOptions, ModelSpec, Prompt,
    Source, SourceSpec, StandaloneModel, TextGenerationModel, TextGenerator, TextToText,
};
use candle_core::{Device, Tensor};
use common::fragile::fragile;
use common::text::{family, one_worker};
use common::{difference, root, until_nothing_runs};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

const STEPS: usize = 32;

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

fn fixtures() -> PathBuf {
    root().join("tests/fixtures/adapters")
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn cases(base: &str, adapter: &str) -> Vec<Case> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    let text = std::fs::read(fixtures().join(base).join(adapter).join("expected.json")).unwrap();
    serde_json::from_slice::<File>(&text).unwrap().cases
}

/// A base with all adapters that there are for it.
fn load(base: &str) -> TextGenerationModel {
    let options = names_in(&fixtures().join(base)).into_iter().fold(
        LoadOptions::default().with_exact_products(true),
        |options, name| {
            let source = Source::directory(fixtures().join(base).join(&name));
            options.with_adapter(name, source)
        },
    );
    TextGenerationModel::load_with(Source::directory(family(base)), options).unwrap()
}

fn request(prompt: &str, adapter: Option<&str>) -> GenerateText {
    GenerateText::from(prompt).with_max_tokens(STEPS).with_adapter(adapter.map(str::to_owned))
}

#[test]
fn every_adapter_computes_what_peft_does() {
    let (mut adapters, mut settings) = (0, Vec::new());
    for base in names_in(&fixtures()) {
        let model = load(&base);
        for adapter in names_in(&fixtures().join(&base)) {
            let folder = fixtures().join(&base).join(&adapter);
            let file = folder.join("expected.safetensors");
            let expected = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
            let expected = |name: String| expected[&name].to_vec1::<f32>().unwrap();
            let mut largest = 0.0f32;
            for (index, Case { prompt, greedy }) in cases(&base, &adapter).into_iter().enumerate() {
                let all: Vec<u32> = prompt.iter().chain(&greedy).copied().collect();
                for (tokens, name) in [(&prompt, "prompt"), (&all, "greedy")] {
                    let logits = model.adapted_logits(&adapter, tokens).unwrap().pop().unwrap();
                    largest = largest.max(difference(&logits, &expected(format!("{name}.{index}"))));
                    let plain = model.logits(tokens).unwrap().pop().unwrap();
                    let is_seen = tokens.len() > 2 && difference(&plain, &logits) > 1e-2;
                    assert!(is_seen || tokens.len() < 3, "{base}/{adapter} changes something");
                }
            }
            println!("{base}/{adapter}: {largest:e}");
            assert!(largest < 1e-4, "{base}/{adapter}: {largest}");
            let config = std::fs::read(folder.join("adapter_config.json")).unwrap();
            let config: Value = serde_json::from_slice(&config).unwrap();
            settings
                .extend(config.as_object().unwrap().iter().map(|(name, value)| format!("{name}={value}")));
            adapters += 1;
        }
    }
    assert!(adapters >= 16, "{adapters}");
    for read in ["use_rslora=true", "layers_to_transform=[", "rank_pattern={\"", "alpha_pattern={\""] {
        assert!(settings.iter().any(|setting| setting.starts_with(read)), "no fixture has {read}");
    }
}

/// Prompts whose text has exactly the tokens of the reference's, with the text that follows: up to the end that the model
/// gives it, if it gives one.
fn texts(model: &TextGenerationModel, base: &str, adapter: &str) -> Vec<(String, String)> {
    let of = |case: &Case| {
        let prompt = model.decode(&case.prompt).unwrap();
        let tokens = model.tokenize(&Prompt::Raw(prompt.clone())).unwrap();
        let own = model.generate(&[request(&prompt, Some(adapter))]).unwrap();
        let Completion { finish_reason, usage, .. } = &own[0];
        assert!(usage.completion_tokens == STEPS || *finish_reason == FinishReason::Stop);
        let text = model.decode(&case.greedy[..usage.completion_tokens]).unwrap();
        (tokens == case.prompt).then_some((prompt, text))
    };
    let found: Vec<_> = cases(base, adapter).iter().filter_map(of).collect();
    assert!(found.len() >= 2, "{base}/{adapter}");
    found
}

fn spec(base: &str) -> SourceSpec {
    names_in(&fixtures().join(base)).into_iter().fold(
        SourceSpec::from(Source::directory(family(base))).with_exact_products(true),
        |spec, name| {
            let source = Source::directory(fixtures().join(base).join(&name));
            spec.with_adapter(name, source)
        },
    )
}

async fn engine(spec: SourceSpec) -> (Engine, TextGenerator) {
    let engine =
        Engine::builder().pool_config(one_worker()).text_to_text("base", spec).start().await.unwrap();
    let model = engine.text_to_text("base").unwrap();
    (engine, model)
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_with_different_adapters_and_with_none_are_the_same_alone_and_in_one_batch() {
    for base in names_in(&fixtures()) {
        let reference = load(&base);
        let (engine, model) = engine(spec(&base)).await;
        let adapters = names_in(&fixtures().join(&base));
        let mut requests = Vec::new();
        for adapter in &adapters {
            for (prompt, text) in texts(&reference, &base, adapter) {
                let asked = request(&prompt, Some(adapter)).with_logprobs(1);
                let alone = model.generate(asked.clone()).await.unwrap();
                assert_eq!(alone.text, text, "{base}/{adapter}: {prompt:?}");
                requests.push((asked, alone));
                let plain = request(&prompt, None).with_logprobs(1);
                let alone = model.generate(plain.clone()).await.unwrap();
                assert_ne!(alone.text, text, "{base} without {adapter}");
                requests.push((plain, alone));
            }
        }
        // Those of one prompt go together: as many rows as are read at once.
        requests.sort_by_key(|(_, alone)| alone.usage.prompt_tokens);
        for together in requests.chunks(2 * adapters.len()) {
            let mut streams = Vec::new();
            for (asked, _) in together {
                streams.push(model.stream(asked.clone()).await.unwrap());
            }
            for ((asked, alone), stream) in together.iter().zip(streams) {
                let completion: Completion = stream.output().await.unwrap();
                let about = format!("{base}, {:?}", asked.adapter);
                assert_eq!(completion.text, alone.text, "{about}");
                // Texts that outgrow a rotary embedding are read again, together in pieces.
                if !base.contains("phi3") {
                    assert_eq!(&completion, alone, "{about}: log probabilities to the last bit");
                }
            }
        }
        println!("{base}: {} texts with {adapters:?} and with none", requests.len());
        assert!(engine.shutdown().await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_adapter_is_refused_before_it_is_queued_and_the_known_are_named() {
    let (engine, model) = engine(spec("llama")).await;
    let refused = model.generate(request("The", Some("none"))).await.unwrap_err();
    let known = vec!["patterns".to_owned(), "plain".to_owned()];
    assert_eq!(refused, Error::UnknownAdapter { adapter: "none".to_owned(), known: known.clone() });
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    assert!(refused.to_string().contains("none") && refused.to_string().contains("patterns, plain"));
    let status = engine.system().status();
    assert!(
        status.model("text_to_text", "base").is_none_or(|model| !model.is_serving()),
        "nothing was loaded"
    );
    assert_eq!(model.model().facts().unwrap().adapters, known);
    for name in ["", &"x".repeat(257)] {
        let refused = model.generate(request("The", Some(name))).await.unwrap_err();
        assert!(matches!(&refused, Error::InvalidInput(reason) if reason.contains("256")), "{refused}");
    }
    assert!(engine.shutdown().await.is_clean());
}

/// Copy of an adapter that may be changed.
fn copy_of(base: &str, adapter: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    for name in names_in(&fixtures().join(base).join(adapter)) {
        let from = fixtures().join(base).join(adapter).join(&name);
        std::fs::copy(from, folder.path().join(name)).unwrap();
    }
    folder
}

/// An adapter with a changed setting.
fn with_setting(name: &str, value: Value) -> TempDir {
    let folder = copy_of("llama", "plain");
    let file = folder.path().join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config[name] = value;
    std::fs::write(file, config.to_string()).unwrap();
    folder
}

/// An adapter with changed tensors.
fn with_tensors(change: impl Fn(&mut HashMap<String, Tensor>)) -> TempDir {
    let folder = copy_of("llama", "plain");
    let file = folder.path().join("adapter_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, file).unwrap();
    folder
}

const QUERIES: &str = "base_model.model.model.layers.1.self_attn.q_proj.lora_";

/// Adapters that cannot be used, with a word of what each is refused with.
fn broken() -> Vec<(TempDir, &'static str)> {
    let pointer = copy_of("llama", "plain");
    let text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n";
    std::fs::write(pointer.path().join("adapter_model.safetensors"), text).unwrap();
    let (no_config, no_weights) = (copy_of("llama", "plain"), copy_of("llama", "plain"));
    std::fs::remove_file(no_config.path().join("adapter_config.json")).unwrap();
    std::fs::remove_file(no_weights.path().join("adapter_model.safetensors")).unwrap();
    let of = |name: &str, shape: (usize, usize)| {
        let name = format!("{QUERIES}{name}.weight");
        with_tensors(|tensors| {
            let other = Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
            assert!(tensors.insert(name.clone(), other).is_some());
        })
    };
    let other_base = with_tensors(|tensors| {
        for (name, tensor) in &mut *tensors {
            if name.contains("lora_A") {
                *tensor = tensor.pad_with_zeros(1, 0, 16).unwrap();
            }
        }
    });
    let without = |end: &str| {
        let name = format!("{QUERIES}{end}.weight");
        with_tensors(|tensors| assert!(tensors.remove(&name).is_some()))
    };
    let beside = |name: &'static str| {
        with_tensors(move |tensors| {
            let one = Tensor::ones(4, candle_core::DType::F32, &Device::Cpu).unwrap();
            tensors.insert(name.to_owned(), one);
        })
    };
    let not_a_number = with_tensors(|tensors| {
        let tensor = tensors.get_mut(&format!("{QUERIES}B.weight")).unwrap();
        *tensor = (tensor.zeros_like().unwrap() / 0.0).unwrap();
    });
    vec![
        (pointer, "Git LFS"),
        (no_config, "adapter_config.json"),
        (no_weights, "adapter_model.safetensors"),
        (of("A", (3, 32)), "q_proj.lora_A"),
        (of("B", (32, 5)), "q_proj.lora_B"),
        (other_base, "lora_A"),
        (without("A"), "q_proj.lora_A"),
        (without("B"), "q_proj.lora_B"),
        (not_a_number, "q_proj.lora_B"),
        (beside("base_model.model.lm_head.lora_A.weight"), "lm_head.lora_A"),
        (beside("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"), "magnitude"),
        (with_setting("use_dora", json!(true)), "use_dora"),
        (with_setting("bias", json!("lora_only")), "bias"),
        (with_setting("lora_bias", json!(true)), "lora_bias"),
        (with_setting("modules_to_save", json!(["embed_tokens"])), "modules_to_save"),
        (with_setting("trainable_token_indices", json!([3])), "trainable_token_indices"),
        (with_setting("target_parameters", json!(["x"])), "target_parameters"),
        (with_setting("layer_replication", json!([[0, 2]])), "layer_replication"),
        (with_setting("init_lora_weights", json!("pissa_niter_4")), "init_lora_weights"),
        (with_setting("a_setting_of_tomorrow", json!(1)), "a_setting_of_tomorrow"),
        (with_setting("peft_type", json!("LOHA")), "LOHA"),
        (with_setting("peft_type", json!(null)), "peft_type"),
        (with_setting("r", json!(0)), "r is 0"),
        (with_setting("r", json!(5)), "lora_A"),
        (with_setting("target_modules", json!(["q_proj"])), "v_proj.lora_A"),
        (with_setting("target_modules", json!(["q_proj", "k_proj", "v_proj"])), "k_proj.lora_A"),
        (with_setting("target_modules", json!("all-linear")), "k_proj.lora_A"),
        (with_setting("target_modules", json!("((")), "(("),
        (with_setting("target_modules", json!(null)), "target_modules"),
        (with_setting("target_modules", json!(r"(([a-z]|[a-z._0-9])+)+\1!")), "pattern"),
        (with_setting("rank_pattern", json!({"q_proj": 3})), "q_proj.lora_A"),
        (with_setting("rank_pattern", json!({"(": 3})), "pattern"),
        (with_setting("alpha_pattern", json!({"q_proj": "x"})), "adapter_config.json"),
        (with_setting("layers_to_transform", json!([0])), "layers.1"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_adapter_fails_the_requests_for_it_alone_and_names_its_file() {
    let broken = broken();
    let spec = broken.iter().enumerate().fold(spec("llama"), |spec, (index, (folder, _))| {
        spec.with_adapter(format!("broken {index}"), Source::directory(folder.path()))
    });
    let (engine, model) = engine(spec).await;
    let reference = load("llama");
    let [(prompt, text), ..] = &texts(&reference, "llama", "plain")[..] else { panic!("no prompts") };
    let mut good = model.stream(request(prompt, Some("plain"))).await.unwrap();
    for (index, (folder, word)) in broken.iter().enumerate() {
        let name = format!("broken {index}");
        let error = model.generate(request("The", Some(&name))).await.unwrap_err().root();
        let Error::BrokenAdapter { adapter, place, .. } = &error else { panic!("{word}: {error}") };
        assert_eq!(adapter, &name);
        assert!(place.starts_with(folder.path()), "{word}: {}", place.display());
        assert!(error.to_string().contains(word), "{word}: {error}");
        assert_eq!(error.kind(), ErrorKind::Internal, "{word}");
    }
    println!("{} broken adapters, each told apart", broken.len());
    while good.next().await.transpose().unwrap().is_some() {}
    assert_eq!(&good.output().await.unwrap().text, text, "others go on");
    assert!(model.generate(request(prompt, None)).await.is_ok());
    assert!(engine.shutdown().await.is_clean());
}

/// PEFT writes down the layers that it found for the former, and ignores the latter for linear layers.
#[test]
fn all_linear_layers_are_those_of_the_list_and_fan_in_fan_out_changes_nothing() {
    let folder = copy_of("qwen3", "all");
    let file = folder.path().join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["target_modules"] = json!("all-linear");
    config["fan_in_fan_out"] = json!(true);
    std::fs::write(&file, config.to_string()).unwrap();
    let options = LoadOptions::default().with_adapter("all", Source::directory(folder.path()));
    let model = TextGenerationModel::load_with(Source::directory(family("qwen3")), options).unwrap();
    let logits = model.adapted_logits("all", &[1, 2, 3]).unwrap();
    assert_eq!(logits, load("qwen3").adapted_logits("all", &[1, 2, 3]).unwrap());
}

/// Older versions of transformers have keys in blocks that see those of another one, and PEFT changes them.
#[test]
fn matrices_of_keys_that_nothing_is_computed_with_change_nothing() {
    let folder = copy_of("gemma3n", "named");
    let file = folder.path().join("adapter_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    for end in ["lora_A", "lora_B"] {
        let of =
            |block: usize| format!("base_model.model.model.layers.{block}.self_attn.k_proj.{end}.weight");
        let matrix = tensors[&of(3)].clone();
        assert!(tensors.insert(of(5), matrix).is_none());
    }
    candle_core::safetensors::save(&tensors, file).unwrap();
    let options = LoadOptions::default().with_adapter("named", Source::directory(folder.path()));
    let model = TextGenerationModel::load_with(Source::directory(family("gemma3n")), options).unwrap();
    let logits = model.adapted_logits("named", &[1, 2, 3]).unwrap();
    assert_eq!(logits, load("gemma3n").adapted_logits("named", &[1, 2, 3]).unwrap());
}

/// Keys and values that an adapter has made are nobody else's, however long the beginning is that prompts share.
#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_was_read_is_read_anew_with_each_adapter() {
    let reference = load("llama");
    let (engine, model) = engine(spec("llama")).await;
    let prompt = "The cat sleeps. ".repeat(40);
    assert!(reference.tokenize(&Prompt::Raw(prompt.clone())).unwrap().len() > 200);
    let asked = [
        (None, false),
        (Some("plain"), false),
        (Some("patterns"), false),
        (None, true),
        (Some("plain"), true),
    ];
    for (adapter, is_known) in asked {
        let asked = request(&prompt, adapter);
        let expected = reference.generate(std::slice::from_ref(&asked)).unwrap().remove(0);
        let answer = model.generate(asked).await.unwrap();
        assert_eq!(answer.text, expected.text, "{adapter:?}");
        assert_eq!(answer.usage.cached_tokens > 0, is_known, "{adapter:?}");
    }
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_with_an_adapter_is_the_same_after_a_crash_and_all_memory_comes_back() {
    let reference = load("llama");
    let [(prompt, text), ..] = &texts(&reference, "llama", "patterns")[..] else { panic!("no prompts") };
    let engine = Engine::builder().pool_config(one_worker()).start().await.unwrap();
    let options = ["plain", "patterns"].iter().fold(LoadOptions::default(), |options, name| {
        options.with_adapter(*name, Source::directory(fixtures().join("llama").join(name)))
    });
    let loader = TextGenerationModel::loader(Source::directory(family("llama")), options).unwrap();
    let fuse = fragile::<TextToText>(&engine, "base", loader, ModelSpec::continuous);
    let model = engine.text_to_text("base").unwrap();
    model.model().preload().await.unwrap();
    for ticks in [2, 9, 20] {
        fuse.light(ticks);
        let completion = model.generate(request(prompt, Some("patterns"))).await.unwrap();
        assert!(!fuse.is_lit(), "its worker crashed on the way");
        assert_eq!(&completion.text, text);
        // One that is given up in the middle.
        let mut stream = model.stream(request(prompt, Some("plain"))).await.unwrap();
        stream.next().await.unwrap().unwrap();
        drop(stream);
        until_nothing_runs(model.model()).await;
        assert!(engine.system().status().memory.iter().all(|memory| memory.charged == Bytes::ZERO));
    }
    assert!(engine.shutdown().await.is_clean());
}

/// Without a memory that they are charged to.
#[test]
fn the_bytes_of_adapters_are_part_of_a_model_without_actors() {
    let base = TextGenerationModel::load(Source::directory(family("llama"))).unwrap().footprint();
    let both = load("llama").footprint();
    let numbers: usize = ["plain", "patterns"]
        .iter()
        .map(|adapter| {
            let file = fixtures().join("llama").join(adapter).join("adapter_model.safetensors");
            let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
            tensors.values().map(Tensor::elem_count).sum::<usize>()
        })
        .sum();
    assert_eq!(both.shared, base.shared + Bytes(4 * numbers as u64));
    assert!(both.per_worker > base.per_worker, "what they add to a pass");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_have_adapters_refuses_them_when_it_is_registered_or_loaded() {
    let adapter = || Source::directory(fixtures().join("llama/plain"));
    let with_one = |path: PathBuf| SourceSpec::from(Source::directory(path)).with_adapter("one", adapter());
    let refused = |result: Result<Engine, Error>| match result.unwrap_err().root() {
        Error::InvalidSetting { setting, .. } => assert_eq!(setting, "adapters"),
        error => panic!("{error}"),
    };
    refused(Engine::builder().text_embedding("texts", with_one(common::small_model())).start().await);
    let many = (0..257).fold(SourceSpec::from(Source::directory(family("llama"))), |spec, index| {
        spec.with_adapter(index.to_string(), adapter())
    });
    refused(Engine::builder().text_to_text("base", many).start().await);
    refused(Engine::builder().text_to_text("base", spec("llama").with_adapter("", adapter())).start().await);
    let missing = spec("llama").with_adapter("one", Source::directory("nowhere/at/all"));
    let error = Engine::builder().text_to_text("base", missing).start().await.unwrap_err();
    assert!(matches!(error.root(), Error::NoSuchDirectory { .. }), "{error}");
    #[cfg(feature = "transformers")]
    {
        let library = with_one(root().join("tests/fixtures/transformers/olmo"));
        let (engine, model) = engine(library).await;
        let error = model.generate("The").await.unwrap_err().root();
        assert!(matches!(&error, Error::InvalidSetting { setting, .. } if setting == "adapters"), "{error}");
        assert!(engine.shutdown().await.is_clean());
    }
}
