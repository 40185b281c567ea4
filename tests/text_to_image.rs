//! Text to image through the public interface: images agree with the reference from the same noise, are the
//! same alone and in a batch, and are repeatable by their seed; bad requests and repositories are refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::path::PathBuf;

use candle_actors::{
    Engine, Error, ImagePainter, PaintImage, Picture, PoolConfig, Source, StandaloneModel, TextToImageModel,
};
use candle_core::{Device, Tensor};
use common::folders::{copied, families_of};
use common::root;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

#[derive(Deserialize)]
struct Expected {
    prompt: String,
    loops: Vec<Loop>,
}

#[derive(Deserialize)]
struct Loop {
    name: String,
    scheduler: Option<String>,
    steps: usize,
    size: (usize, usize),
    guidance: f32,
    negative_prompt: Option<String>,
    picture: bool,
}

fn fixture(family: &str) -> PathBuf {
    root().join("tests/fixtures/text_to_image").join(family)
}

/// Families with an `expected.json`; `flow_models.rs` compares the others.
fn families() -> impl Iterator<Item = String> {
    families_of("text_to_image").into_iter().filter(|family| fixture(family).join("expected.json").exists())
}

fn load(family: &str) -> TextToImageModel {
    TextToImageModel::load(Source::directory(fixture(family))).unwrap()
}

fn request(prompt: &str, seed: u64) -> PaintImage {
    PaintImage::default().with_prompt(prompt).with_seed(seed).with_steps(3)
}

/// Largest difference of two images, where 1 is that of black and white.
fn difference(picture: &Picture, reference: &Tensor) -> f32 {
    assert_eq!(reference.dims(), [1, 3, picture.height, picture.width]);
    let reference = reference.permute((0, 2, 3, 1)).unwrap().flatten_all().unwrap();
    let reference: Vec<u8> = reference.to_vec1().unwrap();
    let pairs = picture.rgb.iter().zip(&reference);
    f32::from(pairs.map(|(ours, theirs)| ours.abs_diff(*theirs)).max().unwrap()) / 255.0
}

#[test]
fn images_from_the_same_noise_are_those_of_the_reference() {
    for family in families() {
        let expected = std::fs::read(fixture(&family).join("expected.json")).unwrap();
        let expected: Expected = serde_json::from_slice(&expected).unwrap();
        let tensors = fixture(&family).join("expected.safetensors");
        let tensors: HashMap<String, Tensor> = candle_core::safetensors::load(tensors, &Device::Cpu).unwrap();
        let noise: Vec<f32> = tensors["noise"].flatten_all().unwrap().to_vec1().unwrap();
        let (model, mut largest) = (load(&family), 0.0f32);
        for run in expected.loops.iter().filter(|run| run.picture) {
            let request = PaintImage::default()
                .with_prompt(expected.prompt.clone())
                .with_negative_prompt(run.negative_prompt.clone())
                .with_size(run.size)
                .with_steps(run.steps)
                .with_guidance(run.guidance)
                .with_scheduler(run.scheduler.clone());
            let mut steps = Vec::new();
            let picture =
                model.paint_from_noise(&request, &noise, |step| steps.push((step.step, step.of))).unwrap();
            // Some schedules call the model once more than there are steps.
            let of = steps.len();
            assert!((run.steps..=run.steps + 1).contains(&of));
            assert!(steps.iter().enumerate().all(|(index, step)| *step == (index + 1, of)));
            largest = largest.max(difference(&picture, &tensors[&format!("{}.picture", run.name)]));
        }
        println!("{family}: largest difference of a picture {largest:.4}");
        assert!(largest < 0.01, "{family}: {largest}");
    }
}

#[test]
fn a_distilled_model_takes_few_steps_by_default() {
    for (family, few) in [("sdxl_turbo", 1), ("sd_turbo", 1), ("lcm", 4)] {
        let mut steps = 0;
        let model = load(family);
        let request = request("a cat", 1).with_steps(None);
        let picture = model.paint(&request, |_| steps += 1).unwrap();
        assert_eq!((steps, picture.width, picture.height), (few, 64, 64), "{family}");
        assert_eq!(model.default_size(), (64, 64));
    }
}

/// A model of velocities has its timesteps at the end too, and takes many steps.
#[test]
fn a_trailing_schedule_of_velocities_is_not_a_distilled_one() {
    for change in [json!({"prediction_type": "v_prediction"}), json!({"rescale_betas_zero_snr": true})] {
        let folder = changed("sd_turbo", "scheduler/scheduler_config.json", change);
        let model = TextToImageModel::load(Source::directory(folder.path())).unwrap();
        let mut steps = 0;
        model.paint(&request("a cat", 1).with_steps(None), |_| steps += 1).unwrap();
        assert_eq!(steps, 50);
    }
}

/// As diffusers does for this class of pipelines alone.
#[test]
fn settings_of_old_schedulers_are_corrected_for_stable_diffusion() {
    let paint = |family: &str, change: Value| {
        let folder = changed(family, "scheduler/scheduler_config.json", change);
        let model = TextToImageModel::load(Source::directory(folder.path())).unwrap();
        model.paint(&request("a cat", 1).with_steps(3), |_| {}).unwrap()
    };
    let ddim = |steps_offset: usize, clip: bool| {
        let settings =
            json!({"_class_name": "DDIMScheduler", "steps_offset": steps_offset, "clip_sample": clip});
        paint("sd15", settings)
    };
    assert!(ddim(0, true) == ddim(1, false));
    let offset = |steps_offset: usize| paint("sdxl", json!({"steps_offset": steps_offset}));
    assert!(offset(0) != offset(1), "the control");
}

#[test]
fn a_latent_consistency_model_takes_its_own_guidance_and_no_more_steps_than_its_distillation() {
    let model = load("lcm");
    let paint = |request: &PaintImage| model.paint(request, |_| {});
    let weak = paint(&request("a cat", 1).with_guidance(2.0)).unwrap();
    let strong = paint(&request("a cat", 1).with_guidance(8.0)).unwrap();
    assert_ne!(weak, strong);
    for (request, words) in [
        (request("a cat", 1).with_negative_prompt("a dog".to_owned()), "negative prompt"),
        (request("a cat", 1).with_steps(51), "distillation, here 50"),
    ] {
        let error = paint(&request).unwrap_err();
        assert!(matches!(&error, Error::InvalidInput(reason) if reason.contains(words)), "{error}");
    }
}

/// Mean difference of two images of one size, where 1 is that of black and white.
fn distance(left: &Picture, right: &Picture) -> f64 {
    assert_eq!((left.width, left.height), (right.width, right.height));
    let sum: u64 = left.rgb.iter().zip(&right.rgb).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / left.rgb.len() as f64 / 255.0
}

/// An image this small is previewed at full size, so the last preview is the image itself.
#[test]
fn previews_approach_the_image_and_come_only_on_request() {
    let all = &["ddim", "pndm", "euler", "euler_ancestral", "dpm++"][..];
    let flow = &["flow_match_euler"][..];
    for (family, side, schedulers) in [
        ("sd15", 64, all),
        ("sd21", 64, all),
        ("sdxl", 64, &all[..1]),
        ("lcm", 64, &["lcm"]),
        ("sd35", 48, flow),
        ("flux_schnell", 48, flow),
    ] {
        let model = load(family);
        for scheduler in schedulers {
            let plain = request("a cat", 5)
                .with_steps(4)
                .with_scheduler((*scheduler).to_owned())
                .with_size((side, side));
            let picture = model.paint(&plain, |step| assert_eq!(step.preview, None)).unwrap();
            let mut previews = Vec::new();
            let shown = plain.with_preview(true);
            let same = model.paint(&shown, |step| previews.extend(step.preview)).unwrap();
            assert_eq!(same, picture, "{family} {scheduler}: looking changes the picture");
            let distances: Vec<f64> = previews.iter().map(|preview| distance(preview, &picture)).collect();
            println!("{family} {scheduler}: {distances:.4?}");
            assert!(distances.len() >= 4, "{family} {scheduler}: {distances:?}");
            assert_eq!(distances.last(), Some(&0.0), "{family} {scheduler}");
            assert!(distances[0] > distances[distances.len() - 2], "{family} {scheduler}: {distances:?}");
        }
    }
}

#[test]
fn previews_of_larger_pictures_are_small() {
    let model = load("sd15");
    for (size, small) in [((256, 192), (128, 96)), ((136, 64), (128, 64)), ((64, 640), (16, 128))] {
        let request = request("a cat", 5).with_size(size).with_steps(1).with_preview(true);
        let mut sizes = Vec::new();
        let picture = model.paint(&request, |step| {
            let preview = step.preview.unwrap();
            sizes.push((preview.width, preview.height));
        });
        let picture = picture.unwrap();
        assert_eq!((picture.width, picture.height), size);
        assert!(!sizes.is_empty() && sizes.iter().all(|preview| *preview == small), "{size:?}: {sizes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_previews_and_an_unknown_scheduler_is_refused_before_a_load() {
    let (engine, painter) = studio("sd15", 1).await;
    let mut stream = painter.stream(request("a cat", 3).with_preview(true)).await.unwrap();
    let mut last = None;
    while let Some(step) = stream.next().await {
        last = step.unwrap().preview;
    }
    assert_eq!(last, Some(stream.output().await.unwrap()));
    assert!(engine.shutdown().await.is_clean());
    let empty = tempfile::tempdir().unwrap();
    let source = Source::directory(empty.path());
    let engine = Engine::builder().text_to_image("none", source).start().await.unwrap();
    let painter = engine.text_to_image("none").unwrap();
    let unknown = || request("a cat", 1).with_scheduler("fast".to_owned());
    let errors = [painter.paint(unknown()).await.map(drop), painter.stream(unknown()).await.map(drop)];
    for error in errors.map(Result::unwrap_err) {
        assert!(
            matches!(&error, Error::InvalidInput(words) if words.contains("flow_match_euler")),
            "{error}"
        );
    }
    let changed: [fn(&mut PaintImage); 4] = [
        |request| request.guidance = Some(f32::NAN),
        |request| request.negative_prompt = Some("x".repeat(65_537)),
        |request| request.size = Some((0, 8)),
        |request| request.size = Some((usize::MAX, 8)),
    ];
    for change in changed {
        let mut request = request("a cat", 1);
        change(&mut request);
        let error = painter.paint(request).await.unwrap_err();
        assert!(matches!(error, Error::InvalidInput(_)), "{error}");
    }
    // The control: a good request comes to the load, which fails.
    let error = painter.paint(request("a cat", 1)).await.unwrap_err();
    assert!(matches!(error.root(), Error::MissingFile { .. }), "{error}");
    assert!(engine.shutdown().await.is_clean());
}

async fn studio(family: &str, workers: usize) -> (Engine, ImagePainter) {
    let pool = PoolConfig::default().with_max_workers(workers).with_cold_start_workers(workers);
    let source = Source::directory(fixture(family));
    let engine = Engine::builder().pool_config(pool).text_to_image("tiny", source).start().await.unwrap();
    let painter = engine.text_to_image("tiny").unwrap();
    (engine, painter)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_the_same_alone_and_beside_others_and_repeatable_by_its_seed() {
    for (family, scheduler) in [("sd21", "euler_ancestral"), ("sdxl", "dpm++")] {
        let requests: Vec<PaintImage> = (0..5)
            .map(|seed| {
                request(["a cat", "a red circle", "boats in the rain"][seed as usize % 3], seed)
                    .with_steps(2 + seed as usize % 3)
                    .with_scheduler((seed % 2 == 0).then(|| scheduler.to_owned()))
            })
            .collect();
        let model = load(family);
        let alone: Vec<Picture> =
            requests.iter().map(|request| model.paint(request, |_| {}).unwrap()).collect();
        assert_eq!(model.try_clone().unwrap().paint(&requests[0], |_| {}).unwrap(), alone[0]);
        let other = model.paint(&requests[0].clone().with_seed(99), |_| {}).unwrap();
        assert_ne!(other, alone[0]);
        // One worker, so that they share batches.
        let (engine, painter) = studio(family, 1).await;
        let together = requests.iter().map(|request| painter.paint(request.clone()));
        let together = futures_util::future::join_all(together).await;
        for (alone, together) in alone.iter().zip(together) {
            assert_eq!(*alone, together.unwrap());
        }
        assert!(engine.shutdown().await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_reports_each_step_and_ends_with_the_image() {
    let (engine, painter) = studio("sdxl", 1).await;
    let mut stream = painter.stream(request("a cat", 3)).await.unwrap();
    let mut steps = Vec::new();
    while let Some(step) = stream.next().await {
        let step = step.unwrap();
        steps.push((step.step, step.of));
    }
    assert_eq!(steps, [(1, 3), (2, 3), (3, 3)]);
    let picture = stream.output().await.unwrap();
    assert_eq!(picture, painter.paint(request("a cat", 3)).await.unwrap());
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_fails_alone_and_its_error_has_both_numbers() {
    let (engine, painter) = studio("sd15", 1).await;
    let changed = |change: fn(&mut PaintImage)| {
        let mut request = request("a cat", 1);
        change(&mut request);
        request
    };
    for (request, words) in [
        (changed(|request| request.size = Some((60, 64))), ["60x64", "multiples of 8"]),
        (changed(|request| request.size = Some((2048, 2048))), ["4194304", "at most 589824"]),
        (changed(|request| request.guidance = Some(f32::NAN)), ["NaN", "0 to 100"]),
        (changed(|request| request.guidance = Some(101.0)), ["101", "0 to 100"]),
        (changed(|request| request.steps = Some(1001)), ["1001", "1000"]),
        (changed(|request| request.scheduler = Some("fast".into())), ["\"fast\"", "ddim, pndm, euler"]),
        (changed(|request| request.negative_prompt = Some("x".repeat(65_537))), ["65537", "65536"]),
        (changed(|request| request.prompt.clear()), ["prompt", "empty"]),
    ] {
        let good = painter.paint(crate::request("a cat", 1));
        let (error, good) = tokio::join!(painter.paint(request), good);
        let error = error.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(good.is_ok());
    }
    assert!(engine.shutdown().await.is_clean());
}

#[test]
fn an_autoencoder_for_previews_is_read_without_its_encoder() {
    let copy = changed("sd_turbo", "taesd/config.json", json!({"encoder_block_out_channels": [0]}));
    TextToImageModel::load(Source::directory(copy.path())).unwrap();
}

/// A copy of a fixture, to be damaged.
fn copy(family: &str) -> TempDir {
    copied(&fixture(family))
}

fn error(folder: &TempDir) -> Error {
    TextToImageModel::load(Source::directory(folder.path())).err().expect("a damaged model loads")
}

/// Model with other settings in one file.
fn changed(family: &str, file: &str, changes: Value) -> TempDir {
    let folder = copy(family);
    let path = folder.path().join(file);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    std::fs::write(path, config.to_string()).unwrap();
    folder
}

#[test]
fn an_unsupported_pipeline_is_named_and_what_is_supported_listed() {
    let folder = changed("sd15", "model_index.json", json!({"_class_name": "WuerstchenPipeline"}));
    let error = error(&folder);
    assert!(matches!(error, Error::UnsupportedArchitecture { .. }), "{error}");
    let error = error.to_string();
    for word in
        ["WuerstchenPipeline", "text to image", "StableDiffusionPipeline", "StableDiffusionXLPipeline"]
    {
        assert!(error.contains(word), "{error}");
    }
    let unnamed = changed("sd15", "model_index.json", json!({"_class_name": null}));
    assert!(matches!(self::error(&unnamed), Error::InvalidConfig { .. }));
}

#[test]
fn impossible_settings_are_refused_by_name_of_the_setting() {
    let huge = u64::MAX;
    for (family, file, changes) in [
        ("sd15", "unet/config.json", json!({"attention_head_dim": 0})),
        ("sd15", "unet/config.json", json!({"attention_head_dim": 3})),
        ("sd15", "unet/config.json", json!({"attention_head_dim": [2]})),
        ("sd15", "unet/config.json", json!({"block_out_channels": []})),
        ("sd15", "unet/config.json", json!({"block_out_channels": [0, 0]})),
        ("sd15", "unet/config.json", json!({"block_out_channels": [huge, huge]})),
        ("sd15", "unet/config.json", json!({"block_out_channels": [8, 16, 32]})),
        ("sd15", "unet/config.json", json!({"norm_num_groups": 0})),
        ("sd15", "unet/config.json", json!({"norm_num_groups": 5})),
        ("sd15", "unet/config.json", json!({"layers_per_block": 0})),
        ("sd15", "unet/config.json", json!({"layers_per_block": huge})),
        ("sd15", "unet/config.json", json!({"cross_attention_dim": 31})),
        ("sd15", "unet/config.json", json!({"in_channels": 8})),
        ("sd15", "unet/config.json", json!({"in_channels": 0})),
        ("sd15", "unet/config.json", json!({"sample_size": huge})),
        ("sd15", "unet/config.json", json!({"sample_size": 0})),
        ("sd15", "unet/config.json", json!({"sample_size": [8]})),
        ("sd15", "unet/config.json", json!({"time_embedding_dim": 0})),
        ("sd15", "unet/config.json", json!({"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]})),
        ("sd15", "vae/config.json", json!({"block_out_channels": [4, 4, 8, 0]})),
        ("sd15", "vae/config.json", json!({"block_out_channels": vec![4; 70]})),
        ("sd15", "vae/config.json", json!({"norm_num_groups": 0})),
        ("sd15", "vae/config.json", json!({"scaling_factor": 0.0})),
        ("sd15", "vae/config.json", json!({"layers_per_block": huge})),
        ("sd15", "vae/config.json", json!({"latent_channels": 16})),
        ("sd15", "text_encoder/config.json", json!({"num_attention_heads": 0})),
        ("sd15", "text_encoder/config.json", json!({"hidden_size": 64})),
        ("sd15", "scheduler/scheduler_config.json", json!({"num_train_timesteps": 0})),
        ("sd15", "scheduler/scheduler_config.json", json!({"num_train_timesteps": huge})),
        ("sd15", "scheduler/scheduler_config.json", json!({"beta_end": 2.0})),
        ("sd15", "scheduler/scheduler_config.json", json!({"beta_schedule": "wave"})),
        ("sd15", "scheduler/scheduler_config.json", json!({"trained_betas": [0.5]})),
        ("sd15", "scheduler/scheduler_config.json", json!({"prediction_type": "sample"})),
        ("sd15", "scheduler/scheduler_config.json", json!({"original_inference_steps": 0})),
        ("lcm", "scheduler/scheduler_config.json", json!({"original_inference_steps": 1001})),
        ("sd_tiny", "vae/config.json", json!({"decoder_block_out_channels": []})),
        ("sd_tiny", "vae/config.json", json!({"decoder_block_out_channels": [8, 8, 8, 4]})),
        ("sd_tiny", "vae/config.json", json!({"decoder_block_out_channels": [0, 0, 0, 0]})),
        ("sd_tiny", "vae/config.json", json!({"num_decoder_blocks": [1, 1, 1]})),
        ("sd_tiny", "vae/config.json", json!({"num_decoder_blocks": [huge, 1, 1, 1]})),
        ("sd_tiny", "vae/config.json", json!({"latent_channels": 5})),
        ("sd_tiny", "vae/config.json", json!({"scaling_factor": 0.0})),
        ("sd_tiny", "vae/config.json", json!({"encoder_block_out_channels": [0, 0, 0, 0]})),
        ("sd_tiny", "vae/config.json", json!({"num_encoder_blocks": [1, 1, 1]})),
        ("sd_turbo", "taesd/config.json", json!({"latent_channels": 5})),
        (
            "sd_turbo",
            "taesd/config.json",
            json!({"decoder_block_out_channels": [8, 8], "num_decoder_blocks": [1, 1]}),
        ),
        ("lcm", "unet/config.json", json!({"time_cond_proj_dim": 3})),
        ("lcm", "unet/config.json", json!({"time_cond_proj_dim": huge})),
        ("sdxl", "unet/config.json", json!({"addition_time_embed_dim": 0})),
        ("sdxl", "unet/config.json", json!({"addition_time_embed_dim": 9})),
        ("sdxl", "unet/config.json", json!({"projection_class_embeddings_input_dim": null})),
        ("sdxl", "unet/config.json", json!({"addition_embed_type": null})),
        ("sdxl", "text_encoder_2/config.json", json!({"projection_dim": huge})),
    ] {
        let error = error(&changed(family, file, changes.clone()));
        assert!(matches!(error, Error::InvalidConfig { .. }), "{file} {changes}: {error}");
    }
    for (file, changes) in [
        ("unet/config.json", json!({"_class_name": "UNet3DConditionModel"})),
        ("unet/config.json", json!({"act_fn": "gelu"})),
        ("unet/config.json", json!({"addition_embed_type": "image"})),
        ("vae/config.json", json!({"_class_name": "AsymmetricAutoencoderKL"})),
        ("vae/config.json", json!({"latents_mean": [0.0, 0.0, 0.0, 0.0]})),
        ("scheduler/scheduler_config.json", json!({"_class_name": "HeunDiscreteScheduler"})),
        ("scheduler/scheduler_config.json", json!({"skip_prk_steps": false})),
        ("scheduler/scheduler_config.json", json!({"skip_prk_steps": null})),
        ("text_encoder/config.json", json!({"model_type": "bert"})),
        ("text_encoder/config.json", json!({"hidden_act": "swishy"})),
    ] {
        let error = error(&changed("sd15", file, changes.clone()));
        assert!(matches!(error, Error::UnsupportedSetting { .. }), "{file} {changes}: {error}");
    }
}

#[test]
fn files_that_are_missing_or_damaged_are_named() {
    for file in [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ] {
        let folder = copy("sd15");
        std::fs::remove_file(folder.path().join(file)).unwrap();
        let error = error(&folder);
        assert!(matches!(&error, Error::MissingFile { file: missing, .. } if missing == file), "{error}");
    }
    let folder = copy("sd15");
    let weights = folder.path().join("unet/diffusion_pytorch_model.safetensors");
    std::fs::rename(&weights, folder.path().join("unet/diffusion_pytorch_model.bin")).unwrap();
    let error = error(&folder);
    assert!(matches!(error, Error::InvalidPickle { .. }), "{error}");
    let folder = copy("sd15");
    let weights = folder.path().join("vae/diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(self::error(&folder), Error::TruncatedWeights { .. }));
    let folder = copy("sd15");
    std::fs::write(folder.path().join("tokenizer/merges.txt"), "#version: 0.2\nno such tokens\n").unwrap();
    assert!(matches!(self::error(&folder), Error::InvalidTokenizer { .. }));
    for vocabulary in ["{}", "[]", r#"{"a": 4000000000}"#] {
        let folder = copy("sd15");
        std::fs::write(folder.path().join("tokenizer/vocab.json"), vocabulary).unwrap();
        let error = self::error(&folder);
        assert!(matches!(error, Error::InvalidTokenizer { .. }), "{vocabulary}: {error}");
    }
}

#[test]
fn a_tokenizer_that_blows_up_a_prompt_is_refused() {
    let normalizer = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "b".repeat(20_000)});
    let file = "tokenizer_2/tokenizer.json";
    let folder = changed("flux_schnell", file, json!({"normalizer": normalizer}));
    let error = error(&folder);
    assert!(matches!(error, Error::InvalidTokenizer { .. }), "{error}");
}
