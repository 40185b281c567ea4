//! Families of this crate that candle-transformers has too, beside the library's, on random numbers of real shapes: DINOv2
//! base, BLIP base, T5 base as an encoder of prompts, and the autoencoder of Stable Diffusion. One thread each, in pairs.

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_actors::benchmarks::{ImageDecoder, PromptT5};
use candle_actors::{
    DescribeImage, ImageEmbeddingModel, ImageSource, LoadOptions, Picture, Source, StandaloneModel,
    VisionModel,
};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::{blip, dinov2, stable_diffusion::vae, t5};
use serde_json::{Value, json};

use super::library::spread;

const PAIRS: usize = 7;
/// Tokens of a caption, and of a prompt.
const CAPTION: usize = 8;
const PROMPT: usize = 256;
/// Sides of images: DINOv2's and BLIP's own, and of latents.
const DINO: usize = 518;
const BLIP: usize = 384;
const LATENTS: usize = 16;

type Run = Box<dyn FnMut() -> Result<()> + Send>;

/// All rows whose names are wanted.
pub(super) fn rows(is_wanted: impl Fn(&str) -> bool) {
    let all: [(&str, fn(&Path) -> Result<[Run; 2]>); 4] =
        [("dinov2", dino), ("blip", blip), ("t5", t5), ("autoencoder", autoencoder)];
    for (name, load) in all {
        if !is_wanted(&format!("counterparts/{name}")) {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let [mut own, mut library] = load(folder.path()).unwrap();
        let threads = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let time = |run: &mut Run| {
            let began = Instant::now();
            threads.install(|| run().unwrap());
            began.elapsed().as_secs_f64()
        };
        let mut pairs = Vec::new();
        for pair in 0..=PAIRS {
            let own = time(&mut own);
            let library = time(&mut library);
            // The first pair warms up.
            if pair > 0 {
                pairs.push((own, library));
            }
        }
        let mut seconds: Vec<f64> = pairs.iter().map(|(own, _)| *own).collect();
        seconds.sort_by(f64::total_cmp);
        let ratios = pairs.iter().map(|(own, library)| library / own).collect();
        println!(
            "counterparts/{name:<14} ours {:>6.2} s; the library's takes that times {}",
            seconds[PAIRS / 2],
            spread(ratios)
        );
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Copies the files of a fixture but its weights.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let target = to.join(entry.file_name().unwrap());
        match entry.is_dir() {
            true => copy(&entry, &target),
            false if entry.extension().is_some_and(|ending| ending == "safetensors") => {}
            false => drop(std::fs::copy(&entry, target).unwrap()),
        }
    }
}

/// Changes settings of a configuration.
fn configure(file: &Path, changes: &[(&str, Value)]) {
    let mut config: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    for (place, value) in changes {
        *config.pointer_mut(place).unwrap_or_else(|| panic!("{place}")) = value.clone();
    }
    std::fs::write(file, config.to_string()).unwrap();
}

fn weights(map: &VarMap) -> VarBuilder<'static> {
    VarBuilder::from_varmap(map, DType::F32, &Device::Cpu)
}

/// Small numbers for all that a model has asked for, so that nothing overflows however deep it is.
fn fill(map: &VarMap) -> Result<()> {
    for tensor in map.all_vars() {
        let norm = tensor.rank() == 1;
        tensor.set(&if norm { tensor.ones_like()? } else { tensor.randn_like(0.0, 0.02)? })?;
    }
    Ok(())
}

fn gradient(side: usize) -> Picture {
    let rgb = (0..side * side * 3).map(|index| (index % 251) as u8).collect();
    Picture::new(side, side, rgb)
}

fn alone() -> LoadOptions {
    LoadOptions::default().with_threads(1)
}

fn dino(folder: &Path) -> Result<[Run; 2]> {
    let map = VarMap::new();
    let library = dinov2::DinoVisionTransformer::new(weights(&map), 12, 768, 12)?;
    fill(&map)?;
    copy(&fixture("image_embedding/dinov2"), folder);
    let sizes =
        [("/hidden_size", 768), ("/image_size", DINO), ("/mlp_ratio", 4), ("/num_attention_heads", 12)];
    let sizes = sizes.into_iter().chain([("/num_hidden_layers", 12), ("/patch_size", 14)]);
    let changes: Vec<(&str, Value)> = sizes.map(|(name, size)| (name, size.into())).collect();
    configure(&folder.join("config.json"), &changes);
    let sides = json!({"height": DINO, "width": DINO});
    configure(
        &folder.join("preprocessor_config.json"),
        &[("/size", json!({"shortest_edge": DINO})), ("/crop_size", sides)],
    );
    candle_core::safetensors::save(&renamed(&map)?, folder.join("model.safetensors"))?;
    let own = ImageEmbeddingModel::load_with(Source::directory(folder), alone()).unwrap();
    let (picture, image) = (gradient(DINO), Tensor::randn(0f32, 1.0, (1, 3, DINO, DINO), &Device::Cpu)?);
    Ok([
        Box::new(move || Ok(drop(own.image_features(std::slice::from_ref(&picture)).unwrap()))),
        Box::new(move || library.forward(&image).map(drop)),
    ])
}

/// The tensors of the library's DINOv2, whose names are those of the first publication, under those of transformers.
fn renamed(map: &VarMap) -> Result<std::collections::HashMap<String, Tensor>> {
    let mut tensors = std::collections::HashMap::new();
    for (name, tensor) in map.data().lock().unwrap().iter() {
        let tensor = tensor.as_tensor().clone();
        if let Some((layer, kind)) =
            name.strip_prefix("blocks.").and_then(|name| name.split_once(".attn.qkv."))
        {
            for (part, name) in tensor.chunk(3, 0)?.into_iter().zip(["query", "key", "value"]) {
                let name = format!("encoder.layer.{layer}.attention.attention.{name}.{kind}");
                tensors.insert(name, part.contiguous()?);
            }
            continue;
        }
        let renamed = name
            .replace("blocks.", "encoder.layer.")
            .replace("attn.proj", "attention.output.dense")
            .replace("ls1.gamma", "layer_scale1.lambda1")
            .replace("ls2.gamma", "layer_scale2.lambda1")
            .replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
            .replace("cls_token", "embeddings.cls_token")
            .replace("pos_embed", "embeddings.position_embeddings");
        match renamed.as_str() {
            "norm.weight" | "norm.bias" => tensors.insert(format!("layer{renamed}"), tensor),
            name if name.starts_with("head.") => None,
            _ => tensors.insert(renamed, tensor),
        };
    }
    Ok(tensors)
}

fn blip(folder: &Path) -> Result<[Run; 2]> {
    copy(&fixture("vision/blip"), folder);
    let file = folder.join("config.json");
    let text = [
        ("hidden_size", 768),
        ("intermediate_size", 3072),
        ("num_hidden_layers", 12),
        ("num_attention_heads", 12),
    ];
    let names: Vec<String> = ["text_config", "vision_config"]
        .into_iter()
        .flat_map(|part| text.map(|(name, _)| format!("/{part}/{name}")))
        .collect();
    let sizes = text.iter().chain(&text).map(|(_, size)| Value::from(*size));
    let mut changes: Vec<(&str, Value)> = names.iter().map(String::as_str).zip(sizes).collect();
    changes.extend([
        ("/text_config/encoder_hidden_size", 768.into()),
        ("/vision_config/image_size", BLIP.into()),
        ("/vision_config/patch_size", 16.into()),
        // It writes on, whatever it has written.
        ("/text_config/sep_token_id", 1.into()),
    ]);
    configure(&file, &changes);
    let sides = json!({"height": BLIP, "width": BLIP});
    configure(&folder.join("preprocessor_config.json"), &[("/size", sides)]);
    let config: blip::Config = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let map = VarMap::new();
    let mut library = blip::BlipForConditionalGeneration::new(&config, weights(&map))?;
    fill(&map)?;
    map.save(folder.join("model.safetensors"))?;
    let own = VisionModel::load_with(Source::directory(folder), alone()).unwrap();
    let (picture, image) = (gradient(BLIP), Tensor::randn(0f32, 1.0, (1, 3, BLIP, BLIP), &Device::Cpu)?);
    Ok([
        Box::new(move || {
            let request = DescribeImage::new(ImageSource::Picture(picture.clone())).with_max_tokens(CAPTION);
            let written = own.describe(&request).unwrap();
            assert_eq!(written.usage.completion_tokens, CAPTION, "it ended early");
            Ok(())
        }),
        Box::new(move || {
            let seen = image.apply(library.vision_model())?;
            library.reset_kv_cache();
            let mut token = 300u32;
            for _ in 0..CAPTION {
                let input = Tensor::new(&[[token]], &Device::Cpu)?;
                let logits = library.text_decoder().forward(&input, &seen)?.flatten_all()?;
                token = logits.argmax(0)?.to_scalar()?;
            }
            Ok(())
        }),
    ])
}

fn t5(folder: &Path) -> Result<[Run; 2]> {
    copy(&fixture("text_to_image/flux_dev"), folder);
    let encoder = folder.join("text_encoder_2");
    let sizes = [("/d_model", 768), ("/d_ff", 2048), ("/d_kv", 64), ("/num_heads", 12), ("/num_layers", 12)];
    configure(&encoder.join("config.json"), &sizes.map(|(name, size)| (name, size.into())));
    let config = t5::Config {
        vocab_size: 102,
        d_model: 768,
        d_ff: 2048,
        num_layers: 12,
        num_heads: 12,
        relative_attention_num_buckets: 8,
        relative_attention_max_distance: 20,
        feed_forward_proj: t5::ActivationWithOptionalGating {
            gated: true,
            activation: candle_nn::Activation::NewGelu,
        },
        ..t5::Config::default()
    };
    let map = VarMap::new();
    // The library looks for the embedding under its published name alone if that is there.
    map.get((102, 768), "shared.weight", candle_nn::Init::Const(0.0), DType::F32, &Device::Cpu)?;
    let mut library = t5::T5EncoderModel::load(weights(&map), &config)?;
    fill(&map)?;
    map.save(encoder.join("model.safetensors"))?;
    let own = PromptT5::load(folder, PROMPT).unwrap();
    let tokens = Tensor::ones((1, PROMPT), DType::U32, &Device::Cpu)?;
    Ok([
        Box::new(move || Ok(drop(own.encode("a red circle").unwrap()))),
        Box::new(move || library.forward(&tokens).map(drop)),
    ])
}

fn autoencoder(folder: &Path) -> Result<[Run; 2]> {
    copy(&fixture("text_to_image/sd15"), folder);
    let widths = vec![128, 256, 512, 512];
    let changes = [
        ("/block_out_channels", json!(widths)),
        ("/layers_per_block", 2.into()),
        ("/norm_num_groups", 32.into()),
    ];
    configure(&folder.join("vae/config.json"), &changes);
    let config =
        vae::AutoEncoderKLConfig { block_out_channels: widths, layers_per_block: 2, ..Default::default() };
    let map = VarMap::new();
    let library = vae::AutoEncoderKL::new(weights(&map), 3, 3, config)?;
    fill(&map)?;
    map.save(folder.join("vae/diffusion_pytorch_model.safetensors"))?;
    let own = ImageDecoder::load(folder).unwrap();
    let latents = Tensor::randn(0f32, 1.0, (1, 4, LATENTS, LATENTS), &Device::Cpu)?;
    let same = latents.clone();
    Ok([
        Box::new(move || Ok(drop(own.decode(&latents).unwrap()))),
        Box::new(move || library.decode(&same).map(drop)),
    ])
}
