//! The tower in parts and whole: the same numbers, in bounded pieces.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use model_actors::{LoadContext, ModelId};
use serde_json::{Value, json};

use super::tower::{Tower, TowerConfig};
use crate::error::Result;
use crate::kernels::random;
use crate::models::transformer::SafeTensors;
use crate::models::vision::{StepwiseTower as _, Unfinished};
use crate::source::{Files, read_json};
use crate::weights::WeightFiles;

fn tower(family: &str, merge: usize) -> Tower {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vision").join(family);
    let file = folder.join("config.json");
    let config = TowerConfig::read(&file, &read_json::<Value>(&file).unwrap()["vision_config"]).unwrap();
    let context = LoadContext::detached(&ModelId::from(family));
    let weights = WeightFiles::open(&Files::directory(&folder), "", &context).unwrap();
    let reader = weights.reader("vision_tower.", &Device::Cpu, &context);
    config.load(merge, &SafeTensors::new(&reader, "", config.transformer.workload)).unwrap()
}

/// The result of all parts, and their number.
fn all(mut part: impl FnMut(&mut Option<Unfinished>) -> Result<Option<Tensor>>) -> (Tensor, usize) {
    let (mut unfinished, mut parts) = (None, 1);
    loop {
        match part(&mut unfinished).unwrap() {
            Some(made) => return (made, parts),
            None => parts += 1,
        }
    }
}

fn assert_same(left: &Tensor, right: &Tensor) {
    let difference = (left - right).unwrap().abs().unwrap().max_all().unwrap();
    assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);
}

#[test]
fn a_tower_in_parts_is_the_whole_one() {
    for (family, merge, sides, lines) in [("pixtral", 1, (64, 48), 3), ("mistral3", 2, (48, 36), 4)] {
        let mut tower = tower(family, merge);
        // 8 lines of 6 patches.
        let crop = random(0.0, 1.0, (3, sides.0, sides.1));
        let (hidden, parts) = all(|unfinished| tower.open(&crop, unfinished));
        assert_eq!((hidden.dim(0).unwrap(), parts), (48, 1));
        let (whole, parts) = all(|unfinished| tower.step(1, &hidden, &crop, unfinished));
        assert_eq!(parts, 1);
        tower.part_rows = 20;
        // 3 lines at a time, or 1 of merged ones.
        let (opened, parts) = all(|unfinished| tower.open(&crop, unfinished));
        assert_eq!(parts, lines);
        assert_same(&opened, &hidden);
        // 48 rows, 20 at a time; then 20 · 20 / 48 at a time.
        let (out, parts) = all(|unfinished| tower.step(1, &hidden, &crop, unfinished));
        assert_eq!(parts, 3 + 6);
        assert_same(&out, &whole);
    }
}

#[test]
fn towers_that_cannot_be_are_refused_and_what_an_image_takes_is_charged() {
    let read = |config: Value| TowerConfig::read(Path::new("config.json"), &config);
    for config in [
        json!({"num_channels": 1}),
        json!({"patch_size": 0}),
        json!({"patch_size": 257}),
        json!({"head_dim": 32}),
        json!({"num_attention_heads": 512}),
        json!({"rope_theta": 0.5}),
        json!({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}),
        json!({"rope_parameters": {"rope_theta": null}, "rope_theta": -1}),
    ] {
        assert!(read(config.clone()).is_err(), "{config}");
    }
    let config = read(json!({"rope_parameters": {"rope_type": "axial", "rope_theta": 1e4}})).unwrap();
    // What goes into a layer and comes out, with queries, keys and values; the pixels; what the text is given.
    let row = 5 * 1024 + 3 * 16 * 16 + 5120;
    assert!(config.scratch(65_536, 1, 5120).0 >= 65_536 * row * 4);
}
