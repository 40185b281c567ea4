//! Tiny files with the settings that GGUF files may have, against what llama.cpp writes (`tests/references/gguf_variants.py`),
//! and settings that are refused by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use model_actors::LoadContext;
use serde::Deserialize;

use super::*;
use crate::kernels::packed::Arithmetic;
use crate::models::transformer::Segment;
use crate::source::{Files, read_json};

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    file: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf")
}

fn open(path: &Path) -> Result<GgufFile> {
    let context = LoadContext::detached(&"variant".into());
    let files = Files::directory(path);
    let found = files.gguf(&context)?.ok_or_else(|| Error::compute("no file"))?;
    GgufFile::open(&found)?.with_parts(|name| files.gguf_part(&found, name, &context))
}

fn load(path: &Path) -> Result<Decoder> {
    let file = open(path)?;
    let context = LoadContext::detached(&"variant".into());
    DecoderConfig::from_gguf(&file)?.load_gguf(&file, &Device::Cpu, Arithmetic::Exact, &context)
}

fn greedy(decoder: &Decoder, prompt: &[u32], steps: usize) -> Vec<u32> {
    let mut cache = decoder.cache(prompt.len()).unwrap();
    let mut next = prompt.to_vec();
    let mut written = Vec::new();
    while written.len() < steps {
        let rows = decoder.embed(&next).unwrap();
        let segment = Segment { cache: &mut cache, length: next.len(), positions: None, adapter: None };
        let hidden = decoder.forward(&rows, &mut [segment]).unwrap();
        let last = hidden.narrow(0, next.len() - 1, 1).unwrap();
        let logits = decoder.logits(&last).unwrap().to_vec2::<f32>().unwrap().remove(0);
        let best = logits.iter().enumerate().max_by(|left, right| left.1.total_cmp(right.1));
        next = vec![best.unwrap().0 as u32];
        written.extend(&next);
    }
    written
}

#[test]
fn every_variant_of_a_file_writes_what_llama_cpp_does() {
    let cases: BTreeMap<String, Case> = read_json(&folder().join("expected.json")).unwrap();
    assert!(cases.len() > 20, "{}", cases.len());
    let mut wrong = Vec::new();
    for (name, case) in &cases {
        match load(&folder().join(&case.file)) {
            Ok(decoder) => {
                let written = greedy(&decoder, &case.prompt, case.greedy.len());
                if written != case.greedy {
                    wrong.push(format!("{name}: {written:?}, right is {:?}", case.greedy));
                }
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A file with `from`, which it has once, replaced by as many bytes.
fn changed(name: &str, changes: &[(&[u8], &[u8])]) -> Result<()> {
    with_changes(name, changes, |path| load(path).map(drop))
}

fn with_changes<R>(name: &str, changes: &[(&[u8], &[u8])], then: impl FnOnce(&Path) -> R) -> R {
    let mut bytes = std::fs::read(folder().join(name)).unwrap();
    for (from, to) in changes {
        let place = bytes.windows(from.len()).position(|window| window == *from).unwrap();
        bytes[place..place + to.len()].copy_from_slice(to);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.gguf");
    std::fs::write(&path, bytes).unwrap();
    then(&path)
}

/// A file with more keys, each with the number of its type and its value.
fn with_keys<R>(name: &str, keys: &[(&str, u32, [u8; 4])], then: impl FnOnce(&Path) -> R) -> R {
    let mut bytes = std::fs::read(folder().join(name)).unwrap();
    bytes[16] += keys.len() as u8 + 1;
    let mut values: Vec<u8> = Vec::new();
    for (key, kind, value) in keys {
        values
            .extend([&(key.len() as u64).to_le_bytes(), key.as_bytes(), &kind.to_le_bytes(), value].concat());
    }
    // The tensors stay aligned.
    let rest = 32 - (values.len() + 16) % 32;
    values
        .extend([&(rest as u64).to_le_bytes()[..], &vec![b'x'; rest], &4u32.to_le_bytes(), &[0; 4]].concat());
    bytes.splice(24..24, values);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("more.gguf");
    std::fs::write(&path, bytes).unwrap();
    then(&path)
}

#[test]
fn settings_that_are_not_supported_are_refused_by_name() {
    let number = |key: &str, value: u32| [key.as_bytes(), &4u32.to_le_bytes(), &value.to_le_bytes()].concat();
    let set = |file: &str, key: &str, from: u32, to: u32| {
        changed(file, &[(&number(key, from), &number(key, to))]).unwrap_err().to_string()
    };
    let error = set("llama-factor.gguf", "llama.rope.dimension_count", 8, 4);
    assert!(error.contains("rope.dimension_count"), "{error}");
    let error = set("llama-factor.gguf", "llama.attention.value_length", 8, 4);
    assert!(error.contains("attention.value_length"), "{error}");
    let kind = |name: &str| [&(name.len() as u64).to_le_bytes(), name.as_bytes()].concat();
    let error = changed("llama-none.gguf", &[(&kind("none"), &kind("abcd"))]).unwrap_err().to_string();
    assert!(error.contains("rope.scaling.type") && error.contains("abcd"), "{error}");
    // Two layers, of which the second has another number of heads.
    let counts = |numbers: [i32; 2]| [4u32.to_le_bytes(), numbers[0].to_le_bytes(), numbers[1].to_le_bytes()];
    let list =
        |numbers| [&5u32.to_le_bytes()[..], &2u64.to_le_bytes(), &counts(numbers)[1..].concat()].concat();
    let error = changed("llama-head-counts.gguf", &[(&list([4, 4]), &list([4, 2]))]).unwrap_err().to_string();
    assert!(error.contains("attention.head_count") && error.contains("[4, 2]"), "{error}");
    let error = changed("llama-factor.gguf", &[(b"layer_norm_rms_epsilon", b"layer_norm_abc_epsilon")]);
    assert!(error.unwrap_err().to_string().contains("layer_norm_rms_epsilon"));
}

#[test]
fn a_type_without_a_decoder_is_refused_by_name() {
    let kind = |number: u32| {
        [
            &b"blk.1.ffn_up.weight"[..],
            &2u32.to_le_bytes(),
            &32u64.to_le_bytes(),
            &32u64.to_le_bytes(),
            &number.to_le_bytes(),
        ]
        .concat()
    };
    for (number, name) in [(35, "TQ2_0"), (16, "IQ2_XXS"), (40, "NVFP4"), (99, "number 99")] {
        let error = changed("llama-codebooks.gguf", &[(&kind(20), &kind(number))]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("blk.1.ffn_up.weight"), "{error}");
        assert!(error.contains("IQ4_NL"), "{error}");
    }
}

#[test]
fn all_parts_of_a_file_are_read_from_any_and_a_missing_one_is_named() {
    let part = |number: usize| format!("llama-parts-{number:05}-of-00003.gguf");
    let copied = tempfile::tempdir().unwrap();
    for number in 1..=3 {
        std::fs::copy(folder().join(part(number)), copied.path().join(part(number))).unwrap();
    }
    let cases: BTreeMap<String, Case> = read_json(&folder().join("expected.json")).unwrap();
    let case = &cases["llama-parts"];
    for path in [copied.path().to_owned(), copied.path().join(part(1)), copied.path().join(part(3))] {
        let decoder = load(&path).unwrap();
        assert_eq!(greedy(&decoder, &case.prompt, 20), case.greedy, "{}", path.display());
    }
    // In place of the third, the second under its name; then none; then a whole file among them.
    std::fs::copy(copied.path().join(part(2)), copied.path().join(part(3))).unwrap();
    let error = load(copied.path()).err().unwrap().to_string();
    assert!(error.contains("part 3") && error.contains("part 2"), "{error}");
    std::fs::remove_file(copied.path().join(part(3))).unwrap();
    assert!(matches!(load(copied.path()), Err(Error::MissingFile { file, .. }) if file == part(3)));
    std::fs::copy(folder().join("llama-tied.gguf"), copied.path().join("other.gguf")).unwrap();
    assert!(matches!(load(copied.path()), Err(Error::SeveralGgufFiles { .. })));
    std::fs::copy(folder().join(part(1)), copied.path().join("renamed.gguf")).unwrap();
    let error = load(&copied.path().join("renamed.gguf")).err().unwrap().to_string();
    assert!(error.contains("00001-of-00003"), "{error}");
}

#[test]
fn projections_of_qwen2_need_no_biases() {
    let missing = changed("qwen2-yarn.gguf", &[(b"blk.0.attn_q.bias", b"blk.0.attn_q.none")]);
    assert_eq!(missing, Ok(()));
}

#[test]
fn a_scale_of_attention_counts_for_nothing_in_gemma_3() {
    let written = |path: &Path| greedy(&load(path).unwrap(), &[3, 5, 8, 13], 12);
    let keys = [("gemma3.attention.scale", 6, 7.5f32.to_le_bytes())];
    let scaled = with_keys("gemma3-linear.gguf", &keys, written);
    assert_eq!(scaled, written(&folder().join("gemma3-linear.gguf")));
}

#[test]
fn gemma_2_has_defaults_and_its_largest_model_scales_by_the_width() {
    let config = |path: &Path| DecoderConfig::from_gguf(&open(path).unwrap()).unwrap();
    let small = config(&folder().join("gemma2-defaults.gguf"));
    assert_eq!((small.transformer.attention.soft_cap, small.logit_cap), (Some(50.0), Some(30.0)));
    let masks: Vec<AttentionMask> = small.transformer.layers.iter().map(|layer| layer.mask).collect();
    assert_eq!(masks, [AttentionMask::SlidingWindow(4096), AttentionMask::Causal]);
    // Of 32 numbers and 4 heads of 16.
    let depth =
        |layers: u32| [&b"gemma2.block_count"[..], &4u32.to_le_bytes(), &layers.to_le_bytes()].concat();
    let scale = |layers| {
        let changes: [(&[u8], &[u8]); 1] = [(&depth(2), &depth(layers))];
        with_changes("gemma2-window.gguf", &changes, config).transformer.attention.scale
    };
    assert_eq!((scale(42), scale(46)), (0.25, 1.0 / 8f32.sqrt()));
}

#[test]
fn what_no_gemma_2_and_no_mixture_of_experts_has_is_refused_by_name() {
    let number = |number: u32| number.to_le_bytes();
    for (file, key, kind, value) in [
        ("gemma2-window", "gemma2.rope.freq_base_swa", 6, 500f32.to_le_bytes()),
        ("gemma2-window", "gemma2.expert_count", 4, number(4)),
        ("qwen3moe-experts", "qwen3moe.expert_weights_scale", 6, 2.5f32.to_le_bytes()),
        ("qwen3moe-experts", "qwen3moe.expert_weights_norm", 4, number(0)),
        ("qwen2moe-experts", "qwen2moe.expert_weights_norm", 4, number(1)),
        ("qwen3moe-experts", "qwen3moe.expert_gating_func", 4, number(2)),
        ("qwen3moe-experts", "qwen3moe.expert_group_count", 4, number(2)),
        ("qwen2moe-experts", "qwen2moe.leading_dense_block_count", 4, number(1)),
        ("llama-experts", "llama.expert_shared_feed_forward_length", 4, number(32)),
    ] {
        let file = format!("{file}.gguf");
        let error = with_keys(&file, &[(key, kind, value)], |path| load(path).err().unwrap().to_string());
        let named = if key.ends_with("expert_count") { "gemma2 has no mixture of experts" } else { key };
        assert!(error.contains(named), "{key}: {error}");
    }
    // The control: the values that these architectures have.
    let same = [
        ("qwen3moe.expert_weights_scale", 6, 1f32.to_le_bytes()),
        ("qwen3moe.expert_weights_norm", 4, number(1)),
        ("qwen3moe.expert_gating_func", 4, number(1)),
    ];
    assert!(with_keys("qwen3moe-experts.gguf", &same, |path| load(path).is_ok()));
}
