//! The matrix of BLIP's logits, tied to the embeddings or the file's own.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor, safetensors};
use model_actors::{DescribeImage, ImageSource, Sampling};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::{Source, StandaloneModel as _, VisionModel};

const MATRIX: &str = "text_decoder.cls.predictions.decoder.weight";
const BIAS: &str = "text_decoder.cls.predictions.decoder.bias";
const EMBEDDINGS: &str = "text_decoder.bert.embeddings.word_embeddings.weight";
const TIED_BIAS: &str = "text_decoder.cls.predictions.bias";

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

type Tensors = HashMap<String, Tensor>;

/// Logits of the first token of the first case of the fixture, with other tensors and settings.
fn logits(change: impl FnOnce(&mut Tensors), settings: Value) -> Result<Vec<f32>> {
    let (from, folder) = (fixtures().join("vision/blip"), tempfile::tempdir().unwrap());
    for name in ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(name), folder.path().join(name)).unwrap();
    }
    let mut tensors = safetensors::load(from.join("model.safetensors"), &Device::Cpu).unwrap();
    change(&mut tensors);
    safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config["tie_word_embeddings"] = settings["tie_word_embeddings"].clone();
    config["text_config"]["tie_word_embeddings"] = settings["text"].clone();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let model = VisionModel::load(Source::directory(folder.path()))?;
    let request = DescribeImage::new(ImageSource::Path(fixtures().join("vision_images/wide.png")))
        .with_question("")
        .with_sampling(Sampling::default())
        .with_max_tokens(1);
    Ok(model.examine(&request)?.logits)
}

/// The reference's logits, and the bias in them.
fn reference() -> (Vec<f32>, Vec<f32>) {
    let values = |file: &str, name: &str| {
        let tensors = safetensors::load(fixtures().join("vision/blip").join(file), &Device::Cpu).unwrap();
        tensors[name].flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    (values("expected.safetensors", "0.logits"), values("model.safetensors", TIED_BIAS))
}

fn apart(found: &[f32], wanted: impl Iterator<Item = f32>) -> f32 {
    found.iter().zip(wanted).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
}

/// Twice the embeddings in the place of the matrix.
fn doubled(tensors: &mut Tensors, from: &str, to: &str) {
    let twice = (&tensors[from] * 2.0).unwrap();
    tensors.insert(to.to_owned(), twice);
}

#[test]
fn a_file_with_a_matrix_of_its_own_for_logits_is_computed_with_it() {
    let (tied, bias) = reference();
    let both = json!({"tie_word_embeddings": true, "text": true});
    let found = logits(|tensors| doubled(tensors, EMBEDDINGS, MATRIX), both.clone()).unwrap();
    assert!(apart(&found, tied.iter().zip(&bias).map(|(logit, bias)| 2.0 * logit - bias)) < 1e-3);
    let found = logits(|tensors| doubled(tensors, TIED_BIAS, BIAS), both).unwrap();
    assert!(apart(&found, tied.iter().zip(&bias).map(|(logit, bias)| logit + bias)) < 1e-3);
    let own = |tensors: &mut Tensors| {
        doubled(tensors, EMBEDDINGS, MATRIX);
        doubled(tensors, TIED_BIAS, BIAS);
    };
    let found = logits(own, json!({"tie_word_embeddings": false, "text": false})).unwrap();
    assert!(apart(&found, tied.iter().map(|logit| 2.0 * logit)) < 1e-3);
}

/// As in the reference implementation, in which each of the two configurations ties it.
#[test]
fn the_matrix_is_tied_unless_both_tables_say_no() {
    let (tied, _) = reference();
    for (whole, text) in
        [(json!(true), json!(false)), (json!(false), json!(true)), (Value::Null, Value::Null)]
    {
        let found = logits(|_| (), json!({"tie_word_embeddings": whole, "text": text})).unwrap();
        assert!(apart(&found, tied.iter().copied()) < 1e-3, "{whole} {text}");
    }
    let untied = json!({"tie_word_embeddings": false, "text": false});
    let refused = logits(|_| (), untied.clone()).unwrap_err();
    assert!(matches!(&refused, Error::MissingTensor { tensor } if tensor == MATRIX), "{refused}");
    let refused = logits(|tensors| doubled(tensors, EMBEDDINGS, MATRIX), untied).unwrap_err();
    assert!(matches!(&refused, Error::MissingTensor { tensor } if tensor == BIAS), "{refused}");
}
