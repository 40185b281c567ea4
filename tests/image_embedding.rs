//! Image embedding gives the vectors that transformers gives, for images and for texts, alone and in any
//! batch; bad models are refused with the reason, and a bad image fails alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use candle_actors::{
    CallOptions, EmbedImages, Engine, Error, ImageEmbeddingModel, ImageSource, Picture, PoolConfig, Source,
    StandaloneModel, WhenFull, model_actors,
};
use common::folders::families_of;
use common::photographs::photograph;
use common::{difference, root, similarity};
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

const TOLERANCE: f32 = 1e-4;
/// With another batch around it.
const BATCH_TOLERANCE: f32 = 1e-5;

#[derive(Deserialize)]
struct Expected {
    images: Vec<ImageCase>,
    texts: Vec<TextCase>,
}

#[derive(Deserialize)]
struct ImageCase {
    photograph: String,
    features: Vec<f32>,
}

#[derive(Deserialize)]
struct TextCase {
    text: String,
    features: Vec<f32>,
}

fn fixture(family: &str) -> PathBuf {
    root().join("tests/fixtures/image_embedding").join(family)
}

fn expected(family: &str) -> Expected {
    serde_json::from_slice(&std::fs::read(fixture(family).join("expected.json")).unwrap()).unwrap()
}

fn load(family: &str) -> ImageEmbeddingModel {
    ImageEmbeddingModel::load(Source::directory(fixture(family))).unwrap()
}

fn unit(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter().map(|x| x / length).collect()
}

fn largest<'a>(pairs: impl Iterator<Item = (&'a Vec<f32>, &'a Vec<f32>)>) -> f32 {
    pairs.map(|(left, right)| difference(left, right)).fold(0.0, f32::max)
}

/// Compares raw and unit vectors, made alone, together, and in threes from the end, with the references and
/// with each other.
fn compare<T: Clone>(
    what: &str,
    inputs: &[T],
    references: &[Vec<f32>],
    features: impl Fn(&[T]) -> Vec<Vec<f32>>,
    embed: impl Fn(&[T]) -> Vec<Vec<f32>>,
) {
    let alone: Vec<Vec<f32>> =
        inputs.iter().flat_map(|input| features(std::slice::from_ref(input))).collect();
    let together = features(inputs);
    let mut reversed: Vec<T> = inputs.to_vec();
    reversed.reverse();
    let mut by_threes: Vec<Vec<f32>> = reversed.chunks(3).flat_map(&features).collect();
    by_threes.reverse();
    let units: Vec<Vec<f32>> = references.iter().map(|vector| unit(vector)).collect();
    let raw = largest(references.iter().zip(&alone));
    let normed = largest(units.iter().zip(&embed(inputs)));
    let batched = largest(alone.iter().zip(&together)).max(largest(alone.iter().zip(&by_threes)));
    println!(
        "{what}: {} vectors, largest difference {raw:.2e} raw, {normed:.2e} of length 1, {batched:.2e} in a batch",
        inputs.len()
    );
    assert_eq!(together.len(), references.len());
    assert!(raw <= TOLERANCE && normed <= TOLERANCE && batched <= BATCH_TOLERANCE, "{what}");
}

fn compare_family(family: &str) {
    let (model, expected) = (load(family), expected(family));
    let pictures: Vec<Picture> = expected.images.iter().map(|case| photograph(&case.photograph)).collect();
    let references: Vec<Vec<f32>> = expected.images.iter().map(|case| case.features.clone()).collect();
    let any = expected.images.first().map(|case| &case.features);
    assert_eq!(
        Some(model.dimensions()),
        any.or(expected.texts.first().map(|case| &case.features)).map(Vec::len)
    );
    assert_eq!(model.has_image_side(), !expected.images.is_empty());
    if expected.images.is_empty() {
        let error = model.embed_images(&[photograph("cat.png")]).unwrap_err();
        assert!(matches!(&error, Error::InvalidInput(reason) if reason.contains("image side")), "{error}");
    } else {
        compare(
            &format!("{family}, images"),
            &pictures,
            &references,
            |pictures| model.image_features(pictures).unwrap(),
            |pictures| model.embed_images(pictures).unwrap(),
        );
    }
    assert_eq!(model.has_text_side(), !expected.texts.is_empty());
    if expected.texts.is_empty() {
        let error = model.embed_texts(&["a cat"]).unwrap_err();
        assert!(matches!(&error, Error::InvalidInput(reason) if reason.contains("text side")), "{error}");
        return;
    }
    let texts: Vec<String> = expected.texts.iter().map(|case| case.text.clone()).collect();
    let references: Vec<Vec<f32>> = expected.texts.iter().map(|case| case.features.clone()).collect();
    compare(
        &format!("{family}, texts"),
        &texts,
        &references,
        |texts| model.text_features(texts).unwrap(),
        |texts| model.embed_texts(texts).unwrap(),
    );
}

/// `clip_vision` and `clip_text` are towers that are published alone; `siglip2` has Gemma's tokenizer, which tells cases
/// apart, and `siglip2_naflex` images of any proportions and texts in lower case; `clip_legacy` has half precision in shards, a patch that does not divide the image, exact GELU, and the
/// settings of old repositories; `dinov2_giant` has SwiGLU, brain floats, and images that each have sides of
/// their own.
#[test]
fn every_family_agrees_with_its_references() {
    families_of("image_embedding").iter().for_each(|family| compare_family(family));
}

#[test]
fn vectors_have_the_length_one_and_clones_give_the_same() {
    for family in ["clip", "siglip", "dinov2"] {
        let model = load(family);
        let picture = photograph("cat.png");
        let vectors = model.embed_images(std::slice::from_ref(&picture)).unwrap();
        assert!((vectors[0].iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        assert_eq!(model.try_clone().unwrap().embed_images(&[picture]).unwrap(), vectors);
    }
}

/// A copy of a fixture with changed settings.
fn changed(family: &str, file: &str, change: impl FnOnce(&mut Value)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(family)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let path = folder.path().join(file);
    let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(&path, value.to_string()).unwrap();
    folder
}

fn error_of(folder: &Path) -> Error {
    match ImageEmbeddingModel::load(Source::directory(folder)) {
        Ok(_) => panic!("{} was loaded", folder.display()),
        Err(error) => error,
    }
}

#[test]
fn impossible_configurations_are_refused() {
    let huge = u64::MAX;
    let cases = [
        ("clip", "/vision_config/patch_size", json!(0)),
        ("clip", "/vision_config/patch_size", json!(33)),
        ("clip", "/vision_config/image_size", json!(0)),
        ("clip", "/vision_config/image_size", json!(huge)),
        ("clip", "/vision_config/num_attention_heads", json!(0)),
        ("clip", "/vision_config/num_attention_heads", json!(5)),
        ("clip", "/vision_config/hidden_size", json!(huge)),
        ("clip", "/vision_config/intermediate_size", json!(1 << 20)),
        ("clip", "/vision_config/num_hidden_layers", json!(huge)),
        ("clip", "/vision_config/num_channels", json!(4)),
        ("clip", "/vision_config/hidden_act", json!("no such")),
        ("clip", "/vision_config/layer_norm_eps", json!("small")),
        ("clip", "/text_config/vocab_size", json!(0)),
        ("clip", "/text_config/vocab_size", json!(huge)),
        ("clip", "/text_config/vocab_size", json!(100)),
        ("clip", "/text_config/num_attention_heads", json!(0)),
        ("clip", "/text_config/max_position_embeddings", json!(0)),
        ("clip", "/text_config/max_position_embeddings", json!(1_000_000)),
        ("clip", "/text_config/eos_token_id", json!(100_000)),
        ("clip", "/projection_dim", json!(0)),
        ("clip", "/projection_dim", json!(-5)),
        ("siglip", "/vision_config/num_attention_heads", json!(0)),
        ("siglip", "/vision_config/vision_use_head", json!(false)),
        ("siglip", "/text_config/projection_size", json!(7)),
        ("siglip", "/text_config/projection_size", json!(huge)),
        ("clip_vision", "/projection_dim", json!(0)),
        ("clip_vision", "/image_size", json!(0)),
        ("clip_text", "/projection_dim", json!(7)),
        ("clip_text", "/num_attention_heads", json!(5)),
        ("siglip2_naflex", "/vision_config/num_patches", json!(0)),
        ("siglip2_naflex", "/vision_config/num_patches", json!(26)),
        ("siglip2_naflex", "/vision_config/num_patches", json!(huge)),
        ("siglip2_naflex", "/vision_config/patch_size", json!(0)),
        ("siglip2_naflex", "/vision_config/patch_size", json!(huge)),
        ("siglip2_naflex", "/vision_config/patch_size", json!(8)),
        ("siglip2_naflex", "/vision_config/vision_use_head", json!(false)),
        ("dinov2", "/patch_size", json!(0)),
        ("dinov2", "/patch_size", json!([7, 8])),
        ("dinov2", "/mlp_ratio", json!(1e300)),
        ("dinov2", "/mlp_ratio", json!(0)),
        ("dinov2", "/mlp_ratio", json!(-1)),
        ("dinov2", "/num_attention_heads", json!(0)),
        ("dinov2", "/image_size", json!(1_000_000)),
        ("dinov2_with_registers", "/num_register_tokens", json!(huge)),
        ("dinov2_with_registers", "/num_register_tokens", json!(5)),
        ("dinov2_giant", "/hidden_size", json!(huge)),
        ("dinov3", "/patch_size", json!(0)),
        ("dinov3", "/patch_size", json!(huge)),
        ("dinov3", "/num_channels", json!(4)),
        ("dinov3", "/num_attention_heads", json!(0)),
        ("dinov3", "/num_attention_heads", json!(8)),
        ("dinov3", "/rope_theta", json!(1.0)),
        ("dinov3", "/rope_theta", json!("large")),
        ("dinov3", "/key_bias", json!(true)),
        ("dinov3", "/value_bias", json!(false)),
        ("dinov3", "/num_register_tokens", json!(5)),
        ("dinov3", "/num_register_tokens", json!(huge)),
        ("dinov3", "/use_gated_mlp", json!(true)),
        ("dinov3_gated", "/intermediate_size", json!(huge)),
    ];
    for (family, setting, value) in cases {
        let folder =
            changed(family, "config.json", |config| *config.pointer_mut(setting).unwrap() = value.clone());
        let error = error_of(folder.path());
        let is_typed = matches!(
            error,
            Error::InvalidConfig { .. }
                | Error::UnsupportedSetting { .. }
                | Error::ShapeMismatch { .. }
                | Error::MissingTensor { .. }
                | Error::InvalidTokenizer { .. }
        );
        assert!(is_typed, "{family} {setting} {value}: {error:?}");
    }
}

#[test]
fn impossible_configurations_of_open_clip_are_refused() {
    let cases = [
        ("/model_cfg/embed_dim", json!(0)),
        ("/model_cfg/embed_dim", json!(25)),
        ("/model_cfg/vision_cfg/width", json!(50)),
        ("/model_cfg/vision_cfg/head_width", json!(0)),
        ("/model_cfg/vision_cfg/image_size", json!(7)),
        ("/model_cfg/vision_cfg/mlp_ratio", json!(1e300)),
        ("/model_cfg/vision_cfg/mlp_ratio", json!(-1)),
        ("/model_cfg/vision_cfg/layers", json!([3, 4, 6, 3])),
        ("/model_cfg/vision_cfg/layers", json!(2)),
        ("/model_cfg/vision_cfg/pool_type", json!("avg")),
        ("/model_cfg/vision_cfg/ls_init_value", json!(1e-5)),
        ("/model_cfg/vision_cfg/attentional_pool", json!(true)),
        ("/model_cfg/vision_cfg/timm_model_name", json!("eva02_base_patch16_clip_224")),
        ("/model_cfg/vision_cfg/timm_model_name", json!("fastvit_mci3")),
        ("/model_cfg/text_cfg/heads", json!(5)),
        ("/model_cfg/text_cfg/context_length", json!(17)),
        ("/model_cfg/text_cfg/vocab_size", json!(u64::MAX)),
        ("/model_cfg/text_cfg/pool_type", json!("eos")),
        ("/model_cfg/text_cfg/hf_model_name", json!("xlm-roberta-base")),
        ("/model_cfg/text_cfg/hf_tokenizer_name", json!("timm/ViT-B-16-SigLIP")),
        ("/preprocess_cfg/size", json!(64)),
        ("/preprocess_cfg/mode", json!("L")),
        ("/preprocess_cfg/interpolation", json!("lanczos")),
        ("/preprocess_cfg/resize_mode", json!("longest")),
        ("/preprocess_cfg/std", json!([0.0, 1.0, 1.0])),
    ];
    for (setting, value) in cases {
        let folder = changed("open_clip", "open_clip_config.json", |config| {
            let (table, name) = setting.rsplit_once('/').unwrap();
            config.pointer_mut(table).unwrap()[name] = value.clone();
        });
        let error = error_of(folder.path());
        let is_typed = matches!(
            error,
            Error::InvalidConfig { .. }
                | Error::UnsupportedSetting { .. }
                | Error::UnreadSetting { .. }
                | Error::ShapeMismatch { .. }
                | Error::MissingTensor { .. }
                | Error::UnreadTensor { .. }
        );
        assert!(is_typed, "{setting} {value}: {error:?}");
    }
}

/// Where a repository has the files of both, those of transformers count, as they name what they are.
#[test]
fn the_files_of_open_clip_count_where_no_others_are() {
    let folder = changed("open_clip", "open_clip_config.json", |_| {});
    for file in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        std::fs::copy(fixture("dinov2").join(file), folder.path().join(file)).unwrap();
    }
    let model = ImageEmbeddingModel::load(Source::directory(folder.path())).unwrap();
    assert!(!model.has_text_side());
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    let model = ImageEmbeddingModel::load(Source::directory(folder.path())).unwrap();
    assert!(model.has_text_side());
    std::fs::remove_file(folder.path().join("open_clip_config.json")).unwrap();
    let error = error_of(folder.path());
    assert!(matches!(&error, Error::MissingFile { file, .. } if file == "config.json"), "{error}");
}

#[test]
fn a_model_and_its_preprocessing_must_fit() {
    let folder = changed("clip", "preprocessor_config.json", |config| {
        config["crop_size"] = json!({"height": 31, "width": 32});
    });
    let error = error_of(folder.path());
    assert!(matches!(&error, Error::InvalidConfig { reason, .. } if reason.contains("32x32")), "{error}");
    for (setting, value) in [("patch_size", json!(8)), ("do_resize", json!(false))] {
        let folder =
            changed("siglip2_naflex", "preprocessor_config.json", |config| config[setting] = value.clone());
        let error = error_of(folder.path());
        assert!(matches!(&error, Error::InvalidConfig { reason, .. } if reason.contains("7x7")), "{error}");
    }
    std::fs::remove_file(folder.path().join("preprocessor_config.json")).unwrap();
    let error = error_of(folder.path());
    assert!(
        matches!(&error, Error::MissingFile { file, .. } if file == "preprocessor_config.json"),
        "{error}"
    );
}

/// As transformers reads a repository with both files.
#[test]
fn the_newer_file_of_an_image_processor_counts_where_it_has_the_settings() {
    let mut own = Value::Null;
    let folder = changed("clip", "preprocessor_config.json", |config| {
        own = config.clone();
        config["image_mean"] = json!([0.9, 0.9, 0.9]);
    });
    let embed = |folder: &Path| {
        let model = ImageEmbeddingModel::load(Source::directory(folder)).unwrap();
        model.embed_images(&[photograph("cat.png")]).unwrap()
    };
    let (right, other) = (embed(&fixture("clip")), embed(folder.path()));
    assert!(other != right, "the control");
    let newer = folder.path().join("processor_config.json");
    std::fs::write(&newer, json!({"processor_class": "CLIPProcessor"}).to_string()).unwrap();
    assert_eq!(embed(folder.path()), other);
    std::fs::write(&newer, json!({"image_processor": own}).to_string()).unwrap();
    assert_eq!(embed(folder.path()), right);
}

/// A tower of CLIP that is published without its projection has no place in the space of images and texts.
#[test]
fn a_tower_without_its_projection_is_refused() {
    for (family, projection) in [("clip_vision", "visual_projection"), ("clip_text", "text_projection")] {
        let folder = changed(family, "config.json", |_| {});
        let path = folder.path().join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
        let projection = format!("{projection}.weight");
        tensors.remove(&projection).unwrap();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let error = error_of(folder.path());
        let named = matches!(&error, Error::MissingTensor { tensor, .. } if tensor.contains(&projection));
        assert!(named, "{error:?}");
    }
}

#[test]
fn an_unknown_architecture_is_told_with_what_is_supported() {
    let folder = changed("clip", "config.json", |config| {
        config["model_type"] = json!("no_such");
        config["architectures"] = json!(["NoSuchModel"]);
    });
    let message = error_of(folder.path()).to_string();
    for name in ["no_such", "image embedding", "clip", "siglip", "dinov2", "dinov2_with_registers"] {
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn files_that_are_no_images_are_refused() {
    let model = load("clip");
    for picture in [
        Picture::new(0, 0, Vec::new()),
        Picture::new(5, 5, vec![0; 74]),
        Picture::new(usize::MAX, 3, vec![0; 9]),
    ] {
        assert!(matches!(model.embed_images(&[picture]), Err(Error::InvalidInput(_))));
    }
    // Twice as long as a resized image may be.
    let strip = Picture::new(300, 1, vec![7; 900]);
    assert!(matches!(model.embed_images(&[strip]), Err(Error::InvalidInput(_))));
    // As small as can be.
    let dot = Picture::new(1, 1, vec![7; 3]);
    assert_eq!(model.embed_images(&[dot]).unwrap()[0].len(), model.dimensions());
}

#[test]
fn an_image_of_too_many_patches_is_refused_and_the_largest_is_in_the_footprint() {
    let folder = changed("dinov2", "preprocessor_config.json", |settings| {
        settings["do_center_crop"] = false.into();
        settings["do_resize"] = false.into();
    });
    let model = ImageEmbeddingModel::load(Source::directory(folder.path())).unwrap();
    let (width, height) = (7 * 128, 7 * 128);
    let picture = Picture::new(width, height, vec![7; width * height * 3]);
    let message = model.embed_images(&[picture]).unwrap_err().to_string();
    assert!(message.contains("16385") && message.contains("16384"), "{message}");
    // Rows of 48 numbers: what goes into a layer, its norm, and queries, keys, values and what comes of them.
    assert!(model.footprint().per_worker.0 >= 16_384 * 7 * 48 * 4);
}

#[test]
fn different_images_have_different_vectors() {
    let model = load("siglip");
    let vectors = model.embed_images(&[photograph("cat.png"), photograph("sky.png")]).unwrap();
    assert!(similarity(&vectors[0], &vectors[1]) < 0.99);
}

async fn engine(families: &[&str]) -> Engine {
    let mut builder = Engine::builder();
    for family in families {
        builder = builder.image_embedding(*family, Source::directory(fixture(family)));
    }
    builder.start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_input_gives_the_reference_through_the_actors() {
    let engine = engine(&["clip"]).await;
    let clip = engine.image_embedding("clip").unwrap();
    let expected = expected("clip");
    let case = expected.images.iter().find(|case| case.photograph == "face.png").unwrap();
    let path = common::photographs::path("face.png");
    let bytes = std::fs::read(&path).unwrap();
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &bytes);
    for source in [
        ImageSource::Path(path),
        ImageSource::Bytes(bytes),
        ImageSource::Base64(base64),
        ImageSource::Picture(photograph("face.png")),
    ] {
        // A worker takes the pixels of a client without this crate's handles, too.
        let picture = ImageSource::Picture(engine.images().picture(source.clone()).await.unwrap());
        let request = EmbedImages::images([picture]);
        let raw = clip.model().call(request, CallOptions::default()).await.unwrap();
        let vector = clip.embed_image(source.clone()).await.unwrap();
        assert_eq!(raw.vectors[0], vector);
        let impatient = clip.clone().when_full(WhenFull::Fail);
        assert_eq!(impatient.embed_image(source).await.unwrap(), vector);
        assert!(difference(&vector, &unit(&case.features)) <= TOLERANCE);
    }
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_batches_come_back_in_order() {
    let engine = engine(&["siglip"]).await;
    let siglip = engine.image_embedding("siglip").unwrap();
    let expected = expected("siglip");
    let images = expected.images.iter().cycle().take(50);
    let sources = images.clone().map(|case| ImageSource::Path(common::photographs::path(&case.photograph)));
    let vectors = siglip.embed_images(sources.collect::<Vec<_>>()).await.unwrap();
    assert_eq!(vectors.len(), 50);
    for (case, vector) in images.zip(&vectors) {
        assert!(difference(vector, &unit(&case.features)) <= TOLERANCE);
    }
    let texts = expected.texts.iter().cycle().take(100);
    let vectors = siglip.embed_texts(texts.clone().map(|case| case.text.clone())).await.unwrap();
    assert_eq!(vectors.len(), 100);
    for (case, vector) in texts.zip(&vectors) {
        assert!(difference(vector, &unit(&case.features)) <= TOLERANCE);
    }
    for empty in [siglip.embed_images([]).await, siglip.embed_texts(Vec::<String>::new()).await] {
        assert!(matches!(empty, Err(Error::InvalidInput(_))));
    }
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_image_fails_only_its_own_request() {
    // One worker, so that all that arrives while it loads shares its batches.
    let pool = PoolConfig::default().with_max_workers(1).with_cold_start_workers(1);
    let engine = Engine::builder()
        .pool_config(pool)
        .image_embedding("dinov2", Source::directory(fixture("dinov2")))
        .start()
        .await
        .unwrap();
    let dinov2 = engine.image_embedding("dinov2").unwrap();
    let call = |source: ImageSource| {
        let good = ImageSource::Picture(photograph("cat.png"));
        dinov2.model().call(EmbedImages::images([good, source]), CallOptions::default())
    };
    let bad = [
        ImageSource::Bytes(b"no image at all".to_vec()),
        ImageSource::Url("https://example.org/cat.png".to_owned()),
        ImageSource::Picture(Picture::new(9, 9, vec![0; 3])),
        // Its longer side would become gigantic.
        ImageSource::Picture(Picture::new(2000, 2, vec![0; 12_000])),
    ];
    let good = (0..4).map(|_| call(ImageSource::Picture(photograph("sky.png"))));
    let (bad, good) = tokio::join!(join_all(bad.into_iter().map(call)), join_all(good));
    for answer in bad {
        let error = answer.unwrap_err();
        assert!(matches!(error, model_actors::Error::InvalidInput { .. }), "{error:?}");
    }
    let expected = expected("dinov2");
    for answer in good {
        let vectors = answer.unwrap().vectors;
        for (name, vector) in ["cat.png", "sky.png"].iter().zip(&vectors) {
            let case = expected.images.iter().find(|case| case.photograph == *name).unwrap();
            assert!(difference(vector, &unit(&case.features)) <= TOLERANCE);
        }
    }
    let error = dinov2.embed_text("a cat").await.unwrap_err();
    assert!(matches!(error, Error::InvalidInput(_)), "{error}");
    assert!(error.to_string().contains("text side"), "{error}");
    assert!(engine.shutdown().await.is_clean());
}
