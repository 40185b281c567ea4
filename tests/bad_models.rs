//! Every way in which a model directory can be wrong has an error of its own, and none of them panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use candle_actors::{
    Error, ImageEmbeddingModel, Source, StandaloneModel, TextEmbeddingModel, TextGenerationModel,
    TextToImageModel, VisionModel,
};
use common::model::{Entry, TinyModel, write};
use serde_json::json;
use tempfile::TempDir;

fn load(folder: &TempDir) -> Result<TextEmbeddingModel, Error> {
    TextEmbeddingModel::load(Source::directory(folder.path()))
}

fn error(folder: &TempDir) -> Error {
    load(folder).err().expect("a damaged model loads")
}

/// A model whose files are damaged after they are written.
fn damaged(damage: impl FnOnce(&std::path::Path)) -> Error {
    let folder = TinyModel::new().write();
    damage(folder.path());
    error(&folder)
}

/// A model that is damaged before it is written.
fn changed(change: impl FnOnce(&mut TinyModel)) -> Error {
    let mut model = TinyModel::new();
    change(&mut model);
    error(&model.write())
}

#[test]
fn the_tiny_model_loads_before_it_is_damaged() {
    let folder = TinyModel::new().write();
    let model = load(&folder).unwrap();
    let vectors = model.embed(&["cat sleeps", "dog runs", "", "cat cat cat dog"]).unwrap();
    assert!(vectors.iter().all(|vector| vector.len() == 8));
    let lengths = vectors.iter().map(|vector| vector.iter().map(|x| x * x).sum::<f32>());
    assert!(lengths.into_iter().all(|length| (length - 1.0).abs() < 1e-5));
}

#[test]
fn names_with_and_without_a_prefix_load_alike() {
    let plain = TinyModel::new();
    let mut prefixed = TinyModel::new();
    prefixed.tensors =
        prefixed.tensors.into_iter().map(|(name, entry)| (format!("bert.{name}"), entry)).collect();
    let (plain, prefixed) = (plain.write(), prefixed.write());
    let embed = |folder| load(folder).unwrap().embed(&["cat"]).unwrap();
    assert_eq!(embed(&plain), embed(&prefixed));
}

#[test]
fn sharded_weights_load_as_one_file_does() {
    let model = TinyModel::new();
    let (whole, sharded) = (model.write(), model.write());
    std::fs::remove_file(sharded.path().join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    let mut halves = [TinyModel::new(), TinyModel::new()];
    for (index, name) in model.tensors.keys().enumerate() {
        halves[1 - index % 2].tensors.remove(name);
        map.insert(name.clone(), json!(format!("part-{}.safetensors", index % 2)));
    }
    for (index, half) in halves.iter().enumerate() {
        write(sharded.path(), &format!("part-{index}.safetensors"), &half.safetensors());
    }
    let index = json!({"metadata": {}, "weight_map": map});
    write(sharded.path(), "model.safetensors.index.json", index.to_string().as_bytes());
    let embed = |folder| load(folder).unwrap().embed(&["cat sleeps"]).unwrap();
    assert_eq!(embed(&whole), embed(&sharded));
}

#[test]
fn half_precision_weights_are_computed_in_single_precision() {
    let single = TinyModel::new();
    let mut half = TinyModel::new();
    for entry in half.tensors.values_mut() {
        let values = entry.bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        entry.bytes = values.flat_map(|value| half::f16::from_f32(value).to_le_bytes()).collect();
        entry.dtype = "F16";
    }
    let (single, half) = (load(&single.write()).unwrap(), load(&half.write()).unwrap());
    assert_eq!(single.footprint(), half.footprint());
    let (single, half) = (single.embed(&["cat runs"]).unwrap(), half.embed(&["cat runs"]).unwrap());
    assert!(common::difference(&single[0], &half[0]) < 1e-2);
}

#[test]
fn a_directory_that_is_not_there() {
    let error = TextEmbeddingModel::load(Source::directory("/no/such/model")).err().unwrap();
    assert!(matches!(error, Error::NoSuchDirectory { .. }), "{error}");
}

#[test]
fn a_directory_that_lacks_a_file() {
    for name in ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"] {
        let error = damaged(|folder| std::fs::remove_file(folder.join(name)).unwrap());
        assert!(matches!(&error, Error::MissingFile { file, .. } if file == name), "{name}: {error}");
    }
}

#[test]
fn a_pickle_of_anything_but_tensors_is_refused_with_what_it_is() {
    let error = damaged(|folder| {
        std::fs::remove_file(folder.join("model.safetensors")).unwrap();
        write(folder, "pytorch_model.bin", b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.");
    });
    assert!(
        matches!(&error, Error::InvalidPickle { file, .. } if file.ends_with("pytorch_model.bin")),
        "{error}"
    );
    assert!(error.to_string().contains("nothing of it was executed"), "{error}");
    // Safetensors by another name are no pickle either.
    let error = damaged(|folder| {
        std::fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap();
    });
    assert!(matches!(error, Error::InvalidPickle { .. }), "{error}");
}

#[test]
fn a_pickle_is_refused_by_every_name_that_it_has() {
    for name in ["model.pt", "weights.pth", "last.ckpt", "Model.PKL", "consolidated.00.pth"] {
        let renamed = |folder: &std::path::Path| {
            std::fs::rename(folder.join("model.safetensors"), folder.join(name)).unwrap();
        };
        let is_named = |error: &Error| matches!(error, Error::PickleOnly { file, .. } if file == name);
        let error = damaged(renamed);
        assert!(is_named(&error) && error.to_string().contains("run any code"), "{name}: {error}");
        // As those who publish one alone do.
        let error = damaged(|folder| {
            renamed(folder);
            std::fs::remove_file(folder.join("config.json")).unwrap();
        });
        assert!(is_named(&error), "{name}: {error}");
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), name, b"any");
        let error = TextEmbeddingModel::load(Source::directory(folder.path().join(name))).err().unwrap();
        assert!(is_named(&error), "{name}: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "pytorch_model.bin", b"any");
    let error =
        TextEmbeddingModel::load(Source::directory(folder.path().join("pytorch_model.bin"))).err().unwrap();
    assert!(matches!(error, Error::PickleOnly { .. }), "{error}");
}

#[test]
fn a_file_that_is_no_pickle_of_weights_is_not_reported_as_one() {
    // What a training leaves, and one beside safetensors, of which another part is missing.
    let error = damaged(|folder| {
        std::fs::remove_file(folder.join("model.safetensors")).unwrap();
        write(folder, "optimizer.pt", b"any");
    });
    assert!(matches!(&error, Error::MissingFile { file, .. } if file == "model.safetensors"), "{error}");
    let error = damaged(|folder| {
        std::fs::remove_file(folder.join("config.json")).unwrap();
        write(folder, "model.pt", b"any");
    });
    assert!(matches!(&error, Error::MissingFile { file, .. } if file == "config.json"), "{error}");
}

#[test]
fn a_truncated_weight_file() {
    let whole = TinyModel::new().safetensors();
    for length in [0, 5, 100, whole.len() / 2, whole.len() - 1] {
        let error = damaged(|folder| write(folder, "model.safetensors", &whole[..length]));
        assert!(matches!(error, Error::TruncatedWeights { .. }), "{length} bytes: {error}");
    }
}

#[test]
fn a_corrupt_weight_file() {
    let header = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let cases = [
        vec![0xff; 200],
        header("no json at all"),
        header(r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}"#),
        header(r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}"#),
        header(r#"{"a": {"dtype": "F32", "shape": [4611686018427387904, 8], "data_offsets": [0, 0]}}"#),
        header(
            r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [18446744073709551611, 18446744073709551615]}}"#,
        ),
        header(r#"{"a": {"shape": [2]}}"#),
        header("[]"),
    ];
    for (index, bytes) in cases.into_iter().enumerate() {
        let error = damaged(|folder| write(folder, "model.safetensors", &bytes));
        assert!(matches!(error, Error::CorruptWeights { .. }), "case {index}: {error}");
    }
}

#[test]
fn a_configuration_that_does_not_match_the_weights() {
    let error = changed(|model| model.config["intermediate_size"] = json!(32));
    let Error::ShapeMismatch { tensor, expected, found } = &error else { panic!("{error}") };
    assert_eq!(tensor, "encoder.layer.0.intermediate.dense.weight");
    assert_eq!((expected.as_slice(), found.as_slice()), (&[32, 8][..], &[16, 8][..]));

    let error = changed(|model| model.config["num_hidden_layers"] = json!(2));
    let expected = "encoder.layer.1.attention.self.query.weight";
    assert!(matches!(&error, Error::MissingTensor { tensor } if tensor == expected), "{error}");

    for (setting, value) in [("num_attention_heads", 3), ("num_attention_heads", 0), ("hidden_size", 0)] {
        let error = changed(|model| model.config[setting] = json!(value));
        assert!(matches!(error, Error::InvalidConfig { .. }), "{setting}: {error}");
    }
    for setting in ["vocab_size", "hidden_size", "max_position_embeddings", "type_vocab_size"] {
        let error = changed(|model| model.config[setting] = json!(usize::MAX / 2 * 2));
        assert!(!matches!(error, Error::Compute(_)), "{setting}: {error}");
    }
}

#[test]
fn a_tokenizer_that_does_not_match_the_weights() {
    let mut model = TinyModel::new();
    model.config["vocab_size"] = json!(4);
    let rows = Entry::new(&[4, 8], std::iter::repeat_n(0.5, 32));
    model.tensors.insert("embeddings.word_embeddings.weight".to_owned(), rows);
    let model = load(&model.write()).unwrap();
    assert!(model.embed(&["unheard"]).is_ok(), "its tokens have rows");
    let error = model.embed(&["cat"]).unwrap_err();
    assert!(matches!(&error, Error::InvalidInput(reason) if reason.contains("cat")), "{error}");
    let error = damaged(|folder| write(folder, "tokenizer.json", b"{}"));
    assert!(matches!(error, Error::InvalidTokenizer { .. }), "{error}");
    let error = damaged(|folder| write(folder, "sentence_bert_config.json", br#"{"max_seq_length": 2}"#));
    assert!(matches!(error, Error::InvalidTokenizer { .. }), "{error}");
}

#[test]
fn a_tokenizer_that_panics_is_refused_or_fails_the_request() {
    let with = |name: &str, part: serde_json::Value| {
        let folder = TinyModel::new().write();
        let file = std::fs::read(folder.path().join("tokenizer.json")).unwrap();
        let mut tokenizer: serde_json::Value = serde_json::from_slice(&file).unwrap();
        tokenizer[name] = part;
        write(folder.path(), "tokenizer.json", tokenizer.to_string().as_bytes());
        // Of a class of its own, BERT's would have its parts in place of these.
        write(folder.path(), "tokenizer_config.json", br#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#);
        load(&folder)
    };
    let error = with("pre_tokenizer", json!({"type": "FixedLength", "length": 0})).err().unwrap();
    assert!(matches!(error, Error::InvalidTokenizer { .. }), "{error}");
    let map = json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="});
    let error = with("normalizer", map).unwrap().embed(&["cat"]).unwrap_err();
    assert!(matches!(error, Error::InvalidInput(_)), "{error}");
}

#[test]
fn settings_that_are_not_finite_or_out_of_range() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = changed(|model| {
            let tensor = model.tensors.get_mut("encoder.layer.0.output.dense.bias").unwrap();
            tensor.bytes[12..16].copy_from_slice(&value.to_le_bytes());
        });
        assert!(matches!(error, Error::NotFinite { index: 3, .. }), "{error}");
    }
    let error = changed(|model| {
        let tensor = model.tensors.get_mut("encoder.layer.0.output.dense.bias").unwrap();
        (tensor.dtype, tensor.bytes) = ("I8", vec![0; 8]);
    });
    assert!(matches!(error, Error::UnsupportedNumbers { .. }), "{error}");
}

#[test]
fn an_architecture_that_is_not_supported() {
    let error = changed(|model| model.config["model_type"] = json!("mamba"));
    assert!(matches!(error, Error::UnsupportedArchitecture { .. }), "{error}");
    let words = error.to_string();
    assert!(words.contains("mamba") && words.contains("bert"), "{words}");
    for (setting, value) in [("hidden_act", "swoosh"), ("position_embedding_type", "relative")] {
        let error = changed(|model| model.config[setting] = json!(value));
        assert!(matches!(error, Error::UnsupportedSetting { .. }), "{setting}: {error}");
    }
}

/// Loads a model for each capability, and tells how it failed.
type Load = fn(Source) -> Option<Error>;

const LOADS: [(&str, Load); 5] = [
    ("text embedding", |source| TextEmbeddingModel::load(source).err()),
    ("image embedding", |source| ImageEmbeddingModel::load(source).err()),
    ("vision", |source| VisionModel::load(source).err()),
    ("text to text", |source| TextGenerationModel::load(source).err()),
    ("text to image", |source| TextToImageModel::load(source).err()),
];

/// The model is refused for all of these capabilities, by what it is called and with what is supported.
fn assert_of_another_kind(source: &Source, name: &str, capabilities: &[&str]) {
    for (capability, load) in LOADS.iter().filter(|(capability, _)| capabilities.contains(capability)) {
        let error = load(source.clone()).unwrap();
        let Error::UnsupportedArchitecture { found, capability: asked, supported } = &error else {
            panic!("{capability}: {error}")
        };
        assert_eq!((found.as_str(), &**asked), (name, *capability));
        assert!(!supported.is_empty() && error.to_string().contains(&*supported[0]), "{error}");
    }
}

#[test]
fn a_model_of_another_kind_is_told_with_what_is_supported() {
    let fixture = |name: &str| common::root().join("tests/fixtures").join(name);
    let all = LOADS.map(|(capability, _)| capability);
    let [embedding, images, vision, writing, painting] = all;

    let pipeline = Source::directory(fixture("text_to_image/sd15"));
    assert_of_another_kind(&pipeline, "StableDiffusionPipeline", &[embedding, images, vision, writing]);
    // A part of a pipeline has a `config.json` of its own.
    let part = Source::directory(fixture("text_to_image/sd15/unet"));
    assert_of_another_kind(&part, "UNet2DConditionModel", &all);
    let transformer = Source::directory(fixture("text_to_text/llama"));
    assert_of_another_kind(&transformer, "llama", &[images, vision, painting]);

    let folder = fixture("text_to_text/gguf_llama");
    let file = Source::directory(&folder).gguf("tiny-llama-Q8_0.gguf");
    for gguf in [Source::directory(&folder), file] {
        assert_of_another_kind(&gguf, "llama in GGUF", &[embedding, images, painting]);
        // Half of a vision model, as far as can be seen.
        let error = VisionModel::load(gguf).err().unwrap();
        assert!(matches!(&error, Error::MissingFile { file, .. } if file.contains("mmproj")), "{error}");
    }
    let broken = tempfile::tempdir().unwrap();
    write(broken.path(), "model.gguf", b"no GGUF");
    let gguf = Source::directory(broken.path());
    assert_of_another_kind(&gguf, "(a GGUF file)", &[embedding, images, painting]);
    // The control: what reads GGUF says what is wrong with it.
    let error = TextGenerationModel::load(gguf).err().unwrap();
    assert!(matches!(error, Error::InvalidGguf { .. }), "{error}");
}

#[test]
fn configurations_that_are_no_json_or_lead_out_of_the_model() {
    for name in ["config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"] {
        let error = damaged(|folder| write(folder, name, b"{ not json"));
        assert!(matches!(error, Error::InvalidConfig { .. }), "{name}: {error}");
    }
    let error = damaged(|folder| {
        let outside = json!([
            {"path": "", "type": "models.Transformer"}, {"path": "../../etc", "type": "models.Pooling"}
        ]);
        write(folder, "modules.json", outside.to_string().as_bytes());
    });
    assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
}

#[test]
fn a_text_beyond_the_longest_input_is_cut() {
    let model = load(&TinyModel::new().write()).unwrap();
    let long = "cat dog ".repeat(1000);
    assert_eq!(model.count_tokens(&long).unwrap(), 16);
    assert_eq!(model.embed(&[&long]).unwrap(), model.embed(&["cat dog ".repeat(7)]).unwrap());
}

#[cfg(unix)]
#[test]
fn a_gguf_file_of_a_directory_is_no_link_that_leads_out_of_it() {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("model");
    std::fs::create_dir(&model).unwrap();
    write(root.path(), "other.gguf", b"no GGUF");
    write(&model, "own.gguf", b"no GGUF");
    std::os::unix::fs::symlink("../other.gguf", model.join("link.gguf")).unwrap();
    let of = |file: &str| Source::directory(&model).gguf(file);
    let load = |source: Source| TextGenerationModel::load(source).err().unwrap();
    for file in ["link.gguf", "../other.gguf"] {
        assert!(matches!(load(of(file)), Error::UnreadableFile { .. }), "{file}");
        assert!(!matches!(load(of(file).follow_links()), Error::UnreadableFile { .. }), "{file}");
    }
    assert!(!matches!(load(of("own.gguf")), Error::UnreadableFile { .. }));
    assert!(matches!(load(of("none.gguf")), Error::NoSuchFile { .. }));
    assert_eq!(of("own.gguf").to_string(), model.join("own.gguf").display().to_string());
}
