//! Stable Diffusion 3.5 and FLUX.1 paint what diffusers paints from the same noise, alone and among others,
//! and damaged repositories of theirs are refused with the file and the setting at fault.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use candle_actors::{Engine, Error, PaintImage, Source, StandaloneModel, TextToImageModel};
use candle_core::{Device, Tensor};
use common::folders::{copied, families_of};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Colours lie between 0 and 1; half of a byte's step is a fifth of this.
const TOLERANCE: f32 = 1e-2;

fn fixture(name: &str) -> PathBuf {
    common::root().join("tests/fixtures/text_to_image").join(name)
}

/// Families that `text_to_image.rs` does not compare, but for those that paint from images alone.
fn names() -> impl Iterator<Item = String> {
    let families = families_of("text_to_image");
    let has = |name: &str, file: &str| fixture(name).join(file).exists();
    let of_images = |name: &str| has(name, "first_image.json");
    assert!(
        families.iter().all(|name| has(name, "expected.json") || has(name, "case.json") || of_images(name))
    );
    families.into_iter().filter(move |name| fixture(name).join("case.json").exists())
}

fn request(folder: &Path) -> PaintImage {
    let case: Value = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
    let number = |name: &str| case[name].as_u64().unwrap() as usize;
    PaintImage::default()
        .with_prompt(case["prompt"].as_str().unwrap().to_owned())
        .with_negative_prompt(case["negative_prompt"].as_str().map(str::to_owned))
        .with_size((number("width"), number("height")))
        .with_steps(number("steps"))
        .with_guidance(case["guidance"].as_f64().map(|guidance| guidance as f32))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn images_from_the_same_noise_are_those_of_the_reference() {
    for name in names() {
        let folder = fixture(&name);
        let expected =
            candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
        let request = request(&folder);
        let model = TextToImageModel::load(Source::directory(&folder)).unwrap();
        let mut steps = Vec::new();
        let noise = values(&expected["noise"]);
        let picture =
            model.paint_from_noise(&request, &noise, |step| steps.push((step.step, step.of))).unwrap();
        let of = request.steps.unwrap();
        assert_eq!(steps, (1..=of).map(|step| (step, of)).collect::<Vec<_>>());
        assert_eq!(Some((picture.width, picture.height)), request.size);
        let theirs = values(&expected["picture"].squeeze(0).unwrap().permute((1, 2, 0)).unwrap());
        let ours: Vec<f32> = picture.rgb.iter().map(|byte| f32::from(*byte) / 255.0).collect();
        let largest = common::difference(&ours, &theirs);
        println!("{name}: largest difference of a colour {largest:.2e}");
        assert!(largest <= TOLERANCE, "{name}: {largest}");
    }
}

#[tokio::test]
async fn a_picture_is_the_same_alone_and_among_others() {
    for name in names() {
        let folder = fixture(&name);
        let model = TextToImageModel::load(Source::directory(&folder)).unwrap();
        let mut requests = Vec::new();
        for (seed, prompt) in
            ["a cat", "two dogs on the beach in the rain", "a red circle"].iter().enumerate()
        {
            let prompt = (*prompt).to_owned();
            requests.push(request(&folder).with_prompt(prompt).with_seed(seed as u64));
        }
        let alone: Vec<_> = requests.iter().map(|request| model.paint(request, |_| {}).unwrap()).collect();
        assert_ne!(alone[0], alone[1]);
        let engine =
            Engine::builder().text_to_image("model", Source::directory(&folder)).start().await.unwrap();
        let painter = engine.text_to_image("model").unwrap();
        let calls = requests.iter().map(|request| painter.paint(request.clone()));
        let together = futures_util::future::join_all(calls).await;
        for (alone, together) in alone.iter().zip(together) {
            assert_eq!(*alone, together.unwrap());
        }
        engine.shutdown().await;
    }
}

/// A copy of a fixture to be damaged.
struct Damaged(TempDir);

impl Damaged {
    fn copy(name: &str) -> Self {
        Self(copied(&fixture(name)))
    }

    fn change(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let path = self.0.path().join(file);
        let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(path, config.to_string()).unwrap();
    }

    fn load(&self) -> Result<TextToImageModel, Error> {
        TextToImageModel::load(Source::directory(self.0.path()))
    }
}

/// Loads a fixture with one setting changed, and gives the error.
fn broken(name: &str, file: &str, setting: &str, value: &Value) -> Error {
    let damaged = Damaged::copy(name);
    damaged.change(file, |config| config[setting] = value.clone());
    match damaged.load() {
        Ok(_) => panic!("{name} loads with {setting} {value}"),
        Err(error) => error,
    }
}

#[test]
fn impossible_settings_are_refused_by_name() {
    const TRANSFORMER: &str = "transformer/config.json";
    const SCHEDULER: &str = "scheduler/scheduler_config.json";
    const T5: &str = "text_encoder_3/config.json";
    let huge = json!(1_000_000_000u64);
    let cases = [
        ("sd35", TRANSFORMER, "num_attention_heads", json!(0), "num_attention_heads is 0"),
        ("sd35", TRANSFORMER, "num_attention_heads", huge.clone(), "num_attention_heads is 1000000000"),
        ("sd35", TRANSFORMER, "attention_head_dim", json!(0), "attention_head_dim is 0"),
        ("sd35", TRANSFORMER, "attention_head_dim", json!(-8), "invalid value"),
        ("sd35", TRANSFORMER, "attention_head_dim", json!("eight"), "invalid type"),
        ("sd35", TRANSFORMER, "patch_size", json!(0), "patch_size is 0"),
        ("sd35", TRANSFORMER, "num_layers", huge.clone(), "num_layers is 1000000000"),
        ("sd35", TRANSFORMER, "sample_size", json!(0), "sample_size is 0"),
        ("sd35", TRANSFORMER, "pos_embed_max_size", huge.clone(), "pos_embed_max_size is 1000000000"),
        ("sd35", TRANSFORMER, "caption_projection_dim", json!(25), "caption_projection_dim is 25"),
        ("sd35", TRANSFORMER, "out_channels", json!(8), "out_channels"),
        ("sd35", TRANSFORMER, "in_channels", json!(8), "out_channels differs from in_channels"),
        ("sd35", TRANSFORMER, "joint_attention_dim", json!(16), "joint_attention_dim is 16"),
        ("sd35", TRANSFORMER, "pooled_projection_dim", json!(21), "pooled_projection_dim is 21"),
        ("sd35", TRANSFORMER, "qk_norm", json!("layer_norm"), "qk_norm layer_norm is not supported"),
        ("sd35", TRANSFORMER, "_class_name", json!("Other"), "_class_name Other is not supported"),
        ("sd35", "vae/config.json", "latent_channels", json!(4), "its autoencoder has 4"),
        ("sd35", SCHEDULER, "num_train_timesteps", json!(0), "num_train_timesteps is 0"),
        ("sd35", SCHEDULER, "num_train_timesteps", huge.clone(), "num_train_timesteps is 1000000000"),
        ("sd35", SCHEDULER, "shift", json!(0.0), "shift is 0"),
        ("sd35", SCHEDULER, "shift", json!(-1.0), "shift is -1"),
        ("sd35", SCHEDULER, "shift_terminal", json!(1.0), "shift_terminal is 1"),
        ("sd35", SCHEDULER, "use_karras_sigmas", json!("yes"), "invalid type"),
        ("sd35", SCHEDULER, "invert_sigmas", json!(true), "invert_sigmas true is not supported"),
        ("sd35", SCHEDULER, "time_shift_type", json!("cubic"), "unknown variant"),
        ("sd35", SCHEDULER, "_class_name", json!("DDIMScheduler"), "DDIMScheduler is not supported"),
        ("sd35", T5, "num_heads", json!(0), "num_heads is 0"),
        ("sd35", T5, "d_model", huge.clone(), "d_model is 1000000000"),
        ("sd35", T5, "d_kv", json!(0), "d_kv is 0"),
        ("sd35", T5, "d_ff", json!(0), "d_ff is 0"),
        ("sd35", T5, "num_layers", huge, "num_layers is 1000000000"),
        ("sd35", T5, "relative_attention_num_buckets", json!(2), "relative_attention_num_buckets is 2"),
        ("sd35", T5, "relative_attention_max_distance", json!(2), "relative_attention_max_distance 2"),
        ("sd35", T5, "layer_norm_epsilon", json!(-1.0), "layer_norm_epsilon"),
        ("sd35", T5, "feed_forward_proj", json!("gated-sine"), "feed_forward_proj gated-sine"),
        ("sd35", T5, "model_type", json!("umt5"), "model_type \"umt5\" is not supported"),
        ("sd35", T5, "vocab_size", json!(10), "the text encoder's vocab_size is 10"),
        ("flux_dev", TRANSFORMER, "axes_dims_rope", json!([1, 5, 6]), "axes_dims_rope is [1, 5, 6]"),
        ("flux_dev", TRANSFORMER, "axes_dims_rope", json!([2, 4, 8]), "axes_dims_rope is [2, 4, 8]"),
        ("flux_dev", TRANSFORMER, "axes_dims_rope", json!([2, 4]), "invalid length"),
        ("flux_dev", TRANSFORMER, "axes_dims_rope", json!([u64::MAX, 2, 10]), "axes_dims_rope is"),
        ("flux_dev", TRANSFORMER, "patch_size", json!(2), "patch_size 2 is not supported"),
        ("flux_dev", TRANSFORMER, "in_channels", json!(32), "patches of 32 numbers"),
        ("flux_dev", TRANSFORMER, "num_attention_heads", json!(0), "num_attention_heads is 0"),
        ("flux_dev", TRANSFORMER, "joint_attention_dim", json!(33), "joint_attention_dim is 33"),
        ("flux_dev", TRANSFORMER, "pooled_projection_dim", json!(13), "pooled_projection_dim is 13"),
    ];
    for (name, file, setting, value, words) in cases {
        let error = broken(name, file, setting, &value);
        let text = error.to_string();
        assert!(text.contains(words), "{setting} {value}: {text}");
        assert!(
            matches!(
                error,
                Error::InvalidConfig { .. }
                    | Error::UnsupportedSetting { .. }
                    | Error::InvalidTokenizer { .. }
            ),
            "{setting} {value}: {error:?}"
        );
    }
}

#[test]
fn settings_that_the_weights_contradict_are_refused_by_tensor() {
    const TRANSFORMER: &str = "transformer/config.json";
    let tensor = |error: Error| match error {
        Error::MissingTensor { tensor } | Error::ShapeMismatch { tensor, .. } => tensor,
        other => panic!("{other:?}"),
    };
    let cases = [
        ("sd35", TRANSFORMER, "num_layers", json!(4), "transformer_blocks.2.norm1_context.linear.weight"),
        ("sd35", TRANSFORMER, "dual_attention_layers", json!([]), "transformer_blocks.0.norm1.linear.weight"),
        ("sd35", TRANSFORMER, "patch_size", json!(3), "pos_embed.proj.weight"),
        ("sd35", TRANSFORMER, "pos_embed_max_size", json!(13), "pos_embed.pos_embed"),
        (
            "sd35",
            "text_encoder_3/config.json",
            "d_ff",
            json!(47),
            "encoder.block.0.layer.1.DenseReluDense.wo.weight",
        ),
        ("flux_schnell", TRANSFORMER, "num_layers", json!(3), "transformer_blocks.2.norm1.linear.weight"),
        (
            "flux_schnell",
            TRANSFORMER,
            "guidance_embeds",
            json!(true),
            "time_text_embed.guidance_embedder.linear_1.weight",
        ),
    ];
    for (name, file, setting, value, at_fault) in cases {
        assert_eq!(tensor(broken(name, file, setting, &value)), at_fault, "{setting} {value}");
    }
}

#[test]
fn missing_files_are_named() {
    let cases = [
        ("sd35", "model_index.json"),
        ("sd35", "transformer/config.json"),
        ("sd35", "scheduler/scheduler_config.json"),
        ("sd35", "vae/config.json"),
        ("sd35", "text_encoder_2/config.json"),
        ("sd35", "text_encoder_3/model.safetensors"),
        ("sd35", "transformer/diffusion_pytorch_model-00002-of-00004.safetensors"),
        ("flux_dev", "transformer/diffusion_pytorch_model.safetensors"),
    ];
    for (name, file) in cases {
        let damaged = Damaged::copy(name);
        std::fs::remove_file(damaged.0.path().join(file)).unwrap();
        match damaged.load() {
            Err(Error::MissingFile { file: missing, .. }) => assert_eq!(missing, file),
            other => panic!("{file}: {:?}", other.err()),
        }
    }
}

#[test]
fn each_damaged_part_gives_an_error_of_its_own_kind() {
    let huge = json!(1_000_000_000_000u64);
    let many = json!(vec![8; 64]);
    let settings = [
        ("text_encoder/config.json", "hidden_size", json!(0)),
        ("text_encoder/config.json", "hidden_size", huge.clone()),
        ("text_encoder/config.json", "num_attention_heads", json!(0)),
        ("text_encoder/config.json", "num_attention_heads", json!(5)),
        ("text_encoder/config.json", "num_hidden_layers", huge.clone()),
        ("text_encoder/config.json", "max_position_embeddings", json!(0)),
        ("text_encoder/config.json", "max_position_embeddings", huge.clone()),
        ("text_encoder/config.json", "vocab_size", json!(0)),
        ("text_encoder/config.json", "vocab_size", huge.clone()),
        ("text_encoder/config.json", "hidden_act", json!("sine")),
        ("text_encoder/config.json", "projection_dim", json!(0)),
        ("text_encoder/config.json", "projection_dim", json!(u64::MAX)),
        ("vae/config.json", "block_out_channels", json!([])),
        ("vae/config.json", "block_out_channels", json!([0, 0])),
        ("vae/config.json", "block_out_channels", many),
        ("vae/config.json", "norm_num_groups", json!(0)),
        ("vae/config.json", "norm_num_groups", json!(3)),
        ("vae/config.json", "layers_per_block", huge),
        ("vae/config.json", "scaling_factor", json!(0.0)),
        ("vae/config.json", "shift_factor", json!("much")),
        ("vae/config.json", "latents_mean", json!([0.0])),
        ("tokenizer/tokenizer_config.json", "model_max_length", json!(1)),
        ("tokenizer_3/tokenizer_config.json", "pad_token", json!("nowhere")),
        ("model_index.json", "_class_name", json!(7)),
        ("model_index.json", "_class_name", json!("PaintByMagicPipeline")),
    ];
    for (file, setting, value) in settings {
        let error = broken("sd35", file, setting, &value);
        assert!(!matches!(error, Error::Compute(_)), "{file} {setting} {value}: {error}");
        println!("{setting}: {}", error.to_string().rsplit('/').next().unwrap_or_default());
    }
    let files = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer_3/tokenizer.json",
        "text_encoder_3/config.json",
        "text_encoder_3/model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "vae/diffusion_pytorch_model.safetensors",
    ];
    for file in files {
        for content in [&b""[..], b"[", b"{}", b"\xff\xfe nothing", &[0xff; 64]] {
            let damaged = Damaged::copy("sd35");
            std::fs::write(damaged.0.path().join(file), content).unwrap();
            match damaged.load() {
                // A schedule has defaults for everything, and a vocabulary may do without merges.
                Ok(_) if (file.ends_with("scheduler_config.json") && content == b"{}") => {}
                Ok(_) if (file.ends_with("merges.txt") && content.is_empty()) => {}
                Ok(_) => panic!("it loads with {content:?} as {file}"),
                Err(error) => assert!(!matches!(error, Error::Compute(_)), "{file}: {error}"),
            }
        }
    }
}

#[test]
fn the_footprint_counts_numbers_of_32_bits_whatever_the_file_has() {
    let folder = fixture("flux_dev");
    let model = TextToImageModel::load(Source::directory(&folder)).unwrap();
    let mut bytes = 0;
    for part in ["text_encoder/model", "text_encoder_2/model", "transformer/", "vae/"] {
        let name = if part.ends_with('/') { "diffusion_pytorch_model" } else { "" };
        let file = folder.join(format!("{part}{name}.safetensors"));
        let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        bytes += tensors.values().map(|tensor| 4 * tensor.elem_count() as u64).sum::<u64>();
    }
    assert_eq!(model.footprint().shared.0, bytes);
    assert!(model.footprint().per_worker.0 > 0);
}

#[test]
fn a_repository_without_t5_paints_all_the_same() {
    let damaged = Damaged::copy("sd35");
    damaged.change("model_index.json", |index| {
        index["text_encoder_3"] = json!([null, null]);
        index["tokenizer_3"] = json!([null, null]);
    });
    for folder in ["text_encoder_3", "tokenizer_3"] {
        std::fs::remove_dir_all(damaged.0.path().join(folder)).unwrap();
    }
    let request = request(&fixture("sd35")).with_seed(1);
    let whole = TextToImageModel::load(Source::directory(fixture("sd35"))).unwrap();
    let without = damaged.load().unwrap();
    assert!(without.footprint().shared < whole.footprint().shared);
    let pictures = [&whole, &without].map(|model| model.paint(&request, |_| {}).unwrap());
    assert_ne!(pictures[0], pictures[1]);
}

#[test]
fn a_shift_beyond_all_bounds_is_refused() {
    let damaged = Damaged::copy("flux_dev");
    damaged.change("scheduler/scheduler_config.json", |config| {
        config["base_shift"] = json!(1e9);
        config["max_shift"] = json!(1e9);
    });
    let model = damaged.load().unwrap();
    let error = model.paint(&request(&fixture("flux_dev")), |_| {}).unwrap_err();
    assert!(matches!(error, Error::InvalidConfig { .. }), "{error:?}");
}
