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
        let segment = Segment { cache: &mut cache, length: next.len(), positions: None };
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
    let mut bytes = std::fs::read(folder().join(name)).unwrap();
    for (from, to) in changes {
        let place = bytes.windows(from.len()).position(|window| window == *from).unwrap();
        bytes[place..place + to.len()].copy_from_slice(to);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.gguf");
    std::fs::write(&path, bytes).unwrap();
    load(&path).map(drop)
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
    let value = |key: &str, kind: u32, value: [u8; 4]| {
        [&(key.len() as u64).to_le_bytes(), key.as_bytes(), &kind.to_le_bytes(), &value].concat()
    };
    let scale = value("gemma3.attention.scale", 6, 7.5f32.to_le_bytes());
    // The tensors stay aligned.
    let values = [scale, value("general.xy", 4, [0; 4])].concat();
    assert_eq!(values.len(), 64);
    let path = folder().join("gemma3-linear.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[16] += 2;
    bytes.splice(24..24, values);
    let folder = tempfile::tempdir().unwrap();
    let scaled = folder.path().join("scaled.gguf");
    std::fs::write(&scaled, bytes).unwrap();
    let written = |path: &Path| greedy(&load(path).unwrap(), &[3, 5, 8, 13], 12);
    assert_eq!(written(&scaled), written(&path));
}
