//! Every text embedding family agrees with its reference implementation, alone and in any batch, with prompts
//! and with fewer dimensions. The models are tiny and random; `tests/references/text_embedding.py` makes them
//! and names each reference.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use candle_actors::{EmbedPrompt, EmbedTexts, Engine, Error, Source, StandaloneModel, TextEmbeddingModel};
use common::difference;
use common::folders::families_of;
use serde::Deserialize;
use serde_json::{Value, json};

/// Largest difference from the reference.
const TOLERANCE: f32 = 1e-4;
/// Largest difference between a text alone and the same in a batch.
const BATCH_TOLERANCE: f32 = 1e-5;

/// Input of the reference, and its output.
#[derive(Deserialize)]
struct Case {
    text: String,
    /// Prompt by its name in the model's files.
    named: Option<String>,
    /// Prompt by its text.
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
        EmbedTexts::default().with_texts(texts).with_prompt(self.prompt()).with_dimensions(self.dimensions)
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

/// Compares each case alone with its reference, and the cases without a prompt alone with the same in
/// batches.
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

#[test]
fn every_family_gives_the_vectors_of_its_reference() {
    families_of("text_embedding").iter().for_each(|family| compare(family));
}

#[test]
fn dimensions_that_the_model_lists_are_the_only_ones() {
    let ask = |family: &str, dimensions| {
        let request = EmbedTexts::from("Hello").with_dimensions(dimensions);
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
fn unknown_prompts_and_prompts_that_fill_the_context_are_refused() {
    let ask = |family: &str, prompt| {
        let request = EmbedTexts::from("Hello").with_prompt(prompt);
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

/// A copy of a family's model whose `config.json` is changed.
fn changed(family: &str, change: impl FnOnce(&mut Value)) -> Result<TextEmbeddingModel, Error> {
    let copy = tempfile::tempdir().unwrap();
    changed_into(family, copy.path(), change);
    TextEmbeddingModel::load(Source::directory(copy.path()))
}

fn changed_into(family: &str, copy: &Path, change: impl FnOnce(&mut Value)) {
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        for entry in std::fs::read_dir(folder(family).join(&below)).unwrap() {
            let entry = entry.unwrap();
            let place = below.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                std::fs::create_dir(copy.join(&place)).unwrap();
                folders.push(place);
            } else if place != Path::new("config.json") {
                std::fs::hard_link(entry.path(), copy.join(&place))
                    .or_else(|_| std::fs::copy(entry.path(), copy.join(&place)).map(drop))
                    .unwrap();
            }
        }
    }
    let text = std::fs::read(folder(family).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    change(&mut config);
    std::fs::write(copy.join("config.json"), config.to_string()).unwrap();
}

/// Control of the comparisons above: with another setting the vectors differ.
#[test]
fn every_setting_changes_the_vectors() {
    let cases_by_family = [
        ("bert", "layer_norm_eps", json!(0.1)),
        ("bert", "hidden_act", json!("relu")),
        ("bert", "num_attention_heads", json!(2)),
        ("bert_relative_key", "position_embedding_type", json!("relative_key_query")),
        ("xlm_roberta_relative_key_query", "position_embedding_type", json!("relative_key")),
        ("distilbert", "activation", json!("gelu_new")),
        ("roberta", "pad_token_id", json!(0)),
        ("roberta", "hidden_act", json!("gelu")),
        ("mpnet", "layer_norm_eps", json!(0.1)),
        ("electra", "hidden_act", json!("relu")),
        ("arctic", "rope_theta", json!(10000)),
        ("embedding_gemma", "use_bidirectional_attention", json!(false)),
        ("embedding_gemma", "sliding_window", json!(16)),
        ("e5_mistral", "sliding_window", json!(16)),
        ("e5_mistral", "is_causal", json!(false)),
        ("llama", "is_causal", json!(true)),
        ("eurobert", "rope_theta", json!(10000)),
        ("jina_v3", "rope_parameters", json!({"rope_type": "default", "rope_theta": 10000.0})),
        ("jina_v3_adapters", "rotary_emb_base", json!(10000)),
        ("jina_v3_adapters", "lora_alpha", json!(1)),
        (
            "jina_v3_adapters",
            "lora_adaptations",
            json!(["separation", "retrieval.passage", "retrieval.query"]),
        ),
        ("jina_v5", "task_names", json!(["text-matching", "retrieval"])),
        ("jina_v5_nano", "rope_theta", json!(10000)),
        ("jina_bert", "num_attention_heads", json!(9)),
        ("jina_bert", "feed_forward_type", json!("reglu")),
        ("nomic_bert", "rotary_emb_base", json!(990)),
        ("nomic_moe", "moe_top_k", json!(1)),
        ("nomic_bert", "activation_function", json!("geglu")),
        ("modernbert", "local_attention", json!(14)),
        ("modernbert", "global_attn_every_n_layers", json!(2)),
        ("modernbert", "global_rope_theta", json!(1000)),
        ("modernbert", "local_rope_theta", json!(9900)),
        ("stella_400m", "rope_theta", json!(150000)),
        ("stella_400m", "rope_scaling", json!({"type": "ntk", "factor": 2.1})),
        ("stella_400m", "rope_scaling", json!(null)),
        ("gte_qwen2", "is_causal", json!(true)),
        ("gte_qwen2", "auto_map", json!(null)),
        ("qwen3", "rms_norm_eps", json!(0.01)),
        ("qwen3", "is_causal", json!(false)),
        ("nv_embed", "add_eos", json!(false)),
    ];
    for (family, setting, value) in cases_by_family {
        let model = changed(family, |config| config[setting] = value.clone()).unwrap();
        let apart =
            |case: &Case| difference(&model.embed_request(&case.request()).unwrap()[0], &case.embedding);
        let largest = cases(family).iter().map(apart).fold(0.0, f32::max);
        assert!(largest > TOLERANCE, "{family} {setting} {value}: {largest}");
    }
}

/// As sentence-transformers 6 with transformers 5 reads the files beside `config.json`.
#[test]
fn the_files_around_a_model_count_as_in_sentence_transformers() {
    let with = |family: &str, files: &[(&str, Option<Value>)], config: &Value| {
        let copy = tempfile::tempdir().unwrap();
        changed_into(family, copy.path(), |own| {
            own.as_object_mut().unwrap().extend(config.as_object().unwrap().clone())
        });
        for (name, content) in files {
            // The others are links to the fixture's.
            let _ = std::fs::remove_file(copy.path().join(name));
            if let Some(content) = content {
                std::fs::write(copy.path().join(name), content.to_string()).unwrap();
            }
        }
        TextEmbeddingModel::load(Source::directory(copy.path()))
    };
    let embed = |model: TextEmbeddingModel| model.embed(&["The cat sleeps."]).unwrap().remove(0);
    let read = |family: &str, name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(folder(family).join(name)).unwrap()).unwrap()
    };
    let none = json!({});
    let settings = |family: &str, change: Value| {
        let mut own = read(family, "tokenizer_config.json");
        own.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        own
    };
    // The end of a text: only code of the repository's own reads the flag beside a tokenizer.json.
    let own = embed(load("gte_qwen2"));
    for (change, is_own) in [
        (json!({}), true),
        (json!({"add_eos_token": false}), false),
        (json!({"auto_map": null}), false),
        (json!({"auto_map": {"AutoProcessor": "a.B"}}), false),
    ] {
        let file = settings("gte_qwen2", change.clone());
        let vector = embed(with("gte_qwen2", &[("tokenizer_config.json", Some(file))], &none).unwrap());
        assert_eq!(vector == own, is_own, "{change}");
    }
    // Without modules a language model is pooled by its last token, others by mean.
    let language_model = json!({"architectures": ["Qwen3ForCausalLM"]});
    let bare = |config: &Value| embed(with("qwen3", &[("modules.json", None)], config).unwrap());
    let last = embed(load("qwen3"));
    assert!(difference(&unit(&bare(&language_model)), &last) < TOLERANCE);
    assert!(difference(&unit(&bare(&json!({"architectures": ["Qwen3Model"]}))), &last) > TOLERANCE);
    let template = settings("qwen3", json!({"chat_template": "{{ messages }}"}));
    let files = [("modules.json", None), ("tokenizer_config.json", Some(template))];
    let refused = with("qwen3", &files, &language_model).err().unwrap();
    assert!(
        matches!(&refused, Error::UnsupportedSetting { what, .. } if what == "chat_template"),
        "{refused}"
    );
    // What sentence-transformers 6 writes, and what has an effect.
    for (content, is_read) in [
        (json!({"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}), true),
        (
            json!({"modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}}),
            true,
        ),
        (
            json!({"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}}),
            false,
        ),
        (json!({"transformer_task": "fill-mask"}), false),
        (json!({"processing_kwargs": {"text": {"max_length": 7}}}), false),
        (json!({"model_args": {"attn_implementation": "sdpa", "torch_dtype": "bfloat16"}}), true),
        (json!({"model_kwargs": {"output_hidden_states": true}}), false),
        (json!({"tokenizer_args": {"truncation_side": "left"}}), false),
        (json!({"processor_kwargs": {"do_lower_case": false}}), false),
    ] {
        let loaded = with("bert", &[("sentence_bert_config.json", Some(content.clone()))], &none);
        assert_eq!(loaded.is_ok(), is_read, "{content}: {:?}", loaded.err());
    }
    // A length that the tokenizer is made with goes before that of the model.
    let long = "The cat sleeps on the warm windowsill, and the dog barks.";
    let cut = |content: Value| {
        let model = with("bert", &[("sentence_bert_config.json", Some(content))], &none).unwrap();
        model.embed(&[long]).unwrap().remove(0)
    };
    let short = cut(json!({"max_seq_length": 6}));
    assert_eq!(cut(json!({"max_seq_length": 60, "tokenizer_args": {"model_max_length": 6}})), short);
    assert_ne!(cut(json!({"max_seq_length": 60, "tokenizer_args": {}})), short);
    // No pooling that is turned on is the mean.
    let pooling =
        |content: Value| embed(with("bert", &[("1_Pooling/config.json", Some(content))], &none).unwrap());
    assert_eq!(
        pooling(json!({"word_embedding_dimension": 32})),
        pooling(json!({"pooling_mode_mean_tokens": true}))
    );
    let dense = |change: Value| {
        let mut own = read("embedding_gemma", "2_Dense/config.json");
        own.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        with("embedding_gemma", &[("2_Dense/config.json", Some(own))], &none)
    };
    assert!(dense(json!({"module_output_name": "sentence_embedding"})).is_ok());
    for change in [json!({"module_output_name": "other"}), json!({"activation_function": "GELU"})] {
        let refused = dense(change.clone()).err().unwrap();
        assert!(matches!(refused, Error::UnsupportedSetting { .. }), "{change}: {refused}");
    }
    // These two names need no entry.
    let electra = load("electra");
    let named = |name: &str| {
        let request = EmbedTexts::new(["The cat sleeps."]).with_prompt(EmbedPrompt::Named(name.to_owned()));
        electra.embed_request(&request).map(|vectors| vectors[0].clone())
    };
    let plain = electra.embed(&["The cat sleeps."]).unwrap().remove(0);
    assert_eq!((named("query").unwrap(), named("document").unwrap()), (plain.clone(), plain));
    assert!(named("other").is_err());
}

/// Settings of an adapter in a folder of its own.
#[test]
fn an_adapter_that_is_more_than_two_matrices_is_refused_by_the_setting() {
    let name = "adapters/retrieval/adapter_config.json";
    let own: Value = serde_json::from_slice(&std::fs::read(folder("jina_v5").join(name)).unwrap()).unwrap();
    let with = |setting: &str, value: Value| {
        let copy = tempfile::tempdir().unwrap();
        changed_into("jina_v5", copy.path(), |_| {});
        let mut changed = own.clone();
        changed[setting] = value;
        std::fs::remove_file(copy.path().join(name)).unwrap();
        std::fs::write(copy.path().join(name), changed.to_string()).unwrap();
        TextEmbeddingModel::load(Source::directory(copy.path())).err()
    };
    assert!(with("lora_dropout", json!(0.3)).is_none());
    for (setting, value) in
        [("use_dora", json!(true)), ("bias", json!("all")), ("modules_to_save", json!(["embed_tokens"]))]
    {
        let refused = with(setting, value).unwrap();
        assert!(
            matches!(&refused, Error::UnreadSetting { setting: named, .. } if named == setting),
            "{refused}"
        );
    }
    assert!(matches!(with("r", json!(0)), Some(Error::InvalidConfig { .. })));
    assert!(matches!(with("r", json!(5)), Some(Error::ShapeMismatch { .. })));
    assert!(matches!(with("rank_pattern", json!({"q_proj": 5})), Some(Error::ShapeMismatch { .. })));
    assert!(matches!(with("peft_type", json!("IA3")), Some(Error::UnsupportedSetting { .. })));
}

fn unit(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter().map(|x| x / length).collect()
}

/// Nomic's own code stretches positions by the longest text of a batch; here no vector depends on its batch.
#[test]
fn texts_end_where_stretched_positions_would_begin() {
    let model = changed("nomic_bert", |config| {
        config["rotary_scaling_factor"] = json!(2.0);
        config["max_trained_positions"] = json!(50);
    });
    assert_eq!(model.unwrap().max_tokens(), 50);
    assert_eq!(load("nomic_bert").max_tokens(), 700);
}

#[test]
fn contradictory_settings_are_named() {
    let cases = [
        ("bert", "num_attention_heads", json!(0)),
        ("bert", "num_attention_heads", json!(5)),
        ("bert", "type_vocab_size", json!(0)),
        ("distilbert", "n_heads", json!(0)),
        ("distilbert", "hidden_dim", json!(usize::MAX)),
        ("roberta", "max_position_embeddings", json!(2)),
        ("xlm_roberta", "pad_token_id", json!(u32::MAX)),
        ("electra", "embedding_size", json!(0)),
        ("jina_bert", "intermediate_size", json!(usize::MAX)),
        ("nomic_bert", "n_head", json!(32)),
        ("nomic_bert", "rotary_emb_base", json!(0)),
        ("nomic_moe", "moe_top_k", json!(5)),
        ("modernbert", "local_attention", json!(0)),
        ("modernbert", "global_attn_every_n_layers", json!(0)),
        ("modernbert", "layer_types", json!(["full_attention"])),
        ("stella_400m", "rope_scaling", json!({"type": "ntk", "factor": 0})),
        ("gte_qwen2", "num_attention_heads", json!(0)),
        ("qwen3", "num_key_value_heads", json!(0)),
        ("jina_v5", "task_names", json!([])),
        ("jina_v5", "task_names", json!(["../retrieval"])),
        ("jina_v3_adapters", "lora_rank", json!(0)),
        ("jina_v3_adapters", "lora_adaptations", json!([])),
        ("nv_embed", "latent_attention_config", json!({"num_cross_heads": 0, "latent_dim": 32})),
    ];
    for (family, setting, value) in cases {
        let error = changed(family, |config| config[setting] = value.clone()).err().unwrap();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{family} {setting} {value}: {error}");
    }
    let cases = [
        ("bert", "position_embedding_type", json!("relative")),
        ("mpnet", "position_embedding_type", json!("relative_key")),
        ("mpnet", "relative_attention_num_buckets", json!(16)),
        ("arctic", "rope_parameters", json!({"rope_type": "linear", "rope_theta": 1e4})),
        ("jina_bert", "position_embedding_type", json!("absolute")),
        ("jina_bert", "feed_forward_type", json!("original")),
        ("nomic_bert", "num_experts", json!(8)),
        ("nomic_moe", "moe_every_n_layers", json!(3)),
        ("nomic_moe", "num_shared_experts", json!(1)),
        ("nomic_moe", "moe_normalize_expert_weights", json!(true)),
        ("nomic_moe", "hidden_act", json!("silu")),
        ("nomic_bert", "prenorm", json!(true)),
        ("nomic_bert", "activation_function", json!("swoosh")),
        ("modernbert", "hidden_activation", json!("swoosh")),
        ("stella_400m", "rope_scaling", json!({"type": "yarn", "factor": 2})),
        ("stella_400m", "layer_norm_type", json!("rms_norm")),
    ];
    for (family, setting, value) in cases {
        let error = changed(family, |config| config[setting] = value.clone()).err().unwrap();
        assert!(matches!(error, Error::UnsupportedSetting { .. }), "{family} {setting} {value}: {error}");
    }
}

#[test]
fn an_architecture_that_is_not_supported_is_named_beside_all_that_are() {
    let error = changed("bert", |config| config["model_type"] = json!("mamba")).err().unwrap();
    let words = error.to_string();
    for name in
        ["mamba", "bert, JinaBertForMaskedLM, distilbert, roberta, xlm-roberta", "nomic_bert, modernbert"]
    {
        assert!(words.contains(name), "{words}");
    }
}

/// Loads with each setting changed in turn. Each ends with a model or with a descriptive error, never with a panic
/// or with an allocation of a size that only the setting claims.
#[test]
fn hostile_settings_end_in_errors() {
    let values =
        [json!(0), json!(1), json!(-1), json!(1e300), json!(usize::MAX), json!(null), json!("x"), json!([0])];
    let (mut loaded, mut refused) = (0, 0);
    for family in &families_of("text_embedding") {
        let text = std::fs::read(folder(family).join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&text).unwrap();
        for setting in config.as_object().unwrap().keys() {
            for value in &values {
                match changed(family, |config| config[setting] = value.clone()) {
                    Err(Error::Compute(error)) => panic!("{family} {setting} {value}: {error}"),
                    Err(_) => refused += 1,
                    Ok(model) => {
                        loaded += 1;
                        drop(model.embed(&["Hello", "The cat sleeps on the warm windowsill."]));
                    }
                }
            }
        }
    }
    println!("{loaded} changed models load, {refused} are refused");
    assert!(refused > 100);
}

/// Code of their own may have tokens see everything; the configuration does not tell.
#[test]
fn plain_decoders_with_code_of_their_own_are_refused_unless_they_say_what_is_seen() {
    let with_code = |is_causal: Value| {
        changed("llama", |config| {
            config["auto_map"] = json!({"AutoModel": "modeling_llama.LlamaBidirectionalModel"});
            config["is_causal"] = is_causal;
        })
    };
    let error = with_code(Value::Null).err().unwrap();
    assert!(matches!(&error, Error::UnsupportedSetting { what, .. } if what == "auto_map"), "{error}");
    assert!(with_code(json!(false)).is_ok());
}

/// A copy of a family's model without one file, or with another in its place.
fn with_file(family: &str, name: &str, content: &str) -> Result<TextEmbeddingModel, Error> {
    let copy = tempfile::tempdir().unwrap();
    changed_into(family, copy.path(), |_| {});
    std::fs::remove_file(copy.path().join(name)).unwrap();
    std::fs::write(copy.path().join(name), content).unwrap();
    TextEmbeddingModel::load(Source::directory(copy.path()))
}

#[test]
fn a_dense_layer_without_an_activation_has_tanh_and_one_of_other_code_is_refused() {
    let dense = |activation: &str| {
        let sizes = r#""in_features": 32, "out_features": 24, "bias": true"#;
        with_file("bert_2019", "2_Dense/config.json", &format!("{{{sizes}{activation}}}"))
    };
    let case = &cases("bert_2019")[2];
    let vector = |model: TextEmbeddingModel| model.embed_request(&case.request()).unwrap().swap_remove(0);
    assert!(difference(&vector(dense("").unwrap()), &case.embedding) <= TOLERANCE);
    let identity = dense(r#", "activation_function": "torch.nn.modules.linear.Identity""#).unwrap();
    assert!(difference(&vector(identity), &case.embedding) > TOLERANCE);
    let error = dense(r#", "activation_function": "their_code.Tanh""#).err().unwrap();
    assert!(matches!(error, Error::UnsupportedSetting { .. }), "{error}");
}
