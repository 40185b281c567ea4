//! Files within their limits that are made to become gigabytes in memory are refused before they do. This is the only test
//! of its process, because it counts every byte of the process's heap.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::alloc::System;
use std::path::Path;

use candle_actors::{
    Error, Source, StandaloneModel, TextEmbeddingModel, TextGenerationModel, TextToImageModel,
};
use common::folders::copied;
use common::model::{TinyModel, write};
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const MIB: usize = 1 << 20;

/// The error of a load, and the bytes that it allocates, those that are freed again included.
fn load<M: StandaloneModel>(folder: &Path) -> (Option<Error>, usize) {
    let before = HEAP.stats().bytes_allocated;
    let error = M::load(Source::directory(folder)).err();
    (error, HEAP.stats().bytes_allocated - before)
}

/// A list of so many bytes or a few more.
fn list(item: &str, bytes: usize) -> String {
    let items = vec![item; bytes / (item.len() + 1)];
    format!("[{}]", items.join(","))
}

/// A tokenizer with this in place of one of its parts.
fn tokenizer(part: &str, content: &str) -> String {
    let sound = TinyModel::new().files().into_iter().find(|(name, _)| *name == "tokenizer.json").unwrap().1;
    let mut sound: serde_json::Value = serde_json::from_slice(&sound).unwrap();
    *sound.pointer_mut(part).unwrap() = "HERE".into();
    sound.to_string().replace("\"HERE\"", content)
}

/// A weight file with this header.
fn weights(header: &str) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()
}

fn table(entries: usize, value: &str) -> String {
    let entries: Vec<String> = (0..entries).map(|index| format!("\"{index:x}\":{value}")).collect();
    format!("{{{}}}", entries.join(","))
}

/// A GGUF file with a vocabulary of so many tokens.
fn gguf(tokens: u64) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut file =
        [b"GGUF".as_slice(), &3u32.to_le_bytes(), &0u64.to_le_bytes(), &3u64.to_le_bytes()].concat();
    for (key, value) in [("general.architecture", "llama"), ("tokenizer.ggml.model", "llama")] {
        file.extend([text(key), 8u32.to_le_bytes().to_vec(), text(value)].concat());
    }
    file.extend(text("tokenizer.ggml.tokens"));
    file.extend([9u32.to_le_bytes().as_slice(), &8u32.to_le_bytes(), &tokens.to_le_bytes()].concat());
    (0..tokens).for_each(|token| file.extend(text(&format!("{token:x}"))));
    file
}

#[test]
fn no_file_becomes_many_times_its_size_in_memory() {
    let normalizer = r#"{"type":"Strip","strip_left":true,"strip_right":true}"#;
    let pattern = r#"{"type":"Replace","pattern":{"Regex":"\\w{900}"},"content":""}"#;
    let normalizers = |item, bytes| format!(r#"{{"type":"Sequence","normalizers":{}}}"#, list(item, bytes));
    let token = r#"{"id":9,"content":"a","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}"#;
    let entry = r#"{"dtype":"F32","shape":[],"data_offsets":[0,0]}"#;
    let wide =
        format!(r#"{{"a":{{"dtype":"F32","shape":{},"data_offsets":[0,0]}}}}"#, list("0", 16 * MIB - 99));
    let nothing = 8 * MIB;
    for (name, file, content, most) in [
        (
            "normalizers",
            "tokenizer.json",
            tokenizer("/normalizer", &normalizers(normalizer, 47 * MIB)).into_bytes(),
            120 * MIB,
        ),
        (
            "patterns",
            "tokenizer.json",
            tokenizer("/normalizer", &normalizers(pattern, MIB)).into_bytes(),
            nothing,
        ),
        (
            "splits",
            "tokenizer.json",
            tokenizer("/pre_tokenizer", &list("0", 40 * MIB)).into_bytes(),
            100 * MIB,
        ),
        (
            "added tokens",
            "tokenizer.json",
            tokenizer("/added_tokens", &list(token, 40 * MIB)).into_bytes(),
            100 * MIB,
        ),
        (
            "tokens",
            "tokenizer.json",
            tokenizer("/model/vocab", &table((1 << 20) + 1, "7")).into_bytes(),
            40 * MIB,
        ),
        ("a large tokenizer", "tokenizer.json", vec![b' '; 60 * MIB], nothing),
        ("a large configuration", "config.json", vec![b' '; 60 * MIB], nothing),
        ("tables", "config.json", list(r#"{"a":0}"#, 4 * MIB - 99).into_bytes(), 16 * MIB),
        ("lists", "modules.json", list("[]", 4 * MIB - 99).into_bytes(), 16 * MIB),
        ("an index", "model.safetensors.index.json", vec![b' '; 17 * MIB], nothing),
        ("a large header", "model.safetensors", weights(&table(1 << 19, entry)), nothing),
        ("a header", "model.safetensors", weights(&table(280_000, entry)), 200 * MIB),
        ("many sides", "model.safetensors", weights(&wide), 300 * MIB),
        (
            "metadata",
            "model.safetensors",
            weights(&format!(r#"{{"__metadata__":{}}}"#, list("{}", 15 * MIB))),
            64 * MIB,
        ),
    ] {
        let folder = TinyModel::new().write();
        if file.ends_with("index.json") {
            std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        }
        write(folder.path(), file, &content);
        let (error, bytes) = load::<TextEmbeddingModel>(folder.path());
        let error = error.unwrap_or_else(|| panic!("{name} are taken"));
        println!("{name}: {} MiB of {} MiB: {error}", bytes / MIB, content.len() / MIB);
        assert!(bytes < most, "{name}: {bytes} bytes: {error}");
    }
    for (tokens, most) in [(8 << 20, nothing), ((1 << 20) + 1, 200 * MIB)] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "model.gguf", &gguf(tokens));
        let (error, bytes) = load::<TextGenerationModel>(folder.path());
        println!("a GGUF file of {tokens} tokens: {} MiB: {}", bytes / MIB, error.unwrap());
        assert!(bytes < most, "{tokens} tokens: {bytes} bytes");
    }
    clip_files_are_bounded();
    the_largest_published_vocabularies_are_read();
}

/// CLIP's vocabulary and merges, which are no `tokenizer.json`.
fn clip_files_are_bounded() {
    let sound = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_to_image/sd15");
    for (file, content, most) in [
        ("vocab.json", vec![b' '; 60 * MIB], 16 * MIB),
        ("merges.txt", vec![b'\n'; 60 * MIB], 16 * MIB),
        ("merges.txt", b"a a\n".repeat(MIB - 1), 48 * MIB),
    ] {
        let folder = copied(&sound);
        std::fs::write(folder.path().join("tokenizer").join(file), &content).unwrap();
        let (error, bytes) = load::<TextToImageModel>(folder.path());
        let error = error.unwrap_or_else(|| panic!("{file} of {} bytes is taken", content.len()));
        println!("{file}: {} MiB of {} MiB: {error}", bytes / MIB, content.len() / MIB);
        assert!(error.to_string().contains(file) && bytes < most, "{file}: {bytes} bytes: {error}");
    }
}

/// The control: a vocabulary as large as those of published models is read.
fn the_largest_published_vocabularies_are_read() {
    let tokens = 262_144;
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        (0..tokens).map(|token| (format!("{token:x}"), json!(token))).collect();
    // Each of four digits is made of its halves.
    let merges: Vec<serde_json::Value> = (0x1000..0x10000usize)
        .map(|token| format!("{token:x}"))
        .map(|token| json!([token[..2], token[2..]]))
        .filter(|pair| !pair[1].as_str().unwrap().starts_with('0'))
        .collect();
    let model = json!({"type": "BPE", "vocab": vocabulary, "merges": merges});
    let folder = TinyModel::new().write();
    let file = tokenizer("/model", &model.to_string());
    write(folder.path(), "tokenizer.json", file.as_bytes());
    let (error, bytes) = load::<TextEmbeddingModel>(folder.path());
    println!("{} MiB of {} MiB", bytes / MIB, file.len() / MIB);
    // The model knows fewer, which fails only a text that has one of the others.
    assert!(error.is_none(), "{error:?}");
    assert!(bytes < 600 * MIB, "{bytes}");
}
