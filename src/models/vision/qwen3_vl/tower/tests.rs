//! The tower in parts and whole: the same numbers, in bounded pieces.

use std::path::PathBuf;

use model_actors::{LoadContext, ModelId};

use super::*;
use crate::kernels::random;
use crate::source::{Files, read_json};
use crate::weights::WeightFiles;

fn tower() -> Tower {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vision/qwen3_vl");
    let file = folder.join("config.json");
    let config = TowerConfig::read(&file, &read_json::<Value>(&file).unwrap()["vision_config"]).unwrap();
    let context = LoadContext::detached(&ModelId::from("qwen3_vl"));
    let weights = WeightFiles::open(&Files::directory(&folder), "", &context).unwrap();
    let reader = weights.reader("model.visual.", &Device::Cpu, &context);
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
    let mut tower = tower();
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
fn what_an_image_takes_is_charged_for_all_of_its_patches() {
    let config = TowerConfig::read(Path::new("config.json"), &Value::Null).unwrap();
    // What goes into a layer and comes out, with queries, keys and values; the pixels; what the text is given.
    let row = 5 * 1152 + 3 * 16 * 16 + 4 * 3584 / 4;
    assert!(config.scratch(65_536).0 >= 65_536 * row * 4);
}
