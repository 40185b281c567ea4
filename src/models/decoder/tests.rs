//! Every family's fixture against transformers: logits and greedy texts, alone, together, in pieces.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use model_actors::LoadContext;
use serde::Deserialize;
use serde_json::{Value, json};

use super::*;
use crate::architecture;
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::kernels::packed::Arithmetic;
use crate::models::folders::families_of;
use crate::models::transformer::{Cache, Segment};
use crate::source::{Files, read_json};
use crate::weights::WeightFiles;

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

pub(super) struct Fixture {
    pub(super) decoder: Decoder,
    cases: Vec<Case>,
    expected: HashMap<String, Tensor>,
}

pub(super) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_to_text").join(name)
}

/// The names of the fixtures in safetensors, and of those in GGUF.
pub(super) fn by_kind() -> (Vec<String>, Vec<String>) {
    families_of("text_to_text").into_iter().partition(|name| folder(name).join("config.json").exists())
}

pub(super) fn find(file: &Path, config: &Value) -> Result<DecoderConfig> {
    architecture::find(FAMILIES, "text to text", file, config)
}

fn open(path: &Path) -> Files {
    Files::directory(path)
}

impl Fixture {
    fn read(name: &str) -> Self {
        Self::by(name, Arithmetic::Exact)
    }

    pub(super) fn by(name: &str, arithmetic: Arithmetic) -> Self {
        let path = folder(name);
        let context = LoadContext::detached(&name.into());
        if let Some(file) = open(&path).gguf(&context).unwrap() {
            let file = GgufFile::open(&file).unwrap();
            let config = DecoderConfig::from_gguf(&file).unwrap();
            let decoder = config.load_gguf(&file, &Device::Cpu, arithmetic, &context).unwrap();
            return Self::with(decoder, &path);
        }
        let config = find(Path::new("config.json"), &read_json(&path.join("config.json")).unwrap()).unwrap();
        let weights = WeightFiles::open(&open(&path), "", &context).unwrap();
        let decoder = config.load(&weights, &Device::Cpu, &context).unwrap();
        Self::with(decoder, &path)
    }

    fn with(decoder: Decoder, path: &Path) -> Self {
        let cases: Cases = read_json(&path.join("expected.json")).unwrap();
        let expected =
            candle_core::safetensors::load(path.join("expected.safetensors"), &Device::Cpu).unwrap();
        Self { decoder, cases: cases.cases, expected }
    }

    fn expected(&self, name: &str) -> Vec<f32> {
        self.expected[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Each sequence's next tokens in one pass, and the logits behind them. A sequence that outgrows its
    /// cache is read again in pieces of `piece` tokens, but for those of this pass.
    fn next(&self, texts: &mut [Text], tokens: &[&[u32]], piece: usize) -> Vec<Vec<f32>> {
        for (text, next) in texts.iter_mut().zip(tokens) {
            let length = text.tokens.len() + next.len();
            if self.decoder.outgrows(&text.cache, length) {
                text.cache.restart(length);
                for piece in text.tokens.chunks(piece) {
                    self.step(std::slice::from_mut(&mut text.cache), &[piece]);
                }
            }
            text.tokens.extend_from_slice(next);
        }
        self.step(texts.iter_mut().map(|text| &mut text.cache), tokens)
    }

    /// Each sequence's next tokens in one pass, and the logits behind them.
    pub(super) fn step<'a>(
        &self,
        caches: impl IntoIterator<Item = &'a mut Cache>,
        tokens: &[&[u32]],
    ) -> Vec<Vec<f32>> {
        let all: Vec<u32> = tokens.concat();
        let rows = self.decoder.embed(&all).unwrap();
        let pairs = caches.into_iter().zip(tokens);
        let mut segments: Vec<Segment<'_>> = pairs
            .map(|(cache, tokens)| Segment { cache, length: tokens.len(), positions: None, adapter: None })
            .collect();
        let hidden = self.decoder.forward(&rows, &mut segments).unwrap();
        let logits = self.decoder.logits(&hidden).unwrap().to_vec2::<f32>().unwrap();
        let mut end = 0;
        let last = tokens.iter().map(|tokens| {
            end += tokens.len();
            logits[end - 1].clone()
        });
        last.collect()
    }

    /// The greedy text of a prompt and the logits behind it, alone.
    fn greedy(&self, prompt: &[u32]) -> (Vec<u32>, Vec<f32>) {
        let mut texts = [self.text(prompt)];
        let mut logits = self.next(&mut texts, &[prompt], usize::MAX).remove(0);
        let mut tokens = Vec::new();
        for _ in 0..64 {
            tokens.push(best(&logits));
            logits = self.next(&mut texts, &[&tokens[tokens.len() - 1..]], usize::MAX).remove(0);
        }
        (tokens, logits)
    }

    /// A text that begins with a prompt, of which nothing is read.
    fn text(&self, prompt: &[u32]) -> Text {
        Text { cache: self.decoder.cache(prompt.len()).unwrap(), tokens: Vec::new() }
    }
}

/// A sequence with the tokens that were read.
struct Text {
    cache: Cache,
    tokens: Vec<u32>,
}

fn best(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|left, right| left.1.total_cmp(right.1));
    best.map(|(token, _)| token as u32).unwrap()
}

fn difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_and_greedy_texts_are_the_references() {
    for name in families_of("text_to_text") {
        let fixture = Fixture::read(&name);
        let mut largest = 0.0f32;
        for (index, case) in fixture.cases.iter().enumerate() {
            let mut caches = [fixture.decoder.cache(0).unwrap()];
            let logits = fixture.step(&mut caches, &[&case.prompt]).remove(0);
            largest = largest.max(difference(&logits, &fixture.expected(&format!("prompt.{index}"))));
            let (tokens, logits) = fixture.greedy(&case.prompt);
            assert_eq!(tokens, case.greedy, "{name}, prompt {index}");
            largest = largest.max(difference(&logits, &fixture.expected(&format!("greedy.{index}"))));
        }
        let rows = fixture.decoder.embed(&fixture.cases[1].prompt).unwrap();
        let hidden = fixture.decoder.encode(&rows, &[fixture.cases[1].prompt.len()], || Ok(())).unwrap();
        let every: Vec<f32> =
            fixture.decoder.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        largest = largest.max(difference(&every, &fixture.expected("every")));
        println!("{name}: largest difference from transformers {largest:.1e}");
        assert!(largest < 1e-4, "{name}: {largest}");
    }
}

/// Along the reference's greedy texts: logits by products of integers, which are the default, drift little, and the best
/// token is the reference's wherever the two best differ by more than [`MARGIN`].
#[test]
fn products_of_integers_change_no_token_but_at_narrow_margins() {
    /// As a share of the logits' standard deviation, which in random models is small.
    const MARGIN: f32 = 0.75;
    const DRIFT: f32 = 0.2;
    let (_, names) = by_kind();
    assert!(names.len() >= 5);
    for name in names {
        let (rounded, exact) = (Fixture::by(&name, Arithmetic::EightBit), Fixture::read(&name));
        let (mut drift, mut widest, mut others, mut compared) = (0f32, 0f32, 0, 0);
        for case in &exact.cases {
            let (mut ours, mut theirs) = ([rounded.text(&case.prompt)], [exact.text(&case.prompt)]);
            let mut next = case.prompt.clone();
            for token in &case.greedy {
                let ours = rounded.next(&mut ours, &[&next], 7).remove(0);
                let theirs = exact.next(&mut theirs, &[&next], 7).remove(0);
                next = vec![*token];
                let deviation = root_mean_square(theirs.iter().copied());
                drift += root_mean_square(ours.iter().zip(&theirs).map(|(a, b)| a - b)) / deviation;
                let gap = theirs[best(&theirs) as usize] - theirs[best(&ours) as usize];
                widest = widest.max(gap / deviation);
                others += usize::from(gap > 0.0);
                compared += 1;
            }
        }
        let drift = drift / compared as f32;
        println!("{name}: {compared} tokens, {others} others at gaps to {widest:.3}, drift {drift:.4}");
        assert!(compared > 100 && drift > 0.0 && drift < DRIFT && widest <= MARGIN, "{name}");
    }
}

fn root_mean_square(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let count = values.len() as f32;
    (values.map(|value| value * value).sum::<f32>() / count).sqrt()
}

#[test]
fn sequences_together_and_prompts_in_pieces_give_what_they_give_alone() {
    let (plain, quantised) = by_kind();
    let all = plain.into_iter().map(|name| (name, Arithmetic::Exact));
    let rounded = quantised.iter().map(|name| (name.clone(), Arithmetic::EightBit));
    let exact = quantised.iter().map(|name| (name.clone(), Arithmetic::Exact));
    for (name, arithmetic) in all.chain(rounded).chain(exact) {
        let fixture = Fixture::by(&name, arithmetic);
        let alone: Vec<_> = fixture.cases.iter().map(|case| fixture.greedy(&case.prompt)).collect();
        // A sequence joins every few steps, its prompt in pieces of seven tokens, while the others write on.
        let mut texts: Vec<Text> = Vec::new();
        let mut pending: Vec<Vec<u32>> = Vec::new();
        let mut written: Vec<Vec<u32>> = vec![Vec::new(); fixture.cases.len()];
        let mut last: Vec<Vec<f32>> = vec![Vec::new(); fixture.cases.len()];
        for step in 0.. {
            if step % 5 == 0 && texts.len() < fixture.cases.len() {
                let prompt = &fixture.cases[texts.len()].prompt;
                pending.push(prompt.clone());
                texts.push(fixture.text(prompt));
            }
            let next: Vec<Vec<u32>> =
                pending.iter_mut().map(|rest| rest.drain(..rest.len().min(7)).collect()).collect();
            let tokens: Vec<&[u32]> = next.iter().map(Vec::as_slice).collect();
            let logits = fixture.next(&mut texts, &tokens, 7);
            for (index, logits) in logits.into_iter().enumerate() {
                if pending[index].is_empty() && written[index].len() < 64 {
                    written[index].push(best(&logits));
                    pending[index].push(best(&logits));
                } else if pending[index].is_empty() && last[index].is_empty() {
                    last[index] = logits;
                    pending[index].push(0);
                } else if pending[index].is_empty() {
                    pending[index].push(0);
                }
            }
            if last.iter().all(|logits| !logits.is_empty()) {
                break;
            }
        }
        let mut largest = 0.0f32;
        for (index, (tokens, logits)) in alone.iter().enumerate() {
            assert_eq!(&written[index], tokens, "{name}, prompt {index}");
            largest = largest.max(difference(&last[index], logits));
        }
        println!("{name}: largest difference between alone and together {largest:.1e}");
        assert!(largest < 1e-5, "{name}: {largest}");
    }
}

#[test]
fn a_cache_grows_in_steps_and_serves_another_sequence_once_cleared() {
    for name in ["qwen3", "qwen3_next"] {
        let fixture = Fixture::read(name);
        let prompt = &fixture.cases[2].prompt;
        let mut caches = [fixture.decoder.cache(0).unwrap()];
        assert_eq!(caches[0].bytes().0, 0);
        let first = fixture.step(&mut caches, &[prompt]);
        let bytes = caches[0].bytes();
        assert_eq!(bytes, fixture.decoder.config.cache_bytes(prompt.len(), 1));
        caches[0].restart(0);
        assert_eq!(fixture.step(&mut caches, &[prompt]), first);
        assert_eq!(caches[0].bytes(), bytes);
    }
}

/// Qwen3.5 as it is published: beside a vision tower and layers that predict several tokens at a time.
#[test]
fn the_text_half_of_a_model_that_sees_images_writes_as_it_does_alone() {
    for family in ["qwen3_5", "qwen3_5_moe"] {
        writes_beside_a_vision_tower(family);
    }
}

fn writes_beside_a_vision_tower(family: &str) {
    let (context, alone) = (LoadContext::detached(&"half".into()), folder(family));
    let mut text: Value = read_json(&alone.join("config.json")).unwrap();
    let is_tied = text.as_object_mut().unwrap().remove("tie_word_embeddings").unwrap();
    let whole = json!({"model_type": family, "text_config": text, "tie_word_embeddings": is_tied});
    let config = find(Path::new("config.json"), &whole).unwrap();
    let tensors = candle_core::safetensors::load(alone.join("model.safetensors"), &Device::Cpu).unwrap();
    let renamed =
        |(name, tensor): (String, Tensor)| (name.replacen("model.", "model.language_model.", 1), tensor);
    let mut tensors: HashMap<String, Tensor> = tensors.into_iter().map(renamed).collect();
    stack_experts(&mut tensors);
    for extra in ["model.visual.blocks.0.norm1.weight", "mtp.fc.weight"] {
        tensors.insert(extra.to_owned(), Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap());
    }
    let own = tempfile::tempdir().unwrap();
    candle_core::safetensors::save(&tensors, own.path().join("model.safetensors")).unwrap();
    let weights = WeightFiles::open(&open(own.path()), "", &context).unwrap();
    let decoder = config.load(&weights, &Device::Cpu, &context).unwrap();
    weights.check_all_read(|tensor| config.has_no_effect(tensor)).unwrap();
    let fixture = Fixture::with(decoder, &alone);
    let case = &fixture.cases[2];
    assert_eq!(fixture.greedy(&case.prompt).0, case.greedy);
}

/// Puts the matrices of a layer's experts into one tensor for each place, as they are published.
fn stack_experts(tensors: &mut HashMap<String, Tensor>) {
    for layer in 0..8 {
        let path = format!("model.language_model.layers.{layer}.mlp.experts");
        let mut take =
            |expert: usize, part: &str| tensors.remove(&format!("{path}.{expert}.{part}_proj.weight"));
        let (mut gate_ups, mut downs) = (Vec::new(), Vec::new());
        while let Some(down) = take(downs.len(), "down") {
            let [gate, up] = ["gate", "up"].map(|part| take(downs.len(), part).unwrap());
            gate_ups.push(Tensor::cat(&[gate, up], 0).unwrap());
            downs.push(down);
        }
        if !downs.is_empty() {
            let stack = |matrices: Vec<Tensor>| Tensor::stack(&matrices, 0).unwrap();
            tensors.insert(format!("{path}.gate_up_proj"), stack(gate_ups));
            tensors.insert(format!("{path}.down_proj"), stack(downs));
        }
    }
}

#[test]
fn a_sequence_beyond_the_context_and_an_unknown_token_are_refused() {
    let fixture = Fixture::read("llama");
    let rows = fixture.decoder.embed(&vec![1; 513]).unwrap();
    let mut cache = fixture.decoder.cache(0).unwrap();
    let mut segments = [Segment { cache: &mut cache, length: 513, positions: None, adapter: None }];
    let refused = fixture.decoder.forward(&rows, &mut segments).unwrap_err();
    assert!(refused.to_string().contains("513") && refused.to_string().contains("512"), "{refused}");
    assert!(matches!(fixture.decoder.embed(&[384]), Err(Error::InvalidInput(_))));
}

#[test]
fn a_gguf_file_brings_its_tokenizer() {
    for name in by_kind().1 {
        let context = LoadContext::detached(&name.as_str().into());
        let file = open(&folder(&name)).gguf(&context).unwrap().unwrap();
        let tokenizer = GgufFile::open(&file).unwrap().tokenizer().unwrap();
        assert_eq!(tokenizer.tokens.len(), 384, "{name}");
        assert_eq!(tokenizer.kinds.len(), 384, "{name}");
        assert_eq!(tokenizer.merges.is_empty(), tokenizer.model == "llama", "{name}");
        assert_eq!(tokenizer.scores.is_empty(), tokenizer.model == "gpt2", "{name}");
        assert!(tokenizer.end.is_some() && tokenizer.chat_template.is_some(), "{name}");
    }
}

/// GPT-OSS's experts as they are published.
#[test]
fn damaged_blocks_of_experts_are_errors_by_name() {
    let context = LoadContext::detached(&"damaged".into());
    let fixture = folder("gpt_oss_mxfp4");
    let config = find(Path::new("config.json"), &read_json(&fixture.join("config.json")).unwrap()).unwrap();
    let sound = candle_core::safetensors::load(fixture.join("model.safetensors"), &Device::Cpu).unwrap();
    let part = "model.layers.1.mlp.experts.down_proj";
    let (blocks, scales) = (format!("{part}_blocks"), format!("{part}_scales"));
    let load = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let mut tensors = sound.clone();
        change(&mut tensors);
        let folder = tempfile::tempdir().unwrap();
        candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
        let weights = WeightFiles::open(&open(folder.path()), "", &context)?;
        config.load(&weights, &Device::Cpu, &context)?;
        weights.check_all_read(|tensor| config.has_no_effect(tensor))
    };
    load(&|_| {}).unwrap();
    let nan = |tensors: &mut HashMap<String, Tensor>| {
        let shape = tensors[&scales].shape().clone();
        let all = Tensor::full(255u8, shape, &Device::Cpu).unwrap();
        tensors.insert(scales.clone(), all);
    };
    // The power of two that stands for no number.
    let error = load(&nan).unwrap_err();
    assert!(matches!(&error, Error::NotFinite { tensor, .. } if *tensor == blocks), "{error}");
    let error = load(&|tensors| drop(tensors.remove(&scales))).unwrap_err();
    assert!(matches!(&error, Error::MissingTensor { tensor } if *tensor == scales), "{error}");
    let error = load(&|tensors| {
        let floats = tensors[&blocks].to_dtype(candle_core::DType::F32).unwrap();
        tensors.insert(blocks.clone(), floats);
    });
    assert!(matches!(error, Err(Error::UnsupportedNumbers { .. })), "{error:?}");
    let error = load(&|tensors| {
        let shape = tensors[&blocks].dims().to_vec();
        let less = tensors[&blocks].narrow(0, 0, shape[0] - 1).unwrap().contiguous().unwrap();
        tensors.insert(blocks.clone(), less);
    });
    assert!(matches!(error, Err(Error::ShapeMismatch { .. })), "{error:?}");
}

#[test]
fn damaged_gguf_files_are_errors() {
    let context = LoadContext::detached(&"damaged".into());
    let file = open(&folder("gguf_qwen2")).gguf(&context).unwrap().unwrap();
    let sound = std::fs::read(file).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.gguf");
    let load = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let file = GgufFile::open(&path)?;
        DecoderConfig::from_gguf(&file)?
            .load_gguf(&file, &Device::Cpu, Arithmetic::Exact, &context)
            .map(|_| ())
    };
    load(&sound).unwrap();
    assert!(matches!(load(&sound[..sound.len() - 40]), Err(Error::TruncatedWeights { .. })));
    assert!(matches!(load(&sound[..1000]), Err(Error::InvalidGguf { .. })));
    let replaced = |from: &[u8], to: &[u8]| {
        let place = sound.windows(from.len()).position(|window| window == from).unwrap();
        [&sound[..place], to, &sound[place + to.len()..]].concat()
    };
    assert!(matches!(load(&replaced(b"qwen2", b"other")), Err(Error::UnsupportedArchitecture { .. })));
    assert!(matches!(
        load(&replaced(b"blk.1.attn_k.weight", b"blk.1.attn_z")),
        Err(Error::MissingTensor { .. })
    ));
    assert!(matches!(load(&replaced(b"qwen2.block_count", b"qwen2.brick")), Err(Error::InvalidGguf { .. })));
    // Whatever byte of the header is flipped: no panic, no wait.
    let header = sound.windows(4).rposition(|window| window == b"blk.").unwrap();
    for place in (0..header).step_by(97) {
        let mut bytes = sound.clone();
        bytes[place] ^= 0x55;
        let _ = load(&bytes);
    }
}

#[test]
fn a_directory_with_several_gguf_files_is_refused_and_one_can_be_named() {
    let context = LoadContext::detached(&"several".into());
    let folder = tempfile::tempdir().unwrap();
    assert!(open(folder.path()).gguf(&context).unwrap().is_none());
    for name in ["a.gguf", "b.gguf"] {
        std::fs::write(folder.path().join(name), b"GGUF").unwrap();
    }
    let refused = open(folder.path()).gguf(&context).unwrap_err();
    assert!(refused.to_string().contains("a.gguf, b.gguf"), "{refused}");
    let named = folder.path().join("b.gguf");
    assert_eq!(open(&named).gguf(&context).unwrap(), Some(named));
}

#[test]
fn a_sequence_that_outgrew_its_rotary_embedding_is_not_read_on() {
    let fixture = Fixture::read("phi3");
    let rows = |count: usize| fixture.decoder.embed(&vec![1; count]).unwrap();
    let mut cache = fixture.decoder.cache(0).unwrap();
    let read = |cache: &mut Cache, length: usize| {
        let segment = Segment { cache, length, positions: None, adapter: None };
        fixture.decoder.forward(&rows(length), &mut [segment]).map(drop)
    };
    read(&mut cache, 24).unwrap();
    assert!(fixture.decoder.outgrows(&cache, 25) && !fixture.decoder.outgrows(&cache, 24));
    assert!(read(&mut cache, 1).is_err());
    cache.restart(25);
    // However short the pieces, it is the same that comes out.
    for length in [1, 8, 15, 1, 30] {
        assert!(!fixture.decoder.outgrows(&cache, cache.length() + length));
        read(&mut cache, length).unwrap();
    }
    assert_eq!(cache.length(), 55);
    assert_eq!(fixture.decoder.config.steady_context(), 24);
}
