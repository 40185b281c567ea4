//! Nothing of a model is dropped in silence: a setting or a tensor that no family reads is refused by name, in every
//! family, unless the caller allows it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_actors::{
    Error, ImageEmbeddingModel, LoadOptions, RerankingModel, Result, Source, StandaloneModel,
    TextEmbeddingModel, TextGenerationModel, TextToImageModel, VisionModel,
};
use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{DType, Device, Tensor, safetensors};
use common::folders::families_of;
use serde_json::{Value, json};
use tempfile::TempDir;

const CAPABILITIES: [&str; 7 + cfg!(feature = "transformers") as usize] = [
    "text_embedding",
    "late_interaction",
    "reranking",
    "text_to_text",
    #[cfg(feature = "transformers")]
    "transformers",
    "image_embedding",
    "vision",
    "text_to_image",
];

/// Loads what is in a folder.
fn load(capability: &str, folder: &Path, options: LoadOptions) -> Result<()> {
    let source = Source::directory(folder);
    match capability {
        "text_embedding" | "late_interaction" => TextEmbeddingModel::load_with(source, options).map(drop),
        "reranking" => RerankingModel::load_with(source, options).map(drop),
        "text_to_text" | "transformers" => TextGenerationModel::load_with(source, options).map(drop),
        "image_embedding" => ImageEmbeddingModel::load_with(source, options).map(drop),
        "vision" => VisionModel::load_with(source, options).map(drop),
        _ => TextToImageModel::load_with(source, options).map(drop),
    }
}

fn fixtures() -> impl Iterator<Item = (&'static str, PathBuf)> {
    CAPABILITIES.into_iter().flat_map(|capability| {
        let root = common::root().join("tests/fixtures").join(capability);
        families_of(capability).into_iter().map(move |family| (capability, root.join(family)))
    })
}

/// A copy of a folder, which may be changed.
fn copy(folder: &Path) -> TempDir {
    let own = tempfile::tempdir().unwrap();
    for file in files(folder) {
        let to = own.path().join(file.strip_prefix(folder).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(&file, to).unwrap();
    }
    own
}

/// All files in a folder and those within it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn read(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// The configuration files of a model and of its components.
fn configurations(capability: &str, folder: &Path) -> Vec<PathBuf> {
    let is_component = |file: &PathBuf| {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        // Of a static table the reference implementation reads the weights and the tokenizer alone.
        let is_own = file.parent() == Some(folder) && !folder.ends_with("text_embedding/static");
        name == "scheduler_config.json"
            || name == "open_clip_config.json"
            || (name == "config.json" && (is_own || capability == "text_to_image"))
    };
    files(folder).into_iter().filter(is_component).collect()
}

/// The paths of the tables in a configuration that hold a model's settings.
fn tables(config: &Value) -> Vec<String> {
    // Where older files have a part twice, the other one does not count.
    let of_part = |part: &str| match config.get(format!("{part}_dict")) {
        Some(_) => format!("/{part}_dict"),
        None => format!("/{part}"),
    };
    let parts = [
        "text_config",
        "vision_config",
        "qformer_config",
        "rope_parameters",
        "rope_scaling",
        "config/vision",
        "config/text",
        "model_cfg",
        "model_cfg/vision_cfg",
        "model_cfg/text_cfg",
        "preprocess_cfg",
    ];
    let parts = parts.into_iter().map(of_part);
    let within = ["/text_config/rope_parameters", "/text_config/rope_parameters/full_attention"];
    let all = parts.chain(within.map(str::to_owned)).filter(|path| {
        config.pointer(path).is_some_and(|table| table.as_object().is_some_and(|table| !table.is_empty()))
    });
    std::iter::once(String::new()).chain(all).collect()
}

/// An adapter beside the weights, which transformers loads where PEFT is installed.
#[test]
fn an_adapter_beside_the_weights_is_refused_by_its_file() {
    for (capability, family) in [
        ("text_embedding", "bert"),
        ("reranking", "bert"),
        ("text_to_text", "llama"),
        ("image_embedding", "clip"),
        ("vision", "blip"),
    ] {
        let own = copy(&common::root().join("tests/fixtures").join(capability).join(family));
        std::fs::write(own.path().join("adapter_config.json"), r#"{"peft_type": "LORA"}"#).unwrap();
        let refused = load(capability, own.path(), LoadOptions::default()).unwrap_err();
        assert!(refused.to_string().contains("adapter_config.json"), "{capability}: {refused}");
        load(capability, own.path(), LoadOptions::default().with_allow_unread(true)).unwrap();
    }
}

#[test]
fn a_setting_that_nothing_reads_is_refused_in_every_family() {
    let mut count = 0;
    for (capability, fixture) in fixtures() {
        for file in configurations(capability, &fixture) {
            let config = read(&file);
            for table in tables(&config) {
                let own = copy(&fixture);
                let mut changed = config.clone();
                let settings = changed.pointer_mut(&table).unwrap().as_object_mut().unwrap();
                settings.insert("surprising_scale".to_owned(), json!(2.5));
                let to = own.path().join(file.strip_prefix(&fixture).unwrap());
                std::fs::write(&to, changed.to_string()).unwrap();
                let error = load(capability, own.path(), LoadOptions::default())
                    .expect_err(&format!("{} {table}", file.display()));
                let named = matches!(&error, Error::UnreadSetting { setting, .. } if setting.ends_with("surprising_scale"));
                assert!(named, "{} {table}: {error}", fixture.display());
                load(capability, own.path(), LoadOptions::default().with_allow_unread(true)).unwrap();
                count += 1;
            }
        }
    }
    println!("{count} tables of settings");
    assert!(count > 60, "{count}");
}

#[test]
fn a_tensor_that_nothing_reads_is_refused_in_every_family() {
    let mut count = 0;
    for (capability, fixture) in fixtures() {
        // Not what the reference made.
        let made = ["expected.safetensors", "conversations.safetensors", "first_image.safetensors"];
        let is_weights = |file: &PathBuf| {
            file.extension().is_some_and(|end| end == "safetensors")
                && !made.iter().any(|made| file.ends_with(made))
        };
        for file in files(&fixture).into_iter().filter(is_weights) {
            let tensors = safetensors::load(&file, &Device::Cpu).unwrap();
            for extra in extra_tensors(&tensors) {
                let own = copy(&fixture);
                let mut changed = tensors.clone();
                changed.insert(extra.clone(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
                let to = own.path().join(file.strip_prefix(&fixture).unwrap());
                safetensors::save(&changed, &to).unwrap();
                let error = load(capability, own.path(), LoadOptions::default()).expect_err(&extra);
                let named = matches!(&error, Error::UnreadTensor { tensor, others: 0 } if *tensor == extra);
                assert!(named, "{} {extra}: {error}", fixture.display());
                load(capability, own.path(), LoadOptions::default().with_allow_unread(true)).unwrap();
                count += 1;
            }
        }
    }
    println!("{count} tensors");
    assert!(count > 60, "{count}");
}

#[test]
fn a_tensor_of_a_gguf_file_that_nothing_reads_is_refused() {
    for (_, fixture) in fixtures() {
        let Some(file) =
            files(&fixture).into_iter().find(|file| file.extension().is_some_and(|end| end == "gguf"))
        else {
            continue;
        };
        // candle's writer of such files knows no blocks of 4-bit floats.
        if fixture.ends_with("gguf_gpt_oss") {
            continue;
        }
        for extra in [
            "blk.0.attn_q.weight_scale",
            "blk.1.ffn_gate_inp.weight",
            "blk.77.attn_norm.weight",
            "surprising.weight",
        ] {
            let own = copy(&fixture);
            with_tensor(&file, extra, &own.path().join(file.file_name().unwrap()));
            let error = load("text_to_text", own.path(), LoadOptions::default()).expect_err(extra);
            let named = matches!(&error, Error::UnreadTensor { tensor, others: 0 } if tensor == extra);
            assert!(named, "{} {extra}: {error}", fixture.display());
            load("text_to_text", own.path(), LoadOptions::default().with_allow_unread(true)).unwrap();
        }
    }
}

/// Writes a GGUF file with one tensor more.
fn with_tensor(file: &Path, extra: &str, to: &Path) {
    let mut reader = std::fs::File::open(file).unwrap();
    let content = gguf_file::Content::read(&mut reader).unwrap();
    let mut tensors: Vec<(String, QTensor)> = content
        .tensor_infos
        .keys()
        .map(|name| (name.clone(), content.tensor(&mut reader, name, &Device::Cpu).unwrap()))
        .collect();
    let more = Tensor::zeros(32, DType::F32, &Device::Cpu).unwrap();
    tensors.push((extra.to_owned(), QTensor::quantize(&more, GgmlDType::F32).unwrap()));
    let metadata: Vec<(&str, &gguf_file::Value)> =
        content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut std::fs::File::create(to).unwrap(), &metadata, &tensors).unwrap();
}

/// Names in the model's own namespace: beside a tensor of a block, beside the last name, and a block too many.
fn extra_tensors(tensors: &HashMap<String, Tensor>) -> Vec<String> {
    let mut names: Vec<&String> = tensors.keys().collect();
    names.sort();
    let numbered = |name: &&&String| name.split('.').any(|part| part == "0") && name.ends_with(".weight");
    let in_block = names.iter().find(numbered).copied();
    let beside = in_block.map(|name| name.replace(".weight", ".weight_scale"));
    let beyond = in_block.map(|name| name.replacen(".0.", ".77.", 1));
    let outside = Some("surprising.weight".to_owned());
    [beside, beyond, outside].into_iter().flatten().collect()
}

#[test]
fn every_fixture_is_read_whole() {
    for (capability, fixture) in fixtures() {
        if let Err(error) = load(capability, &fixture, LoadOptions::default()) {
            panic!("{}: {error}", fixture.display());
        }
    }
}

/// Adds settings to those that are there, in tables too.
fn complete(config: &mut Value, settings: serde_json::Map<String, Value>) {
    for (setting, value) in settings {
        match (config.get_mut(&setting), value) {
            (Some(own @ Value::Object(_)), Value::Object(more)) => complete(own, more),
            (Some(_), _) => {}
            (None, value) => config[setting] = value,
        }
    }
}

/// Settings that published models of the families have beside those of the fixtures.
#[test]
fn settings_of_published_models_are_no_surprise() {
    let published: HashMap<String, serde_json::Map<String, Value>> =
        serde_json::from_str(include_str!("published_settings.json")).unwrap();
    for (name, settings) in published {
        let fixture = common::root().join("tests/fixtures").join(&name);
        let own = copy(&fixture);
        let mut config = read(&fixture.join("config.json"));
        complete(&mut config, settings);
        std::fs::write(own.path().join("config.json"), config.to_string()).unwrap();
        let (capability, _) = name.split_once('/').unwrap();
        if let Err(error) = load(capability, own.path(), LoadOptions::default()) {
            panic!("{name}: {error}");
        }
    }
}

/// Settings that change what a model computes, and that none of its family reads.
#[test]
fn settings_that_would_change_the_result_are_named() {
    let cases = [
        ("text_to_text/llama", json!({"num_local_experts": 4}), "num_local_experts"),
        ("text_to_text/llama", json!({"attn_logit_softcapping": 30.0}), "attn_logit_softcapping"),
        ("text_to_text/llama", json!({"is_causal": false}), "is_causal"),
        ("text_to_text/llama", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        ("text_to_text/llama", json!({"query_pre_attn_scalar": 256}), "query_pre_attn_scalar"),
        ("text_to_text/llama", json!({"logit_scale": 0.0625}), "logit_scale"),
        ("text_to_text/qwen2", json!({"is_causal": false}), "is_causal"),
        ("text_to_text/qwen3", json!({"num_experts": 4}), "num_experts"),
        (
            "text_to_text/qwen3_moe",
            json!({"shared_expert_intermediate_size": 64}),
            "shared_expert_intermediate_size",
        ),
        ("text_to_text/phi3", json!({"attention_bias": true}), "attention_bias"),
        ("text_to_text/mistral", json!({"embedding_multiplier": 12.0}), "embedding_multiplier"),
        ("text_embedding/bert", json!({"num_experts": 8}), "num_experts"),
        ("text_embedding/bert", json!({"rope_theta": 10000.0}), "rope_theta"),
        ("text_embedding/bert", json!({"add_cross_attention": true}), "add_cross_attention"),
        (
            "text_embedding/modernbert",
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
            "rope_scaling",
        ),
        (
            "text_embedding/nomic_bert",
            json!({"scale_attn_by_inverse_layer_idx": true}),
            "scale_attn_by_inverse_layer_idx",
        ),
        ("image_embedding/dinov2", json!({"use_conv_bn_act_projection": true}), "use_conv_bn_act_projection"),
        ("image_embedding/clip", json!({"use_head": 2}), "use_head"),
        ("vision/llava", json!({"vision_use_head": false}), "vision_use_head"),
        ("vision/qwen3_vl", json!({"fullatt_block_indexes": [1]}), "fullatt_block_indexes"),
    ];
    for (name, settings, wanted) in cases {
        let own = copy(&common::root().join("tests/fixtures").join(name));
        let file = own.path().join("config.json");
        let mut config = read(&file);
        config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        std::fs::write(&file, config.to_string()).unwrap();
        let (capability, _) = name.split_once('/').unwrap();
        let error = load(capability, own.path(), LoadOptions::default()).expect_err(name);
        assert!(
            matches!(&error, Error::UnreadSetting { setting, .. } if setting == wanted),
            "{name}: {error}"
        );
    }
}

/// A copy of a fixture with other tensors and settings.
fn changed(name: &str, tensors: impl Fn(&mut HashMap<String, Tensor>), settings: Value) -> TempDir {
    let fixture = common::root().join("tests/fixtures").join(name);
    let own = copy(&fixture);
    let file = own.path().join("model.safetensors");
    let mut all = safetensors::load(&file, &Device::Cpu).unwrap();
    tensors(&mut all);
    safetensors::save(&all, &file).unwrap();
    let file = own.path().join("config.json");
    let mut config = read(&file);
    config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    std::fs::write(&file, config.to_string()).unwrap();
    own
}

fn zeros(rows: usize, columns: usize) -> Tensor {
    Tensor::zeros((rows, columns), DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn a_classifier_is_not_asked_to_chat() {
    let score = |tensors: &mut HashMap<String, Tensor>| {
        tensors.remove("lm_head.weight");
        tensors.insert("score.weight".to_owned(), zeros(2, 32));
    };
    let load = |folder: &TempDir| load("text_to_text", folder.path(), LoadOptions::default()).unwrap_err();
    let named =
        changed("text_to_text/qwen3", score, json!({"architectures": ["Qwen3ForSequenceClassification"]}));
    let error = load(&named);
    assert!(
        matches!(&error, Error::UnsupportedArchitecture { found, .. } if found == "Qwen3ForSequenceClassification"),
        "{error}"
    );
    let tied = changed("text_to_text/qwen3", score, json!({"tie_word_embeddings": true}));
    let error = load(&tied);
    assert!(matches!(&error, Error::UnreadTensor { tensor, .. } if tensor == "score.weight"), "{error}");
    let untied = changed("text_to_text/qwen3", score, json!({"tie_word_embeddings": false}));
    let error = load(&untied);
    assert!(matches!(&error, Error::MissingTensor { tensor } if tensor == "lm_head.weight"), "{error}");
}

#[test]
fn what_stands_beside_a_classifier_is_read_or_named() {
    for (family, tensor) in [
        ("bert", "classifier.scale"),
        ("bert", "bert.pooler.dense.scale"),
        ("roberta", "classifier.dense2.weight"),
        ("modernbert", "head.norm.scale"),
    ] {
        let more = |tensors: &mut HashMap<String, Tensor>| {
            tensors.insert(tensor.to_owned(), zeros(2, 2));
        };
        let folder = changed(&format!("reranking/{family}"), more, json!({}));
        let error = load("reranking", folder.path(), LoadOptions::default()).unwrap_err();
        assert!(matches!(&error, Error::UnreadTensor { tensor: named, .. } if named == tensor), "{error}");
    }
    let lacking = |tensors: &mut HashMap<String, Tensor>| {
        tensors.remove("classifier.weight");
    };
    let folder = changed("reranking/bert", lacking, json!({}));
    let error = load("reranking", folder.path(), LoadOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::MissingTensor { tensor } if tensor == "classifier.weight"), "{error}");
}

#[test]
fn what_a_text_embedder_has_of_other_tasks_has_no_effect() {
    let heads = |tensors: &mut HashMap<String, Tensor>| {
        for name in
            ["pooler.dense.weight", "cls.predictions.bias", "classifier.weight", "embeddings.position_ids"]
        {
            tensors.insert(name.to_owned(), zeros(2, 2));
        }
    };
    let with_heads = changed("text_embedding/bert", heads, json!({}));
    load("text_embedding", with_heads.path(), LoadOptions::default()).unwrap();
    let lm_head = |tensors: &mut HashMap<String, Tensor>| {
        tensors.insert("lm_head.weight".to_owned(), zeros(2, 2));
    };
    let with_head = changed("text_embedding/qwen3", lm_head, json!({}));
    load("text_embedding", with_head.path(), LoadOptions::default()).unwrap();
}
