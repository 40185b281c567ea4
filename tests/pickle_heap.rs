//! A tensor of a pickle that does not lie row by row is read without more memory than one that does, gaps or not. This is
//! the only test of its process, because it counts every byte of the process's heap.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::alloc::System;
use std::io::Write as _;
use std::path::Path;

use candle_actors::{Source, StandaloneModel as _, TextEmbeddingModel};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use zip::write::SimpleFileOptions;

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const MIB: usize = 1 << 20;
const ROWS: usize = 400;
const WIDTH: usize = 1 << 14;

/// A pickle of one table, of which the numbers have these strides in a store of so many.
fn pickle(count: usize, strides: [usize; 2]) -> Vec<u8> {
    let number = |number: usize| [b"J", &u32::try_from(number).unwrap().to_le_bytes()[..]].concat();
    let text =
        |text: &str| [b"X", &u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat();
    let pair = |[one, two]: [usize; 2]| [number(one), number(two), vec![0x86]].concat();
    [
        b"\x80\x02}".to_vec(),
        text("embedding.weight"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        number(count),
        b"tQK\x00".to_vec(),
        pair([ROWS, WIDTH]),
        pair(strides),
        b"\x89)tRs.".to_vec(),
    ]
    .concat()
}

/// A static embedding whose table lies with these strides in a store of so many numbers.
fn folder(count: usize, strides: [usize; 2]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let sound = common::root().join("tests/fixtures/text_embedding/static");
    for name in ["config.json", "modules.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(sound.join(name), folder.path().join(name)).unwrap();
    }
    let mut numbers = vec![0; 4 * count];
    for row in 0..ROWS {
        for column in 0..WIDTH {
            let value = f32::from(u16::try_from((row * 7 + column * 3) % 101).unwrap());
            let at = 4 * (row * strides[0] + column * strides[1]);
            numbers[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    let file = std::fs::File::create(folder.path().join("pytorch_model.bin")).unwrap();
    let mut zip = zip::ZipWriter::new(file);
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("archive/data.pkl", pickle(count, strides)), ("archive/data/0", numbers)] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap();
    folder
}

/// The vectors of a text, and the bytes that the load allocates, those that are freed again included.
fn load(folder: &Path) -> (Vec<Vec<f32>>, usize) {
    let before = HEAP.stats().bytes_allocated;
    let model = TextEmbeddingModel::load(Source::directory(folder)).unwrap();
    let bytes = HEAP.stats().bytes_allocated - before;
    (model.embed(&["The cat sleeps on the warm windowsill."]).unwrap(), bytes)
}

#[test]
fn a_view_is_read_without_memory_of_its_own() {
    let (expected, plain) = load(folder(ROWS * WIDTH, [WIDTH, 1]).path());
    for (kind, count, strides) in [
        ("turned", ROWS * WIDTH, [1, ROWS]),
        ("with gaps", 2 * ROWS * WIDTH, [2 * WIDTH, 1]),
        ("turned with gaps", 2 * ROWS * WIDTH, [1, 2 * ROWS]),
    ] {
        let (found, bytes) = load(folder(count, strides).path());
        println!("{kind}: {} MiB, row by row {} MiB", bytes / MIB, plain / MIB);
        assert!(found == expected, "{kind}");
        assert!(bytes < plain + 4 * MIB, "{kind}: {bytes} bytes, row by row {plain}");
    }
}
