//! The embeddings of T5's encoder, shared or its own, in pictures.

use std::path::PathBuf;

use candle_core::{Device, safetensors};
use model_actors::PaintImage;

use crate::models::folders::copied;
use crate::{Source, StandaloneModel as _, TextToImageModel};

/// A picture of the fixture, whose encoder has these tensors and embeddings, made of its own.
fn picture(embeddings: &[(&str, f64)]) -> Vec<u8> {
    let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_to_image/flux_schnell");
    let folder = copied(&fixture);
    let file = folder.path().join("text_encoder_2/model.safetensors");
    let mut tensors = safetensors::load(&file, &Device::Cpu).unwrap();
    let own = tensors.remove("shared.weight").unwrap();
    assert!(!tensors.contains_key("encoder.embed_tokens.weight"));
    for (name, factor) in embeddings {
        tensors.insert((*name).to_owned(), (&own * *factor).unwrap());
    }
    safetensors::save(&tensors, &file).unwrap();
    let model = TextToImageModel::load(Source::directory(folder.path())).unwrap();
    let request = PaintImage::default().with_prompt("a red circle").with_size((24, 16)).with_steps(1);
    model.paint(&request.with_seed(1), |_| {}).unwrap().rgb
}

/// As in `T5EncoderModel`, which ties the two only where they are equal, or one is missing.
#[test]
fn the_encoder_has_its_own_embeddings_where_the_file_has_them() {
    let (shared, own) = ("shared.weight", "encoder.embed_tokens.weight");
    let plain = picture(&[(shared, 1.0)]);
    assert!(plain != picture(&[(shared, -1.0)]), "the prompt has no effect");
    assert!(plain == picture(&[(own, 1.0)]));
    assert!(plain == picture(&[(shared, -1.0), (own, 1.0)]));
}
