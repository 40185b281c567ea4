//! The tower in parts and whole: the same numbers, in bounded pieces.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use model_actors::{LoadContext, ModelId};
use serde_json::Value;

use super::super::{StepwiseTower as _, Unfinished};
use super::tower::{Tower, TowerConfig};
use super::{qwen2_5, qwen3};
use crate::error::Result;
use crate::kernels::random;
use crate::models::transformer::SafeTensors;
use crate::source::{Files, read_json};
use crate::weights::WeightFiles;

type Read = fn(&Path, &Value) -> Result<TowerConfig>;

fn tower(family: &str, read: Read, prefix: &'static str) -> Tower {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vision").join(family);
    let file = folder.join("config.json");
    let config = read(&file, &read_json::<Value>(&file).unwrap()["vision_config"]).unwrap();
    let context = LoadContext::detached(&ModelId::from(family));
    let weights = WeightFiles::open(&Files::directory(&folder), "", &context).unwrap();
    let reader = weights.reader(prefix, &Device::Cpu, &context);
    Tower::load(&config, &SafeTensors::new(&reader, "", config.transformer.workload)).unwrap()
}

/// The result of all parts, and their number.
fn all<T>(mut part: impl FnMut(&mut Option<Unfinished>) -> Result<Option<T>>) -> (T, usize) {
    let (mut unfinished, mut parts) = (None, 1);
    loop {
        match part(&mut unfinished).unwrap() {
            Some(made) => {
                assert!(unfinished.is_none());
                return (made, parts);
            }
            None => parts += 1,
        }
    }
}

fn assert_same(left: &Tensor, right: &Tensor) {
    let difference = (left - right).unwrap().abs().unwrap().max_all().unwrap();
    assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);
}

#[test]
fn what_is_done_in_parts_is_what_is_done_at_once() {
    let mut tower = tower("qwen3_vl", qwen3::tower, "model.visual.");
    let crop = random(0.0, 1.0, (3, 64, 48));
    let (hidden, parts) = all(|unfinished| tower.open(&crop, unfinished));
    assert_eq!((hidden.dim(0).unwrap(), parts), (48, 1));
    let (whole, parts) = all(|unfinished| tower.step(1, &hidden, &crop, unfinished));
    assert_eq!(parts, 1);
    let keeping: Vec<usize> = (0..=tower.depth()).collect();
    let keep = |tower: &Tower| -> Vec<(Vec<Tensor>, usize)> {
        keeping.iter().map(|layers| all(|unfinished| tower.keep(*layers, &whole, unfinished))).collect()
    };
    let kept = keep(&tower);
    assert!(kept.iter().all(|(_, parts)| *parts == 1));

    tower.part_rows = 20;
    // Two lines of 6 patches at a time, of 8.
    let (opened, parts) = all(|unfinished| tower.open(&crop, unfinished));
    assert_eq!(parts, 4);
    assert_same(&opened, &hidden);
    // 48 rows, 20 at a time; then 20 · 20 / 48 at a time.
    let (out, parts) = all(|unfinished| tower.step(1, &hidden, &crop, unfinished));
    assert_eq!(parts, 3 + 6);
    assert_same(&out, &whole);
    // 12 merged rows, 5 at a time, and 2 at a time where two mergers see them.
    for ((kept, _), (of_parts, parts)) in kept.iter().zip(keep(&tower)) {
        assert_eq!(parts, [1, 3, 6][kept.len()]);
        assert_eq!(kept.len(), of_parts.len());
        kept.iter().zip(&of_parts).for_each(|(left, right)| assert_same(left, right));
    }
    assert!(kept.iter().any(|(kept, _)| !kept.is_empty()));
}

#[test]
fn a_tower_with_windows_in_parts_is_the_whole_one() {
    let mut tower = tower("qwen2_5_vl", qwen2_5::tower, "visual.");
    // 4 lines of 3 merged patches: windows of 2 a side, and smaller ones at the edge.
    let crop = random(0.0, 1.0, (3, 64, 48));
    let (hidden, _) = all(|unfinished| tower.open(&crop, unfinished));
    let whole = [0, 1].map(|block| all(|unfinished| tower.step(block, &hidden, &crop, unfinished)).0);
    tower.part_rows = 20;
    let (opened, parts) = all(|unfinished| tower.open(&crop, unfinished));
    assert_eq!(parts, 2);
    assert_same(&opened, &hidden);
    // 48 rows, 20 at a time, of which a window has 16; and where all are seen, 20 · 20 / 48 at a time.
    for (block, wanted) in [(0, 3 + 3), (1, 3 + 6)] {
        let (out, parts) = all(|unfinished| tower.step(block, &hidden, &crop, unfinished));
        assert_eq!(parts, wanted);
        assert_same(&out, &whole[block]);
    }
}

#[test]
fn what_an_image_takes_is_charged_for_all_of_its_patches() {
    let config = qwen3::tower(Path::new("config.json"), &Value::Null).unwrap();
    // What goes into a layer and comes out, with queries, keys and values; the pixels; what the text is given.
    let row = 5 * 1152 + 3 * 16 * 16 + 4 * 3584 / 4;
    assert!(config.scratch(65_536).0 >= 65_536 * row * 4);
}
