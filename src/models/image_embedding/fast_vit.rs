//! FastViT of candle-transformers (Vasu et al., 2023), as MobileCLIP has it: `fastvit_mci0` to `fastvit_mci2` of timm.
//! Images go through one by one. The library leaves out parts that a file does not have; here those that belong to the
//! network have to be there.

use std::path::Path;

use candle_core::{Device, Module as _, Tensor};
use candle_nn::Func;
use candle_transformers::models::fastvit;
use model_actors::{Bytes, LoadContext};

use super::Watch;
use crate::error::Result;
use crate::limits::MAX_MODEL_SIDE;
use crate::models::config_file::{invalid, unsupported};
use crate::models::transformers::build_lacking;
use crate::weights::WeightFiles;

/// Pixels along the side of a square that becomes one number of the last stage.
pub(super) const PATCH: usize = 32;

/// A network that is not loaded.
pub(super) struct Config {
    network: fastvit::Config,
    /// Length of a vector.
    dimensions: usize,
}

impl Config {
    /// The network of this name.
    pub(super) fn read(file: &Path, name: &str, image_size: u64, dimensions: usize) -> Result<Self> {
        let network = match name {
            "fastvit_mci0" => fastvit::Config::mci0(),
            "fastvit_mci1" => fastvit::Config::mci1(),
            "fastvit_mci2" => fastvit::Config::mci2(),
            other => {
                let supported = "fastvit_mci0, fastvit_mci1, fastvit_mci2, none";
                return Err(unsupported(file, "timm_model_name", other, supported));
            }
        };
        let largest = MAX_MODEL_SIDE as u64;
        if !(PATCH as u64..=largest).contains(&image_size) {
            let reason = format!("image_size is {image_size}; {PATCH} to {largest} are allowed");
            return Err(invalid(file, reason));
        }
        Ok(Self { network, dimensions })
    }

    /// Bytes that an image of this side needs besides the weights: the rows of a feed-forward network at a quarter of the
    /// side, in all their forms, and the scores of attention.
    pub(super) fn scratch(&self, side: usize) -> Bytes {
        let fastvit::Config { in_channels, exp_ratio, .. } = self.network;
        let product =
            |sides: &[usize]| sides.iter().fold(1, |bytes: u64, side| bytes.saturating_mul(*side as u64));
        let rows = product(&[4 * 10, in_channels, exp_ratio + 1, side / 4, side / 4]);
        // The last stage's scores of each two of its places in a quarter as many heads as channels, in three forms.
        let places = side.div_ceil(32);
        let scores = product(&[4 * 3, in_channels.div_ceil(4), places * places, places * places]);
        Bytes(rows.saturating_add(scores))
    }

    /// Loads the network from the tensors on this path.
    pub(super) fn load(
        &self,
        path: &str,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<FastVit> {
        let network = build_lacking(weights, device, context, may_lack, |weights| {
            fastvit::fastvit(&self.network, self.dimensions, weights.pp(path))
        })?;
        Ok(FastVit(network))
    }
}

/// True for tensors that the library asks for and that such a network does not have.
fn may_lack(tensor: &str) -> bool {
    let is_in = |places: &[&str]| places.iter().any(|place| tensor.contains(place));
    (is_in(&[".identity."]) && is_in(&[".stem.0.", ".stem.1.", ".final_conv."]))
        || (is_in(&[".conv_scale."]) && is_in(&[".stem.2.", ".proj.1.", ".token_mixer.norm."]))
        || (is_in(&[".conv_kxk."]) && is_in(&[".token_mixer.norm."]))
        || (is_in(&[".se."])
            && !is_in(&[".final_conv.", "stages.2.downsample.proj.0.", "stages.3.downsample.proj.0."]))
        || is_in(&["stages.0.downsample."])
        || (is_in(&[".pos_emb."]) && !is_in(&["stages.3."]))
}

/// A loaded network.
pub(super) struct FastVit(Func<'static>);

impl FastVit {
    /// The vectors of images of `(3, height, width)`, `(images, dimensions)`.
    pub(super) fn forward(&self, images: &[Tensor], watch: &Watch<'_>) -> Result<Tensor> {
        let mut vectors = Vec::with_capacity(images.len());
        for image in images {
            watch()?;
            vectors.push(self.0.forward(&image.unsqueeze(0)?)?);
        }
        watch()?;
        Ok(Tensor::cat(&vectors, 0)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::path::PathBuf;

    use model_actors::Picture;
    use serde_json::{Value, json};

    use super::*;
    use crate::error::Error;
    use crate::pooling::normalize;
    use crate::preprocessing::Preprocessing;
    use crate::source::Files;

    fn fixture() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fast_vit")
    }

    fn load(folder: &Path) -> Result<FastVit> {
        let network = fastvit::Config {
            exp_ratio: 3,
            in_channels: 8,
            blocks: [1, 2, 1, 1],
            attn: true,
            lkc_use_act: true,
        };
        let context = LoadContext::detached(&"images".into());
        let weights = WeightFiles::open(&Files::directory(folder), "", &context)?;
        let loaded =
            Config { network, dimensions: 24 }.load("visual.trunk", &weights, &Device::Cpu, &context)?;
        weights.check_all_read(|tensor| tensor.ends_with(".num_batches_tracked"))?;
        Ok(loaded)
    }

    #[test]
    fn images_have_the_vectors_of_timm() {
        let network = load(&fixture()).unwrap();
        let expected: Value =
            serde_json::from_slice(&std::fs::read(fixture().join("expected.json")).unwrap()).unwrap();
        let settings = json!({"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]});
        let preprocessing = Preprocessing::of_open_clip(Path::new("fixture"), &settings, 64).unwrap();
        let (mut images, mut wanted) = (Vec::new(), Vec::new());
        for case in expected["images"].as_array().unwrap() {
            let file =
                fixture().parent().unwrap().join("photographs").join(case["photograph"].as_str().unwrap());
            let image = image::open(file).unwrap().to_rgb8();
            let picture = Picture::new(image.width() as usize, image.height() as usize, image.into_raw());
            images.push(preprocessing.tensor(&picture, &Device::Cpu).unwrap());
            let features = case["features"].as_array().unwrap();
            let mut features: Vec<f32> =
                features.iter().map(|number| number.as_f64().unwrap() as f32).collect();
            normalize(&mut features);
            wanted.push(features);
        }
        let whole: Vec<Vec<f32>> = network.forward(&images, &|| Ok(())).unwrap().to_vec2().unwrap();
        let mut found = whole.clone();
        // Before that their numbers are hundreds.
        found.iter_mut().for_each(|vector| normalize(vector));
        let pairs = found.iter().flatten().zip(wanted.iter().flatten());
        let most = pairs.map(|(found, wanted)| (found - wanted).abs()).fold(0.0, f32::max);
        println!("fast_vit: {} images, largest difference {most:.1e}", images.len());
        assert!(found.len() == wanted.len() && most < 2e-5, "{most}");
        let alone: Vec<Vec<f32>> = network.forward(&images[1..2], &|| Ok(())).unwrap().to_vec2().unwrap();
        assert_eq!(alone[0], whole[1]);
    }

    /// The library would go without it.
    #[test]
    fn a_part_that_is_missing_or_of_another_shape_is_refused_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        let tensors =
            candle_core::safetensors::load(fixture().join("model.safetensors"), &Device::Cpu).unwrap();
        let mut names: Vec<&String> = tensors.keys().filter(|name| !name.ends_with("_tracked")).collect();
        names.sort();
        assert!(names.len() > 150, "{}", names.len());
        for name in names {
            let mut lacking = tensors.clone();
            lacking.remove(name).unwrap();
            candle_core::safetensors::save(&lacking, &file).unwrap();
            let error = load(folder.path()).err().unwrap();
            assert!(matches!(&error, Error::MissingTensor { tensor } if tensor == name), "{name}: {error}");
        }
        for name in
            ["stages.3.pos_emb.pos_enc.weight", "final_conv.identity.weight", "stem.1.conv_scale.conv.weight"]
        {
            let name = format!("visual.trunk.{name}");
            let mut other = tensors.clone();
            other.insert(name.clone(), Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap());
            candle_core::safetensors::save(&other, &file).unwrap();
            let error = load(folder.path()).err().unwrap();
            let is_named = match &error {
                Error::ShapeMismatch { tensor, .. } | Error::UnreadTensor { tensor, .. } => *tensor == name,
                _ => false,
            };
            assert!(is_named, "{name}: {error}");
        }
    }
}
