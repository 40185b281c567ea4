//! Models in two GGUF files have the features, logits and answers of the same numbers in safetensors, and answer as llama.cpp;
//! what is not understood of a vision tower's file is refused by name.

use std::path::Path;

use candle_actors::TextGenerationModel;
use candle_core::DType;
use candle_core::quantized::gguf_file::Value as GgufValue;
use candle_core::quantized::{GgmlDType, QTensor};

use super::common::gguf::rewritten;
use super::*;

fn folder(family: &str) -> PathBuf {
    root().join("tests/fixtures/vision_gguf").join(family)
}

fn exact() -> LoadOptions {
    LoadOptions::default().with_exact_products(true)
}

#[test]
fn models_in_two_gguf_files_agree_with_those_in_safetensors() {
    for family in families_of("vision_gguf") {
        let model = VisionModel::load_with(Source::directory(folder(&family)), exact()).unwrap();
        compare(&family, &model, Answers::Tokens);
    }
}

/// Of the families whose images have the same words around them there.
#[test]
fn answers_are_those_of_llama_cpp() {
    #[derive(Deserialize)]
    struct Found {
        image: String,
        tokens: Vec<u32>,
        best: Vec<f32>,
    }
    let mut compared = 0;
    for family in families_of("vision_gguf") {
        let Ok(text) = std::fs::read(folder(&family).join("expected.json")) else { continue };
        let expected: Found = serde_json::from_slice(&text).unwrap();
        let image = root().join("tests/fixtures/vision_gguf").join(&expected.image);
        let request = DescribeImage::new(ImageSource::Path(image))
            .with_question("What is this?")
            .with_sampling(Sampling::default())
            .with_max_tokens(expected.tokens.len());
        // The window of Qwen2.5-VL is in no published file, and llama.cpp reads none.
        let windows = (family == "qwen2_5_vl").then(|| with_number(&family, "clip.vision.window_size", 112));
        let place = windows.as_ref().map_or(folder(&family), |copy| copy.path().to_owned());
        let model = VisionModel::load_with(Source::directory(place), exact()).unwrap();
        let mut tokens = Vec::new();
        model.describe_each(&request, |token, _| tokens.push(token)).unwrap();
        assert_eq!(tokens, expected.tokens, "{family}");
        let logits = model.examine(&request).unwrap().logits;
        let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
        let mut best: Vec<f32> = logits.iter().map(|logit| logit - sum.ln()).collect();
        best.sort_by(|left, right| right.total_cmp(left));
        let off = difference(&best[..expected.best.len()], &expected.best);
        println!("{family}: log probabilities of the best tokens differ from llama.cpp's by {off:.2e}");
        // llama.cpp approximates GELU.
        assert!(off <= 5e-3, "{family}: {off}");
        compared += 1;
    }
    assert!(compared > 0);
}

/// A copy of a model with some bytes of its tower's file in place of others, the first time that they occur.
fn changed(family: &str, old: &[u8], new: &[u8]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(folder(family).join("model.gguf"), copy.path().join("model.gguf")).unwrap();
    let mut bytes = std::fs::read(folder(family).join("mmproj-model.gguf")).unwrap();
    let place = bytes.windows(old.len()).position(|window| window == old).unwrap();
    assert_eq!(old.len(), new.len());
    bytes[place..place + old.len()].copy_from_slice(new);
    std::fs::write(copy.path().join("mmproj-model.gguf"), bytes).unwrap();
    copy
}

/// The same with another number of 32 bits for a key.
fn with_number(family: &str, key: &str, new: u32) -> tempfile::TempDir {
    let key = [key.as_bytes(), &4u32.to_le_bytes()].concat();
    let bytes = std::fs::read(folder(family).join("mmproj-model.gguf")).unwrap();
    let end = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    changed(family, &bytes[end - key.len()..end + 4], &[key, new.to_le_bytes().to_vec()].concat())
}

fn refused(folder: &Path) -> Error {
    VisionModel::load(Source::directory(folder)).err().expect("the model loads")
}

#[test]
fn what_a_tower_has_beyond_its_family_is_refused_by_name() {
    let other = refused(changed("gemma3", b"\x06\0\0\0\0\0\0\0gemma3", b"\x06\0\0\0\0\0\0\0gemma9").path());
    assert!(
        matches!(&other, Error::UnsupportedArchitecture { found, .. } if found.contains("gemma9")),
        "{other}"
    );
    let key = changed("gemma3", b"clip.vision.projection_dim", b"clip.vision.projection_dxm");
    let error = refused(key.path());
    assert!(
        matches!(&error, Error::UnreadSetting { setting, .. } if setting == "clip.vision.projection_dxm"),
        "{error}"
    );
    let allowed = LoadOptions::default().with_allow_unread(true);
    VisionModel::load_with(Source::directory(key.path()), allowed).unwrap();
    // The tensors of a block that is not there by the number of blocks.
    let error = refused(with_number("gemma3", "clip.vision.block_count", 1).path());
    assert!(
        matches!(&error, Error::UnreadTensor { tensor, .. } if tensor.starts_with("v.blk.1.")),
        "{error}"
    );
    let error = refused(changed("idefics3", b"mm.model.fc.weight", b"mm.model.fx.weight").path());
    assert!(matches!(&error, Error::MissingTensor { .. }), "{error}");
}

#[test]
fn sizes_of_a_tower_that_cannot_be_are_refused() {
    let all = ["embedding_length", "block_count", "attention.head_count", "patch_size"];
    for family in families_of("vision_gguf") {
        let more: &[&str] = match family.as_str() {
            "gemma3" | "idefics3" => &["feed_forward_length", "image_size", "projector.scale_factor"],
            "pixtral" | "mistral3" => &["feed_forward_length"],
            _ => &["spatial_merge_size"],
        };
        for key in all.iter().chain(more) {
            for number in [0, 5, u32::MAX] {
                let copy = with_number(&family, &format!("clip.vision.{key}"), number);
                assert!(
                    VisionModel::load(Source::directory(copy.path())).is_err(),
                    "{family}: {key} is {number}"
                );
            }
        }
    }
}

#[test]
fn the_file_of_the_tower_is_found_or_named() {
    let copy = tempfile::tempdir().unwrap();
    let add =
        |from: &str, to: &str| std::fs::copy(folder("gemma3").join(from), copy.path().join(to)).unwrap();
    add("model.gguf", "model.gguf");
    let error = refused(copy.path());
    assert!(matches!(&error, Error::MissingFile { file, .. } if file == "mmproj-*.gguf"), "{error}");
    add("mmproj-model.gguf", "mmproj-a.gguf");
    let source = Source::directory(copy.path());
    VisionModel::load(source.clone()).unwrap();
    VisionModel::load(source.clone().gguf("model.gguf")).unwrap();
    VisionModel::load(Source::directory(copy.path().join("model.gguf"))).unwrap();
    // The text half is a model of its own.
    TextGenerationModel::load(source.clone()).unwrap();
    add("mmproj-model.gguf", "mmproj-b.gguf");
    let several = |error: Error| {
        assert!(matches!(&error, Error::SeveralGgufFiles { files, .. } if files.len() == 2), "{error}");
    };
    several(refused(copy.path()));
    std::fs::write(copy.path().join("config.json"), "{}").unwrap();
    several(refused(copy.path()));
    std::fs::remove_file(copy.path().join("config.json")).unwrap();
    VisionModel::load(source.clone().projector("mmproj-b.gguf")).unwrap();
    let error = VisionModel::load(source.projector("mmproj-c.gguf")).err().unwrap();
    assert!(matches!(&error, Error::NoSuchFile { .. }), "{error}");
}

/// One that names the projector twice, has a table of zeros in place of positions, tells no width of its feed-forward networks
/// and has their two layers the other way round.
#[test]
fn a_tower_of_an_older_tool_is_the_same() {
    let own = tempfile::tempdir().unwrap();
    std::fs::copy(folder("qwen2_vl").join("model.gguf"), own.path().join("model.gguf")).unwrap();
    let (from, to) = (folder("qwen2_vl").join("mmproj-model.gguf"), own.path().join("mmproj-model.gguf"));
    rewritten(&from, &to, |tensors, metadata| {
        let swapped = |name: String| match (name.contains("ffn_up"), name.contains("ffn_down")) {
            (true, _) => name.replace("ffn_up", "ffn_down"),
            (_, true) => name.replace("ffn_down", "ffn_up"),
            _ => name,
        };
        *tensors = std::mem::take(tensors).into_iter().map(|(name, it)| (swapped(name), it)).collect();
        let zeros = Tensor::zeros((10, 10), DType::F32, &Device::Cpu).unwrap();
        let zeros = QTensor::quantize(&zeros, GgmlDType::F32).unwrap();
        tensors.insert("v.position_embd.weight".to_owned(), zeros);
        metadata.insert("clip.has_qwen2vl_merger".to_owned(), GgufValue::Bool(true));
        metadata.insert("clip.vision.feed_forward_length".to_owned(), GgufValue::U32(0));
    });
    let model = VisionModel::load_with(Source::directory(own.path()), exact()).unwrap();
    compare("qwen2_vl", &model, Answers::Tokens);
}
